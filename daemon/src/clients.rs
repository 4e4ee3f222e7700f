//! Who may ask DNS and connect to virtual addresses: this host, and the networks of `vip.clients`.
//!
//! Owns: the one rule for sources, the text form of these networks. Must not know: what is asked, where a connection
//! goes. Driven by: the DNS server for each question, VIP listeners for each connection.
//!
//! A neighbour with a route to the pool must not enter the mesh (design section 8).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use thiserror::Error;
use tokio::time::Instant;

/// Shortest prefix of a network of clients: 10.0.0.0/8 and fd00::/8 fit.
const MIN_PREFIX: u8 = 8;

/// How long an address counts as one of this host without asking the system again.
const REMEMBERED: Duration = Duration::from_secs(1);

/// Whom DNS and virtual addresses are for. Clones share what they remember. The default: this host only.
#[derive(Clone, Debug, Default)]
pub struct Clients(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    networks: Vec<Network>,
    /// The own address that asked last, and when the system said so. One is enough: programs of this host come
    /// from loopback, or from the one address that they ask.
    own: ArcSwapOption<(IpAddr, Instant)>,
}

impl Clients {
    /// Lets these networks in beside this host.
    pub fn new(networks: Vec<Network>) -> Self {
        Self(Arc::new(Inner { networks, own: ArcSwapOption::empty() }))
    }

    /// Returns whether a source may ask and connect. Never blocks; the system is asked only about what is neither
    /// loopback nor in a network.
    pub fn admits(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        source.is_loopback()
            || self.0.networks.iter().any(|network| network.contains(source))
            || self.is_own(source)
    }

    fn is_own(&self, source: IpAddr) -> bool {
        let now = Instant::now();
        let is_known = |own: &(IpAddr, Instant)| own.0 == source && now.duration_since(own.1) < REMEMBERED;
        if self.0.own.load().as_deref().is_some_and(is_known) {
            return true;
        }
        let is_own = is_this_host(source);
        if is_own {
            self.0.own.store(Some(Arc::new((source, now))));
        }
        is_own
    }
}

/// Returns whether an address belongs to this host: the way from it to it is local. That it can be bound says nothing
/// where `net.ipv4.ip_nonlocal_bind` is set, as keepalived wants it: then each stranger's can. No packet is sent. An
/// address of IPv6 that is local by a route alone counts as a stranger's.
pub fn is_this_host(ip: IpAddr) -> bool {
    try_this_host(ip).unwrap_or(false)
}

/// Returns what [`is_this_host`] does.
///
/// # Errors
/// There is no file left to ask with.
pub fn try_this_host(ip: IpAddr) -> io::Result<bool> {
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        return Ok(ip.is_loopback());
    }
    match source_to(ip) {
        Err(error) if is_out_of_files(&error) => Err(error),
        source => Ok(source.is_ok_and(|source| source == ip)),
    }
}

/// Returns whether this process, or the whole machine, can open no more files.
pub fn is_out_of_files(error: &io::Error) -> bool {
    [nix::libc::EMFILE, nix::libc::ENFILE].map(Some).contains(&error.raw_os_error())
}

/// Returns the address from which this host would send to its own address; fails where the address is none of its own
/// (IPv4), or is another one then (IPv6).
fn source_to(ip: IpAddr) -> io::Result<IpAddr> {
    let from: IpAddr = match ip {
        // The kernel checks a given source when it looks for the way, whatever may be bound. Left to itself it takes
        // the interface's first address for the second one.
        IpAddr::V4(_) => ip,
        // Here it takes the address itself, and checks no given one.
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((from, 0))?;
    // Any port will do: to connect a datagram socket only looks for the way.
    socket.connect((ip, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// Returns whether loopback has IPv6 here.
pub fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Addresses with the same first bits, as `10.244.0.0/16`; an address alone is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Has no bits below the prefix.
    base: IpAddr,
    /// [`MIN_PREFIX`] to 32, or to 128 with IPv6.
    prefix: u8,
}

/// Why a text is no network of clients. The operator's fault; cause and remedy are parted by a semicolon.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NetworkError {
    /// It is something else.
    #[error("{0:?} is no network; write for example 10.244.0.0/16 or fd00:10:244::/56")]
    Malformed(String),
    /// It has bits below its prefix: a network of others may be meant.
    #[error("{text:?} has bits below its prefix; write {network}")]
    HostBits {
        /// What was written.
        text: String,
        /// The network around it.
        network: Network,
    },
    /// It would let the world in.
    #[error(
        "{0:?} is wider than /{MIN_PREFIX}: whoever has a route to this machine would be in the mesh as this node; write the networks of its pods or containers"
    )]
    TooWide(String),
    /// It would match nobody: IPv4 is compared as IPv4.
    #[error("{0:?} is IPv4 written as IPv6; write the IPv4 network")]
    Mapped(String),
}

impl Network {
    /// Returns whether its addresses are IPv4 ones.
    pub const fn is_ipv4(&self) -> bool {
        self.base.is_ipv4()
    }

    fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.base.is_ipv4() && first_bits(ip, self.prefix) == self.base
    }
}

