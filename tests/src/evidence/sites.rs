//! Sites: private networks with several nodes each, behind one translator of addresses, with relays between.
//!
//! Owns: the networks and translators, what happens to them and to the relays. Must not know: the bytes of circuits. Driven by:
//! `evidence`. Needs root: each machine is a network namespace.
//!
//! All sites have the same network and the same addresses in it, as homes and branch offices have.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::addresses::publish;
use super::carried::kept;
use super::oneway::{doubts, echoing, expose, find, id_of, path, talking};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{Lab, Node};
use crate::promise;
use crate::targets::exchange;
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.3-sites",
        promise: "Two sites of two nodes each, with the same private addresses, each behind one translator, and a member with the role of a relay between them: although neighbours dial each other over their own network, each node names the relay in its card, calls both services of the other site within 20 s by way of the relay and its neighbour's without it",
        sabotage: "no member has the role",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: sites,
    },
    Row {
        name: "7.3-relays-restart",
        promise: "Behind translators that keep ports: a relay is killed and starts again at once, so that it dials first, through what the hidden nodes had opened; it leads to both again within 20 s, and when the other relay is killed then, calls pass each way within 20 s through the one that has started again",
        sabotage: "the relay does not start again",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: relays_restart,
    },
    Row {
        name: "7.3-both-flushed",
        promise: "The translators in front of both nodes forget all flows and give other ports while clients of both sides talk through a relay: each flow goes on, or ends, within 3 s, neither node is taken for suspect or down, both are the same members, and new flows pass within 1 s",
        sabotage: "the translators stay away",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: both_flushed,
    },
];

const CALLED: Duration = Duration::from_secs(20);
const ENDED: Duration = Duration::from_secs(3);
const NEW: Duration = Duration::from_secs(1);
/// Longer than a hidden node takes to look for its relays.
const LOOKED: Duration = Duration::from_secs(6);

/// Makes machines with a network of their own behind a router, which translates and lets nothing in, and nothing to `other`.
fn site(router: &Namespace, other: &str, masquerade: &str, machines: u8) -> Result<Vec<Namespace>> {
    router.ip(&["link", "add", "lan", "type", "bridge"])?;
    router.ip(&["addr", "add", "192.168.1.1/24", "dev", "lan"])?;
    router.ip(&["link", "set", "lan", "up"])?;
    router.parameter("ipv4/ip_forward", "1")?;
    router.nft(&format!(
        "table ip translator {{ \
         chain out {{ type nat hook postrouting priority 100; oifname eth0 {masquerade}; }}; \
         chain through {{ type filter hook forward priority 0; ip daddr {other} drop; }}; \
         chain in {{ type filter hook input priority 0; iifname eth0 meta l4proto {{ tcp, udp }} drop; }}; }}"
    ))?;
    let inside = |index: u8| {
        let (machine, port) = (Namespace::new(&format!("i{index}"))?, format!("h{index}"));
        let ends = ["type", "veth", "peer", "name", &port, "netns", router.name()];
        machine.ip(&[&["link", "add", "eth0"], &ends[..]].concat())?;
        machine.ip(&["addr", "add", &format!("192.168.1.{}/24", 10 + index), "dev", "eth0"])?;
        machine.ip(&["link", "set", "eth0", "up"])?;
        machine.ip(&["route", "add", "default", "via", "192.168.1.1"])?;
        router.ip(&["link", "set", &port, "master", "lan", "up"])?;
        Ok(machine)
    };
    (0..machines).map(inside).collect()
}

/// The networks: one that all can use, with an issuer, relays and two routers, and the machines behind these.
struct Networks {
    segment: Segment,
    inner: Vec<Namespace>,
}

impl Networks {
    /// The first half of the machines is in one site, the other in the other.
    fn new(relays: u8, machines: u8, masquerade: &str) -> Result<Self> {
        let segment = Segment::new(relays + 3)?;
        publish(&segment)?;
        let (routers, mut inner) = (segment.machines().split_at(relays as usize + 1).1, Vec::new());
        for (index, router) in routers.iter().enumerate() {
            let other = format!("198.51.100.{}", 10 + usize::from(relays) + 2 - index);
            inner.extend(site(router, &other, masquerade, machines)?);
        }
        Ok(Self { segment, inner })
    }

    fn routers(&self) -> &[Namespace] {
        self.segment.machines().split_at(self.segment.machines().len() - 2).1
    }

