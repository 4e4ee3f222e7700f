//! Repair: two peers compare root hashes, then ids, then send what the other lacks.
//!
//! Owns: when to compare, when to believe a difference, when to stop asking in vain. Must not know: contents,
//! signatures, what readers see. Driven by: the facade, for `Root`, `Ids`, `Want` frames and the timer.
//!
//! Ids come in the order of their slots, so each part of a list covers a range of slots and is answered alone:
//! nothing of a list is kept.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use gossamer_wire::advert::{AdvertId, Slot, Version};
use gossamer_wire::frame::Frame;
use gossamer_wire::limits::MAX_IDS_PER_FRAME;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;

use super::Catalog;
use super::age::Bucket;
use super::store::HashView;
use crate::time::Now;

/// How often the root hash goes to one peer, jittered by a quarter.
const ROOT_INTERVAL: Duration = Duration::from_secs(2);
/// How long a difference must last before it is believed: pushes in flight look like one.
const SETTLE: Duration = Duration::from_secs(2);
/// A mismatch older than this says nothing about the next.
const STALE_MISMATCH: Duration = Duration::from_secs(20);
/// Shortest and longest pause after a repair that taught nothing.
const MIN_PAUSE: Duration = Duration::from_secs(60);
const MAX_PAUSE: Duration = Duration::from_secs(600);
/// Adverts one peer gets by asking: at once, and per second. 4,096 adverts are 4.5 MB; a catalog of more comes
/// in several repairs.
const ANSWER_BURST: f64 = 4_096.0;
const ANSWER_RATE: f64 = 1_024.0;

/// What this node knows of its repairs with one peer.
#[derive(Debug)]
struct Peer {
    meeting: Meeting,
    mismatch: Option<Instant>,
    /// When to show the own hash again after a mismatch.
    recheck: Option<Instant>,
    /// The last repair, and whether it taught anything.
    last: Option<Instant>,
    has_taught: bool,
    pause: Duration,
    /// The last slot of a list of ids whose next part is still to come.
    cursor: Option<Slot>,
    answers: Bucket,
}

/// How far two that have just connected are. The first hash of each was made before it had the other's own
/// adverts, so it always differs; the smaller node id shows its hash a second time and the greater one judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meeting {
    Begun,
    Greeted,
    Over,
}

/// What to do about a root hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Nothing,
    ShowRoot,
    ListIds,
}

#[derive(Debug)]
pub(super) struct Repair {
    peers: BTreeMap<NodeId, Peer>,
    /// Peers still to be met in this round.
    round: VecDeque<NodeId>,
    next_root: Instant,
}

impl Repair {
    pub(super) const fn new(now: Instant) -> Self {
        Self { peers: BTreeMap::new(), round: VecDeque::new(), next_root: now }
    }

    pub(super) fn connect(&mut self, peer: NodeId, now: Instant) {
        let answers = Bucket::full(ANSWER_RATE, ANSWER_BURST, now);
        let state = Peer {
            meeting: Meeting::Begun,
            mismatch: None,
            recheck: None,
            last: None,
            has_taught: false,
            pause: MIN_PAUSE,
            cursor: None,
            answers,
        };
        if self.peers.is_empty() {
            self.next_root = self.next_root.max(now + ROOT_INTERVAL);
        }
        self.peers.insert(peer, state);
    }

