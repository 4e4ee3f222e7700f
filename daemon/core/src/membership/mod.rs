//! Who is a member and whether it lives: SWIM by foca, and what the bare crate lacks (design section 5).
//!
//! Owns: the members, their states, all SWIM timers, the exchange of full states, this node's generation.
//! Must not know: addresses, connections beyond "is there one", records, clocks. Driven by: the gossip task.
//!
//! Added to foca: the sender of a packet is the peer of its connection; claims against members need this node's
//! own proof, and wrong accusers are named; a stale verdict about a member that has refuted is dropped; an accused
//! member is told so at once; states are compared and exchanged; a pause of this node is not held against others;
//! a node that misses many answers doubts itself; leaving differs from dying.

mod allowance;
mod claims;
mod codec;
mod config;
mod confirm;
mod effects;
mod event;
mod evicted;
mod exchange;
mod fuzz;
mod health;
mod indirect;
mod packet;
mod peers;
mod spare;
mod spread;
mod table;
mod timers;
mod verdict;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foca::{Foca, NoCustomBroadcast, Timer};
use gossamer_wire::limits::MAX_NODES;
use gossamer_wire::swim::{Identity, SwimMember, SwimMessage, SwimState};
use gossamer_wire::{DecodeError, Generation, NodeId};
use rand::SeedableRng;
use rand::rngs::StdRng;

use allowance::Allowance;
use claims::{Claims, Kind};
use codec::{LeanCodec, Life};
use effects::Effects;
use health::{Health, Renewals};
use packet::Packet;
use peers::Peers;
use spread::Finds;
use table::{LEFT, Table, is_news_to};
use timers::{Due, Timers};
use verdict::Verdict;

use crate::outputs::trimmed;

pub use claims::REFUTED_CLAIMS;
pub use config::MembershipConfig;
pub use event::{Input, Output};
pub use table::{Cause, MemberState, MemberView};

/// The members of the mesh as one node knows them.
pub struct Membership {
    config: MembershipConfig,
    swim: Swim,
    rng: StdRng,
    timers: Timers,
    table: Table,
    peers: Peers,
    claims: Claims,
    health: Health,
    renewals: Renewals,
    finds: Finds,
    evicted: Arc<BTreeSet<NodeId>>,
    /// Full states that may be sent because hashes differ.
    states: Allowance,
    /// How often this node has refuted a suspicion in this life.
    incarnation: u16,
    /// Whom foca probes: its failure shows when the next probe starts.
    probing: Option<Probing>,
    /// The next round of gossip, while there is no news.
    parked_gossip: Option<(Duration, Timer<Life>)>,
    /// Members passed over since the last ping, because they are not warm.
    passed_over: usize,
    /// When any peer was last heard.
    heard: Instant,
    outputs: VecDeque<Output>,
    has_left: bool,
}

type Swim = Foca<Life, LeanCodec, StdRng, NoCustomBroadcast>;

/// A ping of foca's that is under way.
#[derive(Clone, Copy, Debug)]
struct Probing {
    node: NodeId,
    life: Generation,
    number: u8,
    is_acked: bool,
}

/// Who brought a change about.
#[derive(Clone, Copy, Debug)]
enum Source {
    Peer(NodeId),
    OwnProbes,
    Statement,
}

impl Membership {
    /// Makes the membership of a node that knows nobody yet. `me.generation` must be above that of any earlier
    /// start. Same `rng`, inputs and times, same outputs.
    pub fn new(config: MembershipConfig, me: Identity, mut rng: StdRng, now: Instant) -> Self {
        let swim = Foca::new(Life(me), config.foca(), StdRng::from_rng(&mut rng), LeanCodec);
        let mut membership = Self {
            config,
            swim,
            rng,
            timers: Timers::default(),
            table: Table::default(),
            peers: Peers::default(),
            claims: Claims::default(),
            health: Health::default(),
            renewals: Renewals::default(),
            finds: Finds::default(),
            evicted: Arc::default(),
            states: Allowance::default(),
            incarnation: 0,
            probing: None,
            parked_gossip: None,
            passed_over: 0,
            heard: now,
            outputs: VecDeque::new(),
            has_left: false,
        };
        membership.schedule_exchange(now);
        membership
    }

