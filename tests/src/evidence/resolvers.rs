//! The resolver of a host: set up, used, set up again, given back.
//!
//! Owns: the round trip and what may be seen on it. Must not know: how the host is made. Driven by: `evidence`.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Ci, Needs, Row, Run};
use crate::host::{Answering, Machine};
use crate::process::{Lab, Node};
use crate::promise;
use crate::wait::until;

const SABOTAGE: &str = "the daemon's DNS is shut off by a rule";

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "5.3-host-systemd-resolved",
        promise: "On a host with systemd-resolved programs find mesh names after gossamer host setup and outside names as before; a second setup changes nothing, and undo leaves /etc byte for byte as it was",
        sabotage: SABOTAGE,
        needs: Needs::Root,
        ci: Ci::Runs,
        check: |run| round_trip(run, Answering::SystemdResolved),
    },
    Row {
        name: "5.3-host-dnsmasq",
        promise: "On a host with dnsmasq programs find mesh names after gossamer host setup and outside names as before; a second setup changes nothing, unsound settings are not taken over, and undo leaves /etc byte for byte as it was",
        sabotage: SABOTAGE,
        needs: Needs::Root,
        ci: Ci::Runs,
        check: |run| round_trip(run, Answering::Dnsmasq),
    },
    Row {
        name: "5.3-host-unbound",
        promise: "On a host with unbound that validates programs find mesh names after gossamer host setup and outside names as before; a second setup changes nothing, unsound settings are not taken over, and undo leaves /etc byte for byte as it was",
        sabotage: SABOTAGE,
        needs: Needs::Root,
        ci: Ci::Runs,
        check: |run| round_trip(run, Answering::Unbound),
    },
    Row {
        name: "5.3-host-resolv-conf",
        promise: "On a host without a resolver gossamer host setup wants --yes and a daemon that answers outside names; then programs find mesh names and outside names, and undo leaves /etc byte for byte as it was, the link at /etc/resolv.conf included",
        sabotage: SABOTAGE,
        needs: Needs::Root,
        ci: Ci::Runs,
        check: |run| round_trip(run, Answering::Outside),
    },
    Row {
        name: "5.3-host-killed",
        promise: "gossamer host setup killed with -9 at 30 moments of its work: undo leaves /etc byte for byte as it was, with nothing half-written, and programs find outside names",
        sabotage: "each setup ends before it is killed, and somebody adds a line to what it wrote",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: killed,
    },
];

/// Every file below `/etc`: kind, mode, owner, where a link leads, content.
const TREE: &str =
    "cd /etc && find . -printf '%p %y %m %u %g %l\\n' | sort && find . -type f | sort | xargs sha256sum";
/// How programs see names: of the mesh, outside, and one that is nowhere.
const MESH: &str = "getent ahosts web.mesh.internal";
const OUTSIDE: &str = "getent ahosts www.example.org; echo $?; getent hosts nowhere.example.org; echo $?";
/// How long a resolver may keep an answer that says that there is no mesh.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// A machine, its daemon, and what its programs saw before anything was done.
struct Before {
    machine: Machine,
    node: Node,
    tree: String,
    outside: String,
    /// More flags for `host` commands.
    flags: &'static str,
}

impl Before {
    fn new(run: &Run, lab: &Lab, answering: Answering) -> Result<Self> {
        let folder = run.root.join("target/tools/resolved");
        if answering == Answering::SystemdResolved {
            let path = folder.to_string_lossy();
            let unpacked = run.tool(&run.root, "tests/resolved", &[&path], Duration::from_secs(120))?;
            ensure!(unpacked.code == Some(0), "systemd-resolved: {}", unpacked.stderr);
        }
        let machine = Machine::start(lab, answering, &folder)?;
        let mut node = lab.node_in("here", machine.network())?;
        // Also a port that is none of DNS, where the resolver can be told one.
        if answering != Answering::Unbound {
            fs::write(node.config_file(), "[dns]\naddress = \"127.240.0.53:4653\"\n")?;
        }
        node.init("default")?;
        node.ok(&["expose", "web:8000"])?;
        let mut before = Self { machine, node, tree: String::new(), outside: String::new(), flags: "" };
        before.tree = before.inside(TREE)?;
        before.outside = before.inside(OUTSIDE)?;
        ensure!(before.outside.contains("93.184.216.34"), "outside names: {}", before.outside);
        Ok(before)
    }

    /// Starts the daemon again with other settings.
    fn restart(&mut self, settings: &str) -> Result<()> {
        self.node.stop()?;
        fs::write(self.node.config_file(), settings)?;
        self.node.run()?;
        self.node.ok(&["expose", "web:8000"]).map(drop)
    }

    /// Runs a line inside and returns what it wrote for programs.
    fn inside(&self, line: &str) -> Result<String> {
        Ok(self.machine.run(&self.node, line)?.stdout)
    }

    /// Runs a `gossamer host` command, wants an exit code, and returns all it said.
    fn host(&self, command: &str, code: i32) -> Result<String> {
        let done = self.machine.run(&self.node, &format!("gossamer host {command}"))?;
        let said = done.stdout + &done.stderr;
        promise!(done.code == Some(code), "`host {command}` ended with {:?}, not {code}: {said}", done.code);
        Ok(said)
    }

    fn setup(&self) -> String {
        format!("setup {}", self.flags)
    }

