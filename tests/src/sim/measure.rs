//! Figures of simulated meshes: how fast a record travels, what loss and a partition cost, what a run takes.
//!
//! Owns: the four measurements of the suite `sim`, each until converged. Must not know: how figures are printed.
//! Driven by: the bench and the evidence.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gossamer_wire::advert::{Advert, Kind};

use super::Mesh;
use crate::scenario::{Act, Disk, Scenario, World as _};

/// What is measured on: a mesh of so many nodes with this share of packets lost.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes, at least 4.
    pub nodes: usize,
    /// Share of packets lost, 0 to 1.
    pub loss: f64,
    /// One seed, one run.
    pub seed: u64,
    /// What happens once all see all and a check must notice. A measurement then waits for
    /// [`SABOTAGED_PATIENCE`] only.
    pub sabotage: Option<Sabotage>,
}

/// What breaks a mesh from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sabotage {
    /// This share of packets is lost, in place of the usual one. What goes by streams comes all the same, late.
    Loss(f64),
    /// The last node is cut off from all others.
    CutOff,
}

impl Size {
    fn patience(&self, usual: Duration) -> Duration {
        if self.sabotage.is_some() { SABOTAGED_PATIENCE } else { usual }
    }
}

/// What every run takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effort {
    /// Time in the simulated mesh, seconds.
    pub simulated: f64,
    /// Time of this machine, seconds.
    pub wall: f64,
    /// Most resident memory of this process until the end, MiB.
    pub memory_mib: f64,
    /// From the last start until all saw all, simulated seconds.
    pub joined: f64,
}

/// How records travel.
#[derive(Clone, Debug)]
pub struct Spread {
    /// From publishing until served, one value per record and receiver, in mean one-way delays, sorted.
    pub delays: Vec<f64>,
    /// Receivers that had not got a record after [`RECORD_PATIENCE`], over all records.
    pub missed: usize,
    /// Copies of fragments put on the wire per record and receiver.
    pub copies: f64,
    /// The run.
    pub effort: Effort,
}

/// What loss does to membership.
#[derive(Clone, Copy, Debug)]
pub struct Calm {
    /// Pairs of a healthy node and one that held it for down.
    pub false_downs: usize,
    /// Identities renewed.
    pub renewals: u64,
    /// Bytes per node and second.
    pub bytes: f64,
    /// The run.
    pub effort: Effort,
}

/// What the mending of a partition takes.
#[derive(Clone, Copy, Debug)]
pub struct Heal {
    /// From the mending until all catalogs and views are the same, seconds; `None` when not within
    /// [`HEAL_PATIENCE`].
    pub seconds: Option<f64>,
    /// The same for catalogs alone.
    pub catalog_seconds: Option<f64>,
    /// Bytes of catalog frames until then, by the bytes of the fragments that were missing.
    pub bytes_per_missing: f64,
    /// The run.
    pub effort: Effort,
}

/// What a whole life takes.
#[derive(Clone, Copy, Debug)]
pub struct Converge {
    /// From the last change or kill until converged, seconds; `None` when not within [`HEAL_PATIENCE`].
    pub seconds: Option<f64>,
    /// Events the simulator did.
    pub events: u64,
    /// The run.
    pub effort: Effort,
}

impl Spread {
    /// Returns the delay that a share of all receivers stayed below.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.delays.len().saturating_sub(1);
        self.delays.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::INFINITY)
    }
}

