//! The flow table: which flows live, how many each instance and each peer has, what opening them taught.
//!
//! Owns: those counts. Must not know: sockets, bytes. Driven by: `outbound` and `inbound`; read by status.
//!
//! A lock and no task, because every flow counts itself in and out; it is held for single map operations.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gossamer_core::select::{Load, Standing};
use gossamer_wire::limits::{MAX_FLOWS_PER_PEER, MAX_UDP_FLOWS_PER_PEER};
use gossamer_wire::{GroupName, InstanceName, NodeId, NodeName, ServiceName, Transport};

use super::access::Line;
use super::copy::Counts;
use super::services::Services;
use crate::metrics::ServiceFlows;
use crate::register::Place;
use crate::transport::FlowStream;

/// A flow's id, the same in the logs of both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u64);

impl FlowId {
    pub(super) fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Which end of a flow this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// A local program calls.
    Outbound,
    /// A local service is called.
    Inbound,
}

impl Direction {
    /// Returns its name, one word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How a flow travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// It stays on this node.
    Local,
    /// Over a QUIC connection with this address.
    Quic(SocketAddr),
    /// Over a lane with this address.
    Lane(SocketAddr),
    /// Over a circuit through this relay.
    Relay(NodeId),
}

impl Path {
    /// Returns its name, one word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Quic(_) => "quic",
            Self::Lane(_) => "lane",
            Self::Relay(_) => "relay",
        }
    }

    /// Returns the path of a flow with another node.
    pub(super) fn of(stream: &FlowStream) -> Self {
        match stream.send.via() {
            Some(relay) => Self::Relay(relay),
            None if stream.is_lane() => Self::Lane(stream.remote),
            None => Self::Quic(stream.remote),
        }
    }
}

/// A living flow.
#[derive(Clone, Debug)]
pub struct FlowInfo {
    /// Its id.
    pub flow: FlowId,
    /// This node's end.
    pub direction: Direction,
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// The node at the other end; the own one for a flow that stays here.
    pub peer: NodeName,
    /// That node's group.
    pub group: GroupName,
    /// The local program's address; `None` for a peer's flow and for one by the local API.
    pub client: Option<SocketAddr>,
    /// TCP or UDP.
    pub transport: Transport,
    /// How it travels.
    pub path: Path,
    /// Where the target is, when it is on this node.
    pub target: Option<Place>,
    /// When it was opened.
    pub since: Instant,
    pub(super) counts: Arc<Counts>,
}

impl FlowInfo {
    /// Returns the bytes so far: from the client to the service, and back.
    pub fn bytes(&self) -> (u64, u64) {
        self.counts.read()
    }
}

/// An instance, as the table knows it.
pub(super) type InstanceKey = (NodeId, ServiceName, InstanceName);

/// The table. Clones are handles.
#[derive(Clone, Debug, Default)]
pub(super) struct Flows(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    live: BTreeMap<u64, FlowInfo>,
    services: Services,
    instances: BTreeMap<InstanceKey, Known>,
    inbound: BTreeMap<NodeId, u32>,
    /// Those of them that are UDP.
    inbound_udp: BTreeMap<NodeId, u32>,
}

#[derive(Debug, Default)]
struct Known {
    in_flight: u32,
    standing: Standing,
}

impl Flows {
    /// Returns the load of an instance, and how much longer it is ejected.
    pub(super) fn judge(&self, key: &InstanceKey, now: Instant) -> (Load, Option<Duration>) {
        self.lock().instances.get(key).map_or_else(Default::default, |known| {
            let load = Load { in_flight: known.in_flight, connect: known.standing.connect() };
            (load, known.standing.ejected_for(now))
        })
    }

    /// Notes that a flow to an instance could be opened. The flow counts until the guard is dropped. What the instance is
    /// worth shows later: [`Self::worked`] or [`Self::broke_at_once`].
    pub(super) fn opened(&self, key: InstanceKey, took: Duration) -> InFlight {
        let mut table = self.lock();
        table.services.answered(&key.1, took);
        table.instances.entry(key.clone()).or_default().standing.handle_opened(took);
        drop(table);
        self.began(key)
    }

