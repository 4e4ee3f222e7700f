//! The servers: ours and the peers, each a process.
//!
//! Owns: how each is started, what it has used. Must not know: what is asked. Driven by: the suite.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long a server may take until it answers: unbound reads 70,000 lines.
const START: Duration = Duration::from_secs(60);

/// The core that pinned servers run on.
const CORE: &str = "0";

/// A process that answers.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a command; pinned to one core when asked. Does not wait.
    pub(super) fn start(
        name: &'static str,
        address: SocketAddr,
        command: &[String],
        dir: &Path,
        (pinned, environment): (bool, &[(&str, PathBuf)]),
    ) -> Result<Self> {
        let taskset = ["taskset", "-c", CORE].map(str::to_owned);
        let words: Vec<_> =
            if pinned { taskset.iter().chain(command).collect() } else { command.iter().collect() };
        let (program, arguments) = words.split_first().context("a command")?;
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log)?;
        let mut start = Command::new(program);
        start.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        for (key, value) in environment {
            start.env(key, value);
        }
        let child = start.spawn().with_context(|| format!("cannot start {program}{}", package_of(name)))?;
        Ok(Self { name, address, child, log })
    }

    /// Waits until a query gets any reply.
    pub(super) fn answers(&mut self, query: &[u8]) -> Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let end = Instant::now() + START;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.name, self.tail());
            }
            let _ = socket.send_to(query, self.address);
            if socket.recv(&mut [0; 1_500]).is_ok() {
                return Ok(());
            }
        }
        bail!("{} does not answer on {}: {}", self.name, self.address, self.tail())
    }

    /// Returns the last lines it wrote.
    pub(super) fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Returns the processor time it has used, user and system, seconds.
    pub(super) fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The command, in brackets, may have spaces.
        let fields = stat.rsplit_once(')').context("a stat line")?.1;
        let ticks = |index: usize| -> Result<f64> {
            Ok(fields.split_ascii_whitespace().nth(index).context("a field")?.parse()?)
        };
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("ticks")?;
        Ok((ticks(11)? + ticks(12)?) / per_second as f64)
    }

    /// Returns its resident memory, MiB.
    pub(super) fn memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1_024.0)
    }
}

/// Returns where a peer's package is found, when it is one.
fn package_of(name: &str) -> String {
    match name {
        "knot" | "unbound" => format!(": install the Debian package {name}"),
        _ => String::new(),
    }
}

/// Fails when a program is not installed, naming its Debian package.
pub(crate) fn installed(program: &str, package: &str) -> Result<()> {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(program).exists());
    if found { Ok(()) } else { bail!("{program} is not installed: install the Debian package {package}") }
}

/// Fills in a committed configuration and writes it.
pub(crate) fn configure(template: &str, values: &[(&str, String)], to: &Path) -> Result<()> {
    let filled = values
        .iter()
        .fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value));
    Ok(fs::write(to, filled)?)
}
