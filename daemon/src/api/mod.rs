//! The local API: what the command line asks the daemon, over a unix socket.
//!
//! Owns: connections, their number, and the routes. Must not know: how anything is done; handlers call handles.
//! Driven by: `app`, which binds the socket and serves; `cli`, which is the client.
//!
//! Data in: HTTP/1.1 with JSON. Data out: the same; text for metrics; raw bytes of a flow after an upgrade.
//! Start reading at the routes in [`serve`], then `handlers`; `views` turns what the daemon knows into rows.

mod access;
mod client;
mod connection;
mod drain;
mod flows;
mod handlers;
mod members;
pub mod messages;
mod paths;
pub(crate) mod redirection;
mod refusal;
mod roots;
mod socket;
mod streams;
mod trace;
mod users;
mod views;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use gossamer_core::callers::{Act, Caller, Policy};
use gossamer_core::vip::VipName;
use gossamer_wire::{InstanceName, NodeId, ServiceName};

use crate::app::{About, CatalogHandle, Reloader};
use crate::authority::AuthorityHandle;
use crate::events::EventLog;
use crate::identity::Live;
use crate::identity::issuer::IssuerHandle;
use crate::index::IndexReader;
use crate::metrics::Metrics;
use crate::register::Registry;
use crate::relay::{CandidateView, FlowInfo, PortChoice, Probed, Relay, Standings, VipPort, Vips};
use crate::supervise::Stage;
use crate::transport::{Path, Peers, Pinged};

pub use client::{Client, ClientError};
pub use connection::{Guarded, over_tcp};
pub use socket::{BindError, bind};
pub use users::{OperatorsError, policy_blocking};

use messages::Connect;
use refusal::Refusal;

/// The protocol a connection is upgraded to by `POST /v1/connect`.
pub(crate) const FLOW_PROTOCOL: &str = "gossamer-flow";

/// Longest request body: a registration with all its metadata is below 16 KiB.
const MAX_BODY_BYTES: usize = 256 << 10;

/// Most connections at once; more wait. Each `forward` connection, each `watch` and each
/// `events --follow` is one.
const MAX_CONNECTIONS: usize = 128;

/// What the handlers call. Handles only, made by `app`.
pub struct ApiState {
    /// What does not change while the daemon runs.
    pub about: Arc<About>,
    /// Who may do what.
    pub callers: Policy,
    /// Services and nodes.
    pub index: IndexReader,
    /// What the catalog holds.
    pub catalog: CatalogHandle,
    /// This node's own services.
    pub registry: Registry,
    /// Ports of virtual addresses.
    pub vips: Arc<dyn Ports>,
    /// Carries flows.
    pub relay: Arc<dyn Flows>,
    /// What DNS answers from.
    pub resolver: Arc<dyn gossamer_dns::Directory>,
    /// What DNS answers for.
    pub zone: Arc<gossamer_dns::Zones>,
    /// Who asks for names of others, when anybody does.
    pub forwarder: Option<Arc<gossamer_dns::Forwarder>>,
    /// Tokens; refused where this node is no issuer.
    pub issuer: IssuerHandle,
    /// Statements and issuers.
    pub authority: AuthorityHandle,
    /// What this node shows now.
    pub live: Live,
    /// Reads the configuration again.
    pub reloader: Reloader,
    /// Changes of state.
    pub events: EventLog,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The members this node is connected to.
    pub connections: Arc<dyn Connections>,
    /// Cancelled to leave the mesh and end the daemon.
    pub stop: CancellationToken,
}

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState").field("about", &self.about).finish_non_exhaustive()
    }
}

/// Knows the connections to members.
pub trait Connections: Send + Sync {
    /// Returns the path of each connected node.
    fn paths(&self) -> BTreeMap<NodeId, Path>;

    /// Pings a node over its connection and at each address, those `known` and those it was met at.
    fn ping(&self, node: NodeId, known: Vec<SocketAddr>) -> Pin<Box<dyn Future<Output = Pinged> + Send>>;
}

impl Connections for Peers {
    fn paths(&self) -> BTreeMap<NodeId, Path> {
        Self::paths(self)
    }

