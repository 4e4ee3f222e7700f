//! The first exchange of every connection, and reading and writing frames.
//!
//! Owns: the handshake above TLS. Must not know: what is done with a connection.
//! Driven by: `accept` and `dial`, then `link`.
//!
//! Both sides first make their sets of statements equal: a node that missed an eviction learns of it from the next
//! peer it meets, before it takes anything else from anybody (design section 4). Equal digests cost nothing.
//!
//! With TLS 1.3 the dialer's handshake ends before the other side has judged its certificate, so a peer counts
//! as connected only when its hello has come back.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::Semaphore;

use gossamer_core::trust::{Leaf, TrustError};
use gossamer_wire::frame::{Frame, Hello, PREFIX_BYTES, Purpose};
use gossamer_wire::limits::{MAX_FRAME_BYTES, MAX_GREETING, MAX_STATEMENT_SET_BYTES};
use gossamer_wire::{DecodeError, EncodeError, NodeId};

use super::carrier::{Connection, RecvStream, SendStream};
use super::endpoint::raise;
use super::tls::Trust;
use crate::authority::{AuthorityHandle, Known};
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
    #[error("the first frame was not a hello for this purpose, or a later one is not for it")]
    Purpose,
    #[error(
        "the peer sends more than {MAX_STATEMENT_SET_BYTES} bytes of statements, or something else before they are through"
    )]
    Statements,
    #[error("the peer has {MAX_GREETING} connections that have not greeted yet")]
    TooMany,
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
    /// Where the peer sees this node.
    pub(super) observed: SocketAddr,
    /// Digest of the statements that the other side was sent, or had.
    pub(super) statements: [u8; 16],
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
}

/// What this side greets with, and how it judges the other one.
#[derive(Clone, Debug)]
pub(super) struct Greeter {
    pub(super) trust: Trust,
    pub(super) clock: Clock,
    /// The statements, and where new ones go.
    pub(super) authority: AuthorityHandle,
    /// Room for the sets of statements of peers, which may be large.
    pub(super) exchanges: Arc<Semaphore>,
    /// Who is greeting at present.
    pub(super) greeting: Greeting,
    /// Random per process.
    pub(super) nonce: u64,
}

/// How many connections of each member have not greeted yet: what they hold unread counts against the member, not
/// against its address. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Greeting(Arc<Mutex<BTreeMap<NodeId, usize>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
struct InGreeting(Greeting, NodeId);

impl Greeting {
    fn enter(&self, node: NodeId) -> Option<InGreeting> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(node).or_default();
        if *count >= MAX_GREETING {
            return None;
        }
        *count += 1;
        Some(InGreeting(self.clone(), node))
    }
}

impl Drop for InGreeting {
    fn drop(&mut self) {
        let mut all = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.1);
            }
        }
    }
}

impl Greeter {
    /// Makes what a process with this nonce greets with.
    pub(super) fn new(trust: Trust, clock: Clock, authority: AuthorityHandle, nonce: u64) -> Self {
        let exchanges = Arc::new(Semaphore::new(EXCHANGES));
        Self { trust, clock, authority, exchanges, greeting: Greeting::default(), nonce }
    }

    /// Greets as the dialer.
    pub(super) async fn greet(
        &self,
        connection: Connection,
        purpose: Purpose,
    ) -> Result<Greeted, HelloError> {
        self.identify(&connection)?;
        let (mut send, mut recv) = connection.open_bi().await?;
        let own = self.authority.known();
        write_hello(&connection, &mut send, purpose, self.nonce, &own).await?;
        let theirs = read_hello(&mut recv).await?;
        if theirs.purpose != purpose {
            return Err(HelloError::Purpose);
        }
        let (peer, statements) = self.agree(&connection, &own, &theirs, (&mut send, &mut recv)).await?;
        let Hello { nonce, observed, .. } = theirs;
        Ok(Greeted { connection, peer, purpose, nonce, dialled: true, observed, statements, send, recv })
    }

