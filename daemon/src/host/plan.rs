//! From facts about a host to the one change it needs, or to why there is none.
//!
//! Owns: which resolver is meant, the file it gets, how it takes that over. Must not know: how facts are gathered or
//! steps carried out. Driven by: `cli::host`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use super::facts::{Facts, Manager, Program, Services, included};
use super::journal::is_plausible;
use super::text;

/// The port that a name server in `/etc/resolv.conf` has.
const DNS_PORT: u16 = 53;
/// Where libc looks for name servers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved looks for more settings.
const RESOLVED_FILE: &str = "/etc/systemd/resolved.conf.d/gossamer.conf";

/// A resolver whose settings can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolver {
    /// systemd-resolved.
    SystemdResolved,
    /// dnsmasq, started as a service of the host.
    Dnsmasq,
    /// unbound.
    Unbound,
    /// None: programs ask the servers of `/etc/resolv.conf` themselves.
    ResolvConf,
}

/// What is wanted of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// For which domains this daemon is to be asked.
    pub domains: Vec<String>,
    /// Where it answers.
    pub dns: SocketAddr,
    /// All questions may be sent to it, where a resolver can do nothing else.
    pub yes: bool,
    /// It was asked for a name outside the mesh: whether it answered. `None`: it could not be asked.
    pub forwards: Option<bool>,
}

/// What becomes of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// A file is written and a resolver told.
    Change(Plan),
    /// Nothing: the owner of the settings is to be told by hand.
    Snippet(Snippet),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The resolver.
    pub resolver: Resolver,
    /// The file that is written.
    pub path: PathBuf,
    /// What it will say.
    pub text: String,
    /// A command that says whether the resolver's settings are sound with it.
    pub validate: Option<Vec<String>>,
    /// How the resolver is told.
    pub reload: Option<Reload>,
    /// What people should know.
    pub notes: Vec<String>,
}

/// How a resolver takes its settings over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    /// By a command.
    Command(Vec<String>),
    /// By the signal HUP to its process.
    Hangup(i32),
}

/// Settings for an owner that is told by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// Whose settings.
    pub owner: &'static str,
    /// The file they go to.
    pub path: &'static str,
    /// The lines.
    pub text: String,
    /// What is to be done then.
    pub then: &'static str,
}

/// Why nothing is done. The operator's fault, or the host is one we do not know; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{why}; {fix}")]
pub struct Refusal {
    /// The cause.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl Resolver {
    /// Returns the name the record and `--json` have for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SystemdResolved => "systemd-resolved",
            Self::Dnsmasq => "dnsmasq",
            Self::Unbound => "unbound",
            Self::ResolvConf => "resolv.conf",
        }
    }

    /// Returns the one that has a name.
    pub fn of_name(name: &str) -> Option<Self> {
        let all = [Self::SystemdResolved, Self::Dnsmasq, Self::Unbound, Self::ResolvConf];
        all.into_iter().find(|resolver| resolver.name() == name)
    }

    /// Returns whether a program is this resolver, as a service of the host.
    fn is(self, program: &Program) -> bool {
        match self {
            Self::SystemdResolved => matches!(program.name.as_str(), "systemd-resolve" | "systemd-resolved"),
            Self::Dnsmasq => program.name == "dnsmasq" && !is_of_network_manager(program),
            Self::Unbound => program.name == "unbound",
            Self::ResolvConf => false,
        }
    }
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(words) => f.write_str(&words.join(" ")),
            Self::Hangup(pid) => write!(f, "kill -HUP {pid}"),
        }
    }
}

/// Who answers the host's programs.
enum Found {
    Resolver(Resolver),
    Snippet(Snippet),
}

/// Makes the plan for a host.
///
/// # Errors
/// The host cannot be set up so that names outside the mesh stay as they are.
pub fn plan(facts: &Facts, wanted: &Wanted) -> Result<Planned, Refusal> {
    let resolver = match found(facts, wanted)? {
        Found::Snippet(snippet) => return Ok(Planned::Snippet(snippet)),
        Found::Resolver(resolver) => resolver,
    };
    let mut plan = match resolver {
        Resolver::SystemdResolved => systemd_resolved(facts, wanted)?,
        Resolver::Dnsmasq => dnsmasq(facts, wanted)?,
        Resolver::Unbound => unbound(facts, wanted)?,
        Resolver::ResolvConf => resolv_conf(facts, wanted)?,
    };
    if !is_plausible(&plan.path) {
        return Err(refusal(
            format!(
                "{} reads further settings as {}, and gossamer writes only below /etc, with no `..` on the way",
                resolver.name(),
                plan.path.display()
            ),
            "let it include a directory below /etc as well, as /etc/dnsmasq.d or /etc/unbound/unbound.conf.d, and restart it",
        ));
    }
    if facts.docker && wanted.dns.ip().is_loopback() {
        plan.notes.push(CONTAINERS.to_owned());
    }
    Ok(Planned::Change(plan))
}

