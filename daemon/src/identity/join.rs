//! `join`: becomes a member with a token.
//!
//! Owns: the joiner's side of the exchange. Must not know: membership.
//! Driven by: `cli join`, `run` with `GOSSAMER_TOKEN`.
//!
//! The key is written before the token is shown to anybody, so that a cut connection can be repeated with the
//! same key and the token is not lost (ADR 6).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, Endpoint};
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use gossamer_core::dial::UDP_ALONE;
use gossamer_core::reach::{Deny, in_turns};
use gossamer_core::statements::Statements;
use gossamer_core::trust::{RootFacts, Sign as _, TrustBundle, read_root, spki_hash};
use gossamer_wire::join::{Admitted, Ask, JoinReply, JoinRequest as Request, Refusal};
use gossamer_wire::limits::MAX_JOIN_BYTES;
use gossamer_wire::token::{Grant, Token};
use gossamer_wire::{MeshId, NodeId, NodeName, RegionName, ZoneName};

use super::credentials::trust_of;
use super::{About, Files, Identity, NODE_KEY, NodeKey, Seed, load, save};
use crate::clock;
use crate::store::{Store, StoreError};
use crate::transport::{
    Connection, Lane, LaneDriver, NameRules, Opener, Outcome, Race, Tried, Way, dial_by_name, dial_lane,
    dial_only, joiner, nobody, plain, server_name, tls,
};

/// Longest wait for a handshake with one address, and for the answer of an issuer.
const ADDRESS_WITHIN: Duration = Duration::from_secs(5);
/// The same of a lane, which begins later: both ways end together.
const LANE_WITHIN: Duration = Duration::from_secs(3);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Holds the id of the token that was shown to an issuer, until this machine has joined.
const SHOWN: &str = "token-shown";

/// What the joiner is called.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// Its name.
    pub node: NodeName,
    /// Its small failure domain.
    pub zone: Option<ZoneName>,
    /// Its large failure domain.
    pub region: Option<RegionName>,
}

/// Whom this machine has shown a token. While that is nobody, it is as good as new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nobody.
    Never,
    /// An issuer of the mesh, by an earlier try from this state directory.
    Before,
    /// An issuer of the mesh, by this try, which then heard no answer.
    Now,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "the token was shown to nobody and is unused",
            Self::Before => {
                "this try showed the token to nobody, but an earlier one did: if that used it, this machine joins with it when the same command reaches the issuer"
            }
            Self::Now => {
                "the token was shown and no answer came: if it was used, then for this machine, which joins with it when the same command is repeated"
            }
        })
    }
}

fn list(tried: &[Tried]) -> String {
    match tried {
        [] => "the token names no address".to_owned(),
        tried => tried.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// Why this machine did not join. Nothing but an unused key was written.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The directory belongs to a node of another mesh.
    #[error(
        "{0} already holds a node of another mesh; leave it with `gossamer leave` and remove the directory, or choose another --state-dir"
    )]
    OtherMesh(String),
    /// Past its time by this machine's clock.
    #[error("the token expired {0} s ago; make a new one with `gossamer token create`")]
    Expired(u64),
    /// The issuer said no.
    #[error("{}", refusal_text(*.0))]
    Refused(Refusal),
    /// No address of the token answered as the issuer it names.
    #[error(
        "no issuer of the mesh was reached: {}; {shown}; check that the issuer runs and that the UDP port is open to it, or the TCP port of the same number, or make a token with `gossamer token create --address IP:PORT` or `--address tls://HOST:PORT`",
        list(tried)
    )]
    Unreachable {
        /// Every address of the token, and why it failed.
        tried: Vec<Tried>,
        /// Who may know the token.
        shown: Shown,
    },
    /// The certificate that came back does not hold: the issuer's fault.
    #[error("the issuer sent a certificate that does not hold: {0}")]
    BadReply(String),
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl JoinError {
    /// Returns whether the token or its holder was turned away, as opposed to a fault on the way.
    pub const fn is_denied(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Expired(_))
    }
}

