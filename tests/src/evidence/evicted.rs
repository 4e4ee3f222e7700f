//! Evictions in a mesh of 100 real endpoints on a virtual clock, and what a stolen issuer's key can do there.
//!
//! Owns: the sizes and the limits of the figures. Must not know: how a mesh is simulated. Driven by: `evidence`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gossamer_wire::NodeId;
use gossamer_wire::limits::NUMBERS_PER_AUTHOR;

use super::{Ci, Needs, Row, Run};
use crate::fabric::Fabric;
use crate::promise;
use crate::report::Samples;
use crate::scenario::{Act, World as _};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "4.3-sim-eviction",
        promise: "In a mesh of 100 real endpoints on a virtual network with 1 % loss an evicted node is refused everywhere after at most 2 s (p99), and its flows end in 1 s; of 30 nodes that were cut off meanwhile none serves a record of it from its first connection to the others on, and all refuse it",
        sabotage: "the nodes that were cut off cannot write statements: their disks are full",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: eviction,
    },
    Row {
        name: "4.3-stolen-issuer",
        promise: "A stolen issuer's key signs 1,000 evictions, which 100 nodes hear in different orders and some twice: 64 act, the same on all, the others are refused and counted; a number used twice ends it at that number, and after its removal nothing of it counts, in whatever order who hears what",
        sabotage: "the root grants the stolen key 100 statements",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: stolen_issuer,
    },
];

/// Nodes, and those when there is little time.
const NODES: (usize, usize) = (100, 30);
/// Nodes evicted one after the other in one mesh.
const EVICTED: std::ops::Range<usize> = 1..6;
/// Longer than it takes to hold all of the other side for down.
const APART: Duration = Duration::from_secs(60);
/// From the order to the refusal.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);
const FLOWS_WITHIN: Duration = Duration::from_secs(1);

fn eviction(run: &Run) -> Result<String> {
    let (mut refused, mut flows) = (Samples::default(), Samples::default());
    let (mut healed, mut fooled) = (Samples::default(), 0);
    let (seeds, nodes) = (run.times(3, 1), run.times(NODES.0, NODES.1));
    // The last 30 of 100.
    let cut_off: BTreeSet<usize> = (nodes - nodes * 3 / 10..nodes).collect();
    for seed in 1..=seeds {
        let mut fabric = Fabric::with_root_key(nodes, seed)?;
        for out in EVICTED {
            let taken = fabric.evict(out)?;
            promise!(taken.never == 0, "seed {seed}: {} nodes do not refuse node {out}", taken.never);
            promise!(taken.let_in == 0, "seed {seed}: {} nodes let node {out} in again", taken.let_in);
            ensure!(taken.turned_away > 0, "seed {seed}: node {out} knocks nowhere");
            refused.extend(taken.refused);
            flows.extend(taken.flows);
            fabric.act(&Act::Kill(out))?;
        }
        let away = fabric.evict_apart(EVICTED.end, &cut_off, APART, run.sabotaged)?;
        let (met, refusing) = (away.met.len(), away.refused.len());
        ensure!(met == cut_off.len(), "seed {seed}: {met} of {} meet the others again", cut_off.len());
        promise!(
            away.late == 0,
            "seed {seed}: nodes that had met others served its record at {} looks",
            away.late
        );
        promise!(away.let_in == 0, "seed {seed}: {} nodes take it in again", away.let_in);
        promise!(
            refusing == cut_off.len(),
            "seed {seed}: {refusing} of {} refuse it after the heal",
            cut_off.len()
        );
        healed.extend(away.refused);
        fooled += away.fooled;
    }
    let figure = format!(
        "{nodes} nodes, {seeds} seeds: refused after {refused}; flows ended after {flows}; cut off: refused {healed} after \
         the heal, {fooled} of {} met it before anybody who knew, 0 looks at which one served a record after that",
        cut_off.len() * seeds as usize
    );
    promise!(refused.percentile(0.99) <= REFUSED_WITHIN && flows.max() <= FLOWS_WITHIN, "{figure}");
    Ok(figure)
}

/// Statements the thief signs.
const STOLEN: u64 = 1_000;
/// Its budget when a root raises it.
const GRANTED: u64 = 100;
/// A number it uses for two.
const REUSED: u64 = 10;
/// Whose key it is, and who stole it.
const HOLDER: usize = 1;
const THIEF: usize = 2;
/// Members among the nodes it evicts, by the number of the statement.
const MEMBERS: [(u64, usize); 3] = [(3, 3), (20, 4), (40, 5)];

