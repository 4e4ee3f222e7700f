//! The owner's part about relays: which ones this node keeps, and which ones lead to others.
//!
//! Owns: the choice, and what cards say of the relays of others. Must not know: streams, what circuits carry. Driven by: `owner`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::socket::SockaddrStorage;
use tokio::sync::watch;

use gossamer_core::astray::{Astray, AstrayRelays};
use gossamer_core::reach::{OnLink, Span, span};
use gossamer_core::relays::{Came, Candidate, Relays, is_from_outside, may_lapse};
use gossamer_wire::NodeId;
use gossamer_wire::frame::{Frame, Purpose};

use super::ToMembership;
use super::accept::{By, Errand, Whereabouts};
use super::carrier::Connection;
use super::hello::Greeted;
use super::lane::Opener;
use super::link::Link;
use super::owner::Owner;
use crate::clients::is_this_host;
use crate::clock;
use crate::identity::Live;

/// Relays, of this node and of others.
#[derive(Debug)]
pub(super) struct Relaying {
    pub(super) core: Relays,
    /// What this node shows.
    live: Live,
    /// Those that this node names in its card.
    own: watch::Sender<Vec<NodeId>>,
    /// Those that the cards of others name.
    of: BTreeMap<NodeId, Vec<NodeId>>,
    /// Those that have led astray.
    astray: AstrayRelays,
}

impl Relaying {
    /// Also returns the relays to name in the card, as they change.
    pub(super) fn new(live: Live) -> (Self, watch::Receiver<Vec<NodeId>>) {
        let (own, reader) = watch::channel(Vec::new());
        let (core, of, astray) = Default::default();
        (Self { core, live, own, of, astray }, reader)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.core.next_deadline()
    }
}

impl Owner {
    /// Takes in what a node's card says. Whom only relays lead to is dialled when they become known.
    pub(super) fn learn_relays(&mut self, node: NodeId, relays: Vec<NodeId>) {
        let now = clock::now().mono;
        self.book.learn_relays(node, !relays.is_empty(), now);
        if relays.is_empty() {
            self.relaying.of.remove(&node);
            return;
        }
        let before = self.relaying.of.insert(node, relays.clone()).unwrap_or_default();
        let is_news = relays.iter().any(|relay| !before.contains(relay));
        if !is_news || self.current.contains_key(&node) {
            return;
        }
        if self.book.is_dialling(node) {
            // That dial knows of no relays, and who answers has done so.
            let (purpose, by, opener) = (Purpose::Control, By::Circuit, Opener::Dialler);
            return self.dial(Errand { node, purpose, by, opener }, self.place(node, Vec::new()));
        }
        self.book.reach(node, now);
    }

    /// Returns the relays to try for a node: what its card says, and what leads to it now. None of them is this node. Those that
    /// are connected come first, the nearest of them before the others; of the rest the node's own order holds.
    pub(super) fn relays_of(&self, node: NodeId) -> Vec<NodeId> {
        let named = self.relaying.of.get(&node).cloned().unwrap_or_default();
        let current = self.current.get(&node).and_then(|link| link.connection.via());
        let mut relays: Vec<_> = current.into_iter().chain(named).filter(|relay| *relay != self.me).collect();
        let mut seen = std::collections::BTreeSet::new();
        relays.retain(|relay| *relay != node && seen.insert(*relay));
        // Who has led astray is tried last, and one that is connected need not be dialled first.
        relays.sort_by_key(|relay| {
            let link = self.current.get(relay).filter(|link| link.connection.via().is_none());
            let rtt = link.map_or(Duration::MAX, |link| link.connection.rtt());
            (self.relaying.astray.is_astray(*relay, node), rtt)
        });
        relays
    }

    pub(super) fn whereabouts(&self, node: NodeId) -> Whereabouts {
        self.place(node, self.data_addresses(node))
    }

    /// Notes what a new connection says of being dialled.
    pub(super) fn note_reach(&mut self, greeted: &Greeted) {
        // In a network in memory nothing is between, and no interface tells of it.
        let is_real = self.move_at.is_some();
        let source = greeted.connection.remote_address().ip();
        let is_far =
            || span(source) == Span::Global && is_from_outside(source, &on_links(), &self.seen.borrow());
        let came = if greeted.connection.via().is_some() {
            Came::ByCircuit
        } else if greeted.dialled {
            let observed = greeted.observed.ip().to_canonical();
            let may_lapse = is_real && may_lapse(observed, is_this_host(observed));
            Came::Out { to_relay: greeted.peer.claims.relay, may_lapse }
        } else if !is_real || is_far() {
            Came::InFromOutside
        } else {
            Came::InFromNear
        };
        self.relaying.core.handle_connected(greeted.peer.node, came, clock::now().mono);
    }

