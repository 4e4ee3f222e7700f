//! What readers see: services with their instances in failover order, and nodes.
//!
//! Owns: visibility, imports, nearness and the state of an instance, as of one moment. Must not know: adverts,
//! peers, load, health checks. Driven by: the index of the daemon, which copies views out on `ServiceChanged`.

use std::net::SocketAddr;
use std::time::Duration;

use gossamer_wire::token::Claims;
use gossamer_wire::{
    DecodeError, Fqdn, GroupName, Health, InstanceName, LaneAddress, NodeId, NodeName, Port, RegionName,
    Routing, ServiceName, ServiceRecord, Subject, Tier, Tries, ZoneName,
};

use super::owner::{Gate, Owner};
use super::{Catalog, CatalogConfig, MemberLiveness};
use crate::time::Now;
use crate::trust::Leaf;

/// How near an instance is; the order is the failover order of design section 9, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// On this node.
    SameNode,
    /// On a node of the own group.
    Group,
    /// In the own zone.
    Zone,
    /// In the own region.
    Region,
    /// Anywhere else.
    Any,
}

/// Whether an instance may be used, or the first reason why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// It may.
    Usable,
    /// Its node is no live member.
    NodeDown,
    /// No head of its node came for a whole lease.
    LeaseOver,
    /// Its exporter's check fails.
    Failing,
    /// Its exporter drains it, or its weight is 0.
    Drained,
}

/// One instance as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceView {
    /// The node it runs on.
    pub node: NodeId,
    /// That node's name.
    pub node_name: NodeName,
    /// That node's group, from its certificate.
    pub group: GroupName,
    /// The instance.
    pub instance: InstanceName,
    /// Ports clients may use.
    pub ports: Vec<Port>,
    /// Share of traffic among equal instances; of one that is draining, the share it has otherwise.
    pub weight: u16,
    /// Whether its exporter drains it.
    pub draining: bool,
    /// What its exporter wishes about the instances of the service.
    pub routing: Routing,
    /// The exporter's verdict.
    pub health: Health,
    /// Whether it may be used.
    pub state: InstanceState,
    /// How near it is.
    pub nearness: Nearness,
    /// Whether its node is in the own zone, also when it is in the own group.
    pub in_zone: bool,
    /// Whether its node is in the own region, also when it is in the own group.
    pub in_region: bool,
    /// Its node's addresses.
    pub addresses: Vec<SocketAddr>,
    /// Free pairs.
    pub metadata: Vec<(String, String)>,
    /// Tries of the VIP function.
    pub tries: Tries,
    /// Whether its exporter lets this node see and call it.
    pub visible: bool,
    /// Whether it is behind the short name: of the own group, or imported.
    pub imported: bool,
    /// Its place among the groups behind short names: 0 is the own one, then come the imports in the operator's order.
    /// Says nothing of one that is not imported.
    pub rank: u16,
    /// Names outside the mesh zones it wants to be called by, within what its node is certified for.
    pub fqdns: Vec<Fqdn>,
    /// Known from disk only; no word of its node since the start.
    pub stale: bool,
}

impl InstanceView {
    /// Returns whether a tier holds it. [`Nearness`] names only the first of them in the default order.
    pub const fn is_within(&self, tier: Tier) -> bool {
        match tier {
            Tier::Node => matches!(self.nearness, Nearness::SameNode),
            Tier::Group => matches!(self.nearness, Nearness::SameNode | Nearness::Group),
            Tier::Zone => self.in_zone || matches!(self.nearness, Nearness::SameNode | Nearness::Zone),
            Tier::Region => {
                self.in_region
                    || self.in_zone
                    || matches!(self.nearness, Nearness::SameNode | Nearness::Zone | Nearness::Region)
            }
            Tier::Any => true,
        }
    }
}

/// A service as this node sees it. Both lists: nearest first, then by node id and instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    /// The service.
    pub service: ServiceName,
    /// Instances this node's group may see, usable or not.
    pub instances: Vec<InstanceView>,
    /// Instances whose exporters do not admit this node's group: for `services --all` and `trace` only.
    pub hidden: Vec<InstanceView>,
}

/// Adverts of one node that are not served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The node they are of.
    pub node: NodeId,
    /// Adverts that cannot be judged yet; not stored, dropped after 10 minutes.
    pub held: usize,
    /// Whether its card has come, so that what is held waits for an issuer or the right time.
    pub has_card: bool,
    /// Stored fragments that do not decode here, with the reason.
    pub quarantined: Vec<(u16, DecodeError)>,
    /// Records outside the claims of its certificate.
    pub outside_claims: usize,
    /// FQDNs outside the suffixes of its certificate.
    pub outside_suffixes: usize,
}

