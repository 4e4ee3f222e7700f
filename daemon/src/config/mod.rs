//! Settings: `gossamer.toml`, `GOSSAMER_*` and flags become one checked value.
//!
//! Owns: the keys, their defaults and their order of precedence (flags, environment, file, flags of an earlier
//! `init` or `join`, defaults).
//! Must not know: sockets, tasks, what a setting does. Driven by: `cli`, before anything starts.
//!
//! Every fault is collected and all are reported together, each with its place and its remedy.

mod fault;
mod file;
mod host;
mod keys;
mod names;
mod remembered;
mod routes;
mod slot;
mod values;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gossamer_core::access::Policy;
use gossamer_core::catalog::Imports;
use gossamer_core::reach::Deny;
use gossamer_core::select::Routes;
use gossamer_core::vip::{Mode, Pool, Redirect};
use gossamer_wire::{Address, FqdnSuffix, RegionName, ZoneName};

pub use fault::{ConfigError, Fault, nearest};
pub use host::Host;
pub use keys::{KEYS, flag_of};
pub use names::{Alias, AliasTarget, target_of};
pub use remembered::{REMEMBERED_FILE, Remembered, remember};
pub use slot::{Slot, SlotChoice};
pub use values::{LogFormat, Operator};

use values::Values;

use crate::clients::Network;
use crate::duration::words;
use crate::identity::Lifetimes;

/// Longest path of a unix socket, bytes: `sun_path` holds 108 with its end mark (unix(7)).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// UDP port of mesh traffic of slot 0; slot N adds 10 N.
pub const MESH_PORT: u16 = 4677;

/// How long a stop waits for flows unless told otherwise.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

/// What the command line says; text as typed. `None` where a flag is absent.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// The other flags, by the key they stand for, for example `("listen", "0.0.0.0:4677")`.
    pub keys: Vec<(&'static str, String)>,
}

/// The merged sources, before a slot is chosen. Always valid.
#[derive(Clone, Debug)]
pub struct Config {
    values: Values,
    sources: BTreeMap<&'static str, String>,
    /// What earlier starts were told, by state directory.
    remembered: BTreeMap<PathBuf, (Values, BTreeMap<&'static str, String>)>,
    host: Host,
    file: PathBuf,
    flags: Flags,
}

/// What the daemon runs with; what of it follows the file while it runs is said where the daemon is wired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which of the ten daemons of a machine this is.
    pub slot: Slot,
    /// Where mesh traffic arrives. Default `[::]`, or `0.0.0.0` without IPv6, port 4677 + 10 x slot.
    pub listen: SocketAddr,
    /// Addresses to publish beside those of the interfaces. At most 8.
    pub advertise: Vec<Address>,
    /// Who may give orders beside root and the daemon's own user. Default nobody.
    pub operators: Vec<Operator>,
    /// Services of other groups that stand behind the short name here. Default none.
    pub import: Imports,
    /// Who may call what registrations of this node say nothing about. Default its group, without audit.
    pub policy: Policy,
    /// The small failure domain of this node.
    pub zone: Option<ZoneName>,
    /// The large failure domain of this node.
    pub region: Option<RegionName>,
    /// The mesh zone, lower case, without a final dot. Default `mesh.internal`.
    pub dns_zone: String,
    /// Further mesh zones with the same names. Default none.
    pub dns_zones: Vec<String>,
    /// Suffixes below which custom names of services are answered here. Default none.
    pub fqdn_suffixes: Vec<FqdnSuffix>,
    /// Names that stand for services here. Default none.
    pub aliases: Vec<Alias>,
    /// Whether the names of the Kubernetes multi-cluster services API are answered. Default no.
    pub clusterset: bool,
    /// Where DNS is answered; `None`: `<pool>.0.53`, port 53, else 4653.
    pub dns_address: Option<SocketAddr>,
    /// Whom names outside of the mesh are asked of, best first. Default nobody: they are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Whether names outside of the mesh may have no private addresses. Default no.
    pub rebind_protection: bool,
    /// The suffixes for which that does not count, lower case. Default none.
    pub rebind_allow: Vec<String>,
    /// How long a stop waits for flows to end, 0 s to 1 h; then they are reset. Default 20 s, which leaves time to leave
    /// within the 30 s of a container's stop.
    pub drain_deadline: Duration,
    /// What this node wishes about the instances of services. Default nothing.
    pub routes: Routes,
    /// Who may use DNS and virtual addresses beside this host. Default nobody.
    pub vip_clients: Vec<Network>,
    /// How connections to virtual addresses reach this daemon. Default `bind`.
    pub vip_mode: Mode,
    /// The pool of virtual addresses. Default 127.(240 + slot).0.0/16.
    pub vip_pool: Pool,
    /// Most detailed log level that is written. Default `info`.
    pub log_level: tracing::Level,
    /// How log lines look. Default `text`.
    pub log_format: LogFormat,
    /// How long certificates last that are made here. Default 30 days for nodes while there is one issuer and 3 days from
    /// two on, a year for issuers.
    pub lifetimes: Lifetimes,
    /// The local API's socket.
    pub socket: PathBuf,
    /// The state directory.
    pub state_dir: PathBuf,
}

