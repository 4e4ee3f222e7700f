//! A mesh of the shipped cores in one process: membership, catalog and dial book of each node, on a virtual clock.
//!
//! Owns: identities, the network, connections as far as the cores can tell them from QUIC, disks, clocks, bytes.
//! Does not do: QUIC, TLS, tasks, files; the simulator with real endpoints and the namespaces have those.
//! Driven by: scenario files ([`run_file`]) and evidence.
//!
//! Not a model: the decisions are those of `gossamer_core`, wired as the daemon wires them (`wiring`). What is
//! simplified is below them: a connection has no congestion window beyond a slow start, datagrams are never
//! refused, a one-way cut does not stop the other direction. Signatures are checked once per process for each
//! distinct (key, bytes, signature) and the verdict remembered (`authority`). One seed, one trace.

pub mod alone;
pub(crate) mod authority;
mod batch;
mod cost;
pub mod evidence;
mod link;
pub mod measure;
mod mesh;
pub mod mixed;
mod net;
mod node;
mod queue;
pub mod relayed;
mod tables;
mod watch;
mod wiring;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::scenario::{self, Report, Scenario};

pub use mesh::Mesh;

/// Runs a scenario with each of the seeds.
///
/// # Errors
/// The file cannot be used. What does not hold is in the reports.
pub fn run_file(path: &Path, seeds: Range<u64>) -> Result<Vec<Report>> {
    let scenario = Scenario::load(path)?;
    seeds.map(|seed| run(&scenario, seed)).collect()
}

/// Runs a scenario with one seed.
///
/// # Errors
/// The provider of cryptography refuses.
pub fn run(scenario: &Scenario, seed: u64) -> Result<Report> {
    let mut mesh = Mesh::new(scenario, seed)?;
    scenario::play(scenario, seed, &mut mesh).with_context(|| format!("{} seed {seed}", scenario.name))
}
