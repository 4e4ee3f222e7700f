//! The daemon as a whole: its parts in the order in which data flows, one block each.
//!
//! Owns: the wiring, the order of start and of stop. Must not know: algorithms.
//! Driven by: `cli` (`run`, `init`, `join`).

mod addresses;
mod dns;
mod interfaces;
pub mod mesh;
mod readings;
mod reload;
mod wiring;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use gossamer_core::vip::{Mode, Pool};
use gossamer_dns::{UpstreamError, ZoneError};
use gossamer_wire::{GroupName, LaneAddress, MeshId, MeshName, NodeId, NodeName, RegionName, ZoneName};

use crate::authority::AuthorityHandle;
use crate::config::Settings;
use crate::identity::Identity;
use crate::identity::issuer::IssuerHandle;
use crate::relay::{RedirectError, Relay};
use crate::store::{Store, StoreError};
use crate::supervise::{OwnThread, Stage};
use crate::telemetry::Levels;
use crate::{api, register, transport};
use mesh::MeshStages;
use wiring::Wiring;

pub use dns::Listening as DnsListening;
pub(crate) use interfaces::overlapping;
pub use mesh::CatalogHandle;
pub use reload::{Again, Reloaded, Reloader, Takers};

/// Longest stop of one stage.
const STAGE_WITHIN: Duration = Duration::from_secs(5);

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
    /// How connections to them come here.
    pub vip_mode: Mode,
    /// Where mesh traffic arrives.
    pub mesh_listen: SocketAddr,
    /// Where others are told to dial; the one fact that changes.
    pub advertised: watch::Receiver<Vec<SocketAddr>>,
    /// Where only lanes reach it.
    pub lanes: Vec<LaneAddress>,
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
}

/// What a caller may use once everything runs.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The fixed facts.
    pub about: Arc<About>,
    /// Tokens; refused on nodes that are no issuer.
    pub issuer: IssuerHandle,
    /// Statements and issuers.
    pub authority: AuthorityHandle,
    /// The registry, for services named on the command line.
    pub registry: register::Registry,
    /// The connections to others.
    pub peers: transport::Peers,
    /// The relay, for forwards named on the command line.
    pub relay: Relay,
    /// Reads the configuration again.
    pub reloader: Reloader,
}

/// What a daemon is started with beside its identity.
#[derive(Debug)]
pub struct Start {
    /// The settings.
    pub settings: Settings,
    /// Reads them again.
    pub again: Again,
    /// Changes how detailed log lines are, where this process has installed them.
    pub levels: Option<Levels>,
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
    /// The port of dnat mode: the operator's fault.
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    /// The pool: the operator's fault.
    #[error(
        "{interface} of this machine has {address}, which lies among the virtual addresses of vip.pool {pool}: names \
         would lead to it; set vip.pool to a network that nothing here uses"
    )]
    Overlap {
        /// The interface.
        interface: String,
        /// Its address.
        address: Ipv4Addr,
        /// The pool.
        pool: Pool,
    },
    /// A server that cannot be asked for names of others: the operator's fault.
    #[error("dns.upstream: {0}")]
    Upstream(#[from] UpstreamError),
    /// The mesh zone: the operator's fault.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// The local API: the operator's fault.
    #[error(transparent)]
    Api(#[from] api::BindError),
    /// The operator's fault: the state directory was copied and both copies run. The one that started first goes
    /// on.
    #[error(
        "this identity runs twice, at {0}; remove the copied state directory here and join again with a new token"
    )]
    RunsTwice(SocketAddr),
    /// Who may give orders: the operator's fault.
    #[error(transparent)]
    Operators(#[from] api::OperatorsError),
    /// The system gives no more: the operator's fault.
    #[error("no thread can be started: {0}; raise the limits of processes and open files (`ulimit -u -n`)")]
    Thread(#[source] std::io::Error),
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
    issuer: Stage,
    api: Stage,
}

impl Stages {
    /// What moves data has a thread of its own; all else shares the runtime of the caller.
    fn new() -> Result<Self, RunError> {
        let (stage, data) = (Stage::default(), OwnThread::start("data").map_err(RunError::Thread)?);
        Ok(Self {
            transport: stage.next_on(Arc::<OwnThread>::clone(&data)),
            membership: stage.next(),
            catalog: stage.next(),
            registry: stage.next(),
            relay: stage.next_on(data),
            dns: stage.next(),
            issuer: stage.next(),
            api: stage,
        })
    }

    /// Returns the stages of the replicated part.
    fn mesh(&self) -> MeshStages {
        let (transport, membership) = (self.transport.clone(), self.membership.clone());
        MeshStages { transport, membership, catalog: self.catalog.clone() }
    }

    /// Stops in the reverse order of start: nothing new comes in, flows end, the others are told, and last
    /// the connections close.
    async fn stop(&self) {
        let order = [
            &self.api,
            &self.issuer,
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

/// Runs the daemon until `stop` is cancelled or a part fails. Calls `on_ready` once everything listens. Before the end it
/// lets flows end, unless `at_once` is cancelled.
///
/// # Errors
/// See [`RunError`]; everything that was started is stopped again.
pub async fn run(
    start: Start,
    store: Store,
    identity: Identity,
    on_ready: impl FnOnce(&Ready),
    stop: CancellationToken,
    at_once: CancellationToken,
) -> Result<(), RunError> {
    let stages = Stages::new()?;
    let deadline = start.settings.drain_deadline;
    let wiring = Wiring::new(&stages, start, store, Arc::new(identity));
    let result = match wiring.start(&stop).await {
        Ok(ready) => {
            on_ready(&ready);
            let running = async {
                stop.cancelled().await;
                drain(&ready, deadline).await;
            };
            tokio::select! {
                biased;
                () = at_once.cancelled() => Ok(()),
                at = ready.peers.runs_twice() => Err(RunError::RunsTwice(at)),
                part = stages.transport.failure() => Err(RunError::Failed(part)),
                () = running => Ok(()),
            }
        }
        Err(error) => Err(error),
    };
    stages.stop().await;
    result
}

/// Lets no new flow come to services of this node and waits for those that live, at most `deadline`.
async fn drain(ready: &Ready, deadline: Duration) {
    // Others try another instance from here on. A registry that cannot say so must not keep the daemon.
    if tokio::time::timeout(STAGE_WITHIN, ready.registry.leave()).await.is_err() {
        tracing::warn!("the services of this node could not be drained in time");
    }
    let left = ready.relay.leave(deadline).await;
    if left > 0 {
        tracing::warn!(flows = left, "flows are reset: drain.deadline is over");
    }
}

#[cfg(test)]
mod tests;
