//! Paths: what carries the connection to a peer, and how it fares.
//!
//! Owns: the kinds of path, and their reading off a live connection. Must not know: how a path is chosen.
//! Driven by: the local API, when somebody looks.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gossamer_wire::NodeId;

use super::carrier::Connection;
use super::link::Link;

/// What carries a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// This node dialled the peer at this address.
    Direct(SocketAddr),
    /// The peer dialled, from this address. Whether this node could have dialled it is not said by that: `ping` tries.
    Inbound(SocketAddr),
    /// A lane over TCP, whoever dialled it: UDP was not answered.
    Lane(SocketAddr),
    /// A circuit through this relay, whoever dialled it: no address was answered.
    Relay(NodeId),
}

impl PathKind {
    /// Returns its word in listings and metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Direct(_) => "direct",
            Self::Inbound(_) => "inbound",
            Self::Lane(_) => "lane",
            Self::Relay(_) => "relay",
        }
    }

    /// Returns where the other end of the path is, or which relay leads to it; `name_of` turns ids into names.
    pub fn at(&self, name_of: impl Fn(NodeId) -> String) -> String {
        match self {
            Self::Direct(at) | Self::Inbound(at) | Self::Lane(at) => at.to_string(),
            Self::Relay(relay) => name_of(*relay),
        }
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.word(), self.at(|relay| relay.to_string()))
    }
}

/// The path of a live connection, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// What carries it.
    pub kind: PathKind,
    /// The relay of the second circuit, which SWIM's words take as well; only behind a relay (ADR 48).
    pub second: Option<NodeId>,
    /// The smoothed round trip of the connection.
    pub rtt: Duration,
    /// Sizes of packets on it.
    pub sizes: Sizes,
}

/// What a connection knows of the packets that its path takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of UDP payload that are proven to arrive; 1,200 before anything is, 0 on a lane.
    pub proven: u16,
    /// Larger packets sent to find out, and how many of them were lost.
    pub tried: u64,
    /// See `tried`.
    pub lost: u64,
    /// How often a size that had been proven stopped to arrive.
    pub holes: u64,
}

impl Path {
    /// Reads the path of a control connection, and of the second circuit beside it.
    pub(super) fn of(link: &Link, second: Option<&Arc<Link>>) -> Self {
        let connection = &link.connection;
        let at = connection.remote_address();
        let kind = match (connection, connection.via(), link.dialled) {
            (_, Some(relay), _) => PathKind::Relay(relay),
            (Connection::Lane(_), None, _) => PathKind::Lane(at),
            (Connection::Quic(_), None, true) => PathKind::Direct(at),
            (Connection::Quic(_), None, false) => PathKind::Inbound(at),
        };
        let sizes = connection.quic().map(Sizes::of).unwrap_or_default();
        let second = second.and_then(|second| second.connection.via());
        Self { kind, second, rtt: connection.rtt(), sizes }
    }
}

impl Sizes {
    pub(super) fn of(connection: &quinn::Connection) -> Self {
        let path = connection.stats().path;
        Self {
            proven: path.current_mtu,
            tried: path.sent_plpmtud_probes,
            lost: path.lost_plpmtud_probes,
            holes: path.black_holes_detected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_kind_and_its_other_end() {
        let at = "192.0.2.1:4677".parse().expect("address");
        assert_eq!(PathKind::Direct(at).to_string(), "direct 192.0.2.1:4677");
        assert_eq!(PathKind::Inbound(at).to_string(), "inbound 192.0.2.1:4677");
        assert_eq!(PathKind::Lane(at).to_string(), "lane 192.0.2.1:4677");
        let relay = PathKind::Relay(NodeId::from_bytes([0; 16]));
        assert_eq!((relay.word(), relay.at(|_| "vm-r".to_owned())), ("relay", "vm-r".to_owned()));
    }
}
