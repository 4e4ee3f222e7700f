//! How often a peer may be told no before it is taken for one that searches.
//!
//! Owns: a budget for each peer. Must not know: what was asked, why it was refused. Driven by: the relay, at each
//! refusal.
//!
//! What does not exist and what is denied cost the same, or the end of the budget would tell them apart. An honest node
//! asks for what its catalog shows, so it is refused while a change is on its way: a program that opens thousands of
//! flows a second is refused some hundred times until its node has heard. Who asks for ids it cannot know is not.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

/// Refusals at once: what 10,000 new flows a second meet in the 400 ms that a change may take to arrive (ADR 29).
pub const BURST: u32 = 4_096;

/// How soon one more is free: 20 a second.
pub const REFILL_EVERY: Duration = Duration::from_millis(50);

/// Peers whose budget is remembered: more than one mesh has, at 40 bytes each.
const MAX_PEERS: usize = 16_384;

/// The budgets of all peers; one that was not used for long is not held.
#[derive(Debug, Default)]
pub struct Denials(BTreeMap<NodeId, Spent>);

#[derive(Clone, Copy, Debug)]
struct Spent {
    /// At `since`; at most [`BURST`].
    count: u32,
    since: Instant,
}

impl Spent {
    fn at(self, now: Instant) -> Self {
        let passed = now.saturating_duration_since(self.since).as_millis() / REFILL_EVERY.as_millis();
        let freed = u32::try_from(passed).unwrap_or(u32::MAX);
        Self {
            count: self.count.saturating_sub(freed),
            since: self.since + REFILL_EVERY.saturating_mul(freed),
        }
    }
}

impl Denials {
    /// Notes that a peer was refused. Returns whether it has searched: its budget was used up before.
    pub fn handle_denied(&mut self, peer: NodeId, now: Instant) -> bool {
        if self.0.len() >= MAX_PEERS && !self.0.contains_key(&peer) {
            self.0.retain(|_, spent| spent.at(now).count > 0);
            if self.0.len() >= MAX_PEERS {
                self.0.pop_first();
            }
        }
        let spent = self.0.entry(peer).or_insert(Spent { count: 0, since: now });
        *spent = spent.at(now);
        if spent.count >= BURST {
            return true;
        }
        spent.count += 1;
        false
    }

    /// Counts the peers whose budget is remembered.
    pub fn peers(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> NodeId {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        NodeId::from_bytes(id)
    }

    fn spend(denials: &mut Denials, now: Instant) -> u32 {
        (0..).find(|_| denials.handle_denied(peer(1), now)).expect("it ends")
    }

    #[test]
    fn who_is_refused_now_and_then_is_no_searcher() {
        let (mut denials, mut now) = (Denials::default(), Instant::now());
        assert_eq!(spend(&mut denials, now), BURST);
        assert!(!denials.handle_denied(peer(2), now), "each peer has its own");
        now += REFILL_EVERY * 10;
        assert_eq!(spend(&mut denials, now), 10);
        now += REFILL_EVERY * (BURST + 5);
        assert_eq!(spend(&mut denials, now), BURST, "no more than that gathers");
        for _ in 0..3 * BURST {
            now += REFILL_EVERY;
            assert!(!denials.handle_denied(peer(1), now));
        }
    }

    #[test]
    fn the_memory_of_peers_is_bounded() {
        let (mut denials, now) = (Denials::default(), Instant::now());
        for number in 0..MAX_PEERS as u32 + 10 {
            denials.handle_denied(peer(number), now);
        }
        assert_eq!(denials.peers(), MAX_PEERS);
        denials.handle_denied(peer(u32::MAX), now + REFILL_EVERY * 2);
        assert_eq!(denials.peers(), 1, "those with a full budget are forgotten first");
    }
}
