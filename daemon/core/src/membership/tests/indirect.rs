//! A member without a connection to the accused asks others before it believes.

use std::time::Duration;

use gossamer_wire::NodeId;
use gossamer_wire::frame::Frame;
use gossamer_wire::swim::{self, SwimMember, SwimMessage, SwimState};

use super::peer::{ME, PEER, Probe, entry, frames, node};
use super::sim::{SECOND, Sim, id};
use crate::dial::WarmSet;
use crate::membership::{Input, MemberState, Output, REFUTED_CLAIMS};

const ACCUSED: u8 = 9;

/// One lie about a member at a time would take longer than a young member goes unprobed: these come in turn.
const OTHERS: [u8; 10] = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19];

/// A node with the peers 2 to 7 that has heard of the accused.
fn probe() -> Probe {
    let mut probe = Probe::with_peer();
    for peer in 3..8 {
        probe.give(Input::Connected { peer: node(peer) });
        probe.packet(peer, SwimMessage::Gossip, vec![]);
    }
    let members = OTHERS.into_iter().chain([ACCUSED]).map(|n| entry(n, 1, SwimState::Alive)).collect();
    probe.packet(PEER, SwimMessage::Gossip, members);
    probe.run_with(SECOND / 10, &[2, 3, 4, 5, 6, 7]);
    probe
}

fn accuse(probe: &mut Probe, accuser: u8) -> Vec<Output> {
    accuse_of(probe, accuser, ACCUSED)
}

fn accuse_of(probe: &mut Probe, accuser: u8, accused: u8) -> Vec<Output> {
    probe.packet(accuser, SwimMessage::Gossip, vec![entry(accused, 1, SwimState::Down)])
}

/// Returns who is asked, and the number of the probe.
fn asked(outputs: &[Output]) -> Vec<(NodeId, u8)> {
    let asked = outputs.iter().filter_map(|output| match output {
        Output::Frame { to, frame: Frame::Swim(bytes) } => {
            match swim::decode_header(bytes).expect("own").0.message {
                SwimMessage::PingReq { probe, .. } => Some((*to, probe)),
                _ => None,
            }
        }
        _ => None,
    });
    asked.collect()
}

/// Lets a peer say that the accused has answered it.
fn vouch(probe: &mut Probe, helper: NodeId, number: u8) -> Vec<Output> {
    vouch_for(probe, helper, ACCUSED, number)
}

fn vouch_for(probe: &mut Probe, helper: NodeId, accused: u8, number: u8) -> Vec<Output> {
    let origin = entry(accused, 1, SwimState::Alive).identity;
    let by = helper.as_bytes()[0];
    probe.packet(by, SwimMessage::ForwardedAck { origin, probe: number }, vec![])
}

/// Lets time pass in which the peers answer their own pings; returns what comes out.
fn pass(probe: &mut Probe, length: Duration) -> Vec<Output> {
    probe.run_with(length, &[2, 3, 4, 5, 6, 7])
}

fn is_refuted(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Refuted { .. }))
}

#[test]
fn three_others_are_asked_and_a_connection_is_wanted() {
    let mut probe = probe();
    let outputs = accuse(&mut probe, PEER);
    let asked = asked(&outputs);
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|(helper, _)| *helper != node(PEER)), "not who accuses: {asked:?}");
    assert!(outputs.contains(&Output::Reach { node: node(ACCUSED) }));
}

#[test]
fn two_that_have_seen_it_clear_it_at_once_and_count_against_its_accuser() {
    let mut probe = probe();
    for (round, accused) in (1..=5).zip(OTHERS) {
        let asked = asked(&accuse_of(&mut probe, PEER, accused));
        let mut vouch = |at: usize| vouch_for(&mut probe, asked[at].0, accused, asked[at].1);
        assert!(!is_refuted(&vouch(0)), "one against one");
        assert!(!is_refuted(&vouch(0)), "the same one again");
        let outputs = vouch(1);
        assert!(is_refuted(&outputs));
        assert_eq!(outputs.contains(&Output::Named { accuser: node(PEER) }), round == 5);
        pass(&mut probe, 5 * SECOND);
    }
    assert!(OTHERS.into_iter().all(|n| probe.state(n) != Some(MemberState::Down)));
}

#[test]
fn one_that_has_seen_it_saves_it_from_one_accuser_and_blames_nobody() {
    // One lie after the other; then so far apart that each would count, if any did.
    for (lies, rest) in [(OTHERS.len(), Duration::ZERO), (REFUTED_CLAIMS, 4 * SECOND)] {
        let mut probe = probe();
        for accused in OTHERS.into_iter().take(lies) {
            let asked = asked(&accuse_of(&mut probe, PEER, accused));
            vouch_for(&mut probe, asked[0].0, accused, asked[0].1);
            assert!(is_refuted(&pass(&mut probe, SECOND * 11 / 10)));
            assert_eq!(probe.state(accused), Some(MemberState::Alive));
            pass(&mut probe, rest);
        }
        // Nobody answers pings for it here, so in the end it is doubted, but not for what was claimed.
        let worst = if rest.is_zero() { MemberState::Alive } else { MemberState::Suspect };
        let is_saved = |n| [MemberState::Alive, worst].map(Some).contains(&probe.state(n));
        assert!(OTHERS.into_iter().all(is_saved));
        assert_eq!(probe.membership.named().count(), 0);
    }
}

