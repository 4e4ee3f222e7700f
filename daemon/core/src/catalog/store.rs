//! The store: adverts by owner, the names they serve, and the root hash.
//!
//! Owns: which advert is newest, which nodes are remembered, the hash and its recent values. Must not know:
//! signatures, peers, what is sent. Driven by: `accept` (puts), `repair` (compares), `view` (reads).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use gossamer_wire::advert::{Advert, AdvertId, Kind, Slot, Version};
use gossamer_wire::frame::{AdvertCopy, BUCKETS};
use gossamer_wire::limits::MAX_NODES;
use gossamer_wire::{NodeId, ServiceName};
use sha2::{Digest, Sha256};

use super::age::Age;
use super::owner::{Owner, Place, Settled, Stored};
use super::receive::Content;
use super::{Key, MemberLiveness};
use crate::time::Now;

/// How long an own hash counts as recent: a peer that shows it is merely behind.
const RECENT: Duration = Duration::from_secs(10);
/// Most recent hashes kept: 64 changes a second for all of [`RECENT`], some owners at once.
const MAX_RECENT: usize = 4_096;
/// How long the epoch of a forgotten node is remembered, so that nothing older comes back.
const REMEMBER: Duration = Duration::from_secs(7 * 24 * 3_600);

/// How an advert compares with what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Newer, or its slot is empty.
    New,
    /// The very same bytes.
    Same,
    /// The same version with other bytes.
    Twin,
    /// Older than the stored one, or of an epoch that is over.
    Older,
}

/// How a peer's root hash compares with the own ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HashView {
    Equal,
    /// It was mine within the last 10 s: the peer is about to have what this node has.
    Behind,
    Different,
}

pub(super) struct Store {
    me: NodeId,
    /// Boxed: the nodes of a map are half empty, and an owner is large.
    owners: BTreeMap<NodeId, Box<Owner>>,
    by_service: BTreeMap<ServiceName, BTreeSet<NodeId>>,
    members: BTreeMap<NodeId, MemberLiveness>,
    /// How many of them are alive.
    alive: usize,
    /// Owners without a lease, as of their last settling.
    leaseless: BTreeSet<NodeId>,
    /// When to settle which owner again.
    wakes: BTreeSet<(Instant, NodeId)>,
    forgotten: BTreeMap<NodeId, (u64, Instant)>,
    hash: u64,
    /// The parts of the root hash by bucket.
    buckets: Box<[u64; BUCKETS]>,
    /// Hashes that were current, and until when.
    recent: VecDeque<(Instant, u64)>,
}

/// What settling one owner changed for readers.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) accepted: Vec<Key>,
    pub(super) withdrawn: Vec<Key>,
    pub(super) services: BTreeSet<ServiceName>,
    pub(super) is_forgotten: bool,
}

impl Store {
    pub(super) fn new(me: NodeId) -> Self {
        Self {
            me,
            owners: BTreeMap::new(),
            by_service: BTreeMap::new(),
            members: BTreeMap::new(),
            alive: 0,
            leaseless: BTreeSet::new(),
            wakes: BTreeSet::new(),
            forgotten: BTreeMap::new(),
            hash: 0,
            buckets: Box::new([0; BUCKETS]),
            recent: VecDeque::new(),
        }
    }

    /// Stores a judged advert that is [`Known::New`]. Returns `false` when there is no room for its owner.
    /// Call [`Self::settle`] for the owner before the next read.
    pub(super) fn put(&mut self, advert: Advert, content: Content, age: u32, now: Now) -> bool {
        let id = advert.id();
        let node = id.slot.node;
        let age = Age::received(age, now.mono);
        let stored = Stored::new(advert, place_of(id));
        if let Some(owner) = self.owners.get_mut(&node) {
            owner.put(stored, content, age, now.mono);
            return true;
        }
        let Content::Card(said) = content else { return false };
        if self.owners.len() >= MAX_NODES && node != self.me {
            return false;
        }
        self.owners.insert(node, Box::new(Owner::new(stored, *said, age)));
        true
    }

    /// Makes the stored adverts of a node at most `age` seconds old.
    pub(super) fn make_younger(&mut self, node: NodeId, age: u32, now: Now) {
        if let Some(owner) = self.owners.get_mut(&node) {
            owner.make_younger(Age::received(age, now.mono), now.mono);
        }
    }

