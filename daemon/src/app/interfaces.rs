//! The addresses of this machine's interfaces, and which addresses this node gives others.
//!
//! Owns: reading the interfaces. Must not know: who dials. Driven by: `addresses`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use gossamer_core::reach::{Origin, order};
use gossamer_core::vip::Pool;
use gossamer_wire::limits::MAX_ADDRESSES;

/// Returns the addresses for this node's card, in the order of [`order`]: those the operator gave, the one it listens on, or
/// those of all interfaces when it listens on every one, and where peers see it; loopback only when there is nothing else.
pub(super) fn advertised(given: &[SocketAddr], listen: SocketAddr, seen: &[SocketAddr]) -> Vec<SocketAddr> {
    let found = match listen.ip().is_unspecified() {
        true => of_interfaces().into_iter().filter(|ip| listen.is_ipv6() || ip.is_ipv4()).collect(),
        false => vec![listen.ip()],
    };
    choose(given, found, seen, listen.port())
}

fn choose(given: &[SocketAddr], mut found: Vec<IpAddr>, seen: &[SocketAddr], port: u16) -> Vec<SocketAddr> {
    if !given.is_empty() || found.iter().any(|ip| !ip.is_loopback()) {
        found.retain(|ip| !ip.is_loopback() || is_given(given, port, *ip));
    }
    let given = given.iter().map(|address| (*address, Origin::Given));
    let found = found.into_iter().map(|ip| (SocketAddr::new(ip, port), Origin::Interface));
    let seen = seen.iter().map(|address| (*address, Origin::Seen));
    order(&given.chain(found).chain(seen).collect::<Vec<_>>(), MAX_ADDRESSES)
}

/// Whether the operator named this very loopback address.
fn is_given(given: &[SocketAddr], port: u16, ip: IpAddr) -> bool {
    given.contains(&SocketAddr::new(ip, port))
}

/// Returns an interface that has an address among the virtual ones, with that address: names that stand for it would
/// lead to this machine's own programs. The reserved ends of a pool are no virtual addresses.
pub(crate) fn overlapping(pool: &Pool) -> Option<(String, Ipv4Addr)> {
    let mut all = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        Some((interface.interface_name, address))
    });
    all.find(|(_, address)| pool.has_vip(*address))
}

/// Returns the addresses of all interfaces that are up, those towards other networks first: a machine may have many more for
/// its own containers. Link-local ones are left out, since they mean nothing on another link.
fn of_interfaces() -> Vec<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let up = all.filter(|interface| interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP));
    let mut found: Vec<IpAddr> = up
        .filter_map(|interface| {
            let storage = interface.address?;
            let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .filter(|ip| match ip {
            IpAddr::V4(ip) => !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        })
        .collect();
    let outward: Vec<_> = ELSEWHERE.into_iter().filter_map(outward).collect();
    found.sort_by_key(|ip| (!outward.contains(ip), ip.is_ipv6()));
    found
}

/// Returns the own address from which packets to another network would leave. Nothing is sent.
fn outward(to: &str) -> Option<IpAddr> {
    let to: SocketAddr = to.parse().ok()?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Addresses that are nobody's (RFC 5737, RFC 3849): the way to them is that to most others.
const ELSEWHERE: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("ip")).collect()
    }

    #[test]
    fn loopback_is_named_only_when_there_is_nothing_else() {
        assert_eq!(choose(&[], ips(&["127.0.0.1"]), &[], 4677), ["127.0.0.1:4677".parse().expect("address")]);
        let both = choose(&[], ips(&["127.0.0.1", "192.0.2.1"]), &[], 4677);
        assert_eq!(both, ["192.0.2.1:4677".parse().expect("address")]);
    }

    #[test]
    fn what_the_operator_gives_comes_first_and_once() {
        let given: Vec<SocketAddr> = vec!["198.51.100.1:4677".parse().expect("address")];
        let all = choose(&given, ips(&["192.0.2.1", "198.51.100.1", "127.0.0.1"]), &[], 4677);
        let want: Vec<SocketAddr> =
            ["198.51.100.1:4677", "192.0.2.1:4677"].map(|text| text.parse().expect("address")).to_vec();
        assert_eq!(all, want);
    }

    #[test]
    fn a_card_holds_at_most_eight() {
        let many: Vec<IpAddr> = (1..=20).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        assert_eq!(choose(&[], many, &[], 1).len(), MAX_ADDRESSES);
    }

    #[test]
    fn where_peers_see_this_node_stands_between_the_public_and_the_private_addresses() {
        let seen: Vec<SocketAddr> =
            ["203.0.113.9:4677", "10.0.0.5:4677"].map(|text| text.parse().expect("address")).to_vec();
        let all = choose(&[], ips(&["10.0.0.5", "2001:db8::5"]), &seen, 4677);
        let want: Vec<SocketAddr> = ["[2001:db8::5]:4677", "203.0.113.9:4677", "10.0.0.5:4677"]
            .map(|text| text.parse().expect("address"))
            .to_vec();
        assert_eq!(all, want);
    }

    #[test]
    fn the_way_to_other_networks_is_found_without_a_packet() {
        // A machine without a network has none; where there is one it is an address of an interface.
        for to in ELSEWHERE {
            assert!(outward(to).is_none_or(|ip| of_interfaces().contains(&ip) || ip.is_loopback()), "{to}");
        }
    }
}
