//! The sockets of UDP flows: one on each VIP port, and one towards the target for each flow.
//!
//! Owns: how they are made and read. Must not know: flows. Driven by: `vips`, `caller`, `server`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use gossamer_core::vip::BindOutcome;
use gossamer_wire::limits::MAX_UDP_BYTES;

/// Binds a port of a VIP.
///
/// # Errors
/// What to judge the port by; nothing is bound.
pub(in crate::relay) fn bind(address: SocketAddrV4) -> Result<UdpSocket, BindOutcome> {
    // Without SO_REUSEADDR: with it another program could share the port and take its datagrams.
    let bound = std::net::UdpSocket::bind(address).and_then(non_blocking);
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindOutcome::InUse,
        io::ErrorKind::PermissionDenied => BindOutcome::Denied,
        _ => BindOutcome::Failed(error.to_string()),
    })
}

/// Makes a socket of one flow, which sends to and takes from `target` only.
///
/// # Errors
/// The system's.
pub(super) async fn towards(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(target)?;
    let socket = non_blocking(socket)?;
    // Until the runtime has looked once it holds a new socket for full.
    socket.writable().await?;
    Ok(socket)
}

fn non_blocking(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Waits for a datagram of a connected socket and leaves it in `buffer`, which has no memory while nothing comes.
///
/// # Errors
/// [`io::ErrorKind::ConnectionRefused`] when nobody has the target's port; others are the system's.
///
/// # Cancel safety
/// Cancel safe.
pub(super) async fn receive(socket: &UdpSocket, buffer: &mut BytesMut) -> io::Result<()> {
    receive_by(socket, buffer, |buffer| socket.try_recv_buf(buffer).map(drop)).await
}

/// Does what [`receive`] does on a socket that is not connected, and returns who sent it.
///
/// # Errors
/// The system's.
///
/// # Cancel safety
/// Cancel safe.
pub(super) async fn receive_from(socket: &UdpSocket, buffer: &mut BytesMut) -> io::Result<SocketAddr> {
    receive_by(socket, buffer, |buffer| socket.try_recv_buf_from(buffer).map(|(_, from)| from)).await
}

async fn receive_by<T>(
    socket: &UdpSocket,
    buffer: &mut BytesMut,
    read: impl Fn(&mut BytesMut) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        // A refusal is an error of the socket and makes it not readable.
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            failure(socket)?;
        }
        if !ready.is_readable() {
            continue;
        }
        buffer.clear();
        buffer.reserve(MAX_UDP_BYTES);
        match read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => *buffer = BytesMut::new(),
            result => return result,
        }
    }
}

/// Returns the error of a socket, once.
fn failure(socket: &UdpSocket) -> io::Result<()> {
    let taken = socket.try_io(Interest::ERROR, || match socket.take_error()? {
        Some(error) => Err::<(), _>(error),
        None => Err(io::ErrorKind::WouldBlock.into()),
    });
    match taken {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wildcard_socket_is_seen_as_in_use() {
        let wildcard = std::net::UdpSocket::bind("0.0.0.0:0").expect("free");
        let port = wildcard.local_addr().expect("bound").port();
        let vip = SocketAddrV4::new(Ipv4Addr::new(127, 250, 2, 1), port);
        assert_eq!(bind(vip).err(), Some(BindOutcome::InUse));
        drop(wildcard);
        let held = bind(vip).expect("free");
        assert!(std::net::UdpSocket::bind(("0.0.0.0", port)).is_err(), "the port is ours alone");
        drop(held);
    }

    #[tokio::test]
    async fn the_longest_datagram_is_received_whole_and_an_idle_socket_has_no_buffer() {
        let target = UdpSocket::bind("127.0.0.1:0").await.expect("free");
        let address = target.local_addr().expect("bound");
        let socket = towards(address).await.expect("connected");
        socket.send(&[7; MAX_UDP_BYTES]).await.expect("sent");
        let mut buffer = BytesMut::new();
        let from = receive_from(&target, &mut buffer).await.expect("received");
        assert_eq!((buffer.len(), from), (MAX_UDP_BYTES, socket.local_addr().expect("bound")));
        let next =
            tokio::time::timeout(std::time::Duration::from_millis(20), receive_from(&target, &mut buffer));
        assert!(next.await.is_err());
        assert_eq!(buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn a_port_that_nobody_has_is_refused() {
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").expect("free").local_addr().expect("bound");
        let socket = towards(gone).await.expect("connected");
        socket.send(b"x").await.expect("sent");
        let error = receive(&socket, &mut BytesMut::new()).await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
