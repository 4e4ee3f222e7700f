//! Revisions: how a kept answer knows that what it was read from still stands.
//!
//! Owns: the counters. Must not know: what is counted, who keeps answers. Driven by: whoever changes what a
//! [`Directory`](crate::Directory) returns (`bump`, after readers can see the change), and by `kept`, which asks
//! at each hit.
//!
//! A subject has no counter of its own: it shares one of [`SLOTS`] with others, chosen by a seeded hash. So names
//! that do not exist have one too, nothing is ever removed, and a change costs one addition. What shares a
//! counter with a changed subject is read again for nothing, which is right and rare.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use gossamer_wire::{GroupName, NodeName, ServiceName};

/// What an answer can be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject<'a> {
    /// Everything about a service: its instances, their state, the VIPs of its names and whether they are blocked
    /// or listened on.
    Service(&'a ServiceName),
    /// Whether a group has services.
    Group(&'a GroupName),
    /// The addresses of the nodes of a name.
    Node(&'a NodeName),
    /// Which name a VIP stands for.
    Vip(Ipv4Addr),
    /// Which service holds which custom name: all of them together, for wildcards and rivals reach far.
    CustomNames,
}

/// Counters of changes. Clones are handles to the same counters.
#[derive(Clone)]
pub struct Revisions(Arc<Counters>);

struct Counters {
    hasher: RandomState,
    slots: Box<[AtomicU32]>,
}

/// The state of one subject at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Basis {
    slot: u32,
    seen: u32,
}

impl Default for Revisions {
    fn default() -> Self {
        let slots = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        Self(Arc::new(Counters { hasher: RandomState::new(), slots }))
    }
}

impl fmt::Debug for Revisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Revisions")
    }
}

impl Revisions {
    /// Ends the life of every answer read from `subject`. Call it when readers see the change, and before anybody
    /// is told of it: who has heard of the change then gets no older answer.
    pub fn bump(&self, subject: Subject<'_>) {
        if let Some(slot) = self.0.slots.get(self.slot(subject)) {
            slot.fetch_add(1, Ordering::Release);
        }
    }

    /// Notes the state of a subject that is about to be read.
    pub fn basis(&self, subject: Subject<'_>) -> Basis {
        let slot = self.slot(subject);
        Basis { slot: u32::try_from(slot).unwrap_or_default(), seen: self.seen(slot) }
    }

    /// Returns whether nothing was bumped since.
    pub fn is_current(&self, basis: Basis) -> bool {
        self.seen(basis.slot as usize) == basis.seen
    }

    fn seen(&self, slot: usize) -> u32 {
        self.0.slots.get(slot).map_or(0, |slot| slot.load(Ordering::Acquire))
    }

    fn slot(&self, subject: Subject<'_>) -> usize {
        // The remainder is below SLOTS.
        usize::try_from(self.0.hasher.hash_one(subject) % SLOTS).unwrap_or_default()
    }
}

/// Counters: 64 KiB. With 10,000 services a change touches about half another service.
const SLOTS: u64 = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_basis_is_current_until_its_subject_is_bumped() {
        let revisions = Revisions::default();
        let [orders, web]: [ServiceName; 2] = ["orders", "web"].map(|name| name.parse().expect("name"));
        let (of_orders, of_web) =
            (revisions.basis(Subject::Service(&orders)), revisions.basis(Subject::Service(&web)));
        assert!(revisions.is_current(of_orders));
        revisions.bump(Subject::Service(&orders));
        assert!(!revisions.is_current(of_orders));
        assert!(revisions.is_current(of_web) || of_web.slot == of_orders.slot);
        assert!(revisions.is_current(revisions.basis(Subject::Service(&orders))));
    }

    #[test]
    fn a_service_and_a_group_of_one_name_are_two_subjects() {
        let [service, group] = [Subject::Service(&"x".parse().expect("name")), Subject::Vip([0; 4].into())]
            .map(|subject| format!("{subject:?}"));
        assert_ne!(service, group);
    }
}