    /// Counts a flow at its instance until the guard is dropped. That its instance is there is not known yet.
    pub(super) fn began(&self, key: InstanceKey) -> InFlight {
        let mut table = self.lock();
        table.forget_some();
        table.instances.entry(key.clone()).or_default().in_flight += 1;
        InFlight { flows: self.clone(), key }
    }

    /// Notes that an instance is there, and how long it took to find that out.
    pub(super) fn answered(&self, key: InstanceKey, took: Duration) {
        let mut table = self.lock();
        table.forget_some();
        table.services.answered(&key.1, took);
        let standing = &mut table.instances.entry(key).or_default().standing;
        standing.handle_opened(took);
        standing.handle_worked();
    }

    /// Notes that an instance does what it is there for.
    pub(super) fn worked(&self, key: &InstanceKey) {
        if let Some(known) = self.lock().instances.get_mut(key) {
            known.standing.handle_worked();
        }
    }

    /// Notes that an instance took a flow and broke it at once, without a byte.
    pub(super) fn broke_at_once(&self, key: InstanceKey, now: Instant) {
        let mut table = self.lock();
        table.forget_some();
        table.instances.entry(key).or_default().standing.handle_failed(now);
    }

    /// Notes that a flow to an instance could not be opened.
    pub(super) fn failed(&self, key: InstanceKey, now: Instant) {
        let mut table = self.lock();
        table.forget_some();
        table.services.retried(&key.1);
        table.instances.entry(key).or_default().standing.handle_failed(now);
    }

    /// Counts an inbound flow of a peer; `None` when it has too many.
    pub(super) fn admit(&self, peer: NodeId) -> Option<Admitted> {
        self.admit_by(peer, |table| &mut table.inbound, MAX_FLOWS_PER_PEER)
    }

    /// Counts it as a UDP flow as well; `None` when the peer has too many of them.
    pub(super) fn admit_udp(&self, peer: NodeId) -> Option<Admitted> {
        self.admit_by(peer, |table| &mut table.inbound_udp, MAX_UDP_FLOWS_PER_PEER)
    }

    fn admit_by(&self, peer: NodeId, counts: Which, most: u32) -> Option<Admitted> {
        let mut table = self.lock();
        let count = counts(&mut table).entry(peer).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Admitted { flows: self.clone(), peer, counts })
    }

    /// Lists a flow until the guard is dropped.
    pub(super) fn list(&self, info: FlowInfo) -> Listed {
        let mut table = self.lock();
        table.services.opened(&info);
        table.next += 1;
        let key = table.next;
        table.live.insert(key, info);
        Listed { flows: self.clone(), key }
    }

    /// Counts the end of a flow.
    pub(super) fn ended(&self, line: &Line<'_>) {
        self.lock().services.ended(line);
    }

    /// Returns what was counted by service.
    pub(super) fn by_service(&self) -> Vec<(String, ServiceFlows)> {
        let table = self.lock();
        table.services.read(table.live.values())
    }

    /// Returns the living flows, oldest first.
    pub(super) fn snapshot(&self) -> Vec<FlowInfo> {
        self.lock().live.values().cloned().collect()
    }

    /// Returns how many flows live.
    pub(super) fn len(&self) -> usize {
        self.lock().live.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No operation leaves the table half-done, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Keeps the memory of instances bounded: what has no flow is forgotten when there is too much.
    fn forget_some(&mut self) {
        if self.instances.len() >= MAX_KNOWN {
            self.instances.retain(|_, known| known.in_flight > 0);
        }
    }
}

/// A flow counted at its instance.
#[derive(Debug)]
pub(super) struct InFlight {
    flows: Flows,
    key: InstanceKey,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(known) = self.flows.lock().instances.get_mut(&self.key) {
            known.in_flight = known.in_flight.saturating_sub(1);
        }
    }
}

/// A flow counted at its peer.
#[derive(Debug)]
pub(super) struct Admitted {
    flows: Flows,
    peer: NodeId,
    counts: Which,
}

/// Chooses which flows of peers are counted.
type Which = fn(&mut Table) -> &mut BTreeMap<NodeId, u32>;

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut table = self.flows.lock();
        let counts = (self.counts)(&mut table);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

/// A flow in the list of living ones.
#[derive(Debug)]
pub(super) struct Listed {
    flows: Flows,
    key: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.flows.lock().live.remove(&self.key);
    }
}

