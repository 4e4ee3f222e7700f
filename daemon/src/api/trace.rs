//! The trace of a name: what DNS, the index, the virtual addresses and the relay say of it, in one answer.
//!
//! Owns: the gathering. Must not know: what follows from it (`judge`), how it is shown. Driven by: `api`.

mod judge;

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use gossamer_core::catalog::ServiceView;
use gossamer_core::vip::VipName;
use gossamer_dns::{Target, is_ours, parse_question, targets};
use gossamer_wire::{PortName, ServiceName, Transport};
use serde::Deserialize;
use tokio::time::Instant;

use super::handlers::{answer, ask};
use super::messages::{Protocol, Resolved, Traced};
use super::refusal::Refusal;
use super::{Api, views};
use crate::config::nearest;
use crate::relay::{PortChoice, behind};
use judge::{Dns, Facts, Named};

#[derive(Debug, Deserialize)]
pub(super) struct TraceQuery {
    name: String,
    /// A port's name or number; the only one, else the first, unless given.
    port: Option<PortName>,
    #[serde(default)]
    transport: Protocol,
    /// Whether a flow is opened.
    #[serde(default)]
    dial: bool,
}

/// Explains the way of a name.
pub(super) async fn trace(
    State(api): State<Api>,
    query: Result<Query<TraceQuery>, QueryRejection>,
) -> Result<Json<Traced>, Refusal> {
    let asked = ask(query)?;
    let state = &api.state;
    let named = named(&api, &asked.name)?;
    let began = Instant::now();
    let full = named.full(state.zone.primary().origin().to_ascii().trim_end_matches('.'), &asked.name);
    let mut resolved = answer(&api, &full, Some("A")).await?;
    // Programs find both; whether there is an answer is judged by the first, which every name has.
    resolved.answers.extend(answer(&api, &full, Some("AAAA")).await?.answers);
    let dns = dns(&resolved, began.elapsed());
    let name = named.name();
    let view = name.and_then(|name| state.index.service(name.service()));
    let port = port(name, view.as_deref(), &asked);
    let choice = port.as_ref().ok().map(|(choice, _)| choice);
    let candidates = match (name, choice) {
        (Some(name), Some(choice)) => state.relay.candidates(name, choice),
        _ => Vec::new(),
    };
    let is_usable = candidates.iter().any(|found| found.turn().is_some());
    let probed = match (name, choice) {
        (Some(name), Some(choice)) if asked.dial && is_usable => {
            Some(state.relay.probe(name.clone(), choice.clone()).await)
        }
        _ => None,
    };
    let (ports, losers) = (state.vips.ports(), state.vips.losers());
    let services = state.index.services();
    let facts = Facts {
        about: &state.about,
        full: &full,
        nearest: name.and_then(|name| {
            let known = services.iter().filter(|known| *known != name.service()).map(ServiceName::as_str);
            nearest(name.service().as_str(), known)
        }),
        named: &named,
        absence: views::absence(view.as_deref(), named.group()),
        view: view.as_deref(),
        port,
        overlap: crate::app::overlapping(&state.about.pool),
        vips: &ports,
        winner: name.and_then(|name| losers.get(name)),
        dns,
        candidates: &candidates,
        labels: Some(&state.live.load().leaf.claims.labels),
        own: &state.registry.targets().all(),
        probed: probed.as_deref(),
        is_dialled: asked.dial,
        malformed: state.relay.malformed(),
    };
    Ok(Json(judge::traced(&facts)))
}

/// Finds what a name stands for; people may also write the virtual address.
fn named(api: &Api, name: &str) -> Result<Named, Refusal> {
    let (directory, zones) = (&*api.state.resolver, &*api.state.zone);
    if let Ok(address) = name.parse::<Ipv4Addr>() {
        return Ok(directory.pointer(address).and_then(vip_name).map_or(Named::Strange, Named::Vip));
    }
    let question = parse_question(name, Some("A"), zones).map_err(Refusal::malformed)?;
    let all = targets(&question, directory, zones, 0);
    Ok(match all.into_iter().next().and_then(vip_name) {
        Some(name) => Named::Vip(name),
        None if is_ours(&question.name, directory, zones) => Named::WithoutVip,
        None => Named::Strange,
    })
}

fn vip_name(target: Target) -> Option<VipName> {
    match target {
        Target::Service { service, group, direct: false } => Some(match group {
            Some(group) => VipName::Group(service, group),
            None => VipName::Service(service),
        }),
        Target::Instance { service, group, instance, direct: false } => {
            Some(VipName::Instance(service, group, instance))
        }
        Target::Service { .. } | Target::Instance { .. } | Target::Node(_) => None,
    }
}

fn dns(resolved: &Resolved, took: Duration) -> Dns {
    let of_address =
        |record: &&super::messages::RecordRow| matches!(record.record_type.as_str(), "A" | "AAAA");
    Dns {
        outcome: resolved.outcome.clone(),
        addresses: resolved
            .answers
            .iter()
            .filter(of_address)
            .filter_map(|row| row.data.parse().ok())
            .collect(),
        reason: resolved.reason.clone(),
        took,
    }
}

/// Chooses the port: what was asked for, else the first of TCP, else the first of UDP. The error lists what there is.
fn port(
    name: Option<&VipName>,
    view: Option<&ServiceView>,
    asked: &TraceQuery,
) -> Result<(PortChoice, (u16, Transport)), Vec<String>> {
    let (Some(name), Some(view)) = (name, view) else { return Err(Vec::new()) };
    let mut all: Vec<_> = behind(view, name)
        .flat_map(|found| &found.ports)
        .map(|port| (port.transport, port.number, port.name.clone()))
        .collect();
    all.sort();
    all.dedup();
    let is_meant = |(transport, number, known): &&(Transport, u16, PortName)| match &asked.port {
        Some(port) => {
            *transport == asked.transport.into() && (known == port || number.to_string() == port.as_str())
        }
        None => true,
    };
    let Some((transport, number, _)) = all.iter().find(is_meant) else {
        let words = |(transport, number, _): &(Transport, u16, PortName)| match transport {
            Transport::Tcp => number.to_string(),
            Transport::Udp => format!("{number}/udp"),
        };
        return Err(all.iter().map(words).collect());
    };
    let choice = match transport {
        Transport::Tcp => PortChoice::Number(*number),
        Transport::Udp => PortChoice::Datagrams(*number),
    };
    Ok((choice, (*number, *transport)))
}
