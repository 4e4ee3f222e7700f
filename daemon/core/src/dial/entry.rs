//! What the book knows of one node.
//!
//! Owns: its addresses, standing, failures and state, and how long the next pause is. Must not know: other nodes. Driven by:
//! the dial book.

use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use super::addresses::Addresses;
use super::warm::{PairRank, WarmSet};
use super::{LONGEST_LIVE, LONGEST_SILENT, SHORTEST, Standing};

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) addresses: Addresses,
    pub(super) standing: Standing,
    pub(super) failures: u32,
    /// What the back-off starts anew from.
    pub(super) least_failures: u32,
    /// Whether a dial has reached it since the last connection was up.
    pub(super) was_reached: bool,
    /// Whether this node dialled the last connection: perhaps only it can.
    pub(super) is_ours: bool,
    /// Whether it has left, and perhaps only this node can find it when it starts again.
    pub(super) may_be_back: bool,
    /// Of this node and that one.
    pub(super) rank: PairRank,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// No address is known, no connection is wanted, or enough other silent nodes wait.
    Idle,
    Waiting(Instant),
    Dialing(Instant),
    Connected(Instant),
}

impl Entry {
    pub(super) fn new(rank: PairRank) -> Self {
        Self {
            addresses: Addresses::default(),
            standing: Standing::Silent,
            failures: 0,
            least_failures: 0,
            was_reached: false,
            is_ours: false,
            may_be_back: false,
            rank,
            state: State::Idle,
        }
    }

    /// Whether this node wants a connection: it looks for whoever is not a member for certain.
    pub(super) fn is_wanted(&self, warm: WarmSet) -> bool {
        self.standing == Standing::Silent || warm.holds(self.rank)
    }

    pub(super) const fn has_address(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// Draws the pause after one more failure.
    pub(super) fn pause(&self, rng: &mut StdRng) -> Duration {
        let longest = match self.standing {
            Standing::Live => LONGEST_LIVE,
            Standing::Silent => LONGEST_SILENT,
        };
        let doubled = SHORTEST.saturating_mul(1 << self.failures.min(16));
        doubled.min(longest).mul_f64(rng.random_range(0.5..1.5))
    }

    pub(super) fn is_silent_and_waits(&self) -> bool {
        self.standing == Standing::Silent && matches!(self.state, State::Waiting(_))
    }

    pub(super) fn is_set_aside(&self) -> bool {
        self.standing == Standing::Silent && matches!(self.state, State::Idle) && self.has_address()
    }
}
