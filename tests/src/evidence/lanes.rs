//! Lanes: a mesh where UDP is closed, and who else comes to the TCP port.
//!
//! Owns: machines whose UDP is dropped, programs behind flows, strangers at the port. Must not know: the bytes of lanes.
//! Driven by: `evidence`. Needs root: each machine is a network namespace.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::addresses::metric;
use super::carried::{Pair, connect, end_of, kept, listen, receive, reset, send};
use super::protocols::{must, postgres};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{Credentials, identity_of, tls};
use crate::wait::{throughout, until};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.4-udp-dropped",
        promise: "Where all UDP between the machines is dropped a third node joins and a mesh of three is formed within 5 s, again after all have restarted; 64 MiB pass each way with the same SHA-256, half-closes and resets arrive, psql answers, and the access line says lane",
        sabotage: "TCP to the mesh port is dropped as well",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: udp_dropped,
    },
    Row {
        name: "7.4-udp-again",
        promise: "When UDP passes again, new flows go over QUIC within 60 s, and a flow that began on a lane lives on",
        sabotage: "UDP stays dropped",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: udp_again,
    },
    Row {
        name: "7.4-udp-closes",
        promise: "When all UDP between three machines is dropped at run time, none of them is called down for 30 s, and new flows are answered over TCP within 6 s",
        sabotage: "TCP is dropped as well",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: udp_closes,
    },
    Row {
        name: "7.4-transport",
        promise: "With UDP open, flows of a service that its exporter offers with --transport tls, and of one that the caller wants so by transport = \"tls\" of its route, are on lanes: the list of flows, trace and the access line say so; those of a third service are on QUIC before, between and after; with the TCP port closed the first two are refused and never go over QUIC",
        sabotage: "neither says so",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: transport,
    },
    Row {
        name: "7.4-strangers",
        promise: "Plain HTTP, garbage, TLS of nobody, of a self-signed certificate and of another mesh's, another node's name and another protocol on the TCP port: each is hung up on and counted by its reason, no byte of the mesh comes back, and while 300 silent connections stand a flow over a lane of the mesh works",
        sabotage: "who asks for another node's name asks for the right one",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: strangers,
    },
];

const FORMED: Duration = Duration::from_secs(5);
const SEEN: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_secs(60);
/// Above what a source may have half open, and below what a test process may have open.
const SILENT: usize = 300;
/// What lanes speak between members (`docs/protocol.md`).
pub(super) const LANE: &[u8] = b"gossamer-lane/1";

/// Drops all UDP that comes in from other machines.
fn close_udp(machine: &Namespace) -> Result<()> {
    machine.nft(
        "table inet closed { chain in { type filter hook input priority 0; iif != lo meta l4proto udp drop; }; }",
    )
}

/// Waits until each node sees each other one, and returns how long that took since `began`.
pub(super) fn formed(nodes: &[&Node], began: Instant) -> Result<Duration> {
    for node in nodes {
        for other in nodes.iter().filter(|other| other.name != node.name) {
            node.sees(&other.name, "alive", SEEN)?;
        }
    }
    let took = began.elapsed();
    promise!(took <= FORMED, "the mesh was formed after {took:?}");
    Ok(took)
}

/// A client through the relay and the program that serves it.
pub(super) fn pair_up(vip: SocketAddr, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let mut client = connect(vip)?;
    client.write_all(b"x")?;
    loop {
        let (mut program, _) = listener.accept()?;
        program.set_read_timeout(Some(SEEN))?;
        // Without a byte it was a check of the daemon.
        if program.read(&mut [0])? == 1 {
            return Ok((client, program));
        }
    }
}

