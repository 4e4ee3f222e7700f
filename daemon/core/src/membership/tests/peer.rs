//! One node against hand-made peers: what it sends, what it refuses, what nobody can make it believe.

use std::time::{Duration, Instant};

use gossamer_wire::frame::Frame;
use gossamer_wire::limits::{MAX_EPOCH, MAX_MEMBERS_PER_FRAME, MAX_NODES, MAX_SWIM_BYTES};
use gossamer_wire::swim::{self, Identity, SwimHeader, SwimMember, SwimMessage, SwimState};
use gossamer_wire::{DecodeError, Generation, NodeId};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::start;
use crate::membership::{Cause, Input, MemberState, Membership, MembershipConfig, Output, fuzz};

pub(in crate::membership) const ME: u8 = 1;
pub(in crate::membership) const PEER: u8 = 2;
const SECOND: Duration = Duration::from_secs(1);

pub(in crate::membership) fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

fn identity(n: u8, epoch: u64) -> Identity {
    Identity { node: node(n), generation: Generation::of_epoch(epoch) }
}

pub(in crate::membership) fn entry(n: u8, epoch: u64, state: SwimState) -> SwimMember {
    SwimMember { identity: identity(n, epoch), incarnation: 0, state }
}

/// A node of epoch 5 that has just started.
pub(in crate::membership) struct Probe {
    pub(in crate::membership) membership: Membership,
    pub(in crate::membership) now: Instant,
}

impl Probe {
    fn new() -> Self {
        let now = start();
        let rng = StdRng::seed_from_u64(1);
        Self { membership: Membership::new(MembershipConfig::default(), identity(ME, 5), rng, now), now }
    }

    /// Connected to `PEER`, of epoch 1, which has said hello.
    pub(in crate::membership) fn with_peer() -> Self {
        let mut probe = Self::new();
        probe.give(Input::Connected { peer: node(PEER) });
        probe.packet(PEER, SwimMessage::Gossip, vec![]);
        probe
    }

    pub(in crate::membership) fn give(&mut self, input: Input) -> Vec<Output> {
        self.membership.handle(input, self.now);
        self.outputs()
    }

    pub(in crate::membership) fn packet(
        &mut self,
        from: u8,
        message: SwimMessage,
        members: Vec<SwimMember>,
    ) -> Vec<Output> {
        let to = self.membership.me().generation;
        self.packet_to(to, from, message, members)
    }

    fn packet_to(
        &mut self,
        to: Generation,
        from: u8,
        message: SwimMessage,
        members: Vec<SwimMember>,
    ) -> Vec<Output> {
        let header = SwimHeader { from: Generation::of_epoch(1), incarnation: 0, to, message };
        let mut bytes = swim::encode(&header).expect("fits");
        if !members.is_empty() {
            bytes.extend((members.len() as u16).to_be_bytes());
            members.iter().for_each(|member| bytes.extend(swim::encode(member).expect("fits")));
        }
        self.give(Input::Packet { from: node(from), bytes })
    }

    fn members(&mut self, from: u8, members: Vec<SwimMember>, reply: bool) -> Vec<Output> {
        self.give(Input::Members { from: node(from), members, reply })
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.membership.next_output()).collect()
    }

    /// Lets the timers run and drops what they put out.
    fn run(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(due) = self.membership.next_deadline().filter(|due| *due <= end) {
            self.now = due;
            self.membership.handle_timeout(due);
            self.outputs();
        }
        self.now = end;
    }

    /// Lets the timers run while every peer answers its probes; returns the frames sent.
    fn run_answered(&mut self, length: Duration) -> Vec<Frame> {
        frames(&self.run_with(length, &[PEER, 3]))
    }

    /// Lets the timers run while some peers answer what they are asked; returns all outputs.
    pub(in crate::membership) fn run_with(&mut self, length: Duration, answering: &[u8]) -> Vec<Output> {
        let (end, mut all) = (self.now + length, Vec::new());
        while let Some(due) = self.membership.next_deadline().filter(|due| *due <= end) {
            self.now = due;
            self.membership.handle_timeout(due);
            let outputs = self.outputs();
            for peer in answering {
                for message in messages_to(&outputs, *peer) {
                    if let SwimMessage::Ping(probe) = message {
                        all.extend(self.packet(*peer, SwimMessage::Ack(probe), vec![]));
                    }
                }
            }
            all.extend(outputs);
        }
        self.now = end;
        all
    }

    /// Lets time pass until the peer is suspect, because it does not answer.
    fn suspect_peer(&mut self) {
        let end = self.now + 2 * SECOND;
        while self.now < end && self.state(PEER) != Some(MemberState::Suspect) {
            self.now = self.membership.next_deadline().expect("something is due");
            self.membership.handle_timeout(self.now);
            self.outputs();
        }
        assert_eq!(self.state(PEER), Some(MemberState::Suspect));
    }

    pub(in crate::membership) fn state(&self, n: u8) -> Option<MemberState> {
        self.membership.members().find(|view| view.node == node(n)).map(|view| view.state)
    }
}

