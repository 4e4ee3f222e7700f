//! Evicted nodes: out as soon as the statement is heard, whatever is said of them later.
//!
//! Owns: who is evicted. Must not know: who may evict. Driven by: `Membership`, when the statements change.
//!
//! Their connections are closed, so no probe would tell: a node without a warm link is nobody's to probe. Every member
//! hears the same statements, so nothing about evicted nodes is taken from others either.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use gossamer_wire::NodeId;
use gossamer_wire::swim::{Identity, SwimMember, SwimState};

use super::codec::member_from_wire;
use super::table::LEFT;
use super::{Membership, Source, log};

impl Membership {
    /// Takes the complete set of evicted nodes and takes leave of those that are up.
    pub(super) fn evict(&mut self, nodes: Arc<BTreeSet<NodeId>>, now: Instant) {
        self.evicted = nodes;
        let up = self.table.iter().filter(|view| view.state.is_up() && self.evicted.contains(&view.node));
        let lives: Vec<_> =
            up.map(|view| Identity { node: view.node, generation: view.generation }).collect();
        for identity in lives {
            let entry = SwimMember { identity, incarnation: LEFT, state: SwimState::Down };
            let entry = member_from_wire(&entry);
            let result = self.drive(Source::Statement, vec![identity.node], now, |swim, effects| {
                swim.apply_many([entry].into_iter(), false, effects)
            });
            log(result);
        }
    }
}
