//! The one place with the serializer's settings.
//!
//! Owns: bincode 2.0.1, standard (varint) configuration, a limit on every decode (ADR 1).
//! Must not know: which message means what. Driven by: every encoder and decoder of this crate and core.
//!
//! bincode's bytes are not canonical, so nothing re-encoded is ever hashed or signed: raw bytes are.

#![expect(clippy::disallowed_methods, reason = "the one place that calls bincode")]

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::MAX_DECODE_BYTES;
use crate::{DecodeError, EncodeError};

const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_DECODE_BYTES>> =
    config::standard().with_limit::<MAX_DECODE_BYTES>();

/// Encodes a value whose receivers take at most `limit` bytes of it. `what` names it in errors.
///
/// # Errors
/// A bug or an oversized local input: nothing is sent.
pub fn encode<T: Serialize + ?Sized>(
    what: &'static str,
    value: &T,
    limit: usize,
) -> Result<Vec<u8>, EncodeError> {
    let bytes = bincode::serde::encode_to_vec(value, CONFIG)
        .map_err(|error| EncodeError::Refused { what, why: error.to_string() })?;
    // bincode's limit binds only decoding.
    if bytes.len() > limit {
        return Err(EncodeError::TooLong { what, len: bytes.len(), limit });
    }
    Ok(bytes)
}

/// Decodes exactly one value from all of `bytes`.
///
/// # Errors
/// The peer's fault: too long, malformed, or bytes left over. Never allocates more than the limit.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8], limit: usize) -> Result<T, DecodeError> {
    let (value, used) = decode_prefix(what, bytes, limit)?;
    match bytes.len() - used {
        0 => Ok(value),
        extra => Err(DecodeError::Trailing { what, extra }),
    }
}

/// Decodes one value from the front of `bytes` and returns how many bytes it took.
///
/// # Errors
/// As [`decode`], except that bytes may follow.
pub fn decode_prefix<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    limit: usize,
) -> Result<(T, usize), DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLong { what, len: bytes.len(), limit });
    }
    bincode::serde::decode_from_slice(bytes, CONFIG)
        .map_err(|error| DecodeError::Malformed { what, why: error.to_string() })
}

/// Refuses a list that is longer than its limit.
pub(crate) fn at_most<T>(what: &'static str, list: &[T], limit: usize) -> Result<(), DecodeError> {
    match list.len() {
        len if len > limit => Err(DecodeError::TooMany { what, len, limit }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use super::*;

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode("number", &7_u32, 8).expect("short");
        bytes.push(0);
        assert_eq!(
            decode::<u32>("number", &bytes, 8),
            Err(DecodeError::Trailing { what: "number", extra: 1 })
        );
    }

    #[test]
    fn a_length_bomb_is_an_error_and_not_an_allocation() {
        // 253 = a u64 length follows; it claims 2^40 elements.
        let bomb = [253, 0, 0, 0, 0, 0, 1, 0, 0];
        assert!(decode::<Vec<u8>>("bomb", &bomb, 64).is_err());
        assert!(decode::<String>("bomb", &bomb, 64).is_err());
        assert!(decode::<Vec<Vec<u64>>>("bomb", &bomb, 64).is_err());
    }

    #[test]
    fn too_long_is_refused_in_both_directions() {
        assert!(matches!(encode("text", "abcdef", 4), Err(EncodeError::TooLong { len: 7, .. })));
        assert!(matches!(decode::<u8>("byte", &[0; 5], 4), Err(DecodeError::TooLong { len: 5, .. })));
    }

    /// ADR 1: the format is readable by bincode 1.3.3, the way out if 2.0.1 must go.
    #[test]
    fn bincode_1_reads_and_writes_the_same_bytes() {
        use bincode1::Options as _;
        type Sample = (u64, Option<String>, Vec<i64>, BTreeMap<String, u16>, SocketAddr, Duration, [u8; 16]);
        let sample: Sample = (
            70_000,
            Some("orders".to_owned()),
            vec![-1, 0, i64::MAX],
            BTreeMap::from([("a".to_owned(), 251)]),
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4677),
            Duration::from_millis(1_500),
            [9; 16],
        );
        let ours = encode("sample", &sample, 1_024).expect("short");
        let theirs = bincode1::DefaultOptions::new().serialize(&sample).expect("serializes");
        assert_eq!(ours, theirs);
        let back: Sample = bincode1::DefaultOptions::new().deserialize(&ours).expect("deserializes");
        assert_eq!(back, sample);
    }
}
