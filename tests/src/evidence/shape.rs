//! The shape of the tree: who depends on whom, and how large its parts are.
//!
//! Owns: nothing; it runs the structure test and `.ci/sizes`. Must not know: their rules.
//! Driven by: `evidence`.

use std::time::Duration;

use anyhow::Result;

use super::{Ci, Needs, Row, Run};
use crate::planted::Worktree;
use crate::promise;

pub(super) const ROW: Row = Row {
    name: "2.9-structure",
    promise: "Dependencies point one way; files, functions and the share of tests keep their limits",
    sabotage: "a file with a task of its own is planted in the daemon",
    needs: Needs::Nothing,
    ci: Ci::Runs,
    check: structure,
};

const LIMIT: Duration = Duration::from_secs(900);

fn structure(run: &Run) -> Result<String> {
    let planted =
        if run.sabotaged { Some(Worktree::with_patch(&run.root, "stray-task.patch")?) } else { None };
    let root = planted.as_ref().map_or_else(|| run.root.clone(), Worktree::path);
    let sizes = run.tool(&root, ".ci/sizes", &[], LIMIT)?;
    let figures: Vec<_> =
        sizes.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let faults = if sizes.code == Some(0) { String::new() } else { sizes.stderr.trim().to_owned() };
    // All of the workspace, so that nothing is built twice with other features.
    let test = ["test", "--quiet", "--locked", "--workspace", "--test", "structure"];
    let done = run.tool(&root, "cargo", &test, LIMIT)?;
    let breaches: Vec<_> = done.stdout.lines().filter(|line| line.contains(" has ")).collect();
    promise!(faults.is_empty() && done.code == Some(0), "{faults} {}", breaches.join("; "));
    Ok(format!("directions hold; {}", figures.join("; ")))
}
