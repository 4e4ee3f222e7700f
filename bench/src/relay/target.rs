//! The program behind every system: echoes, or swallows, and counts.
//!
//! Owns: its listener and its counts. Must not know: who calls. Driven by: the suite.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gossamer_tests::netns::Namespace;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// Where it listens, on every address.
pub(super) const PORT: u16 = 9_000;

/// First byte of a connection that is swallowed; any other is echoed, and so is all that follows.
pub(super) const BULK: u8 = b'b';
/// First byte of a connection that is echoed.
pub(super) const ECHO: u8 = b'e';

/// Bytes of one read of a swallowed connection.
const SWALLOW: usize = 256 << 10;
/// Bytes of one read of an echoed one.
const MOUTHFUL: usize = 1 << 10;

/// How long what clients have closed may take to arrive here.
const QUIET: Duration = Duration::from_secs(30);

/// What it has seen.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Connections whose first byte was echoed.
    pub(super) served: AtomicU64,
    /// Bytes echoed.
    pub(super) echoed: AtomicU64,
    /// Bytes swallowed.
    pub(super) swallowed: AtomicU64,
    /// Connections that are open.
    open: AtomicU64,
}

impl Counts {
    /// Waits until no connection is open, so that what one measurement leaves behind is not paid for by the next.
    ///
    /// # Errors
    /// Some stay open.
    pub(super) fn quiet(&self) -> Result<()> {
        let end = Instant::now() + QUIET;
        while self.open.load(Ordering::Relaxed) > 0 {
            ensure!(
                Instant::now() < end,
                "{} connections stay open at the target",
                self.open.load(Ordering::Relaxed)
            );
            super::pause(Duration::from_millis(5))?;
        }
        Ok(())
    }
}

/// The program while it runs.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    /// Starts it in a namespace.
    ///
    /// # Errors
    /// The port is in use there.
    pub(super) fn start(namespace: &Namespace) -> Result<Self> {
        let listener = namespace.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
        let listener = listener.context("the target's port")?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let counts = Arc::<Counts>::default();
        let counting = Arc::clone(&counts);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("target".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = listen(listener, counting) => {}
                }
            });
        })?;
        Ok(Self { counts, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn listen(listener: TcpListener, counts: Arc<Counts>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                counts.open.fetch_add(1, Ordering::Relaxed);
                let counts = Arc::clone(&counts);
                // Tasks end with the runtime.
                tokio::spawn(async move {
                    // How a connection ends is the client's affair, which counts what failed.
                    let _ = serve(stream, &counts).await;
                    counts.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            // No descriptor left: some will be closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn serve(mut stream: TcpStream, counts: &Counts) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; MOUTHFUL];
    let mut length = stream.read(&mut bytes).await?;
    if length == 0 {
        return Ok(()); // a daemon's check
    }
    if bytes[0] == BULK {
        counts.swallowed.fetch_add(length as u64, Ordering::Relaxed);
        return swallow(stream, counts).await;
    }
    counts.served.fetch_add(1, Ordering::Relaxed);
    while length > 0 {
        counts.echoed.fetch_add(length as u64, Ordering::Relaxed);
        stream.write_all(&bytes[..length]).await?;
        length = stream.read(&mut bytes).await?;
    }
    Ok(())
}

async fn swallow(mut stream: TcpStream, counts: &Counts) -> std::io::Result<()> {
    let mut bytes = vec![0; SWALLOW];
    loop {
        match stream.read(&mut bytes).await? {
            0 => return Ok(()),
            length => counts.swallowed.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}
