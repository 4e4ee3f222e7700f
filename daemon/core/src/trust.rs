//! Who belongs to the mesh: certificates judged against the trust bundle.
//!
//! Owns: the one check of a leaf certificate, for TLS handshakes and for cards alike, and Ed25519 signatures; what
//! evictions, removed issuers and the scope of an issuer mean for it.
//! Must not know: TLS sessions, files, how time is read. Driven by: the TLS verifiers, the catalog, the joiner.
//!
//! X.509 name constraints cannot hold URI names (rustls-webpki refuses every URI under any constraint), so
//! scope and identity are checked here, after the chain.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ring::signature::{ED25519, UnparsedPublicKey};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use thiserror::Error;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use gossamer_wire::advert::Fragment;
use gossamer_wire::limits::{MAX_CERTIFICATE_BYTES, MAX_LEAF_BYTES};
use gossamer_wire::token::Claims;
use gossamer_wire::{DecodeError, GroupName, MeshId, NodeId, NodeName, ServiceRecord, Subject};

mod issuer;
mod recent;

pub use issuer::{ISSUER_OID, IssuerFacts, RootFacts, is_signed_by, public_key_of, read_issuer, read_root};
use recent::Recent;

/// Object identifier of the claims extension: private, not critical (design section 4).
pub const CLAIMS_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 61_999, 1, 1];
const CLAIMS_OID_TEXT: &str = "1.3.6.1.4.1.61999.1.1";

/// Most clock difference between two nodes, seconds; short-lived leaves allow a tenth of their lifetime.
const MAX_SKEW_SECONDS: u64 = 300;

/// Signs bytes with the node's key. Ed25519: the same bytes always give the same signature.
pub trait Sign: Send {
    /// Returns the 64-byte signature.
    fn sign(&self, bytes: &[u8]) -> [u8; 64];
}

impl<T: Sign + Sync> Sign for Arc<T> {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        T::sign(self, bytes)
    }
}

/// Why a certificate is not one of a member. The peer's fault unless the clocks differ.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TrustError {
    /// It is not a certificate, or longer than any of ours.
    #[error("the certificate does not parse")]
    Malformed,
    /// No path to a root of this mesh.
    #[error("the certificate was not issued in this mesh: {0}")]
    Chain(String),
    /// Past its end.
    #[error("the certificate ended {0} s ago; the node must renew it, or a clock is wrong")]
    Expired(u64),
    /// Before its start.
    #[error("the certificate begins in {0} s: a clock is wrong")]
    NotYet(u64),
    /// The name in it is not `spiffe://<mesh id>/group/<group>/node/<name>` of this mesh.
    #[error("the certificate names no node of this mesh")]
    Name,
    /// The claims in it do not decode.
    #[error("the claims in the certificate do not decode")]
    Claims,
    /// The certificate is not an authority's with path length 0, so nobody can be admitted with it.
    #[error("the certificate is not one of an issuer: it must be of an authority with path length 0")]
    NotIssuer,
    /// The certificate is not one that an authority's key made for itself.
    #[error("the certificate is not one of a root: it must be of an authority and signed with its own key")]
    NotRoot,
    /// The issuer was removed, and this node is none of those whose certificates were kept.
    #[error(
        "the issuer of the certificate was removed from the mesh; the node must join again, at another issuer"
    )]
    IssuerRemoved,
    /// The issuer may not admit to this group.
    #[error("the issuer of the certificate may not admit to the group {0}; join at an issuer of that group")]
    Scope(GroupName),
    /// The node is out, for ever.
    #[error("the node was evicted from the mesh; with a new key and a token it may join as a new one")]
    Evicted,
    /// The key is not Ed25519.
    #[error("the certificate's key is not Ed25519")]
    Key,
    /// No certificate was shown.
    #[error("no certificate was shown")]
    None,
    /// The root at the other end is not the one the token pins.
    #[error("the other end does not belong to the mesh of this token")]
    Pin,
}

