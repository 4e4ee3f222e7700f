//! The right of living flows to go on: judged again when rules, the policy or the imports of this node change.
//!
//! Owns: which flows live by which right, and the one task that judges them. Must not know: bytes, sockets.
//! Driven by: `inbound` and `outbound`, which hold a [`Permit`] for each flow; changes of registrations and of the index.
//!
//! A flow that was judged before a change was stored is in the table when that change is acted on, since it is entered
//! before it is judged. A service that was withdrawn, or whose node is gone, ends no flow here: nobody has said that the
//! caller may not call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, oneshot, watch};

use gossamer_core::catalog::ServiceView;
use gossamer_core::trust::Leaf;
use gossamer_core::vip::VipName;
use gossamer_wire::flow::OpenRequest;
use gossamer_wire::{InstanceName, NodeId, ServiceName};

use super::Relay;
use super::outbound::Choice;

/// Why a flow ended that had a right to live before, for access lines.
pub(super) const NO_LONGER_ALLOWED: &str = "no longer allowed";
/// As that, for a flow by a short name whose import has gone.
pub(super) const NO_LONGER_IMPORTED: &str = "no longer imported";

/// The flows. Clones are handles.
#[derive(Clone, Debug, Default)]
pub(super) struct Permits(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// Flows to targets of this node.
    targets: BTreeMap<u64, Called>,
    /// Flows of this node's programs by short names.
    names: BTreeMap<ServiceName, BTreeMap<u64, Imported>>,
}

#[derive(Debug)]
struct Called {
    request: Box<OpenRequest>,
    caller: Arc<Leaf>,
    revoke: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Imported {
    node: NodeId,
    instance: InstanceName,
    revoke: oneshot::Sender<()>,
}

impl Permits {
    /// Enters a flow to a target of this node. Judge it afterwards.
    pub(super) fn call(&self, request: &OpenRequest, caller: &Arc<Leaf>) -> Permit {
        let (revoke, revoked) = oneshot::channel();
        let called = Called { request: Box::new(request.clone()), caller: Arc::clone(caller), revoke };
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        table.targets.insert(number, called);
        Permit { permits: self.clone(), number, service: None, revoked }
    }

    fn import(&self, service: &ServiceName, node: NodeId, instance: &InstanceName) -> Permit {
        let (revoke, revoked) = oneshot::channel();
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        let imported = Imported { node, instance: instance.clone(), revoke };
        table.names.entry(service.clone()).or_default().insert(number, imported);
        Permit { permits: self.clone(), number, service: Some(service.clone()), revoked }
    }

    /// Revokes the flows to targets that may not go on.
    fn revoke_calls(&self, may_go_on: impl Fn(&OpenRequest, &Leaf) -> bool) -> usize {
        let mut table = self.lock();
        let ends = |called: &Called| !may_go_on(&called.request, &called.caller);
        let gone = table.targets.iter().filter(|(_, called)| ends(called)).map(|(number, _)| *number);
        let gone: Vec<_> = gone.collect();
        let gone = gone.iter().filter_map(|number| table.targets.remove(number));
        // Who held it may have ended in this moment.
        gone.filter_map(|called| called.revoke.send(()).ok()).count()
    }

    /// Revokes the flows by the short name of a service that may not go on.
    fn revoke_imports(
        &self,
        service: &ServiceName,
        may_go_on: impl Fn(NodeId, &InstanceName) -> bool,
    ) -> usize {
        let mut table = self.lock();
        let Some(flows) = table.names.get_mut(service) else { return 0 };
        let ends = |flow: &Imported| !may_go_on(flow.node, &flow.instance);
        let gone: Vec<_> = flows.iter().filter(|(_, flow)| ends(flow)).map(|(number, _)| *number).collect();
        let gone = gone.iter().filter_map(|number| flows.remove(number));
        gone.filter_map(|flow| flow.revoke.send(()).ok()).count()
    }

