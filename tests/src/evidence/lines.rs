//! What is seen of flows: their access lines on both nodes, and the list of those that live.
//!
//! Owns: the ends a flow can have, what a client must do for each. Must not know: how daemons write their logs.
//! Driven by: `evidence`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gossamer_wire::Transport;
use gossamer_wire::flow::{OpenRequest, OpenStatus};
use serde_json::Value;

use super::carried::{Pair, connect, raise_files};
use super::{Ci, Needs, Row, Run};
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{Credentials, open_flow, open_raw};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "6.7-access-line",
        promise: "Each finished flow has one access line on each node it touched, with the same flow id and the same fields, for every kind of end: done, reset by the client, reset by the service, released UDP, within a node, refused, denied, and a request that is none",
        sabotage: "the calling daemon writes no lines below the level of warnings",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: access_line,
    },
    Row {
        name: "6.7-flows",
        promise: "gossamer status --flows lists every living flow on both nodes with the same id, its bytes so far, its age and who calls whom, oldest first and as many as --limit says; one that has ended is gone",
        sabotage: "every second client goes away before the list is read",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: flows,
    },
];

const TRAVEL: Duration = Duration::from_secs(20);

/// Lets a node write its log as JSON.
pub(super) fn log_json(node: &Node, level: &str) -> Result<()> {
    Ok(fs::write(node.config_file(), format!("[log]\nformat = \"json\"\nlevel = \"{level}\"\n"))?)
}

/// Returns the access lines of a node.
pub(super) fn access_lines(node: &Node) -> Vec<Value> {
    let lines: Vec<Value> =
        node.whole_log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    lines.into_iter().filter(|line| line["target"] == "access").collect()
}

/// Waits for the access line that satisfies `is_it`.
pub(super) fn line(node: &Node, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut found = None;
    until(&format!("the access line of {what} on {}", node.name), TRAVEL, || {
        found = access_lines(node).into_iter().find(&is_it);
        Ok(found.is_some())
    })?;
    found.context("a line")
}

/// A pair whose logs are JSON, each with a service of its own.
fn pair(lab: &Lab, run: &Run) -> Result<Pair> {
    let (mut server, mut caller) = (lab.node("server")?, lab.node("caller")?);
    log_json(&server, "info")?;
    log_json(&caller, if run.sabotaged { "warn" } else { "info" })?;
    server.init("west")?;
    caller.join(&server.token(&[])?)?;
    Ok(Pair { server, caller })
}

/// What every line of a flow must have.
const FIELDS: [&str; 9] =
    ["flow", "direction", "transport", "service", "instance", "peer", "group", "took", "reason"];

/// Looks that both nodes have one line of a flow, with these reasons; returns its id.
fn both(pair: &Pair, service: &str, reasons: (&str, &str), skip: &BTreeSet<String>) -> Result<String> {
    let is_it =
        |line: &Value| line["service"] == service && !skip.contains(line["flow"].as_str().unwrap_or(""));
    let far = line(&pair.server, service, |line| is_it(line) && line["direction"] == "inbound")?;
    let flow = far["flow"].as_str().unwrap_or_default().to_owned();
    let near = line(&pair.caller, service, |line| line["flow"] == flow.as_str())?;
    for (line, reason) in [(&near, reasons.0), (&far, reasons.1)] {
        promise!(
            line["reason"] == reason,
            "{service} ends with {} and not with {reason}: {line}",
            line["reason"]
        );
        let missing: Vec<_> = FIELDS.iter().filter(|field| line[**field].is_null()).collect();
        promise!(missing.is_empty(), "{service} has no {missing:?}: {line}");
        promise!(line["bytes_in"].is_u64() && line["bytes_out"].is_u64(), "no bytes in {line}");
    }
    promise!(
        near["instance"] == far["instance"] && near["transport"] == far["transport"],
        "{near} beside {far}"
    );
    promise!(near["peer"] == "server" && far["peer"] == "caller", "the peers are {near} and {far}");
    for node in [&pair.server, &pair.caller] {
        let lines = access_lines(node).iter().filter(|line| line["flow"] == flow.as_str()).count();
        promise!(lines == 1, "{} has {lines} lines of flow {flow}", node.name);
    }
    Ok(flow)
}

