//! What a relay can see: of a flow that it carries, and of a join that it leads.
//!
//! Owns: the markers, the strangers that ask without end. Must not know: the bytes of circuits. Driven by: `evidence`.
//! Needs root: each machine is a network namespace.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use gossamer_wire::join;
use gossamer_wire::token::Token;
use rand::RngExt as _;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, version};

use super::addresses::metric;
use super::carried::kept;
use super::circuits::{Hidden, behind};
use super::steady::memory_kib;
use super::{Ci, Needs, Row, Run};
use crate::capture::{Capture, MARKER, Packets};
use crate::needles::Secret;
use crate::netns::{Namespace, Segment};
use crate::planted::Worktree;
use crate::process::{Lab, Node};
use crate::promise;
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.3-capture",
        promise: "While 1,000 random markers of 16 bytes pass a circuit each way, a capture of all packets at the relay holds 0 of the 2,000 and not the name of the service; one between the client and its own daemon holds them all",
        sabotage: "one marker is sent to the relay beside the circuit",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: capture,
    },
    Row {
        name: "7.3-liar",
        promise: "A relay that flips a bit, exchanges two parts, leaves a byte out or ends cleanly too early, once in each direction of a circuit: of 24 transfers of 512 KiB through it each ends with a reset at both ends, and no program reads a byte that was not written there",
        sabotage: "the relay is honest",
        needs: Needs::Root,
        ci: Ci::Skips("it builds the program once more, with a relay that lies"),
        check: liar,
    },
    Row {
        name: "7.5-join-relay",
        promise: "An issuer that nobody can dial makes a token that names its relay; a joiner that can dial only the relay is a member within 20 s and each sees the other alive; a capture at the relay holds no byte of the token's secret in any form; a stranger that opens such connections without end for 10 s has at most 4 at once and 14 in all, the relay grows by less than 16 MiB, another joiner joins meanwhile, the stranger's are gone 20 s later, and the certificate of the first joiner is renewed by then",
        sabotage: "the token is sent to the relay in the clear as well",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: join_relay,
    },
];

const SEEN: Duration = Duration::from_secs(20);
/// Markers each way.
const MARKERS: usize = 1_000;
const ASKED: Duration = Duration::from_secs(10);
/// How long certificates of the issuer last: a third of it until the joiner renews.
const LIFETIME: &str = "40s";
/// What the relay may grow by while a stranger asks, KiB.
const GROWTH_KIB: u64 = 16 << 10;
/// Where nobody listens.
const DISCARD: u16 = 9;

fn capture(run: &Run) -> Result<String> {
    let segment = Segment::new(4)?;
    let (public, routers) = segment.machines().split_at(2);
    let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
    run.scenario(|lab| {
        let mesh = kept("a mesh", Hidden::new(lab, public, [&left, &right], true))?;
        let ((mut client, mut program), _) = kept("a flow to b", mesh.call(&left, SEEN))?;
        for end in [&client, &program] {
            end.set_nodelay(true)?;
        }
        let path = mesh.nodes[0].ok(&["status", "--flows", "--json"])?;
        promise!(path.contains("relay relay0"), "the flow takes another path: {path}");
        let (at_relay, at_client) = (Capture::start(&public[1])?, Capture::start(&left)?);
        let mut random = rand::rng();
        let markers: Vec<[u8; MARKER]> = (0..2 * MARKERS).map(|_| random.random()).collect();
        let mut got = [0; MARKER];
        for pair in markers.chunks_exact(2) {
            client.write_all(&pair[0])?;
            program.read_exact(&mut got)?;
            promise!(got == pair[0], "a marker arrived as another one");
            program.write_all(&pair[1])?;
            client.read_exact(&mut got)?;
            promise!(got == pair[1], "a marker came back as another one");
        }
        if run.sabotaged {
            let relay = SocketAddr::from((Segment::address(1), DISCARD));
            left.enter(|| UdpSocket::bind("0.0.0.0:0")?.send_to(&markers[7], relay))??;
        }
        let (relay, client) = (at_relay.stop()?, at_client.stop()?);
        let (there, here) = (relay.found(&markers), client.found(&markers));
        promise!(here == 2 * MARKERS, "the capture at the client holds {here} markers only");
        let (packets, bytes) = relay.size();
        promise!(bytes > 2 * MARKERS * MARKER, "the capture at the relay has {bytes} bytes only");
        promise!(there == 0, "the capture at the relay holds {there} markers");
        promise!(!relay.hold(b"on-b"), "the capture at the relay holds the name of the service");
        Ok(format!(
            "0 of {} markers and not the name in {packets} packets, {} KiB, at the relay; {here} at the client",
            2 * MARKERS,
            bytes >> 10
        ))
    })
}

