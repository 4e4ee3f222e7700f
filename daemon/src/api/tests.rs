//! The API over a real unix socket: a real registry and index, scripted ports, flows and directory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use gossamer_core::catalog::ServiceView;
use gossamer_core::vip::{Pool, PortState, VipName};
use gossamer_dns::{CustomTarget, Directory, InstanceEntry, ServiceEntry, Target, VipAnswer, Zone};
use gossamer_wire::token::Claims;
use gossamer_wire::{GroupName, InstanceName, MeshId, NodeId, NodeName, Routing, ServiceName, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::messages::{
    CreateToken, CreatedToken, Drain, Draining, Expose, ExposePort, Exposed, NodeRow, PingRow, Protocol,
    Resolved, ServiceRow, Status, StatusNode, TokenRow, Withdraw, Withdrawn,
};
use super::views::tests::{instance, node};
use super::*;
use crate::app::{Again, Takers};
use crate::catalog::{Command, Holdings};
use crate::config::{Config, Flags, Host, Slot};
use crate::events::{Event, EventLine};
use crate::identity::{Credentials, InitRequest, Lifetimes, init, issuer};
use crate::index::{IndexWriter, WatchLine};
use crate::register::{self, DenyList, Rules};
use crate::store::Store;
use crate::transport::{self, Outcome, PathKind, Pinged, Sizes, Way};

/// What the daemon behind the socket is made of.
pub(crate) struct Daemon {
    dir: tempfile::TempDir,
    stage: Stage,
    client: Client,
    pub(crate) events: EventLog,
    pub(crate) index: IndexWriter,
    stop: CancellationToken,
}

/// Carries a flow to an echo that speaks first.
struct Echo;

impl Flows for Echo {
    fn carry(&self, to: Connect, client: Box<dyn Duplex>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let (mut from, mut into) = tokio::io::split(client);
            let _ = into.write_all(format!("220 {}\n", to.service).as_bytes()).await;
            let _ = tokio::io::copy(&mut from, &mut into).await;
            let _ = into.shutdown().await;
        })
    }

    fn served(&self, _: &ServiceName, instance: &InstanceName) -> usize {
        usize::from(instance.as_str() == "busy")
    }

    fn end_drained(&self, _: &ServiceName, _: &InstanceName, _: Duration, _: u64) {}

    fn leaving(&self) -> Option<(usize, Duration)> {
        None
    }

    fn living(&self) -> Vec<FlowInfo> {
        crate::relay::flows_for_tests(600)
    }

    fn candidates(&self, _: &VipName, _: &PortChoice) -> Vec<CandidateView> {
        Vec::new()
    }

    fn probe(&self, _: VipName, _: PortChoice) -> Pin<Box<dyn Future<Output = Vec<Probed>> + Send>> {
        Box::pin(async { Vec::new() })
    }

    fn malformed(&self) -> u64 {
        0
    }
}

/// One stolen port.
struct Stolen;

impl Ports for Stolen {
    fn ports(&self) -> Vec<VipPort> {
        vec![VipPort {
            name: VipName::Service(name("orders")),
            address: "127.240.1.1:5432".parse().expect("address"),
            transport: Transport::Tcp,
            state: PortState::Stolen { program: Some("postgres".to_owned()) },
        }]
    }

    fn losers(&self) -> Arc<BTreeMap<VipName, VipName>> {
        Arc::default()
    }

    fn redirection(&self) -> Option<Standings> {
        None
    }
}

/// Knows `orders` only.
struct Orders;

#[async_trait::async_trait]
impl Directory for Orders {
    async fn prepare(&self, _target: &Target) {}

    fn service(&self, service: &ServiceName, group: Option<&GroupName>) -> Option<ServiceEntry> {
        let vip = VipAnswer::Address(Ipv4Addr::new(127, 240, 1, 1));
        let known = service.as_str() == "orders" && group.is_none();
        known.then(|| ServiceEntry { vip, instances: Vec::new(), metadata: Vec::new() })
    }

    fn instance(&self, _: &ServiceName, _: &GroupName, _: &InstanceName) -> Option<InstanceEntry> {
        None
    }

    fn node(&self, _: &NodeName) -> Option<Vec<IpAddr>> {
        None
    }

