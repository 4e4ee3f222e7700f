//! Promises about large meshes, shown with the shipped cores on a virtual clock.
//!
//! Owns: the sizes and the limits of the figures. Must not know: how a mesh is simulated. Driven by: `evidence`.
//!
//! Sabotage changes the simulated world: once all see all more loss than any mesh bears or a node
//! cut off, a victim that really dies, other seeds.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Ci, Needs, Row, Run};
use crate::promise;
use crate::scenario::{self, Scenario};
use crate::sim::Mesh;
use crate::sim::evidence::{Attack, Forged, forged_down, forged_down_cold, memory_of_churn};
use crate::sim::measure::{self, Sabotage, Size};

pub(super) const ROWS: &[Row] = &[
    row(
        "3.1-sim-record",
        "1,000 simulated nodes with 1 % loss: a record is everywhere within 6 one-way delays (p99), in at most 2.2 copies for each node",
        "half of all packets are lost once all see all",
        Ci::Skips("two minutes; .ci/run has smaller meshes in its tests"),
        record,
    ),
    row(
        "3.1-sim-loss",
        "300 simulated nodes with 5 % loss for 10 min: no healthy member is declared down or made to renew",
        "one node is cut off once all see all",
        Ci::Skips("minutes of simulation; .ci/run has the scenarios with loss"),
        loss,
    ),
    row(
        "3.1-sim-split",
        "1,000 simulated nodes split in halves for 60 s with 200 changes on each side: identical catalogs 5 s after the heal, for 3 times the bytes that were missing",
        "90 % of all packets are lost once all see all",
        Ci::Skips("a minute and a half; .ci/run has smaller splits among its scenarios"),
        split,
    ),
    row(
        "3.1-sim-converge",
        "1,000 simulated nodes with 10 records each join, change 1,000 records and lose 10 nodes: converged after at most 120 s of this machine",
        "one node is cut off once all see all",
        Ci::Skips("two minutes"),
        converge,
    ),
    row(
        "3.2-scenarios",
        "Every scenario of tests/scenarios holds with every seed",
        "90 % of all packets are lost",
        Ci::Runs,
        scenarios,
    ),
    row(
        "3.3-forged-down",
        "A member that forges another's death, 3 times and then 100 times a second for 60 s: the victim is in no honest view missing, and the forger is named",
        "the victim really dies",
        Ci::Skips("a minute of simulation; .ci/run has smaller attacks in its tests"),
        forged,
    ),
    row(
        "3.3-cut-names-nobody",
        "A link cut between two honest nodes makes nobody call either a false accuser",
        "one of the two accuses the other for a minute instead",
        Ci::Skips("repeats of a scenario that .ci/run plays too"),
        cut_names_nobody,
    ),
    row(
        "3.5-forgotten",
        "A dead node is gone from all of 30 after 24 h and 5 min, and stays gone",
        "the dead node comes back before that",
        Ci::Skips("a day of simulated time"),
        forgotten,
    ),
    row(
        "3.6-same-trace",
        "The same seed gives the same trace, 20 of 20, and another seed another one",
        "each run has its own seed",
        Ci::Runs,
        same_trace,
    ),
    row(
        "3.6-memory",
        "An hour of churn, 10 % restarts a minute, leaves the memory flat",
        "nodes that restart publish one more record each time",
        Ci::Skips("minutes of simulation"),
        memory,
    ),
];

const fn row(
    name: &'static str,
    promise: &'static str,
    sabotage: &'static str,
    ci: Ci,
    check: fn(&Run) -> Result<String>,
) -> Row {
    Row { name, promise, sabotage, needs: Needs::Nothing, ci, check }
}

const SEED: u64 = 1;

/// A mesh with a share of packets lost; when sabotaged, broken from the moment all see all.
fn size(run: &Run, nodes: usize, loss: f64, sabotage: Sabotage) -> Size {
    Size { nodes, loss, seed: SEED, sabotage: run.sabotaged.then_some(sabotage) }
}