    pub(super) fn disconnect(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    pub(super) fn is_connected(&self, peer: NodeId) -> bool {
        self.peers.contains_key(&peer)
    }

    pub(super) fn connected_peers(&self) -> impl Iterator<Item = NodeId> {
        self.peers.keys().copied()
    }

    /// Notes that a peer gave something new; its own adverts may be a push and say nothing about repair.
    pub(super) fn taught(&mut self, from: NodeId, owner: NodeId) {
        if from != owner
            && let Some(peer) = self.peers.get_mut(&from)
        {
            peer.has_taught = true;
        }
    }

    /// Returns whether a peer may be given one more advert that it asked for.
    pub(super) fn may_answer(&mut self, peer: NodeId, now: Instant) -> bool {
        self.peers.get_mut(&peer).is_some_and(|peer| peer.answers.take(now))
    }

    /// Takes a peer's root hash. `is_smaller`: the own node id is the smaller one.
    fn handle_root(&mut self, from: NodeId, hash: HashView, is_smaller: bool, now: Instant) -> Reply {
        let Some(peer) = self.peers.get_mut(&from) else { return Reply::Nothing };
        let meeting = peer.meeting;
        peer.meeting = match meeting {
            Meeting::Begun if !is_smaller => Meeting::Greeted,
            _ => Meeting::Over,
        };
        if meeting == Meeting::Begun {
            return if is_smaller { Reply::ShowRoot } else { Reply::Nothing };
        }
        // Two that meet may have been apart for long: what one is behind is not on its way.
        if hash == HashView::Equal || (hash == HashView::Behind && meeting == Meeting::Over) {
            (peer.mismatch, peer.recheck, peer.last) = (None, None, None);
            return Reply::Nothing;
        }
        if peer.last.is_some_and(|last| !peer.has_taught && now < last + peer.pause) {
            return Reply::Nothing;
        }
        let since = peer.mismatch.filter(|since| now.saturating_duration_since(*since) < STALE_MISMATCH);
        let is_believed = since.is_some_and(|since| now.saturating_duration_since(since) >= SETTLE);
        if !is_believed && meeting == Meeting::Over {
            peer.mismatch = since.or(Some(now));
            peer.recheck.get_or_insert(now + SETTLE);
            return Reply::Nothing;
        }
        peer.begin(now);
        Reply::ListIds
    }

    /// Takes one part of a list of ids; returns the range of slots it covers, `None` when it is malformed.
    fn handle_part(
        &mut self,
        from: NodeId,
        ids: &[AdvertId],
        more: bool,
    ) -> Option<(Bound<Slot>, Bound<Slot>)> {
        let peer = self.peers.get_mut(&from)?;
        let start = peer.cursor.take();
        let last = ids.last().map(|id| id.slot);
        let is_sorted = ids.is_sorted_by(|a, b| a.slot < b.slot);
        let goes_on = ids.first().zip(start).is_none_or(|(first, start)| start < first.slot);
        if !is_sorted || !goes_on || (more && last.is_none()) {
            return None;
        }
        peer.mismatch = None;
        peer.recheck = None;
        let end = if more { last } else { None };
        peer.cursor = end;
        Some((start.map_or(Bound::Unbounded, Bound::Excluded), end.map_or(Bound::Unbounded, Bound::Included)))
    }

    /// Notes that a list of a peer differed in nothing that could be mended.
    fn learnt_nothing(&mut self, from: NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.begin(now);
        }
    }

    /// Returns the peers to show the root hash to.
    fn take_due(&mut self, rng: &mut SmallRng, now: Instant) -> Vec<NodeId> {
        let mut due = Vec::new();
        for (&node, peer) in &mut self.peers {
            if peer.recheck.is_some_and(|at| at <= now) {
                peer.recheck = None;
                due.push(node);
            }
        }
        if self.next_root <= now && !self.peers.is_empty() {
            let quarter = rng.random_range(-0.25..0.25);
            self.next_root = now + ROOT_INTERVAL.mul_f64(1.0 + quarter);
            due.extend(self.next_of_round(rng));
        }
        due
    }

    /// Returns the next peer of a shuffled round, so that everybody is met.
    fn next_of_round(&mut self, rng: &mut SmallRng) -> Option<NodeId> {
        for _ in 0..2 {
            while let Some(peer) = self.round.pop_front() {
                if self.peers.contains_key(&peer) {
                    return Some(peer);
                }
            }
            let mut round: Vec<_> = self.peers.keys().copied().collect();
            round.shuffle(rng);
            self.round = round.into();
        }
        None
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let rechecks = self.peers.values().filter_map(|peer| peer.recheck);
        rechecks.chain((!self.peers.is_empty()).then_some(self.next_root)).min()
    }
}

