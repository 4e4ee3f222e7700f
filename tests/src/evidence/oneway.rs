//! One-sided reach: pairs of nodes of which only one can dial, and addresses that change while flows live.
//!
//! Owns: the filters, translators and moves, and clients that talk meanwhile. Must not know: how daemons dial. Driven by:
//! `evidence`. Needs root: each machine is a network namespace.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::carried::connect;
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::Node;
use crate::promise;
use crate::targets::{Manner, Target, exchange, serve_all};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.2-one-sided",
        promise: "Nothing that begins a connection reaches B: A calls services of B and B those of A within 1 s, also after either has started again, each sees the other alive all the time, and A names the path inbound, B direct",
        sabotage: "what begins a connection does not reach A either",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: one_sided,
    },
    Row {
        name: "7.2-rebinding",
        promise: "The translator in front of B forgets all flows and gives B another port while clients of both sides talk: each flow goes on, or ends, within 3 s, neither node is taken for suspect or down, and new flows pass within 1 s",
        sabotage: "the translator stays away",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: rebinding,
    },
    Row {
        name: "7.2-moved",
        promise: "B gets another address and loses the old one while clients of both sides talk, over a connection that B dialled and over one that A dialled: each flow goes on, or ends, within 3 s, B is the same member, and new flows pass within 5 s",
        sabotage: "B gets no other address",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: moved,
    },
];

const SEEN: Duration = Duration::from_secs(20);
const CALLED: Duration = Duration::from_secs(1);
/// Where the services' programs listen.
const PORT: u16 = 8_080;

/// Two daemons, A and B, each with a service that echoes and the virtual address of the other's.
struct Two {
    a: Node,
    b: Node,
    of_a: SocketAddr,
    of_b: SocketAddr,
}

impl Two {
    fn new(mut a: Node, mut b: Node) -> Result<Self> {
        a.init("west")?;
        b.join(&a.token(&[])?)?;
        let of_a = offer(&a, &b, "on-a")?;
        let of_b = offer(&b, &a, "on-b")?;
        Ok(Self { a, b, of_a, of_b })
    }

    /// Waits until each sees the other with its service.
    fn meet(&self) -> Result<()> {
        self.a.sees("b", "alive", SEEN)?;
        self.b.sees("a", "alive", SEEN)?;
        find(&self.a, "on-b")?;
        find(&self.b, "on-a").map(drop)
    }

    /// Calls both services, each from the other side.
    fn call(&self, here: &Namespace, there: &Namespace, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        for (machine, at) in [(here, self.of_b), (there, self.of_a)] {
            until("an answer", limit, || Ok(machine.enter(|| exchange(at, b"hello", limit))?.is_ok()))?;
        }
        Ok(began.elapsed())
    }

    /// Returns what each has seen of the other: changes of state since `since` seconds.
    fn changes(&self) -> Result<Vec<String>> {
        Ok([doubts(&self.a, "b")?, doubts(&self.b, "a")?].concat())
    }
}

/// Returns the events in which a node has taken another one for suspect or down.
pub(super) fn doubts(node: &Node, other: &str) -> Result<Vec<String>> {
    let events = node.ok(&["events"])?;
    let is_doubt = |line: &&str| {
        line.contains(&format!(" {other} "))
            && ["-> suspect", "-> down"].iter().any(|word| line.contains(word))
    };
    Ok(events.lines().filter(is_doubt).map(str::to_owned).collect())
}

fn offer(server: &Node, caller: &Node, name: &str) -> Result<SocketAddr> {
    expose(server, name)?;
    find(caller, name)
}

/// Offers what listens on the node's machine, as `echoing` makes it do.
pub(super) fn expose(server: &Node, name: &str) -> Result<String> {
    server.ok(&["expose", &format!("{name}:{PORT}"), &format!("127.0.0.1:{PORT}")])
}

/// Asks for a service, which opens its virtual address, and waits until it is usable. All of them are at one port.
pub(super) fn find(caller: &Node, name: &str) -> Result<SocketAddr> {
    let vip = caller.resolver()?.address(&format!("{name}.mesh.internal"), SEEN)?;
    until(name, SEEN, || Ok(caller.json(&["services", name])?.to_string().contains("\"usable\"")))?;
    Ok((vip, PORT).into())
}