    fn has_group(&self, _: &GroupName) -> bool {
        false
    }

    fn custom(&self, _: &str) -> Option<CustomTarget> {
        None
    }

    fn pointer(&self, _: Ipv4Addr) -> Option<Target> {
        None
    }
}

fn name(text: &str) -> ServiceName {
    text.parse().expect("name")
}

fn index() -> IndexWriter {
    let mut index = IndexWriter::default();
    let (mut hidden, mut foreign) = (instance("vm-b", "west"), instance("vm-c", "west"));
    hidden.visible = false;
    foreign.imported = false;
    let views = [
        ("orders", vec![instance("vm-b", "east")], vec![]),
        ("secret", vec![], vec![hidden]),
        ("far", vec![foreign], vec![]),
    ];
    for (service, instances, hidden) in views {
        let view = ServiceView { service: name(service), instances, hidden };
        index.set_service(&name(service), Some(view));
    }
    for summary in [node("vm-a", 1), node("vm-b", 2)] {
        index.update_node(summary.node, |known| *known = summary.clone());
    }
    index
}

pub(super) fn about(dir: &Path) -> About {
    About {
        version: "0.1.0",
        mesh: MeshId::of_spki(b"mesh"),
        mesh_name: "shop".parse().expect("name"),
        node: NodeId::from_bytes([1; 16]),
        node_name: "vm-a".parse().expect("name"),
        group: "east".parse().expect("name"),
        zone: None,
        region: None,
        slot: 0,
        pool: Pool::of_slot(0),
        vip_mode: gossamer_core::vip::Mode::Bind,
        mesh_listen: "0.0.0.0:4677".parse().expect("address"),
        advertised: tokio::sync::watch::channel(Vec::new()).1,
        lanes: Vec::new(),
        dns: "127.240.0.53:4653".parse().expect("address"),
        dns_fallback_reason: Some("permission denied".to_owned()),
        socket: dir.join("s"),
        state_dir: dir.to_owned(),
        started: SystemTime::UNIX_EPOCH,
    }
}

/// Reads a file that a test writes.
fn reloader(dir: &Path, events: EventLog) -> Reloader {
    let flags = Flags { config: Some(dir.join("gossamer.toml")), keys: Vec::new() };
    std::fs::write(dir.join("gossamer.toml"), "").expect("writes");
    let config = Config::load(&flags, &Host { is_root: true, ..Host::default() }).expect("sound");
    let running = config.settings(Slot::FIRST);
    let again = move || config.again().map(|config| config.settings(Slot::FIRST));
    Takers::new(Again::new(again), &running, events, Stage::default()).takes(&["import"], |_| {}).done()
}

/// The handles of a node that is no issuer.
fn trust(stage: &Stage, dir: &Path, index: &IndexWriter) -> (IssuerHandle, AuthorityHandle, Live) {
    let request = InitRequest {
        mesh_name: "shop".parse().expect("name"),
        group: "east".parse().expect("name"),
        node: "vm-a".parse().expect("name"),
        zone: None,
        region: None,
        lifetimes: Lifetimes::default(),
    };
    let store = Store::open(&dir.join("identity")).expect("opens");
    let mut identity = init(&store, &request).expect("makes");
    identity.issuer = None;
    let identity = Arc::new(identity);
    let live: Live = Arc::new(ArcSwap::from_pointee(Credentials::of(&identity)));
    let (authority, queue) = AuthorityHandle::new(&identity);
    let (joiners_in, joiners) = tokio::sync::mpsc::channel(1);
    let stop = stage.stopping().clone();
    stage.spawn_short("authority", async move {
        stop.cancelled().await;
        drop((queue, joiners_in));
    });
    let parts = issuer::Parts {
        store,
        trust: Arc::new(ArcSwap::from_pointee(identity.trust.clone())),
        identity,
        authority: authority.clone(),
        live: Live::clone(&live),
        lifetimes: Lifetimes::default(),
        index: index.reader(),
        advertised: tokio::sync::watch::channel(Vec::new()).1,
        lanes: Vec::new(),
        deny: gossamer_core::reach::Deny::default(),
        joiners,
        metrics: Arc::default(),
    };
    (issuer::start(stage, parts).expect("starts"), authority, live)
}