/// Returns which resolver the host's programs ask.
///
/// # Errors
/// None that is known, or none at all.
pub fn resolver(facts: &Facts, wanted: &Wanted) -> Result<Resolver, Refusal> {
    match found(facts, wanted)? {
        Found::Resolver(resolver) => Ok(resolver),
        Found::Snippet(snippet) => Err(refusal(
            format!("{} writes the settings of the host's resolver", snippet.owner),
            "see docs/operating.md for what to tell it",
        )),
    }
}

/// Returns how a resolver takes over what its files say.
///
/// # Errors
/// Nothing that starts services is known here, or another program answers now, which is not to be told.
pub fn reload(resolver: Resolver, facts: &Facts) -> Result<Option<Reload>, Refusal> {
    let stub = facts.stub.as_ref().filter(|program| resolver.is(program));
    let unit = stub.and_then(|program| program.unit.as_deref());
    // The host's own resolver is down, as when a setup was killed during a restart: its service is known by name.
    let is_down = facts.stub.is_none() && facts.resolv_conf.first().is_loopback();
    match (resolver, stub) {
        (Resolver::ResolvConf, _) => Ok(None),
        (Resolver::Unbound, Some(program)) => Ok(Some(Reload::Hangup(program.pid))),
        (Resolver::Dnsmasq, stub) if stub.is_some() || is_down => {
            restart("dnsmasq", unit.unwrap_or("dnsmasq"), facts).map(Some)
        }
        (Resolver::SystemdResolved, stub) if stub.is_some() || is_down || is_asked_by_libc(facts) => {
            restart("systemd-resolved", "systemd-resolved", facts).map(Some)
        }
        (Resolver::Unbound | Resolver::Dnsmasq | Resolver::SystemdResolved, _) => {
            Err(not_asked(resolver, facts))
        }
    }
}

fn not_asked(resolver: Resolver, facts: &Facts) -> Refusal {
    let (first, name) = (facts.resolv_conf.first(), resolver.name());
    let other = facts.stub.as_ref();
    let who = other.map_or_else(
        || "nobody who can be seen".to_owned(),
        |other| format!("{} (process {})", other.name, other.pid),
    );
    refusal(
        format!("programs ask {first}, where {who} listens on port 53"),
        format!("if {name} still runs, restart it yourself"),
    )
}

/// Returns what a resolver's file says.
pub fn file_text(resolver: Resolver, facts: &Facts, wanted: &Wanted) -> String {
    let (domains, dns) = (&wanted.domains, wanted.dns);
    match resolver {
        Resolver::SystemdResolved => text::resolved(domains, dns),
        Resolver::Dnsmasq => text::dnsmasq(domains, dns),
        Resolver::Unbound => text::unbound(domains, dns),
        Resolver::ResolvConf => text::resolv_conf(&facts.resolv_conf.text, dns),
    }
}

/// libc asks systemd-resolved over its own socket, and it is there.
fn is_asked_by_libc(facts: &Facts) -> bool {
    facts.asks_resolved && facts.resolved.is_some()
}

fn found(facts: &Facts, wanted: &Wanted) -> Result<Found, Refusal> {
    let first = facts.resolv_conf.first();
    // Also after a setup with another address.
    if SocketAddr::new(first, DNS_PORT) == wanted.dns || facts.resolv_conf.text.starts_with(text::HEADER) {
        return Ok(Found::Resolver(Resolver::ResolvConf));
    }
    if is_asked_by_libc(facts) {
        return Ok(Found::Resolver(Resolver::SystemdResolved));
    }
    let Some(program) = &facts.stub else {
        return without_stub(facts, wanted);
    };
    Ok(Found::Resolver(match program.name.as_str() {
        "systemd-resolve" | "systemd-resolved" => Resolver::SystemdResolved,
        "unbound" => Resolver::Unbound,
        "dnsmasq" if is_of_network_manager(program) => return Ok(Found::Snippet(network_manager(wanted))),
        "dnsmasq" => Resolver::Dnsmasq,
        other => {
            return Err(refusal(
                format!("the host's resolver at {first} is {other}, whose settings gossamer does not know"),
                format!(
                    "let {other} forward {} to {} port {}",
                    wanted.domains.join(", "),
                    wanted.dns.ip(),
                    wanted.dns.port()
                ),
            ));
        }
    }))
}

