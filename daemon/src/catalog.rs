//! The catalog task: drives `core::Catalog`, writes the index, keeps the catalog on disk.
//!
//! Owns: the catalog core and the write half of the index. Must not know: DNS, sockets.
//! Driven by: frames of the transport, changes of membership, records of the registry, time.

mod holdings;
mod projection;
mod report;
mod told;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use gossamer_core::catalog::{CardContent, Catalog, CatalogEvent, Imports, Input, MemberLiveness, Output};
use gossamer_core::dial::Source;
use gossamer_core::membership::MemberState;
use gossamer_core::time::Now;
use gossamer_core::trust::TrustBundle;
use gossamer_wire::frame::AdvertCopy;
use gossamer_wire::limits::MAX_CARD_BYTES;
use gossamer_wire::{NodeId, ServiceRecord};

use crate::clock::{Clock, Jumps};
use crate::events::{EventLog, What};
use crate::index::{IndexWriter, Why};
use crate::store::{Store, StoreError};
use crate::supervise::Stage;
use crate::transport::{Peers, ToCatalog};
use crate::{clock, identity};

pub use holdings::Holdings;

use projection::Projection;
use told::{Has, Told};

/// Commands waiting for the catalog: a whole mesh of 1,000 nodes coming up at once.
pub const COMMANDS: usize = 1_024;
/// Record sets waiting; only the last one counts, so the registry waits for its turn.
pub const RECORD_SETS: usize = 4;
/// Inputs taken in one wake-up before timers run and the index is written.
const BATCH: usize = 64;
/// From a run's first change to the file: a daemon that was set up a moment ago and is killed finds its peers again.
const FIRST_SAVE: Duration = Duration::from_secs(1);
/// From a later change to the file, and up to twice as much more. A whole catalog is written, and what it lacks is
/// asked of peers at the next start, so it is not worth more of the disk: daemons that share one wait for each other,
/// and a registration waits for it as well.
const SAVE: Duration = Duration::from_secs(20);

const FILE: &str = "catalog.json";

/// What other parts tell the catalog.
#[derive(Debug)]
pub enum Command {
    /// Membership sees a node in this state.
    Member {
        /// The node.
        node: NodeId,
        /// Its state.
        state: MemberState,
        /// What happened.
        cause: &'static str,
        /// Who said so: a node's name, or `self`.
        by: String,
    },
    /// Roots, issuers or evicted nodes changed: the statements say so.
    Standing {
        /// Who is believed.
        trust: Box<TrustBundle>,
        /// All evicted nodes.
        evicted: BTreeSet<NodeId>,
        /// Digest of the statements.
        digest: [u8; 16],
    },
    /// This node has a new certificate, DER.
    Certificate(Vec<u8>),
    /// Others are told to dial this node here from now on, best first.
    Addresses(Vec<SocketAddr>),
    /// These relays have a connection with this node, which others cannot dial.
    Relays(Vec<NodeId>),
    /// Other services of other groups stand behind their short names from here on.
    Imports(Imports),
    /// What is held, in numbers and by node.
    Holdings(oneshot::Sender<Holdings>),
    /// Every advert is wanted, byte for byte, in the order of their ids.
    Dump(oneshot::Sender<Vec<AdvertCopy>>),
}

/// What the task needs.
#[derive(Debug)]
pub struct Parts {
    /// This node.
    pub me: NodeId,
    /// The core, with the adverts of the last run.
    pub core: Catalog,
    /// What this node says about itself.
    pub card: CardContent,
    /// What the transport delivers.
    pub inputs: mpsc::Receiver<ToCatalog>,
    /// What membership says.
    pub commands: mpsc::Receiver<Command>,
    /// Complete sets of this node's records.
    pub records: mpsc::Receiver<Vec<ServiceRecord>>,
    /// Where frames go.
    pub peers: Peers,
    /// The write half of the index.
    pub index: IndexWriter,
    /// The state directory.
    pub store: Store,
    /// The clocks certificates and ages on disk are judged by.
    pub clock: Clock,
    /// The event log.
    pub events: EventLog,
}

/// Starts the task.
pub fn start(stage: &Stage, parts: Parts) {
    let stop = stage.stopping().clone();
    let (disk, writes) = mpsc::channel(1);
    stage.spawn("catalog-disk", write_rows(parts.store.clone(), parts.clock.clone(), writes));
    let projection = Projection::new(&parts);
    let jumps = Jumps::since(parts.clock.now());
    let pause = FIRST_SAVE;
    let (cards, told) = (Source::StoredCard, Told::default());
    let task = Task { disk, parts, projection, jumps, save_at: None, pause, cards, told };
    stage.spawn("catalog", async move { task.run(&stop).await });
}

