//! A relay that is asked for circuits over real QUIC streams.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::super::copy::BROKEN;
use super::*;
use crate::relay::tests::{Bench, HERE, Hops, Link, THERE};

const SOON: Duration = Duration::from_secs(10);
const TARGET: NodeId = NodeId::from_bytes([9; 16]);

/// A relay, a link by which a member asks it, and one to the node that is asked for.
struct Relayed {
    bench: Bench,
    near: Arc<Link>,
    far: Option<Arc<Link>>,
}

impl Relayed {
    async fn new(has_role: bool, is_connected: bool) -> Self {
        let far = match is_connected {
            true => Some(Arc::new(Link::new().await)),
            false => None,
        };
        let bench = Bench::with_leaf(HERE, Arc::new(Hops(far.clone())), |leaf| leaf.claims.relay = has_role);
        let near = Arc::new(Link::new().await);
        bench.relay.start_inbound(near.serve(&bench.stage, "west"));
        Self { bench, near, far }
    }

    async fn ask(&self, node: NodeId) -> (FlowStream, CircuitStatus) {
        let mut stream = self.near.open().await;
        stream.send.write_all(&CircuitOpen::To(node).encode()).await.expect("written");
        let mut status = [0];
        timeout(SOON, stream.recv.read_exact(&mut status)).await.expect("in time").expect("an answer");
        (stream, CircuitStatus::try_from(status[0]).expect("known"))
    }

    fn refused(&self, why: NoCircuit) -> u64 {
        let counts = self.bench.relay.circuits.counts();
        counts.refused.iter().find(|(word, _)| *word == why.word()).map_or(0, |(_, number)| *number)
    }
}

#[tokio::test]
async fn bytes_ends_and_resets_pass_both_ways() {
    let relayed = Relayed::new(true, true).await;
    let (mut near, status) = relayed.ask(TARGET).await;
    assert_eq!(status, CircuitStatus::Open);
    let link = relayed.far.as_ref().expect("connected");
    let mut far = link.accept("west").await;
    let mut record = [0; gossamer_wire::circuit::CIRCUIT_BYTES];
    far.recv.read_exact(&mut record).await.expect("a record");
    assert_eq!(record, CircuitOpen::From(HERE).encode(), "who asks has this id on the test's link");
    near.send.write_all(b"there").await.expect("written");
    near.send.finish().expect("open");
    assert_eq!(far.recv.read_to_end(100).await.expect("a clean end"), b"there");
    far.send.write_all(b"and back").await.expect("written");
    far.send.finish().expect("open");
    assert_eq!(near.recv.read_to_end(100).await.expect("a clean end"), b"and back");

    let (mut near, _) = relayed.ask(TARGET).await;
    let mut far = link.accept("west").await;
    far.recv.read_exact(&mut record).await.expect("a record");
    near.send.write_all(b"half").await.expect("written");
    far.recv.read_exact(&mut [0; 4]).await.expect("all of it");
    near.send.reset(BROKEN).expect("open");
    let ended = timeout(SOON, far.recv.read_exact(&mut [0])).await.expect("in time");
    assert!(
        ended.is_err_and(|error| matches!(
            error,
            quinn::ReadExactError::ReadError(quinn::ReadError::Reset(_))
        ))
    );
    drop((near, far));
    let over = async {
        while relayed.bench.relay.circuits.counts().open > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, over).await.expect("nothing stays counted");
    let counts = relayed.bench.relay.circuits.counts();
    assert_eq!((counts.opened, counts.bytes), (2, 17));
}

#[tokio::test]
async fn who_gets_no_circuit_is_told_and_counted_and_nobody_is_dialled() {
    let relayed = Relayed::new(true, false).await;
    for (node, status, why) in [
        (HERE, CircuitStatus::Refused, NoCircuit::Itself),
        (TARGET, CircuitStatus::NotConnected, NoCircuit::NotConnected),
    ] {
        assert_eq!(relayed.ask(node).await.1, status);
        assert_eq!(relayed.refused(why), 1);
    }
    let plain = Relayed::new(false, true).await;
    assert_eq!(plain.ask(TARGET).await.1, CircuitStatus::NoRelay);
    assert_eq!(plain.refused(NoCircuit::NoRelay), 1);
    // A member without the role announces a circuit that somebody else opened.
    let mut stream = plain.near.open().await;
    stream.send.write_all(&CircuitOpen::From(THERE).encode()).await.expect("written");
    let ended = timeout(SOON, stream.recv.read_exact(&mut [0])).await.expect("in time");
    assert!(ended.is_err());
    assert_eq!(plain.refused(NoCircuit::NoRelay), 2);
    assert_eq!(plain.bench.relay.counters().malformed.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_member_that_opens_without_end_is_held_to_its_caps() {
    let relayed = Relayed::new(true, true).await;
    let link = Arc::clone(relayed.far.as_ref().expect("connected"));
    let taking = tokio::spawn(async move {
        let mut taken = Vec::new();
        loop {
            // Nothing is read: the peer stalls. The test's links allow 100 streams.
            taken.push(link.accept("west").await);
            if taken.len() > 95 {
                taken.clear();
            }
        }
    });
    let mut kept = Vec::new();
    for _ in 0..90 {
        let (stream, status) = relayed.ask(TARGET).await;
        assert_eq!(status, CircuitStatus::Open);
        kept.push(stream);
    }
    assert_eq!(relayed.bench.relay.circuits.counts().open, 90);
    drop(kept);
    let mut refused = 0;
    for _ in 0..400 {
        let (stream, status) = relayed.ask(TARGET).await;
        refused += usize::from(status == CircuitStatus::Busy);
        drop(stream);
    }
    assert!(refused > 0, "400 in a moment are too fast");
    assert_eq!(relayed.refused(NoCircuit::Pace), refused as u64);
    taking.abort();
}
