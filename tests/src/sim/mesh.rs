//! The simulated mesh: a clock, a queue of what is going to happen, the nodes, the network.
//!
//! Owns: the passing of time. Must not know: what the cores decide, what must hold. Driven by: a scenario, or
//! evidence that has more to ask than a scenario can.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use gossamer_core::catalog;
use gossamer_core::dial::WarmSet;
use gossamer_core::membership;
use gossamer_core::time::Now;
use gossamer_core::trust::TrustBundle;
use gossamer_wire::NodeId;
use gossamer_wire::frame::Frame;

use super::authority::Authority;
use super::batch::Helpers;
use super::cost;
use super::link::{ConnId, End, Links};
use super::mixed::Dialects;
use super::net::Network;
use super::node::{Node, Process};
use super::queue::Queue;
use super::tables::QuickMap;
use super::watch::{Trace, Watch};
use super::wiring::Stimulus;
use crate::scenario::{Act, Disk, Down, NodeState, Scenario, World};

/// What is going to happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A core has something to do.
    Wake { node: usize, life: u64 },
    /// The catalog goes to the disk.
    Save { node: usize, life: u64 },
    /// Idle connections are given up.
    Sweep { node: usize, life: u64 },
    /// A node that has said goodbye ends.
    Gone { node: usize, life: u64 },
    /// A part of a handshake is sent again.
    Shake { conn: ConnId, part: usize, attempt: u32 },
    /// A part of a handshake arrives.
    Shaken { conn: ConnId, part: usize },
    /// A handshake has had its time.
    DialOver { conn: ConnId },
    /// A dial came to nothing.
    DialFailed { node: usize, life: u64, wanted: usize },
    /// A frame arrives.
    Frame { conn: ConnId, to: End, frame: Box<Frame> },
    /// A datagram arrives.
    Datagram { conn: ConnId, to: End, bytes: Vec<u8> },
    /// Blocked frames are tried again.
    Retry { conn: ConnId, end: End },
    /// An end hears that the connection is over.
    Closed { conn: ConnId, end: End },
}

/// A mesh of nodes in one process, on a virtual clock.
pub struct Mesh {
    pub(super) now: Duration,
    /// What the virtual clock calls zero. Its value reaches no output.
    base: Instant,
    seed: u64,
    pub(super) queue: Queue<Event>,
    pub(super) net: Network,
    pub(super) nodes: Vec<Node>,
    pub(super) links: Links,
    pub(super) trust: TrustBundle,
    numbers: QuickMap<NodeId, usize>,
    addresses: HashMap<SocketAddr, usize>,
    pub(super) trace: Trace,
    pub(super) watch: Watch,
    pub(super) downs: Vec<Down>,
    /// Who named whom for false claims.
    pub(super) named: Vec<(usize, usize)>,
    /// Nodes that do not speak as the others do.
    pub(super) dialects: Dialects,
    /// Events done, for speed figures.
    pub(super) events: u64,
    /// Who takes steps beside this thread.
    pub(super) helpers: Helpers,
    /// Whether catalogs are written to disks: a thousand of a thousand nodes each second are not for nothing.
    pub(super) has_disks: bool,
    /// The last node that did not see or serve what all should.
    pub(super) doubtful: usize,
    /// Wake-ups that left a deadline in the past: a daemon would spin.
    spins: u64,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("now", &self.now)
            .field("nodes", &self.nodes.len())
            .field("waiting", &self.queue.len())
            .finish_non_exhaustive()
    }
}

impl Mesh {
    /// Makes the nodes of a scenario; none runs.
    ///
    /// # Errors
    /// The provider of cryptography refuses.
    pub fn new(scenario: &Scenario, seed: u64) -> Result<Self> {
        let mut authority = Authority::new(seed)?;
        let count = scenario.nodes;
        let identities =
            (0..count).map(|number| authority.admit(&format!("n{number}"))).collect::<Result<Vec<_>>>()?;
        let seeds: Vec<_> = scenario.seeds.iter().copied().collect();
        let mut nodes: Vec<Node> = Vec::with_capacity(count);
        for (number, identity) in identities.into_iter().enumerate() {
            nodes.push(Node::new(number, identity, scenario.records));
        }
        let known: Vec<_> =
            seeds.iter().map(|seed| (nodes[*seed].identity.node, nodes[*seed].address)).collect();
        nodes.iter_mut().for_each(|node| node.set_seeds(&known));
        let numbers = nodes.iter().enumerate().map(|(number, node)| (node.identity.node, number)).collect();
        let addresses = nodes.iter().enumerate().map(|(number, node)| (node.address, number)).collect();
        Ok(Self {
            now: Duration::ZERO,
            base: Instant::now(),
            seed,
            queue: Queue::default(),
            net: Network::new(scenario.net, count, seed ^ 0x6e65_7477),
            nodes,
            links: Links::default(),
            trust: authority.trust(),
            numbers,
            addresses,
            trace: Trace::default(),
            watch: Watch::default(),
            downs: Vec::new(),
            named: Vec::new(),
            dialects: Dialects::default(),
            events: 0,
            helpers: Helpers::of(count),
            has_disks: true,
            doubtful: 0,
            spins: 0,
        })
    }

