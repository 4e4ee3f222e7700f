//! A small scripted mesh for tests.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use gossamer_wire::{GroupName, InstanceName, NodeName, ServiceName, Transport};

use crate::{
    CustomNames, CustomTarget, Directory, InstanceEntry, Revisions, ServiceEntry, Target, VipAnswer, Zone,
    Zones,
};

/// Answers from a table; remembers what was prepared.
#[derive(Debug, Default)]
pub(crate) struct Scripted {
    services: BTreeMap<(ServiceName, Option<GroupName>), ServiceEntry>,
    instances: BTreeMap<(ServiceName, GroupName, InstanceName), InstanceEntry>,
    nodes: BTreeMap<NodeName, Vec<IpAddr>>,
    pointers: BTreeMap<Ipv4Addr, Target>,
    customs: CustomNames,
    pub(crate) prepared: Mutex<Vec<Target>>,
    pub(crate) revisions: Revisions,
}

impl Scripted {
    /// Adds a service under its own name and under that of each group its instances are in.
    pub(crate) fn with(self, name: &str, vip: VipAnswer, instances: Vec<InstanceEntry>) -> Self {
        let groups: Vec<_> = instances.iter().map(|instance| instance.group.clone()).collect();
        groups
            .iter()
            .fold(self, |mesh, group| {
                let of_group = instances.iter().filter(|instance| instance.group == *group).cloned();
                let group_vip = VipAnswer::Address(Ipv4Addr::new(127, 240, 200, 1));
                mesh.with_entry(name, Some(group.clone()), group_vip, of_group.collect())
            })
            .with_entry(name, None, vip, instances)
    }

    /// Adds an entry under one name only.
    pub(crate) fn with_entry(
        mut self,
        name: &str,
        group: Option<GroupName>,
        vip: VipAnswer,
        instances: Vec<InstanceEntry>,
    ) -> Self {
        let service: ServiceName = name.parse().expect("valid");
        for entry in &instances {
            let key = (entry.service.clone(), entry.group.clone(), entry.instance.clone());
            self.instances.insert(key, entry.clone());
        }
        if let (VipAnswer::Address(vip), None) = (&vip, &group) {
            let target = Target::Service { service: service.clone(), group: None, direct: false };
            self.pointers.insert(*vip, target);
        }
        let metadata = vec![("version".to_owned(), "7".to_owned())];
        self.services.insert((service, group), ServiceEntry { vip, instances, metadata });
        self
    }

    pub(crate) fn with_names(mut self, customs: CustomNames) -> Self {
        self.customs = customs;
        self
    }

    pub(crate) fn with_node(mut self, name: &str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|address| address.parse().expect("valid"));
        self.nodes.insert(name.parse().expect("valid"), addresses.collect());
        self
    }
}

#[async_trait::async_trait]
impl Directory for Scripted {
    async fn prepare(&self, target: &Target) {
        self.prepared.lock().expect("not poisoned").push(target.clone());
    }

    fn service(&self, service: &ServiceName, group: Option<&GroupName>) -> Option<ServiceEntry> {
        self.services.get(&(service.clone(), group.cloned())).cloned()
    }

    fn instance(
        &self,
        service: &ServiceName,
        group: &GroupName,
        instance: &InstanceName,
    ) -> Option<InstanceEntry> {
        self.instances.get(&(service.clone(), group.clone(), instance.clone())).cloned()
    }

    fn node(&self, node: &NodeName) -> Option<Vec<IpAddr>> {
        self.nodes.get(node).cloned()
    }

    fn has_group(&self, group: &GroupName) -> bool {
        self.services.keys().any(|(_, named)| named.as_ref() == Some(group))
    }

    fn custom(&self, name: &str) -> Option<CustomTarget> {
        self.customs.find(name)
    }

    fn pointer(&self, vip: Ipv4Addr) -> Option<Target> {
        self.pointers.get(&vip).cloned()
    }

    fn revisions(&self) -> Option<&Revisions> {
        Some(&self.revisions)
    }
}

/// A usable instance with port `pg` 5432/tcp; address and VIP are made of its name.
pub(crate) fn instance(service: &str, group: &str, name: &str) -> InstanceEntry {
    let [high, low] =
        name.bytes().fold(7_u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())).to_be_bytes();
    InstanceEntry {
        service: service.parse().expect("valid"),
        group: group.parse().expect("valid"),
        instance: name.parse().expect("valid"),
        usable: true,
        vip: VipAnswer::Address(Ipv4Addr::new(127, 240, high, low)),
        addresses: vec![IpAddr::from([10, 0, high, low])],
        ports: vec![("pg".parse().expect("valid"), Transport::Tcp, 5432)],
        nearness: 0,
        weight: 100,
        metadata: vec![("role".to_owned(), "primary".to_owned())],
    }
}

