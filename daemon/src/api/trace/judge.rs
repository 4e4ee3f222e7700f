//! What follows from what was gathered about a name: its legs, and where the way ends.
//!
//! Owns: the words, which cause is named when several parts fail, and what mends it. Must not know: how anything is
//! asked. Driven by: `trace`. All functions are pure.
//!
//! A connection passes the legs in this order, so the first broken one is the cause and what follows from it is not said
//! again.

mod instances;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use gossamer_core::catalog::ServiceView;
use gossamer_core::vip::{Mode, PortState, VipName};
use gossamer_wire::{GroupName, Label, Transport};

use super::super::messages::{BrokenKind, BrokenLeg, Leg, LegState, Traced};
use super::super::views::Absence;
use crate::app::About;
use crate::register::LocalService;
use crate::relay::{CandidateView, PortChoice, Probed, VipPort};
use instances::{candidate_row, candidates, dialled, policy};

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Named {
    /// A service, a group of it, or an instance.
    Vip(VipName),
    /// A name of ours without a virtual address: of a node, or below `direct`.
    WithoutVip,
    /// None of ours.
    Strange,
}

impl Named {
    pub(super) const fn name(&self) -> Option<&VipName> {
        match self {
            Self::Vip(name) => Some(name),
            Self::WithoutVip | Self::Strange => None,
        }
    }

    pub(super) const fn group(&self) -> Option<&GroupName> {
        match self.name() {
            Some(VipName::Group(_, group) | VipName::Instance(_, group, _)) => Some(group),
            Some(VipName::Service(_)) | None => None,
        }
    }

    /// Returns the name to ask DNS for: as it was written where it is none of the mesh zone.
    pub(super) fn full(&self, zone: &str, asked: &str) -> String {
        let is_whole = asked.trim_end_matches('.').contains('.') && asked.parse::<Ipv4Addr>().is_err();
        match self.name() {
            Some(name) if !is_whole || asked.trim_end_matches('.') == name.to_string() => {
                format!("{name}.{zone}")
            }
            _ => asked.to_owned(),
        }
    }
}

/// What DNS says here.
#[derive(Debug)]
pub(super) struct Dns {
    pub(super) outcome: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) reason: Option<String>,
    pub(super) took: Duration,
}

/// What was gathered.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) about: &'a About,
    pub(super) full: &'a str,
    pub(super) named: &'a Named,
    /// The known service whose name is most like the one that was asked for.
    pub(super) nearest: Option<&'a str>,
    pub(super) view: Option<&'a ServiceView>,
    /// Why nothing is behind the name, when that is so.
    pub(super) absence: Absence,
    /// The port, or those there are.
    pub(super) port: Result<(PortChoice, (u16, Transport)), Vec<String>>,
    /// An interface with an address among the virtual ones.
    pub(super) overlap: Option<(String, Ipv4Addr)>,
    /// All ports of virtual addresses.
    pub(super) vips: &'a [VipPort],
    /// The name that has this one's virtual address.
    pub(super) winner: Option<&'a VipName>,
    pub(super) dns: Dns,
    pub(super) candidates: &'a [CandidateView],
    /// What is certified of this node.
    pub(super) labels: Option<&'a BTreeMap<Label, Label>>,
    /// What runs on this node.
    pub(super) own: &'a [LocalService],
    /// What the instances answered; `None` when none was asked.
    pub(super) probed: Option<&'a [Probed]>,
    pub(super) is_dialled: bool,
    /// Streams of peers here that were no open requests.
    pub(super) malformed: u64,
}

/// A leg that is broken, with what mends it.
type Fault = (BrokenKind, String, String);

/// Legs so far, and the first fault.
#[derive(Default)]
struct Way {
    legs: Vec<Leg>,
    broken: Option<BrokenLeg>,
}

impl Way {
    fn add(&mut self, leg: &str, state: LegState, detail: impl Into<String>, took: Option<Duration>) {
        let took_us = took.map(|took| took.as_micros() as u64);
        self.legs.push(Leg { leg: leg.to_owned(), state, detail: detail.into(), took_us });
    }

    fn ok(&mut self, leg: &str, detail: impl Into<String>) {
        self.add(leg, LegState::Ok, detail, None);
    }

    fn note(&mut self, leg: &str, detail: impl Into<String>) {
        self.add(leg, LegState::Note, detail, None);
    }

    fn fail(&mut self, leg: &str, (kind, detail, fix): Fault) {
        self.add(leg, LegState::Broken, detail.clone(), None);
        let broken = BrokenLeg { leg: leg.to_owned(), detail, fix, kind };
        self.broken.get_or_insert(broken);
    }