impl Daemon {
    /// Starts one whose operators this test belongs to.
    pub(crate) async fn start() -> Self {
        Self::start_for(Policy::of(nix::unistd::geteuid().as_raw())).await
    }

    async fn start_for(callers: Policy) -> Self {
        let dir = tempfile::tempdir().expect("scratch");
        let stage = Stage::default();
        let store = Store::open(&dir.path().join("state")).expect("opens");
        let denied = DenyList::new(Vec::new(), Ipv4Addr::new(127, 240, 0, 0), 16);
        let policy = gossamer_core::access::Policy::default();
        let rules = Rules { node: "vm-a".parse().expect("name"), claims: Claims::default(), policy, denied };
        let (records, mut published) = tokio::sync::mpsc::channel(8);
        stage.spawn_short("catalog", async move { while published.recv().await.is_some() {} });
        let registry = register::start(&stage, store, rules, records, |_| {}).expect("starts");
        let (commands, mut asked) = tokio::sync::mpsc::channel(8);
        stage.spawn_short("holdings", async move {
            while let Some(command) = asked.recv().await {
                let Command::Holdings(reply) = command else { continue };
                let _ = reply.send(Holdings { oldest_head: Duration::from_secs(17), ..Holdings::default() });
            }
        });
        let index = index();
        let (issuer, authority, live) = trust(&stage, dir.path(), &index);
        let about = Arc::new(about(dir.path()));
        let listener = bind(&about.socket).await.expect("binds");
        let client = Client::new(&about.socket);
        let (events, stop) = (EventLog::default(), CancellationToken::new());
        let state = ApiState {
            about,
            callers,
            index: index.reader(),
            catalog: CatalogHandle::of(commands),
            registry,
            vips: Arc::new(Stolen),
            relay: Arc::new(Echo),
            resolver: Arc::new(Orders),
            zone: Arc::new(
                Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16).expect("a zone").into(),
            ),
            forwarder: None,
            issuer,
            authority,
            live,
            reloader: reloader(dir.path(), events.clone()),
            events: events.clone(),
            metrics: Arc::default(),
            connections: Arc::new(OnePeer),
            stop: stop.clone(),
        };
        serve(Arc::new(state), listener, &stage);
        Self { dir, stage, client, events, index, stop }
    }

    /// Returns its socket, which lies in its state directory.
    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("s")
    }

    /// Returns the status code and the text of a refusal.
    async fn refusal(&self, path: &str) -> (u16, String) {
        refused(self.client.get::<serde_json::Value>(path).await.expect_err(path))
    }
}

/// The id of the one connected peer.
const PEER: NodeId = NodeId::from_bytes([7; 16]);

/// One connected peer.
struct OnePeer;

impl Connections for OnePeer {
    fn paths(&self) -> BTreeMap<NodeId, transport::Path> {
        let at = "192.0.2.7:4677".parse().expect("address");
        let rtt = Duration::from_micros(340);
        let sizes = Sizes { proven: 1_452, ..Sizes::default() };
        [(PEER, transport::Path { kind: PathKind::Inbound(at), second: None, rtt, sizes })].into()
    }

    fn ping(&self, node: NodeId, known: Vec<SocketAddr>) -> Pin<Box<dyn Future<Output = Pinged> + Send>> {
        let path = self.paths().remove(&node);
        let connection = path.map(|path| (path, Ok(Duration::from_micros(340))));
        let outcome = |at| (Way::Udp(at), Err(Outcome::Refused));
        Box::pin(async move { Pinged { connection, tried: known.into_iter().map(outcome).collect() } })
    }
}

fn refused(error: ClientError) -> (u16, String) {
    match error {
        ClientError::Refused { status, text } => (status.as_u16(), text),
        other => panic!("{other}"),
    }
}

fn expose(service: &str) -> Expose {
    Expose {
        service: name(service),
        instance: None,
        ports: vec![ExposePort { name: None, number: 5432, target_port: Some(9), transport: Protocol::Tcp }],
        target: None,
        to: messages::Audience::All,
        allow: Vec::new(),
        metadata: BTreeMap::new(),
        fqdns: Vec::new(),
        weight: 100,
        routing: Routing::default(),
        proxy_protocol: false,
    }
}

