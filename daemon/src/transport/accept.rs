//! Inbound and outbound handshakes, each in a short task with a deadline.
//!
//! Owns: nothing for long. Must not know: which connections are kept. Driven by: `owner`.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::{ClientConfig, ConnectionError, Endpoint, Incoming};
use tokio::sync::mpsc;
use tokio::time::timeout;

use gossamer_core::astray::Astray;
use gossamer_wire::frame::Purpose;
use gossamer_wire::limits::HANDSHAKE_TIMEOUT;
use gossamer_wire::{LaneAddress, NodeId, join};

use super::carrier::Connection;
use super::hello::{Greeted, Greeter, HelloError};
use super::lane::{Arrival, Entered, LaneDialler, LaneDoor, Opener};
use super::link::{CLOSE_LOOKED, CLOSE_REFUSED};
use super::member_alpn;
use super::race::Race;
use super::tried::{Outcome, Way};
use crate::metrics::Metrics;
use crate::supervise::Stage;

/// What became of a handshake that came in.
pub(super) enum Accepted {
    /// A member's connection, greeted.
    Member(Greeted),
    /// A joiner's, for the issuer.
    Joiner(Connection),
    /// A member's, which wanted to know whether this node answers, no more.
    Looked,
    /// A joiner's for another node, which is counted.
    Led,
    /// A connection came about and was refused, which is counted.
    Refused,
    /// No connection came about, which is counted.
    Unfinished,
}

/// Completes the handshake of a lane that came in.
pub(super) async fn accept_lane(
    arrival: Arrival,
    door: &LaneDoor,
    greeter: &Greeter,
    metrics: &Arc<Metrics>,
    stage: &Stage,
) -> Accepted {
    let (remote, relay) = (arrival.remote, arrival.relay());
    let shaken = timeout(HANDSHAKE_TIMEOUT, door.shake_hands(arrival)).await;
    let Entered { lane, driver, is_joiner } = match shaken.unwrap_or(Err("lane_timeout")) {
        Ok(Some(entered)) => entered,
        Ok(None) => return Accepted::Led,
        Err(reason) => {
            tracing::debug!(%remote, relay = ?relay, reason, "a lane is refused");
            metrics.handshake_refused(reason);
            return Accepted::Unfinished;
        }
    };
    let (stop, counted) = (stage.stopping().clone(), Arc::clone(metrics));
    stage.spawn_short("lane", async move {
        if driver.run(stop).await {
            counted.bad_frame();
        }
    });
    let connection = Connection::Lane(lane);
    if is_joiner {
        return Accepted::Joiner(connection);
    }
    greet(connection, greeter, metrics).await
}

/// Completes an inbound handshake.
pub(super) async fn accept(incoming: Incoming, greeter: &Greeter, metrics: &Metrics) -> Accepted {
    let remote = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    let connection = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "handshake refused");
            metrics.handshake_refused("tls");
            return Accepted::Unfinished;
        }
        Err(_) => {
            tracing::debug!(%remote, "a handshake was not completed in time");
            metrics.handshake_refused("timeout");
            return Accepted::Unfinished;
        }
    };
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    if protocol.as_deref() == Some(join::ALPN) {
        return Accepted::Joiner(connection.into());
    }
    if protocol.as_deref() != Some(member_alpn()) {
        connection.close(CLOSE_REFUSED.into(), b"protocol");
        metrics.handshake_refused("protocol");
        return Accepted::Refused;
    }
    greet(connection.into(), greeter, metrics).await
}

