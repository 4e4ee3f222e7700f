//! Identities of simulated nodes: one root, one issuer, and a key and certificate for each node.
//!
//! Owns: keys drawn from the seed, so that node ids repeat; verdicts on signatures, made once a process and
//! remembered. Must not know: what nodes do. Driven by: the mesh, when it makes its nodes.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use gossamer_core::trust::{ISSUER_OID, Sign, TrustBundle, Verify, signature_holds};
use gossamer_wire::advert::Fragment;
use gossamer_wire::issuer::IssuerClaims;
use gossamer_wire::statement::{Change, SignedStatement, Statement};
use gossamer_wire::{DecodeError, MeshId, NodeId, ServiceRecord};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use ring::signature::Ed25519KeyPair;
use rustls::pki_types::PrivatePkcs8KeyDer;
use time::{Duration, OffsetDateTime};

use super::tables::QuickMap;

/// The wall clock at the beginning of every world, seconds since the Unix epoch.
pub(crate) const WALL: u64 = 1_800_000_000;

/// A mesh with one root and one issuer.
pub(crate) struct Authority {
    root: Issuer<'static, KeyPair>,
    /// The root's key, for statements and for the disk of a node.
    root_key: Author,
    /// Its certificate, DER.
    issuer_der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    trust: TrustBundle,
    rng: StdRng,
}

/// A node's key and certificate.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Hash of the key.
    pub(crate) node: NodeId,
    /// The certificate, DER.
    pub(crate) leaf: Vec<u8>,
    /// Signs the node's adverts.
    pub(crate) key: Key,
    /// The key as PKCS#8, for endpoints.
    pub(crate) pkcs8: Vec<u8>,
}

/// A key that signs statements.
#[derive(Clone, Debug)]
pub(crate) struct Author {
    mesh: MeshId,
    /// Hash of the key.
    pub(crate) id: NodeId,
    key: Key,
    /// The key as PKCS#8.
    pub(crate) pkcs8: Vec<u8>,
}

impl Author {
    /// Signs a statement under a number.
    ///
    /// # Errors
    /// It is too long.
    pub(crate) fn say(&self, number: u64, change: Change) -> Result<Vec<u8>> {
        let statement = Statement { mesh: self.mesh, author: self.id, number, change };
        Ok(SignedStatement::build(statement, |bytes| self.key.sign(bytes))?.bytes().to_vec())
    }
}

/// An Ed25519 key.
#[derive(Clone)]
pub(crate) struct Key(Arc<Ed25519KeyPair>);

impl Sign for Key {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).as_ref().try_into().expect("Ed25519 signatures have 64 bytes")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("mesh", &self.trust.mesh()).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a mesh. One seed, one mesh.
    ///
    /// # Errors
    /// The provider of cryptography refuses.
    pub(crate) fn new(seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let (pair, key, pkcs8) = draw_key(&mut rng)?;
        let spki = pair.subject_public_key_info();
        let mesh = MeshId::of_spki(&spki);
        let root_key = Author { mesh, id: NodeId::of_spki(&spki), key, pkcs8 };
        let root_der = authority(1)?.self_signed(&pair)?.der().to_vec();
        let (key, ..) = draw_key(&mut rng)?;
        let root = Issuer::new(authority(1)?, pair);
        let issuer_der = authority(0)?.signed_by(&key, &root)?.der().to_vec();
        let trust = TrustBundle::new(mesh, vec![root_der], vec![issuer_der.clone()]);
        let trust = trust.context("the trust bundle")?.with_verifier(Arc::new(Verdicts::default()));
        Ok(Self { root, root_key, issuer_der, issuer: Issuer::new(authority(0)?, key), trust, rng })
    }

    /// Returns the key of the root.
    pub(crate) const fn root(&self) -> &Author {
        &self.root_key
    }

    /// Returns the certificate of the issuer that admits nodes, DER.
    pub(crate) fn issuer_der(&self) -> &[u8] {
        &self.issuer_der
    }

    /// Makes another issuer, which no node knows before a statement adds it. Returns its certificate, DER, as well.
    ///
    /// # Errors
    /// The claims are too long.
    pub(crate) fn add_issuer(&mut self, claims: &IssuerClaims) -> Result<(Author, Vec<u8>)> {
        let (pair, key, pkcs8) = draw_key(&mut self.rng)?;
        let mut params = authority(0)?;
        params.custom_extensions = vec![CustomExtension::from_oid_content(ISSUER_OID, claims.encode()?)];
        let certificate = params.signed_by(&pair, &self.root)?.der().to_vec();
        let id = NodeId::of_spki(&pair.subject_public_key_info());
        Ok((Author { mesh: self.trust.mesh(), id, key, pkcs8 }, certificate))
    }

    /// Admits a node under a name, in the group `west`.
    ///
    /// # Errors
    /// The name is no name of a certificate.
    pub(crate) fn admit(&mut self, name: &str) -> Result<Identity> {
        let (pair, key, pkcs8) = draw_key(&mut self.rng)?;
        let mut params = valid(Duration::days(30))?;
        let uri = format!("spiffe://{}/group/west/node/{name}", self.trust.mesh());
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&pair, &self.issuer)?.der().to_vec();
        let node = NodeId::of_spki(&pair.subject_public_key_info());
        Ok(Identity { node, leaf, key, pkcs8 })
    }

    /// Returns what every node of the mesh trusts; verdicts are shared.
    pub(crate) fn trust(&self) -> TrustBundle {
        self.trust.clone()
    }
}

