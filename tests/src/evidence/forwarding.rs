//! Names of others: an upstream server that lies, and one that is dead while the mesh is dead too.
//!
//! Owns: what is asked and what may be answered. Must not know: how the daemon forwards. Driven by: `evidence`.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::{Ci, Needs, Row, Run};
use crate::dnsq::{RecordType, Resolver, ResponseCode, question};
use crate::process::{Lab, Node};
use crate::promise;
use crate::report::Samples;
use crate::upstream::{MANY, TRUE, Upstream};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "5.0-hostile-upstream",
        promise: "An upstream server that is late, cuts its answers, sends a wrong id, a wrong question, garbage, 60 KB or names and addresses of the mesh, that others forge, or that asks the daemon back, gets no lie to a client: 0 forged answers, 0 mesh names sent to it, SERVFAIL with the reason within 4 s, and a loop is named by status and events, suspended, and over 15 s after it ended",
        sabotage: "the forger knows id, question and port",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: hostile,
    },
    Row {
        name: "5.6-flood",
        promise: "With the upstream server silent and every other node killed, 10,000 questions a second about names of others and random mesh names for 20 s: at most 1 of 1,000 questions about a service has to be asked twice, none is answered with SERVFAIL, 99 % are answered within 50 ms, and the daemon grows by at most 32 MiB",
        sabotage: "the daemon is held still for nine tenths of the time",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: flood,
    },
];

/// Longest time from a change at the upstream server to its effect; servers that loop are probed every 10 s.
const RECOVERY: Duration = Duration::from_secs(15);
/// Longest time a client waits for what no server answers.
const PATIENCE: Duration = Duration::from_secs(4);
/// Questions of each kind of forgery.
const OF_A_KIND: usize = 20;

fn hostile(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let upstream = Upstream::start(run.sabotaged)?;
        let node = with_upstream(lab, upstream.address(), "rebind_protection = true\nrebind_allow = [\"home.example\"]\n")?;
        node.ok(&["expose", "orders:8080", "127.0.0.1:8080"])?;
        let dns = node.resolver()?;

        let suspended = suspends(&node, &upstream, &dns)?;
        upstream.mend();
        let recovered = until("the end of the loop", RECOVERY, || Ok(is_answered(&dns, "good-0.example")))?;
        let events = node.ok(&["events"])?;
        promise!(events.contains("looping -> up"), "events do not say that the loop ended: {events}");

        let mut asked = 0;
        for kind in ["good", "id", "question", "source", "garbage", "huge", "extra"] {
            for number in 1..=OF_A_KIND {
                let name = format!("{kind}-{number}.example");
                let answer = dns.ask(&name, RecordType::A)?;
                promise!(answer.addresses() == [TRUE], "{name} is answered {answer}");
                promise!(answer.additional().is_empty(), "{name} comes with {:?}", answer.additional());
                asked += 1;
            }
        }
        for number in 0..OF_A_KIND {
            dns.ask(&format!("mutant-{number}.example"), RecordType::A)?;
        }
        refuses(&node, &dns)?;
        let slowest = ends_in_time(&node)?;
        stays_here(&node, &dns, &upstream)?;
        let dropped = dropped(&node)?;
        Ok(format!(
            "{asked} of {asked} answers true, {dropped} messages dropped and counted; SERVFAIL after {:.1} s; loop named after {:.0} ms, over after {:.1} s",
            slowest.as_secs_f64(),
            suspended.as_secs_f64() * 1e3,
            recovered.as_secs_f64()
        ))
    })
}

/// Starts a daemon that forwards to a server.
fn with_upstream(lab: &Lab, upstream: SocketAddr, more: &str) -> Result<Node> {
    let mut node = lab.node("first")?;
    fs::write(node.config_file(), format!("[dns]\nupstream = [\"{upstream}\"]\n{more}"))?;
    node.init("west")?;
    Ok(node)
}

fn is_answered(dns: &Resolver, name: &str) -> bool {
    dns.ask(name, RecordType::A).is_ok_and(|answer| !answer.addresses().is_empty())
}

