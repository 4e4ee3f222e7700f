//! Repair: two peers compare root hashes, then hashes of buckets, then the ids of unequal buckets.
//!
//! Owns: when to compare, when to believe a difference, when to stop asking in vain. Must not know: contents,
//! signatures, what readers see. Driven by: the facade, for the frames `Root`, `Buckets`, `Ids`, `Have`, `Want`
//! and the timer.
//!
//! `Root` -> (different) `Buckets` -> `Ids` of unequal buckets -> `Want` and `Have` -> `Adverts`. Every frame is
//! answered alone; nothing of a comparison is kept. All adverts are pulled, so each comes once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use gossamer_wire::advert::{AdvertId, Kind, Slot, Version};
use gossamer_wire::frame::{BUCKETS, Frame};
use gossamer_wire::limits::MAX_IDS_PER_FRAME;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;

use super::Catalog;
use super::meet::Meetings;
use super::store::HashView;
use super::tree::{self, Interval};
use crate::bucket::Bucket;
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
/// Most repairs this node has begun and not heard of, and how long each may take to be answered.
const MAX_ASKED: usize = 2;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Adverts one peer gets by asking: at once, and per second. 4,096 adverts are 4.5 MB; a catalog of more comes
/// in several repairs.
const ANSWER_BURST: f64 = 4_096.0;
const ANSWER_RATE: f64 = 1_024.0;
/// Lists of ids one peer gets: a list is a hundred times as long as what asks for it.
const LIST_BURST: f64 = 8.0;
const LIST_RATE: f64 = 1.0;

/// Pause between two questions for the head of one node: an eighth of the time since the first, and the longest. Who has
/// a lease too short to be refreshed in time would otherwise be asked about by everybody every two seconds.
const HEAD_PAUSE: u32 = 8;
const MAX_HEAD_PAUSE: Duration = Duration::from_secs(60);

/// What this node knows of its repairs with one peer.
#[derive(Debug)]
struct Peer {
    /// Since it came, or came back: whether hashes were compared, and whether this node showed its own first.
    is_met: bool,
    has_shown: bool,
    mismatch: Option<Instant>,
    /// When to show the own hash again after a mismatch.
    recheck: Option<Instant>,
    /// The last repair, and whether it taught anything.
    last: Option<Instant>,
    has_taught: bool,
    pause: Duration,
    /// When it was sent bucket hashes that it has not answered.
    asked: Option<Instant>,
    answers: Bucket,
    lists: Bucket,
}

/// What to do about a root hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Nothing,
    ShowBuckets,
}

#[derive(Debug)]
pub(super) struct Repair {
    peers: BTreeMap<NodeId, Peer>,
    /// Peers still to be met in this round.
    round: VecDeque<NodeId>,
    next_root: Instant,
    rechecks: BTreeSet<(Instant, NodeId)>,
    asked: BTreeSet<NodeId>,
    meetings: Meetings,
    /// Nodes whose head is missing: when it was first asked for, and when last.
    heads: BTreeMap<NodeId, (Instant, Instant)>,
    /// Made again when the peers change.
    far_peers: Option<Vec<NodeId>>,
}

