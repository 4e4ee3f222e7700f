//! Which of two connections with one peer stays.
//!
//! Owns: that rule, which both ends follow. Must not know: sockets. Driven by: the owner of all connections.

use std::time::Duration;

use gossamer_wire::NodeId;
use gossamer_wire::limits::HANDSHAKE_TIMEOUT;

/// Which of two connections with one peer stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The one that was there.
    First,
    /// The one that has just come.
    Second,
}

/// Decides between two connections with `peer`, of which the first was there when the second came. Both ends
/// come to the same answer: when both dialled, the connection dialled by the smaller node id stays; when one
/// dialled twice, its later one, because it would not dial while the first is of use to it. For the same reason the
/// second stays when the first has lasted for longer than two dials at once can be apart.
pub fn keep_which(me: NodeId, peer: NodeId, first: (NodeId, Duration), second_dialer: NodeId) -> Keep {
    let (first_dialer, lasts) = first;
    let is_rival = first_dialer != second_dialer && lasts < HANDSHAKE_TIMEOUT;
    if is_rival && first_dialer == me.min(peer) { Keep::First } else { Keep::Second }
}
