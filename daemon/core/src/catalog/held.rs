//! Waiting rooms: adverts that cannot be judged yet, and adverts that came too fast.
//!
//! Owns: the bounded room. Must not know: why an advert waits, how it is judged. Driven by: `accept`, with one room
//! for what lacks its card, its issuer or the right time (design section 6: held), and one for what is over a
//! rate and is taken later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use gossamer_wire::advert::{Advert, AdvertId, Kind, Slot};
use gossamer_wire::limits::MAX_HELD;

use super::age::Age;
use super::tree::Interval;

/// Most of the room one giver may fill: nothing in it is verified.
const MAX_OF_ONE: usize = MAX_HELD / 4;

/// By slot and giver: a forged advert must not push out the real one of another giver.
type Place = (Slot, NodeId);

#[derive(Debug)]
pub(super) struct Room {
    /// How long an advert stays.
    stay: Duration,
    places: BTreeMap<Place, Waiting>,
    by_time: BTreeSet<(Instant, Place)>,
    of_giver: BTreeMap<NodeId, usize>,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) advert: Advert,
    pub(super) age: Age,
    pub(super) route: Route,
    until: Instant,
}

/// Whom the giver asked to pass an advert on to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Route {
    /// Nodes the giver cannot reach.
    pub(super) forward: Vec<NodeId>,
    /// The part of the id space this node answers for.
    pub(super) interval: Option<Interval>,
}

impl Room {
    pub(super) const fn new(stay: Duration) -> Self {
        Self { stay, places: BTreeMap::new(), by_time: BTreeSet::new(), of_giver: BTreeMap::new() }
    }

    /// Keeps an advert; the newest of its slot and giver. Returns `false` when there is no room.
    pub(super) fn put(
        &mut self,
        giver: NodeId,
        (advert, age): (Advert, Age),
        route: Route,
        now: Instant,
    ) -> bool {
        let place = (advert.id().slot, giver);
        if let Some(waiting) = self.places.get_mut(&place) {
            if waiting.advert.id().version < advert.id().version {
                (waiting.advert, waiting.age, waiting.route) = (advert, age, route);
            }
            return true;
        }
        let of_giver = self.of_giver.get(&giver).copied().unwrap_or_default();
        if self.places.len() >= MAX_HELD || of_giver >= MAX_OF_ONE {
            return false;
        }
        self.of_giver.insert(giver, of_giver + 1);
        let until = now + self.stay;
        self.by_time.insert((until, place));
        self.places.insert(place, Waiting { advert, age, route, until });
        true
    }

    /// Takes out what waits of one node, cards first.
    pub(super) fn take(&mut self, node: NodeId) -> Vec<(NodeId, Waiting)> {
        let places: Vec<_> = self.range_of(node).map(|(place, _)| *place).collect();
        places.into_iter().filter_map(|place| self.remove(place)).collect()
    }

    /// Takes out everything, each node's card first.
    pub(super) fn take_all(&mut self) -> Vec<(NodeId, Waiting)> {
        let places: Vec<_> = self.places.keys().copied().collect();
        places.into_iter().filter_map(|place| self.remove(place)).collect()
    }

    /// Takes out one whose time is over.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(NodeId, Waiting)> {
        let &(until, place) = self.by_time.first()?;
        if until <= now { self.remove(place) } else { None }
    }

    /// Returns whether this version, or a newer one, waits.
    pub(super) fn has(&self, id: AdvertId) -> bool {
        let all = (id.slot, FIRST)..=(id.slot, LAST);
        self.places.range(all).any(|(_, waiting)| waiting.advert.id().version >= id.version)
    }

    /// Returns whether this version, or a newer one, from this giver waits.
    pub(super) fn has_from(&self, giver: NodeId, id: AdvertId) -> bool {
        self.places.get(&(id.slot, giver)).is_some_and(|waiting| waiting.advert.id().version >= id.version)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.by_time.first().map(|&(until, _)| until)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns how many adverts of one node wait.
    pub(super) fn of_node(&self, node: NodeId) -> usize {
        self.range_of(node).count()
    }

    /// Counts what waits by the node it is of.
    pub(super) fn by_node(&self) -> BTreeMap<NodeId, usize> {
        let mut counts = BTreeMap::new();
        for (slot, _) in self.places.keys() {
            *counts.entry(slot.node).or_default() += 1;
        }
        counts
    }

    fn range_of(&self, node: NodeId) -> impl Iterator<Item = (&Place, &Waiting)> {
        let first = Slot { node, kind: Kind::Card, k: 0 };
        self.places.range((first, FIRST)..).take_while(move |((slot, _), _)| slot.node == node)
    }

    fn remove(&mut self, place: Place) -> Option<(NodeId, Waiting)> {
        let waiting = self.places.remove(&place)?;
        self.by_time.remove(&(waiting.until, place));
        let (_, giver) = place;
        if let Some(of_giver) = self.of_giver.get_mut(&giver) {
            *of_giver -= 1;
            if *of_giver == 0 {
                self.of_giver.remove(&giver);
            }
        }
        Some((giver, waiting))
    }
}

