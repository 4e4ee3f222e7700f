//! Orders about roots.
//!
//! Owns: which root a text means, and what is known of the members when one is retired. Must not know: who may retire
//! whom (`authority`). Driven by: `api`.

use axum::extract::State;
use axum::{Extension, Json};

use gossamer_core::callers::Caller;
use gossamer_core::statements::Member;
use gossamer_wire::NodeId;

use super::Api;
use super::handlers::{holdings, read};
use super::members::Sent;
use super::messages::{ExportRoot, ExportedRoot, ImportRoot, RemoveRoot, RetireRoot, RootRow, RootsDone};
use super::refusal::Refusal;

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<RootRow>>, Refusal> {
    let row = |root: crate::authority::RootInfo| RootRow {
        id: root.id.to_string(),
        state: if root.retired { "retired" } else { "active" }.to_owned(),
        here: root.here,
        certificate_ends: root.not_after,
    };
    Ok(Json(api.state.authority.roots().await?.into_iter().map(row).collect()))
}

pub(super) async fn add(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<RootsDone>, Refusal> {
    tracing::info!(user = caller.uid, "adding a root on request");
    done(&[api.state.authority.add_root().await?])
}

pub(super) async fn retire(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Sent<RetireRoot>,
) -> Result<Json<RootsDone>, Refusal> {
    let RetireRoot { root, force } = read(body)?;
    let id: NodeId = root.parse().map_err(|_| {
        Refusal::malformed(format!("{root:?} is no id of a root; gossamer root list shows them"))
    })?;
    tracing::info!(root = %id, force, user = caller.uid, "retiring a root on request");
    api.state.authority.retire_root(id, members(&api).await, force).await?;
    done(&[id])
}

pub(super) async fn export(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Sent<ExportRoot>,
) -> Result<Json<ExportedRoot>, Refusal> {
    let ExportRoot { passphrase } = read(body)?;
    tracing::info!(user = caller.uid, "exporting the root key on request");
    let pem = api.state.authority.export_root(passphrase.into()).await?;
    Ok(Json(ExportedRoot { pem: pem.into() }))
}

pub(super) async fn import(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Sent<ImportRoot>,
) -> Result<Json<RootsDone>, Refusal> {
    let ImportRoot { pem, passphrase } = read(body)?;
    tracing::info!(user = caller.uid, "importing a root key on request");
    done(&api.state.authority.import_root(pem.into(), passphrase.into()).await?)
}

pub(super) async fn remove(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    body: Sent<RemoveRoot>,
) -> Result<Json<RootsDone>, Refusal> {
    let RemoveRoot { force } = read(body)?;
    tracing::info!(user = caller.uid, "removing the root key from this machine on request");
    api.state.authority.remove_root(force).await?;
    done(&[])
}

fn done(roots: &[NodeId]) -> Result<Json<RootsDone>, Refusal> {
    Ok(Json(RootsDone { roots: roots.iter().map(ToString::to_string).collect() }))
}

/// Returns what is known of all members that live, of this one as well.
async fn members(api: &Api) -> Vec<Member> {
    let (state, this) = (&api.state, api.state.about.node);
    let holdings = holdings(api).await;
    let known = state.authority.known();
    let nodes = state.index.nodes().into_iter();
    let live = nodes.filter(|summary| {
        let is_up = summary.state.is_some_and(gossamer_core::membership::MemberState::is_up);
        is_up && summary.node != this && !known.evicted.contains(&summary.node)
    });
    let others = live.map(|summary| {
        let view = holdings.nodes.get(&summary.node).or(summary.view.as_ref());
        Member {
            node: summary.node,
            digest: view.and_then(|view| view.statement_digest),
            issuer: view.and_then(|view| view.issuer),
        }
    });
    let own = Member { node: this, digest: Some(known.digest), issuer: state.live.load().leaf.issuer };
    others.chain([own]).collect()
}