    fn ping(&self, node: NodeId, known: Vec<SocketAddr>) -> Pin<Box<dyn Future<Output = Pinged> + Send>> {
        let peers = self.clone();
        Box::pin(async move { Self::ping(&peers, node, known).await })
    }
}

/// Both directions of a client's connection.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for T {}

/// Carries a client's bytes to an instance.
pub trait Flows: Send + Sync {
    /// Carries one flow to its end.
    fn carry(&self, to: Connect, client: Box<dyn Duplex>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Returns how many TCP flows of a registration of this node live.
    fn served(&self, service: &ServiceName, instance: &InstanceName) -> usize;

    /// Ends the flows of a registration that drains until `until`, after `left`.
    fn end_drained(&self, service: &ServiceName, instance: &InstanceName, left: Duration, until: u64);

    /// Returns how many TCP flows live and how long they may; `None` unless the daemon stops.
    fn leaving(&self) -> Option<(usize, Duration)>;
    /// Returns the living flows, oldest first.
    fn living(&self) -> Vec<FlowInfo>;

    /// Lists the instances behind a name as a flow would find them.
    fn candidates(&self, name: &VipName, port: &PortChoice) -> Vec<CandidateView>;

    /// Opens a flow that carries nothing; returns what each instance that was tried answered.
    fn probe(&self, name: VipName, port: PortChoice) -> Pin<Box<dyn Future<Output = Vec<Probed>> + Send>>;

    /// Returns how many streams of peers were no open requests.
    fn malformed(&self) -> u64;
}

/// Knows the ports of virtual addresses.
pub trait Ports: Send + Sync {
    /// Returns each port that was used, with its state.
    fn ports(&self) -> Vec<VipPort>;

    /// Returns the names that are not answered because another has their address, with that other name.
    fn losers(&self) -> Arc<BTreeMap<VipName, VipName>>;

    /// Returns what is known of the redirection of dnat mode; `None` in other modes.
    fn redirection(&self) -> Option<Standings>;
}

impl Flows for Relay {
    fn carry(&self, to: Connect, client: Box<dyn Duplex>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let relay = self.clone();
        Box::pin(async move {
            let Connect { service, group, instance, port } = to;
            let number = port.as_str().parse().map(PortChoice::Number);
            let port = number.unwrap_or(PortChoice::Name(port));
            let carried = relay.connect(&service, group.as_ref(), instance.as_ref(), port, client).await;
            if let Err(error) = carried {
                tracing::debug!(%service, err = %error, "a forwarded flow reached no instance");
            }
        })
    }

    fn served(&self, service: &ServiceName, instance: &InstanceName) -> usize {
        self.served_flows(service, instance)
    }

    fn end_drained(&self, service: &ServiceName, instance: &InstanceName, left: Duration, until: u64) {
        Self::end_drained(self, service.clone(), instance.clone(), left, until);
    }

    fn leaving(&self) -> Option<(usize, Duration)> {
        Self::leaving(self)
    }

    fn living(&self) -> Vec<FlowInfo> {
        self.flows()
    }

    fn candidates(&self, name: &VipName, port: &PortChoice) -> Vec<CandidateView> {
        Self::candidates(self, name, port)
    }

    fn probe(&self, name: VipName, port: PortChoice) -> Pin<Box<dyn Future<Output = Vec<Probed>> + Send>> {
        let relay = self.clone();
        Box::pin(async move { Self::probe(&relay, &name, &port).await })
    }

    fn malformed(&self) -> u64 {
        self.counters().malformed.load(Ordering::Relaxed)
    }
}

impl Ports for Vips {
    fn ports(&self) -> Vec<VipPort> {
        Self::ports(self)
    }

    fn losers(&self) -> Arc<BTreeMap<VipName, VipName>> {
        Self::losers(self)
    }