impl Repair {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            peers: BTreeMap::new(),
            round: VecDeque::new(),
            next_root: now,
            rechecks: BTreeSet::new(),
            asked: BTreeSet::new(),
            meetings: Meetings::default(),
            heads: BTreeMap::new(),
            far_peers: None,
        }
    }

    /// Takes a peer whose connection is up.
    pub(super) fn connect(&mut self, peer: NodeId, rng: &mut SmallRng, now: Instant) {
        self.disconnect(peer);
        let state = Peer {
            is_met: false,
            has_shown: false,
            mismatch: None,
            recheck: None,
            last: None,
            has_taught: false,
            pause: MIN_PAUSE,
            asked: None,
            answers: Bucket::full(ANSWER_RATE, ANSWER_BURST, now),
            lists: Bucket::full(LIST_RATE, LIST_BURST, now),
        };
        if self.peers.is_empty() {
            self.next_root = self.next_root.max(now + ROOT_INTERVAL);
        }
        self.meetings.add(peer, self.peers.len(), rng, now);
        self.peers.insert(peer, state);
        self.far_peers = None;
    }

    /// Takes a peer that came back from down over a connection that had stayed.
    pub(super) fn come_back(&mut self, peer: NodeId, rng: &mut SmallRng, now: Instant) {
        let others = self.peers.len().saturating_sub(1);
        if let Some(state) = self.peers.get_mut(&peer) {
            (state.is_met, state.has_shown, state.last) = (false, false, None);
            self.meetings.add(peer, others, rng, now);
        }
    }

    pub(super) fn disconnect(&mut self, peer: NodeId) {
        if let Some(state) = self.peers.remove(&peer) {
            state.recheck.map(|at| self.rechecks.remove(&(at, peer)));
            self.asked.remove(&peer);
            self.meetings.remove(peer);
            self.far_peers = None;
        }
    }

    pub(super) fn is_connected(&self, peer: NodeId) -> bool {
        self.peers.contains_key(&peer)
    }

    /// Returns the peers in ascending order.
    pub(super) fn connected_peers(&self) -> impl ExactSizeIterator<Item = NodeId> {
        self.peers.keys().copied()
    }

    /// Returns the peers in an interval, from its first id onwards.
    pub(super) fn peers_inside(&self, interval: Interval) -> Vec<NodeId> {
        interval
            .ranges()
            .into_iter()
            .flat_map(|range| self.peers.range(range))
            .map(|(peer, _)| *peer)
            .collect()
    }

    /// Returns the peers that hear of what this node learns.
    pub(super) fn far_peers(&mut self, me: NodeId) -> Vec<NodeId> {
        let peers = &self.peers;
        let make = || tree::far_peers(me, &peers.keys().copied().collect::<Vec<_>>());
        self.far_peers.get_or_insert_with(make).clone()
    }

    /// Notes that a peer gave or took something in a repair.
    pub(super) fn taught(&mut self, from: NodeId) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.has_taught = true;
        }
    }

    /// Returns whether a peer may be given one more advert that it asked for.
    pub(super) fn may_answer(&mut self, peer: NodeId, now: Instant) -> bool {
        self.peers.get_mut(&peer).is_some_and(|peer| peer.answers.take(now))
    }

    /// Takes a peer's root hash. `is_smaller`: the own node id is the smaller one. `is_gaining`: adverts are
    /// coming in, so that the own hash is changing. `is_new`: nobody has told of the peer yet, so it is new to the
    /// mesh and has nothing, and this may be its only peer; what it lacks is not on its way.
    fn handle_root(
        &mut self,
        from: NodeId,
        hash: HashView,
        (is_smaller, is_gaining, is_new): (bool, bool, bool),
        rng: &mut SmallRng,
        now: Instant,
    ) -> Reply {
        let is_busy = self.count_asked(now) >= MAX_ASKED;
        let others = self.peers.len();
        let Some(peer) = self.peers.get_mut(&from) else { return Reply::Nothing };
        // When both have shown their hash at once, the greater node id judges.
        let is_judge = !is_smaller || !peer.has_shown;
        let is_meeting = is_judge && !peer.is_met;
        peer.is_met = true;
        self.meetings.remove(from);
        // Two that meet may have been apart for long: what one is behind is not on its way.
        if hash == HashView::Equal || (hash == HashView::Behind && !is_meeting) {
            peer.mismatch = None;
            peer.last = None;
            self.set_recheck(from, None);
            return Reply::Nothing;
        }
        if is_meeting && !is_new && (is_gaining || is_busy) {
            (peer.is_met, peer.has_shown) = (false, false);
            self.meetings.add(from, others, rng, now);
            return Reply::Nothing;
        }
        if peer.last.is_some_and(|last| !peer.has_taught && now < last + peer.pause) {
            return Reply::Nothing;
        }
        let since = peer.mismatch.filter(|since| now.saturating_duration_since(*since) < STALE_MISMATCH);
        let is_believed = since.is_some_and(|since| now.saturating_duration_since(since) >= SETTLE);
        if !is_meeting && (!is_believed || is_busy) {
            peer.mismatch = since.or(Some(now));
            let recheck = peer.recheck.unwrap_or(now + SETTLE);
            self.set_recheck(from, Some(recheck));
            return Reply::Nothing;
        }
        self.begin(from, now);
        self.ask(from, now);
        Reply::ShowBuckets
    }

    /// Notes that a peer compares buckets with this node; returns whether it may have a list of ids.
    fn may_list(&mut self, to: NodeId, now: Instant) -> bool {
        self.peers.get_mut(&to).is_some_and(|peer| peer.lists.take(now))
    }

    /// Begins a repair; one after a repair in vain waits twice as long for the next.
    fn begin(&mut self, with: NodeId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&with) else { return };
        let was_in_vain = peer.last.is_some() && !peer.has_taught;
        peer.pause = if was_in_vain { (peer.pause * 2).min(MAX_PAUSE) } else { MIN_PAUSE };
        peer.last = Some(now);
        peer.has_taught = false;
        peer.is_met = true;
        peer.mismatch = None;
        self.set_recheck(with, None);
        self.meetings.remove(with);
    }

    fn ask(&mut self, peer: NodeId, now: Instant) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.asked = Some(now);
            self.asked.insert(peer);
        }
    }

    /// Notes that a peer has answered bucket hashes.
    fn answered(&mut self, from: NodeId) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.asked = None;
            self.asked.remove(&from);
        }
    }

    /// Returns how many peers still have to answer.
    fn count_asked(&mut self, now: Instant) -> usize {
        let peers = &self.peers;
        self.asked.retain(|peer| {
            let asked = peers.get(peer).and_then(|state| state.asked);
            asked.is_some_and(|at| now.saturating_duration_since(at) < ANSWER_TIMEOUT)
        });
        self.asked.len()
    }

    /// Keeps of the heads that are missing those to ask for at this moment.
    fn retain_due_heads(&mut self, missing: &mut Vec<AdvertId>, now: Instant) {
        let before = std::mem::take(&mut self.heads);
        missing.retain(|id| {
            let node = id.slot.node;
            let (first, last) = before.get(&node).copied().unwrap_or((now, now));
            let pause = (last.saturating_duration_since(first) / HEAD_PAUSE).min(MAX_HEAD_PAUSE);
            let is_due = last + pause <= now;
            self.heads.insert(node, (first, if is_due { now } else { last }));
            is_due
        });
    }

    fn set_recheck(&mut self, node: NodeId, at: Option<Instant>) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.recheck.map(|old| self.rechecks.remove(&(old, node)));
            peer.recheck = at;
            at.map(|at| self.rechecks.insert((at, node)));
        }
    }

    /// Returns the peers to show the root hash to.
    fn take_due(&mut self, is_gaining: bool, rng: &mut SmallRng, now: Instant) -> Vec<NodeId> {
        let mut due = Vec::new();
        while let Some(&(at, node)) = self.rechecks.first()
            && at <= now
        {
            self.set_recheck(node, None);
            due.push(node);
        }
        while let Some(node) = self.meetings.take(self.peers.len(), is_gaining, rng, now) {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.has_shown = true;
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
        let recheck = self.rechecks.first().map(|&(at, _)| at);
        let root = (!self.peers.is_empty()).then_some(self.next_root);
        [recheck, root, self.meetings.deadline()].into_iter().flatten().min()
    }
}