fn stolen_issuer(run: &Run) -> Result<String> {
    let nodes = run.times(NODES.0, NODES.1);
    let all: BTreeSet<usize> = (0..nodes).collect();
    // These hear of nothing until the end.
    let absent: BTreeSet<usize> = (nodes - nodes / 10..nodes).collect();
    // These hear of the thief once more while the others hear of its removal.
    let thiefs: BTreeSet<usize> = (nodes / 2..nodes * 6 / 10).chain([THIEF]).collect();
    let present = &all - &absent;
    let mut fabric = Fabric::with_root_key(nodes, 1)?;
    let mut thief = fabric.steal_issuer(HOLDER, THIEF)?;
    if run.sabotaged {
        fabric.grant_stolen(&thief, GRANTED)?;
    }
    let outs: Vec<NodeId> = (0..STOLEN).map(|number| out(&fabric, number)).collect::<Result<_>>()?;
    for (number, out) in (0..).zip(&outs) {
        thief.evict(number, *out)?;
    }
    fabric.part(&absent, &present)?;

    // Nodes that it puts out are told like the others, but take part in nothing until they are back.
    let without = |count: u64| -> BTreeSet<usize> {
        let members = MEMBERS.iter().filter(|(number, _)| *number < count).map(|(_, node)| *node).collect();
        &present - &members
    };
    fabric.spread(&mut thief, &present)?;
    let first = fabric.agree(&without(STOLEN), "the first evictions")?;
    let acting = |count: u64| outs.iter().take(count as usize).copied().collect::<BTreeSet<_>>();
    let number = first.evicted.len();
    promise!(first.evicted == acting(NUMBERS_PER_AUTHOR), "{number} evictions of the stolen key act");
    let counted = fabric.statements_refused(&without(STOLEN))?;
    let fewest = counted.iter().filter(|(node, _)| **node != THIEF).map(|(_, count)| *count).min();
    let fewest = fewest.context("nodes")?;
    promise!(fewest >= STOLEN - NUMBERS_PER_AUTHOR, "a node counted {fewest} refused statements");

    thief.evict(REUSED, NodeId::from_bytes([0xee; 16]))?;
    fabric.spread(&mut thief, &without(STOLEN))?;
    let second = fabric.agree(&without(REUSED), "the number that was used twice")?;
    promise!(second.evicted == acting(REUSED), "{} act after a number was used twice", second.evicted.len());

    // The thief's part hears its statements again, then of the removal; the others the other way round.
    let honest = &present - &thiefs;
    fabric.part(&thiefs, &honest)?;
    fabric.remove_stolen(&thief)?;
    fabric.spread(&mut thief, &thiefs)?;
    let of_thief = fabric.agree(&thiefs, "the part of the thief")?;
    let removed = fabric.agree(&(&honest & &without(REUSED)), "the part that heard of the removal")?;
    promise!(of_thief == second, "the part of the thief holds {} for out", of_thief.evicted.len());
    promise!(removed.evicted.is_empty(), "{} evictions act after the removal", removed.evicted.len());
    fabric.heal()?;
    fabric.spread(&mut thief, &all)?;
    let last = fabric.agree(&all, "all")?;
    promise!(
        last == removed,
        "{} evictions act at last, {} statements are kept",
        last.evicted.len(),
        last.kept
    );
    fabric.whole()?;
    fabric.spread(&mut thief, &all)?;
    promise!(fabric.agree(&all, "all, told again")? == last, "what is told again counts");
    Ok(format!(
        "{number} of {STOLEN} act on all of {}, {fewest} or more refused and counted by each, {} statements of {} bytes \
         kept; {} act after number {REUSED} was used twice, 0 on all of {nodes} after the removal, {} kept; the {} members \
         that were out are back",
        without(STOLEN).len(),
        first.kept,
        first.bytes,
        second.evicted.len(),
        last.kept,
        MEMBERS.len(),
    ))
}

/// Returns whom a statement of the thief puts out: mostly nobody's id.
fn out(fabric: &Fabric, number: u64) -> Result<NodeId> {
    if let Some((_, node)) = MEMBERS.iter().find(|(of, _)| *of == number) {
        return fabric.id(*node);
    }
    let mut id = [0xaa; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    Ok(NodeId::from_bytes(id))
}
