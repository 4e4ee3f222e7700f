//! Real sockets and QUIC streams: half-close each way, resets, early bytes, volume.

use super::*;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::relay::tests::{Aside, Link, aside, tcp_pair};
use crate::transport::FlowStream;

/// A client program, a service program, and a flow between them over a QUIC stream.
struct Flow {
    client: TcpStream,
    service: TcpStream,
    near: Aside<Result<(), Broken>>,
    far: Aside<Result<(), Broken>>,
    near_counts: Arc<Counts>,
    link: Arc<Link>,
}

impl Flow {
    async fn open() -> Self {
        Self::open_after(Early::default()).await
    }

    async fn open_after(early: Early) -> Self {
        Self::on(&Arc::new(Link::new().await), early).await
    }

    async fn on(link: &Arc<Link>, early: Early) -> Self {
        let link = Arc::clone(link);
        let (client, at_near) = tcp_pair().await;
        let (service, at_far) = tcp_pair().await;
        prepare(&at_near);
        prepare(&at_far);
        let mut stream = link.open().await;
        // The far end sees a stream with its first byte, as the open request is in a real flow.
        stream.send.write_all(b"?").await.expect("open");
        let mut accepted = link.accept("west").await;
        accepted.recv.read_exact(&mut [0]).await.expect("first byte");
        let near_counts = Arc::new(Counts::default());
        let counts = Arc::clone(&near_counts);
        let near = run(at_near, stream, early, counts);
        let far = aside(async move {
            let (mut peer, mut target) = (Guarded::new(accepted), Guarded::new(at_far));
            copy(&mut peer, &mut target, &mut Early::default(), &Counts::default()).await
        });
        Self { client, service, near, far, near_counts, link }
    }
}

fn run(
    client: TcpStream,
    stream: FlowStream,
    early: Early,
    counts: Arc<Counts>,
) -> Aside<Result<(), Broken>> {
    let (mut client, mut stream) = (Guarded::new(client), Guarded::new(stream));
    aside(async move { copy(&mut client, &mut stream, &mut { early }, &counts).await })
}

async fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await?;
    Ok(all)
}

