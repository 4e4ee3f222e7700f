//! The addresses of one node: from its card, from elsewhere, and at which of them somebody else answers.
//!
//! Owns: their order, and the pause of an address that turned out to be another's. Must not know: when to dial.
//! Driven by: the dial book.
//!
//! Private addresses are used in many networks at once: the one in a card may belong to another machine here. That costs a
//! failed check of identity, and so that it does not cost it at each dial, the address is left alone for a while.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossamer_wire::limits::MAX_ADDRESSES;

use crate::reach::in_turns;

#[derive(Debug, Default)]
pub(super) struct Addresses {
    card: Vec<SocketAddr>,
    hints: Vec<SocketAddr>,
    /// Whether lane addresses lead to it as well, which somebody else keeps.
    pub(super) has_lane: bool,
    /// Whether relays lead to it, likewise.
    pub(super) has_relay: bool,
    /// Where a dial reached the node last.
    good: Option<SocketAddr>,
    /// Addresses at which somebody else answered, all of them among the above.
    wrong: BTreeMap<SocketAddr, Wrong>,
}

#[derive(Clone, Copy, Debug)]
struct Wrong {
    /// How often in a row.
    times: u32,
    until: Instant,
}

impl Addresses {
    /// Takes those of a card, in its order, in place of those of earlier cards.
    pub(super) fn set_card(&mut self, addresses: impl Iterator<Item = SocketAddr>) {
        self.card = addresses.take(MAX_ADDRESSES).collect();
        self.forget_gone();
    }

    /// Takes one from elsewhere. Whoever was wrong there before: there is word now that the node is there.
    pub(super) fn hint(&mut self, address: SocketAddr) {
        self.hints.retain(|known| *known != address);
        self.hints.insert(0, address);
        self.hints.truncate(MAX_HINTS);
        self.wrong.remove(&address);
        self.forget_gone();
    }

    /// The node answered here.
    pub(super) fn reached(&mut self, address: SocketAddr) {
        self.good = Some(address);
        self.wrong.remove(&address);
    }

    /// Somebody else answered here.
    pub(super) fn is_wrong(&mut self, address: SocketAddr, now: Instant) {
        if self.all().any(|known| known == address) {
            let times = self.wrong.get(&address).map_or(0, |wrong| wrong.times);
            let pause = WRONG.saturating_mul(1 << times.min(8)).min(LONGEST_WRONG);
            self.wrong.insert(address, Wrong { times: times.saturating_add(1), until: now + pause });
            self.good = self.good.filter(|good| *good != address);
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.card.is_empty() && self.hints.is_empty() && !self.has_detour()
    }

    /// Returns where to dial now, best first: where it was reached last, then the card's and the others, families in turns.
    pub(super) fn usable(&self, now: Instant) -> Vec<SocketAddr> {
        let is_usable = |address: &SocketAddr| self.wrong.get(address).is_none_or(|wrong| wrong.until <= now);
        let (first, others): (Vec<_>, Vec<_>) =
            self.all().filter(is_usable).partition(|address| self.good == Some(*address));
        in_turns([first, others].concat())
    }

    /// Returns from when on there is something to dial; `None` when there is now, or nothing at all.
    pub(super) fn usable_from(&self) -> Option<Instant> {
        let has_good = self.all().any(|address| !self.wrong.contains_key(&address));
        self.wrong.values().map(|wrong| wrong.until).min().filter(|_| !has_good && !self.has_detour())
    }

    /// Whether something else leads to it than its addresses.
    const fn has_detour(&self) -> bool {
        self.has_lane || self.has_relay
    }

    fn all(&self) -> impl Iterator<Item = SocketAddr> {
        let hints = self.hints.iter().filter(|hint| !self.card.contains(hint));
        self.card.iter().chain(hints).copied()
    }

    fn forget_gone(&mut self) {
        let all: Vec<_> = self.all().collect();
        self.wrong.retain(|address, _| all.contains(address));
        self.good = self.good.filter(|good| all.contains(good));
    }
}

/// Addresses kept beside a card's: where the node was seen, and what tokens and the disk say.
pub(super) const MAX_HINTS: usize = 4;

/// First pause of an address at which somebody else answered; doubled each time.
pub(super) const WRONG: Duration = Duration::from_secs(30);

/// Longest such pause: networks change, and a machine moves.
pub(super) const LONGEST_WRONG: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an Instant has no other source, and no test depends on it")]
    fn start() -> Instant {
        Instant::now()
    }

    fn list(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    fn of_card(texts: &[&str]) -> Addresses {
        let mut addresses = Addresses::default();
        addresses.set_card(list(texts).into_iter());
        addresses
    }

    #[test]
    fn families_take_turns_and_the_last_good_address_comes_first() {
        let mut addresses = of_card(&["192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1"]);
        addresses.hint(list(&["[2001:db8::2]:1"])[0]);
        let now = start();
        let turns = ["192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.2:1", "[2001:db8::2]:1"];
        assert_eq!(addresses.usable(now), list(&turns));
        addresses.reached(list(&["[2001:db8::2]:1"])[0]);
        let turns = ["[2001:db8::2]:1", "192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.2:1"];
        assert_eq!(addresses.usable(now), list(&turns));
        addresses.set_card(list(&["192.0.2.9:1"]).into_iter());
        addresses.reached(list(&["203.0.113.1:1"])[0]);
        assert_eq!(addresses.usable(now), list(&["192.0.2.9:1", "[2001:db8::2]:1"]), "only what is known");
    }

    #[test]
    fn a_wrong_address_rests_for_longer_each_time_and_the_others_do_not() {
        let mut addresses = of_card(&["10.0.0.1:1", "192.0.2.1:1"]);
        let (wrong, mut now) = (list(&["10.0.0.1:1"])[0], start());
        let mut pauses = Vec::new();
        for _ in 0..10 {
            assert_eq!(addresses.usable(now), list(&["10.0.0.1:1", "192.0.2.1:1"]));
            addresses.is_wrong(wrong, now);
            assert_eq!(addresses.usable(now), list(&["192.0.2.1:1"]));
            assert_eq!(addresses.usable_from(), None);
            let until = addresses.wrong[&wrong].until;
            pauses.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600]);
        addresses.reached(wrong);
        addresses.is_wrong(wrong, now);
        assert_eq!(addresses.wrong[&wrong].until, now + WRONG, "who was there once begins anew");
    }

    #[test]
    fn word_that_the_node_is_there_ends_the_rest() {
        let mut addresses = of_card(&["10.0.0.1:1"]);
        let (wrong, now) = (list(&["10.0.0.1:1"])[0], start());
        addresses.is_wrong(wrong, now);
        assert_eq!((addresses.usable(now), addresses.usable_from()), (Vec::new(), Some(now + WRONG)));
        addresses.hint(wrong);
        assert_eq!((addresses.usable(now), addresses.usable_from()), (list(&["10.0.0.1:1"]), None));
    }

    #[test]
    fn only_known_addresses_are_remembered_as_wrong() {
        let mut addresses = of_card(&["10.0.0.1:1"]);
        let now = start();
        addresses.is_wrong(list(&["10.0.0.7:1"])[0], now);
        assert!(addresses.wrong.is_empty());
        addresses.is_wrong(list(&["10.0.0.1:1"])[0], now);
        addresses.set_card(list(&["10.0.0.2:1"]).into_iter());
        assert!(addresses.wrong.is_empty() && addresses.usable_from().is_none());
    }
}
