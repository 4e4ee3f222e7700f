//! What follows from a set of statements.
//!
//! Owns: the authority roots give, and the outcome readers act on. Must not know: which statements are stored.
//! Driven by: the set, after each change of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gossamer_wire::limits::NUMBERS_PER_AUTHOR;
use gossamer_wire::statement::{Change, SignedStatement};
use gossamer_wire::{NodeId, TokenId};

use super::log::Log;
use super::roots::Roots;
use crate::trust::{IssuerFacts, RootFacts, read_issuer};

/// What follows from a set of statements. Equal sets of one mesh, equal standing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Roots that none retired, in the order in which they were added.
    pub roots: Vec<RootFacts>,
    /// Roots that were retired.
    pub retired: Vec<RootFacts>,
    /// Issuers that roots added and none removed, by id, as far as a root is left that signed one of their certificates.
    pub issuers: BTreeMap<NodeId, Issuer>,
    /// Nodes that are out, for ever.
    pub evicted: Arc<BTreeSet<NodeId>>,
    /// Tokens that admit nobody any more.
    pub revoked: Arc<BTreeSet<TokenId>>,
    /// Removed issuers, each with the nodes for which leaves it issued still count.
    pub removed: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Authors, issuers and roots alike, whose powers ended with two statements of one number.
    pub conflicted: BTreeSet<NodeId>,
}

/// An issuer in office.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// What its newest certificate says.
    pub facts: IssuerFacts,
    /// Its other certificates (DER), newest first: leaves that ended before the newest one began need them.
    pub older: Vec<Vec<u8>>,
    /// Roots, not retired, that signed one of its certificates.
    pub roots: BTreeSet<NodeId>,
    /// The newest that each retired root signed (DER), for nodes that have not heard of its end.
    pub of_retired: Vec<Vec<u8>>,
    /// Its statements must have numbers below this one.
    pub budget: u64,
    /// Numbers below this one are used up.
    pub used: u64,
}

impl Issuer {
    /// Returns the first second of its first certificate, since the Unix epoch.
    pub fn since(&self) -> Option<u64> {
        let others = self.older.iter().chain(&self.of_retired).filter_map(|der| read_issuer(der).ok());
        others.map(|facts| facts.not_before).chain([self.facts.not_before]).min()
    }
}

/// What the counting statements of roots say of issuers.
#[derive(Clone, Debug, Default)]
pub(super) struct Authority {
    /// Certificates of each issuer with the root that signed it, newest first, at least one.
    certificates: BTreeMap<NodeId, Vec<(IssuerFacts, NodeId)>>,
    granted: BTreeMap<NodeId, u64>,
    removals: BTreeMap<NodeId, Removal>,
}

#[derive(Clone, Debug)]
struct Removal {
    numbers: u64,
    keep: BTreeSet<NodeId>,
}

impl Authority {
    pub(super) fn of<'a>(of_roots: impl Iterator<Item = &'a SignedStatement>) -> Self {
        let mut authority = Self::default();
        for signed in of_roots {
            let statement = signed.statement();
            match &statement.change {
                Change::AddIssuer(certificate) => authority.add(certificate, statement.author),
                Change::RemoveIssuer { issuer, numbers, keep } => authority.remove(*issuer, *numbers, keep),
                Change::Grant { author, numbers } => {
                    let granted = authority.granted.entry(*author).or_default();
                    *granted = (*granted).max(*numbers);
                }
                // What is said of roots is read before.
                Change::Evict(_)
                | Change::AddRoot(_)
                | Change::RetireRoot { .. }
                | Change::RevokeToken(_) => {}
            }
        }
        for certificates in authority.certificates.values_mut() {
            certificates.sort_by(|(one, _), (other, _)| other.age().cmp(&one.age()));
            certificates.dedup();
        }
        authority
    }

    /// Returns the key of an issuer, also of a removed one.
    pub(super) fn public_key(&self, issuer: NodeId) -> Option<&[u8; 32]> {
        self.certificates.get(&issuer)?.first().map(|(facts, _)| &facts.public_key)
    }

    /// Returns below which number statements of an issuer must stay, removal aside.
    pub(super) fn budget(&self, issuer: NodeId) -> Option<u64> {
        let granted = self.granted.get(&issuer).copied().unwrap_or_default();
        self.certificates.contains_key(&issuer).then(|| granted.max(NUMBERS_PER_AUTHOR))
    }

    /// Returns below which number statements of an issuer are stored.
    pub(super) fn limit(&self, issuer: NodeId) -> Option<u64> {
        let left = self.removals.get(&issuer).map_or(u64::MAX, |removal| removal.numbers);
        self.budget(issuer).map(|budget| budget.min(left))
    }

    pub(super) fn is_removed(&self, issuer: NodeId) -> bool {
        self.removals.contains_key(&issuer)
    }

    fn add(&mut self, certificate: &[u8], root: NodeId) {
        // Unreadable ones are not stored.
        if let Ok(facts) = read_issuer(certificate) {
            self.certificates.entry(facts.id).or_default().push((facts, root));
        }
    }

    fn remove(&mut self, issuer: NodeId, numbers: u64, keep: &[NodeId]) {
        let keep: BTreeSet<_> = keep.iter().copied().collect();
        self.removals
            .entry(issuer)
            .and_modify(|removal| {
                removal.numbers = removal.numbers.min(numbers);
                removal.keep.retain(|node| keep.contains(node));
            })
            .or_insert(Removal { numbers, keep });
    }
}

