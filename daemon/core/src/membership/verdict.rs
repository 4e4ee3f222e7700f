//! The part of membership that says when a suspicion of this node's own ends, and how.
//!
//! Owns: how long a verdict and a probe wait, the judgement when the wait is over. Must not know: claims of others.
//! Driven by: `Membership`, for each timer foca sets and each verdict that is due.

use std::time::{Duration, Instant};

use foca::{State, Timer};
use gossamer_wire::NodeId;
use gossamer_wire::swim::{Identity, SwimMember, SwimState};

use super::codec::Life;
use super::timers::Due;
use super::{MemberState, MemberView, Membership};

/// What becomes of a suspicion whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was refuted.
    Drop,
    /// There are reasons to look again after [`RECONSIDER`].
    Postpone,
    /// The member is down.
    Down,
}

impl Membership {
    /// Judges a suspicion whose time is over. foca alone goes by the incarnation, so a verdict could tell a member
    /// that has just refuted that it is down.
    pub(super) fn judge(&mut self, life: &Life, incarnation: u16, now: Instant) -> Verdict {
        let is_suspect = self.swim.iter_members().any(|member| {
            member.id() == life && member.incarnation() == incarnation && member.state() == State::Suspect
        });
        let Some(view) = self.table.get(life.0.node).copied().filter(|_| is_suspect) else {
            return Verdict::Drop;
        };
        let (node, since) = (view.node, view.since);
        let is_early = now.saturating_duration_since(since) < LONGEST_DOUBT * self.config.suspicion;
        let answers = self.claims.answered_at(node).is_some_and(|at| at >= since);
        if answers || is_early && self.peers.is_heard_after(node, since) {
            // It lives, but its refutation is lost.
            self.accuse(life.0, incarnation);
            self.double_check(node, now);
            return Verdict::Postpone;
        }
        // Who hears nobody at all is more likely to be cut off than the only one left.
        let is_one_of_many = || self.table.iter().filter(|view| view.state.is_up()).count() > 1;
        let is_alone = self.heard <= since && is_one_of_many();
        if is_alone && is_early { Verdict::Postpone } else { Verdict::Down }
    }

    /// Gives slow peers their time, and an ill node more time for all; a turn that is to end at once ends.
    pub(super) fn stretched(&self, after: Duration, timer: &Timer<Life>) -> Duration {
        if after.is_zero() {
            return after;
        }
        let usual = self.config.probe_rtt;
        let probed = self.probing.map_or(usual, |probing| self.health.patience(probing.node, usual));
        match timer {
            Timer::SendIndirectProbe { .. } => probed.max(after),
            // The rest of the interval is for the indirect probes, which take at least as long.
            Timer::ProbeRandomMember(_) => after.max(after.saturating_sub(usual) + 2 * probed - usual),
            Timer::ChangeSuspectToDown { member_id, .. } => {
                let (node, life) = (member_id.0.node, member_id.0.generation);
                let own_doubt = after * (self.health.stretch() - 1);
                let doubt_left = own_doubt.mul_f64(doubt_left(self.claims.confirmed(node, life)));
                after + doubt_left + 2 * self.health.round_trip(node)
            }
            Timer::RemoveDown(_)
            | Timer::PeriodicAnnounce(_)
            | Timer::PeriodicAnnounceDown(_)
            | Timer::PeriodicGossip(_) => after,
        }
    }

    /// Returns what is due `after` a timer of foca's is set that `usual`ly takes less. A suspicion of this node's own
    /// begins with it: the suspect is told, and this node trusts itself less.
    pub(super) fn due(
        &mut self,
        timer: Timer<Life>,
        (usual, after): (Duration, Duration),
        now: Instant,
    ) -> Due {
        let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer else {
            return Due::Foca(timer);
        };
        let (identity, incarnation) = (member_id.0, *incarnation);
        tracing::debug!(node = %identity.node, incarnation, ?after, "probes failed; down after this");
        self.health.worsen();
        self.accuse(identity, incarnation);
        Due::Verdict(timer, now + usual + 2 * self.health.round_trip(identity.node))
    }

    /// Notes which suspects a peer's own probes find silent, too: this node's doubt in itself then counts for less.
    pub(super) fn note_confirmations(&mut self, from: NodeId, members: &[SwimMember], now: Instant) {
        for entry in members.iter().filter(|entry| entry.state != SwimState::Alive) {
            let (node, life) = (entry.identity.node, entry.identity.generation);
            let is_suspect =
                |view: &MemberView| view.state == MemberState::Suspect && view.generation == life;
            let Some(view) = self.table.get(node).copied().filter(is_suspect) else { continue };
            let is_old = entry.state == SwimState::Suspect && entry.incarnation < view.incarnation;
            if is_old || node == from {
                continue;
            }
            if let Some(count) = self.claims.confirm(node, life, from, now) {
                let before = doubt_left(count.saturating_sub(1));
                self.hasten(&view, if before > 0.0 { doubt_left(count) / before } else { 0.0 }, now);
            }
        }
    }

    /// Hastens the verdict about a suspect whose own probe has just failed by what is confirmed already.
    pub(super) fn hasten_confirmed(&mut self, node: NodeId, now: Instant) {
        let Some(view) = self.table.get(node).copied() else { return };
        let count = self.claims.confirmed(node, view.generation);
        if count > 0 {
            self.hasten(&view, doubt_left(count), now);
        }
    }

    /// Leaves a share of the time by which this node's doubt in itself puts off its verdict about a suspect. The suspect
    /// has the usual time in any case, and no verdict falls while answers wait to be read.
    fn hasten(&mut self, suspect: &MemberView, share: f64, now: Instant) {
        let life = Life(Identity { node: suspect.node, generation: suspect.generation });
        self.timers.move_verdicts(&life, |due, earliest| {
            let doubt = due.saturating_duration_since(earliest.max(now));
            due - doubt + doubt.mul_f64(share)
        });
    }
}

/// Time until a postponed verdict is looked at again.
pub(super) const RECONSIDER: Duration = Duration::from_millis(500);

/// How many times the usual suspicion lasts at most while this node hears nobody.
const LONGEST_DOUBT: u32 = 4;

/// Returns the share that is left of this node's doubt in itself when so many others find the same (Lifeguard, section
/// IV B: `1 - log(n + 1) / log(K + 1)`, K = 3).
fn doubt_left(confirmed: usize) -> f64 {
    match confirmed {
        0 => 1.0,
        1 => 0.5,
        2 => 0.207_5,
        _ => 0.0,
    }
}
