//! serf as it is measured: agents of the Debian package, heard through their logs, told through their RPC.
//!
//! Owns: the command line of an agent, the lines of its log, the bytes of its RPC. Must not know: what is
//! measured. Driven by: `fleet` and the measurements.

use std::io::pipe;
use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use gossamer_tests::netns::{Namespace, Star};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;

use super::fleet::{Ear, Product, Reader, Said, name};

/// Where an agent listens for commands, in its namespace.
const RPC: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7_373);

/// Bytes of the payload of an event: about what a record of one service needs.
const PAYLOAD: usize = 64;

/// Agents of the installed program.
#[derive(Debug)]
pub(super) struct Serf {
    config: PathBuf,
    /// The machine of the first agent, and the distance to the next one's.
    machines: (usize, usize),
}

impl Serf {
    /// Makes agents with a configuration file.
    ///
    /// # Errors
    /// serf is not installed; the error names the package.
    pub(super) fn new(config: PathBuf, machines: (usize, usize)) -> Result<Self> {
        installed("serf")?;
        Ok(Self { config, machines })
    }

    /// Returns what the program calls its version.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn version() -> Result<String> {
        let said = Command::new("serf").arg("version").output()?.stdout;
        Ok(String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned())
    }

    fn address(&self, member: usize) -> Ipv4Addr {
        Star::address(self.machines.0 + member * self.machines.1)
    }
}

impl Product for Serf {
    const SYSTEM: &'static str = "serf";

    fn spawn(&self, member: usize, ear: Ear) -> Result<(Child, Reader)> {
        let (log, out) = pipe()?;
        let mut command = Command::new("serf");
        command.arg("agent").arg(format!("-config-file={}", self.config.display()));
        command.arg(format!("-node={}", name(member)));
        command.arg(format!("-bind={}:7946", self.address(member)));
        if member > 0 {
            command.arg(format!("-join={}:7946", self.address(0)));
        }
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn()?;
        Ok((child, Box::pin(listen(log.into(), ear))))
    }
}

async fn listen(log: OwnedFd, ear: Ear) {
    let Ok(log) = Receiver::from_owned_fd(log) else { return };
    let mut lines = BufReader::new(log).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(said) = understood(&line)
            && !ear.hear(said).await
        {
            return;
        }
    }
}

/// Finds out whether the program starts.
fn installed(program: &str) -> Result<()> {
    let found = Command::new(program).arg("version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        bail!("serf is not installed: apt-get install serf (Debian package `serf`)");
    }
    Ok(())
}

/// Reads a line of an agent's log.
fn understood(line: &str) -> Option<Said> {
    if let Some((_, event)) = line.split_once("Received event: user-event: ") {
        return Some(Said::Change(event.trim().to_owned()));
    }
    let (_, event) = line.split_once("serf: EventMember")?;
    let (kind, rest) = event.split_once(": ")?;
    let who = rest.split_whitespace().next()?.to_owned();
    match kind {
        "Join" => Some(Said::Up(who)),
        "Failed" | "Leave" | "Reap" => Some(Said::Down(who)),
        _ => None,
    }
}

/// A connection to the RPC of one agent: msgpack maps, a header before each body.
#[derive(Debug)]
pub(super) struct Rpc {
    stream: TcpStream,
    number: u8,
}

impl Rpc {
    /// Connects to the agent of a namespace.
    ///
    /// # Errors
    /// It does not listen, or refuses the protocol.
    pub(super) async fn connect(namespace: &Namespace) -> Result<Self> {
        let stream = namespace.enter(|| StdStream::connect(RPC))??;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let mut rpc = Self { stream: TcpStream::from_std(stream)?, number: 0 };
        rpc.call("handshake", &pack_map(&[("Version", vec![1])])).await?;
        Ok(rpc)
    }

