//! `gossamer trace` beside what is really broken.
//!
//! Owns: the ways in which a name can be broken, each made by hand. Must not know: how the cause is found. Driven by:
//! `evidence`. Needs root: each machine is a network namespace with a resolver of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{Lab, Node};
use crate::promise;
use crate::targets::read_greeting;
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[Row {
    name: "6.7-trace",
    promise: "In each of 15 situations gossamer trace names the cause in its last line, with what mends it and its exit code: all is well, unknown name, misspelt name, hidden, not imported, no such port, target down, target refuses, weight 0, all ejected, port of the virtual address stolen, own address inside the pool, resolver not set up, node unreachable, node down; with --no-dial no other node is touched",
    sabotage: "trace is asked on the exporter's machine, where most of it is not broken",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: table,
}];

const TRAVEL: Duration = Duration::from_secs(20);
/// Below what the exporter's check needs to notice.
const EJECTED: Duration = Duration::from_secs(4);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Three machines: the caller and an exporter of its group, and an exporter of another one.
struct Stage<'a> {
    machines: [&'a Namespace; 3],
    near: Node,
    far: Node,
    other: Node,
    /// Where trace is asked.
    is_asked_far: bool,
    rows: Vec<String>,
    /// What listens until the end.
    programs: Vec<TcpListener>,
}

fn table(run: &Run) -> Result<String> {
    let segment = Segment::new(3)?;
    let [a, b, c] = segment.machines() else { unreachable!("three machines were made") };
    run.scenario(|lab| {
        let mut stage = Stage::new(run, lab, [a, b, c])?;
        stage.play()?;
        Ok(format!("{} situations: {}", stage.rows.len(), stage.rows.join("; ")))
    })
}

fn listen(machine: &Namespace, port: u16) -> Result<TcpListener> {
    Ok(machine.enter(|| TcpListener::bind((LOOPBACK, port)))??)
}

