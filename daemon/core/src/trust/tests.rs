use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData as _, SanType,
};
use time::OffsetDateTime;

use gossamer_wire::issuer::IssuerClaims;

use super::*;

/// Any moment: certificates of these tests are made around it.
pub(crate) const WALL: u64 = 1_800_000_000;

mod issuers;

/// A mesh with one root and one issuer.
pub(crate) struct Authority {
    pub(crate) mesh: MeshId,
    pub(crate) root: Vec<u8>,
    pub(crate) issuer_der: Vec<u8>,
    root_issuer: Issuer<'static, KeyPair>,
    issuer: Issuer<'static, KeyPair>,
}

/// A node's key pair; signs with ring as the daemon does.
pub(crate) struct Key {
    pub(crate) pair: KeyPair,
    signer: ring::signature::Ed25519KeyPair,
}

impl Key {
    pub(crate) fn new() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ED25519).expect("key");
        let signer = ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pair.serialize_der());
        Self { signer: signer.expect("pkcs8"), pair }
    }

    /// Makes the same key for the same seed: tests whose course hangs on node ids can be repeated.
    pub(crate) fn of(seed: u64) -> Self {
        // RFC 8410 section 7: version, Ed25519, a string within a string.
        let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        der.extend(std::iter::repeat_n(seed.to_be_bytes(), 4).flatten());
        let signer = ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der);
        let pair = KeyPair::try_from(der).expect("key");
        Self { signer: signer.expect("pkcs8"), pair }
    }

    pub(crate) fn id(&self) -> NodeId {
        NodeId::of_spki(&self.pair.subject_public_key_info())
    }
}

impl Sign for Key {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.signer.sign(bytes).as_ref().try_into().expect("64 bytes")
    }
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(WALL as i64 + seconds).expect("time")
}

fn authority_params(path: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("ca {path}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = at(-3_600);
    params.not_after = at(31_536_000);
    params
}

/// What a root writes into the certificate of an issuer.
pub(crate) fn issuer_params(claims: Option<&IssuerClaims>) -> CertificateParams {
    let mut params = authority_params(0);
    let content = claims.map(|claims| claims.encode().expect("fits"));
    params.custom_extensions =
        content.map(|content| CustomExtension::from_oid_content(ISSUER_OID, content)).into_iter().collect();
    params
}

/// Claims of an issuer whose key a node holds.
pub(crate) fn issuer_claims(node: NodeId, groups: &[&str]) -> IssuerClaims {
    let groups = groups.iter().map(|group| group.parse().expect("name")).collect();
    IssuerClaims { node, name: "vm-a".parse().expect("name"), groups }
}

pub(crate) fn leaf_params(mesh: MeshId, group: &str, name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let uri = format!("spiffe://{mesh}/group/{group}/node/{name}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ascii"))];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = at(-300);
    params.not_after = at(86_400);
    params
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::of(KeyPair::generate_for(&PKCS_ED25519).expect("key"))
    }

    pub(crate) fn of(root_key: KeyPair) -> Self {
        let mesh = MeshId::of_spki(&root_key.subject_public_key_info());
        let root = authority_params(1).self_signed(&root_key).expect("root").der().to_vec();
        let root_issuer = Issuer::new(authority_params(1), root_key);
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("key");
        let issuer_der = authority_params(0).signed_by(&key, &root_issuer).expect("issuer").der().to_vec();
        Self { mesh, root, issuer_der, root_issuer, issuer: Issuer::new(authority_params(0), key) }
    }

    /// Has the root certify a key.
    pub(crate) fn certify(&self, params: CertificateParams, key: &KeyPair) -> Vec<u8> {
        params.signed_by(key, &self.root_issuer).expect("certificate").der().to_vec()
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.mesh, vec![self.root.clone()], vec![self.issuer_der.clone()]).expect("bundle")
    }

    pub(crate) fn issue(&self, params: CertificateParams, key: &KeyPair) -> Vec<u8> {
        params.signed_by(key, &self.issuer).expect("leaf").der().to_vec()
    }

    pub(crate) fn leaf(&self, group: &str, name: &str, key: &Key) -> Vec<u8> {
        self.issue(leaf_params(self.mesh, group, name), &key.pair)
    }
}

