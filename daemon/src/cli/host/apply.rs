//! Carries a plan out, or back.
//!
//! Owns: the order of steps and what follows when one fails: the record first, then the file, then the resolver; all of
//! it is taken back unless the resolver answers afterwards. Must not know: what files say. Driven by: `cli::host`.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::time::{Instant, sleep};

use super::super::failure::Failure;
use super::{Report, ask, commands, probe};
use crate::host::decide::{self, Setup, Undo};
use crate::host::facts::Facts;
use crate::host::files::{Entry, make_directories, missing_directories, sweep};
use crate::host::journal::{self, DIRECTORY, Record};
use crate::host::plan::{Plan, Reload, Resolver, Wanted, reload};

/// How long a resolver may take until it answers again.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take until it answers with what the daemon says.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);
/// Between two questions to a resolver that is coming back.
const PAUSE: Duration = Duration::from_millis(50);

/// Sets the host up.
pub(super) async fn setup(
    facts: &Facts,
    wanted: &Wanted,
    plan: &Plan,
    is_dry: bool,
) -> Result<Report, Failure> {
    let earlier = read_record()?;
    let now = Entry::read(&plan.path).map_err(|error| at(&plan.path, &error))?;
    let missing = plan.path.parent().map(missing_directories).unwrap_or_default();
    let decided = decide::setup(earlier.clone(), &now, plan, missing, &record_file().to_string_lossy())?;
    let changed = decided != Setup::Nothing;
    let report = Report {
        resolver: plan.resolver.name().to_owned(),
        changed,
        path: plan.path.display().to_string(),
        text: Some(plan.text.clone()),
        removed: false,
        commands: commands(plan),
        notes: plan.notes.clone(),
    };
    let (Setup::Tell(record) | Setup::Write(record)) = decided else { return Ok(report) };
    if is_dry {
        return Ok(report);
    }
    write_record(&record)?;
    let stub = probe::stub_address(facts);
    let mut told = None;
    let done = match write_file(plan, &record) {
        Ok(()) => {
            told = plan.reload.as_ref();
            take_over(plan, stub, wanted).await
        }
        Err(why) => Err(why),
    };
    if let Err(why) = done {
        take_back(plan, &record, &now, earlier.as_ref());
        // One that was not told goes on with what it has; to tell it could end it.
        let _ = told.map(tell);
        return Err(Failure::failed(format_args!("{why}; all is as it was before")));
    }
    let record = Record { taken: true, ..record };
    write_record(&record)?;
    Ok(report)
}

/// Puts back what a setup found.
pub(super) async fn undo(is_dry: bool) -> Result<Report, Failure> {
    let Some(record) = read_record()? else { return Ok(Report::default()) };
    let now = Entry::read(&record.path).map_err(|error| at(&record.path, &error))?;
    let decided = decide::undo(&record, &now, &record_file().to_string_lossy())?;
    let facts = probe::facts();
    let told = of_name(&record.resolver).map(|resolver| reload(resolver, &facts));
    let (told, note) = match told {
        Some(Ok(reload)) => (reload, None),
        Some(Err(refusal)) => (None, Some(format!("restart {} yourself: {}", record.resolver, refusal.why))),
        None => (None, None),
    };
    let report = Report {
        resolver: record.resolver.clone(),
        changed: true,
        path: record.path.display().to_string(),
        text: None,
        removed: record.before == Entry::Missing,
        commands: told.iter().map(ToString::to_string).collect(),
        notes: note.into_iter().collect(),
    };
    if is_dry {
        return Ok(report);
    }
    if decided == Undo::Restore {
        record.before.put(&record.path).map_err(|error| at(&record.path, &error))?;
    }
    record.path.parent().into_iter().for_each(sweep);
    record.directories.iter().rev().for_each(|directory| drop(fs::remove_dir(directory)));
    if let Some(reload) = &told {
        let told = tell_and_wait(reload, &record.resolver, probe::stub_address(&facts)).await;
        told.map_err(|why| Failure::failed(format_args!("{} is restored, but {why}", report.path)))?;
    }
    journal::remove(Path::new(DIRECTORY)).map_err(|error| at(&record_file(), &error))?;
    Ok(report)
}