    /// Sets above how many members not all pairs keep a connection. For nodes that start afterwards.
    pub fn set_warm_limit(&mut self, limit: usize) {
        self.nodes.iter_mut().for_each(|node| node.warm = WarmSet::new(limit));
    }

    /// Returns how many peers each node that runs is connected to.
    pub fn connections(&self) -> Vec<usize> {
        self.nodes.iter().filter_map(|node| Some(node.process.as_ref()?.current.len())).collect()
    }

    /// Starts a node that does not run.
    pub(super) fn start(&mut self, node: usize, disk: Disk) {
        let (now, base, seed) = (self.now, self.base, self.seed);
        let records = self.nodes[node].start(disk, self.trust.clone(), seed, base, now);
        let life = self.life(node);
        self.step(node, Stimulus::Changed);
        self.step(node, Stimulus::Catalog(catalog::Input::Publish(records)));
        self.later(SWEEP, Event::Sweep { node, life });
    }

    /// Ends a node without a word.
    pub(super) fn kill(&mut self, node: usize) {
        let life = self.life(node);
        self.nodes[node].process = None;
        self.nodes[node].is_suspended = false;
        self.nodes[node].parked.clear();
        self.bury(node, life);
    }

    /// Lets a node say goodbye; it ends a moment later.
    fn leave(&mut self, node: usize) {
        let (now, base) = (self.now, self.base);
        self.step(node, Stimulus::Membership(membership::Input::Leave));
        self.nodes[node].save(base, now);
        self.later(FAREWELL, Event::Gone { node, life: self.life(node) });
    }

    fn resume(&mut self, node: usize) {
        self.nodes[node].is_suspended = false;
        let life = self.life(node);
        let parked = std::mem::take(&mut self.nodes[node].parked);
        // A process that goes on finds its timers due beside what its socket has kept.
        self.later(Duration::ZERO, Event::Wake { node, life });
        for event in parked {
            self.later(Duration::ZERO, event);
        }
        if let Some(process) = &mut self.nodes[node].process {
            process.wake = Some(self.now);
        }
        self.later(SWEEP, Event::Sweep { node, life });
    }

    /// Suspends the machine of a node: nothing runs, its monotonic clock stands still, what comes is lost.
    pub fn sleep(&mut self, node: usize) {
        self.nodes[node].is_suspended = true;
        self.nodes[node].asleep = Some(self.now);
    }

    /// Ends that. The daemon notices that the wall clock is ahead.
    pub fn wake_up(&mut self, node: usize) {
        let Some(since) = self.nodes[node].asleep.take() else { return };
        self.nodes[node].behind += self.now - since;
        self.nodes[node].is_suspended = false;
        self.nodes[node].parked.clear();
        if let Some(process) = &mut self.nodes[node].process {
            process.wake = None;
        }
        self.step(node, Stimulus::Membership(membership::Input::Slept));
        self.later(SWEEP, Event::Sweep { node, life: self.life(node) });
    }

