//! Names outside the mesh zone: what members publish changes no answer without two consents.
//!
//! Owns: four machines, what two of them claim, which answers are compared. Must not know: how a daemon judges.
//! Driven by: `evidence`.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gossamer_wire::ServiceRecord;

use super::hostile::{Hostile, record};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{COMMAND, Lab, Node};
use crate::promise;
use crate::quic::{Credentials, identity_of, send_frames};
use crate::wait::{until, wait_for};

pub(super) const ROW: Row = Row {
    name: "5.4-consent",
    promise: "Members that publish *.debian.org and login.example.com, certified or not, and names below a suffix of others change no byte of any answer on four machines, two of which have suffixes; kuard.gateway.cluster-a.dev-team.clusters.xcc.test, consented on both sides, answers curl on another machine",
    sabotage: "the machine with suffixes lists debian.org and example.com as well",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: consent,
};

/// The name that both sides consent to.
const KUARD: &str = "kuard.gateway.cluster-a.dev-team.clusters.xcc.test";
const PORT: u16 = 8_080;
/// What its program serves.
const PAGE: &str = "kuard of the other machine\n";
const TRAVEL: Duration = Duration::from_secs(20);

/// What members claim without consent: names of others, of a suffix that one node consents to, of another service.
const CLAIMED: [&str; 6] = [
    "*.debian.org",
    "login.example.com",
    "login.corp.example",
    "*.corp.example",
    KUARD,
    "*.clusters.xcc.test",
];

/// Names that claims could change, and others.
const NAMES: [&str; 33] = [
    "login.example.com",
    "x.login.example.com",
    "_80._tcp.login.example.com",
    "*.debian.org",
    "www.debian.org",
    "ftp.de.debian.org",
    "_80._tcp.www.debian.org",
    "debian.org",
    "login.corp.example",
    "x.corp.example",
    "_80._tcp.x.corp.example",
    "corp.example",
    KUARD,
    "_8080._tcp.kuard.gateway.cluster-a.dev-team.clusters.xcc.test",
    "x.kuard.gateway.cluster-a.dev-team.clusters.xcc.test",
    "gateway.cluster-a.dev-team.clusters.xcc.test",
    "nothing.clusters.xcc.test",
    "clusters.xcc.test",
    "xcc.test",
    "mesh.internal",
    "kuard.mesh.internal",
    "kuard.default.mesh.internal",
    "there.kuard.default.mesh.internal",
    "_8080._tcp.kuard.mesh.internal",
    "there.node.mesh.internal",
    "nothing.mesh.internal",
    "www.debian.org.mesh.internal",
    "53.0.240.127.in-addr.arpa",
    "1.0.0.127.in-addr.arpa",
    "example.com",
    "localhost",
    "org",
    ".",
];
const TYPES: [&str; 4] = ["A", "AAAA", "SRV", "TXT"];

