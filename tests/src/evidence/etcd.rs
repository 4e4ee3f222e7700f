//! A database that needs each member by name: etcd, whose peer URLs are names of instances.
//!
//! Owns: five machines with an etcd member and a daemon each, in two groups. Must not know: how names are answered.
//! Driven by: `evidence`.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{COMMAND, Lab, Node};
use crate::promise;
use crate::wait::{until, wait_for};

pub(super) const ROW: Row = Row {
    name: "6.4-etcd",
    promise: "Five etcd members in two groups, whose peer URLs are instance names, listening on 127.0.0.1 in bind mode and on all addresses in dnat mode: etcdctl endpoint status lists all five by name from another group, goes on with four after one machine's member and daemon are killed, and lists five with the same data after they are started again",
    sabotage: "the members are exposed to their own group only",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: etcd,
};

const MEMBERS: u8 = 5;
/// The first three members are in the one group, the others in the other.
const GROUPS: [&str; 2] = ["east", "west"];
/// The member that is killed, and the machine that asks: in the other group.
const VICTIM: usize = 1;
const ASKER: usize = 4;
const TRAVEL: Duration = Duration::from_secs(20);
/// Until five members have found each other and chosen a leader.
const FORMS: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum Mode {
    Bind,
    Dnat,
}

/// A member that is killed when it is dropped.
struct Member(Child);

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn etcd(run: &Run) -> Result<String> {
    let mut found = Vec::new();
    for mode in [Mode::Bind, Mode::Dnat] {
        let segment = Segment::new(MEMBERS)?;
        found.push(run.scenario(|lab| play(run, lab, segment.machines(), mode))?);
    }
    Ok(found.join("; "))
}

const fn group(index: usize) -> &'static str {
    if index < 3 { GROUPS[0] } else { GROUPS[1] }
}

fn url(index: usize, port: u16) -> String {
    format!("http://n{index}.etcd.{}.mesh.internal:{port}", group(index))
}

fn play(run: &Run, lab: &Lab, machines: &[Namespace], mode: Mode) -> Result<String> {
    let mut nodes = Vec::new();
    for (index, machine) in machines.iter().enumerate() {
        nodes.push(start_node(lab, machine, index, mode, nodes.first())?);
    }
    for (node, machine) in nodes.iter().zip(machines) {
        let mut words = vec!["expose", "etcd", "--port", "client:2379", "--port", "peer:2380"];
        if !run.sabotaged {
            words.extend(["--to", "all"]);
        }
        node.ok(&words)?;
        machine.resolv_conf(&format!("nameserver {}\n", node.dns_address()?.ip()))?;
    }
    let asker = machines.get(ASKER).context("five machines")?;
    let mut members: Vec<_> = (0..)
        .zip(machines)
        .map(|(index, machine)| start_member(lab, machine, index, mode))
        .collect::<Result<_>>()?;

    let began = Instant::now();
    let all: Vec<usize> = (0..machines.len()).collect();
    formed(lab, asker, &all, FORMS)?;
    let formed_after = began.elapsed();
    put(lab, asker, "before")?;

    members.remove(VICTIM);
    let victim = nodes.get_mut(VICTIM).context("five nodes")?;
    victim.kill9()?;
    let left: Vec<usize> = all.iter().copied().filter(|index| *index != VICTIM).collect();
    formed(lab, asker, &left, FORMS)?;
    put(lab, asker, "without")?;

    let began = Instant::now();
    victim.run()?;
    members.push(start_member(lab, machines.get(VICTIM).context("five machines")?, VICTIM, mode)?);
    formed(lab, asker, &all, FORMS)?;
    let back_after = began.elapsed();
    let read = ctl(lab, asker, &[VICTIM], &["get", "--prefix", "", "--print-value-only"])?;
    let read: Vec<_> = read.split_whitespace().collect();
    promise!(read == ["before", "without"], "the member that came back has {read:?}");
    Ok(format!(
        "{mode:?}: five with one leader after {:.1} s, four after the kill, five with the same data {:.1} s after the start",
        formed_after.as_secs_f64(),
        back_after.as_secs_f64()
    ))
}

