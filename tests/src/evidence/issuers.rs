//! Authority that outlives its first machine: issuers, renewal, eviction, on real daemons whose certificates last seconds.
//!
//! Owns: the meshes, the load, the ways back of an evicted node. Must not know: how statements look.
//! Driven by: `evidence`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use gossamer_wire::frame::ALPN;
use gossamer_wire::join::{JoinReply, Refusal};

use super::{Ci, Needs, Row, Run};
use crate::fabric::Fabric;
use crate::forge::Forge;
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{Credentials, Resuming, renew, talk};
use crate::targets::{Manner, while_serving};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "4.1-wrong-certificates",
        promise: "Sixteen classes of wrong certificates, most of them signed with the mesh's own keys, get 0 application bytes, where a good one made in the same way is answered",
        sabotage: "the good one is shown instead",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: wrong_certificates,
    },
    Row {
        name: "4.1-tokens",
        promise: "Of two nodes that race for a token of one use one wins; a used, an expired and a revoked token are refused, and a source that was wrong five times waits; a token of several uses is good at the second issuer when the first is dead",
        sabotage: "no second issuer is added",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: tokens,
    },
    Row {
        name: "4.2-second-issuer",
        promise: "The first node is destroyed 10 s after issuer add: a node joins with a token of the second issuer, 10 daemons renew certificates of 5 s, and 0 of 200 requests a second fail",
        sabotage: "no second issuer is added",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: second_issuer,
    },
    Row {
        name: "4.3-eviction",
        promise: "Evicting a node closes its live flow in 1 s, and each of its ways back is refused: its old peers, one that was stopped meanwhile, a restart, its old token, a new token with its key",
        sabotage: "the node is not evicted",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: eviction,
    },
    Row {
        name: "4.3-ways-back",
        promise: "The other ways back of an evicted node are refused, which with those of 4.3-eviction makes eight of eight: renewal at each of two issuers with a certificate that is valid and one that has ended, a TLS session of before the eviction, clocks put back on its machine and on others, a peer that missed the eviction and brings its records",
        sabotage: "the node is not evicted",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: more_ways_back,
    },
    Row {
        name: "4.5-cold-start",
        promise: "A mesh that was off for longer than every certificate of nodes and issuers lives is whole again in 20 s when its daemons are started",
        sabotage: "the machine with the root key stays off",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: cold_start,
    },
];

/// How long the mesh may take to see itself or a change.
pub(super) const SEEN: Duration = Duration::from_secs(20);
/// Daemons that outlive the first one.
const SURVIVORS: usize = 10;
/// Requests a second, over all clients.
const RATE: u32 = 200;
/// Clients that share the rate, each at a daemon of its own.
pub(super) const CLIENTS: u32 = 4;
/// From `issuer add` to the end of the first node.
const DESTROYED_AFTER: Duration = Duration::from_secs(10);
/// How long the mesh is watched without it: the second issuer's certificate lasts 20 s from `issuer add`.
const WATCHED: Duration = Duration::from_secs(8);

/// Makes a node whose certificates last 5 s, those of issuers 20 s.
pub(super) fn short_lived(lab: &Lab, name: &str) -> Result<Node> {
    let node = lab.node(name)?;
    Ok(node.with("GOSSAMER_TRUST_LEAF_LIFETIME", "5s").with("GOSSAMER_TRUST_ISSUER_LIFETIME", "20s"))
}

fn second_issuer(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut first = short_lived(lab, "first")?;
        first.init("default")?;
        let mut nodes = Vec::new();
        for number in 1..=SURVIVORS {
            let mut node = short_lived(lab, &format!("n{number}"))?;
            node.join(&first.token(&[])?)?;
            nodes.push(node);
        }
        let asked = under_load(&nodes[1], &nodes[2..2 + CLIENTS as usize], || {
            play_second_issuer(run, lab, first, &nodes)
        })?;
        Ok(format!("{SURVIVORS} daemons renewed twice and one joined without the first node; {asked} requests, 0 failed"))
    })
}

/// Plays while clients of other nodes ask a service of one at the promised rate; none may fail. Returns how many did.
pub(super) fn under_load(server: &Node, clients: &[Node], play: impl FnOnce() -> Result<()>) -> Result<u64> {
    while_serving(Manner::Greets("x"), |port| {
        server.ok(&["expose", &format!("orders:{port}")])?;
        let clients = service_addresses(clients, "orders", port)?;
        let stopped = AtomicBool::new(false);
        let (asked, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for address in &clients {
                scope.spawn(|| ask(*address, &stopped, &asked, &failed));
            }
            let played = play();
            stopped.store(true, Ordering::Relaxed);
            played
        })?;
        let (asked, failed) = (asked.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
        promise!(failed == 0, "{failed} of {asked} requests failed");
        Ok(asked)
    })
}

