//! Whom to dial, where, and when.
//!
//! Owns: the addresses of other nodes, what became of dials, back-off and pace.
//! Must not know: sockets, certificates, SWIM. Driven by: the task that keeps one control connection per pair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;
use gossamer_wire::limits::MAX_NODES;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::reach::Deny;

mod addresses;
mod entry;
mod keep;
#[cfg(test)]
mod tests;
mod twins;
mod unanswered;
mod warm;
mod ways;

use entry::{Entry, State};

pub use keep::{Keep, keep_which};
pub use twins::{Twins, later_process, process_nonce};
pub use unanswered::{Packets, Unanswered};
pub use warm::{PairRank, WarmSet};
pub use ways::{Detour, UDP_ALONE, Ways};

/// Where addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The node's card: all its addresses, in its order. Replaces those of earlier cards.
    Card,
    /// The same, as the last run of this node stored it: the others need not know that it is back.
    StoredCard,
    /// An inbound connection, a token or the disk: kept beside the card's, newest first.
    Hint,
}

/// What membership says of a node, which decides how long its back-off grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A member: worth a dial every half minute.
    Live,
    /// Down, gone, or only remembered: worth one every ten minutes, for ever.
    Silent,
}

/// A dial to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Who must answer.
    pub node: NodeId,
    /// Where, best first; at least one, unless there are lane addresses or relays.
    pub addresses: Vec<SocketAddr>,
}

/// Every node this one may dial.
#[derive(Debug)]
pub struct DialBook {
    me: NodeId,
    rng: StdRng,
    /// Where nobody is dialled.
    deny: Deny,
    entries: BTreeMap<NodeId, Entry>,
    /// Nodes that wait for their dial.
    waiting: BTreeSet<(Instant, NodeId)>,
    /// Those of them that are silent: at most [`MAX_SILENT`], the rest are set aside.
    silent_waiting: BTreeSet<NodeId>,
    /// Silent nodes that have an address and do not wait.
    set_aside: BTreeSet<NodeId>,
    /// Dials under way, by their beginning.
    in_flight: BTreeSet<(Instant, NodeId)>,
    connected: usize,
    /// Members that are up.
    live: usize,
    /// Whom of them to keep a connection to.
    warm: WarmSet,
    /// When the rest after the first few dials ends at the latest; nothing before it has begun.
    settled: Option<Instant>,
    /// Until when only [`Self::reach`] makes dials.
    rest: Option<Instant>,
    /// Whom it asked for and that wait.
    urgent: BTreeSet<NodeId>,
    /// When the pace allows the next dial.
    next_slot: Option<Instant>,
}

impl DialBook {
    /// Makes an empty book. Same `rng` and calls, same dials.
    pub fn new(me: NodeId, rng: StdRng) -> Self {
        Self {
            me,
            rng,
            deny: Deny::default(),
            entries: BTreeMap::new(),
            waiting: BTreeSet::new(),
            silent_waiting: BTreeSet::new(),
            set_aside: BTreeSet::new(),
            in_flight: BTreeSet::new(),
            connected: 0,
            live: 0,
            warm: WarmSet::default(),
            settled: None,
            rest: None,
            urgent: BTreeSet::new(),
            next_slot: None,
        }
    }

    /// Sets above how many members not all are kept warm; [`WarmSet::default`] otherwise.
    #[must_use]
    pub const fn with_warm(mut self, warm: WarmSet) -> Self {
        self.warm = warm;
        self
    }

    /// Sets which addresses are dropped, whoever names them; [`Deny::default`] otherwise.
    #[must_use]
    pub const fn with_deny(mut self, deny: Deny) -> Self {
        self.deny = deny;
        self
    }

    /// Takes in addresses of a node; those nobody can dial are dropped. A node not known before counts as
    /// [`Standing::Silent`] until [`Self::set_standing`] says otherwise. It is dialled at once; when only its card
    /// is known, it has heard of this node as well, and the larger of the two ids lets the other dial first. A full
    /// book ([`MAX_NODES`]) takes no further nodes.
    pub fn learn(&mut self, node: NodeId, addresses: &[SocketAddr], source: Source, now: Instant) {
        if !self.has_room_for(node) {
            return;
        }
        let deny = self.deny;
        let addresses = addresses.iter().filter_map(|address| deny.check(*address).ok());
        let first = if source == Source::Card { self.first_dial(node, now) } else { now };
        self.rest_for_news_of(node, now);
        let entry = self.entry(node);
        let was_stuck = entry.addresses.usable_from().is_some_and(|from| from > now);
        match source {
            Source::Card | Source::StoredCard => entry.addresses.set_card(addresses),
            Source::Hint => addresses.for_each(|address| entry.addresses.hint(address)),
        }
        self.follow_addresses(node, was_stuck, first);
    }

