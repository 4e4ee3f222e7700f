//! What TCP flows carry: every byte, the first word of either side, each end, and many at once.
//!
//! Owns: two daemons, the programs of other people behind one of them, what a client must see. Must not know: how
//! flows travel. Driven by: `evidence`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use ring::digest::{Context as Hash, SHA256};

use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::{Lab, Node};
use crate::promise;
use crate::wait::{Broken, until};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "6.3-bulk",
        promise: "4 GiB pass each way through two daemons with the same SHA-256 at both ends",
        sabotage: "the serving daemon is killed half way",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: bulk,
    },
    Row {
        name: "6.3-ends",
        promise: "The end of one direction leaves the other open, a reset of either program is a reset at the other one, and a connection without a byte ends cleanly",
        sabotage: "a plain proxy stands between that ends both directions with the first and knows no reset",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: ends,
    },
    Row {
        name: "6.3-many",
        promise: "10,000 connections one after the other and 9,000 at the same time, all idle, each answer their client",
        sabotage: "the calling daemon may open 1,000 files",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: many,
    },
];

const TRAVEL: Duration = Duration::from_secs(20);
const NAME: &str = "orders.mesh.internal";
pub(super) const PORT: u16 = 8_080;

/// A daemon that serves and one that calls.
pub(super) struct Pair {
    pub(super) server: Node,
    pub(super) caller: Node,
}

impl Pair {
    pub(super) fn new(lab: &Lab) -> Result<Self> {
        let mut server = lab.node("server")?;
        server.init("west")?;
        let mut caller = lab.node("caller")?;
        caller.join(&server.token(&[])?)?;
        Ok(Self { server, caller })
    }

    /// As [`Self::new`], each on a machine of its own: the caller `here`, the server `there`.
    pub(super) fn on(lab: &Lab, here: &Namespace, there: &Namespace) -> Result<Self> {
        let mut server = lab.node_in("server", there)?;
        server.init("west")?;
        let mut caller = lab.node_in("caller", here)?;
        caller.join(&server.token(&[])?)?;
        Ok(Self { server, caller })
    }

    /// Offers a service and returns where a program beside the caller finds it.
    pub(super) fn offer(&self, port: u16, expose: &[&str]) -> Result<SocketAddr> {
        self.server.ok(&[&["expose"], expose].concat())?;
        let (name, _) = expose[0].split_once(':').context("a port")?;
        let resolver = self.caller.resolver()?;
        let vip = resolver.address(&format!("{name}.mesh.internal"), TRAVEL)?;
        let what = format!("{name} usable");
        until(&what, TRAVEL, || {
            Ok(self.caller.json(&["services", name])?.to_string().contains("\"usable\""))
        })?;
        Ok((vip, port).into())
    }

    pub(super) fn offer_orders(&self, target: SocketAddr) -> Result<SocketAddr> {
        self.offer(PORT, &[&format!("orders:{PORT}"), &target.to_string()])
    }
}

pub(super) fn listen() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Connects with a limit on each later wait.
pub(super) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&address, TRAVEL).with_context(|| format!("{NAME} at {address}"))?;
    stream.set_read_timeout(Some(TRAVEL))?;
    stream.set_write_timeout(Some(TRAVEL))?;
    Ok(stream)
}

/// Takes what a program meets for what the promise is about: a failure breaks it.
pub(super) fn kept<T>(what: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| Broken(format!("{what}: {error:#}")).into())
}

const BLOCK: usize = 1 << 20;

/// Bytes that no two blocks share, in order.
struct Source {
    block: Vec<u8>,
    next: u64,
}

impl Source {
    fn new(seed: u64) -> Self {
        let mut block = vec![0; BLOCK];
        SmallRng::seed_from_u64(seed).fill(&mut block[..]);
        Self { block, next: 0 }
    }

    fn next(&mut self) -> &[u8] {
        self.block[..8].copy_from_slice(&self.next.to_be_bytes());
        self.next += 1;
        &self.block
    }
}

