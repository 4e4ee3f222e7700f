//! Explanation: for each instance of a service whether a flow would go there, at which place, or why not.
//!
//! Owns: the reasons. Must not know: how an instance is reached, whether it answers. Driven by: the outbound relay, which
//! tries what is not refused here, and whoever shows it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use gossamer_wire::{GroupName, InstanceName, NodeId, NodeName, Tier};

use super::policy::{Policy, Wisher};
use super::spill::{Share, shares};
use super::{Load, MAX_CANDIDATES};
use crate::catalog::{InstanceState, InstanceView, ServiceView};
use crate::vip::VipName;

/// What this node has seen of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How busy it looks.
    pub load: Load,
    /// How much longer it is ejected; `None` when it is not.
    pub ejected: Option<Duration>,
}

/// Why an instance takes no flow of a name. The first reason counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excluded {
    /// Its exporter does not let this node's group see it.
    NotVisible,
    /// The short name means the own group and imported ones.
    NotImported,
    /// The name means another group, or another instance.
    OtherName,
    /// It has no such port.
    LacksPort,
    /// It is not near enough.
    TooFar {
        /// How near it has to be.
        only: Tier,
        /// Whose wish that is.
        by: Wisher,
    },
    /// Its node is no live member.
    NodeDown,
    /// Nothing was heard of its node for a whole lease.
    LeaseOver,
    /// Its exporter's check fails.
    Failing,
    /// Its exporter drains it.
    Draining,
    /// Its weight is 0.
    WeightZero,
}

/// Whether a flow would go to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is tried at this place, from 1, when nothing is spilled and the draw among equals falls so.
    Candidate {
        /// The place.
        place: usize,
        /// Its tier, in the order that counts.
        tier: Tier,
        /// What decides between two drawn from the tier.
        load: Load,
    },
    /// The same, after the others of its tier: flows to it failed.
    Ejected {
        /// The place.
        place: usize,
        /// Its tier, in the order that counts.
        tier: Tier,
        /// How much longer.
        left: Duration,
    },
    /// It could be used, but a flow tries no more than [`MAX_CANDIDATES`].
    Beyond,
    /// It is not used.
    Excluded(Excluded),
}

/// An instance with its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The node it runs on.
    pub node: NodeId,
    /// That node's name.
    pub node_name: NodeName,
    /// That node's group.
    pub group: GroupName,
    /// The instance.
    pub instance: InstanceName,
    /// Its share among equals.
    pub weight: u16,
    /// Whether a flow would go there.
    pub verdict: Verdict,
}

/// What is known of a name on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What counts for it.
    pub policy: Policy,
    /// What part of the flows begins with which tier; tiers without instances are not named.
    pub shares: Vec<Share>,
    /// Every instance of the service: those that are tried first, in their order, then the others.
    pub instances: Vec<Explained>,
}

/// Says why an instance is not behind a name; `None` when it is.
pub fn reaches(found: &InstanceView, name: &VipName) -> Option<Excluded> {
    let is_meant = match name {
        VipName::Service(_) => true,
        VipName::Group(_, group) => found.group == *group,
        VipName::Instance(_, group, instance) => found.group == *group && found.instance == *instance,
    };
    if !is_meant {
        Some(Excluded::OtherName)
    } else if !found.visible {
        Some(Excluded::NotVisible)
    } else if matches!(name, VipName::Service(_)) && !found.imported {
        Some(Excluded::NotImported)
    } else {
        None
    }
}

/// Says why an instance behind a name, with the port that is asked for, takes no flow; `None` when it does.
pub fn refusal(found: &InstanceView, policy: &Policy) -> Option<Excluded> {
    if let Some((only, by)) = policy.excludes(found) {
        return Some(Excluded::TooFar { only, by });
    }
    match found.state {
        InstanceState::Usable => None,
        InstanceState::NodeDown => Some(Excluded::NodeDown),
        InstanceState::LeaseOver => Some(Excluded::LeaseOver),
        InstanceState::Failing => Some(Excluded::Failing),
        InstanceState::Drained if found.draining => Some(Excluded::Draining),
        InstanceState::Drained => Some(Excluded::WeightZero),
    }
}