#[tokio::test]
async fn a_service_is_exposed_and_withdrawn() {
    let daemon = Daemon::start().await;
    let exposed: Exposed = daemon.client.post("/v1/expose", &expose("web")).await.expect("registers");
    assert_eq!((exposed.name.as_str(), exposed.instance.as_str()), ("web.mesh.internal", "vm-a"));
    assert_eq!(exposed.visibility, "all groups");
    assert_eq!((exposed.holders, exposed.members), (1, 1));
    assert_eq!(exposed.ports[0].target.to_string(), "127.0.0.1:9");
    assert!(exposed.warnings.iter().any(|warning| warning.contains("nobody listens")), "{exposed:?}");

    let body = Withdraw { service: name("web"), instance: None };
    let withdrawn: Withdrawn = daemon.client.post("/v1/withdraw", &body).await.expect("withdraws");
    assert_eq!(withdrawn.instances.len(), 1);
    let again = daemon.client.post::<Withdrawn>("/v1/withdraw", &body).await.expect_err("is gone");
    assert_eq!(refused(again).0, 404);
}

#[tokio::test]
async fn a_service_drains_and_takes_flows_again() {
    let daemon = Daemon::start().await;
    let busy = Expose { instance: Some("busy".parse().expect("name")), ..expose("web") };
    daemon.client.post::<Exposed>("/v1/expose", &busy).await.expect("registers");
    let body =
        |service: &str, undo| Drain { service: Some(name(service)), instance: None, for_seconds: 60, undo };
    let done: Draining = daemon.client.post("/v1/drain", &body("web", false)).await.expect("drains");
    let row = &done.registrations[0];
    assert_eq!((row.instance.as_str(), row.flows, row.left_seconds, done.undone), ("busy", 1, 60, false));
    let listed: Draining = daemon.client.get("/v1/drain").await.expect("lists");
    let status: Status = daemon.client.get("/v1/status").await.expect("answers");
    assert_eq!((listed.registrations.len(), status.draining), (1, listed.registrations));
    assert_eq!(status.leaving, None);

    let undone: Draining = daemon.client.post("/v1/drain", &body("web", true)).await.expect("undoes");
    assert!(undone.undone && undone.registrations.len() == 1);
    let listed: Draining = daemon.client.get("/v1/drain").await.expect("lists");
    assert!(listed.registrations.is_empty());

    let unknown = daemon.client.post::<Draining>("/v1/drain", &body("nothing", false)).await;
    assert_eq!(refused(unknown.expect_err("unknown")).0, 404);
    let endless = Drain { for_seconds: u64::MAX, ..body("web", false) };
    let refusal = refused(daemon.client.post::<Draining>("/v1/drain", &endless).await.expect_err("too long"));
    assert!(refusal.0 == 400 && refusal.1.contains("7d"), "{refusal:?}");
    let headless =
        Drain { service: None, instance: Some("busy".parse().expect("name")), ..body("web", false) };
    let refusal = daemon.client.post::<Draining>("/v1/drain", &headless).await.expect_err("no service");
    assert_eq!(refused(refusal).0, 400);
}

/// A policy for which this test, whoever runs it, is an ordinary user.
fn for_others() -> Policy {
    Policy { own: u32::MAX - 1, users: [].into(), groups: [].into(), unmapped: None }
}