fn liar(run: &Run) -> Result<String> {
    let tree = if run.sabotaged { None } else { Some(lying(run)?) };
    let mut detected = Vec::new();
    for lie in LIES {
        let segment = Segment::new(4)?;
        let (public, routers) = segment.machines().split_at(2);
        let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
        let found = run.scenario(|lab| {
            let of_relay = tree.as_ref().map_or_else(|| Ok(lab.clone()), |(_, program)| Lab::new(program))?;
            let relay = |name: &str, machine: &Namespace| {
                Ok(of_relay.node_in(name, machine)?.with("GOSSAMER_LIE", lie))
            };
            let mesh = kept("a mesh", Hidden::with(lab, public, [&left, &right], true, relay))?;
            (0..TRANSFERS).map(|number| transfer(&mesh, &left, lie, number)).sum::<Result<usize>>()
        })?;
        promise!(found == TRANSFERS, "{lie}: {found} of {TRANSFERS} transfers were reset at both ends");
        detected.push(format!("{lie} {found} of {TRANSFERS}"));
    }
    Ok(format!("{}; no wrong byte", detected.join(", ")))
}

/// What a relay does to a circuit.
const LIES: [&str; 4] = ["flip", "reorder", "drop", "end"];
/// Transfers with each.
const TRANSFERS: usize = 6;
const TRANSFERRED: usize = 512 << 10;

/// Builds the program with a relay that lies.
fn lying(run: &Run) -> Result<(Worktree, PathBuf)> {
    let tree = Worktree::with_patch(&run.root, "7-liar.patch")?;
    let program = run.planted(&tree)?;
    Ok((tree, program))
}

/// Sends bytes through the relay in one direction; returns 1 when both ends see a reset, 0 when all arrives.
fn transfer(mesh: &Hidden, machine: &Namespace, lie: &str, number: usize) -> Result<usize> {
    let ((mut client, mut program), _) = kept("a flow to b", mesh.call(machine, 2 * SEEN))?;
    let mut sent = vec![0; TRANSFERRED];
    rand::rng().fill(&mut sent[..]);
    let is_there = number.is_multiple_of(2);
    let (from, to) = if is_there { (&mut client, &mut program) } else { (&mut program, &mut client) };
    let (got, ended, written) = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            from.write_all(&sent)?;
            // It sees the reset here, or before.
            let ended = from.shutdown(Shutdown::Write);
            from.read_to_end(&mut Vec::new()).map(|_| ()).and(ended)
        });
        let mut got = Vec::new();
        let ended = to.read_to_end(&mut got);
        to.shutdown(Shutdown::Both).ok();
        (got, ended, writing.join())
    });
    let written = written.map_err(|_| anyhow::anyhow!("the writer panicked"))?;
    promise!(sent.starts_with(&got), "{lie}: a program read bytes that nobody wrote");
    let Err(ended) = ended else {
        promise!(got.len() == sent.len(), "{lie}: a clean end after {} bytes", got.len());
        return Ok(0);
    };
    promise!(ended.kind() == ErrorKind::ConnectionReset, "{lie}: the reader sees {ended}");
    promise!(written.is_err(), "{lie}: the writer sees a clean end");
    Ok(1)
}

