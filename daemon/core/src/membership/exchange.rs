//! The part of membership that compares and exchanges full states with connected peers.
//!
//! Owns: when a hash or a state is sent, what a state says, what is believed of one. Must not know: packets.
//! Driven by: `Membership`.
//!
//! SWIM spreads news once; a node that missed them, or came later, learns the rest here. Without it 300 nodes
//! that join within ten seconds need minutes to see each other.

use std::time::Instant;

use gossamer_wire::frame::Frame;
use gossamer_wire::limits::MAX_MEMBERS_PER_FRAME;
use gossamer_wire::swim::{Identity, SwimMember, SwimState};
use gossamer_wire::{DecodeError, NodeId};
use rand::RngExt;

use super::claims::Kind;
use super::codec::member_from_wire;
use super::peers::{COMPARE_AFTER, Verdict, news};
use super::timers::Due;
use super::{MemberState, Membership, Output, Source, log, packet, touched};

impl Membership {
    pub(super) fn handle_members(
        &mut self,
        from: NodeId,
        members: Vec<SwimMember>,
        reply: bool,
        now: Instant,
    ) -> Result<(), DecodeError> {
        self.admit_sender(from)?;
        members.iter().try_for_each(|member| packet::check_identity(member.identity))?;
        self.note_heard(from, now);
        self.heed_later_life(from, None, &members, now)?;
        self.apply(from, &members, now);
        self.tell_if_down(from);
        if reply && !self.peers.is_told(from, now) {
            let news = news(self.full_state(), &members);
            self.send_members(from, news, false);
        }
        self.peers.settle(from);
        Ok(())
    }

    /// Tells a peer that is down here so: only a new life of it can end that.
    fn tell_if_down(&mut self, peer: NodeId) {
        let Some(view) = self.table.get(peer).filter(|view| !view.state.is_up()) else { return };
        let identity = Identity { node: peer, generation: view.generation };
        let entry = SwimMember { identity, incarnation: view.incarnation, state: SwimState::Down };
        self.send_members(peer, vec![entry], false);
    }

    /// Tells a peer of this node alone: a Feed in answer to an announce would cost both a look at all members.
    pub(super) fn introduce(&mut self, peer: NodeId) {
        if self.peers.contains(peer) {
            self.send_members(peer, vec![self.own_entry()], false);
        }
    }

    fn own_entry(&self) -> SwimMember {
        SwimMember { identity: self.me(), incarnation: self.incarnation, state: SwimState::Alive }
    }

    pub(super) fn handle_hash(&mut self, from: NodeId, hash: u64, now: Instant) {
        match self.peers.judge(from, hash == self.hash(), now) {
            Verdict::Agree => {}
            Verdict::Doubt => self.timers.push(now + COMPARE_AFTER, Due::Compare(from)),
            Verdict::Differ if self.states.take(BURST_OF_STATES, STATES_A_SECOND, now) => {
                self.send_full_state(from, now);
            }
            // Others have just been asked: what they answer is likely to be all that is missing.
            Verdict::Differ => {}
        }
    }

    pub(super) fn exchange(&mut self, now: Instant) {
        self.schedule_exchange(now);
        for accuser in self.claims.prune(now) {
            self.outputs.push_back(Output::Forgiven { accuser });
        }
        let peers: Vec<_> = self.peers.iter().collect();
        for peer in peers {
            match self.table.get(peer).copied() {
                Some(view) if view.state == MemberState::Suspect => {
                    // A suspicion whose accuser went away would last until somebody tells the suspect.
                    if now.saturating_duration_since(view.since) > 2 * self.config.suspicion {
                        let identity = Identity { node: peer, generation: view.generation };
                        self.accuse(identity, view.incarnation);
                    }
                }
                Some(view) if view.state.is_up() => {}
                Some(_) | None => self.announce(peer, now),
            }
        }
        let table = &self.table;
        if let Some(peer) = self.peers.one(&mut self.rng, |peer| table.is_up(peer)) {
            self.send_hash(peer);
        }
    }

    /// Tells a suspect of the suspicion on its reliable stream, so that it can refute (Lifeguard: buddy system).
    pub(super) fn accuse(&mut self, identity: Identity, incarnation: u16) {
        if self.peers.contains(identity.node) {
            let entry = SwimMember { identity, incarnation, state: SwimState::Suspect };
            self.send_members(identity.node, vec![entry], false);
        }
    }

    pub(super) fn send_full_state(&mut self, to: NodeId, now: Instant) {
        let members = self.full_state();
        self.send_members(to, members, true);
        self.peers.tell(to, now);
    }

    pub(super) fn send_members(&mut self, to: NodeId, members: Vec<SwimMember>, reply: bool) {
        let mut parts = members.chunks(MAX_MEMBERS_PER_FRAME).peekable();
        while let Some(part) = parts.next() {
            let reply = reply && parts.peek().is_none();
            self.outputs
                .push_back(Output::Frame { to, frame: Frame::Members { members: part.to_vec(), reply } });
        }
    }

    pub(super) fn send_hash(&mut self, to: NodeId) {
        self.outputs.push_back(Output::Frame { to, frame: Frame::MemberHash(self.hash()) });
    }

    pub(super) fn schedule_exchange(&mut self, now: Instant) {
        let jitter = self.rng.random_range(0.8..1.2);
        self.timers.push(now + self.config.exchange_interval.mul_f64(jitter), Due::Exchange);
    }

    /// Gives foca a full state. What the sender says of itself is passed on as news, the rest everybody gets
    /// by the same exchange.
    fn apply(&mut self, from: NodeId, members: &[SwimMember], now: Instant) {
        let me = self.me().node;
        let is_of_use = |member: &&SwimMember| {
            let node = member.identity.node;
            // A death nobody here has heard of needs no memory, and would never end if all passed it on.
            member.state != SwimState::Down || node == me || self.table.get(node).is_some()
        };
        let mut members: Vec<_> = members.iter().filter(is_of_use).cloned().collect();
        for member in &mut members {
            // Suspicion travels as news only: nobody here would ask the suspect to refute an old one.
            if member.state == SwimState::Suspect && member.identity.node != me {
                member.state = SwimState::Alive;
            }
        }
        self.retain_useful(&mut members);
        let claimed = self.me();
        self.judge_own(from, &mut members, Kind::State, now);
        self.weigh(from, &mut members, Kind::State, now);
        if self.me() != claimed {
            members.retain(|member| member.identity.node != claimed.node);
        }
        let (own, others): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.identity.node == from);
        for (members, is_news) in [(own, true), (others, false)] {
            let touched = touched(&members);
            let result = self.drive(Source::Peer(from), touched, now, |swim, effects| {
                swim.apply_many(members.iter().map(member_from_wire), is_news, effects)
            });
            log(result);
        }
    }

    /// Returns every member as an entry, this node last. Who is suspect counts as alive.
    fn full_state(&self) -> Vec<SwimMember> {
        let others = self.table.iter().map(|view| SwimMember {
            identity: Identity { node: view.node, generation: view.generation },
            incarnation: view.incarnation,
            state: if view.state.is_up() { SwimState::Alive } else { SwimState::Down },
        });
        others.chain([self.own_entry()]).collect()
    }

    fn hash(&self) -> u64 {
        self.table.hash(self.me())
    }
}

/// Full states sent at once because hashes differ, and how many more a second. While a large mesh forms, all differ from
/// all for seconds, and each state brings both sides everything.
const BURST_OF_STATES: f64 = 4.0;
const STATES_A_SECOND: f64 = 1.0;
