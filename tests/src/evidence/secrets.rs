//! Where keys and tokens must not be found.
//!
//! Owns: the life of a mesh that makes, uses and renews all of them, and the places that are searched. Must not know:
//! how they are kept. Driven by: `evidence`.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Ci, Needs, Row, Run};
use crate::needles::Secret;
use crate::process::{COMMAND, Finished, Lab, Node};
use crate::promise;
use crate::wait::{until, wait_for};

pub(super) const ROW: Row = Row {
    name: "4.7-secrets",
    promise: "Tokens and the private keys of nodes, issuers and root are found nowhere but in key files and where token create prints them: 0 hits in logs at trace, outputs, arguments, environments and state; the daemon's memory is shown to root only, it leaves no core, and with a key that others can read it does not start",
    sabotage: "one daemon has its token in its environment",
    // Another user's daemon is looked at from outside.
    needs: Needs::Root,
    ci: Ci::Runs,
    check: secrets,
};

/// How long a change may take to be seen.
const SEEN: Duration = Duration::from_secs(20);
/// How long certificates last here, so that one is renewed while the check runs.
const LIFETIME: &str = "9s";
/// A user who owns nothing (see `Node::unprivileged`).
const NOBODY: u32 = 65_534;

/// Everything that was said or kept, by where.
#[derive(Default)]
struct Places(Vec<(String, Vec<u8>)>);

fn secrets(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut places = Places::default();
        let mut first = talkative(lab, "first")?;
        places.said(&first, &["init", "--node", "first", "--no-start"])?;
        first.run()?;
        let mut nodes = vec![first];
        let mut tokens = Vec::new();
        for name in ["by-file", "by-argument", "by-stdin", "by-variable", "as-nobody"] {
            tokens.push(made(&nodes[0], &mut places, &["--uses", "2"])?);
            let token = tokens.last().context("a token")?;
            nodes.push(joined(run, lab, name, token, &mut places)?);
        }
        live(&nodes, &mut tokens, &mut places)?;

        let mut hidden = Vec::new();
        for node in &nodes {
            keys_of(node, &mut hidden)?;
            places.process(node)?;
        }
        let named = |name| nodes.iter().find(|node| node.name == name).context("a node");
        let runs_a_command = named("by-variable")?;
        let child = command_of(runs_a_command)?;
        places.file(
            format!("the environment of the command of {}", runs_a_command.name),
            Path::new(&format!("/proc/{child}/environ")),
        )?;
        memory(lab, named("as-nobody")?)?;
        let mut nobody = nodes.pop().context("the last one")?;
        let cores =
            if no_core(lab, &mut nobody)? { "no core where another program leaves one" } else { "no core" };
        for node in &mut nodes {
            node.stop()?;
        }
        nodes.push(nobody);
        for node in &nodes {
            places.state(node)?;
        }
        loose_keys(&nodes[1])?;

        let keys = hidden.len();
        for (number, token) in tokens.iter().enumerate() {
            hidden.push(Secret::token(&format!("token {}", number + 1), token)?);
        }
        let hits: Vec<String> = places
            .0
            .iter()
            .flat_map(|(place, bytes)| {
                hidden.iter().filter_map(move |secret| {
                    Some(format!("{} as {} in {place}", secret.name, secret.found_in(bytes)?))
                })
            })
            .collect();
        promise!(hits.is_empty(), "{} hits: {}", hits.len(), hits.join("; "));
        let bytes: usize = places.0.iter().map(|(_, bytes)| bytes.len()).sum();
        Ok(format!(
            "0 hits of {keys} keys and {} tokens in {} places, {} KiB; {cores}",
            tokens.len(),
            places.0.len(),
            bytes >> 10
        ))
    })
}

/// Makes a node that logs all there is and whose certificates are renewed soon.
fn talkative(lab: &Lab, name: &str) -> Result<Node> {
    let node = lab.node(name)?.with("GOSSAMER_LOG_LEVEL", "trace");
    Ok(node.with("GOSSAMER_TRUST_LEAF_LIFETIME", LIFETIME))
}

/// Makes a token: the one place where it is printed is left out, what is said beside it is not.
fn made(issuer: &Node, places: &mut Places, arguments: &[&str]) -> Result<String> {
    let done = issuer.cli(&[&["token", "create"], arguments].concat())?;
    ensure!(done.code == Some(0), "token create: {}", done.stderr);
    places.0.push(("the words of token create".to_owned(), done.stderr.into_bytes()));
    Ok(done.stdout.trim().to_owned())
}

