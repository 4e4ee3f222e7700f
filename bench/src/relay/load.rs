//! What clients do: connect, ask, send, stay.
//!
//! Owns: the clients of each measurement and what they saw. Must not know: systems, processor time. Driven by: the
//! suite, on a thread of the namespace the clients live in.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::target::{BULK, ECHO};
use super::{is_interrupted, pause};

/// Bytes of a request and of its answer.
pub(super) const REQUEST: usize = 100;
/// Bytes of one write of a bulk stream.
const BLOCK: usize = 128 << 10;
/// How long one exchange may take; a try that takes longer has failed.
const TRY: Duration = Duration::from_secs(20);
/// How long a failed client waits before it tries again.
const AGAIN: Duration = Duration::from_millis(5);
/// How long a write may be stuck before its stream looks whether it shall end.
const STUCK: Duration = Duration::from_millis(100);

/// When clients begin to count, and when they end. What comes before warms caches up and is served all the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) warm: Duration,
    pub(super) run: Duration,
}

/// What clients saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Exchanges of the whole time.
    pub(super) all: u64,
    /// Exchanges that failed, of the whole time.
    pub(super) failed: u64,
    /// Microseconds of each exchange that began while it counted.
    pub(super) times: Vec<u32>,
    /// The first failure.
    pub(super) error: Option<String>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.failed += other.failed;
        self.times.extend(other.times);
        self.error = self.error.take().or(other.error);
    }

    fn note(&mut self, began: Instant, counts_from: Instant, result: std::io::Result<()>) -> bool {
        match result {
            Ok(()) => {
                self.all += 1;
                if began >= counts_from {
                    self.times.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
                true
            }
            Err(error) => {
                self.failed += 1;
                self.error.get_or_insert_with(|| error.to_string());
                false
            }
        }
    }

    /// Returns the time that a share of all exchanges stayed below, microseconds; NaN of nothing.
    pub(super) fn quantile(&mut self, share: f64) -> f64 {
        self.times.sort_unstable();
        let last = self.times.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and the length"
        )]
        let index = (last as f64 * share).ceil() as usize;
        self.times.get(index.min(last)).map_or(f64::NAN, |time| f64::from(*time))
    }
}

/// Connects, sends a byte, gets it back, closes; so many clients, each again and again.
///
/// # Errors
/// The system refuses a runtime.
pub(super) fn connections(address: SocketAddr, clients: usize, times: Times) -> Result<Seen> {
    together(clients, times, move |counts_from, end| async move {
        let mut seen = Seen::default();
        loop {
            let began = Instant::now();
            if began >= end || is_interrupted() {
                return seen;
            }
            if !seen.note(began, counts_from, limited(once(address)).await) {
                tokio::time::sleep(AGAIN).await;
            }
        }
    })
}

async fn once(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[ECHO]).await?;
    stream.read_exact(&mut [0]).await.map(drop)
}

/// Asks again and again on connections that stay, one question at a time on each. Connections are made before it counts.
///
/// # Errors
/// The system refuses a runtime.
pub(super) fn requests(address: SocketAddr, clients: usize, times: Times) -> Result<Seen> {
    together(clients, times, move |counts_from, end| async move {
        let mut seen = Seen::default();
        while Instant::now() < end && !is_interrupted() {
            let mut stream = match tokio::net::TcpStream::connect(address).await {
                Ok(stream) => stream,
                Err(error) => {
                    seen.note(counts_from, counts_from, Err(error));
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            loop {
                let began = Instant::now();
                if began >= end || is_interrupted() {
                    return seen;
                }
                if !seen.note(began, counts_from, limited(ask(&mut stream)).await) {
                    tokio::time::sleep(AGAIN).await;
                    break;
                }
            }
        }
        seen
    })
}

async fn ask(stream: &mut tokio::net::TcpStream) -> std::io::Result<()> {
    stream.write_all(&[ECHO; REQUEST]).await?;
    stream.read_exact(&mut [0; REQUEST]).await.map(drop)
}

async fn limited(exchange: impl Future<Output = std::io::Result<()>>) -> std::io::Result<()> {
    timeout(TRY, exchange).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// Runs clients on this thread until they end.
fn together<F>(clients: usize, times: Times, client: impl Fn(Instant, Instant) -> F) -> Result<Seen>
where
    F: Future<Output = Seen> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let counts_from = Instant::now() + times.warm;
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            tasks.spawn(client(counts_from, counts_from + times.run));
        }
        let mut all = Seen::default();
        while let Some(seen) = tasks.join_next().await {
            all.add(seen.context("a client")?);
        }
        Ok(all)
    })
}

