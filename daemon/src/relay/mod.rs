//! The relay: carries TCP and UDP flows between local programs and the instances of services.
//!
//! Owns: its handle, the flow table, the counters. Must not know: gossip, DNS messages, certificates.
//! Driven by: VIP listeners (`vips`), the local API (`connect`), streams of peers (`inbound`).
//!
//! ```text
//! program -> listener -> outbound -> hop (transport) -> inbound -> target
//! ```
//!
//! The protocol is never sniffed. Start reading at `outbound`, then `inbound`; `copy` moves the bytes.

mod access;
mod choices;
mod circuit;
mod copy;
mod dialled;
mod drain;
mod flow;
mod inbound;
mod listener;
mod outbound;
mod permits;
mod places;
mod probe;
mod proxy;
mod scope;
mod services;
mod spare;
mod splice;
mod tries;
mod udp;
mod vips;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use gossamer_core::access::Denials;
use gossamer_core::trust::Leaf;
use gossamer_core::vip::VipName;
use gossamer_wire::{GroupName, InstanceName, MeshId, NodeId, NodeName, PortName, ServiceName, Transport};

pub use choices::LiveRoutes;
pub use flow::{Direction, FlowId, FlowInfo, Path};
pub use outbound::{Carried, ConnectError};
pub use probe::{By, CandidateView, Outcome, Probed, Reached};
pub use scope::PortChoice;
pub(crate) use scope::{attempt, behind, has_udp, of_instances};
pub use vips::{RedirectError, RedirectSockets, Standings, VipPort, Vips, VipsParts};

use crate::events::EventLog;
use crate::index::IndexReader;
use crate::metrics::FlowCounts;
use crate::register::{DenyList, LocalService, Target, TargetsReader};
use crate::supervise::Stage;
use crate::transport::{FlowStream, Led, OpenError, Peers};
use access::Lines;
use circuit::Splicing;
use copy::{Counts, Guarded, Plain};
use drain::Living;
use flow::Flows;
use permits::Permits;
use places::Places;
use spare::Spare;
pub use tries::TriesInVain;
use udp::Udp;

/// What the relay is made of.
#[derive(Debug)]
pub struct RelayParts {
    /// Runs the flows.
    pub stage: Stage,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its group.
    pub group: GroupName,
    /// What is certified of it: flows that stay here are judged by it.
    pub leaf: Arc<Leaf>,
    /// Its mesh.
    pub mesh: MeshId,
    /// Where instances are.
    pub index: IndexReader,
    /// What this node wishes about the instances of others.
    pub routes: LiveRoutes,
    /// What runs here.
    pub targets: Arc<dyn LocalTargets>,
    /// What is never dialled.
    pub deny: DenyList,
    /// The way to other nodes.
    pub hops: Arc<dyn OpenHop>,
    /// The event log.
    pub events: EventLog,
}

/// Opens streams to other nodes; [`Peers`] but for tests.
pub trait OpenHop: Send + Sync + fmt::Debug {
    /// Opens a stream on a data connection to the node. Cancel safe, ends by itself after some seconds.
    fn open_flow(&self, node: NodeId) -> Opening<'_>;

    /// The same on a lane, also where there is a data connection.
    fn open_lane(&self, node: NodeId) -> Opening<'_>;

    /// Opens a stream to a node that has a connection with this one; nobody is looked for.
    fn open_kept(&self, node: NodeId) -> Opening<'_>;

    /// Takes a stream that a relay has led here.
    fn take_circuit(&self, stream: FlowStream, from: Led);
}

/// What runs on this node; [`TargetsReader`] but for tests.
pub trait LocalTargets: Send + Sync + fmt::Debug {
    /// Finds the target of a port by names, as an open request gives them.
    fn lookup(
        &self,
        service: &ServiceName,
        instance: &InstanceName,
        port: &PortName,
        transport: Transport,
    ) -> Option<Target>;

    /// Returns all services of this node.
    fn all(&self) -> Arc<Vec<LocalService>>;

