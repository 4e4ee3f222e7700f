//! Data connections: one per peer on demand, carrying flows, closed when unused.
//!
//! Owns: the pool and who waits for it. Must not know: what flows carry.
//! Driven by: `transport`. The side that can dial opens; `DialBack` asks it to (design section 9).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use quinn::Connection;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use gossamer_core::trust::Leaf;
use gossamer_wire::NodeId;

use super::canary::Canary;
use super::carrier::{RecvStream, SendStream};
use super::congestion::Demand;
use super::credit::{Budget, Credits, FlowCredit};
use super::datagrams::Datagrams;
use super::link::{CLOSE_BAD_BYTES, CLOSE_IDLE};
use super::silence;
use crate::clock;

/// How long an unused data connection is kept warm (design section 9).
const KEEP_UNUSED: Duration = Duration::from_secs(60);
/// Our own keep-alive: 3 s of silence end the connection.
const TICK: Duration = Duration::from_secs(1);

/// One flow's stream, at either end.
#[derive(Debug)]
pub struct FlowStream {
    /// The verified node at the other end.
    pub peer: Arc<Leaf>,
    /// Where it is.
    pub remote: SocketAddr,
    /// Towards the peer.
    pub send: SendStream,
    /// From the peer.
    pub recv: RecvStream,
    /// The datagrams of its connection, for a UDP flow.
    pub datagrams: Datagrams,
    /// How many flows of its connection wait for room.
    pub demand: Demand,
    /// How far it may run ahead of its readers.
    pub credit: Box<FlowCredit>,
    /// Keeps the connection alive; hold it until the flow has ended.
    pub lease: FlowLease,
}

impl FlowStream {
    /// Whether it has a lane of its own.
    pub(crate) const fn is_lane(&self) -> bool {
        matches!(self.send, SendStream::Lane(_))
    }
}

/// Keeps a data connection alive while the flow lives.
#[derive(Debug, Default)]
pub struct FlowLease(Arc<AtomicUsize>);

impl FlowLease {
    fn new(flows: &Arc<AtomicUsize>) -> Self {
        flows.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(flows))
    }
}

impl Drop for FlowLease {
    fn drop(&mut self) {
        // A lease of its own, as tests make them, counts nothing.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |flows| flows.checked_sub(1));
    }
}

/// Why no stream to a node could be opened. Try another instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// No data connection came about in time.
    #[error("the node cannot be reached")]
    Unreachable,
    /// The connection broke while the stream was opened.
    #[error("the connection to the node broke")]
    Lost,
    /// This daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
}

/// An established data connection.
#[derive(Clone, Debug)]
pub(super) struct DataConnection {
    pub(super) connection: Connection,
    pub(super) peer: Arc<Leaf>,
    datagrams: Datagrams,
    demand: Demand,
    credits: Credits,
    /// Flows that live on it.
    flows: Arc<AtomicUsize>,
}

impl DataConnection {
    pub(super) fn new(connection: Connection, peer: Arc<Leaf>, budget: Budget) -> Self {
        let datagrams = Datagrams::new(connection.clone());
        let credits = Credits::new(connection.clone(), budget);
        Self { connection, peer, datagrams, demand: Demand::default(), credits, flows: Arc::default() }
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`OpenError::Lost`]; the pool notices by itself.
    pub(super) async fn open(&self) -> Result<FlowStream, OpenError> {
        let lease = FlowLease::new(&self.flows);
        let (send, recv) = self.connection.open_bi().await.map_err(|_| OpenError::Lost)?;
        Ok(self.flow(send, recv, lease))
    }

    /// Hands on inbound flows and datagrams and keeps the connection alive, until it ends or nothing uses it. `stray` is
    /// called for each datagram that belongs to no flow; `canary` watches the peer, where addresses are real.
    pub(super) async fn run(
        self,
        inbound: mpsc::Sender<FlowStream>,
        stop: CancellationToken,
        canary: Option<Canary>,
        stray: impl Fn() + Send,
    ) {
        let watch = async {
            match canary {
                Some(canary) => canary.run(&self.connection, &self.flows).await,
                None => std::future::pending().await,
            }
        };
        // Side by side: datagrams do not wait while the relay is behind with new flows.
        tokio::select! {
            () = self.streams(inbound, stop) => {}
            () = self.datagrams.run(stray) => {}
            () = watch => {}
            () = silence::watch(&self.connection) => {}
            // It ends with the connection, unless the peer breaks the rules.
            () = self.credits.run() => self.connection.close(CLOSE_BAD_BYTES.into(), b"credit refused"),
        }
    }

