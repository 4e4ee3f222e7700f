//! Which relays this node keeps: none while others can dial it, else the nearest two.
//!
//! Owns: what is known of being dialled, and the choice. Must not know: connections, cards. Driven by: the owner of all
//! connections, which tells of each dial and each connection that came in.
//!
//! That somebody dialled this node says little when this node had sent him something before: translators of addresses let
//! answers in, and what they take for one. Only who came unasked has proved that others can. That fades: machines move, and
//! ports are closed. Taking a node for hidden costs little, so that no proof is believed for longer than it deserves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

/// Relays that are kept (design section 10).
pub const KEPT: usize = 2;
/// How long a node waits for somebody to dial it after its first connection.
const SETTLE: Duration = Duration::from_secs(4);
/// Pause between two looks at who is there.
const LOOK: Duration = Duration::from_secs(5);
/// How long a translator of addresses may remember that this node has sent something: Linux keeps a busy UDP path for 120 s
/// and RFC 4787 asks for five minutes at most.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Pause between two packets that keep a way in open: translators forget idle paths after 30 s.
pub const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How long it is believed that others can dial this node when one has come unasked and stays.
const PROVEN: Duration = Duration::from_secs(24 * 3_600);
/// The same when his connection has ended: it may have done so because this machine is elsewhere.
const BELIEVED: Duration = Duration::from_secs(600);

/// A relay that could be kept, which this node has dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Smoothed round trip to it: the nearest are chosen.
    pub rtt: Duration,
    /// The relay.
    pub node: NodeId,
}

/// The relays of this node.
#[derive(Debug, Default)]
pub struct Relays {
    /// Who came unasked, and until when that counts. One for each node at the most, as below.
    proofs: BTreeMap<NodeId, Instant>,
    /// When this node last sent something to a node's address.
    sent: BTreeMap<NodeId, Instant>,
    /// When the first connection came about.
    began: Option<Instant>,
    chosen: Vec<NodeId>,
    next_look: Option<Instant>,
    next_keep_alive: Option<Instant>,
}

impl Relays {
    /// This node dials a node.
    pub fn handle_sent(&mut self, node: NodeId, now: Instant) {
        self.sent.insert(node, now);
    }

    /// A connection is up; `came_in` when the node dialled this one, not through a relay.
    pub fn handle_connected(&mut self, node: NodeId, came_in: bool, now: Instant) {
        let began = *self.began.get_or_insert(now);
        self.next_look.get_or_insert(began + SETTLE);
        let has_sent = self.sent.get(&node).is_some_and(|at| now.saturating_duration_since(*at) < REMEMBERED);
        if came_in && !has_sent {
            self.proofs.insert(node, now + PROVEN);
            self.next_look = Some(now);
        } else if !came_in {
            self.weaken(node, now);
        }
    }

    /// A connection has ended. What was sent on one that came unasked opened no way.
    pub fn handle_lost(&mut self, node: NodeId, now: Instant) {
        if !self.weaken(node, now) {
            self.handle_sent(node, now);
        }
        if self.chosen.contains(&node) {
            self.next_look = Some(now);
        }
    }

    /// The connection that came unasked is there no more. Returns whether there was one.
    fn weaken(&mut self, node: NodeId, now: Instant) -> bool {
        let Some(until) = self.proofs.get_mut(&node) else { return false };
        *until = (*until).min(now + BELIEVED);
        self.next_look = self.proven_until();
        true
    }

    fn proven_until(&self) -> Option<Instant> {
        self.proofs.values().max().copied()
    }

