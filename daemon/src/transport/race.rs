//! Attempts at several addresses of one node, raced.
//!
//! Owns: when each begins. Must not know: what an attempt is. Driven by: who dials, who joins.
//!
//! Each attempt begins a little after the one before it, or at once when one has failed (RFC 8305 section 5): an address that
//! is silent here costs the next one a moment and not its own time limit.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::clock;

/// Between two beginnings.
pub(crate) const STAGGER: Duration = Duration::from_millis(150);

/// Attempts under way and those that wait. Dropping it ends all of them.
#[derive(Debug)]
pub(crate) struct Race<A, F, R> {
    waiting: VecDeque<A>,
    attempt: F,
    running: FuturesUnordered<R>,
    /// When the next one begins.
    next: Instant,
}

impl<A, F: Fn(A) -> R, R: Future> Race<A, F, R> {
    /// Makes a race over some values, best first. Nothing begins before [`Self::next`] is called.
    pub(crate) fn new(values: impl IntoIterator<Item = A>, attempt: F) -> Self {
        let waiting = values.into_iter().collect();
        Self { waiting, attempt, running: FuturesUnordered::new(), next: clock::now().mono }
    }

    /// Returns what the next attempt to end has come to; `None` when all have ended. Who is content drops the race.
    ///
    /// # Cancel safety
    /// Cancel safe: attempts under way go on with the next call.
    pub(crate) async fn next(&mut self) -> Option<R::Output> {
        loop {
            if self.running.is_empty() && !self.begin() {
                return None;
            }
            let next = Some(self.next).filter(|_| !self.waiting.is_empty());
            tokio::select! {
                biased;
                Some(ended) = self.running.next() => {
                    self.next = clock::now().mono;
                    return Some(ended);
                }
                () = clock::sleep_until(next) => drop(self.begin()),
            }
        }
    }

    fn begin(&mut self) -> bool {
        let Some(value) = self.waiting.pop_front() else { return false };
        self.running.push((self.attempt)(value));
        self.next = clock::now().mono + STAGGER;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an attempt does.
    #[derive(Clone, Copy, Debug)]
    enum Manner {
        Silent,
        Fails,
        Succeeds,
    }

    /// Races attempts until one succeeds. Returns the numbers of those that ended, and how long it took.
    async fn race(attempts: &[Manner]) -> (Vec<usize>, Duration) {
        let began = clock::now().mono;
        let attempt = |(number, manner)| async move {
            match manner {
                Manner::Silent => std::future::pending().await,
                Manner::Fails => (number, false),
                Manner::Succeeds => (number, true),
            }
        };
        let mut race = Race::new(attempts.iter().copied().enumerate(), attempt);
        let mut ended = Vec::new();
        while let Some((number, holds)) = race.next().await {
            ended.push(number);
            if holds {
                break;
            }
        }
        (ended, clock::now().mono - began)
    }

    #[tokio::test]
    async fn a_silent_address_costs_the_next_one_a_moment() {
        let (ended, took) = race(&[Manner::Silent, Manner::Silent, Manner::Succeeds, Manner::Succeeds]).await;
        assert_eq!(ended, [2]);
        assert!(took >= 2 * STAGGER, "{took:?}");
    }

    #[tokio::test]
    async fn after_a_failure_the_next_one_begins_at_once() {
        let (ended, took) = race(&[Manner::Fails; 20]).await;
        assert_eq!(ended, (0..20).collect::<Vec<_>>());
        assert!(took < 19 * STAGGER, "{took:?}");
        assert_eq!(
            race(&[Manner::Silent, Manner::Fails, Manner::Fails, Manner::Succeeds]).await.0,
            [1, 2, 3]
        );
    }

    #[tokio::test]
    async fn the_best_one_has_a_start_and_a_race_without_attempts_ends() {
        assert_eq!(race(&[Manner::Succeeds, Manner::Succeeds]).await.0, [0]);
        assert!(race(&[]).await.0.is_empty());
    }
}
