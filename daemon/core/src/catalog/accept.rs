//! Adverts from peers: compared, judged, stored, passed on.
//!
//! Owns: the order of the checks, cheapest first, and what each outcome counts and says. Must not know: how a
//! judgement is made, what follows for readers. Driven by: the facade, for `Frame::Adverts`, `Frame::Spread` and
//! `Input::Trust`.

use std::collections::BTreeSet;

use gossamer_wire::NodeId;
use gossamer_wire::advert::{Advert, AdvertId, Kind, Slot};
use gossamer_wire::frame::AdvertCopy;
use gossamer_wire::limits::OFFER_UNTIL;

use super::age::Age;
use super::denied::take_denied;
use super::held::Route;
use super::receive::{self, Content, Refusal, Verdict};
use super::store::Known;
use super::{Catalog, CatalogEvent, Output};
use crate::time::Now;
use crate::trust::TrustBundle;

impl Catalog {
    /// Takes adverts of a peer and passes the new ones on as the peer asked.
    pub(super) fn take_copies(&mut self, from: NodeId, copies: Vec<AdvertCopy>, route: &Route, now: Now) {
        let mut touched = BTreeSet::new();
        let mut onward = Vec::new();
        for copy in copies {
            match self.take_copy(from, &copy, route, &mut touched, now) {
                Ok(true) => onward.push(copy),
                Ok(false) => {}
                Err((owner, why)) => self.refuse(from, owner, why),
            }
        }
        for node in touched {
            self.settle(node, now);
        }
        self.pass_on(from, &onward, route);
    }

    /// Takes the adverts whose rate allows it again, the latest of each slot.
    pub(super) fn take_later(&mut self, now: Now) {
        while let Some((from, waiting)) = self.later.take_due(now.mono) {
            let copy =
                AdvertCopy { age: waiting.age.to_wire(now.mono), bytes: waiting.advert.shared_bytes() };
            self.take_copies(from, vec![copy], &waiting.route, now);
        }
    }

    /// Restores what [`Catalog::export`] gave: own records keep their fragments, others get one fresh lease.
    pub(super) fn restore(&mut self, copies: Vec<AdvertCopy>, now: Now) {
        let me = self.config.node;
        let mut touched = BTreeSet::new();
        for copy in copies {
            let Ok(advert) = Advert::parse_shared(&copy.bytes) else { continue };
            let slot = advert.id().slot;
            if slot.node != me {
                let held = (advert, Age::received(copy.age, now.mono));
                self.judge(me, held, &mut touched, now).ok();
            } else if slot.kind == Kind::Records && self.publisher.has_signed(&advert) {
                let records = receive::records(&advert).unwrap_or_default();
                records.iter().for_each(|record| self.publisher.restore(slot.k, record));
            }
        }
        for node in touched {
            if let Some(owner) = self.store.owner_mut(node) {
                owner.restart_lease(now.mono);
            }
            self.settle(node, now);
        }
    }

    /// Judges everything again: roots or issuers changed.
    pub(super) fn set_trust(&mut self, trust: TrustBundle, now: Now) {
        self.trust = trust;
        for node in self.store.owner_ids() {
            if let Some(owner) = self.store.owner_mut(node) {
                let is_known = receive::leaf_of(&owner.certificate(), &self.trust, now.wall).is_ok();
                owner.set_issuer(is_known);
            }
            self.settle(node, now);
        }
        self.release(None, now);
        if let Some(card) = self.unverified_card.take() {
            self.set_card(card, now);
        }
    }

    /// Takes the complete set of evicted nodes.
    pub(super) fn set_evicted(&mut self, evicted: BTreeSet<NodeId>, now: Now) {
        let changed: Vec<_> = self.evicted.symmetric_difference(&evicted).copied().collect();
        self.evicted = evicted;
        for node in changed {
            let is_evicted = self.evicted.contains(&node);
            if let Some(owner) = self.store.owner_mut(node) {
                owner.set_evicted(is_evicted);
            }
            self.settle(node, now);
        }
    }

    /// Takes one copy; `Ok(true)` when it is to be passed on.
    fn take_copy(
        &mut self,
        from: NodeId,
        copy: &AdvertCopy,
        route: &Route,
        touched: &mut BTreeSet<NodeId>,
        now: Now,
    ) -> Result<bool, (Option<NodeId>, Refusal)> {
        let advert = Advert::parse_shared(&copy.bytes).map_err(|_| (None, Refusal::Header))?;
        let AdvertId { slot, version } = advert.id();
        let node = slot.node;
        let refused = |why| (Some(node), why);
        if advert.header().mesh != self.trust.mesh() {
            return Err(refused(Refusal::Mesh));
        }
        let known = self.store.compare(&advert, now.mono);
        match known {
            Known::Same => {
                self.counters.duplicates += 1;
                self.pulls.came(from, slot, version, now.mono);
                self.store.make_younger(node, copy.age, now);
                touched.insert(node);
                return Ok(self.goes_down(slot, route));
            }
            Known::Older => {
                self.counters.older += 1;
                if from == node {
                    self.answer_older(from, &advert, now);
                }
                return Ok(false);
            }
            Known::New | Known::Twin => {}
        }
        if self.later.has_from(from, advert.id()) {
            return Ok(false);
        }
        let age = Age::received(copy.age, now.mono);
        let has_card = node == self.config.node || self.store.owner(node).is_some();
        if !self.rates.take(from, node, has_card, now.mono) {
            let waits = node != self.config.node
                && known == Known::New
                && self.later.put(from, (advert, age), route.clone(), now.mono);
            self.counters.taken_later += u64::from(waits);
            return if waits { Ok(false) } else { Err(refused(Refusal::Rate)) };
        }
        if node == self.config.node {
            return self.take_own(&advert).map_err(refused).map(|()| false);
        }
        if known == Known::Twin {
            self.take_twin(&advert, now).map_err(refused)?;
            if from == node {
                self.answer_older(from, &advert, now);
            }
            return Ok(false);
        }
        if age.at(now.mono) >= OFFER_UNTIL {
            return Err(refused(Refusal::TooOld));
        }
        if self.held.has_from(from, advert.id()) {
            return Ok(false);
        }
        let id = advert.id();
        let is_stored = self.judge(from, (advert, age), touched, now).map_err(refused)?;
        let was_asked = self.pulls.came(from, slot, version, now.mono);
        if !is_stored {
            return Ok(false);
        }
        if !has_card {
            self.rates.introduce(from, node);
        }
        if was_asked || from != node {
            self.repair.taught(from);
        }
        // A push of the owner reaches everybody by itself, unless it comes down a tree.
        if was_asked || from != node || route.interval.is_some() {
            self.pulls.learn(id, from, now.mono);
        }
        Ok(route.interval.is_none() || self.goes_down(slot, route))
    }