const FIRST: NodeId = NodeId::from_bytes([0; 16]);
const LAST: NodeId = NodeId::from_bytes([255; 16]);

#[cfg(test)]
mod tests {
    use gossamer_wire::MeshId;
    use gossamer_wire::advert::{Header, Version};
    use gossamer_wire::limits::HELD_FOR;

    use super::*;
    use crate::catalog::tests::start;

    fn advert(node: u8, k: u16, seq: u64) -> Advert {
        let slot = Slot { node: NodeId::from_bytes([node; 16]), kind: Kind::Records, k };
        let id = AdvertId { slot, version: Version { epoch: 1, seq } };
        Advert::build(Header { mesh: MeshId::from_bytes([1; 16]), id }, b"", |_| [0; 64]).expect("short")
    }

    fn room() -> Room {
        Room::new(HELD_FOR)
    }

    fn put(room: &mut Room, by: u8, advert: Advert, now: Instant) -> bool {
        room.put(giver(by), (advert, Age::received(0, now)), Route::default(), now)
    }

    fn giver(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 16])
    }

    #[test]
    fn one_giver_fills_a_quarter_of_the_room_and_all_together_fill_it() {
        let now = start();
        let mut held = room();
        let mut put = |by: u8, node: u8, k| put(&mut held, by, advert(node, k, 1), now);
        let of_one = (0..6).flat_map(|node| (0..64).map(move |k| (node, k)));
        assert_eq!(of_one.clone().filter(|&(node, k)| put(1, node, k)).count(), MAX_OF_ONE);
        let of_all = (2..9).flat_map(|by| of_one.clone().map(move |(node, k)| (by, node, k)));
        assert_eq!(of_all.filter(|&(by, node, k)| put(by, node, k)).count(), MAX_HELD - MAX_OF_ONE);
    }

    #[test]
    fn a_forged_version_does_not_push_out_the_one_of_another_giver() {
        let now = start();
        let mut held = room();
        assert!(put(&mut held, 1, advert(7, 0, 3), now));
        assert!(put(&mut held, 2, advert(7, 0, u64::MAX), now));
        assert!(held.has(advert(7, 0, 9).id()) && !held.has_from(giver(1), advert(7, 0, 9).id()));
        assert_eq!((held.len(), held.of_node(giver(7))), (2, 2));
        assert_eq!(held.take(giver(7)).len(), 2);
        assert!(held.take_all().is_empty());
    }

    #[test]
    fn what_waited_ten_minutes_is_dropped() {
        let now = start();
        let mut held = room();
        assert_eq!(held.deadline(), None);
        put(&mut held, 1, advert(7, 0, 3), now);
        assert_eq!(held.deadline(), Some(now + HELD_FOR));
        // A newer version does not make the wait longer.
        put(&mut held, 1, advert(7, 0, 4), now + HELD_FOR / 2);
        assert!(held.take_due(now + HELD_FOR / 2).is_none());
        let (_, waiting) = held.take_due(now + HELD_FOR).expect("its time is over");
        assert_eq!(waiting.advert.id(), advert(7, 0, 4).id());
        assert!(held.take_due(now + HELD_FOR).is_none() && held.of_giver.is_empty());
    }
}
