//! The kernel's list of listening sockets, asked for over netlink (sock_diag(7)).
//!
//! Owns: the request and the reading of its answer. Must not know: what the list is for. Driven by: `listeners`.
//!
//! Reading `/proc/net/tcp` instead makes the kernel walk the connections of all network namespaces: with 50
//! daemons on one machine that was more than half of what an idle daemon cost (measured with perf).

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::Listener;

/// The kernel fills at most this much of one answer.
const ANSWER_BYTES: usize = 64 << 10;

/// Returns the listening TCP sockets of this network namespace.
///
/// # Errors
/// The system's: no netlink, for example in a sandbox.
pub(super) fn listening() -> io::Result<Vec<Listener>> {
    all(IPPROTO_TCP, StateFlags::LISTEN)
}

/// Returns the UDP sockets of this network namespace that are bound and not connected: the kernel calls them closed.
///
/// # Errors
/// The system's: no netlink, for example in a sandbox.
pub(super) fn receiving() -> io::Result<Vec<Listener>> {
    all(IPPROTO_UDP, StateFlags::CLOSE)
}

fn all(protocol: u8, states: StateFlags) -> io::Result<Vec<Listener>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut found = dump(&socket, &request(AF_INET, protocol, states.clone(), SocketId::new_v4()))?;
    found.extend(dump(&socket, &request(AF_INET6, protocol, states, SocketId::new_v6()))?);
    Ok(found)
}

fn dump(socket: &Socket, request: &[u8]) -> io::Result<Vec<Listener>> {
    socket.send(request, 0)?;
    let mut answer = vec![0; ANSWER_BYTES];
    let mut found = Vec::new();
    loop {
        let size = socket.recv(&mut &mut answer[..], 0)?;
        if read(&answer[..size], &mut found)? {
            return Ok(found);
        }
    }
}

fn request(family: u8, protocol: u8, states: StateFlags, socket_id: SocketId) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Reads one part of the answer; `true` when it was the last.
fn read(mut part: &[u8], found: &mut Vec<Listener>) -> io::Result<bool> {
    while !part.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(part)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                let (id, inode) = (&socket.header.socket_id, socket.header.inode.into());
                let address = std::net::SocketAddr::new(id.source_address.to_canonical(), id.source_port);
                found.push(Listener { address, inode });
            }
            _ => {}
        }
        // A message begins at a multiple of four bytes (netlink(7)).
        let length = (message.header.length as usize).next_multiple_of(4).max(4);
        part = part.get(length..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn both_families_are_listed_as_the_kernel_has_them() {
        let bound = ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"].map(|address| TcpListener::bind(address).ok());
        let found = listening().expect("netlink");
        for listener in bound.iter().flatten() {
            let address = listener.local_addr().expect("bound");
            assert!(found.iter().any(|one| one.address == address && one.inode > 0), "{address}: {found:?}");
        }
    }

    #[test]
    fn sockets_that_receive_from_anybody_are_listed_and_connected_ones_are_not() {
        let bound = std::net::UdpSocket::bind("0.0.0.0:0").expect("free");
        let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("free");
        client.connect(("127.0.0.1", bound.local_addr().expect("bound").port())).expect("connected");
        let found = receiving().expect("netlink");
        let lists = |socket: &std::net::UdpSocket| {
            let address = socket.local_addr().expect("bound");
            found.iter().any(|one| one.address == address && one.inode > 0)
        };
        assert!(lists(&bound) && !lists(&client), "{found:?}");
    }

    #[test]
    fn connections_are_not_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("free");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let own = client.local_addr().expect("connected");
        assert!(listening().expect("netlink").iter().all(|one| one.address != own));
    }

    #[test]
    fn bytes_that_are_no_answer_are_an_error() {
        let mut found = Vec::new();
        assert!(read(&[1, 2, 3], &mut found).is_err());
        assert!(read(&[0xff; 64], &mut found).is_err());
        assert!(read(&[], &mut found).is_ok_and(|done| !done));
        assert!(found.is_empty());
    }
}
