//! What is going to happen, in order of time; at one moment, in order of arrival.
//!
//! Owns: the order, which makes a run repeatable. Must not know: what the events are. Driven by: the mesh.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Events and when they are due, since the beginning of the world.
#[derive(Debug)]
pub(super) struct Queue<E> {
    /// Time, arrival, place in `events`: small, because a heap moves its entries often.
    heap: BinaryHeap<Reverse<(Duration, u64, u32)>>,
    events: Vec<Option<E>>,
    free: Vec<u32>,
    arrivals: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), arrivals: 0 }
    }
}

impl<E> Queue<E> {
    pub(super) fn push(&mut self, at: Duration, event: E) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            u32::try_from(self.events.len() - 1).expect("fewer than 2^32 events wait")
        });
        self.events[place as usize] = Some(event);
        self.arrivals += 1;
        self.heap.push(Reverse((at, self.arrivals, place)));
    }

    /// Returns the next event if it is due by `until`, and when it was due.
    pub(super) fn pop(&mut self, until: Duration) -> Option<(Duration, E)> {
        let Reverse((at, _, place)) = *self.heap.peek()?;
        if at > until {
            return None;
        }
        self.heap.pop();
        self.free.push(place);
        self.events[place as usize].take().map(|event| (at, event))
    }

    /// Returns the event that is next if it is due by `until`, and when it is.
    pub(super) fn peek(&self, until: Duration) -> Option<(Duration, &E)> {
        let Reverse((at, _, place)) = *self.heap.peek()?;
        let event = self.events[place as usize].as_ref()?;
        (at <= until).then_some((at, event))
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn events_come_by_time_and_then_by_arrival() {
        let mut queue = Queue::default();
        for (at, event) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            queue.push(ms(at), event);
        }
        let order: String = std::iter::from_fn(|| queue.pop(ms(2))).map(|(_, event)| event).collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn nothing_comes_early_and_places_are_used_again() {
        let mut queue = Queue::default();
        queue.push(ms(5), 'a');
        assert_eq!(queue.peek(ms(4)), None);
        assert_eq!(queue.pop(ms(4)), None);
        assert_eq!(queue.peek(ms(5)), Some((ms(5), &'a')));
        assert_eq!(queue.pop(ms(9)), Some((ms(5), 'a')));
        queue.push(ms(6), 'b');
        assert_eq!((queue.events.len(), queue.len()), (1, 1));
    }
}
