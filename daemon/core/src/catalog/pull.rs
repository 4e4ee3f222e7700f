//! Pulls: adverts that peers announce, and the ids this node announces itself.
//!
//! Owns: which advert is asked of whom and since when, the grace before asking, the round trips it is made of,
//! the batch of learnt ids. Must not know: what is stored, why something is announced. Driven by: `repair` and
//! `accept`.
//!
//! An advert is asked of one peer at a time, whoever announces it: when many peers hold something new, as after a
//! partition, each copy still comes once. Keys are ids and not slots, so that an invented version keeps nobody
//! from asking for the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use gossamer_wire::advert::{AdvertId, Slot, Version};

/// How long an answer may take before another peer is asked: a catalog of 1,000 nodes over 10 Mbit/s.
const PULL_TIMEOUT: Duration = Duration::from_secs(3);
/// Most peers remembered for one advert.
const MAX_SOURCES: usize = 4;
/// Most adverts one peer may have announced that are neither here nor given up.
const MAX_OF_ONE: usize = 16_384;
/// Most of all peers together.
const MAX_PULLS: usize = 65_536;
/// Shortest grace, and the longest round trip that is believed: a slow answer is long because it is large.
const MIN_GRACE: Duration = Duration::from_millis(4);
const MAX_ROUND_TRIP: Duration = Duration::from_millis(200);
/// Round trip of a peer that was never asked: long for one network, and short enough to be cheap once.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(10);
/// How long learnt ids are gathered before they are announced: a burst is one frame, and a hop costs 5 ms more.
pub(super) const GATHER: Duration = Duration::from_millis(5);
/// Shortest pause between two announcements: in a storm of changes each node learns something every few milliseconds,
/// and ids are only for those whom a push has missed.
const REST: Duration = Duration::from_millis(50);
/// How long after the last gain more is taken to be on its way.
const STILL_COMING: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Pull {
    /// Whose room it takes.
    announcer: NodeId,
    /// Peers to ask, first one first.
    sources: Vec<NodeId>,
    asked: Option<(NodeId, Instant)>,
    due: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Pulls {
    pulls: BTreeMap<AdvertId, Pull>,
    due: BTreeSet<(Instant, AdvertId)>,
    of_one: BTreeMap<NodeId, usize>,
    round_trips: BTreeMap<NodeId, Duration>,
    /// Learnt and not announced yet, with who gave it.
    learnt: BTreeMap<AdvertId, NodeId>,
    announce_at: Option<Instant>,
    announced: Option<Instant>,
    last_gain: Option<Instant>,
}

impl Pulls {
    /// Notes that a peer holds an advert this node lacks; asks for it after `grace`. Returns `false` when the
    /// peer has announced too much.
    pub(super) fn announce(&mut self, from: NodeId, id: AdvertId, grace: Duration, now: Instant) -> bool {
        if let Some(pull) = self.pulls.get_mut(&id) {
            let is_asked = pull.asked.is_some_and(|(of, _)| of == from);
            if pull.sources.len() < MAX_SOURCES && !is_asked && !pull.sources.contains(&from) {
                pull.sources.push(from);
            }
            if pull.asked.is_none() && now + grace < pull.due {
                self.due.remove(&(pull.due, id));
                pull.due = now + grace;
                self.due.insert((pull.due, id));
            }
            return true;
        }
        let of_one = self.of_one.entry(from).or_default();
        if self.pulls.len() >= MAX_PULLS || *of_one >= MAX_OF_ONE {
            return false;
        }
        *of_one += 1;
        let due = now + grace;
        self.pulls.insert(id, Pull { announcer: from, sources: vec![from], asked: None, due });
        self.due.insert((due, id));
        true
    }

    /// Returns how long to wait for a push before asking a peer: two round trips of it.
    pub(super) fn grace(&self, peer: NodeId) -> Duration {
        (self.round_trip(peer) * 2).max(MIN_GRACE)
    }

    /// Returns an id whose time has come; follow with [`Self::ask`] or [`Self::forget`].
    pub(super) fn next_due(&self, now: Instant) -> Option<AdvertId> {
        self.due.first().filter(|(at, _)| *at <= now).map(|&(_, id)| id)
    }

    /// Chooses whom to ask for an id that is due. `None` when nobody is left; the id is forgotten then.
    pub(super) fn ask(
        &mut self,
        id: AdvertId,
        is_connected: impl Fn(NodeId) -> bool,
        now: Instant,
    ) -> Option<NodeId> {
        let pull = self.pulls.get_mut(&id)?;
        let at = pull.sources.iter().position(|source| is_connected(*source));
        let Some(of) = at.map(|at| pull.sources.remove(at)) else {
            self.forget(id);
            return None;
        };
        pull.asked = Some((of, now));
        self.due.remove(&(pull.due, id));
        pull.due = now + PULL_TIMEOUT;
        self.due.insert((pull.due, id));
        Some(of)
    }

    /// Gives an id up: it is here, or not wanted any more.
    pub(super) fn forget(&mut self, id: AdvertId) {
        let Some(pull) = self.pulls.remove(&id) else { return };
        self.due.remove(&(pull.due, id));
        if let Some(of_one) = self.of_one.get_mut(&pull.announcer) {
            *of_one -= 1;
            if *of_one == 0 {
                self.of_one.remove(&pull.announcer);
            }
        }
    }

    /// Notes that a version has come from a peer, and gives up all that is not newer. Returns whether it had
    /// been asked of that peer.
    pub(super) fn came(&mut self, from: NodeId, slot: Slot, version: Version, now: Instant) -> bool {
        let all = AdvertId { slot, version: Version::default() }..=AdvertId { slot, version };
        let met: Vec<_> = self.pulls.range(all).map(|(id, pull)| (*id, pull.asked)).collect();
        let mut was_asked = false;
        for (id, asked) in met {
            if let Some((_, at)) = asked.filter(|(of, _)| *of == from) {
                was_asked = true;
                self.measure(from, now.saturating_duration_since(at));
            }
            self.forget(id);
        }
        was_asked
    }

    /// Takes an id to announce, learnt from a peer.
    pub(super) fn learn(&mut self, id: AdvertId, from: NodeId, now: Instant) {
        self.learnt.insert(id, from);
        self.last_gain = Some(now);
        let gathered = now + GATHER;
        let at = self.announced.map_or(gathered, |last| gathered.max(last + REST));
        self.announce_at.get_or_insert(at);
    }

    /// Returns the ids to announce, with who gave them, when it is time.
    pub(super) fn take_learnt(&mut self, now: Instant) -> BTreeMap<AdvertId, NodeId> {
        if self.announce_at.is_none_or(|at| at > now) {
            return BTreeMap::new();
        }
        self.announce_at = None;
        self.announced = Some(now);
        std::mem::take(&mut self.learnt)
    }

    /// Returns whether something new came so lately that more is likely on its way.
    pub(super) fn is_gaining(&self, now: Instant) -> bool {
        self.last_gain.is_some_and(|at| now.saturating_duration_since(at) < STILL_COMING)
    }

    /// Forgets a peer: what was asked of it is asked of others at once.
    pub(super) fn disconnect(&mut self, peer: NodeId, now: Instant) {
        self.round_trips.remove(&peer);
        let asked = |pull: &Pull| pull.asked.is_some_and(|(of, _)| of == peer);
        let open: Vec<_> = self.pulls.iter().filter(|(_, pull)| asked(pull)).map(|(id, _)| *id).collect();
        for id in open {
            if let Some(pull) = self.pulls.get_mut(&id) {
                self.due.remove(&(pull.due, id));
                pull.due = now;
                self.due.insert((now, id));
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.first().map(|&(at, _)| at).into_iter().chain(self.announce_at).min()
    }

    fn round_trip(&self, peer: NodeId) -> Duration {
        self.round_trips.get(&peer).copied().unwrap_or(UNKNOWN_ROUND_TRIP)
    }

    /// Follows a shorter sample at once and a longer one slowly: length adds to a round trip, nothing takes off.
    fn measure(&mut self, peer: NodeId, sample: Duration) {
        let sample = sample.min(MAX_ROUND_TRIP);
        let known = self.round_trips.entry(peer).or_insert(sample);
        *known = if sample < *known { sample } else { *known + (sample - *known) / 8 };
    }
}

#[cfg(test)]
mod tests {
    use gossamer_wire::advert::Kind;

    use super::*;
    use crate::catalog::tests::start;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn peer(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 16])
    }

    fn id(seq: u64) -> AdvertId {
        let slot = Slot { node: peer(9), kind: Kind::Records, k: 0 };
        AdvertId { slot, version: Version { epoch: 1, seq } }
    }

    fn ask(pulls: &mut Pulls, now: Instant) -> Option<NodeId> {
        let id = pulls.next_due(now)?;
        pulls.ask(id, |_| true, now)
    }

    #[test]
    fn an_advert_is_asked_of_one_peer_at_a_time() {
        let now = start();
        let mut pulls = Pulls::default();
        for source in 1..=3 {
            assert!(pulls.announce(peer(source), id(1), MILLISECOND, now));
        }
        assert_eq!(ask(&mut pulls, now), None, "within the grace it may come by itself");
        assert_eq!(ask(&mut pulls, now + MILLISECOND), Some(peer(1)));
        assert!(pulls.announce(peer(3), id(1), Duration::ZERO, now + MILLISECOND * 2));
        assert_eq!(ask(&mut pulls, now + PULL_TIMEOUT), None);
        let later = now + MILLISECOND + PULL_TIMEOUT;
        assert_eq!(ask(&mut pulls, later), Some(peer(2)));
        pulls.disconnect(peer(2), later);
        assert_eq!(ask(&mut pulls, later), Some(peer(3)));
        assert_eq!(ask(&mut pulls, later + PULL_TIMEOUT), None);
        assert_eq!((pulls.pulls.len(), pulls.deadline()), (0, None), "nobody is left");
    }

    #[test]
    fn what_came_is_given_up_with_all_older_versions() {
        let now = start();
        let mut pulls = Pulls::default();
        assert!((1..=3).all(|seq| pulls.announce(peer(1), id(seq), Duration::ZERO, now)));
        assert_eq!(ask(&mut pulls, now), Some(peer(1)));
        assert!(!pulls.came(peer(2), id(1).slot, id(1).version, now), "it was asked of another");
        assert_eq!(ask(&mut pulls, now), Some(peer(1)));
        assert!(pulls.came(peer(1), id(2).slot, id(2).version, now));
        assert_eq!(pulls.next_due(now), Some(id(3)));
        assert_eq!(pulls.pulls.len(), 1);
    }

    #[test]
    fn an_invented_version_keeps_nobody_from_asking_for_the_real_one() {
        let now = start();
        let mut pulls = Pulls::default();
        pulls.announce(peer(1), id(u64::MAX), Duration::ZERO, now);
        pulls.announce(peer(2), id(5), Duration::ZERO, now);
        let asked: BTreeSet<_> = std::iter::from_fn(|| ask(&mut pulls, now)).collect();
        assert_eq!(asked, [peer(1), peer(2)].into());
    }

    #[test]
    fn one_peer_has_a_bounded_room_and_leaves_others_theirs() {
        let now = start();
        let mut pulls = Pulls::default();
        let taken = (0..100_000).filter(|seq| pulls.announce(peer(1), id(*seq), MILLISECOND, now)).count();
        assert_eq!(taken, MAX_OF_ONE);
        assert!(pulls.announce(peer(2), id(200_000), MILLISECOND, now));
        while let Some(id) = pulls.next_due(now + MILLISECOND) {
            pulls.forget(id);
        }
        assert!(pulls.of_one.is_empty() && pulls.due.is_empty());
        assert!(pulls.announce(peer(1), id(1), MILLISECOND, now));
    }

    #[test]
    fn the_grace_is_two_round_trips_of_the_peer() {
        let now = start();
        let mut pulls = Pulls::default();
        assert_eq!(pulls.grace(peer(1)), UNKNOWN_ROUND_TRIP * 2);
        for (trip, grace) in [(60, 120), (1, 4), (9, 4), (100_000, 53)] {
            pulls.announce(peer(1), id(1), Duration::ZERO, now);
            ask(&mut pulls, now);
            assert!(pulls.came(peer(1), id(1).slot, id(1).version, now + MILLISECOND * trip));
            assert_eq!(pulls.grace(peer(1)).as_millis(), grace, "after {trip} ms");
        }
        pulls.disconnect(peer(1), now);
        assert_eq!(pulls.grace(peer(1)), UNKNOWN_ROUND_TRIP * 2);
    }

    #[test]
    fn learnt_ids_are_gathered_longer_while_many_come() {
        let now = start();
        let mut pulls = Pulls::default();
        let mut announcements = 0;
        for millisecond in 0..1_000 {
            let now = now + MILLISECOND * millisecond;
            pulls.learn(id(u64::from(millisecond)), peer(1), now);
            announcements += usize::from(!pulls.take_learnt(now).is_empty());
        }
        assert_eq!(announcements, 20);
        let quiet = now + MILLISECOND * 2_000;
        pulls.take_learnt(quiet);
        pulls.learn(id(9_999), peer(1), quiet + REST);
        assert_eq!(pulls.deadline(), Some(quiet + REST + GATHER), "the first after a pause waits no longer");
    }

    #[test]
    fn learnt_ids_are_gathered_for_a_moment() {
        let now = start();
        let mut pulls = Pulls::default();
        pulls.learn(id(1), peer(1), now);
        pulls.learn(id(2), peer(2), now + GATHER / 2);
        assert!(pulls.take_learnt(now + GATHER / 2).is_empty());
        assert_eq!(pulls.deadline(), Some(now + GATHER));
        assert_eq!(pulls.take_learnt(now + GATHER), [(id(1), peer(1)), (id(2), peer(2))].into());
        assert_eq!(pulls.deadline(), None);
        assert!(pulls.is_gaining(now + GATHER) && !pulls.is_gaining(now + GATHER + STILL_COMING));
    }
}