impl Catalog {
    /// Does what is due: shows the root hash, asks for adverts, announces what was learnt.
    pub(super) fn act(&mut self, now: Now) {
        let is_gaining = self.pulls.is_gaining(now.mono);
        for peer in self.repair.take_due(is_gaining, &mut self.rng, now.mono) {
            self.send(peer, Frame::Root(self.store.hash()));
            self.want_heads(peer, now);
        }
        self.ask_for_due(now);
        self.announce(now);
    }

    /// Asks for the heads of members whose lease is missing: heads are not in the root hash, and one that was lost,
    /// with a connection that was given up for example, would not come again before its next refresh.
    fn want_heads(&mut self, peer: NodeId, now: Now) {
        let mut ids: Vec<_> = self.store.headless(now.mono).take(MAX_IDS_PER_FRAME).collect();
        self.repair.retain_due_heads(&mut ids, now.mono);
        if !ids.is_empty() {
            self.send(peer, Frame::Want(ids));
        }
    }

    /// Compares a peer's root hash; shows all bucket hashes when the difference is believed.
    pub(super) fn handle_root(&mut self, from: NodeId, hash: u64, now: Now) {
        let view = self.store.compare_hash(hash, now.mono);
        let is_new = self.store.owner(from).is_none();
        let state = (self.config.node < from, self.pulls.is_gaining(now.mono), is_new);
        if self.repair.handle_root(from, view, state, &mut self.rng, now.mono) == Reply::ShowBuckets {
            self.counters.repairs += 1;
            self.send(from, Frame::Buckets(self.store.buckets().to_vec()));
        }
    }