fn refusal(outputs: &[Output]) -> Option<&DecodeError> {
    outputs.iter().find_map(|output| match output {
        Output::Refused { error, .. } => Some(error),
        _ => None,
    })
}

pub(in crate::membership) fn messages_to(outputs: &[Output], to: u8) -> Vec<SwimMessage> {
    let packets = outputs.iter().filter_map(|output| match output {
        Output::Packet { to: receiver, bytes } if *receiver == node(to) => Some(bytes),
        _ => None,
    });
    packets.map(|bytes| swim::decode_header(bytes).expect("whole").0.message).collect()
}

pub(in crate::membership) fn frames(outputs: &[Output]) -> Vec<Frame> {
    let frames = outputs.iter().filter_map(|output| match output {
        Output::Frame { frame, .. } => Some(frame.clone()),
        _ => None,
    });
    frames.collect()
}

/// Whether this is what a peer gets that need not be told of others: node `ME`, then the hash.
fn is_introduction(frames: &[Frame]) -> bool {
    let me = vec![entry(ME, 5, SwimState::Alive)];
    matches!(frames, [Frame::Members { members, reply: false }, Frame::MemberHash(_)] if *members == me)
}

#[test]
fn whoever_sends_a_packet_is_who_is_alive() {
    let mut probe = Probe::new();
    let outputs = probe.packet(PEER, SwimMessage::Gossip, vec![]);
    let (generation, cause) = (Generation::of_epoch(1), Cause::Itself);
    let changed = Output::Changed { node: node(PEER), from: None, to: MemberState::Alive, generation, cause };
    assert_eq!(outputs, [changed]);
}

#[test]
fn a_packet_cannot_name_another_sender() {
    // The same bytes speak for whoever sends them: there is no field that could name another.
    let mut probe = Probe::new();
    for sender in [PEER, 3] {
        probe.packet(sender, SwimMessage::Gossip, vec![]);
    }
    let known: Vec<_> = probe.membership.members().map(|view| view.node).collect();
    assert_eq!(known, [node(PEER), node(3)]);
    let outputs = probe.packet(PEER, SwimMessage::Ping(7), vec![]);
    assert_eq!(messages_to(&outputs, PEER), [SwimMessage::Ack(7)]);
}

#[test]
fn a_packet_in_this_nodes_own_name_is_refused() {
    let mut probe = Probe::new();
    let outputs = probe.packet(ME, SwimMessage::Gossip, vec![]);
    assert!(refusal(&outputs).is_some());
    assert!(refusal(&probe.members(ME, vec![], true)).is_some());
    assert_eq!(probe.membership.members().count(), 0);
}

#[test]
fn garbage_is_refused_and_changes_nothing() {
    let mut probe = Probe::with_peer();
    for bytes in [vec![], vec![0xff; 40], vec![0; MAX_SWIM_BYTES + 1], b"GET / HTTP/1.1".to_vec()] {
        let outputs = probe.give(Input::Packet { from: node(9), bytes });
        assert!(refusal(&outputs).is_some() && outputs.len() == 1, "{outputs:?}");
    }
    assert_eq!(probe.membership.members().count(), 1);
}

#[test]
fn what_others_say_is_known_as_theirs() {
    let mut probe = Probe::with_peer();
    let outputs = probe.packet(PEER, SwimMessage::Gossip, vec![entry(3, 1, SwimState::Suspect)]);
    let (generation, cause) = (Generation::of_epoch(1), Cause::Peer(node(PEER)));
    let changed = Output::Changed { node: node(3), from: None, to: MemberState::Suspect, generation, cause };
    assert_eq!(outputs, [changed]);
}

