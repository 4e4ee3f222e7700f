//! Certificates this daemon makes: root, issuer, leaves.
//!
//! Owns: their fields and lifetimes. Must not know: who asks, where they are kept.
//! Driven by: `init` (root, issuer, first leaf), the issuer task (leaves of joiners), the authority task (issuers).
//!
//! Nothing of a request but its public key enters a certificate: a request that asks to be a CA would
//! become one.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use gossamer_core::trust::{self, CLAIMS_OID, ISSUER_OID, Sign as _, spiffe_id};
use gossamer_wire::issuer::IssuerClaims;
use gossamer_wire::token::Claims;
use gossamer_wire::{GroupName, MeshId, NodeId, NodeName};

use super::NodeKey;
use super::key::Subject;

/// Roots outlive everything that hangs on them.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * DAY);
/// While the mesh has one issuer, so that its loss does not end the mesh within days (design section 4).
const LEAF_OF_ONE_ISSUER: Duration = Duration::from_secs(30 * DAY);
/// From two issuers on: renewal outlives one of them, so a stolen key may end sooner.
const LEAF_OF_SEVERAL: Duration = Duration::from_secs(3 * DAY);
/// Certificates begin a little in the past, for clocks that are late.
const BACKDATE: Duration = Duration::from_secs(300);
const DAY: u64 = 86_400;

/// How long certificates last that are made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of nodes; by the number of issuers when `None`.
    pub leaf: Option<Duration>,
    /// Of issuers.
    pub issuer: Duration,
}

impl Default for Lifetimes {
    /// Design section 4.
    fn default() -> Self {
        Self { leaf: None, issuer: Duration::from_secs(365 * DAY) }
    }
}

impl Lifetimes {
    /// Returns how long a node's certificate lasts in a mesh with so many issuers.
    pub(super) fn leaf_for(&self, issuers: usize) -> Duration {
        self.leaf.unwrap_or(if issuers > 1 { LEAF_OF_SEVERAL } else { LEAF_OF_ONE_ISSUER })
    }
}

/// Who a leaf names.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafSubject<'a> {
    pub(super) mesh: MeshId,
    pub(super) group: &'a GroupName,
    pub(super) name: &'a NodeName,
    pub(super) claims: &'a Claims,
}

/// The key that admits nodes, with its certificate.
pub struct IssuerKey {
    issuer: Issuer<'static, KeyPair>,
    signer: NodeKey,
    certificate: Vec<u8>,
    groups: Vec<GroupName>,
    not_after: OffsetDateTime,
}

impl IssuerKey {
    /// Reads a PKCS#8 key and the certificate it belongs to.
    ///
    /// # Errors
    /// One of them does not parse.
    pub(crate) fn read(pkcs8: &[u8], certificate: &[u8]) -> Result<Self, rcgen::Error> {
        let signer = NodeKey::read(pkcs8).ok_or(rcgen::Error::CouldNotParseKeyPair)?;
        let der = CertificateDer::from(certificate);
        let not_after = not_after(&der).ok_or(rcgen::Error::CouldNotParseCertificate)?;
        let issuer = Issuer::from_ca_cert_der(&der, read_key(pkcs8)?)?;
        let facts = trust::read_issuer(certificate).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        let groups = facts.claims.map(|claims| claims.groups).unwrap_or_default();
        Ok(Self { issuer, signer, certificate: certificate.to_vec(), groups, not_after })
    }

    /// Returns the groups it may admit to; none means all.
    pub(crate) fn groups(&self) -> &[GroupName] {
        &self.groups
    }

    /// Returns whether it may admit to a group.
    pub(crate) fn may_admit_to(&self, group: &GroupName) -> bool {
        self.groups.is_empty() || self.groups.contains(group)
    }

    /// Returns the issuer's id: the hash of its key.
    pub fn id(&self) -> NodeId {
        self.signer.node()
    }

    /// Returns its public key.
    pub(crate) const fn public(&self) -> [u8; 32] {
        self.signer.public()
    }

    /// Returns its certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Signs a statement.
    pub(crate) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.signer.sign(bytes)
    }

    /// Issues a leaf for a public key; it never outlives the issuer.
    ///
    /// # Errors
    /// A bug, or no randomness.
    pub(super) fn issue(
        &self,
        public: [u8; 32],
        subject: LeafSubject<'_>,
        lifetime: Duration,
    ) -> Result<Vec<u8>, rcgen::Error> {
        let LeafSubject { mesh, group, name, claims } = subject;
        let mut params = blank(lifetime);
        params.not_after = params.not_after.min(self.not_after);
        let uri = spiffe_id(mesh, group, name);
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        if *claims != Claims::default() {
            let content = claims.encode().map_err(|_| rcgen::Error::UnsupportedExtension)?;
            params.custom_extensions = vec![CustomExtension::from_oid_content(CLAIMS_OID, content)];
        }
        Ok(params.signed_by(&Subject(public), &self.issuer)?.der().to_vec())
    }
}