    /// Whether it is time to look at the candidates.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next_look.is_some_and(|at| at <= now)
    }

    /// Chooses among the relays that are there. Those that were chosen stay as long as they are: who is told of them should
    /// find them.
    pub fn handle_candidates(&mut self, mut candidates: Vec<Candidate>, now: Instant) {
        self.sent.retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
        self.proofs.retain(|_, until| *until > now);
        if let Some(until) = self.proven_until() {
            (self.next_look, self.next_keep_alive) = (Some(until), None);
            return self.chosen.clear();
        }
        self.next_look = Some(now + LOOK);
        candidates.sort();
        self.chosen.retain(|node| candidates.iter().any(|candidate| candidate.node == *node));
        for Candidate { node, .. } in candidates {
            if self.chosen.len() < KEPT && !self.chosen.contains(&node) {
                self.chosen.push(node);
            }
        }
        self.next_keep_alive = match self.chosen.is_empty() {
            true => None,
            false => self.next_keep_alive.or(Some(now + KEEP_ALIVE)),
        };
    }

    /// Returns the relays to name in the card.
    pub fn chosen(&self) -> &[NodeId] {
        &self.chosen
    }

    /// Whether the ways in are to be kept open now by a packet to each chosen relay.
    pub fn keeps_alive(&mut self, now: Instant) -> bool {
        let is_due = self.next_keep_alive.is_some_and(|at| at <= now);
        if is_due {
            self.next_keep_alive = Some(now + KEEP_ALIVE);
        }
        is_due
    }

    /// Returns when something is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next_look.into_iter().chain(self.next_keep_alive).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 16]);
    const B: NodeId = NodeId::from_bytes([2; 16]);
    const C: NodeId = NodeId::from_bytes([3; 16]);

    fn candidates(nodes: &[(NodeId, u64)]) -> Vec<Candidate> {
        nodes.iter().map(|(node, rtt)| Candidate { rtt: Duration::from_millis(*rtt), node: *node }).collect()
    }

    #[test]
    fn who_dials_all_others_chooses_the_nearest_two_and_names_them() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        assert_eq!(relays.next_deadline(), None, "alone");
        relays.handle_sent(A, now);
        relays.handle_connected(A, false, now);
        assert!(!relays.is_due(now) && relays.is_due(now + SETTLE));
        relays.handle_candidates(candidates(&[(A, 9), (B, 1), (C, 5)]), now + SETTLE);
        assert_eq!(relays.chosen(), [B, C]);
        assert!(!relays.keeps_alive(now + SETTLE));
        assert!(
            relays.keeps_alive(now + SETTLE + KEEP_ALIVE) && !relays.keeps_alive(now + SETTLE + KEEP_ALIVE)
        );
    }

    #[test]
    fn an_answer_to_this_node_is_no_proof_and_who_comes_unasked_is() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        relays.handle_sent(A, now);
        relays.handle_connected(A, true, now + Duration::from_secs(1));
        relays.handle_candidates(candidates(&[(C, 1)]), now + SETTLE);
        assert_eq!(relays.chosen(), [C], "it came where this node had sent something");
        relays.handle_lost(A, now + SETTLE);
        relays.handle_connected(A, true, now + SETTLE * 2);
        assert!(!relays.is_due(now + SETTLE * 2), "again");
        relays.handle_connected(B, true, now + SETTLE * 2);
        assert!(relays.is_due(now + SETTLE * 2));
        relays.handle_candidates(candidates(&[(C, 1)]), now + SETTLE * 2);
        assert!(relays.chosen().is_empty() && !relays.keeps_alive(now + SETTLE * 9));
        relays.handle_sent(A, now + SETTLE * 2);
        relays.handle_connected(A, false, now + SETTLE * 2);
        assert_eq!(relays.next_deadline(), Some(now + SETTLE * 2 + PROVEN), "nothing to look for");
    }

    /// A node that B has dialled unasked at once.
    fn dialled(now: Instant) -> Relays {
        let mut relays = Relays::default();
        relays.handle_connected(B, true, now);
        relays.handle_candidates(candidates(&[(C, 1)]), now);
        assert!(relays.chosen().is_empty());
        relays
    }

    #[test]
    fn a_proof_is_believed_for_a_while_after_its_connection_and_a_day_at_most() {
        let now = Instant::now();
        let mut relays = dialled(now);
        relays.handle_lost(B, now + SETTLE);
        let ends = now + SETTLE + BELIEVED;
        assert_eq!(relays.next_deadline(), Some(ends));
        relays.handle_candidates(candidates(&[(C, 1)]), ends - SETTLE);
        assert!(relays.chosen().is_empty());
        relays.handle_candidates(candidates(&[(C, 1)]), ends);
        assert_eq!(relays.chosen(), [C]);
        let mut relays = dialled(now);
        assert!(!relays.is_due(now + PROVEN - SETTLE) && relays.is_due(now + PROVEN));
        relays.handle_candidates(candidates(&[(C, 1)]), now + PROVEN);
        assert_eq!(relays.chosen(), [C], "B is still connected");
    }

    #[test]
    fn who_came_unasked_and_comes_again_is_a_proof_unless_he_was_dialled() {
        let now = Instant::now();
        let mut relays = dialled(now);
        relays.handle_lost(B, now + SETTLE);
        relays.handle_connected(B, true, now + SETTLE * 2);
        relays.handle_candidates(Vec::new(), now + SETTLE * 2);
        assert_eq!(relays.next_deadline(), Some(now + SETTLE * 2 + PROVEN));
        relays.handle_lost(B, now + SETTLE * 3);
        relays.handle_sent(B, now + SETTLE * 3);
        relays.handle_connected(B, true, now + SETTLE * 4);
        assert_eq!(relays.next_deadline(), Some(now + SETTLE * 3 + BELIEVED), "an answer, perhaps");
        relays.handle_connected(A, true, now + SETTLE * 5);
        relays.handle_candidates(Vec::new(), now + SETTLE * 5);
        relays.handle_connected(A, false, now + SETTLE * 6);
        assert_eq!(relays.next_deadline(), Some(now + SETTLE * 6 + BELIEVED), "the way out is another one");
    }

    #[test]
    fn chosen_relays_stay_while_they_live_and_others_follow_the_dead() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        relays.handle_connected(A, false, now);
        relays.handle_candidates(candidates(&[(A, 5), (B, 6)]), now);
        relays.handle_candidates(candidates(&[(A, 50), (B, 60), (C, 1)]), now + LOOK);
        assert_eq!(relays.chosen(), [A, B]);
        relays.handle_lost(A, now + LOOK);
        assert!(relays.is_due(now + LOOK));
        relays.handle_candidates(candidates(&[(B, 60), (C, 1)]), now + LOOK);
        assert_eq!(relays.chosen(), [B, C]);
        relays.handle_candidates(Vec::new(), now + LOOK);
        assert!(relays.chosen().is_empty());
    }
}
