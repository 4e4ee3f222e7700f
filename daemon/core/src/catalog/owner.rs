//! The adverts of one node and what follows from them: served records, lease, standing, age.
//!
//! Owns: which fragments count, the change of epoch, the liveness gate of one node. Must not know: other nodes,
//! peers, signatures. Driven by: `store`, which settles an owner after each change and at its wake time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gossamer_wire::advert::{Advert, AdvertId, Card, Head, Kind, Slot, Version};
use gossamer_wire::limits::{LEASE, MAX_FRAGMENTS, OLD_EPOCH_GRACE};
use gossamer_wire::{DecodeError, Fqdn, InstanceName, ServiceName, ServiceRecord};

use super::age::{Age, Patience};
use super::receive::{Content, Records};
use super::{Key, MemberLiveness};
use crate::time::Now;
use crate::trust::Leaf;

/// One advert with its place and its part in the hashes.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) advert: Advert,
    pub(super) place: Place,
    /// How often it went down a tree from here.
    spread: u8,
}

/// Where an advert counts: its bucket, and what it adds to the bucket's hash; 0 for heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bucket: u8,
    pub(super) hash: u64,
}

/// Most times an advert goes down a tree from one node: there are two trees.
const MAX_SPREAD: u8 = 2;

#[derive(Debug)]
struct StoredFragment {
    stored: Stored,
    records: Records,
}

#[derive(Debug)]
struct StoredHead {
    stored: Stored,
    head: Head,
    /// When the first head of this epoch came.
    epoch_since: Instant,
}

/// Whether clients may use the instances of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gate {
    /// The certificate is one of the mesh and has not ended, and the node is not evicted.
    pub(super) is_trusted: bool,
    pub(super) is_member: bool,
    pub(super) has_lease: bool,
    pub(super) is_stale: bool,
}

#[derive(Debug)]
pub(super) struct Owner {
    card: Stored,
    said: Card,
    leaf: Leaf,
    /// `false` while no known issuer vouches for the leaf.
    has_issuer: bool,
    is_evicted: bool,
    /// Since the owner was settled last: addresses or place of its instances may differ.
    has_new_card: bool,
    head: Option<StoredHead>,
    /// Boxed: a map of one entry has room for eleven.
    fragments: BTreeMap<u16, Box<StoredFragment>>,
    /// Adverts of kinds that this version does not know.
    later: BTreeMap<(Kind, u16), Stored>,
    age: Age,
    lease_until: Option<Instant>,
    is_stale: bool,
    /// Fragments or claims differ from those that `served` was made of.
    has_new_records: bool,
    /// Records that count, without those outside the claims, in the order of their keys.
    served: Vec<Arc<ServiceRecord>>,
    outside_claims: usize,
    /// FQDNs of served records that were dropped.
    outside_suffixes: usize,
    gate: Gate,
    /// An advert differs from those that `places` was made of.
    has_new_places: bool,
    /// What its adverts add to the hashes of buckets, while they are counted.
    places: Vec<Place>,
    wake: Option<Instant>,
    /// Said once that the identity runs twice.
    pub(super) is_doubled: bool,
}

/// What the fragments hold, judged by the claims of the certificate.
struct Counted {
    served: Vec<Arc<ServiceRecord>>,
    outside_claims: usize,
    outside_suffixes: usize,
}

/// What changed since the owner was settled last.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) accepted: Vec<Key>,
    pub(super) withdrawn: Vec<Key>,
    pub(super) services: BTreeSet<ServiceName>,
    /// Before and after.
    pub(super) wake: (Option<Instant>, Option<Instant>),
    /// Before and after, if they differ.
    pub(super) places: Option<(Vec<Place>, Vec<Place>)>,
    /// Silent for so long that it must be forgotten.
    pub(super) must_go: bool,
}

impl StoredHead {
    const fn epoch(&self) -> u64 {
        self.stored.advert.id().version.epoch
    }
}

impl Stored {
    pub(super) const fn new(advert: Advert, place: Place) -> Self {
        Self { advert, place, spread: 0 }
    }
}

impl Owner {
    pub(super) fn new(card: Stored, (said, leaf): (Card, Leaf), age: Age) -> Self {
        Self {
            card,
            said: without_leaf(said),
            leaf,
            has_issuer: true,
            is_evicted: false,
            has_new_card: true,
            head: None,
            fragments: BTreeMap::new(),
            later: BTreeMap::new(),
            age,
            lease_until: None,
            is_stale: false,
            has_new_records: true,
            served: Vec::new(),
            outside_claims: 0,
            outside_suffixes: 0,
            gate: Gate::default(),
            has_new_places: true,
            places: Vec::new(),
            wake: None,
            is_doubled: false,
        }
    }

