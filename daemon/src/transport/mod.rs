//! The mesh as connections: who is connected, frames and packets to them, streams for flows.
//!
//! Owns: the endpoint, the links and the data connections; one task decides which are kept.
//! Must not know: what frames and flows mean. Driven by: `app`; read by membership, catalog, relay.

mod accept;
mod acceptor;
mod by_lane;
mod canary;
mod carrier;
mod congestion;
mod credit;
mod data;
mod datagrams;
mod dials;
mod endpoint;
mod gather;
mod hello;
mod lane;
mod link;
mod moved;
mod owner;
pub mod paths;
mod ping;
mod port;
mod race;
mod relays;
mod second;
mod silence;
mod socket;
mod standing;
pub mod tls;
mod tried;
mod twin;
mod window;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use gossamer_core::astray::Astray;
use gossamer_core::dial::Source;
use gossamer_core::trust::Leaf;
use gossamer_wire::circuit::{CircuitOpen, CircuitStatus};
use gossamer_wire::frame::{Frame, Purpose};
use gossamer_wire::swim::SwimMember;
use gossamer_wire::{LaneAddress, NodeId, frame};

use crate::authority::AuthorityHandle;
use crate::metrics::Metrics;

pub(crate) use canary::nobody;
pub use carrier::{Connection, RecvStream, SendStream};
pub use congestion::Demand;
pub use credit::FlowCredit;
pub(crate) use credit::{ReadCredit, SendCredit, StalledFor};
pub use data::{FlowLease, FlowStream, OpenError};
pub use datagrams::Datagrams;
pub(crate) use datagrams::{Registered, Sent};
pub use endpoint::{BindError, Udp};
pub(crate) use endpoint::{dial_only, joiner};
pub use lane::NameRules;
pub(crate) use lane::{Driver as LaneDriver, Lane, Opener, dial as dial_lane, dial_by_name, server_name};
use link::Link;
pub use owner::{Parts, start};
pub use paths::{Path, PathKind, Sizes};
pub use ping::Pinged;
pub(crate) use race::Race;
pub use tls::Trust;
pub(crate) use tried::plain;
pub use tried::{Outcome, Tried, Way};
#[cfg(test)]
pub(crate) use {credit::Credits, endpoint::data_settings};

/// Longest wait for a flow's stream (design section 9: then another instance is tried).
const OPEN_WITHIN: Duration = Duration::from_secs(3);

/// Commands waiting for the owner: one per node and kind at the most, for 10,000 nodes.
const COMMANDS: usize = 16_384;
/// What connections report to the owner.
const INPUTS: usize = 1_024;
/// Packets and frames waiting for membership: a second's worth at 1,000 nodes; above it SWIM tolerates loss.
pub const MEMBERSHIP_QUEUE: usize = 4_096;
/// Frames waiting for the catalog, each up to 65,000 bytes; when full, the links are not read.
pub const CATALOG_QUEUE: usize = 64;
/// Full states on their way to membership, each up to 65,000 bytes; when full, their links are not read.
const STATES: usize = 16;
/// Accepted streams waiting for the relay; when full, the data connections are not read.
pub const FLOW_QUEUE: usize = 256;

/// What membership hears from the transport.
#[derive(Debug)]
pub enum ToMembership {
    /// A control connection is up.
    Connected(NodeId),
    /// The last control connection to the node has ended.
    Disconnected(NodeId),
    /// All nodes that are out for ever, from the statements.
    Evicted(Arc<BTreeSet<NodeId>>),
    /// A node runs twice: it, or this process, has proved it.
    Twice {
        /// The node, which may be this one.
        node: NodeId,
        /// Where the other process is.
        at: SocketAddr,
    },
    /// A relay has said that it leads to the node, and did not.
    Astray {
        /// The relay.
        relay: NodeId,
        /// Who was meant.
        node: NodeId,
        /// How often in a row.
        times: u32,
    },
    /// Relays that have led astray, and do so no more or are gone.
    NotAstray(BTreeSet<NodeId>),
    /// A SWIM packet.
    Packet {
        /// The verified sender.
        from: NodeId,
        /// The packet.
        bytes: Vec<u8>,
    },
    /// A frame that is not a full state or a packet.
    Frame {
        /// The verified sender.
        from: NodeId,
        /// The frame.
        frame: Frame,
    },
    /// The sender's members.
    Members {
        /// The verified sender.
        from: NodeId,
        /// The members.
        members: Vec<SwimMember>,
        /// Whether it wants ours.
        reply: bool,
        /// Room for one full state, given back when the message is dropped.
        place: Option<OwnedSemaphorePermit>,
    },
}