/// Instances remembered before idle ones are forgotten: more than one node calls, and below 1 MiB.
const MAX_KNOWN: usize = 4_096;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    use gossamer_core::select::EJECT_AFTER;

    /// So many flows of `orders`, numbered from 0.
    pub(crate) fn flows(count: u64) -> Vec<FlowInfo> {
        (0..count).map(info).collect()
    }

    fn info(flow: u64) -> FlowInfo {
        FlowInfo {
            flow: FlowId(flow),
            direction: Direction::Outbound,
            service: "orders".parse().expect("name"),
            instance: "db-0".parse().expect("name"),
            peer: "vm-b".parse().expect("name"),
            group: "west".parse().expect("name"),
            client: None,
            transport: Transport::Tcp,
            path: Path::Local,
            target: None,
            since: Instant::now(),
            counts: Arc::default(),
        }
    }

    fn key(number: u8) -> InstanceKey {
        let node = NodeId::from_bytes([number; 16]);
        (node, "orders".parse().expect("name"), "db-0".parse().expect("name"))
    }

    #[test]
    fn a_flow_counts_at_its_instance_while_it_lives() {
        let (flows, now) = (Flows::default(), Instant::now());
        let first = flows.opened(key(1), Duration::from_millis(4));
        let second = flows.opened(key(1), Duration::from_millis(4));
        let load = Load { in_flight: 2, connect: Duration::from_millis(4) };
        assert_eq!(flows.judge(&key(1), now), (load, None));
        drop((first, second));
        assert_eq!(flows.judge(&key(1), now).0.in_flight, 0);
        assert_eq!(flows.judge(&key(2), now), (Load::default(), None));
    }

    #[test]
    fn failures_in_a_row_eject_until_one_flow_works() {
        let (flows, now) = (Flows::default(), Instant::now());
        for _ in 0..EJECT_AFTER {
            flows.failed(key(1), now);
        }
        assert!(flows.judge(&key(1), now).1.is_some());
        drop(flows.opened(key(1), Duration::ZERO));
        assert!(flows.judge(&key(1), now).1.is_some(), "it may break at once");
        flows.worked(&key(1));
        assert!(flows.judge(&key(1), now).1.is_none());
    }

    #[test]
    fn flows_that_are_opened_and_broken_at_once_eject_too() {
        let (flows, now) = (Flows::default(), Instant::now());
        for _ in 0..EJECT_AFTER {
            assert!(flows.judge(&key(1), now).1.is_none());
            drop(flows.opened(key(1), Duration::ZERO));
            flows.broke_at_once(key(1), now);
        }
        assert!(flows.judge(&key(1), now).1.is_some());
    }

    #[test]
    fn a_peer_has_a_bounded_number_of_flows() {
        let flows = Flows::default();
        let peer = NodeId::from_bytes([1; 16]);
        let mut admitted: Vec<_> = (0..MAX_FLOWS_PER_PEER).map(|_| flows.admit(peer)).collect();
        assert!(admitted.iter().all(Option::is_some));
        assert!(flows.admit(peer).is_none());
        assert!(flows.admit(NodeId::from_bytes([2; 16])).is_some());
        admitted.pop();
        assert!(flows.admit(peer).is_some());
        admitted.clear();
        assert!(flows.lock().inbound.is_empty());
    }

    #[test]
    fn living_flows_are_listed_oldest_first() {
        let flows = Flows::default();
        let (first, _second) = (flows.list(info(9)), flows.list(info(5)));
        let ids = || flows.snapshot().iter().map(|info| info.flow.0).collect::<Vec<_>>();
        assert_eq!(ids(), [9, 5]);
        drop(first);
        assert_eq!(ids(), [5]);
        assert_eq!(FlowId(5).to_string(), "0000000000000005");
    }

    #[test]
    fn the_memory_of_instances_is_bounded() {
        let flows = Flows::default();
        let busy = flows.opened(key(1), Duration::from_millis(1));
        for number in 0..2 * MAX_KNOWN as u32 {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let (_, service, instance) = key(0);
            flows.failed((NodeId::from_bytes(id), service, instance), Instant::now());
        }
        assert!(flows.lock().instances.len() <= MAX_KNOWN);
        assert_eq!(flows.judge(&key(1), Instant::now()).0.in_flight, 1);
        drop(busy);
    }
}