/// Lets the server ask the daemon back, and waits until that is known.
fn suspends(node: &Node, upstream: &Upstream, dns: &Resolver) -> Result<Duration> {
    upstream.asks_back(dns.server())?;
    let named = until("the loop named by status", Duration::from_secs(5), || {
        Ok(node.status()?["findings"].to_string().contains("asks this daemon what this daemon asks it"))
    })?;
    let before = upstream.asked().len();
    let answer = dns.ask("while-looping.example", RecordType::A)?;
    promise!(answer.code() == ResponseCode::ServFail, "while it loops an answer is {answer}");
    let later = &upstream.asked()[before..];
    promise!(later.iter().all(|name| name.starts_with("_loop-")), "while it loops it is asked {later:?}");
    promise!(
        dns.ask("orders.mesh.internal", RecordType::A)?.addresses().len() == 1,
        "mesh names wait for the loop"
    );
    let events = node.ok(&["events"])?;
    promise!(events.contains("up -> looping"), "events do not tell of the loop: {events}");
    Ok(named)
}

/// Asks for what the server lies about in a well-formed answer.
fn refuses(node: &Node, dns: &Resolver) -> Result<()> {
    for (name, words) in [("alias-1.example", "this mesh"), ("pool-1.example", "this mesh")] {
        let answer = dns.ask(name, RecordType::A)?;
        let reason = answer.reason().unwrap_or_default();
        promise!(
            answer.code() == ResponseCode::ServFail
                && answer.addresses().is_empty()
                && reason.contains(words),
            "{name} is answered {answer}, {reason:?}"
        );
    }
    let private = dns.ask("private-1.example", RecordType::A)?;
    let reason = private.reason().unwrap_or_default();
    promise!(
        private.is_nodata() && reason.contains("rebind_allow"),
        "a private address is answered {private}"
    );
    let allowed = dns.ask("private-1.home.example", RecordType::A)?;
    promise!(allowed.addresses().len() == 1, "an allowed private address is answered {allowed}");

    // More than a datagram holds: the daemon asked over TCP.
    let all = node.ok(&["resolve", "cut-1.example."])?;
    promise!(all.lines().count() == MANY as usize, "a cut answer has {} records", all.lines().count());
    Ok(())
}

/// Asks for what is never answered in time; returns how long that took.
fn ends_in_time(node: &Node) -> Result<Duration> {
    let start = Instant::now();
    let late = node.cli(&["resolve", "late-1.example."])?;
    let took = start.elapsed();
    promise!(late.code == Some(1) && late.stderr.contains("did not answer in time"), "late: {}", late.stderr);
    promise!(took < PATIENCE, "a client waited {took:?}");
    Ok(took)
}

/// Asks for names of the mesh, and looks that none of them has left.
fn stays_here(node: &Node, dns: &Resolver, upstream: &Upstream) -> Result<()> {
    let pool = dns.server().ip().to_string();
    let reverse: Vec<_> = pool.split('.').rev().collect();
    for name in ["orders.mesh.internal", "nobody.mesh.internal", "a.b.c.d.e.mesh.internal", "mesh.internal"] {
        promise!(dns.ask(name, RecordType::A)?.is_authoritative(), "{name} is not ours");
    }
    dns.ask(&format!("{}.in-addr.arpa", reverse.join(".")), RecordType::PTR)?;
    node.cli(&["resolve", "nobody"])?;
    let ours = |name: &&String| name.ends_with("mesh.internal") || name.ends_with("in-addr.arpa");
    let left: Vec<_> = upstream.asked().iter().filter(ours).cloned().collect();
    promise!(left.is_empty(), "names of the mesh were sent to the server: {left:?}");
    Ok(())
}

/// Returns how many messages the daemon dropped, of which each kind must be some.
fn dropped(node: &Node) -> Result<u64> {
    let counters = node.status()?["counters"].clone();
    let mut all = 0;
    for reason in ["wrong_id", "wrong_question", "malformed"] {
        let name = format!("gossamer_dns_upstream_dropped_total{{reason=\"{reason}\"}}");
        let number = counters[&name].as_u64().context(name)?;
        promise!(number >= OF_A_KIND as u64, "{reason} was counted {number} times");
        all += number;
    }
    Ok(all)
}

/// Questions a second, in all.
const RATE: u64 = 10_000;
/// Threads that send them.
const SENDERS: u64 = 2;
/// Pause between two questions about a service.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// A service's answer that takes longer counts as lost.
const LOST: Duration = Duration::from_secs(1);
const WITHIN: Duration = Duration::from_millis(50);
const GROWTH_KIB: u64 = 32 * 1_024;

