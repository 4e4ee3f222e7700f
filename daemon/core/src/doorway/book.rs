//! What is remembered of sources, a bounded number of each kind.
//!
//! Owns: sources of members, and who left handshakes unfinished. Must not know: what follows from it.
//! Driven by: `doorway`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Sources remembered of each kind: four times the members of the largest mesh that keeps every pair connected.
const MAX_SOURCES: usize = 4_096;
/// How long an unfinished handshake counts.
const COUNTS_FOR: Duration = Duration::from_secs(60);

/// Sources from which members have connected; the first ones make room.
#[derive(Debug, Default)]
pub(super) struct Known {
    sources: BTreeSet<IpAddr>,
    order: VecDeque<IpAddr>,
}

impl Known {
    pub(super) fn insert(&mut self, source: IpAddr) {
        if !self.sources.insert(source) {
            return;
        }
        self.order.push_back(source);
        if self.order.len() > MAX_SOURCES
            && let Some(first) = self.order.pop_front()
        {
            self.sources.remove(&first);
        }
    }

    pub(super) fn contains(&self, source: IpAddr) -> bool {
        self.sources.contains(&source)
    }
}

/// Handshakes left unfinished in the last minute; the first ones make room.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    order: VecDeque<(Instant, IpAddr)>,
    of_source: BTreeMap<IpAddr, usize>,
}

impl Unfinished {
    pub(super) fn insert(&mut self, source: IpAddr, now: Instant) {
        self.order.push_back((now, source));
        *self.of_source.entry(source).or_default() += 1;
        if self.order.len() > MAX_SOURCES {
            self.forget_first();
        }
    }

    /// Returns how many a source left in the minute before `now`.
    pub(super) fn of(&mut self, source: IpAddr, now: Instant) -> usize {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= COUNTS_FOR) {
            self.forget_first();
        }
        self.of_source.get(&source).copied().unwrap_or_default()
    }

    fn forget_first(&mut self) {
        let Some((_, source)) = self.order.pop_front() else { return };
        if let Some(count) = self.of_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.of_source.remove(&source);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.order.len() + self.of_source.len()
    }
}
