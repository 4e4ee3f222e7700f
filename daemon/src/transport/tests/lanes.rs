//! Lanes between real daemons on loopback: where UDP is silent, and what strangers meet on the TCP port.

use std::sync::atomic::{AtomicUsize, Ordering};

use quinn::{ReadError, ReadExactError, VarInt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use gossamer_wire::token::Grant;

use super::super::lane::{ALPN, server_name};
use super::*;
use crate::transport::tls;

/// An address at which UDP is silent and TCP leads to a node.
struct Closed {
    address: SocketAddr,
    /// TCP connections so far.
    taken: Arc<AtomicUsize>,
    _silent: UdpSocket,
    _tasks: JoinSet<()>,
}

impl Closed {
    async fn to(node: SocketAddr) -> Self {
        let (listener, silent) = loop {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let address = listener.local_addr().expect("bound");
            // Somebody else may have it.
            if let Ok(silent) = UdpSocket::bind(address).await {
                break (listener, silent);
            }
        };
        let address = listener.local_addr().expect("bound");
        let taken = Arc::new(AtomicUsize::new(0));
        let (counted, mut tasks) = (Arc::clone(&taken), JoinSet::new());
        tasks.spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut far = TcpStream::connect(node).await.expect("a lane port");
                carried.spawn(async move { copy_bidirectional(&mut near, &mut far).await.map(drop) });
            }
        });
        Self { address, taken, _silent: silent, _tasks: tasks }
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Two nodes, of which the second has reached the first by lane.
async fn apart() -> (Node, Node, Closed) {
    let mut a = first_node();
    let (identity, dir) = a.member("vm-b").await;
    let closed = Closed::to(a.address).await;
    let mut identity = identity;
    identity.seeds.clear();
    let mut b = start_node(identity, dir);
    b.peers.learn(a.identity.node(), vec![closed.address], Source::Hint);
    let (of_a, of_b) = (Arc::clone(&a.identity), Arc::clone(&b.identity));
    tokio::join!(a.connected_to(&of_b), b.connected_to(&of_a));
    (a, b, closed)
}

async fn open(from: &Node, to: &Node) -> FlowStream {
    timeout(SOON, from.peers.open_flow(to.identity.node())).await.expect("in time").expect("opens")
}

async fn accept(node: &mut Node) -> FlowStream {
    timeout(SOON, node.flows.recv()).await.expect("in time").expect("a flow")
}

#[tokio::test]
async fn where_udp_is_silent_a_lane_carries_frames_packets_and_flows() {
    let (mut a, mut b, closed) = apart().await;
    assert_eq!(is_lane(&b.peers, a.identity.node()), Some(true));
    assert!(b.peers.send_packet(a.identity.node(), b"a packet".to_vec()));
    let packet = async {
        loop {
            if let Some(ToMembership::Packet { from, bytes }) = a.membership.recv().await {
                return (from, bytes);
            }
        }
    };
    let (from, bytes) = timeout(SOON, packet).await.expect("in time");
    assert_eq!((from, &bytes[..]), (b.identity.node(), &b"a packet"[..]));
    assert!(a.peers.send_frame(b.identity.node(), &Frame::Root(7)));
    let frame = async {
        loop {
            if let Some(ToCatalog::Frame { frame, .. }) = b.catalog.recv().await {
                return frame;
            }
        }
    };
    assert_eq!(timeout(SOON, frame).await.expect("in time"), Frame::Root(7));

    let before = closed.taken();
    for _ in 0..3 {
        let mut near = open(&b, &a).await;
        assert!(near.is_lane());
        near.send.write_all(b"question").await.expect("written");
        near.send.finish().expect("open");
        let mut far = accept(&mut a).await;
        assert_eq!(far.peer.node, b.identity.node());
        assert_eq!(far.recv.read_to_end(100).await.expect("a clean end"), b"question");
        let answer = vec![9; 1 << 20];
        let answered = async {
            far.send.write_all(&answer).await.expect("written");
            far.send.finish().expect("open");
        };
        let read = async {
            // As the relay does.
            let (mut all, mut places) = (Vec::new(), [const { bytes::Bytes::new() }; 32]);
            while let Some(count) = near.recv.read_chunks(&mut places).await.expect("a clean end") {
                places.iter().take(count).for_each(|piece| all.extend_from_slice(piece));
            }
            all
        };
        let ((), read) = timeout(SOON, async { tokio::join!(answered, read) }).await.expect("in time");
        assert!(read == answer);
        drop((near, far));
    }
    assert!(closed.taken() > before);
}