    fn redirection(&self) -> Option<Standings> {
        Self::redirection(self)
    }
}

/// What a handler gets: the handles, and where long replies and flows run.
#[derive(Clone, Debug)]
struct Api {
    state: Arc<ApiState>,
    stage: Stage,
}

/// Answers requests until the stage stops; connections then end with the reply they are at.
pub fn serve(state: Arc<ApiState>, listener: UnixListener, stage: &Stage) {
    let api = Api { state, stage: stage.clone() };
    stage.spawn("api", accept(api, listener));
}

fn router(api: Api) -> Router {
    let read = Router::new()
        .route("/v1/nodes", get(handlers::nodes))
        .route("/v1/issuers", get(members::issuers))
        .route("/v1/roots", get(roots::list))
        .route("/v1/services", get(handlers::services))
        .route("/v1/resolve", get(handlers::resolve))
        .route("/v1/status", get(handlers::status))
        .route("/v1/drain", get(drain::list))
        .route("/v1/flows", get(flows::list))
        .route("/v1/trace", get(trace::trace))
        .route("/v1/ping", get(paths::ping))
        .route("/v1/events", get(streams::events))
        .route("/v1/watch", get(streams::watch))
        .route("/v1/metrics", get(handlers::metrics))
        .route("/v1/policy", get(access::show))
        .route("/v1/policy/test", get(access::test))
        .route("/v1/connect", post(handlers::connect));
    let register = Router::new()
        .route("/v1/expose", post(handlers::expose))
        .route("/v1/withdraw", post(handlers::withdraw))
        .route("/v1/drain", post(drain::drain));
    let order = Router::new()
        .route("/v1/leave", post(handlers::leave))
        .route("/v1/reload", post(access::reload))
        .route("/v1/token", post(handlers::create_token))
        .route("/v1/token/revoke", post(handlers::revoke_token))
        .route("/v1/token/renew", post(handlers::renew_token))
        .route("/v1/tokens", get(handlers::tokens))
        .route("/v1/node/evict", post(members::evict))
        .route("/v1/issuer/add", post(members::add_issuer))
        .route("/v1/issuer/remove", post(members::remove_issuer))
        .route("/v1/issuer/grant", post(members::grant))
        .route("/v1/root/add", post(roots::add))
        .route("/v1/root/retire", post(roots::retire))
        .route("/v1/root/export", post(roots::export))
        .route("/v1/root/import", post(roots::import))
        .route("/v1/root/remove", post(roots::remove));
    let for_whom =
        |routes: Router<Api>, act| routes.route_layer(from_fn_with_state((api.clone(), act), admit));
    for_whom(read, Act::Read)
        .merge(for_whom(register, Act::Register))
        .merge(for_whom(order, Act::Order))
        .fallback(handlers::unknown)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api)
}

/// Lets a request through if its caller may do what the route does, and notes whose its registrations are.
async fn admit(
    State((api, act)): State<(Api, Act)>,
    Extension(caller): Extension<Caller>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    match api.state.callers.admit(caller, act) {
        Ok(owner) => {
            request.extensions_mut().insert(owner);
            Ok(next.run(request).await)
        }
        Err(error) => {
            api.state.metrics.api_refused(error.word());
            tracing::debug!(user = caller.uid, path = request.uri().path(), "a user was refused");
            Err(Refusal::denied(error))
        }
    }
}

async fn accept(api: Api, listener: UnixListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stage = api.stage.clone();
    let router = router(api);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stage.stopping().cancelled() => break,
            accepted = place_and_accept(&places, &listener) => accepted,
        };
        let Some((stream, place)) = accepted else { continue };
        let (router, stop) = (router.clone(), stage.stopping().clone());
        stage.spawn_short("api connection", async move {
            connection::over_unix(router, stream, stop).await;
            drop(place);
        });
    }
    socket::remove(&listener);
}

/// # Cancel safety
/// Cancel safe: a connection that is not returned was not accepted.
async fn place_and_accept(
    places: &Arc<Semaphore>,
    listener: &UnixListener,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(err = %error, "the local API cannot accept");
            // Out of descriptors: the next attempt would fail at once, too.
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

#[cfg(test)]
pub(crate) use views::tests as views_for_tests;

#[cfg(test)]
pub(crate) mod tests;
