//! Scenarios on real endpoints, and what only real endpoints show: datagrams that are too large, two dials at
//! once, resets after a restart, time-outs, readers that do not read.
//!
//! Times are virtual; see [`gossamer_tests::fabric`] for what that can show.

use std::collections::BTreeSet;
use std::time::Duration;

use gossamer_tests::fabric::{Fabric, address};
use gossamer_tests::scenario::{Act, Disk, Report, Scenario, World as _, play};
use gossamer_wire::limits::MAX_SWIM_BYTES;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// Runs a scenario whose file has this text besides its name, and demands that it holds.
fn holds(seed: u64, text: &str) -> Report {
    let text = format!("name = 'x'\nabout = 'y'\n{text}");
    let scenario = Scenario::parse("x.toml", &text).expect("a scenario");
    let mut fabric = Fabric::new(&scenario, seed).expect("made");
    let report = play(&scenario, seed, &mut fabric).expect("runs");
    assert!(report.holds(), "{report}");
    report
}

#[test]
fn a_link_that_flaps_costs_the_others_little_and_brings_nobody_else_down() {
    holds(
        1,
        "nodes = 5\nidle = 10
        [[step]]\nat = 0\nevery = 4\ntimes = 6\ncut = { from = '4', to = 'others', both = true }
        [[step]]\nat = 2\nevery = 4\ntimes = 6\nheal = {}
        [expect]\nnever_down = '0-3'\nbytes_of = '0-3'\nmax_bytes_ratio = 3.0\nconverged_within = 15",
    );
}

#[test]
fn one_direction_lost_between_two_nodes_brings_nobody_down() {
    holds(
        2,
        "nodes = 5
        [[step]]\nat = 0\ncut = { from = '1', to = '2' }
        [[step]]\nat = 30\nheal = {}
        [expect]\nnever_down = 'all'\nmax_renewals = 0\nconverged_within = 5",
    );
}

#[test]
fn a_node_nobody_hears_is_down_and_all_agree_when_it_is_heard_again() {
    holds(
        3,
        "nodes = 5
        [[step]]\nat = 0\ncut = { from = '4', to = 'others' }
        [[step]]\nat = 20\nheal = {}
        [expect]\ndown = '4'\nconverged_within = 30",
    );
}

#[test]
fn a_node_killed_and_started_100_ms_later_is_seen_with_whatever_disk() {
    for disk in ["kept", "unsynced", "lost"] {
        holds(
            4,
            &format!(
                "nodes = 4\nrecords = 2
                [[step]]\nat = 1\nrestart = {{ nodes = '2', disk = '{disk}', down = 0.1 }}
                [expect]\nnever_down = 'others'\nconverged_within = 5\nsettle = 15"
            ),
        );
    }
}

#[test]
fn two_halves_that_changed_agree_after_the_partition() {
    holds(
        5,
        "nodes = 6\nrecords = 3
        [[step]]\nat = 0\ncut = { from = '0-2', to = '3-5', both = true }
        [[step]]\nat = 10\npublish = { nodes = '0-5', count = 4 }
        [[step]]\nat = 12\nwithdraw = { nodes = '1,4', count = 2 }
        [[step]]\nat = 30\nheal = {}
        [expect]\nconverged_within = 15",
    );
}

#[test]
fn loss_of_5_percent_brings_nobody_down() {
    holds(
        6,
        "nodes = 6\n[net]\nloss = 0.05\nduplicate = 0.01\nreorder = 0.02
        [[step]]\nat = 60\nheal = {}
        [expect]\nnever_down = 'all'\nmax_renewals = 0",
    );
}

#[test]
fn a_node_stopped_for_12_s_is_down_once_and_brings_nobody_else_down() {
    holds(
        7,
        "nodes = 5
        [[step]]\nat = 0\nsuspend = { nodes = '3' }
        [[step]]\nat = 12\nresume = { nodes = '3' }
        [expect]\nnever_down = 'others'\ndown = '3'\ndowns_per_view = 1\nconverged_within = 15\nsettle = 10",
    );
}

#[test]
fn a_wall_clock_that_jumps_by_an_hour_changes_nothing() {
    for jump in [3_600, -3_600] {
        holds(
            8,
            &format!(
                "nodes = 4
                [[step]]\nat = 1\nclock = {{ nodes = '1', seconds = {jump} }}
                [[step]]\nat = 2\nrestart = {{ nodes = '2' }}
                [expect]\nnever_down = 'others'\nmax_renewals = 0\nsettle = 5\nconverged_within = 5"
            ),
        );
    }
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
    assert!(peers.send_packet(to, vec![0xff; 1_300]));
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
        let error = near.recv.read(&mut hello).await.expect_err("no clean end");
        (error, since.elapsed())
    });
    assert!(matches!(error, quinn::ReadError::ConnectionLost(_)), "{error}");
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
    let cost = gossamer_tests::fabric::cost::measure(30, 10 * SECOND, 61).expect("they all see each other");
    assert!((cost.connections_per_node - 29.0).abs() < 0.01, "{cost}");
    assert!(cost.datagrams > 0 && cost.bytes_per_node > 0, "{cost}");
}