/// Clears what lies below the prefix.
fn first_bits(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let shown = || text.chars().take(60).collect::<String>();
        let malformed = || NetworkError::Malformed(shown());
        let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
        let ip: IpAddr = ip.parse().map_err(|_| malformed())?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        let is_number = |length: &&str| length.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match length {
            None => Some(longest),
            Some(length) => Some(length).filter(is_number).and_then(|length| length.parse().ok()),
        };
        let prefix = prefix.filter(|prefix: &u8| *prefix <= longest).ok_or_else(malformed)?;
        if prefix < MIN_PREFIX {
            return Err(NetworkError::TooWide(shown()));
        }
        if ip.to_canonical() != ip {
            return Err(NetworkError::Mapped(shown()));
        }
        let network = Self { base: first_bits(ip, prefix), prefix };
        if network.base == ip { Ok(network) } else { Err(NetworkError::HostBits { text: shown(), network }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn clients(networks: &[&str]) -> Clients {
        Clients::new(networks.iter().map(|text| text.parse().expect(text)).collect())
    }

    #[test]
    fn addresses_of_this_host_are_told_from_others() {
        for own in ["127.0.0.1", "127.240.3.4", "::1", "::ffff:127.0.0.1"] {
            assert!(is_this_host(ip(own)), "{own}");
            assert!(Clients::default().admits(ip(own)), "{own}");
        }
        for other in ["192.0.2.1", "2001:db8::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1"] {
            assert!(!is_this_host(ip(other)), "{other}");
            assert!(!Clients::default().admits(ip(other)), "{other}");
        }
    }

    /// Each address of an interface is one of this host; the test machine has what it has.
    #[test]
    fn addresses_of_interfaces_are_of_this_host() {
        let mut seen = 0;
        for interface in nix::ifaddrs::getifaddrs().expect("interfaces") {
            let Some(storage) = interface.address else { continue };
            let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            let v6 = storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
            // One of a link alone says nothing without the link.
            let Some(own) = v4.or_else(|| v6.filter(|ip| !ip.to_string().starts_with("fe80"))) else {
                continue;
            };
            assert!(is_this_host(own), "{own}");
            seen += 1;
        }
        assert!(seen > 0);
    }

    #[test]
    fn want_of_files_is_told_from_other_errors() {
        for (number, wanted) in
            [(nix::libc::EMFILE, true), (nix::libc::ENFILE, true), (nix::libc::EADDRNOTAVAIL, false)]
        {
            assert_eq!(is_out_of_files(&io::Error::from_raw_os_error(number)), wanted, "{number}");
        }
        assert!(!try_this_host(ip("192.0.2.1")).expect("there are files"));
    }

    #[test]
    fn networks_are_let_in_and_their_neighbours_are_not() {
        let clients = clients(&["203.0.113.128/25", "198.51.100.7", "2001:db8:0:f0::/60"]);
        for inside in [
            "203.0.113.128",
            "203.0.113.255",
            "::ffff:203.0.113.200",
            "198.51.100.7",
            "2001:db8:0:f0::",
            "2001:db8:0:ff::1",
        ] {
            assert!(clients.admits(ip(inside)), "{inside}");
        }
        for outside in [
            "203.0.113.127",
            "203.0.114.128",
            "198.51.100.6",
            "2001:db8:0:ef::1",
            "2001:db8:0:100::1",
            "::cb00:7180",
        ] {
            assert!(!clients.admits(ip(outside)), "{outside}");
        }
    }

    #[test]
    fn a_remembered_address_does_not_let_others_in() {
        let clients = Clients::default();
        clients.0.own.store(Some(Arc::new((ip("203.0.113.1"), Instant::now()))));
        assert!(clients.admits(ip("203.0.113.1")));
        assert!(!clients.admits(ip("203.0.113.2")));
    }

    #[test]
    fn an_address_that_left_this_host_is_soon_no_client() {
        let clients = Clients::default();
        let before = Instant::now().checked_sub(REMEMBERED).expect("the machine runs for longer");
        clients.0.own.store(Some(Arc::new((ip("192.0.2.1"), before))));
        assert!(!clients.admits(ip("192.0.2.1")));
    }

    #[test]
    fn networks_are_shown_as_they_are_written() {
        for text in ["10.244.0.0/16", "10.0.0.0/8", "198.51.100.7/32", "fd00::/8", "2001:db8::1/128"] {
            assert_eq!(text.parse::<Network>().map(|network| network.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("198.51.100.7".parse::<Network>().map(|network| network.prefix), Ok(32));
        assert_eq!("2001:db8::1".parse::<Network>().map(|network| network.prefix), Ok(128));
    }

    #[test]
    fn what_is_no_network_of_clients_is_refused_with_the_remedy() {
        for (text, words) in [
            ("", "is no network"),
            ("10.244.0.0/", "is no network"),
            ("10.244.0.0/33", "is no network"),
            ("10.244.0.0/+16", "is no network"),
            ("10.244.0.0/16/16", "is no network"),
            ("pods", "is no network"),
            ("fd00::/129", "is no network"),
            ("0.0.0.0/0", "wider than /8"),
            ("10.0.0.0/7", "wider than /8"),
            ("::/0", "wider than /8"),
            ("2000::/3", "wider than /8"),
            ("10.244.7.1/16", "; write 10.244.0.0/16"),
            ("fd00::1/64", "; write fd00::/64"),
            ("::ffff:10.0.0.0/104", "write the IPv4 network"),
        ] {
            let error = text.parse::<Network>().expect_err(text).to_string();
            assert!(error.contains(words) && error.contains("; "), "{text}: {error}");
        }
    }
}
