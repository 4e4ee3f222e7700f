//! The part of membership that spares what is of no use: pings over connections that are still to come, and
//! rounds of gossip without news.
//!
//! Owns: what is left out, and how foca is kept from counting it as a failure. Must not know: dials.
//! Driven by: `Membership`, for what foca wants sent and timed.
//!
//! When many nodes start at once each knows the others long before it has connected to them: its pings would be
//! lost, and the whole mesh would suspect itself.

use std::time::{Duration, Instant};

use foca::Timer;
use gossamer_wire::NodeId;
use gossamer_wire::swim::{self, SwimHeader, SwimMessage};

use super::packet::Packet;
use super::{Life, Membership, Probing, Source, log};

/// How long a member that has just become known need not be connected. Twice what a node of a mesh of 1,000
/// needs to dial its half of them; who has a connection finds a death meanwhile.
const COLD: Duration = Duration::from_secs(20);

/// A ping that was not sent.
#[derive(Clone, Debug)]
pub(super) struct Spared {
    node: NodeId,
    header: SwimHeader,
    number: u8,
}

impl Membership {
    /// Returns the ping in a packet if it is to be left out.
    pub(super) fn cold_ping(&self, to: NodeId, packet: &[u8], now: Instant) -> Option<Spared> {
        let (header, _) = swim::decode_header(packet).ok()?;
        let SwimMessage::Ping(number) = header.message else { return None };
        let is_young =
            self.table.get(to).is_some_and(|view| now.saturating_duration_since(view.since) < COLD);
        (is_young && !self.peers.contains(to)).then_some(Spared { node: to, header, number })
    }

    /// Lets foca take a ping that was left out for answered.
    pub(super) fn spare(&mut self, ping: Spared, now: Instant) {
        let Spared { node, header, number } = ping;
        self.probing = Some(Probing { node, life: header.to, number, is_acked: true });
        let incarnation = self.table.get(node).map_or(0, |view| view.incarnation);
        let ack = SwimHeader {
            from: header.to,
            incarnation,
            to: self.me().generation,
            message: SwimMessage::Ack(number),
        };
        let named = Packet { header: ack, members: Vec::new() }.name(node, self.me().node);
        let result =
            self.drive(Source::OwnProbes, Vec::new(), now, |swim, effects| swim.handle_data(&named, effects));
        log(result);
    }

    /// Keeps the timer of the next round of gossip until there is news: it is due ten times a second, of some 34
    /// wake-ups by timers that an idle node had (strace).
    pub(super) fn park_gossip(&mut self, timers: &mut Vec<(Duration, Timer<Life>)>) {
        let is_gossip = |timer: &Timer<Life>| matches!(timer, Timer::PeriodicGossip(_));
        if let Some(at) = timers.iter().rposition(|(_, timer)| is_gossip(timer)) {
            self.parked_gossip = Some(timers.swap_remove(at));
        }
        if self.swim.updates_backlog() > 0 {
            timers.extend(self.parked_gossip.take());
        }
    }
}