#[tokio::test]
async fn a_lane_is_used_again_after_a_clean_end_and_after_a_refusal_and_not_after_a_reset() {
    let (mut a, b, closed) = apart().await;
    let before = closed.taken();
    for _ in 0..5 {
        let mut near = open(&b, &a).await;
        near.send.write_all(b"question").await.expect("written");
        near.send.finish().expect("open");
        let mut far = accept(&mut a).await;
        assert_eq!(far.recv.read_to_end(100).await.expect("a clean end"), b"question");
        far.send.write_all(b"answer").await.expect("written");
        far.send.finish().expect("open");
        assert_eq!(near.recv.read_to_end(100).await.expect("a clean end"), b"answer");
        drop((near, far));
    }
    assert_eq!(closed.taken(), before + 1, "clean ends");
    for _ in 0..3 {
        let mut near = open(&b, &a).await;
        near.send.write_all(b"question").await.expect("written");
        let mut far = accept(&mut a).await;
        far.send.write_all(&[4]).await.expect("written");
        far.send.finish().expect("open");
        far.recv.stop(VarInt::from_u32(1)).expect("open");
        drop(far);
        let mut status = [0];
        near.recv.read_exact(&mut status).await.expect("an answer");
        assert_eq!(status, [4]);
        near.send.reset(VarInt::from_u32(1)).expect("open");
        let _ = near.recv.stop(VarInt::from_u32(1));
        drop(near);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(closed.taken(), before + 1, "refusals");
    let mut near = open(&b, &a).await;
    near.send.write_all(b"question").await.expect("written");
    let mut far = accept(&mut a).await;
    far.recv.read_exact(&mut [0; 8]).await.expect("all of it");
    near.send.reset(VarInt::from_u32(2)).expect("open");
    let error = far.recv.read_exact(&mut [0]).await.expect_err("no clean end");
    assert_eq!(error, ReadExactError::ReadError(ReadError::Reset(VarInt::from_u32(2))));
    drop((near, far));
    let mut near = open(&b, &a).await;
    near.send.write_all(b"?").await.expect("written");
    accept(&mut a).await;
    assert_eq!(closed.taken(), before + 2, "after a reset");
}

#[tokio::test]
async fn a_lane_keeps_half_closed_flows_and_a_reader_that_stalls_stops_its_writer() {
    let (mut a, b, _closed) = apart().await;
    let mut near = open(&b, &a).await;
    near.send.write_all(b"?").await.expect("written");
    let mut far = accept(&mut a).await;
    far.send.finish().expect("open");
    assert!(near.recv.read_chunk(10).await.expect("a clean end").is_none());
    let piece = vec![7; 1 << 20];
    let mut written = 0;
    while timeout(Duration::from_millis(500), near.send.write_all(&piece)).await.is_ok() {
        written += piece.len();
        assert!(written < 64 << 20, "nobody reads");
    }
    far.recv.stop(VarInt::from_u32(3)).expect("open");
    let stopped = timeout(SOON, near.send.stopped()).await.expect("in time").expect("the lane lives");
    assert_eq!(stopped, Some(VarInt::from_u32(3)));
}

#[tokio::test]
async fn who_cannot_be_dialled_gets_flows_on_lanes_that_it_dials_itself() {
    let (a, mut b, closed) = apart().await;
    let before = closed.taken();
    let mut near = open(&a, &b).await;
    assert!(near.is_lane());
    near.send.write_all(b"question").await.expect("written");
    let mut far = accept(&mut b).await;
    far.recv.read_exact(&mut [0; 8]).await.expect("all of it");
    assert_eq!(closed.taken(), before + 1);
}

#[tokio::test]
async fn udp_is_preferred_and_a_lane_that_was_dialled_beside_it_goes() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    let (of_a, of_b) = (Arc::clone(&a.identity), Arc::clone(&b.identity));
    tokio::join!(a.connected_to(&of_b), b.connected_to(&of_a));
    assert_eq!(is_lane(&b.peers, a.identity.node()), Some(false));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(is_lane(&b.peers, a.identity.node()), Some(false));
}

/// Sends bytes and returns how many come back until the other side hangs up.
async fn hung_up_on(address: SocketAddr, bytes: &[u8]) -> usize {
    let mut socket = TcpStream::connect(address).await.expect("open");
    let _ = socket.write_all(bytes).await;
    let mut said = Vec::new();
    let _ = timeout(SOON, socket.read_to_end(&mut said)).await.expect("hung up in time");
    said.len()
}