/// Writes so many blocks and returns their digest. Something may happen before the second half.
pub(super) fn send(
    stream: &mut TcpStream,
    seed: u64,
    blocks: u64,
    half_way: impl FnOnce() -> Result<()>,
) -> Result<Vec<u8>> {
    let (mut source, mut hash, mut half_way) = (Source::new(seed), Hash::new(&SHA256), Some(half_way));
    for block in 0..blocks {
        if block == blocks / 2 {
            half_way.take().map_or(Ok(()), |happen| happen())?;
        }
        let block = source.next();
        hash.update(block);
        stream.write_all(block)?;
    }
    Ok(hash.finish().as_ref().to_vec())
}

/// Reads to the end; returns how much came and its digest.
pub(super) fn receive(stream: &mut TcpStream) -> Result<(u64, Vec<u8>)> {
    let (mut hash, mut bytes, mut sum) = (Hash::new(&SHA256), vec![0; BLOCK], 0);
    loop {
        let len = stream.read(&mut bytes)?;
        if len == 0 {
            return Ok((sum, hash.finish().as_ref().to_vec()));
        }
        hash.update(&bytes[..len]);
        sum += len as u64;
    }
}

fn bulk(run: &Run) -> Result<String> {
    let blocks: u64 = run.times(4 << 10, 256);
    let segment = Segment::new(2)?;
    let machines = segment.machines();
    run.scenario(|lab| {
        let (here, there) = (&machines[0], &machines[1]);
        let mut pair = Pair::on(lab, here, there)?;
        let (listener, target) = there.enter(listen)??;
        let vip = pair.offer_orders(target)?;
        here.enter(|| {
            both_ways(&listener, vip, blocks, || if run.sabotaged { pair.server.kill9() } else { Ok(()) })
        })?
    })
}

/// Moves so many MiB to the program of the listener, then as many back, and compares their digests. Something may happen
/// half way there. Runs beside the caller.
pub(super) fn both_ways(
    listener: &TcpListener,
    vip: SocketAddr,
    blocks: u64,
    half_way: impl FnOnce() -> Result<()>,
) -> Result<String> {
    std::thread::scope(|scope| {
        // One direction to its end, then the other: the target answers when it has all.
        let serving = scope.spawn(move || -> Result<_> {
            listener.set_nonblocking(true)?;
            let began = Instant::now();
            let (mut client, got) = loop {
                // The flow may have ended before it came here.
                ensure!(began.elapsed() < TRAVEL, "nobody came to the target");
                let Ok((mut client, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                client.set_nonblocking(false)?;
                client.set_read_timeout(Some(TRAVEL))?;
                match receive(&mut client)? {
                    // A check of the daemon.
                    (0, _) => {}
                    got => break (client, got),
                }
            };
            let sent = send(&mut client, 2, blocks, || Ok(()))?;
            Ok((got, sent))
        });
        let began = Instant::now();
        let mut client = connect(vip)?;
        let sent = kept("sending", send(&mut client, 1, blocks, half_way))?;
        kept("ending", client.shutdown(Shutdown::Write).map_err(Into::into))?;
        let up = began.elapsed();
        let got = kept("receiving", receive(&mut client))?;
        let took = began.elapsed();
        let (served, answered) = serving.join().map_err(|_| anyhow::anyhow!("the target panicked"))??;
        let bytes = blocks << 20;
        promise!(served == (bytes, sent), "the target got {} of {bytes} bytes, or others", served.0);
        promise!(got == (bytes, answered), "the client got {} of {bytes} bytes, or others", got.0);
        let rate = |time: Duration| bytes as f64 / f64::from(1 << 20) / time.as_secs_f64();
        Ok(format!(
            "{} MiB each way, SHA-256 the same; {:.0} MiB/s there, {:.0} MiB/s back",
            blocks,
            rate(up),
            rate(took.saturating_sub(up))
        ))
    })
}

/// What became of a read to the end.
pub(super) fn end_of(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    (bytes, ended.err().map(|error| error.kind()))
}

pub(super) fn reset(stream: &TcpStream) -> Result<()> {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger)?)
}

