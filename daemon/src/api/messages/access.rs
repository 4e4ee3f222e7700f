//! What is said about who may call, and about settings that are read again.
//!
//! Owns: the shapes. Must not know: how rules are judged. Driven by: `api` and `cli`.

use gossamer_wire::{GroupName, InstanceName, Rule, ServiceName};
use serde::{Deserialize, Serialize};

/// The answer to `GET /v1/policy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyShown {
    /// `group` or `deny`: who is admitted where nothing names the caller.
    pub default: String,
    /// Whether who would be denied is admitted and told of.
    pub audit: bool,
    /// What this node exports.
    pub services: Vec<PolicyRow>,
}

/// An instance of [`PolicyShown`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// What `--to` said: `all`, or groups; empty without it.
    pub to: Vec<String>,
    /// What `--allow` said.
    pub allow: Vec<Rule>,
    /// Who may call it, in words.
    pub admits: String,
}

/// The answer to `GET /v1/policy/test`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyTested {
    /// Who would call.
    pub who: String,
    /// Its group.
    pub group: GroupName,
    /// Whether it may call at least one instance.
    pub admitted: bool,
    /// One row for each instance of the service on this node.
    pub verdicts: Vec<VerdictRow>,
}

/// An instance of [`PolicyTested`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictRow {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// `allowed`, `audited` (let in by `policy.audit` only) or `denied`.
    pub verdict: String,
    /// What decided.
    pub ground: String,
}

/// The answer to `POST /v1/reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys whose values count from now on.
    pub applied: Vec<ReloadedKey>,
    /// Keys whose values count after a restart.
    pub restart: Vec<ReloadedKey>,
}

/// A key of [`Reloaded`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadedKey {
    /// The key.
    pub key: String,
    /// Its value, as the file would hold it.
    pub value: String,
}
