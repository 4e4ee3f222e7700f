//! `host check`: the way of a mesh name through this machine, hop by hop.
//!
//! Owns: the hops, in the order in which a question passes them, and what mends each. Must not know: how a host is
//! set up. Driven by: `cli::host`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use gossamer_core::vip::Mode;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use serde::Serialize;
use tokio::process::Command;
use tokio::time::timeout;

use super::super::failure::Failure;
use super::super::output;
use super::{ask, probe, refuses};
use crate::api::Client;
use crate::api::messages::{ServiceRow, Status};
use crate::config::Settings;
use crate::host::domains::dns_domains;
use crate::host::facts::Facts;
use crate::host::files::Entry;
use crate::host::journal::{self, DIRECTORY, Record, Standing};
use crate::host::plan::{Resolver, Wanted, file_text, resolver};

/// How long a program's look-up may take: libc asks again after 5 s.
const LOOKUP_WITHIN: Duration = Duration::from_secs(15);
const SETUP: &str = "sudo gossamer host setup";

/// A part of the way.
#[derive(Debug, Serialize)]
struct Hop {
    hop: &'static str,
    ok: bool,
    detail: String,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Debug, Serialize)]
struct Checked {
    dns: SocketAddr,
    hops: Vec<Hop>,
    /// The first hop that is broken.
    broken: Option<&'static str>,
}

impl Hop {
    fn ok(hop: &'static str, detail: impl Into<String>) -> Self {
        Self { hop, ok: true, detail: detail.into(), fix: None }
    }

    fn broken(hop: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { hop, ok: false, detail: detail.into(), fix: Some(fix.into()) }
    }
}

pub(super) async fn run(settings: &Settings, dns: SocketAddr, json: bool) -> Result<(), Failure> {
    let facts = probe::facts();
    let domains = dns_domains(settings).map_err(Failure::usage)?;
    let wanted = Wanted { domains: domains.asked, dns, yes: true, forwards: None };
    let zone = settings.dns_zone.as_str();
    let stub = probe::stub_address(&facts);
    let mut hops = vec![listener(dns, zone).await, host_resolver(&facts, &wanted), setup(&facts, &wanted)];
    hops.extend(redirected(settings).await);
    hops.push(through(stub, &wanted).await);
    hops.push(program(settings, dns).await);
    hops.push(outside(stub, dns).await);

    let broken = hops.iter().find(|hop| !hop.ok);
    let failure = broken.map(|hop| {
        let fix = hop.fix.as_deref().unwrap_or_default();
        Failure::failed(format_args!("broken here: {}: {}; {fix}", hop.hop, hop.detail))
    });
    let broken = broken.map(|hop| hop.hop);
    let checked = Checked { dns, hops, broken };
    if json {
        output::json(&checked)?;
    } else {
        checked.hops.iter().map(line).for_each(output::data);
    }
    failure.map_or(Ok(()), Err)
}

fn line(hop: &Hop) -> String {
    format!("{:<6}  {:<8}  {}", if hop.ok { "ok" } else { "BROKEN" }, hop.hop, hop.detail)
}

/// The daemon, asked directly.
async fn listener(dns: SocketAddr, zone: &str) -> Hop {
    match ask::ask(dns, zone, RecordType::SOA).await {
        Ok(reply) if has_soa(&reply) => Hop::ok("daemon", format!("{dns} answers for {zone}")),
        Ok(reply) => Hop::broken(
            "daemon",
            format!("{dns} says {} for {zone}", code(&reply)),
            "another program has the address, or the daemon another zone: see gossamer status, or pass --dns ADDRESS",
        ),
        Err(error) => Hop::broken(
            "daemon",
            format!("nothing answers at {dns}: {error}"),
            "start the daemon: gossamer run; gossamer status says where it answers",
        ),
    }
}

fn host_resolver(facts: &Facts, wanted: &Wanted) -> Hop {
    let first = facts.resolv_conf.first();
    match resolver(facts, wanted) {
        Ok(resolver) => Hop::ok("resolver", format!("programs ask {first}: {}", resolver.name())),
        Err(refusal) => Hop::broken("resolver", refusal.why, refusal.fix),
    }
}

fn setup(facts: &Facts, wanted: &Wanted) -> Hop {
    let record = match journal::read(Path::new(DIRECTORY)) {
        Ok(Some(record)) => record,
        Ok(None) => return Hop::ok("setup", "none by gossamer host setup"),
        // Without root the record cannot be read.
        Err(error) => return Hop::ok("setup", format!("not known: {error}")),
    };
    let standing = Entry::read(&record.path).map(|now| record.standing(&now));
    recorded(&record, standing, facts, wanted)
}

