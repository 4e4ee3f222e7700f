//! The meaning of each key's value.
//!
//! Owns: parsing and ranges, one place per key. Must not know: where values come from, defaults.
//! Driven by: `config`, weakest source first, so that later assignments win.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use gossamer_core::access::Base;
use gossamer_core::catalog::Imports;
use gossamer_core::reach::Deny;
use gossamer_core::select::Routes;
use gossamer_core::vip::{Mode, Pool, PoolError};
use gossamer_dns::{MAX_UPSTREAMS, Zone, ZoneError, check_upstream};
use gossamer_wire::limits::{MAX_ADDRESSES, MAX_LANE_ADDRESSES};
use gossamer_wire::{Address, FqdnSuffix, LANE_SCHEME, LaneAddress, LaneAddressError, RegionName, ZoneName};

use super::fault::nearest;
use super::keys::Raw;
use super::names::Alias;
use super::routes::{routes, split as split_routes};
use super::slot::SlotChoice;
use crate::clients::{Network, NetworkError};
use crate::duration;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Somebody who may give the daemon orders, as the configuration names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// A user, by name or number.
    User(String),
    /// The members of a group, by its name or number.
    Group(String),
}

impl Operator {
    /// Returns the number, if it is one and no name.
    pub fn number(&self) -> Option<u32> {
        let (Self::User(name) | Self::Group(name)) = self;
        name.parse().ok()
    }
}

/// What the sources gave; `None` or empty where none did.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    pub(super) slot: Option<SlotChoice>,
    pub(super) listen: Option<HostPort>,
    pub(super) advertise: Vec<Advertised>,
    pub(super) operators: Vec<Operator>,
    pub(super) import: Imports,
    pub(super) zone: Option<ZoneName>,
    pub(super) region: Option<RegionName>,
    pub(super) policy_audit: bool,
    pub(super) policy_base: Base,
    pub(super) dns_zone: Option<String>,
    pub(super) dns_zones: Vec<String>,
    pub(super) fqdn_suffixes: Vec<FqdnSuffix>,
    pub(super) aliases: Vec<Alias>,
    pub(super) clusterset: Option<bool>,
    pub(super) dns_address: Option<HostPort>,
    pub(super) upstreams: Vec<SocketAddr>,
    pub(super) rebind_protection: bool,
    pub(super) rebind_allow: Vec<String>,
    pub(super) drain_deadline: Option<Duration>,
    pub(super) routes: Routes,
    pub(super) vip_clients: Vec<Network>,
    pub(super) vip_mode: Option<Mode>,
    pub(super) vip_pool: Option<Pool>,
    pub(super) log_level: Option<tracing::Level>,
    pub(super) log_format: Option<LogFormat>,
    pub(super) issuer_lifetime: Option<Duration>,
    pub(super) leaf_lifetime: Option<Duration>,
    pub(super) socket: Option<PathBuf>,
    pub(super) state_dir: Option<PathBuf>,
}

/// An address whose port may be left to the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    ip: IpAddr,
    port: Option<u16>,
}

/// An address others are told to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Advertised {
    Port(HostPort),
    Lane(LaneAddress),
}

impl Advertised {
    pub(super) fn or_port(&self, default: u16) -> Address {
        match self {
            Self::Port(address) => Address::Port(address.or_port(default)),
            Self::Lane(address) => Address::Lane(address.clone()),
        }
    }
}

impl HostPort {
    pub(super) fn or_port(self, default: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(default))
    }
}

impl FromStr for Operator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, is_group) = text.strip_prefix('%').map_or((text, false), |name| (name, true));
        let is_foreign = |char: char| char.is_whitespace() || char.is_control() || ":%,".contains(char);
        if name.is_empty() || name.contains(is_foreign) {
            return Err(format!("{text:?} names no user and no group"));
        }
        Ok(if is_group { Self::Group(name.to_owned()) } else { Self::User(name.to_owned()) })
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => f.write_str(name),
            Self::Group(name) => write!(f, "%{name}"),
        }
    }
}

/// Most networks of `vip.clients`: all are compared for each question that does not come from loopback.
const MAX_NETWORKS: usize = 64;

/// What is wrong with a value, and what to write.
type Wrong = (String, String);

