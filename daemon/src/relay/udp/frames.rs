//! Datagrams on the stream of their flow: those before it is open, and those that fit no QUIC datagram.
//!
//! Owns: reading and writing them within bounds. Must not know: what they are for. Driven by: `caller` and `server`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadError, ReadExactError, VarInt};
use tokio::time::timeout;

use gossamer_wire::flow::{FRAME_PREFIX_BYTES, decode_framed_prefix, encode_framed};

use crate::transport::{Datagrams, RecvStream, SendStream};

/// Code of the reset of a stream whose target refuses datagrams.
pub(super) const REFUSED: VarInt = VarInt::from_u32(2);

/// Why nothing more comes on a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The other side has ended the flow.
    Finished,
    /// The target refused it.
    Refused,
    /// The connection, or what came.
    Broken(String),
}

/// Reads the next datagram.
///
/// # Errors
/// See [`Ended`].
pub(super) async fn read(recv: &mut RecvStream, datagrams: &Datagrams) -> Result<Bytes, Ended> {
    let mut prefix = [0; FRAME_PREFIX_BYTES];
    recv.read_exact(&mut prefix).await.map_err(ended)?;
    let len = decode_framed_prefix(prefix).map_err(|error| Ended::Broken(error.to_string()))?;
    // What a peer begins to send and does not end pins memory: few at a time, and not for long.
    let _place = datagrams.framed().acquire().await;
    let mut payload = vec![0; len];
    match timeout(WHOLE_WITHIN, recv.read_exact(&mut payload)).await {
        Ok(read) => read.map_err(ended)?,
        Err(_) => return Err(Ended::Broken("half a datagram".to_owned())),
    }
    Ok(payload.into())
}

fn ended(error: ReadExactError) -> Ended {
    match error {
        ReadExactError::FinishedEarly(0) => Ended::Finished,
        ReadExactError::FinishedEarly(_) => Ended::Broken("half a datagram".to_owned()),
        ReadExactError::ReadError(ReadError::Reset(REFUSED)) => Ended::Refused,
        ReadExactError::ReadError(error) => Ended::Broken(error.to_string()),
    }
}

/// Writes a datagram.
///
/// # Errors
/// The connection is lost, or the other side does not take it in time; the stream is then of no more use.
pub(super) async fn write(send: &mut SendStream, payload: &[u8]) -> io::Result<()> {
    let bytes = encode_framed(payload).map_err(io::Error::other)?;
    match timeout(WHOLE_WITHIN, send.write_all(&bytes)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// How long one datagram may be on its way in parts: 64 KiB over the slowest path that is of use.
const WHOLE_WITHIN: Duration = Duration::from_secs(5);
