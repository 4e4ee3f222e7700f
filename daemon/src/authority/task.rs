//! The one writer of statements, credentials and trust: takes commands, writes first, then lets act.
//!
//! Owns: the order of effects of a change. Must not know: what a set of statements means (`core::statements`).
//! Driven by: its queue, and time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};

use gossamer_core::renewal::Renewal;
use gossamer_core::statements::{MAX_WRONG, Statements};
use gossamer_core::trust::{Sign as _, signature_holds};
use gossamer_wire::NodeId;
use gossamer_wire::frame::{Frame, issuer_key_proof};
use gossamer_wire::join::PeerHint;

use super::orders::Wanted;
use super::{AuthorityError, Command, IssuerInfo, Known, Order, Parts, Queue};
use crate::events::Event;
use crate::identity::{Credentials, credentials};
use crate::store::Store;
use crate::supervise::Stage;
use crate::transport::ToMembership;
use crate::{catalog, clock};

pub(super) struct Task {
    pub(super) stage: Stage,
    pub(super) parts: Parts,
    pub(super) statements: Statements,
    /// Certificates of issuers that came with the own certificate; the first one signed it.
    pub(super) came: Vec<Vec<u8>>,
    /// Nodes that were asked to show an issuer's key.
    pub(super) wanted: BTreeMap<NodeId, Wanted>,
    /// Orders that wait until others were heard; as many as the local API serves at once.
    pub(super) waiting: Vec<Order>,
    pub(super) renewal: Renewal,
    /// Why the last try to renew came to nothing.
    pub(super) not_renewed: Option<String>,
    pub(super) started: Instant,
    /// Members to ask when no card is known.
    pub(super) seeds: Vec<PeerHint>,
    pub(super) rng: StdRng,
    pub(super) own: mpsc::Sender<Command>,
    commands: mpsc::Receiver<Command>,
    known: watch::Sender<Arc<Known>>,
}

impl Task {
    pub(super) fn new(stage: Stage, queue: Queue, parts: Parts) -> Self {
        let Queue { commands, own, known } = queue;
        Self {
            stage,
            statements: parts.identity.statements.clone(),
            came: parts.identity.issuers.clone(),
            wanted: BTreeMap::new(),
            waiting: Vec::new(),
            renewal: Renewal::default(),
            not_renewed: None,
            started: clock::now().mono,
            seeds: parts.identity.seeds.clone(),
            rng: parts.entropy.rng("authority"),
            own,
            commands,
            known,
            parts,
        }
    }

