//! Data connections: one per peer on demand, carrying flows, closed when unused.
//!
//! Owns: the pool and who waits for it. Must not know: what flows carry.
//! Driven by: `transport`. The side that can dial opens; `DialBack` asks it to (design section 9).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use gossamer_core::trust::Leaf;
use gossamer_wire::NodeId;

use super::link::CLOSE_IDLE;

/// How long an unused data connection is kept warm (design section 9).
const KEEP_UNUSED: Duration = Duration::from_secs(60);
/// Our own keep-alive: the idle timeout is 3 s.
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
    /// Keeps the connection alive; hold it until the flow has ended.
    pub lease: FlowLease,
}

/// Keeps a data connection alive while the flow lives.
#[derive(Clone, Debug, Default)]
pub struct FlowLease(Arc<()>);

impl FlowLease {
    /// Returns whether any flow holds a clone of this lease.
    fn in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
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
    lease: FlowLease,
}

impl DataConnection {
    pub(super) fn new(connection: Connection, peer: Arc<Leaf>) -> Self {
        Self { connection, peer, lease: FlowLease::default() }
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`OpenError::Lost`]; the pool notices by itself.
    pub(super) async fn open(&self) -> Result<FlowStream, OpenError> {
        let lease = self.lease.clone();
        let (send, recv) = self.connection.open_bi().await.map_err(|_| OpenError::Lost)?;
        Ok(self.flow(send, recv, lease))
    }

    /// Hands on inbound flows and keeps the connection alive, until it ends or nothing uses it.
    pub(super) async fn run(self, inbound: mpsc::Sender<FlowStream>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        let mut unused = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                stream = self.connection.accept_bi() => {
                    let Ok((send, recv)) = stream else { return };
                    let flow = self.flow(send, recv, self.lease.clone());
                    if inbound.send(flow).await.is_err() {
                        return;
                    }
                }
                _ = tick.tick() => {
                    unused = if self.lease.in_use() { Duration::ZERO } else { unused + TICK };
                    if unused > KEEP_UNUSED {
                        return self.connection.close(CLOSE_IDLE.into(), b"unused");
                    }
                    let _ = self.connection.send_datagram(bytes::Bytes::new());
                }
            }
        }
    }

    fn flow(&self, send: SendStream, recv: RecvStream, lease: FlowLease) -> FlowStream {
        let mut remote = self.connection.remote_address();
        remote.set_ip(remote.ip().to_canonical());
        FlowStream { peer: Arc::clone(&self.peer), remote, send, recv, lease }
    }
}

/// Who gets the connection once it is there.
pub(super) type Waiting = oneshot::Sender<DataConnection>;

/// The data connections of this node, and who waits for one.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// Mostly one per node; two when both ends dialled. The newest is used for new flows.
    live: BTreeMap<NodeId, Vec<DataConnection>>,
    waiting: BTreeMap<NodeId, Vec<Waiting>>,
}

/// Flows waiting for one connection; more are refused at once.
const MAX_WAITING: usize = 1_024;

impl Pool {
    /// Gives a live connection to the caller, or lets it wait. Returns whether the node must be dialled.
    pub(super) fn request(&mut self, node: NodeId, caller: Waiting) -> bool {
        let live = self.live.get(&node).into_iter().flatten().rev();
        if let Some(data) = live.into_iter().find(|data| data.connection.close_reason().is_none()) {
            let _ = caller.send(data.clone());
            return false;
        }
        let waiting = self.waiting.entry(node).or_default();
        waiting.retain(|earlier| !earlier.is_closed());
        if waiting.len() < MAX_WAITING {
            waiting.push(caller);
        }
        waiting.len() == 1
    }

    /// Takes a new connection into use and serves who waits for it.
    pub(super) fn insert(&mut self, data: DataConnection) {
        let node = data.peer.node;
        for caller in self.waiting.remove(&node).unwrap_or_default() {
            let _ = caller.send(data.clone());
        }
        self.live.entry(node).or_default().push(data);
    }

    /// Forgets a connection that has ended.
    pub(super) fn ended(&mut self, node: NodeId, stable_id: usize) {
        if let Some(live) = self.live.get_mut(&node) {
            live.retain(|data| data.connection.stable_id() != stable_id);
            if live.is_empty() {
                self.live.remove(&node);
            }
        }
    }

    /// Tells who waits for the node that no connection came about; they may ask again.
    pub(super) fn failed(&mut self, node: NodeId) {
        self.waiting.remove(&node);
    }

    /// Removes and returns the connections to a node that is down.
    pub(super) fn remove(&mut self, node: NodeId) -> Vec<DataConnection> {
        self.waiting.remove(&node);
        self.live.remove(&node).unwrap_or_default()
    }
}
