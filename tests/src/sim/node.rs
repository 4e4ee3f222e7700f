//! One simulated node: its identity, its disk, and while it runs the three cores the daemon runs.
//!
//! Owns: what a start finds and makes of it, as the daemon's start does. Must not know: other nodes, the network.
//! Driven by: the mesh.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossamer_core::catalog::{CardContent, Catalog, CatalogConfig, DIRECT_UP_TO, Imports};
use gossamer_core::dial::{DialBook, Source, WarmSet};
use gossamer_core::membership::{Membership, MembershipConfig};
use gossamer_core::time::Now;
use gossamer_core::trust::TrustBundle;
use gossamer_wire::frame::AdvertCopy;
use gossamer_wire::swim::Identity as SwimIdentity;
use gossamer_wire::{
    Generation, Health, InstanceName, NodeId, Port, Routing, ServiceName, ServiceRecord, Transport, Tries,
    Visibility,
};
use rand::rngs::{SmallRng, StdRng};
use rand::{RngExt as _, SeedableRng as _};

use super::authority::{Identity, WALL};
use super::mesh::Event;
use super::tables::{Current, Sums};
use crate::scenario::Disk as Keeps;

/// A node, running or not.
pub(super) struct Node {
    pub(super) identity: Identity,
    pub(super) address: SocketAddr,
    name: InstanceName,
    /// What its operator wants published, oldest first.
    records: VecDeque<ServiceRecord>,
    next_record: usize,
    disk: Disk,
    /// Whom it knows from its token.
    seeds: Vec<(NodeId, SocketAddr)>,
    /// Seconds its wall clock is wrong.
    pub(super) clock_error: i64,
    /// How often it was started; also what tells one process from the next.
    pub(super) life: u64,
    pub(super) process: Option<Box<Process>>,
    pub(super) is_suspended: bool,
    /// How long its monotonic clock stood still, because the machine was suspended.
    pub(super) behind: Duration,
    /// Since when the machine is.
    pub(super) asleep: Option<Duration>,
    /// What came while it was suspended.
    pub(super) parked: VecDeque<Event>,
    pub(super) renewals: u64,
    /// Up to how many members it keeps a connection to each.
    pub(super) warm: WarmSet,
    /// Packets and bytes sent, by kind, over all lives.
    pub(super) sent: Sums,
}

/// A running daemon.
pub(super) struct Process {
    pub(super) membership: Membership,
    pub(super) catalog: Catalog,
    pub(super) book: DialBook,
    /// The control connection to each peer.
    pub(super) current: Current,
    /// When a core or the book has something to do, as of the last step.
    pub(super) due: Option<Instant>,
    /// When the cores are woken next.
    pub(super) wake: Option<Duration>,
    /// Whether a write of the catalog is planned: it is behind.
    pub(super) save_is_planned: bool,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("me", &self.membership.me()).finish_non_exhaustive()
    }
}

/// What survives a process.
#[derive(Debug, Default)]
struct Disk {
    /// Durable before a start says anything to anybody.
    epoch: u64,
    /// The last catalog written, and the one before: a power cut loses the last.
    catalogs: [Saved; 2],
}

#[derive(Clone, Debug, Default)]
struct Saved {
    copies: Vec<AdvertCopy>,
    at: Duration,
}

impl Node {
    pub(super) fn new(number: usize, identity: Identity, records: usize) -> Self {
        let name = format!("n{number}").parse().expect("a label");
        let mut node = Self {
            identity,
            address: address(number),
            name,
            records: VecDeque::new(),
            next_record: 0,
            disk: Disk::default(),
            seeds: Vec::new(),
            clock_error: 0,
            life: 0,
            process: None,
            is_suspended: false,
            behind: Duration::ZERO,
            asleep: None,
            parked: VecDeque::new(),
            renewals: 0,
            warm: WarmSet::default(),
            sent: Sums::default(),
        };
        node.publish(records);
        node
    }

    /// Tells the node whom its token names.
    pub(super) fn set_seeds(&mut self, seeds: &[(NodeId, SocketAddr)]) {
        self.seeds = seeds.to_vec();
    }

    /// Adds records and returns the complete set.
    pub(super) fn publish(&mut self, count: usize) -> Vec<ServiceRecord> {
        for _ in 0..count {
            self.records.push_back(record(service(self.next_record), self.name.clone()));
            self.next_record += 1;
        }
        self.records.iter().cloned().collect()
    }

    /// Takes the oldest records away and returns the rest.
    pub(super) fn withdraw(&mut self, count: usize) -> Vec<ServiceRecord> {
        self.records.drain(..count.min(self.records.len()));
        self.records.iter().cloned().collect()
    }

    /// Returns how many records the node wants published.
    pub(super) fn published(&self) -> usize {
        self.records.len()
    }

    pub(super) const fn runs(&self) -> bool {
        self.process.is_some() && !self.is_suspended
    }

