//! The host is never hurt: real servers on all addresses beside the daemon, in either mode of virtual addresses.
//!
//! Owns: the two machines, the order in which things start, the table of who answered whom. Must not know: how ports are
//! judged or redirected. Driven by: `evidence`.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Ci, Needs, Row, Run};
use crate::dnsq::{RecordType, Resolver};
use crate::netns::{Namespace, Segment};
use crate::process::{Finished, Lab, Node};
use crate::promise;
use crate::servers::{Files, Kind, Server, is_reached};
use crate::wait::{until, wait_for};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "6.1-bind",
        promise: "In bind mode, with PostgreSQL, sshd and nginx on all addresses of exporter and importer, started after and before the daemons: no connection by name reaches a program that is not an instance, each server starts and restarts while its name is unused there, one that starts while its name is in use does not get the port and status names it, and a neighbour with a route to the pool gets nothing",
        sabotage: "another machine's servers are registered as the exporter's",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: |run| play(run, Mode::Bind),
    },
    Row {
        name: "6.1-dnat",
        promise: "In dnat mode, set up by gossamer host setup before another program loads rules that redirect the same ports of all local addresses, and run by daemons without any privilege, with PostgreSQL, sshd and nginx on all addresses of exporter and importer, started after and before the daemons: every connection by name reaches the exporter's server over IPv4 and IPv6, no server fails to start or restart, a neighbour with a route to the pool gets nothing, and undo leaves nft list ruleset, routes and resolver byte for byte as before",
        sabotage: "the rule that redirects local connections is taken out of the table of the importer",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: |run| play(run, Mode::Dnat),
    },
    Row {
        name: "6.1-redirect-lost",
        promise: "When the table of dnat mode is gone, names are answered no more within 35 s, and status, an event, a metric and the log say what is missing; a new gossamer host setup brings them back within 10 s, and connections to names asked for before reach their service",
        sabotage: "the table stays",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: lost,
    },
];

/// How the daemons get connections to virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Bind,
    Dnat,
}

/// The pool of dnat mode: outside of 127.0.0.0/8, so that a neighbour can send to it.
const POOL: &str = "240.80.0.0/12";
/// Another program's rules, as Docker and kube-proxy have them: what they catch reaches the machine's own servers.
const FOREIGN: &str = "table inet foreign { \
    chain in { type nat hook prerouting priority -100; \
    fib daddr type local meta nfproto ipv4 tcp dport { 22, 80, 5432 } dnat ip to 127.0.0.1; }; \
    chain out { type nat hook output priority -100; \
    fib daddr type local meta nfproto ipv4 tcp dport { 22, 80, 5432 } dnat ip to 127.0.0.1; \
    fib daddr type local meta nfproto ipv6 tcp dport { 22, 80, 5432 } dnat ip6 to ::1; }; }";
const TRAVEL: Duration = Duration::from_secs(15);
/// Two looks of the daemon are 30 s apart.
const LOOKED: Duration = Duration::from_secs(35);
/// Tries of each client.
const TRIES: usize = 5;
/// Before and after: what may differ when something was left behind.
const STATE: [&str; 4] =
    ["nft list ruleset", "ip -4 route show table all", "ip -6 route show table all", "cat /etc/resolv.conf"];

/// Exporter and importer with their daemons, and a neighbour.
struct World<'a> {
    lab: &'a Lab,
    mode: Mode,
    machines: &'a [Namespace],
    nodes: [Node; 2],
    files: Files,
    servers: BTreeMap<(usize, Kind), Server>,
    table: Vec<String>,
}

/// Who answered when the connection was refused or reset.
const NOBODY: &str = "nobody";
const NAMES: [&str; 2] = ["exporter", "importer"];
const EXPORTER: usize = 0;
const IMPORTER: usize = 1;

/// What clients of one machine got for one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    answered: bool,
    by: BTreeMap<String, usize>,
}

