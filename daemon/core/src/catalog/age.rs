//! Ages and rates: how long ago a node was heard of, and how fast adverts may come.
//!
//! Owns: the arithmetic of travelling ages, and whose adverts come at which rate. Must not know: what is aged or counted.
//! Driven by: `store`, `own`, `repair`, `accept`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use gossamer_wire::limits::{ADVERT_BURST, ADVERT_RATE, FORGET_AFTER, MAX_HELD, OFFER_UNTIL};

use crate::bucket::Bucket;

/// Seconds a copy had when it came, and when it came. Grows with the local clock only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    seconds: u32,
    at: Instant,
}

impl Age {
    pub(super) const fn received(seconds: u32, at: Instant) -> Self {
        Self { seconds, at }
    }

    pub(super) fn at(self, now: Instant) -> Duration {
        Duration::from_secs(self.seconds.into()) + now.saturating_duration_since(self.at)
    }

    /// Returns the seconds to hand on. Rounded up: rounded down, two nodes that keep telling each other
    /// would hold an age still.
    pub(super) fn to_wire(self, now: Instant) -> u32 {
        let age = self.at(now);
        let up = age.as_secs() + u64::from(age.subsec_nanos() > 0);
        u32::try_from(up).unwrap_or(u32::MAX)
    }

    /// Returns when the age reaches `limit`; `None` when it has.
    pub(super) fn reaches(self, limit: Duration, now: Instant) -> Option<Instant> {
        let left = limit.checked_sub(self.at(now))?;
        (!left.is_zero()).then(|| now + left)
    }

    pub(super) fn younger(self, other: Self, now: Instant) -> Self {
        if other.at(now) < self.at(now) { other } else { self }
    }
}

/// How long the entries of a silent node are offered and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    /// Age from which they are not handed on.
    pub(super) offer: Duration,
    /// Age at which they are dropped.
    pub(super) forget: Duration,
}

/// Shortest memory of an ephemeral node: its lease, else a refresh that is late would forget it.
const MIN_FORGET: Duration = super::own::EPHEMERAL_LEASE;

impl Patience {
    /// Returns the patience for a node whose certificate claims this ephemeral lifetime; 0 is a lasting node.
    pub(super) fn of(ephemeral_seconds: u32) -> Self {
        if ephemeral_seconds == 0 {
            return Self { offer: OFFER_UNTIL, forget: FORGET_AFTER };
        }
        let forget = Duration::from_secs(ephemeral_seconds.into()).clamp(MIN_FORGET, FORGET_AFTER);
        Self { offer: forget * 23 / 24, forget }
    }
}

/// How long an advert over a rate waits before it is tried again: 16 tokens.
pub(super) const LATER: Duration = Duration::from_millis(250);

/// Token buckets of what each peer gives of each owner. What one peer does changes nothing for another.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// One for each giver and each owner whose card is known, of which there is a bounded number. In one
    /// map: a map for each giver, most of them of one entry, takes ten times as much.
    known: BTreeMap<(NodeId, NodeId), Bucket>,
    givers: BTreeMap<NodeId, Giver>,
    /// When buckets that are full again were thrown away.
    swept: Option<Instant>,
}

/// How often full buckets are thrown away. In a tree every peer gives adverts of every owner some time, and a
/// bucket for each pair of a large mesh would not fit.
const SWEEP: Duration = Duration::from_secs(5);

/// The buckets of one peer for owners whose card is not known: some of their own, one for all the rest.
#[derive(Debug)]
struct Giver {
    strangers: Room,
    rest: Bucket,
}

/// A bounded number of buckets. A full room is emptied when it is older than a bucket takes to refill.
#[derive(Debug)]
struct Room {
    buckets: BTreeMap<NodeId, Bucket>,
    most: usize,
    since: Instant,
}

/// Most owners without a card that have a bucket of their own: no more of their adverts may wait at once.
const MAX_STRANGERS: usize = MAX_HELD;

impl Rates {
    /// Takes a token of (giver, owner); `false` when the giver sends too much of that owner. The owner's name is
    /// not verified: one whose card is not known may be an invention of the giver.
    pub(super) fn take(&mut self, giver: NodeId, owner: NodeId, is_known: bool, now: Instant) -> bool {
        self.sweep(now);
        if is_known {
            return self.known.entry((giver, owner)).or_insert_with(|| bucket(now)).take(now);
        }
        let of_giver = self
            .givers
            .entry(giver)
            .or_insert_with(|| Giver { strangers: Room::new(MAX_STRANGERS, now), rest: bucket(now) });
        of_giver.strangers.bucket(owner, now).unwrap_or(&mut of_giver.rest).take(now)
    }