    /// Notes relays that have not led to the node although they said so, and tells who is to be named for it.
    pub(super) async fn led_astray(&mut self, node: NodeId, relays: Vec<(NodeId, Astray)>) {
        let now = clock::now().mono;
        for (relay, how) in relays {
            if let Some(times) = self.relaying.astray.handle_astray(relay, node, how, now) {
                let _ = self.inbox.membership.send(ToMembership::Astray { relay, node, times }).await;
            }
        }
    }

    /// The same of a connection that has ended, if it was a circuit and went silent.
    pub(super) async fn went_silent(&mut self, node: NodeId, connection: &Connection) {
        if let Some(relay) = connection.via()
            && matches!(connection.close_reason(), Some(quinn::ConnectionError::TimedOut))
        {
            self.led_astray(node, vec![(relay, Astray::Nowhere)]).await;
        }
    }

    /// Notes that a relay has led to who was meant.
    pub(super) async fn led(&mut self, greeted: &Greeted) {
        if let Some(relay) = greeted.connection.via().filter(|_| greeted.dialled)
            && self.relaying.astray.handle_led(relay, greeted.peer.node)
        {
            let _ = self.inbox.membership.send(ToMembership::NotAstray([relay].into())).await;
        }
    }

    /// The node is gone, as a relay or behind others.
    pub(super) async fn forget_astray(&mut self, node: NodeId) {
        let cleared = self.relaying.astray.forget(node);
        if !cleared.is_empty() {
            let _ = self.inbox.membership.send(ToMembership::NotAstray(cleared)).await;
        }
    }

    /// Chooses the relays anew when that is due, names them, and keeps the ways in from them open.
    pub(super) fn keep_relays(&mut self) {
        let now = clock::now().mono;
        if self.relaying.core.is_due(now) {
            let candidates = match self.relaying.live.load().leaf.claims.relay {
                // Others count on reaching it.
                true => Vec::new(),
                false => self.current.iter().filter_map(candidate).collect(),
            };
            self.relaying.core.handle_candidates(candidates, now);
            let chosen = self.relaying.core.chosen().to_vec();
            self.relaying.own.send_if_modified(|own| {
                let has_changed = *own != chosen;
                *own = chosen;
                has_changed
            });
        }
        if self.relaying.core.keeps_alive(now) {
            for link in self.relaying.core.chosen().iter().filter_map(|relay| self.current.get(relay)) {
                keep_open(link);
            }
        }
        while let Some(node) = self.relaying.core.next_open(now) {
            self.current.get(&node).into_iter().for_each(|link| keep_open(link));
        }
    }
}

/// Sends what makes whatever is between remember the way.
fn keep_open(link: &Link) {
    match link.connection {
        Connection::Quic(_) => drop(link.connection.send_datagram(Bytes::new())),
        // Its answer is nobody's.
        Connection::Lane(_) => drop(link.send_frame(&Frame::Ping(u64::MAX))),
    }
}

/// Returns the networks that the interfaces of this machine are in.
fn on_links() -> Vec<OnLink> {
    let ip = |storage: Option<SockaddrStorage>| {
        let storage = storage?;
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let prefix = match ip(interface.netmask) {
            Some(IpAddr::V4(mask)) => mask.to_bits().leading_ones(),
            Some(IpAddr::V6(mask)) => mask.to_bits().leading_ones(),
            // The address alone.
            None => 128,
        };
        Some(OnLink { address: ip(interface.address)?, prefix: u8::try_from(prefix).unwrap_or(u8::MAX) })
    });
    all.collect()
}

fn candidate((node, link): (&NodeId, &Arc<Link>)) -> Option<Candidate> {
    let is_one = link.is_relay && link.connection.via().is_none();
    is_one.then(|| Candidate { rtt: link.connection.rtt(), node: *node })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_networks_of_interfaces_are_read_with_their_prefixes() {
        let loopback = OnLink { address: IpAddr::from([127, 0, 0, 1]), prefix: 8 };
        assert!(on_links().contains(&loopback), "{:?}", on_links());
    }
}
