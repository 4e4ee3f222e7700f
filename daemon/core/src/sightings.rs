//! Where peers see this node, and which of it others may be told.
//!
//! Owns: what each peer said last, and the addresses that two of them agree on. Must not know: connections, cards.
//! Driven by: the owner of the connections, with the hello of each one.
//!
//! A peer's word alone puts nothing into a card: it could lead everybody astray, or to a machine that is to be flooded. Two
//! that lie together can add one address of each kind; the others stay, and who answers there must have this node's key.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

use crate::reach::{Denied, Deny, Span, span};

/// What all peers say. `handle_seen` and `handle_timeout`, then [`Self::agreed`] and [`Self::next_deadline`].
#[derive(Debug)]
pub struct Sightings {
    deny: Deny,
    /// The last word of each peer about each kind of address.
    said: BTreeMap<(NodeId, Kind), Sighting>,
    agreed: BTreeMap<Kind, SocketAddr>,
    /// When the agreed address of a kind has changed last.
    changed: BTreeMap<Kind, Instant>,
    /// Whether something waits for its time to change.
    is_behind: bool,
    /// When the next word is too old, or the next change may come.
    deadline: Option<Instant>,
}

/// Addresses of one kind are compared with each other: peers in one network see the private address, those elsewhere the
/// public one, and neither kind outvotes the other.
type Kind = (Span, bool);

#[derive(Clone, Copy, Debug)]
struct Sighting {
    address: SocketAddr,
    at: Instant,
}

impl Sightings {
    /// Knows nothing yet. What `deny` denies is never taken.
    pub const fn new(deny: Deny) -> Self {
        Self {
            deny,
            said: BTreeMap::new(),
            agreed: BTreeMap::new(),
            changed: BTreeMap::new(),
            is_behind: false,
            deadline: None,
        }
    }

    /// A peer that has proved who it is sees this node at an address.
    ///
    /// # Errors
    /// The address is of no use to anybody; nothing has changed.
    pub fn handle_seen(&mut self, by: NodeId, address: SocketAddr, now: Instant) -> Result<(), Denied> {
        let address = self.deny.check(address)?;
        let kind = (span(address.ip()), address.is_ipv6());
        self.said.insert((by, kind), Sighting { address, at: now });
        if self.said.len() > MAX_SAID {
            let oldest = self.said.iter().min_by_key(|(_, sighting)| sighting.at).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                self.said.remove(&oldest);
            }
        }
        self.judge(now);
        Ok(())
    }

    /// Forgets what is too old, and changes what had to wait. Early calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.said.retain(|_, sighting| now.saturating_duration_since(sighting.at) < GOOD_FOR);
            self.judge(now);
        }
    }

    /// Returns when to call [`Self::handle_timeout`] next, if nothing is heard before.
    pub const fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns where two peers or more see this node: at most one address of each kind, those of use to all networks first.
    pub fn agreed(&self) -> Vec<SocketAddr> {
        self.agreed.values().copied().collect()
    }

    /// Takes over what most peers see, of each kind whose last change is long enough ago.
    fn judge(&mut self, now: Instant) {
        let wanted = self.wanted();
        let kinds: BTreeSet<Kind> = wanted.keys().chain(self.agreed.keys()).copied().collect();
        self.is_behind = false;
        for kind in kinds {
            let (new, old) = (wanted.get(&kind).copied(), self.agreed.get(&kind).copied());
            if new == old {
                continue;
            }
            let since = self.changed.get(&kind).map(|changed| now.saturating_duration_since(*changed));
            if since.is_some_and(|since| since < CHANGE_EVERY) {
                self.is_behind = true;
                continue;
            }
            self.changed.insert(kind, now);
            match new {
                Some(address) => _ = self.agreed.insert(kind, address),
                None => _ = self.agreed.remove(&kind),
            }
        }
        let oldest = self.said.values().map(|sighting| sighting.at + GOOD_FOR).min();
        // Of several kinds that wait all change with the last one, a few minutes later at most.
        let change =
            self.changed.values().filter(|_| self.is_behind).map(|changed| *changed + CHANGE_EVERY).max();
        self.deadline = oldest.into_iter().chain(change).min();
    }

    /// Finds what most peers see, of each kind. The address in use stays while anybody sees it and no other one is seen
    /// by more peers; another one needs two.
    fn wanted(&self) -> BTreeMap<Kind, SocketAddr> {
        let mut seen: BTreeMap<(Kind, SocketAddr), usize> = BTreeMap::new();
        for ((_, kind), sighting) in &self.said {
            *seen.entry((*kind, sighting.address)).or_default() += 1;
        }
        let mut best: BTreeMap<Kind, (usize, bool, SocketAddr)> = BTreeMap::new();
        for ((kind, address), peers) in seen {
            let is_used = self.agreed.get(&kind) == Some(&address);
            if peers >= ENOUGH || is_used {
                let found = best.entry(kind).or_insert((peers, is_used, address));
                *found = (*found).max((peers, is_used, address));
            }
        }
        best.into_iter().map(|(kind, (.., address))| (kind, address)).collect()
    }
}

