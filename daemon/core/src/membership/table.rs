//! What the daemon is told of each member.
//!
//! Owns: the last reported state of each, and since when. Must not know: how states come about.
//! Driven by: `Membership`, after each call of foca, with the members that call was about.
//!
//! foca tells of up and down but not of suspicion, so states are compared: only those of members named in the
//! packet or timer at hand, in one pass over foca's list (linear like each of foca's own look-ups). What the
//! table already says is not given to foca at all, so most packets cost neither.

use std::collections::{BTreeMap, btree_map};
use std::time::Instant;

use foca::{Member, State};
use gossamer_wire::swim::{Identity, SwimMember, SwimState};
use gossamer_wire::{Generation, NodeId};
use sha2::{Digest, Sha256};

use super::codec::Life;

/// The incarnation of a down member that left by itself. A live member never has it: foca renews an identity
/// that would have to go so far, so the leave travels by gossip without a byte of its own.
pub(super) const LEFT: u16 = u16::MAX;

/// The state of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// Answers.
    Alive,
    /// Did not answer someone; may refute. Still a member.
    Suspect,
    /// Gone without a word.
    Down,
    /// Gone after saying so.
    Left,
}

impl MemberState {
    /// Whether it still counts as a member: alive or suspect.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// A member as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Which node.
    pub node: NodeId,
    /// Which life of it.
    pub generation: Generation,
    /// How often it has refuted a suspicion in this life.
    pub incarnation: u16,
    /// Its state.
    pub state: MemberState,
    /// When it got this state in this life.
    pub since: Instant,
}

/// Where a change came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The member itself: it sent something.
    Itself,
    /// This peer said so.
    Peer(NodeId),
    /// It did not answer this node's probes.
    Silence,
    /// A statement evicted it.
    Statement,
}

/// One change of a member's state or generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) before: Option<MemberState>,
    pub(super) view: MemberView,
}

/// All members, by id.
#[derive(Debug, Default)]
pub(super) struct Table {
    views: BTreeMap<NodeId, MemberView>,
    /// Sum of [`life_hash`] over the members that are up.
    up_sum: u64,
    /// How many are up.
    up: usize,
}

impl Table {
    /// Takes over what foca now says of the `touched` nodes and returns what changed, in foca's order.
    /// A touched node foca no longer lists is forgotten without a word: it was down long before.
    pub(super) fn update<'a>(
        &mut self,
        members: impl Iterator<Item = &'a Member<Life>>,
        mut touched: Vec<NodeId>,
        now: Instant,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        if touched.is_empty() {
            return changes;
        }
        touched.sort_unstable();
        touched.dedup();
        for member in members {
            let Ok(at) = touched.binary_search(&member.id().0.node) else { continue };
            touched.remove(at);
            changes.extend(self.set(member, now));
            if touched.is_empty() {
                break;
            }
        }
        for gone in touched {
            if let Some(view) = self.views.remove(&gone) {
                self.up_sum = self.up_sum.wrapping_sub(view.share());
                self.up -= usize::from(view.state.is_up());
            }
        }
        changes
    }

    /// Whether foca would learn from an entry: not from one the table already says or has left behind.
    pub(super) fn is_news(&self, entry: &SwimMember) -> bool {
        is_news_to(self.get(entry.identity.node), entry)
    }

    /// Returns a look at many members, quick when they are asked for in ascending order, as in the states of peers.
    pub(super) fn walk(&self) -> Walk<'_> {
        Walk::from(self, NodeId::from_bytes([0; 16]))
    }

    /// Returns a number that two nodes share when they hold the same members for up, in the same lives:
    /// `me` included. Down members are left out because nodes forget them at different times; one that is up
    /// here and down there makes a difference all the same.
    pub(super) fn hash(&self, me: Identity) -> u64 {
        self.up_sum.wrapping_add(life_hash(me))
    }

    /// Returns one member.
    pub(super) fn get(&self, node: NodeId) -> Option<&MemberView> {
        self.views.get(&node)
    }

    /// Whether the node is known and up.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|view| view.state.is_up())
    }

    /// Whether the node is known and alive.
    pub(super) fn is_alive(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|view| view.state == MemberState::Alive)
    }

    /// Returns how many are known, in whatever state.
    pub(super) fn len(&self) -> usize {
        self.views.len()
    }

    /// Returns how many are up.
    pub(super) const fn up(&self) -> usize {
        self.up
    }

    /// Returns all, in order of id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &MemberView> {
        self.views.values()
    }

    fn set(&mut self, member: &Member<Life>, now: Instant) -> Option<Change> {
        let node = member.id().0.node;
        let generation = member.id().0.generation;
        let incarnation = member.incarnation();
        let state = match member.state() {
            State::Alive => MemberState::Alive,
            State::Suspect => MemberState::Suspect,
            State::Down if incarnation == LEFT => MemberState::Left,
            State::Down => MemberState::Down,
        };
        let before = self.views.get(&node).copied();
        let is_same = before.is_some_and(|old| (old.state, old.generation) == (state, generation));
        let since = before.filter(|_| is_same).map_or(now, |old| old.since);
        let view = MemberView { node, generation, incarnation, state, since };
        if !is_same {
            let shares = before.map_or(0, |old| old.share());
            self.up_sum = self.up_sum.wrapping_sub(shares).wrapping_add(view.share());
            self.up += usize::from(state.is_up());
            self.up -= usize::from(before.is_some_and(|old| old.state.is_up()));
        }
        self.views.insert(node, view);
        (!is_same).then_some(Change { before: before.map(|old| old.state), view })
    }
}

