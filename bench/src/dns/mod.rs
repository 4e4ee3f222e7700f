//! DNS: the shipped daemon beside Knot, unbound, a bare echo and hickory's own server.
//!
//! Owns: the order of measurements and the ratios. Must not know: how load is made or servers are started.
//! Driven by: the command line. What is measured and how: `docs/benchmarks.md`.

#![allow(clippy::disallowed_methods, reason = "a bench reads clocks and waits")]

mod changes;
mod choir;
mod load;
pub(crate) mod reference;
pub(crate) mod servers;
mod signed;
mod verdict;
mod watch;
mod zone;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use gossamer_tests::api::Api;
use gossamer_tests::quic::identity_of;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use serde_json::json;
use tokio::sync::mpsc;

use crate::report::{Report, Row, machine};
use choir::Choir;
use load::{Questions, Seen};
use servers::{Server, configure, installed};
use watch::Watch;
use zone::Catalog;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Peers to measure beside, of Debian packages of the same name.
    #[arg(long, value_delimiter = ',', value_name = "PEERS")]
    against: Vec<Peer>,
    /// Short runs: shows that it works rather than what it costs.
    #[arg(long)]
    quick: bool,
    /// Measure only these; all unless given.
    #[arg(long, value_delimiter = ',', value_name = "PHASES")]
    only: Vec<Phase>,
    /// How often each server is measured, in turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Services of three instances each.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(200..=10_000))]
    services: u32,
    /// The program to measure.
    #[arg(long, default_value = "target/release/gossamer", value_name = "FILE")]
    gossamer: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    Knot,
    Unbound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Phase {
    /// Servers on one core, one worker each
    Pinned,
    /// 500 services of this machine
    Local,
    /// Servers and load on all cores, two workers; then changes
    Free,
}

/// Figures by system and metric.
type Figures = BTreeMap<(&'static str, &'static str), Vec<f64>>;

/// The daemon's own DNS address and mesh port, in the namespace this process makes for itself.
const OURS: &str = "127.240.0.53:53";
const MESH: &str = "127.0.0.1:4677";

/// Local services of the cross-check: a node registers 512 records at most.
const LOCAL: usize = 500;

/// Longest wait until the daemon knows all services.
const LEARNING: Duration = Duration::from_secs(180);
/// Longest wait until every name has a virtual address of its own.
const SETTLING: Duration = Duration::from_secs(30);

pub(crate) fn run(asked: &Arguments) -> Result<Report> {
    let gossamer =
        asked.gossamer.canonicalize().with_context(|| format!("no program {}", asked.gossamer.display()))?;
    installed("taskset", "util-linux")?;
    if asked.against.contains(&Peer::Knot) {
        installed("knotd", "knot")?;
    }
    if asked.against.contains(&Peer::Unbound) {
        installed("unbound", "unbound")?;
    }
    // A namespace of its own: default addresses and ports, whatever else runs here.
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    ensure!(up.context("ip: install the Debian package iproute2")?.success(), "lo does not come up");

    // Before this process is pinned, which hides a core.
    let machine = machine();
    let mut figures = Figures::new();
    let suite = Suite { asked, gossamer };
    for phase in Phase::value_variants() {
        if !(asked.only.is_empty() || asked.only.contains(phase)) {
            continue;
        }
        match phase {
            Phase::Pinned => suite.phase(true, &mut figures)?,
            Phase::Free => suite.phase(false, &mut figures)?,
            Phase::Local => suite.local(&mut figures)?,
        }
    }
    let rounds = suite.rounds();
    let ratios = ratios(&figures);
    let rows =
        figures.into_iter().map(|((system, metric), values)| Row::by(system, metric, unit(metric), values));
    Ok(Report { suite: "dns", machine, rounds, rows: rows.collect(), ratios, lines: Vec::new() })
}

struct Suite<'a> {
    asked: &'a Arguments,
    gossamer: PathBuf,
}

