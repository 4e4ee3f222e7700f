//! The server over loopback sockets, with port 0 and no sleeps.

use std::net::Ipv4Addr;

use gossamer_wire::{GroupName, InstanceName, NodeName, ServiceName};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use hickory_server::net::xfer::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::*;
use crate::scripted::{Scripted, instance, mesh, vip, zone};
use crate::{DnsCounts, ForwardSettings, InstanceEntry, ServiceEntry};

/// A running server and a client of it.
struct Bench {
    tasks: JoinSet<io::Result<()>>,
    udp: UdpSocket,
    tcp: SocketAddr,
    metrics: Arc<DnsMetrics>,
    stop: CancellationToken,
}

impl Bench {
    async fn start(directory: Arc<dyn Directory>, allow: SourceRule) -> Self {
        Self::forwarding(directory, allow, None).await
    }

    async fn forwarding(
        directory: Arc<dyn Directory>,
        allow: SourceRule,
        forwarder: Option<Arc<Forwarder>>,
    ) -> Self {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let (udp_address, tcp_address) = (udp.local_addr().expect("bound"), tcp.local_addr().expect("bound"));
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        client.connect(udp_address).await.expect("connects");

        let metrics = Arc::new(DnsMetrics::default());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let service =
            Service { directory, zone: Arc::new(zone()), forwarder, metrics: Arc::clone(&metrics), allow };
        tasks.spawn(DnsServer::serve(service, vec![udp], tcp, stop.clone()));
        Self { tasks, udp: client, tcp: tcp_address, metrics, stop }
    }

    async fn of(directory: Scripted) -> Self {
        Self::start(Arc::new(directory), Arc::new(|_| true)).await
    }

    async fn ask(&self, message: &Message) -> Message {
        self.send(&message.to_vec().expect("encodes")).await;
        self.receive().await
    }

    async fn send(&self, bytes: &[u8]) {
        self.udp.send(bytes).await.expect("sent");
    }

    async fn receive(&self) -> Message {
        let mut buffer = [0; 4096];
        let length = self.udp.recv(&mut buffer).await.expect("received");
        whole(&buffer[..length])
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.tcp).await.expect("connects")
    }

    async fn stop(mut self) -> DnsCounts {
        self.stop.cancel();
        let ended = self.tasks.join_next().await.expect("one task").expect("no panic");
        assert!(ended.is_ok());
        self.metrics.counts()
    }
}

fn question(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).expect("valid"), kind));
    message
}

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().expect("encodes");
    [&u16::try_from(bytes.len()).expect("short").to_be_bytes(), bytes.as_slice()].concat()
}

async fn next(stream: &mut TcpStream) -> Message {
    let length = stream.read_u16().await.expect("a response");
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.expect("a whole response");
    whole(&bytes)
}

fn whole(bytes: &[u8]) -> Message {
    let mut decoder = BinDecoder::new(bytes);
    let message = Message::read(&mut decoder).expect("decodes");
    assert!(decoder.is_empty(), "no bytes after the message");
    message
}

#[tokio::test]
async fn a_service_is_answered_over_udp_after_its_vip_was_prepared() {
    let directory = Arc::new(mesh());
    let bench = Bench::start(directory.clone(), Arc::new(|_| true)).await;
    let reply = bench.ask(&question(7, "orders.mesh.internal.", RecordType::A)).await;
    assert_eq!((reply.metadata.id, reply.answers.len()), (7, 1));
    let prepared = directory.prepared.lock().expect("not poisoned").clone();
    assert_eq!(
        prepared,
        [Target::Service { service: "orders".parse().expect("valid"), group: None, direct: false }]
    );
    assert_eq!(bench.stop().await, DnsCounts { noerror: 1, ..DnsCounts::default() });
}

#[tokio::test]
async fn srv_prepares_each_instance_that_comes_along() {
    let directory = Arc::new(mesh());
    let bench = Bench::start(directory.clone(), Arc::new(|_| true)).await;
    let mut asked = question(7, "_pg._tcp.orders.mesh.internal.", RecordType::SRV);
    asked.set_edns(Edns::new());
    let reply = bench.ask(&asked).await;
    assert_eq!((reply.answers.len(), reply.additionals.len()), (2, 2));
    assert_eq!(directory.prepared.lock().expect("not poisoned").len(), 2);
}

