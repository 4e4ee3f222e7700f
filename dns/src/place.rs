//! Places: what a queried name may stand for, by its grammar alone.
//!
//! Owns: the grammar of design section 7, forward and reverse. Must not know: what exists, but for the one look at
//! whom a custom name belongs to. Driven by: `answer`, once per question.

use std::net::Ipv4Addr;

use gossamer_wire::{Label, PortName, ServiceName, Transport};
use hickory_proto::rr::Name;

use crate::zones::{Names, ends_with};
use crate::{CustomTarget, Directory, Target, Zone, Zones};

/// A name that may be one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    /// The apex of the zone that holds the name: a mesh zone, a reverse zone of the pool, a suffix, an alias.
    pub(crate) apex: Name,
    /// What the name may be.
    pub(crate) spot: Spot,
    /// How targets are named in the answer.
    pub(crate) names: Names<'a>,
    /// Whether such names have no end and yet exist, so that whoever asks can make them up: those below a wildcard, the
    /// namespaces of the clusterset zone.
    pub(crate) unbounded: bool,
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
    /// The version of the names of the multi-cluster services API.
    Version,
    /// A host name below a suffix, or a name that stands for its ports. Until [`Place::settled`] only.
    Custom(String, Part),
    /// A custom name that must not be answered, and why.
    Withheld(String),
}

/// What a name with or without labels such as `_5432._tcp` before it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The name itself.
    Itself,
    /// `_<tcp|udp>` before it.
    Ports(Transport),
    /// `_<port>._<tcp|udp>` before it.
    Port(Transport, PortName),
}

impl Part {
    /// Splits the labels of a port off; `None` when they are no such labels.
    fn split<'a, 'b>(labels: &'a [&'b str]) -> Option<(Self, &'a [&'b str])> {
        match labels {
            [first, rest @ ..] if first.starts_with('_') => {
                if let Some(transport) = transport(first) {
                    return Some((Self::Ports(transport), rest));
                }
                let (second, rest) = rest.split_first()?;
                let name = first.strip_prefix('_')?.parse().ok()?;
                Some((Self::Port(transport(second)?, name), rest))
            }
            _ => Some((Self::Itself, labels)),
        }
    }

    fn of(self, target: Target) -> Spot {
        match self {
            Self::Itself => Spot::Named(target),
            Self::Ports(transport) => Spot::Ports(target, transport),
            Self::Port(transport, name) => Spot::Port(target, transport, name),
        }
    }
}

impl Place<'_> {
    /// Looks up whom a custom name stands for; every other place stays as it is. `None`: nobody holds it, and such names
    /// are those of others.
    pub(crate) fn settled(mut self, directory: &dyn Directory, zones: &Zones) -> Option<Self> {
        let Spot::Custom(name, part) = &self.spot else { return Some(self) };
        let found = directory.custom(name);
        // Two may claim a wildcard.
        self.unbounded = matches!(found, Some(CustomTarget::Wildcard(_) | CustomTarget::Disputed(_)));
        self.spot = match (found, part) {
            (Some(CustomTarget::Service(service) | CustomTarget::Wildcard(service)), part) => {
                part.clone().of(Target::Service { service, group: None, direct: false })
            }
            (Some(CustomTarget::Disputed(why)), _) => Spot::Withheld(why),
            (Some(CustomTarget::Branch) | None, _) if zones.forwards() => return None,
            (Some(CustomTarget::Branch), Part::Itself) => Spot::Branch,
            (Some(CustomTarget::Branch) | None, _) => Spot::Absent,
        };
        Some(self)
    }
}

impl Zones {
    /// Finds what a name may stand for; `None` when it is none of ours. Case is ignored.
    pub(crate) fn locate(&self, name: &Name) -> Option<Place<'_>> {
        // Bytes that are not UTF-8 become a character that no name may have.
        let labels: Vec<_> =
            name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();