/// Draws a key, for certificates and for adverts.
fn draw_key(rng: &mut StdRng) -> Result<(KeyPair, Key, Vec<u8>)> {
    let seed: [u8; 32] = rng.random();
    // PKCS 8 of an Ed25519 key is this and the seed (RFC 8410 section 7).
    const PREFIX: [u8; 16] =
        [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let document = [&PREFIX[..], &seed].concat();
    let pair =
        KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(&*document), &rcgen::PKCS_ED25519)?;
    let key = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| anyhow::anyhow!("no Ed25519 key"))?;
    Ok((pair, Key(Arc::new(key)), document))
}

fn authority(path: u8) -> Result<CertificateParams> {
    let mut params = valid(Duration::days(3_650))?;
    params.distinguished_name.push(DnType::CommonName, format!("simulated {path}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn valid(days: Duration) -> Result<CertificateParams> {
    let now = OffsetDateTime::from_unix_timestamp(i64::try_from(WALL)?)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    (params.not_before, params.not_after) = (now - Duration::days(1), now + days);
    Ok(params)
}

/// Verdicts of this process, for one trust bundle. The same bytes reach every simulated node; each distinct check is made once.
#[derive(Debug, Default)]
struct Verdicts(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    /// By signature: whose it was said to be, over what, and whether it is.
    signatures: QuickMap<[u8; 64], Checked>,
    /// By body of a fragment: its records, of which all catalogs hold this copy.
    records: QuickMap<Vec<u8>, Vec<Arc<ServiceRecord>>>,
}

#[derive(Debug)]
struct Checked {
    key: [u8; 32],
    bytes: Box<[u8]>,
    holds: bool,
}

impl Verdicts {
    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verify for Verdicts {
    fn signature(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = <[u8; 64]>::try_from(signature) else {
            return signature_holds(public_key, bytes, signature);
        };
        let mut remembered = self.remembered();
        match remembered.signatures.get(&signature) {
            Some(checked) if checked.key == *public_key && *checked.bytes == *bytes => checked.holds,
            // One signature over two texts: at most one of them is right, and only one is remembered.
            Some(_) => signature_holds(public_key, bytes, &signature),
            None => {
                let holds = signature_holds(public_key, bytes, &signature);
                if remembered.signatures.len() >= MOST_SIGNATURES {
                    remembered.signatures.clear();
                }
                let checked = Checked { key: *public_key, bytes: bytes.into(), holds };
                remembered.signatures.insert(signature, checked);
                holds
            }
        }
    }

    fn records(&self, body: &[u8]) -> Result<Vec<Arc<ServiceRecord>>, DecodeError> {
        let mut remembered = self.remembered();
        if let Some(records) = remembered.records.get(body) {
            return Ok(records.clone());
        }
        let records: Vec<_> = Fragment::decode(body)?.records()?.into_iter().map(Arc::new).collect();
        if remembered.records.len() >= MOST_BODIES {
            remembered.records.clear();
        }
        remembered.records.insert(body.to_vec(), records.clone());
        Ok(records)
    }
}

/// Bounds the memory of a long run; about 300 bytes each.
const MOST_SIGNATURES: usize = 1 << 20;

/// The same for decoded fragments; about 5 KB each.
const MOST_BODIES: usize = 1 << 14;

#[cfg(test)]
mod tests {
    use gossamer_core::trust::TrustError;

    use super::*;

    #[test]
    fn one_seed_makes_the_same_mesh_and_the_same_nodes() {
        let ids = |seed| {
            let mut authority = Authority::new(seed).expect("mesh");
            let nodes = [0, 1].map(|n| authority.admit(&format!("n{n}")).expect("node").node);
            (authority.trust().mesh(), nodes)
        };
        assert_eq!(ids(1), ids(1));
        assert_ne!(ids(1), ids(2));
    }

    #[test]
    fn verdicts_remembered_are_those_made() {
        let mut authority = Authority::new(1).expect("mesh");
        let [a, b] = ["a", "b"].map(|name| authority.admit(name).expect("node"));
        let trust = authority.trust();
        let key = |node: &Identity| trust.verify(&node.leaf, &[], WALL).expect("valid").public_key;
        let signature = a.key.sign(b"text");
        for _ in 0..2 {
            assert!(trust.signature_holds(&key(&a), b"text", &signature));
            assert!(!trust.signature_holds(&key(&a), b"other", &signature), "the bytes count");
            assert!(!trust.signature_holds(&key(&b), b"text", &signature), "the key counts");
            assert!(!trust.signature_holds(&key(&a), b"text", &signature[1..]), "the length counts");
        }
    }

    #[test]
    fn catalogs_share_the_records_of_one_body() {
        let trust = Authority::new(1).expect("mesh").trust();
        let body = Fragment::default().encode().expect("fits");
        assert_eq!(trust.records(&body), Ok(Vec::new()));
        let record = super::super::node::record(super::super::node::service(1), "n1".parse().expect("label"));
        let body =
            Fragment::of(std::slice::from_ref(&record)).and_then(|fragment| fragment.encode()).expect("fits");
        let [first, second] = [0, 1].map(|_| trust.records(&body).expect("decodes"));
        assert!(Arc::ptr_eq(&first[0], &second[0]) && *first[0] == record);
        assert!(trust.records(b"junk").is_err() && trust.records(b"junk").is_err());
    }

    #[test]
    fn a_remembered_leaf_ends_like_any_other() {
        let mut authority = Authority::new(1).expect("mesh");
        let node = authority.admit("a").expect("node");
        let (trust, month) = (authority.trust(), 30 * 86_400);
        for _ in 0..2 {
            assert_eq!(trust.verify(&node.leaf, &[], WALL).map(|leaf| leaf.node), Ok(node.node));
            assert!(trust.verify(&node.leaf, &[], WALL + month).is_ok());
            assert_eq!(trust.verify(&node.leaf, &[], WALL + month + 999), Err(TrustError::Expired(999)));
        }
    }
}
