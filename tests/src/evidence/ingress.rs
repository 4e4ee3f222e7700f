//! Two meshes behind one port: an ingress of somebody else that routes by the server name of TLS.
//!
//! Owns: the machines, what they let through, the ingress and the databases. Must not know: the bytes of lanes.
//! Driven by: `evidence`. Needs root: each machine is a network namespace.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::addresses::metric;
use super::carried::{Pair, connect, kept, listen};
use super::lanes::{LANE, formed, pair_up, path, speak};
use super::protocols::{Running, must, postgres, start};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{Credentials, identity_of};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[Row {
    name: "7.4-ingress",
    promise: "All UDP is dropped and nothing but port 443 of an HAProxy in TCP mode leads to the issuers of two meshes, which say so with tls://ingress.example:443: in both a node joins and is a member within 5 s, again after both have restarted, psql is answered over a lane by the database of its own mesh under the name that both have, a flow passes the other way; a name of another node is refused and counted, one of no mesh is hung up on by HAProxy",
    sabotage: "HAProxy sends the names of each mesh to the issuer of the other",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: ingress,
}];

const GATE: u8 = 0;
const LIMIT: Duration = Duration::from_secs(10);
const URL: &str = "tls://ingress.example:443";

/// What a machine behind the ingress takes: what comes from there.
fn shield(machine: &Namespace) -> Result<()> {
    let gate = Segment::address(GATE);
    machine.nft(&format!(
        "table ip shield {{ chain in {{ type filter hook input priority 0; \
         iif lo accept; meta l4proto udp drop; ip saddr != {gate} drop; }}; }}"
    ))
}

/// What a machine elsewhere takes: answers to its own TCP connections.
fn seclude(machine: &Namespace) -> Result<()> {
    machine.nft(
        "table ip seclude { chain in { type filter hook input priority 0; \
         iif lo accept; meta l4proto udp drop; ct state established accept; drop; }; }",
    )
}

/// Starts HAProxy on its machine: one port, and each mesh is a rule.
fn haproxy(lab: &Lab, gate: &Namespace, issuers: [&Node; 2], swapped: bool) -> Result<Running> {
    let (mut rules, mut backends) = (String::new(), String::new());
    for (index, issuer) in issuers.into_iter().enumerate() {
        let mesh = identity_of(&issuer.state_dir())?.mesh;
        let at = Segment::address(1 + (index as u8 ^ u8::from(swapped)));
        rules += &format!("    use_backend mesh{index} if {{ req.ssl_sni -i -m end {mesh} }}\n");
        backends += &format!("backend mesh{index}\n    server issuer {at}:4677\n");
    }
    let config = lab.dir().join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 5m\n    timeout server 5m\n\
             frontend lanes\n    bind {}:443\n    tcp-request inspect-delay 3s\n\
             \x20   tcp-request content accept if {{ req.ssl_hello_type 1 }}\n    tcp-request content reject\n{rules}{backends}",
            Segment::address(GATE)
        ),
    )?;
    let log = lab.dir().join("haproxy.log");
    gate.enter(|| {
        let mut haproxy = Command::new("haproxy");
        haproxy.arg("-db").arg("-f").arg(&config);
        let running = start(haproxy, &log)?;
        until("haproxy", LIMIT, || Ok(connect((Segment::address(GATE), 443).into()).is_ok()))?;
        Ok(running)
    })?
}

/// Lets a node join and waits until both see each other, again after both have restarted.
fn form(mesh: &mut Pair, token: &str) -> Result<[Duration; 2]> {
    let began = Instant::now();
    kept("a join", mesh.caller.join(token))?;
    let joined = formed(&[&mesh.server, &mesh.caller], began)?;
    mesh.server.stop()?;
    mesh.caller.stop()?;
    let began = Instant::now();
    mesh.server.run()?;
    mesh.caller.run()?;
    Ok([joined, formed(&[&mesh.server, &mesh.caller], began)?])
}

