//! What an address of a node is good for: whether it may be dialled at all, who can use it, and in which order.
//!
//! Owns: the deny list of advertised addresses, the order of a card and of a token. Must not know: sockets, interfaces.
//! Driven by: configuration and `app` (own addresses), the catalog (those of others), the dial book, the issuer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::vip::Pool;

/// Why an address is never dialled. The fault of who advertises it; nothing is sent there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
pub enum Denied {
    /// Port 0.
    #[error("port 0 cannot be dialled")]
    PortZero,
    /// All of `0.0.0.0/8`, and `::`.
    #[error("it is the address of no machine")]
    Unspecified,
    /// Multicast.
    #[error("it is a multicast address")]
    Multicast,
    /// `255.255.255.255`.
    #[error("it is the broadcast address")]
    Broadcast,
    /// `169.254.0.0/16`, and `fe80::/10` without a link.
    #[error("it is a link-local address, which means another machine on each link")]
    LinkLocal,
    /// A cloud's metadata service.
    #[error("it is a cloud's metadata service")]
    Metadata,
    /// A virtual address of this or another daemon.
    #[error("it is a virtual address of the mesh")]
    Pool,
    /// This machine, where that cannot be the other node.
    #[error("it is a loopback address, which only leads a machine to itself")]
    Loopback,
}

impl Denied {
    /// Returns its word in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::PortZero => "port_zero",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::LinkLocal => "link_local",
            Self::Metadata => "metadata",
            Self::Pool => "pool",
            Self::Loopback => "loopback",
        }
    }
}

/// Addresses that are never dialled, whoever names them. The default: those of every daemon.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deny {
    pool: Option<Pool>,
    /// The first four segments of the IPv6 pool.
    pool6: Option<[u16; 4]>,
    has_no_loopback: bool,
}

impl Deny {
    /// Denies the virtual addresses of this daemon as well: a pool, and the /64 network of its IPv6 addresses.
    pub fn of_pools(pool: Pool, pool6: Ipv6Addr) -> Self {
        let [a, b, c, d, ..] = pool6.segments();
        Self { pool: Some(pool), pool6: Some([a, b, c, d]), ..Self::default() }
    }

    /// Denies loopback, too: for a node that others do not find there.
    #[must_use]
    pub const fn with_loopback(self) -> Self {
        Self { has_no_loopback: true, ..self }
    }

    /// Judges an address, whichever way its IPv4 address is written in IPv6. Returns it in its plain form.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(&self, address: SocketAddr) -> Result<SocketAddr, Denied> {
        if address.port() == 0 {
            return Err(Denied::PortZero);
        }
        let ip = embedded(address.ip()).map_or_else(|| address.ip(), IpAddr::V4);
        let has_link = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        match check_ip(ip) {
            Err(Denied::LinkLocal) if has_link => {}
            verdict => verdict?,
        }
        let is_virtual = match ip {
            IpAddr::V4(v4) => v4.octets().first() == Some(&127) && v4.octets().get(1) >= Some(&240),
            IpAddr::V6(v6) => self.pool6.is_some_and(|pool| v6.segments().starts_with(&pool)),
        };
        if is_virtual || self.pool.is_some_and(|pool| pool.contains(ip)) {
            return Err(Denied::Pool);
        }
        if self.has_no_loopback && ip.is_loopback() {
            return Err(Denied::Loopback);
        }
        match address.ip().to_canonical() {
            ip @ IpAddr::V4(_) => Ok(SocketAddr::new(ip, address.port())),
            IpAddr::V6(_) => Ok(address),
        }
    }

    /// Parts addresses into those that may be dialled, in their order and plain form, and the others with the reason.
    pub fn part(&self, addresses: Vec<SocketAddr>) -> (Vec<SocketAddr>, Vec<(SocketAddr, Denied)>) {
        let (mut good, mut denied) = (Vec::new(), Vec::new());
        for address in addresses {
            match self.check(address) {
                Ok(address) => good.push(address),
                Err(why) => denied.push((address, why)),
            }
        }
        (good, denied)
    }
}

/// Judges an address without a port by the rules that hold everywhere; loopback and pools are not among them.
///
/// # Errors
/// The first rule it breaks.
pub fn check_ip(ip: IpAddr) -> Result<(), Denied> {
    if METADATA.contains(&ip) {
        return Err(Denied::Metadata);
    }
    if ip.is_unspecified() {
        return Err(Denied::Unspecified);
    }
    if ip.is_multicast() {
        return Err(Denied::Multicast);
    }
    match ip {
        // All of 0.0.0.0/8 is "this host": Linux connects to itself.
        IpAddr::V4(ip) if ip.octets()[0] == 0 => Err(Denied::Unspecified),
        IpAddr::V4(ip) if ip.is_broadcast() => Err(Denied::Broadcast),
        IpAddr::V4(ip) if ip.is_link_local() => Err(Denied::LinkLocal),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Err(Denied::LinkLocal),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(()),
    }
}

