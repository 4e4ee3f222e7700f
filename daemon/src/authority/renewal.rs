//! Renewal of the own certificate: from a third of its life on, at any issuer.
//!
//! Owns: what is known of the issuers, and what is said when it does not succeed. Must not know: when and at whom
//! (`core::renewal`), the exchange (`identity::renew`).
//! Driven by: the authority task.

use std::sync::Arc;

use gossamer_core::membership::MemberState;
use gossamer_core::renewal::{Asked, Certificate, whom_to_ask};
use gossamer_core::trust::{not_after, read_issuer, validity_of};
use gossamer_wire::NodeId;
use gossamer_wire::join::PeerHint;
use rand::RngExt as _;

use super::Command;
use super::task::Task;
use crate::catalog;
use crate::events::Event;
use crate::identity::{Credentials, credentials, renew, renew_here};
use crate::store::Store;

/// Most certificates of issuers that are kept with the own one.
const SHOWN: usize = 8;

/// What came of a try.
pub(crate) type Outcome = Result<Box<gossamer_wire::join::Admitted>, String>;

impl Task {
    /// Renews the certificate if it is time.
    pub(super) async fn tend_certificate(&mut self) {
        let now = self.parts.clock.now();
        let live = self.parts.live.load_full();
        let (start, end) = validity_of(&live.leaf_der).unwrap_or((0, live.leaf.not_after));
        // Joiners believe an issuer by a certificate it made itself.
        let certificate = Certificate { start, end, is_unfit: is_not_of_own_key(&live, now.wall) };
        let due = self.renewal.tend(certificate, now, self.rng.random());
        if let Some(mark) = due.over {
            self.report_age(mark, now.wall > end);
        }
        if due.renew {
            self.try_renew(&live).await;
        }
    }

    async fn try_renew(&mut self, live: &Arc<Credentials>) {
        let identity = Arc::clone(&self.parts.identity);
        if let Some(made) = renew_here(identity.mesh, live, &self.parts.lifetimes, self.parts.clock.wall()) {
            let came = [made.1].into_iter().chain(self.came.clone()).collect();
            return self.take_certificate(made.0, came).await;
        }
        let (issuers, trust) = (self.issuers_to_ask(), self.parts.trust.load_full());
        let (own, clock, live) = (self.own.clone(), self.parts.clock.clone(), Arc::clone(live));
        self.stage.spawn_short("renewal", async move {
            let asking = renew(identity.mesh, &trust, &live, &identity.key, &issuers, &clock);
            let outcome = asking.await.map(Box::new).map_err(|error| error.to_string());
            let _ = own.send(Command::Renewed(outcome)).await;
        });
    }

    /// Returns the issuers whose nodes are known, in the order in which they are asked.
    fn issuers_to_ask(&mut self) -> Vec<Asked> {
        let me = self.parts.identity.node();
        let standing = self.statements.standing();
        let group = self.parts.identity.group();
        let issuers = standing.issuers.iter().filter(|(_, issuer)| issuer.facts.admits_to(group));
        let holders = issuers.filter_map(|(id, issuer)| Some((*id, issuer.facts.claims.as_ref()?)));
        let addresses = |node: NodeId| {
            let known = self.parts.index.node(node);
            let of_card = known.as_ref().and_then(|known| known.view.as_ref());
            let of_card = of_card.map(|view| (view.addresses.clone(), view.lanes.clone()));
            let seed = self.seeds.iter().find(|seed| seed.node == node);
            of_card.or_else(|| seed.map(|seed| (seed.addresses.clone(), seed.lanes.clone())))
        };
        let is_up = |node: NodeId| {
            self.parts.index.node(node).and_then(|known| known.state).is_some_and(MemberState::is_up)
        };
        let issuers = holders
            .filter(|(_, claims)| claims.node != me)
            .filter_map(|(id, claims)| {
                let (mut addresses, lanes) = addresses(claims.node)?;
                // Where others cannot dial it, its relays lead there.
                addresses.extend(self.parts.index.relay_addresses(claims.node));
                let issuer = Asked { id: Some(id), addresses, lanes };
                Some((is_up(claims.node), issuer))
            })
            .collect();
        whom_to_ask(issuers, &self.seeds, &mut self.rng)
    }

