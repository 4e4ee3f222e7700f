//! Programs of Debian that listen on all addresses: PostgreSQL, sshd, nginx. Each says which machine it is of.
//!
//! Owns: their settings and files, in the scratch directory. Must not know: daemons, names. Driven by: `evidence::hosts`.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Namespace;
use crate::process::Lab;
use crate::wait::wait_for;

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// PostgreSQL with `listen_addresses = '*'`; its `cluster_name` is the machine.
    Postgres,
    /// sshd on `*:22`; its banner ends with the machine.
    Sshd,
    /// nginx on `*:80`; its page is the machine.
    Nginx,
}

/// A server that runs. Stopped when dropped.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    child: Child,
}

/// Files that servers are started with, made once.
#[derive(Debug)]
pub struct Files {
    lab: Lab,
    /// Where PostgreSQL's programs are.
    postgres: PathBuf,
}

/// How long a server may take to listen, or a client until it has an answer.
const START: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(5);

/// How long after one family a server may take to listen over the other.
const SECOND_FAMILY: Duration = Duration::from_secs(1);

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Postgres, Self::Sshd, Self::Nginx];

    /// Returns the name of the service.
    pub const fn service(self) -> &'static str {
        match self {
            Self::Postgres => "db",
            Self::Sshd => "shell",
            Self::Nginx => "web",
        }
    }

    /// Returns the name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Sshd => "sshd",
            Self::Nginx => "nginx",
        }
    }

    /// Returns the port.
    pub const fn port(self) -> u16 {
        match self {
            Self::Postgres => 5_432,
            Self::Sshd => 22,
            Self::Nginx => 80,
        }
    }

    /// Connects to an address from inside a namespace and returns the machine that answers; `None` when nobody does.
    ///
    /// # Errors
    /// Somebody answers who is no such server.
    pub fn who(self, namespace: &Namespace, ip: IpAddr) -> Result<Option<String>> {
        if self == Self::Postgres {
            let mut psql = namespace.command("psql");
            psql.args([
                "-h",
                &ip.to_string(),
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-Atc",
                "show cluster_name",
            ]);
            psql.env("PGCONNECT_TIMEOUT", "3").stdin(Stdio::null());
            let said = psql.output().context("psql, of the Debian package postgresql")?;
            return Ok(said
                .status
                .success()
                .then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned()));
        }
        let at = SocketAddr::new(ip, self.port());
        let said = namespace.enter(|| said(at, self))?;
        let Some(said) = said.filter(|said| !said.is_empty()) else { return Ok(None) };
        let machine = match self {
            Self::Nginx => said.strip_prefix("HTTP/1.1 200").and_then(|rest| rest.lines().last()),
            _ => said.strip_prefix("SSH-2.0-").and_then(|rest| rest.trim().rsplit(' ').next()),
        };
        Ok(Some(machine.with_context(|| format!("{at} says {said:?}"))?.to_owned()))
    }

    /// Returns whether somebody listens on this port of all IPv4 addresses of a namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn is_served(self, namespace: &Namespace) -> Result<bool> {
        let sockets = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/tcp"))??;
        let local = format!("00000000:{:04X}", self.port());
        Ok(sockets.lines().any(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            words.next() == Some(local.as_str()) && words.nth(1) == Some("0A")
        }))
    }
}

fn said(at: SocketAddr, kind: Kind) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, ANSWER).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    let mut said = String::new();
    if kind == Kind::Nginx {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        stream.read_to_string(&mut said).ok()?;
    } else {
        BufReader::new(stream).read_line(&mut said).ok()?;
    }
    Some(said)
}

impl Files {
    /// Makes the files: a cluster of PostgreSQL and a key of a host for sshd.
    ///
    /// # Errors
    /// A package is missing.
    pub fn new(lab: &Lab) -> Result<Self> {
        let versions = fs::read_dir("/usr/lib/postgresql").context("the Debian package postgresql")?;
        let newest = versions.flatten().map(|entry| entry.path().join("bin")).max();
        let files = Self { lab: lab.clone(), postgres: newest.context("no version of postgresql")? };
        ensure!(Path::new("/usr/sbin/sshd").exists(), "the Debian package openssh-server is not installed");
        let key = lab.dir().join("host-key");
        files.done(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
        let folder = lab.dir().join("postgres");
        fs::create_dir(&folder)?;
        files.done(Command::new("chown").args(["postgres:"]).arg(&folder))?;
        let data = files.data("template");
        let mut initdb = files.as_postgres("initdb", Command::new("setpriv"));
        files.done(initdb.args(["--no-sync", "-A", "trust", "-E", "UTF8", "--locale=C", "-D"]).arg(data))?;
        Ok(files)
    }

    /// Starts a server on all addresses of a machine. Whether it listens then is another matter: see
    /// [`Server::settles`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, kind: Kind, namespace: &Namespace, machine: &str) -> Result<Server> {
        let mut command = match kind {
            Kind::Postgres => self.postgres(namespace, machine)?,
            Kind::Sshd => self.sshd(namespace, machine)?,
            Kind::Nginx => self.nginx(namespace, machine)?,
        };
        let log = self.lab.dir().join(format!("{}-{machine}.log", kind.service()));
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", kind.program()))?;
        Ok(Server { kind, child })
    }

