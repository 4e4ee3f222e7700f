//! One admitted member lies about others. It costs them nothing, and it is named; who errs honestly is not.

use std::time::Duration;

use gossamer_wire::Generation;
use gossamer_wire::limits::MAX_EPOCH;
use gossamer_wire::swim::{Identity, SwimMember, SwimMessage, SwimState};

use super::sim::{Event, SECOND, Sim, id};
use crate::membership::{Input, MemberState, Output};

const LIAR: usize = 0;
const VICTIM: usize = 7;

/// What the liar says of the victim in its present life.
fn lie(sim: &Sim, incarnation: u16, state: SwimState) -> SwimMember {
    SwimMember { identity: sim.membership(VICTIM).me(), incarnation, state }
}

/// Sends three packets of the kind to random honest nodes, then 100 a second for a minute to each in turn.
fn flood(sim: &mut Sim, nodes: usize, packet: impl Fn(&Sim) -> (SwimMessage, Vec<SwimMember>)) {
    for to in 1..4 {
        let (message, members) = packet(sim);
        sim.forge(LIAR, to, message, members);
    }
    sim.run(10 * SECOND);
    for n in 0..6_000 {
        let (message, members) = packet(sim);
        sim.forge(LIAR, 1 + n % (nodes - 1), message, members);
        sim.run(Duration::from_millis(10));
    }
    sim.run(10 * SECOND);
}

/// Asserts that no honest node missed any other for a moment, and returns the renewals of the victim.
fn renewals(sim: &Sim) -> usize {
    let verdicts = sim.verdicts().into_iter().filter(|event| event.node != LIAR);
    let (renewed, absent): (Vec<&Event>, Vec<&Event>) =
        verdicts.partition(|event| matches!(event.output, Output::Renewed(_)));
    assert!(absent.is_empty(), "{absent:?}");
    assert!(renewed.iter().all(|event| event.node == VICTIM), "{renewed:?}");
    renewed.len()
}

fn named(sim: &Sim) -> Vec<(usize, usize)> {
    let name = |event: &Event| match event.output {
        Output::Named { accuser } => Some((event.node, (0..100).find(|node| id(*node) == accuser)?)),
        _ => None,
    };
    sim.events.iter().filter_map(name).collect()
}

/// Asserts that honest nodes named the liar and nobody else, each at most once; returns how many did.
fn namers(sim: &Sim) -> usize {
    let mut named = named(sim);
    assert!(named.iter().all(|(_, accused)| *accused == LIAR), "{named:?}");
    let count = named.len();
    named.sort_unstable();
    named.dedup();
    assert_eq!(named.len(), count, "named once");
    count
}

#[test]
fn forged_deaths_cost_the_victim_nothing_and_name_the_liar() {
    let mut sim = Sim::settled(12, 41);
    flood(&mut sim, 12, |sim| (SwimMessage::Gossip, vec![lie(sim, 0, SwimState::Down)]));
    assert!(renewals(&sim) <= 2, "the victim itself is told, too");
    assert!(namers(&sim) >= 10, "{:?}", named(&sim));
    assert!(sim.all_see_all());
    assert!((1..12).all(|node| sim.membership(node).named().eq([id(LIAR)])));
}

#[test]
fn forged_suspicions_cost_the_victim_nothing() {
    let mut sim = Sim::settled(12, 42);
    flood(&mut sim, 12, |sim| (SwimMessage::Gossip, vec![lie(sim, 0, SwimState::Suspect)]));
    assert_eq!(renewals(&sim), 0);
    assert!(sim.all_see_all());
}

#[test]
fn suspicions_of_the_last_incarnation_cost_the_victim_nothing_and_name_the_liar() {
    let mut sim = Sim::settled(12, 43);
    flood(&mut sim, 12, |sim| (SwimMessage::Gossip, vec![lie(sim, u16::MAX, SwimState::Suspect)]));
    assert_eq!(renewals(&sim), 0);
    assert!(namers(&sim) >= 1, "the victim knows that it never had it");
    assert!(sim.all_see_all());
}

#[test]
fn an_incarnation_far_ahead_is_not_taken_from_others() {
    let mut sim = Sim::settled(12, 44);
    flood(&mut sim, 12, |sim| (SwimMessage::Gossip, vec![lie(sim, u16::MAX - 1, SwimState::Alive)]));
    let seen =
        |sim: &Sim| sim.membership(3).members().find(|view| view.node == id(VICTIM)).map(|v| v.incarnation);
    assert_eq!(seen(&sim), Some(0));
    sim.kill(VICTIM);
    let is_known = |sim: &Sim| sim.running().all(|node| sim.state(node, VICTIM) == Some(MemberState::Down));
    sim.run_until(10 * SECOND, is_known).expect("its death is known all the same");
}

