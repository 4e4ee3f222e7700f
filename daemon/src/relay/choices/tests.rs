//! What wishes, drains and failures do to a flow.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gossamer_core::catalog::Nearness;
use gossamer_core::select::{Excluded, Verdict, Wisher};
use gossamer_wire::{Routing, Tier};
use tokio::io::duplex;

use super::*;
use crate::relay::tests::{Bench, HERE, Hops, instance, service, service_view};

fn bench(instances: Vec<InstanceView>) -> Bench {
    let mut bench = Bench::new(HERE, Arc::new(Hops(None)));
    bench.set_service(service_view("orders", instances));
    bench
}

fn name() -> VipName {
    VipName::Service(service("orders"))
}

fn route(bench: &Bench, routing: Routing) {
    bench.routes.store(Arc::new(Routes(BTreeMap::from([(name(), routing)]))));
}

fn chosen(bench: &Bench) -> Vec<String> {
    let choices = bench.relay.choices(&name(), &PortChoice::Only).expect("known");
    choices.iter().map(|choice| choice.instance.to_string()).collect()
}

#[tokio::test]
async fn a_route_excludes_what_is_too_far_and_says_so_at_once() {
    let mut near = instance("near", "west");
    near.in_region = true;
    let bench = bench(vec![near, instance("far", "west")]);
    route(&bench, Routing { only: Some(Tier::Region), ..Routing::default() });
    assert_eq!(chosen(&bench), ["near"]);
    route(&bench, Routing { only: Some(Tier::Node), ..Routing::default() });
    let (_program, client) = duplex(64);
    let error = bench.relay.connect(&service("orders"), None, None, PortChoice::Only, client).await;
    let expected =
        ConnectError::Excluded { name: "orders".to_owned(), only: Tier::Node, by: Wisher::Caller, count: 2 };
    assert_eq!(error, Err(expected.clone()));
    assert!(expected.to_string().contains("this node wants only = node"), "{expected}");
}

#[tokio::test]
async fn an_order_of_the_configuration_changes_who_is_first() {
    let mut zone = instance("zone", "east");
    zone.nearness = Nearness::Zone;
    let bench = bench(vec![instance("group", "west"), zone]);
    assert_eq!(chosen(&bench), ["group", "zone"]);
    route(&bench, Routing { order: vec![Tier::Zone, Tier::Any], ..Routing::default() });
    assert_eq!(chosen(&bench), ["zone", "group"]);
}

#[tokio::test]
async fn a_part_of_the_flows_begins_elsewhere_and_is_counted() {
    let mut drained = instance("drained", "west");
    (drained.state, drained.draining) = (gossamer_core::catalog::InstanceState::Drained, true);
    let mut far = instance("far", "east");
    far.nearness = Nearness::Any;
    let bench = bench(vec![instance("near", "west"), drained, far]);
    assert!((0..50).all(|_| chosen(&bench) == ["near", "far"]));
    route(&bench, Routing { spill_below: Some(100), ..Routing::default() });
    let spilled = (0..1_000).filter(|_| chosen(&bench) == ["far", "near"]).count();
    assert!((400..600).contains(&spilled), "half of 1,000 is about 500, was {spilled}");
    assert_eq!(bench.relay.counters().spilled.load(Ordering::Relaxed), spilled as u64);
}

#[tokio::test]
async fn a_name_is_explained_as_a_flow_to_it_is_treated() {
    let mut draining = instance("b", "west");
    (draining.state, draining.draining) = (gossamer_core::catalog::InstanceState::Drained, true);
    let bench = bench(vec![instance("a", "west"), draining, instance("c", "west")]);
    let key = |name: &str| (crate::relay::tests::THERE, service("orders"), name.parse().expect("name"));
    for _ in 0..3 {
        bench.relay.flows.failed(key("a"), Instant::now().into_std());
    }
    let explained = bench.relay.explain(&name(), &PortChoice::Only).expect("known");
    let verdicts: Vec<_> =
        explained.instances.iter().map(|one| (one.instance.to_string(), one.verdict)).collect();
    assert!(
        matches!(verdicts[0], (ref name, Verdict::Candidate { place: 1, .. }) if name == "c"),
        "{verdicts:?}"
    );
    assert!(
        matches!(verdicts[1], (ref name, Verdict::Ejected { place: 2, left, .. }) if name == "a" && left > Duration::ZERO),
        "{verdicts:?}"
    );
    assert_eq!(verdicts[2], ("b".to_owned(), Verdict::Excluded(Excluded::Draining)));
    assert!(bench.relay.explain(&VipName::Service(service("nothing")), &PortChoice::Only).is_none());
}
