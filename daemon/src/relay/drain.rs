//! Draining: which flows of this node's services still live, and their end at a deadline.
//!
//! Owns: the count of flows by registration, the way to end them. Must not know: who drains, records, sockets.
//! Driven by: `inbound` and `outbound`, which count each flow in before they ask whether its target drains; the local API,
//! which ends what is left.
//!
//! A lock and no task, as in `flow`: every flow counts itself in and out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use gossamer_wire::flow::OpenRequest;
use gossamer_wire::{InstanceName, ServiceName};

use super::Relay;

/// A registration of this node.
pub(super) type Key = (ServiceName, InstanceName);

/// The flows that end at targets of this node, and all TCP flows. Clones are handles.
#[derive(Clone, Debug, Default)]
pub(super) struct Living {
    served: Arc<Mutex<BTreeMap<Key, Served>>>,
    /// All that a daemon that stops waits for.
    all: TaskTracker,
    /// Until when a daemon that stops waits.
    leaves_at: Arc<OnceLock<Instant>>,
}

#[derive(Debug, Default)]
struct Served {
    flows: usize,
    over: CancellationToken,
}

/// A flow that ends at a target of this node; it counts until this is dropped.
#[derive(Debug)]
pub(super) struct Serving {
    living: Living,
    key: Key,
    over: CancellationToken,
}

impl Living {
    /// Counts a flow as one that a stop waits for.
    pub(super) fn begin(&self) -> TaskTrackerToken {
        self.all.token()
    }

    /// Counts a flow at a registration. Ask after it, not before, whether that drains: then a drain either sees the
    /// flow or the flow sees the drain.
    pub(super) fn serve(&self, key: Key) -> Serving {
        let mut served = self.lock();
        let entry = served.entry(key.clone()).or_default();
        entry.flows += 1;
        let over = entry.over.clone();
        drop(served);
        Serving { living: self.clone(), key, over }
    }

    /// Returns how many flows of a registration live.
    pub(super) fn of(&self, key: &Key) -> usize {
        self.lock().get(key).map_or(0, |served| served.flows)
    }

    /// Ends the flows of a registration; later ones are not concerned.
    pub(super) fn end(&self, key: &Key) {
        if let Some(served) = self.lock().get_mut(key) {
            std::mem::take(&mut served.over).cancel();
        }
    }

    /// Returns how many TCP flows live.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Resolves when no TCP flow lives.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn ended(&self) {
        self.all.close();
        self.all.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Served>> {
        // No operation leaves it half-done.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serving {
    /// Resolves when the flow has to end although its programs have not.
    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut served = self.living.lock();
        if let Some(entry) = served.get_mut(&self.key) {
            entry.flows = entry.flows.saturating_sub(1);
            if entry.flows == 0 {
                served.remove(&self.key);
            }
        }
    }
}

impl Relay {
    /// Returns how many flows of a registration of this node live.
    pub fn served_flows(&self, service: &ServiceName, instance: &InstanceName) -> usize {
        self.living.of(&(service.clone(), instance.clone()))
    }

    /// Returns whether a target of this node takes no new flows at the moment.
    pub(super) fn drains(&self, request: &OpenRequest) -> bool {
        let OpenRequest { service, instance, port, transport, .. } = request;
        let target = self.parts.targets.lookup(service, instance, port, *transport);
        target.is_some_and(|target| target.draining)
    }

    /// Returns whether this node stops as soon as its flows have ended.
    pub(super) fn is_leaving(&self) -> bool {
        self.living.leaves_at.get().is_some()
    }

    /// Returns how many TCP flows live and how long they still may; `None` unless this node stops.
    pub fn leaving(&self) -> Option<(usize, Duration)> {
        let left = self.living.leaves_at.get()?.saturating_duration_since(Instant::now());
        Some((self.living.len(), left))
    }

    /// Waits until no TCP flow lives, at most `within`: this node stops. Returns how many are left, which the stop resets.
    /// The registrations have to drain already.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn leave(&self, within: Duration) -> usize {
        let at = *self.living.leaves_at.get_or_init(|| Instant::now() + within);
        let left = self.living.len();
        if left > 0 {
            tracing::info!(flows = left, within = ?within, "draining: waiting for flows to end");
        }
        let _ = tokio::time::timeout_at(at, self.living.ended()).await;
        self.living.len()
    }

    /// Ends the flows of a registration after `left`, unless its drain was undone or got another deadline
    /// than `until` meanwhile.
    pub fn end_drained(&self, service: ServiceName, instance: InstanceName, left: Duration, until: u64) {
        let (relay, at) = (self.clone(), Instant::now() + left);
        self.parts.stage.spawn_short("drain", async move {
            tokio::select! {
                biased;
                () = relay.parts.stage.stopping().cancelled() => return,
                () = tokio::time::sleep_until(at) => {}
            }
            let all = relay.parts.targets.all();
            let is_it = |local: &&crate::register::LocalService| {
                local.record.service == service && local.record.instance == instance
            };
            // Undone meanwhile, or begun again with another deadline, which has a task of its own.
            if all.iter().find(is_it).and_then(|local| local.drains_until) == Some(until) {
                relay.living.end(&(service, instance));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(instance: &str) -> Key {
        ("orders".parse().expect("name"), instance.parse().expect("name"))
    }

    #[tokio::test]
    async fn a_flow_counts_at_its_registration_while_it_lives() {
        let living = Living::default();
        let (first, second) = (living.serve(key("a")), living.serve(key("a")));
        assert_eq!((living.of(&key("a")), living.of(&key("b"))), (2, 0));
        drop(first);
        living.end(&key("b"));
        assert!(!second.over.is_cancelled());
        living.end(&key("a"));
        second.over().await;
        let later = living.serve(key("a"));
        assert!(!later.over.is_cancelled(), "a flow after the end is not ended by it");
        drop((second, later));
        assert!(living.lock().is_empty());
    }

    #[tokio::test]
    async fn the_end_of_all_waits_for_the_last_one() {
        let living = Living::default();
        let flow = living.begin();
        assert_eq!(living.len(), 1);
        let mut ended = std::pin::pin!(living.ended());
        assert!(futures_util::poll!(ended.as_mut()).is_pending());
        drop(flow);
        ended.await;
        living.ended().await;
    }
}
