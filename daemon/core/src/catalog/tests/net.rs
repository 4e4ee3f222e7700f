//! A network of catalogs that exchange their outputs; no I/O, time moves by hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gossamer_wire::advert::{Advert, AdvertId, Header, Kind, Slot, Version};
use gossamer_wire::frame::{AdvertCopy, Frame, PREFIX_BYTES};
use gossamer_wire::{Health, NodeId, Routing, ServiceName, ServiceRecord, Transport, Tries, Visibility};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::start;
use crate::catalog::*;
use crate::time::Now;
use crate::trust::tests::{Authority, Key as NodeKey, WALL};
use crate::trust::{Sign, TrustBundle};

#[derive(Clone)]
pub(super) struct Signer(pub(super) Arc<NodeKey>);

impl Sign for Signer {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes)
    }
}

pub(super) struct Sim {
    pub(super) catalog: Catalog,
    pub(super) node: NodeId,
    pub(super) signer: Signer,
    pub(super) config: CatalogConfig,
    pub(super) card: CardContent,
    pub(super) epoch: u64,
    pub(super) records: Vec<ServiceRecord>,
    pub(super) events: Vec<CatalogEvent>,
    pub(super) changed: Vec<ServiceName>,
}

pub(super) struct Net {
    pub(super) authority: Authority,
    pub(super) nodes: Vec<Sim>,
    /// Connected pairs, smaller index first.
    links: BTreeSet<(usize, usize)>,
    wire: VecDeque<(usize, usize, Frame)>,
    pub(super) now: Now,
    /// One frame of so many is lost, by count.
    pub(super) loses_every: Option<usize>,
    /// Adverts of this kind are lost, and what announces them.
    pub(super) loses_kind: Option<Kind>,
    /// For nodes added from now on.
    pub(super) direct_up_to: usize,
    /// What the keys of nodes added from now on, and so their ids, are made from.
    pub(super) seed: u64,
    /// Frames sent since the start, by kind.
    pub(super) sent: BTreeMap<&'static str, usize>,
    /// Ids in lists since the start.
    pub(super) ids_listed: usize,
}

pub(in crate::catalog) fn name<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is a name"))
}

pub(in crate::catalog) fn record(service: &str, instance: &str) -> ServiceRecord {
    ServiceRecord {
        service: name(service),
        instance: name(instance),
        ports: vec![gossamer_wire::Port { name: 80.into(), number: 80, transport: Transport::Tcp }],
        visibility: Visibility::All,
        health: Health::Passing,
        weight: 100,
        draining: false,
        routing: Routing::default(),
        tries: Tries::default(),
        metadata: Vec::new(),
        fqdns: Vec::new(),
    }
}

impl Net {
    /// Makes one node per group, without links; none has published.
    pub(super) fn new(groups: &[&str]) -> Self {
        let mut net = Self {
            authority: Authority::new(),
            nodes: Vec::new(),
            links: BTreeSet::new(),
            wire: VecDeque::new(),
            now: Now { mono: start(), wall: WALL },
            loses_every: None,
            loses_kind: None,
            direct_up_to: DIRECT_UP_TO,
            seed: 0,
            sent: BTreeMap::new(),
            ids_listed: 0,
        };
        net.add_all(groups);
        net
    }

    fn add_all(&mut self, groups: &[&str]) {
        for group in groups {
            let key = NodeKey::of(self.seed << 32 | self.nodes.len() as u64);
            let leaf = self.authority.leaf(group, &format!("n{}", self.nodes.len()), &key);
            self.add(key, group, leaf);
        }
    }

    /// Makes a fully connected network whose nodes have published nothing but empty sets.
    pub(super) fn mesh(groups: &[&str]) -> Self {
        let mut net = Self::new(&[]);
        net.fill(groups);
        net
    }

    /// Adds one node per group, connected with all; they have published nothing but empty sets.
    pub(super) fn fill(&mut self, groups: &[&str]) {
        self.add_all(groups);
        for at in 0..self.nodes.len() {
            self.publish(at, &[]);
            (0..at).for_each(|other| self.link(other, at));
        }
        self.run();
    }

