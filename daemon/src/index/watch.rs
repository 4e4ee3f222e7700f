//! Lines for those who watch: what changed in the index, as soon as readers can see it.
//!
//! Owns: the words of a line, the bounded queue to those who watch. Must not know: how lines travel, who asked.
//! Driven by: the writer of the index. Nothing is compared or made while nobody watches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use gossamer_core::catalog::{InstanceState, InstanceView, ServiceView};
use gossamer_core::membership::MemberState;
use gossamer_wire::{GroupName, InstanceName, NodeId, NodeName, PortName, ServiceName};

use super::NodeSummary;
use crate::clock;

/// Lines that one who watches may be behind before the oldest are lost: 1,000 nodes that all change at once.
const BEHIND: usize = 1_024;

/// A change as it is shown, one JSON object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum WatchLine {
    /// The first line: every change from here on follows.
    Watching {
        /// Microseconds since the Unix epoch.
        at_us: u64,
        /// Nodes known at this moment.
        nodes: usize,
        /// Services known at this moment.
        services: usize,
    },
    /// The state or the card of a node.
    Node {
        /// Microseconds since the Unix epoch at which readers could see it.
        at_us: u64,
        /// Its name, or its id while its card is unknown.
        node: String,
        /// Its id.
        id: String,
        /// The state before: `unknown`, `alive`, `suspect`, `down` or `left`.
        was: String,
        /// The state after; equal when its card changed.
        now: String,
        /// Why.
        cause: String,
        /// Who said so: a node's name, or `self`.
        by: String,
    },
    /// The state or the content of an instance.
    Service {
        /// Microseconds since the Unix epoch at which readers could see it.
        at_us: u64,
        /// The service.
        service: ServiceName,
        /// The instance.
        instance: InstanceName,
        /// The node it runs on.
        node: NodeName,
        /// That node's group.
        group: GroupName,
        /// The state before: `absent`, `usable`, `down`, `expired`, `failing` or `drained`.
        was: String,
        /// The state after; equal when only the content changed.
        now: String,
        /// What of the content changed: `ports`, `weight`, `metadata`, `address`, `place`, `fqdns`,
        /// `visibility`.
        changed: Vec<String>,
        /// Ports clients may use.
        ports: Vec<WatchPort>,
        /// Free pairs.
        metadata: BTreeMap<String, String>,
    },
    /// Lines are missing here, because they were read too slowly.
    Lost {
        /// Microseconds since the Unix epoch.
        at_us: u64,
        /// How many.
        lines: u64,
    },
}

/// A port of [`WatchLine::Service`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchPort {
    /// Its name.
    pub name: PortName,
    /// Its number.
    pub number: u16,
}

impl WatchLine {
    /// Returns the line of a node as it stands, as if it had just come.
    pub fn of_node(summary: &NodeSummary, at_us: u64) -> Self {
        let id = summary.node.to_string();
        node_line(summary, summary.view.as_ref().map_or(id, |view| view.name.to_string()), None, at_us)
    }

    /// Returns the lines of a service as it stands, as if its instances had just come.
    pub fn of_service(view: &ServiceView, at_us: u64) -> Vec<Self> {
        let line = |found: &InstanceView| {
            service_line(&view.service, found, ("absent", instance_word(found.state)), Vec::new(), at_us)
        };
        view.instances.iter().map(line).collect()
    }

    /// Returns whether a line is about a service or node of this name, or is one that everybody gets.
    pub fn is_about(&self, name: &str) -> bool {
        match self {
            Self::Watching { .. } | Self::Lost { .. } => true,
            Self::Node { node, id, .. } => node == name || id == name,
            Self::Service { service, .. } => service.as_str() == name,
        }
    }
}

/// Hands lines to those who watch.
#[derive(Debug)]
pub(super) struct Feed {
    lines: broadcast::Sender<Arc<WatchLine>>,
    lost: Arc<AtomicU64>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { lines: broadcast::Sender::new(BEHIND), lost: Arc::default() }
    }
}

/// One who watches.
#[derive(Debug)]
pub struct Watcher {
    lines: broadcast::Receiver<Arc<WatchLine>>,
    lost: Arc<AtomicU64>,
}

impl Watcher {
    /// Waits for the next line; [`WatchLine::Lost`] stands where lines are missing. `None` when the index is gone.
    ///
    /// # Cancel safety
    /// Cancel safe: no line is lost by it.
    pub async fn next(&mut self) -> Option<Arc<WatchLine>> {
        match self.lines.recv().await {
            Ok(line) => Some(line),
            Err(RecvError::Lagged(lines)) => {
                self.lost.fetch_add(lines, Ordering::Relaxed);
                Some(Arc::new(WatchLine::Lost { at_us: clock::wall_micros(), lines }))
            }
            Err(RecvError::Closed) => None,
        }
    }

    /// Returns whether a line waits.
    pub fn has_more(&self) -> bool {
        !self.lines.is_empty()
    }
}

