//! dnat mode: where the kernel sends connections to VIPs, and what is known of its doing so.
//!
//! Owns: the addresses of this mode, the IPv6 form of a VIP, what a look at the kernel means. Must not know: sockets,
//! nft. Driven by: `relay::vips`, `host::network` (ADR 26).
//!
//! ```text
//! client -> VIP:port -> [nft] -> <pool>.0.1:4679, which reads VIP and port from the socket
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Pool;

/// The addresses of one daemon in dnat mode. Equal for whoever knows pool and slot, so that the privileged step and the
/// daemon need not talk to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    pool: Pool,
    slot: u8,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a look at the kernel has shown of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A connection to the pool arrives at this daemon.
    Ready,
    /// The addresses of the pool are none of this machine: the route is missing.
    NoRoute,
    /// They are, and a connection to them does not arrive here: the table is missing.
    NoTable,
    /// This machine does not have the family.
    Off,
}

/// What one look at a family has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// How it stands.
    Seen(Standing),
    /// The address is local, and nothing came back in time.
    Late,
    /// This process has no file left to look with.
    NoFiles,
}

impl Redirect {
    /// Makes the addresses of a daemon. Slots above 9 wrap.
    pub const fn new(pool: Pool, slot: u8) -> Self {
        Self { pool, slot: slot % 10 }
    }

    /// Returns the IPv4 pool.
    pub const fn pool(&self) -> Pool {
        self.pool
    }

    /// Returns the slot.
    pub const fn slot(&self) -> u8 {
        self.slot
    }

    /// Returns the port of the listener, and of the address by which it is looked for.
    pub const fn port(&self) -> u16 {
        PORT + 10 * self.slot as u16
    }

    /// Returns the IPv6 pool, `fd67:6f73:7361:<slot>::/64`.
    pub const fn network6(&self) -> (Ipv6Addr, u8) {
        (self.at6(Ipv4Addr::UNSPECIFIED), 64)
    }

    /// Returns where the one listener of a family is: on the first address of the pool.
    pub fn target(&self, family: Family) -> SocketAddr {
        let ip = match family {
            Family::V4 => self.pool.at(1).into(),
            Family::V6 => self.at6(Ipv4Addr::new(0, 0, 0, 1)).into(),
        };
        SocketAddr::new(ip, self.port())
    }

    /// Returns an address that is no VIP and redirected like one: one of the last reserved ones. Its port is the
    /// listener's, which no other program can have on all addresses.
    pub fn probe(&self, family: Family) -> SocketAddr {
        let last = self.pool.at(self.pool.size() - 2);
        let ip = match family {
            Family::V4 => last.into(),
            Family::V6 => self.at6(last).into(),
        };
        SocketAddr::new(ip, self.port())
    }

    /// Returns the IPv6 form of a VIP: the IPv4 one in its last 32 bits, so that both stand for one name.
    pub const fn vip6(&self, vip: Ipv4Addr) -> Ipv6Addr {
        self.at6(vip)
    }

    /// Returns the VIP that a client meant, of either family; `None` when the address is none of the pools.
    pub fn vip_of(&self, destination: IpAddr) -> Option<Ipv4Addr> {
        let ip = match destination.to_canonical() {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(ip) => {
                let [.., a, b, c, d] = ip.octets();
                let inner = Ipv4Addr::new(a, b, c, d);
                (self.at6(inner) == ip).then_some(inner)?
            }
        };
        self.pool.contains(ip.into()).then_some(ip)
    }

    /// Returns whether an address lies in one of the pools, also where no VIP can be.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(_) => self.pool.contains(ip),
            IpAddr::V6(ip) => {
                ip.octets().iter().zip(self.network6().0.octets()).take(8).all(|(a, b)| *a == b)
            }
        }
    }

    const fn at6(&self, inner: Ipv4Addr) -> Ipv6Addr {
        let [a, b, c, d] = inner.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Ipv6Addr::new(0xfd67, 0x6f73, 0x7361, self.slot as u16, 0, 0, high, low)
    }
}

impl Standing {
    /// Judges what a look found: whether the address can be had here, and whether a connection to it came back to this
    /// daemon.
    pub const fn judge(is_local: bool, arrives: bool) -> Self {
        match (is_local, arrives) {
            (_, true) => Self::Ready,
            (false, false) => Self::NoRoute,
            (true, false) => Self::NoTable,
        }
    }