fn access_line(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let pair = pair(lab, run)?;
        let mut seen = BTreeSet::new();
        let (listener, target) = listen()?;
        let address = pair.offer(8_080, &["orders:8080", &target.to_string()])?;
        for (ends, reasons) in [
            (Ends::Clean, ("done", "done")),
            (Ends::Client, ("client-reset", "client-reset")),
            (Ends::Service, ("service-reset", "service-reset")),
        ] {
            play(&listener, address, ends)?;
            seen.insert(both(&pair, "orders", reasons, &seen)?);
        }
        let udp = udp_released(&pair)?;
        seen.insert(udp);
        within(&pair, &listener)?;
        refused(&pair)?;
        hostile(lab, &pair)?;
        Ok(format!("8 kinds of end, {} of them with one id on both nodes", seen.len() + 1))
    })
}

fn listen() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

#[derive(Clone, Copy)]
enum Ends {
    Clean,
    Client,
    Service,
}

/// Carries one flow and ends it.
fn play(listener: &TcpListener, address: SocketAddr, ends: Ends) -> Result<()> {
    let mut client = connect(address)?;
    client.write_all(b"question")?;
    let mut program = loop {
        let (mut program, _) = listener.accept()?;
        program.set_read_timeout(Some(TRAVEL))?;
        // Without a byte it was a check of the daemon.
        let mut word = [0; 8];
        if program.read_exact(&mut word).is_ok() {
            break program;
        }
    };
    program.write_all(b"answer")?;
    client.read_exact(&mut [0; 6])?;
    match ends {
        Ends::Clean => {
            client.shutdown(std::net::Shutdown::Write)?;
            ensure!(program.read(&mut [0])? == 0, "the program's end");
        }
        Ends::Client => reset(&client)?,
        Ends::Service => reset(&program)?,
    }
    drop((client, program));
    Ok(())
}

fn reset(stream: &TcpStream) -> Result<()> {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger)?)
}

/// A UDP flow that ends because its service is withdrawn.
fn udp_released(pair: &Pair) -> Result<String> {
    let program = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    program.set_read_timeout(Some(TRAVEL))?;
    let target = program.local_addr()?.to_string();
    let address = pair.offer(5_353, &["clock:5353/udp", &target])?;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.send_to(b"time?", address)?;
    let (_, from) = program.recv_from(&mut [0; 16])?;
    program.send_to(b"noon", from)?;
    client.set_read_timeout(Some(TRAVEL))?;
    client.recv(&mut [0; 16])?;
    pair.server.ok(&["withdraw", "clock"])?;
    let is_it = |line: &Value| line["service"] == "clock" && line["bytes_in"] != 0;
    until("the end of the UDP flow", TRAVEL, || {
        client.send_to(b"time?", address)?;
        Ok(access_lines(&pair.caller).iter().any(is_it))
    })?;
    // Later datagrams have flows of their own, which fail. Whichever node hears first of the end tells the other.
    let near = line(&pair.caller, "clock", is_it)?;
    let flow = near["flow"].as_str().unwrap_or_default().to_owned();
    let far = line(&pair.server, "clock", |line| line["flow"] == flow.as_str())?;
    promise!(near["transport"] == "udp" && far["transport"] == "udp", "{near} beside {far}");
    promise!(
        ["released", "service-reset"].iter().any(|word| near["reason"] == *word),
        "the caller's line is {near}"
    );
    promise!(["done", "revoked"].iter().any(|word| far["reason"] == *word), "the server's line is {far}");
    Ok(flow)
}

/// A flow within a node has one line.
fn within(pair: &Pair, listener: &TcpListener) -> Result<()> {
    let vip = pair.server.resolver()?.address("orders.mesh.internal", TRAVEL)?;
    play(listener, (vip, 8_080).into(), Ends::Clean)?;
    let own = line(&pair.server, "the own flow", |line| line["direction"] == "outbound")?;
    promise!(own["reason"] == "done" && own["peer"] == "server" && own["group"] == "west", "{own}");
    let flow = &own["flow"];
    let count = access_lines(&pair.server).iter().filter(|line| line["flow"] == *flow).count();
    promise!(count == 1, "a flow within a node has {count} lines");
    Ok(())
}

/// A target that goes away: its flow is refused on both nodes, again and again, with one line each.
fn refused(pair: &Pair) -> Result<()> {
    let (listener, target) = listen()?;
    let address = pair.offer(9_090, &["gone:9090", &target.to_string()])?;
    drop(listener);
    let mut client = connect(address)?;
    let ended = client.read(&mut [0]);
    promise!(ended.is_err(), "the client of a program that is gone sees {ended:?}");
    both(pair, "gone", ("refused", "refused"), &BTreeSet::new()).map(drop)
}