/// Writes the file and has the settings checked with it.
fn write_file(plan: &Plan, record: &Record) -> Result<(), String> {
    let path = plan.path.display();
    let directory = plan.path.parent().unwrap_or_else(|| Path::new("/"));
    make_directories(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    record.after.put(&plan.path).map_err(|error| format!("{path}: {error}"))?;
    let check = plan.validate.as_ref().map_or(Ok(()), |words| run(words));
    check.map_err(|why| format!("the settings with {path} are not sound: {why}"))
}

/// Tells the resolver and waits until it answers.
async fn take_over(plan: &Plan, stub: SocketAddr, wanted: &Wanted) -> Result<(), String> {
    let Some(reload) = &plan.reload else { return Ok(()) };
    tell_and_wait(reload, plan.resolver.name(), stub).await?;
    let zone = wanted.domains.first().map_or(".", String::as_str);
    let answers = async || ask::ask(stub, zone, RecordType::SOA).await.ok();
    // Some take settings over in the background. Whether the daemon runs is another matter: `check` says.
    if ask::ask(wanted.dns, zone, RecordType::SOA).await.is_ok() {
        poll(TAKEN_WITHIN, async || answers().await.is_some_and(|reply| !reply.answers.is_empty())).await;
    }
    Ok(())
}

/// Takes back what a failed setup wrote. There is nobody left to tell of a second failure.
fn take_back(plan: &Plan, record: &Record, now: &Entry, earlier: Option<&Record>) {
    let _ = now.put(&plan.path);
    let known: &[PathBuf] = earlier.map_or(&[], |earlier| &earlier.directories);
    let made = record.directories.iter().rev().filter(|directory| !known.contains(directory));
    made.for_each(|directory| drop(fs::remove_dir(directory)));
    let _ = match earlier {
        Some(earlier) => journal::write(Path::new(DIRECTORY), earlier),
        None => journal::remove(Path::new(DIRECTORY)),
    };
}

/// Tells a resolver and waits until it answers anything.
async fn tell_and_wait(reload: &Reload, resolver: &str, stub: SocketAddr) -> Result<(), String> {
    tell(reload)?;
    if poll(BACK_WITHIN, async || ask::ask(stub, ".", RecordType::NS).await.is_ok()).await {
        return Ok(());
    }
    Err(format!("{resolver} does not answer at {stub} any more"))
}

async fn poll(within: Duration, mut done: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + within;
    loop {
        if done().await {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        sleep(PAUSE).await;
    }
}

fn tell(reload: &Reload) -> Result<(), String> {
    match reload {
        Reload::Command(words) => run(words),
        Reload::Hangup(pid) => {
            let pid = nix::unistd::Pid::from_raw(*pid);
            let sent = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP);
            sent.map_err(|error| format!("{reload}: {error}"))
        }
    }
}

fn run(words: &[String]) -> Result<(), String> {
    let line = words.join(" ");
    let [program, arguments @ ..] = words else { return Ok(()) };
    let ended = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let ended = ended.map_err(|error| format!("`{line}` cannot be run: {error}"))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = [ended.stderr, ended.stdout].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    let said =
        said.iter().find(|text| !text.is_empty()).map(|text| text.lines().collect::<Vec<_>>().join(" / "));
    Err(format!("`{line}` ended with {}: {}", ended.status, said.unwrap_or_default()))
}

fn of_name(name: &str) -> Option<Resolver> {
    let all = [Resolver::SystemdResolved, Resolver::Dnsmasq, Resolver::Unbound, Resolver::ResolvConf];
    all.into_iter().find(|resolver| resolver.name() == name)
}

fn read_record() -> Result<Option<Record>, Failure> {
    journal::read(Path::new(DIRECTORY)).map_err(|error| at(&record_file(), &error))
}

fn write_record(record: &Record) -> Result<(), Failure> {
    journal::write(Path::new(DIRECTORY), record).map_err(|error| at(&record_file(), &error))
}

fn record_file() -> PathBuf {
    Path::new(DIRECTORY).join(journal::FILE)
}

fn at(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format_args!("{}: {error}", path.display()))
}