#[tokio::test]
async fn a_user_who_is_no_operator_looks_and_registers_and_gives_no_orders() {
    let daemon = Daemon::start_for(for_others()).await;
    for path in ["nodes", "services", "resolve?name=orders", "status", "events", "metrics"] {
        let asked = daemon.client.get::<serde_json::Value>(&format!("/v1/{path}")).await;
        // Metrics and an empty log are no JSON values: what counts is that they are not refused.
        assert!(matches!(asked, Ok(_) | Err(ClientError::Broken { .. })), "{path}: {asked:?}");
    }
    assert!(daemon.client.connect("/v1/connect?service=orders&port=5432").await.is_ok());
    let exposed: Exposed = daemon.client.post("/v1/expose", &expose("web")).await.expect("registers");
    let body = Withdraw { service: exposed.service, instance: None };
    daemon.client.post::<Withdrawn>("/v1/withdraw", &body).await.expect("withdraws");

    let orders =
        ["leave", "token", "token/revoke", "token/renew", "node/evict", "issuer/add", "issuer/remove"];
    for path in orders.into_iter().chain(["issuer/grant"]) {
        let error =
            daemon.client.post::<serde_json::Value>(&format!("/v1/{path}"), &()).await.expect_err(path);
        let (status, text) = refused(error);
        assert!(status == 403 && text.contains("api.operators"), "{path}: {status} {text}");
    }
    assert_eq!(daemon.refusal("/v1/tokens").await.0, 403);
    assert!(!daemon.stop.is_cancelled());
    let status: Status = daemon.client.get("/v1/status").await.expect("answers");
    assert_eq!(status.counters["gossamer_api_refused_total{reason=\"operator\"}"], 9);
}

#[tokio::test]
async fn a_user_without_a_number_may_only_look() {
    let unmapped = Some(nix::unistd::geteuid().as_raw());
    let daemon = Daemon::start_for(Policy { unmapped, ..for_others() }).await;
    assert!(daemon.client.get::<Status>("/v1/status").await.is_ok());
    let error = daemon.client.post::<Exposed>("/v1/expose", &expose("web")).await.expect_err("a stranger");
    let (status, text) = refused(error);
    assert!(status == 403 && text.contains("user namespace"), "{text}");
}

#[tokio::test]
async fn what_the_rules_forbid_is_refused_with_the_reason() {
    let daemon = Daemon::start().await;
    let metadata = Expose { target: Some("169.254.169.254".parse().expect("ip")), ..expose("web") };
    let error = daemon.client.post::<Exposed>("/v1/expose", &metadata).await.expect_err("deny list");
    assert_eq!(refused(error).0, 400);
    let error = daemon.client.post::<Exposed>("/v1/expose", &"nonsense").await.expect_err("no registration");
    assert!((400..500).contains(&refused(error).0));
    let (status, text) = daemon.refusal("/v1/nonsense").await;
    assert!(status == 404 && text.contains("/v1/nonsense"), "{text}");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let daemon = Daemon::start().await;
    let long = "x".repeat(MAX_BODY_BYTES + 1);
    let error = daemon.client.post::<Exposed>("/v1/expose", &long).await.expect_err("too long");
    assert_eq!(refused(error).0, 413);
}

#[tokio::test]
async fn nodes_and_services_are_listed() {
    let daemon = Daemon::start().await;
    let nodes: Vec<NodeRow> = daemon.client.get("/v1/nodes").await.expect("lists");
    assert_eq!(nodes.iter().map(|node| node.this).collect::<Vec<_>>(), [true, false]);
    let services: Vec<ServiceRow> = daemon.client.get("/v1/services").await.expect("lists");
    assert_eq!(services.iter().map(|row| row.service.as_str()).collect::<Vec<_>>(), ["far", "orders"]);
    let all: Vec<ServiceRow> = daemon.client.get("/v1/services?all=true").await.expect("lists");
    assert_eq!(all.len(), 3);
    assert_eq!(daemon.refusal("/v1/services?name=secret").await.0, 403);
    assert_eq!(daemon.refusal("/v1/services?name=nothing").await.0, 404);
    assert_eq!(daemon.refusal("/v1/services?name=Not%20A%20Name").await.0, 400);
}

#[tokio::test]
async fn resolve_answers_as_dns_does_and_says_why_not() {
    let daemon = Daemon::start().await;
    let get = |path: &'static str| daemon.client.get::<Resolved>(path);
    let found = get("/v1/resolve?name=orders").await.expect("answers");
    assert_eq!((found.outcome.as_str(), found.answers[0].data.as_str()), ("NOERROR", "127.240.1.1"));
    let hidden = get("/v1/resolve?name=secret.west").await.expect("answers");
    assert!(hidden.hidden && hidden.outcome == "NXDOMAIN", "{hidden:?}");
    let foreign = get("/v1/resolve?name=far.mesh.internal&type=SRV").await.expect("answers");
    let reason = foreign.reason.expect("says why");
    assert!(!foreign.hidden && reason.contains("far.west") && reason.contains("far@west"), "{reason}");
    assert_eq!(get("/v1/resolve?name=nothing").await.expect("answers").reason, None);
    assert_eq!(daemon.refusal("/v1/resolve?name=a..b").await.0, 400);
    assert_eq!(daemon.refusal("/v1/resolve?name=a&type=nonsense").await.0, 400);
}

