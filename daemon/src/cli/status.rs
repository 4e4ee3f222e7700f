//! `status`: this daemon, and what is wrong with it.
//!
//! Owns: how it reads. Must not know: how findings are found. Driven by: `cli`.

use std::fmt::Display;
use std::process::ExitCode;

use super::args::StatusArgs;
use super::failure::{Exit, Failure};
use super::{flows, output, token};
use crate::api::Client;
use crate::api::messages::{DrainRow, LeavingRow, Protocol, Status, UpstreamRow};

pub(super) async fn run(client: &Client, asked: &StatusArgs) -> Result<(), Failure> {
    let StatusArgs { flows: of_flows, limit, shape } = *asked;
    if of_flows {
        return flows::run(client, limit, shape).await;
    }
    let status: Status = client.get("/v1/status").await?;
    if shape.json {
        return output::json(&status);
    }
    let lines = if shape.quiet { findings(&status) } else { lines(&status) };
    lines.iter().for_each(output::data);
    Ok(())
}

/// `doctor`: what is wrong, each with what mends it; fails when something is.
pub(super) async fn doctor(client: &Client, json: bool) -> Result<ExitCode, Failure> {
    let status: Status = client.get("/v1/status").await?;
    let is_well = status.findings.is_empty();
    if json {
        output::json(&status.findings)?;
    } else if is_well {
        output::data(format_args!("nothing is wrong: {} peers are connected", status.peers.len()));
    } else {
        findings(&status).iter().for_each(output::data);
    }
    Ok(if is_well { ExitCode::SUCCESS } else { Exit::Failed.into() })
}

fn lines(status: &Status) -> Vec<String> {
    let line = |what: &str, value: &dyn Display| format!("{what:<11} {value}");
    let node = &status.node;
    let place = [
        ("zone", node.zone.as_ref().map(ToString::to_string)),
        ("region", node.region.as_ref().map(ToString::to_string)),
    ];
    let place: String =
        place.into_iter().filter_map(|(what, name)| Some(format!(", {what} {}", name?))).collect();
    let advertised: Vec<_> = status.advertised.iter().map(ToString::to_string).collect();
    let issuer = if status.issuer { ", admits others" } else { "" };
    let issuers = if status.issuers.is_empty() { "none known".to_owned() } else { status.issuers.join(", ") };
    let claims = match token::claims(&status.claims) {
        none if none.is_empty() => "any service".to_owned(),
        claims => claims,
    };
    let root = if status.holds_root_key { "; the root key is on this machine" } else { "" };
    let mut lines = vec![
        line("mesh", &format_args!("{} ({})", status.mesh.name, status.mesh.id)),
        line("node", &format_args!("{}, group {}{place}{issuer} ({})", node.name, node.group, node.id)),
        line("daemon", &format_args!("{}, process {}, slot {}", status.version, status.pid, status.slot)),
        line("members", &members(status)),
        line("heard", &format_args!("every live member within {} s", status.oldest_head_seconds)),
        line("services", &status.services),
        line("issuers", &format_args!("{issuers}{root}")),
        line("claims", &claims),
        line("dns", &format_args!("{} for {}", status.dns, status.dns_names.join(" "))),
        line("mesh port", &format_args!("udp {}, advertised {}", status.mesh_listen, advertised.join(" "))),
        line("socket", &status.socket.display()),
        line("state", &status.state_dir.display()),
    ];
    lines.extend(peers(status).iter().map(|text| line("peer", text)));
    lines.extend(drains(status).iter().map(|text| line("draining", text)));
    for of in &status.waiting {
        let held = of.held_because.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
        let counts = format!(
            "{} held{held}; {} quarantined; {} outside its claims; {} FQDNs outside its suffixes",
            of.held,
            of.quarantined.len(),
            of.outside_claims,
            of.outside_suffixes
        );
        lines.push(line("not served", &format_args!("of {}: {counts}", of.node)));
    }
    for upstream in &status.upstreams {
        let UpstreamRow { address, state, answered, failed } = upstream;
        lines.push(line(
            "upstream",
            &format_args!("{address} {state}, {answered} answers, {failed} failures"),
        ));
    }
    if !status.redirection.is_empty() {
        let each: Vec<_> =
            status.redirection.iter().map(|(family, state)| format!("{family} {state}")).collect();
        lines.push(line(
            "vips",
            &format_args!("{} of {}, {}", status.vip_mode, status.vip_pool, each.join(", ")),
        ));
    } else {
        lines.push(line("vips", &format_args!("{} of {}", status.vip_mode, status.vip_pool)));
    }
    for vip in &status.vips {
        let program = vip.program.as_ref().map(|program| format!(" by {program}")).unwrap_or_default();
        let udp = if vip.transport == Protocol::Udp { "/udp" } else { "" };
        let text = format!("{}:{}{udp} {} {}{program}", vip.address, vip.port, vip.name, vip.state);
        lines.push(line("vip", &text));
    }
    let held: std::collections::BTreeSet<_> =
        status.vips.iter().filter(|vip| vip.state == "bound").map(|vip| vip.port).collect();
    if !held.is_empty() {
        let ports: Vec<_> = held.iter().map(u16::to_string).collect();
        let text = format!(
            "port {}: a program that wants it on all addresses cannot start while the names above are in use",
            ports.join(", ")
        );
        lines.push(line("held", &text));
    }
    lines.extend(findings(status));
    lines
}

