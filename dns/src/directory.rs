//! The directory: the one question DNS asks the mesh.
//!
//! Owns: the trait and the shapes that cross it. Must not know: DNS messages, who fills the directory.
//! Driven by: `answer`, which asks; the daemon, which implements it over its index.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gossamer_wire::{GroupName, InstanceName, NodeName, PortName, ServiceName, Transport};

use crate::Revisions;

/// What DNS may ask the mesh. Every lookup is a read of local state and must not block.
#[async_trait::async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Makes the VIP of `target` fit to be answered: opens its listeners, or learns why that cannot be.
    ///
    /// Called before the lookups of a question, once for each VIP the answer may hold (one for an address
    /// question, at most 16 for SRV), never for direct or node names. The target may not exist. What it
    /// found is seen in the [`VipAnswer`] of the lookups that follow.
    ///
    /// # Cancel safety
    /// May be dropped at a deadline; the question is then answered SERVFAIL.
    async fn prepare(&self, target: &Target);

    /// Returns a service as seen from this node, or of one group when that is named.
    ///
    /// `None`: no held advert names it in the groups that count here, so the name does not exist.
    fn service(&self, service: &ServiceName, group: Option<&GroupName>) -> Option<ServiceEntry>;

    /// Returns an instance, usable or not, as long as a held advert names it.
    fn instance(
        &self,
        service: &ServiceName,
        group: &GroupName,
        instance: &InstanceName,
    ) -> Option<InstanceEntry>;

    /// Returns the advertised addresses of a node, or `None` when no held card has that name.
    fn node(&self, node: &NodeName) -> Option<Vec<IpAddr>>;

    /// Returns whether [`Self::service`] would return something for any service of `group`: then the group's
    /// own name is an empty non-terminal, which exists (RFC 8020).
    fn has_group(&self, group: &GroupName) -> bool;

    /// Returns what a custom name stands for, given as a lower-case host name without its last dot: the name itself, else
    /// the longest wildcard above it. `None`: nobody whose service counts here holds it.
    fn custom(&self, name: &str) -> Option<CustomTarget>;

    /// Returns whom a VIP stands for. Never a direct name.
    fn pointer(&self, vip: Ipv4Addr) -> Option<Target>;

    /// Returns the counters that are bumped when what the lookups return has changed, by [`Subject`](crate::Subject); `None` when
    /// there are none, then no answer is kept. A prepared VIP stays so for an hour unless its service is bumped.
    fn revisions(&self) -> Option<&Revisions> {
        None
    }
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// `<service>` or `<service>.<group>`.
    Service {
        /// The service.
        service: ServiceName,
        /// `None`: the own group and what is imported.
        group: Option<GroupName>,
        /// Whether the name is below `direct`: the instances' own addresses, no VIP.
        direct: bool,
    },
    /// `<instance>.<service>.<group>`.
    Instance {
        /// The service.
        service: ServiceName,
        /// The group of the instance's node.
        group: GroupName,
        /// The instance.
        instance: InstanceName,
        /// Whether the name is below `direct`.
        direct: bool,
    },
    /// `<node>.node`.
    Node(NodeName),
}

impl Target {
    /// Returns whether address questions about it are answered with a VIP.
    pub fn has_vip(&self) -> bool {
        match self {
            Self::Service { direct, .. } | Self::Instance { direct, .. } => !direct,
            Self::Node(_) => false,
        }
    }
}

/// What a custom name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CustomTarget {
    /// The service of the own group and the imported ones, as [`Target::Service`] without a group.
    Service(ServiceName),
    /// The same, by a wildcard above the name: such names have no end.
    Wildcard(ServiceName),
    /// Several services hold it with the same right, so it must not be answered. The text names them; its first 120
    /// bytes are sent.
    Disputed(String),
    /// Nobody holds it, but somebody a name below it: it is an empty non-terminal.
    Branch,
}

/// The virtual address of a name, or why it must not be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VipAnswer {
    /// Its ports are ours (or the service's own): clients may be sent there.
    Address(Ipv4Addr),
    /// As [`Self::Address`], over both families.
    Dual(Ipv4Addr, Ipv6Addr),
    /// There are none here: the instances' own addresses are answered, as below `direct`.
    Direct,
    /// Another program would receive the connections. The text says which and what to do; it is shown to
    /// whoever asks, its first 120 bytes are sent.
    Blocked(String),
}

/// A service, or one group's part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The address clients call.
    pub vip: VipAnswer,
    /// Every held instance, usable or not, nearest first.
    pub instances: Vec<InstanceEntry>,
    /// `key=value` pairs for TXT; empty when there are none.
    pub metadata: Vec<(String, String)>,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceEntry {
    /// Its service.
    pub service: ServiceName,
    /// The group of its node.
    pub group: GroupName,
    /// Its name.
    pub instance: InstanceName,
    /// Whether clients may be sent to it: its node is a member, its lease holds, it is healthy.
    pub usable: bool,
    /// The address that reaches exactly this instance.
    pub vip: VipAnswer,
    /// Its node's advertised addresses, best first.
    pub addresses: Vec<IpAddr>,
    /// Name, transport and number of each port; an unnamed port is named by its number.
    pub ports: Vec<(PortName, Transport, u16)>,
    /// Place in the failover order, 0 = same node; the SRV priority.
    pub nearness: u8,
    /// Share among equally near instances; the SRV weight.
    pub weight: u16,
    /// `key=value` pairs for TXT.
    pub metadata: Vec<(String, String)>,
}

impl InstanceEntry {
    /// Returns the name of this instance.
    pub fn target(&self, direct: bool) -> Target {
        Target::Instance {
            service: self.service.clone(),
            group: self.group.clone(),
            instance: self.instance.clone(),
            direct,
        }
    }

    /// Returns the number of the port called `name`, if it has one.
    pub fn port(&self, name: &PortName, transport: Transport) -> Option<u16> {
        self.ports.iter().find(|port| port.0 == *name && port.1 == transport).map(|port| port.2)
    }
}
