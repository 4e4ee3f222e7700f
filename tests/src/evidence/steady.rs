//! Flows that last: a reader that takes nothing, and HTTP/2 that says nothing for a minute.
//!
//! Owns: such clients. Must not know: how daemons carry flows. Driven by: `evidence`.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::carried::{Pair, connect, kept};
use super::{Ci, Needs, Row, Run};
use crate::process::Node;
use crate::promise;
use crate::wait::{throughout, until};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "6.6-stalled",
        promise: "A client that reads nothing while its service sends all it can holds the service back, grows neither daemon, and slows no other flow",
        sabotage: "the client reads",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: stalled,
    },
    Row {
        name: "6.6-stalled-many",
        promise: "With 20 and with 200 clients of one pair of nodes that read nothing, another flow moves 32 MiB at its usual pace, both daemons grow by less than 24 MiB, and none of the clients loses a byte",
        sabotage: "the serving daemon is killed meanwhile",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: stalled_many,
    },
    Row {
        name: "6.6-http2",
        promise: "An HTTP/2 connection of a real client and a real server that carries nothing but a ping every 10 s stays up, and the traceparent of a request after it arrives unchanged",
        sabotage: "the serving daemon is restarted meanwhile",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: http2,
    },
];

const TRAVEL: Duration = Duration::from_secs(20);

fn listen() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Most bytes that may be on their way for a reader that takes none: the sockets' buffers of both programs and what the
/// flow's windows allow, measured and doubled.
const ON_THE_WAY: u64 = 24 << 20;
/// What a daemon may grow by meanwhile, KiB: windows are a part of what is on the way.
const GROWTH_KIB: u64 = 16 << 10;

/// Tells threads to stop when the promise has been looked at.
pub(super) struct Stop<'a>(pub(super) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn stalled(run: &Run) -> Result<String> {
    let time = run.times(Duration::from_secs(30), Duration::from_secs(6));
    run.scenario(|lab| {
        let pair = Pair::new(lab)?;
        let ((source, at), (echo, echo_at)) = (listen()?, listen()?);
        let flood = pair.offer(8_080, &["flood:8080", &at.to_string()])?;
        let other = pair.offer(8_081, &["echo:8081", &echo_at.to_string()])?;
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let _guard = Stop(&stop);
            scope.spawn(|| pour(&source, &stop, &sent));
            scope.spawn(|| echo_all(&echo, &stop));
            let mut calm = rounds(other, Duration::from_secs(2))?;
            let before = [&pair.server, &pair.caller].map(memory_kib);
            let mut client = connect(flood)?;
            client.write_all(b"more")?;
            if run.sabotaged {
                let (mut taking, stop) = (client.try_clone()?, &stop);
                scope.spawn(move || {
                    let mut bytes = vec![0; 1 << 16];
                    while !stop.load(Ordering::Relaxed) && taking.read(&mut bytes).is_ok_and(|len| len > 0) {}
                });
            }
            until("bytes on their way", TRAVEL, || Ok(sent.load(Ordering::Relaxed) > 1 << 16))?;
            let mut beside = rounds(other, time)?;
            let held = sent.load(Ordering::Relaxed);
            promise!(held <= ON_THE_WAY, "the service could send {} MiB to a client that reads nothing", held >> 20);
            throughout("the service being held back", Duration::from_secs(2), || {
                Ok(sent.load(Ordering::Relaxed) == held)
            })?;
            let mut grown = Vec::new();
            for (node, before) in [&pair.server, &pair.caller].into_iter().zip(before) {
                let grew = memory_kib(node)?.saturating_sub(before?);
                promise!(grew <= GROWTH_KIB, "{} grew by {grew} KiB", node.name);
                grown.push(format!("{} {grew} KiB", node.name));
            }
            let (calm, beside) = (percentile(&mut calm, 99), percentile(&mut beside, 99));
            // Twice, and 20 ms for what else this machine does.
            promise!(beside <= calm * 2 + Duration::from_millis(20), "p99 of another flow was {calm:?}, is {beside:?}");
            Ok(format!(
                "{} KiB on their way after {} s, grown: {}; p99 of another flow {:.2} ms before, {:.2} ms beside it",
                held >> 10,
                time.as_secs(),
                grown.join(", "),
                calm.as_secs_f64() * 1e3,
                beside.as_secs_f64() * 1e3
            ))
        })
    })
}

/// What one flow moves while others stall.
const MOVED: usize = 32 << 20;
/// What each of those is sent in all.
const SENT: u64 = 4 << 20;
/// What a daemon may grow by while 200 stall, KiB: the unread bytes of a peer, and what a flow costs.
const GROWTH_OF_MANY_KIB: u64 = 24 << 10;

