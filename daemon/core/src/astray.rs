//! Relays that lead astray: they say that a circuit leads to a node, and somebody else is there, or nobody.
//!
//! Owns: which relay has done so to which node, and when it is named for that. Must not know: TLS, streams. Driven by: the
//! owner of all connections, at the end of each dial to which a relay has said yes.
//!
//! Somebody else is a proof, for TLS ends where the key is. Nobody is none: the node may have been lost a moment ago, which its
//! relay notices some seconds later. That has to happen several times in a row, for longer than an honest relay needs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

/// Times in a row that a relay leads nowhere until it is named.
pub const NAMED_AFTER: u32 = 3;
/// Shortest time from the first of them to the last: a relay takes a connection for lost after 10 s at the most.
pub const NAMED_WITHIN: Duration = Duration::from_secs(15);
/// Longest time from one to the next: within it a relay that still leads there is dialled again.
const IN_A_ROW: Duration = Duration::from_secs(5 * 60);
/// Pairs of relay and node that are remembered; the one that was astray the longest ago makes room.
const MAX_PAIRS: usize = 1_024;

/// Where a circuit has led instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Astray {
    /// To somebody else.
    Elsewhere,
    /// To nobody who has shown a certificate in time.
    Nowhere,
}

/// What a relay has done to the circuits to one node since it last led there.
#[derive(Clone, Copy, Debug)]
struct Misled {
    times: u32,
    first: Instant,
    last: Instant,
    is_named: bool,
}

/// Who has led astray, and not led rightly since.
#[derive(Debug, Default)]
pub struct AstrayRelays {
    /// By relay, then by the node that was meant.
    of: BTreeMap<(NodeId, NodeId), Misled>,
}

impl AstrayRelays {
    /// A relay has said that it leads to the node, and did not. Returns how often in a row, where it is to be named for that.
    pub fn handle_astray(&mut self, relay: NodeId, node: NodeId, how: Astray, now: Instant) -> Option<u32> {
        if self.of.len() >= MAX_PAIRS && !self.of.contains_key(&(relay, node)) {
            let oldest = self.of.iter().min_by_key(|(_, misled)| misled.last).map(|(pair, _)| *pair);
            oldest.and_then(|pair| self.of.remove(&pair));
        }
        let new = Misled { times: 0, first: now, last: now, is_named: false };
        let misled = self.of.entry((relay, node)).or_insert(new);
        if !misled.is_named && now.saturating_duration_since(misled.last) > IN_A_ROW {
            *misled = new;
        }
        misled.times = misled.times.saturating_add(1);
        misled.last = now;
        let is_long = now.saturating_duration_since(misled.first) >= NAMED_WITHIN;
        misled.is_named |= how == Astray::Elsewhere || misled.times >= NAMED_AFTER && is_long;
        misled.is_named.then_some(misled.times)
    }

    /// A circuit through the relay has led to the node. Returns whether the relay is named no more.
    pub fn handle_led(&mut self, relay: NodeId, node: NodeId) -> bool {
        self.of.remove(&(relay, node)).is_some_and(|misled| misled.is_named) && !self.is_named(relay)
    }

    /// The node, which may be a relay, is down or has left. Returns the relays that are named no more.
    pub fn forget(&mut self, node: NodeId) -> BTreeSet<NodeId> {
        let mut cleared = BTreeSet::new();
        self.of.retain(|(relay, of), misled| {
            let stays = *relay != node && *of != node;
            if !stays && misled.is_named {
                cleared.insert(*relay);
            }
            stays
        });
        cleared.retain(|relay| !self.is_named(*relay));
        cleared
    }

    /// Returns whether the relay has led astray and not led to the node since: others are tried first.
    pub fn is_astray(&self, relay: NodeId, node: NodeId) -> bool {
        self.of.contains_key(&(relay, node))
    }

    fn is_named(&self, relay: NodeId) -> bool {
        let all = (relay, NodeId::from_bytes([0; 16]))..=(relay, NodeId::from_bytes([0xff; 16]));
        self.of.range(all).any(|(_, misled)| misled.is_named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: NodeId = NodeId::from_bytes([8; 16]);
    const NODE: NodeId = NodeId::from_bytes([1; 16]);
    const OTHER: NodeId = NodeId::from_bytes([2; 16]);

    #[test]
    fn somebody_else_names_a_relay_at_once_and_leading_rightly_takes_that_back() {
        let (mut relays, now) = (AstrayRelays::default(), Instant::now());
        assert!(!relays.handle_led(R, NODE), "nothing was wrong");
        assert_eq!(relays.handle_astray(R, NODE, Astray::Elsewhere, now), Some(1));
        assert_eq!(relays.handle_astray(R, OTHER, Astray::Elsewhere, now), Some(1));
        assert_eq!(relays.handle_astray(R, NODE, Astray::Nowhere, now), Some(2), "it stays named");
        assert!(relays.is_astray(R, NODE) && !relays.is_astray(OTHER, NODE));
        assert!(!relays.handle_led(R, NODE), "the other node is still missed");
        assert!(!relays.is_astray(R, NODE) && relays.handle_led(R, OTHER));
    }

    #[test]
    fn nobody_names_a_relay_after_several_times_in_a_row_and_some_time() {
        let (mut relays, now) = (AstrayRelays::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(relays.handle_astray(R, NODE, Astray::Nowhere, now), None, "all in one moment");
        }
        assert_eq!(relays.handle_astray(R, NODE, Astray::Nowhere, now + NAMED_WITHIN), Some(11));
        assert_eq!(relays.handle_astray(R, OTHER, Astray::Nowhere, now), None);
        assert_eq!(relays.handle_astray(R, OTHER, Astray::Nowhere, now + NAMED_WITHIN), None, "too few");
        assert!(!relays.handle_led(R, OTHER), "it was not named for this one");
        let mut later = now + 2 * NAMED_WITHIN;
        for _ in 0..2 * NAMED_AFTER {
            assert_eq!(relays.handle_astray(R, OTHER, Astray::Nowhere, later), None, "anew, and too seldom");
            later += IN_A_ROW + NAMED_WITHIN;
        }
    }

    #[test]
    fn who_is_gone_is_forgotten_as_node_and_as_relay() {
        let (mut relays, now) = (AstrayRelays::default(), Instant::now());
        let named = |relays: &mut AstrayRelays| {
            relays.handle_astray(R, NODE, Astray::Elsewhere, now);
            relays.handle_astray(R, OTHER, Astray::Elsewhere, now);
        };
        named(&mut relays);
        assert!(relays.forget(NODE).is_empty(), "it is still named for the other one");
        assert_eq!(relays.forget(OTHER), BTreeSet::from([R]));
        named(&mut relays);
        assert_eq!(relays.forget(R), BTreeSet::from([R]));
        assert!(relays.of.is_empty());
    }

    #[test]
    fn pairs_without_end_cost_bounded_memory() {
        let (mut relays, now) = (AstrayRelays::default(), Instant::now());
        for number in 0..3_000_u32 {
            let node = NodeId::from_bytes(u128::from(number).to_be_bytes());
            relays.handle_astray(R, node, Astray::Nowhere, now + Duration::from_millis(number.into()));
        }
        assert_eq!(relays.of.len(), MAX_PAIRS);
        assert!(relays.is_astray(R, NodeId::from_bytes(2_999_u128.to_be_bytes())), "the last ones stay");
    }
}
