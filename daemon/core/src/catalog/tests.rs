use std::time::{Duration, Instant};

use gossamer_wire::advert::{Advert, Fragment, Head, Kind};
use gossamer_wire::frame::AdvertCopy;
use gossamer_wire::limits::{ADVERT_BURST, FORGET_AFTER, HEAD_REFRESH, LEASE, MAX_HELD, OFFER_UNTIL};
use gossamer_wire::token::Claims;
use gossamer_wire::{Health, Visibility};
use rcgen::CustomExtension;

use super::*;
use crate::trust::CLAIMS_OID;
use crate::trust::tests::{Authority, Key as NodeKey, WALL, leaf_params};

mod bad;
mod hostile;
mod model;
mod net;
mod time;
mod tree;

use net::{Net, Sim};
pub(in crate::catalog) use net::{name, record};

const SECOND: Duration = Duration::from_secs(1);

/// Any moment to start from.
#[expect(clippy::disallowed_methods, reason = "where time starts does not matter, and it has no constant")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

fn states(net: &Net, at: usize, service: &str) -> Vec<InstanceState> {
    let view = net.view(at, service).expect("the service is known");
    view.instances.iter().map(|instance| instance.state).collect()
}

#[test]
fn one_push_shows_a_service_on_every_node() {
    let mut net = Net::mesh(&["west"; 5]);
    let before = net.sent("adverts");
    net.publish(0, &["orders"]);
    net.run();
    for at in 0..5 {
        assert_eq!(net.usable(at, "orders"), [0]);
        assert!(net.nodes[at].changed.contains(&name("orders")));
    }
    assert_eq!(net.sent("adverts") - before, 4, "one frame to each peer");
    let roots: BTreeSet<_> = net.nodes.iter().map(|sim| sim.catalog.root_hash()).collect();
    assert_eq!(roots.len(), 1);
}

#[test]
fn r3_a_withdrawn_record_is_gone_everywhere_and_others_stay() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders", "web"]);
    net.run();
    net.publish(0, &["web"]);
    net.run();
    for at in 0..3 {
        assert_eq!(net.view(at, "orders"), None);
        assert_eq!(net.usable(at, "web"), [0]);
        assert_eq!(net.nodes[at].catalog.services().collect::<Vec<_>>(), [&name::<ServiceName>("web")]);
    }
    let gone = CatalogEvent::Withdrawn { service: name("orders"), instance: name("n0"), node: net.id(0) };
    assert!(net.nodes[2].events.contains(&gone));
}

#[test]
fn a_change_of_health_or_weight_changes_the_state() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    let mut changed = record("orders", "n0");
    changed.health = Health::Failing;
    net.publish_records(0, vec![changed.clone()]);
    net.run();
    assert_eq!(states(&net, 1, "orders"), [InstanceState::Failing]);
    (changed.health, changed.weight) = (Health::Passing, 0);
    net.publish_records(0, vec![changed]);
    net.run();
    assert_eq!(states(&net, 1, "orders"), [InstanceState::Drained]);
}

#[test]
fn nothing_is_published_before_the_card_and_the_first_set() {
    let mut net = Net::new(&["west"; 2]);
    net.link(0, 1);
    net.run();
    // Cards only: a head without records would withdraw what an earlier epoch published.
    assert_eq!(net.counters(1).adverts, 2);
    net.publish(0, &["orders"]);
    net.run();
    assert_eq!(net.usable(1, "orders"), [0]);
}

#[test]
fn the_same_set_again_publishes_nothing() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    let before = net.sent("adverts");
    net.publish(0, &["orders"]);
    let card = net.nodes[0].card.clone();
    net.handle(0, Input::Card(card));
    net.run();
    assert_eq!(net.sent("adverts"), before);
}

