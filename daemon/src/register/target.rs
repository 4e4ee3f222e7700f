//! Where a registered service may point: the deny list.
//!
//! Owns: which addresses and files are never a target. Must not know: services, sockets.
//! Driven by: `book` at registration, and the relay again at dial time.
//!
//! Without it `expose` would let a member reach what only this host may reach: the cloud's metadata service,
//! the daemon's own ports, or another node's service through the VIP pool.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use gossamer_core::reach::{Denied, check_ip, embedded};
use thiserror::Error;

use super::place::Place;

/// Why an address is no target. The operator's fault; nothing was registered or dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Denial {
    /// `0.0.0.0` or `::`.
    #[error("it is no address of a program; name one, for example 127.0.0.1")]
    Unspecified,
    /// Multicast.
    #[error("it is a multicast address")]
    Multicast,
    /// `255.255.255.255`.
    #[error("it is the broadcast address")]
    Broadcast,
    /// `169.254.0.0/16` or `fe80::/10`.
    #[error("it is a link-local address")]
    LinkLocal,
    /// A cloud's metadata service.
    #[error("it is a cloud's metadata service, which only this host may ask")]
    Metadata,
    /// Port 0.
    #[error("port 0 cannot be called")]
    PortZero,
    /// A file of this daemon.
    #[error("it is a file of this gossamer daemon")]
    OwnFile,
    /// A port of this daemon.
    #[error("it is a port of this gossamer daemon")]
    OwnListener,
    /// An address inside the VIP pool.
    #[error("it is inside the VIP pool, so the service would lead back into the mesh")]
    Pool,
}

/// What no target may be.
#[derive(Clone, Debug)]
pub struct DenyList {
    own: Vec<SocketAddr>,
    files: Vec<PathBuf>,
    pool: Ipv4Addr,
    pool_mask: u32,
    /// The first four segments of the IPv6 pool.
    pool6: Option<[u16; 4]>,
}

impl DenyList {
    /// Makes a list. `own` are the daemon's listeners (mesh, DNS, API); one on the unspecified address
    /// denies its port on every address. The pool is `pool`/`prefix`, prefix 0..=32.
    pub fn new(own: Vec<SocketAddr>, pool: Ipv4Addr, prefix: u8) -> Self {
        let pool_mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        let own = own.into_iter().map(canonical).collect();
        Self { own, files: Vec::new(), pool, pool_mask, pool6: None }
    }

    /// Denies the /64 network of an IPv6 pool as well.
    #[must_use]
    pub fn with_pool6(self, network: Ipv6Addr) -> Self {
        let [a, b, c, d, ..] = network.segments();
        Self { pool6: Some([a, b, c, d]), ..self }
    }

    /// Denies these files of the daemon, and what lies below those that are directories.
    #[must_use]
    pub fn with_files(self, files: Vec<PathBuf>) -> Self {
        Self { files, ..self }
    }

    /// Judges a target, whichever way its IPv4 address is written in IPv6.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(&self, target: &Place) -> Result<(), Denial> {
        match target {
            Place::Ip(address) => self.check_address(*address),
            Place::Unix { path, .. } => {
                let is_own = self.files.iter().any(|file| path.as_path().starts_with(file));
                if is_own { Err(Denial::OwnFile) } else { Ok(()) }
            }
        }
    }

    fn check_address(&self, target: SocketAddr) -> Result<(), Denial> {
        let target = canonical(target);
        if target.port() == 0 {
            return Err(Denial::PortZero);
        }
        check_ip(target.ip())?;
        if let IpAddr::V4(ip) = target.ip()
            && u32::from(ip) & self.pool_mask == u32::from(self.pool) & self.pool_mask
        {
            return Err(Denial::Pool);
        }
        if let IpAddr::V6(ip) = target.ip()
            && self.pool6.is_some_and(|pool| ip.segments().starts_with(&pool))
        {
            return Err(Denial::Pool);
        }
        let is_own = |own: &SocketAddr| {
            own.port() == target.port() && (own.ip().is_unspecified() || own.ip() == target.ip())
        };
        if self.own.iter().any(is_own) { Err(Denial::OwnListener) } else { Ok(()) }
    }
}

impl From<Denied> for Denial {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::PortZero => Self::PortZero,
            Denied::Unspecified => Self::Unspecified,
            Denied::Multicast => Self::Multicast,
            Denied::Broadcast => Self::Broadcast,
            Denied::LinkLocal => Self::LinkLocal,
            Denied::Metadata => Self::Metadata,
            Denied::Pool => Self::Pool,
            // A program of this machine is what most targets are; only the rules without a machine come here.
            Denied::Loopback => Self::OwnListener,
        }
    }
}