#[tokio::test]
async fn strangers_on_the_lane_port_are_hung_up_on_and_counted_by_what_they_did() {
    let a = first_node();
    let refused = |reason: &str| {
        let line = format!("gossamer_handshakes_refused_total{{reason=\"{reason}\"}} 1");
        a.metrics.render().contains(&line)
    };
    assert!(hung_up_on(a.address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await < 100);
    // The stranger sees the end of its connection before it is counted.
    let counted = async |reason: &str| {
        let wait = async {
            while !refused(reason) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{reason}: {}", a.metrics.render()));
    };
    counted("lane_not_tls").await;
    let (identity, _dir) = a.member("vm-b").await;
    let token = a.token().await;
    let tls = |alpn: &[u8]| {
        let grant = token.grant();
        let mut config = tls::joiner(grant.mesh, grant.root_pin, None).expect("made");
        config.alpn_protocols = vec![alpn.to_vec()];
        tokio_rustls::TlsConnector::from(Arc::new(config))
    };
    let dial = async |alpn: &[u8], name: String| {
        let socket = TcpStream::connect(a.address).await.expect("open");
        let name = rustls::pki_types::ServerName::try_from(name).expect("a name");
        let mut stream = tls(alpn).connect(name, socket).await?;
        stream.write_all(b"?").await?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await
    };
    let right = server_name(Some(a.identity.node()), a.identity.mesh);
    let wrong = server_name(Some(identity.node()), a.identity.mesh);
    for (alpn, name, reason) in [
        (ALPN, wrong, "lane_name"),
        (&b"h2"[..], right.clone(), "lane_protocol"),
        // This client believes nobody without the root, which joiners are shown.
        (ALPN, right, "lane_tls"),
    ] {
        let _ = timeout(SOON, dial(alpn, name)).await.expect("in time");
        counted(reason).await;
    }
}

/// A node, and a token that names it by lane addresses only.
async fn behind(hosts: &[&str]) -> (Node, Token) {
    let a = first_node();
    let named = |host: &&str| format!("tls://{host}:{}", a.address.port()).parse().expect("address");
    let lanes = hosts.iter().map(named).collect();
    let grant = Grant { addresses: Vec::new(), lanes, ..a.token().await.grant().clone() };
    // Signed by the node itself.
    let key = a.identity.issuer.clone().expect("an issuer");
    (a, Token::build(grant, |bytes| key.sign(bytes)).expect("builds"))
}

#[tokio::test]
async fn a_machine_joins_by_a_name_that_only_lanes_lead_to() {
    let (_a, token) = behind(&["localhost"]).await;
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    let identity = join(&store, &token, &request("vm-b")).await.expect("joins");
    assert!(identity.by_lane);
    assert_eq!(identity.seeds[0].lanes, token.grant().lanes, "and finds the node by it again");
}

#[tokio::test]
async fn a_join_in_vain_names_what_was_wrong_with_a_lane_address() {
    let (_a, token) = behind(&["gate.mesh.internal", "127.240.0.9"]).await;
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    let error = join(&store, &token, &request("vm-b")).await.expect_err("nobody is there").to_string();
    assert!(error.contains("(the name was not resolved: it is a name of the mesh itself)"), "{error}");
    assert!(error.contains("(not tried: it is a virtual address of the mesh)"), "{error}");
}

#[tokio::test]
async fn a_lane_address_leads_to_a_node_and_what_it_resolves_to_is_no_address_of_it() {
    let mut a = first_node();
    let (mut identity, dir) = a.member("vm-b").await;
    identity.seeds.clear();
    let mut b = start_node(identity, dir);
    let (node, lane) = (a.identity.node(), format!("tls://localhost:{}", a.address.port()));
    b.peers.learn_lanes(node, vec![lane.parse().expect("address")]);
    b.peers.learn(node, Vec::new(), Source::Hint);
    let (of_a, of_b) = (Arc::clone(&a.identity), Arc::clone(&b.identity));
    tokio::join!(a.connected_to(&of_b), b.connected_to(&of_a));
    let mut opened = open(&b, &a).await;
    opened.send.write_all(b"word").await.expect("sends");
    let mut accepted = accept(&mut a).await;
    let mut word = [0; 4];
    accepted.recv.read_exact(&mut word).await.expect("reads");
    assert_eq!(&word, b"word");
    let pinged = b.peers.ping(node, Vec::new()).await;
    let ways: Vec<_> = pinged.tried.iter().map(|(way, _)| way.to_string()).collect();
    assert_eq!(ways, [lane]);
}

#[tokio::test]
async fn a_flow_that_wants_a_lane_gets_one_beside_udp_and_others_do_not() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    let (of_a, of_b) = (Arc::clone(&a.identity), Arc::clone(&b.identity));
    tokio::join!(a.connected_to(&of_b), b.connected_to(&of_a));
    let node = a.identity.node();
    let opened = timeout(SOON, b.peers.open_lane(node)).await.expect("in time").expect("opens");
    assert!(opened.is_lane());
    let mut other = open(&b, &a).await;
    assert!(!other.is_lane(), "the first flow of another service");
    other.send.write_all(b"word").await.expect("sends");
    assert!(!accept(&mut a).await.is_lane());
    let again = timeout(SOON, b.peers.open_lane(node)).await.expect("in time").expect("opens");
    assert!(again.is_lane(), "also where there is a data connection");
    assert_eq!(b.peers.is_lane(node), Some(false), "the control connection stays where it was");
}
