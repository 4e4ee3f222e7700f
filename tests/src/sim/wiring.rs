//! How the cores of one node are wired to each other and to its peers: as the daemon does it.
//!
//! Owns: the way of each output and of each thing that arrives. Must not know: how it travels.
//! Driven by: the mesh. **An output or an input that a core gains has its place here and nowhere else.**
//!
//! A step is in two parts: what a process makes of something touches nothing but the process, so that many can take
//! their steps at one time ([`Process::step`]); what it wants of the world is done one after the other
//! (`Mesh::carry_out`).

use gossamer_core::catalog::{self, CatalogEvent, MemberLiveness};
use gossamer_core::dial::{Dial, Source, Standing};
use gossamer_core::membership::{self, MemberState};
use gossamer_core::time::Now;
use gossamer_wire::NodeId;
use gossamer_wire::frame::Frame;

use super::mesh::Mesh;
use super::node::Process;
use crate::scenario::Down;

/// What comes to a process.
#[derive(Debug)]
pub(super) enum Stimulus {
    /// Time has passed.
    Timeout,
    /// A frame of a peer, for the core it is for.
    Frame { from: NodeId, frame: Box<Frame> },
    /// A SWIM packet of a peer.
    Packet { from: NodeId, bytes: Vec<u8> },
    /// A control connection is up; again for one that replaces another.
    Connected(NodeId),
    /// The control connection in use is gone.
    Disconnected(NodeId),
    /// The complete set of own records, or another input that is the catalog's alone.
    Catalog(catalog::Input),
    /// An input that is membership's alone.
    Membership(membership::Input),
    /// A core or the book was changed before; what they want is to be done.
    Changed,
}

/// What a process wants done outside of it.
#[derive(Debug)]
pub(super) enum Effect {
    Packet {
        to: NodeId,
        bytes: Vec<u8>,
    },
    Frame {
        to: NodeId,
        frame: Frame,
    },
    Dial(Dial),
    HangUp(NodeId),
    /// It holds a member for down.
    Down(NodeId),
    Named(NodeId),
    Renewed,
    /// One more of these, for the counts.
    Counted(&'static str),
    /// What is stored has changed.
    Save,
    EpochBehind {
        at_least: u64,
    },
    Accepted {
        service: gossamer_wire::ServiceName,
        owner: NodeId,
    },
}

impl Process {
    /// Takes something in the way the daemon's tasks do: what is due afterwards is done too. Returns what is to be
    /// done outside, in order, and notes when the next step is due by itself.
    pub(super) fn step(&mut self, stimulus: Stimulus, now: Now) -> Vec<Effect> {
        match stimulus {
            Stimulus::Timeout => {
                self.membership.handle_timeout(now.mono);
                self.catalog.handle_timeout(now);
            }
            Stimulus::Frame { from, frame } => self.take_frame(from, *frame, now),
            Stimulus::Packet { from, bytes } => {
                self.tell_membership(membership::Input::Packet { from, bytes }, now);
            }
            Stimulus::Connected(peer) => {
                self.tell_membership(membership::Input::Connected { peer }, now);
                self.tell_catalog(catalog::Input::Connected(peer), now);
            }
            Stimulus::Disconnected(peer) => {
                self.book.disconnected(peer, now.mono);
                self.tell_membership(membership::Input::Disconnected { peer }, now);
                self.tell_catalog(catalog::Input::Disconnected(peer), now);
            }
            Stimulus::Catalog(input) => self.tell_catalog(input, now),
            Stimulus::Membership(input) => self.tell_membership(input, now),
            Stimulus::Changed => {}
        }
        self.drain(now)
    }

    fn take_frame(&mut self, from: NodeId, frame: Frame, now: Now) {
        let input = match frame {
            Frame::Swim(bytes) => membership::Input::Packet { from, bytes },
            Frame::Probe(number) => membership::Input::Probe { from, number },
            Frame::ProbeAck(number) => membership::Input::ProbeAck { from, number },
            Frame::MemberHash(hash) => membership::Input::MemberHash { from, hash },
            Frame::Members { members, reply } => membership::Input::Members { from, members, reply },
            frame => return self.tell_catalog(catalog::Input::Frame { from, frame }, now),
        };
        self.tell_membership(input, now);
    }

    fn tell_membership(&mut self, input: membership::Input, now: Now) {
        self.membership.handle(input, now.mono);
        self.membership.handle_timeout(now.mono);
    }

    fn tell_catalog(&mut self, input: catalog::Input, now: Now) {
        self.catalog.handle(input, now);
        self.catalog.handle_timeout(now);
    }

    /// Gathers everything the cores want.
    fn drain(&mut self, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        loop {
            if let Some(output) = self.membership.next_output() {
                self.take_membership(output, now, &mut effects);
            } else if let Some(output) = self.catalog.next_output() {
                self.take_catalog(output, now, &mut effects);
            } else {
                break;
            }
        }
        while let Some(dial) = self.book.next_dial(now.mono) {
            effects.push(Effect::Dial(dial));
        }
        effects.extend(self.book.next_surplus(now.mono).map(Effect::HangUp));
        let cores =
            [self.membership.next_deadline(), self.catalog.next_deadline(), self.book.next_deadline()];
        self.due = cores.into_iter().flatten().min();
        effects
    }