/// In dnat mode, whether the kernel sends connections to the daemon, as the daemon sees it.
async fn redirected(settings: &Settings) -> Option<Hop> {
    if settings.vip_mode != Mode::Dnat {
        return None;
    }
    let asked: Result<Status, _> = Client::new(&settings.socket).get("/v1/status").await;
    let Ok(status) = asked else { return Some(Hop::ok("vips", "not known: no daemon answers")) };
    Some(redirection(&status.redirection))
}

fn redirection(families: &BTreeMap<String, String>) -> Hop {
    let each: Vec<_> = families.iter().map(|(family, state)| format!("{family} {state}")).collect();
    let detail = format!("virtual addresses over {}", each.join(", "));
    if families.is_empty() {
        return Hop::broken(
            "vips",
            "the daemon is in another mode than the configuration",
            "restart the daemon",
        );
    }
    if families.values().all(|state| state == "ready" || state == "off") {
        Hop::ok("vips", detail)
    } else {
        Hop::broken("vips", detail, format!("{SETUP} --only vips"))
    }
}

/// What a record and its file say of the setup.
fn recorded(record: &Record, standing: io::Result<Standing>, facts: &Facts, wanted: &Wanted) -> Hop {
    let path = record.path.display().to_string();
    let is_due = |resolver| !record.after.says(&file_text(resolver, facts, wanted));
    match standing {
        Ok(Standing::After) if Resolver::of_name(&record.resolver).is_some_and(is_due) => Hop::broken(
            "setup",
            format!("{path} is not what would be written now: the address or the names have changed since"),
            SETUP,
        ),
        Ok(Standing::After) if record.taken => Hop::ok("setup", path),
        Ok(Standing::After) => {
            Hop::broken("setup", format!("{path} was written, and the resolver not told"), SETUP)
        }
        Ok(Standing::Before) => Hop::broken("setup", format!("{path} was taken back"), SETUP),
        Ok(Standing::Changed) => Hop::ok("setup", format!("{path}, which somebody changed afterwards")),
        Err(error) => Hop::broken("setup", format!("{path}: {error}"), "look at what it is"),
    }
}

/// The host's resolver, asked as libc asks it: for the primary zone, then for all others for which the daemon answers.
/// Reverse zones are left out, since some resolvers answer for 127/8 themselves.
async fn through(stub: SocketAddr, wanted: &Wanted) -> Hop {
    let dns = wanted.dns;
    let mut passed = Vec::new();
    for zone in wanted.domains.iter().filter(|domain| !domain.ends_with(".in-addr.arpa")) {
        let is_first = passed.is_empty();
        let is_ours = async || ask::ask(dns, zone, RecordType::SOA).await.is_ok_and(|reply| has_soa(&reply));
        if !is_first && !is_ours().await {
            continue;
        }
        match ask::ask(stub, zone, RecordType::SOA).await {
            Ok(reply) if has_soa(&reply) => passed.push(zone.as_str()),
            Ok(reply) => {
                let said = format!("{stub} says {} for {zone} and does not ask {dns}", code(&reply));
                return Hop::broken("zone", said, SETUP);
            }
            Err(error) => {
                let said = format!("the resolver at {stub} does not answer for {zone}: {error}");
                return Hop::broken("zone", said, "start the host's resolver");
            }
        }
    }
    Hop::ok("zone", format!("{stub} passes questions for {} on", passed.join(", ")))
}

/// A name as any program resolves it.
async fn program(settings: &Settings, dns: SocketAddr) -> Hop {
    let Some(name) = some_name(settings).await else {
        return Hop::ok("program", "no service and no daemon to take a name of; not tried");
    };
    let expected: BTreeSet<IpAddr> = match ask::ask(dns, &name, RecordType::A).await {
        Ok(reply) => ask::addresses(&reply).into_iter().collect(),
        Err(_) => BTreeSet::new(),
    };
    if expected.is_empty() {
        return Hop::ok("program", format!("{name} has no address at present; not tried"));
    }
    match getent(&name).await {
        Ok(found) if found.is_subset(&expected) && !found.is_empty() => {
            Hop::ok("program", format!("{name} is {}", list(&found)))
        }
        Ok(found) if found.is_empty() => Hop::broken(
            "program",
            format!("programs do not find {name}, which is {} at {dns}", list(&expected)),
            "look at `hosts:` in /etc/nsswitch.conf: dns or resolve must stand there",
        ),
        Ok(found) => Hop::broken(
            "program",
            format!("{name} is {} for programs and {} at {dns}", list(&found), list(&expected)),
            "something answers before the resolver: look at /etc/hosts and `hosts:` in /etc/nsswitch.conf",
        ),
        Err(error) => Hop::ok("program", format!("not tried: getent: {error}")),
    }
}

