//! Renewal of the own certificate: from a third of its life on, at any issuer.
//!
//! Owns: when, at whom, and what is said when it does not succeed. Must not know: the exchange (`identity::renew`).
//! Driven by: the authority task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gossamer_core::membership::MemberState;
use gossamer_core::trust::validity_of;
use gossamer_wire::NodeId;
use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use super::Command;
use super::task::Task;
use crate::catalog;
use crate::clock::Clock;
use crate::events::Event;
use crate::identity::{Credentials, Issuer, credentials, renew, renew_here};
use crate::store::Store;

/// The clock that counts time does so not in suspend, so the wall clock is looked at this often.
const LOOK: Duration = Duration::from_secs(60);
/// Pauses between tries: a share of the certificate's life within these bounds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Most issuers asked in one try.
const ASKED: usize = 4;

/// What came of a try.
pub(crate) type Outcome = Result<Box<gossamer_wire::join::Admitted>, String>;

/// When the certificate is looked at, and what was tried.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    /// When to try; not known yet at the start.
    due: Option<Instant>,
    is_running: bool,
    /// Try now, however new the certificate is.
    is_hurried: bool,
    /// Why the last try came to nothing.
    failed: Option<String>,
    /// Share of the life that was reported as over, in percent.
    reported: u64,
}

impl Renewal {
    /// Lets the node try at once: it has become an issuer, which joiners believe by a certificate of its own key.
    pub(super) fn hurry(&mut self) {
        self.is_hurried = true;
        self.due = None;
    }

    /// Returns when the task must look again.
    pub(super) fn look_at(&self, clock: &Clock) -> Instant {
        let now = clock.now().mono;
        let latest = now + LOOK;
        match self.due {
            Some(due) if !self.is_running => due.clamp(now, latest),
            Some(_) => latest,
            None => now,
        }
    }
}

impl Task {
    /// Renews the certificate if it is time.
    pub(super) async fn tend_certificate(&mut self) {
        let now = self.parts.clock.now();
        let live = self.parts.live.load_full();
        let (start, end) = validity_of(&live.leaf_der).unwrap_or((0, live.leaf.not_after));
        self.report_age(start, end, now.wall);
        let life = Duration::from_secs(end.saturating_sub(start));
        let left = Duration::from_secs(end.saturating_sub(now.wall));
        let third_over = left.saturating_sub(life * 2 / 3);
        let due = *self.renewal.due.get_or_insert_with(|| {
            // All nodes of a mesh may have been admitted at once.
            let jitter =
                if left.is_zero() { Duration::ZERO } else { life.mul_f64(self.rng.random_range(0.0..0.1)) };
            now.mono + third_over + jitter
        });
        // After a suspend the wall clock knows better.
        let is_due = due <= now.mono || left < life / 3 || std::mem::take(&mut self.renewal.is_hurried);
        if !is_due || self.renewal.is_running {
            return;
        }
        self.renewal.is_running = true;
        let pause = (life / 24).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.renewal.due = Some(now.mono + pause.mul_f64(self.rng.random_range(0.5..1.5)));
        self.try_renew(&live).await;
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

    /// Returns the issuers' nodes with their addresses: live ones first, in a random order, so that the load is shared.
    fn issuers_to_ask(&mut self) -> Vec<Issuer> {
        let me = self.parts.identity.node();
        let standing = self.statements.standing();
        let holders =
            standing.issuers.iter().filter_map(|(id, issuer)| Some((*id, issuer.facts.claims.as_ref()?)));
        let addresses = |node: NodeId| {
            let known = self.parts.index.node(node);
            let of_card = known.and_then(|known| known.view.as_ref().map(|view| view.addresses.clone()));
            let seed = self.parts.identity.seeds.iter().find(|seed| seed.node == node);
            of_card.or_else(|| seed.map(|seed| seed.addresses.clone()))
        };
        let is_up = |node: NodeId| {
            self.parts.index.node(node).and_then(|known| known.state).is_some_and(MemberState::is_up)
        };
        let mut issuers: Vec<_> = holders
            .filter(|(_, claims)| claims.node != me)
            .filter_map(|(id, claims)| {
                let issuer = Issuer { id: Some(id), addresses: addresses(claims.node)? };
                Some((!is_up(claims.node), issuer))
            })
            .collect();
        issuers.shuffle(&mut self.rng);
        issuers.sort_by_key(|(is_down, _)| *is_down);
        let mut issuers: Vec<_> = issuers.into_iter().map(|(_, issuer)| issuer).collect();
        // A node that was started without a word of anybody asks those it joined by.
        if issuers.is_empty() {
            let seeds = self.parts.identity.seeds.iter();
            issuers.extend(seeds.map(|seed| Issuer { id: None, addresses: seed.addresses.clone() }));
        }
        issuers.truncate(ASKED);
        issuers
    }

    pub(super) async fn renewed(&mut self, outcome: Outcome) {
        match outcome {
            Ok(admitted) => {
                let mut came = admitted.issuers;
                came.extend(self.came.iter().filter(|der| !came.contains(der)).cloned().collect::<Vec<_>>());
                self.take_certificate(admitted.leaf, came).await;
            }
            Err(error) => {
                tracing::warn!(%error, "this node's certificate could not be renewed; it is tried again");
                self.parts.metrics.renewal("failed");
                self.renewal.is_running = false;
                self.renewal.failed = Some(error);
            }
        }
    }

    /// Takes a new certificate into use: on disk first, then in handshakes, then in the card.
    async fn take_certificate(&mut self, leaf: Vec<u8>, mut came: Vec<Vec<u8>>) {
        self.renewal.is_running = false;
        came.truncate(ASKED * 2);
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
            issued_by,
            ..Credentials::clone(&old)
        }));
        self.parts.metrics.renewal("done");
        self.renewal = Renewal::default();
        let _ = self.parts.catalog.send(catalog::Command::Certificate(leaf)).await;
    }

    /// Writes a line when half, three quarters and nine tenths of the certificate's life are over.
    fn report_age(&mut self, start: u64, end: u64, wall: u64) {
        let over = wall.saturating_sub(start) * 100 / end.saturating_sub(start).max(1);
        let Some(mark) = [90, 75, 50].into_iter().find(|mark| *mark <= over) else { return };
        if self.renewal.reported >= mark {
            return;
        }
        self.renewal.reported = mark;
        let why = self.renewal.failed.clone().unwrap_or_else(|| "no issuer was asked yet".to_owned());
        let now = if wall > end { "ended" } else { "ageing" };
        self.parts.events.push(&Event {
            who: "certificate of this node".to_owned(),
            was: "valid",
            now,
            cause: format!("{mark} % of its life are over: {why}"),
            by: "self".to_owned(),
        });
    }
}
