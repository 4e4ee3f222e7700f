//! Who notices, and how soon, that the process of a peer is gone.

use tokio::runtime::Runtime;

use super::super::canary::{EVERY, Verdict, ask, is_refused, look};
use super::raw::{Raw, quic};
use super::*;
use crate::clock;

/// What a client may wait for the reset of its flow.
const WITHIN: Duration = Duration::from_secs(1);

/// A runtime for one node, which ends without a word when it is dropped, as a process that is killed.
fn process() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("starts")
}

/// Ends a node as `kill -9` does: no task of it runs again, then its socket is closed.
async fn kill(process: Runtime, node: Node) {
    Stage::blocking(move || {
        process.shutdown_timeout(SOON);
        drop(node);
    })
    .await;
}

/// Returns how long it takes until a flow of `a` to a killed node is reset.
async fn reset_after_kill(a: &Node, process: Runtime, mut b: Node) -> Duration {
    let mut flow = a.peers.open_flow(b.identity.node()).await.expect("opens");
    flow.send.write_all(b"x").await.expect("writes");
    let inbound = timeout(SOON, b.flows.recv()).await.expect("in time").expect("a flow");
    let address = b.address;
    kill(process, b).await;
    drop(inbound);
    let killed = clock::now().mono;
    assert!(std::net::UdpSocket::bind(address).is_ok(), "its socket is closed");
    let ended = timeout(SOON, flow.recv.read_to_end(16)).await.expect("in time");
    assert!(ended.is_err());
    clock::now().mono.duration_since(killed)
}

#[tokio::test]
async fn the_flows_of_a_killed_process_are_reset_within_a_second() {
    let mut a = first_node();
    let (identity, dir) = a.member("vm-b").await;
    let process = process();
    let b = {
        let _entered = process.enter();
        start_node(identity, dir)
    };
    a.connected_to(&b.identity).await;
    let took = reset_after_kill(&a, process, b).await;
    assert!(took < WITHIN, "{took:?}");
    assert_eq!(a.metrics.snapshot()["gossamer_data_connections_refused_total"], 1);
}

#[tokio::test]
async fn a_refusal_while_the_peer_speaks_is_not_believed() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let greeted = raw.dial(a.address, Purpose::Data, 1).await;
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let mut perch = None;
    let was_refused = ask(&mut perch, closed.expect("bound")).await;
    assert!(was_refused || is_refused(perch.as_ref(), EVERY).await, "somebody on the path says so");
    assert_eq!(look(&quic(&greeted)).await, Verdict::Alive);
    assert!(greeted.connection.close_reason().is_none());
}

#[tokio::test]
async fn a_peer_takes_no_notice_of_empty_datagrams() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    let before = b.metrics.snapshot();
    for _ in 0..100 {
        is_sent(b.address).await;
    }
    // What came before this flow was read.
    let mut flow = a.peers.open_flow(b.identity.node()).await.expect("opens");
    flow.send.write_all(b"x").await.expect("writes");
    assert!(timeout(SOON, b.flows.recv()).await.expect("in time").is_some());
    let answered = |shown: &BTreeMap<String, u64>| -> Vec<(String, u64)> {
        let counts = shown.iter().filter(|(name, _)| name.contains("refused") || name.contains("bad_"));
        counts.map(|(name, count)| (name.clone(), *count)).collect()
    };
    assert_eq!(answered(&b.metrics.snapshot()), answered(&before));
}

async fn is_sent(to: SocketAddr) {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    assert_eq!(socket.send_to(&[], to).await.expect("sends"), 0);
}
