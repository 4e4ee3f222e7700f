//! The judgement of one advert: every check between bytes from a peer and the store.
//!
//! Owns: header, signature, certificate and content checks, in that order. Must not know: what is stored, who
//! gave the advert. Driven by: `accept`; fuzzed.

use std::sync::Arc;

use gossamer_wire::advert::{Advert, Card, Fragment, Head, Kind};
use gossamer_wire::{DecodeError, ServiceRecord};

use crate::trust::{Leaf, TrustBundle, TrustError, signature_holds};

/// Why an advert was refused. It is not stored and not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// The giver's fault: the header does not parse, or a length breaks a limit.
    Header,
    /// The giver's fault: it belongs to another mesh.
    Mesh,
    /// The giver's fault: not signed by the node it names.
    Signature,
    /// The owner's fault: a card or a head whose content does not decode.
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
    if !signature_holds(&leaf.public_key, &advert.signed(), advert.signature()) {
        return Verdict::Refuse(Refusal::Signature);
    }
    if kind == Kind::Records {
        return Verdict::Take(Content::Records(records(advert)));
    }
    Head::decode(advert.body())
        .map_or(Verdict::Refuse(Refusal::Content), |head| Verdict::Take(Content::Head(head)))
}

/// Decodes the records of a fragment.
pub(super) fn records(advert: &Advert) -> Records {
    let fragment = Fragment::decode(advert.body())?;
    Ok(fragment.records()?.into_iter().map(Arc::new).collect())
}

fn judge_card(advert: &Advert, trust: &TrustBundle, wall: u64) -> Verdict {
    let Ok(card) = Card::decode(advert.body()) else { return Verdict::Refuse(Refusal::Content) };
    let leaf = match leaf_of(&card.leaf, trust, wall) {
        Ok(leaf) => leaf,
        Err(TrustError::Chain(_) | TrustError::NotYet(_)) => return Verdict::Hold,
        Err(_) => return Verdict::Refuse(Refusal::Certificate),
    };
    if leaf.node != advert.id().slot.node {
        return Verdict::Refuse(Refusal::Certificate);
    }
    if !signature_holds(&leaf.public_key, &advert.signed(), advert.signature()) {
        return Verdict::Refuse(Refusal::Signature);
    }
    Verdict::Take(Content::Card(Box::new((card, leaf))))
}

/// Verifies a leaf; one that has ended counts as at its end. Whether it is served is asked again at each use,
/// and every node must store the same cards, or their hashes differ for ever.
pub(super) fn leaf_of(der: &[u8], trust: &TrustBundle, wall: u64) -> Result<Leaf, TrustError> {
    match trust.verify(der, &[], wall) {
        Err(TrustError::Expired(ago)) => trust.verify(der, &[], wall.saturating_sub(ago)),
        verdict => verdict,
    }
}
