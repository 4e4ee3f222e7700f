//! How fast membership is.
//!
//! Owns: the periods and their start values (design section 5). Must not know: where they come from.
//! Driven by: whoever makes a `Membership`.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Config, PeriodicParams};
use gossamer_wire::limits::MAX_SWIM_BYTES;

use super::codec::NAMES_BYTES;
use crate::dial::WarmSet;

/// The periods of membership. None can change while running.
///
/// With the defaults a killed node is known everywhere in 3 to 5 s, a 3 s pause is not taken for a death, and
/// an idle node sends about 4 packets a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipConfig {
    /// One member is probed per interval. Default 500 ms; longer than `probe_rtt`.
    pub probe_interval: Duration,
    /// How long the answer may take before others are asked to probe. Default 200 ms.
    pub probe_rtt: Duration,
    /// How long a suspect may refute. Default 2.5 s.
    pub suspicion: Duration,
    /// News goes to three random members per interval. Default 100 ms.
    pub gossip_interval: Duration,
    /// How long a down member is remembered. Default 15 min.
    pub remove_down_after: Duration,
    /// Two down members are told of this node per interval, in case they live. Default 5 s.
    pub announce_to_down: Duration,
    /// Members are compared with one connected peer per interval, give or take a fifth. Default 10 s.
    pub exchange_interval: Duration,
    /// Who is probed and told news: all up to 1,024 members, a fixed set above.
    pub warm: WarmSet,
}

impl Default for MembershipConfig {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(500),
            probe_rtt: Duration::from_millis(200),
            suspicion: Duration::from_millis(2_500),
            gossip_interval: Duration::from_millis(100),
            remove_down_after: Duration::from_secs(900),
            announce_to_down: Duration::from_secs(5),
            exchange_interval: Duration::from_secs(10),
            warm: WarmSet::default(),
        }
    }
}

impl MembershipConfig {
    pub(super) fn foca(&self) -> Config {
        let every = |frequency, num_members| Some(PeriodicParams { frequency, num_members });
        Config {
            probe_period: self.probe_interval,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: FANOUT,
            max_transmissions: TRANSMISSIONS,
            suspect_to_down_after: self.suspicion,
            remove_down_after: Some(self.remove_down_after),
            max_packet_size: PACKET_BYTES,
            notify_down_members: true,
            periodic_announce: None,
            periodic_announce_to_down_members: every(self.announce_to_down, DOWN_FANOUT),
            periodic_gossip: every(self.gossip_interval, FANOUT),
        }
    }
}

/// Helpers of an indirect probe (SWIM 4.1), and receivers of each round of gossip.
const FANOUT: NonZeroUsize = NonZeroUsize::new(3).expect("not zero");

/// Receivers of each round of announces to down members.
const DOWN_FANOUT: NonZeroUsize = NonZeroUsize::new(2).expect("not zero");

/// How often each node passes news on. Misses about e^-12 of all nodes; the state exchange finds those.
const TRANSMISSIONS: NonZeroU8 = NonZeroU8::new(12).expect("not zero");

/// foca's limit covers the names, which do not travel.
const PACKET_BYTES: NonZeroUsize = NonZeroUsize::new(MAX_SWIM_BYTES + NAMES_BYTES).expect("not zero");