/// Publishes `records` records one after the other, each on another node, in a mesh whose packets take 10 to
/// 30 ms one way.
///
/// # Errors
/// The nodes did not find each other.
pub fn record(size: Size, records: usize) -> Result<Spread> {
    let (mut run, mut mesh) = Run::join(size, 1, WIDE)?;
    // All know all before all pairs are connected; what is pushed meanwhile is partly lost, and pulled later.
    mesh.run(mesh.now + SETTLE);
    let (mut delays, mut missed) = (Vec::new(), 0);
    let patience = size.patience(RECORD_PATIENCE);
    for number in 0..records {
        let node = number * 7919 % size.nodes;
        let service = super::node::service(1 + number / size.nodes);
        mesh.watch.record(node, service);
        let begin = mesh.now;
        mesh.act(&Act::Publish { node, count: 1 })?;
        while mesh.watch.seen.len() < size.nodes && mesh.now < begin + patience {
            mesh.run(mesh.now + Duration::from_millis(100));
        }
        let others = mesh.watch.seen.iter().filter(|(by, _)| **by != node);
        delays.extend(others.map(|(_, at)| (*at - begin).as_secs_f64() / WIDE_MEAN.as_secs_f64()));
        missed += size.nodes - mesh.watch.seen.len();
        // The next one starts when repair of the last is over.
        mesh.run(mesh.now + Duration::from_secs(1));
    }
    delays.sort_by(f64::total_cmp);
    let copies = mesh.watch.copies as f64 / (records * (size.nodes - 1)) as f64;
    run.end(&mesh);
    Ok(Spread { delays, missed, copies, effort: run.effort })
}

/// Lets a mesh be for so long.
///
/// # Errors
/// The nodes did not find each other.
pub fn loss(size: Size, length: Duration) -> Result<Calm> {
    let (mut run, mut mesh) = Run::join(size, 1, NEAR)?;
    mesh.downs.clear();
    let renewals = |mesh: &Mesh| mesh.nodes.iter().map(|node| node.renewals).sum::<u64>();
    let (before, sent) = (renewals(&mesh), bytes(&mesh, |_| true));
    mesh.run(mesh.now + length);
    let false_downs: BTreeSet<_> = mesh.downs.iter().map(|down| (down.node, down.by)).collect();
    let spent = (bytes(&mesh, |_| true) - sent) as f64 / size.nodes as f64 / length.as_secs_f64();
    run.end(&mesh);
    Ok(Calm {
        false_downs: false_downs.len(),
        renewals: renewals(&mesh) - before,
        bytes: spent,
        effort: run.effort,
    })
}

/// Cuts a mesh into halves for 60 s, changes up to 200 records on each side, half of them withdrawals, and mends
/// it.
///
/// # Errors
/// The nodes did not find each other, or not again.
pub fn split(size: Size) -> Result<Heal> {
    let (mut run, mut mesh) = Run::join(size, 2, NEAR)?;
    let half = size.nodes / 2;
    let sides: [BTreeSet<usize>; 2] = [(0..half).collect(), (half..size.nodes).collect()];
    for (from, to) in [(0, 1), (1, 0)] {
        mesh.act(&Act::Cut { from: sides[from].clone(), to: sides[to].clone() })?;
    }
    mesh.run(mesh.now + Duration::from_secs(20));
    let mut missing = 0;
    for (first, others) in [(0, size.nodes - half), (half, half)] {
        for number in 0..half.min(SPLIT_CHANGES) {
            let node = first + number;
            let act = match number % 2 {
                0 => Act::Publish { node, count: 1 },
                _ => Act::Withdraw { node, count: 1 },
            };
            mesh.act(&act)?;
            missing += fragment_bytes(&mesh, node) * others;
        }
    }
    mesh.run(mesh.now + Duration::from_secs(40));
    mesh.act(&Act::Heal)?;
    let sent = bytes(&mesh, is_catalog);
    let (begin, patience) = (mesh.now, size.patience(HEAL_PATIENCE));
    let catalogs = mesh.run_until(patience, |mesh| mesh.catalogs_agree());
    let spent = bytes(&mesh, is_catalog) - sent;
    let all = mesh.run_until(patience.saturating_sub(mesh.now - begin), Mesh::agree);
    let seconds = |at: Option<Duration>| at.map(|at| (at - begin).as_secs_f64());
    run.end(&mesh);
    Ok(Heal {
        seconds: seconds(all),
        catalog_seconds: seconds(catalogs),
        bytes_per_missing: spent as f64 / missing.max(1) as f64,
        effort: run.effort,
    })
}

