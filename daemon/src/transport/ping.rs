//! `ping`: whether a peer answers over its connection, and what becomes of a handshake with each of its addresses.
//!
//! Owns: pings under way, how often a peer is answered. Must not know: who asks, how it is shown.
//! Driven by: the local API; links, which hand in what peers say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::timeout;

use gossamer_wire::NodeId;
use gossamer_wire::frame::{Frame, Purpose};
use gossamer_wire::limits::MAX_ADDRESSES;

use super::accept::{Dialler, Whereabouts};
use super::canary::nobody;
use super::lane::Opener;
use super::link::CLOSE_LOOKED;
use super::owner::Owner;
use super::paths::Path;
use super::tried::{Outcome, Way};
use super::{Command, Peers};
use crate::clock;

/// What `ping` found out about a node.
#[derive(Debug, Default)]
pub struct Pinged {
    /// The path of its connection, and how long it took to answer over it; `None` while it is not connected.
    pub connection: Option<(Path, Result<Duration, Outcome>)>,
    /// What became of each address and each relay, in the order in which a dial would try them.
    pub tried: Vec<(Way, Result<Duration, Outcome>)>,
}

/// Who is asked for the addresses of a node, and for the means to try them.
pub(super) type Caller = oneshot::Sender<(Whereabouts, Dialler)>;

impl Peers {
    /// Pings a node over its connection and tries each of its addresses, those `known` from its card and those it was met
    /// at, twelve at most. Takes 5 s at most.
    ///
    /// # Cancel safety
    /// Cancel safe: what is under way is given up.
    pub async fn ping(&self, node: NodeId, known: Vec<SocketAddr>) -> Pinged {
        let (connection, tried) = tokio::join!(self.ping_connection(node), self.try_addresses(node, known));
        Pinged { connection, tried }
    }

    async fn ping_connection(&self, node: NodeId) -> Option<(Path, Result<Duration, Outcome>)> {
        let link = self.links.load().get(&node).cloned()?;
        let path = Path::of(&link, self.seconds.load().get(&node));
        let (number, answered) = self.pings.begin(node)?;
        let began = clock::now().mono;
        link.send_frame(&Frame::Ping(number));
        let answer = match timeout(ANSWER_WITHIN, answered).await {
            Ok(Ok(at)) => Ok(at.saturating_duration_since(began)),
            Ok(Err(_)) | Err(_) => Err(Outcome::NoAnswer(ANSWER_WITHIN)),
        };
        self.pings.end(node, number);
        Some((path, answer))
    }

    async fn try_addresses(
        &self,
        node: NodeId,
        known: Vec<SocketAddr>,
    ) -> Vec<(Way, Result<Duration, Outcome>)> {
        let (caller, told) = oneshot::channel();
        let asked = self.commands.send(Command::Look { node, caller }).await;
        let Some((Whereabouts { mut addresses, lanes, relays, .. }, dialler)) =
            told.await.ok().filter(|_| asked.is_ok())
        else {
            return Vec::new();
        };
        for address in known {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.truncate(MAX_TRIED);
        let ways = addresses.iter().flat_map(|address| [Way::Udp(*address), Way::Tcp(*address)]);
        let ways = ways.chain(lanes.into_iter().map(Way::Tls)).chain(relays.into_iter().map(Way::Relay));
        let all = ways.enumerate().map(|(place, way)| {
            let dialler = &dialler;
            async move {
                let outcome = dialler.look(node, &way).await;
                (place, way, outcome)
            }
        });
        let mut tried: Vec<_> = all.collect::<FuturesUnordered<_>>().collect().await;
        tried.sort_by_key(|(place, ..)| *place);
        tried.into_iter().map(|(_, way, outcome)| (way, outcome)).collect()
    }
}

impl Owner {
    /// Says where a node may be dialled, and how.
    pub(super) fn look(&self, node: NodeId, caller: Caller) {
        let to = self.place(node, self.udp_addresses(node));
        // Who asked may have gone.
        let _ = caller.send((to, self.dialler(Purpose::Control)));
    }