/// What the catalog hears from the transport.
#[derive(Debug)]
pub enum ToCatalog {
    /// A control connection is up.
    Connected(NodeId),
    /// The last control connection to the node has ended.
    Disconnected(NodeId),
    /// A frame about adverts.
    Frame {
        /// The verified sender.
        from: NodeId,
        /// The frame.
        frame: Frame,
    },
}

/// What the owner is asked for.
#[derive(Debug)]
enum Command {
    Learn {
        node: NodeId,
        addresses: Vec<SocketAddr>,
        source: Source,
    },
    /// Lanes to these addresses reach the node.
    Lanes {
        node: NodeId,
        lanes: Vec<LaneAddress>,
    },
    /// These relays have a connection with the node.
    Relays {
        node: NodeId,
        relays: Vec<NodeId>,
    },
    /// Nobody has a card of the node any more.
    Forget(NodeId),
    Up(NodeId),
    Gone {
        node: NodeId,
        has_left: bool,
    },
    Reach(NodeId),
    /// Somebody wants to try the addresses of the node.
    Look {
        node: NodeId,
        caller: ping::Caller,
    },
    OpenData {
        node: NodeId,
        caller: data::Waiting,
    },
    /// The same on a lane, whatever else leads to the node.
    OpenLane {
        node: NodeId,
        caller: data::Waiting,
    },
    /// The catalog knows a certificate of the node that lasts until then, seconds since the Unix epoch.
    Certified {
        node: NodeId,
        until: u64,
    },
    /// The peer sends what no honest node has.
    Refuse(NodeId),
    /// New statements act: peers must hear them, and connections be judged again.
    Statements(Vec<Vec<u8>>),
}

/// What connections and dials report to the owner.
#[derive(Debug)]
enum Report {
    Greeted(hello::Greeted),
    DialFailed(accept::Errand),
    LinkEnded {
        node: NodeId,
        stable_id: usize,
    },
    SecondEnded {
        node: NodeId,
        stable_id: usize,
    },
    DataEnded {
        node: NodeId,
        stable_id: usize,
    },
    LaneReady {
        lane: Lane,
        peer: Arc<Leaf>,
        dialled: bool,
    },
    LaneEnded {
        node: NodeId,
        stable_id: usize,
    },
    /// Nothing has come over a control connection for some time, and its peer was asked.
    UdpSilent {
        node: NodeId,
        stable_id: usize,
    },
    DialBack {
        node: NodeId,
        purpose: Purpose,
    },
    ToldOfTwin(SocketAddr),
    /// Somebody else answered where the node was dialled.
    MetAnother {
        node: NodeId,
        addresses: Vec<SocketAddr>,
    },
    /// These relays have said that they lead to the node, and did not, or what they led went silent.
    LedAstray {
        node: NodeId,
        relays: Vec<(NodeId, Astray)>,
    },
}

/// Where links deliver what they read.
#[derive(Clone, Debug)]
struct Inbox {
    membership: mpsc::Sender<ToMembership>,
    /// Room for full states, which are large.
    states: Arc<Semaphore>,
    catalog: mpsc::Sender<ToCatalog>,
    authority: AuthorityHandle,
    reports: mpsc::Sender<Report>,
    pings: ping::Pings,
    metrics: Arc<Metrics>,
}

impl Inbox {
    /// Drops the message when membership is behind: SWIM expects loss, and waiting would delay probes.
    fn membership(&self, message: ToMembership) {
        if self.membership.try_send(message).is_err() {
            self.metrics.membership_queue_full();
        }
    }

