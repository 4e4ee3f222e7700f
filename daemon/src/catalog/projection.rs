//! What of the catalog changed for readers, written to the index piece by piece.
//!
//! Owns: the list of what is out of date, the look for two nodes of one name. Must not know: frames, disks.
//! Driven by: the catalog task, which notes changes and writes once per wake-up.
//!
//! One change costs one view: of the service or the node it is about.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use gossamer_core::catalog::Catalog;
use gossamer_core::membership::MemberState;
use gossamer_core::reach::Denied;
use gossamer_core::time::Now;
use gossamer_wire::{NodeId, ServiceName};

use super::Parts;
use crate::clock::Clock;
use crate::events::{Event, EventLog, What};
use crate::index::{IndexReader, IndexWriter, NodeSummary, Why};

#[derive(Debug)]
pub(super) struct Projection {
    me: NodeId,
    reader: IndexReader,
    events: EventLog,
    clock: Clock,
    services: BTreeSet<ServiceName>,
    nodes: BTreeSet<NodeId>,
}

impl Projection {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            me: parts.me,
            reader: parts.index.reader(),
            events: parts.events.clone(),
            clock: parts.clock.clone(),
            services: BTreeSet::new(),
            nodes: BTreeSet::new(),
        }
    }

    /// Notes that the view of a service may differ.
    pub(super) fn note_service(&mut self, service: ServiceName) {
        self.services.insert(service);
    }

    /// Notes that what a node says about itself may differ.
    pub(super) fn note_node(&mut self, node: NodeId) {
        self.nodes.insert(node);
    }

    /// Notes everything a start found on disk.
    pub(super) fn note_all(&mut self, core: &Catalog, now: Now) {
        self.services.extend(core.services().cloned());
        self.nodes.extend(core.nodes(now).into_iter().map(|view| view.node));
    }

    /// Writes what membership says of a node.
    pub(super) fn member(&self, index: &mut IndexWriter, node: NodeId, state: MemberState, why: Why) {
        self.update(index, node, |known| {
            if known.state != Some(state) {
                (known.state, known.why) = (Some(state), Some(why));
            }
        });
    }

    /// Writes what was noted. Returns whether anything was.
    pub(super) fn write(&mut self, index: &mut IndexWriter, core: &Catalog, now: Now) -> bool {
        let has_changed = !(self.services.is_empty() && self.nodes.is_empty());
        // Nodes first: lines about services then find their names.
        for node in std::mem::take(&mut self.nodes) {
            let view = core.node(node, now);
            self.update(index, node, |known| known.view = view);
        }
        for service in std::mem::take(&mut self.services) {
            index.set_service(&service, core.service(&service, now));
        }
        has_changed
    }

    /// Returns names of nodes.
    pub(super) const fn names(&self) -> &IndexReader {
        &self.reader
    }

    /// Names a node that advertises addresses which are never dialled, or takes that back.
    pub(super) fn name_denied(&self, node: NodeId, denied: &[(SocketAddr, Denied)]) {
        let findings = self.events.findings();
        match denied.first() {
            Some(&first) => {
                findings.name(node, What::DeniedAddresses { first, count: denied.len() }, self.clock.wall());
            }
            None => {
                let any = (SocketAddr::from(([0; 4], 0)), Denied::PortZero);
                findings.clear(node, &What::DeniedAddresses { first: any, count: 0 });
            }
        }
    }

    fn update(&self, index: &mut IndexWriter, node: NodeId, change: impl FnOnce(&mut NodeSummary)) {
        let before = self.same_named(node);
        index.update_node(node, change);
        // Who had the name before may be alone with it, who has it now may not.
        for other in before.into_iter().chain(self.same_named(node)).collect::<BTreeSet<_>>() {
            self.judge_name(other);
        }
    }

    /// Returns the nodes of a node's name, itself included.
    fn same_named(&self, node: NodeId) -> Vec<NodeId> {
        let summary = self.reader.node(node);
        let view = summary.as_ref().and_then(|summary| summary.view.as_ref());
        let named = view.map(|view| self.reader.nodes_named(&view.name)).unwrap_or_default();
        named.iter().map(|summary| summary.node).collect()
    }

    /// Names a node that shares name and group with another live one, or takes that back.
    fn judge_name(&self, node: NodeId) {
        let other = self.reader.node(node).and_then(|summary| self.namesake(&summary));
        let findings = self.events.findings();
        let name = || format!("node {}", self.reader.name_of(node));
        match other {
            Some(other) => {
                if findings.name(node, What::SameName { other }, self.clock.wall()) {
                    let cause = format!("{other} has the same name and group");
                    let (was, now, by) = ("unique", "ambiguous", "self".to_owned());
                    self.events.push(&Event { who: name(), was, now, cause, by });
                }
            }
            None => drop(findings.clear(node, &What::SameName { other: node })),
        }
    }

    fn namesake(&self, summary: &NodeSummary) -> Option<NodeId> {
        let view = summary.view.as_ref().filter(|_| self.is_up(summary))?;
        let is_namesake = |other: &NodeSummary| {
            let is_of_group = other.view.as_ref().is_some_and(|other| other.group == view.group);
            other.node != summary.node && is_of_group && self.is_up(other)
        };
        self.reader.nodes_named(&view.name).iter().find(|other| is_namesake(other)).map(|other| other.node)
    }

    fn is_up(&self, summary: &NodeSummary) -> bool {
        summary.node == self.me || summary.state.is_some_and(MemberState::is_up)
    }
}

#[cfg(test)]
mod tests;
