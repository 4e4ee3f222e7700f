//! The delegate tree: who answers for which part of the id space.
//!
//! Owns: intervals of node ids, their parts, the choice of delegates and of the far peers that hear of ids. Must
//! not know: adverts, what is stored. Driven by: `push`, for own adverts and for those of `Frame::Spread`.
//!
//! An interval is split by id space and not by position in a list of members: two nodes whose views differ by
//! one member lose at most this member, and the nodes near its id, whose delegate sees it, reach it all the same.

use std::ops::RangeInclusive;

use gossamer_wire::NodeId;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;

/// Fewest parts an interval is split into: fewer make the tree deeper.
const MIN_PARTS: usize = 16;
/// Most parts: what one node sends at once for one change.
const MAX_PARTS: usize = 64;
/// Delegates of each part at the origin, each of which begins a tree of its own.
const TREES: usize = 2;

/// A closed interval on the ring of node ids; when `last` is below `first` it runs over the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) first: NodeId,
    pub(super) last: NodeId,
}

/// One send: the delegate, and the interval it answers for.
pub(super) type Handover = (NodeId, Interval);

impl Interval {
    /// Returns the whole ring without one node.
    pub(super) fn without(node: NodeId) -> Self {
        Self { first: moved(node, 1), last: moved(node, u128::MAX) }
    }

    #[cfg(test)]
    pub(super) fn contains(self, node: NodeId) -> bool {
        if self.first <= self.last {
            (self.first..=self.last).contains(&node)
        } else {
            node >= self.first || node <= self.last
        }
    }

    /// Returns the one or two ranges of ids it consists of, in its order.
    pub(super) fn ranges(self) -> Vec<RangeInclusive<NodeId>> {
        if self.first <= self.last {
            return vec![self.first..=self.last];
        }
        vec![self.first..=NodeId::from_bytes([255; 16]), NodeId::from_bytes([0; 16])..=self.last]
    }

    /// Returns those of some nodes in ascending order that lie inside, from `first` onwards.
    fn inside(self, nodes: &[NodeId]) -> Vec<NodeId> {
        let from_first = nodes.partition_point(|node| *node < self.first);
        let to_last = nodes.partition_point(|node| *node <= self.last);
        let part = |range| nodes.get::<std::ops::Range<usize>>(range).unwrap_or_default();
        if self.first <= self.last {
            part(from_first..to_last).to_vec()
        } else {
            [part(from_first..nodes.len()), part(0..to_last)].concat()
        }
    }
}

/// Returns what the owner of an advert sends: each part of the ring to two of its members.
///
/// The number of parts is about the square root of the number of peers, so that each delegate hands its part
/// to the members themselves: two hops, and a lost packet on one of them delays one tree of two.
pub(super) fn begin(me: NodeId, peers: &[NodeId], rng: &mut SmallRng) -> Vec<Handover> {
    let interval = Interval::without(me);
    let inside = interval.inside(peers);
    let parts = inside.len().isqrt().clamp(MIN_PARTS, MAX_PARTS).min(inside.len().div_ceil(TREES));
    hand_over(interval, &inside, parts, TREES, rng)
}

/// Returns what a delegate sends: each part of its interval to one member of those `inside`, from its first id
/// onwards, `others` left out.
pub(super) fn go_on(
    interval: Interval,
    mut inside: Vec<NodeId>,
    others: &[NodeId],
    rng: &mut SmallRng,
) -> Vec<Handover> {
    inside.retain(|node| !others.contains(node));
    // Up to the most parts each member gets its copy at once; above that another layer is needed.
    let parts = inside.len().min(MAX_PARTS);
    hand_over(interval, &inside, parts, 1, rng)
}

/// Returns the four fixed peers that hear the ids of what a node learns: far apart on the ring, so that each
/// node is named by four others of which none is its neighbour twice.
pub(super) fn far_peers(me: NodeId, peers: &[NodeId]) -> Vec<NodeId> {
    let own = peers.partition_point(|peer| *peer < me);
    let all = peers.len() + 1;
    let mut far: Vec<_> = [1, all / 2, all / 3, all - all / 5 - 1]
        .into_iter()
        .filter(|offset| offset % all != 0)
        .filter_map(|offset| {
            let at = (own + offset) % all;
            // The own place is between the peers and not one of them.
            peers.get(if at > own { at - 1 } else { at }).copied()
        })
        .collect();
    far.sort_unstable();
    far.dedup();
    far
}

fn hand_over(
    interval: Interval,
    inside: &[NodeId],
    parts: usize,
    copies: usize,
    rng: &mut SmallRng,
) -> Vec<Handover> {
    let starts: Vec<_> = (0..parts).map(|part| inside.len() * part / parts).collect();
    let mut sends = Vec::with_capacity(parts * copies);
    for (part, &start) in starts.iter().enumerate() {
        let end = starts.get(part + 1).copied().unwrap_or(inside.len());
        let Some(members) = inside.get(start..end) else { continue };
        let first = if part == 0 { Some(interval.first) } else { inside.get(start).copied() };
        let last = if end == inside.len() {
            Some(interval.last)
        } else {
            inside.get(end).map(|next| moved(*next, u128::MAX))
        };
        let Some((first, last)) = first.zip(last) else { continue };
        let mut delegates = members.to_vec();
        let (chosen, _) = delegates.partial_shuffle(rng, copies);
        sends.extend(chosen.iter().map(|delegate| (*delegate, Interval { first, last })));
    }
    sends
}

