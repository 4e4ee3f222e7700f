//! Policy: what counts for one name when caller and exporters wish different things.
//!
//! Owns: the joining, by which the stricter wish wins (ADR 28). Must not know: load, failures, connections.
//! Driven by: `select`, for each flow; the configuration, which fills [`Routes`].
//!
//! Stricter is what keeps flows nearer. `only`: an instance has to satisfy the caller's and that of its own exporter.
//! `order`: the one with more tiers; of equally many the caller's, of exporters' the first in the order of [`Tier`].
//! `spill_below`: the lowest. `transport`: to an instance, if the caller or its exporter wants one. Who wishes nothing has no say.

use std::collections::BTreeMap;
use std::fmt;

use gossamer_wire::{Carrier, Routing, Tier};

use crate::catalog::InstanceView;
use crate::vip::VipName;

/// The routes of a caller's configuration: wishes by name, `SERVICE` or `SERVICE.GROUP`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes(pub BTreeMap<VipName, Routing>);

impl Routes {
    /// Returns the wishes about a name: those of `SERVICE.GROUP` before those of `SERVICE`, none joined. An instance's
    /// name has those of its group.
    pub fn of(&self, name: &VipName) -> Routing {
        let of_group = match name {
            VipName::Service(_) => None,
            VipName::Group(service, group) | VipName::Instance(service, group, _) => {
                self.0.get(&VipName::Group(service.clone(), group.clone()))
            }
        };
        let found = of_group.or_else(|| self.0.get(&VipName::Service(name.service().clone())));
        found.cloned().unwrap_or_default()
    }
}

/// Whose wish it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wisher {
    /// Of this node's configuration.
    Caller,
    /// Of the instance's exporter.
    Exporter,
}

impl fmt::Display for Wisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Caller => "this node",
            Self::Exporter => "its exporter",
        })
    }
}

/// What counts for one name on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    order: Vec<Tier>,
    only: Option<Tier>,
    spill_below: Option<u8>,
    carrier: Option<Carrier>,
}

