//! What `ping` and `doctor` say of paths that work and of those that do not.
//!
//! Owns: machines with good, dead, refusing and foreign addresses, and faults of networks. Must not know: how daemons find
//! out. Driven by: `evidence`. Needs root: each machine is a network namespace.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::addresses::{metric, publish};
use super::carried::{Pair, both_ways, listen};
use super::sizes::Routed;
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::Node;
use crate::promise;
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.7-ping",
        promise: "ping NODE says within 5 s how long the node takes to answer over its connection and at each of its addresses, by UDP and by TCP, and of the others that nobody answers, that nobody listens, or that somebody else is there; it fails with the fix when no way is left",
        sabotage: "the node is cut off before",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: ping,
    },
    Row {
        name: "7.7-doctor",
        promise: "doctor finds nothing in a mesh that is well, and names an MTU hole with its size and peer, a node that is only outbound, a relay that nobody can dial, a member that no way leads to, and closed UDP, each with its fix",
        sabotage: "the networks are well",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: doctor,
    },
];

const SEEN: Duration = Duration::from_secs(30);
const WITHIN: Duration = Duration::from_secs(5);

fn ping(run: &Run) -> Result<String> {
    let segment = Segment::new(3)?;
    let [a, b, other] = segment.machines() else { unreachable!("three machines were made") };
    run.scenario(|lab| {
        let mut here = lab.node_in("here", a)?;
        here.init("west")?;
        // Of its addresses one is good, one is another's, at one nobody listens, one leads nowhere.
        let list = "10.77.0.11,10.77.0.12,10.77.0.11:4699,10.77.0.99";
        let mut there = lab.node_in("there", b)?.with("GOSSAMER_ADVERTISE", list);
        there.join(&here.token(&[])?)?;
        let mut stranger = lab.node_in("stranger", other)?;
        stranger.init("east")?;
        here.sees("there", "alive", SEEN)?;
        until("its card", SEEN, || Ok(here.json(&["nodes"])?.to_string().contains("10.77.0.99")))?;
        if run.sabotaged {
            b.isolate()?;
        }
        let began = Instant::now();
        let said = here.cli(&["ping", "there", "--json"])?;
        let took = began.elapsed();
        let row: Value = serde_json::from_str(&said.stdout).with_context(|| said.stderr.clone())?;
        let word = |way: &str| {
            let tried = row["tried"].as_array().into_iter().flatten().find(|tried| tried["way"] == way);
            tried.and_then(|tried| tried["word"].as_str()).unwrap_or("not tried").to_owned()
        };
        promise!(row["connection"]["word"] == "ok", "over its connection: {}", row["connection"]);
        let expected = [
            ("udp 10.77.0.11:4677", "ok"),
            ("tcp 10.77.0.11:4677", "ok"),
            ("udp 10.77.0.12:4677", "wrong_identity"),
            // Asked for somebody else's name it hangs up without a word.
            ("tcp 10.77.0.12:4677", "broken"),
            ("udp 10.77.0.11:4699", "refused"),
            ("tcp 10.77.0.11:4699", "refused"),
            ("udp 10.77.0.99:4677", "no_answer"),
        ];
        for (way, wanted) in expected {
            promise!(
                word(way) == wanted || (wanted == "no_answer" && word(way) == "no_route"),
                "{way}: {}",
                word(way)
            );
        }
        promise!(took <= WITHIN && said.code == Some(0), "it took {took:?} and ended with {:?}", said.code);
        let counted = metric(&there, "gossamer_handshakes_refused_total{reason=\"connection\"}")?;
        promise!(counted == 0, "a look counts as {counted} refused handshakes");
        for _ in 0..3 {
            here.ok(&["ping", "there"])?;
        }
        promise!(here.state_of("there")?.as_deref() == Some("alive"), "it is {:?}", here.state_of("there")?);
        there.kill9()?;
        here.sees("there", "down", SEEN)?;
        let failed = here.cli(&["ping", "there"])?;
        promise!(
            failed.code == Some(1) && failed.stderr.contains("no way leads to there"),
            "it says {}",
            failed.stderr
        );
        let unknown = here.cli(&["ping", "nobody"])?;
        promise!(unknown.code == Some(4), "of an unknown node it ends with {:?}", unknown.code);
        Ok(format!("4 of 4 addresses named with their outcome after {:.1} s", took.as_secs_f64()))
    })
}

/// Returns what doctor says, with its exit code.
fn diagnosis(node: &Node) -> Result<(Option<i32>, String)> {
    let said = node.cli(&["doctor"])?;
    Ok((said.code, said.stdout))
}

/// Waits until doctor names something, with its fix.
fn names(node: &Node, what: &str, fix: &str) -> Result<Duration> {
    until(&format!("doctor naming {what}"), SEEN, || {
        let (code, text) = diagnosis(node)?;
        Ok(code == Some(1) && text.contains(what) && text.contains(fix))
    })
}