fn play_second_issuer(run: &Run, lab: &Lab, mut first: Node, nodes: &[Node]) -> Result<()> {
    first.sees("n1", "alive", SEEN)?;
    if !run.sabotaged {
        first.ok(&["issuer", "add", "n1"])?;
    }
    std::thread::sleep(DESTROYED_AFTER); // the promise names this time
    first.kill9()?;
    fs::remove_dir_all(first.state_dir())?;
    let since = Instant::now();
    let ends = |node: &Node| node.status()?["certificate_ends"].as_u64().context("an end");
    let mut before = nodes.iter().map(ends).collect::<Result<Vec<_>>>()?;
    // Minted and used while the second issuer is the only one.
    let token = nodes[0].token(&[])?;
    let mut late = short_lived(lab, "late")?;
    late.join(&token)?;
    late.sees("n5", "alive", SEEN)?;
    for _ in 0..2 {
        for (node, before) in nodes.iter().zip(&mut before) {
            let mut now = *before;
            until(&format!("a new certificate of {}", node.name), WATCHED, || {
                now = ends(node)?;
                Ok(now > *before)
            })?;
            *before = now;
        }
    }
    promise!(since.elapsed() <= WATCHED, "renewing twice took {:?}", since.elapsed());
    for node in nodes {
        node.sees("n1", "alive", SEEN)?;
    }
    Ok(())
}

/// Returns the virtual address of a service at each node.
fn service_addresses(nodes: &[Node], service: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let address = |node: &Node| {
        let found = node.resolver()?.address(&format!("{service}.mesh.internal"), SEEN)?;
        Ok(SocketAddr::new(found.into(), port))
    };
    nodes.iter().map(address).collect()
}

/// Sends a client's share of the requests; each is a connection of its own.
fn ask(address: SocketAddr, stopped: &AtomicBool, asked: &AtomicU64, failed: &AtomicU64) {
    let pause = Duration::from_secs(1) * CLIENTS / RATE;
    let mut next = Instant::now();
    while !stopped.load(Ordering::Relaxed) {
        asked.fetch_add(1, Ordering::Relaxed);
        if request(address).is_err() {
            failed.fetch_add(1, Ordering::Relaxed);
        }
        next += pause;
        std::thread::sleep(next.saturating_duration_since(Instant::now())); // the rate is the subject
    }
}

fn request(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut greeting = [0; 1];
    stream.read_exact(&mut greeting)?;
    Ok(())
}

fn eviction(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut nodes: Vec<Node> =
            ["first", "b", "c", "d"].iter().map(|name| lab.node(name)).collect::<Result<_>>()?;
        nodes[0].init("default")?;
        for number in 1..nodes.len() {
            let token = nodes[0].token(&[])?;
            nodes[number].join(&token)?;
        }
        let mut bad = lab.node("bad")?;
        let old_token = nodes[0].token(&["--uses", "3"])?;
        bad.join(&old_token)?;
        for node in &nodes {
            node.sees("bad", "alive", SEEN)?;
        }
        let closed = while_serving(Manner::Echoes, |port| {
            nodes[1].ok(&["expose", &format!("echo:{port}")])?;
            let address = service_addresses(std::slice::from_ref(&bad), "echo", port)?;
            close_by_eviction(run, &nodes, &bad, address[0])
        })?;
        let refused = ways_back(&nodes, bad, &old_token, lab)?;
        Ok(format!("live flow closed after {closed:?}; {refused}"))
    })
}

/// Holds a flow of the bad node open and evicts it. One node is stopped meanwhile and hears of it later.
fn close_by_eviction(run: &Run, nodes: &[Node], bad: &Node, address: SocketAddr) -> Result<Duration> {
    let mut flow = TcpStream::connect(address)?;
    flow.set_read_timeout(Some(Duration::from_secs(5)))?;
    flow.write_all(b"hello")?;
    let mut echo = [0; 5];
    flow.read_exact(&mut echo)?;
    nodes[3].signal(nix::sys::signal::Signal::SIGSTOP)?;
    let since = Instant::now();
    if !run.sabotaged {
        nodes[0].ok(&["node", "evict", "bad"])?;
    }
    let ended = flow.read(&mut echo);
    let closed = since.elapsed();
    nodes[3].signal(nix::sys::signal::Signal::SIGCONT)?;
    promise!(!matches!(ended, Ok(1..)), "the flow of {} went on", bad.name);
    promise!(closed <= Duration::from_secs(1), "the flow ended after {closed:?}");
    for node in nodes {
        until(&format!("{} holding bad for gone", node.name), SEEN, || {
            Ok(node.state_of("bad")?.is_none_or(|state| state != "alive"))
        })?;
    }
    Ok(closed)
}