#[test]
fn a_leaf_of_the_mesh_says_who_the_node_is() {
    let authority = Authority::new();
    let key = Key::new();
    let claims = Claims { services: vec!["web-*".to_owned()], ..Claims::default() };
    let mut params = leaf_params(authority.mesh, "west", "vm-b");
    let content = claims.encode().expect("fits");
    params.custom_extensions = vec![CustomExtension::from_oid_content(CLAIMS_OID, content)];
    let leaf = authority.bundle().verify(&authority.issue(params, &key.pair), &[], WALL).expect("valid");
    assert_eq!((leaf.group.as_str(), leaf.name.as_str()), ("west", "vm-b"));
    assert_eq!(leaf.claims, claims);
    assert_eq!(leaf.node, node_id(&leaf.public_key));
    assert!(signature_holds(&leaf.public_key, b"x", &key.sign(b"x")));
    assert!(!signature_holds(&leaf.public_key, b"y", &key.sign(b"x")));
}

#[test]
fn an_issuer_the_bundle_does_not_hold_may_be_shown() {
    let authority = Authority::new();
    let leaf = authority.leaf("west", "vm-b", &Key::new());
    let bundle = TrustBundle::new(authority.mesh, vec![authority.root], vec![]).expect("bundle");
    assert!(matches!(bundle.verify(&leaf, &[], WALL), Err(TrustError::Chain(_))));
    assert!(bundle.verify(&leaf, &[authority.issuer_der.into()], WALL).is_ok());
}

#[test]
fn leaves_of_other_meshes_and_self_signed_ones_are_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let key = Key::new();
    // Another root may well write our mesh id into its leaves.
    let foreign = theirs.issue(leaf_params(ours.mesh, "west", "vm-b"), &key.pair);
    let shown = [theirs.issuer_der.clone().into(), theirs.root.clone().into()];
    assert!(matches!(ours.bundle().verify(&foreign, &shown, WALL), Err(TrustError::Chain(_))));
    let own = leaf_params(ours.mesh, "west", "vm-b").self_signed(&key.pair).expect("leaf");
    assert!(matches!(ours.bundle().verify(own.der(), &[], WALL), Err(TrustError::Chain(_))));
    let named = theirs.leaf("west", "vm-b", &key);
    assert_eq!(ours.bundle().verify(&named, &[], WALL), Err(TrustError::Name));
}

#[test]
fn each_fault_of_a_leaf_is_refused() {
    let authority = Authority::new();
    let key = Key::new();
    let break_it = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = leaf_params(authority.mesh, "west", "vm-b");
        change(&mut params);
        authority.bundle().verify(&authority.issue(params, &key.pair), &[], WALL)
    };
    let uri = |text: String| SanType::URI(text.try_into().expect("ascii"));
    let mesh = authority.mesh;
    assert!(matches!(break_it(&|p| p.not_after = at(-200)), Err(TrustError::Expired(200))));
    assert!(matches!(break_it(&|p| p.not_before = at(400)), Err(TrustError::NotYet(400))));
    assert_eq!(break_it(&|p| p.subject_alt_names.clear()), Err(TrustError::Name));
    let twice = |p: &mut CertificateParams| p.subject_alt_names.push(p.subject_alt_names[0].clone());
    assert_eq!(break_it(&twice), Err(TrustError::Name));
    let nested = |p: &mut CertificateParams| {
        p.subject_alt_names = vec![uri(format!("spiffe://{mesh}/group/a/b/node/c"))];
    };
    assert_eq!(break_it(&nested), Err(TrustError::Name));
    let junk = |p: &mut CertificateParams| {
        p.custom_extensions = vec![CustomExtension::from_oid_content(CLAIMS_OID, vec![255; 9])];
    };
    assert_eq!(break_it(&junk), Err(TrustError::Claims));
    let authority_leaf = |p: &mut CertificateParams| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert!(matches!(break_it(&authority_leaf), Err(TrustError::Chain(_))));
    let one_way = |p: &mut CertificateParams| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    assert!(matches!(break_it(&one_way), Err(TrustError::Chain(_))));
}

#[test]
fn keys_other_than_ed25519_and_junk_are_refused() {
    let authority = Authority::new();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    let leaf = authority.issue(leaf_params(authority.mesh, "west", "vm-b"), &key);
    assert_eq!(authority.bundle().verify(&leaf, &[], WALL), Err(TrustError::Key));
    assert_eq!(authority.bundle().verify(b"junk", &[], WALL), Err(TrustError::Malformed));
    assert_eq!(authority.bundle().verify(&[0x30; 5_000], &[], WALL), Err(TrustError::Malformed));
}

#[test]
fn small_clock_differences_are_forgiven_and_large_ones_named() {
    let authority = Authority::new();
    let leaf = authority.leaf("west", "vm-b", &Key::new());
    let end = WALL + 86_400;
    assert!(authority.bundle().verify(&leaf, &[], end + 299).is_ok());
    assert_eq!(authority.bundle().verify(&leaf, &[], end + 301), Err(TrustError::Expired(301)));
    assert!(authority.bundle().verify(&leaf, &[], WALL - 599).is_ok());
    assert_eq!(authority.bundle().verify(&leaf, &[], WALL - 700), Err(TrustError::NotYet(400)));
}