impl Standing {
    /// Returns the issuers that need a new certificate: half of the life of the newest one is over, where no life counts
    /// for longer than `lifetime` seconds. With a shorter life than before, what is left of the long one comes first, or
    /// the new certificate would not be the newest. `wall` is seconds since the Unix epoch.
    pub fn issuers_due(&self, wall: u64, lifetime: u64) -> impl Iterator<Item = &Issuer> {
        self.issuers.values().filter(move |issuer| {
            let facts = &issuer.facts;
            let life = facts.not_after.saturating_sub(facts.not_before).min(lifetime);
            facts.not_after.saturating_sub(wall) < life / 2
        })
    }

    pub(super) fn of(authority: &Authority, roots: &Roots, logs: &BTreeMap<NodeId, Log>) -> Self {
        let issuers = issuers(authority, roots, logs);
        let claims = issuers.values().filter_map(|issuer| issuer.facts.claims.as_ref());
        let holders: BTreeSet<NodeId> = claims.map(|claims| claims.node).collect();
        let mut evicted = BTreeSet::new();
        for (author, log) in logs {
            let is_root = roots.contains(*author);
            evicted.extend(log.counting().filter_map(|signed| match signed.statement().change {
                Change::Evict(node) => (is_root || !holders.contains(&node)).then_some(node),
                _ => None,
            }));
        }
        let counting = logs.values().flat_map(Log::counting);
        let revoked = counting.filter_map(|signed| match signed.statement().change {
            Change::RevokeToken(token) => Some(token),
            _ => None,
        });
        let removed = authority.removals.iter().map(|(issuer, removal)| (*issuer, removal.keep.clone()));
        let conflicted = logs.iter().filter(|(_, log)| log.conflict().is_some());
        Self {
            roots: roots.active().cloned().collect(),
            retired: roots.retired().cloned().collect(),
            evicted: Arc::new(evicted),
            revoked: Arc::new(revoked.collect()),
            removed: removed.collect(),
            conflicted: conflicted.map(|(author, _)| *author).collect(),
            issuers,
        }
    }
}

fn issuers(authority: &Authority, roots: &Roots, logs: &BTreeMap<NodeId, Log>) -> BTreeMap<NodeId, Issuer> {
    let mut issuers = BTreeMap::new();
    for (id, certificates) in &authority.certificates {
        let (active, of_retired): (Vec<_>, Vec<_>) =
            certificates.iter().partition(|(_, root)| roots.is_active(*root));
        let Some(((facts, _), older)) = active.split_first() else { continue };
        if authority.is_removed(*id) {
            continue;
        }
        let mut seen = BTreeSet::new();
        let newest = of_retired.into_iter().filter(|(_, root)| seen.insert(*root));
        let issuer = Issuer {
            facts: facts.clone(),
            older: older.iter().map(|(facts, _)| facts.certificate.clone()).collect(),
            roots: active.iter().map(|(_, root)| *root).collect(),
            of_retired: newest.map(|(facts, _)| facts.certificate.clone()).collect(),
            budget: authority.budget(*id).unwrap_or(NUMBERS_PER_AUTHOR),
            used: logs.get(id).map_or(0, Log::used),
        };
        issuers.insert(*id, issuer);
    }
    issuers
}
