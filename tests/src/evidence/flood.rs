//! Handshakes of nobody: what a flood of them costs a daemon, its peers and who wants to join meanwhile.
//!
//! Owns: the measurement. Must not know: how the daemon decides. Driven by: `evidence`.
//!
//! The attacker is a machine of its own: it sends first packets from addresses whose answers end at the router, and
//! begins handshakes from addresses that do answer and leaves them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use super::{Ci, Needs, Row, Run};
use crate::dnsq::{RecordType, first_accepted};
use crate::flood::{Sent, half_open, sockets, spoof};
use crate::netns::{Namespace, Star};
use crate::planted::Worktree;
use crate::process::{Lab, Logs, Node, scenario};
use crate::promise;
use crate::report::Samples;
use crate::targets::{Manner, Target, serve_all};

pub(super) const ROW: Row = Row {
    name: "4.6-flood",
    promise: "60 s of first packets from 2,048 spoofed addresses and 10,000 half-open handshakes from 1,250 real ones: the daemon grows by at most 48 MiB, joining takes at most twice as long, a record is seen by the other members as soon as before, and no member is taken for dead",
    sabotage: "tests/planted/4-no-doorway.patch: every first packet begins a handshake",
    needs: Needs::Root,
    ci: Ci::Skips("it takes over two minutes and needs a quiet machine"),
    check: flood,
};

/// Members; the first one, which issues, is attacked.
const MEMBERS: usize = 4;
/// The machine of the attacker, and of those who join.
const ATTACKER: usize = MEMBERS;
const JOINERS: usize = MEMBERS + 1;
/// First packets a second, and addresses they claim to come from.
const SPOOFED: (u32, u32) = (5_000, 2_048);
/// Handshakes in all, and addresses they come from.
const HALF_OPEN: (u32, u32) = (10_000, 1_250);
/// What the flood may cost in memory, KiB.
const GROWTH_KIB: u64 = 48 * 1_024;
/// What counts as the same time for a record: noise of a machine that has other work is not the flood's.
const SAME: Duration = Duration::from_millis(20);
/// A record that takes longer counts as not seen.
const VISIBLE: Duration = Duration::from_secs(10);
/// Where the program of every service listens.
const PORT: u16 = 7_000;

fn flood(run: &Run) -> Result<String> {
    let patched = if run.sabotaged { Some(without_doorway(run)?) } else { None };
    let (program, logs) = match &patched {
        Some((_, program)) => (program, Logs::Hidden),
        None => (&run.gossamer, Logs::Shown),
    };
    let star = Star::new(MEMBERS + 2)?;
    star.lend(ATTACKER, "10.66.0.0/16", true)?;
    star.lend(ATTACKER, "10.67.0.0/16", false)?;
    let listen = || Target::at(([127, 0, 0, 1], PORT).into(), Manner::Greets("served"));
    let members = &star.machines()[..MEMBERS];
    let targets = members.iter().map(|machine| machine.enter(listen)?).collect::<Result<Vec<_>>>()?;
    serve_all(&targets, || scenario(program, logs, |lab| measure(run, lab, &star)))
}

/// Builds the program with every first packet answered by a handshake.
fn without_doorway(run: &Run) -> Result<(Worktree, PathBuf)> {
    let tree = Worktree::with_patch(&run.root, "4-no-doorway.patch")?;
    let program = run.planted(&tree)?;
    Ok((tree, program))
}

/// What was seen in one stretch of time.
#[derive(Debug, Default)]
struct Seen {
    joins: Samples,
    records: Samples,
}

