//! Rows: what the daemon knows, as the listings show it.
//!
//! Owns: the words for states, what counts as a finding. Must not know: HTTP, tables.
//! Driven by: `handlers`. All functions are pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use gossamer_core::catalog::{InstanceView, Nearness, ServiceView, Waiting};
use gossamer_core::membership::MemberState;
use gossamer_core::vip::{Pool, PortState, VipName};
use gossamer_dns::{UpstreamState, UpstreamStatus, Zones};
use gossamer_wire::{Address, DecodeError, Fqdn, GroupName, NodeId, ServiceName, Transport};
use time::OffsetDateTime;

use super::messages::{
    Finding, FqdnRow, InstanceRow, NodeRow, PortRow, ServiceRow, UpstreamRow, VipRow, WaitingRow,
};
use crate::app::About;
use crate::authority::Known;
use crate::catalog::Holdings;
use crate::events::{Named, What};
use crate::identity::Credentials;
use crate::identity::credentials::names;
use crate::identity::issuer::TokenInfo;
use crate::index::{NodeSummary, instance_word, node_word};
use crate::register::LocalService;
use crate::relay::VipPort;

/// Makes the row of a node: names and state from the index, what passes with time from the catalog.
pub(super) fn node_row(
    summary: &NodeSummary,
    this: NodeId,
    (holdings, known): (&Holdings, &Known),
    name_of: impl Fn(NodeId) -> String,
) -> NodeRow {
    let present = holdings.nodes.get(&summary.node);
    let view = present.or(summary.view.as_ref());
    let is_this = summary.node == this;
    let why = summary.why.as_ref();
    let held = holdings.waiting.iter().find(|of| of.node == summary.node).map_or(0, |of| of.held);
    NodeRow {
        name: view.map(|view| view.name.clone()),
        id: summary.node.to_string(),
        group: view.map(|view| view.group.clone()),
        state: match (is_this, known.evicted.contains(&summary.node)) {
            (_, true) => "evicted",
            (true, _) => "alive",
            (false, _) => node_word(summary.state),
        }
        .to_owned(),
        zone: view.and_then(|view| view.zone.clone()),
        region: view.and_then(|view| view.region.clone()),
        addresses: view.map(|view| Address::join(&view.addresses, &view.lanes)).unwrap_or_default(),
        relays: view.map(|view| view.relays.iter().copied().map(name_of).collect()).unwrap_or_default(),
        since: why.map(|why| why.since),
        reason: why.map(|why| why.cause.to_owned()),
        by: why.map(|why| why.by.clone()),
        head_age_seconds: view.map(|view| view.age.as_secs()),
        lease_seconds: view.filter(|_| !is_this).map(|view| view.lease_left.as_secs()),
        records: view.map_or(0, |view| view.records),
        held,
        quarantined: view.map_or(0, |view| view.quarantined),
        outside_claims: view.map_or(0, |view| view.outside_claims),
        outside_suffixes: view.map_or(0, |view| view.outside_suffixes),
        certificate_ends: view.map(|view| view.not_after),
        claims: view.map(|view| view.claims.clone()),
        has_statements: is_this || view.and_then(|view| view.statement_digest) == Some(known.digest),
        this: is_this,
        path: None,
    }
}

/// Counts the nodes by state; this one is alive.
pub(super) fn members(nodes: &[Arc<NodeSummary>], this: NodeId) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<_, _> =
        ["alive", "suspect", "down", "left", "unknown"].map(|word| (word.to_owned(), 0)).into();
    *counts.entry("alive".to_owned()).or_default() += 1;
    for node in nodes.iter().filter(|node| node.node != this) {
        *counts.entry(node_word(node.state).to_owned()).or_default() += 1;
    }
    counts
}

/// Makes the row of a node of which something is not served.
pub(super) fn waiting_row(of: &Waiting, name_of: impl Fn(NodeId) -> String) -> WaitingRow {
    let fragment = |(k, why): &(u16, DecodeError)| format!("fragment {k}: {why}");
    WaitingRow {
        node: name_of(of.node),
        held: of.held,
        held_because: (of.held > 0).then(|| held_because(of).to_owned()),
        quarantined: of.quarantined.iter().map(fragment).collect(),
        outside_claims: of.outside_claims,
        outside_suffixes: of.outside_suffixes,
    }
}

const fn held_because(of: &Waiting) -> &'static str {
    if of.has_card {
        "no issuer known here vouches for its certificate, or its time has not come"
    } else {
        "its card has not come"
    }
}

