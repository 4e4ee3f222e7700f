//! The mesh port: one number, for UDP and for the TCP of lanes.
//!
//! Owns: how its two sockets are bound. Must not know: what they carry. Driven by: `endpoint`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::BindError;

/// Bytes the system may keep for the UDP socket. Its usual 208 KiB hold some ninety first packets of handshakes: one that is
/// lost is sent again after a second, and a node that everybody starts with has hundreds at once.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Connections that wait for the system to be asked for them.
const BACKLOG: i32 = 256;
/// How often the system is asked for a number (port 0) that is free for both.
const TRIES: u32 = 16;

/// The TCP socket of the mesh port, or why there is none: the mesh works without it where UDP does.
pub(super) type TcpPort = io::Result<TcpListener>;

/// The sockets of the mesh port.
#[derive(Debug)]
pub(super) struct MeshPort {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpPort,
}

impl MeshPort {
    /// Binds the port; the unspecified IPv6 address means both families, or IPv4 on a host without the other. A number that
    /// the system chooses (port 0) is free for TCP too: thousands of ended connections can hold numbers of its range.
    ///
    /// # Errors
    /// UDP cannot be bound.
    pub(super) fn bind(listen: SocketAddr) -> Result<Self, BindError> {
        let mut left = if listen.port() == 0 { TRIES } else { 1 };
        loop {
            left -= 1;
            let port = Self::try_bind(listen).map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => BindError::InUse(listen),
                _ => BindError::Refused(listen, error),
            })?;
            if port.tcp.is_ok() || left == 0 {
                return Ok(port);
            }
        }
    }

    fn try_bind(listen: SocketAddr) -> io::Result<Self> {
        let udp = UdpSocket::from(or_v4(udp, listen)?);
        let chosen = SocketAddr::new(listen.ip(), udp.local_addr()?.port());
        Ok(Self { udp, tcp: or_v4(tcp, chosen).map(TcpListener::from) })
    }
}

fn udp(address: SocketAddr) -> io::Result<Socket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    // A host that allows less gives what it allows; the mesh works with that too, only not so fast under a burst.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket)
}

fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    // The connections of a daemon that has just ended must not keep the next one out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// Opens a socket, on a host without IPv6 one of IPv4 where both families are meant.
fn or_v4(open: fn(SocketAddr) -> io::Result<Socket>, listen: SocketAddr) -> io::Result<Socket> {
    match open(listen) {
        Err(cause) if listen.ip() == Ipv6Addr::UNSPECIFIED && cause.kind() != io::ErrorKind::AddrInUse => {
            open((Ipv4Addr::UNSPECIFIED, listen.port()).into())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    /// An address of loopback that other tests leave alone.
    const OWN: Ipv4Addr = Ipv4Addr::new(127, 251, 7, 1);

    #[test]
    fn a_chosen_number_is_free_for_both_where_ended_connections_hold_many() {
        let server = TcpListener::bind((OWN, 0)).expect("binds");
        let server_at = server.local_addr().expect("bound");
        // Who closes first keeps its number for a minute; the clients of this address all end so.
        for _ in 0..4_000 {
            let near = socket((OWN, 0).into(), Type::STREAM, Protocol::TCP).expect("a socket");
            near.bind(&SocketAddr::from((OWN, 0)).into()).expect("binds");
            near.connect(&server_at.into()).expect("connects");
            let near = TcpStream::from(near);
            let (far, _) = server.accept().expect("accepts");
            drop(near);
            drop(far);
        }
        let held: Vec<_> = (0..100).map(|_| MeshPort::bind((OWN, 0).into()).expect("binds")).collect();
        for port in &held {
            let tcp = port.tcp.as_ref().expect("a number that is free for both");
            assert_eq!(tcp.local_addr().ok(), port.udp.local_addr().ok());
        }
    }

    #[test]
    fn a_number_that_was_asked_for_is_bound_for_udp_where_tcp_has_gone() {
        let taken = TcpListener::bind((OWN, 0)).expect("binds");
        let at = taken.local_addr().expect("bound");
        let port = MeshPort::bind(at).expect("UDP is free");
        assert_eq!(port.tcp.err().map(|error| error.kind()), Some(io::ErrorKind::AddrInUse));
        assert!(matches!(MeshPort::bind(at), Err(BindError::InUse(address)) if address == at));
    }
}
