//! Push: own new adverts go out at once, to every connected peer or down two trees, and are passed on.
//!
//! Owns: what is sent to whom, in which frames. Must not know: how adverts are judged or repaired.
//! Driven by: the facade, after each input and timeout.

use gossamer_wire::NodeId;
use gossamer_wire::advert::{Advert, Card, Head, Header, Kind};
use gossamer_wire::frame::{AdvertCopy, Frame};
use gossamer_wire::limits::{MAX_ADVERTS_PER_FRAME, MAX_FORWARD, MAX_FRAME_BYTES};
use rand::seq::SliceRandom as _;

use super::held::Route;
use super::own::{CardContent, CardError, check_card};
use super::receive::{self, Content};
use super::tree::{self, Handover, Interval};
use super::{Catalog, CatalogEvent, Output};
use crate::time::Now;
use crate::trust::Leaf;

/// Bytes of a copy beside the advert: age, length.
const COPY_OVERHEAD: usize = 10;
/// Most unpublished records named at once; the counter has the rest.
const MAX_NAMED: usize = 64;
/// Room for the counts of a frame and [`MAX_FORWARD`] node ids.
const FRAME_OVERHEAD: usize = 16 + MAX_FORWARD * 16;

impl Catalog {
    /// Signs, stores and sends every own advert that is due.
    pub(super) fn publish(&mut self, now: Now) {
        let (mut fresh, mut named) = (Vec::new(), 0);
        while let Some(advert) = self.publisher.next_advert(now.mono) {
            let Some(content) = self.own_content(&advert) else { continue };
            if advert.id().slot.kind == Kind::Card {
                self.changed_nodes.insert(self.config.node);
            }
            fresh.push(AdvertCopy { age: 0, bytes: advert.shared_bytes() });
            self.store.put(advert, content, 0, now);
        }
        while let Some((service, instance)) = self.publisher.next_refused() {
            self.counters.not_published += 1;
            named += 1;
            if named <= MAX_NAMED {
                self.event(CatalogEvent::NotPublished { service, instance });
            }
        }
        if !fresh.is_empty() {
            self.settle(self.config.node, now);
            self.push(&fresh);
        }
    }

    /// Takes the own card after the checks its receivers will make.
    pub(super) fn set_card(&mut self, card: CardContent, now: Now) {
        self.unverified_card = None;
        let leaf = check_card(&card).and_then(|()| {
            let leaf = receive::leaf_of(&card.leaf, &self.trust, now.wall).map_err(CardError::Leaf)?;
            if leaf.node == self.config.node { Ok(leaf) } else { Err(CardError::OtherNode(leaf.node)) }
        });
        match leaf {
            Ok(leaf) => {
                self.publisher.set_card(card, leaf.claims.ephemeral_seconds > 0);
                if self.own_leaf.as_ref().is_none_or(|known| !is_same_subject(known, &leaf)) {
                    // Rules of records may name it otherwise.
                    self.changed_services.extend(self.store.services().cloned());
                }
                self.own_leaf = Some(leaf);
            }
            Err(why) => {
                if matches!(why, CardError::Leaf(_)) {
                    self.unverified_card = Some(card);
                }
                self.event(CatalogEvent::CardRefused { why });
            }
        }
    }

    /// Sends adverts in as many frames as they need.
    pub(super) fn send_adverts(&mut self, to: NodeId, copies: Vec<AdvertCopy>, forward: &[NodeId]) {
        for copies in parts(copies) {
            self.send(to, Frame::Adverts { copies, forward: forward.to_vec() });
        }
    }

    pub(super) fn send(&mut self, to: NodeId, frame: Frame) {
        self.outputs.push_back(Output::Send { to, frame });
    }

    /// Passes adverts of others on: down the tree they came by, or to nodes their giver cannot reach.
    pub(super) fn pass_on(&mut self, from: NodeId, copies: &[AdvertCopy], route: &Route) {
        if copies.is_empty() {
            return;
        }
        if let Some(interval) = route.interval {
            let mut others: Vec<_> = copies.iter().filter_map(owner_of).collect();
            others.push(from);
            let sends = tree::go_on(interval, self.repair.peers_inside(interval), &others, &mut self.rng);
            self.spread(copies, sends);
        }
        for &to in &route.forward {
            if to != from && self.repair.is_connected(to) {
                // Nobody is sent what it owns itself.
                let copies = copies.iter().filter(|copy| owner_of(copy) != Some(to)).cloned().collect();
                self.send_adverts(to, copies, &[]);
            }
        }
    }

    /// Returns whether the mesh is too large for direct pushes.
    pub(super) fn is_large(&self) -> bool {
        let members = self.store.count_alive().max(self.repair.connected_peers().len());
        members >= self.config.direct_up_to
    }

    /// Sends new own adverts to every peer; two of them are asked to pass them on to each node out of reach. In
    /// a large mesh two trees do it.
    fn push(&mut self, fresh: &[AdvertCopy]) {
        self.counters.pushes += fresh.len() as u64;
        let mut peers: Vec<_> = self.repair.connected_peers().collect();
        if self.is_large() {
            let sends = tree::begin(self.config.node, &peers, &mut self.rng);
            return self.spread(fresh, sends);
        }
        peers.shuffle(&mut self.rng);
        let beyond: Vec<_> =
            self.store.alive_members().filter(|node| !self.repair.is_connected(*node)).collect();
        let parts: Vec<_> = beyond.chunks(MAX_FORWARD).collect();
        for (at, peer) in peers.into_iter().enumerate() {
            let forward = parts.get(at / 2).copied().unwrap_or_default();
            self.send_adverts(peer, fresh.to_vec(), forward);
        }
    }

    fn spread(&mut self, copies: &[AdvertCopy], sends: Vec<Handover>) {
        for (to, Interval { first, last }) in sends {
            self.counters.spread += copies.len() as u64;
            for copies in parts(copies.to_vec()) {
                self.send(to, Frame::Spread { copies, first, last });
            }
        }
    }

    fn own_content(&self, advert: &Advert) -> Option<Content> {
        Some(match advert.id().slot.kind {
            Kind::Card => {
                Content::Card(Box::new((Card::decode(advert.body()).ok()?, self.own_leaf.clone()?)))
            }
            Kind::Records => Content::Records(receive::records(advert)),
            Kind::Head => Content::Head(Head::decode(advert.body()).ok()?),
            Kind::Later(_) => return None,
        })
    }
}

/// Returns whether rules of access see the same node in both.
fn is_same_subject(known: &Leaf, new: &Leaf) -> bool {
    let of = |leaf: &Leaf| (leaf.group.clone(), leaf.name.clone(), leaf.claims.labels.clone());
    of(known) == of(new)
}

/// Cuts a list of adverts into what fits a frame.
fn parts(copies: Vec<AdvertCopy>) -> Vec<Vec<AdvertCopy>> {
    let mut parts = Vec::new();
    let mut bytes = FRAME_OVERHEAD;
    let mut part = Vec::new();
    for copy in copies {
        let more = copy.bytes.len() + COPY_OVERHEAD;
        if part.len() == MAX_ADVERTS_PER_FRAME || bytes + more > MAX_FRAME_BYTES {
            parts.push(std::mem::take(&mut part));
            bytes = FRAME_OVERHEAD;
        }
        bytes += more;
        part.push(copy);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

fn owner_of(copy: &AdvertCopy) -> Option<NodeId> {
    Header::read(&copy.bytes).ok().map(|header| header.id.slot.node)
}
