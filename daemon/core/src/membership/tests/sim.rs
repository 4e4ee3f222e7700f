//! A mesh of memberships in virtual time.
//!
//! Owns: who runs, which links carry, what is under way. Must not know: what is tested.
//! Driven by: the scenario tests, one step at a time, in an order that depends on the seed only.
//!
//! Packets are lost and cut like datagrams. Frames are not lost but late, and not reordered, as on a stream, but a
//! cut link drops them. Nodes connect to every up member they hear of, as the daemon does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gossamer_wire::frame::Frame;
use gossamer_wire::swim::{self, Identity, SwimHeader, SwimMember, SwimMessage};
use gossamer_wire::{Generation, NodeId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::{Input, MemberState, Membership, MembershipConfig, Output};
use super::start;
use crate::dial::{PairRank, WarmSet};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Something a node put out that tests look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) node: usize,
    pub(super) output: Output,
}

pub(super) struct Sim {
    start: Instant,
    now: Instant,
    rng: StdRng,
    nodes: Vec<Option<Node>>,
    queue: BTreeMap<(Instant, u64), (usize, Input)>,
    parked: Vec<(usize, Input)>,
    arrivals: u64,
    cut: BTreeSet<(usize, usize)>,
    /// When the last frame of each stream arrives.
    streams: BTreeMap<(usize, usize), Instant>,
    pub(super) loss: f64,
    /// Who connects to whom.
    warm: WarmSet,
    /// Whether a connection that is wanted at once comes.
    pub(super) is_reachable: bool,
    /// Pings of pairs that are not warm.
    pub(super) cold_pings: u64,
    /// Packets nobody gets because there is no connection.
    pub(super) unsendable: u64,
    pub(super) events: Vec<Event>,
    pub(super) packets: u64,
    pub(super) frames: u64,
    /// Probes on streams.
    pub(super) probes: u64,
    /// Packets on streams: what a finder tells everybody.
    pub(super) shouts: u64,
    pub(super) bytes: u64,
}

struct Node {
    membership: Membership,
    is_paused: bool,
    connected: BTreeSet<usize>,
    paused: Instant,
    /// How long its clock stood still.
    behind: Duration,
    /// Added to each way, in and out.
    slowness: Duration,
}

impl Sim {
    /// Makes nodes of epoch 1 that know nobody.
    pub(super) fn new(nodes: usize, seed: u64) -> Self {
        Self::with_warm(nodes, seed, WarmSet::default())
    }

    /// Makes such nodes that keep connections to the warm ones only.
    pub(super) fn with_warm(nodes: usize, seed: u64, mut warm: WarmSet) -> Self {
        warm.resize(nodes);
        let start = start();
        let mut sim = Self {
            start,
            now: start,
            rng: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            queue: BTreeMap::new(),
            parked: Vec::new(),
            arrivals: 0,
            cut: BTreeSet::new(),
            streams: BTreeMap::new(),
            loss: 0.0,
            warm,
            is_reachable: true,
            cold_pings: 0,
            unsendable: 0,
            events: Vec::new(),
            packets: 0,
            frames: 0,
            probes: 0,
            shouts: 0,
            bytes: 0,
        };
        for node in 0..nodes {
            sim.nodes.push(None);
            sim.start(node, 1);
        }
        sim
    }

    /// Makes a mesh in which all know and have connected to all.
    pub(super) fn settled(nodes: usize, seed: u64) -> Self {
        let mut sim = Self::new(nodes, seed);
        (1..nodes).for_each(|node| sim.connect(node, 0));
        sim.run_until(60 * SECOND, Self::all_see_all).expect("the mesh forms");
        sim.run(5 * SECOND);
        sim.events.clear();
        sim
    }

    pub(super) fn connect(&mut self, dialer: usize, other: usize) {
        if !self.carries(dialer, other) || !self.carries(other, dialer) || self.nodes[other].is_none() {
            return;
        }
        for (node, peer) in [(dialer, other), (other, dialer)] {
            self.node(node).connected.insert(peer);
            self.later(node, Input::Connected { peer: id(peer) }, Duration::from_millis(1));
        }
    }

    /// Stops a node without a word.
    pub(super) fn kill(&mut self, node: usize) {
        self.nodes[node] = None;
    }

    /// Starts a killed node without memory and connects it to one peer.
    pub(super) fn restart(&mut self, node: usize, epoch: u64, peer: usize) {
        for other in self.running().collect::<Vec<_>>() {
            if self.node(other).connected.remove(&node) {
                self.deliver(other, Input::Disconnected { peer: id(node) });
            }
        }
        self.start(node, epoch);
        self.connect(node, peer);
    }

    pub(super) fn pause(&mut self, node: usize) {
        let now = self.now;
        self.node(node).is_paused = true;
        self.node(node).paused = now;
    }

    /// Lets a node run on; first it gets what came meanwhile.
    pub(super) fn resume(&mut self, node: usize) {
        self.node(node).is_paused = false;
        for (to, input) in std::mem::take(&mut self.parked) {
            self.deliver(to, input);
        }
    }

