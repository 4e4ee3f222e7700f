//! Real endpoints in small meshes.

use super::*;

/// Runs a scenario given as text; the text needs no head.
fn text(seed: u64, nodes: usize, rest: &str) -> Report {
    let text = format!("name = 'x'\nabout = 'y'\nnodes = {nodes}\n{rest}");
    run(&Scenario::parse("x.toml", &text).expect("a scenario"), seed).expect("runs")
}

#[test]
fn three_nodes_see_each_other_and_all_records() {
    let report = text(1, 3, "records = 2");
    assert!(report.holds(), "{report}");
    assert!(report.joined.expect("joined") < Duration::from_secs(5), "{report}");
}

#[test]
fn one_seed_is_one_trace() {
    let rest = "[net]\nloss = 0.02\nduplicate = 0.01\nreorder = 0.05\n[[step]]\nat = 1\nrestart = { nodes = '2' }\n\
                [[step]]\nat = 3\npublish = { nodes = '1', count = 2 }";
    let traces: BTreeSet<_> = (0..20).map(|_| text(7, 5, rest).trace).collect();
    assert_eq!(traces.len(), 1, "{traces:?}");
    assert!(!traces.contains(&text(8, 5, rest).trace), "another seed, the same trace");
}

const SECOND: Duration = Duration::from_secs(1);
/// Seeds of each of the scenarios below, which no file can express.
const SEEDS: std::ops::Range<u64> = 0..10;

/// Starts six nodes and waits until all see all.
fn joined(seed: u64) -> Fabric {
    let text = "name = 'x'\nabout = 'y'\nnodes = 6\nrecords = 3";
    let mut fabric = Fabric::new(&Scenario::parse("x.toml", text).expect("a scenario"), seed).expect("made");
    for node in 0..6 {
        fabric.act(&Act::Start { node, disk: scenario::Disk::Lost }).expect("starts");
    }
    fabric.run_for(10 * SECOND);
    assert_whole(&mut fabric, 3 * 6, &format!("seed {seed}, at the start"));
    fabric
}

/// Asserts that all see all and serve so many records, from equal catalogs, and that nobody was held for down.
fn assert_whole(fabric: &mut Fabric, records: usize, when: &str) {
    let states: Vec<_> = (0..6).map(|node| fabric.state(node).expect("runs")).collect();
    for (node, state) in states.iter().enumerate() {
        assert_eq!((state.up.len(), state.served), (5, records), "node {node}, {when}");
        assert_eq!((state.catalog, state.renewals), (states[0].catalog, 0), "node {node}, {when}");
    }
    assert!(fabric.take_downs().is_empty(), "{when}");
}

#[test]
fn a_path_that_narrows_to_1200_bytes_brings_nobody_down() {
    for seed in SEEDS {
        let mut fabric = joined(seed);
        // From then on as over a tunnel whose routers tell nothing; before, 9,000 bytes would have passed.
        fabric.net().set_max_payload(1_200);
        for node in 0..6 {
            fabric.act(&Act::Publish { node, count: 30 }).expect("publishes");
        }
        fabric.run_for(30 * SECOND);
        assert_whole(&mut fabric, 33 * 6, &format!("seed {seed}, behind the tunnel"));
    }
}

#[test]
fn receive_buffers_that_are_full_lose_packets_and_no_member() {
    for seed in SEEDS {
        let mut fabric = joined(seed);
        // Two full packets; a burst of records is many.
        fabric.net().set_inbox(2_500);
        let before = fabric.net().overflowed();
        for node in 0..6 {
            fabric.act(&Act::Publish { node, count: 60 }).expect("publishes");
        }
        fabric.run_for(30 * SECOND);
        assert!(fabric.net().overflowed() > before, "seed {seed}: nothing was lost");
        assert_whole(&mut fabric, 63 * 6, &format!("seed {seed}, with small buffers"));
    }
}

#[test]
fn a_connection_outlives_the_certificate_it_was_made_with_if_a_later_one_is_known() {
    const DAY: u64 = 86_400;
    for is_known in [true, false] {
        let text = "name = 'x'\nabout = 'y'\nnodes = 2";
        let mut fabric = Fabric::new(&Scenario::parse("x.toml", text).expect("a scenario"), 1).expect("made");
        for node in 0..2 {
            fabric.act(&Act::Start { node, disk: scenario::Disk::Lost }).expect("starts");
        }
        fabric.run_for(5 * SECOND);
        let (peers, other) = (fabric.mesh(0).expect("runs").peers.clone(), fabric.id(1).expect("a node"));
        let dialled = peers.has_dialled(other);
        assert!(dialled.is_some(), "they are connected");
        if is_known {
            peers.certified(other, crate::sim::authority::WALL + 60 * DAY);
        }
        // All certificates of this mesh last 30 days. Only node 0 notices, which knows nobody to renew with.
        fabric.act(&Act::Clock { node: 0, seconds: 31 * DAY as i64 }).expect("put forward");
        fabric.run_for(90 * SECOND);
        assert_eq!(peers.has_dialled(other).is_some(), is_known, "a later certificate is known: {is_known}");
    }
}

#[test]
fn a_change_each_second_is_not_a_write_of_the_catalog_each_second() {
    let mut fabric = joined(1);
    let written = |fabric: &Fabric, node| fabric.disk(node).expect("a node").written("catalog.json");
    let before: Vec<u64> = (0..6).map(|node| written(&fabric, node)).collect();
    for _ in 0..240 {
        fabric.act(&Act::Publish { node: 0, count: 1 }).expect("publishes");
        fabric.run_for(SECOND);
    }
    for (node, before) in before.into_iter().enumerate() {
        let writes = written(&fabric, node) - before;
        // The longest pause is 60 s, the shortest 20.
        assert!((3..=13).contains(&writes), "node {node} wrote {writes} times");
    }
}

#[test]
fn a_full_disk_stops_neither_membership_nor_records() {
    for seed in SEEDS {
        let mut fabric = joined(seed);
        fabric.disk(1).expect("a node").set_full(true);
        for node in [1, 2] {
            fabric.act(&Act::Publish { node, count: 2 }).expect("publishes");
        }
        fabric.run_for(100 * SECOND);
        let refused = fabric.disk(1).expect("a node").set_full(false);
        assert!(refused > 0, "seed {seed}: nothing was written");
        assert_whole(&mut fabric, 3 * 6 + 4, &format!("seed {seed}, with a full disk"));
    }
}
