//! A pod beside the daemon of its machine: let in by `vip.clients`, and nobody else is.
//!
//! Owns: the pod, a neighbour with the same route, what each gets. Must not know: how the daemon judges.
//! Driven by: `evidence`.
//!
//! Both are network namespaces behind a link of their own, as a container is; the pool is routed to the machine and
//! there to its loopback, as `deploy/coredns` says.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Ci, Needs, Row, Run};
use crate::dnsq::{RecordType, Resolver, question};
use crate::netns::Namespace;
use crate::process::{Lab, Node};
use crate::promise;
use crate::targets::{Manner, Target, serve_all};

pub(super) const ROW: Row = Row {
    name: "5.2-pod",
    promise: "A pod with an address and a link of its own asks the daemon of its machine and reaches a service through its virtual address when vip.clients has the pod's network; without that, and for a neighbour with the same route outside of it, no byte comes back over UDP or TCP, and both are counted",
    sabotage: "vip.clients has the network of the neighbour in place of the pod's",
    // For network namespaces.
    needs: Needs::Root,
    ci: Ci::Runs,
    check: pod,
};

const POOL: &str = "240.80.0.0/16";
const NAME: &str = "web.mesh.internal";
const GREETING: &str = "hello of the service\n";
/// The port of the service; its program has another one.
const PORT: u16 = 8_080;
const TRAVEL: Duration = Duration::from_secs(10);
/// How long something may come back to who should get nothing; answers take milliseconds here.
const SILENCE: Duration = Duration::from_millis(500);

/// Questions over UDP of one try, and with the one over TCP.
const DATAGRAMS: u64 = 2;
const QUESTIONS: u64 = DATAGRAMS + 1;

/// Somebody behind a link of the machine.
struct Guest {
    namespace: Namespace,
    network: &'static str,
}

/// What a guest got, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Got {
    datagrams: usize,
    dns_over_tcp: usize,
    vip: usize,
}

const NOTHING: Got = Got { datagrams: 0, dns_over_tcp: 0, vip: 0 };

fn pod(run: &Run) -> Result<String> {
    let machine = Namespace::new("machine")?;
    machine.ip(&["route", "add", "local", POOL, "dev", "lo"])?;
    let pod = Guest::new(&machine, "pod", "10.244.0.0/16", [10, 244, 7])?;
    let neighbour = Guest::new(&machine, "near", "192.0.2.0/24", [192, 0, 2])?;
    let target =
        machine.enter(|| Target::at((Ipv4Addr::LOCALHOST, 0).into(), Manner::Greets(GREETING)))??;
    let program = format!("127.0.0.1:{}", target.port()?);
    run.scenario(|lab| {
        serve_all(std::slice::from_ref(&target), || play(run, lab, &machine, [&pod, &neighbour], &program))
    })
}

fn play(
    run: &Run,
    lab: &Lab,
    machine: &Namespace,
    [pod, neighbour]: [&Guest; 2],
    program: &str,
) -> Result<String> {
    let mut node = lab.node_in("machine", machine)?;
    fs::write(node.config_file(), format!("[vip]\npool = \"{POOL}\"\n"))?;
    node.init("default")?;
    node.ok(&["expose", &format!("web:{PORT}"), program])?;
    let (dns, vip) = open(&node)?;
    let shut = [pod.tries(dns, vip)?, neighbour.tries(dns, vip)?];
    promise!(shut == [NOTHING; 2], "without vip.clients the pod and the neighbour got {shut:?}");
    let turned_away = counted(&node)?;

    node.stop()?;
    let network = if run.sabotaged { neighbour.network } else { pod.network };
    fs::write(node.config_file(), format!("[vip]\npool = \"{POOL}\"\nclients = [\"{network}\"]\n"))?;
    node.run()?;
    let (dns, vip) = open(&node)?;
    let (inside, outside) = (pod.tries(dns, vip)?, neighbour.tries(dns, vip)?);
    promise!(inside.datagrams > 0 && inside.dns_over_tcp > 0, "the pod asks and got {inside:?}");
    promise!(inside.vip == GREETING.len(), "the pod connects to the service and got {inside:?}");
    promise!(outside == NOTHING, "the neighbour got {outside:?}");
    let found = pod.namespace.enter(|| Resolver::new(dns)?.ask(NAME, RecordType::A))??.addresses();
    promise!(
        found.iter().all(|ip| vip.ip() == *ip) && found.len() == 1,
        "the pod finds {found:?}, not {vip}"
    );
    let after = counted(&node)?;
    let each = [QUESTIONS, 1];
    promise!(
        turned_away == each.map(|count| 2 * count) && after == each,
        "counted as turned away: {turned_away:?}, later {after:?}"
    );
    Ok(format!(
        "the pod found {} and had the {} bytes of the service; 0 bytes to both before and to the neighbour after; counted {} questions and {} connections before, {} and {} after",
        vip.ip(),
        inside.vip,
        turned_away[0],
        turned_away[1],
        after[0],
        after[1]
    ))
}