#[test]
fn a_joiner_anchors_on_the_pinned_root_only() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let leaf = ours.leaf("west", "vm-a", &Key::new());
    let chain: Vec<CertificateDer<'_>> =
        vec![leaf.into(), ours.issuer_der.clone().into(), ours.root.clone().into()];
    let pin = spki_hash(&ours.root).expect("certificate");
    let (bundle, leaf) = TrustBundle::pinned(ours.mesh, &pin, &chain, WALL).expect("pinned");
    assert_eq!(bundle.roots().len(), 1);
    assert_eq!(leaf.name.as_str(), "vm-a");
    let other = spki_hash(&theirs.root).expect("certificate");
    assert!(matches!(TrustBundle::pinned(ours.mesh, &other, &chain, WALL), Err(TrustError::Pin)));
    // The right root beside a leaf that does not chain to it.
    let mut mixed = chain.clone();
    mixed[0] = theirs.issue(leaf_params(ours.mesh, "west", "vm-a"), &Key::new().pair).into();
    assert!(matches!(TrustBundle::pinned(ours.mesh, &pin, &mixed, WALL), Err(TrustError::Chain(_))));
}

/// Remembers nothing and believes everything it is asked.
#[derive(Debug, Default)]
struct Asked(std::sync::atomic::AtomicU32);

impl Verify for Asked {
    fn signature(&self, _: &[u8; 32], _: &[u8], _: &[u8]) -> bool {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        true
    }
}

#[test]
fn a_verifier_put_in_is_asked_and_otherwise_every_check_is_made() {
    let (authority, key, asked) = (Authority::new(), Key::new(), Arc::new(Asked::default()));
    let leaf = authority.leaf("west", "vm-b", &key);
    let plain = authority.bundle();
    let public_key = plain.verify(&leaf, &[], WALL).expect("valid").public_key;
    assert!(plain.signature_holds(&public_key, b"x", &key.sign(b"x")));
    assert!(!plain.signature_holds(&public_key, b"y", &key.sign(b"x")));
    let lent = plain.with_verifier(Arc::clone(&asked) as Arc<dyn Verify>);
    assert!(lent.signature_holds(&public_key, b"y", b""));
    assert_eq!(asked.0.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(lent.verify(b"junk", &[], WALL), Err(TrustError::Malformed));
    assert!(lent.records(b"junk").is_err());
}

#[test]
fn a_good_verdict_counts_for_a_minute_and_never_past_the_end_of_the_leaf() {
    let (authority, key) = (Authority::new(), Key::new());
    let bundle = authority.bundle();
    let leaf = authority.leaf("west", "vm-b", &key);
    let good = bundle.verify(&leaf, &[], WALL).expect("valid");
    let known = recent::key(&leaf, &[]);
    assert_eq!(bundle.recent.get(&known, WALL + 60).as_ref(), Some(&good));
    assert_eq!(bundle.recent.get(&known, WALL + 61), None, "judged anew");
    assert_eq!(bundle.recent.get(&known, WALL - 1), None, "a clock that went back");
    let end = good.not_after;
    assert!(bundle.verify(&leaf, &[], end - 1).is_ok());
    assert_eq!(bundle.recent.get(&known, end + 1), None);
    assert_eq!(bundle.verify(&leaf, &[], end + 301), Err(TrustError::Expired(301)));
}

#[test]
fn a_verdict_is_remembered_for_the_same_bytes_and_the_same_issuers_only() {
    let (authority, key) = (Authority::new(), Key::new());
    let leaf = authority.leaf("west", "vm-b", &key);
    let issuer = CertificateDer::from(authority.issuer_der.clone());
    let bundle = TrustBundle::new(authority.mesh, vec![authority.root.clone()], Vec::new()).expect("bundle");
    assert!(bundle.verify(&leaf, std::slice::from_ref(&issuer), WALL).is_ok());
    assert!(matches!(bundle.verify(&leaf, &[], WALL), Err(TrustError::Chain(_))), "nobody shows its issuer");
    let mut other = leaf.clone();
    *other.last_mut().expect("a signature") ^= 1;
    assert!(matches!(bundle.verify(&other, &[issuer], WALL), Err(TrustError::Chain(_))));
    let (plain, elsewhere) = (authority.bundle(), Authority::new().bundle());
    assert!(plain.verify(&leaf, &[], WALL).is_ok());
    assert!(elsewhere.verify(&leaf, &[], WALL).is_err(), "another bundle has its own memory");
}
