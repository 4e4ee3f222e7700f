//! The part of membership that asks others about a member this node has no connection to (SWIM 4.1).
//!
//! Owns: who is asked, what their answers count, when a connection is wanted instead. Must not know: what is claimed. Driven by: `Membership`, for each
//! accused member it cannot ask itself.
//!
//! The messages are those of foca's indirect probes: a helper pings the accused and hands its answer on. To be asked
//! is no accusation: a helper believes nothing, passes nothing on and counts nothing against anybody. One helper may
//! lie like one accuser, so one against one leaves things as they are, and nobody is blamed on the word of one.

use std::time::Instant;

use gossamer_wire::NodeId;
use gossamer_wire::frame::Frame;
use gossamer_wire::swim::{Identity, SwimHeader, SwimMessage};
use rand::seq::SliceRandom;

use super::packet::Packet;
use super::{Membership, Output};
use crate::dial::PairRank;

/// Members asked at once (SWIM 4.1: k). Enough that one may lie and one may not know.
const HELPERS: usize = 3;

/// Helpers that must have seen the accused live before its accusers are blamed.
const PROVED_BY: usize = 2;

impl Membership {
    /// Asks some peers that should have a connection to the member to probe it.
    pub(super) fn ask_helpers(&mut self, node: NodeId, number: u64) {
        let Some(view) = self.table.get(node).copied() else { return };
        let target = Identity { node, generation: view.generation };
        let helpers = self.helpers(node);
        for helper in &helpers {
            let Some(to) = self.table.get(*helper).map(|view| view.generation) else { continue };
            let message = SwimMessage::PingReq { target, probe: number as u8 };
            let header =
                SwimHeader { from: self.me().generation, incarnation: self.incarnation, to, message };
            let bytes = Packet { header, members: Vec::new() }.encode();
            self.outputs.push_back(Output::Frame { to: *helper, frame: Frame::Swim(bytes) });
        }
        // Whoever is warm to it has a connection; of others that is only likely.
        if helpers.len() < HELPERS || self.config.warm.is_everybody() {
            self.outputs.push_back(Output::Reach { node });
        }
        self.claims.ask_helpers(node, helpers);
    }

    /// A helper says that a member has answered it.
    pub(super) fn handle_vouch(&mut self, helper: NodeId, target: Identity, number: u8, now: Instant) {
        if self.claims.vouch(helper, target.node, target.generation, number) {
            self.clear_by_helpers(target.node, now);
        }
    }

    /// Clears a member that helpers have seen live.
    pub(super) fn clear_by_helpers(&mut self, node: NodeId, now: Instant) {
        let is_proved = self.claims.seen(node) >= PROVED_BY;
        self.clear(node, is_proved, now);
    }

    /// The connection to a member has come or gone while word of it is awaited: whoever can be asked is asked.
    pub(super) fn ask_anew(&mut self, node: NodeId, now: Instant) {
        if let Some(number) = self.claims.ask_anew(node) {
            self.ask(node, number, now);
        }
    }

    /// Draws peers that live, do not accuse the member, and are warm to it.
    fn helpers(&mut self, node: NodeId) -> Vec<NodeId> {
        let mut peers: Vec<_> = self.peers.iter().collect();
        peers.shuffle(&mut self.rng);
        let warm = self.config.warm;
        let is_of_use = |peer: &NodeId| {
            self.table.is_alive(*peer)
                && !self.claims.accuses(*peer, node)
                && (warm.is_everybody() || warm.holds(PairRank::of(*peer, node)))
        };
        peers.into_iter().filter(is_of_use).take(HELPERS).collect()
    }
}
