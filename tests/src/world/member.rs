//! One real daemon of a world: its process, its records, its words.
//!
//! Owns: the process over all its lives, the state directory, what it asks of its local API. Must not know:
//! the other daemons. Driven by: `world`.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::seen::{Names, down};
use crate::api::Api;
use crate::netns::Namespace;
use crate::process::{Node, START};
use crate::scenario::{Disk, NodeState};
use crate::wait::wait_for;

/// Where a program behind every record listens: what nobody listens on is not healthy.
const PORT: u16 = 7_000;

/// How long a daemon may take to end when told to.
const LEAVE: Duration = Duration::from_secs(20);

/// A node of the world.
#[derive(Debug)]
pub(super) struct Member {
    number: usize,
    node: Node,
    child: Option<Child>,
    suspended: bool,
    /// Tells of changes, once it listens.
    ear: Option<Ear>,
    listener: TcpListener,
    /// Numbers of the records it shall have, and of those it has been given.
    wanted: BTreeSet<usize>,
    given: BTreeSet<usize>,
    next_record: usize,
    /// Renewals of former lives, and of this one when it was last asked.
    renewals: (u64, u64),
    downs: Vec<String>,
}

/// The stream of events of a daemon, read without waiting.
#[derive(Debug)]
struct Ear {
    stream: UnixStream,
    buffer: VecDeque<u8>,
}

impl Member {
    /// Makes a node with an identity, not started; keeps its state as the one a lost disk leaves.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn new(number: usize, node: Node, machine: &Namespace, records: usize) -> Result<Self> {
        copy(&node.state_dir(), &pristine(&node))?;
        let listener = machine.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)))??;
        listener.set_nonblocking(true)?;
        Ok(Self {
            number,
            node,
            child: None,
            suspended: false,
            ear: None,
            listener,
            wanted: (0..records).collect(),
            given: BTreeSet::new(),
            next_record: records,
            renewals: (0, 0),
            downs: Vec::new(),
        })
    }

    pub(super) const fn number(&self) -> usize {
        self.number
    }

    /// Starts the daemon; does not wait for it.
    pub(super) fn start(&mut self, disk: Disk) -> Result<()> {
        if let Some(child) = &mut self.child {
            let name = &self.node.name;
            wait_for(&format!("the end of {name}"), LEAVE, || Ok(child.try_wait()?))?;
            self.ended();
        }
        if disk == Disk::Lost {
            fs::remove_dir_all(self.node.state_dir())?;
            copy(&pristine(&self.node), &self.node.state_dir())?;
            self.given.clear();
        }
        // What a killed daemon has left looks like one that does not answer.
        let _ = fs::remove_file(self.node.socket());
        self.child = Some(self.node.spawn(&["run"])?);
        Ok(())
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child {
            child.kill()?;
            child.wait()?;
        }
        self.ended();
        Ok(())
    }

    pub(super) fn suspend(&mut self) -> Result<()> {
        self.suspended = true;
        self.signal(Signal::SIGSTOP)
    }

    pub(super) fn resume(&mut self) -> Result<()> {
        self.suspended = false;
        self.signal(Signal::SIGCONT)
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().with_context(|| format!("{} does not run", self.node.name))?;
        Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
    }

    pub(super) fn publish(&mut self, count: usize) {
        self.wanted.extend(self.next_record..self.next_record + count);
        self.next_record += count;
    }

    pub(super) fn withdraw(&mut self, count: usize) {
        for _ in 0..count {
            self.wanted.pop_first();
        }
    }

    pub(super) fn take_downs(&mut self) -> Vec<String> {
        std::mem::take(&mut self.downs)
    }

    /// Hears what was said, and gives the daemon the records it is owed once it listens.
    ///
    /// # Errors
    /// The daemon has ended by itself, or refuses a record.
    pub(super) fn tick(&mut self, names: &mut Names) -> Result<()> {
        while self.listener.accept().is_ok() {}
        if self.child.is_none() || self.suspended {
            return Ok(());
        }
        if self.ear.is_none() {
            let Ok(stream) = UnixStream::connect(self.node.socket()) else { return self.still_runs() };
            self.ear = Some(Ear::new(stream)?);
            let status = self.ask("GET", "/v1/status", &Value::Null)?;
            names.learn(status["node"]["id"].as_str().context("an id")?, self.number);
        }
        if let Some(ear) = &mut self.ear {
            self.downs.extend(ear.lines()?.iter().filter_map(|line| down(line)));
        }
        self.give()
    }

    /// Returns what the daemon holds and sees; waits until it listens.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) fn state(&mut self, names: &mut Names) -> Result<NodeState> {
        let what = format!("{} answering", self.node.name);
        wait_for(&what, START, || {
            self.tick(names)?;
            Ok(self.ear.is_some().then_some(()))
        })?;
        let nodes = self.ask("GET", "/v1/nodes", &Value::Null)?;
        let services = self.ask("GET", "/v1/services", &Value::Null)?;
        let status = self.ask("GET", "/v1/status", &Value::Null)?;
        self.renewals.1 = status["counters"]["gossamer_identity_renewals_total"].as_u64().unwrap_or_default();
        let mut state = names.state(&nodes, &services);
        state.renewals = self.renewals.0 + self.renewals.1;
        Ok(state)
    }

    fn give(&mut self) -> Result<()> {
        if self.wanted == self.given {
            return Ok(());
        }
        let service = |record: usize| format!("r{record}-{}", self.node.name);
        let new = self.wanted.difference(&self.given).map(|record| {
            let port = u16::try_from(10_000 + record % 10_000).unwrap_or(PORT);
            let ports = json!([{"number": port, "target_port": PORT}]);
            ("/v1/expose", json!({"service": service(*record), "ports": ports}))
        });
        let old = self.given.difference(&self.wanted);
        let old = old.map(|record| ("/v1/withdraw", json!({"service": service(*record)})));
        for (path, wish) in new.chain(old).collect::<Vec<_>>() {
            self.ask("POST", path, &wish)?;
        }
        self.given.clone_from(&self.wanted);
        Ok(())
    }

    /// Asks over a connection of its own: the daemon closes those that are silent for long.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let mut api = Api::connect(&self.node.socket())?;
        let (code, text) = api.request(method, path, body).with_context(|| self.node.name.clone())?;
        if !(200..300).contains(&code) {
            bail!("{}: {method} {path}: {code} {text}", self.node.name);
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// Finds out whether a daemon that does not listen is still starting, or leaving.
    fn still_runs(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            let failed = !status.success();
            self.ended();
            if failed {
                bail!("{} ended with {status}: {}", self.node.name, self.node.log());
            }
        }
        Ok(())
    }

    fn ended(&mut self) {
        self.child = None;
        self.suspended = false;
        self.ear = None;
        self.renewals = (self.renewals.0 + self.renewals.1, 0);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ear {
    fn new(mut stream: UnixStream) -> Result<Self> {
        stream.write_all(b"GET /v1/events?since=0&follow=true HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, buffer: VecDeque::new() })
    }

    /// Returns the lines that have come since the last call: JSON objects; the heads and sizes of HTTP are none.
    fn lines(&mut self) -> Result<Vec<String>> {
        let mut bytes = [0; 4_096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => break,
                Ok(length) => self.buffer.extend(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error.into()),
            }
        }
        let mut lines = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            if line.starts_with(b"{") {
                lines.push(String::from_utf8_lossy(&line).into_owned());
            }
        }
        Ok(lines)
    }
}

