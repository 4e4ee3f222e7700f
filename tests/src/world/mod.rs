//! Scenario files played with real daemons in network namespaces, on the real clock.
//!
//! Owns: which files this world can play, and the [`World`] that does: namespaces around one router, which cuts
//! and loses, and one daemon of the shipped program in each. Must not know: what a scenario expects.
//! Driven by: `evidence`, through [`run_file`]. Needs root.
//!
//! What the kernel of a test machine has not got is refused before anything is made: delays of more than a local
//! network's, packets that come twice or late, wall clocks that differ, disks that forget what was not synced. The
//! simulator has them.

mod member;
mod seen;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::netns::Star;
use crate::process::{Lab, Logs, Node, scenario};
use crate::scenario::{Act, Action, Disk, Down, NodeState, Report, Scenario, World, play};
use crate::wait::until;
use member::Member;
use seen::Names;

/// Longest one-way delay a scenario may ask for that the world has not got: no timer of the daemon is as short.
const NO_DELAY: Duration = Duration::from_millis(5);

/// Plays a scenario file once for each seed, each time with new namespaces and a new mesh of `program`. Seeds draw
/// what steps pick; nothing else depends on them.
///
/// # Errors
/// The file has faults or needs the simulator, or the machine cannot do it. What does not hold stands in the
/// reports.
pub fn run_file(program: &Path, file: &Path, seeds: &[u64]) -> Result<Vec<Report>> {
    let wanted = Scenario::load(file)?;
    playable(&wanted).with_context(|| file.display().to_string())?;
    let once = |seed: &u64| {
        scenario(program, Logs::Shown, |lab| {
            let mut world = Daemons::new(lab, &wanted)?;
            play(&wanted, *seed, &mut world)
        })
    };
    seeds.iter().map(once).collect()
}

