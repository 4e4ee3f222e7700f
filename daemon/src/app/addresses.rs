//! Where this node says it can be reached, kept up to date.
//!
//! Owns: the list that the card, tokens and `status` show, and the relays in the card. Must not know: who dials, how cards travel.
//! Driven by: changes of the interfaces, looked at now and then, and of what peers see.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use gossamer_wire::NodeId;

use super::interfaces;
use crate::supervise::Stage;
use crate::{catalog, clock};

/// Pause between two looks at the interfaces: a machine may get its network after the daemon has started, or move.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What the list is made of.
#[derive(Debug)]
pub(super) struct Sources {
    /// What the operator named.
    pub(super) given: Vec<SocketAddr>,
    /// Where this node listens.
    pub(super) listen: SocketAddr,
    /// Where peers agree to see it.
    pub(super) seen: watch::Receiver<Vec<SocketAddr>>,
    /// The relays it keeps, because nobody can dial it.
    pub(super) relays: watch::Receiver<Vec<NodeId>>,
}

impl Sources {
    fn read(&self) -> Vec<SocketAddr> {
        interfaces::advertised(&self.given, self.listen, &self.seen.borrow())
    }
}

/// Reads the list and keeps it up to date; each change goes into the card. Returns it as it changes.
pub(super) fn start(
    stage: &Stage,
    sources: Sources,
    catalog: mpsc::Sender<catalog::Command>,
) -> watch::Receiver<Vec<SocketAddr>> {
    let (own, reader) = watch::channel(sources.read());
    let stop = stage.stopping().clone();
    stage.spawn("addresses", follow(sources, own, catalog, stop));
    reader
}

async fn follow(
    mut sources: Sources,
    own: watch::Sender<Vec<SocketAddr>>,
    catalog: mpsc::Sender<catalog::Command>,
    stop: CancellationToken,
) {
    let has_interfaces = sources.listen.ip().is_unspecified();
    loop {
        // One that listens on a single address has no others to look for.
        let look = has_interfaces.then(|| clock::now().mono + LOOK_EVERY);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Ok(()) = sources.seen.changed() => {}
            Ok(()) = sources.relays.changed() => {
                let relays = sources.relays.borrow_and_update().clone();
                tracing::info!(?relays, "nobody from another network has dialled this node unasked: these relays lead to it");
                let _ = catalog.send(catalog::Command::Relays(relays)).await;
                continue;
            }
            () = clock::sleep_until(look) => {}
        }
        let read = sources.read();
        if *own.borrow() == read {
            continue;
        }
        tracing::info!(addresses = ?read, "this node is advertised at other addresses");
        own.send_replace(read.clone());
        let _ = catalog.send(catalog::Command::Addresses(read)).await;
    }
}
