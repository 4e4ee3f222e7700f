//! What the DNS server of a daemon answers, to questions of a table and to a hundred thousand broken ones.
//!
//! Owns: the mesh the table describes, and the mutations. Must not know: why an answer is as it is.
//! Driven by: `evidence`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hickory_proto::op::Message;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{Ci, Needs, Row, Run};
use crate::dnsq::{RecordType, question};
use crate::netns::Segment;
use crate::process::{Lab, Node};
use crate::promise;
use crate::targets::{Manner, Target, serve_all};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "5.1-table",
        promise: "Each row of tests/dns/table.txt, 80 at least, has its rcode, flags, OPT and counts as dnspython reads the reply of a real daemon, and where dig, kdig and drill can ask it they read the same",
        sabotage: "one of two instances is withdrawn",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: table,
    },
    Row {
        name: "5.7-mutations",
        promise: "100,000 seeded mutations of questions over UDP and 5,000 over TCP leave a daemon alive with flat memory: it answers well-formed messages only, and a good question after each hundred",
        sabotage: "the daemon is killed half-way",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: mutations,
    },
];

/// Where the program of every service listens.
const PORT: u16 = 7_000;
/// Instances of the service whose answers do not fit a datagram.
const MANY: std::ops::Range<u8> = 10..70;
/// What the node that is asked answers for beside its zone.
const SETTINGS: &str = r#"[dns]
zones = ["mesh.example"]
fqdn_suffixes = ["corp.test"]
clusterset = true

[alias]
"pg.corp.example" = "orders"
"shop.corp.example" = "shop.east"
"one.corp.test" = "db-a.orders.west"
"#;
/// How long the mesh may take until all is usable.
const READY: Duration = Duration::from_secs(20);
/// How long all readers of the table may take.
const READERS: Duration = Duration::from_secs(120);

fn table(run: &Run) -> Result<String> {
    with_mesh(run, |lab, node, segment| {
        if run.sabotaged {
            node.ok(&["withdraw", "orders", "--instance", "db-b"])?;
        }
        let mut command = segment.machines()[0].command("/usr/bin/python3");
        command.arg(run.root.join("tests/dns/table.py")).arg(node.dns_address()?.to_string());
        command.args(["dig", "kdig", "drill"]);
        let done = lab.finish(command, READERS)?;
        let lines: Vec<&str> = done.stdout.lines().collect();
        let summary = lines.last().copied().unwrap_or_default();
        ensure!(summary.contains(" rows, "), "table.py: {}", done.stderr.trim());
        promise!(done.code == Some(0), "{summary}: {}", lines[..lines.len().min(6)].join(" "));
        let rows: usize = summary.split(' ').next().unwrap_or_default().parse()?;
        promise!(rows >= 80, "only {rows} rows");
        Ok(summary.to_owned())
    })
}

/// Plays in the mesh of the head of `tests/dns/table.txt`, with its node db-a.
fn with_mesh(run: &Run, play: impl FnOnce(&Lab, &mut Node, &Segment) -> Result<String>) -> Result<String> {
    let segment = Segment::new(3)?;
    let [west, east, third] = segment.machines() else { unreachable!("three machines were made") };
    for (machine, address) in [(west, "fd77::10/64"), (east, "fd77::11/64"), (third, "fd77::12/64")] {
        machine.ip(&["addr", "add", address, "dev", "eth0", "nodad"])?;
    }
    let listen = || Target::at(([127, 0, 0, 1], PORT).into(), Manner::Greets("served"));
    let targets = [west.enter(listen)??, east.enter(listen)??, third.enter(listen)??];
    serve_all(&targets, || {
        run.scenario(|lab| {
            let mut node = lab.node_in("db-a", west)?;
            fs::write(node.config_file(), SETTINGS)?;
            node.init("west")?;
            let mut far = lab.node_in("far", east)?;
            far.join(&node.token(&["--group", "east"])?)?;
            let mut web = lab.node_in("web", third)?;
            web.join(&node.token(&["--allow-fqdn", "corp.test", "--allow-fqdn", "other.test"])?)?;
            expose_named(&web)?;
            expose(&node, &far)?;
            play(lab, &mut node, &segment)
        })
    })
}

/// Exports what has names outside the mesh zone.
fn expose_named(web: &Node) -> Result<()> {
    let at = format!("127.0.0.1:{PORT}");
    let fqdns = ["kuard.corp.test", "*.wild.corp.test", "a.b.corp.test", "login.other.test"];
    let options: Vec<_> = fqdns.iter().flat_map(|fqdn| ["--fqdn", fqdn]).collect();
    web.ok(&[&["expose", "kuard:8080", &at, "--meta", "version=1"], &options[..]].concat())?;
    web.ok(&["expose", "db-shop:80", &at, "--instance", "db-0"])?;
    Ok(())
}

fn expose(node: &Node, far: &Node) -> Result<()> {
    let at = format!("127.0.0.1:{PORT}");
    let pg = format!("pg:5433:{PORT}");
    let pairs = ["--meta", "version=2", "--meta", "role=primary"];
    node.ok(&[&["expose", "orders:5432", &at, "--port", &pg], &pairs[..]].concat())?;
    node.ok(&["expose", "orders:5432", &at, "--instance", "db-b", "--weight", "50"])?;
    node.ok(&["expose", "idle:80", "127.0.0.1:7999"])?;
    for number in MANY {
        node.ok(&["expose", "many:80", &at, "--instance", &format!("i-{number}")])?;
    }
    far.ok(&["expose", "shop:80", &at, "--to", "all"])?;
    far.ok(&["expose", "secret:80", &at])?;
    for (name, count) in [
        ("_5432._tcp.orders", 2),
        ("_80._tcp.many", MANY.len()),
        ("_80._tcp.shop.east", 1),
        ("_80._tcp.db-shop", 1),
        ("_8080._tcp.kuard.corp.test", 1),
    ] {
        until(&format!("{count} records of {name}"), READY, || {
            // A name that does not exist yet makes the command fail.
            let said = node.cli(&["resolve", name, "--json"])?.stdout;
            Ok(said.matches("\"SRV\"").count() == count)
        })?;
    }
    Ok(())
}

