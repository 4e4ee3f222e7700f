//! The TCP port of lanes: who comes in, and whether they speak TLS with this node's name.
//!
//! Owns: the listening socket, the first bytes of strangers. Must not know: who is let in. Driven by: the accepting task,
//! whose doorway counts these handshakes with QUIC's; `accept` completes them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;

use gossamer_wire::{MeshId, NodeId, join};

use super::socket::{Socket, Watched};
use super::{ALPN, Driver, Lane, Shown, server_name};
use crate::clock;
use crate::supervise::Stage;
use crate::transport::{BINDING_LABEL, FlowStream};

/// Connections that wait for the system to be asked for them.
const BACKLOG: i32 = 256;
/// Pause after the system could not give one, for example for want of files.
const PAUSE: Duration = Duration::from_millis(100);

/// What came in to become a lane.
#[derive(Debug)]
pub(in crate::transport) struct Arrival {
    pub(in crate::transport) carried: Carried,
    /// Where it came from: of a circuit, its relay.
    pub(in crate::transport) remote: SocketAddr,
}

/// What carries it.
#[derive(Debug)]
pub(in crate::transport) enum Carried {
    Tcp(TcpStream),
    /// A stream of the peer that relays.
    Circuit(Box<FlowStream>),
}

/// Binds the port; the unspecified IPv6 address means both families, or IPv4 on a host without the other.
pub(in crate::transport) fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let open = |address: SocketAddr| {
        let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        // The connections of a daemon that has just ended must not keep the next one out.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    match open(listen) {
        Err(cause) if listen.ip() == Ipv6Addr::UNSPECIFIED && cause.kind() != io::ErrorKind::AddrInUse => {
            open((Ipv4Addr::UNSPECIFIED, listen.port()).into())
        }
        result => result,
    }
}

/// Takes connections in.
#[derive(Debug)]
pub(in crate::transport) struct Listener {
    pub(in crate::transport) socket: TcpListener,
    pub(in crate::transport) arrivals: mpsc::Sender<Arrival>,
}

impl Listener {
    /// Runs until the stop.
    pub(in crate::transport) async fn run(self, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => {
                    let arrival = Arrival { carried: Carried::Tcp(stream), remote };
                    drop(self.arrivals.send(arrival).await);
                }
                Err(error) => {
                    tracing::debug!(%error, "a lane could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// What strangers meet.
#[derive(Clone, Debug)]
pub(in crate::transport) struct LaneDoor {
    pub(in crate::transport) config: Arc<ServerConfig>,
    pub(in crate::transport) me: NodeId,
    pub(in crate::transport) mesh: MeshId,
    pub(in crate::transport) stage: Stage,
}

fn is_before_mesh(rest: &str) -> bool {
    rest.is_empty() || rest.ends_with('.')
}

/// Who came in by a lane.
#[derive(Debug)]
pub(in crate::transport) struct Entered {
    pub(in crate::transport) lane: Lane,
    pub(in crate::transport) driver: Driver,
    /// Whether it wants to join or to renew.
    pub(in crate::transport) is_joiner: bool,
}

impl LaneDoor {
    /// Returns what carries the lane, and the relay of a circuit.
    fn open(&self, carried: Carried) -> (Socket, Watched, Option<NodeId>) {
        match carried {
            Carried::Tcp(stream) => {
                let (socket, watched) = Socket::of_tcp(stream);
                (socket, watched, None)
            }
            Carried::Circuit(stream) => {
                let relay = stream.peer.node;
                let (socket, watched, pump) = Socket::of_circuit(*stream);
                self.stage.spawn_short("circuit", pump.run());
                (socket, watched, Some(relay))
            }
        }
    }

    /// Completes a handshake.
    ///
    /// # Errors
    /// The word for metrics: it was no TLS, asked for another name or protocol, or broke off.
    pub(in crate::transport) async fn shake_hands(&self, arrival: Arrival) -> Result<Entered, &'static str> {
        let Arrival { carried, mut remote } = arrival;
        remote.set_ip(remote.ip().to_canonical());
        let (socket, watched, via) = self.open(carried);
        let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await;
        let start = start.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "lane_closed",
            _ => "lane_not_tls",
        })?;
        let hello = start.client_hello();
        let protocols: Vec<_> = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        let is_joiner = protocols.iter().any(|protocol| protocol == join::ALPN);
        // Who joins is no member, and opens no circuit.
        if is_joiner && via.is_some() || !is_joiner && !protocols.iter().any(|protocol| protocol == ALPN) {
            return Err("lane_protocol");
        }
        let name = hello.server_name().unwrap_or_default();
        let is_here = match is_joiner {
            false => name == server_name(Some(self.me), self.mesh),
            // A token names the issuer's key, whoever has it: that is judged by who asks.
            true => name.strip_suffix(&server_name(None, self.mesh)).is_some_and(is_before_mesh),
        };
        if !is_here {
            tracing::debug!(%remote, name, "a lane for another node");
            return Err("lane_name");
        }
        let began = clock::now().mono;
        let stream = start.into_stream(Arc::clone(&self.config)).await.map_err(|error| {
            tracing::debug!(%remote, %error, "handshake of a lane refused");
            "lane_tls"
        })?;
        let rtt = clock::now().mono.saturating_duration_since(began);
        let connection = stream.get_ref().1;
        let chain = connection
            .peer_certificates()
            .map(|chain| chain.iter().cloned().map(CertificateDer::into_owned).collect());
        let binding = connection.export_keying_material([0; 32], BINDING_LABEL, Some(b"")).ok();
        let lane = Lane::new(Shown { remote, via, is_ingress: false, chain, binding, rtt }, None);
        let driver =
            Driver { shared: Arc::clone(&lane.0), stream: TlsStream::Server(stream), socket: watched };
        Ok(Entered { lane, driver, is_joiner })
    }
}
