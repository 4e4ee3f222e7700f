//! The daemon's stream of changes, and waits for what it tells.
//!
//! Owns: the connection, the lines, what is known by them. Must not know: what is done about it.
//! Driven by: the suite.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gossamer::index::WatchLine;

/// Longest wait for the first line: the daemon may be busy with what it learns.
const FIRST: Duration = Duration::from_secs(5);

/// A stream of `GET /v1/watch`.
#[derive(Debug)]
pub(super) struct Watch {
    stream: BufReader<UnixStream>,
    /// What of a line was read before a time-out.
    line: Vec<u8>,
    /// Services that were known when it was opened.
    services: usize,
}

impl Watch {
    /// Opens the stream of what changes from now on; with `all`, what there is comes first.
    ///
    /// # Errors
    /// The daemon does not answer, or with something else.
    pub(super) fn open(socket: &Path, all: bool) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).context("GET /v1/watch")?;
        write!(stream, "GET /v1/watch?all={all} HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        let mut watch = Self { stream: BufReader::new(stream), line: Vec::new(), services: 0 };
        match watch.next(Instant::now() + FIRST)? {
            Some(WatchLine::Watching { services, .. }) => Ok(Self { services, ..watch }),
            other => Err(anyhow::anyhow!("the stream of changes begins with {other:?}")),
        }
    }

    /// Waits for a line; `None` when none comes until then.
    ///
    /// # Errors
    /// The daemon has closed the stream.
    pub(super) fn next(&mut self, until: Instant) -> Result<Option<WatchLine>> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            // A time-out in the middle of a line keeps what was read.
            match self.stream.read_until(b'\n', &mut self.line) {
                Ok(0) => anyhow::bail!("the daemon has closed the stream of changes"),
                Ok(_) => {
                    // What is between the lines of JSON is HTTP's.
                    let line = serde_json::from_slice(&self.line).ok();
                    self.line.clear();
                    if line.is_some() {
                        return Ok(line);
                    }
                }
                Err(error) if is_time_out(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Waits until the daemon knows so many services. `watch` was opened before the first of them came.
///
/// # Errors
/// It does not within the time.
pub(super) fn learned(mut watch: Watch, socket: &Path, services: usize, end: Instant) -> Result<()> {
    let mut named = HashSet::new();
    let mut known = watch.services;
    while known < services {
        let line = watch.next(end)?;
        let is_over = line.is_none();
        let mut is_unsure = matches!(line, Some(WatchLine::Lost { .. }));
        if let Some(WatchLine::Service { service, was, .. }) = line
            && was == "absent"
            && named.insert(service)
        {
            known += 1;
            is_unsure |= known >= services;
        }
        ensure!(!is_over, "the daemon has learned {known} of {services} services");
        if is_unsure {
            // A stream begins with the exact number.
            watch = Watch::open(socket, false)?;
            known = watch.services;
        }
    }
    Ok(())
}

/// Waits until so many services can be used.
///
/// # Errors
/// They cannot within the time.
pub(super) fn usable(socket: &Path, services: usize, end: Instant) -> Result<()> {
    let mut watch = Watch::open(socket, true)?;
    let mut usable = HashSet::new();
    while usable.len() < services {
        match watch.next(end)? {
            Some(WatchLine::Service { service, now, .. }) if now == "usable" => _ = usable.insert(service),
            Some(WatchLine::Service { service, .. }) => _ = usable.remove(&service),
            Some(_) => {}
            None => anyhow::bail!("{} of {services} services can be used", usable.len()),
        }
    }
    Ok(())
}

fn is_time_out(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}
