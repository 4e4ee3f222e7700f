//! Selection: in which order the instances of a service are tried for one flow.
//!
//! Owns: the score, the draw among equals, the memory of failures. Must not know: connections, who may call.
//! Driven by: the outbound relay, once per flow and once per outcome (design section 9, ADR 28).
//!
//! [`Policy`] joins what caller and exporters wish, [`Shares`] says how much of it goes to which tier, [`order`] draws,
//! and [`explain()`] says the same in words for every instance.

mod explain;
mod policy;
mod spill;

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

pub use explain::{Excluded, Explained, Explanation, Seen, Verdict, explain, reaches, refusal};
pub use policy::{Policy, Routes, Wisher};
pub use spill::{Share, Shares, shares};

/// How good an instance is; smaller is better. The order of the fields is the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Its tier: the place in [`Policy::order`].
    pub tier: usize,
    /// Recent failures seen from here. Below `tier`, so ejection never empties a tier.
    pub ejected: bool,
    /// What decides between two drawn from one tier.
    pub load: Load,
}

/// How busy an instance looks from this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Flows from here that are open.
    pub in_flight: u32,
    /// Smoothed time to open a flow; zero while unmeasured, so that everybody is tried once.
    pub connect: Duration,
}

/// An instance to choose from.
#[derive(Clone, Debug)]
pub struct Candidate<T> {
    /// Its score.
    pub score: Score,
    /// Its share among equals; 0 takes none.
    pub weight: u16,
    /// What it is.
    pub item: T,
}

/// Returns the instances to try, best first, at most [`MAX_CANDIDATES`].
///
/// The tier a flow begins with ([`Shares::draw`]) comes first, then tier by tier; within a tier two are drawn by weight
/// and the less loaded goes first ("power of two choices": near the best choice without herding onto it).
pub fn order<T>(mut candidates: Vec<Candidate<T>>, first: Option<usize>, rng: &mut impl Rng) -> Vec<T> {
    candidates.retain(|candidate| candidate.weight > 0);
    let rank = |score: Score| (Some(score.tier) != first, score.tier, score.ejected);
    // Descending, so that the best tier is the tail.
    candidates.sort_by_key(|candidate| Reverse(rank(candidate.score)));
    let mut ordered = Vec::new();
    while let Some(last) = candidates.last()
        && ordered.len() < MAX_CANDIDATES
    {
        let best = rank(last.score);
        let start = candidates.partition_point(|candidate| rank(candidate.score) > best);
        let chosen = start + choose(candidates.get(start..).unwrap_or_default(), rng);
        ordered.push(candidates.remove(chosen).item);
    }
    ordered
}

/// Draws two different candidates by weight and returns the index of the less loaded, the first when equal.
fn choose<T>(tier: &[Candidate<T>], rng: &mut impl Rng) -> usize {
    let first = draw(tier, None, rng);
    if tier.len() == 1 {
        return first;
    }
    let second = draw(tier, Some(first), rng);
    let load = |index: usize| tier.get(index).map(|candidate| candidate.score.load);
    if load(second) < load(first) { second } else { first }
}

fn draw<T>(tier: &[Candidate<T>], skip: Option<usize>, rng: &mut impl Rng) -> usize {
    let weight = |(index, candidate): (usize, &Candidate<T>)| {
        if Some(index) == skip { 0 } else { u32::from(candidate.weight) }
    };
    let total: u32 = tier.iter().enumerate().map(weight).sum();
    let mut left = rng.random_range(0..total.max(1));
    for (index, candidate) in tier.iter().enumerate() {
        let share = weight((index, candidate));
        if left < share {
            return index;
        }
        left -= share;
    }
    0
}

/// What this node remembers about one instance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    connect: Duration,
    /// Failures since the last success.
    failures: u32,
    ejected_until: Option<Instant>,
}

impl Standing {
    /// A flow was opened in `took`. What it is worth is not known yet: its program may break it at once.
    pub fn handle_opened(&mut self, took: Duration) {
        self.connect = if self.connect.is_zero() { took } else { (self.connect * 3 + took) / 4 };
    }

    /// A flow got an answer, ended well, or has lasted for a while.
    pub const fn handle_worked(&mut self) {
        self.failures = 0;
        self.ejected_until = None;
    }

    /// A flow could not be opened, or was broken at once. From the [`EJECT_AFTER`]th time in a row the instance is ejected, longer
    /// each time.
    pub fn handle_failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if let Some(beyond) = (self.failures + 1).checked_sub(EJECT_AFTER).filter(|beyond| *beyond > 0) {
            self.ejected_until = Some(now + EJECT_FOR.saturating_mul(beyond).min(MAX_EJECTION));
        }
    }

    /// Returns whether it is ejected.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_for(now).is_some()
    }

    /// Returns how much longer it is ejected, more than nothing; `None` when it is not.
    pub fn ejected_for(&self, now: Instant) -> Option<Duration> {
        self.ejected_until?.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Returns the smoothed time to open a flow; zero while unmeasured.
    pub const fn connect(&self) -> Duration {
        self.connect
    }
}

/// Most instances tried for one flow. With 250 ms each, eight use up a good part of the time a client waits.
pub const MAX_CANDIDATES: usize = 8;

/// Failures in a row before an instance is ejected: one may be a restart, two bad luck.
pub const EJECT_AFTER: u32 = 3;

/// Length of the first ejection; membership notices a dead node in about this time anyway.
pub const EJECT_FOR: Duration = Duration::from_secs(5);

