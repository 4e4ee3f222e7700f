//! Who may call, and what a change of that does: to living flows, to names, and to who searches.
//!
//! Owns: the daemons, the programs, what must be seen where. Must not know: how rules are judged. Driven by: `evidence`.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use gossamer_wire::flow::{OpenRequest, OpenStatus};
use gossamer_wire::{PortName, Transport};

use super::{Ci, Needs, Row, Run};
use crate::api::Api;
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{Credentials, identity_of};
use crate::search::{compare, search};
use crate::wait::{Broken, until};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "6.6-closes",
        promise: "`--to` removal and un-import close the live flow and the name <= 1 s, over TCP and UDP, while a flow by SERVICE.GROUP outlives the un-import",
        sabotage: "nothing is taken back: the services are exposed as they were, and the import stays",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: closes,
    },
    Row {
        name: "6.6-never-restarted",
        promise: "a new group and a policy change are seen by a client process that is never restarted",
        sabotage: "the client's daemon is held still while they happen",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: never_restarted,
    },
    Row {
        name: "6.6-scan",
        promise: "scan of 65,535 ids dials nothing: each is refused and counted, memory stays, the member's connection is closed and it is named, and the flow of another member goes on",
        sabotage: "the id and port of a registered instance are among them",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: scan,
    },
    Row {
        name: "6.6-alike",
        promise: "unknown and denied look alike on the wire, in bytes and in time, and are explained on the own node's CLI, which exits 5 for denied and 4 for unknown",
        sabotage: "the service admits the member and its program does not run",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: alike,
    },
    Row {
        name: "6.6-default-deny",
        promise: "policy.default = deny turns a node's exports into an allow-list by reload, for other nodes and for itself; policy.audit lets in, logs and counts who would be denied; a faulty file names all its faults and changes nothing",
        sabotage: "policy.default stays group",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: default_deny,
    },
];

const TRAVEL: Duration = Duration::from_secs(20);
/// What the issue allows from a change to its effect.
const SOON: Duration = Duration::from_secs(1);
const ORDERS: u16 = 8_080;
const ECHO: u16 = 17_008;

/// Sends back what it gets over TCP and UDP, on ports of its own.
struct Programs {
    tcp: TcpListener,
    udp: UdpSocket,
    stop: AtomicBool,
    /// TCP connections, those of the daemon's checks too.
    called: AtomicUsize,
}

