//! The demo, from outside: real processes, real answers, honest failures.
//!
//! Owns: what is seen of `gossamer demo` in /proc and in its lines. Must not know: its steps' insides.
//! Driven by: `evidence`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::Instant;

use super::{Ci, Needs, Row, Run};
use crate::netns::Namespace;
use crate::process::Lab;
use crate::promise;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "2.1-clean-clone",
        promise: "In a fresh clone without a network the demo exits 0 and cargo test --workspace passes in 5 min after its build and skips nothing",
        sabotage: "the machine's loopback is down",
        needs: Needs::Root,
        ci: Ci::Skips(".ci/run is this, in its own clone"),
        check: clean_clone,
    },
    Row {
        name: "2.2-demo",
        promise: "The demo runs three real daemons, without root and without a network, fails over when one is killed, and exits 0",
        sabotage: "the first daemon is killed as soon as three are there",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: demo,
    },
    Row {
        name: "2.2-demo-sabotage",
        promise: "gossamer demo --sabotage join, dns, relay, failover each exits 1 and names the step",
        sabotage: "the demo's own sabotage is left out",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: demo_sabotage,
    },
];

/// What the demo may take.
const DEMO: Duration = Duration::from_secs(30);
/// What the tests may take after their build.
const TESTS: Duration = Duration::from_secs(300);
const BUILD: Duration = Duration::from_secs(1_800);
const NOBODY: u32 = 65_534;

fn clean_clone(run: &Run) -> Result<String> {
    let scratch = Lab::new(&run.gossamer)?;
    let clone = scratch.dir().join("clone");
    // Kept between runs, so that only the first one builds everything; nothing else is built there.
    let target = run.root.join("target/clean-clone");
    let must = |directory: &Path, arguments: &[&str], limit| -> Result<String> {
        let mut command = Command::new(arguments[0]);
        command.current_dir(directory).args(&arguments[1..]);
        command.env("CARGO_TARGET_DIR", &target).env("CARGO_NET_OFFLINE", "true");
        let done = scratch.finish(command, limit)?;
        let end: Vec<_> = done.stderr.lines().rev().take(3).collect();
        promise!(done.code == Some(0), "`{}` ended with {:?}: {end:?}", arguments.join(" "), done.code);
        Ok(done.stdout)
    };
    must(&run.root, &["git", "clone", "--quiet", "--local", ".", &clone.to_string_lossy()], BUILD)?;
    must(&clone, &["cargo", "build", "--release", "--locked"], BUILD)?;
    let demo = demo_alone(run, &Lab::new(&target.join("release/gossamer"))?)?;
    must(&clone, &["cargo", "test", "--workspace", "--locked", "--no-run"], BUILD)?;
    let start = Instant::now();
    let said = must(&clone, &["cargo", "test", "--workspace", "--locked"], TESTS)?;
    let took = start.elapsed().as_secs();
    let (passed, ignored) = (count(&said, "passed"), count(&said, "ignored"));
    promise!(passed > 0 && ignored == 0, "{passed} tests passed, {ignored} were skipped");
    Ok(format!("demo {:.1} s; {passed} tests in {took} s, {ignored} skipped", demo.as_secs_f64()))
}

/// Adds up what the lines `test result: ok. 8 passed; 0 failed; ..` say of one outcome.
fn count(said: &str, outcome: &str) -> u32 {
    let results = said.lines().filter(|line| line.starts_with("test result"));
    let parts = results.flat_map(|line| line.split([';', '.']));
    parts.filter_map(|part| part.trim().strip_suffix(outcome)?.trim().parse::<u32>().ok()).sum()
}

/// Runs the demo as nobody where only loopback exists; with the loopback down when sabotaged.
fn demo_alone(run: &Run, lab: &Lab) -> Result<Duration> {
    let machine = Namespace::new("alone")?;
    if run.sabotaged {
        machine.ip(&["link", "set", "lo", "down"])?;
    }
    let start = Instant::now();
    let done = lab.finish(demo_as_nobody(lab, &machine, &[])?, DEMO * 2)?;
    promise!(done.code == Some(0), "the demo ended with {:?}: {}", done.code, done.stderr.trim());
    Ok(start.elapsed())
}

/// Makes the command of a demo without rights: a copy of the program, since the build may lie where nobody may
/// not go.
fn demo_as_nobody(lab: &Lab, machine: &Namespace, arguments: &[&str]) -> Result<Command> {
    let home = lab.dir().join("nobody");
    fs::create_dir_all(&home)?;
    nix::unistd::chown(&home, Some(NOBODY.into()), Some(NOBODY.into()))?;
    let program = lab.dir().join("gossamer");
    fs::copy(lab.program(), &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let mut command = machine.command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "env", "-i"]);
    command.arg(format!("HOME={}", home.display())).arg(format!("TMPDIR={}", home.display()));
    command.arg(program).arg("demo").args(arguments).current_dir("/");
    Ok(command)
}