#[test]
fn a_suspicion_of_this_node_is_refuted() {
    let mut probe = Probe::with_peer();
    let outputs = probe.packet(PEER, SwimMessage::Ping(1), vec![entry(ME, 5, SwimState::Suspect)]);
    let incarnations = outputs.iter().filter_map(|output| match output {
        Output::Packet { bytes, .. } => Some(swim::decode_header(bytes).expect("whole").0.incarnation),
        _ => None,
    });
    assert!(incarnations.eq([1, 1]), "gossip and ack: {outputs:?}");
}

#[test]
fn a_claim_that_this_node_is_down_makes_it_renew_itself() {
    let mut probe = Probe::with_peer();
    let outputs = probe.packet(PEER, SwimMessage::TurnUndead, vec![]);
    let renewed = Generation { epoch: 5, renewals: 1 };
    assert_eq!(outputs.first(), Some(&Output::Renewed(renewed)));
    assert_eq!(probe.membership.me().generation, renewed);
    probe.run_answered(20 * SECOND);
    let by_frame = probe.members(
        PEER,
        vec![SwimMember { identity: probe.membership.me(), incarnation: 0, state: SwimState::Down }],
        false,
    );
    assert_eq!(by_frame.first(), Some(&Output::Renewed(renewed.renewed())));
}

#[test]
fn a_node_that_renewed_itself_goes_on_probing_without_being_spoken_to() {
    let mut probe = Probe::with_peer();
    probe.packet(PEER, SwimMessage::TurnUndead, vec![]);
    probe.suspect_peer();
}

#[test]
fn claims_about_earlier_lives_of_this_node_mean_nothing() {
    let mut probe = Probe::with_peer();
    for state in [SwimState::Alive, SwimState::Suspect, SwimState::Down] {
        assert_eq!(probe.packet(PEER, SwimMessage::Gossip, vec![entry(ME, 4, state)]), []);
        assert_eq!(probe.members(PEER, vec![entry(ME, 4, state)], false), []);
    }
    assert_eq!(probe.state(ME), None);
}

#[test]
fn a_claim_about_a_later_life_of_this_node_makes_it_go_above() {
    for state in [SwimState::Alive, SwimState::Suspect, SwimState::Down] {
        let mut probe = Probe::with_peer();
        let outputs = probe.members(PEER, vec![entry(ME, 8, state)], false);
        assert_eq!(outputs.first(), Some(&Output::Renewed(Generation { epoch: 8, renewals: 1 })));
        assert_eq!(probe.state(ME), None);
    }
    let mut probe = Probe::with_peer();
    let outputs = probe.packet_to(Generation::of_epoch(6), PEER, SwimMessage::Ping(1), vec![]);
    assert_eq!(outputs.first(), Some(&Output::Renewed(Generation { epoch: 6, renewals: 1 })));
}

#[test]
fn a_life_above_which_there_is_none_is_refused() {
    let mut probe = Probe::with_peer();
    let generation = Generation { epoch: MAX_EPOCH, renewals: (1 << 20) - 1 };
    let last =
        SwimMember { identity: Identity { node: node(ME), generation }, ..entry(ME, 1, SwimState::Alive) };
    assert!(refusal(&probe.members(PEER, vec![last], false)).is_some());
    assert_eq!(probe.membership.me(), identity(ME, 5));
}

#[test]
fn a_packet_for_an_earlier_life_is_answered_with_an_announce() {
    let mut probe = Probe::with_peer();
    let outputs = probe.packet_to(Generation::of_epoch(4), PEER, SwimMessage::Ping(1), vec![]);
    assert_eq!(messages_to(&outputs, PEER), [SwimMessage::Announce]);
}

#[test]
fn a_new_peer_gets_the_full_state() {
    let outputs = Probe::new().give(Input::Connected { peer: node(PEER) });
    let members = vec![entry(ME, 5, SwimState::Alive)];
    assert_eq!(frames(&outputs), [Frame::Members { members, reply: true }]);
}

