//! Placement: which fragment each own record stands in.
//!
//! Owns: the rule that a record stays in its fragment while it fits. Must not know: signatures, epochs, peers.
//! Driven by: `own`, which publishes the fragments a plan names, in the plan's order.

use std::collections::{BTreeMap, BTreeSet};

use gossamer_wire::advert::{Fragment, HEADER_BYTES, SERVICE_ENTRY, SIGNATURE_BYTES};
use gossamer_wire::limits::{MAX_ADVERT_BYTES, MAX_FRAGMENTS, MAX_RECORDS_PER_FRAGMENT};

use super::Key;

/// Bytes a fragment's body may have.
const CAPACITY: usize = MAX_ADVERT_BYTES - HEADER_BYTES - SIGNATURE_BYTES;

/// Own records by fragment, encoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Placement {
    fragments: Vec<BTreeMap<Key, Vec<u8>>>,
}

/// What to publish after a change, in this order, so that a record that moves is never absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Fragments that gained, changed or lost records for good.
    pub(super) first: BTreeSet<u16>,
    /// Fragments that a record left for one of the above.
    pub(super) last: BTreeSet<u16>,
    /// Records for which no fragment has room.
    pub(super) refused: Vec<Key>,
}

impl Placement {
    /// Puts a record where an earlier start of this node had published it.
    pub(super) fn restore(&mut self, k: u16, key: Key, bytes: Vec<u8>) {
        let k = usize::from(k.min(MAX_FRAGMENTS - 1));
        if self.fragments.len() <= k {
            self.fragments.resize_with(k + 1, BTreeMap::new);
        }
        if let Some(fragment) = self.fragments.get_mut(k)
            && has_room(fragment, bytes.len())
        {
            fragment.insert(key, bytes);
        }
    }

    /// Makes `records` the complete set: what is absent goes, what changed changes in place where it fits.
    pub(super) fn replace(&mut self, mut records: BTreeMap<Key, Vec<u8>>) -> Plan {
        let mut plan = Plan::default();
        let mut homeless = BTreeMap::new();
        for (k, fragment) in (0_u16..).zip(&mut self.fragments) {
            let before = fragment.len();
            fragment.retain(|key, _| records.contains_key(key));
            let mut is_changed = fragment.len() != before;
            let mut changed = Vec::new();
            for (key, bytes) in fragment.iter_mut() {
                let Some(record) = records.remove(key) else { continue };
                if *bytes != record {
                    *bytes = record;
                    changed.push(key.clone());
                }
            }
            is_changed |= !changed.is_empty();
            while used(fragment) > CAPACITY
                && let Some(key) = changed.pop()
                && let Some(bytes) = fragment.remove(&key)
            {
                homeless.insert(key, bytes);
                plan.last.insert(k);
            }
            if is_changed && !plan.last.contains(&k) {
                plan.first.insert(k);
            }
        }
        homeless.append(&mut records);
        for (key, bytes) in homeless {
            match self.room_for(bytes.len(), &plan.last) {
                Some((k, fragment)) => {
                    fragment.insert(key, bytes);
                    plan.first.insert(k);
                }
                None => plan.refused.push(key),
            }
        }
        plan
    }

    /// Drops empty fragments at the end. Only at the start of an epoch: within one, the count never shrinks.
    pub(super) fn trim(&mut self) {
        while self.fragments.last().is_some_and(BTreeMap::is_empty) {
            self.fragments.pop();
        }
    }

    /// Returns how many fragments there are.
    pub(super) fn count(&self) -> u16 {
        u16::try_from(self.fragments.len()).unwrap_or(MAX_FRAGMENTS)
    }

    /// Returns one fragment as it is published.
    pub(super) fn fragment(&self, k: u16) -> Fragment {
        let records = self.fragments.get(usize::from(k));
        let entries =
            records.into_iter().flat_map(BTreeMap::values).map(|bytes| (SERVICE_ENTRY, bytes.clone()));
        Fragment { entries: entries.collect() }
    }

    /// Finds the first fragment with room, or makes one. A fragment that records leave takes none.
    fn room_for(
        &mut self,
        len: usize,
        leaving: &BTreeSet<u16>,
    ) -> Option<(u16, &mut BTreeMap<Key, Vec<u8>>)> {
        let found = (0_u16..).zip(&self.fragments).find(|(k, f)| !leaving.contains(k) && has_room(f, len));
        let k = match found {
            Some((k, _)) => k,
            None if self.count() < MAX_FRAGMENTS && has_room(&BTreeMap::new(), len) => {
                self.fragments.push(BTreeMap::new());
                self.count() - 1
            }
            None => return None,
        };
        self.fragments.get_mut(usize::from(k)).map(|fragment| (k, fragment))
    }
}

fn has_room(fragment: &BTreeMap<Key, Vec<u8>>, len: usize) -> bool {
    fragment.len() < MAX_RECORDS_PER_FRAGMENT && used(fragment) + entry_bytes(len) <= CAPACITY
}

