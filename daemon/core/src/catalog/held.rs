//! Adverts that cannot be judged yet: their card, its issuer or the right time is missing.
//!
//! Owns: the bounded waiting room. Must not know: why an advert waits, how it is judged.
//! Driven by: `accept`, which takes out what may be judged again.

use std::collections::BTreeMap;
use std::time::Instant;

use gossamer_wire::NodeId;
use gossamer_wire::advert::{Advert, AdvertId, Slot};
use gossamer_wire::limits::{HELD_FOR, MAX_HELD};

use super::age::Age;

/// Most of the room one giver may fill: nothing in it is verified.
const MAX_OF_ONE: usize = MAX_HELD / 4;

/// By slot and giver: a forged advert must not push out the real one of another giver.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<(Slot, NodeId), Waiting>);

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) advert: Advert,
    pub(super) age: Age,
    since: Instant,
}

impl Held {
    /// Keeps an advert; the newest of its slot and giver. Returns `false` when there is no room.
    pub(super) fn put(&mut self, giver: NodeId, advert: Advert, age: Age, now: Instant) -> bool {
        let place = (advert.id().slot, giver);
        if !self.0.contains_key(&place) {
            let of_giver = self.0.keys().filter(|(_, of)| *of == giver).count();
            if self.0.len() >= MAX_HELD || of_giver >= MAX_OF_ONE {
                return false;
            }
        }
        let since = self.0.get(&place).map_or(now, |waiting| waiting.since);
        self.0.insert(place, Waiting { advert, age, since });
        true
    }

    /// Takes out what waits of one node, cards first.
    pub(super) fn take(&mut self, node: NodeId) -> Vec<(NodeId, Waiting)> {
        self.extract(|slot, _| slot.node == node)
    }

    /// Takes out everything, each node's card first.
    pub(super) fn take_all(&mut self) -> Vec<(NodeId, Waiting)> {
        self.extract(|_, _| true)
    }

    /// Drops what has waited too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, waiting| now < waiting.since + HELD_FOR);
    }

    /// Returns whether this version, or a newer one, waits.
    pub(super) fn has(&self, id: AdvertId) -> bool {
        let of_slot = self.of_slot(id.slot);
        of_slot.into_iter().any(|waiting| waiting.advert.id().version >= id.version)
    }

    /// Returns whether this version from this giver waits.
    pub(super) fn has_from(&self, giver: NodeId, id: AdvertId) -> bool {
        self.0.get(&(id.slot, giver)).is_some_and(|waiting| waiting.advert.id().version >= id.version)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.values().map(|waiting| waiting.since + HELD_FOR).min()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns how many adverts of one node wait.
    pub(super) fn of_node(&self, node: NodeId) -> usize {
        self.0.keys().filter(|(slot, _)| slot.node == node).count()
    }

    /// Counts what waits by the node it is of.
    pub(super) fn by_node(&self) -> BTreeMap<NodeId, usize> {
        let mut counts = BTreeMap::new();
        for (slot, _) in self.0.keys() {
            *counts.entry(slot.node).or_default() += 1;
        }
        counts
    }

    fn of_slot(&self, slot: Slot) -> impl Iterator<Item = &Waiting> {
        let all = (slot, NodeId::from_bytes([0; 16]))..=(slot, NodeId::from_bytes([255; 16]));
        self.0.range(all).map(|(_, waiting)| waiting)
    }

    fn extract(&mut self, is_taken: impl Fn(&Slot, &NodeId) -> bool) -> Vec<(NodeId, Waiting)> {
        let (taken, kept) = std::mem::take(&mut self.0)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|((slot, giver), _)| is_taken(slot, giver));
        self.0 = kept;
        taken.into_iter().map(|((_, giver), waiting)| (giver, waiting)).collect()
    }
}

#[cfg(test)]
mod tests {
    use gossamer_wire::MeshId;
    use gossamer_wire::advert::{Header, Kind, Version};

    use super::*;
    use crate::catalog::tests::start;

    fn advert(node: u8, k: u16, seq: u64) -> Advert {
        let slot = Slot { node: NodeId::from_bytes([node; 16]), kind: Kind::Records, k };
        let id = AdvertId { slot, version: Version { epoch: 1, seq } };
        Advert::build(Header { mesh: MeshId::from_bytes([1; 16]), id }, b"", |_| [0; 64]).expect("short")
    }

    fn giver(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 16])
    }

    #[test]
    fn one_giver_fills_a_quarter_of_the_room_and_all_together_fill_it() {
        let now = start();
        let mut held = Held::default();
        let mut put =
            |by: u8, node: u8, k| held.put(giver(by), advert(node, k, 1), Age::received(0, now), now);
        let of_one = (0..6).flat_map(|node| (0..64).map(move |k| (node, k)));
        assert_eq!(of_one.clone().filter(|&(node, k)| put(1, node, k)).count(), MAX_OF_ONE);
        let of_all = (2..9).flat_map(|by| of_one.clone().map(move |(node, k)| (by, node, k)));
        assert_eq!(of_all.filter(|&(by, node, k)| put(by, node, k)).count(), MAX_HELD - MAX_OF_ONE);
    }

    #[test]
    fn a_forged_version_does_not_push_out_the_one_of_another_giver() {
        let now = start();
        let mut held = Held::default();
        assert!(held.put(giver(1), advert(7, 0, 3), Age::received(0, now), now));
        assert!(held.put(giver(2), advert(7, 0, u64::MAX), Age::received(0, now), now));
        assert!(held.has(advert(7, 0, 9).id()) && !held.has_from(giver(1), advert(7, 0, 9).id()));
        assert_eq!((held.len(), held.of_node(giver(7))), (2, 2));
        assert_eq!(held.take(giver(7)).len(), 2);
        assert!(held.take_all().is_empty());
    }

    #[test]
    fn what_waited_ten_minutes_is_dropped() {
        let now = start();
        let mut held = Held::default();
        assert_eq!(held.deadline(), None);
        held.put(giver(1), advert(7, 0, 3), Age::received(0, now), now);
        assert_eq!(held.deadline(), Some(now + HELD_FOR));
        // A newer version does not make the wait longer.
        held.put(giver(1), advert(7, 0, 4), Age::received(0, now), now + HELD_FOR / 2);
        held.expire(now + HELD_FOR);
        assert_eq!(held.len(), 0);
    }
}