fn play(run: &Run, mode: Mode) -> Result<String> {
    let segment = Segment::new(3)?;
    run.scenario(|lab| {
        let before = prepare(&segment)?;
        let mut world = World::new(lab, mode, &segment)?;
        if mode == Mode::Dnat {
            for index in [EXPORTER, IMPORTER] {
                world.host(index, "setup --only vips", 0)?;
                world.machines[index].nft(FOREIGN)?;
            }
        }
        world.daemons_first(run)?;
        world.programs_first()?;
        if mode == Mode::Bind {
            world.in_use()?;
        }
        let outside = world.neighbour()?;
        let mut figure = format!("0 of {outside} tries of the neighbour; {}", world.table.join("; "));
        if mode == Mode::Dnat {
            for machine in world.machines.iter().take(before.len()) {
                machine.nft("delete table inet foreign")?;
            }
            world.undone(&before)?;
            figure += "; ruleset, routes and resolver as before after undo";
        }
        Ok(figure)
    })
}

/// Gives both machines rules and routes of their own, and returns all of it.
fn prepare(segment: &Segment) -> Result<Vec<String>> {
    let [machines @ .., neighbour] = segment.machines() else { unreachable!("three machines") };
    neighbour.ip(&["route", "add", POOL, "via", &Segment::address(0).to_string()])?;
    neighbour.ip(&[
        "route",
        "add",
        "127.240.0.0/16",
        "via",
        &Segment::address(0).to_string(),
        "table",
        "main",
    ])?;
    neighbour.parameter("ipv4/conf/all/route_localnet", "1")?;
    let mut states = Vec::new();
    for machine in machines {
        machine.resolv_conf("nameserver 10.77.0.1\n")?;
        machine
            .nft("table inet mine { chain in { type filter hook input priority 0; tcp dport 9 drop; }; }")?;
        machine.ip(&["route", "add", "203.0.113.0/24", "dev", "eth0"])?;
        machine.ip(&["route", "add", "local", "198.51.100.0/24", "dev", "lo"])?;
        // The kernel gives the link an address of its own a moment later.
        until("an address of the link", TRAVEL, || Ok(state(machine)?.contains("local fe80:")))?;
        states.push(state(machine)?);
    }
    Ok(states)
}

fn state(machine: &Namespace) -> Result<String> {
    let mut all = String::new();
    for line in STATE {
        let said = machine.command("sh").args(["-c", line]).stdin(Stdio::null()).output()?;
        ensure!(said.status.success(), "{line}: {}", String::from_utf8_lossy(&said.stderr));
        all += &format!("$ {line}\n{}", String::from_utf8_lossy(&said.stdout));
    }
    Ok(all)
}

impl<'a> World<'a> {
    fn new(lab: &'a Lab, mode: Mode, segment: &'a Segment) -> Result<Self> {
        let machines = segment.machines();
        let node = |index: usize| -> Result<Node> {
            let node = lab.node_in(NAMES[index], &machines[index])?;
            if mode == Mode::Dnat {
                fs::write(node.config_file(), format!("[vip]\nmode = \"dnat\"\npool = \"{POOL}\"\n"))?;
                return node.unprivileged();
            }
            Ok(node)
        };
        let nodes = [node(EXPORTER)?, node(IMPORTER)?];
        let (files, servers, table) = (Files::new(lab)?, BTreeMap::new(), Vec::new());
        Ok(Self { lab, mode, machines, nodes, files, servers, table })
    }

