//! Renewal of the own certificate: from a third of its life on, at any issuer.
//!
//! Owns: when, at whom, and what is said when it does not succeed. Must not know: the exchange (`identity::renew`).
//! Driven by: the authority task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gossamer_core::membership::MemberState;
use gossamer_core::trust::{not_after, read_issuer, validity_of};
use gossamer_wire::NodeId;
use gossamer_wire::join::PeerHint;
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
/// And not more often than this.
const SHORTEST_LOOK: Duration = Duration::from_millis(100);
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
    /// When to look again; at once at the start.
    look_at: Option<Instant>,
    /// When to try; not known yet at the start and with a new certificate.
    due: Option<Instant>,
    /// Not before, whatever else: certificates that are short-lived from the start must not be renewed without end.
    earliest: Option<Instant>,
    is_running: bool,
    /// Why the last try came to nothing.
    failed: Option<String>,
    /// Share of the life that was reported as over, in percent.
    reported: u64,
}

impl Renewal {
    /// Returns when the task must look again.
    pub(super) fn look_at(&self, clock: &Clock) -> Instant {
        self.look_at.unwrap_or_else(|| clock.now().mono)
    }

    /// Lets the task look at once: something has changed.
    pub(super) fn look(&mut self) {
        self.look_at = None;
    }

    /// Lets the task look again in a moment.
    pub(super) fn look_soon(&mut self, now: Instant) {
        self.look_at = self.look_at.map(|at| at.min(now + Duration::from_secs(1)));
    }

    /// Sets the next look: when a try is due, at once for a certificate that is new, in a while when one is under way.
    fn look_after(&mut self, now: Instant) {
        let pause = match self.due {
            _ if self.is_running => LOOK,
            Some(due) => due.saturating_duration_since(now),
            None => Duration::ZERO,
        };
        self.look_at = Some(now + pause.clamp(SHORTEST_LOOK, LOOK));
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
        // After a suspend the wall clock knows better. Joiners believe an issuer by a certificate it made itself.
        let is_due = due <= now.mono || left < life / 3 || is_not_of_own_key(&live, now.wall);
        let may = self.renewal.earliest.is_none_or(|earliest| earliest <= now.mono);
        if is_due && may && !self.renewal.is_running {
            self.renewal.is_running = true;
            let pause = (life / 24).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            let pause = pause.mul_f64(self.rng.random_range(0.5..1.5));
            self.renewal.due = Some(now.mono + pause);
            self.renewal.earliest = self.renewal.due;
            self.try_renew(&live).await;
        }
        self.renewal.look_after(now.mono);
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
        let group = self.parts.identity.group();
        let issuers = standing.issuers.iter().filter(|(_, issuer)| issuer.facts.admits_to(group));
        let holders = issuers.filter_map(|(id, issuer)| Some((*id, issuer.facts.claims.as_ref()?)));
        let addresses = |node: NodeId| {
            let known = self.parts.index.node(node);
            let of_card = known.and_then(|known| known.view.as_ref().map(|view| view.addresses.clone()));
            let seed = self.seeds.iter().find(|seed| seed.node == node);
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
            let seeds = self.seeds.iter();
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
                self.keep_seeds(admitted.peers).await;
            }
            Err(error) => {
                tracing::warn!(%error, "this node's certificate could not be renewed; it is tried again");
                self.parts.metrics.renewal("failed");
                self.renewal.is_running = false;
                self.renewal.look();
                self.renewal.failed = Some(error);
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
            by_other_roots: credentials::by_other_roots(issued_by.as_ref(), &self.statements),
            issued_by,
            ..Credentials::clone(&old)
        }));
        self.parts.metrics.renewal("done");
        let pause =
            validity_of(&leaf).map_or(LONGEST_PAUSE, |(start, end)| Duration::from_secs(end - start) / 24);
        let earliest = self.parts.clock.now().mono + pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.renewal = Renewal { earliest: Some(earliest), ..Renewal::default() };
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

/// Whether a node that is an issuer for its own group has a certificate of another one.
fn is_not_of_own_key(live: &Credentials, wall: u64) -> bool {
    let Some(issuer) = &live.issuer else { return false };
    let counts = issuer.may_admit_to(&live.leaf.group)
        && not_after(issuer.certificate()).is_some_and(|end| end > wall);
    let signer = live.issued_by.as_ref().and_then(|der| read_issuer(der).ok());
    counts && signer.is_none_or(|signer| signer.id != issuer.id())
}