impl<'a> Stage<'a> {
    fn new(run: &Run, lab: &Lab, machines: [&'a Namespace; 3]) -> Result<Self> {
        let [a, b, c] = machines;
        for machine in machines {
            machine.resolv_conf("nameserver 127.240.0.53\noptions timeout:1 attempts:1\n")?;
        }
        let (mut near, mut far, mut other) =
            (lab.node_in("near", a)?, lab.node_in("far", b)?, lab.node_in("other", c)?);
        far.init("west")?;
        near.join(&far.token(&[])?)?;
        other.join(&far.token(&["--group", "east"])?)?;
        Ok(Self {
            machines,
            near,
            far,
            other,
            is_asked_far: run.sabotaged,
            rows: Vec::new(),
            programs: Vec::new(),
        })
    }

    fn trace(&self, arguments: &[&str]) -> Result<crate::process::Finished> {
        let node = if self.is_asked_far { &self.far } else { &self.near };
        node.cli(&[&["trace"], arguments].concat())
    }

    /// Asks and looks at the exit code and the last line; the cause and the fix must both stand there.
    fn says(&mut self, what: &str, arguments: &[&str], code: i32, words: &[&str]) -> Result<()> {
        let said = self.trace(arguments)?;
        let last = said.stdout.lines().last().unwrap_or_default().to_owned();
        let missing: Vec<_> = words.iter().filter(|word| !last.contains(**word)).collect();
        promise!(
            said.code == Some(code) && missing.is_empty(),
            "{what}: trace {} ends with {:?} and lacks {missing:?} in its last line {last:?}; all of it: {}{}",
            arguments.join(" "),
            said.code,
            said.stdout,
            said.stderr
        );
        promise!(code == 0 || last.starts_with("broken here: ") && last.contains("; "), "{what}: {last}");
        self.rows.push(format!("{what} exit {code}"));
        Ok(())
    }

    /// Waits until the caller knows a service in a state.
    fn knows(&self, service: &str, state: &str) -> Result<()> {
        let what = format!("{service} {state} on {}", self.near.name);
        let state = format!("\"state\": \"{state}\"");
        until(&what, TRAVEL, || {
            let said = self.near.cli(&["services", service, "--all", "--json"])?;
            Ok(said.code == Some(0) && said.stdout.contains(&state))
        })
        .map(drop)
    }

    fn play(&mut self) -> Result<()> {
        let [a, b, _] = self.machines;
        let _orders = listen(b, 8_080)?;
        self.far.ok(&["expose", "orders:8080"])?;
        self.knows("orders", "usable")?;
        self.says("well", &["orders:8080"], 0, &["all is well"])?;
        self.names()?;
        self.targets()?;
        self.no_dial()?;
        self.addresses(a)?;
        self.nodes()
    }

    fn names(&mut self) -> Result<()> {
        self.says("unknown name", &["invoices"], 4, &["no node exports invoices", "gossamer services"])?;
        self.says("misspelt name", &["ordes:8080"], 4, &["no node exports ordes", "did you mean orders?"])?;
        self.says("no such port", &["orders:81"], 4, &["no such port", "choose one of 8080"])?;
        for port in [8_090, 8_091] {
            self.programs.push(listen(self.machines[2], port)?);
        }
        self.other.ok(&["expose", "secret:8090"])?;
        self.other.ok(&["expose", "foreign:8091", "--to", "all"])?;
        for service in ["secret", "foreign"] {
            self.knows(service, "usable")?;
        }
        self.says(
            "hidden",
            &["secret:8090"],
            5,
            &["hidden from group west", "gossamer expose secret --to west"],
        )?;
        let words = ["in group east and not imported", "ask for foreign.east"];
        self.says("not imported", &["foreign"], 4, &words)
    }

    fn targets(&mut self) -> Result<()> {
        self.far.ok(&["expose", "down:8081"])?;
        self.far.ok(&["expose", "drained:8083", "--weight", "0"])?;
        let (refuses, _drained) = (listen(self.machines[1], 8_082)?, listen(self.machines[1], 8_083)?);
        self.far.ok(&["expose", "refuses:8082"])?;
        self.knows("down", "failing")?;
        self.knows("drained", "drained")?;
        self.knows("refuses", "usable")?;
        self.says(
            "target down",
            &["down"],
            1,
            &["nobody listens on the target", "start the program on far"],
        )?;
        self.says("weight 0", &["drained"], 1, &["weight 0", "--weight 100"])?;
        let vip = self.near.resolver()?.address("refuses.mesh.internal", TRAVEL)?;
        // The exporter's check notices after two failures only, 5 s from each other.
        drop(refuses);
        let words = ["refused the connection", "on far: let the program listen"];
        self.says("target refuses", &["refuses"], 1, &words)?;
        self.ejected((vip, 8_082).into())
    }

    /// An instance that failed a client again and again is ejected, whatever its exporter says.
    fn ejected(&mut self, vip: SocketAddr) -> Result<()> {
        let machine = self.machines[0];
        let words = ["all of them are ejected", "without --no-dial says why"];
        std::thread::scope(|scope| {
            let client = scope.spawn(move || machine.enter(|| read_greeting(vip, TRAVEL)));
            let is_ejected = || Ok(self.trace(&["refuses", "--no-dial"])?.stdout.contains(words[0]));
            let ejected = until("an ejected instance", EJECTED, is_ejected);
            let said = ejected.and_then(|_| self.says("all ejected", &["refuses", "--no-dial"], 1, &words));
            let ended = client.join().map_err(|_| anyhow!("the client panicked"))??;
            promise!(ended.is_err(), "the client of a program that is gone reads {ended:?}");
            said
        })
    }

    /// Where all is well, trace has a flow opened at the exporter, and with --no-dial none.
    fn no_dial(&mut self) -> Result<()> {
        let before = self.touched()?;
        let said = self.trace(&["orders:8080", "--no-dial"])?;
        promise!(said.code == Some(0), "trace --no-dial ends with {:?}: {}", said.code, said.stdout);
        promise!(self.touched()? == before, "trace --no-dial opened a flow");
        self.trace(&["orders:8080"])?;
        promise!(self.touched()? != before, "a trace that dials is not seen at the exporter");
        Ok(())
    }

    /// Returns how many streams of peers the exporter has seen.
    fn touched(&self) -> Result<Vec<Value>> {
        let counters = self.far.status()?["counters"].clone();
        let names = [
            "gossamer_flows_opened_total{client=\"peer\"}",
            "gossamer_flows_refused_total{reason=\"denied\"}",
        ];
        Ok(names.iter().map(|name| counters[*name].clone()).collect())
    }

    fn addresses(&mut self, a: &Namespace) -> Result<()> {
        let _taken = listen(self.machines[1], 8_084)?;
        self.far.ok(&["expose", "taken:8084"])?;
        self.knows("taken", "usable")?;
        let thief = a.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8_084)))??;
        let words = ["listens on *:8084 here", "listen on 127.0.0.1"];
        self.says("port stolen", &["taken:8084"], 1, &words)?;
        drop(thief);
        a.ip(&["addr", "add", "127.240.200.1/32", "dev", "lo"])?;
        let words = ["lo of this machine has 127.240.200.1", "set vip.pool"];
        let overlapped = self.says("own address in the pool", &["orders"], 1, &words);
        a.ip(&["addr", "del", "127.240.200.1/32", "dev", "lo"])?;
        overlapped?;
        a.resolv_conf("nameserver 127.0.0.9\noptions timeout:1 attempts:1\n")?;
        let words = ["programs of this machine do not find", "sudo gossamer host setup"];
        let unset = self.says("resolver not set up", &["orders"], 1, &words);
        a.resolv_conf("nameserver 127.240.0.53\noptions timeout:1 attempts:1\n")?;
        unset
    }

    fn nodes(&mut self) -> Result<()> {
        // Nothing was carried to that machine yet, so that it must be dialled; its death is not known at once.
        self.machines[2].isolate()?;
        let words = ["other cannot be reached", "open UDP between here and"];
        self.says("node unreachable", &["foreign.east:8091"], 1, &words)?;
        self.far.kill9()?;
        self.near.sees("far", "down", TRAVEL)?;
        self.knows("orders", "down")?;
        let words = ["no instance: the node of far on far is down", "start gossamer on far"];
        self.says("node down", &["orders:8080"], 1, &words)?;
        let json = self.near.cli(&["trace", "orders", "--json"])?;
        let parsed: Value = serde_json::from_str(&json.stdout).context("JSON")?;
        promise!(json.code == Some(1) && parsed["broken"]["leg"] == "candidates", "--json says {parsed}");
        Ok(())
    }
}
