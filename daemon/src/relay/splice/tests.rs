//! Flows between two sockets of this machine, over pipes and without one.

use super::*;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::relay::copy::{Broken, Counts, Early, Guarded, Side as _, Sink as _, Source as _, copy};
use crate::relay::tests::{Aside, Link, aside, tcp_pair};

/// Client and service of a flow, and how it ends.
async fn flow() -> (TcpStream, TcpStream, Arc<Counts>, Aside<Result<(), Broken>>) {
    let ((client, at_client), (service, at_service)) = (tcp_pair().await, tcp_pair().await);
    let counts = Arc::<Counts>::default();
    let counted = Arc::clone(&counts);
    let end = aside(async move {
        let (mut client, mut service) = (Guarded::new(at_client), Guarded::new(at_service));
        copy(&mut client, &mut service, &mut Early::default(), &counted).await
    });
    (client, service, counts, end)
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 + at % 251) as u8).collect()
}

const LEN: usize = 9 << 20;

#[tokio::test]
async fn both_directions_arrive_whole_and_end_by_themselves() {
    let (mut client, mut service, counts, end) = flow().await;
    let there = async {
        client.write_all(&bytes(LEN)).await.expect("written");
        client.shutdown().await.expect("half-closed");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("clean end");
        assert!(answer == bytes(LEN + 1));
    };
    let back = async {
        let mut asked = Vec::new();
        service.read_to_end(&mut asked).await.expect("clean end");
        assert!(asked == bytes(LEN));
        service.write_all(&bytes(LEN + 1)).await.expect("written");
        service.shutdown().await.expect("half-closed");
    };
    tokio::join!(there, back);
    end.end().await.expect("ended well");
    assert_eq!(counts.read(), (LEN as u64, LEN as u64 + 1));
}

#[tokio::test]
async fn what_has_arrived_is_moved_and_counted_and_an_end_is_told_apart_from_a_pause() {
    let ((mut client, near), (far, mut service)) = (tcp_pair().await, tcp_pair().await);
    let count = AtomicU64::new(0);
    client.write_all(&bytes(20_000)).await.expect("written");
    while count.load(Ordering::Relaxed) < 20_000 {
        near.readable().await.expect("open");
        assert!(matches!(splice_all(&near, &far, &count).await, Stop::Idle));
    }
    let mut got = vec![0; 20_000];
    service.read_exact(&mut got).await.expect("moved");
    assert!(got == bytes(20_000));
    client.shutdown().await.expect("half-closed");
    near.readable().await.expect("open");
    assert!(matches!(splice_all(&near, &far, &count).await, Stop::Ended));
}

#[tokio::test]
async fn only_ends_that_are_sockets_are_spliced() {
    let (mut socket, _other) = tcp_pair().await;
    let (source, sink) = socket.halves();
    assert!(source.socket().is_some() && sink.socket().is_some());
    let link = Link::new().await;
    let mut stream = link.open().await;
    let (source, sink) = stream.halves();
    assert!(source.socket().is_none() && sink.socket().is_none());
}

#[tokio::test]
async fn a_reset_reaches_the_other_end_while_it_does_not_read() {
    let (mut client, service, _, end) = flow().await;
    let stuck = tokio::time::timeout(Duration::from_millis(300), async {
        loop {
            client.write_all(&bytes(1 << 20)).await.expect("written");
        }
    });
    assert!(stuck.await.is_err(), "nobody reads");
    client.set_zero_linger().expect("set");
    drop(client);
    assert!(matches!(end.end().await, Err(Broken::Client(_))));
    drop(service);
}

#[tokio::test]
async fn more_busy_flows_than_pipes_all_get_through() {
    let mut flows = Vec::new();
    for _ in 0..MOST_PIPES + 8 {
        flows.push(flow().await);
    }
    let moved = flows.into_iter().map(|(mut client, mut service, _, end)| async move {
        let write = async {
            client.write_all(&bytes(3 << 20)).await.expect("written");
            client.shutdown().await.expect("half-closed");
        };
        let read = async {
            let mut got = Vec::new();
            service.read_to_end(&mut got).await.expect("clean end");
            assert!(got == bytes(3 << 20));
            drop(service);
        };
        tokio::join!(write, read);
        assert!(end.end().await.is_ok());
    });
    futures_util::future::join_all(moved).await;
    let pipes = Pipes::lock();
    assert!(pipes.free.len() <= MOST_FREE && pipes.made <= MOST_PIPES);
}