/// Lets the evicted node try to come back in every way it has.
fn ways_back(nodes: &[Node], mut bad: Node, old_token: &str, lab: &Lab) -> Result<String> {
    // Its old peers, each of which it goes on dialling, among them the one that was stopped.
    let is_out = |way: &str| -> Result<()> {
        for node in nodes {
            let alive = node.state_of("bad")?.as_deref() == Some("alive");
            promise!(!alive, "{} takes it back by {way}", node.name);
        }
        Ok(())
    };
    crate::wait::throughout("old peers refusing it", Duration::from_secs(3), || {
        is_out("its old peers").map(|()| true)
    })?;
    // A restart, and with it the renewal of its certificate at every issuer it knows.
    bad.stop()?;
    let mut bad = bad.with("GOSSAMER_TRUST_LEAF_LIFETIME", "5s");
    bad.run()?;
    crate::wait::throughout("a restart refused", Duration::from_secs(3), || {
        is_out("a restart").map(|()| true)
    })?;
    bad.stop()?;
    // Its old token, then a new one, with its key; the identity is gone, the key stays.
    fs::remove_file(bad.state_dir().join("identity.json"))?;
    for (way, token) in [("its old token", old_token.to_owned()), ("a new token", nodes[0].token(&[])?)] {
        let finished = bad.cli(&["join", &token, "--node", "bad", "--no-start"])?;
        promise!(finished.code == Some(5), "{way}: join ended with {:?}: {}", finished.code, finished.stderr);
        promise!(finished.stderr.contains("evicted"), "{way}: {}", finished.stderr);
        is_out(way)?;
    }
    // A new key and a new token are a new node.
    let mut fresh = lab.node("fresh")?;
    fresh.join(&nodes[0].token(&[])?)?;
    fresh.sees("first", "alive", SEEN)?;
    Ok("4 of 4 ways back refused (old peers with one stopped meanwhile, restart, old token, new token); a new key joins".to_owned())
}

fn more_ways_back(run: &Run) -> Result<String> {
    let tickets = run.scenario(|lab| {
        let mut issuers = [lab.node("first")?, lab.node("second")?];
        issuers[0].init("default")?;
        issuers[1].join(&issuers[0].token(&[])?)?;
        let mut bad = lab.node("bad")?;
        bad.join(&issuers[0].token(&[])?)?;
        issuers[1].sees("bad", "alive", SEEN)?;
        issuers[0].ok(&["issuer", "add", "second"])?;
        until("the second issuer at work", SEEN, || Ok(issuers[1].token(&[]).is_ok()))?;
        bad.stop()?;
        ask_again(run, &issuers, &bad)
    })?;
    let mut fabric = Fabric::with_root_key(MACHINES, 1)?;
    let evicting = |fabric: &mut Fabric, out: usize| -> Result<()> {
        if !run.sabotaged {
            let taken = fabric.evict(out)?;
            promise!((taken.never, taken.let_in) == (0, 0), "node {out} is let in: {taken:?}");
        }
        Ok(())
    };
    fabric.clocks_back(OUT, BACK)?;
    fabric.whole()?; // clocks put back are no reason to refuse anybody
    evicting(&mut fabric, OUT)?;
    fabric.clocks_back(OUT, BACK)?;
    fabric.run_for(SEEN);
    let (knocked, kept) = (fabric.knock(OUT)?, fabric.let_in(OUT)?);
    promise!(
        (knocked, kept) == (0, 0),
        "with clocks put back {knocked} let it in, {kept} know it for a member"
    );
    let mut fabric = Fabric::with_root_key(MACHINES, 2)?;
    let healed = fabric.evict_with_friend(FRIENDS.0, FRIENDS.1, APART)?;
    promise!(
        (healed.late, healed.let_in, healed.refused.len()) == (0, 0, 1),
        "a peer that missed the eviction brings it back: {healed:?}"
    );
    Ok(format!(
        "8 of 8 with those of 4.3-eviction: renewal refused 4 times of 4 and made 4 times of 4 before the eviction, \
         {tickets} session tickets given and none taken, clocks {} h back on {} machines, a peer that missed it refuses it \
         {:.1?} after the heal",
        2 * BACK / 3_600,
        MACHINES / 2,
        healed.refused[0]
    ))
}

