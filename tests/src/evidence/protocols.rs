//! Programs of other people behind a flow: protocols in which the server speaks first, and receivers of PROXY headers.
//!
//! Owns: how each program is started and asked. Must not know: how flows travel. Driven by: `evidence`.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::carried::{PORT, Pair, connect, kept};
use super::{Ci, Needs, Row, Run};
use crate::process::Lab;
use crate::promise;
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "6.3-server-first",
        promise: "Protocols in which the server speaks first work with their own clients through two daemons: PostgreSQL, MariaDB, SMTP, SSH, and the INFO line of NATS",
        sabotage: "a PROXY header that none of them expects goes before the client's bytes",
        // MariaDB and PostgreSQL run as users of their own.
        needs: Needs::Root,
        ci: Ci::Runs,
        check: server_first,
    },
    Row {
        name: "6.3-proxy",
        promise: "haproxy with accept-proxy, on a TCP port and on a socket of the file system, takes the caller's address, the called service and the flow's id from the header of expose --proxy-protocol",
        sabotage: "the services are exposed without --proxy-protocol",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: proxy,
    },
];

const LIMIT: Duration = Duration::from_secs(30);

/// A program that is killed when it is dropped.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn start(mut command: Command, log: &Path) -> Result<Running> {
    let log = fs::File::create(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let shown = format!("{command:?}");
    Ok(Running(command.spawn().with_context(|| format!("starting {shown}; is its package installed?"))?))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn open_directory(path: &Path, mode: u32) -> Result<PathBuf> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(path.to_owned())
}

