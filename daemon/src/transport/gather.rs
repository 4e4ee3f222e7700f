//! A UDP socket that moves bulk with few system calls: it sends more packets with one than the QUIC library hands over at
//! once, and receives into as little memory as stays in the cache.
//!
//! Owns: packets that wait for those that follow them. Must not know: connections, peers.
//! Driven by: the QUIC library, which sends ten packets at once at the most (a constant of quinn 0.11).
//!
//! Only what comes in full batches waits, and only until the tasks that are ready have run: whoever moves much data goes on
//! at once, and whoever does not sends no full batch. A call for 40 packets costs little more than one for ten.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// Most bytes that the system takes at once, headers of IPv4 and UDP taken off.
const MOST_BYTES: usize = 65_535 - 20 - 8;
/// Packets that quinn hands over at once when it has more to send.
const FULL_BATCH: usize = 10;
/// Bytes that the system hands over as one message when a sender's packets came together.
const BULK: usize = 16 << 10;
/// Buffers used while such messages come. They are 64 KiB each: all 32 of quinn's would not stay in a core's cache until
/// they are read.
const FEW: usize = 4;

/// The socket. What [`Gathering::new`] returns beside it must be run.
#[derive(Debug)]
pub(super) struct Gathering {
    socket: Arc<dyn AsyncUdpSocket>,
    held: Mutex<Held>,
    /// Whether what came last was many packets of one sender.
    is_bulk: AtomicBool,
}

/// Packets of one size to one place, in one buffer that stays.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    to: Option<Head>,
    /// The task that sends what is held.
    flusher: Option<Waker>,
}

/// What packets must share to be sent with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    segment: usize,
}

impl Head {
    fn of(transmit: &Transmit<'_>) -> Self {
        let Transmit { destination, ecn, segment_size, src_ip, contents } = transmit;
        let segment = segment_size.unwrap_or(contents.len());
        Self { destination: *destination, ecn: *ecn, src_ip: *src_ip, segment }
    }
}

impl Gathering {
    /// Returns the socket, and what sends what it holds, until it is dropped.
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> (Arc<Self>, Flusher) {
        let gathering = Arc::new(Self { socket, held: Mutex::default(), is_bulk: AtomicBool::default() });
        let flusher = Flusher { of: Arc::downgrade(&gathering), has_yielded: false, writable: None };
        (gathering, flusher)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // No operation leaves it half-done, so a panic elsewhere does not spoil it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is held.
    ///
    /// # Errors
    /// The system has no room; it is held on.
    fn flush(&self, held: &mut Held) -> io::Result<()> {
        let Some(head) = held.to else { return Ok(()) };
        let segment_size = (held.bytes.len() > head.segment).then_some(head.segment);
        let Head { destination, ecn, src_ip, .. } = head;
        let sent =
            self.socket.try_send(&Transmit { destination, ecn, src_ip, segment_size, contents: &held.bytes });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            // Lost, as a packet may be.
            _ => held.to = None,
        }
        held.bytes.clear();
        Ok(())
    }

    /// Most bytes of packets of this size that may go at once.
    fn room(&self, segment: usize) -> usize {
        let packets = self.socket.max_transmit_segments().min(MOST_BYTES / segment.max(1));
        packets * segment
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        if let Some(flusher) = self.lock().flusher.take() {
            flusher.wake();
        }
    }
}

/// Sends what is held when the tasks that were ready have run.
#[derive(Debug)]
pub(super) struct Flusher {
    of: Weak<Gathering>,
    has_yielded: bool,
    /// While the system has no room.
    writable: Option<Pin<Box<dyn UdpPoller>>>,
}

impl Future for Flusher {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(gathering) = self.of.upgrade() else { return Poll::Ready(()) };
        let mut held = gathering.lock();
        held.flusher = Some(context.waker().clone());
        if held.to.is_some() && !self.has_yielded {
            // The connection that filled it stands behind this task and has more.
            self.has_yielded = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.has_yielded = false;
        while gathering.flush(&mut held).is_err() {
            let socket = &gathering.socket;
            let writable = self.writable.get_or_insert_with(|| Arc::clone(socket).create_io_poller());
            if writable.as_mut().poll_writable(context).is_pending() {
                self.has_yielded = true;
                return Poll::Pending;
            }
        }
        self.writable = None;
        Poll::Pending
    }
}

impl AsyncUdpSocket for Gathering {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut held = self.lock();
        let (head, len) = (Head::of(transmit), transmit.contents.len());
        let room = self.room(head.segment);
        if held.to.is_some_and(|to| to != head) || held.bytes.len() + len > room {
            self.flush(&mut held)?;
        }
        let is_full = len == FULL_BATCH * head.segment && len < room;
        if held.to.is_none() && !is_full {
            return self.socket.try_send(transmit);
        }
        held.bytes.extend_from_slice(transmit.contents);
        if held.to.replace(head).is_none()
            && let Some(flusher) = &held.flusher
        {
            flusher.wake_by_ref();
        }
        // What follows a batch that is not full is the next one's first.
        if !is_full || held.bytes.len() + len > room {
            // If there is no room the flusher tries again: these packets are taken.
            let _ = self.flush(&mut held);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let most = if self.is_bulk.load(Ordering::Relaxed) { FEW } else { buffers.len() };
        let buffers = buffers.get_mut(..most).unwrap_or_default();
        let received = ready!(self.socket.poll_recv(context, buffers, meta))?;
        let is_bulk = meta.iter().take(received).any(|message| message.len >= BULK);
        self.is_bulk.store(is_bulk, Ordering::Relaxed);
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests;
