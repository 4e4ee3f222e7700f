//! Push: own new adverts go to every connected peer at once.
//!
//! Owns: what is sent to whom, in which frames. Must not know: how adverts are judged or repaired.
//! Driven by: the facade, after each input and timeout.

use gossamer_wire::NodeId;
use gossamer_wire::advert::{Advert, Card, Head, Kind};
use gossamer_wire::frame::{AdvertCopy, Frame};
use gossamer_wire::limits::{MAX_ADVERTS_PER_FRAME, MAX_FORWARD, MAX_FRAME_BYTES};
use rand::seq::SliceRandom as _;

use super::own::{CardContent, CardError, check_card};
use super::receive::{self, Content};
use super::{Catalog, CatalogEvent, Output};
use crate::time::Now;

/// Bytes of a copy beside the advert: age, length.
const COPY_OVERHEAD: usize = 10;
/// Room for the counts of a frame and [`MAX_FORWARD`] node ids.
const FRAME_OVERHEAD: usize = 16 + MAX_FORWARD * 16;

impl Catalog {
    /// Signs, stores and sends every own advert that is due.
    pub(super) fn publish(&mut self, now: Now) {
        let mut fresh = Vec::new();
        while let Some(advert) = self.publisher.next_advert(now.mono) {
            let Some(content) = self.own_content(&advert) else { continue };
            if advert.id().slot.kind == Kind::Card {
                self.changed_nodes.insert(self.config.node);
            }
            fresh.push(AdvertCopy { age: 0, bytes: advert.bytes().to_vec() });
            self.store.put(advert, content, 0, now);
        }
        while let Some((service, instance)) = self.publisher.next_refused() {
            self.counters.not_published += 1;
            self.event(CatalogEvent::NotPublished { service, instance });
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

    /// Sends a peer all own adverts: this may be the first contact.
    pub(super) fn greet(&mut self, peer: NodeId, now: Now) {
        let own = self.store.copies(self.config.node, now.mono);
        self.send_adverts(peer, own, &[]);
    }

    /// Sends adverts in as many frames as they need.
    pub(super) fn send_adverts(&mut self, to: NodeId, copies: Vec<AdvertCopy>, forward: &[NodeId]) {
        let mut bytes = FRAME_OVERHEAD;
        let mut part = Vec::new();
        for copy in copies {
            let more = copy.bytes.len() + COPY_OVERHEAD;
            if part.len() == MAX_ADVERTS_PER_FRAME || bytes + more > MAX_FRAME_BYTES {
                self.send(
                    to,
                    Frame::Adverts { copies: std::mem::take(&mut part), forward: forward.to_vec() },
                );
                bytes = FRAME_OVERHEAD;
            }
            bytes += more;
            part.push(copy);
        }
        if !part.is_empty() {
            self.send(to, Frame::Adverts { copies: part, forward: forward.to_vec() });
        }
    }

    pub(super) fn send(&mut self, to: NodeId, frame: Frame) {
        self.outputs.push_back(Output::Send { to, frame });
    }

    /// Sends new own adverts to every peer; two of them are asked to pass them on to each node out of reach.
    fn push(&mut self, fresh: &[AdvertCopy]) {
        let mut peers: Vec<_> = self.repair.connected_peers().collect();
        peers.shuffle(&mut self.rng);
        let beyond: Vec<_> =
            self.store.alive_members().filter(|node| !self.repair.is_connected(*node)).collect();
        let parts: Vec<_> = beyond.chunks(MAX_FORWARD).collect();
        for (at, peer) in peers.into_iter().enumerate() {
            let forward = parts.get(at / 2).copied().unwrap_or_default();
            self.send_adverts(peer, fresh.to_vec(), forward);
        }
    }

    fn own_content(&self, advert: &Advert) -> Option<Content> {
        Some(match advert.id().slot.kind {
            Kind::Card => {
                Content::Card(Box::new((Card::decode(advert.body()).ok()?, self.own_leaf.clone()?)))
            }
            Kind::Records => Content::Records(receive::records(advert)),
            Kind::Head => Content::Head(Head::decode(advert.body()).ok()?),
        })
    }
}
