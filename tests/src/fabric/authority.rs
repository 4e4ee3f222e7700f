//! The identities of a simulated mesh, the same for the same seed.
//!
//! Owns: root, issuer, keys and leaves. Must not know: what nodes do with them. Driven by: the fabric.
//!
//! Node ids decide who dials whom and in which order members are listed, so a repeated run needs the same keys.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use gossamer::identity::{Identity, NodeKey};
use gossamer_core::trust::TrustBundle;
use gossamer_wire::MeshId;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData as _, SanType, SerialNumber,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use time::OffsetDateTime;

/// The wall clock at the start of every simulation, seconds since the Unix epoch.
pub const EPOCH: u64 = 1_800_000_000;
/// Certificates are good from so long before that moment, and so long after it: any offset of a scenario's clock
/// that matters for certificates is meant.
const VALID: (i64, i64) = (-86_400, 400 * 86_400);

/// A root and an issuer below it.
pub struct Authority {
    mesh: MeshId,
    trust: TrustBundle,
    issuer: Issuer<'static, KeyPair>,
    rng: StdRng,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.mesh)
    }
}

impl Authority {
    /// Makes the authority of a seed.
    ///
    /// # Errors
    /// A bug.
    pub fn new(seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let (root_key, issuer_key) = (rcgen_key(&key_bytes(&mut rng))?, rcgen_key(&key_bytes(&mut rng))?);
        let mesh = MeshId::of_spki(&root_key.subject_public_key_info());
        let root = authority("root", 1, &mut rng)?.self_signed(&root_key)?.der().to_vec();
        let root_issuer = Issuer::new(authority("root", 1, &mut rng)?, root_key);
        let params = authority("issuer", 0, &mut rng)?;
        let issuer = params.signed_by(&issuer_key, &root_issuer)?.der().to_vec();
        let trust = TrustBundle::new(mesh, vec![root], vec![issuer])?;
        Ok(Self { mesh, trust, issuer: Issuer::new(params, issuer_key), rng })
    }

    /// Makes the identity of the next node. It knows nobody.
    ///
    /// # Errors
    /// A bug.
    pub fn identity(&mut self, name: &str) -> Result<Identity> {
        let pkcs8 = key_bytes(&mut self.rng);
        let key = NodeKey::read(&pkcs8).context("an Ed25519 key")?;
        let mut params = blank(&mut self.rng)?;
        let uri = format!("spiffe://{}/group/sim/node/{name}", self.mesh);
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf_der = params.signed_by(&rcgen_key(&pkcs8)?, &self.issuer)?.der().to_vec();
        Ok(Identity {
            mesh: self.mesh,
            mesh_name: "sim".parse()?,
            leaf: self.trust.verify(&leaf_der, &[], EPOCH)?,
            leaf_der,
            zone: None,
            region: None,
            trust: self.trust.clone(),
            key: Arc::new(key),
            issuer: None,
            holds_root_key: false,
            seeds: Vec::new(),
        })
    }
}

/// PKCS#8 of an Ed25519 key (RFC 8410 section 7): a fixed head and 32 random bytes.
fn key_bytes(rng: &mut StdRng) -> Vec<u8> {
    const HEAD: [u8; 16] =
        [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    HEAD.into_iter().chain(rng.random::<[u8; 32]>()).collect()
}

fn rcgen_key(pkcs8: &[u8]) -> Result<KeyPair> {
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ED25519)?)
}

fn authority(name: &str, path: u8, rng: &mut StdRng) -> Result<CertificateParams> {
    let mut params = blank(rng)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn blank(rng: &mut StdRng) -> Result<CertificateParams> {
    let at = |seconds: i64| -> Result<OffsetDateTime> {
        Ok(OffsetDateTime::from_unix_timestamp(i64::try_from(EPOCH)? + seconds)?)
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    (params.not_before, params.not_after) = (at(VALID.0)?, at(VALID.1)?);
    // Of one length whatever is drawn: certificates travel in handshakes, whose sizes are part of the trace.
    let mut serial: [u8; 16] = rng.random();
    serial[0] = 0x40 | (serial[0] & 0x3f);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_nodes_and_another_seed_others() {
        let node = |seed| {
            let mut authority = Authority::new(seed).expect("made");
            authority.identity("n0").expect("made").node()
        };
        assert_eq!(node(1), node(1));
        assert_ne!(node(1), node(2));
    }

    #[test]
    fn certificates_have_one_length() {
        let mut authority = Authority::new(3).expect("made");
        let lengths = (0..30).map(|_| authority.identity("n0").expect("made").leaf_der.len());
        let lengths: std::collections::BTreeSet<usize> = lengths.collect();
        assert_eq!(lengths.len(), 1, "{lengths:?}");
    }
}
