//! UDP flows: datagrams between a local program and one instance of a service (ADR 27).
//!
//! Owns: the bounds and counters both ends share. Must not know: names, access, how a VIP got its port.
//! Driven by: VIP listeners (`vip`), which give each client a flow (`caller`); streams of peers (`server`).
//!
//! ```text
//! program -> vip -> caller -> QUIC datagram, or the flow's stream when it is too large -> server -> target
//! ```
//!
//! A flow is (client, VIP, port). It stays with one instance until it was idle for a minute, the target refused it, or
//! the instance is gone. Nothing waits for anything: what has no place is dropped, the oldest first, and counted.

mod caller;
mod frames;
mod judged;
mod opening;
mod queue;
mod server;
mod sockets;
mod vip;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use gossamer_wire::limits::MAX_UDP_FLOWS_PER_PEER;

use caller::Pinned;
pub(in crate::relay) use sockets::bind;
pub(in crate::relay) use vip::{Receiving, Vip};

use crate::metrics::FlowCounts;

/// What all UDP flows of this node share.
#[derive(Debug)]
pub(super) struct Udp {
    /// One for each flow of local programs.
    slots: Arc<Semaphore>,
    /// These flows, by number.
    living: Mutex<Living>,
    /// Flows of peers that may live at once, for the files they take.
    served: Arc<Semaphore>,
    /// Bytes that wait in all queues.
    queued: Arc<AtomicUsize>,
    began: Instant,
    idle: Duration,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Living {
    last: u64,
    flows: BTreeMap<u64, Weak<Pinned>>,
}

/// What is counted. All only grow, but for the first.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Flows that live.
    open: AtomicU64,
    /// Datagrams from clients to services.
    forward: AtomicU64,
    /// Datagrams from services to clients.
    back: AtomicU64,
    /// Dropped: too many waited, or too many bytes of all flows.
    queue: AtomicU64,
    /// Dropped: the connection to the other node is full.
    crowded: AtomicU64,
    /// Dropped: no place for another flow.
    full: AtomicU64,
    /// Dropped: no instance took the flow.
    unreachable: AtomicU64,
    /// Dropped: the program's socket took no more.
    socket: AtomicU64,
}

impl Default for Udp {
    fn default() -> Self {
        Self::idle_after(IDLE)
    }
}

impl Udp {
    fn idle_after(idle: Duration) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(MAX_UDP_FLOWS_PER_PEER as usize)),
            living: Mutex::default(),
            served: Arc::new(Semaphore::new(max_served())),
            queued: Arc::default(),
            began: Instant::now(),
            idle,
            counters: Counters::default(),
        }
    }

    /// Enters the counters.
    pub(super) fn count_into(&self, counts: &mut FlowCounts) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        counts.udp_open = read(&counters.open);
        counts.datagrams_in = read(&counters.forward);
        counts.datagrams_out = read(&counters.back);
        let dropped = [
            ("queue", &counters.queue),
            ("crowded", &counters.crowded),
            ("full", &counters.full),
            ("unreachable", &counters.unreachable),
            ("socket", &counters.socket),
        ];
        counts.dropped = dropped.map(|(reason, counter)| (reason, read(counter))).into();
    }

    fn living(&self) -> MutexGuard<'_, Living> {
        // No operation leaves it half-done.
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the flow that was idle for longest, of all ports.
    fn longest_idle(&self) -> Option<Arc<Pinned>> {
        let living: Vec<_> = self.living().flows.values().filter_map(Weak::upgrade).collect();
        living.into_iter().min_by_key(|flow| flow.used_at())
    }

    /// Returns a clock for [`Used`].
    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

/// When a flow last carried a datagram, milliseconds since the relay began.
#[derive(Debug, Default)]
struct Used(AtomicU64);

impl Used {
    fn touch(&self, udp: &Udp) {
        self.0.store(udp.now(), Ordering::Relaxed);
    }

    fn at(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Resolves when nothing was carried for so long.
    async fn idle_for(&self, udp: &Udp, longest: Duration) {
        loop {
            let unused = Duration::from_millis(udp.now().saturating_sub(self.at()));
            match longest.checked_sub(unused) {
                None | Some(Duration::ZERO) => return,
                Some(left) => tokio::time::sleep(left).await,
            }
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// A quarter of the files this process may open, at most [`MAX_SERVED`]: each such flow takes one.
fn max_served() -> usize {
    let soft = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let quarter = soft.map_or(256, |(soft, _)| soft / 4);
    usize::try_from(quarter).unwrap_or(MAX_SERVED).min(MAX_SERVED)
}

/// Flows of all peers together: two peers that use all they may, at some 3 KiB and a socket each.
const MAX_SERVED: usize = 2 * MAX_UDP_FLOWS_PER_PEER as usize;

/// How long a flow stays without a datagram (design section 9).
const IDLE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
