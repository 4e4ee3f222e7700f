//! The part of membership that weighs what others claim (design section 5.4).
//!
//! Owns: which claims need proof, the probes that bring it, what is done with the answer, what is believed about
//! this node itself. Must not know: timers of foca, full states. Driven by: `Membership`.
//!
//! One member could otherwise remove any other with three datagrams. A claim is given to foca, and so acted on
//! and passed on, only when this node's own probe of the accused has failed too. The probe starts with the first
//! suspicion and is over before the verdict, so a real death is known no later.

use std::time::{Duration, Instant};

use gossamer_wire::frame::Frame;
use gossamer_wire::swim::{self, Identity, SwimHeader, SwimMember, SwimMessage, SwimState};
use gossamer_wire::{Generation, NodeId};

use super::claims::{Claim, Kind, Outcome, Step};
use super::codec::{member_from_wire, next_generation};
use super::packet::Packet;
use super::timers::Due;
use super::{Life, Membership, Output, Source, log};

impl Membership {
    /// Takes out of `members` what needs proof, and what is absurd.
    pub(super) fn weigh(&mut self, from: NodeId, members: &mut Vec<SwimMember>, kind: Kind, now: Instant) {
        let entries = std::mem::take(members);
        for entry in entries {
            let Some(known) = self.known(entry.identity.node) else {
                members.push(entry);
                continue;
            };
            let is_same_life = entry.identity.generation == known.0;
            let is_own_word = entry.identity.node == from;
            let is_jump = is_same_life && entry.incarnation > known.1.saturating_add(AHEAD);
            let is_later_life = !is_same_life && self.peers.contains(entry.identity.node);
            if is_own_word || !self.table.is_up(entry.identity.node) {
                members.push(entry);
            } else if entry.state != SwimState::Alive || is_later_life {
                self.hear(from, entry, kind, now);
            } else if !is_jump {
                members.push(entry);
            }
        }
    }

    /// Judges what a peer says of this node's present life: suspicion is refuted, a death may take a new life.
    pub(super) fn judge_own(
        &mut self,
        from: NodeId,
        members: &mut Vec<SwimMember>,
        kind: Kind,
        now: Instant,
    ) {
        let me = self.me();
        let gravest = members.iter().filter(|entry| entry.identity == me).max_by_key(|entry| entry.state);
        let Some(entry) = gravest.cloned() else { return };
        members.retain(|entry| entry.identity != me);
        match entry.state {
            SwimState::Down if self.may_renew(from, kind, now) => members.push(entry),
            SwimState::Suspect if entry.incarnation < self.incarnation => self.introduce(from),
            SwimState::Suspect if entry.incarnation <= self.incarnation.saturating_add(AHEAD) => {
                self.refute(from, entry, now);
            }
            SwimState::Suspect if kind == Kind::News => self.blame(from, IMPOSSIBLE_EVERY, now),
            SwimState::Alive | SwimState::Suspect | SwimState::Down => {}
        }
    }

    /// Whether a peer's word that this node is down makes it take a new life.
    pub(super) fn may_renew(&mut self, from: NodeId, kind: Kind, now: Instant) -> bool {
        if self.claims.is_named(from, now) {
            return false;
        }
        if self.renewals.allow(now) {
            return true;
        }
        // No honest node could have found the new life dead by now.
        let earliest = self.config.probe_interval + self.config.suspicion;
        let last = self.renewals.last();
        if kind == Kind::News && last.is_some_and(|last| now.saturating_duration_since(last) < earliest) {
            self.blame(from, IMPOSSIBLE_EVERY, now);
        }
        false
    }

    /// Renews this node's identity if the peer knows a later life of it than the present one.
    pub(super) fn heed_later_life(
        &mut self,
        from: NodeId,
        addressed: Option<Generation>,
        members: &[SwimMember],
        now: Instant,
    ) -> Result<(), gossamer_wire::DecodeError> {
        let me = self.me();
        let told = members.iter().map(|member| member.identity).filter(|identity| identity.node == me.node);
        let claimed = told.map(|identity| identity.generation).chain(addressed).max();
        let Some(claimed) = claimed.filter(|claimed| *claimed > me.generation) else { return Ok(()) };
        let generation = next_generation(claimed).ok_or(gossamer_wire::DecodeError::Unknown {
            what: "epoch of this node",
            value: claimed.epoch,
        })?;
        if self.may_renew(from, Kind::State, now) {
            let result = self.drive(Source::Peer(from), Vec::new(), now, |swim, effects| {
                effects.renewed = Some(generation);
                swim.change_identity(Life(Identity { generation, ..me }), effects)
            });
            log(result);
        }
        Ok(())
    }

