//! What a suite found: rows of figures with units, as a table and as JSON.
//!
//! Owns: the shape of a result. Must not know: how anything is measured. Driven by: every suite.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

/// The result of a suite, serialised as it stands.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) suite: &'static str,
    /// Processor, number of them, kernel.
    pub(crate) machine: String,
    /// How often each row was measured.
    pub(crate) rounds: u32,
    pub(crate) rows: Vec<Row>,
    /// Ours divided by theirs, by stable names; empty where nothing is compared.
    pub(crate) ratios: BTreeMap<&'static str, f64>,
    /// What people are told below the table.
    #[serde(skip)]
    pub(crate) lines: Vec<String>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) system: &'static str,
    pub(crate) metric: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Row {
    /// Makes a row of all rounds; at least one.
    pub(crate) fn of(metric: &'static str, unit: &'static str, values: Vec<f64>) -> Self {
        Self::by("gossamer", metric, unit, values)
    }

    /// Makes a row of what a system needed; at least one value.
    pub(crate) fn by(
        system: &'static str,
        metric: &'static str,
        unit: &'static str,
        mut values: Vec<f64>,
    ) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        // Of an even number, the mean of the two in the middle.
        let median = f64::midpoint(at(last / 2), at(values.len() / 2));
        Self { system, metric, unit, median, min: at(0), max: at(last) }
    }
}

impl Report {
    /// Returns the result for people.
    pub(crate) fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["system", "metric", "unit", "median", "min", "max"]);
        let number = |value: f64| match value.abs() {
            0.0 => "0".to_owned(),
            size if size < 1.0 => format!("{value:.3}"),
            size if size < 100.0 => format!("{value:.1}"),
            _ => format!("{value:.0}"),
        };
        for row in &self.rows {
            table.add_row([
                row.system.to_owned(),
                row.metric.to_owned(),
                row.unit.to_owned(),
                number(row.median),
                number(row.min),
                number(row.max),
            ]);
        }
        let ratios = self.ratios.iter().map(|(name, ratio)| format!("\nratio {name}: {}", number(*ratio)));
        format!("{}: {} rounds on {}\n{table}", self.suite, self.rounds, self.machine)
            + &ratios.collect::<String>()
            + &self.lines.iter().map(|line| format!("\n{line}")).collect::<String>()
    }
}

/// Returns processor, number of them and kernel, as far as they can be read.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model.trim());
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} x {model}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_the_middle_and_both_ends() {
        let row = Row::of("x", "ns", vec![3.0, 1.0, 2.0]);
        assert_eq!((row.median, row.min, row.max), (2.0, 1.0, 3.0));
        let even = Row::of("x", "ns", vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!(even.median, 2.5);
    }

    #[test]
    fn json_has_the_fields_that_programs_read() {
        let rows = vec![Row::of("record_encode", "ns", vec![1.0])];
        let (ratios, lines) = (BTreeMap::new(), vec!["and so on".to_owned()]);
        let report = Report { suite: "micro", machine: machine(), rounds: 1, rows, ratios, lines };
        let json = serde_json::to_value(&report).expect("serialises");
        let keys: Vec<&String> = json.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["machine", "ratios", "rounds", "rows", "suite"]);
        let row = json["rows"][0].as_object().expect("an object");
        assert_eq!(row.len(), 6);
        for key in ["system", "metric", "unit", "median", "min", "max"] {
            assert!(row.contains_key(key), "{key}");
        }
        assert!(report.table().contains("record_encode") && report.table().ends_with("\nand so on"));
    }
}
