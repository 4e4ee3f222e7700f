//! Relays: pairs of nodes of which neither can dial the other.
//!
//! Owns: translators on both sides, relays that die, ways that open. Must not know: the bytes of circuits. Driven by:
//! `evidence`. Needs root: each machine is a network namespace.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gossamer_wire::NodeId;
use gossamer_wire::circuit::{CircuitOpen, CircuitStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::addresses::metric;
use super::carried::{connect, kept, listen};
use super::lanes::flows;
use super::steady::{memory_kib, percentile};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{Credentials, ask_circuit, identity_of, open_circuits};
use crate::wait::{throughout, until};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.3-both-nat",
        promise: "Two nodes behind translators of addresses, which neither can dial, and a member with the role of a relay between them: within 20 s each calls a service of the other; 16 MiB pass each way with the same SHA-256, half-closes and resets arrive, and for 20 s each sees the other alive",
        sabotage: "no member has the role",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: both_nat,
    },
    Row {
        name: "7.3-relay-dies",
        promise: "Of the two relays between two nodes that cannot dial each other the one that carries a flow is killed: the flow is reset within 3 s, and the next connect, made at once, is answered within 3 s through the other",
        sabotage: "the other relay has left before",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: relay_dies,
    },
    Row {
        name: "7.3-direct-again",
        promise: "Where a direct way opens between two nodes that a relay leads to each other, new flows take it within 30 s, and a flow that the relay carries lives on and ends as it should",
        sabotage: "no way opens",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: direct_again,
    },
    Row {
        name: "7.3-caps",
        promise: "A member asks a relay for circuits to a node without end and reads nothing, five times for 3 s with 2 s of calm before each: at most 512 are open, the rest is refused and counted by its reason, relay and node grow by less than 24 MiB, another pair's p99 through the relay beside it stays within twice that of the calm and 5 ms, and its next connects work",
        sabotage: "the relay's process gets a tenth of its time",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: caps,
    },
    Row {
        name: "7.3-refused",
        promise: "A member asks a relay for a circuit to itself, to the relay and to a node that has no connection with it, asks a member without the role for one, and announces one although it is no relay: each is refused at once with its code, and counted by its reason",
        sabotage: "the member asks for a node that is connected",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: refused,
    },
];

const SEEN: Duration = Duration::from_secs(20);
const RESET: Duration = Duration::from_secs(3);
/// Calm and attack take turns, so that what else this machine does counts for both.
const ROUNDS: u32 = 5;
const CALM: Duration = Duration::from_secs(2);
const ATTACKED: Duration = Duration::from_secs(3);
/// What p99 beside an attack may be above twice that of the calm: the attacker runs on this machine, too.
pub(super) const FLOOR: Duration = Duration::from_millis(5);
/// What relay and node may grow by, KiB.
const GROWTH_KIB: u64 = 24 << 10;
const DIRECT: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_secs(3);
/// Where the services are offered.
const PORT: u16 = 5_432;

/// Puts a machine behind another one that translates its address, with a port of its own for each peer.
pub(super) fn behind(router: &Namespace) -> Result<Namespace> {
    let inner = Namespace::new("inner")?;
    let ends = ["type", "veth", "peer", "name", "inside", "netns", router.name()];
    inner.ip(&[&["link", "add", "eth0"], &ends[..]].concat())?;
    inner.ip(&["addr", "add", "192.168.9.2/24", "dev", "eth0"])?;
    inner.ip(&["link", "set", "eth0", "up"])?;
    router.ip(&["addr", "add", "192.168.9.1/24", "dev", "inside"])?;
    router.ip(&["link", "set", "inside", "up"])?;
    inner.ip(&["route", "add", "default", "via", "192.168.9.1"])?;
    router.parameter("ipv4/ip_forward", "1")?;
    router.nft(
        "table ip translator { \
         chain out { type nat hook postrouting priority 100; oifname eth0 masquerade fully-random; }; \
         chain in { type filter hook input priority 0; iifname eth0 meta l4proto { tcp, udp } drop; }; }",
    )?;
    Ok(inner)
}

/// A mesh of an issuer, relays, and two hidden nodes, each with a service whose program is a listener.
pub(super) struct Hidden {
    pub(super) issuer: Node,
    pub(super) relays: Vec<Node>,
    pub(super) nodes: [Node; 2],
    pub(super) listeners: [TcpListener; 2],
    /// Where each finds the service of the other.
    pub(super) vips: [SocketAddr; 2],
}

