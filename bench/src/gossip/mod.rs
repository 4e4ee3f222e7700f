//! Suite `gossip`: membership and records of N real daemons beside N real agents of a peer.
//!
//! Owns: the command line, the order of the measurements, the result. Must not know: how one thing is measured.
//! Driven by: `main`. Needs root: a network namespace for each process, joined by one router.
//!
//! Both systems run at the same time and are measured in turn (ours, theirs, ours, ..), so that what else the machine
//! does hits both. Start reading at [`play`]; each module below measures one thing and says how.

mod dns;
mod downs;
mod fleet;
mod http;
mod idle;
mod members;
mod ours;
mod serf;
mod visible;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use gossamer_tests::netns::{Namespace, Star};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::report::{Report, Row, machine};
use fleet::Fleet;
use ours::Ours;
use serf::Serf;

/// Options of the suite.
#[derive(Clone, Debug, Args)]
pub(crate) struct Arguments {
    /// Members of each mesh
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(3..=190))]
    nodes: u16,
    /// The peer that runs beside
    #[arg(long, value_enum, default_value_t = Peer::Serf)]
    against: Peer,
    /// Measure only these, in the order of the list below
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<What>,
    /// Short windows and few repeats: to see whether it works, not what it costs
    #[arg(long)]
    quick: bool,
    /// The program that is measured; beside this one unless given
    #[arg(long, value_name = "FILE")]
    gossamer: Option<PathBuf>,
    /// Seconds of each window of `idle`, and before it
    #[arg(long, num_args = 2, value_names = ["SETTLE", "WINDOW"])]
    idle_seconds: Option<Vec<u64>>,
    /// Seconds of each condition of `falsedown`
    #[arg(long)]
    falsedown_seconds: Option<u64>,
    /// Changes, kills and simultaneous starts
    #[arg(long, num_args = 3, value_names = ["CHANGES", "KILLS", "STARTS"])]
    repeats: Option<Vec<usize>>,
}

/// Whom to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// serf, profile lan
    Serf,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum What {
    /// All see all after a simultaneous start
    Join,
    /// Bytes, CPU and memory when nothing happens, with 0, 10 and 100 records per node
    Idle,
    /// A record at all nodes
    Visible,
    /// A killed node known to all
    Kill,
    /// A restarted node known to all
    Restart,
    /// Nodes declared down that are not
    Falsedown,
}

/// How long and how often.
#[derive(Clone, Debug)]
struct Scale {
    settle: Duration,
    window: Duration,
    condition: Duration,
    changes: usize,
    kills: usize,
    starts: usize,
}

impl Scale {
    /// What the issue asks for, or a glance.
    fn of(asked: &Arguments) -> Self {
        let seconds = Duration::from_secs;
        let mut scale = if asked.quick {
            let (settle, window, condition) = (seconds(20), seconds(40), seconds(40));
            Self { settle, window, condition, changes: 20, kills: 3, starts: 2 }
        } else {
            let (settle, window, condition) = (seconds(120), seconds(300), seconds(600));
            Self { settle, window, condition, changes: 200, kills: 10, starts: 5 }
        };
        if let Some([settle, window]) = asked.idle_seconds.as_deref() {
            (scale.settle, scale.window) = (seconds(*settle), seconds(*window));
        }
        if let Some(condition) = asked.falsedown_seconds {
            scale.condition = seconds(condition);
        }
        if let Some([changes, kills, starts]) = asked.repeats.as_deref() {
            (scale.changes, scale.kills, scale.starts) =
                ((*changes).max(1), (*kills).max(1), (*starts).max(1));
        }
        scale
    }
}

/// Both meshes while they run, and what was found.
struct Run {
    scale: Scale,
    only: Vec<What>,
    star: Arc<Star>,
    ours: Fleet<Ours>,
    theirs: Fleet<Serf>,
    rows: Vec<Row>,
    ratios: BTreeMap<&'static str, f64>,
    /// Programs behind the services, one on each machine of ours.
    _targets: JoinSet<()>,
}