/// Takes the IPv4 address out of an IPv6 form that leads to it: mapped (RFC 4291 2.5.5.2), compatible (2.5.5.1) and the
/// well-known NAT64 prefix (RFC 6052 2.1).
pub fn embedded(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(ip) = ip else { return None };
    let [a, b, c, d, e, f, high, low] = ip.segments();
    let has_one = match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => true,
        // `::` and `::1` are IPv6 addresses of their own.
        [0, 0, 0, 0, 0, 0] => high != 0,
        _ => false,
    };
    has_one.then(|| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

/// Metadata services that are not link-local by themselves, and the one that is, for its better error:
/// AWS/Azure/Google/OpenStack, AWS and Google over IPv6, Azure's wire server, Alibaba, Oracle.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Who can use an address; the order is that of usefulness to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// Every network that lets UDP out.
    Global,
    /// The networks around it: private, shared (RFC 6598) and unique local addresses.
    Private,
    /// The machine itself.
    Machine,
}

/// Returns who can use an address.
pub fn span(ip: IpAddr) -> Span {
    match ip.to_canonical() {
        ip if ip.is_loopback() => Span::Machine,
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let is_shared = a == 100 && b & 0xc0 == 64;
            if ip.is_private() || ip.is_link_local() || is_shared { Span::Private } else { Span::Global }
        }
        IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => Span::Private,
        IpAddr::V6(_) => Span::Global,
    }
}

/// The network of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnLink {
    /// An address in it, for example the interface's.
    pub address: IpAddr,
    /// How many bits all its addresses have in common: 0 to 32, or 128 with IPv6; more count as that.
    pub prefix: u8,
}

impl OnLink {
    /// Whether it has the address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let differ = match (self.address.to_canonical(), ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        let bits = if self.address.to_canonical().is_ipv4() { 32 } else { 128 };
        differ >= u32::from(self.prefix).min(bits)
    }
}

/// How an own address became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The operator named it.
    Given,
    /// An interface has it.
    Interface,
    /// Peers see this node there.
    Seen,
}

/// Orders own addresses as others should try them, each once, at most `most`: first what every network can use, then what
/// the operator named, then what only the networks around can use. Within one class an operator's order stays; otherwise
/// the two families take turns. Of a class that fills all places, the next one gets the last.
pub fn order(own: &[(SocketAddr, Origin)], most: usize) -> Vec<SocketAddr> {
    let class = |&(address, origin): &(SocketAddr, Origin)| {
        let span = span(address.ip());
        // What the operator named counts as such wherever it is not good for everybody.
        let is_far = span == Span::Global;
        let rank = match (is_far, origin, span) {
            (true, ..) => 0,
            (false, Origin::Given, _) => 1,
            (false, _, Span::Private) => 2,
            (false, ..) => 3,
        };
        (rank, origin)
    };
    let mut sorted: Vec<_> = own.iter().map(|own| (class(own), own.0)).collect();
    sorted.sort_by_key(|(class, _)| *class);
    let mut all: Vec<SocketAddr> = Vec::new();
    for class in sorted.chunk_by(|(a, _), (b, _)| a == b) {
        let addresses: Vec<_> = class.iter().map(|(_, address)| *address).collect();
        let is_given = class.first().is_some_and(|((_, origin), _)| *origin == Origin::Given);
        let addresses = if is_given { addresses } else { in_turns(addresses) };
        for address in addresses {
            if !all.contains(&address) {
                all.push(address);
            }
        }
    }
    shorten(all, most)
}

/// Keeps the first `most` of ordered addresses; when all of them are good everywhere and a later one is good nearby only, that
/// one takes the last place: not every router leads its own network to itself.
pub fn shorten(mut all: Vec<SocketAddr>, most: usize) -> Vec<SocketAddr> {
    let is_far = |address: &SocketAddr| span(address.ip()) == Span::Global;
    let near = all.iter().position(|address| span(address.ip()) == Span::Private);
    if let Some(near) = near.filter(|near| *near >= most && most > 1)
        && all.iter().take(most).all(is_far)
    {
        all.swap(most - 1, near);
    }
    all.truncate(most);
    all
}