    /// Waits when too many full states are on their way: the peer's stream is then not read.
    async fn members(&self, from: NodeId, members: Vec<SwimMember>, reply: bool) {
        let place = Arc::clone(&self.states).acquire_owned().await.ok();
        let _ = self.membership.send(ToMembership::Members { from, members, reply, place }).await;
    }

    /// Waits when the catalog is behind: the peer's stream is then not read.
    async fn catalog(&self, message: ToCatalog) {
        let _ = self.catalog.send(message).await;
    }

    async fn dial_back(&self, node: NodeId, purpose: Purpose) {
        let _ = self.reports.send(Report::DialBack { node, purpose }).await;
    }
}

/// The links as they are; written by the owner only.
type Links = Arc<ArcSwap<BTreeMap<NodeId, Arc<Link>>>>;

/// The other parts' way to the transport. Clones are handles.
#[derive(Clone, Debug)]
pub struct Peers {
    links: Links,
    /// The second circuits to those that relays lead to.
    seconds: Links,
    data: data::Newest,
    lanes: lane::OpenLanes,
    commands: mpsc::Sender<Command>,
    connected: watch::Receiver<usize>,
    twin: watch::Receiver<Option<SocketAddr>>,
    seen: watch::Receiver<Vec<SocketAddr>>,
    relays: watch::Receiver<Vec<NodeId>>,
    arrivals: mpsc::Sender<lane::Arrival>,
    pings: ping::Pings,
    metrics: Arc<Metrics>,
}

/// Whom a relay leads here, as it says.
#[derive(Clone, Copy, Debug)]
pub enum Led {
    /// A member.
    Member(NodeId),
    /// Somebody at this address who is none, and wants to join.
    Stranger(IpAddr),
}

impl Peers {
    /// Queues a frame for a connected node; `false` when it is not connected or does not read. What asks whether it lives
    /// goes as packets do.
    pub fn send_frame(&self, to: NodeId, frame: &Frame) -> bool {
        let beside =
            link::is_swim(frame) && self.seconds.load().get(&to).is_some_and(|link| link.send_frame(frame));
        self.links.load().get(&to).is_some_and(|link| link.send_frame(frame)) || beside
    }

    /// Sends a SWIM packet to a connected node; `false` when it is not connected. Where relays lead to it, through two of them:
    /// SWIM takes the first copy.
    pub fn send_packet(&self, to: NodeId, packet: Vec<u8>) -> bool {
        let beside = self.seconds.load().get(&to).is_some_and(|link| link.send_packet(packet.clone()));
        self.links.load().get(&to).is_some_and(|link| link.send_packet(packet)) || beside
    }

    /// Tells where a node may be dialled.
    pub fn learn(&self, node: NodeId, addresses: Vec<SocketAddr>, source: Source) {
        self.command(Command::Learn { node, addresses, source });
    }

    /// Tells where only lanes reach a node.
    pub fn learn_lanes(&self, node: NodeId, lanes: Vec<LaneAddress>) {
        self.command(Command::Lanes { node, lanes });
    }

    /// Tells which relays have a connection with a node.
    pub fn learn_relays(&self, node: NodeId, relays: Vec<NodeId>) {
        self.command(Command::Relays { node, relays });
    }

    /// Tells that the catalog has dropped the card of a node.
    pub fn forget(&self, node: NodeId) {
        self.command(Command::Forget(node));
    }

    /// Tells that membership holds the node for up.
    pub fn up(&self, node: NodeId) {
        self.command(Command::Up(node));
    }

    /// Tells that membership holds the node for down or gone: its connections are closed, so that flows fail
    /// at once and not by timeout. One that `has_left` has said so.
    pub fn gone(&self, node: NodeId, has_left: bool) {
        self.command(Command::Gone { node, has_left });
    }

    /// Tells that the catalog knows a certificate of the node that lasts until then, seconds since the Unix epoch: its
    /// connections need not end with the one they were made with.
    pub fn certified(&self, node: NodeId, until: u64) {
        self.command(Command::Certified { node, until });
    }