/// A node as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// The node.
    pub node: NodeId,
    /// Its name, from its certificate.
    pub name: NodeName,
    /// Its group, from its certificate.
    pub group: GroupName,
    /// Its zone.
    pub zone: Option<ZoneName>,
    /// Its region.
    pub region: Option<RegionName>,
    /// Free labels.
    pub labels: Vec<(String, String)>,
    /// What its certificate allows, with its certified labels.
    pub claims: Claims,
    /// Where it may be dialled.
    pub addresses: Vec<SocketAddr>,
    /// Relays that keep a connection to it.
    pub relays: Vec<NodeId>,
    /// Where only lanes reach it.
    pub lanes: Vec<LaneAddress>,
    /// Its starts.
    pub epoch: u64,
    /// Records that count.
    pub records: usize,
    /// Time since it was heard of, here or where the copy came from.
    pub age: Duration,
    /// What is left of its lease; zero when it is over. The own lease never ends here.
    pub lease_left: Duration,
    /// What membership says.
    pub liveness: MemberLiveness,
    /// Adverts of it that wait for a card or an issuer.
    pub held: usize,
    /// Fragments of it whose content does not decode here.
    pub quarantined: usize,
    /// Records outside its claims, which are not served.
    pub outside_claims: usize,
    /// FQDNs outside its certified suffixes, without which its records are served.
    pub outside_suffixes: usize,
    /// Whether its certificate is one of the mesh and has not ended, and it is not evicted; else its records are
    /// not served.
    pub trusted: bool,
    /// End of its certificate, seconds since the Unix epoch.
    pub not_after: u64,
    /// The issuer that signed its certificate; `None` where a root did.
    pub issuer: Option<NodeId>,
    /// Digest of the statements it held when it made its last head; `None` before one.
    pub statement_digest: Option<[u8; 16]>,
}

impl Catalog {
    /// Returns a service as it stands at `now`; `None` when no held advert of a trusted node names it.
    pub fn service(&self, service: &ServiceName, now: Now) -> Option<ServiceView> {
        let mut all = Vec::new();
        for (node, owner) in self.store.serving(service) {
            let gate = owner.gate_at(node == self.config.node, self.store.liveness(node), now);
            if gate.is_trusted {
                all.extend(owner.of_service(service).map(|record| self.instance(node, owner, gate, record)));
            }
        }
        if all.is_empty() {
            return None;
        }
        // The sort is stable and owners come by node id, their records by instance.
        all.sort_by_key(|instance: &InstanceView| instance.nearness);
        let (instances, hidden) = all.into_iter().partition(|instance| instance.visible);
        Some(ServiceView { service: service.clone(), instances, hidden })
    }

    /// Returns the names of all services any node offers, in order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.store.services()
    }

    /// Returns all nodes whose card is held, by id.
    pub fn nodes(&self, now: Now) -> Vec<NodeView> {
        let held = self.held.by_node();
        let of = |node| held.get(&node).copied().unwrap_or_default();
        self.store.owners().map(|(node, owner)| self.node_view(node, owner, of(node), now)).collect()
    }

    /// Returns one node.
    pub fn node(&self, node: NodeId, now: Now) -> Option<NodeView> {
        let held = self.held.of_node(node);
        self.store.owner(node).map(|owner| self.node_view(node, owner, held, now))
    }

    /// Returns the nodes of which something is not served, by id.
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut held = self.held.by_node();
        let mut all: Vec<_> = Vec::new();
        for (node, owner) in self.store.owners() {
            let quarantined = owner.quarantined().map(|(id, why)| (id.slot.k, why.clone())).collect();
            let held = held.remove(&node).unwrap_or_default();
            let of = Waiting {
                node,
                held,
                has_card: true,
                quarantined,
                outside_claims: owner.outside_claims(),
                outside_suffixes: owner.outside_suffixes(),
            };
            let has_outside = of.outside_claims > 0 || of.outside_suffixes > 0;
            if held > 0 || !of.quarantined.is_empty() || has_outside {
                all.push(of);
            }
        }
        all.extend(held.into_iter().map(|(node, held)| Waiting {
            node,
            held,
            has_card: false,
            quarantined: Vec::new(),
            outside_claims: 0,
            outside_suffixes: 0,
        }));
        all.sort_by_key(|of| of.node);
        all
    }

    /// Returns where a node may be dialled; `None` while its card is not held.
    pub fn node_addresses(&self, node: NodeId) -> Option<&[SocketAddr]> {
        self.store.owner(node).map(|owner| owner.card().addresses.as_slice())
    }

    /// Returns the relays that a node's card names.
    pub fn node_relays(&self, node: NodeId) -> &[NodeId] {
        self.store.owner(node).map_or(&[], |owner| &owner.card().relays)
    }

    /// Returns where, as its card says, only lanes reach a node.
    pub fn node_lanes(&self, node: NodeId) -> &[LaneAddress] {
        self.store.owner(node).map_or(&[], |owner| &owner.card().lanes)
    }

    /// Returns until when the certificate in a node's card lasts, seconds since the Unix epoch; `None` when there is none
    /// that counts.
    pub fn certified_until(&self, node: NodeId) -> Option<u64> {
        self.store.owner(node).filter(|owner| owner.has_issuer()).map(|owner| owner.leaf().not_after)
    }

    fn node_view(&self, node: NodeId, owner: &Owner, held: usize, now: Now) -> NodeView {
        let (card, leaf) = (owner.card().clone(), owner.leaf());
        let liveness = self.store.liveness(node);
        let is_own = node == self.config.node;
        NodeView {
            node,
            name: leaf.name.clone(),
            group: leaf.group.clone(),
            zone: card.zone,
            region: card.region,
            labels: card.labels,
            claims: leaf.claims.clone(),
            addresses: card.addresses,
            relays: card.relays,
            lanes: card.lanes,
            epoch: owner.epoch(),
            records: owner.served(),
            age: if is_own { Duration::ZERO } else { owner.age().at(now.mono) },
            lease_left: if is_own { Duration::MAX } else { owner.lease_left(now.mono) },
            liveness,
            held,
            quarantined: owner.quarantined().count(),
            outside_claims: owner.outside_claims(),
            outside_suffixes: owner.outside_suffixes(),
            trusted: owner.gate_at(is_own, liveness, now).is_trusted,
            not_after: leaf.not_after,
            issuer: leaf.issuer,
            statement_digest: owner.statement_digest(),
        }
    }

    /// Returns this node for rules of access; only its group is known until its card was taken.
    fn me(&self) -> Subject<'_> {
        self.own_leaf.as_ref().map_or_else(|| Subject::of_group(&self.config.group), Leaf::subject)
    }

    fn instance(&self, node: NodeId, owner: &Owner, gate: Gate, record: &ServiceRecord) -> InstanceView {
        let group = &owner.leaf().group;
        let own_group = &self.config.group;
        let import = self.config.imports.rank(&record.service, group).map(|rank| rank + 1);
        let rank = if group == own_group { Some(0) } else { import };
        InstanceView {
            node,
            node_name: owner.leaf().name.clone(),
            group: group.clone(),
            instance: record.instance.clone(),
            ports: record.ports.clone(),
            weight: record.weight,
            draining: record.draining,
            routing: record.routing.clone(),
            health: record.health,
            state: state(gate, record),
            nearness: nearness(&self.config, node, owner),
            in_zone: is_in_zone(&self.config, owner),
            in_region: regions_meet(&self.config, owner) == Some(true),
            addresses: owner.card().addresses.clone(),
            metadata: record.metadata.clone(),
            tries: record.tries,
            visible: record.visibility.admits(group, &self.me()),
            imported: rank.is_some(),
            rank: rank.and_then(|rank| u16::try_from(rank).ok()).unwrap_or(u16::MAX),
            fqdns: record.fqdns.clone(),
            stale: owner.is_stale(),
        }
    }
}

