//! Findings about nodes: what is wrong with one, for as long as it is.
//!
//! Owns: who is named, for what, since when. Must not know: how it is found out, how it is shown.
//! Driven by: membership, catalog (they name and clear); the local API (lists).
//!
//! Whoever holds the [`EventLog`](super::EventLog) reaches them by `events.findings()`. An event says that
//! something happened; a finding stays in `gossamer status` until it is cleared:
//!
//! ```text
//! events.findings().name(accuser, What::FalseClaims { refuted: 5 }, clock::wall());
//! events.findings().name(node, What::RunsTwice { at: Some(other) }, clock::wall());
//! events.findings().clear(node, &What::RunsTwice { at: None });
//! ```

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use gossamer_core::reach::Denied;
use gossamer_wire::{NodeId, NodeName};

/// What is wrong with a node. Its data may change while the finding stays the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It claims that living members are down; others have answered meanwhile.
    FalseClaims {
        /// Claims that were refuted.
        refuted: u32,
    },
    /// Two processes run with its identity. When it is this node, this process serves no more.
    RunsTwice {
        /// Where the other one is, when that is known.
        at: Option<SocketAddr>,
    },
    /// It has the name and the group of another live member.
    SameName {
        /// The other one.
        other: NodeId,
    },
    /// It asks over and over for services that it may not call or that are not here.
    Searches {
        /// Its name, as certified: its card may not be here.
        name: NodeName,
    },
    /// It says, as a relay, that it leads to a node, and leads to somebody else or nowhere.
    LeadsAstray {
        /// The node that was meant the last time.
        node: NodeId,
        /// How often in a row.
        times: u32,
    },
    /// Its card holds addresses that are never dialled.
    DeniedAddresses {
        /// One of them, and why.
        first: (SocketAddr, Denied),
        /// How many there are.
        count: usize,
    },
}

/// A finding as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The node.
    pub who: NodeId,
    /// What is wrong with it.
    pub what: What,
    /// Since when, seconds since the Unix epoch.
    pub since: u64,
}

/// All findings about nodes, at most 256. Clones are handles to the same ones.
#[derive(Clone, Debug, Default)]
pub struct Findings(Arc<Mutex<Vec<Named>>>);

/// Most findings kept. A mesh with more has one cause behind them; the first ones are the ones to look at.
const MAX_NAMED: usize = 256;

impl Findings {
    /// Names a node. Naming it again for the same thing updates the data and keeps the first `since` (Unix
    /// seconds). Returns whether it is new, which is when an event is worth a line. Never blocks.
    pub fn name(&self, who: NodeId, what: What, since: u64) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter_mut().find(|known| known.is(who, &what)) {
            known.what = what;
            return false;
        }
        let has_room = all.len() < MAX_NAMED;
        if has_room {
            all.push(Named { who, what, since });
        }
        has_room
    }

    /// Takes a finding back, whatever its data. Returns whether there was one.
    pub fn clear(&self, who: NodeId, what: &What) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        all.retain(|known| !known.is(who, what));
        all.len() < before
    }

    /// Returns all findings, oldest first.
    pub fn all(&self) -> Vec<Named> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.sort_by_key(|named| named.since);
        all
    }

    /// Counts findings by their word.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let mut counts: BTreeMap<_, u64> =
            ["denied_addresses", "false_claims", "leads_astray", "runs_twice", "same_name", "searches"]
                .map(|word| (word, 0))
                .into();
        for named in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            *counts.entry(named.what.word()).or_default() += 1;
        }
        counts.into_iter().collect()
    }
}

impl Named {
    fn is(&self, who: NodeId, what: &What) -> bool {
        self.who == who && self.what.kind() == what.kind()
    }
}

impl What {
    /// Returns its word in metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::FalseClaims { .. } => "false_claims",
            Self::RunsTwice { .. } => "runs_twice",
            Self::SameName { .. } => "same_name",
            Self::Searches { .. } => "searches",
            Self::LeadsAstray { .. } => "leads_astray",
            Self::DeniedAddresses { .. } => "denied_addresses",
        }
    }

    fn kind(&self) -> Discriminant<Self> {
        discriminant(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 16])
    }

    #[test]
    fn a_node_is_named_once_per_kind_and_keeps_its_first_time() {
        let findings = Findings::default();
        assert!(findings.name(node(1), What::FalseClaims { refuted: 5 }, 100));
        assert!(!findings.name(node(1), What::FalseClaims { refuted: 9 }, 200));
        assert!(findings.name(node(1), What::RunsTwice { at: None }, 50));
        let of = |what, since| Named { who: node(1), what, since };
        let expected = [of(What::RunsTwice { at: None }, 50), of(What::FalseClaims { refuted: 9 }, 100)];
        assert_eq!(findings.all(), expected);
        let counts =
            [("false_claims", 1), ("leads_astray", 0), ("runs_twice", 1), ("same_name", 0), ("searches", 0)];
        let counts = [[("denied_addresses", 0)].as_slice(), &counts].concat();
        assert_eq!(findings.counts(), counts);
    }

    #[test]
    fn a_finding_stays_until_it_is_cleared() {
        let findings = Findings::default();
        findings.name(node(1), What::SameName { other: node(2) }, 1);
        assert!(!findings.clear(node(2), &What::SameName { other: node(1) }));
        assert!(findings.clear(node(1), &What::SameName { other: node(9) }));
        assert!(findings.all().is_empty());
    }

    #[test]
    fn a_mesh_full_of_faults_fills_a_bounded_list() {
        let findings = Findings::default();
        for number in 0..1_000_u16 {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&number.to_be_bytes());
            findings.name(NodeId::from_bytes(id), What::FalseClaims { refuted: 1 }, u64::from(number));
        }
        assert_eq!((findings.all().len(), findings.all()[0].since), (MAX_NAMED, 0));
    }
}