impl Programs {
    fn new() -> Result<Self> {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        tcp.set_nonblocking(true)?;
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        udp.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { tcp, udp, stop: AtomicBool::new(false), called: AtomicUsize::new(0) })
    }

    fn tcp(&self) -> Result<String> {
        Ok(self.tcp.local_addr()?.to_string())
    }

    fn udp(&self) -> Result<String> {
        Ok(self.udp.local_addr()?.to_string())
    }

    /// Serves while `play` runs.
    fn serve<T>(&self, play: impl FnOnce() -> Result<T>) -> Result<T> {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !self.stop.load(Ordering::Relaxed) {
                    match self.tcp.accept() {
                        Ok((stream, _)) => {
                            self.called.fetch_add(1, Ordering::Relaxed);
                            self.echo(scope, stream);
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            });
            scope.spawn(|| {
                let mut bytes = [0; 2_048];
                while !self.stop.load(Ordering::Relaxed) {
                    if let Ok((len, from)) = self.udp.recv_from(&mut bytes) {
                        let _ = self.udp.send_to(&bytes[..len], from);
                    }
                }
            });
            let _stop = StopAtEnd(&self.stop);
            play()
        })
    }

    fn echo<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, mut stream: TcpStream) {
        scope.spawn(move || {
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
            let mut bytes = [0; 2_048];
            while !self.stop.load(Ordering::Relaxed) {
                match stream.read(&mut bytes) {
                    Ok(0) => return,
                    Ok(len) if stream.write_all(&bytes[..len]).is_err() => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
    }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client of a TCP service.
struct Flow(TcpStream);

impl Flow {
    /// Connects and is answered.
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TRAVEL)?;
        stream.set_read_timeout(Some(TRAVEL))?;
        let mut flow = Self(stream);
        flow.ping()?;
        Ok(flow)
    }

    fn ping(&mut self) -> Result<()> {
        self.0.write_all(b"x")?;
        let mut answer = [0];
        self.0.read_exact(&mut answer)?;
        Ok(())
    }

    /// Returns how long it takes from `since` until it is over, as the client sees it without saying a word.
    fn ended(mut self, since: Instant, limit: Duration) -> Result<Duration> {
        self.0.set_read_timeout(Some(limit))?;
        match self.0.read(&mut [0]) {
            Ok(0) => Ok(since.elapsed()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(since.elapsed()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(Broken(format!("the flow lives {limit:?} after the change")).into())
            }
            other => bail!("the flow reads {other:?}"),
        }
    }
}

/// A client of a UDP service, with its flow open.
fn datagrams(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(SOON))?;
    for _ in 0..10 {
        socket.send(b"x")?;
        if socket.recv(&mut [0; 16]).is_ok() {
            return Ok(socket);
        }
    }
    bail!("no answer over UDP")
}

fn counter(node: &Node, name: &str) -> Result<u64> {
    Ok(node.status()?["counters"][name].as_u64().unwrap_or_default())
}

fn vip(node: &Node, name: &str, port: u16) -> Result<SocketAddr> {
    let address = node.resolver()?.address(&format!("{name}.mesh.internal"), TRAVEL)?;
    let service = name.split('.').next().unwrap_or(name);
    until(&format!("{service} usable"), TRAVEL, || {
        Ok(node.json(&["services", service])?.to_string().contains("\"usable\""))
    })?;
    Ok((address, port).into())
}

/// Writes the configuration of a daemon and lets it read that.
fn configure(node: &Node, text: &str) -> Result<()> {
    fs::write(node.config_file(), text)?;
    node.ok(&["reload"]).map(drop)
}

/// Looks that living flows and names are gone soon after a change; returns the longest wait.
fn all_gone(caller: &Node, since: Instant, flow: Flow, names: &[&str]) -> Result<Duration> {
    let mut longest = flow.ended(since, SOON)?;
    let resolver = caller.resolver()?;
    for name in names {
        resolver.gone(&format!("{name}.mesh.internal"), SOON.saturating_sub(since.elapsed()))?;
        longest = longest.max(since.elapsed());
    }
    until("the end of the UDP flow", SOON.saturating_sub(since.elapsed()), || {
        Ok(counter(caller, "gossamer_udp_flows_open")? == 0)
    })?;
    let took = since.elapsed();
    promise!(took <= SOON, "it took {took:?}");
    Ok(longest.max(took))
}

fn closes(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let programs = Programs::new()?;
        let mut server = lab.node("server")?;
        server.init("west")?;
        let mut caller = lab.node("caller")?;
        fs::write(caller.config_file(), "import = [\"*@west\"]\n")?;
        caller.join(&server.token(&["--group", "east"])?)?;
        let (orders, echo) = (format!("orders:{ORDERS}"), format!("echo:{ECHO}/udp"));
        let (tcp, udp) = (programs.tcp()?, programs.udp()?);
        let offer = |to: &[&str]| -> Result<()> {
            server.ok(&[&["expose", &orders, &tcp], to].concat())?;
            server.ok(&[&["expose", &echo, &udp], to].concat()).map(drop)
        };
        programs.serve(|| {
            offer(&["--to", "east"])?;
            let open = || -> Result<(Flow, UdpSocket)> {
                Ok((Flow::open(vip(&caller, "orders", ORDERS)?)?, datagrams(vip(&caller, "echo", ECHO)?)?))
            };
            let (flow, _udp) = open()?;
            let since = Instant::now();
            offer(if run.sabotaged { &["--to", "east"] } else { &[] })?;
            let names = ["orders", "orders.west", "echo", "echo.west"];
            let removal = all_gone(&caller, since, flow, &names)?;
            promise!(counter(&server, "gossamer_flows_revoked_total")? == 2, "the server did not end both flows");

            offer(&["--to", "east"])?;
            let mut kept = Flow::open(vip(&caller, "orders.west", ORDERS)?)?;
            let (flow, _udp) = open()?;
            let since = Instant::now();
            configure(&caller, if run.sabotaged { "import = [\"*@west\"]\n" } else { "import = []\n" })?;
            let import = all_gone(&caller, since, flow, &["orders", "echo"])?;
            kept.ping().context("the flow by orders.west")?;
            Flow::open(vip(&caller, "orders.west", ORDERS)?)?;
            for (node, words) in [(&server, "no longer allowed"), (&caller, "no longer imported")] {
                promise!(node.whole_log().contains(words), "no access line of {} says {words:?}", node.name);
            }
            Ok(format!(
                "TCP and UDP flows and their names gone {:.0} ms after expose without --to began, {:.0} ms after reload without the import began",
                removal.as_secs_f64() * 1_000.0,
                import.as_secs_f64() * 1_000.0
            ))
        })
    })
}