    /// Replaces one advert by a newer one.
    pub(super) fn put(&mut self, stored: Stored, content: Content, age: Age, now: Instant) {
        self.make_younger(age, now);
        let id = stored.advert.id();
        self.has_new_places |= stored.place.hash != 0;
        match content {
            Content::Card(said) => {
                let (said, leaf) = *said;
                (self.said, self.leaf) = (without_leaf(said), leaf);
                self.has_issuer = true;
                self.has_new_records = true;
                self.has_new_card = true;
                self.card = stored;
            }
            Content::Records(records) => {
                self.put_fragment(id.slot.k, StoredFragment { stored, records });
            }
            Content::Head(head) => {
                let lease = Duration::from_secs(head.lease_seconds.into()).min(LEASE);
                // What a third party gives was heard of before it came here.
                let left = lease.saturating_sub(age.at(now));
                self.lease_until = self.lease_until.max(Some(now + left));
                self.is_stale = false;
                self.put_head(stored, head, now);
            }
            Content::Unread => match id.slot.kind {
                // What cannot be read ends no fragment by its number and starts no lease.
                Kind::Head => {
                    let head = Head { n: MAX_FRAGMENTS, lease_seconds: 0, statement_digest: [0; 16] };
                    self.put_head(stored, head, now);
                }
                Kind::Records => {
                    let records = Ok(Vec::new());
                    self.put_fragment(id.slot.k, StoredFragment { stored, records });
                }
                Kind::Card => self.card = stored,
                Kind::Later(_) => drop(self.later.insert((id.slot.kind, id.slot.k), stored)),
            },
        }
    }

    pub(super) fn make_younger(&mut self, age: Age, now: Instant) {
        self.age = self.age.younger(age, now);
    }

    /// Gives one fresh lease and marks the entries stale: what a start without a live peer has.
    pub(super) fn restart_lease(&mut self, now: Instant) {
        let lease =
            self.head.as_ref().map(|stored| Duration::from_secs(stored.head.lease_seconds.into()).min(LEASE));
        self.lease_until = lease.map(|lease| now + lease);
        self.is_stale = true;
    }

    /// Notes whether a known issuer vouches for the leaf.
    pub(super) fn set_issuer(&mut self, is_known: bool) {
        self.has_issuer = is_known;
    }

    /// Notes whether a statement evicts the node. Its adverts stay stored, or root hashes would differ.
    pub(super) fn set_evicted(&mut self, is_evicted: bool) {
        self.is_evicted = is_evicted;
    }

    /// Computes what follows from the adverts at `now`, and what changed since the last time.
    pub(super) fn settle(&mut self, is_own: bool, liveness: MemberLiveness, now: Now) -> Settled {
        let mono = now.mono;
        self.drop_old_epochs(mono);
        if liveness == MemberLiveness::Alive {
            self.is_stale = false;
        }
        let (accepted, withdrawn, mut services) = if std::mem::take(&mut self.has_new_records) {
            self.settle_records()
        } else {
            Default::default()
        };
        let gate = self.gate_at(is_own, liveness, now);
        if std::mem::take(&mut self.has_new_card) || gate != self.gate {
            services.extend(self.services().cloned());
            self.gate = gate;
        }
        let must_go = !is_own && self.age.at(mono) >= self.patience().forget;
        let is_counted = is_own || (self.is_offered(mono) && !must_go);
        let places = self.settle_places(is_counted);
        let wake = (self.wake, self.next_wake(is_own, now));
        self.wake = wake.1;
        Settled { accepted, withdrawn, services, wake, places, must_go }
    }

    /// Counts the records again. Returns what came, what went, and the services that differ.
    fn settle_records(&mut self) -> (Vec<Key>, Vec<Key>, BTreeSet<ServiceName>) {
        let Counted { served, outside_claims, outside_suffixes } = self.count_records();
        let before = std::mem::replace(&mut self.served, served);
        (self.outside_claims, self.outside_suffixes) = (outside_claims, outside_suffixes);
        differences(&before, &self.served)
    }

    /// Brings the places up to date. Returns those before and those after, if anything differs.
    fn settle_places(&mut self, is_counted: bool) -> Option<(Vec<Place>, Vec<Place>)> {
        // A card always has a place: none means that nothing was counted.
        if !std::mem::take(&mut self.has_new_places) && is_counted != self.places.is_empty() {
            return None;
        }
        let places = if is_counted { self.places() } else { Vec::new() };
        let before = std::mem::replace(&mut self.places, places.clone());
        Some((before, places))
    }