/// Bytes of the fragment's body: one for the count, then the entries.
fn used(fragment: &BTreeMap<Key, Vec<u8>>) -> usize {
    1 + fragment.values().map(|bytes| entry_bytes(bytes.len())).sum::<usize>()
}

/// Bytes of an entry: kind, length (one byte to 250, else three), content.
const fn entry_bytes(len: usize) -> usize {
    1 + if len <= 250 { 1 } else { 3 } + len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: usize) -> Key {
        ("web".parse().expect("name"), format!("i{number:03}").parse().expect("name"))
    }

    fn table(lens: &[(usize, usize)]) -> BTreeMap<Key, Vec<u8>> {
        lens.iter().map(|&(number, len)| (key(number), vec![7; len])).collect()
    }

    fn home(placement: &Placement, number: usize) -> Option<usize> {
        placement.fragments.iter().position(|fragment| fragment.contains_key(&key(number)))
    }

    #[test]
    fn a_change_that_fits_stays_in_its_fragment() {
        let mut placement = Placement::default();
        placement.replace(table(&[(1, 400), (2, 400), (3, 400)]));
        assert_eq!((home(&placement, 1), home(&placement, 3)), (Some(0), Some(1)));
        let plan = placement.replace(table(&[(1, 420), (2, 400), (3, 400)]));
        assert_eq!(plan, Plan { first: [0].into(), ..Plan::default() });
        assert_eq!(home(&placement, 1), Some(0));
    }

    #[test]
    fn a_record_that_outgrows_its_fragment_is_published_elsewhere_before_it_leaves() {
        let mut placement = Placement::default();
        placement.replace(table(&[(1, 400), (2, 400), (3, 400)]));
        let plan = placement.replace(table(&[(1, 400), (2, 700), (3, 200)]));
        assert_eq!(home(&placement, 2), Some(1));
        assert_eq!(plan, Plan { first: [1].into(), last: [0].into(), refused: vec![] });
    }

    #[test]
    fn two_records_that_outgrow_their_fragments_do_not_swap() {
        let mut placement = Placement::default();
        placement.replace(table(&[(1, 450), (2, 450), (3, 450), (4, 450)]));
        let plan = placement.replace(table(&[(1, 450), (2, 600), (3, 450), (4, 600)]));
        assert_eq!(plan.last, [0, 1].into());
        assert_eq!((home(&placement, 2), home(&placement, 4)), (Some(2), Some(3)));
    }

    #[test]
    fn an_emptied_fragment_stays_until_the_next_epoch() {
        let mut placement = Placement::default();
        placement.replace(table(&[(1, 900), (2, 900)]));
        let plan = placement.replace(table(&[(1, 900)]));
        assert_eq!((plan.first, placement.count()), ([1].into(), 2));
        assert!(placement.fragment(1).entries.is_empty());
        placement.trim();
        assert_eq!(placement.count(), 1);
    }

    #[test]
    fn what_no_fragment_can_hold_is_named() {
        let mut placement = Placement::default();
        let lens: Vec<_> = (0..=usize::from(MAX_FRAGMENTS)).map(|number| (number, 900)).collect();
        let plan = placement.replace(table(&lens));
        assert_eq!(plan.refused, [key(usize::from(MAX_FRAGMENTS))]);
        assert_eq!(placement.count(), MAX_FRAGMENTS);
        assert_eq!(placement.replace(table(&[(1, 2_000)])).refused, [key(1)]);
    }

    proptest! {
        /// After each change every record stands in exactly one fragment, each fragment encodes, and a
        /// record that left one was published in another first.
        #[test]
        fn any_sequence_of_tables_is_placed_whole(
            tables in prop::collection::vec(prop::collection::btree_map(0_usize..40, 60_usize..900, 0..30), 1..12),
        ) {
            let mut placement = Placement::default();
            for lens in tables {
                let lens: Vec<_> = lens.into_iter().collect();
                let wanted = table(&lens);
                let before = placement.clone();
                let plan = placement.replace(wanted.clone());
                prop_assert!(plan.refused.is_empty() && plan.first.is_disjoint(&plan.last));
                for &(number, _) in &lens {
                    prop_assert_eq!(placement.fragments.iter().filter(|f| f.contains_key(&key(number))).count(), 1);
                    let (old, new) = (home(&before, number), home(&placement, number));
                    if let (Some(old), Some(new)) = (old, new) && old != new {
                        prop_assert!(plan.last.contains(&(old as u16)) && plan.first.contains(&(new as u16)));
                    }
                }
                let placed: usize = placement.fragments.iter().map(BTreeMap::len).sum();
                prop_assert_eq!(placed, wanted.len());
                for k in 0..placement.count() {
                    prop_assert_eq!(placement.fragment(k).encode().expect("fits").len(), used(&placement.fragments[usize::from(k)]));
                }
            }
        }
    }
}
