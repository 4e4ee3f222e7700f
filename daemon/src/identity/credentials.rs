//! What a node shows, believes and issues with, as it is now: it changes while the daemon runs.
//!
//! Owns: how certificates, keys and statements become [`Credentials`] and a trust bundle, and their files. Must not
//! know: when they change. Driven by: `load`, and the authority task, the one writer while the daemon runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use gossamer_wire::join::PeerHint;
use gossamer_wire::{GroupName, NodeId, TokenId};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use gossamer_core::statements::{Issuer, Statements};
use gossamer_core::trust::{Leaf, TrustBundle, is_signed_by, read_issuer};

use super::{
    About, IDENTITY_FILE, ISSUER_CERTIFICATES, ISSUER_KEY, Identity, IssuerKey, NODE_CERTIFICATE, NodeKey,
    STATEMENTS, Seed, write_certificates,
};
use crate::store::{Store, StoreError};

/// What a node shows to others and issues with.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// What its certificate says.
    pub leaf: Arc<Leaf>,
    /// The certificate, DER.
    pub leaf_der: CertificateDer<'static>,
    /// The certificate of the issuer that signed it.
    pub issued_by: Option<CertificateDer<'static>>,
    /// Others of that issuer, signed by other roots, for those who believe only one of them.
    pub by_other_roots: Vec<CertificateDer<'static>>,
    /// The key it admits others with; `None` when it is no issuer.
    pub issuer: Option<Arc<IssuerKey>>,
    /// The issuers of the mesh, as roots stated them.
    pub issuers: Arc<[KnownIssuer]>,
    /// Tokens that admit nobody any more, at no issuer.
    pub revoked: Arc<BTreeSet<TokenId>>,
    /// Roots that count no more, for those who have not heard and ask for a new certificate.
    pub retired_roots: Vec<CertificateDer<'static>>,
    /// Whether the key of a root lies on this machine.
    pub holds_root_key: bool,
}

/// An issuer of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownIssuer {
    /// Hash of its key.
    pub id: NodeId,
    /// The node that holds the key.
    pub node: Option<NodeId>,
    /// That node's name.
    pub name: String,
    /// The key, which signs certificates and tokens.
    pub public_key: [u8; 32],
    /// Groups it may admit to; none means all.
    pub groups: Vec<GroupName>,
    /// First and last second of its newest certificate, since the Unix epoch.
    pub validity: (u64, u64),
}

impl KnownIssuer {
    /// Returns whether it may admit to a group.
    pub fn may_admit_to(&self, group: &GroupName) -> bool {
        self.groups.is_empty() || self.groups.contains(group)
    }
}

/// The credentials as they are at the moment of a look.
pub type Live = Arc<ArcSwap<Credentials>>;

impl Credentials {
    /// Returns those of a loaded identity.
    pub fn of(identity: &Identity) -> Self {
        let issued_by = identity.issuers.first().cloned().map(CertificateDer::from);
        Self {
            leaf: Arc::new(identity.leaf.clone()),
            leaf_der: identity.leaf_der.clone().into(),
            by_other_roots: by_other_roots(issued_by.as_ref(), &identity.statements),
            issued_by,
            retired_roots: retired_roots(&identity.statements),
            holds_root_key: identity.holds_root_key,
            issuer: identity.issuer.clone(),
            issuers: issuers(&identity.statements),
            revoked: Arc::clone(&identity.statements.standing().revoked),
        }
    }

    /// Returns the certificates shown to members.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        let leaf = [self.leaf_der.clone()].into_iter();
        leaf.chain(self.issued_by.clone()).chain(self.by_other_roots.iter().cloned()).collect()
    }
}

/// Most certificates of one issuer that are shown beside the first, and most retired roots: a handshake should stay within
/// its first packets.
const MAX_BY_OTHERS: usize = 2;

/// Returns the latest retired roots.
pub(crate) fn retired_roots(statements: &Statements) -> Vec<CertificateDer<'static>> {
    let retired = statements.standing().retired.iter().rev().take(MAX_BY_OTHERS);
    retired.map(|root| CertificateDer::from(root.certificate.clone())).collect()
}

/// Returns the newest certificate that each other root signed for the issuer of a certificate. Also retired roots did: who
/// was away believes them until it has heard, and can hear from nobody it does not believe.
pub(crate) fn by_other_roots(
    issued_by: Option<&CertificateDer<'_>>,
    statements: &Statements,
) -> Vec<CertificateDer<'static>> {
    let standing = statements.standing();
    let Some(shown) = issued_by else { return Vec::new() };
    let Some(issuer) = read_issuer(shown).ok().and_then(|facts| standing.issuers.get(&facts.id)) else {
        return Vec::new();
    };
    let all: Vec<_> =
        [&issuer.facts.certificate].into_iter().chain(&issuer.older).chain(&issuer.of_retired).collect();
    // The latest root is believed by the most; of the others the one that who was away for longest believes.
    let roots = standing.roots.iter().rev().chain(standing.retired.iter().rev());
    let others = roots.filter(|root| !is_signed_by(shown, &root.public_key));
    let newest = others.filter_map(|root| all.iter().find(|der| is_signed_by(der, &root.public_key)));
    let newest: Vec<_> = newest.map(|der| CertificateDer::from((*der).clone())).collect();
    match &newest[..] {
        [latest, .., earliest] => vec![latest.clone(), earliest.clone()],
        _ => newest,
    }
}

