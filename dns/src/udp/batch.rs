//! Batches: many datagrams received with one system call, and many sent.
//!
//! Owns: the buffers, the two calls. Must not know: what datagrams say. Driven by: `udp`, one of each per socket.
//!
//! What is received is borrowed by slot while answers are written to the other side, so nothing is copied and nothing
//! is allocated per datagram.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::compiled::MAX_DATAGRAM;

/// What has arrived.
#[derive(Debug)]
pub(super) struct Inbox {
    slots: Vec<[u8; SLOT]>,
    /// Length and sender of each datagram, by slot.
    arrived: Vec<(usize, SockaddrStorage)>,
}

/// What is to be sent.
#[derive(Debug)]
pub(super) struct Outbox {
    slots: Vec<[u8; MAX_DATAGRAM]>,
    /// Length and receiver of each datagram, by slot.
    ready: Vec<(usize, SocketAddr)>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { slots: vec![[0; SLOT]; BATCH], arrived: Vec::with_capacity(BATCH) }
    }

    /// Receives what is there, [`BATCH`] datagrams at most, in the place of what was received before. Returns whether
    /// that is all.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        let Self { slots, arrived } = self;
        arrived.clear();
        let received = socket.try_io(Interest::READABLE, || {
            let mut headers = MultiHeaders::preallocate(slots.len(), None);
            let mut buffers: Vec<_> = slots.iter_mut().map(|slot| [IoSliceMut::new(slot)]).collect();
            let messages =
                recvmmsg(socket.as_raw_fd(), &mut headers, &mut buffers, MsgFlags::MSG_DONTWAIT, None)?;
            arrived.extend(messages.filter_map(|message| Some((message.bytes, message.address?))));
            // Less than there was room for is all there was. So tokio waits for the next one without being told by
            // another call that nothing is left.
            if arrived.len() < BATCH { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match received {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Returns how many datagrams were received.
    pub(super) fn len(&self) -> usize {
        self.arrived.len()
    }

    /// Returns a datagram and its sender.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], SocketAddr)> {
        let (length, from) = self.arrived.get(index)?;
        Some((self.slots.get(index)?.get(..*length)?, address(from)?))
    }
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { slots: vec![[0; MAX_DATAGRAM]; BATCH], ready: Vec::with_capacity(BATCH) }
    }

    /// Returns the place for the next datagram; there is one for each that was received.
    pub(super) fn next(&mut self) -> Option<&mut [u8; MAX_DATAGRAM]> {
        self.slots.get_mut(self.ready.len())
    }

    /// Takes what was written to [`Self::next`].
    pub(super) fn push(&mut self, length: usize, to: SocketAddr) {
        self.ready.push((length, to));
    }

    /// Sends all, and is empty then. Waits while the socket takes no more. Returns how many could not be sent.
    pub(super) async fn send(&mut self, socket: &UdpSocket) -> usize {
        let (mut done, mut failed) = (0, 0);
        while done < self.ready.len() {
            match socket.try_io(Interest::WRITABLE, || self.send_from(done, socket)) {
                Ok(sent) => done += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // An error shows again at the next call.
                    let _ = socket.writable().await;
                }
                // The error of the first one; the others are tried.
                Err(error) => {
                    tracing::debug!(err = %error, "answer not sent");
                    failed += 1;
                    done += 1;
                }
            }
        }
        self.ready.clear();
        failed
    }

    fn send_from<'a>(&'a self, start: usize, socket: &UdpSocket) -> io::Result<usize> {
        let ready = self.ready.get(start..).unwrap_or_default();
        let slots = self.slots.get(start..).unwrap_or_default();
        let part = |(slot, (length, _)): (&'a [u8; MAX_DATAGRAM], &(usize, SocketAddr))| {
            [IoSlice::new(slot.get(..*length).unwrap_or_default())]
        };
        let parts: Vec<_> = slots.iter().zip(ready).map(part).collect();
        let receivers: Vec<_> = ready.iter().map(|(_, to)| Some(SockaddrStorage::from(*to))).collect();
        let mut headers = MultiHeaders::preallocate(ready.len(), None);
        let sent = sendmmsg(socket.as_raw_fd(), &mut headers, &parts, receivers, [], MsgFlags::MSG_DONTWAIT)?;
        Ok(sent.count())
    }
}

/// Returns the address of a datagram; `None` when it cannot be answered.
fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = from.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    let address: SocketAddr = v4.or_else(|| Some(SocketAddrV6::from(*from.as_sockaddr_in6()?).into()))?;
    (address.port() != 0).then_some(address)
}

/// Datagrams answered before other tasks get their turn: under a tenth of a millisecond for kept answers.
const BATCH: usize = 32;

/// Longest datagram read whole; a query has some 300 bytes with everything. Not a power of two: the heads of all slots
/// would meet in the same lines of the processor's cache.
const SLOT: usize = 4096 + 64;

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair(any: &str) -> (UdpSocket, UdpSocket) {
        let [here, there] =
            [UdpSocket::bind(any).await, UdpSocket::bind(any).await].map(|s| s.expect("binds"));
        there.connect(here.local_addr().expect("bound")).await.expect("connects");
        (here, there)
    }

    #[tokio::test]
    async fn what_arrived_is_received_whole_and_in_order_and_answers_find_their_way() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (here, there) = pair(any).await;
            let (mut inbox, mut outbox) = (Inbox::new(), Outbox::new());
            let number = BATCH + 3;
            there.writable().await.expect("writable");
            for index in 0..number {
                there.try_send(&vec![7; index]).expect("sent");
            }
            here.readable().await.expect("readable");
            let mut answered = 0;
            for (is_all, expected) in [(false, BATCH), (true, 3)] {
                assert_eq!(inbox.receive(&here).expect("received"), is_all);
                assert_eq!(inbox.len(), expected);
                for index in 0..inbox.len() {
                    let (bytes, from) = inbox.get(index).expect("arrived");
                    assert_eq!((bytes.len(), from), (answered, there.local_addr().expect("bound")));
                    outbox.next().expect("room")[0] = u8::try_from(answered).expect("few");
                    outbox.push(1, from);
                    answered += 1;
                }
                assert!(is_all || outbox.next().is_none(), "one place for each");
                assert_eq!(outbox.send(&here).await, 0);
            }
            let mut byte = [0; 4];
            for index in 0..number {
                assert_eq!(there.recv(&mut byte).await.expect("received"), 1);
                assert_eq!(usize::from(byte[0]), index);
            }
        }
    }

    #[tokio::test]
    async fn nothing_there_is_all_there_is() {
        let (here, _there) = pair("127.0.0.1:0").await;
        let mut inbox = Inbox::new();
        assert!(inbox.receive(&here).expect("no error"));
        assert_eq!(inbox.len(), 0);
    }

    #[tokio::test]
    async fn one_that_cannot_be_sent_does_not_stop_the_others() {
        let (here, there) = pair("127.0.0.1:0").await;
        let mut outbox = Outbox::new();
        // IPv4 sockets reach no IPv6 address.
        for to in ["[2001:db8::1]:9".parse().expect("address"), there.local_addr().expect("bound")] {
            outbox.push(1, to);
        }
        assert_eq!(outbox.send(&here).await, 1);
        assert_eq!(there.recv(&mut [0; 4]).await.expect("received"), 1);
    }
}
