//! The publisher: this node's own card, fragments and head.
//!
//! Owns: epoch and seq, what is due, the pace. Must not know: peers, other nodes' adverts.
//! Driven by: the catalog, which stores and pushes what `next_advert` gives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossamer_wire::advert::{Advert, AdvertId, Card, Head, Header, Kind, Slot, Version};
use gossamer_wire::limits::{ADVERT_BURST, ADVERT_RATE, HEAD_REFRESH, LEASE, MAX_OWN_RECORDS};
use gossamer_wire::{DecodeError, EncodeError, MeshId, NodeId, RegionName, ServiceRecord, ZoneName};
use thiserror::Error;

use super::Key;
use super::age::Bucket;
use super::placement::Placement;
use crate::trust::{Sign, TrustError};

/// Lease and refresh of a node that may vanish: minutes, not an hour (design section 6).
pub(super) const EPHEMERAL_LEASE: Duration = Duration::from_secs(360);
const EPHEMERAL_REFRESH: Duration = Duration::from_secs(120);

/// Own pace as a part of what receivers take, so that no honest push is ever dropped.
const PACE: f64 = 0.75;

/// What the own card says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardContent {
    /// Own leaf certificate, DER.
    pub leaf: Vec<u8>,
    /// Where this node may be dialled, best first; empty when nobody can.
    pub addresses: Vec<SocketAddr>,
    /// Own zone.
    pub zone: Option<ZoneName>,
    /// Own region.
    pub region: Option<RegionName>,
    /// Free labels for display.
    pub labels: Vec<(String, String)>,
    /// Relays that keep a connection to this node.
    pub relays: Vec<NodeId>,
}

/// What the own heads say beside fragment count and lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadContent {
    /// Digest of the statements this node holds.
    pub statement_digest: [u8; 16],
    /// Roles in use: bit 0 issuer, bit 1 relay.
    pub roles: u8,
}

pub(super) struct Publisher {
    mesh: MeshId,
    node: NodeId,
    signer: Box<dyn Sign>,
    version: Version,
    ephemeral: bool,
    card: Option<CardContent>,
    card_is_due: bool,
    head: HeadContent,
    head_due: Option<Instant>,
    placement: Placement,
    /// The latest complete set that is not placed yet.
    wanted: Option<Vec<ServiceRecord>>,
    has_records: bool,
    /// Fragments to publish, in order.
    queue: Vec<u16>,
    refused: Vec<Key>,
    pace: Bucket,
}

impl Publisher {
    pub(super) fn new(mesh: MeshId, node: NodeId, signer: Box<dyn Sign>, epoch: u64, now: Instant) -> Self {
        Self {
            mesh,
            node,
            signer,
            version: Version { epoch, seq: 0 },
            ephemeral: false,
            card: None,
            card_is_due: false,
            head: HeadContent::default(),
            head_due: None,
            placement: Placement::default(),
            wanted: None,
            has_records: false,
            queue: Vec::new(),
            refused: Vec::new(),
            pace: Bucket::full(ADVERT_RATE * PACE, ADVERT_BURST * PACE, now),
        }
    }

    /// Remembers where an earlier start had published a record, so that it does not move.
    pub(super) fn restore(&mut self, k: u16, record: &ServiceRecord) {
        if let Ok(bytes) = record.encode() {
            self.placement.restore(k, (record.service.clone(), record.instance.clone()), bytes);
        }
    }

    /// Takes the complete set of own records. Placed once all earlier changes are published: the latest wins.
    pub(super) fn set_records(&mut self, records: Vec<ServiceRecord>) {
        self.wanted = Some(records);
    }

    /// Takes the own card; published when it differs. `ephemeral` chooses lease and refresh.
    pub(super) fn set_card(&mut self, card: CardContent, ephemeral: bool) {
        self.ephemeral = ephemeral;
        if self.card.as_ref() != Some(&card) {
            self.card = Some(card);
            self.card_is_due = true;
        }
    }

    /// Takes what heads say from the next one on.
    pub(super) fn set_head(&mut self, head: HeadContent) {
        self.head = head;
    }

    /// Starts another epoch: everything is due again.
    pub(super) fn set_epoch(&mut self, epoch: u64, now: Instant) {
        self.version = Version { epoch, seq: 0 };
        self.card_is_due = self.card.is_some();
        self.queue.clear();
        if self.has_records {
            self.placement.trim();
            self.queue.extend(0..self.placement.count());
            self.head_due = Some(now);
        }
    }