impl Policy {
    /// Joins the caller's wishes with those of the exporters behind a name.
    pub fn join<'a>(caller: &Routing, exporters: impl IntoIterator<Item = &'a Routing>) -> Self {
        let (mut theirs, mut spill_below): (&[Tier], _) = (&[], caller.spill_below);
        for wish in exporters {
            let stricter = (wish.order.len(), theirs) > (theirs.len(), &wish.order[..]);
            if stricter {
                theirs = &wish.order;
            }
            spill_below = spill_below.into_iter().chain(wish.spill_below).min();
        }
        let mut order = if theirs.len() > caller.order.len() { theirs } else { &caller.order[..] }.to_vec();
        if order.is_empty() {
            order.extend(Tier::ALL);
        }
        if order.last() != Some(&Tier::Any) {
            order.push(Tier::Any);
        }
        Self { order, only: caller.only, spill_below, carrier: caller.carrier }
    }

    /// Returns the tiers in the order of use; the last is `any`.
    pub fn order(&self) -> &[Tier] {
        &self.order
    }

    /// Returns how near an instance has to be by this node's wish.
    pub const fn only(&self) -> Option<Tier> {
        self.only
    }

    /// Returns the percentage below which flows are spilled; `None` for never.
    pub const fn spill_below(&self) -> Option<u8> {
        self.spill_below
    }

    /// Returns what has to carry flows to an instance: it is wished by this node or by the exporter.
    pub fn carrier(&self, found: &InstanceView) -> Option<Carrier> {
        self.carrier.or(found.routing.carrier)
    }

    /// Returns the tier of an instance, a place in [`Self::order`]: the first one that holds it.
    pub fn tier(&self, found: &InstanceView) -> usize {
        let last = self.order.len().saturating_sub(1);
        self.order.iter().position(|tier| found.is_within(*tier)).unwrap_or(last)
    }

    /// Returns the wish that keeps an instance out, and whose it is.
    pub fn excludes(&self, found: &InstanceView) -> Option<(Tier, Wisher)> {
        let wishes = [(self.only, Wisher::Caller), (found.routing.only, Wisher::Exporter)];
        let mut broken = wishes.into_iter().filter_map(|(only, side)| Some((only?, side)));
        broken.find(|(only, _)| !found.is_within(*only))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

    use super::super::explain::tests::instance;
    use super::*;
    use crate::catalog::Nearness;

    fn ordered(order: &[Tier]) -> Routing {
        Routing { order: order.to_vec(), ..Routing::default() }
    }

    fn spilling(percentage: u8) -> Routing {
        Routing { spill_below: Some(percentage), ..Routing::default() }
    }

    #[test]
    fn without_wishes_the_default_order_counts() {
        let policy = Policy::join(&Routing::default(), [&Routing::default()]);
        assert_eq!((policy.order(), policy.only(), policy.spill_below()), (&Tier::ALL[..], None, None));
    }

    #[test]
    fn the_order_with_more_tiers_counts_and_of_equals_the_callers() {
        use Tier::{Any, Group, Region, Zone};
        let (fine, coarse) = (ordered(&[Zone, Region, Any]), ordered(&[Group, Any]));
        assert_eq!(Policy::join(&coarse, [&fine]).order(), [Zone, Region, Any]);
        assert_eq!(Policy::join(&fine, [&coarse]).order(), [Zone, Region, Any]);
        assert_eq!(Policy::join(&ordered(&[Region, Any]), [&coarse]).order(), [Region, Any]);
        assert_eq!(Policy::join(&Routing::default(), [&coarse]).order(), [Group, Any]);
        // Exporters that differ: the same on every node, whatever order their records come in.
        let other = ordered(&[Zone, Any]);
        for both in [[&coarse, &other], [&other, &coarse]] {
            assert_eq!(Policy::join(&Routing::default(), both).order(), [Group, Any]);
        }
        assert_eq!(Policy::join(&ordered(&[Zone]), []).order(), [Zone, Any], "any is meant at the end");
    }

    #[test]
    fn the_lowest_percentage_counts_and_none_is_no_wish() {
        assert_eq!(Policy::join(&spilling(70), [&spilling(50), &spilling(90)]).spill_below(), Some(50));
        assert_eq!(Policy::join(&spilling(0), [&spilling(90)]).spill_below(), Some(0));
        assert_eq!(Policy::join(&Routing::default(), [&spilling(90)]).spill_below(), Some(90));
    }

    #[test]
    fn an_instance_has_to_satisfy_both_sides() {
        let only = |tier| Routing { only: Some(tier), ..Routing::default() };
        let policy = Policy::join(&only(Tier::Region), []);
        let mut found = instance("a", Nearness::Group);
        assert_eq!(
            policy.excludes(&found),
            Some((Tier::Region, Wisher::Caller)),
            "of the group, in another region"
        );
        found.in_region = true;
        assert_eq!(policy.excludes(&found), None);
        found.routing.carrier = Some(Carrier::Tls);
        assert_eq!(Policy::join(&Routing::default(), []).carrier(&found), Some(Carrier::Tls));
        found.routing = Routing::default();
        assert_eq!(Policy::join(&Routing::default(), []).carrier(&found), None);
        let tls = Routing { carrier: Some(Carrier::Tls), ..Routing::default() };
        assert_eq!(Policy::join(&tls, []).carrier(&found), Some(Carrier::Tls));
        found.routing = only(Tier::Zone);
        assert_eq!(policy.excludes(&found), Some((Tier::Zone, Wisher::Exporter)));
        found.in_zone = true;
        assert_eq!(policy.excludes(&found), None);
    }

    #[test]
    fn an_instance_belongs_to_the_first_tier_that_holds_it() {
        let policy = Policy::join(&ordered(&[Tier::Region, Tier::Group]), []);
        let mut found = instance("a", Nearness::Group);
        assert_eq!(policy.tier(&found), 1);
        found.in_region = true;
        assert_eq!(policy.tier(&found), 0);
        assert_eq!(policy.tier(&instance("b", Nearness::Any)), 2);
        assert_eq!(policy.tier(&instance("c", Nearness::SameNode)), 0);
    }

    #[test]
    fn a_route_of_the_group_comes_before_that_of_the_service() {
        let name = |text: &str| match text.split_once('.') {
            Some((service, group)) => {
                VipName::Group(service.parse().expect("name"), group.parse().expect("name"))
            }
            None => VipName::Service(text.parse().expect("name")),
        };
        let all = [(name("orders"), spilling(1)), (name("orders.west"), spilling(2))];
        let routes = Routes(all.into());
        assert_eq!(routes.of(&name("orders")), spilling(1));
        assert_eq!(routes.of(&name("orders.west")), spilling(2));
        assert_eq!(routes.of(&name("orders.east")), spilling(1));
        assert_eq!(routes.of(&name("web")), Routing::default());
        let one = VipName::Instance(
            "orders".parse().expect("name"),
            "west".parse().expect("name"),
            "db-0".parse().expect("name"),
        );
        assert_eq!(routes.of(&one), spilling(2));
    }

    fn wish() -> impl Strategy<Value = Routing> {
        let tiers = proptest::sample::subsequence(Tier::ALL.to_vec(), 0..=5);
        (tiers, proptest::option::of(0..=100_u8)).prop_map(|(order, spill_below)| Routing {
            order,
            spill_below,
            ..Routing::default()
        })
    }

    proptest! {
        #[test]
        fn no_order_of_exporters_changes_what_counts(
            caller in wish(),
            mut exporters in proptest::collection::vec(wish(), 0..5),
        ) {
            let policy = Policy::join(&caller, &exporters);
            exporters.reverse();
            prop_assert_eq!(&policy, &Policy::join(&caller, &exporters));
            prop_assert_eq!(policy.order().last(), Some(&Tier::Any));
            for wish in exporters.iter().chain([&caller]) {
                prop_assert!(policy.order().len() >= wish.order.len());
                prop_assert!(wish.spill_below.is_none_or(|most| policy.spill_below() <= Some(most)));
            }
        }
    }
}
