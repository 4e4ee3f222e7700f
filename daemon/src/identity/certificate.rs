//! Certificates this daemon makes: root, issuer, leaves.
//!
//! Owns: their fields and lifetimes. Must not know: who asks, where they are kept.
//! Driven by: `init` (root, issuer, first leaf) and the issuer task (leaves of joiners).
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

use gossamer_core::trust::CLAIMS_OID;
use gossamer_wire::token::Claims;
use gossamer_wire::{GroupName, MeshId, NodeName};

use super::key::Subject;

/// Roots outlive everything that hangs on them.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * DAY);
/// Design section 4.
const ISSUER_LIFETIME: Duration = Duration::from_secs(365 * DAY);
/// While the mesh has one issuer, so that its loss does not end the mesh within days (design section 4).
const LEAF_LIFETIME: Duration = Duration::from_secs(30 * DAY);
/// Certificates begin a little in the past, for clocks that are late.
const BACKDATE: Duration = Duration::from_secs(300);
const DAY: u64 = 86_400;

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
    not_after: OffsetDateTime,
}

impl IssuerKey {
    /// Reads a PKCS#8 key and the certificate it belongs to.
    ///
    /// # Errors
    /// One of them does not parse.
    pub(super) fn read(pkcs8: Vec<u8>, certificate: &[u8]) -> Result<Self, rcgen::Error> {
        let key = read_key(pkcs8)?;
        let der = CertificateDer::from(certificate);
        let not_after = not_after(&der).ok_or(rcgen::Error::CouldNotParseCertificate)?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&der, key)?, not_after })
    }

    /// Issues a leaf for a public key; it never outlives the issuer.
    ///
    /// # Errors
    /// A bug, or no randomness.
    pub(super) fn issue(&self, public: [u8; 32], subject: LeafSubject<'_>) -> Result<Vec<u8>, rcgen::Error> {
        let LeafSubject { mesh, group, name, claims } = subject;
        let mut params = blank(LEAF_LIFETIME);
        params.not_after = params.not_after.min(self.not_after);
        let uri = format!("spiffe://{mesh}/group/{group}/node/{name}");
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

/// A key and the certificate made for it, both DER.
pub(super) struct Made {
    pub(super) key: zeroize::Zeroizing<Vec<u8>>,
    pub(super) certificate: Vec<u8>,
    pub(super) spki: Vec<u8>,
}

/// Makes a root.
///
/// # Errors
/// No randomness.
pub(super) fn make_root(name: &str) -> Result<(Made, Issuer<'static, KeyPair>), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let params = authority(&format!("{name} root"), 1, ROOT_LIFETIME);
    let certificate = params.self_signed(&key)?.der().to_vec();
    let made = made(&key, certificate);
    Ok((made, Issuer::new(params, key)))
}

/// Makes an issuer below a root.
///
/// # Errors
/// No randomness.
pub(super) fn make_issuer(name: &str, root: &Issuer<'static, KeyPair>) -> Result<Made, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = authority(&format!("{name} issuer"), 0, ISSUER_LIFETIME);
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, root)?.der().to_vec();
    Ok(made(&key, certificate))
}

fn made(key: &KeyPair, certificate: Vec<u8>) -> Made {
    use rcgen::PublicKeyData as _;
    Made { key: key.serialize_der().into(), certificate, spki: key.subject_public_key_info() }
}

fn read_key(pkcs8: Vec<u8>) -> Result<KeyPair, rcgen::Error> {
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
    params.not_before = now - BACKDATE;
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
    gossamer_core::trust::not_after(der)
        .and_then(|end| OffsetDateTime::from_unix_timestamp(end.try_into().ok()?).ok())
}
