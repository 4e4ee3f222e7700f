//! What a check prints: `NAME PASS|FAIL figure`.
//!
//! Owns: the line and the figures in it. Must not know: checks. Driven by: the `evidence` program.

use std::fmt;
use std::time::Duration;

use anyhow::Error;

use crate::wait::Broken;

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The promise was kept; the figure that shows it.
    Pass(String),
    /// The promise was broken, and how.
    Fail(String),
    /// The check could not be carried out, which counts as a failure.
    Harness(String),
}

/// A check and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The row of `docs/evidence.md`.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
}

impl Verdict {
    /// Judges what a check returned.
    pub fn of(result: Result<String, Error>) -> Self {
        match result {
            Ok(figure) => Self::Pass(figure),
            Err(error) if error.downcast_ref::<Broken>().is_some() => Self::Fail(format!("{error:#}")),
            Err(error) => Self::Harness(format!("{error:#}")),
        }
    }

    /// Returns whether the promise was kept.
    pub const fn passed(&self) -> bool {
        matches!(self, Self::Pass(_))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, text) = match &self.verdict {
            Verdict::Pass(figure) => ("PASS", figure.clone()),
            Verdict::Fail(why) => ("FAIL", why.clone()),
            Verdict::Harness(why) => ("FAIL", format!("not carried out: {why}")),
        };
        write!(f, "{} {word} {}", self.name, text.trim().replace('\n', " / "))
    }
}

/// Durations of one kind, for percentiles.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Adds many.
    pub fn extend(&mut self, samples: impl IntoIterator<Item = Duration>) {
        self.0.extend(samples);
    }

    /// Returns the sample below which `share` (0.0..=1.0) of all lie; zero when there is none.
    pub fn percentile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// Returns the greatest sample.
    pub fn max(&self) -> Duration {
        self.percentile(1.0)
    }

    /// Returns how many there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share| self.percentile(share).as_secs_f64() * 1e3;
        write!(f, "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms of {}", ms(0.5), ms(0.99), ms(1.0), self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_row_verdict_and_figure() {
        let line = |verdict| Line { name: "2.1-x".to_owned(), verdict }.to_string();
        assert_eq!(line(Verdict::of(Ok("3 ms".to_owned()))), "2.1-x PASS 3 ms");
        let broken = Error::from(Broken("late\nby far".to_owned()));
        assert_eq!(line(Verdict::of(Err(broken))), "2.1-x FAIL late / by far");
        assert_eq!(line(Verdict::of(Err(Error::msg("no ip")))), "2.1-x FAIL not carried out: no ip");
    }

    #[test]
    fn context_does_not_hide_a_broken_promise() {
        let error = Error::from(Broken("late".to_owned())).context("at node b");
        assert_eq!(Verdict::of(Err(error)), Verdict::Fail("at node b: late".to_owned()));
    }

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.max(), Duration::ZERO);
        samples.extend((1..=100).rev().map(Duration::from_millis));
        assert_eq!(samples.percentile(0.5), Duration::from_millis(50));
        assert_eq!(samples.percentile(0.99), Duration::from_millis(99));
        assert_eq!(samples.max(), Duration::from_millis(100));
    }
}