    /// Takes in whether relays lead to a node: then it can be dialled, as with [`Self::learn_lanes`]. Unless it waits for another
    /// reason it is dialled at once.
    pub fn learn_relays(&mut self, node: NodeId, has_relay: bool, now: Instant) {
        if self.has_room_for(node) {
            let entry = self.entry(node);
            let was_stuck = entry.addresses.usable_from().is_some_and(|from| from > now);
            entry.addresses.has_relay = has_relay;
            self.follow_addresses(node, was_stuck, now);
        }
    }

    /// Lets the state of a node follow its addresses: `first` is when to dial it if it has got its first ones, or if it has had
    /// none that could be tried.
    fn follow_addresses(&mut self, node: NodeId, was_stuck: bool, first: Instant) {
        let warm = self.warm;
        let Some(entry) = self.entries.get(&node) else { return };
        match (entry.state, entry.has_address()) {
            // It waits, or has to, for the time when an address that is another's here may be tried again.
            (State::Waiting(due), true) => {
                let is_freed = was_stuck && entry.addresses.usable_from().is_none();
                self.set_state(node, State::Waiting(if is_freed { first } else { due }));
            }
            (State::Idle, true) if entry.is_wanted(warm) => {
                self.set_state(node, State::Waiting(first));
                self.limit_silent();
            }
            (State::Waiting(_), false) => self.set_state(node, State::Idle),
            _ => self.note_silent(node),
        }
    }

    /// Takes in whether lane addresses lead to a node; where they do, it can be dialled whatever [`Self::learn`] says next, and
    /// while all other addresses of it rest.
    pub fn learn_lanes(&mut self, node: NodeId, has_lane: bool) {
        if self.has_room_for(node) {
            self.entry(node).addresses.has_lane = has_lane;
        }
    }

    /// Takes in what membership says. A node that turns live is dialled, by the larger of the two ids a moment
    /// later. One that falls silent has just been found dead, so its back-off begins with a longer pause; if it
    /// lives after all, it dials. A live node may be heard of before its addresses are.
    pub fn set_standing(&mut self, node: NodeId, standing: Standing, now: Instant) {
        let first = self.first_dial(node, now);
        if standing == Standing::Live && self.has_room_for(node) {
            self.rest_for_news_of(node, now);
            self.entry(node);
        }
        let warm = self.warm;
        let Some(entry) = self.entries.get_mut(&node) else { return };
        let before = std::mem::replace(&mut entry.standing, standing);
        self.note_silent(node);
        let Some(entry) = self.entries.get_mut(&node) else { return };
        match (before, standing) {
            (Standing::Silent, Standing::Live) => {
                (entry.failures, entry.least_failures) = (0, 0);
                let due = match entry.state {
                    State::Waiting(due) => Some(due.min(first)),
                    State::Idle if entry.has_address() => Some(first),
                    _ => None,
                };
                if let Some(due) = due {
                    let is_wanted = entry.is_wanted(warm);
                    self.set_state(node, if is_wanted { State::Waiting(due) } else { State::Idle });
                }
                self.live += 1;
                self.choose_warm(now);
            }
            (Standing::Live, Standing::Silent) => {
                entry.least_failures = if std::mem::take(&mut entry.may_be_back) { LEFT } else { LOST };
                entry.failures = entry.failures.max(entry.least_failures);
                if let State::Waiting(due) = entry.state {
                    let pause = entry.pause(&mut self.rng);
                    self.set_state(node, State::Waiting(due.max(now + pause)));
                }
                self.live -= 1;
                self.choose_warm(now);
                self.limit_silent();
            }
            (Standing::Live, Standing::Live) | (Standing::Silent, Standing::Silent) => {}
        }
    }

