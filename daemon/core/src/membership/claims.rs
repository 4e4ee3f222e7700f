//! What others claim against members, and how far they are believed.
//!
//! Owns: the claims that wait for this node's own probe of the accused, what became of recent probes, how often
//! each accuser was wrong. Must not know: foca, links. Driven by: `Membership`, for each claim and each answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use gossamer_wire::swim::SwimMember;
use gossamer_wire::{Generation, NodeId};

/// How a claim came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// In a packet: the peer vouches for it, because it passes on only what its own probe confirmed.
    News,
    /// In a full state: what the peer has believed for a while, for example since a partition.
    State,
}

/// A claim that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The peer that made it.
    pub(super) accuser: NodeId,
    /// How it came.
    pub(super) kind: Kind,
    /// What it says.
    pub(super) entry: SwimMember,
}

/// What a claim calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Probe the accused with this number; the claim waits.
    Ask(u64),
    /// Nothing: it waits for a probe under way, or its accuser has lost its say.
    Nothing,
    /// Act: this node's own probe has failed.
    Believe,
    /// The accused has just answered.
    Refuted,
}

/// The book of claims.
#[derive(Debug, Default)]
pub(super) struct Claims {
    cases: BTreeMap<NodeId, Case>,
    accusers: BTreeMap<NodeId, Accuser>,
    last_number: u64,
}

/// What becomes of a probe whose time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was answered, or is not the last one.
    Nothing,
    /// Only one peer says so and nobody that was asked has seen anything: ask once more, with this number.
    AskAgain(u64),
    /// These claims count.
    Believe(Vec<Claim>),
    /// Helpers have seen the accused live.
    Refuted,
}

/// One accused member.
#[derive(Debug)]
struct Case {
    /// Its life and incarnation when the probe went out: anything newer is an answer.
    known: (Generation, u16),
    number: u64,
    probe: Probe,
    claims: Vec<Claim>,
    /// Peers whose own probes of this life have failed, too.
    confirmed: BTreeSet<NodeId>,
    /// Who was asked to probe it for this node, and has not answered; `None` while this node asks itself.
    helpers: Option<Vec<NodeId>>,
    /// Helpers it has answered.
    seen: usize,
    /// Whether helpers were asked for the second time.
    is_repeated: bool,
}

#[derive(Clone, Copy, Debug)]
enum Probe {
    UnderWay,
    Failed(Instant),
    Answered(Instant),
}

#[derive(Debug, Default)]
struct Accuser {
    /// When its last claims were refuted, oldest first.
    refuted: VecDeque<Instant>,
    is_named: bool,
}

impl Claims {
    /// Takes in a claim about a member known as `known` and says what to do about it.
    pub(super) fn hear(&mut self, claim: Claim, known: (Generation, u16), now: Instant) -> Step {
        if self.is_named(claim.accuser, now) {
            return Step::Nothing;
        }
        let accused = claim.entry.identity.node;
        if let Some(case) = self.case(accused, known.0, now) {
            return match case.probe {
                Probe::Failed(_) => {
                    case.note(&claim);
                    Step::Believe
                }
                Probe::Answered(_) => Step::Refuted,
                Probe::UnderWay => {
                    case.hold(claim);
                    Step::Nothing
                }
            };
        }
        let number = self.open(accused, known);
        if let Some(case) = self.cases.get_mut(&accused) {
            case.hold(claim);
        }
        Step::Ask(number)
    }

    /// Notes that a peer finds a suspect silent, too, and returns how many do; `None` when that changes nothing: the peer
    /// has said so before or has lost its say, or this node's own probe has not failed yet.
    pub(super) fn confirm(
        &mut self,
        node: NodeId,
        life: Generation,
        peer: NodeId,
        now: Instant,
    ) -> Option<usize> {
        if self.is_named(peer, now) {
            return None;
        }
        let case = self.case(node, life, now)?;
        let is_new = case.confirmed.len() < MAX_HELD && case.confirmed.insert(peer);
        (is_new && matches!(case.probe, Probe::Failed(_))).then_some(case.confirmed.len())
    }

