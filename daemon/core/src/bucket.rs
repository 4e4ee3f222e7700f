//! How often something may be done: so often at once, and so often with time.
//!
//! Owns: the token bucket. Must not know: what is counted. Driven by: whatever has a rate.

use std::time::{Duration, Instant};

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    at: Instant,
    rate: f64,
    burst: f64,
}

impl Bucket {
    /// Makes a full bucket of `burst` tokens, refilled with `rate` tokens a second.
    pub(crate) const fn full(rate: f64, burst: f64, now: Instant) -> Self {
        Self { tokens: burst, at: now, rate, burst }
    }

    /// Takes one token; `false` when there is none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let refill = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + refill).min(self.burst);
        self.at = self.at.max(now);
        let is_there = self.tokens >= 1.0;
        if is_there {
            self.tokens -= 1.0;
        }
        is_there
    }

    /// Returns whether it is as a new one is.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        let refill = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        self.tokens + refill >= self.burst
    }

    /// Returns when a token is there at the latest, reckoned from the last `take`.
    pub(crate) fn ready_at(&self) -> Instant {
        let lack = (1.0 - self.tokens).max(0.0);
        // A millisecond more than needed: rounding must not wake the owner before the token is there.
        self.at + Duration::from_secs_f64(lack / self.rate) + Duration::from_millis(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(2.0, 3.0, start);
        let taken = |bucket: &mut Bucket, now| (0..10).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert!(bucket.ready_at() > start && bucket.ready_at() < start + Duration::from_secs(1));
        assert!(bucket.clone().take(bucket.ready_at()));
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(1)), 2);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(100)), 3);
    }
}
