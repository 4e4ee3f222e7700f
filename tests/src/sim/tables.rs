//! Tables that the simulator looks into for every message: quick ones, with nothing to fear from their keys.
//!
//! Owns: a hash for ids, the connection to each peer, sums by kind of message. Must not know: what they are for.
//! Driven by: the mesh, its nodes and its links.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::link::ConnId;

/// A map whose keys the simulator makes itself.
pub(super) type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// Multiplies and folds eight bytes at a time.
#[derive(Debug, Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The control connection to each peer, by the peer's number. No connection has the number 0.
#[derive(Debug, Default)]
pub(super) struct Current(Vec<ConnId>);

impl Current {
    pub(super) fn get(&self, peer: usize) -> Option<ConnId> {
        self.0.get(peer).copied().filter(|id| *id != 0)
    }

    pub(super) fn insert(&mut self, peer: usize, id: ConnId) {
        if self.0.len() <= peer {
            self.0.resize(peer + 1, 0);
        }
        self.0[peer] = id;
    }

    pub(super) fn remove(&mut self, peer: usize) {
        if let Some(id) = self.0.get_mut(peer) {
            *id = 0;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.iter().count()
    }

    /// Returns all, in order of the peers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, ConnId)> {
        self.0.iter().copied().enumerate().filter(|(_, id)| *id != 0)
    }
}

/// Packets and bytes by kind of message. There are some twenty kinds, whose names are constants: a list is quicker
/// than a map.
#[derive(Debug, Default)]
pub(super) struct Sums(Vec<(&'static str, (u64, u64))>);

impl Sums {
    pub(super) fn add(&mut self, kind: &'static str, packets: u64, bytes: u64) {
        let is_it = |known: &'static str| std::ptr::eq(known, kind) || known == kind;
        match self.0.iter_mut().find(|(known, _)| is_it(known)) {
            Some((_, sum)) => *sum = (sum.0 + packets, sum.1 + bytes),
            None => self.0.push((kind, (packets, bytes))),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(&'static str, (u64, u64))> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::hash::{BuildHasher as _, RandomState};

    use super::*;

    #[test]
    fn a_peer_has_the_connection_last_put_there() {
        let mut current = Current::default();
        current.insert(3, 7);
        current.insert(1, 5);
        current.insert(3, 8);
        assert_eq!((current.get(3), current.get(2), current.get(99)), (Some(8), None, None));
        assert_eq!((current.iter().collect(), current.len()), (vec![(1, 5), (3, 8)], 2));
        current.remove(1);
        current.remove(99);
        assert_eq!(current.iter().collect::<Vec<_>>(), [(3, 8)]);
    }

    #[test]
    fn sums_are_by_kind_wherever_its_name_lies() {
        let mut sums = Sums::default();
        let elsewhere: &'static str = String::from("swim").leak();
        for (kind, packets, bytes) in [("swim", 1, 10), ("root", 1, 9), (elsewhere, 2, 30)] {
            sums.add(kind, packets, bytes);
        }
        assert_eq!(sums.iter().copied().collect::<Vec<_>>(), [("swim", (3, 40)), ("root", (1, 9))]);
    }

    #[test]
    fn the_hash_spreads_numbers_and_bytes() {
        let quick = BuildHasherDefault::<Mix>::default();
        let low = |hash: u64| hash & 0xfff;
        let of_numbers: BTreeSet<_> = (0..4_096_u64).map(|number| low(quick.hash_one(number))).collect();
        let of_bytes: BTreeSet<_> =
            (0..4_096_u32).map(|number| low(quick.hash_one([number.to_be_bytes(); 4]))).collect();
        let random = RandomState::new();
        let fair: BTreeSet<_> = (0..4_096_u64).map(|number| low(random.hash_one(number))).collect();
        assert!(of_numbers.len() + 300 > fair.len(), "{} of {}", of_numbers.len(), fair.len());
        assert!(of_bytes.len() + 300 > fair.len(), "{} of {}", of_bytes.len(), fair.len());
    }
}
