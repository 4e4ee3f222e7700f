//! Files of the host as they were, and their return.
//!
//! Owns: what of a file is kept (bytes, mode, owner, or where a link leads), replacing it as a whole.
//! Must not know: resolvers. Driven by: `cli::host::apply`.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// Nothing.
    Missing,
    /// A regular file.
    File {
        /// Its bytes, base64.
        #[serde(with = "base64")]
        bytes: Vec<u8>,
        /// Its permission bits.
        mode: u32,
        /// Its user.
        user: u32,
        /// Its group.
        group: u32,
    },
    /// A symbolic link.
    Link {
        /// Where it leads, as it is written.
        target: PathBuf,
    },
}

/// Largest file that is kept, bytes: resolver files have a few lines.
const MAX_BYTES: u64 = 1 << 20;

impl Entry {
    /// Reads what is at a path; a link is not followed.
    ///
    /// # Errors
    /// The system, or something that is neither file nor link, or larger than 1 MiB.
    pub fn read(path: &Path) -> io::Result<Self> {
        let about = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Missing),
            about => about?,
        };
        if about.is_symlink() {
            return Ok(Self::Link { target: fs::read_link(path)? });
        }
        if !about.is_file() || about.len() > MAX_BYTES {
            return Err(io::Error::other("it is no small file; look at what it is"));
        }
        let (user, group) = (about.uid(), about.gid());
        Ok(Self::File { bytes: fs::read(path)?, mode: about.mode() & 0o7777, user, group })
    }

    /// Makes what is to stand in a file of ours.
    pub fn ours(text: &str) -> Self {
        Self::File { bytes: text.as_bytes().to_vec(), mode: 0o644, user: 0, group: 0 }
    }

    /// Puts this at a path, whatever is there; readers and a crash see the old or the new, never a mixture.
    ///
    /// # Errors
    /// The system; the old entry stays.
    pub fn put(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or_else(|| Path::new("/"));
        match self {
            Self::Missing => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
            Self::File { bytes, mode, user, group } => {
                let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(directory)?;
                file.write_all(bytes)?;
                std::os::unix::fs::fchown(file.as_file(), Some(*user), Some(*group))?;
                file.as_file().set_permissions(Permissions::from_mode(*mode))?;
                file.as_file().sync_all()?;
                file.persist(path)?;
            }
            Self::Link { target } => {
                let made = tempfile::Builder::new()
                    .prefix(UNFINISHED)
                    .make_in(directory, |at| symlink(target, at))?;
                made.persist(path)?;
            }
        }
        File::open(directory)?.sync_all()
    }

    /// Returns whether a regular file of these bytes is here.
    pub fn says(&self, text: &str) -> bool {
        matches!(self, Self::File { bytes, .. } if bytes == text.as_bytes())
    }
}

/// Removes what a killed command had not finished writing in a directory.
pub fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes a directory and those above it that are missing (0755, whatever the umask is: resolvers are not root).
///
/// # Errors
/// The system.
pub fn make_directories(path: &Path) -> io::Result<()> {
    for directory in missing_directories(path) {
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Returns the directories of a path that are missing, outermost first.
pub fn missing_directories(path: &Path) -> Vec<PathBuf> {
    let missing = path.ancestors().take_while(|directory| !directory.exists());
    let mut missing: Vec<_> = missing.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// How files are called until they are whole; resolvers that include `*.conf` do not read them.
const UNFINISHED: &str = ".gossamer-new-";

/// Bytes in JSON.
mod base64 {
    use data_encoding::BASE64;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_comes_back_with_its_mode() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().join("resolv.conf");
        fs::write(&path, b"nameserver 192.0.2.1\xff").expect("writes");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("sets");
        let before = Entry::read(&path).expect("reads");
        Entry::Link { target: "elsewhere".into() }.put(&path).expect("puts");
        assert_eq!(Entry::read(&path).expect("reads"), Entry::Link { target: "elsewhere".into() });
        before.put(&path).expect("puts");
        assert_eq!(Entry::read(&path).expect("reads"), before);
        assert!(matches!(before, Entry::File { mode: 0o640, .. }));
    }

    #[test]
    fn a_link_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().join("resolv.conf");
        symlink("../run/nowhere", &path).expect("links");
        let before = Entry::read(&path).expect("reads");
        fs::remove_file(&path).expect("removes");
        fs::write(&path, "other").expect("writes");
        before.put(&path).expect("puts");
        assert_eq!(fs::read_link(&path).expect("a link"), Path::new("../run/nowhere"));
        Entry::Missing.put(&path).expect("removes");
        Entry::Missing.put(&path).expect("is removed already");
        assert_eq!(Entry::read(&path).expect("reads"), Entry::Missing);
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 0, "nothing is left behind");
    }

    #[test]
    fn what_was_not_finished_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().expect("scratch");
        for name in [".gossamer-new-x1", "gossamer.conf", ".hidden"] {
            fs::write(dir.path().join(name), "").expect("writes");
        }
        sweep(dir.path());
        sweep(&dir.path().join("none"));
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 2);
    }

    #[test]
    fn missing_directories_are_named_outermost_first() {
        let dir = tempfile::tempdir().expect("scratch");
        let deep = dir.path().join("a/b");
        assert_eq!(missing_directories(&deep), [dir.path().join("a"), deep.clone()]);
        make_directories(&deep).expect("makes");
        assert!(missing_directories(&deep).is_empty());
    }

    /// The umask is of the whole process, so a process of its own has it.
    #[test]
    fn made_directories_can_be_read_by_resolvers_whatever_the_umask_is() {
        const INSIDE: &str = "GOSSAMER_TEST_HAS_UMASK";
        if std::env::var_os(INSIDE).is_none() {
            let name = "host::files::tests::made_directories_can_be_read_by_resolvers_whatever_the_umask_is";
            let mut again = std::process::Command::new("sh");
            again
                .args(["-c", "umask 077; exec \"$0\" --exact \"$1\""])
                .arg(std::env::current_exe().expect("this"));
            let said = again.arg(name).env(INSIDE, "1").output().expect("runs");
            let text = String::from_utf8_lossy(&said.stdout);
            assert!(said.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let dir = tempfile::tempdir().expect("scratch");
        make_directories(&dir.path().join("a/b")).expect("makes");
        for made in ["a", "a/b"] {
            let mode = fs::metadata(dir.path().join(made)).expect("is there").mode();
            assert_eq!(mode & 0o777, 0o755, "{made}");
        }
    }

    #[test]
    fn entries_survive_json() {
        let entry = Entry::File { bytes: vec![0, 255, 10], mode: 0o644, user: 1, group: 2 };
        for entry in [entry, Entry::Missing, Entry::Link { target: "../x".into() }] {
            let text = serde_json::to_string(&entry).expect("writes");
            assert_eq!(serde_json::from_str::<Entry>(&text).expect("reads"), entry);
        }
    }
}