    /// Signs the next advert that is due: card, fragments in the plan's order, then the head.
    pub(super) fn next_advert(&mut self, now: Instant) -> Option<Advert> {
        self.card.as_ref()?;
        if !self.card_is_due && self.queue.is_empty() {
            self.place(now);
        }
        let head_is_due = self.head_due.is_some_and(|due| due <= now);
        if !(self.card_is_due || !self.queue.is_empty() || head_is_due) || !self.pace.take(now) {
            return None;
        }
        if std::mem::take(&mut self.card_is_due) {
            let body = self.card_body()?;
            return self.build(Kind::Card, 0, &body);
        }
        if !self.queue.is_empty() {
            let k = self.queue.remove(0);
            let body = self.placement.fragment(k).encode().ok()?;
            return self.build(Kind::Records, k, &body);
        }
        self.head_due = Some(now + if self.ephemeral { EPHEMERAL_REFRESH } else { HEAD_REFRESH });
        let body = self.head().encode().ok()?;
        self.build(Kind::Head, 0, &body)
    }

    /// Returns a record that no fragment had room for, or that breaks a limit.
    pub(super) fn next_refused(&mut self) -> Option<Key> {
        self.refused.pop()
    }

    /// Returns when `next_advert` may have something, if nothing else happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.card.as_ref()?;
        if self.card_is_due || !self.queue.is_empty() || self.wanted.is_some() {
            return Some(self.pace.ready_at());
        }
        self.head_due.map(|due| due.max(self.pace.ready_at()))
    }

    /// Returns the epoch in use.
    pub(super) const fn epoch(&self) -> u64 {
        self.version.epoch
    }

    /// Returns whether this node's key signed the advert. Ed25519 signs the same bytes the same way.
    pub(super) fn has_signed(&self, advert: &Advert) -> bool {
        self.signer.sign(&advert.signed()) == advert.signature()
    }

    fn place(&mut self, now: Instant) {
        let Some(records) = self.wanted.take() else { return };
        let mut table = BTreeMap::new();
        for record in records {
            let key = (record.service.clone(), record.instance.clone());
            match record.check().map_err(drop).and_then(|()| record.encode().map_err(drop)) {
                Ok(bytes) if table.len() < MAX_OWN_RECORDS => _ = table.insert(key, bytes),
                _ => self.refused.push(key),
            }
        }
        let is_first = !std::mem::replace(&mut self.has_records, true);
        let before = self.placement.count();
        let plan = self.placement.replace(table);
        self.refused.extend(plan.refused);
        if is_first {
            self.placement.trim();
            self.queue.extend(0..self.placement.count());
        } else {
            self.queue.extend(plan.first);
            self.queue.extend(plan.last);
        }
        if is_first || self.placement.count() != before {
            self.head_due = Some(now);
        }
    }

    fn head(&self) -> Head {
        let lease = if self.ephemeral { EPHEMERAL_LEASE } else { LEASE };
        Head {
            n: self.placement.count(),
            lease_seconds: u32::try_from(lease.as_secs()).unwrap_or(u32::MAX),
            statement_digest: self.head.statement_digest,
            roles: self.head.roles,
        }
    }

    fn card_body(&self) -> Option<Vec<u8>> {
        let content = self.card.clone()?;
        card_of(content).encode().ok()
    }

    fn build(&mut self, kind: Kind, k: u16, body: &[u8]) -> Option<Advert> {
        self.version.seq += 1;
        let id = AdvertId { slot: Slot { node: self.node, kind, k }, version: self.version };
        Advert::build(Header { mesh: self.mesh, id }, body, |bytes| self.signer.sign(bytes)).ok()
    }
}

/// Checks that a card with this content can be published.
///
/// # Errors
/// The operator's fault: addresses or labels are too many or too long together.
pub(super) fn check_card(content: &CardContent) -> Result<(), CardError> {
    let body = card_of(content.clone()).encode().map_err(CardError::TooLong)?;
    Card::decode(&body).map(drop).map_err(CardError::Limit)
}

/// Why the own card was not published. Nothing was changed; the card published before stays.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CardError {
    /// The operator's fault: the parts are too long together.
    #[error(transparent)]
    TooLong(EncodeError),
    /// The operator's fault: one part breaks a limit.
    #[error(transparent)]
    Limit(DecodeError),
    /// The certificate is not one of this mesh; retried when the trust bundle changes.
    #[error(transparent)]
    Leaf(TrustError),
    /// A bug: the certificate belongs to another key than the configured node id.
    #[error("the certificate belongs to node {0}, which is not this node")]
    OtherNode(NodeId),
}

fn card_of(content: CardContent) -> Card {
    let CardContent { leaf, addresses, zone, region, labels, relays } = content;
    Card { leaf, addresses, zone, region, labels, relays, protocol: (1, 1), capabilities: 0 }
}