        for zone in self.mesh_zones() {
            if let Some(below) = ends_with(&labels, zone.origin()) {
                return Some(Place {
                    apex: zone.origin().clone(),
                    spot: forward(below),
                    names: Names::Zone(zone),
                    unbounded: false,
                });
            }
        }
        match labels.as_slice() {
            [below @ .., "in-addr", "arpa"] => {
                let (apex, spot) = self.primary().reverse(below)?;
                Some(Place { apex, spot, names: Names::Zone(self.primary()), unbounded: false })
            }
            labels => self.clusterset_place(labels).or_else(|| self.custom_place(labels)),
        }
    }

    /// Reads a name of an alias or below a suffix.
    fn custom_place(&self, labels: &[&str]) -> Option<Place<'_>> {
        let apex = self.suffix_over(labels);
        if apex.is_none() && !self.has_aliases() {
            return None;
        }
        let place = |apex: &Name, spot| Place {
            apex: apex.clone(),
            spot,
            names: Names::Zone(self.primary()),
            unbounded: false,
        };
        let host = Part::split(labels).filter(|(_, host)| host.iter().all(|label| is_ldh(label)));
        let host = host.map(|(part, host)| (part, host, host.join(".")));
        if let Some((part, _, text)) = &host
            && let Some((target, alias)) = self.alias(text)
        {
            return Some(place(apex.unwrap_or(alias), part.clone().of(target.clone())));
        }
        let apex = apex?;
        let spot = match host {
            _ if labels.len() == apex.iter().count() => Spot::Apex,
            Some((part, host, text)) if host.len() > apex.iter().count() => {
                return Some(place(apex, Spot::Custom(text, part)));
            }
            _ => Spot::Absent,
        };
        // Nobody here can hold these.
        (!self.forwards()).then(|| place(apex, spot))
    }

    /// Reads a name of the multi-cluster services API.
    fn clusterset_place(&self, labels: &[&str]) -> Option<Place<'_>> {
        let apex = self.clusterset()?;
        let below = ends_with(labels, apex)?;
        let zone = self.primary();
        let place = |spot, names| Some(Place { apex: apex.clone(), spot, names, unbounded: false });
        let found = Part::split(below).and_then(|(part, below)| {
            let (target, service) = clusterset_target(below)?;
            Some((part.of(target), Names::Clusterset { zone, apex, service }))
        });
        if let Some((spot, names)) = found {
            return place(spot, names);
        }
        let spot = match below {
            [] => Spot::Apex,
            ["dns-version"] => Spot::Version,
            ["svc"] => Spot::Branch,
            // Services are not listed by namespace; a name that may have some below it must not be denied.
            [namespace, "svc"] if is_ldh(namespace) => {
                let found = place(Spot::Branch, Names::Zone(zone));
                return found.map(|found| Place { unbounded: true, ..found });
            }
            _ => Spot::Absent,
        };
        place(spot, Names::Zone(zone))
    }
}

/// Reads `<service>.<namespace>.svc` and `<hostname>.<cluster>.<service>.<namespace>.svc`. What has a cluster and no
/// host name does not exist.
fn clusterset_target(below: &[&str]) -> Option<(Target, (Label, Label))> {
    let (rest, service, namespace) = match below {
        [rest @ .., service, namespace, "svc"] => {
            (rest, service.parse::<Label>().ok()?, namespace.parse::<Label>().ok()?)
        }
        _ => return None,
    };
    let name: ServiceName = format!("{service}-{namespace}").parse().ok()?;
    let target = match rest {
        [] => Target::Service { service: name, group: None, direct: false },
        [hostname, cluster] => Target::Instance {
            service: name,
            group: cluster.parse().ok()?,
            instance: hostname.parse().ok()?,
            direct: false,
        },
        _ => return None,
    };
    Some((target, (service, namespace)))
}

fn is_ldh(label: &str) -> bool {
    let is_ldh = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !label.is_empty() && label.bytes().all(is_ldh)
}

impl Zone {
    fn reverse(&self, below: &[&str]) -> Option<(Name, Spot)> {
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
        Some((apex, spot))
    }
}

fn forward(labels: &[&str]) -> Spot {
    match labels {
        [] => Spot::Apex,
        ["node" | "direct"] => Spot::Branch,
        [node, "node"] => node.parse().map_or(Spot::Absent, |node| Spot::Named(Target::Node(node))),
        [.., "node"] => Spot::Absent,
        // `_tcp.<target>` and `_<port>._tcp.<target>` (RFC 2782) too.
        _ => {
            Part::split(labels).and_then(|(part, rest)| Some(part.of(target(rest)?))).unwrap_or(Spot::Absent)
        }
    }
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

    fn zone() -> Zones {
        Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16).expect("valid").into()
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
        let zone = Zones::from(Zone::new("mesh.internal", Ipv4Addr::new(240, 80, 0, 0), 12).expect("valid"));
        let place = |name: &str| zone.locate(&Name::from_ascii(name).expect(name));
        assert_eq!(place("240.in-addr.arpa."), None);
        assert_eq!(place("79.240.in-addr.arpa."), None);
        assert_eq!(place("96.240.in-addr.arpa."), None);
        let found = place("1.2.95.240.in-addr.arpa.").expect("in the pool");
        assert_eq!(found.apex.to_ascii(), "95.240.in-addr.arpa.");
        assert_eq!(found.spot, Spot::Pointer(Ipv4Addr::new(240, 95, 2, 1)));
    }
}