#[test]
fn a_restart_under_the_next_epoch_never_blinks() {
    let mut net = Net::mesh(&["west"; 2]);
    // Ten records of some 300 bytes stand in several fragments.
    let records: Vec<_> = (0..10)
        .map(|number| {
            let mut record = record(&format!("svc{number}"), "n0");
            record.metadata = (0..3).map(|key| (format!("k{key}"), "v".repeat(80))).collect();
            record
        })
        .collect();
    net.publish_records(0, records);
    net.run();
    assert!(net.counters(1).adverts > 6);
    net.nodes[1].events.clear();
    net.restart(0, true);
    loop {
        for number in 0..10 {
            assert_eq!(net.usable(1, &format!("svc{number}")), [0]);
        }
        if !net.step() {
            break;
        }
    }
    let blinked = |event: &CatalogEvent| matches!(event, CatalogEvent::Withdrawn { .. });
    assert!(!net.nodes[1].events.iter().any(blinked));
    assert_eq!(net.nodes[1].catalog.node(net.id(0), net.now).expect("known").epoch, 2);
    assert_eq!(net.nodes[0].catalog.root_hash(), net.nodes[1].catalog.root_hash());
}

#[test]
fn what_a_restarted_node_does_not_publish_again_is_gone() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders", "web"]);
    net.run();
    net.nodes[0].records = vec![record("web", "n0")];
    net.restart(0, true);
    net.run();
    assert_eq!(net.view(1, "orders"), None);
    assert_eq!(net.usable(1, "web"), [0]);
}

#[test]
fn old_fragments_count_ten_seconds_after_a_newer_head_at_the_most() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    net.cut(0, 1);
    let head = Head { n: 1, lease_seconds: 3_600, statement_digest: [0; 16] };
    let newer = net.forge(0, Kind::Head, 0, (2, 1), &head.encode().expect("fits"));
    net.give(0, 1, 0, newer.bytes());
    assert_eq!(net.usable(1, "orders"), [0]);
    net.pass(Duration::from_secs(9));
    assert_eq!(net.usable(1, "orders"), [0]);
    net.pass(SECOND * 2);
    assert_eq!(net.view(1, "orders"), None);
    let shorter = net.forge(0, Kind::Head, 0, (3, 1), &Head { n: 0, ..head }.encode().expect("fits"));
    let body = Fragment::of(&[record("web", "n0")]).expect("fits").encode().expect("fits");
    let fragment = net.forge(0, Kind::Records, 0, (2, 2), &body);
    net.give(0, 1, 0, fragment.bytes());
    assert_eq!(net.usable(1, "web"), [0]);
    net.give(0, 1, 0, shorter.bytes());
    assert_eq!(net.view(1, "web"), None, "beyond the newer head's count at once");
    net.give(0, 1, 0, fragment.bytes());
    assert_eq!(net.view(1, "web"), None, "and it does not come back");
}

#[test]
fn of_one_record_in_two_fragments_the_lower_counts() {
    let mut net = Net::mesh(&["west"; 2]);
    let body = |weight| {
        let mut record = record("orders", "n0");
        record.weight = weight;
        Fragment::of(&[record]).expect("fits").encode().expect("fits")
    };
    for (k, seq, weight) in [(3, 50, 3), (1, 51, 1), (2, 52, 2)] {
        let advert = net.forge(0, Kind::Records, k, (1, seq), &body(weight));
        net.give(0, 1, 0, advert.bytes());
    }
    let view = net.view(1, "orders").expect("known");
    assert_eq!(view.instances.iter().map(|instance| instance.weight).collect::<Vec<_>>(), [1]);
}

#[test]
fn visibility_is_by_the_exporters_word() {
    let mut net = Net::mesh(&["a", "a", "b", "c"]);
    let mut own = record("own", "n0");
    own.visibility = Visibility::Own;
    let mut to_b = record("to-b", "n0");
    to_b.visibility = Visibility::Groups(vec![name("b")]);
    net.publish_records(0, vec![own, to_b, record("to-all", "n0")]);
    net.run();
    let visible = |at: usize, service: &str| {
        let view = net.view(at, service).expect("everybody holds every record");
        assert_eq!(view.instances.len() + view.hidden.len(), 1);
        assert!(view.instances.iter().all(|i| i.visible) && view.hidden.iter().all(|i| !i.visible));
        !view.instances.is_empty()
    };
    assert_eq!([0, 1, 2, 3].map(|at| visible(at, "own")), [true, true, false, false]);
    assert_eq!([0, 1, 2, 3].map(|at| visible(at, "to-b")), [true, true, true, false]);
    assert_eq!([0, 1, 2, 3].map(|at| visible(at, "to-all")), [true; 4]);
}