    /// Returns what tells of each change of who may call what, after it can be read here.
    fn access_changes(&self) -> watch::Receiver<()>;
}

impl LocalTargets for TargetsReader {
    fn lookup(
        &self,
        service: &ServiceName,
        instance: &InstanceName,
        port: &PortName,
        transport: Transport,
    ) -> Option<Target> {
        Self::lookup(self, service, instance, port, transport)
    }

    fn all(&self) -> Arc<Vec<LocalService>> {
        Self::all(self)
    }

    fn access_changes(&self) -> watch::Receiver<()> {
        Self::access_changes(self)
    }
}

/// A stream that is being opened.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<FlowStream, OpenError>> + Send + 'a>>;

impl OpenHop for Peers {
    fn open_flow(&self, node: NodeId) -> Opening<'_> {
        Box::pin(Self::open_flow(self, node))
    }

    fn open_lane(&self, node: NodeId) -> Opening<'_> {
        Box::pin(Self::open_lane(self, node))
    }

    fn open_kept(&self, node: NodeId) -> Opening<'_> {
        Box::pin(Self::open_kept(self, node))
    }

    fn take_circuit(&self, stream: FlowStream, from: Led) {
        Self::take_circuit(self, stream, from);
    }
}

/// The relay. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Relay {
    parts: Arc<RelayParts>,
    flows: Flows,
    living: Living,
    permits: Permits,
    denials: Arc<Mutex<Denials>>,
    /// One for each instance that is asked beside another.
    beside: Places,
    udp: Arc<Udp>,
    counters: Arc<RelayCounters>,
    lines: Arc<Lines>,
    spare: Spare,
    circuits: Arc<Splicing>,
}

impl Relay {
    /// Makes the relay; nothing runs yet.
    pub fn new(parts: RelayParts) -> Self {
        Self {
            parts: Arc::new(parts),
            flows: Flows::default(),
            living: Living::default(),
            permits: Permits::default(),
            denials: Arc::default(),
            beside: Places::default(),
            udp: Arc::default(),
            counters: Arc::default(),
            lines: Arc::default(),
            spare: Spare::default(),
            circuits: Arc::default(),
        }
    }

    /// Starts to serve the streams of peers, and to end flows that are no longer allowed.
    pub fn start_inbound(&self, inbound: mpsc::Receiver<FlowStream>) {
        let changes = (self.parts.targets.access_changes(), self.parts.index.changes());
        self.parts.stage.spawn("relay-permits", self.clone().judge(changes));
        self.parts.stage.spawn("relay-inbound", self.clone().accept_hops(inbound));
    }

    /// Carries one flow of a local program that came in by `client`, until it ends: `gossamer forward`, `nc`.
    ///
    /// The selection and access rules are those of a VIP; an instance without a group is one of the own
    /// group. When the flow breaks, `client` is merely dropped:
    /// pass the failure on to the program.
    ///
    /// # Errors
    /// See [`ConnectError`]; no byte was sent to `client`.
    pub async fn connect(
        &self,
        service: &ServiceName,
        group: Option<&GroupName>,
        instance: Option<&InstanceName>,
        port: PortChoice,
        client: impl AsyncRead + AsyncWrite + Unpin + Send,
    ) -> Result<Carried, ConnectError> {
        let service = service.clone();
        let name = match (group, instance) {
            (None, None) => VipName::Service(service),
            (Some(group), None) => VipName::Group(service, group.clone()),
            (group, Some(instance)) => {
                VipName::Instance(service, group.unwrap_or(&self.parts.group).clone(), instance.clone())
            }
        };
        self.carry(&name, &port, Guarded::new(Plain(client))).await
    }

    /// Returns the living flows, oldest first.
    pub fn flows(&self) -> Vec<FlowInfo> {
        self.flows.snapshot()
    }

    /// Returns the counters.
    pub fn counters(&self) -> &RelayCounters {
        &self.counters
    }