/// Takes the IPv4 address out of an IPv6 form that leads to it.
fn canonical(address: SocketAddr) -> SocketAddr {
    let ip = embedded(address.ip()).map_or_else(|| address.ip(), IpAddr::V4);
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> DenyList {
        let own = ["0.0.0.0:4677", "127.240.0.53:53", "127.0.0.1:4678"];
        let own = own.iter().map(|text| text.parse().expect("address")).collect();
        DenyList::new(own, Ipv4Addr::new(127, 240, 0, 0), 16)
    }

    fn denial(target: &str) -> Option<Denial> {
        list().check_address(target.parse().expect(target)).err()
    }

    #[test]
    fn programs_of_this_host_and_its_networks_are_targets() {
        for target in [
            "127.0.0.1:5432",
            "[::1]:5432",
            "[::ffff:127.0.0.1]:5432",
            "10.0.0.7:80",
            "172.17.0.2:6379",
            "192.168.1.10:22",
            "[fd00:1::5]:443",
            "127.241.0.1:80",
            "127.0.0.2:4678",
        ] {
            assert_eq!(denial(target), None, "{target}");
        }
    }

    #[test]
    fn every_other_address_is_denied_by_its_rule() {
        for (target, rule) in [
            ("0.0.0.0:80", Denial::Unspecified),
            ("0.1.2.3:80", Denial::Unspecified),
            ("[::]:80", Denial::Unspecified),
            ("[::ffff:0.0.0.0]:80", Denial::Unspecified),
            ("224.0.0.251:5353", Denial::Multicast),
            ("[ff02::fb]:5353", Denial::Multicast),
            ("255.255.255.255:80", Denial::Broadcast),
            ("169.254.1.1:80", Denial::LinkLocal),
            ("[fe80::1]:80", Denial::LinkLocal),
            ("[::ffff:169.254.1.1]:80", Denial::LinkLocal),
            ("169.254.169.254:80", Denial::Metadata),
            ("[::ffff:169.254.169.254]:80", Denial::Metadata),
            ("[::169.254.169.254]:80", Denial::Metadata),
            ("[64:ff9b::169.254.169.254]:80", Denial::Metadata),
            ("[fd00:ec2::254]:80", Denial::Metadata),
            ("168.63.129.16:80", Denial::Metadata),
            ("100.100.100.200:80", Denial::Metadata),
            ("127.0.0.1:0", Denial::PortZero),
            ("127.0.0.1:4677", Denial::OwnListener),
            ("10.0.0.7:4677", Denial::OwnListener),
            ("[::1]:4677", Denial::OwnListener),
            ("127.0.0.1:4678", Denial::OwnListener),
            ("[::ffff:127.0.0.1]:4678", Denial::OwnListener),
            ("127.240.0.53:53", Denial::Pool),
            ("127.240.7.9:5432", Denial::Pool),
            ("[::ffff:127.240.7.9]:5432", Denial::Pool),
        ] {
            assert_eq!(denial(target), Some(rule), "{target}");
        }
    }

    #[test]
    fn the_ipv6_pool_is_denied_and_its_neighbour_is_not() {
        let list = list().with_pool6("fd67:6f73:7361:2::".parse().expect("network"));
        let check = |target: &str| list.check(&Place::Ip(target.parse().expect(target)));
        assert_eq!(check("[fd67:6f73:7361:2::7ff0:101]:80"), Err(Denial::Pool));
        assert_eq!(check("[fd67:6f73:7361:3::7ff0:101]:80"), Ok(()));
    }

    #[test]
    fn the_length_of_the_pool_prefix_is_kept() {
        let target = Place::Ip("240.95.1.1:80".parse().expect("address"));
        let pool = Ipv4Addr::new(240, 80, 0, 0);
        assert_eq!(DenyList::new(Vec::new(), pool, 12).check(&target), Err(Denial::Pool));
        assert_eq!(DenyList::new(Vec::new(), pool, 16).check(&target), Ok(()));
        assert_eq!(DenyList::new(Vec::new(), pool, 32).check(&target), Ok(()));
        assert_eq!(DenyList::new(Vec::new(), pool, 0).check(&target), Err(Denial::Pool));
    }

    #[test]
    fn files_of_the_daemon_are_no_targets() {
        let list = list().with_files(vec!["/run/gossamer/gossamer.sock".into(), "/var/lib/gossamer".into()]);
        let check = |path: &str| {
            let path = path.parse().expect("path");
            list.check(&Place::Unix { path, user: None })
        };
        assert_eq!(check("/run/gossamer/gossamer.sock"), Err(Denial::OwnFile));
        assert_eq!(check("/var/lib/gossamer/x/app.sock"), Err(Denial::OwnFile));
        assert_eq!(check("/var/lib/gossamer-app/app.sock"), Ok(()));
    }
}
