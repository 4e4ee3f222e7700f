//! The exporter's end, asked by a peer over a real QUIC stream.

use super::*;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gossamer_core::access::{Base, Policy};
use gossamer_wire::Visibility;

use crate::register::{LocalService, Place};
use crate::relay::tests::{Bench, DENIED, HERE, Hops, Link, access, greeter, local_service, named, service};
use crate::supervise::Stage;

/// An exporting node of group `west`, and a peer's link to it.
struct Exporter {
    bench: Bench,
    link: Arc<Link>,
    _programs: Stage,
}

impl Exporter {
    /// Starts a node with the service `orders`, instance `db-0`, port 5432; the caller is of `group`.
    async fn new(caller_group: &'static str, change: impl FnOnce(&mut LocalService)) -> Self {
        let programs = Stage::default();
        let bench = Bench::new(HERE, Arc::new(Hops(None)));
        let mut local = local_service("orders", "db-0", 5432, greeter(&programs).await);
        change(&mut local);
        bench.targets.set(vec![local]);
        let link = Arc::new(Link::new().await);
        bench.relay.start_inbound(link.serve(&bench.stage, caller_group));
        Self { bench, link, _programs: programs }
    }

    async fn ask(&self, bytes: &[u8]) -> FlowStream {
        let mut stream = self.link.open().await;
        stream.send.write_all(bytes).await.expect("written");
        stream
    }

    /// Opens a flow and returns the status with what follows when the client ends at once.
    async fn call(&self, request: &OpenRequest) -> (OpenStatus, Vec<u8>) {
        let mut stream = self.ask(&request.encode().expect("fits")).await;
        let mut code = [0];
        stream.recv.read_exact(&mut code).await.expect("a status");
        let _ = stream.send.finish();
        let rest = stream.recv.read_to_end(1_000).await.expect("a clean end");
        (OpenStatus::try_from(code[0]).expect("known"), rest)
    }
}

fn request() -> OpenRequest {
    OpenRequest {
        flow: 7,
        service: service("orders"),
        instance: named("db-0"),
        port: 5432.into(),
        transport: Transport::Tcp,
    }
}

fn unchanged(_: &mut LocalService) {}