/// A client in one process for as long as it runs: asks the daemon's DNS, connects, says what it met when that changes.
const CLIENT: &str = r#"
import socket, struct, sys, time
dns, port, names = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3]), sys.argv[4:]
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(1)
number = 0

def look(name):
    global number
    number = (number + 1) % 65536
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    asking.sendto(struct.pack(">6H", number, 256, 1, 0, 0, 0) + labels + b"\0\0\1\0\1", dns)
    while True:
        reply = asking.recv(4096)
        if reply[:2] == struct.pack(">H", number):
            break
    if struct.unpack(">H", reply[6:8])[0] == 0:
        return "absent"
    address = socket.inet_ntoa(reply[-4:]) if reply[10:12] == b"\0\0" else None
    if address is None:
        end = len(reply) - 11
        address = socket.inet_ntoa(reply[end - 4:end])
    with socket.create_connection((address, port), 1) as flow:
        flow.settimeout(1)
        return flow.recv(64).decode().strip() or "nothing"

seen = {}
while True:
    for name in names:
        try:
            now = look(name)
        except OSError as error:
            now = "failed"
        if seen.get(name) != now:
            seen[name] = now
            print(name.split(".")[0], now, flush=True)
    time.sleep(0.01)
"#;

/// The client and the lines it says.
struct Watcher {
    child: Child,
    lines: Receiver<String>,
}