    pub(super) fn add(&mut self, key: NodeKey, group: &str, leaf: Vec<u8>) -> usize {
        let read = self.authority.bundle().verify(&leaf, &[], self.now.wall).expect("leaf");
        let config = CatalogConfig {
            node: read.node,
            group: name(group),
            zone: None,
            region: None,
            imports: Imports::default(),
            deny: Deny::default(),
            direct_up_to: self.direct_up_to,
            first_seq: 0,
        };
        let at = self.nodes.len();
        let card = CardContent {
            leaf,
            addresses: vec![format!("192.0.2.{at}:4677").parse().expect("address")],
            ..CardContent::default()
        };
        let signer = Signer(Arc::new(key));
        let catalog = self.start(&config, &signer, 1, Vec::new(), self.authority.bundle());
        let sim = Sim {
            catalog,
            node: config.node,
            signer,
            config,
            card: card.clone(),
            epoch: 1,
            records: Vec::new(),
            events: Vec::new(),
            changed: Vec::new(),
        };
        self.nodes.push(sim);
        self.handle(at, Input::Card(card));
        at
    }

    pub(super) fn start(
        &self,
        config: &CatalogConfig,
        signer: &Signer,
        epoch: u64,
        restored: Vec<AdvertCopy>,
        trust: TrustBundle,
    ) -> Catalog {
        // Each node draws its own waits: with the same ones all would meet at the same moments.
        let of_node =
            config.node.as_bytes().iter().fold(0_u64, |sum, byte| sum.rotate_left(8) ^ u64::from(*byte));
        let rng = SmallRng::seed_from_u64(of_node ^ epoch);
        Catalog::new(config.clone(), trust, Box::new(signer.clone()), rng, epoch, restored, self.now)
    }

    pub(super) fn id(&self, at: usize) -> NodeId {
        self.nodes[at].node
    }

    pub(super) fn at(&self, node: NodeId) -> usize {
        self.nodes.iter().position(|sim| sim.node == node).expect("a node of the network")
    }

    pub(super) fn handle(&mut self, at: usize, input: Input) {
        self.nodes[at].catalog.handle(input, self.now);
        self.drain(at);
    }

    /// Gives bytes to a node as an advert of another.
    pub(super) fn give(&mut self, from: usize, to: usize, age: u32, bytes: &[u8]) {
        let copies = vec![AdvertCopy { age, bytes: bytes.to_vec().into() }];
        let frame = Frame::Adverts { copies, forward: Vec::new() };
        self.handle(to, Input::Frame { from: self.id(from), frame });
    }

    /// Publishes services under the node's own name.
    pub(super) fn publish(&mut self, at: usize, services: &[&str]) {
        let instance = format!("n{at}");
        self.publish_records(at, services.iter().map(|service| record(service, &instance)).collect());
    }

    pub(super) fn publish_records(&mut self, at: usize, records: Vec<ServiceRecord>) {
        self.nodes[at].records = records.clone();
        self.handle(at, Input::Publish(records));
    }

    pub(super) fn link(&mut self, a: usize, b: usize) {
        if self.links.insert((a.min(b), a.max(b))) {
            for (at, other) in [(a, b), (b, a)] {
                self.handle(at, Input::Member { node: self.id(other), state: MemberLiveness::Alive });
                self.handle(at, Input::Connected(self.id(other)));
            }
        }
    }

    fn without_lost(&self, mut frame: Frame) -> Frame {
        let is_lost = |kind: Kind| self.loses_kind == Some(kind);
        match &mut frame {
            Frame::Adverts { copies, .. } | Frame::Spread { copies, .. } => copies.retain(|copy| {
                !Advert::parse(&copy.bytes).is_ok_and(|advert| is_lost(advert.id().slot.kind))
            }),
            Frame::Have(ids) => ids.retain(|id| !is_lost(id.slot.kind)),
            _ => {}
        }
        frame
    }

