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
const TAKEN_WITHIN: Duration = Duration::from_secs(10);
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
        vips: None,
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
        let taken_back = take_back(Path::new(DIRECTORY), &record, &now, earlier.as_ref());
        // One that was not told goes on with what it has; to tell it could end it.
        let _ = told.map(tell);
        let outcome = taken_back.err().unwrap_or_else(|| "all is as it was before".to_owned());
        return Err(Failure::failed(format_args!("{why}; {outcome}")));
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
    let told = Resolver::of_name(&record.resolver).map(|resolver| reload(resolver, &facts));
    let (told, note) = match told {
        Some(Ok(reload)) => (reload, None),
        Some(Err(refusal)) => (None, Some(format!("{} was not told: {refusal}", record.resolver))),
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
        vips: None,
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
    if passes_on(stub, wanted.dns, zone, TAKEN_WITHIN).await {
        return Ok(());
    }
    let resolver = plan.resolver.name();
    Err(format!("{resolver} answers at {stub}, but not for {zone}, for which {} does", wanted.dns))
}

/// Waits until a resolver answers for a zone. Some take settings over in the background. Whether the daemon answers is
/// another matter, of which `check` tells.
async fn passes_on(stub: SocketAddr, dns: SocketAddr, zone: &str, within: Duration) -> bool {
    let answers = async |server| {
        ask::ask(server, zone, RecordType::SOA).await.is_ok_and(|reply| !reply.answers.is_empty())
    };
    !answers(dns).await || poll(within, async || answers(stub).await).await
}

/// Takes back what a failed setup wrote, in the file and in the record's directory. The error says what is left: while
/// the file is not as it was, its record stays.
fn take_back(directory: &Path, record: &Record, now: &Entry, earlier: Option<&Record>) -> Result<(), String> {
    let (path, kept) = (record.path.display(), directory.join(journal::FILE));
    let is_as_before = Entry::read(&record.path).is_ok_and(|entry| entry == *now);
    let put = if is_as_before { Ok(()) } else { now.put(&record.path) };
    put.map_err(|error| {
        format!(
            "and {path} could not be put back: {error}; what was there is kept in {}: mend that and run sudo gossamer host undo",
            kept.display()
        )
    })?;
    let known: &[PathBuf] = earlier.map_or(&[], |earlier| &earlier.directories);
    let made = record.directories.iter().rev().filter(|directory| !known.contains(directory));
    made.for_each(|directory| drop(fs::remove_dir(directory)));
    let put = match earlier {
        Some(earlier) => journal::write(directory, earlier),
        None => journal::remove(directory),
    };
    put.map_err(|error| format!("{path} is as it was before, but not {}: {error}", kept.display()))
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::{Message, MessageType};
    use hickory_proto::rr::{RData, Record as Answer, rdata::A};
    use tokio::net::UdpSocket;

    use super::*;

    fn record(path: &Path) -> Record {
        Record {
            resolver: "dnsmasq".to_owned(),
            path: path.to_owned(),
            before: Entry::Missing,
            after: Entry::Link { target: "after".into() },
            directories: vec![],
            taken: false,
        }
    }

    #[test]
    fn a_record_stays_while_its_file_is_not_as_it_was() {
        let dir = tempfile::tempdir().expect("scratch");
        let journal = dir.path().join("journal");
        // A full directory stands where the file was: nothing can be put there.
        let path = dir.path().join("etc/gossamer.conf");
        make_directories(&path.join("in the way")).expect("makes");
        let record = record(&path);
        journal::write(&journal, &record).expect("writes");
        let why = take_back(&journal, &record, &Entry::Missing, None).expect_err("cannot be put");
        let file = journal.join(journal::FILE);
        assert!(why.contains(&file.display().to_string()) && why.contains("gossamer host undo"), "{why}");
        assert!(file.exists());

        fs::remove_dir_all(&path).expect("removes");
        record.after.put(&path).expect("puts");
        assert_eq!(take_back(&journal, &record, &Entry::Missing, None), Ok(()));
        assert_eq!(Entry::read(&path).expect("reads"), Entry::Missing);
        assert!(!file.exists());
    }

    /// Answers every question, with an address or with nothing.
    async fn server(answers: bool) -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = socket.local_addr().expect("bound");
        tokio::spawn(async move {
            loop {
                let mut buffer = [0; 512];
                let (length, from) = socket.recv_from(&mut buffer).await.expect("a question");
                let mut reply = Message::from_vec(&buffer[..length]).expect("a message");
                reply.metadata.message_type = MessageType::Response;
                let name = reply.queries[0].name().clone();
                if answers {
                    reply.add_answer(Answer::from_rdata(name, 1, RData::A(A(Ipv4Addr::LOCALHOST))));
                }
                socket.send_to(&reply.to_vec().expect("bytes"), from).await.expect("sends");
            }
        });
        address
    }

    #[tokio::test]
    async fn a_resolver_that_does_not_ask_a_daemon_that_answers_has_not_taken_over() {
        let (with, without) = (server(true).await, server(false).await);
        let soon = Duration::from_millis(100);
        assert!(!passes_on(without, with, "mesh.internal", soon).await);
        assert!(passes_on(with, with, "mesh.internal", soon).await);
        assert!(
            passes_on(without, without, "mesh.internal", soon).await,
            "the daemon does not answer either"
        );
    }
}