#[test]
fn a_peer_known_as_alive_gets_this_node_and_the_hash_only() {
    let mut probe = Probe::with_peer();
    let outputs = probe.give(Input::Connected { peer: node(PEER) });
    assert!(is_introduction(&frames(&outputs)), "{outputs:?}");
    assert_eq!(probe.give(Input::Connected { peer: node(ME) }), [], "itself");
}

#[test]
fn a_stranger_to_a_large_mesh_gets_this_node_and_the_hash_only() {
    let mut probe = Probe::with_peer();
    probe.members(PEER, (10..100).map(|n| entry(n, 1, SwimState::Alive)).collect(), false);
    let outputs = probe.give(Input::Connected { peer: node(3) });
    assert!(is_introduction(&frames(&outputs)), "{outputs:?}");
}

#[test]
fn a_peer_that_introduces_itself_while_it_is_down_here_is_told_so() {
    let mut probe = Probe::with_peer();
    probe.run(5 * SECOND);
    let told = frames(&probe.members(PEER, vec![entry(PEER, 1, SwimState::Alive)], false));
    assert_eq!(told, [Frame::Members { members: vec![entry(PEER, 1, SwimState::Down)], reply: false }]);
    assert_eq!(frames(&probe.members(PEER, vec![entry(PEER, 2, SwimState::Alive)], false)), []);
}

#[test]
fn a_lasting_difference_of_hashes_is_answered_with_the_full_state() {
    let mut probe = Probe::with_peer();
    let hash = |probe: &mut Probe| probe.give(Input::MemberHash { from: node(PEER), hash: 1 });
    assert_eq!(hash(&mut probe), []);
    let sent = probe.run_answered(SECOND);
    assert!(sent.iter().any(|frame| matches!(frame, Frame::MemberHash(_))));
    probe.now += SECOND;
    assert!(matches!(frames(&hash(&mut probe))[..], [Frame::Members { reply: true, .. }]));
}

#[test]
fn of_many_peers_that_differ_four_get_the_state_at_once_and_one_a_second() {
    let mut probe = Probe::with_peer();
    let peers = 10..30_u8;
    let told = |probe: &mut Probe| {
        let differs = |n| probe.give(Input::MemberHash { from: node(n), hash: 1 });
        let outputs: Vec<_> = peers.clone().flat_map(differs).collect();
        let is_state = |frame: &Frame| matches!(frame, Frame::Members { reply: true, .. });
        frames(&outputs).into_iter().filter(is_state).count()
    };
    for n in peers.clone() {
        probe.members(n, vec![entry(n, 1, SwimState::Alive)], false);
        probe.give(Input::Connected { peer: node(n) });
    }
    let told: Vec<_> = (0..6)
        .map(|_| {
            let count = told(&mut probe);
            probe.now += SECOND;
            count
        })
        .collect();
    assert_eq!(told, [0, 4, 0, 2, 0, 2], "each second look at a difference, four at once and one a second");
}

#[test]
fn equal_views_have_equal_hashes() {
    let mut probe = Probe::with_peer();
    let mut other = Probe::new();
    other.membership =
        Membership::new(MembershipConfig::default(), identity(PEER, 1), StdRng::seed_from_u64(2), other.now);
    let from = node(PEER);
    other.give(Input::Connected { peer: node(ME) });
    other.members(ME, vec![entry(ME, 5, SwimState::Alive)], false);
    let outputs = other.give(Input::Connected { peer: node(ME) });
    let [_, Frame::MemberHash(hash)] = frames(&outputs)[..] else { panic!("{outputs:?}") };
    for _ in 0..5 {
        assert_eq!(probe.give(Input::MemberHash { from, hash }), []);
        probe.now += SECOND;
    }
}

#[test]
fn a_full_state_is_answered_with_what_its_sender_lacks() {
    let mut probe = Probe::with_peer();
    probe.packet(
        PEER,
        SwimMessage::Gossip,
        vec![entry(3, 1, SwimState::Alive), entry(4, 1, SwimState::Alive)],
    );
    probe.now += 2 * SECOND;
    let theirs = vec![entry(PEER, 1, SwimState::Alive), entry(3, 1, SwimState::Alive)];
    let outputs = probe.members(PEER, theirs, true);
    let members = vec![entry(4, 1, SwimState::Alive), entry(ME, 5, SwimState::Alive)];
    assert_eq!(frames(&outputs), [Frame::Members { members, reply: false }]);
}