/// An issuer that nobody can dial, and the relay that leads to it.
struct Led {
    _first: Node,
    relay: Node,
    issuer: Node,
    /// The relay's TCP port.
    at: SocketAddr,
}

impl Led {
    fn new(lab: &Lab, first: &Namespace, relay: &Namespace, inner: &Namespace) -> Result<Self> {
        let (mut first, mut relay) = (lab.node_in("first", first)?, lab.node_in("relay", relay)?);
        let mut issuer = lab.node_in("issuer", inner)?.with("GOSSAMER_TRUST_LEAF_LIFETIME", LIFETIME);
        first.init("west")?;
        relay.join(&first.token(&["--role=relay"])?)?;
        issuer.join(&first.token(&[])?)?;
        first.ok(&["issuer", "add", "issuer"])?;
        let at = SocketAddr::from((Segment::address(1), 4_677));
        until("a token that names the relay", 2 * SEEN, || {
            let made = issuer.cli(&["token", "create"])?;
            Ok(made.stderr.contains(&format!("tcp {at} (a relay that leads here")))
        })?;
        Ok(Self { _first: first, relay, issuer, at })
    }

    fn outcome(&self, outcome: &str) -> Result<u64> {
        metric(&self.relay, &format!("gossamer_joiners_led_total{{outcome=\"{outcome}\"}}"))
    }

    /// Returns how many joiners the relay leads at the moment.
    fn open(&self) -> Result<u64> {
        // The ends first: what begins meanwhile does not make it less than none.
        let ended = ["ended", "broken", "excess"].map(|end| self.outcome(end));
        let ended: u64 = ended.into_iter().sum::<Result<_>>()?;
        Ok(self.outcome("begun")?.saturating_sub(ended))
    }

    /// Lets a stranger ask without end while another joiner joins. Returns what came of it, and the most that were led at once.
    fn pressed(&self, stranger: &Namespace, token: &str, second: &Node) -> Result<(Asked, u64)> {
        let grant = token.parse::<Token>()?.grant().clone();
        let hello = hello_for(&format!("{}.{}", grant.issuer, grant.mesh))?;
        let (stop, mut most) = (AtomicBool::new(false), 0);
        let asked = std::thread::scope(|scope| -> Result<Asked> {
            let asking = scope.spawn(|| stranger.enter(|| ask(self.at, &hello, &stop)));
            let mut watch = |until: Duration, began: Instant| -> Result<()> {
                while began.elapsed() < until {
                    most = most.max(self.open()?);
                    std::thread::sleep(Duration::from_millis(50));
                }
                Ok(())
            };
            let watched = (|| -> Result<()> {
                let began = Instant::now();
                watch(ASKED / 2, began)?;
                let joined = second.ok(&["join", token, "--node", "second", "--no-start"]);
                kept("a join beside the stranger", joined)?;
                watch(ASKED, began)
            })();
            stop.store(true, Ordering::Relaxed);
            let asked = asking.join().map_err(|_| anyhow::anyhow!("the stranger panicked"))?;
            watched?;
            asked?
        })?;
        // One more is the other joiner's.
        promise!((1..=5).contains(&most), "{most} strangers were led at once");
        promise!(asked.led <= 14, "{} connections of one source were led", asked.led);
        let refused = asked.refused as u64;
        let counted = self.outcome("per_source")? + self.outcome("pace")?;
        promise!(refused > 0 && counted >= refused, "{counted} of {refused} refused ones are counted");
        let gone = until("the end of the stranger's", SEEN, || Ok(self.open()? == 0));
        kept("the end of the stranger's", gone)?;
        Ok((asked, most))
    }
}

