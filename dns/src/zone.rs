//! The mesh zone: its name, its pool of virtual addresses, the names it may build.
//!
//! Owns: which zone names are acceptable, the names of targets, the apex data. Must not know: what exists.
//! Driven by: configuration at start; `place` and `answer` at each question.

use std::net::Ipv4Addr;

use gossamer_wire::Label;
use hickory_proto::ProtoError;
use hickory_proto::rr::Name;
use thiserror::Error;

use crate::Target;

/// A mesh zone and the pool whose reverse names belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    origin: Name,
    pool: Ipv4Addr,
    prefix: u8,
}

/// Why a zone cannot be served. The operator's fault; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ZoneError {
    /// Not a domain name of letters, digits and hyphens.
    #[error("{name:?} is not a zone name: {why}")]
    Malformed {
        /// The name as configured.
        name: String,
        /// The broken rule.
        why: String,
    },
    /// The name belongs to others, and answering it would hurt this machine.
    #[error("the zone {name:?} cannot be a mesh zone: {why}; use for example \"mesh.internal\"")]
    Reserved {
        /// The name as configured.
        name: String,
        /// Who owns it.
        why: &'static str,
    },
    /// A zone and another one hold the same names.
    #[error("{name:?} lies in the zone {other:?} or holds it; keep one of the two")]
    Overlap {
        /// The name as configured.
        name: String,
        /// The other zone.
        other: String,
    },
    /// No custom names can be answered below it.
    #[error("{name:?} cannot be one of dns.fqdn_suffixes: {why}")]
    Suffix {
        /// The suffix as configured.
        name: String,
        /// The broken rule.
        why: String,
    },
    /// The name cannot stand for a service.
    #[error("{name:?} cannot be an alias: {why}")]
    Alias {
        /// The name as configured.
        name: String,
        /// The broken rule.
        why: String,
    },
    /// The pool is not a network of 1,024 to 16,777,216 addresses.
    #[error("{pool}/{prefix} is not a pool: the prefix is 8 to 22 and the bits after it are zero")]
    Pool {
        /// The pool as configured.
        pool: Ipv4Addr,
        /// Its prefix length.
        prefix: u8,
    },
}

impl Zone {
    /// Makes a zone of a name such as `mesh.internal` and a pool such as `127.240.0.0/16`.
    ///
    /// The name may end in a dot and is lowered.
    ///
    /// # Errors
    /// See [`ZoneError`].
    pub fn new(name: &str, pool: Ipv4Addr, prefix: u8) -> Result<Self, ZoneError> {
        let lower = Self::check_name(name)?;
        if !(8..=22).contains(&prefix) || u32::from(pool).trailing_zeros() < u32::from(32 - prefix) {
            return Err(ZoneError::Pool { pool, prefix });
        }

        let malformed = |error: ProtoError| malformed(name, error.to_string());
        let origin = Name::from_ascii(format!("{lower}.")).map_err(malformed)?;
        Ok(Self { origin, pool, prefix })
    }

    /// Checks the name of a zone. Returns it in lower case, without its last dot.
    ///
    /// # Errors
    /// Those of [`Self::new`] about names.
    pub fn check_name(name: &str) -> Result<String, ZoneError> {
        let lower = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if let Some(why) = reserved(&lower) {
            return Err(ZoneError::Reserved { name: name.to_owned(), why });
        }
        if lower.len() > MAX_ZONE_BYTES {
            let why = format!("it has {} bytes, the limit is {MAX_ZONE_BYTES}", lower.len());
            return Err(malformed(name, why));
        }
        for label in lower.split('.') {
            label.parse::<Label>().map_err(|error| malformed(name, error.to_string()))?;
        }
        Ok(lower)
    }

    /// Makes a zone of another name with the same pool.
    pub(crate) fn renamed(&self, name: &str) -> Result<Self, ZoneError> {
        Self::new(name, self.pool, self.prefix)
    }

    /// Returns the apex, lower case and fully qualified.
    pub fn origin(&self) -> &Name {
        &self.origin
    }

    /// Returns the address of the DNS server of this node, `<pool>.0.53`; the apex answers with it.
    pub fn server_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.pool) | 53)
    }

    /// Returns whether an address is one of the pool's.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.pool)) >> (32 - self.prefix) == 0
    }

    /// Returns how many octets the apex of a reverse zone of the pool has: for a /12 there are sixteen
    /// such zones of two octets, since reverse names are cut at whole octets only.
    pub(crate) fn reverse_octets(&self) -> usize {
        usize::from(self.prefix.div_ceil(8))
    }

    /// Returns the full name of a target, or `None` when it is longer than 255 bytes (RFC 1035 2.3.4).
    pub fn name_of(&self, target: &Target) -> Option<Name> {
        let (labels, direct) = match target {
            Target::Service { service, group: None, direct } => (vec![service.as_str()], *direct),
            Target::Service { service, group: Some(group), direct } => {
                (vec![service.as_str(), group.as_str()], *direct)
            }
            Target::Instance { service, group, instance, direct } => {
                (vec![instance.as_str(), service.as_str(), group.as_str()], *direct)
            }
            Target::Node(node) => (vec![node.as_str(), "node"], false),
        };
        let labels = labels.into_iter().chain(direct.then_some("direct")).map(str::as_bytes);
        Name::from_labels(labels.chain(self.origin.iter())).ok()
    }
}