#[tokio::test]
async fn a_connection_answers_many_questions_sent_at_once_in_order() {
    let bench = Bench::of(mesh()).await;
    let mut stream = bench.connect().await;
    let all: Vec<u8> =
        (0..50).flat_map(|id| framed(&question(id, "orders.mesh.internal.", RecordType::A))).collect();
    stream.write_all(&all).await.expect("sent");
    for id in 0..50 {
        assert_eq!(next(&mut stream).await.metadata.id, id);
    }
}

#[tokio::test]
async fn a_question_that_arrives_byte_by_byte_is_answered_also_after_half_close() {
    let bench = Bench::of(mesh()).await;
    let mut stream = bench.connect().await;
    stream.set_nodelay(true).expect("a socket option");
    for byte in framed(&question(3, "orders.mesh.internal.", RecordType::A)) {
        stream.write_u8(byte).await.expect("sent");
        stream.flush().await.expect("sent");
    }
    stream.shutdown().await.expect("half closed");
    assert_eq!(next(&mut stream).await.metadata.id, 3);
    assert_eq!(stream.read(&mut [0; 1]).await.expect("closed"), 0);
}

#[tokio::test]
async fn what_was_truncated_over_udp_is_whole_over_tcp() {
    let all: Vec<InstanceEntry> = (0..60).map(|number| instance("s", "g", &format!("i{number}"))).collect();
    let bench = Bench::of(Scripted::default().with("s", vip(1), all)).await;
    let asked = question(1, "_pg._tcp.s.mesh.internal.", RecordType::SRV);
    let short = bench.ask(&asked).await;
    assert!(short.metadata.truncation && !short.answers.is_empty() && short.answers.len() < 60);

    let mut stream = bench.connect().await;
    stream.write_all(&framed(&asked)).await.expect("sent");
    let long = next(&mut stream).await;
    assert!(!long.metadata.truncation);
    assert_eq!(long.answers.len(), 60);
    assert_eq!(bench.stop().await, DnsCounts { noerror: 2, truncated: 1, ..DnsCounts::default() });
}

#[tokio::test]
async fn malformed_messages_do_not_end_the_server() {
    let bench = Bench::of(mesh()).await;
    let good = question(9, "orders.mesh.internal.", RecordType::A);
    let bytes = good.to_vec().expect("encodes");
    let mut response = good.clone();
    response.metadata.message_type = MessageType::Response;

    bench.send(&[]).await;
    bench.send(&[0; 5]).await;
    bench.send(&response.to_vec().expect("encodes")).await;
    bench.send(&bytes[..20]).await;
    assert_eq!(bench.receive().await.metadata.response_code, ResponseCode::FormErr);
    bench.send(&[0x01; 4000]).await;
    assert_eq!(bench.receive().await.metadata.response_code, ResponseCode::FormErr);
    assert_eq!(bench.ask(&good).await.answers.len(), 1);
    assert_eq!(bench.stop().await, DnsCounts { noerror: 1, formerr: 2, ..DnsCounts::default() });
}

#[tokio::test]
async fn malformed_streams_end_only_their_connection() {
    let bench = Bench::of(mesh()).await;
    for bytes in [&[0, 0][..], &[0xff, 0xff, 1]] {
        let mut stream = bench.connect().await;
        stream.write_all(bytes).await.expect("sent");
        stream.shutdown().await.expect("half closed");
        let ended = stream.read(&mut [0; 1]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "closed without a byte");
    }

    let mut response = question(1, "orders.mesh.internal.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    let mut stream = bench.connect().await;
    stream.write_all(&framed(&response)).await.expect("sent");
    stream.write_all(&[0, 20]).await.expect("sent");
    stream.write_all(&[1; 20]).await.expect("sent");
    let refused = next(&mut stream).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::FormErr, "the response got none");
    stream.write_all(&framed(&question(2, "orders.mesh.internal.", RecordType::A))).await.expect("sent");
    assert_eq!(next(&mut stream).await.answers.len(), 1, "the connection goes on");
}