    /// Returns how many peers find a life silent, too, if this node's own probe of it has failed.
    pub(super) fn confirmed(&self, node: NodeId, life: Generation) -> usize {
        let case = self.cases.get(&node).filter(|case| case.known.0 == life);
        case.filter(|case| matches!(case.probe, Probe::Failed(_))).map_or(0, |case| case.confirmed.len())
    }

    /// Returns the number to probe a member with for this node's own sake; `None` while one is under way.
    pub(super) fn ask(&mut self, node: NodeId, known: (Generation, u16), now: Instant) -> Option<u64> {
        let is_open = self.case(node, known.0, now).is_some_and(|case| matches!(case.probe, Probe::UnderWay));
        (!is_open).then(|| self.open(node, known))
    }

    /// Whether anything is known of a probe of the member.
    pub(super) fn is_open(&self, node: NodeId) -> bool {
        self.cases.contains_key(&node)
    }

    /// Whether a peer claims something of the member that still waits.
    pub(super) fn is_accused(&self, node: NodeId) -> bool {
        self.cases.get(&node).is_some_and(|case| !case.claims.is_empty())
    }

    /// Whether a peer is among those that claim something of the member.
    pub(super) fn accuses(&self, accuser: NodeId, node: NodeId) -> bool {
        self.cases.get(&node).is_some_and(|case| case.claims.iter().any(|claim| claim.accuser == accuser))
    }

    /// Whether `number` is that of the last probe of the member.
    pub(super) fn is_answer(&self, node: NodeId, number: u64) -> bool {
        self.cases.get(&node).is_some_and(|case| case.number == number)
    }

    /// Whether what is known of a member is newer than what it was probed for.
    pub(super) fn is_outdated(&self, node: NodeId, known: (Generation, u16)) -> bool {
        self.cases.get(&node).is_some_and(|case| known > case.known)
    }

    /// Notes who was asked to probe the member for this node, which has no connection to it.
    pub(super) fn ask_helpers(&mut self, node: NodeId, helpers: Vec<NodeId>) {
        if let Some(case) = self.cases.get_mut(&node) {
            case.helpers = Some(helpers);
        }
    }

    /// Gives the probe under way a new number and forgets whoever was asked so far; `None` when there is none.
    pub(super) fn ask_anew(&mut self, node: NodeId) -> Option<u64> {
        let case = self.cases.get_mut(&node).filter(|case| matches!(case.probe, Probe::UnderWay))?;
        self.last_number += 1;
        (case.number, case.seen) = (self.last_number, 0);
        case.helpers = None;
        Some(case.number)
    }

    /// Notes that a helper has seen this life of the member answer. Whether that settles the case at once: more
    /// have seen it live than say that it does not.
    pub(super) fn vouch(&mut self, helper: NodeId, node: NodeId, life: Generation, number: u8) -> bool {
        let Some(case) = self.cases.get_mut(&node) else { return false };
        let is_it = matches!(case.probe, Probe::UnderWay) && case.known.0 == life;
        let helpers = case.helpers.as_mut().filter(|_| is_it && case.number as u8 == number);
        let Some((helpers, at)) = helpers.and_then(|helpers| {
            let at = helpers.iter().position(|asked| *asked == helper)?;
            Some((helpers, at))
        }) else {
            return false;
        };
        helpers.swap_remove(at);
        case.seen += 1;
        case.seen > case.accusers()
    }

    /// How many helpers have seen the member answer the last probe.
    pub(super) fn seen(&self, node: NodeId) -> usize {
        self.cases.get(&node).map_or(0, |case| case.seen)
    }

    /// Notes that the accused lives and returns the claims that waited.
    pub(super) fn answered(&mut self, node: NodeId, now: Instant) -> Vec<Claim> {
        let Some(case) = self.cases.get_mut(&node) else { return Vec::new() };
        case.probe = Probe::Answered(now);
        case.confirmed.clear();
        std::mem::take(&mut case.claims)
    }