/// Lists what is wrong with the adverts of a node. What is held for lack of a card comes and goes by itself.
pub(super) fn waiting_findings(of: &Waiting, name_of: impl Fn(NodeId) -> String) -> Vec<Finding> {
    let name = name_of(of.node);
    let mut findings = Vec::new();
    if let Some((k, why)) = of.quarantined.first() {
        findings.push(Finding {
            text: format!(
                "{} fragments of node {name} do not decode here and are not served; fragment {k}: {why}",
                of.quarantined.len()
            ),
            fix: format!("run the same version of gossamer here and on {name}"),
        });
    }
    if of.outside_claims > 0 {
        findings.push(Finding {
            text: format!(
                "{} records of node {name} lie outside its certificate and are not served",
                of.outside_claims
            ),
            fix: format!("withdraw them there, or let {name} join with a token whose --allow-service fits"),
        });
    }
    if of.outside_suffixes > 0 {
        findings.push(Finding {
            text: format!(
                "{} FQDNs of node {name} lie outside its certificate and are not answered",
                of.outside_suffixes
            ),
            fix: format!(
                "expose without them there, or let {name} join with a token whose --allow-fqdn fits"
            ),
        });
    }
    if of.held > 0 && of.has_card {
        findings.push(Finding {
            text: format!("{} adverts of node {name} wait: {}", of.held, held_because(of)),
            fix: format!("compare the clocks here and on {name}; else wait until the issuer is known here"),
        });
    }
    findings
}

/// Counts the members that live, this node included.
pub(super) fn members_alive(nodes: &[Arc<NodeSummary>], this: NodeId) -> usize {
    let lives = |node: &&Arc<NodeSummary>| {
        node.node != this && matches!(node.state, Some(MemberState::Alive | MemberState::Suspect))
    };
    1 + nodes.iter().filter(lives).count()
}

/// Which custom names are answered here.
pub(super) struct Answered<'a> {
    pub(super) zones: &'a Zones,
    /// Names that several services claim with the same right.
    pub(super) disputed: Vec<(Fqdn, Vec<ServiceName>)>,
}

impl Answered<'_> {
    fn row(&self, fqdn: &Fqdn, counts: bool) -> FqdnRow {
        let is_disputed = self.disputed.iter().any(|(disputed, _)| disputed == fqdn);
        FqdnRow { fqdn: fqdn.clone(), answered: counts && !is_disputed && self.zones.admits(fqdn) }
    }
}

pub(super) fn service_row(view: &ServiceView, with_hidden: bool, answered: &Answered<'_>) -> ServiceRow {
    let hidden = view.hidden.iter().filter(|_| with_hidden);
    ServiceRow {
        service: view.service.clone(),
        instances: view.instances.iter().chain(hidden).map(|found| instance_row(found, answered)).collect(),
    }
}

fn instance_row(view: &InstanceView, answered: &Answered<'_>) -> InstanceRow {
    let port = |port: &gossamer_wire::Port| PortRow {
        name: port.name.clone(),
        number: port.number,
        transport: port.transport.into(),
    };
    InstanceRow {
        instance: view.instance.clone(),
        node: view.node_name.clone(),
        group: view.group.clone(),
        state: instance_word(view.state).to_owned(),
        ports: view.ports.iter().map(port).collect(),
        nearness: match view.nearness {
            Nearness::SameNode => "node",
            Nearness::Group => "group",
            Nearness::Zone => "zone",
            Nearness::Region => "region",
            Nearness::Any => "any",
        }
        .to_owned(),
        routing: view.routing.clone(),
        visible: view.visible,
        imported: view.imported,
        fqdns: view.fqdns.iter().map(|fqdn| answered.row(fqdn, view.visible && view.imported)).collect(),
        address: view.addresses.first().copied(),
    }
}

pub(super) fn vip_row(port: VipPort) -> VipRow {
    let program = match &port.state {
        PortState::Stolen { program } => program.clone(),
        PortState::Bound | PortState::Native | PortState::Waiting | PortState::Denied { .. } => None,
    };
    VipRow {
        name: port.name.to_string(),
        address: *port.address.ip(),
        port: port.address.port(),
        transport: port.transport.into(),
        state: port.state.to_string(),
        program,
    }
}

/// Why a name has no answer although the service exists.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// Its exporters do not admit this node's group.
    Hidden,
    /// It is in other groups only, which are not imported.
    NotImported(Vec<GroupName>),
    /// There is nothing of that name.
    Unknown,
}

