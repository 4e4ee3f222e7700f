//! The index: what DNS, relay and API read.
//!
//! Owns: the concurrent maps of the daemon; their guards never leave these files. Must not know: who reads, how
//! views are made. Driven by: `catalog`, the only writer of services and nodes; `vips`, the only one of addresses.
//!
//! Writing one service or one node costs as much as that one has, however many others there are; nobody copies
//! or walks the whole for it. Who must act on changes gets the names of what changed ([`IndexReader::changes`]),
//! who wants to see them gets lines ([`IndexReader::watch`]).

mod addresses;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use dashmap::DashMap;
use tokio::sync::broadcast;

use gossamer_core::catalog::{NodeView, ServiceView};
use gossamer_core::membership::MemberState;
use gossamer_dns::{CustomNames, CustomTarget, Revisions, Subject};
use gossamer_wire::{Fqdn, GroupName, NodeId, NodeName, ServiceName};

pub use addresses::{AddressReader, AddressWriter};
pub use watch::{WatchLine, WatchPort, Watcher, instance_word, node_word};

use watch::Feed;

/// A node as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSummary {
    /// What its adverts say, as of its last change; `None` until its card has arrived. Ages and leases pass
    /// meanwhile: [`Holdings`](crate::catalog::Holdings) have the present ones.
    pub view: Option<NodeView>,
    /// The node.
    pub node: NodeId,
    /// What membership says; `None` for a node known from disk only, and for this one.
    pub state: Option<MemberState>,
    /// Why it has that state.
    pub why: Option<Why>,
}

/// Why a node has its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// Since when, seconds since the Unix epoch.
    pub since: u64,
    /// What happened.
    pub cause: &'static str,
    /// Who said so: a node's name, or `self`.
    pub by: String,
}

/// How much was written since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Views of services.
    pub services: u64,
    /// Nodes.
    pub nodes: u64,
}

/// Names of changed services that a reader may be behind: a restart of the largest exporter, twice. Who is
/// further behind looks at all of them.
const CHANGES: usize = 1_024;

#[derive(Debug)]
struct Shared {
    services: DashMap<ServiceName, Arc<ServiceView>>,
    nodes: DashMap<NodeId, Arc<NodeSummary>>,
    named: DashMap<NodeName, BTreeSet<NodeId>>,
    /// Services of which this node may see an instance in the group.
    groups: DashMap<GroupName, usize>,
    /// Custom names that services behind short names claim.
    customs: RwLock<CustomNames>,
    changes: broadcast::Sender<ServiceName>,
    /// What answers read from here are checked against.
    revisions: Revisions,
    feed: Feed,
    services_written: AtomicU64,
    nodes_written: AtomicU64,
    /// How often a node came into each of [`STATES`].
    member_changes: [AtomicU64; STATES.len()],
}

const STATES: [MemberState; 4] =
    [MemberState::Alive, MemberState::Suspect, MemberState::Down, MemberState::Left];

/// The only write access. Not `Clone`: one writer is a fact of the types.
#[derive(Debug)]
pub struct IndexWriter(Arc<Shared>);

/// Read access; clones are cheap and see later writes.
#[derive(Clone, Debug)]
pub struct IndexReader(Arc<Shared>);

impl Default for IndexWriter {
    fn default() -> Self {
        Self(Arc::new(Shared {
            services: DashMap::new(),
            nodes: DashMap::new(),
            named: DashMap::new(),
            groups: DashMap::new(),
            customs: RwLock::default(),
            changes: broadcast::Sender::new(CHANGES),
            revisions: Revisions::default(),
            feed: Feed::default(),
            services_written: AtomicU64::new(0),
            nodes_written: AtomicU64::new(0),
            member_changes: [const { AtomicU64::new(0) }; STATES.len()],
        }))
    }
}

