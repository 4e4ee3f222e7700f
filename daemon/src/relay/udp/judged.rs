//! Whether a flow may still use its target: judged again when the registrations have changed.
//!
//! Owns: what a flow was last judged by. Must not know: sockets. Driven by: both ends, before each datagram.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use gossamer_core::trust::Leaf;
use gossamer_wire::flow::{OpenRequest, OpenStatus};

use crate::register::LocalService;
use crate::relay::Relay;
use crate::relay::inbound::Refusal;

/// The right of one flow to one target of this node.
pub(super) struct Judged {
    relay: Relay,
    request: OpenRequest,
    caller: Arc<Leaf>,
    /// The target.
    pub(super) address: SocketAddr,
    /// The registrations it was last judged by.
    by: ArcSwap<Vec<LocalService>>,
}

/// What has become of a flow's right to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// It goes on.
    Same,
    /// The target was withdrawn, or is at another address: a new flow may find it.
    Gone,
    /// The caller may no longer call it, or nobody may.
    Denied,
}

impl Judged {
    /// Finds the target of a new flow.
    ///
    /// # Errors
    /// There is none for this caller.
    pub(super) fn new(relay: &Relay, request: OpenRequest, caller: Arc<Leaf>) -> Result<Self, Refusal> {
        let by = relay.parts.targets.all().into();
        let target = relay.admitted(&request, &caller)?;
        // A socket of the file system takes no datagrams, so none is registered.
        let address = target.addr.ip().ok_or_else(|| Refusal::from(OpenStatus::Refused))?;
        Ok(Self { relay: relay.clone(), request, caller, address, by })
    }

    /// Judges whether the request would find the same target now.
    pub(super) fn judge(&self) -> Right {
        let now = self.relay.parts.targets.all();
        if Arc::ptr_eq(&now, &self.by.load()) {
            return Right::Same;
        }
        let OpenRequest { service, instance, port, transport, .. } = &self.request;
        if self.relay.parts.targets.lookup(service, instance, port, *transport).is_none() {
            return Right::Gone;
        }
        match self.relay.permitted(&self.request, &self.caller) {
            Err(_) => Right::Denied,
            Ok((target, _)) if target.addr.ip() != Some(self.address) => Right::Gone,
            Ok(_) => {
                // Of what does not last nothing is kept: the next datagram must not pass.
                self.by.store(now);
                Right::Same
            }
        }
    }
}