/// Lets a program on each machine send back what it reads.
pub(super) fn echoing<T>(machines: &[&Namespace], play: impl FnOnce() -> Result<T>) -> Result<T> {
    let listen = || Target::at(([127, 0, 0, 1], PORT).into(), Manner::Echoes);
    let targets = machines.iter().map(|machine| machine.enter(listen)?).collect::<Result<Vec<_>>>()?;
    serve_all(&targets, play)
}

/// Returns the kind and the other end of the path to a node.
pub(super) fn path(node: &Node, to: &str) -> Result<(String, String)> {
    let nodes = node.json(&["nodes"])?;
    let row =
        nodes.as_array().into_iter().flatten().find(|row| row["name"] == to).cloned().unwrap_or_default();
    let word = |key: &str| row["path"][key].as_str().unwrap_or_default().to_owned();
    Ok((word("kind"), word("at")))
}

/// Drops what begins a connection towards an address, and nothing else: packets with a long header and an id of the
/// receiver that the receiver has not chosen, for these are longer than 4 bytes.
fn keep_from(machine: &Namespace, chain: &str) -> Result<()> {
    machine.nft(
        &format!(
            "table inet begins {{ chain {chain} {{ type filter hook {chain} priority 0; \
         iif != lo udp dport 4677 @th,64,1 1 @th,104,8 > 4 drop; }}; }}"
        )
        .replace("iif != lo", if chain == "output" { "oif != lo" } else { "iif != lo" }),
    )
}

fn one_sided(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [here, there] = segment.machines() else { unreachable!("two machines were made") };
    echoing(&[here, there], || {
        run.scenario(|lab| {
            keep_from(there, "input")?;
            let mut two = Two::new(lab.node_in("a", here)?, lab.node_in("b", there)?)?;
            if run.sabotaged {
                keep_from(here, "input")?;
            }
            let first = two.call(here, there, CALLED)?;
            promise!(path(&two.a, "b")?.0 == "inbound", "A names the path {:?}", path(&two.a, "b")?);
            promise!(path(&two.b, "a")?.0 == "direct", "B names the path {:?}", path(&two.b, "a")?);
            let mut again = Vec::new();
            for restarts_a in [true, false] {
                let node = if restarts_a { &mut two.a } else { &mut two.b };
                node.stop()?;
                node.run()?;
                two.meet()?;
                again.push(two.call(here, there, CALLED)?.as_secs_f64());
            }
            promise!(two.changes()?.is_empty(), "the nodes saw {:?}", two.changes()?);
            Ok(format!(
                "called both ways in {:.2} s; {:.2} s after A, {:.2} s after B had started again",
                first.as_secs_f64(),
                again[0],
                again[1]
            ))
        })
    })
}

/// What a client met that talked all the time.
struct Talked {
    /// Longest wait for an answer.
    longest: Duration,
    /// When its flow ended, if it did.
    ended: Option<Instant>,
}

/// Talks over one flow until told to stop.
fn talk(at: SocketAddr, stop: &AtomicBool) -> Result<Talked> {
    let mut client = connect(at)?;
    client.set_nodelay(true)?;
    let mut talked = Talked { longest: Duration::ZERO, ended: None };
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let answer = client.write_all(b"question").and_then(|()| client.read_exact(&mut [0; 8]));
        if answer.is_err() {
            talked.ended = Some(Instant::now());
            return Ok(talked);
        }
        talked.longest = talked.longest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(talked)
}

/// Lets a client of each side talk while something happens, and for so long after it. Returns how each fared, in words.
pub(super) fn talking(
    clients: [(&Namespace, SocketAddr); 2],
    limit: Duration,
    happen: impl FnOnce() -> Result<()>,
) -> Result<String> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let clients = clients.map(|(machine, at)| scope.spawn(move || machine.enter(|| talk(at, stop))));
        std::thread::sleep(Duration::from_secs(1));
        let began = Instant::now();
        let happened = happen();
        std::thread::sleep(limit + Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        happened?;
        let mut said = Vec::new();
        for (whose, client) in ["A's", "B's"].into_iter().zip(clients) {
            let talked = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))???;
            let took = talked.ended.map_or(talked.longest, |ended| ended.saturating_duration_since(began));
            let how = if talked.ended.is_some() { "ended" } else { "went on" };
            promise!(took <= limit, "{whose} flow {how} after {took:?}");
            said.push(format!("{whose} flow {how} after {:.2} s", took.as_secs_f64()));
        }
        Ok(said.join(", "))
    })
}

