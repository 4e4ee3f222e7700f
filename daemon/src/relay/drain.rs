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

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use gossamer_wire::flow::OpenRequest;
use gossamer_wire::{InstanceName, ServiceName};

use super::Relay;
use super::copy::Guarded;
use crate::register::LocalService;
use crate::transport::FlowStream;

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
    /// Ends what waits for the deadline of a registration's drain when it is dropped: one for each.
    deadlines: Arc<Mutex<BTreeMap<Key, DropGuard>>>,
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

    /// Resolves when the other node has got all of a flow that is done, its connection has ended, or the stage stops.
    /// A stop has to wait for it: the end of the connection would overtake what is under way.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn delivered(&self, stream: &mut Guarded<FlowStream>) {
        tokio::select! {
            biased;
            () = self.parts.stage.stopping().cancelled() => {}
            _ = stream.side().send.stopped() => {}
        }
    }

    /// Lets a flow that is done live on for a stop until it is [delivered](Self::delivered), beside its client.
    pub(super) fn deliver(&self, mut stream: Guarded<FlowStream>) {
        // The answer has mostly shown already that the question is there.
        if self.delivered(&mut stream).now_or_never().is_some() {
            return;
        }
        let (relay, living) = (self.clone(), self.living.begin());
        self.parts.stage.spawn_short("flow-end", async move {
            relay.delivered(&mut stream).await;
            drop(living);
        });
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
    /// than `until` meanwhile. The registration says already that it drains.
    pub fn end_drained(&self, service: ServiceName, instance: InstanceName, left: Duration, until: u64) {
        let (relay, at, key) = (self.clone(), Instant::now() + left, (service, instance));
        let Some(replaced) = self.waits(&key, until) else { return };
        self.parts.stage.spawn_short("drain", async move {
            tokio::select! {
                biased;
                () = relay.parts.stage.stopping().cancelled() => return,
                () = replaced.cancelled() => return,
                () = tokio::time::sleep_until(at) => {}
            }
            // It may have been undone meanwhile.
            if relay.drains_until(&key) == Some(until) {
                relay.living.end(&key);
            }
        });
    }

    /// Lets a new task wait for the deadline of a registration in place of an older one, and nothing for registrations
    /// that are no longer there. Returns what ends it; `None` when the drain has another deadline already.
    fn waits(&self, key: &Key, until: u64) -> Option<CancellationToken> {
        let mut deadlines = self.living.deadlines.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock: of two drains at once the later one has the last word in both places.
        if self.drains_until(key) != Some(until) {
            return None;
        }
        let all = self.parts.targets.all();
        deadlines.retain(|(service, instance), _| {
            all.iter().any(|local| local.record.service == *service && local.record.instance == *instance)
        });
        let replaced = CancellationToken::new();
        deadlines.insert(key.clone(), replaced.clone().drop_guard());
        Some(replaced)
    }

    fn drains_until(&self, (service, instance): &Key) -> Option<u64> {
        let all = self.parts.targets.all();
        let is_it =
            |local: &&LocalService| local.record.service == *service && local.record.instance == *instance;
        all.iter().find(is_it)?.drains_until
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;
    use crate::relay::tests::{Bench, HERE, Hops, Link, local_service};

    /// A stream whose end is written and not yet sent: nothing else runs before the test waits.
    async fn written(link: &Link) -> Guarded<FlowStream> {
        let mut stream = Guarded::new(link.open().await);
        stream.side().send.write_all(b"the last words").await.expect("written");
        stream.side().send.finish().expect("open");
        stream.finished();
        stream
    }

    #[tokio::test]
    async fn a_stop_waits_until_the_other_node_has_the_last_words_of_a_flow_that_is_done() {
        let (bench, link) = (Bench::new(HERE, Arc::new(Hops(None))), Link::new().await);
        bench.relay.deliver(written(&link).await);
        let mut leave = pin!(bench.relay.leave(Duration::from_secs(3_600)));
        assert!(poll!(leave.as_mut()).is_pending());
        assert_eq!(bench.relay.leaving().map(|(flows, _)| flows), Some(1));
        assert_eq!(leave.await, 0);
        link.near.close(0_u32.into(), b"");
        let mut got = link.accept("west").await;
        assert_eq!(got.recv.read_to_end(100).await.expect("all of it"), b"the last words");
    }

    #[tokio::test]
    async fn a_dead_connection_and_a_stop_end_the_wait() {
        let (bench, link) = (Bench::new(HERE, Arc::new(Hops(None))), Link::new().await);
        for is_stop in [false, true] {
            let mut stream = written(&link).await;
            let mut wait = pin!(bench.relay.delivered(&mut stream));
            assert!(poll!(wait.as_mut()).is_pending());
            if is_stop {
                bench.stage.stopping().cancel();
                assert!(poll!(wait.as_mut()).is_ready());
            } else {
                let other = Link::new().await;
                let mut lost = written(&other).await;
                other.near.close(0_u32.into(), b"");
                bench.relay.delivered(&mut lost).await;
                wait.await;
            }
        }
    }

    #[tokio::test]
    async fn drains_over_and_over_leave_one_task_for_each_registration() {
        let bench = Bench::new(HERE, Arc::new(Hops(None)));
        let at = "127.0.0.1:1".parse().expect("an address");
        let drain = |instances: &[&str], until| {
            let draining = |name: &&str| {
                let mut local = local_service("orders", name, 5432, at);
                local.drains_until = Some(until);
                local
            };
            bench.targets.set(instances.iter().map(draining).collect());
        };
        let week = Duration::from_secs(7 * 86_400);
        drain(&["a", "b"], 0);
        let first = bench.relay.waits(&key("a"), 0).expect("it drains");
        let other = bench.relay.waits(&key("b"), 0).expect("it drains");
        for until in 1..100 {
            drain(&["a", "b"], until);
            let (service, instance) = key("a");
            bench.relay.end_drained(service, instance, week, until);
        }
        assert!(first.is_cancelled() && !other.is_cancelled());
        assert_eq!(bench.relay.living.deadlines.lock().expect("not poisoned").len(), 2);
        // An older drain that comes late takes nobody's place.
        let last = bench.relay.waits(&key("a"), 99).expect("it drains");
        assert!(bench.relay.waits(&key("a"), 98).is_none() && !last.is_cancelled());
        drain(&["a"], 99);
        let _again = bench.relay.waits(&key("a"), 99);
        assert!(other.is_cancelled() && last.is_cancelled(), "one was withdrawn, one replaced");
    }

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