/// A look at many members: see [`Table::walk`].
#[derive(Debug)]
pub(super) struct Walk<'a> {
    table: &'a Table,
    /// The first that was not passed, and those behind it.
    next: Option<(&'a NodeId, &'a MemberView)>,
    rest: btree_map::Range<'a, NodeId, MemberView>,
    asked: NodeId,
}

impl<'a> Walk<'a> {
    fn from(table: &'a Table, node: NodeId) -> Self {
        let mut rest = table.views.range(node..);
        Self { table, next: rest.next(), rest, asked: node }
    }

    /// Returns one member.
    pub(super) fn get(&mut self, node: NodeId) -> Option<&'a MemberView> {
        if node < self.asked {
            return self.table.get(node);
        }
        self.asked = node;
        for _ in 0..STEPS {
            if self.next.is_none_or(|(next, _)| *next >= node) {
                break;
            }
            self.next = self.rest.next();
        }
        if self.next.is_some_and(|(next, _)| *next < node) {
            *self = Self::from(self.table, node);
        }
        self.next.filter(|(next, _)| **next == node).map(|(_, view)| view)
    }
}

/// So many steps cost about as much as a look-up.
const STEPS: usize = 8;

/// Whether foca would learn from an entry, by what is known of its node.
pub(super) fn is_news_to(known: Option<&MemberView>, entry: &SwimMember) -> bool {
    let Some(known) = known else { return true };
    let order = entry.identity.generation.cmp(&known.generation);
    order.is_gt() || order.is_eq() && known.yields_to(entry)
}

impl MemberView {
    /// Returns an entry about this life.
    pub(super) fn entry(&self, state: SwimState) -> SwimMember {
        let identity = Identity { node: self.node, generation: self.generation };
        SwimMember { identity, incarnation: self.incarnation, state }
    }

    /// Returns what it adds to the sum of those that are up.
    fn share(&self) -> u64 {
        if self.state.is_up() {
            life_hash(Identity { node: self.node, generation: self.generation })
        } else {
            0
        }
    }

    /// Whether an entry about the same life changes the state or the incarnation (SWIM 4.2).
    fn yields_to(&self, entry: &SwimMember) -> bool {
        match (self.state, entry.state) {
            (MemberState::Down | MemberState::Left, _) => false,
            (_, SwimState::Down) => true,
            (MemberState::Alive, SwimState::Suspect) => entry.incarnation >= self.incarnation,
            (_, SwimState::Alive | SwimState::Suspect) => entry.incarnation > self.incarnation,
        }
    }
}

