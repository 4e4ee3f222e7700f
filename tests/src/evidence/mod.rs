//! The rows of `docs/evidence.md`: one check for each promise an issue wants shown.
//!
//! Owns: the list of rows and how a row is run. Must not know: how a promise is checked; each module below knows
//! one kind. Driven by: the `evidence` program.
//!
//! Each check can be sabotaged: the same steps with the feature broken from outside, which must make it fail. A
//! check that cannot fail does not count.

mod access;
mod addresses;
mod answers;
mod astray;
mod bad;
mod benches;
mod blind;
mod bugs;
mod callers;
mod carried;
mod circuits;
mod clients;
mod closing;
mod consent;
mod datagrams;
mod decoders;
mod demo;
mod detection;
mod etcd;
mod evicted;
mod flood;
mod forwarding;
mod gone;
mod gossip;
mod hostile;
mod hosts;
mod ingress;
mod issuers;
mod joins;
mod lanes;
mod lines;
mod long;
mod mixed;
mod oneway;
mod pinged;
mod pods;
mod protocols;
mod reached;
mod redeeming;
mod refusals;
mod relayed;
mod resolvers;
mod restart;
mod rotation;
mod scarce;
mod secrets;
mod selection;
mod shape;
mod simulated;
mod sites;
mod sizes;
mod spiffe;
mod steady;
mod traces;
mod trust;
mod unread;
mod vips;
mod visible;
mod vms;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::planted::Worktree;
use crate::process::{Finished, Lab, Logs, scenario};
use crate::report::{Line, Verdict};

/// What a row needs beside a Rust toolchain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// Root, for network namespaces or another user.
    Root,
}

/// Whether `.ci/run` has time for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ci {
    /// It runs; checks with repeats take fewer.
    Runs,
    /// It does not, for this reason.
    Skips(&'static str),
}

/// A promise and the check that shows it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// `<issue>.<line>-slug`.
    pub name: &'static str,
    /// What is promised, in a sentence.
    pub promise: &'static str,
    /// What `--sabotage` breaks.
    pub sabotage: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// Whether it is part of `--ci`.
    pub ci: Ci,
    check: fn(&Run) -> Result<String>,
}

/// How often a check repeats what it measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As often as the promise says.
    Full,
    /// As often as `.ci/run` has time for.
    Ci,
}

/// One run of one row.
#[derive(Clone, Debug)]
pub struct Run {
    /// The shipped program.
    pub gossamer: PathBuf,
    /// The root of the tree.
    pub root: PathBuf,
    /// How often to repeat.
    pub scale: Scale,
    /// Whether the feature is broken from outside.
    pub sabotaged: bool,
}

/// Returns every row, in the order of the issue.
pub fn rows() -> Vec<Row> {
    let issue_2 =
        [demo::ROWS, vms::ROWS, trust::ROWS, detection::ROWS, restart::ROWS, visible::ROWS, decoders::ROWS];
    let rows = issue_2.concat().into_iter().chain([shape::ROW, bad::ROW]);
    let issue_4 = [issuers::ROWS, joins::ROWS, redeeming::ROWS, evicted::ROWS, rotation::ROWS];
    let issue_5 = [answers::ROWS, clients::ROWS, resolvers::ROWS, gone::ROWS, forwarding::ROWS];
    let issue_6 = [
        hosts::ROWS,
        vips::ROWS,
        carried::ROWS,
        protocols::ROWS,
        datagrams::ROWS,
        selection::ROWS,
        access::ROWS,
        benches::ROWS,
    ];
    rows.chain(simulated::ROWS.iter().copied())
        .chain([gossip::ROW, bugs::ROW, mixed::ROW, hostile::ROW, long::ROW, scarce::ROW])
        .chain(issue_4.concat())
        .chain([flood::ROW, secrets::ROW, spiffe::ROW, callers::ROW])
        .chain(issue_5.concat())
        .chain([consent::ROW, pods::ROW, etcd::ROW])
        .chain(issue_6.concat())
        .chain([lines::ROWS, traces::ROWS, refusals::ROWS, steady::ROWS].concat())
        .chain(
            [
                addresses::ROWS,
                reached::ROWS,
                oneway::ROWS,
                lanes::ROWS,
                ingress::ROWS,
                sizes::ROWS,
                pinged::ROWS,
            ]
            .concat(),
        )
        .chain(
            [
                circuits::ROWS,
                closing::ROWS,
                unread::ROWS,
                relayed::ROWS,
                sites::ROWS,
                blind::ROWS,
                astray::ROWS,
            ]
            .concat(),
        )
        .collect()
}

