//! Relays that take circuits and lead nothing: a sick one, or one that means harm.
//!
//! Owns: which ones have done so lately. Must not know: circuits, connections. Driven by: the owner of all connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

/// How long such a relay comes after all others: as long as one that is well again may be missed.
const LAST_FOR: Duration = Duration::from_secs(30);

/// Relays through which somebody went silent lately. Not more than there are relays.
#[derive(Debug, Default)]
pub struct Stalling(BTreeMap<NodeId, Instant>);

impl Stalling {
    /// A circuit through the relay said nothing although it should have.
    pub fn handle_stalled(&mut self, relay: NodeId, now: Instant) {
        self.0.retain(|_, until| *until > now);
        self.0.insert(relay, now + LAST_FOR);
    }

    /// Puts these relays behind the others, which keep their order.
    pub fn put_last(&self, relays: &mut [NodeId], now: Instant) {
        relays.sort_by_key(|relay| self.0.get(relay).is_some_and(|until| *until > now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 16]);
    const B: NodeId = NodeId::from_bytes([2; 16]);
    const C: NodeId = NodeId::from_bytes([3; 16]);

    #[test]
    fn a_relay_that_stalls_comes_last_for_half_a_minute_and_is_forgotten() {
        let (mut stalling, now) = (Stalling::default(), Instant::now());
        let order = |stalling: &Stalling, at| {
            let mut relays = [B, A, C];
            stalling.put_last(&mut relays, at);
            relays
        };
        assert_eq!(order(&stalling, now), [B, A, C]);
        stalling.handle_stalled(B, now);
        assert_eq!(order(&stalling, now), [A, C, B]);
        assert_eq!(order(&stalling, now + LAST_FOR), [B, A, C]);
        stalling.handle_stalled(A, now + LAST_FOR);
        assert_eq!(stalling.0.len(), 1);
    }
}
