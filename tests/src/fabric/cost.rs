//! What a simulated mesh costs, in wall time and in traffic.
//!
//! Owns: the measurement. Must not know: what is done with the figures. Driven by: the bench and tests.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Fabric;
use crate::scenario::{Act, Disk, Scenario, World as _};

/// What a quiet run took.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Endpoints.
    pub nodes: usize,
    /// Simulated time.
    pub virtual_time: Duration,
    /// Time on this machine, the making of certificates included.
    pub wall_time: Duration,
    /// Datagrams of all nodes.
    pub datagrams: u64,
    /// Bytes each node sent, headers of IP and UDP included.
    pub bytes_per_node: u64,
    /// Control connections per node at the end.
    pub connections_per_node: f64,
}

/// Starts so many nodes at once, with one record each, and lets them run for `time`.
///
/// # Errors
/// They do not all see each other at the end, or a bug.
pub fn measure(nodes: usize, time: Duration, seed: u64) -> Result<Cost> {
    let began = std::time::Instant::now();
    let file = format!("name = 'cost'\nabout = 'quiet'\nnodes = {nodes}");
    let mut fabric = Fabric::new(&Scenario::parse("cost", &file)?, seed)?;
    for node in 0..nodes {
        fabric.act(&Act::Start { node, disk: Disk::Lost })?;
    }
    fabric.run_to(time)?;
    let mut connections = 0;
    for node in 0..nodes {
        let seen = fabric.state(node)?.up.len();
        ensure!(seen + 1 == nodes, "node {node} sees {seen} others");
        connections += fabric.mesh(node)?.peers.connected();
    }
    let sent: Vec<_> = (0..nodes).map(|node| fabric.sent(node)).collect();
    Ok(Cost {
        nodes,
        virtual_time: time,
        wall_time: began.elapsed(),
        datagrams: sent.iter().map(|sent| sent.datagrams).sum(),
        bytes_per_node: sent.iter().map(|sent| sent.bytes).sum::<u64>() / nodes as u64,
        connections_per_node: f64::from(u32::try_from(connections)?) / nodes as f64,
    })
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} endpoints, {:.0} virtual s in {:.2} s: {} datagrams, {} bytes per node, {:.1} connections each",
            self.nodes,
            self.virtual_time.as_secs_f64(),
            self.wall_time.as_secs_f64(),
            self.datagrams,
            self.bytes_per_node,
            self.connections_per_node
        )
    }
}
