//! What a run is watched for: its trace, and how a record travels.
//!
//! Owns: the hash over all messages, the moments at which one record is served. Must not know: the cores.
//! Driven by: the mesh and the wiring.

use std::collections::BTreeMap;
use std::time::Duration;

use gossamer_wire::ServiceName;
use gossamer_wire::advert::{Advert, Kind};
use gossamer_wire::frame::Frame;

/// Hash over time, sender, receiver, kind and length of every message: one seed, one hash.
#[derive(Debug)]
pub(super) struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Trace {
    pub(super) fn note(&mut self, at: Duration, from: usize, to: usize, kind: &str, bytes: usize) {
        let words = [at.as_nanos() as u64, from as u64, to as u64, bytes as u64];
        let kind = kind.bytes().map(u64::from);
        for word in words.into_iter().chain(kind) {
            // FNV-1a by words, folded: not for enemies, only for telling two runs apart.
            self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            self.0 ^= self.0 >> 29;
        }
    }

    pub(super) const fn hash(&self) -> u64 {
        self.0
    }
}

/// One record under watch, and copies of all records on their way.
#[derive(Debug, Default)]
pub(super) struct Watch {
    record: Option<(usize, ServiceName)>,
    /// When who first served it.
    pub(super) seen: BTreeMap<usize, Duration>,
    /// Copies of fragments put on streams while a record is watched.
    pub(super) copies: u64,
}

impl Watch {
    /// Watches for the record of a node under a service; forgets the last.
    pub(super) fn record(&mut self, owner: usize, service: ServiceName) {
        self.record = Some((owner, service));
        self.seen.clear();
    }

    pub(super) fn accepted(&mut self, at: Duration, by: usize, owner: Option<usize>, service: &ServiceName) {
        if let Some((node, watched)) = &self.record
            && owner == Some(*node)
            && service == watched
        {
            self.seen.entry(by).or_insert(at);
        }
    }

    pub(super) fn sent(&mut self, frame: &Frame) {
        if self.record.is_none() {
            return;
        }
        if let Frame::Adverts { copies, .. } | Frame::Spread { copies, .. } = frame {
            let is_fragment = |bytes: &[u8]| {
                Advert::parse(bytes).is_ok_and(|advert| advert.id().slot.kind == Kind::Records)
            };
            self.copies += copies.iter().filter(|copy| is_fragment(&copy.bytes)).count() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::node::service;

    #[test]
    fn every_part_of_a_message_changes_the_trace() {
        let trace = |at, from, to, kind, bytes| {
            let mut trace = Trace::default();
            trace.note(Duration::from_nanos(at), from, to, kind, bytes);
            trace.hash()
        };
        let messages =
            [(1, 2, 3, "a", 4), (2, 2, 3, "a", 4), (1, 3, 2, "a", 4), (1, 2, 3, "b", 4), (1, 2, 3, "a", 5)];
        let hashes: std::collections::BTreeSet<u64> = messages
            .into_iter()
            .map(|(at, from, to, kind, bytes)| trace(at, from, to, kind, bytes))
            .collect();
        assert_eq!(hashes.len(), messages.len());
        assert_eq!(trace(1, 2, 3, "a", 4), trace(1, 2, 3, "a", 4));
    }

    #[test]
    fn only_the_first_sight_of_the_watched_record_counts() {
        let mut watch = Watch::default();
        let second = Duration::from_secs(1);
        watch.accepted(second, 1, Some(0), &service(0));
        watch.record(0, service(5));
        watch.accepted(second, 1, Some(0), &service(4));
        watch.accepted(second, 1, Some(2), &service(5));
        watch.accepted(2 * second, 1, Some(0), &service(5));
        watch.accepted(3 * second, 1, Some(0), &service(5));
        assert_eq!(watch.seen, BTreeMap::from([(1, 2 * second)]));
    }
}
