//! Connections whose own end has lost its address: this machine got another one, or none.
//!
//! Owns: noticing it. Must not know: what addresses a card has. Driven by: the owner, each second while peers are connected
//! that have dialled this node.
//!
//! QUIC follows the side that dialled to its new address. The other way round it cannot: the peer that dialled takes no
//! packets from an address that it did not dial, and sends to the old one. It would find out by silence, and membership would
//! take both for dead; this side knows at once, closes what is of no use, and dials.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use quinn::Connection;

use super::link::CLOSE_MOVED;
use super::owner::Owner;
use crate::clock;

/// Pause between two looks: a flow that cannot go on ends so much later.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Owner {
    /// Closes connections that were accepted at an address that this machine has no more, and sets the time of the next look.
    pub(super) fn look_for_moves(&mut self) {
        let links = self.current.values().filter(|link| !link.dialled);
        let links = links.filter_map(|link| link.connection.quic());
        let data = self.pool.connections().filter(|connection| connection.side().is_server());
        let mut known = BTreeMap::new();
        for connection in links.chain(data) {
            // The system says it with each packet; without that there is nothing to look for.
            let Some(own) = connection.local_ip().map(|ip| ip.to_canonical()) else { continue };
            if !*known.entry(own).or_insert_with(|| is_here(own)) {
                give_up(connection, own);
            }
        }
        self.move_at = Some(clock::now().mono + LOOK_EVERY);
    }
}

fn give_up(connection: &Connection, own: IpAddr) {
    if connection.close_reason().is_none() {
        tracing::info!(remote = %connection.remote_address(), %own, "a connection has lost its own address");
        connection.close(CLOSE_MOVED.into(), b"moved");
    }
}

/// Returns whether this machine has the address. Any other fault of the system's leaves things as they are.
fn is_here(own: IpAddr) -> bool {
    let error = UdpSocket::bind((own, 0)).err();
    error.is_none_or(|error| error.kind() != std::io::ErrorKind::AddrNotAvailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_here_while_the_machine_has_it() {
        assert!(is_here("127.0.0.1".parse().expect("address")));
        assert!(!is_here("192.0.2.1".parse().expect("address")), "an address of documentation");
    }
}