/// What was seen of the demo's daemons when a step ended.
struct Seen {
    step: String,
    ok: bool,
    daemons: BTreeSet<i32>,
}

fn demo(run: &Run) -> Result<String> {
    let lab = Lab::new(&run.gossamer)?;
    let machine = Namespace::new("demo")?;
    let mut command = demo_as_nobody(&lab, &machine, &["--json"])?;
    let errors = lab.dir().join("demo.err");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(&errors)?).process_group(0);
    let start = Instant::now();
    let mut child = command.spawn()?;
    let parent = i32::try_from(child.id())?;
    let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    let mut seen = Vec::new();
    for line in lines {
        let line = line?;
        let step: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let daemons = daemons_below(parent);
        if run.sabotaged && daemons.len() == 3 {
            daemons.first().map(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL)).transpose()?;
        }
        let name = step["step"].as_str().unwrap_or_default().to_owned();
        seen.push(Seen { step: name, ok: step["ok"] == true, daemons });
    }
    let status = child.wait()?;
    let took = start.elapsed();
    let said = fs::read_to_string(&errors)?;
    promise!(status.success(), "the demo ended with {status}: {}", said.trim());
    promise!(took <= DEMO, "the demo took {:.1} s", took.as_secs_f64());
    let steps: Vec<&str> = seen.iter().map(|seen| seen.step.as_str()).collect();
    promise!(
        steps == ["start", "join", "expose", "dns", "relay", "failover", "cleanup"],
        "its steps were {steps:?}"
    );
    promise!(seen.iter().all(|seen| seen.ok), "a step was not ok, and the demo exited 0");
    let count = |step: &str| seen.iter().find(|seen| seen.step == step).map_or(0, |seen| seen.daemons.len());
    promise!(count("relay") == 3, "{} daemons ran before the failover", count("relay"));
    promise!(count("failover") == 2, "{} daemons ran after the failover", count("failover"));
    promise!(count("cleanup") == 0, "{} daemons were left behind", count("cleanup"));
    Ok(format!("3 processes, 2 after the failover, 0 at the end; {:.1} s", took.as_secs_f64()))
}

/// Returns the processes below `parent` that run the same program as it, itself not counted. Zombies are no
/// daemons.
fn daemons_below(parent: i32) -> BTreeSet<i32> {
    let program = |pid: i32| fs::read_link(process(pid).join("exe")).ok();
    let mut below = BTreeSet::from([parent]);
    // Parents are seen before their children only by luck: go on until nothing is added.
    loop {
        let all = processes();
        let children = all.iter().filter(|(_, parent)| below.contains(parent)).map(|(pid, _)| *pid);
        let more: BTreeSet<i32> = children.chain(below.iter().copied()).collect();
        if more == below {
            break;
        }
        below = more;
    }
    below
        .into_iter()
        .filter(|pid| *pid != parent && program(*pid).is_some_and(|path| path.ends_with("gossamer")))
        .collect()
}

/// Returns every process with its parent.
fn processes() -> Vec<(i32, i32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        let stat = fs::read_to_string(process(pid).join("stat")).ok()?;
        // The name in parentheses may hold anything, so fields are counted behind its end (proc(5)).
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    })
    .collect()
}

fn process(pid: i32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

fn demo_sabotage(run: &Run) -> Result<String> {
    let mut took = Vec::new();
    for step in ["join", "dns", "relay", "failover"] {
        let lab = Lab::new(&run.gossamer)?;
        let mut command = Command::new(&run.gossamer);
        command.args(["demo", "--json"]).current_dir("/");
        if !run.sabotaged {
            command.args(["--sabotage", step]);
        }
        let start = Instant::now();
        let done = lab.finish(command, DEMO * 2)?;
        took.push(start.elapsed().as_secs_f64());
        promise!(done.code == Some(1), "--sabotage {step} ended with {:?}", done.code);
        let steps = done.stdout.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        let broken: Vec<_> = steps.iter().filter(|line| line["ok"] == false).collect();
        promise!(
            broken.first().is_some_and(|line| line["step"] == step),
            "--sabotage {step} reported {broken:?}"
        );
        promise!(done.stderr.contains(step), "--sabotage {step} does not name the step: {}", done.stderr);
    }
    let longest = took.into_iter().fold(0.0, f64::max);
    Ok(format!("4 of 4 exit 1 and name the step, the longest after {longest:.1} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_all_test_programs_are_added_up() {
        let said = "test result: ok. 8 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s\n\
                    test passed ... ok\n\
                    test result: ok. 90 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.21s";
        assert_eq!((count(said, "passed"), count(said, "ignored")), (98, 1));
    }
}
