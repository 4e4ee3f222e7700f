//! The measurements, one after the other, each in interleaved rounds.
//!
//! Owns: which systems run when, what is read before and after. Must not know: how load is made or a proxy started.
//! Driven by: `mod`.
//!
//! Systems that are measured in turn all run for the whole time, each on ports of its own; memory is read of freshly
//! started ones, alone. Counts of the target must agree with what clients saw.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use gossamer_tests::netns::Namespace;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use tempfile::TempDir;

use super::figures::{Figures, OURS, RAW, SPLICE};
use super::load::{REQUEST, Seen, Times, bulk, connections, ending, requests, stay};
use super::net::{Net, SERVER, no_road};
use super::ours::Mesh;
use super::peers::{Pair, Peer, Process, certificates};
use super::road::Road;
use super::target::{Counts, PORT, Target};
use super::{Arguments, LOSSY, Scale, THIN, What, note, pause, processes};

/// Clients of the rows of connections and of requests.
const CLIENTS: usize = 64;
/// Connections of the row of thin flows.
const THIN_FLOWS: usize = 32;
/// Streams of the row over a lossy road.
const STREAMS: usize = 8;
/// What closing costs belongs to a connection; proxies close a moment after the client.
const CLOSING: Duration = Duration::from_millis(200);
/// Where the splice proxy listens, on the server's machine.
const SPLICE_PORT: u16 = 6_100;
/// Longest wait for a reset: what is not seen then counts as this.
const RESET: Duration = Duration::from_secs(60);

/// What a run found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) figures: Figures,
    /// Why a ratio is not there, by name.
    pub(super) missing: BTreeMap<&'static str, String>,
    pub(super) rounds: u32,
}

/// One way from client to target.
#[derive(Debug)]
struct System {
    name: &'static str,
    address: SocketAddr,
    /// The processes whose costs are its own.
    pids: Vec<u32>,
}

impl System {
    fn cpu(&self) -> Result<f64> {
        processes::cpu(&self.pids)
    }
}

/// A run.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    asked: &'a Arguments,
    scale: Scale,
    program: PathBuf,
    /// Descriptors a process may have.
    files: u64,
    dir: TempDir,
    found: Found,
    rng: SmallRng,
}

impl<'a> Bench<'a> {
    pub(super) fn new(asked: &'a Arguments, program: PathBuf, files: u64) -> Result<Self> {
        let scale = Scale::of(asked);
        let dir = tempfile::Builder::new().prefix("gsm").tempdir()?;
        certificates(dir.path())?;
        let found = Found { figures: Figures::default(), missing: BTreeMap::new(), rounds: scale.rounds };
        Ok(Self { asked, scale, program, files, dir, found, rng: SmallRng::seed_from_u64(7) })
    }

    /// Measures all that was asked for.
    pub(super) fn play(mut self) -> Result<Found> {
        let near = [What::Connection, What::Request, What::Bulk, What::Latency, What::Local];
        if near.iter().any(|what| self.wants(*what)) || self.wants(What::Idle) || self.wants(What::Reset) {
            let net = Net::wire()?;
            let target = Target::start(&net.server)?;
            if near.iter().any(|what| self.wants(*what)) {
                self.near(&net, &target.counts)?;
            }
            if self.wants(What::Idle) {
                self.idle(&net, &target.counts)?;
            }
            if self.wants(What::Reset) {
                self.reset(&net)?;
            }
        }
        if let Some(why) = no_road() {
            for name in ["thin_p99_vs_tcp", "lossy_goodput"] {
                self.found.missing.insert(name, why.clone());
            }
            note(&format!("thin and lossy are not measured: {why}"));
        } else {
            if self.wants(What::Thin) {
                self.road(THIN, Self::thin)?;
            }
            if self.wants(What::Lossy) {
                self.road(LOSSY, Self::lossy)?;
            }
        }
        self.explain();
        Ok(self.found)
    }

    fn wants(&self, what: What) -> bool {
        self.asked.only.is_empty() || self.asked.only.contains(&what)
    }

    fn push(&mut self, system: &'static str, metric: &'static str, value: f64) {
        note(&format!("{system} {metric}: {value:.3}"));
        self.found.figures.push(system, metric, value);
    }

    /// Says why ratios are not there that need a peer.
    fn explain(&mut self) {
        let any = ["conn_rate_vs_best", "conn_cpu_vs_best", "req_rate_vs_best", "req_cpu_vs_best"];
        let haproxy = ["bulk_cpu_vs_haproxy", "bulk_rate_vs_haproxy", "idle_memory_vs_haproxy"];
        if self.asked.against.is_empty() {
            any.iter()
                .for_each(|name| drop(self.found.missing.insert(name, "--against names no peer".to_owned())));
        }
        if !self.asked.against.contains(&Peer::Haproxy) {
            let why = "--against does not name haproxy";
            haproxy.iter().for_each(|name| drop(self.found.missing.insert(name, why.to_owned())));
        }
    }

