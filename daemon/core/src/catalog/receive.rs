//! The judgement of one advert: every check between bytes from a peer and the store.
//!
//! Owns: header, signature, certificate and content checks, in that order. Must not know: what is stored, who
//! gave the advert. Driven by: `accept`; fuzzed.

use std::sync::Arc;

use gossamer_wire::advert::{Advert, Card, Fragment, Head, Kind};
use gossamer_wire::{DecodeError, ServiceRecord};

use crate::trust::{Leaf, TrustBundle, TrustError};

/// Why an advert was refused. It is not stored and not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// The giver's fault: the header does not parse, or a length breaks a limit.
    Header,
    /// The giver's fault: it belongs to another mesh.
    Mesh,
    /// The giver's fault: not signed by the node it names.
    Signature,
    /// The owner's fault: a card or a head whose content does not decode, or a head without a lease.
    Content,
    /// The owner's fault: the certificate in the card is not one of this mesh, or of another node.
    Certificate,
    /// Nobody's fault: this catalog holds its most nodes.
    TooManyNodes,
    /// Nobody's fault: too much waits for a card or an issuer.
    TooManyHeld,
    /// The giver's fault, or a storm: over the rate for one owner. Repair fetches the latest.
    Rate,
    /// The giver's fault: older than what may be handed on.
    TooOld,
}

/// What an advert that passed says.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Card(Box<(Card, Leaf)>),
    Head(Head),
    Records(Records),
    /// Signed by its owner, of a later version or kind: stored and passed on.
    Unread,
}

/// Content of a fragment, or why it is quarantined: stored and forwarded, not served.
pub(super) type Records = Result<Vec<Arc<ServiceRecord>>, DecodeError>;

/// The judgement.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    Take(Content),
    /// Cannot be judged: the card, its issuer, or the right time is missing.
    Hold,
    Refuse(Refusal),
}

/// Judges an advert. `leaf` is what the stored card of its owner says; cards bring their own.
pub(super) fn judge(advert: &Advert, leaf: Option<&Leaf>, trust: &TrustBundle, wall: u64) -> Verdict {
    if advert.header().mesh != trust.mesh() {
        return Verdict::Refuse(Refusal::Mesh);
    }
    let kind = advert.id().slot.kind;
    if kind == Kind::Card {
        return judge_card(advert, trust, wall);
    }
    let Some(leaf) = leaf else { return Verdict::Hold };
    if !trust.signature_holds(&leaf.public_key, &advert.signed(), advert.signature()) {
        return Verdict::Refuse(Refusal::Signature);
    }
    if !advert.is_readable() {
        return Verdict::Take(Content::Unread);
    }
    if kind == Kind::Records {
        return Verdict::Take(Content::Records(trust.records(advert.body())));
    }
    match Head::decode(advert.body()) {
        // Without a lease it says nothing, and whoever took it would miss a head for as long as its owner lives.
        Ok(head) if head.lease_seconds > 0 => Verdict::Take(Content::Head(head)),
        Ok(_) | Err(_) => Verdict::Refuse(Refusal::Content),
    }
}

/// Decodes the records of a fragment.
pub(super) fn records(advert: &Advert) -> Records {
    let fragment = Fragment::decode(advert.body())?;
    Ok(fragment.records()?.into_iter().map(Arc::new).collect())
}

fn judge_card(advert: &Advert, trust: &TrustBundle, wall: u64) -> Verdict {
    let card = if advert.is_readable() { Card::decode(advert.body()) } else { Card::of_later(advert.body()) };
    let Ok(card) = card else { return Verdict::Refuse(Refusal::Content) };
    let leaf = match leaf_of(&card.leaf, trust, wall) {
        Ok(leaf) => leaf,
        Err(TrustError::Chain(_) | TrustError::NotYet(_)) => return Verdict::Hold,
        Err(_) => return Verdict::Refuse(Refusal::Certificate),
    };
    if leaf.node != advert.id().slot.node {
        return Verdict::Refuse(Refusal::Certificate);
    }
    if !trust.signature_holds(&leaf.public_key, &advert.signed(), advert.signature()) {
        return Verdict::Refuse(Refusal::Signature);
    }
    Verdict::Take(Content::Card(Box::new((card, leaf))))
}