impl Row {
    /// Carries the check out.
    pub fn run(&self, run: &Run) -> Line {
        let checked = match self.needs {
            Needs::Root if !nix::unistd::geteuid().is_root() => Err(anyhow::anyhow!("it needs root")),
            Needs::Root | Needs::Nothing => (self.check)(run),
        };
        Line { name: self.name.to_owned(), verdict: Verdict::of(checked) }
    }
}

impl Run {
    /// Returns `full`, or `ci` when there is little time. A sabotaged check never takes longer than in CI.
    pub const fn times<T: Copy>(&self, full: T, ci: T) -> T {
        match self.scale {
            Scale::Full if !self.sabotaged => full,
            Scale::Full | Scale::Ci => ci,
        }
    }

    /// Plays a scenario with daemons of the shipped program.
    ///
    /// # Errors
    /// Those of the scenario.
    pub fn scenario<T>(&self, play: impl FnOnce(&Lab) -> Result<T>) -> Result<T> {
        let logs = if self.sabotaged { Logs::Hidden } else { Logs::Shown };
        scenario(&self.gossamer, logs, play)
    }

    /// Builds the program of a tree with a planted bug, as the shipped one was built, and returns where it is.
    ///
    /// # Errors
    /// It does not build.
    pub fn planted(&self, tree: &Worktree) -> Result<PathBuf> {
        let folder = self.gossamer.parent().context("a folder")?;
        let is_debug = folder.ends_with("debug");
        let profile = if is_debug { &[][..] } else { &["--release"] };
        let arguments = [&["build", "--locked", "-p", "gossamer"], profile].concat();
        let built = self.tool(&tree.path(), "cargo", &arguments, Duration::from_secs(1_200))?;
        anyhow::ensure!(built.code == Some(0), "the patched program does not build: {}", built.stderr);
        let target = folder.parent().context("a build folder")?;
        Ok(target.join("planted").join(if is_debug { "debug" } else { "release" }).join("gossamer"))
    }

    /// Runs a program in `directory` to its end, with the environment of this process and its build folder; in
    /// another tree with a folder beside that. cargo tells two trees apart by the times of their files only: with
    /// one folder for both, a planted bug would stay in the next build of this tree.
    ///
    /// # Errors
    /// It cannot be started, or has not ended after `limit`.
    pub fn tool(
        &self,
        directory: &Path,
        program: &str,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<Finished> {
        let mut command = Command::new(program);
        command.current_dir(directory).args(arguments);
        if let Some(target) = self.gossamer.parent().and_then(Path::parent) {
            let is_here = directory == self.root;
            command.env("CARGO_TARGET_DIR", if is_here { target.to_owned() } else { target.join("planted") });
        }
        Lab::new(&self.gossamer)?.finish(command, limit)
    }
}

/// Builds the shipped program, so that what is checked is what the tree says, and returns its path: beside this
/// program.
///
/// # Errors
/// It does not build.
pub fn build(root: &Path) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let folder = me.parent().context("a folder of programs")?;
    let profile = if folder.ends_with("debug") { &[][..] } else { &["--release"] };
    let mut command = Command::new("cargo");
    command.current_dir(root).args(["build", "--quiet", "--locked", "-p", "gossamer"]).args(profile);
    if let Some(target) = folder.parent() {
        command.env("CARGO_TARGET_DIR", target);
    }
    if !command.status().context("running cargo")?.success() {
        bail!("the shipped program does not build");
    }
    Ok(folder.join("gossamer"))
}

/// Returns the root of the tree this program was built from.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_stands_in_the_document_with_its_promise() {
        let document = std::fs::read_to_string(root().join("docs/evidence.md")).expect("the document");
        for row in rows() {
            let line = format!("| {} | {} |", row.name, row.promise);
            assert!(document.contains(&line), "docs/evidence.md lacks {line}");
        }
        let listed = document
            .lines()
            .filter(|line| {
                ["| 2.", "| 3.", "| 4.", "| 5.", "| 6.", "| 7."].iter().any(|issue| line.starts_with(issue))
            })
            .count();
        assert_eq!(listed, rows().len(), "docs/evidence.md has rows that no check stands behind");
    }

    #[test]
    fn names_are_unique_and_sabotage_is_described() {
        let names: BTreeSet<_> = rows().iter().map(|row| row.name).collect();
        assert_eq!(names.len(), rows().len());
        assert!(rows().iter().all(|row| !row.sabotage.is_empty() && !row.promise.contains('|')));
    }
}