/// Peers that must agree.
const ENOUGH: usize = 2;

/// Words kept. A peer has four at most, one of each kind; the oldest make room. More than any two liars can fill.
const MAX_SAID: usize = 512;

/// How long a word counts: a peer says it anew with each connection, which last for long.
const GOOD_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Shortest time between two changes of one kind: each is a new card, which goes to everybody.
const CHANGE_EVERY: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an Instant has no other source, and no test depends on it")]
    fn start() -> Instant {
        Instant::now()
    }

    fn node(n: u16) -> NodeId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        NodeId::from_bytes(id)
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    fn hear(sightings: &mut Sightings, by: u16, text: &str, now: Instant) {
        sightings.handle_seen(node(by), address(text), now).expect(text);
    }

    fn agreed(sightings: &Sightings) -> Vec<String> {
        sightings.agreed().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn two_different_peers_must_agree() {
        let (mut sightings, now) = (Sightings::new(Deny::default()), start());
        hear(&mut sightings, 1, "203.0.113.9:4677", now);
        hear(&mut sightings, 1, "203.0.113.9:4677", now + CHANGE_EVERY);
        assert!(agreed(&sightings).is_empty(), "one peer, however often");
        hear(&mut sightings, 2, "203.0.113.9:9999", now);
        assert!(agreed(&sightings).is_empty(), "another port is another address");
        hear(&mut sightings, 3, "[::ffff:203.0.113.9]:4677", now);
        assert_eq!(agreed(&sightings), ["203.0.113.9:4677"], "however it is written");
    }

    #[test]
    fn kinds_do_not_outvote_each_other() {
        let (mut sightings, now) = (Sightings::new(Deny::default()), start());
        for by in 0..10 {
            hear(&mut sightings, by, "192.168.1.5:4677", now);
        }
        for by in 10..12 {
            hear(&mut sightings, by, "203.0.113.9:4677", now + CHANGE_EVERY);
            hear(&mut sightings, by, "[2001:db8::9]:4677", now + 2 * CHANGE_EVERY);
        }
        sightings.handle_timeout(now + 2 * CHANGE_EVERY);
        assert_eq!(agreed(&sightings), ["203.0.113.9:4677", "[2001:db8::9]:4677", "192.168.1.5:4677"]);
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        let (mut sightings, now) = (Sightings::new(Deny::default().with_loopback()), start());
        for (text, why) in [
            ("127.0.0.1:4677", Denied::Loopback),
            ("169.254.169.254:80", Denied::Metadata),
            ("[fe80::1]:4677", Denied::LinkLocal),
            ("224.0.0.1:4677", Denied::Multicast),
            ("0.0.0.0:4677", Denied::Unspecified),
            ("127.240.0.9:4677", Denied::Pool),
        ] {
            for by in 0..3 {
                assert_eq!(sightings.handle_seen(node(by), address(text), now), Err(why), "{text}");
            }
        }
        assert!(agreed(&sightings).is_empty() && sightings.next_deadline().is_none());
    }

    #[test]
    fn liars_need_more_voices_than_honest_peers_and_change_little() {
        let (mut sightings, mut now) = (Sightings::new(Deny::default()), start());
        for by in 0..3 {
            hear(&mut sightings, by, "203.0.113.9:4677", now);
        }
        let mut changes = 0;
        let mut before = agreed(&sightings);
        for round in 0..10_000_u32 {
            now += Duration::from_secs(1);
            for by in [7, 8] {
                hear(&mut sightings, by, &format!("198.51.100.7:{}", 1 + round % 2), now);
            }
            sightings.handle_timeout(now);
            changes += usize::from(agreed(&sightings) != before);
            before = agreed(&sightings);
        }
        assert_eq!((before, changes), (vec!["203.0.113.9:4677".to_owned()], 0));
        // Alone they may move it, but not often.
        let mut sightings = Sightings::new(Deny::default());
        let mut before = Vec::new();
        for second in 0..3_600_u64 {
            let now = now + Duration::from_secs(second);
            for by in [7, 8] {
                hear(&mut sightings, by, &format!("198.51.100.7:{}", 1 + second % 100), now);
            }
            changes += usize::from(agreed(&sightings) != before);
            before = agreed(&sightings);
        }
        assert!((2..=12).contains(&changes), "{changes} changes in an hour");
    }

    #[test]
    fn a_node_that_moved_is_seen_at_its_new_address() {
        let (mut sightings, now) = (Sightings::new(Deny::default()), start());
        for by in 0..3 {
            hear(&mut sightings, by, "203.0.113.9:4677", now);
        }
        let later = now + Duration::from_secs(3_600);
        hear(&mut sightings, 0, "198.51.100.7:4677", later);
        assert_eq!(agreed(&sightings), ["203.0.113.9:4677"]);
        hear(&mut sightings, 1, "198.51.100.7:4677", later);
        assert_eq!(agreed(&sightings), ["198.51.100.7:4677"], "two against one");
    }

    #[test]
    fn what_nobody_has_said_for_a_day_is_over() {
        let (mut sightings, now) = (Sightings::new(Deny::default()), start());
        hear(&mut sightings, 1, "203.0.113.9:4677", now);
        hear(&mut sightings, 2, "203.0.113.9:4677", now + CHANGE_EVERY);
        assert_eq!(sightings.next_deadline(), Some(now + GOOD_FOR));
        sightings.handle_timeout(now + GOOD_FOR);
        assert_eq!(agreed(&sightings), ["203.0.113.9:4677"], "one still sees it");
        sightings.handle_timeout(now + GOOD_FOR + CHANGE_EVERY);
        assert!(agreed(&sightings).is_empty() && sightings.next_deadline().is_none());
    }

    #[test]
    fn a_change_that_waits_comes_at_its_time() {
        let (mut sightings, now) = (Sightings::new(Deny::default()), start());
        for by in [1, 2] {
            hear(&mut sightings, by, "203.0.113.9:4677", now);
        }
        for by in [1, 2] {
            hear(&mut sightings, by, "203.0.113.9:5000", now + Duration::from_secs(1));
        }
        assert_eq!(agreed(&sightings), ["203.0.113.9:4677"]);
        let due = sightings.next_deadline().expect("a change waits");
        assert_eq!(due, now + CHANGE_EVERY);
        sightings.handle_timeout(due);
        assert_eq!(agreed(&sightings), ["203.0.113.9:5000"]);
    }

    #[test]
    fn a_thousand_peers_are_a_bounded_memory() {
        let (mut sightings, now) = (Sightings::new(Deny::default()), start());
        for by in 0..10_000 {
            let at = now + Duration::from_millis(by.into());
            hear(&mut sightings, by, &format!("198.51.100.7:{}", 1 + by % 5_000), at);
        }
        assert_eq!(sightings.said.len(), MAX_SAID);
    }
}
