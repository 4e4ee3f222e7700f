//! A mesh of real endpoints in one process, on a virtual clock.
//!
//! Owns: the runtime, the network between the nodes, the nodes. Must not know: how the daemon works inside; it
//! starts [`gossamer::app::mesh`], the shipped transport, membership, catalog and index, and reads their handles.
//! DNS, local API, relay and issuer do not run here. Driven by: scenarios through [`World`], and tests.
//!
//! Quinn and rustls are real: handshakes, loss recovery, flow control and time-outs are those of the daemon. Only
//! the UDP socket is replaced, by one in memory ([`net`]), and the clock is tokio's, paused: it jumps to the next
//! timer whenever nobody has anything to do, so a minute costs what its work costs. One seed gives one trace, the
//! hash over time, sender, receiver and length of every datagram; contents differ, since TLS asks the system for
//! its keys.
//!
//! # What it can and cannot show
//! - Time has steps of 1 ms (tokio's timers): shorter delays are rounded up, their order is kept.
//! - Work takes no time: a node is never slow, only its network is.
//! - *Suspended* is SIGSTOP: tasks stand still ([`gate`]), the clock goes on, datagrams wait in the socket up to
//!   Linux's default buffer, timers are late. The suspend of a machine, whose monotonic clock stops too, is not
//!   shown: one clock serves all nodes.
//! - *Killed* drops all tasks at once; the kernel's buffers are gone, and the address is silent, as that of a
//!   machine without power. A process that dies on a living machine would also cause ICMP errors, which quinn
//!   ignores.
//! - A *disk* that loses what was not synced ([`disk`]), but never half a file.
//! - Wall clocks have an offset per node; they run evenly.

pub mod cost;
pub mod disk;
pub mod evict;
pub mod gate;
pub mod net;
mod node;
pub mod thief;
mod view;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gossamer::app::mesh::Mesh;
use gossamer::events::Named;
use gossamer_wire::NodeId;
use gossamer_wire::join::PeerHint;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::scenario::{self, Act, Down, NodeState, Report, Scenario, World, play};
use crate::sim::authority::Authority;
use net::{Net, Sent};
use node::Node;

/// The port of every node.
const PORT: u16 = 4_677;

/// Runs a scenario with one seed.
///
/// # Errors
/// A bug. What does not hold is in the report.
pub fn run(scenario: &Scenario, seed: u64) -> Result<Report> {
    play(scenario, seed, &mut Fabric::new(scenario, seed)?)
}

/// A mesh of simulated machines. Times count from its making.
pub struct Fabric {
    net: Net,
    nodes: Vec<Node>,
    authority: Authority,
    names: Arc<Names>,
    downs: Arc<Mutex<Vec<Down>>>,
    started: Instant,
    seed: u64,
    /// Last, so that tasks are dropped after the handles to them.
    runtime: Runtime,
}

/// A mistake of operators: two machines that should differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Double {
    /// A machine admitted under the name of another.
    Name {
        /// The second.
        node: usize,
        /// The first.
        of: usize,
    },
    /// A machine with a copy of the state directory of another.
    Identity {
        /// The second.
        node: usize,
        /// The first.
        of: usize,
    },
}

/// The number of each node, by what others call it.
#[derive(Debug, Default)]
struct Names {
    by_id: BTreeMap<NodeId, usize>,
    /// By name, and by id in words, as events have it until the card is there.
    by_word: BTreeMap<String, usize>,
}

impl Fabric {
    /// Makes the machines of a scenario; none runs.
    ///
    /// # Errors
    /// A bug.
    pub fn new(scenario: &Scenario, seed: u64) -> Result<Self> {
        Self::with_doubles(scenario, seed, &[])
    }