/// Moves bytes both ways and sees each end.
pub(super) fn flows(vip: SocketAddr, listener: &TcpListener, blocks: u64) -> Result<String> {
    let (mut client, mut program) = kept("a flow", pair_up(vip, listener))?;
    let began = Instant::now();
    let (there, back) = std::thread::scope(|scope| {
        let serving = scope.spawn(|| -> Result<_> {
            let got = receive(&mut program)?;
            let sent = send(&mut program, 2, blocks, || Ok(()))?;
            program.shutdown(Shutdown::Write)?;
            Ok((got, sent))
        });
        let sent = kept("sending", send(&mut client, 1, blocks, || Ok(())))?;
        client.shutdown(Shutdown::Write)?;
        let got = kept("receiving", receive(&mut client))?;
        let (served, answered) = serving.join().map_err(|_| anyhow::anyhow!("the program panicked"))??;
        anyhow::Ok(((served, sent), (got, answered)))
    })?;
    let bytes = blocks << 20;
    promise!(there.0 == (bytes, there.1), "the program got {} of {bytes} bytes, or others", there.0.0);
    promise!(back.0 == (bytes, back.1), "the client got {} of {bytes} bytes, or others", back.0.0);
    let took = began.elapsed();
    let (mut client, program) = pair_up(vip, listener)?;
    reset(&program)?;
    drop(program);
    let seen = end_of(&mut client).1;
    promise!(seen == Some(ErrorKind::ConnectionReset), "the client sees {seen:?} for a reset");
    let (client, mut program) = pair_up(vip, listener)?;
    reset(&client)?;
    drop(client);
    let seen = end_of(&mut program).1;
    promise!(seen == Some(ErrorKind::ConnectionReset), "the program sees {seen:?} for a reset");
    let (mut client, mut program) = pair_up(vip, listener)?;
    program.shutdown(Shutdown::Write)?;
    promise!(end_of(&mut client) == (Vec::new(), None), "the program's end did not arrive");
    client.write_all(b"rest")?;
    drop(client);
    promise!(end_of(&mut program) == (b"rest".to_vec(), None), "no rest after the program's end");
    Ok(format!("{blocks} MiB each way in {:.1} s, half-close 2 of 2, reset 2 of 2", took.as_secs_f64()))
}

/// Asks PostgreSQL beside the server with psql beside the caller.
fn ask_psql(lab: &Lab, pair: &Pair, here: &Namespace, there: &Namespace) -> Result<()> {
    let (_running, port) = there.enter(|| postgres(lab, "one"))??;
    let vip = pair.offer(5_432, &["pg:5432", &format!("127.0.0.1:{port}")])?;
    let (host, port) = (vip.ip().to_string(), vip.port().to_string());
    let question = "select count(*), max(repeat('x', n)) > '' from generate_series(1, 5000) as n";
    let asked = ["-h", &host, "-p", &port, "-U", "gossamer", "-d", "postgres", "-Atc", question];
    let said = kept("psql", here.enter(|| must(lab, "psql", &asked))?)?;
    promise!(said.trim() == "5000|t", "psql says {said}");
    Ok(())
}

/// Returns the path of the flow that lives.
pub(super) fn path(node: &Node) -> Result<String> {
    let mut seen = None;
    until("a flow in the list", SEEN, || {
        let flows = node.ok(&["status", "--flows", "--json"])?;
        let row = flows.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).next_back();
        seen = row.and_then(|row| row["path"].as_str().map(str::to_owned));
        Ok(seen.is_some())
    })?;
    seen.context("a path")
}

fn udp_dropped(run: &Run) -> Result<String> {
    let segment = Segment::new(3)?;
    let [here, there, third] = segment.machines() else { unreachable!("three machines were made") };
    for machine in segment.machines() {
        close_udp(machine)?;
        if run.sabotaged {
            machine.nft(SHUT)?;
        }
    }
    run.scenario(|lab| {
        let mut pair = kept("a mesh of two", Pair::on(lab, here, there))?;
        let mut other = lab.node_in("third", third)?;
        let token = pair.server.token(&[])?;
        let began = Instant::now();
        other.join(&token)?;
        let joined = formed(&[&pair.server, &pair.caller, &other], began)?;
        pair.server.stop()?;
        pair.caller.stop()?;
        other.stop()?;
        let began = Instant::now();
        pair.server.run()?;
        pair.caller.run()?;
        other.run()?;
        let restarted = formed(&[&pair.server, &pair.caller, &other], began)?;
        let (listener, target) = there.enter(listen)??;
        let vip = pair.offer_orders(target)?;
        let client = here.enter(|| connect(vip))??;
        let path = path(&pair.caller)?;
        promise!(path == "lane", "a flow's path is {path}");
        drop(client);
        let carried = here.enter(|| flows(vip, &listener, run.times(64, 16)))??;
        ask_psql(lab, &pair, here, there)?;
        let log = pair.caller.whole_log();
        let line =
            log.lines().find(|line| line.contains("access") && line.contains("direction=\"outbound\""));
        let line = line.context("an access line")?;
        promise!(line.contains("path=\"lane\""), "an access line says {line}");
        let refused = metric(&pair.server, "gossamer_handshakes_refused_total{reason=\"lane_tls\"}")?;
        promise!(refused == 0, "{refused} lanes were refused");
        Ok(format!(
            "joined and formed after {:.1} s, after a restart {:.1} s; {carried}, psql answers",
            joined.as_secs_f64(),
            restarted.as_secs_f64()
        ))
    })
}