fn ends(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let machines = segment.machines();
    run.scenario(|lab| {
        let (here, there) = (&machines[0], &machines[1]);
        let pair = Pair::on(lab, here, there)?;
        let (listener, target) = there.enter(listen)??;
        let vip = pair.offer_orders(target)?;
        let stop = AtomicBool::new(false);
        here.enter(|| {
            std::thread::scope(|scope| {
                let (through, _guard) = if run.sabotaged {
                    let (proxy, address) = listen()?;
                    proxy.set_nonblocking(true)?;
                    let stop = &stop;
                    scope.spawn(move || plain_proxy(&proxy, vip, stop));
                    (address, Some(Stop(stop)))
                } else {
                    (vip, None)
                };
                let pair_up = || -> Result<(TcpStream, TcpStream)> {
                    let mut client = connect(through)?;
                    client.write_all(b"x")?;
                    loop {
                        let (mut program, _) = listener.accept()?;
                        program.set_read_timeout(Some(TRAVEL))?;
                        // Without a byte it was a check of the daemon.
                        if program.read(&mut [0])? == 1 {
                            return Ok((client, program));
                        }
                    }
                };
                // The client ends first and still gets the answer.
                let (mut client, mut program) = pair_up()?;
                client.write_all(b"question")?;
                client.shutdown(Shutdown::Write)?;
                promise!(end_of(&mut program) == (b"question".to_vec(), None), "the question did not end");
                program.write_all(b"answer")?;
                drop(program);
                promise!(
                    end_of(&mut client) == (b"answer".to_vec(), None),
                    "no answer after the client's end"
                );
                // The program ends first and still gets the rest.
                let (mut client, mut program) = pair_up()?;
                program.shutdown(Shutdown::Write)?;
                promise!(end_of(&mut client) == (Vec::new(), None), "the program's end did not arrive");
                client.write_all(b"rest")?;
                drop(client);
                promise!(end_of(&mut program) == (b"rest".to_vec(), None), "no rest after the program's end");
                // Resets, each way, with bytes before them.
                let (mut client, program) = pair_up()?;
                reset(&program)?;
                drop(program);
                let seen = end_of(&mut client).1;
                promise!(seen == Some(ErrorKind::ConnectionReset), "the client sees {seen:?} for a reset");
                let (client, mut program) = pair_up()?;
                reset(&client)?;
                drop(client);
                let seen = end_of(&mut program).1;
                promise!(seen == Some(ErrorKind::ConnectionReset), "the program sees {seen:?} for a reset");
                // Not a byte.
                let mut client = connect(through)?;
                client.shutdown(Shutdown::Write)?;
                client.set_read_timeout(Some(Duration::from_millis(300)))?;
                let ended = loop {
                    let (mut program, _) = listener.accept()?;
                    program.set_read_timeout(Some(TRAVEL))?;
                    promise!(
                        end_of(&mut program) == (Vec::new(), None),
                        "an empty connection did not end cleanly"
                    );
                    drop(program);
                    let ended = client.read(&mut [0]).map_err(|error| error.kind());
                    // It was a check of the daemon.
                    if ended != Err(ErrorKind::WouldBlock) {
                        break ended;
                    }
                };
                promise!(ended == Ok(0), "the client of an empty connection sees {ended:?}");
                Ok("half-close 2 of 2, reset 2 of 2, 0 bytes".to_owned())
            })
        })?
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Copies as a careless proxy does: whichever direction ends first, or breaks, closes both.
fn plain_proxy(listener: &TcpListener, to: SocketAddr, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let _ = client.set_nonblocking(false);
        let Ok(server) = TcpStream::connect(to) else { continue };
        let copy = |from: &TcpStream, to: &TcpStream| {
            let (mut from, mut to) = (from, to);
            let _ = std::io::copy(&mut from, &mut to);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| copy(&client, &server));
            copy(&server, &client);
        });
    }
}

