//! Spill: which part of the flows goes to which tier when a part of a tier is not healthy.
//!
//! Owns: the formula. Must not know: instances, why one is not healthy. Driven by: `select`, once per flow.
//!
//! With `p` the percentage of `spill_below` and `h` the healthy part of a tier's weight, the tier has room for
//! `min(1, h / p)` of all flows. Tiers are filled in their order; what no tier has room for is spread over all in
//! proportion (Envoy's overprovisioning factor is `100 / p`). Without a percentage a tier with one healthy instance has
//! room for everything.

use gossamer_wire::Tier;
use rand::{Rng, RngExt};

use super::policy::Policy;

/// The part of the flows that begins with one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The tier.
    pub tier: Tier,
    /// Weight of its instances, usable or not.
    pub weight: u64,
    /// Weight of those that are usable and not ejected.
    pub healthy: u64,
    /// Of 10,000 flows, those that begin here.
    pub parts: u32,
}

/// What part of the flows begins with which tier, in the order of the policy; tiers without weight have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares(pub Vec<(usize, Share)>);

/// Parts of the whole.
const WHOLE: u64 = 10_000;

/// Judges the tiers of a service. Each instance is given by its tier, a place in the policy's order, its weight, and
/// whether it is healthy.
pub fn shares(policy: &Policy, instances: impl IntoIterator<Item = (usize, u16, bool)>) -> Shares {
    let mut tiers: Vec<(u64, u64)> = vec![(0, 0); policy.order().len()];
    for (tier, weight, is_healthy) in instances {
        if let Some((all, healthy)) = tiers.get_mut(tier) {
            *all += u64::from(weight);
            *healthy += if is_healthy { u64::from(weight) } else { 0 };
        }
    }
    let room = |(all, healthy): (u64, u64)| match policy.spill_below() {
        _ if all == 0 || healthy == 0 => 0,
        // 0 % is never undercut.
        None | Some(0) => WHOLE,
        Some(percentage) => (healthy * WHOLE * 100 / (all * u64::from(percentage))).min(WHOLE),
    };
    let mut left = WHOLE;
    let mut filled = Vec::with_capacity(tiers.len());
    for tier in &tiers {
        let taken = room(*tier).min(left);
        left -= taken;
        filled.push(taken);
    }
    let all_parts = WHOLE - left;
    let mut shares = Vec::new();
    for (place, tier) in policy.order().iter().enumerate() {
        let (weight, healthy) = tiers.get(place).copied().unwrap_or_default();
        let taken = filled.get(place).copied().unwrap_or_default();
        let parts = u32::try_from((taken * WHOLE).checked_div(all_parts).unwrap_or(0)).unwrap_or(0);
        if weight > 0 {
            shares.push((place, Share { tier: *tier, weight, healthy, parts }));
        }
    }
    Shares(shares)
}

impl Shares {
    /// Draws the tier a flow begins with; `None` when nothing is healthy, where the order alone decides.
    pub fn draw(&self, rng: &mut impl Rng) -> Option<usize> {
        let total: u32 = self.0.iter().map(|(_, share)| share.parts).sum();
        if total == 0 {
            return None;
        }
        let mut left = rng.random_range(0..total);
        for (place, share) in &self.0 {
            if left < share.parts {
                return Some(*place);
            }
            left -= share.parts;
        }
        None
    }

    /// Returns the first tier, in the order, that has a healthy instance: where flows begin that are not spilled.
    pub fn first(&self) -> Option<usize> {
        self.0.iter().find(|(_, share)| share.healthy > 0).map(|(place, _)| *place)
    }
}

#[cfg(test)]
mod tests {
    use gossamer_wire::Routing;
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn policy(spill_below: Option<u8>) -> Policy {
        let routing = Routing { spill_below, ..Routing::default() };
        Policy::join(&routing, [])
    }

    fn parts(spill_below: Option<u8>, instances: &[(usize, u16, bool)]) -> Vec<(usize, u32)> {
        let all = shares(&policy(spill_below), instances.iter().copied());
        all.0.into_iter().map(|(place, share)| (place, share.parts)).collect()
    }