/// Lets the families take turns, beginning with that of the first address; each keeps its order (RFC 8305 section 4).
pub fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let (one, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let longest = one.len().max(other.len());
    (0..longest).flat_map(|at| one.get(at).into_iter().chain(other.get(at)).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    fn own(texts: &[&str], origin: Origin) -> Vec<(SocketAddr, Origin)> {
        texts.iter().map(|text| (address(text), origin)).collect()
    }

    fn texts(addresses: &[SocketAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    fn deny() -> Deny {
        Deny::of_pools("10.64.0.0/12".parse().expect("pool"), "fd00:67::".parse().expect("network"))
    }

    #[test]
    fn every_kind_that_leads_nowhere_or_astray_is_denied_by_its_rule() {
        for (text, why) in [
            ("192.0.2.1:0", Denied::PortZero),
            ("0.0.0.0:1", Denied::Unspecified),
            ("0.1.2.3:1", Denied::Unspecified),
            ("[::]:1", Denied::Unspecified),
            ("224.0.0.251:1", Denied::Multicast),
            ("[ff02::1]:1", Denied::Multicast),
            ("255.255.255.255:1", Denied::Broadcast),
            ("169.254.7.7:1", Denied::LinkLocal),
            ("[fe80::1]:1", Denied::LinkLocal),
            ("169.254.169.254:80", Denied::Metadata),
            ("[fd00:ec2::254]:80", Denied::Metadata),
            ("100.100.100.200:80", Denied::Metadata),
            ("127.240.0.5:1", Denied::Pool),
            ("127.249.1.1:1", Denied::Pool),
            ("10.64.0.9:1", Denied::Pool),
            ("[fd00:67::9]:1", Denied::Pool),
            // The same, written in IPv6.
            ("[::ffff:169.254.169.254]:80", Denied::Metadata),
            ("[64:ff9b::a9fe:a9fe]:80", Denied::Metadata),
            ("[::ffff:127.240.0.5]:1", Denied::Pool),
            ("[::ffff:224.0.0.1]:1", Denied::Multicast),
        ] {
            assert_eq!(deny().check(address(text)), Err(why), "{text}");
        }
    }

    #[test]
    fn what_another_node_may_have_is_good_and_comes_in_its_plain_form() {
        for text in ["192.0.2.1:4677", "10.0.0.1:4677", "127.0.0.1:4677", "[2001:db8::1]:4677", "[::1]:4677"]
        {
            assert_eq!(deny().check(address(text)), Ok(address(text)), "{text}");
        }
        assert_eq!(deny().check(address("[::ffff:192.0.2.1]:7")), Ok(address("192.0.2.1:7")));
        let link = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::1".parse().expect("ip"), 7, 0, 3));
        assert_eq!(deny().check(link), Ok(link), "with its link it is one machine");
        for text in ["127.0.0.1:4677", "[::1]:4677", "[::ffff:127.0.0.1]:4677"] {
            assert_eq!(deny().with_loopback().check(address(text)), Err(Denied::Loopback), "{text}");
        }
    }

    #[test]
    fn addresses_are_parted_in_their_order() {
        let all = ["10.0.0.1:1", "169.254.169.254:1", "192.0.2.1:1"].map(address).to_vec();
        let (good, denied) = deny().part(all);
        assert_eq!(texts(&good), ["10.0.0.1:1", "192.0.2.1:1"]);
        assert_eq!(denied, [(address("169.254.169.254:1"), Denied::Metadata)]);
    }

    #[test]
    fn who_can_use_an_address() {
        for (text, expected) in [
            ("192.0.2.1", Span::Global),
            ("2001:db8::1", Span::Global),
            ("10.1.1.1", Span::Private),
            ("172.20.0.1", Span::Private),
            ("192.168.0.1", Span::Private),
            ("100.64.0.1", Span::Private),
            ("100.128.0.1", Span::Global),
            ("fd00::1", Span::Private),
            ("127.0.0.1", Span::Machine),
            ("::1", Span::Machine),
        ] {
            assert_eq!(span(text.parse().expect(text)), expected, "{text}");
        }
    }

    #[test]
    fn what_other_networks_can_use_comes_first_then_what_the_operator_named_then_the_rest() {
        let all = [
            own(&["192.168.1.5:1", "203.0.113.9:1", "[2001:db8::5]:1", "[fd00::5]:1"], Origin::Interface),
            own(&["10.9.9.9:1", "198.51.100.7:1"], Origin::Given),
            own(&["203.0.113.77:4", "192.168.1.5:1"], Origin::Seen),
        ]
        .concat();
        let ordered = [
            "198.51.100.7:1",
            "203.0.113.9:1",
            "[2001:db8::5]:1",
            "203.0.113.77:4",
            "10.9.9.9:1",
            "192.168.1.5:1",
            "[fd00::5]:1",
        ];
        assert_eq!(texts(&order(&all, 8)), ordered);
    }

    #[test]
    fn families_take_turns_but_an_operators_order_stays() {
        let v6_heavy = ["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1", "192.0.2.2:1"];
        let turns = ["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "192.0.2.2:1"];
        assert_eq!(texts(&order(&own(&v6_heavy, Origin::Interface), 8)), turns);
        assert_eq!(texts(&order(&own(&v6_heavy, Origin::Given), 8)), v6_heavy);
        assert!(in_turns(Vec::new()).is_empty());
    }

    #[test]
    fn a_short_list_keeps_one_address_for_the_network_around() {
        let all = [
            own(
                &["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1", "192.0.2.4:1", "192.0.2.5:1"],
                Origin::Interface,
            ),
            own(&["10.0.0.1:1", "10.0.0.2:1"], Origin::Interface),
        ]
        .concat();
        assert_eq!(texts(&order(&all, 4)), ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1", "10.0.0.1:1"]);
        assert_eq!(texts(&order(&all, 1)), ["192.0.2.1:1"]);
        assert_eq!(order(&all[..5], 4).len(), 4);
    }
}