/// Lets a node join in the way it is called after, and run.
fn joined(run: &Run, lab: &Lab, name: &str, token: &str, places: &mut Places) -> Result<Node> {
    let mut node = talkative(lab, name)?;
    let file = lab.dir().join(name).join("token");
    fs::write(&file, token)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let path = file.to_str().context("a path that is UTF-8")?;
    match name {
        "by-argument" => node.join(token)?,
        "by-file" if run.sabotaged => {
            node = node.with("NOTE", token);
            node.start(&["join", "--token-file", path, "--node", name])?;
        }
        "by-file" => node.start(&["join", "--token-file", path, "--node", name])?,
        "by-stdin" => {
            let mut command = node.command(&["join", "-", "--node", name, "--no-start"]);
            let done = command.stdin(File::open(&file)?).output()?;
            ensure!(done.status.success(), "join -: {}", String::from_utf8_lossy(&done.stderr));
            places.0.push(("the words of join -".to_owned(), [done.stdout, done.stderr].concat()));
            node.run()?;
        }
        "by-variable" => {
            // What is in the environment of a process when it begins stays there, for root.
            node = node.with("GOSSAMER_TOKEN", token);
            node.start(&["run", "--", "sleep", "60"])?;
        }
        _ => {
            node = node.unprivileged()?;
            nix::unistd::chown(&file, Some(NOBODY.into()), Some(NOBODY.into()))?;
            node.start(&["join", "--token-file", path, "--node", name])?;
        }
    }
    Ok(node)
}

/// Uses what there is: another issuer, renewals, every listing.
fn live(nodes: &[Node], tokens: &mut Vec<String>, places: &mut Places) -> Result<()> {
    let [first, second, ..] = nodes else { return Ok(()) };
    first.sees(&second.name, "alive", SEEN)?;
    let end = |node: &Node| node.status()?["certificate_ends"].as_u64().context("an end");
    let before = end(second)?;
    places.said(first, &["issuer", "add", &second.name])?;
    until("the second issuer", SEEN, || Ok(second.status()?["issuer"] == true))?;
    tokens.push(made(
        second,
        places,
        &["--uses", "0", "--ttl", "30d", "--group", "jobs", "--name", "job-*", "--ephemeral", "10m"],
    )?);
    let list = second.json(&["token", "list"])?;
    let id = list[0]["id"].as_str().context("an id")?.to_owned();
    let renewed = second.cli(&["token", "renew", &id])?;
    ensure!(renewed.code == Some(0), "token renew: {}", renewed.stderr);
    tokens.push(renewed.stdout.trim().to_owned());
    places.0.push(("the words of token renew".to_owned(), renewed.stderr.into_bytes()));
    until("a renewed certificate", SEEN, || Ok(end(second)? > before))?;
    for arguments in [&["token", "revoke", &id][..], &["expose", "orders:5432"], &["join", "gsm1_mistyped"]] {
        places.said(second, arguments)?;
    }
    for node in nodes {
        for arguments in [
            &["status", "--json"][..],
            &["nodes", "--json"],
            &["services", "--all", "--json"],
            &["issuer", "list", "--json"],
            &["token", "list", "--json"],
            &["events", "--since", "1h"],
            &["resolve", "orders.mesh.internal"],
            &["config", "show"],
        ] {
            places.said(node, arguments)?;
        }
    }
    Ok(())
}

impl Places {
    /// Runs a command, whatever it answers, and keeps what it says.
    fn said(&mut self, node: &Node, arguments: &[&str]) -> Result<()> {
        let Finished { stdout, stderr, .. } = node.cli(arguments)?;
        self.0.push((
            format!("the words of {} on {}", arguments.join(" "), node.name),
            [stdout, stderr].concat().into_bytes(),
        ));
        Ok(())
    }

    /// Keeps the arguments of a daemon, and its environment unless the token was given there.
    fn process(&mut self, node: &Node) -> Result<()> {
        let process = PathBuf::from(format!("/proc/{}", node.pid()?));
        self.file(format!("the arguments of {}", node.name), &process.join("cmdline"))?;
        if node.name != "by-variable" {
            self.file(format!("the environment of {}", node.name), &process.join("environ"))?;
        }
        Ok(())
    }

