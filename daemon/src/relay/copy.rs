//! Copying: the bytes of one flow, both ways, until both ends are done or one breaks.
//!
//! Owns: half-close, resets, byte counts. Must not know: names, candidates, access.
//! Driven by: `outbound` and `inbound`, once a flow is open.
//!
//! Each direction ends by itself. An error ends both at once, with a reset and never a clean end, so that no
//! program takes half an answer for a whole one. An idle flow holds no buffer.

mod hop;

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio::time::timeout;

use super::splice::{Stop, splice_all};
use hop::BULK;
pub(super) use hop::{BROKEN, hop_sink};

/// One end of a flow: a local socket or a stream of a data connection.
pub(super) trait Side: Send {
    /// Lends the two directions.
    fn halves(&mut self) -> (impl Source, impl Sink);

    /// Makes the other program see a failure. What was not delivered is lost.
    fn reset(&mut self);

    /// Returns where the program at its other end is, when it has an address.
    fn address(&self) -> Option<SocketAddr> {
        None
    }
}

/// What is read from.
pub(super) trait Source: Send {
    /// Returns the next bytes, `None` after a clean end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Bytes>>> + Send;

    /// Returns all that has arrived, [`BATCH`] pieces at most; `None` after a clean end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    fn batch(&mut self) -> impl Future<Output = io::Result<Option<Batch>>> + Send {
        async { Ok(self.next().await?.map(|bytes| smallvec![bytes])) }
    }

    /// Resolves when the other end is broken, as far as that shows without reading. Asked while nothing is read
    /// because what was read before is not taken yet.
    fn broken(&mut self) -> impl Future<Output = io::Error> + Send;

    /// Returns the socket whose bytes these are, when nothing but the socket holds any.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// What is written to.
pub(super) trait Sink: Send {
    /// Writes all bytes.
    fn put(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send;

    /// Writes all bytes of a batch.
    fn put_all(&mut self, batch: Batch) -> impl Future<Output = io::Result<()>> + Send {
        async {
            for bytes in batch {
                self.put(bytes).await?;
            }
            Ok(())
        }
    }

    /// Ends this direction cleanly.
    fn finish(&mut self) -> impl Future<Output = io::Result<()>> + Send;

    /// Resolves when the other end takes no more bytes, as far as that shows without writing.
    ///
    /// # Cancel safety
    /// Cancel safe.
    fn refused(&mut self) -> impl Future<Output = io::Error> + Send;

    /// Returns the socket that is written to, when nothing but the socket holds any bytes.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

/// What arrived at once. A hop brings a piece with each packet, a socket one piece.
pub(super) type Batch = SmallVec<[Bytes; 1]>;

/// An end that is reset when it is dropped, unless it was finished: a panic or a stop is no clean end.
#[derive(Debug)]
pub(super) struct Guarded<S: Side> {
    side: S,
    is_finished: bool,
}

impl<S: Side> Guarded<S> {
    pub(super) const fn new(side: S) -> Self {
        Self { side, is_finished: false }
    }

    pub(super) const fn side(&mut self) -> &mut S {
        &mut self.side
    }

    /// Lets the end be closed instead of reset.
    pub(super) const fn finished(&mut self) {
        self.is_finished = true;
    }
}

impl<S: Side> Drop for Guarded<S> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.side.reset();
        }
    }
}

/// Client bytes that came before the flow was open, to be sent (again) first.
#[derive(Clone, Debug, Default)]
pub(super) struct Early {
    pub(super) chunks: VecDeque<Bytes>,
    /// Bytes that the service has got already.
    pub(super) sent: u64,
    /// Whether the client has ended its direction.
    pub(super) is_ended: bool,
}

/// Bytes of a flow so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// From the client to the service.
    pub(super) bytes_in: AtomicU64,
    /// From the service to the client.
    pub(super) bytes_out: AtomicU64,
}

impl Counts {
    /// Returns both.
    pub(super) fn read(&self) -> (u64, u64) {
        (self.bytes_in.load(Ordering::Relaxed), self.bytes_out.load(Ordering::Relaxed))
    }

    /// Returns both, and begins anew.
    pub(super) fn take(&self) -> (u64, u64) {
        (self.bytes_in.swap(0, Ordering::Relaxed), self.bytes_out.swap(0, Ordering::Relaxed))
    }
}

/// Which end broke a flow.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client's.
    Client(io::Error),
    /// The service's.
    Service(io::Error),
}