/// Waits until the machine itself finds the service; returns where DNS is answered and where the service is.
fn open(node: &Node) -> Result<(SocketAddr, SocketAddr)> {
    let resolver = node.resolver()?;
    let vip = resolver.address(NAME, TRAVEL)?;
    Ok((resolver.server(), (vip, PORT).into()))
}

/// Questions and connections that were not taken because of their source.
fn counted(node: &Node) -> Result<[u64; 2]> {
    let counters = &node.status()?["counters"];
    let read = |name: &str| counters[name].as_u64().with_context(|| format!("no counter {name}"));
    Ok([
        read("gossamer_dns_refused_sources_total")?,
        read("gossamer_flows_refused_total{reason=\"stranger\"}")?,
    ])
}

impl Guest {
    /// Joins a new namespace to the machine; its route to the pool leads there.
    fn new(machine: &Namespace, label: &str, network: &'static str, [a, b, c]: [u8; 3]) -> Result<Self> {
        let namespace = Namespace::new(label)?;
        let [gateway, own] = [1, 2].map(|last| Ipv4Addr::new(a, b, c, last).to_string());
        let port = format!("to-{label}");
        let ends = ["type", "veth", "peer", "name", &port, "netns", machine.name()];
        namespace.ip(&[&["link", "add", "eth0"], &ends[..]].concat())?;
        machine.ip(&["addr", "add", &format!("{gateway}/24"), "dev", &port])?;
        machine.ip(&["link", "set", &port, "up"])?;
        namespace.ip(&["addr", "add", &format!("{own}/24"), "dev", "eth0"])?;
        namespace.ip(&["link", "set", "eth0", "up"])?;
        namespace.ip(&["route", "add", POOL, "via", &gateway])?;
        Ok(Self { namespace, network })
    }

    /// Asks over UDP and TCP and connects to the service.
    fn tries(&self, dns: SocketAddr, vip: SocketAddr) -> Result<Got> {
        self.namespace.enter(|| {
            let ask = question(1, NAME, RecordType::A)?;
            let framed = [&u16::try_from(ask.len())?.to_be_bytes()[..], &ask].concat();
            Ok(Got { datagrams: asked(dns, &ask)?, dns_over_tcp: said(dns, &framed)?, vip: said(vip, &[])? })
        })?
    }
}

/// Asks twice over UDP and returns how many bytes came back.
fn asked(server: SocketAddr, ask: &[u8]) -> Result<usize> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(SILENCE))?;
    let (mut bytes, mut sum) = ([0; 4_096], 0);
    for _ in 0..DATAGRAMS {
        socket.send_to(ask, server).context("the guest has no route")?;
    }
    while let Ok(length) = socket.recv(&mut bytes) {
        sum += length;
    }
    Ok(sum)
}

/// Connects, says something and returns how many bytes came back until the end, a reset or silence.
fn said(server: SocketAddr, words: &[u8]) -> Result<usize> {
    // The kernel completes the connection before the daemon sees from whom it is, and may say so after its reset.
    let mut stream = match TcpStream::connect_timeout(&server, TRAVEL) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(0),
        connected => connected.context("the guest has no route")?,
    };
    stream.set_read_timeout(Some(SILENCE))?;
    let _ = stream.write_all(words); // it may be reset already
    let (mut bytes, mut sum) = ([0; 4_096], 0);
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        sum += length;
    }
    Ok(sum)
}