#[test]
fn a_full_state_teaches_who_is_up_but_neither_suspicion_nor_strangers_deaths() {
    let mut probe = Probe::with_peer();
    let states = [SwimState::Alive, SwimState::Suspect, SwimState::Down];
    let members = (3..).zip(states).map(|(n, state)| entry(n, 1, state)).collect();
    probe.members(PEER, members, false);
    let seen = [3, 4, 5].map(|n| probe.state(n));
    assert_eq!(seen, [Some(MemberState::Alive), Some(MemberState::Alive), None]);
    probe.members(PEER, vec![entry(3, 1, SwimState::Down)], false);
    probe.run_answered(SECOND);
    assert_eq!(probe.state(3), Some(MemberState::Down));
}

/// A datagram may be lost where a stream only gets late.
#[test]
fn a_late_ping_is_asked_again_on_the_stream_before_anybody_is_suspected() {
    let mut probe = Probe::with_peer();
    let end = probe.now + 20 * SECOND;
    let mut asked = 0;
    while let Some(due) = probe.membership.next_deadline().filter(|due| *due <= end) {
        probe.now = due;
        probe.membership.handle_timeout(due);
        for frame in frames(&probe.outputs()) {
            if let Frame::Probe(number) = frame {
                asked += 1;
                probe.give(Input::ProbeAck { from: node(PEER), number });
            }
        }
        assert_eq!(probe.state(PEER), Some(MemberState::Alive));
    }
    assert!(asked > 10, "{asked}");
}

#[test]
fn who_hears_nobody_at_all_waits_longer_before_it_takes_all_for_dead() {
    let downs = |is_one_heard: bool| {
        let mut probe = Probe::with_peer();
        probe.give(Input::Connected { peer: node(3) });
        probe.packet(3, SwimMessage::Gossip, vec![]);
        let answering: &[u8] = if is_one_heard { &[3] } else { &[] };
        let begin = probe.now;
        while probe.state(PEER) != Some(MemberState::Down) {
            assert!(probe.now - begin < 60 * SECOND, "never");
            probe.run_with(SECOND / 10, answering);
        }
        probe.now - begin
    };
    let (cut_off, one_dead) = (downs(false), downs(true));
    assert!(one_dead < 6 * SECOND && cut_off >= 10 * SECOND, "{one_dead:?} and {cut_off:?}");
}

#[test]
fn without_a_connection_a_lone_claim_waits_two_seconds_for_a_refutation() {
    for is_refuted in [false, true] {
        let mut probe = Probe::with_peer();
        probe.packet(PEER, SwimMessage::Gossip, vec![entry(3, 1, SwimState::Alive)]);
        probe.packet(PEER, SwimMessage::Gossip, vec![entry(3, 1, SwimState::Down)]);
        probe.run_answered(SECOND * 19 / 10);
        assert_eq!(probe.state(3), Some(MemberState::Alive));
        if is_refuted {
            let refutation = SwimMember { incarnation: 1, ..entry(3, 1, SwimState::Alive) };
            probe.packet(PEER, SwimMessage::Gossip, vec![refutation]);
        }
        probe.run_answered(SECOND / 5);
        let then = if is_refuted { MemberState::Alive } else { MemberState::Down };
        assert_eq!(probe.state(3), Some(then));
    }
}

#[test]
fn a_full_state_too_large_for_a_frame_comes_in_parts_and_asks_once() {
    let mut probe = Probe::with_peer();
    let strangers = (0..MAX_MEMBERS_PER_FRAME as u64 + 9).map(|n| SwimMember {
        identity: Identity { node: NodeId::of_spki(&n.to_be_bytes()), generation: Generation::of_epoch(1) },
        incarnation: 0,
        state: SwimState::Alive,
    });
    for part in strangers.collect::<Vec<_>>().chunks(MAX_MEMBERS_PER_FRAME) {
        probe.members(PEER, part.to_vec(), false);
    }
    let sent = frames(&probe.give(Input::Slept));
    let parts: Vec<_> = sent
        .iter()
        .filter_map(|frame| match frame {
            Frame::Members { members, reply } => Some((members.len(), *reply)),
            _ => None,
        })
        .collect();
    // The strangers, the peer and the node itself.
    assert_eq!(parts, [(MAX_MEMBERS_PER_FRAME, false), (11, true)]);
}

