//! Playing a scenario in a world and judging it.
//!
//! Owns: when each act is due, what is compared with what, the words of each failure. Must not know: what the
//! world is made of. Driven by: [`play()`], for each scenario and seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;

use super::{Action, Disk, Judged, Scenario, Step, Whom};

/// One thing a world does, on resolved nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Starts a node that is not running; it publishes all its records.
    Start {
        /// The node.
        node: usize,
        /// What it finds.
        disk: Disk,
    },
    /// Ends a node without a word.
    Kill(usize),
    /// Stops a node as SIGSTOP does.
    Suspend(usize),
    /// Lets a suspended node run.
    Resume(usize),
    /// Tells a node to stop.
    Leave(usize),
    /// Loses every packet of one set to another.
    Cut {
        /// Senders.
        from: BTreeSet<usize>,
        /// Receivers.
        to: BTreeSet<usize>,
    },
    /// Ends all cuts.
    Heal,
    /// Loses a share of the packets from and to the nodes; 0 gives them back to the network's own share.
    Loss {
        /// The nodes.
        nodes: BTreeSet<usize>,
        /// 0 to 1.
        share: f64,
    },
    /// Delays packets from and to the nodes.
    Slow {
        /// The nodes.
        nodes: BTreeSet<usize>,
        /// On top of the network's own delay, one way.
        more: Duration,
    },
    /// Moves a wall clock.
    Clock {
        /// Whose.
        node: usize,
        /// How far.
        seconds: i64,
    },
    /// A node has so many records more, from its present or next start on.
    Publish {
        /// The node.
        node: usize,
        /// How many.
        count: usize,
    },
    /// A node has so many records less, the oldest ones.
    Withdraw {
        /// The node.
        node: usize,
        /// How many.
        count: usize,
    },
}

/// A mesh that scenarios happen to: simulated or real. Times count from the making of the world.
pub trait World {
    /// Lets the mesh run until a moment, which may be now.
    ///
    /// # Errors
    /// The world's own fault.
    fn run_to(&mut self, at: Duration) -> Result<()>;

    /// Does something now.
    ///
    /// # Errors
    /// This world cannot do it.
    fn act(&mut self, act: &Act) -> Result<()>;

    /// Returns what a node that runs holds and sees.
    ///
    /// # Errors
    /// The node does not answer.
    fn state(&mut self, node: usize) -> Result<NodeState>;

    /// Returns every "this member is down" since the last call, of all nodes that ran, in order of time.
    fn take_downs(&mut self) -> Vec<Down>;

    /// Returns all bytes a node has sent, headers of UDP and IP included, over all its lives.
    fn bytes_sent(&mut self, node: usize) -> u64;

    /// Returns a hash over all that was sent, where one seed gives one trace.
    fn trace(&self) -> Option<u64>;
}

/// What a running node holds and sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Equal on two nodes if and only if they hold the same adverts.
    pub catalog: u64,
    /// Records it would answer with: those of members, its own included.
    pub served: usize,
    /// Other members it holds for alive or suspect, in order.
    pub up: Vec<usize>,
    /// Other nodes of which it knows anything at all, in order.
    pub known: Vec<usize>,
    /// How often it had to renew its identity, over all its lives.
    pub renewals: u64,
}

/// A node holds a member for down. One that left is not down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Down {
    /// When.
    pub at: Duration,
    /// Who holds it.
    pub by: usize,
    /// Whom.
    pub node: usize,
}

/// What came of a scenario with one seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The scenario.
    pub name: String,
    /// The seed.
    pub seed: u64,
    /// Hash over all that was sent.
    pub trace: Option<u64>,
    /// What did not hold, in order of time; empty is good.
    pub faults: Vec<String>,
    /// From the last first start until all saw all.
    pub joined: Option<Duration>,
    /// From the last step until all agreed.
    pub converged: Option<Duration>,
    /// How long the run took, in the world's time.
    pub took: Duration,
    /// Nodes of the set of `never_down` that somebody held for down, by how many.
    pub false_downs: BTreeMap<usize, usize>,
    /// Renewals of undisturbed nodes.
    pub renewals: u64,
    /// Bytes per node and second in quiet and during the steps, where measured.
    pub rates: Option<(f64, f64)>,
    /// Most settled nodes that a settled node did not see, where measured.
    pub missing: Option<usize>,
}

