//! How fast the others see what one does: ten daemons, a service appears, an instance dies.
//!
//! Owns: the measurement. Must not know: how records travel. Driven by: `evidence`.
//!
//! Times are counted from outside: from the end of the `expose` process, and from the SIGKILL.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use super::detection::mesh;
use super::{Ci, Needs, Row, Run};
use crate::dnsq::{POLL, RecordType, Resolver, first_accepted, last_naming};
use crate::netns::{Namespace, Segment};
use crate::process::{Lab, Node};
use crate::report::Samples;
use crate::targets::{Manner, Target, serve_all};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[Row {
    name: "2.7-visible",
    promise: "Ten daemons: time from the end of expose to the first DNS answer on each other one, and from SIGKILL to the last SRV answer naming the dead instance",
    sabotage: "one machine is cut off before the first expose",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: visible,
}];

const NODES: u8 = 10;
/// Where the program of every service listens.
const PORT: u16 = 7_000;
/// An answer that takes longer counts as none.
const VISIBLE: Duration = Duration::from_secs(10);
/// A dead instance that is named for longer counts as named for ever.
const GONE: Duration = Duration::from_secs(60);
/// An instance that was not named for this long does not come back.
const QUIET: Duration = Duration::from_secs(2);

fn visible(run: &Run) -> Result<String> {
    let segment = Segment::new(NODES)?;
    while_serving_on(segment.machines(), || run.scenario(|lab| measure(run, &segment, lab)))
}

fn measure(run: &Run, segment: &Segment, lab: &Lab) -> Result<String> {
    let mut nodes = mesh(lab, segment)?;
    if run.sabotaged {
        segment.machines()[usize::from(NODES) - 1].isolate()?;
    }
    let mut seen = Samples::default();
    for repeat in 0..run.times(100, 10) {
        seen.extend(expose_once(&nodes, repeat).with_context(|| format!("service {}", repeat + 1))?);
    }
    let mut gone = Samples::default();
    for repeat in 0..run.times(20, 3) {
        gone.push(kill_once(&mut nodes, repeat).with_context(|| format!("kill {}", repeat + 1))?);
    }
    let (last, count) = (gone.max().as_secs_f64(), gone.len());
    Ok(format!("expose to answer {seen}; kill to last answer max {last:.2} s of {count}"))
}

/// Plays while a program listens on [`PORT`] of each machine: what nobody listens on is not healthy.
pub(super) fn while_serving_on<T>(machines: &[Namespace], play: impl FnOnce() -> Result<T>) -> Result<T> {
    let listen = || Target::at(([127, 0, 0, 1], PORT).into(), Manner::Greets("served"));
    let targets = machines.iter().map(|machine| machine.enter(listen)?).collect::<Result<Vec<_>>>()?;
    serve_all(&targets, play)
}

/// Exposes a service on one node and times the first answer on each other one.
fn expose_once(nodes: &[Node], repeat: usize) -> Result<Vec<Duration>> {
    let exporter = repeat % nodes.len();
    let service = format!("seen-{repeat}");
    let others = resolvers(nodes, exporter)?;
    // A port of its own, as services have: one that is in use here as well costs a look at the socket table.
    let port = usize::from(PORT) + 1 + repeat;
    nodes[exporter].ok(&["expose", &format!("{service}:{port}"), &format!("127.0.0.1:{PORT}")])?;
    let end = Instant::now();
    let name = format!("{service}.mesh.internal");
    let seen =
        first_accepted(&others, &name, RecordType::A, end, VISIBLE, |answer| !answer.addresses().is_empty())?;
    // What is measured is one service that comes, not the hundredth beside all others.
    nodes[exporter].ok(&["withdraw", &service])?;
    for resolver in &others {
        resolver.gone(&name, VISIBLE)?;
    }
    Ok(seen)
}

/// Kills the daemon of one of two instances and times the last SRV answer that names it, then restarts it.
fn kill_once(nodes: &mut [Node], repeat: usize) -> Result<Duration> {
    let victim = 1 + repeat % (nodes.len() - 1);
    let service = format!("dies-{repeat}");
    let name = format!("_{PORT}._tcp.{service}.mesh.internal");
    let dead = format!("{}.{service}.", nodes[victim].name);
    for exporter in [0, victim] {
        nodes[exporter].ok(&["expose", &format!("{service}:{PORT}")])?;
    }
    let others = resolvers(nodes, victim)?;
    for resolver in &others {
        resolver.wait(&name, RecordType::SRV, VISIBLE, |answer| answer.targets().len() == 2)?;
    }
    let killed = Instant::now();
    nodes[victim].kill9()?;
    let last = last_naming(&others, &name, RecordType::SRV, killed, (GONE, QUIET, POLL), |answer| {
        answer.targets().iter().any(|target| target.starts_with(&dead))
    })?;
    nodes[victim].run()?;
    for exporter in [0, victim] {
        nodes[exporter].ok(&["withdraw", &service])?;
    }
    let back = nodes[victim].name.clone();
    for node in nodes.iter() {
        until(&format!("{} seeing {back} again", node.name), GONE, || {
            Ok(node.state_of(&back)?.as_deref() == Some("alive"))
        })?;
    }
    Ok(last)
}

fn resolvers(nodes: &[Node], except: usize) -> Result<Vec<Resolver>> {
    let others = nodes.iter().enumerate().filter(|(index, _)| *index != except);
    others.map(|(_, node)| node.resolver()).collect()
}