    /// Returns whether this version is newer than what its slot holds, and its epoch is not over.
    pub(super) fn lacks(&self, id: AdvertId, now: Instant) -> bool {
        let is_newer = self.advert(id.slot).is_none_or(|stored| stored.id().version < id.version);
        is_newer && !self.is_over(id.slot, id.version, now)
    }

    pub(super) fn advert(&self, slot: Slot) -> Option<&Advert> {
        let stored = match slot.kind {
            Kind::Card => Some(&self.card),
            Kind::Head => self.head.as_ref().map(|head| &head.stored),
            Kind::Records => self.fragments.get(&slot.k).map(|fragment| &fragment.stored),
            Kind::Later(_) => self.later.get(&(slot.kind, slot.k)),
        };
        stored.map(|stored| &stored.advert)
    }

    /// Notes that the advert of a slot goes down a tree; returns `false` when it has done so in every tree.
    pub(super) fn may_spread(&mut self, slot: Slot) -> bool {
        let stored = match slot.kind {
            Kind::Card => Some(&mut self.card),
            Kind::Head => self.head.as_mut().map(|head| &mut head.stored),
            Kind::Records => self.fragments.get_mut(&slot.k).map(|fragment| &mut fragment.stored),
            Kind::Later(_) => self.later.get_mut(&(slot.kind, slot.k)),
        };
        stored.is_some_and(|stored| {
            let may = stored.spread < MAX_SPREAD;
            stored.spread += u8::from(may);
            may
        })
    }

    /// Returns all stored adverts in the order of their slots.
    pub(super) fn stored(&self) -> impl Iterator<Item = &Stored> {
        let fragments = self.fragments.values().map(|fragment| &fragment.stored);
        let head = self.head.as_ref().map(|head| &head.stored);
        std::iter::once(&self.card).chain(fragments).chain(head).chain(self.later.values())
    }

    /// Returns all adverts in the order of their slots.
    pub(super) fn adverts(&self) -> impl Iterator<Item = &Advert> {
        self.stored().map(|stored| &stored.advert)
    }

    /// Returns how many adverts are stored and passed on without being read.
    pub(super) fn unread(&self) -> usize {
        self.adverts().filter(|advert| !advert.is_readable()).count()
    }

    /// Returns what the card says; for its certificate see [`Self::certificate`].
    pub(super) const fn card(&self) -> &Card {
        &self.said
    }

    /// Reads the certificate, DER, out of the card: rarely needed, and half of what a node's card takes.
    pub(super) fn certificate(&self) -> Vec<u8> {
        Card::of_later(self.card.advert.body()).map(|card| card.leaf).unwrap_or_default()
    }

    pub(super) const fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    pub(super) const fn age(&self) -> Age {
        self.age
    }

    pub(super) const fn wake(&self) -> Option<Instant> {
        self.wake
    }

    /// Returns whether its certificate is one of the mesh.
    pub(super) const fn has_issuer(&self) -> bool {
        self.has_issuer
    }

    /// Returns the digest of the statements it held at its last head.
    pub(super) fn statement_digest(&self) -> Option<[u8; 16]> {
        self.head.as_ref().map(|head| head.head.statement_digest)
    }

    /// Returns the greatest epoch of its adverts.
    pub(super) fn epoch(&self) -> u64 {
        self.adverts().map(|advert| advert.id().version.epoch).max().unwrap_or_default()
    }

    pub(super) const fn is_stale(&self) -> bool {
        self.is_stale
    }

    pub(super) fn lease_left(&self, now: Instant) -> Duration {
        self.lease_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Returns whether another copy of its head could start a lease: what this version cannot read never does, and
    /// would be asked for as long as the node lives.
    pub(super) fn misses_head(&self, now: Instant) -> bool {
        self.lease_left(now).is_zero()
            && self.head.as_ref().is_none_or(|head| head.stored.advert.is_readable())
    }

    /// Returns how many records count.
    pub(super) const fn served(&self) -> usize {
        self.served.len()
    }

    /// Returns the services it serves; one with several instances comes several times.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.served.iter().map(|record| &record.service)
    }