pub(super) const fn refusal_text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Foreign => "the token belongs to another mesh or was changed; get a new one from an issuer",
        Refusal::Expired => "the token has expired; make a new one with `gossamer token create`",
        Refusal::Used => {
            "the token has been used by another node; make a new one with `gossamer token create`"
        }
        Refusal::OtherIssuer => {
            "the token of one use was made by another issuer; use an address of the node that made it"
        }
        Refusal::Name => "the token does not allow this node name; choose one it allows with --node",
        Refusal::NameTaken => "another live node of the group has this name; choose another with --node",
        Refusal::Proof => "the proof of this node's key did not hold; try again",
        Refusal::Revoked => "the token was revoked; make a new one with `gossamer token create`",
        Refusal::Unavailable => "the issuer could not record the join (is its disk full?); try again",
        Refusal::NoIssuer => "that node admits nobody; get a token from an issuer (`gossamer issuer list`)",
        Refusal::Scope => "the issuer may not admit to this group; get a token from another issuer",
        Refusal::Evicted => {
            "this node was evicted, for ever; remove its state directory and join again with a new token"
        }
        Refusal::Certificate => {
            "the issuer does not believe this node's certificate; remove its state directory and join again"
        }
    }
}

/// Joins the mesh of the token, or returns the identity that is there already when it is of the same mesh.
///
/// # Errors
/// See [`JoinError`]. May be repeated: the same state directory redeems the same token again.
pub async fn join(store: &Store, token: &Token, request: &JoinRequest) -> Result<Identity, JoinError> {
    let grant = token.grant();
    if let Some(identity) = load(store)? {
        return match identity.mesh == grant.mesh {
            true => Ok(identity),
            false => Err(JoinError::OtherMesh(store.dir().display().to_string())),
        };
    }
    let wall = clock::wall();
    // A little grace: the issuer's clock decides.
    if wall > grant.not_after + 300 {
        return Err(JoinError::Expired(wall - grant.not_after));
    }
    let key = unused_key(store)?;
    let mut shown = if was_shown(store, grant)? { Shown::Before } else { Shown::Never };
    let (addresses, denied) = Deny::default().part(grant.addresses.clone());
    let denial = |(address, why)| Tried { way: Way::Udp(address), outcome: Outcome::Denied(why) };
    let mut tried: Vec<_> = denied.into_iter().map(denial).collect();
    let addresses = in_turns(addresses);
    let named = grant.lanes.iter().cloned().map(Way::Tls);
    let lanes: Vec<_> = addresses.iter().copied().map(Way::Tcp).chain(named).collect();
    let attempt = |way: Way| async move {
        let reached = reach(grant.mesh, grant.root_pin, grant.bound_to(), &way).await;
        (way, reached)
    };
    let mut race = Race::new(addresses.into_iter().map(Way::Udp), attempt).beside(lanes, UDP_ALONE);
    while let Some((way, reached)) = race.next().await {
        let outcome = match reached {
            Ok(issuer) => {
                // Before it leaves: whoever is asked later whether it is unused must not be told so by mistake.
                store.write(SHOWN, grant.id.to_string().as_bytes())?;
                shown = Shown::Now;
                match timeout(ANSWER_WITHIN, ask(issuer, token, &key, request)).await {
                    Ok(Ok(JoinReply::Admitted(admitted))) => {
                        let answered = Answered { way: &way, tried: &tried };
                        return accept(store, grant, &key, *admitted, request, &answered);
                    }
                    Ok(Ok(JoinReply::Refused(refusal))) => return Err(JoinError::Refused(refusal)),
                    Ok(Err(outcome)) => outcome,
                    Err(_) => Outcome::NoAnswer(ANSWER_WITHIN),
                }
            }
            Err(outcome) => outcome,
        };
        tracing::debug!(%way, %outcome, "no issuer");
        tried.push(Tried { way, outcome });
    }
    Err(JoinError::Unreachable { tried, shown })
}

/// Returns whether an earlier try from this state directory has shown this token to an issuer.
fn was_shown(store: &Store, grant: &Grant) -> Result<bool, StoreError> {
    Ok(store.read(SHOWN)?.is_some_and(|id| id[..] == *grant.id.to_string().as_bytes()))
}

/// Returns the key of an earlier, cut attempt, or a new one that is on disk.
fn unused_key(store: &Store) -> Result<NodeKey, JoinError> {
    if let Some(key) = store.read(NODE_KEY)?.as_deref().and_then(NodeKey::read) {
        return Ok(key);
    }
    let key = NodeKey::generate()
        .ok_or_else(|| JoinError::BadReply("the system has no randomness for a key".to_owned()))?;
    store.write(NODE_KEY, key.pkcs8())?;
    Ok(key)
}