impl Feed {
    pub(super) fn watch(&self) -> Watcher {
        Watcher { lines: self.lines.subscribe(), lost: Arc::clone(&self.lost) }
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.lines.receiver_count() as u64, self.lost.load(Ordering::Relaxed))
    }

    pub(super) fn service(
        &self,
        service: &ServiceName,
        before: Option<&ServiceView>,
        after: Option<&ServiceView>,
    ) {
        if self.lines.receiver_count() == 0 {
            return;
        }
        let at_us = clock::wall_micros();
        let (before, after) = (instances(before), instances(after));
        for (key, found) in &after {
            let was = before.get(key).copied();
            let changed = was.map(|was| differences(was, found)).unwrap_or_default();
            let (was, now) =
                (was.map_or("absent", |was| instance_word(was.state)), instance_word(found.state));
            if was != now || !changed.is_empty() {
                self.send(service_line(service, found, (was, now), changed, at_us));
            }
        }
        for (_, gone) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
            let states = (instance_word(gone.state), "absent");
            self.send(service_line(service, gone, states, Vec::new(), at_us));
        }
    }

    pub(super) fn node(
        &self,
        before: Option<&NodeSummary>,
        after: &NodeSummary,
        name_of: impl Fn(NodeId) -> String,
    ) {
        if self.lines.receiver_count() == 0 {
            return;
        }
        let (was, now) = (before.and_then(|before| before.state), after.state);
        let is_new_card = card(before) != card(Some(after));
        if was == now && !is_new_card {
            return;
        }
        let name = after.view.as_ref().map(|view| view.name.to_string());
        let name = name.unwrap_or_else(|| name_of(after.node));
        self.send(node_line(after, name, was, clock::wall_micros()));
    }

    fn send(&self, line: WatchLine) {
        // The last one may have gone meanwhile.
        let _ = self.lines.send(Arc::new(line));
    }
}

type Key<'a> = (NodeId, &'a InstanceName);

fn instances(view: Option<&ServiceView>) -> BTreeMap<Key<'_>, &InstanceView> {
    let of_view = view.into_iter().flat_map(|view| &view.instances);
    of_view.map(|found| ((found.node, &found.instance), found)).collect()
}

fn differences(was: &InstanceView, now: &InstanceView) -> Vec<String> {
    let place = |view: &InstanceView| (view.group.clone(), view.nearness, view.node_name.clone());
    let parts = [
        ("ports", was.ports != now.ports),
        ("weight", was.weight != now.weight),
        ("metadata", was.metadata != now.metadata),
        ("address", was.addresses != now.addresses || was.tries != now.tries),
        ("place", place(was) != place(now)),
        ("fqdns", was.fqdns != now.fqdns),
        ("routing", was.routing != now.routing),
        ("visibility", (was.visible, was.imported, was.stale) != (now.visible, now.imported, now.stale)),
    ];
    parts.into_iter().filter(|(_, differs)| *differs).map(|(part, _)| part.to_owned()).collect()
}

fn node_line(after: &NodeSummary, node: String, was: Option<MemberState>, at_us: u64) -> WatchLine {
    let why = after.why.as_ref().filter(|_| was != after.state);
    WatchLine::Node {
        at_us,
        node,
        id: after.node.to_string(),
        was: node_word(was).to_owned(),
        now: node_word(after.state).to_owned(),
        cause: why.map_or("its card", |why| why.cause).to_owned(),
        by: why.map_or_else(|| "self".to_owned(), |why| why.by.clone()),
    }
}

fn service_line(
    service: &ServiceName,
    found: &InstanceView,
    (was, now): (&str, &str),
    changed: Vec<String>,
    at_us: u64,
) -> WatchLine {
    let port = |port: &gossamer_wire::Port| WatchPort { name: port.name.clone(), number: port.number };
    WatchLine::Service {
        at_us,
        service: service.clone(),
        instance: found.instance.clone(),
        node: found.node_name.clone(),
        group: found.group.clone(),
        was: was.to_owned(),
        now: now.to_owned(),
        changed,
        ports: found.ports.iter().map(port).collect(),
        metadata: found.metadata.iter().cloned().collect(),
    }
}

/// What of a card is worth a line.
fn card(summary: Option<&NodeSummary>) -> Option<impl PartialEq> {
    let view = summary?.view.as_ref()?;
    Some((
        view.name.clone(),
        view.group.clone(),
        view.zone.clone(),
        view.region.clone(),
        view.addresses.clone(),
        view.lanes.clone(),
    ))
}

/// Returns the word of an instance's state in listings, lines and metrics.
pub const fn instance_word(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Usable => "usable",
        InstanceState::NodeDown => "down",
        InstanceState::LeaseOver => "expired",
        InstanceState::Failing => "failing",
        InstanceState::Drained => "drained",
    }
}

/// Returns the word of a node's state in listings and lines; `unknown` without one.
pub const fn node_word(state: Option<MemberState>) -> &'static str {
    match state {
        Some(MemberState::Alive) => "alive",
        Some(MemberState::Suspect) => "suspect",
        Some(MemberState::Down) => "down",
        Some(MemberState::Left) => "left",
        None => "unknown",
    }
}