    #[test]
    fn without_a_percentage_one_healthy_instance_holds_its_tier() {
        let tier = [(1, 100, true), (1, 900, false), (2, 100, true)];
        assert_eq!(parts(None, &tier), [(1, 10_000), (2, 0)]);
        assert_eq!(parts(Some(0), &tier), [(1, 10_000), (2, 0)]);
        assert_eq!(parts(None, &[(1, 100, false), (2, 100, true)]), [(1, 0), (2, 10_000)]);
    }

    #[test]
    fn a_tier_keeps_what_its_healthy_part_is_of_the_percentage() {
        let half = [(1, 100, true), (1, 100, false), (4, 100, true)];
        assert_eq!(parts(Some(100), &half), [(1, 5_000), (4, 5_000)]);
        assert_eq!(parts(Some(80), &half), [(1, 6_250), (4, 3_750)]);
        assert_eq!(parts(Some(50), &half), [(1, 10_000), (4, 0)], "not below");
        // By weight and not by number.
        let light = [(1, 300, true), (1, 100, false), (4, 100, true)];
        assert_eq!(parts(Some(100), &light), [(1, 7_500), (4, 2_500)]);
    }

    #[test]
    fn what_nobody_has_room_for_is_spread_in_proportion() {
        let all = [(1, 100, true), (1, 300, false), (4, 100, true), (4, 300, false)];
        assert_eq!(parts(Some(100), &all), [(1, 5_000), (4, 5_000)]);
        assert_eq!(parts(Some(100), &[(1, 100, false)]), [(1, 0)]);
    }

    #[test]
    fn an_instance_of_weight_zero_says_nothing_of_its_tier() {
        assert_eq!(parts(Some(100), &[(1, 100, true), (1, 0, false)]), [(1, 10_000)]);
        assert_eq!(parts(Some(100), &[(1, 0, true)]), []);
    }

    proptest! {
        #[test]
        fn the_share_that_is_drawn_is_the_one_of_the_formula(
            tiers in proptest::collection::vec((0..6_u16, 1..6_u16), 1..=5),
            percentage in 1..=100_u8,
            seed: u64,
        ) {
            let instances: Vec<_> = tiers
                .iter()
                .enumerate()
                .flat_map(|(tier, (healthy, all))| {
                    (0..(*all).max(*healthy)).map(move |number| (tier, 10, number < *healthy))
                })
                .collect();
            let all = shares(&policy(Some(percentage)), instances);
            let sum: u32 = all.0.iter().map(|(_, share)| share.parts).sum();
            let has_healthy = tiers.iter().any(|(healthy, _)| *healthy > 0);
            // Rounding loses less than one part for each tier.
            let is_whole = (9_995..=10_000).contains(&sum);
            prop_assert_eq!((is_whole, sum == 0), (has_healthy, !has_healthy));
            let mut left = 1.0_f64;
            let rooms: Vec<f64> = tiers.iter().map(|(healthy, all)| {
                let part = f64::from(*healthy) / f64::from((*all).max(*healthy));
                let taken = (part * 100.0 / f64::from(percentage)).min(1.0).min(left);
                left -= taken;
                taken
            }).collect();
            let filled: f64 = rooms.iter().sum();
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut drawn = [0_u32; 5];
            for _ in 0..4_000 {
                match all.draw(&mut rng) {
                    Some(tier) => drawn[tier] += 1,
                    None => prop_assert!(!has_healthy),
                }
            }
            for (tier, room) in rooms.iter().enumerate().filter(|_| has_healthy) {
                let (expected, seen) = (room / filled, f64::from(drawn[tier]) / 4_000.0);
                prop_assert!((expected - seen).abs() < 0.05, "tier {tier}: {seen} of {expected}");
            }
            prop_assert_eq!(all.first(), tiers.iter().position(|(healthy, _)| *healthy > 0));
        }
    }
}
