//! The owner's part about second circuits: SWIM's words to whom relays lead to go through two of them (ADR 48).
//!
//! Owns: the second links. Must not know: what SWIM says. Driven by: `owner`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use gossamer_core::seconds::Seconds;
use gossamer_wire::NodeId;
use gossamer_wire::frame::Purpose;

use super::accept::{By, Errand, Whereabouts};
use super::carrier::Connection;
use super::hello::Greeted;
use super::lane::Opener;
use super::link::{CLOSE_DUPLICATE, CLOSE_IDLE, Link};
use super::owner::Owner;
use super::{Links, Report};
use crate::clock;

/// The second circuits of all nodes, one each.
#[derive(Debug, Default)]
pub(super) struct SecondLinks {
    core: Seconds,
    current: BTreeMap<NodeId, Arc<Link>>,
    links: Links,
}

impl SecondLinks {
    /// Returns read access.
    pub(super) fn links(&self) -> Links {
        Arc::clone(&self.links)
    }

    /// A control connection has ended.
    pub(super) fn first_lost(&mut self, node: NodeId) {
        self.core.handle_first_lost(node, clock::now().mono);
    }

    /// None has come about.
    pub(super) fn lost(&mut self, node: NodeId) {
        self.core.handle_second_lost(node, clock::now().mono);
    }

    /// Returns when one is to be dialled or given up.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.core.next_deadline()
    }

    pub(super) fn connections(&self) -> impl Iterator<Item = Connection> {
        self.current.values().map(|link| link.connection.clone())
    }

    /// Takes one out and closes it.
    fn end(&mut self, node: NodeId) {
        if let Some(link) = self.current.remove(&node) {
            self.publish();
            link.connection.close(CLOSE_IDLE.into(), b"of no use");
        }
    }

    fn publish(&self) {
        self.links.store(Arc::new(self.current.clone()));
    }
}

impl Owner {
    /// Notes by which way a node's control connection has come.
    pub(super) fn note_first(&mut self, greeted: &Greeted) {
        let (node, via) = (greeted.peer.node, greeted.connection.via());
        let must_end = self.seconds.core.handle_first(node, via, greeted.dialled, clock::now().mono);
        let is_of_another = |second: &Arc<Link>| second.nonce != greeted.nonce;
        if must_end {
            self.seconds.end(node);
        } else if self.seconds.current.get(&node).is_some_and(is_of_another) {
            // The peer has restarted.
            self.seconds.end(node);
            self.seconds.lost(node);
        }
    }

    /// The node is gone: nothing is sent to it any more.
    pub(super) fn end_second(&mut self, node: NodeId) {
        self.seconds.core.forget(node);
        self.seconds.end(node);
    }

    /// Dials those that are due, and closes those that nothing stands beside.
    pub(super) fn keep_seconds(&mut self) {
        let now = clock::now().mono;
        while let Some((node, first)) = self.seconds.core.next_dial(now) {
            let mut relays = self.place(node, Vec::new()).relays;
            relays.retain(|relay| *relay != first);
            if relays.is_empty() {
                self.seconds.lost(node);
                continue;
            }
            let (purpose, by, opener) = (Purpose::Swim, By::Circuit, Opener::Dialler);
            let to = Whereabouts { relays, ..Whereabouts::default() };
            self.dial(Errand { node, purpose, by, opener }, to);
        }
        while let Some(node) = self.seconds.core.next_alone(now) {
            self.seconds.end(node);
        }
    }

    /// Takes one into use, in the place of an older one. It is of the process that the control connection leads to, or goes.
    pub(super) fn add_second(&mut self, greeted: Greeted) {
        let node = greeted.peer.node;
        let is_same = self.current.get(&node).is_some_and(|link| link.nonce == greeted.nonce);
        if !is_same || !self.seconds.core.handle_second(node, greeted.connection.via()) {
            if greeted.dialled {
                self.seconds.lost(node);
            }
            return greeted.connection.close(CLOSE_DUPLICATE.into(), b"of no use");
        }
        if let Err(error) = self.greeter.identify(&greeted.connection) {
            self.seconds.lost(node);
            return self.put_out(greeted.connection, &error);
        }
        tracing::debug!(peer = %node, relay = ?greeted.connection.via(), "a second circuit is up");
        let connection = greeted.connection.clone();
        let (link, io) = Link::new(greeted);
        if let Some(old) = self.seconds.current.insert(node, Arc::new(link)) {
            old.connection.close(CLOSE_DUPLICATE.into(), b"duplicate");
        }
        self.seconds.publish();
        let (inbox, metrics) = (self.inbox.clone(), Arc::clone(&self.metrics));
        self.stage.spawn_short("second link", async move {
            let reports = inbox.reports.clone();
            io.run(inbox, metrics).await;
            let _ = reports.send(Report::SecondEnded { node, stable_id: connection.stable_id() }).await;
        });
    }

    pub(super) fn remove_second(&mut self, node: NodeId, stable_id: usize) {
        let current = self.seconds.current.get(&node);
        if current.is_some_and(|link| link.connection.stable_id() == stable_id) {
            self.seconds.end(node);
            self.seconds.lost(node);
        }
    }
}