    /// Returns how to dial.
    pub(super) fn dialler(&self, purpose: Purpose) -> Dialler {
        let config = match purpose {
            Purpose::Control | Purpose::Swim => self.endpoints.control.clone(),
            Purpose::Data => self.endpoints.data.clone(),
        };
        let (endpoint, greeter) = (self.endpoints.endpoint.clone(), self.greeter.clone());
        let (lanes, metrics) = (self.lane_dialler.clone(), Arc::clone(&self.metrics));
        Dialler { endpoint, config, lanes, greeter, metrics }
    }
}

impl Dialler {
    /// Shakes hands by one way and hangs up; returns the round trip.
    async fn look(&self, node: NodeId, way: &Way) -> Result<Duration, Outcome> {
        let refused = async {
            match way {
                Way::Udp(address) => nobody(*address).await,
                // TCP says so itself, and so does a relay.
                Way::Tcp(_) | Way::Tls(_) | Way::Relay(_) => std::future::pending().await,
            }
        };
        let connection = tokio::select! {
            biased;
            shaken = self.shake_hands(node, way, Opener::Dialler) => shaken?,
            outcome = refused => return Err(outcome),
        };
        let rtt = connection.rtt();
        connection.close(CLOSE_LOOKED.into(), b"only looking");
        Ok(rtt)
    }
}

/// Pings that wait for their answer. Clones are handles to the same ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Pings(Arc<Mutex<Waiting>>);

/// Who waits for an answer, by node and number.
type Waiting = BTreeMap<(NodeId, u64), oneshot::Sender<Instant>>;

impl Pings {
    /// Begins one; `None` while too many are under way.
    fn begin(&self, node: NodeId) -> Option<(u64, oneshot::Receiver<Instant>)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_PINGS {
            return None;
        }
        // Numbers need to differ, no more: a peer that answers a ping before it comes deceives nobody but us, once.
        let number = all.keys().map(|(_, number)| number + 1).max().unwrap_or(0);
        let (caller, answered) = oneshot::channel();
        all.insert((node, number), caller);
        Some((number, answered))
    }

    fn end(&self, node: NodeId, number: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(node, number));
    }

    /// Takes in the answer of a peer; one that nobody waits for means nothing.
    pub(super) fn answered(&self, node: NodeId, number: u64) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(node, number));
        if let Some(caller) = waiting {
            let _ = caller.send(clock::now().mono);
        }
    }
}

/// How often one peer is answered: some at once, then a few each second.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    pub(super) const fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, since: now }
    }

    /// Whether one more ping is answered.
    pub(super) fn takes(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.since).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(A_SECOND);
            (self.left, self.since) = (self.left.saturating_add(more).min(AT_ONCE), now);
        }
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

/// Longest wait for an answer over a connection: behind this a peer is silent, and its flows end.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Addresses tried at once: those of a card, and those a node was met at.
const MAX_TRIED: usize = MAX_ADDRESSES + 4;
/// Pings under way at once: each belongs to a command that somebody runs.
const MAX_PINGS: usize = 64;
/// Pings of a peer that are answered at once, and each second after that.
const AT_ONCE: u32 = 16;
const A_SECOND: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 16]);

    #[test]
    fn a_peer_that_pings_without_end_is_answered_now_and_then() {
        let start = clock::now().mono;
        let mut allowance = Allowance::new(start);
        let answered = |allowance: &mut Allowance, at: Duration| {
            (0..1_000).filter(|_| allowance.takes(start + at)).count()
        };
        assert_eq!(answered(&mut allowance, Duration::ZERO), 16);
        assert_eq!(answered(&mut allowance, Duration::from_millis(999)), 0);
        assert_eq!(answered(&mut allowance, Duration::from_secs(2)), 8);
        assert_eq!(answered(&mut allowance, Duration::from_secs(600)), 16);
    }

    #[tokio::test]
    async fn an_answer_counts_once_and_only_from_who_was_asked() {
        let pings = Pings::default();
        let (number, mut answered) = pings.begin(PEER).expect("room");
        pings.answered(NodeId::from_bytes([2; 16]), number);
        pings.answered(PEER, number + 1);
        assert!(answered.try_recv().is_err());
        pings.answered(PEER, number);
        pings.answered(PEER, number);
        assert!(answered.await.is_ok());
    }

    #[test]
    fn pings_under_way_are_bounded() {
        let pings = Pings::default();
        let begun: Vec<_> = (0..MAX_PINGS).map(|_| pings.begin(PEER).expect("room")).collect();
        assert!(pings.begin(PEER).is_none());
        pings.end(PEER, begun[0].0);
        assert!(pings.begin(PEER).is_some());
    }
}
