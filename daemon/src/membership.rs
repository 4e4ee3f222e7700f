//! The membership task: drives `core::Membership`.
//!
//! Owns: the membership core. Must not know: records, sockets. Driven by: packets and frames of the transport,
//! time, and the end of the daemon, when it tells the others that this node leaves.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use gossamer_core::membership::{
    Cause, Input, MemberState, Membership, MembershipConfig, Output, REFUTED_CLAIMS,
};
use gossamer_core::time::Now;
use gossamer_wire::frame::Frame;
use gossamer_wire::swim::Identity;
use gossamer_wire::{Generation, NodeId};

use crate::catalog::Command;
use crate::clock::{self, Clock};
use crate::entropy::Entropy;
use crate::events::{EventLog, Naming, NodeEvent, What};
use crate::index::IndexReader;
use crate::metrics::Metrics;
use crate::supervise::Stage;
use crate::transport::{Peers, ToMembership};

/// Inputs taken in one wake-up before timers run: a busy mesh must not starve its own probes.
const BATCH: usize = 64;

/// How long the last packets have to leave before connections are closed.
const FAREWELL: Duration = Duration::from_millis(100);

/// The wall clock gets ahead of the other one by this: the machine was suspended. A clock that was set shows the
/// same, which costs a few questions to peers and nothing else.
const SLEPT: Duration = Duration::from_secs(30);

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
    /// The clocks, whose difference shows a suspend.
    pub clock: Clock,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Starts the task.
pub fn start(stage: &Stage, parts: Parts) {
    let stop = stage.stopping().clone();
    let rng = parts.entropy.rng("membership");
    let core = Membership::new(MembershipConfig::default(), parts.me, rng, clock::now().mono);
    let last = parts.clock.now();
    let task = Task { core, parts, last, naming: Naming::default() };
    stage.spawn("membership", async move { task.run(&stop).await });
}

struct Task {
    core: Membership,
    parts: Parts,
    /// The clocks at the last wake-up.
    last: Now,
    /// Events whose nodes have no name yet.
    naming: Naming,
}

impl Task {
    async fn run(mut self, stop: &tokio_util::sync::CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let named = self.naming.next_deadline(self.last.mono);
            let deadline = self.core.next_deadline().into_iter().chain(named).min();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = self.parts.inputs.recv_many(&mut batch, BATCH) => {}
                () = clock::sleep_until(deadline) => {}
            }
            let now = self.parts.clock.now();
            let slept = slept(self.last, now);
            self.last = now;
            let now = now.mono;
            if slept {
                tracing::info!("this machine was suspended; asking the others first");
                self.core.handle(Input::Slept, now);
            }
            for input in batch.drain(..) {
                match input {
                    ToMembership::Twice { node, at } => self.twice(node, at),
                    ToMembership::Astray { relay, node, times } => self.astray(relay, node, times),
                    ToMembership::NotAstray(relays) => self.not_astray(relays),
                    other => input_of(other).into_iter().for_each(|input| self.core.handle(input, now)),
                }
            }
            self.core.handle_timeout(now);
            self.drain().await;
            self.tell(now);
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
                Output::Frame { to, frame } => {
                    if let Frame::Probe(_) = frame {
                        self.parts.metrics.probe_confirmed();
                    }
                    let _ = self.parts.peers.send_frame(to, &frame);
                }
                Output::Reach { node } => self.parts.peers.reach(node),
                Output::Changed { node, from, to, generation, cause } => {
                    self.changed(node, from, to, generation, cause).await;
                }
                // Kept in memory only: any member can claim a later life of this node. What its own adverts
                // prove is kept, by the catalog.
                Output::Renewed(generation) => {
                    tracing::info!(?generation, "somebody held this node for dead; it has renewed itself");
                    self.parts.metrics.renewed();
                }
                Output::Refuted { accuser, accused } => {
                    tracing::debug!(%accuser, %accused, "claim refuted");
                    self.parts.metrics.claim_refuted();
                }
                Output::Named { accuser } => self.named(accuser, "trusted", "named"),
                Output::Forgiven { accuser } => self.named(accuser, "named", "trusted"),
                Output::Refused { from, error } => {
                    tracing::debug!(peer = %from, %error, "swim packet refused");
                    self.parts.metrics.swim_refused();
                }
            }
        }
    }

    /// Logs the events whose nodes have names.
    fn tell(&mut self, now: Instant) {
        while let Some(event) = self.naming.next(|node| self.parts.index.known_name_of(node), now) {
            self.parts.events.push(&event);
        }
    }

    /// Takes an event about a node for the log.
    fn note(&mut self, event: NodeEvent) {
        self.naming.push(event, self.last.mono);
    }

    /// Tells that a peer's claims about others count no more, or again.
    fn named(&mut self, accuser: NodeId, was: &'static str, now: &'static str) {
        let what = What::FalseClaims { refuted: REFUTED_CLAIMS as u32 };
        let cause = if now == "named" {
            let _ = self.parts.events.findings().name(accuser, what, self.parts.clock.wall());
            format!("{REFUTED_CLAIMS} claims of it in 10 min were wrong; they count only if others make them")
        } else {
            let _ = self.parts.events.findings().clear(accuser, &what);
            "no wrong claim for 10 min".to_owned()
        };
        self.note(NodeEvent { node: accuser, was, now, cause, by: None });
    }

    /// Tells that a node, perhaps this one, runs twice.
    fn twice(&mut self, node: NodeId, at: SocketAddr) {
        let what = What::RunsTwice { at: Some(at) };
        if self.parts.events.findings().name(node, what, self.parts.clock.wall()) {
            let cause = format!("this identity runs twice, at {at}");
            self.note(NodeEvent { node, was: "single", now: "twice", cause, by: None });
        }
    }

    /// Names a relay that says that it leads to a node, and does not.
    fn astray(&mut self, relay: NodeId, node: NodeId, times: u32) {
        let what = What::LeadsAstray { node, times };
        if self.parts.events.findings().name(relay, what, self.parts.clock.wall()) {
            let of = self.parts.index.name_of(node);
            let cause = format!("it says that it leads to node {of}, and leads to somebody else or nowhere");
            self.note(NodeEvent { node: relay, was: "relay", now: "astray", cause, by: None });
        }
    }

    /// Relays lead where they say again, or are gone.
    fn not_astray(&mut self, relays: BTreeSet<NodeId>) {
        for relay in relays {
            let what = What::LeadsAstray { node: relay, times: 0 };
            if self.parts.events.findings().clear(relay, &what) {
                let cause = "it leads where it says again, or it or the node is gone".to_owned();
                self.note(NodeEvent { node: relay, was: "astray", now: "relay", cause, by: None });
            }
        }
    }

    async fn changed(
        &mut self,
        node: NodeId,
        from: Option<MemberState>,
        to: MemberState,
        generation: Generation,
        cause: Cause,
    ) {
        tracing::debug!(%node, from = ?from, to = ?to, ?generation, ?cause, "member changed");
        let was_up = from.is_some_and(MemberState::is_up);
        match to.is_up() {
            true if !was_up => self.parts.peers.up(node),
            false if was_up => self.parts.peers.gone(node, to == MemberState::Left),
            _ => {}
        }
        let by_node = match cause {
            Cause::Itself => Some(node),
            Cause::Peer(peer) => Some(peer),
            Cause::Silence | Cause::Statement => None,
        };
        if is_worth_a_line(from, to, generation) {
            self.note(NodeEvent {
                node,
                was: from.map_or("unknown", state_word),
                now: state_word(to),
                cause: if from == Some(to) { "it restarted" } else { cause_text(cause) }.to_owned(),
                by: by_node,
            });
        }
        let by = by_node.map_or_else(|| "self".to_owned(), |node| self.parts.index.name_of(node));
        let change = Command::Member { node, state: to, cause: cause_text(cause), by };
        let _ = self.parts.catalog.send(change).await;
    }
}

