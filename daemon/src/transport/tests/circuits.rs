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
        let a = first_node();
        let mut r = relay_of(&a).await;
        let (mut identity, dir) = a.member("vm-b").await;
        identity.seeds.clear();
        let mut b = start_node(identity, dir);
        let relay = r.identity.node();
        b.peers.learn(relay, vec![r.address], Source::Hint);
        let (of_a, of_b, of_r) = (Arc::clone(&a.identity), Arc::clone(&b.identity), Arc::clone(&r.identity));
        r.connected_to(&of_b).await;
        b.connected_to(&of_r).await;
        let passed = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(play(r, Arc::clone(&passed), meddle));
        // The demultiplexing of B, which the relay module does elsewhere.
        let (flows_in, flows) = mpsc::channel(64);
        let arrived = std::mem::replace(&mut b.flows, flows);
        tasks.spawn(sort(arrived, b.peers.clone(), flows_in));
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        a.peers.learn_relays(of_b.node(), vec![relay]);
        a.peers.learn(of_b.node(), vec![silent.local_addr().expect("bound")], Source::Hint);
        drop((of_a, of_b));
        Self { a, b, relay, passed, _silent: silent, _tasks: tasks }
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
        peers.take_circuit(stream, None);
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
    let packet = async {
        loop {
            if let Some(ToMembership::Packet { from, bytes }) = b.membership.recv().await
                && from == of_a
            {
                return bytes;
            }
        }
    };
    assert_eq!(timeout(SOON, packet).await.expect("in time"), b"a packet");
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
        peers.take_circuit(stream, None);
    };
    let refused = || {
        a.metrics.render().contains("gossamer_dial_attempts_failed_total{reason=\"broken\"}")
            || a.metrics.render().contains("gossamer_dial_attempts_failed_total{reason=\"wrong_identity\"}")
    };
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    a.peers.learn(absent.node(), vec![silent.local_addr().expect("bound")], Source::Hint);
    lying.await;
    let counted = async {
        while !refused() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, counted).await.expect("found out");
    assert_eq!(a.peers.is_lane(absent.node()), None);
    assert!(r.metrics.render().contains("gossamer_handshakes_refused_total{reason=\"lane_name\"} 1"));
}
