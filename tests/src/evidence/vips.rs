//! Virtual addresses are a function of names: equal on all nodes, shared by nobody, the same after a loss.
//!
//! Owns: ten daemons and their names; twenty thousand names through the core. Must not know: how an address is made.
//! Driven by: `evidence`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use gossamer_core::vip::{Pool, Table, VipName};
use gossamer_wire::MeshId;

use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{Lab, Node};
use crate::promise;
use crate::targets::{Manner, Target, serve_all};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "6.1-ports",
        promise: "A service with three ports, two of them named and none the one its program listens on, is reached over each of them by its virtual address, SRV and forward on another machine",
        sabotage: "two of the targets' ports are exchanged",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: ports,
    },
    Row {
        name: "6.1-none",
        promise: "With vip.mode none a service, a group of it and an instance are answered with the instances' own addresses, as below direct, nothing of the pool is listened on or has a name, and a client reaches the service",
        sabotage: "vip.mode is bind",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: none,
    },
    Row {
        name: "6.2-equal",
        promise: "Ten daemons answer each of 30 names of ten exporters with the same virtual address; an exporter that lost its state directory and joined again has the same ones for its names",
        sabotage: "one daemon has another pool",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: equal,
    },
    Row {
        name: "6.2-twenty-thousand",
        promise: "Of 20,000 names in a pool of 65,024 addresses none shares one once each exporter has raised the try of the names it lost, and the same names in another order have the same addresses",
        sabotage: "no exporter raises a try",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: twenty_thousand,
    },
];

const TRAVEL: Duration = Duration::from_secs(15);

/// Where the programs of the ten nodes listen.
const PROGRAM: u16 = 8_080;

/// Number, name and greeting of each port.
const PORTS: [(u16, Option<&str>, &str); 3] =
    [(80, Some("http"), "plain\n"), (443, Some("https"), "sealed\n"), (9_090, None, "numbers\n")];

fn ports(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [a, b] = segment.machines() else { unreachable!("two machines were made") };
    let targets: Vec<_> = PORTS
        .iter()
        .map(|(_, _, greeting)| {
            b.enter(|| Target::at((Ipv4Addr::LOCALHOST, 0).into(), Manner::Greets(greeting)))?
        })
        .collect::<Result<_>>()?;
    run.scenario(|lab| serve_all(&targets, || play_ports(run, lab, [a, b], &targets)))
}

