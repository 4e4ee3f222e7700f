//! What a host says of its resolver.
//!
//! Owns: the facts a plan is made of, and the reading of the files they stand in. Must not know: where facts come from.
//! Driven by: `cli::host::probe`, which fills them in; `plan`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// A host as its resolver sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `/etc/resolv.conf`.
    pub resolv_conf: ResolvConf,
    /// `/etc/nsswitch.conf` has systemd-resolved asked before DNS.
    pub asks_resolved: bool,
    /// Who listens on port 53 of the first name server, if that is an address of this host.
    pub stub: Option<Program>,
    /// The servers systemd-resolved knows of; `None` when it does not run or does not say.
    pub resolved: Option<ResolvedServers>,
    /// Patterns of the files which the resolver's own configuration includes, as `/etc/dnsmasq.d/*.conf`.
    pub includes: Vec<String>,
    /// What starts services here.
    pub services: Services,
    /// Docker is installed.
    pub docker: bool,
}

/// `/etc/resolv.conf` (resolv.conf(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// What it says; empty when there is none.
    pub text: String,
    /// It is a mount of its own, as in containers: it cannot be replaced.
    pub is_mount: bool,
}

/// A program that listens on port 53.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Its process.
    pub pid: i32,
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// Its command line, with the path it was started by.
    pub arguments: Vec<String>,
    /// Its unit of systemd.
    pub unit: Option<String>,
}

/// The servers that systemd-resolved asks, as `resolvectl dns` shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedServers {
    /// Those of the global scope.
    pub global: Vec<String>,
    /// Those of all links.
    pub links: Vec<String>,
}

/// What starts services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Services {
    /// systemd is the first process.
    Systemd,
    /// The scripts of `/etc/init.d`, by name.
    Scripts(BTreeSet<String>),
    /// Nothing that is known.
    #[default]
    Unknown,
}

/// Who writes `/etc/resolv.conf` again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// NetworkManager.
    NetworkManager,
    /// Docker, inside a container.
    Docker,
    /// Another program, by name.
    Other(&'static str),
}

impl ResolvConf {
    /// Returns the name servers in order; programs take the host's own address when there is none.
    pub fn nameservers(&self) -> Vec<IpAddr> {
        let value = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()?.parse().ok()
        };
        self.text.lines().filter_map(value).collect()
    }

    /// Returns the name server that is asked first.
    pub fn first(&self) -> IpAddr {
        self.nameservers().first().copied().unwrap_or_else(|| Ipv4Addr::LOCALHOST.into())
    }

    /// Returns whether the servers are asked in turns.
    pub fn rotates(&self) -> bool {
        let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut lines = self.text.lines().map(words);
        lines.any(|words| {
            words.first().is_some_and(|word| word == "options") && words.iter().any(|word| word == "rotate")
        })
    }

    /// Returns who says in a comment that the file is its own.
    pub fn manager(&self) -> Option<Manager> {
        const MANAGERS: [(&str, Manager); 6] = [
            ("networkmanager", Manager::NetworkManager),
            ("docker", Manager::Docker),
            ("resolvconf", Manager::Other("resolvconf")),
            ("dhcpcd", Manager::Other("dhcpcd")),
            ("dhclient", Manager::Other("dhclient")),
            ("connman", Manager::Other("connman")),
        ];
        let comments = self.text.lines().filter(|line| line.starts_with(['#', ';'])).map(str::to_lowercase);
        let comments: Vec<_> = comments.collect();
        let names = |word: &str| comments.iter().any(|comment| comment.contains(word));
        MANAGERS.into_iter().find(|(word, _)| names(word)).map(|(_, manager)| manager)
    }
}

