//! The state directory: private, locked for life, written atomically and durably.
//!
//! Owns: how state files are read and written. Must not know: what is in them.
//! Driven by: `identity` (keys, certificates, epoch), the issuer (ledger), the registry, the catalog task.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::supervise::Stage;

/// Why state could not be used. The operator's fault unless the disk is broken; nothing was changed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Others could read or change keys.
    #[error("{path} has mode {mode:04o}, others could read its keys; run: chmod {want:04o} {path}")]
    Loose {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it must have.
        want: u32,
    },
    /// Another daemon runs on the directory.
    #[error("{0} is in use by another gossamer daemon; stop it or choose another --state-dir")]
    Locked(PathBuf),
    /// The system refused.
    #[error("{path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The file was changed by somebody else, or the disk lost it.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What keeps state files. The daemon's is a directory; a simulator's forgets what was not synced.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Reads a file; `None` when there is none.
    ///
    /// # Errors
    /// As [`Store::read`].
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Replaces a file as a whole: readers and a crash see the old content or the new one. Which one a crash
    /// leaves is open until [`Disk::sync`] has returned.
    ///
    /// # Errors
    /// The system; the old content stays.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Makes everything that was replaced survive a crash.
    ///
    /// # Errors
    /// The system.
    fn sync(&self) -> Result<(), StoreError>;

    /// Removes a file; a missing one is fine.
    ///
    /// # Errors
    /// The system.
    fn remove(&self, name: &str) -> Result<(), StoreError>;

    /// Whether calls may take long, so that async code must not make them.
    fn is_slow(&self) -> bool;
}

/// An open state directory. Clones share it; its lock is held until the last one is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    dir: Arc<PathBuf>,
    disk: Arc<dyn Disk>,
}

/// Largest state file that is read, bytes: a catalog of 10,000 nodes is about 40 MiB.
const MAX_FILE_BYTES: u64 = 64 << 20;

const LOCK: &str = "lock";

/// How files are called until they are whole.
const UNFINISHED: &str = ".new-";

impl Store {
    /// Opens or makes the directory (0700) and locks it.
    ///
    /// # Errors
    /// Loose permissions, another daemon, or the system.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Ok(Self::on(dir, Arc::new(Directory::open(dir)?)))
    }

    /// Uses a disk that is there already; `dir` is what messages call it.
    pub fn on(dir: &Path, disk: Arc<dyn Disk>) -> Self {
        Self { dir: Arc::new(dir.to_owned()), disk }
    }

    /// Returns whether the directory holds an identity, without opening or locking it.
    pub fn is_initialised(dir: &Path) -> bool {
        dir.join(crate::identity::IDENTITY_FILE).exists()
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads a file; `None` when there is none.
    ///
    /// # Errors
    /// Loose permissions, a size beyond any of ours, or the system.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.disk.read(name)
    }

    /// Replaces a file: the old content or the new one survives a crash, never a mixture. The new one has
    /// reached the disk when this returns.
    ///
    /// # Errors
    /// The system, for example a full disk; the old content stays.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.disk.replace(name, bytes)?;
        self.disk.sync()
    }

    /// Removes a file; a missing one is fine.
    ///
    /// # Errors
    /// The system.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.disk.remove(name)
    }

    /// Runs a function that reads or writes, where a slow disk stops nobody else.
    pub async fn aside<T, F>(&self, function: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> T + Send + 'static,
    {
        if !self.disk.is_slow() {
            return function(self);
        }
        let store = self.clone();
        Stage::blocking(move || function(&store)).await
    }

    /// Reads a JSON file; `None` when there is none.
    ///
    /// # Errors
    /// As [`Store::read`], and a file that does not parse.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let damaged = |error: serde_json::Error| StoreError::Damaged {
            path: self.dir.join(name),
            why: error.to_string(),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// Writes a JSON file, as [`Store::write`].
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| StoreError::Damaged { path: self.dir.join(name), why: error.to_string() })?;
        self.write(name, &bytes)
    }
}

/// A real directory, locked for this process.
#[derive(Debug)]
struct Directory {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Directory {
    fn open(dir: &Path) -> Result<Self, StoreError> {
        let at = |error| StoreError::Io { path: dir.to_owned(), error };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at)?;
        check_mode(dir, 0o700)?;
        let path = dir.join(LOCK);
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open.map_err(|error| StoreError::Io { path, error })?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StoreError::Locked(dir.to_owned()))?;
        sweep(dir).map_err(at)?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }
}