    /// Returns the counters as the metrics want them.
    pub fn flow_counts(&self) -> FlowCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &*self.counters;
        let refused = [
            ("unreachable", &counters.failed),
            ("denied", &counters.denied),
            ("search", &counters.searches),
            ("busy", &counters.busy),
            ("draining", &counters.draining),
            ("malformed", &counters.malformed),
            ("stranger", &counters.strangers),
            ("nameless", &counters.nameless),
        ];
        let mut counts = FlowCounts {
            open: self.flows.len() as u64,
            opened: read(&counters.opened),
            served: read(&counters.served),
            refused: refused.map(|(reason, counter)| (reason, read(counter))).into(),
            retries: read(&counters.retries),
            in_vain: counters.in_vain.by_reason(),
            overtaken: read(&counters.overtaken),
            spilled: read(&counters.spilled),
            audited: read(&counters.audited),
            revoked: read(&counters.revoked),
            bytes_in: read(&counters.bytes_in),
            bytes_out: read(&counters.bytes_out),
            services: self.flows.by_service(),
            circuits: self.circuits.counts(),
            ..FlowCounts::default()
        };
        self.udp.count_into(&mut counts);
        counts
    }

    /// Carries a flow that a VIP listener accepted.
    fn accept_local(&self, client: TcpStream, name: VipName, port: u16) {
        self.spare.refill();
        if self.spare.is_lent() {
            // This client has the last file.
            self.has_no_files(&name, client.peer_addr().ok());
            let _ = client.set_zero_linger();
            drop(client);
            return self.spare.refill();
        }
        copy::prepare(&client);
        let (relay, client) = (self.clone(), Guarded::new(client));
        self.parts.stage.spawn_short("flow", async move {
            // What became of it is in its access line.
            let _ = relay.carry(&name, &PortChoice::Number(port), client).await;
        });
    }
}

/// What the relay counts. All only grow.
#[derive(Debug, Default)]
pub struct RelayCounters {
    /// Flows of local programs that reached an instance.
    pub opened: AtomicU64,
    /// Flows of local programs that reached none.
    pub failed: AtomicU64,
    /// Instances tried in vain.
    pub retries: AtomicU64,
    /// The same by reason.
    pub in_vain: TriesInVain,
    /// Flows that went to an instance that was asked beside a slow one.
    pub overtaken: AtomicU64,
    /// Flows that begin with another tier than the first healthy one.
    pub spilled: AtomicU64,
    /// Flows of peers that reached their target.
    pub served: AtomicU64,
    /// Flows of peers refused because of access, or because there is no such target.
    pub denied: AtomicU64,
    /// Flows refused because their service drains.
    pub draining: AtomicU64,
    /// Flows let in by `policy.audit` only.
    pub audited: AtomicU64,
    /// Living flows ended because they were no longer allowed or imported.
    pub revoked: AtomicU64,
    /// Connections closed because the peer asked over and over for what it may not call or what is not here.
    pub searches: AtomicU64,
    /// Flows of peers refused because they have too many.
    pub busy: AtomicU64,
    /// Flows of peers whose request is broken or late.
    pub malformed: AtomicU64,
    /// Connections to addresses of the pool that no name has, closed; in dnat mode only.
    pub nameless: AtomicU64,
    /// Connections to VIPs of who is neither this host nor in `vip.clients`, closed.
    pub strangers: AtomicU64,
    /// Bytes from clients to services, of ended flows.
    pub bytes_in: AtomicU64,
    /// Bytes from services to clients, of ended flows.
    pub bytes_out: AtomicU64,
}

impl RelayCounters {
    /// Adds the bytes of an ended flow and returns them, in and out.
    fn add_bytes(&self, counts: &Counts) -> (u64, u64) {
        let add = |sum: &AtomicU64, bytes: &AtomicU64| {
            let bytes = bytes.load(Ordering::Relaxed);
            sum.fetch_add(bytes, Ordering::Relaxed);
            bytes
        };
        (add(&self.bytes_in, &counts.bytes_in), add(&self.bytes_out, &counts.bytes_out))
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
pub(crate) use flow::tests::flows as flows_for_tests;

#[cfg(test)]
pub(crate) mod tests;
