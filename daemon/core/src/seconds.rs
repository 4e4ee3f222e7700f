//! Second circuits: who is reached through one relay for control gets SWIM's words through another one as well (ADR 48).
//!
//! Owns: who should have one, and when it is dialled. Must not know: connections, which relays there are. Driven by: the owner
//! of all connections, which tells of each control connection and of each second circuit.
//!
//! The side that dialled the control connection dials the second one, so that there is one for each pair. It outlives the
//! control connection for a while: the relay of that may just have died, and then this is what shows that the peer lives.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gossamer_wire::NodeId;

/// Pause before a second circuit is dialled: control connections that both sides dial at once settle within it.
pub const SETTLE: Duration = Duration::from_secs(1);
/// Pause after one that failed or ended.
pub const RETRY: Duration = Duration::from_secs(10);
/// How long one is kept without a control connection.
pub const ALONE: Duration = Duration::from_secs(30);

/// A node that relays lead to.
#[derive(Clone, Copy, Debug)]
struct Led {
    /// The relay of its control connection.
    first: NodeId,
    /// Whether this node dials the second one.
    dials: bool,
    /// When the control connection has ended, if it has.
    lost: Option<Instant>,
    second: Second,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Second {
    /// None; to be dialled from then on.
    None(Instant),
    Dialling,
    Through(NodeId),
}

/// All nodes that relays lead to, at most one for each control connection, and those that had one [`ALONE`] ago or later.
#[derive(Debug, Default)]
pub struct Seconds {
    of: BTreeMap<NodeId, Led>,
}

impl Seconds {
    /// A control connection is up, through a relay or not. Returns whether a second circuit that is there must end: it goes
    /// the same way, or nobody needs it any more.
    pub fn handle_first(&mut self, node: NodeId, via: Option<NodeId>, dials: bool, now: Instant) -> bool {
        let before = self.of.get(&node).map(|led| led.second);
        let Some(first) = via else {
            self.of.remove(&node);
            return before.is_some();
        };
        let must_end = before == Some(Second::Through(first));
        let second = match before {
            Some(kept) if !must_end => kept,
            Some(_) | None => Second::None(now + SETTLE),
        };
        self.of.insert(node, Led { first, dials, lost: None, second });
        must_end
    }

    /// The control connection has ended.
    pub fn handle_first_lost(&mut self, node: NodeId, now: Instant) {
        if let Some(led) = self.of.get_mut(&node) {
            led.lost = Some(now);
        }
    }

    /// The node is down or has left. Returns whether there was a second circuit.
    pub fn forget(&mut self, node: NodeId) -> bool {
        self.of.remove(&node).is_some()
    }

    /// A second circuit has come about. Returns whether it may stay: it does where the control connection is a circuit
    /// through another relay.
    pub fn handle_second(&mut self, node: NodeId, via: Option<NodeId>) -> bool {
        match (self.of.get_mut(&node), via) {
            (Some(led), Some(via)) if led.first != via => {
                led.second = Second::Through(via);
                true
            }
            _ => false,
        }
    }

    /// The second circuit has ended, or could not be dialled.
    pub fn handle_second_lost(&mut self, node: NodeId, now: Instant) {
        if let Some(led) = self.of.get_mut(&node) {
            led.second = Second::None(now + RETRY);
        }
    }

    /// Returns the next node to dial a second circuit to, and the relay that it must not go through.
    pub fn next_dial(&mut self, now: Instant) -> Option<(NodeId, NodeId)> {
        let (node, led) = self.of.iter_mut().find(|(_, led)| led.dial_at().is_some_and(|at| at <= now))?;
        led.second = Second::Dialling;
        Some((*node, led.first))
    }

    /// Returns the next node whose second circuit has been alone for too long, and forgets it.
    pub fn next_alone(&mut self, now: Instant) -> Option<NodeId> {
        let alone = |led: &Led| led.lost.is_some_and(|at| at + ALONE <= now);
        let node = self.of.iter().find_map(|(node, led)| alone(led).then_some(*node))?;
        self.of.remove(&node);
        Some(node)
    }