    /// Answers bucket hashes with the ids of those that differ.
    pub(super) fn handle_buckets(&mut self, from: NodeId, theirs: &[u64], now: Now) {
        if theirs.len() != BUCKETS {
            self.counters.malformed_lists += 1;
            return;
        }
        self.counters.buckets_compared += 1;
        let own = self.store.buckets();
        let differs: Vec<bool> = own.iter().zip(theirs).map(|(own, theirs)| own != theirs).collect();
        if !differs.contains(&true) {
            return;
        }
        if !self.repair.may_list(from, now.mono) {
            self.counters.answers_cut += 1;
            return;
        }
        self.repair.begin(from, now.mono);
        let mut lists: BTreeMap<u8, Vec<AdvertId>> = (0..=u8::MAX)
            .zip(&differs)
            .filter(|(_, differs)| **differs)
            .map(|(at, _)| (at, vec![]))
            .collect();
        for (bucket, id) in self.store.offered(now.mono) {
            if let Some(list) = lists.get_mut(&bucket) {
                list.push(id);
            }
        }
        for frame in id_frames(lists) {
            self.send(from, frame);
        }
    }

    /// Takes the ids of a peer in some buckets: asks for those it lacks, announces those the peer lacks.
    pub(super) fn handle_ids(
        &mut self,
        from: NodeId,
        buckets: &[u8],
        ids: Vec<AdvertId>,
        whole: bool,
        now: Now,
    ) {
        self.repair.answered(from);
        if whole {
            let theirs: BTreeMap<Slot, Version> = ids.iter().map(|id| (id.slot, id.version)).collect();
            let is_lacking = |id: &AdvertId| theirs.get(&id.slot).is_none_or(|version| *version < id.version);
            let offered = self.store.offered(now.mono);
            let offered = offered.filter(|(bucket, id)| buckets.contains(bucket) && is_lacking(id));
            let offered: Vec<_> = offered.map(|(_, id)| id).collect();
            self.send_have(from, &offered);
        }
        // What differs for sure is no push on its way: no grace.
        self.want_all(from, ids, Some(Duration::ZERO), now);
    }

    /// Takes ids a peer has just learnt: asks for those that do not come by themselves.
    pub(super) fn handle_have(&mut self, from: NodeId, ids: Vec<AdvertId>, now: Now) {
        self.want_all(from, ids, None, now);
    }

    /// Gives a peer the adverts it asks for, in the version held.
    pub(super) fn handle_want(&mut self, from: NodeId, ids: Vec<AdvertId>, now: Now) {
        self.repair.taught(from);
        let mut copies = Vec::new();
        for id in ids {
            if !self.repair.may_answer(from, now.mono) {
                self.counters.answers_cut += 1;
                break;
            }
            copies.extend(self.store.copy(id.slot, now.mono));
        }
        self.counters.repaired += copies.len() as u64;
        self.send_adverts(from, copies, &[]);
    }

