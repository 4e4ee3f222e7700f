//! The DNS listener: which port it gets, and the task that serves it.
//!
//! Owns: binding and the rule for sources. Must not know: answers. Driven by: `app`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use thiserror::Error;
use tokio::net::{TcpListener, UdpSocket};

use gossamer_dns::{DnsMetrics, DnsServer, Zones};

use crate::resolver::Resolver;
use crate::supervise::Stage;

/// The port of DNS, and the one taken when that is denied or in use (design section 7).
const PORTS: [u16; 2] = [53, 4653];

/// Why DNS is not answered. The operator's fault; nothing was changed.
#[derive(Debug, Error)]
pub enum BindError {
    /// The address that was asked for cannot be had.
    #[error("DNS cannot listen on {address}: {error}; free it, or name another with --dns")]
    Chosen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// Neither default port can be had.
    #[error("DNS cannot listen on {ip}, neither on port 53 nor on 4653: {error}; name an address with --dns")]
    Both {
        /// The address.
        ip: Ipv4Addr,
        /// What the system said about 4653.
        error: io::Error,
    },
}

/// Bound sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) address: SocketAddr,
    fallback: Option<String>,
    udp: UdpSocket,
    tcp: TcpListener,
}

/// Where DNS is answered.
#[derive(Clone, Debug)]
pub struct Listening {
    /// The address.
    pub address: SocketAddr,
    /// Why it is not port 53.
    pub fallback: Option<String>,
}

impl Sockets {
    pub(super) fn listening(&self) -> Listening {
        Listening { address: self.address, fallback: self.fallback.clone() }
    }
}

/// Binds both protocols on one port.
///
/// # Errors
/// See [`BindError`].
pub(super) async fn bind(chosen: Option<SocketAddr>, ip: Ipv4Addr) -> Result<Sockets, BindError> {
    if let Some(address) = chosen {
        return bind_both(address, None).await.map_err(|error| BindError::Chosen { address, error });
    }
    let [first, second] = PORTS;
    let refused = match bind_both((ip, first).into(), None).await {
        Ok(sockets) => return Ok(sockets),
        Err(error) => error,
    };
    let why = match refused.kind() {
        io::ErrorKind::PermissionDenied => {
            "port 53 is denied to this user; run as root or give the binary CAP_NET_BIND_SERVICE".to_owned()
        }
        io::ErrorKind::AddrInUse => {
            format!("another program listens on port 53 of {ip} (`ss -lunp sport = 53` names it)")
        }
        _ => format!("port 53 of {ip} cannot be bound: {refused}"),
    };
    bind_both((ip, second).into(), Some(why)).await.map_err(|error| BindError::Both { ip, error })
}

async fn bind_both(address: SocketAddr, fallback: Option<String>) -> io::Result<Sockets> {
    let udp = UdpSocket::bind(address).await?;
    // With port 0 both protocols must get the same one.
    let address = udp.local_addr()?;
    let tcp = TcpListener::bind(address).await?;
    Ok(Sockets { address, fallback, udp, tcp })
}

/// Starts to answer.
pub(super) fn start(
    stage: &Stage,
    sockets: Sockets,
    (resolver, zone, metrics): (Arc<Resolver>, Arc<Zones>, Arc<DnsMetrics>),
) {
    let stop = stage.stopping().clone();
    stage.spawn("dns", async move {
        let allow = Arc::new(is_this_host);
        let served = DnsServer::serve(resolver, zone, sockets.udp, sockets.tcp, metrics, allow, stop).await;
        if let Err(error) = served {
            tracing::error!(%error, "the DNS sockets failed");
        }
    });
}

/// Whether a source is an address of this host: only those may ask (design section 8).
fn is_this_host(source: IpAddr) -> bool {
    source.is_loopback() || std::net::UdpSocket::bind((source, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_an_error_that_names_it() {
        let taken = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let address = taken.local_addr().expect("bound");
        let error = bind(Some(address), Ipv4Addr::LOCALHOST).await.expect_err("taken").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--dns"), "{error}");
    }

    #[tokio::test]
    async fn both_protocols_share_a_port() {
        let any = "127.0.0.1:0".parse().expect("address");
        let sockets = bind(Some(any), Ipv4Addr::LOCALHOST).await.expect("binds");
        assert_eq!(sockets.tcp.local_addr().expect("bound"), sockets.address);
        assert!(sockets.listening().fallback.is_none());
    }

    #[test]
    fn only_addresses_of_this_host_may_ask() {
        assert!(is_this_host(Ipv4Addr::new(127, 240, 0, 9).into()));
        assert!(!is_this_host(Ipv4Addr::new(192, 0, 2, 1).into()));
    }
}