pub(super) fn id_of(node: &Node, other: &str) -> Result<Value> {
    let nodes = node.json(&["nodes"])?;
    let row = nodes.as_array().into_iter().flatten().find(|row| row["name"] == other).cloned();
    row.map(|row| row["id"].clone()).context("the other node")
}

fn rebinding(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [here, router] = segment.machines() else { unreachable!("two machines were made") };
    let there = &Namespace::new("inner")?;
    there.behind(router)?;
    router.nft(
        "table ip home { chain out { type nat hook postrouting priority 100; oifname eth0 masquerade random; }; }",
    )?;
    echoing(&[here, there], || {
        run.scenario(|lab| {
            let two = Two::new(lab.node_in("a", here)?, lab.node_in("b", there)?)?;
            let before = path(&two.a, "b")?;
            promise!(before.0 == "inbound", "A names the path {before:?}");
            two.call(here, there, CALLED)?;
            let said = talking([(here, two.of_b), (there, two.of_a)], Duration::from_secs(3), || {
                // The kernel forgets what it translates to the address of an interface that goes down.
                router.ip(&["link", "set", "eth0", "down"])?;
                if run.sabotaged { Ok(()) } else { router.ip(&["link", "set", "eth0", "up"]) }
            })?;
            let after = path(&two.a, "b")?;
            promise!(
                after.0 == "inbound" && after.1 != before.1,
                "A sees B at {before:?}, then at {after:?}"
            );
            promise!(two.changes()?.is_empty(), "the nodes saw {:?}", two.changes()?);
            let called = two.call(here, there, CALLED)?;
            Ok(format!(
                "{said}; B went from {} to {}; new flows in {:.2} s",
                before.1,
                after.1,
                called.as_secs_f64()
            ))
        })
    })
}

fn moved(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [here, there] = segment.machines() else { unreachable!("two machines were made") };
    let mut rows = Vec::new();
    for b_dialled in [true, false] {
        let words = echoing(&[here, there], || {
            run.scenario(|lab| {
                let mut two = Two::new(lab.node_in("a", here)?, lab.node_in("b", there)?)?;
                if !b_dialled {
                    keep_from(there, "output")?;
                    two.a.stop()?;
                    two.a.run()?;
                    two.b.sees("a", "alive", SEEN)?;
                    two.a.sees("b", "alive", SEEN)?;
                    there.flush_rules()?;
                    two.meet()?;
                }
                let wanted = if b_dialled { "inbound" } else { "direct" };
                promise!(path(&two.a, "b")?.0 == wanted, "A names the path {:?}", path(&two.a, "b")?);
                two.call(here, there, CALLED)?;
                let id = id_of(&two.a, "b")?;
                let said = talking([(here, two.of_b), (there, two.of_a)], Duration::from_secs(3), || {
                    there.ip(&["addr", "del", "10.77.0.11/24", "dev", "eth0"])?;
                    let new = ["addr", "add", "10.77.0.61/24", "dev", "eth0"];
                    if run.sabotaged { Ok(()) } else { there.ip(&new) }
                })?;
                let called = two.call(here, there, Duration::from_secs(5))?;
                two.a.sees("b", "alive", SEEN)?;
                two.b.sees("a", "alive", SEEN)?;
                promise!(id_of(&two.a, "b")? == id, "B is another member");
                let changes = two.changes()?;
                Ok(format!(
                    "dialled by {}: {said}, new flows in {:.2} s, {} changes of state",
                    if b_dialled { "B" } else { "A" },
                    called.as_secs_f64(),
                    changes.len()
                ))
            })
        });
        there.flush_rules()?;
        there.ip(&["addr", "flush", "dev", "eth0"])?;
        there.ip(&["addr", "add", "10.77.0.11/24", "dev", "eth0"])?;
        rows.push(words?);
    }
    Ok(rows.join("; "))
}
