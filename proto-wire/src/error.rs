//! What can be wrong with bytes or text from outside.
//!
//! Owns: the errors of this crate. Must not know: who sent the bytes. Driven by: every decoder here.

use thiserror::Error;

/// Why bytes were not a value. The peer's fault; nothing was stored; do not retry with the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// More bytes than the kind of message allows.
    #[error("{what} has {len} bytes, the limit is {limit}")]
    TooLong {
        /// The kind of message.
        what: &'static str,
        /// Bytes received.
        len: usize,
        /// Most bytes allowed, inclusive.
        limit: usize,
    },
    /// The bytes end early, or a length field points outside of them.
    #[error("{0} is cut short")]
    Short(&'static str),
    /// Bytes are left over after the value.
    #[error("{what} has {extra} bytes too many")]
    Trailing {
        /// The kind of message.
        what: &'static str,
        /// Bytes left over.
        extra: usize,
    },
    /// The serializer refused the bytes.
    #[error("{what} does not decode: {why}")]
    Malformed {
        /// The kind of message.
        what: &'static str,
        /// The serializer's words.
        why: String,
    },
    /// A list has more entries than allowed.
    #[error("{what} has {len} entries, the limit is {limit}")]
    TooMany {
        /// The list.
        what: &'static str,
        /// Entries received.
        len: usize,
        /// Most entries allowed, inclusive.
        limit: usize,
    },
    /// A fixed field holds a value that no version of the protocol defines.
    #[error("{what} has the unknown value {value}")]
    Unknown {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

/// Why a value was not turned into bytes. A bug or an oversized local input; nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The encoded value is longer than a receiver would take.
    #[error("{what} needs {len} bytes, the limit is {limit}")]
    TooLong {
        /// The kind of message.
        what: &'static str,
        /// Bytes needed.
        len: usize,
        /// Most bytes allowed, inclusive.
        limit: usize,
    },
    /// The serializer refused the value.
    #[error("{what} does not encode: {why}")]
    Refused {
        /// The kind of message.
        what: &'static str,
        /// The serializer's words.
        why: String,
    },
}

/// Why a text is not a name. The writer's fault: configuration, command line or peer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not a {what}: {why}")]
pub struct NameError {
    /// The kind of name, for example "service name".
    pub what: &'static str,
    /// The text as given, at most 80 characters of it.
    pub text: String,
    /// The broken rule and how to keep it.
    pub why: &'static str,
}