/// Answers the greeting of a connection that came in.
async fn greet(connection: Connection, greeter: &Greeter, metrics: &Metrics) -> Accepted {
    let remote = connection.remote_address();
    match timeout(HANDSHAKE_TIMEOUT, greeter.answer(connection.clone())).await {
        Ok(Ok(greeted)) => Accepted::Member(greeted),
        Ok(Err(_)) if connection.close_reason().as_ref().is_some_and(has_only_looked) => Accepted::Looked,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "connection refused");
            metrics.handshake_refused(reason(&error));
            connection.close(CLOSE_REFUSED.into(), b"refused");
            Accepted::Refused
        }
        Err(_) => {
            tracing::debug!(%remote, "no hello came in time");
            metrics.handshake_refused("timeout");
            connection.close(CLOSE_REFUSED.into(), b"no hello");
            Accepted::Refused
        }
    }
}

/// Nothing is read before the certificate is verified: who says so is a member.
fn has_only_looked(why: &ConnectionError) -> bool {
    matches!(why, ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_LOOKED.into())
}

const fn reason(error: &HelloError) -> &'static str {
    match error {
        HelloError::Trust(_) => "certificate",
        HelloError::Decode(_) | HelloError::Encode(_) | HelloError::Purpose | HelloError::Statements => {
            "hello"
        }
        HelloError::TooMany => "too_many",
        HelloError::Connection(_) | HelloError::Stream(_) => "connection",
    }
}

/// By which ways a node is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// UDP alone.
    Udp,
    /// A lane alone.
    Lane,
    /// Circuits alone.
    Circuit,
    /// All but UDP, which has gone silent: lanes, and circuits a little later.
    Detours,
    /// UDP and, so much later, lanes.
    Direct(Duration),
    /// All, what is not UDP so much later.
    All(Duration),
}

impl By {
    const fn has_udp(self) -> bool {
        matches!(self, Self::Udp | Self::Direct(_) | Self::All(_))
    }

    const fn has_lanes(self) -> bool {
        matches!(self, Self::Lane | Self::Detours | Self::Direct(_) | Self::All(_))
    }

    const fn has_circuits(self) -> bool {
        matches!(self, Self::Circuit | Self::Detours | Self::All(_))
    }

    /// Returns the start that the first ways have.
    const fn later(self) -> Duration {
        match self {
            Self::Direct(later) | Self::All(later) => later,
            Self::Detours => LANES_ALONE,
            Self::Udp | Self::Lane | Self::Circuit => Duration::ZERO,
        }
    }
}

/// The start of lanes before circuits where both stand in for UDP: where TCP is open it answers within that.
const LANES_ALONE: Duration = Duration::from_millis(500);

/// Where somebody may be reached.
#[derive(Clone, Debug, Default)]
pub(super) struct Whereabouts {
    /// Best first.
    pub(super) addresses: Vec<SocketAddr>,
    /// Where only lanes lead to him.
    pub(super) lanes: Vec<LaneAddress>,
    /// Whether one of those led to him last.
    pub(super) by_ingress: bool,
    /// Relays that have a connection with him.
    pub(super) relays: Vec<NodeId>,
}

impl From<Vec<SocketAddr>> for Whereabouts {
    fn from(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, ..Self::default() }
    }
}

impl Whereabouts {
    /// Returns the ways that begin, UDP where that is wanted, and those that run beside them.
    fn ways(self, by: By, has_tcp: bool) -> (Vec<Way>, Vec<Way>) {
        let Self { addresses, lanes, by_ingress, relays } = self;
        let circuits = relays.into_iter().filter(|_| has_tcp && by.has_circuits()).map(Way::Relay);
        let has_lanes = has_tcp && by.has_lanes();
        let direct = addresses.iter().filter(|_| has_lanes).copied().map(Way::Tcp);
        let named = lanes.into_iter().filter(|_| has_lanes).map(Way::Tls);
        // A flow need not wait again for what did not answer the last time.
        let lanes: Vec<_> =
            if by_ingress { named.chain(direct).collect() } else { direct.chain(named).collect() };
        if by == By::Detours {
            return (lanes, circuits.collect());
        }
        // Where a detour was needed the last time, that was for want of anything better.
        let beside = match by.later().is_zero() {
            true => circuits.chain(lanes).collect(),
            false => lanes.into_iter().chain(circuits).collect(),
        };
        (addresses.into_iter().filter(|_| by.has_udp()).map(Way::Udp).collect(), beside)
    }
}

