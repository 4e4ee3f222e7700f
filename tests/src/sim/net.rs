//! The network between the nodes: what is lost, how long things take, what is cut.
//!
//! Owns: the draw of each packet's fate. Must not know: what packets carry. Driven by: the mesh, for each packet.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::scenario::Net;

/// A network with its own generator, so that what one node draws does not move another's delays.
#[derive(Debug)]
pub(super) struct Network {
    base: Net,
    rng: SmallRng,
    /// Which senders reach which receivers not.
    cuts: Vec<(Vec<bool>, Vec<bool>)>,
    /// Share of packets lost at a node; 0: the network's own.
    loss: Vec<f64>,
    slow: Vec<Duration>,
    hidden: Hidden,
}

/// Nodes that only relays lead to.
#[derive(Debug, Default)]
struct Hidden {
    nodes: Vec<usize>,
    /// Each relay leads to each of them, the first one by choice.
    relays: [usize; 2],
}

impl Hidden {
    /// Returns the relays between two nodes, if there must be one.
    fn between(&self, from: usize, to: usize) -> Option<[usize; 2]> {
        let is_led = self.nodes.contains(&from) || self.nodes.contains(&to);
        let is_relay = self.relays.contains(&from) || self.relays.contains(&to);
        (is_led && !is_relay).then_some(self.relays)
    }
}

impl Network {
    pub(super) fn new(base: Net, nodes: usize, seed: u64) -> Self {
        Self {
            base,
            rng: SmallRng::seed_from_u64(seed),
            cuts: Vec::new(),
            loss: vec![0.0; nodes],
            slow: vec![Duration::ZERO; nodes],
            hidden: Hidden::default(),
        }
    }

    /// Lets two relays alone lead to some nodes.
    pub(super) fn hide(&mut self, nodes: &[usize], relays: [usize; 2]) {
        self.hidden = Hidden { nodes: nodes.to_vec(), relays };
    }

    /// Whether relays lead from one node to the other.
    pub(super) fn is_led(&self, from: usize, to: usize) -> bool {
        self.hidden.between(from, to).is_some()
    }

    /// Draws how long a packet takes through the second relay of a node, in a stream; `None` while that leads nothing.
    pub(super) fn beside(&mut self, from: usize, to: usize) -> Option<Duration> {
        let [_, relay] = self.hidden.between(from, to)?;
        let legs = [(from, relay), (relay, to)];
        if legs.iter().any(|(from, to)| self.is_cut(*from, *to)) {
            return None;
        }
        let pause = self.resend_after(from, to);
        let lost = legs.map(|(from, to)| (0..6).take_while(|_| self.loses(from, to)).count());
        let resent = lost.into_iter().map(|lost| pause * (2_u32.pow(lost as u32) - 1)).sum::<Duration>();
        Some(resent + legs.into_iter().map(|(from, to)| self.delay(from, to)).sum::<Duration>())
    }

    pub(super) fn cut(&mut self, from: &BTreeSet<usize>, to: &BTreeSet<usize>) {
        let flags = |set: &BTreeSet<usize>| (0..self.loss.len()).map(|node| set.contains(&node)).collect();
        self.cuts.push((flags(from), flags(to)));
    }

    pub(super) fn heal(&mut self) {
        self.cuts.clear();
    }

    pub(super) fn set_loss(&mut self, nodes: &BTreeSet<usize>, share: f64) {
        nodes.iter().for_each(|node| self.loss[*node] = share);
    }

    pub(super) fn set_slow(&mut self, nodes: &BTreeSet<usize>, more: Duration) {
        nodes.iter().for_each(|node| self.slow[*node] = more);
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        if let Some([relay, _]) = self.hidden.between(from, to) {
            return self.is_cut(from, relay) || self.is_cut(relay, to);
        }
        self.cuts.iter().any(|(senders, receivers)| senders[from] && receivers[to])
    }

    /// Draws whether one packet on an open way is lost.
    pub(super) fn loses(&mut self, from: usize, to: usize) -> bool {
        if let Some([relay, _]) = self.hidden.between(from, to) {
            return self.loses(from, relay) || self.loses(relay, to);
        }
        let at_ends = self.loss[from].max(self.loss[to]);
        let share = if at_ends > 0.0 { at_ends } else { self.base.loss };
        share > 0.0 && self.rng.random_bool(share)
    }

