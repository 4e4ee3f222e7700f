//! A control connection: frames on one stream both ways, SWIM packets as datagrams.
//!
//! Owns: reading and writing of one connection. Must not know: which connections are kept.
//! Driven by: `transport`, which starts one task per link.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use quinn::{ConnectionError, SendDatagramError};
use tokio::sync::mpsc;

use gossamer_wire::frame::{Frame, Purpose};
use gossamer_wire::limits::MAX_SWIM_BYTES;
use gossamer_wire::{DecodeError, NodeId};

use super::carrier::{Connection, RecvStream, SendStream};
use super::hello::{Greeted, HelloError, read_frame};
use super::ping::Allowance;
use super::{Inbox, ToCatalog, ToMembership};
use crate::clock;
use crate::metrics::Metrics;

/// Bytes waiting for a link's stream; a peer that does not read pins no more (design section 16).
const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Frames waiting for a link's stream. A full catalog of 1,000 nodes is about 12 frames; a peer that does not
/// read loses what is above, which repair mends.
const FRAMES: usize = 1_024;

/// The sending half of a link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) nonce: u64,
    pub(super) dialled: bool,
    /// Whether its certificate has the role.
    pub(super) is_relay: bool,
    /// When it was greeted.
    pub(super) since: Instant,
    /// Digest of the statements that the other side was sent, or had, when it came about.
    pub(super) statements: [u8; 16],
    frames: mpsc::Sender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
}

/// The receiving half, to be run in a task.
#[derive(Debug)]
pub(super) struct LinkIo {
    connection: Connection,
    purpose: Purpose,
    node: NodeId,
    send: SendStream,
    recv: RecvStream,
    frames: mpsc::Receiver<Vec<u8>>,
    /// Answers to pings go out with the other frames.
    answers: mpsc::WeakSender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
}

impl Link {
    /// Splits a greeted control connection.
    pub(super) fn new(greeted: Greeted) -> (Self, LinkIo) {
        let Greeted { connection, purpose, peer, nonce, dialled, statements, send, recv, .. } = greeted;
        if let Connection::Lane(lane) = &connection {
            lane.keep();
        }
        let is_relay = peer.claims.relay;
        let (sender, frames) = mpsc::channel(FRAMES);
        let queued = Arc::<AtomicUsize>::default();
        let io = LinkIo {
            connection: connection.clone(),
            purpose,
            node: peer.node,
            send,
            recv,
            frames,
            answers: sender.downgrade(),
            queued: Arc::clone(&queued),
        };
        let since = clock::now().mono;
        (Self { connection, nonce, dialled, is_relay, since, statements, frames: sender, queued }, io)
    }

    /// Queues a frame; `false` when the queue is full or the link has ended.
    pub(super) fn send_frame(&self, frame: &Frame) -> bool {
        match frame.encode() {
            Ok(bytes) => self.queue(bytes),
            Err(error) => {
                tracing::warn!(%error, "frame not sent");
                false
            }
        }
    }