const BATCHES: usize = 1_000;
/// Datagrams between two good questions.
const BATCH: usize = 100;
/// Memory that caches, sockets and the allocator may take beside what they had after the first tenth.
const GROWTH_KIB: u64 = 8 * 1024;

fn mutations(run: &Run) -> Result<String> {
    with_mesh(run, |_, node, segment| {
        let server = node.dns_address()?;
        let mut random = StdRng::seed_from_u64(7);
        let client = segment.machines()[0].enter(|| Client::new(server))??;
        let (mut replies, mut before) = (0, 0);
        for batch in 0..BATCHES {
            if batch == BATCHES / 10 {
                before = resident_kib(node.pid()?)?;
            }
            if run.sabotaged && batch == BATCHES / 2 {
                node.kill9()?;
            }
            replies += client.batch(&mut random).with_context(|| format!("batch {batch}"))?;
        }
        let over_tcp = BATCHES / 20;
        let answered = segment.machines()[0]
            .enter(|| (0..over_tcp).map(|_| connection(server, &mut random)).sum::<Result<usize>>())??;
        client.batch(&mut random).context("after the connections")?;
        let after = resident_kib(node.pid()?)?;
        promise!(after < before + GROWTH_KIB, "resident memory grew from {before} to {after} KiB");
        let log = fs::read_to_string(node.dir().join("daemon.log"))?;
        promise!(!log.contains("panicked"), "a task panicked");
        Ok(format!(
            "{} datagrams with {replies} replies, {} over TCP with {answered}; {before} KiB, {after} KiB after it",
            BATCHES * BATCH,
            over_tcp * BATCH
        ))
    })
}

/// A client that sends what no client would.
struct Client {
    socket: UdpSocket,
}

impl Client {
    fn new(server: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(Self { socket })
    }

    /// Sends a batch and a good question behind it; returns how many replies came, all of them well-formed.
    fn batch(&self, random: &mut StdRng) -> Result<usize> {
        for _ in 0..BATCH {
            // What ends before its header is a datagram as well; the system may still know of an ICMP error.
            let _ = self.socket.send(&mutated(random));
        }
        let mut replies = 0;
        for _ in 0..TRIES {
            let _ = self.socket.send(&question(PROBE, "orders.mesh.internal", RecordType::A)?);
            let mut bytes = [0; 4_096];
            while let Ok(length) = self.socket.recv(&mut bytes) {
                let Ok(message) = Message::from_vec(&bytes[..length]) else {
                    promise!(false, "{length} bytes that are no message came back");
                    return Ok(replies);
                };
                if message.metadata.id == PROBE && message.answers.len() == 1 {
                    return Ok(replies);
                }
                replies += 1;
            }
        }
        promise!(false, "a good question gets no answer any more");
        Ok(replies)
    }
}

/// Id of the good questions; mutations keep away from it.
const PROBE: u16 = 0xbeef;
/// How often a good question is sent before the daemon counts as dead.
const TRIES: usize = 4;

/// Sends a batch over one connection and reads until the server closes it; returns how many messages came.
fn connection(server: SocketAddr, random: &mut StdRng) -> Result<usize> {
    let mut stream = TcpStream::connect(server).context("a connection")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    for _ in 0..BATCH {
        let bytes = mutated(random);
        let framed = [&u16::try_from(bytes.len())?.to_be_bytes(), bytes.as_slice()].concat();
        // An empty frame ends the connection: what follows has nobody to go to.
        if bytes.is_empty() || stream.write_all(&framed).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let (mut rest, mut count) = (all.as_slice(), 0);
    while let Some((length, behind)) = rest.split_first_chunk() {
        let Some((message, behind)) = behind.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        else {
            break;
        };
        promise!(Message::from_vec(message).is_ok(), "{} bytes that are no message came back", message.len());
        (rest, count) = (behind, count + 1);
    }
    Ok(count)
}

const NAMES: [&str; 8] = [
    "orders.mesh.internal",
    "_80._tcp.many.mesh.internal",
    "_5432._tcp.orders.direct.mesh.internal",
    "db-a.orders.west.mesh.internal",
    "db-a.node.mesh.internal",
    "mesh.internal",
    "53.0.240.127.in-addr.arpa",
    "example.com",
];
const KINDS: [RecordType; 7] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::TXT,
    RecordType::SOA,
    RecordType::PTR,
    RecordType::ANY,
];

/// Returns a question with one to five faults.
fn mutated(random: &mut StdRng) -> Vec<u8> {
    let name = NAMES[random.random_range(0..NAMES.len())];
    let kind = KINDS[random.random_range(0..KINDS.len())];
    let mut bytes = question(random.random_range(0..PROBE), name, kind).unwrap_or_default();
    for _ in 0..random.random_range(1..6) {
        if bytes.is_empty() {
            break;
        }
        // The id stays: it tells replies to good questions.
        let at = random.random_range(2.min(bytes.len() - 1)..bytes.len());
        match random.random_range(0..6) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.random()),
            4 => bytes[at] = 0xc0 | random.random_range(0..2),
            _ => bytes.extend_from_within(at..),
        }
    }
    bytes
}

fn resident_kib(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a resident size")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