fn stalled_many(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut pair = Pair::new(lab)?;
        let ((source, at), (bulk, bulk_at)) = (listen()?, listen()?);
        let many = pair.offer(8_080, &["many:8080", &at.to_string()])?;
        let other = pair.offer(8_081, &["bulk:8081", &bulk_at.to_string()])?;
        let stop = AtomicBool::new(false);
        let mut said = Vec::new();
        std::thread::scope(|scope| {
            let _guard = Stop(&stop);
            scope.spawn(|| give(scope, &source, SENT, &stop));
            scope.spawn(|| give(scope, &bulk, MOVED as u64, &stop));
            let alone = (0..3).map(|_| move_all(other)).collect::<Result<Vec<_>>>()?;
            let alone = alone.into_iter().max().unwrap_or_default();
            let before = [&pair.server, &pair.caller].map(memory_kib);
            let mut clients = Vec::new();
            for count in [20, 200] {
                while clients.len() < count {
                    let mut client = connect(many)?;
                    client.write_all(b"more")?;
                    clients.push(client);
                }
                let full = || Ok(clients.iter().all(|client| client.peek(&mut [0]).is_ok_and(|len| len > 0)));
                until("each client's first byte", TRAVEL, full)?;
                // The best: those that stall are still being filled at first.
                let beside = (0..3).map(|_| kept("a flow beside", move_all(other)));
                let beside = beside.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or_default();
                promise!(
                    beside <= alone * 3 + Duration::from_millis(500),
                    "32 MiB took {alone:?} alone, {beside:?} beside {count} stalled clients"
                );
                said.push(format!("{:.2} s beside {count}", beside.as_secs_f64()));
            }
            let mut grown = Vec::new();
            for (node, before) in [&pair.server, &pair.caller].into_iter().zip(before) {
                let grew = memory_kib(node)?.saturating_sub(before?);
                promise!(grew <= GROWTH_OF_MANY_KIB, "{} grew by {grew} KiB", node.name);
                grown.push(format!("{} {grew} KiB", node.name));
            }
            if run.sabotaged {
                pair.server.kill9()?;
            }
            for client in &mut clients {
                let read = std::io::copy(client, &mut std::io::sink());
                promise!(matches!(read, Ok(SENT)), "a client that had stalled reads {read:?}");
            }
            let alone = alone.as_secs_f64();
            Ok(format!("32 MiB in {alone:.2} s alone, {}; grown: {}", said.join(", "), grown.join(", ")))
        })
    })
}

/// Connects and reads all that comes; returns how long that took.
fn move_all(address: SocketAddr) -> Result<Duration> {
    let began = Instant::now();
    let mut client = connect(address)?;
    client.write_all(b"more")?;
    let read = std::io::copy(&mut client, &mut std::io::sink())?;
    ensure!(read == MOVED as u64, "{read} bytes came");
    Ok(began.elapsed())
}

/// Sends so many bytes to each client that asks, each in a thread of its own.
pub(super) fn give<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    listener: &TcpListener,
    bytes: u64,
    stop: &'scope AtomicBool,
) -> Result<()> {
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        scope.spawn(move || -> Result<()> {
            client.set_nonblocking(false)?;
            client.set_read_timeout(Some(TRAVEL))?;
            // Without a byte it is a check of the daemon.
            if client.read_exact(&mut [0; 4]).is_err() {
                return Ok(());
            }
            client.set_write_timeout(Some(Duration::from_millis(50)))?;
            let (block, mut left) = (vec![7; 1 << 16], bytes);
            while left > 0 && !stop.load(Ordering::Relaxed) {
                let most = block.len().min(usize::try_from(left)?);
                match client.write(&block[..most]) {
                    Ok(len) => left -= len as u64,
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => break,
                }
            }
            Ok(())
        });
    }
    Ok(())
}

