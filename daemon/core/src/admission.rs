//! Who may join: a token judged against the clock and the ledger of its uses.
//!
//! Owns: the ledger and the decision. Must not know: sockets, files, certificates.
//! Driven by: the issuer (daemon), which writes the ledger durably before it answers.
//!
//! Single use is exact because one issuer keeps the ledger, and idempotent per key so that a cut connection
//! never bricks a joiner (ADR 6).

mod seats;
mod tries;

use std::collections::BTreeMap;

use gossamer_wire::join::Refusal;
use gossamer_wire::token::{Grant, pattern_matches};
use gossamer_wire::{MeshId, NodeId, NodeName, TokenId};

pub use seats::{Seat, Seating, Seats};
pub use tries::Tries;

/// One use of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The node that joined.
    pub node: NodeId,
    /// The name it took.
    pub name: NodeName,
    /// When, seconds since the Unix epoch.
    pub at: u64,
}

/// Every token this issuer has seen used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    uses: BTreeMap<TokenId, Vec<Use>>,
}

/// What to do with a request that is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write this use durably, then admit.
    New,
    /// The same key again: admit, nothing to write.
    Repeat,
}

/// A request as the issuer sees it, proofs already checked.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What the token grants.
    pub grant: &'a Grant,
    /// Whether the key of the issuer it names signed the token.
    pub is_signed: bool,
    /// Whether it was revoked, here or everywhere.
    pub is_revoked: bool,
    /// The joiner.
    pub node: NodeId,
    /// The name it wants.
    pub name: &'a NodeName,
    /// Whether another live node of the group has that name.
    pub name_taken: bool,
}

impl Ledger {
    /// Makes a ledger from what was stored.
    pub fn restore(uses: impl IntoIterator<Item = (TokenId, Use)>) -> Self {
        let mut ledger = Self::default();
        for (token, entry) in uses {
            ledger.uses.entry(token).or_default().push(entry);
        }
        ledger
    }

    /// Judges a request at issuer `me` of `mesh` at `wall` seconds. Changes nothing. A token of several uses is good at
    /// every issuer and each counts for itself: with n issuers it admits at most n times its uses.
    ///
    /// # Errors
    /// The reason to tell the joiner.
    pub fn judge(
        &self,
        me: NodeId,
        mesh: MeshId,
        request: Request<'_>,
        wall: u64,
    ) -> Result<Verdict, Refusal> {
        let Request { grant, is_signed, is_revoked, node, name, name_taken } = request;
        if grant.mesh != mesh {
            return Err(Refusal::Foreign);
        }
        if grant.bound_to().is_some_and(|issuer| issuer != me) {
            return Err(Refusal::OtherIssuer);
        }
        if !is_signed {
            return Err(Refusal::Foreign);
        }
        if is_revoked {
            return Err(Refusal::Revoked);
        }
        if wall > grant.not_after {
            return Err(Refusal::Expired);
        }
        if grant.node_pattern.as_deref().is_some_and(|pattern| !pattern_matches(pattern, name.as_str())) {
            return Err(Refusal::Name);
        }
        let uses = self.uses(grant.id);
        if uses.iter().any(|entry| entry.node == node) {
            return Ok(Verdict::Repeat);
        }
        if grant.uses != 0 && uses.len() >= grant.uses as usize {
            return Err(Refusal::Used);
        }
        if name_taken {
            return Err(Refusal::NameTaken);
        }
        Ok(Verdict::New)
    }

    /// Records a use that has been written durably.
    pub fn record(&mut self, token: TokenId, entry: Use) {
        self.uses.entry(token).or_default().push(entry);
    }

    /// Returns the uses of a token, oldest first.
    pub fn uses(&self, token: TokenId) -> &[Use] {
        self.uses.get(&token).map_or(&[], Vec::as_slice)
    }

    /// Returns all uses, by token.
    pub fn all(&self) -> impl Iterator<Item = (TokenId, &Use)> {
        self.uses.iter().flat_map(|(token, uses)| uses.iter().map(|entry| (*token, entry)))
    }
}

#[cfg(test)]
mod tests {
    use gossamer_wire::token::Claims;

    use super::*;

    const MESH: MeshId = MeshId::from_bytes([1; 16]);
    const ISSUER: NodeId = NodeId::from_bytes([2; 16]);
    const NOW: u64 = 1_000;