    /// A member has said that it leaves: it falls silent. It may start again in a moment, and where this node had dialled it
    /// perhaps cannot dial; so the back-off begins with a short pause there.
    pub fn left(&mut self, node: NodeId, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&node) {
            entry.may_be_back = entry.is_ours;
        }
        self.set_standing(node, Standing::Silent, now);
    }

    /// Dials a live member before all others, and even where no connection is kept: somebody has to ask it something.
    pub fn reach(&mut self, node: NodeId, now: Instant) {
        let first = self.waiting.first().map_or(now, |(due, _)| now.min(*due));
        let Some(entry) = self.entries.get(&node) else { return };
        let is_idle = matches!(entry.state, State::Idle | State::Waiting(_));
        if entry.standing == Standing::Live && entry.has_address() && is_idle {
            // A moment before the first of them.
            let due = first.checked_sub(Duration::from_nanos(1)).unwrap_or(first);
            self.set_state(node, State::Waiting(due));
            self.urgent.insert(node);
        }
    }

    /// Whether a dial of the node is under way.
    pub fn is_dialling(&self, node: NodeId) -> bool {
        self.entries.get(&node).is_some_and(|entry| matches!(entry.state, State::Dialing(_)))
    }

    /// A control connection is up, whoever dialled it.
    pub fn connected(&mut self, node: NodeId, now: Instant) {
        if node != self.me {
            let entry = self.entry(node);
            entry.is_ours = std::mem::take(&mut entry.was_reached);
            self.answered(node, now);
            self.set_state(node, State::Connected(now));
        }
    }

    /// The last control connection with the node is gone. One that lasted starts the back-off anew.
    pub fn disconnected(&mut self, node: NodeId, now: Instant) {
        let Some(entry) = self.entries.get_mut(&node) else { return };
        let State::Connected(since) = entry.state else { return };
        if now.saturating_duration_since(since) >= LASTING {
            entry.failures = entry.least_failures;
        }
        self.back_off(node, now);
    }

    /// A dial reached the node at this address.
    pub fn reached(&mut self, node: NodeId, address: SocketAddr) {
        if let Some(entry) = self.entries.get_mut(&node) {
            entry.addresses.reached(address);
            entry.was_reached = true;
        }
    }

    /// Somebody else answered a dial at this address: it is left alone for a while. The dial goes on or ends by itself.
    pub fn met_another(&mut self, node: NodeId, address: SocketAddr, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&node) {
            entry.addresses.is_wrong(address, now);
            if let State::Waiting(due) = entry.state {
                self.set_state(node, State::Waiting(due));
            }
        }
    }

    /// A dial came to nothing.
    pub fn failed(&mut self, node: NodeId, now: Instant) {
        if self.answered(node, now) {
            self.back_off(node, now);
        }
    }

    /// Drops a node, for example an evicted one. A dial under way still counts until then.
    pub fn forget(&mut self, node: NodeId) {
        self.set_state(node, State::Idle);
        let gone = self.entries.remove(&node);
        self.note_silent(node);
        self.live -= usize::from(gone.is_some_and(|entry| entry.standing == Standing::Live));
    }

    /// Returns a peer to hang up on: more are connected than are kept warm, and this one need not be. `None` when
    /// there is none. Poll after each call of another method.
    pub fn next_surplus(&self, now: Instant) -> Option<NodeId> {
        if self.connected <= self.warm.limit() {
            return None;
        }
        let is_surplus = |entry: &Entry| match entry.state {
            State::Connected(since) => {
                !entry.is_wanted(self.warm) && now.saturating_duration_since(since) >= LASTING
            }
            State::Idle | State::Waiting(_) | State::Dialing(_) => false,
        };
        self.entries.iter().find(|(_, entry)| is_surplus(entry)).map(|(node, _)| *node)
    }

    /// Returns the next dial that is due, `None` when there is none, too many are under way, or the pace says
    /// wait. Each dial returned must end in [`Self::connected`], [`Self::failed`] or [`Self::forget`].
    pub fn next_dial(&mut self, now: Instant) -> Option<Dial> {
        let due = self.next_deadline().filter(|due| *due <= now)?;
        let (_, node) = *self.waiting.first()?;
        let is_urgent = self.urgent.contains(&node);
        let addresses = self.entries.get(&node)?.addresses.usable(now);
        self.set_state(node, State::Dialing(now));
        let settles = self.settled.is_none() && self.connected + self.in_flight.len() >= FEW;
        if settles {
            (self.settled, self.rest) = (Some(now + LONGEST_SETTLE), Some(now + SETTLE));
        }
        self.next_slot = Some(now + PACE);
        if !is_urgent {
            self.rest_for_lateness(now.saturating_duration_since(due), now);
        }
        self.wake_silent(now);
        Some(Dial { node, addresses })
    }

    /// Returns where a node may be dialled now, best first; empty when nobody knows.
    pub fn addresses_of(&self, node: NodeId, now: Instant) -> Vec<SocketAddr> {
        self.entries.get(&node).map_or_else(Vec::new, |entry| entry.addresses.usable(now))
    }

    /// Returns when [`Self::next_dial`] has something; `None` while it waits for an answer or a node.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let (due, node) = self.waiting.first()?;
        let rest = self.rest.filter(|_| !self.urgent.contains(node));
        let most = if self.settled.is_none() { FEW } else { MAX_FRESH };
        let unanswered = self.in_flight.iter().nth_back(most - 1).map(|(begun, _)| *begun + FRESH);
        unanswered.max(rest).max(self.next_slot).max(Some(*due))
    }

    fn has_room_for(&self, node: NodeId) -> bool {
        node != self.me && (self.entries.len() < MAX_NODES || self.entries.contains_key(&node))
    }

    /// Prolongs the rest after the first few dials while nodes become known that were not.
    fn rest_for_news_of(&mut self, node: NodeId, now: Instant) {
        if let Some(end) = self.settled.filter(|end| now < *end)
            && !self.entries.contains_key(&node)
        {
            self.rest = Some(end.min(now + SETTLE));
        }
    }

    /// Lets a node that is short of processor time ask for less of it: each dial costs both ends a handshake, and
    /// where many share a machine these hold up the very news that all wait for.
    fn rest_for_lateness(&mut self, late: Duration, now: Instant) {
        let rest = late.saturating_sub(PUNCTUAL).saturating_mul(LATE_COSTS).min(LONGEST_REST);
        if !rest.is_zero() {
            self.rest = self.rest.max(Some(now + rest));
        }
    }

    /// A dial has come to its end, if one was under way: the next is due now at the earliest, whatever held it up.
    fn answered(&mut self, node: NodeId, now: Instant) -> bool {
        let is_dialled =
            self.entries.get(&node).is_some_and(|entry| matches!(entry.state, State::Dialing(_)));
        if is_dialled {
            self.next_slot = self.next_slot.max(Some(now));
        }
        is_dialled
    }

    fn entry(&mut self, node: NodeId) -> &mut Entry {
        let me = self.me;
        self.entries.entry(node).or_insert_with(|| Entry::new(PairRank::of(me, node)))
    }

    /// Follows the size of the mesh: who need not be warm is no longer dialled, who has to be is dialled at once.
    fn choose_warm(&mut self, now: Instant) {
        if !self.warm.resize(self.live + 1) {
            return;
        }
        let mut moves = Vec::new();
        for (node, entry) in self.entries.iter().filter(|(_, entry)| entry.standing == Standing::Live) {
            match (entry.state, entry.is_wanted(self.warm)) {
                (State::Waiting(_), false) => moves.push((*node, State::Idle)),
                (State::Idle, true) if entry.has_address() => {
                    moves.push((*node, State::Waiting(now)));
                }
                _ => {}
            }
        }
        moves.into_iter().for_each(|(node, state)| self.set_state(node, state));
    }

    /// Returns when to dial a node that has heard of this one too. Both dial in the end: perhaps only one can.
    fn first_dial(&mut self, node: NodeId, now: Instant) -> Instant {
        if self.me < node { now } else { now + YIELD.mul_f64(self.rng.random_range(0.5..1.5)) }
    }

    fn back_off(&mut self, node: NodeId, now: Instant) {
        let warm = self.warm;
        let Some(entry) = self.entries.get_mut(&node) else { return };
        let pause = entry.pause(&mut self.rng);
        entry.failures = entry.failures.saturating_add(1);
        let is_wanted = entry.is_wanted(warm) && entry.has_address();
        let state = if is_wanted { State::Waiting(now + pause) } else { State::Idle };
        self.set_state(node, state);
        self.limit_silent();
    }

    /// The only place that changes a state: `waiting` and `in_flight` follow it.
    fn set_state(&mut self, node: NodeId, state: State) {
        let Some(entry) = self.entries.get_mut(&node) else { return };
        let state = match state {
            // Not before there is somewhere to dial.
            State::Waiting(due) => {
                State::Waiting(entry.addresses.usable_from().map_or(due, |from| due.max(from)))
            }
            state => state,
        };
        match std::mem::replace(&mut entry.state, state) {
            State::Waiting(due) => {
                self.waiting.remove(&(due, node));
                self.urgent.remove(&node);
            }
            State::Dialing(begun) => {
                self.in_flight.remove(&(begun, node));
            }
            State::Connected(_) => self.connected -= 1,
            State::Idle => {}
        }
        match state {
            State::Waiting(due) => {
                self.waiting.insert((due, node));
            }
            State::Dialing(begun) => {
                self.in_flight.insert((begun, node));
            }
            State::Connected(_) => self.connected += 1,
            State::Idle => {}
        }
        self.note_silent(node);
    }

    /// Keeps the lists of silent nodes true of one whose state, standing or addresses have changed.
    fn note_silent(&mut self, node: NodeId) {
        let entry = self.entries.get(&node);
        let lists = [
            (&mut self.silent_waiting, entry.is_some_and(Entry::is_silent_and_waits)),
            (&mut self.set_aside, entry.is_some_and(Entry::is_set_aside)),
        ];
        for (list, is_in) in lists {
            if is_in {
                list.insert(node);
            } else {
                list.remove(&node);
            }
        }
    }

    /// Sets the silent node with the most failures aside while too many wait.
    fn limit_silent(&mut self) {
        if self.silent_waiting.len() > MAX_SILENT {
            let waiting = self.silent_waiting.iter().filter_map(|node| self.entries.get_key_value(node));
            let worst = waiting.max_by_key(|(node, entry)| (entry.failures, **node)).map(|(node, _)| *node);
            worst.into_iter().for_each(|node| self.set_state(node, State::Idle));
        }
    }

    /// Lets the silent node with the fewest failures of those set aside wait in the place that became free,
    /// so that in the end each gets its turn.
    fn wake_silent(&mut self, now: Instant) {
        if self.silent_waiting.len() >= MAX_SILENT {
            return;
        }
        let aside = self.set_aside.iter().filter_map(|node| self.entries.get_key_value(node));
        let Some((node, entry)) = aside.min_by_key(|(node, entry)| (entry.failures, **node)) else { return };
        let pause = if entry.failures == 0 { Duration::ZERO } else { entry.pause(&mut self.rng) };
        let node = *node;
        self.set_state(node, State::Waiting(now + pause));
    }
}