    fn queue(&self, bytes: Vec<u8>) -> bool {
        let len = bytes.len();
        if self.queued.fetch_add(len, Ordering::Relaxed) + len > MAX_QUEUED_BYTES
            || self.frames.try_send(bytes).is_err()
        {
            self.queued.fetch_sub(len, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Sends a SWIM packet as a datagram, or on the stream of a lane and when the path's datagrams are too small.
    pub(super) fn send_packet(&self, packet: Vec<u8>) -> bool {
        let packet = Bytes::from(packet);
        match self.connection.send_datagram(packet.clone()) {
            Ok(()) => true,
            Err(SendDatagramError::TooLarge | SendDatagramError::UnsupportedByPeer) => {
                self.send_frame(&Frame::Swim(packet.into()))
            }
            Err(_) => false,
        }
    }
}

impl LinkIo {
    /// Runs until the connection ends, whoever ends it.
    pub(super) async fn run(self, inbox: Inbox, metrics: Arc<Metrics>) {
        let Self { connection, purpose, node, send, recv, frames, answers, queued } = self;
        let answers = Answers { frames: answers, queued: Arc::clone(&queued) };
        let result = tokio::select! {
            biased;
            result = write(send, frames, &queued) => result,
            result = read((node, purpose), recv, &answers, &inbox) => result,
            result = datagrams(node, &connection, &inbox) => result,
        };
        if let Err(error) = result {
            if let HelloError::Decode(_) | HelloError::Purpose = error {
                metrics.bad_frame();
                tracing::debug!(peer = %node, %error, "closing a connection");
            }
            // The reason a peer gave for a close must not be lost.
            if connection.close_reason().is_none() {
                connection.close(CLOSE_BAD_BYTES.into(), b"bytes refused");
            }
        }
    }
}

/// Application close codes, for the other side's logs.
pub(super) const CLOSE_BAD_BYTES: u32 = 1;
/// Two connections between one pair: this one is given up.
pub(super) const CLOSE_DUPLICATE: u32 = 2;
/// Membership says the node is down, or it left.
pub(super) const CLOSE_DOWN: u32 = 3;
/// Nothing has used the connection for a while.
pub(super) const CLOSE_IDLE: u32 = 4;
/// The certificate, ALPN or hello was refused.
pub(super) const CLOSE_REFUSED: u32 = 5;

/// The certificate does not count any more: it ended, or statements put the node or its issuer out.
pub(super) const CLOSE_OUT: u32 = 7;

/// Somebody only wanted to know whether this node answers there.
pub(super) const CLOSE_LOOKED: u32 = 12;

/// The address at this end is gone, so the peer sends into the void.
pub(super) const CLOSE_MOVED: u32 = 11;

/// The peer has asked too often for what it may not call or what is not here.
pub(super) const CLOSE_SEARCH: u32 = 10;

/// The identity of the peer runs twice, at the address in the reason; this process started later.
pub(super) const CLOSE_TWICE: u32 = 6;

/// Returns where the other process runs, if a peer closed the connection because there is one. Only a hint: it
/// has to be seen.
pub(super) fn twin_of(connection: &Connection) -> Option<SocketAddr> {
    match connection.close_reason()? {
        ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_TWICE.into() => {
            std::str::from_utf8(&close.reason).ok()?.parse().ok()
        }
        _ => None,
    }
}

async fn write(
    mut send: SendStream,
    mut frames: mpsc::Receiver<Vec<u8>>,
    queued: &AtomicUsize,
) -> Result<(), HelloError> {
    while let Some(frame) = frames.recv().await {
        queued.fetch_sub(frame.len(), Ordering::Relaxed);
        send.write_all(&frame).await.map_err(std::io::Error::from)?;
    }
    Ok(())
}

/// Where answers to pings are queued.
struct Answers {
    frames: mpsc::WeakSender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
}

impl Answers {
    /// Queues an answer, unless the peer does not read: then there is none.
    fn pong(&self, number: u64) {
        if let (Some(frames), Ok(bytes)) = (self.frames.upgrade(), Frame::Pong(number).encode()) {
            let len = bytes.len();
            self.queued.fetch_add(len, Ordering::Relaxed);
            if frames.try_send(bytes).is_err() {
                self.queued.fetch_sub(len, Ordering::Relaxed);
            }
        }
    }
}

async fn read(
    (node, purpose): (NodeId, Purpose),
    mut recv: RecvStream,
    answers: &Answers,
    inbox: &Inbox,
) -> Result<(), HelloError> {
    let mut allowance = Allowance::new(clock::now().mono);
    loop {
        let Some(frame) = read_frame(&mut recv).await? else { continue };
        if purpose == Purpose::Swim && !is_swim(&frame) {
            return Err(HelloError::Purpose);
        }
        match frame {
            Frame::Members { members, reply } => {
                inbox.members(node, members, reply).await;
            }
            Frame::Swim(bytes) if bytes.len() > MAX_SWIM_BYTES => {
                let (what, len) = ("swim packet", bytes.len());
                return Err(DecodeError::TooLong { what, len, limit: MAX_SWIM_BYTES }.into());
            }
            Frame::Swim(bytes) => inbox.membership(ToMembership::Packet { from: node, bytes }),
            Frame::DialBack(purpose) => inbox.dial_back(node, purpose).await,
            frame @ (Frame::MemberHash(_) | Frame::Probe(_) | Frame::ProbeAck(_)) => {
                inbox.membership(ToMembership::Frame { from: node, frame });
            }
            frame @ (Frame::Adverts { .. }
            | Frame::Root(_)
            | Frame::Buckets(_)
            | Frame::Ids { .. }
            | Frame::Want(_)
            | Frame::Spread { .. }
            | Frame::Have(_)) => inbox.catalog(ToCatalog::Frame { from: node, frame }).await,
            frame @ (Frame::Statements(_) | Frame::IssuerKeyWanted | Frame::IssuerKey { .. }) => {
                inbox.authority.frame(node, frame).await;
            }
            Frame::Ping(number) if allowance.takes(clock::now().mono) => answers.pong(number),
            Frame::Ping(_) => inbox.metrics.ping_ignored(),
            Frame::Pong(number) => inbox.pings.answered(node, number),
            // A second hello means nothing.
            Frame::Hello(_) => {}
        }
    }
}

async fn datagrams(node: NodeId, connection: &Connection, inbox: &Inbox) -> Result<(), HelloError> {
    loop {
        let bytes = connection.read_datagram().await?;
        // An empty one keeps the way open.
        if !bytes.is_empty() && bytes.len() <= MAX_SWIM_BYTES {
            inbox.membership(ToMembership::Packet { from: node, bytes: bytes.into() });
        }
    }
}

/// Whether it is of those that ask whether somebody lives, and answer. An answer goes behind the entry that says which life
/// this is.
pub(super) fn is_swim(frame: &Frame) -> bool {
    match frame {
        Frame::Swim(_) | Frame::Probe(_) | Frame::ProbeAck(_) => true,
        Frame::Members { members, reply } => members.len() == 1 && !reply,
        _ => false,
    }
}

/// What a connection is asked back for.
pub(super) const fn is_data(purpose: Purpose) -> bool {
    matches!(purpose, Purpose::Data)
}