    /// Does what an event does to the world, and returns what a process has to take of it.
    pub(super) fn handle(&mut self, event: Event) -> Option<(usize, Stimulus)> {
        match event {
            Event::Wake { node, life } => return self.wake(node, life).then_some((node, Stimulus::Timeout)),
            Event::Frame { conn, to, frame } => return self.take_frame_at(conn, to, frame),
            Event::Datagram { conn, to, bytes } => return self.take_datagram_at(conn, to, bytes),
            Event::Save { node, life } => {
                let (now, base) = (self.now, self.base);
                if let Some(process) = self.process_of(node, life) {
                    process.save_is_planned = false;
                    self.nodes[node].save(base, now);
                }
            }
            Event::Sweep { node, life } => {
                if self.process_of(node, life).is_some() && !self.nodes[node].is_suspended {
                    self.sweep(node);
                    self.later(SWEEP, Event::Sweep { node, life });
                }
            }
            Event::Gone { node, life } => {
                if self.process_of(node, life).is_some() {
                    self.hang_up_all(node);
                    self.kill(node);
                }
            }
            Event::Shake { conn, part, attempt } => self.shake(conn, part, attempt),
            Event::Shaken { conn, part } => self.shaken(conn, part),
            Event::DialOver { conn } => self.dial_over(conn),
            Event::DialFailed { node, life, wanted } => self.dial_failed(node, life, wanted),
            Event::Retry { conn, end } => self.retry(conn, end),
            Event::Closed { conn, end } => self.closed(conn, end),
        }
        None
    }

    /// Whether a wake-up is still wanted.
    fn wake(&mut self, node: usize, life: u64) -> bool {
        let at = self.now;
        if self.nodes[node].is_suspended {
            return false;
        }
        let Some(process) = self.process_of(node, life) else { return false };
        process.wake.take_if(|wake| *wake == at).is_some()
    }

    /// Plans to wake a node when one of its cores has something to do.
    pub(super) fn plan_wake(&mut self, node: usize) {
        let (at, life, base) = (self.now, self.life(node), self.base + self.nodes[node].behind);
        let Some(process) = &mut self.nodes[node].process else { return };
        let Some(due) = process.due else { return };
        let mut due = due.saturating_duration_since(base);
        if due <= at {
            // The runtime's timers have a resolution of a millisecond, and a core that is never done would
            // stop the clock.
            due = at + Duration::from_millis(1);
            self.spins += 1;
        }
        if process.wake.is_none_or(|wake| due < wake) {
            process.wake = Some(due);
            self.at(due, Event::Wake { node, life });
        }
    }

    /// Plans to write the catalog, as the daemon's housekeeping does.
    pub(super) fn plan_save(&mut self, node: usize) {
        let life = self.life(node);
        if self.has_disks
            && let Some(process) = &mut self.nodes[node].process
            && !std::mem::replace(&mut process.save_is_planned, true)
        {
            self.later(HOUSEKEEPING, Event::Save { node, life });
        }
    }

    pub(super) fn later(&mut self, after: Duration, event: Event) {
        self.queue.push(self.now + after, event);
    }

    pub(super) fn at(&mut self, at: Duration, event: Event) {
        self.queue.push(at, event);
    }

    /// Keeps an event for a suspended node; `false` when it is not suspended.
    pub(super) fn park(&mut self, node: usize, event: Event) -> bool {
        let is_suspended = self.nodes[node].is_suspended;
        if is_suspended {
            self.nodes[node].parked.push_back(event);
        }
        is_suspended
    }

    pub(super) fn life(&self, node: usize) -> u64 {
        self.nodes[node].life
    }

    /// Returns the process of a node if it is still the one of this life.
    pub(super) fn process_of(&mut self, node: usize, life: u64) -> Option<&mut Process> {
        let node = &mut self.nodes[node];
        if node.life == life { node.process.as_deref_mut() } else { None }
    }

    pub(super) fn id(&self, node: usize) -> NodeId {
        self.nodes[node].identity.node
    }

    pub(super) fn number(&self, id: NodeId) -> Option<usize> {
        self.numbers.get(&id).copied()
    }

    pub(super) fn at_address(&self, address: SocketAddr) -> Option<usize> {
        self.addresses.get(&address).copied()
    }

    /// Returns what a node's clocks show.
    pub(super) fn clock(&self, node: usize) -> Now {
        self.nodes[node].now(self.base, self.now)
    }

    /// Returns how many records a node serves.
    pub(super) fn served(&self, node: usize) -> usize {
        let (sim, now) = (&self.nodes[node], self.clock(node));
        let Some(process) = &sim.process else { return 0 };
        let is_served = |view: &catalog::NodeView| {
            let is_member =
                matches!(view.liveness, catalog::MemberLiveness::Alive | catalog::MemberLiveness::Suspect);
            let is_own = view.node == sim.identity.node;
            view.trusted && (is_own || is_member && !view.lease_left.is_zero())
        };
        process.catalog.nodes(now).iter().filter(|view| is_served(view)).map(|view| view.records).sum()
    }

