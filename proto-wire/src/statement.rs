//! Statements: signed, grow-only changes of authority. This is the format; who may say what is decided elsewhere.
//!
//! Owns: bodies, ids and the digest of a set. Must not know: whether a statement acts.
//! Driven by: the first frame of every connection (digest), and the exchange that follows when digests differ.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::codec::{self, at_most};
use crate::limits::{MAX_CERTIFICATE_BYTES, MAX_KEPT, MAX_STATEMENT_BYTES};
use crate::{DecodeError, EncodeError, MeshId, NodeId, TokenId};

/// The first 16 bytes of a statement's id.
pub type ShortId = [u8; 16];

const SIGN_DOMAIN: &[u8] = b"gossamer-statement-v1\0";
const SIGNATURE_BYTES: usize = 64;

/// What a statement changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The node is out, for ever; a new key is a new node.
    Evict(NodeId),
    /// The certificate (DER) is an issuer's; its node, name and scope stand in an extension of it
    /// ([`IssuerClaims`](crate::issuer::IssuerClaims)).
    AddIssuer(Vec<u8>),
    /// The issuer is one no more.
    RemoveIssuer {
        /// Whose powers end.
        issuer: NodeId,
        /// Of its statements those with a number below this one still count.
        numbers: u64,
        /// The only nodes for which leaves it issued still count, until they renew elsewhere.
        keep: Vec<NodeId>,
    },
    /// The certificate (DER) is a root of the mesh.
    AddRoot(Vec<u8>),
    /// The root is one no more.
    RetireRoot {
        /// Whose powers end.
        root: NodeId,
        /// The only statements of it that still count, by the first 16 bytes of their ids.
        keep: Vec<ShortId>,
    },
    /// The author may use this many statement numbers.
    Grant {
        /// Whose budget.
        author: NodeId,
        /// The new budget.
        numbers: u64,
    },
    /// The token admits nobody any more, at no issuer.
    RevokeToken(TokenId),
}

/// A change with its author and number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// The mesh.
    pub mesh: MeshId,
    /// Id of the key that signed: an issuer's or a root's.
    pub author: NodeId,
    /// Number of the statement among its author's; two different ones with one number end its powers.
    pub number: u64,
    /// What changes.
    pub change: Change,
}

/// A statement with its signature, as it is stored and forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedStatement {
    statement: Statement,
    bytes: Vec<u8>,
}

impl SignedStatement {
    /// Builds and signs a statement.
    ///
    /// # Errors
    /// It is longer than a statement may be.
    pub fn build(
        statement: Statement,
        sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
    ) -> Result<Self, EncodeError> {
        let mut bytes = codec::encode("statement", &statement, MAX_STATEMENT_BYTES - SIGNATURE_BYTES)?;
        let signature = sign(&[SIGN_DOMAIN, &bytes].concat());
        bytes.extend_from_slice(&signature);
        Ok(Self { statement, bytes })
    }

    /// Reads a statement; the signature is not checked here.
    ///
    /// # Errors
    /// The giver's fault.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        at_most("statement", bytes, MAX_STATEMENT_BYTES)?;
        let (body, _) = bytes.split_last_chunk::<SIGNATURE_BYTES>().ok_or(DecodeError::Short("statement"))?;
        let statement: Statement = codec::decode("statement", body, MAX_STATEMENT_BYTES)?;
        match &statement.change {
            Change::AddIssuer(certificate) | Change::AddRoot(certificate) => {
                at_most("certificate", certificate, MAX_CERTIFICATE_BYTES)?;
            }
            Change::RemoveIssuer { keep, .. } => at_most("nodes to keep", keep, MAX_KEPT)?,
            Change::RetireRoot { keep, .. } => at_most("statements to keep", keep, MAX_KEPT)?,
            Change::Evict(_) | Change::Grant { .. } | Change::RevokeToken(_) => {}
        }
        Ok(Self { statement, bytes: bytes.to_vec() })
    }

    /// Returns the content.
    pub const fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Returns all bytes, as received.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the bytes that were signed and the signature over them.
    pub fn signed(&self) -> (Vec<u8>, [u8; SIGNATURE_BYTES]) {
        match self.bytes.split_last_chunk::<SIGNATURE_BYTES>() {
            Some((body, signature)) => ([SIGN_DOMAIN, body].concat(), *signature),
            None => (Vec::new(), [0; SIGNATURE_BYTES]),
        }
    }

    /// Returns what identifies the statement: SHA-256 of its bytes.
    pub fn id(&self) -> [u8; 32] {
        Sha256::digest(&self.bytes).into()
    }

    /// Returns the beginning of the id, by which a retirement names the statements it keeps.
    pub fn short_id(&self) -> ShortId {
        short(&self.id())
    }
}

/// Returns the beginning of an id.
pub fn short(id: &[u8; 32]) -> ShortId {
    let mut short = ShortId::default();
    short.copy_from_slice(&id[..16]);
    short
}

/// Digest of a set of statement ids: the first 16 bytes of SHA-256 over the sorted ids. Equal sets, equal digests.
pub fn digest(ids: &BTreeSet<[u8; 32]>) -> [u8; 16] {
    let mut hash = Sha256::new();
    for id in ids {
        hash.update(id);
    }
    let hash = hash.finalize();
    let mut digest = [0; 16];
    digest.copy_from_slice(&hash[..16]);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(number: u64) -> SignedStatement {
        let content = Statement {
            mesh: MeshId::from_bytes([1; 16]),
            author: NodeId::from_bytes([2; 16]),
            number,
            change: Change::Evict(NodeId::from_bytes([3; 16])),
        };
        SignedStatement::build(content, |bytes| [bytes.len() as u8; 64]).expect("fits")
    }

    #[test]
    fn a_statement_survives_a_round_trip_byte_for_byte() {
        let signed = statement(7);
        assert_eq!(SignedStatement::parse(signed.bytes()), Ok(signed.clone()));
        assert_eq!(signed.statement().number, 7);
        assert!(SignedStatement::parse(&signed.bytes()[1..]).is_err());
        let (bytes, signature) = signed.signed();
        assert!(bytes.starts_with(SIGN_DOMAIN));
        assert_eq!(signature, [bytes.len() as u8; 64]);
    }

    #[test]
    fn the_digest_depends_on_the_set_and_not_on_the_order_of_arrival() {
        let (one, two) = (statement(1).id(), statement(2).id());
        let set = |ids: &[[u8; 32]]| ids.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(digest(&set(&[one, two])), digest(&set(&[two, one])));
        assert_ne!(digest(&set(&[one])), digest(&set(&[one, two])));
    }
}