    pub(super) async fn renewed(&mut self, outcome: Outcome) {
        match outcome {
            Ok(admitted) => {
                let mut came = admitted.issuers;
                came.extend(self.came.iter().filter(|der| !came.contains(der)).cloned().collect::<Vec<_>>());
                self.take_certificate(admitted.leaf, came).await;
                self.keep_seeds(admitted.peers).await;
            }
            Err(error) => {
                tracing::warn!(%error, "this node's certificate could not be renewed; it is tried again");
                self.parts.metrics.renewal("failed");
                self.renewal.failed();
                self.not_renewed = Some(error);
            }
        }
    }

    /// Remembers whom to dial after a long absence: cards are forgotten after a day, and issuers change.
    async fn keep_seeds(&mut self, peers: Vec<PeerHint>) {
        if peers.is_empty() || peers == self.seeds {
            return;
        }
        self.seeds.clone_from(&peers);
        if let Err(error) = self.parts.store.aside(move |store| credentials::write_seeds(store, &peers)).await
        {
            tracing::warn!(%error, "the addresses of issuers could not be written");
        }
    }

    /// Takes a new certificate into use: on disk first, then in handshakes, then in the card.
    async fn take_certificate(&mut self, leaf: Vec<u8>, mut came: Vec<Vec<u8>>) {
        self.renewal.failed();
        came.truncate(SHOWN);
        let shown: Vec<_> = came.iter().map(|der| der.as_slice().into()).collect();
        let read = match self.parts.trust.load().verify_certificate(&leaf, &shown, self.parts.clock.wall()) {
            Ok(read) => read,
            Err(error) => {
                return tracing::error!(%error, "a new certificate does not hold; the old one stays");
            }
        };
        let (to_write, issuers) = (leaf.clone(), came.clone());
        let write = move |store: &Store| credentials::write_leaf(store, &to_write, &issuers);
        if let Err(error) = self.parts.store.aside(write).await {
            return tracing::error!(%error, "a new certificate could not be written; the old one stays");
        }
        self.came = came;
        self.apply().await;
        tracing::info!(ends = read.not_after, "this node has a new certificate");
        let old = self.parts.live.load_full();
        let issued_by = self.came.first().cloned().map(Into::into);
        self.parts.live.store(Arc::new(Credentials {
            leaf: Arc::new(read),
            leaf_der: leaf.clone().into(),
            by_other_roots: credentials::by_other_roots(issued_by.as_ref(), &self.statements),
            issued_by,
            ..Credentials::clone(&old)
        }));
        self.parts.metrics.renewal("done");
        let (start, end) = validity_of(&leaf).unwrap_or_default();
        self.renewal.renewed(start, end, self.parts.clock.now());
        self.not_renewed = None;
        let _ = self.parts.catalog.send(catalog::Command::Certificate(leaf)).await;
    }

    /// Writes a line that so much of the certificate's life is over.
    fn report_age(&self, mark: u64, has_ended: bool) {
        let why = self.not_renewed.clone().unwrap_or_else(|| "no issuer was asked yet".to_owned());
        let now = if has_ended { "ended" } else { "ageing" };
        self.parts.events.push(&Event {
            who: "certificate of this node".to_owned(),
            was: "valid",
            now,
            cause: format!("{mark} % of its life are over: {why}"),
            by: "self".to_owned(),
        });
    }
}

/// Whether a node that is an issuer for its own group has a certificate of another one.
fn is_not_of_own_key(live: &Credentials, wall: u64) -> bool {
    let Some(issuer) = &live.issuer else { return false };
    let counts = issuer.may_admit_to(&live.leaf.group)
        && not_after(issuer.certificate()).is_some_and(|end| end > wall);
    let signer = live.issued_by.as_ref().and_then(|der| read_issuer(der).ok());
    counts && signer.is_none_or(|signer| signer.id != issuer.id())
}
