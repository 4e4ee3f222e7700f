//! What UDP flows carry: DNS, syslog, datagrams of any size, and who answers.
//!
//! Owns: two daemons that serve and one that calls, the programs, what a client must see. Must not know: how datagrams
//! travel. Driven by: `evidence`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use rand::RngExt as _;

use super::{Ci, Needs, Row, Run};
use crate::dnsq::{RecordType, Resolver};
use crate::process::{Lab, Node};
use crate::promise;
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[Row {
    name: "6.3-udp",
    promise: "DNS questions each from a new port, syslog messages and datagrams of up to 65,507 bytes pass two daemons and are answered from the virtual address; a client stays with one instance, and when that one's daemon is killed the other instance answers within 10 s",
    sabotage: "the serving daemons are stopped once their names are found",
    needs: Needs::Nothing,
    ci: Ci::Runs,
    check: udp,
}];

const TRAVEL: Duration = Duration::from_secs(20);
/// How long a client waits before it asks again, and how often it asks.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: u32 = 10;
const DNS: u16 = 15_353;
const SYSLOG: u16 = 15_514;
const ECHO: u16 = 17_007;
/// Clients at once, each of which must stay where it is.
const CLIENTS: usize = 20;
/// The longest datagram of IPv4.
const LONGEST: usize = 65_507;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a port that neither UDP nor TCP used a moment ago: a DNS server takes both.
fn free_of_both() -> Result<u16> {
    loop {
        let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
}

/// A DNS server of others.
fn dnsmasq(port: u16) -> Result<Running> {
    let child = Command::new("dnsmasq")
        .args(["--keep-in-foreground", "--bind-interfaces", "--listen-address=127.0.0.1", "--no-resolv"])
        .args(["--no-hosts", "--conf-file=/dev/null", "--pid-file", "--address=/answer.example/192.0.2.7"])
        .arg(format!("--port={port}"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting dnsmasq; install dnsmasq-base")?;
    let running = Running(child);
    let server = Resolver::new((Ipv4Addr::LOCALHOST, port).into())?;
    until("dnsmasq", TRAVEL, || Ok(server.ask("answer.example", RecordType::A).is_ok()))?;
    Ok(running)
}

/// Answers each datagram with itself behind one letter, when it has room for it.
fn echo(socket: &UdpSocket, letter: u8, stop: &AtomicBool) {
    let mut bytes = vec![0; 1 << 16];
    bytes[0] = letter;
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut bytes[1..]) else { continue };
        let _ = socket.send_to(&bytes[..(len + 1).min(LONGEST)], from);
    }
}

fn bound() -> Result<(UdpSocket, u16)> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

/// A client that takes answers of the virtual address only.
fn client(vip: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(vip)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Asks until there is an answer; returns who gave it and how often was asked.
fn ask(client: &UdpSocket, payload: &[u8]) -> Result<(u8, u32)> {
    let mut bytes = vec![0; 1 << 16];
    for tries in 1..=TRIES {
        client.send(payload)?;
        if let Ok(len) = client.recv(&mut bytes) {
            let wanted = payload.len().min(LONGEST - 1);
            promise!(
                bytes[1..len] == payload[..wanted],
                "{len} bytes came back for {}, or others",
                payload.len()
            );
            return Ok((bytes[0], tries));
        }
    }
    promise!(false, "{} bytes were answered none of {TRIES} times", payload.len());
    Ok((0, TRIES))
}

fn udp(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let ((first_socket, first_port), (second_socket, second_port)) = (bound()?, bound()?);
        let (syslog, syslog_port) = bound()?;
        let dns_port = free_of_both()?;
        let _dnsmasq = dnsmasq(dns_port)?;
        let mut first = lab.node("first")?;
        first.init("west")?;
        let [mut second, mut caller] = [lab.node("second")?, lab.node("caller")?];
        for node in [&mut second, &mut caller] {
            node.join(&first.token(&[])?)?;
        }
        for (node, name, target) in [
            (&first, format!("dns:{DNS}/udp"), dns_port),
            (&first, format!("log:{SYSLOG}/udp"), syslog_port),
            (&first, format!("echo:{ECHO}/udp"), first_port),
            (&second, format!("echo:{ECHO}/udp"), second_port),
        ] {
            node.ok(&["expose", &name, &format!("127.0.0.1:{target}")])?;
        }
        until("both instances of echo", TRAVEL, || {
            Ok(caller.json(&["services", "echo"])?.to_string().matches("\"usable\"").count() == 2)
        })?;
        let vip = |name: &str, port: u16| -> Result<SocketAddr> {
            Ok((caller.resolver()?.address(&format!("{name}.mesh.internal"), TRAVEL)?, port).into())
        };
        let (dns, log, echoes) = (vip("dns", DNS)?, vip("log", SYSLOG)?, vip("echo", ECHO)?);
        if run.sabotaged {
            first.signal(Signal::SIGSTOP)?;
            second.signal(Signal::SIGSTOP)?;
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| echo(&first_socket, b'1', &stop));
            scope.spawn(|| echo(&second_socket, b'2', &stop));
            let asked = run.times(500, 200);
            questions(dns, asked)?;
            let messages = messages(lab, log, &syslog)?;
            let sizes = sizes(echoes)?;
            let took = stays(&mut first, echoes)?;
            if run.sabotaged {
                second.signal(Signal::SIGCONT)?;
            }
            let carried = carried(&caller)?;
            Ok(format!(
                "{asked} DNS questions answered, each from a new port; {messages} syslog messages; {sizes} sizes to {LONGEST} bytes; {CLIENTS} clients stayed, the other instance answered {:.1} s after the kill; {carried}",
                took.as_secs_f64()
            ))
        })
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks from a new port each time.
fn questions(dns: SocketAddr, count: u32) -> Result<()> {
    for _ in 0..count {
        let found = Resolver::new(dns)?.ask("answer.example", RecordType::A);
        let found = found.map(|answer| answer.addresses()).map_err(|error| error.to_string());
        promise!(
            found.as_ref().is_ok_and(|found| *found == [Ipv4Addr::new(192, 0, 2, 7)]),
            "the DNS server behind the flow answers {found:?}"
        );
    }
    Ok(())
}

/// Lets `logger` send messages; returns how many arrived.
fn messages(lab: &Lab, log: SocketAddr, sink: &UdpSocket) -> Result<usize> {
    let (ip, port) = (log.ip().to_string(), log.port().to_string());
    let (mut seen, mut bytes) = (BTreeSet::new(), vec![0; 1 << 16]);
    for number in 0..10 {
        let mut logger = Command::new("logger");
        let word = format!("message-{number}-{}", "x".repeat(number * 100));
        logger.args(["--udp", "--server", &ip, "--port", &port, "--size", "4096", "--rfc5424", &word]);
        ensure!(lab.finish(logger, TRAVEL)?.code == Some(0), "logger failed; install bsdutils");
        let deadline = Instant::now() + TRAVEL;
        while !seen.contains(&number) && Instant::now() < deadline {
            let Ok(len) = sink.recv(&mut bytes) else { continue };
            promise!(String::from_utf8_lossy(&bytes[..len]).contains(&word), "another message than was sent");
            seen.insert(number);
        }
        promise!(seen.contains(&number), "message {number} did not arrive");
    }
    Ok(seen.len())
}

/// Sends datagrams of many sizes; returns how many.
fn sizes(echoes: SocketAddr) -> Result<usize> {
    let client = client(echoes)?;
    let sizes =
        [0, 1, 512, 1_100, 1_163, 1_200, 1_453, 1_500, 4_096, 9_000, 32_768, 60_000, LONGEST - 1, LONGEST];
    for size in sizes {
        let mut payload = vec![0; size];
        rand::rng().fill(&mut payload[..]);
        ask(&client, &payload).with_context(|| format!("{size} bytes"))?;
    }
    Ok(sizes.len())
}

/// Looks that each of many clients stays with one instance; kills one instance's daemon; returns how long its clients
/// waited for the other one.
fn stays(first: &mut Node, echoes: SocketAddr) -> Result<Duration> {
    let clients = (0..CLIENTS).map(|_| client(echoes)).collect::<Result<Vec<_>>>()?;
    let mut homes = Vec::new();
    for client in &clients {
        homes.push(ask(client, b"home")?.0);
    }
    for (client, home) in clients.iter().zip(&homes) {
        for _ in 0..10 {
            let (letter, _) = ask(client, b"again")?;
            promise!(letter == *home, "a client moved without a reason");
        }
    }
    promise!(homes.contains(&b'1') && homes.contains(&b'2'), "all {CLIENTS} clients have one instance");
    first.kill9()?;
    let killed = Instant::now();
    for (client, _) in clients.iter().zip(&homes).filter(|(_, home)| **home == b'1') {
        let (letter, _) = ask(client, b"still there")?;
        promise!(letter == b'2', "instance {} answers", char::from(letter));
    }
    let took = killed.elapsed();
    promise!(took <= Duration::from_secs(10), "the other instance answered after {took:?}");
    for (client, _) in clients.iter().zip(&homes).filter(|(_, home)| **home == b'2') {
        promise!(ask(client, b"not moved")?.0 == b'2', "a client of the living instance moved");
    }
    Ok(took)
}

/// Says what the caller counted.
fn carried(caller: &Node) -> Result<String> {
    let counters = caller.status()?["counters"].clone();
    let read = |name: &str| counters[name].as_u64().with_context(|| format!("no counter {name}"));
    let there = read("gossamer_flow_datagrams_total{direction=\"in\"}")?;
    let back = read("gossamer_flow_datagrams_total{direction=\"out\"}")?;
    promise!(there > 0 && back > 0, "{there} datagrams there and {back} back were counted");
    Ok(format!("{there} datagrams there, {back} back"))
}