    /// Returns whether a stored advert goes on down the tree it came by.
    fn goes_down(&mut self, slot: Slot, route: &Route) -> bool {
        route.interval.is_some()
            && slot.node != self.config.node
            && self.store.owner_mut(slot.node).is_some_and(|owner| owner.may_spread(slot))
    }

    /// Judges an advert and stores or holds it. `Ok(true)` when it was stored.
    fn judge(
        &mut self,
        from: NodeId,
        (advert, age): (Advert, Age),
        touched: &mut BTreeSet<NodeId>,
        now: Now,
    ) -> Result<bool, Refusal> {
        let slot = advert.id().slot;
        let leaf = self.store.owner(slot.node).map(|owner| owner.leaf());
        let mut content = match receive::judge(&advert, leaf, &self.trust, now.wall) {
            Verdict::Take(content) => content,
            Verdict::Refuse(why) => return Err(why),
            Verdict::Hold => {
                let is_held = self.held.put(from, (advert, age), Route::default(), now.mono);
                return if is_held { Ok(false) } else { Err(Refusal::TooManyHeld) };
            }
        };
        if let Content::Records(Err(why)) = &content {
            self.event(CatalogEvent::Quarantined { id: advert.id(), why: why.clone() });
        }
        let denied = take_denied(&mut content, &self.config.deny);
        let seconds = age.to_wire(now.mono);
        if !self.store.put(advert, content, seconds, now) {
            return Err(Refusal::TooManyNodes);
        }
        self.counters.accepted += 1;
        touched.insert(slot.node);
        if slot.kind == Kind::Card {
            self.note_denied(slot.node, denied);
            self.changed_nodes.insert(slot.node);
            let is_evicted = self.evicted.contains(&slot.node);
            if let Some(owner) = self.store.owner_mut(slot.node) {
                owner.set_evicted(is_evicted);
            }
            self.release(Some(slot.node), now);
        }
        Ok(true)
    }

    /// Judges what was held of one node, or of all, again.
    fn release(&mut self, node: Option<NodeId>, now: Now) {
        let waiting = match node {
            Some(node) => self.held.take(node),
            None => self.held.take_all(),
        };
        let mut touched = BTreeSet::new();
        for (from, waiting) in waiting {
            let id = waiting.advert.id();
            if self.store.compare(&waiting.advert, now.mono) != Known::New {
                continue;
            }
            match self.judge(from, (waiting.advert, waiting.age), &mut touched, now) {
                Ok(true) => self.pulls.learn(id, from, now.mono),
                Ok(false) => {}
                Err(why) => self.refuse(from, Some(id.slot.node), why),
            }
        }
        for node in touched {
            self.settle(node, now);
        }
    }

    /// Looks at an own advert that another node holds and this one does not.
    fn take_own(&mut self, advert: &Advert) -> Result<(), Refusal> {
        if !self.publisher.has_signed(advert) {
            return Err(Refusal::Signature);
        }
        let epoch = advert.id().version.epoch;
        let mine = self.publisher.epoch();
        if epoch >= mine && self.epoch_asked <= epoch {
            self.epoch_asked = epoch + 1;
            self.outputs.push_back(Output::EpochBehind { at_least: epoch + 1 });
        }
        Ok(())
    }

    /// Looks at an advert with the version of the stored one and other bytes: the first is kept.
    fn take_twin(&mut self, advert: &Advert, now: Now) -> Result<(), Refusal> {
        let node = advert.id().slot.node;
        let leaf = self.store.owner(node).map(|owner| owner.leaf());
        if let Verdict::Refuse(why) = receive::judge(advert, leaf, &self.trust, now.wall) {
            return Err(why);
        }
        self.counters.twins += 1;
        let said = self.store.owner_mut(node).map(|owner| std::mem::replace(&mut owner.is_doubled, true));
        if said == Some(false) {
            self.event(CatalogEvent::DuplicateIdentity { node });
        }
        Ok(())
    }

    /// Shows an owner what is held in place of its advert: it lost its state, or runs twice.
    fn answer_older(&mut self, from: NodeId, advert: &Advert, now: Now) {
        if let Some(copy) = self.store.copy(advert.id().slot, now.mono)
            && self.repair.may_answer(from, now.mono)
        {
            self.send_adverts(from, vec![copy], &[]);
        }
    }

    fn refuse(&mut self, from: NodeId, owner: Option<NodeId>, why: Refusal) {
        *self.counters.refused.entry(why).or_default() += 1;
        if self.said.insert((from, why)) {
            self.event(CatalogEvent::Refused { from, owner, why });
        }
    }
}
