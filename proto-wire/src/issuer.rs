//! What a certificate says of an issuer beyond its key.
//!
//! Owns: the format. Must not know: certificates, or who checks the scope. Driven by: whoever makes or reads an
//! issuer's certificate.

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::limits::MAX_ISSUER_CLAIMS_BYTES;
use crate::{DecodeError, EncodeError, GroupName, NodeId, NodeName};

/// Who holds an issuer's key, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerClaims {
    /// The node that holds the key.
    pub node: NodeId,
    /// The name of that node.
    pub name: NodeName,
    /// Groups it may admit to; empty means every group.
    pub groups: Vec<GroupName>,
}

impl IssuerClaims {
    /// Encodes the claims as they stand in the certificate extension.
    ///
    /// # Errors
    /// They are longer than 1,024 bytes; name fewer groups.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        codec::encode("issuer claims", self, MAX_ISSUER_CLAIMS_BYTES)
    }

    /// Decodes claims.
    ///
    /// # Errors
    /// The root's fault; the certificate is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode("issuer claims", bytes, MAX_ISSUER_CLAIMS_BYTES)
    }

    /// Returns whether the issuer may admit nodes to this group.
    pub fn allow_group(&self, group: &GroupName) -> bool {
        self.groups.is_empty() || self.groups.contains(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(groups: &[&str]) -> IssuerClaims {
        IssuerClaims {
            node: NodeId::from_bytes([1; 16]),
            name: "n".repeat(63).parse().expect("name"),
            groups: groups.iter().map(|group| group.parse().expect("name")).collect(),
        }
    }

    #[test]
    fn an_issuer_admits_to_its_groups_or_to_all() {
        let west = "west".parse().expect("name");
        assert!(claims(&[]).allow_group(&west));
        assert!(claims(&["east", "west"]).allow_group(&west));
        assert!(!claims(&["east"]).allow_group(&west));
    }

    #[test]
    fn claims_survive_a_round_trip_and_fourteen_of_the_longest_groups_fit() {
        let longest: Vec<String> =
            (0..15_u8).map(|at| char::from(b'a' + at).to_string().repeat(63)).collect();
        let longest: Vec<&str> = longest.iter().map(String::as_str).collect();
        let wide = claims(&longest[..14]);
        assert_eq!(IssuerClaims::decode(&wide.encode().expect("fits")), Ok(wide));
        assert!(matches!(claims(&longest).encode(), Err(EncodeError::TooLong { limit: 1_024, .. })));
        assert!(IssuerClaims::decode(&[255; 9]).is_err());
    }
}