/// One way a record may take until 99 of 100 receivers have it, in mean one-way delays.
const RECORD_DELAYS: f64 = 6.0;
/// Copies of a fragment on the wire for each receiver.
const RECORD_COPIES: f64 = 2.2;

fn record(run: &Run) -> Result<String> {
    let (nodes, records) = run.times((1_000, 60), (300, 5));
    let spread = measure::record(size(run, nodes, 0.01, Sabotage::Loss(0.5)), records)?;
    let p99 = spread.quantile(0.99);
    let figure = format!("p99 {p99:.1} one-way delays, {:.2} copies, {} never", spread.copies, spread.missed);
    promise!(spread.missed == 0 && p99 <= RECORD_DELAYS && spread.copies <= RECORD_COPIES, "{figure}");
    Ok(figure)
}

fn loss(run: &Run) -> Result<String> {
    let (nodes, minutes) = run.times((300, 10), (100, 2));
    let length = Duration::from_secs(minutes * 60);
    let calm = measure::loss(size(run, nodes, 0.05, Sabotage::CutOff), length)?;
    let figure = format!(
        "{} false downs and {} renewals of {nodes} nodes in {minutes} min, {:.0} B/s for each",
        calm.false_downs, calm.renewals, calm.bytes
    );
    promise!(calm.false_downs == 0 && calm.renewals == 0, "{figure}");
    Ok(figure)
}

/// How long catalogs may differ after the heal, and for how many times the bytes that were missing.
const HEAL_SECONDS: f64 = 5.0;
const HEAL_BYTES: f64 = 3.0;

fn split(run: &Run) -> Result<String> {
    let heal = measure::split(size(run, run.times(1_000, 300), 0.0, Sabotage::Loss(0.9)))?;
    let seconds = heal.catalog_seconds.unwrap_or(f64::INFINITY);
    let figure = format!(
        "catalogs the same {seconds:.1} s after the heal, {:.2} times the bytes",
        heal.bytes_per_missing
    );
    promise!(seconds <= HEAL_SECONDS && heal.bytes_per_missing <= HEAL_BYTES, "{figure}");
    Ok(figure)
}

/// What a whole run may take of this machine's time.
const CONVERGE_SECONDS: f64 = 120.0;

fn converge(run: &Run) -> Result<String> {
    let whole = measure::converge(size(run, run.times(1_000, 300), 0.0, Sabotage::CutOff))?;
    let seconds = whole.seconds.unwrap_or(f64::INFINITY);
    let figure = format!(
        "converged {seconds:.1} s after the last change; {:.0} simulated seconds took {:.0} s and {:.0} MiB",
        whole.effort.simulated, whole.effort.wall, whole.effort.memory_mib
    );
    promise!(seconds.is_finite() && whole.effort.wall <= CONVERGE_SECONDS, "{figure}");
    Ok(figure)
}

fn scenarios(run: &Run) -> Result<String> {
    let seeds = run.times(10, 1);
    let mut files = Scenario::files(&run.root.join("tests/scenarios"))?;
    if run.sabotaged {
        files.truncate(1);
    }
    let mut broken = Vec::new();
    for file in &files {
        let mut scenario = Scenario::load(file)?;
        if run.sabotaged {
            scenario.net.loss = 0.9;
        }
        for seed in 0..seeds {
            let report = crate::sim::run(&scenario, seed)?;
            broken.extend(report.faults.first().map(|fault| format!("{} {seed}: {fault}", scenario.name)));
        }
    }
    promise!(broken.is_empty(), "{}", broken.join("; "));
    Ok(format!("{} scenarios, {seeds} seeds each, all hold", files.len()))
}

