//! How the cores of one node are wired to each other and to its peers: as the daemon does it.
//!
//! Owns: the way of each output and of each thing that arrives. Must not know: how it travels.
//! Driven by: the mesh. **An output or an input that a core gains has its place here and nowhere else.**

use gossamer_core::catalog::{self, CatalogEvent, MemberLiveness};
use gossamer_core::dial::{Source, Standing};
use gossamer_core::membership::{self, MemberState};
use gossamer_wire::NodeId;
use gossamer_wire::frame::Frame;

use super::mesh::Mesh;
use crate::scenario::Down;

impl Mesh {
    /// A frame of a peer goes to the core it is for.
    pub(super) fn take_frame(&mut self, node: usize, from: usize, frame: Frame) {
        let id = self.id(from);
        match frame {
            Frame::Swim(bytes) => return self.take_packet(node, from, bytes),
            Frame::Probe(number) => self.tell_membership(node, membership::Input::Probe { from: id, number }),
            Frame::ProbeAck(number) => {
                self.tell_membership(node, membership::Input::ProbeAck { from: id, number });
            }
            Frame::MemberHash(hash) => {
                self.tell_membership(node, membership::Input::MemberHash { from: id, hash })
            }
            Frame::Members { members, reply } => {
                self.tell_membership(node, membership::Input::Members { from: id, members, reply });
            }
            frame => self.tell_catalog(node, catalog::Input::Frame { from: id, frame }),
        }
        self.drain(node);
    }

    /// A SWIM packet of a peer.
    pub(super) fn take_packet(&mut self, node: usize, from: usize, bytes: Vec<u8>) {
        let from = self.id(from);
        self.tell_membership(node, membership::Input::Packet { from, bytes });
        self.drain(node);
    }

    /// A control connection is up; again for one that replaces another.
    pub(super) fn connected(&mut self, node: usize, peer: usize) {
        let peer = self.id(peer);
        self.tell_membership(node, membership::Input::Connected { peer });
        self.tell_catalog(node, catalog::Input::Connected(peer));
        self.drain(node);
    }

    /// The control connection in use is gone.
    pub(super) fn disconnected(&mut self, node: usize, peer: usize) {
        let (peer, now) = (self.id(peer), self.clock(node).mono);
        if let Some(process) = &mut self.nodes[node].process {
            process.book.disconnected(peer, now);
        }
        self.tell_membership(node, membership::Input::Disconnected { peer });
        self.tell_catalog(node, catalog::Input::Disconnected(peer));
        self.drain(node);
    }

    /// Does everything the cores of a node want, and plans when to wake them.
    pub(super) fn drain(&mut self, node: usize) {
        loop {
            let Some(process) = &mut self.nodes[node].process else { return };
            if let Some(output) = process.membership.next_output() {
                self.do_membership(node, output);
            } else if let Some(output) = process.catalog.next_output() {
                self.do_catalog(node, output);
            } else {
                break;
            }
        }
        let now = self.clock(node).mono;
        while let Some(dial) =
            self.nodes[node].process.as_mut().and_then(|process| process.book.next_dial(now))
        {
            self.dial(node, &dial);
        }
        let surplus = self.nodes[node].process.as_ref().and_then(|process| process.book.next_surplus(now));
        if let Some(peer) = surplus.and_then(|peer| self.number(peer)) {
            self.hang_up(node, peer);
        }
        self.plan_wake(node);
    }