    /// Adds a leg that is well or not. Returns whether the way goes on.
    fn judge(&mut self, leg: &str, judged: Result<String, Fault>) -> bool {
        let goes_on = judged.is_ok();
        match judged {
            Ok(detail) => self.ok(leg, detail),
            Err(fault) => self.fail(leg, fault),
        }
        goes_on
    }
}

/// Explains a name.
pub(super) fn traced(facts: &Facts<'_>) -> Traced {
    let mut way = Way::default();
    walk(facts, &mut way);
    let mut candidates: Vec<_> = facts.candidates.iter().map(|found| candidate_row(found, facts)).collect();
    candidates.sort_by_key(|row| (row.turn.is_none(), row.turn));
    Traced {
        name: facts.full.to_owned(),
        addresses: facts.dns.addresses.clone(),
        legs: way.legs,
        candidates,
        flow: facts.probed.and_then(|all| all.last()).map(|probed| probed.flow.to_string()),
        broken: way.broken,
    }
}

fn walk(facts: &Facts<'_>, way: &mut Way) {
    if !way.judge("name", name(facts)) {
        return;
    }
    let Some(name) = facts.named.name() else { return };
    if !way.judge("visibility", visibility(facts, name)) {
        return;
    }
    if !way.judge("port", port(facts)) {
        return;
    }
    way.judge("vip", vip(facts, name));
    dns(facts, way);
    if !candidates(facts, name, way) {
        return;
    }
    match facts.probed.and_then(|all| Some((all, all.last()?))) {
        Some((all, last)) => dialled(facts, name, (all, last), way),
        None if facts.is_dialled => {
            let what = "the instances changed while they were looked at".to_owned();
            way.fail("candidates", (BrokenKind::Failed, what, "ask again".to_owned()));
        }
        None => {
            policy(facts, name, None, way);
            for leg in ["path", "tls", "backend"] {
                way.add(leg, LegState::Skipped, "not dialled", None);
            }
        }
    }
    if facts.malformed > 0 && facts.own.iter().any(|local| local.record.service == *name.service()) {
        let text = format!(
            "{} streams of peers here were no open requests; their access lines name the peers",
            facts.malformed
        );
        way.note("backend", text);
    }
}

fn name(facts: &Facts<'_>) -> Result<String, Fault> {
    match facts.named {
        Named::Vip(VipName::Service(service)) => {
            Ok(format!("{} is service {service}, of the own group and imports", facts.full))
        }
        Named::Vip(VipName::Group(service, group)) => {
            Ok(format!("{} is service {service} of group {group}", facts.full))
        }
        Named::Vip(VipName::Instance(service, group, instance)) => {
            Ok(format!("{} is instance {instance} of service {service} of group {group}", facts.full))
        }
        Named::WithoutVip => Err((
            BrokenKind::NotFound,
            format!(
                "{} has no virtual address: it names a node, an instance's own address or nothing",
                facts.full
            ),
            "name a service: gossamer services lists them; gossamer resolve shows what DNS answers"
                .to_owned(),
        )),
        Named::Strange => Err((
            BrokenKind::NotFound,
            format!("{} is no name of this mesh", facts.full),
            "gossamer services lists the names; those of other zones need dns.fqdn_suffixes or [alias] here"
                .to_owned(),
        )),
    }
}

fn visibility(facts: &Facts<'_>, name: &VipName) -> Result<String, Fault> {
    let own = &facts.about.group;
    let service = name.service();
    let all: Vec<_> = facts.view.into_iter().flat_map(|view| crate::relay::behind(view, name)).collect();
    if let Some(first) = all.first() {
        let mut groups: Vec<_> = all.iter().map(|found| found.group.as_str()).collect();
        groups.sort_unstable();
        groups.dedup();
        let many = if all.len() == 1 {
            format!("instance {}", first.instance)
        } else {
            format!("{} instances", all.len())
        };
        return Ok(format!("{many} in group {} visible to group {own}", groups.join(", ")));
    }
    match &facts.absence {
        Absence::Hidden => {
            let hidden = facts.view.into_iter().flat_map(|view| &view.hidden);
            let mut nodes: Vec<_> = hidden.map(|found| found.node_name.to_string()).collect();
            nodes.dedup();
            let nodes = nodes.join(", ");
            Err((
                BrokenKind::Denied,
                format!("{service} exists on {nodes} and is hidden from group {own}"),
                format!("on {nodes}: gossamer expose {service} --to {own}, with its ports as before"),
            ))
        }
        Absence::NotImported(groups) => {
            let group = groups.first().map(ToString::to_string).unwrap_or_default();
            Err((
                BrokenKind::NotFound,
                format!("{service} is in group {group} and not imported here"),
                format!("ask for {service}.{group}, or set import = [\"{service}@{group}\"]"),
            ))
        }
        Absence::Unknown if facts.view.is_some() => Err((
            BrokenKind::NotFound,
            format!("{name} has no instance, though there is a service {service}"),
            format!("gossamer services {service} lists its instances and groups"),
        )),
        Absence::Unknown => {
            let likely = facts.nearest.map(|known| format!("did you mean {known}? ")).unwrap_or_default();
            Err((
                BrokenKind::NotFound,
                format!("no node exports {service}"),
                format!("{likely}gossamer services lists what there is"),
            ))
        }
    }
}

