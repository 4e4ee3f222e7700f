//! Scenario files: what happens to a mesh, and what must hold, in one file for all drivers.
//!
//! Owns: the format, its checks, the order of events, the verdict. Must not know: how a mesh is made or run.
//! Driven by: each driver that is a [`World`], on a virtual clock or a real one: [`play()`] runs the
//! same file in all.
//!
//! A scenario is a TOML file. Unknown keys are refused; every error names the file and the key.
//!
//! ```toml
//! name = "kill-one"            # as the file, without .toml
//! about = "one sentence: what must hold"
//! nodes = 30
//! records = 2                  # each node publishes so many from its start; default 1
//! seeds = [0]                  # nodes the others know at their first start; default node 0
//! start_over = 1.0             # first starts are spread over so many seconds; default 0: all at once
//! idle = 10.0                  # quiet seconds after all see all, whose bytes are the measure; default 0
//!
//! [net]                        # the network between all pairs; every key has a default
//! delay_ms = [0.2, 1.0]        # one way, drawn evenly
//! loss = 0.01                  # share of packets; also of each of loss, duplicate and reorder
//! duplicate = 0.0
//! reorder = 0.0                # share of packets that come up to ten delays late
//!
//! [[step]]                     # in any order
//! at = 5.0                     # seconds since all saw all and `idle` was over
//! every = 4.0                  # optional: again each so many seconds ...
//! times = 10                   # ... so often in all
//! kill = { nodes = "3,7-9" }   # exactly one action
//!
//! [expect]
//! converged_within = 5.0
//! never_down = "others"
//! ```
//!
//! **Sets of nodes**: numbers from 0 and ranges, `"0-4,7"`; `"all"`; `"others"`. In one action with two sets,
//! `"others"` are the nodes not in the other set; in `[expect]` those that no step kills, restarts, suspends or
//! makes leave. Wherever an action takes `nodes` it may also take `pick = n`: so many of the set, drawn anew each
//! time; and `each = s`: not all at once but one each so many seconds.
//!
//! **Actions**: `cut {from, to, both}` (one way unless `both`), `heal {}` (all cuts), `loss {nodes, share}` and
//! `slow {nodes, ms}` (of every packet from and to them; 0 ends it), `kill {nodes}` (SIGKILL), `restart {nodes,
//! disk, down}` (kill where it runs, start after `down` seconds, default 0.1, with the disk "kept", "unsynced":
//! what was not synced is lost, or "lost": identity only), `suspend {nodes}` and `resume {nodes}` (SIGSTOP and
//! SIGCONT; the clock runs on), `clock {nodes, seconds}` (moves the wall clock), `publish {nodes, count}` (more
//! records), `withdraw {nodes, count}` (the oldest), `leave {nodes}` (a daemon told to stop).
//!
//! **Expectations** (`[expect]`), each optional: `joined_within` (seconds from the last first start until all see
//! all), `converged_within` (seconds from the last step until every running node sees exactly the running nodes
//! and every catalog holds exactly their records, one hash; judged also without this key, within
//! [`PATIENCE`]), `never_down` (a set: nobody ever holds one of these for down), `never_down_by` (a set: whose views
//! that is about; default all), `down` (a set: at some time
//! every running node held them for down), `downs_per_view` (nobody holds any one node for down more often),
//! `max_renewals` (of the nodes "others", together), `max_missing` (settled nodes that one settled node does not
//! see, at any half second of the steps; settled is who runs undisturbed for 2 s), `max_bytes_ratio` (bytes that
//! the nodes `bytes_of`, default "others", send per second during the steps, by those of `idle`), `forgotten`
//! (a set: at the end nobody knows them), `settle` (seconds to go on after the last step before the end is
//! judged; default 0).

mod file;
mod nodes;
mod play;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

pub use file::FileError;
pub use play::{Act, Down, NodeState, PATIENCE, Report, World, play};

