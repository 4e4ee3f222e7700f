//! The server: bound sockets in, answers out, over UDP and TCP.
//!
//! Owns: tasks, deadlines, how many questions wait at once. Must not know: names, records, who is asked.
//! Driven by: the daemon, which binds the sockets, says who may ask, and cancels `stop`.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use gossamer_wire::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{Directory, DnsMetrics, Intake, Request, Response, Target, Zone, answer, targets};

/// Decides by source address who may ask. Called for every datagram and connection; must not block.
pub type SourceRule = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// The DNS server of a node.
#[derive(Debug)]
pub struct DnsServer;

impl DnsServer {
    /// Answers on both sockets until `stop` is cancelled; questions that still wait are then dropped.
    ///
    /// Sources that `allow` refuses get no byte, not even an error, so that a forged source cannot be hit.
    ///
    /// # Errors
    /// A socket failed for good (the machine's fault); both are closed by then. Bind again to retry.
    ///
    /// # Cancel safety
    /// Dropping the future closes the sockets and ends every task.
    pub async fn serve(
        directory: Arc<dyn Directory>,
        zone: Arc<Zone>,
        udp: UdpSocket,
        tcp: TcpListener,
        metrics: Arc<DnsMetrics>,
        allow: SourceRule,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let desk = Arc::new(Desk { directory, zone, metrics, allow });
        tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            ended = serve_udp(udp, Arc::clone(&desk)) => ended,
            ended = serve_tcp(tcp, desk) => ended,
        }
    }
}

/// What every task needs to answer.
struct Desk {
    directory: Arc<dyn Directory>,
    zone: Arc<Zone>,
    metrics: Arc<DnsMetrics>,
    allow: SourceRule,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("zone", &self.zone).finish_non_exhaustive()
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

    /// Answers at once, or returns the question with the VIPs that must be prepared first.
    fn read(&self, bytes: &[u8], transport: Transport) -> Step {
        match Request::read(bytes, transport) {
            Intake::Drop => {
                self.metrics.count_dropped();
                Step::Drop
            }
            Intake::Refusal(response) => Step::Send(self.counted(response)),
            Intake::Question(request) => {
                let rotation = rand::random();
                let vips = targets(request.question(), &*self.directory, &self.zone, rotation);
                let waiting = Waiting { request, vips, rotation };
                if waiting.vips.is_empty() {
                    Step::Send(self.answer(waiting))
                } else {
                    Step::Prepare(Box::new(waiting))
                }
            }
        }
    }

    async fn prepare(&self, waiting: Box<Waiting>) -> Response {
        let prepared = timeout(PREPARE_DEADLINE, async {
            for target in &waiting.vips {
                self.directory.prepare(target).await;
            }
        });
        match prepared.await {
            Ok(()) => self.answer(*waiting),
            Err(_) => self.counted(waiting.request.fail()),
        }
    }

    fn answer(&self, waiting: Waiting) -> Response {
        let answer = answer(waiting.request.question(), &*self.directory, &self.zone, waiting.rotation);
        self.counted(waiting.request.respond(&answer))
    }

    fn counted(&self, response: Response) -> Response {
        self.metrics.count(response.outcome, response.truncated);
        response
    }
}

/// What to do about a message.
enum Step {
    Drop,
    Send(Response),
    Prepare(Box<Waiting>),
}

/// A question that waits for its VIPs.
struct Waiting {
    request: Request,
    vips: Vec<Target>,
    rotation: u32,
}

async fn serve_udp(socket: UdpSocket, desk: Arc<Desk>) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; MAX_REQUEST_BYTES];
    let mut failures = 0;
    loop {
        let received = tokio::select! {
            biased;
            Some(_) = waiting.join_next() => continue,
            received = socket.recv_from(&mut buffer), if waiting.len() < MAX_WAITING => received,
        };

        let (length, source) = match received {
            Ok(received) => received,
            Err(error) if failures < MAX_FAILURES => {
                tracing::debug!(err = %error, "datagram not received");
                failures += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        failures = 0;
        if !desk.admits(source) {
            continue;
        }
        match desk.read(buffer.get(..length).unwrap_or_default(), Transport::Udp) {
            Step::Drop => {}
            Step::Send(response) => send(&socket, &response, source, &desk).await,
            Step::Prepare(question) => {
                let (socket, desk) = (Arc::clone(&socket), Arc::clone(&desk));
                waiting.spawn(async move {
                    let response = desk.prepare(question).await;
                    send(&socket, &response, source, &desk).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, response: &Response, source: SocketAddr, desk: &Desk) {
    if let Err(error) = socket.send_to(&response.bytes, source).await {
        tracing::debug!(err = %error, "answer not sent");
        desk.metrics.count_dropped();
    }
}

async fn serve_tcp(listener: TcpListener, desk: Arc<Desk>) -> io::Result<()> {
    let mut connections = JoinSet::new();
    let mut failures = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
        };

        match accepted {
            Ok((stream, source)) if desk.admits(source) => {
                failures = 0;
                let desk = Arc::clone(&desk);
                connections.spawn(async move {
                    if let Err(error) = converse(stream, &desk).await {
                        tracing::debug!(err = %error, "connection ended");
                    }
                });
            }
            Ok(_) => failures = 0,
            Err(error) if failures < MAX_FAILURES => {
                tracing::debug!(err = %error, "connection not accepted");
                failures += 1;
                sleep(ACCEPT_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Answers the questions of one connection in order (RFC 7766 6.2.1.1 allows any).
async fn converse(stream: TcpStream, desk: &Desk) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some(bytes) = timeout(IDLE_DEADLINE, read_message(&mut stream)).await?? {
        let response = match desk.read(&bytes, Transport::Tcp) {
            Step::Drop => return Ok(()),
            Step::Send(response) => response,
            Step::Prepare(question) => desk.prepare(question).await,
        };
        let Ok(length) = u16::try_from(response.bytes.len()) else { return Ok(()) };
        let framed = [&length.to_be_bytes(), response.bytes.as_slice()].concat();
        timeout(IDLE_DEADLINE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// Reads one message with its length (RFC 1035 4.2.2); `None` at the end of the connection, or when the
/// length is none that a question has.
async fn read_message(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if !(1..=MAX_REQUEST_BYTES).contains(&length) {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}

/// Longest request read. A question with OPT, cookie and padding has less than 1,000 bytes; the rest of a
/// longer datagram is cut off, a longer stream message ends the connection.
const MAX_REQUEST_BYTES: usize = 4096;

/// Datagrams whose VIPs are being opened. When full, reading waits and the socket's buffer takes the burst:
/// late is better than SERVFAIL. Each waits [`PREPARE_DEADLINE`] at most.
const MAX_WAITING: usize = 1024;

/// Longest wait for VIP listeners. Stub resolvers give up after 5 s; SERVFAIL before that says whose fault
/// it is.
const PREPARE_DEADLINE: Duration = Duration::from_secs(2);

/// TCP connections at once. When full, new ones wait in the backlog; an idle one is closed by then.
const MAX_CONNECTIONS: usize = 256;

/// Longest wait for a whole request, and for a client to take a whole response (RFC 7766 6.2.3: seconds).
const IDLE_DEADLINE: Duration = Duration::from_secs(5);

/// Failures of a socket in a row before it is given up. Some, such as "no file descriptors left", pass.
const MAX_FAILURES: u32 = 100;

/// Wait after a failed accept, which would else fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
