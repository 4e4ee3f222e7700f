//! Meshes in virtual time whose links are whole: joining, dying, restarting, leaving.

use gossamer_wire::Generation;

use super::sim::{Event, SECOND, Sim, id};
use crate::membership::{Cause, Input, MemberState, Output};

#[test]
fn three_nodes_that_join_in_a_chain_see_each_other() {
    let mut sim = Sim::new(3, 1);
    sim.connect(1, 0);
    sim.connect(2, 1);
    let took = sim.run_until(5 * SECOND, Sim::all_see_all).expect("all see all");
    assert!(took < SECOND, "took {took:?}");
}

#[test]
fn twenty_nodes_that_join_through_one_see_each_other_within_a_second() {
    let mut sim = Sim::new(20, 2);
    (1..20).for_each(|node| sim.connect(node, 0));
    let took = sim.run_until(10 * SECOND, Sim::all_see_all).expect("all see all");
    assert!(took < SECOND, "took {took:?}");
    assert!(sim.verdicts().is_empty(), "{:?}", sim.verdicts());
}

#[test]
fn a_hundred_nodes_that_join_over_ten_seconds_see_each_other_soon_after_the_last() {
    let mut sim = Sim::new(100, 3);
    for node in 1..100 {
        sim.connect(node, node / 2);
        sim.run(SECOND / 10);
    }
    let took = sim.run_until(30 * SECOND, Sim::all_see_all).expect("all see all");
    assert!(took < 3 * SECOND, "took {took:?}");
    assert!(sim.verdicts().is_empty(), "{:?}", sim.verdicts());
}

#[test]
fn a_killed_node_is_down_everywhere_in_six_seconds_and_nobody_else_is() {
    let mut sim = Sim::settled(20, 4);
    sim.kill(7);
    let is_known = |sim: &Sim| sim.running().all(|node| sim.state(node, 7) == Some(MemberState::Down));
    let took = sim.run_until(10 * SECOND, is_known).expect("the death is known");
    assert!(took > 2 * SECOND && took < 6 * SECOND, "took {took:?}");
    sim.run(30 * SECOND);
    assert!(sim.all_see_all());
    let about = |event: &&Event| matches!(event.output, Output::Changed { node, .. } if node == id(7));
    assert_eq!(sim.verdicts().into_iter().filter(about).count(), 19, "one report at each node");
    assert_eq!(sim.verdicts().len(), 19, "and none about others");
}

/// Each of those that live would find each of the dead within the second in which it waits for its own proof.
#[test]
fn a_lost_zone_is_told_of_by_its_first_finders_only() {
    for seed in 80..84 {
        let mut sim = Sim::settled(18, seed);
        (12..18).for_each(|node| sim.kill(node));
        sim.shouts = 0;
        let is_known = |sim: &Sim| (12..18).all(|dead| sim.state(0, dead) == Some(MemberState::Down));
        sim.run_until(10 * SECOND, is_known).expect("the deaths are known");
        sim.run(10 * SECOND);
        // Beginning and end of each, to 11 others.
        let once = 6 * 2 * 11;
        assert!((once..=3 * once).contains(&sim.shouts), "seed {seed}: {} frames of {once}", sim.shouts);
    }
}

#[test]
fn a_death_is_suspicion_first_and_somebody_found_it_by_silence() {
    let mut sim = Sim::settled(5, 5);
    sim.kill(2);
    sim.run(10 * SECOND);
    let first = sim.reports(MemberState::Suspect).first().map(|event| event.at).expect("suspected");
    let downs = sim.reports(MemberState::Down);
    assert!(downs.iter().all(|event| event.at > first));
    let is_own = |event: &&&Event| matches!(event.output, Output::Changed { cause: Cause::Silence, .. });
    assert!(downs.iter().filter(is_own).count() >= 1, "{downs:?}");
}

#[test]
fn a_node_that_restarts_at_once_is_alive_in_its_new_life_and_sees_all() {
    let mut sim = Sim::settled(20, 9);
    sim.kill(3);
    sim.run(SECOND / 10);
    sim.restart(3, 2, 0);
    let took = sim.run_until(10 * SECOND, Sim::all_see_all).expect("back");
    assert!(took < SECOND, "took {took:?}");
    sim.run(30 * SECOND);
    assert!(sim.all_see_all());
    assert_eq!(sim.membership(3).me().generation, Generation::of_epoch(2));
}

