//! Replies without an end: the event log as it grows, and changes as they become visible.
//!
//! Owns: the two streams of JSON lines, one line per change, and the mark where a slow client lost some. Must not
//! know: what changes, how lines are shown. Driven by: `api`.
//!
//! What a client does not read waits in a bounded queue that all clients share; who is too slow loses the oldest
//! lines, is told how many, and holds up nobody.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use gossamer_wire::NodeId;

use super::Api;
use super::handlers::ask;
use super::refusal::Refusal;
use crate::clock;
use crate::events::EventLine;
use crate::index::{IndexReader, WatchLine, Watcher};

/// Lines in one piece of a reply: a burst goes out together, and nothing waits for a piece to fill.
const PIECE: usize = 64;

const JSON_LINES: [(axum::http::HeaderName, &str); 1] = [(CONTENT_TYPE, "application/x-ndjson")];

#[derive(Debug, Deserialize)]
pub(super) struct EventsQuery {
    #[serde(default)]
    since: u64,
    #[serde(default)]
    follow: bool,
}

/// Replies with JSON lines; with `follow` until the daemon stops or the client goes.
pub(super) async fn events(
    State(api): State<Api>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let EventsQuery { since, follow } = ask(query)?;
    let (kept, later) = api.state.events.follow(since);
    let kept: String = kept.iter().map(json_line).collect();
    if !follow {
        return Ok((JSON_LINES, kept).into_response());
    }
    let stop = api.stage.stopping().clone();
    let lines = stream::unfold((Some(kept), later, stop), |(kept, mut later, stop)| async move {
        let piece = match kept {
            Some(kept) => kept,
            None => json_line(&next_event(&mut later, &stop).await?),
        };
        Some((Ok::<_, Infallible>(Bytes::from(piece)), (None, later, stop)))
    });
    Ok((JSON_LINES, Body::from_stream(lines)).into_response())
}

/// # Cancel safety
/// Cancel safe: no line is lost by it.
async fn next_event(
    later: &mut broadcast::Receiver<EventLine>,
    stop: &CancellationToken,
) -> Option<EventLine> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        line = later.recv() => match line {
            Ok(line) => Some(line),
            Err(RecvError::Lagged(lines)) => Some(EventLine::lost(lines, clock::wall())),
            Err(RecvError::Closed) => None,
        },
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct WatchQuery {
    /// A service or a node, by name; all unless given.
    name: Option<String>,
    /// First what there is, as if it had just come.
    #[serde(default)]
    all: bool,
}

/// What a watching client's reply is made of.
struct Watching {
    first: Option<String>,
    watcher: Watcher,
    name: Option<String>,
    stop: CancellationToken,
}

/// Replies with JSON lines until the daemon stops or the client goes. The first one is sent at once: what changes
/// after it was written follows.
pub(super) async fn watch(
    State(api): State<Api>,
    query: Result<Query<WatchQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let WatchQuery { name, all } = ask(query)?;
    let index = &api.state.index;
    // Before the index is read, so that nothing falls between.
    let watcher = index.watch();
    let mut first = json_line(&WatchLine::Watching {
        at_us: clock::wall_micros(),
        nodes: index.nodes().len(),
        services: index.count_services(),
    });
    if all {
        let lines = present(index, api.state.about.node);
        first.extend(lines.iter().filter(|line| wanted(line, name.as_deref())).map(json_line));
    }
    let watching = Watching { first: Some(first), watcher, name, stop: api.stage.stopping().clone() };
    let lines = stream::unfold(watching, |mut watching| async move {
        let piece = watching.next_piece().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), watching))
    });
    Ok((JSON_LINES, Body::from_stream(lines)).into_response())
}

impl Watching {
    /// Waits for a wanted line and takes those that wait behind it along.
    async fn next_piece(&mut self) -> Option<String> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut piece = String::new();
        let mut lines = 0;
        while piece.is_empty() || (lines < PIECE && self.watcher.has_more()) {
            let line: Option<Arc<WatchLine>> = tokio::select! {
                biased;
                () = self.stop.cancelled() => None,
                line = self.watcher.next() => line,
            };
            let line = line?;
            if wanted(&line, self.name.as_deref()) {
                piece.push_str(&json_line(&*line));
                lines += 1;
            }
        }
        Some(piece)
    }
}

fn wanted(line: &WatchLine, name: Option<&str>) -> bool {
    name.is_none_or(|name| line.is_about(name))
}

/// Returns what there is besides this node, nodes first, in the order of listings.
fn present(index: &IndexReader, this: NodeId) -> Vec<WatchLine> {
    let at_us = clock::wall_micros();
    // Membership says nothing of this node: it is alive, for it answers.
    let others = index.nodes().into_iter().filter(|node| node.node != this);
    let mut lines: Vec<_> = others.map(|node| WatchLine::of_node(&node, at_us)).collect();
    let services = index.services();
    let views = services.iter().filter_map(|service| index.service(service));
    lines.extend(views.flat_map(|view| WatchLine::of_service(&view, at_us)));
    lines
}

fn json_line(line: &impl Serialize) -> String {
    serde_json::to_string(line).map(|line| line + "\n").unwrap_or_default()
}
