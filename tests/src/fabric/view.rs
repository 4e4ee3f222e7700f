//! What a node holds and sees, read from its handles.
//!
//! Owns: the counting. Must not know: how nodes run. Driven by: the fabric, when a scenario looks at a node.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use anyhow::Result;
use gossamer::index::IndexReader;
use gossamer_core::catalog::InstanceState;
use gossamer_wire::NodeId;
use gossamer_wire::advert::{Advert, Kind};
use gossamer_wire::frame::AdvertCopy;

/// Returns a hash over cards and records, byte for byte. Heads are left out: they are refreshed at any time, and a
/// node that was away does not need those of nodes that are gone.
pub(super) fn hash(copies: &[AdvertCopy]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut kept = Vec::new();
    for copy in copies {
        let advert = Advert::parse(&copy.bytes)?;
        if !matches!(advert.id().slot.kind, Kind::Head) {
            kept.push(&copy.bytes);
        }
    }
    kept.sort();
    kept.hash(&mut hasher);
    Ok(hasher.finish())
}

/// Counts the instances the node would answer with.
pub(super) fn served(index: &IndexReader) -> usize {
    let services = index.services().into_iter().filter_map(|name| index.service(&name));
    services
        .map(|view| view.instances.iter().filter(|instance| instance.state == InstanceState::Usable).count())
        .sum()
}

/// Returns the other members that are up, and all others it knows, both in order.
pub(super) fn members(
    index: &IndexReader,
    me: NodeId,
    numbers: &BTreeMap<NodeId, usize>,
) -> (Vec<usize>, Vec<usize>) {
    let nodes = index.nodes();
    let others = nodes.iter().filter(|node| node.node != me);
    let (mut up, mut known) = (Vec::new(), Vec::new());
    for node in others {
        let Some(number) = numbers.get(&node.node) else { continue };
        known.push(*number);
        if node.state.is_some_and(|state| state.is_up()) {
            up.push(*number);
        }
    }
    up.sort_unstable();
    known.sort_unstable();
    (up, known)
}

/// Reads the line of an event; the node that it says is down.
pub(super) fn down(line: &str, numbers: &BTreeMap<String, usize>) -> Option<usize> {
    let (_, event) = line.split_once(" node ")?;
    let (name, change) = event.split_once(": ")?;
    let (_, after) = change.split_once(" -> ")?;
    after.starts_with("down,").then(|| numbers.get(name).copied()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_about_nodes_that_are_down_count() {
        let numbers = BTreeMap::from([("n3".to_owned(), 3)]);
        let read = |event: &str| down(&format!("2027-01-15T08:00:00Z {event} (says n1)"), &numbers);
        assert_eq!(read("node n3: suspect -> down, it did not answer probes"), Some(3));
        assert_eq!(read("node n3: down -> alive, it said so"), None);
        assert_eq!(read("node n3: alive -> left, it said so"), None);
        assert_eq!(read("node n9: alive -> down, heard from a member"), None, "a stranger");
        assert_eq!(read("service s: passing -> down, x"), None);
    }
}