    /// Starts a peer's pair.
    fn pair(&self, peer: Peer, net: &Net) -> Result<Pair> {
        Pair::start(peer, net, self.dir.path())
    }

    /// Measures systems in turn, their order new in each round.
    fn rounds(
        &mut self,
        systems: &[System],
        mut measure: impl FnMut(&mut Self, &System) -> Result<()>,
    ) -> Result<()> {
        let mut order: Vec<&System> = systems.iter().collect();
        for _ in 0..self.scale.rounds {
            order.shuffle(&mut self.rng);
            for system in &order {
                measure(self, system).with_context(|| system.name)?;
            }
        }
        Ok(())
    }

    fn near(&mut self, net: &Net, counts: &Counts) -> Result<()> {
        let mesh = Mesh::start(&self.program, net)?;
        let pairs = self.asked.against.iter().map(|peer| Ok((*peer, self.pair(*peer, net)?)));
        let pairs: Vec<_> = pairs.collect::<Result<_>>()?;
        let mut systems = vec![raw(), System { name: OURS, address: mesh.vip, pids: mesh.pids()? }];
        systems.extend(pairs.iter().map(|(peer, pair)| System {
            name: peer.name(),
            address: pair.address,
            pids: pair.pids(),
        }));
        if self.wants(What::Connection) {
            self.rounds(&systems, |bench, system| bench.connection(system, net, counts))?;
        }
        if self.wants(What::Request) {
            self.rounds(&systems, |bench, system| bench.request(system, net, counts))?;
        }
        if self.wants(What::Bulk) {
            self.rounds(&systems, |bench, system| {
                let near = bench.scale.near;
                let (rate, cpu) = bench.stream(system, &net.client, 1, near, counts)?;
                bench.push(system.name, "bulk_rate", rate);
                if system.name != RAW {
                    bench.push(system.name, "bulk_cpu", cpu);
                }
                Ok(())
            })?;
        }
        if self.wants(What::Latency) {
            self.rounds(&systems, |bench, system| {
                let mut seen = net.client.enter(|| requests(system.address, 1, bench.scale.near))??;
                served_all(system, &seen)?;
                bench.push(system.name, "p50", seen.quantile(0.5));
                Ok(())
            })?;
        }
        drop(pairs);
        if self.wants(What::Local) { self.local(&mesh, net, counts) } else { Ok(()) }
    }

    fn connection(&mut self, system: &System, net: &Net, counts: &Counts) -> Result<()> {
        counts.quiet()?;
        let (served, cpu) = (counts.served.load(Ordering::Relaxed), system.cpu()?);
        let times = self.scale.near;
        let mut seen = net.client.enter(|| connections(system.address, CLIENTS, times))??;
        counts.quiet()?;
        pause(CLOSING)?;
        let (served, cpu) = (counts.served.load(Ordering::Relaxed) - served, system.cpu()? - cpu);
        served_all(system, &seen)?;
        agree(served, seen.all, seen.failed)?;
        self.push(system.name, "conn_rate", seen.times.len() as f64 / times.run.as_secs_f64());
        self.push(system.name, "conn_p99", seen.quantile(0.99) / 1e3);
        if system.name != RAW {
            self.push(system.name, "conn_cpu", cpu * 1e6 / seen.all as f64);
            self.push(system.name, "conn_failed", seen.failed as f64);
        }
        Ok(())
    }

    fn request(&mut self, system: &System, net: &Net, counts: &Counts) -> Result<()> {
        counts.quiet()?;
        let (echoed, cpu) = (counts.echoed.load(Ordering::Relaxed), system.cpu()?);
        let times = self.scale.near;
        let mut seen = net.client.enter(|| requests(system.address, CLIENTS, times))??;
        counts.quiet()?;
        let (echoed, cpu) = (counts.echoed.load(Ordering::Relaxed) - echoed, system.cpu()? - cpu);
        served_all(system, &seen)?;
        agree(echoed / REQUEST as u64, seen.all, seen.failed)?;
        self.push(system.name, "req_rate", seen.times.len() as f64 / times.run.as_secs_f64());
        self.push(system.name, "req_p99", seen.quantile(0.99) / 1e3);
        if system.name != RAW {
            self.push(system.name, "req_cpu", cpu * 1e6 / seen.all as f64);
        }
        Ok(())
    }