impl Suite<'_> {
    fn rounds(&self) -> u32 {
        if self.asked.quick { self.asked.rounds.min(2) } else { self.asked.rounds }
    }

    fn run_time(&self) -> Duration {
        if self.asked.quick { Duration::from_millis(500) } else { Duration::from_secs(2) }
    }

    /// Measures all servers: pinned to one core with one worker each, the client on another; or all on all cores.
    fn phase(&self, pinned: bool, figures: &mut Figures) -> Result<()> {
        pin(pinned)?;
        let scratch = tempfile::tempdir()?;
        let dir = scratch.path();
        let mut ours = self.daemon(dir, pinned)?;
        let known = identity_of(&dir.join("state"))?;
        let catalog = Catalog::new(self.asked.services as usize, known.mesh, known.group())?;
        let queries = catalog.queries();
        // Short: a change that is asked for waits behind these.
        let (changes, asked) = mpsc::channel(16);
        let watch = Watch::open(&dir.join("s"), false)?;
        std::thread::scope(|scope| {
            let members = scope.spawn(|| sing(dir, &catalog, asked));
            let measured = (|| {
                self.learned(&ours, &dir.join("s"), watch, &queries)?;
                let before = ours.memory()?;
                let questions = Questions {
                    queries: &queries,
                    srv_records: zone::INSTANCES as u16,
                    window: load::WINDOW,
                };
                for _ in 0..2 {
                    load::once(ours.address, &questions).with_context(|| ours.tail())?;
                }
                push(figures, ours.name, "memory_added", ours.memory()? - before);
                push(figures, ours.name, "memory", ours.memory()?);
                let mut peers = self.peers(dir, pinned, &catalog, known.group().as_str())?;
                for peer in &mut peers {
                    peer.answers(&queries[0])?;
                    if peer.name != "echo" {
                        load::once(peer.address, &questions).with_context(|| peer.tail())?;
                    }
                }
                self.rounds_of(&ours, &peers, &queries, pinned, figures)?;
                drop(peers);
                if pinned {
                    let queries = zone::queries_of_one(self.asked.services as usize, known.group());
                    self.of_one(&ours, &queries, "cpu_one", figures)
                } else {
                    self.changing(&mut ours, dir, &changes, &catalog, figures)
                }
            })();
            drop(changes);
            let sung = members.join().map_err(|_| anyhow::anyhow!("the members panicked"))?;
            measured.and(sung)
        })
    }

    fn daemon(&self, dir: &Path, pinned: bool) -> Result<Server> {
        fs::write(dir.join("gossamer.toml"), "")?;
        let environment = [
            ("GOSSAMER_CONFIG", dir.join("gossamer.toml")),
            ("GOSSAMER_STATE_DIR", dir.join("state")),
            ("GOSSAMER_SOCKET", dir.join("s")),
            ("HOME", dir.to_owned()),
        ];
        let words = [self.gossamer.display().to_string(), "init".into(), "--node".into(), "n0".into()];
        let mut server = Server::start("gossamer", OURS.parse()?, &words, dir, (pinned, &environment))?;
        server.answers(&zone::query(&["nobody"], 1))?;
        Ok(server)
    }

    /// Waits until the daemon knows every instance. `watch` was opened before the first of them came.
    fn learned(&self, ours: &Server, socket: &Path, watch: Watch, queries: &[Vec<u8>]) -> Result<()> {
        let end = Instant::now() + LEARNING;
        watch::learned(watch, socket, self.asked.services as usize, end).with_context(|| ours.tail())?;
        // The instances that came last: a few names say whether all three are there.
        let client = std::net::UdpSocket::bind("127.0.0.1:0")?;
        client.set_read_timeout(Some(Duration::from_secs(1)))?;
        for query in queries[queries.len() / 2..].iter().step_by(97) {
            let mut reply = [0; 1_500];
            while reply[7] != 3 {
                ensure!(Instant::now() < end, "an instance is missing: {}", ours.tail());
                client.send_to(query, ours.address)?;
                let _ = client.recv(&mut reply);
            }
        }
        Ok(())
    }

    fn peers(&self, dir: &Path, pinned: bool, catalog: &Catalog, group: &str) -> Result<Vec<Server>> {
        let group = group.parse()?;
        let (zone, local) = (dir.join("mesh.zone"), dir.join("local.conf"));
        fs::write(&zone, catalog.zone_file(&group))?;
        fs::write(&local, catalog.local_data(&group))?;
        let workers = if pinned { "1" } else { "2" };
        let own = std::env::current_exe()?.display().to_string();
        let mut all = Vec::new();
        let mut start = |name, port: u16, words: Vec<String>| -> Result<()> {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            all.push(Server::start(name, address, &words, dir, (pinned, &[]))?);
            Ok(())
        };
        let values = |port: &str, zone: &Path| {
            [
                ("DIR", dir.display().to_string()),
                ("PORT", port.to_owned()),
                ("WORKERS", workers.to_owned()),
                ("ZONE", zone.display().to_string()),
            ]
        };
        if self.asked.against.contains(&Peer::Knot) {
            let file = dir.join("knot.conf");
            configure(include_str!("../../configs/dns/knot.conf"), &values("5301", &zone), &file)?;
            start("knot", 5_301, vec!["knotd".into(), "-c".into(), file.display().to_string()])?;
        }
        if self.asked.against.contains(&Peer::Unbound) {
            let file = dir.join("unbound.conf");
            configure(include_str!("../../configs/dns/unbound.conf"), &values("5302", &local), &file)?;
            start(
                "unbound",
                5_302,
                vec!["unbound".into(), "-d".into(), "-c".into(), file.display().to_string()],
            )?;
        }
        let reference = |kind: &str, port: u16| {
            vec![own.clone(), "dns-reference".into(), kind.into(), format!("127.0.0.1:{port}")]
        };
        start("echo", 5_303, reference("echo", 5_303))?;
        let mut hickory = reference("hickory", 5_304);
        hickory.push(zone.display().to_string());
        start("hickory", 5_304, hickory)?;
        Ok(all)
    }

    fn rounds_of(
        &self,
        ours: &Server,
        peers: &[Server],
        queries: &[Vec<u8>],
        pinned: bool,
        figures: &mut Figures,
    ) -> Result<()> {
        let questions = Questions { queries, srv_records: zone::INSTANCES as u16, window: load::WINDOW };
        let mut order: Vec<&Server> = peers.iter().chain([ours]).collect();
        let mut rng = SmallRng::seed_from_u64(7);
        let threads = if pinned { 1 } else { 2 };
        for round in 0..self.rounds() {
            order.shuffle(&mut rng);
            for server in &order {
                let before = server.cpu()?;
                let mut seen =
                    ask(server.address, &questions, self.run_time(), threads, u64::from(round) + 7)?;
                let used = server.cpu()? - before;
                ensure!(seen.replies > 0, "{} answers nothing: {}", server.name, server.tail());
                let [cpu, rate, p99] =
                    if pinned { ["cpu", "rate", "p99"] } else { ["cpu2", "rate2", "p99_2"] };
                push(figures, server.name, cpu, used * 1e6 / seen.replies as f64);
                push(figures, server.name, rate, seen.rate());
                push(figures, server.name, p99, seen.p99());
                push(figures, server.name, "lost", seen.lost as f64);
                if server.name == "gossamer" {
                    ensure!(seen.verdicts.other == 0, "{} replies: {}", seen.replies, seen.verdicts);
                    push(figures, server.name, "servfail", seen.verdicts.failed as f64);
                    push(figures, server.name, "torn", seen.verdicts.torn as f64);
                }
            }
        }
        Ok(())
    }

    /// Answers a moderate load while the catalog changes.
    fn changing(
        &self,
        ours: &mut Server,
        dir: &Path,
        changes: &mpsc::Sender<choir::Change>,
        catalog: &Catalog,
        figures: &mut Figures,
    ) -> Result<()> {
        let samples = if self.asked.quick { 50 } else { 500 };
        let (queries, stop) = (catalog.queries(), AtomicBool::new(false));
        // Eight questions on their way, and a load that waits for answers: what is measured is not the length of a queue.
        let questions = Questions { queries: &queries, srv_records: zone::INSTANCES as u16, window: 1 };
        let watch = Watch::open(&dir.join("s"), false)?;
        let began = Instant::now();
        let (probed, seen) = std::thread::scope(|scope| {
            scope.spawn(|| changes::change_all(changes, catalog.services.len(), &stop));
            let loading = scope.spawn(|| -> Result<Seen> {
                let mut all = Seen::default();
                while !stop.load(Ordering::Relaxed) {
                    all.add(load::closed_loop(ours.address, &questions, Duration::from_millis(500), 99)?);
                }
                all.elapsed = began.elapsed();
                Ok(all)
            });
            let probed = changes::probe(ours.address, watch, changes, &catalog.services, samples);
            let seconds = began.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            (probed.map(|probed| (probed, seconds)), loading.join())
        });
        let seen = seen.map_err(|_| anyhow::anyhow!("the load panicked"))??;
        let (probed, seconds) = probed?;
        push(figures, ours.name, "changes", probed.changes as f64 / seconds);
        push(figures, ours.name, "rate_changing", seen.replies as f64 / seen.elapsed.as_secs_f64());
        push(figures, ours.name, "lost", seen.lost as f64);
        push(figures, ours.name, "servfail", seen.verdicts.failed as f64);
        push(figures, ours.name, "torn", seen.verdicts.torn as f64);
        ensure!(seen.verdicts.other == 0, "{} replies: {}", seen.replies, seen.verdicts);
        figures.insert((ours.name, "update"), probed.late);
        figures.insert((ours.name, "update_stale"), probed.stale);
        Ok(())
    }

    /// Measures the daemon with services of this machine only.
    fn local(&self, figures: &mut Figures) -> Result<()> {
        pin(true)?;
        let scratch = tempfile::tempdir()?;
        let dir = scratch.path();
        let target = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = target.local_addr()?.port();
        let stop = AtomicBool::new(false);
        target.set_nonblocking(true)?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    while target.accept().is_ok() {}
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            let measured = self.local_with(dir, port, figures);
            stop.store(true, Ordering::Relaxed);
            measured
        })
    }

    fn local_with(&self, dir: &Path, target: u16, figures: &mut Figures) -> Result<()> {
        let ours = self.daemon(dir, true)?;
        let known = identity_of(&dir.join("state"))?;
        let socket = dir.join("s");
        let mut api = Api::connect(&socket)?;
        for number in 0..LOCAL {
            let ports = json!([{"name": "http", "number": zone::PORT, "target_port": target}]);
            let (service, instance) = (zone::service_name(number), zone::FIRST);
            let wish = json!({"service": service, "instance": instance, "ports": ports});
            let (code, said) = api.request("POST", "/v1/expose", &wish)?;
            ensure!((200..300).contains(&code), "{code} {said}");
        }
        // A node publishes at a bounded pace: the last of so many at once are known a moment later.
        watch::usable(&socket, LOCAL, Instant::now() + LEARNING).with_context(|| ours.tail())?;
        let queries = zone::queries_of_one(LOCAL, known.group());
        self.of_one(&ours, &queries, "cpu_local", figures)
    }

    /// Measures processor time for answers of one record.
    fn of_one(
        &self,
        ours: &Server,
        queries: &[Vec<u8>],
        metric: &'static str,
        figures: &mut Figures,
    ) -> Result<()> {
        let questions = Questions { queries, srv_records: 1, window: load::WINDOW };
        let end = Instant::now() + SETTLING;
        // Of two names that meet at one virtual address, one is not answered until it has another. Twice: an answer is
        // kept once all virtual addresses of its service are open.
        let mut right = 0;
        while right < 2 {
            let verdicts = load::once(ours.address, &questions)?;
            right = if verdicts.wrong() == 0 { right + 1 } else { 0 };
            ensure!(Instant::now() < end, "services are not answered: {verdicts}");
        }
        for round in 0..self.rounds() {
            let before = ours.cpu()?;
            let seen = ask(ours.address, &questions, self.run_time(), 1, u64::from(round) + 70)?;
            ensure!(seen.verdicts.wrong() == 0, "{} replies: {}", seen.replies, seen.verdicts);
            push(figures, ours.name, metric, (ours.cpu()? - before) * 1e6 / seen.replies as f64);
        }
        Ok(())
    }
}

