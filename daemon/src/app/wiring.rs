//! The start of the daemon: one function per part, called in the order in which data flows.
//!
//! Owns: nothing beyond the start. Must not know: algorithms. Driven by: `app::run`.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use gossamer_core::vip::{Mode, Pool};
use gossamer_dns::{DnsMetrics, Forwarder, Service};
use gossamer_wire::{Address, LaneAddress, RegionName, ServiceRecord, ZoneName};

use super::mesh::{self, MeshParts};
use super::readings::Readers;
use super::reload::Again;
use super::{About, CatalogHandle, Ready, Reloader, RunError, Stages, Start, Takers, dns, overlapping};
use crate::api::{self, ApiState};
use crate::authority::AuthorityHandle;
use crate::clients::Clients;
use crate::clock::{self, Clock};
use crate::config::Settings;
use crate::entropy::Entropy;
use crate::events::{Event, EventLog};
use crate::identity::issuer::{self, IssuerHandle};
use crate::identity::{Identity, Live};
use crate::index::IndexReader;
use crate::metrics::Metrics;
use crate::register::{self, DenyList, Registry, Rules};
use crate::relay::{LiveRoutes, RedirectError, RedirectSockets, Relay, RelayParts, Vips, VipsParts};
use crate::resolver::Resolver;
use crate::store::{Store, StoreError};
use crate::supervise::Stage;
use crate::telemetry::Levels;
use crate::transport::{Connection, FlowStream, Peers, Trust, Udp};

/// Joiners waiting for the issuer; more are told to come back.
const JOINERS: usize = 64;

/// What every part is started with.
pub(super) struct Wiring<'a> {
    stages: &'a Stages,
    settings: Settings,
    again: Again,
    levels: Option<Levels>,
    store: Store,
    identity: Arc<Identity>,
    /// What callers wish of instances; follows the configuration.
    routes: LiveRoutes,
    metrics: Arc<Metrics>,
    events: EventLog,
}

impl<'a> Wiring<'a> {
    pub(super) fn new(stages: &'a Stages, start: Start, store: Store, identity: Arc<Identity>) -> Self {
        let Start { settings, again, levels } = start;
        let (metrics, events) = (Arc::default(), EventLog::default());
        let routes = Arc::new(ArcSwap::from_pointee(settings.routes.clone()));
        Self { stages, settings, again, levels, store, identity, routes, metrics, events }
    }

    /// Starts all parts. Everything that can be refused is bound before anything is said to others.
    pub(super) async fn start(&self, stop: &CancellationToken) -> Result<Ready, RunError> {
        let (network, prefix) = self.pool()?.network();
        let zone = Arc::new(self.settings.zones().map_err(|(_, error)| error)?);
        let operators = self.settings.operators.clone();
        let callers = Stage::blocking(move || api::policy_blocking(&operators)).await?;
        let api_listener = api::bind(&self.settings.socket).await?;
        let dns_sockets = dns::bind(self.settings.dns_address, self.settings.vip_pool.dns()).await?;
        let listening = dns_sockets.listening();
        let redirect = self.redirect()?;
        let forwarder = dns::forwarder(&self.settings, &zone, listening.address, self.events.clone())?;

        let (joiners_in, joiners) = mpsc::channel(JOINERS);
        let mesh = mesh::start(&self.stages.mesh(), self.mesh(joiners_in, zone.answered()))?;
        let (reader, peers, advertised) = (mesh.index, mesh.peers, mesh.advertised);

        let files = vec![self.settings.socket.clone(), self.store.dir().to_owned()];
        let deny = DenyList::new(vec![mesh.listen, listening.address], network, prefix)
            .with_pool6(self.settings.redirect().network6().0)
            .with_files(files);
        let registry = self.registry(&deny, mesh.records)?;
        let clients = Clients::new(self.settings.vip_clients.clone());
        let relay = self.relay(deny, mesh.flows, &reader, &registry, &peers);
        let vips = self.vips(redirect, clients.clone(), &reader, &registry, &relay);
        vips.looked().await;
        let resolver = Arc::new(Resolver::new(reader.clone(), vips.clone()));
        let dns_metrics = Arc::new(DnsMetrics::default());
        let names = Service {
            directory: resolver.clone(),
            zone: Arc::clone(&zone),
            forwarder: forwarder.clone(),
            metrics: Arc::clone(&dns_metrics),
            allow: Arc::new(move |source| clients.admits(source)),
        };
        dns::start(&self.stages.dns, dns_sockets, names);
        let issuer =
            self.issuer(&reader, advertised.clone(), joiners, (&mesh.live, &mesh.trust, &mesh.authority))?;

        self.read_metrics((dns_metrics, forwarder.clone()), &reader, &registry, &relay, &vips, &mesh.live);
        let about = Arc::new(self.about(mesh.listen, advertised, listening));
        let reloader = self.reloader(&mesh.catalog, &registry);
        let state = ApiState {
            about: Arc::clone(&about),
            callers,
            index: reader,
            catalog: mesh.catalog,
            registry: registry.clone(),
            vips: Arc::new(vips),
            relay: Arc::new(relay.clone()),
            resolver,
            zone,
            forwarder,
            issuer: issuer.clone(),
            authority: mesh.authority.clone(),
            live: mesh.live,
            reloader: reloader.clone(),
            events: self.events.clone(),
            metrics: Arc::clone(&self.metrics),
            connections: Arc::new(peers.clone()),
            stop: stop.clone(),
        };
        api::serve(Arc::new(state), api_listener, &self.stages.api);
        tracing::info!(node = %about.node_name, mesh = %about.mesh_listen, dns = %about.dns, "ready");
        Ok(Ready { about, issuer, authority: mesh.authority, registry, peers, relay, reloader })
    }

