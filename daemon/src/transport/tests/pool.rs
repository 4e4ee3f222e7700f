//! The pool of data connections: who waits, who is served, who is told that nobody came.

use super::super::credit::Budget;
use super::super::data::{DataConnection, Opened, Pool};
use super::raw::{Raw, quic};
use super::*;

/// A data connection to `to`, and its node.
async fn data(raw: &Raw, to: &Node) -> (NodeId, DataConnection) {
    let greeted = raw.dial(to.address, Purpose::Data, 1).await;
    (greeted.peer.node, DataConnection::new(quic(&greeted), greeted.peer, Budget::default()))
}

fn id(opened: &Opened) -> usize {
    match opened {
        Opened::Data(data) => data.connection.stable_id(),
        Opened::Lane(_) => panic!("no lane was dialled"),
    }
}

#[tokio::test]
async fn the_first_who_asks_causes_a_dial_and_all_who_wait_are_served() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let (node, data) = data(&raw, &a).await;
    let mut pool = Pool::default();
    let (first, mut first_answer) = oneshot::channel();
    let (second, mut second_answer) = oneshot::channel();
    assert!(pool.request(node, first), "nobody dials yet");
    assert!(!pool.request(node, second), "somebody dials already");
    assert!(first_answer.try_recv().is_err());

    let stable_id = data.connection.stable_id();
    pool.insert(data);
    for answer in [&mut first_answer, &mut second_answer] {
        assert_eq!(id(&answer.try_recv().expect("served")), stable_id);
    }
    let (third, mut third_answer) = oneshot::channel();
    assert!(!pool.request(node, third), "the live connection is used");
    assert!(third_answer.try_recv().is_ok());
}

#[tokio::test]
async fn the_newest_live_connection_is_used_until_it_ends() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let ((node, old), (_, new)) = (data(&raw, &a).await, data(&raw, &a).await);
    let (old_id, new_id) = (old.connection.stable_id(), new.connection.stable_id());
    let mut pool = Pool::default();
    pool.insert(old);
    pool.insert(new.clone());
    let mut used = || {
        let (caller, mut answer) = oneshot::channel();
        let must_dial = pool.request(node, caller);
        (must_dial, answer.try_recv().ok().as_ref().map(id))
    };
    assert_eq!(used(), (false, Some(new_id)));
    // Closed but not yet reported: it must not be given out any more.
    new.connection.close(0_u32.into(), b"test");
    assert_eq!(used(), (false, Some(old_id)));
    pool.ended(node, old_id);
    pool.ended(node, new_id);
    let (caller, _answer) = oneshot::channel();
    assert!(pool.request(node, caller));
}

#[tokio::test]
async fn a_peer_has_four_data_connections_at_the_most() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut pool = Pool::default();
    let mut first_id = None;
    for _ in 0..4 {
        let (_, data) = data(&raw, &a).await;
        let stable_id = data.connection.stable_id();
        first_id.get_or_insert(stable_id);
        assert!(pool.insert(data));
    }
    // The node itself would close a fifth one for data.
    let fifth = raw.dial(a.address, Purpose::Control, 1).await;
    let node = fifth.peer.node;
    let fifth = DataConnection::new(quic(&fifth), fifth.peer, Budget::default());
    assert!(!pool.insert(fifth.clone()));
    pool.ended(node, first_id.expect("one was made"));
    assert!(pool.insert(fifth));
}

#[tokio::test]
async fn a_peer_with_a_live_connection_is_not_dialled_back() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let (node, data) = data(&raw, &a).await;
    let stable_id = data.connection.stable_id();
    let mut pool = Pool::default();
    pool.insert(data);
    assert!(!pool.request_back(node));
    pool.ended(node, stable_id);
    assert!(pool.request_back(node));
}

#[tokio::test]
async fn more_than_a_thousand_do_not_wait() {
    let mut pool = Pool::default();
    let node = NodeId::from_bytes([9; 16]);
    let mut answers = Vec::new();
    for _ in 0..1_025 {
        let (caller, answer) = oneshot::channel();
        pool.request(node, caller);
        answers.push(answer);
    }
    let told_at_once = answers.iter_mut().filter_map(|answer| answer.try_recv().err());
    let closed = told_at_once.filter(|error| *error == oneshot::error::TryRecvError::Closed).count();
    assert_eq!(closed, 1);
}

#[tokio::test]
async fn a_node_that_is_down_loses_connections_and_waiters() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let (node, data) = data(&raw, &a).await;
    let mut pool = Pool::default();
    pool.insert(data);
    assert_eq!(pool.remove(node).len(), 1);
    assert!(pool.remove(node).is_empty());
    let (caller, answer) = oneshot::channel();
    pool.request(node, caller);
    pool.remove(node);
    assert!(answer.await.is_err());
}
