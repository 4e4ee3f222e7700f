//! Plays scenario files with real daemons in network namespaces and prints what came of each. Needs root.
//!
//! Owns: the command line. Must not know: how a scenario is played. Driven by: people.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use gossamer_tests::{evidence, world};

/// Plays scenario files with real daemons; exits with 1 when one does not hold.
#[derive(Parser)]
#[command(name = "scenario")]
struct Arguments {
    /// Scenario files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// What draws the nodes that steps pick
    #[arg(long, value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// The program whose daemons run; built from this tree unless given
    #[arg(long, value_name = "FILE")]
    gossamer: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the reports are the product")]
fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let program = match arguments.gossamer {
        Some(program) => program.canonicalize()?,
        None => evidence::build(&evidence::root())?,
    };
    let mut holds = true;
    for file in &arguments.files {
        for report in world::run_file(&program, file, &arguments.seeds)? {
            println!("{} {report}", if report.holds() { "PASS" } else { "FAIL" });
            holds &= report.holds();
        }
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
