//! The way of a name, as the local API explains it.
//!
//! Owns: its shape. Must not know: how it is found out. Driven by: `api` and `cli`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The answer to `GET /v1/trace`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// The name in full.
    pub name: String,
    /// What DNS answers for it here.
    pub addresses: Vec<IpAddr>,
    /// Its parts, in the order in which a connection passes them.
    pub legs: Vec<Leg>,
    /// Its instances, those a flow would try first.
    pub candidates: Vec<CandidateRow>,
    /// The flow that was opened, as in the access lines of both nodes.
    pub flow: Option<String>,
    /// What is to be mended first.
    pub broken: Option<BrokenLeg>,
}

/// A part of the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// `host`, `name`, `visibility`, `port`, `vip`, `dns`, `candidates`, `policy`, `path`, `tls`, `backend`.
    pub leg: String,
    /// How it stands.
    pub state: LegState,
    /// What was found.
    pub detail: String,
    /// How long it took, microseconds.
    #[serde(default)]
    pub took_us: Option<u64>,
}

/// How a part of the way stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LegState {
    /// It is well.
    Ok,
    /// It is not.
    Broken,
    /// It is out of the ordinary.
    Note,
    /// It was not looked at.
    Skipped,
}

/// Where the way ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenLeg {
    /// Which part.
    pub leg: String,
    /// The cause.
    pub detail: String,
    /// What mends it.
    pub fix: String,
    /// What kind of failure it is.
    pub kind: BrokenKind,
}

/// A kind of failure; each has an exit code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrokenKind {
    /// What was named does not exist for this node: 4.
    NotFound,
    /// It is denied, or hidden: 5.
    Denied,
    /// Anything else: 1.
    Failed,
}

/// An instance of a traced name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateRow {
    /// In which turn a flow would try it, from 1; `None` when none would.
    pub turn: Option<usize>,
    /// The instance.
    pub instance: String,
    /// Its node.
    pub node: String,
    /// That node's group.
    pub group: String,
    /// `usable`, `down`, `expired`, `failing` or `drained`.
    pub state: String,
    /// Why it has its turn, or none.
    pub why: String,
    /// What it answered; `None` when it was not asked.
    pub answer: Option<String>,
}
