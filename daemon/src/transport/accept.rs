//! Inbound and outbound handshakes, each in a short task with a deadline.
//!
//! Owns: nothing for long. Must not know: which connections are kept. Driven by: `owner`.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::HandshakeData;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, Incoming};
use tokio::sync::mpsc;
use tokio::time::timeout;

use gossamer_wire::frame::Purpose;
use gossamer_wire::limits::HANDSHAKE_TIMEOUT;
use gossamer_wire::{NodeId, join};

use super::hello::{Greeted, Greeter, HelloError};
use super::link::{CLOSE_LOOKED, CLOSE_REFUSED};
use super::member_alpn;
use super::race::Race;
use super::tried::Outcome;
use crate::metrics::Metrics;

/// What became of a handshake that came in.
pub(super) enum Accepted {
    /// A member's connection, greeted.
    Member(Greeted),
    /// A joiner's, for the issuer.
    Joiner(Connection),
    /// A member's, which wanted to know whether this node answers, no more.
    Looked,
    /// A connection came about and was refused, which is counted.
    Refused,
    /// No connection came about, which is counted.
    Unfinished,
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
            metrics.handshake_refused("timeout");
            return Accepted::Unfinished;
        }
    };
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    if protocol.as_deref() == Some(join::ALPN) {
        return Accepted::Joiner(connection);
    }
    if protocol.as_deref() != Some(member_alpn()) {
        connection.close(CLOSE_REFUSED.into(), b"protocol");
        metrics.handshake_refused("protocol");
        return Accepted::Refused;
    }
    match timeout(HANDSHAKE_TIMEOUT, greeter.answer(connection.clone())).await {
        Ok(Ok(greeted)) => Accepted::Member(greeted),
        Ok(Err(HelloError::Connection(error))) if has_only_looked(&error) => Accepted::Looked,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "connection refused");
            metrics.handshake_refused(reason(&error));
            connection.close(CLOSE_REFUSED.into(), b"refused");
            Accepted::Refused
        }
        Err(_) => {
            metrics.handshake_refused("timeout");
            connection.close(CLOSE_REFUSED.into(), b"no hello");
            Accepted::Refused
        }
    }
}

/// Nothing is read before the certificate is verified: who says so is a member.
fn has_only_looked(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_LOOKED.into())
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

/// How to dial.
#[derive(Clone, Debug)]
pub(super) struct Dialler {
    pub(super) endpoint: Endpoint,
    pub(super) config: ClientConfig,
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
}

impl Dialler {
    /// Races the addresses, and greets on the first connection that turns out to be the wanted node; an address may
    /// belong to another machine here, for example where networks share their ranges. Only one connection is ever
    /// greeted on: the other side keeps the last one it hears from.
    pub(super) async fn dial(self, node: NodeId, addresses: Vec<SocketAddr>, purpose: Purpose) -> Dialled {
        let mut dialled = Dialled::default();
        let mut race = Race::new(addresses, |address| {
            let dialler = &self;
            async move { (address, dialler.shake_hands(node, address).await) }
        });
        let connection = loop {
            match race.next().await {
                Some((_, Ok(connection))) => break connection,
                Some((address, Err(outcome))) => {
                    tracing::debug!(peer = %node, %address, %outcome, "dial failed");
                    self.metrics.dial_attempt_failed(outcome.word());
                    dialled.others.extend(Some(address).filter(|_| outcome == Outcome::WrongIdentity));
                }
                None => return dialled,
            }
        };
        // What is still under way need not go on.
        drop(race);
        let greeting = self.greeter.greet(connection.clone(), purpose);
        match timeout(HANDSHAKE_TIMEOUT, greeting).await {
            Ok(Ok(greeted)) => dialled.greeted = Some(greeted),
            Ok(Err(error)) => {
                tracing::debug!(peer = %node, %error, "greeting failed");
                connection.close(CLOSE_REFUSED.into(), b"refused");
            }
            Err(_) => connection.close(CLOSE_REFUSED.into(), b"no hello"),
        }
        dialled
    }

    /// Completes a handshake with one address and checks that the wanted node is there.
    pub(super) async fn shake_hands(&self, node: NodeId, address: SocketAddr) -> Result<Connection, Outcome> {
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), address, SERVER_NAME)
            .map_err(|error| Outcome::NoRoute(error.to_string()))?;
        let connection = timeout(HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| Outcome::NoAnswer(HANDSHAKE_TIMEOUT))?
            .map_err(|error| Outcome::of(&error, HANDSHAKE_TIMEOUT))?;
        match self.greeter.identify(&connection) {
            Ok(peer) if peer.node == node => Ok(connection),
            Ok(_) => {
                connection.close(CLOSE_REFUSED.into(), b"another node was meant");
                Err(Outcome::WrongIdentity)
            }
            // It was believed in the handshake: statements have come since.
            Err(error) => {
                connection.close(CLOSE_REFUSED.into(), b"refused");
                tracing::debug!(peer = %node, %error, "certificate refused");
                Err(Outcome::Untrusted)
            }
        }
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
