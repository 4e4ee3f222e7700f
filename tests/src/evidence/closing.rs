//! Direct ways that close again while a relay remains.
//!
//! Owns: the way, and when it closes. Must not know: how daemons notice. Driven by: `evidence`. Needs root: each machine is a
//! network namespace.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::carried::kept;
use super::circuits::{Hidden, behind, opened, paths};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::Node;
use crate::promise;
use crate::wait::{throughout, until};

pub(super) const ROWS: &[Row] = &[Row {
    name: "7.3-closed-again",
    promise: "The direct way between two nodes behind translators closes without a word, for UDP and TCP, and the relay that both keep remains: within 6 s a new flow of either passes by the relay, later ones within 1 s, and for 20 s neither calls the other down",
    sabotage: "the relay has left before",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: closed_again,
}];

const SEEN: Duration = Duration::from_secs(20);
const DIRECT: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(6);
const LATER: Duration = Duration::from_secs(1);
const CALM: Duration = Duration::from_secs(20);
const BY_RELAY: &str = "relay relay0";

/// Opens the way in through a router.
fn open(router: &Namespace) -> Result<()> {
    router.nft(
        "table ip opened { chain in { type nat hook prerouting priority -100; \
         iifname eth0 meta l4proto { tcp, udp } th dport 4677 dnat to 192.168.9.2; }; }",
    )
}

/// Closes all ways between what is behind a router and an address, also those of connections that it remembers.
fn close(router: &Namespace, address: &str) -> Result<()> {
    router.nft(&format!(
        "table ip closed {{ chain through {{ type filter hook forward priority 0; \
         ip saddr {address} drop; ip daddr {address} drop; }}; }}"
    ))
}

/// Returns what a node calls the path of its control connection to another one.
fn control(node: &Node, other: &str) -> Result<String> {
    let nodes = node.json(&["nodes"])?;
    let row = nodes.as_array().into_iter().flatten().find(|row| row["name"] == other).cloned();
    Ok(row.and_then(|row| row["path"]["kind"].as_str().map(str::to_owned)).unwrap_or_default())
}

fn closed_again(run: &Run) -> Result<String> {
    let segment = Segment::new(4)?;
    let (public, routers) = segment.machines().split_at(2);
    let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
    run.scenario(|lab| {
        let mut mesh = kept("a mesh", Hidden::new(lab, public, [&left, &right], true))?;
        open(&routers[1])?;
        until("a direct way", DIRECT, || {
            let _flow = mesh.call(&left, SEEN)?;
            let [a, b] = &mesh.nodes;
            let controls = [control(a, "b")?, control(b, "a")?];
            Ok(controls == ["direct", "inbound"] && paths(a)?.iter().any(|path| path == "quic"))
        })?;
        if run.sabotaged {
            mesh.relays[0].stop()?;
        }
        close(&routers[1], &Segment::address(2).to_string())?;
        let [a, b] = &mesh.nodes;
        let mut took = Vec::new();
        for (machine, side, node) in [(&left, 0, a), (&right, 1, b)] {
            let listener = &mesh.listeners[1 - side];
            let (flow, first) = kept("a flow after it", opened(machine, mesh.vips[side], listener, AGAIN))?;
            promise!(first <= AGAIN, "the first flow of {} took {first:?}", node.name);
            let path = paths(node)?;
            promise!(path.iter().any(|path| path == BY_RELAY), "the paths of flows are {path:?}");
            drop(flow);
            took.push(first);
        }
        throughout("neither being called down", CALM, || {
            let states = [a.state_of("b")?, b.state_of("a")?];
            Ok(states.iter().all(|state| state.as_deref().is_some_and(|state| state != "down")))
        })?;
        let mut later = Duration::ZERO;
        for _ in 0..5 {
            let (_flow, next) = kept("a later flow", mesh.call(&left, LATER))?;
            later = later.max(next);
        }
        let controls = [control(a, "b")?, control(b, "a")?];
        promise!(controls == ["relay", "relay"], "the control connections are {controls:?}");
        let longest = took.iter().max().context("two flows")?;
        Ok(format!(
            "the first flows passed after {:.1} s at most, 5 later ones after {:.2} s at most",
            longest.as_secs_f64(),
            later.as_secs_f64()
        ))
    })
}
