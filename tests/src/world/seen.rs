//! What a real daemon says of its mesh, in terms of numbers of nodes.
//!
//! Owns: names and ids of nodes, the reading of the local API's rows and events. Must not know: processes.
//! Driven by: `world`.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::netns::{LINK_HEADER, Namespace};
use crate::scenario::{Down, NodeState};

/// Returns the name of a node.
pub(super) fn name(number: usize) -> String {
    format!("n{number}")
}

/// Who is meant by a name or an id, and losses of nodes that are not known yet: when, by whom, how they were called.
#[derive(Debug)]
pub(super) struct Names {
    known: BTreeMap<String, usize>,
    pub(super) unresolved: Vec<(Duration, usize, String)>,
}

impl Names {
    pub(super) fn new(count: usize) -> Self {
        Self { known: (0..count).map(|number| (name(number), number)).collect(), unresolved: Vec::new() }
    }

    /// Learns the id of a node: events have it until the node's card has come.
    pub(super) fn learn(&mut self, id: &str, number: usize) {
        self.known.insert(id.to_owned(), number);
    }

    /// Returns the losses of nodes that are known, in order.
    pub(super) fn resolve(&mut self) -> Vec<Down> {
        let mut downs = Vec::new();
        let known = &self.known;
        self.unresolved.retain(|(at, by, who)| match known.get(who) {
            Some(node) => {
                downs.push(Down { at: *at, by: *by, node: *node });
                false
            }
            None => true,
        });
        downs
    }

    /// Reads `nodes` and `services` of a daemon. A catalog counts as equal when the same instances with the same
    /// ports on the same nodes are in it: hashes of adverts are no part of the local API.
    pub(super) fn state(&self, nodes: &Value, services: &Value) -> NodeState {
        let mut state = NodeState::default();
        for row in rows(nodes).filter(|row| row["this"] != true) {
            let number = ["name", "id"].into_iter().find_map(|key| self.known.get(row[key].as_str()?));
            let Some(number) = number else { continue };
            state.known.push(*number);
            if row["state"] == "alive" || row["state"] == "suspect" {
                state.up.push(*number);
            }
        }
        state.known.sort_unstable();
        state.up.sort_unstable();
        let mut held = Vec::new();
        for service in rows(services) {
            for instance in rows(&service["instances"]) {
                state.served += usize::from(instance["state"] == "usable");
                let parts =
                    [&service["service"], &instance["instance"], &instance["node"], &instance["ports"]];
                held.push(parts.map(Value::to_string).join(" "));
            }
        }
        held.sort_unstable();
        let mut hasher = DefaultHasher::new();
        held.hash(&mut hasher);
        state.catalog = hasher.finish();
        state
    }
}

fn rows(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Reads an event line: `TIME node WHO: WAS -> down, ..`; `None` when it says something else.
pub(super) fn down(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let (_, event) = event["line"].as_str()?.split_once(" node ")?;
    let (who, change) = event.split_once(": ")?;
    let (_, now) = change.split_once(" -> ")?;
    (now.split(',').next()? == "down").then(|| who.to_owned())
}

/// Returns the bytes that a machine has sent over its link, without the link's own headers.
///
/// # Errors
/// The namespace cannot be entered.
pub(super) fn sent(machine: &Namespace) -> Result<u64> {
    let text = machine.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    transmitted(&text).context("no eth0")
}

/// Reads what eth0 transmitted: the ninth and tenth column.
fn transmitted(text: &str) -> Option<u64> {
    let fields = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"))?;
    let mut fields = fields.split_whitespace().skip(8).map(str::parse::<u64>);
    let (bytes, packets) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(bytes.saturating_sub(packets * LINK_HEADER))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states_are_read_by_name_and_by_id() {
        let mut names = Names::new(3);
        names.learn("id2", 2);
        let nodes = json!([
            {"name": "n1", "id": "id1", "state": "suspect", "this": false},
            {"name": null, "id": "id2", "state": "down", "this": false},
            {"name": "n0", "id": "id0", "state": "alive", "this": true},
        ]);
        let services = json!([{"service": "a", "instances": [
            {"instance": "n0", "node": "n0", "state": "usable", "ports": []},
            {"instance": "n2", "node": "n2", "state": "down", "ports": []},
        ]}]);
        let state = names.state(&nodes, &services);
        assert_eq!((state.known, state.up, state.served), (vec![1, 2], vec![1], 1));
        let other = names.state(&nodes, &json!([]));
        assert_ne!(other.catalog, state.catalog);
    }

    #[test]
    fn a_loss_waits_until_the_node_is_known() {
        let mut names = Names::new(1);
        names.unresolved.push((Duration::from_secs(1), 0, "idx".to_owned()));
        assert_eq!(names.resolve(), []);
        names.learn("idx", 7);
        assert_eq!(names.resolve(), [Down { at: Duration::from_secs(1), by: 0, node: 7 }]);
        assert_eq!(names.resolve(), []);
    }

    #[test]
    fn only_losses_count_and_no_farewells() {
        let line = |text: &str| json!({"at": 1, "line": format!("2026-11-21T15:43:32Z {text}")}).to_string();
        assert_eq!(down(&line("node n3: suspect -> down, silent (says self)")), Some("n3".to_owned()));
        assert_eq!(down(&line("node n3: alive -> left, it said so (says n3)")), None);
        assert_eq!(down(&line("node n3: down -> alive, it said so (says n3)")), None);
    }

    #[test]
    fn bytes_are_counted_without_ethernet() {
        let text = "    lo: 1 1 0 0 0 0 0 0 5 1\n  eth0: 9 9 0 0 0 0 0 0 1140 10 0\n";
        assert_eq!(transmitted(text), Some(1_000));
    }
}