/// Returns why a lower-case name cannot be answered for here, if it belongs to others.
pub(crate) fn reserved(name: &str) -> Option<&'static str> {
    let is_reserved =
        |(reserved, tree, _): &&(&str, bool, _)| name == *reserved || *tree && is_below(name, reserved);
    RESERVED.iter().find(is_reserved).map(|(.., why)| *why)
}

/// Returns whether a name lies below another one; it does not lie below itself.
pub(crate) fn is_below(name: &str, other: &str) -> bool {
    name.strip_suffix(other).is_some_and(|rest| rest.ends_with('.'))
}

fn malformed(name: &str, why: String) -> ZoneError {
    ZoneError::Malformed { name: name.to_owned(), why }
}

/// Longest zone name. Leaves room in 255 bytes for any instance name of ordinary length beneath it.
const MAX_ZONE_BYTES: usize = 63;

/// Names that others own, whether they own what lies beneath as well, and who they are.
const RESERVED: [(&str, bool, &str); 7] = [
    ("", false, "the root holds every name"),
    ("local", false, "it belongs to mDNS, multicast DNS (RFC 6762)"),
    ("internal", false, "it is shared by every private network; take a name beneath it"),
    ("cluster.local", true, "it belongs to Kubernetes"),
    ("localhost", true, "it is this machine everywhere (RFC 6761)"),
    ("onion", true, "it belongs to Tor (RFC 7686)"),
    ("arpa", true, "it holds the reverse names of all addresses"),
];

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Ipv4Addr = Ipv4Addr::new(127, 240, 0, 0);

    fn zone(name: &str) -> Result<Zone, ZoneError> {
        Zone::new(name, POOL, 16)
    }

    #[test]
    fn ordinary_names_are_zones_in_any_case_and_with_or_without_the_last_dot() {
        for name in ["mesh.internal", "Mesh.Internal.", "mesh", "clusterset.local", "a.b.example.com"] {
            let zone = zone(name).expect(name);
            assert_eq!(
                zone.origin().to_ascii(),
                format!("{}.", name.trim_end_matches('.').to_ascii_lowercase())
            );
        }
    }

    #[test]
    fn names_of_others_are_refused_with_the_owner_and_a_way_out() {
        for (name, owner) in [
            ("local", "multicast"),
            ("LOCAL.", "multicast"),
            ("internal", "private network"),
            ("cluster.local", "Kubernetes"),
            ("svc.cluster.local", "Kubernetes"),
            ("localhost", "this machine"),
            (".", "root"),
            ("", "root"),
            ("arpa", "reverse"),
            ("127.in-addr.arpa", "reverse"),
        ] {
            let error = zone(name).expect_err(name).to_string();
            assert!(error.contains(owner) && error.contains("mesh.internal"), "{name}: {error}");
        }
    }

    #[test]
    fn what_is_not_a_host_name_is_no_zone() {
        let long = ["a".repeat(40), "b".repeat(40)].join(".");
        for name in ["a..b", "-a.b", "a_b.c", "caf\u{e9}.x", &"a".repeat(64), &long] {
            assert!(matches!(zone(name), Err(ZoneError::Malformed { .. })), "{name}");
        }
    }

    #[test]
    fn a_pool_is_a_network_with_room() {
        for (pool, prefix) in [(POOL, 7), (POOL, 23), (POOL, 33), (POOL, 8), (Ipv4Addr::new(10, 0, 0, 1), 16)]
        {
            assert!(matches!(Zone::new("m.x", pool, prefix), Err(ZoneError::Pool { .. })), "{pool}/{prefix}");
        }
        assert!(Zone::new("m.x", Ipv4Addr::new(240, 80, 0, 0), 12).is_ok());
    }

    #[test]
    fn the_pool_contains_its_addresses_and_no_others() {
        let zone = Zone::new("m.x", Ipv4Addr::new(240, 80, 0, 0), 12).expect("valid");
        assert!(zone.contains(Ipv4Addr::new(240, 80, 0, 0)));
        assert!(zone.contains(Ipv4Addr::new(240, 95, 255, 255)));
        assert!(!zone.contains(Ipv4Addr::new(240, 96, 0, 0)));
        assert!(!zone.contains(Ipv4Addr::new(240, 79, 255, 255)));
        assert_eq!(zone.server_address(), Ipv4Addr::new(240, 80, 0, 53));
    }

    #[test]
    fn targets_have_the_names_of_the_grammar() {
        let zone = zone("mesh.internal").expect("valid");
        let service = || "orders".parse().expect("valid");
        let group = || "west".parse().expect("valid");
        let instance = || "db-1".parse().expect("valid");
        let cases = [
            (Target::Service { service: service(), group: None, direct: false }, "orders.mesh.internal."),
            (
                Target::Service { service: service(), group: Some(group()), direct: true },
                "orders.west.direct.mesh.internal.",
            ),
            (
                Target::Instance { service: service(), group: group(), instance: instance(), direct: false },
                "db-1.orders.west.mesh.internal.",
            ),
            (Target::Node("n1".parse().expect("valid")), "n1.node.mesh.internal."),
        ];
        for (target, name) in cases {
            assert_eq!(zone.name_of(&target).map(|name| name.to_ascii()).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_name_that_would_be_too_long_is_not_built() {
        let zone = zone(&"z".repeat(63)).expect("valid");
        let long = "a".repeat(63);
        let target = Target::Instance {
            service: long.parse().expect("valid"),
            group: long.parse().expect("valid"),
            instance: long.parse().expect("valid"),
            direct: false,
        };
        assert_eq!(zone.name_of(&target), None);
    }
}