fn doctor(run: &Run) -> Result<String> {
    let hole = mtu_hole(run).context("MTU hole")?;
    let outbound = only_outbound(run).context("only outbound")?;
    let apart = no_way(run).context("no way")?;
    let closed = udp_closed(run).context("UDP closed")?;
    let [outbound, relay] = outbound.map(|took| took.as_secs_f64());
    Ok(format!(
        "an MTU hole named {:.1} s after 16 MiB, only outbound after {outbound:.1} s, a hidden relay after {relay:.1} s, a member without a way after {:.1} s, closed UDP after {:.1} s",
        hole.as_secs_f64(),
        apart.as_secs_f64(),
        closed.as_secs_f64()
    ))
}

fn mtu_hole(run: &Run) -> Result<Duration> {
    let routed = Routed::new()?;
    run.scenario(|lab| {
        let pair = Pair::on(lab, &routed.inner, routed.outer())?;
        for node in [&pair.server, &pair.caller] {
            let (_, text) = diagnosis(node)?;
            let network = ["MTU hole", "only outbound", "UDP closed"];
            promise!(
                !network.iter().any(|what| text.contains(what)),
                "of a mesh that is well it says {text}"
            );
        }
        let (listener, target) = routed.outer().enter(listen)??;
        let vip = pair.offer_orders(target)?;
        if !run.sabotaged {
            routed.swallow(1_228)?;
        }
        routed.inner.enter(|| both_ways(&listener, vip, 16, || Ok(())))??;
        names(
            &pair.server,
            "MTU hole: packets of more than 1200 bytes are lost on the path to caller",
            "ICMP",
        )
    })
}

fn only_outbound(run: &Run) -> Result<[Duration; 2]> {
    let segment = Segment::new(3)?;
    publish(&segment)?;
    let [router, peers @ ..] = segment.machines() else { unreachable!("three machines were made") };
    let inner = Namespace::new("inner")?;
    inner.behind(router)?;
    router.nft(
        "table ip home { chain out { type nat hook postrouting priority 100; oifname eth0 masquerade random; }; }",
    )?;
    run.scenario(|lab| {
        let mut one = lab.node_in("one", &peers[0])?;
        one.init("west")?;
        let mut two = lab.node_in("two", &peers[1])?;
        two.join(&one.token(&[])?)?;
        promise!(!diagnosis(&two)?.1.contains("only outbound"), "of a public node: {}", diagnosis(&two)?.1);
        let mut hidden = lab.node_in("hidden", &inner)?;
        hidden.join(&one.token(&[])?)?;
        if run.sabotaged {
            hidden.stop()?;
            return Ok([names(&two, "only outbound", "advertise")?; 2]);
        }
        let outbound =
            names(&hidden, "only outbound: this node dialled all of its 2 connections", "advertise")?;
        hidden.stop()?;
        let mut relay = lab.node_in("relay", &inner)?;
        relay.join(&one.token(&["--role", "relay"])?)?;
        Ok([outbound, names(&relay, "hidden relay: this node has the role of a relay", "UDP and TCP 4677")?])
    })
}

fn no_way(run: &Run) -> Result<Duration> {
    let segment = Segment::new(3)?;
    let machines = segment.machines();
    run.scenario(|lab| {
        let mut one = lab.node_in("one", &machines[0])?;
        one.init("west")?;
        let mut two = lab.node_in("two", &machines[1])?;
        two.join(&one.token(&[])?)?;
        if !run.sabotaged {
            let other = Segment::address(2);
            machines[1].nft(&format!(
                "table ip apart {{ chain in {{ type filter hook input priority 0; ip saddr {other} drop; }}; }}"
            ))?;
        }
        let mut three = lab.node_in("three", &machines[2])?;
        three.join(&one.token(&[])?)?;
        two.sees("three", "alive", SEEN)?;
        names(&two, "no way: others see three alive", "--role relay")
    })
}

fn udp_closed(run: &Run) -> Result<Duration> {
    let segment = Segment::new(3)?;
    let machines = segment.machines();
    run.scenario(|lab| {
        let mut one = lab.node_in("one", &machines[0])?;
        one.init("west")?;
        let mut two = lab.node_in("two", &machines[1])?;
        two.join(&one.token(&[])?)?;
        let mut cut = lab.node_in("cut", &machines[2])?;
        cut.join(&one.token(&[])?)?;
        cut.sees("two", "alive", SEEN)?;
        // What it knows is on disk by then.
        cut.stop()?;
        if !run.sabotaged {
            machines[2].nft("table ip closed { chain in { type filter hook input priority 0; iif != lo meta l4proto udp drop; }; }")?;
        }
        cut.run()?;
        names(&cut, "UDP closed: all 2 connections are lanes over TCP", "open UDP to port 4677")
    })
}