impl Config {
    /// Reads and merges all sources.
    ///
    /// # Errors
    /// The operator's fault: every fault of every source, also of values that a stronger source replaces.
    pub fn load(flags: &Flags, host: &Host) -> Result<Self, ConfigError> {
        let mut faults = Vec::new();
        let mut values = Values::default();
        let mut sources = BTreeMap::new();
        let path = config_file(flags, host);
        for given in file::read(&path, config_is_chosen(flags, host), &mut faults)
            .into_iter()
            .chain(keys::from_environment(host))
            .chain(keys::from_flags(flags))
        {
            match values.assign(given.key, &given.raw) {
                Ok(()) => drop(sources.insert(given.key, given.place)),
                Err((why, fix)) => faults.push(Fault { place: given.place, why, fix }),
            }
        }
        let remembered = BTreeMap::new();
        let mut config =
            Self { values, sources, remembered, host: host.clone(), file: path, flags: flags.clone() };
        config.check_paths(&mut faults);
        config.read_remembered(&mut faults);
        if faults.is_empty() {
            config.check_names(&mut faults);
        }
        if faults.is_empty() { Ok(config) } else { Err(ConfigError { faults }) }
    }

    /// Forgets the token of the environment, which only a start needs.
    #[must_use]
    pub fn without_token(mut self) -> Self {
        self.host.variables.remove("GOSSAMER_TOKEN");
        self
    }

