//! Draining over the local API.
//!
//! Owns: the translation. Must not know: how registrations are kept, how flows end. Driven by: `api`.

use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};

use gossamer_core::callers::Owner;

use super::handlers::read;
use super::messages::{Drain, DrainRow, Draining};
use super::refusal::Refusal;
use super::{Api, ApiState};
use crate::clock;
use crate::register::{DrainError, DrainRequest};

/// Longest drain: what takes longer is no drain but a withdrawal.
const LONGEST: u64 = 7 * 86_400;

pub(super) async fn drain(
    State(api): State<Api>,
    Extension(by): Extension<Owner>,
    body: Result<Json<Drain>, axum::extract::rejection::JsonRejection>,
) -> Result<Json<Draining>, Refusal> {
    let Drain { service, instance, for_seconds, undo } = read(body)?;
    if for_seconds > LONGEST {
        return Err(Refusal::malformed("a drain lasts 7d at most; withdraw what is not to come back"));
    }
    if instance.is_some() && service.is_none() {
        return Err(Refusal::malformed("an instance is named without its service; name both"));
    }
    tracing::debug!(service = ?service, %by, undo, "drain");
    let until = (!undo).then(|| clock::wall() + for_seconds);
    let request = DrainRequest { service, instance, until, by };
    let drained = api.state.registry.drain(request).await.inspect_err(|error| {
        if matches!(error, DrainError::Owned { .. }) {
            api.state.metrics.api_refused("owner");
        }
    })?;
    let mut registrations = Vec::new();
    for (service, instance) in drained.registrations {
        if let Some(until) = until {
            let left = Duration::from_secs(for_seconds);
            api.state.relay.end_drained(&service, &instance, left, until);
        }
        let flows = api.state.relay.served(&service, &instance);
        registrations.push(DrainRow { service, instance, flows, left_seconds: for_seconds });
    }
    Ok(Json(Draining { undone: undo, registrations }))
}

pub(super) async fn list(State(api): State<Api>) -> Json<Draining> {
    Json(Draining { undone: false, registrations: rows(&api.state) })
}

/// Returns what `gossamer drain` lets drain.
pub(super) fn rows(state: &ApiState) -> Vec<DrainRow> {
    let now = clock::wall();
    let all = state.registry.targets().all();
    let draining = all.iter().filter_map(|local| Some((&local.record, local.drains_until?)));
    draining
        .map(|(record, until)| DrainRow {
            service: record.service.clone(),
            instance: record.instance.clone(),
            flows: state.relay.served(&record.service, &record.instance),
            left_seconds: until.saturating_sub(now),
        })
        .collect()
}
