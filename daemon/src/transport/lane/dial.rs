//! Dialling a lane: TCP, then TLS with the name of who is meant.
//!
//! Owns: that name, the handshake's time limit, what its failures mean. Must not know: whom to dial. Driven by: `accept`, and
//! `identity::join` for joiners.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use gossamer_wire::limits::HANDSHAKE_TIMEOUT;
use gossamer_wire::{LaneAddress, MeshId, NodeId};

use super::ingress::{NameRules, dial_by_name};
use super::socket::{Socket, Watched};
use super::{Driver, Lane, Opener, Shown, shown_in};
use crate::clock;
use crate::metrics::Metrics;
use crate::supervise::Stage;
use crate::transport::Peers;
use crate::transport::tried::Outcome;

/// How long TCP and TLS may take.
const LANE_WITHIN: Duration = HANDSHAKE_TIMEOUT;

/// Returns the name by which a node is asked for, which an ingress can route by: that of the node in its mesh. Joiners give
/// the issuer's id, or only the mesh where any of its issuers will do.
pub(crate) fn server_name(node: Option<NodeId>, mesh: MeshId) -> String {
    node.map_or_else(|| mesh.to_string(), |node| format!("{node}.{mesh}"))
}

/// Dials lanes to members.
#[derive(Clone, Debug)]
pub(in crate::transport) struct LaneDialler {
    pub(in crate::transport) config: Arc<ClientConfig>,
    pub(in crate::transport) mesh: MeshId,
    pub(in crate::transport) stage: Stage,
    pub(in crate::transport) metrics: Arc<Metrics>,
    /// Opens the streams of circuits.
    pub(in crate::transport) peers: Peers,
    pub(in crate::transport) rules: NameRules,
}

impl LaneDialler {
    /// Dials a node at an address and gives the lane a task.
    pub(in crate::transport) async fn dial(
        &self,
        node: NodeId,
        address: SocketAddr,
        opener: Opener,
    ) -> Result<Lane, Outcome> {
        let name = server_name(Some(node), self.mesh);
        let (lane, driver) = dial(address, &name, Arc::clone(&self.config), opener, LANE_WITHIN).await?;
        self.start(driver);
        Ok(lane)
    }

    /// Dials a node at a lane address and gives the lane a task.
    pub(in crate::transport) async fn dial_by_name(
        &self,
        node: NodeId,
        at: &LaneAddress,
        opener: Opener,
    ) -> Result<Lane, Outcome> {
        let (name, config) = (server_name(Some(node), self.mesh), Arc::clone(&self.config));
        let (lane, driver) = dial_by_name(at, &self.rules, &name, config, opener, LANE_WITHIN).await?;
        self.start(driver);
        Ok(lane)
    }

    /// Dials a node through a relay and gives the lane a task.
    pub(in crate::transport) async fn dial_circuit(
        &self,
        node: NodeId,
        relay: NodeId,
        opener: Opener,
    ) -> Result<Lane, Outcome> {
        let mut has_led = false;
        let dialled = async {
            let stream = self.peers.open_circuit(relay, node).await?;
            has_led = true;
            let at = Place { remote: stream.remote, via: Some(relay), is_ingress: false };
            let (socket, watched, pump) = Socket::of_circuit(stream);
            self.stage.spawn_short("circuit", pump.run());
            let name = server_name(Some(node), self.mesh);
            shake_hands((socket, watched), at, &name, Arc::clone(&self.config), opener).await
        };
        let dialled = timeout(LANE_WITHIN, dialled).await.unwrap_or(Err(Outcome::NoAnswer(LANE_WITHIN)));
        let (lane, driver) =
            dialled.map_err(|outcome| if has_led { outcome.behind_relay() } else { outcome })?;
        self.start(driver);
        Ok(lane)
    }

    fn start(&self, driver: Driver) {
        let (stop, metrics) = (self.stage.stopping().clone(), Arc::clone(&self.metrics));
        self.stage.spawn_short("lane", async move {
            if driver.run(stop).await {
                metrics.bad_frame();
            }
        });
    }
}

/// Where the other end of a lane is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    remote: SocketAddr,
    via: Option<NodeId>,
    is_ingress: bool,
}

impl Place {
    const fn of_node(remote: SocketAddr) -> Self {
        Self { remote, via: None, is_ingress: false }
    }

    pub(super) const fn of_ingress(remote: SocketAddr) -> Self {
        Self { remote, via: None, is_ingress: true }
    }
}

/// Dials a lane. Nothing moves on it before its driver runs.
pub(crate) async fn dial(
    address: SocketAddr,
    name: &str,
    config: Arc<ClientConfig>,
    opener: Opener,
    within: Duration,
) -> Result<(Lane, Driver), Outcome> {
    let dialled = connect(Place::of_node(address), name, config, opener);
    timeout(within, dialled).await.map_err(|_| Outcome::NoAnswer(within))?
}

/// Dials a lane, for as long as that takes.
pub(super) async fn connect(
    at: Place,
    name: &str,
    config: Arc<ClientConfig>,
    opener: Opener,
) -> Result<(Lane, Driver), Outcome> {
    let stream = TcpStream::connect(at.remote).await.map_err(|error| unconnected(&error))?;
    shake_hands(Socket::of_tcp(stream), at, name, config, opener).await
}

async fn shake_hands(
    (socket, watched): (Socket, Watched),
    Place { remote, via, is_ingress }: Place,
    name: &str,
    config: Arc<ClientConfig>,
    opener: Opener,
) -> Result<(Lane, Driver), Outcome> {
    let name = ServerName::try_from(name.to_owned()).map_err(|error| Outcome::Broken(error.to_string()))?;
    let began = clock::now().mono;
    let stream = TlsConnector::from(config).connect(name, socket).await.map_err(|error| unshaken(&error))?;
    let rtt = clock::now().mono.saturating_duration_since(began);
    let (chain, binding) = shown_in(stream.get_ref().1);
    let lane = Lane::new(Shown { remote, via, is_ingress, chain, binding, rtt }, Some(opener));
    let driver = Driver { shared: Arc::clone(&lane.0), stream: TlsStream::Client(stream), socket: watched };
    Ok((lane, driver))
}

fn unconnected(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        io::ErrorKind::PermissionDenied => {
            Outcome::NoRoute("a firewall of this machine forbids it".to_owned())
        }
        io::ErrorKind::ConnectionReset => Outcome::Broken("TCP was reset".to_owned()),
        _ => Outcome::NoRoute(error.to_string()),
    }
}

fn unshaken(error: &io::Error) -> Outcome {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        return Outcome::Broken(error.to_string());
    };
    match cause {
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. } | CertificateError::Revoked,
        ) => Outcome::Untrusted,
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::InvalidMessage(_)
        | rustls::Error::NoApplicationProtocol
        | rustls::Error::AlertReceived(
            AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion,
        ) => Outcome::WrongIdentity,
        // What a relay says to joiners; an ingress says the first as well.
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            Outcome::Said("who is asked for has no connection with it".to_owned())
        }
        rustls::Error::AlertReceived(AlertDescription::InternalError) => {
            Outcome::Said("it takes no more at the moment, try again".to_owned())
        }
        rustls::Error::AlertReceived(_) => Outcome::Said("it does not take this machine".to_owned()),
        error => Outcome::Broken(error.to_string()),
    }
}
