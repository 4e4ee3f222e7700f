//! Datagrams that wait: until a flow is open, or for their turn on its stream.
//!
//! Owns: the bounds of one queue and of all together. Must not know: sockets, flows. Driven by: `caller`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// The waiting datagrams of one flow.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
    /// Bytes in all queues.
    all: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Waiting {
    datagrams: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        Self { waiting: Mutex::default(), filled: Notify::new(), all }
    }

    /// Appends a datagram; the oldest make room for it. Returns how many were dropped: the new one when all queues
    /// together are full.
    pub(super) fn push(&self, datagram: Bytes) -> usize {
        let len = datagram.len();
        if self.all.load(Ordering::Relaxed) + len > MAX_ALL_BYTES {
            return 1;
        }
        let mut waiting = self.lock();
        let mut dropped = 0;
        while waiting.datagrams.len() >= MAX_WAITING || waiting.bytes + len > MAX_BYTES {
            if self.take(&mut waiting).is_none() {
                break;
            }
            dropped += 1;
        }
        self.all.fetch_add(len, Ordering::Relaxed);
        waiting.bytes += len;
        waiting.datagrams.push_back(datagram);
        drop(waiting);
        self.filled.notify_one();
        dropped
    }

    /// Returns the oldest datagram, if there is one.
    pub(super) fn try_pop(&self) -> Option<Bytes> {
        self.take(&mut self.lock())
    }

    /// Returns the oldest datagram, if there is one and it is no longer than `most`.
    pub(super) fn try_pop_within(&self, most: usize) -> Option<Bytes> {
        let mut waiting = self.lock();
        let fits = waiting.datagrams.front().is_some_and(|datagram| datagram.len() <= most);
        if fits { self.take(&mut waiting) } else { None }
    }

    /// Resolves when one waits.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn filled(&self) {
        loop {
            let filled = self.filled.notified();
            if self.len() > 0 {
                return;
            }
            filled.await;
        }
    }

    /// Returns how many wait.
    pub(super) fn len(&self) -> usize {
        self.lock().datagrams.len()
    }

    fn take(&self, waiting: &mut Waiting) -> Option<Bytes> {
        let datagram = waiting.datagrams.pop_front()?;
        waiting.bytes -= datagram.len();
        self.all.fetch_sub(datagram.len(), Ordering::Relaxed);
        Some(datagram)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No operation leaves it half-done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.all.fetch_sub(self.lock().bytes, Ordering::Relaxed);
    }
}

/// Datagrams that wait in one queue: a burst of a program until its flow is open.
pub(super) const MAX_WAITING: usize = 64;
/// Bytes that wait in one queue: four of the longest datagrams.
const MAX_BYTES: usize = 256 << 10;
/// Bytes that wait in all queues: what programs of this machine can make the daemon hold.
const MAX_ALL_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn number(datagram: &Bytes) -> u8 {
        datagram[0]
    }

    #[test]
    fn the_oldest_make_room_by_number_and_by_bytes() {
        let queue = Queue::new(Arc::default());
        let dropped: usize = (0..70_u8).map(|n| queue.push(Bytes::copy_from_slice(&[n]))).sum();
        assert_eq!((dropped, queue.len()), (70 - MAX_WAITING, MAX_WAITING));
        assert_eq!(queue.try_pop().as_ref().map(number), Some(6));
        let large = Bytes::from(vec![99; 60_000]);
        let dropped: usize = (0..6).map(|_| queue.push(large.clone())).sum();
        // 63 small ones waited: three made room by number, the others and two large ones by bytes.
        assert_eq!(dropped, 65);
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn all_queues_together_have_a_bound_that_comes_back_with_them() {
        let all = Arc::default();
        let large = || Bytes::from(vec![0; 60_000]);
        let queues: Vec<_> = (0..100).map(|_| Queue::new(Arc::clone(&all))).collect();
        let dropped: usize =
            queues.iter().map(|queue| (0..4).map(|_| queue.push(large())).sum::<usize>()).sum();
        assert_eq!(dropped, 400 - MAX_ALL_BYTES / 60_000);
        drop(queues);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn who_waits_gets_the_next_one() {
        let queue = Queue::new(Arc::default());
        let ((), ()) = tokio::join!(queue.filled(), async {
            tokio::task::yield_now().await;
            queue.push(Bytes::from_static(b"x"));
        });
        assert_eq!(queue.try_pop().expect("filled"), b"x"[..]);
    }

    #[test]
    fn one_that_is_too_long_stays() {
        let queue = Queue::new(Arc::default());
        queue.push(Bytes::from_static(b"long"));
        assert_eq!((queue.try_pop_within(3), queue.len()), (None, 1));
        assert_eq!(queue.try_pop_within(4).as_deref(), Some(&b"long"[..]));
    }
}