    /// Returns when one of the two has something next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.of.values().filter_map(|led| led.dial_at().or_else(|| Some(led.lost? + ALONE))).min()
    }
}

impl Led {
    fn dial_at(&self) -> Option<Instant> {
        match self.second {
            Second::None(at) if self.dials && self.lost.is_none() => Some(at),
            Second::None(_) | Second::Dialling | Second::Through(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);
    const R: NodeId = NodeId::from_bytes([8; 16]);
    const S: NodeId = NodeId::from_bytes([9; 16]);

    /// A node whose control connection this side dialled through R.
    fn led(now: Instant) -> Seconds {
        let mut seconds = Seconds::default();
        assert!(!seconds.handle_first(NODE, Some(R), true, now));
        seconds
    }

    #[test]
    fn who_dialled_through_a_relay_dials_once_more_through_another() {
        let now = Instant::now();
        let mut seconds = led(now);
        assert_eq!((seconds.next_dial(now), seconds.next_deadline()), (None, Some(now + SETTLE)));
        assert_eq!(seconds.next_dial(now + SETTLE), Some((NODE, R)));
        assert_eq!((seconds.next_dial(now + ALONE), seconds.next_deadline()), (None, None), "under way");
        assert!(seconds.handle_second(NODE, Some(S)));
        assert_eq!((seconds.next_dial(now + ALONE), seconds.next_deadline()), (None, None), "there");
        seconds.handle_second_lost(NODE, now + ALONE);
        assert_eq!(seconds.next_dial(now + ALONE), None);
        assert_eq!(seconds.next_dial(now + ALONE + RETRY), Some((NODE, R)));
    }

    #[test]
    fn who_was_dialled_only_takes_one() {
        let (mut seconds, now) = (Seconds::default(), Instant::now());
        assert!(!seconds.handle_second(NODE, Some(S)), "nothing is known of it");
        seconds.handle_first(NODE, Some(R), false, now);
        assert_eq!((seconds.next_dial(now + ALONE), seconds.next_deadline()), (None, None));
        assert!(!seconds.handle_second(NODE, Some(R)), "the same way");
        assert!(!seconds.handle_second(NODE, None), "no circuit");
        assert!(seconds.handle_second(NODE, Some(S)));
    }

    #[test]
    fn a_direct_way_and_the_same_way_end_it() {
        let now = Instant::now();
        let mut seconds = led(now);
        assert!(seconds.handle_second(NODE, Some(S)));
        assert!(!seconds.handle_first(NODE, Some(R), true, now), "again through the first");
        assert!(seconds.handle_first(NODE, Some(S), true, now), "through its relay");
        assert_eq!(seconds.next_dial(now + SETTLE), Some((NODE, S)));
        assert!(seconds.handle_first(NODE, None, true, now), "directly");
        assert_eq!((seconds.next_dial(now + ALONE), seconds.next_deadline()), (None, None));
        assert!(!seconds.handle_first(NODE, None, true, now));
    }

    #[test]
    fn it_outlives_the_control_connection_for_a_while() {
        let now = Instant::now();
        let mut seconds = led(now);
        assert!(seconds.handle_second(NODE, Some(S)));
        seconds.handle_first_lost(NODE, now);
        assert_eq!((seconds.next_alone(now), seconds.next_deadline()), (None, Some(now + ALONE)));
        assert!(!seconds.handle_first(NODE, Some(R), true, now), "it is back");
        assert_eq!(seconds.next_alone(now + ALONE), None);
        seconds.handle_first_lost(NODE, now);
        assert_eq!(seconds.next_alone(now + ALONE), Some(NODE));
        assert_eq!((seconds.next_alone(now + ALONE), seconds.next_deadline()), (None, None));
        assert!(!seconds.forget(NODE));
    }

    #[test]
    fn without_a_control_connection_none_is_dialled() {
        let now = Instant::now();
        let mut seconds = led(now);
        seconds.handle_first_lost(NODE, now);
        assert_eq!(seconds.next_dial(now + SETTLE), None);
        assert!(seconds.forget(NODE) && !seconds.forget(NODE));
    }
}