    /// Judges a probe that this node has got no answer to in time. The word of as many helpers as accusers clears
    /// a member, so that no single one can make this node believe anything.
    pub(super) fn conclude(&mut self, node: NodeId, number: u64, now: Instant) -> Outcome {
        let is_it = |case: &&mut Case| case.number == number && matches!(case.probe, Probe::UnderWay);
        let Some(case) = self.cases.get_mut(&node).filter(is_it) else { return Outcome::Nothing };
        if case.seen > 0 && case.seen >= case.accusers() {
            return Outcome::Refuted;
        }
        let is_lone = case.helpers.is_some() && case.seen == 0 && case.accusers() == 1;
        if is_lone && !std::mem::replace(&mut case.is_repeated, true) {
            return self.ask_anew(node).map_or(Outcome::Nothing, Outcome::AskAgain);
        }
        case.probe = Probe::Failed(now);
        Outcome::Believe(std::mem::take(&mut case.claims))
    }

    /// Takes the waiting claims about a later life of the member: its link is gone, so nobody is left to ask.
    pub(super) fn take_later_lives(&mut self, node: NodeId) -> Vec<Claim> {
        let Some(case) = self.cases.get_mut(&node) else { return Vec::new() };
        let (life, _) = case.known;
        let is_later = |claim: &Claim| claim.entry.identity.generation > life;
        let (later, rest) = std::mem::take(&mut case.claims).into_iter().partition(is_later);
        case.claims = rest;
        later
    }

    /// When the member last answered a probe of the present case.
    pub(super) fn answered_at(&self, node: NodeId) -> Option<Instant> {
        match self.cases.get(&node)?.probe {
            Probe::Answered(at) => Some(at),
            Probe::UnderWay | Probe::Failed(_) => None,
        }
    }

    /// Counts a claim that turned out wrong; of several within `every` the first. `true` when this makes its
    /// accuser lose its say, once.
    pub(super) fn blame(&mut self, accuser: NodeId, every: Duration, now: Instant) -> bool {
        let entry = self.accusers.entry(accuser).or_default();
        entry.forget_old(now);
        let is_repeated = |last: &Instant| now.saturating_duration_since(*last) < every;
        if entry.refuted.back().is_some_and(is_repeated) {
            return false;
        }
        entry.refuted.push_back(now);
        if entry.refuted.len() > REFUTED_CLAIMS {
            entry.refuted.pop_front();
        }
        let is_new = entry.refuted.len() == REFUTED_CLAIMS && !entry.is_named;
        entry.is_named |= is_new;
        is_new
    }

    /// Whether a peer's claims count for nothing at present.
    pub(super) fn is_named(&mut self, accuser: NodeId, now: Instant) -> bool {
        let Some(entry) = self.accusers.get_mut(&accuser) else { return false };
        entry.forget_old(now);
        entry.is_named && !entry.refuted.is_empty()
    }

    /// Returns the peers whose claims count for nothing, in order of id.
    pub(super) fn named(&self) -> impl Iterator<Item = NodeId> {
        self.accusers.iter().filter(|(_, accuser)| accuser.is_named).map(|(node, _)| *node)
    }

    /// Forgets what no longer matters and returns the peers that have their say again, in order of id.
    pub(super) fn prune(&mut self, now: Instant) -> Vec<NodeId> {
        self.cases.retain(|_, case| case.counts(now));
        let mut forgiven = Vec::new();
        self.accusers.retain(|node, accuser| {
            accuser.forget_old(now);
            let is_over = accuser.refuted.is_empty();
            if is_over && accuser.is_named {
                forgiven.push(*node);
            }
            !is_over
        });
        forgiven
    }

    fn open(&mut self, node: NodeId, known: (Generation, u16)) -> u64 {
        self.last_number += 1;
        let number = self.last_number;
        let (claims, confirmed) = match self.cases.remove(&node) {
            Some(case) if case.known.0 == known.0 => (case.claims, case.confirmed),
            Some(case) => (case.claims, BTreeSet::new()),
            None => Default::default(),
        };
        let case = Case {
            known,
            number,
            probe: Probe::UnderWay,
            claims,
            confirmed,
            helpers: None,
            seen: 0,
            is_repeated: false,
        };
        self.cases.insert(node, case);
        number
    }

    /// Returns the case of a life if its outcome still counts.
    fn case(&mut self, node: NodeId, life: Generation, now: Instant) -> Option<&mut Case> {
        self.cases.get_mut(&node).filter(|case| case.known.0 == life && case.counts(now))
    }
}