impl Program {
    /// Returns the value of an option of its command line: `-C file`, `-Cfile`, `--conf-file=file` or `--conf-file file`.
    pub fn option(&self, short: &str, long: &str) -> Option<&str> {
        let mut arguments = self.arguments.iter().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == short || (!long.is_empty() && argument == long) {
                return arguments.next().map(String::as_str);
            }
            let long_value = (!long.is_empty()).then(|| argument.strip_prefix(long)).flatten();
            if let Some(value) = long_value.and_then(|rest| rest.strip_prefix('=')) {
                return Some(value);
            }
            if let Some(value) = argument.strip_prefix(short) {
                return Some(value.strip_prefix('=').unwrap_or(value));
            }
        }
        None
    }
}

/// Returns whether `/etc/nsswitch.conf` has systemd-resolved asked before DNS (nss-resolve(8)).
pub fn asks_resolved(nsswitch: &str) -> bool {
    let hosts = nsswitch.lines().find_map(|line| line.trim_start().strip_prefix("hosts:"));
    let services = hosts.unwrap_or_default().split_ascii_whitespace();
    services.take_while(|service| *service != "dns").any(|service| service == "resolve")
}

/// Reads what `resolvectl dns` prints: `Global: A B`, `Link 2 (eth0): C`.
pub fn resolved_servers(listing: &str) -> ResolvedServers {
    let mut servers = ResolvedServers::default();
    for line in listing.lines() {
        let (scope, rest) = line.split_once(": ").unwrap_or((line, ""));
        let list = if scope.starts_with("Global") { &mut servers.global } else { &mut servers.links };
        list.extend(rest.split_ascii_whitespace().map(str::to_owned));
    }
    servers
}

/// Reads the directories dnsmasq includes, as patterns: from `conf-dir` lines of its file, or the value of its option.
///
/// A filter `,*.conf` takes such files only, `,.bak` all but those (dnsmasq(8)).
pub fn dnsmasq_includes(file: &str, option: Option<&str>) -> Vec<String> {
    let lines =
        file.lines().filter_map(|line| line.trim().strip_prefix("conf-dir")?.trim_start().strip_prefix('='));
    lines.map(str::trim).chain(option).filter_map(dnsmasq_pattern).collect()
}

fn dnsmasq_pattern(value: &str) -> Option<String> {
    let mut parts = value.split(',').map(str::trim);
    let directory = parts.next().filter(|directory| directory.starts_with('/'))?.trim_end_matches('/');
    let filters: Vec<_> = parts.filter(|filter| !filter.is_empty()).collect();
    let (only, never): (Vec<&str>, Vec<&str>) =
        filters.into_iter().partition(|filter| filter.starts_with('*'));
    let taken = only.is_empty() || only.iter().any(|filter| OURS.ends_with(&filter[1..]));
    let refused = never.iter().any(|filter| OURS.ends_with(filter));
    (taken && !refused).then(|| format!("{directory}/*.conf"))
}

/// Reads the patterns of files that unbound includes from the top level of its configuration (unbound.conf(5)).
///
/// A plain `include:` counts when it is not indented: inside a clause ours would end that clause.
pub fn unbound_includes(file: &str) -> Vec<String> {
    let value = |line: &str| {
        let rest = line.strip_prefix("include-toplevel:").or_else(|| line.strip_prefix("include:"))?;
        Some(rest.split('#').next()?.trim().trim_matches('"').to_owned())
    };
    file.lines().filter_map(value).filter(|pattern| pattern.starts_with('/')).collect()
}

/// Returns where a file of ours is read, if one of the patterns takes it.
pub fn included(patterns: &[String]) -> Option<PathBuf> {
    let place = |pattern: &String| {
        let path = Path::new(pattern);
        let name = path.file_name()?.to_str()?;
        let takes =
            name == "*" || name == "*.*" || name.strip_prefix('*').is_some_and(|end| OURS.ends_with(end));
        takes.then(|| path.with_file_name(OURS))
    };
    patterns.iter().find_map(place)
}

/// How files of ours are called.
pub const OURS: &str = "gossamer.conf";