/// Runs the members until the changes end.
fn sing(dir: &Path, catalog: &Catalog, changes: mpsc::Receiver<choir::Change>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let choir = Choir::start(&dir.join("state"), MESH.parse()?, dir, catalog)?;
        choir.run(changes).await
    })
}

fn ask(
    server: SocketAddr,
    questions: &Questions<'_>,
    time: Duration,
    threads: u64,
    seed: u64,
) -> Result<Seen> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || load::closed_loop(server, questions, time, seed * 1_000 + thread))
            })
            .collect();
        let mut all = Seen::default();
        for thread in asking {
            match thread.join() {
                Ok(seen) => all.add(seen?),
                Err(_) => bail!("the load panicked"),
            }
        }
        Ok(all)
    })
}

/// Keeps this process on the second core, or frees it.
fn pin(pinned: bool) -> Result<()> {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cores = CpuSet::new();
    if pinned {
        cores.set(1)?;
    } else {
        (0..count.max(2)).try_for_each(|core| cores.set(core))?;
    }
    sched_setaffinity(Pid::from_raw(0), &cores).context("two cores are needed")
}

fn push(figures: &mut Figures, system: &'static str, metric: &'static str, value: f64) {
    figures.entry((system, metric)).or_default().push(value);
}

fn unit(metric: &str) -> &'static str {
    match metric {
        "cpu" | "cpu2" | "cpu_local" | "cpu_one" | "p99" | "p99_2" => "us",
        "rate" | "rate2" | "rate_changing" | "changes" => "1/s",
        "memory" | "memory_added" => "MiB",
        "update" | "update_stale" => "ms",
        _ => "",
    }
}

