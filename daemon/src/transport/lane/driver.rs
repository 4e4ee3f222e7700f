//! The task of a lane: bytes from its table to the socket and back, and signs of life.
//!
//! Owns: the TLS stream. Must not know: what flows carry. Driven by: a short task of the transport's stage.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use quinn::ConnectionError;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::frame::{HEADER, LaneFault, LaneFrame};
use super::socket::{Socket, Watched};
use crate::transport::link::{CLOSE_BAD_BYTES, CLOSE_DOWN, CLOSE_IDLE};

/// How often a lane with a flow says that it is there, and looks whether the peer has.
const TICK: Duration = Duration::from_secs(1);
/// Ticks without a word from the peer, while it is listened to: a dead peer resets its flows after this (design section 9).
const SILENT: u32 = 3;
/// Ticks that a flow's end may take when both halves are done with it.
const LEFT: u32 = 2;
/// Ticks that an idle lane is kept by who opens flows on it, and by the other end, which closes only what was forgotten.
const IDLE_OPENER: u32 = 60;
const IDLE_OTHER: u32 = 90;
/// How long the last words of a lane may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes written at once.
const BATCH: usize = 64 << 10;
/// Bytes read at once.
const READ: usize = 16 << 10;

/// What runs a lane.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) stream: TlsStream<Socket>,
    pub(super) socket: Watched,
}

/// Why the task of a lane ends.
enum Why {
    Lost(io::Error),
    Fault(LaneFault),
    Silent,
    /// The table says so.
    Closing,
}

impl Driver {
    /// Runs until the lane has ended, which a stop brings about; returns whether the peer broke the rules.
    pub(crate) async fn run(self, stop: CancellationToken) -> bool {
        let Self { shared, stream, socket } = self;
        let (shared, stream) = (&*shared, Mutex::new(stream));
        let why = tokio::select! {
            biased;
            () = stop.cancelled() => Why::Closing,
            why = write(shared, &stream) => why,
            why = read(shared, &stream, &socket) => why,
            why = watch(shared) => why,
        };
        let is_fault = matches!(why, Why::Fault(_));
        match why {
            Why::Lost(error) => {
                tracing::debug!(remote = %shared.remote, %error, "a lane is lost");
                shared.with(|table| table.fail(ConnectionError::Reset));
            }
            Why::Silent => shared.with(|table| table.fail(ConnectionError::TimedOut)),
            Why::Fault(fault) => {
                tracing::debug!(remote = %shared.remote, %fault, "closing a lane");
                shared.close(CLOSE_BAD_BYTES.into(), b"bytes refused");
            }
            Why::Closing => shared.close(CLOSE_DOWN.into(), b"leaving"),
        }
        let is_clean = !shared.lock().is_open();
        let last = async {
            let _ = write(shared, &stream).await;
            poll_fn(|context| Pin::new(&mut *lock(&stream)).poll_shutdown(context)).await
        };
        let is_said = timeout(LAST_WORDS, last).await.is_ok_and(|said| said.is_ok());
        if !(is_said && is_clean) {
            socket.abort();
        }
        is_fault
    }
}

/// One poll at a time holds it, and both are of one task.
fn lock(stream: &Mutex<TlsStream<Socket>>) -> MutexGuard<'_, TlsStream<Socket>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what waits, until the lane closes and nothing waits.
async fn write(shared: &Shared, stream: &Mutex<TlsStream<Socket>>) -> Why {
    loop {
        let batch = shared.wait(|table| {
            let batch = table.next_to_write(BATCH);
            (!batch.is_empty() || table.is_closing).then_some(batch)
        });
        let batch = batch.await;
        if batch.is_empty() {
            return Why::Closing;
        }
        // There is room for more.
        shared.changed.send_replace(());
        for bytes in batch {
            if let Err(error) = write_all(stream, bytes).await {
                return Why::Lost(error);
            }
        }
        if let Err(error) = poll_fn(|context| Pin::new(&mut *lock(stream)).poll_flush(context)).await {
            return Why::Lost(error);
        }
        shared.with(|table| table.is_writing = false);
    }
}

async fn write_all(stream: &Mutex<TlsStream<Socket>>, mut bytes: Bytes) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = poll_fn(|context| Pin::new(&mut *lock(stream)).poll_write(context, &bytes)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes.advance(written);
    }
    Ok(())
}

/// Reads frames while there is room for what they carry.
async fn read(shared: &Shared, stream: &Mutex<TlsStream<Socket>>, socket: &Watched) -> Why {
    let mut buffer = BytesMut::new();
    loop {
        match take_frames(shared, &mut buffer) {
            Ok(None) => {}
            Ok(Some(kind)) => {
                // A reader that has stalled must not hide that the peer is gone.
                tokio::select! {
                    () = shared.wait(|table| (!table.must_wait(kind)).then_some(())) => {}
                    error = socket.failed() => return Why::Lost(error),
                }
                continue;
            }
            Err(fault) => return Why::Fault(fault),
        }
        let read = poll_fn(|context| {
            buffer.reserve(READ);
            // Lives for one poll only: a lane that waits holds no buffer.
            let mut place = [0; READ];
            let mut place = ReadBuf::new(&mut place);
            let read = Pin::new(&mut *lock(stream)).poll_read(context, &mut place);
            buffer.extend_from_slice(place.filled());
            if read.is_pending() && buffer.is_empty() {
                buffer = BytesMut::new();
            }
            let len = place.filled().len();
            read.map_ok(|()| len)
        });
        match read.await {
            Ok(0) => return Why::Lost(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => return Why::Lost(error),
        }
    }
}

/// Takes the whole frames of the buffer. Returns the kind of one that has to wait.
fn take_frames(shared: &Shared, buffer: &mut BytesMut) -> Result<Option<u8>, LaneFault> {
    let mut has_taken = false;
    let taken = loop {
        let Some(header) = buffer.get(..HEADER).and_then(|header| header.try_into().ok()) else {
            break Ok(None);
        };
        let (kind, len) = LaneFrame::decode_header(header)?;
        if buffer.len() < HEADER + len {
            break Ok(None);
        }
        let mut table = shared.lock();
        if table.must_wait(kind) {
            break Ok(Some(kind));
        }
        buffer.advance(HEADER);
        let frame = LaneFrame::decode(kind, buffer.split_to(len).freeze())?;
        table.heard = true;
        has_taken = true;
        table.take(frame)?;
    };
    if has_taken {
        shared.changed.send_replace(());
    }
    taken
}

/// Looks after what is bound to time.
async fn watch(shared: &Shared) -> Why {
    let (mut silent, mut left, mut idle) = (0, 0, 0);
    loop {
        tokio::time::sleep(TICK).await;
        let mut table = shared.lock();
        let has_heard = std::mem::take(&mut table.heard);
        if table.is_kept || table.ended.is_some() {
            continue;
        }
        if !table.is_open() {
            (silent, left, idle) = (0, 0, idle + 1);
            if idle >= if table.opens_here { IDLE_OPENER } else { IDLE_OTHER } {
                // Under the same lock: a flow that begins now finds the lane ended.
                let reason = Bytes::from_static(b"unused");
                table.close(&LaneFrame::Close { code: CLOSE_IDLE, reason });
                return Why::Closing;
            }
            continue;
        }
        idle = 0;
        // While a reader has stalled the peer is not listened to.
        silent = if has_heard || table.is_stalled() { 0 } else { silent + 1 };
        left = if table.is_left() { left + 1 } else { 0 };
        if silent >= SILENT || left >= LEFT {
            return Why::Silent;
        }
        table.ping();
        drop(table);
        shared.changed.send_replace(());
    }
}