impl Peer {
    /// Begins a repair; one after a repair in vain waits twice as long for the next.
    fn begin(&mut self, now: Instant) {
        let was_in_vain = self.last.is_some() && !self.has_taught;
        self.pause = if was_in_vain { (self.pause * 2).min(MAX_PAUSE) } else { MIN_PAUSE };
        self.last = Some(now);
        self.has_taught = false;
        self.mismatch = None;
        self.recheck = None;
    }
}

impl Catalog {
    /// Shows the root hash where it is due.
    pub(super) fn show_root(&mut self, now: Now) {
        for peer in self.repair.take_due(&mut self.rng, now.mono) {
            self.send(peer, Frame::Root(self.store.hash()));
        }
    }

    /// Compares a peer's root hash; lists all own ids when the difference is believed.
    pub(super) fn handle_root(&mut self, from: NodeId, hash: u64, now: Now) {
        let view = self.store.compare_hash(hash, now.mono);
        match self.repair.handle_root(from, view, self.config.node < from, now.mono) {
            Reply::Nothing => return,
            Reply::ShowRoot => return self.send(from, Frame::Root(self.store.hash())),
            Reply::ListIds => {}
        }
        self.counters.repairs += 1;
        let ids: Vec<_> = self.store.offered(now.mono).collect();
        let mut parts = ids.chunks(MAX_IDS_PER_FRAME).peekable();
        if parts.peek().is_none() {
            self.send(from, Frame::Ids { ids: Vec::new(), more: false });
        }
        while let Some(part) = parts.next() {
            let more = parts.peek().is_some();
            self.send(from, Frame::Ids { ids: part.to_vec(), more });
        }
    }

    /// Answers one part of a peer's ids: adverts it lacks, and a wish for those it has and this node lacks.
    pub(super) fn handle_ids(&mut self, from: NodeId, ids: &[AdvertId], more: bool, now: Now) {
        let Some((start, end)) = self.repair.handle_part(from, ids, more) else {
            self.counters.malformed_lists += 1;
            return;
        };
        let theirs: BTreeMap<Slot, Version> = ids.iter().map(|id| (id.slot, id.version)).collect();
        let is_lacking = |id: &AdvertId| theirs.get(&id.slot).is_none_or(|version| *version < id.version);
        let in_range = |id: &AdvertId| std::ops::RangeBounds::contains(&(start, end), &id.slot);
        let offered: Vec<_> =
            self.store.offered(now.mono).filter(|id| in_range(id) && is_lacking(id)).collect();
        let wanted: Vec<_> = ids.iter().copied().filter(|id| self.wants(*id, now)).collect();
        if offered.is_empty() && wanted.is_empty() && !more && matches!(start, Bound::Unbounded) {
            self.repair.learnt_nothing(from, now.mono);
        }
        self.give(from, offered, now);
        if !wanted.is_empty() {
            self.send(from, Frame::Want(wanted));
        }
    }

    /// Gives a peer the adverts it asks for, in the version held.
    pub(super) fn handle_want(&mut self, from: NodeId, ids: Vec<AdvertId>, now: Now) {
        self.repair.taught(from, self.config.node);
        self.give(from, ids, now);
    }

    fn give(&mut self, to: NodeId, ids: Vec<AdvertId>, now: Now) {
        let mut copies = Vec::new();
        for id in ids {
            if !self.repair.may_answer(to, now.mono) {
                self.counters.answers_cut += 1;
                break;
            }
            copies.extend(self.store.copy(id.slot, now.mono));
        }
        self.counters.repaired += copies.len() as u64;
        self.send_adverts(to, copies, &[]);
    }

