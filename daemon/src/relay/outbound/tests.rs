//! The caller's end: which instance is reached, what the client sees when none is.

use super::*;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::time::timeout;

use gossamer_core::access::{Base, Policy};
use gossamer_core::catalog::Nearness;
use gossamer_core::select::EJECT_AFTER;
use gossamer_wire::Visibility;

use crate::relay::tests::{
    Aside, Bench, DENIED, HERE, Hops, Link, THERE, access, aside, greeter, group, instance, local_service,
    named, service, service_view, tcp_pair,
};
use crate::relay::tries::{ATTEMPT, LAST_ATTEMPT};
use crate::supervise::Stage;

/// A calling node of group `west` with a link to a serving one.
struct Mesh {
    caller: Bench,
    server: Bench,
    programs: Stage,
}

impl Mesh {
    /// The server offers `orders`, instances `db-0` and `db-1`, by a program that greets; the caller knows them.
    async fn new() -> Self {
        let (link, programs) = (Arc::new(Link::new().await), Stage::default());
        let mut caller = Bench::new(HERE, Arc::new(Hops(Some(Arc::clone(&link)))));
        let server = Bench::new(THERE, Arc::new(Hops(None)));
        server.relay.start_inbound(link.serve(&server.stage, "west"));
        let addr = greeter(&programs).await;
        let offered = ["db-0", "db-1"].map(|name| local_service("orders", name, 5432, addr));
        server.targets.set(offered.into());
        caller.set_service(service_view("orders", vec![instance("db-0", "west"), instance("db-1", "west")]));
        Self { caller, server, programs }
    }

    fn connect(&self) -> (DuplexStream, Aside<Result<Carried, ConnectError>>) {
        let (program, client) = duplex(1 << 20);
        let relay = self.caller.relay.clone();
        let flow =
            aside(
                async move { relay.connect(&service("orders"), None, None, PortChoice::Only, client).await },
            );
        (program, flow)
    }
}

/// Says `text`, ends, and returns all that came back.
async fn talk(mut program: DuplexStream, text: &[u8]) -> Vec<u8> {
    program.write_all(text).await.expect("written");
    program.shutdown().await.expect("ended");
    let mut answer = Vec::new();
    program.read_to_end(&mut answer).await.expect("read");
    answer
}

#[tokio::test]
async fn a_flow_reaches_an_instance_on_another_node() {
    let mesh = Mesh::new().await;
    let (program, flow) = mesh.connect();
    assert_eq!(talk(program, b"how are you").await, b"hello how are you bye");
    let carried = flow.end().await.expect("reached");
    assert_eq!((carried.bytes_in, carried.bytes_out, carried.broken), (11, 21, None));
    let counts = mesh.caller.relay.flow_counts();
    assert_eq!((counts.opened, counts.open, counts.bytes_in, counts.bytes_out), (1, 0, 11, 21));
    assert!(mesh.caller.relay.flows().is_empty());
}

#[tokio::test]
async fn the_service_greets_before_the_client_said_anything() {
    let mesh = Mesh::new().await;
    let (mut program, _flow) = mesh.connect();
    let mut greeting = [0; 6];
    program.read_exact(&mut greeting).await.expect("read");
    assert_eq!(&greeting, b"hello ");
    let flows = mesh.caller.relay.flows();
    assert_eq!((flows.len(), flows[0].direction), (1, Direction::Outbound));
    assert_eq!(mesh.server.relay.flows()[0].flow, flows[0].flow, "one id on both nodes");
}

