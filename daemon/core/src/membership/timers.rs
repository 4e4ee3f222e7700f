//! What is due when.
//!
//! Owns: one queue ordered by (due, order of arrival); foca wants its timers back in due order.
//! Must not know: what a timer does. Driven by: `Membership`.

use std::collections::BTreeMap;
use std::time::Instant;

use foca::Timer;
use gossamer_wire::NodeId;

use super::codec::Life;

/// Something to do at its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Give the timer back to foca.
    Foca(Timer<Life>),
    /// The same for a verdict about a suspect; it has the time until the moment in any case.
    Verdict(Timer<Life>, Instant),
    /// Compare members with one connected peer.
    Exchange,
    /// Send the hash to a peer that has just been in doubt.
    Compare(NodeId),
    /// The probe of an accused member with this number should be answered by now.
    Confirm(NodeId, u64),
    /// Tell everybody who has come.
    Arrivals,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeMap<(Instant, u64), Due>,
    arrivals: u64,
}

impl Timers {
    /// Adds one.
    pub(super) fn push(&mut self, at: Instant, due: Due) {
        self.arrivals += 1;
        self.queue.insert((at, self.arrivals), due);
    }

    /// Takes the first that is due at or before `now`.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Due> {
        let entry = self.queue.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    /// Moves everything so that the first is due at `first`, and no verdict falls before `verdicts`:
    /// time this node did not live through does not count against others.
    pub(super) fn resume(&mut self, first: Instant, verdicts: Instant) {
        let Some(lost) = self.next().map(|due| first.saturating_duration_since(due)) else { return };
        let moved = std::mem::take(&mut self.queue).into_iter().map(|((at, arrival), due)| {
            let at = at + lost;
            match due {
                Due::Verdict(timer, earliest) => {
                    ((at.max(verdicts), arrival), Due::Verdict(timer, (earliest + lost).max(verdicts)))
                }
                due => ((at, arrival), due),
            }
        });
        self.queue = moved.collect();
    }

    /// Moves the verdicts about a life from (due, earliest) to where `to` says.
    pub(super) fn move_verdicts(&mut self, life: &Life, to: impl Fn(Instant, Instant) -> Instant) {
        let of = |due: &Due| match due {
            Due::Verdict(Timer::ChangeSuspectToDown { member_id, .. }, earliest) if member_id == life => {
                Some(*earliest)
            }
            _ => None,
        };
        let found = self.queue.iter().filter_map(|(key, due)| Some((*key, of(due)?)));
        for ((at, arrival), earliest) in found.collect::<Vec<_>>() {
            if let Some(due) = self.queue.remove(&(at, arrival)) {
                self.queue.insert((to(at, earliest), arrival), due);
            }
        }
    }

    /// Returns when the first is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gossamer_wire::Generation;
    use gossamer_wire::swim::Identity;

    use super::super::tests::start;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn verdict() -> Due {
        let node = NodeId::from_bytes([1; 16]);
        let member_id = Life(Identity { node, generation: Generation::of_epoch(1) });
        Due::Verdict(Timer::ChangeSuspectToDown { member_id, incarnation: 0, token: 0 }, start())
    }

    #[test]
    fn timers_come_in_due_order_and_equal_ones_in_order_of_arrival() {
        let (now, mut timers) = (start(), Timers::default());
        let at = |n| Due::Foca(Timer::PeriodicGossip(n));
        timers.push(now + 2 * SECOND, at(3));
        timers.push(now + SECOND, at(1));
        timers.push(now + SECOND, at(2));
        assert_eq!(timers.next(), Some(now + SECOND));
        let order: Vec<_> = std::iter::from_fn(|| timers.pop(now + 2 * SECOND)).collect();
        assert_eq!(order, [at(1), at(2), at(3)]);
    }

    #[test]
    fn nothing_is_due_early() {
        let (now, mut timers) = (start(), Timers::default());
        timers.push(now + SECOND, Due::Exchange);
        assert_eq!(timers.pop(now), None);
        assert_eq!(timers.pop(now + SECOND), Some(Due::Exchange));
        assert_eq!((timers.pop(now + SECOND), timers.next()), (None, None));
    }

    #[test]
    fn resuming_keeps_distances_and_gives_suspects_their_full_time() {
        let (now, mut timers) = (start(), Timers::default());
        timers.push(now, Due::Exchange);
        timers.push(now + SECOND, verdict());
        timers.push(now + 3 * SECOND, Due::Compare(NodeId::from_bytes([2; 16])));
        timers.resume(now + 60 * SECOND, now + 70 * SECOND);
        assert_eq!(timers.next(), Some(now + 60 * SECOND));
        assert_eq!(timers.pop(now + 60 * SECOND), Some(Due::Exchange));
        assert_eq!(timers.next(), Some(now + 63 * SECOND));
        timers.pop(now + 63 * SECOND);
        assert_eq!(timers.next(), Some(now + 70 * SECOND));
    }

    #[test]
    fn verdicts_about_a_life_are_moved_and_nothing_else() {
        let (now, mut timers) = (start(), Timers::default());
        let Due::Verdict(Timer::ChangeSuspectToDown { member_id, .. }, _) = verdict() else {
            panic!("a verdict")
        };
        timers.push(now + 2 * SECOND, verdict());
        timers.push(now + 3 * SECOND, Due::Exchange);
        timers.move_verdicts(&member_id, |due, _| due + 2 * SECOND);
        assert_eq!(timers.pop(now + 3 * SECOND), Some(Due::Exchange));
        assert_eq!(timers.next(), Some(now + 4 * SECOND));
        let other = Life(Identity { generation: Generation::of_epoch(2), ..member_id.0 });
        timers.move_verdicts(&other, |due, _| due + SECOND);
        assert_eq!(timers.next(), Some(now + 4 * SECOND), "another life");
    }

    #[test]
    fn an_empty_queue_resumes_to_an_empty_queue() {
        let mut timers = Timers::default();
        timers.resume(start(), start());
        timers.push(start(), Due::Exchange);
        timers.clear();
        assert_eq!(timers.next(), None);
    }
}
