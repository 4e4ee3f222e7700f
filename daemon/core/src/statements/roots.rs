//! Which roots a mesh has, from what its roots say of each other.
//!
//! Owns: the order in which roots are looked at, and which words of a retired one count. Must not know: issuers,
//! evictions. Driven by: the set, after each change of what a root says.
//!
//! A root may add others, and may retire the one it was added by, or one before that: it follows them. Each root's
//! statements are read by number, and a root it adds is read at once, with all it says. So who was added earlier has
//! the say. A retirement names the statements of the root that count, one by one: numbers would not do, for a thief of
//! its key signs a second statement under an old number as well, and so would void what came after it.

use std::collections::{BTreeMap, BTreeSet};

use gossamer_wire::NodeId;
use gossamer_wire::limits::MAX_ROOTS;
use gossamer_wire::statement::{Change, ShortId, SignedStatement};

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
    /// Its only statements that count; all while it is not retired.
    keep: Option<BTreeSet<ShortId>>,
}

/// Which statements count, by retired root.
type Kept = BTreeMap<NodeId, BTreeSet<ShortId>>;

/// Rounds of reading: a retirement may drop the statement that added another root, which is then read without it.
const ROUNDS: usize = 4;

impl Roots {
    /// Reads what the first roots of a mesh and those they added say.
    pub(super) fn of(first: &[RootFacts], logs: &BTreeMap<NodeId, Log>) -> Self {
        let (mut roots, mut kept) = (Self::default(), Kept::new());
        for _ in 0..ROUNDS {
            roots = Self::default();
            for root in first {
                roots.read(root, logs, &kept);
            }
            let now = roots.kept();
            if now == kept {
                break;
            }
            kept = now;
        }
        roots
    }

    /// Returns whether the key is, or was, a root's.
    pub(super) fn contains(&self, root: NodeId) -> bool {
        self.find(root).is_some()
    }

    pub(super) fn is_active(&self, root: NodeId) -> bool {
        self.find(root).is_some_and(|root| root.keep.is_none())
    }

    pub(super) fn public_key(&self, root: NodeId) -> Option<&[u8; 32]> {
        self.find(root).map(|root| &root.facts.public_key)
    }

    /// Returns the only statements of a root that count, when it is retired.
    pub(super) fn keep(&self, root: NodeId) -> Option<&BTreeSet<ShortId>> {
        self.find(root)?.keep.as_ref()
    }

    pub(super) fn active(&self) -> impl Iterator<Item = &RootFacts> {
        self.all.iter().filter(|root| root.keep.is_none()).map(|root| &root.facts)
    }

    pub(super) fn retired(&self) -> impl Iterator<Item = &RootFacts> {
        self.all.iter().filter(|root| root.keep.is_some()).map(|root| &root.facts)
    }

    fn find(&self, root: NodeId) -> Option<&Root> {
        self.all.iter().find(|known| known.facts.id == root)
    }

    fn kept(&self) -> Kept {
        self.all.iter().filter_map(|root| Some((root.facts.id, root.keep.clone()?))).collect()
    }

    /// Reads a root and those it added, without what did not count in the round before; returns whom they retire.
    fn read(&mut self, facts: &RootFacts, logs: &BTreeMap<NodeId, Log>, kept: &Kept) -> Kept {
        let mut retired = Kept::new();
        if self.contains(facts.id) || self.all.len() >= MAX_ROOTS {
            return retired;
        }
        let at = self.all.len();
        self.all.push(Root { facts: facts.clone(), keep: None });
        let (mut keep, mut added) = (None, BTreeSet::new());
        let is_kept = |keep: Option<&BTreeSet<ShortId>>, signed: &SignedStatement| {
            keep.is_none_or(|keep| keep.contains(&signed.short_id()))
        };
        for signed in logs.get(&facts.id).into_iter().flat_map(Log::counting) {
            if !is_kept(kept.get(&facts.id), signed) || !is_kept(keep.as_ref(), signed) {
                continue;
            }
            match &signed.statement().change {
                Change::AddRoot(certificate) => {
                    let Ok(root) = read_root(certificate) else { continue };
                    let before = self.all.len();
                    let said = self.read(&root, logs, kept);
                    if self.all.len() > before {
                        added.insert(signed.short_id());
                    }
                    for (root, list) in said {
                        if root == facts.id {
                            // What added the root that says so stays, and what added others before.
                            let list = list.union(&added).copied().collect();
                            keep = Some(narrowed(keep, list));
                        } else {
                            retire(&mut retired, root, list);
                        }
                    }
                }
                Change::RetireRoot { root, keep } => {
                    retire(&mut retired, *root, keep.iter().copied().collect());
                }
                // Read when the roots are known.
                Change::Evict(_)
                | Change::AddIssuer(_)
                | Change::RemoveIssuer { .. }
                | Change::Grant { .. }
                | Change::RevokeToken(_) => {}
            }
        }
        if let Some(root) = self.all.get_mut(at) {
            root.keep = keep;
        }
        retired
    }
}

fn retire(retired: &mut Kept, root: NodeId, list: BTreeSet<ShortId>) {
    let list = narrowed(retired.remove(&root), list);
    retired.insert(root, list);
}

/// Returns what several retirements keep of one root.
fn narrowed(keep: Option<BTreeSet<ShortId>>, list: BTreeSet<ShortId>) -> BTreeSet<ShortId> {
    match keep {
        Some(keep) => keep.intersection(&list).copied().collect(),
        None => list,
    }
}
