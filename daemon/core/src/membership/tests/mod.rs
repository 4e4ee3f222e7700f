//! Membership as a whole: one node against hand-made peers, and meshes in virtual time.
//!
//! Owns: the clauses of design section 5 as tests. Must not know: foca's inside. Driven by: cargo test.

mod attack;
mod deaths;
mod doubt;
mod evicted;
mod faults;
mod indirect;
mod joint;
mod mesh;
pub(in crate::membership) mod peer;
mod sim;
mod spare;
mod sparse;

use std::time::Instant;

/// A moment to count from.
#[allow(clippy::disallowed_methods, reason = "an Instant has no other source, and no test depends on it")]
pub(super) fn start() -> Instant {
    Instant::now()
}
