//! The part of membership that tells everybody at once what this node has found by itself: who died, and who came.
//!
//! Owns: whose suspicion this node began, and how many it may shout about. Must not know: what others claim.
//! Driven by: `Membership`.
//!
//! Gossip alone would reach the last node several rounds later, and of a death each has to make its own probe before
//! the verdict. But it costs a frame to every peer: who only repeats the finder, or finds half of the mesh gone, leaves
//! it to gossip. Otherwise a partition of 1,000 nodes would cost each of them hundreds of thousands of frames.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use gossamer_wire::frame::Frame;
use gossamer_wire::swim::{SwimHeader, SwimMember, SwimMessage, SwimState};

use super::allowance::Allowance;
use super::packet::Packet;
use super::timers::Due;
use super::{MemberView, Membership, Output};

/// Deaths found at once that everybody is told of, and how many more a second.
const BURST: f64 = 8.0;
const RATE: f64 = 0.2;

/// The same for rounds of arrivals, of which a mesh that starts at once needs some.
const BURST_OF_ROUNDS: f64 = 32.0;

/// Between two rounds of arrivals.
const ARRIVALS_APART: Duration = Duration::from_millis(100);

/// Longer than the first state takes to a newcomer whose machine starts many things at once.
const LATELY: Duration = Duration::from_secs(1);

/// Members in one packet: 32 of at most 35 bytes leave room in 1,200.
const MAX_TOLD: usize = 32;

/// What this node has found.
#[derive(Debug, Default)]
pub(super) struct Finds {
    suspects: BTreeSet<NodeId>,
    deaths: Allowance,
    arrivals: Allowance,
    /// Who has come and is to be told of.
    arrived: BTreeSet<NodeId>,
    /// Who came in the last [`LATELY`].
    lately: Vec<(Instant, NodeId)>,
    /// When everybody was last told.
    told: Option<Instant>,
}

impl Finds {
    /// Notes a suspicion of this node's own; whether everybody is to be told.
    fn suspect(&mut self, node: NodeId, now: Instant) -> bool {
        let may_tell = self.deaths.take(BURST, RATE, now);
        if may_tell {
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

    /// Notes a member that has come, or come back, and said so itself.
    pub(super) fn note_arrival(&mut self, node: NodeId, now: Instant) {
        if self.finds.arrived.is_empty() {
            let earliest = self.finds.told.map_or(now, |told| now.max(told + ARRIVALS_APART));
            self.timers.push(earliest, Due::Arrivals);
        }
        self.finds.arrived.insert(node);
    }

    /// Tells of those who have come, a lone one at once and many together: a mesh that starts at once hears of all
    /// by the one node they all know. Each of them hears also of those who came shortly before: while the state it
    /// got first was on its way, nobody told it of anything.
    pub(super) fn spread_arrivals(&mut self, now: Instant) {
        let arrived = std::mem::take(&mut self.finds.arrived);
        self.finds.lately.retain(|(at, _)| now.saturating_duration_since(*at) < LATELY);
        self.finds.lately.extend(arrived.iter().map(|node| (now, *node)));
        if !self.finds.arrivals.take(BURST_OF_ROUNDS, RATE, now) {
            return;
        }
        self.finds.told = Some(now);
        let (news, lately) =
            (self.alive(arrived.iter()), self.alive(self.finds.lately.iter().map(|(_, node)| node)));
        for peer in self.peers.iter().collect::<Vec<_>>() {
            let entries = if arrived.contains(&peer) { &lately } else { &news };
            entries.chunks(MAX_TOLD).for_each(|entries| self.tell(peer, entries));
        }
    }

    fn alive<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>) -> Vec<SwimMember> {
        let views = nodes.filter_map(|node| self.table.get(*node)).filter(|view| view.state.is_up());
        views.map(|view| view.entry(SwimState::Alive)).collect()
    }

    fn spread(&mut self, entry: &SwimMember) {
        for peer in self.peers.iter().collect::<Vec<_>>() {
            self.tell(peer, std::slice::from_ref(entry));
        }
    }

    /// Tells a peer that is up of others; nobody is told of itself.
    fn tell(&mut self, peer: NodeId, entries: &[SwimMember]) {
        let members: Vec<_> = entries.iter().filter(|entry| entry.identity.node != peer).cloned().collect();
        let Some(view) = self.table.get(peer).filter(|view| view.state.is_up() && !members.is_empty()) else {
            return;
        };
        let (from, to) = (self.me().generation, view.generation);
        let header = SwimHeader { from, incarnation: self.incarnation, to, message: SwimMessage::Gossip };
        let packet = Packet { header, members }.encode();
        self.outputs.push_back(Output::Frame { to: peer, frame: Frame::Swim(packet) });
    }
}

#[cfg(test)]
mod tests {
    use super::super::Input;
    use super::super::tests::peer::{PEER, Probe, entry};
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

