//! How often something that costs many others may be done.
//!
//! Owns: what is spent of a burst that fills again at a rate. Must not know: what it is spent on.
//! Driven by: `spread` and `exchange`.

use std::time::Instant;

/// A bucket of tokens that begins full.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    /// What is spent, and when it was.
    spent: f64,
    at: Option<Instant>,
}

impl Allowance {
    /// Takes one of `burst`, which come back at `rate` a second; `false` when none is left.
    pub(super) fn take(&mut self, burst: f64, rate: f64, now: Instant) -> bool {
        let since = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.spent = (self.spent - since * rate).max(0.0);
        self.at = Some(now);
        let is_left = self.spent + 1.0 <= burst;
        self.spent += f64::from(u8::from(is_left));
        is_left
    }
}
