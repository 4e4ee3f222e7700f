//! The replicated part of a node: transport, membership, catalog and index, without DNS, relay and API.
//!
//! Owns: the start of these parts. Must not know: who reads the index, where records come from.
//! Driven by: the daemon's start, and by simulators, which run many of these in one process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot, watch};

use gossamer_core::catalog::{CardContent, Catalog, CatalogConfig, DIRECT_UP_TO, Imports};
use gossamer_core::reach::Deny;
use gossamer_wire::frame::AdvertCopy;
use gossamer_wire::swim::Identity as SwimIdentity;
use gossamer_wire::{Generation, LaneAddress, RegionName, ServiceRecord, ZoneName};

use super::{RunError, addresses, interfaces};
use crate::authority::AuthorityHandle;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::events::EventLog;
use crate::identity::{self, Credentials, Identity, Lifetimes, Live};
use crate::index::{IndexReader, IndexWriter};
use crate::metrics::Metrics;
use crate::store::Store;
use crate::supervise::Stage;
use crate::transport::{
    self, CATALOG_QUEUE, Connection, FLOW_QUEUE, FlowStream, MEMBERSHIP_QUEUE, NameRules, Peers, ToCatalog,
    ToMembership, Trust, Udp,
};
use crate::{authority, catalog, membership};

/// The stages of these parts, in the order of start.
#[derive(Clone, Debug)]
pub struct MeshStages {
    /// Connections.
    pub transport: Stage,
    /// Who is there.
    pub membership: Stage,
    /// What they offer.
    pub catalog: Stage,
}

impl MeshStages {
    /// Makes the stages that share the executor of the first one.
    pub fn from(transport: Stage) -> Self {
        Self { membership: transport.next(), catalog: transport.next(), transport }
    }

    /// Takes leave of the mesh: the others are told, then the connections close. Each stage gets `within`.
    pub async fn stop(&self, within: Duration) {
        for stage in [&self.membership, &self.catalog, &self.transport] {
            stage.stop(within).await;
        }
    }
}

/// What a node of the mesh is made of.
#[derive(Debug)]
pub struct MeshParts {
    /// Who it is.
    pub identity: Arc<Identity>,
    /// Its state directory.
    pub store: Store,
    /// What carries its datagrams.
    pub udp: Udp,
    /// Addresses it gives others besides the one it listens on.
    pub advertise: Vec<SocketAddr>,
    /// Where only lanes reach it.
    pub lanes: Vec<LaneAddress>,
    /// The zones that the mesh answers, from which no lane address is resolved.
    pub own_zones: Vec<String>,
    /// Addresses that it never dials.
    pub deny: Deny,
    /// Its small failure domain.
    pub zone: Option<ZoneName>,
    /// Its large failure domain.
    pub region: Option<RegionName>,
    /// Which services of others it uses.
    pub imports: Imports,
    /// Where joiners go.
    pub joiners: Option<mpsc::Sender<Connection>>,
    /// How long certificates last that are made here.
    pub lifetimes: Lifetimes,
    /// Its clocks.
    pub clock: Clock,
    /// Its randomness.
    pub entropy: Entropy,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// Its event log.
    pub events: EventLog,
}

/// A started node of the mesh: the handles of its parts.
#[derive(Debug)]
pub struct Mesh {
    /// Connections to others.
    pub peers: Peers,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where others are told to dial, as it changes.
    pub advertised: watch::Receiver<Vec<SocketAddr>>,
    /// What it knows of others.
    pub index: IndexReader,
    /// Takes complete sets of its own records.
    pub records: mpsc::Sender<Vec<ServiceRecord>>,
    /// Flows that come in.
    pub flows: mpsc::Receiver<FlowStream>,
    /// Asks the catalog.
    pub catalog: CatalogHandle,
    /// Statements and issuers.
    pub authority: AuthorityHandle,
    /// What this node shows now.
    pub live: Live,
    /// Whom it believes now.
    pub trust: Trust,
}

/// Asks the catalog for what the index does not hold. Clones are handles.
#[derive(Clone, Debug)]
pub struct CatalogHandle(mpsc::Sender<catalog::Command>);