/// Longest ejection: how late a repaired instance is used again at the most.
pub const MAX_EJECTION: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[expect(
        clippy::disallowed_methods,
        reason = "where time starts does not matter, and it has no constant"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(1)
    }

    fn candidate(item: &'static str, tier: usize) -> Candidate<&'static str> {
        let score = Score { tier, ejected: false, load: Load::default() };
        Candidate { score, weight: 100, item }
    }

    #[test]
    fn nearer_instances_are_tried_before_farther_ones() {
        let all = vec![
            candidate("any", 4),
            candidate("zone", 2),
            candidate("node", 0),
            candidate("region", 3),
            candidate("group", 1),
        ];
        assert_eq!(order(all, None, &mut rng()), ["node", "group", "zone", "region", "any"]);
    }

    #[test]
    fn the_tier_a_flow_begins_with_comes_before_nearer_ones() {
        let all = vec![candidate("any", 4), candidate("group", 1), candidate("zone", 2)];
        assert_eq!(order(all, Some(2), &mut rng()), ["zone", "group", "any"]);
    }

    #[test]
    fn the_less_loaded_of_two_is_tried_first() {
        let mut busy = candidate("busy", 1);
        busy.score.load.in_flight = 5;
        let mut slow = candidate("slow", 1);
        slow.score.load.connect = Duration::from_millis(9);
        let all = vec![busy, slow];
        for seed in 0..20 {
            let mut rng = SmallRng::seed_from_u64(seed);
            assert_eq!(order(all.clone(), None, &mut rng), ["slow", "busy"]);
        }
    }

    #[test]
    fn an_ejected_instance_is_last_of_its_tier_but_before_farther_ones() {
        let mut ejected = candidate("ejected", 1);
        ejected.score.ejected = true;
        let all = vec![candidate("far", 4), ejected, candidate("well", 1)];
        assert_eq!(order(all, None, &mut rng()), ["well", "ejected", "far"]);
    }

    #[test]
    fn weights_are_shares_and_zero_takes_none() {
        let mut light = candidate("light", 1);
        light.weight = 10;
        let mut none = candidate("none", 1);
        none.weight = 0;
        let mut rng = rng();
        let mut first = 0;
        for _ in 0..1_000 {
            let all = vec![light.clone(), candidate("heavy", 1), none.clone()];
            let ordered = order(all, None, &mut rng);
            assert_eq!(ordered.len(), 2);
            first += u32::from(ordered[0] == "light");
        }
        assert!((50..150).contains(&first), "10 of 110 is about 91 of 1,000, was {first}");
    }

    #[test]
    fn equal_instances_share_the_flows() {
        let mut rng = rng();
        let all = || vec![candidate("a", 2), candidate("b", 2)];
        let first = (0..1_000).filter(|_| order(all(), None, &mut rng)[0] == "a").count();
        assert!((400..600).contains(&first), "{first}");
    }

    #[test]
    fn a_flow_tries_a_bounded_number_of_instances() {
        let all = (0..100).map(|_| candidate("x", 4)).collect();
        assert_eq!(order(all, None, &mut rng()).len(), MAX_CANDIDATES);
        assert!(order(Vec::<Candidate<()>>::new(), None, &mut rng()).is_empty());
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_forgives() {
        let start = start();
        let mut standing = Standing::default();
        for _ in 1..EJECT_AFTER {
            standing.handle_failed(start);
            assert!(!standing.is_ejected(start));
        }
        standing.handle_failed(start);
        assert!(standing.is_ejected(start));
        assert!(!standing.is_ejected(start + EJECT_FOR));
        standing.handle_opened(Duration::from_millis(1));
        assert!(standing.is_ejected(start), "its program may break the flow at once");
        standing.handle_worked();
        assert!(!standing.is_ejected(start));
        standing.handle_failed(start);
        assert!(!standing.is_ejected(start));
    }

    #[test]
    fn each_further_failure_ejects_for_longer_up_to_a_bound() {
        let start = start();
        let mut standing = Standing::default();
        for _ in 0..=EJECT_AFTER {
            standing.handle_failed(start);
        }
        assert!(standing.is_ejected(start + EJECT_FOR));
        for _ in 0..1_000 {
            standing.handle_failed(start);
        }
        assert!(standing.is_ejected(start + MAX_EJECTION - Duration::from_millis(1)));
        assert!(!standing.is_ejected(start + MAX_EJECTION));
    }

    #[test]
    fn connect_times_are_smoothed() {
        let mut standing = Standing::default();
        assert_eq!(standing.connect(), Duration::ZERO);
        standing.handle_opened(Duration::from_millis(8));
        assert_eq!(standing.connect(), Duration::from_millis(8));
        standing.handle_opened(Duration::from_millis(16));
        assert_eq!(standing.connect(), Duration::from_millis(10));
    }

    proptest! {
        #[test]
        fn tiers_never_mix_and_nobody_is_tried_twice(
            instances in proptest::collection::vec((0..5_usize, any::<bool>(), 0..9_u32, 0..3_u16), 0..12),
            seed: u64,
        ) {
            let candidates: Vec<_> = instances
                .iter()
                .enumerate()
                .map(|(item, (place, ejected, in_flight, weight))| {
                    let load = Load { in_flight: *in_flight, connect: Duration::ZERO };
                    let score = Score { tier: *place, ejected: *ejected, load };
                    Candidate { score, weight: *weight, item }
                })
                .collect();
            let ordered = order(candidates.clone(), None, &mut SmallRng::seed_from_u64(seed));
            let takers = candidates.iter().filter(|candidate| candidate.weight > 0).count();
            prop_assert_eq!(ordered.len(), takers.min(MAX_CANDIDATES));
            let tiers: Vec<_> = ordered
                .iter()
                .map(|item| (candidates[*item].score.tier, candidates[*item].score.ejected))
                .collect();
            prop_assert!(tiers.is_sorted());
            let once: std::collections::BTreeSet<_> = ordered.iter().collect();
            prop_assert_eq!(once.len(), ordered.len());
        }
    }
}
