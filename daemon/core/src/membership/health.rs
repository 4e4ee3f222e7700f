//! How far this node may trust its own impression of others (Lifeguard: local health).
//!
//! Owns: the score of this node, the round trips of slow peers, when it may renew itself.
//! Must not know: members, packets. Driven by: `Membership`, for each ping, ack and verdict.
//!
//! Who misses many answers is likelier to be ill itself than all the others. A slow peer is given the time it
//! is known to need.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

/// This node's impression of itself and of its paths.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// 0 when well.
    score: u32,
    /// When a suspicion of this node last counted.
    suspected: Option<Instant>,
    /// Pings that may still be answered.
    pings: VecDeque<(NodeId, u8, Instant)>,
    /// Round trips of peers slower than [`SLOW`].
    slow: BTreeMap<NodeId, Duration>,
}

impl Health {
    /// A ping goes out.
    pub(super) fn pinged(&mut self, node: NodeId, number: u8, now: Instant) {
        if self.pings.len() == PINGS {
            self.pings.pop_front();
        }
        self.pings.push_back((node, number, now));
    }

    /// A ping is answered, in time or not.
    pub(super) fn acked(&mut self, node: NodeId, number: u8, now: Instant) {
        let is_it = |ping: &(NodeId, u8, Instant)| (ping.0, ping.1) == (node, number);
        let Some(at) = self.pings.iter().position(is_it) else { return };
        let Some((_, _, sent)) = self.pings.remove(at) else { return };
        let took = now.saturating_duration_since(sent);
        if took < SLOW {
            self.slow.remove(&node);
        } else {
            self.slow.insert(node, took.min(LONGEST_ROUND_TRIP));
        }
    }

    /// A probe went well.
    pub(super) fn improve(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    /// A probe failed, others suspect this node, or it runs late.
    pub(super) fn worsen(&mut self) {
        self.score = (self.score + 1).min(WORST);
    }

    /// Others suspect this node. Counts once a second: one peer must not be able to slow this node down.
    pub(super) fn suspected(&mut self, now: Instant) {
        if self.suspected.is_none_or(|last| now.saturating_duration_since(last) >= SUSPECTED_EVERY) {
            self.suspected = Some(now);
            self.worsen();
        }
    }

    /// Forgets a node.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.slow.remove(&node);
    }

    /// Returns by how much this node's own suspicions last longer than usual: 1 to 4.
    pub(super) fn stretch(&self) -> u32 {
        1 + self.score
    }

    /// Returns how long a probe of the node may take, `usual` for one that is not slow.
    pub(super) fn patience(&self, node: NodeId, usual: Duration) -> Duration {
        let known = self.slow.get(&node).map_or(Duration::ZERO, |took| *took * 3 / 2);
        known.max(usual * self.stretch())
    }

    /// Returns the round trip of a slow node; zero for others.
    pub(super) fn round_trip(&self, node: NodeId) -> Duration {
        self.slow.get(&node).copied().unwrap_or_default()
    }
}

/// When this node may take a new generation because others want it. Each costs the mesh a round of news, so
/// one peer must not be able to ask for many.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    last: Option<Instant>,
    pause: Duration,
}

impl Renewals {
    /// Whether one may take place; it counts as done.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        if since.is_some_and(|since| since < self.pause) {
            return false;
        }
        let is_calm = since.is_none_or(|since| since >= CALM);
        self.pause = if is_calm { FIRST_PAUSE } else { (2 * self.pause).min(LONGEST_PAUSE) };
        self.last = Some(now);
        true
    }

    /// Returns when the last one was.
    pub(super) fn last(&self) -> Option<Instant> {
        self.last
    }

    /// Lets the next one take place at once: this node was away, others may hold it for down.
    pub(super) fn expect(&mut self) {
        self.pause = Duration::ZERO;
    }
}

/// Worst score: suspicions last four times as long, 10 s. Higher ones would hide real deaths.
const WORST: u32 = 3;

/// See [`Health::suspected`].
const SUSPECTED_EVERY: Duration = Duration::from_secs(1);

/// Pings remembered: those of the last seconds, also at the slowest pace of answers.
const PINGS: usize = 16;

/// Round trip from which a peer is slow: half of the time a probe has.
const SLOW: Duration = Duration::from_millis(100);

/// Longest round trip that is believed: who takes longer is no use as a member.
const LONGEST_ROUND_TRIP: Duration = Duration::from_secs(2);

/// Pause after a renewal that followed none for [`CALM`]; it doubles with each up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause between renewals: bounds how long a healed partition can leave this node down.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Time without a renewal after which pauses start anew.
const CALM: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::super::tests::start;
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    #[test]
    fn a_slow_peer_gets_the_time_it_needs_also_when_it_answers_too_late() {
        let (now, mut health) = (start(), Health::default());
        health.pinged(node(1), 7, now);
        health.pinged(node(2), 8, now);
        health.acked(node(2), 8, now + 20 * MS);
        health.acked(node(1), 9, now + 30 * MS);
        assert_eq!(health.patience(node(1), 200 * MS), 200 * MS, "not its number");
        health.acked(node(1), 7, now + 1_200 * MS);
        assert_eq!(health.patience(node(1), 200 * MS), 1_800 * MS);
        assert_eq!(health.patience(node(2), 200 * MS), 200 * MS);
        health.pinged(node(1), 10, now);
        health.acked(node(1), 10, now + 20 * MS);
        assert_eq!(health.patience(node(1), 200 * MS), 200 * MS, "fast again");
    }

    #[test]
    fn a_bad_score_stretches_up_to_four_times_and_heals() {
        let mut health = Health::default();
        (0..10).for_each(|_| health.worsen());
        assert_eq!((health.stretch(), health.patience(node(1), 200 * MS)), (4, 800 * MS));
        (0..10).for_each(|_| health.improve());
        assert_eq!(health.stretch(), 1);
    }

    #[test]
    fn few_pings_are_remembered() {
        let (now, mut health) = (start(), Health::default());
        (0..200).for_each(|number| health.pinged(node(1), number, now));
        health.acked(node(1), 0, now + SECOND);
        assert_eq!(health.round_trip(node(1)), Duration::ZERO);
        assert_eq!(health.pings.len(), PINGS);
    }

    #[test]
    fn renewals_become_rare_when_somebody_wants_many() {
        let (now, mut renewals) = (start(), Renewals::default());
        let at: Vec<_> = (0..6_000).filter(|tenth| renewals.allow(now + *tenth * SECOND / 10)).collect();
        assert!((9..=13).contains(&at.len()), "{at:?}");
        assert_eq!(at[..3], [0, 100, 300]);
        renewals.expect();
        assert!(renewals.allow(now + 601 * SECOND));
        assert!(renewals.allow(now + 2_000 * SECOND) && !renewals.allow(now + 2_009 * SECOND));
    }
}
