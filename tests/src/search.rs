//! A member that asks another one for flows it may not have, as often as it likes.
//!
//! Owns: its connections and what it hears. Must not know: what the daemon does about it. Driven by: the checks of access.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quinn::Connection;
use tokio::task::JoinSet;

use gossamer_wire::flow::OpenRequest;

use crate::quic::{Credentials, data_connection, runtime};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Requests under way at once.
const AT_ONCE: usize = 128;

/// What a search met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Answers by their first byte.
    pub answers: BTreeMap<u8, usize>,
    /// Requests whose stream or connection broke instead.
    pub unanswered: usize,
    /// Connections that the daemon closed, by its reason.
    pub closed: BTreeMap<String, usize>,
}

/// Asks for all of these, each once; makes a new connection whenever the daemon closes one.
///
/// # Errors
/// The harness's own, or the daemon takes no more connections at all.
pub fn search(
    server: SocketAddr,
    member: &Credentials,
    requests: impl Iterator<Item = Result<OpenRequest>>,
) -> Result<Searched> {
    runtime()?.block_on(async {
        let mut searched = Searched::default();
        let mut requests = requests.peekable();
        while requests.peek().is_some() {
            let connection = data_connection(server, member).await.context("another connection")?;
            while connection.close_reason().is_none() && requests.peek().is_some() {
                let some = requests.by_ref().take(AT_ONCE).collect::<Result<Vec<_>>>()?;
                let mut asking = JoinSet::new();
                for request in some {
                    let connection = connection.clone();
                    asking.spawn(async move { ask(&connection, &request).await });
                }
                while let Some(answer) = asking.join_next().await {
                    match answer? {
                        Some((bytes, _)) => *searched.answers.entry(bytes[0]).or_default() += 1,
                        None => searched.unanswered += 1,
                    }
                }
            }
            if let Some(reason) = connection.close_reason() {
                *searched.closed.entry(reason.to_string()).or_default() += 1;
            }
            connection.close(0_u32.into(), b"");
        }
        Ok(searched)
    })
}

/// Asks for each of these in turn, `times` over, one at a time. Returns for each all bytes of the answer with how the
/// stream ended, and the times until they were there.
///
/// # Errors
/// The harness's own, or an answer does not come.
pub fn compare(
    server: SocketAddr,
    member: &Credentials,
    requests: &[OpenRequest],
    times: usize,
) -> Result<Vec<(Vec<u8>, Vec<Duration>)>> {
    runtime()?.block_on(async {
        let connection = data_connection(server, member).await?;
        let mut all: Vec<(Vec<u8>, Vec<Duration>)> = vec![Default::default(); requests.len()];
        for round in 0..times {
            // Another one begins each time, so that no place in the order is better.
            for place in 0..requests.len() {
                let which = (round + place) % requests.len();
                let (bytes, took) = ask(&connection, &requests[which]).await.context("an answer")?;
                let (known, took_all) = &mut all[which];
                anyhow::ensure!(known.is_empty() || *known == bytes, "one request has two answers");
                *known = bytes;
                took_all.push(took);
            }
        }
        connection.close(0_u32.into(), b"");
        Ok(all)
    })
}

/// Returns all bytes that answer a request, a last 0 for a clean end and a 1 for another one, and how long the first
/// took; `None` when there were none.
async fn ask(connection: &Connection, request: &OpenRequest) -> Option<(Vec<u8>, Duration)> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    let began = Instant::now();
    send.write_all(&request.encode().ok()?).await.ok()?;
    let answer = async {
        let mut first = [0];
        recv.read_exact(&mut first).await.ok()?;
        let took = began.elapsed();
        let mut bytes = first.to_vec();
        match recv.read_to_end(4_096).await {
            Ok(rest) => bytes.extend(rest.into_iter().chain([0])),
            Err(_) => bytes.push(1),
        }
        Some((bytes, took))
    };
    tokio::time::timeout(ANSWER, answer).await.ok().flatten()
}