    /// Makes the machines of a scenario, some of them doubles of others.
    ///
    /// # Errors
    /// A bug.
    pub fn with_doubles(scenario: &Scenario, seed: u64, doubles: &[Double]) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let (net, started) = runtime.block_on(async {
            let net = Net::new(scenario.net, seed);
            tokio::spawn(net.clone().deliver());
            (net, Instant::now())
        });
        let mut authority = Authority::new(seed)?;
        let name = |number: usize| {
            let named = doubles.iter().find_map(|double| match double {
                Double::Name { node, of } if *node == number => Some(*of),
                _ => None,
            });
            format!("n{}", named.unwrap_or(number))
        };
        let mut identities = (0..scenario.nodes)
            .map(|number| node::identity(&mut authority, &name(number)))
            .collect::<Result<Vec<_>>>()?;
        let seeds: Vec<PeerHint> = scenario
            .seeds
            .iter()
            .map(|seed| PeerHint {
                node: identities[*seed].node(),
                addresses: vec![address(*seed)],
                lanes: Vec::new(),
            })
            .collect();
        let mut names = Names::default();
        for (number, identity) in identities.iter_mut().enumerate() {
            let node = identity.node();
            identity.seeds = seeds.iter().filter(|seed| seed.node != node).cloned().collect();
            names.by_id.insert(node, number);
            names.by_word.insert(name(number), number);
            names.by_word.insert(node.to_string(), number);
        }
        let mut identities: Vec<_> = identities.into_iter().map(Arc::new).collect();
        for double in doubles {
            if let Double::Identity { node, of } = double {
                identities[*node] = Arc::clone(&identities[*of]);
            }
        }
        let node = |(number, identity)| Node::new(number, identity, scenario.records, started);
        let nodes = identities.into_iter().enumerate().map(node).collect();
        let (names, downs) = (Arc::new(names), Arc::default());
        Ok(Self { net, nodes, authority, names, downs, started, seed, runtime })
    }

    /// Returns the virtual time since the making.
    pub fn now(&self) -> Duration {
        self.runtime.block_on(async { Instant::now() }) - self.started
    }

    /// Runs a future while the mesh runs on; the clock advances when both wait.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Lets the mesh run for so long.
    pub fn run_for(&self, time: Duration) {
        self.run(async { tokio::time::sleep(time).await });
    }

    /// Returns the network, to disturb it.
    pub const fn net(&self) -> &Net {
        &self.net
    }

    /// Returns the handles of a node that runs.
    ///
    /// # Errors
    /// It does not.
    pub fn mesh(&self, node: usize) -> Result<&Mesh> {
        Ok(&self.node(node)?.life()?.mesh)
    }

    /// Returns the handles of a node that runs, those with one user too.
    ///
    /// # Errors
    /// It does not.
    pub fn mesh_mut(&mut self, node: usize) -> Result<&mut Mesh> {
        let node = self.nodes.get_mut(node).context("no such node")?;
        node.life_mut().map(|life| &mut life.mesh)
    }

    /// Returns what a node that runs holds against others, as `status` lists it.
    ///
    /// # Errors
    /// It does not.
    pub fn findings(&self, node: usize) -> Result<Vec<Named>> {
        Ok(self.node(node)?.life()?.events.findings().all())
    }

    /// Returns the metrics of a node that runs, by name.
    ///
    /// # Errors
    /// It does not.
    pub fn metrics(&self, node: usize) -> Result<BTreeMap<String, u64>> {
        Ok(self.node(node)?.life()?.metrics.snapshot())
    }

    /// Returns the id of a node.
    ///
    /// # Errors
    /// There is no such node.
    pub fn id(&self, node: usize) -> Result<NodeId> {
        Ok(self.node(node)?.identity.node())
    }

    /// Returns what a node has sent, over all its lives.
    pub fn sent(&self, node: usize) -> Sent {
        self.net.sent(address(node))
    }

    /// Returns the disk of a node.
    ///
    /// # Errors
    /// There is no such node.
    pub fn disk(&self, node: usize) -> Result<&disk::Disk> {
        Ok(&self.node(node)?.disk)
    }

    fn node(&self, node: usize) -> Result<&Node> {
        self.nodes.get(node).with_context(|| format!("there is no node {node}"))
    }

    fn start(&mut self, node: usize, found: scenario::Disk) -> Result<()> {
        let (net, names, downs) = (self.net.clone(), Arc::clone(&self.names), Arc::clone(&self.downs));
        let (seed, began) = (self.seed, self.started);
        let started = self.nodes.get_mut(node).context("no such node")?;
        let report = move |down: usize| {
            let down = Down { at: Instant::now() - began, by: node, node: down };
            downs.lock().unwrap_or_else(PoisonError::into_inner).push(down);
        };
        self.runtime.block_on(started.start(&net, seed, found, names, report))
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric")
            .field("seed", &self.seed)
            .field("nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}

impl World for Fabric {
    fn run_to(&mut self, at: Duration) -> Result<()> {
        self.run(async { tokio::time::sleep_until(self.started + at).await });
        Ok(())
    }

    fn act(&mut self, act: &Act) -> Result<()> {
        let ends = |nodes: &BTreeSet<usize>| nodes.iter().map(|node| address(*node)).collect();
        match act {
            Act::Start { node, disk } => return self.start(*node, *disk),
            Act::Kill(node) => self.nodes[*node].kill(&self.net),
            Act::Suspend(node) => self.node(*node)?.life()?.gate.shut(),
            Act::Resume(node) => self.node(*node)?.life()?.gate.open(),
            Act::Leave(node) => self.runtime.block_on(self.nodes[*node].leave())?,
            Act::Cut { from, to } => self.net.cut(ends(from), ends(to)),
            Act::Heal => self.net.heal(),
            Act::Loss { nodes, share } => {
                nodes.iter().for_each(|node| self.net.set_loss(address(*node), *share));
            }
            Act::Slow { nodes, more } => {
                nodes.iter().for_each(|node| self.net.set_slow(address(*node), *more));
            }
            Act::Clock { node, seconds } => self.node(*node)?.wall.shift(*seconds),
            Act::Publish { node, count } => {
                self.runtime.block_on(self.nodes[*node].publish(*count))?;
            }
            Act::Withdraw { node, count } => {
                self.runtime.block_on(self.nodes[*node].withdraw(*count))?;
            }
        }
        Ok(())
    }

    fn state(&mut self, node: usize) -> Result<NodeState> {
        let node = self.node(node)?;
        let life = node.life()?;
        let dump = async { tokio::time::timeout(ANSWER_WITHIN, life.mesh.catalog.dump()).await };
        let dump = self.runtime.block_on(dump);
        let copies = dump.ok().flatten().context("the catalog does not answer")?;
        ensure!(!copies.is_empty(), "a catalog holds at least its own card");
        let index = &life.mesh.index;
        let (up, known) = view::members(index, node.identity.node(), &self.names.by_id);
        let renewals = node.renewals();
        Ok(NodeState { catalog: view::hash(&copies)?, served: view::served(index), up, known, renewals })
    }

    fn take_downs(&mut self) -> Vec<Down> {
        std::mem::take(&mut self.downs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn bytes_sent(&mut self, node: usize) -> u64 {
        self.sent(node).bytes
    }

    fn trace(&self) -> Option<u64> {
        Some(self.net.trace())
    }
}

/// Where a node listens.
pub fn address(node: usize) -> SocketAddr {
    let [_, high, middle, low] = u32::try_from(node + 1).unwrap_or(u32::MAX).to_be_bytes();
    (Ipv4Addr::new(10, high, middle, low), PORT).into()
}

/// A catalog task that runs answers at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
