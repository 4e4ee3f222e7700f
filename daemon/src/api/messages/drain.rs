//! What the local API says about draining.
//!
//! Owns: the shapes. Must not know: how flows end. Driven by: `api` and `cli`.

use gossamer_wire::{InstanceName, ServiceName};
use serde::{Deserialize, Serialize};

/// `POST /v1/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// The service; all of this node that the caller may change, unless given.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// One instance of it; all of this node unless given.
    #[serde(default)]
    pub instance: Option<InstanceName>,
    /// How long the flows may go on that live, seconds; 900 unless given.
    #[serde(default = "quarter_of_an_hour")]
    pub for_seconds: u64,
    /// Let them take flows again.
    #[serde(default)]
    pub undo: bool,
}

const fn quarter_of_an_hour() -> u64 {
    900
}

/// The answer to [`Drain`], and to `GET /v1/drain` without `undo`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Whether they take flows again.
    #[serde(default)]
    pub undone: bool,
    /// What drains on this node, or no longer does.
    pub registrations: Vec<DrainRow>,
}

/// A registration that drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRow {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// Its TCP flows that still live.
    pub flows: usize,
    /// Seconds until they are reset; 0 when that was done.
    pub left_seconds: u64,
}

/// A daemon that stops as soon as its flows have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavingRow {
    /// TCP flows that still live, those of local programs and those of local services.
    pub flows: usize,
    /// Seconds until they are reset.
    pub left_seconds: u64,
}