    /// Daemons first, then servers: while no name was asked for, all of them get their ports.
    fn daemons_first(&mut self, run: &Run) -> Result<()> {
        self.nodes[EXPORTER].init("default")?;
        let token = self.nodes[EXPORTER].token(&[])?;
        self.nodes[IMPORTER].join(&token)?;
        for kind in Kind::ALL {
            let mut target = format!("127.0.0.1:{}", kind.port());
            if run.sabotaged && self.mode == Mode::Bind {
                target = format!("{}:{}", Segment::address(1), kind.port());
            }
            self.nodes[EXPORTER].ok(&["expose", &format!("{}:{}", kind.service(), kind.port()), &target])?;
        }
        self.nodes[IMPORTER].sees("exporter", "alive", TRAVEL)?;
        for index in [EXPORTER, IMPORTER] {
            for kind in Kind::ALL {
                promise!(
                    self.start(index, kind)?,
                    "{} did not start on the {} after the daemon",
                    kind.program(),
                    NAMES[index]
                );
            }
        }
        if run.sabotaged && self.mode == Mode::Dnat {
            self.machines[IMPORTER].nft("flush chain inet gossamer outgoing")?;
        }
        self.look("daemon first")?;
        self.restarted("daemon first")
    }

    /// The servers run when the daemons start.
    fn programs_first(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.stop()?;
        }
        for node in &mut self.nodes {
            node.run()?;
        }
        self.nodes[IMPORTER].sees("exporter", "alive", TRAVEL)?;
        self.look("programs first")?;
        self.restarted("programs first")
    }

    /// The one case in which bind mode is in the way: a name is in use, and then a server wants its port.
    fn in_use(&mut self) -> Result<()> {
        for kind in Kind::ALL {
            let server = self.servers.remove(&(IMPORTER, kind)).context("it runs")?;
            server.stop()?;
        }
        for kind in Kind::ALL {
            // Ports are looked at every 5 s.
            let seen = wait_for(&format!("{} being answered", kind.service()), TRAVEL, || {
                let seen = self.seen(IMPORTER, kind, 1, RecordType::A)?;
                Ok(seen.answered.then_some(seen))
            });
            let seen = seen?.0;
            promise!(seen.is_only(NAMES[EXPORTER]), "on the importer {} is {seen:?}", kind.service());
        }
        let mut refused = Vec::new();
        for kind in Kind::ALL {
            let has_port = self.start(IMPORTER, kind)?;
            promise!(!has_port, "{} got port {} although the name is in use", kind.program(), kind.port());
            refused.push(kind.program());
        }
        let status = self.nodes[IMPORTER].ok(&["status"])?;
        let held = status.lines().find(|line| line.starts_with("held")).unwrap_or_default();
        for kind in Kind::ALL {
            let port = kind.port().to_string();
            let is_named = held.split(|c: char| !c.is_ascii_digit()).any(|word| word == port);
            promise!(is_named, "status does not name port {port}: {held:?}");
            let seen = self.seen(IMPORTER, kind, TRIES, RecordType::A)?;
            promise!(seen.is_only(NAMES[EXPORTER]), "while {} wants its port: {seen:?}", kind.program());
        }
        self.table.push(format!(
            "name in use on importer, then {}: without the port on all addresses, named by status",
            refused.join(", ")
        ));
        Ok(())
    }

    /// Stops and starts each server while its name is in use, then looks again.
    fn restarted(&mut self, when: &str) -> Result<()> {
        for index in [EXPORTER, IMPORTER] {
            for kind in Kind::ALL {
                self.servers.remove(&(index, kind)).context("it runs")?.stop()?;
                promise!(
                    self.start(index, kind)?,
                    "{} did not restart on the {}",
                    kind.program(),
                    NAMES[index]
                );
            }
        }
        self.look(&format!("{when}, servers restarted"))
    }

    /// Starts a server; returns whether it listens on all IPv4 addresses.
    fn start(&mut self, index: usize, kind: Kind) -> Result<bool> {
        let machine = &self.machines[index];
        let mut server = self.files.start(kind, machine, NAMES[index])?;
        let listens = server.settles(machine)?;
        self.servers.insert((index, kind), server);
        Ok(listens)
    }

    /// Connects to each name from each machine, and judges who answered.
    fn look(&mut self, when: &str) -> Result<()> {
        for index in [EXPORTER, IMPORTER] {
            let mut cells = Vec::new();
            for kind in Kind::ALL {
                let expected = self.mode == Mode::Dnat || index == EXPORTER;
                let seen = self.settled(index, kind, expected, RecordType::A)?;
                let mut cell = format!("{} {}", kind.service(), seen.cell());
                if self.mode == Mode::Dnat {
                    let over_v6 = self.settled(index, kind, true, RecordType::AAAA)?;
                    cell += &format!(" and over IPv6 {}", over_v6.cell());
                }
                cells.push(cell);
            }
            self.table.push(format!("{when}, on {}: {}", NAMES[index], cells.join(", ")));
        }
        Ok(())
    }

    /// Waits until a name is answered, or is not, as it is to be; then all tries must reach the exporter's server, or
    /// nobody.
    fn settled(&self, index: usize, kind: Kind, expected: bool, family: RecordType) -> Result<Seen> {
        let mut last = Seen::default();
        let (seen, _) = wait_for(&format!("{} on the {}", kind.service(), NAMES[index]), TRAVEL, || {
            last = self.seen(index, kind, 1, family)?;
            let foreign = last.by.keys().any(|by| by != NAMES[EXPORTER] && by != NOBODY);
            promise!(!foreign, "a connection to {} on the {} reached {last:?}", kind.service(), NAMES[index]);
            let is_it = if expected { last.is_only(NAMES[EXPORTER]) } else { !last.answered };
            Ok(is_it.then(|| last.clone()))
        })
        .with_context(|| format!("in the end {}", NAMES[index]))?;
        if !expected {
            return Ok(seen);
        }
        let seen = self.seen(index, kind, TRIES, family)?;
        promise!(seen.is_only(NAMES[EXPORTER]), "{} on the {}: {seen:?}", kind.service(), NAMES[index]);
        Ok(seen)
    }

    /// Asks the machine's daemon for a name, then connects as often as said.
    fn seen(&self, index: usize, kind: Kind, tries: usize, family: RecordType) -> Result<Seen> {
        let machine = &self.machines[index];
        let server = self.nodes[index].dns_address()?;
        let name = format!("{}.mesh.internal", kind.service());
        let found = machine.enter(|| Resolver::new(server)?.ask(&name, family))??.all_addresses();
        let mut seen = Seen { answered: !found.is_empty(), by: BTreeMap::new() };
        for ip in found {
            for _ in 0..tries {
                let who = kind.who(machine, ip)?.unwrap_or_else(|| NOBODY.to_owned());
                *seen.by.entry(who).or_default() += 1;
            }
        }
        Ok(seen)
    }

    /// Tries of a neighbour with a route to the pool; none may come through.
    fn neighbour(&self) -> Result<usize> {
        let neighbour = &self.machines[2];
        let mut tries = 0;
        for kind in Kind::ALL {
            let server = self.nodes[EXPORTER].dns_address()?;
            let name = format!("{}.mesh.internal", kind.service());
            let vips =
                self.machines[EXPORTER].enter(|| Resolver::new(server)?.ask(&name, RecordType::A))??;
            for ip in vips.addresses() {
                tries += 1;
                let at = SocketAddr::new(IpAddr::V4(ip), kind.port());
                promise!(!is_reached(neighbour, at)?, "the neighbour reaches {at}");
            }
            tries += 1;
            let answered = neighbour.enter(|| Resolver::new(server)?.ask(&name, RecordType::A))?;
            promise!(answered.is_err(), "the neighbour is answered: {answered:?}");
        }
        Ok(tries)
    }

    /// Takes the setup back and compares.
    fn undone(&mut self, before: &[String]) -> Result<()> {
        for index in [EXPORTER, IMPORTER] {
            let dry = self.host(index, "undo --dry-run", 0)?;
            ensure!(dry.stdout.contains("nft delete table inet gossamer"), "the dry run says {}", dry.stdout);
            self.host(index, "undo --only vips", 0)?;
            let after = state(&self.machines[index])?;
            promise!(after == before[index], "after undo:\n{after}\nbefore:\n{}", before[index]);
        }
        Ok(())
    }

    fn host(&self, index: usize, command: &str, code: i32) -> Result<Finished> {
        host(self.lab, &self.machines[index], &self.nodes[index], command, code)
    }
}

