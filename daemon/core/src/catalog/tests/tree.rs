//! Large meshes at small sizes: trees, far peers, the healing of a partition.

use super::*;

/// A mesh in which changes go down trees, one hour of its clock away from its start.
fn large(count: usize) -> Net {
    large_of(count, 0)
}

fn large_of(count: usize, seed: u64) -> Net {
    let mut net = Net::new(&[]);
    net.seed = seed;
    net.direct_up_to = 1;
    net.fill(&vec!["west"; count]);
    net.pass(SECOND * 20);
    assert_eq!(roots(&net).len(), 1);
    net
}

fn roots(net: &Net) -> BTreeSet<u64> {
    net.nodes.iter().map(|sim| sim.catalog.root_hash()).collect()
}

fn total(net: &Net, of: impl Fn(&Counters) -> u64) -> u64 {
    (0..net.nodes.len()).map(|at| of(&net.counters(at))).sum()
}

#[test]
fn r10_a_change_reaches_every_node_of_a_large_mesh_in_two_copies_each() {
    let mut net = large(24);
    // The first record brings a head with it; the second one only changes its fragment.
    net.publish(3, &["web"]);
    net.pass(SECOND);
    let before = (total(&net, |c| c.spread), net.sent("adverts"), net.sent("want"));
    net.publish(3, &["web", "orders"]);
    net.run();
    assert!((0..24).all(|at| net.usable(at, "orders") == [3]), "without a pause of the clock");
    assert_eq!((net.sent("adverts"), net.sent("want")), (before.1, before.2));
    let copies = total(&net, |c| c.spread) - before.0;
    assert!((23..=2 * 23).contains(&copies), "{copies} copies for 23 nodes");
    net.pass(SECOND);
    assert_eq!(net.sent("want"), before.2, "ids of what came by itself are not asked for");
}

#[test]
fn r11_a_delegate_that_is_deaf_does_not_silence_its_interval() {
    let mut net = large(24);
    net.loses_every = Some(4);
    let before = net.sent("want");
    net.publish(3, &["orders"]);
    net.run();
    net.loses_every = None;
    let missed = (0..24).filter(|at| net.view(*at, "orders").is_none()).count();
    assert!(missed > 0, "the loss must cut some off");
    net.pass(SECOND / 2);
    assert!((0..24).all(|at| net.usable(at, "orders") == [3]), "ids mend it, before any repair");
    assert!(net.sent("want") > before);
}

#[test]
fn r12_one_version_goes_down_at_most_two_trees_from_a_node() {
    let mut net = large(12);
    let body = Fragment::of(&[record("orders", "n0")]).expect("fits").encode().expect("fits");
    let advert = net.forge(0, Kind::Records, 5, (1, u64::from(u32::MAX)), &body);
    let copies = vec![AdvertCopy { age: 0, bytes: advert.shared_bytes() }];
    let (first, last) = (NodeId::from_bytes([0; 16]), NodeId::from_bytes([255; 16]));
    let mut sent = Vec::new();
    for _ in 0..4 {
        let before = net.counters(1).spread;
        let frame = Frame::Spread { copies: copies.clone(), first, last };
        net.handle(1, Input::Frame { from: net.id(2), frame });
        sent.push(net.counters(1).spread - before);
    }
    assert_eq!(sent, [9, 9, 0, 0], "to all but itself, the giver and the owner");
}

#[test]
fn r12_an_origin_that_gets_its_own_advert_back_does_not_push_it_again() {
    let mut net = large(12);
    net.publish(0, &["orders"]);
    net.run();
    let copy = net.held_by(1, 0, Kind::Records, 0).expect("held");
    let before = (net.counters(0).spread, net.counters(0).announced);
    let (first, last) = (NodeId::from_bytes([0; 16]), NodeId::from_bytes([255; 16]));
    net.handle(0, Input::Frame { from: net.id(1), frame: Frame::Spread { copies: vec![copy], first, last } });
    net.pass(SECOND);
    assert_eq!((net.counters(0).spread, net.counters(0).announced), before);
}

#[test]
fn r6_a_healed_partition_is_equal_within_two_seconds_and_copies_come_once() {
    for seed in [0, 14, 25, 29, 40, 53] {
        let repairs = heal(seed);
        assert!((1..=12).contains(&repairs), "seed {seed}: {repairs} comparisons for 144 pairs");
    }
}

/// Parts a net, changes both halves and joins them; returns how many comparisons made them equal.
fn heal(seed: u64) -> usize {
    let mut net = large_of(24, seed);
    for at in 0..12 {
        (12..24).for_each(|other| net.part(at, other));
    }
    for at in [0, 1, 2, 12, 13, 14] {
        net.publish(at, &["common", &format!("svc{at}")]);
    }
    net.pass(Duration::from_secs(60));
    net.publish(1, &["common"]);
    net.pass(SECOND);
    assert_eq!(roots(&net).len(), 2);
    let before = (total(&net, |c| c.accepted), total(&net, |c| c.duplicates), net.sent("buckets"));
    for at in 0..12 {
        (12..24).for_each(|other| net.link(at, other));
    }
    net.pass(SECOND * 2);
    assert_eq!(roots(&net).len(), 1);
    for at in 0..24 {
        assert_eq!(net.view(at, "svc1"), None, "what was withdrawn is gone at node {at}");
        assert_eq!(net.usable(at, "common").len(), 6);
    }
    let accepted = total(&net, |c| c.accepted) - before.0;
    let duplicates = total(&net, |c| c.duplicates) - before.1;
    assert!(accepted >= 6 * 12, "{accepted}");
    assert!(duplicates * 10 <= accepted, "{duplicates} copies too many for {accepted}");
    net.sent("buckets") - before.2
}

#[test]
fn r5_one_difference_costs_a_list_of_one_bucket() {
    let mut net = large(24);
    net.part(0, 1);
    (2..24).for_each(|at| net.cut(0, at));
    net.publish(0, &["orders"]);
    net.run();
    net.ids_listed = 0;
    let before = net.sent("ids");
    net.link(0, 1);
    net.pass(SECOND / 2);
    assert_eq!(net.usable(1, "orders"), [0]);
    assert!(net.sent("ids") - before <= 1, "one list");
    assert!(net.ids_listed <= 8, "{} ids of about 70", net.ids_listed);
    net.pass(SECOND);
    assert!((1..24).all(|at| net.usable(at, "orders") == [0]), "over one bridge to all");
}

#[test]
fn r5_equal_catalogs_cost_hashes_only() {
    let mut net = large(12);
    let before = ["buckets", "ids", "have", "want", "adverts"].map(|kind| net.sent(kind));
    net.pass(Duration::from_secs(100));
    assert_eq!(["buckets", "ids", "have", "want", "adverts"].map(|kind| net.sent(kind)), before);
}