impl Hidden {
    /// The first machine is the issuer's, those between are relays, the last two are behind translators.
    pub(super) fn new(
        lab: &Lab,
        public: &[Namespace],
        inner: [&Namespace; 2],
        has_role: bool,
    ) -> Result<Self> {
        Self::with(lab, public, inner, has_role, |name, machine| lab.node_in(name, machine))
    }

    /// As [`Self::new`], with relays that somebody else makes.
    pub(super) fn with(
        lab: &Lab,
        public: &[Namespace],
        inner: [&Namespace; 2],
        has_role: bool,
        relay: impl Fn(&str, &Namespace) -> Result<Node>,
    ) -> Result<Self> {
        let (first, others) = public.split_first().context("a machine")?;
        let mut issuer = lab.node_in("issuer", first)?;
        issuer.init("west")?;
        let mut relays = Vec::new();
        for (index, machine) in others.iter().enumerate() {
            let mut relay = relay(&format!("relay{index}"), machine)?;
            let role: &[&str] = if has_role { &["--role=relay"] } else { &[] };
            relay.join(&issuer.token(role)?)?;
            relays.push(relay);
        }
        let (mut nodes, mut listeners, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for (name, machine) in ["a", "b"].into_iter().zip(inner) {
            let mut node = lab.node_in(name, machine)?;
            if name == "b" {
                // Where its translator would lead to it, if it did.
                node = node.with("GOSSAMER_ADVERTISE", &Segment::address(public.len() as u8 + 1).to_string());
            }
            node.join(&issuer.token(&[])?)?;
            let (listener, target) = machine.enter(listen)??;
            nodes.push(node);
            listeners.push(listener);
            targets.push(target);
        }
        let [a, b] = [&nodes[0], &nodes[1]];
        let vips = [offer(b, a, "on-b", targets[1])?, offer(a, b, "on-a", targets[0])?];
        let nodes = <[Node; 2]>::try_from(nodes).ok().context("two nodes")?;
        let listeners = <[TcpListener; 2]>::try_from(listeners).ok().context("two listeners")?;
        Ok(Self { issuer, relays, nodes, listeners, vips })
    }

    /// Opens a flow from the first node to the second, as soon as one works.
    pub(super) fn call(
        &self,
        machine: &Namespace,
        limit: Duration,
    ) -> Result<((TcpStream, TcpStream), Duration)> {
        opened(machine, self.vips[0], &self.listeners[1], limit)
    }
}

/// Offers a service of one node, and returns where the other one finds it.
pub(super) fn offer(server: &Node, caller: &Node, name: &str, target: SocketAddr) -> Result<SocketAddr> {
    server.ok(&["expose", &format!("{name}:{PORT}"), &target.to_string()])?;
    let vip = caller.resolver()?.address(&format!("{name}.mesh.internal"), SEEN)?;
    until(name, SEEN, || Ok(caller.json(&["services", name])?.to_string().contains("\"usable\"")))?;
    Ok((vip, PORT).into())
}

/// Connects until a flow reaches the program: a byte of the client arrives there. What failed before is closed.
pub(super) fn opened(
    machine: &Namespace,
    vip: SocketAddr,
    listener: &TcpListener,
    limit: Duration,
) -> Result<((TcpStream, TcpStream), Duration)> {
    listener.set_nonblocking(true)?;
    let began = Instant::now();
    let mut last = String::from("nothing");
    while began.elapsed() < limit {
        match machine.enter(|| attempt(vip, listener, began + limit))? {
            Ok(pair) => {
                listener.set_nonblocking(false)?;
                return Ok((pair, began.elapsed()));
            }
            Err(error) => last = error.to_string(),
        }
    }
    anyhow::bail!("no flow within {limit:?}: {last}")
}

fn attempt(vip: SocketAddr, listener: &TcpListener, until: Instant) -> Result<(TcpStream, TcpStream)> {
    let mut client = connect(vip)?;
    client.write_all(b"x")?;
    client.set_read_timeout(Some(Duration::from_millis(20)))?;
    loop {
        if let Ok((mut program, _)) = listener.accept() {
            program.set_nonblocking(false)?;
            program.set_read_timeout(Some(SEEN))?;
            // Without a byte it was a check of the daemon.
            if program.read(&mut [0])? == 1 {
                client.set_read_timeout(Some(SEEN))?;
                return Ok((client, program));
            }
            continue;
        }
        match client.read(&mut [0]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            ended => anyhow::bail!("the client's flow ended: {ended:?}"),
        }
        ensure!(Instant::now() < until, "the flow did not arrive");
    }
}

/// Returns the paths of the flows that live.
pub(super) fn paths(node: &Node) -> Result<Vec<String>> {
    let flows = node.ok(&["status", "--flows", "--json"])?;
    let rows = flows.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(rows.filter_map(|row| row["path"].as_str().map(str::to_owned)).collect())
}

fn both_nat(run: &Run) -> Result<String> {
    let segment = Segment::new(4)?;
    let (public, routers) = segment.machines().split_at(2);
    let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
    run.scenario(|lab| {
        let mesh = kept("a mesh", Hidden::new(lab, public, [&left, &right], !run.sabotaged))?;
        let [a, b] = &mesh.nodes;
        let (flow, first) = kept("a flow to b", mesh.call(&left, SEEN))?;
        let path = paths(a)?;
        promise!(path == ["relay relay0"], "the paths of flows are {path:?}");
        drop(flow);
        let back = opened(&right, mesh.vips[1], &mesh.listeners[0], SEEN);
        let (flow, second) = kept("a flow to a", back)?;
        drop(flow);
        let mut words = Vec::new();
        for (side, (machine, listener)) in
            [(&left, &mesh.listeners[1]), (&right, &mesh.listeners[0])].into_iter().enumerate()
        {
            words
                .push(kept("flows", machine.enter(|| flows(mesh.vips[side], listener, run.times(16, 16)))?)?);
        }
        throughout("each seeing the other alive", SEEN, || {
            Ok(a.state_of("b")?.as_deref() == Some("alive") && b.state_of("a")?.as_deref() == Some("alive"))
        })?;
        let direct = metric(a, "gossamer_flows_refused_total{reason=\"malformed\"}")?;
        promise!(direct == 0, "{direct} streams were malformed");
        Ok(format!(
            "the first flow after {:.1} s, the one back after {:.1} s; from a {}; from b {}",
            first.as_secs_f64(),
            second.as_secs_f64(),
            words[0],
            words[1]
        ))
    })
}

fn relay_dies(run: &Run) -> Result<String> {
    let segment = Segment::new(5)?;
    let (public, routers) = segment.machines().split_at(3);
    let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
    run.scenario(|lab| {
        let mut mesh = kept("a mesh", Hidden::new(lab, public, [&left, &right], true))?;
        let ((mut client, mut program), _) = kept("a flow to b", mesh.call(&left, SEEN))?;
        for index in 0..2 {
            // Both have been chosen by both.
            let name = mesh.relays[index].name.clone();
            until("both relays in the card", SEEN, || {
                let nodes = mesh.nodes[0].json(&["nodes"])?;
                let row = nodes.as_array().into_iter().flatten().find(|row| row["name"] == "b").cloned();
                Ok(row.is_some_and(|row| row["relays"].to_string().contains(&name)))
            })?;
        }
        let path = paths(&mesh.nodes[0])?;
        let carrier =
            path.first().and_then(|path| path.strip_prefix("relay ")).unwrap_or_default().to_owned();
        let position = mesh.relays.iter().position(|relay| relay.name == carrier);
        let position = position.with_context(|| format!("a relay in the paths {path:?}"))?;
        if run.sabotaged {
            mesh.relays[1 - position].stop()?;
        }
        let began = Instant::now();
        mesh.relays[position].kill9()?;
        for end in [&mut client, &mut program] {
            let ended = end.read(&mut [0]);
            promise!(
                ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
                "an end of the flow sees {ended:?}"
            );
        }
        let reset = began.elapsed();
        promise!(reset <= RESET, "the flow was reset after {reset:?}");
        let (_flow, again) = kept("the next flow", mesh.call(&left, ANSWERED))?;
        let path = paths(&mesh.nodes[0])?;
        let other = format!("relay {}", mesh.relays[1 - position].name);
        promise!(path == [other.as_str()], "the path is {path:?}, not {other}");
        Ok(format!(
            "reset after {:.1} s, the next flow through the other after {:.1} s",
            reset.as_secs_f64(),
            again.as_secs_f64()
        ))
    })
}

fn direct_again(run: &Run) -> Result<String> {
    let segment = Segment::new(4)?;
    let (public, routers) = segment.machines().split_at(2);
    let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
    run.scenario(|lab| {
        let mesh = kept("a mesh", Hidden::new(lab, public, [&left, &right], true))?;
        let ((mut client, mut program), _) = kept("a flow to b", mesh.call(&left, SEEN))?;
        let path = paths(&mesh.nodes[0])?;
        promise!(path == ["relay relay0"], "the paths of flows are {path:?}");
        // Dials that are under way since the nodes met shall have ended.
        throughout("the relay being the only way", 2 * RESET, || Ok(mesh.nodes[0].state_of("b")?.is_some()))?;
        if !run.sabotaged {
            routers[1].nft(
                "table ip opened { chain in { type nat hook prerouting priority -100; \
                 iifname eth0 meta l4proto { tcp, udp } th dport 4677 dnat to 192.168.9.2; }; }",
            )?;
        }
        let took = until("a new flow on a direct way", DIRECT, || {
            let _flow = mesh.call(&left, SEEN)?;
            Ok(paths(&mesh.nodes[0])?.iter().any(|path| path == "quic"))
        })?;
        throughout("the old flow", Duration::from_secs(5), || {
            client.write_all(b"ping")?;
            let mut said = [0; 4];
            program.read_exact(&mut said)?;
            program.write_all(&said)?;
            client.read_exact(&mut said)?;
            Ok(&said == b"ping")
        })?;
        let path = paths(&mesh.nodes[0])?;
        promise!(path == ["relay relay0"], "the path of the old flow is {path:?}");
        client.shutdown(std::net::Shutdown::Write)?;
        promise!(program.read(&mut [0])? == 0, "the end of the old flow did not arrive");
        Ok(format!("a new flow was direct after {:.1} s, the old one went on", took.as_secs_f64()))
    })
}

fn caps(run: &Run) -> Result<String> {
    let segment = Segment::new(5)?;
    let (public, others) = segment.machines().split_at(2);
    let [routers @ .., outside] = others else { unreachable!("five machines were made") };
    let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
    run.scenario(|lab| {
        let mesh = kept("a mesh", Hidden::new(lab, public, [&left, &right], true))?;
        let [_, b] = &mesh.nodes;
        let relay = &mesh.relays[0];
        let hostile = lab.node_in("hostile", outside)?;
        hostile.ok(&["join", &mesh.issuer.token(&[])?, "--node", "hostile", "--no-start"])?;
        let member = Credentials::of_identity(&identity_of(&hostile.state_dir())?);
        let target = identity_of(&b.state_dir())?.node();
        let at = SocketAddr::from((Segment::address(1), 4_677));
        let ((mut client, mut program), _) = kept("a flow to b", mesh.call(&left, SEEN))?;
        let (mut calm, mut beside, mut most, mut opened, mut refused) = (Vec::new(), Vec::new(), 0, 0, 0);
        let before = [relay, b].map(memory_kib);
        for _ in 0..ROUNDS {
            calm.extend(exchanged(&mut client, &mut program, CALM)?);
            let stop = AtomicBool::new(false);
            let asked = std::thread::scope(|scope| -> Result<_> {
                let asking = scope.spawn(|| outside.enter(|| open_circuits(at, &member, target, &stop))?);
                let watched = (|| -> Result<()> {
                    if run.sabotaged {
                        throttle(relay, &stop, scope)?;
                    }
                    let began = Instant::now();
                    while began.elapsed() < ATTACKED {
                        beside.extend(exchanged(&mut client, &mut program, ATTACKED / 4)?);
                        most = most.max(metric(relay, "gossamer_circuits_open")?);
                    }
                    kept("a flow beside it", mesh.call(&left, ANSWERED)).map(drop)
                })();
                stop.store(true, Ordering::Relaxed);
                let asked = asking.join().map_err(|_| anyhow::anyhow!("the member panicked"))?;
                watched.and(asked)
            })?;
            opened += asked.0;
            refused += asked.1;
        }
        let mut grown = Vec::new();
        for (node, before) in [relay, b].into_iter().zip(before) {
            grown.push(memory_kib(node)?.saturating_sub(before?));
        }
        let pace = metric(relay, "gossamer_circuits_refused_total{reason=\"pace\"}")?;
        promise!(pace > 0 && refused as u64 >= pace, "{pace} of {refused} are counted as too fast");
        promise!((1..=512).contains(&most), "{most} circuits were open");
        promise!(grown.iter().all(|grew| *grew < GROWTH_KIB), "relay and node grew by {grown:?} KiB");
        let (calm, beside) = (percentile(&mut calm, 99), percentile(&mut beside, 99));
        promise!(beside <= calm * 2 + FLOOR, "p99 is {calm:?} in the calm and {beside:?} beside it");
        Ok(format!(
            "{opened} opened and {refused} refused, {most} open at the most; grown: relay {} KiB, node {} KiB; p99 of another pair {:.2} ms in the calm, {:.2} ms beside it",
            grown[0],
            grown[1],
            calm.as_secs_f64() * 1e3,
            beside.as_secs_f64() * 1e3
        ))
    })
}

fn refused(run: &Run) -> Result<String> {
    let segment = Segment::new(3)?;
    let [first, second, outside] = segment.machines() else { unreachable!("three machines were made") };
    run.scenario(|lab| {
        let mut issuer = lab.node_in("issuer", first)?;
        issuer.init("west")?;
        let mut relay = lab.node_in("relay", second)?;
        relay.join(&issuer.token(&["--role", "relay"])?)?;
        relay.sees("issuer", "alive", SEEN)?;
        let hostile = lab.node_in("hostile", outside)?;
        hostile.ok(&["join", &issuer.token(&[])?, "--node", "hostile", "--no-start"])?;
        let (hostile, connected) = (identity_of(&hostile.state_dir())?, identity_of(&issuer.state_dir())?);
        let (member, me) = (Credentials::of_identity(&hostile), hostile.node());
        let here = identity_of(&relay.state_dir())?.node();
        let nobody = if run.sabotaged { connected.node() } else { NodeId::from_bytes([7; 16]) };
        let [at_issuer, at_relay] =
            [0, 1].map(|machine| SocketAddr::from((Segment::address(machine), 4_677)));
        let (refused, no_relay) = (CircuitStatus::Refused.code(), CircuitStatus::NoRelay.code());
        let not_connected = CircuitStatus::NotConnected.code();
        for (what, node, at, record, code, reason) in [
            ("itself", &relay, at_relay, CircuitOpen::To(me), Some(refused), "itself"),
            ("the relay", &relay, at_relay, CircuitOpen::To(here), Some(refused), "itself"),
            ("nobody", &relay, at_relay, CircuitOpen::To(nobody), Some(not_connected), "not_connected"),
            ("no relay", &issuer, at_issuer, CircuitOpen::To(here), Some(no_relay), "no_relay"),
            ("an announcement", &issuer, at_issuer, CircuitOpen::From(here), None, "no_relay"),
        ] {
            let count = || metric(node, &format!("gossamer_circuits_refused_total{{reason=\"{reason}\"}}"));
            let before = count()?;
            let answer = outside.enter(|| ask_circuit(at, &member, record))??;
            promise!(answer == code, "{what} is answered with {answer:?}, not {code:?}");
            until("the count", SEEN, || Ok(count()? == before + 1))?;
        }
        Ok("5 of 5 refused with their codes and counted by their reasons".to_owned())
    })
}

/// Lets a daemon run for a tenth of the time only.
pub(super) fn throttle<'scope>(
    node: &Node,
    stop: &'scope AtomicBool,
    scope: &'scope std::thread::Scope<'scope, '_>,
) -> Result<()> {
    let pid = Pid::from_raw(node.pid()?);
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let _ = kill(pid, Signal::SIGSTOP);
            std::thread::sleep(Duration::from_millis(90));
            let _ = kill(pid, Signal::SIGCONT);
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    Ok(())
}

/// Sends a few bytes to and fro for a time, and returns how long each round took.
pub(super) fn exchanged(
    client: &mut TcpStream,
    program: &mut TcpStream,
    time: Duration,
) -> Result<Vec<Duration>> {
    client.set_nodelay(true)?;
    program.set_nodelay(true)?;
    let (began, mut all, mut bytes) = (Instant::now(), Vec::new(), [7; 16]);
    while began.elapsed() < time {
        let asked = Instant::now();
        client.write_all(&bytes)?;
        program.read_exact(&mut bytes)?;
        program.write_all(&bytes)?;
        client.read_exact(&mut bytes)?;
        all.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(all)
}
