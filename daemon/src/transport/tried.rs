//! What became of an attempt to reach somebody at one address, in words for operators and for metrics.
//!
//! Owns: the ways to an address and the outcomes. Must not know: how attempts are made. Driven by: who dials, who joins.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ConnectionError, TransportErrorCode};

use gossamer_core::astray::Astray;
use gossamer_core::reach::Denied;
use gossamer_wire::{LaneAddress, NodeId};

/// A way to somebody: what carries the bytes, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// QUIC.
    Udp(SocketAddr),
    /// A lane.
    Tcp(SocketAddr),
    /// A lane to a lane address.
    Tls(LaneAddress),
    /// A circuit through this relay.
    Relay(NodeId),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Tls(address) => address.fmt(f),
            Self::Relay(node) => write!(f, "relay {node}"),
        }
    }
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not made: the address leads nowhere or astray.
    Denied(Denied),
    /// Nothing came back in this time.
    NoAnswer(Duration),
    /// The machine says that nobody listens there.
    Refused,
    /// No network of this machine leads there.
    NoRoute(String),
    /// The host of the address was not found.
    NoName(String),
    /// Somebody else answered: not who was meant.
    WrongIdentity,
    /// The certificate there has ended, has not begun, or was revoked.
    Untrusted,
    /// Who answered does not take this machine, in its words.
    Said(String),
    /// The connection broke.
    Broken(String),
    /// The relay says that it leads to who was meant, and leads to somebody else.
    LedElsewhere,
    /// The relay says that it leads to who was meant, and nobody is there who shows so.
    LedNowhere(String),
}

impl Outcome {
    /// Reads why a handshake failed that got so much time.
    pub(crate) fn of(error: &ConnectionError, within: Duration) -> Self {
        match error {
            ConnectionError::TimedOut => Self::NoAnswer(within),
            // This side did not believe the certificate, or both speak nothing in common.
            ConnectionError::TransportError(fault) if is_of(fault.code, &UNTRUSTED) => Self::Untrusted,
            ConnectionError::TransportError(fault) if is_alert(fault.code) => Self::WrongIdentity,
            ConnectionError::ConnectionClosed(close) if is_of(close.error_code, &[NO_PROTOCOL]) => {
                Self::WrongIdentity
            }
            ConnectionError::ConnectionClosed(close) if is_alert(close.error_code) => {
                Self::Said("it does not take this machine".to_owned())
            }
            ConnectionError::ConnectionClosed(close)
                if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
            {
                Self::Said("it takes no connections at the moment".to_owned())
            }
            ConnectionError::ApplicationClosed(close) if !close.reason.is_empty() => {
                Self::Said(plain(&close.reason))
            }
            error => Self::Broken(error.to_string()),
        }
    }

    /// Reads what is wrong behind a relay that has said that it leads to who was meant.
    pub(crate) fn behind_relay(self) -> Self {
        match self {
            Self::WrongIdentity => Self::LedElsewhere,
            Self::NoAnswer(_) | Self::Broken(_) | Self::Said(_) => Self::LedNowhere(self.to_string()),
            other => other,
        }
    }

    /// Returns how the relay of a circuit has led astray, if it has.
    pub(crate) const fn astray(&self) -> Option<Astray> {
        match self {
            Self::LedElsewhere => Some(Astray::Elsewhere),
            Self::LedNowhere(_) => Some(Astray::Nowhere),
            _ => None,
        }
    }

    /// Returns its word in metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            Self::NoAnswer(_) => "no_answer",
            Self::Refused => "refused",
            Self::NoRoute(_) => "no_route",
            Self::NoName(_) => "no_name",
            Self::WrongIdentity => "wrong_identity",
            Self::Untrusted => "untrusted",
            Self::Said(_) => "said",
            Self::Broken(_) => "broken",
            Self::LedElsewhere => "led_elsewhere",
            Self::LedNowhere(_) => "led_nowhere",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(why) => write!(f, "not tried: {why}"),
            Self::NoAnswer(within) => write!(f, "no answer within {} s", within.as_secs()),
            Self::Refused => f.write_str("refused: nobody listens there"),
            Self::NoRoute(why) => write!(f, "no route: {why}"),
            Self::NoName(why) => write!(f, "the name was not resolved: {why}"),
            Self::WrongIdentity => f.write_str("wrong identity: somebody else answers there"),
            Self::Untrusted => f.write_str(
                "its certificate does not count: it has ended or was revoked, or a clock is wrong",
            ),
            Self::Said(words) => write!(f, "it says: {words}"),
            Self::Broken(why) => write!(f, "the connection broke: {why}"),
            Self::LedElsewhere => f.write_str("it says that it leads there, and leads to somebody else"),
            Self::LedNowhere(why) => write!(f, "it says that it leads there, and leads nowhere: {why}"),
        }
    }
}

