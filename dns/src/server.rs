//! The server: hickory-server between the bound sockets and the answers.
//!
//! Owns: who may ask, deadlines, how many questions wait at once. Must not know: names, records, sizes.
//! Driven by: the daemon, which binds the sockets, says who may ask, and cancels `stop`. What hickory-server
//! does before and after us, and what it leaves open: `docs/adr/0009-hickory-serves-dns.md`.

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
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::request::judge;
use crate::response::{Reply, Writer};
use crate::{Answer, Directory, DnsMetrics, Target, Zones, answer, targets};

/// Decides by source address who may ask. Called for every question; must not block.
pub type SourceRule = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// The DNS server of a node.
#[derive(Debug)]
pub struct DnsServer;

impl DnsServer {
    /// Answers on both sockets until `stop` is cancelled; questions that still wait are then dropped.
    ///
    /// Questions of sources that `allow` refuses get no byte, not even an error, so that a forged source cannot
    /// be hit.
    ///
    /// # Errors
    /// A socket failed for good (the machine's fault); both are closed by then. Bind again to retry.
    ///
    /// # Cancel safety
    /// Dropping the future closes the sockets and ends every task.
    pub async fn serve(
        directory: Arc<dyn Directory>,
        zone: Arc<Zones>,
        udp: UdpSocket,
        tcp: TcpListener,
        metrics: Arc<DnsMetrics>,
        allow: SourceRule,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let desk = Desk { directory, zone, metrics, allow, waiting: Arc::new(Semaphore::new(MAX_WAITING)) };
        // One server per socket: a server of two goes on in silence when one of them fails.
        let (mut over_udp, mut over_tcp) = (Server::new(desk.clone()), Server::new(desk));
        over_udp.register_socket(udp);
        over_tcp.register_listener(tcp, IDLE_DEADLINE, RESPONSE_BUFFER);

        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = over_udp.block_until_done() => ended,
            ended = over_tcp.block_until_done() => ended,
        };
        // Waits until the sockets are closed. What this says about one that has failed is known already.
        let _ = tokio::join!(over_udp.shutdown_gracefully(), over_tcp.shutdown_gracefully());
        ended.map_err(io::Error::other)
    }
}

/// What every question needs for its answer.
#[derive(Clone)]
struct Desk {
    directory: Arc<dyn Directory>,
    zone: Arc<Zones>,
    metrics: Arc<DnsMetrics>,
    allow: SourceRule,
    /// Turns of questions that wait for their VIPs.
    waiting: Arc<Semaphore>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("zone", &self.zone).finish_non_exhaustive()
    }
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
        let reply = self.reply(request).await;
        self.metrics.count(reply.outcome(), reply.truncated());
        client.send_response(reply.message()).await.unwrap_or_else(|error| {
            tracing::debug!(err = %error, "answer not sent");
            self.metrics.count_dropped();
            unsent(request)
        })
    }
}

impl Desk {
    fn admits(&self, source: SocketAddr) -> bool {
        let admitted = (self.allow)(source.ip().to_canonical());
        if !admitted {
            self.metrics.count_refused_source();
        }
        admitted
    }

    async fn reply<'a>(&self, request: &'a Request) -> Reply<'a> {
        let question = match judge(request) {
            Ok(question) => question,
            Err(rcode) => return Reply::new(request, Answer::empty(rcode), Writer::HickoryServer),
        };
        let rotation = rand::random();
        let vips = targets(&question, &*self.directory, &self.zone, rotation);
        let answer = if vips.is_empty() || self.prepare(&vips).await {
            answer(&question, &*self.directory, &self.zone, rotation)
        } else {
            Answer::empty(ResponseCode::ServFail)
        };
        Reply::new(request, answer, Writer::HickoryServer)
    }

    /// Returns whether the VIPs got ready in time.
    async fn prepare(&self, vips: &[Target]) -> bool {
        let Ok(_turn) = self.waiting.try_acquire() else { return false };
        let prepared = timeout(PREPARE_DEADLINE, async {
            for target in vips {
                self.directory.prepare(target).await;
            }
        });
        prepared.await.is_ok()
    }
}

/// Returns what hickory-server wants to hear about a request that got no response.
fn unsent(request: &Request) -> ResponseInfo {
    let metadata = Metadata::response_from_request(&request.metadata);
    Header { metadata, counts: HeaderCounts::default() }.into()
}

/// Questions whose VIPs are being opened. hickory-server starts a task per datagram without a bound; more than
/// these get SERVFAIL at once, so that no flood can pile up. Each waits [`PREPARE_DEADLINE`] at most.
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
