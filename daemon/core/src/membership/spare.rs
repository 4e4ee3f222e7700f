//! The part of membership that spares what is of no use: pings over connections that are still to come or never
//! will, and rounds of gossip without news.
//!
//! Owns: what is left out or goes to somebody else, and how foca is kept from counting it as a failure. Must not
//! know: dials. Driven by: `Membership`, for what foca wants sent and timed.
//!
//! When many nodes start at once each knows the others long before it has connected to them: its pings would be
//! lost, and the whole mesh would suspect itself. News meant for them goes to one that is connected. In a mesh too
//! large for a connection between all (see [`WarmSet`](crate::dial::WarmSet)) foca still takes its turns through all
//! members: those that are not warm are passed over at once.

use std::time::{Duration, Instant};

use foca::Timer;
use gossamer_wire::NodeId;
use gossamer_wire::swim::{self, SwimHeader, SwimMessage};

use super::packet::Packet;
use super::{Life, Membership, Probing, Source, log};
use crate::dial::PairRank;

/// How long a member that has just become known need not be connected. Twice what a node of a mesh of 1,000
/// needs to dial its half of them; who has a connection finds a death meanwhile.
const COLD: Duration = Duration::from_secs(20);

/// A ping that was not sent.
#[derive(Clone, Debug)]
pub(super) struct Spared {
    node: NodeId,
    header: SwimHeader,
    number: u8,
    /// Whether there will never be a connection.
    is_foreign: bool,
}

impl Membership {
    /// Returns the ping in a packet if it is to be left out.
    pub(super) fn cold_ping(&self, to: NodeId, packet: &[u8], now: Instant) -> Option<Spared> {
        let (header, _) = swim::decode_header(packet).ok()?;
        let SwimMessage::Ping(number) = header.message else { return None };
        let is_young =
            self.table.get(to).is_some_and(|view| now.saturating_duration_since(view.since) < COLD);
        let is_foreign = !self.is_warm(to);
        (is_foreign || is_young && !self.peers.contains(to)).then_some(Spared {
            node: to,
            header,
            number,
            is_foreign,
        })
    }

    /// Ends the turn of a member that is not warm at once, so that the next one is not half a second late.
    pub(super) fn hurry_on(&mut self, spared: Option<&Spared>, timers: &mut [(Duration, Timer<Life>)]) {
        let Some(ping) = spared else {
            let is_ping = |timer: &Timer<Life>| matches!(timer, Timer::SendIndirectProbe { .. });
            if timers.iter().any(|(_, timer)| is_ping(timer)) {
                self.passed_over = 0;
            }
            return;
        };
        // If nobody is warm yet, the turns go on at their own pace.
        if !ping.is_foreign || self.passed_over > self.table.len() {
            self.passed_over = 0;
            return;
        }
        self.passed_over += 1;
        for (after, timer) in timers {
            if matches!(timer, Timer::SendIndirectProbe { .. } | Timer::ProbeRandomMember(_)) {
                *after = Duration::ZERO;
            }
        }
    }

    /// Returns to whom a packet goes: news, and requests to probe somebody, to a warm peer where foca has chosen a
    /// member without a connection.
    pub(super) fn redirected(&mut self, to: NodeId, packet: &[u8]) -> (NodeId, Vec<u8>) {
        let is_reached = self.peers.contains(to) && self.is_warm(to);
        let header = swim::decode_header(packet).ok().filter(|_| !is_reached);
        let for_any =
            |header: &SwimHeader| matches!(header.message, SwimMessage::Gossip | SwimMessage::PingReq { .. });
        let Some((header, used)) = header.filter(|(header, _)| for_any(header)) else {
            return (to, packet.to_vec());
        };
        let (table, warm, me) = (&self.table, self.config.warm, self.me().node);
        let other =
            self.peers.one(&mut self.rng, |peer| table.is_up(peer) && warm.holds(PairRank::of(me, peer)));
        let Some(view) = other.and_then(|peer| self.table.get(peer)) else {
            return (to, packet.to_vec());
        };
        let header = SwimHeader { to: view.generation, ..header };
        let mut bytes = swim::encode(&header).unwrap_or_default();
        bytes.extend_from_slice(packet.get(used..).unwrap_or_default());
        (view.node, bytes)
    }

    fn is_warm(&self, node: NodeId) -> bool {
        let warm = self.config.warm;
        warm.is_everybody() || warm.holds(PairRank::of(self.me().node, node))
    }

    /// Lets foca take a ping that was left out for answered.
    pub(super) fn spare(&mut self, ping: Spared, now: Instant) {
        let Spared { node, header, number, .. } = ping;
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
