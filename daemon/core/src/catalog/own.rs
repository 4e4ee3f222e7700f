//! The publisher: this node's own card, fragments and head.
//!
//! Owns: epoch and seq, what is due, the pace. Must not know: peers, other nodes' adverts.
//! Driven by: the catalog, which stores and pushes what `next_advert` gives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossamer_wire::advert::{Advert, AdvertId, Card, Head, Header, Kind, Slot, Version};
use gossamer_wire::limits::{ADVERT_BURST, ADVERT_RATE, HEAD_REFRESH, LEASE, MAX_OWN_RECORDS};
use gossamer_wire::{
    DecodeError, EncodeError, LaneAddress, MeshId, NodeId, RegionName, ServiceRecord, ZoneName,
};
use thiserror::Error;

use super::Key;
use super::placement::Placement;
use crate::bucket::Bucket;
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
    /// Where only lanes reach it.
    pub lanes: Vec<LaneAddress>,
}

pub(super) struct Publisher {
    mesh: MeshId,
    node: NodeId,
    signer: Box<dyn Sign>,
    version: Version,
    first_seq: u64,
    ephemeral: bool,
    card: Option<CardContent>,
    card_is_due: bool,
    statement_digest: [u8; 16],
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
    pub(super) fn new(
        mesh: MeshId,
        node: NodeId,
        signer: Box<dyn Sign>,
        (epoch, first_seq): (u64, u32),
        now: Instant,
    ) -> Self {
        Self {
            mesh,
            node,
            signer,
            version: Version { epoch, seq: first_seq.into() },
            first_seq: first_seq.into(),
            ephemeral: false,
            card: None,
            card_is_due: false,
            statement_digest: [0; 16],
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

    /// Takes the digest that heads have from the next one on.
    pub(super) fn set_statements(&mut self, digest: [u8; 16], now: Instant) {
        if self.statement_digest != digest && self.has_records {
            self.head_due = Some(now);
        }
        self.statement_digest = digest;
    }

    /// Starts another epoch: everything is due again.
    pub(super) fn set_epoch(&mut self, epoch: u64, now: Instant) {
        self.version = Version { epoch, seq: self.first_seq };
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
            statement_digest: self.statement_digest,
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
    let CardContent { leaf, addresses, zone, region, labels, relays, lanes } = content;
    Card { leaf, addresses, zone, region, labels, relays, protocol: (1, 1), capabilities: 0, lanes }
}

#[cfg(test)]
mod tests {
    use gossamer_wire::advert::Fragment;

    use super::*;

    use crate::catalog::tests::{record, start};
    use gossamer_wire::limits::MAX_CARD_BYTES;

    struct Plain;

    impl Sign for Plain {
        fn sign(&self, bytes: &[u8]) -> [u8; 64] {
            [bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)); 64]
        }
    }

    fn publisher(now: Instant) -> Publisher {
        let (mesh, node) = (MeshId::from_bytes([1; 16]), NodeId::from_bytes([2; 16]));
        Publisher::new(mesh, node, Box::new(Plain), (5, 0), now)
    }

    fn all(publisher: &mut Publisher, now: Instant) -> Vec<Advert> {
        std::iter::from_fn(|| publisher.next_advert(now)).collect()
    }

    fn kinds(adverts: &[Advert]) -> Vec<(Kind, u16)> {
        adverts.iter().map(|advert| (advert.id().slot.kind, advert.id().slot.k)).collect()
    }

    fn ready(now: Instant) -> Publisher {
        let mut publisher = publisher(now);
        publisher.set_card(CardContent::default(), false);
        publisher.set_records(vec![record("orders", "n0")]);
        publisher
    }

    #[test]
    fn card_then_fragments_then_head_with_one_counter() {
        let now = start();
        let adverts = all(&mut ready(now), now);
        assert_eq!(kinds(&adverts), [(Kind::Card, 0), (Kind::Records, 0), (Kind::Head, 0)]);
        let versions: Vec<_> = adverts.iter().map(|advert| advert.id().version).collect();
        assert_eq!(versions, [1, 2, 3].map(|seq| Version { epoch: 5, seq }));
        assert!(ready(now).has_signed(&adverts[1]));
    }

    #[test]
    fn without_a_card_nothing_is_due() {
        let now = start();
        let mut publisher = publisher(now);
        publisher.set_records(vec![record("orders", "n0")]);
        assert_eq!((publisher.next_advert(now), publisher.deadline()), (None, None));
    }

    #[test]
    fn heads_come_when_the_count_changes_and_at_each_refresh() {
        let now = start();
        let mut publisher = ready(now);
        all(&mut publisher, now);
        publisher.set_records(vec![record("orders", "n0"), record("web", "n0")]);
        assert_eq!(kinds(&all(&mut publisher, now)), [(Kind::Records, 0)], "the count is the same");
        assert_eq!(publisher.deadline(), Some(now + HEAD_REFRESH));
        assert_eq!(kinds(&all(&mut publisher, now + HEAD_REFRESH)), [(Kind::Head, 0)]);
        let mut large = record("large", "n0");
        large.metadata = (0..7).map(|key| (format!("k{key}"), "v".repeat(128))).collect();
        publisher.set_records(vec![record("orders", "n0"), record("web", "n0"), large]);
        let adverts = all(&mut publisher, now + HEAD_REFRESH);
        assert_eq!(kinds(&adverts), [(Kind::Records, 1), (Kind::Head, 0)]);
        assert_eq!(Head::decode(adverts[1].body()).expect("own").n, 2);
    }

    #[test]
    fn an_ephemeral_node_leases_minutes() {
        let now = start();
        let mut publisher = ready(now);
        publisher.set_card(CardContent::default(), true);
        publisher.set_statements([9; 16], start());
        let adverts = all(&mut publisher, now);
        let head = Head::decode(adverts[2].body()).expect("own");
        assert_eq!((head.lease_seconds, head.statement_digest), (360, [9; 16]));
        assert_eq!(publisher.deadline(), Some(now + EPHEMERAL_REFRESH));
    }

    #[test]
    fn a_withdrawn_last_record_is_an_empty_fragment() {
        let now = start();
        let mut publisher = ready(now);
        all(&mut publisher, now);
        publisher.set_records(Vec::new());
        let adverts = all(&mut publisher, now);
        assert_eq!(kinds(&adverts), [(Kind::Records, 0)]);
        assert_eq!(Fragment::decode(adverts[0].body()), Ok(Fragment::default()));
    }

    #[test]
    fn a_new_epoch_publishes_everything_again_without_empty_ends() {
        let now = start();
        let mut publisher = ready(now);
        all(&mut publisher, now);
        publisher.set_epoch(9, now);
        let adverts = all(&mut publisher, now);
        assert_eq!(kinds(&adverts), [(Kind::Card, 0), (Kind::Records, 0), (Kind::Head, 0)]);
        assert_eq!(adverts[0].id().version, Version { epoch: 9, seq: 1 });
        publisher.set_records(Vec::new());
        all(&mut publisher, now);
        publisher.set_epoch(10, now);
        assert_eq!(kinds(&all(&mut publisher, now)), [(Kind::Card, 0), (Kind::Head, 0)]);
    }

    #[test]
    fn a_restored_record_keeps_its_fragment() {
        let now = start();
        let mut publisher = publisher(now);
        publisher.restore(2, &record("orders", "n0"));
        publisher.set_card(CardContent::default(), false);
        publisher.set_records(vec![record("orders", "n0"), record("web", "n0")]);
        let adverts = all(&mut publisher, now);
        let holds = |advert: &&Advert| {
            let fragment = Fragment::decode(advert.body()).and_then(|fragment| fragment.records());
            fragment.is_ok_and(|records| records.iter().any(|record| record.service.as_str() == "orders"))
        };
        let fragments = adverts.iter().filter(|advert| advert.id().slot.kind == Kind::Records);
        assert_eq!(fragments.filter(holds).map(|advert| advert.id().slot.k).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn the_pace_stays_below_what_receivers_take() {
        let now = start();
        let mut publisher = ready(now);
        let mut published = 0;
        for weight in 1..2_000 {
            let mut changed = record("orders", "n0");
            changed.weight = weight;
            publisher.set_records(vec![changed]);
            published += all(&mut publisher, now + Duration::from_millis(u64::from(weight))).len();
        }
        assert!(published as f64 <= PACE * (ADVERT_BURST + 2.0 * ADVERT_RATE), "{published} in 2 s");
        let later = publisher.deadline().expect("more is due");
        assert!(later > now && !all(&mut publisher, later).is_empty());
    }

    #[test]
    fn a_record_that_breaks_a_limit_is_refused_alone() {
        let now = start();
        let mut publisher = publisher(now);
        publisher.set_card(CardContent::default(), false);
        let mut broken = record("broken", "n0");
        broken.ports[0].number = 0;
        let many = (0..=MAX_OWN_RECORDS).map(|number| record("orders", &format!("i{number}")));
        publisher.set_records(std::iter::once(broken).chain(many).collect());
        all(&mut publisher, now);
        let refused: Vec<_> = std::iter::from_fn(|| publisher.next_refused()).collect();
        assert_eq!(refused.len(), 2);
        assert!(refused.iter().any(|(service, _)| service.as_str() == "broken"));
    }

    #[test]
    fn a_card_over_a_limit_is_refused_before_it_is_signed() {
        let address = "192.0.2.1:4677".parse().expect("address");
        let many = CardContent { addresses: vec![address; 9], ..CardContent::default() };
        assert!(matches!(check_card(&many), Err(CardError::Limit(_))));
        let long = CardContent { leaf: vec![0; MAX_CARD_BYTES], ..CardContent::default() };
        assert!(matches!(check_card(&long), Err(CardError::TooLong(_))));
        assert_eq!(check_card(&CardContent::default()), Ok(()));
    }
}