/// Simulated machines, the one that is put out, and how far clocks are put back each of two times, seconds.
const MACHINES: usize = 8;
const OUT: usize = 1;
const BACK: i64 = 6 * 3_600;
/// A node that is put out and the one that hears only of it meanwhile.
const FRIENDS: (usize, usize) = (4, 6);
/// Longer than it takes to hold all of the other side for down.
const APART: Duration = Duration::from_secs(40);

/// Asks issuers for renewal and comes back with a session of before, both before the node is evicted and after it.
/// Returns how many tickets it was given.
fn ask_again(run: &Run, issuers: &[Node; 2], bad: &Node) -> Result<usize> {
    let servers = [issuers[0].mesh_address()?, issuers[1].mesh_address()?];
    let valid = Credentials::of_member(&bad.state_dir())?;
    let ended =
        Forge::of(&issuers[0].state_dir())?.ending(&fs::read(bad.state_dir().join("node.key"))?, 1)?;
    std::thread::sleep(Duration::from_secs(3)); // it ends in this time
    let mut clients = Vec::new();
    for server in servers {
        for credentials in [&valid, &ended] {
            let reply = renew(server, credentials)?;
            anyhow::ensure!(
                matches!(reply, JoinReply::Admitted(_)),
                "renewal before the eviction: {reply:?}"
            );
        }
        let client = Resuming::new(&valid, ALPN)?;
        anyhow::ensure!(client.talk(server)?.bytes > 0, "it is not answered before the eviction");
        clients.push(client);
    }
    if !run.sabotaged {
        issuers[0].ok(&["node", "evict", "bad", "--wait"])?;
    }
    let mut tickets = 0;
    for (server, client) in servers.into_iter().zip(&clients) {
        for (what, credentials) in [("valid", &valid), ("ended", &ended)] {
            let reply = renew(server, credentials)?;
            let is_refused = matches!(reply, JoinReply::Refused(Refusal::Evicted));
            promise!(is_refused, "a certificate that is {what} was renewed");
        }
        let heard = client.talk(server)?;
        promise!(heard.bytes == 0 && heard.closed.is_some(), "a client with a session of before: {heard:?}");
        tickets += client.tickets();
    }
    promise!(tickets == 0, "{tickets} tickets were given");
    Ok(tickets)
}

/// Longer than the certificate of an issuer lives, and with it every other one.
const OFF: Duration = Duration::from_secs(25);

fn cold_start(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut nodes: Vec<Node> =
            ["first", "b", "c", "d"].iter().map(|name| short_lived(lab, name)).collect::<Result<_>>()?;
        nodes[0].init("default")?;
        for number in 1..nodes.len() {
            let token = nodes[0].token(&[])?;
            nodes[number].join(&token)?;
        }
        nodes[0].sees("b", "alive", SEEN)?;
        nodes[0].ok(&["issuer", "add", "b"])?;
        while_serving(Manner::Greets("x"), |port| {
            nodes[1].ok(&["expose", &format!("orders:{port}")])?;
            service_addresses(&nodes[2..3], "orders", port)?;
            for node in &mut nodes {
                node.stop()?;
            }
            std::thread::sleep(OFF); // every certificate ends in this time
            let started = Instant::now();
            let off = usize::from(run.sabotaged);
            for node in &mut nodes[off..] {
                node.run()?;
            }
            for node in &nodes[off..] {
                for other in nodes[off..].iter().filter(|other| other.name != node.name) {
                    node.sees(&other.name, "alive", SEEN)?;
                }
            }
            let clients = service_addresses(&nodes[2..3], "orders", port)?;
            until("an answer of the service", SEEN, || Ok(request(clients[0]).is_ok()))?;
            let took = started.elapsed();
            promise!(took <= SEEN, "it took {took:?}");
            Ok(format!("4 daemons off for {OFF:?}, whole after {took:.1?} with `gossamer run` on each"))
        })
    })
}

/// Races for one token; each leaves a try in vain behind, of five that a source has in a minute.
const RACES: usize = 3;