    /// Returns its records of one service, by instance, without a look at the others.
    pub(super) fn of_service<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = &'a Arc<ServiceRecord>> {
        let first = self.served.partition_point(|record| record.service < *service);
        self.served.iter().skip(first).take_while(move |record| record.service == *service)
    }

    pub(super) fn serves(&self, service: &ServiceName) -> bool {
        self.of_service(service).next().is_some()
    }

    pub(super) const fn outside_claims(&self) -> usize {
        self.outside_claims
    }

    pub(super) const fn outside_suffixes(&self) -> usize {
        self.outside_suffixes
    }

    /// Returns the fragments whose content does not decode.
    pub(super) fn quarantined(&self) -> impl Iterator<Item = (AdvertId, &DecodeError)> {
        let fault = |fragment: &'_ StoredFragment| fragment.stored.advert.id();
        self.fragments.values().filter_map(move |f| f.records.as_ref().err().map(|why| (fault(f), why)))
    }

    /// Returns whether others may be given its adverts.
    pub(super) fn is_offered(&self, now: Instant) -> bool {
        self.age.at(now) < self.patience().offer
    }

    /// Returns the gate at `now`. The node's own entries are always alive and trusted here.
    pub(super) fn gate_at(&self, is_own: bool, liveness: MemberLiveness, now: Now) -> Gate {
        let has_ended = now.wall > self.leaf.not_after + self.leaf.skew;
        Gate {
            is_trusted: is_own || (self.has_issuer && !has_ended && !self.is_evicted),
            is_member: is_own || matches!(liveness, MemberLiveness::Alive | MemberLiveness::Suspect),
            has_lease: is_own || !self.lease_left(now.mono).is_zero(),
            is_stale: self.is_stale,
        }
    }

    fn patience(&self) -> Patience {
        Patience::of(self.leaf.claims.ephemeral_seconds)
    }

    fn put_head(&mut self, stored: Stored, head: Head, now: Instant) {
        let epoch = stored.advert.id().version.epoch;
        let same = self.head.as_ref().filter(|old| old.epoch() == epoch);
        let epoch_since = same.map_or(now, |old| old.epoch_since);
        self.head = Some(StoredHead { stored, head, epoch_since });
    }

    fn put_fragment(&mut self, k: u16, fragment: StoredFragment) {
        self.has_new_records = true;
        self.fragments.insert(k, Box::new(fragment));
    }

    fn places(&self) -> Vec<Place> {
        self.stored().map(|stored| stored.place).filter(|place| place.hash != 0).collect()
    }

    /// Returns whether a version of a slot belongs to an epoch that a newer head has ended.
    fn is_over(&self, slot: Slot, version: Version, now: Instant) -> bool {
        let may_end = matches!(slot.kind, Kind::Records | Kind::Later(_));
        may_end
            && self.head.as_ref().is_some_and(|head| {
                let is_beyond = slot.kind == Kind::Records && slot.k >= head.head.n;
                version.epoch < head.epoch() && (is_beyond || now >= head.epoch_since + OLD_EPOCH_GRACE)
            })
    }

    fn drop_old_epochs(&mut self, now: Instant) {
        if !self.is_mixed() {
            return;
        }
        let before = (self.fragments.len(), self.later.len());
        let (mut fragments, mut later) =
            (std::mem::take(&mut self.fragments), std::mem::take(&mut self.later));
        let is_kept = |stored: &Stored| {
            let AdvertId { slot, version } = stored.advert.id();
            !self.is_over(slot, version, now)
        };
        fragments.retain(|_, fragment| is_kept(&fragment.stored));
        later.retain(|_, stored| is_kept(stored));
        (self.fragments, self.later) = (fragments, later);
        let has_dropped = before != (self.fragments.len(), self.later.len());
        self.has_new_records |= has_dropped;
        self.has_new_places |= has_dropped;
    }

    /// Returns whether adverts of an earlier epoch than the head's are left.
    fn is_mixed(&self) -> bool {
        let Some(epoch) = self.head.as_ref().map(StoredHead::epoch) else { return false };
        let fragments = self.fragments.values().map(|fragment| &fragment.stored);
        fragments.chain(self.later.values()).any(|stored| stored.advert.id().version.epoch < epoch)
    }

    /// Returns the records that count, lower fragments first, without what lies outside the claims.
    fn count_records(&self) -> Counted {
        let mut served = Vec::new();
        let (mut outside_claims, mut outside_suffixes) = (0, 0);
        for record in self.fragments.values().filter_map(|fragment| fragment.records.as_ref().ok()).flatten()
        {
            if !self.leaf.claims.allow_service(record.service.as_str()) {
                outside_claims += 1;
                continue;
            }
            let is_allowed = |name: &&Fqdn| self.leaf.claims.allow_fqdn(name);
            let refused = record.fqdns.iter().filter(|name| !is_allowed(name)).count();
            served.push(if refused == 0 {
                Arc::clone(record)
            } else {
                outside_suffixes += refused;
                let fqdns = record.fqdns.iter().filter(is_allowed).cloned().collect();
                Arc::new(ServiceRecord { fqdns, ..ServiceRecord::clone(record) })
            });
        }
        // The sort is stable: of two with one key the first counts.
        served.sort_by(|one, two| key_of(one).cmp(&key_of(two)));
        served.dedup_by(|later, first| key_of(later) == key_of(first));
        served.shrink_to_fit();
        Counted { served, outside_claims, outside_suffixes }
    }

    /// Returns when something changes by time alone.
    fn next_wake(&self, is_own: bool, now: Now) -> Option<Instant> {
        if is_own {
            return None;
        }
        let mono = now.mono;
        let patience = self.patience();
        let head = self.head.as_ref().filter(|_| self.is_mixed());
        let grace = head.map(|stored| stored.epoch_since + OLD_EPOCH_GRACE);
        // One second later than the last one it holds in; wall time has seconds.
        let end = (self.leaf.not_after + self.leaf.skew).checked_sub(now.wall);
        let end = end.map(|left| mono + Duration::from_secs(left.saturating_add(1).min(u64::from(u32::MAX))));
        let times = [
            self.lease_until,
            grace,
            end,
            self.age.reaches(patience.offer, mono),
            self.age.reaches(patience.forget, mono),
        ];
        times.into_iter().flatten().filter(|at| *at > mono).min()
    }
}

