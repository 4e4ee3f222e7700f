//! Circuits at the relay that splices them: who may have another one.
//!
//! Owns: how many each member has open, and at which pace it opens them. Must not know: streams, connections. Driven by: the
//! relay, at each request and at each end.

use std::time::Instant;

use gossamer_wire::NodeId;

use crate::places::{Full, Limits, Places};

/// Circuits that one member may have open: the lanes for flows that a node keeps to one peer, and some for other peers.
pub const MAX_CIRCUITS_PER_PEER: usize = 512;
/// Circuits that a relay splices at once, of all members.
pub const MAX_CIRCUITS: usize = 4_096;
/// A member may open 50 each second in the long run, 256 at once. Each that has one open is remembered.
const LIMITS: Limits = Limits {
    each: MAX_CIRCUITS_PER_PEER,
    all: MAX_CIRCUITS,
    rate: 50.0,
    burst: 256.0,
    remembered: 2 * MAX_CIRCUITS,
};

/// Why there is no circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoCircuit {
    /// It would lead to who asks for it, or to the relay.
    Itself,
    /// It comes through a circuit: relays would stand in a row.
    Loop,
    /// The member has too many open.
    PerPeer,
    /// All members together have.
    Total,
    /// The member opens them too fast.
    Pace,
    /// The node keeps no connection to this relay.
    NotConnected,
    /// This node has not the role.
    NoRelay,
}

impl NoCircuit {
    /// Returns its word in metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Itself => "itself",
            Self::Loop => "loop",
            Self::PerPeer => "per_peer",
            Self::Total => "total",
            Self::Pace => "pace",
            Self::NotConnected => "not_connected",
            Self::NoRelay => "no_relay",
        }
    }
}

/// The circuits of a relay.
#[derive(Debug)]
pub struct Circuits(Places<NodeId>);

impl Default for Circuits {
    fn default() -> Self {
        Self(Places::new(LIMITS))
    }
}

impl Circuits {
    /// Counts a circuit that a member asks for. Each one counted ends with [`Self::handle_end`].
    ///
    /// # Errors
    /// The member's fault, or too much is asked of this relay; nothing was counted but the pace.
    pub fn handle_open(&mut self, opener: NodeId, now: Instant) -> Result<(), NoCircuit> {
        self.0.take(opener, now).map_err(|full| match full {
            Full::Each => NoCircuit::PerPeer,
            Full::All => NoCircuit::Total,
            Full::Pace => NoCircuit::Pace,
        })
    }

    /// A circuit of the member has ended.
    pub fn handle_end(&mut self, opener: NodeId) {
        self.0.give_back(&opener);
    }

    /// Returns how many are open.
    pub const fn open(&self) -> usize {
        self.0.taken()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ONE: NodeId = NodeId::from_bytes([1; 16]);

    #[test]
    fn who_opens_without_end_is_held_to_the_pace_and_the_cap_and_others_are_not() {
        let (mut circuits, mut now) = (Circuits::default(), Instant::now());
        let mut refused = Vec::new();
        for _ in 0..10_000 {
            refused.extend(circuits.handle_open(ONE, now).err());
            now += Duration::from_millis(1);
        }
        assert_eq!(circuits.open(), MAX_CIRCUITS_PER_PEER);
        assert!(refused.contains(&NoCircuit::Pace) && refused.contains(&NoCircuit::PerPeer));
        assert_eq!(circuits.handle_open(NodeId::from_bytes([2; 16]), now), Ok(()));
        for _ in 0..MAX_CIRCUITS_PER_PEER {
            circuits.handle_end(ONE);
        }
        circuits.handle_end(ONE);
        assert_eq!(circuits.open(), 1);
        now += Duration::from_secs(1);
        assert_eq!(circuits.handle_open(ONE, now), Ok(()));
    }

    #[test]
    fn all_together_have_a_bound() {
        let (mut circuits, now) = (Circuits::default(), Instant::now());
        let node = |number: usize| NodeId::from_bytes((number as u128).to_be_bytes());
        for number in 0..MAX_CIRCUITS {
            assert_eq!(circuits.handle_open(node(number), now), Ok(()));
        }
        assert_eq!(circuits.handle_open(ONE, now), Err(NoCircuit::Total));
        circuits.handle_end(node(0));
        assert_eq!(circuits.handle_open(ONE, now), Ok(()));
    }
}