fn tokens(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let (mut first, mut second) = (lab.node("first")?, lab.node("second")?);
        first.init("default")?;
        second.join(&first.token(&[])?)?;
        first.sees("second", "alive", SEEN)?;
        if !run.sabotaged {
            first.ok(&["issuer", "add", "second"])?;
        }
        for race in 1..=RACES {
            let token = first.token(&[])?;
            let racers = [lab.node(&format!("a{race}"))?, lab.node(&format!("b{race}"))?];
            let ended = std::thread::scope(|scope| {
                let racing = racers.each_ref().map(|racer| scope.spawn(|| join_only(racer, &token)));
                racing.map(|racer| racer.join().expect("a racer does not panic"))
            });
            let mut codes = Vec::new();
            for ended in ended {
                codes.push(ended?.0);
            }
            codes.sort_unstable();
            promise!(codes == [Some(0), Some(5)], "race {race} ended with {codes:?}");
        }
        let token = first.token(&[])?;
        let winner = lab.node("winner")?;
        promise!(join_only(&winner, &token)?.0 == Some(0), "a good token is refused");
        fs::remove_file(winner.state_dir().join("identity.json"))?;
        promise!(join_only(&winner, &token)?.0 == Some(0), "the same key is refused");
        wrong(&lab.node("replay")?, &token, "used")?;
        let listed = first.json(&["token", "list"])?;
        promise!(listed.to_string().contains("\"winner\""), "the list does not say who joined: {listed}");
        let short = first.token(&["--ttl", "1s"])?;
        std::thread::sleep(Duration::from_secs(2)); // it expires in this time
        wrong(&lab.node("late")?, &short, "expired")?;
        // Five in vain: also a good token waits now, at this issuer.
        let (code, said) = join_only(&lab.node("turned-away")?, &first.token(&[])?)?;
        promise!(code != Some(0) && said.contains("too many tries"), "the sixth try: {code:?}, {said}");

        let several = first.token(&["--uses", "4"])?;
        let revoked = first.token(&["--uses", "4"])?;
        let id = first.json(&["token", "list"])?.as_array().and_then(|rows| rows.last()?["id"].as_str().map(str::to_owned));
        first.ok(&["token", "revoke", &id.context("an id")?])?;
        until("the second one knowing", SEEN, || {
            let nodes = second.json(&["nodes"])?;
            Ok(nodes.as_array().into_iter().flatten().all(|row| row["has_statements"] == true || row["state"] != "alive"))
        })?;
        first.kill9()?;
        let (code, said) = join_only(&lab.node("by-second")?, &several)?;
        promise!(code == Some(0), "the second issuer does not take it: {said}");
        wrong(&lab.node("by-revoked")?, &revoked, "revoked")?;
        Ok(format!("{RACES} races with one winner each; used, expired, revoked refused; the sixth try in vain turned away; one of several uses good at the second issuer"))
    })
}

/// Joins without starting; returns the exit code and what was said.
pub(super) fn join_only(node: &Node, token: &str) -> Result<(Option<i32>, String)> {
    let finished = node.cli(&["join", token, "--node", &node.name, "--no-start"])?;
    Ok((finished.code, finished.stderr))
}

fn wrong(node: &Node, token: &str, why: &str) -> Result<()> {
    let (code, said) = join_only(node, token)?;
    promise!(code == Some(5) && said.contains(why), "{}: join ended with {code:?}: {said}", node.name);
    Ok(())
}

fn wrong_certificates(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut node = lab.node("a")?;
        node.init("default")?;
        let mesh = node.status()?["mesh"]["id"].as_str().context("a mesh id")?.parse()?;
        let server = node.mesh_address()?;
        let forge = Forge::of(&node.state_dir())?;
        let good = forge.leaf(|_| {})?;
        let control = talk(server, &good, ALPN)?;
        promise!(control.bytes > 0, "a good one is not answered: {control:?}");
        let mut out = lab.node("out")?;
        out.join(&node.token(&[])?)?;
        node.sees("out", "alive", SEEN)?;
        node.ok(&["node", "evict", "out"])?;
        out.stop()?;
        let mut wrong = forge.wrong()?;
        wrong.extend([
            ("none", Credentials::None),
            ("self-signed", Credentials::self_signed(mesh)?),
            ("of another root", Credentials::of_another_root(mesh)?),
            ("of an evicted node", Credentials::of_member(&out.state_dir())?),
        ]);
        for (what, credentials) in &wrong {
            let heard = talk(server, if run.sabotaged { &good } else { credentials }, ALPN)?;
            promise!(heard.bytes == 0, "one {what} was answered with {} bytes", heard.bytes);
            promise!(heard.closed.is_some(), "one {what} keeps its connection");
        }
        node.status()?;
        Ok(format!("0 bytes answered to {} classes, {} to a good one", wrong.len(), control.bytes))
    })
}
