//! The fuzz body of packets and full states.
//!
//! Owns: what must hold for any bytes from a peer. Must not know: where they come from.
//! Driven by: the fuzz targets and a property test.

use std::time::Instant;

use gossamer_wire::frame::Frame;
use gossamer_wire::limits::MAX_SWIM_BYTES;
use gossamer_wire::swim::Identity;
use gossamer_wire::{Generation, NodeId};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{Input, Membership, MembershipConfig, Output};

/// Feeds the bytes in every way a peer can, then lets the timers run for a while.
///
/// # Panics
/// When a rule is broken: that is its purpose.
#[allow(clippy::disallowed_methods, reason = "an Instant has no other source, and no step depends on it")]
pub(super) fn run(bytes: &[u8]) {
    let mut now = Instant::now();
    let me = Identity { node: ME, generation: Generation::of_epoch(7) };
    let mut membership = Membership::new(MembershipConfig::default(), me, StdRng::seed_from_u64(1), now);
    for peer in [PEER, OTHER] {
        membership.handle(Input::Connected { peer }, now);
    }
    for from in [PEER, OTHER, PEER, ME] {
        membership.handle(Input::Packet { from, bytes: bytes.to_vec() }, now);
        if let Ok(Some(Frame::Members { members, reply })) = Frame::decode(MEMBERS, bytes) {
            membership.handle(Input::Members { from, members, reply }, now);
        }
        let number = bytes.first().copied().unwrap_or_default().into();
        membership.handle(Input::Probe { from, number }, now);
        membership.handle(Input::ProbeAck { from, number }, now);
        check(&mut membership);
    }
    for _ in 0..50 {
        let Some(due) = membership.next_deadline() else { return };
        now = due;
        membership.handle_timeout(now);
        check(&mut membership);
    }
}

fn check(membership: &mut Membership) {
    let me = membership.me();
    assert_eq!(me.node, ME);
    assert!(membership.members().all(|view| view.node != ME));
    while let Some(output) = membership.next_output() {
        match output {
            Output::Packet { to, bytes } => {
                assert!(to != ME && bytes.len() <= MAX_SWIM_BYTES);
            }
            Output::Frame { to, frame } => assert!(to != ME && frame.encode().is_ok()),
            Output::Renewed(generation) => assert!(generation <= me.generation),
            Output::Changed { node, .. } => assert_ne!(node, ME),
            Output::Refuted { accused, .. } => assert_ne!(accused, ME),
            Output::Named { accuser } | Output::Forgiven { accuser } => assert_ne!(accuser, ME),
            Output::Reach { .. } | Output::Refused { .. } => {}
        }
    }
}

const ME: NodeId = NodeId::from_bytes([1; 16]);
const PEER: NodeId = NodeId::from_bytes([2; 16]);
const OTHER: NodeId = NodeId::from_bytes([3; 16]);

/// The kind of [`Frame::Members`].
const MEMBERS: u16 = 7;
