//! The list of living flows: JSON lines, oldest first.
//!
//! Owns: the rows, and that a long list is made piece by piece. Must not know: how flows are carried. Driven by: `api`.

use std::convert::Infallible;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use super::Api;
use super::handlers::ask;
use super::messages::{FlowRow, FlowsLine};
use super::refusal::Refusal;
use crate::relay::{FlowInfo, Path};
use gossamer_wire::NodeId;

/// Rows in one piece of a reply.
const PIECE: usize = 256;

#[derive(Debug, Deserialize)]
pub(super) struct FlowsQuery {
    /// Most rows; all unless given.
    limit: Option<usize>,
}

/// Replies with a line that counts them and a line for each.
pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<FlowsQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let FlowsQuery { limit } = ask(query)?;
    let mut flows = api.state.relay.living();
    let total = flows.len();
    // They are listed once they are open, which took some longer.
    flows.sort_by_key(|flow| flow.since);
    flows.truncate(limit.unwrap_or(total));
    let first = FlowsLine::Flows { total, shown: flows.len() };
    let (now, index) = (tokio::time::Instant::now().into_std(), api.state.index.clone());
    // Rows are made when the client takes them: a slow one costs the snapshot and one piece.
    let pieces = stream::unfold((Some(first), flows.into_iter()), move |(first, mut flows)| {
        let index = index.clone();
        async move {
            let name_of = |node| index.name_of(node);
            let mut piece = first.as_ref().map(json_line).unwrap_or_default();
            piece.extend(
                flows
                    .by_ref()
                    .take(PIECE)
                    .map(|flow| json_line(&FlowsLine::Flow(Box::new(row(&flow, now, name_of))))),
            );
            (!piece.is_empty()).then(|| (Ok::<_, Infallible>(Bytes::from(piece)), (None, flows)))
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(pieces)).into_response())
}

fn row(flow: &FlowInfo, now: Instant, name_of: impl Fn(NodeId) -> String) -> FlowRow {
    let (bytes_in, bytes_out) = flow.bytes();
    let (path, remote) = match flow.path {
        Path::Relay(relay) => (format!("relay {}", name_of(relay)), None),
        Path::Local => (flow.path.word().to_owned(), None),
        Path::Quic(remote) | Path::Lane(remote) => (flow.path.word().to_owned(), Some(remote)),
    };
    FlowRow {
        flow: flow.flow.to_string(),
        direction: flow.direction.word().to_owned(),
        service: flow.service.clone(),
        instance: flow.instance.clone(),
        peer: flow.peer.clone(),
        group: flow.group.clone(),
        client: flow.client,
        target: flow.target.as_ref().map(ToString::to_string),
        transport: flow.transport.into(),
        path,
        remote,
        age_ms: now.saturating_duration_since(flow.since).as_millis() as u64,
        bytes_in,
        bytes_out,
    }
}

fn json_line(line: &FlowsLine) -> String {
    serde_json::to_string(line).map(|line| line + "\n").unwrap_or_default()
}
