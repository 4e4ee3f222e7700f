//! Addresses of cards that are never dialled: dropped before anything of a card is shown or used.
//!
//! Owns: which these are, by node. Must not know: why an address is denied. Driven by: `accept`, for each card.
//!
//! The card itself is stored and passed on as it is, or root hashes would differ between nodes with different pools.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use gossamer_wire::NodeId;

use super::receive::Content;
use super::{Catalog, CatalogEvent};
use crate::reach::{Denied, Deny};

/// An address and why it is dropped.
type Dropped = (SocketAddr, Denied);

/// What was dropped, of nodes of whose cards anything was: at most eight addresses of each node whose card is held.
#[derive(Debug, Default)]
pub(super) struct Book(BTreeMap<NodeId, Vec<Dropped>>);

impl Book {
    pub(super) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// Takes what was dropped of a node's newest card. Returns whether that is news worth a line.
    fn replace(&mut self, node: NodeId, dropped: Vec<Dropped>) -> bool {
        if dropped.is_empty() {
            self.0.remove(&node);
            return false;
        }
        self.0.insert(node, dropped.clone()) != Some(dropped)
    }
}

/// Takes the denied addresses out of a card.
pub(super) fn take_denied(content: &mut Content, deny: &Deny) -> Vec<Dropped> {
    let Content::Card(card) = content else { return Vec::new() };
    let (good, mut denied) = deny.part(std::mem::take(&mut card.0.addresses));
    card.0.addresses = good;
    // Names are judged when they are resolved.
    card.0.lanes.retain(|lane| {
        let verdict = lane.literal().and_then(|at| Some((at, deny.check(at).err()?)));
        denied.extend(verdict);
        verdict.is_none()
    });
    denied
}

impl Catalog {
    /// Counts and names what was dropped of a card that was taken.
    pub(super) fn note_denied(&mut self, node: NodeId, dropped: Vec<Dropped>) {
        for (_, why) in &dropped {
            *self.counters.addresses_denied.entry(*why).or_default() += 1;
        }
        if self.denied.replace(node, dropped.clone()) {
            self.event(CatalogEvent::AddressesDenied { node, addresses: dropped });
        }
    }

    /// Returns the addresses of a node's card that are never dialled, each with the reason.
    pub fn denied_addresses(&self, node: NodeId) -> &[(SocketAddr, Denied)] {
        self.denied.0.get(&node).map_or(&[], Vec::as_slice)
    }
}
