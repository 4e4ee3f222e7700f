//! What a certificate of an issuer or a root says.
//!
//! Owns: the reading of issuer and root certificates. Must not know: whether a root signed them. Driven by: the
//! trust bundle, and statements that add an issuer.

use gossamer_wire::issuer::IssuerClaims;
use gossamer_wire::limits::MAX_CERTIFICATE_BYTES;
use gossamer_wire::{GroupName, NodeId};
use rustls_pki_types::CertificateDer;

use super::{TrustError, ed25519_key, extension, signature_holds, validity, whole};

/// Object identifier of the extension with an issuer's claims: private, not critical (design section 4).
pub const ISSUER_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 61_999, 1, 2];
const ISSUER_OID_TEXT: &str = "1.3.6.1.4.1.61999.1.2";

/// What a certificate of an issuer says, whoever signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerFacts {
    /// The issuer: the hash of its key, which is not the key of the node that holds it.
    pub id: NodeId,
    /// All of the certificate, DER.
    pub certificate: Vec<u8>,
    /// Who holds the key, and for which groups; `None` in the first certificates, which did not say: every group.
    pub claims: Option<IssuerClaims>,
    /// The key, which signs leaves and statements.
    pub public_key: [u8; 32],
    /// First second, since the Unix epoch.
    pub not_before: u64,
    /// Last second.
    pub not_after: u64,
}

impl IssuerFacts {
    /// Returns whether the issuer may admit nodes to this group.
    pub fn admits_to(&self, group: &GroupName) -> bool {
        self.claims.as_ref().is_none_or(|claims| claims.allow_group(group))
    }

    /// Returns what orders the certificates of one key; the greatest is the newest.
    pub(crate) fn age(&self) -> (u64, u64, &[u8]) {
        // Two of the same seconds must be in one order everywhere.
        (self.not_after, self.not_before, &self.certificate)
    }

    pub(super) fn der(&self) -> CertificateDer<'_> {
        CertificateDer::from(self.certificate.as_slice())
    }
}

/// Reads a certificate of an issuer; who signed it is not checked.
///
/// # Errors
/// It does not parse, is not an authority with path length 0, its key is not Ed25519, or its claims do not decode.
pub fn read_issuer(der: &[u8]) -> Result<IssuerFacts, TrustError> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(TrustError::Malformed);
    }
    let certificate = whole(der)?;
    let basic = certificate.basic_constraints().ok().flatten();
    if !basic.is_some_and(|basic| basic.value.ca && basic.value.path_len_constraint == Some(0)) {
        return Err(TrustError::NotIssuer);
    }
    let spki = certificate.public_key().raw;
    let claims = extension(&certificate, ISSUER_OID_TEXT).map(IssuerClaims::decode);
    let (not_before, not_after) = validity(&certificate);
    Ok(IssuerFacts {
        id: NodeId::of_spki(spki),
        public_key: ed25519_key(spki)?,
        claims: claims.transpose().map_err(|_| TrustError::Claims)?,
        certificate: der.to_vec(),
        not_before,
        not_after,
    })
}

/// What a certificate of a root says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFacts {
    /// The root: the hash of its key.
    pub id: NodeId,
    /// All of the certificate, DER.
    pub certificate: Vec<u8>,
    /// The key, which signs issuers and statements.
    pub public_key: [u8; 32],
}

/// Reads a certificate of a root, which its own key must have signed.
///
/// # Errors
/// It does not parse, is not an authority, its key is not Ed25519, or another key signed it.
pub fn read_root(der: &[u8]) -> Result<RootFacts, TrustError> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(TrustError::Malformed);
    }
    let certificate = whole(der)?;
    let public_key = ed25519_key(certificate.public_key().raw)?;
    let basic = certificate.basic_constraints().ok().flatten();
    let is_root = basic.is_some_and(|basic| basic.value.ca) && is_signed_by(der, &public_key);
    // What the verifier cannot take for an anchor is no root to anybody.
    if !is_root || webpki::anchor_from_trusted_cert(&CertificateDer::from(der)).is_err() {
        return Err(TrustError::NotRoot);
    }
    let id = NodeId::of_spki(certificate.public_key().raw);
    Ok(RootFacts { id, certificate: der.to_vec(), public_key })
}

/// Returns whether a key signed a certificate.
pub fn is_signed_by(der: &[u8], key: &[u8; 32]) -> bool {
    whole(der).is_ok_and(|certificate| {
        signature_holds(key, certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
    })
}

/// Returns the Ed25519 key of a certificate, for example a root's.
///
/// # Errors
/// It does not parse, or its key is another kind.
pub fn public_key_of(der: &[u8]) -> Result<[u8; 32], TrustError> {
    ed25519_key(whole(der)?.public_key().raw)
}
