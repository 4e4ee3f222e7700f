//! Leaves judged good lately.
//!
//! Owns: what is remembered of a verdict, for how long, how much of it. Must not know: how a leaf is judged.
//! Driven by: `TrustBundle`, whose clones share it.
//!
//! A connection has its peer's leaf judged three times within a second: in the handshake, after it, and in the
//! peer's card. Two signatures each time are most of what a mesh that starts costs its processors.

use std::collections::BTreeMap;
#[expect(clippy::disallowed_types, reason = "handshakes of many tasks share one bundle")]
use std::sync::Mutex;
use std::sync::PoisonError;

use gossamer_wire::limits::MAX_NODES;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::Leaf;

/// How long a verdict counts, seconds: a clock that jumps, or a certificate of an issuer that ends, is noticed
/// that much later. A leaf's own end always counts.
const REMEMBERED: u64 = 60;

/// Verdicts of one bundle: a bundle with other roots or issuers has its own.
#[derive(Debug, Default)]
#[expect(clippy::disallowed_types, reason = "held for one look-up")]
pub(super) struct Recent(Mutex<BTreeMap<Key, (u64, Leaf)>>);

/// SHA-256 over the certificates, each with its length.
pub(super) type Key = [u8; 32];

impl Recent {
    /// Returns what was found of the certificates at `wall` or shortly before, seconds since the Unix epoch.
    pub(super) fn get(&self, key: &Key, wall: u64) -> Option<Leaf> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, leaf) = known.get(key)?;
        let counts = *at <= wall && wall <= leaf.not_after.min(at + REMEMBERED);
        counts.then(|| leaf.clone())
    }

    /// Remembers a good verdict of `wall`. Members only have one, so a full memory is a mesh that renews.
    pub(super) fn put(&self, key: Key, wall: u64, leaf: Leaf) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_NODES && !known.contains_key(&key) {
            known.clear();
        }
        known.insert(key, (wall, leaf));
    }
}

/// Returns what a verdict is remembered by: every byte it depends on beside the bundle.
pub(super) fn key(leaf: &[u8], shown: &[&CertificateDer<'_>]) -> Key {
    let mut hash = Sha256::new();
    for der in [leaf].into_iter().chain(shown.iter().map(|der| der.as_ref())) {
        hash.update((der.len() as u64).to_be_bytes());
        hash.update(der);
    }
    hash.finalize().into()
}
