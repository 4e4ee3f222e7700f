//! Questions by type, by the way they were answered, and how long that took.
//!
//! Owns: the counters and the bounds. Must not know: metric names. Driven by: `metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Outcome;

/// The types told apart; every other one is `other`.
pub const TYPES: [&str; 7] = ["A", "AAAA", "SRV", "PTR", "TXT", "HTTPS", "other"];

/// Their numbers (RFC 1035 3.2.2, 3596, 2782, 9460).
const NUMBERS: [u16; TYPES.len() - 1] = [1, 28, 33, 12, 16, 65];

/// Upper bounds of the latency buckets, microseconds; one more bucket takes what is longer.
pub const LATENCY_BOUNDS: [u32; 11] = [5, 10, 25, 50, 100, 250, 1_000, 5_000, 25_000, 100_000, 1_000_000];

/// One reading of the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsTraffic {
    /// Questions by type, as in [`TYPES`].
    pub types: [u64; TYPES.len()],
    /// Answers that were kept, and how long they took: each its share of the batch it came in, kernel included.
    pub kept: Latency,
    /// Answers of the handler, from the whole request to the response, over UDP and TCP.
    pub handled: Latency,
}

/// How long answers took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Answers by bucket, the last one beyond all of [`LATENCY_BOUNDS`].
    pub buckets: [u64; LATENCY_BOUNDS.len() + 1],
    /// Nanoseconds of all together.
    pub nanoseconds: u64,
}

impl Latency {
    /// Returns how many answers there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What one batch of kept answers counts, without touching what others write.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    noerror: u64,
    nodata: u64,
    types: [u64; TYPES.len()],
}

impl Tally {
    /// Counts one answer. Kept answers are NOERROR, with records or without.
    pub(crate) fn count(&mut self, outcome: Outcome, kind: u16) {
        match outcome {
            Outcome::NoError => self.noerror += 1,
            _ => self.nodata += 1,
        }
        if let Some(count) = self.types.get_mut(index(Some(kind))) {
            *count += 1;
        }
    }

    pub(crate) fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        [(Outcome::NoError, self.noerror), (Outcome::NoData, self.nodata)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
    }
}

/// The shared counters.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    types: [AtomicU64; TYPES.len()],
    kept: Timings,
    handled: Timings,
}

#[derive(Debug, Default)]
struct Timings {
    buckets: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Traffic {
    pub(super) fn read(&self) -> DnsTraffic {
        DnsTraffic { types: read(&self.types), kept: self.kept.read(), handled: self.handled.read() }
    }

    pub(super) fn count_handled(&self, kind: Option<u16>, took: Duration) {
        if let Some(count) = self.types.get(index(kind)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.handled.add(1, took);
    }

    pub(super) fn add(&self, tally: &Tally, took: Duration) {
        let counted = self.types.iter().zip(&tally.types).filter(|(_, count)| **count > 0);
        for (total, count) in counted {
            total.fetch_add(*count, Ordering::Relaxed);
        }
        self.kept.add(tally.types.iter().sum(), took);
    }
}

impl Timings {
    fn add(&self, count: u64, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let Some(each) = nanoseconds.checked_div(count) else { return };
        let bucket = LATENCY_BOUNDS.iter().position(|bound| each <= u64::from(*bound) * 1_000);
        if let Some(bucket) = self.buckets.get(bucket.unwrap_or(LATENCY_BOUNDS.len())) {
            bucket.fetch_add(count, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn read(&self) -> Latency {
        Latency { buckets: read(&self.buckets), nanoseconds: self.nanoseconds.load(Ordering::Relaxed) }
    }
}

fn read<const N: usize>(counters: &[AtomicU64; N]) -> [u64; N] {
    counters.each_ref().map(|counter| counter.load(Ordering::Relaxed))
}

fn index(kind: Option<u16>) -> usize {
    NUMBERS.iter().position(|number| Some(*number) == kind).unwrap_or(NUMBERS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_shares_its_time() {
        let traffic = Traffic::default();
        let mut tally = Tally::default();
        tally.count(Outcome::NoError, 1);
        tally.count(Outcome::NoError, 1);
        tally.count(Outcome::NoData, 28);
        tally.count(Outcome::NoError, 99);
        traffic.add(&tally, Duration::from_micros(32));
        let read = traffic.read();
        assert_eq!(read.types, [2, 1, 0, 0, 0, 0, 1]);
        assert_eq!(read.kept.buckets.get(1), Some(&4), "8 microseconds each");
        assert_eq!((read.kept.count(), read.kept.nanoseconds), (4, 32_000));
        assert_eq!(read.handled, Latency::default());
    }

    #[test]
    fn an_empty_batch_counts_nothing_and_a_long_wait_has_the_last_bucket() {
        let traffic = Traffic::default();
        traffic.add(&Tally::default(), Duration::from_secs(9));
        assert_eq!(traffic.read(), DnsTraffic::default());
        traffic.count_handled(None, Duration::from_secs(2));
        assert_eq!(traffic.read().handled.buckets.last(), Some(&1));
        assert_eq!(traffic.read().types.last(), Some(&1));
    }
}