/// Judges a service name, within one group when that is named.
pub(super) fn absence(view: Option<&ServiceView>, group: Option<&GroupName>) -> Absence {
    let Some(view) = view else { return Absence::Unknown };
    let counts = |instance: &&InstanceView| group.is_none_or(|group| *group == instance.group);
    let mut groups: Vec<_> = view.instances.iter().filter(counts).map(|view| view.group.clone()).collect();
    groups.sort();
    groups.dedup();
    if group.is_none() && !groups.is_empty() {
        return Absence::NotImported(groups);
    }
    if view.hidden.iter().any(|instance| counts(&instance)) { Absence::Hidden } else { Absence::Unknown }
}

/// Reads service and group out of a name below the zone, whatever form it has (design section 7).
pub(super) fn named(relative: &str) -> Option<(ServiceName, Option<GroupName>)> {
    let labels: Vec<&str> = relative
        .split('.')
        .skip_while(|label| label.starts_with('_'))
        .filter(|label| *label != "direct" && !label.is_empty())
        .collect();
    match labels[..] {
        [service] => Some((service.parse().ok()?, None)),
        [service, group] | [_, service, group] => Some((service.parse().ok()?, Some(group.parse().ok()?))),
        _ => None,
    }
}

/// Lists what is wrong, worst first, each with what mends it.
pub(super) fn findings(
    about: &About,
    nodes: &[Arc<NodeSummary>],
    own: &[LocalService],
    vips: &[VipPort],
    losers: &BTreeMap<VipName, VipName>,
) -> Vec<Finding> {
    let mut findings: Vec<_> = losers.iter().map(loser_finding).collect();
    for port in vips {
        findings.extend(port_finding(port));
    }
    if let Some(reason) = &about.dns_fallback_reason {
        findings.push(Finding {
            text: format!("DNS is answered at {} because port 53 cannot be had: {reason}", about.dns),
            fix: format!(
                "point the resolver at port {}, or allow port 53: setcap cap_net_bind_service+ep $(command -v gossamer)",
                about.dns.port()
            ),
        });
    }
    for service in own {
        for target in service.targets.iter().filter(|target| !target.healthy) {
            findings.push(Finding {
                text: format!("{} for {}", target.silence(), service.record.service),
                fix: format!("start the program, or run gossamer withdraw {}", service.record.service),
            });
        }
    }
    findings
        .extend(nodes.iter().filter(|node| node.node != about.node).filter_map(|node| node_finding(node)));
    findings
}

/// Warns of an own address that came after the start and lies among the virtual ones.
pub(super) fn overlap_finding((interface, address): &(String, Ipv4Addr), pool: &Pool) -> Finding {
    Finding {
        text: format!("{interface} has {address}, which lies among the virtual addresses of {pool}"),
        fix: "set vip.pool to a network that nothing here uses, and restart the daemon".to_owned(),
    }
}

/// Makes the row of an upstream server.
pub(super) fn upstream_row(upstream: &UpstreamStatus) -> UpstreamRow {
    let UpstreamStatus { address, state, answered, failed } = *upstream;
    UpstreamRow { address, state: state.word().to_owned(), answered, failed }
}

/// Names the upstream servers that loop or fail.
pub(super) fn upstream_findings(upstreams: &[UpstreamStatus]) -> Vec<Finding> {
    let finding = |upstream: &UpstreamStatus| {
        let address = upstream.address;
        match upstream.state {
            UpstreamState::Up => None,
            UpstreamState::Looping => Some(Finding {
                text: format!(
                    "upstream {address} asks this daemon what this daemon asks it, so names of others are not asked there"
                ),
                fix: format!(
                    "let {address} send only the mesh zone here, or name the server behind it in dns.upstream; \
                     it is used again within 10 s"
                ),
            }),
            UpstreamState::Failing => Some(Finding {
                text: format!("upstream {address} does not answer"),
                fix: format!(
                    "check it with dig @{} -p {} example.com, or name another in dns.upstream",
                    address.ip(),
                    address.port()
                ),
            }),
        }
    };
    upstreams.iter().filter_map(finding).collect()
}