    /// Returns whether to ask for an advert. Of the own ones only those this node cannot have signed itself.
    fn wants(&self, id: AdvertId, now: Now) -> bool {
        let node = id.slot.node;
        let is_mine_and_past = node == self.config.node && id.version.epoch < self.publisher.epoch();
        !is_mine_and_past
            && self.store.lacks(id, now.mono)
            && self.store.has_room_for(node)
            && !self.held.has(id)
    }
}

#[cfg(test)]
mod tests {
    use gossamer_wire::advert::Kind;

    use super::*;
    use crate::catalog::tests::start;

    const PEER: NodeId = NodeId::from_bytes([2; 16]);

    fn connected(now: Instant) -> Repair {
        let mut repair = Repair::new(now);
        repair.connect(PEER, now);
        repair
    }

    /// Past the meeting, where each side has shown its hash.
    fn met(now: Instant) -> Repair {
        let mut repair = connected(now);
        repair.handle_root(PEER, HashView::Equal, true, now);
        repair
    }

    fn differs(repair: &mut Repair, now: Instant) -> Reply {
        repair.handle_root(PEER, HashView::Different, true, now)
    }

    fn id(node: u8, k: u16) -> AdvertId {
        let slot = Slot { node: NodeId::from_bytes([node; 16]), kind: Kind::Records, k };
        AdvertId { slot, version: Version { epoch: 1, seq: 1 } }
    }

    #[test]
    fn of_two_that_meet_the_greater_id_judges_the_second_hash_at_once() {
        let now = start();
        let mut smaller = connected(now);
        assert_eq!(smaller.handle_root(PEER, HashView::Different, true, now), Reply::ShowRoot);
        let mut greater = connected(now);
        assert_eq!(greater.handle_root(PEER, HashView::Different, false, now), Reply::Nothing);
        assert_eq!(greater.handle_root(PEER, HashView::Different, false, now), Reply::ListIds);
        let mut equal = connected(now);
        assert_eq!(equal.handle_root(PEER, HashView::Different, false, now), Reply::Nothing);
        assert_eq!(equal.handle_root(PEER, HashView::Equal, false, now), Reply::Nothing);
    }

    #[test]
    fn one_that_is_behind_is_left_to_mend_it_unless_it_has_just_come() {
        let now = start();
        let mut repair = met(now);
        for seconds in 0..10 {
            let later = now + Duration::from_secs(seconds);
            assert_eq!(repair.handle_root(PEER, HashView::Behind, true, later), Reply::Nothing);
        }
        let mut greater = connected(now);
        greater.handle_root(PEER, HashView::Behind, false, now);
        assert_eq!(greater.handle_root(PEER, HashView::Behind, false, now), Reply::ListIds);
    }

    #[test]
    fn a_difference_is_believed_when_it_is_seen_again_two_seconds_later() {
        let now = start();
        let mut repair = met(now);
        assert_eq!(differs(&mut repair, now), Reply::Nothing);
        assert_eq!(differs(&mut repair, now + SETTLE / 2), Reply::Nothing);
        assert_eq!(differs(&mut repair, now + SETTLE), Reply::ListIds);
    }

    #[test]
    fn agreement_in_between_or_a_long_silence_starts_over() {
        let now = start();
        let mut repair = met(now);
        differs(&mut repair, now);
        repair.handle_root(PEER, HashView::Equal, true, now + SETTLE / 2);
        assert_eq!(differs(&mut repair, now + SETTLE), Reply::Nothing);
        assert_eq!(differs(&mut repair, now + SETTLE + STALE_MISMATCH), Reply::Nothing);
    }

    #[test]
    fn a_mismatch_shows_the_own_hash_again_so_that_the_peer_may_judge_too() {
        let now = start();
        let mut repair = met(now);
        let mut rng = rand::SeedableRng::seed_from_u64(1);
        differs(&mut repair, now);
        let shown: usize =
            (0..=8).map(|quarter| repair.take_due(&mut rng, now + SETTLE * quarter / 8).len()).sum();
        assert!(
            (1..=2).contains(&shown),
            "the recheck, and the regular one when it falls into these seconds"
        );
        assert!(repair.deadline().is_some_and(|at| at > now + SETTLE));
    }