    /// Sends on so many streams; returns Mbit/s that arrived and processor seconds per 10^9 bytes.
    fn stream(
        &self,
        system: &System,
        from: &Namespace,
        streams: usize,
        times: Times,
        counts: &Counts,
    ) -> Result<(f64, f64)> {
        counts.quiet()?;
        let measure = || {
            pause(times.warm)?;
            let (began, bytes, cpu) =
                (Instant::now(), counts.swallowed.load(Ordering::Relaxed), system.cpu()?);
            pause(times.run)?;
            let bytes = (counts.swallowed.load(Ordering::Relaxed) - bytes) as f64;
            ensure!(bytes > 0.0, "nothing arrived in {:?}", times.run);
            Ok((bytes * 8.0 / 1e6 / began.elapsed().as_secs_f64(), (system.cpu()? - cpu) / (bytes / 1e9)))
        };
        let found = from.enter(|| bulk(system.address, streams, measure))??;
        counts.quiet()?;
        Ok(found)
    }

    /// Client and target on one machine, beside a proxy that copies nothing.
    fn local(&mut self, mesh: &Mesh, net: &Net, counts: &Counts) -> Result<()> {
        let listen = SocketAddr::from(([127, 0, 0, 1], SPLICE_PORT));
        let target = SocketAddr::from(([127, 0, 0, 1], PORT));
        let mut command: Command = net.server.command(std::env::current_exe()?);
        command.args(["relay-splice", &listen.to_string(), &target.to_string()]);
        let proxy = Process::start(command, &self.dir.path().join("splice.log"))?;
        let pids = vec![u32::try_from(mesh.server.pid()?)?];
        let systems = [
            System { name: OURS, address: mesh.vip_at_server()?, pids },
            System { name: SPLICE, address: listen, pids: vec![proxy.id()] },
            System { name: RAW, address: target, pids: Vec::new() },
        ];
        for system in &systems {
            reached(system, &net.server)?;
        }
        self.rounds(&systems, |bench, system| {
            let (rate, _) = bench.stream(system, &net.server, 1, bench.scale.near, counts)?;
            bench.push(system.name, "local_rate", rate);
            Ok(())
        })
    }

