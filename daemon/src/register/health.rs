//! The verdict about one target, from the results of its checks.
//!
//! Owns: the hysteresis. Must not know: sockets, clocks. Driven by: `book`, once per finished check.

/// Checks that must fail in a row before a target counts as failing. Two, because one lost SYN or one full
/// accept queue is common and a verdict is gossiped to every member; the second check is at most one
/// interval later, and the relay retries refused connections on other instances meanwhile.
const FAILURES_TO_FAIL: u8 = 2;

/// What is known about a target. One success is enough to pass: a connection that was accepted proves that
/// somebody listens, and waiting longer only prolongs an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    passing: bool,
    /// Failures in a row.
    failures: u8,
}

impl Verdict {
    /// Judges by the first check alone: there is nothing to hold on to.
    pub(super) const fn first(passed: bool) -> Self {
        Self { passing: passed, failures: if passed { 0 } else { FAILURES_TO_FAIL } }
    }

    /// Takes the result of a check. Returns whether the verdict changed.
    pub(super) const fn observe(&mut self, passed: bool) -> bool {
        let before = self.passing;
        if passed {
            *self = Self::first(true);
        } else {
            self.failures = self.failures.saturating_add(1);
            self.passing = self.passing && self.failures < FAILURES_TO_FAIL;
        }
        self.passing != before
    }

    /// Returns whether the target may be offered to clients.
    pub(super) const fn is_passing(self) -> bool {
        self.passing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs checks (`+` passed, `-` failed; the first decides alone) and prints the verdict after each.
    fn verdicts(checks: &str) -> String {
        let mut checks = checks.chars().map(|check| check == '+');
        let mut verdict = Verdict::first(checks.next().expect("a first check"));
        let shown = |verdict: Verdict| if verdict.is_passing() { 'P' } else { 'F' };
        let mut seen = String::from(shown(verdict));
        for passed in checks {
            let before = verdict.is_passing();
            assert_eq!(verdict.observe(passed), verdict.is_passing() != before);
            seen.push(shown(verdict));
        }
        seen
    }

    #[test]
    fn the_first_check_decides_alone() {
        assert_eq!(verdicts("+"), "P");
        assert_eq!(verdicts("-"), "F");
    }

    #[test]
    fn one_success_is_enough_and_two_failures_are_needed() {
        assert_eq!(verdicts("-+"), "FP");
        assert_eq!(verdicts("+-"), "PP");
        assert_eq!(verdicts("+--"), "PPF");
        assert_eq!(verdicts("+--+--"), "PPFPPF");
    }

    #[test]
    fn failures_count_only_in_a_row() {
        assert_eq!(verdicts("+-+-+-"), "PPPPPP");
        assert_eq!(verdicts("---+-"), "FFFPP");
    }

    #[test]
    fn a_target_may_fail_for_ever() {
        let mut verdict = Verdict::first(false);
        for _ in 0..1_000 {
            assert!(!verdict.observe(false));
        }
        assert!(verdict.observe(true));
    }
}