    fn take_membership(&mut self, output: membership::Output, now: Now, effects: &mut Vec<Effect>) {
        effects.push(match output {
            membership::Output::Packet { to, bytes } => Effect::Packet { to, bytes },
            membership::Output::Frame { to, frame } => Effect::Frame { to, frame },
            membership::Output::Reach { node } => return self.book.reach(node, now.mono),
            membership::Output::Changed { node: member, from, to, .. } => {
                return self.member_changed(member, from, to, now, effects);
            }
            membership::Output::Renewed(_) => Effect::Renewed,
            membership::Output::Refused { .. } => Effect::Counted("refused-swim"),
            membership::Output::Refuted { .. } => Effect::Counted("refuted-claim"),
            membership::Output::Named { accuser } => Effect::Named(accuser),
            membership::Output::Forgiven { .. } => return,
        });
    }

    fn member_changed(
        &mut self,
        member: NodeId,
        from: Option<MemberState>,
        to: MemberState,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let was_up = from.is_some_and(MemberState::is_up);
        if to.is_up() && !was_up {
            self.book.set_standing(member, Standing::Live, now.mono);
        }
        if !to.is_up() && was_up {
            self.book.set_standing(member, Standing::Silent, now.mono);
            if to == MemberState::Down {
                effects.push(Effect::Down(member));
            }
            effects.push(Effect::HangUp(member));
        }
        self.tell_catalog(catalog::Input::Member { node: member, state: liveness(to) }, now);
    }

    fn take_catalog(&mut self, output: catalog::Output, now: Now, effects: &mut Vec<Effect>) {
        effects.push(match output {
            catalog::Output::Send { to, frame } => Effect::Frame { to, frame },
            catalog::Output::NodeChanged(other) => {
                if let Some(addresses) = self.catalog.node_addresses(other) {
                    self.book.learn(other, addresses, Source::Card, now.mono);
                }
                return;
            }
            catalog::Output::ServiceChanged(_) => Effect::Save,
            catalog::Output::EpochBehind { at_least } => Effect::EpochBehind { at_least },
            catalog::Output::Event(CatalogEvent::Accepted { service, node: owner, .. }) => {
                Effect::Accepted { service, owner }
            }
            catalog::Output::Event(CatalogEvent::Refused { .. }) => Effect::Counted("refused-advert"),
            catalog::Output::Event(CatalogEvent::DuplicateIdentity { .. }) => {
                Effect::Counted("duplicate-identity")
            }
            catalog::Output::Event(
                CatalogEvent::Withdrawn { .. }
                | CatalogEvent::Quarantined { .. }
                | CatalogEvent::FqdnsDropped { .. }
                | CatalogEvent::AddressesDenied { .. }
                | CatalogEvent::Forgotten { .. }
                | CatalogEvent::NotPublished { .. }
                | CatalogEvent::CardRefused { .. },
            ) => return,
        });
    }
}

impl Mesh {
    /// Lets the process of a node take something, if it runs, and does what it wants.
    pub(super) fn step(&mut self, node: usize, stimulus: Stimulus) {
        let now = self.clock(node);
        if let Some(process) = &mut self.nodes[node].process {
            let effects = process.step(stimulus, now);
            self.carry_out(node, effects);
        }
    }

    /// Does what a process wants, and plans when to wake it.
    pub(super) fn carry_out(&mut self, node: usize, effects: Vec<Effect>) {
        for effect in effects {
            self.do_effect(node, effect);
        }
        self.plan_wake(node);
    }

    fn do_effect(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Packet { to, bytes } => {
                if let Some(to) = self.number(to) {
                    self.send_packet(node, to, bytes);
                }
            }
            Effect::Frame { to, frame } => {
                if let Some(to) = self.number(to) {
                    self.send_frame(node, to, frame);
                }
            }
            Effect::Dial(dial) => self.dial(node, &dial),
            Effect::HangUp(peer) => {
                if let Some(peer) = self.number(peer) {
                    self.hang_up(node, peer);
                }
            }
            Effect::Down(member) => {
                if let Some(member) = self.number(member) {
                    self.downs.push(Down { at: self.now, by: node, node: member });
                }
            }
            Effect::Named(accuser) => {
                if let Some(accuser) = self.number(accuser) {
                    self.named.push((node, accuser));
                }
            }
            Effect::Renewed => self.nodes[node].renewals += 1,
            Effect::Counted(what) => self.nodes[node].count(what, 1, 0),
            Effect::Save => self.plan_save(node),
            Effect::EpochBehind { at_least } => self.raise_epoch(node, at_least),
            Effect::Accepted { service, owner } => {
                let owner = self.number(owner);
                self.watch.accepted(self.now, node, owner, &service);
            }
        }
    }

    fn raise_epoch(&mut self, node: usize, at_least: u64) {
        let epoch = self.nodes[node].raise_epoch(at_least);
        let now = self.clock(node);
        if let Some(process) = &mut self.nodes[node].process {
            process.catalog.set_epoch(epoch, now);
            self.step(node, Stimulus::Changed);
        }
    }
}

const fn liveness(state: MemberState) -> MemberLiveness {
    match state {
        MemberState::Alive => MemberLiveness::Alive,
        MemberState::Suspect => MemberLiveness::Suspect,
        MemberState::Down => MemberLiveness::Down,
        MemberState::Left => MemberLiveness::Left,
    }
}
