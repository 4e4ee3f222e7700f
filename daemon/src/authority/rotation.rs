//! Roots: added, retired, and their keys taken from this machine and put back.
//!
//! Owns: the order of statements and key files. Must not know: who would be cut off (`core::statements`), how keys are
//! encrypted (`identity::root_keys`). Driven by: the authority task.

use std::sync::Arc;

use gossamer_core::statements::{Dependent, Member, Why};
use gossamer_core::trust::{RootFacts, not_after};
use gossamer_wire::NodeId;
use gossamer_wire::limits::{MAX_KEPT, MAX_ROOTS};
use gossamer_wire::statement::Change;
use zeroize::Zeroizing;

use super::orders::Signer;
use super::task::Task;
use super::{AuthorityError, RootInfo};
use crate::identity::{Credentials, NodeKey, RootKey, root_keys, root_of};
use crate::store::{Store, StoreError};

/// Ids of the roots whose keys were exported from this machine.
const EXPORTED: &str = "exported-roots.json";

impl Task {
    /// Returns the keys of roots that are on this machine, the latest root last.
    pub(super) async fn root_keys(&self) -> Result<Vec<RootKey>, StoreError> {
        let roots = self.statements.standing().roots.clone();
        self.parts.store.aside(move |store| root_keys::read(store, &roots)).await
    }

    /// Adds a root with a new key. The key is on disk before anybody hears of it.
    pub(super) async fn add_root(&mut self) -> Result<NodeId, AuthorityError> {
        let present = Signer::Root(Box::new(self.root().await?));
        let standing = self.statements.standing();
        if standing.roots.len() + standing.retired.len() >= MAX_ROOTS {
            return Err(AuthorityError::TooManyRoots);
        }
        let key = self.parts.store.aside(root_keys::next).await?;
        if standing.roots.iter().any(|root| root.id == key.node()) {
            return Err(AuthorityError::Rotating(key.node()));
        }
        let made = |error: rcgen::Error| AuthorityError::Certificate(error.to_string());
        let certificate = root_of(&key, self.parts.identity.mesh_name.as_str()).map_err(made)?;
        let number = self.next_number(present.id())?;
        let mut statements = vec![self.signed(&present, number, Change::AddRoot(certificate.clone()))?];
        statements.extend(self.issuers_by(&key, &certificate)?);
        self.take(&statements, None).await?;
        tracing::info!(root = %key.node(), "a root was added");
        Ok(key.node())
    }