    /// Sends a user event; returns when its last byte was handed over.
    ///
    /// # Errors
    /// The agent refuses.
    pub(super) async fn event(&mut self, event: &str) -> Result<Instant> {
        let payload = [vec![0xc4, u8::try_from(PAYLOAD)?], vec![b'x'; PAYLOAD]].concat();
        let body = [("Name", pack_text(event)), ("Payload", payload), ("Coalesce", vec![0xc2])];
        self.call("event", &pack_map(&body)).await
    }

    async fn call(&mut self, command: &str, body: &[u8]) -> Result<Instant> {
        // One byte is a number up to 127.
        self.number = self.number % 127 + 1;
        let header = pack_map(&[("Command", pack_text(command)), ("Seq", vec![self.number])]);
        self.stream.write_all(&[&header, body].concat()).await?;
        let at = Instant::now();
        // {"Seq": N, "Error": TEXT} in some order: the text is all that can differ in length.
        let mut answer = Vec::new();
        let mut bytes = [0; 256];
        while refusal(&answer).is_none() {
            let length = self.stream.read(&mut bytes).await?;
            if length == 0 {
                bail!("the agent closed its RPC");
            }
            answer.extend_from_slice(bytes.get(..length).unwrap_or_default());
        }
        let said = refusal(&answer).context("an answer")?;
        if !said.is_empty() {
            bail!("serf refuses {command}: {said}");
        }
        Ok(at)
    }
}

/// Returns the text of the key `Error`; `None` until it is there.
fn refusal(answer: &[u8]) -> Option<String> {
    let key = b"Error";
    let at = answer.windows(key.len()).position(|window| window == key)? + key.len();
    let length = match answer.get(at)? {
        tag @ 0xa0..=0xbf => usize::from(tag & 0x1f),
        _ => return Some("an answer that is too long to read".to_owned()),
    };
    Some(String::from_utf8_lossy(answer.get(at + 1..at + 1 + length)?).into_owned())
}

/// Writes a map of at most 15 keys.
fn pack_map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0x80 | entries.len() as u8];
    for (key, value) in entries {
        bytes.extend(pack_text(key));
        bytes.extend(value);
    }
    bytes
}

/// Writes a text of at most 31 bytes.
fn pack_text(text: &str) -> Vec<u8> {
    [&[0xa0 | text.len() as u8], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_events_are_read_from_the_log() {
        let joined = "2026/11/21 15:00:00 [INFO] serf: EventMemberJoin: m7 10.78.0.15";
        assert_eq!(understood(joined), Some(Said::Up("m7".to_owned())));
        let failed = "2026/11/21 15:00:00 [INFO] serf: EventMemberFailed: m7 10.78.0.15";
        assert_eq!(understood(failed), Some(Said::Down("m7".to_owned())));
        let event = "2026/11/21 15:00:00 [INFO] agent: Received event: user-event: v3";
        assert_eq!(understood(event), Some(Said::Change("v3".to_owned())));
        assert_eq!(understood("2026/11/21 15:00:00 [INFO] serf: EventMemberUpdate: m7"), None);
        assert_eq!(understood("==> Starting Serf agent..."), None);
    }

    #[test]
    fn a_request_is_msgpack() {
        let bytes = pack_map(&[("Seq", vec![3]), ("Name", pack_text("v1"))]);
        assert_eq!(bytes, b"\x82\xa3Seq\x03\xa4Name\xa2v1");
    }

    #[test]
    fn a_refusal_is_read_once_it_is_complete() {
        assert_eq!(refusal(b"\x82\xa3Seq\x01\xa5Error\xa0"), Some(String::new()));
        assert_eq!(refusal(b"\x82\xa5Error\xa2no\xa3Seq\x01"), Some("no".to_owned()));
        assert_eq!(refusal(b"\x82\xa5Error\xa2n"), None);
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = installed("no-such-program").expect_err("missing").to_string();
        assert!(error.contains("Debian package `serf`"), "{error}");
    }
}
