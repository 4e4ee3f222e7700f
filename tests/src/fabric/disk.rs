//! A disk that forgets what was not synced.
//!
//! Owns: two versions of each file. Must not know: what is in them. Driven by: the daemon's store, and by the
//! fabric when a node dies.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gossamer::store::{self, StoreError};

use crate::scenario;

type Files = BTreeMap<String, Vec<u8>>;

/// The disk of one node, over all its lives.
#[derive(Debug, Default)]
pub struct Disk(Mutex<Versions>);

#[derive(Debug, Default)]
struct Versions {
    /// Nothing more can be written.
    is_full: bool,
    /// Writes that found no room.
    refused: u64,
    /// How often each file was written.
    written: BTreeMap<String, u64>,
    /// What a reader sees.
    seen: Files,
    /// What survives the loss of power.
    synced: Files,
}

impl Disk {
    /// Makes of the disk what the next start finds.
    pub fn crash(&self, found: scenario::Disk) {
        let mut versions = self.versions();
        match found {
            scenario::Disk::Kept => versions.synced = versions.seen.clone(),
            scenario::Disk::Unsynced => versions.seen = versions.synced.clone(),
            scenario::Disk::Lost => *versions = Versions { is_full: versions.is_full, ..Versions::default() },
        }
    }

    /// Makes the disk full, or gives it room again. Returns how many writes have found no room so far.
    pub fn set_full(&self, is_full: bool) -> u64 {
        let mut versions = self.versions();
        versions.is_full = is_full;
        versions.refused
    }

    /// Returns how often a file was written so far.
    pub fn written(&self, name: &str) -> u64 {
        self.versions().written.get(name).copied().unwrap_or_default()
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl store::Disk for Disk {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.versions().seen.get(name).cloned())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let mut versions = self.versions();
        if versions.is_full {
            versions.refused += 1;
            return Err(StoreError::Io { path: name.into(), error: io::ErrorKind::StorageFull.into() });
        }
        versions.seen.insert(name.to_owned(), bytes.to_vec());
        *versions.written.entry(name.to_owned()).or_default() += 1;
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.crash(scenario::Disk::Kept);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.versions().seen.remove(name);
        Ok(())
    }

    fn is_slow(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer::store::Disk as _;
    use scenario::Disk::{Kept, Lost, Unsynced};

    fn read(disk: &Disk) -> Option<Vec<u8>> {
        disk.read("a").expect("reads")
    }

    #[test]
    fn what_was_not_synced_is_lost_with_the_power() {
        let disk = Disk::default();
        disk.replace("a", b"one").expect("writes");
        disk.sync().expect("syncs");
        disk.replace("a", b"two").expect("writes");
        assert_eq!(read(&disk).as_deref(), Some(&b"two"[..]));
        disk.crash(Unsynced);
        assert_eq!(read(&disk).as_deref(), Some(&b"one"[..]));
        disk.crash(Lost);
        assert_eq!(read(&disk), None);
    }

    #[test]
    fn a_full_disk_keeps_what_it_has_and_takes_nothing() {
        let disk = Disk::default();
        disk.replace("a", b"one").expect("writes");
        assert_eq!(disk.set_full(true), 0);
        assert!(disk.replace("a", b"two").is_err());
        assert_eq!(read(&disk).as_deref(), Some(&b"one"[..]));
        assert_eq!(disk.set_full(false), 1);
        disk.replace("a", b"two").expect("writes");
    }

    #[test]
    fn a_killed_process_loses_nothing_it_wrote() {
        let disk = Disk::default();
        disk.replace("a", b"one").expect("writes");
        disk.crash(Kept);
        disk.crash(Unsynced);
        assert_eq!(read(&disk).as_deref(), Some(&b"one"[..]));
    }
}
