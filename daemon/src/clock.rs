//! The clocks of the daemon.
//!
//! Owns: reading them. Must not know: what a moment means. Driven by: the owner loops and `identity`.

use std::time::{SystemTime, UNIX_EPOCH};

use gossamer_core::time::Now;

/// Returns both clocks; the monotonic one is tokio's, so tests may pause it.
pub fn now() -> Now {
    Now { mono: tokio::time::Instant::now().into_std(), wall: wall() }
}

/// Returns seconds since the Unix epoch: certificates, tokens and event lines only.
#[expect(clippy::disallowed_methods, reason = "the one place that reads wall time")]
pub fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

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