#[tokio::test]
async fn status_names_what_is_wrong_and_what_mends_it() {
    let daemon = Daemon::start().await;
    let status: Status = daemon.client.get("/v1/status").await.expect("answers");
    assert_eq!((status.members_alive, status.services, status.pid), (2, 3, std::process::id()));
    assert_eq!((status.members["alive"], status.oldest_head_seconds), (2, 17));
    assert_eq!(status.vips[0].state, "stolen");
    let text: Vec<_> = status.findings.iter().map(|finding| finding.text.as_str()).collect();
    assert!(text[0].contains("postgres") && text[1].contains("port 53"), "{text:?}");
    assert!(text[2].contains("if vm-a is lost nobody can join"), "{text:?}");
    assert!(status.findings.iter().all(|finding| !finding.fix.is_empty()));
}

#[tokio::test]
async fn a_node_that_admits_nobody_says_where_tokens_are_made() {
    let daemon = Daemon::start().await;
    let (status, text) = refused(daemon.client.get::<Vec<TokenRow>>("/v1/tokens").await.expect_err("none"));
    assert!(status == 409 && text.contains("run the command on an issuer (vm-a)"), "{text}");
    let body = CreateToken {
        ttl_seconds: 1,
        uses: 1,
        group: None,
        name: None,
        claims: Claims::default(),
        addresses: Vec::new(),
    };
    assert!(daemon.client.post::<CreatedToken>("/v1/token", &body).await.is_err());
}

#[tokio::test]
async fn events_are_followed_until_the_daemon_stops() {
    let daemon = Daemon::start().await;
    let event =
        |now| Event { who: "x".to_owned(), was: "a", now, cause: "c".to_owned(), by: "self".to_owned() };
    daemon.events.push(&event("old"));
    let mut seen = Vec::new();
    let follow = daemon.client.lines::<ClientError>("/v1/events?follow=true", |line| {
        let line: EventLine = serde_json::from_str(line).expect("JSON");
        if line.line.contains("-> old") {
            daemon.events.push(&event("new"));
        } else {
            daemon.stage.stopping().cancel();
        }
        seen.push(line.line);
        Ok(())
    });
    follow.await.expect("ends cleanly");
    assert_eq!(seen.len(), 2, "{seen:?}");
}

fn view(service: &str, node: &str) -> Option<ServiceView> {
    Some(ServiceView { service: name(service), instances: vec![instance(node, "east")], hidden: Vec::new() })
}

/// Watches until `lines` lines came; makes a change as soon as the first one is there.
async fn watched(daemon: &mut Daemon, query: &str, lines: usize) -> Vec<WatchLine> {
    let Daemon { client, index, stage, .. } = daemon;
    let mut seen = Vec::new();
    let follow = client.lines::<ClientError>(query, |line| {
        seen.push(serde_json::from_str(line).expect("JSON"));
        if seen.len() == 1 {
            index.set_service(&name("other"), view("other", "vm-b"));
            index.set_service(&name("fresh"), view("fresh", "vm-b"));
        }
        if seen.len() == lines {
            stage.stopping().cancel();
        }
        Ok(())
    });
    follow.await.expect("ends cleanly");
    seen
}

#[tokio::test]
async fn a_watcher_hears_first_that_it_watches_and_then_each_change() {
    let seen = watched(&mut Daemon::start().await, "/v1/watch", 3).await;
    assert!(matches!(seen[0], WatchLine::Watching { nodes: 2, services: 3, .. }), "{seen:?}");
    let services: Vec<_> =
        seen[1..].iter().filter(|line| matches!(line, WatchLine::Service { .. })).collect();
    assert!(services[0].is_about("other") && services[1].is_about("fresh"), "{seen:?}");
}