/// What is dialled for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Errand {
    pub(super) node: NodeId,
    pub(super) purpose: Purpose,
    pub(super) by: By,
    /// Who opens flows on a lane.
    pub(super) opener: Opener,
}

/// How to dial.
#[derive(Clone, Debug)]
pub(super) struct Dialler {
    pub(super) endpoint: Endpoint,
    pub(super) config: ClientConfig,
    /// `None` where there is no TCP.
    pub(super) lanes: Option<LaneDialler>,
    pub(super) greeter: Greeter,
    pub(super) metrics: Arc<Metrics>,
}

/// What a dial has come to.
#[derive(Debug, Default)]
pub(super) struct Dialled {
    /// The connection, if there is one.
    pub(super) greeted: Option<Greeted>,
    /// Addresses at which somebody else answered.
    pub(super) others: Vec<SocketAddr>,
    /// Relays that have said that they lead to the node, and did not.
    pub(super) astray: Vec<(NodeId, Astray)>,
}

/// How long a greeting may take before another way is looked for beside it.
fn patience(connection: &Connection) -> Duration {
    (connection.rtt() * 4).max(GREETS_WITHIN)
}

/// The same on a path without length. A flow waits 3 s for its stream, and the next relay shall have time.
const GREETS_WITHIN: Duration = Duration::from_millis(750);