    /// Keeps the log and the state of a node, without the key files.
    fn state(&mut self, node: &Node) -> Result<()> {
        let log = fs::read(node.dir().join("daemon.log"))?;
        ensure!(String::from_utf8_lossy(&log).contains(" TRACE "), "the log of {} has no details", node.name);
        self.0.push((format!("the log of {}", node.name), log));
        for entry in fs::read_dir(node.state_dir())? {
            let path = entry?.path();
            if path.extension().is_none_or(|end| end != "key") {
                self.file(
                    format!("{} of {}", path.file_name().unwrap_or_default().to_string_lossy(), node.name),
                    &path,
                )?;
            }
        }
        Ok(())
    }

    fn file(&mut self, place: String, path: &Path) -> Result<()> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        self.0.push((place, bytes));
        Ok(())
    }
}

/// Takes the keys of a node from its key files, and finds each there, so that a search that finds nothing shows something.
fn keys_of(node: &Node, hidden: &mut Vec<Secret>) -> Result<()> {
    for key in ["node.key", "issuer.key", "root.key", "reset.key"] {
        let path = node.state_dir().join(key);
        if !path.exists() {
            continue;
        }
        let bytes = fs::read(&path)?;
        let secret = Secret::key(&format!("{key} of {}", node.name), &bytes)?;
        ensure!(secret.found_in(&bytes).is_some(), "the search does not find {key} where it is");
        hidden.push(secret);
    }
    Ok(())
}

/// Finds the command that a daemon runs.
fn command_of(node: &Node) -> Result<i32> {
    let parent = format!("PPid:\t{}\n", node.pid()?);
    let is_child =
        |process: &Path| fs::read_to_string(process.join("status")).is_ok_and(|text| text.contains(&parent));
    let found = wait_for("the daemon's command", COMMAND, || {
        let mut processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
        Ok(processes.find(|process| is_child(process)))
    })?;
    Ok(found.0.file_name().and_then(|name| name.to_str()).context("a process")?.parse()?)
}

/// Its own user may not read the memory and the environment of a daemon.
fn memory(lab: &Lab, node: &Node) -> Result<()> {
    let pid = node.pid()?;
    for file in ["mem", "environ", "maps"] {
        let path = format!("/proc/{pid}/{file}");
        promise!(fs::metadata(&path)?.uid() == 0, "{path} belongs to the daemon's user");
        let mut command = Command::new("head");
        command.args(["-c", "1", &path]).uid(NOBODY).gid(NOBODY);
        let done = lab.finish(command, COMMAND)?;
        promise!(
            done.code != Some(0) && done.stderr.contains("denied"),
            "the daemon's user reads {path}: {}",
            done.stderr
        );
    }
    Ok(())
}

/// A daemon that crashes leaves no core, whatever its limit is by then. Returns whether another program of its user
/// leaves one here: not where cores are off for all.
fn no_core(lab: &Lab, node: &mut Node) -> Result<bool> {
    let as_nobody = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(node.dir()).uid(NOBODY).gid(NOBODY);
        command
    };
    let crash = |pid: i32| -> Result<()> {
        let pid = pid.to_string();
        // As the same user: to raise the limit of another one takes a capability that containers lack.
        lab.finish(as_nobody("prlimit", &["--pid", &pid, "--core=unlimited:"]), COMMAND)?;
        Ok(kill(Pid::from_raw(pid.parse()?), Signal::SIGABRT)?)
    };
    let mut other = as_nobody("sleep", &["60"]).spawn()?;
    let crashed = i32::try_from(other.id()).map_err(Into::into).and_then(crash);
    if crashed.is_err() {
        other.kill()?;
    }
    let control = other.wait()?.core_dumped();
    crashed?;
    crash(node.pid()?)?;
    let status = node.crashed(COMMAND)?;
    promise!(status.signal() == Some(Signal::SIGABRT as i32), "the daemon ended with {status}");
    promise!(!status.core_dumped(), "a core was written");
    Ok(control)
}

/// A daemon whose key others can read does not start, and says what mends it.
fn loose_keys(node: &Node) -> Result<()> {
    for key in ["node.key", "issuer.key", "reset.key"] {
        let path = node.state_dir().join(key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        let done = node.cli(&["run"])?;
        promise!(
            done.code == Some(1) && done.stderr.contains("chmod 0600"),
            "{key} 0640: {:?} {}",
            done.code,
            done.stderr
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}