/// Lists certificates that end: of this node, when it was not renewed, and of issuers. `now` is seconds since the Unix
/// epoch.
pub(super) fn trust_findings(live: &Credentials, now: u64) -> Vec<Finding> {
    let ends = live.leaf.not_after;
    let issuers = names(&live.issuers);
    let validity = gossamer_core::trust::validity_of(&live.leaf_der).unwrap_or((0, ends));
    let mut findings: Vec<_> = certificate_finding(validity, &issuers, now).into_iter().collect();
    for issuer in live.issuers.iter() {
        let (start, end) = issuer.validity;
        if end.saturating_sub(now) < end.saturating_sub(start) * 2 / 5 {
            findings.push(Finding {
                text: format!(
                    "the certificate of issuer {} ends on {}, and with it those it makes",
                    issuer.name,
                    date_words(end)
                ),
                fix: format!(
                    "start the daemon where the root key is, or put it back, and run: gossamer issuer add {}",
                    issuer.name
                ),
            });
        }
    }
    findings
}

/// Warns of a mesh that hangs on one issuer; last, for nothing is wrong yet.
pub(super) fn only_issuer_finding(live: &Credentials, nodes: usize) -> Option<Finding> {
    // A mesh of one node has nobody to add.
    let ([only], true) = (&names(&live.issuers)[..], nodes > 1) else { return None };
    let place = if live.holds_root_key { "" } else { ", where the root key is" };
    Some(Finding {
        text: format!(
            "if {only} is lost nobody can join and certificates end, this node's on {}",
            date_words(live.leaf.not_after)
        ),
        fix: format!("make another node an issuer too{place}: gossamer issuer add NODE"),
    })
}

/// Warns of tokens that machines still to come depend on: long ones of several uses. `now` is seconds since the Unix
/// epoch.
pub(super) fn token_findings(tokens: &[TokenInfo], now: u64) -> Vec<Finding> {
    let depended_on = |token: &&TokenInfo| {
        token.uses != 1 && !token.revoked && token.lifetime > FIRST_WARNING && token.not_after >= now
    };
    let ending = tokens.iter().filter(depended_on).filter(|token| token.not_after - now <= FIRST_WARNING);
    let finding = |token: &TokenInfo| {
        let days = (token.not_after - now) / DAY;
        let urgent = if token.not_after - now <= LAST_WARNING { ", replace it now" } else { "" };
        Finding {
            text: format!(
                "token {} for group {} ends in {days} days; machines that start later cannot join with it{urgent}",
                token.id, token.group
            ),
            fix: format!("gossamer token renew {}, and give the new one to what starts machines", token.id),
        }
    };
    ending.map(finding).collect()
}

const DAY: u64 = 86_400;
/// Time from which a long token is warned of, seconds.
const FIRST_WARNING: u64 = 14 * DAY;
/// Time from which the warning is urgent, seconds.
const LAST_WARNING: u64 = 3 * DAY;

/// Warns of a certificate of which nine tenths are over: it was not renewed for long. `now` is seconds since the Unix
/// epoch.
fn certificate_finding((start, ends): (u64, u64), issuers: &[String], now: u64) -> Option<Finding> {
    if now < ends.saturating_sub(ends.saturating_sub(start) / 10) {
        return None;
    }
    let verb = if ends <= now { "ended" } else { "ends" };
    let issuers = if issuers.is_empty() { "an issuer".to_owned() } else { issuers.join(" or ") };
    Some(Finding {
        text: format!(
            "this node's certificate {verb} on {} and could not be renewed; without one it is shut out",
            date_words(ends)
        ),
        fix: format!("let {issuers} run and be reached from here; gossamer events -q shows the last error"),
    })
}

fn date_words(at: u64) -> String {
    let date = i64::try_from(at).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    date.map_or_else(|| at.to_string(), |at| at.date().to_string())
}

