//! Shows that promises are kept: runs rows of `docs/evidence.md` and prints `NAME PASS|FAIL figure` for each.
//!
//! Owns: the command line and the exit code. Must not know: how a row is checked. Driven by: people and `.ci/run`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its lines are its purpose")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;

use gossamer_tests::evidence::{Ci, Row, Run, Scale, build, root, rows};
use gossamer_tests::report::Verdict;

/// A simulated mesh of 1,000 nodes makes and drops small things all the time. What is measured of daemons is measured in
/// their own processes, which have the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rows whose time is told at the end.
const SLOWEST: usize = 20;

/// Checks promises: prints NAME PASS|FAIL figure and ends with 1 when one failed.
#[derive(Parser)]
struct Arguments {
    /// Rows to check
    #[arg(required_unless_present_any = ["all", "ci", "list"])]
    names: Vec<String>,
    /// Check every row
    #[arg(long, conflicts_with_all = ["names", "ci"])]
    all: bool,
    /// Check the rows .ci/run has time for, or those named, with fewer repeats
    #[arg(long)]
    ci: bool,
    /// List the rows
    #[arg(long)]
    list: bool,
    /// Break the promised feature from outside first: a row must fail. With --all, say for each whether it did
    #[arg(long)]
    sabotage: bool,
    /// Check this program; the shipped one is built and checked unless given
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for row in rows() {
            println!("{}\n    {}\n    sabotage: {}", row.name, row.promise, row.sabotage);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&arguments)?;
    let root = root();
    let scale = if arguments.ci { Scale::Ci } else { Scale::Full };
    let gossamer = match &arguments.program {
        Some(path) => path.canonicalize()?,
        None => build(&root)?,
    };
    let run = Run { gossamer, root, scale, sabotaged: arguments.sabotage };
    let check = if arguments.sabotage && arguments.all { notices } else { passes };
    let mut failed = 0;
    let mut times = Vec::new();
    for row in &chosen {
        let began = Instant::now();
        failed += usize::from(!check(row, &run));
        times.push((began.elapsed().as_secs(), row.name));
    }
    times.sort_unstable_by(|a, b| b.cmp(a));
    for (seconds, name) in times.iter().take(SLOWEST).filter(|_| times.len() > SLOWEST) {
        eprintln!("{name} took {seconds} s");
    }
    if arguments.ci && arguments.names.is_empty() {
        for row in rows() {
            if let Ci::Skips(reason) = row.ci {
                println!("{} is not part of --ci: {reason}", row.name);
            }
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn choose(arguments: &Arguments) -> Result<Vec<Row>> {
    let mut chosen = Vec::new();
    for name in &arguments.names {
        match rows().into_iter().find(|row| row.name == *name) {
            Some(row) => chosen.push(row),
            None => bail!("there is no row {name}; see --list"),
        }
    }
    if chosen.is_empty() {
        chosen = rows();
        chosen.retain(|row| !arguments.ci || row.ci == Ci::Runs);
    }
    Ok(chosen)
}

fn passes(row: &Row, run: &Run) -> bool {
    let line = row.run(run);
    println!("{line}");
    line.verdict.passed()
}

/// Returns whether the sabotaged row fails, and for the reason it should.
fn notices(row: &Row, run: &Run) -> bool {
    let (word, why) = match row.run(run).verdict {
        Verdict::Fail(why) => ("noticed", why),
        Verdict::Pass(figure) => ("NOT NOTICED", figure),
        Verdict::Harness(why) => ("NOT CARRIED OUT", why),
    };
    println!("{} {word} ({}): {}", row.name, row.sabotage, why.replace('\n', " / "));
    word == "noticed"
}
