//! Scenarios that take hours of a mesh.
//!
//! Owns: how often each is played. Must not know: what they say. Driven by: `evidence`.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::{Ci, Needs, Row, Run};
use crate::promise;
use crate::scenario::{Action, Scenario};

pub(super) const ROW: Row = Row {
    name: "3.2-long",
    promise: "Every scenario of tests/scenarios/long holds with every seed: hours of sleep, of a partition, of being away, and a thousand that join at once",
    sabotage: "in the first of them the dead node comes back",
    needs: Needs::Nothing,
    ci: Ci::Skips("days of simulated time"),
    check: long,
};

/// From so many nodes on a scenario is played with one seed.
const LARGE: usize = 100;
const SEEDS: u64 = 3;

fn long(run: &Run) -> Result<String> {
    let mut files = Scenario::files(&run.root.join("tests/scenarios/long"))?;
    if run.sabotaged {
        files.truncate(1);
    }
    let (mut broken, mut figures) = (Vec::new(), Vec::new());
    for file in &files {
        let scenario = load(file, run.sabotaged)?;
        let seeds = if scenario.nodes >= LARGE { 1 } else { run.times(SEEDS, 1) };
        let begin = Instant::now();
        for seed in 0..seeds {
            let report = crate::sim::run(&scenario, seed)?;
            broken.extend(report.faults.first().map(|fault| format!("{} {seed}: {fault}", scenario.name)));
        }
        figures.push(format!("{} x{seeds} in {:.0} s", scenario.name, begin.elapsed().as_secs_f64()));
    }
    promise!(broken.is_empty(), "{}", broken.join("; "));
    Ok(format!("all hold: {}", figures.join(", ")))
}

/// Reads a scenario; when sabotaged, one in which nobody is killed.
fn load(file: &Path, is_sabotaged: bool) -> Result<Scenario> {
    let mut scenario = Scenario::load(file)?;
    if is_sabotaged {
        scenario.steps.retain(|step| step.action != Action::Kill);
    }
    Ok(scenario)
}
