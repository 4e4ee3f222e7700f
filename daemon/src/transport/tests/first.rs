//! What the endpoint holds for those whose handshake is not over, and for how long.

use quinn::Incoming;
use tokio::net::UdpSocket;

use gossamer_wire::limits::{HANDSHAKE_TIMEOUT, MAX_ALL_INCOMING_BYTES, MAX_INCOMING_BYTES};

use super::super::endpoint::DATAGRAM_BUFFER;
use super::super::link::CLOSE_REFUSED;
use super::raw::{Raw, close_code};
use super::*;

/// Somebody whose first packet was caught on its way.
struct Caught {
    socket: UdpSocket,
    packet: Vec<u8>,
    _dial: quinn::Connecting,
}

/// Lets `raw` dial and catches its first packet.
async fn catch(raw: &Raw) -> Caught {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let to = socket.local_addr().expect("bound");
    let config = raw.endpoints.control.clone();
    let dial = raw.endpoints.endpoint.connect_with(config, to, "test").expect("dials");
    let mut packet = vec![0; 2_048];
    let (length, _) = timeout(SOON, socket.recv_from(&mut packet)).await.expect("in time").expect("a packet");
    packet.truncate(length);
    Caught { socket, packet, _dial: dial }
}

impl Caught {
    async fn send(&self, to: SocketAddr, times: usize) {
        for _ in 0..times {
            self.socket.send_to(&self.packet, to).await.expect("sends");
        }
    }
}

async fn next(busy: &Raw) -> Incoming {
    timeout(SOON, busy.endpoints.endpoint.accept()).await.expect("in time").expect("open")
}

/// Takes a handshake up and returns how many bytes were kept for it behind its first packet.
fn kept(incoming: Incoming) -> u64 {
    let connecting = incoming.accept().expect("accepts");
    let Ok((connection, _)) = connecting.into_0rtt() else { panic!("a server may always speak first") };
    connection.stats().udp_rx.bytes
}

/// First packets sent for each handshake: more than are kept.
const TIMES: usize = 40;
/// Handshakes that together send more than is kept for all.
const MANY: u64 = MAX_ALL_INCOMING_BYTES / MAX_INCOMING_BYTES + 8;

#[tokio::test]
async fn what_comes_before_a_handshake_is_taken_up_is_kept_up_to_a_limit_for_each_and_for_all() {
    let a = first_node();
    // It takes no connection: its endpoint holds what comes.
    let (busy, raw) = (Raw::of(&a, "vm-b").await, Raw::of(&a, "vm-c").await);
    let (mut held, mut packet) = (Vec::new(), 0);
    for _ in 0..MANY {
        let caught = catch(&raw).await;
        packet = caught.packet.len() as u64;
        caught.send(busy.address, 1).await;
        held.push(next(&busy).await);
        caught.send(busy.address, TIMES).await;
    }
    let kept: Vec<_> = held.into_iter().map(kept).collect();
    assert!(kept.iter().all(|bytes| *bytes <= MAX_INCOMING_BYTES), "{kept:?}");
    assert!(kept[0] + packet > MAX_INCOMING_BYTES, "the limit of one was not reached: {kept:?}");
    let all = kept.iter().sum::<u64>();
    assert!(all <= MAX_ALL_INCOMING_BYTES, "{all}");
    assert!(all + packet > MAX_ALL_INCOMING_BYTES, "the limit of all was not reached: {all}");
}

#[tokio::test]
async fn unread_datagrams_are_kept_up_to_a_limit_and_the_oldest_make_room() {
    const SENT: u32 = 200;
    let a = first_node();
    let (here, there) = (Raw::of(&a, "vm-b").await, Raw::of(&a, "vm-c").await);
    let (sender, reader) = tokio::join!(here.shake_hands(there.address), there.accept());
    let space = sender.datagram_send_buffer_space();
    assert!(space <= DATAGRAM_BUFFER && space > DATAGRAM_BUFFER - 64, "{space}, less the header of one");
    for number in 0..SENT {
        let mut datagram = vec![0; 1_000];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        sender.send_datagram_wait(datagram.into()).await.expect("sends");
    }
    // A stream may overtake what has not left yet.
    let left = async {
        while sender.datagram_send_buffer_space() < space {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, left).await.expect("all leave");
    let mut control = sender.open_bi().await.expect("opens").0;
    control.write_all(b"x").await.expect("writes");
    let mut behind = timeout(SOON, reader.accept_bi()).await.expect("in time").expect("a stream").1;
    timeout(SOON, behind.read_exact(&mut [0])).await.expect("in time").expect("reads");
    let mut numbers = Vec::new();
    let mut bytes = 0;
    while numbers.last() != Some(&(SENT - 1)) {
        let datagram = timeout(SOON, reader.read_datagram()).await.expect("the last one").expect("open");
        bytes += datagram.len();
        numbers.push(u32::from_be_bytes(datagram[..4].try_into().expect("four")));
    }
    assert!(bytes <= DATAGRAM_BUFFER, "{bytes}");
    assert!(numbers[0] > 0 && bytes > DATAGRAM_BUFFER / 2, "{bytes} from {} on", numbers[0]);
}

#[tokio::test]
async fn who_does_not_go_on_with_a_handshake_or_says_no_hello_is_given_up_in_three_seconds() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let begin = std::time::Instant::now();
    let caught = catch(&raw).await;
    caught.send(a.address, 1).await;
    let silent = raw.shake_hands(a.address).await;
    assert_eq!(close_code(&silent).await, CLOSE_REFUSED);
    let both = async {
        while a.metrics.snapshot()["gossamer_handshakes_refused_total{reason=\"timeout\"}"] < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, both).await.expect("both are given up");
    let took = begin.elapsed();
    assert!(took >= HANDSHAKE_TIMEOUT && took < 2 * HANDSHAKE_TIMEOUT, "{took:?}");
}
