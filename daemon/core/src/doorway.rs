//! Who may begin a handshake: the answer to the first packet of a stranger.
//!
//! Owns: the handshakes under way, by source, and how much comes at present. Must not know: sockets, QUIC, certificates.
//! Driven by: the accepting task (daemon), which does what the answer says.
//!
//! The first packet of a handshake can carry any address, costs its sender nothing and us a signature. So under load
//! (ADR 15) a source shows first that it has its address, which needs no memory here; a source has a few handshakes at
//! once; one that leaves handshakes unfinished waits; all strangers together have a rate; and the oldest handshake makes
//! room for the next. Sources of members come before strangers. Without load nothing of this is asked.

mod book;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use gossamer_wire::limits::{
    MAX_HALF_OPEN, MAX_HALF_OPEN_PER_MEMBER, MAX_HALF_OPEN_PER_OPENER, MAX_HALF_OPEN_PER_SOURCE,
    MAX_HANDSHAKES_AT_ONCE, MAX_HANDSHAKES_PER_SECOND, MAX_RETRIES_PER_SECOND, RETRY_ABOVE_HALF_OPEN,
    RETRY_ABOVE_INITIALS,
};

use crate::bucket::Bucket;
use crate::source::network_of;
use book::{Known, Unfinished};

/// Age from which a handshake makes room for another one: two round trips around the world.
const MAY_GO_AFTER: Duration = Duration::from_millis(500);
/// Time between two notes of a flood.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// Handshakes turned away in that time that make it a flood: a mesh that starts together is none.
const FLOOD: u64 = 1_000;

/// A handshake under way. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// What to do with the first packet of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Begin the handshake, and say how it ended.
    Accept(Place),
    /// Let the source show that it has its address, statelessly.
    Retry,
    /// Say no.
    Refuse,
    /// Say nothing: an honest source sends the packet again after a second.
    Ignore,
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A member is connected.
    Member,
    /// There was a connection, of a joiner or of somebody who was refused.
    Stranger,
    /// There never was one.
    Unfinished,
}

/// What has been turned away since the last note.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flood {
    /// Sources asked to show that they have their address.
    pub retried: u64,
    /// Handshakes refused or ignored.
    pub turned_away: u64,
    /// Handshakes that made room for others.
    pub given_up: u64,
}

/// The state of the doorway.
#[derive(Debug, Default)]
pub struct Doorway {
    open: BTreeMap<Place, Open>,
    of_source: BTreeMap<Source, usize>,
    next_place: u64,
    members: Known,
    unfinished: Unfinished,
    second: Second,
    /// Handshakes that strangers may still begin, and when that was counted.
    allowance: Option<Bucket>,
    given_up: VecDeque<Place>,
    flood: Flood,
    noted: Option<Instant>,
}

/// Whom a handshake counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Network(IpAddr),
    /// In circuits of the relay, the first, the member that it names, the second.
    Opener(NodeId, NodeId),
    /// All that this one leads.
    Relay(NodeId),
}

#[derive(Clone, Copy, Debug)]
struct Open {
    source: Source,
    is_member: bool,
    since: Instant,
}

/// What came in the present second and in the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    begin: Option<Instant>,
    unvalidated: u32,
    before: u32,
    retries: u32,
}

impl Doorway {
    /// Judges the first packet of a handshake. Poll [`Self::next_given_up`] and [`Self::next_flood`] after it.
    pub fn handle_arrival(&mut self, source: IpAddr, is_validated: bool, now: Instant) -> Answer {
        self.second.roll(now);
        self.second.unvalidated += u32::from(!is_validated);
        let source = network_of(source);
        let is_member = self.members.contains(source);
        if !self.is_loaded() {
            return self.accept(Source::Network(source), is_member, now);
        }
        let answer = match is_validated {
            false => self.second.retry(),
            true => self.judge(source, is_member, now),
        };
        self.note(answer)
    }

    /// Judges a circuit that came in: its relay, a member, says who has opened it. One that lies in that harms those alone
    /// who count on it. Poll as above.
    pub fn handle_circuit(&mut self, relay: NodeId, opener: NodeId, now: Instant) -> Answer {
        let source = Source::Opener(relay, opener);
        let answer = if self.open_of(source) >= MAX_HALF_OPEN_PER_OPENER
            || self.open_of(Source::Relay(relay)) >= MAX_HALF_OPEN_PER_MEMBER
        {
            Answer::Refuse
        } else if self.open.len() < MAX_HALF_OPEN {
            self.accept(source, true, now)
        } else if self.has_no_oldest(true, now) {
            Answer::Ignore
        } else {
            self.give_up_oldest(true, now);
            self.accept(source, true, now)
        };
        self.note(answer)
    }

    const fn note(&mut self, answer: Answer) -> Answer {
        match answer {
            Answer::Retry => self.flood.retried += 1,
            Answer::Refuse | Answer::Ignore => self.flood.turned_away += 1,
            Answer::Accept(_) => {}
        }
        answer
    }

    /// Takes note of the end of a handshake. Unknown places are ignored.
    pub fn handle_end(&mut self, place: Place, ending: Ending, now: Instant) {
        let Some(Source::Network(source)) = self.remove(place) else { return };
        match ending {
            Ending::Member => self.members.insert(source),
            Ending::Stranger => {}
            Ending::Unfinished => self.unfinished.insert(source, now),
        }
    }

