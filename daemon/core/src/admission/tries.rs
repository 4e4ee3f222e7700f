//! How often a source may try in vain.
//!
//! Owns: failed tries by source. Must not know: what a try is. Driven by: the door of the issuer.
//!
//! A token cannot be guessed (128 bits, signed), so this is not what keeps guessers out. It keeps a source that is wrong
//! again and again from taking the seats of others, and from filling the log.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::source::network_of;

/// Tries in vain that are counted together.
const WINDOW: Duration = Duration::from_secs(60);
/// Most of one source in a window: a person who mistypes, a machine that is started again.
const OF_ONE: usize = 5;
/// Most of all sources in a window; above it a source that failed once waits as well. One that did not may try:
/// guessers from many places must not keep out who has a good token.
const OF_ALL: usize = 100;
/// Most tries in vain that are remembered; above it the oldest is forgotten. Ten times [`OF_ALL`], so that it takes more
/// than a thousand networks to be forgotten within a minute.
const REMEMBERED: usize = 1_024;

/// Who failed lately.
#[derive(Debug, Default)]
pub struct Tries {
    /// Tries in vain of the last window, oldest first; at most [`REMEMBERED`].
    failed: VecDeque<(Instant, IpAddr)>,
    /// How many of them each source has.
    of_source: BTreeMap<IpAddr, usize>,
}

impl Tries {
    /// Returns whether a source may try at `now`.
    pub fn allows(&mut self, source: IpAddr, now: Instant) -> bool {
        while self.failed.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.forget_oldest();
        }
        let of_one = self.of_source.get(&network_of(source)).copied().unwrap_or(0);
        of_one == 0 || of_one < OF_ONE && self.failed.len() < OF_ALL
    }

    /// Counts a try in vain.
    pub fn failed(&mut self, source: IpAddr, now: Instant) {
        if self.failed.len() >= REMEMBERED {
            self.forget_oldest();
        }
        let source = network_of(source);
        self.failed.push_back((now, source));
        *self.of_source.entry(source).or_default() += 1;
    }

    fn forget_oldest(&mut self) {
        let Some((_, source)) = self.failed.pop_front() else { return };
        if let Some(count) = self.of_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.of_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn a_source_that_fails_five_times_waits_a_minute_and_others_do_not() {
        let (mut tries, start) = (Tries::default(), Instant::now());
        for _ in 0..OF_ONE {
            assert!(tries.allows(source(1), start));
            tries.failed(source(1), start);
        }
        assert!(!tries.allows(source(1), start + Duration::from_secs(59)));
        assert!(tries.allows(source(2), start));
        assert!(tries.allows(source(1), start + WINDOW));
    }

    /// Returns how many of `count` tries in vain a source may make.
    fn guess(tries: &mut Tries, source: IpAddr, count: usize, now: Instant) -> usize {
        let mut made = 0;
        for _ in 0..count {
            if tries.allows(source, now) {
                tries.failed(source, now);
                made += 1;
            }
        }
        made
    }

    #[test]
    fn sources_that_used_up_what_all_may_try_get_one_try_each_and_who_has_not_failed_gets_in() {
        let (mut tries, start) = (Tries::default(), Instant::now());
        let first: usize = (0..20).map(|last| guess(&mut tries, source(last), 9, start)).sum();
        assert_eq!(first, OF_ALL);
        for last in 20..250 {
            assert_eq!(guess(&mut tries, source(last), 9, start), 1, "source {last}");
        }
        assert!((0..250).all(|last| !tries.allows(source(last), start)));
        assert!(tries.allows(source(250), start), "one with a good token");
        assert!((0..250).all(|last| tries.allows(source(last), start + WINDOW)));
        assert!(tries.failed.is_empty() && tries.of_source.is_empty());
    }

    #[test]
    fn any_number_of_sources_costs_bounded_memory() {
        let (mut tries, start) = (Tries::default(), Instant::now());
        for number in 0..3 * REMEMBERED as u32 {
            tries.failed(std::net::Ipv4Addr::from_bits(number).into(), start);
        }
        assert_eq!((tries.failed.len(), tries.of_source.len()), (REMEMBERED, REMEMBERED));
        assert!(tries.allows([0, 0, 0, 0].into(), start), "the oldest is forgotten");
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let (mut tries, start) = (Tries::default(), Instant::now());
        let source = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        (0..OF_ONE as u16).for_each(|last| tries.failed(source(last), start));
        assert!(!tries.allows(source(999), start));
        assert!(tries.allows([0x2001, 0xdb8, 0, 2, 0, 0, 0, 0].into(), start));
    }
}