#[tokio::test]
async fn a_watcher_of_one_name_hears_of_nothing_else() {
    let seen = watched(&mut Daemon::start().await, "/v1/watch?name=fresh", 2).await;
    assert!(seen[1].is_about("fresh") && !seen[1].is_about("other"), "{seen:?}");
}

#[tokio::test]
async fn a_watcher_of_all_gets_what_there_is_before_what_changes() {
    let seen = watched(&mut Daemon::start().await, "/v1/watch?all=true", 6).await;
    let about: Vec<_> = ["vm-b", "far", "orders", "other", "fresh"]
        .into_iter()
        .zip(&seen[1..])
        .filter(|(name, line)| line.is_about(name))
        .collect();
    // This node is left out, and so is what it may not see.
    assert_eq!(about.len(), 5, "{seen:?}");
}

#[tokio::test]
async fn an_event_reader_that_fell_behind_is_told_how_many_lines_it_lost() {
    let daemon = Daemon::start().await;
    let event =
        Event { who: "x".to_owned(), was: "a", now: "b", cause: "c".to_owned(), by: "self".to_owned() };
    let mut seen: Vec<String> = Vec::new();
    daemon.events.push(&event);
    let follow = daemon.client.lines::<ClientError>("/v1/events?follow=true", |line| {
        if seen.is_empty() {
            (0..1_500).for_each(|_| daemon.events.push(&event));
        }
        let line: EventLine = serde_json::from_str(line).expect("JSON");
        if line.line.contains("missing") {
            daemon.stage.stopping().cancel();
        }
        seen.push(line.line);
        Ok(())
    });
    follow.await.expect("ends cleanly");
    assert!(seen[1].contains(" lines are missing here"), "{}", seen[1]);
}

#[tokio::test]
async fn a_flow_is_carried_both_ways_with_half_close() {
    let daemon = Daemon::start().await;
    let path = "/v1/connect?service=orders&port=5432";
    let (mut flow, early) = daemon.client.connect(path).await.expect("connects");
    flow.write_all(b"hello").await.expect("writes");
    flow.shutdown().await.expect("half-closes");
    let mut said = early.to_vec();
    flow.read_to_end(&mut said).await.expect("reads to the end");
    assert_eq!(said, b"220 orders\nhello");
}

#[tokio::test]
async fn flows_that_must_fail_are_refused_before_they_are_opened() {
    let daemon = Daemon::start().await;
    for (query, status) in [
        ("service=nothing&port=1", 404),
        ("service=secret&port=5432", 403),
        ("service=far&port=5432", 404),
        ("service=orders&port=1", 404),
        ("service=orders", 400),
    ] {
        let error = daemon.client.connect(&format!("/v1/connect?{query}")).await.expect_err(query);
        assert_eq!(refused(error).0, status, "{query}");
    }
    assert!(daemon.client.connect("/v1/connect?service=far&group=west&port=5432").await.is_ok());
    let plain =
        daemon.client.post::<()>("/v1/connect?service=orders&port=5432", &()).await.expect_err("plain");
    assert_eq!(refused(plain).0, 400);
}

/// A daemon that says what it is told to whoever asks.
async fn saying(reply: &'static [u8]) -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().expect("scratch");
    let socket = dir.path().join("s");
    let listener = bind(&socket).await.expect("binds");
    Stage::default().spawn_short("liar", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4_096]).await;
            let _ = stream.write_all(reply).await;
        }
    });
    (dir, Client::new(&socket))
}

