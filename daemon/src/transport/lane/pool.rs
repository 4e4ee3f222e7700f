//! The lanes for flows: which are there, and who waits for one.
//!
//! Owns: at most [`MAX_LANES`] of a peer. Must not know: what flows carry, when to dial. Driven by: the owner of all
//! connections; `Peers` takes idle ones without asking it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use gossamer_core::trust::Leaf;
use gossamer_wire::NodeId;

use super::Lane;
use crate::transport::carrier::Connection;
use crate::transport::data::{FlowLease, FlowStream, Opened, Waiting};
use crate::transport::{Datagrams, Demand};

/// Lanes of one peer: each pins what its flow has unread, so that all stay below what one peer may pin.
pub(in crate::transport) const MAX_LANES: usize = 256;
/// Dials to one peer at once.
const MAX_DIALS: usize = 8;
/// Flows waiting for lanes of one peer; more are refused at once.
const MAX_WAITING: usize = 1_024;

/// A lane that has greeted for flows. The next one may begin when the greeting is over at both ends.
#[derive(Clone, Debug)]
pub(in crate::transport) struct FlowLane {
    pub(in crate::transport) lane: Lane,
    pub(in crate::transport) peer: Arc<Leaf>,
}

impl FlowLane {
    /// Opens a flow if none is under way.
    fn try_open(&self) -> Option<FlowStream> {
        self.lane.try_open().map(|(send, recv)| self.flow(send.into(), recv.into()))
    }

    fn flow(&self, send: crate::transport::SendStream, recv: crate::transport::RecvStream) -> FlowStream {
        FlowStream {
            peer: Arc::clone(&self.peer),
            remote: self.lane.remote_address(),
            send,
            recv,
            datagrams: Datagrams::new(Connection::Lane(self.lane.clone())),
            demand: Demand::default(),
            credit: Box::default(),
            lease: FlowLease::default(),
        }
    }

    /// Hands on the peer's flows, until the lane ends.
    pub(in crate::transport) async fn run(self, inbound: mpsc::Sender<FlowStream>) {
        if self.lane.opens_here() {
            self.lane.closed().await;
            return;
        }
        while let Ok((send, recv)) = self.lane.accept().await {
            if inbound.send(self.flow(send.into(), recv.into())).await.is_err() {
                return;
            }
        }
    }
}

/// The lanes that this node opens flows on, by peer.
pub(in crate::transport) type OpenLanes = Arc<ArcSwap<BTreeMap<NodeId, Vec<FlowLane>>>>;

/// Returns a flow on an idle lane.
pub(in crate::transport) fn open_on(lanes: &OpenLanes, node: NodeId) -> Option<FlowStream> {
    lanes.load().get(&node)?.iter().find_map(FlowLane::try_open)
}

/// All lanes for flows.
#[derive(Debug, Default)]
pub(in crate::transport) struct Lanes {
    of: BTreeMap<NodeId, OfPeer>,
    open: OpenLanes,
}

/// Who waits for a lane.
#[derive(Debug)]
pub(in crate::transport) struct Wait {
    pub(in crate::transport) caller: Waiting,
    /// Whether nothing else will do.
    pub(in crate::transport) only_lane: bool,
}

#[derive(Debug, Default)]
struct OfPeer {
    lanes: Vec<FlowLane>,
    waiting: VecDeque<Wait>,
    dials: usize,
    /// Of these, who wait for the peer, which was asked to dial.
    asked: VecDeque<oneshot::Sender<()>>,
}

impl OfPeer {
    /// Returns whether a dial is to be made for who waits.
    fn wants_dial(&mut self) -> bool {
        self.waiting.retain(|wait| !wait.caller.is_closed());
        let wants = self.dials < self.waiting.len().min(MAX_DIALS) && self.lanes.len() < MAX_LANES;
        self.dials += usize::from(wants);
        wants
    }
}

impl Lanes {
    /// Returns read access to the lanes that this node opens flows on.
    pub(in crate::transport) fn open(&self) -> OpenLanes {
        Arc::clone(&self.open)
    }

    /// Gives a flow to the caller, or lets it wait. Returns whether a lane must be dialled.
    pub(in crate::transport) fn request(&mut self, node: NodeId, wait: Wait) -> bool {
        let of = self.of.entry(node).or_default();
        if let Some(flow) = of.lanes.iter().find_map(FlowLane::try_open) {
            let _ = wait.caller.send(Opened::Lane(flow));
            return false;
        }
        if of.waiting.len() < MAX_WAITING {
            of.waiting.push_back(wait);
        }
        of.wants_dial()
    }

    /// Takes a lane in and serves who waits longest. Returns whether it may stay, and whether another one must be dialled.
    pub(in crate::transport) fn insert(&mut self, lane: FlowLane) -> (bool, bool) {
        let node = lane.peer.node;
        let of = self.of.entry(node).or_default();
        of.lanes.retain(|lane| lane.lane.close_reason().is_none());
        if of.lanes.len() >= MAX_LANES {
            return (false, false);
        }
        while !of.waiting.is_empty()
            && let Some(flow) = lane.try_open()
            && let Some(wait) = of.waiting.pop_front()
        {
            // Who has gone leaves the lane as it was.
            let _ = wait.caller.send(Opened::Lane(flow));
        }
        of.lanes.push(lane);
        let wants_dial = of.wants_dial();
        self.publish(node);
        (true, wants_dial)
    }

