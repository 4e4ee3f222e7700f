//! Measures Gossamer: one suite per run, a table for people, one JSON object for programs.
//!
//! Owns: the command line and the list of suites. Must not know: what a suite measures.
//! Driven by: people who want a figure, `docs/benchmarks.md`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

mod micro;
mod report;

/// Measures Gossamer. Build it with --release.
#[derive(Parser)]
#[command(name = "gossamer-bench")]
struct Arguments {
    /// What to measure: micro
    suite: String,
    /// Also write the result as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each row is measured; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// A suite by its name.
type Suite = (&'static str, fn(u32) -> Result<report::Report>);

const SUITES: [Suite; 1] = [("micro", micro::run)];

#[expect(clippy::print_stdout, reason = "the table is the product")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let report = find(&arguments.suite)?(arguments.rounds)?;
    println!("{}", report.table());
    if let Some(path) = arguments.json {
        let json = serde_json::to_vec_pretty(&report)?;
        fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn find(name: &str) -> Result<fn(u32) -> Result<report::Report>> {
    match SUITES.iter().find(|(suite, _)| *suite == name) {
        Some((_, run)) => Ok(*run),
        None => {
            let known = SUITES.map(|(suite, _)| suite).join(", ");
            bail!("there is no suite `{name}`; suites: {known}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_suite_names_the_ones_there_are() {
        let error = find("mirco").expect_err("unknown").to_string();
        assert!(error.contains("`mirco`") && error.contains("micro"), "{error}");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["bench", "micro", "--rounds", "0"]).is_err());
    }
}
