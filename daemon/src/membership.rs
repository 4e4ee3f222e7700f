//! The membership task: drives `core::Membership`.
//!
//! Owns: the membership core. Must not know: records, sockets. Driven by: packets and frames of the transport,
//! time, and the end of the daemon, when it tells the others that this node leaves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use gossamer_core::membership::{Cause, Input, MemberState, Membership, MembershipConfig, Output};
use gossamer_wire::NodeId;
use gossamer_wire::frame::Frame;
use gossamer_wire::swim::Identity;

use crate::catalog::Command;
use crate::clock;
use crate::entropy::Entropy;
use crate::events::{Event, EventLog};
use crate::index::IndexReader;
use crate::metrics::Metrics;
use crate::supervise::Stage;
use crate::transport::{Peers, ToMembership};

/// Inputs taken in one wake-up before timers run: a busy mesh must not starve its own probes.
const BATCH: usize = 64;

/// How long the last packets have to leave before connections are closed.
const FAREWELL: Duration = Duration::from_millis(100);

/// What the task needs.
#[derive(Debug)]
pub struct Parts {
    /// This node, in this start.
    pub me: Identity,
    /// What the transport delivers.
    pub inputs: mpsc::Receiver<ToMembership>,
    /// Where packets and frames go.
    pub peers: Peers,
    /// Who must know of changes.
    pub catalog: mpsc::Sender<Command>,
    /// Names of nodes, for events.
    pub index: IndexReader,
    /// The event log.
    pub events: EventLog,
    /// Where the choice of probed members comes from.
    pub entropy: Entropy,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Starts the task.
pub fn start(stage: &Stage, parts: Parts) {
    let stop = stage.stopping().clone();
    let rng = parts.entropy.rng("membership");
    let core = Membership::new(MembershipConfig::default(), parts.me, rng, clock::now().mono);
    let task = Task { core, parts };
    stage.spawn("membership", async move { task.run(&stop).await });
}

struct Task {
    core: Membership,
    parts: Parts,
}

impl Task {
    async fn run(mut self, stop: &tokio_util::sync::CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let deadline = self.core.next_deadline();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = self.parts.inputs.recv_many(&mut batch, BATCH) => {}
                () = clock::sleep_until(deadline) => {}
            }
            let now = clock::now().mono;
            for input in batch.drain(..) {
                if let Some(input) = input_of(input) {
                    self.core.handle(input, now);
                }
            }
            self.core.handle_timeout(now);
            self.drain().await;
        }
        self.core.handle(Input::Leave, clock::now().mono);
        self.drain().await;
        tokio::time::sleep(FAREWELL).await;
    }

    async fn drain(&mut self) {
        while let Some(output) = self.core.next_output() {
            match output {
                // A packet to a node that is not connected is lost, as any packet may be.
                Output::Packet { to, bytes } => drop(self.parts.peers.send_packet(to, bytes)),
                Output::Frame { to, frame } => drop(self.parts.peers.send_frame(to, &frame)),
                Output::Changed { node, from, to, cause, .. } => self.changed(node, from, to, cause).await,
                // Kept in memory only: any member can claim a later life of this node. What its own adverts
                // prove is kept, by the catalog.
                Output::Renewed(generation) => {
                    tracing::info!(?generation, "somebody held this node for dead; it has renewed itself");
                    self.parts.metrics.renewed();
                }
                Output::Refused { from, error } => {
                    tracing::debug!(peer = %from, %error, "swim packet refused");
                    self.parts.metrics.swim_refused();
                }
            }
        }
    }

    async fn changed(&self, node: NodeId, from: Option<MemberState>, to: MemberState, cause: Cause) {
        let was_up = from.is_some_and(MemberState::is_up);
        match to.is_up() {
            true if !was_up => self.parts.peers.up(node),
            false if was_up => self.parts.peers.gone(node),
            _ => {}
        }
        let by = match cause {
            Cause::Itself => self.parts.index.name_of(node),
            Cause::Peer(peer) => self.parts.index.name_of(peer),
            Cause::Silence => "self".to_owned(),
        };
        if from != Some(to) {
            self.parts.events.push(&Event {
                who: format!("node {}", self.parts.index.name_of(node)),
                was: from.map_or("unknown", state_word),
                now: state_word(to),
                cause: cause_text(cause).to_owned(),
                by: by.clone(),
            });
        }
        let change = Command::Member { node, state: to, cause: cause_text(cause), by };
        let _ = self.parts.catalog.send(change).await;
    }
}

/// The word of a state in listings and events.
pub const fn state_word(state: MemberState) -> &'static str {
    match state {
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Down => "down",
        MemberState::Left => "left",
    }
}

const fn cause_text(cause: Cause) -> &'static str {
    match cause {
        Cause::Itself => "it said so",
        Cause::Peer(_) => "heard from a member",
        Cause::Silence => "it did not answer probes",
    }
}

fn input_of(message: ToMembership) -> Option<Input> {
    Some(match message {
        ToMembership::Connected(peer) => Input::Connected { peer },
        ToMembership::Disconnected(peer) => Input::Disconnected { peer },
        ToMembership::Packet { from, bytes } => Input::Packet { from, bytes },
        ToMembership::Frame { from, frame: Frame::MemberHash(hash) } => Input::MemberHash { from, hash },
        ToMembership::Frame { .. } => return None,
        ToMembership::Members { from, members, reply, .. } => Input::Members { from, members, reply },
    })
}