/// Peers that `status` shows; `nodes` has all.
const SHOWN: usize = 16;

/// Returns the connected peers with their paths.
fn peers(status: &Status) -> Vec<String> {
    let shown = status.peers.iter().take(SHOWN).map(|peer| format!("{} {}", peer.node, peer.path));
    let more = status.peers.len().saturating_sub(SHOWN);
    let rest = (more > 0).then(|| format!("and {more} more: gossamer nodes"));
    shown.chain(rest).collect()
}

/// Returns what takes no new flows.
fn drains(status: &Status) -> Vec<String> {
    let leaving = status.leaving.map(|LeavingRow { flows, left_seconds }| {
        format!("everything, to stop: {flows} flows, which are reset in {left_seconds} s")
    });
    let row = |row: &DrainRow| {
        let DrainRow { service, instance, flows, left_seconds } = row;
        match left_seconds {
            0 => format!("{instance} of {service}: {flows} flows; gossamer drain {service} --undo ends it"),
            left => format!("{instance} of {service}: {flows} flows, which are reset in {left} s"),
        }
    };
    leaving.into_iter().chain(status.draining.iter().map(row)).collect()
}

/// Returns the members by state; what is not there is not named.
fn members(status: &Status) -> String {
    let others = ["suspect", "down", "left", "unknown"].into_iter().filter_map(|state| {
        let count = status.members.get(state).filter(|count| **count > 0)?;
        Some(format!(", {count} {state}"))
    });
    // A suspect is still used, so it counts as alive as well.
    [format!("{} alive", status.members_alive)].into_iter().chain(others).collect()
}

fn findings(status: &Status) -> Vec<String> {
    status
        .findings
        .iter()
        .flat_map(|finding| [format!("! {}", finding.text), format!("    {}", finding.fix)])
        .collect()
}

#[cfg(test)]
mod tests {
    use gossamer_wire::token::Claims;

    use super::*;
    use crate::api::messages::{Finding, PathRow, PeerRow, StatusMesh, StatusNode, VipRow, WaitingRow};

