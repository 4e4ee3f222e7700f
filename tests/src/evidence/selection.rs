//! Where flows go: to the best instance that takes them, and what clients see when instances, nodes and tiers go away.
//!
//! Owns: daemons in several groups, zones and regions, programs that say who they are, clients that count failures. Must not
//! know: how an instance is chosen. Driven by: `evidence`.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use rand::RngExt as _;

use super::{Ci, Needs, Row, Run};
use crate::process::{Lab, Node};
use crate::promise;
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "6.5-dies",
        promise: "Instance dies mid-flow: reset and the next connect goes elsewhere",
        sabotage: "the other instance is withdrawn before",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: dies,
    },
    Row {
        name: "6.5-failover",
        promise: "node -> group -> zone -> region and back under load: 0 failed connects",
        sabotage: "the daemon of the region is stopped before the others are",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: failover,
    },
    Row {
        name: "6.5-only",
        promise: "`only = region` with the region dead: refused, 0 bytes leave",
        sabotage: "neither the caller nor an exporter says only = region",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: only,
    },
    Row {
        name: "6.5-spill",
        promise: "spill moves the expected share +-10 %",
        sabotage: "nobody says spill-below",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: spill,
    },
    Row {
        name: "6.5-rolling",
        promise: "rolling restart of five daemons with drain and 2,000 in-flight requests: 0 failed",
        sabotage: "the daemons are ended by SIGKILL, which drains nothing",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: rolling,
    },
];

const TRAVEL: Duration = Duration::from_secs(30);
const PORT: u16 = 8_080;
/// Between two looks of a thread at whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// A program that says who it is: at once to each caller, or after the milliseconds a caller names in a line.
struct Program {
    address: SocketAddr,
    seen: Arc<Seen>,
    accepting: Option<JoinHandle<()>>,
}

/// What a program got.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    /// Bytes of callers.
    bytes: AtomicUsize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Greets,
    Answers,
}

impl Program {
    fn start(name: &str, manner: Manner) -> Result<Self> {
        Self::start_at(name, manner, 0)
    }

