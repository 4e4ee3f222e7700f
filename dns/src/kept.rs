//! Kept answers: what was answered before, as long as nothing it was read from has changed.
//!
//! Owns: the map from a name and type to its compiled answer, its bounds, the check that an answer still stands.
//! Must not know: names and what they mean, who changes what. Driven by: `server`, which learns answers from the
//! ordinary way, and `udp`, which sends them again.
//!
//! The directory stays the only source: an answer is kept with the [`Basis`] of all that was read for it, and a
//! hit compares them. Nothing is told to forget anything, so a change is seen by the next question.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use hickory_proto::rr::{Name, RecordType};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::compiled::{Compiled, MAX_DATAGRAM, Ours};
use crate::recorder::Recorder;
use crate::revision::Basis;
use crate::udp::Query;
use crate::{Answer, Directory, Outcome, Question, Zones, answer};

/// The answers kept by one server.
pub(crate) struct Kept {
    directory: Arc<dyn Directory>,
    zone: Arc<Zones>,
    began: Instant,
    ours: Ours,
    /// std's hasher, which is seeded: names come from outside.
    /// Boxed: the map stays small enough for the processor's caches.
    entries: DashMap<Box<[u8]>, Box<Entry>>,
    bytes: AtomicUsize,
    limits: Limits,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
struct Limits {
    entries: usize,
    bytes: usize,
}

struct Entry {
    compiled: Compiled,
    bases: SmallVec<[Basis; 4]>,
    /// Seconds since the server began.
    learned: u32,
}

/// A name in lower case, as on the wire, and a type.
#[derive(Debug)]
pub(crate) struct Key {
    bytes: [u8; KEY_BYTES],
    length: usize,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Kept {
    /// `recursion` says whether names of others are answered too, which each response tells (RA).
    pub(crate) fn new(directory: Arc<dyn Directory>, zone: Arc<Zones>, recursion: bool) -> Self {
        Self {
            directory,
            zone,
            began: Instant::now(),
            ours: Ours::new(recursion),
            entries: DashMap::new(),
            bytes: AtomicUsize::new(0),
            limits: LIMITS,
        }
    }

    /// Returns the age of the server, which ages answers.
    pub(crate) fn clock(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// Writes the response to a query when its answer is kept, still stands, and fits. `clock` is a recent
    /// [`Self::clock`].
    pub(crate) fn respond(
        &self,
        query: &Query<'_>,
        clock: u32,
        out: &mut [u8; MAX_DATAGRAM],
    ) -> Option<(usize, Outcome)> {
        let key = Key::of_query(query)?;
        let revisions = self.directory.revisions()?;
        let entry = self.entries.get(key.as_slice())?;
        let Entry { compiled, bases, learned } = entry.value().as_ref();
        let is_young = clock.saturating_sub(*learned) < LIFETIME_SECONDS;
        if !is_young || !bases.iter().all(|basis| revisions.is_current(*basis)) {
            return None;
        }
        let turn = if compiled.takes_turns() { rand::random() } else { 0 };
        Some((compiled.write(query, &self.ours, turn, out)?, compiled.outcome()))
    }

    /// Returns the directory to prepare and answer one question from, which notes what is read.
    pub(crate) fn recorder(&self) -> Recorder {
        Recorder::new(Arc::clone(&self.directory))
    }

    /// Answers a question, and keeps the answer when that can be done. `recorder` is the one its VIPs were prepared
    /// with: what has changed since then may not be prepared.
    pub(crate) fn answer(&self, question: &Question, recorder: Recorder, rotation: u32) -> Answer {
        let answer = answer(question, &recorder, &self.zone, rotation);
        if let Some(key) = Key::of_question(question)
            && let Some(revisions) = self.directory.revisions()
            && let Some(bases) = recorder.bases()
            && bases.iter().all(|basis| revisions.is_current(*basis))
            && let Some(compiled) = Compiled::new(question, &answer)
        {
            let bases = SmallVec::from_slice(&bases);
            self.insert(&key, Entry { compiled, bases, learned: self.clock() });
        }
        answer
    }

    fn insert(&self, key: &Key, entry: Entry) {
        let added = entry.size(key.length);
        let is_full = self.entries.len() >= self.limits.entries
            || self.bytes.load(Ordering::Relaxed) + added > self.limits.bytes;
        if is_full {
            self.make_room();
        }
        self.bytes.fetch_add(added, Ordering::Relaxed);
        if let Some(before) = self.entries.insert(key.as_slice().into(), Box::new(entry)) {
            self.bytes.fetch_sub(before.size(key.length), Ordering::Relaxed);
        }
    }

    /// Drops what stands no longer; all when that is not enough, for then more is asked than can be kept.
    fn make_room(&self) {
        let clock = self.clock();
        let stands = |entry: &Entry| {
            clock.saturating_sub(entry.learned) < LIFETIME_SECONDS
                && self
                    .directory
                    .revisions()
                    .is_some_and(|all| entry.bases.iter().all(|one| all.is_current(*one)))
        };
        self.keep_only(stands);
        let Limits { entries, bytes } = self.limits;
        if self.entries.len() > entries / 4 * 3 || self.bytes.load(Ordering::Relaxed) > bytes / 4 * 3 {
            self.keep_only(|_| false);
        }
    }

    fn keep_only(&self, stays: impl Fn(&Entry) -> bool) {
        self.entries.retain(|key, entry| {
            let stays = stays(entry);
            if !stays {
                self.bytes.fetch_sub(entry.size(key.len()), Ordering::Relaxed);
            }
            stays
        });
    }
}

impl Entry {
    fn size(&self, key_bytes: usize) -> usize {
        let fixed = size_of::<Box<[u8]>>() + size_of::<Self>() - size_of::<Compiled>();
        fixed
            + key_bytes
            + self.compiled.size()
            + if self.bases.spilled() { self.bases.capacity() * size_of::<Basis>() } else { 0 }
    }
}

impl Key {
    /// Returns the key of a query of a kept type.
    fn of_query(query: &Query<'_>) -> Option<Self> {
        let (name, _) = query.question.split_last_chunk::<4>()?;
        Self::new(query.kind, |key| {
            let place = key.get_mut(..name.len())?;
            place.copy_from_slice(name);
            place.make_ascii_lowercase();
            Some(name.len())
        })
    }

    /// Returns the key of the query that asks a question of a kept type.
    fn of_question(question: &Question) -> Option<Self> {
        Self::new(question.record_type.into(), |key| write_name(&question.name, key))
    }

    fn new(kind: u16, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<Self> {
        KEPT_TYPES.contains(&RecordType::from(kind)).then_some(())?;
        let mut bytes = [0; KEY_BYTES];
        let (front, name) = bytes.split_first_chunk_mut::<2>()?;
        *front = kind.to_be_bytes();
        let length = 2 + write(name)?;
        Some(Self { bytes, length })
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

fn write_name(name: &Name, out: &mut [u8]) -> Option<usize> {
    let mut end = 0;
    for label in name.iter() {
        *out.get_mut(end)? = u8::try_from(label.len()).ok()?;
        let place = out.get_mut(end + 1..=end + label.len())?;
        place.copy_from_slice(label);
        place.make_ascii_lowercase();
        end += 1 + label.len();
    }
    *out.get_mut(end)? = 0;
    Some(end + 1)
}

const KEY_BYTES: usize = 2 + 255;

/// Types whose answers are kept, the common ones. Only names that exist are kept, and of these none below a wildcard
/// (ADR 24), so that nobody fills the map by asking for names he makes up; without this list he could with types.
const KEPT_TYPES: [RecordType; 8] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::TXT,
    RecordType::SOA,
    RecordType::NS,
    RecordType::HTTPS,
];

/// 10,000 services asked for A, AAAA and SRV are 30,000 entries of 200 to 700 bytes.
const LIMITS: Limits = Limits { entries: 65_536, bytes: 32 << 20 };

/// How long an answer may be sent again before its question takes the ordinary way once: there the use of its
/// VIPs is noted, which close an hour after their last use (design section 8).
const LIFETIME_SECONDS: u32 = Duration::from_secs(300).as_secs() as u32;

#[cfg(test)]
mod tests;