/// A scenario that has passed all checks: sets are numbers below `nodes`, times are in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// As the file.
    pub name: String,
    /// What must hold, for listings.
    pub about: String,
    /// How many nodes there are; they are numbered from 0.
    pub nodes: usize,
    /// Records each node publishes from its start.
    pub records: usize,
    /// Whom the others know at their first start.
    pub seeds: BTreeSet<usize>,
    /// First starts are spread evenly over this.
    pub start_over: Duration,
    /// Quiet time after all see all, whose bytes are the measure of `max_bytes_ratio`.
    pub idle: Duration,
    /// The network between all pairs.
    pub net: Net,
    /// What happens, in order of time.
    pub steps: Vec<Step>,
    /// What must hold.
    pub expect: Expect,
}

/// A network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Net {
    /// Least and greatest one-way delay.
    pub delay: (Duration, Duration),
    /// Share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// Share of packets that come twice.
    pub duplicate: f64,
    /// Share of packets that come late, after packets sent later.
    pub reorder: f64,
}

/// An action and when: since the beginning of the steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// When.
    pub at: Duration,
    /// On whom, where the action is about nodes.
    pub whom: Whom,
    /// What.
    pub action: Action,
}

/// The nodes an action is about, drawn when it is due.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Whom {
    /// The set.
    pub nodes: BTreeSet<usize>,
    /// So many of them.
    pub pick: Option<usize>,
    /// One each so long; zero: all at once.
    pub each: Duration,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Packets from one set to the other are lost.
    Cut {
        /// Senders.
        from: BTreeSet<usize>,
        /// Receivers.
        to: BTreeSet<usize>,
        /// Whether the other direction is cut too.
        both: bool,
    },
    /// Ends all cuts.
    Heal,
    /// This share of the packets from and to the nodes is lost; replaces the network's. 0 ends it.
    Loss(f64),
    /// Packets from and to the nodes take this much longer. Zero ends it.
    Slow(Duration),
    /// Ends the nodes at once and without a word.
    Kill,
    /// Kills the nodes that run and starts them again.
    Restart {
        /// What the next start finds.
        disk: Disk,
        /// How long they are away.
        down: Duration,
    },
    /// Stops the nodes as SIGSTOP does: no code runs, clocks go on.
    Suspend,
    /// Ends that.
    Resume,
    /// Moves the wall clock of the nodes by seconds.
    Clock(i64),
    /// The nodes publish so many records more.
    Publish(usize),
    /// The nodes withdraw so many records, the oldest first.
    Withdraw(usize),
    /// The nodes say goodbye and end.
    Leave,
}

/// What a start finds on its disk. The identity is always kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Everything.
    Kept,
    /// What had been synced when the node died.
    Unsynced,
    /// Nothing else.
    Lost,
}

/// What must hold. The end is always judged: see the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expect {
    /// From the last first start until all see all.
    pub joined_within: Option<Duration>,
    /// From the last step until all agree; [`PATIENCE`] by default.
    pub converged_within: Option<Duration>,
    /// Nobody ever holds one of these for down.
    pub never_down: Option<Judged>,
    /// Whose views `never_down` is about; `None` for all.
    pub never_down_by: Option<BTreeSet<usize>>,
    /// At some time every other running node held these for down.
    pub down: BTreeSet<usize>,
    /// Nobody holds any one node for down more often.
    pub downs_per_view: Option<usize>,
    /// Identities that undisturbed nodes renewed, together.
    pub max_renewals: Option<u64>,
    /// Settled nodes that one settled node does not see.
    pub max_missing: Option<usize>,
    /// Bytes per second while steps happen, by those of quiet.
    pub max_bytes_ratio: Option<f64>,
    /// Whose bytes.
    pub bytes_of: Judged,
    /// Nobody knows these at the end.
    pub forgotten: BTreeSet<usize>,
    /// How long to go on after the last step.
    pub settle: Duration,
}

/// The nodes that are judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Judged {
    /// Those no step killed, restarted, suspended or made leave.
    #[default]
    Others,
    /// These.
    These(BTreeSet<usize>),
}
