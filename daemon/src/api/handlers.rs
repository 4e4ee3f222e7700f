//! One function per route: JSON in, a call of a handle, JSON out.
//!
//! Owns: the translation. Must not know: connections, how anything is done. Driven by: `api`.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;

use gossamer_core::admission::Use;
use gossamer_core::callers::{Caller, Owner};
use gossamer_dns::{Asked, Outcome, Resolution};
use gossamer_wire::{Address, Visibility};

use super::messages::{
    Audience, Connect, CreateToken, CreatedToken, Expose, Exposed, ExposedPort, LeavingRow, NodeRow,
    RecordRow, Resolved, RevokeToken, RevokedToken, ServiceRow, Status, StatusMesh, StatusNode, TokenRow,
    TokenUse, Withdraw, Withdrawn,
};
use super::refusal::Refusal;
use super::{Api, FLOW_PROTOCOL, access, drain, paths, redirection, views};
use crate::catalog::Holdings;
use crate::clock;
use crate::identity::credentials::names;
use crate::identity::issuer::{self, TokenError, TokenRequest};
use crate::index::NodeSummary;
use crate::register::{ExposeError, ExposeRequest, PortRequest, WithdrawError, WithdrawRequest};

type Reply<T> = Result<Json<T>, Refusal>;
type Sent<T> = Result<Json<T>, JsonRejection>;

pub(super) fn read<T>(body: Sent<T>) -> Result<T, Refusal> {
    body.map(|Json(value)| value).map_err(Refusal::from)
}

pub(super) fn ask<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    query.map(|Query(value)| value).map_err(|rejection| Refusal::malformed(rejection.body_text()))
}

pub(super) async fn unknown(uri: Uri) -> Refusal {
    Refusal::not_found(format!("the local API has no {}; is this command of another version?", uri.path()))
}

pub(super) async fn expose(
    State(api): State<Api>,
    Extension(owner): Extension<Owner>,
    body: Sent<Expose>,
) -> Reply<Exposed> {
    let asked = read(body)?;
    tracing::debug!(service = %asked.service, %owner, "expose");
    let exposed = api.state.registry.expose(expose_request(asked, owner)).await.inspect_err(|error| {
        if matches!(error, ExposeError::Owned { .. }) {
            api.state.metrics.api_refused("owner");
        }
    })?;
    let record = exposed.record;
    let ports = record.ports.iter().zip(exposed.target).map(|(port, target)| ExposedPort {
        name: port.name.clone(),
        number: port.number,
        transport: port.transport.into(),
        target: target.to_string(),
    });
    let zone = api.state.zone.primary().origin().to_ascii();
    Ok(Json(Exposed {
        name: format!("{}.{}", record.service, zone.trim_end_matches('.')),
        fqdns: record.fqdns,
        ports: ports.collect(),
        service: record.service,
        instance: record.instance,
        check: exposed.check.to_owned(),
        visibility: access::admits(&exposed.access, &api.state.about.group),
        replaced: exposed.replaced,
        holders: api.state.connections.paths().len(),
        members: views::members_alive(&api.state.index.nodes(), api.state.about.node) - 1,
        warnings: exposed.warnings,
    }))
}

fn expose_request(asked: Expose, owner: Owner) -> ExposeRequest {
    ExposeRequest {
        service: asked.service,
        instance: asked.instance,
        ports: asked
            .ports
            .into_iter()
            .map(|port| PortRequest {
                name: port.name,
                number: port.number,
                target_port: port.target_port,
                transport: port.transport.into(),
            })
            .collect(),
        target: asked.target,
        visibility: match asked.to {
            Audience::Own => Visibility::Own,
            Audience::Groups(groups) => Visibility::Groups(groups),
            Audience::All => Visibility::All,
        },
        allow: asked.allow,
        metadata: asked.metadata.into_iter().collect(),
        fqdns: asked.fqdns,
        weight: asked.weight,
        routing: asked.routing,
        proxy_protocol: asked.proxy_protocol,
        owner,
    }
}

