//! Membership and the dial book of two nodes together: who forgot whom, and how they meet again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossamer_wire::Generation;
use gossamer_wire::frame::Frame;
use gossamer_wire::swim::Identity;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::sim::{SECOND, id};
use super::start;
use crate::dial::{DialBook, Source, Standing};
use crate::membership::{Input, MemberState, Membership, MembershipConfig, Output};

const HANDSHAKE: Duration = Duration::from_secs(3);

struct Node {
    membership: Membership,
    book: DialBook,
    is_connected: bool,
}

impl Node {
    /// A process that knows the other node by an address only, as from its disk.
    fn new(node: usize, epoch: u64, now: Instant) -> Self {
        let me = Identity { node: id(node), generation: Generation::of_epoch(epoch) };
        let rng = |part| StdRng::seed_from_u64(epoch * 100 + node as u64 * 10 + part);
        let mut book = DialBook::new(id(node), rng(1));
        book.learn(id(1 - node), &[SocketAddr::from(([192, 0, 2, 1], 4677))], Source::Hint, now);
        let membership = Membership::new(MembershipConfig::default(), me, rng(2), now);
        Self { membership, book, is_connected: false }
    }
}

/// Two nodes, wired as the daemon wires the two cores.
struct Pair {
    nodes: [Node; 2],
    now: Instant,
    is_cut: bool,
    /// When dials into the void end.
    failing: VecDeque<(Instant, usize)>,
    dials: usize,
}

impl Pair {
    fn settled() -> Self {
        let now = start();
        let nodes = [Node::new(0, 1, now), Node::new(1, 1, now)];
        let mut pair = Self { nodes, now, is_cut: false, failing: VecDeque::new(), dials: 0 };
        pair.run(60 * SECOND);
        assert_eq!(pair.states(), [Some(MemberState::Alive); 2]);
        pair
    }

    fn states(&self) -> [Option<MemberState>; 2] {
        [0, 1].map(|node| self.nodes[node].membership.members().next().map(|view| view.state))
    }

    fn run(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(due) = self.deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            while self.failing.front().is_some_and(|(at, _)| *at <= self.now) {
                let (_, node) = self.failing.pop_front().expect("looked at above");
                self.nodes[node].book.failed(id(1 - node), self.now);
            }
            for node in [0, 1] {
                self.nodes[node].membership.handle_timeout(self.now);
                self.drain(node);
                self.dial(node);
            }
        }
        self.now = end;
    }

    fn deadline(&self) -> Option<Instant> {
        let cores =
            self.nodes.iter().flat_map(|node| [node.membership.next_deadline(), node.book.next_deadline()]);
        cores.flatten().chain(self.failing.front().map(|(at, _)| *at)).min()
    }

    fn dial(&mut self, node: usize) {
        if self.nodes[node].book.next_dial(self.now).is_none() {
            return;
        }
        self.dials += 1;
        if self.is_cut {
            return self.failing.push_back((self.now + HANDSHAKE, node));
        }
        for node in [node, 1 - node] {
            self.nodes[node].is_connected = true;
            self.nodes[node].book.connected(id(1 - node), self.now);
        }
        [node, 1 - node]
            .into_iter()
            .for_each(|node| self.give(node, Input::Connected { peer: id(1 - node) }));
    }

    fn give(&mut self, node: usize, input: Input) {
        self.nodes[node].membership.handle(input, self.now);
        self.drain(node);
    }

    /// One end hears that the connection is over; the other need not.
    fn disconnect(&mut self, node: usize) {
        if std::mem::take(&mut self.nodes[node].is_connected) {
            self.nodes[node].book.disconnected(id(1 - node), self.now);
            self.give(node, Input::Disconnected { peer: id(1 - node) });
        }
    }

    fn drain(&mut self, node: usize) {
        let (other, from) = (1 - node, id(node));
        while let Some(output) = self.nodes[node].membership.next_output() {
            let input = match output {
                Output::Packet { bytes, .. } | Output::Frame { frame: Frame::Swim(bytes), .. } => {
                    Input::Packet { from, bytes }
                }
                Output::Frame { frame: Frame::MemberHash(hash), .. } => Input::MemberHash { from, hash },
                Output::Frame { frame: Frame::Probe(number), .. } => Input::Probe { from, number },
                Output::Frame { frame: Frame::ProbeAck(number), .. } => Input::ProbeAck { from, number },
                Output::Frame { frame: Frame::Members { members, reply }, .. } => {
                    Input::Members { from, members, reply }
                }
                Output::Changed { to, .. } => {
                    let standing = if to.is_up() { Standing::Live } else { Standing::Silent };
                    self.nodes[node].book.set_standing(id(other), standing, self.now);
                    if !to.is_up() {
                        self.disconnect(node);
                    }
                    continue;
                }
                _ => continue,
            };
            if self.is_cut || !self.nodes[node].is_connected {
                continue;
            }
            if self.nodes[other].is_connected {
                self.give(other, input);
            } else {
                // The end that forgot the connection answers with a reset.
                self.disconnect(node);
            }
        }
    }
}

#[test]
fn two_halves_that_forgot_each_other_meet_by_the_dial_book_alone() {
    let mut pair = Pair::settled();
    pair.is_cut = true;
    pair.run(3_600 * SECOND);
    assert_eq!(pair.states(), [None; 2], "membership has forgotten");
    let dials = pair.dials;
    pair.run(3_600 * SECOND);
    assert!((6..=30).contains(&(pair.dials - dials)), "rarely: {} in an hour by two", pair.dials - dials);
    pair.is_cut = false;
    pair.run(900 * SECOND);
    assert_eq!(pair.states(), [Some(MemberState::Alive); 2]);
}

#[test]
fn one_side_that_forgot_the_connection_dials_again_and_nobody_is_down() {
    for forgetful in [0, 1] {
        let mut pair = Pair::settled();
        pair.disconnect(forgetful);
        pair.run(SECOND);
        assert!(pair.nodes.iter().all(|node| node.is_connected), "node {forgetful}");
        assert_eq!(pair.states(), [Some(MemberState::Alive); 2]);
        pair.run(60 * SECOND);
        assert_eq!(pair.states(), [Some(MemberState::Alive); 2]);
    }
}

/// The other one still holds the connection of the former life, which nobody has closed.
#[test]
fn one_side_that_forgot_everything_but_an_address_is_seen_in_its_new_life() {
    for forgetful in [0, 1] {
        let mut pair = Pair::settled();
        pair.nodes[forgetful] = Node::new(forgetful, 2, pair.now);
        pair.run(2 * SECOND);
        assert_eq!(pair.states(), [Some(MemberState::Alive); 2], "node {forgetful}");
        let seen = pair.nodes[1 - forgetful].membership.members().next().map(|view| view.generation);
        assert_eq!(seen, Some(Generation::of_epoch(2)));
    }
}

#[test]
fn who_is_found_dead_and_was_not_is_back_as_soon_as_it_dials() {
    let mut pair = Pair::settled();
    pair.is_cut = true;
    pair.run(30 * SECOND);
    assert_eq!(pair.states(), [Some(MemberState::Down); 2]);
    pair.is_cut = false;
    pair.run(60 * SECOND);
    assert_eq!(pair.states(), [Some(MemberState::Alive); 2], "within the pauses of both");
}