/// Returns the issuers that roots have stated, in the order of their ids.
pub(crate) fn issuers(statements: &Statements) -> Arc<[KnownIssuer]> {
    let known = |(id, issuer): (&NodeId, &Issuer)| {
        let claims = issuer.facts.claims.as_ref();
        KnownIssuer {
            id: *id,
            node: claims.map(|claims| claims.node),
            name: claims.map_or_else(|| id.to_string(), |claims| claims.name.to_string()),
            public_key: issuer.facts.public_key,
            groups: claims.map(|claims| claims.groups.clone()).unwrap_or_default(),
            validity: (issuer.facts.not_before, issuer.facts.not_after),
        }
    };
    statements.standing().issuers.iter().map(known).collect()
}

/// Returns the names of the nodes that hold the issuers' keys, for people.
pub(crate) fn names(issuers: &[KnownIssuer]) -> Vec<String> {
    let mut names: Vec<_> = issuers.iter().map(|issuer| issuer.name.clone()).collect();
    names.sort();
    names
}

/// Makes the trust bundle that follows from the first roots, issuers that came with the own certificate, and statements.
pub(crate) fn trust_of(first: &TrustBundle, came: &[Vec<u8>], statements: &Statements) -> TrustBundle {
    let standing = statements.standing();
    let newest = standing.issuers.values().map(|issuer| issuer.facts.certificate.clone());
    let older = standing.issuers.values().flat_map(|issuer| issuer.older.iter().cloned());
    let mut issuers: Vec<Vec<u8>> = newest.chain(older).collect();
    issuers.extend(came.iter().filter(|der| !issuers.contains(der)).cloned().collect::<Vec<_>>());
    let roots = standing.roots.iter().map(|root| root.certificate.clone()).collect();
    // What no verifier can read is no root in statements either.
    let base = first.clone().with_roots(roots).unwrap_or_else(|_| first.clone());
    base.with_issuers(issuers)
        .with_removed(standing.removed.clone())
        .with_evicted(Arc::clone(&standing.evicted))
}

/// Makes a bundle of everybody who was ever believed, to read the own certificate with.
pub(crate) fn trust_of_ever(first: &TrustBundle, came: &[Vec<u8>], statements: &Statements) -> TrustBundle {
    let standing = statements.standing();
    let roots = standing.roots.iter().chain(&standing.retired).map(|root| root.certificate.clone());
    let base = first.clone().with_roots(roots.collect()).unwrap_or_else(|_| first.clone());
    base.with_issuers(came.to_vec())
}

/// Reads the issuer's key of this node; `None` when there is none, or no certificate for it yet, or it was removed.
///
/// # Errors
/// The file is damaged or others can read it.
pub(crate) fn issuer_key(
    store: &Store,
    statements: &Statements,
    came: &[Vec<u8>],
) -> Result<Option<Arc<IssuerKey>>, StoreError> {
    let Some(pkcs8) = store.read(ISSUER_KEY)?.map(Zeroizing::new) else { return Ok(None) };
    let damaged = |why: String| StoreError::Damaged { path: store.dir().join(ISSUER_KEY), why };
    let key = NodeKey::read(&pkcs8).ok_or_else(|| damaged("it is not an Ed25519 key".to_owned()))?;
    let standing = statements.standing();
    if standing.removed.contains_key(&key.node()) {
        return Ok(None);
    }
    let stated = standing.issuers.get(&key.node()).map(|issuer| issuer.facts.certificate.clone());
    let is_believed = |der: &[u8]| standing.roots.iter().any(|root| is_signed_by(der, &root.public_key));
    let of_key =
        |der: &&Vec<u8>| read_issuer(der).is_ok_and(|facts| facts.id == key.node()) && is_believed(der);
    let Some(certificate) = stated.or_else(|| came.iter().find(of_key).cloned()) else { return Ok(None) };
    let issuer = IssuerKey::read(&pkcs8, &certificate).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(Arc::new(issuer)))
}

/// Returns the node's key of an issuer to be, made and written when there is none or it was removed.
///
/// # Errors
/// The disk refuses, or there is no randomness.
pub(crate) fn issuer_key_to_be(store: &Store, statements: &Statements) -> Result<NodeKey, StoreError> {
    if let Some(key) = store.read(ISSUER_KEY)?.map(Zeroizing::new).and_then(|pkcs8| NodeKey::read(&pkcs8))
        && !statements.standing().removed.contains_key(&key.node())
    {
        return Ok(key);
    }
    let no_randomness = || StoreError::Io {
        path: store.dir().join(ISSUER_KEY),
        error: std::io::Error::other("the system has no randomness for a key"),
    };
    let key = NodeKey::generate().ok_or_else(no_randomness)?;
    store.write(ISSUER_KEY, key.pkcs8())?;
    Ok(key)
}

/// Writes statements durably.
///
/// # Errors
/// The disk refuses; the old file stays.
pub(crate) fn write_statements(store: &Store, statements: &[Vec<u8>]) -> Result<(), StoreError> {
    write_certificates(store, STATEMENTS, statements)
}

/// Writes whom to dial before any card is known.
///
/// # Errors
/// The disk refuses; the old list stays.
pub(crate) fn write_seeds(store: &Store, peers: &[PeerHint]) -> Result<(), StoreError> {
    let Some(about) = store.read_json::<About>(IDENTITY_FILE)? else { return Ok(()) };
    store.write_json(IDENTITY_FILE, &About { seeds: peers.iter().map(Seed::from).collect(), ..about })
}

/// Writes a new certificate of this node with those of the issuers, the one that signed it first.
///
/// # Errors
/// The disk refuses; the old certificate stays.
pub(crate) fn write_leaf(store: &Store, leaf: &[u8], issuers: &[Vec<u8>]) -> Result<(), StoreError> {
    // The issuers first: both certificates verify with the new list.
    write_certificates(store, ISSUER_CERTIFICATES, issuers)?;
    store.write(NODE_CERTIFICATE, leaf)
}
