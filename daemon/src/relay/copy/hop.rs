//! The end of a flow that is a stream of a data connection, or has a lane.
//!
//! Owns: reading and writing within the credit of the flow, bulk standing behind what is not. Must not know: the other end.
//! Driven by: `copy`; `outbound` writes the client's first bytes with it.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use futures_util::FutureExt as _;
use quinn::VarInt;
use smallvec::smallvec;
use tokio::time::timeout;

use super::{BATCH, Batch, CHUNK, STALLED, Side, Sink, Source};
use crate::transport::{Demand, FlowStream, ReadCredit, RecvStream, SendCredit, SendStream};

impl Side for FlowStream {
    fn halves(&mut self) -> (impl Source, impl Sink) {
        let Self { recv, send, demand, credit, .. } = self;
        let hop = Hop { recv, credit: &mut credit.reading, waits: Bytes::new() };
        (hop, HopWriting { send, demand, credit: &mut credit.sending, sent: 0 })
    }

    fn reset(&mut self) {
        let _ = self.send.reset(BROKEN);
        let _ = self.recv.stop(BROKEN);
    }
}

struct Hop<'a> {
    recv: &'a mut RecvStream,
    credit: &'a mut ReadCredit,
    /// What has come for a reader that had stalled.
    waits: Bytes,
}

impl Hop<'_> {
    /// Copies together what has come: each piece keeps the message it came in, many times its size. The credit of the flow
    /// bounds it; it is given back when the reader has it.
    fn gather(&mut self) {
        let most = self.credit.unread();
        let mut waits = Vec::from(std::mem::take(&mut self.waits));
        while waits.len() < most
            && let Some(Ok(Some(bytes))) = self.recv.read_chunk(most - waits.len()).now_or_never()
        {
            waits.extend_from_slice(&bytes);
        }
        self.waits = waits.into_boxed_slice().into();
    }

    /// Returns a part of what was copied together.
    fn waiting(&mut self) -> Option<Bytes> {
        let bytes = self.waits.split_to(self.waits.len().min(CHUNK));
        self.credit.give(bytes.len());
        (!bytes.is_empty()).then_some(bytes)
    }
}

impl Source for Hop<'_> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.credit.taken();
        if let Some(bytes) = self.waiting() {
            return Ok(Some(bytes));
        }
        let bytes = self.recv.read_chunk(CHUNK).await?;
        self.credit.give(bytes.as_ref().map_or(0, Bytes::len));
        Ok(bytes)
    }

    async fn batch(&mut self) -> io::Result<Option<Batch>> {
        // Who asks for more has taken what came before.
        self.credit.taken();
        if let Some(bytes) = self.waiting() {
            return Ok(Some(smallvec![bytes]));
        }
        self.recv.readable().await;
        let read = poll_fn(|context| {
            // Lives for one poll only: a flow that waits holds no places for pieces.
            let mut pieces = [const { Bytes::new() }; BATCH];
            let read = pin!(self.recv.read_chunks(&mut pieces)).poll(context);
            read.map_ok(|count| count.map(|count| pieces.into_iter().take(count).collect::<Batch>()))
        });
        let mut batch = read.await?;
        // What read a reset earlier had its error; from then on the library says that the stream is at its end.
        if batch.is_none() && matches!(self.recv.received_reset().now_or_never(), Some(Ok(Some(_)))) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.credit.give(batch.iter().flatten().map(Bytes::len).sum());
        if self.credit.is_young() {
            batch = batch.map(|pieces| smallvec![pieces.concat().into()]);
        }
        Ok(batch)
    }

    async fn broken(&mut self) -> io::Error {
        // Many may stall at once before any has proved that its reader reads.
        if self.credit.is_young() {
            self.gather();
        }
        if let Ok(error) = timeout(STALLED, broken(self.recv, self.credit)).await {
            return error;
        }
        self.gather();
        broken(self.recv, self.credit).await
    }
}

/// Resolves when the stream of a flow that has stalled is reset, or the flow is given up.
async fn broken(recv: &mut RecvStream, credit: &ReadCredit) -> io::Error {
    let stalled = credit.stall();
    let reset = async {
        match recv.received_reset().await {
            // The stream is over, so no reset can come. (quinn 0.11 says so only once its end was read: until then it
            // waits, and a connection that is lost is an error also when everything has arrived.)
            Ok(None) => pending().await,
            Ok(Some(_)) => io::ErrorKind::ConnectionReset.into(),
            Err(error) => io::Error::new(io::ErrorKind::ConnectionReset, error),
        }
    };
    tokio::select! {
        error = reset => error,
        error = stalled.given_up() => error,
    }
}

/// Returns the sending half of a hop alone.
pub(in crate::relay) const fn hop_sink<'a>(
    send: &'a mut SendStream,
    demand: &'a Demand,
    credit: &'a mut SendCredit,
) -> impl Sink {
    HopWriting { send, demand, credit, sent: 0 }
}

struct HopWriting<'a> {
    send: &'a mut SendStream,
    demand: &'a Demand,
    credit: &'a mut SendCredit,
    /// Bytes of this flow, up to [`BULK`].
    sent: usize,
}

impl HopWriting<'_> {
    /// Lets flows that move little go first from now on, when this one has turned out to move much.
    fn count(&mut self, len: usize) {
        if self.sent < BULK {
            self.sent += len;
            if self.sent >= BULK {
                self.send.set_priority(BULK_PRIORITY);
            }
        }
    }

    /// Writes what there is credit for.
    async fn put_piece(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut write = pin!(self.send.write_chunk(bytes));
        // Mostly there is room. Who waits is counted: congestion control gives each of them a window.
        let at_once = poll_fn(|context| Poll::Ready(write.as_mut().poll(context))).await;
        let written = match at_once {
            Poll::Ready(written) => written,
            Poll::Pending => {
                let _waiting = self.demand.wait();
                write.await
            }
        };
        Ok(written?)
    }
}

impl Sink for HopWriting<'_> {
    async fn put(&mut self, mut bytes: Bytes) -> io::Result<()> {
        self.count(bytes.len());
        while !bytes.is_empty() {
            let len = self.credit.take(bytes.len(), self.send, self.demand).await?;
            self.put_piece(bytes.split_to(len)).await?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.send.finish().map_err(io::Error::from)
    }

    async fn refused(&mut self) -> io::Error {
        match self.send.stopped().await {
            Ok(Some(_)) => io::ErrorKind::ConnectionReset.into(),
            Ok(None) => pending().await,
            Err(error) => error.into(),
        }
    }
}

/// Bytes after which a flow counts as bulk (design section 9), and how it then stands behind others of its connection.
pub(super) const BULK: usize = 1 << 20;
const BULK_PRIORITY: i32 = -1;

/// Code of the QUIC reset and stop of a broken flow.
pub(in crate::relay) const BROKEN: VarInt = VarInt::from_u32(1);