/// A name that is none of the mesh: it must not come to nothing because of us. What other servers say is theirs.
async fn outside(stub: SocketAddr, dns: SocketAddr) -> Hop {
    match ask::ask(stub, ".", RecordType::NS).await {
        Ok(reply) if stub == dns && refuses(&reply) => Hop::broken(
            "outside",
            format!("all questions go to {dns} first, which refuses names outside the mesh"),
            "set dns.upstream, or `sudo gossamer host undo`",
        ),
        Ok(reply) => Hop::ok("outside", format!("{stub} says {} for the root", code(&reply))),
        Err(error) => Hop::ok("outside", format!("{stub} says nothing for the root: {error}")),
    }
}

/// Returns the name of a service that can be used here, else of this node.
async fn some_name(settings: &Settings) -> Option<String> {
    let client = Client::new(&settings.socket);
    let zone = &settings.dns_zone;
    let rows: Vec<ServiceRow> = client.get("/v1/services?all=false").await.ok()?;
    let usable = rows.iter().find(|row| row.instances.iter().any(|instance| instance.imported));
    if let Some(row) = usable {
        return Some(format!("{}.{zone}", row.service));
    }
    let status: Status = client.get("/v1/status").await.ok()?;
    Some(format!("{}.node.{zone}", status.node.name))
}

/// Asks as programs do, in a program of the host's own libc: ours may be linked with another.
pub(in crate::cli) async fn getent(name: &str) -> io::Result<BTreeSet<IpAddr>> {
    let asked = Command::new("getent").args(["ahosts", name]).kill_on_drop(true).output();
    let said = timeout(LOOKUP_WITHIN, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    Ok(said.lines().filter_map(|line| line.split_ascii_whitespace().next()?.parse().ok()).collect())
}

fn has_soa(reply: &Message) -> bool {
    reply.answers.iter().any(|record| matches!(record.data, RData::SOA(_)))
}

fn code(reply: &Message) -> String {
    match reply.metadata.response_code {
        ResponseCode::NoError if reply.answers.is_empty() => "NODATA".to_owned(),
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("response code {}", u16::from(other)),
    }
}

fn list(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirection_that_is_missing_is_broken_and_one_family_may_be_off() {
        let hop = |v4: &str, v6: &str| {
            redirection(&[("v4", v4), ("v6", v6)].map(|(a, b)| (a.to_owned(), b.to_owned())).into())
        };
        assert!(hop("ready", "ready").ok && hop("ready", "off").ok);
        let missing = hop("no-table", "no-route");
        assert!(!missing.ok && missing.detail.contains("v4 no-table, v6 no-route"), "{missing:?}");
        assert!(missing.fix.is_some_and(|fix| fix.ends_with("host setup --only vips")));
        assert!(redirection(&BTreeMap::new()).fix.is_some_and(|fix| fix.contains("restart")));
    }

    #[test]
    fn a_setup_for_other_names_or_another_address_is_broken() {
        let (facts, dns) = (Facts::default(), "127.240.0.53:53".parse().expect("an address"));
        let wanted = |domains: &[&str], dns| Wanted {
            domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            dns,
            yes: true,
            forwards: None,
        };
        let then = wanted(&["mesh.internal"], dns);
        let record = Record {
            resolver: "dnsmasq".to_owned(),
            path: "/etc/dnsmasq.d/gossamer.conf".into(),
            before: Entry::Missing,
            after: Entry::ours(&file_text(Resolver::Dnsmasq, &facts, &then)),
            directories: vec![],
            taken: true,
        };
        assert!(recorded(&record, Ok(Standing::After), &facts, &then).ok);
        let moved = "127.240.0.53:4653".parse().expect("an address");
        for now in [wanted(&["mesh.internal", "corp.example"], dns), wanted(&["mesh.internal"], moved)] {
            let hop = recorded(&record, Ok(Standing::After), &facts, &now);
            assert_eq!((hop.ok, hop.fix.as_deref()), (false, Some(SETUP)));
            assert!(hop.detail.contains("have changed"), "{}", hop.detail);
            assert!(recorded(&record, Ok(Standing::Changed), &facts, &now).ok, "a file of somebody's own");
        }
    }
}
