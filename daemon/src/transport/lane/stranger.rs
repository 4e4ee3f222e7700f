//! Joiners who reach only this relay: their bytes are led to the issuer that they ask for by name, blindly (ADR 47).
//!
//! Owns: whom a name means, the splice and its limits. Must not know: what the bytes are, which only the two ends can read.
//! Driven by: `listen`, for those whose first message names another node and the protocol of joiners.
//!
//! The issuer must have a connection with this node already that is no circuit: nobody is dialled for a stranger.

use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, split};
use tokio::time::timeout;

use gossamer_core::quiet::Quiet;
use gossamer_core::source::network_of;
use gossamer_core::strangers::{MAX_STRANGER_BYTES, MAX_STRANGER_TIME, NotLed, Strangers};
use gossamer_wire::circuit::CircuitOpen;
use gossamer_wire::{MeshId, NodeId};

use super::circuit::{BROKEN, LAST_WORDS, back, out};
use super::server_name;
use super::socket::{Socket, Watched};
use crate::clock;
use crate::identity::Live;
use crate::metrics::Metrics;
use crate::supervise::Stage;
use crate::transport::{FlowStream, Peers};

/// Leads joiners to issuers, where this node is a relay.
#[derive(Debug)]
pub(in crate::transport) struct Leading {
    core: Mutex<Strangers>,
    live: Live,
    peers: Peers,
    metrics: Arc<Metrics>,
    /// Of whose refusals the log has told.
    told: Mutex<Quiet<IpAddr>>,
}

impl Leading {
    pub(in crate::transport) fn new(live: Live, peers: Peers, metrics: Arc<Metrics>) -> Self {
        Self { core: Mutex::default(), live, peers, metrics, told: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Strangers> {
        // No operation leaves it half-done.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the nodes that may be meant by the name that a joiner asks for; `None` when this one is to answer.
    pub(super) fn wanted(&self, name: &str, me: NodeId, mesh: MeshId) -> Option<Vec<NodeId>> {
        let live = self.live.load();
        if !live.leaf.claims.relay {
            return None;
        }
        let asked = name.strip_suffix(&server_name(None, mesh))?.strip_suffix('.');
        let asked = asked.and_then(|id| id.parse::<NodeId>().ok());
        let holders = live.issuers.iter().filter(|issuer| asked.is_none_or(|id| id == issuer.id));
        let holders: Vec<_> = holders.filter_map(|issuer| issuer.node).collect();
        // Where any will do, this one does; an issuer that nobody has heard of is judged by who asks.
        let is_here = live.issuer.is_some() && (asked.is_none() || holders.is_empty());
        (!is_here && !holders.contains(&me)).then_some(holders)
    }

    /// Leads a joiner to the first of the nodes that has a connection here, in a task of its own, or tells it why not.
    /// `said` is what it has sent so far.
    pub(super) fn lead(
        self: &Arc<Self>,
        socket: (Socket, Watched),
        said: Vec<u8>,
        source: IpAddr,
        issuers: &[NodeId],
        stage: &Stage,
    ) {
        let issuer = issuers.iter().copied().find(|node| self.peers.is_kept(*node));
        let counted = match issuer {
            None => Err(NotLed::NoIssuer),
            Some(issuer) => {
                let opened = self.lock().handle_open(source, clock::now().mono);
                opened.map(|()| (Counted(Arc::clone(self), source), issuer))
            }
        };
        let (leading, stop) = (Arc::clone(self), stage.stopping().clone());
        stage.spawn_short("joiner", async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = async {
                    match counted {
                        Ok((counted, issuer)) => counted.splice(socket, said, issuer).await,
                        Err(why) => leading.refuse(socket.0, source, why).await,
                    }
                } => {}
            }
        });
    }

    /// Counts and names who is led nowhere, and tells it in the words of TLS.
    async fn refuse(&self, mut socket: Socket, source: IpAddr, why: NotLed) {
        self.metrics.joiner_led(why.word());
        let named = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.names(network_of(source), clock::now().mono)
        };
        if named {
            tracing::info!(%source, reason = why.word(), "a joiner was not led to an issuer");
        }
        let _ = timeout(LAST_WORDS, async {
            socket.write_all(&alert_of(why)).await?;
            socket.shutdown().await
        })
        .await;
    }
}

