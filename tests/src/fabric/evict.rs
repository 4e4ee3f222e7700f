//! Evictions among real endpoints: when each node refuses, and what a part that was cut off meanwhile believes.
//!
//! Owns: what it means that a node refuses another, and the watching. Must not know: how statements spread.
//! Driven by: rows of evidence, and tests.
//!
//! A node refuses an evicted one when four things hold at once: its verdict on the certificate, which handshakes ask
//! for, is *evicted*; it has no connection of the node; its membership does not hold it for up; it would answer with
//! none of its records.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gossamer::clock::Wall as _;
use gossamer::transport::FlowStream;
use gossamer_core::catalog::{InstanceState, ServiceView};
use gossamer_core::membership::MemberState;
use gossamer_core::trust::TrustError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Fabric;
use crate::scenario::{Act, Disk, Scenario, World as _};

/// Between two looks: no task runs between two ticks of the clock, so nothing is overlooked.
const TICK: Duration = Duration::from_millis(1);
/// How long a mesh may take to connect all with all.
const JOINED_WITHIN: Duration = Duration::from_secs(120);
/// How long nodes are watched after an order.
const WATCHED: Duration = Duration::from_secs(10);
/// How long flows are watched after all refuse, or after that time.
const FLOWS_WATCHED: Duration = Duration::from_secs(2);
/// The node with the root key.
const ROOT: usize = 0;

/// How a mesh took one eviction.
#[derive(Clone, Debug, Default)]
pub struct Evicted {
    /// From the order until a node refused, for each that did while it was watched.
    pub refused: Vec<Duration>,
    /// Nodes that did not.
    pub never: usize,
    /// From the order to the end of each flow the evicted node had to another.
    pub flows: Vec<Duration>,
    /// Nodes that let it in again when it knocked.
    pub let_in: usize,
    /// Handshakes that the others refused meanwhile.
    pub turned_away: u64,
}

/// What the nodes that were cut off during an eviction made of it afterwards.
#[derive(Clone, Debug, Default)]
pub struct Healed {
    /// Nodes that were cut off.
    pub away: usize,
    /// Of them, those that met nobody who knew before they met the evicted node, and served a record of it till then.
    pub fooled: usize,
    /// Looks at which a node that knew, or had met one who did, served a record of the evicted node.
    pub late: u64,
    /// Nodes that knew from the beginning and do not refuse it at the end.
    pub let_in: usize,
    /// From the heal until a node had met one who knew.
    pub met: Vec<Duration>,
    /// From the heal until a node refused, for each that did.
    pub refused: Vec<Duration>,
}