    /// Cuts the connection; both stay members for each other.
    pub(super) fn cut(&mut self, a: usize, b: usize) {
        if self.links.remove(&(a.min(b), a.max(b))) {
            for (at, other) in [(a, b), (b, a)] {
                self.handle(at, Input::Disconnected(self.id(other)));
            }
            self.wire.retain(|(from, to, _)| (*from.min(to), *from.max(to)) != (a.min(b), a.max(b)));
        }
    }

    /// Cuts the connection and makes both down for each other.
    pub(super) fn part(&mut self, a: usize, b: usize) {
        self.cut(a, b);
        for (at, other) in [(a, b), (b, a)] {
            self.handle(at, Input::Member { node: self.id(other), state: MemberLiveness::Down });
        }
    }

    /// Stops a node and starts it again with what it exported, under the next epoch.
    pub(super) fn restart(&mut self, at: usize, keeps_state: bool) {
        let peers: Vec<_> = (0..self.nodes.len()).filter(|other| self.is_linked(at, *other)).collect();
        peers.iter().for_each(|&other| self.cut(at, other));
        if !keeps_state {
            // Below the versions of the last run and above them in turn.
            let first = self.nodes[at].config.first_seq;
            self.nodes[at].config.first_seq = if first < 500_000 { first + 700_000 } else { first - 600_000 };
        }
        let sim = &self.nodes[at];
        let restored = if keeps_state { sim.catalog.export(self.now) } else { Vec::new() };
        let epoch = if keeps_state { sim.epoch + 1 } else { 1 };
        let catalog = self.start(&sim.config, &sim.signer, epoch, restored, self.authority.bundle());
        let sim = &mut self.nodes[at];
        (sim.catalog, sim.epoch) = (catalog, epoch);
        let (card, records) = (sim.card.clone(), sim.records.clone());
        self.handle(at, Input::Card(card));
        self.handle(at, Input::Publish(records));
        peers.iter().for_each(|&other| self.link(at, other));
    }

    pub(super) fn is_linked(&self, a: usize, b: usize) -> bool {
        self.links.contains(&(a.min(b), a.max(b)))
    }

    /// Delivers every frame until nothing is under way. Time stands still.
    pub(super) fn run(&mut self) {
        while self.step() {}
    }

    /// Delivers one frame.
    pub(super) fn step(&mut self) -> bool {
        let Some((from, to, frame)) = self.wire.pop_front() else { return false };
        let from = self.id(from);
        self.handle(to, Input::Frame { from, frame });
        true
    }

    /// Lets time pass, calling every node at its deadline.
    pub(super) fn pass(&mut self, time: Duration) {
        self.run();
        let end = self.now.mono + time;
        loop {
            let next = self.nodes.iter().filter_map(|sim| sim.catalog.next_deadline()).min();
            let at = next.filter(|at| *at <= end).unwrap_or(end).max(self.now.mono);
            self.move_to(at);
            for node in 0..self.nodes.len() {
                self.nodes[node].catalog.handle_timeout(self.now);
                self.drain(node);
            }
            self.run();
            let is_idle = self.nodes.iter().filter_map(|s| s.catalog.next_deadline()).all(|due| due > end);
            if at >= end && is_idle {
                return;
            }
        }
    }

    /// Lets time pass at once; only what is due at its end happens.
    pub(super) fn jump(&mut self, time: Duration) {
        self.move_to(self.now.mono + time);
        self.pass(Duration::ZERO);
    }

    fn move_to(&mut self, at: Instant) {
        self.now = Now { mono: at, wall: WALL + at.saturating_duration_since(self.began()).as_secs() };
    }

    fn began(&self) -> Instant {
        self.now.mono - Duration::from_secs(self.now.wall - WALL)
    }

    /// Instances of a service that a node may use, as node indices in view order.
    pub(super) fn usable(&self, at: usize, service: &str) -> Vec<usize> {
        let view = self.nodes[at].catalog.service(&name(service), self.now);
        let instances = view.into_iter().flat_map(|view| view.instances);
        instances.filter(|i| i.state == InstanceState::Usable).map(|i| self.at(i.node)).collect()
    }

