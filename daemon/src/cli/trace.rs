//! `trace`: the way of a name, leg by leg, and where it ends.
//!
//! Owns: the leg of the host's own resolver, which only a program of this host can ask, and how the legs read. Must not
//! know: how the others are found out; the daemon tells. Driven by: `cli`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use super::args::Trace;
use super::failure::{Exit, Failure};
use super::host;
use super::name_port::TraceName;
use super::output;
use super::resolve::escaped;
use crate::api::messages::{BrokenKind, BrokenLeg, Leg, LegState, Protocol, Traced};
use crate::api::{Client, ClientError};

pub(super) async fn run(client: &Client, asked: &Trace) -> Result<ExitCode, Failure> {
    let mut traced: Traced = match client.get(&path(asked)).await {
        Ok(traced) => traced,
        Err(error @ ClientError::TimedOut(_)) => {
            // The one thing a daemon without files still does is not to answer.
            return Err(Failure::new(
                Exit::TimedOut,
                format_args!(
                    "broken here: daemon: {error}; if it can open no more files, raise its LimitNOFILE"
                ),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(leg) = host(&traced).await {
        // Programs need it; what is broken further on is broken for `forward` as well, and named first.
        if traced.broken.is_none() && leg.state == LegState::Broken {
            traced.broken = Some(BrokenLeg {
                leg: leg.leg.clone(),
                detail: leg.detail.clone(),
                fix: "sudo gossamer host setup; gossamer host check names the hop; gossamer forward needs neither"
                    .to_owned(),
                kind: BrokenKind::Failed,
            });
        }
        traced.legs.insert(0, leg);
    }
    if asked.json {
        output::json(&traced)?;
    } else {
        lines(&traced).iter().for_each(output::data);
    }
    Ok(exit(&traced).map_or(ExitCode::SUCCESS, ExitCode::from))
}

fn path(asked: &Trace) -> String {
    let TraceName { name, port, transport } = &asked.name;
    let port = port.as_ref().map(|port| format!("&port={}", escaped(port.as_str()))).unwrap_or_default();
    let transport = match transport {
        Protocol::Tcp => "",
        Protocol::Udp => "&transport=udp",
    };
    format!("/v1/trace?name={}{port}{transport}&dial={}", escaped(name), !asked.no_dial)
}

/// Asks as programs do. Nothing is compared while the daemon has no address to answer.
async fn host(traced: &Traced) -> Option<Leg> {
    if traced.addresses.is_empty() {
        return None;
    }
    let expected: BTreeSet<_> = traced.addresses.iter().copied().collect();
    let began = tokio::time::Instant::now();
    let found = host::getent(traced.name.trim_end_matches('.')).await;
    let took_us = Some(began.elapsed().as_micros() as u64);
    let (state, detail) = match found {
        Ok(found) if found.is_empty() => {
            (LegState::Broken, format!("programs of this machine do not find {}", traced.name))
        }
        Ok(found) if found.is_subset(&expected) => {
            (LegState::Ok, format!("programs of this machine find {}", list(found.iter())))
        }
        Ok(found) => {
            let text = format!(
                "programs of this machine find {}, not {}",
                list(found.iter()),
                list(expected.iter())
            );
            (LegState::Broken, text)
        }
        Err(error) => (LegState::Skipped, format!("not tried: getent: {error}")),
    };
    Some(Leg { leg: "host".to_owned(), state, detail, took_us })
}

fn list<'a>(addresses: impl Iterator<Item = &'a std::net::IpAddr>) -> String {
    addresses.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn exit(traced: &Traced) -> Option<Exit> {
    traced.broken.as_ref().map(|broken| match broken.kind {
        BrokenKind::NotFound => Exit::NotFound,
        BrokenKind::Denied => Exit::Denied,
        BrokenKind::Failed => Exit::Failed,
    })
}

fn lines(traced: &Traced) -> Vec<String> {
    let mut lines = Vec::new();
    for leg in &traced.legs {
        lines.push(leg_line(leg));
        if leg.leg != "candidates"
            && !(leg.leg == "backend" && traced.legs.iter().all(|leg| leg.leg != "candidates"))
        {
            continue;
        }
        for row in &traced.candidates {
            let turn = row.turn.map_or_else(|| "-".to_owned(), |turn| turn.to_string());
            let answer = row.answer.as_ref().map(|answer| format!("; {answer}")).unwrap_or_default();
            lines.push(format!(
                "                      {turn:<2} {} on {}.{}: {}, {}{answer}",
                row.instance, row.node, row.group, row.state, row.why
            ));
        }
    }
    if let Some(flow) = &traced.flow {
        lines.push(format!("{:<8}{:<12}  the access lines of this flow have the id {flow}", "", "flow"));
    }
    lines.push(match &traced.broken {
        Some(BrokenLeg { leg, detail, fix, .. }) => format!("broken here: {leg}: {detail}; {fix}"),
        None if traced.legs.iter().any(|leg| leg.state == LegState::Skipped && leg.leg == "path") => {
            "nothing is broken as far as was looked; without --no-dial a flow is tried".to_owned()
        }
        None => "all is well".to_owned(),
    });
    lines
}

fn leg_line(leg: &Leg) -> String {
    let state = match leg.state {
        LegState::Ok => "ok",
        LegState::Broken => "BROKEN",
        LegState::Note => "note",
        LegState::Skipped => "-",
    };
    let took = leg.took_us.map(|us| format!(" ({:.1} ms)", us as f64 / 1e3)).unwrap_or_default();
    format!("{state:<6}  {:<12}  {}{took}", leg.leg, leg.detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::messages::CandidateRow;

    fn leg(name: &str, state: LegState, took_us: Option<u64>) -> Leg {
        Leg { leg: name.to_owned(), state, detail: format!("about {name}"), took_us }
    }

    fn traced(broken: Option<BrokenKind>) -> Traced {
        Traced {
            name: "orders.mesh.internal".to_owned(),
            legs: vec![leg("dns", LegState::Ok, Some(1_500)), leg("candidates", LegState::Note, None)],
            candidates: vec![CandidateRow {
                turn: Some(1),
                instance: "db-0".to_owned(),
                node: "vm-b".to_owned(),
                group: "west".to_owned(),
                state: "usable".to_owned(),
                why: "same group".to_owned(),
                answer: Some("denied".to_owned()),
            }],
            flow: Some("00ff".to_owned()),
            broken: broken.map(|kind| BrokenLeg {
                leg: "policy".to_owned(),
                detail: "no".to_owned(),
                fix: "ask".to_owned(),
                kind,
            }),
            ..Traced::default()
        }
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        assert_eq!(exit(&traced(None)), None);
        for (kind, code) in [(BrokenKind::NotFound, 4), (BrokenKind::Denied, 5), (BrokenKind::Failed, 1)] {
            assert_eq!(exit(&traced(Some(kind))).map(|exit| exit as u8), Some(code));
        }
    }

    #[test]
    fn the_last_line_is_the_cause_and_what_mends_it() {
        let lines = lines(&traced(Some(BrokenKind::Denied)));
        assert_eq!(lines[0], "ok      dns           about dns (1.5 ms)");
        assert!(lines[2].ends_with("1  db-0 on vm-b.west: usable, same group; denied"), "{}", lines[2]);
        assert_eq!(lines.last().map(String::as_str), Some("broken here: policy: no; ask"));
    }

    #[test]
    fn what_was_not_looked_at_is_not_called_well() {
        assert_eq!(lines(&traced(None)).last().map(String::as_str), Some("all is well"));
        let mut without = traced(None);
        without.legs.push(leg("path", LegState::Skipped, None));
        assert!(lines(&without).last().is_some_and(|last| last.contains("--no-dial")));
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_not_asked_of_the_host() {
        assert_eq!(host(&traced(None)).await, None);
    }
}
