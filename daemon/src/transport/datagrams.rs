//! Datagrams of UDP flows on a data connection: each says by the id of its stream which flow it belongs to.
//!
//! Owns: which flow takes what comes in, the bound on datagrams that come in parts. Must not know: sockets of programs,
//! services. Driven by: `data`, which reads the connection; the relay, which sends and receives.
//!
//! Nothing here waits: a datagram that cannot go on is dropped, as UDP allows, and never the newest.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, SendDatagramError, StreamId, VarInt};
use tokio::sync::Semaphore;

use gossamer_wire::flow::{decode_stream_id, encode_stream_id};
use gossamer_wire::limits::MAX_FRAMED_AT_ONCE;

use super::carrier::Connection;
use super::link::{CLOSE_BAD_BYTES, CLOSE_SEARCH};

/// Takes the datagrams of one flow. It must not block.
pub(crate) type Take = Box<dyn Fn(Bytes) + Send + Sync>;

/// The datagrams of one data connection. Clones are handles.
#[derive(Clone, Debug)]
pub struct Datagrams {
    connection: Connection,
    shared: Arc<Shared>,
}

struct Shared {
    /// At most as many as the connection has streams.
    flows: Mutex<HashMap<u64, Arc<Take>>>,
    /// Datagrams that come in parts.
    framed: Semaphore,
    /// Datagrams that go in parts.
    framing: Semaphore,
    strays: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("strays", &self.strays).finish_non_exhaustive()
    }
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It goes out.
    Queued,
    /// It goes out, and one that waited longest may be dropped for it.
    Crowded,
    /// It does not fit one packet of the path.
    TooLarge,
    /// The connection has ended.
    Lost,
}

impl Datagrams {
    pub(crate) fn new(connection: impl Into<Connection>) -> Self {
        let shared = Shared {
            flows: Mutex::default(),
            framed: Semaphore::new(MAX_FRAMED_AT_ONCE),
            framing: Semaphore::new(MAX_FRAMED_AT_ONCE),
            strays: AtomicU64::new(0),
        };
        Self { connection: connection.into(), shared: Arc::new(shared) }
    }

    /// Closes the connection, with all its flows: the peer searches for what it may not call. Returns whether it was open.
    pub(crate) fn hang_up(&self) -> bool {
        let is_open = self.connection.close_reason().is_none();
        self.connection.close(CLOSE_SEARCH.into(), b"too many refused requests");
        is_open
    }

    /// Lets a flow take its datagrams until the guard is dropped. They must be registered before the other side can
    /// know of the flow, or the first ones are lost.
    pub(crate) fn register(&self, stream: StreamId, take: Take) -> Registered {
        let stream = u64::from(VarInt::from(stream));
        self.shared.lock().insert(stream, Arc::new(take));
        Registered { shared: Arc::clone(&self.shared), stream }
    }

    /// Whether the peer has dialled the connection, over UDP.
    pub(crate) fn is_inbound(&self) -> bool {
        self.connection.quic().is_some_and(|connection| connection.side().is_server())
    }

    /// Returns the smoothed round trip of the connection.
    pub(crate) fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Sends a datagram of a flow. Never waits.
    pub(crate) fn send(&self, stream: StreamId, payload: &[u8]) -> Sent {
        let id = encode_stream_id(VarInt::from(stream).into());
        let len = id.len() + payload.len();
        // A lane takes none: what is too large goes on the stream.
        if self.connection.max_datagram_size().is_none_or(|most| len > most) {
            return if self.connection.close_reason().is_some() { Sent::Lost } else { Sent::TooLarge };
        }
        let is_crowded = self.connection.datagram_send_buffer_space() < len;
        let mut datagram = BytesMut::with_capacity(len);
        datagram.extend_from_slice(&id);
        datagram.extend_from_slice(payload);
        match self.connection.send_datagram(datagram.freeze()) {
            Ok(()) if is_crowded => Sent::Crowded,
            Ok(()) => Sent::Queued,
            Err(
                SendDatagramError::TooLarge
                | SendDatagramError::Disabled
                | SendDatagramError::UnsupportedByPeer,
            ) => Sent::TooLarge,
            Err(SendDatagramError::ConnectionLost(_)) => Sent::Lost,
        }
    }

    /// Returns how many more datagrams may come in parts at once; who reads one holds a permit.
    pub(crate) fn framed(&self) -> &Semaphore {
        &self.shared.framed
    }

    /// Returns how many more datagrams may go in parts at once; who writes one holds a permit, for the other side may take
    /// its time.
    pub(crate) fn framing(&self) -> &Semaphore {
        &self.shared.framing
    }

    /// Returns how many datagrams came for no flow.
    #[cfg(test)]
    pub(crate) fn strays(&self) -> u64 {
        self.shared.strays.load(Ordering::Relaxed)
    }

    /// Hands on datagrams until the connection ends. `stray` is called for each that belongs to no flow.
    pub(crate) async fn run(&self, stray: impl Fn() + Send) {
        loop {
            let datagram = match self.connection.read_datagram().await {
                Ok(datagram) => datagram,
                Err(ConnectionError::LocallyClosed | ConnectionError::TimedOut) => return,
                Err(error) => return tracing::debug!(%error, "no more datagrams"),
            };
            // Keeps the connection alive, no more.
            if datagram.is_empty() {
                continue;
            }
            let (stream, used) = match decode_stream_id(&datagram) {
                Ok(read) => read,
                Err(error) => {
                    tracing::debug!(%error, "a peer's datagram");
                    stray();
                    return self.connection.close(CLOSE_BAD_BYTES.into(), b"bytes refused");
                }
            };
            let take = self.shared.lock().get(&stream).map(Arc::clone);
            match take {
                Some(take) => take(datagram.slice(used..)),
                // Its flow has just ended, or the peer makes them up.
                None => {
                    self.shared.strays.fetch_add(1, Ordering::Relaxed);
                    stray();
                }
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Take>>> {
        // Single map operations: a panic elsewhere does not spoil it.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flow that takes its datagrams; dropped with the flow.
#[derive(Debug)]
pub(crate) struct Registered {
    shared: Arc<Shared>,
    stream: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.stream);
    }
}
