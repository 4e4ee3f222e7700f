//! One DNS question over UDP.
//!
//! Owns: a socket for the time of the question. Must not know: why it is asked. Driven by: `cli::host`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long a server may take. Resolvers in between ask others, and again when they get no reply.
const WITHIN: Duration = Duration::from_secs(5);
/// Largest reply that is read, bytes: none without EDNS is longer than 512.
const REPLY_BYTES: usize = 4_096;

/// Asks a server, as a program's resolver would: recursion desired.
///
/// # Errors
/// No reply in time, or none that can be read.
pub(super) async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> io::Result<Message> {
    let broken = |error: &dyn std::fmt::Display| io::Error::other(error.to_string());
    let name = format!("{}.", name.trim_end_matches('.'));
    let name = Name::from_ascii(name).map_err(|error| broken(&error))?;
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name, kind));
    question.metadata.recursion_desired = true;
    let bytes = question.to_vec().map_err(|error| broken(&error))?;
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let exchange = async {
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        socket.send(&bytes).await?;
        loop {
            let mut buffer = vec![0; REPLY_BYTES];
            let length = socket.recv(&mut buffer).await?;
            buffer.truncate(length);
            match Message::from_vec(&buffer) {
                Ok(reply) if reply.metadata.id == question.metadata.id => return Ok(reply),
                Ok(_) | Err(_) => {}
            }
        }
    };
    timeout(WITHIN, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Returns the addresses in an answer.
pub(super) fn addresses(reply: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    };
    reply.answers.iter().filter_map(|record| address(&record.data)).collect()
}
