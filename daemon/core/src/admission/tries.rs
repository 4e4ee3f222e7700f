//! How often a source may try in vain.
//!
//! Owns: failed tries by source. Must not know: what a try is. Driven by: the door of the issuer.
//!
//! A token cannot be guessed (128 bits, signed), so this is not what keeps guessers out. It keeps a source that is wrong
//! again and again from taking the seats of others, and from filling the log.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Tries in vain that are counted together.
const WINDOW: Duration = Duration::from_secs(60);
/// Most of one source in a window: a person who mistypes, a machine that is started again.
const OF_ONE: usize = 5;
/// Most of all sources in a window; above it a source that failed once waits as well, others do not.
const OF_ALL: usize = 100;

/// Who failed lately.
#[derive(Debug, Default)]
pub struct Tries {
    /// When the last tries in vain were, oldest first; at most [`OF_ALL`] in all.
    failed: BTreeMap<IpAddr, Vec<Instant>>,
}

impl Tries {
    /// Returns whether a source may try at `now`.
    pub fn allows(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = network_of(source);
        for times in self.failed.values_mut() {
            times.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        }
        self.failed.retain(|_, times| !times.is_empty());
        let of_one = self.failed.get(&source).map_or(0, Vec::len);
        let of_all: usize = self.failed.values().map(Vec::len).sum();
        of_one == 0 || of_one < OF_ONE && of_all < OF_ALL
    }

    /// Counts a try in vain.
    pub fn failed(&mut self, source: IpAddr, now: Instant) {
        // Tries that began together may end together above the limit.
        if self.failed.values().map(Vec::len).sum::<usize>() < OF_ALL {
            self.failed.entry(network_of(source)).or_default().push(now);
        }
    }
}

/// Returns what a source can choose its address within: of IPv6 the first 64 bits.
fn network_of(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        IpAddr::V4(_) => source,
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

    #[test]
    fn many_sources_together_have_a_limit_and_use_no_more_memory_than_it() {
        let (mut tries, start) = (Tries::default(), Instant::now());
        for last in 0..=u8::MAX {
            tries.failed(source(last), start);
        }
        assert_eq!(tries.failed.len(), OF_ALL);
        assert!(
            !tries.allows(source(7), start) && tries.allows(source(250), start),
            "one that failed, one that did not"
        );
        assert!(tries.allows(source(7), start + WINDOW) && tries.failed.is_empty());
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
