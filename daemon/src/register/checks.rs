//! The checks of targets: when each one runs, how a connection is tried.
//!
//! Owns: the checks under way and waiting. Must not know: verdicts, services. Driven by: `task`.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::book::{CheckId, Probe};
use crate::listeners::Listeners;
use crate::supervise::Stage;

/// How often and how patiently targets are checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between the end of a check and the start of the next one, before jitter.
    pub(super) interval: Duration,
    /// Longest wait for a connection.
    pub(super) timeout: Duration,
    /// The same for the first check, which a caller waits for.
    pub(super) first_timeout: Duration,
}

impl Default for Pace {
    /// 5 s finds a dead program within 10 s (two failures) at the cost of one loopback connection; 1 s is
    /// far above a connect on the same host or rack; 300 ms is what a person does not notice at `expose`.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            first_timeout: Duration::from_millis(300),
        }
    }
}

/// Connections tried at once: with the timeout of 1 s, 320 targets that swallow packets are still checked
/// within one interval, and a daemon never holds more than 64 descriptors for checks.
const MAX_AT_ONCE: usize = 64;

/// Jitter of the interval, in both directions: targets registered together drift apart.
const JITTER: f64 = 0.1;

/// What has come to its end.
#[derive(Debug)]
pub(super) enum Done {
    /// A check.
    Probe(CheckId, Probe),
    /// A reading of the machine's listeners.
    Scan(Listeners),
}

/// Checks under way and waiting. One scan is always among them, so the set is never empty.
#[derive(Debug)]
pub(super) struct Checks {
    pace: Pace,
    permits: Arc<Semaphore>,
    /// Bounded by the ports of all registrations.
    running: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
}

impl Checks {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, permits: Arc::new(Semaphore::new(MAX_AT_ONCE)), running: FuturesUnordered::new() }
    }

    /// Runs checks at once, and reads the listeners after them: a program that answers is in the table.
    pub(super) async fn first(&mut self, ids: Vec<CheckId>) -> (Vec<(CheckId, Probe)>, Listeners) {
        let probes = ids.into_iter().map(|id| self.probe(id, Duration::ZERO, self.pace.first_timeout));
        let probes = join_all(probes.collect::<Vec<_>>()).await;
        (probes, Stage::blocking(Listeners::read_blocking).await)
    }

    /// Lets a check run after the interval.
    pub(super) fn schedule(&self, id: CheckId) {
        let probe = self.probe(id, self.next_delay(), self.pace.timeout);
        self.running.push(Box::pin(async move {
            let (id, probe) = probe.await;
            Done::Probe(id, probe)
        }));
    }

    /// Lets the machine's listeners be read after the interval.
    pub(super) fn schedule_scan(&self) {
        let delay = self.next_delay();
        self.running.push(Box::pin(async move {
            tokio::time::sleep(delay).await;
            Done::Scan(Stage::blocking(Listeners::read_blocking).await)
        }));
    }

    /// Waits for the next end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Done {
        match self.running.next().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    fn probe(
        &self,
        id: CheckId,
        delay: Duration,
        timeout: Duration,
    ) -> impl Future<Output = (CheckId, Probe)> + Send + use<> {
        let permits = Arc::clone(&self.permits);
        async move {
            tokio::time::sleep(delay).await;
            let _permit = permits.acquire_owned().await;
            let probe = connect(id.addr, timeout).await;
            (id, probe)
        }
    }

    fn next_delay(&self) -> Duration {
        self.pace.interval.mul_f64(rand::random_range(1.0 - JITTER..1.0 + JITTER))
    }
}

/// Connects to an address and closes the connection.
async fn connect(addr: SocketAddr, timeout: Duration) -> Probe {
    match tokio::time::timeout(timeout, TcpStream::connect(addr)).await {
        Ok(Ok(stream)) => {
            let local = stream.local_addr().ok();
            Probe {
                // Without a listener on an ephemeral port the kernel may connect a socket to itself.
                passed: local != Some(addr),
                is_local: addr.ip().is_loopback() || local.is_some_and(|local| local.ip() == addr.ip()),
            }
        }
        _ => Probe { passed: false, is_local: addr.ip().is_loopback() },
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn a_listener_passes_and_its_absence_fails() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        let second = Duration::from_secs(1);
        assert_eq!(connect(addr, second).await, Probe { passed: true, is_local: true });
        drop(listener);
        assert!(!connect(addr, second).await.passed);
    }

    #[tokio::test]
    async fn an_address_that_swallows_packets_is_given_up_in_time() {
        let started = tokio::time::Instant::now();
        // TEST-NET-1 (RFC 5737) is nobody's: silence or an error, never a connection.
        let addr = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 9);
        let probe = connect(addr, Duration::from_millis(50)).await;
        assert!(!probe.is_local);
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn intervals_are_jittered_around_five_seconds() {
        let checks = Checks::new(Pace::default());
        let delays: Vec<_> = (0..100).map(|_| checks.next_delay()).collect();
        assert!(delays.iter().all(|delay| (4_500..=5_500).contains(&delay.as_millis())));
        assert!(delays.iter().any(|delay| *delay != delays[0]));
    }
}
