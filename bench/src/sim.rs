//! Suite `sim`: the shipped cores in one process, on a virtual clock (design section 19).
//!
//! Owns: which figure has which name. Must not know: how a mesh is simulated. Driven by: `main`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use gossamer_tests::sim::alone::alone;
use gossamer_tests::sim::measure::{self, Effort, Size};

use crate::report::{Report, Row, machine};

/// What to simulate.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// What happens to the mesh.
    #[arg(long, value_enum, default_value_t = Scenario::Record)]
    pub(crate) scenario: Scenario,
    /// How many nodes.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(4..=20_000))]
    pub(crate) nodes: u32,
    /// Share of packets lost, 0 to 1.
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    pub(crate) loss: f64,
    /// One seed, one run; round n uses seed + n.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The cores alone, without QUIC. The only way so far.
    #[arg(long)]
    pub(crate) core: bool,
    /// How often it is run, each time with the next seed; the median counts.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Records published one after the other, 10 to 30 ms one way.
    Record,
    /// Ten quiet minutes.
    Loss,
    /// Halves for 60 s, 200 changes on each side.
    Split,
    /// Ten records a node, a thousand changes, one node in a hundred killed.
    Converge,
    /// One catalog alone that holds ten records of each node; nothing is lost.
    Catalog,
}

/// Runs the suite.
pub(crate) fn run(options: Options) -> Result<Report> {
    if !options.core {
        bail!("only the cores are simulated by this suite: add --core");
    }
    let mut figures = Figures::default();
    for round in 0..options.rounds {
        let (nodes, seed) = (options.nodes as usize, options.seed + u64::from(round));
        let size = Size { nodes, loss: options.loss, seed, sabotage: None };
        match options.scenario {
            Scenario::Record => figures.record(size)?,
            Scenario::Loss => figures.loss(size)?,
            Scenario::Split => figures.split(size)?,
            Scenario::Converge => figures.converge(size)?,
            Scenario::Catalog => figures.catalog(size)?,
        }
    }
    Ok(figures.report(options.rounds))
}

/// All rounds of each figure: name, unit, whether it is one of the stable ratios.
#[derive(Default)]
struct Figures(Vec<(&'static str, &'static str, bool, Vec<f64>)>);

impl Figures {
    fn record(&mut self, size: Size) -> Result<()> {
        let spread = measure::record(size, RECORDS)?;
        self.add("record_p50_delays", "delays", false, spread.quantile(0.5));
        self.add("record_p99_delays", "delays", true, spread.quantile(0.99));
        self.add("record_all_delays", "delays", false, spread.quantile(1.0));
        self.add("record_missed", "receivers", false, spread.missed as f64);
        self.add("payload_copies", "copies", true, spread.copies);
        self.effort(spread.effort);
        Ok(())
    }

    fn loss(&mut self, size: Size) -> Result<()> {
        let calm = measure::loss(size, QUIET)?;
        self.add("false_downs", "pairs", true, calm.false_downs as f64);
        self.add("renewals", "renewals", true, calm.renewals as f64);
        self.add("bytes", "B/s per node", false, calm.bytes);
        self.effort(calm.effort);
        Ok(())
    }

    fn split(&mut self, size: Size) -> Result<()> {
        let heal = measure::split(size)?;
        self.add("heal_seconds", "s", true, heal.seconds.unwrap_or(f64::INFINITY));
        self.add("heal_catalog_seconds", "s", false, heal.catalog_seconds.unwrap_or(f64::INFINITY));
        self.add("heal_bytes_per_missing", "ratio", true, heal.bytes_per_missing);
        self.effort(heal.effort);
        Ok(())
    }

    fn converge(&mut self, size: Size) -> Result<()> {
        let converge = measure::converge(size)?;
        self.add("converge_seconds", "s simulated", false, converge.seconds.unwrap_or(f64::INFINITY));
        self.add("events", "millions", false, converge.events as f64 / 1e6);
        self.effort(converge.effort);
        Ok(())
    }

    fn catalog(&mut self, size: Size) -> Result<()> {
        let alone = alone(size.nodes, CATALOG_RECORDS, size.seed)?;
        self.add("adverts", "adverts", false, alone.adverts as f64);
        self.add("records", "records", false, alone.records as f64);
        self.add("load_seconds", "s", false, alone.load_seconds);
        self.add("memory_mib", "MiB", true, alone.memory_mib);
        self.add("change_us", "us", false, alone.change_us);
        self.add("equal_us", "us", false, alone.equal_us);
        self.add("differ_us", "us", false, alone.differ_us);
        self.add("export_seconds", "s", false, alone.export_seconds);
        Ok(())
    }

    fn effort(&mut self, effort: Effort) {
        self.add("join_seconds", "s simulated", false, effort.joined);
        self.add("simulated_seconds", "s", false, effort.simulated);
        self.add("wall_seconds", "s", true, effort.wall);
        self.add("memory_mib", "MiB", true, effort.memory_mib);
    }

    fn add(&mut self, name: &'static str, unit: &'static str, is_ratio: bool, value: f64) {
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some((.., values)) => values.push(value),
            None => self.0.push((name, unit, is_ratio, vec![value])),
        }
    }

    fn report(self, rounds: u32) -> Report {
        let mut rows = Vec::new();
        let mut ratios = BTreeMap::new();
        for (name, unit, is_ratio, values) in self.0 {
            let row = Row::of(name, unit, values);
            if is_ratio {
                ratios.insert(name, row.median);
            }
            rows.push(row);
        }
        Report { suite: "sim", machine: machine(), rounds, rows, ratios, lines: Vec::new() }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    (0.0..=1.0).contains(&share).then_some(share).ok_or_else(|| "a share is 0 to 1".to_owned())
}

/// Records of the scenario `record`, each on another node.
const RECORDS: usize = 60;

/// Records of each node in the scenario `catalog`.
const CATALOG_RECORDS: usize = 10;

/// How long the scenario `loss` is.
const QUIET: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Options =
        Options { scenario: Scenario::Converge, nodes: 5, loss: 0.0, seed: 1, core: true, rounds: 1 };

    #[test]
    fn a_run_gives_the_stable_ratios_and_the_effort() {
        let report = run(SMALL).expect("runs");
        assert!(report.rows.iter().any(|row| row.metric == "converge_seconds" && row.median.is_finite()));
        assert!(report.ratios["wall_seconds"] > 0.0 && report.ratios["memory_mib"] > 0.0);
    }

    #[test]
    fn a_catalog_alone_has_its_own_figures() {
        let report = run(Options { scenario: Scenario::Catalog, nodes: 8, ..SMALL }).expect("runs");
        let value = |name| report.rows.iter().find(|row| row.metric == name).map(|row| row.median);
        assert_eq!(value("records"), Some(71.0));
        assert!(value("change_us").is_some_and(|us| us > 0.0) && report.ratios.contains_key("memory_mib"));
    }

    #[test]
    fn without_core_the_suite_says_what_it_needs() {
        let error = run(Options { core: false, ..SMALL }).expect_err("refused").to_string();
        assert!(error.contains("--core"), "{error}");
    }

    #[test]
    fn rounds_of_one_figure_become_one_row() {
        let mut figures = Figures::default();
        [3.0, 1.0, 2.0].into_iter().for_each(|value| figures.add("heal_seconds", "s", true, value));
        let report = figures.report(3);
        assert_eq!((report.rows.len(), report.ratios["heal_seconds"]), (1, 2.0));
        assert!(share("1.5").is_err() && share("x").is_err() && share("0.05") == Ok(0.05));
    }
}
