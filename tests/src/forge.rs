//! Certificates made with the real keys of a mesh that must not be believed.
//!
//! Owns: one certificate for each class of fault, and a good one made in the same way; chains of those who pose as an
//! issuer. Must not know: how the daemon judges. Driven by: the checks of wrong certificates and of fake issuers.

use std::path::Path;
use std::{fmt, fs};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use gossamer_core::trust::{ISSUER_OID, node_id};
use gossamer_wire::issuer::IssuerClaims;
use gossamer_wire::{MeshId, NodeId};

use crate::quic::{Credentials, identity_of, leaf_params, private};

/// Names in a certificate of some 50 kB, as long as a client can be made to show one.
const MANY: usize = 700;

/// The keys of a mesh.
pub struct Forge {
    mesh: MeshId,
    mesh_name: String,
    node: Credentials,
    root: Issuer<'static, KeyPair>,
    root_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    issuer_der: CertificateDer<'static>,
    issuer_key: Vec<u8>,
}

impl fmt::Debug for Forge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forge").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl Forge {
    /// Takes the keys of a node that holds the root's and an issuer's.
    ///
    /// # Errors
    /// The directory holds none.
    pub fn of(state_dir: &Path) -> Result<Self> {
        let identity = identity_of(state_dir)?;
        let key = |name: &str| -> Result<Vec<u8>> { fs::read(state_dir.join(name)).context(name.to_owned()) };
        let root_der = identity.trust.roots().first().context("a root")?.clone();
        let issuer_der = CertificateDer::from(identity.issuers.first().context("an issuer")?.clone());
        let issuer_key = key("issuer.key")?;
        let shown = [CertificateDer::from(identity.leaf_der.clone()), issuer_der.clone(), root_der.clone()];
        Ok(Self {
            mesh: identity.mesh,
            mesh_name: identity.mesh_name.to_string(),
            node: Credentials::Chain(shown.to_vec(), identity.key.tls()),
            root: Issuer::from_ca_cert_der(&root_der, pair(&key("root.key")?)?)?,
            root_der,
            issuer: Issuer::from_ca_cert_der(&issuer_der, pair(&issuer_key)?)?,
            issuer_der,
            issuer_key,
        })
    }

    /// Makes a certificate that is as it should be, or is changed.
    ///
    /// # Errors
    /// No randomness.
    pub fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Result<Credentials> {
        self.leaf_for(&KeyPair::generate_for(&PKCS_ED25519)?, change)
    }

    /// Makes one for each class of fault that the real keys can sign.
    ///
    /// # Errors
    /// No randomness.
    pub fn wrong(&self) -> Result<Vec<(&'static str, Credentials)>> {
        let now = OffsetDateTime::now_utc();
        let names = |count: usize| -> Result<Vec<SanType>> {
            let uri = |number| format!("spiffe://{}/group/default/node/n{number}", self.mesh);
            (0..count).map(|number| Ok(SanType::URI(uri(number).try_into()?))).collect()
        };
        let (two, many) = (names(2)?, names(MANY)?);
        let foreign = SanType::URI(
            format!("spiffe://{}/group/default/node/x", MeshId::from_bytes([9; 16])).try_into()?,
        );
        let ecdsa = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(vec![
            (
                "ended",
                self.leaf(|leaf| {
                    (leaf.not_before, leaf.not_after) = (now - Duration::days(2), now - Duration::days(1))
                })?,
            ),
            (
                "not yet valid",
                self.leaf(|leaf| {
                    (leaf.not_before, leaf.not_after) = (now + Duration::days(1), now + Duration::days(2))
                })?,
            ),
            (
                "for signing code",
                self.leaf(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning])?,
            ),
            ("two names", self.leaf(|leaf| leaf.subject_alt_names = two)?),
            ("no name", self.leaf(|leaf| leaf.subject_alt_names = Vec::new())?),
            ("named of another mesh", self.leaf(|leaf| leaf.subject_alt_names = vec![foreign])?),
            ("50 kB of names", self.leaf(|leaf| leaf.subject_alt_names = many)?),
            ("an ECDSA key", self.leaf_for(&ecdsa, |_| {})?),
            (
                "the issuer's own",
                Credentials::Chain(vec![self.issuer_der.clone()], private(&pair(&self.issuer_key)?)),
            ),
            ("signed by a node", self.signed_by_a_node()?),
            ("below a second issuer", self.below_an_issuer()?),
            ("outside the scope", self.outside_the_scope()?),
        ])
    }

    /// Returns what the node itself shows to joiners: good, for it is an issuer.
    pub const fn genuine(&self) -> &Credentials {
        &self.node
    }

    /// Makes what somebody who is no issuer of the mesh could show to joiners, and says for which uses of a token it is
    /// tried: what only a token of one use sees through is said of one, all else of one that any issuer may redeem.
    ///
    /// # Errors
    /// No randomness, or `member` shows nothing.
    pub fn fakes(&self, member: &Credentials) -> Result<Vec<(&'static str, u32, Credentials)>> {
        let Credentials::Chain(member, member_key) = member else { anyhow::bail!("a member shows a chain") };
        let Credentials::Chain(genuine, _) = &self.node else { anyhow::bail!("a node shows a chain") };
        let fresh = || KeyPair::generate_for(&PKCS_ED25519);
        let now = OffsetDateTime::now_utc();
        let (other_root, same_name, key) =
            (root("other root"), root(&format!("{} root", self.mesh_name)), fresh()?);
        let other_der = other_root.self_signed(&key)?.der().clone();
        let other = Issuer::new(other_root, fresh()?);
        let same_der = same_name.self_signed(&key)?.der().clone();
        let same = Issuer::new(same_name, key);
        let mut pinned = self.issuer_below(&same, same_der.clone(), |_| {})?;
        let Credentials::Chain(chain, _) = &mut pinned else { anyhow::bail!("a chain") };
        chain.push(self.root_der.clone());
        let ended = |issuer: &mut CertificateParams| {
            (issuer.not_before, issuer.not_after) = (now - Duration::days(2), now - Duration::days(1));
        };
        let member = [member.clone(), vec![self.root_der.clone()]].concat();
        Ok(vec![
            ("below another root", 2, self.issuer_below(&other, other_der, |_| {})?),
            ("self-signed", 2, Credentials::self_signed(self.mesh)?),
            ("a member", 2, Credentials::Chain(member, member_key.clone_key())),
            ("below a root of the same name", 2, self.issuer_below(&same, same_der, |_| {})?),
            ("with the mesh's root beside it", 2, pinned),
            ("the genuine chain without its key", 2, Credentials::Chain(genuine.clone(), private(&fresh()?))),
            (
                "an issuer made by an issuer",
                2,
                self.issuer_below(&self.issuer, self.root_der.clone(), |_| {})?,
            ),
            ("an issuer that has ended", 2, self.issuer_below(&self.root, self.root_der.clone(), ended)?),
            ("another issuer, for one use", 1, self.issuer_below(&self.root, self.root_der.clone(), |_| {})?),
        ])
    }

    /// Makes an issuer that holds its own key below an authority, and what it shows.
    fn issuer_below(
        &self,
        authority_above: &Issuer<'_, KeyPair>,
        top: CertificateDer<'static>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Credentials> {
        let (issuer_key, key) =
            (KeyPair::generate_for(&PKCS_ED25519)?, KeyPair::generate_for(&PKCS_ED25519)?);
        let node = node_id(key.public_key_raw().try_into()?);
        let claims = IssuerClaims { node, name: "stranger".parse()?, groups: Vec::new() };
        let mut params = authority();
        params.custom_extensions = vec![CustomExtension::from_oid_content(ISSUER_OID, claims.encode()?)];
        change(&mut params);
        let issuer_der = params.signed_by(&issuer_key, authority_above)?.der().clone();
        let leaf = leaf_params(self.mesh)?.signed_by(&key, &Issuer::new(params, issuer_key))?;
        Ok(Credentials::Chain(vec![leaf.der().clone(), issuer_der, top], private(&key)))
    }

    /// Makes a certificate for the owner of a key (PKCS#8) that ends in so many seconds.
    ///
    /// # Errors
    /// The key is not Ed25519.
    pub fn ending(&self, pkcs8: &[u8], seconds: i64) -> Result<Credentials> {
        let now = OffsetDateTime::now_utc();
        self.leaf_for(&pair(pkcs8)?, |leaf| {
            (leaf.not_before, leaf.not_after) = (now, now + Duration::seconds(seconds));
        })
    }

    fn leaf_for(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Result<Credentials> {
        let mut params = leaf_params(self.mesh)?;
        change(&mut params);
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(Credentials::Chain(vec![leaf.der().clone(), self.issuer_der.clone()], private(key)))
    }

    /// A node signs for an accomplice as if it were an issuer.
    fn signed_by_a_node(&self) -> Result<Credentials> {
        let (key, accomplice) =
            (KeyPair::generate_for(&PKCS_ED25519)?, KeyPair::generate_for(&PKCS_ED25519)?);
        let node = leaf_params(self.mesh)?.signed_by(&key, &self.issuer)?;
        let signer = Issuer::new(leaf_params(self.mesh)?, key);
        let leaf = leaf_params(self.mesh)?.signed_by(&accomplice, &signer)?;
        let chain = vec![leaf.der().clone(), node.der().clone(), self.issuer_der.clone()];
        Ok(Credentials::Chain(chain, private(&accomplice)))
    }

    /// An issuer makes another issuer.
    fn below_an_issuer(&self) -> Result<Credentials> {
        let (key, node) = (KeyPair::generate_for(&PKCS_ED25519)?, KeyPair::generate_for(&PKCS_ED25519)?);
        let params = authority();
        let second = params.signed_by(&key, &self.issuer)?;
        let leaf = leaf_params(self.mesh)?.signed_by(&node, &Issuer::new(params, key))?;
        let chain = vec![leaf.der().clone(), second.der().clone(), self.issuer_der.clone()];
        Ok(Credentials::Chain(chain, private(&node)))
    }

    /// An issuer for one group, which a root has made, certifies a node of another.
    fn outside_the_scope(&self) -> Result<Credentials> {
        let (key, node) = (KeyPair::generate_for(&PKCS_ED25519)?, KeyPair::generate_for(&PKCS_ED25519)?);
        let mut params = authority();
        let claims = IssuerClaims {
            node: NodeId::from_bytes([7; 16]),
            name: "scoped".parse()?,
            groups: vec!["elsewhere".parse()?],
        };
        params.custom_extensions = vec![CustomExtension::from_oid_content(ISSUER_OID, claims.encode()?)];
        let scoped = params.signed_by(&key, &self.root)?;
        let leaf = leaf_params(self.mesh)?.signed_by(&node, &Issuer::new(params, key))?;
        Ok(Credentials::Chain(vec![leaf.der().clone(), scoped.der().clone()], private(&node)))
    }
}

fn pair(pkcs8: &[u8]) -> Result<KeyPair> {
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.to_vec()), &PKCS_ED25519)?)
}

fn root(name: &str) -> CertificateParams {
    let mut params = authority();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}
