//! Who is answered, what is believed, who may call.
//!
//! Owns: the attacks. Must not know: how they are fended off. Driven by: `evidence`.
//!
//! Each attack has its counterpart with everything in order, so that silence is a refusal and no accident.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use gossamer::identity::{Identity, InitRequest, NodeKey};
use gossamer::store::Store;
use gossamer_core::catalog::{CardContent, Catalog, CatalogConfig, DIRECT_UP_TO, Imports, Input};
use gossamer_core::time::Now;
use gossamer_wire::flow::{OpenRequest, OpenStatus};
use gossamer_wire::frame::{ALPN, AdvertCopy, Frame};
use gossamer_wire::{
    Health, MeshId, NodeId, Port, Routing, ServiceRecord, Transport, Tries, Visibility, join,
};

use super::{Ci, Needs, Row, Run};
use crate::dnsq::{RecordType, ResponseCode};
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{Credentials, open_flow, talk};
use crate::targets::{Manner, read_greeting, while_serving};
use crate::wait::wait_for;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "2.4-wrong-certificates",
        promise: "A node with a certificate of another root, a self-signed one or none gets 0 application bytes",
        sabotage: "the strangers show the certificate of a member",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: wrong_certificates,
    },
    Row {
        name: "2.4-bit-flips",
        promise: "With one bit flipped in each of 1,000 forwarded adverts, 0 are accepted",
        sabotage: "the bits are not flipped",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: bit_flips,
    },
    Row {
        name: "2.4-hidden-service",
        promise: "A service of group a not exported to b is absent from b's DNS, and opening it is refused",
        sabotage: "it is exported to everybody",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: hidden_service,
    },
];

/// How long a change may take to travel on an idle machine.
const TRAVEL: Duration = Duration::from_secs(10);

fn wrong_certificates(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut node = lab.node("a")?;
        node.init("default")?;
        let status = node.status()?;
        let mesh: MeshId = status["mesh"]["id"].as_str().context("a mesh id")?.parse()?;
        let server = node.mesh_address()?;
        let member = member(lab, &node, "member", &[])?;
        let control = talk(server, &member, ALPN)?;
        promise!(control.bytes > 0, "a member is not answered either: {control:?}");

        let strangers = [
            ("another root", Credentials::of_another_root(mesh)?),
            ("self-signed", Credentials::self_signed(mesh)?),
            ("none", Credentials::None),
        ];
        let mut answered = 0;
        for (what, stranger) in &strangers {
            let shown = if run.sabotaged { &member } else { stranger };
            for alpn in [ALPN, join::ALPN, b"h3"] {
                let heard = talk(server, shown, alpn)?;
                let alpn = String::from_utf8_lossy(alpn);
                promise!(
                    heard.closed.is_some() || run.sabotaged,
                    "{what} over {alpn}: the connection stays open"
                );
                answered += heard.bytes;
            }
        }
        promise!(answered == 0, "the strangers were answered with {answered} bytes");
        node.status()?;
        Ok(format!("0 bytes answered to 3 kinds over 3 protocols, {} to a member", control.bytes))
    })
}

/// Lets a node join without starting it and returns its credentials.
fn member(lab: &Lab, issuer: &Node, name: &str, token: &[&str]) -> Result<Credentials> {
    let node = lab.node(name)?;
    node.ok(&["join", &issuer.token(token)?, "--node", name, "--no-start"])?;
    Credentials::of_member(&node.state_dir())
}

fn hidden_service(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut owner = lab.node("owner")?;
        owner.init("a")?;
        let mut other = lab.node("other")?;
        other.join(&owner.token(&["--group", "b"])?)?;
        while_serving(Manner::Greets("secret\n"), |port| {
            let visibility: &[&str] = if run.sabotaged { &["--to", "all"] } else { &[] };
            for (service, to) in [("secret", visibility), ("public", &["--to", "all"])] {
                owner.ok(&[&["expose", &format!("{service}:{port}")], to].concat())?;
            }
            // Once the public one has arrived, the secret one, exposed before, has as well.
            let resolver = other.resolver()?;
            resolver.address("public.a.mesh.internal", TRAVEL)?;
            for name in ["secret", "secret.a", "owner.secret.a"] {
                for kind in [RecordType::A, RecordType::SRV, RecordType::TXT] {
                    let answer = resolver.ask(&format!("{name}.mesh.internal"), kind)?;
                    promise!(
                        answer.code() == ResponseCode::NXDomain,
                        "{name} {kind} is answered to b: {answer}"
                    );
                }
            }
            let through = forwarded(&other, &format!("secret.a:{port}"))?;
            promise!(through.is_empty(), "b reads {through:?} through forward");

            let open = |member: &Credentials, service: &str| -> Result<Option<OpenStatus>> {
                let (service, instance) = (service.parse()?, "owner".parse()?);
                let request =
                    OpenRequest { flow: 1, service, instance, port: port.into(), transport: Transport::Tcp };
                open_flow(owner.mesh_address()?, member, &request)
            };
            let b = member(lab, &owner, "b2", &["--group", "b"])?;
            let a = member(lab, &owner, "a2", &[])?;
            let (hidden, public, own) = (open(&b, "secret")?, open(&b, "public")?, open(&a, "secret")?);
            promise!(hidden == Some(OpenStatus::Denied), "opening it from b was answered with {hidden:?}");
            promise!(public == Some(OpenStatus::Open), "opening the public one was answered with {public:?}");
            promise!(
                own == Some(OpenStatus::Open),
                "opening it from its own group was answered with {own:?}"
            );
            Ok("absent under 3 names and 3 types, forward reads 0 bytes, open denied; own group opens it"
                .to_owned())
        })
    })
}

