//! The keys, and how environment and flags name them.
//!
//! Owns: the list of keys. Must not know: what values mean. Driven by: `config`.

use super::{Flags, Host};

/// Every key of the configuration, sorted. Each is also a variable: `dns.zone` is `GOSSAMER_DNS_ZONE`.
pub const KEYS: [&str; 29] = [
    "advertise",
    "alias",
    "api.operators",
    "dns.address",
    "dns.clusterset",
    "dns.fqdn_suffixes",
    "dns.rebind_allow",
    "dns.rebind_protection",
    "dns.upstream",
    "dns.zone",
    "dns.zones",
    "drain.deadline",
    "import",
    "listen",
    "log.format",
    "log.level",
    "node.region",
    "node.zone",
    "policy.audit",
    "policy.default",
    "route",
    "slot",
    "socket",
    "state_dir",
    "trust.issuer_lifetime",
    "trust.leaf_lifetime",
    "vip.clients",
    "vip.mode",
    "vip.pool",
];

/// A value as a source holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    Text(String),
    List(Vec<String>),
    Number(i64),
    Flag(bool),
    /// Of a table whose keys are the operator's.
    Pairs(Vec<(String, String)>),
}

/// A value with its key and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) key: &'static str,
    pub(super) raw: Raw,
    pub(super) place: String,
}

pub(super) fn from_environment(host: &Host) -> Vec<Given> {
    let given = |key: &'static str| {
        let place = variable_of(key);
        let raw = Raw::Text(host.variable(&place)?.to_owned());
        Some(Given { key, raw, place })
    };
    KEYS.into_iter().filter_map(given).collect()
}

pub(super) fn from_flags(flags: &Flags) -> Vec<Given> {
    let given = |(key, text): &(&'static str, String)| Given {
        key,
        raw: Raw::Text(text.clone()),
        place: flag_of(key),
    };
    flags.keys.iter().map(given).collect()
}

fn variable_of(key: &str) -> String {
    format!("GOSSAMER_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// Returns the flag of a key: `node.zone` is `--zone` on the command line, `dns.address` is `--dns`, `state_dir` is `--state-dir`.
pub fn flag_of(key: &str) -> String {
    format!("--{}", key.trim_start_matches("node.").trim_end_matches(".address").replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_one_name_in_the_environment_and_on_the_command_line() {
        assert_eq!(variable_of("dns.zone"), "GOSSAMER_DNS_ZONE");
        assert_eq!(variable_of("state_dir"), "GOSSAMER_STATE_DIR");
        assert_eq!(flag_of("state_dir"), "--state-dir");
        assert_eq!(flag_of("node.zone"), "--zone");
        assert!(KEYS.is_sorted());
    }
}
