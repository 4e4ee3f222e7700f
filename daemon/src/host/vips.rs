//! What the kernel of a host is told in dnat mode: one nft table, and local routes to the pools.
//!
//! Owns: the table's text, the names by which table and routes are known as ours, what a setup and an undo change. Must
//! not know: how `nft` and `ip` are run. Driven by: `cli::host::vips` (ADR 26).
//!
//! Table and routes carry a mark: the table a comment with the digest of its text, routes a protocol number. So what is
//! ours is known also where the record is gone, as in a container, and nothing of others is ever replaced or removed.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use gossamer_core::vip::{Family, Redirect};

use super::plan::Refusal;
use crate::clients::Network;

/// The routing protocol number of our routes (ip-route(8)); no routing daemon has it.
pub const ROUTE_PROTOCOL: &str = "147";
/// The priority of our nat chains: one before `dstnat`, which other programs have (nft(8)).
const BEFORE_DNAT: i32 = -101;
/// What the comment of our tables begins with.
const MARK: &str = "gossamer host setup ";

/// What is wanted of the kernel for one daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The table, of family inet.
    pub table: String,
    /// Its comment: our mark and the digest of what follows.
    pub comment: String,
    /// What `nft -f -` is given: replaces the table as a whole, or not at all.
    pub rules: String,
    /// Networks that are to be local.
    pub routes: Vec<String>,
}

/// What the kernel has at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// The comment of the table of our name, empty when it has none; `None` when there is no such table.
    pub comment: Option<String>,
    /// How many of its rules stand.
    pub rules: usize,
    /// Of the networks of the plan and of the record: those that have a local route, and whether it is ours.
    pub routes: Vec<(String, bool)>,
    /// Addresses of this host's interfaces, loopback excepted.
    pub addresses: Vec<IpAddr>,
}

/// The record of a setup, by slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The table.
    pub table: String,
    /// The networks that got a route.
    pub routes: Vec<String>,
}

/// What is done, in this order: a route without the guard of the table would let strangers in, so that the table comes
/// first and goes last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Routes that are removed: of another pool.
    pub routes_removed: Vec<String>,
    /// Whether the table is loaded.
    pub loads: bool,
    /// Routes that are added.
    pub routes_added: Vec<String>,
    /// What people should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// Makes the plan. `clients` are `vip.clients`.
    pub fn new(redirect: &Redirect, clients: &[Network], has_ipv6: bool) -> Self {
        let table = table_of(redirect.slot());
        let body = body(redirect, clients, has_ipv6);
        let comment = format!("{MARK}{}", digest(&body));
        let rules = format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n\tcomment \"{comment}\"\n{body}}}\n"
        );
        let mut routes = Vec::new();
        if !redirect.pool().network().0.is_loopback() {
            routes.push(redirect.pool().to_string());
        }
        if has_ipv6 {
            let (network, prefix) = redirect.network6();
            routes.push(format!("{network}/{prefix}"));
        }
        Self { table, comment, rules, routes }
    }

    /// Decides what a setup does, and what its record is.
    ///
    /// # Errors
    /// The operator's fault, or that of another program; nothing was changed.
    pub fn setup(
        &self,
        redirect: &Redirect,
        earlier: Option<&Record>,
        present: &Present,
    ) -> Result<(Changes, Record), Refusal> {
        if let Some(taken) = present.addresses.iter().find(|ip| redirect.contains(**ip)) {
            return Err(Refusal {
                why: format!("{taken}, an address of this machine, lies in the pool of virtual addresses"),
                fix: "choose another vip.pool, the same on all nodes that share a resolver".to_owned(),
            });
        }
        if present.comment.as_ref().is_some_and(|comment| !comment.starts_with(MARK)) {
            return Err(Refusal {
                why: format!("there is a table inet {} that no gossamer made", self.table),
                fix: format!(
                    "look at it with `nft list table inet {0}`; remove it with `nft delete table inet {0}`",
                    self.table
                ),
            });
        }
        let standing = |network: &String| {
            present.routes.iter().find(|(known, _)| known == network).map(|(_, ours)| *ours)
        };
        let known = earlier.map_or(&[][..], |record| &record.routes);
        let (mut changes, mut routes) = (Changes::default(), Vec::new());
        for network in &self.routes {
            match standing(network) {
                Some(true) => routes.push(network.clone()),
                Some(false) => changes
                    .notes
                    .push(format!("there was a local route to {network} already; undo leaves it")),
                None => {
                    changes.routes_added.push(network.clone());
                    routes.push(network.clone());
                }
            }
        }
        let is_stale = |network: &&String| !self.routes.contains(network) && standing(network) == Some(true);
        changes.routes_removed = known.iter().filter(is_stale).cloned().collect();
        // The comment outlives `nft flush table`.
        changes.loads =
            present.comment.as_ref() != Some(&self.comment) || present.rules != rules_in(&self.rules);
        Ok((changes, Record { table: self.table.clone(), routes }))
    }

    /// Returns what a setup of this plan leaves, for an undo without a record.
    pub fn record(&self) -> Record {
        Record { table: self.table.clone(), routes: self.routes.clone() }
    }
}

