//! Reading a scenario file and checking it.
//!
//! Owns: the keys as they are written, and every complaint. Must not know: how a scenario is run.
//! Driven by: [`Scenario::load`] and [`Scenario::parse`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::nodes::{self, Words};
use super::{Action, Disk, Expect, Judged, Net, Scenario, Step, Whom};

/// Why a scenario file cannot be used. Always the file's fault.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// It is no TOML, or has keys that do not belong there.
    #[error("{file}: {why}")]
    Malformed {
        /// The file.
        file: String,
        /// Line, column and key.
        why: toml::de::Error,
    },
    /// A value makes no sense.
    #[error("{file}: `{key}`: {why}")]
    Value {
        /// The file.
        file: String,
        /// The key, with its path.
        key: String,
        /// What is wrong, and what would be right.
        why: String,
    },
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let text =
            fs::read_to_string(path).map_err(|why| FileError::Unreadable { path: path.into(), why })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Returns the scenario files of a folder, in order.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn files(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
        let unreadable = |why| FileError::Unreadable { path: folder.into(), why };
        let entries =
            fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(unreadable)?;
        let mut files: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
        files.retain(|path| path.extension().is_some_and(|end| end == "toml"));
        files.sort();
        Ok(files)
    }

    /// Reads a text; `file` is named in errors.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn parse(file: &str, text: &str) -> Result<Self, FileError> {
        let written: Written =
            toml::from_str(text).map_err(|why| FileError::Malformed { file: file.to_owned(), why })?;
        written.check().map_err(|(key, why)| FileError::Value { file: file.to_owned(), key, why })
    }
}

