//! Evicted nodes are gone at once, and no word of others brings them back.

use std::collections::BTreeSet;
use std::sync::Arc;

use gossamer_wire::swim::{SwimMessage, SwimState};

use super::peer::{Probe, entry, node};
use crate::membership::{Cause, Input, MemberState, Output};

const OUT: u8 = 3;

fn evict(probe: &mut Probe) -> Vec<Output> {
    probe.give(Input::Evicted(Arc::new(BTreeSet::from([node(OUT)]))))
}

fn changes(outputs: &[Output]) -> Vec<(MemberState, Cause)> {
    let change = |output: &Output| match output {
        Output::Changed { node: changed, to, cause, .. } if *changed == node(OUT) => Some((*to, *cause)),
        _ => None,
    };
    outputs.iter().filter_map(change).collect()
}

#[test]
fn an_evicted_member_is_gone_at_once_and_stays_gone() {
    let mut probe = Probe::with_peer();
    probe.packet(super::peer::PEER, SwimMessage::Gossip, vec![entry(OUT, 1, SwimState::Alive)]);
    assert_eq!(changes(&evict(&mut probe)), [(MemberState::Left, Cause::Statement)]);
    assert_eq!(changes(&evict(&mut probe)), [], "said once");
    for epoch in [1, 2, 9] {
        let outputs =
            probe.packet(super::peer::PEER, SwimMessage::Gossip, vec![entry(OUT, epoch, SwimState::Alive)]);
        assert_eq!(changes(&outputs), [], "life {epoch}");
        let members = vec![entry(OUT, epoch, SwimState::Alive)];
        let outputs = probe.give(Input::Members { from: node(super::peer::PEER), members, reply: false });
        assert_eq!(changes(&outputs), [], "life {epoch} in a full state");
    }
}

#[test]
fn a_node_that_was_evicted_before_it_was_heard_of_never_comes_in() {
    let mut probe = Probe::with_peer();
    assert_eq!(changes(&evict(&mut probe)), []);
    let outputs = probe.packet(super::peer::PEER, SwimMessage::Gossip, vec![entry(OUT, 1, SwimState::Alive)]);
    assert_eq!(changes(&outputs), []);
    assert!(probe.membership.members().all(|view| view.node != node(OUT)));
}
