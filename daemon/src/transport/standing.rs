//! Whether the connections that live may go on: certificates end, and statements put nodes out.
//!
//! Owns: until when a node is known to be certified. Must not know: what a statement says.
//! Driven by: the owner, after new statements, and when the first certificate of a connection may have ended.
//!
//! A connection is judged by the certificate it was made with. One that has ended since is good enough while the
//! catalog holds a later one of the node: a renewed node need not be dialled again, and no flow ends for it.

use std::collections::BTreeMap;
use std::time::Duration;

use gossamer_core::trust::TrustError;
use gossamer_wire::NodeId;

use super::carrier::Connection;
use super::link::CLOSE_OUT;
use super::owner::Owner;
use crate::clock;

/// Longest time from the end of a certificate to the end of its connections.
const LOOK: Duration = Duration::from_secs(60);
/// Shortest time between two looks.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);
/// Time a node that is put out has to read why.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Ends of the certificates that the catalog knows, seconds since the Unix epoch.
#[derive(Debug, Default)]
pub(super) struct Certified(BTreeMap<NodeId, u64>);

impl Certified {
    /// Notes a certificate; an earlier one is forgotten.
    pub(super) fn set(&mut self, node: NodeId, until: u64) {
        self.0.insert(node, until);
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

impl Owner {
    /// Closes the connections whose certificates count no more, and sets the time of the next look.
    pub(super) fn judge_connections(&mut self) {
        let links = self.current.values().map(|link| link.connection.clone());
        let data = self.pool.connections().cloned().map(Connection::from);
        let links = links.chain(self.seconds.connections());
        let connections: Vec<_> = links.chain(data).chain(self.lanes.connections()).collect();
        let any = !connections.is_empty();
        let mut next = LOOK;
        for connection in connections {
            match self.judge(&connection) {
                Ok(left) => next = next.min(left),
                Err(error) => self.put_out(connection, &error),
            }
        }
        self.judge_at = any.then(|| clock::now().mono + next.max(SHORTEST_LOOK));
    }

    /// Returns how long the connection may go on before it is judged again.
    fn judge(&self, connection: &Connection) -> Result<Duration, TrustError> {
        let wall = self.greeter.clock.wall();
        let leaf = match self.greeter.identify(connection) {
            Ok(leaf) => leaf,
            Err(TrustError::Expired(since)) => {
                let leaf = self.ended(connection)?;
                let renewed = self.certified.0.get(&leaf).copied().unwrap_or(0);
                return match renewed.checked_sub(wall) {
                    Some(left) if left > 0 => Ok(Duration::from_secs(left)),
                    _ => Err(TrustError::Expired(since)),
                };
            }
            Err(error) => return Err(error),
        };
        Ok(Duration::from_secs(leaf.not_after.saturating_sub(wall)))
    }

    /// Judges everything but the end of the certificate.
    fn ended(&self, connection: &Connection) -> Result<NodeId, TrustError> {
        let chain = connection.shown().ok_or(TrustError::None)?;
        let (leaf, shown) = chain.split_first().ok_or(TrustError::None)?;
        let wall = self.greeter.clock.wall();
        self.greeter.trust.load().verify_at_end(leaf, shown, wall).map(|leaf| leaf.node)
    }

    pub(super) fn put_out(&self, connection: Connection, error: &TrustError) {
        tracing::info!(remote = %connection.remote_address(), %error, "closing a connection");
        self.metrics.connection_put_out();
        self.stage.spawn_short("put out", async move {
            tokio::time::sleep(LAST_WORDS).await;
            connection.close(CLOSE_OUT.into(), b"certificate");
        });
    }
}
