//! Addresses: where nodes are found, and what an address costs that leads to somebody else or nowhere.
//!
//! Owns: machines with shared, silent, translated and forbidden addresses. Must not know: how daemons dial. Driven by:
//! `evidence`. Needs root: each machine is a network namespace.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::hostile::Hostile;
use super::{Ci, Needs, Row, Run};
use crate::api::Api;
use crate::netns::{Namespace, Segment};
use crate::process::Node;
use crate::promise;
use crate::quic::{Credentials, identity_of, send_frames, talk_garbage};
use crate::wait::{throughout, until};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.1-seen",
        promise: "Behind a translator of addresses, what one peer sees is in no card; what two agree to see is in the card within 5 s, first in new tokens, and a third node joins and connects by it alone",
        sabotage: "the second peer has left",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: seen,
    },
    Row {
        name: "7.1-private-twice",
        promise: "The first address of an issuer is also that of a daemon of another mesh near the joiner: it joins and connects at once all the same, the stranger hears no request, the failed checks are counted, and in 20 s without the issuer there are two at most",
        sabotage: "the issuer's other address is cut off as well",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: private_twice,
    },
    Row {
        name: "7.1-families",
        promise: "Of a node with IPv4 and IPv6 addresses either family may be dead, without a word: who joins does so within 2 s, and two nodes find each other again within 3 s",
        sabotage: "both families are dead",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: families,
    },
    Row {
        name: "7.1-deny-list",
        promise: "A member that advertises link-local, metadata, multicast, unspecified, loopback and virtual addresses: each is refused, counted by its reason and named with the member, nothing is sent there, and it is reached at its good address",
        sabotage: "the member advertises only its good address",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: deny_list,
    },
];

const SEEN: Duration = Duration::from_secs(20);
const JOINED: Duration = Duration::from_secs(2);
const FOUND: Duration = Duration::from_secs(3);
const AGREED: Duration = Duration::from_secs(5);
/// Where the daemons of these checks listen.
const PORT: u16 = 4_677;
/// In this time a node that comes back looks for another one six times.
const ALONE: Duration = Duration::from_secs(20);

/// Returns the value of a metric, 0 when it is not there.
pub(super) fn metric(node: &Node, name: &str) -> Result<u64> {
    let (_, metrics) = Api::connect(&node.socket())?.request("GET", "/v1/metrics", &Value::Null)?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.and_then(|number| number.parse().ok()).unwrap_or_default())
}

fn advertised(node: &Node) -> Result<Vec<String>> {
    let list = node.status()?["advertised"].clone();
    Ok(list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect())
}

/// Returns the addresses of a node as another one knows them.
fn known(node: &Node, of: &str) -> Result<Vec<String>> {
    let nodes = node.json(&["nodes"])?;
    let row = nodes.as_array().into_iter().flatten().find(|row| row["name"] == of).cloned();
    let list = row.map(|row| row["addresses"].clone()).unwrap_or_default();
    Ok(list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect())
}

/// A machine with a private network, behind one that translates its public address: what clouds do.
fn behind(router: &Namespace) -> Result<Namespace> {
    let inner = Namespace::new("inner")?;
    inner.behind(router)?;
    router.nft(
        "table ip cloud { \
         chain in { type nat hook prerouting priority -100; ip daddr 198.51.100.10 udp dport 4677 dnat to 192.168.9.2; }; \
         chain out { type nat hook postrouting priority 100; oifname eth0 snat to 198.51.100.10; }; }",
    )?;
    Ok(inner)
}

/// Gives the machines of a segment addresses that count as public: 198.51.100.10 and so on.
pub(super) fn publish(segment: &Segment) -> Result<()> {
    for (index, machine) in segment.machines().iter().enumerate() {
        machine.ip(&["addr", "add", &format!("198.51.100.{}/24", 10 + index), "dev", "eth0"])?;
        // The one that a segment gives is private; nobody needs it here.
        machine.ip(&["addr", "del", &format!("10.77.0.{}/24", 10 + index), "dev", "eth0"])?;
    }
    Ok(())
}

