//! What stands behind a name: the instances it reaches from this node, their ports, its `try`.
//!
//! Owns: the reading of design sections 7 and 11 for the three name levels. Must not know: sockets, load.
//! Driven by: `outbound`, `vips` and the resolver, so that all three agree.

use std::collections::{BTreeMap, BTreeSet};

use gossamer_core::catalog::{InstanceView, ServiceView};
use gossamer_core::select::reaches;
use gossamer_core::vip::VipName;
use gossamer_wire::{GroupName, InstanceName, Port, PortName, Transport};

/// Returns the instances a name reaches, usable or not: visible ones, and for a short name only those of the
/// own group and the imported ones.
pub(crate) fn behind<'a>(
    view: &'a ServiceView,
    name: &'a VipName,
) -> impl Iterator<Item = &'a InstanceView> + 'a {
    view.instances.iter().filter(move |found| reaches(found, name).is_none())
}

/// Returns the numbers of the TCP ports a name is called on.
pub(crate) fn tcp_ports(view: &ServiceView, name: &VipName) -> BTreeSet<u16> {
    ports(view, name, Transport::Tcp)
}

/// Returns the numbers of the ports of a transport that a name is called on.
pub(crate) fn ports(view: &ServiceView, name: &VipName, transport: Transport) -> BTreeSet<u16> {
    let all = behind(view, name).flat_map(|found| &found.ports);
    all.filter(|port| port.transport == transport).map(|port| port.number).collect()
}

/// Returns the `try` of a name: the highest among its adverts, also of those hidden from this node, so that
/// every node computes the same address.
pub(crate) fn attempt(view: &ServiceView, name: &VipName) -> u8 {
    let all = view.instances.iter().chain(&view.hidden);
    let of_name = all.filter_map(|found| match name {
        VipName::Service(_) => Some(found.tries.service),
        VipName::Group(_, group) => (found.group == *group).then_some(found.tries.group),
        VipName::Instance(_, group, instance) => {
            (found.group == *group && found.instance == *instance).then_some(found.tries.instance)
        }
    });
    of_name.max().unwrap_or(0)
}

/// Returns whether a name is called on a UDP port.
pub(crate) fn has_udp(view: &ServiceView, name: &VipName) -> bool {
    behind(view, name).any(has_udp_port)
}

fn has_udp_port(found: &InstanceView) -> bool {
    found.ports.iter().any(|port| port.transport == Transport::Udp)
}

/// Returns of each instance name of a service what [`attempt`] and [`has_udp`] say of one, for an answer with all.
pub(crate) fn of_instances(view: &ServiceView) -> BTreeMap<(&GroupName, &InstanceName), (u8, bool)> {
    let mut all = BTreeMap::new();
    for found in view.instances.iter().chain(&view.hidden) {
        let (highest, has_udp) = all.entry((&found.group, &found.instance)).or_insert((0, false));
        *highest = found.tries.instance.max(*highest);
        *has_udp |= found.visible && has_udp_port(found);
    }
    all
}

/// Returns all names of a service, each with its `try`.
pub(crate) fn attempts(view: &ServiceView) -> BTreeMap<VipName, u8> {
    let mut all = BTreeMap::new();
    let mut raise = |name, attempt: u8| {
        let highest = all.entry(name).or_insert(0);
        *highest = attempt.max(*highest);
    };
    let service = &view.service;
    for found in view.instances.iter().chain(&view.hidden) {
        raise(VipName::Service(service.clone()), found.tries.service);
        raise(VipName::Group(service.clone(), found.group.clone()), found.tries.group);
        let instance = (service.clone(), found.group.clone(), found.instance.clone());
        raise(VipName::Instance(instance.0, instance.1, instance.2), found.tries.instance);
    }
    all
}

/// Which port of a service a caller means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortChoice {
    /// The only TCP port it has.
    Only,
    /// The one of this number.
    Number(u16),
    /// The one of this name.
    Name(PortName),
    /// The UDP port of this number.
    Datagrams(u16),
}

impl PortChoice {
    /// Finds the port of an instance; `None` also when [`Self::Only`] meets several.
    pub(crate) fn find<'a>(&self, found: &'a InstanceView) -> Option<&'a Port> {
        let mut tcp = found.ports.iter().filter(|port| is_tcp(port));
        match self {
            Self::Only => tcp.next().filter(|_| tcp.next().is_none()),
            Self::Number(number) => tcp.find(|port| port.number == *number),
            Self::Name(name) => tcp.find(|port| port.name == *name),
            Self::Datagrams(number) => {
                let mut all = found.ports.iter();
                all.find(|port| port.number == *number && port.transport == Transport::Udp)
            }
        }
    }
}

