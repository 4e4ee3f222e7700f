//! The names that everybody answers: services, their instances, their addresses.
//!
//! Owns: the catalog as plain data, as a zone file, as local data, as queries. Must not know: who serves it.
//! Driven by: the suite.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use gossamer_core::vip::{Pool, VipName};
use gossamer_wire::{
    GroupName, Health, InstanceName, MeshId, Port, ServiceName, ServiceRecord, Transport, Tries, Visibility,
};

/// The port of every service: above 1024, so that no privilege is needed.
pub(super) const PORT: u16 = 8_080;
/// Instances of a service.
pub(super) const INSTANCES: usize = 3;
/// Members that export them.
pub(super) const MEMBERS: usize = 80;
/// The name of each service's first instance.
pub(super) const FIRST: &str = "i0";
/// The weight of an instance before any change.
pub(super) const WEIGHT: u16 = 100;

/// A service with the addresses of its names.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) name: String,
    vip: Ipv4Addr,
    instances: [Ipv4Addr; INSTANCES],
    tries: [Tries; INSTANCES],
}

/// All of them.
#[derive(Clone, Debug)]
pub(super) struct Catalog {
    pub(super) services: Vec<Service>,
}

impl Catalog {
    /// Makes so many services, each name with the least `try` that gives it an address of its own: what exporters
    /// agree on after a while.
    pub(super) fn new(count: usize, mesh: MeshId, group: &GroupName) -> Result<Self> {
        let pool = Pool::new(Ipv4Addr::new(127, 240, 0, 0), 16)?;
        let mut taken = BTreeSet::new();
        let mut place = |name: &VipName| -> Result<(Ipv4Addr, u8)> {
            (0..=u8::MAX)
                .map(|attempt| (pool.vip(name.hash(&mesh, attempt)), attempt))
                .find(|(address, _)| taken.insert(*address))
                .with_context(|| format!("{name} finds no address"))
        };
        let services = (0..count).map(|number| {
            let name = service_name(number);
            let service: ServiceName = name.parse()?;
            let (vip, of_service) = place(&VipName::Service(service.clone()))?;
            let (_, of_group) = place(&VipName::Group(service.clone(), group.clone()))?;
            let mut made = Service {
                name,
                vip,
                instances: [Ipv4Addr::UNSPECIFIED; INSTANCES],
                tries: [Tries { service: of_service, group: of_group, instance: 0 }; INSTANCES],
            };
            for number in 0..INSTANCES {
                let instance = VipName::Instance(service.clone(), group.clone(), instance_name(number)?);
                (made.instances[number], made.tries[number].instance) = place(&instance)?;
            }
            Ok(made)
        });
        Ok(Self { services: services.collect::<Result<_>>()? })
    }

    /// Returns what a member exports.
    pub(super) fn records(&self, member: usize) -> Result<Vec<ServiceRecord>> {
        let all = self
            .services
            .iter()
            .enumerate()
            .flat_map(|(service, made)| (0..INSTANCES).map(move |instance| (service, instance, made)));
        all.filter(|(service, instance, _)| (service * INSTANCES + instance) % MEMBERS == member)
            .map(|(_, instance, made)| made.record(instance))
            .collect()
    }

    /// Returns the zone as a master file, for Knot.
    pub(super) fn zone_file(&self, group: &GroupName) -> String {
        let mut text = String::from(
            "$ORIGIN mesh.internal.\n@ 30 IN SOA @ hostmaster 1 3600 600 86400 1\n@ 30 IN NS @\n@ 30 IN A 127.240.0.53\n",
        );
        for service in &self.services {
            for (owner, ttl, data) in service.lines(group) {
                let _ = writeln!(text, "{owner} {ttl} IN {data}");
            }
        }
        text
    }

