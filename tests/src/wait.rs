//! Waiting for a fact, and saying that a promise was broken.
//!
//! Owns: the one loop that waits, and the error that tells a broken promise from a broken harness.
//! Must not know: what is waited for. Driven by: every scenario.
//!
//! Nothing here sleeps for a fixed time: each wait ends with the fact or with its deadline.

use std::fmt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

/// How often a fact is looked for when it costs little.
const POLL: Duration = Duration::from_millis(5);

/// The daemon did not do what it promises. Every other error of a scenario is the harness's own.
#[derive(Debug)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// Returns a [`Broken`] error from the calling function unless the condition holds.
#[macro_export]
macro_rules! promise {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err($crate::wait::Broken(format!($($why)+)).into());
        }
    };
}

/// Asks `look` until it returns a value; returns the value and how long it took.
///
/// # Errors
/// [`Broken`] when `limit` has passed: `what` did not happen. Errors of `look` end the wait at once.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok((value, start.elapsed()));
        }
        if start.elapsed() >= limit {
            return Err(Broken(format!("{what} did not happen within {limit:?}")).into());
        }
        sleep(POLL);
    }
}

/// Waits until `holds` returns true.
///
/// # Errors
/// As [`wait_for`].
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    wait_for(what, limit, || Ok(holds()?.then_some(()))).map(|((), took)| took)
}

/// Watches for the whole time that `holds` stays true.
///
/// # Errors
/// [`Broken`] as soon as it does not; errors of `holds`.
pub fn throughout(what: &str, time: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        promise!(holds()?, "{what} ended after {:.1} s", start.elapsed().as_secs_f64());
        sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(result: Result<impl fmt::Debug>) -> String {
        let error = result.expect_err("it fails");
        error.downcast_ref::<Broken>().expect("a broken promise").0.clone()
    }

    #[test]
    fn a_wait_ends_with_the_fact_or_its_deadline() {
        let mut looks = 0;
        let look = || {
            looks += 1;
            Ok((looks == 3).then_some("seen"))
        };
        assert_eq!(wait_for("it", Duration::from_secs(5), look).expect("seen").0, "seen");
        assert!(broken(wait_for("rain", Duration::ZERO, || Ok(None::<()>))).contains("rain did not happen"));
    }

    #[test]
    fn a_watch_ends_at_the_first_breach() {
        let mut looks = 0;
        let holds = || {
            looks += 1;
            Ok(looks < 2)
        };
        assert!(broken(throughout("calm", Duration::from_secs(5), holds)).contains("calm ended"));
        assert!(throughout("calm", Duration::ZERO, || Ok(false)).is_ok());
    }

    #[test]
    fn a_harness_error_is_no_broken_promise() {
        let error = until("it", Duration::ZERO, || anyhow::bail!("no such tool")).expect_err("fails");
        assert!(error.downcast_ref::<Broken>().is_none());
    }
}
