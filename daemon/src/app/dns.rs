//! The DNS listener: which port it gets, whom it may ask itself, and the tasks of both.
//!
//! Owns: binding, the events of upstream servers. Must not know: answers, who may ask. Driven by: `app`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, UdpSocket};

use gossamer_dns::{
    DnsServer, ForwardSettings, Forwarder, Name, Service, UpstreamChange, UpstreamError, UpstreamState, Zones,
};

use crate::clients::is_this_host;
use crate::config::Settings;
use crate::events::{Event, EventLog};
use crate::supervise::Stage;

/// Most UDP sockets. Each has a worker; one answers more than a machine's programs ask, a second keeps a burst of
/// one client from delaying others.
const MAX_WORKERS: usize = 2;

/// Two thousand datagrams of the usual size, with what the kernel adds: no burst of stub resolvers is lost.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

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
    udp: Vec<UdpSocket>,
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
    // Not shared, and first, so that a second daemon of this user is refused before it takes a question away.
    let tcp = TcpListener::bind(address).await?;
    // With port 0 all must get the same one.
    let address = tcp.local_addr()?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    let udp = (0..workers).map(|_| bind_udp(address)).collect::<io::Result<_>>()?;
    Ok(Sockets { address, fallback, udp, tcp })
}

/// Makes the forwarder for names of others, if there is anybody to ask.
///
/// # Errors
/// One of the servers would send names back to us.
pub(super) fn forwarder(
    settings: &Settings,
    zones: &Arc<Zones>,
    own: SocketAddr,
    events: EventLog,
) -> Result<Option<Arc<Forwarder>>, UpstreamError> {
    if settings.upstreams.is_empty() {
        return Ok(None);
    }
    let is_own = |address: SocketAddr| {
        let everywhere = own.ip().is_unspecified() && address.port() == own.port();
        address == own || everywhere && is_this_host(address.ip())
    };
    let report = move |change: UpstreamChange| events.push(&event(change));
    let suffixes =
        settings.rebind_allow.iter().filter_map(|suffix| Name::from_ascii(format!("{suffix}.")).ok());
    let forwarding = ForwardSettings {
        upstreams: settings.upstreams.clone(),
        rebind_allow: settings.rebind_protection.then(|| suffixes.collect()),
    };
    Ok(Some(Arc::new(Forwarder::new(forwarding, Arc::clone(zones), is_own, report)?)))
}

fn event(UpstreamChange { address, now }: UpstreamChange) -> Event {
    let (was, cause) = match now {
        UpstreamState::Looping => ("up", "it asks this daemon what this daemon asks it; it is asked no more"),
        UpstreamState::Up | UpstreamState::Failing => ("looping", "it no longer asks this daemon"),
    };
    Event {
        who: format!("upstream {address}"),
        was,
        now: now.word(),
        cause: cause.to_owned(),
        by: "self".to_owned(),
    }
}

/// Binds a socket that shares its address with others of this user: the kernel spreads clients over them.
fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Less is granted to who is no root; what arrives in a burst waits there.
    if let Err(error) = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES) {
        tracing::debug!(err = %error, "the receive buffer of DNS stays as it is");
    }
    socket.bind(&SockAddr::from(address))?;
    UdpSocket::from_std(socket.into())
}

/// Starts to answer.
pub(super) fn start(stage: &Stage, sockets: Sockets, service: Service) {
    if let Some(forwarder) = service.forwarder.clone() {
        let stop = stage.stopping().clone();
        stage.spawn("upstream probes", async move {
            let _ = stop.run_until_cancelled(forwarder.watch()).await;
        });
    }
    let stop = stage.stopping().clone();
    stage.spawn("dns", async move {
        let served = DnsServer::serve(service, sockets.udp, sockets.tcp, stop).await;
        if let Err(error) = served {
            tracing::error!(%error, "the DNS sockets failed");
        }
    });
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
    fn the_own_listener_is_no_upstream_server() {
        let zone = gossamer_dns::Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16);
        let zone = Arc::new(Zones::from(zone.expect("a zone")));
        let flags =
            crate::config::Flags { config: None, keys: vec![("dns.upstream", "127.0.0.9:5353".to_owned())] };
        let host = crate::config::Host { is_root: true, ..crate::config::Host::default() };
        let config = crate::config::Config::load(&flags, &host).expect("loads");
        let settings = config.settings(crate::config::Slot::FIRST);
        let made = |own: &str| {
            forwarder(&settings, &zone, own.parse().expect("address"), EventLog::default())
                .map(|made| made.is_some())
        };
        assert_eq!(made("127.240.0.53:53"), Ok(true));
        for own in ["127.0.0.9:5353", "0.0.0.0:5353", "[::]:5353"] {
            assert!(made(own).expect_err(own).to_string().contains("this daemon answers DNS"));
        }
    }

    #[test]
    fn an_event_says_what_became_of_an_upstream_server() {
        let change = |now| UpstreamChange { address: "192.0.2.53:53".parse().expect("address"), now };
        let began = event(change(UpstreamState::Looping));
        assert_eq!((began.who.as_str(), began.was, began.now), ("upstream 192.0.2.53:53", "up", "looping"));
        let ended = event(change(UpstreamState::Up));
        assert_eq!((ended.was, ended.now), ("looping", "up"));
    }
}
