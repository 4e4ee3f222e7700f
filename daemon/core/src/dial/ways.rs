//! By which way nodes are reached: UDP, or a lane over TCP where UDP is closed.
//!
//! Owns: which nodes were reached by lane last, and when UDP is tried again. Must not know: sockets, addresses. Driven by: the
//! owner of all connections.
//!
//! UDP has a start of [`UDP_ALONE`]. Where a lane has won, lanes have none to catch up with until UDP works: closed UDP is a
//! matter of the network, and stays so for long. Whether it has ended is found out beside the lane, which nobody waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

/// How long UDP may go unanswered before lanes are tried beside it (design section 10).
pub const UDP_ALONE: Duration = Duration::from_secs(2);
/// Pause between two tries of UDP to a node that a lane leads to.
const UDP_AGAIN: Duration = Duration::from_secs(45);

/// Nodes that a lane leads to. The others are reached by UDP, or not at all.
#[derive(Debug, Default)]
pub struct Ways {
    by_lane: BTreeMap<NodeId, Instant>,
    due: BTreeSet<(Instant, NodeId)>,
}

impl Ways {
    /// A lane to the node has won, while UDP had its chance.
    pub fn handle_lane(&mut self, node: NodeId, now: Instant) {
        if !self.by_lane.contains_key(&node) {
            self.set(node, Some(now + UDP_AGAIN));
        }
    }

    /// The node was reached by UDP, or is forgotten.
    pub fn handle_udp(&mut self, node: NodeId) {
        self.set(node, None);
    }

    /// Returns the next node that is to be tried by UDP beside its lane; `None` when there is none yet.
    pub fn next_udp_try(&mut self, now: Instant) -> Option<NodeId> {
        let (_, node) = *self.due.first().filter(|(due, _)| *due <= now)?;
        self.set(node, Some(now + UDP_AGAIN));
        Some(node)
    }

    /// Returns when [`Self::next_udp_try`] has something.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Whether a lane has led to the node last.
    pub fn is_lane(&self, node: NodeId) -> bool {
        self.by_lane.contains_key(&node)
    }

    /// Returns how long lanes wait for UDP in a dial of the node.
    pub fn head_start(&self, node: NodeId) -> Duration {
        if self.is_lane(node) { Duration::ZERO } else { UDP_ALONE }
    }

    fn set(&mut self, node: NodeId, due: Option<Instant>) {
        if let Some(before) = self.by_lane.remove(&node) {
            self.due.remove(&(before, node));
        }
        if let Some(due) = due {
            self.by_lane.insert(node, due);
            self.due.insert((due, node));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);

    #[test]
    fn udp_has_a_start_until_a_lane_has_won_and_again_once_it_works() {
        let (mut ways, now) = (Ways::default(), Instant::now());
        assert_eq!(ways.head_start(NODE), UDP_ALONE);
        ways.handle_lane(NODE, now);
        assert_eq!(ways.head_start(NODE), Duration::ZERO);
        ways.handle_udp(NODE);
        assert_eq!(ways.head_start(NODE), UDP_ALONE);
        assert_eq!(ways.next_deadline(), None);
    }

    #[test]
    fn udp_is_tried_again_at_its_pace_whatever_lanes_do() {
        let (mut ways, now) = (Ways::default(), Instant::now());
        ways.handle_lane(NODE, now);
        assert_eq!(ways.next_udp_try(now), None);
        ways.handle_lane(NODE, now + UDP_AGAIN / 2);
        assert_eq!(ways.next_deadline(), Some(now + UDP_AGAIN));
        assert_eq!(ways.next_udp_try(now + UDP_AGAIN), Some(NODE));
        assert_eq!(ways.next_udp_try(now + UDP_AGAIN), None);
        assert_eq!(ways.next_deadline(), Some(now + UDP_AGAIN * 2));
    }
}
