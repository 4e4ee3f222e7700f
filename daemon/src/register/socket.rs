//! Connects to a socket of the file system, and judges who is at its other end.
//!
//! Owns: what a path must not lead to, and the words for it. Must not know: services, verdicts. Driven by: `place`.
//!
//! A path is only a name: who owns a directory of it may lead it elsewhere at any time. So what counts is looked at
//! after the connection, or held open before it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, read_link, symlink_metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use thiserror::Error;
use tokio::net::UnixStream;

use crate::supervise::Stage;

/// Why a connection that was made is not used.
#[derive(Clone, Copy, Debug, Error)]
#[error("{0}")]
struct Refused(&'static str);

/// The caller would be the daemon itself, who may do everything there.
const OWN: &str = "it leads to this gossamer daemon's own socket";

/// The daemon may open everything, and somebody else decides what.
const LED: &str = "a part of its path belongs to a user who is neither root nor the one that listens there, and who \
    could lead it anywhere; name a path in a directory of root or of the program's user";

/// All that is said to a user who is no operator: more would tell what files and programs there are.
const NOT_OWN: &str =
    "no program of who registered it listens there; for another user's, let an operator register it";

/// Connects. A `user` who is no operator reaches only own sockets behind which an own program listens, and nothing
/// else notices the attempt.
///
/// # Errors
/// The system's, and [`io::ErrorKind::PermissionDenied`] for what must not be reached; see [`trouble`].
pub(super) async fn connect(path: &Path, user: Option<u32>) -> io::Result<UnixStream> {
    let path = path.to_path_buf();
    let stream = match user {
        None => UnixStream::connect(&path).await?,
        Some(user) => {
            let file = Stage::blocking(move || open_own_blocking(&path, user)).await?;
            // The file that was looked at, whatever the path leads to by now.
            let stream = UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd())).await?;
            return if stream.peer_cred()?.uid() == user { judged(stream) } else { refuse(NOT_OWN) };
        }
    };
    let stream = judged(stream)?;
    if nix::unistd::geteuid().is_root() {
        let trusted = [0, stream.peer_cred()?.uid()];
        if !Stage::blocking(move || is_led_by_blocking(&path, &trusted)).await? {
            return refuse(LED);
        }
    }
    Ok(stream)
}

/// Says why connecting failed, when that is more than "nobody listens".
pub(super) fn trouble(user: Option<u32>, error: &io::Error) -> Option<&'static str> {
    if user.is_some() {
        return Some(NOT_OWN);
    }
    if let Some(Refused(why)) = error.get_ref().and_then(|cause| cause.downcast_ref()) {
        return Some(why);
    }
    match error.kind() {
        io::ErrorKind::NotFound => Some("there is no such file"),
        io::ErrorKind::PermissionDenied => {
            Some("this daemon may not open it: its file, or a directory above it, does not let it")
        }
        _ => None,
    }
}

fn refuse<T>(why: &'static str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, Refused(why)))
}

/// Refuses a connection to this process.
fn judged(stream: UnixStream) -> io::Result<UnixStream> {
    let listener = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
    if listener == Some(std::process::id()) { refuse(OWN) } else { Ok(stream) }
}

/// Gets hold of a user's own socket without telling anybody.
fn open_own_blocking(path: &Path, user: u32) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)?;
    let found = file.metadata()?;
    if found.file_type().is_socket() && found.uid() == user { Ok(file) } else { refuse(NOT_OWN) }
}

/// Returns whether only `trusted` users decide where a path leads: the owners of its directories and symbolic links,
/// and of those that the links lead through.
fn is_led_by_blocking(path: &Path, trusted: &[u32]) -> io::Result<bool> {
    let (mut at, mut rest, mut links) = (PathBuf::from("/"), parts(path), 0);
    let mut above = symlink_metadata(&at)?;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            at.pop();
            above = symlink_metadata(&at)?;
            continue;
        }
        at.push(part);
        let here = symlink_metadata(&at)?;
        // The owner of a socket cannot put another one there when the directory is only its owner's to write.
        let is_fixed = here.file_type().is_socket() && above.mode() & OTHERS_WRITE == 0;
        if !is_fixed && !trusted.contains(&here.uid()) {
            return Ok(false);
        }
        if !here.is_symlink() {
            above = here;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(nix::errno::Errno::ELOOP.into());
        }
        let target = read_link(&at)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        } else {
            at.pop();
        }
        above = symlink_metadata(&at)?;
        let mut parts = parts(&target);
        parts.append(&mut rest);
        rest = parts;
    }
    Ok(true)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let is_step = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_step).map(|part| part.as_os_str().to_owned()).collect()
}

/// Write permission of the group and of all.
const OTHERS_WRITE: u32 = 0o022;

/// Most symbolic links of a path, as the kernel has it (path_resolution(7)).
const MAX_LINKS: u32 = 40;

#[cfg(test)]
pub(crate) mod tests;
