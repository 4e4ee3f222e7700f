//! The bench of the relay: that it measures all it promises, and leaves the machine as it was.
//!
//! Owns: which figures there must be, what may be left behind. Must not know: how anything is measured; the bench
//! does. Driven by: `evidence`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use super::{Ci, Needs, Row, Run};
use crate::netns::remove_leftovers;
use crate::process::Lab;
use crate::promise;
use crate::wait::{until, wait_for};

pub(super) const ROWS: &[Row] = &[Row {
    name: "6.8-bench",
    promise: "gossamer-bench relay measures two daemons beside pairs of haproxy, nginx and stunnel, prints each of its 13 figures beside its goal, and leaves no namespace, process or file behind, neither at its end nor when SIGTERM comes in the middle",
    sabotage: "SIGKILL comes in the middle",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: bench,
}];

/// Longest a short run may take, on a machine that does other work.
const LIMIT: Duration = Duration::from_secs(300);
const BUILD: Duration = Duration::from_secs(900);
/// How long it may take until daemons run, and until all is gone after a signal.
const SIGNAL: Duration = Duration::from_secs(60);

const RATIOS: [&str; 13] = [
    "added_p50_us",
    "bulk_cpu_vs_haproxy",
    "bulk_rate_vs_haproxy",
    "conn_cpu_vs_best",
    "conn_rate_vs_best",
    "idle_memory_vs_haproxy",
    "local_rate_vs_splice",
    "lossy_goodput",
    "req_cpu_vs_best",
    "req_rate_vs_best",
    "reset_killed_seconds",
    "reset_silent_seconds",
    "thin_p99_vs_tcp",
];

#[derive(Deserialize)]
struct Report {
    ratios: BTreeMap<String, f64>,
}

fn bench(run: &Run) -> Result<String> {
    let program = build(run)?;
    let lab = Lab::new(&run.gossamer)?;
    let scratch = lab.dir().join("scratch");
    fs::create_dir(&scratch)?;
    let bench = Bench { program, gossamer: &run.gossamer, lab: &lab, scratch };

    let mut child = bench.start()?;
    let id = child.id();
    let ended = wait_for("the end of the bench", LIMIT, || Ok(child.try_wait()?));
    let (status, took) = ended.inspect_err(|_| stop(&mut child, Signal::SIGTERM))?;
    ensure!(status.success(), "the bench ended with {status}: {}", bench.said("err"));
    let report: Report = serde_json::from_slice(&fs::read(bench.json())?).context("the bench's file")?;
    let said = bench.said("out");
    for name in RATIOS {
        let ratio = report.ratios.get(name).copied();
        promise!(ratio.is_some_and(f64::is_finite), "{name} is {ratio:?}");
        let line = said.lines().find(|line| line.starts_with(&format!("goal {name}: ")));
        let judged =
            line.is_some_and(|line| ["ok", "ok, beyond", "MISSED"].iter().any(|end| line.ends_with(end)));
        promise!(judged, "no goal beside {name}: {line:?}");
    }
    promise!(report.ratios.len() == RATIOS.len(), "there are other ratios: {:?}", report.ratios);
    bench.all_gone(id).context("after its end")?;

    let mut child = bench.start()?;
    let id = child.id();
    // Daemons and proxies name files below the scratch directory; the bench itself only that directory.
    let below = format!("{}/", bench.scratch.display());
    let running = until("a daemon of the bench", SIGNAL, || Ok(!processes(&below)?.is_empty()));
    let signal = if run.sabotaged { Signal::SIGKILL } else { Signal::SIGTERM };
    stop(&mut child, signal);
    running?;
    let gone = bench.all_gone(id).context("after the signal");
    // What a run leaves behind that could not clean up is no business of the next row.
    for process in processes(&bench.scratch.display().to_string())? {
        let _ = kill(process, Signal::SIGKILL);
    }
    remove_leftovers()?;
    gone?;
    Ok(format!(
        "{} figures with their goals in {:.0} s; nothing left, nor after SIGTERM",
        RATIOS.len(),
        took.as_secs_f64()
    ))
}

/// Builds the bench beside the program, in the same way.
fn build(run: &Run) -> Result<PathBuf> {
    let is_debug = run.gossamer.parent().is_some_and(|folder| folder.ends_with("debug"));
    let profile = if is_debug { &[][..] } else { &["--release"] };
    let build = [&["build", "--quiet", "--locked", "-p", "gossamer-bench"], profile].concat();
    let done = run.tool(&run.root, "cargo", &build, BUILD)?;
    ensure!(done.code == Some(0), "the bench does not build: {}", done.stderr.trim());
    Ok(run.gossamer.with_file_name("gossamer-bench"))
}

/// Sends a signal and waits for the end; kills what does not end.
fn stop(child: &mut Child, signal: Signal) {
    let _ = i32::try_from(child.id()).map(|id| kill(Pid::from_raw(id), signal));
    if wait_for("its end", SIGNAL, || Ok(child.try_wait()?)).is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

struct Bench<'a> {
    program: PathBuf,
    gossamer: &'a Path,
    lab: &'a Lab,
    /// Where it and all it starts have their files, by which they are known.
    scratch: PathBuf,
}

impl Bench<'_> {
    fn start(&self) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(["relay", "--quick", "--against", "haproxy,nginx,stunnel", "--json"]).arg(self.json());
        command.arg("--gossamer").arg(self.gossamer).env("TMPDIR", &self.scratch).stdin(Stdio::null());
        command.stdout(File::create(self.lab.dir().join("bench.out"))?);
        command.stderr(File::create(self.lab.dir().join("bench.err"))?);
        command.spawn().with_context(|| self.program.display().to_string())
    }

    fn json(&self) -> PathBuf {
        self.lab.dir().join("relay.json")
    }

    /// Returns what it wrote last.
    fn said(&self, end: &str) -> String {
        fs::read_to_string(self.lab.dir().join(format!("bench.{end}"))).unwrap_or_default()
    }

    fn all_gone(&self, id: u32) -> Result<()> {
        let listed = Command::new("ip").args(["netns", "list"]).output().context("running ip")?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let left: Vec<_> = listed.lines().filter(|name| name.starts_with(&format!("gsm-{id}-"))).collect();
        promise!(left.is_empty(), "namespaces are left: {left:?}");
        let left = processes(&self.scratch.display().to_string())?;
        promise!(left.is_empty(), "processes are left: {left:?}");
        let left = fs::read_dir(&self.scratch)?.count();
        promise!(left == 0, "{left} files are left");
        Ok(())
    }
}

/// Returns the processes whose command or environment names a path.
fn processes(path: &str) -> Result<Vec<Pid>> {
    let names = |id: &i32| {
        let read = |file: &str| fs::read(format!("/proc/{id}/{file}")).unwrap_or_default();
        ["cmdline", "environ"].iter().any(|file| String::from_utf8_lossy(&read(file)).contains(path))
    };
    let ids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(ids.filter(names).map(Pid::from_raw).collect())
}
