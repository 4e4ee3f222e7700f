//! The connected peers, and which of them seem to see other members than this node does.
//!
//! Owns: who is connected, who is in doubt since when.
//! Must not know: SWIM. Driven by: `Membership`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use gossamer_wire::swim::{SwimMember, SwimState};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;

/// What a peer's hash calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Agree,
    /// Compare again after [`COMPARE_AFTER`]: news may be on its way.
    Doubt,
    /// Still different after that: exchange the full state.
    Differ,
}

/// Pause between two comparisons with a peer in doubt. Each side waits it once, so a difference lasts at least
/// twice this before anything is sent: gossip needs under a second.
pub(super) const COMPARE_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    doubted: Option<Instant>,
    told: Option<Instant>,
    heard: Option<Instant>,
}

/// The connected peers.
#[derive(Debug, Default)]
pub(super) struct Peers(BTreeMap<NodeId, Peer>);

impl Peers {
    /// Adds a peer, forgetting what an earlier connection taught.
    pub(super) fn connect(&mut self, node: NodeId) {
        self.0.insert(node, Peer::default());
    }

    /// Removes a peer.
    pub(super) fn disconnect(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// Judges whether a comparison of hashes calls for anything.
    pub(super) fn judge(&mut self, node: NodeId, is_equal: bool, now: Instant) -> Verdict {
        let Some(peer) = self.0.get_mut(&node) else { return Verdict::Agree };
        let age = peer.doubted.map(|since| now.saturating_duration_since(since));
        let (doubted, verdict) = match age {
            _ if is_equal => (None, Verdict::Agree),
            Some(age) if age < COMPARE_AFTER => (peer.doubted, Verdict::Agree),
            Some(age) if age < DOUBT_LASTS => (None, Verdict::Differ),
            Some(_) | None => (Some(now), Verdict::Doubt),
        };
        peer.doubted = doubted;
        verdict
    }

    /// Notes that the full state goes to a peer.
    pub(super) fn tell(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.0.get_mut(&node) {
            peer.doubted = None;
            peer.told = Some(now);
        }
    }

    /// Ends the doubt about a peer: its state has just come.
    pub(super) fn settle(&mut self, node: NodeId) {
        if let Some(peer) = self.0.get_mut(&node) {
            peer.doubted = None;
        }
    }

    /// Whether the full state went to a peer a moment ago.
    pub(super) fn is_told(&self, node: NodeId, now: Instant) -> bool {
        let told = self.0.get(&node).and_then(|peer| peer.told);
        told.is_some_and(|at| now.saturating_duration_since(at) < COMPARE_AFTER)
    }

    /// Notes that something came from a peer.
    pub(super) fn hear(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.0.get_mut(&node) {
            peer.heard = Some(now);
        }
    }

    /// Whether something came from the peer after a moment.
    pub(super) fn is_heard_after(&self, node: NodeId, moment: Instant) -> bool {
        self.0.get(&node).and_then(|peer| peer.heard).is_some_and(|heard| heard > moment)
    }

    /// Whether a peer is connected.
    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.0.contains_key(&node)
    }

    /// Returns all, in order of id.
    pub(super) fn iter(&self) -> impl Iterator<Item = NodeId> {
        self.0.keys().copied()
    }

    /// Returns at most `count` of those that `filter` admits, drawn at random.
    pub(super) fn some(
        &self,
        count: usize,
        rng: &mut StdRng,
        filter: impl Fn(NodeId) -> bool,
    ) -> Vec<NodeId> {
        self.iter().filter(|node| filter(*node)).sample(rng, count)
    }

    /// Returns one of those that `filter` admits, each as likely as any other. Usually `filter` admits most: it is
    /// asked about a few of a thousand peers and not about all.
    pub(super) fn one(&self, rng: &mut StdRng, filter: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let draw = |rng: &mut StdRng| self.iter().nth(rng.random_range(0..self.0.len().max(1)));
        let drawn = (0..DRAWS).filter_map(|_| draw(rng)).find(|node| filter(*node));
        drawn.or_else(|| self.some(1, rng, filter).pop())
    }
}

/// Keeps of `mine` what a peer that holds `theirs` would learn from: it ignores down members it does not know.
pub(super) fn news(mine: Vec<SwimMember>, theirs: &[SwimMember]) -> Vec<SwimMember> {
    let key = |member: &SwimMember| (member.identity, member.state == SwimState::Down);
    let known: BTreeMap<NodeId, _> =
        theirs.iter().map(|member| (member.identity.node, key(member))).collect();
    let is_news = |member: &SwimMember| match known.get(&member.identity.node) {
        Some(theirs) => *theirs != key(member),
        None => member.state != SwimState::Down,
    };
    mine.into_iter().filter(is_news).collect()
}

