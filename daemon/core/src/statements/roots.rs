//! Which roots a mesh has, from what its roots say of each other.
//!
//! Owns: the order in which roots are looked at, and where the words of a retired one end. Must not know: issuers,
//! evictions. Driven by: the set, after each change of what a root says.
//!
//! A root may add others, and may retire the one it was added by, or one before that: it follows them. Each root's
//! statements are read by number, and a root it adds is read at once, with all it says. So who was added earlier has
//! the say: a thief of a key that was retired at some number adds nothing above it, and whom the thief added before
//! cannot undo what was added before that.

use std::collections::BTreeMap;

use gossamer_wire::NodeId;
use gossamer_wire::limits::MAX_ROOTS;
use gossamer_wire::statement::Change;

use super::log::Log;
use crate::trust::{RootFacts, read_root};

/// The roots of a mesh.
#[derive(Clone, Debug, Default)]
pub(super) struct Roots {
    /// In the order in which they were added, retired ones as well.
    all: Vec<Root>,
}

#[derive(Clone, Debug)]
struct Root {
    facts: RootFacts,
    /// Its statements below this number count; all while it is not retired.
    limit: Option<u64>,
}

/// Who is retired, and from which number on.
type Retirement = (NodeId, u64);

impl Roots {
    /// Reads what the first roots of a mesh and those they added say.
    pub(super) fn of(first: &[RootFacts], logs: &BTreeMap<NodeId, Log>) -> Self {
        let mut roots = Self::default();
        for root in first {
            roots.read(root, logs);
        }
        roots
    }

    /// Returns whether the key is, or was, a root's.
    pub(super) fn contains(&self, root: NodeId) -> bool {
        self.find(root).is_some()
    }

    pub(super) fn is_active(&self, root: NodeId) -> bool {
        self.find(root).is_some_and(|root| root.limit.is_none())
    }

    pub(super) fn public_key(&self, root: NodeId) -> Option<&[u8; 32]> {
        self.find(root).map(|root| &root.facts.public_key)
    }

    /// Returns below which number statements of a root are stored.
    pub(super) fn limit(&self, root: NodeId) -> u64 {
        self.find(root).map_or(0, |root| root.limit.unwrap_or(u64::MAX))
    }

    pub(super) fn active(&self) -> impl Iterator<Item = &RootFacts> {
        self.all.iter().filter(|root| root.limit.is_none()).map(|root| &root.facts)
    }

    pub(super) fn retired(&self) -> impl Iterator<Item = &RootFacts> {
        self.all.iter().filter(|root| root.limit.is_some()).map(|root| &root.facts)
    }

    fn find(&self, root: NodeId) -> Option<&Root> {
        self.all.iter().find(|known| known.facts.id == root)
    }

    /// Reads a root and those it added; returns whom they retire.
    fn read(&mut self, facts: &RootFacts, logs: &BTreeMap<NodeId, Log>) -> Vec<Retirement> {
        if self.contains(facts.id) || self.all.len() >= MAX_ROOTS {
            return Vec::new();
        }
        let at = self.all.len();
        self.all.push(Root { facts: facts.clone(), limit: None });
        let (mut limit, mut retired) = (None, Vec::new());
        for signed in logs.get(&facts.id).into_iter().flat_map(Log::counting) {
            let number = signed.statement().number;
            if limit.is_some_and(|limit| number >= limit) {
                break;
            }
            match &signed.statement().change {
                Change::AddRoot(certificate) => {
                    let Ok(added) = read_root(certificate) else { continue };
                    for (root, numbers) in self.read(&added, logs) {
                        if root == facts.id {
                            // What added the root that says so stays, whatever it says.
                            let numbers = numbers.max(number + 1);
                            limit = Some(limit.map_or(numbers, |limit: u64| limit.min(numbers)));
                        } else {
                            retired.push((root, numbers));
                        }
                    }
                }
                Change::RetireRoot { root, numbers } => retired.push((*root, *numbers)),
                // Read when the roots are known.
                Change::Evict(_)
                | Change::AddIssuer(_)
                | Change::RemoveIssuer { .. }
                | Change::Grant { .. }
                | Change::RevokeToken(_) => {}
            }
        }
        if let Some(root) = self.all.get_mut(at) {
            root.limit = limit;
        }
        retired
    }
}