#[test]
fn the_short_name_stands_for_the_own_group_and_what_is_imported() {
    let mut net = Net::mesh(&["a", "b", "a"]);
    net.publish(0, &["orders", "web"]);
    net.run();
    let imported = |net: &Net, at, service| net.view(at, service).expect("known").instances[0].imported;
    assert!(imported(&net, 2, "orders"));
    assert!(!imported(&net, 1, "orders"));
    net.nodes[1].changed.clear();
    net.handle(1, Input::Imports(Imports(vec!["orders@a".parse().expect("pattern")])));
    assert!(imported(&net, 1, "orders") && !imported(&net, 1, "web"));
    assert!(net.nodes[1].changed.contains(&name("orders")));
}

#[test]
fn instances_come_nearest_first() {
    let mut net = Net::new(&["a", "a", "b", "b", "b", "a"]);
    let places = [("z1", "r1"), ("z9", "r9"), ("z1", "r1"), ("z2", "r1"), ("z1", "r2"), ("z1", "r1")];
    for (at, (zone, region)) in places.into_iter().enumerate() {
        let card =
            CardContent { zone: Some(name(zone)), region: Some(name(region)), ..net.nodes[at].card.clone() };
        net.handle(at, Input::Card(card));
        net.publish(at, &["orders"]);
    }
    net.nodes[5].config.zone = Some(name("z1"));
    net.nodes[5].config.region = Some(name("r1"));
    net.restart(5, true);
    (0..5).for_each(|at| net.link(at, 5));
    net.run();
    let view = net.view(5, "orders").expect("known");
    let near: Vec<_> = view.instances.iter().map(|i| (i.nearness, net.at(i.node))).collect();
    assert_eq!(near[0], (Nearness::SameNode, 5));
    assert_eq!(near[1..3].iter().map(|(near, _)| *near).collect::<Vec<_>>(), [Nearness::Group; 2]);
    assert_eq!(near[3..], [(Nearness::Zone, 2), (Nearness::Region, 3), (Nearness::Any, 4)]);
}

#[test]
fn one_cut_link_is_bridged_at_once() {
    let mut net = Net::mesh(&["west"; 4]);
    net.cut(0, 3);
    let before = (net.sent("ids"), net.counters(1).duplicates);
    net.publish(0, &["orders"]);
    net.run();
    assert_eq!(net.usable(3, "orders"), [0]);
    net.publish(0, &[]);
    net.run();
    assert_eq!(net.view(3, "orders"), None);
    assert_eq!((net.sent("ids"), net.counters(1).duplicates), before, "no repair, no flood");
}

#[test]
fn r3_two_halves_that_meet_again_become_equal_withdrawals_included() {
    let mut net = Net::mesh(&["west"; 4]);
    for at in 0..4 {
        net.publish(at, &["common", &format!("svc{at}")]);
    }
    net.run();
    for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        net.part(a, b);
    }
    net.publish(0, &["common", "new0"]);
    net.publish(3, &["common", "new3"]);
    net.pass(Duration::from_secs(30));
    assert!(net.view(2, "svc0").is_some() && net.view(2, "new0").is_none());
    // One link is enough: what it brings is not flooded, repair takes it further.
    net.link(1, 2);
    net.pass(Duration::from_secs(60));
    for at in 0..4 {
        assert_eq!((net.view(at, "svc0"), net.view(at, "svc3")), (None, None), "node {at}");
        for service in ["common", "svc1", "svc2", "new0", "new3"] {
            assert!(net.view(at, service).is_some(), "node {at} knows {service}");
        }
        assert_eq!(net.nodes[at].catalog.root_hash(), net.nodes[0].catalog.root_hash());
    }
}

#[test]
fn a_quiet_network_only_shows_hashes() {
    let mut net = Net::mesh(&["west"; 4]);
    net.publish(0, &["orders"]);
    net.pass(Duration::from_secs(30));
    let before = (net.sent("ids"), net.sent("adverts"), net.sent("want"), net.sent("root"));
    net.pass(Duration::from_secs(100));
    assert_eq!((net.sent("ids"), net.sent("adverts"), net.sent("want")), (before.0, before.1, before.2));
    let roots = net.sent("root") - before.3;
    assert!((150..270).contains(&roots), "{roots} in 100 s from 4 nodes");
}