/// Pause between two dials: at most 50 a second, because a handshake costs both sides up to 0.9 ms and 4.4 KB.
const PACE: Duration = Duration::from_millis(20);

/// Connections that make a node a member whom news reaches.
const FEW: usize = 4;

/// Rest after the first [`FEW`] and after each news they bring of another node: handshakes with all would hold the
/// next ones up.
const SETTLE: Duration = Duration::from_secs(1);

/// Longest rest: what becomes known later than this is no start of a whole mesh.
const LONGEST_SETTLE: Duration = Duration::from_secs(10);

/// Later than this after its time, a dial shows that this node waits for a processor.
const PUNCTUAL: Duration = Duration::from_millis(10);

/// Rest for each unit of time by which a dial was late: a node that waits 100 ms for its turn makes one dial a second.
const LATE_COSTS: u32 = 8;

/// Longest rest for lateness. All pairs connect in the end, however busy the machine.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// How long the larger of two ids lets the other dial first, give or take half: two handshakes cost both twice.
const YIELD: Duration = Duration::from_secs(1);

/// Dials under way at once that may still be answered, after the first [`FEW`]: where handshakes take long because many
/// nodes start on too few processors, each node slows down by itself. 150 daemons on two processors otherwise began more
/// handshakes than these can do before the time limit, and began them again.
const MAX_FRESH: usize = 2;