/// Returns a fatal alert of TLS before any key (RFC 8446 section 6), as joiners read it.
fn alert_of(why: NotLed) -> [u8; 7] {
    let description = match why {
        // unrecognized_name
        NotLed::NoIssuer => 112,
        // internal_error
        NotLed::PerSource | NotLed::Total | NotLed::Pace | NotLed::Excess => 80,
    };
    [21, 3, 3, 0, 2, 2, description]
}

/// A joiner that is counted until this is dropped.
#[derive(Debug)]
struct Counted(Arc<Leading>, IpAddr);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.lock().handle_end(self.1);
    }
}

impl Counted {
    async fn splice(self, (socket, watched): (Socket, Watched), said: Vec<u8>, issuer: NodeId) {
        let Self(leading, source) = &self;
        let opened = async {
            let mut stream = leading.peers.open_kept(issuer).await.ok()?;
            if stream.send.via().is_some() {
                return None;
            }
            stream.send.write_all(&CircuitOpen::Stranger(*source).encode()).await.ok()?;
            Some(stream)
        };
        let Some(stream) = opened.await else {
            return leading.refuse(socket, *source, NotLed::NoIssuer).await;
        };
        leading.metrics.joiner_led("begun");
        let mut moved = [0; 2];
        let ended = pass(socket, &watched, said, stream, &mut moved).await;
        leading.metrics.joiner_bytes(moved.iter().sum());
        if ended.is_err() {
            watched.abort();
        }
        leading.metrics.joiner_led(match ended.map_err(|error| error.kind()) {
            Ok(()) => "ended",
            Err(io::ErrorKind::QuotaExceeded | io::ErrorKind::TimedOut) => NotLed::Excess.word(),
            Err(_) => "broken",
        });
    }
}

/// Moves the bytes of both ways, within the limits of a stranger.
async fn pass(
    socket: Socket,
    watched: &Watched,
    said: Vec<u8>,
    stream: FlowStream,
    moved: &mut [u64; 2],
) -> io::Result<()> {
    let FlowStream { mut send, mut recv, mut credit, demand, lease, .. } = stream;
    let (there, home) = moved.split_at_mut(1);
    let (reader, writer) = split(socket);
    let reader = Metered { inner: said.chain(reader), moved: &mut there[0] };
    let writer = Metered { inner: writer, moved: &mut home[0] };
    let both = async {
        let mut out = pin!(out(reader, (&mut send, &demand), &mut credit.sending));
        let mut back = pin!(back(&mut recv, &mut credit.reading, writer));
        tokio::select! {
            ended = &mut out => {
                ended?;
                timeout(LAST_WORDS, back).await?
            }
            // The issuer has said all.
            ended = &mut back => {
                ended?;
                timeout(LAST_WORDS, out).await?
            }
        }
    };
    let ended = tokio::select! {
        ended = timeout(MAX_STRANGER_TIME, both) => ended.map_err(io::Error::from).flatten(),
        error = watched.failed() => Err(error),
    };
    if ended.is_err() {
        let _ = send.reset(BROKEN);
        let _ = recv.stop(BROKEN);
    }
    // It counts until now.
    drop(lease);
    ended
}

/// One way of a stranger: it fails where more is moved than a stranger may.
#[derive(Debug)]
struct Metered<'a, T> {
    inner: T,
    moved: &'a mut u64,
}

impl<T> Metered<'_, T> {
    fn add(&mut self, bytes: usize) -> io::Result<()> {
        *self.moved += bytes as u64;
        match *self.moved <= MAX_STRANGER_BYTES {
            true => Ok(()),
            false => Err(io::ErrorKind::QuotaExceeded.into()),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<'_, T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        Poll::Ready(this.add(buffer.filled().len() - before))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<'_, T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write(context, bytes))?;
        Poll::Ready(this.add(written).map(|()| written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}