/// A key and what is wrong with it.
type Fault = (String, String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    about: String,
    nodes: usize,
    #[serde(default = "one")]
    records: usize,
    #[serde(default = "first")]
    seeds: Vec<usize>,
    #[serde(default)]
    start_over: f64,
    #[serde(default)]
    idle: f64,
    #[serde(default)]
    net: WrittenNet,
    #[serde(default, rename = "step")]
    steps: Vec<WrittenStep>,
    #[serde(default)]
    expect: WrittenExpect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenNet {
    delay_ms: [f64; 2],
    loss: f64,
    duplicate: f64,
    reorder: f64,
}

impl Default for WrittenNet {
    fn default() -> Self {
        Self { delay_ms: [0.2, 1.0], loss: 0.0, duplicate: 0.0, reorder: 0.0 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStep {
    at: f64,
    every: Option<f64>,
    times: Option<u32>,
    cut: Option<Cut>,
    heal: Option<Nothing>,
    loss: Option<Share>,
    slow: Option<Slow>,
    kill: Option<Plain>,
    restart: Option<Restart>,
    suspend: Option<Plain>,
    resume: Option<Plain>,
    clock: Option<Clock>,
    publish: Option<Count>,
    withdraw: Option<Count>,
    leave: Option<Plain>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cut {
    from: String,
    to: String,
    #[serde(default)]
    both: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    nodes: String,
    pick: Option<usize>,
    #[serde(default)]
    each: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Share {
    nodes: String,
    share: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slow {
    nodes: String,
    ms: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restart {
    nodes: String,
    pick: Option<usize>,
    #[serde(default)]
    each: f64,
    #[serde(default)]
    disk: WrittenDisk,
    #[serde(default = "moment")]
    down: f64,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenDisk {
    #[default]
    Kept,
    Unsynced,
    Lost,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    nodes: String,
    seconds: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    nodes: String,
    pick: Option<usize>,
    #[serde(default)]
    each: f64,
    count: usize,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenExpect {
    joined_within: Option<f64>,
    converged_within: Option<f64>,
    never_down: Option<String>,
    never_down_by: Option<String>,
    down: Option<String>,
    downs_per_view: Option<usize>,
    max_renewals: Option<u64>,
    max_missing: Option<usize>,
    max_bytes_ratio: Option<f64>,
    bytes_of: Option<String>,
    forgotten: Option<String>,
    #[serde(default)]
    settle: f64,
}

impl Written {
    fn check(self) -> Result<Scenario, Fault> {
        if !(2..=MOST_NODES).contains(&self.nodes) {
            return Err(fault("nodes", format!("{} is not 2 to {MOST_NODES}", self.nodes)));
        }
        if let Some(seed) = self.seeds.iter().find(|seed| **seed >= self.nodes) {
            return Err(fault("seeds", format!("there is no node {seed}")));
        }
        if self.seeds.is_empty() {
            return Err(fault("seeds", "at least one node must be known to the others".to_owned()));
        }
        let mut steps = Vec::new();
        for (at, step) in self.steps.into_iter().enumerate() {
            let number = at + 1;
            steps
                .extend(step.check(self.nodes).map_err(|(key, why)| (format!("step {number}: {key}"), why))?);
        }
        steps.sort_by_key(|step| step.at);
        let idle = seconds("idle", self.idle)?;
        let expect = self.expect.check(self.nodes).map_err(|(key, why)| (format!("expect.{key}"), why))?;
        if expect.max_bytes_ratio.is_some() && idle.is_zero() {
            return Err(fault("expect.max_bytes_ratio", "needs `idle` seconds to compare with".to_owned()));
        }
        Ok(Scenario {
            name: self.name,
            about: self.about,
            nodes: self.nodes,
            records: self.records,
            seeds: self.seeds.into_iter().collect(),
            start_over: seconds("start_over", self.start_over)?,
            idle,
            net: self.net.check()?,
            steps,
            expect,
        })
    }
}

impl WrittenNet {
    fn check(self) -> Result<Net, Fault> {
        let [least, most] = self.delay_ms;
        if least > most {
            return Err(fault("net.delay_ms", "the first is the least".to_owned()));
        }
        let delay = |ms: f64| seconds("net.delay_ms", ms / 1_000.0);
        Ok(Net {
            delay: (delay(least)?, delay(most)?),
            loss: share("net.loss", self.loss)?,
            duplicate: share("net.duplicate", self.duplicate)?,
            reorder: share("net.reorder", self.reorder)?,
        })
    }
}

impl WrittenStep {
    /// Returns the step once for each time it happens.
    fn check(self, nodes: usize) -> Result<Vec<Step>, Fault> {
        let at = seconds("at", self.at)?;
        let (every, times) = match (self.every, self.times) {
            (Some(every), Some(times)) if times > 0 => (seconds("every", every)?, times),
            (None, None) => (Duration::ZERO, 1),
            _ => return Err(fault("every", "`every` and `times` (at least 1) go together".to_owned())),
        };
        let (whom, action) = self.action(nodes)?;
        let step = |number: u32| Step { at: at + every * number, whom: whom.clone(), action: action.clone() };
        Ok((0..times).map(step).collect())
    }

    fn action(self, nodes: usize) -> Result<(Whom, Action), Fault> {
        let mut found: Vec<Result<(Whom, Action), Fault>> = Vec::new();
        found.extend(self.cut.map(|cut| cut.check(nodes)));
        found.extend(self.heal.map(|Nothing {}| Ok((Whom::default(), Action::Heal))));
        found.extend(self.loss.map(|loss| {
            let share = share("loss.share", loss.share)?;
            Ok((whom("loss", &loss.nodes, None, 0.0, nodes)?, Action::Loss(share)))
        }));
        found.extend(self.slow.map(|slow| {
            let more = seconds("slow.ms", slow.ms / 1_000.0)?;
            Ok((whom("slow", &slow.nodes, None, 0.0, nodes)?, Action::Slow(more)))
        }));
        found.extend(self.restart.map(|restart| {
            let down = seconds("restart.down", restart.down)?;
            let whom = whom("restart", &restart.nodes, restart.pick, restart.each, nodes)?;
            Ok((whom, Action::Restart { disk: restart.disk.into(), down }))
        }));
        found.extend(
            self.clock.map(|clock| {
                Ok((whom("clock", &clock.nodes, None, 0.0, nodes)?, Action::Clock(clock.seconds)))
            }),
        );
        let counts = [
            ("publish", self.publish, Action::Publish as fn(usize) -> Action),
            ("withdraw", self.withdraw, Action::Withdraw),
        ];
        for (key, count, action) in counts {
            found.extend(count.map(|count| {
                Ok((whom(key, &count.nodes, count.pick, count.each, nodes)?, action(count.count)))
            }));
        }
        let plain = [
            ("kill", self.kill, Action::Kill),
            ("suspend", self.suspend, Action::Suspend),
            ("resume", self.resume, Action::Resume),
            ("leave", self.leave, Action::Leave),
        ];
        for (key, plain, action) in plain {
            found.extend(
                plain.map(|plain| Ok((whom(key, &plain.nodes, plain.pick, plain.each, nodes)?, action))),
            );
        }
        let (Some(only), true) = (found.pop(), found.is_empty()) else {
            return Err(fault("at", "a step has exactly one action".to_owned()));
        };
        only
    }
}

impl Cut {
    fn check(self, nodes: usize) -> Result<(Whom, Action), Fault> {
        let read = |key: &str, text: &str| nodes::parse(text, nodes).map_err(|why| fault(key, why));
        let (from, to) = match (read("cut.from", &self.from)?, read("cut.to", &self.to)?) {
            (Words::These(from), Words::These(to)) => (from, to),
            (Words::These(from), Words::Others) => (from.clone(), others(&from, nodes)),
            (Words::Others, Words::These(to)) => (others(&to, nodes), to),
            (Words::Others, Words::Others) => {
                return Err(fault("cut.to", "one of the two sets must be named".to_owned()));
            }
        };
        Ok((Whom::default(), Action::Cut { from, to, both: self.both }))
    }
}

impl WrittenExpect {
    fn check(self, nodes: usize) -> Result<Expect, Fault> {
        let within = |key: &str, value: Option<f64>| value.map(|value| seconds(key, value)).transpose();
        let judged = |key: &str, text: Option<String>| -> Result<_, Fault> {
            let words = text.map(|text| nodes::parse(&text, nodes).map_err(|why| fault(key, why)));
            Ok(words.transpose()?.map(|words| match words {
                Words::Others => Judged::Others,
                Words::These(set) => Judged::These(set),
            }))
        };
        let named = |key: &str, text: Option<String>| match judged(key, text)? {
            None => Ok(BTreeSet::new()),
            Some(Judged::These(set)) => Ok(set),
            Some(Judged::Others) => Err(fault(key, "the nodes must be named".to_owned())),
        };
        Ok(Expect {
            joined_within: within("joined_within", self.joined_within)?,
            converged_within: within("converged_within", self.converged_within)?,
            never_down: judged("never_down", self.never_down)?,
            never_down_by: match self.never_down_by {
                Some(text) => Some(named("never_down_by", Some(text))?),
                None => None,
            },
            down: named("down", self.down)?,
            downs_per_view: self.downs_per_view,
            max_renewals: self.max_renewals,
            max_missing: self.max_missing,
            max_bytes_ratio: self.max_bytes_ratio,
            bytes_of: judged("bytes_of", self.bytes_of)?.unwrap_or_default(),
            forgotten: named("forgotten", self.forgotten)?,
            settle: seconds("settle", self.settle)?,
        })
    }
}

impl From<WrittenDisk> for Disk {
    fn from(written: WrittenDisk) -> Self {
        match written {
            WrittenDisk::Kept => Self::Kept,
            WrittenDisk::Unsynced => Self::Unsynced,
            WrittenDisk::Lost => Self::Lost,
        }
    }
}

fn whom(key: &str, text: &str, pick: Option<usize>, each: f64, nodes: usize) -> Result<Whom, Fault> {
    let Words::These(set) = nodes::parse(text, nodes).map_err(|why| fault(&format!("{key}.nodes"), why))?
    else {
        return Err(fault(&format!("{key}.nodes"), "the nodes must be named".to_owned()));
    };
    if pick.is_some_and(|pick| pick == 0 || pick > set.len()) {
        return Err(fault(
            &format!("{key}.pick"),
            format!("must be 1 to {}, the size of the set", set.len()),
        ));
    }
    Ok(Whom { nodes: set, pick, each: seconds(&format!("{key}.each"), each)? })
}

fn others(set: &BTreeSet<usize>, nodes: usize) -> BTreeSet<usize> {
    (0..nodes).filter(|node| !set.contains(node)).collect()
}

fn seconds(key: &str, value: f64) -> Result<Duration, Fault> {
    let is_sane = (0.0..=LONGEST).contains(&value);
    is_sane
        .then(|| Duration::from_secs_f64(value))
        .ok_or_else(|| fault(key, format!("{value} is not 0 to {LONGEST} seconds")))
}

fn share(key: &str, value: f64) -> Result<f64, Fault> {
    (0.0..=1.0).contains(&value).then_some(value).ok_or_else(|| fault(key, format!("{value} is not 0 to 1")))
}

fn fault(key: &str, why: String) -> Fault {
    (key.to_owned(), why)
}

const fn one() -> usize {
    1
}

fn first() -> Vec<usize> {
    vec![0]
}

const fn moment() -> f64 {
    0.1
}

/// More than any driver can run; catches a slip of the finger.
const MOST_NODES: usize = 100_000;

/// A month: above every time-out of the mesh.
const LONGEST: f64 = 2_678_400.0;
