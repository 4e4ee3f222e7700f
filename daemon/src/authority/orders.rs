//! Orders of the operator: new statements, signed with the key that is here.
//!
//! Owns: who signs what, and what is refused before it is signed. Must not know: how statements spread.
//! Driven by: the authority task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use gossamer_core::orders::{Company, ScopeFault, check_scope};
use gossamer_core::statements::NumberError;
use gossamer_wire::frame::Frame;
use gossamer_wire::issuer::IssuerClaims;
use gossamer_wire::limits::MAX_KEPT;
use gossamer_wire::statement::{Change, SignedStatement, Statement};
use gossamer_wire::{GroupName, NodeId, TokenId};

use super::task::Task;
use super::{AuthorityError, KEY_WITHIN, Order, Reply};
use crate::clock;
use crate::identity::{IssuerKey, RootKey, credentials};

/// A node that was asked to show an issuer's key.
pub(super) struct Wanted {
    name: String,
    groups: Vec<GroupName>,
    pub(super) until: Instant,
    reply: Reply<u64>,
}

/// Who signs a statement.
pub(super) enum Signer {
    Root(Box<RootKey>),
    Issuer(Arc<IssuerKey>),
}

impl Signer {
    pub(super) fn id(&self) -> NodeId {
        match self {
            Self::Root(key) => key.id(),
            Self::Issuer(key) => key.id(),
        }
    }

    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        match self {
            Self::Root(key) => key.sign(bytes),
            Self::Issuer(key) => key.sign(bytes),
        }
    }
}

impl Task {
    /// Evicts a node, signed by the root where its key is, else by the issuer of this node.
    pub(super) async fn evict(&mut self, node: NodeId, name: String) -> Result<(), AuthorityError> {
        if node == self.parts.identity.node() {
            return Err(AuthorityError::Itself);
        }
        let mut issuers = self.statements.standing().issuers.values();
        if issuers.any(|issuer| issuer.facts.claims.as_ref().is_some_and(|claims| claims.node == node)) {
            return Err(AuthorityError::HoldsIssuer(name));
        }
        if self.statements.standing().evicted.contains(&node) {
            return Ok(());
        }
        let signer = self.signer().await?;
        self.say(&signer, Change::Evict(node)).await
    }

    /// Lets no issuer admit with a token any more.
    pub(super) async fn revoke_token(&mut self, token: TokenId) -> Result<(), AuthorityError> {
        if self.statements.standing().revoked.contains(&token) {
            return Ok(());
        }
        let signer = self.signer().await?;
        self.say(&signer, Change::RevokeToken(token)).await
    }