    async fn streams(&self, inbound: mpsc::Sender<FlowStream>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        let mut unused = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                stream = self.connection.accept_bi() => {
                    let Ok((send, recv)) = stream else { return };
                    let flow = self.flow(send, recv, FlowLease::new(&self.flows));
                    if inbound.send(flow).await.is_err() {
                        return;
                    }
                }
                _ = tick.tick() => {
                    let in_use = self.flows.load(Ordering::Relaxed) > 0;
                    unused = if in_use { Duration::ZERO } else { unused + TICK };
                    if unused > KEEP_UNUSED {
                        return self.connection.close(CLOSE_IDLE.into(), b"unused");
                    }
                    let _ = self.connection.send_datagram(bytes::Bytes::new());
                    self.demand.show_to(&self.connection);
                    self.credits.handle_tick(clock::now().mono);
                }
            }
        }
    }

    fn flow(&self, send: quinn::SendStream, recv: quinn::RecvStream, lease: FlowLease) -> FlowStream {
        let mut remote = self.connection.remote_address();
        remote.set_ip(remote.ip().to_canonical());
        let (datagrams, demand) = (self.datagrams.clone(), self.demand.clone());
        let credit = Box::new(self.credits.flow(send.id()));
        let (send, recv) = (send.into(), recv.into());
        FlowStream { peer: Arc::clone(&self.peer), remote, send, recv, datagrams, demand, credit, lease }
    }
}

/// The newest connection to each node, for flows that need not wait; written by the pool only.
pub(super) type Newest = Arc<ArcSwap<BTreeMap<NodeId, DataConnection>>>;

/// What a caller gets that wants a flow.
#[derive(Debug)]
pub(super) enum Opened {
    /// A connection to open it on.
    Data(DataConnection),
    /// The flow, on a lane of its own.
    Lane(FlowStream),
}

impl Opened {
    /// Opens the flow.
    pub(super) async fn open(self) -> Result<FlowStream, OpenError> {
        match self {
            Self::Data(data) => data.open().await,
            Self::Lane(flow) => Ok(flow),
        }
    }
}

/// Who gets it once it is there.
pub(super) type Waiting = oneshot::Sender<Opened>;

/// The data connections of this node, and who waits for one.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// Mostly one per node; two when both ends dialled. The newest is used for new flows.
    live: BTreeMap<NodeId, Vec<DataConnection>>,
    newest: Newest,
    waiting: BTreeMap<NodeId, Vec<Waiting>>,
    /// Nodes that are being dialled, or were asked to dial.
    dialling: BTreeSet<NodeId>,
}

/// Data connections of one peer: both ends may have dialled at once, and each may have replaced its own.
pub(super) const MAX_LIVE: usize = 4;

/// Flows waiting for one connection; more are refused at once.
const MAX_WAITING: usize = 1_024;

impl Pool {
    /// Gives a live connection to the caller, or lets it wait. Returns whether the node must be dialled.
    pub(super) fn request(&mut self, node: NodeId, caller: Waiting) -> bool {
        let live = self.live.get(&node).into_iter().flatten().rev();
        if let Some(data) = live.into_iter().find(|data| data.connection.close_reason().is_none()) {
            let _ = caller.send(Opened::Data(data.clone()));
            return false;
        }
        let waiting = self.waiting.entry(node).or_default();
        waiting.retain(|earlier| !earlier.is_closed());
        if waiting.len() < MAX_WAITING {
            waiting.push(caller);
        }
        self.dialling.insert(node)
    }

    /// Whether the node may be dialled because it asks for it: one dial at a time, and none beside a live
    /// connection, so that a peer cannot make this node dial at its pace.
    pub(super) fn request_back(&mut self, node: NodeId) -> bool {
        let has_live = self.live.get(&node).is_some_and(|live| !live.is_empty());
        !has_live && self.dialling.insert(node)
    }

    /// A dial that the peer asked for has ended as a lane, or not at all.
    pub(super) fn dial_back_ended(&mut self, node: NodeId) {
        self.dialling.remove(&node);
    }

    /// Takes a new connection into use and serves who waits for it. Returns `false` when the peer has too many.
    pub(super) fn insert(&mut self, data: DataConnection) -> bool {
        let node = data.peer.node;
        self.dialling.remove(&node);
        if self.live.get(&node).is_some_and(|live| live.len() >= MAX_LIVE) {
            return false;
        }
        for caller in self.waiting.remove(&node).unwrap_or_default() {
            let _ = caller.send(Opened::Data(data.clone()));
        }
        self.live.entry(node).or_default().push(data);
        self.publish();
        true
    }