/// `orders` in west (db-1 near, db-2 farther and dual-stack, db-3 dead) and, by its group only, in east;
/// `stolen` whose VIP is blocked; `idle` with a dead instance; nodes n1 and n6.
pub(crate) fn mesh() -> Scripted {
    let two = InstanceEntry {
        nearness: 2,
        weight: 50,
        addresses: vec![IpAddr::from([10, 0, 0, 2]), "fd00::2".parse().expect("valid")],
        ..instance("orders", "west", "db-2")
    };
    let three = InstanceEntry { usable: false, ..instance("orders", "west", "db-3") };
    let blocked = || VipAnswer::Blocked("port 80 is held by nginx (pid 7)".to_owned());
    let stolen = InstanceEntry { vip: blocked(), ..instance("stolen", "west", "web-1") };
    let idle = InstanceEntry { usable: false, ..instance("idle", "west", "i-1") };
    let east = VipAnswer::Address(Ipv4Addr::new(127, 240, 201, 1));
    Scripted::default()
        .with("orders", vip(9), vec![instance("orders", "west", "db-1"), two, three])
        .with_entry(
            "orders",
            Some("east".parse().expect("valid")),
            east,
            vec![instance("orders", "east", "e")],
        )
        .with("stolen", blocked(), vec![stolen])
        .with("idle", vip(10), vec![idle])
        .with_node("n1", &["10.0.0.1", "192.0.2.1"])
        .with_node("n6", &["fd00::6"])
}

/// The mesh of `tests/dns/table.txt`, as its node db-a sees it.
pub(crate) fn table_mesh() -> Scripted {
    let of = |service: &str, group: &str, name: &str, number: u16| {
        let last = match (group, service) {
            ("west", "kuard" | "db-shop") => 12,
            ("west", _) => 10,
            _ => 11,
        };
        InstanceEntry {
            addresses: vec![IpAddr::from([10, 77, 0, last]), format!("fd77::{last}").parse().expect("valid")],
            ports: vec![(number.into(), Transport::Tcp, number)],
            metadata: Vec::new(),
            ..instance(service, group, name)
        }
    };
    let first = InstanceEntry {
        ports: vec![
            (5432.into(), Transport::Tcp, 5432),
            ("pg".parse().expect("valid"), Transport::Tcp, 5433),
        ],
        metadata: vec![("role".to_owned(), "primary".to_owned())],
        ..of("orders", "west", "db-a", 5432)
    };
    let idle = InstanceEntry { usable: false, ..of("idle", "west", "db-a", 80) };
    let many = (10..70).map(|number| of("many", "west", &format!("i-{number}"), 80)).collect();
    let shop = vec![of("shop", "east", "far", 80)];
    let mut names = CustomNames::default();
    for fqdn in ["kuard.corp.test", "*.wild.corp.test", "a.b.corp.test", "login.other.test"] {
        names.claim(&fqdn.parse().expect(fqdn), &"kuard".parse().expect("valid"), 0);
    }
    let mut mesh = Scripted::default()
        .with("orders", vip(9), vec![first.clone(), of("orders", "west", "db-b", 5432)])
        .with("many", vip(10), many)
        .with("idle", vip(11), vec![idle])
        .with("kuard", vip(13), vec![of("kuard", "west", "web", 8080)])
        .with("db-shop", vip(14), vec![of("db-shop", "west", "db-0", 80)])
        .with_entry("shop", Some("east".parse().expect("valid")), vip(12), shop.clone())
        .with_names(names)
        .with_node("db-a", &["10.77.0.10", "fd77::10"])
        .with_node("web", &["10.77.0.12", "fd77::12"])
        .with_node("far", &["10.77.0.11", "fd77::11"]);
    for ((service, _), entry) in &mut mesh.services {
        if !["orders", "kuard"].contains(&service.as_str()) {
            entry.metadata.clear();
        }
    }
    let Target::Instance { service, group, .. } = shop[0].target(false) else { unreachable!("an instance") };
    let group = Some(group);
    mesh.pointers.insert([127, 240, 100, 12].into(), Target::Service { service, group, direct: false });
    let VipAnswer::Address(own) = first.vip else { unreachable!("it has one") };
    mesh.pointers.insert(own, first.target(false));
    mesh
}

/// What the node db-a of `tests/dns/table.txt` answers for.
pub(crate) fn table_zones() -> Zones {
    let service = |name: &str, group: Option<&str>| Target::Service {
        service: name.parse().expect("valid"),
        group: group.map(|group| group.parse().expect("valid")),
        direct: false,
    };
    let zones = zone().with_zone("mesh.example").expect("apart");
    let zones = zones.with_suffix("corp.test".parse().expect("valid")).expect("free");
    let zones = zones.with_clusterset().expect("apart");
    [
        ("pg.corp.example", service("orders", None)),
        ("shop.corp.example", service("shop", Some("east"))),
        ("one.corp.test", instance("orders", "west", "db-a").target(false)),
    ]
    .into_iter()
    .fold(zones, |zones, (name, target)| zones.with_alias(name, target).expect("free"))
}

/// The VIP `127.240.100.<last>`.
pub(crate) fn vip(last: u8) -> VipAnswer {
    VipAnswer::Address(Ipv4Addr::new(127, 240, 100, last))
}

pub(crate) fn zone() -> Zones {
    Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16).expect("valid").into()
}
