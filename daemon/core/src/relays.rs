//! Which relays this node keeps: none while others can dial it, else the nearest two. And which other ways in it keeps open.
//!
//! Owns: what is known of being dialled, and the choice. Must not know: connections, cards. Driven by: the owner of all
//! connections, which tells of each dial and each connection that came in.
//!
//! That somebody dialled this node says little when this node had sent him something before: translators of addresses let
//! answers in, and what they take for one. It says nothing of others when he is a neighbour. Only who came unasked and from
//! outside has proved that others can. That fades: machines move, and ports are closed. Taking a node for hidden costs little,
//! so that no proof is believed for longer than it deserves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

use crate::reach::{OnLink, Span, span};

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

/// Relays that this node remembers having reached; of more one is forgotten, which others stand in for.
const MAX_REACHED: usize = 256;

/// A relay that is less than half as far as one that is kept takes its place; nearer than this counts as being so far away.
const WORTH: Duration = Duration::from_millis(5);
/// For how long it must have been so: who is told of relays should find them, and round trips rise and fall with the hour.
const NEARER_FOR: Duration = Duration::from_secs(600);

/// How a connection came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Through a relay, whoever dialled.
    ByCircuit,
    /// This node dialled.
    Out {
        /// Whether the peer has the role of a relay.
        to_relay: bool,
        /// Whether something between may forget the way in: see [`may_lapse`].
        may_lapse: bool,
    },
    /// The peer dialled, from a neighbour's place.
    InFromNear,
    /// The peer dialled, from elsewhere: see [`is_from_outside`].
    InFromOutside,
}

/// Whether who comes from an address shows that others can do so: neither a private network nor one that an interface is in
/// says anything of the rest of the world, nor does an address at which peers see this node: there is its own translator.
pub fn is_from_outside(source: IpAddr, links: &[OnLink], seen: &[SocketAddr]) -> bool {
    let source = source.to_canonical();
    let is_own = seen.iter().any(|address| address.ip() == source);
    span(source) == Span::Global && !is_own && !links.iter().any(|link| link.contains(source))
}

/// Whether something between this node and a peer may forget the way in, when nothing is sent for a while: a translator, where
/// the peer sees this node at an address that it does not have, or else a firewall before an address that is good everywhere.
/// Inside private networks there are rarely any, and these are where many nodes are.
pub fn may_lapse(observed: IpAddr, is_own: bool) -> bool {
    !is_own || span(observed) == Span::Global
}