    /// Takes note of where a member is that was dialled.
    pub fn handle_member(&mut self, source: IpAddr) {
        self.members.insert(network_of(source));
    }

    /// Returns the next handshake to give up; its end need not be told.
    pub fn next_given_up(&mut self) -> Option<Place> {
        self.given_up.pop_front()
    }

    /// Returns what a flood has cost, at most once in ten seconds, while there is one.
    pub fn next_flood(&mut self, now: Instant) -> Option<Flood> {
        let is_early = self.noted.is_some_and(|noted| now.saturating_duration_since(noted) < NOTE_EVERY);
        let Flood { retried, turned_away, given_up } = self.flood;
        if is_early || retried + turned_away + given_up < FLOOD {
            return None;
        }
        self.noted = Some(now);
        Some(std::mem::take(&mut self.flood))
    }

    fn is_loaded(&self) -> bool {
        self.open.len() >= RETRY_ABOVE_HALF_OPEN || self.second.most() > RETRY_ABOVE_INITIALS
    }

    /// Judges a source that has its address.
    fn judge(&mut self, source: IpAddr, is_member: bool, now: Instant) -> Answer {
        let limit = if is_member { MAX_HALF_OPEN_PER_MEMBER } else { MAX_HALF_OPEN_PER_SOURCE };
        if self.open_of(Source::Network(source)) >= limit {
            return Answer::Refuse;
        }
        if !is_member && self.unfinished.of(source, now) >= MAX_HALF_OPEN_PER_SOURCE {
            return Answer::Ignore;
        }
        if self.open.len() >= MAX_HALF_OPEN && self.has_no_oldest(is_member, now) {
            return Answer::Ignore;
        }
        if !is_member && !self.allowance.get_or_insert_with(|| allowance(now)).take(now) {
            return Answer::Ignore;
        }
        if self.open.len() >= MAX_HALF_OPEN {
            self.give_up_oldest(is_member, now);
        }
        self.accept(Source::Network(source), is_member, now)
    }

    fn open_of(&self, source: Source) -> usize {
        self.of_source.get(&source).copied().unwrap_or_default()
    }

    fn accept(&mut self, source: Source, is_member: bool, now: Instant) -> Answer {
        let place = Place(self.next_place);
        self.next_place += 1;
        self.open.insert(place, Open { source, is_member, since: now });
        for counted in source.all() {
            *self.of_source.entry(counted).or_default() += 1;
        }
        Answer::Accept(place)
    }

    /// Returns the handshake that makes room for another: a stranger's for anybody, a member's for none.
    fn oldest(&self, for_member: bool, now: Instant) -> Option<Place> {
        let mut strangers = self.open.iter().filter(|(_, open)| !open.is_member);
        let (place, open) = strangers.next()?;
        let may_go = for_member || now.saturating_duration_since(open.since) >= MAY_GO_AFTER;
        may_go.then_some(*place)
    }

    fn has_no_oldest(&self, for_member: bool, now: Instant) -> bool {
        self.oldest(for_member, now).is_none()
    }

    fn give_up_oldest(&mut self, for_member: bool, now: Instant) {
        let Some(place) = self.oldest(for_member, now) else { return };
        if let Some(Source::Network(source)) = self.remove(place) {
            self.unfinished.insert(source, now);
        }
        self.flood.given_up += 1;
        self.given_up.push_back(place);
    }

    fn remove(&mut self, place: Place) -> Option<Source> {
        let Open { source, .. } = self.open.remove(&place)?;
        for counted in source.all() {
            if let Some(open) = self.of_source.get_mut(&counted) {
                *open -= 1;
                if *open == 0 {
                    self.of_source.remove(&counted);
                }
            }
        }
        Some(source)
    }
}

/// The handshakes that strangers may begin under load.
fn allowance(now: Instant) -> Bucket {
    Bucket::full(MAX_HANDSHAKES_PER_SECOND, f64::from(MAX_HANDSHAKES_AT_ONCE), now)
}

impl Source {
    /// Returns all that a handshake counts for.
    fn all(self) -> impl Iterator<Item = Self> {
        let relay = match self {
            Self::Opener(relay, _) => Some(Self::Relay(relay)),
            Self::Network(_) | Self::Relay(_) => None,
        };
        [self].into_iter().chain(relay)
    }
}

impl Second {
    fn roll(&mut self, now: Instant) {
        let passed = self.begin.map_or(Duration::MAX, |begin| now.saturating_duration_since(begin));
        if passed >= Duration::from_secs(1) {
            let before = if passed < Duration::from_secs(2) { self.unvalidated } else { 0 };
            *self = Self { begin: Some(now), before, ..Self::default() };
        }
    }

    const fn most(&self) -> u32 {
        if self.unvalidated > self.before { self.unvalidated } else { self.before }
    }

    const fn retry(&mut self) -> Answer {
        if self.retries >= MAX_RETRIES_PER_SECOND {
            return Answer::Ignore;
        }
        self.retries += 1;
        Answer::Retry
    }
}

#[cfg(test)]
mod tests;