/// Finds out whether this world has what a scenario asks for.
///
/// # Errors
/// It has not; the error names the key.
pub fn playable(wanted: &Scenario) -> Result<()> {
    let mut missing = BTreeSet::new();
    let net = &wanted.net;
    if net.delay.1 > NO_DELAY {
        missing.insert("net.delay_ms");
    }
    if net.duplicate > 0.0 || net.reorder > 0.0 {
        missing.insert("net.duplicate and net.reorder");
    }
    if wanted.seeds != BTreeSet::from([0]) {
        missing.insert("seeds");
    }
    for step in &wanted.steps {
        match step.action {
            Action::Slow(_) => missing.insert("slow"),
            Action::Clock(_) => missing.insert("clock"),
            Action::Restart { disk: Disk::Unsynced, .. } => missing.insert("restart with disk \"unsynced\""),
            _ => continue,
        };
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{} needs the simulator: {}", wanted.name, missing.into_iter().collect::<Vec<_>>().join(", "))
}

/// A mesh of real daemons. Its clock starts when it has been made; its nodes then have an identity and do not run.
#[derive(Debug)]
pub struct Daemons {
    star: Star,
    members: Vec<Member>,
    names: Names,
    made: Instant,
    /// The network's own share of lost packets, and that of single nodes.
    loss: (f64, BTreeMap<usize, f64>),
    downs: Vec<Down>,
}

impl Daemons {
    /// Makes namespaces and identities for the nodes of a scenario.
    ///
    /// # Errors
    /// Not root, or a daemon does not start or join.
    pub fn new(lab: &Lab, wanted: &Scenario) -> Result<Self> {
        let star = Star::new(wanted.nodes)?;
        let nodes =
            (0..wanted.nodes).map(|number| lab.node_in(&seen::name(number), &star.machines()[number]));
        let nodes = identities(lab, nodes.collect::<Result<Vec<_>>>()?)?;
        let members = nodes.into_iter().zip(star.machines()).enumerate();
        let members =
            members.map(|(number, (node, machine))| Member::new(number, node, machine, wanted.records));
        let members = members.collect::<Result<Vec<_>>>()?;
        let names = Names::new(wanted.nodes);
        let loss = (wanted.net.loss, BTreeMap::new());
        let world = Self { star, members, names, made: Instant::now(), loss, downs: Vec::new() };
        world.lose()?;
        Ok(world)
    }

    /// Takes in what the daemons say and gives them what they are owed.
    fn tick(&mut self) -> Result<()> {
        let now = self.made.elapsed();
        for member in &mut self.members {
            member.tick(&mut self.names)?;
            for said in member.take_downs() {
                self.names.unresolved.push((now, member.number(), said));
            }
        }
        self.downs.extend(self.names.resolve());
        Ok(())
    }

    fn lose(&self) -> Result<()> {
        self.star.lose(self.loss.0, &self.loss.1)
    }

    fn member(&mut self, node: usize) -> Result<&mut Member> {
        self.members.get_mut(node).with_context(|| format!("there is no node {node}"))
    }
}

impl World for Daemons {
    fn run_to(&mut self, at: Duration) -> Result<()> {
        let left = at.saturating_sub(self.made.elapsed());
        // The wait cannot fail for lack of time: it ends at that time.
        until("the next step", left + Duration::from_secs(60), || {
            self.tick()?;
            Ok(self.made.elapsed() >= at)
        })
        .map(drop)
    }

    fn act(&mut self, act: &Act) -> Result<()> {
        match act {
            Act::Start { node, disk: Disk::Unsynced } => {
                bail!("node {node} cannot lose what was not synced: this needs the simulator")
            }
            Act::Start { node, disk } => self.member(*node)?.start(*disk),
            Act::Kill(node) => self.member(*node)?.kill(),
            Act::Suspend(node) => self.member(*node)?.suspend(),
            Act::Resume(node) => self.member(*node)?.resume(),
            Act::Leave(node) => self.member(*node)?.signal(Signal::SIGTERM),
            Act::Cut { from, to } => {
                let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
                self.star.cut_all(&pairs.filter(|(from, to)| from != to).collect::<Vec<_>>())
            }
            Act::Heal => self.star.heal(),
            Act::Loss { nodes, share } => {
                for node in nodes {
                    if *share > 0.0 {
                        self.loss.1.insert(*node, *share);
                    } else {
                        self.loss.1.remove(node);
                    }
                }
                self.lose()
            }
            Act::Publish { node, count } => {
                self.member(*node)?.publish(*count);
                Ok(())
            }
            Act::Withdraw { node, count } => {
                self.member(*node)?.withdraw(*count);
                Ok(())
            }
            Act::Slow { .. } | Act::Clock { .. } => bail!("{act:?} needs the simulator"),
        }
    }

    fn state(&mut self, node: usize) -> Result<NodeState> {
        let member = self.members.get_mut(node).with_context(|| format!("there is no node {node}"))?;
        member.state(&mut self.names)
    }

    fn take_downs(&mut self) -> Vec<Down> {
        std::mem::take(&mut self.downs)
    }

    fn bytes_sent(&mut self, node: usize) -> u64 {
        self.star.machines().get(node).and_then(|machine| seen::sent(machine).ok()).unwrap_or_default()
    }

    fn trace(&self) -> Option<u64> {
        None
    }
}

/// Makes a mesh on the first node and lets the others join it; none runs afterwards.
fn identities(lab: &Lab, mut nodes: Vec<Node>) -> Result<Vec<Node>> {
    let (first, others) = nodes.split_first_mut().context("a mesh has a node")?;
    first.init("default")?;
    if !others.is_empty() {
        let token = first.token(&["--uses", &others.len().to_string()])?;
        for node in others {
            let join = node.command(&["join", &token, "--node", &node.name, "--no-start"]);
            let joined = lab.finish(join, crate::process::COMMAND)?;
            crate::promise!(joined.code == Some(0), "{} did not join: {}", node.name, joined.stderr);
        }
    }
    first.stop()?;
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(more: &str) -> Scenario {
        let text = format!("name = \"x\"\nabout = \"y\"\nnodes = 3\n{more}");
        Scenario::parse("x.toml", &text).expect("a scenario")
    }

    #[test]
    fn what_only_the_simulator_has_is_refused_by_name() {
        for (more, key) in [
            ("[net]\ndelay_ms = [1, 50]", "net.delay_ms"),
            ("[net]\nreorder = 0.1", "net.reorder"),
            ("seeds = [1]", "seeds"),
            ("[[step]]\nat = 1\nslow = { nodes = \"1\", ms = 600 }", "slow"),
            ("[[step]]\nat = 1\nclock = { nodes = \"1\", seconds = 3600 }", "clock"),
            ("[[step]]\nat = 1\nrestart = { nodes = \"1\", disk = \"unsynced\" }", "unsynced"),
        ] {
            let error = playable(&parsed(more)).expect_err(more).to_string();
            assert!(error.contains("needs the simulator") && error.contains(key), "{error}");
        }
    }

    #[test]
    fn what_namespaces_have_is_played() {
        for more in [
            "[net]\nloss = 0.05",
            "[[step]]\nat = 1\nkill = { nodes = \"1\" }",
            "[[step]]\nat = 1\ncut = { from = \"0\", to = \"1\" }",
            "[[step]]\nat = 1\nrestart = { nodes = \"1\", disk = \"lost\" }",
            "[[step]]\nat = 1\nsuspend = { nodes = \"all\" }",
        ] {
            playable(&parsed(more)).expect(more);
        }
    }
}
