//! The adverts of one node and what follows from them: served records, lease, standing, age.
//!
//! Owns: which fragments count, the change of epoch, the liveness gate of one node. Must not know: other nodes,
//! peers, signatures. Driven by: `store`, which settles an owner after each change and at its wake time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gossamer_wire::advert::{Advert, AdvertId, Card, Head, Kind, Slot, Version};
use gossamer_wire::limits::{LEASE, OLD_EPOCH_GRACE};
use gossamer_wire::{DecodeError, InstanceName, ServiceName, ServiceRecord};

use super::age::{Age, Patience};
use super::receive::{Content, Records};
use super::{Key, MemberLiveness};
use crate::time::Now;
use crate::trust::Leaf;

/// Clock difference allowed after the end of a certificate, seconds (design section 4).
const SKEW_SECONDS: u64 = 300;

/// One advert with its part of the root hash.
#[derive(Debug)]
struct Stored {
    advert: Advert,
    hash: u64,
}

#[derive(Debug)]
struct StoredFragment {
    stored: Stored,
    records: Records,
}

#[derive(Debug)]
struct StoredHead {
    advert: Advert,
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
    fragments: BTreeMap<u16, StoredFragment>,
    age: Age,
    lease_until: Option<Instant>,
    is_stale: bool,
    /// Records that count, without those outside the claims.
    served: BTreeMap<Key, Arc<ServiceRecord>>,
    outside_claims: usize,
    gate: Gate,
    sum: u64,
    wake: Option<Instant>,
    /// Said once that the identity runs twice.
    pub(super) is_doubled: bool,
}

/// What changed since the owner was settled last.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) accepted: Vec<Key>,
    pub(super) withdrawn: Vec<Key>,
    pub(super) services: BTreeSet<ServiceName>,
    /// Before and after.
    pub(super) wake: (Option<Instant>, Option<Instant>),
    pub(super) sum_before: u64,
    pub(super) sum: u64,
    /// Silent for so long that it must be forgotten.
    pub(super) must_go: bool,
}

impl Owner {
    pub(super) fn new(advert: Advert, hash: u64, (said, leaf): (Card, Leaf), age: Age) -> Self {
        Self {
            card: Stored { advert, hash },
            said,
            leaf,
            has_issuer: true,
            is_evicted: false,
            has_new_card: true,
            head: None,
            fragments: BTreeMap::new(),
            age,
            lease_until: None,
            is_stale: false,
            served: BTreeMap::new(),
            outside_claims: 0,
            gate: Gate::default(),
            sum: 0,
            wake: None,
            is_doubled: false,
        }
    }