fn without_stub(facts: &Facts, wanted: &Wanted) -> Result<Found, Refusal> {
    let first = facts.resolv_conf.first();
    if first.is_loopback() && facts.resolv_conf.manager() != Some(Manager::Docker) {
        return Err(refusal(
            format!("nobody who can be seen listens on port 53 of {first}, which {RESOLV_CONF} names"),
            "start the host's resolver; run this as root, in the network namespace of the host",
        ));
    }
    match facts.resolv_conf.manager() {
        None => Ok(Found::Resolver(Resolver::ResolvConf)),
        Some(Manager::NetworkManager) => Ok(Found::Snippet(network_manager(wanted))),
        Some(Manager::Docker) => Err(refusal(
            "Docker writes the resolver settings of this container".to_owned(),
            format!(
                "start it with `docker run --dns ADDRESS`, where ADDRESS is one this container can reach on port 53; {CONTAINERS}"
            ),
        )),
        Some(Manager::SystemdResolved) => Err(refusal(
            format!(
                "programs ask the servers that systemd-resolved wrote into {RESOLV_CONF}, and not systemd-resolved"
            ),
            "let them ask it: ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf",
        )),
        Some(Manager::Other(manager)) => Err(refusal(
            format!("{manager} writes {RESOLV_CONF} and would undo a change of it"),
            format!(
                "let a resolver of this host (systemd-resolved, dnsmasq or unbound) answer, or take {manager} out of use"
            ),
        )),
    }
}

fn systemd_resolved(facts: &Facts, wanted: &Wanted) -> Result<Plan, Refusal> {
    let mut notes = Vec::new();
    match &facts.resolved {
        None => {
            notes.push("systemd-resolved does not say which servers it has; see `resolvectl dns`".to_owned())
        }
        Some(servers) => check_servers(servers, wanted)?,
    }
    Ok(Plan {
        resolver: Resolver::SystemdResolved,
        path: RESOLVED_FILE.into(),
        text: file_text(Resolver::SystemdResolved, facts, wanted),
        validate: None,
        reload: reload(Resolver::SystemdResolved, facts)?,
        notes,
    })
}

/// All global servers are equal: with others a mesh name may be sent to them. With none at all, ours would be the
/// only one, for every name.
fn check_servers(servers: &super::facts::ResolvedServers, wanted: &Wanted) -> Result<(), Refusal> {
    let ours = [wanted.dns.ip().to_string(), wanted.dns.to_string()];
    let others: Vec<_> = servers.global.iter().filter(|server| !ours.contains(server)).cloned().collect();
    if !others.is_empty() {
        return Err(refusal(
            format!(
                "systemd-resolved has servers for all links ({}) and would ask them for mesh names too",
                others.join(", ")
            ),
            "give them to a link instead: take DNS= out of resolved.conf and use `resolvectl dns LINK ..` or the network's configuration; from systemd 258 on a file in /etc/systemd/dns-delegate.d serves as well",
        ));
    }
    if servers.links.is_empty() && wanted.forwards != Some(true) {
        return Err(refusal(
            "systemd-resolved has no server on any link, so that this daemon would be asked for every name"
                .to_owned(),
            "give a link its servers, or set dns.upstream and start the daemon",
        ));
    }
    Ok(())
}

fn dnsmasq(facts: &Facts, wanted: &Wanted) -> Result<Plan, Refusal> {
    let path = included(&facts.includes).ok_or_else(|| {
        refusal(
            "dnsmasq reads no directory of settings",
            "add `conf-dir=/etc/dnsmasq.d/,*.conf` to /etc/dnsmasq.conf and restart it",
        )
    })?;
    // All of its settings: a restart takes over what else was changed since it started.
    let mut validate = vec!["dnsmasq".to_owned(), "--test".to_owned()];
    for (short, long) in [("-C", "--conf-file"), ("-7", "--conf-dir")] {
        let value = facts.stub.as_ref().and_then(|program| program.option(short, long));
        validate.extend(value.map(|value| format!("{long}={value}")));
    }
    Ok(Plan {
        resolver: Resolver::Dnsmasq,
        text: file_text(Resolver::Dnsmasq, facts, wanted),
        validate: Some(validate),
        path,
        reload: reload(Resolver::Dnsmasq, facts)?,
        notes: Vec::new(),
    })
}

