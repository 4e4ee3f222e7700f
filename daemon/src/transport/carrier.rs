//! A connection and the halves of its streams, whatever carries them: QUIC, or a lane over TCP.
//!
//! Owns: the choice between the two at each call. Must not know: what is carried. Driven by: the rest of the transport, the
//! relay, the issuer.
//!
//! What a lane does is told in the words of the QUIC library, so that who reads errors need not know what carries.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::{
    ConnectionError, ReadError, ReadExactError, ReadToEndError, SendDatagramError, StoppedError, StreamId,
    VarInt, WriteError,
};
use rustls::pki_types::CertificateDer;

use gossamer_core::dial::Detour;
use gossamer_wire::NodeId;

use super::lane::{Lane, LaneRecv, LaneSend};

/// A connection with one peer. Clones are handles.
#[derive(Clone, Debug)]
pub enum Connection {
    /// Over UDP.
    Quic(quinn::Connection),
    /// Over TCP.
    Lane(Lane),
}

impl From<quinn::Connection> for Connection {
    fn from(connection: quinn::Connection) -> Self {
        Self::Quic(connection)
    }
}

impl Connection {
    /// Whether it is a lane.
    pub const fn is_lane(&self) -> bool {
        matches!(self, Self::Lane(_))
    }

    /// Returns the QUIC connection, if it is one.
    pub(crate) const fn quic(&self) -> Option<&quinn::Connection> {
        match self {
            Self::Quic(connection) => Some(connection),
            Self::Lane(_) => None,
        }
    }

    /// Returns the relay, where a circuit carries it.
    pub(crate) fn via(&self) -> Option<NodeId> {
        match self {
            Self::Quic(_) => None,
            Self::Lane(lane) => lane.via(),
        }
    }

    /// Returns whether this side dialled an ingress before the peer.
    pub(super) fn is_ingress(&self) -> bool {
        matches!(self, Self::Lane(lane) if lane.is_ingress())
    }

    /// Returns how far this is from the best way: UDP, then a lane, then a circuit.
    pub(super) fn detour(&self) -> Option<Detour> {
        match self {
            Self::Quic(_) => None,
            Self::Lane(lane) if lane.via().is_none() => Some(Detour::Lane),
            Self::Lane(_) => Some(Detour::Circuit),
        }
    }

    /// Returns where the peer is, in its plain form; of a circuit, where its relay is.
    pub fn remote_address(&self) -> SocketAddr {
        let mut remote = match self {
            Self::Quic(connection) => connection.remote_address(),
            Self::Lane(lane) => lane.remote_address(),
        };
        remote.set_ip(remote.ip().to_canonical());
        remote
    }

