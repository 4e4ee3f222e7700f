//! Who this node is: keys, certificates, trust bundle, and how they are made and kept.
//!
//! Owns: the identity files of the state directory. Must not know: QUIC streams, membership.
//! Driven by: `cli` (init, join), `app` (load), the issuer task (tokens, admissions), the authority task (statements,
//! renewal).

mod certificate;
pub(crate) mod credentials;
mod init;
pub mod issuer;
mod join;
mod key;
mod ledger;
mod renew;
pub(crate) mod root_keys;

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use gossamer_core::statements::Statements;
use gossamer_core::trust::{Leaf, TrustBundle};
use gossamer_wire::join::PeerHint;
use gossamer_wire::{GroupName, LaneAddress, MeshId, MeshName, NodeId, NodeName, RegionName, ZoneName};

use crate::clock;
use crate::entropy::Entropy;
use crate::store::{Store, StoreError};

pub use certificate::{IssuerKey, Lifetimes};
pub(crate) use certificate::{RootKey, root_of};
pub use credentials::{Credentials, KnownIssuer, Live};
pub use init::{InitError, InitRequest, init};
pub use join::{JoinError, JoinRequest, Shown, join};
pub use key::NodeKey;
pub(crate) use renew::{renew, renew_here};

/// Present as soon as a state directory holds an identity; written last.
pub const IDENTITY_FILE: &str = "identity.json";

const NODE_KEY: &str = "node.key";
const NODE_CERTIFICATE: &str = "node.crt";
const ROOT_KEY: &str = "root.key";
/// The key of a root that is to replace the present one.
const NEXT_ROOT_KEY: &str = "root.next.key";
const ROOT_CERTIFICATES: &str = "roots.json";
const ISSUER_KEY: &str = "issuer.key";
const ISSUER_CERTIFICATES: &str = "issuers.json";
const STATEMENTS: &str = "statements.json";
const EPOCH: &str = "epoch";
const RESET_KEY: &str = "reset.key";

/// What the identity file holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct About {
    version: u32,
    mesh: String,
    mesh_name: MeshName,
    zone: Option<ZoneName>,
    region: Option<RegionName>,
    /// Members to dial before any card is known, from the join reply.
    seeds: Vec<Seed>,
    /// Whether UDP did not answer when this machine joined.
    #[serde(default)]
    by_lane: bool,
}

/// A member to dial first.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seed {
    node: String,
    addresses: Vec<SocketAddr>,
    #[serde(default)]
    lanes: Vec<LaneAddress>,
}

impl From<&PeerHint> for Seed {
    fn from(peer: &PeerHint) -> Self {
        let (addresses, lanes) = (peer.addresses.clone(), peer.lanes.clone());
        Self { node: peer.node.to_string(), addresses, lanes }
    }
}

/// A loaded identity.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The mesh.
    pub mesh: MeshId,
    /// Its name for display.
    pub mesh_name: MeshName,
    /// What this node's own certificate says; it may have ended.
    pub leaf: Leaf,
    /// The certificate, DER.
    pub leaf_der: Vec<u8>,
    /// The certificates of issuers that came with it, DER; the first one signed it.
    pub issuers: Vec<Vec<u8>>,
    /// The statements that were known at the last stop.
    pub statements: Statements,
    /// This node's small failure domain.
    pub zone: Option<ZoneName>,
    /// Its large failure domain.
    pub region: Option<RegionName>,
    /// Roots and issuers, with what the statements change.
    pub trust: TrustBundle,
    /// The node's key.
    pub key: Arc<NodeKey>,
    /// The issuer's key, on nodes that admit others.
    pub issuer: Option<Arc<IssuerKey>>,
    /// Whether the root key lies on this machine.
    pub holds_root_key: bool,
    /// Members to dial before any card is known.
    pub seeds: Vec<PeerHint>,
    /// Whether lanes need not wait for UDP with those: it did not answer when this machine joined.
    pub by_lane: bool,
}

impl Identity {
    /// Returns the node's id.
    pub const fn node(&self) -> NodeId {
        self.leaf.node
    }

    /// Returns the node's name.
    pub const fn name(&self) -> &NodeName {
        &self.leaf.name
    }

    /// Returns the node's group.
    pub const fn group(&self) -> &GroupName {
        &self.leaf.group
    }
}

