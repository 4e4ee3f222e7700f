//! The record at the head of a circuit, and the byte that answers it.
//!
//! Owns: their shape and bytes. Must not know: who may ask for one, what a circuit carries.
//! Driven by: who opens a circuit, the relay that splices it, who it leads to; at the head of streams of data connections.
//!
//! All records begin where the length of an [`OpenRequest`](crate::flow::OpenRequest) stands, with lengths that none has.

use std::net::{IpAddr, Ipv6Addr};

use crate::flow::PREFIX_BYTES;
use crate::{DecodeError, NodeId};

/// Bytes of a record: the prefix and a node id, or an address.
pub const CIRCUIT_BYTES: usize = PREFIX_BYTES + 16;

const TO: u16 = 0xff01;
const FROM: u16 = 0xff02;
const STRANGER: u16 = 0xff03;

/// What a circuit is asked for with, and announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitOpen {
    /// To the relay: lead this stream to that node. Answered by a [`CircuitStatus`].
    To(NodeId),
    /// From the relay: this stream comes from that node, in the relay's words. Not answered.
    From(NodeId),
    /// From the relay: this stream comes from a stranger at that address, who wants to join or to renew, in the relay's
    /// words. Not answered. An IPv4 address is mapped (RFC 4291 2.5.5.2) on the wire.
    Stranger(IpAddr),
}

impl CircuitOpen {
    /// Encodes the record.
    pub fn encode(&self) -> [u8; CIRCUIT_BYTES] {
        let (prefix, whom) = match self {
            Self::To(node) => (TO, *node.as_bytes()),
            Self::From(node) => (FROM, *node.as_bytes()),
            Self::Stranger(IpAddr::V4(ip)) => (STRANGER, ip.to_ipv6_mapped().octets()),
            Self::Stranger(IpAddr::V6(ip)) => (STRANGER, ip.octets()),
        };
        let mut bytes = [0; CIRCUIT_BYTES];
        let (head, id) = bytes.split_at_mut(PREFIX_BYTES);
        head.copy_from_slice(&prefix.to_be_bytes());
        id.copy_from_slice(&whom);
        bytes
    }

    /// Whether a stream that begins with this is a circuit and not a flow.
    pub const fn is_announced_by(prefix: [u8; PREFIX_BYTES]) -> bool {
        matches!(u16::from_be_bytes(prefix), TO | FROM | STRANGER)
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// The peer's fault: the prefix is another one. Reset the stream.
    pub fn decode(prefix: [u8; PREFIX_BYTES], id: [u8; 16]) -> Result<Self, DecodeError> {
        let node = NodeId::from_bytes(id);
        match u16::from_be_bytes(prefix) {
            TO => Ok(Self::To(node)),
            FROM => Ok(Self::From(node)),
            STRANGER => Ok(Self::Stranger(Ipv6Addr::from(id).to_canonical())),
            value => Err(DecodeError::Unknown { what: "circuit record", value: value.into() }),
        }
    }
}

/// What the relay answers: one byte before any data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CircuitStatus {
    /// The stream leads to the node.
    Open = 0,
    /// The node has no connection with this relay.
    NotConnected = 1,
    /// This node is no relay.
    NoRelay = 2,
    /// Too many circuits; try another relay.
    Busy = 3,
    /// No circuit leads there: to who asks, or through another circuit.
    Refused = 4,
}

impl CircuitStatus {
    /// Returns the byte on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl TryFrom<u8> for CircuitStatus {
    type Error = DecodeError;

    fn try_from(code: u8) -> Result<Self, DecodeError> {
        Ok(match code {
            0 => Self::Open,
            1 => Self::NotConnected,
            2 => Self::NoRelay,
            3 => Self::Busy,
            4 => Self::Refused,
            value => return Err(DecodeError::Unknown { what: "circuit status", value: value.into() }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::OpenRequest;

    #[test]
    fn records_arrive_as_they_were_sent_and_no_flow_begins_like_them() {
        for record in [
            CircuitOpen::To(NodeId::from_bytes([7; 16])),
            CircuitOpen::From(NodeId::from_bytes([9; 16])),
            CircuitOpen::Stranger("192.0.2.1".parse().expect("address")),
            CircuitOpen::Stranger("2001:db8::1".parse().expect("address")),
        ] {
            let bytes = record.encode();
            let prefix = bytes[..PREFIX_BYTES].try_into().expect("long enough");
            let id = bytes[PREFIX_BYTES..].try_into().expect("long enough");
            assert!(CircuitOpen::is_announced_by(prefix));
            assert_eq!(CircuitOpen::decode(prefix, id), Ok(record));
            assert!(OpenRequest::decode_prefix(prefix).is_err());
        }
        assert_eq!(CircuitOpen::To(NodeId::from_bytes([7; 16])).encode()[..3], [0xff, 1, 7]);
        assert!(CircuitOpen::decode([0xff, 4], [0; 16]).is_err());
    }

    #[test]
    fn the_answer_is_a_byte_and_others_are_refused() {
        for code in 0..5 {
            assert_eq!(CircuitStatus::try_from(code).map(CircuitStatus::code), Ok(code));
        }
        assert!(CircuitStatus::try_from(5).is_err());
    }
}