    fn start_at(name: &str, manner: Manner, port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let seen = Arc::new(Seen::default());
        let (name, watching) = (format!("{name}\n"), Arc::clone(&seen));
        let accepting = std::thread::spawn(move || {
            while !watching.stop.load(Ordering::Relaxed) {
                let Ok((client, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                let (name, seen) = (name.clone(), Arc::clone(&watching));
                let thread = std::thread::Builder::new().stack_size(128 << 10);
                let _ = thread.spawn(move || serve(client, &name, manner, &seen));
            }
        });
        Ok(Self { address, seen, accepting: Some(accepting) })
    }

    /// Ends it as a crash does: nobody listens, and who is connected is reset.
    fn crash(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }

    fn bytes(&self) -> usize {
        self.seen.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.crash();
    }
}

fn serve(mut client: TcpStream, name: &str, manner: Manner, seen: &Seen) {
    let _ = client.set_nonblocking(false);
    let _ = client.set_read_timeout(Some(LOOK));
    if manner == Manner::Greets && client.write_all(name.as_bytes()).is_err() {
        return;
    }
    let (mut line, mut bytes) = (Vec::new(), [0; 256]);
    loop {
        match client.read(&mut bytes) {
            Ok(0) => return,
            Ok(len) => {
                seen.bytes.fetch_add(len, Ordering::Relaxed);
                line.extend_from_slice(&bytes[..len]);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
        if seen.stop.load(Ordering::Relaxed) {
            let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::Linger, &linger);
            return;
        }
        if manner == Manner::Answers && line.ends_with(b"\n") {
            let milliseconds = String::from_utf8_lossy(&line).trim().parse().unwrap_or(0);
            // The work of a request: it takes as long as the caller says.
            std::thread::sleep(Duration::from_millis(milliseconds));
            let _ = client.write_all(name.as_bytes());
            return;
        }
    }
}

fn connect(vip: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&vip, TRAVEL)?;
    stream.set_read_timeout(Some(TRAVEL))?;
    stream.set_write_timeout(Some(TRAVEL))?;
    Ok(stream)
}

/// Connects and returns who answers.
fn greeted(vip: SocketAddr) -> std::io::Result<(TcpStream, String)> {
    let stream = connect(vip)?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    if line.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok((stream, line.trim().to_owned()))
}

/// Returns where a program beside the caller finds a service, once so many instances of it are usable there.
fn found(caller: &Node, name: &str, usable: usize) -> Result<SocketAddr> {
    let vip = caller.resolver()?.address(&format!("{name}.mesh.internal"), TRAVEL)?;
    is_usable(caller, name, usable)?;
    Ok((vip, PORT).into())
}

fn is_usable(caller: &Node, name: &str, usable: usize) -> Result<()> {
    until(&format!("{usable} instances of {name} usable on {}", caller.name), TRAVEL, || {
        Ok(caller.json(&["services", name])?.to_string().matches("\"usable\"").count() == usable)
    })
    .map(drop)
}

fn expose(node: &Node, name: &str, program: &Program, extra: &[&str]) -> Result<()> {
    let (named, target) = (format!("{name}:{PORT}"), program.address.to_string());
    node.ok(&[&["expose", &named, &target], extra].concat()).map(drop)
}

/// Starts a node of a group, zone and region.
fn member(lab: &Lab, first: &Node, name: &str, place: [&str; 3]) -> Result<Node> {
    let [group, zone, region] = place;
    let token = first.token(&["--group", group])?;
    let mut node = lab.node(name)?;
    node.start(&["join", &token, "--node", name, "--zone", zone, "--region", region])?;
    Ok(node)
}

/// Starts the first node, of group west in zone z1 of region r1.
fn caller(lab: &Lab, settings: &str) -> Result<Node> {
    let mut node = lab.node("caller")?;
    fs::write(node.config_file(), settings)?;
    node.start(&["init", "--group", "west", "--node", "caller", "--zone", "z1", "--region", "r1"])?;
    Ok(node)
}

fn dies(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let caller = caller(lab, "")?;
        let place = ["west", "z1", "r1"];
        let (mut a, b) = (member(lab, &caller, "a", place)?, member(lab, &caller, "b", place)?);
        let mut programs = [Program::start("a", Manner::Greets)?, Program::start("b", Manner::Greets)?];
        expose(&a, "orders", &programs[0], &[])?;
        expose(&b, "orders", &programs[1], &[])?;
        let vip = found(&caller, "orders", 2)?;
        // A flow that has answered already, at each of the two in turn.
        let at = |name: &str| -> Result<TcpStream> {
            for _ in 0..200 {
                let (stream, who) = greeted(vip)?;
                if who == name {
                    return Ok(stream);
                }
            }
            anyhow::bail!("no flow of 200 goes to {name}")
        };
        let next = |gone: &str| -> Result<()> {
            for number in 0..20 {
                let who = greeted(vip).map(|(_, who)| who);
                promise!(
                    who.as_ref().is_ok_and(|who| who != gone),
                    "connect {number} after {gone} died: {who:?}"
                );
            }
            Ok(())
        };
        // The program dies, then another one's node.
        let mut stream = at("b")?;
        if run.sabotaged {
            a.ok(&["withdraw", "orders"])?;
        }
        programs[1].crash();
        let ended = stream.read(&mut [0]).map_err(|error| error.kind());
        promise!(ended == Err(ErrorKind::ConnectionReset), "the client sees {ended:?} when the program dies");
        next("b")?;
        let port = programs[1].address.port();
        programs[1] = Program::start_at("b", Manner::Greets, port)?;
        is_usable(&caller, "orders", 2)?;
        let mut stream = at("a")?;
        let began = std::time::Instant::now();
        a.kill9()?;
        let ended = stream.read(&mut [0]).map_err(|error| error.kind());
        promise!(ended == Err(ErrorKind::ConnectionReset), "the client sees {ended:?} when the node dies");
        let took = began.elapsed();
        next("a")?;
        Ok(format!(
            "2 of 2 reset, {:.1} s after the daemon died; 40 of 40 next connects go elsewhere",
            took.as_secs_f64()
        ))
    })
}