/// Returns what `gossamer forward` brings from a service; nothing when it refuses to start.
fn forwarded(node: &Node, service: &str) -> Result<String> {
    let local: SocketAddr = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut forward = node.spawn(&["forward", &local.to_string(), service])?;
    let greeting = wait_for("forward listening or ending", TRAVEL, || {
        if forward.try_wait()?.is_some() {
            return Ok(Some(String::new()));
        }
        match read_greeting(local, Duration::from_secs(5)) {
            Ok(text) => Ok(Some(text)),
            // Not listening yet, unless it is a reset of the flow itself.
            Err(error) => Ok(is_reset(&error).then(String::new)),
        }
    });
    let _ = forward.kill();
    let _ = forward.wait();
    greeting.map(|(text, _)| text)
}

fn is_reset(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::ConnectionReset)
}

const FLIPS: usize = 1_000;
/// Fewer than one peer may give of one owner in a second.
const PER_SECOND: usize = 32;

fn bit_flips(run: &Run) -> Result<String> {
    let mut mesh = Catalogs::new()?;
    mesh.publish(&["orders"]);
    let first = mesh.adverts();
    mesh.give(first);
    mesh.publish(&["orders", "web"]);
    let adverts = mesh.adverts();
    anyhow::ensure!(mesh.knows("orders") && !mesh.knows("web"), "the first adverts were not taken");

    let accepted = mesh.receiver.counters().accepted;
    let mut random = SmallRng::seed_from_u64(24);
    for flip in 0..FLIPS {
        let mut copy = adverts[flip % adverts.len()].clone();
        let bit = random.random_range(0..copy.bytes.len() * 8);
        if !run.sabotaged {
            let mut bytes = copy.bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            copy.bytes = bytes.into();
        }
        if flip % PER_SECOND == 0 {
            mesh.pass(Duration::from_secs(1));
        }
        mesh.give(vec![copy]);
    }
    let taken = mesh.receiver.counters().accepted - accepted;
    promise!(taken == 0 && !mesh.knows("web"), "{taken} were accepted");
    let refused: u64 = mesh.receiver.counters().refused.values().sum();
    mesh.pass(Duration::from_secs(60));
    mesh.give(adverts);
    promise!(mesh.knows("web"), "unharmed they are not accepted either");
    Ok(format!("0 of {FLIPS} accepted, {refused} refused and counted; unharmed they are accepted"))
}

/// Two catalogs of one mesh and a peer between them that passes adverts on.
struct Catalogs {
    owner: Catalog,
    receiver: Catalog,
    peer: NodeId,
    now: Now,
}

impl Catalogs {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let identity = identity(&Store::open(&dir.path().join("state"))?)?;
        let now =
            Now { mono: tokio::time::Instant::now().into_std(), wall: identity.leaf.not_after - 86_400 };
        let catalog = |key: NodeKey| -> Catalog {
            let group = identity.group().clone();
            let config = CatalogConfig {
                node: key.node(),
                group,
                zone: None,
                region: None,
                imports: Imports::default(),
                deny: gossamer_core::reach::Deny::default(),
                direct_up_to: DIRECT_UP_TO,
                first_seq: 0,
            };
            let random = SmallRng::seed_from_u64(1);
            Catalog::new(config, identity.trust.clone(), Box::new(key), random, 1, Vec::new(), now)
        };
        let fresh = || NodeKey::generate().context("randomness");
        let mut owner = catalog(NodeKey::read(identity.key.pkcs8()).context("the node's key")?);
        let leaf = identity.leaf_der.clone();
        let card = CardContent {
            leaf,
            addresses: Vec::new(),
            zone: None,
            region: None,
            labels: Vec::new(),
            relays: Vec::new(),
            lanes: Vec::new(),
        };
        owner.handle(Input::Card(card), now);
        let (mut receiver, peer) = (catalog(fresh()?), fresh()?.node());
        receiver.handle(Input::Connected(peer), now);
        Ok(Self { owner, receiver, peer, now })
    }

    fn publish(&mut self, services: &[&str]) {
        self.pass(Duration::from_secs(1));
        let records = services.iter().map(|service| record(service)).collect();
        self.owner.handle(Input::Publish(records), self.now);
        self.owner.handle_timeout(self.now);
    }

    fn adverts(&self) -> Vec<AdvertCopy> {
        self.owner.export(self.now)
    }

    fn give(&mut self, copies: Vec<AdvertCopy>) {
        let input = Input::Frame { from: self.peer, frame: Frame::Adverts { copies, forward: Vec::new() } };
        self.receiver.handle(input, self.now);
        while self.receiver.next_output().is_some() {}
    }

    fn knows(&self, service: &str) -> bool {
        self.receiver.service(&service.parse().expect("a name"), self.now).is_some()
    }

    fn pass(&mut self, time: Duration) {
        self.now = Now { mono: self.now.mono + time, wall: self.now.wall + time.as_secs() };
    }
}

fn identity(store: &Store) -> Result<Identity> {
    let request = InitRequest {
        mesh_name: "mesh".parse()?,
        group: "west".parse()?,
        node: "owner".parse()?,
        zone: None,
        region: None,
        lifetimes: gossamer::identity::Lifetimes::default(),
    };
    Ok(gossamer::identity::init(store, &request)?)
}

fn record(service: &str) -> ServiceRecord {
    ServiceRecord {
        service: service.parse().expect("a name"),
        instance: "owner".parse().expect("a name"),
        ports: vec![Port { name: 80.into(), number: 80, transport: Transport::Tcp }],
        visibility: Visibility::Own,
        health: Health::Passing,
        weight: 100,
        draining: false,
        routing: Routing::default(),
        tries: Tries::default(),
        metadata: Vec::new(),
        fqdns: Vec::new(),
    }
}