fn consent(run: &Run) -> Result<String> {
    let segment = Segment::new(4)?;
    let machines = segment.machines();
    run.scenario(|lab| {
        let _page = serve(lab, &machines[2])?;
        let mut issuer = lab.node_in("issuer", &machines[0])?;
        issuer.init("default")?;
        let token = |fqdns: &[&str]| {
            let options: Vec<_> = fqdns.iter().flat_map(|fqdn| ["--allow-fqdn", fqdn]).collect();
            issuer.token(&options)
        };
        let mut here = lab.node_in("here", &machines[1])?;
        suffixes(&here, run.sabotaged)?;
        here.join(&token(&[])?)?;
        let mut there = lab.node_in("there", &machines[2])?;
        there.join(&token(&["clusters.xcc.test"])?)?;
        let mut certified = lab.node_in("certified", &machines[3])?;
        suffixes(&certified, false)?;
        certified.join(&token(&["debian.org", "example.com"])?)?;
        let uncertified = lab.node_in("uncertified", &machines[3])?.with("GOSSAMER_SLOT", "1");
        uncertified.ok(&["join", &token(&[])?, "--node", "uncertified", "--no-start"])?;

        let target = format!("127.0.0.1:{PORT}");
        there.ok(&["expose", &format!("kuard:{PORT}"), &target, "--fqdn", KUARD])?;
        let nodes = [&issuer, &here, &there, &certified];
        for node in nodes {
            until(&format!("{} seeing kuard usable", node.name), TRAVEL, || is_usable(node, "kuard"))?;
        }
        let fetched = curl(lab, &machines[1], &here)?;
        let flows = relayed(&here)?;

        let before = answers(lab, machines)?;
        claim(&certified, &uncertified, &machines[0])?;
        for node in nodes {
            for service in ["trap", "web-1"] {
                let what = format!("{} knowing {service}", node.name);
                until(&what, TRAVEL, || knows(node, service))?;
            }
            until(&format!("{} counting what was dropped", node.name), TRAVEL, || names_it(node))?;
        }
        let after = answers(lab, machines)?;
        let changed: Vec<_> = before.iter().filter(|(key, text)| after.get(*key) != Some(*text)).collect();
        promise!(
            changed.is_empty() && before.len() == after.len(),
            "{} of {} answers changed, first {:?} from\n{}to\n{}",
            changed.len(),
            before.len(),
            changed.first().map(|(key, _)| key),
            changed.first().map_or("", |(_, text)| text),
            changed.first().and_then(|(key, _)| after.get(*key)).map_or("", String::as_str)
        );
        curl(lab, &machines[1], &here)?;
        Ok(format!(
            "{} answers to {} names on 4 machines unchanged, {} FQDNs dropped and named; curl had its {} bytes after {} ms, over {flows} flow",
            before.len(),
            NAMES.len(),
            CLAIMED.len(),
            PAGE.len(),
            fetched.as_millis()
        ))
    })
}

/// Lets a node consent to two suffixes, or to those of others as well.
fn suffixes(node: &Node, too_many: bool) -> Result<()> {
    let more = if too_many { ", \"debian.org\", \"example.com\"" } else { "" };
    let text = format!("[dns]\nfqdn_suffixes = [\"clusters.xcc.test\", \"corp.example\"{more}]\n");
    Ok(fs::write(node.config_file(), text)?)
}

/// Serves one page on loopback of a machine until it is dropped.
fn serve(lab: &Lab, machine: &Namespace) -> Result<Killed> {
    let folder = lab.dir().join("page");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("index.html"), PAGE)?;
    let mut command = machine.command("python3");
    command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]).arg(&folder);
    command.arg(PORT.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Killed(command.spawn().context("starting python3")?);
    let listens = || {
        let connect = || std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok();
        machine.enter(connect)
    };
    until("the page being served", TRAVEL, listens)?;
    Ok(server)
}

/// A program that ends with its value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fetches the page by the custom name, through the machine's own resolver configuration. Returns how long the first
/// good answer took.
fn curl(lab: &Lab, machine: &Namespace, node: &Node) -> Result<Duration> {
    let dns = node.dns_address()?;
    ensure!(dns.port() == 53, "DNS of {} is answered at {dns}", node.name);
    machine.resolv_conf(&format!("nameserver {}\noptions timeout:1 attempts:1\n", dns.ip()))?;
    let begin = Instant::now();
    let mut last = String::new();
    let fetched = wait_for(&format!("curl of {KUARD}"), TRAVEL, || {
        let mut command = machine.command("curl");
        command.args(["--silent", "--show-error", "--max-time", "5", "--noproxy", "*"]);
        command.arg(format!("http://{KUARD}:{PORT}/"));
        let finished = lab.finish(command, COMMAND)?;
        last = format!("{:?} {}", finished.code, finished.stderr.trim());
        Ok((finished.code == Some(0)).then_some(finished.stdout))
    });
    let (page, _) = fetched.with_context(|| format!("curl said {last}"))?;
    promise!(page == PAGE, "curl got {page:?}");
    Ok(begin.elapsed())
}

/// Returns how many flows a node has opened for programs on its machine.
fn relayed(node: &Node) -> Result<u64> {
    let status = node.status()?;
    let counters = status["counters"].as_object().context("counters")?;
    let flows = counters.iter().filter(|(name, _)| name.starts_with("gossamer_flows_opened_total"));
    let flows = flows.filter_map(|(_, count)| count.as_u64()).sum();
    promise!(flows > 0, "the page did not come through the relay");
    Ok(flows)
}

