//! Real daemons: started by path, asked through the command line, stopped by process id.
//!
//! Owns: scratch directories, the environment of each node, the processes. Must not know: what a scenario shows.
//! Driven by: `tests/tests`, the checks of `evidence`.
//!
//! A node on loopback has a port and a pool of its own, so that any number of scenarios run side by side; a node
//! in a network namespace runs with the daemon's defaults.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::dnsq::Resolver;
use crate::netns::Namespace;
use crate::wait::{Broken, wait_for};

/// How long a daemon may take until it answers `status`.
pub const START: Duration = Duration::from_secs(20);
/// How long a command may take.
pub const COMMAND: Duration = Duration::from_secs(30);
/// How long a daemon may take to leave after SIGTERM: it waits 20 s for flows.
const LEAVE: Duration = Duration::from_secs(40);
/// How often a start is repeated when another process took the port or the pool first.
const STARTS: usize = 8;
/// Lines of each log that are shown when a scenario fails.
const TAIL: usize = 15;
/// The user who owns nothing.
const NOBODY: u32 = 65_534;

/// Whether a failed scenario shows the ends of its logs on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logs {
    /// It does.
    Shown,
    /// It does not: the failure is expected.
    Hidden,
}

/// Plays a scenario with a scratch directory; shows the logs of its daemons when it fails.
///
/// # Errors
/// Those of the scenario, unchanged.
pub fn scenario<T>(program: &Path, logs: Logs, play: impl FnOnce(&Lab) -> Result<T>) -> Result<T> {
    let lab = Lab::new(program)?;
    let result = play(&lab);
    if result.is_err() && logs == Logs::Shown {
        lab.show_logs();
    }
    result
}

/// The scratch directory of a scenario.
#[derive(Clone, Debug)]
pub struct Lab(Arc<Scratch>);

#[derive(Debug)]
struct Scratch {
    dir: TempDir,
    program: PathBuf,
    files: AtomicU32,
}

/// Where a node runs.
#[derive(Clone, Debug)]
enum Place {
    /// On 127.0.0.1, with this port and the pool 127.N.0.0/16.
    Loopback { port: u16, pool: u8 },
    /// In a network namespace, with the defaults of the daemon.
    Namespace(String),
    /// On this machine, with nothing said about ports and pools.
    Plain,
}

/// One node: its directory, and its daemon while it runs.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    lab: Lab,
    place: Place,
    user: Option<u32>,
    extra: Vec<(String, String)>,
    child: Option<Child>,
}

/// A command that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote for programs.
    pub stdout: String,
    /// What it wrote for people.
    pub stderr: String,
}

impl Lab {
    /// Makes a scratch directory for daemons of `program`.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new(program: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gsm").tempdir()?;
        // Daemons of other users live below it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Self(Arc::new(Scratch { dir, program: program.to_owned(), files: AtomicU32::new(0) })))
    }

    /// Returns the scratch directory.
    pub fn dir(&self) -> &Path {
        self.0.dir.path()
    }

    /// Returns the program whose daemons run here.
    pub fn program(&self) -> &Path {
        &self.0.program
    }

    /// Makes a node on loopback, not started.
    ///
    /// # Errors
    /// No port is free.
    pub fn node(&self, name: &str) -> Result<Node> {
        let (port, pool) = (free_port()?, free_pool()?);
        self.make(name, Place::Loopback { port, pool })
    }

    /// Makes a node in a network namespace, not started.
    ///
    /// # Errors
    /// The system refuses a directory.
    pub fn node_in(&self, name: &str, namespace: &Namespace) -> Result<Node> {
        self.make(name, Place::Namespace(namespace.name().to_owned()))
    }

    /// Makes a node with the daemon's own ports and pools, not started.
    ///
    /// # Errors
    /// The system refuses a directory.
    pub fn plain_node(&self, name: &str) -> Result<Node> {
        self.make(name, Place::Plain)
    }

    fn make(&self, name: &str, place: Place) -> Result<Node> {
        let (name, lab) = (name.to_owned(), self.clone());
        let node = Node { name, lab, place, user: None, extra: Vec::new(), child: None };
        fs::create_dir_all(node.dir())?;
        fs::write(node.dir().join("gossamer.toml"), "")?;
        Ok(node)
    }

    /// Runs a command to its end, outputs kept apart.
    ///
    /// # Errors
    /// It cannot be started, or has not ended after `limit`, when it is killed.
    pub fn finish(&self, mut command: Command, limit: Duration) -> Result<Finished> {
        let number = self.0.files.fetch_add(1, Ordering::Relaxed);
        let outputs = ["out", "err"].map(|end| self.dir().join(format!("{number}.{end}")));
        let shown = format!("{command:?}");
        command.stdin(Stdio::null());
        command.stdout(File::create(&outputs[0])?).stderr(File::create(&outputs[1])?);
        let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
        let ended = wait_for(&format!("the end of {shown}"), limit, || Ok(child.try_wait()?));
        let status: ExitStatus = match ended {
            Ok((status, _)) => status,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let [stdout, stderr] = outputs.map(|path| {
            let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let _ = fs::remove_file(path);
            text.unwrap_or_default()
        });
        Ok(Finished { code: status.code(), stdout, stderr })
    }

    #[allow(clippy::print_stderr, reason = "the logs of a failed test belong to its output")]
    fn show_logs(&self) {
        let nodes = fs::read_dir(self.dir()).into_iter().flatten().flatten();
        for log in nodes.map(|node| node.path().join("daemon.log")).filter(|log| log.exists()) {
            eprintln!("-- {}\n{}", log.display(), tail(&log));
        }
    }
}