    /// Brings everything that follows from the adverts of one node up to date.
    pub(super) fn settle(&mut self, node: NodeId, now: Now) -> Changes {
        let is_own = node == self.me;
        let liveness = self.liveness(node);
        let Some(owner) = self.owners.get_mut(&node) else { return Changes::default() };
        let Settled { accepted, withdrawn, mut services, wake, places, must_go } =
            owner.settle(is_own, liveness, now);
        if owner.misses_head(now.mono) {
            self.leaseless.insert(node);
        } else {
            self.leaseless.remove(&node);
        }
        let (old_wake, new_wake) = wake;
        if old_wake != new_wake {
            old_wake.map(|at| self.wakes.remove(&(at, node)));
            new_wake.map(|at| self.wakes.insert((at, node)));
        }
        for (service, _) in &accepted {
            self.by_service.entry(service.clone()).or_default().insert(node);
        }
        for (service, _) in &withdrawn {
            if !owner.serves(service) {
                remove_from(&mut self.by_service, service, node);
            }
        }
        if let Some((before, after)) = places {
            self.count(&before, u64::wrapping_sub);
            self.count(&after, u64::wrapping_add);
            let hash = self.buckets.iter().fold(0, |sum: u64, bucket| sum.wrapping_add(*bucket));
            self.set_hash(hash, now.mono);
        }
        if must_go {
            services.extend(self.forget(node, now));
        }
        Changes { accepted, withdrawn, services, is_forgotten: must_go }
    }

    /// Returns a node that is due to be settled again.
    pub(super) fn next_due(&self, now: Instant) -> Option<NodeId> {
        self.wakes.first().filter(|(at, _)| *at <= now).map(|&(_, node)| node)
    }