/// Asks the database under the name that both meshes have who it is.
fn ask(lab: &Lab, mesh: &Pair, vip: SocketAddr, here: &Namespace) -> Result<String> {
    let (host, port) = (vip.ip().to_string(), vip.port().to_string());
    let asked = ["-h", &host, "-p", &port, "-U", "gossamer", "-d", "postgres", "-Atc", "show cluster_name"];
    let said = kept("psql", here.enter(|| must(lab, "psql", &asked))?)?;
    let mut lines = Vec::new();
    until("an access line", LIMIT, || {
        let log = mesh.caller.whole_log();
        lines =
            log.lines().filter(|line| line.contains("direction=\"outbound\"")).map(str::to_owned).collect();
        Ok(!lines.is_empty())
    })?;
    promise!(lines.iter().all(|line| line.contains("path=\"lane\"")), "access lines say {lines:?}");
    Ok(said.trim().to_owned())
}

fn ingress(run: &Run) -> Result<String> {
    let segment = Segment::new(5)?;
    let [gate, inner_a, inner_b, outer_a, outer_b] = segment.machines() else {
        unreachable!("five machines")
    };
    let hosts = format!("127.0.0.1 localhost\n{} ingress.example\n", Segment::address(GATE));
    for (inner, outer) in [(inner_a, outer_a), (inner_b, outer_b)] {
        shield(inner)?;
        seclude(outer)?;
        outer.hosts(&hosts)?;
    }
    run.scenario(|lab| {
        let mut meshes = Vec::new();
        for (name, inner, outer) in [("a", inner_a, outer_a), ("b", inner_b, outer_b)] {
            let mut server = lab.node_in(&format!("{name}-inner"), inner)?.with("GOSSAMER_ADVERTISE", URL);
            server.init("west")?;
            meshes.push(Pair { server, caller: lab.node_in(&format!("{name}-outer"), outer)? });
        }
        let [mut a, mut b] = <[Pair; 2]>::try_from(meshes).ok().context("two meshes")?;
        let _haproxy = haproxy(lab, gate, [&a.server, &b.server], run.sabotaged)?;
        // One token names what the node advertises, the other what the operator names.
        let (token, named) = (a.server.token(&[])?, ["token", "create", "--address", URL]);
        let shown = b.server.cli(&named)?;
        promise!(shown.stderr.contains(URL), "token create shows {}", shown.stderr);
        let times = [form(&mut a, &token)?, form(&mut b, shown.stdout.trim())?];
        let mut databases = Vec::new();
        for (name, mesh, inner, outer) in [("a", &a, inner_a, outer_a), ("b", &b, inner_b, outer_b)] {
            let (running, port) = inner.enter(|| postgres(lab, name))??;
            databases.push(running);
            let vip = mesh.offer(5_432, &["pg:5432", &format!("127.0.0.1:{port}")])?;
            let said = ask(lab, mesh, vip, outer)?;
            promise!(said == name, "mesh {name} is answered by database {said:?}");
        }
        let back = Pair { server: a.caller, caller: a.server };
        let (listener, target) = outer_a.enter(listen)??;
        let vip = back.offer_orders(target)?;
        let pair = kept("a flow inwards", inner_a.enter(|| pair_up(vip, &listener))?)?;
        let way = path(&back.caller)?;
        promise!(way == "lane", "the path of a flow inwards is {way}");
        drop(pair);
        let refused = strangers(&back, outer_a)?;
        let seconds = times.concat().iter().map(|took| format!("{:.1}", took.as_secs_f64())).collect::<Vec<_>>();
        Ok(format!(
            "formed and formed again after {} s; psql 2 of 2 by the database of its own mesh, a flow inwards; {refused}",
            seconds.join(", ")
        ))
    })
}

/// Asks the ingress for a node that is not behind it, and for nobody at all.
fn strangers(mesh: &Pair, outside: &Namespace) -> Result<String> {
    let member = identity_of(&mesh.server.state_dir())?;
    let (of_member, at) =
        (Credentials::of_identity(&member), SocketAddr::from((Segment::address(GATE), 443)));
    let counted = || metric(&mesh.caller, "gossamer_handshakes_refused_total{reason=\"lane_name\"}");
    let before = counted()?;
    let (other, nobody) = (format!("{}.{}", member.node(), member.mesh), "nobody.example");
    let said = outside.enter(|| -> Result<_> {
        Ok([speak(at, &of_member, &other, LANE)?, speak(at, &of_member, nobody, LANE)?].concat())
    })??;
    promise!(said.is_empty(), "strangers were told {said:?}");
    let count = counted()? - before;
    promise!(count == 1, "{count} of 1 names of another node are counted");
    Ok("a wrong name counted, one of no mesh hung up on".to_owned())
}
