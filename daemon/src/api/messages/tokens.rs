//! What the local API says about tokens.
//!
//! Owns: the shapes. Must not know: how tokens are made and kept. Driven by: `api` and `cli`.

use std::fmt;
use std::net::SocketAddr;

use gossamer_wire::token::Claims;
use gossamer_wire::{Address, GroupName, NodeName};
use serde::{Deserialize, Serialize};

/// `POST /v1/token`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Seconds it lives.
    pub ttl_seconds: u64,
    /// How many nodes may join; 0 is no limit.
    pub uses: u32,
    /// The group; the issuer's own unless given.
    #[serde(default)]
    pub group: Option<GroupName>,
    /// Pattern of node names; all unless given.
    #[serde(default)]
    pub name: Option<String>,
    /// What the node's certificate shall allow.
    #[serde(default)]
    pub claims: Claims,
    /// Where the issuer can be dialled; found out when empty.
    #[serde(default)]
    pub addresses: Vec<Address>,
}

/// The answer to [`CreateToken`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedToken {
    /// Its id, which may be logged.
    pub id: String,
    /// The secret.
    pub token: String,
    /// The group it admits to.
    pub group: GroupName,
    /// Where joiners will dial.
    pub addresses: Vec<Address>,
    /// Those at which a relay leads to this issuer, over TCP: others cannot dial it.
    #[serde(default)]
    pub relays: Vec<SocketAddr>,
    /// What the operator should know, each a sentence.
    pub warnings: Vec<String>,
}

impl fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A row of `GET /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Its id.
    pub id: String,
    /// The group it admits to.
    pub group: GroupName,
    /// How many may join; 0 is no limit.
    pub uses: u32,
    /// How many did.
    pub used: usize,
    /// Seconds since the Unix epoch of its end.
    pub not_after: u64,
    /// `open`, `used`, `expired` or `revoked`.
    pub state: String,
    /// Who joined with it at this issuer.
    #[serde(default)]
    pub used_by: Vec<TokenUse>,
    /// What certificates of those who join with it allow.
    #[serde(default)]
    pub claims: Claims,
}

/// A node that joined with a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// Its name.
    pub name: NodeName,
    /// Its id.
    pub id: String,
    /// When, seconds since the Unix epoch.
    pub at: u64,
}

/// `POST /v1/token/revoke` and `POST /v1/token/renew`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeToken {
    /// Its id.
    pub id: String,
}

/// The answer to [`RevokeToken`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedToken {
    /// Its id.
    pub id: String,
    /// Who joined with it at this issuer; they stay members.
    pub used_by: Vec<TokenUse>,
    /// Whether other issuers were told.
    pub everywhere: bool,
}