/// Explains a name of a service: what [`super::order`] would do with it, but for the draws.
///
/// `has_port` says whether an instance has the port that is asked for, `seen` what is known of it here.
pub fn explain(
    view: &ServiceView,
    name: &VipName,
    policy: Policy,
    has_port: impl Fn(&InstanceView) -> bool,
    seen: impl Fn(&InstanceView) -> Seen,
) -> Explanation {
    let all = || view.instances.iter().chain(&view.hidden);
    let judge = |found: &InstanceView| {
        let lacks = || (!has_port(found)).then_some(Excluded::LacksPort);
        reaches(found, name).or_else(lacks).or_else(|| refusal(found, &policy))
    };
    let of_tiers = all().filter(|found| counts(judge(found)));
    let healthy = |found: &InstanceView| judge(found).is_none() && seen(found).ejected.is_none();
    let shares = shares(&policy, of_tiers.map(|found| (policy.tier(found), found.weight, healthy(found))));

    let mut usable: Vec<_> = all()
        .enumerate()
        .filter(|(_, found)| judge(found).is_none())
        .map(|(at, found)| (found, at))
        .collect();
    usable.sort_by_key(|(found, at)| {
        let seen = seen(found);
        (policy.tier(found), seen.ejected.is_some(), seen.load, *at)
    });
    let mut instances = Vec::new();
    for (before, (found, _)) in usable.iter().enumerate() {
        let (place, seen) = (before + 1, seen(found));
        let tier = policy.order().get(policy.tier(found)).copied().unwrap_or(Tier::Any);
        let verdict = match seen.ejected {
            _ if place > MAX_CANDIDATES => Verdict::Beyond,
            Some(left) => Verdict::Ejected { place, tier, left },
            None => Verdict::Candidate { place, tier, load: seen.load },
        };
        instances.push(Explained::new(found, verdict));
    }
    let used: BTreeSet<usize> = usable.iter().map(|(_, at)| *at).collect();
    let others = all().enumerate().filter(|(at, _)| !used.contains(at));
    instances.extend(
        others.filter_map(|(_, found)| Some(Explained::new(found, Verdict::Excluded(judge(found)?)))),
    );
    let shares = shares.0.into_iter().map(|(_, share)| share).collect();
    Explanation { policy, shares, instances }
}

/// Returns whether an instance counts in the weight of its tier: it is behind the name, near enough, and would take flows
/// if all were well with it.
const fn counts(excluded: Option<Excluded>) -> bool {
    match excluded {
        None
        | Some(
            Excluded::NodeDown
            | Excluded::LeaseOver
            | Excluded::Failing
            | Excluded::Draining
            | Excluded::WeightZero,
        ) => true,
        Some(
            Excluded::NotVisible
            | Excluded::NotImported
            | Excluded::OtherName
            | Excluded::LacksPort
            | Excluded::TooFar { .. },
        ) => false,
    }
}

impl Explained {
    fn new(found: &InstanceView, verdict: Verdict) -> Self {
        Self {
            node: found.node,
            node_name: found.node_name.clone(),
            group: found.group.clone(),
            instance: found.instance.clone(),
            weight: found.weight,
            verdict,
        }
    }
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotVisible => "not visible to this node's group",
            Self::NotImported => "not imported",
            Self::OtherName => "not meant by this name",
            Self::LacksPort => "lacks the port",
            Self::TooFar { only, by } => return write!(f, "excluded: {by} wants only = {only}"),
            Self::NodeDown => "its node is down",
            Self::LeaseOver => "its node was not heard of for a whole lease",
            Self::Failing => "failing its check",
            Self::Draining => "draining",
            Self::WeightZero => "weight 0",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Candidate { place, tier, load } => {
                write!(f, "{place}. of tier {tier}, {} flows open", load.in_flight)
            }
            Self::Ejected { place, tier, left } => {
                write!(f, "{place}. of tier {tier}, ejected for {:.1} s more", left.as_secs_f64())
            }
            Self::Beyond => write!(f, "not among the {MAX_CANDIDATES} that a flow tries"),
            Self::Excluded(why) => why.fmt(f),
        }
    }
}

#[cfg(test)]
pub(in crate::select) mod tests {
    use gossamer_wire::{Health, Port, Routing, Transport, Tries};

    use super::*;
    use crate::catalog::Nearness;

    pub(in crate::select) fn instance(name: &str, nearness: Nearness) -> InstanceView {
        InstanceView {
            node: NodeId::of_spki(name.as_bytes()),
            node_name: name.parse().expect("name"),
            group: "west".parse().expect("name"),
            instance: name.parse().expect("name"),
            ports: vec![Port { name: 80.into(), number: 80, transport: Transport::Tcp }],
            weight: 100,
            draining: false,
            routing: Routing::default(),
            health: Health::Passing,
            state: InstanceState::Usable,
            nearness,
            in_zone: false,
            in_region: false,
            addresses: Vec::new(),
            metadata: Vec::new(),
            tries: Tries::default(),
            visible: true,
            imported: true,
            rank: 0,
            fqdns: Vec::new(),
            stale: false,
        }
    }

