//! Gossamer as it is measured: the shipped program, default settings, its local API.
//!
//! Owns: state directories, the identities of all members, the requests. Must not know: what is measured.
//! Driven by: `fleet` and the measurements.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::fleet::{Ear, Fleet, Product, Reader, Said, name};
use super::http::{Api, Lines};

/// Where a program of every service listens.
pub(super) const PORT: u16 = 7_000;

/// Between two looks for the socket of a daemon that is starting.
const LOOK: Duration = Duration::from_millis(5);

/// The stream of changes of nodes and services.
const WATCH: &str = "/v1/watch";

/// How long a daemon may take until it answers.
const START: Duration = Duration::from_secs(30);

/// Joins under way at once while identities are made.
const JOINING: usize = 8;

/// Daemons of the shipped program.
#[derive(Debug)]
pub(super) struct Ours {
    program: PathBuf,
    dir: PathBuf,
    /// Whether the watch stream is there; found out from the first daemon.
    watches: bool,
}

impl Product for Ours {
    const SYSTEM: &'static str = "gossamer";

    fn spawn(&self, member: usize, ear: Ear) -> Result<(Child, Reader)> {
        let arguments = if self.state(member).join("identity.json").exists() {
            vec!["run".to_owned()]
        } else {
            vec!["init".to_owned(), "--node".to_owned(), name(member)]
        };
        // What a killed daemon left would refuse connections and look like a daemon that starts.
        let _ = fs::remove_file(self.socket(member));
        let child = self.command(member, &arguments)?.spawn()?;
        let socket = self.socket(member);
        Ok((child, Box::pin(listen(socket, self.watches, ear))))
    }
}

impl Ours {
    /// Makes daemons of `program` with their files below `dir`.
    pub(super) fn new(program: PathBuf, dir: PathBuf) -> Self {
        Self { program, dir, watches: false }
    }

    /// Returns a connection to the API of a member, as soon as its daemon listens.
    ///
    /// # Errors
    /// It does not in time.
    pub(super) async fn api(&self, member: usize) -> Result<Api> {
        let end = Instant::now() + START;
        loop {
            match Api::connect(&self.socket(member)).await {
                Ok(api) => return Ok(api),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => sleep(LOOK).await,
            }
        }
    }

    /// Returns whether the watch stream tells of records.
    pub(super) const fn watches(&self) -> bool {
        self.watches
    }

    fn command(&self, member: usize, arguments: &[String]) -> Result<Command> {
        let dir = self.dir.join(name(member));
        fs::create_dir_all(&dir)?;
        let config = dir.join("gossamer.toml");
        File::create(&config)?;
        let log = OpenOptions::new().create(true).append(true).open(dir.join("daemon.log"))?;
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir("/").env_clear();
        command.env("HOME", &dir).env("GOSSAMER_CONFIG", config);
        command.env("GOSSAMER_STATE_DIR", self.state(member)).env("GOSSAMER_SOCKET", self.socket(member));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    fn state(&self, member: usize) -> PathBuf {
        self.dir.join(name(member)).join("state")
    }

    fn socket(&self, member: usize) -> PathBuf {
        self.dir.join(name(member)).join("s")
    }

    /// Where the state of a member is kept as it was before its first start.
    fn pristine(&self, member: usize) -> PathBuf {
        self.dir.join(name(member)).join("pristine")
    }

    /// Puts back the state a member had before its first start.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn restore(&self, member: usize) -> Result<()> {
        let state = self.state(member);
        if state.exists() {
            fs::remove_dir_all(&state)?;
        }
        copy(&self.pristine(member), &state)
    }
}

impl Fleet<Ours> {
    /// Makes the mesh and the identities of all members; none runs afterwards.
    ///
    /// # Errors
    /// A daemon does not start, or does not join, with the end of its log.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        self.start(0)?;
        let mut api = self.product.api(0).await?;
        let wish = json!({"ttl_seconds": 3_600, "uses": self.len()});
        let token = api.ask("POST", "/v1/token", &wish).await.context("a token")?;
        let token = token["token"].as_str().context("a token")?.to_owned();
        self.product.watches = api.lines(WATCH).await.is_ok();
        let others: Vec<usize> = (1..self.len()).collect();
        for some in others.chunks(JOINING) {
            let mut joining = Vec::new();
            for member in some {
                let arguments = ["join", &token, "--node", &name(*member), "--no-start"].map(str::to_owned);
                let mut command = self.product.command(*member, &arguments)?;
                joining.push((*member, self.namespace(*member).enter(move || command.spawn())??));
            }
            for (member, mut child) in joining {
                if !child.wait()?.success() {
                    bail!("{} did not join: {}", name(member), self.product.log(member));
                }
            }
        }
        self.signal(0, nix::sys::signal::Signal::SIGTERM)?;
        self.ended(0).await?;
        for member in 0..self.len() {
            copy(&self.product.state(member), &self.product.pristine(member))?;
        }
        Ok(())
    }

    /// Exposes a service on a member; returns when the request had reached its API.
    ///
    /// # Errors
    /// The daemon refuses.
    pub(super) async fn expose(api: &mut Api, service: &str, port: u16) -> Result<Instant> {
        let at = api.send("POST", "/v1/expose", &exposed(service, port)).await?;
        api.response().await?;
        Ok(at)
    }
}

