//! The daemon as a whole: its parts in the order in which data flows, one block each.
//!
//! Owns: the wiring, the order of start and of stop. Must not know: algorithms.
//! Driven by: `cli` (`run`, `init`, `join`).

mod dns;
mod interfaces;
mod readings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use gossamer_core::catalog::{CardContent, Catalog, CatalogConfig};
use gossamer_core::vip::Pool;
use gossamer_dns::{DnsMetrics, Zone, ZoneError};
use gossamer_wire::swim::Identity as SwimIdentity;
use gossamer_wire::{Generation, GroupName, MeshId, MeshName, NodeId, NodeName, RegionName, ZoneName};

use crate::api::{self, ApiState};
use crate::config::Settings;
use crate::events::{Event, EventLog};
use crate::identity::issuer::IssuerHandle;
use crate::identity::{self, Identity, issuer};
use crate::index::IndexWriter;
use crate::metrics::Metrics;
use crate::register::{self, DenyList, Rules};
use crate::relay::{Relay, RelayParts, Vips, VipsParts};
use crate::resolver::Resolver;
use crate::store::{Store, StoreError};
use crate::supervise::Stage;
use crate::transport::{self, CATALOG_QUEUE, FLOW_QUEUE, MEMBERSHIP_QUEUE};
use crate::{catalog, clock, membership};

use readings::Readers;

pub use dns::Listening as DnsListening;

/// Longest stop of one stage.
const STAGE_WITHIN: Duration = Duration::from_secs(5);

/// Joiners waiting for the issuer; more are told to come back.
const JOINERS: usize = 64;

/// What is fixed for the life of a daemon, for `status` and logs.
#[derive(Clone, Debug)]
pub struct About {
    /// Version of the program.
    pub version: &'static str,
    /// The mesh.
    pub mesh: MeshId,
    /// Its name for display.
    pub mesh_name: MeshName,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub node_name: NodeName,
    /// Its group.
    pub group: GroupName,
    /// Its small failure domain.
    pub zone: Option<ZoneName>,
    /// Its large failure domain.
    pub region: Option<RegionName>,
    /// Which daemon of the machine this is.
    pub slot: u8,
    /// Its virtual addresses.
    pub pool: Pool,
    /// Where mesh traffic arrives.
    pub mesh_listen: SocketAddr,
    /// Where others are told to dial.
    pub advertised: Vec<SocketAddr>,
    /// Where DNS is answered.
    pub dns: SocketAddr,
    /// Why that is not port 53.
    pub dns_fallback_reason: Option<String>,
    /// The local API.
    pub socket: PathBuf,
    /// The state directory.
    pub state_dir: PathBuf,
    /// When the daemon started.
    pub started: SystemTime,
    /// Whether it admits nodes.
    pub issuer: bool,
    /// Whether the mesh's root key lies on this machine.
    pub holds_root_key: bool,
    /// Seconds since the Unix epoch of its certificate's end.
    pub certificate_ends: u64,
}

/// What a caller may use once everything runs.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The fixed facts.
    pub about: Arc<About>,
    /// The issuer, on nodes that admit others.
    pub issuer: Option<IssuerHandle>,
    /// The registry, for services named on the command line.
    pub registry: register::Registry,
    /// The relay, for forwards named on the command line.
    pub relay: Relay,
}