    /// Makes the statements with which a new root names the issuers of the mesh.
    fn issuers_by(&self, key: &NodeKey, certificate: &[u8]) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let made = |error: rcgen::Error| AuthorityError::Certificate(error.to_string());
        let root = RootKey::read(key.pkcs8(), certificate).map_err(made)?;
        let (mesh_name, lifetime) = (self.parts.identity.mesh_name.as_str(), self.parts.lifetimes.issuer);
        let issuers = self.statements.standing().issuers.values();
        let certificates = issuers
            .filter_map(|issuer| Some((issuer, issuer.facts.claims.as_ref()?)))
            // From the first one's first second on: a certificate of a node that has ended since is judged by its own time.
            .map(|(issuer, claims)| {
                root.issuer(mesh_name, issuer.facts.public_key, claims, lifetime, issuer.since())
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(made)?;
        let signer = Signer::Root(Box::new(root));
        let signed = (0..).zip(certificates);
        signed
            .map(|(number, certificate)| self.signed(&signer, number, Change::AddIssuer(certificate)))
            .collect()
    }

    /// Retires a root that a later one of this machine may retire, and lets go of its key.
    pub(super) async fn retire_root(
        &mut self,
        root: NodeId,
        members: Vec<Member>,
        force: bool,
    ) -> Result<(), AuthorityError> {
        let keys = self.root_keys().await?;
        let standing = self.statements.standing();
        if !standing.roots.iter().any(|known| known.id == root) {
            return Err(AuthorityError::NotARoot(root.to_string()));
        }
        if standing.roots.len() == 1 {
            return Err(AuthorityError::OnlyRoot(root));
        }
        let Some(key) = keys.into_iter().rfind(|key| key.id() != root) else {
            return Err(AuthorityError::NoRoot(self.parts.store.dir().display().to_string()));
        };
        let dependents = standing.dependents(root, self.statements.digest(), members);
        if !dependents.is_empty() && !force {
            return Err(self.depended(root, &dependents));
        }
        let signer = Signer::Root(Box::new(key));
        let keep = self.statements.counting(root);
        if keep.len() > MAX_KEPT {
            return Err(AuthorityError::TooManyStatements(root));
        }
        let change = Change::RetireRoot { root, keep };
        let statement = self.signed(&signer, self.next_number(signer.id())?, change)?;
        let mut tried = self.statements.clone();
        tried.take(std::slice::from_ref(&statement));
        if tried.standing().roots.iter().any(|known| known.id == root) {
            return Err(AuthorityError::NotAfter(root));
        }
        self.take(&[statement], None).await?;
        for dependent in &dependents {
            tracing::warn!(node = %dependent.node, why = ?dependent.why, "cut off by the retirement of a root");
        }
        Ok(())
    }

    fn depended(&self, root: NodeId, dependents: &[Dependent]) -> AuthorityError {
        let line = |dependent: &Dependent| {
            let name = self.parts.index.name_of(dependent.node);
            match dependent.why {
                Why::Unaware => format!("{name} has not said that it knows the others"),
                Why::Certificate => format!("{name} has a certificate of an issuer that no other root names"),
            }
        };
        AuthorityError::Depended { root, list: dependents.iter().map(line).collect() }
    }

    /// Returns the root keys of this machine under a passphrase, and remembers that they left.
    pub(super) async fn export_root(
        &self,
        passphrase: Zeroizing<String>,
    ) -> Result<Zeroizing<String>, AuthorityError> {
        let keys = self.root_keys().await?;
        if keys.is_empty() {
            return Err(AuthorityError::NoRoot(self.parts.store.dir().display().to_string()));
        }
        let export = move |store: &Store| {
            let pem = root_keys::export(&keys, &passphrase)?;
            let mut exported = exported(store)?;
            exported.extend(keys.iter().map(|key| key.id().to_string()));
            exported.dedup();
            store.write_json(EXPORTED, &exported)?;
            Ok::<_, AuthorityError>(pem)
        };
        self.parts.store.aside(export).await
    }

    pub(super) async fn import_root(
        &self,
        pem: Zeroizing<String>,
        passphrase: Zeroizing<String>,
    ) -> Result<Vec<NodeId>, AuthorityError> {
        let roots = self.statements.standing().roots.clone();
        let import = move |store: &Store| root_keys::import(store, &roots, &pem, &passphrase);
        let imported = self.parts.store.aside(import).await?;
        self.note_root_keys().await;
        Ok(imported)
    }

    pub(super) async fn remove_root(&self, force: bool) -> Result<(), AuthorityError> {
        let keys = self.root_keys().await?;
        if keys.is_empty() {
            return Err(AuthorityError::NoRoot(self.parts.store.dir().display().to_string()));
        }
        let remove = move |store: &Store| {
            let exported = exported(store)?;
            if !force && !keys.iter().all(|key| exported.contains(&key.id().to_string())) {
                return Err(AuthorityError::NotExported);
            }
            root_keys::remove(store).map_err(AuthorityError::Store)
        };
        self.parts.store.aside(remove).await?;
        self.note_root_keys().await;
        Ok(())
    }

    pub(super) async fn list_roots(&self) -> Result<Vec<RootInfo>, AuthorityError> {
        let here: Vec<_> = self.root_keys().await?.iter().map(RootKey::id).collect();
        let standing = self.statements.standing();
        let info = |root: &RootFacts, retired| RootInfo {
            id: root.id,
            retired,
            here: here.contains(&root.id),
            not_after: not_after(&root.certificate).unwrap_or(0),
        };
        let retired = standing.retired.iter().map(|root| info(root, true));
        Ok(retired.chain(standing.roots.iter().map(|root| info(root, false))).collect())
    }

    /// Lets go of the keys of roots that were retired.
    pub(super) async fn settle_root_keys(&self) {
        let retired = self.statements.standing().retired.clone();
        if let Err(error) = self.parts.store.aside(move |store| root_keys::settle(store, &retired)).await {
            tracing::error!(%error, "the key of a retired root could not be removed; it is of no use to anybody");
        }
        self.note_root_keys().await;
    }

    /// Says to readers whether a root key lies here.
    async fn note_root_keys(&self) {
        let holds_root_key = self.root_keys().await.is_ok_and(|keys| !keys.is_empty());
        let old = self.parts.live.load_full();
        self.parts.live.store(Arc::new(Credentials { holds_root_key, ..Credentials::clone(&old) }));
    }
}

fn exported(store: &Store) -> Result<Vec<String>, StoreError> {
    Ok(store.read_json(EXPORTED)?.unwrap_or_default())
}