    /// Answers a probe: first what proves which life this is.
    pub(super) fn answer_probe(&mut self, from: NodeId, number: u64) {
        if self.peers.contains(from) {
            self.introduce(from);
            self.outputs.push_back(Output::Frame { to: from, frame: Frame::ProbeAck(number) });
        }
    }

    /// A probed member has answered.
    pub(super) fn handle_answer(&mut self, from: NodeId, number: u64, now: Instant) {
        if !self.claims.is_answer(from, number) {
            return;
        }
        self.ack_for(from, now);
        self.clear(from, true, now);
    }

    /// Probes the member on its stream, for this node's own sake: its answer to a ping is late.
    pub(super) fn double_check(&mut self, node: NodeId, now: Instant) {
        let Some(known) = self.known(node) else { return };
        if let Some(number) = self.claims.ask(node, known, now) {
            self.ask(node, number, now);
        }
    }

    /// The time for an answer is over: what waited counts.
    pub(super) fn confirm(&mut self, node: NodeId, number: u64, now: Instant) {
        let outcome = self.claims.conclude(node, number, now);
        tracing::debug!(%node, number, ?outcome, "the time for an answer is over");
        match outcome {
            Outcome::Nothing => {}
            Outcome::AskAgain(number) => self.ask(node, number, now),
            Outcome::Believe(claims) => {
                self.believe(claims, now);
                self.hasten_confirmed(node, now);
            }
            Outcome::Refuted => self.clear_by_helpers(node, now),
        }
    }

    /// Gives claims to foca, which acts on them and passes them on.
    pub(super) fn believe(&mut self, claims: Vec<Claim>, now: Instant) {
        for claim in claims {
            if !self.table.is_news(&claim.entry) {
                continue;
            }
            let (source, node) = (Source::Peer(claim.accuser), claim.entry.identity.node);
            let is_news = claim.kind == Kind::News;
            let entry = member_from_wire(&claim.entry);
            let result = self.drive(source, vec![node], now, |swim, effects| {
                swim.apply_many([entry].into_iter(), is_news, effects)
            });
            log(result);
        }
    }

    /// Clears a member of what waits against it, tells the accusers, and counts against them what they cannot
    /// have found by themselves, if that `is_proved`.
    pub(super) fn clear(&mut self, node: NodeId, is_proved: bool, now: Instant) {
        let Some(view) = self.table.get(node).copied() else { return };
        let identity = Identity { node, generation: view.generation };
        for claim in self.claims.answered(node, now) {
            self.outputs.push_back(Output::Refuted { accuser: claim.accuser, accused: node });
            let is_same_life = claim.entry.identity == identity;
            let is_death = claim.entry.state == SwimState::Down;
            let entry = |state| SwimMember { identity, incarnation: view.incarnation, state };
            match claim.kind {
                Kind::News => {
                    self.send_if_connected(claim.accuser, entry(SwimState::Alive));
                    let accuser_is_well = self.table.is_alive(claim.accuser);
                    if is_death && is_same_life && accuser_is_well && is_proved {
                        self.blame(claim.accuser, WRONG_EVERY, now);
                    }
                }
                // Believed there since a partition: only a new life of the accused can end that.
                Kind::State if is_same_life && is_death => {
                    self.send_if_connected(node, entry(SwimState::Down))
                }
                Kind::State => {}
            }
        }
    }

    /// Settles the case of a member of which something newer is known than it was probed for.
    pub(super) fn notice_refutations(&mut self, nodes: &[NodeId], now: Instant) {
        for node in nodes {
            if self.known(*node).is_some_and(|known| self.claims.is_outdated(*node, known)) {
                self.clear(*node, true, now);
            }
        }
    }

    /// Life and incarnation of a member.
    pub(super) fn known(&self, node: NodeId) -> Option<(Generation, u16)> {
        self.table.get(node).map(|view| (view.generation, view.incarnation))
    }

