//! Two processes with one identity, told from one that has restarted.
//!
//! Owns: which processes of a node have connected, in what order. Must not know: connections.
//! Driven by: the task that keeps one control connection per pair, for each hello.

use std::collections::{BTreeMap, VecDeque};

use gossamer_wire::NodeId;

/// The processes seen of each node, by the nonce of their hello.
#[derive(Clone, Debug, Default)]
pub struct Twins(BTreeMap<NodeId, VecDeque<u64>>);

impl Twins {
    /// Notes that a process of a node has connected. Returns the nonce of the other process when the node runs
    /// twice: a process that was replaced by another one has come back, which no restart does.
    pub fn connected(&mut self, node: NodeId, nonce: u64) -> Option<u64> {
        let seen = self.0.entry(node).or_default();
        let last = seen.back().copied();
        if last == Some(nonce) {
            return None;
        }
        let is_back = seen.contains(&nonce);
        seen.retain(|known| *known != nonce);
        seen.push_back(nonce);
        if seen.len() > REMEMBERED {
            seen.pop_front();
        }
        last.filter(|_| is_back)
    }

    /// Forgets a node that is gone for good.
    pub fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

/// Which of two processes of one identity goes on: the one that started first. The upper half of a nonce is the
/// second of its start, so all nodes, and the two themselves, come to the same answer.
pub fn later_process(one: u64, other: u64) -> u64 {
    one.max(other)
}

/// Makes the nonce of a process that starts at `wall`, in seconds since the Unix epoch.
pub fn process_nonce(wall: u64, random: u32) -> u64 {
    wall << 32 | u64::from(random)
}

/// Processes remembered per node: enough for two that take turns, through some restarts of either.
const REMEMBERED: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);

    #[test]
    fn restarts_are_no_twins() {
        let mut twins = Twins::default();
        assert!((0..1_000).all(|nonce| twins.connected(NODE, nonce).is_none()));
        assert_eq!(twins.connected(NODE, 999), None, "connected again");
        assert_eq!(twins.0[&NODE].len(), REMEMBERED);
    }

    #[test]
    fn a_process_that_comes_back_after_another_one_has_a_twin() {
        let mut twins = Twins::default();
        assert_eq!([5, 9].map(|nonce| twins.connected(NODE, nonce)), [None, None]);
        assert_eq!(twins.connected(NODE, 5), Some(9));
        assert_eq!(twins.connected(NODE, 9), Some(5));
        assert_eq!(twins.connected(NodeId::from_bytes([2; 16]), 5), None, "another node");
        twins.forget(NODE);
        assert_eq!(twins.connected(NODE, 5), None);
    }

    #[test]
    fn the_later_start_has_the_greater_nonce_whatever_its_random_half() {
        let (first, second) = (process_nonce(1_000, u32::MAX), process_nonce(1_001, 0));
        assert_eq!(later_process(first, second), second);
        assert_eq!(later_process(second, first), second);
        assert_ne!(process_nonce(1_000, 1), process_nonce(1_000, 2));
    }
}
