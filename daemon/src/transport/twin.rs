//! The owner's part about an identity that runs twice: who has to go, and the search for the other process.
//!
//! Owns: nothing; it is the owner's. Must not know: what frames mean. Driven by: `owner`.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;

use gossamer_core::dial::later_process;
use gossamer_wire::NodeId;

use super::carrier::Connection;
use super::hello::Greeted;
use super::link::{CLOSE_DUPLICATE, CLOSE_TWICE, twin_of};
use super::owner::Owner;
use super::{Report, ToMembership};
use crate::clock;

/// Time another process of this node has to read the hello of this one.
const VERDICT_WITHIN: Duration = Duration::from_secs(1);

/// Pause between two searches for another process of this node: any member can ask for one.
const SEEK_TWIN_EVERY: Duration = Duration::from_secs(10);

impl Owner {
    /// A process with this node's own identity: this one itself, by an address of its own, or a second one. That
    /// a second one has the key is proved by TLS; no peer's word can make this one stop.
    pub(super) async fn meet_self(&self, greeted: &Greeted) {
        let own = self.greeter.nonce;
        if greeted.nonce == own {
            return greeted.connection.close(CLOSE_DUPLICATE.into(), b"this is the same node");
        }
        let at = greeted.connection.remote_address();
        // The other side reaches its own verdict from the hello, which a close could overtake.
        let connection = greeted.connection.clone();
        self.stage.spawn_short("twin", async move {
            tokio::time::sleep(VERDICT_WITHIN).await;
            connection.close(CLOSE_TWICE.into(), at.to_string().as_bytes());
        });
        let _ = self.inbox.membership.send(ToMembership::Twice { node: self.me, at }).await;
        if later_process(own, greeted.nonce) == own {
            tracing::error!(%at, "this identity runs twice; the other process started first");
            self.twin.send_replace(Some(at));
        }
    }

    /// Whether this connection must go because its node runs twice and this process of it started later. The
    /// later one is told where the other is, and finds out by itself.
    pub(super) async fn is_later_twin(&mut self, greeted: &Greeted) -> bool {
        let node = greeted.peer.node;
        let Some(other) = self.twins.connected(node, greeted.nonce) else { return false };
        let old = self.current.get(&node).filter(|old| old.nonce == other).map(|old| old.connection.clone());
        let Some(old) = old else { return false };
        let is_later = later_process(greeted.nonce, other) == greeted.nonce;
        let (loser, winner) =
            if is_later { (&greeted.connection, &old) } else { (&old, &greeted.connection) };
        let at = winner.remote_address();
        loser.close(CLOSE_TWICE.into(), at.to_string().as_bytes());
        let _ = self.inbox.membership.send(ToMembership::Twice { node, at }).await;
        is_later
    }

    /// A peer says that this identity runs twice. Looks for the other process, not too often.
    pub(super) fn seek_twin(&mut self, at: SocketAddr) {
        let now = clock::now().mono;
        if self.sought.is_some_and(|last| now.saturating_duration_since(last) < SEEK_TWIN_EVERY) {
            return;
        }
        self.sought = Some(now);
        self.dial(self.control(self.me), vec![at].into());
    }
}

/// Reports the end of a link, and what the peer has said of another process of this node.
pub(super) async fn report_end(reports: &mpsc::Sender<Report>, node: NodeId, connection: &Connection) {
    let stable_id = connection.stable_id();
    if let Some(at) = twin_of(connection) {
        let _ = reports.send(Report::ToldOfTwin(at)).await;
    }
    let _ = reports.send(Report::LinkEnded { node, stable_id }).await;
}
