//! What the daemon is told of each member.
//!
//! Owns: the last reported state of each, and since when. Must not know: how states come about.
//! Driven by: `Membership`, after each call of foca, with the members that call was about.
//!
//! foca tells of up and down but not of suspicion, so states are compared: only those of members named in the
//! packet or timer at hand, in one pass over foca's list (linear like each of foca's own look-ups).

use std::collections::BTreeMap;
use std::time::Instant;

use foca::{Member, State};
use gossamer_wire::{Generation, NodeId};

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
            self.views.remove(&gone);
        }
        changes
    }

    /// Returns one member.
    pub(super) fn get(&self, node: NodeId) -> Option<&MemberView> {
        self.views.get(&node)
    }

    /// Whether the node is known and up.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|view| view.state.is_up())
    }

    /// Returns how many are known, in whatever state.
    pub(super) fn len(&self) -> usize {
        self.views.len()
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
        self.views.insert(node, view);
        (!is_same).then_some(Change { before: before.map(|old| old.state), view })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gossamer_wire::swim::Identity;

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
}
