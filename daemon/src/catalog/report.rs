//! What the catalog's events look like in the event log.
//!
//! Owns: the words. Must not know: when events happen. Driven by: the catalog task.

use gossamer_core::catalog::CatalogEvent;
use gossamer_wire::{InstanceName, NodeId, ServiceName};

use crate::events::Event;
use crate::index::IndexReader;

/// Returns the event as the log takes it; `names` turns ids into names.
pub(super) fn line(event: CatalogEvent, names: &IndexReader) -> Event {
    let name = |node: NodeId| names.name_of(node);
    let this = || "self".to_owned();
    match event {
        CatalogEvent::Accepted { service, instance, node } => {
            entry(instance_text(&service, &instance), ("absent", "held"), "exported", name(node))
        }
        CatalogEvent::Withdrawn { service, instance, node } => {
            entry(instance_text(&service, &instance), ("held", "absent"), "withdrawn", name(node))
        }
        CatalogEvent::Quarantined { id, why } => {
            let who = format!("records {} of {}", id.slot.k, name(id.slot.node));
            entry(who, ("received", "quarantined"), &why.to_string(), this())
        }
        CatalogEvent::DuplicateIdentity { node } => {
            let cause = "two adverts with one version: this identity runs twice";
            entry(format!("node {}", name(node)), ("one", "two"), cause, this())
        }
        CatalogEvent::Refused { from, owner, why } => {
            let who =
                owner.map_or_else(|| "an advert".to_owned(), |owner| format!("advert of {}", name(owner)));
            entry(who, ("received", "refused"), &format!("{why:?}"), name(from))
        }
        CatalogEvent::FqdnsDropped { node, count } => entry(
            format!("names of node {}", name(node)),
            ("received", "dropped"),
            &format!("{count} FQDNs are outside the suffixes its certificate allows"),
            this(),
        ),
        CatalogEvent::AddressesDenied { node, addresses } => {
            let list: Vec<_> =
                addresses.iter().map(|(address, why)| format!("{address} ({})", why.word())).collect();
            let who = format!("addresses of node {}", name(node));
            entry(who, ("advertised", "denied"), &format!("never dialled: {}", list.join(", ")), this())
        }
        CatalogEvent::Forgotten { node } => entry(
            format!("node {}", name(node)),
            ("silent", "forgotten"),
            "nothing heard of it for a day",
            this(),
        ),
        CatalogEvent::NotPublished { service, instance } => {
            let cause = "the record breaks a limit or finds no room";
            entry(instance_text(&service, &instance), ("registered", "unpublished"), cause, this())
        }
        CatalogEvent::CardRefused { why } => {
            entry("own card".to_owned(), ("made", "refused"), &why.to_string(), this())
        }
    }
}

fn instance_text(service: &ServiceName, instance: &InstanceName) -> String {
    format!("service {service}/{instance}")
}

fn entry(who: String, (was, now): (&'static str, &'static str), cause: &str, by: String) -> Event {
    Event { who, was, now, cause: cause.to_owned(), by }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexWriter;

    #[test]
    fn an_event_names_what_changed_and_who_said_so() {
        let node = NodeId::from_bytes([7; 16]);
        let event = CatalogEvent::Accepted {
            service: "orders".parse().expect("name"),
            instance: "vm-b".parse().expect("name"),
            node,
        };
        let line = line(event, &IndexWriter::default().reader());
        assert_eq!((line.who.as_str(), line.was, line.now), ("service orders/vm-b", "absent", "held"));
        // Without a card the id stands for the name.
        assert_eq!(line.by, node.to_string());
    }
}
