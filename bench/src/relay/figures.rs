//! What was measured, what follows from it, and what was to be reached.
//!
//! Owns: figures by system and metric, the ratios of stable names, the goals. Must not know: how anything is measured.
//! Driven by: the suite.

use std::collections::BTreeMap;

use super::peers::Peer;
use crate::report::Row;

/// The names systems have in results.
pub(super) const OURS: &str = "gossamer";
pub(super) const RAW: &str = "raw TCP";
pub(super) const SPLICE: &str = "splice";

/// Metrics of idle connections, by how many there are.
pub(super) const IDLE_QUICK: &[(usize, &str)] = &[(200, "idle_200")];
pub(super) const IDLE: &[(usize, &str)] = &[(1_000, "idle_1000"), (9_000, "idle_9000")];

/// Figures by system and metric; each has those of all rounds.
#[derive(Debug, Default)]
pub(super) struct Figures(BTreeMap<(&'static str, &'static str), Vec<f64>>);

impl Figures {
    pub(super) fn push(&mut self, system: &'static str, metric: &'static str, value: f64) {
        self.0.entry((system, metric)).or_default().push(value);
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let row = |(&(system, metric), values): (&(_, _), &Vec<f64>)| {
            Row::by(system, metric, unit(metric), values.clone())
        };
        self.0.iter().map(row).collect()
    }

    fn median(&self, system: &'static str, metric: &'static str) -> Option<f64> {
        let values = self.0.get(&(system, metric))?;
        Some(Row::by(system, metric, "", values.clone()).median)
    }

    /// Returns the figures of all peers that have this one.
    fn of_peers(&self, metric: &'static str) -> impl Iterator<Item = f64> {
        use clap::ValueEnum as _;
        Peer::value_variants().iter().filter_map(move |peer| self.median(peer.name(), metric))
    }

    /// Returns the ratios that can be told: medians of ours by those of the best peer or of the one named.
    pub(super) fn ratios(&self) -> BTreeMap<&'static str, f64> {
        let ours = |metric| self.median(OURS, metric);
        let by = |ours: Option<f64>, theirs: Option<f64>| Some(ours? / theirs?);
        let most = |metric| self.of_peers(metric).reduce(f64::max);
        let least = |metric| self.of_peers(metric).reduce(f64::min);
        let haproxy = |metric| self.median(Peer::Haproxy.name(), metric);
        let raw = |metric| self.median(RAW, metric);
        // Of several numbers of connections the worse one.
        let idle = IDLE_QUICK.iter().chain(IDLE).filter_map(|(_, metric)| by(ours(metric), haproxy(metric)));
        let all = [
            ("conn_rate_vs_best", by(ours("conn_rate"), most("conn_rate"))),
            ("conn_cpu_vs_best", by(ours("conn_cpu"), least("conn_cpu"))),
            ("req_rate_vs_best", by(ours("req_rate"), most("req_rate"))),
            ("req_cpu_vs_best", by(ours("req_cpu"), least("req_cpu"))),
            ("bulk_cpu_vs_haproxy", by(ours("bulk_cpu"), haproxy("bulk_cpu"))),
            ("bulk_rate_vs_haproxy", by(ours("bulk_rate"), haproxy("bulk_rate"))),
            ("idle_memory_vs_haproxy", idle.reduce(f64::max)),
            ("added_p50_us", ours("p50").zip(raw("p50")).map(|(ours, raw)| ours - raw)),
            ("thin_p99_vs_tcp", by(ours("thin_p99"), raw("thin_p99"))),
            ("lossy_goodput", by(ours("lossy_rate"), Some(super::LOSSY.rate / 1e6))),
            ("reset_killed_seconds", ours("reset_killed")),
            ("reset_silent_seconds", ours("reset_silent")),
            ("local_rate_vs_splice", by(ours("local_rate"), self.median(SPLICE, "local_rate"))),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

fn unit(metric: &str) -> &'static str {
    match metric {
        "conn_rate" | "req_rate" => "1/s",
        "conn_cpu" | "req_cpu" | "p50" => "us",
        "bulk_rate" | "local_rate" | "lossy_rate" => "Mbit/s",
        "bulk_cpu" => "s/GB",
        "idle_200" | "idle_1000" | "idle_9000" => "KiB",
        "idle_base" => "MiB",
        "conn_p99" | "req_p99" | "thin_p50" | "thin_p99" => "ms",
        "reset_killed" | "reset_silent" => "s",
        _ => "",
    }
}

/// A bound, inclusive.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64, Option<f64>),
    AtMost(f64, Option<f64>),
}

