//! Slots: which of up to ten daemons of a machine one is, and that no two share a pool.
//!
//! Owns: the numbers a slot stands for, and the claim on a pool, held for life.
//! Must not know: what runs in a slot. Driven by: `config` for defaults, `cli` before the daemon starts.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::str::FromStr;

use gossamer_core::vip::Pool;
use thiserror::Error;

use super::{Config, Settings};

/// A number 0..=9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u8);

/// What `--slot` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotChoice {
    /// This one.
    Fixed(Slot),
    /// The first whose pool and port are free.
    Auto,
}

/// Why no slot could be had. The operator's fault; nothing was changed.
#[derive(Debug, Error)]
pub enum SlotError {
    /// Another daemon has the pool.
    #[error("the pool {pool} is in use by another gossamer daemon of this machine; fix: pass --slot auto")]
    PoolTaken {
        /// The pool.
        pool: Pool,
    },
    /// All ten are in use.
    #[error(
        "slots 0 to 9 are all in use on this machine; fix: stop a daemon, or give it a network namespace"
    )]
    NoneFree,
    /// The system refused.
    #[error("the pool {pool} cannot be claimed: {error}; fix: run on Linux with unix sockets")]
    Io {
        /// The pool.
        pool: Pool,
        /// What it said.
        error: io::Error,
    },
}

/// The right to use a pool in this network namespace; given up when dropped or when the process ends.
///
/// It is an abstract unix socket: the kernel keeps their names per network namespace, as it does loopback
/// addresses, and forgets them with the process, also after SIGKILL (unix(7)).
#[derive(Debug)]
pub struct SlotClaim {
    _socket: UnixDatagram,
}

impl Slot {
    /// The slot of a machine's only daemon.
    pub const FIRST: Self = Self(0);
    /// The greatest slot.
    pub const LAST: Self = Self(9);

    /// Returns its number, 0..=9.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Returns a name that carries the number, except for slot 0.
    pub fn suffixed(self, name: &str) -> String {
        if self.0 == 0 { name.to_owned() } else { format!("{name}-{}", self.0) }
    }

    /// Returns all slots in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=Self::LAST.0).map(Self)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SlotChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(number) if number <= Slot::LAST.0 => Ok(Self::Fixed(Slot(number))),
            _ => Err(format!("{text:?} is no slot: write 0 to 9 or auto")),
        }
    }
}

/// Claims the slot the configuration asks for and returns its settings.
///
/// # Errors
/// The pool is taken, or with `auto` every one is.
pub fn claim(config: &Config) -> Result<(Settings, SlotClaim), SlotError> {
    match config.slot() {
        SlotChoice::Fixed(slot) => {
            let settings = config.settings(slot);
            let claim = claim_pool(settings.vip_pool)?;
            Ok((settings, claim))
        }
        SlotChoice::Auto => Slot::all()
            .map(|slot| config.settings(slot))
            .find_map(|settings| {
                let claim = claim_pool(settings.vip_pool).ok()?;
                port_is_free(settings.listen).then_some((settings, claim))
            })
            .ok_or(SlotError::NoneFree),
    }
}

fn claim_pool(pool: Pool) -> Result<SlotClaim, SlotError> {
    let address = UnixAddr::from_abstract_name(format!("gossamer/pool/{pool}"));
    match address.and_then(|address| UnixDatagram::bind_addr(&address)) {
        Ok(_socket) => Ok(SlotClaim { _socket }),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(SlotError::PoolTaken { pool }),
        Err(error) => Err(SlotError::Io { pool, error }),
    }
}

/// Another program may have the port of a slot whose pool is free; `auto` goes on to the next.
fn port_is_free(listen: SocketAddr) -> bool {
    std::net::UdpSocket::bind(listen).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_the_numbers_zero_to_nine_or_auto() {
        assert_eq!("3".parse(), Ok(SlotChoice::Fixed(Slot(3))));
        assert_eq!("auto".parse(), Ok(SlotChoice::Auto));
        for wrong in ["10", "-1", "", "one"] {
            assert!(wrong.parse::<SlotChoice>().is_err(), "{wrong}");
        }
        assert_eq!(Slot(0).suffixed("gossamer"), "gossamer");
        assert_eq!(Slot(4).suffixed("gossamer"), "gossamer-4");
    }

    #[test]
    fn a_pool_is_claimed_once_and_free_again_afterwards() {
        let pool: Pool = "127.199.0.0/16".parse().expect("a pool");
        let claim = claim_pool(pool).expect("free");
        let error = claim_pool(pool).expect_err("taken").to_string();
        assert!(error.contains("127.199.0.0/16") && error.contains("--slot auto"), "{error}");
        drop(claim);
        assert!(claim_pool(pool).is_ok());
    }
}