/// What a member without a daemon asks for.
fn hostile(lab: &Lab, pair: &Pair) -> Result<()> {
    let stranger = lab.node("stranger")?;
    let token = pair.server.token(&["--group", "east"])?;
    stranger.ok(&["join", &token, "--node", "stranger", "--no-start"])?;
    let member = Credentials::of_member(&stranger.state_dir())?;
    let server = pair.server.mesh_address()?;
    let request = OpenRequest {
        flow: 0xfeed,
        service: "orders".parse()?,
        instance: "server".parse()?,
        port: 8_080.into(),
        transport: Transport::Tcp,
    };
    let answer = open_flow(server, &member, &request)?;
    promise!(answer == Some(OpenStatus::Denied), "another group gets {answer:?}");
    let denied = line(&pair.server, "the denied flow", |line| line["flow"] == "000000000000feed")?;
    promise!(denied["reason"] == "denied" && denied["group"] == "east", "{denied}");
    let answer = open_raw(server, &member, &[0, 3, 0xff, 0xff, 0xff])?;
    promise!(answer.is_none(), "a request that is none gets {answer:?}");
    let none = line(&pair.server, "no request", |line| line["reason"] == "malformed")?;
    promise!(none["peer"] == "stranger" && none["group"] == "east" && none["flow"].is_null(), "{none}");
    Ok(())
}

fn flows(run: &Run) -> Result<String> {
    let count: usize = run.times(5_000, 1_200);
    raise_files(2 * count as u64 + 1_000)?;
    run.scenario(|lab| {
        let pair = Pair::new(lab)?;
        let (listener, target) = listen()?;
        let address = pair.offer(8_080, &["orders:8080", &target.to_string()])?;
        let mut open = Vec::with_capacity(count);
        for number in 0..count {
            let mut client = connect(address)?;
            client.write_all(b"question")?;
            let program = loop {
                let (mut program, _) = listener.accept()?;
                program.set_read_timeout(Some(TRAVEL))?;
                let mut word = [0; 8];
                if program.read_exact(&mut word).is_ok() {
                    break program;
                }
            };
            if run.sabotaged && number % 2 == 0 {
                continue;
            }
            open.push((client, program));
        }
        for (client, program) in &mut open {
            program.write_all(b"answers")?;
            client.read_exact(&mut [0; 7])?;
        }
        let (near, far) = (listed(&pair.caller, 2 * count)?, listed(&pair.server, 2 * count)?);
        promise!(
            near.len() == count && far.len() == count,
            "{} and {} of {count} are listed",
            near.len(),
            far.len()
        );
        let ids: BTreeMap<_, _> = near.iter().map(|row| (row["flow"].to_string(), row)).collect();
        promise!(far.iter().all(|row| ids.contains_key(&row["flow"].to_string())), "the ids differ");
        for row in near.iter().chain(&far) {
            promise!(row["bytes_in"] == 8 && row["bytes_out"] == 7, "{row} has other bytes");
            promise!(row["transport"] == "tcp" && row["path"] == "quic" && !row["remote"].is_null(), "{row}");
        }
        let clients: BTreeSet<_> = near.iter().map(|row| row["client"].to_string()).collect();
        let expected: BTreeSet<_> = open
            .iter()
            .map(|(client, _)| Ok(format!("\"{}\"", client.local_addr()?)))
            .collect::<Result<_>>()?;
        promise!(clients == expected, "other clients are listed");
        promise!(
            far.iter().all(|row| row["target"] == target.to_string().as_str()),
            "another target is listed"
        );
        let ages: Vec<_> = near.iter().filter_map(|row| row["age_ms"].as_u64()).collect();
        promise!(ages.len() == count && ages.is_sorted_by(|a, b| a >= b), "they are not listed oldest first");
        let some = pair.caller.cli(&["status", "--flows", "--limit", "7"])?;
        let rows = some.stdout.lines().count();
        promise!(
            rows == 8 && some.stderr.contains(&format!("{} younger", count - 7)),
            "{rows} lines; {}",
            some.stderr
        );
        let (client, program) = open.pop().context("a flow")?;
        drop((client, program));
        until("the end of one flow in the list", TRAVEL, || {
            Ok(listed(&pair.caller, 2 * count)?.len() == count - 1)
        })?;
        Ok(format!("{count} flows on both nodes with the same ids, bytes and clients, oldest first"))
    })
}

/// Returns the rows of `status --flows --json`.
fn listed(node: &Node, limit: usize) -> Result<Vec<Value>> {
    let text = node.ok(&["status", "--flows", "--json", "--limit", &limit.to_string()])?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
