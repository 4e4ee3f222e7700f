//! What one call of foca wants done.
//!
//! Owns: the lists foca fills while it runs. Must not know: what becomes of them. Driven by: foca.

use std::time::Duration;

use foca::{Notification, Runtime, Timer};
use gossamer_wire::{Generation, NodeId};

use super::codec::Life;

/// The effects of one call, in foca's order.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Packets, still with their names.
    pub(super) packets: Vec<(NodeId, Vec<u8>)>,
    /// Timers and how long from now they are due.
    pub(super) timers: Vec<(Duration, Timer<Life>)>,
    /// The generation after foca renewed our identity.
    pub(super) renewed: Option<Generation>,
}

impl Runtime<Life> for &mut Effects {
    fn notify(&mut self, notification: Notification<'_, Life>) {
        // Changes of members are found by comparing, because suspicion is not notified.
        if let Notification::Rejoin(life) = notification {
            self.renewed = Some(life.0.generation);
        }
    }

    fn send_to(&mut self, to: Life, data: &[u8]) {
        self.packets.push((to.0.node, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Life>, after: Duration) {
        self.timers.push((after, event));
    }
}