    /// Plays with programs on all inner machines that send back what they read.
    fn play(
        &self,
        run: &Run,
        has_role: bool,
        play: impl FnOnce(Mesh<'_>) -> Result<String>,
    ) -> Result<String> {
        let machines: Vec<_> = self.inner.iter().collect();
        echoing(&machines, || run.scenario(|lab| play(kept("a mesh", Mesh::new(lab, self, has_role))?)))
    }
}

/// The daemons: those inside are `a1`, `b1` and so on, each with a service that is named for it.
struct Mesh<'a> {
    networks: &'a Networks,
    _issuer: Node,
    relays: Vec<Node>,
    nodes: Vec<Node>,
}

impl<'a> Mesh<'a> {
    fn new(lab: &Lab, networks: &'a Networks, has_role: bool) -> Result<Self> {
        let public = networks.segment.machines();
        let (first, others) = public.split_first().context("a machine")?;
        let mut issuer = lab.node_in("issuer", first)?;
        issuer.init("west")?;
        let (mut relays, mut nodes) = (Vec::new(), Vec::new());
        for (index, machine) in others.iter().take(others.len() - 2).enumerate() {
            let mut relay = lab.node_in(&format!("relay{index}"), machine)?;
            let role: &[&str] = if has_role { &["--role=relay"] } else { &[] };
            relay.join(&issuer.token(role)?)?;
            relays.push(relay);
        }
        let half = networks.inner.len() / 2;
        for (index, machine) in networks.inner.iter().enumerate() {
            let side = if index < half { "a" } else { "b" };
            let mut node = lab.node_in(&format!("{side}{}", 1 + index % half), machine)?;
            node.join(&issuer.token(&[])?)?;
            expose(&node, &format!("on-{}", node.name))?;
            nodes.push(node);
        }
        Ok(Self { networks, _issuer: issuer, relays, nodes })
    }

    /// Returns pairs of nodes, those of different sites or of the same one.
    fn pairs(&self, are_apart: bool) -> impl Iterator<Item = (usize, usize)> {
        let (count, half) = (self.nodes.len(), self.nodes.len() / 2);
        let all = (0..count).flat_map(move |from| (0..count).map(move |to| (from, to)));
        all.filter(move |(from, to)| from != to && ((from < &half) != (to < &half)) == are_apart)
    }

    /// Calls the service of one node from the machine of another one, until that works.
    fn call(&self, (from, to): (usize, usize), limit: Duration) -> Result<()> {
        let at = self.find((from, to))?;
        let machine = &self.networks.inner[from];
        let what = format!("an answer of {} to {}", self.nodes[to].name, self.nodes[from].name);
        until(&what, limit, || Ok(machine.enter(|| exchange(at, b"hello", limit))?.is_ok())).map(drop)
    }

    fn find(&self, (from, to): (usize, usize)) -> Result<SocketAddr> {
        find(&self.nodes[from], &format!("on-{}", self.nodes[to].name))
    }