fn join_relay(run: &Run) -> Result<String> {
    let segment = Segment::new(6)?;
    let [first_at, relay_at, router, joiner_at, stranger_at, second_at] = segment.machines() else {
        unreachable!("six machines were made")
    };
    let inner = behind(router)?;
    // What a joiner reaches is the relay.
    for machine in [joiner_at, stranger_at, second_at] {
        machine.cut(Segment::address(0))?;
        machine.cut(Segment::address(2))?;
    }
    run.scenario(|lab| {
        let led = Led::new(lab, first_at, relay_at, &inner)?;
        let tokens = [led.issuer.token(&[])?, led.issuer.token(&[])?];
        let at_relay = Capture::start(relay_at)?;
        let mut joiner = lab.node_in("joiner", joiner_at)?;
        let (joined, met) = joins(&mut joiner, &tokens[0], &led.issuer)?;
        if run.sabotaged {
            joiner_at.enter(|| TcpStream::connect(led.at)?.write_all(tokens[0].as_bytes()))??;
        }
        let before = memory_kib(&led.relay)?;
        let second = lab.node_in("second", second_at)?;
        let (asked, most) = led.pressed(stranger_at, &tokens[1], &second)?;
        let grown = memory_kib(&led.relay)?.saturating_sub(before);
        promise!(grown < GROWTH_KIB, "the relay grew by {grown} KiB");
        let renewed = "gossamer_certificate_renewals_total{outcome=\"done\"}";
        let renewal = until("a renewal", SEEN, || Ok(metric(&joiner, renewed)? > 0));
        kept("a renewal through the relay", renewal)?;
        let packets = at_relay.stop()?;
        no_token(&packets, &tokens)?;
        let (number, bytes) = packets.size();
        Ok(format!(
            "joined after {:.1} s, seen after {:.1} s; no byte of 2 tokens in {number} packets, {} KiB; a stranger had {most} at once, {} in all, {} refused; the relay grew by {grown} KiB",
            joined.as_secs_f64(),
            met.as_secs_f64(),
            bytes >> 10,
            asked.led,
            asked.refused
        ))
    })
}

/// Joins, and waits until joiner and issuer see each other. Returns when each was so.
fn joins(joiner: &mut Node, token: &str, issuer: &Node) -> Result<(Duration, Duration)> {
    let began = Instant::now();
    kept("the join", joiner.join(token))?;
    let joined = began.elapsed();
    let met = until("each seeing the other alive", SEEN.saturating_sub(joined), || {
        let here = issuer.state_of(&joiner.name)?.as_deref() == Some("alive");
        Ok(here && joiner.state_of(&issuer.name)?.as_deref() == Some("alive"))
    });
    kept("each seeing the other alive", met)?;
    Ok((joined, began.elapsed()))
}

/// Looks for the secrets of tokens in packets that hold the name of their issuer, so that the joins are among them.
fn no_token(packets: &Packets, tokens: &[String]) -> Result<()> {
    for (number, token) in tokens.iter().enumerate() {
        let issuer = token.parse::<Token>()?.grant().issuer.to_string();
        promise!(
            packets.hold(issuer.as_bytes()),
            "the capture at the relay does not hold the name of the issuer"
        );
        let secret = Secret::token(&format!("token {number}"), token)?;
        let found = packets.iter().find_map(|packet| secret.found_in(packet));
        promise!(found.is_none(), "the capture at the relay holds token {number} as {found:?}");
    }
    Ok(())
}

/// Returns the first message of a joiner that asks for this name.
fn hello_for(name: &str) -> Result<Vec<u8>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![join::ALPN.to_vec()];
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned())?)?;
    let mut hello = Vec::new();
    tls.write_tls(&mut hello)?;
    Ok(hello)
}

/// What came of a stranger's connections.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    led: usize,
    refused: usize,
}

/// Begins as a joiner does without end, goes no further and lets none go that is led, until told to stop.
fn ask(relay: SocketAddr, hello: &[u8], stop: &AtomicBool) -> Result<Asked> {
    let (mut kept, mut asked) = (Vec::new(), Asked::default());
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(relay).context("the relay's port")?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut first = [0];
        // A record of a handshake, or an alert; the doorway just hangs up.
        if stream.write_all(hello).is_ok() && matches!(stream.read(&mut first), Ok(1)) {
            match first {
                [22] => {
                    asked.led += 1;
                    kept.push(stream);
                }
                _ => asked.refused += 1,
            }
        }
    }
    Ok(asked)
}