fn udp_closes(run: &Run) -> Result<String> {
    let segment = Segment::new(3)?;
    let [here, there, third] = segment.machines() else { unreachable!("three machines were made") };
    run.scenario(|lab| {
        let pair = Pair::on(lab, here, there)?;
        let mut other = lab.node_in("third", third)?;
        other.join(&pair.server.token(&[])?)?;
        let nodes = [&pair.server, &pair.caller, &other];
        formed(&nodes, Instant::now())?;
        let (listener, target) = there.enter(listen)??;
        let vip = pair.offer_orders(target)?;
        let _flow = here.enter(|| pair_up(vip, &listener))??;
        promise!(paths(&pair.caller)? == ["quic"], "paths at first: {:?}", paths(&pair.caller)?);
        let began = Instant::now();
        for machine in segment.machines() {
            close_udp(machine)?;
            if run.sabotaged {
                machine.nft(SHUT)?;
            }
        }
        let echo = std::thread::spawn(move || -> Result<()> {
            loop {
                let (mut program, _) = listener.accept()?;
                let mut word = [0];
                // A check of the daemon and a client that has gone say nothing.
                if program.read_exact(&mut word).is_ok() {
                    let _ = program.write_all(&word);
                }
            }
        });
        let answered = here.enter(|| -> Result<_> {
            until("an answer over TCP", SEEN, || {
                let mut client = connect(vip)?;
                client.set_read_timeout(Some(Duration::from_millis(500)))?;
                client.write_all(b"x")?;
                Ok(client.read(&mut [0]).is_ok_and(|len| len == 1))
            })
        })??;
        promise!(!echo.is_finished(), "the program has ended");
        promise!(answered <= Duration::from_secs(6), "a new flow is answered after {answered:?}");
        throughout("members", Duration::from_secs(30).saturating_sub(began.elapsed()), || {
            for node in nodes {
                let events = node.ok(&["events"])?;
                let down = events.lines().find(|line| line.contains("-> down"));
                promise!(down.is_none(), "{} says {down:?}", node.name);
            }
            Ok(true)
        })?;
        Ok(format!("a new flow was answered after {:.1} s, nobody was called down", answered.as_secs_f64()))
    })
}

/// Drops what comes in for lanes.
const SHUT: &str =
    "table inet shut { chain in { type filter hook input priority 0; iif != lo tcp dport 4677 drop; }; }";

/// Paths of the flows that live, oldest first.
fn paths(node: &Node) -> Result<Vec<String>> {
    let flows = node.ok(&["status", "--flows", "--json"])?;
    let rows = flows.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(rows.filter_map(|row| row["path"].as_str().map(str::to_owned)).collect())
}

fn udp_again(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [here, there] = segment.machines() else { unreachable!("two machines were made") };
    close_udp(here)?;
    close_udp(there)?;
    run.scenario(|lab| {
        let pair = Pair::on(lab, here, there)?;
        let (listener, target) = there.enter(listen)??;
        let vip = pair.offer_orders(target)?;
        here.enter(|| -> Result<_> {
            let (mut client, mut program) = kept("a flow", pair_up(vip, &listener))?;
            promise!(paths(&pair.caller)? == ["lane"], "paths at first: {:?}", paths(&pair.caller)?);
            if !run.sabotaged {
                here.flush_rules()?;
                there.flush_rules()?;
            }
            let took = until("a new flow over QUIC", AGAIN, || {
                let _other = kept("another flow", pair_up(vip, &listener))?;
                Ok(paths(&pair.caller)?.last().is_some_and(|path| path == "quic"))
            })?;
            client.write_all(b"still there")?;
            client.shutdown(Shutdown::Write)?;
            promise!(end_of(&mut program) == (b"still there".to_vec(), None), "the flow on the lane is gone");
            program.write_all(b"yes")?;
            drop(program);
            promise!(end_of(&mut client) == (b"yes".to_vec(), None), "the flow on the lane has no answer");
            Ok(format!("new flows over QUIC after {:.0} s, the one on the lane lived on", took.as_secs_f64()))
        })?
    })
}