async fn ask(
    issuer: Reached,
    token: &Token,
    key: &NodeKey,
    request: &JoinRequest,
) -> Result<JoinReply, Outcome> {
    let id = token.grant().id;
    issuer
        .say(|binding| {
            let proof = key.sign(&super::issuer::proof_bytes(id, binding)).to_vec();
            Ask::Join(Request {
                token: token.reveal().to_owned(),
                public_key: key.public(),
                proof,
                name: request.node.clone(),
            })
        })
        .await
}

/// An issuer that has proved who it is, and was told nothing yet.
#[derive(Debug)]
pub(super) struct Reached {
    connection: Connection,
    carrier: Carrier,
}

/// What moves its bytes.
#[derive(Debug)]
enum Carrier {
    Quic(Endpoint),
    Lane(Box<LaneDriver>),
}

/// Connects to the issuer by a way, this one or any of the mesh.
pub(super) async fn reach(
    mesh: MeshId,
    pin: [u8; 32],
    issuer: Option<NodeId>,
    way: &Way,
) -> Result<Reached, Outcome> {
    let broken = |error: &dyn fmt::Display| Outcome::Broken(error.to_string());
    let tls = tls::joiner(mesh, pin, issuer).map_err(|error| broken(&error))?;
    let (name, opener) = (server_name(issuer, mesh), Opener::Dialler);
    let address = match way {
        Way::Udp(address) => *address,
        Way::Tcp(address) => {
            return dial_lane(*address, &name, Arc::new(tls), opener, LANE_WITHIN).await.map(Reached::by);
        }
        Way::Tls(address) => {
            let (rules, tls) = (NameRules::of_joiner(), Arc::new(tls));
            return dial_by_name(address, &rules, &name, tls, opener, LANE_WITHIN).await.map(Reached::by);
        }
        // Relays lead members to each other.
        Way::Relay(_) => return Err(Outcome::NoRoute("who joins cannot use relays".to_owned())),
    };
    let config = joiner(tls).map_err(|error| broken(&error))?;
    let endpoint = dial_only(address).map_err(|error| Outcome::NoRoute(error.to_string()))?;
    let connecting = endpoint
        .connect_with(config, address, "gossamer.invalid")
        .map_err(|error| Outcome::NoRoute(error.to_string()))?;
    let connection = tokio::select! {
        biased;
        connected = timeout(ADDRESS_WITHIN, connecting) => match connected {
            Ok(connected) => connected.map_err(|error| Outcome::of(&error, ADDRESS_WITHIN))?,
            Err(_) => return Err(Outcome::NoAnswer(ADDRESS_WITHIN)),
        },
        nobody = nobody(address) => return Err(nobody),
    };
    Ok(Reached { connection: connection.into(), carrier: Carrier::Quic(endpoint) })
}

impl Reached {
    fn by((lane, driver): (Lane, LaneDriver)) -> Self {
        Self { connection: Connection::Lane(lane), carrier: Carrier::Lane(Box::new(driver)) }
    }

    /// Asks, and reads the answer. `ask` gets the binding of the TLS session.
    pub(super) async fn say(self, ask: impl FnOnce(&[u8; 32]) -> Ask) -> Result<JoinReply, Outcome> {
        let Self { connection, carrier } = self;
        let binding = connection
            .binding()
            .ok_or_else(|| Outcome::Broken("the TLS session has no binding".to_owned()))?;
        let ask = ask(&binding);
        let exchange = async {
            let reply = converse(&connection, &ask).await;
            let reply = reply.map_err(|error| said_at_close(&connection, &error));
            connection.close(0_u32.into(), b"thanks");
            reply
        };
        let reply = match carrier {
            Carrier::Quic(endpoint) => {
                let reply = exchange.await?;
                endpoint.wait_idle().await;
                reply
            }
            // It ends with its connection.
            Carrier::Lane(driver) => tokio::join!(exchange, driver.run(CancellationToken::new())).0?,
        };
        JoinReply::decode(&reply).map_err(|error| Outcome::Broken(error.to_string()))
    }
}

async fn converse(connection: &Connection, ask: &Ask) -> io::Result<Vec<u8>> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(io::Error::other)?;
    send.write_all(&ask.encode().map_err(io::Error::other)?).await?;
    send.finish().map_err(io::Error::other)?;
    recv.read_to_end(MAX_JOIN_BYTES).await.map_err(io::Error::other)
}