pub(crate) fn run(asked: &Arguments) -> Result<Report> {
    let program = program(asked)?;
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/serf/agent.json");
    // Members alternate on the machines: ours, theirs, ours, ..
    let Peer::Serf = asked.against;
    let serf = Serf::new(config, (1, 2))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let dir = tempfile::Builder::new().prefix("gsm").tempdir()?;
    let scale = Scale::of(asked);
    let rounds = u32::try_from(scale.starts)?;
    let (rows, ratios) = runtime.block_on(async {
        let mut stop = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        let [Ok(interrupt), Ok(terminate)] = &mut stop else { bail!("signals cannot be caught") };
        // Whatever ends the run ends it through the drops of what it made: processes, then namespaces.
        tokio::select! {
            biased;
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
            found = play(asked, scale, Ours::new(program, dir.path().to_owned()), serf) => found,
        }
    })?;
    Ok(Report { suite: "gossip", machine: machine(), rounds, rows, ratios, lines: Vec::new() })
}

type Found = (Vec<Row>, BTreeMap<&'static str, f64>);

/// Makes both meshes and measures one thing after the other.
async fn play(asked: &Arguments, scale: Scale, ours: Ours, serf: Serf) -> Result<Found> {
    note(&format!("{} against {}: making namespaces", asked.nodes, Serf::version()?));
    let star = Arc::new(Star::new(2 * usize::from(asked.nodes))?);
    let ours = Fleet::new(ours, Arc::clone(&star), 0, 2);
    let theirs = Fleet::new(serf, Arc::clone(&star), 1, 2);
    let targets = targets(star.machines())?;
    let (rows, ratios) = (Vec::new(), BTreeMap::new());
    let only = if asked.only.is_empty() { What::value_variants().to_vec() } else { asked.only.clone() };
    let mut run = Run { scale, only, star, ours, theirs, rows, ratios, _targets: targets };
    note("making identities");
    run.ours.prepare().await?;
    run.join().await?;
    if run.wants(What::Idle) {
        run.idle().await?;
    }
    if run.wants(What::Visible) {
        run.visible().await?;
    }
    if run.wants(What::Kill) || run.wants(What::Restart) {
        run.kill_and_restart().await?;
    }
    if run.wants(What::Falsedown) {
        run.false_downs().await?;
    }
    Ok((run.rows, run.ratios))
}

impl Run {
    fn wants(&self, what: What) -> bool {
        self.only.contains(&what)
    }

    /// Keeps what a system needed; says it at once, so that a long run can be followed.
    fn row(
        &mut self,
        system: &'static str,
        metric: &'static str,
        unit: &'static str,
        values: Vec<f64>,
    ) -> f64 {
        let row = Row::by(system, metric, unit, values);
        note(&format!("{system} {metric}: {:.3} {unit} ({:.3} to {:.3})", row.median, row.min, row.max));
        let median = row.median;
        self.rows.push(row);
        median
    }

    fn ratio(&mut self, name: &'static str, value: f64) {
        note(&format!("ratio {name}: {value:.3}"));
        self.ratios.insert(name, value);
    }
}

/// Returns the program that is measured.
fn program(asked: &Arguments) -> Result<PathBuf> {
    let path = match &asked.gossamer {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("gossamer"),
    };
    if !path.exists() {
        bail!(
            "{} is missing: cargo build --release -p gossamer, or name another with --gossamer",
            path.display()
        );
    }
    path.canonicalize().with_context(|| path.display().to_string())
}

/// Listens behind the services on each machine: what nobody listens on is not healthy.
fn targets(machines: &[Namespace]) -> Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    for machine in machines.iter().step_by(2) {
        let listener =
            machine.enter(|| std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, ours::PORT)))??;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        tasks.spawn(async move {
            loop {
                if listener.accept().await.is_err() {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    Ok(tasks)
}

/// Says on standard error how far the run is.
#[expect(clippy::print_stderr, reason = "a run takes an hour; the table comes at its end")]
fn note(text: &str) {
    eprintln!("gossip: {text}");
}

/// Returns a share of sorted values: 0.5 is the middle, 1 the last.
fn share_of(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the length")]
    let index = (last as f64 * share).ceil() as usize;
    values.get(index.min(last)).copied().unwrap_or(f64::NAN)
}

/// Returns the mean; NaN of nothing.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hundredth_of_a_hundred_is_the_last_but_one_percent() {
        let mut values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(share_of(&mut values, 0.99), 99.0);
        assert_eq!(share_of(&mut values, 0.5), 50.0);
        assert_eq!(share_of(&mut [3.0, 1.0], 1.0), 3.0);
        assert!(share_of(&mut [], 0.5).is_nan());
    }
}
