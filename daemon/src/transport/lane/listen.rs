//! The TCP port of lanes: who comes in, and whether they speak TLS with this node's name.
//!
//! Owns: the listening socket, the first bytes of strangers. Must not know: who is let in. Driven by: the accepting task,
//! whose doorway counts these handshakes with QUIC's; `accept` completes them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{StartHandshake, TlsStream};
use tokio_util::sync::CancellationToken;

use gossamer_wire::{MeshId, NodeId, NodeName, join};

use super::socket::{Socket, Watched};
use super::stranger::Leading;
use super::{ALPN, Driver, Lane, Shown, server_name, shown_in};
use crate::clock;
use crate::supervise::Stage;
use crate::transport::FlowStream;

/// Pause after the system could not give one, for example for want of files.
const PAUSE: Duration = Duration::from_millis(100);
/// Most bytes with which somebody may begin: ours takes a few hundred.
const MAX_HELLO: usize = 16 << 10;

/// What came in to become a lane.
#[derive(Debug)]
pub(in crate::transport) struct Arrival {
    pub(in crate::transport) carried: Carried,
    /// Where it came from: of a circuit its relay, of a stranger where the relay says that it is.
    pub(in crate::transport) remote: SocketAddr,
}

/// What carries it.
#[derive(Debug)]
pub(in crate::transport) enum Carried {
    Tcp(TcpStream),
    /// A stream of the peer that relays, for the member that it names.
    Circuit(Box<FlowStream>, NodeId),
    /// The same, of somebody who is no member and may do no more than join or renew.
    Stranger(Box<FlowStream>),
}

impl Arrival {
    /// Returns the name of the relay that has led it here.
    pub(in crate::transport) fn relay(&self) -> Option<NodeName> {
        match &self.carried {
            Carried::Tcp(_) => None,
            Carried::Circuit(stream, _) | Carried::Stranger(stream) => Some(stream.peer.name.clone()),
        }
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
    /// Where joiners go who want another node.
    pub(in crate::transport) leading: Arc<Leading>,
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
            Carried::Circuit(stream, _) | Carried::Stranger(stream) => {
                let relay = stream.peer.node;
                let (socket, watched, pump) = Socket::of_circuit(*stream);
                self.stage.spawn_short("circuit", pump.run());
                (socket, watched, Some(relay))
            }
        }
    }

    /// Completes a handshake. `None` when a joiner wants another node: it is led there, or was told why not.
    ///
    /// # Errors
    /// The word for metrics: it was no TLS, asked for another name or protocol, or broke off.
    pub(in crate::transport) async fn shake_hands(
        &self,
        arrival: Arrival,
    ) -> Result<Option<Entered>, &'static str> {
        let Arrival { carried, mut remote } = arrival;
        remote.set_ip(remote.ip().to_canonical());
        let (is_direct, is_stranger) =
            (matches!(carried, Carried::Tcp(_)), matches!(carried, Carried::Stranger(_)));
        let (mut socket, watched, via) = self.open(carried);
        let (accepted, bytes) = read_hello(&mut socket).await?;
        let hello = accepted.client_hello();
        let protocols: Vec<_> = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        let is_joiner = protocols.iter().any(|protocol| protocol == join::ALPN);
        // Who joins is no member, and opens no circuit; whom a relay took for a joiner does nothing else.
        if is_joiner != is_stranger && via.is_some()
            || !is_joiner && !protocols.iter().any(|protocol| protocol == ALPN)
        {
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
        if is_joiner
            && is_direct
            && let Some(issuers) = self.leading.wanted(name, self.me, self.mesh)
        {
            self.leading.lead((socket, watched), bytes, remote.ip(), &issuers, &self.stage);
            return Ok(None);
        }
        let began = clock::now().mono;
        let start = StartHandshake::from_parts(accepted, socket);
        let stream = start.into_stream(Arc::clone(&self.config)).await.map_err(|error| {
            tracing::debug!(%remote, %error, "handshake of a lane refused");
            "lane_tls"
        })?;
        let rtt = clock::now().mono.saturating_duration_since(began);
        let (chain, binding) = shown_in(stream.get_ref().1);
        let lane = Lane::new(Shown { remote, via, is_ingress: false, chain, binding, rtt }, None);
        let driver =
            Driver { shared: Arc::clone(&lane.0), stream: TlsStream::Server(stream), socket: watched };
        Ok(Some(Entered { lane, driver, is_joiner }))
    }
}

/// Reads the first message of TLS, and returns it with its bytes: they may be for another node.
async fn read_hello(socket: &mut Socket) -> Result<(Accepted, Vec<u8>), &'static str> {
    let (mut acceptor, mut bytes, mut buffer) = (Acceptor::default(), Vec::new(), [0; 1_024]);
    loop {
        let len = socket.read(&mut buffer).await.map_err(|_| "lane_not_tls")?;
        let mut fresh = buffer.get(..len).filter(|fresh| !fresh.is_empty()).ok_or("lane_closed")?;
        bytes.extend_from_slice(fresh);
        while !fresh.is_empty() {
            acceptor.read_tls(&mut fresh).map_err(|_| "lane_not_tls")?;
            match acceptor.accept() {
                // Nobody of ours says more before an answer.
                Ok(Some(accepted)) if fresh.is_empty() => return Ok((accepted, bytes)),
                Ok(None) if bytes.len() <= MAX_HELLO => {}
                Ok(_) => return Err("lane_not_tls"),
                Err((_, mut alert)) => {
                    let mut said = Vec::new();
                    let _ = alert.write_all(&mut said);
                    let _ = socket.write_all(&said).await;
                    return Err("lane_not_tls");
                }
            }
        }
    }
}