fn seen(run: &Run) -> Result<String> {
    let segment = Segment::new(4)?;
    publish(&segment)?;
    let [router, peers @ ..] = segment.machines() else { unreachable!("four machines were made") };
    let inner = behind(router)?;
    let public = format!("198.51.100.10:{PORT}");
    run.scenario(|lab| {
        let mut hidden = lab.node_in("hidden", &inner)?;
        hidden.init("west")?;
        promise!(advertised(&hidden)? == ["192.168.9.2:4677"], "at first: {:?}", advertised(&hidden)?);
        let mut nodes = Vec::new();
        for (index, machine) in peers.iter().enumerate().take(2) {
            let mut peer = lab.node_in(&format!("peer{index}"), machine)?;
            if index == 1 && run.sabotaged {
                break;
            }
            peer.join(&hidden.token(&["--address", &public])?)?;
            hidden.sees(&peer.name, "alive", SEEN)?;
            if index == 0 {
                throughout("a card without what one peer says", FOUND, || {
                    Ok(!advertised(&hidden)?.contains(&public))
                })?;
            }
            nodes.push(peer);
        }
        let took = until("what two peers see being advertised", AGREED, || {
            Ok(advertised(&hidden)?.first() == Some(&public))
        })?;
        for node in &nodes {
            until("it being in the card", SEEN, || Ok(known(node, "hidden")?.first() == Some(&public)))?;
        }
        let created = hidden.json(&["token", "create"])?;
        promise!(created["addresses"][0] == public.as_str(), "a token names {}", created["addresses"]);
        promise!(created["warnings"] == Value::Array(Vec::new()), "it warns: {}", created["warnings"]);
        let mut third = lab.node_in("third", &peers[2])?;
        third.join(created["token"].as_str().context("a token")?)?;
        third.sees("hidden", "alive", SEEN)?;
        Ok(format!(
            "in no card with one peer, in the card {:.1} s after the second one; a third joined by it",
            took.as_secs_f64()
        ))
    })
}

fn private_twice(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [a, b] = segment.machines() else { unreachable!("two machines were made") };
    // Both have a network of their own with the same addresses: the issuer is 10.9.0.5 in one of them, a stranger is in the other.
    a.ip(&["link", "add", "lan", "type", "bridge"])?;
    a.ip(&["addr", "add", "10.9.0.5/24", "dev", "lan"])?;
    a.ip(&["link", "set", "lan", "up"])?;
    let near = Namespace::new("near")?;
    let ends = ["type", "veth", "peer", "name", "lan", "netns", b.name()];
    near.ip(&[&["link", "add", "eth0"], &ends[..]].concat())?;
    near.ip(&["addr", "add", "10.9.0.5/24", "dev", "eth0"])?;
    near.ip(&["link", "set", "eth0", "up"])?;
    b.ip(&["addr", "add", "10.9.0.1/24", "dev", "lan"])?;
    b.ip(&["link", "set", "lan", "up"])?;
    run.scenario(|lab| {
        let mut stranger = lab.node_in("stranger", &near)?;
        stranger.init("east")?;
        let mut issuer = lab.node_in("issuer", a)?.with("GOSSAMER_ADVERTISE", "10.9.0.5");
        issuer.init("west")?;
        let token = issuer.token(&[])?;
        promise!(advertised(&issuer)? == ["10.9.0.5:4677", "10.77.0.10:4677"], "{:?}", advertised(&issuer)?);
        if run.sabotaged {
            b.cut(Segment::address(0))?;
        }
        let mut joiner = lab.node_in("joiner", b)?;
        let began = Instant::now();
        joiner.join(&token)?;
        joiner.sees("issuer", "alive", SEEN)?;
        let joined = began.elapsed();
        promise!(joined < SEEN / 4, "it took {joined:?} to join and connect");
        issuer.stop()?;
        joiner.sees("issuer", "left", SEEN)?;
        issuer.run()?;
        let again = joiner.sees("issuer", "alive", SEEN)?;
        issuer.kill9()?;
        joiner.stop()?;
        joiner.run()?;
        let wrong = "gossamer_dial_attempts_failed_total{reason=\"wrong_identity\"}";
        until("a check of the stranger", ALONE, || Ok(metric(&joiner, wrong)? > 0))?;
        throughout("a stranger that is left alone", ALONE, || Ok(metric(&joiner, wrong)? <= 2))?;
        let (counted, dials) = (metric(&joiner, wrong)?, metric(&joiner, "gossamer_dial_failures_total")?);
        promise!(dials >= 3, "the issuer was looked for {dials} times only");
        let told = metric(&stranger, "gossamer_joins_total{outcome=\"refused\"}")?
            + metric(&stranger, "gossamer_joins_total{outcome=\"admitted\"}")?;
        promise!(told == 0, "the stranger was asked {told} times");
        promise!(stranger.state_of("joiner")?.is_none(), "the stranger knows the joiner");
        Ok(format!(
            "joined and connected after {:.1} s, again {:.1} s after a restart; {counted} failed checks in {dials} dials and {} s without the issuer",
            joined.as_secs_f64(),
            again.as_secs_f64(),
            ALONE.as_secs()
        ))
    })
}