    /// Reads all sources once more: the same flags and environment, the file as it is.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn again(&self) -> Result<Self, ConfigError> {
        Self::load(&self.flags, &self.host)
    }

    /// Returns which slot was asked for.
    pub const fn slot(&self) -> SlotChoice {
        match self.values.slot {
            Some(slot) => slot,
            None => SlotChoice::Fixed(Slot::FIRST),
        }
    }

    /// Returns the configuration file, whether or not it exists.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the environment and file system facts the settings were made with.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Fills in what no source gave, for one slot.
    pub fn settings(&self, slot: Slot) -> Settings {
        let state_dir = self.state_dir(slot).unwrap_or_default();
        let values = self.remembered.get(&state_dir).map_or(&self.values, |(values, _)| values);
        let port = MESH_PORT + 10 * u16::from(slot.number());
        let any: IpAddr =
            if self.host.has_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let listen = values.listen.map_or_else(|| SocketAddr::new(any, port), |listen| listen.or_port(port));
        Settings {
            slot,
            listen,
            advertise: values.advertise.iter().map(|address| address.or_port(listen.port())).collect(),
            operators: values.operators.clone(),
            import: values.import.clone(),
            policy: Policy { base: values.policy_base, audit: values.policy_audit },
            zone: values.zone.clone(),
            region: values.region.clone(),
            dns_zone: values.dns_zone.clone().unwrap_or_else(|| "mesh.internal".to_owned()),
            dns_zones: values.dns_zones.clone(),
            fqdn_suffixes: values.fqdn_suffixes.clone(),
            aliases: values.aliases.clone(),
            clusterset: values.clusterset.unwrap_or(false),
            dns_address: values.dns_address.map(|address| address.or_port(53)),
            upstreams: values.upstreams.clone(),
            rebind_protection: values.rebind_protection,
            rebind_allow: values.rebind_allow.clone(),
            drain_deadline: values.drain_deadline.unwrap_or(DRAIN_DEADLINE),
            routes: values.routes.clone(),
            vip_clients: values.vip_clients.clone(),
            vip_mode: values.vip_mode.unwrap_or_default(),
            vip_pool: values.vip_pool.unwrap_or_else(|| Pool::of_slot(slot.number())),
            log_level: values.log_level.unwrap_or(tracing::Level::INFO),
            log_format: values.log_format.unwrap_or(LogFormat::Text),
            lifetimes: Lifetimes {
                leaf: values.leaf_lifetime,
                issuer: values.issuer_lifetime.unwrap_or_else(|| Lifetimes::default().issuer),
            },
            socket: self.socket(slot, &state_dir),
            state_dir,
        }
    }

    /// Returns where the value of a key came from in a slot: a place as in faults, or `default`.
    pub fn source(&self, key: &str, slot: Slot) -> &str {
        let dir = self.state_dir(slot).unwrap_or_default();
        let sources = self.remembered.get(&dir).map_or(&self.sources, |(_, sources)| sources);
        sources.get(key).map_or("default", String::as_str)
    }

    /// Reads what earlier starts were told, for each slot that may be meant; other sources come before it.
    fn read_remembered(&mut self, faults: &mut Vec<Fault>) {
        let slots: Vec<Slot> = match self.slot() {
            SlotChoice::Fixed(slot) => vec![slot],
            SlotChoice::Auto => Slot::all().collect(),
        };
        let dirs: Vec<_> = slots.into_iter().filter_map(|slot| self.state_dir(slot)).collect();
        for dir in dirs {
            let (mut values, mut sources) = (self.values.clone(), self.sources.clone());
            for given in remembered::read(&dir, faults) {
                if sources.contains_key(given.key) {
                    continue;
                }
                match values.assign(given.key, &given.raw) {
                    Ok(()) => drop(sources.insert(given.key, given.place)),
                    Err((why, fix)) => faults.push(Fault { place: given.place, why, fix }),
                }
            }
            self.remembered.insert(dir, (values, sources));
        }
    }

    fn state_dir(&self, slot: Slot) -> Option<PathBuf> {
        if let Some(dir) = &self.values.state_dir {
            return Some(dir.clone());
        }
        let base = self.host.state_home()?;
        Some(base.join(slot.suffixed("gossamer")))
    }

    fn socket(&self, slot: Slot, state_dir: &Path) -> PathBuf {
        if let Some(socket) = &self.values.socket {
            return socket.clone();
        }
        let name = format!("{}.sock", slot.suffixed("gossamer"));
        self.host.runtime_dir().unwrap_or_else(|| state_dir.to_owned()).join(name)
    }

    /// Checks that all that is answered can stand beside each other.
    fn check_names(&self, faults: &mut Vec<Fault>) {
        if let Err((key, error)) = self.settings(Slot::FIRST).zones() {
            faults.push(Fault {
                place: self.sources.get(key).cloned().unwrap_or_else(|| key.to_owned()),
                why: error.to_string(),
                fix: "correct or remove it".to_owned(),
            });
        }
    }

    /// Checks what can only be known once all sources are merged.
    fn check_paths(&self, faults: &mut Vec<Fault>) {
        let Some(state_dir) = self.state_dir(Slot::LAST) else {
            faults.push(Fault {
                place: "state_dir".to_owned(),
                why: "there is no default, since neither XDG_STATE_HOME nor HOME is set".to_owned(),
                fix: "pass --state-dir DIR".to_owned(),
            });
            return;
        };
        let socket = self.socket(Slot::LAST, &state_dir);
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH_BYTES {
            faults.push(Fault {
                place: self.sources.get("socket").cloned().unwrap_or_else(|| "socket".to_owned()),
                why: format!(
                    "{} is {length} bytes long, a unix socket path has at most {MAX_SOCKET_PATH_BYTES}",
                    socket.display()
                ),
                fix: "pass a shorter --socket PATH".to_owned(),
            });
        }
    }
}

