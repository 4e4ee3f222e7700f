//! The mesh from outside: real daemons on loopback, without root.
//!
//! Owns: what a user does and sees. Must not know: how. Driven by: `cargo test`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use gossamer_core::vip::{Pool, VipName};
use gossamer_tests::dnsq::{RecordType, ResponseCode};
use gossamer_tests::process::{Lab, Logs, Node, scenario};
use gossamer_tests::promise;
use gossamer_tests::targets::{Manner, exchange, read_greeting, while_serving};
use gossamer_tests::wait::until;
use gossamer_wire::MeshId;
use serde_json::Value;

/// How long a change may take on a machine that runs many tests at once.
const TRAVEL: Duration = Duration::from_secs(20);
/// How long a connection through the mesh may take.
const FLOW: Duration = Duration::from_secs(10);

fn play(steps: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    scenario(Path::new(env!("CARGO_BIN_EXE_gossamer-tested")), Logs::Shown, steps)
}

/// Starts nodes of these groups in one mesh; the first admits the others.
fn mesh(lab: &Lab, nodes: &[(&str, &str)]) -> Result<Vec<Node>> {
    let mut started: Vec<Node> = Vec::new();
    for (name, group) in nodes {
        let mut node = lab.node(name)?;
        match started.first() {
            None => node.init(group)?,
            Some(first) => node.join(&first.token(&["--group", group])?)?,
        }
        started.push(node);
    }
    for node in &started {
        for (other, _) in nodes {
            node.sees(other, "alive", TRAVEL)?;
        }
    }
    Ok(started)
}

/// Returns a service's address at a node, with the port.
fn vip(node: &Node, service: &str, port: u16) -> Result<SocketAddr> {
    Ok((node.resolver()?.address(&format!("{service}.mesh.internal"), TRAVEL)?, port).into())
}

#[test]
fn two_daemons_join_and_see_each_other() -> Result<()> {
    play(|lab| {
        let nodes = mesh(lab, &[("a", "west"), ("b", "east")])?;
        let listed = nodes[1].json(&["nodes"])?;
        let group = |name: &str| {
            let rows = listed.as_array().into_iter().flatten();
            rows.filter(|row| row["name"] == name).map(|row| row["group"].clone()).collect::<Vec<_>>()
        };
        promise!(group("a") == ["west"] && group("b") == ["east"], "the listing is {listed}");
        promise!(
            nodes[0].status()?["members_alive"] == 2,
            "status counts {}",
            nodes[0].status()?["members_alive"]
        );
        Ok(())
    })
}

#[test]
fn an_exposed_service_is_answered_under_every_name_and_reached() -> Result<()> {
    play(|lab| {
        let nodes = mesh(lab, &[("a", "west"), ("b", "west")])?;
        while_serving(Manner::Echoes, |port| {
            nodes[1].ok(&["expose", &format!("orders:{port}")])?;
            let address = vip(&nodes[0], "orders", port)?;
            promise!(
                address.ip().is_loopback() && address.ip() != Ipv4Addr::LOCALHOST,
                "its address is {address}"
            );
            let resolver = nodes[0].resolver()?;
            for name in ["orders", "orders.west", "b.orders.west"] {
                resolver.address(&format!("{name}.mesh.internal"), TRAVEL)?;
            }
            let srv = resolver.ask(&format!("_{port}._tcp.orders.mesh.internal"), RecordType::SRV)?;
            promise!(srv.targets() == ["b.orders.west.mesh.internal"], "SRV names {:?}", srv.targets());
            promise!(srv.additional().len() == 1, "SRV brings {:?}", srv.additional());
            let ipv6 = resolver.ask("orders.mesh.internal", RecordType::AAAA)?;
            promise!(ipv6.is_nodata() && ipv6.is_authoritative(), "AAAA is answered with {ipv6}");
            let back = exchange(address, b"over the mesh and back", FLOW)?;
            promise!(back == b"over the mesh and back", "{} bytes came back", back.len());
            Ok(())
        })
    })
}