/// Hashes one life of a node. Strong, because sums are only as good as their parts.
fn life_hash(life: Identity) -> u64 {
    let mut hash = Sha256::new();
    hash.update(life.node.as_bytes());
    hash.update(life.generation.epoch.to_be_bytes());
    hash.update(life.generation.renewals.to_be_bytes());
    hash.finalize().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::tests::start;
    use super::*;

    fn member(n: u8, epoch: u64, incarnation: u16, state: State) -> Member<Life> {
        let identity =
            Identity { node: NodeId::from_bytes([n; 16]), generation: Generation::of_epoch(epoch) };
        Member::new(Life(identity), incarnation, state)
    }

    fn update(table: &mut Table, members: &[Member<Life>], now: Instant) -> Vec<(u8, MemberState)> {
        let touched = members.iter().map(|member| member.id().0.node).collect();
        let changes = table.update(members.iter(), touched, now);
        changes.into_iter().map(|change| (change.view.node.as_bytes()[0], change.view.state)).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        let (now, mut table) = (start(), Table::default());
        let later = now + Duration::from_secs(1);
        assert_eq!(update(&mut table, &[member(1, 1, 0, State::Alive)], now), [(1, MemberState::Alive)]);
        assert_eq!(update(&mut table, &[member(1, 1, 1, State::Alive)], later), []);
        assert_eq!(
            update(&mut table, &[member(1, 1, 1, State::Suspect)], later),
            [(1, MemberState::Suspect)]
        );
        assert_eq!(update(&mut table, &[member(1, 1, 1, State::Down)], later), [(1, MemberState::Down)]);
        assert_eq!(update(&mut table, &[member(1, 2, 0, State::Alive)], later), [(1, MemberState::Alive)]);
    }

    #[test]
    fn a_walk_finds_what_a_look_up_finds_in_any_order() {
        let mut table = Table::default();
        let all: Vec<_> = (0..200).step_by(3).map(|n| member(n, 1, 0, State::Alive)).collect();
        update(&mut table, &all, start());
        let nodes = |order: &mut dyn Iterator<Item = u8>| -> Vec<_> {
            order.map(|n| NodeId::from_bytes([n; 16])).collect()
        };
        let orders = [
            nodes(&mut (0..=255)),
            nodes(&mut (0..=255).rev()),
            nodes(&mut [3, 90, 91, 4, 198, 201, 6].into_iter()),
        ];
        for order in orders {
            let mut walk = table.walk();
            for node in order {
                assert_eq!(walk.get(node), table.get(node), "{node:?}");
            }
        }
    }

    #[test]
    fn a_new_life_is_a_change_even_when_the_state_is_the_same() {
        let (now, mut table) = (start(), Table::default());
        update(&mut table, &[member(1, 1, 0, State::Alive)], now);
        assert_eq!(update(&mut table, &[member(1, 2, 0, State::Alive)], now), [(1, MemberState::Alive)]);
    }

    #[test]
    fn since_is_the_time_of_the_last_change() {
        let (now, mut table) = (start(), Table::default());
        let later = now + Duration::from_secs(1);
        update(&mut table, &[member(1, 1, 0, State::Alive)], now);
        update(&mut table, &[member(1, 1, 7, State::Alive)], later);
        let view = table.iter().next().expect("one member");
        assert_eq!((view.since, view.incarnation), (now, 7));
        update(&mut table, &[member(1, 1, 7, State::Suspect)], later);
        assert_eq!(table.iter().next().map(|view| view.since), Some(later));
    }

    #[test]
    fn down_at_the_greatest_incarnation_means_left() {
        let (now, mut table) = (start(), Table::default());
        assert_eq!(update(&mut table, &[member(1, 1, LEFT, State::Down)], now), [(1, MemberState::Left)]);
        assert!(!table.is_up(NodeId::from_bytes([1; 16])));
    }

    #[test]
    fn only_touched_members_are_looked_at_and_missing_ones_forgotten() {
        let (now, mut table) = (start(), Table::default());
        let known = [member(1, 1, 0, State::Alive), member(2, 1, 0, State::Alive)];
        update(&mut table, &known, now);
        let changed = [member(1, 1, 0, State::Down), member(2, 1, 0, State::Down)];
        let touched = vec![NodeId::from_bytes([2; 16]), NodeId::from_bytes([2; 16])];
        assert_eq!(table.update(changed.iter(), touched, now).len(), 1);
        assert!(table.is_up(NodeId::from_bytes([1; 16])));
        assert_eq!(table.update(changed[..1].iter(), vec![NodeId::from_bytes([2; 16])], now), []);
        assert_eq!((table.len(), table.get(NodeId::from_bytes([2; 16]))), (1, None));
    }

    #[test]
    fn the_sum_follows_every_change_and_forgets_who_is_forgotten() {
        let (now, mut table) = (start(), Table::default());
        let me = Identity { node: NodeId::from_bytes([9; 16]), generation: Generation::of_epoch(1) };
        let empty = table.hash(me);
        update(&mut table, &[member(1, 1, 0, State::Alive)], now);
        let one = table.hash(me);
        update(&mut table, &[member(2, 1, 0, State::Alive), member(1, 2, 0, State::Suspect)], now);
        let two = table.hash(me);
        let mut other = Table::default();
        update(&mut other, &[member(1, 2, 3, State::Alive), member(2, 1, 0, State::Alive)], now);
        assert_eq!((table.up(), other.up()), (2, 2));
        assert_eq!(other.hash(me), two, "order, incarnation and suspicion do not matter");
        assert_eq!(std::collections::BTreeSet::from([empty, one, two]).len(), 3);
        update(&mut table, &[member(1, 2, 0, State::Down)], now);
        table.update(std::iter::empty(), vec![NodeId::from_bytes([2; 16])], now);
        assert_eq!((table.hash(me), table.up()), (empty, 0));
    }

    #[test]
    fn the_hash_depends_on_node_epoch_and_renewals() {
        let one = Identity { node: NodeId::from_bytes([1; 16]), generation: Generation::of_epoch(1) };
        let two = Identity { node: NodeId::from_bytes([2; 16]), ..one };
        let renewed = Identity { generation: one.generation.renewed(), ..one };
        let restarted = Identity { generation: Generation::of_epoch(2), ..one };
        let hashes = [one, two, renewed, restarted].map(life_hash);
        assert_eq!(std::collections::BTreeSet::from(hashes).len(), 4);
    }

    /// What the table holds for no news must be what foca ignores, else members diverge in silence.
    #[test]
    fn an_entry_is_news_exactly_when_it_changes_a_member() {
        let now = start();
        let states = [State::Alive, State::Suspect, State::Down];
        for (known, told) in states.into_iter().flat_map(|known| states.map(|told| (known, told))) {
            for (epoch, incarnation) in [(1, 4), (2, 3), (2, 4), (2, 5), (3, 0)] {
                let mut table = Table::default();
                update(&mut table, &[member(1, 2, 4, known)], now);
                let mut foca = foca::Foca::new(
                    Life(Identity { node: NodeId::from_bytes([9; 16]), generation: Generation::of_epoch(1) }),
                    foca::Config::simple(),
                    StdRng::seed_from_u64(1),
                    super::super::codec::LeanCodec,
                );
                let mut effects = super::super::effects::Effects::default();
                for entry in [member(1, 2, 4, known), member(1, epoch, incarnation, told)] {
                    foca.apply_many([entry].into_iter(), false, &mut effects).expect("applied");
                }
                let changed = foca.iter_membership_state().next() != Some(&member(1, 2, 4, known));
                let entry = super::super::codec::member_to_wire(&member(1, epoch, incarnation, told));
                assert_eq!(table.is_news(&entry), changed, "{known:?}, {told:?} {epoch}.{incarnation}");
            }
        }
    }
}