/// Otherwise one liar could keep the dead among the living.
#[test]
fn one_that_has_seen_it_does_not_outweigh_two_accusers() {
    let mut probe = probe();
    let asked = asked(&accuse(&mut probe, PEER));
    let second = (3..8).find(|n| asked.iter().all(|(helper, _)| *helper != node(*n))).expect("three of five");
    accuse(&mut probe, second);
    vouch(&mut probe, asked[0].0, asked[0].1);
    pass(&mut probe, SECOND * 11 / 10);
    assert_eq!(probe.state(ACCUSED), Some(MemberState::Down));
}

#[test]
fn word_of_who_was_not_asked_or_of_another_probe_or_life_counts_for_nothing() {
    let mut probe = probe();
    let asked = asked(&accuse(&mut probe, PEER));
    let stranger = (2..8).map(node).find(|n| asked.iter().all(|(helper, _)| helper != n)).expect("others");
    vouch(&mut probe, stranger, asked[0].1);
    let later = entry(ACCUSED, 2, SwimState::Alive).identity;
    for (helper, number) in &asked {
        vouch(&mut probe, *helper, number + 1);
        let by = helper.as_bytes()[0];
        probe.packet(by, SwimMessage::ForwardedAck { origin: later, probe: *number }, vec![]);
    }
    pass(&mut probe, SECOND * 21 / 10);
    assert_eq!(probe.state(ACCUSED), Some(MemberState::Down));
}

#[test]
fn a_lone_accuser_waits_for_a_second_round_and_two_do_not() {
    for (accusers, seconds) in [(1, 2), (2, 1)] {
        let mut probe = probe();
        (2..2 + accusers).for_each(|accuser| drop(accuse(&mut probe, accuser)));
        let again = asked(&pass(&mut probe, seconds * SECOND - SECOND / 20));
        assert_eq!(
            (again.len(), probe.state(ACCUSED)),
            (if accusers == 1 { 3 } else { 0 }, Some(MemberState::Alive))
        );
        pass(&mut probe, SECOND / 10);
        assert_eq!(probe.state(ACCUSED), Some(MemberState::Down), "{accusers}");
    }
}

#[test]
fn a_connection_that_comes_or_goes_in_time_changes_who_is_asked() {
    let mut probe = probe();
    let first = asked(&accuse(&mut probe, PEER))[0].1;
    pass(&mut probe, SECOND * 9 / 10);
    let frames = frames(&probe.give(Input::Connected { peer: node(ACCUSED) }));
    assert!(frames.iter().any(|frame| matches!(frame, Frame::Probe(number) if *number as u8 != first)));
    pass(&mut probe, SECOND * 9 / 10);
    assert_eq!(asked(&probe.give(Input::Disconnected { peer: node(ACCUSED) })).len(), 3);
    pass(&mut probe, SECOND * 9 / 10);
    assert_ne!(probe.state(ACCUSED), Some(MemberState::Down), "each has its second");
    pass(&mut probe, SECOND * 12 / 10);
    assert_eq!(probe.state(ACCUSED), Some(MemberState::Down));
}

#[test]
fn to_be_asked_is_no_accusation() {
    let mut probe = probe();
    let target = entry(ACCUSED, 1, SwimState::Alive).identity;
    let outputs: Vec<_> =
        (0..20).flat_map(|n| probe.packet(PEER, SwimMessage::PingReq { target, probe: n }, vec![])).collect();
    assert!(outputs.iter().all(|output| matches!(output, Output::Packet { to, .. } if *to == node(ACCUSED))));
    assert_eq!(outputs.len(), 20);
    let later = pass(&mut probe, 5 * SECOND);
    let is_about_it = |output: &Output| matches!(output, Output::Changed { node: who, .. } | Output::Refuted { accused: who, .. } if *who == node(ACCUSED));
    assert!(!later.iter().any(is_about_it));
    assert!(probe.membership.named().all(|accuser| accuser == node(ME)), "nobody is named");
}

/// Of 40 nodes each watches about 20, half of whom watch any other.
fn sparse(seed: u64) -> Sim {
    let mut sim = Sim::with_warm(40, seed, WarmSet::new(32));
    (1..40).for_each(|node| sim.connect(node, 0));
    sim.run_until(60 * SECOND, Sim::all_see_all).expect("the mesh forms");
    sim.run(30 * SECOND);
    sim.events.clear();
    sim.is_reachable = false;
    sim
}

#[test]
fn who_has_no_connection_to_the_victim_is_not_fooled_and_names_the_liar() {
    let mut sim = sparse(1);
    let cold: Vec<usize> = (1..40).filter(|node| *node != 7 && !sim.is_warm(*node, 7)).collect();
    for n in 0..cold.len() * 100 {
        let lie = SwimMember { identity: sim.membership(7).me(), incarnation: 0, state: SwimState::Down };
        sim.forge(0, cold[n % cold.len()], SwimMessage::Gossip, vec![lie]);
        sim.run(Duration::from_millis(20));
    }
    assert!(cold.len() > 10 && sim.verdicts().is_empty(), "{:?}", sim.verdicts());
    let named = |event: &&super::sim::Event| event.output == Output::Named { accuser: id(0) };
    assert_eq!(sim.events.iter().filter(named).count(), cold.len());
    assert!(sim.all_see_all());
}

#[test]
fn a_death_is_known_as_soon_to_those_without_a_connection() {
    for seed in 2..6 {
        let mut sim = sparse(seed);
        sim.kill(7);
        let is_known = |sim: &Sim| sim.running().all(|node| sim.state(node, 7) == Some(MemberState::Down));
        let took = sim.run_until(20 * SECOND, is_known).expect("the death is known");
        assert!(took < 6 * SECOND, "seed {seed}: {took:?}");
    }
}
