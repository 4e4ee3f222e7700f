//! Circuits between real daemons on loopback, with a relay that the test plays itself: it may look and meddle.

use gossamer_wire::token::Claims;
use quinn::VarInt;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::*;
use crate::transport::carrier::{RecvStream, SendStream};
use crate::transport::credit::{ReadCredit, SendCredit};

/// What a relay does to the bytes of a circuit, each way: gets all that has passed before, and the next ones.
type Meddle = fn(&[u8], Vec<u8>) -> Option<Vec<u8>>;

fn honest(_: &[u8], bytes: Vec<u8>) -> Option<Vec<u8>> {
    Some(bytes)
}

/// Two nodes that find each other by a relay alone, and what has passed there.
struct Apart {
    a: Node,
    b: Node,
    relay: NodeId,
    /// The other relay, where there are two.
    other: Option<NodeId>,
    passed: Arc<std::sync::Mutex<Vec<u8>>>,
    _silent: UdpSocket,
    _tasks: JoinSet<()>,
}

/// Starts a member with the role.
pub(super) async fn relay_of(issuer: &Node) -> Node {
    let claims = Claims { relay: true, ..Claims::default() };
    let token =
        issuer.issuer.create_token(TokenRequest { claims, ..token_request() }).await.expect("mints").token;
    let dir = tempfile::tempdir().expect("scratch");
    let identity = {
        let store = Store::open(&dir.path().join("state")).expect("opens");
        join(&store, &token, &request("vm-r")).await.expect("joins")
    };
    start_node(identity, dir)
}

impl Apart {
    async fn new(meddle: Meddle) -> Self {
        Self::with_relays(&[meddle]).await
    }

    /// The first relay comes first.
    async fn with_relays(meddles: &[Meddle]) -> Self {
        let a = first_node();
        let (mut identity, dir) = a.member("vm-b").await;
        identity.seeds.clear();
        let mut b = start_node(identity, dir);
        let of_b = Arc::clone(&b.identity);
        let (passed, mut tasks, mut ids) = (Arc::default(), JoinSet::new(), Vec::new());
        for meddle in meddles {
            let mut r = relay_of(&a).await;
            let of_r = Arc::clone(&r.identity);
            b.peers.learn(of_r.node(), vec![r.address], Source::Hint);
            r.connected_to(&of_b).await;
            b.connected_to(&of_r).await;
            ids.push(of_r.node());
            tasks.spawn(play(r, Arc::clone(&passed), *meddle));
        }
        // The demultiplexing of B, which the relay module does elsewhere.
        let (flows_in, flows) = mpsc::channel(64);
        let arrived = std::mem::replace(&mut b.flows, flows);
        tasks.spawn(sort(arrived, b.peers.clone(), flows_in));
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        a.peers.learn_relays(of_b.node(), ids.clone());
        a.peers.learn(of_b.node(), vec![silent.local_addr().expect("bound")], Source::Hint);
        let (relay, other) = (ids[0], ids.get(1).copied());
        Self { a, b, relay, other, passed, _silent: silent, _tasks: tasks }
    }

    async fn met(&mut self) {
        let (of_a, of_b) = (Arc::clone(&self.a.identity), Arc::clone(&self.b.identity));
        tokio::join!(self.a.connected_to(&of_b), self.b.connected_to(&of_a));
    }
}

/// Hands circuits to the transport, and flows on.
async fn sort(mut arrived: mpsc::Receiver<FlowStream>, peers: Peers, flows: mpsc::Sender<FlowStream>) {
    while let Some(mut stream) = arrived.recv().await {
        if stream.is_lane() {
            let _ = flows.send(stream).await;
            continue;
        }
        let mut record = [0; gossamer_wire::circuit::CIRCUIT_BYTES];
        stream.recv.read_exact(&mut record).await.expect("a record");
        assert_eq!(record[..2], [0xff, 2]);
        let opener = NodeId::from_bytes(record[2..].try_into().expect("an id"));
        peers.take_circuit(stream, Led::Member(opener));
    }
}

