//! Both ends over a real QUIC link, with real sockets at the client and at the target.

use super::*;

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use gossamer_core::access::{Base, Policy};
use gossamer_core::catalog::{InstanceState, Nearness};
use gossamer_core::vip::VipName;
use gossamer_wire::flow::{OpenRequest, OpenStatus, encode_framed, encode_stream_id};
use gossamer_wire::limits::{MAX_FRAMED_AT_ONCE, MAX_UDP_BYTES};
use gossamer_wire::{Port, Transport, Visibility};

use crate::clients::Clients;
use crate::register::LocalService;
use crate::relay::tests::{
    Bench, DENIED, HERE, Hops, Link, THERE, access, instance, local_service, named, service, service_view,
};
use crate::supervise::Stage;
use crate::transport::FlowStream;

const SOON: Duration = Duration::from_secs(5);

/// A UDP program that answers `NAME:` and what it got.
async fn echo(stage: &Stage, name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("free");
    let address = socket.local_addr().expect("bound");
    stage.spawn_short("echo", async move {
        let mut buffer = vec![0; MAX_UDP_BYTES];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let answer = [name.as_bytes(), b":", &buffer[..len]].concat();
            let _ = socket.send_to(&answer[..answer.len().min(MAX_UDP_BYTES)], from).await;
        }
    });
    address
}

fn gone() -> SocketAddr {
    std::net::UdpSocket::bind("127.0.0.1:0").expect("free").local_addr().expect("bound")
}

fn udp_service(instance: &str, address: SocketAddr) -> LocalService {
    let mut local = local_service("dns", instance, 53, address);
    local.record.ports[0].transport = Transport::Udp;
    local.targets[0].transport = Transport::Udp;
    local
}

fn udp_instance(name: &str) -> gossamer_core::catalog::InstanceView {
    let mut found = instance(name, "west");
    found.ports = vec![Port { name: 53.into(), number: 53, transport: Transport::Udp }];
    found
}

/// A calling node with a port that stands for `dns`, a link, and a serving node.
struct Mesh {
    caller: Bench,
    server: Bench,
    link: Arc<Link>,
    programs: Stage,
    vip: SocketAddr,
    receiving: Receiving,
}

impl Mesh {
    async fn new(idle: Duration) -> Self {
        let (link, programs) = (Arc::new(Link::new().await), Stage::default());
        let mut caller = Bench::new(HERE, Arc::new(Hops(Some(Arc::clone(&link)))));
        let mut server = Bench::new(THERE, Arc::new(Hops(None)));
        caller.relay.udp = Arc::new(Udp::idle_after(idle));
        server.relay.udp = Arc::new(Udp::idle_after(idle));
        server.relay.clone().start_inbound(link.serve(&server.stage, "west"));
        server.targets.set(vec![udp_service("ns-0", echo(&programs, "ns-0").await)]);
        caller.set_service(service_view("dns", vec![udp_instance("ns-0")]));
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("free");
        let address = socket.local_addr().expect("bound");
        let vip = Vip {
            name: VipName::Service(service("dns")),
            port: 53,
            clients: Clients::default(),
            touch: Box::new(|| {}),
        };
        let relay = caller.relay.clone();
        let receiving = Receiving::start(&caller.stage, |stop| relay.receive_datagrams(socket, vip, stop));
        Self { caller, server, link, programs, vip: address, receiving }
    }

    async fn client(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("free");
        socket.connect(self.vip).await.expect("connected");
        socket
    }

    fn counts(&self) -> FlowCounts {
        self.caller.relay.flow_counts()
    }

    /// Waits until the caller has so many flows.
    async fn has_flows(&self, count: u64) {
        let has = async || {
            while self.counts().udp_open != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, has()).await.unwrap_or_else(|_| panic!("{} flows", self.counts().udp_open));
    }
}

fn dropped(counts: &FlowCounts, reason: &str) -> u64 {
    counts.dropped.iter().find(|(known, _)| *known == reason).expect("a reason").1
}

async fn receive_text(client: &UdpSocket) -> String {
    let mut answer = vec![0; MAX_UDP_BYTES];
    let len = timeout(SOON, client.recv(&mut answer)).await.expect("an answer").expect("received");
    String::from_utf8_lossy(&answer[..len]).into_owned()
}