/// What is asked for to expose a service.
pub(super) fn exposed(service: &str, port: u16) -> Value {
    json!({"service": service, "ports": [{"number": port, "target_port": PORT}]})
}

impl Ours {
    /// Returns the last lines of a member's log.
    pub(super) fn log(&self, member: usize) -> String {
        let text = fs::read_to_string(self.dir.join(name(member)).join("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

/// Hears what a daemon says about the others: who it is, then each change of state as it happens.
async fn listen(socket: PathBuf, watches: bool, ear: Ear) {
    // A daemon that never listens is found by the measurement that waits for it.
    let Ok(mut api) = connected(&socket).await else { return };
    let Ok(status) = api.ask("GET", "/v1/status", &Value::Null).await else { return };
    if let Some(id) = status["node"]["id"].as_str() {
        ear.hear(Said::IAm(id.to_owned())).await;
    }
    if !watches {
        let Ok(lines) = api.lines("/v1/events?since=0&follow=true").await else { return };
        return hear_all(lines, &ear, event).await;
    }
    let Ok(stream) = connected(&socket).await else { return };
    let Ok(lines) = stream.lines(WATCH).await else { return };
    // The stream tells what changes; what is already so is asked for once it has begun.
    let Ok(nodes) = api.ask("GET", "/v1/nodes", &Value::Null).await else { return };
    for row in nodes.as_array().into_iter().flatten().filter(|row| row["state"] == "alive") {
        let who = row["name"].as_str().or_else(|| row["id"].as_str()).unwrap_or_default();
        ear.hear(Said::Up(who.to_owned())).await;
    }
    hear_all(lines, &ear, change).await;
}

async fn hear_all(mut lines: Lines, ear: &Ear, understand: fn(&str) -> Option<Said>) {
    while let Some(line) = lines.next().await {
        if let Some(said) = understand(&line)
            && !ear.hear(said).await
        {
            return;
        }
    }
}

async fn connected(socket: &Path) -> Result<Api> {
    let end = Instant::now() + START;
    loop {
        match Api::connect(socket).await {
            Err(_) if Instant::now() < end => sleep(LOOK).await,
            result => return result,
        }
    }
}

/// Reads a line of the watch stream.
fn change(line: &str) -> Option<Said> {
    let line: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| line[key].as_str().map(str::to_owned);
    let now = line["now"].as_str()?;
    if line["kind"] == "service" {
        return if now == "usable" { text("service").map(Said::Change) } else { None };
    }
    state(text("node")?, now)
}

/// Reads an event: `TIME node WHO: WAS -> NOW, CAUSE (says BY)`.
fn event(line: &str) -> Option<Said> {
    let event: Value = serde_json::from_str(line).ok()?;
    let (_, event) = event["line"].as_str()?.split_once(" node ")?;
    let (who, change) = event.split_once(": ")?;
    let (_, now) = change.split_once(" -> ")?;
    state(who.to_owned(), now.split(',').next()?)
}

fn state(who: String, now: &str) -> Option<Said> {
    match now {
        "alive" => Some(Said::Up(who)),
        "down" | "left" => Some(Said::Down(who)),
        _ => None,
    }
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
    fn events_of_nodes_are_understood_and_others_are_not() {
        let line = |text: &str| json!({"at": 1, "line": format!("2026-11-21T15:43:32Z {text}")}).to_string();
        let up = line("node m3: unknown -> alive, it said so (says m3)");
        assert_eq!(event(&up), Some(Said::Up("m3".to_owned())));
        let down = line("node m3: suspect -> down, no answer to probes (says self)");
        assert_eq!(event(&down), Some(Said::Down("m3".to_owned())));
        assert_eq!(event(&line("node m3: alive -> suspect, no answer (says self)")), None);
        assert_eq!(event(&line("service web: unknown -> passing, checked (says self)")), None);
        assert_eq!(event("x"), None);
    }

    #[test]
    fn the_watch_stream_tells_of_nodes_and_services() {
        let node = |now: &str| json!({"kind": "node", "node": "m3", "was": "alive", "now": now}).to_string();
        assert_eq!(change(&node("alive")), Some(Said::Up("m3".to_owned())));
        assert_eq!(change(&node("down")), Some(Said::Down("m3".to_owned())));
        assert_eq!(change(&node("suspect")), None);
        let service = |now: &str| json!({"kind": "service", "service": "web", "now": now}).to_string();
        assert_eq!(change(&service("usable")), Some(Said::Change("web".to_owned())));
        assert_eq!(change(&service("absent")), None);
        assert_eq!(change("{\"kind\": \"watching\"}"), None);
    }
}
