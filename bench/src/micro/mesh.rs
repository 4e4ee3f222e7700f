//! A mesh to measure with: one root, nodes with certificates, an empty catalog.
//!
//! Owns: keys and certificates made on the spot. Must not know: what is measured. Driven by: `micro`.

use std::time::Instant;

use anyhow::{Context as _, Result};
use gossamer_core::catalog::{Catalog, CatalogConfig, DIRECT_UP_TO, Imports, Input};
use gossamer_core::time::Now;
use gossamer_core::trust::{Sign, TrustBundle, node_id};
use gossamer_wire::advert::{Advert, AdvertId, Card, Head, Header, Kind, SIGNATURE_BYTES, Slot, Version};
use gossamer_wire::frame::{AdvertCopy, Frame};
use gossamer_wire::{MeshId, NodeId};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SanType,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use time::{Duration, OffsetDateTime};

/// The mesh all of this belongs to.
pub(crate) const MESH: MeshId = MeshId::from_bytes([1; 16]);

/// The moment of everything, seconds since the Unix epoch; certificates are made around it.
pub(crate) const WALL: u64 = 1_800_000_000;

/// Who gives the adverts.
const GIVER: NodeId = NodeId::from_bytes([2; 16]);

/// A root and the trust in it.
pub(super) struct Mesh {
    root: Issuer<'static, KeyPair>,
    pub(super) trust: TrustBundle,
}

/// A node with its key and certificate.
pub(super) struct Node {
    signer: Signer,
    pub(super) public_key: [u8; 32],
    pub(super) leaf: Vec<u8>,
    id: NodeId,
}

struct Signer(Ed25519KeyPair);

impl Sign for Signer {
    fn sign(&self, bytes: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(bytes).as_ref().try_into().expect("Ed25519 signatures have 64 bytes")
    }
}

impl Mesh {
    pub(super) fn new() -> Result<Self> {
        let mut params = valid()?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let root = params.self_signed(&key)?.der().to_vec();
        let trust = TrustBundle::new(MESH, vec![root], Vec::new())?;
        Ok(Self { root: Issuer::new(params, key), trust })
    }

    /// Makes a node with a key and a leaf of its own.
    pub(super) fn node(&self, number: usize) -> Result<Node> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = valid()?;
        let uri = format!("spiffe://{MESH}/group/west/node/vm-{number}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.root)?.der().to_vec();
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key.serialize_der());
        let pair = pair.ok().context("the key is no Ed25519 key")?;
        let public_key: [u8; 32] = pair.public_key().as_ref().try_into()?;
        Ok(Node { signer: Signer(pair), public_key, leaf, id: node_id(&public_key) })
    }

    /// Makes an empty catalog with a connection to the giver.
    pub(super) fn catalog(&self) -> Result<Catalog> {
        let own = self.node(9_999)?;
        let config = CatalogConfig {
            node: own.id,
            group: "west".parse()?,
            zone: None,
            region: None,
            imports: Imports::default(),
            deny: gossamer_core::reach::Deny::default(),
            direct_up_to: DIRECT_UP_TO,
            first_seq: 0,
        };
        let rng = SmallRng::seed_from_u64(1);
        let signer = Box::new(own.signer);
        let mut catalog = Catalog::new(config, self.trust.clone(), signer, rng, 1, Vec::new(), now());
        catalog.handle(Input::Connected(GIVER), now());
        Ok(catalog)
    }
}

impl Node {
    /// Builds and signs an advert with this body.
    pub(super) fn advert(&self, kind: Kind, body: &[u8]) -> Result<Advert> {
        let slot = Slot { node: self.id, kind, k: 0 };
        let id = AdvertId { slot, version: Version { epoch: 1, seq: 1 } };
        Ok(Advert::build(Header { mesh: MESH, id }, body, |bytes| self.signer.sign(bytes))?)
    }

    pub(super) fn card(&self) -> Result<Advert> {
        let card = Card {
            leaf: self.leaf.clone(),
            addresses: vec!["192.0.2.1:4677".parse()?],
            zone: None,
            region: None,
            labels: Vec::new(),
            relays: Vec::new(),
            protocol: (1, 1),
            capabilities: 0,
            lanes: Vec::new(),
        };
        self.advert(Kind::Card, &card.encode()?)
    }

    pub(super) fn head(&self) -> Result<Advert> {
        let head = Head { n: 1, lease_seconds: 3_600, statement_digest: [0; 16] };
        self.advert(Kind::Head, &head.encode()?)
    }
}

/// Gives an advert to the catalog as a peer does, and takes what comes out.
pub(super) fn give(catalog: &mut Catalog, advert: &Advert) {
    let copies = vec![AdvertCopy { age: 0, bytes: advert.shared_bytes() }];
    let frame = Frame::Adverts { copies, forward: Vec::new() };
    catalog.handle(Input::Frame { from: GIVER, frame }, now());
    while catalog.next_output().is_some() {}
}

#[expect(clippy::disallowed_methods, reason = "the catalog is told the real time, as the daemon tells it")]
fn now() -> Now {
    Now { mono: Instant::now(), wall: WALL }
}

fn valid() -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let wall = OffsetDateTime::from_unix_timestamp(WALL.try_into()?)?;
    params.not_before = wall - Duration::HOUR;
    params.not_after = wall + Duration::DAY;
    Ok(params)
}