/// What is to be reached, and what would be better still, by the ratio it is about.
const GOALS: &[(&str, Bound)] = &[
    ("conn_rate_vs_best", Bound::AtLeast(3.0, Some(6.0))),
    ("conn_cpu_vs_best", Bound::AtMost(0.2, Some(0.1))),
    ("req_rate_vs_best", Bound::AtLeast(1.0, Some(1.3))),
    ("req_cpu_vs_best", Bound::AtMost(0.8, Some(0.65))),
    ("bulk_cpu_vs_haproxy", Bound::AtMost(1.3, Some(1.0))),
    ("bulk_rate_vs_haproxy", Bound::AtLeast(0.9, Some(1.2))),
    ("idle_memory_vs_haproxy", Bound::AtMost(0.5, Some(0.2))),
    ("added_p50_us", Bound::AtMost(80.0, Some(50.0))),
    ("thin_p99_vs_tcp", Bound::AtMost(0.5, Some(0.3))),
    ("lossy_goodput", Bound::AtLeast(0.8, Some(0.9))),
    ("reset_killed_seconds", Bound::AtMost(1.0, Some(0.2))),
    ("reset_silent_seconds", Bound::AtMost(5.0, Some(3.0))),
    ("local_rate_vs_splice", Bound::AtLeast(0.9, None)),
];

/// Says for each goal whether it was reached, or why that is not known.
pub(super) fn verdicts(
    ratios: &BTreeMap<&'static str, f64>,
    missing: &BTreeMap<&'static str, String>,
) -> Vec<String> {
    let line = |(name, bound): &(&'static str, Bound)| {
        let Some(value) = ratios.get(name) else {
            let why = missing.get(name).map_or("not asked for", String::as_str);
            return format!("goal {name}: not measured: {why}");
        };
        let reached = |limit: f64| match bound {
            Bound::AtLeast(..) => *value >= limit,
            Bound::AtMost(..) => *value <= limit,
        };
        let (sign, reach, beyond) = match *bound {
            Bound::AtLeast(reach, beyond) => (">=", reach, beyond),
            Bound::AtMost(reach, beyond) => ("<=", reach, beyond),
        };
        let verdict = match beyond {
            Some(beyond) if reached(beyond) => "ok, beyond",
            _ if reached(reach) => "ok",
            _ => "MISSED",
        };
        let further = beyond.map(|beyond| format!(", beyond {sign} {beyond}")).unwrap_or_default();
        format!("goal {name}: {value:.3} ({sign} {reach}{further}) {verdict}")
    };
    GOALS.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Figures {
        let mut figures = Figures::default();
        let metrics = ["conn_rate", "conn_cpu", "req_rate", "req_cpu", "bulk_rate", "bulk_cpu", "idle_1000"];
        for (system, value) in [(OURS, 2.0), ("haproxy", 4.0), ("nginx", 1.0), ("stunnel", 8.0)] {
            metrics.iter().for_each(|metric| figures.push(system, metric, value));
        }
        for (system, value) in [(OURS, 30.0), (RAW, 10.0), (SPLICE, 60.0)] {
            let metrics = ["p50", "thin_p99", "lossy_rate", "local_rate", "reset_killed", "reset_silent"];
            metrics.iter().for_each(|metric| figures.push(system, metric, value));
        }
        figures
    }

    #[test]
    fn ratios_have_their_stable_names_and_the_best_peer_counts() {
        let ratios = measured().ratios();
        let names: Vec<_> = ratios.keys().copied().collect();
        let mut wanted: Vec<_> = GOALS.iter().map(|(name, _)| *name).collect();
        wanted.sort_unstable();
        assert_eq!(names, wanted);
        assert_eq!((ratios["conn_rate_vs_best"], ratios["conn_cpu_vs_best"]), (0.25, 2.0));
        assert_eq!((ratios["bulk_rate_vs_haproxy"], ratios["added_p50_us"]), (0.5, 20.0));
        assert_eq!((ratios["lossy_goodput"], ratios["local_rate_vs_splice"]), (0.6, 0.5));
    }

    #[test]
    fn of_two_numbers_of_idle_connections_the_worse_counts() {
        let mut figures = measured();
        figures.push(OURS, "idle_9000", 3.0);
        figures.push("haproxy", "idle_9000", 4.0);
        assert_eq!(figures.ratios()["idle_memory_vs_haproxy"], 0.75);
    }

    #[test]
    fn each_goal_is_reached_missed_or_not_measured_for_a_reason() {
        let ratios = BTreeMap::from([
            ("conn_rate_vs_best", 3.0),
            ("conn_cpu_vs_best", 0.1),
            ("req_rate_vs_best", 0.99),
            ("local_rate_vs_splice", 2.0),
        ]);
        let missing = BTreeMap::from([("thin_p99_vs_tcp", "no device".to_owned())]);
        let lines = verdicts(&ratios, &missing);
        assert_eq!(lines.len(), GOALS.len());
        for line in [
            "goal conn_rate_vs_best: 3.000 (>= 3, beyond >= 6) ok",
            "goal conn_cpu_vs_best: 0.100 (<= 0.2, beyond <= 0.1) ok, beyond",
            "goal req_rate_vs_best: 0.990 (>= 1, beyond >= 1.3) MISSED",
            "goal local_rate_vs_splice: 2.000 (>= 0.9) ok",
            "goal thin_p99_vs_tcp: not measured: no device",
            "goal added_p50_us: not measured: not asked for",
        ] {
            assert!(lines.iter().any(|said| said == line), "{line} of {lines:#?}");
        }
    }

    #[test]
    fn a_ratio_without_both_sides_is_not_there() {
        let mut figures = Figures::default();
        figures.push(OURS, "conn_rate", 1.0);
        assert!(figures.ratios().is_empty());
        assert_eq!(figures.rows().len(), 1);
    }
}
