//! The service index: what DNS, relay and API read.
//!
//! Owns: the one concurrent map of the daemon; its guards never leave this file.
//! Must not know: who reads, how views are made. Driven by: `catalog`, the only writer.

use std::sync::Arc;

use arc_swap::ArcSwap;
use dashmap::DashMap;

use gossamer_core::catalog::{NodeView, ServiceView};
use gossamer_core::membership::MemberState;
use gossamer_wire::{NodeId, NodeName, ServiceName};

/// A node as the listing shows it.
#[derive(Clone, Debug)]
pub struct NodeSummary {
    /// What its adverts say; `None` until its card has arrived.
    pub view: Option<NodeView>,
    /// The node.
    pub node: NodeId,
    /// What membership says; `None` for a node known from disk only.
    pub state: Option<MemberState>,
}

#[derive(Debug, Default)]
struct Shared {
    services: DashMap<ServiceName, Arc<ServiceView>>,
    nodes: ArcSwap<Vec<NodeSummary>>,
}

/// The only write access. Not `Clone`: one writer is a fact of the types.
#[derive(Debug, Default)]
pub struct IndexWriter(Arc<Shared>);

/// Read access; clones are cheap and see later writes.
#[derive(Clone, Debug)]
pub struct IndexReader(Arc<Shared>);

impl IndexWriter {
    /// Replaces the view of a service; `None` removes it.
    pub fn set_service(&mut self, service: &ServiceName, view: Option<ServiceView>) {
        match view {
            Some(view) => drop(self.0.services.insert(service.clone(), Arc::new(view))),
            None => drop(self.0.services.remove(service)),
        }
    }

    /// Replaces the list of nodes.
    pub fn set_nodes(&mut self, nodes: Vec<NodeSummary>) {
        self.0.nodes.store(Arc::new(nodes));
    }

    /// Returns read access.
    pub fn reader(&self) -> IndexReader {
        IndexReader(Arc::clone(&self.0))
    }
}

impl IndexReader {
    /// Returns the view of a service; `None` when no held advert names it.
    pub fn service(&self, service: &ServiceName) -> Option<Arc<ServiceView>> {
        self.0.services.get(service).map(|entry| Arc::clone(entry.value()))
    }

    /// Returns all service names, sorted.
    pub fn services(&self) -> Vec<ServiceName> {
        let mut names: Vec<_> = self.0.services.iter().map(|entry| entry.key().clone()).collect();
        names.sort();
        names
    }

    /// Returns all nodes known by membership or catalog.
    pub fn nodes(&self) -> Arc<Vec<NodeSummary>> {
        self.0.nodes.load_full()
    }

    /// Returns a node's name, or its id while its card is unknown.
    pub fn name_of(&self, node: NodeId) -> String {
        let nodes = self.0.nodes.load();
        let known =
            nodes.iter().find(|summary| summary.node == node).and_then(|summary| summary.view.as_ref());
        known.map_or_else(|| node.to_string(), |view| view.name.to_string())
    }

    /// Returns the nodes of a name; names are unique per group by convention only.
    pub fn nodes_named(&self, name: &NodeName) -> Vec<NodeView> {
        let nodes = self.0.nodes.load();
        nodes.iter().filter_map(|node| node.view.clone()).filter(|view| view.name == *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(service: &str) -> ServiceView {
        ServiceView { service: service.parse().expect("name"), instances: Vec::new(), hidden: Vec::new() }
    }

    #[test]
    fn readers_see_what_the_writer_does() {
        let mut writer = IndexWriter::default();
        let reader = writer.reader();
        let (orders, web) = ("orders".parse().expect("name"), "web".parse().expect("name"));
        writer.set_service(&web, Some(view("web")));
        writer.set_service(&orders, Some(view("orders")));
        assert_eq!(reader.services(), [orders.clone(), web]);
        assert_eq!(reader.service(&orders).expect("there").service, orders);
        writer.set_service(&orders, None);
        assert!(reader.service(&orders).is_none());
        assert!(reader.nodes().is_empty());
    }
}
