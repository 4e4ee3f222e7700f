//! Flows that cannot be: each client is told at once, and each cause is named where an operator looks.
//!
//! Owns: the causes, made by hand. Must not know: how daemons notice them. Driven by: `evidence`. Needs root: an address
//! of a machine of its own, and the limit on another process's files.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::lines::{access_lines, line, log_json};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{Credentials, open_raw};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[Row {
    name: "6.9-bad-input",
    promise: "Target down, target refuses, denied, no instance, all ejected, a pool with an address of the machine, no more files at the caller and at the exporter, and hostile open frames: each client is reset within 2 s, or the command refused, and the access line and gossamer trace name the cause",
    sabotage: "the limits on files are left as they were",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: bad_input,
}];

const TRAVEL: Duration = Duration::from_secs(20);
/// What a flow is tried for whose instances have all answered, and what a busy machine adds.
const TRIED: Duration = Duration::from_secs(2);
/// Below what the exporter's check needs to notice.
const EJECTED: Duration = Duration::from_secs(4);
const AT_ONCE: Duration = Duration::from_secs(1);
/// No file of an idle daemon has such a number.
const INHERITED: u64 = 200;
/// Files a daemon may open again afterwards.
const FILES: u64 = 1_024;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

struct Mesh<'a> {
    run: &'a Run,
    lab: &'a Lab,
    machines: [&'a Namespace; 2],
    near: Node,
    far: Node,
    rows: Vec<String>,
}

fn bad_input(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [a, b] = segment.machines() else { unreachable!("two machines were made") };
    run.scenario(|lab| {
        overlap(lab, a)?;
        let (mut near, mut far) = (lab.node_in("near", a)?, lab.node_in("far", b)?);
        for (node, machine) in [(&near, a), (&far, b)] {
            log_json(node, "info")?;
            machine.resolv_conf("nameserver 127.240.0.53\noptions timeout:1 attempts:1\n")?;
        }
        far.init("west")?;
        near.join(&far.token(&[])?)?;
        let mut mesh = Mesh { run, lab, machines: [a, b], near, far, rows: vec!["pool refused".to_owned()] };
        mesh.play()?;
        Ok(mesh.rows.join("; "))
    })
}

/// A daemon whose virtual addresses would include this machine's own does not start.
fn overlap(lab: &Lab, machine: &Namespace) -> Result<()> {
    let node = lab.node_in("overlapping", machine)?;
    fs::write(node.config_file(), "[vip]\npool = \"10.64.0.0/12\"\n")?;
    let said = node.cli(&["init", "--node", "overlapping"])?;
    let named =
        ["eth0 of this machine has 10.77.0.10", "set vip.pool"].iter().all(|word| said.stderr.contains(word));
    promise!(
        said.code == Some(1) && named,
        "a pool with an own address ends with {:?}: {}",
        said.code,
        said.stderr
    );
    Ok(())
}

fn listen(machine: &Namespace, port: u16) -> Result<TcpListener> {
    Ok(machine.enter(|| TcpListener::bind((LOOPBACK, port)))??)
}