    pub(in crate::cli) fn sample() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            pid: 7,
            slot: 1,
            mesh: StatusMesh { id: "meshid".to_owned(), name: "demo".parse().expect("name") },
            node: StatusNode {
                name: "vm-a".parse().expect("name"),
                id: "nodeid".to_owned(),
                group: "east".parse().expect("name"),
                zone: Some("rack-1".parse().expect("name")),
                region: None,
            },
            dns: "127.241.0.53:4653".parse().expect("address"),
            dns_names: vec!["mesh.internal".to_owned(), "corp.example".to_owned()],
            mesh_listen: "[::]:4687".parse().expect("address"),
            advertised: vec!["192.0.2.1:4687".parse().expect("address")],
            socket: "/run/gossamer/gossamer-1.sock".into(),
            state_dir: "/var/lib/gossamer-1".into(),
            members_alive: 3,
            members: [("alive", 2), ("suspect", 1), ("down", 4), ("left", 0)]
                .map(|(state, count)| (state.to_owned(), count))
                .into(),
            peers: (0..18)
                .map(|number| PeerRow {
                    node: format!("vm-{number}"),
                    path: PathRow {
                        kind: "direct".to_owned(),
                        at: "192.0.2.1:4677".to_owned(),
                        second: None,
                        rtt_us: 340,
                        size: 1_452,
                    },
                })
                .collect(),
            oldest_head_seconds: 40,
            waiting: vec![WaitingRow {
                node: "vm-x".to_owned(),
                held: 2,
                held_because: Some("its card has not come".to_owned()),
                quarantined: vec!["fragment 1: no port".to_owned()],
                outside_claims: 0,
                outside_suffixes: 0,
            }],
            draining: vec![DrainRow {
                service: "orders".parse().expect("name"),
                instance: "vm-a".parse().expect("name"),
                flows: 3,
                left_seconds: 60,
            }],
            leaving: Some(LeavingRow { flows: 4, left_seconds: 19 }),
            services: 2,
            vip_mode: "dnat".to_owned(),
            vip_pool: "127.241.0.0/16".to_owned(),
            redirection: [("v4", "ready"), ("v6", "off")]
                .map(|(family, state)| (family.to_owned(), state.to_owned()))
                .into(),
            vips: [(5432, Protocol::Udp, "stolen", Some("postgres")), (22, Protocol::Tcp, "bound", None)]
                .map(|(port, transport, state, program)| VipRow {
                    name: "db".to_owned(),
                    address: "127.241.3.4".parse().expect("address"),
                    port,
                    transport,
                    state: state.to_owned(),
                    program: program.map(str::to_owned),
                })
                .into(),
            upstreams: vec![UpstreamRow {
                address: "192.0.2.53:53".parse().expect("address"),
                state: "up".to_owned(),
                answered: 12,
                failed: 1,
            }],
            findings: vec![Finding { text: "port 53 is denied".to_owned(), fix: "setcap it".to_owned() }],
            counters: std::collections::BTreeMap::new(),
            issuer: true,
            issuers: vec!["vm-a".to_owned(), "vm-b".to_owned()],
            certificate_ends: 0,
            claims: Claims { services: vec!["web-*".to_owned()], ..Claims::default() },
            holds_root_key: true,
        }
    }

    #[test]
    fn a_newcomer_sees_who_where_and_how_many() {
        let text = lines(&sample()).join("\n");
        for words in [
            "mesh        demo (meshid)",
            "node        vm-a, group east, zone rack-1, admits others (nodeid)",
            "members     3 alive, 1 suspect, 4 down",
            "peer        vm-0 direct 192.0.2.1:4677, 0.3 ms",
            "peer        and 2 more: gossamer nodes",
            "heard       every live member within 40 s",
            "not served  of vm-x: 2 held, its card has not come; 1 quarantined; 0 outside its claims",
            "issuers     vm-a, vm-b; the root key is on this machine",
            "claims      service web-*",
            "dns         127.241.0.53:4653 for mesh.internal corp.example",
            "draining    everything, to stop: 4 flows, which are reset in 19 s",
            "draining    vm-a of orders: 3 flows, which are reset in 60 s",
            "upstream    192.0.2.53:53 up, 12 answers, 1 failures",
            "vips        dnat of 127.241.0.0/16, v4 ready, v6 off",
            "vip         127.241.3.4:5432/udp db stolen by postgres",
            "held        port 22: a program that wants it on all addresses cannot start",
        ] {
            assert!(text.contains(words), "{words} is missing in\n{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_marked_and_followed_by_what_mends_it() {
        assert_eq!(findings(&sample()), ["! port 53 is denied", "    setcap it"]);
        let text = lines(&sample()).join("\n");
        assert!(text.ends_with("! port 53 is denied\n    setcap it"), "{text}");
    }
}