async fn assert_reset(stream: &mut TcpStream) {
    let error = read_all(stream).await.expect_err("a clean end hides the failure");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_service_may_speak_first() {
    let mut flow = Flow::open().await;
    flow.service.write_all(b"hello").await.expect("written");
    let mut greeting = [0; 5];
    flow.client.read_exact(&mut greeting).await.expect("read");
    assert_eq!(&greeting, b"hello");
}

#[tokio::test]
async fn a_client_that_ends_its_direction_still_gets_the_answer() {
    let mut flow = Flow::open().await;
    flow.client.write_all(b"question").await.expect("written");
    flow.client.shutdown().await.expect("half-closed");
    assert_eq!(read_all(&mut flow.service).await.expect("clean end"), b"question");
    flow.service.write_all(b"answer").await.expect("written");
    flow.service.shutdown().await.expect("closed");
    assert_eq!(read_all(&mut flow.client).await.expect("clean end"), b"answer");
    assert!(flow.near.end().await.is_ok());
    assert!(flow.far.end().await.is_ok());
    assert_eq!(flow.near_counts.bytes_in.load(Ordering::Relaxed), 8);
    assert_eq!(flow.near_counts.bytes_out.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn a_service_that_ends_its_direction_still_gets_the_rest() {
    let mut flow = Flow::open().await;
    flow.service.write_all(b"go on").await.expect("written");
    flow.service.shutdown().await.expect("half-closed");
    assert_eq!(read_all(&mut flow.client).await.expect("clean end"), b"go on");
    flow.client.write_all(b"the rest").await.expect("written");
    flow.client.shutdown().await.expect("closed");
    assert_eq!(read_all(&mut flow.service).await.expect("clean end"), b"the rest");
    assert!(flow.near.end().await.is_ok());
}

#[tokio::test]
async fn a_reset_of_the_service_is_a_reset_at_the_client() {
    let mut flow = Flow::open().await;
    flow.service.write_all(b"half an ans").await.expect("written");
    let mut half = [0; 11];
    flow.client.read_exact(&mut half).await.expect("read");
    flow.service.set_zero_linger().expect("option");
    drop(flow.service);
    assert_reset(&mut flow.client).await;
    assert!(matches!(flow.far.end().await, Err(Broken::Service(_))));
    assert!(matches!(flow.near.end().await, Err(Broken::Service(_))));
}

#[tokio::test]
async fn a_reset_of_the_client_is_a_reset_at_the_service() {
    let mut flow = Flow::open().await;
    flow.client.set_zero_linger().expect("option");
    drop(flow.client);
    assert_reset(&mut flow.service).await;
    assert!(matches!(flow.near.end().await, Err(Broken::Client(_))));
    assert!(matches!(flow.far.end().await, Err(Broken::Client(_))));
}

#[tokio::test]
async fn a_reset_after_the_clients_clean_end_is_seen_too() {
    let mut flow = Flow::open().await;
    flow.client.shutdown().await.expect("half-closed");
    assert_eq!(read_all(&mut flow.service).await.expect("clean end"), b"");
    flow.client.set_zero_linger().expect("option");
    drop(flow.client);
    assert!(matches!(flow.near.end().await, Err(Broken::Client(_))));
    assert!(matches!(flow.far.end().await, Err(Broken::Client(_))));
}

#[tokio::test]
async fn a_lost_hop_is_a_reset_at_both_programs() {
    let mut flow = Flow::open().await;
    flow.link.near.close(9_u32.into(), b"gone");
    assert_reset(&mut flow.client).await;
    assert_reset(&mut flow.service).await;
}

#[tokio::test]
async fn a_dropped_flow_is_no_clean_end() {
    let mut flow = Flow::open().await;
    drop(flow.near);
    assert_reset(&mut flow.client).await;
    assert_reset(&mut flow.service).await;
}

#[tokio::test]
async fn early_bytes_come_first_and_an_early_end_is_kept() {
    let chunks = [Bytes::from_static(b"ear"), Bytes::from_static(b"ly")].into();
    let mut flow = Flow::open_after(Early { chunks, sent: 10, is_ended: true }).await;
    assert_eq!(read_all(&mut flow.service).await.expect("clean end"), b"early");
    drop(flow.service);
    assert_eq!(read_all(&mut flow.client).await.expect("clean end"), b"");
    assert!(flow.near.end().await.is_ok());
    assert_eq!(flow.near_counts.bytes_in.load(Ordering::Relaxed), 15);
}

#[tokio::test]
async fn early_bytes_that_a_broken_service_never_got_are_left_for_another_one() {
    let ((_client, at_near), (service, target)) = (tcp_pair().await, tcp_pair().await);
    service.set_zero_linger().expect("option");
    drop(service);
    target.ready(Interest::ERROR).await.expect("reset");
    let mut early = Early { chunks: [Bytes::from_static(b"early")].into(), sent: 0, is_ended: true };
    let (mut client, mut target, counts) = (Guarded::new(at_near), Guarded::new(target), Counts::default());
    let copied = copy(&mut client, &mut target, &mut early, &counts).await;
    assert!(matches!(copied, Err(Broken::Service(_))), "{copied:?}");
    assert_eq!((counts.read(), &early.chunks[0][..], early.is_ended), ((0, 0), &b"early"[..], true));
}

#[tokio::test]
async fn ten_megabytes_arrive_unchanged_both_ways_at_once() {
    let flow = Flow::open().await;
    let sent: Arc<Vec<u8>> = Arc::new((0..10_000_000_u32).map(|at| (at % 251) as u8).collect());
    let both = [flow.client, flow.service].map(|stream| {
        let sent = Arc::clone(&sent);
        aside(async move {
            let (mut read, mut write) = stream.into_split();
            let writing = async {
                write.write_all(&sent).await.expect("written");
                write.shutdown().await.expect("ended");
            };
            let mut received = Vec::new();
            let reading = async { read.read_to_end(&mut received).await.expect("read") };
            tokio::join!(writing, reading);
            assert!(received == *sent, "the bytes differ");
        })
    });
    for end in both {
        end.end().await;
    }
    assert!(flow.near.end().await.is_ok());
    assert_eq!(flow.near_counts.bytes_out.load(Ordering::Relaxed), 10_000_000);
}

#[tokio::test]
async fn a_stream_that_is_no_socket_is_carried_too() {
    let (mut program, client) = tokio::io::duplex(64);
    let (mut service, target) = tcp_pair().await;
    let carried = aside(async move {
        let (mut client, mut target) = (Guarded::new(Plain(client)), Guarded::new(target));
        copy(&mut client, &mut target, &mut Early::default(), &Counts::default()).await
    });
    program.write_all(b"question").await.expect("written");
    program.shutdown().await.expect("ended");
    assert_eq!(read_all(&mut service).await.expect("clean end"), b"question");
    service.write_all(&[7; 1_000]).await.expect("written");
    drop(service);
    let mut answer = Vec::new();
    program.read_to_end(&mut answer).await.expect("clean end");
    assert_eq!(answer, [7; 1_000]);
    assert!(carried.end().await.is_ok());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_service_back() {
    let mut flow = Flow::open().await;
    let (mut read, mut write) = flow.service.split();
    let endless = async {
        loop {
            write.write_all(&[1; CHUNK]).await.expect("written");
        }
    };
    let waited = timeout(Duration::from_millis(500), endless).await;
    assert!(waited.is_err(), "an endless write does not end");
    let before = flow.near_counts.bytes_out.load(Ordering::Relaxed);
    // Nobody reads: what is under way stays within windows and socket buffers.
    assert!(before < 32 << 20, "{before} bytes were taken from the service");
    let mut some = vec![0; 1 << 20];
    flow.client.read_exact(&mut some).await.expect("what was sent is still there");
    assert!(some.iter().all(|byte| *byte == 1));
    flow.client.write_all(b"stop").await.expect("written");
    let mut said = [0; 4];
    read.read_exact(&mut said).await.expect("the other direction is free");
    assert_eq!(&said, b"stop");
}

#[tokio::test]
async fn a_small_message_is_not_kept_in_a_large_buffer() {
    let (mut program, client) = tcp_pair().await;
    program.write_all(b"small").await.expect("written");
    let mut client = client;
    let (mut from, _) = client.halves();
    let chunk = from.next().await.expect("read").expect("bytes");
    assert_eq!(chunk, b"small"[..]);
    let kept = BytesMut::from(chunk).capacity();
    assert!(kept < 64, "{kept} bytes are kept for five");
}

#[tokio::test]
async fn a_flow_without_a_byte_ends_cleanly() {
    let mut flow = Flow::open().await;
    flow.client.shutdown().await.expect("half-closed");
    assert_eq!(read_all(&mut flow.service).await.expect("clean end"), b"");
    drop(flow.service);
    assert_eq!(read_all(&mut flow.client).await.expect("clean end"), b"");
    assert!(flow.near.end().await.is_ok() && flow.far.end().await.is_ok());
}

/// Ends the client's direction, then lets the service write to a client that does not read until nothing moves.
async fn stalled() -> Flow {
    let mut flow = Flow::open().await;
    flow.client.shutdown().await.expect("half-closed");
    assert_eq!(read_all(&mut flow.service).await.expect("clean end"), b"");
    loop {
        let write = flow.service.write_all(&[1; CHUNK]);
        if timeout(Duration::from_millis(300), write).await.is_err() {
            return flow;
        }
    }
}

#[tokio::test]
async fn a_stalled_client_does_not_hide_a_lost_hop() {
    let mut flow = stalled().await;
    flow.link.near.close(9_u32.into(), b"gone");
    let ended = timeout(Duration::from_secs(5), flow.near.end()).await;
    assert!(matches!(ended.expect("ends without a read"), Err(Broken::Service(_))));
    assert_reset(&mut flow.client).await;
}

#[tokio::test]
async fn a_stalled_client_does_not_hide_a_reset_of_the_service() {
    let mut flow = stalled().await;
    flow.service.set_zero_linger().expect("option");
    drop(flow.service);
    let ends = async { (flow.far.end().await, flow.near.end().await) };
    let (far, near) = timeout(Duration::from_secs(5), ends).await.expect("end without a read");
    assert!(matches!((far, near), (Err(Broken::Service(_)), Err(Broken::Service(_)))));
    assert_reset(&mut flow.client).await;
}

#[test]
fn what_is_left_of_pieces_begins_where_the_writing_ended() {
    let pieces = || [&b"one"[..], b"", b"three"].map(Bytes::from_static);
    let all: Vec<u8> = pieces().concat();
    for written in 0..=all.len() {
        let mut pieces = pieces();
        let left = after(&mut pieces, written).concat();
        assert_eq!(left, all[written..], "{written} written");
    }
}

/// Sends pieces of some size to a reader that rests after each part; expects all of them in order.
async fn in_order(link: Link, rest: Duration) {
    let mut flow = Flow::on(&Arc::new(link), Early::default()).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut from, mut to) = flow.client.split();
    let writing = async {
        for piece in sent.chunks(7_001) {
            flow.service.write_all(piece).await.expect("written");
        }
        flow.service.shutdown().await.expect("ended");
        to.shutdown().await.expect("ended");
    };
    let reading = async {
        let (mut read, mut part) = (Vec::new(), vec![0; 50_000]);
        loop {
            let length = from.read(&mut part).await.expect("read");
            if length == 0 {
                return read;
            }
            read.extend_from_slice(&part[..length]);
            tokio::time::sleep(rest).await;
        }
    };
    let ((), read) = tokio::join!(writing, reading);
    assert!(read == sent, "{} of {} bytes", read.len(), sent.len());
}

#[tokio::test]
async fn pieces_of_all_sizes_arrive_in_order_at_a_reader_that_takes_its_time() {
    in_order(Link::new().await, Duration::ZERO).await;
}

#[tokio::test]
async fn what_was_copied_together_for_a_reader_that_stalls_again_and_again_arrives_in_order() {
    in_order(Link::credited(None).await, STALLED * 2).await;
}

/// Writes to a service's end until nothing moves for a while; returns how many bytes that took.
async fn fill(service: &mut TcpStream) -> usize {
    let mut written = 0;
    loop {
        let write = service.write(&[1; CHUNK]);
        match timeout(Duration::from_secs(1), write).await {
            Ok(taken) => written += taken.expect("written"),
            Err(_) => return written,
        }
    }
}

/// Returns how long a flow of this link takes for 16 MiB.
async fn pace(link: &Arc<Link>) -> Duration {
    let flow = Flow::on(link, Early::default()).await;
    let (mut service, mut client) = (flow.service, flow.client);
    let began = tokio::time::Instant::now();
    let writing = aside(async move {
        service.write_all(&vec![7; 16 << 20]).await.expect("written");
        service.shutdown().await.expect("ended");
        service
    });
    let read = timeout(Duration::from_secs(20), read_all(&mut client)).await;
    assert_eq!(read.expect("in time").expect("clean end").len(), 16 << 20);
    let took = began.elapsed();
    drop(writing);
    took
}

#[tokio::test]
async fn readers_that_have_stalled_hold_little_and_slow_no_other_flow() {
    for (count, reads) in [(20, 0), (20, 2 << 20), (200, 0)] {
        let link = Arc::new(Link::credited(None).await);
        let alone = pace(&link).await;
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let mut flow = Flow::on(&link, Early::default()).await;
            tasks.spawn(async move {
                let mut read = vec![0; reads];
                let reading = async { flow.client.read_exact(&mut read).await.expect("read") };
                let (written, _) = tokio::join!(fill(&mut flow.service), reading);
                (flow, written - reads)
            });
        }
        let stalled = tasks.join_all().await;
        let beside = pace(&link).await;
        assert!(
            beside < alone * 4 + Duration::from_millis(500),
            "{alone:?} alone, {beside:?} beside {count}"
        );
        let (held, window) = link.credits.as_ref().expect("credited")[0].held();
        assert!(window <= 19 << 19, "{window} is more than one connection may have");
        assert!((1..=window - (1 << 20)).contains(&held), "{held} of {window}");
        // They have lost nothing.
        for (mut flow, written) in stalled {
            drop(flow.service.shutdown().await);
            flow.client.shutdown().await.expect("ended");
            assert_eq!(read_all(&mut flow.client).await.expect("clean end").len(), written);
        }
    }
}

#[tokio::test]
async fn a_flow_over_a_long_path_has_more_than_a_mebibyte_on_its_way() {
    let rtt = Duration::from_millis(200);
    let link = Arc::new(Link::credited(Some(rtt / 2)).await);
    let flow = Flow::on(&link, Early::default()).await;
    let (mut service, mut client) = (flow.service, flow.client);
    let _writing = aside(async move { while service.write_all(&[7; CHUNK]).await.is_ok() {} });
    let (mut arrived, mut part, mut best) = (VecDeque::new(), vec![0; 1 << 16], 0);
    let began = tokio::time::Instant::now();
    while best < 5 << 18 {
        let len = client.read(&mut part).await.expect("read");
        let now = tokio::time::Instant::now();
        arrived.push_back((now, len));
        while arrived.front().is_some_and(|(at, _)| *at + rtt < now) {
            arrived.pop_front();
        }
        best = best.max(arrived.iter().map(|(_, len)| len).sum());
        assert!(began.elapsed() < Duration::from_secs(60), "{best} bytes in a round trip at the most");
    }
}

/// What has come in three packets.
struct Packets;

impl Source for Packets {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        panic!("one at a time costs a system call for each packet")
    }

    async fn batch(&mut self) -> io::Result<Option<Batch>> {
        Ok(Some(["a", "b", "c"].into_iter().map(Bytes::from).collect()))
    }

    async fn broken(&mut self) -> io::Error {
        pending().await
    }
}

#[tokio::test]
async fn a_socket_with_early_bytes_before_it_is_not_spliced_yet() {
    let (mut socket, _other) = tcp_pair().await;
    let (then, _sink) = socket.halves();
    let mut early = Early { chunks: [Bytes::from("early")].into(), ..Early::default() };
    let mut source = Replayed { early: &mut early, then };
    assert!(source.socket().is_none());
    source.batch().await.expect("read");
    assert!(source.socket().is_some());
}

#[tokio::test]
async fn after_the_early_bytes_packets_are_taken_together() {
    let mut early = Early { chunks: [Bytes::from("early")].into(), ..Early::default() };
    let mut source = Replayed { early: &mut early, then: Packets };
    let first = source.batch().await.expect("read").expect("no end");
    assert_eq!(first.as_slice(), ["early"]);
    let rest = source.batch().await.expect("read").expect("no end");
    assert_eq!(rest.as_slice(), ["a", "b", "c"]);
}
