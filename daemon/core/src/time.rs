//! The two clocks a core is told.
//!
//! Owns: the pair. Must not know: who reads the clocks. Driven by: the owner loop of each core.

use std::time::Instant;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic: leases, timers, back-off.
    pub mono: Instant,
    /// Seconds since the Unix epoch: certificates and tokens only, never liveness.
    pub wall: u64,
}