    /// Replaces one advert by a newer one.
    pub(super) fn put(&mut self, advert: Advert, hash: u64, content: Content, age: Age, now: Instant) {
        self.make_younger(age, now);
        match content {
            Content::Card(said) => {
                (self.said, self.leaf) = *said;
                self.has_issuer = true;
                self.has_new_card = true;
                self.card = Stored { advert, hash };
            }
            Content::Records(records) => {
                let k = advert.id().slot.k;
                self.fragments.insert(k, StoredFragment { stored: Stored { advert, hash }, records });
            }
            Content::Head(head) => {
                let lease = Duration::from_secs(head.lease_seconds.into()).min(LEASE);
                // What a third party gives was heard of before it came here.
                let left = lease.saturating_sub(age.at(now));
                self.lease_until = self.lease_until.max(Some(now + left));
                self.is_stale = false;
                let epoch = advert.id().version.epoch;
                let same = self.head.as_ref().filter(|old| old.advert.id().version.epoch == epoch);
                let epoch_since = same.map_or(now, |old| old.epoch_since);
                self.head = Some(StoredHead { advert, head, epoch_since });
            }
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
        let (served, outside) = self.count_records();
        let accepted: Vec<_> = served.keys().filter(|key| !self.served.contains_key(*key)).cloned().collect();
        let withdrawn: Vec<_> =
            self.served.keys().filter(|key| !served.contains_key(*key)).cloned().collect();
        let changed = served.iter().filter(|(key, record)| self.served.get(*key) != Some(*record));
        let mut services: BTreeSet<_> = changed.map(|((service, _), _)| service.clone()).collect();
        services.extend(withdrawn.iter().map(|(service, _)| service.clone()));
        self.served = served;
        self.outside_claims = outside;

        let gate = self.gate_at(is_own, liveness, now);
        if std::mem::take(&mut self.has_new_card) || gate != self.gate {
            services.extend(self.services().cloned());
            self.gate = gate;
        }
        let sum = if is_own || self.is_offered(mono) { self.hash_sum() } else { 0 };
        let sum_before = std::mem::replace(&mut self.sum, sum);
        let must_go = !is_own && self.age.at(mono) >= self.patience().forget;
        let wake = (self.wake, self.next_wake(is_own, now));
        self.wake = wake.1;
        let sum = if must_go { 0 } else { sum };
        Settled { accepted, withdrawn, services, wake, sum_before, sum, must_go }
    }

    /// Returns whether this version is newer than what its slot holds, and its epoch is not over.
    pub(super) fn lacks(&self, id: AdvertId, now: Instant) -> bool {
        let is_newer = self.advert(id.slot).is_none_or(|stored| stored.id().version < id.version);
        is_newer && (id.slot.kind != Kind::Records || !self.is_over(id.slot.k, id.version, now))
    }

    pub(super) fn advert(&self, slot: Slot) -> Option<&Advert> {
        match slot.kind {
            Kind::Card => Some(&self.card.advert),
            Kind::Head => self.head.as_ref().map(|stored| &stored.advert),
            Kind::Records => self.fragments.get(&slot.k).map(|fragment| &fragment.stored.advert),
        }
    }

    /// Returns all adverts in the order of their slots.
    pub(super) fn adverts(&self) -> impl Iterator<Item = &Advert> {
        let fragments = self.fragments.values().map(|fragment| &fragment.stored.advert);
        let head = self.head.as_ref().map(|stored| &stored.advert);
        std::iter::once(&self.card.advert).chain(fragments).chain(head)
    }

    pub(super) const fn card(&self) -> &Card {
        &self.said
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

    pub(super) const fn served(&self) -> &BTreeMap<Key, Arc<ServiceRecord>> {
        &self.served
    }

    /// Returns the services it serves; one with several instances comes several times.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.served.keys().map(|(service, _)| service)
    }

    /// Returns its records of one service, by instance, without a look at the others.
    pub(super) fn of_service<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = &'a Arc<ServiceRecord>> {
        let first = (service.clone(), InstanceName::least());
        self.served.range(first..).take_while(move |((of, _), _)| of == service).map(|(_, record)| record)
    }

    pub(super) fn serves(&self, service: &ServiceName) -> bool {
        self.of_service(service).next().is_some()
    }

    pub(super) const fn outside_claims(&self) -> usize {
        self.outside_claims
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
        let has_ended = now.wall > self.leaf.not_after + SKEW_SECONDS;
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

    fn hash_sum(&self) -> u64 {
        let fragments = self.fragments.values().map(|fragment| fragment.stored.hash);
        fragments.fold(self.card.hash, u64::wrapping_add)
    }

    /// Returns whether a fragment belongs to an epoch that a newer head has ended.
    fn is_over(&self, k: u16, version: Version, now: Instant) -> bool {
        self.head.as_ref().is_some_and(|stored| {
            let is_older = version.epoch < stored.advert.id().version.epoch;
            is_older && (k >= stored.head.n || now >= stored.epoch_since + OLD_EPOCH_GRACE)
        })
    }

    fn drop_old_epochs(&mut self, now: Instant) {
        let mut fragments = std::mem::take(&mut self.fragments);
        fragments.retain(|&k, fragment| !self.is_over(k, fragment.stored.advert.id().version, now));
        self.fragments = fragments;
    }

    /// Returns the records that count, lower fragments first, and how many lie outside the claims.
    fn count_records(&self) -> (BTreeMap<Key, Arc<ServiceRecord>>, usize) {
        let mut served = BTreeMap::new();
        let mut outside = 0;
        for record in self.fragments.values().filter_map(|fragment| fragment.records.as_ref().ok()).flatten()
        {
            if self.leaf.claims.allow_service(record.service.as_str()) {
                let key = (record.service.clone(), record.instance.clone());
                served.entry(key).or_insert_with(|| Arc::clone(record));
            } else {
                outside += 1;
            }
        }
        (served, outside)
    }

    /// Returns when something changes by time alone.
    fn next_wake(&self, is_own: bool, now: Now) -> Option<Instant> {
        if is_own {
            return None;
        }
        let mono = now.mono;
        let patience = self.patience();
        let epoch = self.head.as_ref().map(|stored| stored.advert.id().version.epoch);
        let is_mixed =
            self.fragments.values().any(|f| epoch.is_some_and(|e| f.stored.advert.id().version.epoch < e));
        let grace =
            self.head.as_ref().filter(|_| is_mixed).map(|stored| stored.epoch_since + OLD_EPOCH_GRACE);
        // One second later than the last one it holds in; wall time has seconds.
        let end = (self.leaf.not_after + SKEW_SECONDS).checked_sub(now.wall);
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