    /// A dial of this node has ended, well or not. Returns whether it was one for a lane.
    pub(in crate::transport) fn dialled(&mut self, node: NodeId) -> bool {
        let Some(of) = self.of.get_mut(&node).filter(|of| of.dials > 0) else { return false };
        of.dials -= 1;
        true
    }

    /// The peer was asked to dial in the place of this node. Resolves when it has done so: the dial need not go on.
    pub(in crate::transport) fn asked(&mut self, node: NodeId) -> oneshot::Receiver<()> {
        let (sender, answered) = oneshot::channel();
        let of = self.of.entry(node).or_default();
        of.asked.retain(|asked| !asked.is_closed());
        of.asked.push_back(sender);
        answered
    }

    /// The peer has dialled. Returns whether it was asked for a lane.
    pub(in crate::transport) fn answered(&mut self, node: NodeId) -> bool {
        let Some(of) = self.of.get_mut(&node) else { return false };
        of.asked.retain(|asked| !asked.is_closed());
        let Some(asked) = of.asked.pop_front() else { return false };
        let _ = asked.send(());
        of.dials = of.dials.saturating_sub(1);
        true
    }

    /// Tells who waits for the node that no lane will come about.
    pub(in crate::transport) fn give_up(&mut self, node: NodeId) {
        if let Some(of) = self.of.get_mut(&node) {
            of.waiting.clear();
        }
    }

    /// Returns who waits and may take another way to the node.
    pub(in crate::transport) fn take_waiting(&mut self, node: NodeId) -> Vec<Waiting> {
        let Some(of) = self.of.get_mut(&node) else { return Vec::new() };
        let (stays, goes): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut of.waiting).into_iter().partition(|wait| wait.only_lane);
        of.waiting = stays;
        goes.into_iter().map(|wait| wait.caller).collect()
    }

    /// Opens no further flows on the lanes of a node: UDP works. Those that live go on.
    pub(in crate::transport) fn retire(&self, node: NodeId) {
        self.of.get(&node).into_iter().flat_map(|of| &of.lanes).for_each(|lane| lane.lane.retire());
    }

    /// The same for those through relays: TCP works.
    pub(in crate::transport) fn retire_circuits(&self, node: NodeId) {
        let lanes = self.of.get(&node).into_iter().flat_map(|of| &of.lanes);
        lanes.filter(|lane| lane.lane.via().is_some()).for_each(|lane| lane.lane.retire());
    }

    /// Forgets a lane that has ended.
    pub(in crate::transport) fn ended(&mut self, node: NodeId, stable_id: usize) {
        if let Some(of) = self.of.get_mut(&node) {
            of.lanes.retain(|lane| lane.lane.stable_id() != stable_id);
            if of.lanes.is_empty() && of.waiting.is_empty() && of.dials == 0 {
                self.of.remove(&node);
            }
            self.publish(node);
        }
    }

    /// Returns all lanes.
    pub(in crate::transport) fn connections(&self) -> impl Iterator<Item = Connection> {
        self.of.values().flat_map(|of| &of.lanes).map(|lane| Connection::Lane(lane.lane.clone()))
    }

    /// Returns the lanes of a node that is down; nobody waits for it any more.
    pub(in crate::transport) fn remove(&mut self, node: NodeId) -> Vec<Connection> {
        let lanes = self.of.remove(&node).map(|of| of.lanes).unwrap_or_default();
        self.publish(node);
        lanes.into_iter().map(|lane| Connection::Lane(lane.lane)).collect()
    }

    fn publish(&self, node: NodeId) {
        let is_of_use = |lane: &&FlowLane| lane.lane.opens_here();
        let lanes: Vec<_> =
            self.of.get(&node).into_iter().flat_map(|of| &of.lanes).filter(is_of_use).cloned().collect();
        let mut all = BTreeMap::clone(&self.open.load());
        match lanes.is_empty() {
            true => all.remove(&node),
            false => all.insert(node, lanes),
        };
        self.open.store(Arc::new(all));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);

    #[test]
    fn the_lane_that_a_peer_was_asked_for_ends_the_dial_in_its_place() {
        let mut lanes = Lanes::default();
        let (caller, gone) = oneshot::channel();
        assert!(lanes.request(NODE, Wait { caller, only_lane: false }));
        let mut answered = lanes.asked(NODE);
        drop(gone);
        let (caller, _second) = oneshot::channel();
        assert!(!lanes.request(NODE, Wait { caller, only_lane: false }), "the first dial serves it");
        assert!(answered.try_recv().is_err(), "nothing has come");
        assert!(lanes.answered(NODE));
        assert_eq!(answered.try_recv(), Ok(()));
        assert!(!lanes.answered(NODE) && !lanes.dialled(NODE), "nobody wanted it");
        let (caller, _third) = oneshot::channel();
        assert!(lanes.request(NODE, Wait { caller, only_lane: false }), "no dial is under way");
    }
}
