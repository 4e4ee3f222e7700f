//! What follows for the instances of a name: which may be tried and why, what the one that was tried answered.
//!
//! Owns: their words. Must not know: how a name comes to its instances. Driven by: `judge`. All functions are pure.

use gossamer_core::catalog::{InstanceState, Nearness};
use gossamer_core::select::{Excluded, Verdict};
use gossamer_core::vip::VipName;
use gossamer_wire::{Subject, Transport};
use time::OffsetDateTime;

use super::super::super::messages::{BrokenKind, CandidateRow, LegState};
use super::{Facts, Fault, Way};
use crate::index::instance_word;
use crate::relay::{CandidateView, Outcome, Path, Probed};

/// Judges the candidates as a whole. Returns whether any may be tried.
pub(super) fn candidates(facts: &Facts<'_>, name: &VipName, way: &mut Way) -> bool {
    let all = facts.candidates;
    let tried = all.iter().filter(|found| found.turn().is_some()).count();
    let ejected = all.iter().filter(|found| found.is_ejected()).count();
    let count = format!("{tried} of {} may be used", all.len());
    if tried == 0 {
        let (leg, fault) = nobody(facts, name);
        way.fail(leg, fault);
        return false;
    }
    if ejected < tried {
        way.ok("candidates", count);
        return true;
    }
    let detail =
        format!("{count}, and all of them are ejected: flows from here failed there several times in a row");
    if facts.is_dialled {
        way.note("candidates", detail);
    } else {
        let fix = format!(
            "gossamer trace {name} without --no-dial says why; within a minute they are tried first again"
        );
        way.fail("candidates", (BrokenKind::Failed, detail, fix));
    }
    true
}

/// Says why no instance may be used.
fn nobody(facts: &Facts<'_>, name: &VipName) -> (&'static str, Fault) {
    let all = facts.candidates;
    let service = name.service();
    // Whom a flow would not take anyway is not what is missing.
    let counts = |found: &&CandidateView| {
        !matches!(found.verdict, Verdict::Excluded(Excluded::TooFar { .. } | Excluded::LacksPort))
    };
    let which = |state| all.iter().filter(counts).find(|found| found.found.state == state);
    let of = |found: &CandidateView| format!("{} on {}", found.found.instance, found.found.node_name);
    if let Some(found) = which(InstanceState::Failing) {
        let node = &found.found.node_name;
        let silence = own_target(facts, name, found).map_or_else(
            || format!("{node} says that nobody listens on the target of {}", found.found.instance),
            |(_, silence)| silence,
        );
        let fix = format!("start the program on {node}, or there: gossamer withdraw {service}");
        return ("backend", (BrokenKind::Failed, format!("no instance may be used: {silence}"), fix));
    }
    if let Some(found) = which(InstanceState::NodeDown).or_else(|| which(InstanceState::LeaseOver)) {
        let node = &found.found.node_name;
        let at =
            found.found.addresses.first().map(|at| format!(", and open UDP to {at}")).unwrap_or_default();
        let word = instance_word(found.found.state);
        let fix = format!("start gossamer on {node}{at}; gossamer nodes says what is known of it");
        return (
            "candidates",
            (BrokenKind::Failed, format!("no instance: the node of {} is {word}", of(found)), fix),
        );
    }
    let excluded = all.iter().find_map(|found| match found.verdict {
        Verdict::Excluded(why @ (Excluded::TooFar { .. } | Excluded::Draining)) => Some((found, why)),
        _ => None,
    });
    if let Some((found, why)) = excluded {
        let fix = match why {
            Excluded::Draining => {
                format!(
                    "wait for another instance, or on {}: gossamer drain {service} --undo",
                    found.found.node_name
                )
            }
            _ => format!(
                "start an instance that is near enough, or change only in [route.\"{service}\"] here or expose --only there"
            ),
        };
        let detail = format!("no instance: {} is {why}", of(found));
        return ("candidates", (BrokenKind::Failed, detail, fix));
    }
    if which(InstanceState::Drained).is_some() {
        let fix = format!(
            "offer it with a weight: gossamer expose {service} --weight 100, with its ports as before"
        );
        return ("candidates", (BrokenKind::Failed, "no instance: all have weight 0".to_owned(), fix));
    }
    let fix = format!("gossamer services {service} shows the states");
    ("candidates", (BrokenKind::Failed, "no instance may be used now".to_owned(), fix))
}

