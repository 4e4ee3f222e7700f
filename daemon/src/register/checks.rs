//! The checks of targets: when each one runs, how a connection is tried.
//!
//! Owns: the checks under way and waiting. Must not know: verdicts, services. Driven by: `task`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;

use super::book::{CheckId, Probe};
use super::place::{Connected, Place};
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
    /// A reading of the machine's listeners, of TCP and of UDP.
    Scan(Listeners, Listeners),
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
    pub(super) async fn first(
        &mut self,
        ids: Vec<CheckId>,
    ) -> (Vec<(CheckId, Probe)>, (Listeners, Listeners)) {
        let probes = ids.into_iter().map(|id| self.probe(id, Duration::ZERO, self.pace.first_timeout));
        let probes = join_all(probes.collect::<Vec<_>>()).await;
        (probes, read_listeners().await)
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
            let (tcp, udp) = read_listeners().await;
            Done::Scan(tcp, udp)
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
            let probe = connect(&id.addr, id.proxy_protocol, timeout).await;
            (id, probe)
        }
    }

    fn next_delay(&self) -> Duration {
        self.pace.interval.mul_f64(rand::random_range(1.0 - JITTER..1.0 + JITTER))
    }
}

async fn read_listeners() -> (Listeners, Listeners) {
    Stage::blocking(|| (Listeners::read_blocking(), Listeners::read_udp_blocking())).await
}

/// Connects and closes the connection, after a header that says so when the program waits for one.
async fn connect(place: &Place, proxy_protocol: bool, timeout: Duration) -> Probe {
    let (is_local, address) = match place {
        Place::Ip(address) => (address.ip().is_loopback(), Some(*address)),
        Place::Unix { .. } => (false, None),
    };
    let connecting = async {
        let mut connected = place.connect().await?;
        if proxy_protocol {
            connected.write_all(&PROXY_LOCAL).await?;
        }
        Ok(connected)
    };
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(Connected::Tcp(stream))) => {
            let local = stream.local_addr().ok();
            let is_same = |local: std::net::SocketAddr| address.is_some_and(|addr| addr.ip() == local.ip());
            Probe {
                // Without a listener on an ephemeral port the kernel may connect a socket to itself.
                passed: local != address,
                is_local: is_local || local.is_some_and(is_same),
                trouble: None,
            }
        }
        Ok(Ok(Connected::Unix(_))) => Probe { passed: true, is_local, trouble: None },
        Ok(Err(error)) => Probe { passed: false, is_local, trouble: place.trouble(&error) },
        Err(_) => {
            let trouble = place.trouble(&std::io::ErrorKind::TimedOut.into());
            Probe { passed: false, is_local, trouble }
        }
    }
}

/// The PROXY header of a connection by the proxy itself: "LOCAL" without addresses.
const PROXY_LOCAL: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    #[tokio::test]
    async fn a_listener_passes_and_its_absence_fails() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let place = Place::Ip(listener.local_addr().expect("bound"));
        let second = Duration::from_secs(1);
        assert_eq!(
            connect(&place, false, second).await,
            Probe { passed: true, is_local: true, trouble: None }
        );
        drop(listener);
        assert!(!connect(&place, false, second).await.passed);
    }

    #[tokio::test]
    async fn a_program_that_waits_for_a_header_is_told_that_it_is_checked_only() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let place = Place::Ip(listener.local_addr().expect("bound"));
        assert!(connect(&place, true, Duration::from_secs(1)).await.passed);
        let (mut checked, _) = listener.accept().await.expect("accepted");
        let mut said = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut checked, &mut said).await.expect("ended");
        let header = ppp::v2::Header::try_from(&said[..]).expect("a header");
        assert_eq!((header.command, header.len()), (ppp::v2::Command::Local, said.len()));
    }

    #[tokio::test]
    async fn an_address_that_swallows_packets_is_given_up_in_time() {
        let started = tokio::time::Instant::now();
        // TEST-NET-1 (RFC 5737) is nobody's: silence or an error, never a connection.
        let addr = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 9);
        let probe = connect(&addr.into(), false, Duration::from_millis(50)).await;
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
