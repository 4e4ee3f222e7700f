//! What the local API says of roots.
//!
//! Owns: the shapes, and the text that is never shown. Must not know: how keys are kept. Driven by: `api` and `cli`.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A text that is never shown: `Debug` hides it, and its memory is wiped.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Returns the text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl From<Zeroizing<String>> for Secret {
    fn from(text: Zeroizing<String>) -> Self {
        Self(text)
    }
}

impl From<Secret> for Zeroizing<String> {
    fn from(secret: Secret) -> Self {
        secret.0
    }
}

/// A row of `GET /v1/roots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRow {
    /// Hash of its key.
    pub id: String,
    /// `active` or `retired`.
    pub state: String,
    /// Whether its key lies on this machine.
    pub here: bool,
    /// End of its certificate, seconds since the Unix epoch.
    pub certificate_ends: u64,
}

/// `POST /v1/root/retire`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetireRoot {
    /// Its id.
    pub root: String,
    /// Also if live nodes are cut off.
    #[serde(default)]
    pub force: bool,
}

/// `POST /v1/root/export`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRoot {
    /// What the keys are encrypted with.
    pub passphrase: Secret,
}

/// The answer to [`ExportRoot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedRoot {
    /// The keys, encrypted, PEM.
    pub pem: Secret,
}

/// `POST /v1/root/import`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportRoot {
    /// The keys, encrypted, PEM.
    pub pem: Secret,
    /// What they are encrypted with.
    pub passphrase: Secret,
}

/// `POST /v1/root/remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRoot {
    /// Also a key that was never exported.
    #[serde(default)]
    pub force: bool,
}

/// The answer to an order about roots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootsDone {
    /// Ids of the roots that were meant.
    pub roots: Vec<String>,
}