/// Returns whether this node may call an instance of its own, and by which rule.
fn own_verdict(facts: &Facts<'_>, name: &VipName, found: &CandidateView) -> Option<String> {
    let about = facts.about;
    let local = facts.own.iter().find(|local| {
        found.found.node == about.node
            && local.record.service == *name.service()
            && local.record.instance == found.found.instance
    })?;
    let (node, called) = (Some(about.node), Some(&about.node_name));
    let caller = Subject { group: &about.group, node, name: called, labels: facts.labels };
    local.targets.first().map(|target| target.access.judge(&about.group, &caller).to_string())
}

/// Returns where the target of an instance of this node is, and that nobody listens there.
fn own_target(facts: &Facts<'_>, name: &VipName, found: &CandidateView) -> Option<(String, String)> {
    let local = facts.own.iter().find(|local| {
        found.found.node == facts.about.node
            && local.record.service == *name.service()
            && local.record.instance == found.found.instance
            && local.record.ports.iter().any(|port| Some(&port.name) == found.port.as_ref())
    })?;
    let at = local.record.ports.iter().position(|port| Some(&port.name) == found.port.as_ref())?;
    let target = local.targets.get(at)?;
    Some((target.addr.to_string(), target.silence()))
}

/// Says by which right the caller comes to the instance that answered, or would be tried first, as far as that is known
/// without asking.
pub(super) fn policy(facts: &Facts<'_>, name: &VipName, answered: Option<&Probed>, way: &mut Way) {
    let own = &facts.about.group;
    let found = match answered {
        Some(probed) => facts.candidates.iter().find(|found| {
            probed.instance == found.found.instance.as_str() && probed.node == found.found.node_name.as_str()
        }),
        None => facts.candidates.iter().min_by_key(|found| (found.turn().is_none(), found.turn())),
    };
    let Some(found) = found else { return };
    match own_verdict(facts, name, found) {
        Some(verdict) => way.ok("policy", format!("{name} of this node, called by itself: {verdict}")),
        None => way.ok("policy", format!("its record lets this node, of group {own}, call {name}")),
    }
}

/// Judges what the instances answered; the last one has the flow if any has.
pub(super) fn dialled(facts: &Facts<'_>, name: &VipName, (all, last): (&[Probed], &Probed), way: &mut Way) {
    for earlier in all.iter().take(all.len().saturating_sub(1)) {
        way.note("backend", format!("{} on {}: {}", earlier.instance, earlier.node, words(&earlier.outcome)));
    }
    let who = format!("{} on {}", last.instance, last.node);
    let is_here = last.node == facts.about.node_name.as_str() && last.reached.is_none();
    if let Outcome::Unreachable(why) = &last.outcome
        && last.reached.is_none()
    {
        let found = facts.candidates.iter().find(|found| found.found.node_name.as_str() == last.node);
        let at = found.and_then(|found| found.found.addresses.first());
        let at = at.map_or_else(|| "its mesh port".to_owned(), ToString::to_string);
        let fix = format!(
            "open UDP between here and {at}, one way is enough; gossamer nodes says what is known of {}",
            last.node
        );
        return way
            .fail("path", (BrokenKind::Failed, format!("{} cannot be reached: {why}", last.node), fix));
    }
    if last.outcome == Outcome::Denied {
        way.fail("policy", denied(facts, name, last, is_here));
    } else {
        policy(facts, name, Some(last), way);
    }
    if is_here {
        way.ok("path", "stays on this node");
        way.add("tls", LegState::Skipped, "none within a node", None);
    } else if let Some(reached) = &last.reached {
        let rtt = reached.rtt.as_secs_f64() * 1e3;
        let way_there = match reached.path {
            Path::Local => "here".to_owned(),
            Path::Quic(at) => format!("at {at}, direct over QUIC"),
            Path::Lane(at) => format!("at {at}, on a lane over TCP"),
            Path::Relay(relay) => format!("on a lane through the relay {relay}"),
        };
        let path = format!("{} {way_there}, round trip {rtt:.2} ms", last.node);
        way.add("path", LegState::Ok, path, Some(last.connect));
        let until = date(reached.not_after);
        way.ok("tls", format!("{} with key {}, until {until}", reached.identity, reached.node));
    }
    backend(facts, name, last, &who, way);
}

