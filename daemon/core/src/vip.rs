//! Virtual addresses: which address stands for a name, and what becomes of one of its ports.
//!
//! Owns: the VIP function, the rule when two names meet, the state of a port, the addresses of dnat mode. Must not know: sockets, the
//! catalog. Driven by: the daemon's `vips` task and its resolver (design section 8).
//!
//! A VIP is a pure function of (mesh, name, try): every node with the same pool computes the same address.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use sha2::{Digest, Sha256};
use thiserror::Error;

use gossamer_wire::{GroupName, InstanceName, MeshId, ServiceName, Transport};

mod port;
mod redirect;
mod table;

pub use port::{BindOutcome, Holder, LocalTarget, PortState, Step, judge, must_release};
pub use redirect::{Family, Look, Redirect, Standing};
pub use table::Table;

/// A name that has a VIP: the three name levels of design section 7.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VipName {
    /// `<service>`: the own group's instances and the imported ones.
    Service(ServiceName),
    /// `<service>.<group>`.
    Group(ServiceName, GroupName),
    /// `<instance>.<service>.<group>`.
    Instance(ServiceName, GroupName, InstanceName),
}

impl VipName {
    /// Returns the service the name belongs to.
    pub const fn service(&self) -> &ServiceName {
        match self {
            Self::Service(service) | Self::Group(service, _) | Self::Instance(service, ..) => service,
        }
    }

    /// Returns H of design section 8: the first 8 bytes of a SHA-256 over mesh, name and `attempt`, the `try`.
    pub fn hash(&self, mesh: &MeshId, attempt: u8) -> u64 {
        let mut sha = Sha256::new();
        sha.update(DOMAIN);
        sha.update([0]);
        sha.update(mesh.as_bytes());
        sha.update(self.to_string());
        sha.update([0, attempt]);
        let digest: [u8; 32] = sha.finalize().into();
        digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }
}

/// The name without the mesh zone. Names are lower case by construction, so this is what is hashed.
impl fmt::Display for VipName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(f, "{service}"),
            Self::Group(service, group) => write!(f, "{service}.{group}"),
            Self::Instance(service, group, instance) => write!(f, "{instance}.{service}.{group}"),
        }
    }
}

/// Why a text is not a pool. The operator's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is not a VIP pool: write an IPv4 network of /8 to /22, for example 127.240.0.0/16")]
pub struct PoolError {
    text: String,
}

/// The addresses of one daemon: VIPs and its DNS address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pool {
    base: Ipv4Addr,
    prefix: u8,
}

impl Pool {
    /// Returns the default pool of a slot, `127.(240+slot).0.0/16`; slots above 15 wrap.
    pub const fn of_slot(slot: u8) -> Self {
        Self { base: Ipv4Addr::new(127, 240 + slot % 16, 0, 0), prefix: 16 }
    }

    /// Makes a pool.
    ///
    /// # Errors
    /// The operator's fault: bits below the prefix are set, or the size is not /8 to /22.
    pub fn new(base: Ipv4Addr, prefix: u8) -> Result<Self, PoolError> {
        let fits = (8..=22).contains(&prefix) && u32::from(base).trailing_zeros() >= 32 - u32::from(prefix);
        if fits { Ok(Self { base, prefix }) } else { Err(PoolError { text: format!("{base}/{prefix}") }) }
    }

    /// Returns its first address and its prefix length, as the DNS zone wants them.
    pub const fn network(&self) -> (Ipv4Addr, u8) {
        (self.base, self.prefix)
    }

    /// Returns how many addresses it has, the reserved ones too.
    pub const fn size(&self) -> u32 {
        1 << (32 - self.prefix as u32)
    }

    /// Returns whether an address is in the pool, reserved or not.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => u32::from(ip) & !(self.size() - 1) == u32::from(self.base),
            IpAddr::V6(_) => false,
        }
    }

    /// Returns whether an address may be the VIP of a name.
    pub fn has_vip(&self, ip: Ipv4Addr) -> bool {
        let offset = u32::from(ip).wrapping_sub(u32::from(self.base));
        (RESERVED..self.size() - RESERVED).contains(&offset)
    }

    /// Returns the address DNS listens on, `.0.53`.
    pub fn dns(&self) -> Ipv4Addr {
        self.at(53)
    }

    /// Returns the VIP of a hash; never one of the first or last [`RESERVED`] addresses.
    pub fn vip(&self, hash: u64) -> Ipv4Addr {
        let room = u64::from(self.size() - 2 * RESERVED);
        self.at(RESERVED + (hash % room) as u32)
    }

    fn at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + offset)
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let parts =
            text.split_once('/').and_then(|(base, prefix)| Some((base.parse().ok()?, prefix.parse().ok()?)));
        match parts {
            Some((base, prefix)) => Self::new(base, prefix),
            None => Err(PoolError { text: text.chars().take(40).collect() }),
        }
    }
}

/// How connections to VIPs reach the daemon (`vip.mode`, design section 8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By a listener on each address and port that is in use.
    #[default]
    Bind,
    /// By one rule of the kernel that redirects them to one listener.
    Dnat,
    /// Not at all: names are answered with the instances' own addresses.
    None,
}

impl Mode {
    /// Returns whether the ports of a name are listened on one by one. A datagram that the kernel redirects does not
    /// tell where it was meant to go, so dnat mode listens for UDP as bind mode does.
    pub const fn listens(self, transport: Transport) -> bool {
        match (self, transport) {
            (Self::Bind, _) | (Self::Dnat, Transport::Udp) => true,
            (Self::Dnat, Transport::Tcp) | (Self::None, _) => false,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bind => "bind",
            Self::Dnat => "dnat",
            Self::None => "none",
        })
    }
}

/// A name's claim on its address. The smallest claim on an address holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// H of the name at its `try`.
    pub hash: u64,
    /// The name.
    pub name: VipName,
}

/// The order when two names meet: hash, then the text of the name (not the level), so that it does not depend
/// on how a node stores names.
impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        let text = || self.name.to_string().cmp(&other.name.to_string());
        self.hash.cmp(&other.hash).then_with(text)
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Addresses kept free at both ends of a pool, for DNS and what comes later.
pub const RESERVED: u32 = 256;

/// Separates this hash from every other use of SHA-256 in the mesh.
const DOMAIN: &[u8] = b"gossamer-vip-v1";

#[cfg(test)]
mod tests;