    fn service(instances: Vec<InstanceView>) -> ServiceView {
        let (instances, hidden) = instances.into_iter().partition(|found| found.visible);
        ServiceView { service: "orders".parse().expect("name"), instances, hidden }
    }

    fn name() -> VipName {
        VipName::Service("orders".parse().expect("name"))
    }

    fn has_80(found: &InstanceView) -> bool {
        found.ports.iter().any(|port| port.number == 80)
    }

    fn words(view: &ServiceView, name: &VipName, routing: &Routing) -> Vec<String> {
        let policy = Policy::join(routing, view.instances.iter().map(|found| &found.routing));
        let explained = explain(view, name, policy, has_80, |_| Seen::default());
        explained.instances.iter().map(|one| format!("{}: {}", one.instance, one.verdict)).collect()
    }

    type Change = fn(&mut InstanceView);

    #[test]
    fn every_reason_has_its_words_and_the_first_one_counts() {
        let cases: [(Change, &str); 10] = [
            (|found| found.visible = false, "not visible to this node's group"),
            (|found| found.imported = false, "not imported"),
            (|found| found.ports[0].number = 81, "lacks the port"),
            (|found| found.routing.only = Some(Tier::Zone), "excluded: its exporter wants only = zone"),
            (|found| found.state = InstanceState::NodeDown, "its node is down"),
            (|found| found.state = InstanceState::LeaseOver, "its node was not heard of for a whole lease"),
            (|found| found.state = InstanceState::Failing, "failing its check"),
            (|found| (found.state, found.draining) = (InstanceState::Drained, true), "draining"),
            (|found| (found.state, found.weight) = (InstanceState::Drained, 0), "weight 0"),
            (|_| {}, "1. of tier group, 0 flows open"),
        ];
        for at in 0..cases.len() {
            // All that follow are broken as well.
            let mut found = instance("a", Nearness::Group);
            cases[at..].iter().rev().for_each(|(change, _)| change(&mut found));
            let seen = words(&service(vec![found]), &name(), &Routing::default());
            assert_eq!(seen, [format!("a: {}", cases[at].1)]);
        }
        let other = VipName::Group("orders".parse().expect("name"), "east".parse().expect("name"));
        let seen = words(&service(vec![instance("a", Nearness::Group)]), &other, &Routing::default());
        assert_eq!(seen, ["a: not meant by this name"]);
        let only = Routing { only: Some(Tier::Region), ..Routing::default() };
        let seen = words(&service(vec![instance("a", Nearness::Group)]), &name(), &only);
        assert_eq!(seen, ["a: excluded: this node wants only = region"]);
    }

    #[test]
    fn candidates_come_in_the_order_in_which_they_are_tried() {
        let mut view = service(vec![
            instance("any", Nearness::Any),
            instance("busy", Nearness::Group),
            instance("idle", Nearness::Group),
            instance("gone", Nearness::SameNode),
            instance("ill", Nearness::Group),
        ]);
        view.instances[3].state = InstanceState::NodeDown;
        let seen = |found: &InstanceView| match found.instance.as_str() {
            "busy" => Seen { load: Load { in_flight: 3, ..Load::default() }, ejected: None },
            "ill" => Seen { ejected: Some(Duration::from_millis(2_500)), ..Seen::default() },
            _ => Seen::default(),
        };
        let policy = Policy::join(&Routing::default(), []);
        let explained = explain(&view, &name(), policy, has_80, seen);
        let lines: Vec<_> =
            explained.instances.iter().map(|one| format!("{}: {}", one.instance, one.verdict)).collect();
        assert_eq!(
            lines,
            [
                "idle: 1. of tier group, 0 flows open",
                "busy: 2. of tier group, 3 flows open",
                "ill: 3. of tier group, ejected for 2.5 s more",
                "any: 4. of tier any, 0 flows open",
                "gone: its node is down",
            ]
        );
        let shares: Vec<_> =
            explained.shares.iter().map(|share| (share.tier, share.healthy, share.parts)).collect();
        assert_eq!(shares, [(Tier::Node, 0, 0), (Tier::Group, 200, 10_000), (Tier::Any, 100, 0)]);
    }

    #[test]
    fn what_comes_after_the_last_try_is_named() {
        let many = (0..10).map(|number| instance(&format!("n{number}"), Nearness::Any)).collect();
        let seen = words(&service(many), &name(), &Routing::default());
        assert_eq!(seen.len(), 10);
        assert!(seen[7].starts_with("n7: 8. of tier any"), "{seen:?}");
        assert_eq!(seen[8], "n8: not among the 8 that a flow tries");
    }
}