fn families(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    publish(&segment)?;
    let [a, b] = segment.machines() else { unreachable!("two machines were made") };
    for (index, machine) in [a, b].into_iter().enumerate() {
        let _ = machine.parameter("ipv6/conf/all/disable_ipv6", "0");
        machine.ip(&["addr", "add", &format!("2001:db8:7::{}/64", 10 + index), "dev", "eth0", "nodad"])?;
    }
    let mut rows = Vec::new();
    for dead in ["ip", "ip6"] {
        let words = run.scenario(|lab| {
            let mut issuer = lab.node_in("issuer", a)?;
            issuer.init("west")?;
            let list = advertised(&issuer)?;
            promise!(list == ["198.51.100.10:4677", "[2001:db8:7::10]:4677"], "it is advertised at {list:?}");
            let token = issuer.token(&[])?;
            let drop = |family: &str| {
                b.nft(&format!(
                    "table {family} dead {{ chain in {{ type filter hook input priority 0; iif != lo udp sport {PORT} drop; udp dport {PORT} drop; }}; \
                     chain out {{ type filter hook output priority 0; oif != lo udp dport {PORT} drop; udp sport {PORT} drop; }}; }}"
                ))
            };
            drop(dead)?;
            if run.sabotaged {
                drop(if dead == "ip" { "ip6" } else { "ip" })?;
            }
            let mut joiner = lab.node_in("joiner", b)?;
            let began = Instant::now();
            joiner.ok(&["join", &token, "--node", "joiner", "--no-start"])?;
            let joined = began.elapsed();
            promise!(joined <= JOINED, "{dead} dead: it took {joined:?} to join");
            joiner.run()?;
            joiner.sees("issuer", "alive", SEEN)?;
            joiner.stop()?;
            issuer.sees("joiner", "left", SEEN)?;
            joiner.run()?;
            let found = joiner.sees("issuer", "alive", FOUND)?;
            Ok(format!("{dead} dead: joined after {:.1} s, found after {:.1} s", joined.as_secs_f64(), found.as_secs_f64()))
        });
        b.flush_rules()?;
        rows.push(words?);
    }
    Ok(rows.join("; "))
}

/// Addresses and the reasons for which they are refused.
const BAD: &[(&str, &str)] = &[
    ("169.254.7.7:53", "link_local"),
    ("169.254.169.254:80", "metadata"),
    ("224.0.0.251:5353", "multicast"),
    ("0.0.0.0:4677", "unspecified"),
    ("127.0.0.1:4677", "loopback"),
    ("127.240.0.53:53", "pool"),
    ("[::ffff:169.254.169.254]:80", "metadata"),
];