/// Splices circuits as a relay does, and meddles.
async fn play(mut relay: Node, passed: Arc<std::sync::Mutex<Vec<u8>>>, meddle: Meddle) {
    let mut tasks = JoinSet::new();
    while let Some(mut near) = relay.flows.recv().await {
        let (peers, passed) = (relay.peers.clone(), Arc::clone(&passed));
        tasks.spawn(async move {
            let mut record = [0; gossamer_wire::circuit::CIRCUIT_BYTES];
            near.recv.read_exact(&mut record).await.expect("a record");
            let node = NodeId::from_bytes(record[2..].try_into().expect("an id"));
            let mut far = peers.open_kept(node).await.expect("connected");
            let from = CircuitOpen::From(near.peer.node).encode();
            far.send.write_all(&from).await.expect("written");
            near.send.write_all(&[0]).await.expect("written");
            let (near_credit, far_credit) = (&mut *near.credit, &mut *far.credit);
            tokio::join!(
                pass(
                    &mut near.recv,
                    &mut near_credit.reading,
                    &mut far.send,
                    &mut far_credit.sending,
                    &passed,
                    meddle
                ),
                pass(
                    &mut far.recv,
                    &mut far_credit.reading,
                    &mut near.send,
                    &mut near_credit.sending,
                    &passed,
                    honest
                ),
            );
        });
    }
}

async fn pass(
    from: &mut RecvStream,
    reading: &mut ReadCredit,
    to: &mut SendStream,
    sending: &mut SendCredit,
    passed: &std::sync::Mutex<Vec<u8>>,
    meddle: Meddle,
) {
    let mut before = Vec::new();
    while let Ok(Some(bytes)) = from.read_chunk(4 << 10).await {
        passed.lock().expect("whole").extend_from_slice(&bytes);
        reading.give(bytes.len());
        reading.taken();
        let Some(mut meddled) = meddle(&before, bytes.to_vec()).map(bytes::Bytes::from) else { break };
        before.extend_from_slice(&bytes);
        while !meddled.is_empty() {
            let Ok(len) = sending.take(meddled.len(), to, &Demand::default()).await else { return };
            if to.write_chunk(meddled.split_to(len)).await.is_err() {
                return;
            }
        }
    }
    let _ = to.finish();
}

#[tokio::test]
async fn a_circuit_carries_frames_packets_and_flows_and_its_relay_can_read_none_of_them() {
    let mut apart = Apart::new(honest).await;
    apart.met().await;
    let Apart { a, b, relay, passed, .. } = &mut apart;
    let (of_a, of_b) = (a.identity.node(), b.identity.node());
    assert_eq!(a.peers.links.load().get(&of_b).and_then(|link| link.connection.via()), Some(*relay));
    assert!(a.peers.send_packet(of_b, b"a packet".to_vec()));
    assert_eq!(packet_of(b, of_a).await, b"a packet");
    let markers: Vec<[u8; 16]> = (0..1_000_u128)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) | 1).to_be_bytes())
        .collect();
    let told: Vec<u8> = [b"the-name-of-a-service".to_vec(), markers.concat()].concat();
    for round in 0..3 {
        let mut near = timeout(SOON, a.peers.open_flow(of_b)).await.expect("in time").expect("opens");
        assert_eq!(near.send.via(), Some(*relay), "{round}");
        let mut far = async {
            near.send.write_all(&told).await.expect("written");
            near.send.finish().expect("open");
            timeout(SOON, b.flows.recv()).await.expect("in time").expect("a flow")
        }
        .await;
        assert_eq!(far.peer.node, of_a);
        assert!(far.recv.read_to_end(100_000).await.expect("a clean end") == told);
        let answer = vec![7; 1 << 20];
        let answered = async {
            far.send.write_all(&answer).await.expect("written");
            far.send.finish().expect("open");
        };
        let ((), read) = tokio::join!(answered, near.recv.read_to_end(2 << 20));
        assert!(read.expect("a clean end") == answer, "{round}");
    }
    // A relay behind a relay leads nobody.
    let refused = a.peers.open_circuit(of_b, of_a).await.expect_err("a circuit in a circuit");
    assert!(refused.to_string().contains(&format!("is reached through the relay {relay}")), "{refused}");
    let passed = passed.lock().expect("whole");
    let holds = |needle: &[u8]| passed.windows(needle.len()).any(|window| window == needle);
    assert!(passed.len() > 3 << 20, "{} bytes have passed", passed.len());
    assert!(!holds(b"the-name-of-a-service"));
    // One pass for all: the window of a marker is looked up.
    let markers: std::collections::HashSet<&[u8]> = markers.iter().map(<[u8; 16]>::as_slice).collect();
    assert_eq!(passed.windows(16).filter(|window| markers.contains(window)).count(), 0);
}

