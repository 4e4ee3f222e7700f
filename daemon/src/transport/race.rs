//! Attempts at several addresses of one node, raced.
//!
//! Owns: when each begins. Must not know: what an attempt is. Driven by: who dials, who joins.
//!
//! Each attempt begins a little after the one before it, or at once when one has failed (RFC 8305 section 5): an address that
//! is silent here costs the next one a moment and not its own time limit.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::{Join, Ready, join, ready};
use futures_util::stream::FuturesUnordered;

use crate::clock;

/// Between two beginnings.
pub(crate) const STAGGER: Duration = Duration::from_millis(150);

/// Attempts under way and those that wait. Dropping it ends all of them.
#[derive(Debug)]
pub(crate) struct Race<A, F, R: Future> {
    /// The values, and those that run beside them later.
    queues: [Queue<A>; 2],
    attempt: F,
    running: FuturesUnordered<Join<Ready<usize>, R>>,
}

/// Values that wait for each other.
#[derive(Debug)]
struct Queue<A> {
    waiting: VecDeque<A>,
    /// When the next one begins.
    next: Instant,
}

impl<A> Queue<A> {
    fn new(values: impl IntoIterator<Item = A>, next: Instant) -> Self {
        Self { waiting: values.into_iter().collect(), next }
    }
}

impl<A, F: Fn(A) -> R, R: Future> Race<A, F, R> {
    /// Makes a race over some values, best first. Nothing begins before [`Self::next`] is called.
    pub(crate) fn new(values: impl IntoIterator<Item = A>, attempt: F) -> Self {
        let now = clock::now().mono;
        let queues = [Queue::new(values, now), Queue::new([], now)];
        Self { queues, attempt, running: FuturesUnordered::new() }
    }

    /// Adds values that are tried beside the others and wait only for each other: from `later` on, or as soon as all the
    /// others have failed.
    #[must_use]
    pub(crate) fn beside(mut self, values: impl IntoIterator<Item = A>, later: Duration) -> Self {
        let [_, beside] = &mut self.queues;
        *beside = Queue::new(values, clock::now().mono + later);
        self
    }

    /// Returns what the next attempt to end has come to; `None` when all have ended. Who is content drops the race.
    ///
    /// # Cancel safety
    /// Cancel safe: attempts under way go on with the next call.
    pub(crate) async fn next(&mut self) -> Option<R::Output> {
        loop {
            if self.running.is_empty() && !(0..self.queues.len()).any(|queue| self.begin(queue)) {
                return None;
            }
            let waiting = self.queues.iter().enumerate().filter(|(_, queue)| !queue.waiting.is_empty());
            let next = waiting.map(|(index, queue)| (queue.next, index)).min();
            tokio::select! {
                biased;
                Some((queue, ended)) = self.running.next() => {
                    if let Some(queue) = self.queues.get_mut(queue) {
                        queue.next = clock::now().mono;
                    }
                    return Some(ended);
                }
                () = clock::sleep_until(next.map(|(at, _)| at)) => {
                    let _ = next.map(|(_, queue)| self.begin(queue));
                }
            }
        }
    }

    fn begin(&mut self, index: usize) -> bool {
        let Some(queue) = self.queues.get_mut(index) else { return false };
        let Some(value) = queue.waiting.pop_front() else { return false };
        queue.next = clock::now().mono + STAGGER;
        self.running.push(join(ready(index), (self.attempt)(value)));
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
    async fn values_beside_wait_for_their_time_and_not_for_silent_ones() {
        let began = clock::now().mono;
        let attempt = |manner| async move {
            match manner {
                Manner::Silent => std::future::pending().await,
                Manner::Fails => false,
                Manner::Succeeds => true,
            }
        };
        let later = Duration::from_millis(400);
        let mut race = Race::new([Manner::Silent; 30], attempt).beside([Manner::Succeeds], later);
        assert_eq!(race.next().await, Some(true));
        let took = clock::now().mono - began;
        assert!((later..later + 2 * STAGGER).contains(&took), "{took:?}");
        let began = clock::now().mono;
        let mut race =
            Race::new([Manner::Fails; 3], attempt).beside([Manner::Fails, Manner::Succeeds], later);
        let mut ended = 0;
        while race.next().await == Some(false) {
            ended += 1;
        }
        assert_eq!(ended, 4);
        assert!(clock::now().mono - began < STAGGER, "who has failed is not waited for");
    }

    #[tokio::test]
    async fn the_best_one_has_a_start_and_a_race_without_attempts_ends() {
        assert_eq!(race(&[Manner::Succeeds, Manner::Succeeds]).await.0, [0]);
        assert!(race(&[]).await.0.is_empty());
    }
}
