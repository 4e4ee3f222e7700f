//! One identity in two processes: found out, told to both, and only the later one stops.

use super::raw::{Raw, close_code};
use super::*;
use crate::transport::link::CLOSE_TWICE;

/// Waits until the transport tells that a node runs twice, and where.
async fn told_twice(node: &mut Node) -> (NodeId, SocketAddr) {
    let wait = async {
        loop {
            if let Some(ToMembership::Twice { node, at }) = node.membership.recv().await {
                return (node, at);
            }
        }
    };
    timeout(SOON, wait).await.expect("found out")
}

#[tokio::test]
async fn a_process_that_comes_back_after_another_shows_that_its_node_runs_twice() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let _first = raw.dial(a.address, Purpose::Control, 1).await;
    let second = raw.dial(a.address, Purpose::Control, 2).await;
    let _again = raw.dial(a.address, Purpose::Control, 1).await;
    assert_eq!(close_code(&second.connection).await, CLOSE_TWICE, "the later process has to go");
    assert_eq!(told_twice(&mut a).await.0, raw.identity.node());
    let third = raw.shake_hands(a.address).await;
    assert_eq!(raw.refused(&third, Purpose::Control, 2).await, CLOSE_TWICE, "as often as it comes");
}

#[tokio::test]
async fn a_restart_is_no_second_process() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    for nonce in [1, 2, 2, 3] {
        let _greeted = raw.dial(a.address, Purpose::Control, nonce).await;
        a.connected_to(&raw.identity).await;
    }
    assert!(a.membership.try_recv().is_err(), "nothing is told");
    assert_eq!(a.peers.connected(), 1);
}

#[tokio::test]
async fn of_two_processes_that_see_each_other_one_stops() {
    let a = first_node();
    let (identity, dir) = a.member("vm-b").await;
    let mut first = start_node(identity.clone(), dir);
    let mut second = start_node(identity, tempfile::tempdir().expect("scratch"));
    let (at_first, at_second) = (told_twice(&mut first).await, told_twice(&mut second).await);
    assert_eq!((at_first.0, at_second.0), (first.identity.node(), second.identity.node()));
    let stops = |node: &Node| {
        let peers = node.peers.clone();
        async move { timeout(Duration::from_millis(200), peers.runs_twice()).await.ok() }
    };
    let (one, other) = (stops(&first).await, stops(&second).await);
    assert!(one.is_some() != other.is_some(), "{one:?} {other:?}");
    assert_eq!(
        one.or(other).map(|at| at.port()),
        Some(if one.is_some() { second.address } else { first.address }.port())
    );
}

#[tokio::test]
async fn the_word_of_a_peer_stops_nobody() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let greeted = raw.dial(a.address, Purpose::Control, 1).await;
    a.connected_to(&raw.identity).await;
    greeted.connection.close(CLOSE_TWICE.into(), b"127.0.0.1:9");
    assert!(timeout(Duration::from_secs(1), a.peers.runs_twice()).await.is_err());
}
