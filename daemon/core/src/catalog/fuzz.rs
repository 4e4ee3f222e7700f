//! The body of the fuzz target for adverts.
//!
//! Owns: a tiny catalog with one other node whose key is known here. Must not know: the fuzzer.
//! Driven by: `tests/fuzz` and the replay of its corpus.

use std::time::Instant;

use gossamer_wire::advert::{Advert, AdvertId, Card, Header, Kind, SIGNATURE_BYTES, Slot, Version};
use gossamer_wire::frame::{AdvertCopy, Frame};
use gossamer_wire::token::Claims;
use gossamer_wire::{GroupName, MeshId, NodeId, NodeName};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::receive::Content;
use super::{Catalog, CatalogConfig, Imports, Input};
use crate::time::Now;
use crate::trust::{Leaf, Sign, TrustBundle, node_id};

const MESH: MeshId = MeshId::from_bytes([1; 16]);
const GIVER: NodeId = NodeId::from_bytes([2; 16]);

struct Key(Ed25519KeyPair);

impl Sign for Key {
    fn sign(&self, bytes: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(bytes).as_ref().try_into().unwrap_or([0; SIGNATURE_BYTES])
    }
}

/// Feeds arbitrary bytes to a catalog: as an advert of a peer, and as the body of adverts that are signed well,
/// so that the decoders behind the signature are reached. Then reads everything. Must not panic.
#[expect(clippy::disallowed_methods, reason = "any moment will do, and a fuzzer has none to give")]
pub fn fuzz(bytes: &[u8]) {
    let now = Now { mono: Instant::now(), wall: 1_800_000_000 };
    let (Some(own), Some(other)) = (key(1), key(2)) else { return };
    let Some((mut catalog, node)) = tiny(own, &other, now) else { return };
    let give = |catalog: &mut Catalog, bytes: Vec<u8>| {
        let copies = vec![AdvertCopy { age: 0, bytes: bytes.into() }];
        let frame = Frame::Adverts { copies, forward: vec![GIVER] };
        catalog.handle(Input::Frame { from: GIVER, frame }, now);
    };
    catalog.handle(Input::Connected(GIVER), now);
    give(&mut catalog, bytes.to_vec());
    for kind in [Kind::Card, Kind::Records, Kind::Head] {
        let id = AdvertId { slot: Slot { node, kind, k: 0 }, version: Version { epoch: 1, seq: 2 } };
        if let Ok(advert) = Advert::build(Header { mesh: MESH, id }, bytes, |signed| other.sign(signed)) {
            give(&mut catalog, advert.bytes().to_vec());
        }
    }
    while catalog.next_output().is_some() {}
    for service in catalog.services() {
        catalog.service(service, now);
    }
    catalog.nodes(now);
    catalog.export(now);
}

fn key(seed: u8) -> Option<Key> {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).ok().map(Key)
}

/// Makes a catalog that holds the card of `other`; no certificate can be verified in it.
fn tiny(own: Key, other: &Key, now: Now) -> Option<(Catalog, NodeId)> {
    let group: GroupName = "fuzz".parse().ok()?;
    let name: NodeName = "other".parse().ok()?;
    let public_key = |key: &Key| <[u8; 32]>::try_from(key.0.public_key().as_ref()).ok();
    let other_key = public_key(other)?;
    let node = node_id(&other_key);
    let config = CatalogConfig {
        node: node_id(&public_key(&own)?),
        group: group.clone(),
        zone: None,
        region: None,
        imports: Imports::default(),
        deny: crate::reach::Deny::default(),
        direct_up_to: 1,
        first_seq: 0,
    };
    let trust = TrustBundle::new(MESH, Vec::new(), Vec::new()).ok()?;
    let mut catalog =
        Catalog::new(config, trust, Box::new(own), SmallRng::seed_from_u64(1), 1, Vec::new(), now);
    let card = Card {
        leaf: Vec::new(),
        addresses: Vec::new(),
        zone: None,
        region: None,
        labels: Vec::new(),
        relays: Vec::new(),
        protocol: (1, 1),
        capabilities: 0,
        lanes: Vec::new(),
    };
    let id = AdvertId { slot: Slot { node, kind: Kind::Card, k: 0 }, version: Version { epoch: 1, seq: 1 } };
    let advert =
        Advert::build(Header { mesh: MESH, id }, &card.encode().ok()?, |bytes| other.sign(bytes)).ok()?;
    let leaf = Leaf {
        node,
        name,
        group,
        claims: Claims::default(),
        public_key: other_key,
        not_after: now.wall + 60,
        skew: 6,
        issuer: None,
    };
    catalog.store.put(advert, Content::Card(Box::new((card, leaf))), 0, now);
    catalog.settle(node, now);
    Some((catalog, node))
}