/// Lets a certified daemon and an uncertified member publish what they may not; the latter gives it to the daemon of
/// `machine`.
fn claim(certified: &Node, uncertified: &Node, machine: &Namespace) -> Result<()> {
    let expose = |fqdn: &str| certified.cli(&["expose", "trap:80", "--to", "all", "--fqdn", fqdn]);
    for refused in ["login.corp.example", KUARD, "debian.org"] {
        let finished = expose(refused)?;
        promise!(
            finished.code == Some(5) && finished.stderr.contains("--allow-fqdn"),
            "exporting {refused} ended with {:?}: {}",
            finished.code,
            finished.stderr.trim()
        );
    }
    certified.ok(&[
        "expose",
        "trap:80",
        "--to",
        "all",
        "--fqdn",
        "*.debian.org",
        "--fqdn",
        "login.example.com",
    ])?;

    let identity = identity_of(&uncertified.state_dir())?;
    let fqdns = CLAIMED.iter().map(|fqdn| fqdn.parse()).collect::<Result<_, _>>()?;
    let greedy = ServiceRecord { fqdns, ..record("web-1")? };
    let member = Credentials::of_identity(&identity);
    let frame = Hostile(identity).publishing(&greedy)?;
    let server = (std::net::Ipv4Addr::LOCALHOST, gossamer::config::MESH_PORT).into();
    let linger = Duration::from_secs(1);
    let closed = machine.enter(|| send_frames(server, &member, std::iter::once(frame), linger))??;
    ensure!(closed.is_none(), "the member was hung up on: {closed:?}");
    Ok(())
}

fn is_usable(node: &Node, service: &str) -> Result<bool> {
    let rows = node.json(&["services"])?;
    let row = rows.as_array().into_iter().flatten().find(|row| row["service"] == service);
    Ok(row.is_some_and(|row| row["instances"][0]["state"] == "usable"))
}

fn knows(node: &Node, service: &str) -> Result<bool> {
    let rows = node.json(&["services"])?;
    Ok(rows.as_array().into_iter().flatten().any(|row| row["service"] == service))
}

/// Whether a node has counted all that the uncertified member may not claim, and says whose it is.
fn names_it(node: &Node) -> Result<bool> {
    let status = node.status()?;
    let waiting = status["waiting"].as_array().into_iter().flatten();
    let is_counted = waiting
        .filter(|of| of["node"] == "uncertified")
        .any(|of| of["outside_suffixes"].as_u64() == Some(CLAIMED.len() as u64));
    let finding = status["findings"].to_string();
    let is_found = finding.contains("FQDNs of node uncertified");
    let is_logged = node.ok(&["events"])?.lines().any(|line| line.contains("received -> dropped"));
    Ok(is_counted && is_found && is_logged)
}

/// Returns whole answers of the daemon of each machine, by machine, name and type.
fn answers(lab: &Lab, machines: &[Namespace]) -> Result<BTreeMap<(usize, String), String>> {
    let mut all = BTreeMap::new();
    for (index, machine) in machines.iter().enumerate() {
        for kind in TYPES {
            let mut command = machine.command("dig");
            // What differs from run to run is left out or fixed: the id, the cookie, times.
            let each = ["+qid=1", "+nocookie", "+nostats", "+nocmd", "+tries=2", "+time=2"];
            command
                .arg("@127.240.0.53")
                .args(each)
                .args(NAMES.iter().flat_map(|name| ["-q", name, "-t", kind]));
            let finished = lab.finish(command, TRAVEL)?;
            ensure!(finished.code == Some(0), "dig on machine {index}: {}", finished.stdout);
            let parts: Vec<_> = finished.stdout.split(";; Got answer:").skip(1).collect();
            ensure!(parts.len() == NAMES.len(), "dig gave {} answers: {}", parts.len(), finished.stdout);
            for (name, text) in NAMES.iter().zip(parts) {
                all.insert((index, format!("{name} {kind}")), text.to_owned());
            }
        }
    }
    Ok(all)
}