    /// Returns the zone as local data, for unbound.
    pub(super) fn local_data(&self, group: &GroupName) -> String {
        let mut text = String::new();
        for service in &self.services {
            for (owner, ttl, data) in service.lines(group) {
                let _ = writeln!(text, "local-data: \"{owner}.mesh.internal. {ttl} IN {data}\"");
            }
        }
        text
    }

    /// Returns a query for each service, A in the first half, SRV in the second. Ids are filled in later.
    pub(super) fn queries(&self) -> Vec<Vec<u8>> {
        let a = self.services.iter().map(|service| query(&[&service.name], 1));
        let srv = self.services.iter().map(|service| query(&["_http", "_tcp", &service.name], 33));
        a.chain(srv).collect()
    }
}

/// Returns a query for each of so many services as [`Catalog::queries`] does, but SRV for their first instance alone: one
/// record, and its address.
pub(super) fn queries_of_one(services: usize, group: &GroupName) -> Vec<Vec<u8>> {
    let names: Vec<_> = (0..services).map(service_name).collect();
    let a = names.iter().map(|name| query(&[name], 1));
    let srv = names.iter().map(|name| query(&["_http", "_tcp", FIRST, name, group.as_str()], 33));
    a.chain(srv).collect()
}

pub(super) fn service_name(number: usize) -> String {
    format!("svc-{number:05}")
}

impl Service {
    pub(super) fn record(&self, instance: usize) -> Result<ServiceRecord> {
        Ok(ServiceRecord {
            fqdns: Vec::new(),
            service: self.name.parse()?,
            instance: instance_name(instance)?,
            ports: vec![Port { name: "http".parse()?, number: PORT, transport: Transport::Tcp }],
            visibility: Visibility::Own,
            health: Health::Passing,
            weight: WEIGHT,
            draining: false,
            routing: gossamer_wire::Routing::default(),
            tries: self.tries[instance],
            metadata: Vec::new(),
        })
    }

    /// Returns owner, time to live and data of each of its records.
    fn lines(&self, group: &GroupName) -> Vec<(String, u32, String)> {
        let name = &self.name;
        let mut all = vec![(name.clone(), 30, format!("A {}", self.vip))];
        for (number, address) in self.instances.iter().enumerate() {
            let target = format!("i{number}.{name}.{group}");
            all.push((
                format!("_http._tcp.{name}"),
                2,
                format!("SRV 1 {WEIGHT} {PORT} {target}.mesh.internal."),
            ));
            all.push((target, 30, format!("A {address}")));
        }
        all
    }
}

/// Returns a query for a name below `mesh.internal`, class IN, recursion desired.
pub(super) fn query(labels: &[&str], kind: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in labels.iter().chain(&["mesh", "internal"]) {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, kind, 0, 1]);
    bytes
}

fn instance_name(number: usize) -> Result<InstanceName> {
    Ok(format!("i{number}").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_exports_its_share_and_no_address_is_taken_twice() {
        let group: GroupName = "default".parse().expect("name");
        let catalog = Catalog::new(800, MeshId::from_bytes([1; 16]), &group).expect("room");
        let all: usize = (0..MEMBERS).map(|member| catalog.records(member).expect("made").len()).sum();
        assert_eq!(all, 2_400);
        assert_eq!(catalog.records(7).expect("made").len(), 30);
        let addresses: BTreeSet<_> =
            catalog.services.iter().flat_map(|made| [&[made.vip][..], &made.instances].concat()).collect();
        assert_eq!(addresses.len(), 3_200);
        assert_eq!(catalog.queries().len(), 1_600);
        let of_one = queries_of_one(800, &group);
        assert_eq!(of_one[..800], catalog.queries()[..800], "the same questions for addresses");
        assert_eq!(of_one[807], query(&["_http", "_tcp", "i0", "svc-00007", "default"], 33));
        assert!(
            catalog
                .zone_file(&group)
                .contains("_http._tcp.svc-00007 2 IN SRV 1 100 8080 i2.svc-00007.default.mesh.internal.")
        );
    }
}