fn denied(facts: &Facts<'_>, name: &VipName, last: &Probed, is_here: bool) -> Fault {
    let own = &facts.about.group;
    let Probed { instance, node, flow, .. } = last;
    let detail = if is_here {
        format!("this node does not let group {own} call {name}, or its target is one that is never dialled")
    } else {
        format!(
            "{instance} on {node} answered that group {own} may not call it, or that it has no such target"
        )
    };
    let fix = format!(
        "on {node}: gossamer expose {} --to {own}, with its ports as before; its access line of flow {flow} says more",
        name.service()
    );
    (BrokenKind::Denied, detail, fix)
}

fn backend(facts: &Facts<'_>, name: &VipName, last: &Probed, who: &str, way: &mut Way) {
    let node = &last.node;
    let target = facts
        .candidates
        .iter()
        .find(|found| found.found.instance.as_str() == last.instance && found.found.node == facts.about.node)
        .and_then(|found| own_target(facts, name, found))
        .map(|(at, _)| format!(" at {at}"))
        .unwrap_or_default();
    let is_udp = matches!(facts.port, Ok((_, (_, Transport::Udp))));
    let fault = match &last.outcome {
        Outcome::Open => {
            let detail = if is_udp {
                format!("{who} has the flow; whether its program answers shows with the first datagram only")
            } else {
                format!("the program of {who}{target} has accepted")
            };
            return way.add("backend", LegState::Ok, detail, Some(last.answer));
        }
        Outcome::Denied => return,
        Outcome::Refused => (
            format!("the program of {who}{target} refused the connection, or did not accept it in time"),
            format!(
                "on {node}: let the program listen on its target, which gossamer status there names; the access line of flow {} is there",
                last.flow
            ),
        ),
        Outcome::Busy => (
            format!("{node} has too many flows, or can open no more files"),
            format!("on {node}: gossamer status --flows, and raise LimitNOFILE (ulimit -n) of the daemon"),
        ),
        Outcome::Draining => (
            format!("{who} is draining"),
            format!("wait until it is back, or start another instance than that of {node}"),
        ),
        Outcome::NoFiles => (
            "this node can open no more files".to_owned(),
            "raise LimitNOFILE (ulimit -n) of the daemon here; gossamer status --flows shows what is open"
                .to_owned(),
        ),
        Outcome::Unreachable(_) | Outcome::Silent => (
            format!("{node} took the request of the flow and did not answer: {}", words(&last.outcome)),
            format!(
                "look at the log and the load of {node}; its access line of flow {} may say more",
                last.flow
            ),
        ),
    };
    way.fail("backend", (BrokenKind::Failed, fault.0, fault.1));
}

/// Returns what an instance answered, in words.
fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Open => "accepted".to_owned(),
        Outcome::Denied => "denied".to_owned(),
        Outcome::Refused => "its program refused".to_owned(),
        Outcome::Busy => "too many flows or files".to_owned(),
        Outcome::Draining => "draining".to_owned(),
        Outcome::NoFiles => "no more files here".to_owned(),
        Outcome::Unreachable(why) => why.clone(),
        Outcome::Silent => "no answer in time".to_owned(),
    }
}

pub(super) fn candidate_row(candidate: &CandidateView, facts: &Facts<'_>) -> CandidateRow {
    let found = &candidate.found;
    let mut asked = facts.probed.into_iter().flatten();
    let is_it = |probed: &&Probed| {
        probed.instance == found.instance.as_str() && probed.node == found.node_name.as_str()
    };
    CandidateRow {
        turn: candidate.turn(),
        instance: found.instance.to_string(),
        node: found.node_name.to_string(),
        group: found.group.to_string(),
        state: instance_word(found.state).to_owned(),
        why: why(candidate),
        answer: asked.find(is_it).map(|probed| words(&probed.outcome)),
    }
}

/// Says why an instance has its turn, or none.
fn why(candidate: &CandidateView) -> String {
    let found = &candidate.found;
    let near = match found.nearness {
        Nearness::SameNode => "same node",
        Nearness::Group => "same group",
        Nearness::Zone => "same zone",
        Nearness::Region => "same region",
        Nearness::Any => "elsewhere",
    };
    let mut words = vec![near.to_owned(), candidate.verdict.to_string()];
    if let Verdict::Candidate { load, .. } = candidate.verdict {
        words.push(format!("weight {}", found.weight));
        if !load.connect.is_zero() {
            words.push(format!("opens in {:.1} ms", load.connect.as_secs_f64() * 1e3));
        }
    }
    words.join(", ")
}

fn date(at: u64) -> String {
    let date = i64::try_from(at).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    date.map_or_else(|| at.to_string(), |at| at.date().to_string())
}
