//! The record of a setup: what is needed to undo it byte for byte.
//!
//! Owns: the record's file and what may be believed of it. Must not know: resolvers.
//! Driven by: `cli::host::apply`, which writes it before anything else.
//!
//! A host has one resolver, so it has one record, whatever daemons run. It does not lie in a state directory: that is the
//! daemon's user's, and undo runs as root. Only a record that this user wrote counts, and only for paths that a
//! setup can have.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::facts::OURS;
use super::files::{Entry, sweep};
use super::plan::RESOLV_CONF;
use super::vips;

/// Where the record is, mode 0700.
pub const DIRECTORY: &str = "/var/lib/gossamer-host";
/// The file in it, mode 0600.
pub const FILE: &str = "record.json";

/// What a setup did, or was about to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The resolver's name.
    pub resolver: String,
    /// The file that was written.
    pub path: PathBuf,
    /// What was there before.
    pub before: Entry,
    /// What was written.
    pub after: Entry,
    /// Directories that were made for it, outermost first.
    pub directories: Vec<PathBuf>,
    /// Whether the resolver has taken it over.
    pub taken: bool,
}

/// How the file stands to its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As before the setup.
    Before,
    /// As the setup left it.
    After,
    /// Neither: somebody else changed it.
    Changed,
}

impl Record {
    /// Compares what is at the path with the record.
    pub fn standing(&self, now: &Entry) -> Standing {
        let same_bytes = |a: &Entry, b: &Entry| match (a, b) {
            (Entry::File { bytes: a, .. }, Entry::File { bytes: b, .. }) => a == b,
            _ => a == b,
        };
        if same_bytes(now, &self.after) {
            Standing::After
        } else if same_bytes(now, &self.before) {
            Standing::Before
        } else {
            Standing::Changed
        }
    }
}

/// Returns whether a setup can have this path. A record of another is not believed, so none is written.
pub fn is_plausible(path: &Path) -> bool {
    let is_ours = path.starts_with("/etc") && path.file_name().is_some_and(|name| name == OURS);
    let is_straight = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    path == Path::new(RESOLV_CONF) || (is_ours && is_straight)
}

/// Reads the record in a directory; `None` when there is none.
///
/// # Errors
/// The system, or a file that a setup did not write.
pub fn read(directory: &Path) -> io::Result<Option<Record>> {
    let Some(text) = read_text(&directory.join(FILE))? else { return Ok(None) };
    let record: Record = serde_json::from_str(&text)?;
    if !is_plausible(&record.path) {
        return Err(io::Error::other(format!("{} is no file of a setup", record.path.display())));
    }
    Ok(Some(record))
}

/// Reads the record of a slot's virtual addresses; `None` when there is none.
///
/// # Errors
/// The system, or a file that a setup did not write.
pub fn read_vips(directory: &Path, slot: u8) -> io::Result<Option<vips::Record>> {
    let Some(text) = read_text(&directory.join(vips_file(slot)))? else { return Ok(None) };
    let record: vips::Record = serde_json::from_str(&text)?;
    if !record.is_plausible(slot) {
        return Err(io::Error::other("it is no record of a setup of virtual addresses"));
    }
    Ok(Some(record))
}

/// Returns the name of the file with the record of a slot's virtual addresses.
pub fn vips_file(slot: u8) -> String {
    format!("vips-{slot}.json")
}

/// Reads a file that only this user can have written; `None` when there is none.
fn read_text(path: &Path) -> io::Result<Option<String>> {
    let mut open = OpenOptions::new();
    open.read(true).custom_flags(nix::libc::O_NOFOLLOW);
    let mut file = match open.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let about = file.metadata()?;
    if about.uid() != nix::unistd::geteuid().as_raw() || about.mode() & 0o077 != 0 {
        let why = "it is not a file of this user with mode 0600, so nothing in it is believed; restore by hand and remove it";
        return Err(io::Error::other(why));
    }
    let mut text = String::new();
    file.by_ref().take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Writes the record; it has reached the disk when this returns.
///
/// # Errors
/// The system.
pub fn write(directory: &Path, record: &Record) -> io::Result<()> {
    put(directory, FILE, serde_json::to_vec_pretty(record)?)
}

/// Writes the record of a slot's virtual addresses, as [`write()`] does.
///
/// # Errors
/// The system.
pub fn write_vips(directory: &Path, slot: u8, record: &vips::Record) -> io::Result<()> {
    put(directory, &vips_file(slot), serde_json::to_vec_pretty(record)?)
}

fn put(directory: &Path, file: &str, bytes: Vec<u8>) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let entry = Entry::File {
        bytes,
        mode: 0o600,
        user: nix::unistd::geteuid().as_raw(),
        group: nix::unistd::getegid().as_raw(),
    };
    entry.put(&directory.join(file))
}