impl Fabric {
    /// Makes a mesh over a lossy wide-area network, with the root key on node 0, and waits until all are connected.
    ///
    /// # Errors
    /// They do not find each other.
    pub fn with_root_key(nodes: usize, seed: u64) -> Result<Self> {
        let text = format!(
            "name = 'evict'\nabout = 'nodes that are put out'\nnodes = {nodes}\nrecords = 2\n\
             [net]\ndelay_ms = [5.0, 40.0]\nloss = 0.01"
        );
        let mut fabric = Self::new(&Scenario::parse("evict", &text)?, seed)?;
        fabric.give_root_key()?;
        for node in 0..nodes {
            fabric.act(&Act::Start { node, disk: Disk::Kept })?;
        }
        fabric.run_until(JOINED_WITHIN, "all connected with all", |fabric| {
            for node in 0..nodes {
                if fabric.mesh(node)?.peers.connected() + 1 < nodes {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        fabric.run_for(Duration::from_secs(5));
        Ok(fabric)
    }

    fn give_root_key(&self) -> Result<()> {
        let root = &self.authority.root().pkcs8;
        Ok(gossamer::store::Disk::replace(&*self.node(ROOT)?.disk, "root.key", root)?)
    }

    /// Lets the mesh run until something holds, looked at ten times a second.
    ///
    /// # Errors
    /// It does not in time.
    pub fn run_until(
        &mut self,
        within: Duration,
        what: &str,
        holds: impl Fn(&Self) -> Result<bool>,
    ) -> Result<Duration> {
        let began = self.now();
        while !holds(self)? {
            ensure!(self.now() - began < within, "{what} did not hold within {within:?}");
            self.run_for(100 * TICK);
        }
        Ok(self.now() - began)
    }

    /// Evicts a node that has a flow to every other one, watches the others, and lets it knock at each again.
    ///
    /// # Errors
    /// The order is refused, or the node was in no touch with the others.
    pub fn evict(&mut self, out: usize) -> Result<Evicted> {
        let others = self.others(&BTreeSet::from([out]));
        let opened = self.flows(out, &others)?;
        ensure!(10 * opened.len() >= 9 * others.len(), "only {} flows to {}", opened.len(), others.len());
        let since = self.order(out)?;
        let mut flows = self.run(async { until_ended(opened) });
        let mut result = Evicted::default();
        let mut waiting = others.clone();
        while !waiting.is_empty() && self.now() - since < WATCHED {
            self.run_for(TICK);
            let refusing = self.refusing(&waiting, out)?;
            result.refused.extend(refusing.iter().map(|_| self.now() - since));
            waiting.retain(|node| !refusing.contains(node));
        }
        result.never = waiting.len();
        // The word of the end is on its way.
        self.run_for(FLOWS_WATCHED);
        while let Some(ended) = flows.try_join_next() {
            result.flows.push(ended?.saturating_duration_since(self.started + since));
        }
        let refused = |fabric: &Self| -> Result<u64> {
            others.iter().map(|node| fabric.handshakes_refused(*node)).sum()
        };
        let before = refused(self)?;
        result.let_in = self.knock(out)?;
        result.turned_away = refused(self)? - before;
        Ok(result)
    }

    /// Evicts a node while it is off and `away` nodes are cut off from the rest, mends the net after `apart`, and starts
    /// the evicted node with a new record and all it knew, at that moment: nobody is faster than it. With `full` disks the
    /// nodes that were cut off can write no statement.
    ///
    /// # Errors
    /// The order is refused, or the parts are not apart.
    pub fn evict_apart(
        &mut self,
        out: usize,
        away: &BTreeSet<usize>,
        apart: Duration,
        full: bool,
    ) -> Result<Healed> {
        let rest = self.others(&(away | &BTreeSet::from([out])));
        self.act(&Act::Kill(out))?;
        self.part(away, &rest)?;
        self.run_for(apart / 2);
        self.order(out)?;
        self.run_for(apart / 2);
        for node in away {
            ensure!(!self.has_met(*node, &rest)?, "node {node} is not apart");
            self.disk(*node)?.set_full(full);
        }
        self.act(&Act::Publish { node: out, count: 1 })?;
        self.heal()?;
        self.act(&Act::Start { node: out, disk: Disk::Kept })?;
        self.watch_healed(out, away, &rest)
    }

    /// Evicts a node that is cut off together with a friend, to whom it shows a new record, and mends the net: the friend
    /// brings what it knows of the node.
    ///
    /// # Errors
    /// The order is refused, or the friend has nothing to bring.
    pub fn evict_with_friend(&mut self, out: usize, friend: usize, apart: Duration) -> Result<Healed> {
        let pair = BTreeSet::from([out, friend]);
        let rest = self.others(&pair);
        self.part(&pair, &rest)?;
        self.run_for(apart / 2);
        self.order(out)?;
        self.act(&Act::Publish { node: out, count: 1 })?;
        self.run_for(apart / 2);
        ensure!(
            self.served(friend, out)? == self.node(out)?.records().len(),
            "the friend has not heard of it"
        );
        ensure!(self.refusing(&rest, out)? == rest, "the others do not refuse it");
        self.heal()?;
        self.watch_healed(out, &BTreeSet::from([friend]), &rest)
    }

    /// Lets a node open a flow to each other one. Returns how many let it.
    ///
    /// # Errors
    /// It does not run.
    pub fn knock(&self, node: usize) -> Result<usize> {
        Ok(self.flows(node, &self.others(&BTreeSet::from([node])))?.len())
    }

    /// Counts the nodes that do not refuse another in every way.
    ///
    /// # Errors
    /// A bug.
    pub fn let_in(&self, out: usize) -> Result<usize> {
        let others = self.others(&BTreeSet::from([out]));
        Ok(others.len() - self.refusing(&others, out)?.len())
    }

    /// Puts back the clocks of a node and of every other peer, by so much; the node and they start again.
    ///
    /// # Errors
    /// A bug.
    pub fn clocks_back(&mut self, node: usize, seconds: i64) -> Result<()> {
        for node in (1..self.nodes.len()).step_by(2).chain([node]).collect::<BTreeSet<_>>() {
            self.act(&Act::Clock { node, seconds: -seconds })?;
            self.act(&Act::Kill(node))?;
            self.act(&Act::Start { node, disk: Disk::Kept })?;
        }
        Ok(())
    }

    fn watch_healed(&mut self, out: usize, away: &BTreeSet<usize>, rest: &BTreeSet<usize>) -> Result<Healed> {
        let since = self.now();
        let mut result = Healed { away: away.len(), ..Healed::default() };
        let (mut met, mut fooled) = (rest.clone(), BTreeSet::new());
        let mut waiting = away.clone();
        while self.now() - since < 3 * WATCHED {
            self.run_for(TICK);
            for node in &(away | rest) {
                if !met.contains(node) && self.has_met(*node, rest)? {
                    met.insert(*node);
                    result.met.push(self.now() - since);
                }
                let serves = self.served(*node, out)? > 0;
                if serves && met.contains(node) {
                    result.late += 1;
                } else if serves {
                    fooled.insert(*node);
                }
            }
            let refusing = self.refusing(&waiting, out)?;
            result.refused.extend(refusing.iter().map(|_| self.now() - since));
            waiting.retain(|node| !refusing.contains(node));
        }
        result.fooled = fooled.len();
        result.let_in = rest.len() - self.refusing(rest, out)?.len();
        Ok(result)
    }

    /// Cuts two sets of nodes off from each other.
    ///
    /// # Errors
    /// A bug.
    pub fn part(&mut self, one: &BTreeSet<usize>, other: &BTreeSet<usize>) -> Result<()> {
        self.act(&Act::Cut { from: one.clone(), to: other.clone() })?;
        self.act(&Act::Cut { from: other.clone(), to: one.clone() })
    }

    /// Ends all cuts.
    ///
    /// # Errors
    /// A bug.
    pub fn heal(&mut self) -> Result<()> {
        self.act(&Act::Heal)
    }

    /// Waits until every node holds every other for up. Returns how long that took.
    ///
    /// # Errors
    /// They do not.
    pub fn whole(&mut self) -> Result<Duration> {
        let is_up = |fabric: &Self, node: usize, other: usize| -> Result<bool> {
            let known = fabric.mesh(node)?.index.node(fabric.id(other)?);
            Ok(known.and_then(|known| known.state).is_some_and(MemberState::is_up))
        };
        self.run_until(JOINED_WITHIN, "all up for all", |fabric| {
            let all = 0..fabric.nodes.len();
            for (node, other) in all.clone().flat_map(|node| all.clone().map(move |other| (node, other))) {
                if node != other && !is_up(fabric, node, other)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Returns the nodes that run, less some.
    fn others(&self, less: &BTreeSet<usize>) -> BTreeSet<usize> {
        (0..self.nodes.len()).filter(|node| !less.contains(node) && self.mesh(*node).is_ok()).collect()
    }

    /// Gives the order at the node with the root key. Returns when.
    fn order(&self, out: usize) -> Result<Duration> {
        let authority = self.mesh(ROOT)?.authority.clone();
        let since = self.now();
        self.run(authority.evict(self.id(out)?, format!("n{out}"))).context("the order")?;
        Ok(since)
    }

    /// Returns which of the nodes refuse another in every way.
    fn refusing(&self, nodes: &BTreeSet<usize>, out: usize) -> Result<BTreeSet<usize>> {
        let mut refusing = BTreeSet::new();
        for node in nodes {
            if self.refuses(*node, out)? {
                refusing.insert(*node);
            }
        }
        Ok(refusing)
    }

    /// Returns whether a node refuses another in every way.
    ///
    /// # Errors
    /// It does not run.
    pub fn refuses(&self, node: usize, out: usize) -> Result<bool> {
        let (mesh, wall) = (self.mesh(node)?, self.node(node)?.wall.seconds());
        let identity = &self.node(out)?.identity;
        let verdict = mesh.trust.load().verify(&identity.leaf_der, &[], wall);
        let state = mesh.index.node(identity.node()).and_then(|known| known.state);
        Ok(matches!(verdict, Err(TrustError::Evicted))
            && mesh.peers.has_dialled(identity.node()).is_none()
            && !state.is_some_and(MemberState::is_up)
            && self.served(node, out)? == 0)
    }

    /// Counts the records of another node that a node would answer with.
    fn served(&self, node: usize, of: usize) -> Result<usize> {
        let index = &self.mesh(node)?.index;
        let (of, id) = (self.node(of)?, self.id(of)?);
        let views = of.records().iter().filter_map(|record| index.service(&record.service));
        let is_its = |view: &Arc<ServiceView>| {
            let mut usable = view.instances.iter().filter(|found| found.state == InstanceState::Usable);
            usable.any(|found| found.node == id)
        };
        Ok(views.filter(is_its).count())
    }

    /// Returns whether a node is connected to one of some others.
    fn has_met(&self, node: usize, others: &BTreeSet<usize>) -> Result<bool> {
        let peers = &self.mesh(node)?.peers;
        for other in others {
            if peers.has_dialled(self.id(*other)?).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn handshakes_refused(&self, node: usize) -> Result<u64> {
        let metrics = self.metrics(node)?;
        let of_handshakes =
            |(name, _): &(&String, &u64)| name.starts_with("gossamer_handshakes_refused_total");
        Ok(metrics.iter().filter(of_handshakes).map(|(_, count)| count).sum())
    }

    /// Opens a flow from a node to each of some others; those that came about.
    fn flows(&self, from: usize, to: &BTreeSet<usize>) -> Result<Vec<FlowStream>> {
        let peers = &self.mesh(from)?.peers;
        let ids = to.iter().map(|node| self.id(*node)).collect::<Result<Vec<_>>>()?;
        Ok(self.run(async {
            let mut opening = JoinSet::new();
            for id in ids {
                let peers = peers.clone();
                opening.spawn(async move { peers.open_flow(id).await });
            }
            let opened = opening.join_all().await;
            opened.into_iter().filter_map(Result::ok).collect()
        }))
    }
}

/// Waits in the background for the end of each flow, and notes when it was.
fn until_ended(flows: Vec<FlowStream>) -> JoinSet<Instant> {
    let mut ends = JoinSet::new();
    for mut flow in flows {
        ends.spawn(async move {
            let _ = flow.recv.read_to_end(1).await;
            Instant::now()
        });
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: Duration = Duration::from_secs(40);

    /// A mesh of 12, of which node 1 is put out while nodes 8 to 11 are cut off.
    fn apart(full: bool) -> Healed {
        let mut fabric = Fabric::with_root_key(12, 3).expect("joined");
        fabric.evict_apart(1, &(8..12).collect(), APART, full).expect("evicts")
    }

    #[test]
    fn an_evicted_node_is_refused_everywhere_and_let_in_nowhere() {
        let mut fabric = Fabric::with_root_key(12, 1).expect("joined");
        let taken = fabric.evict(3).expect("evicts");
        assert_eq!((taken.refused.len(), taken.never, taken.let_in), (11, 0, 0), "{taken:?}");
        assert!(taken.turned_away > 0, "{taken:?}");
        assert!(
            taken.flows.len() >= 10 && taken.flows.iter().all(|time| *time < Duration::from_secs(1)),
            "{taken:?}"
        );
    }

    #[test]
    fn nodes_that_were_cut_off_refuse_it_as_soon_as_they_meet_one_who_knows() {
        let healed = apart(false);
        assert_eq!((healed.met.len(), healed.refused.len(), healed.late), (4, 4, 0), "{healed:?}");
    }

    #[test]
    fn statements_that_come_during_a_greeting_reach_the_other_side() {
        // Node 0 dials and gives the order. A handshake takes 200 ms here, the greeting as long again.
        let text = "name = 'x'\nabout = 'y'\nnodes = 2\nseeds = [1]\n[net]\ndelay_ms = [100.0, 100.0]";
        for after in (100..600).step_by(20) {
            let mut fabric = Fabric::new(&Scenario::parse("x", text).expect("a scenario"), 1).expect("made");
            fabric.give_root_key().expect("room");
            for node in [1, 0] {
                fabric.act(&Act::Start { node, disk: Disk::Kept }).expect("starts");
            }
            fabric.run_for(after * TICK);
            let authority = fabric.mesh(0).expect("runs").authority.clone();
            let stranger = gossamer_wire::NodeId::from_bytes([7; 16]);
            fabric.run(authority.evict(stranger, "x".to_owned())).expect("the order");
            fabric.run_for(Duration::from_secs(5));
            let known = |node| fabric.mesh(node).expect("runs").authority.known();
            assert_eq!(known(0), known(1), "an order after {after} ms");
        }
    }

    #[test]
    fn a_node_that_cannot_write_the_statement_is_seen_to_serve_what_it_must_not() {
        let healed = apart(true);
        assert!(healed.late > 0 && healed.refused.is_empty(), "{healed:?}");
    }
}
