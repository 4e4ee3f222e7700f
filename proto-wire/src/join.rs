//! The join exchange: one request and one reply on one stream of a `gossamer-join/1` connection. A member asks in the
//! same way for a new certificate.
//!
//! Owns: their shape and bytes. Must not know: who is admitted. Driven by: `join` and the issuer.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::codec::{self, at_most};
use crate::limits::{
    MAX_ADDRESSES, MAX_CERTIFICATE_BYTES, MAX_JOIN_BYTES, MAX_LANE_ADDRESSES, MAX_STATEMENT_BYTES,
};
use crate::{DecodeError, EncodeError, GroupName, LaneAddress, MeshName, NodeId, NodeName};

/// ALPN of join connections, offered by issuers.
pub const ALPN: &[u8] = b"gossamer-join/1";

/// What a joiner signs with its node key, so that a captured request is useless elsewhere:
/// this label, the token id and the channel binding of the TLS session.
pub const PROOF_LABEL: &[u8] = b"gossamer-join-proof-v1\0";

/// What a member signs with its node key to get a new certificate: this label and the channel binding of the TLS session.
pub const RENEW_LABEL: &[u8] = b"gossamer-renew-proof-v1\0";

/// What an issuer is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// To be admitted.
    Join(JoinRequest),
    /// A new certificate.
    Renew(RenewRequest),
}

/// Asks for a new certificate with the name, group and claims of the one shown, which may have ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// The node's certificate, DER.
    pub leaf: Vec<u8>,
    /// The certificate of the issuer that signed it, DER: who is asked may not know it.
    pub issuer: Vec<u8>,
    /// Signature of the proof by the node's key, 64 bytes.
    pub proof: Vec<u8>,
}

/// Asks to be admitted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's text.
    pub token: String,
    /// The joiner's public key, 32 bytes Ed25519.
    pub public_key: [u8; 32],
    /// Signature of the proof by that key, 64 bytes.
    pub proof: Vec<u8>,
    /// The name it wants.
    pub name: NodeName,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinRequest({})", self.name)
    }
}

/// A member the new node may dial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHint {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub addresses: Vec<SocketAddr>,
    /// Where only lanes reach it.
    pub lanes: Vec<LaneAddress>,
}

/// What an admitted node gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Its leaf certificate, DER.
    pub leaf: Vec<u8>,
    /// Certificates of the issuers, DER; the first signed the leaf.
    pub issuers: Vec<Vec<u8>>,
    /// Certificates of the roots, DER.
    pub roots: Vec<Vec<u8>>,
    /// The mesh's name for display.
    pub mesh_name: MeshName,
    /// Its group.
    pub group: GroupName,
    /// Whom to dial first.
    pub peers: Vec<PeerHint>,
    /// Statements, byte for byte, as many as there is room for: a node that begins with them all need not ask for them.
    pub statements: Vec<Vec<u8>>,
}

/// Why a node was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Signed by somebody else, or for another mesh.
    Foreign,
    /// Past its time.
    Expired,
    /// All its uses are taken by other keys.
    Used,
    /// Minted by another issuer, which must redeem it.
    OtherIssuer,
    /// The node name is outside the token's pattern.
    Name,
    /// The name is taken by another live node of the group.
    NameTaken,
    /// The proof of the key is wrong.
    Proof,
    /// Revoked by its maker.
    Revoked,
    /// The issuer cannot record the use now; try again.
    Unavailable,
    /// Who is asked admits nobody: it is no issuer, or none any more.
    NoIssuer,
    /// The issuer may not admit to this group.
    Scope,
    /// The node was evicted, for ever.
    Evicted,
    /// The certificate shown for renewal does not hold.
    Certificate,
}

/// The answer to a [`JoinRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinReply {
    /// Welcome.
    Admitted(Box<Admitted>),
    /// No; nothing was recorded.
    Refused(Refusal),
}

impl Ask {
    /// Encodes the request.
    ///
    /// # Errors
    /// The token or a certificate is too long to be one.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        codec::encode("join request", self, MAX_JOIN_BYTES)
    }

    /// Decodes a request.
    ///
    /// # Errors
    /// The joiner's fault; close the connection.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let ask: Self = codec::decode("join request", bytes, MAX_JOIN_BYTES)?;
        if let Self::Renew(RenewRequest { leaf, issuer, .. }) = &ask {
            at_most("certificate", leaf, MAX_CERTIFICATE_BYTES)?;
            at_most("certificate", issuer, MAX_CERTIFICATE_BYTES)?;
        }
        Ok(ask)
    }
}

impl JoinReply {
    /// Encodes the reply.
    ///
    /// # Errors
    /// Too many certificates or hints; send fewer.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        codec::encode("join reply", self, MAX_JOIN_BYTES)
    }

    /// Decodes a reply.
    ///
    /// # Errors
    /// The issuer's fault; nothing was stored.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let reply: Self = codec::decode("join reply", bytes, MAX_JOIN_BYTES)?;
        if let Self::Admitted(admitted) = &reply {
            for certificate in admitted.issuers.iter().chain(&admitted.roots).chain([&admitted.leaf]) {
                at_most("certificate", certificate, MAX_CERTIFICATE_BYTES)?;
            }
            for statement in &admitted.statements {
                at_most("statement", statement, MAX_STATEMENT_BYTES)?;
            }
            for peer in &admitted.peers {
                at_most("addresses", &peer.addresses, MAX_ADDRESSES)?;
                at_most("lane addresses", &peer.lanes, MAX_LANE_ADDRESSES)?;
            }
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted() -> Admitted {
        Admitted {
            leaf: vec![1; 500],
            issuers: vec![vec![2; 300]],
            roots: vec![vec![3; 300]],
            mesh_name: "mesh".parse().expect("name"),
            group: "west".parse().expect("name"),
            peers: vec![PeerHint {
                node: NodeId::from_bytes([4; 16]),
                addresses: vec!["192.0.2.1:4677".parse().expect("address")],
                lanes: vec!["tls://ingress.example:443".parse().expect("address")],
            }],
            statements: vec![vec![5; 100]],
        }
    }

    #[test]
    fn request_and_replies_survive_a_round_trip() {
        let request = JoinRequest {
            token: "gsm1_abc".to_owned(),
            public_key: [1; 32],
            proof: vec![2; 64],
            name: "vm-b".parse().expect("name"),
        };
        let ask = Ask::Join(request);
        assert_eq!(Ask::decode(&ask.encode().expect("fits")), Ok(ask.clone()));
        assert!(!format!("{ask:?}").contains("gsm1_"));
        let ask = Ask::Renew(RenewRequest { leaf: vec![1; 500], issuer: vec![2; 400], proof: vec![3; 64] });
        assert_eq!(Ask::decode(&ask.encode().expect("fits")), Ok(ask));
        for reply in [JoinReply::Admitted(Box::new(admitted())), JoinReply::Refused(Refusal::Used)] {
            assert_eq!(JoinReply::decode(&reply.encode().expect("fits")), Ok(reply));
        }
    }

    #[test]
    fn oversized_certificates_are_refused() {
        let reply = Admitted { roots: vec![vec![0; MAX_CERTIFICATE_BYTES + 1]], ..admitted() };
        let bytes = JoinReply::Admitted(Box::new(reply)).encode().expect("fits");
        assert!(JoinReply::decode(&bytes).is_err());
        let leaf = vec![0; MAX_CERTIFICATE_BYTES + 1];
        let ask = Ask::Renew(RenewRequest { leaf, issuer: Vec::new(), proof: Vec::new() });
        assert!(Ask::decode(&ask.encode().expect("fits")).is_err());
    }
}
