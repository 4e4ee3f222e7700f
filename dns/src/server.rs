//! The server: the desk that answers every request, and the sockets in front of it.
//!
//! Owns: who may ask, deadlines, how many questions wait at once. Must not know: names, records, sizes.
//! Driven by: the daemon, which binds the sockets, says who may ask, and cancels `stop`. TCP is hickory-server's:
//! what it does before and after us, and what it leaves open: `docs/adr/0009-hickory-serves-dns.md`. UDP is read by
//! our own workers: `docs/adr/0023-own-udp-loop.md`.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::forward::Asked;
use crate::kept::Kept;
use crate::recorder::Recorder;
use crate::request::judge;
use crate::response::{Reply, Writer};
use crate::udp::Worker;
use crate::{Answer, Directory, DnsMetrics, Forwarder, Question, Target, Zones, targets};

/// Decides by source address who may ask. Called for every question; must not block.
pub type SourceRule = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// What answers are made of.
#[derive(Clone)]
pub struct Service {
    /// What the mesh holds.
    pub directory: Arc<dyn Directory>,
    /// What is answered for.
    pub zone: Arc<Zones>,
    /// Whom names of others are asked of; `None`: they are refused.
    pub forwarder: Option<Arc<Forwarder>>,
    /// What counts.
    pub metrics: Arc<DnsMetrics>,
    /// Who may ask.
    pub allow: SourceRule,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("zone", &self.zone).finish_non_exhaustive()
    }
}

/// The DNS server of a node.
#[derive(Debug)]
pub struct DnsServer;

impl DnsServer {
    /// Answers on all sockets until `stop` is cancelled; questions that still wait are then dropped. Each UDP
    /// socket has a worker of its own: several are bound to one address with `SO_REUSEPORT`.
    ///
    /// Questions of sources that [`Service::allow`] refuses get no byte, not even an error, so that a forged
    /// source cannot be hit.
    ///
    /// # Errors
    /// A socket failed for good (the machine's fault); all are closed by then. Bind again to retry.
    ///
    /// # Cancel safety
    /// Dropping the future closes the sockets and ends every task.
    pub async fn serve(
        service: Service,
        udp: Vec<UdpSocket>,
        tcp: TcpListener,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let desk = Desk::new(service, MAX_WAITING);
        let mut workers = JoinSet::new();
        for socket in udp {
            workers.spawn(Worker::new(socket, desk.clone()).run(stop.child_token()));
        }
        let mut over_tcp = Server::new(desk);
        over_tcp.register_listener(tcp, IDLE_DEADLINE, RESPONSE_BUFFER);

        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            Some(ended) = workers.join_next() => ended.unwrap_or_else(|error| Err(io::Error::other(error))),
            ended = over_tcp.block_until_done() => ended.map_err(io::Error::other),
        };
        // Waits until the sockets are closed. What this says about one that has failed is known already.
        let _ = tokio::join!(workers.shutdown(), over_tcp.shutdown_gracefully());
        ended
    }
}

/// What every question needs for its answer.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    pub(crate) service: Service,
    /// Turns of questions that wait for their VIPs.
    waiting: Arc<Semaphore>,
    /// Answers that can be sent again.
    pub(crate) kept: Arc<Kept>,
}

#[async_trait]
impl RequestHandler for Desk {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut client: R,
    ) -> ResponseInfo {
        if !self.admits(request.src()) {
            return unsent(request);
        }
        let reply = self.reply(request, Writer::HickoryServer).await;
        client.send_response(reply.message()).await.unwrap_or_else(|error| {
            tracing::debug!(err = %error, "answer not sent");
            self.service.metrics.count_dropped();
            unsent(request)
        })
    }
}

impl Desk {
    fn new(service: Service, turns: usize) -> Self {
        let kept =
            Kept::new(Arc::clone(&service.directory), Arc::clone(&service.zone), service.forwarder.is_some());
        Self { service, waiting: Arc::new(Semaphore::new(turns)), kept: Arc::new(kept) }
    }

    /// Returns whether a source may ask; counts those that may not.
    pub(crate) fn admits(&self, source: SocketAddr) -> bool {
        let admitted = (self.service.allow)(source.ip().to_canonical());
        if !admitted {
            self.service.metrics.count_refused_source();
        }
        admitted
    }

    /// Answers a request that came over UDP; `None` when its source may not ask.
    pub(crate) async fn datagram(&self, request: &Request) -> Option<Vec<u8>> {
        if !self.admits(request.src()) {
            return None;
        }
        let written = self.reply(request, Writer::Own).await.to_bytes();
        written.inspect_err(|error| tracing::debug!(err = %error, "answer not written")).ok()
    }

    /// Answers a request, and counts it.
    async fn reply<'a>(&self, request: &'a Request, writer: Writer) -> Reply<'a> {
        let began = Instant::now();
        let answer = match judge(request) {
            Ok(question) => self.answer(&question, asked(request)).await,
            Err(rcode) => Answer::empty(rcode),
        };
        let reply = Reply::new(request, answer, writer).offering(self.service.forwarder.is_some());
        let kind = request.queries.queries().first().map(|query| query.query_type().into());
        self.service.metrics.count(reply.outcome(), reply.truncated(), kind, began.elapsed());
        reply
    }

    async fn answer(&self, question: &Question, asked: Asked) -> Answer {
        let rotation = rand::random();
        let recorder = self.kept.recorder();
        let vips = targets(question, &recorder, &self.service.zone, rotation);
        let found = if vips.is_empty() || self.prepare(&recorder, &vips).await {
            self.kept.answer(question, recorder, rotation)
        } else {
            Answer::empty(ResponseCode::ServFail)
        };
        if found.rcode == ResponseCode::Refused
            && let Some(forwarder) = &self.service.forwarder
            && let Some(forwarded) = forwarder.forward(question, asked).await
        {
            return forwarded;
        }
        found
    }

    /// Returns whether the VIPs got ready in time.
    async fn prepare(&self, directory: &Recorder, vips: &[Target]) -> bool {
        let Ok(_turn) = self.waiting.try_acquire() else { return false };
        let prepared = timeout(PREPARE_DEADLINE, async {
            for target in vips {
                directory.prepare(target).await;
            }
        });
        prepared.await.is_ok()
    }
}

/// Returns what of a question goes along to upstream.
fn asked(request: &Request) -> Asked {
    Asked {
        recursion_desired: request.metadata.recursion_desired,
        dnssec_ok: request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        checking_disabled: request.metadata.checking_disabled,
    }
}

/// Returns what hickory-server wants to hear about a request that got no response.
fn unsent(request: &Request) -> ResponseInfo {
    let metadata = Metadata::response_from_request(&request.metadata);
    Header { metadata, counts: HeaderCounts::default() }.into()
}

/// Questions whose VIPs are being opened. More than these get SERVFAIL at once, so that no flood can pile up. Each waits [`PREPARE_DEADLINE`] at most.
const MAX_WAITING: usize = 1024;

/// Longest wait for VIP listeners. Stub resolvers give up after 5 s; SERVFAIL before that says whose fault
/// it is.
const PREPARE_DEADLINE: Duration = Duration::from_secs(2);

/// Longest wait for a whole request, and for a client to take a whole response (RFC 7766 6.2.3: seconds).
const IDLE_DEADLINE: Duration = Duration::from_secs(5);

/// Responses of one connection that wait to be written. One is written before the next question is read.
const RESPONSE_BUFFER: usize = 1;

#[cfg(test)]
mod tests;
