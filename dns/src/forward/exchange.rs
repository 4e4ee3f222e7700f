//! Exchanges: one question to one upstream server, over UDP and when the answer is cut over TCP.
//!
//! Owns: sockets and framing. Must not know: which server, which question, what an answer means.
//! Driven by: `forward`, once per try.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Asked;
use super::metrics::ForwardMetrics;
use super::reply::{self, Dropped, Read};
use crate::{Question, UDP_PAYLOAD_BYTES};

/// Why a try brought no answer. The server's fault or the network's; another may do better.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// Nothing that answers the question came in time.
    #[error("did not answer in time")]
    Late,
    /// The system refused to send or to receive.
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    /// What came over TCP is no answer.
    #[error("answered something else over TCP")]
    Unreadable,
}

/// Asks one server. A fresh socket gets a port that only the kernel knows, and the id is random: both must be guessed
/// to forge an answer (RFC 5452 4). The socket is connected, so the kernel discards what others send.
///
/// # Errors
/// See [`Failure`].
///
/// # Cancel safety
/// May be dropped at a deadline; its sockets close.
pub(super) async fn ask(
    server: SocketAddr,
    (question, asked): (&Question, Asked),
    patience: Duration,
    metrics: &ForwardMetrics,
) -> Result<Message, Failure> {
    let query = message(question, asked);
    let answer = timeout(patience, over_udp(server, &query, metrics)).await;
    if let Some(answer) = answer.map_err(|_| Failure::Late)?? {
        return Ok(answer);
    }
    metrics.truncated();
    let query = message(question, asked);
    timeout(TCP_PATIENCE, over_tcp(server, &query, metrics)).await.map_err(|_| Failure::Late)?
}

/// Makes a query with a random id; a checking client's flags go along (RFC 4035 4.6).
fn message(question: &Question, asked: Asked) -> Message {
    let mut message = Message::query();
    message.metadata.id = rand::random();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = asked.checking_disabled;
    message.add_query(Query::query(question.name.clone(), question.record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_BYTES).set_dnssec_ok(asked.dnssec_ok);
    message.set_edns(edns);
    message
}

/// Returns the answer, or `None` when it is cut.
async fn over_udp(
    server: SocketAddr,
    query: &Message,
    metrics: &ForwardMetrics,
) -> Result<Option<Message>, Failure> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await.map_err(Failure::Unreachable)?;
    socket.connect(server).await.map_err(Failure::Unreachable)?;
    let bytes = written(query)?;
    socket.send(&bytes).await.map_err(Failure::Unreachable)?;

    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(Failure::Unreachable)?;
        match reply::read(buffer.get(..length).unwrap_or_default(), query) {
            Read::Answer(answer) => return Ok(Some(answer)),
            Read::Truncated => return Ok(None),
            Read::Dropped(why) => metrics.dropped(why),
        }
    }
}

/// Asks over a connection of its own (RFC 7766): answers that are cut are rare.
async fn over_tcp(server: SocketAddr, query: &Message, metrics: &ForwardMetrics) -> Result<Message, Failure> {
    let bytes = written(query)?;
    let answer = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        stream.write_all(&[&length[..], &bytes].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    let answer = answer.await.map_err(Failure::Unreachable)?;
    match reply::read(&answer, query) {
        Read::Answer(answer) => Ok(answer),
        Read::Truncated => Err(Failure::Unreadable),
        Read::Dropped(why) => {
            metrics.dropped(why);
            Err(Failure::Unreadable)
        }
    }
}

fn written(query: &Message) -> Result<Vec<u8>, Failure> {
    query.to_vec().map_err(|error| Failure::Unreachable(io::Error::other(error.to_string())))
}

/// Largest datagram that is read whole. Our OPT asks for at most 1232 bytes; some servers send up to 4096 all the same.
/// Longer ones are cut by the kernel, and so malformed.
const DATAGRAM_BYTES: usize = 4096;

/// Longest wait for an answer over TCP.
const TCP_PATIENCE: Duration = Duration::from_secs(2);

impl ForwardMetrics {
    fn dropped(&self, why: Dropped) {
        match why {
            Dropped::WrongId => self.wrong_id(),
            Dropped::WrongQuestion => self.wrong_question(),
            Dropped::Malformed => self.malformed(),
        }
    }
}