/// Verifies a leaf; one that has ended counts as at its end. Whether it is served is asked again at each use,
/// and every node must store the same cards, or their hashes differ for ever.
pub(super) fn leaf_of(der: &[u8], trust: &TrustBundle, wall: u64) -> Result<Leaf, TrustError> {
    match trust.verify_certificate(der, &[], wall) {
        Err(TrustError::Expired(ago)) => trust.verify_certificate(der, &[], wall.saturating_sub(ago)),
        verdict => verdict,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gossamer_wire::advert::{AdvertId, Header, SERVICE_ENTRY, Slot, Version};
    use gossamer_wire::{EncodeError, MeshId, NodeId};

    use super::*;
    use crate::catalog::tests::record;
    use crate::trust::Sign as _;
    use crate::trust::tests::{Authority, Key, WALL};

    struct Owner {
        authority: Authority,
        key: Key,
        leaf: Leaf,
        der: Vec<u8>,
    }

    impl Owner {
        fn new() -> Self {
            let (authority, key) = (Authority::new(), Key::new());
            let der = authority.leaf("west", "n0", &key);
            let leaf = authority.bundle().verify(&der, &[], WALL).expect("leaf");
            Self { authority, key, leaf, der }
        }

        fn advert(&self, mesh: MeshId, node: NodeId, kind: Kind, body: &[u8]) -> Result<Advert, EncodeError> {
            let id = AdvertId { slot: Slot { node, kind, k: 0 }, version: Version { epoch: 1, seq: 1 } };
            Advert::build(Header { mesh, id }, body, |bytes| self.key.sign(bytes))
        }

        fn own(&self, kind: Kind, body: &[u8]) -> Advert {
            self.advert(self.authority.mesh, self.leaf.node, kind, body).expect("fits")
        }

        fn card(&self, leaf: Vec<u8>) -> Vec<u8> {
            let card = Card {
                leaf,
                addresses: Vec::new(),
                zone: None,
                region: None,
                labels: Vec::new(),
                relays: Vec::new(),
                protocol: (1, 1),
                capabilities: 0,
                lanes: Vec::new(),
            };
            card.encode().expect("fits")
        }

        fn judge(&self, advert: &Advert) -> Verdict {
            judge(advert, Some(&self.leaf), &self.authority.bundle(), WALL)
        }

        fn refusal(&self, advert: &Advert) -> Option<Refusal> {
            match self.judge(advert) {
                Verdict::Refuse(why) => Some(why),
                Verdict::Take(_) | Verdict::Hold => None,
            }
        }
    }

    #[test]
    fn each_kind_that_is_in_order_is_taken() {
        let owner = Owner::new();
        let card = owner.own(Kind::Card, &owner.card(owner.der.clone()));
        assert!(matches!(owner.judge(&card), Verdict::Take(Content::Card(said)) if said.1 == owner.leaf));
        let body = Fragment::of(&[record("orders", "n0")]).expect("fits").encode().expect("fits");
        let fragment = owner.own(Kind::Records, &body);
        assert!(
            matches!(owner.judge(&fragment), Verdict::Take(Content::Records(Ok(list))) if list.len() == 1)
        );
        let head = Head { n: 1, lease_seconds: 9, statement_digest: [0; 16] };
        let advert = owner.own(Kind::Head, &head.encode().expect("fits"));
        assert!(matches!(owner.judge(&advert), Verdict::Take(Content::Head(read)) if read == head));
    }

    #[test]
    fn without_its_card_or_its_issuer_an_advert_waits() {
        let owner = Owner::new();
        let fragment = owner.own(Kind::Records, &Fragment::default().encode().expect("fits"));
        let bundle = owner.authority.bundle();
        assert!(matches!(judge(&fragment, None, &bundle, WALL), Verdict::Hold));
        let card = owner.own(Kind::Card, &owner.card(owner.der.clone()));
        let rootless = TrustBundle::new(bundle.mesh(), vec![owner.authority.root], vec![]).expect("bundle");
        assert!(matches!(judge(&card, None, &rootless, WALL), Verdict::Hold));
        // A clock that is behind: the certificate has not begun.
        assert!(matches!(judge(&card, None, &bundle, WALL - 3_000), Verdict::Hold));
    }

    #[test]
    fn an_ended_certificate_is_stored_like_on_every_other_node() {
        let owner = Owner::new();
        let card = owner.own(Kind::Card, &owner.card(owner.der.clone()));
        let verdict = judge(&card, None, &owner.authority.bundle(), WALL + 1_000_000);
        assert!(matches!(verdict, Verdict::Take(Content::Card(_))));
    }

    #[test]
    fn a_card_of_an_evicted_node_is_stored_like_on_nodes_that_have_not_heard_of_it() {
        let owner = Owner::new();
        let card = owner.own(Kind::Card, &owner.card(owner.der.clone()));
        let evicted = BTreeSet::from([owner.leaf.node]);
        let trust = owner.authority.bundle().with_evicted(Arc::new(evicted));
        assert!(matches!(judge(&card, None, &trust, WALL), Verdict::Take(Content::Card(_))));
        assert!(matches!(judge(&card, None, &trust, WALL + 1_000_000), Verdict::Take(Content::Card(_))));
    }

    #[test]
    fn each_fault_has_its_refusal() {
        let owner = Owner::new();
        let (mesh, node) = (owner.authority.mesh, owner.leaf.node);
        let empty = Fragment::default().encode().expect("fits");
        let foreign = owner.advert(MeshId::from_bytes([9; 16]), node, Kind::Records, &empty).expect("fits");
        assert_eq!(owner.refusal(&foreign), Some(Refusal::Mesh));
        let mut bytes = owner.own(Kind::Records, &empty).bytes().to_vec();
        *bytes.last_mut().expect("bytes") ^= 1;
        assert_eq!(owner.refusal(&Advert::parse(&bytes).expect("header")), Some(Refusal::Signature));
        assert_eq!(owner.refusal(&owner.own(Kind::Head, b"")), Some(Refusal::Content));
        assert_eq!(owner.refusal(&owner.own(Kind::Card, b"junk")), Some(Refusal::Content));
        let junk = owner.own(Kind::Card, &owner.card(b"junk".to_vec()));
        assert_eq!(owner.refusal(&junk), Some(Refusal::Certificate));
        let other = NodeId::from_bytes([7; 16]);
        let lent = owner.advert(mesh, other, Kind::Card, &owner.card(owner.der.clone())).expect("fits");
        assert_eq!(owner.refusal(&lent), Some(Refusal::Certificate));
    }

    #[test]
    fn a_stolen_certificate_is_worth_nothing_without_its_key() {
        let (owner, thief) = (Owner::new(), Key::new());
        let id = AdvertId {
            slot: Slot { node: owner.leaf.node, kind: Kind::Card, k: 0 },
            version: Version { epoch: 9, seq: 9 },
        };
        let header = Header { mesh: owner.authority.mesh, id };
        let body = owner.card(owner.der.clone());
        let advert = Advert::build(header, &body, |bytes| thief.sign(bytes)).expect("fits");
        assert_eq!(owner.refusal(&advert), Some(Refusal::Signature));
    }

    #[test]
    fn one_bad_record_quarantines_its_fragment() {
        let owner = Owner::new();
        let good = record("orders", "n0").encode().expect("fits");
        let entries = vec![(SERVICE_ENTRY, good), (SERVICE_ENTRY, b"junk".to_vec())];
        let body = Fragment { entries }.encode().expect("fits");
        let advert = owner.own(Kind::Records, &body);
        assert!(matches!(owner.judge(&advert), Verdict::Take(Content::Records(Err(_)))));
    }
}