#[tokio::test]
async fn questions_of_refused_sources_get_no_byte_and_are_counted() {
    let bench = Bench::start(Arc::new(mesh()), Arc::new(|source| !source.is_loopback())).await;
    let mut stream = bench.connect().await;
    let good = question(9, "orders.mesh.internal.", RecordType::A);
    let mut other = good.clone();
    other.metadata.op_code = OpCode::Notify;
    for message in [good, other] {
        bench.send(&message.to_vec().expect("encodes")).await;
        stream.write_all(&framed(&message)).await.expect("sent");
    }
    while bench.metrics.counts().refused_source < 4 {
        tokio::task::yield_now().await;
    }
    assert!(bench.udp.try_recv(&mut [0; 1]).is_err());
    assert!(stream.try_read(&mut [0; 1]).is_err(), "no byte, but the connection stays until it idles");
    assert_eq!(bench.stop().await, DnsCounts { refused_source: 4, ..DnsCounts::default() });
}

/// A mesh whose VIPs are ready when told so.
struct Slow {
    mesh: Scripted,
    ready: Notify,
}

#[async_trait::async_trait]
impl Directory for Slow {
    async fn prepare(&self, _: &Target) {
        self.ready.notified().await;
    }

    fn service(&self, service: &ServiceName, group: Option<&GroupName>) -> Option<ServiceEntry> {
        self.mesh.service(service, group)
    }

    fn instance(
        &self,
        service: &ServiceName,
        group: &GroupName,
        instance: &InstanceName,
    ) -> Option<InstanceEntry> {
        self.mesh.instance(service, group, instance)
    }

    fn node(&self, node: &NodeName) -> Option<Vec<IpAddr>> {
        self.mesh.node(node)
    }

    fn has_group(&self, group: &GroupName) -> bool {
        self.mesh.has_group(group)
    }

    fn custom(&self, name: &str) -> Option<crate::CustomTarget> {
        self.mesh.custom(name)
    }

    fn pointer(&self, vip: Ipv4Addr) -> Option<Target> {
        self.mesh.pointer(vip)
    }
}

#[tokio::test]
async fn a_question_that_waits_for_its_vip_does_not_hold_up_others() {
    let slow = Arc::new(Slow { mesh: mesh(), ready: Notify::new() });
    let bench = Bench::start(slow.clone(), Arc::new(|_| true)).await;
    bench.send(&question(1, "orders.mesh.internal.", RecordType::A).to_vec().expect("encodes")).await;
    let other = bench.ask(&question(2, "n1.node.mesh.internal.", RecordType::A)).await;
    assert_eq!(other.metadata.id, 2);
    slow.ready.notify_one();
    assert_eq!(bench.receive().await.metadata.id, 1);
}

/// Asks for the VIP of `orders` without a socket; returns the code of the reply.
async fn ask_desk(directory: Arc<dyn Directory>, turns: usize) -> ResponseCode {
    let service = Service {
        directory,
        zone: Arc::new(zone()),
        forwarder: None,
        metrics: Arc::new(DnsMetrics::default()),
        allow: Arc::new(|_| true),
    };
    let desk = Desk::new(service, turns);
    let bytes = question(1, "orders.mesh.internal.", RecordType::A).to_vec().expect("encodes");
    let source = SocketAddr::from(([127, 0, 0, 1], 9));
    let request = Request::from_bytes(bytes, source, Protocol::Udp).expect("decodes");
    desk.reply(&request, Writer::HickoryServer).await.message().metadata().response_code
}

#[tokio::test(start_paused = true)]
async fn a_vip_that_is_never_ready_is_a_server_failure() {
    let slow = Slow { mesh: mesh(), ready: Notify::new() };
    assert_eq!(ask_desk(Arc::new(slow), 1).await, ResponseCode::ServFail);
}

#[tokio::test]
async fn more_questions_than_may_wait_are_server_failures() {
    let directory = Arc::new(mesh());
    assert_eq!(ask_desk(directory.clone(), 0).await, ResponseCode::ServFail);
    assert!(directory.prepared.lock().expect("not poisoned").is_empty());
    assert_eq!(ask_desk(directory, 1).await, ResponseCode::NoError);
}

#[tokio::test]
async fn a_stopped_server_has_closed_its_sockets() {
    let bench = Bench::of(mesh()).await;
    let (udp, tcp) = (bench.udp.peer_addr().expect("connected"), bench.tcp);
    let _idle = bench.connect().await;
    bench.stop().await;
    UdpSocket::bind(udp).await.expect("free again");
    assert!(TcpStream::connect(tcp).await.is_err());
}