impl Node {
    /// Adds a variable to the environment of its daemon and commands.
    #[must_use]
    pub fn with(mut self, variable: &str, value: &str) -> Self {
        self.extra.push((variable.to_owned(), value.to_owned()));
        self
    }

    /// Lets its daemon and commands run as the user nobody. Only root can.
    ///
    /// # Errors
    /// The system refuses.
    pub fn unprivileged(mut self) -> Result<Self> {
        self.user = Some(NOBODY);
        nix::unistd::chown(&self.dir(), Some(NOBODY.into()), Some(NOBODY.into()))?;
        Ok(self)
    }

    /// Makes a mesh in `group` and starts its first daemon.
    ///
    /// # Errors
    /// [`Broken`] when it does not get ready.
    pub fn init(&mut self, group: &str) -> Result<()> {
        let name = self.name.clone();
        self.start(&["init", "--group", group, "--node", &name])
    }

    /// Joins with a token and starts.
    ///
    /// # Errors
    /// [`Broken`] when it does not get ready.
    pub fn join(&mut self, token: &str) -> Result<()> {
        let name = self.name.clone();
        self.start(&["join", token, "--node", &name])
    }

    /// Starts from the state directory.
    ///
    /// # Errors
    /// [`Broken`] when it does not get ready.
    pub fn run(&mut self) -> Result<()> {
        self.start(&["run"])
    }

    /// Starts a daemon in the foreground with these arguments and waits until it answers.
    ///
    /// # Errors
    /// [`Broken`] when it ends or does not answer in time.
    pub fn start(&mut self, arguments: &[&str]) -> Result<()> {
        for attempt in 1.. {
            match self.try_start(arguments) {
                Err(error) if attempt < STARTS && format!("{error:#}").contains("in use") => {
                    self.move_away()?
                }
                result => return result,
            }
        }
        Ok(())
    }

    fn try_start(&mut self, arguments: &[&str]) -> Result<()> {
        let mut child = self.spawn(arguments)?;
        let what = format!("{} answering after `gossamer {}`", self.name, arguments[0]);
        let ready = wait_for(&what, START, || {
            if let Some(status) = child.try_wait()? {
                let why = format!("`gossamer {}` ended with {status}:\n{}", arguments[0], self.log());
                return Err(Broken(why).into());
            }
            Ok((self.cli(&["status", "--json"])?.code == Some(0)).then_some(()))
        });
        self.child = Some(child);
        if ready.is_err() {
            self.kill9()?;
        }
        ready.map(drop)
    }