impl Dialler {
    /// Races the ways, and greets on the first connection that turns out to be the wanted node; an address may
    /// belong to another machine here, for example where networks share their ranges. Only one connection is greeted on at a
    /// time: the other side keeps the last one it hears from. A circuit on which no greeting comes back makes room for the next
    /// one: its relay may lead nothing.
    pub(super) async fn dial(self, errand: Errand, to: Whereabouts) -> Dialled {
        let Errand { node, purpose, by, opener } = errand;
        let mut dialled = Dialled::default();
        let (udp, beside) = to.ways(by, self.lanes.is_some());
        let attempt = |way: Way| {
            let dialler = &self;
            async move { (way.clone(), dialler.shake_hands(node, &way, opener).await) }
        };
        let mut race = Race::new(udp, attempt).beside(beside, by.later());
        let mut next = None;
        loop {
            let Some(connection) = next.take() else {
                let Some(met) = race.next().await else { return dialled };
                next = self.note(node, met, &mut dialled);
                continue;
            };
            let relay = connection.via();
            let mut greeting =
                pin!(timeout(HANDSHAKE_TIMEOUT, self.greeter.greet(connection.clone(), purpose)));
            let mut greeted = timeout(patience(&connection), &mut greeting).await.ok();
            while greeted.is_none() && next.is_none() {
                tokio::select! {
                    biased;
                    ended = &mut greeting => greeted = Some(ended),
                    Some(met) = race.next(), if relay.is_some() => next = self.note(node, met, &mut dialled),
                }
            }
            match greeted {
                Some(Ok(Ok(greeted))) => {
                    dialled.greeted = Some(greeted);
                    break;
                }
                Some(Ok(Err(error))) => {
                    tracing::debug!(peer = %node, %error, "greeting failed");
                    // Such a word comes from the node itself.
                    let has_said =
                        matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(_)));
                    connection.close(CLOSE_REFUSED.into(), b"refused");
                    if has_said
                        || relay.is_none()
                        || !matches!(error, HelloError::Connection(_) | HelloError::Stream(_))
                    {
                        break;
                    }
                }
                Some(Err(_)) | None => connection.close(CLOSE_REFUSED.into(), b"no hello"),
            }
            let Some(relay) = relay else { break };
            let silent = Outcome::LedNowhere("no hello came back".to_owned());
            self.note(node, (Way::Relay(relay), Err(silent)), &mut dialled);
        }
        // What is still under way need not go on.
        drop(race);
        if let Some(spare) = next {
            spare.close(CLOSE_LOOKED.into(), b"another way was faster");
        }
        dialled
    }

    /// Takes note of an attempt that has ended. Returns its connection, if there is one.
    fn note(
        &self,
        node: NodeId,
        (way, met): (Way, Result<Connection, Outcome>),
        dialled: &mut Dialled,
    ) -> Option<Connection> {
        let outcome = match met {
            Ok(connection) => return Some(connection),
            Err(outcome) => outcome,
        };
        tracing::debug!(peer = %node, %way, %outcome, "dial failed");
        self.metrics.dial_attempt_failed(outcome.word());
        match (way, outcome.astray()) {
            // Who has the TCP port is another question.
            (Way::Udp(address), _) if outcome == Outcome::WrongIdentity => dialled.others.push(address),
            (Way::Relay(relay), Some(how)) => dialled.astray.push((relay, how)),
            _ => {}
        }
        None
    }

    /// Completes a handshake with one address and checks that the wanted node is there.
    pub(super) async fn shake_hands(
        &self,
        node: NodeId,
        way: &Way,
        opener: Opener,
    ) -> Result<Connection, Outcome> {
        let connection = match (way, &self.lanes) {
            (Way::Udp(address), _) => self.shake_hands_by_udp(*address).await?.into(),
            (Way::Tcp(address), Some(lanes)) => Connection::Lane(lanes.dial(node, *address, opener).await?),
            (Way::Tls(at), Some(lanes)) => Connection::Lane(lanes.dial_by_name(node, at, opener).await?),
            (Way::Relay(relay), Some(lanes)) => {
                Connection::Lane(lanes.dial_circuit(node, *relay, opener).await?)
            }
            (Way::Tcp(_) | Way::Tls(_) | Way::Relay(_), None) => {
                return Err(Outcome::NoRoute("there is no TCP here".to_owned()));
            }
        };
        match self.greeter.identify(&connection) {
            Ok(peer) if peer.node == node => Ok(connection),
            Ok(_) => {
                connection.close(CLOSE_REFUSED.into(), b"another node was meant");
                Err(match way {
                    Way::Relay(_) => Outcome::LedElsewhere,
                    Way::Udp(_) | Way::Tcp(_) | Way::Tls(_) => Outcome::WrongIdentity,
                })
            }
            // It was believed in the handshake: statements have come since.
            Err(error) => {
                connection.close(CLOSE_REFUSED.into(), b"refused");
                tracing::debug!(peer = %node, %error, "certificate refused");
                Err(Outcome::Untrusted)
            }
        }
    }

    async fn shake_hands_by_udp(&self, address: SocketAddr) -> Result<quinn::Connection, Outcome> {
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), address, SERVER_NAME)
            .map_err(|error| Outcome::NoRoute(error.to_string()))?;
        timeout(HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| Outcome::NoAnswer(HANDSHAKE_TIMEOUT))?
            .map_err(|error| Outcome::of(&error, HANDSHAKE_TIMEOUT))
    }
}

/// A name is needed in the handshake and means nothing: the node id is what is verified.
const SERVER_NAME: &str = "gossamer.invalid";

/// Joiners in progress, for the issuer task.
pub(super) type Joiners = mpsc::Sender<Connection>;

/// Hands a joiner to the issuer, or closes when it is busy or this node is none.
pub(super) fn hand_to_issuer(joiners: Option<&Joiners>, connection: Connection, metrics: &Arc<Metrics>) {
    let given = match joiners {
        Some(joiners) => joiners.try_send(connection).map_err(|error| error.into_inner()),
        None => Err(connection),
    };
    if let Err(connection) = given {
        metrics.handshake_refused("joiners");
        connection.close(CLOSE_REFUSED.into(), b"busy");
    }
}