pub(super) async fn withdraw(
    State(api): State<Api>,
    Extension(by): Extension<Owner>,
    body: Sent<Withdraw>,
) -> Reply<Withdrawn> {
    let Withdraw { service, instance } = read(body)?;
    tracing::debug!(%service, %by, "withdraw");
    let request = WithdrawRequest { service: service.clone(), instance, by };
    let withdrawn = api.state.registry.withdraw(request).await.inspect_err(|error| {
        if matches!(error, WithdrawError::Owned { .. }) {
            api.state.metrics.api_refused("owner");
        }
    })?;
    Ok(Json(Withdrawn { service, instances: withdrawn.instances }))
}

pub(super) async fn leave(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Json<StatusNode> {
    tracing::info!(user = caller.uid, "leaving on request");
    api.state.stop.cancel();
    Json(this_node(&api))
}

pub(super) async fn create_token(State(api): State<Api>, body: Sent<CreateToken>) -> Reply<CreatedToken> {
    let asked = read(body)?;
    let request = TokenRequest {
        ttl: Duration::from_secs(asked.ttl_seconds),
        uses: asked.uses,
        group: asked.group,
        node_pattern: asked.name,
        claims: asked.claims,
        addresses: asked.addresses,
    };
    let created = api.state.issuer.create_token(request).await?;
    Ok(Json(created_token(&created)))
}

pub(super) async fn revoke_token(State(api): State<Api>, body: Sent<RevokeToken>) -> Reply<RevokedToken> {
    let RevokeToken { id } = read(body)?;
    let token = id.parse().map_err(Refusal::malformed)?;
    let known = match api.state.issuer.revoke(token).await {
        Ok(info) => Some(info),
        // Of another issuer, which may be lost.
        Err(TokenError::Unknown(_)) => None,
        Err(error) => return Err(error.into()),
    };
    // One of one use is good at its own issuer only.
    let everywhere = known.as_ref().is_none_or(|info| info.uses != 1);
    if everywhere {
        api.state.authority.revoke_token(token).await?;
    }
    let used_by = known.map(|info| info.used_by.iter().map(token_use).collect()).unwrap_or_default();
    Ok(Json(RevokedToken { id, used_by, everywhere }))
}

pub(super) async fn renew_token(State(api): State<Api>, body: Sent<RevokeToken>) -> Reply<CreatedToken> {
    let id = read(body)?.id.parse().map_err(Refusal::malformed)?;
    let created = api.state.issuer.renew(id).await?;
    Ok(Json(created_token(&created)))
}

fn token_use(used: &Use) -> TokenUse {
    TokenUse { name: used.name.clone(), id: used.node.to_string(), at: used.at }
}

fn created_token(created: &issuer::CreatedToken) -> CreatedToken {
    let grant = created.token.grant();
    CreatedToken {
        id: grant.id.to_string(),
        token: created.token.reveal().to_owned(),
        group: grant.group.clone(),
        addresses: Address::join(&grant.addresses, &grant.lanes),
        relays: created.relays.clone(),
        warnings: created.warnings.clone(),
    }
}

pub(super) async fn tokens(State(api): State<Api>) -> Reply<Vec<TokenRow>> {
    let now = clock::wall();
    let rows = api.state.issuer.list().await?.into_iter().map(|token| {
        let used = token.used_by.len();
        let is_spent = token.uses != 0 && used >= token.uses as usize;
        let state = match (token.revoked, is_spent, token.not_after < now) {
            (true, _, _) => "revoked",
            (_, true, _) => "used",
            (_, _, true) => "expired",
            _ => "open",
        };
        TokenRow {
            id: token.id.to_string(),
            group: token.group,
            uses: token.uses,
            used,
            not_after: token.not_after,
            state: state.to_owned(),
            used_by: token.used_by.iter().map(token_use).collect(),
            claims: token.claims,
        }
    });
    Ok(Json(rows.collect()))
}

pub(super) async fn nodes(State(api): State<Api>) -> Json<Vec<NodeRow>> {
    let (nodes, holdings) = (api.state.index.nodes(), holdings(&api).await);
    let known = api.state.authority.known();
    let connected = api.state.connections.paths();
    let name_of = |node| api.state.index.name_of(node);
    let row = |node: &Arc<NodeSummary>| {
        let row = views::node_row(node, api.state.about.node, (&holdings, &known), name_of);
        NodeRow { path: connected.get(&node.node).map(|path| paths::path_row(path, name_of)), ..row }
    };
    let mut rows: Vec<_> = nodes.iter().map(row).collect();
    rows.sort_by(|a, b| (&a.group, &a.name, &a.id).cmp(&(&b.group, &b.name, &b.id)));
    Json(rows)
}

/// Asks the catalog for what passes with time; a daemon that is ending has nothing.
pub(super) async fn holdings(api: &Api) -> Holdings {
    api.state.catalog.holdings().await.unwrap_or_default()
}

#[derive(Debug, Deserialize)]
pub(super) struct ServicesQuery {
    name: Option<gossamer_wire::ServiceName>,
    #[serde(default)]
    all: bool,
}

pub(super) async fn services(
    State(api): State<Api>,
    query: Result<Query<ServicesQuery>, QueryRejection>,
) -> Reply<Vec<ServiceRow>> {
    let ServicesQuery { name, all } = ask(query)?;
    let index = &api.state.index;
    let answered = views::Answered { zones: &api.state.zone, disputed: index.disputed() };
    let names = name.as_ref().map_or_else(|| index.services(), |name| vec![name.clone()]);
    let views = names.iter().filter_map(|name| index.service(name));
    let mut rows: Vec<_> = views.map(|view| views::service_row(&view, all, &answered)).collect();
    rows.retain(|row| !row.instances.is_empty());
    match name {
        Some(name) if rows.is_empty() => {
            let view = index.service(&name);
            Err(match views::absence(view.as_deref(), None) {
                views::Absence::Hidden => Refusal::denied(format!(
                    "{name} is not visible to group {}; its exporters can widen it with gossamer expose --to",
                    api.state.about.group
                )),
                views::Absence::NotImported(_) | views::Absence::Unknown => Refusal::not_found(format!(
                    "no node exports {name}; gossamer services lists what there is"
                )),
            })
        }
        _ => Ok(Json(rows)),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ResolveQuery {
    name: String,
    #[serde(rename = "type")]
    record_type: Option<String>,
}

pub(super) async fn resolve(
    State(api): State<Api>,
    query: Result<Query<ResolveQuery>, QueryRejection>,
) -> Reply<Resolved> {
    let ResolveQuery { name, record_type } = ask(query)?;
    Ok(Json(answer(&api, &name, record_type.as_deref()).await?))
}

/// Answers a question as DNS does here, with the reason for an absence.
pub(super) async fn answer(api: &Api, name: &str, record_type: Option<&str>) -> Result<Resolved, Refusal> {
    let (directory, zone) = (&*api.state.resolver, &*api.state.zone);
    let question = gossamer_dns::parse_question(name, record_type, zone).map_err(Refusal::malformed)?;
    for target in gossamer_dns::targets(&question, directory, zone, 0) {
        directory.prepare(&target).await;
    }
    let mut found =
        gossamer_dns::resolve(name, record_type, directory, zone, 0).map_err(Refusal::malformed)?;
    let asked = Asked { recursion_desired: true, ..Asked::default() };
    if found.outcome == Outcome::Refused
        && let Some(forwarder) = &api.state.forwarder
        && let Some(answer) = forwarder.forward(&question, asked).await
    {
        found = Resolution::new(&question, answer);
    }
    let row = |record: gossamer_dns::ResolvedRecord| RecordRow {
        name: record.name,
        ttl: record.ttl,
        record_type: record.record_type,
        data: record.data,
    };
    let absence = if found.outcome == Outcome::NxDomain && !found.forwarded {
        why_absent(api, &found.name)
    } else {
        None
    };
    let blocked = found.extended.map(|extended| extended.text);
    Ok(Resolved {
        forwarded: found.forwarded,
        hidden: absence.as_ref().is_some_and(|(hidden, _)| *hidden),
        reason: absence.map(|(_, reason)| reason).or(blocked),
        outcome: outcome_word(found.outcome).to_owned(),
        answers: found.answers.into_iter().map(row).collect(),
        additionals: found.additionals.into_iter().map(row).collect(),
        name: found.name,
    })
}

const fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NoError => "NOERROR",
        Outcome::NoData => "NODATA",
        Outcome::NxDomain => "NXDOMAIN",
        Outcome::Refused => "REFUSED",
        Outcome::ServFail => "SERVFAIL",
        Outcome::FormErr => "FORMERR",
        Outcome::NotImp => "NOTIMP",
    }
}

/// Says why a name that could exist does not, and whether that is because it is hidden.
fn why_absent(api: &Api, name: &str) -> Option<(bool, String)> {
    let name = name.to_ascii_lowercase();
    let mut origins = api.state.zone.mesh_zones().map(|zone| zone.origin().to_ascii());
    let relative = origins.find_map(|origin| name.strip_suffix(&origin).map(str::to_owned))?;
    let (service, group) = views::named(&relative)?;
    let view = api.state.index.service(&service);
    let own = &api.state.about.group;
    match views::absence(view.as_deref(), group.as_ref()) {
        views::Absence::Hidden => {
            let reason = format!(
                "{service} exists but is not visible to group {own}; its exporter can run gossamer expose {service} --to {own}"
            );
            Some((true, reason))
        }
        views::Absence::NotImported(groups) => {
            let group = groups.first()?;
            let reason = format!(
                "{service} is in group {group} and not imported; ask for {service}.{group}, or set import = [\"{service}@{group}\"]"
            );
            Some((false, reason))
        }
        views::Absence::Unknown => None,
    }
}

pub(super) async fn status(State(api): State<Api>) -> Json<Status> {
    let state = &api.state;
    let about = &state.about;
    let (nodes, holdings) = (state.index.nodes(), holdings(&api).await);
    state.metrics.holdings(&holdings);
    let vips = state.vips.ports();
    let own = state.registry.targets().all();
    let name_of = |node| state.index.name_of(node);
    let named = state.events.findings().all();
    let mut findings: Vec<_> =
        named.iter().map(|named| views::named_finding(named, about.node, name_of)).collect();
    let live = state.live.load();
    findings.extend(views::token_findings(&state.issuer.list().await.unwrap_or_default(), clock::wall()));
    findings.extend(views::trust_findings(&live, clock::wall()));
    findings.extend(views::disputed_findings(&state.index.disputed(), &state.zone));
    findings.extend(views::findings(about, &nodes, &own, &vips, &state.vips.losers()));
    let pool = about.pool;
    findings.extend(crate::app::overlapping(&pool).map(|found| views::overlap_finding(&found, &pool)));
    let redirection = state.vips.redirection();
    findings.extend(redirection.iter().flat_map(|standings| redirection::findings(standings, about)));
    let upstreams = state.forwarder.as_ref().map(|forwarder| forwarder.status()).unwrap_or_default();
    findings.extend(views::upstream_findings(&upstreams));
    findings.extend(holdings.waiting.iter().flat_map(|of| views::waiting_findings(of, name_of)));
    let connected = state.connections.paths();
    findings.extend(paths::findings(&paths::reach(state, &connected, &nodes), name_of));
    findings.extend(views::only_issuer_finding(&live, nodes.len()));
    Json(Status {
        version: about.version.to_owned(),
        pid: std::process::id(),
        slot: about.slot,
        mesh: StatusMesh { id: about.mesh.to_string(), name: about.mesh_name.clone() },
        node: this_node(&api),
        dns: about.dns,
        dns_names: state.zone.answered(),
        mesh_listen: about.mesh_listen,
        advertised: Address::join(&about.advertised.borrow(), &about.lanes),
        socket: about.socket.clone(),
        state_dir: about.state_dir.clone(),
        members_alive: views::members_alive(&nodes, about.node),
        members: views::members(&nodes, about.node),
        peers: paths::peer_rows(&connected, name_of),
        oldest_head_seconds: holdings.oldest_head.as_secs(),
        waiting: holdings.waiting.iter().map(|of| views::waiting_row(of, name_of)).collect(),
        draining: drain::rows(state),
        leaving: state
            .relay
            .leaving()
            .map(|(flows, left)| LeavingRow { flows, left_seconds: left.as_secs() }),
        services: state.index.count_services(),
        upstreams: upstreams.iter().map(views::upstream_row).collect(),
        findings,
        vip_mode: about.vip_mode.to_string(),
        vip_pool: about.pool.to_string(),
        redirection: redirection.iter().flat_map(redirection::words).collect(),
        vips: vips.into_iter().map(views::vip_row).collect(),
        counters: state.metrics.snapshot(),
        issuer: live.issuer.is_some(),
        issuers: names(&live.issuers),
        certificate_ends: live.leaf.not_after,
        claims: live.leaf.claims.clone(),
        holds_root_key: live.holds_root_key,
    })
}

fn this_node(api: &Api) -> StatusNode {
    let about = &api.state.about;
    StatusNode {
        name: about.node_name.clone(),
        id: about.node.to_string(),
        group: about.group.clone(),
        zone: about.zone.clone(),
        region: about.region.clone(),
    }
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    api.state.metrics.holdings(&holdings(&api).await);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], api.state.metrics.render()).into_response()
}