/// Returns the id so many steps further on the ring.
fn moved(node: NodeId, steps: u128) -> NodeId {
    NodeId::from_bytes(u128::from_be_bytes(*node.as_bytes()).wrapping_add(steps).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use rand::SeedableRng as _;

    use super::*;

    fn node(number: u32) -> NodeId {
        // Spread over the ring like hashes.
        let mixed = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        NodeId::from_bytes(mixed.to_be_bytes())
    }

    fn ring(count: u32) -> Vec<NodeId> {
        let mut all: Vec<_> = (1..=count).map(node).collect();
        all.sort_unstable();
        all
    }

    fn peers_of(me: NodeId, all: &[NodeId]) -> Vec<NodeId> {
        all.iter().copied().filter(|peer| *peer != me).collect()
    }

    /// Runs both trees without loss, passing on all that comes; returns copies by node and the deepest hop.
    fn run(all: &[NodeId], me: NodeId, dead: &BTreeSet<NodeId>) -> (BTreeMap<NodeId, usize>, usize) {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut copies = BTreeMap::new();
        let begun = begin(me, &peers_of(me, all), &mut rng);
        let mut wave: Vec<_> = begun.into_iter().map(|send| (me, send)).collect();
        let mut hops = 0;
        while !wave.is_empty() {
            hops += 1;
            let mut next = Vec::new();
            for (from, (at, interval)) in wave {
                *copies.entry(at).or_default() += 1;
                if !dead.contains(&at) {
                    let sends = go_on(interval, interval.inside(&peers_of(at, all)), &[me, from], &mut rng);
                    next.extend(sends.into_iter().map(|send| (at, send)));
                }
            }
            wave = next;
        }
        (copies, hops)
    }

    #[test]
    fn two_trees_of_two_hops_give_every_node_two_copies() {
        for count in [2, 3, 16, 40, 257, 1_000] {
            let all = ring(count);
            let (copies, hops) = run(&all, all[0], &BTreeSet::new());
            assert_eq!(copies.len(), all.len() - 1, "{count} nodes: everybody is reached");
            let sum: usize = copies.values().sum();
            assert!(sum <= 2 * (all.len() - 1), "{count} nodes: {sum} copies");
            assert!(copies.values().all(|copies| *copies <= 2) && !copies.contains_key(&all[0]));
            assert!(hops <= 2, "{count} nodes: {hops} hops");
        }
    }

    #[test]
    fn a_dead_delegate_leaves_its_part_to_the_other_one() {
        let all = ring(400);
        let dead: BTreeSet<_> = all.iter().copied().skip(5).step_by(40).collect();
        let (copies, _) = run(&all, all[0], &dead);
        let missed = all.iter().skip(1).filter(|node| !copies.contains_key(node)).count();
        assert_eq!(missed, 0);
    }

    #[test]
    fn the_parts_of_an_interval_cover_it_and_do_not_overlap() {
        let mut rng = SmallRng::seed_from_u64(1);
        let all = ring(100);
        let parts = begin(all[7], &peers_of(all[7], &all), &mut rng);
        for &member in all.iter().filter(|member| **member != all[7]) {
            let answering: Vec<_> = parts.iter().filter(|(_, part)| part.contains(member)).collect();
            assert_eq!(answering.len(), TREES);
            assert_ne!(answering[0].0, answering[1].0);
            assert_eq!(answering[0].1, answering[1].1);
        }
        // An id that nobody here knows has a delegate too.
        assert_eq!(parts.iter().filter(|(_, part)| part.contains(node(5_000))).count(), TREES);
    }

    #[test]
    fn an_interval_over_the_end_of_the_ring_is_whole() {
        let all = ring(10);
        let interval = Interval { first: all[8], last: all[1] };
        assert_eq!(interval.inside(&all), [all[8], all[9], all[0], all[1]]);
        assert!(interval.contains(all[9]) && interval.contains(all[0]) && !interval.contains(all[4]));
        assert_eq!(Interval { first: all[2], last: all[4] }.inside(&all), all[2..=4]);
        assert_eq!(Interval::without(all[3]).inside(&all).len(), 9);
    }

    #[test]
    fn a_delegate_that_is_alone_in_its_interval_sends_nothing() {
        let mut rng = SmallRng::seed_from_u64(1);
        let all = ring(10);
        let own = Interval { first: all[3], last: all[3] };
        assert_eq!(go_on(own, own.inside(&peers_of(all[3], &all)), &[], &mut rng), []);
        assert_eq!(begin(all[0], &[], &mut rng), []);
    }

    #[test]
    fn everybody_is_a_far_peer_of_four_others() {
        let all = ring(50);
        let mut named: BTreeMap<NodeId, usize> = BTreeMap::new();
        for &me in &all {
            let far = far_peers(me, &peers_of(me, &all));
            assert!(far.len() == 4 && !far.contains(&me));
            far.into_iter().for_each(|peer| *named.entry(peer).or_default() += 1);
        }
        assert!(all.iter().all(|node| named[node] == 4));
        assert_eq!(far_peers(all[0], &all[1..2]), [all[1]]);
        assert!(far_peers(all[0], &[]).is_empty());
    }
}