/// Where the state of a node is kept as it was before its first start.
fn pristine(node: &Node) -> PathBuf {
    node.dir().join("pristine")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    // The daemon refuses a directory that others may read.
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ear_hears_whole_lines_without_waiting() {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        let mut ear = Ear::new(near).expect("listens");
        assert_eq!(ear.lines().expect("nothing yet"), Vec::<String>::new());
        far.write_all(b"HTTP/1.1 200 OK\r\n\r\n8\r\n{\"a\":1}\n\r\n6\r\n{\"b\"").expect("sent");
        assert_eq!(ear.lines().expect("one"), ["{\"a\":1}\n"]);
        far.write_all(b":2}\n\r\n").expect("sent");
        assert_eq!(ear.lines().expect("another"), ["{\"b\":2}\n"]);
        drop(far);
        assert_eq!(ear.lines().expect("the end"), Vec::<String>::new());
    }

    #[test]
    fn a_copy_is_private_as_the_original() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("scratch");
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&from).expect("made");
        fs::set_permissions(&from, fs::Permissions::from_mode(0o700)).expect("private");
        fs::write(from.join("f"), "x").expect("written");
        copy(&from, &to).expect("copied");
        assert_eq!(fs::read_to_string(to.join("f")).expect("there"), "x");
        assert_eq!(fs::metadata(&to).expect("there").permissions().mode() & 0o777, 0o700);
    }
}