fn answers(port: u16) -> bool {
    std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Runs a command that must succeed.
pub(super) fn must(lab: &Lab, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/");
    let done = lab.finish(command, LIMIT)?;
    ensure!(done.code == Some(0), "{program}: {}", done.stderr.trim());
    Ok(done.stdout)
}

/// Finds a server program of Debian's that is on no path.
fn find(pattern: &str, package: &str) -> Result<PathBuf> {
    let (folder, rest) = pattern.split_once('*').context("a pattern")?;
    let all = fs::read_dir(folder).with_context(|| format!("{folder}: install {package}"))?;
    let mut found: Vec<_> =
        all.flatten().map(|entry| entry.path().join(rest.trim_start_matches('/'))).collect();
    found.retain(|path| path.exists());
    found.pop().with_context(|| format!("no {pattern}: install {package}"))
}

/// Starts a database that says this name when asked for its `cluster_name`.
pub(super) fn postgres(lab: &Lab, name: &str) -> Result<(Running, u16)> {
    let binaries = find("/usr/lib/postgresql/*/bin", "postgresql")?;
    let (port, data) = (free_port()?, lab.dir().join(format!("postgres-{name}")));
    open_directory(&data, 0o777)?;
    let data = data.join("data");
    // It does not run as root.
    let user = nix::unistd::User::from_name("postgres")?.context("no user postgres: install postgresql")?;
    let command = |program: &str| {
        let mut command = Command::new(binaries.join(program));
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir("/").arg("-D").arg(&data);
        command
    };
    let mut initdb = command("initdb");
    initdb.args(["-A", "trust", "-U", "gossamer", "-N"]);
    let made = lab.finish(initdb, LIMIT)?;
    ensure!(made.code == Some(0), "initdb: {}", made.stderr.trim());
    let mut command = command("postgres");
    let named = format!("cluster_name={name}");
    command.args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", "", "-F", "-c", &named]);
    let running = start(command, &lab.dir().join(format!("postgres-{name}.log")))?;
    until("PostgreSQL", LIMIT, || Ok(answers(port)))?;
    Ok((running, port))
}

fn mariadb(lab: &Lab) -> Result<(Running, u16)> {
    let (port, data) = (free_port()?, open_directory(&lab.dir().join("mariadb"), 0o755)?);
    let option = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    let directory = option("datadir", &data.join("data").display());
    must(
        lab,
        "mariadb-install-db",
        &["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", &directory],
    )?;
    let mut command = Command::new("mariadbd");
    command.args(["--no-defaults", "--user=root", "--bind-address=127.0.0.1", &directory]).args([
        option("port", &port),
        option("socket", &data.join("s").display()),
        option("pid-file", &data.join("pid").display()),
    ]);
    let running = start(command, &lab.dir().join("mariadb.log"))?;
    until("MariaDB", LIMIT, || Ok(answers(port)))?;
    Ok((running, port))
}

fn sshd(lab: &Lab) -> Result<(Running, u16)> {
    let (port, key) = (free_port()?, lab.dir().join("host_key"));
    must(lab, "ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key.to_string_lossy()])?;
    // The directory into which it locks itself before a login; the package makes it when the service starts.
    fs::create_dir_all("/run/sshd")?;
    let mut command = Command::new("/usr/sbin/sshd");
    command.args(["-D", "-e", "-f", "/dev/null", "-h"]).arg(&key);
    command.args(["-o", "ListenAddress=127.0.0.1", "-p", &port.to_string()]);
    let running = start(command, &lab.dir().join("sshd.log"))?;
    until("sshd", LIMIT, || Ok(answers(port)))?;
    Ok((running, port))
}

/// An SMTP server as RFC 5321 wants it, and a client: Python's.
const SMTP_SERVER: &str = r#"
import socketserver, sys
class Session(socketserver.StreamRequestHandler):
    def say(self, text): self.wfile.write((text + "\r\n").encode())
    def handle(self):
        self.say("220 there ESMTP")
        for line in self.rfile:
            word = line.split()[0].upper() if line.split() else b""
            if word in (b"EHLO", b"HELO"): self.say("250 there")
            elif word in (b"MAIL", b"RCPT"): self.say("250 ok")
            elif word == b"DATA":
                self.say("354 go on")
                size = 0
                for line in self.rfile:
                    if line == b".\r\n": break
                    size += len(line)
                self.say(f"250 got {size} bytes")
            elif word == b"QUIT": self.say("221 bye"); return
            else: self.say("500 what")
class Server(socketserver.ThreadingTCPServer): allow_reuse_address = True
Server(("127.0.0.1", int(sys.argv[1])), Session).serve_forever()
"#;
const SMTP_CLIENT: &str = r#"
import smtplib, sys
client = smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=20)
client.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\n" + "line\r\n" * 20000)
print(client.quit()[0])
"#;

fn smtp(lab: &Lab) -> Result<(Running, u16)> {
    let port = free_port()?;
    let mut command = Command::new("python3");
    command.args(["-c", SMTP_SERVER, &port.to_string()]);
    let running = start(command, &lab.dir().join("smtp.log"))?;
    until("the SMTP server", LIMIT, || Ok(answers(port)))?;
    Ok((running, port))
}

/// The first lines of a NATS session: the server's INFO, then PING and PONG each way.
fn nats() -> Result<(std::thread::JoinHandle<()>, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let serving = std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let mut lines = BufReader::new(&client);
            let mut said = String::new();
            let _ = (&client).write_all(b"INFO {\"server_id\":\"x\",\"max_payload\":1048576}\r\n");
            while lines.read_line(&mut said).is_ok_and(|len| len > 0) {
                let answer: &[u8] = match said.split_whitespace().next() {
                    Some("PING") => b"PONG\r\n",
                    Some("CONNECT") => b"+OK\r\n",
                    Some("STOP") => return,
                    _ => b"-ERR 'Unknown Protocol Operation'\r\n",
                };
                let _ = (&client).write_all(answer);
                said.clear();
            }
        }
    });
    Ok((serving, port))
}