    /// Takes in what happened. Poll [`Self::next_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        if self.has_left {
            return;
        }
        self.notice_pause(now);
        match input {
            Input::Packet { from, bytes } => {
                let result = self.handle_packet(from, &bytes, now);
                self.refuse(from, result);
            }
            Input::Members { from, members, reply } => {
                let result = self.handle_members(from, members, reply, now);
                self.refuse(from, result);
            }
            Input::MemberHash { from, hash } => self.handle_hash(from, hash, now),
            Input::Connected { peer } => self.handle_connected(peer, now),
            Input::Disconnected { peer } => {
                self.peers.disconnect(peer);
                let claims = self.claims.take_later_lives(peer);
                self.believe(claims, now);
                self.ask_anew(peer, now);
            }
            Input::Probe { from, number } => self.answer_probe(from, number),
            Input::ProbeAck { from, number } => self.handle_answer(from, number, now),
            Input::Slept => self.rejoin(now),
            Input::Evicted(nodes) => self.evict(nodes, now),
            Input::Leave => self.leave(),
        }
    }

    /// Does what is due at or before `now`. Early and repeated calls do nothing. Poll [`Self::next_output`]
    /// afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.notice_pause(now);
        while let Some(due) = self.timers.pop(now) {
            match due {
                Due::Foca(timer) | Due::Verdict(timer, _) => self.handle_timer(timer, now),
                Due::Exchange => self.exchange(now),
                Due::Compare(peer) if self.peers.contains(peer) => self.send_hash(peer),
                Due::Compare(_) => {}
                Due::Confirm(node, number) => self.confirm(node, number, now),
                Due::Arrivals => self.spread_arrivals(now),
            }
        }
    }

    /// Returns the next thing to do, in order. Poll until `None`.
    pub fn next_output(&mut self) -> Option<Output> {
        trimmed(&mut self.outputs).pop_front()
    }

    /// Returns when [`Self::handle_timeout`] has something to do; `None` only after [`Input::Leave`].
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Returns all other members in order of id, those that are gone for
    /// [`MembershipConfig::remove_down_after`].
    pub fn members(&self) -> impl Iterator<Item = MemberView> {
        self.table.iter().copied()
    }

    /// Returns the peers whose claims count for nothing, because too many were wrong, in order of id.
    pub fn named(&self) -> impl Iterator<Item = NodeId> {
        self.claims.named()
    }

    /// Returns this node's identity; [`Output::Renewed`] tells of changes.
    pub fn me(&self) -> Identity {
        self.swim.identity().0
    }

    fn handle_packet(&mut self, from: NodeId, bytes: &[u8], now: Instant) -> Result<(), DecodeError> {
        let mut packet = Packet::parse(bytes)?;
        self.admit_sender(from)?;
        self.note_heard(from, now);
        self.heed_later_life(from, Some(packet.header.to), &packet.members, now)?;
        let is_announce = packet.header.message == SwimMessage::Announce;
        if packet.header.to < self.me().generation && !is_announce {
            // foca ignores what is meant for an earlier life; the sender has to learn of this one.
            self.announce(from, now);
            return Ok(());
        }
        if packet.header.message == SwimMessage::TurnUndead && !self.may_renew(from, Kind::News, now) {
            return Ok(());
        }
        if let SwimMessage::Ack(number) = packet.header.message {
            self.handle_ack(from, number, now);
        }
        if let SwimMessage::ForwardedAck { origin, probe } = packet.header.message {
            self.handle_vouch(from, origin, probe, now);
        }
        self.note_confirmations(from, &packet.members, now);
        self.retain_useful(&mut packet.members);
        self.judge_own(from, &mut packet.members, Kind::News, now);
        self.weigh(from, &mut packet.members, Kind::News, now);
        let mut touched = touched(&packet.members);
        let sender = Identity { node: from, generation: packet.header.from };
        let incarnation = packet.header.incarnation;
        if self.table.is_news(&SwimMember { identity: sender, incarnation, state: SwimState::Alive }) {
            touched.push(from);
        }
        let named = packet.name(from, self.me().node);
        let result =
            self.drive(Source::Peer(from), touched, now, |swim, effects| swim.handle_data(&named, effects));
        result.map_err(|error| DecodeError::Malformed { what: "swim packet", why: error.to_string() })
    }

    fn handle_connected(&mut self, peer: NodeId, now: Instant) {
        if peer == self.me().node {
            return;
        }
        self.peers.connect(peer);
        let is_stranger = self.table.get(peer).is_none();
        if self.table.is_up(peer) || is_stranger && self.table.len() > FULL_STATE_TO_STRANGERS {
            // It has what it needs from its first peer, or asks for it because it is alone or differs.
            self.introduce(peer);
            self.send_hash(peer);
        } else {
            self.send_full_state(peer, now);
        }
        self.ask_anew(peer, now);
    }

    /// Tells every peer on its reliable stream, as one entry: down, at an incarnation that says why.
    /// foca's own way would reach three of them, by datagram, and not say why.
    fn leave(&mut self) {
        let entry = SwimMember { identity: self.me(), incarnation: LEFT, state: SwimState::Down };
        for peer in self.peers.iter().collect::<Vec<_>>() {
            self.send_members(peer, vec![entry.clone()], false);
        }
        self.has_left = true;
        self.timers.clear();
    }

    fn handle_timer(&mut self, timer: Timer<Life>, now: Instant) {
        let mut touched = Vec::new();
        match &timer {
            Timer::ChangeSuspectToDown { member_id, incarnation, .. } => {
                let verdict = self.judge(member_id, *incarnation, now);
                tracing::debug!(node = %member_id.0.node, incarnation, ?verdict, "the time of a suspect is over");
                match verdict {
                    Verdict::Drop => return,
                    Verdict::Postpone => {
                        let again = now + verdict::RECONSIDER;
                        return self.timers.push(again, Due::Verdict(timer, again));
                    }
                    Verdict::Down => touched.push(member_id.0.node),
                }
            }
            Timer::ProbeRandomMember(_) => {
                if let Some(probing) = self.probing.take() {
                    touched.push(probing.node);
                }
            }
            Timer::SendIndirectProbe { probed_id, .. } => {
                if self.probing.is_some_and(|probing| !probing.is_acked) {
                    self.double_check(probed_id.0.node, now);
                }
            }
            Timer::RemoveDown(life) => {
                self.health.forget(life.0.node);
                touched.push(life.0.node);
            }
            Timer::PeriodicAnnounce(_) | Timer::PeriodicAnnounceDown(_) | Timer::PeriodicGossip(_) => {}
        }
        let result =
            self.drive(Source::OwnProbes, touched, now, |swim, effects| swim.handle_timer(timer, effects));
        log(result);
    }

    fn handle_ack(&mut self, from: NodeId, number: u8, now: Instant) {
        self.health.acked(from, number, now);
        let is_it = |probing: &&mut Probing| (probing.node, probing.number) == (from, number);
        if let Some(probing) = self.probing.as_mut().filter(is_it)
            && !std::mem::replace(&mut probing.is_acked, true)
        {
            self.health.improve();
        }
    }

    fn note_heard(&mut self, from: NodeId, now: Instant) {
        self.heard = now;
        self.peers.hear(from, now);
    }

    /// Notices that this node has not run for a while (suspend, stopped process, no CPU time). Its timers then go
    /// on where they stood, so that answers that wait to be read come first.
    fn notice_pause(&mut self, now: Instant) {
        let Some(due) = self.timers.next() else { return };
        let late = now.saturating_duration_since(due);
        if late < LATE {
            return;
        }
        self.health.worsen();
        tracing::debug!(by = ?late, "this node runs late; its verdicts wait");
        let first = now + self.config.probe_rtt;
        self.timers.resume(first, first + ANSWERS_WAIT);
        if late >= PAUSE {
            self.rejoin(now);
        }
    }

    /// After a long absence: suspects get their full time, and some peers are asked what happened.
    fn rejoin(&mut self, now: Instant) {
        let first = now + self.config.probe_rtt;
        self.timers.resume(first, first + self.config.suspicion);
        self.renewals.expect();
        for peer in self.peers.some(ASKED_AFTER_PAUSE, &mut self.rng, |_| true) {
            self.announce(peer, now);
            self.send_full_state(peer, now);
        }
    }

    fn admit_sender(&self, from: NodeId) -> Result<(), DecodeError> {
        if from == self.me().node {
            return Err(DecodeError::Malformed { what: "swim packet", why: "sent by this node".into() });
        }
        if self.table.get(from).is_none() && self.table.len() >= MAX_NODES {
            let len = self.table.len() + 1;
            return Err(DecodeError::TooMany { what: "members", len, limit: MAX_NODES });
        }
        Ok(())
    }

    /// Drops claims about other lives of this node, what is known already, and unknown nodes beyond the limit.
    fn retain_useful(&self, members: &mut Vec<SwimMember>) {
        let me = self.me();
        // One place is kept for the sender.
        let mut room = MAX_NODES.saturating_sub(self.table.len() + 1);
        let mut walk = self.table.walk();
        members.retain(|member| {
            if member.identity.node == me.node {
                return member.identity == me;
            }
            let known = walk.get(member.identity.node);
            if !is_news_to(known, member) || self.evicted.contains(&member.identity.node) {
                return false;
            }
            let is_known = known.is_some();
            let is_kept = is_known || room > 0;
            room = room.saturating_sub(usize::from(!is_known));
            is_kept
        });
    }

    /// Runs foca and turns what it wants into outputs and timers.
    fn drive(
        &mut self,
        source: Source,
        touched: Vec<NodeId>,
        now: Instant,
        call: impl FnOnce(&mut Swim, &mut Effects) -> Result<(), foca::Error>,
    ) -> Result<(), foca::Error> {
        let mut effects = Effects::default();
        let mut result = call(&mut self.swim, &mut effects);
        if let Some(generation) = effects.renewed {
            self.outputs.push_back(Output::Renewed(generation));
            self.incarnation = 0;
            // foca would tell three members; everybody has to know before it takes this node for dead.
            for peer in self.peers.iter().collect::<Vec<_>>() {
                self.introduce(peer);
            }
            // Without this foca probes nobody until the next packet comes.
            let woken = self.swim.apply_many(std::iter::empty(), false, &mut effects);
            result = result.and(woken);
        }
        let me = self.me().node;
        let told: Vec<_> = touched.iter().copied().filter(|node| self.claims.is_open(*node)).collect();
        for change in self.table.update(self.swim.iter_membership_state(), touched, now) {
            let view = change.view;
            let cause = source.cause(view.node);
            let (node, generation) = (view.node, view.generation);
            self.outputs.push_back(Output::Changed {
                node,
                from: change.before,
                to: view.state,
                generation,
                cause,
            });
            match view.state {
                MemberState::Suspect if matches!(source, Source::OwnProbes) => {
                    self.spread_suspicion(&view, now)
                }
                MemberState::Suspect => {}
                MemberState::Alive | MemberState::Down | MemberState::Left => self.spread_end(&view),
            }
            let was_up = change.before.is_some_and(MemberState::is_up);
            if view.state == MemberState::Alive && !was_up && matches!(cause, Cause::Itself) {
                self.note_arrival(view.node, now);
            }
        }
        self.config.warm.resize(self.table.up() + 1);
        self.notice_refutations(&told, now);
        let mut spared = None;
        for (to, named) in effects.packets {
            // A peer may name this node's earlier life as the target of a probe.
            if let Some(bytes) = packet::strip(&named, me)
                && to != me
            {
                if let Some(ping) = self.cold_ping(to, bytes, now) {
                    spared = Some(ping);
                    continue;
                }
                let (to, bytes) = self.redirected(to, bytes);
                self.note_ping(to, &bytes, now);
                self.outputs.push_back(Output::Packet { to, bytes });
            }
        }
        self.hurry_on(spared.as_ref(), &mut effects.timers);
        self.park_gossip(&mut effects.timers);
        for (usual, timer) in effects.timers {
            let after = self.stretched(usual, &timer);
            let due = self.due(timer, (usual, after), now);
            self.timers.push(now + after, due);
        }
        if let Some(ping) = spared {
            self.spare(ping, now);
        }
        result
    }

    fn note_ping(&mut self, to: NodeId, packet: &[u8], now: Instant) {
        if let Ok((header, _)) = gossamer_wire::swim::decode_header(packet)
            && let SwimMessage::Ping(number) = header.message
        {
            self.health.pinged(to, number, now);
            self.probing = Some(Probing { node: to, life: header.to, number, is_acked: false });
        }
    }

    /// Tells a node that this one is there; it answers with members.
    fn announce(&mut self, node: NodeId, now: Instant) {
        let generation = self.table.get(node).map(|view| view.generation).unwrap_or_default();
        let to = Life(Identity { node, generation });
        let result =
            self.drive(Source::OwnProbes, Vec::new(), now, |swim, effects| swim.announce(to, effects));
        log(result);
    }

    fn refuse(&mut self, from: NodeId, result: Result<(), DecodeError>) {
        if let Err(error) = result {
            self.outputs.push_back(Output::Refused { from, error });
        }
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("me", &self.me())
            .field("members", &self.table.len())
            .finish_non_exhaustive()
    }
}