/// One failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Where.
    pub way: Way,
    /// Why it failed.
    pub outcome: Outcome,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.way, self.outcome)
    }
}

/// Returns what a stranger said, fit for a terminal.
pub(crate) fn plain(words: &[u8]) -> String {
    String::from_utf8_lossy(words).replace(|c: char| !c.is_ascii_graphic() && c != ' ', "?")
}

fn is_of(code: TransportErrorCode, alerts: &[u8]) -> bool {
    alerts.iter().any(|alert| code == TransportErrorCode::crypto(*alert))
}

/// QUIC carries the alerts of TLS as codes 0x100 to 0x1ff (RFC 9001 section 4.8).
fn is_alert(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// certificate_revoked, certificate_expired (RFC 8446 section 6.2): who was meant, perhaps.
const UNTRUSTED: [u8; 2] = [44, 45];
/// no_application_protocol.
const NO_PROTOCOL: u8 = 120;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn closed(code: TransportErrorCode) -> ConnectionError {
        ConnectionError::ConnectionClosed(quinn::ConnectionClose {
            error_code: code,
            frame_type: None,
            reason: bytes::Bytes::new(),
        })
    }

    #[test]
    fn failures_of_handshakes_are_told_apart() {
        let alert = TransportErrorCode::crypto;
        assert_eq!(Outcome::of(&ConnectionError::TimedOut, LIMIT), Outcome::NoAnswer(LIMIT));
        assert_eq!(Outcome::of(&closed(alert(NO_PROTOCOL)), LIMIT), Outcome::WrongIdentity);
        assert!(matches!(Outcome::of(&closed(alert(49)), LIMIT), Outcome::Said(_)));
        assert!(matches!(Outcome::of(&ConnectionError::Reset, LIMIT), Outcome::Broken(_)));
        let busy = Outcome::of(&closed(TransportErrorCode::CONNECTION_REFUSED), LIMIT);
        assert_eq!(busy.to_string(), "it says: it takes no connections at the moment");
        let reason = b"busy\x1b[2J".to_vec().into();
        let said = quinn::ApplicationClose { error_code: 1_u32.into(), reason };
        let said = Outcome::of(&ConnectionError::ApplicationClosed(said), LIMIT);
        assert_eq!(said.to_string(), "it says: busy?[2J");
    }

    #[test]
    fn behind_a_relay_silence_and_others_are_its_lies_and_an_old_certificate_is_not() {
        let of = |outcome: Outcome| outcome.behind_relay().astray();
        assert_eq!(of(Outcome::WrongIdentity), Some(Astray::Elsewhere));
        for outcome in [Outcome::NoAnswer(LIMIT), Outcome::Broken("eof".into()), Outcome::Said("no".into())] {
            assert_eq!(of(outcome), Some(Astray::Nowhere));
        }
        assert_eq!((of(Outcome::Untrusted), Outcome::WrongIdentity.astray()), (None, None));
    }

    #[test]
    fn an_attempt_names_its_way_and_its_end() {
        let way = Way::Udp("192.0.2.1:4677".parse().expect("address"));
        let tried = |outcome| Tried { way: way.clone(), outcome }.to_string();
        assert_eq!(tried(Outcome::NoAnswer(LIMIT)), "udp 192.0.2.1:4677 (no answer within 5 s)");
        assert_eq!(tried(Outcome::Refused), "udp 192.0.2.1:4677 (refused: nobody listens there)");
        let denied = tried(Outcome::Denied(Denied::Multicast));
        assert_eq!(denied, "udp 192.0.2.1:4677 (not tried: it is a multicast address)");
    }
}
