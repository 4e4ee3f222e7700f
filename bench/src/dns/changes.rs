//! Changes of the catalog while questions are answered: how soon an answer shows one.
//!
//! Owns: the pace of changes, the probe. Must not know: how the changes travel. Driven by: the suite.
//!
//! An answer shows a change when its SRV records have the new weight. The moment at which the daemon's own catalog had
//! it is that of the line of `gossamer watch`, which carries microseconds of the same machine's clock.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use gossamer::index::WatchLine;
use tokio::sync::mpsc;

use super::choir::Change;
use super::watch::Watch;
use super::zone::{Service, WEIGHT, query};

/// Services whose changes are probed; the others change at [`RATE`].
pub(super) const PROBED: usize = 100;
/// Changes per second.
const RATE: u32 = 1_000;
/// Changes that may be late and are made up for: what stops for longer than this makes fewer of them.
const LATE: u32 = RATE / 10;
/// From one probed change to the next.
const PROBE_EVERY: Duration = Duration::from_millis(10);
/// Longest wait for one change.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Changes the services, but for the probed ones at the end, until told to stop.
pub(super) fn change_all(changes: &mpsc::Sender<Change>, services: usize, stop: &AtomicBool) {
    let began = Instant::now();
    let mut made = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        let due =
            u32::try_from(began.elapsed().as_micros() / (1_000_000 / u128::from(RATE))).unwrap_or(u32::MAX);
        made = made.max(due.saturating_sub(LATE));
        while made < due {
            let service = made as usize % (services - PROBED);
            let weight = WEIGHT + u16::try_from(made % 50).unwrap_or_default();
            if changes.try_send(Change { service, instance: made as usize % 3, weight }).is_err() {
                break;
            }
            made += 1;
        }
        // The pace of the changes.
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// What the daemon's own catalog has shown.
#[derive(Debug, Default)]
struct Shown {
    /// When it showed the latest change of a service, microseconds since the Unix epoch.
    at: HashMap<String, u64>,
    /// Changes of instances, lost lines counted.
    changes: u64,
    /// Lines that were lost because they were read too slowly here.
    lost: u64,
}

/// [`Shown`], and word of what comes.
#[derive(Debug, Default)]
struct Board {
    shown: Mutex<Shown>,
    is_new: Condvar,
}

impl Board {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a service's change is shown, or lines are lost after so many, of which its own may be one.
    fn wait(&self, name: &str, lost: u64) -> Result<Option<u64>> {
        let is_missing = |shown: &mut Shown| !shown.at.contains_key(name) && shown.lost == lost;
        let waited = self.is_new.wait_timeout_while(self.shown(), PATIENCE, is_missing);
        let (shown, time) = waited.unwrap_or_else(PoisonError::into_inner);
        if time.timed_out() {
            bail!("no line of watch about {name}, of {} lines", shown.changes);
        }
        Ok(shown.at.get(name).copied())
    }
}

/// What was found while services changed. Changes whose line was lost are not timed; one in a hundred at most.
#[derive(Debug)]
pub(super) struct Probed {
    /// How long after the local catalog DNS showed each change, milliseconds.
    pub(super) late: Vec<f64>,
    /// How long after the local catalog a question was still sent in vain, milliseconds: without the time that question
    /// and answer need under this load.
    pub(super) stale: Vec<f64>,
    /// Changes of instances that the daemon's catalog has shown meanwhile.
    pub(super) changes: u64,
}

/// Changes one service after the other and looks when DNS shows it.
pub(super) fn probe(
    server: SocketAddr,
    watch: Watch,
    changes: &mpsc::Sender<Change>,
    services: &[Service],
    samples: usize,
) -> Result<Probed> {
    let (board, stop) = (Board::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| collect(watch, &board, &stop));
        let timed = probe_all(server, changes, services, samples, &board);
        let changes = board.shown().changes;
        stop.store(true, Ordering::Relaxed);
        collecting.join().map_err(|_| anyhow::anyhow!("the watch panicked"))??;
        let (late, stale) = timed?;
        Ok(Probed { late, stale, changes })
    })
}

fn probe_all(
    server: SocketAddr,
    changes: &mpsc::Sender<Change>,
    services: &[Service],
    samples: usize,
    board: &Board,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let client = UdpSocket::bind("127.0.0.1:0")?;
    client.connect(server)?;
    client.set_read_timeout(Some(Duration::from_millis(500)))?;
    let first = services.len() - PROBED;
    let (mut late, mut stale, began) = (Vec::new(), Vec::new(), Instant::now());
    for (sample, number) in (0..samples).zip(0_u32..) {
        // The pace of the probe: its changes come beside the others.
        std::thread::sleep((PROBE_EVERY * number).saturating_sub(began.elapsed()));
        let service = first + sample % PROBED;
        let name = &services[service].name;
        let weight = WEIGHT + 1 + u16::try_from(sample / PROBED)?;
        let asked = query(&["_http", "_tcp", name], 33);
        let lost = {
            let mut shown = board.shown();
            shown.at.remove(name);
            shown.lost
        };
        changes.blocking_send(Change { service, instance: sample % 3, weight })?;
        let answers = answers(&client, &asked, weight).with_context(|| {
            let is_held = board.shown().at.contains_key(name);
            format!("{name}, which the daemon {}", if is_held { "knows" } else { "does not know" })
        })?;
        if let Some(held) = board.wait(name, lost)? {
            let after = |at: u64| at.saturating_sub(held) as f64 / 1_000.0;
            late.push(after(answers.shown));
            stale.push(answers.stale.map_or(0.0, after));
        }
    }
    let lost = board.shown().lost;
    ensure!(late.len() * 100 >= samples * 99, "{} of {samples} changes timed: {lost} lines lost", late.len());
    Ok((late, stale))
}

/// Moments of one change, microseconds since the Unix epoch.
struct Answers {
    /// When the first answer with the change was there.
    shown: u64,
    /// When the last question without it in its answer was sent.
    stale: Option<u64>,
}

/// Asks until the answer has a record of this weight.
fn answers(client: &UdpSocket, asked: &[u8], weight: u16) -> Result<Answers> {
    let end = Instant::now() + PATIENCE;
    let (mut stale, mut reply) = (None, [0; 1_500]);
    while Instant::now() < end {
        let sent = wall_micros()?;
        client.send(asked)?;
        let Ok(length) = client.recv(&mut reply) else { continue };
        if weights(&reply[..length], asked.len()).contains(&weight) {
            return Ok(Answers { shown: wall_micros()?, stale });
        }
        stale = Some(sent);
    }
    bail!("a change was not seen in DNS within {PATIENCE:?}")
}

fn wall_micros() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?)
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

fn collect(mut watch: Watch, board: &Board, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        match watch.next(Instant::now() + LOOK)? {
            Some(WatchLine::Service { service, at_us, .. }) => {
                let mut shown = board.shown();
                shown.at.insert(service.to_string(), at_us);
                shown.changes += 1;
                drop(shown);
                board.is_new.notify_one();
            }
            // Read too slowly here, and changes all the same.
            Some(WatchLine::Lost { lines, .. }) => {
                let mut shown = board.shown();
                shown.changes += lines;
                shown.lost += lines;
                drop(shown);
                board.is_new.notify_one();
            }
            _ => {}
        }
    }
    Ok(())
}