    pub(super) async fn run(mut self) {
        // The run before may have been killed between a retirement and this.
        self.settle_root_keys().await;
        self.tell_others().await;
        self.tend().await;
        loop {
            let deadline = self.next_deadline();
            let command = tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => Some(command),
                    None => return,
                },
                () = clock::sleep_until(Some(deadline)) => None,
            };
            if let Some(command) = command {
                self.handle(command).await;
            }
            // Also between commands: a peer that never stops talking must not delay a renewal.
            if self.next_deadline() <= clock::now().mono {
                self.tend().await;
            }
        }
    }

    /// Does what time asks for.
    async fn tend(&mut self) {
        self.give_up_waiting();
        self.give_waiting().await;
        let waits = self.tend_issuers().await;
        self.tend_certificate().await;
        if waits {
            self.renewal.look_soon(self.parts.clock.now());
        }
    }

    fn next_deadline(&self) -> Instant {
        let wanted = self.wanted.values().map(|wanted| wanted.until);
        let now = clock::now().mono;
        let waiting = (!self.waiting.is_empty()).then(|| self.listens_until().unwrap_or(now));
        wanted.chain([self.renewal.look_at(self.parts.clock.now())]).chain(waiting).min().unwrap_or(now)
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Learn { from, statements, done } => {
                self.learn(from, statements).await;
                if let Some(done) = done {
                    let _ = done.send(());
                }
            }
            Command::Frame { from, frame: Frame::IssuerKeyWanted } => self.show_key(from).await,
            Command::Frame { from, frame: Frame::IssuerKey { public_key, proof } } => {
                let bytes = issuer_key_proof(self.parts.identity.mesh, from);
                if signature_holds(&public_key, &bytes, &proof) {
                    self.certify(from, public_key).await;
                }
            }
            Command::Frame { .. } => {}
            Command::Order(order) => self.order(order).await,
            Command::List(reply) => drop(reply.send(self.list())),
            Command::ExportRoot { passphrase, reply } => {
                drop(reply.send(self.export_root(passphrase).await));
            }
            Command::ImportRoot { pem, passphrase, reply } => {
                drop(reply.send(self.import_root(pem, passphrase).await));
            }
            Command::RemoveRoot { force, reply } => drop(reply.send(self.remove_root(force).await)),
            Command::ListRoots(reply) => drop(reply.send(self.list_roots().await)),
            Command::Renewed(outcome) => self.renewed(outcome).await,
        }
    }

    /// Takes statements of a peer. What is refused is counted: it may be the fault of who made it.
    async fn learn(&mut self, from: NodeId, statements: Vec<Vec<u8>>) {
        if let Err(error) = self.take(&statements, Some(from)).await {
            tracing::error!(%error, "statements could not be written; they do not act");
        }
    }

    /// Takes statements: written first, then they act here, then peers hear of them.
    pub(super) async fn take(
        &mut self,
        statements: &[Vec<u8>],
        from: Option<NodeId>,
    ) -> Result<(), AuthorityError> {
        let mut next = self.statements.clone();
        let taken = next.take(statements);
        if let (Some(from), MAX_WRONG..) = (from, taken.wrong) {
            self.parts.peers.refuse(from);
        }
        for fault in &taken.refused {
            tracing::debug!(peer = ?from, %fault, "statement refused");
            self.parts.metrics.statement_refused();
        }
        if !taken.changed {
            return Ok(());
        }
        let known = Arc::new(Known::of(&next));
        let to_write = Arc::clone(&known);
        let write = move |store: &Store| credentials::write_statements(store, &to_write.statements);
        self.parts.store.aside(write).await?;
        let before = std::mem::replace(&mut self.statements, next);
        self.apply().await;
        if before.standing().roots != self.statements.standing().roots {
            self.settle_root_keys().await;
        }
        self.known.send_replace(known);
        self.parts.peers.statements(taken.new).await;
        self.tell_others().await;
        self.log_changes(&before);
        Ok(())
    }

    /// Lets handshakes and the issuer see what follows from the statements.
    pub(super) async fn apply(&mut self) {
        let base = &self.parts.identity.trust;
        self.parts.trust.store(Arc::new(credentials::trust_of(base, &self.came, &self.statements)));
        let (statements, came) = (self.statements.clone(), self.came.clone());
        let issuer = self
            .parts
            .store
            .aside(move |store| credentials::issuer_key(store, &statements, &came))
            .await
            .unwrap_or_else(|error| {
                tracing::error!(%error, "the issuer's key cannot be read; this node admits nobody");
                None
            });
        let issuers = credentials::issuers(&self.statements);
        let revoked = Arc::clone(&self.statements.standing().revoked);
        let old = self.parts.live.load_full();
        self.renewal.look();
        let by_other_roots = credentials::by_other_roots(old.issued_by.as_ref(), &self.statements);
        let retired_roots = credentials::retired_roots(&self.statements);
        let old = Credentials::clone(&old);
        let new = Credentials { issuer, issuers, revoked, by_other_roots, retired_roots, ..old };
        self.parts.live.store(Arc::new(new));
    }

    async fn tell_others(&self) {
        let evicted = Arc::clone(&self.statements.standing().evicted);
        let _ = self.parts.membership.send(ToMembership::Evicted(evicted)).await;
        let standing = catalog::Command::Standing {
            trust: Box::new(self.parts.trust.load().as_ref().clone()),
            evicted: self.statements.standing().evicted.as_ref().clone(),
            digest: self.statements.digest(),
        };
        let _ = self.parts.catalog.send(standing).await;
    }

    /// Shows a peer the public half of this node's issuer key, made when there is none. It is of no use without a
    /// statement of the root.
    async fn show_key(&self, peer: NodeId) {
        let statements = self.statements.clone();
        match self.parts.store.aside(move |store| credentials::issuer_key_to_be(store, &statements)).await {
            Ok(key) => {
                let proof = key.sign(&issuer_key_proof(self.parts.identity.mesh, self.parts.identity.node()));
                let frame = Frame::IssuerKey { public_key: key.public(), proof: proof.to_vec() };
                let _ = self.parts.peers.send_frame(peer, &frame);
            }
            Err(error) => tracing::error!(%error, "no issuer's key can be made"),
        }
    }

    fn list(&self) -> Vec<IssuerInfo> {
        let standing = self.statements.standing();
        let info = |(id, issuer): (&NodeId, &gossamer_core::statements::Issuer)| {
            let claims = issuer.facts.claims.as_ref();
            IssuerInfo {
                id: *id,
                node: claims.map(|claims| claims.node),
                name: claims.map_or_else(|| id.to_string(), |claims| claims.name.to_string()),
                groups: claims.map(|claims| claims.groups.clone()).unwrap_or_default(),
                not_after: issuer.facts.not_after,
                used: issuer.used,
                budget: issuer.budget,
                conflicted: standing.conflicted.contains(id),
            }
        };
        let mut list: Vec<_> = standing.issuers.iter().map(info).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// Writes a line for each node that is out, and for each issuer that came or went.
    fn log_changes(&self, before: &Statements) {
        let (was, is) = (before.standing(), self.statements.standing());
        let line = |who: String, was, now, cause: &str| {
            let (cause, by) = (cause.to_owned(), "a statement".to_owned());
            self.parts.events.push(&Event { who, was, now, cause, by });
        };
        for node in is.evicted.difference(&was.evicted) {
            let who = format!("node {}", self.parts.index.name_of(*node));
            line(who, "member", "evicted", "its key is out for ever");
        }
        let name = |issuer: &gossamer_core::statements::Issuer| {
            issuer
                .facts
                .claims
                .as_ref()
                .map_or_else(|| issuer.facts.id.to_string(), |claims| claims.name.to_string())
        };
        for (id, issuer) in is.issuers.iter().filter(|(id, _)| !was.issuers.contains_key(id)) {
            tracing::info!(issuer = %id, name = %name(issuer), "issuer added");
            line(format!("issuer {}", name(issuer)), "none", "active", "the root says so");
        }
        for (_, issuer) in was.issuers.iter().filter(|(id, _)| !is.issuers.contains_key(id)) {
            line(format!("issuer {}", name(issuer)), "active", "removed", "the root says so");
        }
        for root in is.roots.iter().filter(|root| !was.roots.contains(root)) {
            line(format!("root {}", root.id), "none", "active", "another root says so");
        }
        for root in is.retired.iter().filter(|root| was.roots.contains(root)) {
            line(format!("root {}", root.id), "active", "retired", "a later root says so");
        }
        for id in is.conflicted.difference(&was.conflicted) {
            let who = is.issuers.get(id).map_or_else(|| id.to_string(), name);
            let cause = "two statements of it have one number; its later ones do not count";
            line(format!("issuer {who}"), "active", "conflicted", cause);
        }
    }
}