/// Removes the record, and its directory unless somebody else uses that.
///
/// # Errors
/// The system.
pub fn remove(directory: &Path) -> io::Result<()> {
    remove_file(directory, FILE)
}

/// Removes the record of a slot's virtual addresses, as [`remove`] does.
///
/// # Errors
/// The system.
pub fn remove_vips(directory: &Path, slot: u8) -> io::Result<()> {
    remove_file(directory, &vips_file(slot))
}

fn remove_file(directory: &Path, file: &str) -> io::Result<()> {
    Entry::Missing.put(&directory.join(file))?;
    sweep(directory);
    let _ = fs::remove_dir(directory);
    Ok(())
}

/// Longest record that is read, bytes: a file of 1 MiB in base64, twice.
const MAX_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn record(path: &str) -> Record {
        Record {
            resolver: "dnsmasq".to_owned(),
            path: path.into(),
            before: Entry::Missing,
            after: Entry::ours("server=/x/127.0.0.1\n"),
            directories: vec![],
            taken: false,
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_private() {
        let dir = tempfile::tempdir().expect("scratch");
        let state = dir.path().join("state");
        assert_eq!(read(&state).expect("none yet"), None);
        let written = record("/etc/dnsmasq.d/gossamer.conf");
        write(&state, &written).expect("writes");
        assert_eq!(read(&state).expect("reads"), Some(written));
        let mode = fs::metadata(state.join(FILE)).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        remove(&state).expect("removes");
        assert_eq!(read(&state).expect("gone"), None);
    }

    #[test]
    fn a_record_that_others_could_write_is_not_believed() {
        let dir = tempfile::tempdir().expect("scratch");
        write(dir.path(), &record("/etc/dnsmasq.d/gossamer.conf")).expect("writes");
        fs::set_permissions(dir.path().join(FILE), Permissions::from_mode(0o660)).expect("sets");
        assert!(read(dir.path()).expect_err("loose").to_string().contains("0600"));
        for path in ["/etc/passwd", "/root/gossamer.conf", "/etc/../root/gossamer.conf"] {
            write(dir.path(), &record(path)).expect("writes");
            assert!(read(dir.path()).expect_err(path).to_string().contains("no file of a setup"), "{path}");
        }
    }

    #[test]
    fn the_record_of_virtual_addresses_stands_beside_and_is_checked() {
        let dir = tempfile::tempdir().expect("scratch");
        let state = dir.path().join("state");
        assert_eq!(read_vips(&state, 0).expect("none yet"), None);
        let kept = vips::Record { table: "gossamer".to_owned(), routes: vec!["240.80.0.0/12".to_owned()] };
        write_vips(&state, 0, &kept).expect("writes");
        assert_eq!(read_vips(&state, 0).expect("reads"), Some(kept.clone()));
        write_vips(&state, 1, &kept).expect("writes");
        assert!(read_vips(&state, 1).is_err(), "the table of another slot");
        remove_vips(&state, 1).expect("removes");
        assert!(state.exists(), "there is another record");
        remove_vips(&state, 0).expect("removes");
        assert!(!state.exists());
    }

    #[test]
    fn a_file_is_as_before_as_after_or_changed() {
        let record = record("/etc/dnsmasq.d/gossamer.conf");
        assert_eq!(record.standing(&Entry::Missing), Standing::Before);
        assert_eq!(record.standing(&record.after), Standing::After);
        assert_eq!(record.standing(&Entry::ours("server=/y/127.0.0.1\n")), Standing::Changed);
    }
}