    fn mesh(&self, joiners: mpsc::Sender<Connection>, own_zones: Vec<String>) -> MeshParts {
        let (advertise, lanes) = Address::part(self.settings.advertise.clone());
        MeshParts {
            identity: Arc::clone(&self.identity),
            store: self.store.clone(),
            udp: Udp::Bind(self.settings.listen),
            advertise,
            lanes,
            own_zones,
            deny: self.settings.never_dialled(),
            zone: self.zone(),
            region: self.region(),
            imports: self.settings.import.clone(),
            joiners: Some(joiners),
            lifetimes: self.settings.lifetimes,
            clock: Clock::default(),
            entropy: Entropy::System,
            metrics: Arc::clone(&self.metrics),
            events: self.events.clone(),
        }
    }

    /// Says which settings count at once when they are read again, and who takes them.
    fn reloader(&self, catalog: &CatalogHandle, registry: &Registry) -> Reloader {
        let (catalog, registry, levels) = (catalog.clone(), registry.clone(), self.levels.clone());
        let routes = LiveRoutes::clone(&self.routes);
        let imports = move |settings: &Settings| {
            let (catalog, imports) = (catalog.clone(), settings.import.clone());
            async move { catalog.set_imports(imports).await }
        };
        let policy = move |settings: &Settings| {
            let (registry, policy) = (registry.clone(), settings.policy);
            async move { registry.set_policy(policy).await }
        };
        let level =
            move |settings: &Settings| levels.iter().for_each(|levels| levels.set(settings.log_level));
        Takers::new(self.again.clone(), &self.settings, self.events.clone(), self.stages.api.clone())
            .awaits(&["import"], imports)
            .awaits(&["policy.audit", "policy.default"], policy)
            .takes(&["log.level"], level)
            .takes(&["route"], move |settings| routes.store(Arc::new(settings.routes.clone())))
            .done()
    }

    fn registry(
        &self,
        deny: &DenyList,
        records: mpsc::Sender<Vec<ServiceRecord>>,
    ) -> Result<Registry, StoreError> {
        let rules = Rules {
            node: self.identity.name().clone(),
            claims: self.identity.leaf.claims.clone(),
            policy: self.settings.policy,
            denied: deny.clone(),
        };
        let log = self.events.clone();
        let report = move |change: register::Change| {
            log.push(&Event {
                who: format!("service {}/{}", change.service, change.instance),
                was: change.was,
                now: change.now,
                cause: change.cause,
                by: "self".to_owned(),
            });
        };
        register::start(&self.stages.registry, self.store.clone(), rules, records, report)
    }

    fn relay(
        &self,
        deny: DenyList,
        flows: mpsc::Receiver<FlowStream>,
        index: &IndexReader,
        registry: &Registry,
        peers: &Peers,
    ) -> Relay {
        let relay = Relay::new(RelayParts {
            stage: self.stages.relay.clone(),
            node: self.identity.node(),
            name: self.identity.name().clone(),
            group: self.identity.group().clone(),
            leaf: Arc::new(self.identity.leaf.clone()),
            mesh: self.identity.mesh,
            index: index.clone(),
            routes: LiveRoutes::clone(&self.routes),
            targets: Arc::new(registry.targets()),
            deny,
            hops: Arc::new(peers.clone()),
            events: self.events.clone(),
        });
        relay.start_inbound(flows);
        relay
    }