#[test]
fn a_node_that_restarts_after_its_death_was_known_is_alive_again() {
    let mut sim = Sim::settled(10, 10);
    sim.kill(3);
    sim.run(20 * SECOND);
    sim.events.clear();
    sim.restart(3, 2, 5);
    let took = sim.run_until(10 * SECOND, Sim::all_see_all).expect("back");
    assert!(took < SECOND, "took {took:?}");
    assert!(sim.verdicts().is_empty(), "{:?}", sim.verdicts());
}

#[test]
fn a_rolling_restart_downs_nobody_and_all_see_all_after_it() {
    let mut sim = Sim::settled(30, 26);
    for node in 0..30 {
        sim.kill(node);
        sim.run(SECOND / 2);
        sim.restart(node, 2, (node + 15) % 30);
    }
    let took = sim.run_until(10 * SECOND, Sim::all_see_all).expect("all see all");
    assert!(took < SECOND, "took {took:?}");
    assert!(sim.verdicts().is_empty(), "{:?}", sim.verdicts());
}

#[test]
fn a_node_that_lost_its_epoch_renews_itself_above_what_others_know() {
    let mut sim = Sim::settled(5, 11);
    sim.kill(3);
    sim.restart(3, 9, 0);
    sim.run(2 * SECOND);
    sim.kill(3);
    sim.restart(3, 4, 0);
    sim.run_until(10 * SECOND, Sim::all_see_all).expect("back");
    let generation = sim.membership(3).me().generation;
    assert!(generation > Generation::of_epoch(9));
    let renewed = |event: &Event| event.node == 3 && event.output == Output::Renewed(generation);
    assert!(sim.events.iter().any(renewed));
}

#[test]
fn a_leave_is_known_as_such_everywhere_at_once() {
    let mut sim = Sim::settled(10, 12);
    sim.input(4, Input::Leave);
    assert_eq!(sim.membership(4).next_deadline(), None);
    sim.run(SECOND);
    for node in (0..10).filter(|node| *node != 4) {
        assert_eq!(sim.state(node, 4), Some(MemberState::Left), "at {node}");
    }
    sim.run(30 * SECOND);
    assert_eq!(sim.verdicts().len(), 9, "{:?}", sim.verdicts());
}

#[test]
fn a_leave_spreads_as_such_to_nodes_the_leaver_cannot_reach() {
    let mut sim = Sim::settled(6, 13);
    (1..5).for_each(|node| sim.cut(node, 5));
    sim.input(5, Input::Leave);
    sim.run(3 * SECOND / 2);
    (0..5).for_each(|node| assert_eq!(sim.state(node, 5), Some(MemberState::Left), "at {node}"));
}

#[test]
fn a_node_that_left_comes_back_with_its_next_start() {
    let mut sim = Sim::settled(4, 14);
    sim.input(2, Input::Leave);
    sim.run(SECOND);
    sim.restart(2, 2, 0);
    sim.run_until(5 * SECOND, Sim::all_see_all).expect("back");
}

#[test]
fn down_members_are_forgotten_in_the_end() {
    let mut sim = Sim::settled(3, 19);
    sim.kill(2);
    sim.run(60 * SECOND);
    assert_eq!(sim.state(0, 2), Some(MemberState::Down));
    sim.run(900 * SECOND);
    assert_eq!((sim.state(0, 2), sim.state(1, 2)), (None, None));
}

#[test]
fn an_idle_node_sends_about_four_packets_a_second() {
    let mut sim = Sim::settled(20, 20);
    let (packets, bytes) = (sim.packets, sim.bytes);
    sim.run(60 * SECOND);
    let rate = |count| count as f64 / (20.0 * 60.0);
    let (packets, bytes) = (rate(sim.packets - packets), rate(sim.bytes - bytes));
    assert!(packets < 4.5 && bytes < 60.0, "{packets} packets, {bytes} bytes a second");
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let run = |seed| {
        let mut sim = Sim::settled(10, seed);
        sim.loss = 0.2;
        sim.kill(3);
        sim.run(30 * SECOND);
        (sim.events, sim.packets, sim.bytes)
    };
    assert_eq!(run(21), run(21));
    assert_ne!(run(21), run(22));
}
