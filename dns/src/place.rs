//! Places: what a queried name may stand for, by its grammar alone.
//!
//! Owns: the grammar of design section 7, forward and reverse. Must not know: what exists.
//! Driven by: `answer`, once per question.

use std::net::Ipv4Addr;

use gossamer_wire::{PortName, Transport};
use hickory_proto::rr::Name;

use crate::{Target, Zone};

/// A name inside one of our zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The apex of the zone that holds the name: the mesh zone or a reverse zone of the pool.
    pub(crate) apex: Name,
    /// What the name may be.
    pub(crate) spot: Spot,
}

/// What a name may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    /// No such name can exist.
    Absent,
    /// The apex itself.
    Apex,
    /// A word of the grammar that always exists and holds nothing.
    Branch,
    /// A service, instance or node.
    Named(Target),
    /// `_<tcp|udp>.<target>`.
    Ports(Target, Transport),
    /// `_<port>._<tcp|udp>.<target>`.
    Port(Target, Transport, PortName),
    /// The reverse name of a pool address.
    Pointer(Ipv4Addr),
}

impl Zone {
    /// Finds what a name may stand for; `None` when it is in none of our zones. Case is ignored.
    pub(crate) fn locate(&self, name: &Name) -> Option<Place> {
        // Bytes that are not UTF-8 become a character that no name may have.
        let labels: Vec<_> =
            name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();

        let depth = labels.len().checked_sub(self.origin().iter().count());
        if let Some((below, suffix)) = depth.and_then(|depth| labels.split_at_checked(depth))
            && suffix.iter().map(|label| label.as_bytes()).eq(self.origin().iter())
        {
            return Some(Place { apex: self.origin().clone(), spot: forward(below) });
        }
        match labels.as_slice() {
            [below @ .., "in-addr", "arpa"] => self.reverse(below),
            _ => None,
        }
    }

    fn reverse(&self, below: &[&str]) -> Option<Place> {
        let below: Vec<_> = below.iter().rev().copied().collect();
        let (cut, rest) = below.split_at_checked(self.reverse_octets())?;
        let octets: Vec<_> = cut.iter().map(|text| octet(text)).collect::<Option<_>>()?;
        if !self.contains(address(&octets)?) {
            return None;
        }

        let labels = cut.iter().rev().copied().chain(["in-addr", "arpa"]);
        let apex = Name::from_labels(labels.map(str::as_bytes)).ok()?;
        let rest: Option<Vec<_>> = rest.iter().map(|text| octet(text)).collect();
        let spot = match rest.map(|rest| [octets, rest].concat()) {
            Some(octets) if octets.len() == cut.len() => Spot::Apex,
            Some(octets) if octets.len() < 4 => Spot::Branch,
            Some(octets) if octets.len() == 4 => address(&octets).map_or(Spot::Absent, Spot::Pointer),
            Some(_) | None => Spot::Absent,
        };
        Some(Place { apex, spot })
    }
}

fn forward(labels: &[&str]) -> Spot {
    match labels {
        [] => Spot::Apex,
        ["node" | "direct"] => Spot::Branch,
        [node, "node"] => node.parse().map_or(Spot::Absent, |node| Spot::Named(Target::Node(node))),
        [.., "node"] => Spot::Absent,
        [first, rest @ ..] if first.starts_with('_') => port(first, rest).unwrap_or(Spot::Absent),
        _ => target(labels).map_or(Spot::Absent, Spot::Named),
    }
}

/// Reads `_tcp.<target>` and `_<port>._tcp.<target>` (RFC 2782).
fn port(first: &str, rest: &[&str]) -> Option<Spot> {
    if let Some(transport) = transport(first) {
        return target(rest).map(|target| Spot::Ports(target, transport));
    }
    let (second, rest) = rest.split_first()?;
    let name = first.strip_prefix('_')?.parse().ok()?;
    Some(Spot::Port(target(rest)?, transport(second)?, name))
}

fn transport(label: &str) -> Option<Transport> {
    match label {
        "_tcp" => Some(Transport::Tcp),
        "_udp" => Some(Transport::Udp),
        _ => None,
    }
}

fn target(labels: &[&str]) -> Option<Target> {
    let (labels, direct) = match labels {
        [labels @ .., "direct"] => (labels, true),
        _ => (labels, false),
    };
    match labels {
        [service] => Some(Target::Service { service: service.parse().ok()?, group: None, direct }),
        [service, group] => {
            Some(Target::Service { service: service.parse().ok()?, group: Some(group.parse().ok()?), direct })
        }
        [instance, service, group] => Some(Target::Instance {
            service: service.parse().ok()?,
            group: group.parse().ok()?,
            instance: instance.parse().ok()?,
            direct,
        }),
        _ => None,
    }
}

/// Reads an octet as `in-addr.arpa` writes it: no leading zeros.
fn octet(text: &str) -> Option<u8> {
    text.parse().ok().filter(|octet: &u8| octet.to_string() == text)
}