impl Values {
    /// Takes a value; the key must be one of `KEYS`.
    pub(super) fn assign(&mut self, key: &str, raw: &Raw) -> Result<(), Wrong> {
        match key {
            "advertise" => self.advertise = addresses(raw)?,
            "alias" => self.aliases = aliases(raw)?,
            "api.operators" => {
                self.operators = list(raw)?.iter().map(|item| operator(item)).collect::<Result<_, _>>()?;
            }
            "dns.address" => self.dns_address = Some(text(raw).and_then(host_port)?),
            "dns.clusterset" => self.clusterset = Some(flag(raw)?),
            "dns.fqdn_suffixes" => {
                self.fqdn_suffixes = list(raw)?.iter().map(|item| parsed(item)).collect::<Result<_, _>>()?;
            }
            "dns.rebind_allow" => {
                self.rebind_allow = list(raw)?.iter().map(|item| suffix(item)).collect::<Result<_, _>>()?;
            }
            "dns.rebind_protection" => self.rebind_protection = flag(raw)?,
            "dns.upstream" => self.upstreams = upstreams(raw)?,
            "dns.zone" => self.dns_zone = Some(text(raw).and_then(dns_zone)?),
            "dns.zones" => {
                self.dns_zones = list(raw)?.iter().map(|item| dns_zone(item)).collect::<Result<_, _>>()?;
            }
            "drain.deadline" => self.drain_deadline = Some(text(raw).and_then(drain_deadline)?),
            "import" => {
                let patterns = list(raw)?;
                self.import = Imports(patterns.iter().map(|item| parsed(item)).collect::<Result<_, _>>()?);
            }
            "listen" => self.listen = Some(text(raw).and_then(host_port)?),
            "log.format" => self.log_format = Some(word(raw, &LOG_FORMATS)?),
            "log.level" => self.log_level = Some(word(raw, &LOG_LEVELS)?),
            "node.region" => self.region = Some(text(raw).and_then(parsed)?),
            "node.zone" => self.zone = Some(text(raw).and_then(parsed)?),
            "policy.audit" => self.policy_audit = flag(raw)?,
            "policy.default" => self.policy_base = word(raw, &POLICY_DEFAULTS)?,
            "route" => {
                self.routes = match raw {
                    Raw::Pairs(pairs) => routes(pairs)?,
                    raw => text(raw).and_then(split_routes).and_then(|pairs| routes(&pairs))?,
                };
            }
            "slot" => self.slot = Some(slot(raw)?),
            "socket" => self.socket = Some(text(raw).and_then(path)?),
            "state_dir" => self.state_dir = Some(text(raw).and_then(path)?),
            "trust.issuer_lifetime" => self.issuer_lifetime = Some(text(raw).and_then(lifetime)?),
            "trust.leaf_lifetime" => self.leaf_lifetime = Some(text(raw).and_then(lifetime)?),
            "vip.clients" => self.vip_clients = networks(raw)?,
            "vip.mode" => self.vip_mode = Some(word(raw, &VIP_MODES)?),
            "vip.pool" => self.vip_pool = Some(text(raw).and_then(pool)?),
            other => return Err((format!("{other} is no key"), "remove it".to_owned())),
        }
        Ok(())
    }
}