    /// Waits until the cards of all inner nodes name a relay, as the first and the last of them see it.
    fn named(&self, relay: &str, limit: Duration) -> Result<Duration> {
        let lookers = [self.nodes.first(), self.nodes.last()];
        until(&format!("{relay} in the cards"), limit, || {
            for looker in lookers.into_iter().flatten() {
                let nodes = looker.json(&["nodes"])?;
                let names = |name: &str| {
                    let row = nodes.as_array().into_iter().flatten().find(|row| row["name"] == name);
                    row.is_some_and(|row| row["relays"].to_string().contains(relay))
                };
                if !self.nodes.iter().all(|node| names(&node.name)) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }
}

fn sites(run: &Run) -> Result<String> {
    Networks::new(1, 2, "masquerade fully-random")?.play(run, !run.sabotaged, |mesh| {
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        for pair in mesh.pairs(true) {
            kept("a call", mesh.call(pair, CALLED))?;
            longest = longest.max(began.elapsed());
        }
        promise!(longest <= CALLED, "the last first call passed after {longest:?}");
        kept("the cards", mesh.named("relay0", CALLED))?;
        for (are_apart, wanted) in [(true, &["relay"][..]), (false, &["direct", "inbound"])] {
            for (from, to) in mesh.pairs(are_apart) {
                kept("a call", mesh.call((from, to), CALLED))?;
                let (kind, at) = path(&mesh.nodes[from], &mesh.nodes[to].name)?;
                let names = [from, to].map(|node| mesh.nodes[node].name.as_str());
                promise!(wanted.contains(&kind.as_str()), "the path of {names:?} is {kind} {at}");
            }
        }
        Ok(format!(
            "8 of 8 calls passed between the sites, all within {:.1} s of the last join; 4 of 4 within them",
            longest.as_secs_f64()
        ))
    })
}

fn relays_restart(run: &Run) -> Result<String> {
    Networks::new(2, 1, "masquerade")?.play(run, true, |mut mesh| {
        for relay in ["relay0", "relay1"] {
            kept("both relays", mesh.named(relay, CALLED))?;
        }
        for pair in [(0, 1), (1, 0)] {
            kept("a call", mesh.call(pair, CALLED))?;
        }
        mesh.relays[0].kill9()?;
        let began = Instant::now();
        if !run.sabotaged {
            mesh.relays[0].run()?;
        }
        let mut dialled = Vec::new();
        if !run.sabotaged {
            // It has a connection with each again.
            let relay = &mesh.relays[0];
            let has = |node: &Node| Ok(!matches!(path(relay, &node.name)?.0.as_str(), "" | "none"));
            let all = || mesh.nodes.iter().map(has).try_fold(true, |all, one: Result<bool>| Ok(all && one?));
            kept("the relay's connections", until("them", CALLED, all))?;
            // The cards may be those from before for a moment.
            std::thread::sleep(LOOKED);
            kept("the relay in the cards", mesh.named("relay0", CALLED.saturating_sub(began.elapsed())))?;
            for node in &mesh.nodes {
                dialled.push(path(node, "relay0")?.0);
            }
        }
        let again = began.elapsed();
        mesh.relays[1].kill9()?;
        let began = Instant::now();
        for pair in [(0, 1), (1, 0)] {
            kept("a call", mesh.call(pair, CALLED))?;
        }
        let called = began.elapsed();
        promise!(called <= CALLED, "calls passed after {called:?}");
        mesh.relays[1].run()?;
        kept("the other relay in the cards", mesh.named("relay1", CALLED))?;
        Ok(format!(
            "the relay was in use {:.1} s after its death, by connections that are {dialled:?} for the nodes; calls passed {:.1} s after the other one's death",
            again.as_secs_f64(),
            called.as_secs_f64()
        ))
    })
}

fn both_flushed(run: &Run) -> Result<String> {
    let networks = Networks::new(2, 1, "masquerade random")?;
    networks.play(run, true, |mesh| {
        for relay in ["relay0", "relay1"] {
            kept("both relays", mesh.named(relay, CALLED))?;
        }
        for pair in [(0, 1), (1, 0)] {
            kept("a call", mesh.call(pair, CALLED))?;
        }
        let [a, b] = &mesh.nodes[..] else { unreachable!("two nodes were made") };
        let ids = [id_of(a, "b1")?, id_of(b, "a1")?];
        let seen = || -> Result<Vec<String>> {
            let at = |relay: &Node, node: &Node| Ok(path(relay, &node.name)?.1);
            mesh.relays.iter().flat_map(|relay| [at(relay, a), at(relay, b)]).collect()
        };
        let before = seen()?;
        let clients = [(&networks.inner[0], mesh.find((0, 1))?), (&networks.inner[1], mesh.find((1, 0))?)];
        let said = talking(clients, ENDED, || {
            // The kernel forgets what it translates to the address of an interface that goes down.
            for word in ["down", "up"].into_iter().take(if run.sabotaged { 1 } else { 2 }) {
                for router in networks.routers() {
                    router.ip(&["link", "set", "eth0", word])?;
                }
            }
            Ok(())
        })?;
        let began = Instant::now();
        for pair in [(0, 1), (1, 0)] {
            kept("a new flow", mesh.call(pair, NEW))?;
        }
        let called = began.elapsed();
        let doubts = [doubts(a, "b1")?, doubts(b, "a1")?].concat();
        promise!(doubts.is_empty(), "the nodes saw {doubts:?}");
        let after = seen()?;
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        promise!(moved == before.len(), "relays saw the nodes at {before:?}, then at {after:?}");
        promise!(ids == [id_of(a, "b1")?, id_of(b, "a1")?], "they are other members");
        Ok(format!(
            "{said}; {moved} of {moved} connections with relays have moved; new flows in {:.2} s",
            called.as_secs_f64()
        ))
    })
}