/// Clients that connect again and again, and what became of it.
struct Load {
    stop: AtomicBool,
    answers: Mutex<Vec<String>>,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn new() -> Self {
        Self { stop: AtomicBool::new(false), answers: Mutex::default(), failures: Mutex::default() }
    }

    fn note(list: &Mutex<Vec<String>>, text: String) {
        list.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn run(&self, vip: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            match greeted(vip) {
                Ok((_, who)) => Self::note(&self.answers, who),
                Err(error) => Self::note(&self.failures, error.to_string()),
            }
            // The pace of one client.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the latest connects all go to one instance.
    fn moves_to(&self, name: &str) -> Result<()> {
        const LATEST: usize = 40;
        let from = self.answers().len();
        until(&format!("connects going to {name}"), TRAVEL, || {
            let answers = self.answers();
            let latest = answers.get(answers.len().saturating_sub(LATEST).max(from)..).unwrap_or_default();
            Ok(latest.len() == LATEST && latest.iter().all(|who| who == name))
        })
        .map(drop)
    }
}

/// Stops the load also when a step fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const CLIENTS: usize = 8;

fn failover(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let caller = caller(lab, "import = [\"orders@east\"]\n")?;
        let names = ["node", "group", "zone", "region"];
        let mut programs =
            names.iter().map(|name| Program::start(name, Manner::Greets)).collect::<Result<Vec<_>>>()?;
        let mut group = member(lab, &caller, "group", ["west", "z9", "r9"])?;
        let mut zone = member(lab, &caller, "zone", ["east", "z1", "r1"])?;
        let mut region = member(lab, &caller, "region", ["east", "z2", "r1"])?;
        expose(&caller, "orders", &programs[0], &[])?;
        expose(&group, "orders", &programs[1], &[])?;
        expose(&zone, "orders", &programs[2], &["--to", "west"])?;
        expose(&region, "orders", &programs[3], &["--to", "west"])?;
        let vip = found(&caller, "orders", 4)?;
        let load = Load::new();
        std::thread::scope(|scope| {
            let _guard = Stop(&load.stop);
            for _ in 0..CLIENTS {
                scope.spawn(|| load.run(vip));
            }
            load.moves_to("node")?;
            if run.sabotaged {
                region.stop()?;
            }
            programs[0].crash();
            load.moves_to("group")?;
            group.kill9()?;
            load.moves_to("zone")?;
            zone.kill9()?;
            load.moves_to("region")?;
            zone.run()?;
            load.moves_to("zone")?;
            group.run()?;
            load.moves_to("group")?;
            let port = programs[0].address.port();
            programs[0] = Program::start_at("node", Manner::Greets, port)?;
            load.moves_to("node")
        })?;
        let failures = load.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let all = load.answers().len() + failures.len();
        promise!(failures.is_empty(), "{} of {all} connects failed, one by: {}", failures.len(), failures[0]);
        Ok(format!(
            "node, group, zone, region, zone, group, node: 0 of {all} connects of {CLIENTS} clients failed"
        ))
    })
}

