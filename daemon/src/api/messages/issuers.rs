//! What the CLI says and hears of evictions and issuers.
//!
//! Owns: the shapes. Must not know: what is done. Driven by: `api`, and the CLI at the other end.

use serde::{Deserialize, Serialize};

use gossamer_wire::GroupName;

/// `POST /v1/node/evict` and the orders about issuers: which node is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhichNode {
    /// Its name or its id.
    pub node: String,
}

/// `POST /v1/issuer/add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddIssuer {
    /// Name or id of the node.
    pub node: String,
    /// Groups it may admit to; all when there are none.
    #[serde(default)]
    pub groups: Vec<GroupName>,
}

/// `POST /v1/issuer/remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveIssuer {
    /// Name or id of the node.
    pub node: String,
    /// Nothing that its key signed counts any more.
    #[serde(default)]
    pub stolen: bool,
}

/// `POST /v1/issuer/grant`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantNumbers {
    /// Name or id of the node.
    pub node: String,
    /// Statements its issuer may make in all.
    pub numbers: u64,
}

/// The answer to an order about a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderDone {
    /// Name of the node, or its id.
    pub name: String,
    /// Its id.
    pub id: String,
    /// End of the issuer's certificate that was made, seconds since the Unix epoch.
    #[serde(default)]
    pub ends: Option<u64>,
}

/// A row of `GET /v1/issuers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerRow {
    /// Name of the node that holds its key.
    pub name: String,
    /// Hash of its key.
    pub id: String,
    /// Groups it may admit to; all when there are none.
    pub groups: Vec<GroupName>,
    /// `alive`, `suspect`, `down`, `left` or `unknown`: the state of its node.
    pub state: String,
    /// End of its certificate, seconds since the Unix epoch.
    pub certificate_ends: u64,
    /// Statements it has made.
    pub statements: u64,
    /// Statements it may make.
    pub budget: u64,
    /// Two of its statements have one number; it may make no more.
    pub conflicted: bool,
}