    fn grant(uses: u32) -> Grant {
        Grant {
            mesh: MESH,
            root_pin: [0; 32],
            id: TokenId::from_bytes([3; 16]),
            issuer: ISSUER,
            not_after: NOW,
            uses,
            group: "west".parse().expect("name"),
            node_pattern: Some("web-*".to_owned()),
            claims: Claims::default(),
            addresses: Vec::new(),
            lanes: Vec::new(),
        }
    }

    fn joiner(key: u8) -> NodeId {
        NodeId::from_bytes([key; 16])
    }

    fn web_1() -> NodeName {
        "web-1".parse().expect("name")
    }

    fn judge(ledger: &Ledger, grant: &Grant, key: u8) -> Result<Verdict, Refusal> {
        let name = web_1();
        let request = Request {
            grant,
            is_signed: true,
            is_revoked: false,
            node: joiner(key),
            name: &name,
            name_taken: false,
        };
        ledger.judge(ISSUER, MESH, request, NOW)
    }

    fn used_by(key: u8) -> Ledger {
        Ledger::restore([(grant(1).id, Use { node: joiner(key), name: web_1(), at: NOW })])
    }

    #[test]
    fn a_fresh_token_admits_until_its_last_second() {
        assert_eq!(judge(&Ledger::default(), &grant(1), 9), Ok(Verdict::New));
        let late = Grant { not_after: NOW - 1, ..grant(1) };
        assert_eq!(judge(&Ledger::default(), &late, 9), Err(Refusal::Expired));
    }

    #[test]
    fn a_used_token_admits_the_same_key_again_and_no_other() {
        let ledger = used_by(9);
        assert_eq!(judge(&ledger, &grant(1), 9), Ok(Verdict::Repeat));
        assert_eq!(judge(&ledger, &grant(1), 8), Err(Refusal::Used));
        assert_eq!(judge(&ledger, &grant(2), 8), Ok(Verdict::New));
        assert_eq!(judge(&ledger, &grant(0), 8), Ok(Verdict::New));
    }

    #[test]
    fn tokens_of_others_are_refused_whatever_they_grant() {
        let ledger = Ledger::default();
        let name = "web-1".parse().expect("name");
        let forged = Request {
            grant: &grant(1),
            is_signed: false,
            is_revoked: false,
            node: joiner(9),
            name: &name,
            name_taken: false,
        };
        assert_eq!(ledger.judge(ISSUER, MESH, forged, NOW), Err(Refusal::Foreign));
        let elsewhere = Grant { issuer: joiner(7), ..grant(1) };
        assert_eq!(judge(&ledger, &elsewhere, 9), Err(Refusal::OtherIssuer));
        // One of several uses is good here as well.
        assert_eq!(judge(&ledger, &Grant { issuer: joiner(7), ..grant(2) }, 9), Ok(Verdict::New));
        let foreign = Grant { mesh: MeshId::from_bytes([9; 16]), ..grant(1) };
        assert_eq!(judge(&ledger, &foreign, 9), Err(Refusal::Foreign));
    }

    #[test]
    fn the_name_must_fit_the_pattern_and_be_free() {
        let ledger = Ledger::default();
        let (other, fitting) = ("db".parse().expect("name"), "web-1".parse().expect("name"));
        let grant = grant(1);
        let request = |name, name_taken| Request {
            grant: &grant,
            is_signed: true,
            is_revoked: false,
            node: joiner(9),
            name,
            name_taken,
        };
        assert_eq!(ledger.judge(ISSUER, MESH, request(&other, false), NOW), Err(Refusal::Name));
        assert_eq!(ledger.judge(ISSUER, MESH, request(&fitting, true), NOW), Err(Refusal::NameTaken));
    }

    #[test]
    fn a_ledger_survives_being_stored() {
        let mut ledger = used_by(9);
        ledger.record(grant(1).id, Use { node: joiner(8), name: "web-2".parse().expect("name"), at: 5 });
        let stored: Vec<_> = ledger.all().map(|(token, entry)| (token, entry.clone())).collect();
        assert_eq!(Ledger::restore(stored), ledger);
        assert_eq!(ledger.uses(grant(1).id).len(), 2);
    }
}
