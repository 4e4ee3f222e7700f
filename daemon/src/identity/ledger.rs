//! The files of an issuer: tokens it minted, and their uses.
//!
//! Owns: their form on disk. Must not know: what makes a token good. Driven by: the issuer task.

use serde::{Deserialize, Serialize};

use gossamer_core::admission::{Ledger, Use};
use gossamer_wire::token::{Claims, Grant};
use gossamer_wire::{Address, GroupName, NodeName, TokenId};

use crate::store::{Store, StoreError};

const LEDGER: &str = "tokens.json";
/// Tokens remembered; expired ones make room.
pub(super) const MAX_TOKENS: usize = 4_096;

/// A token as its issuer remembers it; the secret text is not kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Minted {
    pub(super) id: String,
    pub(super) group: GroupName,
    pub(super) uses: u32,
    pub(super) not_after: u64,
    pub(super) revoked: bool,
    /// Seconds it was made for.
    #[serde(default)]
    pub(super) lifetime: u64,
    #[serde(default)]
    pub(super) node_pattern: Option<String>,
    #[serde(default)]
    pub(super) claims: Claims,
    #[serde(default)]
    pub(super) addresses: Vec<Address>,
}

impl Minted {
    /// Returns what is remembered of a token that was made for so many seconds.
    pub(super) fn of(grant: &Grant, lifetime: u64) -> Self {
        Self {
            id: grant.id.to_string(),
            group: grant.group.clone(),
            uses: grant.uses,
            not_after: grant.not_after,
            revoked: false,
            lifetime,
            node_pattern: grant.node_pattern.clone(),
            claims: grant.claims.clone(),
            addresses: Address::join(&grant.addresses, &grant.lanes),
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct File {
    version: u32,
    minted: Vec<Minted>,
    uses: Vec<Row>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    token: String,
    node: String,
    name: NodeName,
    at: u64,
}

/// Tokens and uses, in memory and on disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    pub(super) minted: Vec<Minted>,
    pub(super) ledger: Ledger,
}

impl Tokens {
    /// Reads the file; none is an empty ledger.
    ///
    /// # Errors
    /// The file is damaged: the issuer must not run, or a used token would admit again.
    pub(super) fn read(store: &Store) -> Result<Self, StoreError> {
        let file: File = store.read_json(LEDGER)?.unwrap_or_default();
        let damaged = || StoreError::Damaged { path: store.dir().join(LEDGER), why: "an id".to_owned() };
        let use_of = |row: Row| {
            let entry = Use { node: row.node.parse().ok()?, name: row.name, at: row.at };
            Some((row.token.parse::<TokenId>().ok()?, entry))
        };
        let uses: Option<Vec<_>> = file.uses.into_iter().map(use_of).collect();
        Ok(Self { minted: file.minted, ledger: Ledger::restore(uses.ok_or_else(damaged)?) })
    }

    /// Writes the file durably.
    ///
    /// # Errors
    /// The disk refuses; the old file stays.
    pub(super) fn write(&self, store: &Store) -> Result<(), StoreError> {
        let row = |(token, entry): (TokenId, &Use)| Row {
            token: token.to_string(),
            node: entry.node.to_string(),
            name: entry.name.clone(),
            at: entry.at,
        };
        let uses = self.ledger.all().map(row).collect();
        store.write_json(LEDGER, &File { version: 1, minted: self.minted.clone(), uses })
    }

    /// Remembers a token of another issuer that a node joins with here at `wall`, unless the list is full of good ones:
    /// its uses are in the ledger in any case.
    pub(super) fn know(&mut self, grant: &Grant, wall: u64) {
        let id = grant.id.to_string();
        if self.minted.iter().any(|known| known.id == id) || !self.make_room(wall) {
            return;
        }
        self.minted.push(Minted::of(grant, grant.not_after.saturating_sub(wall)));
    }

    /// Forgets tokens that have expired at `wall` when the list is full; their uses stay in the ledger. Others are never
    /// forgotten: a revoked one would be good again. Returns whether there is room for one more.
    pub(super) fn make_room(&mut self, wall: u64) -> bool {
        if self.minted.len() >= MAX_TOKENS {
            self.minted.retain(|token| token.not_after >= wall);
        }
        self.minted.len() < MAX_TOKENS
    }

    /// Returns whether a token was revoked here.
    pub(super) fn is_revoked(&self, id: TokenId) -> bool {
        let id = id.to_string();
        self.minted.iter().any(|minted| minted.revoked && minted.id == id)
    }
}