/// Copies until both directions have ended, or one breaks: then both ends are reset. `early` is left with what was not
/// sent yet.
pub(super) async fn copy<C: Side, S: Side>(
    client: &mut Guarded<C>,
    service: &mut Guarded<S>,
    early: &mut Early,
    counts: &Counts,
) -> Result<(), Broken> {
    counts.bytes_in.store(early.sent, Ordering::Relaxed);
    let (from_client, to_client) = client.side.halves();
    let (from_service, to_service) = service.side.halves();
    let up = async {
        let replayed = Replayed { early, then: from_client };
        pump(replayed, to_service, &counts.bytes_in).await.map_err(|fault| match fault {
            Fault::Read(error) => Broken::Client(error),
            Fault::Write(error) => Broken::Service(error),
        })
    };
    let down = async {
        pump(from_service, to_client, &counts.bytes_out).await.map_err(|fault| match fault {
            Fault::Read(error) => Broken::Service(error),
            Fault::Write(error) => Broken::Client(error),
        })
    };
    tokio::try_join!(up, down)?;
    client.finished();
    service.finished();
    Ok(())
}

enum Fault {
    Read(io::Error),
    Write(io::Error),
}

async fn pump(mut from: impl Source, mut to: impl Sink, count: &AtomicU64) -> Result<(), Fault> {
    let mut moved = 0;
    loop {
        if moved >= BULK
            && let (Some(near), Some(far)) = (from.socket(), to.socket())
        {
            match splice_all(near, far, count).await {
                Stop::Idle => {}
                Stop::Ended => return to.finish().await.map_err(Fault::Write),
                Stop::Read(error) => return Err(Fault::Read(error)),
                Stop::Write(error) => return Err(Fault::Write(error)),
            }
        }
        let batch = tokio::select! {
            biased;
            error = to.refused() => Err(Fault::Write(error)),
            batch = from.batch() => batch.map_err(Fault::Read),
        };
        let Some(batch) = batch? else {
            return to.finish().await.map_err(Fault::Write);
        };
        let len = batch.iter().map(Bytes::len).sum::<usize>();
        moved = moved.saturating_add(len);
        // Also what is then not delivered: it is no longer there to be sent to somebody else.
        count.fetch_add(len as u64, Ordering::Relaxed);
        // A reader that has stalled must not hide that its other end is gone.
        tokio::select! {
            biased;
            put = to.put_all(batch) => put.map_err(Fault::Write)?,
            error = from.broken() => return Err(Fault::Read(error)),
        }
    }
}

struct Replayed<'a, S> {
    early: &'a mut Early,
    then: S,
}

impl<S: Source> Source for Replayed<'_, S> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.early.chunks.pop_front() {
            Some(chunk) => Ok(Some(chunk)),
            None if self.early.is_ended => Ok(None),
            None => self.then.next().await,
        }
    }

    async fn batch(&mut self) -> io::Result<Option<Batch>> {
        if self.early.chunks.is_empty() && !self.early.is_ended {
            return self.then.batch().await;
        }
        Ok(self.next().await?.map(|bytes| smallvec![bytes]))
    }

    async fn broken(&mut self) -> io::Error {
        self.then.broken().await
    }

    fn socket(&self) -> Option<&TcpStream> {
        let is_through = self.early.chunks.is_empty() && !self.early.is_ended;
        is_through.then(|| self.then.socket()).flatten()
    }
}

/// A local program's stream that is no TCP socket, for example an upgraded request of the local API.
#[derive(Debug)]
pub(super) struct Plain<T>(pub(super) T);

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Side for Plain<T> {
    fn halves(&mut self) -> (impl Source, impl Sink) {
        let (read, write) = tokio::io::split(&mut self.0);
        (Reading(read), Writing(write))
    }

    /// Such a stream knows no reset; its owner learns the failure from the flow's result.
    fn reset(&mut self) {}
}

impl Side for TcpStream {
    fn halves(&mut self) -> (impl Source, impl Sink) {
        let (read, write) = self.split();
        (SocketReading(Reading(read)), SocketWriting(write))
    }

    /// The reset is sent when the socket is dropped.
    fn reset(&mut self) {
        let _ = self.set_zero_linger();
    }

    fn address(&self) -> Option<SocketAddr> {
        self.peer_addr().ok()
    }
}

/// Readies the socket of a local program: small messages go at once, and the system keeps little for a program that does
/// not read (without the second it takes megabytes from the hop before that shows).
pub(super) fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(NOT_SENT);
}

impl Side for UnixStream {
    fn halves(&mut self) -> (impl Source, impl Sink) {
        let (read, write) = self.split();
        (SocketReading(Reading(read)), SocketWriting(write))
    }

    /// The system knows none: the program sees the end of the stream, and an error when it writes.
    fn reset(&mut self) {}
}

struct Reading<R>(R);

