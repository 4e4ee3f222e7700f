use std::collections::BTreeSet;
use std::path::PathBuf;

use super::*;

fn scenario(text: &str) -> Scenario {
    Scenario::parse("test", &format!("name = 't'\nabout = 'a'\n{text}")).expect("a scenario")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// Runs a file of `tests/scenarios` with two seeds.
fn file(name: &str) {
    let reports = run_file(&folder().join(format!("{name}.toml")), 1..3).expect("the file can be used");
    for report in reports {
        assert!(report.holds(), "{report}");
    }
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
    a_deaf_node_goes_down_without_a_storm "deaf-node"
    a_killed_node_is_down_everywhere "kill-one"
    who_leaves_is_gone_and_not_dead "leave"
    one_percent_of_loss_is_not_noticed "loss-1"
    five_percent_of_loss_kills_nobody "loss-5"
    twenty_percent_of_loss_converges "loss-20"
    thirty_nodes_join_in_a_second "mass-join"
    a_flapping_link_costs_the_others_little "flapping-link"
    a_mute_node_goes_down_alone "mute-node"
    a_cut_link_kills_nobody "one-link-cut"
    halves_become_one_again "partition-60s"
    a_short_pause_is_not_noticed "pause-3s"
    a_pause_is_one_death "pause-12s"
    a_long_pause_is_one_death "pause-60s"
    a_node_held_for_dead_comes_back "restart-after-down"
    all_start_again_without_their_seed "restart-all"
    a_restart_wins_everywhere "restart-kept"
    a_restart_with_an_empty_disk_wins_everywhere "restart-lost"
    a_restart_after_a_power_cut_wins_everywhere "restart-unsynced"
    views_stay_whole_in_a_rolling_restart "rolling-restart"
    a_slow_member_makes_nobody_renew "slow-member"
    a_stale_node_brings_nothing_back "stale-node"
    a_lost_zone_is_hidden_without_a_storm "zone-lost"
}

#[test]
fn every_scenario_file_can_be_used_and_the_short_ones_are_run_here() {
    let names = |folder: PathBuf| -> BTreeSet<String> {
        let named = |path: &PathBuf| {
            let scenario = Scenario::load(path).unwrap_or_else(|error| panic!("{error}"));
            assert!(path.ends_with(format!("{}.toml", scenario.name)), "{}", path.display());
            scenario.name
        };
        Scenario::files(&folder).expect("the folder is readable").iter().map(named).collect()
    };
    assert_eq!(names(folder()), FILES.iter().map(|name| (*name).to_owned()).collect());
    assert!(names(folder().join("long")).contains("dead-for-a-day"));
}

#[test]
fn one_seed_gives_one_trace() {
    let text = "nodes = 5\n[net]\nloss = 0.05\nduplicate = 0.02\nreorder = 0.05\n[[step]]\nat = 1\nkill = { nodes = 'all', pick = 1 }\n[[step]]\nat = 1\nrestart = { nodes = '2', disk = 'lost' }\n";
    let traces: Vec<_> = (0..20).map(|_| run(&scenario(text), 7).expect("runs").trace).collect();
    assert!(traces.iter().all(|trace| trace.is_some() && *trace == traces[0]), "{traces:?}");
    assert_ne!(run(&scenario(text), 8).expect("runs").trace, traces[0]);
}

#[test]
fn bytes_are_booked_by_kind_and_by_node() {
    let mut mesh = Mesh::new(&scenario("nodes = 4"), 1).expect("mesh");
    let report = scenario::play(&scenario("nodes = 4\nidle = 10"), 1, &mut mesh).expect("plays");
    assert!(report.holds(), "{report}");
    let kinds: std::collections::BTreeMap<_, _> =
        mesh.sent_by_kind().into_iter().map(|(kind, packets, bytes)| (kind, (packets, bytes))).collect();
    assert!(kinds["swim"].0 > 4 * 30, "{kinds:?}");
    assert!(kinds["handshake"].1 >= 6 * 4_028, "six pairs: {kinds:?}");
    let total: u64 = kinds.values().map(|(_, bytes)| bytes).sum();
    let by_node: u64 = (0..4).map(|node| scenario::World::bytes_sent(&mut mesh, node)).sum();
    assert_eq!(total, by_node);
}

#[test]
fn forged_deaths_cost_the_victim_nothing_and_name_the_forger() {
    let forged = evidence::forged_down(6, 1, evidence::Attack::Forge).expect("runs");
    assert!(forged.datagrams > 6_000 && forged.samples > 4 * 1_000, "{forged:?}");
    assert_eq!((forged.fooled, forged.missing), (0, 0), "{forged:?}");
    assert_eq!((forged.naming, forged.slandered), (4, 0), "{forged:?}");
}

/// Without a connection to the victim a node has to ask others whether it lives.
#[test]
fn forged_deaths_cost_the_victim_nothing_where_most_cannot_ask_it_themselves() {
    for (nodes, warm, loss, seed) in [(24, 8, 0.0, 1), (24, 8, 0.05, 3), (40, 32, 0.05, 2)] {
        let forged = evidence::forged_down_cold(nodes, warm, loss, seed).expect("runs");
        assert_eq!((forged.fooled, forged.missing, forged.slandered), (0, 0, 0), "{forged:?}");
        assert!(forged.naming > 0, "{forged:?}");
    }
}

#[test]
fn a_cut_link_names_nobody() {
    let scenario = Scenario::load(&folder().join("one-link-cut.toml")).expect("a scenario");
    let mut mesh = Mesh::new(&scenario, 3).expect("mesh");
    let report = scenario::play(&scenario, 3, &mut mesh).expect("plays");
    assert!(report.holds() && mesh.named.is_empty(), "{report}, named {:?}", mesh.named);
}

#[test]
fn the_entries_of_a_small_mesh_stay_the_same_while_nodes_restart() {
    let memory = evidence::memory_of_churn(5, 6, 1, false).expect("runs");
    assert_eq!(memory.samples.len(), 6);
    let entries: Vec<u64> = memory.samples.iter().map(|(.., entries)| *entries).collect();
    assert!(entries.iter().all(|count| *count <= entries[1] + 5), "{entries:?}");
}

#[test]
fn measurements_of_small_meshes_are_whole() {
    let size = measure::Size { nodes: 6, loss: 0.01, seed: 1, sabotage: None };
    let spread = measure::record(size, 6).expect("measures");
    assert_eq!((spread.missed, spread.delays.len()), (0, 30));
    assert!(spread.quantile(0.5) >= 0.5 && spread.copies >= 1.0, "{spread:?}");
    let heal = measure::split(size).expect("measures");
    assert!(heal.seconds.is_some() && heal.bytes_per_missing > 0.0, "{heal:?}");
    let calm = measure::loss(size, std::time::Duration::from_secs(10)).expect("measures");
    assert_eq!((calm.false_downs, calm.renewals), (0, 0));
    let converge = measure::converge(size).expect("measures");
    assert!(converge.seconds.is_some() && converge.events > 1_000, "{converge:?}");
}

/// What the rows of evidence rest on: each measurement notices a mesh that is broken once all see all.
#[test]
fn every_measurement_notices_a_sabotaged_mesh() {
    use measure::Sabotage::{CutOff, Loss};
    let size = |sabotage| measure::Size { nodes: 8, loss: 0.0, seed: 1, sabotage: Some(sabotage) };
    let spread = measure::record(size(Loss(0.5)), 4).expect("measures");
    assert!(spread.missed > 0 || spread.quantile(0.99) > 6.0, "{spread:?}");
    let calm = measure::loss(size(CutOff), std::time::Duration::from_secs(60)).expect("measures");
    assert!(calm.false_downs >= 7, "{calm:?}");
    let heal = measure::split(size(Loss(0.9))).expect("measures");
    assert!(heal.catalog_seconds.is_none_or(|seconds| seconds > 5.0), "{heal:?}");
    assert_eq!(measure::converge(size(CutOff)).expect("measures").seconds, None);
}

/// The shipped limit is 1,024; what happens above it is the same above 12.
#[test]
fn a_mesh_above_the_limit_keeps_a_fixed_set_warm_and_all_its_promises() {
    let scenario = scenario(
        "nodes = 32
        [[step]]\nat = 40\npublish = { nodes = '0-9', count = 1 }
        [[step]]\nat = 41\nkill = { nodes = '28-30' }
        [[step]]\nat = 51\nrestart = { nodes = '5', disk = 'lost' }
        [expect]\njoined_within = 10\nconverged_within = 30\ndown = '28-30'
        never_down = 'others'\nmax_renewals = 0",
    );
    let mut mesh = Mesh::new(&scenario, 1).expect("mesh");
    mesh.set_warm_limit(12);
    let report = scenario::play(&scenario, 1, &mut mesh).expect("plays");
    assert!(report.holds(), "{report}");
    let connections = mesh.connections();
    assert!(connections.iter().all(|count| (1..=16).contains(count)), "{connections:?}");
}

#[test]
fn a_machine_that_slept_an_hour_asks_first_and_blames_nobody() {
    let scenario = scenario("nodes = 8\n[[step]]\nat = 40\nheal = {}");
    let mut mesh = Mesh::new(&scenario, 1).expect("mesh");
    assert!(scenario::play(&scenario, 1, &mut mesh).expect("plays").holds());
    let second = std::time::Duration::from_secs(1);
    mesh.sleep(5);
    mesh.run(mesh.now + 3_600 * second);
    mesh.downs.clear();
    mesh.wake_up(5);
    mesh.run(mesh.now + 7 * second / 10);
    let seen = |mesh: &mut Mesh| {
        (0..8).map(|node| scenario::World::state(mesh, node).expect("runs").up.len()).collect::<Vec<_>>()
    };
    assert_eq!(seen(&mut mesh), [7; 8]);
    mesh.run(mesh.now + 30 * second);
    assert_eq!((seen(&mut mesh), &mesh.downs[..]), (vec![7; 8], &[][..]));
}
