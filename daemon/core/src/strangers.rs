//! Strangers whom a relay leads to an issuer: who may have another splice, and how much of one.
//!
//! Owns: how many each source has open, and at which pace it opens them. Must not know: streams, connections, TLS. Driven by:
//! the relay, at each request and at each end.
//!
//! A stranger has no certificate, so nothing but its address tells it from others. It joins, or asks for a new certificate:
//! seconds, one request and one reply.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::bucket::Bucket;
use crate::places::{Full, Limits, Places};
use crate::source::network_of;

/// Strangers that a relay leads at once: as many as stand at the door of one issuer.
pub const MAX_STRANGERS: usize = 64;
/// Those of them that one source has.
pub const MAX_STRANGERS_PER_SOURCE: usize = 4;
/// Longest time of one: the limits of both ends together are less.
pub const MAX_STRANGER_TIME: Duration = Duration::from_secs(15);
/// Most bytes of one, each way: a join reply is 65,000 bytes at most, in TLS and frames.
pub const MAX_STRANGER_BYTES: u64 = 96 << 10;
/// A source may come once in 5 s in the long run, ten times at once. Those of all sources together fill what is remembered in
/// a minute and a half, and one is as new after a minute.
const LIMITS: Limits =
    Limits { each: MAX_STRANGERS_PER_SOURCE, all: MAX_STRANGERS, rate: 0.2, burst: 10.0, remembered: 1_024 };
/// Strangers of all sources each second in the long run, and at once.
const RATE_OF_ALL: f64 = 10.0;
const BURST_OF_ALL: f64 = 64.0;

/// Why a stranger is led nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotLed {
    /// No issuer that it could mean has a connection over UDP with this relay.
    NoIssuer,
    /// The source has too many open.
    PerSource,
    /// All strangers together have.
    Total,
    /// The source, or all strangers together, come too fast.
    Pace,
    /// What was led ended because it took too long or moved too much.
    Excess,
}

impl NotLed {
    /// Returns its word in metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NoIssuer => "no_issuer",
            Self::PerSource => "per_source",
            Self::Total => "total",
            Self::Pace => "pace",
            Self::Excess => "excess",
        }
    }
}

/// The strangers of a relay.
#[derive(Debug)]
pub struct Strangers {
    places: Places<IpAddr>,
    /// The pace of all sources; `None` before the first one.
    all: Option<Bucket>,
}

impl Default for Strangers {
    fn default() -> Self {
        Self { places: Places::new(LIMITS), all: None }
    }
}

impl Strangers {
    /// Counts a stranger that is led. Each one counted ends with [`Self::handle_end`].
    ///
    /// # Errors
    /// Too much is asked of this relay; nothing was counted but the pace of the source.
    pub fn handle_open(&mut self, source: IpAddr, now: Instant) -> Result<(), NotLed> {
        self.places.take(network_of(source), now).map_err(|full| match full {
            Full::Each => NotLed::PerSource,
            Full::All => NotLed::Total,
            Full::Pace => NotLed::Pace,
        })?;
        // Last: what a source is refused for costs the others nothing.
        if !self.all.get_or_insert_with(|| Bucket::full(RATE_OF_ALL, BURST_OF_ALL, now)).take(now) {
            self.handle_end(source);
            return Err(NotLed::Pace);
        }
        Ok(())
    }

    /// A stranger of the source is led no longer.
    pub fn handle_end(&mut self, source: IpAddr) {
        self.places.give_back(&network_of(source));
    }

    /// Returns how many are led.
    pub const fn open(&self) -> usize {
        self.places.taken()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn source(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    #[test]
    fn one_source_is_held_to_its_cap_and_its_pace_and_others_are_not() {
        let (mut strangers, now) = (Strangers::default(), Instant::now());
        for _ in 0..MAX_STRANGERS_PER_SOURCE {
            assert_eq!(strangers.handle_open(source(1), now), Ok(()));
        }
        let more: Vec<_> = (0..20).map(|_| strangers.handle_open(source(1), now)).collect();
        assert_eq!(more[0], Err(NotLed::PerSource));
        assert_eq!(more[19], Err(NotLed::Pace));
        assert_eq!(strangers.handle_open(source(2), now), Ok(()));
        assert_eq!(strangers.open(), MAX_STRANGERS_PER_SOURCE + 1);
        strangers.handle_end(source(1));
        assert_eq!(strangers.handle_open(source(1), now), Err(NotLed::Pace));
        assert_eq!(strangers.handle_open(source(1), now + Duration::from_secs(6)), Ok(()));
        for _ in 0..20 {
            strangers.handle_end(source(1));
        }
        assert_eq!(strangers.open(), 1, "an end too much counts nothing");
    }

    #[test]
    fn all_together_have_a_cap_and_a_pace() {
        let (mut strangers, mut now) = (Strangers::default(), Instant::now());
        for number in 0..MAX_STRANGERS as u32 {
            assert_eq!(strangers.handle_open(source(number), now), Ok(()));
        }
        assert_eq!(strangers.handle_open(source(1_000), now), Err(NotLed::Total));
        for number in 0..MAX_STRANGERS as u32 {
            strangers.handle_end(source(number));
        }
        assert_eq!(strangers.handle_open(source(1_001), now), Err(NotLed::Pace));
        now += Duration::from_secs(1);
        let led = (0..60_u32).filter(|number| strangers.handle_open(source(2_000 + number), now).is_ok());
        assert_eq!(led.count(), 10);
    }
}