    /// Tells a peer that has just come what this node says of itself: ids only, for it may have all of it.
    pub(super) fn greet(&mut self, peer: NodeId) {
        let is_told = |id: &AdvertId| id.slot.kind == Kind::Head || !self.is_large();
        let own = self.store.owner(self.config.node);
        let ids: Vec<_> = own.into_iter().flat_map(|own| own.adverts()).map(|a| a.id()).collect();
        let ids: Vec<_> = ids.into_iter().filter(is_told).collect();
        self.send_have(peer, &ids);
    }

    /// Sends ids in as many frames as they need.
    pub(super) fn send_have(&mut self, to: NodeId, ids: &[AdvertId]) {
        for part in ids.chunks(MAX_IDS_PER_FRAME) {
            self.send(to, Frame::Have(part.to_vec()));
        }
    }

    fn want_all(&mut self, from: NodeId, ids: Vec<AdvertId>, grace: Option<Duration>, now: Now) {
        if !self.repair.is_connected(from) {
            return;
        }
        let usual = self.pulls.grace(from);
        for id in ids {
            if !self.wants(id, now) {
                continue;
            }
            // Nobody is quicker than the owner.
            let grace = grace.unwrap_or(if id.slot.node == from { Duration::ZERO } else { usual });
            if !self.pulls.announce(from, id, grace, now.mono) {
                self.counters.announcements_cut += 1;
            }
        }
    }

    /// Asks for the adverts whose grace or answer time is over.
    fn ask_for_due(&mut self, now: Now) {
        let mut wanted: BTreeMap<NodeId, Vec<AdvertId>> = BTreeMap::new();
        while let Some(id) = self.pulls.next_due(now.mono) {
            if !self.wants(id, now) {
                self.pulls.forget(id);
            } else if let Some(of) = self.pulls.ask(id, |peer| self.repair.is_connected(peer), now.mono) {
                wanted.entry(of).or_default().push(id);
            }
        }
        for (of, ids) in wanted {
            self.counters.pulls += ids.len() as u64;
            for part in ids.chunks(MAX_IDS_PER_FRAME) {
                self.send(of, Frame::Want(part.to_vec()));
            }
        }
    }

    /// Tells the far peers the ids of what was learnt: others who were cut off lack it too. What the owner itself
    /// gave, all peers are told in a small mesh: when many nodes come at once, those who came before the owner may
    /// have no other peer yet.
    fn announce(&mut self, now: Now) {
        let mut learnt = self.pulls.take_learnt(now.mono);
        if learnt.is_empty() {
            return;
        }
        learnt.retain(|id, _| self.store.holds(*id));
        let far = self.repair.far_peers(self.config.node);
        let near = if self.is_large() { far.clone() } else { self.repair.connected_peers().collect() };
        for peer in near {
            let is_far = far.contains(&peer);
            let is_news = |(id, from): &(&AdvertId, &NodeId)| {
                **from != peer && id.slot.node != peer && (is_far || id.slot.node == **from)
            };
            let ids: Vec<_> = learnt.iter().filter(is_news).map(|(id, _)| *id).collect();
            self.counters.announced += ids.len() as u64;
            self.send_have(peer, &ids);
        }
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

/// Packs the lists of whole buckets into frames; a list that fits none is sent in parts.
fn id_frames(lists: BTreeMap<u8, Vec<AdvertId>>) -> Vec<Frame> {
    let mut frames = Vec::new();
    let (mut buckets, mut ids) = (Vec::new(), Vec::new());
    for (bucket, list) in lists {
        if list.len() > MAX_IDS_PER_FRAME {
            let part =
                |part: &[AdvertId]| Frame::Ids { buckets: vec![bucket], ids: part.to_vec(), whole: false };
            frames.extend(list.chunks(MAX_IDS_PER_FRAME).map(part));
            continue;
        }
        if ids.len() + list.len() > MAX_IDS_PER_FRAME {
            let (buckets, ids) = (std::mem::take(&mut buckets), std::mem::take(&mut ids));
            frames.push(Frame::Ids { buckets, ids, whole: true });
        }
        buckets.push(bucket);
        ids.extend(list);
    }
    if !buckets.is_empty() {
        frames.push(Frame::Ids { buckets, ids, whole: true });
    }
    frames
}

#[cfg(test)]
mod tests;