fn is_tcp(port: &Port) -> bool {
    port.transport == Transport::Tcp
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::tests::{instance, named, service_view};

    fn view() -> ServiceView {
        let mut imported = instance("b", "east");
        imported.imported = true;
        imported.tries.service = 3;
        let mut strange = instance("c", "north");
        strange.imported = false;
        let mut hidden = instance("d", "secret");
        hidden.visible = false;
        hidden.tries.service = 4;
        let mut view = service_view("orders", vec![instance("a", "west"), imported, strange]);
        view.hidden.push(hidden);
        view
    }

    fn names(name: &VipName) -> Vec<String> {
        behind(&view(), name).map(|found| found.instance.to_string()).collect()
    }

    fn service() -> VipName {
        VipName::Service("orders".parse().expect("name"))
    }

    fn group(text: &str) -> VipName {
        VipName::Group("orders".parse().expect("name"), text.parse().expect("name"))
    }

    #[test]
    fn a_short_name_reaches_the_own_group_and_imports() {
        assert_eq!(names(&service()), ["a", "b"]);
    }

    #[test]
    fn naming_the_group_is_consent_but_not_access() {
        assert_eq!(names(&group("north")), ["c"]);
        assert!(names(&group("secret")).is_empty());
    }

    #[test]
    fn an_instance_name_reaches_that_instance_only() {
        let name = |group: &str, instance: &str| {
            let parsed = (group.parse().expect("name"), instance.parse().expect("name"));
            VipName::Instance("orders".parse().expect("name"), parsed.0, parsed.1)
        };
        assert_eq!(names(&name("east", "b")), ["b"]);
        assert!(names(&name("west", "b")).is_empty());
    }

    #[test]
    fn the_highest_try_counts_also_of_what_is_hidden_here() {
        assert_eq!(attempt(&view(), &service()), 4);
        assert_eq!(attempt(&view(), &group("west")), 0);
        let all = attempts(&view());
        assert_eq!(all.len(), 1 + 4 + 4);
        assert!(all.iter().all(|(name, highest)| attempt(&view(), name) == *highest), "{all:?}");
        let mut replicas = view();
        let mut twin = instance("a", "west");
        twin.tries.instance = 6;
        replicas.hidden.push(twin);
        let known = of_instances(&replicas);
        assert_eq!((known.len(), known[&(&replicas.instances[0].group, &named("a"))]), (4, (6, false)));
    }

    #[test]
    fn a_name_has_udp_ports_when_one_instance_behind_it_has_some() {
        let mut udp = instance("a", "west");
        udp.ports[0].transport = Transport::Udp;
        let hidden = InstanceView { visible: false, ..udp.clone() };
        let mut view = service_view("orders", vec![instance("a", "west"), udp]);
        assert!(has_udp(&view, &service()) && has_udp(&view, &group("west")));
        assert_eq!(of_instances(&view).into_values().collect::<Vec<_>>(), [(0, true)]);
        view.instances.pop();
        view.hidden.push(hidden);
        assert!(!has_udp(&view, &service()));
        assert_eq!(of_instances(&view).into_values().collect::<Vec<_>>(), [(0, false)]);
    }

    #[test]
    fn a_port_is_meant_by_name_by_number_or_by_being_the_only_one() {
        let mut found = instance("a", "west");
        assert!(PortChoice::Only.find(&found).is_some());
        let udp = Port { name: "dns".parse().expect("name"), number: 53, transport: Transport::Udp };
        found.ports.push(udp);
        assert!(PortChoice::Only.find(&found).is_some(), "UDP ports do not count");
        assert!(PortChoice::Number(53).find(&found).is_none());
        assert_eq!(PortChoice::Datagrams(53).find(&found).map(|port| port.name.as_str()), Some("dns"));
        assert!(PortChoice::Datagrams(5432).find(&found).is_none());
        let admin = Port { name: "admin".parse().expect("name"), number: 8080, transport: Transport::Tcp };
        found.ports.push(admin.clone());
        assert!(PortChoice::Only.find(&found).is_none());
        assert_eq!(PortChoice::Number(8080).find(&found), Some(&admin));
        assert_eq!(PortChoice::Name(admin.name.clone()).find(&found), Some(&admin));
        let view = service_view("orders", vec![found]);
        assert_eq!(tcp_ports(&view, &service()), BTreeSet::from([5432, 8080]));
        assert_eq!(ports(&view, &service(), Transport::Udp), BTreeSet::from([53]));
    }
}