#[tokio::test]
async fn replies_that_are_none_are_said_to_be_unusable() {
    for reply in [
        &b"SSH-2.0-OpenSSH\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"",
    ] {
        let (_dir, client) = saying(reply).await;
        let error = client.get::<Status>("/v1/status").await.expect_err("no status");
        assert!(matches!(error, ClientError::Broken { .. }), "{error}");
        let error = client.connect("/v1/connect?service=a&port=1").await.expect_err("no flow");
        assert!(matches!(error, ClientError::Broken { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_without_json_is_shown_as_it_is() {
    let (_dir, client) = saying(b"HTTP/1.1 500 No\r\ncontent-length: 7\r\n\r\nno disk").await;
    let error = client.get::<Status>("/v1/status").await.expect_err("refused");
    assert_eq!(refused(error), (500, "no disk".to_owned()));
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let daemon = Daemon::start().await;
    let mut flows = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        flows.push(UnixStream::connect(daemon.socket()).await.expect("connects"));
    }
    let status = daemon.client.get::<Status>("/v1/status");
    assert!(tokio::time::timeout(Duration::from_millis(100), status).await.is_err(), "no place");
    flows.pop();
    assert!(daemon.client.get::<Status>("/v1/status").await.is_ok());
}

#[tokio::test]
async fn leaving_is_answered_before_the_daemon_ends() {
    let daemon = Daemon::start().await;
    let node: StatusNode = daemon.client.post("/v1/leave", &()).await.expect("answers");
    assert_eq!(node.name.as_str(), "vm-a");
    assert!(daemon.stop.is_cancelled());
    assert_eq!(daemon.stage.stop(Duration::from_secs(5)).await, 0);
    let gone = daemon.client.get::<Status>("/v1/status").await.expect_err("gone");
    assert!(matches!(gone, ClientError::Unreachable { .. }), "{gone}");
}

#[tokio::test]
async fn living_flows_come_line_by_line_and_no_more_than_asked_for() {
    let daemon = Daemon::start().await;
    for (query, shown) in [("", 600), ("?limit=7", 7), ("?limit=10000", 600)] {
        let mut lines = Vec::new();
        let path = format!("/v1/flows{query}");
        let read = daemon.client.lines(&path, |line| {
            lines.push(serde_json::from_str::<messages::FlowsLine>(line).expect("a line"));
            Ok::<_, ClientError>(())
        });
        read.await.expect("answers");
        assert_eq!(lines[0], messages::FlowsLine::Flows { total: 600, shown });
        assert_eq!(lines.len(), 1 + shown);
        let messages::FlowsLine::Flow(first) = &lines[1] else { panic!("{:?}", lines[1]) };
        assert_eq!((first.flow.as_str(), first.path.as_str()), ("0000000000000000", "local"));
    }
}

#[tokio::test]
async fn a_trace_names_the_leg_that_is_broken() {
    let daemon = Daemon::start().await;
    for (name, leg, kind) in [
        ("orders", "vip", messages::BrokenKind::Failed),
        ("orderz", "visibility", messages::BrokenKind::NotFound),
        ("secret", "visibility", messages::BrokenKind::Denied),
        ("far", "visibility", messages::BrokenKind::NotFound),
        ("orders&port=81", "port", messages::BrokenKind::NotFound),
        ("example.com.", "name", messages::BrokenKind::NotFound),
    ] {
        let traced: messages::Traced =
            daemon.client.get(&format!("/v1/trace?dial=true&name={name}")).await.expect(name);
        let broken = traced.broken.expect(name);
        assert_eq!((broken.leg.as_str(), broken.kind), (leg, kind), "{name}: {broken:?}");
        assert!(!broken.fix.is_empty(), "{name}");
    }
    assert_eq!(daemon.refusal("/v1/trace?name=a..b").await.0, 400);
}

#[tokio::test]
async fn a_ping_names_the_connection_and_refuses_who_is_unknown_and_itself() {
    let daemon = Daemon::start().await;
    let pinged: PingRow = daemon.client.get(&format!("/v1/ping?node={PEER}")).await.expect("pings");
    let connection = pinged.connection.expect("a connection");
    assert_eq!((connection.way.as_str(), connection.rtt_us), ("inbound 192.0.2.7:4677", Some(340)));
    let (status, text) = daemon.refusal(&format!("/v1/ping?node={}", NodeId::from_bytes([9; 16]))).await;
    assert!(status == 404 && text.contains("gossamer nodes"), "{text}");
    let own = daemon.client.get::<Status>("/v1/status").await.expect("status").node.id;
    for named in [&own[..], &own[..4]] {
        let (status, text) = daemon.refusal(&format!("/v1/ping?node={named}")).await;
        assert!(status == 409 && text.contains("this node"), "{named}: {text}");
    }
    assert_eq!(daemon.refusal(&format!("/v1/ping?node={}", &own[..3])).await.0, 404, "too little of it");
}