/// Meddles once the greeting is over: from there on flows run.
const LATER: usize = 8_000;

fn flips(before: &[u8], mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if before.len() >= LATER {
        *bytes.last_mut()? ^= 1;
    }
    Some(bytes)
}

fn truncates(before: &[u8], bytes: Vec<u8>) -> Option<Vec<u8>> {
    (before.len() < LATER).then_some(bytes)
}

fn drops_some(before: &[u8], mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if before.len() >= LATER {
        bytes.truncate(bytes.len() / 2);
    }
    Some(bytes)
}

fn reorders(before: &[u8], mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if before.len() >= LATER {
        bytes.reverse();
    }
    Some(bytes)
}

fn repeats(before: &[u8], mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if before.len() >= LATER {
        bytes.extend(bytes.clone());
    }
    Some(bytes)
}

#[tokio::test]
async fn a_relay_that_flips_reorders_repeats_or_truncates_bytes_is_detected_each_time() {
    let all = [flips as Meddle, truncates, drops_some, reorders, repeats].map(detected);
    futures_util::future::join_all(all).await;
}

async fn detected(meddle: Meddle) {
    let mut apart = Apart::new(meddle).await;
    apart.met().await;
    let Apart { a, b, .. } = &mut apart;
    let sent: Vec<u8> = (0..40_000_u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
    let of_b = b.identity.node();
    let mut near = timeout(SOON, a.peers.open_flow(of_b)).await.expect("in time").expect("opens");
    let writing = async {
        let _ = near.send.write_all(&sent).await;
        let _ = near.send.finish();
    };
    let reading = async {
        // The lane may break before the flow is heard of.
        let Ok(Some(mut far)) = timeout(Duration::from_secs(5), b.flows.recv()).await else {
            return Vec::new();
        };
        let mut got = Vec::new();
        loop {
            match timeout(SOON, far.recv.read_chunk(1_000)).await.expect("no silence") {
                Ok(Some(bytes)) => got.extend_from_slice(&bytes),
                Ok(None) => panic!("a clean end after {} bytes", got.len()),
                Err(_) => return got,
            }
        }
    };
    let ((), got) = tokio::join!(writing, reading);
    assert!(got.len() < sent.len() && sent.starts_with(&got), "{} bytes", got.len());
    let _ = near.recv.stop(VarInt::from_u32(1));
}

#[tokio::test]
async fn a_relay_that_leads_to_somebody_else_is_found_out_and_nothing_is_said_to_him() {
    let mut a = first_node();
    let mut r = relay_of(&a).await;
    let of_r = Arc::clone(&r.identity);
    a.connected_to(&of_r).await;
    let (absent, _dir) = a.member("vm-b").await;
    a.peers.learn_relays(absent.node(), vec![of_r.node()]);
    // The relay takes the circuit for itself.
    let peers = r.peers.clone();
    let lying = async {
        let mut stream = timeout(SOON, r.flows.recv()).await.expect("in time").expect("a stream");
        let mut record = [0; gossamer_wire::circuit::CIRCUIT_BYTES];
        stream.recv.read_exact(&mut record).await.expect("a record");
        stream.send.write_all(&[0]).await.expect("written");
        let opener = NodeId::from_bytes(record[2..].try_into().expect("an id"));
        peers.take_circuit(stream, Led::Member(opener));
    };
    let refused =
        || a.metrics.render().contains("gossamer_dial_attempts_failed_total{reason=\"led_nowhere\"}");
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    a.peers.learn(absent.node(), vec![silent.local_addr().expect("bound")], Source::Hint);
    lying.await;
    let counted = async {
        while !refused() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, counted).await.expect("found out");
    assert_eq!(is_lane(&a.peers, absent.node()), None);
    assert!(r.metrics.render().contains("gossamer_handshakes_refused_total{reason=\"lane_name\"} 1"));
}

/// Leads the first message of TLS, with which the handshake ends where it was dialled, and nothing after it.
fn stalls(before: &[u8], bytes: Vec<u8>) -> Option<Vec<u8>> {
    Some(if before.is_empty() { bytes } else { Vec::new() })
}

#[tokio::test]
async fn a_relay_that_stalls_after_the_handshake_makes_room_for_the_other_and_comes_last_then() {
    let mut apart = Apart::with_relays(&[stalls, honest]).await;
    apart.met().await;
    let Apart { a, b, relay, other, .. } = &mut apart;
    let of_b = b.identity.node();
    assert_eq!(a.peers.links.load().get(&of_b).and_then(|link| link.connection.via()), *other);
    let counted = || {
        let page = a.metrics.render();
        let stalled = page.lines().find_map(|line| {
            line.strip_prefix("gossamer_dial_attempts_failed_total{reason=\"led_nowhere\"} ")
        });
        stalled.and_then(|count| count.parse::<u64>().ok())
    };
    assert!(counted() >= Some(1), "{:?} through {relay}", counted());
    for round in 0..3 {
        let began = tokio::time::Instant::now();
        let near = timeout(SOON, a.peers.open_flow(of_b)).await.expect("in time").expect("opens");
        assert_eq!(near.send.via(), *other, "{round}");
        assert!(began.elapsed() < Duration::from_millis(700), "{round} waited {:?}", began.elapsed());
    }
}

/// Waits for a packet of a node.
async fn packet_of(node: &mut Node, peer: NodeId) -> Vec<u8> {
    let packet = async {
        loop {
            if let Some(ToMembership::Packet { from, bytes }) = node.membership.recv().await
                && from == peer
            {
                return bytes;
            }
        }
    };
    timeout(SOON, packet).await.expect("in time")
}

#[tokio::test]
async fn packets_go_through_both_relays_and_nothing_else_through_the_second() {
    let mut apart = Apart::with_relays(&[honest, honest]).await;
    apart.met().await;
    let Apart { a, b, relay, other, .. } = &mut apart;
    let (of_a, of_b) = (a.identity.node(), b.identity.node());
    let second = |node: &Node, peer| node.peers.seconds.load().get(&peer).cloned();
    let up = async {
        while second(a, of_b).is_none() || second(b, of_a).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, up).await.expect("a second circuit");
    let first = a.peers.links.load().get(&of_b).cloned().expect("connected");
    let ways = [first.connection.via(), second(a, of_b).and_then(|link| link.connection.via())];
    assert!(ways.contains(&Some(*relay)) && ways.contains(other), "{ways:?}");
    let shown = a.peers.paths().remove(&of_b).expect("a path");
    assert_eq!(
        [Some(shown.kind), shown.second.map(PathKind::Relay)],
        ways.map(|way| way.map(PathKind::Relay))
    );
    let pinged = a.peers.ping(of_b, Vec::new()).await.connection.expect("connected");
    assert_eq!((pinged.0.second, pinged.1.is_ok()), (ways[1], true));
    assert!(a.peers.send_packet(of_b, b"to b".to_vec()) && b.peers.send_packet(of_a, b"to a".to_vec()));
    for _ in 0..2 {
        assert_eq!(packet_of(b, of_a).await, b"to b");
        assert_eq!(packet_of(a, of_b).await, b"to a");
    }
    assert!(a.peers.send_frame(of_b, &Frame::Probe(5)));
    for _ in 0..2 {
        let probe = async {
            while !matches!(
                b.membership.recv().await,
                Some(ToMembership::Frame { frame: Frame::Probe(5), .. })
            ) {}
        };
        timeout(SOON, probe).await.expect("in time");
    }
    first.connection.close(VarInt::from_u32(0), b"its relay is lost");
    assert!(a.peers.send_packet(of_b, b"all the same".to_vec()));
    assert_eq!(packet_of(b, of_a).await, b"all the same");
    let before = second(a, of_b).expect("it outlives the first");
    assert!(before.send_frame(&Frame::Root(0)), "not for it");
    timeout(SOON, before.connection.closed()).await.expect("closed");
    assert!(b.metrics.render().contains("gossamer_bad_frames_total 1"), "{}", b.metrics.render());
}