fn forged(run: &Run) -> Result<String> {
    let attack = if run.sabotaged { Attack::Kill } else { Attack::Forge };
    let seeds = run.times(20, 2);
    let mut sum = Forged::default();
    let mut least_naming = usize::MAX;
    // All see all before all are connected; in the sparse meshes most have no connection to the victim at all.
    for seed in SEED..SEED + seeds {
        for forged in [forged_down(30, seed, attack)?, forged_down_cold(40, 32, 0.0, seed)?] {
            least_naming = least_naming.min(forged.naming);
            sum.datagrams += forged.datagrams;
            sum.fooled += forged.fooled;
            sum.missing += forged.missing;
            sum.samples += forged.samples;
            sum.renewals += forged.renewals;
            sum.slandered += forged.slandered;
        }
    }
    let figure = format!(
        "{seeds} seeds, all pairs to be connected and half of them never: {} datagrams fooled {} nodes, {} of {} looks missed the victim, {} renewals; {least_naming} nodes or more name the forger",
        sum.datagrams, sum.fooled, sum.missing, sum.samples, sum.renewals
    );
    promise!(sum.missing == 0 && sum.fooled == 0 && least_naming > 0 && sum.slandered == 0, "{figure}");
    Ok(figure)
}

fn cut_names_nobody(run: &Run) -> Result<String> {
    if run.sabotaged {
        let named = forged_down(30, SEED, Attack::Forge)?.naming;
        promise!(named == 0, "{named} nodes name the accuser");
    }
    let scenario = Scenario::load(&run.root.join("tests/scenarios/one-link-cut.toml"))?;
    let seeds = run.times(20, 3);
    for seed in 0..seeds {
        let mut mesh = Mesh::new(&scenario, seed)?;
        let report = scenario::play(&scenario, seed, &mut mesh)?;
        promise!(report.holds(), "seed {seed}: {}", report.faults.join("; "));
        let named = mesh.named().len();
        promise!(named == 0, "seed {seed}: honest nodes were named {named} times");
    }
    Ok(format!("{seeds} seeds, nobody declared down, nobody named"))
}

fn forgotten(run: &Run) -> Result<String> {
    let mut scenario = Scenario::load(&run.root.join("tests/scenarios/long/dead-for-a-day.toml"))?;
    if run.sabotaged {
        scenario.steps.clear();
    }
    let report = crate::sim::run(&scenario, SEED)?;
    promise!(report.holds(), "{}", report.faults.join("; "));
    Ok(format!("gone from all of {} after {:.2} h", scenario.nodes, report.took.as_secs_f64() / 3_600.0))
}

const TRACES: u64 = 20;

fn same_trace(run: &Run) -> Result<String> {
    let scenario = Scenario::load(&run.root.join("tests/scenarios/flapping-link.toml"))?;
    let trace = |seed| -> Result<u64> {
        let report = crate::sim::run(&scenario, seed)?;
        report.trace.context("the simulator has a trace")
    };
    let seed_of = |number| if run.sabotaged { number } else { SEED };
    let traces = (0..TRACES).map(|number| trace(seed_of(number))).collect::<Result<BTreeSet<_>>>()?;
    promise!(traces.len() == 1, "{} different traces of {TRACES} runs", traces.len());
    promise!(!traces.contains(&trace(SEED + 1)?), "another seed gives the same trace");
    Ok(format!("{TRACES} of {TRACES}"))
}

/// Growth per simulated hour that counts as flat: entries in the cores, and memory of this process.
const FLAT_ENTRIES: f64 = 0.02;
const FLAT_MIB: f64 = 16.0;

fn memory(run: &Run) -> Result<String> {
    let memory = memory_of_churn(50, run.times(60, 10), SEED, run.sabotaged)?;
    let figure = format!(
        "{:+.2} % entries and {:+.1} MiB an hour in the second half, for 50 nodes",
        memory.entries_per_hour * 100.0,
        memory.mib_per_hour
    );
    promise!(memory.entries_per_hour <= FLAT_ENTRIES && memory.mib_per_hour <= FLAT_MIB, "{figure}");
    Ok(figure)
}