/// Draws before all are looked at.
const DRAWS: usize = 4;

/// A doubt older than this is a new one: hashes come from one random peer in ten seconds.
const DOUBT_LASTS: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gossamer_wire::Generation;
    use gossamer_wire::swim::Identity;
    use rand::SeedableRng;

    use super::super::tests::start;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn member(n: u8, epoch: u64, state: SwimState) -> SwimMember {
        let identity = Identity { node: node(n), generation: Generation::of_epoch(epoch) };
        SwimMember { identity, incarnation: 0, state }
    }

    fn connected() -> Peers {
        let mut peers = Peers::default();
        (1..=9).for_each(|n| peers.connect(node(n)));
        peers
    }

    #[test]
    fn one_difference_is_a_doubt_and_two_in_time_are_a_difference() {
        let (now, mut peers) = (start(), connected());
        assert_eq!(peers.judge(node(1), false, now), Verdict::Doubt);
        assert_eq!(peers.judge(node(1), false, now + SECOND / 2), Verdict::Agree);
        assert_eq!(peers.judge(node(1), false, now + 2 * SECOND), Verdict::Differ);
        assert_eq!(peers.judge(node(1), false, now + 3 * SECOND), Verdict::Doubt);
    }

    #[test]
    fn agreement_and_age_end_a_doubt() {
        let (now, mut peers) = (start(), connected());
        peers.judge(node(1), false, now);
        assert_eq!(peers.judge(node(1), true, now + SECOND), Verdict::Agree);
        assert_eq!(peers.judge(node(1), false, now + 2 * SECOND), Verdict::Doubt);
        assert_eq!(peers.judge(node(1), false, now + 60 * SECOND), Verdict::Doubt);
    }

    #[test]
    fn hashes_of_strangers_call_for_nothing() {
        let mut peers = connected();
        peers.disconnect(node(1));
        assert_eq!(peers.judge(node(1), false, start()), Verdict::Agree);
    }

    #[test]
    fn a_peer_counts_as_told_for_a_moment_of_the_same_connection() {
        let (now, mut peers) = (start(), connected());
        peers.tell(node(1), now);
        assert!(peers.is_told(node(1), now + SECOND / 2));
        assert!(!peers.is_told(node(1), now + SECOND));
        peers.connect(node(1));
        assert!(!peers.is_told(node(1), now + SECOND / 2));
    }

    #[test]
    fn a_peer_is_heard_after_what_came_before() {
        let (now, mut peers) = (start(), connected());
        assert!(!peers.is_heard_after(node(1), now));
        peers.hear(node(1), now + SECOND);
        peers.hear(node(99), now + SECOND);
        assert!(peers.is_heard_after(node(1), now) && !peers.is_heard_after(node(1), now + SECOND));
        assert!(!peers.is_heard_after(node(99), now));
    }

    #[test]
    fn some_draws_different_peers_the_filter_admits() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut drawn = connected().some(3, &mut rng, |peer| peer != node(1));
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 3);
        assert!(!drawn.contains(&node(1)));
        assert_eq!(connected().some(3, &mut rng, |peer| peer == node(2)), [node(2)]);
    }

    #[test]
    fn one_is_any_of_those_admitted_and_nobody_else() {
        let mut rng = StdRng::seed_from_u64(1);
        let peers = connected();
        let odd = |peer: NodeId| peer.as_bytes()[0] % 2 == 1;
        let drawn: BTreeSet<_> = (0..200).filter_map(|_| peers.one(&mut rng, odd)).collect();
        assert_eq!(drawn, peers.iter().filter(|peer| odd(*peer)).collect());
        assert_eq!(peers.one(&mut rng, |peer| peer == node(2)), Some(node(2)));
        assert_eq!(peers.one(&mut rng, |_| false), None);
        assert_eq!(Peers::default().one(&mut rng, |_| true), None);
    }

    #[test]
    fn news_leaves_out_what_the_peer_has_or_would_ignore() {
        let up = |n| member(n, 1, SwimState::Alive);
        let down = |n| member(n, 1, SwimState::Down);
        let mine = vec![up(1), up(2), down(3), down(4), member(5, 2, SwimState::Alive)];
        let theirs = [up(1), up(3), up(5)];
        assert_eq!(news(mine, &theirs), [up(2), down(3), member(5, 2, SwimState::Alive)]);
    }
}
