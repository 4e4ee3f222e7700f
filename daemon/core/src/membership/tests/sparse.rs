//! Meshes too large for a connection between all pairs, at a small limit.

use super::sim::{SECOND, Sim, id};
use crate::dial::WarmSet;
use crate::membership::{MemberState, Output};

/// Twenty-four nodes of which each watches about a quarter.
fn sparse(seed: u64) -> Sim {
    let mut sim = Sim::with_warm(24, seed, WarmSet::new(10));
    (1..24).for_each(|node| sim.connect(node, 0));
    sim.run_until(60 * SECOND, Sim::all_see_all).expect("the mesh forms");
    sim.run(30 * SECOND);
    sim.events.clear();
    (sim.cold_pings, sim.unsendable) = (0, 0);
    sim
}

#[test]
fn nobody_pings_a_pair_that_is_not_warm_and_nobody_is_doubted() {
    let mut sim = sparse(1);
    sim.run(60 * SECOND);
    assert_eq!(sim.cold_pings, 0);
    assert!(sim.events.is_empty(), "{:?}", sim.events);
}

#[test]
fn every_node_is_probed_as_often_as_in_a_small_mesh() {
    let mut sim = sparse(2);
    let before = sim.packets;
    sim.run(60 * SECOND);
    let rate = (sim.packets - before) as f64 / (24.0 * 60.0);
    assert!((3.5..4.5).contains(&rate), "{rate} packets a second: two pings and two answers");
}

#[test]
fn a_death_is_known_to_all_as_soon_and_only_by_those_who_watch() {
    for seed in 3..5 {
        let mut sim = sparse(seed);
        sim.kill(7);
        let is_known = |sim: &Sim| sim.running().all(|node| sim.state(node, 7) == Some(MemberState::Down));
        let took = sim.run_until(20 * SECOND, is_known).expect("the death is known");
        assert!(took < 8 * SECOND, "seed {seed}: {took:?}");
        sim.run(30 * SECOND);
        let is_other = |output: &Output| matches!(output, Output::Changed { node, to, .. } if *node != id(7) && !to.is_up());
        assert!(!sim.events.iter().any(|event| is_other(&event.output)), "{:?}", sim.verdicts());
    }
}

#[test]
fn loss_downs_nobody() {
    let mut sim = sparse(7);
    sim.loss = 0.05;
    sim.run(60 * SECOND);
    assert!(sim.verdicts().is_empty(), "{:?}", sim.verdicts());
}

#[test]
fn news_goes_to_peers_that_can_be_reached() {
    let mut sim = sparse(8);
    sim.kill(7);
    sim.run(30 * SECOND);
    let share = sim.unsendable as f64 / sim.packets as f64;
    assert!(share < 0.02, "{share} of all packets");
}
