//! Who may call what this node exports, explained; and the configuration read again.
//!
//! Owns: the words, whom a text means. Must not know: the order of rules (`core::access`). Driven by: `api`.

use std::collections::BTreeMap;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use serde::Deserialize;

use gossamer_core::access::{Access, Base};
use gossamer_core::callers::Caller;
use gossamer_wire::{GroupName, Label, NodeId, NodeName, ServiceName, Subject, Visibility};

use super::Api;
use super::handlers::ask;
use super::messages::{PolicyRow, PolicyShown, PolicyTested, Reloaded, ReloadedKey, VerdictRow};
use super::refusal::Refusal;
use crate::register::LocalService;

pub(super) async fn show(State(api): State<Api>) -> Json<PolicyShown> {
    let policy = api.state.registry.policy();
    let own = &api.state.about.group;
    let row = |local: &LocalService| {
        let access = &local.targets.first()?.access;
        Some(PolicyRow {
            service: local.record.service.clone(),
            instance: local.record.instance.clone(),
            to: to_words(&access.visibility),
            allow: access.allow.clone(),
            admits: admits(access, own),
        })
    };
    Json(PolicyShown {
        default: policy.base.word().to_owned(),
        audit: policy.audit,
        services: api.state.registry.targets().all().iter().filter_map(row).collect(),
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct TestQuery {
    who: String,
    service: ServiceName,
}

pub(super) async fn test(
    State(api): State<Api>,
    query: Result<Query<TestQuery>, QueryRejection>,
) -> Result<Json<PolicyTested>, Refusal> {
    let TestQuery { who, service } = ask(query)?;
    let who = find(&api, &who)?;
    let all = api.state.registry.targets().all();
    let own = &api.state.about.group;
    let is_out = who.node.is_some_and(|node| api.state.authority.known().evicted.contains(&node));
    let verdict = |local: &LocalService| {
        let verdict = local.targets.first()?.access.judge(own, &who.subject());
        let (word, ground) = match is_out {
            true => ("denied", "it was evicted from the mesh".to_owned()),
            false => (verdict.word(), verdict.ground()),
        };
        Some(VerdictRow {
            service: local.record.service.clone(),
            instance: local.record.instance.clone(),
            verdict: word.to_owned(),
            ground,
        })
    };
    let here = all.iter().filter(|local| local.record.service == service);
    let verdicts: Vec<_> = here.filter_map(verdict).collect();
    if verdicts.is_empty() {
        let mut known: Vec<_> = all.iter().map(|local| local.record.service.to_string()).collect();
        known.dedup();
        let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
        return Err(Refusal::not_found(format!(
            "{service} is not registered on this node, which has: {known}; ask the node that exports it"
        )));
    }
    Ok(Json(PolicyTested {
        admitted: verdicts.iter().any(|row| row.verdict != "denied"),
        who: who.words,
        group: who.group,
        verdicts,
    }))
}

/// Somebody who could call.
struct Who {
    words: String,
    node: Option<NodeId>,
    group: GroupName,
    name: Option<NodeName>,
    labels: BTreeMap<Label, Label>,
}

impl Who {
    fn subject(&self) -> Subject<'_> {
        Subject { group: &self.group, node: self.node, name: self.name.as_ref(), labels: Some(&self.labels) }
    }
}

/// Finds whom a text means: a node by name or id, or `group:NAME` for a node of which nothing else is known.
fn find(api: &Api, text: &str) -> Result<Who, Refusal> {
    if let Some(group) = text.strip_prefix("group:") {
        let group: GroupName = group.parse().map_err(Refusal::malformed)?;
        let words = format!("a node of group {group}");
        return Ok(Who { words, node: None, group, name: None, labels: BTreeMap::new() });
    }
    let index = &api.state.index;
    let found = match (text.parse::<NodeId>(), text.parse::<NodeName>()) {
        (Ok(id), _) => index.node(id).into_iter().collect(),
        (_, Ok(name)) => index.nodes_named(&name),
        (_, Err(error)) => {
            return Err(Refusal::malformed(format!("{error}; write a node's name or id, or group:NAME")));
        }
    };
    let mut views = found.iter().filter_map(|summary| summary.view.as_ref());
    match (views.next(), views.next()) {
        (Some(view), None) => Ok(Who {
            words: format!("node {} of group {}", view.name, view.group),
            node: Some(view.node),
            group: view.group.clone(),
            name: Some(view.name.clone()),
            labels: view.claims.labels.clone(),
        }),
        (Some(_), Some(_)) => {
            let ids: Vec<_> = found.iter().map(|summary| summary.node.to_string()).collect();
            Err(Refusal::conflict(format!(
                "several nodes are called {text}; write an id: {}",
                ids.join(", ")
            )))
        }
        (None, _) => Err(Refusal::not_found(format!(
            "no node {text} is known; gossamer nodes lists them, and group:NAME stands for any node of a group"
        ))),
    }
}

pub(super) async fn reload(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Reloaded>, Refusal> {
    tracing::info!(user = caller.uid, "reading the configuration again on request");
    // All faults, each on a line.
    let reloaded = api.state.reloader.reload().await.map_err(Refusal::conflict)?;
    let rows = |all: Vec<(&'static str, String)>| {
        let row = |(key, value): (&'static str, String)| ReloadedKey { key: key.to_owned(), value };
        all.into_iter().map(row).collect()
    };
    Ok(Json(Reloaded { applied: rows(reloaded.applied), restart: rows(reloaded.restart) }))
}

fn to_words(visibility: &Visibility) -> Vec<String> {
    match visibility {
        Visibility::Own => Vec::new(),
        Visibility::All => vec!["all".to_owned()],
        Visibility::Groups(groups) => groups.iter().map(ToString::to_string).collect(),
        Visibility::Rules { rules, .. } => rules.iter().map(ToString::to_string).collect(),
    }
}

/// Says in words who may call a service.
pub(super) fn admits(access: &Access, own: &GroupName) -> String {
    let mut groups: Vec<&str> = Vec::new();
    if access.policy.base == Base::Group {
        groups.push(own.as_str());
    }
    if let Visibility::Groups(named) = &access.visibility {
        groups.extend(
            named.iter().map(GroupName::as_str).filter(|name| !groups.contains(name)).collect::<Vec<_>>(),
        );
    }
    let groups = match groups[..] {
        [] => None,
        [group] => Some(format!("group {group}")),
        ref several => Some(format!("groups {}", several.join(", "))),
    };
    let rules = access.allow.iter().map(ToString::to_string);
    let named: Vec<_> = groups.into_iter().chain(rules).collect();
    let words = match (&access.visibility, named.is_empty()) {
        (Visibility::All, _) => "all groups".to_owned(),
        (_, true) => "nobody, since policy.default is deny: name callers by --to or --allow".to_owned(),
        (_, false) => named.join(", "),
    };
    if access.policy.audit { format!("{words}; by policy.audit everybody else too") } else { words }
}

#[cfg(test)]
mod tests {
    use gossamer_core::access::Policy;

    use super::*;

    #[test]
    fn who_may_call_is_said_in_words() {
        let east: GroupName = "east".parse().expect("name");
        let west = || Visibility::Groups(vec!["west".parse().expect("name")]);
        let words = |visibility, allow: &[&str], policy| {
            let allow = allow.iter().map(|text| text.parse().expect(text)).collect();
            admits(&Access { visibility, allow, policy }, &east)
        };
        let deny = Policy { base: Base::Deny, audit: false };
        assert_eq!(words(Visibility::Own, &[], Policy::default()), "group east");
        assert_eq!(words(west(), &[], Policy::default()), "groups east, west");
        assert_eq!(words(Visibility::All, &[], Policy::default()), "all groups");
        assert_eq!(words(west(), &["node:web-*"], deny), "group west, node:web-*");
        assert!(words(Visibility::Own, &[], deny).starts_with("nobody, since policy.default is deny"));
        let audit = Policy { audit: true, ..deny };
        assert_eq!(words(west(), &[], audit), "group west; by policy.audit everybody else too");
    }
}
