//! Addresses of tokens: those that the operator names, and those of this node and other issuers.
//!
//! Owns: the choice, and the warning where it is of no use to others. Must not know: who dials. Driven by: the issuer.

use std::net::SocketAddr;

use gossamer_core::reach::{Span, shorten, span};
use gossamer_wire::limits::{MAX_LANE_ADDRESSES, MAX_TOKEN_ADDRESSES};
use gossamer_wire::{Address, LaneAddress};

use super::{Desk, TokenError};

impl Desk {
    /// Parts the addresses that the operator gave, none of which may lead nowhere or astray.
    pub(super) fn check_addresses(
        &self,
        asked: Vec<Address>,
    ) -> Result<(Vec<SocketAddr>, Vec<LaneAddress>), TokenError> {
        let (ports, lanes) = Address::part(asked);
        for (kind, given, limit) in [
            ("addresses", ports.len(), MAX_TOKEN_ADDRESSES),
            ("tls:// addresses", lanes.len(), MAX_LANE_ADDRESSES),
        ] {
            if given > limit {
                return Err(TokenError::Addresses { kind, limit, given });
            }
        }
        let literals = lanes.iter().filter_map(LaneAddress::literal);
        match self.deny.part(ports.iter().copied().chain(literals).collect()).1.first() {
            Some((address, why)) => Err(TokenError::Denied(*address, *why)),
            None => Ok((ports, lanes)),
        }
    }

    /// Returns where the holder of a token may dial: one of several uses names other issuers as well. An issuer that others
    /// cannot dial is reached through its relays; its own addresses may do on its own network.
    pub(super) fn addresses_for(&self, uses: u32) -> Vec<SocketAddr> {
        let live = self.live.load();
        let others = live.issuers.iter().filter_map(|issuer| issuer.node).filter(|_| uses != 1);
        let others = others.filter(|node| *node != self.identity.node()).filter_map(|node| {
            let led = self.index.relay_addresses(node).into_iter().next();
            led.or_else(|| self.index.node(node)?.view.as_ref()?.addresses.first().copied())
        });
        let others: Vec<_> = others.take(MAX_TOKEN_ADDRESSES / 2).collect();
        let mut all = self.index.relay_addresses(self.identity.node());
        all.truncate(MAX_TOKEN_ADDRESSES - 1 - others.len());
        all.extend(shorten(self.advertised.borrow().clone(), MAX_TOKEN_ADDRESSES - others.len() - all.len()));
        for address in others {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        // What every network can use comes first, whose ever it is.
        all.sort_by_key(|address| span(address.ip()) != Span::Global);
        all
    }
}

/// Warns when no other machine, or none outside this network, could reach the addresses of a token.
pub(super) fn address_warning(addresses: &[SocketAddr]) -> Option<String> {
    let list = || addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    // The span that reaches furthest.
    match addresses.iter().map(|address| span(address.ip())).min() {
        None => Some("this node has no address to put into the token; add --address IP:PORT".to_owned()),
        Some(Span::Machine) => {
            Some(format!("only this machine can reach {}; for others add --address IP:PORT", list()))
        }
        Some(Span::Private) => Some(format!(
            "{} are private addresses; from other networks add --address PUBLIC-IP:PORT",
            list()
        )),
        Some(Span::Global) => None,
    }
}