/// Sends as fast as it goes on so many streams while `measure` looks on; then resets them.
///
/// # Errors
/// Those of `measure`, or a stream broke.
pub(super) fn bulk<T>(address: SocketAddr, streams: usize, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending: Vec<_> = (0..streams).map(|_| scope.spawn(|| send(address, &stop))).collect();
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        for thread in sending {
            match thread.join() {
                Ok(sent) => sent.context("a bulk stream")?,
                Err(_) => bail!("a bulk stream panicked"),
            }
        }
        measured
    })
}

fn send(address: SocketAddr, stop: &AtomicBool) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_write_timeout(Some(STUCK))?;
    // What waits in buffers when the time is over is of no use to anybody.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let block = vec![BULK; BLOCK];
    while !stop.load(Ordering::Relaxed) && !is_interrupted() {
        match stream.write(&block) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Connects, sends a byte, gets it back, and stays.
///
/// # Errors
/// Any of it fails.
pub(super) fn stay(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, TRY)?;
    stream.set_read_timeout(Some(TRY))?;
    stream.write_all(&[ECHO])?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Waits until a connection that has nothing to read ends; returns how it did, `None` when it has not in time.
///
/// # Errors
/// Interrupted.
pub(super) fn ending(stream: &mut TcpStream, limit: Duration) -> Result<Option<std::io::Result<()>>> {
    let end = Instant::now() + limit;
    stream.set_read_timeout(Some(STUCK))?;
    while Instant::now() < end {
        pause(Duration::ZERO)?;
        match stream.read(&mut [0]) {
            Ok(0) => return Ok(Some(Ok(()))),
            Ok(_) => bail!("bytes that nobody sent"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Ok(Some(Err(error))),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchanges_that_began_early_are_served_but_not_timed() {
        let began = Instant::now();
        let later = began + Duration::from_secs(1);
        let mut seen = Seen::default();
        assert!(seen.note(began, later, Ok(())));
        assert!(seen.note(later, later, Ok(())));
        assert!(!seen.note(later, later, Err(ErrorKind::ConnectionReset.into())));
        assert_eq!((seen.all, seen.failed, seen.times.len()), (2, 1, 1));
        assert!(seen.error.expect("kept").contains("reset"));
    }

    #[test]
    fn a_quantile_is_one_of_the_times() {
        let mut seen = Seen { times: (1..=101).rev().collect(), ..Seen::default() };
        assert_eq!((seen.quantile(0.5), seen.quantile(0.99)), (51.0, 100.0));
        assert!(Seen::default().quantile(0.5).is_nan());
    }

    #[test]
    fn an_end_and_a_reset_are_told_apart() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        for linger in [None, Some(Duration::ZERO)] {
            let mut client = TcpStream::connect(address).expect("connected");
            let (server, _) = listener.accept().expect("a client");
            assert!(ending(&mut client, Duration::ZERO).expect("looked").is_none());
            SockRef::from(&server).set_linger(linger).expect("set");
            drop(server);
            let ended = ending(&mut client, TRY).expect("looked").expect("ended");
            assert_eq!(ended.is_err(), linger.is_some());
        }
    }
}