/// Medians of processor time, best rounds of rate and p99, sums of what must be 0.
fn ratios(figures: &Figures) -> BTreeMap<&'static str, f64> {
    let of = |system, metric| {
        figures.get(&(system, metric)).cloned().filter(|values: &Vec<f64>| !values.is_empty())
    };
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let middle = |values: Vec<f64>| sorted(values.clone())[values.len() / 2];
    let best = |values: Vec<f64>| values.into_iter().fold(f64::NAN, f64::max);
    let least = |values: Vec<f64>| values.into_iter().fold(f64::NAN, f64::min);
    let mut all = BTreeMap::new();
    let mut compare = |name, metric, theirs, pick: &dyn Fn(Vec<f64>) -> f64| {
        if let (Some(ours), Some(theirs)) = (of("gossamer", metric), of(theirs, metric)) {
            all.insert(name, pick(ours) / pick(theirs));
        }
    };
    compare("cpu_vs_knot", "cpu", "knot", &middle);
    compare("cpu_vs_unbound", "cpu", "unbound", &middle);
    compare("cpu_vs_echo", "cpu", "echo", &middle);
    compare("cpu_vs_hickory", "cpu", "hickory", &middle);
    compare("qps_vs_knot", "rate", "knot", &best);
    compare("qps2_vs_knot", "rate2", "knot", &best);
    compare("p99_vs_knot", "p99", "knot", &least);
    if let (Some(local), Some(full)) = (of("gossamer", "cpu_local"), of("gossamer", "cpu_one")) {
        all.insert("local500_vs_full", middle(local) / middle(full));
    }
    for name in ["lost", "servfail", "torn"] {
        if let Some(values) = of("gossamer", name) {
            all.insert(name, values.iter().sum());
        }
    }
    if let Some(values) = of("gossamer", "memory_added") {
        all.insert("memory_mib", best(values));
    }
    if let Some(values) = of("gossamer", "update") {
        let values = sorted(values);
        all.insert("update_ms", values[(values.len() * 99 / 100).min(values.len() - 1)]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_have_their_stable_names() {
        let mut figures = Figures::new();
        for (system, value) in
            [("gossamer", 2.0), ("knot", 4.0), ("unbound", 8.0), ("echo", 1.0), ("hickory", 5.0)]
        {
            for metric in ["cpu", "rate", "rate2", "p99"] {
                push(&mut figures, system, metric, value);
            }
        }
        for metric in ["lost", "servfail", "torn", "memory_added", "update", "cpu_local", "cpu_one"] {
            push(&mut figures, "gossamer", metric, 0.0);
        }
        let ratios = ratios(&figures);
        let names: Vec<_> = ratios.keys().copied().collect();
        assert_eq!(
            names,
            [
                "cpu_vs_echo",
                "cpu_vs_hickory",
                "cpu_vs_knot",
                "cpu_vs_unbound",
                "local500_vs_full",
                "lost",
                "memory_mib",
                "p99_vs_knot",
                "qps2_vs_knot",
                "qps_vs_knot",
                "servfail",
                "torn",
                "update_ms",
            ]
        );
        assert_eq!((ratios["cpu_vs_knot"], ratios["cpu_vs_echo"]), (0.5, 2.0));
    }

    #[test]
    fn a_peer_that_is_not_installed_is_an_error_that_names_its_package() {
        let error = installed("no-such-program", "knot").expect_err("not there").to_string();
        assert!(error.contains("Debian package knot"), "{error}");
    }
}