/// Asks as a DNS client does: again when nothing came.
async fn ask(client: &UdpSocket, text: &str) -> String {
    let mut answer = vec![0; MAX_UDP_BYTES];
    for _ in 0..20 {
        client.send(text.as_bytes()).await.expect("sent");
        if let Ok(Ok(len)) = timeout(Duration::from_millis(500), client.recv(&mut answer)).await {
            return String::from_utf8_lossy(&answer[..len]).into_owned();
        }
    }
    panic!("no answer");
}

#[tokio::test]
async fn datagrams_reach_the_target_and_answers_leave_from_the_vip() {
    let mesh = Mesh::new(SOON).await;
    let client = mesh.client().await;
    client.send(b"first").await.expect("sent");
    assert_eq!(receive_text(&client).await, "ns-0:first", "the first one is not lost");
    for number in 0..50 {
        client.send(number.to_string().as_bytes()).await.expect("sent");
        assert_eq!(receive_text(&client).await, format!("ns-0:{number}"));
    }
    let counts = mesh.counts();
    assert_eq!((counts.udp_open, counts.opened, counts.datagrams_in, counts.datagrams_out), (1, 1, 51, 51));
    let other = mesh.client().await;
    other.send(b"").await.expect("sent");
    assert_eq!(receive_text(&other).await, "ns-0:", "an empty datagram is one too");
    assert_eq!((mesh.counts().udp_open, mesh.server.relay.flow_counts().served), (2, 2));
    assert_eq!(mesh.server.relay.flows()[0].flow, mesh.caller.relay.flows()[0].flow, "one id on both nodes");
}

#[tokio::test]
async fn datagrams_larger_than_a_packet_go_on_the_stream_both_ways() {
    let mesh = Mesh::new(SOON).await;
    let client = mesh.client().await;
    assert_eq!(ask(&client, "small").await, "ns-0:small");
    for len in [1_100, 1_500, 9_000, 60_000, MAX_UDP_BYTES - 5] {
        let text = "x".repeat(len);
        client.send(text.as_bytes()).await.expect("sent");
        assert_eq!(receive_text(&client).await, format!("ns-0:{text}"), "{len}");
    }
    // The first of a flow as well.
    let client = mesh.client().await;
    client.send(&[b'y'; 60_000]).await.expect("sent");
    assert_eq!(receive_text(&client).await.len(), 60_005);
}