impl CatalogHandle {
    /// Makes a handle to what takes commands at the other end.
    pub const fn of(commands: mpsc::Sender<catalog::Command>) -> Self {
        Self(commands)
    }

    /// Returns what is held, in numbers and by node; `None` when the node stops.
    pub async fn holdings(&self) -> Option<catalog::Holdings> {
        let (reply, holdings) = oneshot::channel();
        self.0.send(catalog::Command::Holdings(reply)).await.ok()?;
        holdings.await.ok()
    }

    /// Lets other services of other groups stand behind their short names. When it returns, readers see that.
    pub async fn set_imports(&self, imports: Imports) {
        if self.0.send(catalog::Command::Imports(imports)).await.is_ok() {
            // Commands are carried out one after the other, and what one changed is written before the next.
            let _ = self.holdings().await;
        }
    }

    /// Returns every advert as it is held, byte for byte, by node and kind; `None` when the node stops.
    pub async fn dump(&self) -> Option<Vec<AdvertCopy>> {
        let (reply, copies) = oneshot::channel();
        self.0.send(catalog::Command::Dump(reply)).await.ok()?;
        copies.await.ok()
    }
}

/// Starts the parts. The port is bound before the epoch is raised: a start that fails leaves no trace.
///
/// # Errors
/// The port or the state directory; what was started before is stopped with the stages.
pub fn start(stages: &MeshStages, parts: MeshParts) -> Result<Mesh, RunError> {
    let (mesh, replica) = start_without_catalog(stages, parts)?;
    catalog::start(&stages.catalog, replica);
    Ok(mesh)
}

/// Starts all parts but the catalog, and returns what that is made of: for a program that plays many nodes and
/// holds what they know once.
///
/// # Errors
/// Those of [`start`].
pub fn start_without_catalog(
    stages: &MeshStages,
    parts: MeshParts,
) -> Result<(Mesh, catalog::Parts), RunError> {
    let restored = catalog::restore(&parts.store, &parts.clock)?;
    let (authority, queue) = AuthorityHandle::new(&parts.identity);
    let live: Live = Arc::new(ArcSwap::from_pointee(Credentials::of(&parts.identity)));
    let trust: Trust = Arc::new(ArcSwap::from_pointee(parts.identity.trust.clone()));
    let believed = (&live, &trust, &authority);
    let (transport, inputs) = start_transport(&stages.transport, &parts, believed)?;
    let (peers, listen) = transport;
    let epoch = identity::next_epoch(&parts.store)?;

    let index = IndexWriter::default();
    let reader = index.reader();
    let (commands_in, commands) = mpsc::channel(catalog::COMMANDS);
    let sources = addresses::Sources {
        given: parts.advertise.clone(),
        listen,
        seen: peers.seen(),
        relays: peers.relays(),
    };
    let advertised = addresses::start(&stages.membership, sources, commands_in.clone());
    let members = membership::Parts {
        me: SwimIdentity { node: parts.identity.node(), generation: Generation::of_epoch(epoch) },
        inputs: inputs.membership,
        peers: peers.clone(),
        catalog: commands_in.clone(),
        index: reader.clone(),
        events: parts.events.clone(),
        entropy: parts.entropy.clone(),
        clock: parts.clock.clone(),
        metrics: Arc::clone(&parts.metrics),
    };
    membership::start(&stages.membership, members);

    let keeper = authority::Parts {
        identity: Arc::clone(&parts.identity),
        store: parts.store.clone(),
        trust: Trust::clone(&trust),
        live: Live::clone(&live),
        lifetimes: parts.lifetimes,
        peers: peers.clone(),
        membership: inputs.membership_in,
        catalog: commands_in.clone(),
        index: reader.clone(),
        clock: parts.clock.clone(),
        entropy: parts.entropy.clone(),
        events: parts.events.clone(),
        metrics: Arc::clone(&parts.metrics),
    };
    authority::start(&stages.membership, queue, keeper);

    let (records, record_sets) = mpsc::channel(catalog::RECORD_SETS);
    let replica = catalog::Parts {
        me: parts.identity.node(),
        core: catalog_core(&parts, &advertised.borrow(), epoch, restored),
        card: card(&parts, &advertised.borrow()),
        inputs: inputs.catalog,
        commands,
        records: record_sets,
        peers: peers.clone(),
        index,
        store: parts.store,
        clock: parts.clock,
        events: parts.events,
    };
    let (flows, catalog) = (inputs.flows, CatalogHandle(commands_in));
    let mesh =
        Mesh { peers, listen, advertised, index: reader, records, flows, catalog, authority, live, trust };
    Ok((mesh, replica))
}