/// Runs `gossamer host` as root, with a directory of its own for records.
fn host(lab: &Lab, machine: &Namespace, node: &Node, arguments: &str, code: i32) -> Result<Finished> {
    let records = lab.dir().join(format!("records-{}", node.name));
    fs::create_dir_all(&records)?;
    let mut command = machine.command("sh");
    let line = format!(
        "mount --bind {} /var/lib && exec {} host {arguments}",
        records.display(),
        lab.program().display()
    );
    command.args(["-c", &line]).env_clear().envs(node.environment());
    let done = lab.finish(command, TRAVEL)?;
    ensure!(
        done.code == Some(code),
        "host {arguments} ended with {:?}: {}{}",
        done.code,
        done.stdout,
        done.stderr
    );
    Ok(done)
}

impl Seen {
    fn is_only(&self, who: &str) -> bool {
        self.answered && self.by.len() == 1 && self.by.contains_key(who)
    }

    fn cell(&self) -> String {
        let by: Vec<_> = self.by.iter().map(|(who, times)| format!("{who} {times} of {times}")).collect();
        if self.answered { by.join(" and ") } else { "not answered".to_owned() }
    }
}

/// A daemon in dnat mode loses its table.
fn lost(run: &Run) -> Result<String> {
    let segment = Segment::new(1)?;
    let machine = &segment.machines()[0];
    run.scenario(|lab| {
        let node = lab.node_in("here", machine)?;
        fs::write(node.config_file(), "[vip]\nmode = \"dnat\"\n")?;
        let mut node = node.unprivileged()?;
        host(lab, machine, &node, "setup --only vips", 0)?;
        node.init("default")?;
        let mut files = Files::new(lab)?.start(Kind::Nginx, machine, "here")?;
        ensure!(files.settles(machine)?, "nginx does not listen");
        node.ok(&["expose", "web:80"])?;
        let resolver = node.resolver()?;
        let vip = resolver.address("web.mesh.internal", TRAVEL)?;
        ensure!(Kind::Nginx.who(machine, vip.into())?.is_some(), "nobody answers at {vip}");
        if !run.sabotaged {
            machine.nft("delete table inet gossamer")?;
        }
        let (_, took) =
            resolver.wait("web.mesh.internal", RecordType::A, LOOKED, |answer| answer.is_nodata())?;
        let reason = resolver.ask("web.mesh.internal", RecordType::A)?.reason().unwrap_or_default();
        promise!(reason.contains("gossamer host setup"), "the answer says {reason:?}");
        let status = node.ok(&["status"])?;
        promise!(status.contains("! vip.mode is dnat") && status.contains("no-table"), "{status}");
        let events = node.ok(&["events"])?;
        promise!(events.contains("redirect IPv4") && events.contains("no-table"), "{events}");
        let metric = "gossamer_vips_redirected{family=\"v4\"}";
        promise!(
            node.status()?["counters"][metric] == 0,
            "the metric is {}",
            node.status()?["counters"][metric]
        );
        promise!(node.log().contains("not redirected"), "the log does not say it");

        host(lab, machine, &node, "setup --only vips", 0)?;
        let (_, back) =
            resolver.wait("web.mesh.internal", RecordType::A, Duration::from_secs(10), |answer| {
                !answer.addresses().is_empty()
            })?;
        let answered = until("the service answering", TRAVEL, || {
            Ok(Kind::Nginx.who(machine, vip.into())?.is_some_and(|who| who == "here"))
        });
        answered?;
        Ok(format!(
            "not answered {:.1} s after the table went, answered {:.1} s after it came",
            took.as_secs_f64(),
            back.as_secs_f64()
        ))
    })
}