impl Case {
    fn counts(&self, now: Instant) -> bool {
        let (at, lasts) = match self.probe {
            Probe::UnderWay => return true,
            Probe::Failed(at) => (at, FAILURE_COUNTS),
            Probe::Answered(at) => (at, ANSWER_COUNTS),
        };
        now.saturating_duration_since(at) < lasts
    }

    /// How many vouch for what they claim. States do not count: they tell what was believed, perhaps since long.
    fn accusers(&self) -> usize {
        self.claims.iter().filter(|claim| claim.kind == Kind::News).count()
    }

    /// Notes who makes a claim it vouches for.
    fn note(&mut self, claim: &Claim) {
        if claim.kind == Kind::News && self.confirmed.len() < MAX_HELD {
            self.confirmed.insert(claim.accuser);
        }
    }

    /// Keeps one claim per accuser, the gravest.
    fn hold(&mut self, claim: Claim) {
        self.note(&claim);
        match self.claims.iter_mut().find(|held| held.accuser == claim.accuser) {
            Some(held) => {
                if held.entry.state <= claim.entry.state {
                    *held = claim;
                }
            }
            None => {
                if self.claims.len() < MAX_HELD {
                    self.claims.push(claim);
                }
            }
        }
    }
}

impl Accuser {
    fn forget_old(&mut self, now: Instant) {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) >= REFUTED_WITHIN;
        while self.refuted.front().is_some_and(is_old) {
            self.refuted.pop_front();
        }
    }
}

/// Refuted claims after which a peer's claims count for nothing: what a second peer claims counts anyway
/// (design section 5). Five, because loss and pauses can make an honest node wrong now and then.
pub const REFUTED_CLAIMS: usize = 5;
/// Time in which they must come, and after the last of which they are forgotten.
const REFUTED_WITHIN: Duration = Duration::from_secs(600);

/// How long an answer speaks for the accused. Bounds probes under a flood of claims to four a second; short,
/// because a node may die right after it.
const ANSWER_COUNTS: Duration = Duration::from_millis(250);

/// How long a probe that failed lets further claims pass: the suspicion that follows, stretched to its longest.
const FAILURE_COUNTS: Duration = Duration::from_secs(15);

/// Most accusers remembered per case; all claims of others say the same.
const MAX_HELD: usize = 16;

#[cfg(test)]
mod tests {
    use gossamer_wire::swim::{Identity, SwimState};

    use super::super::tests::start;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIFE: Generation = Generation { epoch: 1, renewals: 0 };

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn claim(accuser: u8, state: SwimState) -> Claim {
        let identity = Identity { node: node(9), generation: LIFE };
        let entry = SwimMember { identity, incarnation: 0, state };
        Claim { accuser: node(accuser), kind: Kind::News, entry }
    }

    fn hear(claims: &mut Claims, accuser: u8, now: Instant) -> Step {
        claims.hear(claim(accuser, SwimState::Down), (LIFE, 0), now)
    }

    #[test]
    fn the_first_claim_asks_and_the_others_wait() {
        let (now, mut claims) = (start(), Claims::default());
        assert_eq!(hear(&mut claims, 1, now), Step::Ask(1));
        assert_eq!(hear(&mut claims, 2, now), Step::Nothing);
        assert_eq!(hear(&mut claims, 1, now), Step::Nothing);
        assert_eq!(claims.conclude(node(9), 2, now), Outcome::Nothing, "another probe");
        let held = vec![claim(1, SwimState::Down), claim(2, SwimState::Down)];
        assert_eq!(claims.conclude(node(9), 1, now), Outcome::Believe(held));
        assert_eq!(hear(&mut claims, 3, now + SECOND), Step::Believe);
        assert_eq!(hear(&mut claims, 3, now + 20 * SECOND), Step::Ask(2));
    }