    /// Returns when the first node is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.wakes.first().map(|&(at, _)| at)
    }

    /// Notes what membership says; returns whether it changed.
    pub(super) fn set_member(&mut self, node: NodeId, state: MemberLiveness) -> bool {
        let is_gone = matches!(state, MemberLiveness::Down | MemberLiveness::Left);
        // Membership forgets its dead; only those with entries here must be remembered as such.
        let before = if is_gone && !self.owners.contains_key(&node) {
            self.members.remove(&node)
        } else {
            self.members.insert(node, state)
        };
        self.alive -= usize::from(before == Some(MemberLiveness::Alive));
        self.alive += usize::from(state == MemberLiveness::Alive);
        before != Some(state)
    }

    /// Compares an advert with what is stored and remembered.
    pub(super) fn compare(&self, advert: &Advert, now: Instant) -> Known {
        let id = advert.id();
        let stored = self.owners.get(&id.slot.node).and_then(|owner| owner.advert(id.slot));
        match stored {
            Some(stored) if stored.id() == id && stored.bytes() == advert.bytes() => Known::Same,
            Some(stored) if stored.id() == id => Known::Twin,
            _ if self.lacks(id, now) => Known::New,
            _ => Known::Older,
        }
    }

    /// Returns whether this version is newer than everything known of its slot.
    pub(super) fn lacks(&self, id: AdvertId, now: Instant) -> bool {
        match self.owners.get(&id.slot.node) {
            Some(owner) => owner.lacks(id, now),
            None => self.forgotten.get(&id.slot.node).is_none_or(|(epoch, _)| id.version.epoch >= *epoch),
        }
    }

    /// Returns whether there is room for a node.
    pub(super) fn has_room_for(&self, node: NodeId) -> bool {
        self.owners.len() < MAX_NODES || self.owners.contains_key(&node) || node == self.me
    }

    pub(super) fn owner(&self, node: NodeId) -> Option<&Owner> {
        self.owners.get(&node).map(|owner| &**owner)
    }

    pub(super) fn owner_mut(&mut self, node: NodeId) -> Option<&mut Owner> {
        self.owners.get_mut(&node).map(|owner| &mut **owner)
    }

    pub(super) fn owners(&self) -> impl Iterator<Item = (NodeId, &Owner)> {
        self.owners.iter().map(|(&node, owner)| (node, &**owner))
    }

    pub(super) fn owner_ids(&self) -> Vec<NodeId> {
        self.owners.keys().copied().collect()
    }

    /// Returns the nodes that serve a service, with their entries.
    pub(super) fn serving<'a>(&'a self, service: &ServiceName) -> impl Iterator<Item = (NodeId, &'a Owner)> {
        let nodes = self.by_service.get(service).into_iter().flatten();
        nodes.filter_map(|node| self.owners.get_key_value(node)).map(|(&node, owner)| (node, &**owner))
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.by_service.keys()
    }

    /// Returns what membership says of a node; one it never named is down.
    pub(super) fn liveness(&self, node: NodeId) -> MemberLiveness {
        if node == self.me {
            return MemberLiveness::Alive;
        }
        self.members.get(&node).copied().unwrap_or(MemberLiveness::Down)
    }

    /// Returns how many other members are alive.
    pub(super) const fn count_alive(&self) -> usize {
        self.alive
    }

    pub(super) fn alive_members(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().filter(|(_, state)| **state == MemberLiveness::Alive).map(|(&node, _)| node)
    }

    /// Returns the copy of one slot, when it may be offered.
    pub(super) fn copy(&self, slot: Slot, now: Instant) -> Option<AdvertCopy> {
        let owner =
            self.owners.get(&slot.node).filter(|owner| slot.node == self.me || owner.is_offered(now))?;
        owner.advert(slot).map(|advert| self.copy_of(owner, advert, now))
    }

    /// Returns copies of all adverts of one owner: card, fragments, head.
    pub(super) fn copies(&self, node: NodeId, now: Instant) -> Vec<AdvertCopy> {
        let owner = self.owners.get(&node);
        owner.into_iter().flat_map(|o| o.adverts().map(move |advert| self.copy_of(o, advert, now))).collect()
    }

    /// Returns the heads of living members without a lease, at no version in particular.
    pub(super) fn headless(&self, now: Instant) -> impl Iterator<Item = AdvertId> {
        let is_headless = move |node: &&NodeId| {
            let is_alive = **node != self.me && self.liveness(**node) == MemberLiveness::Alive;
            is_alive && self.owner(**node).is_some_and(|owner| owner.misses_head(now))
        };
        self.leaseless.iter().filter(is_headless).map(|&node| AdvertId {
            slot: Slot { node, kind: Kind::Head, k: 0 },
            version: Version { epoch: 0, seq: 0 },
        })
    }

    /// Returns all ids that may be offered with their buckets, in the order of their slots.
    pub(super) fn offered(&self, now: Instant) -> impl Iterator<Item = (u8, AdvertId)> {
        let offered = move |(node, owner): &(NodeId, &Owner)| *node == self.me || owner.is_offered(now);
        let ids = |stored: &'_ Stored| (stored.place.bucket, stored.advert.id());
        self.owners().filter(offered).flat_map(move |(_, owner)| owner.stored().map(ids))
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns the hashes of the buckets; their sum is the root hash.
    pub(super) fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// Returns whether this very version is stored.
    pub(super) fn holds(&self, id: AdvertId) -> bool {
        let stored = self.owners.get(&id.slot.node).and_then(|owner| owner.advert(id.slot));
        stored.is_some_and(|stored| stored.id() == id)
    }

    /// Compares a peer's hash with the own one and those of the last 10 s.
    pub(super) fn compare_hash(&self, hash: u64, now: Instant) -> HashView {
        let is_recent = |until: Instant| now.saturating_duration_since(until) <= RECENT;
        if self.hash == hash {
            HashView::Equal
        } else if self.recent.iter().any(|&(until, old)| old == hash && is_recent(until)) {
            HashView::Behind
        } else {
            HashView::Different
        }
    }

    fn copy_of(&self, owner: &Owner, advert: &Advert, now: Instant) -> AdvertCopy {
        let age = if advert.id().slot.node == self.me { 0 } else { owner.age().to_wire(now) };
        AdvertCopy { age, bytes: advert.shared_bytes() }
    }

    fn count(&mut self, places: &[Place], change: impl Fn(u64, u64) -> u64) {
        for place in places {
            if let Some(bucket) = self.buckets.get_mut(usize::from(place.bucket)) {
                *bucket = change(*bucket, place.hash);
            }
        }
    }

    fn set_hash(&mut self, hash: u64, now: Instant) {
        if hash == self.hash {
            return;
        }
        self.recent.push_back((now, self.hash));
        self.hash = hash;
        while self.recent.len() > MAX_RECENT
            || self.recent.front().is_some_and(|&(until, _)| now.saturating_duration_since(until) > RECENT)
        {
            self.recent.pop_front();
        }
    }

    /// Drops a silent node and remembers its epoch. Returns the services it served.
    fn forget(&mut self, node: NodeId, now: Now) -> BTreeSet<ServiceName> {
        let Some(owner) = self.owners.remove(&node) else { return BTreeSet::new() };
        owner.wake().map(|at| self.wakes.remove(&(at, node)));
        self.leaseless.remove(&node);
        self.members.retain(|member, state| {
            *member != node || matches!(state, MemberLiveness::Alive | MemberLiveness::Suspect)
        });
        let services: BTreeSet<_> = owner.services().cloned().collect();
        for service in &services {
            remove_from(&mut self.by_service, service, node);
        }
        self.forgotten.retain(|_, (_, until)| *until > now.mono);
        if self.forgotten.len() < MAX_NODES {
            self.forgotten.insert(node, (owner.epoch(), now.mono + REMEMBER));
        }
        services
    }
}