impl Disk for Directory {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.dir.join(name);
        let at = |error| StoreError::Io { path: path.clone(), error };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(error)),
        };
        check_mode(&path, 0o600)?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(at)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(StoreError::Damaged { path, why: "it is larger than 64 MiB".to_owned() });
        }
        Ok(Some(bytes))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        let replace = || {
            let mut file = tempfile::Builder::new()
                .prefix(UNFINISHED)
                .permissions(Permissions::from_mode(0o600))
                .tempfile_in(&self.dir)?;
            file.write_all(bytes)?;
            // Before it gets its name: a name must never lead to half a file.
            file.as_file().sync_all()?;
            file.persist(&path)?;
            io::Result::Ok(())
        };
        replace().map_err(|error| StoreError::Io { path: path.clone(), error })
    }

    fn sync(&self) -> Result<(), StoreError> {
        // The content was synced when it was written; a name is durable only with its directory.
        let sync = File::open(&self.dir).and_then(|dir| dir.sync_all());
        sync.map_err(|error| StoreError::Io { path: self.dir.clone(), error })
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::Io { path, error }),
            _ => Ok(()),
        }
    }

    fn is_slow(&self) -> bool {
        true
    }
}

/// Removes what a killed daemon had not finished writing.
fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn check_mode(path: &Path, want: u32) -> Result<(), StoreError> {
    let metadata = fs::metadata(path).map_err(|error| StoreError::Io { path: path.to_owned(), error })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Loose { path: path.to_owned(), mode, want });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("scratch");
        let store = Store::open(&dir.path().join("state")).expect("opens");
        (dir, store)
    }

    #[test]
    fn what_is_written_is_read_back_privately() {
        let (_dir, store) = store();
        assert_eq!(store.read("a").expect("reads"), None);
        store.write("a", b"one").expect("writes");
        store.write("a", b"two").expect("writes");
        assert_eq!(store.read("a").expect("reads").as_deref(), Some(&b"two"[..]));
        let mode = fs::metadata(store.dir().join("a")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        store.remove("a").expect("removes");
        store.remove("a").expect("removes again");
    }

    #[test]
    fn a_directory_serves_one_daemon() {
        let (_dir, store) = store();
        assert!(matches!(Store::open(store.dir()), Err(StoreError::Locked(_))));
        let dir = store.dir().to_owned();
        drop(store);
        assert!(Store::open(&dir).is_ok());
    }

    #[test]
    fn loose_permissions_are_refused_with_the_command_that_mends_them() {
        let (_dir, store) = store();
        store.write("key", b"secret").expect("writes");
        fs::set_permissions(store.dir().join("key"), Permissions::from_mode(0o644)).expect("chmod");
        let error = store.read("key").expect_err("loose").to_string();
        assert!(error.contains("chmod 0600"), "{error}");
        let dir = store.dir().to_owned();
        drop(store);
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).expect("chmod");
        assert!(matches!(Store::open(&dir), Err(StoreError::Loose { .. })));
    }

    #[test]
    fn what_a_killed_daemon_left_half_written_is_removed() {
        let (_dir, store) = store();
        let dir = store.dir().to_owned();
        fs::write(dir.join(".new-abc"), "half a key").expect("writes");
        drop(store);
        let store = Store::open(&dir).expect("opens");
        assert!(!dir.join(".new-abc").exists());
        store.write("a", b"one").expect("writes");
    }

    /// Notes which calls were made.
    #[derive(Debug, Default)]
    struct Noted(std::sync::Mutex<Vec<&'static str>>);

    impl Noted {
        fn note(&self, call: &'static str) {
            self.0.lock().expect("one thread").push(call);
        }
    }

    impl Disk for Noted {
        fn read(&self, _name: &str) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(None)
        }

        fn replace(&self, _name: &str, _bytes: &[u8]) -> Result<(), StoreError> {
            self.note("replace");
            Ok(())
        }

        fn sync(&self) -> Result<(), StoreError> {
            self.note("sync");
            Ok(())
        }

        fn remove(&self, _name: &str) -> Result<(), StoreError> {
            Ok(())
        }

        fn is_slow(&self) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn a_write_is_synced_and_a_quick_disk_needs_no_thread() {
        let disk = Arc::new(Noted::default());
        let store = Store::on(Path::new("memory"), Arc::<Noted>::clone(&disk));
        let here = std::thread::current().id();
        let thread = store.aside(move |store| store.write("a", b"one").map(|()| std::thread::current().id()));
        assert_eq!(thread.await.expect("writes"), here);
        assert_eq!(*disk.0.lock().expect("one thread"), ["replace", "sync"]);
        let (_dir, slow) = self::store();
        assert_ne!(slow.aside(|_| std::thread::current().id()).await, here);
    }

    #[test]
    fn damaged_json_is_named() {
        let (_dir, store) = store();
        store.write("x.json", b"{").expect("writes");
        let error = store.read_json::<Vec<u8>>("x.json").expect_err("damaged").to_string();
        assert!(error.contains("x.json is damaged"), "{error}");
        store.write_json("x.json", &vec![1_u8]).expect("writes");
        assert_eq!(store.read_json::<Vec<u8>>("x.json").expect("reads"), Some(vec![1]));
    }
}