    /// Books the bytes of one message and its acknowledgements.
    pub(super) fn charge_all(
        &mut self,
        from: usize,
        to: usize,
        kind: &'static str,
        packets: u64,
        bytes: u64,
    ) {
        self.nodes[from].count(kind, packets, bytes + packets * cost::PACKET);
        self.nodes[to].count("acknowledgements", 0, packets * cost::ACKNOWLEDGEMENT);
    }

    /// Books bytes that are all that is sent.
    pub(super) fn charge(&mut self, from: usize, kind: &'static str, bytes: u64) {
        if bytes > 0 {
            self.nodes[from].count(kind, 1, bytes);
        }
    }

    /// Returns events done and wake-ups in vain so far.
    pub const fn effort(&self) -> (u64, u64) {
        (self.events, self.spins)
    }

    /// Returns packets and bytes sent by all nodes, by kind of message.
    pub fn sent_by_kind(&self) -> Vec<(&'static str, u64, u64)> {
        let mut sums: std::collections::BTreeMap<&'static str, (u64, u64)> =
            std::collections::BTreeMap::new();
        for (kind, (packets, bytes)) in self.nodes.iter().flat_map(|node| node.sent.iter()) {
            let sum = sums.entry(kind).or_default();
            *sum = (sum.0 + packets, sum.1 + bytes);
        }
        sums.into_iter().map(|(kind, (packets, bytes))| (kind, packets, bytes)).collect()
    }

    /// Returns connections dialled so far.
    pub const fn dials(&self) -> u64 {
        self.links.made()
    }
}

impl World for Mesh {
    fn run_to(&mut self, at: Duration) -> Result<()> {
        self.run(at);
        Ok(())
    }

    fn act(&mut self, act: &Act) -> Result<()> {
        match act {
            Act::Start { node, disk } => self.start(*node, *disk),
            Act::Kill(node) => self.kill(*node),
            Act::Suspend(node) => self.nodes[*node].is_suspended = true,
            Act::Resume(node) => self.resume(*node),
            Act::Leave(node) => self.leave(*node),
            Act::Cut { from, to } => self.net.cut(from, to),
            Act::Heal => self.net.heal(),
            Act::Loss { nodes, share } => self.net.set_loss(nodes, *share),
            Act::Slow { nodes, more } => self.net.set_slow(nodes, *more),
            Act::Clock { node, seconds } => self.nodes[*node].clock_error += seconds,
            Act::Publish { node, count } => {
                let records = self.nodes[*node].publish(*count);
                self.step(*node, Stimulus::Catalog(catalog::Input::Publish(records)));
            }
            Act::Withdraw { node, count } => {
                let records = self.nodes[*node].withdraw(*count);
                self.step(*node, Stimulus::Catalog(catalog::Input::Publish(records)));
            }
        }
        Ok(())
    }

    fn state(&mut self, node: usize) -> Result<NodeState> {
        let now = self.clock(node);
        let sim = &self.nodes[node];
        let Some(process) = &sim.process else {
            return Ok(NodeState { renewals: sim.renewals, ..NodeState::default() });
        };
        let number = |id| self.numbers.get(&id).copied();
        let mut up: Vec<usize> = process
            .membership
            .members()
            .filter(|member| member.state.is_up())
            .filter_map(|member| number(member.node))
            .collect();
        up.sort_unstable();
        let mut known: Vec<usize> =
            process.membership.members().filter_map(|member| number(member.node)).collect();
        let others = process.catalog.nodes(now).into_iter().filter(|view| view.node != sim.identity.node);
        known.extend(others.filter_map(|view| number(view.node)));
        known.sort_unstable();
        known.dedup();
        let (catalog, served) = (process.catalog.root_hash(), self.served(node));
        Ok(NodeState { catalog, served, up, known, renewals: sim.renewals })
    }

    fn take_downs(&mut self) -> Vec<Down> {
        std::mem::take(&mut self.downs)
    }

    fn bytes_sent(&mut self, node: usize) -> u64 {
        self.nodes[node].sent.iter().map(|(_, (_, bytes))| bytes).sum()
    }

    fn trace(&self) -> Option<u64> {
        Some(self.trace.hash())
    }
}

/// How long the daemon's last packets have to leave.
const FAREWELL: Duration = Duration::from_millis(100);

/// How often the daemon writes a catalog that has changed.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How often idle connections are looked for.
const SWEEP: Duration = Duration::from_secs(30);