fn remove_from(
    by_service: &mut BTreeMap<ServiceName, BTreeSet<NodeId>>,
    service: &ServiceName,
    node: NodeId,
) {
    if let Some(nodes) = by_service.get_mut(service) {
        nodes.remove(&node);
        if nodes.is_empty() {
            by_service.remove(service);
        }
    }
}

/// The bucket of a slot and the part of one version in the hashes, equal on every node; heads have no part.
fn place_of(id: AdvertId) -> Place {
    let mut hasher = Sha256::new();
    hasher.update(id.slot.node.as_bytes());
    hasher.update([id.slot.kind.code()]);
    hasher.update(id.slot.k.to_be_bytes());
    let slot: [u8; 32] = hasher.clone().finalize().into();
    let [bucket, ..] = slot;
    if id.slot.kind == Kind::Head {
        return Place { bucket, hash: 0 };
    }
    hasher.update(id.version.epoch.to_be_bytes());
    hasher.update(id.version.seq.to_be_bytes());
    let version: [u8; 32] = hasher.finalize().into();
    Place { bucket, hash: version.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)) }
}

#[cfg(test)]
mod tests {
    use gossamer_wire::advert::Version;

    use super::*;
    use crate::catalog::tests::start;

    fn id(node: u8, kind: Kind, k: u16, epoch: u64, seq: u64) -> AdvertId {
        let slot = Slot { node: NodeId::from_bytes([node; 16]), kind, k };
        AdvertId { slot, version: Version { epoch, seq } }
    }

    #[test]
    fn every_part_of_an_id_is_in_the_hash_and_heads_are_not() {
        let ids = [
            id(1, Kind::Card, 0, 1, 1),
            id(2, Kind::Card, 0, 1, 1),
            id(1, Kind::Records, 0, 1, 1),
            id(1, Kind::Records, 1, 1, 1),
            id(1, Kind::Records, 0, 2, 1),
            id(1, Kind::Records, 0, 1, 2),
        ];
        assert_eq!(ids.map(|id| place_of(id).hash).iter().collect::<BTreeSet<_>>().len(), ids.len());
        assert_eq!(place_of(id(1, Kind::Head, 0, 1, 1)).hash, 0);
    }

    #[test]
    fn the_hash_of_an_id_is_the_same_in_every_version_of_the_program() {
        assert_eq!(place_of(id(1, Kind::Records, 2, 3, 4)).hash, 0x4e4a_b691_0da6_245e);
        let places =
            [(1, 1), (1, 2), (2, 1)].map(|(epoch, seq)| place_of(id(1, Kind::Records, 2, epoch, seq)));
        assert!(places.iter().all(|place| place.bucket == 125), "{places:?}");
    }

    #[test]
    fn hashes_of_the_last_ten_seconds_mean_behind() {
        let now = start();
        let mut store = Store::new(NodeId::from_bytes([1; 16]));
        store.set_hash(5, now);
        store.set_hash(6, now + RECENT / 2);
        let view = |hash, at| store.compare_hash(hash, at);
        assert_eq!(view(6, now + RECENT), HashView::Equal);
        assert_eq!(view(5, now + RECENT), HashView::Behind);
        assert_eq!(view(0, now + RECENT), HashView::Behind);
        assert_eq!(view(0, now + RECENT + Duration::from_millis(1)), HashView::Different);
        assert_eq!(view(7, now), HashView::Different);
    }

    #[test]
    fn recent_hashes_are_bounded() {
        let now = start();
        let mut store = Store::new(NodeId::from_bytes([1; 16]));
        (1..10_000).for_each(|hash| store.set_hash(hash, now));
        assert_eq!(store.recent.len(), MAX_RECENT);
        store.set_hash(1, now + RECENT * 2);
        assert_eq!(store.recent.len(), 1);
    }

    #[test]
    fn members_without_entries_are_not_remembered_when_they_go() {
        let mut store = Store::new(NodeId::from_bytes([1; 16]));
        let node = NodeId::from_bytes([2; 16]);
        assert_eq!(store.liveness(node), MemberLiveness::Down);
        assert!(store.set_member(node, MemberLiveness::Alive));
        assert!(!store.set_member(node, MemberLiveness::Alive));
        assert_eq!(store.alive_members().collect::<Vec<_>>(), [node]);
        assert!(store.set_member(node, MemberLiveness::Suspect));
        assert_eq!(store.alive_members().count(), 0);
        assert!(store.set_member(node, MemberLiveness::Left));
        assert!(store.members.is_empty());
        assert_eq!(store.liveness(NodeId::from_bytes([1; 16])), MemberLiveness::Alive);
    }
}