    /// Returns the certificates the peer has shown, its own first.
    pub(crate) fn shown(&self) -> Option<Vec<CertificateDer<'static>>> {
        match self {
            Self::Quic(connection) => {
                let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
                Some(*identity)
            }
            Self::Lane(lane) => lane.shown().map(<[_]>::to_vec),
        }
    }

    /// Returns what is the same at both ends of this very TLS session and nowhere else.
    pub(crate) fn binding(&self) -> Option<[u8; 32]> {
        match self {
            Self::Quic(connection) => {
                let mut binding = [0; 32];
                connection.export_keying_material(&mut binding, super::BINDING_LABEL, b"").ok()?;
                Some(binding)
            }
            Self::Lane(lane) => lane.binding(),
        }
    }

    /// Returns a number that no other living connection of this process has.
    pub(crate) fn stable_id(&self) -> usize {
        match self {
            Self::Quic(connection) => connection.stable_id(),
            Self::Lane(lane) => lane.stable_id(),
        }
    }

    /// Ends the connection and tells the peer why.
    pub(crate) fn close(&self, code: VarInt, reason: &[u8]) {
        match self {
            Self::Quic(connection) => connection.close(code, reason),
            Self::Lane(lane) => lane.close(code, reason),
        }
    }

    /// Returns why it has ended, if it has.
    pub(crate) fn close_reason(&self) -> Option<ConnectionError> {
        match self {
            Self::Quic(connection) => connection.close_reason(),
            Self::Lane(lane) => lane.close_reason(),
        }
    }

    /// Resolves when it has ended.
    pub(crate) async fn closed(&self) -> ConnectionError {
        match self {
            Self::Quic(connection) => connection.closed().await,
            Self::Lane(lane) => lane.closed().await,
        }
    }

    /// Returns the smoothed round trip; of a lane, that of its handshake.
    pub(crate) fn rtt(&self) -> Duration {
        match self {
            Self::Quic(connection) => connection.rtt(),
            Self::Lane(lane) => lane.rtt(),
        }
    }

    pub(crate) async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        match self {
            Self::Quic(connection) => {
                connection.open_bi().await.map(|(send, recv)| (send.into(), recv.into()))
            }
            Self::Lane(lane) => lane.open().await.map(|(send, recv)| (send.into(), recv.into())),
        }
    }

    pub(crate) async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        match self {
            Self::Quic(connection) => {
                connection.accept_bi().await.map(|(send, recv)| (send.into(), recv.into()))
            }
            Self::Lane(lane) => lane.accept().await.map(|(send, recv)| (send.into(), recv.into())),
        }
    }

    /// Sends a datagram; a lane takes none.
    pub(crate) fn send_datagram(&self, datagram: Bytes) -> Result<(), SendDatagramError> {
        match self {
            Self::Quic(connection) => connection.send_datagram(datagram),
            Self::Lane(_) => Err(SendDatagramError::UnsupportedByPeer),
        }
    }

    /// Reads a datagram; on a lane none comes before its end.
    pub(crate) async fn read_datagram(&self) -> Result<Bytes, ConnectionError> {
        match self {
            Self::Quic(connection) => connection.read_datagram().await,
            Self::Lane(lane) => Err(lane.closed().await),
        }
    }

    pub(crate) fn max_datagram_size(&self) -> Option<usize> {
        match self {
            Self::Quic(connection) => connection.max_datagram_size(),
            Self::Lane(_) => None,
        }
    }

    pub(crate) fn datagram_send_buffer_space(&self) -> usize {
        match self {
            Self::Quic(connection) => connection.datagram_send_buffer_space(),
            Self::Lane(_) => 0,
        }
    }
}

/// Towards the peer.
#[derive(Debug)]
pub enum SendStream {
    /// Over UDP.
    Quic(quinn::SendStream),
    /// Over TCP.
    Lane(LaneSend),
}

impl From<quinn::SendStream> for SendStream {
    fn from(stream: quinn::SendStream) -> Self {
        Self::Quic(stream)
    }
}

impl From<LaneSend> for SendStream {
    fn from(stream: LaneSend) -> Self {
        Self::Lane(stream)
    }
}

/// The stream, or its half, has ended before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream has ended")]
pub struct Ended;

impl From<Ended> for std::io::Error {
    fn from(ended: Ended) -> Self {
        Self::new(std::io::ErrorKind::NotConnected, ended)
    }
}

impl SendStream {
    /// Writes all bytes.
    ///
    /// # Errors
    /// The peer wants no more, or is lost.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        match self {
            Self::Quic(stream) => stream.write_all(bytes).await,
            Self::Lane(stream) => stream.write(Bytes::copy_from_slice(bytes)).await,
        }
    }

    pub(crate) async fn write_chunk(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        match self {
            Self::Quic(stream) => stream.write_chunk(bytes).await,
            Self::Lane(stream) => stream.write(bytes).await,
        }
    }

    /// Ends the stream cleanly.
    ///
    /// # Errors
    /// It has ended before.
    pub fn finish(&mut self) -> Result<(), Ended> {
        match self {
            Self::Quic(stream) => stream.finish().map_err(|_| Ended),
            Self::Lane(stream) => stream.finish(),
        }
    }

    /// Ends the stream as broken.
    ///
    /// # Errors
    /// It has ended before.
    pub fn reset(&mut self, code: VarInt) -> Result<(), Ended> {
        match self {
            Self::Quic(stream) => stream.reset(code).map_err(|_| Ended),
            Self::Lane(stream) => stream.reset(code),
        }
    }

    /// Resolves when the peer wants no more, with its code; with `None` when it has all of an ended stream (of a lane: when
    /// the system has it, which delivers it also after the end of this process).
    pub(crate) async fn stopped(&self) -> Result<Option<VarInt>, StoppedError> {
        match self {
            Self::Quic(stream) => stream.stopped().await,
            Self::Lane(stream) => stream.stopped().await,
        }
    }

    /// Returns the relay, where a circuit carries it.
    pub(crate) fn via(&self) -> Option<NodeId> {
        match self {
            Self::Quic(_) => None,
            Self::Lane(stream) => stream.via(),
        }
    }

    /// Lets it stand behind other streams of its connection; a lane has one at a time.
    pub(crate) fn set_priority(&self, priority: i32) {
        if let Self::Quic(stream) = self {
            let _ = stream.set_priority(priority);
        }
    }

    pub(crate) fn id(&self) -> StreamId {
        match self {
            Self::Quic(stream) => stream.id(),
            Self::Lane(stream) => stream.id(),
        }
    }
}