const LOG_LEVELS: [(&str, tracing::Level); 5] = [
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("info", tracing::Level::INFO),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

const POLICY_DEFAULTS: [(&str, Base); 2] = [("group", Base::Group), ("deny", Base::Deny)];

const VIP_MODES: [(&str, Mode); 3] = [("bind", Mode::Bind), ("dnat", Mode::Dnat), ("none", Mode::None)];

const LOG_FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

fn text(raw: &Raw) -> Result<&str, Wrong> {
    match raw {
        Raw::Text(text) => Ok(text),
        Raw::List(_) => {
            Err(("a list stands where one value is expected".to_owned(), "write one value".to_owned()))
        }
        Raw::Number(number) => {
            Err((format!("the number {number} stands where text is expected"), "quote the value".to_owned()))
        }
        Raw::Flag(flag) => Err((
            format!("the boolean {flag} stands where text is expected"),
            "write text in quotes".to_owned(),
        )),
        Raw::Pairs(_) => {
            Err(("a table stands where text is expected".to_owned(), "write one value".to_owned()))
        }
    }
}

fn flag(raw: &Raw) -> Result<bool, Wrong> {
    match raw {
        Raw::Flag(flag) => Ok(*flag),
        // The environment has text only.
        raw => word(raw, &[("true", true), ("false", false)]),
    }
}

/// Pairs are `NAME=TARGET,..` where the source has text only.
fn aliases(raw: &Raw) -> Result<Vec<Alias>, Wrong> {
    let pairs = match raw {
        Raw::Pairs(pairs) => pairs.clone(),
        raw => {
            let pair = |item: &String| {
                item.split_once('=').map(|(name, target)| (name.to_owned(), target.to_owned()))
            };
            let pairs = list(raw)?.iter().map(pair).collect::<Option<_>>();
            pairs.ok_or_else(|| {
                ("an alias has no `=`".to_owned(), "write for example pg.corp.example=orders-db".to_owned())
            })?
        }
    };
    let alias = |(name, target): (String, String)| {
        let target =
            target.parse().map_err(|why| (format!("{name:?}: {why}"), "correct the value".to_owned()))?;
        Ok(Alias { name, target })
    };
    pairs.into_iter().map(alias).collect()
}

/// Lists are comma-separated where the source has text only.
fn list(raw: &Raw) -> Result<Vec<String>, Wrong> {
    match raw {
        Raw::List(items) => Ok(items.clone()),
        Raw::Text(text) => Ok(text.split(',').map(|item| item.trim().to_owned()).collect()),
        Raw::Number(_) | Raw::Flag(_) | Raw::Pairs(_) => {
            Err(("something else stands where a list is expected".to_owned(), "write [\"..\"]".to_owned()))
        }
    }
}

fn addresses(raw: &Raw) -> Result<Vec<Advertised>, Wrong> {
    let items = list(raw)?;
    let (lanes, ports): (Vec<_>, Vec<_>) = items.iter().partition(|item| item.starts_with(LANE_SCHEME));
    for (of_kind, limit) in [(&ports, MAX_ADDRESSES), (&lanes, MAX_LANE_ADDRESSES)] {
        if of_kind.len() > limit {
            return Err((
                format!("{} addresses of a kind are more than the {limit} a node may publish", of_kind.len()),
                "keep those that others can reach".to_owned(),
            ));
        }
    }
    items.iter().map(|item| advertised(item)).collect()
}

fn advertised(text: &str) -> Result<Advertised, Wrong> {
    let (address, judged) = match text.starts_with(LANE_SCHEME) {
        true => {
            let lane: LaneAddress = text.parse().map_err(|error: LaneAddressError| {
                (error.to_string(), format!("write for example {LANE_SCHEME}ingress.example:443"))
            })?;
            let literal = lane.literal();
            (Advertised::Lane(lane), literal)
        }
        false => {
            let port = host_port(text)?;
            (Advertised::Port(port), Some(port.or_port(1)))
        }
    };
    // Others would drop it, and name this node for it. Names are judged where they are resolved.
    if let Some(judged) = judged {
        Deny::default().check(judged).map_err(|why| {
            let fix = "write an address of this machine that others can reach".to_owned();
            (format!("nobody can dial {}: {why}", judged.ip()), fix)
        })?;
    }
    Ok(address)
}

fn operator(text: &str) -> Result<Operator, Wrong> {
    text.parse().map_err(|why| (why, "write for example alice, 1001 or %ops for a group".to_owned()))
}

fn host_port(text: &str) -> Result<HostPort, Wrong> {
    if let Ok(ip) = text.trim_matches(['[', ']']).parse() {
        return Ok(HostPort { ip, port: None });
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(HostPort { ip: address.ip(), port: Some(address.port()) }),
        _ => Err((
            format!("{text:?} is no IP address with an optional port"),
            "write for example 192.0.2.7:4677 or [2001:db8::7]:4677".to_owned(),
        )),
    }
}

fn networks(raw: &Raw) -> Result<Vec<Network>, Wrong> {
    let items = list(raw)?;
    if items.len() > MAX_NETWORKS {
        return Err((
            format!("{} networks are more than {MAX_NETWORKS}", items.len()),
            "write the wider networks they lie in".to_owned(),
        ));
    }
    let parsed = |item: &String| item.parse().map_err(|error: NetworkError| split(&error.to_string()));
    items.iter().map(parsed).collect()
}

fn upstreams(raw: &Raw) -> Result<Vec<SocketAddr>, Wrong> {
    let items = list(raw)?;
    if items.len() > MAX_UPSTREAMS {
        return Err((
            format!("{} upstream servers are more than {MAX_UPSTREAMS}", items.len()),
            "keep the best ones, best first".to_owned(),
        ));
    }
    let mut addresses = Vec::new();
    for item in items {
        let address = host_port(&item)?.or_port(53);
        // The error holds cause and fix in one sentence, for the start knows no faults.
        check_upstream(address).map_err(|error| split(&error.to_string()))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Splits a text into the cause and the remedy after its semicolon.
fn split(text: &str) -> Wrong {
    let (why, fix) = text.split_once("; ").unwrap_or((text, "correct the value"));
    (why.to_owned(), fix.to_owned())
}

/// A suffix of names of others: labels of letters, digits, hyphens and underscores.
fn suffix(text: &str) -> Result<String, Wrong> {
    let suffix = text.trim_matches('.').to_ascii_lowercase();
    match suffix.parse::<FqdnSuffix>() {
        Ok(_) => Ok(suffix),
        Err(error) => Err((format!("{text:?}: {error}"), "write for example corp.example".to_owned())),
    }
}

fn dns_zone(text: &str) -> Result<String, Wrong> {
    let fix = || "write a zone of your own, for example mesh.internal".to_owned();
    Zone::check_name(text).map_err(|error| match error {
        ZoneError::Reserved { name, why } => (format!("{name:?} cannot be a mesh zone: {why}"), fix()),
        ZoneError::Malformed { why, .. } => (why, fix()),
        error => (error.to_string(), fix()),
    })
}

fn slot(raw: &Raw) -> Result<SlotChoice, Wrong> {
    let text = match raw {
        Raw::Number(number) => number.to_string(),
        Raw::Text(_) | Raw::List(_) | Raw::Flag(_) | Raw::Pairs(_) => text(raw)?.to_owned(),
    };
    parsed(&text)
}

fn path(text: &str) -> Result<PathBuf, Wrong> {
    if text.is_empty() || text.contains('\0') {
        return Err(("the path is empty or holds a zero byte".to_owned(), "write a path".to_owned()));
    }
    Ok(PathBuf::from(text))
}

fn pool(text: &str) -> Result<Pool, Wrong> {
    text.parse()
        .map_err(|error: PoolError| (error.to_string(), "write for example 127.240.0.0/16".to_owned()))
}

/// A certificate's life: short ones are for tests, longer ones than the default for nobody.
fn lifetime(text: &str) -> Result<Duration, Wrong> {
    let fix = || "write from 5s to 365d, for example 72h".to_owned();
    let lifetime = duration::parse(text).map_err(|why| (why, fix()))?;
    let allowed = Duration::from_secs(5)..=Duration::from_secs(365 * 86_400);
    if allowed.contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err((format!("a certificate cannot last {text}"), fix()))
    }
}

/// How long a stop waits for flows.
fn drain_deadline(text: &str) -> Result<Duration, Wrong> {
    let fix = || "write from 0s to 1h, for example 20s".to_owned();
    let deadline = duration::parse(text).map_err(|why| (why, fix()))?;
    if deadline <= Duration::from_secs(3_600) {
        Ok(deadline)
    } else {
        Err((format!("a stop that waits {text} for flows is none"), fix()))
    }
}

fn word<T: Copy>(raw: &Raw, words: &[(&str, T)]) -> Result<T, Wrong> {
    let given = text(raw)?.to_ascii_lowercase();
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == given) {
        return Ok(*value);
    }
    let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    let fix = nearest(&given, all.iter().copied())
        .map_or_else(|| format!("write one of {}", all.join(", ")), |near| format!("write {near}"));
    Err((format!("{given:?} is none of {}", all.join(", ")), fix))
}

fn parsed<T>(text: &str) -> Result<T, Wrong>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    text.parse().map_err(|error: T::Err| (error.to_string(), "correct the value".to_owned()))
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}
