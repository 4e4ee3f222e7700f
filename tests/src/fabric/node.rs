//! One simulated machine: what outlasts its lives, and the one that runs.
//!
//! Owns: identity, disk, wall clock and records of a node; the parts of its present life. Must not know: other
//! nodes. Driven by: the fabric.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use gossamer::app::mesh::{self, Mesh, MeshParts, MeshStages};
use gossamer::clock::{Clock, Wall};
use gossamer::entropy::Entropy;
use gossamer::events::EventLog;
use gossamer::identity::{Identity, Lifetimes, NodeKey, stored_statements};
use gossamer::metrics::Metrics;
use gossamer::store::Store;
use gossamer::supervise::Stage;
use gossamer::transport::Udp;
use gossamer_core::catalog::Imports;
use gossamer_core::reach::Deny;
use gossamer_core::statements::Statements;
use gossamer_wire::{Health, Port, Routing, ServiceRecord, Transport, Tries, Visibility};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::disk::Disk;
use super::gate::Gate;
use super::net::Net;
use super::{Names, address, view};
use crate::scenario;
use crate::sim::authority::{Authority, WALL};

/// Longest goodbye of one stage.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// Admits a node that knows nobody. Node ids decide who dials whom and in which order members are listed, so
/// they are drawn from the seed like everything else.
pub(super) fn identity(authority: &mut Authority, name: &str) -> Result<Identity> {
    let (trust, admitted) = (authority.trust(), authority.admit(name)?);
    let roots: Vec<_> = trust.roots().iter().map(|der| der.to_vec()).collect();
    Ok(Identity {
        mesh: trust.mesh(),
        mesh_name: "sim".parse()?,
        leaf: trust.verify(&admitted.leaf, &[], WALL)?,
        leaf_der: admitted.leaf,
        zone: None,
        region: None,
        key: Arc::new(NodeKey::read(&admitted.pkcs8).context("an Ed25519 key")?),
        issuer: None,
        holds_root_key: false,
        seeds: Vec::new(),
        by_lane: false,
        issuers: trust.issuers().iter().map(|der| der.to_vec()).collect(),
        statements: Statements::new(trust.mesh(), &roots)?,
        trust,
    })
}

/// A machine.
pub(super) struct Node {
    number: usize,
    pub(super) identity: Arc<Identity>,
    pub(super) wall: Arc<NodeWall>,
    pub(super) disk: Arc<Disk>,
    records: Vec<ServiceRecord>,
    /// Records it ever had: each gets a name of its own.
    named: usize,
    lives: u64,
    /// Renewals of earlier lives.
    renewals: u64,
    life: Option<Life>,
}

/// What runs.
pub(super) struct Life {
    pub(super) mesh: Mesh,
    pub(super) gate: Gate,
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: EventLog,
    stages: MeshStages,
}

impl Node {
    pub(super) fn new(number: usize, identity: Arc<Identity>, records: usize, started: Instant) -> Self {
        let wall = Arc::new(NodeWall { started, offset: AtomicI64::new(0) });
        let mut node = Self {
            number,
            identity,
            wall,
            disk: Arc::default(),
            records: Vec::new(),
            named: 0,
            lives: 0,
            renewals: 0,
            life: None,
        };
        node.add_records(records);
        node
    }