/// Fills up to four leading octets with zeros.
fn address(octets: &[u8]) -> Option<Ipv4Addr> {
    let mut bytes = [0; 4];
    bytes.get_mut(..octets.len())?.copy_from_slice(octets);
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Zone {
        Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16).expect("valid")
    }

    fn spot(name: &str) -> Option<Spot> {
        zone().locate(&Name::from_ascii(name).expect(name)).map(|place| place.spot)
    }

    fn named(name: &str) -> Spot {
        spot(&format!("{name}.mesh.internal.")).expect("in the zone")
    }

    #[test]
    fn names_of_others_are_in_no_place() {
        for name in [
            ".",
            "internal.",
            "example.com.",
            "xmesh.internal.",
            "mesh.internal.example.",
            "local.",
            "arpa.",
            "in-addr.arpa.",
            "127.in-addr.arpa.",
            "1.0.0.127.in-addr.arpa.",
            "x.127.in-addr.arpa.",
            "1.0.241.127.in-addr.arpa.",
            "240.0127.in-addr.arpa.",
            "1.ip6.arpa.",
        ] {
            assert_eq!(spot(name), None, "{name}");
        }
    }

    #[test]
    fn words_of_the_grammar_are_branches() {
        assert_eq!(spot("mesh.internal."), Some(Spot::Apex));
        assert_eq!(named("node"), Spot::Branch);
        assert_eq!(named("direct"), Spot::Branch);
    }

    #[test]
    fn one_to_three_labels_are_service_group_and_instance() {
        let service = || "orders".parse().expect("valid");
        let group = || "west".parse().expect("valid");
        for (suffix, direct) in [("", false), (".direct", true)] {
            assert_eq!(
                named(&format!("orders{suffix}")),
                Spot::Named(Target::Service { service: service(), group: None, direct })
            );
            assert_eq!(
                named(&format!("orders.west{suffix}")),
                Spot::Named(Target::Service { service: service(), group: Some(group()), direct })
            );
            let instance = "node".parse().expect("an instance may have this name");
            assert_eq!(
                named(&format!("node.orders.west{suffix}")),
                Spot::Named(Target::Instance { service: service(), group: group(), instance, direct })
            );
        }
        assert_eq!(named("n1.node"), Spot::Named(Target::Node("n1".parse().expect("valid"))));
    }

    #[test]
    fn case_is_ignored() {
        assert_eq!(spot("oRdErS.MESH.Internal."), Some(named("orders")));
        assert_eq!(spot("1.2.240.127.IN-ADDR.Arpa."), spot("1.2.240.127.in-addr.arpa."));
    }

    #[test]
    fn port_labels_stand_before_any_service_or_instance() {
        for base in ["orders", "orders.west", "db-1.orders.west", "orders.direct", "db-1.orders.west.direct"]
        {
            let Spot::Named(target) = named(base) else { panic!("{base} is a target") };
            assert_eq!(named(&format!("_tcp.{base}")), Spot::Ports(target.clone(), Transport::Tcp));
            assert_eq!(named(&format!("_5432._udp.{base}")), Spot::Port(target, Transport::Udp, 5432.into()));
        }
    }

    #[test]
    fn other_names_cannot_exist() {
        for name in [
            "a.b.c.d",
            "a.b.c.d.direct",
            "node.west",
            "orders.node.west",
            "x.direct.west",
            "a.n1.node",
            "_tcp.node",
            "_tcp.n1.node",
            "_tcp",
            "_sctp.orders",
            "_pg._sctp.orders",
            "_pg.orders",
            "_._tcp.orders",
            "__x._tcp.orders",
            "_tcp.direct",
            "_pg._tcp._tcp.orders",
            "*",
            "*.orders",
        ] {
            assert_eq!(named(name), Spot::Absent, "{name}");
        }
    }

    #[test]
    fn labels_of_any_bytes_are_names_that_cannot_exist() {
        for label in [&b"a b"[..], b"-a", b"a-", b"a.b", b"\xff\xfe", b"caf\xc3\xa9", b"\0", b"orders\0"] {
            let labels = [label, b"mesh", b"internal"];
            let name = Name::from_labels(labels).expect("any bytes are a label");
            assert_eq!(zone().locate(&name).map(|place| place.spot), Some(Spot::Absent), "{label:?}");
        }
    }

    #[test]
    fn reverse_names_of_the_pool_are_cut_at_its_octets() {
        assert_eq!(spot("240.127.in-addr.arpa."), Some(Spot::Apex));
        assert_eq!(spot("9.240.127.in-addr.arpa."), Some(Spot::Branch));
        assert_eq!(spot("7.9.240.127.in-addr.arpa."), Some(Spot::Pointer(Ipv4Addr::new(127, 240, 9, 7))));
        for absent in ["1.7.9.240.127", "256.9.240.127", "07.9.240.127", "x.240.127", "1.x.240.127"] {
            assert_eq!(spot(&format!("{absent}.in-addr.arpa.")), Some(Spot::Absent), "{absent}");
        }
    }

    #[test]
    fn a_pool_of_twelve_bits_has_sixteen_reverse_zones() {
        let zone = Zone::new("mesh.internal", Ipv4Addr::new(240, 80, 0, 0), 12).expect("valid");
        let place = |name: &str| zone.locate(&Name::from_ascii(name).expect(name));
        assert_eq!(place("240.in-addr.arpa."), None);
        assert_eq!(place("79.240.in-addr.arpa."), None);
        assert_eq!(place("96.240.in-addr.arpa."), None);
        let found = place("1.2.95.240.in-addr.arpa.").expect("in the pool");
        assert_eq!(found.apex.to_ascii(), "95.240.in-addr.arpa.");
        assert_eq!(found.spot, Spot::Pointer(Ipv4Addr::new(240, 95, 2, 1)));
    }
}
