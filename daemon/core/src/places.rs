//! Places that others take: each may have so many, all together so many, and each takes them at a pace.
//!
//! Owns: the counting, in bounded memory. Must not know: what a place is, who takes it. Driven by: `circuits`, `strangers`.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::bucket::Bucket;

/// How many places there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For each taker.
    pub(crate) each: usize,
    /// In all.
    pub(crate) all: usize,
    /// Takes of each, a second in the long run.
    pub(crate) rate: f64,
    /// Takes of each at once.
    pub(crate) burst: f64,
    /// Takers whose pace is remembered; a new one has to wait while so many are.
    pub(crate) remembered: usize,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// This taker has as many as it may have.
    Each,
    /// All together have.
    All,
    /// It takes them too fast, or too many others do.
    Pace,
}

/// The places and who has them.
#[derive(Debug)]
pub(crate) struct Places<K> {
    limits: Limits,
    takers: BTreeMap<K, Taker>,
    taken: usize,
}

#[derive(Debug)]
struct Taker {
    taken: usize,
    pace: Bucket,
}

impl<K: Ord> Places<K> {
    pub(crate) const fn new(limits: Limits) -> Self {
        Self { limits, takers: BTreeMap::new(), taken: 0 }
    }

    /// Takes a place, to be given back by [`Self::give_back`].
    ///
    /// # Errors
    /// There is none; nothing was counted but the pace of the taker.
    pub(crate) fn take(&mut self, taker: K, now: Instant) -> Result<(), Full> {
        let Limits { each, all, rate, burst, remembered } = self.limits;
        if self.takers.len() >= remembered {
            // Who has no place and its whole pace left is as one that never came.
            self.takers.retain(|_, of| of.taken > 0 || !of.pace.is_full(now));
        }
        if self.takers.len() >= remembered && !self.takers.contains_key(&taker) {
            return Err(if self.taken >= all { Full::All } else { Full::Pace });
        }
        let new = || Taker { taken: 0, pace: Bucket::full(rate, burst, now) };
        let of = self.takers.entry(taker).or_insert_with(new);
        if !of.pace.take(now) {
            return Err(Full::Pace);
        }
        if of.taken >= each {
            return Err(Full::Each);
        }
        if self.taken >= all {
            return Err(Full::All);
        }
        of.taken += 1;
        self.taken += 1;
        Ok(())
    }

    /// Gives a place back; one too much changes nothing.
    pub(crate) fn give_back(&mut self, taker: &K) {
        if let Some(of) = self.takers.get_mut(taker)
            && of.taken > 0
        {
            of.taken -= 1;
            self.taken -= 1;
        }
    }

    /// Returns how many are taken.
    pub(crate) const fn taken(&self) -> usize {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits { each: 2, all: 3, rate: 1.0, burst: 4.0, remembered: 8 };

    #[test]
    fn one_taker_is_held_to_its_places_and_its_pace_and_others_are_not() {
        let (mut places, now) = (Places::new(LIMITS), Instant::now());
        let all: Vec<_> = (0..5).map(|_| places.take(1, now)).collect();
        assert_eq!(all, [Ok(()), Ok(()), Err(Full::Each), Err(Full::Each), Err(Full::Pace)]);
        assert_eq!((places.take(2, now), places.take(3, now)), (Ok(()), Err(Full::All)));
        (0..9).for_each(|_| places.give_back(&1));
        assert_eq!(places.taken(), 1, "one too much changes nothing");
        assert_eq!(places.take(1, now), Err(Full::Pace));
        assert_eq!(places.take(1, now + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn takers_without_end_cost_bounded_memory_and_old_ones_make_room() {
        let (mut places, now) = (Places::new(LIMITS), Instant::now());
        let taken =
            (0..3_000).filter(|taker| places.take(*taker, now).map(|()| places.give_back(taker)).is_ok());
        assert_eq!(taken.count(), LIMITS.remembered);
        assert_eq!(places.take(9_999, now), Err(Full::Pace));
        assert_eq!(places.take(9_999, now + Duration::from_secs(1)), Ok(()));
        assert_eq!(places.takers.len(), 1);
    }
}
