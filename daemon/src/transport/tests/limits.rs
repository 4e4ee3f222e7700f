//! What a peer can pin, and what a stranger can make the endpoint hold.

use std::task::Poll;

use futures_util::future::poll_fn;
use gossamer_wire::limits::{MAX_GREETING, MAX_INCOMING, MAX_JOIN_REQUEST_BYTES, MAX_UNREAD_PER_PEER};
use quinn::{Connection, SendStream, TransportConfig};

use super::super::credit::MAX_UNREAD;
use super::super::endpoint::{CONTROL_STREAMS, CONTROL_WINDOW, GREETING_WINDOW};
use super::super::link::{CLOSE_DUPLICATE, CLOSE_REFUSED};
use super::raw::{Raw, close_code};
use super::*;

/// A connection of one that sends as much as it is let, with the hello of a purpose or none.
async fn greedy(raw: &Raw, to: SocketAddr, purpose: Option<Purpose>) -> Connection {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(raw.tls()).expect("TLS 1.3");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut settings = TransportConfig::default();
    settings.send_window(1 << 30);
    config.transport_config(Arc::new(settings));
    let dial = raw.endpoints.endpoint.connect_with(config, to, "test").expect("dials");
    let connection = timeout(SOON, dial).await.expect("in time").expect("connects");
    if let Some(purpose) = purpose {
        // Its stream stays open as long as the connection.
        std::mem::forget(raw.greet(connection.clone(), purpose).await);
    }
    connection
}

/// Writes as much as is taken at once, on all streams that may be opened; adds them to those that are open.
async fn push(connection: &Connection, streams: &mut Vec<SendStream>) -> usize {
    static BYTES: [u8; 65_536] = [7; 65_536];
    let mut taken = 0;
    poll_fn(|context| {
        let opened = std::pin::pin!(connection.open_bi()).as_mut().poll(context);
        if let Poll::Ready(Ok((send, _))) = opened {
            streams.push(send);
        }
        for send in streams.iter_mut() {
            while let Poll::Ready(Ok(written)) = std::pin::Pin::new(&mut *send).poll_write(context, &BYTES) {
                taken += written;
            }
        }
        Poll::Ready(())
    })
    .await;
    taken
}

/// Pushes on these connections until so many bytes were taken, and once more when all of them have arrived.
async fn push_all(connections: &[Connection], least: usize) -> usize {
    let mut streams: Vec<_> = connections.iter().map(|_| Vec::new()).collect();
    let mut taken = 0;
    let fill = async {
        let mut rounds_in_vain = 0;
        // Credit that is on its way arrives within a round trip on loopback.
        while taken < least || rounds_in_vain < 1_000 {
            let mut more = 0;
            for (connection, streams) in connections.iter().zip(&mut streams) {
                more += push(connection, streams).await;
            }
            rounds_in_vain = if more == 0 { rounds_in_vain + 1 } else { 0 };
            taken += more;
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, fill).await.expect("as many bytes as are allowed");
    taken
}

#[tokio::test]
async fn a_member_pins_sixteen_mebibytes_whatever_it_opens() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let control = greedy(&raw, a.address, Some(Purpose::Control)).await;
    a.connected_to(&raw.identity).await;
    let mut data = Vec::new();
    for _ in 0..4 {
        data.push(greedy(&raw, a.address, Some(Purpose::Data)).await);
    }
    let mut silent = Vec::new();
    for _ in 0..MAX_GREETING {
        silent.push(greedy(&raw, a.address, None).await);
    }
    let of_data = push_all(&data, MAX_UNREAD - data.len() * 16_384).await;
    let of_silent = push_all(&silent, silent.len() * GREETING_WINDOW as usize).await;
    let of_control = push_all(&[control], 0).await;
    assert!(of_control <= CONTROL_WINDOW as usize, "{of_control}");
    assert!(
        of_data + of_silent + of_control <= MAX_UNREAD_PER_PEER,
        "{of_data} + {of_silent} + {of_control}"
    );
}