/// A service, and what carries its flows.
struct Carried {
    name: &'static str,
    vip: SocketAddr,
    listener: TcpListener,
    path: &'static str,
}

impl Carried {
    /// Opens a flow and returns it when the list says what carries it.
    fn open(&self, caller: &Node) -> Result<(TcpStream, TcpStream)> {
        let pair = kept(self.name, pair_up(self.vip, &self.listener))?;
        let rows = caller.ok(&["status", "--flows", "--json"])?;
        let rows = rows.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of: Vec<_> = rows.filter(|row| row["service"] == self.name).collect();
        promise!(!of.is_empty(), "no flow of {} is listed", self.name);
        for row in &of {
            promise!(row["path"] == self.path, "a flow of {} is on {}", self.name, row["path"]);
        }
        Ok(pair)
    }
}

fn transport(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [here, there] = segment.machines() else { unreachable!("two machines were made") };
    run.scenario(|lab| {
        let pair = Pair::on(lab, here, there)?;
        let wish = if run.sabotaged { "" } else { "[route.\"wished\"]\ntransport = \"tls\"\n" };
        std::fs::write(pair.caller.config_file(), wish)?;
        pair.caller.ok(&["reload"])?;
        let mut services = Vec::new();
        for (index, (name, path)) in [("plain", "quic"), ("offered", "lane"), ("wished", "lane")].into_iter().enumerate() {
            let (listener, target) = there.enter(listen)??;
            let (port, target) = (7_000 + index as u16, target.to_string());
            let named = format!("{name}:{port}");
            let mut asked = vec![&named[..], &target];
            let is_asked = name == "offered" && !run.sabotaged;
            asked.extend(is_asked.then_some(["--transport", "tls"]).into_iter().flatten());
            let vip = pair.offer(port, &asked)?;
            services.push(Carried { name, vip, listener, path });
        }
        let [plain, offered, wished] = &services[..] else { unreachable!("three services") };
        let open = || -> Result<Vec<_>> {
            [offered, plain, wished, plain, offered, plain].map(|service| service.open(&pair.caller)).into_iter().collect()
        };
        let living = here.enter(open)??;
        for service in &services {
            // The host of a test finds no names, which trace says as well.
            let traced = pair.caller.cli(&["trace", service.name])?.stdout;
            promise!(traced.to_lowercase().contains(service.path), "trace {} says {traced}", service.name);
        }
        drop(living);
        until("access lines", SEEN, || {
            let log = pair.caller.whole_log();
            let of = |name: &str| log.lines().filter(|line| line.contains("flow ended") && line.contains(&format!("service={name} "))).count();
            Ok(of("plain") >= 3 && of("offered") >= 2 && of("wished") >= 1)
        })?;
        let log = pair.caller.whole_log();
        for service in &services {
            let of = format!("service={} ", service.name);
            let lines = log.lines().filter(|line| line.contains("flow ended") && line.contains(&of));
            for line in lines {
                promise!(line.contains(&format!("path=\"{}\"", service.path)), "an access line says {line}");
            }
        }
        there.nft("table inet shut { chain in { type filter hook input priority 0; iif != lo tcp dport 4677 reject with tcp reset; }; }")?;
        let refused = here.enter(|| -> Result<usize> {
            let mut refused = 0;
            for service in [offered, wished] {
                let mut client = connect(service.vip)?;
                client.write_all(b"x")?;
                refused += usize::from(end_of(&mut client).0.is_empty());
            }
            Ok(refused)
        })??;
        let _living = here.enter(|| plain.open(&pair.caller))??;
        Ok(format!("3 flows on lanes, 3 on QUIC, and so say trace and access lines; {refused} of 2 refused with TCP closed"))
    })
}