impl IndexWriter {
    /// Replaces the view of a service; `None` removes it. An equal view leaves the old one in place.
    pub fn set_service(&mut self, service: &ServiceName, view: Option<ServiceView>) {
        self.0.services_written.fetch_add(1, Ordering::Relaxed);
        let before = self.0.services.get(service).map(|entry| Arc::clone(entry.value()));
        if before.as_deref() == view.as_ref() {
            return;
        }
        let after = view.map(Arc::new);
        match &after {
            Some(view) => drop(self.0.services.insert(service.clone(), Arc::clone(view))),
            None => drop(self.0.services.remove(service)),
        }
        self.0.revisions.bump(Subject::Service(service));
        self.count_groups(before.as_deref(), after.as_deref());
        self.claim_customs(service, before.as_deref(), after.as_deref());
        // Without readers there is nobody to tell.
        let _ = self.0.changes.send(service.clone());
        self.0.feed.service(service, before.as_deref(), after.as_deref());
    }

    /// Changes what is known of a node. One that is no live member and has no card is dropped.
    pub fn update_node(&mut self, node: NodeId, change: impl FnOnce(&mut NodeSummary)) {
        self.0.nodes_written.fetch_add(1, Ordering::Relaxed);
        let before = self.0.nodes.get(&node).map(|entry| Arc::clone(entry.value()));
        let unknown = || NodeSummary { view: None, node, state: None, why: None };
        let mut after = before.as_deref().cloned().unwrap_or_else(unknown);
        change(&mut after);
        self.rename(node, before.as_deref().and_then(name), name(&after));
        if before.as_deref().and_then(|before| before.state) != after.state {
            let counted = STATES.iter().zip(&self.0.member_changes);
            for (_, count) in counted.filter(|(state, _)| Some(**state) == after.state) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        let names = [before.as_deref().and_then(name).cloned(), name(&after).cloned()];
        let after = Arc::new(after);
        if after.view.is_none() && !after.state.is_some_and(MemberState::is_up) {
            self.0.nodes.remove(&node);
        } else {
            self.0.nodes.insert(node, Arc::clone(&after));
        }
        for name in names.iter().flatten() {
            self.0.revisions.bump(Subject::Node(name));
        }
        self.0.feed.node(before.as_deref(), &after, |id| self.name_of(id));
    }

    /// Returns read access.
    pub fn reader(&self) -> IndexReader {
        IndexReader(Arc::clone(&self.0))
    }

    fn name_of(&self, node: NodeId) -> String {
        self.reader().name_of(node)
    }

    fn rename(&self, node: NodeId, before: Option<&NodeName>, after: Option<&NodeName>) {
        if before == after {
            return;
        }
        if let Some(name) = before {
            self.0.named.entry(name.clone()).or_default().remove(&node);
            self.0.named.remove_if(name, |_, nodes| nodes.is_empty());
        }
        if let Some(name) = after {
            self.0.named.entry(name.clone()).or_default().insert(node);
        }
    }

    fn claim_customs(
        &self,
        service: &ServiceName,
        before: Option<&ServiceView>,
        after: Option<&ServiceView>,
    ) {
        let (before, after) = (claims(before), claims(after));
        if before == after {
            return;
        }
        let mut customs = self.0.customs.write().unwrap_or_else(PoisonError::into_inner);
        for fqdn in before.keys().filter(|fqdn| !after.contains_key(*fqdn)) {
            customs.release(fqdn, service);
        }
        for (fqdn, rank) in after {
            customs.claim(fqdn, service, rank);
        }
        drop(customs);
        self.0.revisions.bump(Subject::CustomNames);
    }

    fn count_groups(&self, before: Option<&ServiceView>, after: Option<&ServiceView>) {
        let (before, after) = (groups(before), groups(after));
        for group in before.difference(&after) {
            if let Some(mut count) = self.0.groups.get_mut(*group) {
                *count -= 1;
            }
            self.0.groups.remove_if(*group, |_, count| *count == 0);
        }
        for group in after.difference(&before) {
            *self.0.groups.entry((*group).clone()).or_default() += 1;
        }
        for group in before.symmetric_difference(&after) {
            self.0.revisions.bump(Subject::Group(group));
        }
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

    /// Counts the services.
    pub fn count_services(&self) -> usize {
        self.0.services.len()
    }

    /// Returns whether this node may see an instance of any service in a group.
    pub fn has_group(&self, group: &GroupName) -> bool {
        self.0.groups.contains_key(group)
    }

    /// Returns what a custom name stands for here, whether or not it is below a suffix of this node: a lower-case host
    /// name without its last dot.
    pub fn custom(&self, name: &str) -> Option<CustomTarget> {
        self.customs().find(name)
    }

    /// Returns the custom names that several services claim with the same right, with these services.
    pub fn disputed(&self) -> Vec<(Fqdn, Vec<ServiceName>)> {
        self.customs().disputed()
    }

    fn customs(&self) -> RwLockReadGuard<'_, CustomNames> {
        self.0.customs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is known of a node.
    pub fn node(&self, node: NodeId) -> Option<Arc<NodeSummary>> {
        self.0.nodes.get(&node).map(|entry| Arc::clone(entry.value()))
    }

    /// Returns where the relays of a node are that others cannot dial, the best address of each; none for other nodes.
    pub fn relay_addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        let relays = self.node(node).and_then(|known| known.view.as_ref().map(|view| view.relays.clone()));
        let best = |relay| self.node(relay)?.view.as_ref()?.addresses.first().copied();
        relays.unwrap_or_default().into_iter().filter_map(best).collect()
    }

    /// Returns all nodes known by membership or catalog, by id.
    pub fn nodes(&self) -> Vec<Arc<NodeSummary>> {
        let mut nodes: Vec<_> = self.0.nodes.iter().map(|entry| Arc::clone(entry.value())).collect();
        nodes.sort_by_key(|summary| summary.node);
        nodes
    }

    /// Returns a node's name, or its id while its card is unknown.
    pub fn name_of(&self, node: NodeId) -> String {
        self.known_name_of(node).unwrap_or_else(|| node.to_string())
    }

    /// Returns a node's name; `None` while its card is unknown.
    pub fn known_name_of(&self, node: NodeId) -> Option<String> {
        self.node(node).as_deref().and_then(name).map(ToString::to_string)
    }

    /// Returns the nodes of a name, by id; names are unique per group by convention only.
    pub fn nodes_named(&self, name: &NodeName) -> Vec<Arc<NodeSummary>> {
        let ids = self.0.named.get(name).map(|entry| entry.value().clone()).unwrap_or_default();
        ids.into_iter().filter_map(|id| self.node(id)).collect()
    }

    /// Returns the names of services from their next change on, for one who must follow.
    pub fn changes(&self) -> broadcast::Receiver<ServiceName> {
        self.0.changes.subscribe()
    }

    /// Returns the counters that are bumped with each change, after it can be seen and before it is told.
    pub fn revisions(&self) -> &Revisions {
        &self.0.revisions
    }

    /// Returns a line for each change from now on, as it becomes visible here.
    pub fn watch(&self) -> Watcher {
        self.0.feed.watch()
    }

    /// Counts who watches, and the lines that were lost because they read too slowly.
    pub fn watchers(&self) -> (u64, u64) {
        self.0.feed.counts()
    }

    /// Counts how often a node came into each state.
    pub fn member_changes(&self) -> Vec<(&'static str, u64)> {
        let count = |(state, count): (&MemberState, &AtomicU64)| {
            (node_word(Some(*state)), count.load(Ordering::Relaxed))
        };
        STATES.iter().zip(&self.0.member_changes).map(count).collect()
    }

    /// Counts what was written since the start: the work that changes have caused.
    pub fn written(&self) -> Written {
        Written {
            services: self.0.services_written.load(Ordering::Relaxed),
            nodes: self.0.nodes_written.load(Ordering::Relaxed),
        }
    }
}

fn name(summary: &NodeSummary) -> Option<&NodeName> {
    summary.view.as_ref().map(|view| &view.name)
}

/// Returns the custom names a service claims here, each with the place of the best group it does so from.
fn claims(view: Option<&ServiceView>) -> BTreeMap<&Fqdn, u16> {
    let mut claims = BTreeMap::new();
    for found in view.into_iter().flat_map(|view| &view.instances).filter(|found| found.imported) {
        for fqdn in &found.fqdns {
            let best = claims.entry(fqdn).or_insert(found.rank);
            *best = found.rank.min(*best);
        }
    }
    claims
}

fn groups(view: Option<&ServiceView>) -> BTreeSet<&GroupName> {
    view.into_iter().flat_map(|view| &view.instances).map(|found| &found.group).collect()
}

#[cfg(test)]
mod tests;