#[test]
fn an_accused_peer_is_told_so_on_its_stream() {
    let mut probe = Probe::with_peer();
    let accusation = Frame::Members { members: vec![entry(PEER, 1, SwimState::Suspect)], reply: false };
    for _ in 0..40 {
        probe.now = probe.membership.next_deadline().expect("something is due");
        probe.membership.handle_timeout(probe.now);
        if frames(&probe.outputs()).contains(&accusation) {
            assert_eq!(probe.state(PEER), Some(MemberState::Suspect));
            return;
        }
    }
    panic!("never told");
}

#[test]
fn early_and_repeated_timeouts_do_nothing() {
    let mut probe = Probe::with_peer();
    let due = probe.membership.next_deadline().expect("something is due");
    probe.membership.handle_timeout(due - Duration::from_nanos(1));
    assert_eq!((probe.outputs(), probe.membership.next_deadline()), (vec![], Some(due)));
    probe.membership.handle_timeout(due);
    let next = probe.membership.next_deadline();
    probe.outputs();
    probe.membership.handle_timeout(due);
    assert_eq!((probe.outputs(), probe.membership.next_deadline()), (vec![], next));
}

#[test]
fn a_peer_in_the_middle_of_a_probe_is_not_blamed_for_a_pause_of_this_node() {
    let mut probe = Probe::with_peer();
    probe.run(Duration::from_millis(600));
    probe.now += 20 * SECOND;
    probe.membership.handle_timeout(probe.now);
    let asked = probe.outputs();
    assert_eq!(messages_to(&asked, PEER), [SwimMessage::Announce]);
    assert!(matches!(frames(&asked)[..], [Frame::Members { reply: true, .. }]));
    assert_eq!(probe.state(PEER), Some(MemberState::Alive));
}

#[test]
fn a_suspect_has_its_full_time_after_a_pause_of_this_node() {
    let mut probe = Probe::with_peer();
    probe.suspect_peer();
    probe.now += 20 * SECOND;
    probe.membership.handle_timeout(probe.now);
    probe.run(2 * SECOND);
    assert_eq!(probe.state(PEER), Some(MemberState::Suspect));
    probe.run(SECOND);
    assert_eq!(probe.state(PEER), Some(MemberState::Down));
}

/// The clock of timers stood still, so nothing else tells this node.
#[test]
fn a_node_that_slept_gives_suspects_their_full_time_and_asks_what_happened() {
    let mut probe = Probe::with_peer();
    probe.suspect_peer();
    probe.run(2 * SECOND);
    let asked = probe.give(Input::Slept);
    assert_eq!(messages_to(&asked, PEER), [SwimMessage::Announce]);
    assert!(matches!(frames(&asked)[..], [Frame::Members { reply: true, .. }]));
    probe.run(2 * SECOND);
    assert_eq!(probe.state(PEER), Some(MemberState::Suspect));
    probe.run(SECOND);
    assert_eq!(probe.state(PEER), Some(MemberState::Down));
}

#[test]
fn a_short_delay_of_this_node_is_no_pause() {
    let mut probe = Probe::with_peer();
    probe.suspect_peer();
    probe.run(3 * SECOND);
    assert_eq!(probe.state(PEER), Some(MemberState::Down));
}

#[test]
fn a_suspicion_nobody_ends_is_told_to_the_suspect_in_the_end() {
    let mut probe = Probe::with_peer();
    probe.give(Input::Connected { peer: node(3) });
    probe.packet(3, SwimMessage::Gossip, vec![entry(PEER, 1, SwimState::Suspect)]);
    let accusation = Frame::Members { members: vec![entry(PEER, 1, SwimState::Suspect)], reply: false };
    assert!(!probe.run_answered(5 * SECOND).contains(&accusation));
    assert!(probe.run_answered(20 * SECOND).contains(&accusation));
    assert_eq!(probe.state(PEER), Some(MemberState::Suspect));
}