fn only(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let route = if run.sabotaged { "" } else { "[route.\"orders\"]\nonly = \"region\"\n" };
        let caller = caller(lab, route)?;
        let mut near = member(lab, &caller, "near", ["west", "z2", "r1"])?;
        let far = member(lab, &caller, "far", ["west", "z3", "r2"])?;
        let programs = [Program::start("near", Manner::Greets)?, Program::start("far", Manner::Greets)?];
        // One service whose caller wishes it, one whose exporters do.
        let wish: &[&str] = if run.sabotaged { &[] } else { &["--only", "region"] };
        for (name, extra) in [("orders", &[][..]), ("stock", wish)] {
            expose(&near, name, &programs[0], extra)?;
            expose(&far, name, &programs[1], extra)?;
        }
        let vips = [found(&caller, "orders", 2)?, found(&caller, "stock", 2)?];
        for vip in vips {
            for number in 0..50 {
                let (_, who) = greeted(vip)?;
                promise!(who == "near", "connect {number} goes to {who}");
            }
        }
        near.kill9()?;
        caller.sees("near", "down", TRAVEL)?;
        let mut refused = 0;
        for vip in vips {
            let mut stream = connect(vip)?;
            let sent = stream.write_all(b"a secret of region r1");
            let ended = stream.read(&mut [0]).map_err(|error| error.kind());
            promise!(
                sent.is_err() || ended == Err(ErrorKind::ConnectionReset),
                "the client sees {ended:?} while the region is dead"
            );
            refused += 1;
        }
        let (bytes, flows) = (programs[1].bytes(), opened(&far)?);
        promise!((bytes, flows) == (0, 0), "{bytes} bytes and {flows} flows went to the other region");
        Ok(format!("100 connects to the region; with it dead {refused} of 2 refused, 0 bytes and 0 flows at the other one"))
    })
}

/// Returns how many flows of peers a node has served.
fn opened(node: &Node) -> Result<u64> {
    let counters = &node.status()?["counters"];
    let all = counters["gossamer_flows_opened_total{client=\"peer\"}"].as_u64();
    all.with_context(|| format!("no count of flows in {counters}"))
}

fn spill(run: &Run) -> Result<String> {
    let flows = run.times(4_000, 2_500);
    run.scenario(|lab| {
        let wish = if run.sabotaged { "" } else { "[route.\"orders\"]\nspill_below = 80\n" };
        let caller = caller(lab, &format!("import = [\"orders@east\"]\n{wish}"))?;
        let near = member(lab, &caller, "near", ["west", "z1", "r1"])?;
        let far = member(lab, &caller, "far", ["east", "z1", "r1"])?;
        // The exporters' percentage is the higher one, so the caller's counts.
        let theirs: &[&str] = if run.sabotaged { &[] } else { &["--spill-below", "100"] };
        let programs: Vec<_> =
            (0..4).map(|_| Program::start("near", Manner::Greets)).collect::<Result<_>>()?;
        for (number, program) in programs.iter().enumerate() {
            let instance = format!("i{number}");
            expose(&near, "orders", program, &[&["--instance", &instance], theirs].concat())?;
        }
        let other = Program::start("far", Manner::Greets)?;
        expose(&far, "orders", &other, &[&["--to", "west"], theirs].concat())?;
        let vip = found(&caller, "orders", 5)?;
        let spilled = |flows: usize| -> Result<f64> {
            let mut count = 0;
            for _ in 0..flows {
                count += usize::from(greeted(vip)?.1 == "far");
            }
            Ok(count as f64 / flows as f64)
        };
        let before = spilled(200)?;
        promise!(before == 0.0, "{:.1} % are spilled while all is well", 100.0 * before);
        let mut seen = Vec::new();
        // Of four equal ones 2 and then 1 are left: 50 % and 25 % healthy, of 80 %.
        for (drained, expected) in [(2, 1.0 - 50.0 / 80.0), (3, 1.0 - 25.0 / 80.0)] {
            for number in 0..drained {
                near.ok(&["drain", "orders", "--instance", &format!("i{number}"), "--no-wait"])?;
            }
            is_usable(&caller, "orders", 5 - drained)?;
            let share = spilled(flows)?;
            let is_expected = (share - expected).abs() <= expected / 10.0;
            promise!(
                is_expected,
                "{:.1} % are spilled with {drained} of 4 drained, {:.1} % are expected",
                100.0 * share,
                100.0 * expected
            );
            seen.push(format!("{:.1} % of {:.1} %", 100.0 * share, 100.0 * expected));
        }
        near.ok(&["drain", "--undo"])?;
        is_usable(&caller, "orders", 5)?;
        let after = spilled(200)?;
        promise!(after == 0.0, "{:.1} % are spilled when all is well again", 100.0 * after);
        Ok(format!("spilled {} and {}, each of {flows} flows; 0 before and after", seen[0], seen[1]))
    })
}