    /// Wants `/etc` as it was.
    fn same_tree(&self, when: &str) -> Result<()> {
        let now = self.inside(TREE)?;
        let differs: Vec<_> = now.lines().filter(|line| !self.tree.contains(line)).collect();
        promise!(now == self.tree, "/etc is not as it was {when}: {differs:?}");
        Ok(())
    }

    /// Wants outside names as they were.
    fn same_outside(&self, when: &str) -> Result<()> {
        let now = self.inside(OUTSIDE)?;
        promise!(now == self.outside, "outside names {when}: {now} instead of {}", self.outside);
        Ok(())
    }
}

fn round_trip(run: &Run, answering: Answering) -> Result<String> {
    run.scenario(|lab| {
        let mut host = Before::new(run, lab, answering)?;
        let address = host.node.ok(&["resolve", "web", "-q"])?.trim().to_owned();
        promise!(host.inside(MESH)?.is_empty(), "the host knows mesh names before it is set up");
        if answering == Answering::Outside {
            forwarded(&mut host)?;
        }
        if run.sabotaged {
            let rule = "ip daddr 127.240.0.0/16 meta l4proto { tcp, udp } th dport { 53, 4653 } reject";
            host.machine.network().nft(&format!(
                "table ip shut {{ chain out {{ type filter hook output priority 0; {rule}; }}; }}"
            ))?;
        }
        host.host(&format!("{} --dry-run", host.setup()), 0)?;
        host.same_tree("after a dry run")?;
        unsound(&host, answering)?;

        host.host(&host.setup(), 0)?;
        let found = host.inside(MESH)?;
        promise!(found.starts_with(&address), "programs find {found:?} and not {address}");
        host.same_outside("after the setup")?;
        let checked = host.host(&format!("check {}", host.flags.replace("--yes", "")), 0)?;
        let done = host.inside(TREE)?;
        let again = host.host(&host.setup(), 0)?;
        promise!(again.contains("nothing was changed"), "a second setup says {again}");
        promise!(host.inside(TREE)? == done, "a second setup changes /etc");

        host.host("undo", 0)?;
        host.same_tree("after the undo")?;
        host.same_outside("after the undo")?;
        until("programs finding no mesh names", FORGOTTEN, || Ok(host.inside(MESH)?.is_empty()))?;
        host.host(&format!("check {}", host.flags.replace("--yes", "")), 1)?;
        let twice = host.host("undo", 0)?;
        promise!(twice.contains("nothing to undo"), "a second undo says {twice}");
        let hops = checked.lines().filter(|line| line.starts_with("ok ")).count();
        Ok(format!(
            "{address} through {hops} hops; {} entries of /etc the same after undo",
            host.tree.lines().count()
        ))
    })
}

/// The host without a resolver: refused three times, then the daemon asks the server outside.
fn forwarded(host: &mut Before) -> Result<()> {
    let refused = host.host("setup --yes", 1)?;
    promise!(refused.contains("port 53 only"), "on port 4653 it says {refused}");
    host.restart("")?;
    let refused = host.host("setup --yes", 1)?;
    promise!(refused.contains("dns.upstream"), "without an upstream server it says {refused}");
    host.restart("[dns]\nupstream = [\"10.9.0.2\"]\n")?;
    let refused = host.host(&host.setup(), 1)?;
    promise!(refused.contains("--yes"), "without --yes it says {refused}");
    host.flags = "--yes";
    host.same_tree("after it was refused")
}

/// Settings that were unsound before are not taken over, and the resolver goes on with what it has.
fn unsound(host: &Before, answering: Answering) -> Result<()> {
    let folder = match answering {
        Answering::Dnsmasq => "/etc/dnsmasq.d",
        Answering::Unbound => "/etc/unbound/unbound.conf.d",
        Answering::SystemdResolved | Answering::Outside => return Ok(()),
    };
    host.inside(&format!("echo 'no: such setting' > {folder}/zz.conf"))?;
    let refused = host.host(&host.setup(), 1)?;
    promise!(refused.contains("not sound"), "with unsound settings it says {refused}");
    host.inside(&format!("rm {folder}/zz.conf"))?;
    host.same_tree("after a setup that failed")?;
    host.same_outside("after a setup that failed")
}

/// Kills a setup at moments that cover its work.
fn killed(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let host = Before::new(run, lab, Answering::Dnsmasq)?;
        let moments = run.times(30, 10);
        let (mut whole, mut half) = (0, 0);
        for moment in 0..moments {
            // A setup takes about a quarter of a second.
            let delay = if run.sabotaged { "20".to_owned() } else { format!("0.{:03}", moment * 240 / moments) };
            let line = format!("timeout -s KILL {delay} {} host setup", run.gossamer.display());
            let done = host.machine.run(&host.node, &line)?;
            whole += usize::from(done.code == Some(0));
            half += usize::from(done.code != Some(0) && host.inside("ls /var/lib/gossamer-host")?.contains("record"));
            if run.sabotaged {
                host.inside("echo '# mine' >> /etc/dnsmasq.d/gossamer.conf")?;
            }
            host.host("undo", 0)?;
            host.same_tree(&format!("after a kill at {delay} s and undo "))?;
        }
        until("outside names", FORGOTTEN, || Ok(host.inside(OUTSIDE)? == host.outside))?;
        Ok(format!("{moments} kills, {half} of them between record and end, {whole} after it; /etc the same each time"))
    })
}
