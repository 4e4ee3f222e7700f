//! The part of membership that tells everybody at once what this node has found by its own probes.
//!
//! Owns: whose suspicion this node began, and how many it may shout about. Must not know: what others claim.
//! Driven by: `Membership`.
//!
//! Gossip alone would reach the last node several rounds later, and each has to make its own probe before the
//! verdict. But it costs a frame to every peer: who only repeats the finder, or finds half of the mesh gone, leaves
//! it to gossip. Otherwise a partition of 1,000 nodes would cost each of them hundreds of thousands of frames.

use std::collections::BTreeSet;
use std::time::Instant;

use gossamer_wire::NodeId;
use gossamer_wire::frame::Frame;
use gossamer_wire::swim::{SwimHeader, SwimMember, SwimMessage, SwimState};

use super::packet::Packet;
use super::{MemberView, Membership, Output};

/// Members found at once that everybody is told of, and how many more a second.
const BURST: f64 = 8.0;
const RATE: f64 = 0.2;

/// What this node has found.
#[derive(Debug, Default)]
pub(super) struct Finds {
    suspects: BTreeSet<NodeId>,
    /// Spent of [`BURST`], and when.
    spent: f64,
    at: Option<Instant>,
}

impl Finds {
    /// Notes a suspicion of this node's own; whether everybody is to be told.
    fn suspect(&mut self, node: NodeId, now: Instant) -> bool {
        let since = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.spent = (self.spent - since * RATE).max(0.0);
        self.at = Some(now);
        let may_tell = self.spent + 1.0 <= BURST;
        if may_tell {
            self.spent += 1.0;
            self.suspects.insert(node);
        }
        may_tell
    }

    /// Ends a suspicion; whether everybody was told of it by this node.
    fn end(&mut self, node: NodeId) -> bool {
        self.suspects.remove(&node)
    }
}

impl Membership {
    /// Tells of a suspicion this node's own probes have begun, unless a peer has told of it before: when several
    /// members die at once, most nodes find each of them within the second in which they wait for their own proof.
    pub(super) fn spread_suspicion(&mut self, view: &MemberView, now: Instant) {
        if !self.claims.is_accused(view.node) && self.finds.suspect(view.node, now) {
            self.spread(&view.entry(SwimState::Suspect));
        }
    }

    /// Tells of the end of a suspicion, if it is a death and this node has told of the beginning.
    pub(super) fn spread_end(&mut self, view: &MemberView) {
        if self.finds.end(view.node) && !view.state.is_up() {
            self.spread(&view.entry(SwimState::Down));
        }
    }

    fn spread(&mut self, entry: &SwimMember) {
        let me = self.me();
        for peer in self.peers.iter().collect::<Vec<_>>() {
            let Some(view) = self.table.get(peer).filter(|view| view.state.is_up()) else { continue };
            if peer == entry.identity.node {
                continue;
            }
            let (from, to) = (me.generation, view.generation);
            let header = SwimHeader { from, incarnation: self.incarnation, to, message: SwimMessage::Gossip };
            let packet = Packet { header, members: vec![entry.clone()] }.encode();
            self.outputs.push_back(Output::Frame { to: peer, frame: Frame::Swim(packet) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::start;
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    #[test]
    fn everybody_is_told_of_a_few_finds_at_once_and_of_more_with_time() {
        let (now, mut finds) = (start(), Finds::default());
        assert_eq!((1..=100).filter(|n| finds.suspect(node(*n), now)).count(), BURST as usize);
        let later = now + Duration::from_secs(15);
        assert_eq!((101..=200).filter(|n| finds.suspect(node(*n), later)).count(), 3);
    }

    #[test]
    fn the_end_is_told_by_who_told_of_the_beginning_and_once() {
        let (now, mut finds) = (start(), Finds::default());
        assert!(finds.suspect(node(1), now));
        assert!(!finds.end(node(2)));
        assert!(finds.end(node(1)) && !finds.end(node(1)));
    }
}
