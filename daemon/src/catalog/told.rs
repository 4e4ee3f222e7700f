//! What the transport was told of each node, so that it hears what is news to it and no more.
//!
//! Owns: that memory, which ends with the node's card. Must not know: addresses, relays, channels. Driven by: `catalog`.

use std::collections::BTreeMap;

use gossamer_wire::NodeId;

/// What the catalog has of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Has {
    /// Whether its card names lane addresses.
    pub(super) lanes: bool,
    /// Whether it names relays.
    pub(super) relays: bool,
    /// Until when it is certified, seconds since the Unix epoch; `None` without a certificate that counts.
    pub(super) certified: Option<u64>,
}

/// What to tell of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Its lane addresses. Most nodes have never had any, and need no word about it.
    pub(super) lanes: bool,
    /// Its relays, likewise.
    pub(super) relays: bool,
    /// A certificate: a change of a record is no news.
    pub(super) certified: Option<u64>,
    /// That there is no card of it any more.
    pub(super) is_gone: bool,
}

/// Nodes with a card.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<NodeId, Has>);

impl Told {
    /// Takes what there is of a node now, `None` without a card; returns what to tell.
    pub(super) fn handle(&mut self, node: NodeId, has: Option<Has>) -> News {
        let Some(has) = has else {
            let is_gone = self.0.remove(&node).is_some();
            return News { is_gone, ..News::default() };
        };
        let had = self.0.insert(node, has).unwrap_or_default();
        News {
            lanes: had.lanes || has.lanes,
            relays: had.relays || has.relays,
            certified: has.certified.filter(|_| had.certified != has.certified),
            is_gone: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);

    #[test]
    fn a_node_whose_card_is_dropped_is_told_of_once_and_leaves_nothing() {
        let mut told = Told::default();
        assert_eq!(told.handle(NODE, None), News::default(), "nobody has heard of it");
        told.handle(NODE, Some(Has::default()));
        assert_eq!(told.handle(NODE, None), News { is_gone: true, ..News::default() });
        assert_eq!(told.handle(NODE, None), News::default());
        assert!(told.0.is_empty());
    }

    #[test]
    fn what_is_gone_from_a_card_is_news_once_and_what_has_not_changed_of_a_certificate_is_none() {
        let mut told = Told::default();
        let has = Has { lanes: true, relays: true, certified: Some(7) };
        let news = News { lanes: true, relays: true, certified: Some(7), is_gone: false };
        assert_eq!(told.handle(NODE, Some(has)), news);
        assert_eq!(told.handle(NODE, Some(has)), News { certified: None, ..news });
        let less = Has { certified: Some(8), ..Has::default() };
        assert_eq!(told.handle(NODE, Some(less)), News { certified: Some(8), ..news });
        assert_eq!(told.handle(NODE, Some(less)), News::default());
    }
}