#[tokio::test]
async fn a_member_has_four_connections_that_do_not_greet() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut silent = Vec::new();
    for _ in 0..MAX_GREETING {
        silent.push(raw.shake_hands(a.address).await);
    }
    let fifth = raw.shake_hands(a.address).await;
    assert_eq!(close_code(&fifth).await, CLOSE_REFUSED);
    assert!(silent[0].close_reason().is_none(), "the fifth went before the first ran out of time");
    assert_eq!(a.metrics.snapshot()["gossamer_handshakes_refused_total{reason=\"too_many\"}"], 1);
}

#[tokio::test]
async fn a_fifth_data_connection_is_closed() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let _control = raw.dial(a.address, Purpose::Control, 1).await;
    a.connected_to(&raw.identity).await;
    let mut data = Vec::new();
    for _ in 0..4 {
        data.push(greedy(&raw, a.address, Some(Purpose::Data)).await);
    }
    let fifth = greedy(&raw, a.address, None).await;
    assert_eq!(raw.refused(&fifth, Purpose::Data, 1).await, CLOSE_DUPLICATE);
}

#[tokio::test]
async fn before_its_hello_a_connection_has_one_stream_and_a_joiner_never_more() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut tls = raw.tls();
    tls.alpn_protocols = vec![gossamer_wire::join::ALPN.to_vec()];
    let joiner = raw.dial_with(a.address, tls).await.expect("an issuer takes joiners");
    for connection in [raw.shake_hands(a.address).await, joiner] {
        let mut streams = Vec::new();
        for _ in 0..CONTROL_STREAMS {
            streams.push(timeout(SOON, connection.open_bi()).await.expect("at once").expect("a stream"));
        }
        let more =
            poll_fn(|context| Poll::Ready(std::pin::pin!(connection.open_bi()).poll(context).is_ready()));
        assert!(!more.await, "one stream more");
        let uni =
            poll_fn(|context| Poll::Ready(std::pin::pin!(connection.open_uni()).poll(context).is_ready()));
        assert!(!uni.await, "a stream of one direction");
    }
}

#[tokio::test]
async fn a_request_to_join_that_is_too_long_is_not_read_to_its_end() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut tls = raw.tls();
    tls.alpn_protocols = vec![gossamer_wire::join::ALPN.to_vec()];
    let joiner = raw.dial_with(a.address, tls).await.expect("an issuer takes joiners");
    let (mut send, _recv) = joiner.open_bi().await.expect("a stream");
    send.write_all(&[0; MAX_JOIN_REQUEST_BYTES + 1]).await.expect("fits the window");
    send.finish().expect("finishes");
    timeout(SOON, joiner.closed()).await.expect("in time");
    assert_eq!(a.metrics.snapshot()["gossamer_joins_total{outcome=\"malformed\"}"], 1);
}

#[tokio::test]
async fn handshakes_that_nobody_judges_yet_are_bounded() {
    let a = first_node();
    // It takes no connection: its endpoint holds what comes.
    let (busy, raw) = (Raw::of(&a, "vm-b").await, Raw::of(&a, "vm-c").await);
    let dials: Vec<_> = (0..MAX_INCOMING + 8)
        .map(|_| {
            let config = raw.endpoints.control.clone();
            raw.endpoints.endpoint.connect_with(config, busy.address, "test").expect("dials")
        })
        .collect();
    let mut held = Vec::new();
    while held.len() < MAX_INCOMING {
        let incoming = timeout(SOON, busy.endpoints.endpoint.accept()).await.expect("in time");
        held.push(incoming.expect("an open endpoint"));
    }
    // First packets are sent again after a second.
    let more = timeout(Duration::from_millis(1_500), busy.endpoints.endpoint.accept()).await;
    assert!(more.is_err(), "one above the limit");
    held.truncate(MAX_INCOMING - 1);
    timeout(SOON, busy.endpoints.endpoint.accept()).await.expect("one more when there is room");
    drop(dials);
}
