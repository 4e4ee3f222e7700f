//! The first exchange of every connection, and reading and writing frames.
//!
//! Owns: the handshake above TLS. Must not know: what is done with a connection.
//! Driven by: `accept` and `dial`, then `link`.
//!
//! With TLS 1.3 the dialer's handshake ends before the other side has judged its certificate, so a peer counts
//! as connected only when its hello has come back.

use std::io;
use std::sync::Arc;

use quinn::{Connection, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use thiserror::Error;

use gossamer_core::trust::{Leaf, TrustError};
use gossamer_wire::frame::{Frame, Hello, PREFIX_BYTES, Purpose};
use gossamer_wire::{DecodeError, EncodeError, statement};

use super::tls::Trust;
use crate::clock::Clock;

/// Why a connection did not come about. The peer's or the network's fault; nothing is kept of it.
#[derive(Debug, Error)]
pub(super) enum HelloError {
    #[error("the connection ended: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the stream ended: {0}")]
    Stream(#[from] io::Error),
    #[error("the peer's bytes: {0}")]
    Decode(#[from] DecodeError),
    #[error("own bytes: {0}")]
    Encode(#[from] EncodeError),
    #[error("{0}")]
    Trust(#[from] TrustError),
    #[error("the first frame was not a hello for this purpose")]
    Purpose,
}

/// A connection whose hello has come back.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) connection: Connection,
    pub(super) peer: Arc<Leaf>,
    pub(super) purpose: Purpose,
    /// Random per process of the peer.
    pub(super) nonce: u64,
    /// Whether this side dialled.
    pub(super) dialled: bool,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
}

/// What this side greets with, and how it judges the other one.
#[derive(Clone, Debug)]
pub(super) struct Greeter {
    pub(super) trust: Trust,
    pub(super) clock: Clock,
    /// Random per process.
    pub(super) nonce: u64,
}

impl Greeter {
    /// Greets as the dialer.
    pub(super) async fn greet(
        &self,
        connection: Connection,
        purpose: Purpose,
    ) -> Result<Greeted, HelloError> {
        let peer = self.identify(&connection)?;
        let (mut send, mut recv) = connection.open_bi().await?;
        write_hello(&connection, &mut send, purpose, self.nonce).await?;
        let theirs = read_hello(&mut recv).await?;
        if theirs.purpose != purpose {
            return Err(HelloError::Purpose);
        }
        Ok(Greeted { connection, peer, purpose, nonce: theirs.nonce, dialled: true, send, recv })
    }

    /// Answers a greeting as the side that was dialled. Without a verified certificate nothing is read.
    pub(super) async fn answer(&self, connection: Connection) -> Result<Greeted, HelloError> {
        let peer = self.identify(&connection)?;
        let (mut send, mut recv) = connection.accept_bi().await?;
        let theirs = read_hello(&mut recv).await?;
        write_hello(&connection, &mut send, theirs.purpose, self.nonce).await?;
        let Hello { purpose, nonce, .. } = theirs;
        Ok(Greeted { connection, peer, purpose, nonce, dialled: false, send, recv })
    }

    /// Judges the certificate of a connection again, after the handshake: the handshake's own verdict could be
    /// missing (no certificate is mandatory in TLS) or stale.
    pub(super) fn identify(&self, connection: &Connection) -> Result<Arc<Leaf>, TrustError> {
        let chain = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or(TrustError::None)?;
        let (leaf, shown) = chain.split_first().ok_or(TrustError::None)?;
        self.trust.load().verify(leaf, shown, self.clock.wall()).map(Arc::new)
    }
}

async fn write_hello(
    connection: &Connection,
    send: &mut SendStream,
    purpose: Purpose,
    nonce: u64,
) -> Result<(), HelloError> {
    let mut observed = connection.remote_address();
    observed.set_ip(observed.ip().to_canonical());
    let statement_digest = statement::digest(&std::collections::BTreeSet::new());
    let hello = Frame::Hello(Hello { purpose, nonce, observed, statement_digest });
    send.write_all(&hello.encode()?).await.map_err(io::Error::from)?;
    Ok(())
}

async fn read_hello(recv: &mut RecvStream) -> Result<Hello, HelloError> {
    match read_frame(recv).await? {
        Some(Frame::Hello(hello)) => Ok(hello),
        _ => Err(HelloError::Purpose),
    }
}

/// Reads one frame; `None` is a kind this version does not know.
pub(super) async fn read_frame(recv: &mut RecvStream) -> Result<Option<Frame>, HelloError> {
    let mut prefix = [0; PREFIX_BYTES];
    recv.read_exact(&mut prefix).await.map_err(io::Error::other)?;
    let (kind, len) = Frame::decode_prefix(prefix)?;
    let mut payload = vec![0; len];
    recv.read_exact(&mut payload).await.map_err(io::Error::other)?;
    Ok(Frame::decode(kind, &payload)?)
}