/// What the transport fills.
struct Inputs {
    membership_in: mpsc::Sender<ToMembership>,
    membership: mpsc::Receiver<ToMembership>,
    catalog: mpsc::Receiver<ToCatalog>,
    flows: mpsc::Receiver<FlowStream>,
}

fn start_transport(
    stage: &Stage,
    parts: &MeshParts,
    (live, trust, authority): (&Live, &Trust, &AuthorityHandle),
) -> Result<((Peers, SocketAddr), Inputs), RunError> {
    let (membership_in, membership) = mpsc::channel(MEMBERSHIP_QUEUE);
    let (catalog_in, catalog) = mpsc::channel(CATALOG_QUEUE);
    let (flows_in, flows) = mpsc::channel(FLOW_QUEUE);
    let transport = transport::Parts {
        udp: parts.udp.clone(),
        trust: Trust::clone(trust),
        live: Live::clone(live),
        authority: authority.clone(),
        deny: parts.deny,
        rules: name_rules(parts),
        reset_key: identity::reset_key(&parts.store, &parts.entropy)?,
        membership: membership_in.clone(),
        catalog: catalog_in,
        flows: flows_in,
        joiners: parts.joiners.clone(),
        clock: parts.clock.clone(),
        entropy: parts.entropy.clone(),
        events: parts.events.clone(),
        metrics: Arc::clone(&parts.metrics),
    };
    let started = transport::start(stage, &parts.identity, transport)?;
    Ok((started, Inputs { membership_in, membership, catalog, flows }))
}

fn catalog_core(
    parts: &MeshParts,
    advertised: &[SocketAddr],
    epoch: u64,
    restored: Vec<AdvertCopy>,
) -> Catalog {
    let identity = &parts.identity;
    let mut rng = SmallRng::from_rng(&mut parts.entropy.rng("catalog"));
    let config = CatalogConfig {
        node: identity.node(),
        group: identity.group().clone(),
        zone: parts.zone.clone(),
        region: parts.region.clone(),
        imports: parts.imports.clone(),
        deny: of_others(parts.deny, advertised),
        direct_up_to: DIRECT_UP_TO,
        first_seq: rng.random(),
    };
    let (trust, signer) = (identity.trust.clone(), Box::new(Arc::clone(&identity.key)));
    Catalog::new(config, trust, signer, rng, epoch, restored, parts.clock.now())
}

/// Adds to what is never dialled what others may not name: daemons that are found on loopback share the machine; others are
/// misled by it.
fn of_others(deny: Deny, advertised: &[SocketAddr]) -> Deny {
    match advertised.iter().any(|address| address.ip().is_loopback()) {
        true => deny,
        false => deny.with_loopback(),
    }
}

fn name_rules(parts: &MeshParts) -> NameRules {
    let deny = match parts.udp {
        Udp::Bind(listen) => of_others(parts.deny, &interfaces::advertised(&parts.advertise, listen, &[])),
        Udp::Given(_) => parts.deny,
    };
    NameRules { deny, zones: parts.own_zones.as_slice().into() }
}

fn card(parts: &MeshParts, advertised: &[SocketAddr]) -> CardContent {
    CardContent {
        leaf: parts.identity.leaf_der.clone(),
        addresses: advertised.to_vec(),
        zone: parts.zone.clone(),
        region: parts.region.clone(),
        lanes: parts.lanes.clone(),
        ..CardContent::default()
    }
}
