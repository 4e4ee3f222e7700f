//! A simulated mesh with nodes that are seen through relays alone.
//!
//! Owns: who leads to whom, and when relays lead nothing. Must not know: how streams are simulated. Driven by: the evidence.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Mesh;
use super::measure::{Run, Size};
use crate::scenario::{Act, World as _};

/// When relays lead nothing for `SILENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// First one, later the other.
    OneAfterTheOther,
    /// Both at the same time.
    Together,
}

const NODES: usize = 12;
const LOSS: f64 = 0.01;
/// One-way delays, milliseconds.
const DELAY: [f64; 2] = [5.0, 20.0];
const RELAYS: [usize; 2] = [1, 2];
const HIDDEN: [usize; 2] = [NODES - 2, NODES - 1];
const SILENT: Duration = Duration::from_secs(20);
const JOINED: Duration = Duration::from_secs(120);

/// Lets a mesh be for so long, and returns how many pairs there are of a hidden node and one that held it for down.
///
/// # Errors
/// The nodes did not find each other.
pub fn relayed(seed: u64, length: Duration, silence: Silence) -> Result<usize> {
    let mut mesh = Run::mesh(Size { nodes: NODES, loss: LOSS, seed, sabotage: None }, 1, DELAY)?;
    mesh.net.hide(&HIDDEN, RELAYS);
    mesh.start_all()?;
    mesh.run_until(JOINED, Mesh::agree).context("the nodes did not find each other")?;
    mesh.downs.clear();
    let end = mesh.now + length;
    let quiet = length / 3;
    mesh.run(mesh.now + quiet);
    let silent: &[&[usize]] = match silence {
        Silence::OneAfterTheOther => &[&RELAYS[..1], &RELAYS[1..]],
        Silence::Together => &[&RELAYS],
    };
    for relays in silent {
        let relays = BTreeSet::from_iter(relays.iter().copied());
        let others: BTreeSet<_> = (0..NODES).filter(|node| !relays.contains(node)).collect();
        mesh.act(&Act::Cut { from: relays.clone(), to: others.clone() })?;
        mesh.act(&Act::Cut { from: others, to: relays })?;
        mesh.run(mesh.now + SILENT);
        mesh.act(&Act::Heal)?;
        mesh.run(mesh.now + quiet);
    }
    mesh.run(end.max(mesh.now));
    // A relay that is cut off may hold all for down.
    let is_false = |node: usize, by: usize| HIDDEN.contains(&node) && !RELAYS.contains(&by);
    let downs = mesh.downs.iter().map(|down| (down.node, down.by)).filter(|(node, by)| is_false(*node, *by));
    Ok(downs.collect::<BTreeSet<_>>().len())
}
