//! Circuits: the stream of one member led to another, which keeps a connection to this node (design section 10, ADR 45).
//!
//! Owns: who gets one, the splice, what is counted of it. Must not know: what the bytes are, which only the two ends can read.
//! Driven by: `inbound`, for streams that begin with the record of a circuit.
//!
//! Nobody is dialled for others: the node has a connection here, or there is no circuit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use gossamer_core::circuits::{Circuits, NoCircuit};
use gossamer_core::quiet::Quiet;
use gossamer_core::trust::Leaf;
use gossamer_wire::NodeId;
use gossamer_wire::circuit::{CircuitOpen, CircuitStatus};

use super::copy::{Counts, Early, Guarded, copy};
use super::inbound::answer_and_end;
use super::{Relay, count};
use crate::metrics::CircuitCounts;
use crate::transport::{FlowStream, Led};

/// The circuits of this node as a relay.
#[derive(Debug, Default)]
pub(super) struct Splicing {
    core: Mutex<Circuits>,
    opened: AtomicU64,
    bytes: AtomicU64,
    refused: [AtomicU64; REASONS.len()],
    /// Of whose refusals the log has told.
    told: Mutex<Quiet<NodeId>>,
}

const REASONS: [NoCircuit; 7] = [
    NoCircuit::Itself,
    NoCircuit::Loop,
    NoCircuit::PerPeer,
    NoCircuit::Total,
    NoCircuit::Pace,
    NoCircuit::NotConnected,
    NoCircuit::NoRelay,
];

impl Splicing {
    fn lock(&self) -> MutexGuard<'_, Circuits> {
        // No operation leaves it half-done.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the counters as the metrics want them.
    pub(super) fn counts(&self) -> CircuitCounts {
        let refused = REASONS.iter().zip(&self.refused);
        CircuitCounts {
            open: self.lock().open() as u64,
            opened: self.opened.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            refused: refused.map(|(why, number)| (why.word(), number.load(Ordering::Relaxed))).collect(),
        }
    }

    /// Counts and names who gets none.
    fn refused(&self, peer: &Leaf, why: NoCircuit) {
        if let Some((_, counter)) = REASONS.iter().zip(&self.refused).find(|(reason, _)| **reason == why) {
            count(counter);
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.names(peer.node, Instant::now().into_std()) {
            tracing::info!(peer = %peer.name, node = %peer.node, reason = why.word(), "circuit refused");
        }
    }
}

/// A circuit that is counted until this is dropped.
struct Counted<'a>(&'a Splicing, NodeId);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.lock().handle_end(self.1);
    }
}

impl Relay {
    /// Serves a stream that began with this record.
    pub(super) async fn circuit(&self, stream: FlowStream, record: CircuitOpen) {
        match record {
            CircuitOpen::To(node) => self.lead(Guarded::new(stream), node).await,
            CircuitOpen::From(_) | CircuitOpen::Stranger(_) if stream.send.via().is_some() => {
                self.circuits.refused(&stream.peer, NoCircuit::Loop);
            }
            CircuitOpen::From(_) | CircuitOpen::Stranger(_) if !stream.peer.claims.relay => {
                self.circuits.refused(&stream.peer, NoCircuit::NoRelay);
                drop(Guarded::new(stream));
            }
            // Who it comes from is for TLS to say: the relay's word is good for limits, no more.
            CircuitOpen::From(opener) => self.parts.hops.take_circuit(stream, Led::Member(opener)),
            CircuitOpen::Stranger(source) => {
                self.parts.hops.take_circuit(stream, Led::Stranger(source));
            }
        }
    }

    /// Leads a stream to a node until it ends.
    async fn lead(&self, mut stream: Guarded<FlowStream>, node: NodeId) {
        let peer = Arc::clone(&stream.side().peer);
        let opened = match self.judge_circuit(stream.side(), node) {
            Ok(counted) => self.open_far(peer.node, node).await.map(|far| (counted, far)),
            Err(why) => Err(why),
        };
        let (_counted, mut far) = match opened {
            Ok(opened) => opened,
            Err(why) => {
                self.circuits.refused(&peer, why);
                return answer_and_end(stream, status_of(why).code());
            }
        };
        if stream.side().send.write_all(&[CircuitStatus::Open.code()]).await.is_err() {
            return;
        }
        count(&self.circuits.opened);
        let counts = Counts::default();
        // However it ends, both ends see it as their streams do.
        let _ = copy(&mut stream, &mut far, &mut Early::default(), &counts).await;
        let (there, back) = counts.read();
        self.circuits.bytes.fetch_add(there + back, Ordering::Relaxed);
    }

    fn judge_circuit(&self, stream: &FlowStream, node: NodeId) -> Result<Counted<'_>, NoCircuit> {
        let opener = stream.peer.node;
        if !self.parts.leaf.claims.relay {
            return Err(NoCircuit::NoRelay);
        }
        if node == opener || node == self.parts.node {
            return Err(NoCircuit::Itself);
        }
        if stream.send.via().is_some() {
            return Err(NoCircuit::Loop);
        }
        self.circuits.lock().handle_open(opener, Instant::now().into_std())?;
        Ok(Counted(&self.circuits, opener))
    }

    /// Opens the other half on a connection that the node keeps to this one.
    async fn open_far(&self, opener: NodeId, node: NodeId) -> Result<Guarded<FlowStream>, NoCircuit> {
        let far = self.parts.hops.open_kept(node).await.map_err(|_| NoCircuit::NotConnected)?;
        let mut far = Guarded::new(far);
        if far.side().send.via().is_some() {
            return Err(NoCircuit::Loop);
        }
        let announced = far.side().send.write_all(&CircuitOpen::From(opener).encode()).await;
        announced.map_err(|_| NoCircuit::NotConnected)?;
        Ok(far)
    }
}

const fn status_of(why: NoCircuit) -> CircuitStatus {
    match why {
        NoCircuit::Itself | NoCircuit::Loop => CircuitStatus::Refused,
        NoCircuit::PerPeer | NoCircuit::Total | NoCircuit::Pace => CircuitStatus::Busy,
        NoCircuit::NotConnected => CircuitStatus::NotConnected,
        NoCircuit::NoRelay => CircuitStatus::NoRelay,
    }
}

#[cfg(test)]
mod tests;
