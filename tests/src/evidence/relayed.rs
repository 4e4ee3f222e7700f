//! Members that are seen through relays alone: whether they live.
//!
//! Owns: how long, with what loss, and the simulated mesh of it. Must not know: the bytes of circuits. Driven by: `evidence`.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::carried::kept;
use super::circuits::{Hidden, behind, opened, paths};
use super::lanes::flows;
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::promise;
use crate::sim::relayed::{Silence, relayed};
use crate::wait::{throughout, until};

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
    Row {
        name: "7.3-relay-by-tcp",
        promise: "Two nodes behind translators of addresses, for which UDP is closed, and a member with the role of a relay between them that they reach by TCP: within 30 s each calls a service of the other, 16 MiB pass each way with the same SHA-256, half-closes and resets arrive, and for 20 s each sees the other alive",
        sabotage: "no member has the role",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: by_tcp,
    },
];

const SEEN: Duration = Duration::from_secs(30);
const CALM: Duration = Duration::from_secs(20);
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

fn by_tcp(run: &Run) -> Result<String> {
    let segment = Segment::new(4)?;
    let (public, routers) = segment.machines().split_at(2);
    let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
    for machine in [&left, &right] {
        machine.nft(
            "table ip closed { chain out { type filter hook output priority 0; oifname eth0 meta l4proto udp drop; }; }",
        )?;
    }
    run.scenario(|lab| {
        let mesh = kept("a mesh", Hidden::new(lab, public, [&left, &right], !run.sabotaged))?;
        let [a, b] = &mesh.nodes;
        let mut words = Vec::new();
        for (side, machine) in [&left, &right].into_iter().enumerate() {
            let (vip, listener) = (mesh.vips[side], &mesh.listeners[1 - side]);
            let (flow, took) = kept("a flow", opened(machine, vip, listener, SEEN))?;
            let path = paths(&mesh.nodes[side])?;
            promise!(path == ["relay relay0"], "the paths of flows are {path:?}");
            drop(flow);
            let moved = kept("flows", machine.enter(|| flows(vip, listener, run.times(16, 16)))?)?;
            words.push(format!("the first flow after {:.1} s, {moved}", took.as_secs_f64()));
        }
        throughout("each seeing the other alive", CALM, || {
            Ok(a.state_of("b")?.as_deref() == Some("alive") && b.state_of("a")?.as_deref() == Some("alive"))
        })?;
        for node in [a, b] {
            let pinged = node.json(&["ping", "relay0"])?;
            let way = pinged["connection"]["way"].as_str().unwrap_or_default().to_owned();
            promise!(way.starts_with("lane "), "{} reaches the relay otherwise: {pinged}", node.name);
        }
        Ok(format!("from a {}; from b {}", words[0], words[1]))
    })
}