/// Sends to each client that asked as fast as it can; counts what the system took.
fn pour(listener: &TcpListener, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    listener.set_nonblocking(true)?;
    let bytes = vec![7; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(TRAVEL))?;
        // Without a byte it is a check of the daemon.
        if client.read_exact(&mut [0; 4]).is_err() {
            continue;
        }
        client.set_write_timeout(Some(Duration::from_millis(50)))?;
        while !stop.load(Ordering::Relaxed) {
            match client.write(&bytes) {
                Ok(len) => drop(sent.fetch_add(len as u64, Ordering::Relaxed)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
    }
    Ok(())
}

fn echo_all(listener: &TcpListener, stop: &AtomicBool) -> Result<()> {
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        client.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut word = [0; 8];
        while !stop.load(Ordering::Relaxed) {
            match client.read_exact(&mut word) {
                Ok(()) => client.write_all(&word)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    }
    Ok(())
}

/// Talks over one flow for so long; returns how long each answer took.
fn rounds(address: SocketAddr, time: Duration) -> Result<Vec<Duration>> {
    let mut client = connect(address)?;
    client.set_nodelay(true)?;
    let (began, mut all) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        let asked = Instant::now();
        client.write_all(b"question")?;
        client.read_exact(&mut [0; 8])?;
        all.push(asked.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(all)
}

pub(super) fn percentile(all: &mut [Duration], percent: usize) -> Duration {
    all.sort_unstable();
    all.get((all.len() * percent / 100).min(all.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Returns the anonymous memory of a daemon, KiB.
pub(super) fn memory_kib(node: &Node) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// An HTTP/2 client: python3-h2 over a plain socket. It asks once, pings every so often, asks again, and says what came.
const CLIENT: &str = r#"
import select, socket, sys, time
import h2.config, h2.connection, h2.events
host, port, idle, every, parent = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
sock = socket.create_connection((host, port), timeout=20)
conn = h2.connection.H2Connection(config=h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
conn.initiate_connection()
sock.sendall(conn.data_to_send())
acks = 0
def wait(seconds, done):
    global acks
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not select.select([sock], [], [], max(0, min(0.2, until - time.monotonic())))[0]:
            continue
        data = sock.recv(65535)
        if not data: sys.exit("closed by the other side")
        for event in conn.receive_data(data):
            if isinstance(event, h2.events.PingAckReceived): acks += 1
            if isinstance(event, h2.events.ConnectionTerminated): sys.exit(f"terminated: {event}")
            if isinstance(event, h2.events.ResponseReceived) and dict(event.headers)[":status"] != "200": sys.exit(f"{event.headers}")
            if isinstance(event, h2.events.StreamEnded) and done == event.stream_id:
                sock.sendall(conn.data_to_send())
                return True
        sock.sendall(conn.data_to_send())
    return done is None
def get():
    stream = conn.get_next_available_stream_id()
    conn.send_headers(stream, [(":method", "GET"), (":path", "/page"), (":scheme", "http"), (":authority", host), ("traceparent", parent)], end_stream=True)
    sock.sendall(conn.data_to_send())
    if not wait(20, stream): sys.exit("no response")
get()
pings, end = 0, time.monotonic() + idle
while time.monotonic() < end:
    wait(min(every, max(0, end - time.monotonic())), None)
    conn.ping(pings.to_bytes(8, "big")); pings += 1
    sock.sendall(conn.data_to_send())
wait(2, None)
get()
print(pings, acks)
"#;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn http2(run: &Run) -> Result<String> {
    let (idle, every) = run.times((60, 10), (12, 4));
    run.scenario(|lab| {
        let mut pair = Pair::new(lab)?;
        let (listener, at) = listen()?;
        drop(listener);
        let (site, log) = (lab.dir().join("site"), lab.dir().join("nghttpd.log"));
        fs::create_dir(&site)?;
        fs::write(site.join("page"), "hello\n")?;
        let out = fs::File::create(&log)?;
        let mut nghttpd = Command::new("nghttpd");
        nghttpd.args(["-v", "--no-tls", "-a", "127.0.0.1", "-d"]).arg(&site).arg(at.port().to_string());
        nghttpd.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let _server = Killed(nghttpd.spawn().context("starting nghttpd: install nghttp2-server")?);
        until("nghttpd", TRAVEL, || Ok(std::net::TcpStream::connect(at).is_ok()))?;
        let address = pair.offer(8_080, &["web:8080", &at.to_string()])?;
        let mut client = Command::new("/usr/bin/python3");
        let words = [idle.to_string(), every.to_string(), PARENT.to_owned()];
        client.args(["-c", CLIENT, &address.ip().to_string(), &address.port().to_string()]).args(words);
        let limit = Duration::from_secs(idle + 30);
        let (mut done, began) = (None, Instant::now());
        std::thread::scope(|scope| -> Result<()> {
            let asking = scope.spawn(|| lab.finish(client, limit));
            if run.sabotaged {
                until("half of the time", limit, || Ok(began.elapsed() > Duration::from_secs(idle / 2)))?;
                pair.server.kill9()?;
                pair.server.run()?;
            }
            done = Some(asking.join().map_err(|_| anyhow::anyhow!("the client panicked"))??);
            Ok(())
        })?;
        let done = done.context("the client's end")?;
        ensure!(!done.stderr.contains("No module named"), "install python3-h2: {}", done.stderr);
        promise!(done.code == Some(0), "the client ends with {:?}: {}", done.code, done.stderr.trim());
        let (pings, acks) = done.stdout.trim().split_once(' ').context("two numbers")?;
        promise!(pings == acks && pings != "0", "{acks} of {pings} pings were answered");
        let seen = fs::read_to_string(&log)?;
        let parents = seen.lines().filter(|line| line.contains("traceparent: ") && line.contains(PARENT)).count();
        let others = seen.lines().filter(|line| line.contains("traceparent: ") && !line.contains(PARENT)).count();
        promise!(parents == 2 && others == 0, "nghttpd saw the traceparent {parents} times and another one {others} times");
        Ok(format!("nghttpd and python3-h2, {idle} s with {pings} pings of {every} s, the same traceparent before and after"))
    })
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