#[tokio::test]
async fn many_clients_at_once_are_all_answered() {
    let bench = Bench::of(mesh()).await;
    let server = bench.udp.peer_addr().expect("connected");
    let mut clients = JoinSet::new();
    for client in 0..8_u16 {
        clients.spawn(async move {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
            let mut buffer = [0; 1500];
            for id in 0..100 {
                let asked = question(client * 100 + id, "orders.mesh.internal.", RecordType::A);
                socket.send_to(&asked.to_vec().expect("encodes"), server).await.expect("sent");
                let length = socket.recv(&mut buffer).await.expect("answered");
                let reply = Message::from_vec(&buffer[..length]).expect("decodes");
                assert_eq!((reply.metadata.id, reply.answers.len()), (client * 100 + id, 1));
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no panic");
    }
    assert_eq!(bench.stop().await.noerror, 800);
}

#[tokio::test]
async fn names_of_others_are_forwarded_without_authority_when_that_is_wanted() {
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
    let settings =
        ForwardSettings { upstreams: vec![upstream.local_addr().expect("bound")], rebind_allow: None };
    let forwarder = Forwarder::new(settings, Arc::new(zone()), |_| false, |_| ()).expect("may be asked");
    let bench = Bench::forwarding(Arc::new(mesh()), Arc::new(|_| true), Some(Arc::new(forwarder))).await;
    let wanting = |id, name| {
        let mut message = question(id, name, RecordType::TXT);
        message.metadata.recursion_desired = true;
        message
    };

    let answering = async {
        let mut buffer = [0; 1500];
        let (length, from) = upstream.recv_from(&mut buffer).await.expect("asked");
        let query = Message::from_vec(&buffer[..length]).expect("decodes");
        assert!(query.metadata.recursion_desired && query.metadata.id != 9, "the client's id stays here");
        let mut reply = Message::response(query.metadata.id, OpCode::Query);
        reply.queries.clone_from(&query.queries);
        reply.metadata.response_code = ResponseCode::NXDomain;
        reply.metadata.authoritative = true;
        reply.metadata.authentic_data = true;
        upstream.send_to(&reply.to_vec().expect("encodes"), from).await.expect("sent");
    };
    let asked = wanting(9, "Www.Example.");
    let (reply, ()) = tokio::join!(bench.ask(&asked), answering);
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (9, ResponseCode::NXDomain));
    assert_eq!(reply.queries[0].name.to_ascii(), "Www.Example.");
    let flags = |reply: &Message| (reply.metadata.authoritative, reply.metadata.recursion_available);
    assert_eq!((flags(&reply), reply.metadata.authentic_data), ((false, true), false));

    let ours = bench.ask(&wanting(10, "orders.mesh.internal.")).await;
    assert_eq!(flags(&ours), (true, true));
    let unasked = bench.ask(&question(11, "www.example.", RecordType::A)).await;
    assert_eq!((unasked.metadata.response_code, flags(&unasked)), (ResponseCode::Refused, (false, true)));
    let transfer = question(12, "mesh.internal.", RecordType::AXFR);
    assert_eq!(bench.ask(&transfer).await.metadata.response_code, ResponseCode::Refused);
    assert_eq!(flags(&Bench::of(mesh()).await.ask(&wanting(13, "www.example.")).await), (false, false));
}

#[tokio::test]
async fn a_burst_of_all_kinds_gets_each_answer_once() {
    let bench = Bench::of(mesh()).await;
    let asked: Vec<Message> = (0..90)
        .map(|id| {
            let name =
                ["orders.mesh.internal.", "nobody.mesh.internal.", "elsewhere.example."][usize::from(id) % 3];
            question(id, name, RecordType::A)
        })
        .collect();
    bench.udp.writable().await.expect("writable");
    // The server gets its turn when all of it has arrived: several batches.
    for message in &asked {
        let bytes = message.to_vec().expect("encodes");
        assert_eq!(bench.udp.try_send(&bytes).expect("sent"), bytes.len());
        // Half a header gets nothing.
        bench.udp.try_send(&bytes[..6]).expect("sent");
    }
    let mut seen = std::collections::BTreeMap::new();
    for _ in &asked {
        let reply = bench.receive().await;
        let asked = &asked[usize::from(reply.metadata.id)];
        assert_eq!(reply.queries, asked.queries);
        assert!(seen.insert(reply.metadata.id, reply.metadata.response_code).is_none(), "answered once");
    }
    assert_eq!(seen.len(), 90);
    let counts = bench.stop().await;
    assert_eq!((counts.noerror, counts.nxdomain, counts.refused, counts.dropped), (30, 30, 30, 0));
}