fn flood(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        // Nobody reads it: a server that is silent.
        let silent = UdpSocket::bind("127.0.0.1:0")?;
        let mut node = with_upstream(lab, silent.local_addr()?, "")?;
        let mut others = Vec::new();
        for name in ["second", "third"] {
            let mut other = lab.node(name)?;
            other.join(&node.token(&[])?)?;
            other.ok(&["expose", "orders:8080", "127.0.0.1:8080"])?;
            others.push(other);
        }
        let dns = node.resolver()?;
        let limit = Duration::from_secs(10);
        dns.address("orders.mesh.internal", limit)?;
        for other in &mut others {
            other.kill9()?;
            node.sees(&other.name, "down", Duration::from_secs(30))?;
        }

        let calm = probe(dns.server(), Duration::from_secs(2))?;
        let memory = memory_kib(&node)?;
        let time = Duration::from_secs(run.times(20, 6));
        let stop = AtomicBool::new(false);
        let (sent, most) = (AtomicU64::new(0), AtomicU64::new(memory));
        let seen = std::thread::scope(|scope| {
            let flooding: Vec<_> = (0..SENDERS).map(|_| scope.spawn(|| send(dns.server(), &sent, &stop))).collect();
            let watching = scope.spawn(|| watch(&node, &most, run.sabotaged, &stop));
            let seen = probe(dns.server(), time);
            stop.store(true, Ordering::Relaxed);
            for thread in flooding {
                thread.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            }
            watching.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            seen
        })?;
        let rate = sent.load(Ordering::Relaxed) / time.as_secs();
        let grown = most.load(Ordering::Relaxed) - memory;
        let figures = format!(
            "{} questions about services: {} lost, {} SERVFAIL, {}; calm {}; {rate} q/s beside, {grown} KiB more",
            seen.asked, seen.lost, seen.failed, seen.took, calm.took
        );
        ensure!(rate * 10 >= RATE * 9, "the harness sent {rate} q/s only: {figures}");
        promise!(seen.lost * 1_000 <= seen.asked && seen.failed == 0, "{figures}");
        promise!(seen.took.percentile(0.99) <= WITHIN, "{figures}");
        promise!(grown <= GROWTH_KIB, "{figures}");
        node.stop()?;
        Ok(figures)
    })
}

/// What became of the questions about services.
#[derive(Debug, Default)]
struct Seen {
    asked: u64,
    lost: u64,
    failed: u64,
    took: Samples,
}

/// Asks for the service by turns as address and as SRV, one question at a time, for so long.
fn probe(server: SocketAddr, time: Duration) -> Result<Seen> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(LOST))?;
    let (start, mut seen) = (Instant::now(), Seen::default());
    let mut buffer = [0; 1_500];
    for id in 0_u16.. {
        if start.elapsed() >= time {
            break;
        }
        let (name, kind) = match id % 2 {
            0 => ("orders.mesh.internal", RecordType::A),
            _ => ("_8080._tcp.orders.mesh.internal", RecordType::SRV),
        };
        let asked = Instant::now();
        socket.send(&question(id, name, kind)?)?;
        seen.asked += 1;
        let code = loop {
            match socket.recv(&mut buffer) {
                Ok(_) if buffer[..2] != id.to_be_bytes() => {}
                Ok(_) => break Some(buffer[3] & 0xf),
                Err(_) => break None,
            }
        };
        match code {
            None => seen.lost += 1,
            Some(0) => seen.took.push(asked.elapsed()),
            Some(_) => seen.failed += 1,
        }
        sleep(PROBE_EVERY);
    }
    Ok(seen)
}

/// Sends its share of the flood until told to stop; answers are not read. Three questions of four are about names of others.
fn send(server: SocketAddr, sent: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    let start = Instant::now();
    let mut mine = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = start.elapsed().as_micros() as u64 * RATE / SENDERS / 1_000_000;
        while mine < due {
            let zone = if mine % 4 == 0 { "mesh.internal" } else { "example.com" };
            let name = format!("r{:x}.{zone}", rand::random::<u64>());
            let _ = socket.send(&question(mine as u16, &name, RecordType::A)?);
            mine += 1;
            sent.fetch_add(1, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Notes the most memory of the daemon; holds it still for nine tenths of the time when that is wanted.
fn watch(node: &Node, most: &AtomicU64, hold: bool, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        if hold {
            node.signal(Signal::SIGSTOP)?;
            sleep(Duration::from_millis(900));
            node.signal(Signal::SIGCONT)?;
        }
        most.fetch_max(memory_kib(node)?, Ordering::Relaxed);
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn memory_kib(node: &Node) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