    fn do_membership(&mut self, node: usize, output: membership::Output) {
        match output {
            membership::Output::Packet { to, bytes } => {
                if let Some(to) = self.number(to) {
                    self.send_packet(node, to, bytes);
                }
            }
            membership::Output::Frame { to, frame } => {
                if let Some(to) = self.number(to) {
                    self.send_frame(node, to, frame);
                }
            }
            membership::Output::Reach { node: member } => {
                let now = self.clock(node).mono;
                if let Some(process) = &mut self.nodes[node].process {
                    process.book.reach(member, now);
                }
            }
            membership::Output::Changed { node: member, from, to, .. } => {
                self.member_changed(node, member, from, to);
            }
            membership::Output::Renewed(_) => self.nodes[node].renewals += 1,
            membership::Output::Refused { .. } => self.nodes[node].count("refused-swim", 1, 0),
            membership::Output::Refuted { .. } => self.nodes[node].count("refuted-claim", 1, 0),
            membership::Output::Named { accuser } => {
                if let Some(accuser) = self.number(accuser) {
                    self.named.push((node, accuser));
                }
            }
            membership::Output::Forgiven { .. } => {}
        }
    }

    fn member_changed(&mut self, node: usize, member: NodeId, from: Option<MemberState>, to: MemberState) {
        let was_up = from.is_some_and(MemberState::is_up);
        let standing = match to.is_up() {
            true if !was_up => Some(Standing::Live),
            false if was_up => Some(Standing::Silent),
            _ => None,
        };
        let now = self.clock(node).mono;
        if let (Some(process), Some(standing)) = (&mut self.nodes[node].process, standing) {
            process.book.set_standing(member, standing, now);
        }
        if let Some(number) = self.number(member) {
            if was_up && to == MemberState::Down {
                self.downs.push(Down { at: self.now, by: node, node: number });
            }
            if standing == Some(Standing::Silent) {
                self.hang_up(node, number);
            }
        }
        self.tell_catalog(node, catalog::Input::Member { node: member, state: liveness(to) });
    }

    fn do_catalog(&mut self, node: usize, output: catalog::Output) {
        match output {
            catalog::Output::Send { to, frame } => {
                if let Some(to) = self.number(to) {
                    self.send_frame(node, to, frame);
                }
            }
            catalog::Output::NodeChanged(other) => {
                let now = self.clock(node).mono;
                if let Some(process) = &mut self.nodes[node].process
                    && let Some(addresses) = process.catalog.node_addresses(other)
                {
                    process.book.learn(other, addresses, Source::Card, now);
                }
            }
            catalog::Output::ServiceChanged(_) => self.plan_save(node),
            catalog::Output::EpochBehind { at_least } => {
                let epoch = self.nodes[node].raise_epoch(at_least);
                let now = self.clock(node);
                if let Some(process) = &mut self.nodes[node].process {
                    process.catalog.set_epoch(epoch, now);
                }
            }
            catalog::Output::Event(event) => self.note_event(node, &event),
        }
    }

    fn note_event(&mut self, node: usize, event: &CatalogEvent) {
        match event {
            CatalogEvent::Accepted { service, node: owner, .. } => {
                let owner = self.number(*owner);
                self.watch.accepted(self.now, node, owner, service);
            }
            CatalogEvent::Refused { .. } => self.nodes[node].count("refused-advert", 1, 0),
            CatalogEvent::DuplicateIdentity { .. } => self.nodes[node].count("duplicate-identity", 1, 0),
            CatalogEvent::Withdrawn { .. }
            | CatalogEvent::Quarantined { .. }
            | CatalogEvent::Forgotten { .. }
            | CatalogEvent::NotPublished { .. }
            | CatalogEvent::CardRefused { .. } => {}
        }
    }

    /// Gives an input to a core the way the daemon's task does: what is due afterwards is done too.
    pub(super) fn tell_membership(&mut self, node: usize, input: membership::Input) {
        let now = self.clock(node).mono;
        if let Some(process) = &mut self.nodes[node].process {
            process.membership.handle(input, now);
            process.membership.handle_timeout(now);
        }
    }

    pub(super) fn tell_catalog(&mut self, node: usize, input: catalog::Input) {
        let now = self.clock(node);
        if let Some(process) = &mut self.nodes[node].process {
            process.catalog.handle(input, now);
            process.catalog.handle_timeout(now);
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
