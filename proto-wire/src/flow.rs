//! The open request of a flow, the byte that answers it, and how datagrams of UDP flows travel.
//!
//! Owns: their shape and bytes. Must not know: who may call what, where a target listens.
//! Driven by: the relay, at the head of each stream of a data connection.
//!
//! The request names (service, instance, port), never an address (ADR 7).

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::limits::{MAX_OPEN_BYTES, MAX_UDP_BYTES};
use crate::{DecodeError, EncodeError, InstanceName, PortName, ServiceName, Transport};

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
    /// Whether the stream carries the bytes of a TCP connection, or belongs to a flow of datagrams.
    pub transport: Transport,
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

/// Bytes before a datagram that goes on the flow's stream: its length, u16 big-endian.
pub const FRAME_PREFIX_BYTES: usize = 2;

/// Writes a datagram of a UDP flow for the flow's stream: what does not fit a QUIC datagram, and what goes out before
/// the flow is open.
///
/// # Errors
/// It is longer than UDP carries.
pub fn encode_framed(payload: &[u8]) -> Result<Vec<u8>, EncodeError> {
    if payload.len() > MAX_UDP_BYTES {
        return Err(EncodeError::TooLong { what: DATAGRAM, len: payload.len(), limit: MAX_UDP_BYTES });
    }
    Ok([&(payload.len() as u16).to_be_bytes(), payload].concat())
}

/// Reads the length before a datagram on the flow's stream.
///
/// # Errors
/// The peer's fault: it is longer than UDP carries. Reset the stream.
pub fn decode_framed_prefix(prefix: [u8; FRAME_PREFIX_BYTES]) -> Result<usize, DecodeError> {
    match usize::from(u16::from_be_bytes(prefix)) {
        len if len > MAX_UDP_BYTES => Err(DecodeError::TooLong { what: DATAGRAM, len, limit: MAX_UDP_BYTES }),
        len => Ok(len),
    }
}

/// Greatest id of a QUIC stream (RFC 9000 2.1).
const MAX_STREAM: u64 = (1 << 62) - 1;

/// Returns the bytes before a payload in a QUIC datagram of a UDP flow: the id of the flow's stream, as a
/// variable-length integer (RFC 9000 16). Ids above 2^62 - 1 do not exist and are cut.
pub fn encode_stream_id(stream: u64) -> Vec<u8> {
    let stream = stream & MAX_STREAM;
    match stream {
        0..0x40 => vec![stream as u8],
        0x40..0x4000 => (stream as u16 | 0x4000).to_be_bytes().into(),
        0x4000..0x4000_0000 => (stream as u32 | 0x8000_0000).to_be_bytes().into(),
        _ => (stream | 0xc000_0000_0000_0000).to_be_bytes().into(),
    }
}

/// Splits a QUIC datagram of a UDP flow: the id of the flow's stream, and how many bytes it takes before the payload.
///
/// # Errors
/// The peer's fault: it ends early. Close the connection.
pub fn decode_stream_id(datagram: &[u8]) -> Result<(u64, usize), DecodeError> {
    let first = datagram.first().ok_or(DecodeError::Short(DATAGRAM))?;
    let used = 1 << (first >> 6);
    let bytes = datagram.get(..used).ok_or(DecodeError::Short(DATAGRAM))?;
    let all = bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    // The two highest bits say how long it is.
    let bits = 8 * used as u32 - 2;
    Ok((all & (u64::MAX >> (64 - bits)), used))
}

const DATAGRAM: &str = "datagram of a flow";

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
            transport: Transport::Tcp,
        };
        let bytes = request.encode().expect("fits");
        let (prefix, payload) = bytes.split_first_chunk().expect("prefix");
        assert_eq!(OpenRequest::decode_prefix(*prefix), Ok(payload.len()));
        assert_eq!(OpenRequest::decode(payload), Ok(request));
        assert!(OpenRequest::decode_prefix([0xff, 0]).is_err());
    }

    #[test]
    fn stream_ids_take_as_many_bytes_as_they_need() {
        // RFC 9000 A.1.
        for (stream, bytes) in [
            (151_288_809_941_952_652, &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..]),
            (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
            (15_293, &[0x7b, 0xbd]),
            (37, &[0x25]),
        ] {
            assert_eq!(encode_stream_id(stream), bytes);
            assert_eq!(decode_stream_id(&[bytes, b"payload"].concat()), Ok((stream, bytes.len())));
            assert!(decode_stream_id(&bytes[..bytes.len() - 1]).is_err());
        }
        assert_eq!(decode_stream_id(&[0x40, 0x25]), Ok((37, 2)), "longer than it needs to be");
        assert_eq!(decode_stream_id(&encode_stream_id(MAX_STREAM)), Ok((MAX_STREAM, 8)));
        assert!(decode_stream_id(&[]).is_err());
    }

    #[test]
    fn datagrams_on_a_stream_are_as_long_as_udp_allows() {
        let longest = vec![7; MAX_UDP_BYTES];
        let bytes = encode_framed(&longest).expect("fits");
        assert_eq!(bytes.len(), FRAME_PREFIX_BYTES + longest.len());
        assert_eq!(decode_framed_prefix([bytes[0], bytes[1]]), Ok(MAX_UDP_BYTES));
        assert!(encode_framed(&[0; MAX_UDP_BYTES + 1]).is_err());
        assert!(decode_framed_prefix([0xff, 0xff]).is_err());
        assert_eq!(encode_framed(&[]).expect("fits"), [0, 0]);
    }

    #[test]
    fn status_bytes_are_fixed() {
        for code in 0..=4 {
            assert_eq!(OpenStatus::try_from(code).map(OpenStatus::code), Ok(code));
        }
        assert!(OpenStatus::try_from(5).is_err());
    }
}