/// What a verified leaf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The node: the hash of its key.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its group.
    pub group: GroupName,
    /// What it may do.
    pub claims: Claims,
    /// Its public key, which signs its adverts.
    pub public_key: [u8; 32],
    /// Seconds since the Unix epoch of its end.
    pub not_after: u64,
    /// Seconds by which clocks may differ when its end is judged.
    pub skew: u64,
    /// The issuer that signed it; `None` where a root did.
    pub issuer: Option<NodeId>,
}

impl Leaf {
    /// Returns who it is for rules of access.
    pub const fn subject(&self) -> Subject<'_> {
        Subject {
            group: &self.group,
            node: Some(self.node),
            name: Some(&self.name),
            labels: Some(&self.claims.labels),
        }
    }
}

/// Who does the expensive part of a judgement. The daemon's is the default of each method: every check is made
/// anew. A simulator of a thousand nodes gives the same bytes to a thousand catalogs in one process, so it puts
/// in one that makes each distinct check once and remembers the verdict; nothing else has a reason to.
pub trait Verify: fmt::Debug + Send + Sync {
    /// Returns whether `signature` is the key's over `bytes`.
    fn signature(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
        signature_holds(public_key, bytes, signature)
    }

    /// Reads the records in the body of a fragment. A simulator lets all its catalogs share one copy.
    ///
    /// # Errors
    /// The owner's fault: the body does not decode.
    fn records(&self, body: &[u8]) -> Result<Vec<Arc<ServiceRecord>>, DecodeError> {
        Ok(Fragment::decode(body)?.records()?.into_iter().map(Arc::new).collect())
    }
}

/// Makes every check anew.
#[derive(Debug)]
struct Anew;

impl Verify for Anew {}

/// What an extended key usage must allow (RFC 5280 section 4.2.1.12): both sides of a handshake, if it is there.
struct BothSides;

impl ExtendedKeyUsageValidator for BothSides {
    fn validate(&self, ids: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let ids: Vec<_> = ids.collect::<Result<_, _>>()?;
        let allows = |wanted: &KeyPurposeId<'_>| ids.is_empty() || ids.contains(wanted);
        match [CLIENT_AUTH, SERVER_AUTH].iter().all(allows) {
            true => Ok(()),
            false => Err(webpki::Error::RequiredEkuNotFoundContext(webpki::RequiredEkuNotFoundContext {
                required: KeyUsage::server_auth(),
                present: ids.iter().map(KeyPurposeId::to_decoded_oid).collect(),
            })),
        }
    }
}

/// `id-kp-clientAuth` and `id-kp-serverAuth`.
const CLIENT_AUTH: KeyPurposeId<'static> = KeyPurposeId::new(&[43, 6, 1, 5, 5, 7, 3, 2]);
const SERVER_AUTH: KeyPurposeId<'static> = KeyPurposeId::new(&[43, 6, 1, 5, 5, 7, 3, 1]);

/// Roots and issuers of a mesh.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    mesh: MeshId,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    issuers: Vec<CertificateDer<'static>>,
    /// The same issuers, read; one that cannot be read admits nobody.
    known: Arc<[IssuerFacts]>,
    removed: Arc<BTreeMap<NodeId, BTreeSet<NodeId>>>,
    evicted: Arc<BTreeSet<NodeId>>,
    verifier: Arc<dyn Verify>,
    recent: Arc<Recent>,
}

impl TrustBundle {
    /// Makes a bundle of DER certificates.
    ///
    /// # Errors
    /// The state directory's fault: a root does not parse.
    pub fn new(mesh: MeshId, roots: Vec<Vec<u8>>, issuers: Vec<Vec<u8>>) -> Result<Self, TrustError> {
        let roots: Vec<_> = roots.into_iter().map(CertificateDer::from).collect();
        Ok(Self {
            mesh,
            anchors: anchors_of(&roots)?,
            known: known_of(&issuers, &roots),
            roots,
            removed: Arc::default(),
            evicted: Arc::default(),
            issuers: issuers.into_iter().map(CertificateDer::from).collect(),
            verifier: Arc::new(Anew),
            recent: Arc::default(),
        })
    }

