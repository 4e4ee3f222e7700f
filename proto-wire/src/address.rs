//! Addresses of nodes as operators write them: of the mesh port, and those that only lanes reach.
//!
//! Owns: their text forms and what a host may be. Must not know: who resolves a host, whether an address may be dialled.
//! Driven by: configuration, cards, tokens, hints.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::{MAX_HOST_BYTES, MAX_LABEL_BYTES};
use crate::text::by_text;

/// What a lane address begins with.
pub const LANE_SCHEME: &str = "tls://";

/// The port of a lane address that names none: that of HTTPS, which ingresses have open.
const DEFAULT_PORT: u16 = 443;

/// Where a node is reached over TLS only, for example through an ingress that routes by the server name:
/// `tls://host:port`, where the host is an IP address or a name that the dialler's system resolves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LaneAddress {
    /// A name in lower case, or an IP address without brackets.
    host: String,
    port: u16,
}

/// Why a text is not a lane address. The writer's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LaneAddressError {
    /// It begins with something else.
    #[error("{0:?} does not begin with {LANE_SCHEME}; write {LANE_SCHEME}HOST:PORT")]
    Scheme(String),
    /// The host is empty, or neither a name nor an address.
    #[error(
        "{0:?} is neither an IP address nor a host name; write {LANE_SCHEME}HOST:PORT, an IPv6 address in brackets"
    )]
    Host(String),
    /// The host has too many characters.
    #[error("the host has {0} bytes, the limit is {MAX_HOST_BYTES}; give the ingress a shorter name")]
    TooLong(usize),
    /// What stands behind the host is no port.
    #[error("{0:?} is no port; write a number from 1 to 65535, or nothing at all for {DEFAULT_PORT}")]
    Port(String),
}

impl LaneAddress {
    /// Returns the host as a system's resolver takes it: a name, or an IP address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the TCP port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address if the host is one, which nobody needs to resolve.
    pub fn literal(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }
}

impl FromStr for LaneAddress {
    type Err = LaneAddressError;

    fn from_str(text: &str) -> Result<Self, LaneAddressError> {
        let rest = text.strip_prefix(LANE_SCHEME).ok_or_else(|| LaneAddressError::Scheme(shortened(text)))?;
        let bad = || LaneAddressError::Host(shortened(rest));
        let (host, port) = match rest.strip_prefix('[') {
            Some(v6) => {
                let (host, behind) = v6.split_once(']').ok_or_else(bad)?;
                let host: std::net::Ipv6Addr = host.parse().map_err(|_| bad())?;
                (host.to_string(), (!behind.is_empty()).then_some(behind))
            }
            None => {
                let at = rest.find(':').unwrap_or(rest.len());
                let (host, behind) = rest.split_at(at);
                (host_of(host)?, (!behind.is_empty()).then_some(behind))
            }
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(behind) => port_of(behind)?,
        };
        Ok(Self { host, port })
    }
}

/// Reads `:port`.
fn port_of(behind: &str) -> Result<u16, LaneAddressError> {
    let digits = behind.strip_prefix(':').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let port = digits.and_then(|digits| digits.parse().ok()).filter(|port| *port != 0);
    port.ok_or_else(|| LaneAddressError::Port(shortened(behind.trim_start_matches(':'))))
}

/// Reads an IPv4 address or a name of RFC 1123 labels. A name whose last label is a number would be a mistyped address.
fn host_of(host: &str) -> Result<String, LaneAddressError> {
    if host.len() > MAX_HOST_BYTES {
        return Err(LaneAddressError::TooLong(host.len()));
    }
    let bad = || LaneAddressError::Host(shortened(host));
    if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
        return Ok(ip.to_string());
    }
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let is_name = host.split('.').all(is_label) && !host.rsplit('.').next().is_some_and(is_number);
    if is_name { Ok(host.to_ascii_lowercase()) } else { Err(bad()) }
}

/// What errors show of a text: enough to find it, and no more than a line.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

impl fmt::Display for LaneAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        match host.contains(':') {
            true => write!(f, "{LANE_SCHEME}[{host}]:{port}"),
            false => write!(f, "{LANE_SCHEME}{host}:{port}"),
        }
    }
}

by_text!(LaneAddress, LaneAddressError);

/// Where a node is reached, as operators write and read it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// Its mesh port, over UDP and TCP: `192.0.2.1:4677`.
    Port(SocketAddr),
    /// Lanes only: `tls://ingress.example:443`.
    Lane(LaneAddress),
}