impl Settings {
    /// Returns where DNS is to be answered, best first: the chosen address, or port 53 and then 4653.
    pub fn dns_candidates(&self) -> Vec<SocketAddr> {
        if let Some(address) = self.dns_address {
            return vec![address];
        }
        let (base, _) = self.vip_pool.network();
        let host = Ipv4Addr::from_bits(base.to_bits() + 53);
        [53, 4653].into_iter().map(|port| SocketAddr::new(host.into(), port)).collect()
    }

    /// Returns the addresses of dnat mode, in whatever mode the daemon is.
    pub const fn redirect(&self) -> Redirect {
        Redirect::new(self.vip_pool, self.slot.number())
    }

    /// Returns the addresses that this daemon never dials, whoever names them.
    pub fn never_dialled(&self) -> Deny {
        Deny::of_pools(self.vip_pool, self.redirect().network6().0)
    }

    /// Returns every key with its value as the file would hold it.
    pub fn entries(&self) -> Vec<(&'static str, String)> {
        let quote = |text: &dyn std::fmt::Display| format!("\"{text}\"");
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let option = |value: Option<String>| value.unwrap_or_else(|| "\"\"".to_owned());
        let alias = |alias: &Alias| format!("\"{}\" = \"{}\"", alias.name, alias.target);
        let aliases: Vec<_> = self.aliases.iter().map(alias).collect();
        let dns = self.dns_candidates().first().map(|address| quote(address));
        vec![
            ("advertise", list(self.advertise.iter().map(|address| quote(address)).collect())),
            (
                "alias",
                if aliases.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", aliases.join(", ")) },
            ),
            ("api.operators", list(self.operators.iter().map(|operator| quote(operator)).collect())),
            ("dns.address", option(dns)),
            ("dns.clusterset", self.clusterset.to_string()),
            ("dns.fqdn_suffixes", list(self.fqdn_suffixes.iter().map(|suffix| quote(suffix)).collect())),
            ("dns.rebind_allow", list(self.rebind_allow.iter().map(|suffix| quote(suffix)).collect())),
            ("dns.rebind_protection", self.rebind_protection.to_string()),
            ("dns.upstream", list(self.upstreams.iter().map(|address| quote(address)).collect())),
            ("dns.zone", quote(&self.dns_zone)),
            ("dns.zones", list(self.dns_zones.iter().map(|zone| quote(zone)).collect())),
            ("drain.deadline", quote(&words(self.drain_deadline))),
            ("import", list(self.import.0.iter().map(|import| quote(import)).collect())),
            ("listen", quote(&self.listen)),
            ("log.format", quote(&self.log_format)),
            ("log.level", quote(&self.log_level.to_string().to_lowercase())),
            ("node.region", option(self.region.as_ref().map(|region| quote(region)))),
            ("node.zone", option(self.zone.as_ref().map(|zone| quote(zone)))),
            ("policy.audit", self.policy.audit.to_string()),
            ("policy.default", quote(&self.policy.base.word())),
            ("route", routes::words(&self.routes)),
            ("slot", self.slot.number().to_string()),
            ("socket", quote(&self.socket.display())),
            ("state_dir", quote(&self.state_dir.display())),
            ("trust.issuer_lifetime", quote(&words(self.lifetimes.issuer))),
            ("trust.leaf_lifetime", option(self.lifetimes.leaf.map(|leaf| quote(&words(leaf))))),
            ("vip.clients", list(self.vip_clients.iter().map(|network| quote(network)).collect())),
            ("vip.mode", quote(&self.vip_mode)),
            ("vip.pool", quote(&self.vip_pool)),
        ]
    }
}

fn config_is_chosen(flags: &Flags, host: &Host) -> bool {
    flags.config.is_some() || host.variable("GOSSAMER_CONFIG").is_some()
}

fn config_file(flags: &Flags, host: &Host) -> PathBuf {
    let chosen = flags.config.clone().or_else(|| host.variable("GOSSAMER_CONFIG").map(PathBuf::from));
    chosen.unwrap_or_else(|| host.config_home().join("gossamer.toml"))
}

#[cfg(test)]
mod tests;