    /// Returns what this node's clocks show.
    pub(super) fn now(&self, base: Instant, at: Duration) -> Now {
        Now {
            mono: base + (at - self.behind),
            wall: (WALL + at.as_secs()).saturating_add_signed(self.clock_error),
        }
    }

    /// Starts a process as the daemon starts: the epoch is made durable, the catalog read, the cores made, the
    /// card and the seeds given to them. Returns the records to publish next.
    pub(super) fn start(
        &mut self,
        keeps: Keeps,
        trust: TrustBundle,
        seed: u64,
        base: Instant,
        at: Duration,
    ) -> Vec<ServiceRecord> {
        self.life += 1;
        let restored = self.disk.open(keeps, at);
        let epoch = self.disk.epoch;
        let node = self.identity.node;
        let draws = seed ^ self.life.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ first_bytes(node);
        let rng = |part: u64| StdRng::seed_from_u64(draws.wrapping_add(part));
        let now = self.now(base, at);
        let me = SwimIdentity { node, generation: Generation::of_epoch(epoch) };
        let membership = Membership::new(
            MembershipConfig { warm: self.warm, ..MembershipConfig::default() },
            me,
            rng(1),
            now.mono,
        );
        let config = CatalogConfig {
            node,
            group: "west".parse().expect("a label"),
            zone: None,
            region: None,
            imports: Imports::default(),
            deny: gossamer_core::reach::Deny::default(),
            // Where not all pairs are warm, adverts go by the tree: the shipped limits are in this order.
            direct_up_to: DIRECT_UP_TO.min(self.warm.limit() / 4),
            first_seq: rng(4).random(),
        };
        let key = Box::new(self.identity.key.clone());
        let draw = SmallRng::seed_from_u64(draws.wrapping_add(2));
        let mut catalog = Catalog::new(config, trust, key, draw, epoch, restored, now);
        let mut book = DialBook::new(node, rng(3)).with_warm(self.warm);
        for (seed, address) in &self.seeds {
            book.learn(*seed, &[*address], Source::Hint, now.mono);
        }
        let card = CardContent {
            leaf: self.identity.leaf.clone(),
            addresses: vec![self.address],
            ..CardContent::default()
        };
        catalog.handle(gossamer_core::catalog::Input::Card(card), now);
        self.process = Some(Box::new(Process {
            membership,
            catalog,
            book,
            current: Current::default(),
            due: None,
            wake: None,
            save_is_planned: false,
        }));
        self.is_suspended = false;
        self.parked.clear();
        self.publish(0)
    }

    /// Writes the catalog to the disk.
    pub(super) fn save(&mut self, base: Instant, at: Duration) {
        let now = self.now(base, at);
        if let Some(process) = &self.process {
            let copies = process.catalog.export(now);
            self.disk.catalogs.swap(0, 1);
            self.disk.catalogs[0] = Saved { copies, at };
        }
    }

    /// Makes an epoch of at least this durable.
    pub(super) fn raise_epoch(&mut self, at_least: u64) -> u64 {
        self.disk.epoch = self.disk.epoch.max(at_least) + 1;
        self.disk.epoch
    }

    pub(super) fn count(&mut self, kind: &'static str, packets: u64, bytes: u64) {
        self.sent.add(kind, packets, bytes);
    }
}

impl Disk {
    /// Raises the epoch and returns the adverts that are there, older by the time of the stop.
    fn open(&mut self, keeps: Keeps, at: Duration) -> Vec<AdvertCopy> {
        let [last, earlier] = &self.catalogs;
        let saved = match keeps {
            Keeps::Kept => last.clone(),
            Keeps::Unsynced => earlier.clone(),
            Keeps::Lost => {
                *self = Self::default();
                Saved::default()
            }
        };
        self.epoch += 1;
        let stopped = u32::try_from(at.saturating_sub(saved.at).as_secs()).unwrap_or(u32::MAX);
        let older = |copy: AdvertCopy| AdvertCopy { age: copy.age.saturating_add(stopped), ..copy };
        saved.copies.into_iter().map(older).collect()
    }
}

/// The name of the records numbered so on all nodes: a service with an instance on each.
pub(super) fn service(number: usize) -> ServiceName {
    format!("svc-{number}").parse().expect("a label")
}

pub(super) fn record(service: ServiceName, instance: InstanceName) -> ServiceRecord {
    ServiceRecord {
        service,
        instance,
        ports: vec![Port { name: 5432.into(), number: 5432, transport: Transport::Tcp }],
        visibility: Visibility::All,
        health: Health::Passing,
        weight: 100,
        draining: false,
        routing: Routing::default(),
        tries: Tries::default(),
        metadata: vec![("version".to_owned(), "15".to_owned())],
        fqdns: Vec::new(),
    }
}

fn address(number: usize) -> SocketAddr {
    let [_, a, b, c] = u32::try_from(number + 1).unwrap_or(u32::MAX).to_be_bytes();
    SocketAddr::from(([10, a, b, c], 4677))
}

fn first_bytes(node: NodeId) -> u64 {
    node.as_bytes().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