impl Report {
    /// Whether everything held.
    pub fn holds(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |time: Option<Duration>| match time {
            Some(time) => format!("{:.1} s", time.as_secs_f64()),
            None => "never".to_owned(),
        };
        write!(f, "{} seed {}: ", self.name, self.seed)?;
        write!(f, "joined {}, converged {}", seconds(self.joined), seconds(self.converged))?;
        write!(f, ", {} false downs, {} renewals", self.false_downs.len(), self.renewals)?;
        if let Some((quiet, busy)) = self.rates {
            write!(f, ", {quiet:.0} then {busy:.0} B/s per node")?;
        }
        if let Some(missing) = self.missing {
            write!(f, ", at most {missing} missing")?;
        }
        self.faults.iter().try_for_each(|fault| write!(f, "; FAULT: {fault}"))
    }
}

/// How long to wait for what has no limit of its own in the file.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the steps of a scenario and judges what it expects. The seed draws what a step picks; the world has its
/// own way to take it.
///
/// # Errors
/// The world cannot do what a step asks for. What does not hold is no error: see [`Report::faults`].
pub fn play(scenario: &Scenario, seed: u64, world: &mut dyn World) -> Result<Report> {
    let lives = vec![Life::default(); scenario.nodes];
    let records = vec![scenario.records; scenario.nodes];
    let report = Report { name: scenario.name.clone(), seed, ..Report::default() };
    let rng = StdRng::seed_from_u64(seed);
    let mut play = Play {
        scenario,
        world,
        rng,
        now: Duration::ZERO,
        due: BTreeMap::new(),
        acts: 0,
        lives,
        records,
        suspicious: 0,
        downs: BTreeMap::new(),
        report,
    };
    play.run()?;
    Ok(play.report)
}

struct Play<'a> {
    scenario: &'a Scenario,
    world: &'a mut dyn World,
    rng: StdRng,
    now: Duration,
    /// Acts by time and order.
    due: BTreeMap<(Duration, u64), Due>,
    acts: u64,
    lives: Vec<Life>,
    records: Vec<usize>,
    /// Who disagreed last: the first to look at again.
    suspicious: usize,
    /// How often who (second) held whom (first) for down.
    downs: BTreeMap<(usize, usize), usize>,
    report: Report,
}

#[derive(Clone, Debug)]
enum Due {
    Step(Step),
    Act(Act),
}

/// What the scenario has made of a node.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    runs: bool,
    suspended: bool,
    /// Since when it runs undisturbed.
    since: Duration,
    /// Whether a step has ended or suspended it.
    touched: bool,
}

impl Life {
    const fn is_live(&self) -> bool {
        self.runs && !self.suspended
    }
}