impl<R: AsyncRead + Unpin + Send> Source for Reading<R> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let read = poll_fn(|context| {
            // Lives for one poll only: a flow that waits holds no buffer.
            let mut buffer = BytesMut::with_capacity(CHUNK);
            let read = pin!(self.0.read_buf(&mut buffer)).poll(context);
            read.map_ok(|_| buffer)
        });
        let buffer = read.await?;
        Ok(match buffer.len() {
            0 => None,
            len if len < CHUNK / 2 => Some(Bytes::copy_from_slice(&buffer)),
            _ => Some(buffer.freeze()),
        })
    }

    async fn broken(&mut self) -> io::Error {
        pending().await
    }
}

/// A half of a socket.
trait Watched: Send + Unpin {
    /// Resolves when the socket has failed.
    fn failure(&self) -> impl Future<Output = io::Error> + Send;

    /// Returns the whole socket, if it is one of TCP.
    fn whole(&self) -> Option<&TcpStream>;
}

macro_rules! watched {
    ($($half:ty => $whole:expr),+) => {
        $(impl Watched for $half {
            async fn failure(&self) -> io::Error {
                match self.ready(Interest::ERROR).await {
                    Ok(_) => io::ErrorKind::ConnectionReset.into(),
                    Err(error) => error,
                }
            }

            fn whole(&self) -> Option<&TcpStream> {
                let whole: fn(&Self) -> Option<&TcpStream> = $whole;
                whole(self)
            }
        })+
    };
}

watched!(
    tcp::ReadHalf<'_> => |half| Some(half.as_ref()),
    tcp::WriteHalf<'_> => |half| Some(half.as_ref()),
    unix::ReadHalf<'_> => |_| None,
    unix::WriteHalf<'_> => |_| None
);

struct SocketReading<R>(Reading<R>);

impl<R: AsyncRead + Watched> Source for SocketReading<R> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.0.next().await
    }

    async fn broken(&mut self) -> io::Error {
        self.0.0.failure().await
    }

    fn socket(&self) -> Option<&TcpStream> {
        self.0.0.whole()
    }
}

struct Writing<W>(W);

impl<W: AsyncWrite + Unpin + Send> Sink for Writing<W> {
    async fn put(&mut self, bytes: Bytes) -> io::Result<()> {
        self.0.write_all(&bytes).await?;
        self.0.flush().await
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }

    async fn refused(&mut self) -> io::Error {
        pending().await
    }
}

struct SocketWriting<W>(W);

impl<W: AsyncWrite + Watched> SocketWriting<W> {
    /// Writes all pieces, and leaves what is not written yet when it is cancelled. One system call takes all: a hop brings
    /// them in packets, and a call for each would cost more than all else.
    async fn put_pieces(&mut self, batch: &mut Batch) -> io::Result<()> {
        let mut left = batch.as_mut_slice();
        while !left.is_empty() {
            let slices: SmallVec<[IoSlice<'_>; BATCH]> =
                left.iter().map(|bytes| IoSlice::new(bytes)).collect();
            let written = self.0.write_vectored(&slices).await?;
            drop(slices);
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            left = after(left, written);
        }
        Ok(())
    }
}

impl<W: AsyncWrite + Watched> Sink for SocketWriting<W> {
    async fn put(&mut self, bytes: Bytes) -> io::Result<()> {
        self.0.write_all(&bytes).await
    }

    async fn put_all(&mut self, mut batch: Batch) -> io::Result<()> {
        if let Ok(put) = timeout(STALLED, self.put_pieces(&mut batch)).await {
            return put;
        }
        // What waits for long waits in memory of its own: a piece keeps the message it came in, many times its size.
        let left = Bytes::from(batch.concat());
        drop(batch);
        self.0.write_all(&left).await
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }

    /// Sees a reset that comes after the program had ended its own direction.
    async fn refused(&mut self) -> io::Error {
        self.0.failure().await
    }

    fn socket(&self) -> Option<&TcpStream> {
        self.0.whole()
    }
}

/// Returns what is left of pieces of which so many bytes were written; the others are empty then.
fn after(mut pieces: &mut [Bytes], mut written: usize) -> &mut [Bytes] {
    while let Some(first) = pieces.first_mut() {
        if written < first.len() {
            first.advance(written);
            break;
        }
        written -= std::mem::take(first).len();
        pieces = pieces.get_mut(1..).unwrap_or_default();
    }
    pieces
}

/// Most bytes moved at once: enough to make system calls cheap, small enough for thousands of busy flows.
pub(super) const CHUNK: usize = 32 * 1_024;

/// A reader that takes nothing for so long has stalled: what waits for it is worth to be copied.
const STALLED: Duration = Duration::from_millis(20);

/// Bytes for a local program that the system takes and has not sent: several batches.
const NOT_SENT: u32 = 128 << 10;

/// Most pieces moved at once: of packets of 1,452 bytes about as much as [`CHUNK`].
const BATCH: usize = 32;

#[cfg(test)]
mod tests;
