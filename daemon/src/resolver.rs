//! What DNS and `gossamer resolve` see of the mesh: the index and the VIPs as a directory.
//!
//! Owns: the reading of design sections 7 and 11 for answers. Must not know: DNS messages, sockets.
//! Driven by: the DNS server and the local API, through [`Directory`].

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr};

use gossamer_core::catalog::{InstanceState, InstanceView, Nearness};
use gossamer_core::vip::VipName;
use gossamer_dns::{CustomTarget, Directory, InstanceEntry, Revisions, ServiceEntry, Target};
use gossamer_wire::{GroupName, InstanceName, NodeName, ServiceName};

use crate::config::target_of;
use crate::index::IndexReader;
use crate::relay::{Vips, attempt, behind, has_udp, of_instances};

/// The directory of this node.
#[derive(Clone, Debug)]
pub struct Resolver {
    index: IndexReader,
    vips: Vips,
}

impl Resolver {
    /// Makes a directory.
    pub const fn new(index: IndexReader, vips: Vips) -> Self {
        Self { index, vips }
    }

    fn service_entry(&self, name: &VipName) -> Option<ServiceEntry> {
        let view = self.index.service(name.service())?;
        let found: Vec<_> = in_order(behind(&view, name));
        // The nearest instance speaks for the service.
        let metadata = found.first()?.metadata.clone();
        let known = of_instances(&view);
        let entry = |found: &InstanceView| {
            let of_name = known.get(&(&found.group, &found.instance)).copied().unwrap_or_default();
            self.instance_entry(&view.service, found, of_name)
        };
        let instances = found.into_iter().map(entry).collect();
        Some(ServiceEntry { vip: self.vips.answer(&view, name), instances, metadata })
    }

    /// `attempt` and `has_udp` are those of the name, which other instances may have, too.
    fn instance_entry(
        &self,
        service: &ServiceName,
        found: &InstanceView,
        (attempt, has_udp): (u8, bool),
    ) -> InstanceEntry {
        let name = VipName::Instance(service.clone(), found.group.clone(), found.instance.clone());
        InstanceEntry {
            service: service.clone(),
            group: found.group.clone(),
            instance: found.instance.clone(),
            // What is known from disk only is not vouched for by any live peer.
            usable: found.state == InstanceState::Usable && !found.stale,
            vip: self.vips.answer_at(&name, attempt, has_udp),
            addresses: addresses(found),
            ports: found.ports.iter().map(|port| (port.name.clone(), port.transport, port.number)).collect(),
            nearness: place(found.nearness),
            weight: found.weight,
            metadata: found.metadata.clone(),
        }
    }
}

#[async_trait::async_trait]
impl Directory for Resolver {
    async fn prepare(&self, target: &Target) {
        if let Some(name) = vip_name(target) {
            self.vips.open(&name).await;
        }
    }

    fn service(&self, service: &ServiceName, group: Option<&GroupName>) -> Option<ServiceEntry> {
        self.service_entry(&match group {
            Some(group) => VipName::Group(service.clone(), group.clone()),
            None => VipName::Service(service.clone()),
        })
    }

    fn instance(
        &self,
        service: &ServiceName,
        group: &GroupName,
        instance: &InstanceName,
    ) -> Option<InstanceEntry> {
        let name = VipName::Instance(service.clone(), group.clone(), instance.clone());
        let view = self.index.service(service)?;
        // Two nodes with one instance name are replicas of it: the best one answers.
        let found = in_order(behind(&view, &name)).into_iter().next()?;
        Some(self.instance_entry(service, found, (attempt(&view, &name), has_udp(&view, &name))))
    }

    fn node(&self, node: &NodeName) -> Option<Vec<IpAddr>> {
        let nodes = self.index.nodes_named(node);
        let views = nodes.iter().filter_map(|node| node.view.as_ref());
        let all = views.flat_map(|view| &view.addresses).map(|address| address.ip());
        (!nodes.is_empty()).then(|| without_doubles(all))
    }

    fn has_group(&self, group: &GroupName) -> bool {
        self.index.has_group(group)
    }

    fn custom(&self, name: &str) -> Option<CustomTarget> {
        self.index.custom(name)
    }

    fn pointer(&self, vip: Ipv4Addr) -> Option<Target> {
        self.vips.pointer(vip).map(target_of)
    }

    fn revisions(&self) -> Option<&Revisions> {
        Some(self.index.revisions())
    }
}

/// Usable ones first, then by the failover order, then by name so that answers do not depend on arrival.
fn in_order<'a>(found: impl Iterator<Item = &'a InstanceView>) -> Vec<&'a InstanceView> {
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(|found| {
        (
            found.nearness,
            Reverse(found.state == InstanceState::Usable),
            &found.group,
            &found.instance,
            found.node,
        )
    });
    found
}

fn addresses(found: &InstanceView) -> Vec<IpAddr> {
    without_doubles(found.addresses.iter().map(|address| address.ip()))
}

fn without_doubles(all: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut once = Vec::new();
    for ip in all {
        if !once.contains(&ip) {
            once.push(ip);
        }
    }
    once
}

const fn place(nearness: Nearness) -> u8 {
    match nearness {
        Nearness::SameNode => 0,
        Nearness::Group => 1,
        Nearness::Zone => 2,
        Nearness::Region => 3,
        Nearness::Any => 4,
    }
}

/// Returns the name whose VIP answers a target; `None` for direct and node names.
fn vip_name(target: &Target) -> Option<VipName> {
    match target {
        Target::Service { service, group: None, direct: false } => Some(VipName::Service(service.clone())),
        Target::Service { service, group: Some(group), direct: false } => {
            Some(VipName::Group(service.clone(), group.clone()))
        }
        Target::Instance { service, group, instance, direct: false } => {
            Some(VipName::Instance(service.clone(), group.clone(), instance.clone()))
        }
        Target::Service { direct: true, .. } | Target::Instance { direct: true, .. } | Target::Node(_) => {
            None
        }
    }
}

#[cfg(test)]
mod tests;
