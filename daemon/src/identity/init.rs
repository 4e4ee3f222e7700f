//! `init`: makes a mesh whose first node this is.
//!
//! Owns: root, issuer and first leaf. Must not know: sockets. Driven by: `cli init`.

use thiserror::Error;

use gossamer_core::trust::ED25519_SPKI_PREFIX;
use gossamer_wire::issuer::IssuerClaims;
use gossamer_wire::statement::{Change, SignedStatement, Statement};
use gossamer_wire::token::Claims;
use gossamer_wire::{GroupName, MeshId, MeshName, NodeName, RegionName, ZoneName};

use super::certificate::{IssuerKey, LeafSubject, Lifetimes, RootKey, make_root};
use super::{About, Files, ISSUER_KEY, Identity, NodeKey, ROOT_KEY, load, save};
use crate::store::{Store, StoreError};

/// What the mesh and its first node are called.
#[derive(Clone, Debug)]
pub struct InitRequest {
    /// Display name of the mesh.
    pub mesh_name: MeshName,
    /// Group of the node.
    pub group: GroupName,
    /// Name of the node.
    pub node: NodeName,
    /// Its small failure domain.
    pub zone: Option<ZoneName>,
    /// Its large failure domain.
    pub region: Option<RegionName>,
    /// How long the first certificates last.
    pub lifetimes: Lifetimes,
}

/// Why no mesh was made. The state directory is as it was.
#[derive(Debug, Error)]
pub enum InitError {
    /// The operator's fault: the directory belongs to a node already.
    #[error(
        "{dir} already holds node {name} of group {group}; start it with `gossamer run`, or choose another --state-dir"
    )]
    Exists {
        /// The state directory.
        dir: String,
        /// The node there.
        name: NodeName,
        /// Its group.
        group: GroupName,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system has no randomness, or a bug.
    #[error("the certificates could not be made: {0}")]
    Certificate(String),
}

/// Makes a mesh, or returns the identity that is there already when it is the same node.
///
/// # Errors
/// See [`InitError`]; a crash in between leaves a directory without an identity, which the next call fills.
pub fn init(store: &Store, request: &InitRequest) -> Result<Identity, InitError> {
    if let Some(identity) = load(store)? {
        return match identity.name() == &request.node && identity.group() == &request.group {
            true => Ok(identity),
            false => Err(InitError::Exists {
                dir: store.dir().display().to_string(),
                name: identity.name().clone(),
                group: identity.group().clone(),
            }),
        };
    }
    let made = |error: rcgen::Error| InitError::Certificate(error.to_string());
    let name = request.mesh_name.as_str();
    let (root_key, root) = make_root(name).map_err(made)?;
    let mesh = MeshId::of_spki(&[&ED25519_SPKI_PREFIX[..], &root_key.public()].concat());
    let new_key = || {
        NodeKey::generate().ok_or_else(|| InitError::Certificate("the system has no randomness".to_owned()))
    };
    let (key, issuer_key) = (new_key()?, new_key()?);
    let claims = IssuerClaims { node: key.node(), name: request.node.clone(), groups: Vec::new() };
    let signer = RootKey::read(root_key.pkcs8(), &root).map_err(made)?;
    let issuer =
        signer.issuer(name, issuer_key.public(), &claims, request.lifetimes.issuer, None).map_err(made)?;
    // Made here and not at the first start: a directory that is copied before it must not say two things under one number.
    let change = Change::AddIssuer(issuer.clone());
    let statement = Statement { mesh, author: signer.id(), number: 0, change };
    let statement = SignedStatement::build(statement, |bytes| signer.sign(bytes))
        .map_err(|error| InitError::Certificate(error.to_string()))?;
    let subject =
        LeafSubject { mesh, group: &request.group, name: &request.node, claims: &Claims::default() };
    let leaf = IssuerKey::read(issuer_key.pkcs8(), &issuer)
        .and_then(|signer| signer.issue(key.public(), subject, request.lifetimes.leaf_for(1)))
        .map_err(made)?;

    store.write(ROOT_KEY, root_key.pkcs8())?;
    store.write(ISSUER_KEY, issuer_key.pkcs8())?;
    save(
        store,
        &Files {
            about: About {
                version: 1,
                mesh: mesh.to_string(),
                mesh_name: request.mesh_name.clone(),
                zone: request.zone.clone(),
                region: request.region.clone(),
                seeds: Vec::new(),
                by_lane: false,
            },
            key: &key,
            leaf: &leaf,
            roots: &[root],
            issuers: &[issuer],
            statements: &[statement.bytes().to_vec()],
        },
    )?;
    load(store)?.ok_or_else(|| InitError::Certificate("the identity did not reach the disk".to_owned()))
}
