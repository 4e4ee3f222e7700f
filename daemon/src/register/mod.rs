//! The registry of this node's own services: what it offers, where flows for it go, whether it is healthy.
//!
//! Owns: the handle of the one owner task, the snapshot of targets. Must not know: gossip, DNS, the wire of
//! the local API. Driven by: `api` (requests), `app` (start); read by `relay` and `vips`.
//!
//! A request is on disk and given to the catalog before it is answered. Start reading at `book`, which holds
//! every rule and does no I/O; `task` is the loop around it.

mod book;
mod checks;
mod drain;
mod health;
mod place;
mod request;
mod socket;
mod spec;
mod target;
mod task;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use gossamer_core::access::{Access, Policy};
use gossamer_wire::{InstanceName, PortName, ServiceName, ServiceRecord, Transport, Tries};

pub use drain::{DrainError, DrainRequest, Drained};
pub use place::{Connected, Host, Place, UnixPath};
pub use request::{
    ExposeError, ExposeRequest, Exposed, PortRequest, WithdrawError, WithdrawRequest, Withdrawn,
};
pub use spec::Rules;
pub use target::{Denial, DenyList};

#[cfg(test)]
pub(crate) use socket::tests::Program;

use crate::store::{Store, StoreError};
use crate::supervise::Stage;
use book::Book;
use checks::{Checks, Pace};
use task::{Command, Task};

/// Asks the registry. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Registry {
    commands: mpsc::Sender<Command>,
    raises: mpsc::Sender<Vec<Raise>>,
    policies: mpsc::Sender<(Policy, oneshot::Sender<()>)>,
    policy: watch::Receiver<Policy>,
    targets: TargetsReader,
    leaving: Leaving,
}

/// How the end of the daemon is told to the owner task.
#[derive(Clone, Debug, Default)]
struct Leaving {
    asked: CancellationToken,
    /// The targets and the catalog have it.
    done: CancellationToken,
}

/// Names of a registration that met others: publish them with at least these `try`s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raise {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// Its `try`s; one that is lower than what is published changes nothing.
    pub tries: Tries,
}

/// Sets of [`Raise`] that wait, and policies. Who sends a set looks again and says all that is still to be said, and who
/// sends a policy waits until it holds, so one is enough.
const WAITING_RAISES: usize = 1;

/// Requests that wait for the owner task. Two batches: one is written while the other one gathers; when it
/// is full, callers wait.
const WAITING_REQUESTS: usize = 128;

impl Registry {
    /// Registers an instance of a service, or replaces it. `Ok` means: on disk and given to the catalog.
    ///
    /// # Errors
    /// See [`ExposeError`]; nothing changed unless it says so.
    ///
    /// # Cancel safety
    /// A cancelled request may still be carried out; repeating it is harmless.
    pub async fn expose(&self, request: ExposeRequest) -> Result<Exposed, ExposeError> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Expose(Box::new(request), answer);
        self.commands.send(command).await.map_err(|_| ExposeError::Stopping)?;
        answered.await.unwrap_or(Err(ExposeError::Stopping))
    }

    /// Withdraws a service. `Ok` means: on disk and given to the catalog.
    ///
    /// # Errors
    /// See [`WithdrawError`]; nothing changed unless it says so.
    ///
    /// # Cancel safety
    /// A cancelled request may still be carried out.
    pub async fn withdraw(&self, request: WithdrawRequest) -> Result<Withdrawn, WithdrawError> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Withdraw(request, answer);
        self.commands.send(command).await.map_err(|_| WithdrawError::Stopping)?;
        answered.await.unwrap_or(Err(WithdrawError::Stopping))
    }

    /// Lets registrations take no new flows, or takes that back. `Ok` means: on disk and given to the catalog.
    ///
    /// # Errors
    /// See [`DrainError`]; nothing changed unless it says so.
    ///
    /// # Cancel safety
    /// A cancelled request may still be carried out; repeating it is harmless.
    pub async fn drain(&self, request: DrainRequest) -> Result<Drained, DrainError> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Drain(request, answer);
        self.commands.send(command).await.map_err(|_| DrainError::Stopping)?;
        answered.await.unwrap_or(Err(DrainError::Stopping))
    }

    /// Lets everything drain until the daemon has ended; the next start does not remember it. Returns when the relay and
    /// the catalog have it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn leave(&self) {
        self.leaving.asked.cancel();
        self.leaving.done.cancelled().await;
    }

    /// Lets another policy hold. When it returns, each new flow is judged by it, and the catalog has the records.
    ///
    /// # Cancel safety
    /// A cancelled call may still be carried out.
    pub async fn set_policy(&self, policy: Policy) {
        let (answer, answered) = oneshot::channel();
        if self.policies.send((policy, answer)).await.is_ok() {
            // It stops: nothing is judged any more.
            let _ = answered.await;
        }
    }

    /// Returns the policy that holds.
    pub fn policy(&self) -> Policy {
        *self.policy.borrow()
    }

    /// Returns where raised `try`s go. They are on disk before they are published.
    pub fn raises(&self) -> mpsc::Sender<Vec<Raise>> {
        self.raises.clone()
    }

    /// Returns read access to services and targets.
    pub fn targets(&self) -> TargetsReader {
        self.targets.clone()
    }
}