fn play_ports(run: &Run, lab: &Lab, [a, b]: [&Namespace; 2], targets: &[Target]) -> Result<String> {
    let (mut near, mut far) = (lab.node_in("near", a)?, lab.node_in("far", b)?);
    near.init("default")?;
    far.join(&near.token(&[])?)?;
    let mut programs: Vec<u16> = targets.iter().map(Target::port).collect::<Result<_>>()?;
    if run.sabotaged {
        programs.swap(0, 1);
    }
    let mut words = vec!["expose".to_owned(), "web".to_owned()];
    for ((number, name, _), program) in PORTS.iter().zip(&programs) {
        let name = name.map(|name| format!("{name}:")).unwrap_or_default();
        words.extend(["--port".to_owned(), format!("{name}{number}:{program}")]);
    }
    far.ok(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    let resolver = near.resolver()?;
    let vip = resolver.address("web.mesh.internal", TRAVEL)?;
    for (number, name, greeting) in PORTS {
        let said = a.enter(|| crate::targets::read_greeting((vip, number).into(), TRAVEL))??;
        promise!(said == greeting, "port {number} says {said:?}, not {greeting:?}");
        let label = name.map_or_else(|| number.to_string(), str::to_owned);
        let srv = near.ok(&["resolve", &format!("_{label}._tcp.web"), "-q"])?;
        promise!(srv.trim() == format!("1 100 {number} far.web.default.mesh.internal."), "SRV says {srv}");
        let said = lab.finish(
            near.command(&[
                "forward",
                "127.0.0.1:7000",
                &format!("web:{label}"),
                "--",
                "nc",
                "-w",
                "5",
                "127.0.0.1",
                "7000",
            ]),
            TRAVEL,
        )?;
        promise!(said.stdout == greeting, "forward to {label} says {:?} {}", said.stdout, said.stderr);
    }
    Ok(format!("{vip} over ports 80, 443 and 9090, by address, SRV and forward"))
}

fn none(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [a, b] = segment.machines() else { unreachable!("two machines were made") };
    let own = Segment::address(1);
    let target = b.enter(|| Target::at((own, 8_080).into(), Manner::Greets("there\n")))??;
    run.scenario(|lab| {
        serve_all(std::slice::from_ref(&target), || {
            let (mut near, mut far) = (lab.node_in("near", a)?, lab.node_in("far", b)?);
            if !run.sabotaged {
                fs::write(near.config_file(), "[vip]\nmode = \"none\"\n")?;
            }
            near.init("default")?;
            far.join(&near.token(&[])?)?;
            far.ok(&["expose", "web:8080", &own.to_string()])?;
            let resolver = near.resolver()?;
            for name in ["web", "web.default", "far.web.default", "web.direct"] {
                let found = resolver.address(&format!("{name}.mesh.internal"), TRAVEL)?;
                promise!(found == own, "{name} is {found}, not {own}");
            }
            let said = a.enter(|| crate::targets::read_greeting((own, 8_080).into(), TRAVEL))??;
            promise!(said == "there\n", "the service says {said:?}");
            let status = near.status()?;
            let opened = status["vips"].as_array().map_or(0, Vec::len);
            promise!(opened == 0 && status["vip_mode"] == "none", "status lists {}", status["vips"]);
            Ok(format!("4 names are {own}, nothing of the pool is listened on"))
        })
    })
}

/// The names of a node's service: short, with its group, the instance.
fn names(node: &str) -> [String; 3] {
    [format!("svc-{node}"), format!("svc-{node}.default"), format!("{node}.svc-{node}.default")]
}

fn equal(run: &Run) -> Result<String> {
    let segment = Segment::new(10)?;
    // The name of an instance has an address while somebody listens there.
    let served = |machine: &Namespace| {
        machine.enter(|| Target::at((Ipv4Addr::LOCALHOST, PROGRAM).into(), Manner::Greets("x\n")))?
    };
    let targets: Vec<_> = segment.machines().iter().map(served).collect::<Result<_>>()?;
    run.scenario(|lab| serve_all(&targets, || play_equal(run, lab, &segment)))
}

fn play_equal(run: &Run, lab: &Lab, segment: &Segment) -> Result<String> {
    let mut nodes = Vec::new();
    for (index, machine) in segment.machines().iter().enumerate() {
        let node = lab.node_in(&format!("n{index}"), machine)?;
        if run.sabotaged && index == 3 {
            fs::write(node.config_file(), "[vip]\npool = \"127.200.0.0/16\"\n")?;
        }
        nodes.push(node);
    }
    let (first, others) = nodes.split_first_mut().context("ten nodes")?;
    first.init("default")?;
    for node in &mut *others {
        let token = first.token(&[])?;
        node.join(&token)?;
    }
    for node in &nodes {
        node.ok(&["expose", &format!("svc-{}:8080", node.name)])?;
    }
    let all: Vec<_> = nodes.iter().flat_map(|node| names(&node.name)).collect();
    let before = same_everywhere(&nodes, &all)?;

    let lost = nodes.get_mut(7).context("ten nodes")?;
    lost.kill9()?;
    fs::remove_dir_all(lost.state_dir())?;
    let name = lost.name.clone();
    let first = nodes.first().context("ten nodes")?;
    // Its name is free when the others hold it for dead.
    first.sees(&name, "down", Duration::from_secs(20))?;
    let token = first.token(&[])?;
    let lost = nodes.get_mut(7).context("ten nodes")?;
    lost.join(&token)?;
    lost.ok(&["expose", &format!("svc-{name}:8080")])?;
    let after = same_everywhere(&nodes, &all)?;
    promise!(before == after, "after the loss {:?}", differing(&before, &after));
    Ok(format!(
        "{} names equal on 10 nodes, {} of them after {name} lost its state",
        all.len(),
        names(&name).len()
    ))
}

fn differing(before: &BTreeMap<String, Ipv4Addr>, after: &BTreeMap<String, Ipv4Addr>) -> Vec<String> {
    before.keys().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

/// Asks every node for every name; all must agree, and no two names may share an address.
fn same_everywhere(nodes: &[Node], names: &[String]) -> Result<BTreeMap<String, Ipv4Addr>> {
    let mut all: Option<BTreeMap<String, Ipv4Addr>> = None;
    for node in nodes {
        let resolver = node.resolver()?;
        let mut found = BTreeMap::new();
        for name in names {
            found.insert(name.clone(), resolver.address(&format!("{name}.mesh.internal"), TRAVEL)?);
        }
        match &all {
            None => all = Some(found),
            Some(first) => {
                promise!(*first == found, "{} differs in {:?}", node.name, differing(first, &found));
            }
        }
    }
    let all = all.context("no nodes")?;
    let distinct: BTreeSet<_> = all.values().collect();
    promise!(distinct.len() == all.len(), "{} addresses for {} names", distinct.len(), all.len());
    Ok(all)
}

fn twenty_thousand(run: &Run) -> Result<String> {
    const NAMES: usize = 20_000;
    let mesh = MeshId::from_bytes([9; 16]);
    let pool = Pool::of_slot(0);
    let named =
        |number: usize| -> Result<VipName> { Ok(VipName::Service(format!("service-{number}").parse()?)) };
    let names: Vec<VipName> = (0..NAMES).map(named).collect::<Result<_>>()?;
    let mut table = Table::new(mesh, pool);
    let mut tries = vec![0; NAMES];
    let (mut met, mut rounds) = (0, 0);
    for name in &names {
        table.set_service(name.service(), [(name.clone(), 0)]);
    }
    while !table.losers().is_empty() {
        met = met.max(table.losers().len());
        promise!(!run.sabotaged, "{met} names share an address");
        // All exporters act at once, on what all of them see.
        let raise = |(at, name): (usize, &VipName)| {
            let own = *tries.get(at)?;
            table.losers().contains_key(name).then(|| (at, table.attempt_for(name, own)))
        };
        let raises: Vec<(usize, u8)> = names.iter().enumerate().filter_map(raise).collect();
        rounds += 1;
        promise!(rounds < 20, "{} names still share an address", table.losers().len());
        for (at, attempt) in raises {
            let (Some(name), Some(own)) = (names.get(at), tries.get_mut(at)) else { continue };
            *own = attempt;
            table.set_service(name.service(), [(name.clone(), attempt)]);
        }
    }
    let highest = tries.iter().max().copied().unwrap_or(0);
    let address = |(name, attempt): (&VipName, &u8)| pool.vip(name.hash(&mesh, *attempt));
    let distinct: BTreeSet<_> = names.iter().zip(&tries).map(address).collect();
    promise!(distinct.len() == NAMES, "{} addresses for {NAMES} names", distinct.len());

    let mut turned = Table::new(mesh, pool);
    for (name, attempt) in names.iter().zip(&tries).rev() {
        turned.set_service(name.service(), [(name.clone(), *attempt)]);
    }
    promise!(turned.losers().is_empty(), "in another order {} names lose", turned.losers().len());
    for (name, at) in names.iter().zip(names.iter().zip(&tries).map(address)) {
        promise!(
            turned.holder(at) == Some(name) && table.holder(at) == Some(name),
            "{name} does not hold {at}"
        );
    }
    Ok(format!(
        "{NAMES} names, {met} of them met others at first, {} addresses after {rounds} rounds of raising, the highest try {highest}",
        distinct.len()
    ))
}