    /// Lets another do the checks; see [`Verify`].
    #[must_use]
    pub fn with_verifier(self, verifier: Arc<dyn Verify>) -> Self {
        Self { verifier, ..self }
    }

    /// Takes other roots, DER. Verdicts are forgotten.
    ///
    /// # Errors
    /// A root does not parse.
    pub fn with_roots(self, roots: Vec<Vec<u8>>) -> Result<Self, TrustError> {
        let roots: Vec<_> = roots.into_iter().map(CertificateDer::from).collect();
        let issuers: Vec<_> = self.issuers.iter().map(|der| der.to_vec()).collect();
        Ok(Self { anchors: anchors_of(&roots)?, roots, ..self }.with_issuers(issuers))
    }

    /// Takes other certificates of issuers, DER. Verdicts are forgotten.
    #[must_use]
    pub fn with_issuers(self, issuers: Vec<Vec<u8>>) -> Self {
        Self {
            known: known_of(&issuers, &self.roots),
            issuers: issuers.into_iter().map(CertificateDer::from).collect(),
            recent: Arc::default(),
            ..self
        }
    }

    /// Lets issuers count no more: each with the only nodes whose leaves of it still do. Verdicts are forgotten.
    #[must_use]
    pub fn with_removed(self, removed: BTreeMap<NodeId, BTreeSet<NodeId>>) -> Self {
        Self { removed: Arc::new(removed), recent: Arc::default(), ..self }
    }

    /// Takes the complete set of evicted nodes. Verdicts are forgotten.
    #[must_use]
    pub fn with_evicted(self, evicted: Arc<BTreeSet<NodeId>>) -> Self {
        Self { evicted, recent: Arc::default(), ..self }
    }