    /// Starts a daemon without waiting for it; its outputs go to its log.
    ///
    /// # Errors
    /// The system refuses.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file())?;
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("starting {}", self.lab.program().display()))
    }

    /// Takes another port and another pool: somebody else was faster.
    fn move_away(&mut self) -> Result<()> {
        match &mut self.place {
            Place::Loopback { port, pool } => {
                (*port, *pool) = (free_port()?, free_pool()?);
                File::create(self.log_file())?;
                Ok(())
            }
            Place::Namespace(_) | Place::Plain => bail!("{} found its port or pool in use", self.name),
        }
    }

    /// Kills the daemon with SIGKILL and waits for its end. Does nothing when it does not run.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Sends SIGTERM and returns the exit code.
    ///
    /// # Errors
    /// [`Broken`] when the daemon has not ended in time, or ended by a signal.
    pub fn stop(&mut self) -> Result<i32> {
        self.signal(Signal::SIGTERM)?;
        self.ended(LEAVE)
    }

    /// Waits until the daemon has ended by itself and returns the exit code.
    ///
    /// # Errors
    /// [`Broken`] when it has not ended within `limit`, or ended by a signal.
    pub fn ended(&mut self, limit: Duration) -> Result<i32> {
        let name = self.name.clone();
        let Some(child) = &mut self.child else { bail!("{name} does not run") };
        let (status, _) = wait_for(&format!("the end of {name}"), limit, || Ok(child.try_wait()?))?;
        self.child = None;
        status.code().with_context(|| format!("{name} ended by a signal: {status}"))
    }

    /// Waits until the daemon has ended, in whatever way, and says in which.
    ///
    /// # Errors
    /// [`Broken`] when it has not ended within `limit`.
    pub fn crashed(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        let Some(child) = &mut self.child else { bail!("{name} does not run") };
        let (status, _) = wait_for(&format!("the end of {name}"), limit, || Ok(child.try_wait()?))?;
        self.child = None;
        Ok(status)
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()?), signal)?)
    }

    /// Returns the daemon's process id.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<i32> {
        let child = self.child.as_ref().with_context(|| format!("{} does not run", self.name))?;
        Ok(i32::try_from(child.id())?)
    }

    /// Runs a command of the command line to its end.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn cli(&self, arguments: &[&str]) -> Result<Finished> {
        self.lab.finish(self.command(arguments), COMMAND)
    }

    /// Runs a command that must succeed and returns what it wrote for programs.
    ///
    /// # Errors
    /// [`Broken`] with its words when it fails.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        let finished = self.cli(arguments)?;
        let said = if finished.stderr.is_empty() { &finished.stdout } else { &finished.stderr };
        crate::promise!(
            finished.code == Some(0),
            "`gossamer {}` on {} ended with {:?}: {}",
            arguments.join(" "),
            self.name,
            finished.code,
            said.trim()
        );
        Ok(finished.stdout)
    }

    /// Runs a command with `--json` and parses its output.
    ///
    /// # Errors
    /// [`Broken`] when it fails or writes something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ok(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text)
            .map_err(|error| Broken(format!("`{} --json`: {error} in {text:?}", arguments.join(" "))).into())
    }

    /// Returns a new token: one hour, one use, of the node's own group unless `extra` says otherwise.
    ///
    /// # Errors
    /// [`Broken`] when there is none.
    pub fn token(&self, extra: &[&str]) -> Result<String> {
        Ok(self.ok(&[&["token", "create"], extra].concat())?.trim().to_owned())
    }

    /// Returns `status --json`.
    ///
    /// # Errors
    /// [`Broken`] when it does not answer.
    pub fn status(&self) -> Result<Value> {
        self.json(&["status"])
    }

    /// Returns the state of a node as this one sees it: `alive`, `suspect`, `down`, `left`; `None` if unknown.
    ///
    /// # Errors
    /// [`Broken`] when the listing fails.
    pub fn state_of(&self, node: &str) -> Result<Option<String>> {
        let nodes = self.json(&["nodes"])?;
        let entry = nodes.as_array().into_iter().flatten().find(|entry| entry["name"] == node);
        Ok(entry.and_then(|entry| entry["state"].as_str()).map(str::to_owned))
    }

    /// Waits until this node sees another in a state.
    ///
    /// # Errors
    /// [`Broken`] when it does not within `limit`.
    pub fn sees(&self, node: &str, state: &str, limit: Duration) -> Result<Duration> {
        let what = format!("{} seeing {node} {state}", self.name);
        crate::wait::until(&what, limit, || Ok(self.state_of(node)?.as_deref() == Some(state)))
    }

    /// Returns where the daemon answers DNS.
    ///
    /// # Errors
    /// [`Broken`] when `status` does not say.
    pub fn dns_address(&self) -> Result<SocketAddr> {
        let status = self.status()?;
        let address = status["dns"].as_str().and_then(|text| text.parse().ok());
        address.ok_or_else(|| Broken(format!("status names no DNS address: {}", status["dns"])).into())
    }

    /// Returns a client of the daemon's DNS, in its network namespace.
    ///
    /// # Errors
    /// `status` does not answer, or the system refuses a socket.
    pub fn resolver(&self) -> Result<Resolver> {
        let server = self.dns_address()?;
        match &self.place {
            Place::Namespace(name) => Namespace::enter_named(name, || Resolver::new(server))?,
            Place::Loopback { .. } | Place::Plain => Resolver::new(server),
        }
    }

    /// Returns where mesh traffic of a node on loopback arrives.
    ///
    /// # Errors
    /// The node is in a namespace.
    pub fn mesh_address(&self) -> Result<SocketAddr> {
        match self.place {
            Place::Loopback { port, .. } => Ok((Ipv4Addr::LOCALHOST, port).into()),
            Place::Namespace(_) | Place::Plain => bail!("{} has the daemon's own port", self.name),
        }
    }

    /// Returns its directory in the scratch directory.
    pub fn dir(&self) -> PathBuf {
        self.lab.dir().join(&self.name)
    }

    /// Returns its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// Returns the socket of its local API.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("gossamer.sock")
    }

    /// Returns its configuration file, empty unless a scenario writes it.
    pub fn config_file(&self) -> PathBuf {
        self.dir().join("gossamer.toml")
    }

    /// Returns the end of its log.
    pub fn log(&self) -> String {
        tail(&self.log_file())
    }

    /// Returns all of its log, also that of earlier starts.
    pub fn whole_log(&self) -> String {
        read(&self.log_file())
    }

    fn log_file(&self) -> PathBuf {
        self.dir().join("daemon.log")
    }

    /// Makes a command with the node's environment, in its place, as its user.
    pub fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = match &self.place {
            Place::Namespace(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]);
                // Only root may enter a namespace, so the user changes inside.
                if let Some(user) = self.user {
                    let user =
                        [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
                    command.arg("setpriv").args(user);
                }
                command.arg(self.lab.program());
                command
            }
            Place::Loopback { .. } | Place::Plain => Command::new(self.lab.program()),
        };
        command.args(arguments).current_dir("/").env_clear().envs(self.environment());
        if let (Some(user), Place::Loopback { .. } | Place::Plain) = (self.user, &self.place) {
            command.uid(user).gid(user);
        }
        command
    }

    /// Returns the environment of its daemon and commands.
    pub fn environment(&self) -> Vec<(String, String)> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut variables = vec![
            ("PATH".to_owned(), std::env::var("PATH").unwrap_or_default()),
            ("HOME".to_owned(), path(self.dir())),
            ("XDG_RUNTIME_DIR".to_owned(), path(self.dir())),
            ("GOSSAMER_CONFIG".to_owned(), path(self.config_file())),
            ("GOSSAMER_STATE_DIR".to_owned(), path(self.state_dir())),
            ("GOSSAMER_SOCKET".to_owned(), path(self.socket())),
        ];
        if let Place::Loopback { port, pool } = self.place {
            let listen = format!("127.0.0.1:{port}");
            variables.push(("GOSSAMER_LISTEN".to_owned(), listen.clone()));
            variables.push(("GOSSAMER_ADVERTISE".to_owned(), listen));
            variables.push(("GOSSAMER_VIP_POOL".to_owned(), pool_text(pool)));
        }
        variables.extend(self.extra.iter().cloned());
        variables
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.kill9();
    }
}

fn read(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn tail(log: &Path) -> String {
    let text = read(log);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// Returns a UDP port of loopback that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn pool_text(pool: u8) -> String {
    format!("127.{pool}.0.0/16")
}

/// Pools of scenarios are 127.16.0.0/16 to 127.239.0.0/16: below those of the slots, above what systems use.
const POOLS: std::ops::Range<u32> = 16..240;

/// Returns a pool that no daemon of this machine had a moment ago: it holds a socket of that name (see the
/// daemon's `config::slot`).
fn free_pool() -> Result<u8> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = POOLS.end - POOLS.start;
    for _ in 0..count {
        let number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(7));
        let pool = u8::try_from(POOLS.start + number % count)?;
        let name = UnixAddr::from_abstract_name(format!("gossamer/pool/{}", pool_text(pool)))?;
        if UnixDatagram::bind_addr(&name).is_ok() {
            return Ok(pool);
        }
    }
    bail!("every pool is in use")
}