#[tokio::test]
async fn a_refused_flow_is_retried_elsewhere_with_what_the_client_said() {
    let mesh = Mesh::new().await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("bound");
    let alive = greeter(&mesh.programs).await;
    let offered = [local_service("orders", "db-0", 5432, dead), local_service("orders", "db-1", 5432, alive)];
    mesh.server.targets.set(offered.into());
    for _ in 0..10 {
        let (program, flow) = mesh.connect();
        assert_eq!(talk(program, b"again").await, b"hello again bye");
        flow.end().await.expect("reached");
    }
    assert_eq!(mesh.caller.relay.counters().opened.load(Ordering::Relaxed), 10);
    assert_eq!(mesh.caller.relay.counters().failed.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_program_that_restarts_is_reached_when_it_is_back() {
    let mesh = Mesh::new().await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("bound");
    mesh.server.targets.set(vec![local_service("orders", "db-0", 5432, dead)]);
    let (program, flow) = mesh.connect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let alive = greeter(&mesh.programs).await;
    mesh.server.targets.set(vec![local_service("orders", "db-0", 5432, alive)]);
    assert_eq!(talk(program, b"you").await, b"hello you bye");
    flow.end().await.expect("reached");
}

#[tokio::test]
async fn an_instance_is_not_charged_with_what_others_took() {
    let mesh = Mesh::new().await;
    let alive = greeter(&mesh.programs).await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("bound");
    mesh.server.targets.set(vec![local_service("orders", "db-0", 5432, dead)]);
    let (program, flow) = mesh.connect();
    // Longer than a few rounds, each of which ends with a pause.
    let lost = 4 * ROUND_PAUSE;
    tokio::time::sleep(lost).await;
    mesh.server.targets.set(vec![local_service("orders", "db-1", 5432, alive)]);
    assert_eq!(talk(program, b"you").await, b"hello you bye");
    flow.end().await.expect("reached");
    let key = (THERE, service("orders"), named("db-1"));
    let (load, _) = mesh.caller.relay.flows.judge(&key, Instant::now().into_std());
    assert!(!load.connect.is_zero() && load.connect < lost, "{:?}", load.connect);
}

#[tokio::test]
async fn a_name_that_admits_nobody_fails_at_once() {
    let mesh = Mesh::new().await;
    mesh.server.targets.set(Vec::new());
    let (_program, flow) = mesh.connect();
    let began = Instant::now();
    let error = flow.end().await.expect_err("denied");
    assert_eq!(error, ConnectError::Denied("orders".to_owned()));
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn unknown_names_and_ports_are_told_apart() {
    let mesh = Mesh::new().await;
    let relay = &mesh.caller.relay;
    let connect = async |name: &str, port| {
        let (_program, client) = duplex(64);
        relay.connect(&service(name), None, None, port, client).await.expect_err("nobody")
    };
    assert_eq!(connect("nothing", PortChoice::Only).await, ConnectError::UnknownName("nothing".to_owned()));
    let unknown = ConnectError::UnknownPort { name: "orders".to_owned(), known: "5432".to_owned() };
    assert_eq!(connect("orders", PortChoice::Number(80)).await, unknown);
}

#[tokio::test]
async fn an_instance_is_reached_by_its_own_name() {
    let mesh = Mesh::new().await;
    let (program, client) = duplex(64);
    let (relay, west, db_1) = (mesh.caller.relay.clone(), group("west"), named("db-1"));
    let flow = aside(async move {
        relay.connect(&service("orders"), Some(&west), Some(&db_1), PortChoice::Number(5432), client).await
    });
    assert_eq!(talk(program, b"1").await, b"hello 1 bye");
    assert!(flow.end().await.is_ok());
}

#[tokio::test]
async fn an_instance_on_this_node_is_called_without_a_hop_by_the_same_rules() {
    let programs = Stage::default();
    let mut bench = Bench::new(HERE, Arc::new(Hops(None)));
    let mut own = instance("db-0", "west");
    own.node = HERE;
    own.nearness = Nearness::SameNode;
    bench.set_service(service_view("orders", vec![own, instance("db-1", "west")]));
    let mut local = local_service("orders", "db-0", 5432, greeter(&programs).await);
    bench.targets.set(vec![local.clone()]);
    let relay = bench.relay.clone();
    let (name, (program, client)) = (service("orders"), duplex(1 << 16));
    let flow = relay.connect(&name, None, None, PortChoice::Only, client);
    let (carried, answer) = tokio::join!(flow, talk(program, b"here"));
    assert_eq!(answer, b"hello here bye");
    assert_eq!(carried.expect("reached").bytes_in, 4);

    local.targets[0].addr = "127.240.1.2:5432".parse().expect("address");
    local.targets[0].access = access(Visibility::All, &[], Policy::default());
    bench.targets.set(vec![local]);
    bench.set_service(service_view("orders", {
        let mut own = instance("db-0", "west");
        own.node = HERE;
        vec![own]
    }));
    let (_program, client) = duplex(64);
    let denied = relay.connect(&name, None, None, PortChoice::Only, client).await;
    assert_eq!(denied, Err(ConnectError::Denied("orders".to_owned())));
}

#[tokio::test]
async fn a_vips_client_that_reaches_nobody_is_reset() {
    let mesh = Mesh::new().await;
    mesh.server.targets.set(Vec::new());
    let (mut program, accepted) = tcp_pair().await;
    mesh.caller.relay.accept_local(accepted, VipName::Service(service("orders")), 5432);
    let error = program.read(&mut [0]).await.expect_err("a reset, no clean end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(mesh.caller.relay.counters().failed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_vips_client_gets_the_whole_answer() {
    let mesh = Mesh::new().await;
    let (mut program, accepted) = tcp_pair().await;
    mesh.caller.relay.accept_local(accepted, VipName::Service(service("orders")), 5432);
    program.write_all(b"tcp").await.expect("written");
    program.shutdown().await.expect("ended");
    let mut answer = Vec::new();
    program.read_to_end(&mut answer).await.expect("a clean end");
    assert_eq!(answer, b"hello tcp bye");
}

/// Offers one instance, whose program reads `reads` bytes of its first caller and resets it, and greets the next.
async fn first_caller_is_reset(mesh: &Mesh, reads: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("free");
    let addr = listener.local_addr().expect("bound");
    mesh.programs.spawn("resetting", async move {
        let (mut first, _) = listener.accept().await.expect("a caller");
        first.read_exact(&mut vec![0; reads]).await.expect("its bytes");
        first.set_zero_linger().expect("option");
        drop(first);
        let (mut second, _) = listener.accept().await.expect("another");
        second.write_all(b"served").await.expect("written");
        std::future::pending::<()>().await;
    });
    mesh.server.targets.set(vec![local_service("orders", "db-0", 5432, addr)]);
}

#[tokio::test]
async fn a_flow_that_breaks_before_a_byte_has_passed_is_opened_again() {
    let mut mesh = Mesh::new().await;
    mesh.caller.set_service(service_view("orders", vec![instance("db-0", "west")]));
    first_caller_is_reset(&mesh, 0).await;
    let (mut program, _flow) = mesh.connect();
    let mut answer = [0; 6];
    program.read_exact(&mut answer).await.expect("the second time");
    assert_eq!(&answer, b"served");
}

#[tokio::test]
async fn a_flow_that_breaks_with_what_the_client_said_is_not_repeated() {
    let mut mesh = Mesh::new().await;
    mesh.caller.set_service(service_view("orders", vec![instance("db-0", "west")]));
    first_caller_is_reset(&mesh, 5).await;
    let (mut program, flow) = mesh.connect();
    program.write_all(b"order").await.expect("written");
    assert!(flow.end().await.expect("it was open").broken.is_some(), "perhaps it was carried out");
}

#[tokio::test]
async fn a_silent_node_costs_a_quarter_of_a_second_when_another_one_is_left() {
    let mesh = Mesh::new().await;
    // A stream that is accepted and never answered, then one that is served.
    let silent = Arc::new(Link::new().await);
    let mut caller = Bench::new(HERE, Arc::new(Hops(Some(Arc::clone(&silent)))));
    let mut own = instance("db-1", "west");
    (own.node, own.nearness) = (HERE, Nearness::Any);
    caller.set_service(service_view("orders", vec![instance("db-0", "west"), own]));
    caller.targets.set(vec![local_service("orders", "db-1", 5432, greeter(&mesh.programs).await)]);
    let (program, client) = duplex(1 << 16);
    let (began, name) = (Instant::now(), service("orders"));
    let flow = caller.relay.connect(&name, None, None, PortChoice::Only, client);
    let (carried, answer) = tokio::join!(flow, talk(program, b"kept"));
    assert_eq!(answer, b"hello kept bye");
    assert!(carried.is_ok());
    let took = began.elapsed();
    assert!(took >= ATTEMPT && took < LAST_ATTEMPT, "{took:?}");
    // The slow one had the client's words and was given up before the other one got them.
    let mut given_up = silent.accept("west").await;
    let mut sent = Vec::new();
    let error = loop {
        match given_up.recv.read_chunk(64).await {
            Ok(Some(bytes)) => sent.extend_from_slice(&bytes),
            Ok(None) => panic!("a reset, no clean end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReadError::Reset(_)), "{error}");
}

#[tokio::test]
async fn an_instance_that_drains_is_left_alone_and_not_blamed() {
    let mesh = Mesh::new().await;
    let addr = greeter(&mesh.programs).await;
    let mut offered = ["db-0", "db-1"].map(|name| local_service("orders", name, 5432, addr));
    offered[0].targets[0].draining = true;
    mesh.server.targets.set(offered.into());
    for _ in 0..20 {
        let (program, flow) = mesh.connect();
        assert_eq!(talk(program, b"x").await, b"hello x bye");
        flow.end().await.expect("reached");
    }
    let (caller, server) = (mesh.caller.relay.flow_counts(), mesh.server.relay.flow_counts());
    let of = |all: &[(&str, u64)]| {
        all.iter().find(|(reason, _)| *reason == "draining").map_or(0, |(_, count)| *count)
    };
    assert!(
        caller.retries > 0 && of(&caller.in_vain) == caller.retries && of(&server.refused) == caller.retries
    );
    let key = (THERE, service("orders"), named("db-0"));
    assert_eq!(mesh.caller.relay.flows.judge(&key, Instant::now().into_std()).1, None);
}

#[tokio::test]
async fn what_lives_when_a_drain_is_over_is_reset() {
    let mesh = Mesh::new().await;
    let addr = greeter(&mesh.programs).await;
    let offer = |drains_until| {
        let mut local = local_service("orders", "db-0", 5432, addr);
        local.targets[0].draining = drains_until > Some(0);
        local.drains_until = drains_until;
        mesh.server.targets.set(vec![local]);
    };
    offer(None);
    let (mut program, flow) = mesh.connect();
    program.read_exact(&mut [0; 6]).await.expect("greeted");
    let (orders, db_0) = (service("orders"), named("db-0"));
    let server = &mesh.server.relay;
    assert_eq!(server.served_flows(&orders, &db_0), 1);
    // One that was undone, and one with another deadline, end nothing; the last one does.
    server.end_drained(orders.clone(), db_0.clone(), Duration::ZERO, 7);
    offer(Some(8));
    server.end_drained(orders.clone(), db_0.clone(), Duration::ZERO, 7);
    assert!(timeout(Duration::from_millis(100), program.read(&mut [0])).await.is_err(), "it lives");
    server.end_drained(orders.clone(), db_0.clone(), Duration::ZERO, 8);
    let broken = flow.end().await.expect("it was open").broken.expect("no clean end");
    assert!(broken.starts_with("service: "), "{broken}");
    while server.served_flows(&orders, &db_0) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stop_waits_for_flows_and_no_longer_than_it_may() {
    let mesh = Mesh::new().await;
    let (mut program, flow) = mesh.connect();
    program.read_exact(&mut [0; 6]).await.expect("greeted");
    assert_eq!(mesh.caller.relay.leaving(), None);
    assert_eq!(mesh.caller.relay.leave(Duration::ZERO).await, 1);
    let server = mesh.server.relay.clone();
    let stop = aside(async move { server.leave(Duration::from_secs(20)).await });
    assert_eq!(talk(program, b"x").await, b"x bye");
    flow.end().await.expect("reached");
    assert_eq!(stop.end().await, 0);
    let (flows, left) = mesh.server.relay.leaving().expect("it stops");
    assert!(flows == 0 && left > Duration::ZERO, "{flows} {left:?}");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_search() {
    let silent = Arc::new(Link::new().await);
    let mut caller = Bench::new(HERE, Arc::new(Hops(Some(silent))));
    caller.set_service(service_view("orders", vec![instance("db-0", "west")]));
    let (program, accepted) = tcp_pair().await;
    let relay = caller.relay.clone();
    let client = Guarded::new(accepted);
    let flow =
        aside(
            async move { relay.carry(&VipName::Service(service("orders")), &PortChoice::Only, client).await },
        );
    program.set_zero_linger().expect("option");
    drop(program);
    assert_eq!(flow.end().await, Err(ConnectError::ClientGone));
}

#[tokio::test]
async fn what_a_client_says_before_an_answer_is_bounded_and_none_is_lost() {
    let mesh = Mesh::new().await;
    let silent = Arc::new(Link::new().await);
    let mut caller = Bench::new(HERE, Arc::new(Hops(Some(silent))));
    let mut own = instance("db-1", "west");
    (own.node, own.nearness) = (HERE, Nearness::Any);
    caller.set_service(service_view("orders", vec![instance("db-0", "west"), own]));
    caller.targets.set(vec![local_service("orders", "db-1", 5432, greeter(&mesh.programs).await)]);

    let (mut program, client) = duplex(1_024);
    let relay = caller.relay.clone();
    let flow =
        aside(async move { relay.connect(&service("orders"), None, None, PortChoice::Only, client).await });
    let said: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 241) as u8).collect();
    // The first instance never answers: the client is held back until the next one is tried.
    let mut at_once = 0;
    let write = async {
        while at_once < said.len() {
            at_once += program.write(&said[at_once..]).await.expect("written");
        }
    };
    assert!(timeout(ATTEMPT / 2, write).await.is_err());
    assert!(at_once <= MAX_EARLY_BYTES + 1_024, "{at_once} bytes were taken");

    let (mut read, mut write) = tokio::io::split(program);
    let rest = async {
        write.write_all(&said[at_once..]).await.expect("written");
        write.shutdown().await.expect("ended");
    };
    let mut answer = Vec::new();
    let all = async { read.read_to_end(&mut answer).await.expect("read") };
    tokio::join!(rest, all);
    assert_eq!(answer, [b"hello ", &said[..], b" bye"].concat());
    assert_eq!(flow.end().await.expect("reached").bytes_in, said.len() as u64);
}

#[tokio::test]
async fn open_flows_spread_over_equal_instances() {
    let mesh = Mesh::new().await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let (mut program, flow) = mesh.connect();
        program.read_exact(&mut [0; 6]).await.expect("greeted");
        open.push((program, flow));
    }
    let flows = mesh.server.relay.flows();
    let of = |name: &str| flows.iter().filter(|flow| flow.instance == named(name)).count();
    assert_eq!((of("db-0"), of("db-1")), (5, 5));
    assert_eq!(mesh.caller.relay.flow_counts().open, 10);
}

#[tokio::test]
async fn an_instance_that_keeps_failing_is_left_alone() {
    let mesh = Mesh::new().await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("bound");
    let alive = greeter(&mesh.programs).await;
    let offered = [local_service("orders", "db-0", 5432, dead), local_service("orders", "db-1", 5432, alive)];
    mesh.server.targets.set(offered.into());
    for _ in 0..60 {
        let (program, flow) = mesh.connect();
        assert_eq!(talk(program, b"x").await, b"hello x bye");
        flow.end().await.expect("reached");
    }
    assert_eq!(mesh.caller.relay.flow_counts().retries, u64::from(EJECT_AFTER));
}

#[tokio::test]
async fn a_group_is_called_by_its_name_and_others_only_by_import() {
    let mut mesh = Mesh::new().await;
    let mut strange = instance("db-0", "east");
    strange.imported = false;
    mesh.caller.set_service(service_view("orders", vec![strange]));
    let connect = async |group: Option<&GroupName>| {
        let (program, client) = duplex(1 << 16);
        let name = service("orders");
        let flow = mesh.caller.relay.connect(&name, group, None, PortChoice::Only, client);
        timeout(Duration::from_secs(2), flow).await.map(|ended| (ended, program)).ok()
    };
    let (ended, _) = connect(None).await.expect("at once");
    assert_eq!(ended, Err(ConnectError::UnknownName("orders".to_owned())));
    assert!(connect(Some(&group("east"))).await.is_none(), "the flow is open");
}

#[tokio::test]
async fn stopping_ends_open_flows_with_a_reset() {
    let mesh = Mesh::new().await;
    let (mut program, accepted) = tcp_pair().await;
    mesh.caller.relay.accept_local(accepted, VipName::Service(service("orders")), 5432);
    program.read_exact(&mut [0; 6]).await.expect("greeted");
    mesh.caller.stage.stop(Duration::from_secs(5)).await;
    let error = program.read(&mut [0]).await.expect_err("a reset, no clean end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_import_that_goes_ends_flows_by_the_short_name_only() {
    let mut mesh = Mesh::new().await;
    let relay = mesh.caller.relay.clone();
    let changes = (relay.parts.targets.access_changes(), relay.parts.index.changes());
    mesh.caller.stage.spawn_short("judge", relay.clone().judge(changes));
    let view = |imported| {
        let mut found = instance("db-0", "east");
        found.imported = imported;
        service_view("orders", vec![found])
    };
    mesh.caller.set_service(view(true));
    let (mut by_service, flow) = mesh.connect();
    by_service.read_exact(&mut [0; 6]).await.expect("greeted");
    let (mut by_group, client) = duplex(1 << 20);
    let _other = aside(async move {
        relay.connect(&service("orders"), Some(&group("east")), None, PortChoice::Only, client).await
    });
    by_group.read_exact(&mut [0; 6]).await.expect("greeted");

    mesh.caller.set_service(view(false));
    let carried = flow.end().await.expect("it was open");
    assert_eq!(carried.broken.as_deref(), Some(NO_LONGER_IMPORTED));
    by_group.write_all(b"x").await.expect("it goes on");
    assert_eq!(mesh.caller.relay.counters().revoked.load(Ordering::Relaxed), 1);
    let (_program, flow) = mesh.connect();
    assert!(matches!(flow.end().await, Err(ConnectError::UnknownName(_))));
}

#[tokio::test]
async fn a_flow_that_stays_on_this_node_ends_with_its_right() {
    let mut mesh = Mesh::new().await;
    let relay = mesh.caller.relay.clone();
    let changes = (relay.parts.targets.access_changes(), relay.parts.index.changes());
    mesh.caller.stage.spawn_short("judge", relay.clone().judge(changes));
    let mut own = instance("db-0", "west");
    (own.node, own.nearness) = (HERE, Nearness::SameNode);
    mesh.caller.set_service(service_view("orders", vec![own]));
    let mut local = local_service("orders", "db-0", 5432, greeter(&mesh.programs).await);
    mesh.caller.targets.set(vec![local.clone()]);
    let (mut program, flow) = mesh.connect();
    program.read_exact(&mut [0; 6]).await.expect("greeted");
    local.targets[0].access = access(Visibility::Own, &[], Policy { base: Base::Deny, audit: false });
    mesh.caller.targets.set(vec![local]);
    assert_eq!(flow.end().await.expect("it was open").broken.as_deref(), Some(NO_LONGER_ALLOWED));
    let (_program, flow) = mesh.connect();
    assert!(matches!(flow.end().await, Err(ConnectError::Denied(_))));
}

#[tokio::test]
async fn the_deny_list_is_asked_again_for_flows_that_stay_on_this_node() {
    let mut mesh = Mesh::new().await;
    let mut own = instance("db-0", "west");
    (own.node, own.nearness) = (HERE, Nearness::SameNode);
    mesh.caller.set_service(service_view("orders", vec![own]));
    for denied in DENIED {
        mesh.caller.targets.set(vec![local_service(
            "orders",
            "db-0",
            5432,
            denied.parse().expect("address"),
        )]);
        let (_program, flow) = mesh.connect();
        assert!(matches!(flow.end().await, Err(ConnectError::Denied(_))), "{denied}");
    }
    assert_eq!(mesh.caller.relay.counters().denied.load(Ordering::Relaxed), DENIED.len() as u64);
}

#[tokio::test]
async fn a_client_whose_instances_all_refuse_hears_of_it_within_a_second() {
    let mut mesh = Mesh::new().await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("bound");
    let offered = ["db-0", "db-1"].map(|name| local_service("orders", name, 5432, dead));
    mesh.server.targets.set(offered.into());
    let began = Instant::now();
    let (_program, flow) = mesh.connect();
    let error = flow.end().await.expect_err("nobody is there");
    let took = began.elapsed();
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(2), "{took:?}");
    // Nobody to be asked is an answer as well.
    mesh.caller.set_service(service_view("orders", vec![idle()]));
    let began = Instant::now();
    let (_program, flow) = mesh.connect();
    assert!(matches!(flow.end().await, Err(ConnectError::Unreachable { .. })));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// An instance that takes no flows.
fn idle() -> InstanceView {
    InstanceView { weight: 0, ..instance("db-0", "west") }
}

#[tokio::test]
async fn a_client_waits_for_an_instance_that_drains_longer_than_for_one_that_refuses() {
    let mut mesh = Mesh::new().await;
    let dead = std::net::TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("bound");
    let mut draining = local_service("orders", "db-0", 5432, dead);
    draining.targets[0].draining = true;
    mesh.server.targets.set(vec![draining]);
    mesh.caller.set_service(service_view("orders", vec![instance("db-0", "west")]));
    let (program, flow) = mesh.connect();
    // Longer than refusals are waited for.
    tokio::time::sleep(ANSWERED_WITHIN * 2).await;
    let alive = greeter(&mesh.programs).await;
    mesh.server.targets.set(vec![local_service("orders", "db-0", 5432, alive)]);
    assert_eq!(talk(program, b"you").await, b"hello you bye");
    flow.end().await.expect("reached");
}

#[tokio::test]
async fn an_instance_that_takes_flows_and_breaks_them_at_once_is_left_alone() {
    let mesh = Mesh::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("free");
    let (broken, alive) = (listener.local_addr().expect("bound"), greeter(&mesh.programs).await);
    mesh.programs.spawn("breaking", async move {
        while let Ok((mut client, _)) = listener.accept().await {
            client.read_exact(&mut [0]).await.expect("a byte");
            client.set_zero_linger().expect("option");
        }
    });
    let offered =
        [local_service("orders", "db-0", 5432, broken), local_service("orders", "db-1", 5432, alive)];
    mesh.server.targets.set(offered.into());
    let ends = async |count| {
        let mut broke = 0;
        for _ in 0..count {
            let (mut program, flow) = mesh.connect();
            // It may be gone before the second word.
            let _ = program.write_all(b"x").await;
            let _ = program.shutdown().await;
            let _ = program.read_to_end(&mut Vec::new()).await;
            broke += u32::from(flow.end().await.expect("open").broken.is_some());
        }
        broke
    };
    let key = (THERE, service("orders"), named("db-0"));
    let is_ejected = || mesh.caller.relay.flows.judge(&key, Instant::now().into_std()).1.is_some();
    let mut broke = 0;
    while !is_ejected() {
        broke += ends(1).await;
    }
    assert_eq!((broke, ends(5).await), (EJECT_AFTER, 0));
}

#[tokio::test]
async fn a_reset_that_overtakes_the_status_ends_a_flow_whose_words_are_gone() {
    let link = Link::new().await;
    let mut hop = link.open().await;
    let (mut program, mut client) = tcp_pair().await;
    program.write_all(b"order").await.expect("written");
    let asked = aside(async move {
        let mut early = Early::default();
        let status = ask(&mut hop, b"?".to_vec(), &mut client, &mut early).await;
        let copied =
            copy(&mut Guarded::new(client), &mut Guarded::new(hop), &mut early, &Counts::default()).await;
        (status, early, copied)
    });
    let mut accepted = link.accept("west").await;
    accepted.recv.read_exact(&mut [0; 6]).await.expect("all of it");
    accepted.reset();
    let (status, early, copied) = asked.end().await;
    assert!(matches!(status, Ok(OpenStatus::Open)), "{status:?}");
    assert_eq!((early.sent, early.chunks.len()), (5, 0), "they are not sent again");
    assert!(matches!(copied, Err(Broken::Service(_))), "{copied:?}");
    let error = program.read(&mut [0]).await.expect_err("no clean end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
