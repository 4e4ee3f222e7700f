//! Segments of TCP between programs of this machine.
//!
//! Owns: how large they may be. Must not know: what a connection is for. Driven by: whoever listens for local programs
//! or connects to them.
//!
//! The segments of the loopback interface are as large as half of the largest window that a reader has ever offered (Linux,
//! `tcp_bound_to_half_wnd`), about 52 KiB. A reader that stalls ends with a smaller window, and does not say that it is open again
//! before it has doubled; a sender that waits for room for a whole segment then goes on at its next probe only: after
//! half a minute, when the reader had stalled for as long (traced with `ss`). Smaller segments fit into what is left.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

/// The largest segment, bytes: a quarter of the smallest window of a socket that was not made smaller by its program. The system
/// still hands over many of them at once, and networks have smaller ones.
const MOST: u32 = 16 << 10;

/// Makes the segments of a socket small in both directions; to be called before it listens or connects.
pub(crate) fn limit<'s>(socket: impl Into<SockRef<'s>>) {
    // Without it the connection works, and may pause.
    let _ = socket.into().set_tcp_mss(MOST);
}

/// Connects to a program.
///
/// # Errors
/// The system's.
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    limit(&socket);
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::net::TcpListener;

    #[tokio::test]
    async fn both_ends_have_small_segments_whichever_is_ours() {
        let ours = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        limit(&ours);
        let client = TcpStream::connect(ours.local_addr().expect("bound")).await.expect("connects");
        let (accepted, _) = ours.accept().await.expect("accepts");
        let theirs = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let dialled = connect(theirs.local_addr().expect("bound")).await.expect("connects");
        let (service, _) = theirs.accept().await.expect("accepts");
        for end in [&client, &accepted, &dialled, &service] {
            let mss = SockRef::from(end).tcp_mss().expect("known");
            assert!(mss <= MOST, "{mss}");
        }
    }
}
