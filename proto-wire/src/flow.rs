//! The open request of a flow and the byte that answers it.
//!
//! Owns: their shape and bytes. Must not know: who may call what, where a target listens.
//! Driven by: the relay, at the head of each stream of a data connection.
//!
//! The request names (service, instance, port), never an address (ADR 7).

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::limits::MAX_OPEN_BYTES;
use crate::{DecodeError, EncodeError, InstanceName, PortName, ServiceName};

/// Bytes before the request: its length, u16 big-endian.
pub const PREFIX_BYTES: usize = 2;

/// Asks the serving node to connect a flow to one of its registered targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// The flow's id, the same in the logs of both nodes.
    pub flow: u64,
    /// The service.
    pub service: ServiceName,
    /// The instance on the serving node.
    pub instance: InstanceName,
    /// The port.
    pub port: PortName,
}

/// The answer: one byte before any data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpenStatus {
    /// Connected; data follows.
    Open = 0,
    /// The caller may not call this service, or it does not exist: the two look alike on purpose.
    Denied = 1,
    /// The target refused the connection or did not answer.
    Refused = 2,
    /// Too many flows; try another instance.
    Busy = 3,
    /// The instance is draining; try another one.
    Draining = 4,
}

impl OpenStatus {
    /// Returns the byte on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl TryFrom<u8> for OpenStatus {
    type Error = DecodeError;

    fn try_from(code: u8) -> Result<Self, DecodeError> {
        Ok(match code {
            0 => Self::Open,
            1 => Self::Denied,
            2 => Self::Refused,
            3 => Self::Busy,
            4 => Self::Draining,
            value => return Err(DecodeError::Unknown { what: "open status", value: value.into() }),
        })
    }
}

impl OpenRequest {
    /// Encodes length prefix and request.
    ///
    /// # Errors
    /// Never for valid names; the limit is checked all the same.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let payload = codec::encode("open request", self, MAX_OPEN_BYTES)?;
        Ok([&(payload.len() as u16).to_be_bytes(), &payload[..]].concat())
    }

    /// Reads the length prefix.
    ///
    /// # Errors
    /// The peer's fault: the request is over the limit. Reset the stream.
    pub fn decode_prefix(prefix: [u8; PREFIX_BYTES]) -> Result<usize, DecodeError> {
        match usize::from(u16::from_be_bytes(prefix)) {
            len if len > MAX_OPEN_BYTES => {
                Err(DecodeError::TooLong { what: "open request", len, limit: MAX_OPEN_BYTES })
            }
            len => Ok(len),
        }
    }

    /// Decodes the request after its prefix.
    ///
    /// # Errors
    /// The peer's fault. Reset the stream.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        codec::decode("open request", payload, MAX_OPEN_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_a_round_trip() {
        let request = OpenRequest {
            flow: 1 << 50,
            service: "orders-db".parse().expect("name"),
            instance: "vm-b".parse().expect("name"),
            port: 5432.into(),
        };
        let bytes = request.encode().expect("fits");
        let (prefix, payload) = bytes.split_first_chunk().expect("prefix");
        assert_eq!(OpenRequest::decode_prefix(*prefix), Ok(payload.len()));
        assert_eq!(OpenRequest::decode(payload), Ok(request));
        assert!(OpenRequest::decode_prefix([0xff, 0]).is_err());
    }

    #[test]
    fn status_bytes_are_fixed() {
        for code in 0..=4 {
            assert_eq!(OpenStatus::try_from(code).map(OpenStatus::code), Ok(code));
        }
        assert!(OpenStatus::try_from(5).is_err());
    }
}
