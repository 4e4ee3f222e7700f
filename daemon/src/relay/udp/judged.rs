//! Whether a flow may still use its target: judged again when the registrations have changed.
//!
//! Owns: what a flow was last judged by. Must not know: sockets. Driven by: both ends, before each datagram.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use gossamer_wire::GroupName;
use gossamer_wire::flow::OpenRequest;

use crate::register::LocalService;
use crate::relay::Relay;

/// The right of one flow to one target of this node.
pub(super) struct Judged {
    relay: Relay,
    request: OpenRequest,
    group: GroupName,
    /// The target.
    pub(super) address: SocketAddr,
    /// The registrations it was last judged by.
    by: ArcSwap<Vec<LocalService>>,
}

impl Judged {
    /// Finds the target of a request of a group; `None` when there is none for it.
    pub(super) fn new(relay: &Relay, request: OpenRequest, group: GroupName) -> Option<Self> {
        let by = relay.parts.targets.all().into();
        let address = relay.permitted(&request, &group)?.addr.ip()?;
        Some(Self { relay: relay.clone(), request, group, address, by })
    }

    /// Returns whether the request would find the same target now.
    pub(super) fn is_allowed(&self) -> bool {
        let now = self.relay.parts.targets.all();
        if Arc::ptr_eq(&now, &self.by.load()) {
            return true;
        }
        let target = self.relay.permitted(&self.request, &self.group);
        self.by.store(now);
        target.and_then(|target| target.addr.ip()) == Some(self.address)
    }
}