    /// Returns the mesh it stands for.
    pub const fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// Returns the latest root whose key signed a certificate of an issuer.
    pub fn root_of(&self, issuer: NodeId) -> Option<&CertificateDer<'static>> {
        let signed = |key: &[u8; 32]| {
            let mut of_issuer = self.known.iter().filter(|facts| facts.id == issuer);
            of_issuer.any(|facts| is_signed_by(&facts.certificate, key))
        };
        self.roots.iter().rev().find(|root| public_key_of(root).is_ok_and(|key| signed(&key)))
    }

    /// Returns the root certificates.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Returns the issuer certificates.
    pub fn issuers(&self) -> &[CertificateDer<'static>] {
        &self.issuers
    }

    /// Returns whether a node is out, for ever.
    pub fn is_evicted(&self, node: NodeId) -> bool {
        self.evicted.contains(&node)
    }

    /// Judges a leaf: chain to a root, validity with skew, one SPIFFE name of this mesh, Ed25519 key, claims, the
    /// scope of its issuer and whether that was removed, eviction. `shown` are issuer certificates the peer sent
    /// along. `wall` is seconds since the Unix epoch. A good verdict is remembered for a minute, at most until the
    /// leaf ends.
    ///
    /// # Errors
    /// The first check that fails; nothing is changed.
    pub fn verify(&self, leaf: &[u8], shown: &[CertificateDer<'_>], wall: u64) -> Result<Leaf, TrustError> {
        self.unless_evicted(self.verify_certificate(leaf, shown, wall)?)
    }

    /// Judges a leaf like [`TrustBundle::verify`], but one that has ended as of its last second: renewal with an
    /// ended certificate. One that has not begun is refused.
    ///
    /// # Errors
    /// The first check that fails; nothing is changed.
    pub fn verify_at_end(
        &self,
        leaf: &[u8],
        shown: &[CertificateDer<'_>],
        wall: u64,
    ) -> Result<Leaf, TrustError> {
        match self.verify_certificate(leaf, shown, wall) {
            Err(TrustError::Expired(ago)) => self.verify_certificate(leaf, shown, wall.saturating_sub(ago)),
            verdict => verdict,
        }
        .and_then(|leaf| self.unless_evicted(leaf))
    }

    /// Judges a leaf like [`TrustBundle::verify`], of an evicted node as well: the catalog stores what evicted
    /// nodes said and serves none of it, so that every node stores the same.
    ///
    /// # Errors
    /// The first check that fails; nothing is changed.
    pub fn verify_certificate(
        &self,
        leaf: &[u8],
        shown: &[CertificateDer<'_>],
        wall: u64,
    ) -> Result<Leaf, TrustError> {
        // Issuers the bundle has anyway add nothing: a handshake shows them, a card does not.
        let others: Vec<_> = shown.iter().filter(|der| !self.issuers.contains(der)).collect();
        let key = recent::key(leaf, &others);
        if let Some(known) = self.recent.get(&key, wall) {
            return Ok(known);
        }
        let judged = self.judge(leaf, &others, wall)?;
        self.recent.put(key, wall, judged.clone());
        Ok(judged)
    }

    /// Returns whether `signature` is the key's over `bytes`.
    pub fn signature_holds(&self, public_key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
        self.verifier.signature(public_key, bytes, signature)
    }

    /// Reads the records in the body of a fragment.
    ///
    /// # Errors
    /// The owner's fault: the body does not decode.
    pub fn records(&self, body: &[u8]) -> Result<Vec<Arc<ServiceRecord>>, DecodeError> {
        self.verifier.records(body)
    }

    fn unless_evicted(&self, leaf: Leaf) -> Result<Leaf, TrustError> {
        if self.is_evicted(leaf.node) { Err(TrustError::Evicted) } else { Ok(leaf) }
    }

    fn judge(&self, leaf: &[u8], shown: &[&CertificateDer<'_>], wall: u64) -> Result<Leaf, TrustError> {
        if leaf.len() > MAX_LEAF_BYTES || shown.iter().any(|der| der.len() > MAX_CERTIFICATE_BYTES) {
            return Err(TrustError::Malformed);
        }
        let (read, at) = read_leaf(leaf, self.mesh, wall)?;
        let der = CertificateDer::from(leaf);
        let end_entity = EndEntityCert::try_from(&der).map_err(|_| TrustError::Malformed)?;
        // A root is shown as well, to joiners; it is no issuer and needs no path.
        let lent: Vec<_> = shown.iter().filter_map(|der| read_issuer(der).ok()).collect();
        let mut issuers: Vec<_> = self.known.iter().chain(&lent).collect();
        // Paths are tried in this order: of several certificates of one issuer the newest that a root signed counts.
        issuers.sort_by(|one, other| other.age().cmp(&one.age()));
        let ders: Vec<_> = issuers.iter().map(|issuer| issuer.der()).collect();
        let path = end_entity
            .verify_for_usage(
                &[webpki::ring::ED25519],
                &self.anchors,
                &ders,
                UnixTime::since_unix_epoch(std::time::Duration::from_secs(at)),
                BothSides,
                None,
                None,
            )
            .map_err(|error| TrustError::Chain(error.to_string()))?;
        let signers: Vec<_> = path.intermediate_certificates().map(|signer| signer.der()).collect();
        let [signer] = &signers[..] else {
            // What a root signed itself is as good as the root, and an issuer cannot make another issuer.
            return if signers.is_empty() { Ok(read) } else { Err(chain_of(signers.len())) };
        };
        let signer = issuers.into_iter().find(|issuer| issuer.der() == *signer);
        let signer = signer.ok_or_else(|| chain_of(1))?;
        self.judge_issuer(signer, &read)?;
        Ok(Leaf { issuer: Some(signer.id), ..read })
    }

    /// Judges whether the issuer of the certificate that leads to a root may say what the leaf says. What the
    /// bundle holds of the same issuer that is newer must allow it as well: a narrowed scope is not widened again
    /// by the older certificate. Alone that proves nothing, for a joiner's bundle holds what the other end showed.
    fn judge_issuer(&self, signer: &IssuerFacts, leaf: &Leaf) -> Result<(), TrustError> {
        if self.removed.get(&signer.id).is_some_and(|keep| !keep.contains(&leaf.node)) {
            return Err(TrustError::IssuerRemoved);
        }
        let is_newer = |issuer: &&IssuerFacts| issuer.id == signer.id && issuer.age() > signer.age();
        let mut judges = self.known.iter().filter(is_newer).chain([signer]);
        match judges.all(|issuer| issuer.admits_to(&leaf.group)) {
            true => Ok(()),
            false => Err(TrustError::Scope(leaf.group.clone())),
        }
    }

    /// Builds the bundle a joiner may trust from the chain an issuer showed: only the certificate whose SPKI
    /// hash is the token's pin is a root, and the leaf must chain to it.
    ///
    /// # Errors
    /// [`TrustError::Pin`] when the pinned root is not in the chain, or any fault of the leaf.
    pub fn pinned(
        mesh: MeshId,
        pin: &[u8; 32],
        chain: &[CertificateDer<'_>],
        wall: u64,
    ) -> Result<(Self, Leaf), TrustError> {
        let (leaf, rest) = chain.split_first().ok_or(TrustError::None)?;
        let is_pinned = |der: &&CertificateDer<'_>| spki_hash(der).is_ok_and(|hash| hash == *pin);
        let root = rest.iter().find(is_pinned).ok_or(TrustError::Pin)?;
        let issuers = rest.iter().filter(|der| *der != root).map(|der| der.to_vec()).collect();
        let bundle = Self::new(mesh, vec![root.to_vec()], issuers)?;
        let leaf = bundle.verify(leaf, &[], wall)?;
        Ok((bundle, leaf))
    }
}

/// Judges the chain of who claims to be an issuer: only the certificate whose SPKI hash is the pin is a root, the leaf is
/// signed by an issuer below it, and that issuer's certificate names the node of the leaf as the holder of its key. So
/// no other member can pass for an issuer. Returns that issuer.
///
/// # Errors
/// [`TrustError::Pin`] when the pinned root is not in the chain or the node is no issuer, or any fault of the leaf.
pub fn pinned_issuer(
    mesh: MeshId,
    pin: &[u8; 32],
    chain: &[CertificateDer<'_>],
    wall: u64,
) -> Result<IssuerFacts, TrustError> {
    let (bundle, leaf) = TrustBundle::pinned(mesh, pin, chain, wall)?;
    let held = |issuer: &IssuerFacts| issuer.claims.as_ref().is_some_and(|claims| claims.node == leaf.node);
    let signed = |issuer: &IssuerFacts| {
        let alone = bundle.clone().with_issuers(vec![issuer.certificate.clone()]);
        alone.verify(&chain[0], &[], wall).is_ok()
    };
    let mut issuers = chain.iter().filter_map(|der| read_issuer(der).ok());
    issuers.find(|issuer| held(issuer) && signed(issuer)).ok_or(TrustError::Pin)
}

/// Reads those of the certificates that a root signed: others say nothing about the scope of an issuer, whose key they
/// may well name.
fn known_of(issuers: &[Vec<u8>], roots: &[CertificateDer<'_>]) -> Arc<[IssuerFacts]> {
    let keys: Vec<_> = roots.iter().filter_map(|root| public_key_of(root).ok()).collect();
    let is_signed = |der: &&Vec<u8>| keys.iter().any(|key| is_signed_by(der, key));
    issuers.iter().filter(is_signed).filter_map(|der| read_issuer(der).ok()).collect()
}

fn anchors_of(roots: &[CertificateDer<'static>]) -> Result<Vec<TrustAnchor<'static>>, TrustError> {
    let anchor = |root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned());
    roots.iter().map(anchor).collect::<Result<_, _>>().map_err(|_| TrustError::Malformed)
}

fn chain_of(issuers: usize) -> TrustError {
    TrustError::Chain(format!("{issuers} certificates between it and a root, where one issuer's may be"))
}

/// Returns whether `signature` is the key's over `bytes`.
pub fn signature_holds(public_key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(bytes, signature).is_ok()
}

/// Returns SHA-256 of the SubjectPublicKeyInfo of a certificate.
///
/// # Errors
/// It is not a certificate.
pub fn spki_hash(der: &[u8]) -> Result<[u8; 32], TrustError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| TrustError::Malformed)?;
    Ok(Sha256::digest(certificate.public_key().raw).into())
}

/// Returns the end of a certificate's validity, seconds since the Unix epoch; `None` when it does not parse.
pub fn not_after(der: &[u8]) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    certificate.validity().not_after.timestamp().try_into().ok()
}

/// Returns the first and the last second of a certificate, since the Unix epoch; `None` when it does not parse.
pub fn validity_of(der: &[u8]) -> Option<(u64, u64)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(validity(&certificate))
}

/// Returns the node id of an Ed25519 public key.
pub fn node_id(public_key: &[u8; 32]) -> NodeId {
    NodeId::of_spki(&[&ED25519_SPKI_PREFIX[..], public_key].concat())
}

/// DER of a SubjectPublicKeyInfo up to the key (RFC 8410 section 4).
pub const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Reads a leaf without its chain, and the time at which the chain is to be checked.
fn read_leaf(der: &[u8], mesh: MeshId, wall: u64) -> Result<(Leaf, u64), TrustError> {
    let certificate = whole(der)?;
    let spki = certificate.public_key().raw;
    let public_key = ed25519_key(spki)?;
    let (group, name) = spiffe_name(&certificate, mesh)?;
    let claims = match extension(&certificate, CLAIMS_OID_TEXT) {
        Some(content) => Claims::decode(content).map_err(|_| TrustError::Claims)?,
        None => Claims::default(),
    };
    let (start, end) = validity(&certificate);
    let skew = MAX_SKEW_SECONDS.min(end.saturating_sub(start) / 10);
    if wall > end + skew {
        return Err(TrustError::Expired(wall - end));
    }
    if wall + skew < start {
        return Err(TrustError::NotYet(start - wall));
    }
    let node = NodeId::of_spki(spki);
    let leaf = Leaf { node, name, group, claims, public_key, not_after: end, skew, issuer: None };
    Ok((leaf, wall.clamp(start, end)))
}

/// Reads a certificate behind which nothing follows.
fn whole(der: &[u8]) -> Result<X509Certificate<'_>, TrustError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(TrustError::Malformed),
    }
}

fn ed25519_key(spki: &[u8]) -> Result<[u8; 32], TrustError> {
    spki.strip_prefix(&ED25519_SPKI_PREFIX).and_then(|key| key.try_into().ok()).ok_or(TrustError::Key)
}

fn extension<'a>(certificate: &'a X509Certificate<'_>, oid: &str) -> Option<&'a [u8]> {
    let mut extensions = certificate.extensions().iter();
    extensions.find(|extension| extension.oid.to_id_string() == oid).map(|extension| extension.value)
}

/// Returns the first and the last second of a certificate, since the Unix epoch.
fn validity(certificate: &X509Certificate<'_>) -> (u64, u64) {
    let second = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = certificate.validity();
    (second(validity.not_before.timestamp()), second(validity.not_after.timestamp()))
}

/// Writes the one name of a leaf, as the verifier reads it.
pub fn spiffe_id(mesh: MeshId, group: &GroupName, name: &NodeName) -> String {
    format!("spiffe://{mesh}/group/{group}/node/{name}")
}

/// Reads the one name of a leaf, `spiffe://<mesh id>/group/<group>/node/<name>`.
fn spiffe_name(certificate: &X509Certificate<'_>, mesh: MeshId) -> Result<(GroupName, NodeName), TrustError> {
    let names = certificate.subject_alternative_name().ok().flatten().ok_or(TrustError::Name)?;
    let [GeneralName::URI(uri)] = names.value.general_names[..] else { return Err(TrustError::Name) };
    let path = uri.strip_prefix(&format!("spiffe://{mesh}/group/")).ok_or(TrustError::Name)?;
    let (group, name) = path.split_once("/node/").ok_or(TrustError::Name)?;
    let parsed = group.parse().and_then(|group| name.parse().map(|name| (group, name)));
    parsed.map_err(|_| TrustError::Name)
}

#[cfg(test)]
pub(crate) mod tests;