    /// Returns whom the peer is told of at once, by number of the frame.
    fn told(probe: &mut Probe, peer: u8, length: Duration) -> Vec<Vec<SwimMember>> {
        let outputs = probe.run_with(length, &[peer]);
        let frame = |output: Output| -> Option<Vec<u8>> {
            match output {
                Output::Frame { to, frame: Frame::Swim(bytes) } if to == node(peer) => Some(bytes.to_vec()),
                _ => None,
            }
        };
        let packets = outputs.into_iter().filter_map(frame);
        let members = packets.map(|bytes| Packet::parse(&bytes).expect("own").members);
        members.filter(|members| members.iter().all(|member| member.state == SwimState::Alive)).collect()
    }

    /// A node with one peer that lets others come.
    fn come(probe: &mut Probe, others: std::ops::Range<u8>) {
        for other in others {
            probe.give(Input::Connected { peer: node(other) });
            probe.packet(other, SwimMessage::Gossip, vec![]);
        }
    }

    #[test]
    fn who_comes_alone_is_told_of_at_once_and_nobody_of_itself() {
        let mut probe = Probe::with_peer();
        told(&mut probe, PEER, Duration::from_secs(1));
        come(&mut probe, 3..4);
        assert_eq!(told(&mut probe, PEER, Duration::ZERO), [[entry(3, 1, SwimState::Alive)]]);
        assert_eq!(told(&mut probe, 3, Duration::ZERO), [[]; 0]);
    }

    #[test]
    fn many_that_come_together_share_a_round_and_rounds_are_bounded() {
        let mut probe = Probe::with_peer();
        told(&mut probe, PEER, Duration::from_secs(1));
        come(&mut probe, 3..43);
        let rounds = told(&mut probe, PEER, Duration::from_millis(200));
        assert_eq!(rounds.iter().map(Vec::len).collect::<Vec<_>>(), [32, 8], "two packets");
        let mut more = 0;
        for other in 43..103 {
            come(&mut probe, other..other + 1);
            more += told(&mut probe, PEER, ARRIVALS_APART).len();
        }
        assert!(more <= BURST_OF_ROUNDS as usize + 2, "{more} rounds in six seconds");
    }

    #[test]
    fn a_newcomer_hears_of_those_who_came_while_its_first_state_was_on_its_way() {
        let mut probe = Probe::with_peer();
        told(&mut probe, PEER, Duration::from_secs(2));
        probe.give(Input::Connected { peer: node(4) });
        come(&mut probe, 3..4);
        assert_eq!(told(&mut probe, 4, Duration::from_millis(50)), [[]; 0], "it has not said hello");
        probe.packet(4, SwimMessage::Gossip, vec![]);
        assert_eq!(told(&mut probe, 4, ARRIVALS_APART), [[entry(3, 1, SwimState::Alive)]]);
    }

    #[test]
    fn who_is_only_heard_of_is_left_to_gossip() {
        let mut probe = Probe::with_peer();
        probe.give(Input::Connected { peer: node(3) });
        probe.packet(3, SwimMessage::Gossip, vec![]);
        told(&mut probe, PEER, Duration::from_secs(1));
        probe.packet(3, SwimMessage::Gossip, vec![entry(9, 1, SwimState::Alive)]);
        assert_eq!(told(&mut probe, PEER, Duration::from_secs(1)), [[]; 0]);
    }
}