/// Reads the adverts of the last run; a damaged file is set aside, for others hold the same adverts.
///
/// # Errors
/// Loose permissions, or the system.
pub fn restore(store: &Store, clock: &Clock) -> Result<Vec<AdvertCopy>, StoreError> {
    let wall = clock.wall();
    match store.read_json::<Vec<Row>>(FILE) {
        Ok(rows) => Ok(rows.unwrap_or_default().into_iter().filter_map(|row| row.copy(wall)).collect()),
        Err(StoreError::Damaged { path, why }) => {
            tracing::warn!(path = %path.display(), why, "the stored catalog is damaged; it is learned again");
            store.remove(FILE).map(|()| Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// An advert on disk, with the moment from which its age counts.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    /// Seconds since the Unix epoch at which the age was 0.
    born: u64,
    advert: String,
}

impl Row {
    fn copy(self, wall: u64) -> Option<AdvertCopy> {
        let bytes = data_encoding::BASE64.decode(self.advert.as_bytes()).ok()?;
        let age = wall.saturating_sub(self.born).try_into().unwrap_or(u32::MAX);
        (bytes.len() <= MAX_CARD_BYTES).then_some(AdvertCopy { age, bytes: bytes.into() })
    }

    fn of(copy: &AdvertCopy, wall: u64) -> Self {
        let born = wall.saturating_sub(copy.age.into());
        Self { born, advert: data_encoding::BASE64.encode(&copy.bytes) }
    }
}

/// Writes each set of adverts that is handed over, until the catalog ends. A fault costs only a slower start.
async fn write_rows(store: Store, clock: Clock, mut writes: mpsc::Receiver<Vec<AdvertCopy>>) {
    while let Some(copies) = writes.recv().await {
        let wall = clock.wall();
        let rows = move || copies.iter().map(|copy| Row::of(copy, wall)).collect::<Vec<_>>();
        if let Err(error) = store.aside(move |store| store.write_json(FILE, &rows())).await {
            tracing::warn!(%error, "the catalog could not be written");
        }
    }
}

struct Task {
    parts: Parts,
    disk: mpsc::Sender<Vec<AdvertCopy>>,
    projection: Projection,
    jumps: Jumps,
    /// When the catalog is to be written; nothing while the disk has it.
    save_at: Option<Instant>,
    /// From a change to that moment.
    pause: Duration,
    /// Where the cards come from that the core speaks of: first from the disk.
    cards: Source,
    /// What the transport knows.
    told: Told,
}

/// One wake-up.
enum Wake {
    Inputs,
    Command(Command),
    Records(Vec<ServiceRecord>),
    Timeout,
    Save,
    Stop,
}

impl Task {
    async fn run(mut self, stop: &tokio_util::sync::CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        self.parts.core.handle(Input::Card(self.parts.card.clone()), self.parts.clock.now());
        self.projection.note_all(&self.parts.core, self.parts.clock.now());
        self.drain().await;
        self.cards = Source::Card;
        loop {
            let deadline = self.parts.core.next_deadline();
            let wake = tokio::select! {
                biased;
                () = stop.cancelled() => Wake::Stop,
                Some(command) = self.parts.commands.recv() => Wake::Command(command),
                Some(records) = self.parts.records.recv() => Wake::Records(records),
                () = clock::sleep_until(self.save_at) => Wake::Save,
                _ = self.parts.inputs.recv_many(&mut batch, BATCH) => Wake::Inputs,
                () = clock::sleep_until(deadline) => Wake::Timeout,
            };
            let now = self.parts.clock.now();
            if self.jumps.has_jumped(now) {
                // Which certificates hold has changed without a word from anybody.
                self.projection.note_all(&self.parts.core, now);
            }
            match wake {
                Wake::Inputs => {
                    let inputs = batch.drain(..).map(input_of);
                    inputs.for_each(|input| self.parts.core.handle(input, now));
                }
                Wake::Command(Command::Member { node, state, cause, by }) => {
                    let why = Why { since: now.wall, cause, by };
                    self.projection.member(&mut self.parts.index, node, state, why);
                    self.parts.core.handle(Input::Member { node, state: liveness(state) }, now);
                }
                Wake::Command(Command::Standing { trust, evicted, digest }) => {
                    for input in [Input::Trust(*trust), Input::Evicted(evicted), Input::Statements(digest)] {
                        self.parts.core.handle(input, now);
                    }
                    self.projection.note_all(&self.parts.core, now);
                }
                Wake::Command(Command::Certificate(leaf)) => {
                    self.parts.card.leaf = leaf;
                    self.parts.core.handle(Input::Card(self.parts.card.clone()), now);
                }
                Wake::Command(Command::Addresses(addresses)) => {
                    self.parts.card.addresses = addresses;
                    self.parts.core.handle(Input::Card(self.parts.card.clone()), now);
                }
                Wake::Command(Command::Relays(relays)) => {
                    self.parts.card.relays = relays;
                    self.parts.core.handle(Input::Card(self.parts.card.clone()), now);
                }
                Wake::Command(Command::Imports(imports)) => {
                    self.parts.core.handle(Input::Imports(imports), now);
                }
                Wake::Command(Command::Holdings(reply)) => {
                    drop(reply.send(Holdings::of(&self.parts.core, self.parts.me, now)));
                }
                // Who asked may have gone.
                Wake::Command(Command::Dump(reply)) => drop(reply.send(self.parts.core.export(now))),
                Wake::Records(records) => self.parts.core.handle(Input::Publish(records), now),
                Wake::Save => self.save(now),
                Wake::Timeout => {}
                Wake::Stop => break,
            }
            self.parts.core.handle_timeout(now);
            self.drain().await;
        }
        self.save_last().await;
    }

    async fn drain(&mut self) {
        while let Some(output) = self.parts.core.next_output() {
            match output {
                Output::Send { to, frame } => drop(self.parts.peers.send_frame(to, &frame)),
                Output::ServiceChanged(service) => self.projection.note_service(service),
                Output::NodeChanged(node) => {
                    self.projection.note_node(node);
                    self.projection.name_denied(node, self.parts.core.denied_addresses(node));
                    self.tell_transport(node);
                }
                Output::EpochBehind { at_least } => self.raise_epoch(at_least).await,
                Output::Event(event) => {
                    if let CatalogEvent::DuplicateIdentity { node } = &event {
                        let what = What::RunsTwice { at: None };
                        self.parts.events.findings().name(*node, what, self.parts.clock.wall());
                    }
                    self.parts.events.push(&report::line(event, self.projection.names()));
                }
            }
        }
        let now = self.parts.clock.now();
        if self.projection.write(&mut self.parts.index, &self.parts.core, now) && self.save_at.is_none() {
            self.save_at = Some(now.mono + self.pause);
        }
    }

    /// Tells the transport where a node is, and until when it is certified where that has changed.
    fn tell_transport(&mut self, node: NodeId) {
        let Parts { core, peers, .. } = &self.parts;
        let (lanes, relays) = (core.node_lanes(node), core.node_relays(node));
        let addresses = core.node_addresses(node);
        let certified = core.certified_until(node);
        let has = Has { lanes: !lanes.is_empty(), relays: !relays.is_empty(), certified };
        let news = self.told.handle(node, addresses.is_some().then_some(has));
        if news.lanes {
            // Before the addresses, which are dialled at once.
            peers.learn_lanes(node, lanes.to_vec());
        }
        if let Some(addresses) = addresses {
            peers.learn(node, addresses.to_vec(), self.cards);
        }
        if news.relays {
            peers.learn_relays(node, relays.to_vec());
        }
        if let Some(until) = news.certified {
            peers.certified(node, until);
        }
        if news.is_gone {
            peers.forget(node);
        }
    }

    /// Hands the adverts to the disk, unless it is still at the last ones: the mesh does not wait for a disk.
    fn save(&mut self, now: Now) {
        self.pause = pause_of(self.parts.me);
        self.save_at = match self.disk.try_reserve() {
            Ok(place) => {
                place.send(self.parts.core.export(now));
                None
            }
            Err(_) => Some(now.mono + self.pause),
        };
    }

    /// Hands over the last adverts and lets the disk finish.
    async fn save_last(self) {
        let _ = self.disk.send(self.parts.core.export(self.parts.clock.now())).await;
    }

    async fn raise_epoch(&mut self, at_least: u64) {
        let raise = move |store: &Store| identity::raise_epoch(store, at_least);
        match self.parts.store.aside(raise).await {
            Ok(epoch) => {
                tracing::warn!(epoch, "others hold later adverts of this node; published again above them");
                self.parts.core.set_epoch(epoch, self.parts.clock.now());
            }
            Err(error) => tracing::error!(%error, "the epoch could not be raised; others ignore this node"),
        }
    }
}

/// Returns a node's time from a change to the file: each has its own, for nodes may share a disk and all hear of a
/// change at once.
fn pause_of(node: NodeId) -> Duration {
    let share = node.as_bytes().first().copied().map_or(0.0, f64::from) / 128.0;
    SAVE + SAVE.mul_f64(share)
}

const fn liveness(state: MemberState) -> MemberLiveness {
    match state {
        MemberState::Alive => MemberLiveness::Alive,
        MemberState::Suspect => MemberLiveness::Suspect,
        MemberState::Down => MemberLiveness::Down,
        MemberState::Left => MemberLiveness::Left,
    }
}

fn input_of(message: ToCatalog) -> Input {
    match message {
        ToCatalog::Connected(peer) => Input::Connected(peer),
        ToCatalog::Disconnected(peer) => Input::Disconnected(peer),
        ToCatalog::Frame { from, frame } => Input::Frame { from, frame },
    }
}

#[cfg(test)]
mod tests;