impl Source {
    fn cause(self, node: NodeId) -> Cause {
        match self {
            Self::Peer(peer) if peer == node => Cause::Itself,
            Self::Peer(peer) => Cause::Peer(peer),
            Self::OwnProbes => Cause::Silence,
            Self::Statement => Cause::Statement,
        }
    }
}

/// Returns the nodes a message tells of.
fn touched(members: &[SwimMember]) -> Vec<NodeId> {
    members.iter().map(|member| member.identity.node).collect()
}

/// foca's complaints about timers are of no consequence: it recovers with the next probe.
fn log(result: Result<(), foca::Error>) {
    if let Err(err) = result {
        tracing::debug!(%err, "swim step skipped");
    }
}

/// Feeds any bytes to a small mesh's member as a packet and as a full state. Must return for all of them.
pub fn fuzz(bytes: &[u8]) {
    fuzz::run(bytes);
}

/// A deadline missed by more than this means that this node had no time to run: answers may wait unread. Above
/// what a loaded machine delays a task by.
const LATE: Duration = Duration::from_millis(250);

/// Time for those answers before any verdict.
const ANSWERS_WAIT: Duration = Duration::from_secs(1);

/// A deadline missed by more than this means that others may hold this node for dead.
const PAUSE: Duration = Duration::from_secs(5);

/// How many peers are asked after a pause; each tells all it knows.
const ASKED_AFTER_PAUSE: usize = 3;

/// Up to this many members a stranger gets the full state at once: it fits one packet. Above, a newcomer that
/// connects to everybody would get everything from everybody.
const FULL_STATE_TO_STRANGERS: usize = 50;