/// Lets this process, and what it starts, open so many files.
pub(super) fn raise_files(count: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < count {
        ensure!(hard >= count, "{count} files are needed at once and {hard} allowed; raise `ulimit -Hn`");
        setrlimit(Resource::RLIMIT_NOFILE, count, hard)?;
    }
    Ok(())
}

fn many(run: &Run) -> Result<String> {
    let (short, idle) = run.times((10_000, 9_000), (2_000, 2_000));
    // Both ends of each idle connection are here.
    raise_files(2 * idle as u64 + 1_000)?;
    let segment = Segment::new(2)?;
    let machines = segment.machines();
    run.scenario(|lab| {
        let (here, there) = (&machines[0], &machines[1]);
        let pair = Pair::on(lab, here, there)?;
        let (listener, target) = there.enter(listen)??;
        let vip = pair.offer_orders(target)?;
        if run.sabotaged {
            let pid = pair.caller.pid()?.to_string();
            let mut limit = std::process::Command::new("prlimit");
            limit.args(["--pid", &pid, "--nofile=1000:1000"]);
            ensure!(lab.finish(limit, TRAVEL)?.code == Some(0), "prlimit failed");
        }
        listener.set_nonblocking(true)?;
        let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        here.enter(|| {
            std::thread::scope(|scope| {
                let _guard = Stop(&stop);
                scope.spawn(|| answer_all(&listener, &stop, &served));
                let began = Instant::now();
                for number in 0..short {
                    let mut client = connect(vip)?;
                    kept(&format!("short connection {number}"), talk(&mut client, number))?;
                }
                let rate = short as f64 / began.elapsed().as_secs_f64();
                let mut open = Vec::with_capacity(idle);
                for number in 0..idle {
                    let mut client = connect(vip)?;
                    kept(&format!("idle connection {number}"), talk(&mut client, number))?;
                    open.push(client);
                }
                for (number, client) in open.iter_mut().enumerate() {
                    kept(&format!("idle connection {number} later"), talk(client, number + 1))?;
                }
                let seen = served.load(Ordering::Relaxed);
                promise!(seen == short + 2 * idle, "the program answered {seen} times");
                let flows =
                    pair.caller.status()?["counters"]["gossamer_flows_open"].as_u64().unwrap_or_default();
                promise!(flows >= idle as u64, "{flows} flows are open");
                Ok(format!("{short} one after the other at {rate:.0}/s; {idle} at once, each answered twice"))
            })
        })?
    })
}

/// Says a number and wants it back.
fn talk(stream: &mut TcpStream, number: usize) -> Result<()> {
    let word = (number as u64).to_be_bytes();
    stream.write_all(&word)?;
    let mut back = [0; 8];
    stream.read_exact(&mut back)?;
    ensure!(back == word, "another answer");
    Ok(())
}

/// Echoes eight bytes at a time on every connection, with one thread.
fn answer_all(listener: &TcpListener, stop: &AtomicBool, served: &AtomicUsize) -> Result<()> {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX))?;
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 256];
    while !stop.load(Ordering::Relaxed) {
        let count = epoll.wait(&mut events, EpollTimeout::from(50_u16))?;
        for event in &events[..count] {
            if event.data() == u64::MAX {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, streams.len() as u64))?;
                    streams.push(Some(stream));
                }
                continue;
            }
            let Some(slot) = streams.get_mut(event.data() as usize) else { bail!("an unknown event") };
            let Some(stream) = slot else { continue };
            let mut word = [0; 8];
            match stream.read(&mut word) {
                Ok(8) => {
                    stream.write_all(&word)?;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => *slot = None,
            }
        }
    }
    Ok(())
}
