//! Members that are seen through relays alone: whether they live.
//!
//! Owns: how long, with what loss, and the simulated mesh of it. Must not know: the bytes of circuits. Driven by: `evidence`.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::carried::kept;
use super::circuits::{Hidden, behind};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::promise;
use crate::sim::relayed::{Silence, relayed};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.3-steady",
        promise: "Two nodes that see each other through two relays alone, each of which loses 1 % of what it gets and sends: for 10 min neither calls the other down",
        sabotage: "one of the two is killed",
        needs: Needs::Root,
        ci: Ci::Skips("it takes ten minutes"),
        check: steady,
    },
    Row {
        name: "7.3-steady-sim",
        promise: "12 simulated nodes with 1 % loss, of which two are seen through two relays alone, for 10 min in which each relay once leads nothing for 20 s: nobody calls a hidden node down, with none of 20 seeds",
        sabotage: "the relays lead nothing at the same time",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: steady_sim,
    },
];

const SEEN: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_secs(600);
const SABOTAGED: Duration = Duration::from_secs(60);
const SEEDS: u64 = 20;

/// Loses one packet of a hundred, each way.
fn lose(machine: &Namespace) -> Result<()> {
    machine.nft(
        "table inet lossy { \
         chain in { type filter hook input priority 0; iifname eth0 numgen random mod 100 < 1 drop; }; \
         chain out { type filter hook output priority 0; oifname eth0 numgen random mod 100 < 1 drop; }; }",
    )
}

fn steady(run: &Run) -> Result<String> {
    let segment = Segment::new(5)?;
    let (public, routers) = segment.machines().split_at(3);
    let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
    run.scenario(|lab| {
        let mut mesh = kept("a mesh", Hidden::new(lab, public, [&left, &right], true))?;
        until("each seeing the other", SEEN, || {
            let [a, b] = &mesh.nodes;
            Ok(a.state_of("b")?.as_deref() == Some("alive") && b.state_of("a")?.as_deref() == Some("alive"))
        })?;
        for relay in &public[1..] {
            lose(relay)?;
        }
        let (began, mut looks, mut doubts) = (Instant::now(), 0, 0);
        let length = if run.sabotaged { SABOTAGED } else { STEADY };
        while began.elapsed() < length {
            if run.sabotaged && looks == 10 {
                mesh.nodes[1].kill9()?;
            }
            let seen = if run.sabotaged && looks >= 10 { 1 } else { 2 };
            for (node, other) in mesh.nodes.iter().zip(["b", "a"]).take(seen) {
                let state = node.state_of(other)?.unwrap_or_default();
                promise!(
                    state == "alive" || state == "suspect",
                    "{} holds {other} for {state} after {:.0} s",
                    node.name,
                    began.elapsed().as_secs_f64()
                );
                doubts += usize::from(state == "suspect");
            }
            looks += 1;
            std::thread::sleep(Duration::from_millis(500));
        }
        for (node, other) in mesh.nodes.iter().zip(["b", "a"]) {
            let events = node.ok(&["events"])?;
            let downs =
                events.lines().filter(|line| line.contains(&format!(" {other} ")) && line.contains("down"));
            promise!(downs.count() == 0, "{} says {events}", node.name);
        }
        Ok(format!("{:.0} s, {doubts} of {} looks found a suspect", began.elapsed().as_secs_f64(), 2 * looks))
    })
}

fn steady_sim(run: &Run) -> Result<String> {
    let silence = if run.sabotaged { Silence::Together } else { Silence::OneAfterTheOther };
    let mut downs = Vec::new();
    for seed in 0..SEEDS {
        downs.push(relayed(seed, STEADY, silence)?);
    }
    promise!(downs.iter().all(|downs| *downs == 0), "false downs by seed: {downs:?}");
    Ok(format!("no false down with {SEEDS} of {SEEDS} seeds"))
}
