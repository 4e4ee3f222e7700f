//! What a node spares: pings over connections that are still to come, and wake-ups without news.

use std::time::Duration;

use gossamer_wire::frame::Frame;
use gossamer_wire::swim::{SwimMessage, SwimState};

use super::peer::{PEER, Probe, entry, frames, messages_to, node};
use crate::membership::{Input, MemberState, Output};

const SECOND: Duration = Duration::from_secs(1);

/// A member this node knows from its peer and has no connection to.
const COLD: u8 = 3;

/// How long such a member may be without one.
const GRACE: Duration = Duration::from_secs(20);

/// A node with one peer, which has told it of a member.
fn probe() -> Probe {
    let mut probe = Probe::with_peer();
    probe.packet(PEER, SwimMessage::Gossip, vec![entry(COLD, 1, SwimState::Alive)]);
    probe
}

fn pings(outputs: &[Output], to: u8) -> usize {
    messages_to(outputs, to).iter().filter(|message| matches!(message, SwimMessage::Ping(_))).count()
}

/// Requests to others to ping somebody.
fn ping_requests(outputs: &[Output], to: u8) -> usize {
    messages_to(outputs, to).iter().filter(|message| matches!(message, SwimMessage::PingReq { .. })).count()
}

#[test]
fn a_member_still_to_be_connected_is_neither_pinged_nor_doubted() {
    let mut probe = probe();
    let outputs = probe.run_with(GRACE - SECOND, &[PEER]);
    assert_eq!((pings(&outputs, COLD), ping_requests(&outputs, PEER)), (0, 0));
    assert_eq!(probe.state(COLD), Some(MemberState::Alive));
    assert!(frames(&outputs).iter().all(|frame| matches!(frame, Frame::MemberHash(_))));
    assert!(pings(&outputs, PEER) > 10, "the turns of the others go on");
}

#[test]
fn a_member_that_stays_unconnected_is_pinged_and_doubted_in_the_end() {
    let mut probe = probe();
    let outputs = probe.run_with(GRACE + 5 * SECOND, &[PEER]);
    assert!(pings(&outputs, COLD) > 0 && ping_requests(&outputs, PEER) > 0, "others are asked, too");
    let is_doubt = |output: &Output| matches!(output, Output::Changed { node: who, to: MemberState::Suspect, .. } if *who == node(COLD));
    assert!(outputs.iter().any(is_doubt));
}

#[test]
fn news_for_members_without_a_connection_goes_to_one_that_has_one() {
    let mut probe = Probe::with_peer();
    let others = 10..30;
    let members = others.clone().map(|other| entry(other, 1, SwimState::Alive)).collect();
    probe.packet(PEER, SwimMessage::Gossip, members);
    let outputs = probe.run_with(2 * SECOND, &[PEER]);
    let gossip =
        |to| messages_to(&outputs, to).iter().filter(|message| **message == SwimMessage::Gossip).count();
    assert_eq!(others.map(gossip).sum::<usize>(), 0, "it would be lost");
    assert!(gossip(PEER) >= 12, "{}", gossip(PEER));
}

#[test]
fn a_young_member_with_a_connection_is_pinged_at_once() {
    let mut probe = probe();
    probe.give(Input::Connected { peer: node(COLD) });
    let outputs = probe.run_with(2 * SECOND, &[PEER, COLD]);
    assert!(pings(&outputs, COLD) > 0);
}

/// Counts the times the timers want something within a stretch of quiet.
fn wake_ups(probe: &mut Probe, length: Duration) -> usize {
    let end = probe.now + length;
    let mut count = 0;
    while let Some(due) = probe.membership.next_deadline().filter(|due| *due <= end) {
        count += 1;
        probe.run_with(due - probe.now, &[PEER, COLD]);
    }
    count
}

#[test]
fn an_idle_node_is_not_woken_for_rounds_of_gossip_without_news() {
    let mut probe = probe();
    probe.give(Input::Connected { peer: node(COLD) });
    probe.run_with(10 * SECOND, &[PEER, COLD]);
    // Two probes a second, each with a look at its answer; now and then a comparison or an announce.
    let count = wake_ups(&mut probe, 10 * SECOND);
    assert!((40..55).contains(&count), "{count}; rounds of gossip would be 100 more");
}

#[test]
fn news_starts_the_rounds_again_at_once() {
    let mut probe = probe();
    probe.give(Input::Connected { peer: node(COLD) });
    probe.run_with(10 * SECOND, &[PEER, COLD]);
    let gossip = |outputs: &[Output]| {
        let all = [PEER, COLD].iter().flat_map(|peer| messages_to(outputs, *peer)).collect::<Vec<_>>();
        all.iter().filter(|message| matches!(message, SwimMessage::Gossip)).count()
    };
    assert_eq!(gossip(&probe.run_with(10 * SECOND, &[PEER, COLD])), 0);
    probe.packet(PEER, SwimMessage::Gossip, vec![entry(4, 1, SwimState::Alive)]);
    let told = probe.run_with(SECOND / 2, &[PEER, COLD]);
    assert!(gossip(&told) >= 4, "{}", gossip(&told));
}