    /// Returns the key that signs what issuers may say as well: the root's where it is, for nobody can undo what it says.
    async fn signer(&self) -> Result<Signer, AuthorityError> {
        match (self.root().await, self.parts.live.load().issuer.clone()) {
            (Ok(root), _) => Ok(Signer::Root(Box::new(root))),
            (Err(AuthorityError::NoRoot(_)), Some(issuer)) => Ok(Signer::Issuer(issuer)),
            (Err(AuthorityError::NoRoot(_)), None) => {
                Err(AuthorityError::NoIssuer(credentials::names(&self.parts.live.load().issuers).join(", ")))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Asks a node for the key of an issuer; the rest happens when it shows one.
    pub(super) async fn add_issuer(
        &mut self,
        node: NodeId,
        name: String,
        groups: Vec<GroupName>,
        reply: Reply<u64>,
    ) {
        let allowed = self.root().await.map(drop).and_then(|()| self.check_scope(node, &name, &groups));
        if let Err(error) = allowed {
            drop(reply.send(Err(error)));
            return;
        }
        let wanted = Wanted { name, groups, until: clock::now().mono + KEY_WITHIN, reply };
        if node != self.parts.identity.node() {
            let _ = self.parts.peers.send_frame(node, &Frame::IssuerKeyWanted);
            self.wanted.insert(node, wanted);
            return;
        }
        let statements = self.statements.clone();
        match self.parts.store.aside(move |store| credentials::issuer_key_to_be(store, &statements)).await {
            Ok(key) => {
                self.wanted.insert(node, wanted);
                self.certify(node, key.public()).await;
            }
            Err(error) => drop(wanted.reply.send(Err(error.into()))),
        }
    }

    /// Refuses a scope that would make the issuer useless, or certificates that are out worthless.
    fn check_scope(&self, node: NodeId, name: &str, groups: &[GroupName]) -> Result<(), AuthorityError> {
        let name = name.to_owned();
        let own = node == self.parts.identity.node();
        let known =
            self.parts.index.node(node).and_then(|known| known.view.as_ref().map(|view| view.group.clone()));
        let group = if own { Some(self.parts.identity.group().clone()) } else { known };
        let issuers = self.statements.standing().issuers.values();
        let of_node =
            issuers.filter_map(|issuer| issuer.facts.claims.as_ref()).filter(|claims| claims.node == node);
        check_scope(groups, group.as_ref(), of_node).map_err(|fault| match fault {
            ScopeFault::OwnGroup(group) => AuthorityError::OwnGroup { name, group },
            ScopeFault::Narrower => AuthorityError::Narrower(name),
        })
    }

    /// Makes the owner of a key an issuer, if it was asked for the key.
    pub(super) async fn certify(&mut self, node: NodeId, public_key: [u8; 32]) {
        let Some(Wanted { name, groups, reply, .. }) = self.wanted.remove(&node) else { return };
        let parsed = name.parse().map_err(|_| AuthorityError::NotAnIssuer(name));
        let made = match parsed {
            Ok(name) => self.certify_issuer(public_key, IssuerClaims { node, name, groups }).await,
            Err(error) => Err(error),
        };
        drop(reply.send(made));
    }

    async fn certify_issuer(
        &mut self,
        public_key: [u8; 32],
        claims: IssuerClaims,
    ) -> Result<u64, AuthorityError> {
        let root = self.root().await?;
        let (mesh_name, lifetime) = (self.parts.identity.mesh_name.as_str(), self.parts.lifetimes.issuer);
        let certificate = root
            .issuer(mesh_name, public_key, &claims, lifetime, None)
            .map_err(|error| AuthorityError::Certificate(error.to_string()))?;
        let not_after = gossamer_core::trust::not_after(&certificate).unwrap_or(0);
        self.say(&Signer::Root(Box::new(root)), Change::AddIssuer(certificate)).await?;
        Ok(not_after)
    }

    /// Tells who asked that a node did not show a key in time.
    pub(super) fn give_up_waiting(&mut self) {
        let now = clock::now().mono;
        let (late, waiting) =
            std::mem::take(&mut self.wanted).into_iter().partition(|(_, wanted)| wanted.until <= now);
        self.wanted = waiting;
        for (_, wanted) in BTreeMap::into_iter(late) {
            drop(wanted.reply.send(Err(AuthorityError::Silent(wanted.name))));
        }
    }

    /// Removes an issuer. What it did until now goes on counting, unless its key was stolen.
    pub(super) async fn remove_issuer(
        &mut self,
        node: NodeId,
        name: String,
        stolen: bool,
    ) -> Result<(), AuthorityError> {
        let root = self.root().await?;
        let issuer = self.issuer_of(node, &name)?;
        if self.statements.standing().issuers.len() == 1 {
            return Err(AuthorityError::LastIssuer(name));
        }
        let (mut numbers, mut keep) = (0, Vec::new());
        if !stolen {
            numbers = self.statements.standing().issuers.get(&issuer).map_or(0, |issuer| issuer.used);
            let evicted = &self.statements.standing().evicted;
            let nodes = self.parts.index.nodes().into_iter().map(|node| node.node);
            keep = nodes
                .chain([self.parts.identity.node(), node])
                .filter(|node| !evicted.contains(node))
                .collect();
            keep.sort();
            keep.dedup();
        }
        if keep.len() > MAX_KEPT {
            return Err(AuthorityError::TooMany);
        }
        self.say(&Signer::Root(Box::new(root)), Change::RemoveIssuer { issuer, numbers, keep }).await
    }

    /// Raises the number of statements an issuer may make.
    pub(super) async fn grant(
        &mut self,
        node: NodeId,
        name: String,
        numbers: u64,
    ) -> Result<(), AuthorityError> {
        let root = self.root().await?;
        let author = self.issuer_of(node, &name)?;
        self.say(&Signer::Root(Box::new(root)), Change::Grant { author, numbers }).await
    }

    /// Where the root key is: states the issuer of this node, and gives issuers new certificates from half of their
    /// life on. Returns whether it waits to hear others first.
    pub(super) async fn tend_issuers(&mut self) -> bool {
        let due = self.issuers_due();
        if due.is_empty() || self.root().await.is_err() {
            return false;
        }
        if self.listens_until().is_some() {
            return true;
        }
        for (public_key, claims) in due {
            let name = claims.name.clone();
            match self.certify_issuer(public_key, claims).await {
                Ok(_) => tracing::info!(issuer = %name, "an issuer has a new certificate"),
                Err(error) => tracing::error!(issuer = %name, %error, "an issuer could not be certified"),
            }
        }
        false
    }

    fn issuers_due(&self) -> Vec<([u8; 32], IssuerClaims)> {
        let wall = self.parts.clock.wall();
        let standing = self.statements.standing();
        let lifetime = self.parts.lifetimes.issuer.as_secs();
        let facts = standing.issuers_due(wall, lifetime).map(|issuer| &issuer.facts);
        let mut due: Vec<_> =
            facts.filter_map(|facts| Some((facts.public_key, facts.claims.clone()?))).collect();
        let identity = &self.parts.identity;
        if let Some(own) = &self.parts.live.load().issuer
            && !standing.issuers.contains_key(&own.id())
        {
            let (node, name) = (identity.node(), identity.name().clone());
            due.push((own.public(), IssuerClaims { node, name, groups: own.groups().to_vec() }));
        }
        due
    }

    fn issuer_of(&self, node: NodeId, name: &str) -> Result<NodeId, AuthorityError> {
        let issuers = &self.statements.standing().issuers;
        let holds = |issuer: &&gossamer_core::statements::Issuer| {
            issuer.facts.id == node || issuer.facts.claims.as_ref().is_some_and(|claims| claims.node == node)
        };
        let found = issuers.values().find(holds).map(|issuer| issuer.facts.id);
        found.ok_or_else(|| AuthorityError::NotAnIssuer(name.to_owned()))
    }

    /// Returns the key of the latest root that is here.
    pub(super) async fn root(&self) -> Result<RootKey, AuthorityError> {
        let key = self.root_keys().await?.pop();
        key.ok_or_else(|| AuthorityError::NoRoot(self.parts.store.dir().display().to_string()))
    }

    /// Returns when to look again while others are heard first.
    pub(super) fn listens_until(&self) -> Option<Instant> {
        let me = self.parts.identity.node();
        let knows_others =
            !self.seeds.is_empty() || self.parts.index.nodes().iter().any(|known| known.node != me);
        let is_connected = self.parts.peers.connected() > 0;
        Company { started: self.started, knows_others, is_connected }.listens_until(clock::now().mono)
    }

    /// Carries out an order, or keeps it until others were heard.
    pub(super) async fn order(&mut self, order: Order) {
        if self.listens_until().is_some() {
            return self.waiting.push(order);
        }
        match order {
            Order::Evict { node, name, reply } => drop(reply.send(self.evict(node, name).await)),
            Order::AddIssuer { node, name, groups, reply } => {
                self.add_issuer(node, name, groups, reply).await;
            }
            Order::RemoveIssuer { node, name, stolen, reply } => {
                drop(reply.send(self.remove_issuer(node, name, stolen).await));
            }
            Order::Grant { node, name, numbers, reply } => {
                drop(reply.send(self.grant(node, name, numbers).await));
            }
            Order::RevokeToken { token, reply } => drop(reply.send(self.revoke_token(token).await)),
            Order::AddRoot(reply) => drop(reply.send(self.add_root().await)),
            Order::RetireRoot { root, members, force, reply } => {
                drop(reply.send(self.retire_root(root, members, force).await));
            }
        }
    }

    /// Carries out the orders that waited for others to be heard, in their order.
    pub(super) async fn give_waiting(&mut self) {
        for order in std::mem::take(&mut self.waiting) {
            self.order(order).await;
        }
    }

    /// Signs a change under the author's next number and takes it.
    async fn say(&mut self, signer: &Signer, change: Change) -> Result<(), AuthorityError> {
        let statement = self.signed(signer, self.next_number(signer.id())?, change)?;
        self.take(&[statement], None).await
    }

    pub(super) fn next_number(&self, author: NodeId) -> Result<u64, AuthorityError> {
        let number = self.statements.next_number(author);
        number.map_err(|error: NumberError| AuthorityError::Spent(error.to_string()))
    }

    pub(super) fn signed(
        &self,
        signer: &Signer,
        number: u64,
        change: Change,
    ) -> Result<Vec<u8>, AuthorityError> {
        let statement = Statement { mesh: self.parts.identity.mesh, author: signer.id(), number, change };
        let signed = SignedStatement::build(statement, |bytes| signer.sign(bytes));
        let signed = signed.map_err(|error| AuthorityError::Certificate(error.to_string()))?;
        Ok(signed.bytes().to_vec())
    }
}