    #[test]
    fn repairs_in_vain_pause_longer_each_time_and_a_lesson_ends_it() {
        let mut now = start();
        let mut repair = met(now);
        let mut began = Vec::new();
        for _ in 0..4_000 {
            now += Duration::from_secs(1);
            if differs(&mut repair, now) == Reply::ListIds {
                began.push(now);
            }
        }
        let pauses: Vec<_> = began.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
        for (pause, least) in pauses.iter().zip([60, 120, 240, 480, 600, 600]) {
            assert!((least..least + 5).contains(pause), "{pauses:?}");
        }
        repair.taught(PEER, NodeId::from_bytes([3; 16]));
        differs(&mut repair, now);
        assert_eq!(differs(&mut repair, now + SETTLE), Reply::ListIds);
    }

    #[test]
    fn the_peers_own_adverts_are_no_lesson() {
        let now = start();
        let mut repair = met(now);
        differs(&mut repair, now);
        assert_eq!(differs(&mut repair, now + SETTLE), Reply::ListIds);
        repair.taught(PEER, PEER);
        differs(&mut repair, now + SETTLE * 2);
        assert_eq!(differs(&mut repair, now + SETTLE * 3), Reply::Nothing);
    }

    #[test]
    fn each_part_of_a_list_covers_the_slots_since_the_last() {
        let mut repair = connected(start());
        let mut part = |ids: &[AdvertId], more| repair.handle_part(PEER, ids, more);
        let (first, second) = (id(1, 3), id(2, 0));
        assert_eq!(part(&[id(1, 0), first], true), Some((Bound::Unbounded, Bound::Included(first.slot))));
        assert_eq!(part(&[second], true), Some((Bound::Excluded(first.slot), Bound::Included(second.slot))));
        assert_eq!(part(&[], false), Some((Bound::Excluded(second.slot), Bound::Unbounded)));
        assert_eq!(part(&[], false), Some((Bound::Unbounded, Bound::Unbounded)), "the next list begins anew");
    }

    #[test]
    fn parts_out_of_order_are_refused_and_end_the_list() {
        let mut repair = connected(start());
        let mut part = |ids: &[AdvertId], more| repair.handle_part(PEER, ids, more);
        assert_eq!(part(&[id(2, 0), id(1, 0)], false), None);
        assert_eq!(part(&[id(1, 0), id(1, 0)], false), None);
        assert_eq!(part(&[], true), None);
        assert!(part(&[id(2, 0)], true).is_some());
        assert_eq!(part(&[id(1, 0)], false), None);
        assert!(part(&[id(1, 0)], false).is_some());
    }

    #[test]
    fn everybody_is_met_once_a_round() {
        let now = start();
        let mut repair = Repair::new(now);
        let peers: Vec<_> = (1..=9).map(|byte| NodeId::from_bytes([byte; 16])).collect();
        peers.iter().for_each(|peer| repair.connect(*peer, now));
        let mut rng = rand::SeedableRng::seed_from_u64(7);
        for _ in 0..3 {
            let mut round: Vec<_> = (0..9).filter_map(|_| repair.next_of_round(&mut rng)).collect();
            round.sort_unstable();
            assert_eq!(round, peers);
        }
        repair.disconnect(peers[0]);
        assert!((0..16).all(|_| repair.next_of_round(&mut rng) != Some(peers[0])));
        peers.iter().for_each(|peer| repair.disconnect(*peer));
        assert_eq!((repair.next_of_round(&mut rng), repair.deadline()), (None, None));
    }

    #[test]
    fn strangers_get_no_answer() {
        let now = start();
        let mut repair = Repair::new(now);
        assert!(!repair.may_answer(PEER, now) && !repair.is_connected(PEER));
        assert_eq!(differs(&mut repair, now), Reply::Nothing);
        assert_eq!(repair.handle_part(PEER, &[], false), None);
    }
}