/// How old a dial is that no longer counts as one of [`MAX_FRESH`]: it probably goes to an address that nobody has.
const FRESH: Duration = Duration::from_secs(1);

/// Dials under way at once. With a 3 s handshake limit and dead addresses only, 21 dials a second remain.
const MAX_IN_FLIGHT: usize = 64;

/// Silent nodes that wait for a dial at once; the rest are set aside and take turns. Bounds the dials into the
/// void: with longest pauses, about one in ten seconds.
const MAX_SILENT: usize = 64;

/// First pause after a failure, before jitter.
const SHORTEST: Duration = Duration::from_millis(250);

/// Failures a member that fell silent begins with: a first pause of 16 s before jitter. When a third of a mesh dies
/// at once, each of the others would otherwise dial each of the dead some four times within 15 s, and a dial into
/// the void costs five or six packets of 1,200 bytes.
const LOST: u32 = 6;

/// The same of one that has left, where this node had dialled it: a first pause of 2 s before jitter.
const LEFT: u32 = 3;

/// Longest pause for a live member, before jitter: its other links carry it meanwhile.
const LONGEST_LIVE: Duration = Duration::from_secs(30);

/// Longest pause for a silent node, before jitter.
const LONGEST_SILENT: Duration = Duration::from_secs(600);

/// A connection that lasted this long was a good one; a shorter one counts as a failure.
const LASTING: Duration = Duration::from_secs(30);