impl Watcher {
    fn start(node: &Node, names: &[&str]) -> Result<Self> {
        let dns = node.dns_address()?;
        let mut child = Command::new("python3")
            .args(["-c", CLIENT, &dns.ip().to_string(), &dns.port().to_string(), &ORDERS.to_string()])
            .args(names)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting python3; install it")?;
        let (tell, lines) = channel();
        let output = child.stdout.take().context("its output")?;
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// Waits until it says this; returns how long that took.
    fn says(&self, what: &str, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        loop {
            match self.lines.recv_timeout(limit.saturating_sub(began.elapsed())) {
                Ok(line) if line == what => return Ok(began.elapsed()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Broken(format!("the client did not see {what:?} within {limit:?}")).into());
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the client has ended"),
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn never_restarted(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        use crate::targets::{Manner, Target, serve_all};
        let greeters = [Target::new(Manner::Greets("west\n"))?, Target::new(Manner::Greets("north\n"))?];
        let ports = [greeters[0].port()?, greeters[1].port()?];
        let mut server = lab.node("server")?;
        server.init("west")?;
        let mut caller = lab.node("caller")?;
        fs::write(caller.config_file(), "import = [\"*@*\"]\n")?;
        caller.join(&server.token(&[])?)?;
        serve_all(&greeters, || {
            server.ok(&["expose", &format!("plain:{ORDERS}"), &ports[0].to_string()])?;
            // Whether the name has come to the caller yet is not what the client is for.
            caller.resolver()?.address("plain.mesh.internal", TRAVEL)?;
            let client = Watcher::start(&caller, &["plain.mesh.internal", "orders.mesh.internal"])?;
            client.says("plain west", TRAVEL)?;
            client.says("orders absent", TRAVEL)?;
            let pid = client.child.id();

            let mut north = lab.node("north")?;
            north.join(&server.token(&["--group", "north"])?)?;
            caller.sees("north", "alive", TRAVEL)?;
            if run.sabotaged {
                caller.signal(Signal::SIGSTOP)?;
            }
            let orders = format!("orders:{ORDERS}");
            let target = ports[1].to_string();
            let mut waits = Vec::new();
            let mut change = |node: &Node, arguments: &[&str], said: &str| -> Result<()> {
                let since = Instant::now();
                node.ok(arguments)?;
                let seen = client.says(said, if run.sabotaged { SOON } else { TRAVEL });
                if run.sabotaged {
                    caller.signal(Signal::SIGCONT)?;
                }
                seen?;
                waits.push(since.elapsed());
                Ok(())
            };
            change(&north, &["expose", &orders, &target, "--to", "west"], "orders north")?;
            change(&north, &["expose", &orders, &target], "orders absent")?;
            change(&north, &["expose", &orders, &target, "--allow", "node:caller"], "orders north")?;
            fs::write(server.config_file(), "[policy]\ndefault = \"deny\"\n")?;
            change(&server, &["reload"], "plain absent")?;
            fs::write(server.config_file(), "")?;
            change(&server, &["reload"], "plain west")?;
            promise!(client.child.id() == pid, "the client is another process");
            let longest = waits.iter().max().copied().unwrap_or_default();
            promise!(longest <= SOON, "it took {longest:?}");
            Ok(format!(
                "{} changes seen by process {pid} from a new group's first service to a policy and back, the latest {:.0} ms after its command began",
                waits.len(),
                longest.as_secs_f64() * 1_000.0
            ))
        })
    })
}

/// What the scan may add to the memory of the daemon, KiB.
const GROWTH_KIB: u64 = 32 * 1_024;

fn memory_kib(node: &Node) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn request(service: &str, instance: &str, port: PortName, transport: Transport) -> Result<OpenRequest> {
    Ok(OpenRequest { flow: 7, service: service.parse()?, instance: instance.parse()?, port, transport })
}

/// A member that joined and whose daemon never ran.
fn intruder(lab: &Lab, by: &Node, group: &str) -> Result<Credentials> {
    let node = lab.node("intruder")?;
    node.ok(&["join", &by.token(&["--group", group])?, "--node", "intruder", "--no-start"])?;
    Ok(Credentials::of_identity(&identity_of(&node.state_dir())?))
}

/// Every second id is one of an instance, every other one a port of the instance that is there: all but one of each.
fn ids(is_sabotaged: bool) -> impl Iterator<Item = Result<OpenRequest>> {
    let real = move |number: u16| number == ORDERS && !is_sabotaged;
    // The one that would be answered comes while a member may still ask for what is not there.
    (ORDERS..=u16::MAX).chain(1..ORDERS).map(move |number| {
        let transport = if number % 4 < 2 { Transport::Tcp } else { Transport::Udp };
        match number % 2 {
            1 => request("orders", &format!("server-{number}"), ORDERS.into(), transport),
            _ if real(number) => request("orders", "server", PortName::from(number), Transport::Udp),
            _ => request("orders", "server", PortName::from(number), Transport::Tcp),
        }
    })
}

fn scan(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let programs = Programs::new()?;
        let mut server = lab.node("server")?;
        server.init("west")?;
        let mut caller = lab.node("caller")?;
        caller.join(&server.token(&[])?)?;
        let member = intruder(lab, &server, "west")?;
        programs.serve(|| {
            server.ok(&["expose", &format!("orders:{ORDERS}"), &programs.tcp()?])?;
            let mut honest = Flow::open(vip(&caller, "orders", ORDERS)?)?;
            let called = programs.called.load(Ordering::Relaxed);
            let served = counter(&server, "gossamer_flows_opened_total{client=\"peer\"}")?;
            let before = memory_kib(&server)?;
            let began = Instant::now();
            let found = search(server.mesh_address()?, &member, ids(run.sabotaged))?;
            let took = began.elapsed();
            let grown = memory_kib(&server)?.saturating_sub(before);
            let opened = counter(&server, "gossamer_flows_opened_total{client=\"peer\"}")? - served;
            let dialled = programs.called.load(Ordering::Relaxed) - called;
            // The daemon looks each 5 s whether the program is there.
            let checks = usize::try_from(took.as_secs() / 5)? + 2;
            promise!(
                opened == 0 && dialled <= checks,
                "{opened} flows were opened and the program was called {dialled} times, {checks} of them checks"
            );
            let denied = OpenStatus::Denied.code();
            promise!(
                found.answers.keys().all(|status| *status == denied),
                "an id is answered otherwise: {:?}",
                found.answers
            );
            let asked = found.answers.values().sum::<usize>() + found.unanswered;
            ensure!(asked == usize::from(u16::MAX), "{asked} were asked");
            promise!(grown <= GROWTH_KIB, "the scan cost {grown} KiB");
            let refused = counter(&server, "gossamer_flows_refused_total{reason=\"denied\"}")?;
            promise!(refused >= 4_096, "{refused} refusals were counted");
            let closed = counter(&server, "gossamer_flows_refused_total{reason=\"search\"}")?;
            promise!(closed > 0 && !found.closed.is_empty(), "its connection was not closed: {:?}", found.closed);
            let status = server.status()?["findings"].to_string();
            promise!(status.contains("node intruder asks over and over"), "status does not name it: {status}");
            honest.ping().context("the flow of the other member")?;
            Flow::open(vip(&caller, "orders", ORDERS)?).context("a new flow of the other member")?;
            Ok(format!(
                "65535 ids in {:.1} s: 0 dialled, {} answered as denied, {} cut off by {closed} closed connections, {grown} KiB",
                took.as_secs_f64(),
                found.answers.values().sum::<usize>(),
                found.unanswered
            ))
        })
    })
}

/// How much the medians of two answers may differ.
const SAME_TIME: Duration = Duration::from_micros(100);

fn alike(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut server = lab.node("server")?;
        server.init("west")?;
        let member = intruder(lab, &server, "east")?;
        let visible: &[&str] = if run.sabotaged { &["--to", "east"] } else { &[] };
        // Nobody listens there, which only who may call learns.
        server.ok(&[&["expose", &format!("secret:{ORDERS}"), "127.0.0.1:9"], visible].concat())?;
        let port = || PortName::from(ORDERS);
        let requests = [
            request("secret", "server", port(), Transport::Tcp)?,
            request("nosuch", "server", port(), Transport::Tcp)?,
            request("secret", "nosuch", port(), Transport::Tcp)?,
            request("secret", "server", PortName::from(1), Transport::Tcp)?,
            request("secret", "server", port(), Transport::Udp)?,
        ];
        // Below what makes a member suspicious.
        let times = 400;
        let answers = compare(server.mesh_address()?, &member, &requests, times)?;
        let (denied, _) = &answers[0];
        ensure!(!denied.is_empty(), "no answer");
        for ((bytes, _), request) in answers.iter().zip(&requests) {
            promise!(bytes == denied, "{request:?} is answered {bytes:?}, a denied one {denied:?}");
        }
        promise!(denied[0] == OpenStatus::Denied.code(), "the answer is {denied:?}");
        let medians: Vec<_> = answers.iter().map(|(_, times)| median(times.clone())).collect();
        let (least, most) = (medians.iter().min(), medians.iter().max());
        let apart = most.zip(least).map(|(most, least)| *most - *least).unwrap_or_default();
        promise!(apart <= SAME_TIME, "the medians are {apart:?} apart: {medians:?}");
        explained(&server)?;
        Ok(format!(
            "5 kinds of requests, {times} each: the same {} bytes, medians {:.0} us and at most {:.0} us apart; exit 5 and 4, and the log, tell them apart",
            denied.len(),
            medians[0].as_secs_f64() * 1e6,
            apart.as_secs_f64() * 1e6
        ))
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Looks that the own node's command line and log tell denied and unknown apart.
fn explained(server: &Node) -> Result<()> {
    for (service, code, words) in
        [("secret", 5, "neither --to nor --allow names it"), ("nosuch", 4, "is not registered")]
    {
        let told = server.cli(&["policy", "test", "group:east", service])?;
        let said = format!("{}{}", told.stdout, told.stderr);
        promise!(told.code == Some(code), "policy test of {service} exits {:?}: {said}", told.code);
        promise!(said.contains(words), "policy test of {service} says {said}");
    }
    let shown = server.ok(&["policy", "show"])?;
    promise!(shown.contains("secret") && shown.contains("group west"), "policy show says {shown}");
    let log = server.whole_log();
    for words in ["it is of another group", "no such service"] {
        let says = |line: &str| line.contains("reason=\"denied\"") && line.contains(words);
        promise!(log.lines().any(says), "no access line says denied and {words:?}");
    }
    Ok(())
}

fn default_deny(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let programs = Programs::new()?;
        let mut server = lab.node("server")?;
        server.init("west")?;
        let mut caller = lab.node("caller")?;
        caller.join(&server.token(&["--label", "team=shop"])?)?;
        let orders = format!("orders:{ORDERS}");
        let target = programs.tcp()?;
        programs.serve(|| {
            server.ok(&["expose", &orders, &target])?;
            let flows =
                [Flow::open(vip(&caller, "orders", ORDERS)?)?, Flow::open(vip(&server, "orders", ORDERS)?)?];
            let deny = if run.sabotaged { "[policy]\ndefault = \"group\"\n" } else { "[policy]\ndefault = \"deny\"\n" };
            let changed = Instant::now();
            configure(&server, deny)?;
            for flow in flows {
                flow.ended(changed, SOON)?;
            }
            for node in [&caller, &server] {
                node.resolver()?.gone("orders.mesh.internal", SOON.saturating_sub(changed.elapsed()))?;
            }
            let took = changed.elapsed();
            promise!(took <= SOON, "it took {took:?}");

            server.ok(&["expose", &orders, &target, "--allow", "label:team=shop"])?;
            let mut named = Flow::open(vip(&caller, "orders", ORDERS)?)?;
            test(&server, "caller", 0, "--allow label:team=shop")?;
            test(&server, "server", 5, "policy.default is deny")?;

            fs::write(server.config_file(), "[policy]\ndefault = \"deny\"\naudit = true\n")?;
            server.signal(Signal::SIGHUP)?;
            until("audit", TRAVEL, || Ok(server.json(&["policy", "show"])?["audit"] == true))?;
            Flow::open(vip(&server, "orders", ORDERS)?).context("a call that would be denied")?;
            test(&server, "server", 0, "policy.default is deny")?;
            let audited = counter(&server, "gossamer_flows_audited_total")?;
            promise!(audited > 0, "nothing is counted");
            promise!(server.whole_log().contains("flow would be denied"), "the log does not tell of it");

            let faulty = "listen = \"x\"\n[policy]\ndefault = \"dany\"\naudit = \"no\"\n[log]\nlevle = \"info\"\n";
            fs::write(server.config_file(), faulty)?;
            let told = server.cli(&["reload"])?;
            let lines = told.stderr.lines().filter(|line| line.starts_with("error: ")).count();
            promise!(told.code == Some(1) && lines == 4, "reload exits {:?}: {}", told.code, told.stderr);
            // The command line would stumble over the file itself.
            let (_, running) = Api::connect(&server.socket())?.request("GET", "/v1/policy", &Value::Null)?;
            promise!(running.contains("\"audit\":true"), "a faulty file changed something: {running}");
            named.ping().context("the flow that a rule names")?;
            Ok(format!(
                "2 flows and 2 names closed {:.0} ms after the reload began, a rule on a certified label opens again, {audited} audited, {lines} faults named at once",
                took.as_secs_f64() * 1_000.0
            ))
        })
    })
}

fn test(node: &Node, who: &str, code: i32, words: &str) -> Result<()> {
    let told = node.cli(&["policy", "test", who, "orders"])?;
    promise!(
        told.code == Some(code) && told.stdout.contains(words),
        "policy test {who} orders exits {:?}: {}{}",
        told.code,
        told.stdout,
        told.stderr
    );
    Ok(())
}
