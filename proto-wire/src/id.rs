//! Identifiers: mesh, node, token, and the generation of a node.
//!
//! Owns: their bytes and their text form. Must not know: how they are made or stored.
//! Driven by: every part.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Why a text is not an id. The writer's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not {what}: it must be 26 characters a-z2-7")]
pub struct IdError {
    what: &'static str,
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Wraps 16 bytes; every value is valid.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Derives the id of a public key: the first 16 bytes of SHA-256 of its DER
            /// SubjectPublicKeyInfo.
            pub fn of_spki(spki: &[u8]) -> Self {
                let hash = Sha256::digest(spki);
                let mut bytes = [0; 16];
                bytes.copy_from_slice(&hash[..16]);
                Self(bytes)
            }

            /// Returns the 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError { what: $what, text: text.chars().take(40).collect() };
                if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    return Err(error());
                }
                let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| error())?;
                Ok(Self(bytes.try_into().map_err(|_| error())?))
            }
        }
    };
}

id!(
    /// A mesh: the first 16 bytes of SHA-256 of the first root's SPKI. Fixed at `init`, survives rotation.
    MeshId,
    "a mesh id"
);
id!(
    /// A node: the first 16 bytes of SHA-256 of the SPKI of its key. A new key is a new node.
    NodeId,
    "a node id"
);
id!(
    /// A join token: 16 random bytes. The only part of a token that may be logged.
    TokenId,
    "a token id"
);

/// How often a node has started and renewed itself: newer generations win over older ones of the same node.
///
/// Design section 5 writes it as `epoch << 20 | renewals`; on the wire it is the pair, which is shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// Starts of the daemon, persisted before use. Below 2^44, so that the joined form fits.
    pub epoch: u64,
    /// Identity renewals since the start, below 2^20.
    pub renewals: u32,
}

impl Generation {
    /// The first generation of a start.
    pub const fn of_epoch(epoch: u64) -> Self {
        Self { epoch, renewals: 0 }
    }

    /// Returns the next generation within the same start.
    #[must_use]
    pub const fn renewed(self) -> Self {
        Self { epoch: self.epoch, renewals: self.renewals + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_text_survives_a_round_trip() {
        let id = NodeId::of_spki(b"key");
        assert_eq!(id.to_string().len(), 26);
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
    }

    #[test]
    fn id_text_has_one_form_only() {
        let text = NodeId::of_spki(b"key").to_string();
        assert!(text.to_ascii_uppercase().parse::<NodeId>().is_err());
        assert!(text[1..].parse::<NodeId>().is_err());
        assert!(format!("{text}a").parse::<NodeId>().is_err());
    }

    #[test]
    fn a_later_start_beats_any_number_of_renewals() {
        let renewed = Generation { epoch: 1, renewals: 900_000 };
        assert!(Generation::of_epoch(2) > renewed);
        assert!(renewed.renewed() > renewed);
    }
}
