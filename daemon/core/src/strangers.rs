//! Strangers whom a relay leads to an issuer: who may have another splice, and how much of one.
//!
//! Owns: how many each source has open, and at which pace it opens them. Must not know: streams, connections, TLS. Driven by:
//! the relay, at each request and at each end.
//!
//! A stranger has no certificate, so nothing but its address tells it from others. It joins, or asks for a new certificate:
//! seconds, one request and one reply.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::source::network_of;

/// Strangers that a relay leads at once: as many as stand at the door of one issuer.
pub const MAX_STRANGERS: usize = 64;
/// Those of them that one source has.
pub const MAX_STRANGERS_PER_SOURCE: usize = 4;
/// Longest time of one: the limits of both ends together are less.
pub const MAX_STRANGER_TIME: Duration = Duration::from_secs(15);
/// Most bytes of one, each way: a join reply is 65,000 bytes at most, in TLS and frames.
pub const MAX_STRANGER_BYTES: u64 = 96 << 10;
/// Strangers of one source each second in the long run, and at once.
const PACE: Pace = Pace { each_second: 0.2, at_once: 10.0 };
/// Strangers of all sources.
const PACE_OF_ALL: Pace = Pace { each_second: 10.0, at_once: 64.0 };
/// Sources whose pace is remembered. Those of all together fill it in a minute and a half, and one is as new after a minute.
const MAX_REMEMBERED: usize = 1_024;

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
#[derive(Debug, Default)]
pub struct Strangers {
    sources: BTreeMap<IpAddr, Source>,
    open: usize,
    all: Option<Left>,
}

#[derive(Debug)]
struct Source {
    open: usize,
    left: Left,
}

/// How many may come at once, and how many more with time.
#[derive(Clone, Copy, Debug)]
struct Pace {
    each_second: f64,
    at_once: f64,
}

/// What is left of a pace, and when that was.
#[derive(Clone, Copy, Debug)]
struct Left {
    number: f64,
    at: Instant,
}

impl Strangers {
    /// Counts a stranger that is led. Each one counted ends with [`Self::handle_end`].
    ///
    /// # Errors
    /// Too much is asked of this relay; nothing was counted but the pace of the source.
    pub fn handle_open(&mut self, source: IpAddr, now: Instant) -> Result<(), NotLed> {
        self.forget_idle(now);
        let is_full = self.sources.len() >= MAX_REMEMBERED;
        let source = network_of(source);
        if is_full && !self.sources.contains_key(&source) {
            return Err(NotLed::Pace);
        }
        let of = self.sources.entry(source).or_insert_with(|| Source { open: 0, left: PACE.whole(now) });
        if !of.left.take(PACE, now) {
            return Err(NotLed::Pace);
        }
        if of.open >= MAX_STRANGERS_PER_SOURCE {
            return Err(NotLed::PerSource);
        }
        if self.open >= MAX_STRANGERS {
            return Err(NotLed::Total);
        }
        if !self.all.get_or_insert_with(|| PACE_OF_ALL.whole(now)).take(PACE_OF_ALL, now) {
            return Err(NotLed::Pace);
        }
        of.open += 1;
        self.open += 1;
        Ok(())
    }

    /// A stranger of the source is led no longer.
    pub fn handle_end(&mut self, source: IpAddr) {
        if let Some(of) = self.sources.get_mut(&network_of(source))
            && of.open > 0
        {
            of.open -= 1;
            self.open -= 1;
        }
    }

    /// Returns how many are led.
    pub const fn open(&self) -> usize {
        self.open
    }

    /// Keeps the memory bounded: a source with none open and its whole pace left is as one that never came.
    fn forget_idle(&mut self, now: Instant) {
        if self.sources.len() >= MAX_REMEMBERED {
            self.sources.retain(|_, of| {
                of.left.refill(PACE, now);
                of.open > 0 || of.left.number < PACE.at_once
            });
        }
    }
}

impl Pace {
    const fn whole(self, now: Instant) -> Left {
        Left { number: self.at_once, at: now }
    }
}

impl Left {
    fn refill(&mut self, pace: Pace, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.number = (self.number + passed * pace.each_second).min(pace.at_once);
        self.at = now;
    }

    fn take(&mut self, pace: Pace, now: Instant) -> bool {
        self.refill(pace, now);
        let is_left = self.number >= 1.0;
        if is_left {
            self.number -= 1.0;
        }
        is_left
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

    #[test]
    fn sources_without_end_cost_bounded_memory_and_old_ones_make_room() {
        let (mut strangers, now) = (Strangers::default(), Instant::now());
        for number in 0..3_000 {
            if strangers.handle_open(source(number), now).is_ok() {
                strangers.handle_end(source(number));
            }
        }
        assert_eq!(strangers.sources.len(), MAX_REMEMBERED);
        assert_eq!(strangers.handle_open(source(200_000), now + Duration::from_secs(6)), Ok(()));
        assert!(strangers.sources.len() <= 2);
    }
}