fn server_first(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let pair = Pair::new(lab)?;
        let ((_postgres, postgres), (_mariadb, mariadb)) = (postgres(lab, "one")?, mariadb(lab)?);
        let ((_sshd, sshd), (_smtp, smtp)) = (sshd(lab)?, smtp(lab)?);
        let (_nats, nats) = nats()?;
        let offer = |name: &str, number: u16, target: u16| {
            let (name, target) = (format!("{name}:{number}"), format!("127.0.0.1:{target}"));
            let mut asked = vec![&name[..], &target];
            asked.extend(run.sabotaged.then_some("--proxy-protocol"));
            pair.offer(number, &asked)
        };
        let host = |address: SocketAddr| (address.ip().to_string(), address.port().to_string());

        let (ip, port) = host(offer("pg", 15_432, postgres)?);
        let sql = "select count(*), md5(string_agg(n::text, ',')) from generate_series(1, 100000) n";
        let asked = ["-X", "-A", "-t", "-h", &ip, "-p", &port, "-U", "gossamer", "-d", "postgres", "-c", sql];
        let rows = kept("the client", must(lab, "psql", &asked))?;
        promise!(rows.starts_with("100000|"), "psql reads {rows:?}");

        let (ip, port) = host(offer("maria", 13_306, mariadb)?);
        let asked = [
            "--no-defaults",
            "--skip-ssl",
            "--protocol=tcp",
            "-h",
            &ip,
            "-P",
            &port,
            "-u",
            "root",
            "-N",
            "-e",
            "select count(*) from seq_1_to_100000",
        ];
        // The login is what speaks first; the sequence engine is a part of the server.
        let rows = kept("the client", must(lab, "mariadb", &[&asked[..], &["mysql"]].concat()))?;
        promise!(rows.trim() == "100000", "mariadb reads {rows:?}");

        let (ip, port) = host(offer("mail", 10_025, smtp)?);
        let said = kept("the client", must(lab, "python3", &["-c", SMTP_CLIENT, &ip, &port]))?;
        promise!(said.trim() == "221", "the mail client hears {said:?}");

        let (ip, port) = host(offer("shell", 10_022, sshd)?);
        let keys = must(lab, "ssh-keyscan", &["-T", "10", "-t", "ed25519", "-p", &port, &ip])?;
        promise!(keys.contains("ssh-ed25519"), "ssh-keyscan reads {keys:?}");
        let mut ssh = connect(format!("{ip}:{port}").parse()?)?;
        let mut banner = [0; 8];
        ssh.read_exact(&mut banner)?;
        promise!(&banner == b"SSH-2.0-", "the banner is {banner:?}");

        let nats = connect(offer("bus", 14_222, nats)?)?;
        let (mut lines, mut line) = (BufReader::new(&nats), String::new());
        lines.read_line(&mut line)?;
        promise!(line.starts_with("INFO {"), "the bus begins with {line:?}");
        (&nats).write_all(b"CONNECT {}\r\nPING\r\n")?;
        line.clear();
        lines.read_line(&mut line)?;
        lines.read_line(&mut line)?;
        promise!(line == "+OK\r\nPONG\r\n", "the bus answers {line:?}");
        (&nats).write_all(b"STOP\r\n")?;
        Ok("psql, mariadb, Python's smtplib, ssh-keyscan and a NATS client, each over 2 daemons".to_owned())
    })
}

fn proxy(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let pair = Pair::new(lab)?;
        let (port, socket) = (free_port()?, lab.dir().join("app.sock"));
        let config = lab.dir().join("haproxy.cfg");
        let binds = [format!("127.0.0.1:{port}"), format!("unix@{} mode 666", socket.display())];
        let answer = r#"http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[fc_pp_authority] %[fc_pp_unique_id]""#;
        let [tcp, unix] = binds.map(|bind| format!("    bind {bind} accept-proxy\n"));
        fs::write(
            &config,
            format!("defaults\n    mode http\n    timeout connect 5s\n    timeout client 5s\n    timeout server 5s\nfrontend in\n{tcp}{unix}    {answer}\n"),
        )?;
        let mut haproxy = Command::new("haproxy");
        haproxy.arg("-db").arg("-f").arg(&config);
        let _haproxy = start(haproxy, &lab.dir().join("haproxy.log"))?;
        until("haproxy", LIMIT, || Ok(answers(port) && socket.exists()))?;
        let own = pair.caller.mesh_address()?;
        let mut flows = Vec::new();
        for (name, number, target) in
            [("web", PORT, format!("127.0.0.1:{port}")), ("app", PORT + 1, format!("unix:{}", socket.display()))]
        {
            let named = format!("{name}:{number}");
            let mut asked = vec![&named[..], &target];
            asked.extend((!run.sabotaged).then_some("--proxy-protocol"));
            let mut client = connect(pair.offer(number, &asked)?)?;
            client.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
            let mut page = String::new();
            kept("haproxy", client.read_to_string(&mut page).map_err(Into::into))?;
            let told = page.lines().last().unwrap_or_default().to_owned();
            let words: Vec<_> = told.split(' ').collect();
            let caller = [own.ip().to_string(), own.port().to_string(), name.to_owned()];
            promise!(words.len() == 4 && words[..3] == caller, "haproxy says {told:?}, the caller is {caller:?}");
            flows.push(words[3].to_owned());
        }
        for flow in &flows {
            let what = format!("flow {flow} in the access lines of both nodes");
            until(&what, LIMIT, || {
                Ok([&pair.server, &pair.caller].iter().all(|node| node.log().contains(flow.as_str())))
            })?;
        }
        Ok(format!("haproxy names {own} over TCP and over a socket, and the flows of the access lines, {}", flows.join(" ")))
    })
}