    /// Closes the connection to a peer that sends what no honest node has.
    pub fn refuse(&self, node: NodeId) {
        self.command(Command::Refuse(node));
    }

    /// Tells all peers new statements, and judges all connections again. Waits when the transport is behind: this is
    /// no hint that may be lost.
    pub async fn statements(&self, new: Vec<Vec<u8>>) {
        let _ = self.commands.send(Command::Statements(new)).await;
    }

    /// Asks for a connection to a member at once.
    pub fn reach(&self, node: NodeId) {
        self.command(Command::Reach(node));
    }

    /// Returns how many nodes are connected.
    pub fn connected(&self) -> usize {
        *self.connected.borrow()
    }

    /// Returns where two peers or more see this node, as it changes.
    pub fn seen(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.seen.clone()
    }

    /// Returns the relays that this node keeps a connection to, because others cannot dial it, as they change.
    pub fn relays(&self) -> watch::Receiver<Vec<NodeId>> {
        self.relays.clone()
    }

    /// Returns whether this node dialled its control connection to a node; `None` when there is none.
    pub fn has_dialled(&self, node: NodeId) -> Option<bool> {
        self.links.load().get(&node).map(|link| link.dialled)
    }

    /// Returns the path of each connected node, with the sizes of its data connection where there is one: control
    /// connections look for none.
    pub fn paths(&self) -> BTreeMap<NodeId, Path> {
        let (data, seconds) = (self.data.load(), self.seconds.load());
        let path = |(node, link): (&NodeId, &Arc<Link>)| {
            let mut path = Path::of(link, seconds.get(node));
            if let Some(data) = data.get(node).filter(|data| data.connection.close_reason().is_none()) {
                path.sizes = Sizes::of(&data.connection);
            }
            (*node, path)
        };
        self.links.load().iter().map(path).collect()
    }