    /// Memory of idle connections, each system fresh and alone.
    fn idle(&mut self, net: &Net, counts: &Counts) -> Result<()> {
        let mut names = vec![None];
        names.extend(self.asked.against.iter().copied().map(Some));
        for _ in 0..self.scale.rounds {
            names.shuffle(&mut self.rng);
            for peer in names.clone() {
                counts.quiet()?;
                match peer {
                    None => {
                        let mesh = Mesh::start(&self.program, net)?;
                        let system = System { name: OURS, address: mesh.vip, pids: mesh.pids()? };
                        self.stays(&system, true, net)?;
                    }
                    Some(peer) => {
                        let pair = self.pair(peer, net)?;
                        let system = System { name: peer.name(), address: pair.address, pids: pair.pids() };
                        self.stays(&system, peer.carries_thousands(), net)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn stays(&mut self, system: &System, thousands: bool, net: &Net) -> Result<()> {
        // The first connection costs what is made once.
        drop(net.client.enter(|| stay(system.address))??);
        pause(self.scale.settle)?;
        let before = processes::memory(&system.pids)?;
        self.push(system.name, "idle_base", before / 1_024.0);
        let mut open = Vec::new();
        for (count, metric) in self.scale.idle {
            if !thousands && *count > 1_000 {
                continue;
            }
            // Both ends of each are in this process, and both sides of each in a proxy.
            let needed = 2 * *count as u64 + 1_000;
            if needed > self.files {
                note(&format!(
                    "{metric} is not measured: it needs {needed} descriptors, {} are allowed",
                    self.files
                ));
                let why = format!("{count} connections need {needed} descriptors: ulimit -n");
                self.found.missing.insert("idle_memory_vs_haproxy", why);
                continue;
            }
            let more = net.client.enter(|| {
                (open.len()..*count)
                    .map(|number| {
                        pause(Duration::ZERO)?;
                        stay(system.address)
                            .with_context(|| format!("{} idle connection {number}", system.name))
                    })
                    .collect::<Result<Vec<_>>>()
            })??;
            open.extend(more);
            pause(self.scale.settle)?;
            let each = (processes::memory(&system.pids)? - before) / *count as f64;
            self.push(system.name, metric, each);
        }
        Ok(())
    }

    /// How soon a client that waits learns that the other daemon or its machine is gone.
    fn reset(&mut self, net: &Net) -> Result<()> {
        for _ in 0..self.scale.rounds {
            let mut mesh = Mesh::start(&self.program, net)?;
            let mut client = net.client.enter(|| stay(mesh.vip))??;
            let began = Instant::now();
            mesh.server.kill9()?;
            self.until_reset("reset_killed", &mut client, began)?;
            drop(mesh);

            let mesh = Mesh::start(&self.program, net)?;
            let mut client = net.client.enter(|| stay(mesh.vip))??;
            let began = Instant::now();
            net.server.isolate()?;
            let seen = self.until_reset("reset_silent", &mut client, began);
            net.server.flush_rules()?;
            seen?;
        }
        Ok(())
    }

    fn until_reset(
        &mut self,
        metric: &'static str,
        client: &mut std::net::TcpStream,
        began: Instant,
    ) -> Result<()> {
        match ending(client, RESET)? {
            Some(Err(_)) => self.push(OURS, metric, began.elapsed().as_secs_f64()),
            Some(Ok(())) => bail!("{metric}: the client saw a clean end, as if all had been said"),
            None => {
                note(&format!("{metric}: no reset within {RESET:?}"));
                self.push(OURS, metric, RESET.as_secs_f64());
            }
        }
        Ok(())
    }

    /// Measures ours, plain TCP and haproxy over a road.
    fn road(
        &mut self,
        road: Road,
        measure: fn(&mut Self, &System, &Net, &Counts) -> Result<()>,
    ) -> Result<()> {
        let net = Net::road(road)?;
        let target = Target::start(&net.server)?;
        let mesh = Mesh::start(&self.program, &net)?;
        let mut systems = vec![raw(), System { name: OURS, address: mesh.vip, pids: mesh.pids()? }];
        let haproxy = self.asked.against.contains(&Peer::Haproxy).then(|| self.pair(Peer::Haproxy, &net));
        let haproxy = haproxy.transpose()?;
        systems.extend(haproxy.iter().map(|pair| System {
            name: Peer::Haproxy.name(),
            address: pair.address,
            pids: pair.pids(),
        }));
        self.rounds(&systems, |bench, system| measure(bench, system, &net, &target.counts))
    }

    fn thin(&mut self, system: &System, net: &Net, counts: &Counts) -> Result<()> {
        counts.quiet()?;
        let mut seen = net.client.enter(|| requests(system.address, THIN_FLOWS, self.scale.thin))??;
        served_all(system, &seen)?;
        self.push(system.name, "thin_p50", seen.quantile(0.5) / 1e3);
        self.push(system.name, "thin_p99", seen.quantile(0.99) / 1e3);
        Ok(())
    }

    fn lossy(&mut self, system: &System, net: &Net, counts: &Counts) -> Result<()> {
        let (rate, _) = self.stream(system, &net.client, STREAMS, self.scale.lossy, counts)?;
        self.push(system.name, "lossy_rate", rate);
        Ok(())
    }
}

/// Plain TCP from machine to machine: the limit.
fn raw() -> System {
    System { name: RAW, address: (SERVER, PORT).into(), pids: Vec::new() }
}

/// Waits until a connection reaches the target.
fn reached(system: &System, from: &Namespace) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(10);
    let end = Instant::now() + LIMIT;
    loop {
        match from.enter(|| stay(system.address))? {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error).with_context(|| system.name),
            Err(_) => pause(Duration::from_millis(20))?,
        }
    }
}

/// Ours must not fail, and nobody may fail always.
fn served_all(system: &System, seen: &Seen) -> Result<()> {
    let said = seen.error.as_deref().unwrap_or("nothing");
    ensure!(
        seen.failed == 0 || system.name != OURS,
        "{} of {} exchanges failed: {said}",
        seen.failed,
        seen.all
    );
    ensure!(!seen.times.is_empty(), "no exchange succeeded: {said}");
    Ok(())
}

/// What clients got must be what the target gave; an exchange that failed may have reached it.
fn agree(target: u64, clients: u64, failed: u64) -> Result<()> {
    let right = (clients..=clients + failed).contains(&target);
    ensure!(right, "clients saw {clients} exchanges and {failed} failures, the target counts {target}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_counts_otherwise_ends_the_run() {
        assert!(agree(5, 5, 0).is_ok());
        assert!(agree(6, 5, 1).is_ok(), "its answer was lost");
        assert!(agree(6, 5, 0).is_err());
        assert!(agree(4, 5, 1).is_err());
    }

    #[test]
    fn a_failure_of_ours_ends_the_run_and_one_of_a_peer_is_a_figure() {
        let seen = |failed| Seen { all: 5, failed, times: vec![1], error: None };
        let system = |name| System { name, address: ([127, 0, 0, 1], 1).into(), pids: Vec::new() };
        assert!(served_all(&system(OURS), &seen(0)).is_ok());
        assert!(served_all(&system(OURS), &seen(1)).is_err());
        assert!(served_all(&system("stunnel"), &seen(1)).is_ok());
        assert!(served_all(&system("stunnel"), &Seen::default()).is_err());
    }
}