    /// Draws how long one packet takes.
    pub(super) fn delay(&mut self, from: usize, to: usize) -> Duration {
        if let Some([relay, _]) = self.hidden.between(from, to) {
            return self.delay(from, relay) + self.delay(relay, to);
        }
        let (least, most) = self.base.delay;
        let own = if least < most { self.rng.random_range(least..=most) } else { least };
        own + self.slow[from] + self.slow[to]
    }

    /// Returns what nothing on its way takes less than.
    pub(super) const fn least_delay(&self) -> Duration {
        self.base.delay.0
    }

    /// Draws when copies of one datagram come: none when it is lost, two when it is doubled.
    pub(super) fn datagram(&mut self, from: usize, to: usize) -> Vec<Duration> {
        if self.is_cut(from, to) || self.loses(from, to) {
            return Vec::new();
        }
        let copies = if self.chance(self.base.duplicate) { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                let late = if self.chance(self.base.reorder) { self.rng.random_range(1..=LATEST) } else { 1 };
                self.delay(from, to) * late
            })
            .collect()
    }

    /// How long the sender of a packet waits for its acknowledgement before it sends it again: QUIC's probe
    /// time-out (RFC 9002 6.2.1) with a settled round trip.
    pub(super) fn resend_after(&self, from: usize, to: usize) -> Duration {
        let (least, most) = self.base.delay;
        let round_trip = least + most + 2 * (self.slow[from] + self.slow[to]);
        let variation = (most - least) / 2;
        round_trip + (4 * variation).max(Duration::from_millis(1)) + MAX_ACK_DELAY
    }

    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random_bool(share)
    }
}

/// A packet out of order comes up to so many delays late.
const LATEST: u32 = 10;

/// What QUIC allows a receiver to wait with an acknowledgement (RFC 9000 18.2).
const MAX_ACK_DELAY: Duration = Duration::from_millis(25);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn network(loss: f64, duplicate: f64, reorder: f64) -> Network {
        Network::new(Net { delay: (MS, 2 * MS), loss, duplicate, reorder }, 4, 1)
    }

    fn set(nodes: &[usize]) -> BTreeSet<usize> {
        nodes.iter().copied().collect()
    }

    #[test]
    fn cuts_hold_one_way_until_they_are_healed() {
        let mut net = network(0.0, 0.0, 0.0);
        net.cut(&set(&[0, 1]), &set(&[2]));
        assert!(net.is_cut(1, 2) && !net.is_cut(2, 1) && !net.is_cut(0, 1));
        assert!(net.datagram(0, 2).is_empty());
        net.heal();
        assert_eq!(net.datagram(0, 2).len(), 1);
    }

    #[test]
    fn losses_copies_and_late_ones_have_about_their_shares() {
        let mut net = network(0.1, 0.1, 0.1);
        let drawn: Vec<_> = (0..10_000).map(|_| net.datagram(0, 1)).collect();
        let share = |count: usize| count as f64 / 10_000.0;
        let lost = share(drawn.iter().filter(|copies| copies.is_empty()).count());
        let twice = share(drawn.iter().filter(|copies| copies.len() == 2).count());
        let late = share(drawn.iter().flatten().filter(|delay| **delay > 2 * MS).count());
        assert!((0.08..0.12).contains(&lost), "{lost}");
        assert!((0.07..0.11).contains(&twice), "{twice}");
        assert!((0.06..0.13).contains(&late), "{late}");
        assert!(drawn.iter().flatten().all(|delay| (MS..=20 * MS).contains(delay)));
    }

    #[test]
    fn a_node_may_be_slow_and_lossy_on_its_own() {
        let mut net = network(0.0, 0.0, 0.0);
        net.set_slow(&set(&[3]), 100 * MS);
        net.set_loss(&set(&[3]), 1.0);
        assert!(net.delay(0, 3) > 100 * MS && net.delay(3, 0) > 100 * MS && net.delay(0, 1) <= 2 * MS);
        assert!(net.loses(0, 3) && !net.loses(0, 1));
        assert!(net.resend_after(0, 3) > 400 * MS / 2);
        net.set_loss(&set(&[3]), 0.0);
        assert!(!net.loses(0, 3));
    }
}
