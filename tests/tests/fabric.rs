//! Scenarios on real endpoints, and what only real endpoints show: datagrams that are too large, two dials at
//! once, resets after a restart, time-outs, readers that do not read.
//!
//! Times are virtual; see [`gossamer_tests::fabric`] for what that can show. Scenario files are those of the core
//! simulator.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gossamer::events::What;
use gossamer_tests::fabric::{self, Double, Fabric, address};
use gossamer_tests::scenario::{Act, Disk, Scenario, World as _, play};
use gossamer_wire::limits::MAX_SWIM_BYTES;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// Runs a file of the folder of scenarios, the same the core simulator runs, with one seed.
fn file(name: &str) {
    let path = folder().join(format!("{name}.toml"));
    let report = fabric::run(&Scenario::load(&path).expect("a scenario"), 1).expect("runs");
    assert!(report.holds(), "{report}");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

macro_rules! files {
    ($($test:ident $name:literal)*) => {
        const FILES: &[&str] = &[$($name),*];
        $(#[test] fn $test() { file($name); })*
    };
}

files! {
    churn_converges "churn"
    jumping_clocks_change_nothing "clock-jump"
    a_deaf_node_is_down_and_comes_back "deaf-node"
    a_link_that_flaps_costs_the_others_little "flapping-link"
    a_killed_node_is_down_everywhere "kill-one"
    who_leaves_is_gone_and_not_dead "leave"
    loss_of_1_percent_is_not_noticed "loss-1"
    loss_of_5_percent_brings_nobody_down "loss-5"
    loss_of_20_percent_converges "loss-20"
    thirty_nodes_join_in_a_second "mass-join"
    a_node_nobody_hears_is_down_once_and_alone "mute-node"
    one_link_that_is_cut_brings_nobody_down "one-link-cut"
    two_halves_that_changed_agree_after_the_partition "partition-60s"
    a_stop_of_3_s_is_not_noticed "pause-3s"
    a_stop_of_12_s_is_down_once "pause-12s"
    a_stop_of_a_minute_is_down_once "pause-60s"
    a_node_that_was_down_comes_back "restart-after-down"
    all_start_again_without_their_seed "restart-all"
    a_node_started_again_after_100_ms_is_seen "restart-kept"
    a_node_started_again_with_an_empty_disk_is_seen "restart-lost"
    a_node_started_again_after_a_power_cut_is_seen "restart-unsynced"
    views_stay_whole_in_a_rolling_restart "rolling-restart"
    a_slow_member_makes_nobody_renew "slow-member"
    a_stale_node_brings_nothing_back "stale-node"
    a_lost_zone_is_hidden_without_a_storm "zone-lost"
}

#[test]
fn every_scenario_is_run() {
    let files = Scenario::files(&folder()).expect("the folder is readable");
    let names: BTreeSet<String> =
        files.iter().filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    let listed: BTreeSet<String> = FILES.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names, listed);
}

#[test]
fn one_direction_lost_between_two_nodes_brings_nobody_down() {
    let text = "name = 'x'\nabout = 'y'\nnodes = 5
        [[step]]\nat = 0\ncut = { from = '1', to = '2' }
        [[step]]\nat = 30\nheal = {}
        [expect]\nnever_down = 'all'\nmax_renewals = 0\nconverged_within = 5";
    let report = fabric::run(&Scenario::parse("x.toml", text).expect("a scenario"), 2).expect("runs");
    assert!(report.holds(), "{report}");
}

/// Starts so many nodes at once, all of which know all, and waits until all are connected.
fn joined(nodes: usize, seed: u64) -> Fabric {
    let seeds: Vec<usize> = (0..nodes).collect();
    let text = format!("name = 'x'\nabout = 'y'\nnodes = {nodes}\nseeds = {seeds:?}");
    let mut fabric = Fabric::new(&Scenario::parse("x.toml", &text).expect("a scenario"), seed).expect("made");
    for node in 0..nodes {
        fabric.act(&Act::Start { node, disk: Disk::Lost }).expect("starts");
    }
    fabric.run_for(5 * SECOND);
    for node in 0..nodes {
        assert_eq!(fabric.state(node).expect("runs").up.len(), nodes - 1, "node {node}");
    }
    fabric
}

/// Makes machines of which some are doubles, and starts them one a second, the doubles last.
fn doubled(doubles: &[Double]) -> Fabric {
    let scenario = Scenario::parse("x.toml", "name = 'x'\nabout = 'y'\nnodes = 6").expect("a scenario");
    let mut fabric = Fabric::with_doubles(&scenario, 71, doubles).expect("made");
    for node in 0..6 {
        fabric.act(&Act::Start { node, disk: Disk::Lost }).expect("starts");
        fabric.run_for(SECOND);
    }
    fabric
}

#[test]
fn two_nodes_of_one_name_are_named_everywhere_until_one_is_gone() {
    let mut fabric = doubled(&[Double::Name { node: 5, of: 2 }]);
    fabric.run_for(5 * SECOND);
    let ids = [2, 5].map(|node| fabric.id(node).expect("a node"));
    let named = |fabric: &Fabric, node| {
        let findings = fabric.findings(node).expect("runs").into_iter();
        findings.map(|named| (named.who, named.what)).collect::<Vec<_>>()
    };
    for node in 0..6 {
        let found = named(&fabric, node);
        assert_eq!(found.len(), 2, "node {node}: {found:?}");
        for (id, other) in [(ids[0], ids[1]), (ids[1], ids[0])] {
            assert!(found.contains(&(id, What::SameName { other })), "node {node}: {found:?}");
        }
    }
    fabric.act(&Act::Kill(5)).expect("killed");
    fabric.run_for(10 * SECOND);
    (0..5).for_each(|node| assert_eq!(named(&fabric, node), [], "node {node}"));
}

#[test]
fn an_identity_on_two_nodes_ends_the_later_one_and_the_mesh_goes_on_with_the_first() {
    let mut fabric = doubled(&[Double::Identity { node: 5, of: 2 }]);
    let (first, later) = [2, 5].map(|node| fabric.mesh(node).expect("runs").peers.clone()).into();
    let other = fabric.run(async { tokio::time::timeout(30 * SECOND, later.runs_twice()).await });
    assert_eq!(other.expect("the later one learns of it"), address(2));
    let id = fabric.id(2).expect("a node");
    let is_named = |node| {
        let findings = fabric.findings(node).expect("runs");
        findings.iter().any(|named| named.who == id && matches!(named.what, What::RunsTwice { .. }))
    };
    assert!((0..5).any(is_named), "and so does somebody else");
    // The daemon ends here, with a line that names the address.
    fabric.act(&Act::Kill(5)).expect("ended");
    fabric.take_downs();
    fabric.run_for(20 * SECOND);
    for node in 0..5 {
        let up = fabric.state(node).expect("runs").up;
        assert_eq!(up, (0..5).filter(|other| *other != node).collect::<Vec<_>>(), "node {node}");
    }
    assert_eq!(fabric.take_downs(), [], "the first one is not down for anybody");
    let goes_on = fabric.run(async { tokio::time::timeout(SECOND, first.runs_twice()).await });
    assert!(goes_on.is_err(), "the first one does not stop");
}

/// Cuts two nodes off from each other.
fn cut(fabric: &Fabric, one: usize, other: usize) {
    let end = |node| BTreeSet::from([address(node)]);
    fabric.net().cut(end(one), end(other));
    fabric.net().cut(end(other), end(one));
}

#[test]
fn the_largest_packet_is_a_datagram_and_a_larger_one_meets_the_limit_of_the_stream() {
    let fabric = joined(2, 11);
    fabric.net().set_max_payload(1_200);
    let (peers, to) = (&fabric.mesh(0).expect("runs").peers, fabric.id(1).expect("a node"));
    let counted = |name: &str| fabric.metrics(1).expect("runs")[name];
    let (packets, frames) = ("gossamer_swim_packets_refused_total", "gossamer_bad_frames_total");
    // No packet of SWIM: that it is refused shows that it has come.
    assert!(peers.send_packet(to, vec![0xff; MAX_SWIM_BYTES]));
    fabric.run_for(SECOND);
    assert_eq!((counted(packets), counted(frames)), (1, 0));
    assert!(peers.send_packet(to, vec![0xff; 1_500]));
    fabric.run_for(SECOND);
    assert_eq!((counted(packets), counted(frames)), (1, 1));
    assert_eq!(peers.connected(), 1, "they connect again");
}

#[test]
fn a_mesh_forms_over_a_path_that_carries_1200_bytes() {
    let text = "name = 'x'\nabout = 'y'\nnodes = 4\nrecords = 20";
    let scenario = Scenario::parse("x.toml", text).expect("a scenario");
    let mut fabric = Fabric::new(&scenario, 12).expect("made");
    fabric.net().set_max_payload(1_200);
    let report = play(&scenario, 12, &mut fabric).expect("runs");
    assert!(report.holds(), "{report}");
}

#[test]
fn two_dials_at_once_leave_the_connection_of_the_smaller_id() {
    for seed in 20..24 {
        let fabric = joined(2, seed);
        let id = |node| fabric.id(node).expect("a node");
        let dialled = |node: usize| fabric.mesh(node).expect("runs").peers.has_dialled(id(1 - node));
        let smaller = usize::from(id(1) < id(0));
        assert_eq!((dialled(smaller), dialled(1 - smaller)), (Some(true), Some(false)), "seed {seed}");
    }
}

/// Restarts node 1 with a disk where no handshake can pass, and says whether node 0 still holds the old connection
/// a second later.
fn holds_old_connection(disk: Disk) -> bool {
    let mut fabric = joined(2, 31);
    // First packets of a handshake have 1,200 bytes (RFC 9000 14.1), resets and probes far fewer.
    fabric.net().set_max_payload(1_100);
    fabric.act(&Act::Kill(1)).expect("killed");
    fabric.act(&Act::Start { node: 1, disk }).expect("starts");
    fabric.run_for(SECOND);
    fabric.mesh(0).expect("runs").peers.connected() == 1
}

#[test]
fn a_restarted_node_resets_its_old_connections() {
    assert!(!holds_old_connection(Disk::Kept), "the reset was not noticed");
    assert!(holds_old_connection(Disk::Lost), "without its key nothing can be reset");
}

#[test]
fn a_flow_to_a_node_that_fell_silent_ends_within_4_seconds() {
    let mut fabric = joined(2, 41);
    let (peers, to) = (fabric.mesh(0).expect("runs").peers.clone(), fabric.id(1).expect("a node"));
    let flows = &mut fabric.mesh_mut(1).expect("runs").flows;
    let mut inbound = std::mem::replace(flows, tokio::sync::mpsc::channel(1).1);
    let mut near = fabric.run(async move {
        let mut near = peers.open_flow(to).await.expect("opens");
        near.send.write_all(b"hello").await.expect("writes");
        near
    });
    let mut far = fabric.run(async move { inbound.recv().await.expect("a flow") });
    let mut hello = [0; 5];
    fabric.run(async { far.recv.read_exact(&mut hello).await }).expect("reads");
    cut(&fabric, 0, 1);
    let (error, after) = fabric.run(async {
        let since = Instant::now();
        let error = near.recv.read_exact(&mut hello).await.expect_err("no clean end");
        (error, since.elapsed())
    });
    assert!(
        matches!(error, quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(_))),
        "{error}"
    );
    assert!(after < 4 * SECOND, "{after:?}");
}

#[test]
fn a_node_that_does_not_read_delays_nobody_else() {
    let mut fabric = joined(3, 51);
    fabric.act(&Act::Suspend(2)).expect("stops");
    fabric.act(&Act::Publish { node: 0, count: 200 }).expect("publishes");
    fabric.run_for(SECOND);
    assert_eq!(fabric.state(1).expect("runs").served, 203);
    fabric.act(&Act::Resume(2)).expect("goes on");
    fabric.run_for(SECOND);
    assert_eq!(fabric.state(2).expect("runs").served, 203);
}

#[test]
fn thirty_endpoints_are_all_connected_and_their_cost_is_counted() {
    let cost = fabric::cost::measure(30, 10 * SECOND, 61).expect("they all see each other");
    assert!((cost.connections_per_node - 29.0).abs() < 0.01, "{cost}");
    assert!(cost.datagrams > 0 && cost.bytes_per_node > 0, "{cost}");
}