    /// Returns what the connections of a node share.
    pub(super) fn budget(&self, node: NodeId) -> Budget {
        let live = self.live.get(&node).and_then(|live| live.last());
        live.map_or_else(Budget::default, |data| data.credits.budget())
    }

    /// Returns read access to the newest connections.
    pub(super) fn newest(&self) -> Newest {
        Arc::clone(&self.newest)
    }

    fn publish(&self) {
        let newest = |(node, live): (&NodeId, &Vec<DataConnection>)| Some((*node, live.last()?.clone()));
        self.newest.store(Arc::new(self.live.iter().filter_map(newest).collect()));
    }

    /// Forgets a connection that has ended.
    pub(super) fn ended(&mut self, node: NodeId, stable_id: usize) {
        if let Some(live) = self.live.get_mut(&node) {
            live.retain(|data| data.connection.stable_id() != stable_id);
            if live.is_empty() {
                self.live.remove(&node);
            }
            self.publish();
        }
    }

    /// A dial came to nothing. Returns whether somebody still waits, so that it must be tried again.
    pub(super) fn dial_failed(&mut self, node: NodeId) -> bool {
        self.dialling.remove(&node);
        let Some(waiting) = self.waiting.get_mut(&node) else { return false };
        waiting.retain(|caller| !caller.is_closed());
        if waiting.is_empty() {
            self.waiting.remove(&node);
            return false;
        }
        self.dialling.insert(node)
    }

    /// Whether somebody waits for a connection to the node.
    pub(super) fn is_wanted(&self, node: NodeId) -> bool {
        self.waiting.get(&node).is_some_and(|waiting| waiting.iter().any(|caller| !caller.is_closed()))
    }

    /// Returns who waits, for another way to the node.
    pub(super) fn take_waiting(&mut self, node: NodeId) -> Vec<Waiting> {
        self.dialling.remove(&node);
        self.waiting.remove(&node).unwrap_or_default()
    }

    /// Tells who waits for the node that no connection will come about.
    pub(super) fn give_up(&mut self, node: NodeId) {
        self.dialling.remove(&node);
        self.waiting.remove(&node);
    }

    /// Returns all live connections.
    pub(super) fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.live.values().flatten().map(|data| &data.connection)
    }

    /// Removes and returns the connections to a node that is down.
    pub(super) fn remove(&mut self, node: NodeId) -> Vec<DataConnection> {
        self.give_up(node);
        let removed = self.live.remove(&node).unwrap_or_default();
        self.publish();
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 16]);

    fn waiting(pool: &mut Pool) -> (bool, oneshot::Receiver<Opened>) {
        let (caller, connection) = oneshot::channel();
        (pool.request(PEER, caller), connection)
    }

    #[test]
    fn flows_are_counted_while_they_live() {
        let flows = Arc::default();
        let (first, second) = (FlowLease::new(&flows), FlowLease::new(&flows));
        drop(first);
        assert_eq!(flows.load(Ordering::Relaxed), 1);
        drop(second);
        assert_eq!(flows.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_node_is_dialled_once_for_all_who_wait() {
        let mut pool = Pool::default();
        let (dial, _first) = waiting(&mut pool);
        let (again, _second) = waiting(&mut pool);
        assert!(dial && !again);
    }

    #[test]
    fn a_failed_dial_is_repeated_while_somebody_waits() {
        let mut pool = Pool::default();
        let (_, first) = waiting(&mut pool);
        assert!(pool.dial_failed(PEER));
        drop(first);
        assert!(!pool.dial_failed(PEER));
        let (dial, _later) = waiting(&mut pool);
        assert!(dial, "a later flow starts anew");
    }

    #[test]
    fn a_peer_can_ask_for_one_dial_at_a_time() {
        let mut pool = Pool::default();
        assert!(pool.request_back(PEER));
        assert!(!pool.request_back(PEER));
        pool.give_up(PEER);
        assert!(pool.request_back(PEER));
    }

    #[tokio::test]
    async fn who_waits_hears_when_it_is_hopeless() {
        let mut pool = Pool::default();
        let (_, connection) = waiting(&mut pool);
        pool.give_up(PEER);
        assert!(connection.await.is_err());
    }
}