    #[test]
    fn peers_confirm_once_each_and_only_what_this_nodes_own_probe_has_found() {
        let (now, mut claims) = (start(), Claims::default());
        let confirm = |claims: &mut Claims, peer| claims.confirm(node(9), LIFE, node(peer), now);
        assert_eq!(confirm(&mut claims, 1), None, "nothing is known of it");
        let number = claims.ask(node(9), (LIFE, 0), now).expect("it is asked");
        assert_eq!(confirm(&mut claims, 1), None, "it may answer");
        claims.conclude(node(9), number, now);
        assert_eq!((claims.confirmed(node(9), LIFE), confirm(&mut claims, 1)), (1, None), "once each");
        assert_eq!(confirm(&mut claims, 2), Some(2));
        for second in 0..REFUTED_CLAIMS {
            claims.blame(node(3), Duration::ZERO, now + SECOND * second as u32);
        }
        assert_eq!(confirm(&mut claims, 3), None, "it has lost its say");
        let later = Generation { epoch: 2, renewals: 0 };
        assert_eq!(claims.confirm(node(9), later, node(4), now), None, "another life");
        claims.answered(node(9), now);
        assert_eq!(claims.confirmed(node(9), LIFE), 0);
    }

    #[test]
    fn an_answer_speaks_for_the_accused_for_a_moment() {
        let (now, mut claims) = (start(), Claims::default());
        hear(&mut claims, 1, now);
        assert!(claims.is_answer(node(9), 1) && !claims.is_answer(node(9), 2));
        assert_eq!(claims.answered(node(9), now).len(), 1);
        assert_eq!(hear(&mut claims, 1, now + SECOND / 10), Step::Refuted);
        assert_eq!(hear(&mut claims, 1, now + SECOND), Step::Ask(2));
        assert_eq!(claims.conclude(node(9), 1, now + SECOND), Outcome::Nothing, "an earlier probe");
    }

    #[test]
    fn the_gravest_claim_of_each_accuser_is_held_and_not_too_many() {
        let (now, mut claims) = (start(), Claims::default());
        for state in [SwimState::Suspect, SwimState::Down, SwimState::Suspect] {
            claims.hear(claim(1, state), (LIFE, 0), now);
        }
        let later = (2..200).map(|accuser| hear(&mut claims, accuser, now));
        assert!(later.eq((2..200).map(|_| Step::Nothing)));
        let held = claims.answered(node(9), now);
        assert_eq!(held.first(), Some(&claim(1, SwimState::Down)));
        assert_eq!(held.len(), MAX_HELD);
    }

    #[test]
    fn five_refuted_claims_in_ten_minutes_name_their_accuser_once() {
        let (now, mut claims) = (start(), Claims::default());
        let blamed = |claims: &mut Claims, seconds| claims.blame(node(1), 5 * SECOND, now + seconds * SECOND);
        assert!([0, 1, 4].iter().all(|seconds| !blamed(&mut claims, *seconds)), "one mistake");
        assert!(
            [10, 20, 30, 604].iter().all(|seconds| !blamed(&mut claims, *seconds)),
            "the first is too old"
        );
        assert!(blamed(&mut claims, 609) && !blamed(&mut claims, 615));
        assert_eq!(hear(&mut claims, 1, now + 616 * SECOND), Step::Nothing);
        assert_eq!(hear(&mut claims, 2, now + 616 * SECOND), Step::Ask(1), "a second peer counts");
        assert_eq!(claims.named().collect::<Vec<_>>(), [node(1)]);
        assert_eq!(claims.prune(now + 1_208 * SECOND), []);
        assert!(!claims.is_named(node(1), now + 1_215 * SECOND));
        assert_eq!(claims.prune(now + 1_215 * SECOND), [node(1)]);
    }

    #[test]
    fn claims_about_a_later_life_go_on_when_nobody_is_left_to_ask() {
        let (now, mut claims) = (start(), Claims::default());
        let mut later = claim(1, SwimState::Alive);
        later.entry.identity.generation = LIFE.renewed();
        hear(&mut claims, 2, now);
        claims.hear(later.clone(), (LIFE, 0), now);
        assert_eq!(claims.take_later_lives(node(9)), [later]);
        assert_eq!(claims.answered(node(9), now), [claim(2, SwimState::Down)]);
    }

    #[test]
    fn what_no_longer_matters_is_forgotten() {
        let (now, mut claims) = (start(), Claims::default());
        hear(&mut claims, 1, now);
        claims.answered(node(9), now);
        claims.blame(node(1), SECOND, now);
        assert_eq!(claims.prune(now + 700 * SECOND), [], "it was never named");
        assert!(claims.cases.is_empty() && claims.accusers.is_empty());
    }
}
