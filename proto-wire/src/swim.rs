//! SWIM packets: the lean header and the member entries that follow it.
//!
//! Owns: their shape and bytes. Must not know: SWIM's rules, foca. Driven by: `core::membership`.
//!
//! What TLS proves is not sent: the sender is the peer of the connection and the receiver is this node, so a
//! header holds generations only. That takes a probe from 654 to 462 B/s per node (measured).

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::limits::MAX_SWIM_BYTES;
use crate::{DecodeError, EncodeError, Generation, NodeId};

/// A node in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Which node.
    pub node: NodeId,
    /// Which life of it.
    pub generation: Generation,
}

/// The header of a SWIM packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwimHeader {
    /// Generation of the sender.
    pub from: Generation,
    /// Incarnation of the sender (SWIM 4.2).
    pub incarnation: u16,
    /// Generation the sender believes the receiver to have.
    pub to: Generation,
    /// What it says.
    pub message: SwimMessage,
}

/// What a SWIM packet says; names as in the SWIM paper and foca.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwimMessage {
    /// Direct probe.
    Ping(u8),
    /// Its answer.
    Ack(u8),
    /// "Probe `target` for me."
    PingReq {
        /// Whom to probe.
        target: Identity,
        /// Number of the probe.
        probe: u8,
    },
    /// The probe made for `origin`.
    IndirectPing {
        /// Who wanted it.
        origin: Identity,
        /// Number of the probe.
        probe: u8,
    },
    /// Its answer.
    IndirectAck {
        /// Who wanted it.
        target: Identity,
        /// Number of the probe.
        probe: u8,
    },
    /// That answer handed on to who wanted it.
    ForwardedAck {
        /// Who answered.
        origin: Identity,
        /// Number of the probe.
        probe: u8,
    },
    /// "I am here": the first contact.
    Announce,
    /// Answer to an announce: members follow.
    Feed,
    /// Members follow.
    Gossip,
    /// Custom broadcasts follow; unused.
    Broadcast,
    /// "You are down in my book": the receiver renews its identity.
    TurnUndead,
}

/// The state of a member in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SwimState {
    /// Answers.
    Alive,
    /// Did not answer; may refute.
    Suspect,
    /// Gone.
    Down,
}

/// One member as a packet or a full-state message tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwimMember {
    /// Who.
    pub identity: Identity,
    /// Its incarnation.
    pub incarnation: u16,
    /// Its state.
    pub state: SwimState,
}

/// Encodes a header or a member.
///
/// # Errors
/// Never for values of this module; the limit is checked all the same.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    codec::encode(WHAT, value, MAX_SWIM_BYTES)
}

/// Decodes a header from the front of a packet, and how many bytes it took.
///
/// # Errors
/// The sender's fault; drop the packet.
pub fn decode_header(bytes: &[u8]) -> Result<(SwimHeader, usize), DecodeError> {
    codec::decode_prefix(WHAT, bytes, MAX_SWIM_BYTES)
}

/// Decodes a member from the front of the rest of a packet, and how many bytes it took.
///
/// # Errors
/// The sender's fault; drop the packet.
pub fn decode_member(bytes: &[u8]) -> Result<(SwimMember, usize), DecodeError> {
    codec::decode_prefix(WHAT, bytes, MAX_SWIM_BYTES)
}

const WHAT: &str = "swim packet";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_of_young_nodes_takes_seven_bytes() {
        let header = SwimHeader {
            from: Generation::of_epoch(3),
            incarnation: 0,
            to: Generation::of_epoch(9),
            message: SwimMessage::Ping(1),
        };
        let bytes = encode(&header).expect("fits");
        assert_eq!(bytes, [3, 0, 0, 9, 0, 0, 1]);
        assert_eq!(decode_header(&bytes), Ok((header, 7)));
    }

    #[test]
    fn members_follow_the_header() {
        let member = SwimMember {
            identity: Identity { node: NodeId::from_bytes([1; 16]), generation: Generation::of_epoch(2) },
            incarnation: 300,
            state: SwimState::Suspect,
        };
        let mut bytes = encode(&member).expect("fits");
        let len = bytes.len();
        bytes.extend([9, 9]);
        assert_eq!(decode_member(&bytes), Ok((member, len)));
        assert!(decode_member(&bytes[..len - 1]).is_err());
    }
}