impl Changes {
    /// Returns whether there is nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.routes_removed.is_empty() && self.routes_added.is_empty() && !self.loads
    }

    /// Returns the commands, as they would be typed.
    pub fn commands(&self) -> Vec<String> {
        let removed = self.routes_removed.iter().map(|network| route_command("del", network));
        let added = self.routes_added.iter().map(|network| route_command("add", network));
        let line = |words: Vec<String>| words.join(" ");
        let load = self.loads.then(|| "nft -f -".to_owned());
        removed.map(line).chain(load).chain(added.map(line)).collect()
    }
}

impl Record {
    /// Returns the commands that undo it: what is there and has our mark.
    pub fn undo(&self, present: &Present) -> Vec<Vec<String>> {
        let is_ours = present.comment.as_ref().is_some_and(|comment| comment.starts_with(MARK));
        let delete = ["nft", "delete", "table", "inet", &self.table].map(str::to_owned).to_vec();
        let routes =
            self.routes.iter().filter(|network| present.routes.contains(&((*network).clone(), true)));
        routes.map(|network| route_command("del", network)).chain(is_ours.then_some(delete)).collect()
    }

    /// Returns whether a setup can have left it: another one is not believed.
    pub fn is_plausible(&self, slot: u8) -> bool {
        let is_network = |text: &String| text.parse::<Network>().is_ok();
        self.table == table_of(slot) && self.routes.iter().all(is_network)
    }
}

/// Returns the words of `ip` that add or remove a route.
pub fn route_command(verb: &str, network: &str) -> Vec<String> {
    let family = if network.contains(':') { "-6" } else { "-4" };
    ["ip", family, "route", verb, "local", network, "dev", "lo", "proto", ROUTE_PROTOCOL]
        .map(str::to_owned)
        .to_vec()
}

/// Returns the comment in what `nft list table` prints; empty when there is none.
pub fn comment_in(listing: &str) -> String {
    let comment = |line: &str| line.trim().strip_prefix("comment \"")?.strip_suffix('"').map(str::to_owned);
    listing.lines().take_while(|line| !line.contains("chain")).find_map(comment).unwrap_or_default()
}

/// Counts our rules in what `nft list table` prints, or in what `nft -f` is given.
pub fn rules_in(text: &str) -> usize {
    let is_rule = |line: &&str| {
        line.contains(" dnat ") || [" drop", " accept"].iter().any(|verdict| line.ends_with(verdict))
    };
    text.lines().map(str::trim_end).filter(is_rule).count()
}

/// Returns whether `nft list table` failed since there is no such table: what it says then, in the C locale.
pub fn is_absence(said: &str) -> bool {
    said.contains("No such file or directory")
}

/// Reads what `ip route show table local exact NETWORK` prints: whether there is a route, and whether it is ours.
pub fn route_in(listing: &str) -> Option<bool> {
    let is_local = |line: &&str| line.starts_with("local ");
    let line = listing.lines().find(is_local)?;
    Some(line.split_ascii_whitespace().skip_while(|word| *word != "proto").nth(1) == Some(ROUTE_PROTOCOL))
}

fn table_of(slot: u8) -> String {
    if slot == 0 { "gossamer".to_owned() } else { format!("gossamer_{slot}") }
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).fold(String::new(), |mut digest, byte| {
        let _ = write!(digest, "{byte:02x}");
        digest
    })
}

/// The chains. Connections of strangers end before anything else sees them; those of clients are sent to the listener,
/// but not those to the first 256 addresses, where DNS and the listener itself are. Theirs is the priority before that of
/// DNAT: Docker and kube-proxy redirect ports of whatever is local, which the pool is, and of equals the one that was
/// loaded last wins.
fn body(redirect: &Redirect, clients: &[Network], has_ipv6: bool) -> String {
    let mut families =
        vec![("ip", Family::V4, redirect.pool().to_string(), format!("{}/24", redirect.pool().network().0))];
    if has_ipv6 {
        let (network, prefix) = redirect.network6();
        families.push(("ip6", Family::V6, format!("{network}/{prefix}"), format!("{network}/120")));
    }
    let (mut guard, mut redirects) = (String::new(), String::new());
    for (word, family, pool, reserved) in families {
        for client in clients.iter().filter(|client| client.is_ipv4() == (family == Family::V4)) {
            let _ = writeln!(guard, "\t\t{word} saddr {client} {word} daddr {pool} accept");
        }
        let _ = writeln!(guard, "\t\t{word} daddr {pool} drop");
        let _ = writeln!(
            redirects,
            "\t\t{word} daddr {pool} {word} daddr != {reserved} meta l4proto tcp dnat {word} to {}",
            redirect.target(family)
        );
    }
    format!(
        "\tchain guard {{\n\t\ttype filter hook prerouting priority raw; policy accept;\n\t\tiif \"lo\" accept\n{guard}\t}}\n\
         \tchain incoming {{\n\t\ttype nat hook prerouting priority {BEFORE_DNAT}; policy accept;\n{redirects}\t}}\n\
         \tchain outgoing {{\n\t\ttype nat hook output priority {BEFORE_DNAT}; policy accept;\n{redirects}\t}}\n"
    )
}

#[cfg(test)]
mod tests;
