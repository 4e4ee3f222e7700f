//! Meetings: peers that have just come, and when to compare with them.
//!
//! Owns: the pace of first comparisons. Must not know: hashes, what a comparison finds. Driven by: `repair`.
//!
//! When two halves of a network meet again, every node has hundreds of new peers at one moment, and a few
//! comparisons anywhere would bring the news to all. So each node waits for a random time that grows with its
//! number of peers: wherever the mesh is, a comparison begins every few milliseconds, and who has learnt the
//! news by then finds nothing to compare. A node without a peer does not wait: it has nobody to learn from.

use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use rand::RngExt as _;
use rand::rngs::SmallRng;

/// Longest wait for each peer a node has, and for all of them.
const WAIT_PER_PEER: Duration = Duration::from_millis(4);
const MAX_WAIT: Duration = Duration::from_secs(2);
/// Most peers kept waiting: of many that come at once a few speak for all, the regular rounds find the rest.
const MAX_MEETINGS: usize = 4;
/// How long and how often a meeting is put off while adverts are coming in.
const PUT_OFF: Duration = Duration::from_millis(100);
const MAX_PUT_OFF: u8 = 10;

#[derive(Debug, Default)]
pub(super) struct Meetings {
    waiting: Vec<NodeId>,
    next: Option<Instant>,
    put_off: u8,
}

impl Meetings {
    /// Takes a peer that has come; `others` is how many peers there are beside it.
    pub(super) fn add(&mut self, peer: NodeId, others: usize, rng: &mut SmallRng, now: Instant) {
        if self.waiting.contains(&peer) {
            return;
        }
        if self.waiting.len() >= MAX_MEETINGS {
            let at = rng.random_range(0..=self.waiting.len());
            if let Some(place) = self.waiting.get_mut(at) {
                *place = peer;
            }
        } else {
            self.waiting.push(peer);
        }
        if self.next.is_none() {
            self.next = Some(now + wait(others, rng));
        }
    }

    /// Drops a peer that has gone, or that has been compared with.
    pub(super) fn remove(&mut self, peer: NodeId) {
        self.waiting.retain(|waiting| *waiting != peer);
        if self.waiting.is_empty() {
            self.next = None;
        }
    }

    /// Returns the peer to compare with now. `is_gaining`: adverts are coming in, so that the hash is changing.
    pub(super) fn take(
        &mut self,
        others: usize,
        is_gaining: bool,
        rng: &mut SmallRng,
        now: Instant,
    ) -> Option<NodeId> {
        self.next.filter(|at| *at <= now)?;
        if is_gaining && self.put_off < MAX_PUT_OFF {
            self.put_off += 1;
            self.next = Some(now + PUT_OFF);
            return None;
        }
        self.put_off = 0;
        let peer = (!self.waiting.is_empty()).then(|| self.waiting.remove(0));
        self.next = (!self.waiting.is_empty()).then(|| now + wait(others, rng));
        peer
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.next
    }
}

fn wait(others: usize, rng: &mut SmallRng) -> Duration {
    let others = u32::try_from(others).unwrap_or(u32::MAX);
    WAIT_PER_PEER.saturating_mul(others).min(MAX_WAIT).mul_f64(rng.random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::catalog::tests::start;

    fn peer(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 16])
    }

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(5)
    }

    #[test]
    fn the_first_peer_is_met_at_once() {
        let now = start();
        let mut meetings = Meetings::default();
        meetings.add(peer(1), 0, &mut rng(), now);
        assert_eq!(meetings.deadline(), Some(now));
        assert_eq!(meetings.take(0, false, &mut rng(), now), Some(peer(1)));
        assert_eq!((meetings.take(0, false, &mut rng(), now), meetings.deadline()), (None, None));
    }

    #[test]
    fn of_many_peers_that_come_at_once_a_few_are_met_at_random_times() {
        let (now, mut rng) = (start(), rng());
        let mut meetings = Meetings::default();
        (1..=200).for_each(|byte| meetings.add(peer(byte), 500, &mut rng, now));
        let mut met = Vec::new();
        while let Some(at) = meetings.deadline() {
            met.push((meetings.take(500, false, &mut rng, at).expect("due"), at - now));
        }
        assert_eq!(met.len(), MAX_MEETINGS);
        assert!(met.iter().any(|(peer, _)| peer.as_bytes()[0] > 4), "not the first four: {met:?}");
        assert!(met.last().is_some_and(|(_, at)| *at > Duration::from_secs(1)));
    }

    #[test]
    fn while_adverts_come_in_a_meeting_is_put_off_but_not_for_ever() {
        let (now, mut rng) = (start(), rng());
        let mut meetings = Meetings::default();
        meetings.add(peer(1), 0, &mut rng, now);
        let mut at = now;
        while meetings.take(0, true, &mut rng, at).is_none() {
            at = meetings.deadline().expect("it is still to come");
        }
        assert_eq!(at - now, PUT_OFF * u32::from(MAX_PUT_OFF));
    }

    #[test]
    fn who_is_gone_is_not_met() {
        let (now, mut rng) = (start(), rng());
        let mut meetings = Meetings::default();
        meetings.add(peer(1), 0, &mut rng, now);
        meetings.add(peer(1), 0, &mut rng, now);
        meetings.remove(peer(1));
        assert_eq!((meetings.take(0, false, &mut rng, now), meetings.deadline()), (None, None));
    }
}