fn measure(run: &Run, lab: &Lab, star: &Star) -> Result<String> {
    let mut nodes = Vec::new();
    for (index, machine) in star.machines()[..MEMBERS].iter().enumerate() {
        let mut node = lab.node_in(&format!("m{index}"), machine)?;
        match nodes.first() {
            None => node.init("default")?,
            Some(first) => node.join(&Node::token(first, &[])?)?,
        }
        nodes.push(node);
    }
    for node in &nodes {
        for other in nodes.iter().filter(|other| other.name != node.name) {
            node.sees(&other.name, "alive", VISIBLE)?;
        }
    }
    let joiners = &star.machines()[JOINERS];
    let calm = Duration::from_secs(run.times(30, 8));
    let time = Duration::from_secs(run.times(60, 12));
    let before = observe(lab, &nodes, joiners, calm, &AtomicBool::new(false))?;
    let memory = memory_kib(&nodes[0])?;

    let (stop, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let target = (Star::address(0), 4_677).into();
    let attacker = &star.machines()[ATTACKER];
    let attack = |first: Ipv4Addr, count, rate, how: Attack| {
        attacker.enter(|| how(&sockets(first, count, target)?, rate, &stop))?
    };
    let (during, spoofed, begun) = std::thread::scope(|scope| -> Result<_> {
        let spoofed = scope.spawn(|| attack([10, 67, 0, 1].into(), SPOOFED.1, SPOOFED.0, spoof));
        let begun = scope.spawn(|| attack([10, 66, 0, 1].into(), HALF_OPEN.1, HALF_OPEN.0 / 60, half_open));
        let watch = scope.spawn(|| watch(&nodes[0], memory, &most, &stop));
        let during = observe(lab, &nodes, joiners, time, &stop);
        stop.store(true, Ordering::Relaxed);
        let joined =
            |thread: std::thread::Result<Result<Sent>>| thread.unwrap_or_else(|_| anyhow::bail!("a panic"));
        let (spoofed, begun) = (joined(spoofed.join())?, joined(begun.join())?);
        watch.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        Ok((during, spoofed, begun))
    })?;
    let grown = most.load(Ordering::Relaxed).saturating_sub(memory);
    promise!(grown <= GROWTH_KIB, "the flood cost {grown} KiB");
    let figures = figures(&nodes[0], &spoofed, &begun, grown)?;
    judge(&nodes, &before, &during?, &figures)
}

type Attack = fn(&[std::net::UdpSocket], u32, &AtomicBool) -> Result<Sent>;

/// Compares what was seen before and during the flood.
fn judge(nodes: &[Node], before: &Seen, during: &Seen, figures: &str) -> Result<String> {
    let ratio = |share, of: fn(&Seen) -> &Samples| {
        of(during).percentile(share).as_secs_f64() / of(before).percentile(share).as_secs_f64()
    };
    let (join, record) = (ratio(0.5, |seen| &seen.joins), ratio(0.99, |seen| &seen.records));
    let figures = format!(
        "{figures}; join {} before, {} during, p50 {join:.2} times; records {} before, {} during, p99 {record:.2} times",
        before.joins, during.joins, before.records, during.records
    );
    for node in nodes {
        let events = node.ok(&["events"])?;
        promise!(!events.contains("-> down"), "{} took a member for dead: {figures}", node.name);
    }
    let events = nodes[0].ok(&["events"])?;
    promise!(events.contains("-> flooded"), "no event tells of the flood: {figures}");
    let (is_quick, is_same) = (join <= 2.0, record <= 2.0 || during.records.percentile(0.99) <= SAME);
    promise!(is_quick, "joining took too long: {figures}");
    promise!(is_same, "records took too long: {figures}");
    Ok(figures)
}

/// Returns what was sent and what became of it, in words.
fn figures(node: &Node, spoofed: &Sent, begun: &Sent, grown: u64) -> Result<String> {
    let status = node.status()?;
    let count = |outcome: &str| {
        let name = format!("gossamer_handshakes_answered_total{{outcome=\"{outcome}\"}}");
        status["counters"][name.as_str()].as_u64().unwrap_or_default()
    };
    let answered = ["accepted", "retried", "refused", "ignored", "given_up"];
    let answered: Vec<_> = answered.iter().map(|outcome| format!("{} {outcome}", count(outcome))).collect();
    Ok(format!(
        "{} spoofed and {} half-open first packets, of which {} showed their address and {} were gone on with; {}; {grown} KiB more",
        spoofed.packets,
        begun.packets,
        begun.retries,
        begun.begun,
        answered.join(", "),
    ))
}

/// Joins again and again and times records between members, for so long or until told to stop.
fn observe(
    lab: &Lab,
    nodes: &[Node],
    joiners: &Namespace,
    time: Duration,
    stop: &AtomicBool,
) -> Result<Seen> {
    let (mut seen, begin) = (Seen::default(), Instant::now());
    for turn in 0.. {
        if begin.elapsed() >= time || stop.load(Ordering::Relaxed) {
            break;
        }
        if turn % 8 == 0 {
            seen.joins.push(join_once(lab, &nodes[0], joiners)?);
        }
        // From the attacked to another, to the attacked, and between two others.
        let (exporter, other) = [(0, 1), (1, 0), (2, 3)][turn % 3];
        seen.records.extend(record_once(&nodes[exporter], &nodes[other])?);
    }
    Ok(seen)
}

/// Makes a node a member, without starting it, and returns how long its program takes for that.
fn join_once(lab: &Lab, issuer: &Node, joiners: &Namespace) -> Result<Duration> {
    let name = format!("j{}", rand::random::<u32>());
    let (node, token) = (lab.node_in(&name, joiners)?, issuer.token(&[])?);
    let begin = Instant::now();
    node.ok(&["join", &token, "--node", &name, "--no-start"])?;
    Ok(begin.elapsed())
}

/// Exposes a service and times the first answer of another node.
fn record_once(exporter: &Node, other: &Node) -> Result<Vec<Duration>> {
    let service = format!("s{}", rand::random::<u32>());
    let name = format!("{service}.mesh.internal");
    let resolver = [other.resolver()?];
    exporter.ok(&["expose", &format!("{service}:{}", PORT + 1), &format!("127.0.0.1:{PORT}")])?;
    let end = Instant::now();
    let seen = first_accepted(&resolver, &name, RecordType::A, end, VISIBLE, |answer| {
        !answer.addresses().is_empty()
    })?;
    exporter.ok(&["withdraw", &service])?;
    Ok(seen)
}

/// Notes the greatest memory of a daemon until told to stop, and stops everything when it is far too much.
fn watch(node: &Node, usual: u64, most: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let now = memory_kib(node)?;
        most.fetch_max(now, Ordering::Relaxed);
        if now > usual + 4 * GROWTH_KIB {
            stop.store(true, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Returns the anonymous memory of a daemon, KiB.
fn memory_kib(node: &Node) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
