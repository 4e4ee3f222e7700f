//! PROXY protocol headers: who calls, told to a target before the first byte of its client.
//!
//! Owns: what such a header says. Must not know: sockets, who may call. Driven by: `inbound`, when it has connected to a
//! target that asks for one.
//!
//! The address is that of the caller's node as this node sees it, and the identity is that of its certificate: nothing
//! that a caller could make up. Version 2 of the protocol, haproxy's `doc/proxy-protocol.txt` of 2020/03/05.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ppp::v2::{Addresses, Builder, Command, Protocol, Type, Version};

/// The caller's identity, `spiffe://<mesh id>/group/<group>/node/<name>`: first of the types for own use.
pub(super) const TLV_IDENTITY: u8 = 0xe0;
/// The caller's node id as text.
pub(super) const TLV_NODE: u8 = 0xe1;

/// What a target is told.
#[derive(Clone, Debug)]
pub(super) struct Told<'a> {
    /// The name of the caller's certificate.
    pub(super) identity: &'a str,
    /// Its node id as text.
    pub(super) node: &'a str,
    /// The service that was called.
    pub(super) service: &'a str,
    /// The flow as access lines write it.
    pub(super) flow: &'a str,
    /// From where to where.
    pub(super) addresses: (SocketAddr, SocketAddr),
}

/// Returns the header; `None` when a part is longer than the protocol allows, which no name of ours is.
pub(super) fn header(told: &Told<'_>) -> Option<Vec<u8>> {
    let addresses: Addresses = of_one_family(told.addresses).into();
    let all = [
        (u8::from(Type::Authority), told.service),
        (u8::from(Type::UniqueId), told.flow),
        (TLV_IDENTITY, told.identity),
        (TLV_NODE, told.node),
    ];
    let empty = Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, addresses);
    let filled =
        all.into_iter().try_fold(empty, |header, (kind, text)| header.write_tlv(kind, text.as_bytes()));
    filled.and_then(Builder::build).ok()
}

/// The header has addresses of one family only: beside an IPv6 address IPv4 is written as in RFC 4291 2.5.5.2.
fn of_one_family((from, to): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    if from.is_ipv4() == to.is_ipv4() {
        return (from, to);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(from), mapped(to))
}

/// Returns the address that stands for a target without one.
pub(super) const fn nowhere(beside: SocketAddr, port: u16) -> SocketAddr {
    let ip = match beside {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    use ppp::v2::Header;

    fn told(from: &str, to: &str) -> Vec<u8> {
        let addresses = (from.parse().expect("address"), to.parse().expect("address"));
        let identity = "spiffe://mesh/group/west/node/vm-a";
        header(&Told { identity, node: "nodeid", service: "orders", flow: "00ff", addresses }).expect("short")
    }

    #[test]
    fn a_reader_finds_the_caller_in_it() {
        let bytes = told("192.0.2.7:4677", "127.0.0.1:5432");
        let header = Header::try_from(&bytes[..]).expect("a header");
        assert_eq!(
            (header.version, header.command, header.protocol),
            (Version::Two, Command::Proxy, Protocol::Stream)
        );
        let Addresses::IPv4(addresses) = header.addresses else { panic!("{header:?}") };
        assert_eq!((addresses.source_address, addresses.source_port), ([192, 0, 2, 7].into(), 4677));
        assert_eq!(
            (addresses.destination_address, addresses.destination_port),
            ([127, 0, 0, 1].into(), 5432)
        );
        let tlvs: Vec<_> = header.tlvs().map(|tlv| tlv.expect("whole")).collect();
        let found: Vec<_> = tlvs.iter().map(|tlv| (tlv.kind, &tlv.value[..])).collect();
        let identity: &[u8] = b"spiffe://mesh/group/west/node/vm-a";
        assert_eq!(found, [(0x02, &b"orders"[..]), (0x05, b"00ff"), (0xe0, identity), (0xe1, b"nodeid")]);
    }

    #[test]
    fn families_that_differ_are_both_written_as_ipv6() {
        let bytes = told("[2001:db8::7]:4677", "127.0.0.1:5432");
        let header = Header::try_from(&bytes[..]).expect("a header");
        let Addresses::IPv6(addresses) = header.addresses else { panic!("{header:?}") };
        assert_eq!(addresses.destination_address, Ipv4Addr::LOCALHOST.to_ipv6_mapped());
    }

    #[test]
    fn a_target_without_an_address_gets_the_unspecified_one() {
        assert_eq!(nowhere("192.0.2.7:1".parse().expect("address"), 80).to_string(), "0.0.0.0:80");
        assert_eq!(nowhere("[::1]:1".parse().expect("address"), 80).to_string(), "[::]:80");
    }
}
