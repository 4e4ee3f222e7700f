//! Suite `relay`: TCP through two daemons beside TCP through pairs of other people's proxies.
//!
//! Owns: the command line, sizes, how a run ends. Must not know: how one thing is measured; [`measure`] does.
//! Driven by: the command line. What is measured and how: `docs/benchmarks.md`.

#![allow(clippy::disallowed_methods, reason = "a bench reads clocks, waits, and has threads of its own")]

mod figures;
mod load;
mod measure;
mod net;
mod ours;
mod peers;
mod processes;
mod road;
pub(crate) mod splice;
mod target;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::report::{Report, machine};
use figures::{IDLE, IDLE_QUICK, verdicts};
use load::Times;
use measure::{Bench, Found};
use peers::Peer;
use road::Road;

/// Options of the suite.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Peers to measure beside
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PEERS")]
    against: Vec<Peer>,
    /// Short runs, one round: shows that it works rather than what it costs
    #[arg(long)]
    quick: bool,
    /// Measure only these; all unless given
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<What>,
    /// How often each system is measured, in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The program to measure; beside this one unless given
    #[arg(long, value_name = "FILE")]
    gossamer: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Connect, a byte each way, close; 64 clients
    Connection,
    /// 100 bytes each way on 64 connections that stay
    Request,
    /// One stream as fast as it goes
    Bulk,
    /// One request at a time on one connection
    Latency,
    /// One stream between programs of one machine, beside a splice(2) proxy
    Local,
    /// Memory of connections that are idle
    Idle,
    /// How soon a client sees that the serving daemon or its machine is gone
    Reset,
    /// Requests of 32 connections over a road that loses packets
    Thin,
    /// Eight streams over a road that loses packets
    Lossy,
}

/// The road of [`What::Thin`]: 40 ms there and back.
const THIN: Road = Road { delay: Duration::from_millis(20), loss: 0.01, rate: 50e6 };
/// The road of [`What::Lossy`].
const LOSSY: Road = Road { delay: Duration::from_millis(20), loss: 0.001, rate: 50e6 };

/// How long and how often.
#[derive(Clone, Copy, Debug)]
struct Scale {
    rounds: u32,
    near: Times,
    thin: Times,
    /// Streams fill the road while it is warmed.
    lossy: Times,
    idle: &'static [(usize, &'static str)],
    /// Before memory is read: what is freed later counts as used.
    settle: Duration,
}

impl Scale {
    fn of(asked: &Arguments) -> Self {
        let times = |warm, run| Times { warm: Duration::from_millis(warm), run: Duration::from_millis(run) };
        if asked.quick {
            let (near, thin, lossy) = (times(200, 1_000), times(500, 3_000), times(1_500, 3_000));
            let settle = Duration::from_millis(300);
            Self { rounds: 1, near, thin, lossy, idle: IDLE_QUICK, settle }
        } else {
            let (near, thin, lossy) = (times(500, 3_000), times(1_000, 10_000), times(3_000, 12_000));
            let settle = Duration::from_secs(1);
            Self { rounds: asked.rounds, near, thin, lossy, idle: IDLE, settle }
        }
    }
}

/// Whether a signal asked for the end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

pub(crate) fn run(asked: &Arguments) -> Result<Report> {
    let is_root = nix::unistd::geteuid().is_root();
    ensure!(is_root, "bench relay makes network namespaces, which needs root: run it with sudo");
    asked.against.iter().try_for_each(|peer| peer.installed())?;
    let program = program(asked)?;
    let files = raise_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = std::thread::scope(|scope| {
        let (ends, ended) = oneshot::channel::<()>();
        let mut signals = runtime.block_on(async {
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
        });
        let [Ok(interrupt), Ok(terminate), Ok(hangup)] = &mut signals else {
            bail!("signals cannot be caught")
        };
        let playing = scope.spawn(move || {
            let _ends = ends; // told by being dropped, also when this panics
            Bench::new(asked, program, files)?.play()
        });
        // Whatever ends the run ends it through the drops of what it made: processes, then namespaces.
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = interrupt.recv() => INTERRUPTED.store(true, Ordering::Relaxed),
                _ = terminate.recv() => INTERRUPTED.store(true, Ordering::Relaxed),
                _ = hangup.recv() => INTERRUPTED.store(true, Ordering::Relaxed),
                _ = ended => {}
            }
        });
        let Ok(found) = playing.join() else { bail!("the measurement panicked") };
        ensure!(!is_interrupted(), "interrupted; what it had made is removed");
        found
    })?;
    let Found { figures, missing, rounds } = found;
    let ratios = figures.ratios();
    let lines = verdicts(&ratios, &missing);
    Ok(Report { suite: "relay", machine: machine(), rounds, rows: figures.rows(), ratios, lines })
}

fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Waits.
///
/// # Errors
/// The run is to end.
fn pause(time: Duration) -> Result<()> {
    const SLICE: Duration = Duration::from_millis(20);
    let end = Instant::now() + time;
    loop {
        ensure!(!is_interrupted(), "interrupted");
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(SLICE));
    }
}

/// Returns the program that is measured.
fn program(asked: &Arguments) -> Result<PathBuf> {
    let path = match &asked.gossamer {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("gossamer"),
    };
    path.canonicalize().with_context(|| {
        format!(
            "no program {}: cargo build --release -p gossamer, or name it with --gossamer",
            path.display()
        )
    })
}

/// Lets this process, and with it those it starts, have all descriptors it may; returns how many those are.
fn raise_files() -> Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

/// Says on standard error how far the run is.
#[expect(clippy::print_stderr, reason = "a run takes minutes; the table comes at its end")]
fn note(text: &str) {
    eprintln!("relay: {text}");
}