impl Play<'_> {
    fn run(&mut self) -> Result<()> {
        if !self.join()? {
            return self.end();
        }
        let measured = self.judged(&self.scenario.expect.bytes_of);
        let before = self.sent(&measured);
        self.advance(self.now + self.scenario.idle)?;
        let sent = self.sent(&measured);
        let begin = self.now;
        for step in &self.scenario.steps {
            self.plan(begin + step.at, Due::Step(step.clone()));
        }
        while let Some((&(at, _), _)) = self.due.first_key_value() {
            self.advance(at)?;
        }
        let last = self.now;
        if !self.scenario.idle.is_zero() && last > begin {
            let quiet = (sent - before) / self.scenario.idle.as_secs_f64();
            let busy = (self.sent(&measured) - sent) / (last - begin).as_secs_f64();
            self.report.rates = Some((quiet, busy));
        }
        let within = self.scenario.expect.converged_within.unwrap_or(PATIENCE);
        self.report.converged = self.wait_for_agreement("converged", last, within)?;
        if self.report.converged.is_some() && !self.scenario.expect.settle.is_zero() {
            self.advance(last + self.scenario.expect.settle)?;
            if let Some(why) = self.disagreement()? {
                self.report.faults.push(format!("did not stay converged: {why}"));
            }
        }
        self.judge_end()?;
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.note_downs();
        self.judge_downs();
        self.report.took = self.now;
        self.report.trace = self.world.trace();
        Ok(())
    }

    /// Starts all nodes; whether all saw all in time.
    fn join(&mut self) -> Result<bool> {
        let (seeds, count) = (&self.scenario.seeds, self.scenario.nodes);
        let order = seeds.iter().copied().chain((0..count).filter(|node| !seeds.contains(node)));
        let pause = self.scenario.start_over / u32::try_from(count)?;
        for (place, node) in order.enumerate() {
            let at = pause * u32::try_from(place)?;
            self.plan(at, Due::Act(Act::Start { node, disk: Disk::Lost }));
        }
        while let Some((&(at, _), _)) = self.due.first_key_value() {
            self.advance(at)?;
        }
        let within = self.scenario.expect.joined_within.unwrap_or(PATIENCE);
        self.report.joined = self.wait_for_agreement("joined", self.now, within)?;
        Ok(self.report.joined.is_some())
    }

    fn plan(&mut self, at: Duration, due: Due) {
        self.acts += 1;
        self.due.insert((at, self.acts), due);
    }

    /// Runs until a moment and does everything that is due by then.
    fn advance(&mut self, until: Duration) -> Result<()> {
        loop {
            let next = self.due.first_key_value().map_or(until, |((at, _), _)| (*at).min(until));
            self.run_to(next)?;
            match self.due.first_entry().filter(|entry| entry.key().0 <= self.now) {
                Some(entry) => match entry.remove() {
                    Due::Step(step) => self.begin(&step)?,
                    Due::Act(act) => self.act(act)?,
                },
                None if self.now >= until => return Ok(()),
                None => {}
            }
        }
    }

    /// Lets the world run, looking at the views on the way where the scenario asks for that.
    fn run_to(&mut self, at: Duration) -> Result<()> {
        while self.scenario.expect.max_missing.is_some()
            && self.report.joined.is_some()
            && self.now + LOOK < at
        {
            self.now += LOOK;
            self.world.run_to(self.now)?;
            self.look()?;
        }
        self.now = self.now.max(at);
        self.world.run_to(self.now)?;
        self.note_downs();
        Ok(())
    }

    fn begin(&mut self, step: &Step) -> Result<()> {
        let now = self.now;
        let everybody_at_once = match &step.action {
            Action::Cut { from, to, both } => {
                self.act(Act::Cut { from: from.clone(), to: to.clone() })?;
                if *both {
                    self.act(Act::Cut { from: to.clone(), to: from.clone() })?;
                }
                return Ok(());
            }
            Action::Heal => return self.act(Act::Heal),
            Action::Loss(share) => Some(Act::Loss { nodes: step.whom.nodes.clone(), share: *share }),
            Action::Slow(more) => Some(Act::Slow { nodes: step.whom.nodes.clone(), more: *more }),
            _ => None,
        };
        if let Some(act) = everybody_at_once {
            return self.act(act);
        }
        for (place, node) in self.draw(&step.whom).into_iter().enumerate() {
            let at = now + step.whom.each * u32::try_from(place)?;
            match step.action {
                Action::Kill => self.plan(at, Due::Act(Act::Kill(node))),
                Action::Suspend => self.plan(at, Due::Act(Act::Suspend(node))),
                Action::Resume => self.plan(at, Due::Act(Act::Resume(node))),
                Action::Leave => self.plan(at, Due::Act(Act::Leave(node))),
                Action::Clock(seconds) => self.plan(at, Due::Act(Act::Clock { node, seconds })),
                Action::Publish(count) => self.plan(at, Due::Act(Act::Publish { node, count })),
                Action::Withdraw(count) => self.plan(at, Due::Act(Act::Withdraw { node, count })),
                Action::Restart { disk, down } => {
                    self.plan(at, Due::Act(Act::Kill(node)));
                    self.plan(at + down, Due::Act(Act::Start { node, disk }));
                }
                Action::Cut { .. } | Action::Heal | Action::Loss(_) | Action::Slow(_) => {}
            }
        }
        Ok(())
    }

    /// Draws the nodes of a step: `pick` of them are drawn anew each time, in a random order.
    fn draw(&mut self, whom: &Whom) -> Vec<usize> {
        match whom.pick {
            Some(pick) => whom.nodes.iter().copied().sample(&mut self.rng, pick),
            None => whom.nodes.iter().copied().collect(),
        }
    }

    /// Does an act, unless it has no sense: a node that does not run is not killed again.
    fn act(&mut self, act: Act) -> Result<()> {
        let now = self.now;
        let undisturbed = |life: &mut Life, runs: bool, suspended: bool| {
            *life = Life { runs, suspended, since: now, touched: true };
        };
        match act {
            Act::Start { node, .. } => {
                if self.lives[node].runs {
                    return Ok(());
                }
                let touched = self.report.joined.is_some();
                self.lives[node] = Life { runs: true, suspended: false, since: now, touched };
            }
            Act::Kill(node) | Act::Leave(node) => {
                if !self.lives[node].runs {
                    return Ok(());
                }
                undisturbed(&mut self.lives[node], false, false);
            }
            Act::Suspend(node) => {
                if !self.lives[node].is_live() {
                    return Ok(());
                }
                undisturbed(&mut self.lives[node], true, true);
            }
            Act::Resume(node) => {
                if !self.lives[node].suspended {
                    return Ok(());
                }
                undisturbed(&mut self.lives[node], true, false);
            }
            Act::Publish { node, count } => self.records[node] += count,
            Act::Withdraw { node, count } => self.records[node] = self.records[node].saturating_sub(count),
            Act::Cut { .. } | Act::Heal | Act::Loss { .. } | Act::Slow { .. } | Act::Clock { .. } => {}
        }
        self.world.act(&act).with_context(|| format!("{act:?} at {:.1} s", now.as_secs_f64()))
    }

    fn wait_for_agreement(
        &mut self,
        word: &str,
        since: Duration,
        within: Duration,
    ) -> Result<Option<Duration>> {
        loop {
            let Some(why) = self.disagreement()? else { return Ok(Some(self.now - since)) };
            if self.now - since >= within {
                let fault = format!("not {word} within {:.1} s: {why}", within.as_secs_f64());
                self.report.faults.push(fault);
                return Ok(None);
            }
            let next = (self.now + POLL).min(since + within);
            self.advance(next)?;
        }
    }

    /// Returns the first difference between what nodes hold and what is true.
    fn disagreement(&mut self) -> Result<Option<String>> {
        let live: Vec<usize> = (0..self.scenario.nodes).filter(|node| self.lives[*node].is_live()).collect();
        let records: usize = live.iter().map(|node| self.records[*node]).sum();
        let mut catalog = None;
        let first = live.iter().position(|node| *node == self.suspicious).unwrap_or(0);
        for place in 0..live.len() {
            let node = live[(first + place) % live.len()];
            let state = self.world.state(node)?;
            let others: Vec<usize> = live.iter().copied().filter(|other| *other != node).collect();
            let why = if state.up != others {
                Some(difference(node, &state.up, &others))
            } else if state.served != records {
                Some(format!("node {node} serves {} records of {records}", state.served))
            } else if *catalog.get_or_insert(state.catalog) != state.catalog {
                Some(format!("node {node} holds another catalog than node {}", live[first]))
            } else {
                None
            };
            if why.is_some() {
                self.suspicious = node;
                return Ok(why);
            }
        }
        Ok(None)
    }

    /// Counts the settled nodes that each settled node does not see.
    fn look(&mut self) -> Result<()> {
        let is_settled = |life: &Life| life.is_live() && self.now.saturating_sub(life.since) >= SETTLED;
        let settled: Vec<usize> =
            (0..self.scenario.nodes).filter(|node| is_settled(&self.lives[*node])).collect();
        for node in &settled {
            let up: BTreeSet<usize> = self.world.state(*node)?.up.into_iter().collect();
            let missing = settled.iter().filter(|other| *other != node && !up.contains(other)).count();
            self.report.missing = self.report.missing.max(Some(missing));
        }
        Ok(())
    }

    /// Returns the bytes sent so far per node of a set.
    fn sent(&mut self, nodes: &BTreeSet<usize>) -> f64 {
        let bytes: u64 = nodes.iter().map(|node| self.world.bytes_sent(*node)).sum();
        bytes as f64 / nodes.len().max(1) as f64
    }

    fn judged(&self, judged: &Judged) -> BTreeSet<usize> {
        match judged {
            Judged::These(nodes) => nodes.clone(),
            // Before the steps have run, who is going to be touched is known only where nothing is drawn.
            Judged::Others => {
                let planned =
                    self.scenario.steps.iter().filter(|step| step.ends_nodes() && step.whom.pick.is_none());
                let planned: BTreeSet<usize> =
                    planned.flat_map(|step| step.whom.nodes.iter().copied()).collect();
                let is_other = |node: &usize| !self.lives[*node].touched && !planned.contains(node);
                (0..self.scenario.nodes).filter(is_other).collect()
            }
        }
    }

    fn note_downs(&mut self) {
        for down in self.world.take_downs() {
            *self.downs.entry((down.node, down.by)).or_default() += 1;
        }
    }

    fn judge_downs(&mut self) {
        let expect = &self.scenario.expect;
        let spared = self.judged(expect.never_down.as_ref().unwrap_or(&Judged::Others));
        let counts = |by: &usize| expect.never_down_by.as_ref().is_none_or(|these| these.contains(by));
        let fell = self.downs.keys().filter(|(node, by)| spared.contains(node) && counts(by));
        for (node, _) in fell {
            *self.report.false_downs.entry(*node).or_default() += 1;
        }
        if expect.never_down.is_some() {
            let words = self.report.false_downs.iter().map(|(node, by)| format!("{node} (by {by})"));
            let words: Vec<String> = words.collect();
            if !words.is_empty() {
                self.report.faults.push(format!("held for down: {}", words.join(", ")));
            }
        }
        let untouched = self.judged(&Judged::Others);
        for node in &expect.down {
            let missed =
                untouched.iter().filter(|by| *by != node && !self.downs.contains_key(&(*node, **by)));
            let missed = missed.count();
            if missed > 0 {
                self.report.faults.push(format!("{missed} nodes never held node {node} for down"));
            }
        }
        if let Some(limit) = expect.downs_per_view
            && let Some(((node, by), times)) = self.downs.iter().find(|(_, times)| **times > limit)
        {
            self.report.faults.push(format!("node {by} held node {node} for down {times} times"));
        }
    }

    fn judge_end(&mut self) -> Result<()> {
        let expect = &self.scenario.expect;
        let others = self.judged(&Judged::Others);
        for node in &others {
            self.report.renewals += self.world.state(*node)?.renewals;
        }
        let mut faults = Vec::new();
        if let Some(limit) = expect.max_renewals.filter(|limit| self.report.renewals > *limit) {
            faults.push(format!("{} renewals, at most {limit} expected", self.report.renewals));
        }
        if let (Some(limit), Some((quiet, busy))) = (expect.max_bytes_ratio, self.report.rates)
            && busy > limit * quiet
        {
            faults.push(format!("{busy:.0} B/s per node against {quiet:.0} in quiet, at most {limit}x"));
        }
        if let (Some(limit), Some(missing)) = (expect.max_missing, self.report.missing)
            && missing > limit
        {
            faults
                .push(format!("{missing} settled nodes were missing in one view, at most {limit} expected"));
        }
        if !expect.forgotten.is_empty() {
            let live: Vec<usize> =
                (0..self.scenario.nodes).filter(|node| self.lives[*node].is_live()).collect();
            for node in live {
                let known = self.world.state(node)?.known;
                let kept: Vec<_> = known.iter().filter(|node| expect.forgotten.contains(node)).collect();
                if !kept.is_empty() {
                    faults.push(format!("node {node} still knows {kept:?}"));
                }
            }
        }
        self.report.faults.extend(faults);
        Ok(())
    }
}