    /// Starts a life with what the disk has kept; a life that still runs is ended. Reports whom it holds for down.
    pub(super) async fn start(
        &mut self,
        net: &Net,
        seed: u64,
        found: scenario::Disk,
        names: Arc<Names>,
        report: impl Fn(usize) + Send + 'static,
    ) -> Result<()> {
        self.kill(net);
        self.disk.crash(found);
        self.lives += 1;
        let gate = Gate::default();
        let stages = MeshStages::from(Stage::on(Arc::new(gate.clone())));
        let (metrics, events) = (Arc::<Metrics>::default(), EventLog::default());
        // A process draws other numbers in each of its lives, and other ones than its neighbours.
        let entropy = Entropy::Seeded(seed ^ (self.lives << 48) ^ ((self.number as u64) << 24));
        let store = Store::on(Path::new("simulated"), Arc::<Disk>::clone(&self.disk));
        let parts = MeshParts {
            identity: self.remembered(&store)?,
            store,
            udp: Udp::Given(net.socket(address(self.number))),
            advertise: Vec::new(),
            lanes: Vec::new(),
            own_zones: Vec::new(),
            deny: Deny::default(),
            zone: None,
            region: None,
            imports: Imports::default(),
            joiners: None,
            lifetimes: Lifetimes::default(),
            clock: Clock::of(Arc::<NodeWall>::clone(&self.wall)),
            entropy,
            metrics: Arc::clone(&metrics),
            events: events.clone(),
        };
        let mesh = mesh::start(&stages, parts)?;
        // Outside the gate: it is the observer's.
        let (_, mut lines) = events.follow(u64::MAX);
        tokio::spawn(async move {
            loop {
                match lines.recv().await {
                    Ok(line) => view::down(&line.line, &names.by_word).into_iter().for_each(&report),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
        self.life = Some(Life { mesh, gate, metrics, events, stages });
        self.announce().await
    }

    /// Returns the identity with the statements that are on the disk.
    fn remembered(&self, store: &Store) -> Result<Arc<Identity>> {
        let stored = stored_statements(store)?;
        if stored.is_empty() {
            return Ok(Arc::clone(&self.identity));
        }
        let mut identity = Identity::clone(&self.identity);
        identity.statements.take(&stored);
        let standing = identity.statements.standing();
        identity.trust =
            identity.trust.with_evicted(Arc::clone(&standing.evicted)).with_removed(standing.removed.clone());
        Ok(Arc::new(identity))
    }

    /// Returns the records it publishes.
    pub(super) fn records(&self) -> &[ServiceRecord] {
        &self.records
    }

    /// Ends the life where it stands.
    pub(super) fn kill(&mut self, net: &Net) {
        self.renewals = self.renewals();
        if let Some(life) = self.life.take() {
            net.close(address(self.number));
            life.gate.end();
        }
    }

    /// Ends the life as SIGTERM does: the others are told.
    pub(super) async fn leave(&mut self) -> Result<()> {
        let life = self.life()?;
        life.stages.stop(LEAVE_WITHIN).await;
        self.renewals = self.renewals();
        self.life = None;
        Ok(())
    }

    pub(super) async fn publish(&mut self, count: usize) -> Result<()> {
        self.add_records(count);
        self.announce().await
    }

    /// Withdraws the oldest records.
    pub(super) async fn withdraw(&mut self, count: usize) -> Result<()> {
        self.records.drain(..count.min(self.records.len()));
        self.announce().await
    }

    pub(super) fn life(&self) -> Result<&Life> {
        self.life.as_ref().with_context(|| format!("node {} does not run", self.number))
    }

    pub(super) fn life_mut(&mut self) -> Result<&mut Life> {
        self.life.as_mut().with_context(|| format!("node {} does not run", self.number))
    }

    /// Identities renewed over all lives.
    pub(super) fn renewals(&self) -> u64 {
        let name = "gossamer_identity_renewals_total";
        let present = self.life.as_ref().and_then(|life| life.metrics.snapshot().get(name).copied());
        self.renewals + present.unwrap_or(0)
    }

    fn add_records(&mut self, count: usize) {
        let from = self.named;
        self.named += count;
        self.records.extend((from..self.named).map(|number| record(self.number, number)));
    }

    /// Hands the catalog all records; one that does not run hears of them at its start.
    async fn announce(&self) -> Result<()> {
        let Some(life) = &self.life else { return Ok(()) };
        let sending = life.mesh.records.send(self.records.clone());
        match tokio::time::timeout(LEAVE_WITHIN, sending).await {
            Ok(Ok(())) => Ok(()),
            _ => bail!("the catalog of node {} takes no records", self.number),
        }
    }
}

fn record(node: usize, number: usize) -> ServiceRecord {
    let name = format!("s{node}-{number}");
    let port = Port { name: "80".parse().expect("a name"), number: 80, transport: Transport::Tcp };
    ServiceRecord {
        service: name.parse().expect("a name"),
        instance: name.parse().expect("a name"),
        ports: vec![port],
        visibility: Visibility::Own,
        health: Health::Passing,
        weight: 100,
        draining: false,
        routing: Routing::default(),
        tries: Tries::default(),
        metadata: Vec::new(),
        fqdns: Vec::new(),
    }
}

/// The wall clock of a machine: all start at one moment and run with the virtual clock.
#[derive(Debug)]
pub(super) struct NodeWall {
    started: Instant,
    offset: AtomicI64,
}

impl NodeWall {
    /// Moves the clock.
    pub(super) fn shift(&self, seconds: i64) {
        self.offset.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Wall for NodeWall {
    fn seconds(&self) -> u64 {
        let since = (Instant::now() - self.started).as_secs();
        (WALL + since).saturating_add_signed(self.offset.load(Ordering::Relaxed))
    }
}