#[test]
fn orders_to_renew_make_no_storm_and_name_the_liar() {
    let mut sim = Sim::settled(12, 45);
    for _ in 0..6_000 {
        sim.forge(LIAR, VICTIM, SwimMessage::TurnUndead, vec![]);
        sim.run(Duration::from_millis(10));
    }
    assert!(renewals(&sim) <= 2);
    assert_eq!(namers(&sim), 1, "the victim is the only one who knows");
    assert!(sim.all_see_all());
}

#[test]
fn forged_deaths_told_to_the_victim_make_no_storm() {
    let mut sim = Sim::settled(12, 46);
    for _ in 0..6_000 {
        let lie = lie(&sim, 0, SwimState::Down);
        sim.forge(LIAR, VICTIM, SwimMessage::Gossip, vec![lie.clone()]);
        sim.input(VICTIM, Input::Members { from: id(LIAR), members: vec![lie], reply: false });
        sim.run(Duration::from_millis(10));
    }
    assert!(renewals(&sim) <= 4);
    assert!(sim.all_see_all());
}

#[test]
fn forged_deaths_in_full_states_cost_the_victim_nothing() {
    let mut sim = Sim::settled(12, 47);
    for n in 0..6_000 {
        let members = vec![lie(&sim, 0, SwimState::Down)];
        sim.input(1 + n % 11, Input::Members { from: id(LIAR), members, reply: false });
        sim.run(Duration::from_millis(10));
    }
    assert!(renewals(&sim) <= 5);
    assert!(sim.all_see_all());
}

#[test]
fn a_life_the_victim_never_had_is_not_believed() {
    let mut sim = Sim::settled(12, 48);
    for state in [SwimState::Alive, SwimState::Suspect, SwimState::Down] {
        flood(&mut sim, 12, |sim| {
            let identity = Identity { generation: Generation::of_epoch(99), ..sim.membership(VICTIM).me() };
            (SwimMessage::Gossip, vec![SwimMember { identity, incarnation: 0, state }])
        });
    }
    assert!(renewals(&sim) <= 12, "one to a packet that reaches the victim itself, in ever longer pauses");
    assert!(sim.all_see_all());
}

#[test]
fn a_cut_between_two_honest_nodes_names_nobody_with_and_without_loss() {
    for (seed, loss) in [(51, 0.0), (52, 0.05), (53, 0.2)] {
        let mut sim = Sim::settled(8, seed);
        sim.loss = loss;
        sim.cut(1, 2);
        sim.cut_one_way(3, 4);
        sim.run(600 * SECOND);
        assert_eq!(named(&sim), [], "loss {loss}");
        assert!(sim.verdicts().is_empty(), "loss {loss}: {:?}", sim.verdicts());
    }
}

#[test]
fn a_node_that_hears_nobody_is_not_named_and_downs_nobody_else_for_the_others() {
    let mut sim = Sim::settled(8, 54);
    (1..8).for_each(|other| sim.cut_one_way(other, 0));
    sim.run(60 * SECOND);
    assert_eq!(named(&sim), []);
    let wronged = |event: &&Event| matches!(event.output, Output::Changed { node, to, .. } if !to.is_up() && node != id(0));
    assert_eq!(sim.events.iter().filter(|event| event.node != 0).filter(wronged).count(), 0);
}

#[test]
fn a_real_death_is_known_as_fast_while_a_liar_talks() {
    let mut sim = Sim::settled(12, 55);
    sim.kill(9);
    for n in 0..600 {
        let lie = lie(&sim, 0, SwimState::Down);
        sim.forge(LIAR, 1 + n % 8, SwimMessage::Gossip, vec![lie]);
        sim.run(Duration::from_millis(10));
    }
    assert!(sim.running().all(|node| sim.state(node, 9) == Some(MemberState::Down)));
    let is_victim = |event: &&Event| matches!(event.output, Output::Changed { node, to, .. } if !to.is_up() && node == id(VICTIM));
    assert_eq!(sim.events.iter().filter(is_victim).count(), 0);
}

/// Whoever believed it would ignore the victim, which can take no life above the last one.
#[test]
fn the_last_life_claimed_for_another_is_believed_by_nobody() {
    let mut sim = Sim::settled(12, 49);
    let victim = sim.membership(VICTIM).me();
    let last = Generation { epoch: MAX_EPOCH, renewals: (1 << 20) - 1 };
    for n in 0..3_000 {
        let to = 1 + n % 6;
        let identity = Identity { generation: last, ..victim };
        sim.forge(
            LIAR,
            to,
            SwimMessage::Gossip,
            vec![SwimMember { identity, incarnation: 0, state: SwimState::Alive }],
        );
        sim.run(Duration::from_millis(10));
    }
    assert_eq!((renewals(&sim), sim.membership(VICTIM).me()), (0, victim));
    assert!(sim.all_see_all());
}
