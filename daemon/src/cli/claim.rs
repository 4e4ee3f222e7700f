//! The claim on a slot: no two daemons of a network namespace share a pool.
//!
//! Owns: the search for a free slot. Must not know: what runs in it.
//! Driven by: the commands that start a daemon, before anything else is opened.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};

use gossamer_core::vip::Pool;
use thiserror::Error;

use crate::config::{Config, Settings, Slot, SlotChoice};

/// Why no slot could be had. The operator's fault; nothing was changed.
#[derive(Debug, Error)]
pub(super) enum SlotError {
    /// Another daemon has the pool.
    #[error("the pool {pool} is in use by another gossamer daemon of this machine; pass --slot auto")]
    PoolTaken {
        /// The pool.
        pool: Pool,
    },
    /// All ten are in use.
    #[error("slots 0 to 9 are all in use on this machine; stop a daemon, or give it a network namespace")]
    NoneFree,
    /// The system refused.
    #[error("the pool {pool} cannot be claimed: {error}; run on Linux with unix sockets")]
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
pub(super) struct SlotClaim {
    _socket: UnixDatagram,
}

/// Claims the slot the configuration asks for and returns its settings.
///
/// # Errors
/// The pool is taken, or with `auto` every one is.
pub(super) fn claim(config: &Config) -> Result<(Settings, SlotClaim), SlotError> {
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
    UdpSocket::bind(listen).is_ok()
}

/// Returns whether nobody has the pool at this moment, for tests that need one of their own.
#[cfg(test)]
pub(super) fn is_free(pool: Pool) -> bool {
    claim_pool(pool).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