/// Suspicion is left out: it comes and goes with loss and ends in a line when it was right. So are renewals; a
/// restart is a new epoch.
fn is_worth_a_line(from: Option<MemberState>, to: MemberState, generation: Generation) -> bool {
    let was_up = from.is_some_and(MemberState::is_up);
    if from == Some(to) { generation.renewals == 0 } else { !(was_up && to.is_up()) }
}

/// Whether the machine was suspended between two moments.
fn slept(last: Now, now: Now) -> bool {
    let wall = Duration::from_secs(now.wall.saturating_sub(last.wall));
    wall > now.mono.saturating_duration_since(last.mono) + SLEPT
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
        Cause::Statement => "it was evicted",
    }
}

fn input_of(message: ToMembership) -> Option<Input> {
    Some(match message {
        ToMembership::Connected(peer) => Input::Connected { peer },
        ToMembership::Disconnected(peer) => Input::Disconnected { peer },
        ToMembership::Packet { from, bytes } => Input::Packet { from, bytes },
        ToMembership::Frame { from, frame: Frame::MemberHash(hash) } => Input::MemberHash { from, hash },
        ToMembership::Frame { from, frame: Frame::Probe(number) } => Input::Probe { from, number },
        ToMembership::Frame { from, frame: Frame::ProbeAck(number) } => Input::ProbeAck { from, number },
        ToMembership::Frame { .. }
        | ToMembership::Twice { .. }
        | ToMembership::Astray { .. }
        | ToMembership::NotAstray(_) => return None,
        ToMembership::Evicted(nodes) => Input::Evicted(nodes),
        ToMembership::Members { from, members, reply, .. } => Input::Members { from, members, reply },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_for_coming_going_and_restarting() {
        use MemberState::{Alive, Down, Left, Suspect};
        let (first, renewed) = (Generation::of_epoch(3), Generation::of_epoch(3).renewed());
        for (from, to) in [(None, Alive), (Some(Suspect), Down), (Some(Alive), Left), (Some(Down), Alive)] {
            assert!(is_worth_a_line(from, to, renewed), "{from:?} {to:?}");
        }
        assert!(
            !is_worth_a_line(Some(Alive), Suspect, first) && !is_worth_a_line(Some(Suspect), Alive, first)
        );
        assert!(is_worth_a_line(Some(Alive), Alive, first) && !is_worth_a_line(Some(Alive), Alive, renewed));
    }

    #[test]
    fn a_wall_clock_far_ahead_of_the_other_means_a_suspend() {
        let start = clock::now();
        let later = |mono, wall| Now {
            mono: start.mono + Duration::from_secs(mono),
            wall: start.wall.saturating_add_signed(wall),
        };
        assert!(slept(start, later(1, 3_600)));
        assert!(!slept(start, later(3_600, 3_601)), "idle, not asleep");
        assert!(!slept(start, later(1, 20)) && !slept(start, later(1, -3_600)), "the clock was set");
    }
}
