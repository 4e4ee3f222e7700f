//! Events about nodes that wait for the names of these nodes.
//!
//! Owns: what waits, how long, in which order it goes on. Must not know: where names come from, the log.
//! Driven by: the membership task.
//!
//! A node is heard of before its card has come, and an id tells a reader nothing. What comes later waits behind, so
//! that lines stay in order.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

use super::Event;

/// How long an event waits for a name: a card comes within a round trip or two of the news, or not soon.
const LONGEST: Duration = Duration::from_secs(1);

/// Pause between two looks for the name.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Most events that wait; when more come the oldest goes on with an id for a name.
const MAX_WAITING: usize = 256;

/// A change of state of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEvent {
    /// Whose.
    pub node: NodeId,
    /// The state before, one word.
    pub was: &'static str,
    /// The state after, one word.
    pub now: &'static str,
    /// Why.
    pub cause: String,
    /// The node that said so; `None` for this one.
    pub by: Option<NodeId>,
}

/// The events that wait.
#[derive(Debug, Default)]
pub struct Naming(VecDeque<(Instant, NodeEvent)>);

impl Naming {
    /// Takes an event. Poll [`Self::next`] afterwards.
    pub fn push(&mut self, event: NodeEvent, now: Instant) {
        self.0.push_back((now + LONGEST, event));
    }

    /// Returns the next event whose names are known, or which has waited long enough. Poll until `None`.
    pub fn next(&mut self, name: impl Fn(NodeId) -> Option<String>, now: Instant) -> Option<Event> {
        let (until, event) = self.0.front()?;
        let (who, by) = (name(event.node), event.by.map(&name));
        let is_named = who.is_some() && by != Some(None);
        if !is_named && *until > now && self.0.len() <= MAX_WAITING {
            return None;
        }
        let (_, NodeEvent { node, was, now, cause, by: by_node }) = self.0.pop_front()?;
        let who = format!("node {}", who.unwrap_or_else(|| node.to_string()));
        let by =
            by_node.map_or_else(|| "self".to_owned(), |id| by.flatten().unwrap_or_else(|| id.to_string()));
        Some(Event { who, was, now, cause, by })
    }

    /// Returns when to look again; `None` when nothing waits.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.0.front().map(|(until, _)| (*until).min(now + LOOK_EVERY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn event(n: u8, by: Option<u8>) -> NodeEvent {
        NodeEvent { node: node(n), was: "unknown", now: "alive", cause: "heard".into(), by: by.map(node) }
    }

    /// Names of the nodes up to this one.
    fn names(up_to: u8) -> impl Fn(NodeId) -> Option<String> {
        move |id| (1..=up_to).find(|n| node(*n) == id).map(|n| format!("vm-{n}"))
    }

    #[test]
    fn an_event_waits_for_the_names_of_both_nodes_and_no_longer_than_a_second() {
        let now = clock::now().mono;
        let mut naming = Naming::default();
        naming.push(event(2, Some(1)), now);
        naming.push(event(1, Some(3)), now);
        assert_eq!(naming.next(names(1), now), None);
        assert_eq!(naming.next_deadline(now), Some(now + LOOK_EVERY));
        let first = naming.next(names(2), now + LOOK_EVERY).expect("both are known");
        assert_eq!((first.who.as_str(), first.by.as_str()), ("node vm-2", "vm-1"));
        assert_eq!(naming.next(names(2), now + LONGEST - LOOK_EVERY), None);
        let second = naming.next(names(2), now + LONGEST).expect("it has waited");
        assert_eq!((second.who, second.by), ("node vm-1".to_owned(), node(3).to_string()));
        assert_eq!((naming.next(names(9), now + LONGEST), naming.next_deadline(now)), (None, None));
    }

    #[test]
    fn lines_stay_in_order() {
        let now = clock::now().mono;
        let mut naming = Naming::default();
        naming.push(event(9, None), now);
        naming.push(event(1, None), now);
        assert_eq!(naming.next(names(1), now), None, "the first one has no name yet");
        let who: Vec<_> = std::iter::from_fn(|| naming.next(names(9), now)).map(|event| event.who).collect();
        assert_eq!(who, ["node vm-9", "node vm-1"]);
    }

    #[test]
    fn few_events_wait() {
        let now = clock::now().mono;
        let mut naming = Naming::default();
        (0..1_000).for_each(|_| naming.push(event(7, None), now));
        let gone = std::iter::from_fn(|| naming.next(names(1), now)).count();
        assert_eq!(gone, 1_000 - MAX_WAITING);
    }
}