    /// Frees the place of an owner whose card the giver has just brought.
    pub(super) fn introduce(&mut self, giver: NodeId, owner: NodeId) {
        if let Some(of_giver) = self.givers.get_mut(&giver) {
            of_giver.strangers.buckets.remove(&owner);
        }
    }

    /// Drops the buckets of a peer.
    pub(super) fn drop_peer(&mut self, giver: NodeId) {
        self.givers.remove(&giver);
        self.known.retain(|(of, _), _| *of != giver);
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now.saturating_duration_since(at) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        self.known.retain(|_, bucket| !bucket.is_full(now));
        self.givers.retain(|_, giver| {
            giver.strangers.buckets.retain(|_, bucket| !bucket.is_full(now));
            !(giver.strangers.buckets.is_empty() && giver.rest.is_full(now))
        });
    }
}

impl Room {
    const fn new(most: usize, now: Instant) -> Self {
        Self { buckets: BTreeMap::new(), most, since: now }
    }

    /// Returns the bucket of an owner, a new one when there is room.
    fn bucket(&mut self, owner: NodeId, now: Instant) -> Option<&mut Bucket> {
        if self.buckets.len() >= self.most && !self.buckets.contains_key(&owner) {
            let refilled = Duration::from_secs_f64(ADVERT_BURST / ADVERT_RATE);
            if now.saturating_duration_since(self.since) < refilled {
                return None;
            }
            *self = Self::new(self.most, now);
        }
        Some(self.buckets.entry(owner).or_insert_with(|| bucket(now)))
    }
}

const fn bucket(now: Instant) -> Bucket {
    Bucket::full(ADVERT_RATE, ADVERT_BURST, now)
}

#[cfg(test)]
mod tests {
    use gossamer_wire::limits::MAX_NODES;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_received_age_grows_with_the_local_clock() {
        let start = crate::catalog::tests::start();
        let age = Age::received(10, start);
        assert_eq!(age.at(start + SECOND), 11 * SECOND);
        assert_eq!(age.to_wire(start), 10);
        assert_eq!(age.to_wire(start + SECOND / 2), 11);
        assert_eq!(age.reaches(15 * SECOND, start), Some(start + 5 * SECOND));
        assert_eq!(age.reaches(10 * SECOND, start), None);
    }

    #[test]
    fn telling_each_other_never_makes_an_age_younger_than_the_truth() {
        let start = crate::catalog::tests::start();
        let (mut here, mut there) = (Age::received(0, start), Age::received(0, start));
        for step in 1..100 {
            let now = start + step * SECOND / 3;
            there = there.younger(Age::received(here.to_wire(now), now), now);
            here = here.younger(Age::received(there.to_wire(now), now), now);
            assert!(here.at(now) >= now - start);
        }
    }

    #[test]
    fn an_ephemeral_node_is_forgotten_after_its_own_time() {
        assert_eq!(Patience::of(0), Patience { offer: OFFER_UNTIL, forget: FORGET_AFTER });
        assert_eq!(Patience::of(600).forget, 600 * SECOND);
        assert!(Patience::of(600).offer < 600 * SECOND);
        assert_eq!(Patience::of(1).forget, MIN_FORGET);
        assert_eq!(Patience::of(u32::MAX).forget, FORGET_AFTER);
    }

    fn node(number: u32) -> NodeId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    #[test]
    fn invented_owners_use_up_the_giver_s_common_bucket_only() {
        let now = crate::catalog::tests::start();
        let (liar, honest, known) = (node(1), node(2), node(3));
        let mut rates = Rates::default();
        let invented = (1_000..100_000).filter(|owner| rates.take(liar, node(*owner), false, now)).count();
        assert_eq!(invented, MAX_STRANGERS + ADVERT_BURST as usize);
        assert_eq!(rates.givers[&liar].strangers.buckets.len(), MAX_STRANGERS);
        assert!(!rates.take(liar, node(7), false, now));
        assert!(rates.take(liar, known, true, now), "an owner with a card keeps its own bucket");
        assert!(rates.take(honest, node(7), false, now), "another giver is not touched");
        assert!(rates.take(liar, node(7), false, now + 4 * SECOND), "the room was emptied");
        rates.drop_peer(liar);
        assert_eq!(rates.givers.len(), 1);
    }

    #[test]
    fn a_joiner_may_be_told_of_more_owners_than_may_be_strangers() {
        let now = crate::catalog::tests::start();
        let mut rates = Rates::default();
        for owner in 0..MAX_NODES as u32 {
            assert!(rates.take(node(1), node(owner), false, now), "{owner}");
            rates.introduce(node(1), node(owner));
            assert!(rates.take(node(1), node(owner), true, now), "{owner}");
        }
    }
}