#[test]
fn one_connected_live_peer_in_ten_seconds_gets_the_hash() {
    let mut probe = Probe::with_peer();
    probe.packet(3, SwimMessage::Gossip, vec![]);
    probe.run_answered(SECOND / 10);
    let frames = probe.run_answered(100 * SECOND);
    assert!((8..=12).contains(&frames.len()), "{}", frames.len());
    assert!(frames.iter().all(|frame| matches!(frame, Frame::MemberHash(_))));
}

#[test]
fn a_connected_peer_that_is_down_is_told_of_this_node_again() {
    let mut probe = Probe::with_peer();
    probe.run(5 * SECOND);
    assert_eq!(probe.state(PEER), Some(MemberState::Down));
    let mut announced = 0;
    for _ in 0..5 {
        probe.now = probe.membership.next_deadline().expect("something is due");
        probe.membership.handle_timeout(probe.now);
        announced += messages_to(&probe.outputs(), PEER).len();
    }
    assert!(announced >= 1);
}

#[test]
fn a_silent_peer_is_down_and_its_next_packet_tells_it_so() {
    let mut probe = Probe::with_peer();
    probe.run(5 * SECOND);
    assert_eq!(probe.state(PEER), Some(MemberState::Down));
    let outputs = probe.packet(PEER, SwimMessage::Ping(1), vec![]);
    assert_eq!(messages_to(&outputs, PEER), [SwimMessage::TurnUndead]);
}

#[test]
fn a_peer_that_says_it_leaves_has_left() {
    let mut probe = Probe::with_peer();
    let mut leaver = Probe::new();
    leaver.membership =
        Membership::new(MembershipConfig::default(), identity(PEER, 1), StdRng::seed_from_u64(2), leaver.now);
    leaver.give(Input::Connected { peer: node(ME) });
    let outputs = leaver.give(Input::Leave);
    let [Frame::Members { members, reply: false }] = &frames(&outputs)[..] else { panic!("{outputs:?}") };
    probe.members(PEER, members.clone(), false);
    assert_eq!(probe.state(PEER), Some(MemberState::Left));
}

#[test]
fn a_node_that_left_does_nothing_more() {
    let mut probe = Probe::with_peer();
    probe.give(Input::Leave);
    assert_eq!(probe.packet(PEER, SwimMessage::Ping(1), vec![]), []);
    assert_eq!(probe.give(Input::Connected { peer: node(3) }), []);
    assert_eq!(probe.membership.next_deadline(), None);
    probe.membership.handle_timeout(probe.now + 60 * SECOND);
    assert_eq!(probe.outputs(), []);
}

#[test]
fn disconnected_peers_get_no_frames() {
    let mut probe = Probe::with_peer();
    probe.give(Input::Disconnected { peer: node(PEER) });
    assert_eq!(probe.give(Input::MemberHash { from: node(PEER), hash: 1 }), []);
    assert_eq!(probe.give(Input::Leave), []);
}

#[test]
fn members_beyond_the_limit_are_refused() {
    let mut probe = Probe::with_peer();
    let strangers = (0..2 * MAX_NODES as u64).map(|n| SwimMember {
        identity: Identity { node: NodeId::of_spki(&n.to_be_bytes()), generation: Generation::of_epoch(1) },
        incarnation: 0,
        state: SwimState::Alive,
    });
    let strangers: Vec<_> = strangers.collect();
    for part in strangers.chunks(MAX_MEMBERS_PER_FRAME).take(9) {
        probe.members(PEER, part.to_vec(), false);
    }
    assert_eq!(probe.membership.members().count(), MAX_NODES - 1, "one place is for a sender");
    assert_eq!(refusal(&probe.packet(9, SwimMessage::Gossip, vec![])), None);
    let outputs = probe.packet(8, SwimMessage::Gossip, vec![]);
    assert!(matches!(refusal(&outputs), Some(DecodeError::TooMany { .. })), "{outputs:?}");
    assert_eq!(probe.membership.members().count(), MAX_NODES);
    assert_eq!(refusal(&probe.packet(PEER, SwimMessage::Gossip, vec![])), None, "those known may go on");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz(&bytes);
    }

    #[test]
    fn no_small_numbers_make_it_panic(bytes in proptest::collection::vec(0_u8..12, 0..80)) {
        fuzz(&bytes);
    }
}