/// Why a text is no address of a node. The writer's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// A lane address that is wrong.
    #[error(transparent)]
    Lane(#[from] LaneAddressError),
    /// Anything else.
    #[error("{0:?} is no address; write IP:PORT, or {LANE_SCHEME}HOST:PORT for TLS through an ingress")]
    Port(String),
}

impl Address {
    /// Parts addresses into those of mesh ports and those of lanes.
    pub fn part(all: Vec<Self>) -> (Vec<SocketAddr>, Vec<LaneAddress>) {
        let (mut ports, mut lanes) = (Vec::new(), Vec::new());
        for address in all {
            match address {
                Self::Port(address) => ports.push(address),
                Self::Lane(address) => lanes.push(address),
            }
        }
        (ports, lanes)
    }

    /// Puts both kinds into one list, those of mesh ports first.
    pub fn join(ports: &[SocketAddr], lanes: &[LaneAddress]) -> Vec<Self> {
        let ports = ports.iter().copied().map(Self::Port);
        ports.chain(lanes.iter().cloned().map(Self::Lane)).collect()
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with(LANE_SCHEME) {
            return Ok(Self::Lane(text.parse()?));
        }
        text.parse().map(Self::Port).map_err(|_| AddressError::Port(shortened(text)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(address) => address.fmt(f),
            Self::Lane(address) => address.fmt(f),
        }
    }
}

by_text!(Address, AddressError);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, LaneAddressError> {
        text.parse::<LaneAddress>().map(|address| address.to_string())
    }

    #[test]
    fn lane_addresses_have_one_form() {
        for (text, form) in [
            ("tls://ingress.example:8443", "tls://ingress.example:8443"),
            ("tls://Ingress.Example", "tls://ingress.example:443"),
            ("tls://gate", "tls://gate:443"),
            ("tls://192.0.2.7:443", "tls://192.0.2.7:443"),
            ("tls://[2001:DB8:0::1]", "tls://[2001:db8::1]:443"),
            ("tls://[2001:db8::1]:9", "tls://[2001:db8::1]:9"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(form));
            assert_eq!(read(form).as_deref(), Ok(form));
        }
        let literal = |text: &str| text.parse::<LaneAddress>().expect(text).literal();
        assert_eq!(literal("tls://[::1]:9"), Some("[::1]:9".parse().expect("address")));
        assert_eq!(literal("tls://one.example"), None);
    }

    #[test]
    fn what_is_wrong_with_a_lane_address_is_said() {
        for (text, why) in [
            ("https://a.example", "does not begin with tls://"),
            ("tls://", "neither an IP address nor a host name"),
            ("tls://:443", "neither an IP address nor a host name"),
            ("tls://a b.example", "neither an IP address nor a host name"),
            ("tls://-a.example", "neither an IP address nor a host name"),
            ("tls://a..example", "neither an IP address nor a host name"),
            ("tls://a.example.", "neither an IP address nor a host name"),
            ("tls://192.0.2.777", "neither an IP address nor a host name"),
            ("tls://[192.0.2.1]:1", "neither an IP address nor a host name"),
            ("tls://[::1", "neither an IP address nor a host name"),
            ("tls://2001:db8::1", "an IPv6 address in brackets"),
            ("tls://a.example:", "\"\" is no port"),
            ("tls://a.example:0", "\"0\" is no port"),
            ("tls://a.example:65536", "is no port"),
            ("tls://a.example:+1", "is no port"),
            ("tls://a.example:443/path", "is no port"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let host = format!("{}.example", "a.".repeat(MAX_HOST_BYTES));
        let error = read(&format!("tls://{host}")).expect_err("too long").to_string();
        assert!(error.contains("the limit is 128"), "{error}");
        assert!(error.len() < 200);
    }

    #[test]
    fn both_kinds_of_address_stand_in_one_list() {
        let texts = ["192.0.2.1:4677", "tls://a.example:443"];
        let all: Vec<Address> = texts.iter().map(|text| text.parse().expect(text)).collect();
        let (ports, lanes) = Address::part(all.clone());
        assert_eq!(Address::join(&ports, &lanes), all);
        let error = "a.example:443".parse::<Address>().expect_err("no scheme").to_string();
        assert!(error.contains("write IP:PORT, or tls://HOST:PORT"), "{error}");
    }
}
