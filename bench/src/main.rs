//! Measures Gossamer: one suite per run, a table for people, one JSON object for programs.
//!
//! Owns: the command line and the list of suites. Must not know: what a suite measures.
//! Driven by: people who want a figure, `docs/benchmarks.md`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

mod dns;
mod gossip;
mod micro;
mod relay;
mod report;
mod sim;

/// Measures Gossamer. Build it with --release.
#[derive(Parser)]
#[command(name = "gossamer-bench")]
struct Arguments {
    /// Also write the result as one JSON object.
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    suite: Suite,
}

/// What to measure.
#[derive(Subcommand)]
enum Suite {
    /// What single functions cost on one core, without sockets
    Micro(Micro),
    /// Membership and records of real daemons beside a peer's, in network namespaces; needs root
    Gossip(gossip::Arguments),
    /// The shipped cores in one process, on a virtual clock
    Sim(sim::Options),
    /// The shipped daemon's DNS beside other servers; needs root and two cores
    Dns(dns::Arguments),
    /// TCP through two daemons beside pairs of other proxies, in network namespaces; needs root
    Relay(relay::Arguments),
    /// A server that `dns` measures beside
    #[command(hide = true)]
    DnsReference(dns::reference::Reference),
    /// A proxy that `relay` measures beside
    #[command(hide = true)]
    RelaySplice(relay::splice::Splice),
}

#[derive(Args)]
struct Micro {
    /// How often each row is measured; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

#[expect(clippy::print_stdout, reason = "the table is the product")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let report = match arguments.suite {
        Suite::Micro(micro) => micro::run(micro.rounds),
        Suite::Gossip(asked) => gossip::run(&asked),
        Suite::Sim(asked) => sim::run(asked),
        Suite::Dns(asked) => dns::run(&asked),
        Suite::Relay(asked) => relay::run(&asked),
        Suite::RelaySplice(asked) => return relay::splice::run(&asked),
        Suite::DnsReference(asked) => return dns::reference::run(&asked),
    }?;
    println!("{}", report.table());
    if let Some(path) = arguments.json {
        let json = serde_json::to_vec_pretty(&report)?;
        fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["bench", "micro", "--rounds", "0"]).is_err());
        assert!(Arguments::try_parse_from(["bench", "micro", "--json", "f"]).is_ok());
    }

    #[test]
    fn an_unknown_suite_names_the_ones_there_are() {
        let Err(error) = Arguments::try_parse_from(["bench", "mirco"]) else { panic!("unknown") };
        let said = error.to_string();
        assert!(said.contains("mirco") && said.contains("micro"), "{said}");
    }
}
