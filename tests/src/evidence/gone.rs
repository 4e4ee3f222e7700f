//! How long a dead, withdrawn or left instance is still answered.
//!
//! Owns: the probes of every kind of name that lists instances, and what is done to one. Must not know: how nodes
//! find out. Driven by: `evidence`.
//!
//! Times are counted from outside: from the SIGKILL, the SIGTERM and the start of `withdraw`, to the last answer of
//! any of three daemons that names the instance; each is asked each kind of question 1,000 times a second.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use time::OffsetDateTime;

use super::visible::while_serving_on;
use super::{Ci, Needs, Row, Run};
use crate::dnsq::{Answer, POLL, RecordType, Resolver, last_naming};
use crate::netns::Segment;
use crate::process::{Lab, Node};
use crate::promise;
use crate::report::Samples;
use crate::trail::{self, Trail};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "5.5-gone",
        promise: "Ten daemons: an instance that was withdrawn or whose node left is in no SRV, instance or direct answer of three daemons after 1 s (worst of 100), one whose node got SIGKILL after 6 s (worst of 20)",
        sabotage: "one of the three daemons is cut off before",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: ten,
    },
    Row {
        name: "5.5-gone-50",
        promise: "Fifty daemons: an instance whose node got SIGKILL is in no SRV, instance or direct answer of three daemons after 8 s (worst of 10)",
        sabotage: "nothing is done to the node",
        needs: Needs::Root,
        ci: Ci::Skips("fifty daemons take minutes of two cores"),
        check: fifty,
    },
];

/// Where the program of the service listens.
const PORT: u16 = 7_000;
/// Daemons that are asked: the first ones.
const ASKED: usize = 3;
/// How long the mesh may take until all see all, and an instance until it is answered again.
const READY: Duration = Duration::from_secs(60);
/// How long an instance may be answered that was withdrawn or left.
const SHORTLY: Duration = Duration::from_secs(1);
/// How long one may be answered whose node was killed, of ten nodes and of fifty.
const OF_TEN: Duration = Duration::from_secs(6);
const OF_FIFTY: Duration = Duration::from_secs(8);
/// An instance that is answered for longer counts as answered for ever.
const GIVE_UP: Duration = Duration::from_secs(30);
/// An instance that was not answered for this long does not come back.
const QUIET: Duration = Duration::from_secs(1);

fn ten(run: &Run) -> Result<String> {
    let segment = Segment::new(10)?;
    while_serving_on(segment.machines(), || {
        run.scenario(|lab| {
            let mut nodes = mesh(lab, &segment)?;
            if run.sabotaged {
                segment.machines()[ASKED - 1].isolate()?;
            }
            let withdrawn = repeat(run.times(50, 4), &mut nodes, Ending::Withdrawn, SHORTLY)?;
            let left = repeat(run.times(50, 2), &mut nodes, Ending::Left, SHORTLY)?;
            let killed = repeat(run.times(20, 1), &mut nodes, Ending::Killed, OF_TEN)?;
            Ok(format!("withdrawn {withdrawn}; left {left}; killed {killed}"))
        })
    })
}

fn fifty(run: &Run) -> Result<String> {
    let segment = Segment::new(50)?;
    while_serving_on(&segment.machines()[..10], || {
        run.scenario(|lab| {
            let mut nodes = mesh(lab, &segment)?;
            let how = if run.sabotaged { Ending::None } else { Ending::Killed };
            Ok(format!("killed {}", repeat(run.times(10, 1), &mut nodes, how, OF_FIFTY)?))
        })
    })
}

/// What is done to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Withdrawn,
    Left,
    Killed,
    /// It goes on.
    None,
}

/// Does it to one instance after the other; returns the times, each below `limit`.
fn repeat(count: usize, nodes: &mut [Node], how: Ending, limit: Duration) -> Result<String> {
    let mut samples = Samples::default();
    for turn in 0..count {
        let victim = ASKED + turn % (EXPORTERS - ASKED);
        samples.push(once(nodes, victim, how, limit).with_context(|| format!("{how:?}, turn {}", turn + 1))?);
    }
    let (p50, max) = (samples.percentile(0.5).as_secs_f64(), samples.max().as_secs_f64());
    Ok(format!("p50 {p50:.3} s, max {max:.3} s of {count}"))
}