#[test]
fn a_server_that_speaks_first_is_heard_without_a_word() -> Result<()> {
    play(|lab| {
        let nodes = mesh(lab, &[("a", "west"), ("b", "east")])?;
        while_serving(Manner::Greets("220 ready\r\n"), |port| {
            nodes[1].ok(&["expose", &format!("mail:{port}"), "--to", "west"])?;
            let greeting = read_greeting(vip(&nodes[0], "mail.east", port)?, FLOW)?;
            promise!(greeting == "220 ready\r\n", "it says {greeting:?}");
            Ok(())
        })
    })
}

#[test]
fn a_withdrawn_service_is_gone_everywhere() -> Result<()> {
    play(|lab| {
        let nodes = mesh(lab, &[("a", "west"), ("b", "west")])?;
        while_serving(Manner::Greets("x"), |port| {
            nodes[1].ok(&["expose", &format!("orders:{port}")])?;
            vip(&nodes[0], "orders", port)?;
            nodes[1].ok(&["withdraw", "orders"])?;
            for node in &nodes {
                node.resolver()?.gone("orders.mesh.internal", TRAVEL)?;
            }
            let again = nodes[1].cli(&["withdraw", "orders"])?;
            promise!(again.code == Some(4), "withdrawing it again ends with {:?}", again.code);
            Ok(())
        })
    })
}

/// Returns two service names that have one virtual address in this node's mesh; the second one loses.
fn meeting(node: &Node) -> Result<[String; 2]> {
    let mesh: MeshId = node.status()?["mesh"]["id"].as_str().context("a mesh")?.parse()?;
    let mut seen = BTreeMap::new();
    for number in 0.. {
        let name = format!("meets-{number}");
        let hash = VipName::Service(name.parse()?).hash(&mesh, 0);
        if let Some((other, lower)) = seen.insert(Pool::of_slot(0).vip(hash), (name.clone(), hash)) {
            return Ok(if lower < hash { [other, name] } else { [name, other] });
        }
    }
    unreachable!("a pool has fewer addresses than there are names")
}

#[test]
fn two_names_of_one_address_are_both_answered_and_stay_apart_over_a_restart() -> Result<()> {
    play(|lab| {
        let mut nodes = mesh(lab, &[("a", "west"), ("b", "west")])?;
        let [winner, loser] = meeting(&nodes[0])?;
        while_serving(Manner::Greets("hello"), |port| {
            for (node, name) in [(0, &winner), (1, &loser)] {
                nodes[node].ok(&["expose", &format!("{name}:{port}")])?;
            }
            let both = |node: &Node| Ok([vip(node, &winner, port)?, vip(node, &loser, port)?]);
            let first: Result<Vec<_>> = nodes.iter().map(both).collect();
            let ips: Vec<_> = first?.iter().map(|both| both.map(|at| at.ip())).collect();
            promise!(ips.iter().all(|ip| ip[0] != ip[1]), "they have {ips:?}");
            let losing = nodes[0].status()?["findings"].to_string();
            promise!(!losing.contains("virtual address"), "a settled name is still a finding: {losing}");
            // The same instance under the next start has the same address, from its own disk.
            nodes[1].kill9()?;
            nodes[1].run()?;
            let again: [SocketAddr; 2] = both(&nodes[1])?;
            promise!(
                again.map(|at| at.ip()) == ips[1],
                "after a restart they have {again:?}, not {:?}",
                ips[1]
            );
            for at in again {
                promise!(read_greeting(at, FLOW)? == "hello", "{at} is not the service");
            }
            Ok(())
        })
    })
}