/// Prefers the words with which the issuer closed the connection to what that did to a stream.
fn said_at_close(connection: &Connection, error: &io::Error) -> Outcome {
    match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(close)) if !close.reason.is_empty() => {
            Outcome::Said(plain(&close.reason))
        }
        _ => Outcome::Broken(error.to_string()),
    }
}

/// Who answered a joiner, and where.
#[derive(Clone, Copy, Debug)]
struct Answered<'a> {
    /// The way on which the issuer did.
    way: &'a Way,
    /// Where it was not reached.
    tried: &'a [Tried],
}

impl Answered<'_> {
    /// Whether somebody else is at that address: a relay, which leads to the issuer over TCP.
    fn is_of_another(&self, address: SocketAddr) -> bool {
        let is_answer = |outcome: &Outcome| {
            matches!(outcome, Outcome::Said(_) | Outcome::WrongIdentity | Outcome::Untrusted)
        };
        self.tried.iter().any(|tried| tried.way == Way::Udp(address) && is_answer(&tried.outcome))
    }

    /// Whether it took a lane for want of UDP.
    fn is_by_lane(&self) -> bool {
        match *self.way {
            Way::Tcp(address) => !self.is_of_another(address),
            Way::Tls(_) => true,
            Way::Udp(_) | Way::Relay(_) => false,
        }
    }
}

/// Checks what came back before anything of it is kept.
fn accept(
    store: &Store,
    grant: &Grant,
    key: &NodeKey,
    admitted: Admitted,
    request: &JoinRequest,
    answered: &Answered<'_>,
) -> Result<Identity, JoinError> {
    let bad = |why: &dyn fmt::Display| JoinError::BadReply(why.to_string());
    let roots: Vec<_> = admitted
        .roots
        .iter()
        .map(|der| read_root(der))
        .collect::<Result<_, _>>()
        .map_err(|error| bad(&error))?;
    // The mesh id is the hash of its first root, and stands in the token.
    if !matches!(&roots[..], [first] if first.id.as_bytes() == grant.mesh.as_bytes()) {
        return Err(bad(&"the root that the mesh began with is another one"));
    }
    let mut statements = Statements::new(grant.mesh, &admitted.roots).map_err(|error| bad(&error))?;
    if let Some(fault) = statements.take(&admitted.statements).refused.first() {
        return Err(bad(fault));
    }
    let is_pinned = |root: &RootFacts| spki_hash(&root.certificate).is_ok_and(|hash| hash == grant.root_pin);
    if !statements.standing().roots.iter().any(is_pinned) {
        return Err(bad(&"the pinned root is not among the roots"));
    }
    let first = TrustBundle::new(grant.mesh, admitted.roots.clone(), admitted.issuers.clone())
        .map_err(|error| bad(&error))?;
    let trust = trust_of(&first, &admitted.issuers, &statements);
    let leaf = trust.verify(&admitted.leaf, &[], clock::wall()).map_err(|error| bad(&error))?;
    if leaf.public_key != key.public() || leaf.group != grant.group {
        return Err(bad(&"it names another key or group"));
    }
    let mut seeds: Vec<_> = admitted.peers.iter().map(Seed::from).collect();
    // The first is who admits; the addresses of the token have just been shown to be good for an issuer, but for relays.
    if let Some(issuer) = seeds.first_mut() {
        let new = grant.addresses.iter().filter(|address| !issuer.addresses.contains(address));
        let new = new.filter(|address| !answered.is_of_another(**address));
        issuer.addresses.extend(new.copied().collect::<Vec<_>>());
        let new = grant.lanes.iter().filter(|lane| !issuer.lanes.contains(lane));
        issuer.lanes.extend(new.cloned().collect::<Vec<_>>());
    }
    save(
        store,
        &Files {
            about: About {
                version: 1,
                mesh: grant.mesh.to_string(),
                mesh_name: admitted.mesh_name,
                zone: request.zone.clone(),
                region: request.region.clone(),
                seeds,
                by_lane: answered.is_by_lane(),
            },
            key,
            leaf: &admitted.leaf,
            roots: &admitted.roots,
            issuers: &admitted.issuers,
            statements: &admitted.statements,
        },
    )?;
    store.remove(SHOWN)?;
    load(store)?.ok_or_else(|| bad(&"it did not reach the disk"))
}