fn deny_list(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [a, b] = segment.machines() else { unreachable!("two machines were made") };
    let member = Segment::address(1);
    // Whatever the daemon would send there is counted: by the system on loopback, else by where it leaves.
    a.ip(&["route", "add", "default", "dev", "eth0"])?;
    a.nft(&format!(
        "table inet count {{ chain out {{ type filter hook output priority 0; \
         ip daddr {{ 169.254.0.0/16, 224.0.0.0/4, 127.240.0.0/16 }} udp sport {PORT} counter; \
         ip daddr 127.0.0.1 udp sport {PORT} udp dport {PORT} counter; }}; }}"
    ))?;
    run.scenario(|lab| {
        let mut node = lab.node_in("honest", a)?;
        node.init("west")?;
        let hostile = lab.node_in("hostile", b)?;
        hostile.ok(&["join", &node.token(&[])?, "--node", "hostile", "--no-start"])?;
        let good: SocketAddr = (member, PORT).into();
        let member = Hostile(identity_of(&hostile.state_dir())?);
        let mut addresses: Vec<SocketAddr> = vec![good];
        if !run.sabotaged {
            addresses.extend(BAD.iter().map(|(text, _)| text.parse::<SocketAddr>().expect("an address")));
        }
        let card = member.advertising(1, addresses)?;
        let (server, credentials) = ((Segment::address(0), PORT).into(), Credentials::of_identity(&member.0));
        b.enter(|| send_frames(server, &credentials, [card].into_iter(), FOUND))??;
        // It ends its connection in a way that is noticed at once.
        b.enter(|| talk_garbage(server, &credentials))??;
        judge(&node, &member.0.node().to_string(), a, good)
    })
}

fn judge(node: &Node, id: &str, machine: &Namespace, good: SocketAddr) -> Result<String> {
    until("the card being known", SEEN, || Ok(!known(node, "hostile")?.is_empty()))?;
    promise!(known(node, "hostile")? == [good.to_string()], "it is known at {:?}", known(node, "hostile")?);
    for (text, reason) in BAD {
        let counted = metric(node, &format!("gossamer_card_addresses_denied_total{{reason=\"{reason}\"}}"))?;
        let wanted = BAD.iter().filter(|(_, other)| other == reason).count() as u64;
        promise!(counted == wanted, "{text}: {counted} counted as {reason}");
    }
    let status = node.ok(&["status"])?;
    let finding = status.lines().find(|line| line.contains("node hostile advertises"));
    let finding = finding.with_context(|| format!("no finding in {status}"))?;
    promise!(
        finding.contains(&format!("{} addresses that are never dialled", BAD.len())),
        "status says {finding}"
    );
    let events = node.ok(&["events"])?;
    // The card comes just before its name: until then the id stands for it.
    let is_its = |line: &&str| line.contains("-> denied") && (line.contains("hostile") || line.contains(id));
    let line = events.lines().find(is_its);
    promise!(line.is_some_and(|line| line.contains("169.254.169.254:80 (metadata)")), "events say {events}");
    // Its connection has ended: it is looked for, and at the good address only.
    let failures = "gossamer_dial_attempts_failed_total{reason=\"no_answer\"}";
    until("the node looking for it", SEEN, || Ok(metric(node, failures)? > 0))?;
    let sent = machine.nft_says("list table inet count")?;
    let counters: Vec<_> = sent.lines().filter(|line| line.contains("counter")).collect();
    promise!(
        counters.len() == 2 && counters.iter().all(|line| line.contains("packets 0 ")),
        "something was sent: {counters:?}"
    );
    Ok(format!("{0} of {0} refused, counted and named, 0 packets sent there", BAD.len()))
}