fn start_node(
    lab: &Lab,
    machine: &Namespace,
    index: usize,
    mode: Mode,
    first: Option<&Node>,
) -> Result<Node> {
    let mut node = lab.node_in(&format!("n{index}"), machine)?;
    if let Mode::Dnat = mode {
        fs::write(node.config_file(), "[vip]\nmode = \"dnat\"\n")?;
        let mut setup = machine.command(lab.program());
        setup.args(["host", "setup", "--only", "vips"]).envs(node.environment()).stdin(Stdio::null());
        let done = lab.finish(setup, COMMAND)?;
        ensure!(done.code == Some(0), "host setup: {}", done.stderr.trim());
    }
    match first {
        None => node.init(group(index))?,
        Some(first) => node.join(&first.token(&["--group", group(index)])?)?,
    }
    Ok(node)
}

fn start_member(lab: &Lab, machine: &Namespace, index: usize, mode: Mode) -> Result<Member> {
    let listen = match mode {
        Mode::Bind => "127.0.0.1",
        Mode::Dnat => "0.0.0.0",
    };
    let cluster: Vec<_> =
        (0..usize::from(MEMBERS)).map(|other| format!("n{other}={}", url(other, 2_380))).collect();
    let mut command = machine.command("etcd");
    command.arg("--name").arg(format!("n{index}"));
    command.arg("--data-dir").arg(lab.dir().join(format!("etcd-{index}")));
    command.args(["--listen-peer-urls", &format!("http://{listen}:2380")]);
    command.args(["--listen-client-urls", &format!("http://{listen}:2379")]);
    command.args(["--initial-advertise-peer-urls", &url(index, 2_380)]);
    command.args(["--advertise-client-urls", &url(index, 2_379)]);
    command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-token", "gossamer"]);
    let log = fs::OpenOptions::new().create(true).append(true).open(log_of(lab.dir(), index))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Member(command.spawn().context("starting etcd; is the package etcd-server installed?")?))
}

fn log_of(dir: &Path, index: usize) -> std::path::PathBuf {
    dir.join(format!("etcd-{index}.log"))
}

/// Runs `etcdctl` on a machine against the clients' URLs of some members.
fn ctl(lab: &Lab, machine: &Namespace, members: &[usize], words: &[&str]) -> Result<String> {
    let urls: Vec<_> = members.iter().map(|index| url(*index, 2_379)).collect();
    let mut command = machine.command("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--endpoints", &urls.join(",")]).args(words);
    let done = lab.finish(command, COMMAND)?;
    ensure!(done.code == Some(0), "etcdctl {}: {}", words.join(" "), done.stderr.trim());
    Ok(done.stdout)
}

fn put(lab: &Lab, machine: &Namespace, word: &str) -> Result<()> {
    let any: Vec<usize> = (0..usize::from(MEMBERS)).filter(|index| *index != VICTIM).collect();
    until(
        &format!("writing {word:?}"),
        TRAVEL,
        || Ok(ctl(lab, machine, &any, &["put", word, word]).is_ok()),
    )?;
    Ok(())
}

/// Waits until these members, each asked by its name, name one leader and the same number of entries.
fn formed(lab: &Lab, machine: &Namespace, members: &[usize], limit: Duration) -> Result<()> {
    let mut last = String::new();
    let found = wait_for(&format!("{} members with one leader", members.len()), limit, || {
        let said = ctl(lab, machine, members, &["endpoint", "status", "-w", "json"]);
        last = said.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
        let Ok(said) = said else { return Ok(None) };
        let status: Vec<Value> = serde_json::from_str(&said)?;
        let fact = |at: &str| {
            let mut facts: Vec<_> = status.iter().filter_map(|one| one["Status"].pointer(at)).collect();
            facts.dedup();
            facts.len() == 1 && facts.first().is_some_and(|fact| **fact != 0)
        };
        let agree = status.len() == members.len() && fact("/leader") && fact("/header/revision");
        Ok(agree.then_some(()))
    });
    let tail = |index: &usize| {
        let log = fs::read_to_string(log_of(lab.dir(), *index)).unwrap_or_default();
        log.lines().last().unwrap_or_default().to_owned()
    };
    let tails: Vec<_> = members.iter().map(tail).collect();
    found.with_context(|| format!("in the end {last}; their logs end with\n{}", tails.join("\n")))?;
    Ok(())
}