    /// Answers a greeting as the side that was dialled. Without a verified certificate nothing is read.
    pub(super) async fn answer(&self, connection: Connection) -> Result<Greeted, HelloError> {
        let node = self.identify(&connection)?.node;
        let _greeting = self.greeting.enter(node).ok_or(HelloError::TooMany)?;
        let (mut send, mut recv) = connection.accept_bi().await?;
        let theirs = read_hello(&mut recv).await?;
        if let Connection::Quic(connection) = &connection {
            raise(connection);
        }
        let own = self.authority.known();
        write_hello(&connection, &mut send, theirs.purpose, self.nonce, &own).await?;
        let (peer, statements) = self.agree(&connection, &own, &theirs, (&mut send, &mut recv)).await?;
        let Hello { purpose, nonce, observed, .. } = theirs;
        Ok(Greeted { connection, peer, purpose, nonce, dialled: false, observed, statements, send, recv })
    }

    /// Exchanges the statements if their digests differ, and judges the peer by what is known then.
    async fn agree(
        &self,
        connection: &Connection,
        own: &Known,
        theirs: &Hello,
        (send, recv): (&mut SendStream, &mut RecvStream),
    ) -> Result<(Arc<Leaf>, [u8; 16]), HelloError> {
        if own.digest == theirs.statement_digest {
            return Ok((self.identify(connection)?, own.digest));
        }
        let peer = self.identify(connection)?;
        let _place = self.exchanges.acquire().await;
        // At once both ways: neither waits with a full window for the other to read.
        let (sent, received) = tokio::join!(write_statements(send, &own.statements), read_statements(recv));
        sent?;
        self.authority.learn(peer.node, received?).await;
        // The peer has what was sent, no more: what has come meanwhile is sent when the connection is taken into use.
        Ok((self.identify(connection)?, own.digest))
    }

    /// Judges the certificate of a connection again, after the handshake: the handshake's own verdict could be
    /// missing (no certificate is mandatory in TLS) or stale.
    pub(super) fn identify(&self, connection: &Connection) -> Result<Arc<Leaf>, TrustError> {
        let chain = connection.shown().ok_or(TrustError::None)?;
        let (leaf, shown) = chain.split_first().ok_or(TrustError::None)?;
        self.trust.load().verify(leaf, shown, self.clock.wall()).map(Arc::new)
    }
}

/// Peers whose sets of statements are read at once, at most 8 MiB each.
const EXCHANGES: usize = 16;

async fn write_hello(
    connection: &Connection,
    send: &mut SendStream,
    purpose: Purpose,
    nonce: u64,
    known: &Known,
) -> Result<(), HelloError> {
    let observed = connection.remote_address();
    let hello = Frame::Hello(Hello { purpose, nonce, observed, statement_digest: known.digest });
    send.write_all(&hello.encode()?).await.map_err(io::Error::from)?;
    Ok(())
}

/// Writes all statements; an empty frame ends them.
async fn write_statements(send: &mut SendStream, statements: &[Vec<u8>]) -> Result<(), HelloError> {
    for frame in frames_of(statements).into_iter().chain([Frame::Statements(Vec::new())]) {
        send.write_all(&frame.encode()?).await.map_err(io::Error::from)?;
    }
    Ok(())
}

/// Packs statements into frames.
pub(super) fn frames_of(statements: &[Vec<u8>]) -> Vec<Frame> {
    let mut frames: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut room = 0;
    for statement in statements {
        let len = statement.len() + STATEMENT_OVERHEAD;
        if len > room {
            room = MAX_FRAME_BYTES - STATEMENT_OVERHEAD;
            frames.push(Vec::new());
        }
        room = room.saturating_sub(len);
        if let Some(frame) = frames.last_mut() {
            frame.push(statement.clone());
        }
    }
    frames.into_iter().map(Frame::Statements).collect()
}

/// What a statement of no bytes takes in memory.
const STATEMENT_MEMORY: usize = 64;

/// The longest length prefix of a statement or of a list of them, bytes.
const STATEMENT_OVERHEAD: usize = 9;

async fn read_statements(recv: &mut RecvStream) -> Result<Vec<Vec<u8>>, HelloError> {
    let (mut all, mut bytes) = (Vec::new(), 0);
    loop {
        match read_frame(recv).await? {
            Some(Frame::Statements(statements)) if statements.is_empty() => return Ok(all),
            Some(Frame::Statements(statements)) => {
                bytes += statements.iter().map(|statement| statement.len() + STATEMENT_MEMORY).sum::<usize>();
                all.extend(statements);
            }
            _ => return Err(HelloError::Statements),
        }
        if bytes > MAX_STATEMENT_SET_BYTES {
            return Err(HelloError::Statements);
        }
    }
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
