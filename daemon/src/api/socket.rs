//! The unix socket of the local API.
//!
//! Owns: making it in place of a dead one. Must not know: HTTP. Driven by: `app`, before `serve`.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

/// Why the socket could not be made. The operator's fault; nothing was changed.
#[derive(Debug, Error)]
pub enum BindError {
    /// A daemon answers there.
    #[error(
        "{socket} belongs to a running daemon (process {owner}); stop it, or name another --socket or --slot"
    )]
    InUse {
        /// The socket.
        socket: PathBuf,
        /// Its process id, or `unknown`.
        owner: String,
    },
    /// A file that is no socket is in the way.
    #[error("{0} exists and is no socket; remove it, or name another --socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{socket} cannot be made: {error}; name another --socket")]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// Makes the socket, mode 0660, in place of one that a dead daemon left.
///
/// # Errors
/// See [`BindError`].
pub async fn bind(socket: &Path) -> Result<UnixListener, BindError> {
    let at = |error| BindError::Io { socket: socket.to_owned(), error };
    if let Some(parent) = socket.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(at)?;
    }
    clear(socket).await?;
    let listener = UnixListener::bind(socket).map_err(at)?;
    fs::set_permissions(socket, Permissions::from_mode(0o660)).map_err(at)?;
    Ok(listener)
}

async fn clear(socket: &Path) -> Result<(), BindError> {
    let at = |error| BindError::Io { socket: socket.to_owned(), error };
    let found = match fs::symlink_metadata(socket) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(error)),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket(socket.to_owned()));
    }
    match UnixStream::connect(socket).await {
        Ok(stream) => {
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            let owner = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            Err(BindError::InUse { socket: socket.to_owned(), owner })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(socket).map_err(at),
        Err(error) => Err(at(error)),
    }
}

/// Removes the file of a socket that is served no more.
pub(super) fn remove(listener: &UnixListener) {
    if let Some(path) = listener.local_addr().ok().as_ref().and_then(|address| address.as_pathname()) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_by_a_dead_daemon_is_replaced() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().join("new/gossamer.sock");
        drop(bind(&path).await.expect("binds"));
        assert!(path.exists());
        let _listener = bind(&path).await.expect("binds again");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
    }

    #[tokio::test]
    async fn a_living_daemon_keeps_its_socket_and_is_named() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().join("gossamer.sock");
        let _listener = bind(&path).await.expect("binds");
        let error = bind(&path).await.expect_err("in use").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_file_of_another_kind_is_never_removed() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().join("notes.txt");
        fs::write(&path, "mine").expect("writes");
        assert!(matches!(bind(&path).await, Err(BindError::NotASocket(_))));
        assert!(path.exists());
    }
}