#[tokio::test]
async fn a_peer_of_the_own_group_reaches_the_target() {
    let exporter = Exporter::new("west", unchanged).await;
    assert_eq!(exporter.call(&request()).await, (OpenStatus::Open, b"hello  bye".to_vec()));
    assert_eq!(exporter.bench.relay.counters().served.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_peer_of_another_group_is_denied_unless_it_is_named() {
    let exporter = Exporter::new("east", unchanged).await;
    assert_eq!(exporter.call(&request()).await, (OpenStatus::Denied, Vec::new()));
    let open_to = |groups: Vec<&str>| {
        let groups = groups.into_iter().map(|group| group.parse().expect("name")).collect();
        move |local: &mut LocalService| {
            local.targets[0].access = access(Visibility::Groups(groups), &[], Policy::default());
        }
    };
    let exporter = Exporter::new("east", open_to(vec!["north"])).await;
    assert_eq!(exporter.call(&request()).await.0, OpenStatus::Denied);
    let exporter = Exporter::new("east", open_to(vec!["north", "east"])).await;
    assert_eq!(exporter.call(&request()).await.0, OpenStatus::Open);
}

#[tokio::test]
async fn what_does_not_exist_looks_like_what_is_denied() {
    let exporter = Exporter::new("west", unchanged).await;
    let strange = [
        OpenRequest { service: service("other"), ..request() },
        OpenRequest { instance: named("db-1"), ..request() },
        OpenRequest { port: 80.into(), ..request() },
    ];
    for request in strange {
        assert_eq!(exporter.call(&request).await, (OpenStatus::Denied, Vec::new()), "{request:?}");
    }
    assert_eq!(exporter.bench.relay.counters().denied.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_udp_port_is_no_target_of_a_stream() {
    let exporter = Exporter::new("west", |local| {
        local.record.ports[0].transport = Transport::Udp;
        local.targets[0].transport = Transport::Udp;
    })
    .await;
    assert_eq!(exporter.call(&request()).await.0, OpenStatus::Denied);
}

#[tokio::test]
async fn a_target_nobody_listens_on_is_refused() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("free");
    let addr = nobody.local_addr().expect("bound");
    drop(nobody);
    let exporter = Exporter::new("west", move |local| local.targets[0].addr = addr.into()).await;
    assert_eq!(exporter.call(&request()).await, (OpenStatus::Refused, Vec::new()));
}

#[tokio::test]
async fn the_deny_list_is_asked_again_at_the_dial() {
    for denied in DENIED {
        let addr: SocketAddr = denied.parse().expect("address");
        let exporter = Exporter::new("west", move |local| local.targets[0].addr = addr.into()).await;
        assert_eq!(exporter.call(&request()).await.0, OpenStatus::Denied, "{denied}");
    }
    let path = "/run/gossamer/gossamer.sock".parse().expect("a path");
    let exporter =
        Exporter::new("west", move |local| local.targets[0].addr = Place::Unix { path, user: None }).await;
    assert_eq!(exporter.call(&request()).await.0, OpenStatus::Denied, "the daemon's own socket");
}

#[tokio::test]
async fn a_socket_of_the_file_system_is_a_target_and_its_own_user_must_listen_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("app.sock");
    let _program = crate::register::Program::listen(&path);
    let me = nix::unistd::geteuid().as_raw();
    for (user, status) in
        [(None, OpenStatus::Open), (Some(me), OpenStatus::Open), (Some(me + 1), OpenStatus::Refused)]
    {
        let path = path.to_str().expect("text").parse().expect("a path");
        let exporter =
            Exporter::new("west", move |local| local.targets[0].addr = Place::Unix { path, user }).await;
        let mut stream = exporter.ask(&request().encode().expect("fits")).await;
        stream.send.write_all(b"hello").await.expect("written");
        let _ = stream.send.finish();
        let answer = stream.recv.read_to_end(100).await.expect("a clean end");
        let rest: &[u8] = if status == OpenStatus::Open { b"hello bye" } else { b"" };
        assert_eq!(answer, [&[status.code()], rest].concat(), "{user:?}");
    }
}

#[tokio::test]
async fn a_target_that_asks_for_it_is_told_who_calls() {
    let exporter = Exporter::new("west", |local| local.targets[0].proxy_protocol = true).await;
    let mut stream = exporter.ask(&request().encode().expect("fits")).await;
    stream.send.write_all(b"question").await.expect("written");
    let _ = stream.send.finish();
    let answer = stream.recv.read_to_end(1_000).await.expect("a clean end");
    // The program echoes all it got.
    let got = answer.strip_prefix(b"\0hello ").and_then(|rest| rest.strip_suffix(b" bye")).expect("an echo");
    let header = ppp::v2::Header::try_from(got).expect("a header");
    assert_eq!(&got[header.len()..], b"question");
    let ppp::v2::Addresses::IPv4(addresses) = header.addresses else { panic!("{header:?}") };
    assert_eq!((addresses.source_address, addresses.source_port), ([127, 0, 0, 1].into(), 4677));
    let text = |kind| {
        let mut all = header.tlvs().map(|tlv| tlv.expect("whole"));
        all.find(|tlv| tlv.kind == kind).map(|tlv| String::from_utf8_lossy(&tlv.value).into_owned())
    };
    let mesh = gossamer_wire::MeshId::from_bytes([7; 16]);
    assert_eq!(text(proxy::TLV_IDENTITY), Some(format!("spiffe://{mesh}/group/west/node/peer")));
    assert_eq!(text(proxy::TLV_NODE), Some(HERE.to_string()));
    assert_eq!((text(0x02).as_deref(), text(0x05)), (Some("orders"), Some(FlowId(7).to_string())));
}

#[tokio::test]
async fn hostile_requests_are_reset_and_counted() {
    let exporter = Exporter::new("west", unchanged).await;
    for bytes in [&[0xff, 0xff][..], &[0, 3, 1, 2, 3], &[0, 0]] {
        let mut stream = exporter.ask(bytes).await;
        let answer = stream.recv.read_to_end(100).await;
        assert!(answer.is_err(), "{bytes:?} was answered {answer:?}");
    }
    assert_eq!(exporter.bench.relay.counters().malformed.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn living_flows_are_listed_and_stopping_resets_them() {
    let exporter = Exporter::new("west", unchanged).await;
    let mut stream = exporter.ask(&request().encode().expect("fits")).await;
    let mut status_and_greeting = [0; 7];
    stream.recv.read_exact(&mut status_and_greeting).await.expect("open");
    let flows = exporter.bench.relay.flows();
    assert_eq!(flows.len(), 1);
    assert_eq!((flows[0].flow, flows[0].direction), (FlowId(7), Direction::Inbound));
    assert!(flows[0].target.is_some());

    exporter.link.far.close(0_u32.into(), b"");
    let left = exporter.bench.stage.stop(Duration::from_secs(5)).await;
    assert_eq!(left, 0);
    assert!(exporter.bench.relay.flows().is_empty());
}

#[tokio::test]
async fn a_stop_is_a_reset_and_no_clean_end() {
    let exporter = Exporter::new("west", unchanged).await;
    let mut stream = exporter.ask(&request().encode().expect("fits")).await;
    stream.recv.read_exact(&mut [0; 7]).await.expect("open");
    exporter.bench.stage.stopping().cancel();
    assert!(stream.recv.read_exact(&mut [0]).await.is_err());
}

/// Rules of a service that nothing but `allow` admits anybody to.
fn only(allow: &[&str], audit: bool) -> impl FnOnce(&mut LocalService) {
    let rules = access(Visibility::Own, allow, Policy { base: Base::Deny, audit });
    move |local: &mut LocalService| local.targets[0].access = rules
}

#[tokio::test]
async fn rules_admit_by_what_is_certified_and_nothing_else_does_where_the_default_is_deny() {
    let id = format!("id:{HERE}");
    for (allow, status) in [
        (&[][..], OpenStatus::Denied),
        (&["group:east"], OpenStatus::Denied),
        (&["group:west"], OpenStatus::Open),
        (&["node:pe*"], OpenStatus::Open),
        (&["node:other", "node:*-x"], OpenStatus::Denied),
        (&[id.as_str()], OpenStatus::Open),
        (&["label:team=shop"], OpenStatus::Denied),
    ] {
        let exporter = Exporter::new("west", only(allow, false)).await;
        assert_eq!(exporter.call(&request()).await.0, status, "{allow:?}");
    }
}

#[tokio::test]
async fn audit_lets_in_who_would_be_denied_and_counts_it() {
    let exporter = Exporter::new("east", only(&[], true)).await;
    assert_eq!(exporter.call(&request()).await, (OpenStatus::Open, b"hello  bye".to_vec()));
    let counters = exporter.bench.relay.counters();
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((read(&counters.audited), read(&counters.denied)), (1, 0));
    // What is not there is not there for anybody.
    let unknown = OpenRequest { instance: named("db-1"), ..request() };
    assert_eq!(exporter.call(&unknown).await.0, OpenStatus::Denied);
}

#[tokio::test]
async fn a_change_of_the_rules_resets_a_living_flow_and_one_that_leaves_it_does_not() {
    let exporter = Exporter::new("west", unchanged).await;
    let mut stream = exporter.ask(&request().encode().expect("fits")).await;
    stream.recv.read_exact(&mut [0; 7]).await.expect("open");
    let rewritten = |change: Box<dyn FnOnce(&mut LocalService)>| {
        let mut local = LocalService::clone(&exporter.bench.relay.parts.targets.all()[0]);
        change(&mut local);
        exporter.bench.targets.set(vec![local]);
    };
    rewritten(Box::new(only(&["node:peer"], false)));
    stream.send.write_all(b"still ").await.expect("written");
    exporter.bench.targets.set(Vec::new());
    stream.send.write_all(b"there").await.expect("a withdrawn service ends no flow");
    exporter.bench.targets.set(vec![local_service(
        "orders",
        "db-0",
        5432,
        "127.0.0.1:1".parse().expect("an address"),
    )]);
    rewritten(Box::new(only(&["node:other"], false)));
    let answer = timeout(Duration::from_secs(5), stream.recv.read_exact(&mut [0])).await.expect("soon");
    assert!(answer.is_err(), "{answer:?}");
    assert_eq!(exporter.bench.relay.counters().revoked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn who_searches_is_hung_up_on_and_named_whatever_it_asks_for() {
    let exporter = Exporter::new("east", unchanged).await;
    let unknown = OpenRequest { instance: named("db-1"), ..request() };
    {
        let mut denials = exporter.bench.relay.denials.lock().expect("not poisoned");
        let now = Instant::now().into_std();
        assert!((0..gossamer_core::access::BURST).all(|_| !denials.handle_denied(HERE, now)));
    }
    let mut stream = exporter.ask(&unknown.encode().expect("fits")).await;
    assert!(stream.recv.read_exact(&mut [0]).await.is_err());
    let reason = timeout(Duration::from_secs(5), exporter.link.near.closed()).await.expect("closed");
    assert!(reason.to_string().contains("too many refused requests"), "{reason}");
    let findings = exporter.bench.relay.parts.events.findings().all();
    assert_eq!((findings.len(), findings[0].who), (1, HERE));
    assert_eq!(exporter.bench.relay.counters().searches.load(Ordering::Relaxed), 1);
}