    /// Lets a suspended node run on: its timers have not moved, and what came meanwhile is lost.
    pub(super) fn wake(&mut self, node: usize) {
        self.parked.clear();
        let now = self.now;
        let sleeper = self.node(node);
        sleeper.is_paused = false;
        sleeper.behind += now - sleeper.paused;
        self.deliver(node, Input::Slept);
    }

    pub(super) fn cut_one_way(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub(super) fn cut(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
    }

    /// Mends all links and connects the pairs again, as redials do.
    pub(super) fn heal(&mut self) {
        for (a, b) in std::mem::take(&mut self.cut) {
            if a < b && self.nodes[a].is_some() {
                self.connect(a, b);
            }
        }
    }

    /// Sends what a hostile node may send: any packet, from itself, by datagram. It has a connection to everybody.
    pub(super) fn forge(&mut self, from: usize, to: usize, message: SwimMessage, members: Vec<SwimMember>) {
        let header = SwimHeader {
            from: self.membership(from).me().generation,
            incarnation: 0,
            to: self.membership(to).me().generation,
            message,
        };
        let mut bytes = swim::encode(&header).expect("fits");
        if !members.is_empty() {
            bytes.extend((members.len() as u16).to_be_bytes());
            members.iter().for_each(|member| bytes.extend(swim::encode(member).expect("fits")));
        }
        self.later(to, Input::Packet { from: id(from), bytes }, Duration::from_millis(1));
    }

    /// Makes every node distrust itself as much as it can.
    pub(super) fn unsettle(&mut self) {
        for node in self.nodes.iter_mut().flatten() {
            (0..3).for_each(|_| node.membership.health.worsen());
        }
    }

    pub(super) fn input(&mut self, node: usize, input: Input) {
        self.deliver(node, input);
    }

    /// Runs until the condition holds, at most `limit`; returns how long it took.
    pub(super) fn run_until(
        &mut self,
        limit: Duration,
        condition: impl Fn(&Self) -> bool,
    ) -> Option<Duration> {
        let begin = self.now;
        while !condition(self) {
            if self.now >= begin + limit {
                return None;
            }
            self.run(Duration::from_millis(10));
        }
        Some(self.now - begin)
    }

    pub(super) fn run(&mut self, length: Duration) {
        let end = self.now + length;
        loop {
            let message = self.queue.first_key_value().map(|((at, _), _)| *at);
            let due = (0..self.nodes.len()).filter_map(|node| Some((self.deadline(node)?, node))).min();
            match (message, due) {
                (Some(at), due) if at <= end && due.is_none_or(|(due, _)| at <= due) => {
                    self.now = self.now.max(at);
                    if let Some((_, (node, input))) = self.queue.pop_first() {
                        self.deliver(node, input);
                    }
                }
                (_, Some((at, node))) if at <= end => {
                    self.now = self.now.max(at);
                    let now = self.now - self.node(node).behind;
                    self.node(node).membership.handle_timeout(now);
                    self.drain(node);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    pub(super) fn membership(&self, node: usize) -> &Membership {
        &self.nodes[node].as_ref().expect("the node runs").membership
    }

    /// What `node` makes of `other`.
    pub(super) fn state(&self, node: usize, other: usize) -> Option<MemberState> {
        self.membership(node).members().find(|view| view.node == id(other)).map(|view| view.state)
    }

    pub(super) fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_some())
    }

    /// Whether every running node holds exactly the other running nodes for alive, in their present lives.
    pub(super) fn all_see_all(&self) -> bool {
        let lives = self.running().map(|node| self.membership(node).me());
        let lives: BTreeMap<_, _> = lives.map(|me| (me.node, me.generation)).collect();
        self.running().all(|node| {
            let alive = self.membership(node).members().filter(|view| view.state == MemberState::Alive);
            let mut alive: BTreeMap<_, _> = alive.map(|view| (view.node, view.generation)).collect();
            alive.insert(id(node), lives[&id(node)]);
            alive == lives
        })
    }

    /// Returns every report that a node is down or has left, or had to renew itself.
    pub(super) fn verdicts(&self) -> Vec<&Event> {
        let is_verdict = |event: &&Event| match event.output {
            Output::Changed { to, .. } => !to.is_up(),
            Output::Renewed(_) => true,
            _ => false,
        };
        self.events.iter().filter(is_verdict).collect()
    }

    /// Returns every report that a node got this state.
    pub(super) fn reports(&self, state: MemberState) -> Vec<&Event> {
        let is_it = |event: &&Event| matches!(event.output, Output::Changed { to, .. } if to == state);
        self.events.iter().filter(is_it).collect()
    }

    fn start(&mut self, node: usize, epoch: u64) {
        let me = Identity { node: id(node), generation: Generation::of_epoch(epoch) };
        let rng = StdRng::from_rng(&mut self.rng);
        let config = MembershipConfig { warm: self.warm, ..MembershipConfig::default() };
        let membership = Membership::new(config, me, rng, self.now);
        self.nodes[node] = Some(Node {
            membership,
            is_paused: false,
            connected: BTreeSet::new(),
            slowness: Duration::ZERO,
            paused: self.now,
            behind: Duration::ZERO,
        });
    }

    fn node(&mut self, node: usize) -> &mut Node {
        self.nodes[node].as_mut().expect("the node runs")
    }

    /// Makes everything to and from a node later.
    pub(super) fn slow_down(&mut self, node: usize, each_way: Duration) {
        self.node(node).slowness = each_way;
    }

    fn slowness(&self, node: usize) -> Duration {
        self.nodes[node].as_ref().map_or(Duration::ZERO, |node| node.slowness)
    }

    /// Whether two nodes keep a connection.
    pub(super) fn is_warm(&self, one: usize, other: usize) -> bool {
        self.warm.holds(PairRank::of(id(one), id(other)))
    }

    fn carries(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    fn deadline(&self, node: usize) -> Option<Instant> {
        let node = self.nodes[node].as_ref().filter(|node| !node.is_paused)?;
        Some(node.membership.next_deadline()? + node.behind)
    }

    fn later(&mut self, node: usize, input: Input, latency: Duration) {
        self.arrivals += 1;
        self.queue.insert((self.now + latency, self.arrivals), (node, input));
    }

    fn deliver(&mut self, to: usize, input: Input) {
        let now = self.now;
        match &mut self.nodes[to] {
            None => {}
            Some(node) if node.is_paused => self.parked.push((to, input)),
            Some(node) => {
                node.membership.handle(input, now - node.behind);
                self.drain(to);
            }
        }
    }

    fn drain(&mut self, node: usize) {
        while let Some(output) = self.node(node).membership.next_output() {
            match output {
                Output::Packet { to, bytes } => self.send_packet(node, index(to), bytes),
                Output::Frame { to, frame } => self.send_frame(node, index(to), frame),
                Output::Reach { node: other } => {
                    if self.is_reachable && !self.node(node).connected.contains(&index(other)) {
                        self.connect(node, index(other));
                    }
                }
                output => {
                    if let Output::Changed { node: other, to: MemberState::Alive, .. } = output
                        && !self.node(node).connected.contains(&index(other))
                        && self.is_warm(node, index(other))
                    {
                        self.connect(node, index(other));
                    }
                    self.events.push(Event { at: self.now - self.start, node, output });
                }
            }
        }
    }

    fn send_packet(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        assert!(bytes.len() <= gossamer_wire::limits::MAX_SWIM_BYTES);
        self.packets += 1;
        self.bytes += bytes.len() as u64;
        let message = swim::decode_header(&bytes).expect("whole").0.message;
        self.cold_pings += u64::from(matches!(message, SwimMessage::Ping(_)) && !self.is_warm(from, to));
        self.unsendable += u64::from(!self.node(from).connected.contains(&to));
        let is_lost = self.loss > 0.0 && self.rng.random_bool(self.loss);
        if self.node(from).connected.contains(&to) && self.carries(from, to) && !is_lost {
            let latency = Duration::from_micros(self.rng.random_range(200..1_000));
            let latency = latency + self.node(from).slowness + self.slowness(to);
            self.later(to, Input::Packet { from: id(from), bytes }, latency);
        }
    }

    fn send_frame(&mut self, from: usize, to: usize, frame: Frame) {
        self.bytes += frame.encode().expect("frames fit").len() as u64;
        assert!(self.node(from).connected.contains(&to), "frames go to connected peers only");
        self.shouts += u64::from(matches!(frame, Frame::Swim(_)));
        let input = match frame {
            Frame::MemberHash(hash) => Input::MemberHash { from: id(from), hash },
            Frame::Members { members, reply } => Input::Members { from: id(from), members, reply },
            Frame::Swim(bytes) => Input::Packet { from: id(from), bytes },
            Frame::Probe(number) => Input::Probe { from: id(from), number },
            Frame::ProbeAck(number) => Input::ProbeAck { from: id(from), number },
            other => panic!("membership sends no {other:?}"),
        };
        self.frames += 1;
        self.probes += u64::from(matches!(input, Input::Probe { .. }));
        if self.carries(from, to) {
            // Lost pieces of a stream are sent again, and what follows waits for them.
            let mut at = self.now + Duration::from_millis(1) + self.node(from).slowness + self.slowness(to);
            let mut again = Duration::from_millis(30);
            while self.loss > 0.0 && self.rng.random_bool(self.loss) {
                at += again;
                again *= 2;
            }
            let last = self.streams.entry((from, to)).or_insert(at);
            *last = at.max(*last);
            let latency = *last - self.now;
            self.later(to, input, latency);
        }
    }
}

pub(super) fn id(node: usize) -> NodeId {
    let mut bytes = [0; 16];
    bytes[14..].copy_from_slice(&(node as u16).to_be_bytes());
    NodeId::from_bytes(bytes)
}

fn index(id: NodeId) -> usize {
    let [.., high, low] = *id.as_bytes();
    u16::from_be_bytes([high, low]).into()
}