/// Read access to this node's services; clones are cheap and see later changes.
#[derive(Clone, Debug)]
pub struct TargetsReader {
    snapshot: Arc<ArcSwap<Vec<LocalService>>>,
    /// Changes when who may call what has.
    access: watch::Receiver<()>,
}

/// An instance this node offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalService {
    /// What the other nodes are told.
    pub record: ServiceRecord,
    /// Where its flows go, one per port of the record, in its order.
    pub targets: Vec<Target>,
    /// When flows that still live are ended, seconds since the Unix epoch, while `gossamer drain` counts.
    pub drains_until: Option<u64>,
}

/// Where the flows of one port go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where the program listens. Judge it by the [`DenyList`] again before it is dialled.
    pub addr: Place,
    /// TCP or UDP.
    pub transport: Transport,
    /// What clients connect to.
    pub port: u16,
    /// The verdict of its check; always `true` for UDP.
    pub healthy: bool,
    /// Why the last check failed, when that is more than that nobody listens.
    pub trouble: Option<&'static str>,
    /// Whether it wants a PROXY header before the client's bytes.
    pub proxy_protocol: bool,
    /// Who may call it.
    pub access: Arc<Access>,
    /// Whether it takes no new flows at the moment.
    pub draining: bool,
    /// Whether its program listens on the wildcard address of this machine, as last seen while it listened,
    /// also before a restart of the daemon; `None` when that was never seen.
    pub wildcard: Option<bool>,
}

impl Target {
    /// Says in words that its check fails.
    pub fn silence(&self) -> String {
        match self.trouble {
            Some(why) => format!("{} is not reached: {why}", self.addr),
            None => format!("nobody listens on {}", self.addr),
        }
    }
}

impl TargetsReader {
    /// Finds the target of a port, as an open request names it.
    pub fn lookup(
        &self,
        service: &ServiceName,
        instance: &InstanceName,
        port: &PortName,
        transport: Transport,
    ) -> Option<Target> {
        let services = self.snapshot.load();
        let wanted = (service, instance);
        let at = services
            .binary_search_by(|local| (&local.record.service, &local.record.instance).cmp(&wanted))
            .ok()?;
        let local = services.get(at)?;
        let is_meant = |known: &gossamer_wire::Port| known.name == *port && known.transport == transport;
        let index = local.record.ports.iter().position(is_meant)?;
        local.targets.get(index).cloned()
    }

    /// Returns all services, sorted by service and instance.
    pub fn all(&self) -> Arc<Vec<LocalService>> {
        self.snapshot.load_full()
    }

    /// Returns what tells of each change of who may call what, after it can be read here.
    pub fn access_changes(&self) -> watch::Receiver<()> {
        self.access.clone()
    }
}

/// A change of an instance's state, for the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// The state before, one word.
    pub was: &'static str,
    /// The state after, one word.
    pub now: &'static str,
    /// Why.
    pub cause: String,
}

impl Change {
    fn new((service, instance): &spec::Key, was: &'static str, now: &'static str, cause: &str) -> Self {
        Self { service: service.clone(), instance: instance.clone(), was, now, cause: cause.to_owned() }
    }
}

/// Restores the registrations and starts the owner task.
///
/// `records` gets the complete set of records first thing and after each change, in order; a request is
/// answered when its set was taken. `events` is called for each change; it must not block.
///
/// # Errors
/// The state file is damaged or cannot be read; nothing was started.
pub fn start(
    stage: &Stage,
    store: Store,
    rules: Rules,
    records: mpsc::Sender<Vec<ServiceRecord>>,
    events: impl Fn(Change) + Send + 'static,
) -> Result<Registry, StoreError> {
    start_at(stage, store, rules, records, events, Pace::default())
}

fn start_at(
    stage: &Stage,
    store: Store,
    rules: Rules,
    records: mpsc::Sender<Vec<ServiceRecord>>,
    events: impl Fn(Change) + Send + 'static,
    pace: Pace,
) -> Result<Registry, StoreError> {
    let stored = store.read_json(spec::FILE)?;
    let damaged = |why| StoreError::Damaged { path: store.dir().join(spec::FILE), why };
    let (book, barred) = Book::restore(rules, stored).map_err(damaged)?;
    for ((service, instance), fault) in barred {
        tracing::warn!(%service, %instance, err = %fault, "a registered service is not offered");
    }
    let snapshot = Arc::new(ArcSwap::from_pointee(book.services()));
    let (commands, asked) = mpsc::channel(WAITING_REQUESTS);
    let (raises, raised) = mpsc::channel(WAITING_RAISES);
    let (policies, ruled) = mpsc::channel(WAITING_RAISES);
    let (policy_holds, policy) = watch::channel(book.rules().policy);
    let (access_changed, access) = watch::channel(());
    let targets = TargetsReader { snapshot: Arc::clone(&snapshot), access };
    let leaving = Leaving::default();
    let task = Task {
        book,
        checks: Checks::new(pace),
        store,
        commands: asked,
        raises: raised,
        policies: ruled,
        policy_holds,
        snapshot,
        access_changed,
        records,
        leaving: leaving.clone(),
        events: Box::new(events),
    };
    stage.spawn("registry", task.run(stage.stopping().clone()));
    Ok(Registry { commands, raises, policies, policy, targets, leaving })
}

#[cfg(test)]
mod tests;