const fn state(gate: Gate, record: &ServiceRecord) -> InstanceState {
    match record.health {
        _ if !gate.is_member => InstanceState::NodeDown,
        _ if !gate.has_lease => InstanceState::LeaseOver,
        Health::Failing => InstanceState::Failing,
        Health::Passing if record.weight == 0 || record.draining => InstanceState::Drained,
        Health::Passing => InstanceState::Usable,
    }
}

/// Returns whether both are in one region; `None` when one of them names none.
fn regions_meet(config: &CatalogConfig, owner: &Owner) -> Option<bool> {
    config.region.as_ref().zip(owner.card().region.as_ref()).map(|(own, other)| own == other)
}

/// A zone is the same when its name is and the regions do not differ.
fn is_in_zone(config: &CatalogConfig, owner: &Owner) -> bool {
    config.zone.is_some() && config.zone == owner.card().zone && regions_meet(config, owner) != Some(false)
}

fn nearness(config: &CatalogConfig, node: NodeId, owner: &Owner) -> Nearness {
    if node == config.node {
        Nearness::SameNode
    } else if owner.leaf().group == config.group {
        Nearness::Group
    } else if is_in_zone(config, owner) {
        Nearness::Zone
    } else if regions_meet(config, owner) == Some(true) {
        Nearness::Region
    } else {
        Nearness::Any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::record;

    fn gate(is_member: bool, has_lease: bool) -> Gate {
        Gate { is_trusted: true, is_member, has_lease, ..Gate::default() }
    }

    #[test]
    fn the_first_reason_against_an_instance_is_shown() {
        let passing = record("orders", "n0");
        let mut drained = passing.clone();
        drained.weight = 0;
        let mut draining = passing.clone();
        draining.draining = true;
        let mut failing = drained.clone();
        failing.health = Health::Failing;
        let table = [
            (gate(true, true), &passing, InstanceState::Usable),
            (gate(true, true), &drained, InstanceState::Drained),
            (gate(true, true), &draining, InstanceState::Drained),
            (gate(true, true), &failing, InstanceState::Failing),
            (gate(true, false), &failing, InstanceState::LeaseOver),
            (gate(false, true), &passing, InstanceState::NodeDown),
            (gate(false, false), &failing, InstanceState::NodeDown),
        ];
        for (gate, record, expected) in table {
            assert_eq!(state(gate, record), expected);
        }
    }

    #[test]
    fn failover_goes_from_the_own_node_outwards() {
        let mut all = [Nearness::Any, Nearness::Zone, Nearness::SameNode, Nearness::Region, Nearness::Group];
        all.sort_unstable();
        let order = [Nearness::SameNode, Nearness::Group, Nearness::Zone, Nearness::Region, Nearness::Any];
        assert_eq!(all, order);
    }
}