/// Lets this process, and what it starts, open so many files.
fn raise_files(count: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < count {
        ensure!(hard >= count, "{count} files are needed at once and {hard} allowed; raise `ulimit -Hn`");
        setrlimit(Resource::RLIMIT_NOFILE, count, hard)?;
    }
    Ok(())
}

/// Asks for an answer after 1 to 5 s; returns what the program said.
fn request(vip: SocketAddr) -> std::io::Result<String> {
    let milliseconds = rand::rng().random_range(1_000..=5_000);
    let mut stream = connect(vip)?;
    stream.write_all(format!("{milliseconds}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.ends_with('\n') { Ok(answer) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

fn rolling(run: &Run) -> Result<String> {
    // A few more than are to be on their way at each moment: some have just ended.
    let (clients, wanted) = run.times((2_100, 2_000), (210, 200));
    raise_files(3 * clients as u64 + 1_000)?;
    run.scenario(|lab| {
        let caller = caller(lab, "")?;
        let names = ["n1", "n2", "n3", "n4", "n5"];
        let (mut nodes, mut programs) = (Vec::new(), Vec::new());
        for name in names {
            let (node, program) =
                (member(lab, &caller, name, ["west", "z1", "r1"])?, Program::start(name, Manner::Answers)?);
            expose(&node, "orders", &program, &[])?;
            nodes.push(node);
            programs.push(program);
        }
        let vip = found(&caller, "orders", 5)?;
        let (stop, failures) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let (flying, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let one = |number: usize| {
            // They begin one after the other, 4 ms apart, and go on without pause.
            std::thread::sleep(Duration::from_millis(4 * number as u64));
            while !stop.load(Ordering::Relaxed) {
                flying.fetch_add(1, Ordering::Relaxed);
                match request(vip) {
                    Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => Load::note(&failures, error.to_string()),
                }
                flying.fetch_sub(1, Ordering::Relaxed);
            }
        };
        let least = std::thread::scope(|scope| -> Result<usize> {
            let _guard = Stop(&stop);
            for number in 0..clients {
                let thread = std::thread::Builder::new().stack_size(256 << 10);
                thread.spawn_scoped(scope, move || one(number)).context("a thread for a client")?;
            }
            let is_full =
                || until("requests on their way", TRAVEL, || Ok(flying.load(Ordering::Relaxed) >= wanted));
            let mut least = clients;
            for node in &mut nodes {
                is_full()?;
                least = least.min(flying.load(Ordering::Relaxed));
                if run.sabotaged {
                    node.kill9()?;
                } else {
                    node.signal(Signal::SIGTERM)?;
                    let code = node.ended(TRAVEL)?;
                    promise!(code == 0, "{} ends with {code}", node.name);
                }
                node.run()?;
                is_usable(&caller, "orders", names.len())?;
            }
            Ok(least)
        })?;
        let (done, failures) =
            (done.load(Ordering::Relaxed), failures.lock().unwrap_or_else(PoisonError::into_inner));
        let all = done + failures.len();
        promise!(failures.is_empty(), "{} of {all} requests failed, one by: {}", failures.len(), failures[0]);
        Ok(format!(
            "five restarts, {least} or more requests of 1 to 5 s on their way at each: 0 of {all} failed"
        ))
    })
}
