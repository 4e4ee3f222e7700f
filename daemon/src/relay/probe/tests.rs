//! Probes over a real QUIC stream and of this node's own targets.

use super::*;

use std::net::SocketAddr;
use std::sync::Arc;

use gossamer_core::select::EJECT_AFTER;

use crate::relay::tests::{
    Bench, HERE, Hops, Link, THERE, greeter, instance, local_service, named, service, service_view,
};
use crate::supervise::Stage;

fn orders() -> VipName {
    VipName::Service(service("orders"))
}

/// A calling node, and a serving one whose targets are these.
async fn pair(caller_group: &'static str) -> (Bench, Bench, Stage) {
    let (link, programs) = (Arc::new(Link::new().await), Stage::default());
    let mut caller = Bench::new(HERE, Arc::new(Hops(Some(Arc::clone(&link)))));
    let server = Bench::new(THERE, Arc::new(Hops(None)));
    server.relay.start_inbound(link.serve(&server.stage, caller_group));
    caller.set_service(service_view("orders", vec![instance("db-0", "west"), instance("db-1", "west")]));
    (caller, server, programs)
}

fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("bound")
}

#[tokio::test]
async fn a_probe_opens_a_flow_and_says_whom_it_reached() {
    let (caller, server, programs) = pair("west").await;
    let at = greeter(&programs).await;
    server.targets.set(["db-0", "db-1"].map(|name| local_service("orders", name, 5432, at)).into());
    let probed = caller.relay.probe(&orders(), &PortChoice::Only).await;
    let [only] = &probed[..] else { panic!("{probed:?}") };
    assert_eq!(only.outcome, Outcome::Open);
    let reached = only.reached.as_ref().expect("another node");
    assert!(matches!(reached.by, By::Direct(_)), "{reached:?}");
    assert!(reached.identity.ends_with("/group/west/node/peer") && reached.node == THERE, "{reached:?}");
    assert_eq!(server.relay.flow_counts().served, 1);
    assert_eq!(caller.relay.flow_counts().opened, 0, "no flow of a client");
}

#[tokio::test]
async fn instances_are_probed_until_one_has_it() {
    let (caller, server, programs) = pair("west").await;
    let alive = greeter(&programs).await;
    let offered =
        [local_service("orders", "db-0", 5432, nobody()), local_service("orders", "db-1", 5432, alive)];
    server.targets.set(offered.into());
    for _ in 0..10 {
        let probed = caller.relay.probe(&orders(), &PortChoice::Only).await;
        let last = probed.last().expect("tried");
        assert_eq!((last.instance.as_str(), &last.outcome), ("db-1", &Outcome::Open));
        assert!(probed.iter().all(|probed| probed.flow == last.flow), "one flow");
        let before = &probed[..probed.len() - 1];
        assert!(before.iter().all(|probed| probed.outcome == Outcome::Refused), "{before:?}");
    }
    // Probing is no use: nothing is held against an instance.
    assert!(caller.relay.candidates(&orders(), &PortChoice::Only).iter().all(|found| !found.is_ejected()));
}

#[tokio::test]
async fn what_the_exporter_denies_is_denied_to_a_probe() {
    let (caller, server, programs) = pair("east").await;
    let at = greeter(&programs).await;
    server.targets.set(vec![local_service("orders", "db-0", 5432, at)]);
    let probed = caller.relay.probe(&orders(), &PortChoice::Only).await;
    assert_eq!(probed.len(), 2);
    assert!(probed.iter().all(|probed| probed.outcome == Outcome::Denied), "{probed:?}");
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_named_with_the_cause() {
    let mut caller = Bench::new(HERE, Arc::new(Hops(None)));
    caller.set_service(service_view("orders", vec![instance("db-0", "west")]));
    let probed = caller.relay.probe(&orders(), &PortChoice::Only).await;
    let outcome = Outcome::Unreachable("the node cannot be reached".to_owned());
    assert_eq!((probed.len(), &probed[0].outcome, &probed[0].reached), (1, &outcome, &None));
}

#[tokio::test]
async fn an_own_target_is_dialled_by_the_same_rules() {
    let programs = Stage::default();
    let mut here = Bench::new(HERE, Arc::new(Hops(None)));
    let mut own = instance("db-0", "west");
    own.node = HERE;
    here.set_service(service_view("orders", vec![own]));
    assert_eq!(here.relay.probe(&orders(), &PortChoice::Only).await[0].outcome, Outcome::Denied);
    here.targets.set(vec![local_service("orders", "db-0", 5432, nobody())]);
    assert_eq!(here.relay.probe(&orders(), &PortChoice::Only).await[0].outcome, Outcome::Refused);
    here.targets.set(vec![local_service("orders", "db-0", 5432, greeter(&programs).await)]);
    let probed = here.relay.probe(&orders(), &PortChoice::Only).await;
    assert_eq!((&probed[0].outcome, &probed[0].reached), (&Outcome::Open, &None));
}

#[tokio::test]
async fn an_own_udp_target_is_judged_by_the_same_rules_and_sent_nothing() {
    let mut here = Bench::new(HERE, Arc::new(Hops(None)));
    let mut own = instance("db-0", "west");
    own.node = HERE;
    own.ports[0].transport = Transport::Udp;
    here.set_service(service_view("orders", vec![own]));
    let probed = async || here.relay.probe(&orders(), &PortChoice::Datagrams(5432)).await[0].outcome.clone();
    assert_eq!(probed().await, Outcome::Denied);
    let mut local = local_service("orders", "db-0", 5432, nobody());
    local.record.ports[0].transport = Transport::Udp;
    local.targets[0].transport = Transport::Udp;
    here.targets.set(vec![local.clone()]);
    assert_eq!(probed().await, Outcome::Open);
    local.targets[0].draining = true;
    here.targets.set(vec![local]);
    assert_eq!(probed().await, Outcome::Draining);
}

#[tokio::test]
async fn candidates_say_turn_load_and_ejection() {
    let (caller, _server, _programs) = pair("west").await;
    let key = (THERE, service("orders"), named("db-0"));
    for _ in 0..EJECT_AFTER {
        caller.relay.flows.failed(key.clone(), Instant::now().into_std());
    }
    let candidates = caller.relay.candidates(&orders(), &PortChoice::Only);
    let of = |name: &str| candidates.iter().find(|found| found.found.instance.as_str() == name).expect(name);
    assert_eq!((of("db-0").is_ejected(), of("db-0").turn()), (true, Some(2)));
    assert_eq!((of("db-1").is_ejected(), of("db-1").turn()), (false, Some(1)));
    assert!(
        caller.relay.candidates(&orders(), &PortChoice::Number(80)).iter().all(|found| found.port.is_none())
    );
}