/// Speaks TLS to the port, for a lane whose first flow holds a word. Returns what came back besides TLS.
pub(super) fn speak(at: SocketAddr, credentials: &Credentials, name: &str, alpn: &[u8]) -> Result<Vec<u8>> {
    let name = rustls::pki_types::ServerName::try_from(name.to_owned())?;
    let session = rustls::ClientConnection::new(Arc::new(tls(credentials, alpn)?), name)?;
    let mut stream = rustls::StreamOwned::new(session, connect(at)?);
    // A failure here is the daemon's answer.
    let _ = stream.write_all(&[1, 0, 0, 1, 1, 2, 0, 0, 1, b'?']);
    let mut said = Vec::new();
    let ended = stream.read_to_end(&mut said);
    let is_silent = ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    promise!(!is_silent, "the daemon did not hang up within {SEEN:?}");
    Ok(said)
}

/// Sends bytes to the port and returns what came back until the daemon hung up.
fn shout(at: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = connect(at)?;
    let _ = stream.write_all(bytes);
    let (said, ended) = end_of(&mut stream);
    promise!(ended != Some(ErrorKind::WouldBlock), "the daemon did not hang up within {SEEN:?}");
    Ok(said)
}

fn strangers(run: &Run) -> Result<String> {
    let segment = Segment::new(3)?;
    let [here, there, outside] = segment.machines() else { unreachable!("three machines were made") };
    close_udp(here)?;
    close_udp(there)?;
    run.scenario(|lab| {
        let pair = Pair::on(lab, here, there)?;
        pair.caller.sees("server", "alive", SEEN)?;
        let (listener, target) = there.enter(listen)??;
        let vip = pair.offer_orders(target)?;
        let (server, member) =
            (identity_of(&pair.server.state_dir())?, identity_of(&pair.caller.state_dir())?);
        let at = SocketAddr::from((Segment::address(1), 4_677));
        let (right, mesh) = (format!("{}.{}", server.node(), server.mesh), server.mesh);
        let wrong = if run.sabotaged { right.clone() } else { format!("{}.{mesh}", member.node()) };
        let of_member = Credentials::of_identity(&member);
        let counted = |reason: &str| {
            metric(&pair.server, &format!("gossamer_handshakes_refused_total{{reason=\"{reason}\"}}"))
        };
        let tls_before = counted("lane_tls")? + counted("certificate")?;
        let said = outside.enter(|| -> Result<_> {
            let mut said = shout(at, b"GET / HTTP/1.1\r\nHost: gossamer\r\n\r\n")?;
            said.extend(shout(at, &[0xff; 4_096])?);
            // An alert of TLS, in the clear, is all that may come back.
            promise!(said.len() <= 2 * 7, "{} bytes came back in the clear", said.len());
            let mut said = speak(at, &Credentials::None, &right, LANE)?;
            said.extend(speak(at, &Credentials::self_signed(mesh)?, &right, LANE)?);
            said.extend(speak(at, &Credentials::of_another_root(mesh)?, &right, LANE)?);
            said.extend(speak(at, &of_member, &wrong, LANE)?);
            said.extend(speak(at, &of_member, &right, b"h2")?);
            Ok(said)
        })??;
        // What a lane says of its end: a close with a code and a word, no hello.
        let is_close = said.is_empty() || said.first() == Some(&6);
        promise!(is_close && said.len() <= 64, "strangers were told {said:?}");
        for (reason, least) in [("lane_not_tls", 2), ("lane_name", 1), ("lane_protocol", 1)] {
            let count = counted(reason)?;
            promise!(count == least, "{count} of {least} are counted as {reason}");
        }
        let tls = counted("lane_tls")? + counted("certificate")? - tls_before;
        promise!(tls == 3, "{tls} of 3 strangers with TLS are counted");
        let standing = outside.enter(|| (0..SILENT).map(|_| connect(at)).collect::<Result<Vec<_>>>())??;
        let carried = here.enter(|| flows(vip, &listener, 4))??;
        drop(standing);
        let state = pair.caller.state_of("server")?;
        promise!(state.as_deref() == Some("alive"), "the caller sees the server as {state:?}");
        Ok(format!("7 of 7 hung up on and counted; beside {SILENT} silent connections {carried}"))
    })
}
