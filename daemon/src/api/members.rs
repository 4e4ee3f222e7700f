//! Orders about nodes and issuers.
//!
//! Owns: which node a name means. Must not know: who may order what (`core::callers`, `authority`). Driven by: `api`.

use std::collections::BTreeSet;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;

use gossamer_core::callers::Caller;
use gossamer_wire::NodeId;

use super::Api;
use super::handlers::read;
use super::messages::{AddIssuer, GrantNumbers, IssuerRow, OrderDone, RemoveIssuer, WhichNode};
use super::refusal::Refusal;
use crate::index::node_word;

type Reply = Result<Json<OrderDone>, Refusal>;
pub(super) type Sent<T> = Result<Json<T>, JsonRejection>;

pub(super) async fn evict(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Sent<WhichNode>,
) -> Reply {
    let (node, name) = which(&api, &read(body)?.node)?;
    tracing::info!(%node, %name, user = caller.uid, "evicting on request");
    api.state.authority.evict(node, name.clone()).await?;
    done(node, name, None)
}

pub(super) async fn add_issuer(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Sent<AddIssuer>,
) -> Reply {
    let AddIssuer { node, groups } = read(body)?;
    let (node, name) = which(&api, &node)?;
    tracing::info!(%node, %name, user = caller.uid, "adding an issuer on request");
    let ends = api.state.authority.add_issuer(node, name.clone(), groups).await?;
    done(node, name, Some(ends))
}

pub(super) async fn remove_issuer(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Sent<RemoveIssuer>,
) -> Reply {
    let RemoveIssuer { node, stolen } = read(body)?;
    let (node, name) = which_issuer(&api, &node).await?;
    tracing::info!(%node, %name, stolen, user = caller.uid, "removing an issuer on request");
    api.state.authority.remove_issuer(node, name.clone(), stolen).await?;
    done(node, name, None)
}

pub(super) async fn grant(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Sent<GrantNumbers>,
) -> Reply {
    let GrantNumbers { node, numbers } = read(body)?;
    let (node, name) = which_issuer(&api, &node).await?;
    tracing::info!(%node, %name, numbers, user = caller.uid, "granting statements on request");
    api.state.authority.grant(node, name.clone(), numbers).await?;
    done(node, name, None)
}

pub(super) async fn issuers(State(api): State<Api>) -> Json<Vec<IssuerRow>> {
    let row = |issuer: crate::authority::IssuerInfo| {
        let is_this = issuer.node == Some(api.state.about.node);
        let known = issuer.node.and_then(|node| api.state.index.node(node));
        let state = if is_this { "alive" } else { node_word(known.and_then(|known| known.state)) };
        IssuerRow {
            name: issuer.name,
            id: issuer.id.to_string(),
            groups: issuer.groups,
            state: state.to_owned(),
            certificate_ends: issuer.not_after,
            statements: issuer.used,
            budget: issuer.budget,
            conflicted: issuer.conflicted,
        }
    };
    Json(api.state.authority.issuers().await.into_iter().map(row).collect())
}

fn done(node: NodeId, name: String, ends: Option<u64>) -> Reply {
    Ok(Json(OrderDone { name, id: node.to_string(), ends }))
}

/// Finds the node of a name or an id. An id need not be known: a node may be evicted before it is ever seen here.
pub(super) fn which(api: &Api, text: &str) -> Result<(NodeId, String), Refusal> {
    if let Ok(node) = text.parse::<NodeId>() {
        return Ok((node, api.state.index.name_of(node)));
    }
    let name =
        text.parse().map_err(|_| Refusal::malformed(format!("{text:?} is no name and no id of a node")))?;
    let about = &api.state.about;
    let own = (about.node_name == name).then_some(about.node);
    let others = api.state.index.nodes_named(&name);
    let mut found: Vec<_> = others.iter().map(|node| node.node).chain(own).collect();
    found.sort();
    found.dedup();
    match found[..] {
        [node] => Ok((node, text.to_owned())),
        [] => Err(Refusal::not_found(format!("no node is called {text}; gossamer nodes lists them"))),
        _ => {
            let ids: Vec<_> = found.iter().map(ToString::to_string).collect();
            Err(Refusal::conflict(format!(
                "{} nodes are called {text}; name one by its id: {}",
                ids.len(),
                ids.join(", ")
            )))
        }
    }
}

/// The least of an id that stands for it.
const PREFIX: usize = 4;

/// Finds the node of a name, an id, or the beginning of the id of one node that is known. For what does no harm to the wrong one.
pub(super) fn which_by_prefix(api: &Api, text: &str) -> Result<(NodeId, String), Refusal> {
    let refusal = match which(api, text) {
        Err(refusal) if text.len() >= PREFIX => refusal,
        found => return found,
    };
    let nodes = api.state.index.nodes();
    let all: BTreeSet<_> = nodes.iter().map(|known| known.node).chain([api.state.about.node]).collect();
    let found: Vec<_> = all.into_iter().filter(|node| node.to_string().starts_with(text)).collect();
    match found[..] {
        [node] => Ok((node, api.state.index.name_of(node))),
        [] => Err(refusal),
        [..] => Err(Refusal::conflict(format!(
            "more than one node has an id that begins with {text}; gossamer nodes --json lists them"
        ))),
    }
}

/// Finds the node of an issuer, also of one that nobody hears of any more.
async fn which_issuer(api: &Api, text: &str) -> Result<(NodeId, String), Refusal> {
    match which(api, text) {
        Err(refusal) => {
            let issuers = api.state.authority.issuers().await;
            let mut named = issuers.into_iter().filter(|issuer| issuer.name == text);
            match (named.next(), named.next()) {
                (Some(issuer), None) => Ok((issuer.node.unwrap_or(issuer.id), issuer.name)),
                _ => Err(refusal),
            }
        }
        found => found,
    }
}