fn unbound(facts: &Facts, wanted: &Wanted) -> Result<Plan, Refusal> {
    let path = included(&facts.includes).ok_or_else(|| {
        refusal(
            "unbound includes no files at the top level of its configuration",
            "add `include-toplevel: \"/etc/unbound/unbound.conf.d/*.conf\"` to it and restart it",
        )
    })?;
    let config = facts.stub.as_ref().and_then(|program| program.option("-c", ""));
    let mut validate = vec!["unbound-checkconf".to_owned()];
    validate.extend(config.map(str::to_owned));
    Ok(Plan {
        resolver: Resolver::Unbound,
        path,
        text: file_text(Resolver::Unbound, facts, wanted),
        validate: Some(validate),
        reload: reload(Resolver::Unbound, facts)?,
        notes: Vec::new(),
    })
}

fn resolv_conf(facts: &Facts, wanted: &Wanted) -> Result<Plan, Refusal> {
    let dns = wanted.dns;
    let refused =
        |why: &str, fix: &str| Err(refusal(format!("{why}, and this host has no resolver of its own"), fix));
    if dns.port() != DNS_PORT {
        return refused(
            &format!("{RESOLV_CONF} can name port 53 only, and DNS is answered on port {}", dns.port()),
            "let the daemon have port 53 (root, or CAP_NET_BIND_SERVICE), or install a resolver such as systemd-resolved",
        );
    }
    match wanted.forwards {
        Some(true) => {}
        Some(false) => {
            return refused(
                "the daemon refuses names outside the mesh, which all would be sent to it",
                "set dns.upstream to the servers that answer them, or install a resolver such as systemd-resolved",
            );
        }
        None => {
            return refused(
                &format!("nothing answers at {dns}, where all names would be sent"),
                "start the daemon with dns.upstream set",
            );
        }
    }
    if facts.resolv_conf.is_mount {
        return refused(&format!("{RESOLV_CONF} is mounted"), "change it where the container is made");
    }
    if facts.resolv_conf.rotates() {
        return refused(
            &format!(
                "{RESOLV_CONF} has `options rotate`, which sends mesh names to the other servers in turns"
            ),
            "take that word out",
        );
    }
    if !wanted.yes {
        return refused(
            &format!("{RESOLV_CONF} would send every name of the host to the daemon first"),
            "pass --yes if that is meant, or install a resolver such as systemd-resolved",
        );
    }
    Ok(Plan {
        resolver: Resolver::ResolvConf,
        path: RESOLV_CONF.into(),
        text: file_text(Resolver::ResolvConf, facts, wanted),
        validate: None,
        reload: None,
        notes: vec![
            "programs that run read the change when they resolve next; some, as old glibc, at their start"
                .to_owned(),
        ],
    })
}

fn is_of_network_manager(program: &Program) -> bool {
    program.arguments.iter().any(|argument| argument.contains("NetworkManager"))
}

fn network_manager(wanted: &Wanted) -> Snippet {
    Snippet {
        owner: "NetworkManager",
        path: "/etc/NetworkManager/dnsmasq.d/gossamer.conf",
        text: text::dnsmasq(&wanted.domains, wanted.dns),
        then: "with `dns=dnsmasq` below [main] of /etc/NetworkManager/NetworkManager.conf: `systemctl reload NetworkManager`; with `dns=systemd-resolved` there, `gossamer host setup` does the rest",
    }
}

fn restart(program: &str, unit: &str, facts: &Facts) -> Result<Reload, Refusal> {
    match &facts.services {
        Services::Systemd => Ok(words(&["systemctl", "restart", unit])),
        Services::Scripts(names) if names.contains(program) => {
            Ok(words(&[&format!("/etc/init.d/{program}"), "restart"]))
        }
        Services::Scripts(_) | Services::Unknown => Err(refusal(
            format!(
                "how {program} is restarted on this host is not known: neither systemd nor /etc/init.d/{program} is there"
            ),
            "see what is needed with --dry-run where a service manager runs, write it yourself and restart it",
        )),
    }
}

fn words(words: &[&str]) -> Reload {
    Reload::Command(words.iter().map(|word| (*word).to_owned()).collect())
}

fn refusal(why: impl Into<String>, fix: impl Into<String>) -> Refusal {
    Refusal { why: why.into(), fix: fix.into() }
}

/// Why containers do not ask an address of 127/8.
const CONTAINERS: &str = "containers have a 127.0.0.0/8 of their own, so this address reaches nobody from inside them: give the daemon a vip.pool such as 240.80.0.0/12, or let it answer on the address of the bridge (dns.address), name that with `docker run --dns`, and the network of the containers in vip.clients";
