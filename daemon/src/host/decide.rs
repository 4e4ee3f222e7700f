//! What a setup or an undo does to the one file, given the record of an earlier setup.
//!
//! Owns: when nothing is done, and when a file that somebody else changed is left alone. Must not know: the disk.
//! Driven by: `cli::host::apply`.

use std::path::PathBuf;

use super::files::Entry;
use super::journal::{Record, Standing};
use super::plan::{Plan, Refusal, Resolver};
use super::text::HEADER;

/// What a setup does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setup {
    /// Nothing: all of it is done.
    Nothing,
    /// The file is written, but the resolver has not said that it took it over.
    Tell(Record),
    /// This record is written, then its file, then the resolver is told.
    Write(Record),
}

/// What an undo does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    /// The file is as it was: only the resolver is told, if it may have seen the other.
    Tell,
    /// The file is put back first.
    Restore,
}

/// Decides what a setup does. `now` is what is at the plan's path, `missing` the directories above it that are not
/// there, `record_file` where the record is, for people.
///
/// # Errors
/// Another resolver was set up, or somebody changed the file.
pub fn setup(
    record: Option<Record>,
    now: &Entry,
    plan: &Plan,
    missing: Vec<PathBuf>,
    record_file: &str,
) -> Result<Setup, Refusal> {
    let after = Entry::ours(&plan.text);
    let path = plan.path.display();
    let Some(record) = record else {
        let before = original(now, plan)?;
        return Ok(Setup::Write(new_record(plan, before, after, missing)));
    };
    if record.path != plan.path {
        return Err(Refusal {
            why: format!(
                "{} was set up here before, and now {} answers",
                record.resolver,
                plan.resolver.name()
            ),
            fix: "undo that first: sudo gossamer host undo".to_owned(),
        });
    }
    match record.standing(now) {
        Standing::Changed => Err(changed(&path.to_string(), &record, record_file)),
        Standing::After if record.after == after && record.taken => Ok(Setup::Nothing),
        Standing::After if record.after == after => Ok(Setup::Tell(record)),
        Standing::After | Standing::Before => {
            let directories = record.directories.iter().cloned().chain(missing).collect();
            Ok(Setup::Write(new_record(plan, record.before, after, directories)))
        }
    }
}

/// Decides what an undo does.
///
/// # Errors
/// Somebody changed the file.
pub fn undo(record: &Record, now: &Entry, record_file: &str) -> Result<Undo, Refusal> {
    match record.standing(now) {
        Standing::Before => Ok(Undo::Tell),
        Standing::After => Ok(Undo::Restore),
        Standing::Changed => Err(changed(&record.path.display().to_string(), record, record_file)),
    }
}

/// What undo will bring back where no record is.
fn original(now: &Entry, plan: &Plan) -> Result<Entry, Refusal> {
    let is_ours = matches!(now, Entry::File { bytes, .. } if bytes.starts_with(HEADER.as_bytes()));
    match (is_ours, plan.resolver) {
        (false, _) => Ok(now.clone()),
        (true, Resolver::ResolvConf) => Err(Refusal {
            why: format!("{} is of an earlier setup whose record is gone", plan.path.display()),
            fix: "take its first line and its first nameserver line out by hand".to_owned(),
        }),
        // A file of its own: before any setup there was none.
        (true, _) => Ok(Entry::Missing),
    }
}

fn new_record(plan: &Plan, before: Entry, after: Entry, directories: Vec<PathBuf>) -> Record {
    let (resolver, path) = (plan.resolver.name().to_owned(), plan.path.clone());
    Record { resolver, path, before, after, directories, taken: false }
}

fn changed(path: &str, record: &Record, record_file: &str) -> Refusal {
    let fix = match record.before {
        Entry::Missing => format!(
            "move what was added to a file of your own and remove {path}; then repeat this. To keep it as it is remove {record_file}"
        ),
        Entry::File { .. } | Entry::Link { .. } => {
            format!("to keep it as it is remove {record_file}, which has the original in it")
        }
    };
    Refusal { why: format!("{path} was changed after it was set up, and is left as it is"), fix }
}
