//! Peers to which packets go over UDP and from which none comes back.
//!
//! Owns: for how long that has been so. Must not know: connections, sockets. Driven by: the owner of all connections, which
//! counts the packets of each control connection about once a second.
//!
//! Most packets ask for an acknowledgement, and who waits for one sends more. So silence means that the peer is gone, or that
//! UDP has been closed on the way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

/// Packets of a connection so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    /// To the peer.
    pub sent: u64,
    /// From the peer.
    pub received: u64,
}

/// How long the packets to each peer have been unanswered.
#[derive(Debug, Default)]
pub struct Unanswered(BTreeMap<NodeId, Silence>);

#[derive(Debug)]
struct Silence {
    /// When the peer was heard last.
    heard: Packets,
    at: Instant,
    lasts: Duration,
    /// How long it lasts when it is told of.
    told_at: Duration,
}

impl Unanswered {
    /// Takes the counts of a peer's connection. Returns whether its packets have been unanswered for so long that UDP may be
    /// closed: soon, and then from time to time for as long as the silence lasts, for another way may open.
    pub fn handle_packets(&mut self, node: NodeId, packets: Packets, now: Instant) -> bool {
        let begin = || Silence { heard: packets, at: now, lasts: Duration::ZERO, told_at: UNANSWERED };
        let silence = self.0.entry(node).or_insert_with(begin);
        if silence.heard.received != packets.received {
            *silence = begin();
            return false;
        }
        // However late the count comes: time in which this process stood still is not the peer's silence.
        let passed = now.saturating_duration_since(silence.at).min(SAMPLE);
        silence.at = now;
        if packets.sent.saturating_sub(silence.heard.sent) >= ENOUGH {
            silence.lasts += passed;
        }
        let is_told = silence.lasts >= silence.told_at;
        if is_told {
            silence.told_at = silence.lasts + AGAIN;
        }
        is_told
    }

    /// Forgets the peers that are not to be kept.
    pub fn retain(&mut self, mut is_kept: impl FnMut(NodeId) -> bool) {
        self.0.retain(|node, _| is_kept(*node));
    }
}

/// Long enough to be no lost packet, and short enough for a lane to be there before membership gives a peer up, 3 s after the
/// first probe that has failed.
const UNANSWERED: Duration = Duration::from_secs(1);
/// Pause before a silence is told of again.
const AGAIN: Duration = Duration::from_secs(10);
/// Packets without an answer that are no chance: one may be an acknowledgement, which has none, and one may be lost.
const ENOUGH: u64 = 3;
/// The most that passes between two counts.
const SAMPLE: Duration = Duration::from_millis(1_500);

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);
    const SECOND: Duration = Duration::from_secs(1);

    /// Takes these counts, one a second; returns which were too long a silence.
    fn told(counts: &[(u64, u64)]) -> Vec<usize> {
        let (mut unanswered, start) = (Unanswered::default(), Instant::now());
        let mut told = Vec::new();
        for (at, (sent, received)) in (0_u32..).zip(counts) {
            let packets = Packets { sent: *sent, received: *received };
            if unanswered.handle_packets(NODE, packets, start + SECOND * at) {
                told.push(at as usize);
            }
        }
        told
    }

    #[test]
    fn a_peer_that_answers_nothing_is_told_of_at_once_and_again_while_it_lasts() {
        let counts = [(9, 9), (12, 9), (14, 9), (16, 9), (18, 9), (19, 10), (23, 10), (27, 10), (31, 10)];
        assert_eq!(told(&counts), [1, 6]);
        let counts: Vec<_> = (0..25).map(|second| (9 + second * 3, 9)).collect();
        assert_eq!(told(&counts), [1, 11, 21]);
    }

    #[test]
    fn a_connection_without_work_and_one_that_has_only_acknowledged_are_not_silent() {
        assert_eq!(told(&[(9, 9); 60]), [0_usize; 0]);
        let mut counts = [(10, 9); 60];
        counts[0] = (9, 9);
        assert_eq!(told(&counts), [0_usize; 0]);
    }

    #[test]
    fn time_that_this_process_did_not_live_through_is_no_silence() {
        let (mut unanswered, start) = (Unanswered::default(), Instant::now());
        let packets = |sent| Packets { sent, received: 5 };
        assert!(!unanswered.handle_packets(NODE, packets(5), start));
        let mut told = (0..4).map(|at| unanswered.handle_packets(NODE, packets(9), start + SAMPLE / 8 * at));
        assert!(told.all(|told| !told));
        assert!(unanswered.handle_packets(NODE, packets(9), start + SECOND * 60));
        assert!(unanswered.0[&NODE].lasts < SAMPLE * 2);
    }

    #[test]
    fn who_is_not_kept_begins_anew() {
        let (mut unanswered, start) = (Unanswered::default(), Instant::now());
        unanswered.handle_packets(NODE, Packets::default(), start);
        unanswered.retain(|node| node != NODE);
        let later = Packets { sent: 9, received: 0 };
        assert!(!unanswered.handle_packets(NODE, later, start + SECOND * 2));
        assert!(unanswered.0.contains_key(&NODE));
    }
}
