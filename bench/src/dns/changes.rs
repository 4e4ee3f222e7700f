//! Changes of the catalog while questions are answered: how soon an answer shows one.
//!
//! Owns: the pace of changes, the probe. Must not know: how the changes travel. Driven by: the suite.
//!
//! An answer shows a change when its SRV records have the new weight. The moment at which the daemon's own catalog had
//! it is that of the line of `gossamer watch`, which carries microseconds of the same machine's clock.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::sync::mpsc;

use super::choir::Change;
use super::zone::{Service, WEIGHT, query};

/// Services whose changes are probed; the others change at [`RATE`].
pub(super) const PROBED: usize = 100;
/// Changes per second.
const RATE: u32 = 1_000;
/// Longest wait for one change.
const PATIENCE: Duration = Duration::from_secs(5);

/// Changes the services, but for the probed ones at the end, until told to stop. Returns how many changes were made.
pub(super) fn change_all(changes: &mpsc::Sender<Change>, services: usize, stop: &AtomicBool) -> u64 {
    let began = Instant::now();
    let (mut made, mut taken) = (0_u32, 0);
    while !stop.load(Ordering::Relaxed) {
        while began.elapsed() >= Duration::from_secs(1) / RATE * made {
            let service = made as usize % (services - PROBED);
            let weight = WEIGHT + u16::try_from(made % 50).unwrap_or_default();
            // What the members cannot make in time is not made.
            taken +=
                u64::from(changes.try_send(Change { service, instance: made as usize % 3, weight }).is_ok());
            made += 1;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    taken
}

/// Changes one service after the other and returns how long after the local catalog DNS showed it, milliseconds.
pub(super) fn probe(
    server: SocketAddr,
    socket: &Path,
    changes: &mpsc::Sender<Change>,
    services: &[Service],
    samples: usize,
) -> Result<Vec<f64>> {
    let seen = Mutex::new(HashMap::new());
    let stop = AtomicBool::new(false);
    let lines = watch(socket)?;
    std::thread::scope(|scope| {
        scope.spawn(|| collect(lines, &seen, &stop));
        let probed = probe_all(server, changes, services, samples, &seen);
        stop.store(true, Ordering::Relaxed);
        probed
    })
}

fn probe_all(
    server: SocketAddr,
    changes: &mpsc::Sender<Change>,
    services: &[Service],
    samples: usize,
    seen: &Mutex<HashMap<String, u64>>,
) -> Result<Vec<f64>> {
    let client = UdpSocket::bind("127.0.0.1:0")?;
    client.connect(server)?;
    client.set_read_timeout(Some(Duration::from_millis(500)))?;
    let first = services.len() - PROBED;
    let mut found = Vec::new();
    for sample in 0..samples {
        let service = first + sample % PROBED;
        let name = &services[service].name;
        let weight = WEIGHT + 1 + u16::try_from(sample / PROBED)?;
        let asked = query(&["_http", "_tcp", name], 33);
        seen.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        changes.blocking_send(Change { service, instance: sample % 3, weight })?;
        let shown = shown_at(&client, &asked, weight).with_context(|| {
            let is_held = seen.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name);
            format!("{name}, which the daemon {}", if is_held { "knows" } else { "does not know" })
        })?;
        let end = Instant::now() + PATIENCE;
        let held = loop {
            if let Some(at) = seen.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
                break *at;
            }
            if Instant::now() > end {
                bail!("no line of watch about {name}");
            }
            std::thread::sleep(Duration::from_micros(500));
        };
        found.push(shown.saturating_sub(held) as f64 / 1_000.0);
    }
    Ok(found)
}

/// Asks until the answer has a record of this weight; returns when, microseconds since the Unix epoch.
fn shown_at(client: &UdpSocket, asked: &[u8], weight: u16) -> Result<u64> {
    let end = Instant::now() + PATIENCE;
    let mut reply = [0; 1_500];
    while Instant::now() < end {
        client.send(asked)?;
        let Ok(length) = client.recv(&mut reply) else { continue };
        if weights(&reply[..length], asked.len()).contains(&weight) {
            return Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?);
        }
    }
    bail!("a change was not seen in DNS within {PATIENCE:?}")
}

/// Returns the weights of the SRV records behind a question.
fn weights(reply: &[u8], mut at: usize) -> Vec<u16> {
    let mut found = Vec::new();
    let word = |at: usize| reply.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    for _ in 0..word(6).unwrap_or_default() {
        // The owner is a pointer, or a name in full.
        while let Some(length) = reply.get(at).copied().filter(|length| *length > 0 && *length < 0xc0) {
            at += 1 + usize::from(length);
        }
        at += if reply.get(at).is_some_and(|byte| *byte >= 0xc0) { 2 } else { 1 };
        let (Some(weight), Some(length)) = (word(at + 12), word(at + 8)) else { break };
        found.push(weight);
        at += 10 + usize::from(length);
    }
    found
}

/// Opens the stream of changes; returns it, and how many services there are, once it has begun.
pub(super) fn watch(socket: &Path) -> Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    stream.write_all(b"GET /v1/watch HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    Ok(BufReader::new(stream))
}

/// Returns how many services the daemon knows.
pub(super) fn services_known(socket: &Path) -> Result<u64> {
    let mut lines = watch(socket)?;
    // It is busy with what it learns.
    lines.get_ref().set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    for _ in 0..20 {
        line.clear();
        lines.read_line(&mut line)?;
        if let Ok(value) = serde_json::from_str::<Value>(&line)
            && let Some(count) = value["services"].as_u64()
        {
            return Ok(count);
        }
    }
    bail!("the watch stream does not begin with a count")
}

fn collect(mut lines: BufReader<UnixStream>, seen: &Mutex<HashMap<String, u64>>, stop: &AtomicBool) {
    let mut line = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // A time-out in the middle of a line keeps what was read.
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {
                if let Some((service, at)) = change_of(&line) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).insert(service, at);
                }
                line.clear();
            }
            Err(_) => {}
        }
    }
}

fn change_of(line: &[u8]) -> Option<(String, u64)> {
    let value: Value = serde_json::from_slice(line).ok()?;
    Some((value["service"].as_str()?.to_owned(), value["at_us"].as_u64()?))
}

/// Fails early when the stream has another shape than expected.
pub(super) fn check_stream(socket: &Path) -> Result<()> {
    services_known(socket).map(drop).context("GET /v1/watch")
}