#[test]
fn a_joiner_learns_everything_from_one_peer() {
    let mut net = Net::mesh(&["west"; 3]);
    for at in 0..3 {
        net.publish(at, &["orders"]);
    }
    net.run();
    let key = NodeKey::new();
    let leaf = net.authority.leaf("west", "late", &key);
    let late = net.add(key, "west", leaf);
    net.publish(late, &["late"]);
    net.link(0, late);
    net.pass(Duration::from_secs(30));
    assert_eq!(net.view(late, "orders").expect("known").instances.len(), 3);
    assert!(net.view(2, "late").is_some());
}

#[test]
fn r4_a_node_that_lost_its_state_goes_above_its_old_epochs() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders", "gone"]);
    (0..3).for_each(|_| net.restart(0, true));
    net.run();
    assert_eq!(net.nodes[0].epoch, 4);
    net.nodes[0].records = vec![record("orders", "n0")];
    net.restart(0, false);
    net.pass(Duration::from_secs(20));
    assert_eq!(net.nodes[0].epoch, 5);
    for at in 0..3 {
        assert_eq!(net.usable(at, "orders"), [0]);
        assert_eq!(net.view(at, "gone"), None);
    }
}

#[test]
fn records_move_to_a_new_fragment_without_a_gap() {
    let mut net = Net::mesh(&["west"; 2]);
    let mut records = vec![record("a", "n0"), record("b", "n0"), record("c", "n0")];
    let fill = |record: &mut ServiceRecord, values: usize| {
        record.metadata = (0..values).map(|key| (format!("k{key}"), "v".repeat(100))).collect();
    };
    records.iter_mut().for_each(|record| fill(record, 2));
    net.publish_records(0, records.clone());
    net.run();
    fill(&mut records[1], 7);
    net.publish_records(0, records);
    while net.step() {
        assert_eq!(net.usable(1, "b"), [0]);
    }
    assert_eq!(net.view(1, "b").expect("known").instances[0].metadata.len(), 7);
    assert_eq!(net.nodes[1].catalog.node(net.id(0), net.now).expect("known").records, 3);
}

#[test]
fn a_new_address_of_a_node_changes_its_services() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    net.nodes[1].changed.clear();
    let addresses = vec!["198.51.100.1:4677".parse().expect("address")];
    let card = CardContent { addresses: addresses.clone(), ..net.nodes[0].card.clone() };
    net.handle(0, Input::Card(card));
    net.run();
    assert_eq!(net.nodes[1].changed, [name("orders")]);
    assert_eq!(net.view(1, "orders").expect("known").instances[0].addresses, addresses);
    assert_eq!(net.nodes[1].catalog.node_addresses(net.id(0)), Some(&addresses[..]));
}

#[test]
fn a_burst_of_changes_is_paced_and_the_latest_wins() {
    let mut net = Net::mesh(&["west"; 2]);
    for weight in 1..1_000 {
        let mut record = record("orders", "n0");
        record.weight = weight;
        net.publish_records(0, vec![record]);
    }
    net.pass(SECOND);
    assert_eq!(net.view(1, "orders").expect("known").instances[0].weight, 999);
    assert_eq!(net.counters(1).refused.get(&Refusal::Rate), None);
    assert!(net.counters(1).accepted < 300);
}

#[test]
fn r9_lost_frames_are_mended() {
    let mut net = Net::mesh(&["west"; 5]);
    net.loses_every = Some(3);
    for round in 0..6 {
        for at in 0..5 {
            net.publish(at, &[&format!("svc{at}"), &format!("round{}", (at + round) % 3)]);
        }
        net.pass(SECOND);
    }
    net.pass(Duration::from_secs(180));
    net.loses_every = None;
    net.pass(Duration::from_secs(120));
    let roots: BTreeSet<_> = net.nodes.iter().map(|sim| sim.catalog.root_hash()).collect();
    assert_eq!(roots.len(), 1);
    for at in 0..5 {
        assert!((0..5).all(|owner| net.usable(at, &format!("svc{owner}")) == [owner]));
    }
}

#[test]
fn r5_two_that_hold_the_same_meet_without_a_list() {
    let mut net = Net::mesh(&["west"; 4]);
    (0..4).for_each(|at| net.publish(at, &["orders"]));
    net.run();
    let before = net.sent("ids");
    net.cut(0, 1);
    net.link(0, 1);
    net.run();
    assert_eq!(net.sent("ids"), before);
    // What one of them lacks comes at once.
    net.cut(0, 1);
    net.cut(0, 2);
    net.part(0, 3);
    net.publish(3, &["web"]);
    net.run();
    net.link(0, 1);
    net.pass(SECOND);
    assert!(net.view(0, "web").is_some());
}

