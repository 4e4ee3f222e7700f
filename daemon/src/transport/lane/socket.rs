//! What carries a lane: a TCP socket, or a circuit; and who watches it beside its TLS stream.
//!
//! Owns: the socket, or this end of the circuit. Must not know: TLS, frames. Driven by: the lane's task.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// What a lane reads and writes.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(Arc<TcpStream>),
    /// Its other end is pumped into the streams of a circuit.
    Circuit(DuplexStream),
}

/// What becomes of it, seen without reading and writing.
#[derive(Clone, Debug)]
pub(super) enum Watched {
    Tcp(Arc<TcpStream>),
    /// Told when the circuit has broken.
    Circuit(CancellationToken),
}

impl Socket {
    /// Readies a socket: small frames go at once.
    pub(super) fn of_tcp(stream: TcpStream) -> (Self, Watched) {
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_notsent_lowat(NOT_SENT);
        let stream = Arc::new(stream);
        (Self::Tcp(Arc::clone(&stream)), Watched::Tcp(stream))
    }
}

impl Watched {
    /// Lets its end be a reset: what is under way is lost, and who does not read sees it at once.
    pub(super) fn abort(&self) {
        match self {
            Self::Tcp(stream) => drop(stream.set_zero_linger()),
            Self::Circuit(broken) => broken.cancel(),
        }
    }

    /// Resolves when the socket has failed, also while nothing is read of it.
    pub(super) async fn failed(&self) -> io::Error {
        match self {
            Self::Tcp(stream) => match stream.ready(Interest::ERROR).await {
                Ok(_) => io::ErrorKind::ConnectionReset.into(),
                Err(error) => error,
            },
            Self::Circuit(broken) => {
                broken.cancelled().await;
                io::ErrorKind::ConnectionReset.into()
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = match self.get_mut() {
            Self::Tcp(socket) => socket,
            Self::Circuit(pipe) => return Pin::new(pipe).poll_read(context, buffer),
        };
        loop {
            ready!(socket.poll_read_ready(context))?;
            match socket.try_read(buffer.initialize_unfilled()) {
                Ok(len) => {
                    buffer.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let socket = match self.get_mut() {
            Self::Tcp(socket) => socket,
            Self::Circuit(pipe) => return Pin::new(pipe).poll_write(context, bytes),
        };
        loop {
            ready!(socket.poll_write_ready(context))?;
            match socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Poll::Ready(SockRef::from(&**socket).shutdown(std::net::Shutdown::Write)),
            Self::Circuit(pipe) => Pin::new(pipe).poll_shutdown(context),
        }
    }
}

/// Bytes that the system takes and has not sent.
const NOT_SENT: u32 = 128 << 10;