/// Why the daemon did not start or had to stop.
#[derive(Debug, Error)]
pub enum RunError {
    /// The state directory: the operator's fault, or the disk's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The mesh port: the operator's fault.
    #[error(transparent)]
    Mesh(#[from] transport::BindError),
    /// The DNS port: the operator's fault.
    #[error(transparent)]
    Dns(#[from] dns::BindError),
    /// The mesh zone: the operator's fault.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// The local API: the operator's fault.
    #[error(transparent)]
    Api(#[from] api::BindError),
    /// A bug: a part ended by itself.
    #[error("the daemon stopped because its part `{0}` ended; please report this with the log above")]
    Failed(&'static str),
}

/// The stages of the daemon, in the order of start.
struct Stages {
    transport: Stage,
    membership: Stage,
    catalog: Stage,
    registry: Stage,
    relay: Stage,
    dns: Stage,
    api: Stage,
}

impl Stages {
    fn new() -> Self {
        let transport = Stage::default();
        Self {
            membership: transport.next(),
            catalog: transport.next(),
            registry: transport.next(),
            relay: transport.next(),
            dns: transport.next(),
            api: transport.next(),
            transport,
        }
    }

    /// Stops in the reverse order of start: nothing new comes in, flows end, the others are told, and last
    /// the connections close.
    async fn stop(&self) {
        let order = [
            &self.api,
            &self.dns,
            &self.relay,
            &self.registry,
            &self.membership,
            &self.catalog,
            &self.transport,
        ];
        for stage in order {
            stage.stop(STAGE_WITHIN).await;
        }
    }
}

/// Runs the daemon until `stop` is cancelled or a part fails. Calls `on_ready` once everything listens.
///
/// # Errors
/// See [`RunError`]; everything that was started is stopped again.
pub async fn run(
    settings: Settings,
    store: Store,
    identity: Identity,
    on_ready: impl FnOnce(&Ready),
    stop: CancellationToken,
) -> Result<(), RunError> {
    let stages = Stages::new();
    let result = match start(&stages, settings, store, Arc::new(identity), &stop).await {
        Ok(ready) => {
            on_ready(&ready);
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                part = stages.transport.failure() => Err(RunError::Failed(part)),
            }
        }
        Err(error) => Err(error),
    };
    stages.stop().await;
    result
}

#[expect(
    clippy::too_many_lines,
    reason = "one block per part, in the order of data; there is nothing to name"
)]
async fn start(
    stages: &Stages,
    settings: Settings,
    store: Store,
    identity: Arc<Identity>,
    stop: &CancellationToken,
) -> Result<Ready, RunError> {
    let (pool_network, pool_prefix) = settings.vip_pool.network();
    let zone = Arc::new(Zone::new(&settings.dns_zone, pool_network, pool_prefix)?);
    let (metrics, events, dns_metrics) =
        (Arc::new(Metrics::default()), EventLog::default(), Arc::new(DnsMetrics::default()));

    // Everything that can be refused is bound before anything is written or said to others.
    let api_listener = api::bind(&settings.socket).await?;
    let dns_sockets = dns::bind(settings.dns_address, settings.vip_pool.dns()).await?;
    let reset_key = identity::reset_key(&store)?;
    let restored = catalog::restore(&store)?;

    // transport
    let (membership_in, membership_queue) = mpsc::channel(MEMBERSHIP_QUEUE);
    let (catalog_in, catalog_queue) = mpsc::channel(CATALOG_QUEUE);
    let (flows_in, flows) = mpsc::channel(FLOW_QUEUE);
    let (joiners_in, joiners) = mpsc::channel(JOINERS);
    let trust = Arc::new(arc_swap::ArcSwap::from_pointee(identity.trust.clone()));
    let parts = transport::Parts {
        listen: settings.listen,
        trust,
        reset_key,
        membership: membership_in,
        catalog: catalog_in,
        flows: flows_in,
        joiners: identity.issuer.as_ref().map(|_| joiners_in),
        metrics: Arc::clone(&metrics),
    };
    let (peers, mesh_listen) = transport::start(&stages.transport, &identity, parts)?;
    let advertised = interfaces::advertised(&settings.advertise, mesh_listen);
    let epoch = identity::next_epoch(&store)?;

    // membership
    let index = IndexWriter::default();
    let reader = index.reader();
    let (commands, command_queue) = mpsc::channel(catalog::COMMANDS);
    let me = SwimIdentity { node: identity.node(), generation: Generation::of_epoch(epoch) };
    membership::start(
        &stages.membership,
        membership::Parts {
            me,
            inputs: membership_queue,
            peers: peers.clone(),
            catalog: commands,
            index: reader.clone(),
            events: events.clone(),
            metrics: Arc::clone(&metrics),
        },
    );

    // catalog and index
    let (records_in, records) = mpsc::channel(catalog::RECORD_SETS);
    let core = Catalog::new(
        CatalogConfig {
            node: identity.node(),
            group: identity.group().clone(),
            zone: settings.zone.clone().or_else(|| identity.zone.clone()),
            region: settings.region.clone().or_else(|| identity.region.clone()),
            imports: settings.import.clone(),
        },
        identity.trust.clone(),
        Box::new(Arc::clone(&identity.key)),
        rand::rngs::SmallRng::from_rng(&mut rand::rng()),
        epoch,
        restored,
        clock::now(),
    );
    let card = CardContent {
        leaf: identity.leaf_der.clone(),
        addresses: advertised.clone(),
        zone: settings.zone.clone().or_else(|| identity.zone.clone()),
        region: settings.region.clone().or_else(|| identity.region.clone()),
        ..CardContent::default()
    };
    catalog::start(
        &stages.catalog,
        catalog::Parts {
            core,
            card,
            inputs: catalog_queue,
            commands: command_queue,
            records,
            peers: peers.clone(),
            index,
            store: store.clone(),
            events: events.clone(),
            metrics: Arc::clone(&metrics),
        },
    );

    // registry
    let own = vec![mesh_listen, dns_sockets.address];
    let deny = DenyList::new(own, pool_network, pool_prefix);
    let rules =
        Rules { node: identity.name().clone(), claims: identity.leaf.claims.clone(), denied: deny.clone() };
    let log = events.clone();
    let registry = register::start(&stages.registry, store.clone(), rules, records_in, move |change| {
        log.push(&Event {
            who: format!("service {}/{}", change.service, change.instance),
            was: change.was,
            now: change.now,
            cause: change.cause,
            by: "self".to_owned(),
        });
    })?;

    // relay
    let relay = Relay::new(RelayParts {
        stage: stages.relay.clone(),
        node: identity.node(),
        group: identity.group().clone(),
        index: reader.clone(),
        targets: Arc::new(registry.targets()),
        deny,
        hops: Arc::new(peers.clone()),
    });
    relay.start_inbound(flows);
    let vips = Vips::start(
        VipsParts {
            stage: stages.relay.clone(),
            mesh: identity.mesh,
            pool: settings.vip_pool,
            group: identity.group().clone(),
            index: reader.clone(),
            targets: Arc::new(registry.targets()),
        },
        &relay,
    );

    // dns
    let resolver = Arc::new(Resolver::new(reader.clone(), vips.clone()));
    let listening = dns_sockets.listening();
    dns::start(&stages.dns, dns_sockets, Arc::clone(&resolver), Arc::clone(&zone), Arc::clone(&dns_metrics));

    // issuer
    let issuer = match identity.issuer.clone() {
        Some(key) => Some(issuer::start(
            &stages.membership,
            issuer::Parts {
                store: store.clone(),
                identity: Arc::clone(&identity),
                issuer: key,
                index: reader.clone(),
                advertised: advertised.clone(),
                joiners,
                metrics: Arc::clone(&metrics),
            },
        )?),
        None => None,
    };

    // api
    let about = Arc::new(About {
        version: env!("CARGO_PKG_VERSION"),
        mesh: identity.mesh,
        mesh_name: identity.mesh_name.clone(),
        node: identity.node(),
        node_name: identity.name().clone(),
        group: identity.group().clone(),
        zone: settings.zone.clone().or_else(|| identity.zone.clone()),
        region: settings.region.clone().or_else(|| identity.region.clone()),
        slot: settings.slot.number(),
        pool: settings.vip_pool,
        mesh_listen,
        advertised,
        dns: listening.address,
        dns_fallback_reason: listening.fallback,
        socket: settings.socket.clone(),
        state_dir: settings.state_dir.clone(),
        started: clock::system(),
        issuer: issuer.is_some(),
        holds_root_key: identity.holds_root_key,
        certificate_ends: identity.leaf.not_after,
    });
    let readings = Readers {
        dns: dns_metrics,
        index: reader.clone(),
        targets: registry.targets(),
        relay: relay.clone(),
        vips: vips.clone(),
    };
    metrics.read_from(move || readings.read());
    let state = ApiState {
        about: Arc::clone(&about),
        index: reader,
        registry: registry.clone(),
        vips: Arc::new(vips),
        relay: Arc::new(relay.clone()),
        resolver,
        zone,
        issuer: issuer.clone(),
        events,
        metrics,
        holders: Arc::new(move || peers.connected()),
        stop: stop.clone(),
    };
    api::serve(Arc::new(state), api_listener, &stages.api);
    tracing::info!(node = %about.node_name, mesh = %about.mesh_listen, dns = %about.dns, "ready");
    Ok(Ready { about, issuer, registry, relay })
}