#[test]
fn a_large_catalog_comes_in_frames_within_their_limits() {
    let mut net = Net::new(&["west"; 2]);
    let records: Vec<_> = (0..300)
        .map(|number| {
            let mut record = record(&format!("svc{number}"), "n0");
            record.metadata = vec![("k".to_owned(), "v".repeat(100))];
            record
        })
        .collect();
    net.publish_records(0, records);
    net.publish(1, &[]);
    // The network encodes and decodes every frame.
    net.link(0, 1);
    net.run();
    assert_eq!(net.nodes[1].catalog.node(net.id(0), net.now).expect("known").records, 300);
    assert_eq!(net.counters(1).refused, BTreeMap::new());
}

#[test]
fn many_nodes_out_of_reach_are_shared_among_the_peers() {
    let mut net = Net::mesh(&["west"; 6]);
    for far in 0..150_u8 {
        let node = NodeId::from_bytes([far, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        net.handle(0, Input::Member { node, state: MemberLiveness::Alive });
    }
    let (now, node) = (net.now, net.id(0));
    net.nodes[0].catalog.handle(Input::Publish(vec![record("orders", "n0")]), now);
    let mut asked: BTreeMap<NodeId, usize> = BTreeMap::new();
    while let Some(output) = net.nodes[0].catalog.next_output() {
        if let Output::Send { frame: Frame::Adverts { forward, .. }, to } = output {
            assert!(forward.len() <= gossamer_wire::limits::MAX_FORWARD && to != node);
            forward.into_iter().for_each(|far| *asked.entry(far).or_default() += 1);
        }
    }
    assert_eq!(asked.len(), 150);
    assert!(asked.values().all(|times| (1..=2).contains(times)));
}

#[test]
fn deadlines_are_in_the_future_and_early_calls_do_nothing() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.pass(SECOND * 10);
    for at in 0..3 {
        let now = net.now;
        let catalog = &mut net.nodes[at].catalog;
        assert!(catalog.next_deadline().is_some_and(|deadline| deadline > now.mono));
        catalog.handle_timeout(now);
        catalog.handle_timeout(now);
        assert_eq!(catalog.next_output(), None);
    }
}

#[test]
fn two_nodes_with_one_name_are_both_kept() {
    let mut net = Net::mesh(&["west"; 2]);
    let key = NodeKey::new();
    let leaf = net.authority.leaf("west", "n0", &key);
    let double = net.add(key, "west", leaf);
    net.link(1, double);
    net.publish_records(0, vec![record("orders", "n0")]);
    net.publish_records(double, vec![record("orders", "n0")]);
    net.run();
    let mut usable = net.usable(1, "orders");
    usable.sort_unstable();
    assert_eq!(usable, [0, double]);
}

#[test]
fn the_network_may_lose_a_node_that_nobody_knew() {
    let mut net = Net::mesh(&["west"; 2]);
    let stranger = NodeId::from_bytes([9; 16]);
    for state in [MemberLiveness::Alive, MemberLiveness::Suspect, MemberLiveness::Down, MemberLiveness::Left]
    {
        net.handle(0, Input::Member { node: stranger, state });
    }
    net.handle(0, Input::Disconnected(stranger));
    net.handle(0, Input::Frame { from: stranger, frame: Frame::Want(vec![]) });
    assert_eq!(net.nodes[0].catalog.node_addresses(stranger), None);
    assert_eq!(net.nodes[0].catalog.nodes(net.now).len(), 2);
}

#[test]
fn r6_those_who_came_before_a_newcomer_hear_of_it_from_the_one_peer_they_have() {
    let mut net = Net::new(&["west"; 40]);
    for newcomer in 1..40 {
        net.publish(newcomer, &["orders"]);
        net.link(0, newcomer);
        net.pass(Duration::from_millis(20));
    }
    net.pass(Duration::from_millis(200));
    for at in 1..40 {
        assert_eq!(net.nodes[at].catalog.root_hash(), net.nodes[0].catalog.root_hash(), "{at}");
    }
}
