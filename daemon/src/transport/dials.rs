//! The owner's part about dials: where and by which ways a node is dialled, and for whom.
//!
//! Owns: nothing; it is the owner's. Must not know: how a handshake goes. Driven by: `owner`.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gossamer_core::dial::Detour;
use gossamer_wire::frame::{Frame, Purpose};
use gossamer_wire::{LaneAddress, NodeId};

use super::Report;
use super::accept::{By, Dialled, Errand, Whereabouts};
use super::data::DataConnection;
use super::lane::Opener;
use super::link::{Link, is_data};
use super::owner::Owner;
use crate::clock;

/// How long a peer that was asked to dial has for it before this node dials as well.
pub(super) const HEAD_START: Duration = Duration::from_millis(250);

impl Owner {
    pub(super) fn may_dial_us(&self, node: NodeId) -> bool {
        self.current.get(&node).is_some_and(|link| !link.dialled)
    }

    /// A peer that cannot be dialled was asked to dial; who waits for it goes on waiting.
    pub(super) fn data_dial_failed(&mut self, node: NodeId) {
        if !self.may_dial_us(node) {
            self.pool.give_up(node);
        } else if self.pool.dial_failed(node) {
            self.dial_data(node);
        }
    }

    /// Only data connections are dialled at a peer's wish: control connections are this node's own concern.
    pub(super) fn dial_back(&mut self, node: NodeId, purpose: Purpose) {
        if is_data(purpose) && self.pool.request_back(node) {
            let by = match self.ways.detour(node) {
                None => self.all(node),
                Some(Detour::Lane) => By::Lane,
                Some(Detour::Circuit) => By::Circuit,
            };
            let opener = Opener::Dialled;
            self.dial(Errand { node, purpose, by, opener }, self.whereabouts(node));
        }
    }

    /// The side that can dial opens the connection. When the peer dialled the control connection, it may be the only one
    /// that can, and it is the one whose address may change while flows live: QUIC follows the side that dialled. So it is
    /// asked, and this node dials only when that has brought nothing.
    pub(super) fn dial_data(&mut self, node: NodeId) {
        let to = self.whereabouts(node);
        let errand = Errand { node, purpose: Purpose::Data, by: self.all(node), opener: Opener::Dialler };
        let asked = self.current.get(&node).filter(|link| !link.dialled);
        if !asked.is_some_and(|link| link.send_frame(&Frame::DialBack(Purpose::Data))) {
            return self.dial(errand, to);
        }
        let (newest, dialling) = (self.pool.newest(), self.dialling(errand, to));
        self.stage.spawn_short("dial", async move {
            tokio::time::sleep(HEAD_START).await;
            let has_come = |data: &DataConnection| data.connection.close_reason().is_none();
            if !newest.load().get(&node).is_some_and(has_come) {
                dialling.await;
            }
        });
    }

    /// Returns where the node may be, the address of its control connection first.
    pub(super) fn udp_addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        self.book.addresses_of(node, clock::now().mono)
    }

    /// Returns where the node may be, the address of its control connection first.
    pub(super) fn data_addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        let mut addresses = self.book.addresses_of(node, clock::now().mono);
        // An inbound lane says nothing of where its dialler listens, and a circuit nothing at all.
        let of_use = |link: &&Arc<Link>| match link.connection.detour() {
            None => true,
            Some(Detour::Lane) => link.dialled && !link.connection.is_ingress(),
            Some(Detour::Circuit) => false,
        };
        if let Some(link) = self.current.get(&node).filter(of_use) {
            let remote = link.connection.remote_address();
            addresses.retain(|address| *address != remote);
            addresses.insert(0, remote);
        }
        addresses
    }

    /// Adds to addresses of a node which other ways lead to it.
    pub(super) fn place(&self, node: NodeId, addresses: Vec<SocketAddr>) -> Whereabouts {
        let lanes = self.lane_addresses.get(&node).cloned().unwrap_or_default();
        let by_ingress = self.current.get(&node).is_some_and(|link| link.connection.is_ingress());
        Whereabouts { addresses, lanes, by_ingress, relays: self.relays_of(node) }
    }

    /// Takes in what a node's card says of where only lanes reach it.
    pub(super) fn learn_lanes(&mut self, node: NodeId, lanes: Vec<LaneAddress>) {
        self.book.learn_lanes(node, !lanes.is_empty());
        match lanes.is_empty() {
            true => self.lane_addresses.remove(&node),
            false => self.lane_addresses.insert(node, lanes),
        };
    }

    /// The catalog has dropped the node's card. Where it was dialled is kept: it may come back from anywhere else.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.ways.forget(node);
        self.certified.forget(node);
        self.learn_relays(node, Vec::new());
        if self.lane_addresses.contains_key(&node) {
            self.learn_lanes(node, Vec::new());
        }
    }

    pub(super) fn control(&self, node: NodeId) -> Errand {
        Errand { node, purpose: Purpose::Control, by: self.all(node), opener: Opener::Dialler }
    }

    /// UDP, and the rest after the start it has.
    fn all(&self, node: NodeId) -> By {
        By::All(self.ways.head_start(node))
    }

    pub(super) fn dial(&mut self, errand: Errand, to: Whereabouts) {
        let dialling = self.dialling(errand, to);
        self.stage.spawn_short("dial", dialling);
    }

    /// Returns a dial that has not begun yet.
    pub(super) fn dialling(
        &mut self,
        errand: Errand,
        to: Whereabouts,
    ) -> impl Future<Output = ()> + Send + use<> {
        self.relaying.core.handle_sent(errand.node, clock::now().mono);
        let dialler = self.dialler(errand.purpose);
        let reports = self.inbox.reports.clone();
        async move {
            let node = errand.node;
            let Dialled { greeted, others, astray } = dialler.dial(errand, to).await;
            if !others.is_empty() {
                let _ = reports.send(Report::MetAnother { node, addresses: others }).await;
            }
            if !astray.is_empty() {
                let _ = reports.send(Report::LedAstray { node, relays: astray }).await;
            }
            let report = greeted.map_or(Report::DialFailed(errand), Report::Greeted);
            let _ = reports.send(report).await;
        }
    }
}