/// Runs `gossamer watch --json` at a node and reads its lines until one is wanted.
struct Watcher {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watcher {
    fn start(node: &Node, name: &str) -> Result<Self> {
        let mut child = node.command(&["watch", name, "--json"]).stdout(Stdio::piped()).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("it is piped")?);
        let (send, lines) = mpsc::channel();
        // Ends with the child, or with the test.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut watcher = Self { child, lines };
        watcher.wait(|line| line["kind"] == "watching")?;
        Ok(watcher)
    }

    /// Reads lines until one is wanted, none for longer than a change may take.
    fn wait(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let line = self.lines.recv_timeout(TRAVEL + TRAVEL).context("no such line came")?;
            let line: Value = serde_json::from_str(&line)?;
            if wanted(&line) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

#[test]
fn a_watcher_sees_a_service_come_and_go_and_its_node_die() -> Result<()> {
    play(|lab| {
        let mut nodes = mesh(lab, &[("a", "west"), ("b", "west")])?;
        while_serving(Manner::Greets("x"), |port| {
            let mut services = Watcher::start(&nodes[0], "orders")?;
            let mut members = Watcher::start(&nodes[0], "b")?;
            nodes[1].ok(&["expose", &format!("orders:{port}")])?;
            let come = services.wait(|line| line["now"] == "usable")?;
            promise!(come["was"] == "absent" && come["node"] == "b", "it came as {come}");
            // What is told is there: the first answer already has it.
            let answer = nodes[0].resolver()?.ask("orders.mesh.internal", RecordType::A)?;
            promise!(answer.addresses().len() == 1, "told of, and answered with {answer}");
            nodes[1].ok(&["withdraw", "orders"])?;
            services.wait(|line| line["now"] == "absent")?;
            nodes[1].ok(&["expose", &format!("orders:{port}")])?;
            services.wait(|line| line["now"] == "usable")?;
            nodes[1].kill9()?;
            let down = members.wait(|line| line["now"] == "down")?;
            promise!(down["kind"] == "node" && down["cause"] != "", "it died as {down}");
            services.wait(|line| line["now"] == "down")?;
            let listed = nodes[0].json(&["nodes"])?;
            let rows = listed.as_array().into_iter().flatten();
            let dead: Vec<_> = rows.filter(|row| row["name"] == "b").collect();
            promise!(dead[0]["state"] == "down" && dead[0]["reason"].is_string(), "it is listed as {listed}");
            Ok(())
        })
    })
}

#[test]
fn names_outside_the_zone_are_refused_at_once() -> Result<()> {
    play(|lab| {
        let nodes = mesh(lab, &[("a", "west")])?;
        let resolver = nodes[0].resolver()?;
        let outside = resolver.ask("example.com", RecordType::A)?;
        promise!(outside.code() == ResponseCode::Refused, "example.com is answered with {outside}");
        let unknown = resolver.ask("nothing.mesh.internal", RecordType::A)?;
        promise!(unknown.code() == ResponseCode::NXDomain, "an unknown name is answered with {unknown}");
        Ok(())
    })
}

#[test]
fn sigterm_leaves_and_the_identity_stays() -> Result<()> {
    play(|lab| {
        let mut nodes = mesh(lab, &[("a", "west"), ("b", "west")])?;
        while_serving(Manner::Greets("back\n"), |port| {
            nodes[1].ok(&["expose", &format!("orders:{port}")])?;
            vip(&nodes[0], "orders", port)?;
            let id = nodes[1].status()?["node"]["id"].clone();
            let code = nodes[1].stop()?;
            promise!(code == 0, "SIGTERM ends it with {code}");
            nodes[0].sees("b", "left", TRAVEL)?;
            nodes[1].run()?;
            promise!(nodes[1].status()?["node"]["id"] == id, "it came back as another node");
            nodes[0].sees("b", "alive", TRAVEL)?;
            let address = vip(&nodes[0], "orders", port)?;
            until("the service being reached again", TRAVEL, || {
                Ok(read_greeting(address, FLOW).is_ok_and(|text| text == "back\n"))
            })?;
            Ok(())
        })
    })
}

#[test]
fn leave_ends_the_daemon() -> Result<()> {
    play(|lab| {
        let mut nodes = mesh(lab, &[("a", "west"), ("b", "west")])?;
        nodes[1].ok(&["leave"])?;
        let code = nodes[1].ended(TRAVEL)?;
        promise!(code == 0, "leave ends the daemon with {code}");
        nodes[0].sees("b", "left", TRAVEL).map(drop)
    })
}

#[test]
fn a_restarted_daemon_answers_from_disk_with_no_peer_reachable() -> Result<()> {
    play(|lab| {
        let mut nodes = mesh(lab, &[("a", "west"), ("b", "west")])?;
        while_serving(Manner::Greets("x"), |port| {
            nodes[1].ok(&["expose", &format!("orders:{port}")])?;
            vip(&nodes[0], "orders", port)?;
            let mut first = nodes.swap_remove(0);
            // What was heard is written soon, not at once: a copy is what counts.
            until("the records reaching the disk", TRAVEL, || {
                let files = std::fs::read_dir(first.state_dir())?.flatten();
                Ok(files.into_iter().any(|file| file.file_name().to_string_lossy().contains("catalog")))
            })?;
            first.stop()?;
            nodes[0].kill9()?;
            first.run()?;
            vip(&first, "orders", port).map(drop)
        })
    })
}

#[test]
fn when_a_serving_daemon_is_killed_no_connection_fails() -> Result<()> {
    play(|lab| {
        let mut nodes = mesh(lab, &[("a", "west"), ("b", "west"), ("c", "west")])?;
        while_serving(Manner::Greets("served\n"), |port| {
            for exporter in [1, 2] {
                nodes[exporter].ok(&["expose", &format!("orders:{port}")])?;
            }
            let resolver = nodes[0].resolver()?;
            let srv = format!("_{port}._tcp.orders.mesh.internal");
            resolver.wait(&srv, RecordType::SRV, TRAVEL, |answer| answer.targets().len() == 2)?;
            let address = vip(&nodes[0], "orders", port)?;
            for connection in 0..60 {
                if connection == 10 {
                    nodes[2].kill9()?;
                }
                let greeting =
                    read_greeting(address, FLOW).with_context(|| format!("connection {connection}"))?;
                promise!(greeting == "served\n", "connection {connection} read {greeting:?}");
            }
            nodes[0].sees("c", "down", TRAVEL).map(drop)
        })
    })
}

#[test]
fn a_killed_daemon_keeps_what_it_acknowledged() -> Result<()> {
    play(|lab| {
        let mut nodes = mesh(lab, &[("a", "west")])?;
        while_serving(Manner::Greets("x"), |port| {
            nodes[0].ok(&["expose", &format!("kept:{port}")])?;
            nodes[0].ok(&["expose", &format!("dropped:{port}")])?;
            nodes[0].ok(&["withdraw", "dropped"])?;
            nodes[0].kill9()?;
            nodes[0].run()?;
            vip(&nodes[0], "kept", port)?;
            nodes[0].resolver()?.gone("dropped.mesh.internal", TRAVEL).map(drop)
        })
    })
}

#[test]
fn two_daemons_find_slots_by_themselves() -> Result<()> {
    play(|lab| {
        let mut nodes = Vec::new();
        for name in ["a", "b"] {
            let mut node = lab.plain_node(name)?.with("GOSSAMER_SLOT", "auto");
            node.init("west")?;
            nodes.push(node);
        }
        let slots: Vec<_> =
            nodes.iter().map(|node| Ok(node.status()?["slot"].clone())).collect::<Result<_>>()?;
        promise!(slots[0] != slots[1], "both have slot {}", slots[0]);
        promise!(
            nodes[0].dns_address()? != nodes[1].dns_address()?,
            "both answer at {}",
            nodes[0].dns_address()?
        );
        Ok(())
    })
}