    /// Returns the pool, which must be free of this machine's own addresses where names are answered with it.
    fn pool(&self) -> Result<Pool, RunError> {
        let pool = self.settings.vip_pool;
        match overlapping(&pool).filter(|_| self.settings.vip_mode != Mode::None) {
            Some((interface, address)) => Err(RunError::Overlap { interface, address, pool }),
            None => Ok(pool),
        }
    }

    /// Listens for what the kernel redirects, in the mode that needs it.
    fn redirect(&self) -> Result<Option<RedirectSockets>, RedirectError> {
        match self.settings.vip_mode {
            Mode::Dnat => {
                let _entered = self.stages.relay.enter();
                RedirectSockets::bind(self.settings.redirect()).map(Some)
            }
            Mode::Bind | Mode::None => Ok(None),
        }
    }

    fn vips(
        &self,
        redirect: Option<RedirectSockets>,
        clients: Clients,
        index: &IndexReader,
        registry: &Registry,
        relay: &Relay,
    ) -> Vips {
        let parts = VipsParts {
            stage: self.stages.relay.clone(),
            mesh: self.identity.mesh,
            pool: self.settings.vip_pool,
            mode: self.settings.vip_mode,
            redirect,
            events: self.events.clone(),
            clients,
            group: self.identity.group().clone(),
            index: index.clone(),
            targets: Arc::new(registry.targets()),
            raises: registry.raises(),
        };
        Vips::start(parts, relay)
    }

    fn issuer(
        &self,
        index: &IndexReader,
        advertised: watch::Receiver<Vec<SocketAddr>>,
        joiners: mpsc::Receiver<Connection>,
        (live, trust, authority): (&Live, &Trust, &AuthorityHandle),
    ) -> Result<IssuerHandle, StoreError> {
        let parts = issuer::Parts {
            store: self.store.clone(),
            identity: Arc::clone(&self.identity),
            live: Live::clone(live),
            trust: Trust::clone(trust),
            authority: authority.clone(),
            lifetimes: self.settings.lifetimes,
            index: index.clone(),
            advertised,
            lanes: self.lanes(),
            deny: self.settings.never_dialled(),
            joiners,
            metrics: Arc::clone(&self.metrics),
        };
        issuer::start(&self.stages.issuer, parts)
    }

    fn read_metrics(
        &self,
        (dns, forwarder): (Arc<DnsMetrics>, Option<Arc<Forwarder>>),
        index: &IndexReader,
        registry: &Registry,
        relay: &Relay,
        vips: &Vips,
        live: &Live,
    ) {
        let readers = Readers {
            dns,
            forwarder,
            index: index.clone(),
            targets: registry.targets(),
            relay: relay.clone(),
            vips: vips.clone(),
            events: self.events.clone(),
            live: Live::clone(live),
            levels: self.levels.clone(),
        };
        self.metrics.read_from(move || readers.read());
    }

    fn about(
        &self,
        mesh_listen: SocketAddr,
        advertised: watch::Receiver<Vec<SocketAddr>>,
        dns: dns::Listening,
    ) -> About {
        About {
            version: env!("CARGO_PKG_VERSION"),
            mesh: self.identity.mesh,
            mesh_name: self.identity.mesh_name.clone(),
            node: self.identity.node(),
            node_name: self.identity.name().clone(),
            group: self.identity.group().clone(),
            zone: self.zone(),
            region: self.region(),
            slot: self.settings.slot.number(),
            pool: self.settings.vip_pool,
            vip_mode: self.settings.vip_mode,
            mesh_listen,
            advertised,
            lanes: self.lanes(),
            dns: dns.address,
            dns_fallback_reason: dns.fallback,
            socket: self.settings.socket.clone(),
            state_dir: self.settings.state_dir.clone(),
            started: clock::system(),
        }
    }

    /// Where only lanes reach this node.
    fn lanes(&self) -> Vec<LaneAddress> {
        Address::part(self.settings.advertise.clone()).1
    }

    /// The configuration wins over what `init` or `join` was told.
    fn zone(&self) -> Option<ZoneName> {
        self.settings.zone.clone().or_else(|| self.identity.zone.clone())
    }

    fn region(&self) -> Option<RegionName> {
        self.settings.region.clone().or_else(|| self.identity.region.clone())
    }
}
