//! By which way nodes are reached: UDP, a lane over TCP where UDP is closed, or a circuit where nobody can dial.
//!
//! Owns: which nodes were reached by a detour last, and when the direct way is tried again. Must not know: sockets, addresses.
//! Driven by: the owner of all connections.
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

/// Pause between two tries of the direct ways to a node that a circuit leads to: new flows shall go by them within 30 s.
const DIRECT_AGAIN: Duration = Duration::from_secs(20);

/// What is used where UDP does not lead to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detour {
    /// TLS over TCP.
    Lane,
    /// The same through a relay.
    Circuit,
}

impl Detour {
    const fn again(self) -> Duration {
        match self {
            Self::Lane => UDP_AGAIN,
            Self::Circuit => DIRECT_AGAIN,
        }
    }
}

/// Nodes that a detour leads to. The others are reached by UDP, or not at all.
#[derive(Debug, Default)]
pub struct Ways {
    /// With the next try, unless the node has no connection.
    by: BTreeMap<NodeId, (Detour, Option<Instant>)>,
    due: BTreeSet<(Instant, NodeId)>,
}

impl Ways {
    /// A detour to the node has won, while UDP had its chance.
    pub fn handle_detour(&mut self, node: NodeId, detour: Detour, now: Instant) {
        let is_kept = matches!(self.by.get(&node), Some((kept, Some(_))) if *kept == detour);
        if !is_kept {
            self.set(node, Some((detour, Some(now + detour.again()))));
        }
    }

    /// The node was reached by UDP.
    pub fn handle_udp(&mut self, node: NodeId) {
        self.set(node, None);
    }

    /// The node has no connection: there is nothing to leave until the next detour to it.
    pub fn handle_lost(&mut self, node: NodeId) {
        if let Some(detour) = self.detour(node) {
            self.set(node, Some((detour, None)));
        }
    }

    /// Forgets a node.
    pub fn forget(&mut self, node: NodeId) {
        self.set(node, None);
    }

    /// Returns the next node that is to be tried directly beside its detour; `None` when there is none yet.
    pub fn next_try(&mut self, now: Instant) -> Option<NodeId> {
        let (_, node) = *self.due.first().filter(|(due, _)| *due <= now)?;
        let detour = self.detour(node)?;
        self.set(node, Some((detour, Some(now + detour.again()))));
        Some(node)
    }

    /// Returns when [`Self::next_try`] has something.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Returns what has led to the node last; `None` for UDP, and where nothing has.
    pub fn detour(&self, node: NodeId) -> Option<Detour> {
        self.by.get(&node).map(|(detour, _)| *detour)
    }

    /// Returns how long detours wait for UDP in a dial of the node.
    pub fn head_start(&self, node: NodeId) -> Duration {
        if self.by.contains_key(&node) { Duration::ZERO } else { UDP_ALONE }
    }

    fn set(&mut self, node: NodeId, by: Option<(Detour, Option<Instant>)>) {
        if let Some((_, Some(before))) = self.by.remove(&node) {
            self.due.remove(&(before, node));
        }
        if let Some((detour, due)) = by {
            self.by.insert(node, (detour, due));
            self.due.extend(due.map(|due| (due, node)));
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
        ways.handle_detour(NODE, Detour::Lane, now);
        assert_eq!(ways.head_start(NODE), Duration::ZERO);
        ways.handle_udp(NODE);
        assert_eq!(ways.head_start(NODE), UDP_ALONE);
        assert_eq!(ways.next_deadline(), None);
    }

    #[test]
    fn who_has_no_connection_wakes_nobody_and_who_is_forgotten_leaves_nothing() {
        let (mut ways, now) = (Ways::default(), Instant::now());
        ways.handle_detour(NODE, Detour::Circuit, now);
        ways.handle_lost(NODE);
        assert_eq!((ways.next_deadline(), ways.detour(NODE)), (None, Some(Detour::Circuit)));
        ways.handle_detour(NODE, Detour::Circuit, now);
        assert_eq!(ways.next_deadline(), Some(now + DIRECT_AGAIN), "it is back");
        ways.forget(NODE);
        assert!(ways.by.is_empty() && ways.due.is_empty());
    }

    #[test]
    fn udp_is_tried_again_at_its_pace_whatever_lanes_do() {
        let (mut ways, now) = (Ways::default(), Instant::now());
        ways.handle_detour(NODE, Detour::Lane, now);
        assert_eq!(ways.next_try(now), None);
        ways.handle_detour(NODE, Detour::Lane, now + UDP_AGAIN / 2);
        assert_eq!(ways.next_deadline(), Some(now + UDP_AGAIN));
        assert_eq!(ways.next_try(now + UDP_AGAIN), Some(NODE));
        assert_eq!(ways.next_try(now + UDP_AGAIN), None);
        assert_eq!(ways.next_deadline(), Some(now + UDP_AGAIN * 2));
        ways.handle_detour(NODE, Detour::Circuit, now + UDP_AGAIN);
        assert_eq!(ways.next_deadline(), Some(now + UDP_AGAIN + DIRECT_AGAIN), "a circuit is left sooner");
        assert_eq!(ways.detour(NODE), Some(Detour::Circuit));
    }
}