/// Ends an instance, times its last answer, and brings it back.
fn once(nodes: &mut [Node], victim: usize, how: Ending, limit: Duration) -> Result<Duration> {
    let probes = Probe::all(&nodes[victim].name, victim);
    let asked = probes.iter().map(|probe| Ok((probe, resolvers(nodes)?))).collect::<Result<Vec<_>>>()?;
    let id = id_of(nodes, victim)?;
    let (start, count, end) = (Instant::now(), asked.len(), OffsetDateTime::now_utc());
    let took = std::thread::scope(|scope| -> Result<Duration> {
        // Each prober asks from before the end until nothing names the instance any more.
        let timed = |(probe, servers): (&Probe, Vec<Resolver>)| {
            let names = |answer: &Answer| probe.names(answer);
            let pace = POLL * u32::try_from(count).unwrap_or(1);
            last_naming(&servers, &probe.name, probe.kind, start, (GIVE_UP, QUIET, pace), names)
        };
        let threads: Vec<_> = asked.into_iter().map(|asked| scope.spawn(move || timed(asked))).collect();
        match how {
            Ending::Withdrawn => drop(nodes[victim].ok(&["withdraw", "gone"])?),
            Ending::Left => nodes[victim].signal(Signal::SIGTERM)?,
            Ending::Killed => nodes[victim].kill9()?,
            Ending::None => {}
        }
        let mut last = Duration::ZERO;
        for thread in threads {
            last = last.max(thread.join().map_err(|_| anyhow::anyhow!("a prober panicked"))??);
        }
        Ok(last)
    })?;
    if took >= limit && how == Ending::Killed {
        tell(&Trail::of(nodes, &id, end, ASKED), took);
    }
    promise!(took < limit, "still answered after {:.2} s", took.as_secs_f64());
    match how {
        Ending::Withdrawn => drop(expose(&nodes[victim])?),
        Ending::Left => {
            nodes[victim].ended(READY)?;
            nodes[victim].run()?;
        }
        Ending::Killed => nodes[victim].run()?,
        Ending::None => {}
    }
    answered(nodes, victim)?;
    Ok(took)
}

/// Shows who found the death when.
#[allow(clippy::print_stderr, reason = "what explains a failed check belongs to its output")]
fn tell(trail: &Trail, took: Duration) {
    eprintln!("-- a node was killed at 0 s and last answered after {:.3} s\n{trail}", took.as_secs_f64());
}

/// Returns the id of a node.
fn id_of(nodes: &[Node], index: usize) -> Result<String> {
    let listed = nodes[0].json(&["nodes"])?;
    let entry =
        listed.as_array().into_iter().flatten().find(|entry| entry["name"] == nodes[index].name.as_str());
    let id = entry.and_then(|entry| entry["id"].as_str()).context("an id")?;
    Ok(id.to_owned())
}

/// Waits until each of the asked daemons answers every kind of question with the instance.
fn answered(nodes: &[Node], victim: usize) -> Result<()> {
    for probe in Probe::all(&nodes[victim].name, victim) {
        for resolver in resolvers(nodes)? {
            resolver.wait(&probe.name, probe.kind, READY, |answer| probe.names(answer))?;
        }
    }
    Ok(())
}

/// A question whose answer may name the instance.
struct Probe {
    name: String,
    kind: RecordType,
    node: String,
    address: Ipv4Addr,
}

impl Probe {
    fn all(node: &str, index: usize) -> Vec<Self> {
        let address = Segment::address(u8::try_from(index).unwrap_or(u8::MAX));
        let probe = |name: String, kind| Self {
            name: format!("{name}.mesh.internal"),
            kind,
            node: node.to_owned(),
            address,
        };
        vec![
            probe(format!("_{PORT}._tcp.gone"), RecordType::SRV),
            probe(format!("{node}.gone.default"), RecordType::A),
            probe("gone.direct".to_owned(), RecordType::A),
            probe(format!("{node}.gone.default.direct"), RecordType::A),
        ]
    }

    fn names(&self, answer: &Answer) -> bool {
        let target = format!("{}.gone.", self.node);
        match self.kind {
            RecordType::SRV => answer.targets().iter().any(|name| name.starts_with(&target)),
            _ if self.name.contains("direct") => answer.addresses().contains(&self.address),
            // Its virtual address, whatever that is.
            _ => answer.addresses().iter().any(|address| IpAddr::V4(*address).is_loopback()),
        }
    }
}

/// Nodes that have an instance, so few that a direct answer names all of them.
const EXPORTERS: usize = 8;

/// Starts a daemon on each machine and an instance on the first ones.
fn mesh(lab: &Lab, segment: &Segment) -> Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    for (index, machine) in segment.machines().iter().enumerate() {
        let mut node = lab.node_in(&format!("n{index}"), machine)?.with(trail::LEVEL.0, trail::LEVEL.1);
        match nodes.first() {
            None => node.init("default")?,
            Some(first) => node.join(&first.token(&[])?)?,
        }
        nodes.push(node);
    }
    let all = nodes.len();
    for node in &nodes {
        until(&format!("{} seeing {all} nodes alive", node.name), READY, || {
            let listed = node.json(&["nodes"])?;
            let alive = listed.as_array().into_iter().flatten().filter(|entry| entry["state"] == "alive");
            Ok(alive.count() == all)
        })?;
    }
    for node in &nodes[..EXPORTERS] {
        expose(node)?;
    }
    (ASKED..EXPORTERS).try_for_each(|victim| answered(&nodes, victim))?;
    Ok(nodes)
}

fn expose(node: &Node) -> Result<String> {
    node.ok(&["expose", &format!("gone:{PORT}")])
}

fn resolvers(nodes: &[Node]) -> Result<Vec<Resolver>> {
    nodes[..ASKED].iter().map(Node::resolver).collect()
}