/// Turns the connection into a flow to an instance, after checking that there is one.
pub(super) async fn connect(
    State(api): State<Api>,
    query: Result<Query<Connect>, QueryRejection>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let to = ask(query)?;
    let wants = request.headers().get(UPGRADE).is_some_and(|protocol| protocol == FLOW_PROTOCOL);
    if !wants {
        return Err(Refusal::malformed(format!("send the header Upgrade: {FLOW_PROTOCOL}")));
    }
    check_callable(&api, &to)?;
    let upgrade = hyper::upgrade::on(&mut request);
    let (relay, stop) = (api.state.relay.clone(), api.stage.stopping().clone());
    api.stage.spawn_short("api flow", async move {
        let Ok(upgraded) = upgrade.await else { return };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = relay.carry(to, Box::new(TokioIo::new(upgraded))) => {}
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, FLOW_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Refuses what can be known to fail before a flow is opened.
fn check_callable(api: &Api, to: &Connect) -> Result<(), Refusal> {
    let view = api.state.index.service(&to.service);
    let service = &to.service;
    let candidates: Vec<_> = view
        .iter()
        .flat_map(|view| &view.instances)
        .filter(|view| to.group.as_ref().map_or(view.imported, |group| *group == view.group))
        .filter(|view| to.instance.as_ref().is_none_or(|instance| *instance == view.instance))
        .collect();
    if candidates.is_empty() {
        return Err(match views::absence(view.as_deref(), to.group.as_ref()) {
            views::Absence::Hidden => {
                Refusal::denied(format!("{service} is not visible to group {}", api.state.about.group))
            }
            views::Absence::NotImported(groups) => Refusal::not_found(format!(
                "{service} is not imported from {}; name the group: {service}.{}",
                groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                groups.first().map(ToString::to_string).unwrap_or_default(),
            )),
            views::Absence::Unknown => Refusal::not_found(format!(
                "no node exports {service}; gossamer services lists what there is"
            )),
        });
    }
    let mut ports = candidates.iter().flat_map(|view| &view.ports);
    let has =
        |port: &gossamer_wire::Port| port.name == to.port || port.number.to_string() == to.port.as_str();
    if ports.any(has) {
        return Ok(());
    }
    let known: Vec<_> =
        candidates.iter().flat_map(|view| &view.ports).map(|port| port.number.to_string()).collect();
    Err(Refusal::not_found(format!("{service} has no port {}; it has {}", to.port, known.join(", "))))
}