    /// Resolves when another process with this node's identity is found that started earlier, with its address:
    /// this process must serve no more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn runs_twice(&self) -> SocketAddr {
        let mut twin = self.twin.clone();
        match twin.wait_for(Option::is_some).await.ok().and_then(|at| *at) {
            Some(at) => at,
            None => std::future::pending().await,
        }
    }

    /// Opens a stream on a data connection to the node; the connection is made when there is none.
    ///
    /// # Errors
    /// Nothing could be opened within 3 s; try another instance.
    ///
    /// # Cancel safety
    /// Cancel safe: a stream that was opened meanwhile is reset.
    pub async fn open_flow(&self, node: NodeId) -> Result<FlowStream, OpenError> {
        let open = async {
            // Mostly there is a connection, and the owner need not be asked.
            let newest = self.data.load().get(&node).cloned();
            if let Some(data) = newest.filter(|data| data.connection.close_reason().is_none()) {
                return data.open().await;
            }
            // Lanes beside a connection over UDP are for those who asked for them.
            if self.is_lane(node) != Some(false)
                && let Some(flow) = lane::open_on(&self.lanes, node)
            {
                return Ok(flow);
            }
            let (caller, opened) = oneshot::channel();
            let command = Command::OpenData { node, caller };
            self.commands.send(command).await.map_err(|_| OpenError::Stopping)?;
            opened.await.map_err(|_| OpenError::Unreachable)?.open().await
        };
        tokio::time::timeout(OPEN_WITHIN, open).await.unwrap_or(Err(OpenError::Unreachable))
    }

    /// Opens a stream to a node on a lane, also where UDP works. Where only the node can dial this one, and UDP works, there is none.
    ///
    /// # Errors
    /// Nothing could be opened within 3 s; try another instance.
    ///
    /// # Cancel safety
    /// Cancel safe: a stream that was opened meanwhile is reset.
    pub async fn open_lane(&self, node: NodeId) -> Result<FlowStream, OpenError> {
        let open = async {
            if let Some(flow) = lane::open_on(&self.lanes, node) {
                return Ok(flow);
            }
            let (caller, opened) = oneshot::channel();
            let command = Command::OpenLane { node, caller };
            self.commands.send(command).await.map_err(|_| OpenError::Stopping)?;
            opened.await.map_err(|_| OpenError::Unreachable)?.open().await
        };
        tokio::time::timeout(OPEN_WITHIN, open).await.unwrap_or(Err(OpenError::Unreachable))
    }

    /// Opens a stream on a data connection to a node that has a control connection with this one, not through a relay. Nobody
    /// is looked for: what a relay does for others.
    ///
    /// # Errors
    /// There is no such connection, or nothing could be opened within 3 s.
    ///
    /// # Cancel safety
    /// Cancel safe: a stream that was opened meanwhile is reset.
    pub async fn open_kept(&self, node: NodeId) -> Result<FlowStream, OpenError> {
        if self.is_kept(node) { self.open_flow(node).await } else { Err(OpenError::Unreachable) }
    }

    /// Returns whether the control connection with a node is a lane, also one in a circuit; `None` when there is none.
    pub(crate) fn is_lane(&self, node: NodeId) -> Option<bool> {
        self.links.load().get(&node).map(|link| link.connection.is_lane())
    }

    /// Returns whether there is a control connection with a node that no relay leads.
    pub(crate) fn is_kept(&self, node: NodeId) -> bool {
        self.links.load().get(&node).is_some_and(|link| link.connection.via().is_none())
    }

    /// Opens a stream to a node through a relay.
    ///
    /// # Errors
    /// The relay cannot be reached without another one, has not the role, or does not lead there, in its words.
    ///
    /// # Cancel safety
    /// Cancel safe: a stream that was opened meanwhile is reset.
    pub(crate) async fn open_circuit(&self, relay: NodeId, node: NodeId) -> Result<FlowStream, Outcome> {
        let broken = |error: &dyn std::fmt::Display| Outcome::Broken(format!("the relay {relay}: {error}"));
        let opened = self.open_flow(relay).await;
        let mut stream = opened.map_err(|error| Outcome::NoRoute(format!("the relay {relay}: {error}")))?;
        if let Some(other) = stream.send.via() {
            return Err(Outcome::NoRoute(format!("the relay {relay} is reached through the relay {other}")));
        }
        if !stream.peer.claims.relay {
            return Err(Outcome::NoRoute(format!("node {relay} has not the role of a relay")));
        }
        stream.send.write_all(&CircuitOpen::To(node).encode()).await.map_err(|error| broken(&error))?;
        let mut status = [0];
        stream.recv.read_exact(&mut status).await.map_err(|error| broken(&error))?;
        let [status] = status;
        match CircuitStatus::try_from(status) {
            Ok(CircuitStatus::Open) => Ok(stream),
            Ok(status) => Err(Outcome::Said(format!("no circuit through {relay}: {status:?}"))),
            Err(error) => Err(broken(&error)),
        }
    }

    /// Takes a stream that a relay has led here. Without room it is reset and counted.
    pub(crate) fn take_circuit(&self, stream: FlowStream, from: Led) {
        let (remote, carried) = match from {
            Led::Member(opener) => (stream.remote, lane::Carried::Circuit(Box::new(stream), opener)),
            Led::Stranger(ip) => (SocketAddr::new(ip, 0), lane::Carried::Stranger(Box::new(stream))),
        };
        if let Err(error) = self.arrivals.try_send(lane::Arrival { carried, remote })
            && let lane::Carried::Circuit(mut stream, _) | lane::Carried::Stranger(mut stream) =
                error.into_inner().carried
        {
            tracing::debug!(relay = %stream.peer.name, ?from, "a circuit that came in finds no room");
            self.metrics.handshake_answered("no_room");
            let _ = stream.send.reset(quinn::VarInt::from_u32(1));
        }
    }

    fn command(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            tracing::warn!("the transport is behind; a hint about a node is lost");
        }
    }
}

/// What joiners bind their requests to their TLS session with.
const BINDING_LABEL: &[u8] = b"EXPORTER-gossamer-join";

/// The protocols whose connections are taken.
const fn member_alpn() -> &'static [u8] {
    frame::ALPN
}