#[tokio::test]
async fn an_idle_flow_ends_on_both_nodes_and_the_next_datagram_makes_another() {
    let mesh = Mesh::new(Duration::from_millis(200)).await;
    let client = mesh.client().await;
    client.send(b"one").await.expect("sent");
    assert_eq!(receive_text(&client).await, "ns-0:one");
    mesh.has_flows(0).await;
    timeout(SOON, async {
        while mesh.server.relay.flow_counts().udp_open > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the server is told");
    client.send(b"two").await.expect("sent");
    assert_eq!(receive_text(&client).await, "ns-0:two");
    assert_eq!(mesh.counts().opened, 2);
}

#[tokio::test]
async fn a_refused_flow_goes_to_another_instance_with_what_it_began_with() {
    let mut mesh = Mesh::new(SOON).await;
    let alive = echo(&mesh.programs, "ns-1").await;
    mesh.server.targets.set(vec![udp_service("ns-0", gone()), udp_service("ns-1", alive)]);
    mesh.caller.set_service(service_view("dns", vec![udp_instance("ns-0"), udp_instance("ns-1")]));
    for number in 0..10 {
        let client = mesh.client().await;
        client.send(number.to_string().as_bytes()).await.expect("sent");
        assert_eq!(receive_text(&client).await, format!("ns-1:{number}"));
    }
}

#[tokio::test]
async fn a_flow_whose_instance_leaves_goes_to_another_one() {
    let mut mesh = Mesh::new(SOON).await;
    let other = echo(&mesh.programs, "ns-1").await;
    let first = echo(&mesh.programs, "ns-0").await;
    mesh.server.targets.set(vec![udp_service("ns-0", first), udp_service("ns-1", other)]);
    let client = mesh.client().await;
    assert_eq!(ask(&client, "a").await, "ns-0:a");
    let mut leaving = udp_instance("ns-0");
    leaving.state = InstanceState::Failing;
    mesh.caller.set_service(service_view("dns", vec![leaving, udp_instance("ns-1")]));
    client.send(b"b").await.expect("sent");
    assert_eq!(receive_text(&client).await, "ns-1:b");
    // A change that leaves its instance leaves the flow.
    mesh.caller.set_service(service_view("dns", vec![udp_instance("ns-1"), udp_instance("ns-2")]));
    client.send(b"c").await.expect("sent");
    assert_eq!(receive_text(&client).await, "ns-1:c");
    assert_eq!(mesh.counts().opened, 2);
}

#[tokio::test]
async fn a_withdrawn_service_takes_no_more_datagrams_of_a_living_flow() {
    let mesh = Mesh::new(SOON).await;
    let client = mesh.client().await;
    assert_eq!(ask(&client, "a").await, "ns-0:a");
    mesh.server.targets.set(Vec::new());
    client.send(b"b").await.expect("sent");
    mesh.has_flows(0).await;
    let counts = mesh.server.relay.flow_counts();
    assert_eq!((counts.udp_open, counts.datagrams_in), (0, 1));
    assert_eq!(counts.revoked, 0, "nobody has said that the caller may not call");
}

#[tokio::test]
async fn a_datagram_that_meets_a_change_first_tells_a_revocation_from_a_withdrawal() {
    let mut mesh = Mesh::new(SOON).await;
    let mut own = udp_instance("ns-0");
    (own.node, own.nearness) = (HERE, Nearness::SameNode);
    for (view, is_here) in [(udp_instance("ns-0"), false), (own, true)] {
        mesh.caller.set_service(service_view("dns", vec![view]));
        // Nothing but the datagram tells a flow of this node: nobody judges them in this test.
        let serving = if is_here { &mesh.caller } else { &mesh.server };
        let local = udp_service("ns-0", echo(&mesh.programs, "ns-0").await);
        let mut denied = local.clone();
        denied.targets[0].access = access(Visibility::Own, &[], Policy { base: Base::Deny, audit: false });
        let moved = udp_service("ns-0", echo(&mesh.programs, "moved").await);
        for (change, revoked) in [(vec![moved], 0), (Vec::new(), 0), (vec![denied], 1)] {
            serving.targets.set(vec![local.clone()]);
            let client = mesh.client().await;
            assert_eq!(ask(&client, "a").await, "ns-0:a");
            serving.targets.set(change);
            client.send(b"b").await.expect("sent");
            mesh.has_flows(0).await;
            assert_eq!(serving.relay.flow_counts().revoked, revoked, "here: {is_here}");
        }
    }
}

#[tokio::test]
async fn a_flow_that_stays_on_this_node_follows_the_same_rules() {
    let mut mesh = Mesh::new(SOON).await;
    let mut own = udp_instance("ns-9");
    (own.node, own.nearness) = (HERE, Nearness::SameNode);
    mesh.caller.targets.set(vec![udp_service("ns-9", echo(&mesh.programs, "ns-9").await)]);
    mesh.caller.set_service(service_view("dns", vec![own.clone(), udp_instance("ns-0")]));
    let client = mesh.client().await;
    client.send(b"here").await.expect("sent");
    assert_eq!(receive_text(&client).await, "ns-9:here");
    client.send(&[b'x'; 60_000]).await.expect("sent");
    assert_eq!(receive_text(&client).await.len(), 60_005);
    assert_eq!(mesh.server.relay.flow_counts().served, 0);
    // Its program is gone: the other instance takes the next one.
    mesh.caller.targets.set(vec![udp_service("ns-9", gone())]);
    let client = mesh.client().await;
    client.send(b"there").await.expect("sent");
    assert_eq!(receive_text(&client).await, "ns-0:there");
}

#[tokio::test]
async fn a_name_that_nobody_serves_drops_and_counts() {
    let mesh = Mesh::new(SOON).await;
    mesh.server.targets.set(Vec::new());
    let client = mesh.client().await;
    client.send(b"x").await.expect("sent");
    timeout(SOON, async {
        while dropped(&mesh.counts(), "unreachable") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("denied at once");
    mesh.has_flows(0).await;
}

#[tokio::test]
async fn closing_a_port_ends_its_flows_and_frees_it() {
    let mesh = Mesh::new(SOON).await;
    let client = mesh.client().await;
    assert_eq!(ask(&client, "a").await, "ns-0:a");
    timeout(SOON, mesh.receiving.close()).await.expect("closed");
    assert!(std::net::UdpSocket::bind(mesh.vip).is_ok(), "the port is free");
    assert_eq!(mesh.caller.relay.flow_counts().udp_open, 0);
}

#[tokio::test]
async fn clients_beyond_the_limit_take_the_place_of_the_longest_idle_one() {
    let mut mesh = Mesh::new(SOON).await;
    // As if only two flows were allowed.
    let taken = Arc::clone(&mesh.caller.relay.udp.slots)
        .try_acquire_many_owned(MAX_UDP_FLOWS_PER_PEER - 2)
        .expect("free");
    let clients = [mesh.client().await, mesh.client().await, mesh.client().await];
    for client in &clients {
        assert_eq!(ask(client, "a").await, "ns-0:a");
    }
    mesh.has_flows(2).await;
    assert_eq!(ask(&clients[0], "again").await, "ns-0:again");
    drop(taken);
    mesh.caller.set_service(service_view("dns", Vec::new()));
}

#[tokio::test]
async fn a_burst_to_a_dead_program_goes_to_another_instance() {
    let mut mesh = Mesh::new(SOON).await;
    let alive = echo(&mesh.programs, "ns-1").await;
    mesh.server.targets.set(vec![udp_service("ns-0", gone()), udp_service("ns-1", alive)]);
    mesh.caller.set_service(service_view("dns", vec![udp_instance("ns-0"), udp_instance("ns-1")]));
    let is_ejected = || mesh.caller.relay.flows.judge(&key("ns-0"), Instant::now().into_std()).1;
    for _ in 0..200 {
        let client = mesh.client().await;
        // As glibc asks for A and AAAA: the second datagram is told of what the first one met.
        client.send(b"a").await.expect("sent");
        client.send(b"aaaa").await.expect("sent");
        let mut answers = [receive_text(&client).await, receive_text(&client).await];
        answers.sort();
        assert_eq!(answers, ["ns-1:a", "ns-1:aaaa"]);
        if is_ejected().is_some() {
            return;
        }
    }
    panic!("what refuses again and again is asked again and again");
}

fn key(instance: &str) -> crate::relay::flow::InstanceKey {
    (THERE, service("dns"), named(instance))
}

#[tokio::test]
async fn idle_flows_say_nothing_against_their_instance() {
    let mesh = Mesh::new(Duration::from_millis(200)).await;
    for _ in 0..3 {
        let clients = [mesh.client().await, mesh.client().await, mesh.client().await];
        for client in &clients {
            client.send(b"x").await.expect("sent");
            assert_eq!(receive_text(client).await, "ns-0:x");
        }
        mesh.has_flows(0).await;
    }
    let flows = &mesh.caller.relay.flows;
    assert!(flows.judge(&key("ns-0"), Instant::now().into_std()).1.is_none());
}

#[tokio::test]
async fn a_target_that_moves_gets_no_more_of_a_flow_where_it_was() {
    let mesh = Mesh::new(SOON).await;
    let client = mesh.client().await;
    assert_eq!(ask(&client, "a").await, "ns-0:a");
    let moved = echo(&mesh.programs, "moved").await;
    mesh.server.targets.set(vec![udp_service("ns-0", moved)]);
    client.send(b"b").await.expect("sent");
    mesh.has_flows(0).await;
    assert_eq!(ask(&client, "c").await, "moved:c");
}

#[tokio::test]
async fn a_full_port_leaves_room_for_others() {
    let mesh = Mesh::new(SOON).await;
    let _taken = Arc::clone(&mesh.caller.relay.udp.slots)
        .try_acquire_many_owned(MAX_UDP_FLOWS_PER_PEER - 1)
        .expect("free");
    let first = mesh.client().await;
    assert_eq!(ask(&first, "a").await, "ns-0:a");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("free");
    let address = socket.local_addr().expect("bound");
    let name = VipName::Service(service("dns"));
    let vip = Vip { name, port: 53, clients: Clients::default(), touch: Box::new(|| {}) };
    let relay = mesh.caller.relay.clone();
    let _other = Receiving::start(&mesh.caller.stage, |stop| relay.receive_datagrams(socket, vip, stop));
    let second = UdpSocket::bind("127.0.0.1:0").await.expect("free");
    second.connect(address).await.expect("connected");
    assert_eq!(ask(&second, "b").await, "ns-0:b");
    assert_eq!(dropped(&mesh.counts(), "full"), 0);
}

#[tokio::test]
async fn who_sends_on_to_nobody_does_not_make_flow_after_flow() {
    let mesh = Mesh::new(SOON).await;
    mesh.server.targets.set(Vec::new());
    let client = mesh.client().await;
    let failed = || mesh.caller.relay.counters().failed.load(Ordering::Relaxed);
    client.send(b"x").await.expect("sent");
    timeout(SOON, async {
        while failed() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("denied");
    mesh.has_flows(0).await;
    let (before, began) = (dropped(&mesh.counts(), "unreachable"), Instant::now());
    for _ in 0..50 {
        client.send(b"x").await.expect("sent");
    }
    timeout(SOON, async {
        while dropped(&mesh.counts(), "unreachable") < before + 50 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("all are counted");
    let most = 1 + 1 + began.elapsed().as_millis() / 250;
    assert!(u128::from(failed()) <= most, "{} of at most {most}", failed());
}

/// A peer that speaks the protocol by hand.
struct Peer {
    mesh: Mesh,
}

impl Peer {
    async fn new() -> Self {
        Self { mesh: Mesh::new(SOON).await }
    }

    async fn open(&self) -> (FlowStream, OpenStatus) {
        let request = OpenRequest {
            flow: 7,
            service: service("dns"),
            instance: named("ns-0"),
            port: 53.into(),
            transport: Transport::Udp,
        };
        let mut stream = self.mesh.link.open().await;
        stream.send.write_all(&request.encode().expect("fits")).await.expect("written");
        let mut status = [0];
        stream.recv.read_exact(&mut status).await.expect("a status");
        (stream, OpenStatus::try_from(status[0]).expect("known"))
    }

    fn datagram(&self, stream: u64, payload: &[u8]) {
        let bytes = [&encode_stream_id(stream)[..], payload].concat();
        self.mesh.link.near.send_datagram(Bytes::from(bytes)).expect("queued");
    }

    fn strays(&self) -> u64 {
        self.mesh.link.datagrams[1].strays()
    }
}

#[tokio::test]
async fn datagrams_for_flows_that_are_not_there_are_counted_and_dropped() {
    let peer = Peer::new().await;
    let (mut stream, status) = peer.open().await;
    assert_eq!(status, OpenStatus::Open);
    let own = u64::from(quinn::VarInt::from(stream.send.id()));
    for stray in 0..100 {
        peer.datagram(own + 4 + stray, b"nobody's");
    }
    peer.mesh.link.near.send_datagram(Bytes::new()).expect("keep-alive");
    // The flow goes on beside it.
    stream.send.write_all(&encode_framed(b"x").expect("fits")).await.expect("written");
    timeout(SOON, async {
        while peer.strays() < 100 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("all are counted");
    assert!(peer.mesh.link.near.close_reason().is_none());
    assert_eq!(peer.mesh.server.relay.flow_counts().datagrams_in, 1);
}

#[tokio::test]
async fn bytes_that_are_no_datagram_of_a_flow_end_the_connection() {
    let peer = Peer::new().await;
    peer.mesh.link.near.send_datagram(Bytes::from_static(&[0xc0, 1])).expect("queued");
    timeout(SOON, peer.mesh.link.near.closed()).await.expect("closed");
}

#[tokio::test]
async fn half_datagrams_and_oversized_ones_end_their_flow_alone() {
    let peer = Peer::new().await;
    let (good, _) = peer.open().await;
    for bytes in [&[0xff, 0xff, 1][..], &[0, 9, 1, 2]] {
        let (mut stream, _) = peer.open().await;
        stream.send.write_all(bytes).await.expect("written");
        let _ = stream.send.finish();
        assert!(stream.recv.read_to_end(10).await.is_err(), "reset");
    }
    let own = u64::from(quinn::VarInt::from(good.send.id()));
    peer.datagram(own, b"x");
    timeout(SOON, async {
        while peer.mesh.server.relay.flow_counts().datagrams_in < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the good one lives");
}

#[tokio::test]
async fn what_is_begun_and_not_ended_is_bounded() {
    let peer = Peer::new().await;
    let mut streams = Vec::new();
    for _ in 0..3 * MAX_FRAMED_AT_ONCE {
        let (mut stream, _) = peer.open().await;
        // All but the last byte.
        let bytes = encode_framed(&[1; 60_000]).expect("fits");
        stream.send.write_all(&bytes[..60_001]).await.expect("written");
        streams.push(stream);
    }
    let framed = &peer.mesh.link.datagrams[1];
    timeout(SOON, async {
        while framed.framed().available_permits() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("as many as may are under way, the others wait unread");
}

#[tokio::test]
async fn a_peer_has_a_bounded_number_of_udp_flows() {
    let peer = Peer::new().await;
    let flows = &peer.mesh.server.relay.flows;
    let held: Vec<_> = (0..MAX_UDP_FLOWS_PER_PEER).map(|_| flows.admit_udp(HERE)).collect();
    assert!(held.iter().all(Option::is_some));
    assert_eq!(peer.open().await.1, OpenStatus::Busy);
    drop(held);
    let (_open, status) = peer.open().await;
    assert_eq!(status, OpenStatus::Open);
    let all = Arc::clone(&peer.mesh.server.relay.udp.served);
    let free = u32::try_from(all.available_permits()).expect("few");
    let _held = all.try_acquire_many(free).expect("free");
    assert_eq!(peer.open().await.1, OpenStatus::Busy);
    assert_eq!(peer.mesh.server.relay.counters().busy.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_idle_flow_ends_with_its_right_and_with_its_import() {
    let mut mesh = Mesh::new(Duration::from_secs(60)).await;
    let relay = mesh.caller.relay.clone();
    let changes = (relay.parts.targets.access_changes(), relay.parts.index.changes());
    mesh.caller.stage.spawn_short("judge", relay.judge(changes));
    let client = mesh.client().await;
    assert_eq!(ask(&client, "a").await, "ns-0:a");
    let mut denied = LocalService::clone(&mesh.server.relay.parts.targets.all()[0]);
    let admitted = denied.clone();
    denied.targets[0].access = access(Visibility::Own, &[], Policy { base: Base::Deny, audit: false });
    mesh.server.targets.set(vec![denied]);
    mesh.has_flows(0).await;
    assert_eq!(mesh.server.relay.flow_counts().revoked, 1, "without a datagram of either side");

    mesh.server.targets.set(vec![admitted]);
    let client = mesh.client().await;
    assert_eq!(ask(&client, "b").await, "ns-0:b");
    let mut foreign = udp_instance("ns-0");
    foreign.imported = false;
    mesh.caller.set_service(service_view("dns", vec![foreign]));
    mesh.has_flows(0).await;
    assert_eq!(mesh.counts().revoked, 1);
}

#[tokio::test]
async fn the_deny_list_is_asked_again_for_datagrams_of_peers_and_of_this_node() {
    let mut mesh = Mesh::new(SOON).await;
    let mut own = udp_instance("ns-0");
    (own.node, own.nearness) = (HERE, Nearness::SameNode);
    for (view, is_here) in [(udp_instance("ns-0"), false), (own, true)] {
        mesh.caller.set_service(service_view("dns", vec![view]));
        let serving = if is_here { &mesh.caller } else { &mesh.server };
        for (number, denied) in DENIED.into_iter().enumerate() {
            serving.targets.set(vec![udp_service("ns-0", denied.parse().expect("address"))]);
            let client = mesh.client().await;
            client.send(b"x").await.expect("sent");
            let is_denied = || serving.relay.counters().denied.load(Ordering::Relaxed) > number as u64;
            timeout(SOON, async {
                while !is_denied() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("{denied} is denied"));
        }
        mesh.has_flows(0).await;
    }
}
