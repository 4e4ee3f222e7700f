//! Paths to peers, as the local API says them.
//!
//! Owns: their shape. Must not know: how they are found out. Driven by: `api` and `cli`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The path of a connection to a peer, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRow {
    /// `direct`: this node dialled. `inbound`: the peer did. `lane`: over TCP. `relay`: through another member.
    pub kind: String,
    /// Where the other end is, or the name of the relay.
    pub at: String,
    /// The name of the second relay, which what keeps track of who lives goes through as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
    /// Smoothed round trip, microseconds.
    pub rtt_us: u64,
    /// Bytes of UDP payload that are proven to arrive.
    pub size: u16,
}

impl fmt::Display for PathRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.way(), self.rtt())
    }
}

impl PathRow {
    /// Returns what carries it, in words.
    pub fn way(&self) -> String {
        let second = self.second.as_ref().map(|second| format!(" and {second}")).unwrap_or_default();
        format!("{} {}{second}", self.kind, self.at)
    }

    /// Returns the round trip in words.
    pub fn rtt(&self) -> String {
        milliseconds(self.rtt_us)
    }
}

/// Writes microseconds as milliseconds, as precise as anybody needs them.
pub(crate) fn milliseconds(us: u64) -> String {
    let decimals = usize::from(us < 10_000);
    format!("{:.decimals$} ms", us as f64 / 1_000.0)
}

/// A connected peer in `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRow {
    /// Its name, or its id while its card is unknown.
    pub node: String,
    /// What carries the connection to it.
    pub path: PathRow,
}

/// The answer to `GET /v1/ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingRow {
    /// The node's name, or its id while its card is unknown.
    pub node: String,
    /// Its id.
    pub id: String,
    /// The connection to it, and whether it answers there; `None` where there is none.
    pub connection: Option<TriedRow>,
    /// Each of its addresses.
    pub tried: Vec<TriedRow>,
}

/// A way to a node, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriedRow {
    /// The path of a connection, as `direct 192.0.2.1:4677`, or an address, as `udp 192.0.2.1:4677`.
    pub way: String,
    /// `ok`, `no_answer`, `refused`, `no_route`, `wrong_identity`, `untrusted`, `said`, `broken`, `led_elsewhere` or
    /// `led_nowhere`.
    pub word: String,
    /// The round trip, microseconds.
    pub rtt_us: Option<u64>,
    /// Why it failed.
    pub failed: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_kind_address_and_round_trip() {
        let row = |rtt_us| PathRow {
            kind: "direct".to_owned(),
            at: "192.0.2.1:4677".to_owned(),
            second: None,
            rtt_us,
            size: 1_452,
        };
        assert_eq!(row(340).to_string(), "direct 192.0.2.1:4677, 0.3 ms");
        assert_eq!(row(84_600).to_string(), "direct 192.0.2.1:4677, 85 ms");
        let (kind, at, second) = ("relay".to_owned(), "vm-r".to_owned(), Some("vm-s".to_owned()));
        let relayed = PathRow { kind, at, second, ..row(340) };
        assert_eq!(relayed.to_string(), "relay vm-r and vm-s, 0.3 ms");
    }
}