    /// Returns how a family stands after a look. What is no sign of a lost table does not end all names: no file to look
    /// with, and a single look of a busy machine that was late. `was_late` tells of the look before.
    pub fn after(before: Option<Self>, was_late: bool, look: Look) -> Self {
        match look {
            Look::Seen(standing) => standing,
            Look::Late if was_late => Self::NoTable,
            Look::Late | Look::NoFiles => before.unwrap_or(Self::NoTable),
        }
    }

    /// Returns its name, one word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NoRoute => "no-route",
            Self::NoTable => "no-table",
            Self::Off => "off",
        }
    }

    /// Returns what is missing, when something is.
    pub const fn missing(self) -> Option<&'static str> {
        match self {
            Self::Ready | Self::Off => None,
            Self::NoRoute => Some("the local route to the pool is missing"),
            Self::NoTable => Some("the nft table that redirects the pool is missing or does not work"),
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The port of the listener of slot 0; slot N adds 10 N (design section 14).
const PORT: u16 = 4679;

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    fn redirect() -> Redirect {
        Redirect::new("240.80.0.0/12".parse().expect("a pool"), 3)
    }

    #[test]
    fn listener_and_probe_lie_in_the_reserved_ends_of_the_pool() {
        let [first, second] = [Family::V4, Family::V6].map(|family| redirect().target(family).to_string());
        assert_eq!([first.as_str(), second.as_str()], ["240.80.0.1:4709", "[fd67:6f73:7361:3::1]:4709"]);
        let [first, second] = [Family::V4, Family::V6].map(|family| redirect().probe(family).to_string());
        assert_eq!(
            [first.as_str(), second.as_str()],
            ["240.95.255.254:4709", "[fd67:6f73:7361:3::f05f:fffe]:4709"]
        );
        assert_eq!(redirect().network6(), ("fd67:6f73:7361:3::".parse().expect("ip"), 64));
    }

    #[test]
    fn addresses_of_others_stand_for_nothing() {
        for foreign in ["127.240.1.1", "fd67:6f73:7361:2::f050:101", "fd67:6f73:7361:3:1::f050:101", "::1"] {
            assert_eq!(redirect().vip_of(foreign.parse().expect(foreign)), None, "{foreign}");
        }
        let outside_the_pool = "fd67:6f73:7361:3::7ff0:101".parse().expect("ip");
        assert_eq!(redirect().vip_of(outside_the_pool), None);
        assert!(
            redirect().contains(outside_the_pool)
                && !redirect().contains("fd67:6f73:7361:2::1".parse().expect("ip"))
        );
    }

    #[test]
    fn what_is_missing_is_told_apart() {
        assert_eq!(Standing::judge(true, true), Standing::Ready);
        assert_eq!(Standing::judge(false, false), Standing::NoRoute);
        assert_eq!(Standing::judge(true, false), Standing::NoTable);
        assert!(Standing::NoTable.missing().is_some() && Standing::Off.missing().is_none());
    }

    #[test]
    fn a_table_is_not_lost_for_want_of_files_or_one_late_look() {
        let ready = Some(Standing::Ready);
        for was_late in [false, true] {
            assert_eq!(Standing::after(ready, was_late, Look::NoFiles), Standing::Ready);
            let seen = Look::Seen(Standing::NoRoute);
            assert_eq!(Standing::after(ready, was_late, seen), Standing::NoRoute);
            assert_eq!(Standing::after(None, was_late, Look::NoFiles), Standing::NoTable);
        }
        assert_eq!(Standing::after(ready, false, Look::Late), Standing::Ready);
        assert_eq!(Standing::after(ready, true, Look::Late), Standing::NoTable);
        assert_eq!(Standing::after(None, false, Look::Late), Standing::NoTable);
    }

    proptest! {
        #[test]
        fn both_forms_of_a_vip_lead_back_to_it(hash in any::<u64>(), slot in 0..10_u8) {
            let redirect = Redirect::new(Pool::of_slot(slot), slot);
            let vip = redirect.pool().vip(hash);
            let over_v6 = redirect.vip6(vip);
            prop_assert_eq!(redirect.vip_of(vip.into()), Some(vip));
            prop_assert_eq!(redirect.vip_of(over_v6.into()), Some(vip));
            prop_assert!(redirect.contains(over_v6.into()));
            for family in [Family::V4, Family::V6] {
                prop_assert!(![redirect.target(family).ip(), redirect.probe(family).ip()].contains(&over_v6.into()));
                prop_assert!(redirect.probe(family).ip() != vip && redirect.target(family).ip() != vip);
            }
        }
    }
}