/// Loads the identity of a state directory; `None` when there is none.
///
/// # Errors
/// Loose permissions or damaged files; nothing is changed.
pub fn load(store: &Store) -> Result<Option<Identity>, StoreError> {
    let Some(about) = store.read_json::<About>(IDENTITY_FILE)? else { return Ok(None) };
    let damaged = |file: &str, why: String| StoreError::Damaged { path: store.dir().join(file), why };
    let mesh: MeshId = about
        .mesh
        .parse()
        .map_err(|error: gossamer_wire::IdError| damaged(IDENTITY_FILE, error.to_string()))?;
    let roots = read_certificates(store, ROOT_CERTIFICATES)?;
    let issuers = read_certificates(store, ISSUER_CERTIFICATES)?;
    let mut statements =
        Statements::new(mesh, &roots).map_err(|error| damaged(ROOT_CERTIFICATES, error.to_string()))?;
    let taken = statements.take(&stored_statements(store)?);
    if let Some(fault) = taken.refused.first() {
        return Err(damaged(STATEMENTS, fault.to_string()));
    }
    let first = TrustBundle::new(mesh, roots, issuers.clone())
        .map_err(|error| damaged(ROOT_CERTIFICATES, error.to_string()))?;
    let trust = credentials::trust_of(&first, &issuers, &statements);
    let key = NodeKey::read(&required(store, NODE_KEY)?)
        .ok_or_else(|| damaged(NODE_KEY, "it is not an Ed25519 key".to_owned()))?;
    let leaf_der = required(store, NODE_CERTIFICATE)?;
    // Whether others still believe it is their concern: one that has ended is renewed by the daemon, and of an evicted node
    // or one whose root was retired the daemon says what is wrong.
    let leaf = credentials::trust_of_ever(&first, &issuers, &statements)
        .verify_at_end(&leaf_der, &[], clock::wall())
        .map_err(|error| damaged(NODE_CERTIFICATE, error.to_string()))?;
    if leaf.public_key != key.public() {
        return Err(damaged(NODE_CERTIFICATE, "it belongs to another key".to_owned()));
    }
    let issuer = credentials::issuer_key(store, &statements, &issuers)?;
    let holds_root_key = !root_keys::read(store, &statements.standing().roots)?.is_empty();
    let seeds = about.seeds.iter().filter_map(|seed| {
        let (addresses, lanes) = (seed.addresses.clone(), seed.lanes.clone());
        Some(PeerHint { node: seed.node.parse().ok()?, addresses, lanes })
    });
    Ok(Some(Identity {
        mesh,
        mesh_name: about.mesh_name,
        leaf,
        leaf_der,
        zone: about.zone,
        region: about.region,
        trust,
        issuers,
        statements,
        key: Arc::new(key),
        issuer,
        holds_root_key,
        seeds: seeds.collect(),
        by_lane: about.by_lane,
    }))
}

/// Returns the statements that were known at the last stop, byte for byte.
///
/// # Errors
/// The file is damaged.
pub fn stored_statements(store: &Store) -> Result<Vec<Vec<u8>>, StoreError> {
    read_certificates(store, STATEMENTS)
}

/// Returns the epoch of a new start: one more than any before, on disk before it is used (design section 6).
///
/// # Errors
/// The disk refuses, or the file is damaged; the daemon must not start.
pub fn next_epoch(store: &Store) -> Result<u64, StoreError> {
    raise_epoch(store, 0)
}

/// Raises the epoch above `at_least` as well: somebody holds adverts of this node from a later start, so this
/// state directory was restored from an older copy.
///
/// # Errors
/// As [`next_epoch`].
pub fn raise_epoch(store: &Store, at_least: u64) -> Result<u64, StoreError> {
    let stored = store.read_json::<u64>(EPOCH)?.unwrap_or(0);
    let epoch = stored.max(at_least) + 1;
    store.write_json(EPOCH, &epoch)?;
    Ok(epoch)
}

/// Returns the key of stateless resets, the same for the life of the state directory, so that a restarted
/// daemon resets its old connections in one round trip.
///
/// # Errors
/// The disk refuses.
pub fn reset_key(store: &Store, entropy: &Entropy) -> Result<[u8; 64], StoreError> {
    if let Some(Ok(key)) = store.read(RESET_KEY)?.map(TryInto::try_into) {
        return Ok(key);
    }
    let mut key = [0; 64];
    rand::Rng::fill_bytes(&mut entropy.rng("reset key"), &mut key);
    store.write(RESET_KEY, &key)?;
    Ok(key)
}

/// Writes everything of an identity; the identity file last, so that a crash leaves either all or none.
fn save(store: &Store, files: &Files<'_>) -> Result<(), StoreError> {
    store.write(NODE_KEY, files.key.pkcs8())?;
    store.write(NODE_CERTIFICATE, files.leaf)?;
    write_certificates(store, ROOT_CERTIFICATES, files.roots)?;
    write_certificates(store, ISSUER_CERTIFICATES, files.issuers)?;
    write_certificates(store, STATEMENTS, files.statements)?;
    store.write_json(IDENTITY_FILE, &files.about)
}

/// The parts of an identity as they are stored.
struct Files<'a> {
    about: About,
    key: &'a NodeKey,
    leaf: &'a [u8],
    roots: &'a [Vec<u8>],
    issuers: &'a [Vec<u8>],
    statements: &'a [Vec<u8>],
}

fn required(store: &Store, name: &str) -> Result<Vec<u8>, StoreError> {
    store
        .read(name)?
        .ok_or_else(|| StoreError::Damaged { path: store.dir().join(name), why: "it is missing".to_owned() })
}

fn read_certificates(store: &Store, name: &str) -> Result<Vec<Vec<u8>>, StoreError> {
    let texts: Vec<String> = store.read_json(name)?.unwrap_or_default();
    let decode = |text: &String| data_encoding::BASE64.decode(text.as_bytes());
    texts
        .iter()
        .map(decode)
        .collect::<Result<_, _>>()
        .map_err(|error| StoreError::Damaged { path: store.dir().join(name), why: error.to_string() })
}

fn write_certificates(store: &Store, name: &str, ders: &[Vec<u8>]) -> Result<(), StoreError> {
    let texts: Vec<String> = ders.iter().map(|der| data_encoding::BASE64.encode(der)).collect();
    store.write_json(name, &texts)
}

#[cfg(test)]
mod tests;