/// A mesh with ten records on each node joins, changes a thousand records, loses one node in a hundred, and
/// agrees again.
///
/// # Errors
/// The nodes did not find each other.
pub fn converge(size: Size) -> Result<Converge> {
    let (mut run, mut mesh) = Run::join(size, 10, NEAR)?;
    for change in 0..CONVERGE_CHANGES {
        let act = match change % 4 {
            3 => Act::Withdraw { node: change * 7919 % size.nodes, count: 1 },
            _ => Act::Publish { node: change * 7919 % size.nodes, count: 1 },
        };
        mesh.act(&act)?;
        mesh.run(mesh.now + Duration::from_millis(10));
    }
    for number in 0..(size.nodes / 100).max(1) {
        mesh.act(&Act::Kill((number * 97 + 1) % size.nodes))?;
    }
    let begin = mesh.now;
    let all = mesh.run_until(size.patience(HEAL_PATIENCE), Mesh::agree);
    run.end(&mesh);
    let events = mesh.effort().0;
    Ok(Converge { seconds: all.map(|at| (at - begin).as_secs_f64()), events, effort: run.effort })
}

/// A run from its start.
pub(super) struct Run {
    started: Instant,
    pub(super) effort: Effort,
}

impl Run {
    /// Makes a mesh and lets its nodes find each other; a hundred start each second.
    pub(super) fn join(size: Size, records: usize, delay_ms: [f64; 2]) -> Result<(Self, Mesh)> {
        let started = Instant::now();
        let mut mesh = Self::mesh(size, records, delay_ms)?;
        mesh.start_all()?;
        let last = mesh.now;
        let joined =
            mesh.run_until(JOIN_PATIENCE, Mesh::agree).context("the nodes did not find each other")?;
        let cut_off = size.nodes - 1;
        let (one, others) = (BTreeSet::from([cut_off]), (0..cut_off).collect());
        match size.sabotage {
            Some(Sabotage::Loss(share)) => {
                mesh.act(&Act::Loss { nodes: (0..size.nodes).collect(), share })?
            }
            Some(Sabotage::CutOff) => {
                mesh.act(&Act::Cut { from: BTreeSet::clone(&others), to: one.clone() })?;
                mesh.act(&Act::Cut { from: one, to: others })?;
            }
            None => {}
        }
        let effort = Effort { joined: (joined - last).as_secs_f64(), ..Effort::default() };
        Ok((Self { started, effort }, mesh))
    }

    /// Makes a mesh of which no node runs.
    pub(super) fn mesh(size: Size, records: usize, delay_ms: [f64; 2]) -> Result<Mesh> {
        ensure!(size.nodes >= 4, "a mesh of {} nodes shows nothing", size.nodes);
        let [least, most] = delay_ms;
        let text = format!(
            "name = 'measured'\nabout = ''\nnodes = {}\nrecords = {records}\n[net]\nloss = {}\ndelay_ms = [{least}, {most}]\n",
            size.nodes, size.loss
        );
        let mut mesh = Mesh::new(&Scenario::parse("measured", &text)?, size.seed)?;
        mesh.has_disks = false;
        Ok(mesh)
    }

    pub(super) fn end(&mut self, mesh: &Mesh) {
        self.effort.simulated = mesh.now.as_secs_f64();
        self.effort.wall = self.started.elapsed().as_secs_f64();
        self.effort.memory_mib = status_mib("VmHWM:");
    }
}