    fn hear(&mut self, from: NodeId, mut entry: SwimMember, kind: Kind, now: Instant) {
        let node = entry.identity.node;
        let Some(known) = self.known(node) else { return };
        if entry.identity.generation == known.0 && entry.state == SwimState::Suspect {
            // Its accuser may be far ahead: nobody may have to refute an incarnation it never had.
            entry.incarnation = known.1;
        }
        let claim = Claim { accuser: from, kind, entry: entry.clone() };
        let step = self.claims.hear(claim.clone(), known, now);
        tracing::debug!(%node, accuser = %from, state = ?entry.state, ?kind, ?step, "claim heard");
        match step {
            Step::Ask(number) => {
                if entry.state == SwimState::Suspect && entry.identity.generation == known.0 {
                    self.send_if_connected(node, entry);
                }
                self.ask(node, number, now);
            }
            Step::Believe => self.believe(vec![claim], now),
            Step::Refuted => self.outputs.push_back(Output::Refuted { accuser: from, accused: node }),
            Step::Nothing => {}
        }
    }

    /// Probes a member, without a connection through others.
    pub(super) fn ask(&mut self, node: NodeId, number: u64, now: Instant) {
        if self.peers.contains(node) {
            self.outputs.push_back(Output::Frame { to: node, frame: Frame::Probe(number) });
        } else {
            self.ask_helpers(node, number);
        }
        let within = ANSWER_WITHIN.max(2 * self.health.round_trip(node));
        self.timers.push(now + within, Due::Confirm(node, number));
    }

    /// Refutes a suspicion, also straight to who voiced it.
    fn refute(&mut self, from: NodeId, entry: SwimMember, now: Instant) {
        tracing::debug!(accuser = %from, incarnation = entry.incarnation, "suspected; refuting");
        self.health.suspected(now);
        let generation = self.me().generation;
        let refuted = entry.incarnation.max(self.incarnation);
        let entry = member_from_wire(&entry);
        let result = self.drive(Source::Peer(from), Vec::new(), now, |swim, effects| {
            swim.apply_many([entry].into_iter(), true, effects)
        });
        log(result);
        if self.me().generation == generation {
            self.incarnation = refuted.saturating_add(1);
            self.introduce(from);
        }
    }

    /// Lets foca take an answer on the stream for one to its ping under way.
    fn ack_for(&mut self, node: NodeId, now: Instant) {
        let Some(probing) = self.probing.filter(|probing| probing.node == node && !probing.is_acked) else {
            return;
        };
        let Some((generation, incarnation)) = self.known(node).filter(|known| known.0 == probing.life) else {
            return;
        };
        let me = self.me();
        let message = SwimMessage::Ack(probing.number);
        let header = SwimHeader { from: generation, incarnation, to: me.generation, message };
        let named = Packet { header, members: Vec::new() }.name(node, me.node);
        self.probing = Some(super::Probing { is_acked: true, ..probing });
        let source = Source::Peer(node);
        let result = self.drive(source, vec![node], now, |swim, effects| swim.handle_data(&named, effects));
        log(result);
    }

    fn send_if_connected(&mut self, to: NodeId, entry: SwimMember) {
        if self.peers.contains(to) {
            self.send_members(to, vec![entry], false);
        }
    }

    fn blame(&mut self, accuser: NodeId, every: Duration, now: Instant) {
        if self.claims.blame(accuser, every, now) {
            self.outputs.push_back(Output::Named { accuser });
        }
    }
}

impl Packet {
    /// Writes the packet as it travels.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = swim::encode(&self.header).unwrap_or_default();
        bytes.extend((self.members.len() as u16).to_be_bytes());
        for member in &self.members {
            bytes.extend(swim::encode(member).unwrap_or_default());
        }
        bytes
    }
}

/// Time the accused has to answer (design section 5); more for a peer known to be slow.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// One honest mistake is passed on several times and may touch several members: it counts once in this time.
const WRONG_EVERY: Duration = Duration::from_secs(5);

/// The same for what no honest node can have found: only its copies are spared.
const IMPOSSIBLE_EVERY: Duration = Duration::from_secs(1);

/// How far a claimed incarnation may be ahead of the known one: refutations somebody missed. Without a bound one
/// packet could use up all incarnations of a life.
const AHEAD: u16 = 16;