    /// Returns the services that a short name leads to from here.
    fn named(&self) -> Vec<ServiceName> {
        self.lock().names.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No operation leaves it half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right of one flow. It is not judged any more when this is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    permits: Permits,
    number: u64,
    /// For a flow by its short name.
    service: Option<ServiceName>,
    revoked: oneshot::Receiver<()>,
}

impl Permit {
    /// Resolves when the flow must end.
    ///
    /// # Cancel safety
    /// Cancel safe until it has resolved; after that it must not be called again.
    pub(super) async fn revoked(&mut self) {
        if (&mut self.revoked).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut table = self.permits.lock();
        match &self.service {
            None => drop(table.targets.remove(&self.number)),
            Some(service) => {
                if let Some(flows) = table.names.get_mut(service) {
                    flows.remove(&self.number);
                    if flows.is_empty() {
                        table.names.remove(service);
                    }
                }
            }
        }
    }
}

/// Resolves when the flow of a permit must end; never where none is needed.
///
/// # Cancel safety
/// As [`Permit::revoked`].
pub(super) async fn revoked(permit: &mut Option<Permit>) {
    match permit {
        Some(permit) => permit.revoked().await,
        None => std::future::pending().await,
    }
}

impl Relay {
    /// Enters a flow by a name of this node's programs; only short names depend on imports. A flow whose import went
    /// while it was opened is revoked at once.
    pub(super) fn import(&self, name: &VipName, choice: &Choice) -> Option<Permit> {
        let VipName::Service(service) = name else { return None };
        let permit = self.permits.import(service, choice.node, &choice.instance);
        let view = self.parts.index.service(service);
        if not_imported(view.as_deref()).contains(&(choice.node, &choice.instance)) {
            self.judge_imports(service);
        }
        Some(permit)
    }

    /// Judges living flows after each change until the stage stops. What changes is subscribed before any flow lives.
    pub(super) async fn judge(
        self,
        (mut access, mut services): (watch::Receiver<()>, broadcast::Receiver<ServiceName>),
    ) {
        let stop = self.parts.stage.stopping().clone();
        loop {
            let change = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = access.changed() => Change::Access,
                changed = services.recv() => match changed {
                    Ok(service) => Change::Service(service),
                    Err(RecvError::Lagged(_)) => Change::Services,
                    // The index is gone; this task has to last as long as its stage.
                    Err(RecvError::Closed) => return stop.cancelled().await,
                },
            };
            let ended = match change {
                Change::Access => self.judge_calls(),
                Change::Service(service) => self.judge_imports(&service),
                Change::Services => {
                    self.permits.named().iter().map(|service| self.judge_imports(service)).sum()
                }
            };
            if ended > 0 {
                tracing::debug!(ended, "flows may not go on");
            }
        }
    }

    fn judge_calls(&self) -> usize {
        self.permits.revoke_calls(|request, caller| {
            let OpenRequest { service, instance, port, transport, .. } = request;
            let target = self.parts.targets.lookup(service, instance, port, *transport);
            target.is_none_or(|target| target.access.judge(&self.parts.group, &caller.subject()).admits())
        })
    }

    fn judge_imports(&self, service: &ServiceName) -> usize {
        let view = self.parts.index.service(service);
        // Once for all flows, before the lock that each flow takes.
        let foreign = not_imported(view.as_deref());
        if foreign.is_empty() {
            return 0;
        }
        self.permits.revoke_imports(service, |node, instance| !foreign.contains(&(node, instance)))
    }
}

/// What has changed.
enum Change {
    Access,
    Service(ServiceName),
    /// It is not known which ones.
    Services,
}

/// Returns the instances that may not be behind the short name: what is not there, or hidden, says nothing of imports.
fn not_imported(view: Option<&ServiceView>) -> BTreeSet<(NodeId, &InstanceName)> {
    let all = view.into_iter().flat_map(|view| &view.instances);
    all.filter(|found| !found.imported).map(|found| (found.node, &found.instance)).collect()
}