/// Drops the certificate: it is in the stored bytes, and read when it must be judged again.
fn without_leaf(card: Card) -> Card {
    Card { leaf: Vec::new(), ..card }
}

fn key_of(record: &ServiceRecord) -> (&ServiceName, &InstanceName) {
    (&record.service, &record.instance)
}

/// Compares two lists in the order of their keys. Returns what came, what went, and the services that differ. A record
/// of a fragment that has not changed is the same one, so that a change of one fragment is found without a look into the
/// others.
fn differences(
    before: &[Arc<ServiceRecord>],
    after: &[Arc<ServiceRecord>],
) -> (Vec<Key>, Vec<Key>, BTreeSet<ServiceName>) {
    let (mut accepted, mut withdrawn, mut services) = (Vec::new(), Vec::new(), BTreeSet::new());
    let key = |record: &ServiceRecord| (record.service.clone(), record.instance.clone());
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return (accepted, withdrawn, services),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(two)) if Arc::ptr_eq(one, two) => Ordering::Equal,
            (Some(one), Some(two)) => key_of(one).cmp(&key_of(two)),
        };
        let (gone, come) = (old.next_if(|_| order.is_le()), new.next_if(|_| order.is_ge()));
        match (gone, come) {
            (Some(one), Some(two)) if Arc::ptr_eq(one, two) || one == two => continue,
            (Some(_), Some(_)) | (None, None) => {}
            (Some(record), None) => withdrawn.push(key(record)),
            (None, Some(record)) => accepted.push(key(record)),
        }
        services.extend(gone.or(come).map(|record| record.service.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::record;

    fn names(keys: &[Key]) -> Vec<String> {
        keys.iter().map(|(service, instance)| format!("{instance}.{service}")).collect()
    }

    #[test]
    fn two_lists_differ_by_what_came_what_went_and_what_changed() {
        let list = |names: &[(&str, &str)]| -> Vec<_> {
            names.iter().map(|(service, instance)| Arc::new(record(service, instance))).collect()
        };
        let before = list(&[("a", "n0"), ("b", "n0"), ("b", "n1"), ("c", "n0"), ("e", "n0")]);
        let mut after = list(&[("b", "n1"), ("c", "n0"), ("d", "n0"), ("e", "n0"), ("f", "n0")]);
        after[1] = Arc::clone(&before[3]);
        Arc::make_mut(&mut after[3]).weight += 1;
        let (accepted, withdrawn, services) = differences(&before, &after);
        assert_eq!(names(&accepted), ["n0.d", "n0.f"]);
        assert_eq!(names(&withdrawn), ["n0.a", "n0.b"]);
        let services: Vec<_> = services.iter().map(ServiceName::as_str).collect();
        assert_eq!(services, ["a", "b", "d", "e", "f"], "an equal record is no change, a new weight is one");
        assert_eq!(differences(&after, &after), Default::default());
    }
}