impl Mesh<'_> {
    fn offer(&self, service: &str, port: u16, state: &str) -> Result<SocketAddr> {
        self.far.ok(&["expose", &format!("{service}:{port}")])?;
        let vip = self.near.resolver()?.address(&format!("{service}.mesh.internal"), TRAVEL)?;
        let state = format!("\"state\": \"{state}\"");
        until(&format!("{service} {state}"), TRAVEL, || {
            Ok(self.near.ok(&["services", service, "--json"])?.contains(&state))
        })?;
        Ok((vip, port).into())
    }

    /// Connects as a client of the caller's machine; it must be reset within `limit`.
    fn reset(&self, what: &str, address: SocketAddr, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        let ended = self.machines[0].enter(|| -> std::io::Result<usize> {
            let mut client = TcpStream::connect_timeout(&address, TRAVEL)?;
            client.set_read_timeout(Some(TRAVEL))?;
            client.read(&mut [0])
        })?;
        let took = began.elapsed();
        let kind = ended.as_ref().map_err(std::io::Error::kind);
        promise!(kind == Err(ErrorKind::ConnectionReset), "{what}: the client sees {ended:?}");
        promise!(took <= limit, "{what}: the client was reset after {took:?}");
        Ok(took)
    }

    /// Looks at the newest line of a service and at the last line of trace.
    fn named(&mut self, service: &str, reason: &str, words: &[&str], took: Duration) -> Result<()> {
        line(&self.near, service, |line| line["service"] == service && line["reason"] == reason)?;
        let said = self.near.cli(&["trace", service])?;
        let last = said.stdout.lines().last().unwrap_or_default();
        let is_named = last.starts_with("broken here: ") && words.iter().all(|word| last.contains(word));
        promise!(
            is_named && said.code != Some(0),
            "trace of {service} ends with {:?}: {last}{}",
            said.code,
            said.stderr
        );
        self.rows.push(format!("{reason} after {:.1} s", took.as_secs_f64()));
        Ok(())
    }

    fn play(&mut self) -> Result<()> {
        let down = self.offer("down", 8_081, "failing")?;
        let took = self.reset("target down", down, TRIED)?;
        self.named(
            "down",
            "no-instance",
            &["nobody listens on the target", "start the program on far"],
            took,
        )?;
        self.refused()?;
        self.denied()?;
        self.hostile()?;
        self.files()?;
        self.far.kill9()?;
        self.near.sees("far", "down", TRAVEL)?;
        let took = self.reset("no instance", down, TRIED)?;
        self.named("down", "no-instance", &["no instance: the node of far on far is down"], took)
    }

    fn refused(&mut self) -> Result<()> {
        let program = listen(self.machines[1], 8_082)?;
        let refuses = self.offer("refuses", 8_082, "usable")?;
        drop(program);
        let said = self.near.cli(&["trace", "refuses"])?;
        let last = said.stdout.lines().last().unwrap_or_default().to_owned();
        promise!(said.code == Some(1) && last.contains("refused the connection"), "trace says {last}");
        let took = self.ejected(refuses)?;
        line(&self.far, "refuses", |line| line["service"] == "refuses" && line["reason"] == "refused")?;
        line(&self.near, "refuses", |line| line["service"] == "refuses" && line["reason"] == "refused")?;
        self.rows.push(format!("ejected, refused after {:.1} s", took.as_secs_f64()));
        Ok(())
    }

    /// Looks at trace while a client tries a program that is gone: this node ejects the instance after three refusals,
    /// its exporter's check needs 5 s at least.
    fn ejected(&self, address: SocketAddr) -> Result<Duration> {
        std::thread::scope(|scope| {
            let client = scope.spawn(|| self.reset("target refuses, all ejected", address, TRIED));
            let ejected = until("trace --no-dial saying that all are ejected", EJECTED, || {
                let said = self.near.cli(&["trace", "refuses", "--no-dial"])?;
                let last = said.stdout.lines().last().unwrap_or_default();
                Ok(said.code == Some(1) && last.contains("all of them are ejected"))
            });
            let took = client.join().map_err(|_| anyhow!("the client panicked"))?;
            ejected?;
            took
        })
    }

    /// A service is withdrawn while clients come one after the other. One of them is asked for while its caller has not
    /// heard of it yet: the exporter denies it, and answers as for what was never there.
    fn denied(&mut self) -> Result<()> {
        let program = listen(self.machines[1], 8_083)?;
        program.set_nonblocking(true)?;
        let address = self.offer("leaves", 8_083, "usable")?;
        let stop = AtomicBool::new(false);
        let longest = std::thread::scope(|scope| {
            let greeting = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match program.accept() {
                        Ok(_) => {}
                        Err(_) => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            });
            let calling = scope.spawn(|| self.call_until(address, &stop));
            let denied = until("a client that is denied", TRAVEL, || {
                self.far.ok(&["withdraw", "leaves"])?;
                let is_denied = access_lines(&self.near)
                    .iter()
                    .any(|line| line["service"] == "leaves" && line["reason"] == "denied");
                if !is_denied {
                    self.offer("leaves", 8_083, "usable")?;
                }
                Ok(is_denied)
            });
            stop.store(true, Ordering::Relaxed);
            greeting.join().map_err(|_| anyhow!("the program panicked"))?;
            let longest = calling.join().map_err(|_| anyhow!("the clients panicked"))?;
            denied.and(longest)
        })?;
        promise!(longest <= AT_ONCE, "a client that was denied was reset after {longest:?}");
        line(&self.far, "leaves", |line| line["service"] == "leaves" && line["reason"] == "denied")?;
        self.rows.push(format!("denied after {:.2} s", longest.as_secs_f64()));
        Ok(())
    }

    /// Connects one client after the other; returns the longest time until one was reset.
    fn call_until(&self, address: SocketAddr, stop: &AtomicBool) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        self.machines[0].enter(|| -> Result<Duration> {
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                // The name is gone, and with it who listened for it.
                let Ok(mut client) = TcpStream::connect_timeout(&address, TRAVEL) else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                client.set_read_timeout(Some(TRAVEL))?;
                if client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset) {
                    longest = longest.max(began.elapsed());
                }
            }
            Ok(longest)
        })?
    }

    fn hostile(&mut self) -> Result<()> {
        let stranger = self.lab.node_in("stranger", self.machines[1])?;
        let stranger = stranger.with("GOSSAMER_VIP_POOL", "127.200.0.0/16");
        let token = self.far.token(&["--group", "east"])?;
        stranger.ok(&["join", &token, "--node", "stranger", "--no-start"])?;
        let member = Credentials::of_member(&stranger.state_dir())?;
        let server = SocketAddr::from((LOOPBACK, 4_677));
        for bytes in [&[0xff, 0xff][..], &[0, 3, 1, 2, 3], &[0, 0]] {
            let answer = self.machines[1].enter(|| open_raw(server, &member, bytes))??;
            promise!(answer.is_none(), "{bytes:?} is answered {answer:?}");
        }
        line(&self.far, "hostile frames", |line| {
            line["reason"] == "malformed" && line["peer"] == "stranger"
        })?;
        let _program = listen(self.machines[1], 8_087)?;
        self.offer("attacked", 8_087, "usable")?;
        let said = self.far.cli(&["trace", "attacked"])?;
        promise!(
            said.stdout.contains("were no open requests"),
            "trace at the attacked node says {}",
            said.stdout
        );
        self.rows.push("hostile frames reset".to_owned());
        Ok(())
    }

    /// Lets a daemon open so many files.
    fn limit(&self, node: &Node, files: u64) -> Result<()> {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &node.pid()?.to_string(), &format!("--nofile={files}:")]);
        ensure!(self.lab.finish(prlimit, TRAVEL)?.code == Some(0), "prlimit failed");
        Ok(())
    }

    /// Leaves a daemon no file to open: its limit is above its highest one, and connections to its local API take what is
    /// free below. They end with what is returned.
    fn fill(&self, node: &Node) -> Result<Vec<UnixStream>> {
        let open = || -> Result<Vec<u64>> {
            let files = fs::read_dir(format!("/proc/{}/fd", node.pid()?))?.flatten();
            let numbers = files.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            // Higher ones are inherited from who runs this check.
            Ok(numbers.filter(|number| *number < INHERITED).collect())
        };
        let most = open()?.into_iter().max().context("files")? + 1;
        self.limit(node, most)?;
        let mut held = Vec::new();
        until("a daemon without files", TRAVEL, || {
            if open()?.len() as u64 >= most {
                return Ok(true);
            }
            held.push(UnixStream::connect(node.socket())?);
            Ok(false)
        })?;
        Ok(held)
    }

    fn files(&mut self) -> Result<()> {
        let _program = listen(self.machines[1], 8_088)?;
        let busy = self.offer("busy", 8_088, "usable")?;
        // At the exporter: the caller is told so.
        let held = if self.run.sabotaged { Vec::new() } else { self.fill(&self.far)? };
        let took = self.reset("no files at the exporter", busy, TRIED)?;
        self.named("busy", "busy", &["can open no more files", "raise LimitNOFILE"], took)?;
        drop(held);
        self.limit(&self.far, FILES)?;
        line(&self.far, "no files", |line| line["service"] == "busy" && line["reason"] == "no-files")?;
        // At the caller: the client is reset by the daemon's last file.
        until("the exporter taking flows again", TRAVEL, || {
            Ok(self.near.cli(&["trace", "busy"])?.code == Some(0))
        })?;
        let held = self.fill(&self.near)?;
        let took = self.reset("no files at the caller", busy, AT_ONCE)?;
        drop(held);
        self.limit(&self.near, FILES)?;
        line(&self.near, "no files", |line| line["service"] == "busy" && line["reason"] == "no-files")?;
        self.rows.push(format!("no-files after {:.2} s", took.as_secs_f64()));
        Ok(())
    }
}
