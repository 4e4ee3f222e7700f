//! The clocks of the daemon.
//!
//! Owns: reading them. Must not know: what a moment means. Driven by: the owner loops and `identity`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;

use gossamer_core::time::Now;

/// Returns both clocks; the monotonic one is tokio's, so tests may pause it.
pub fn now() -> Now {
    Clock::default().now()
}

/// A source of wall time.
pub trait Wall: fmt::Debug + Send + Sync {
    /// Returns seconds since the Unix epoch.
    fn seconds(&self) -> u64;
}

/// The clocks of one node; clones read the same ones. The default is the machine's.
#[derive(Clone, Debug)]
pub struct Clock(Arc<dyn Wall>);

impl Clock {
    /// Takes wall time from another source than the system.
    pub fn of(wall: Arc<dyn Wall>) -> Self {
        Self(wall)
    }

    /// Returns both clocks.
    pub fn now(&self) -> Now {
        Now { mono: tokio::time::Instant::now().into_std(), wall: self.wall() }
    }

    /// Returns seconds since the Unix epoch.
    pub fn wall(&self) -> u64 {
        self.0.seconds()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(System))
    }
}

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.wall())))
    }
}

/// QUIC judges the age of its address validation tokens by this.
impl quinn::TimeSource for Clock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.wall())
    }
}

#[derive(Debug)]
struct System;

impl Wall for System {
    fn seconds(&self) -> u64 {
        wall()
    }
}

/// Returns seconds since the Unix epoch: certificates, tokens and event lines only.
#[expect(clippy::disallowed_methods, reason = "the one place that reads wall time")]
pub fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns microseconds since the Unix epoch: for the lines of `watch` only, which measurements compare.
#[expect(clippy::disallowed_methods, reason = "the one place that reads wall time")]
pub fn wall_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Notices that wall time was set.
#[derive(Debug)]
pub struct Jumps(Now);

impl Jumps {
    /// Starts to compare the clocks.
    pub const fn since(now: Now) -> Self {
        Self(now)
    }

    /// Returns whether wall time has moved by over a minute more or less than the monotonic one since the start,
    /// or since this last said so.
    pub fn has_jumped(&mut self, now: Now) -> bool {
        let elapsed = now.mono.saturating_duration_since(self.0.mono).as_secs();
        let has_jumped = now.wall.abs_diff(self.0.wall.saturating_add(elapsed)) > JUMP_SECONDS;
        if has_jumped {
            self.0 = now;
        }
        has_jumped
    }
}

/// Far above what adjusting an even clock moves, far below the skew certificates are forgiven.
const JUMP_SECONDS: u64 = 60;

/// Sleeps until a core's deadline; for ever when it has none.
///
/// # Cancel safety
/// Cancel safe.
pub async fn sleep_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Returns wall time, for display.
#[expect(clippy::disallowed_methods, reason = "the one place that reads wall time")]
pub fn system() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed(u64);

    impl Wall for Fixed {
        fn seconds(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn a_clock_that_was_set_is_noticed_once_and_in_both_directions() {
        let mono = tokio::time::Instant::now().into_std();
        let at = |seconds: u64, wall| Now { mono: mono + Duration::from_secs(seconds), wall };
        let mut jumps = Jumps::since(at(0, 1_000_000));
        assert!(!jumps.has_jumped(at(3_600, 1_003_630)), "late by half a minute");
        assert!(jumps.has_jumped(at(3_601, 9_000_000)));
        assert!(!jumps.has_jumped(at(3_602, 9_000_001)));
        assert!(jumps.has_jumped(at(3_603, 1_003_603)));
    }

    #[test]
    fn everything_that_judges_by_wall_time_sees_the_given_one() {
        let clock = Clock::of(Arc::new(Fixed(1_800_000_000)));
        assert_eq!((clock.wall(), clock.now().wall), (1_800_000_000, 1_800_000_000));
        let tls = rustls::time_provider::TimeProvider::current_time(&clock).expect("a time");
        assert_eq!(tls.as_secs(), 1_800_000_000);
        assert_eq!(quinn::TimeSource::now(&clock), UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        assert!(Clock::default().wall() > 1_700_000_000);
    }
}
