//! What the catalog holds, as of the moment it is asked.
//!
//! Owns: the answer. Must not know: who asks. Driven by: the catalog task, for the local API and the metrics. What
//! must be there at any time without asking is in the index.

use std::collections::BTreeMap;
use std::time::Duration;

use gossamer_core::catalog::{Catalog, Counters, MemberLiveness, NodeView, Waiting};
use gossamer_core::time::Now;
use gossamer_wire::NodeId;

/// What the catalog holds.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// All nodes whose card is held, with the present ages and leases.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// What is not stored yet, or stored and not served, by the node it is of.
    pub waiting: Vec<Waiting>,
    /// Numbers for metrics.
    pub counters: Counters,
    /// Age of the oldest head of a live member other than this node.
    pub oldest_head: Duration,
}

impl Holdings {
    /// Reads them from the core. `me` is this node.
    pub(super) fn of(core: &Catalog, me: NodeId, now: Now) -> Self {
        let nodes: BTreeMap<_, _> = core.nodes(now).into_iter().map(|view| (view.node, view)).collect();
        let oldest_head =
            nodes.values().filter(|view| is_other_and_live(view, me)).map(|view| view.age).max();
        Self {
            nodes,
            waiting: core.waiting(),
            counters: core.counters(),
            oldest_head: oldest_head.unwrap_or_default(),
        }
    }
}

fn is_other_and_live(view: &NodeView, me: NodeId) -> bool {
    view.node != me && matches!(view.liveness, MemberLiveness::Alive | MemberLiveness::Suspect)
}