fn port(facts: &Facts<'_>) -> Result<String, Fault> {
    match &facts.port {
        Ok((_, (number, transport))) => Ok(format!("{number}/{}", transport_word(*transport))),
        Err(known) => Err((
            BrokenKind::NotFound,
            "it has no such port".to_owned(),
            format!("choose one of {}; UDP ports end in /udp", known.join(", ")),
        )),
    }
}

const fn transport_word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

fn vip(facts: &Facts<'_>, name: &VipName) -> Result<String, Fault> {
    let failed = |detail: String, fix: String| Err((BrokenKind::Failed, detail, fix));
    if facts.about.vip_mode == Mode::None {
        return Ok("vip.mode is none: clients get the instances' own addresses".to_owned());
    }
    let pool = facts.about.pool;
    if let Some((interface, address)) = &facts.overlap {
        return failed(
            format!(
                "{interface} of this machine has {address}, which lies among the virtual addresses of {pool}"
            ),
            "set vip.pool to a network that nothing here uses, and restart the daemon".to_owned(),
        );
    }
    if let Some(winner) = facts.winner {
        return failed(
            format!("{name} has the same virtual address as {winner} and is not answered"),
            format!(
                "its exporters move it by themselves within seconds; if it stays, offer {} again",
                name.service()
            ),
        );
    }
    let Ok((_, (number, transport))) = &facts.port else { return Ok(pool.to_string()) };
    let known = facts
        .vips
        .iter()
        .find(|port| port.name == *name && port.address.port() == *number && port.transport == *transport);
    let forward = format!("gossamer forward 127.0.0.1:PORT {name}:{number}");
    let Some(port) = known else {
        return match (&facts.dns.reason, facts.dns.addresses.first()) {
            (Some(reason), None) => {
                failed(reason.clone(), format!("gossamer status says more; meanwhile {forward}"))
            }
            (_, Some(address)) => Ok(format!("{address}, connections come here by {}", facts.about.vip_mode)),
            (None, None) => Ok(format!("of {pool}, not asked for yet")),
        };
    };
    let at = port.address;
    match &port.state {
        PortState::Bound => Ok(format!("{at}, this daemon listens")),
        PortState::Native => Ok(format!("{at}, the service's own program on this machine has the port")),
        PortState::Waiting => failed(
            format!(
                "{at} is left to a program of this machine that is registered for port {number} and does not listen"
            ),
            "start that program, or gossamer withdraw its service".to_owned(),
        ),
        PortState::Denied { why } => failed(format!("{at} cannot be listened on: {why}"), forward),
        PortState::Stolen { program } => {
            let program = program.as_deref().unwrap_or("another program");
            let dnat = if *transport == Transport::Tcp { ", set vip.mode = \"dnat\"" } else { "" };
            failed(
                format!(
                    "{program} listens on *:{number} here and would get the connections to {name}, so it is not answered"
                ),
                format!("let {program} listen on 127.0.0.1{dnat}, or use {forward}"),
            )
        }
    }
}

fn dns(facts: &Facts<'_>, way: &mut Way) {
    let Dns { outcome, addresses, reason, took } = &facts.dns;
    let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let at = facts.about.dns;
    if !addresses.is_empty() {
        return way.add("dns", LegState::Ok, format!("{at} answers {}", list.join(", ")), Some(*took));
    }
    let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let said = format!("{at} answers {outcome}{reason}");
    if way.broken.is_some() {
        return way.note("dns", said);
    }
    way.fail(
        "dns",
        (BrokenKind::Failed, said, "gossamer status says what is wrong with the name".to_owned()),
    );
}

#[cfg(test)]
mod tests;
