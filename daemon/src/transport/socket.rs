//! The UDP socket as the QUIC library sees it, with as few wake-ups and system calls as the system allows.
//!
//! Owns: when it is read, when it has room. Must not know: packets. Driven by: `gather`.
//!
//! The library's own asks to be told of room to send all the time, and is told after each packet that was taken; and it reads
//! until nothing is there, though the system has said so by giving less than was asked for.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The socket, on the runtime in which it was made.
#[derive(Debug)]
pub(super) struct QuietSocket {
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// Whether the system had no room for the last packet.
    is_full: AtomicBool,
}

impl QuietSocket {
    /// # Errors
    /// Those of the system.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Arc<Self>> {
        let state = UdpSocketState::new((&socket).into())?;
        socket.set_nonblocking(true)?;
        Ok(Arc::new(Self {
            socket: told_of(Interest::READABLE, socket)?,
            state,
            is_full: AtomicBool::new(false),
        }))
    }
}

/// Registers the socket with the runtime for one kind of news.
#[expect(
    deprecated,
    reason = "deprecated for what may exchange its descriptor, which a socket of std does not"
)]
fn told_of(interest: Interest, socket: UdpSocket) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncUdpSocket for QuietSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.socket.get_ref().into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.is_full.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            match self.state.recv(self.socket.get_ref().into(), buffers, meta) {
                Ok(received) => {
                    // What comes from here on is told anew.
                    if received < buffers.len() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(received));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                // A report of a packet that was sent: it is taken by being told.
                Err(_) => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// Waits until the system has room again. It is asked to tell only while somebody waits.
#[derive(Debug)]
struct Room {
    socket: Arc<QuietSocket>,
    waiting: Option<AsyncFd<UdpSocket>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The library asks before each packet.
        if !self.socket.is_full.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        if self.waiting.is_none() {
            let again = self.socket.socket.get_ref().try_clone()?;
            self.waiting = Some(told_of(Interest::WRITABLE, again)?);
        }
        if let Some(waiting) = &self.waiting {
            ready!(waiting.poll_write_ready(context))?.retain_ready();
        }
        self.socket.is_full.store(false, Ordering::Relaxed);
        self.waiting = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use quinn::udp::Transmit;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn socket() -> Arc<QuietSocket> {
        QuietSocket::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds")).expect("made")
    }

    fn packet(destination: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None }
    }

    async fn receive(socket: &QuietSocket, most: usize) -> Vec<Vec<u8>> {
        let mut bytes = vec![[0; 64]; most];
        let mut meta = vec![RecvMeta::default(); most];
        let mut buffers: Vec<_> = bytes.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let receiving = poll_fn(|context| socket.poll_recv(context, &mut buffers, &mut meta));
        let received = timeout(SOON, receiving).await.expect("in time").expect("receives");
        let parts = bytes.iter().zip(&meta).take(received);
        parts.map(|(bytes, meta)| bytes.get(..meta.len).expect("fits").to_vec()).collect()
    }

    #[tokio::test]
    async fn what_comes_after_a_short_read_and_after_a_full_one_is_received() {
        let (near, far) = (socket(), socket());
        let to = far.local_addr().expect("bound");
        for round in 0..50_u8 {
            for part in [1, 2, 3] {
                near.try_send(&packet(to, &[round, part])).expect("sends");
            }
            // As many as were asked for, and then less.
            let mut all = receive(&far, 2).await;
            while all.len() < 3 {
                all.extend(receive(&far, 2).await);
            }
            assert_eq!(all, [[round, 1], [round, 2], [round, 3]]);
        }
    }

    #[tokio::test]
    async fn who_waits_for_room_is_told_whenever_there_is_some() {
        let near = socket();
        let mut room = Arc::clone(&near).create_io_poller();
        for _ in 0..3 {
            near.is_full.store(true, Ordering::Relaxed);
            timeout(SOON, poll_fn(|context| room.as_mut().poll_writable(context)))
                .await
                .expect("in time")
                .expect("room");
            assert!(!near.is_full.load(Ordering::Relaxed));
        }
    }
}