    pub(super) fn view(&self, at: usize, service: &str) -> Option<ServiceView> {
        self.nodes[at].catalog.service(&name(service), self.now)
    }

    pub(super) fn counters(&self, at: usize) -> Counters {
        self.nodes[at].catalog.counters()
    }

    pub(super) fn sent(&self, kind: &str) -> usize {
        self.sent.get(kind).copied().unwrap_or_default()
    }

    /// Signs an advert with a node's key, outside its catalog.
    pub(super) fn forge(&self, at: usize, kind: Kind, k: u16, version: (u64, u64), body: &[u8]) -> Advert {
        let slot = Slot { node: self.id(at), kind, k };
        let id = AdvertId { slot, version: Version { epoch: version.0, seq: version.1 } };
        let signer = &self.nodes[at].signer;
        Advert::build(Header { mesh: self.authority.mesh, id }, body, |bytes| signer.sign(bytes))
            .expect("fits")
    }

    /// Signs an advert of another header version.
    pub(super) fn forge_version(
        &self,
        at: usize,
        header: u8,
        kind: Kind,
        k: u16,
        version: (u64, u64),
        body: &[u8],
    ) -> Advert {
        let mut bytes = self.forge(at, kind, k, version, body).bytes().to_vec();
        bytes[0] = header;
        let unsigned = bytes.len() - gossamer_wire::advert::SIGNATURE_BYTES;
        let signed = [&b"gossamer-advert-v1\0"[..], &bytes[..unsigned]].concat();
        bytes.truncate(unsigned);
        bytes.extend_from_slice(&self.nodes[at].signer.sign(&signed));
        Advert::parse(&bytes).expect("the header is the same")
    }

    /// Returns the copy of one advert that a node holds.
    pub(super) fn held_by(&self, at: usize, of: usize, kind: Kind, k: u16) -> Option<AdvertCopy> {
        let slot = Slot { node: self.id(of), kind, k };
        let is_it =
            |copy: &AdvertCopy| Advert::parse(&copy.bytes).is_ok_and(|advert| advert.id().slot == slot);
        self.nodes[at].catalog.export(self.now).into_iter().find(is_it)
    }

    fn drain(&mut self, at: usize) {
        while let Some(output) = self.nodes[at].catalog.next_output() {
            match output {
                Output::Send { to, frame } => {
                    let to = self.at(to);
                    let bytes = frame.encode().expect("within the limits");
                    let kind = u16::from_be_bytes([bytes[4], bytes[5]]);
                    let frame = Frame::decode(kind, &bytes[PREFIX_BYTES..]).expect("valid").expect("known");
                    *self.sent.entry(kind_of(&frame)).or_default() += 1;
                    if let Frame::Ids { ids, .. } = &frame {
                        self.ids_listed += ids.len();
                    }
                    let sent: usize = self.sent.values().sum();
                    let frame = self.without_lost(frame);
                    let is_lost = self.loses_every.is_some_and(|every| sent.is_multiple_of(every));
                    if self.is_linked(at, to) && !is_lost {
                        self.wire.push_back((at, to, frame));
                    }
                }
                Output::EpochBehind { at_least } => {
                    self.nodes[at].epoch = at_least;
                    self.nodes[at].catalog.set_epoch(at_least, self.now);
                }
                Output::Event(event) => self.nodes[at].events.push(event),
                Output::ServiceChanged(service) => self.nodes[at].changed.push(service),
                Output::NodeChanged(_) => {}
            }
        }
    }
}

fn kind_of(frame: &Frame) -> &'static str {
    match frame {
        Frame::Adverts { .. } => "adverts",
        Frame::Root(_) => "root",
        Frame::Buckets(_) => "buckets",
        Frame::Ids { .. } => "ids",
        Frame::Have(_) => "have",
        Frame::Want(_) => "want",
        Frame::Spread { .. } => "spread",
        _ => "other",
    }
}