/// Puts a finding about a node into words; `name_of` turns ids into names.
pub(super) fn named_finding(named: &Named, this: NodeId, name_of: impl Fn(NodeId) -> String) -> Finding {
    let who = name_of(named.who);
    let since = time_words(named.since);
    let (text, fix) = match &named.what {
        What::FalseClaims { refuted } => (
            format!(
                "node {who} says of living members that they are down; {refuted} claims refuted since {since}"
            ),
            format!(
                "look at the network and the clock of {who}, or evict it; its claims count only with a second one"
            ),
        ),
        What::RunsTwice { at } => {
            let at = at.map(|at| format!(", at {at}")).unwrap_or_default();
            let who = if named.who == this {
                "this identity".to_owned()
            } else {
                format!("the identity of node {who}")
            };
            (
                format!("{who} runs twice{at}, since {since}"),
                "stop one of the two; a copied machine needs a state directory and a join of its own"
                    .to_owned(),
            )
        }
        What::SameName { other } => (
            format!("node {who} and node {other} have the same name and group, since {since}"),
            format!("let one of them join again with another --node; {who}.node names both"),
        ),
        What::LeadsAstray { node, times } => {
            let node = name_of(*node);
            (
                format!(
                    "relay {who} says that it leads to node {node}, and leads to somebody else or nowhere, {times} times in a row; since {since}"
                ),
                format!(
                    "look what runs on {who} and {node}; other relays are tried first; gossamer node evict {} puts the relay out",
                    named.who
                ),
            )
        }
        What::DeniedAddresses { first: (address, why), count } => (
            format!(
                "node {who} advertises {count} addresses that are never dialled, such as {address}: {why}; since {since}"
            ),
            format!("correct `advertise` on {who}; its other addresses count"),
        ),
        What::Searches { name } => (
            format!("node {name} asks over and over for what it may not call or is not here, since {since}"),
            format!(
                "look what runs on {name}, or put it out: gossamer node evict {}; its connections are closed meanwhile",
                named.who
            ),
        ),
    };
    Finding { text, fix }
}

fn time_words(at: u64) -> String {
    let time = i64::try_from(at).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    let time = time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
    time.unwrap_or_else(|| at.to_string())
}

/// Names the custom names inside this node's suffixes that several services claim with the same right.
pub(super) fn disputed_findings(disputed: &[(Fqdn, Vec<ServiceName>)], zones: &Zones) -> Vec<Finding> {
    let here = disputed.iter().filter(|(fqdn, _)| zones.admits(fqdn));
    let finding = |(fqdn, services): &(Fqdn, Vec<ServiceName>)| {
        let names: Vec<_> = services.iter().map(ServiceName::as_str).collect();
        Finding {
            text: format!("{fqdn} is not answered: {} claim it with the same right", names.join(" and ")),
            fix: format!(
                "expose all but one of them without --fqdn {fqdn}, or set an alias for the name here"
            ),
        }
    };
    here.map(finding).collect()
}

fn loser_finding((loser, winner): (&VipName, &VipName)) -> Finding {
    Finding {
        text: format!("{loser} is not answered: it has the same virtual address as {winner}"),
        fix: format!("its exporters move it by themselves; if it stays, offer {} again", loser.service()),
    }
}

fn port_finding(port: &VipPort) -> Option<Finding> {
    let VipPort { name, address, transport, state } = port;
    let number = address.port();
    let forward = match transport {
        Transport::Tcp => format!("gossamer forward 127.0.0.1:{} {name}:{number}", forward_port(number)),
        Transport::Udp => "use an instance's own address, NAME.direct".to_owned(),
    };
    match state {
        PortState::Bound | PortState::Native | PortState::Waiting => None,
        PortState::Denied { why } => {
            Some(Finding { text: format!("port {number} of {name} is denied: {why}"), fix: forward })
        }
        PortState::Stolen { program } => Some(Finding {
            text: format!(
                "{} listens on *:{number} and would receive connections to {name}, so the name is not answered",
                program.as_deref().unwrap_or("another program")
            ),
            fix: format!(
                "let that program listen on 127.0.0.1, {}{forward}",
                match transport {
                    Transport::Tcp => "set vip.mode = \"dnat\", or use ",
                    Transport::Udp => "or ",
                }
            ),
        }),
    }
}

/// A port an ordinary user may listen on, near the one that was meant.
const fn forward_port(number: u16) -> u16 {
    if number < 10_000 { number + 10_000 } else { number - 1_000 }
}

fn node_finding(node: &NodeSummary) -> Option<Finding> {
    let view = node.view.as_ref();
    let name = view.map_or_else(|| node.node.to_string(), |view| view.name.to_string());
    match node.state {
        Some(MemberState::Down) => Some(Finding {
            text: format!("node {name} is down"),
            fix: format!("start it there with gossamer run, or open UDP to {}", address_words(node)),
        }),
        Some(MemberState::Suspect) => Some(Finding {
            text: format!("node {name} is suspect: it does not answer probes"),
            fix: "wait a few seconds, then run gossamer events".to_owned(),
        }),
        Some(MemberState::Alive | MemberState::Left) | None => None,
    }
}

fn address_words(node: &NodeSummary) -> String {
    let first = node.view.as_ref().and_then(|view| view.addresses.first());
    first.map_or_else(|| "its mesh port".to_owned(), ToString::to_string)
}

#[cfg(test)]
pub(crate) mod tests;