    fn postgres(&self, namespace: &Namespace, machine: &str) -> Result<Command> {
        let data = self.data(machine);
        if !data.exists() {
            self.done(Command::new("cp").arg("-a").args([&self.data("template"), &data]))?;
            let mut conf = fs::OpenOptions::new().append(true).open(data.join("postgresql.conf"))?;
            let folder = self.lab.dir().join("postgres");
            write!(
                conf,
                "listen_addresses = '*'\ncluster_name = '{machine}'\nfsync = off\nunix_socket_directories = '{}'\n",
                data.display()
            )?;
            ensure!(folder.exists(), "no folder of postgres");
            // Connections come from loopback, the pool, or the other machine.
            let mut hba = fs::OpenOptions::new().append(true).open(data.join("pg_hba.conf"))?;
            hba.write_all(b"host all all all trust\n")?;
        }
        let mut command = self.as_postgres("postgres", namespace.command("setpriv"));
        command.arg("-D").arg(data);
        Ok(command)
    }

    fn sshd(&self, namespace: &Namespace, machine: &str) -> Result<Command> {
        let file = self.lab.dir().join(format!("sshd-{machine}.conf"));
        let text = format!(
            "ListenAddress 0.0.0.0:22\nListenAddress [::]:22\nHostKey {}\nPidFile none\nUsePAM no\nVersionAddendum {machine}\n",
            self.lab.dir().join("host-key").display()
        );
        fs::write(&file, text)?;
        // Its folder for separated privileges lies in /run: `ip netns exec` has mounts of its own.
        let mut command = namespace.command("sh");
        let line = format!(
            "mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f {}",
            file.display()
        );
        command.args(["-c", &line]);
        Ok(command)
    }

    fn nginx(&self, namespace: &Namespace, machine: &str) -> Result<Command> {
        let folder = self.lab.dir().join(format!("nginx-{machine}"));
        fs::create_dir_all(&folder)?;
        let (at, file) = (folder.display(), folder.join("nginx.conf"));
        let text = format!(
            "daemon off; master_process off; user root; pid {at}/pid; error_log stderr; events {{}}\n\
             http {{ access_log off; client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at};\n\
             uwsgi_temp_path {at}; scgi_temp_path {at};\n\
             server {{ listen 80; listen [::]:80; location / {{ return 200 \"{machine}\"; }} }} }}\n"
        );
        fs::write(&file, text)?;
        let mut command = namespace.command("/usr/sbin/nginx");
        command.args(["-c", &file.to_string_lossy(), "-p", &folder.to_string_lossy()]);
        Ok(command)
    }

    fn data(&self, machine: &str) -> PathBuf {
        self.lab.dir().join("postgres").join(machine)
    }

    fn as_postgres(&self, program: &str, mut command: Command) -> Command {
        if !command.get_args().any(|word| word == "setpriv") && command.get_program() != "setpriv" {
            command.arg("setpriv");
        }
        command
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
            .arg(self.postgres.join(program));
        command
    }

    fn done(&self, command: &mut Command) -> Result<()> {
        let said = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
        ensure!(said.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said.stderr).trim());
        Ok(())
    }
}

impl Server {
    /// Waits until it listens on all IPv4 addresses, or has ended, or has given that up; returns whether it listens.
    ///
    /// # Errors
    /// Neither within 20 s.
    pub fn settles(&mut self, namespace: &Namespace) -> Result<bool> {
        let what = format!("{} listening or giving up", self.kind.program());
        let mut over_v6_since = None;
        let (listens, _) = wait_for(&what, START, || {
            if self.kind.is_served(namespace)? {
                return Ok(Some(true));
            }
            // PostgreSQL and sshd go on with IPv6 alone.
            let has_v6 = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/tcp6"))??;
            let local = format!(":{:04X} ", self.kind.port());
            let over_v6 = has_v6.lines().any(|line| line.contains(&local) && line.contains(" 0A "));
            let since = over_v6.then(|| *over_v6_since.get_or_insert_with(Instant::now));
            let gave_up = since.is_some_and(|since| since.elapsed() > SECOND_FAMILY);
            Ok((gave_up || self.child.try_wait()?.is_some()).then_some(false))
        })?;
        Ok(listens)
    }

    /// Ends it and waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // SIGINT is a fast shutdown of PostgreSQL; the others end by either.
        kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            if self.kind == Kind::Postgres { Signal::SIGINT } else { Signal::SIGTERM },
        )?;
        if wait_for("the end of a server", START, || Ok(self.child.try_wait()?)).is_err() {
            self.child.kill()?;
            self.child.wait()?;
            bail!("{} did not end", self.kind.program());
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Returns whether anybody answers a connection to an address within half a second.
pub fn is_reached(namespace: &Namespace, at: SocketAddr) -> Result<bool> {
    namespace.enter(|| TcpStream::connect_timeout(&at, Duration::from_millis(500)).is_ok())
}
