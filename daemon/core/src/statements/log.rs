//! The statements of one author.
//!
//! Owns: which are kept when two have one number. Must not know: who the author is, what its statements say.
//! Driven by: the set.
//!
//! What is kept of a union is what is kept of the union of what is kept: a number with two statements stays one
//! with two, and the two smallest ids of a union are among the two smallest of each part.

use std::collections::{BTreeMap, BTreeSet};

use gossamer_wire::statement::{ShortId, SignedStatement, short};

/// SHA-256 of a statement's bytes.
pub(super) type Id = [u8; 32];

/// Statements kept of a number that was used for several: two are proof of any number of them.
const PROOF: usize = 2;

/// Statements by number, up to the first number that has two.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(BTreeMap<u64, BTreeMap<Id, SignedStatement>>);

impl Log {
    /// Puts a statement in, with what that means for the others.
    pub(super) fn put(&mut self, id: Id, signed: SignedStatement) {
        let number = signed.statement().number;
        if self.conflict().is_some_and(|conflict| number > conflict) {
            return;
        }
        let same = self.0.entry(number).or_default();
        same.insert(id, signed);
        if same.len() > PROOF {
            same.pop_last();
        }
        if same.len() > 1 {
            self.0.retain(|other, _| *other <= number);
        }
    }

    /// Drops what has this number or a greater one.
    pub(super) fn cut(&mut self, limit: u64) {
        self.0.split_off(&limit);
    }

    /// Drops everything but these statements.
    pub(super) fn keep(&mut self, keep: &BTreeSet<ShortId>) {
        for same in self.0.values_mut() {
            same.retain(|id, _| keep.contains(&short(id)));
        }
        self.0.retain(|_, same| !same.is_empty());
    }

    /// Returns the number that two statements have.
    pub(super) fn conflict(&self) -> Option<u64> {
        // Nothing is kept above it.
        let (number, same) = self.0.last_key_value()?;
        (same.len() > 1).then_some(*number)
    }

    /// Returns the number of numbers that are used up: one more than the greatest.
    pub(super) fn used(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(number, _)| number.saturating_add(1))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn find(&self, signed: &SignedStatement) -> Option<&SignedStatement> {
        self.0.get(&signed.statement().number)?.get(&signed.id())
    }

    /// Returns every statement, by number.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Id, &SignedStatement)> {
        self.0.values().flatten()
    }

    /// Returns the statements that count.
    pub(super) fn counting(&self) -> impl Iterator<Item = &SignedStatement> {
        self.0.values().filter(|same| same.len() == 1).flat_map(BTreeMap::values)
    }
}
