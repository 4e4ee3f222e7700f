//! A circuit as what carries a lane: a stream to a relay, which has spliced it to one of the peer (ADR 45).
//!
//! Owns: moving bytes between the stream and the lane, within the credit of the stream. Must not know: TLS, who relays.
//! Driven by: `dial` and `listen`, which give it a task.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::socket::{Socket, Watched};
use crate::transport::carrier::{RecvStream, SendStream};
use crate::transport::credit::{ReadCredit, SendCredit};
use crate::transport::{Demand, FlowStream};

/// Bytes that wait between the lane and the stream, each way.
const PIPE: usize = 64 << 10;
/// Bytes moved at once.
const CHUNK: usize = 32 << 10;
/// How long the peer of a lane that is over may take to end its direction.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);
/// Code of the resets of a broken circuit, as of a broken flow.
pub(super) const BROKEN: quinn::VarInt = quinn::VarInt::from_u32(1);

/// Moves the bytes of one circuit, to be run in a task.
#[derive(Debug)]
pub(in crate::transport) struct Pump {
    stream: FlowStream,
    far: DuplexStream,
    broken: CancellationToken,
}

impl Socket {
    /// Makes the end that a lane is given.
    pub(super) fn of_circuit(stream: FlowStream) -> (Self, Watched, Pump) {
        let (near, far) = duplex(PIPE);
        let broken = CancellationToken::new();
        let pump = Pump { stream, far, broken: broken.clone() };
        (Self::Circuit(near), Watched::Circuit(broken), pump)
    }
}

impl Pump {
    /// Runs until the lane is over or the circuit has broken: the lane then sees an end that TLS did not announce.
    pub(in crate::transport) async fn run(self) {
        let Self { stream, far, broken } = self;
        let FlowStream { mut send, mut recv, mut credit, demand, lease, .. } = stream;
        let (from_lane, to_lane) = split(far);
        let moved = async {
            let mut back = pin!(back(&mut recv, &mut credit.reading, to_lane));
            tokio::select! {
                // A lane ends its direction when it is over.
                ended = out(from_lane, (&mut send, &demand), &mut credit.sending) => {
                    ended.is_ok() && timeout(LAST_WORDS, back).await.is_ok_and(|ended| ended.is_ok())
                }
                // So does that of the peer.
                _ = &mut back => false,
            }
        };
        let is_clean = tokio::select! {
            () = broken.cancelled() => false,
            is_clean = moved => is_clean,
        };
        if !is_clean {
            broken.cancel();
            let _ = send.reset(BROKEN);
            let _ = recv.stop(BROKEN);
        }
        // It counts until now.
        drop(lease);
    }
}

/// Moves what is read to the stream, until its end.
pub(super) async fn out(
    mut lane: impl AsyncRead + Unpin,
    (send, demand): (&mut SendStream, &Demand),
    credit: &mut SendCredit,
) -> io::Result<()> {
    loop {
        // Lives while bytes are moved only: a circuit that waits holds no buffer.
        let mut first = [0];
        if lane.read(&mut first).await? == 0 {
            return Ok(send.finish()?);
        }
        let mut buffer = BytesMut::with_capacity(CHUNK);
        buffer.extend_from_slice(&first);
        if let Some(more) = futures_util::FutureExt::now_or_never(lane.read_buf(&mut buffer)) {
            more?;
        }
        let mut bytes = buffer.freeze();
        while !bytes.is_empty() {
            let len = credit.take(bytes.len(), send, demand).await?;
            send.write_chunk(bytes.split_to(len)).await?;
        }
    }
}

/// Moves what the stream brings, until its end.
pub(super) async fn back(
    recv: &mut RecvStream,
    credit: &mut ReadCredit,
    mut lane: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    loop {
        credit.taken();
        let Some(bytes) = recv.read_chunk(CHUNK).await? else { return lane.shutdown().await };
        credit.give(bytes.len());
        put(&mut lane, &bytes, credit).await?;
    }
}

async fn put(lane: &mut (impl AsyncWrite + Unpin), bytes: &Bytes, credit: &ReadCredit) -> io::Result<()> {
    tokio::select! {
        biased;
        written = lane.write_all(bytes) => written,
        // Begins only when the lane does not take them at once.
        error = async { credit.stall().given_up().await } => Err(error),
    }
}
