//! Where the program of a service listens: an address, or a socket of the file system.
//!
//! Owns: both forms, and how each is connected to; `socket` judges who is at the other end of one of the file system.
//! Must not know: services, verdicts. Driven by: `spec` (what is asked for), `checks` and the relay (to connect).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Component, Path};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};

use super::socket;
use crate::segments;

/// What a target is written with when it is a socket of the file system.
const UNIX: &str = "unix:";

/// Longest path, bytes: `sun_path` has 108 with the zero at its end (unix(7)).
const MAX_PATH_BYTES: usize = 107;

/// The machine, or the file, of a service's programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    /// An address; each port of the service is one there.
    Ip(IpAddr),
    /// A stream socket, behind all ports of the service.
    Unix(UnixPath),
}

impl Default for Host {
    fn default() -> Self {
        Self::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(UNIX) {
            Some(path) => path.parse().map(Self::Unix),
            None => text.parse().map(Self::Ip).map_err(|_| {
                format!("{text:?} is no target; write an IP address, or unix: and the path of a socket")
            }),
        }
    }
}

impl TryFrom<String> for Host {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.to_string()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Unix(path) => path.fmt(f),
        }
    }
}

/// The path of a socket of the file system: absolute, without `..`, at most 107 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixPath(Arc<str>);

impl UnixPath {
    /// Returns the path.
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.0)
    }
}

impl FromStr for UnixPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("{UNIX}{} is no target: {why}", text.escape_debug()));
        if text.starts_with('@') {
            return wrong("a socket without a file has no permissions to check; bind it to a path");
        }
        let path = Path::new(text);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return wrong("its path must begin with / and hold no ..");
        }
        if text.len() > MAX_PATH_BYTES {
            return wrong("its path is longer than the 107 bytes that the system allows");
        }
        if text.chars().any(char::is_control) {
            return wrong("its path holds a control character");
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for UnixPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{UNIX}{}", self.0)
    }
}

/// Where one port's program listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A TCP or UDP port.
    Ip(SocketAddr),
    /// A stream socket of the file system.
    Unix {
        /// Its path.
        path: UnixPath,
        /// Whose program must listen there; `None` when an operator registered it, who may name any.
        user: Option<u32>,
    },
}

impl Place {
    /// Returns the address, unless it is a socket of the file system.
    pub const fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix { .. } => None,
        }
    }

    /// Connects. Give it a deadline.
    ///
    /// # Errors
    /// The system's. Of a socket of the file system also [`io::ErrorKind::PermissionDenied`] for what must not be
    /// reached: the daemon itself, what another user may have led the path to, and for a user's registration all
    /// that is not its own.
    pub async fn connect(&self) -> io::Result<Connected> {
        match self {
            Self::Ip(address) => Ok(Connected::Tcp(segments::connect(*address).await?)),
            Self::Unix { path, user } => socket::connect(path.as_path(), *user).await.map(Connected::Unix),
        }
    }

    /// Says why connecting failed, when that is more than "nobody listens".
    pub fn trouble(&self, error: &io::Error) -> Option<&'static str> {
        match self {
            Self::Ip(_) => None,
            Self::Unix { user, .. } => socket::trouble(*user, error),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix { path, .. } => path.fmt(f),
        }
    }
}

#[cfg(test)]
impl FromStr for Place {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Ip)
    }
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

/// A connection to a program.
#[derive(Debug)]
pub enum Connected {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a socket of the file system.
    Unix(UnixStream),
}

impl Connected {
    /// Writes all bytes.
    ///
    /// # Errors
    /// The program has closed the connection.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes).await,
            Self::Unix(stream) => stream.write_all(bytes).await,
        }
    }

    /// Returns the addresses of this end and of the program; `None` for a socket of the file system.
    pub fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        match self {
            Self::Tcp(stream) => Some((stream.local_addr().ok()?, stream.peer_addr().ok()?)),
            Self::Unix(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::net::UnixListener;

    #[test]
    fn hosts_are_addresses_or_paths() {
        for text in ["127.0.0.1", "fd00:1::5", "unix:/run/app.sock", "unix:/srv/a b"] {
            assert_eq!(text.parse::<Host>().map(|host| host.to_string()), Ok(text.to_owned()));
        }
        let long = format!("unix:/{}", "x".repeat(107));
        for (text, words) in [
            ("unix:run/app.sock", "begin with /"),
            ("unix:/run/../etc/x", "hold no .."),
            ("unix:@app", "without a file"),
            ("unix:/a\nb", "control"),
            (&long, "107 bytes"),
            ("localhost", "unix: and the path"),
        ] {
            let error = text.parse::<Host>().expect_err(text);
            assert!(error.contains(words), "{error}");
        }
    }

    fn place(path: &Path) -> Place {
        let path = path.to_str().expect("text").parse().expect("path");
        Place::Unix { path, user: None }
    }

    #[tokio::test]
    async fn what_cannot_be_connected_to_says_why() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("app.sock");
        let absent = place(&socket);
        let error = absent.connect().await.expect_err("absent");
        assert_eq!(absent.trouble(&error), Some("there is no such file"));

        let listener = UnixListener::bind(&socket).expect("bound");
        let error = absent.connect().await.expect_err("this process");
        assert!(absent.trouble(&error).is_some_and(|why| why.contains("own socket")));
        drop(listener);
        let error = absent.connect().await.expect_err("nobody listens");
        assert_eq!(absent.trouble(&error), None);
    }
}
