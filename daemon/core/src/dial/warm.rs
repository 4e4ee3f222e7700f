//! Which pairs of a mesh keep a connection (design section 5).
//!
//! Owns: the choice, from two ids and the number of members alone. Must not know: connections, addresses.
//! Driven by: the dial book, which dials the pairs, and membership, which probes them.
//!
//! Up to a limit all pairs are warm. Above, each node watches a fixed set: a pair is in it when the hash over both
//! ids ends in enough zero bits, so both ends agree without a word, and a newcomer changes only its own pairs. Each
//! doubling of the mesh halves the share.

use gossamer_wire::NodeId;
use gossamer_wire::limits::MAX_WARM_PEERS;
use sha2::{Digest, Sha256};

/// Which peers of a node are warm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmSet {
    limit: usize,
    bits: u32,
}

/// How far a pair goes on being warm while the mesh grows: the zero bits at the end of the hash over both ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PairRank(u32);

impl PairRank {
    /// Returns the rank of two nodes, in whatever order.
    pub fn of(one: NodeId, other: NodeId) -> Self {
        let mut hash = Sha256::new();
        hash.update(one.min(other).as_bytes());
        hash.update(one.max(other).as_bytes());
        let tail = hash.finalize().iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        Self(tail.trailing_zeros())
    }
}

impl WarmSet {
    /// Makes the set of a node that knows nobody: everybody is in it. About `limit` members are warm at most.
    pub const fn new(limit: usize) -> Self {
        Self { limit, bits: 0 }
    }

    /// Takes in how many nodes the mesh has, this one included. Whether the set has changed.
    ///
    /// Above the limit a set has 3/4 of it on average, because chance makes some larger; it grows again only when
    /// the mesh has shrunk to 5/8 of what the larger share allows, so that a few restarts do not move it.
    pub fn resize(&mut self, nodes: usize) -> bool {
        let before = self.bits;
        while self.bits < u64::BITS && nodes >> self.bits > self.most(self.bits) {
            self.bits += 1;
        }
        while self.bits > 0 && nodes >> (self.bits - 1) <= self.limit * 5 / 8 {
            self.bits -= 1;
        }
        self.bits != before
    }

    /// Whether a pair of this rank is warm.
    pub const fn holds(&self, rank: PairRank) -> bool {
        rank.0 >= self.bits
    }

    /// Whether all pairs are warm.
    pub const fn is_everybody(&self) -> bool {
        self.bits == 0
    }

    /// Returns how many warm peers are too many.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    const fn most(&self, bits: u32) -> usize {
        if bits == 0 { self.limit } else { self.limit * 3 / 4 }
    }
}

impl Default for WarmSet {
    fn default() -> Self {
        Self::new(MAX_WARM_PEERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: usize) -> NodeId {
        NodeId::of_spki(&n.to_be_bytes())
    }

    fn sized(limit: usize, nodes: usize) -> WarmSet {
        let mut set = WarmSet::new(limit);
        set.resize(nodes);
        set
    }

    #[test]
    fn up_to_the_limit_everybody_is_warm() {
        let set = sized(MAX_WARM_PEERS, MAX_WARM_PEERS);
        assert!(set.is_everybody());
        assert!((1..2_000).all(|other| set.holds(PairRank::of(node(0), node(other)))));
        assert!(!sized(MAX_WARM_PEERS, MAX_WARM_PEERS + 1).is_everybody());
    }

    #[test]
    fn both_ends_agree_and_nobody_has_more_than_the_limit() {
        for nodes in [1_100, 1_600, 3_000, 10_000] {
            let set = sized(MAX_WARM_PEERS, nodes);
            for me in 0..5 {
                let rank = |other| PairRank::of(node(me), node(other));
                let warm = (0..nodes).filter(|other| *other != me && set.holds(rank(*other))).count();
                assert!((300..=MAX_WARM_PEERS).contains(&warm), "{warm} of {nodes}");
                assert!((0..99).all(|other| rank(other) == PairRank::of(node(other), node(me))));
            }
        }
    }

    /// With few per node a mesh would fall apart.
    #[test]
    fn a_growing_mesh_keeps_a_part_of_its_pairs_and_makes_no_others() {
        let ranks: Vec<_> = (1..3_000).map(|other| PairRank::of(node(0), node(other))).collect();
        let (few, many) = (sized(1_024, 1_500), sized(1_024, 3_000));
        assert!(ranks.iter().all(|rank| few.holds(*rank) || !many.holds(*rank)));
        assert!(ranks.iter().filter(|rank| many.holds(**rank)).count() > 500);
    }

    #[test]
    fn a_few_members_more_or_less_do_not_move_the_set() {
        let mut set = sized(1_024, 1_100);
        assert!([1_000, 1_030, 900, 1_400, 641].iter().all(|nodes| !set.resize(*nodes)));
        assert!(set.resize(640) && set.is_everybody());
        assert!(!set.resize(1_024) && set.resize(1_025));
        assert!(set.resize(1_538) && !set.resize(1_400), "{set:?}");
    }
}