impl Step {
    const fn ends_nodes(&self) -> bool {
        match self.action {
            Action::Kill | Action::Restart { .. } | Action::Suspend | Action::Leave => true,
            Action::Cut { .. }
            | Action::Heal
            | Action::Loss(_)
            | Action::Slow(_)
            | Action::Resume
            | Action::Clock(_)
            | Action::Publish(_)
            | Action::Withdraw(_) => false,
        }
    }
}

/// Says how a view differs from the truth, with a few names.
fn difference(node: usize, sees: &[usize], runs: &[usize]) -> String {
    let without = |all: &[usize], some: &[usize]| -> Vec<usize> {
        all.iter().copied().filter(|one| some.binary_search(one).is_err()).collect()
    };
    let (missing, dead) = (without(runs, sees), without(sees, runs));
    let few = |nodes: &[usize]| format!("{} ({:?} ..)", nodes.len(), &nodes[..nodes.len().min(3)]);
    match (missing.is_empty(), dead.is_empty()) {
        (false, true) => format!("node {node} does not see {}", few(&missing)),
        (true, _) => format!("node {node} sees {} that do not run", few(&dead)),
        (false, false) => {
            format!("node {node} does not see {} and sees {} that do not run", few(&missing), few(&dead))
        }
    }
}

/// How often agreement is looked for.
const POLL: Duration = Duration::from_millis(100);

/// How often views are looked at while steps happen.
const LOOK: Duration = Duration::from_millis(500);

/// Who runs so long undisturbed is settled.
const SETTLED: Duration = Duration::from_secs(2);