/// A relay that could be kept, to which a connection leads that is no circuit.
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
    /// With whom there is a connection that is no circuit.
    connected: BTreeSet<NodeId>,
    /// Relays that this node has reached by dialling them. Those that start again may be the first to dial: through what this
    /// node had opened before, which it alone can open again.
    reached: BTreeSet<NodeId>,
    /// Ways that this node has opened and that may lapse, and when something is sent on each.
    open: BTreeMap<NodeId, Instant>,
    /// The same by time.
    open_due: BTreeSet<(Instant, NodeId)>,
    /// Since when there has always been a relay that is much nearer than one of those chosen.
    nearer_since: Option<Instant>,
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

    /// A connection is up. It takes the place of one that was up before, which is then not lost.
    pub fn handle_connected(&mut self, node: NodeId, came: Came, now: Instant) {
        let began = *self.began.get_or_insert(now);
        self.next_look.get_or_insert(began + SETTLE);
        let had_one = match came {
            Came::ByCircuit => self.connected.remove(&node),
            Came::Out { .. } | Came::InFromNear | Came::InFromOutside => !self.connected.insert(node),
        };
        if had_one && !self.proofs.contains_key(&node) {
            // What was sent on the one before opened a way.
            self.handle_sent(node, now);
        }
        let has_sent = self.sent.get(&node).is_some_and(|at| now.saturating_duration_since(*at) < REMEMBERED);
        match came {
            Came::InFromOutside if !has_sent => {
                self.proofs.insert(node, now + PROVEN);
                self.next_look = Some(now);
            }
            Came::InFromOutside => {}
            Came::ByCircuit | Came::Out { .. } | Came::InFromNear => _ = self.weaken(node, now),
        }
        if let Came::Out { to_relay: true, .. } = came {
            self.reached.insert(node);
            if self.reached.len() > MAX_REACHED {
                self.reached.pop_first();
            }
        }
        let may_lapse = matches!(came, Came::Out { may_lapse: true, .. });
        self.set_open(node, may_lapse.then(|| now + KEEP_ALIVE));
    }

    /// The connection with a node has ended, and there is no other. What was sent on one that came unasked opened no way.
    pub fn handle_lost(&mut self, node: NodeId, now: Instant) {
        self.connected.remove(&node);
        self.set_open(node, None);
        if !self.weaken(node, now) {
            self.handle_sent(node, now);
        }
        if self.chosen.contains(&node) {
            self.next_look = Some(now);
        }
    }

    fn set_open(&mut self, node: NodeId, due: Option<Instant>) {
        if let Some(before) = self.open.remove(&node) {
            self.open_due.remove(&(before, node));
        }
        if let Some(due) = due {
            self.open.insert(node, due);
            self.open_due.insert((due, node));
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

    /// Chooses among the relays that are there: those that this node has reached, the nearest first. Those that were chosen stay
    /// as long as they are there and no other one is much nearer: who is told of them should find them.
    pub fn handle_candidates(&mut self, mut candidates: Vec<Candidate>, now: Instant) {
        self.sent.retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
        self.proofs.retain(|_, until| *until > now);
        if let Some(until) = self.proven_until() {
            (self.next_look, self.next_keep_alive, self.nearer_since) = (Some(until), None, None);
            return self.chosen.clear();
        }
        self.next_look = Some(now + LOOK);
        candidates.retain(|candidate| self.reached.contains(&candidate.node));
        candidates.sort();
        self.chosen.retain(|node| candidates.iter().any(|candidate| candidate.node == *node));
        for Candidate { node, .. } in &candidates {
            if self.chosen.len() < KEPT && !self.chosen.contains(node) {
                self.chosen.push(*node);
            }
        }
        self.choose_nearer(&candidates, now);
        self.next_keep_alive = match self.chosen.is_empty() {
            true => None,
            false => self.next_keep_alive.or(Some(now + KEEP_ALIVE)),
        };
    }

    /// Gives the place of the farthest of those chosen to the nearest of the others, `candidates` being sorted.
    fn choose_nearer(&mut self, candidates: &[Candidate], now: Instant) {
        let is_kept = |candidate: &&Candidate| self.chosen.contains(&candidate.node);
        let far = candidates.iter().rfind(is_kept);
        let near = candidates.iter().find(|candidate| !is_kept(candidate));
        let (Some(far), Some(near)) = (far, near) else { return self.nearer_since = None };
        if near.rtt.max(WORTH).saturating_mul(2) >= far.rtt {
            return self.nearer_since = None;
        }
        let since = *self.nearer_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= NEARER_FOR {
            self.chosen.retain(|node| *node != far.node);
            self.chosen.push(near.node);
            self.nearer_since = None;
        }
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

    /// Returns the next of the other ways in on which something is to be sent now; `None` when there is none, and while others
    /// can dial this node.
    pub fn next_open(&mut self, now: Instant) -> Option<NodeId> {
        let (_, node) = *self.open_due.first().filter(|(due, _)| self.proofs.is_empty() && *due <= now)?;
        self.set_open(node, Some(now + KEEP_ALIVE));
        Some(node)
    }

    /// Returns when something is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let open = self.open_due.first().map(|(due, _)| *due).filter(|_| self.proofs.is_empty());
        self.next_look.into_iter().chain(self.next_keep_alive).chain(open).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 16]);
    const B: NodeId = NodeId::from_bytes([2; 16]);
    const C: NodeId = NodeId::from_bytes([3; 16]);
    const IN: Came = Came::InFromOutside;
    const OUT: Came = Came::Out { to_relay: false, may_lapse: false };
    const TO_RELAY: Came = Came::Out { to_relay: true, may_lapse: true };

    /// Knows that this node can dial all relays of these tests.
    fn hidden() -> Relays {
        Relays { reached: [A, B, C].into(), ..Relays::default() }
    }

    fn candidates(nodes: &[(NodeId, u64)]) -> Vec<Candidate> {
        nodes.iter().map(|(node, rtt)| Candidate { rtt: Duration::from_millis(*rtt), node: *node }).collect()
    }

    #[test]
    fn who_dials_all_others_chooses_the_nearest_two_and_names_them() {
        let (mut relays, now) = (hidden(), Instant::now());
        assert_eq!(relays.next_deadline(), None, "alone");
        relays.handle_sent(A, now);
        relays.handle_connected(A, OUT, now);
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
        let (mut relays, now) = (hidden(), Instant::now());
        relays.handle_sent(A, now);
        relays.handle_connected(A, IN, now + Duration::from_secs(1));
        relays.handle_candidates(candidates(&[(C, 1)]), now + SETTLE);
        assert_eq!(relays.chosen(), [C], "it came where this node had sent something");
        relays.handle_lost(A, now + SETTLE);
        relays.handle_connected(A, IN, now + SETTLE * 2);
        assert!(!relays.is_due(now + SETTLE * 2), "again");
        relays.handle_connected(B, IN, now + SETTLE * 2);
        assert!(relays.is_due(now + SETTLE * 2));
        relays.handle_candidates(candidates(&[(C, 1)]), now + SETTLE * 2);
        assert!(relays.chosen().is_empty() && !relays.keeps_alive(now + SETTLE * 9));
        relays.handle_sent(A, now + SETTLE * 2);
        relays.handle_connected(A, OUT, now + SETTLE * 2);
        assert_eq!(relays.next_deadline(), Some(now + SETTLE * 2 + PROVEN), "nothing to look for");
    }

    /// A node that B has dialled unasked at once.
    fn dialled(now: Instant) -> Relays {
        let mut relays = hidden();
        relays.handle_connected(B, IN, now);
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
        relays.handle_connected(B, IN, now + SETTLE * 2);
        relays.handle_candidates(Vec::new(), now + SETTLE * 2);
        assert_eq!(relays.next_deadline(), Some(now + SETTLE * 2 + PROVEN));
        relays.handle_lost(B, now + SETTLE * 3);
        relays.handle_sent(B, now + SETTLE * 3);
        relays.handle_connected(B, IN, now + SETTLE * 4);
        assert_eq!(relays.next_deadline(), Some(now + SETTLE * 3 + BELIEVED), "an answer, perhaps");
        relays.handle_connected(A, IN, now + SETTLE * 5);
        relays.handle_candidates(Vec::new(), now + SETTLE * 5);
        relays.handle_connected(A, OUT, now + SETTLE * 6);
        assert_eq!(relays.next_deadline(), Some(now + SETTLE * 6 + BELIEVED), "the way out is another one");
    }

    #[test]
    fn chosen_relays_stay_while_they_live_and_others_follow_the_dead() {
        let (mut relays, now) = (hidden(), Instant::now());
        relays.handle_connected(A, OUT, now);
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

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn only_who_comes_from_outside_shows_that_others_can() {
        let link = |text, prefix| OnLink { address: ip(text), prefix };
        let links = [link("203.0.113.20", 24), link("2001:db8:1::5", 64), link("10.0.0.5", 8)];
        let seen = ["198.51.100.7:4677".parse().expect("address")];
        for (source, expected) in [
            ("203.0.112.255", true),
            ("2001:db8:2::5", true),
            ("::ffff:192.0.2.7", true),
            ("203.0.113.21", false),
            ("::ffff:203.0.113.21", false),
            ("2001:db8:1::6", false),
            // Of a private network nobody knows where it ends.
            ("10.1.0.1", false),
            ("192.168.1.10", false),
            ("100.64.3.3", false),
            ("fd00::9", false),
            ("127.0.0.1", false),
            // A neighbour, by way of the translator.
            ("198.51.100.7", false),
        ] {
            assert_eq!(is_from_outside(ip(source), &links, &seen), expected, "{source}");
        }
    }

    #[test]
    fn a_neighbour_proves_nothing_and_comes_in_the_place_of_a_proof() {
        let (mut relays, now) = (hidden(), Instant::now());
        relays.handle_connected(A, Came::InFromNear, now);
        relays.handle_candidates(candidates(&[(C, 1)]), now + SETTLE);
        assert_eq!(relays.chosen(), [C]);
        relays.handle_connected(B, IN, now + SETTLE);
        relays.handle_connected(B, Came::InFromNear, now + SETTLE * 2);
        assert_eq!(relays.proven_until(), Some(now + SETTLE * 2 + BELIEVED));
    }

    #[test]
    fn who_takes_the_place_of_his_own_connection_proves_nothing_unless_he_did_before() {
        let (mut relays, now) = (hidden(), Instant::now());
        relays.handle_connected(C, TO_RELAY, now);
        let later = now + REMEMBERED * 2;
        // It has started again, and the old connection has not ended yet.
        relays.handle_connected(C, IN, later);
        relays.handle_candidates(candidates(&[(C, 1)]), later);
        assert_eq!(relays.chosen(), [C], "through what this node had opened");
        relays.handle_connected(B, IN, later);
        relays.handle_connected(B, IN, later + SETTLE);
        assert_eq!(relays.proven_until(), Some(later + SETTLE + PROVEN));
        relays.handle_connected(A, Came::ByCircuit, later);
        relays.handle_connected(A, IN, later + SETTLE * 2);
        assert_eq!(relays.proven_until(), Some(later + SETTLE * 2 + PROVEN), "nothing was sent to it");
    }

    #[test]
    fn a_relay_that_this_node_has_never_reached_is_not_chosen_and_one_that_it_has_is_whoever_dials() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        relays.handle_connected(A, OUT, now);
        relays.handle_connected(B, TO_RELAY, now);
        relays.handle_candidates(candidates(&[(A, 1), (B, 2), (C, 3)]), now + SETTLE);
        assert_eq!(relays.chosen(), [B]);
        relays.handle_lost(B, now + SETTLE);
        relays.handle_connected(B, IN, now + SETTLE);
        relays.handle_candidates(candidates(&[(B, 2)]), now + SETTLE);
        assert_eq!(relays.chosen(), [B]);
        for number in 0..2 * MAX_REACHED as u128 {
            relays.handle_connected(NodeId::from_bytes(number.to_be_bytes()), TO_RELAY, now);
        }
        assert_eq!(relays.reached.len(), MAX_REACHED);
    }

    #[test]
    fn a_much_nearer_relay_takes_the_place_of_the_farthest_after_a_while() {
        let (mut relays, now) = (hidden(), Instant::now());
        relays.handle_connected(A, OUT, now);
        relays.handle_candidates(candidates(&[(A, 80), (B, 60)]), now);
        let near = candidates(&[(A, 80), (B, 60), (C, 35)]);
        relays.handle_candidates(near.clone(), now);
        relays.handle_candidates(candidates(&[(A, 80), (B, 60), (C, 45)]), now + NEARER_FOR / 2);
        relays.handle_candidates(near.clone(), now + NEARER_FOR);
        assert_eq!(relays.chosen(), [B, A], "it was not so all the time");
        relays.handle_candidates(near.clone(), now + NEARER_FOR * 2 - LOOK);
        assert_eq!(relays.chosen(), [B, A]);
        relays.handle_candidates(near, now + NEARER_FOR * 2);
        assert_eq!(relays.chosen(), [B, C]);
        let far = candidates(&[(A, 29), (B, 60), (C, 35)]);
        relays.handle_candidates(far.clone(), now + NEARER_FOR * 3);
        relays.handle_candidates(far, now + NEARER_FOR * 4);
        assert_eq!(relays.chosen(), [C, A]);
    }

    #[test]
    fn on_one_wire_no_relay_is_nearer() {
        let (mut relays, now) = (hidden(), Instant::now());
        relays.handle_connected(A, OUT, now);
        relays.handle_candidates(candidates(&[(A, 9), (B, 10)]), now);
        for minutes in [0, 1, 20, 40] {
            let later = now + Duration::from_secs(60 * minutes);
            relays.handle_candidates(candidates(&[(A, 9), (B, 10), (C, 0)]), later);
        }
        assert_eq!(relays.chosen(), [A, B]);
    }

    #[test]
    fn ways_that_may_lapse_are_kept_open_until_somebody_comes_unasked() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        relays.handle_connected(A, OUT, now);
        relays.handle_connected(B, TO_RELAY, now);
        relays.handle_connected(C, TO_RELAY, now + LOOK);
        let due = now + KEEP_ALIVE;
        assert_eq!(relays.next_open(due - SETTLE), None);
        assert_eq!((relays.next_open(due), relays.next_open(due)), (Some(B), None));
        assert_eq!(relays.next_open(due + LOOK), Some(C));
        relays.handle_lost(C, due + LOOK);
        assert_eq!(relays.open.len(), 1);
        let stranger = NodeId::from_bytes([4; 16]);
        relays.handle_connected(stranger, IN, due + REMEMBERED);
        assert_eq!(relays.next_open(due + REMEMBERED), None, "others can dial it");
    }

    #[test]
    fn a_way_may_lapse_behind_a_translator_and_from_an_address_that_is_good_everywhere() {
        assert!(may_lapse(ip("203.0.113.9"), false) && may_lapse(ip("10.0.0.9"), false));
        assert!(may_lapse(ip("2001:db8::9"), true));
        assert!(!may_lapse(ip("10.0.0.9"), true) && !may_lapse(ip("127.0.0.1"), true));
    }
}