/// From the peer.
#[derive(Debug)]
pub enum RecvStream {
    /// Over UDP.
    Quic(quinn::RecvStream),
    /// Over TCP.
    Lane(LaneRecv),
}

impl From<quinn::RecvStream> for RecvStream {
    fn from(stream: quinn::RecvStream) -> Self {
        Self::Quic(stream)
    }
}

impl From<LaneRecv> for RecvStream {
    fn from(stream: LaneRecv) -> Self {
        Self::Lane(stream)
    }
}

impl RecvStream {
    /// Fills the place.
    ///
    /// # Errors
    /// The stream has ended, is broken, or the peer is lost.
    pub async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ReadExactError> {
        match self {
            Self::Quic(stream) => stream.read_exact(bytes).await,
            Self::Lane(stream) => stream.read_exact(bytes).await,
        }
    }

    /// Returns the next bytes, at most so many; `None` after a clean end.
    pub(crate) async fn read_chunk(&mut self, most: usize) -> Result<Option<Bytes>, ReadError> {
        match self {
            Self::Quic(stream) => Ok(stream.read_chunk(most, true).await?.map(|chunk| chunk.bytes)),
            Self::Lane(stream) => stream.read_chunk(most).await,
        }
    }

    /// Resolves when a lane has something to read, or has ended. QUIC wakes who has asked for bytes once, also when the
    /// asking future is gone; a lane does not.
    pub(crate) async fn readable(&mut self) {
        if let Self::Lane(stream) = self {
            stream.readable().await;
        }
    }

    /// Fills places with what has arrived and returns how many; `None` after a clean end.
    pub(crate) async fn read_chunks(&mut self, pieces: &mut [Bytes]) -> Result<Option<usize>, ReadError> {
        match self {
            Self::Quic(stream) => stream.read_chunks(pieces).await,
            Self::Lane(stream) => stream.read_chunks(pieces).await,
        }
    }

    /// Reads all, up to so many bytes.
    ///
    /// # Errors
    /// The stream is longer, is broken, or the peer is lost.
    pub async fn read_to_end(&mut self, most: usize) -> Result<Vec<u8>, ReadToEndError> {
        match self {
            Self::Quic(stream) => stream.read_to_end(most).await,
            Self::Lane(stream) => stream.read_to_end(most).await,
        }
    }

    /// Resolves when the peer has broken the stream, with its code; with `None` when all of it was read.
    pub(crate) async fn received_reset(&mut self) -> Result<Option<VarInt>, quinn::ResetError> {
        match self {
            Self::Quic(stream) => stream.received_reset().await,
            Self::Lane(stream) => stream.received_reset().await,
        }
    }

    /// Tells the peer that no more is wanted.
    ///
    /// # Errors
    /// It has ended before.
    pub fn stop(&mut self, code: VarInt) -> Result<(), Ended> {
        match self {
            Self::Quic(stream) => stream.stop(code).map_err(|_| Ended),
            Self::Lane(stream) => stream.stop(code),
        }
    }
}