impl fmt::Debug for IssuerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IssuerKey")
    }
}

/// The key of a root, with its certificate: makes issuers and signs statements.
pub(crate) struct RootKey {
    issuer: Issuer<'static, KeyPair>,
    signer: NodeKey,
    not_after: OffsetDateTime,
}

impl RootKey {
    /// Reads a PKCS#8 key and the certificate it belongs to.
    ///
    /// # Errors
    /// One of them does not parse, or they do not belong together.
    pub(crate) fn read(pkcs8: &[u8], certificate: &[u8]) -> Result<Self, rcgen::Error> {
        let signer = NodeKey::read(pkcs8).ok_or(rcgen::Error::CouldNotParseKeyPair)?;
        if trust::public_key_of(certificate).ok() != Some(signer.public()) {
            return Err(rcgen::Error::CouldNotParseCertificate);
        }
        let der = CertificateDer::from(certificate);
        let not_after = not_after(&der).ok_or(rcgen::Error::CouldNotParseCertificate)?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&der, read_key(pkcs8)?)?, signer, not_after })
    }

    /// Returns the root's id: the hash of its key.
    pub(crate) fn id(&self) -> NodeId {
        self.signer.node()
    }

    /// Returns the secret PKCS#8 form.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        self.signer.pkcs8()
    }

    /// Signs a statement.
    pub(crate) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.signer.sign(bytes)
    }

    /// Makes the certificate of an issuer; it never outlives the root. It begins now, or at `since`, seconds since the Unix
    /// epoch, if that is earlier.
    ///
    /// # Errors
    /// A bug, or no randomness.
    pub(crate) fn issuer(
        &self,
        mesh_name: &str,
        public: [u8; 32],
        claims: &IssuerClaims,
        lifetime: Duration,
        since: Option<u64>,
    ) -> Result<Vec<u8>, rcgen::Error> {
        let mut params = authority(&format!("{mesh_name} issuer {}", claims.name), 0, lifetime);
        params.not_after = params.not_after.min(self.not_after);
        let since = since.and_then(|since| OffsetDateTime::from_unix_timestamp(since.try_into().ok()?).ok());
        params.not_before = since.map_or(params.not_before, |since| since.min(params.not_before));
        params.use_authority_key_identifier_extension = true;
        let content = claims.encode().map_err(|_| rcgen::Error::UnsupportedExtension)?;
        params.custom_extensions = vec![CustomExtension::from_oid_content(ISSUER_OID, content)];
        Ok(params.signed_by(&Subject(public), &self.issuer)?.der().to_vec())
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey")
    }
}

/// Makes a root: its key and its certificate, DER.
///
/// # Errors
/// No randomness.
pub(super) fn make_root(name: &str) -> Result<(NodeKey, Vec<u8>), rcgen::Error> {
    let key = NodeKey::generate().ok_or(rcgen::Error::KeyGenerationUnavailable)?;
    let certificate = root_of(&key, name)?;
    Ok((key, certificate))
}

/// Makes the certificate of a root's key, DER.
///
/// # Errors
/// A bug, or no randomness.
pub(crate) fn root_of(key: &NodeKey, name: &str) -> Result<Vec<u8>, rcgen::Error> {
    let key = read_key(key.pkcs8())?;
    Ok(authority(&format!("{name} root"), 1, ROOT_LIFETIME).self_signed(&key)?.der().to_vec())
}

fn read_key(pkcs8: &[u8]) -> Result<KeyPair, rcgen::Error> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ED25519)
}

fn authority(name: &str, path: u8, lifetime: Duration) -> CertificateParams {
    let mut params = blank(lifetime);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn blank(lifetime: Duration) -> CertificateParams {
    let now = OffsetDateTime::from_unix_timestamp(crate::clock::wall().try_into().unwrap_or(i64::MAX))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = now - BACKDATE.min(lifetime / 10);
    params.not_after = now + lifetime;
    params.serial_number = Some(serial());
    params
}

/// 16 random bytes, positive and of full length (RFC 5280 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn not_after(der: &CertificateDer<'_>) -> Option<OffsetDateTime> {
    trust::not_after(der).and_then(|end| OffsetDateTime::from_unix_timestamp(end.try_into().ok()?).ok())
}