impl Mesh {
    /// Runs until something holds, looked at each 100 ms; `None` when it did not in time.
    pub(super) fn run_until(
        &mut self,
        patience: Duration,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> Option<Duration> {
        let end = self.now + patience;
        while !holds(self) {
            if self.now >= end {
                return None;
            }
            self.run((self.now + Duration::from_millis(100)).min(end));
        }
        Some(self.now)
    }

    /// Starts all nodes, a hundred each second.
    pub(super) fn start_all(&mut self) -> Result<()> {
        for node in 0..self.nodes.len() {
            self.act(&Act::Start { node, disk: Disk::Lost })?;
            self.run(self.now + Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether every running node sees exactly the running ones.
    pub(super) fn all_see_all(&mut self) -> bool {
        let live: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].runs()).collect();
        live.iter().all(|node| self.sees_all(*node, live.len()))
    }

    /// Whether every running node holds the same catalog.
    pub(super) fn catalogs_agree(&self) -> bool {
        let mut hashes = self
            .nodes
            .iter()
            .filter_map(|node| node.process.as_ref())
            .map(|process| process.catalog.root_hash());
        let first = hashes.next();
        hashes.all(|hash| Some(hash) == first)
    }

    /// Whether, besides, every running node sees exactly the running ones, and serves exactly their records. The one
    /// that did not the last time is looked at first.
    pub(super) fn agree(&mut self) -> bool {
        let live: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].runs()).collect();
        let records: usize = live.iter().map(|node| self.nodes[*node].published()).sum();
        let agrees = |node: usize| self.sees_all(node, live.len()) && self.served(node) == records;
        if live.contains(&self.doubtful) && !agrees(self.doubtful) || !self.catalogs_agree() {
            return false;
        }
        let doubtful = live.iter().copied().find(|node| !agrees(*node));
        self.doubtful = doubtful.unwrap_or(self.doubtful);
        doubtful.is_none()
    }

    /// Whether a node sees all of so many running nodes and no other.
    fn sees_all(&self, node: usize, live: usize) -> bool {
        let Some(process) = &self.nodes[node].process else { return false };
        let mut up = 0;
        for member in process.membership.members().filter(|member| member.state.is_up()) {
            if !self.number(member.node).is_some_and(|number| self.nodes[number].runs()) {
                return false;
            }
            up += 1;
        }
        up + 1 == live
    }
}

/// Returns the bytes sent by all nodes in some kinds of messages.
fn bytes(mesh: &Mesh, counts: impl Fn(&str) -> bool) -> u64 {
    mesh.sent_by_kind().into_iter().filter(|(kind, ..)| counts(kind)).map(|(.., bytes)| bytes).sum()
}

fn is_catalog(kind: &str) -> bool {
    matches!(kind, "adverts" | "spread" | "have" | "ids" | "want" | "root" | "buckets")
}

/// Returns the bytes of a node's own fragments.
fn fragment_bytes(mesh: &Mesh, node: usize) -> usize {
    let Some(process) = &mesh.nodes[node].process else { return 0 };
    let own = mesh.id(node);
    let copies = process.catalog.export(mesh.clock(node)).into_iter();
    let is_own_fragment = |bytes: &[u8]| {
        Advert::parse(bytes)
            .is_ok_and(|advert| advert.id().slot.node == own && advert.id().slot.kind == Kind::Records)
    };
    copies.filter(|copy| is_own_fragment(&copy.bytes)).map(|copy| copy.bytes.len()).sum()
}

/// Returns the resident memory of this process, MiB; 0 where the system does not say.
pub(super) fn resident_mib() -> f64 {
    status_mib("VmRSS:")
}

fn status_mib(field: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1_024.0
}

/// One-way delays of a wide network, milliseconds: above QUIC's fixed 25 ms of acknowledgement delay, so that
/// figures in delays say something about the protocol.
const WIDE: [f64; 2] = [10.0, 30.0];
const WIDE_MEAN: Duration = Duration::from_millis(20);

/// One-way delays of a near network, milliseconds.
const NEAR: [f64; 2] = [0.2, 1.0];

/// Changes of [`split`] on each side.
const SPLIT_CHANGES: usize = 200;

/// Changes of [`converge`].
const CONVERGE_CHANGES: usize = 1_000;

/// Time in which the pairs of a mesh that has just joined connect, before records are published in it.
const SETTLE: Duration = Duration::from_secs(15);

/// Longest wait for one record.
pub const RECORD_PATIENCE: Duration = Duration::from_secs(60);

/// Longest wait for agreement.
pub const HEAL_PATIENCE: Duration = Duration::from_secs(300);

/// Longest wait for either when the mesh is sabotaged: twice the longest promise.
pub const SABOTAGED_PATIENCE: Duration = Duration::from_secs(10);

/// Longest wait for all to see all.
const JOIN_PATIENCE: Duration = Duration::from_secs(600);
