//! The issuer: mints tokens, admits joiners and renews certificates. The task runs on every node, for any may become an
//! issuer; where there is no issuer's key it refuses.
//!
//! Owns: the tokens file; one task reads and writes it. Must not know: membership, who is dialled.
//! Driven by: the local API (tokens) and the transport (joiners). The decision is `core::admission`'s.

mod addresses;
mod door;
mod reply;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use gossamer_core::admission::{Request, Use, Verdict};
use gossamer_core::reach::{Denied, Deny};
use gossamer_core::trust::{Leaf, signature_holds, spki_hash};
use gossamer_wire::join::{Admitted, JoinReply, JoinRequest, PeerHint, Refusal};
use gossamer_wire::limits::MAX_ADDRESSES;
use gossamer_wire::token::{Claims, Grant, Token};
use gossamer_wire::{Address, GroupName, LaneAddress, NodeId, NodeName, TokenId};

use super::certificate::LeafSubject;
use super::credentials::names;
use super::ledger::{MAX_TOKENS, Minted, Tokens};
use super::{Identity, IssuerKey, Lifetimes, Live};
use crate::authority::AuthorityHandle;
use crate::clock;
use crate::index::{IndexReader, NodeSummary};
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};
use crate::supervise::Stage;
use crate::transport::{Connection, Trust};

use addresses::address_warning;
pub(super) use door::proof_bytes;
use reply::statements_that_fit;

/// Commands waiting for the issuer; the CLI sends one at a time, joiners are bounded by [`MAX_JOINING`](gossamer_wire::limits::MAX_JOINING).
const COMMANDS: usize = 64;
/// Members named to a joiner: enough to meet one that lives, few enough for the reply's limit.
const HINTS: usize = 16;
/// What a token shall grant.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// How long it is good.
    pub ttl: Duration,
    /// How many nodes may join with it; 0 is no limit.
    pub uses: u32,
    /// Group of the joiners; the issuer's own when `None`.
    pub group: Option<GroupName>,
    /// Pattern of their names.
    pub node_pattern: Option<String>,
    /// What their certificates allow.
    pub claims: Claims,
    /// Where the issuer can be dialled; its advertised addresses when empty.
    pub addresses: Vec<Address>,
}

/// A minted token.
#[derive(Clone, Debug)]
pub struct CreatedToken {
    /// The token; the only time its text is to be had.
    pub token: Token,
    /// Those of its addresses at which a relay leads joiners to this issuer, which others cannot dial.
    pub relays: Vec<SocketAddr>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// A token in the listing: one that was minted here, or that a node joined with here.
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// Its id.
    pub id: TokenId,
    /// The group it admits to.
    pub group: GroupName,
    /// How many may join; 0 is no limit.
    pub uses: u32,
    /// Seconds since the Unix epoch of its end.
    pub not_after: u64,
    /// Who joined with it, here.
    pub used_by: Vec<Use>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Seconds it was made for.
    pub lifetime: u64,
    /// What certificates of those who join with it allow.
    pub claims: Claims,
}

/// Why there is no token, or none was revoked. Nothing has changed.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The operator's fault: it would be refused by every reader.
    #[error("the token would be too long: {0}; name fewer services, suffixes, labels or addresses")]
    TooLong(String),
    /// The operator's fault: more than the token format holds.
    #[error("a token holds at most {limit} {kind}, {given} were given")]
    Addresses {
        /// The kind of address.
        kind: &'static str,
        /// How many a token holds.
        limit: usize,
        /// How many were given.
        given: usize,
    },
    /// The operator's fault: no joiner would dial it.
    #[error("{0} cannot be in a token: {1}; give an address of an issuer that joiners can reach")]
    Denied(SocketAddr, Denied),
    /// The operator's fault: long multi-use tokens are only for short-lived nodes of a known kind.
    #[error("a token without a limit of uses needs --ephemeral, --group and --name")]
    Unlimited,
    /// The operator's fault: none of them has expired.
    #[error("this node remembers {MAX_TOKENS} tokens that are still good; wait until one has expired")]
    TooMany,
    /// The operator's fault: only an issuer can mint.
    #[error(
        "this node admits nobody; run the command on an issuer ({0}), or make this one: gossamer issuer add {1}"
    )]
    NoIssuer(String, NodeName),
    /// The operator's fault: the root did not allow it.
    #[error("this issuer may admit to {0} only; run the command on another issuer, see gossamer issuer list")]
    Scope(String),
    /// The operator's fault: a root was retired, and the others do not know this issuer.
    #[error("no root stands behind this issuer; where a root key is, run: gossamer issuer add NODE")]
    NoRoot,
    /// No such token was minted here.
    #[error("no token {0} was minted on this node; `gossamer token list` shows the ids")]
    Unknown(TokenId),
    /// The disk refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
}

/// The other parts' way to the issuer. Clones are handles.
#[derive(Clone, Debug)]
pub struct IssuerHandle(mpsc::Sender<Command>);

impl IssuerHandle {
    /// Mints a token; it is on disk when this returns.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn create_token(&self, request: TokenRequest) -> Result<CreatedToken, TokenError> {
        self.call(|reply| Command::Create { request, reply }).await?
    }

    /// Lists the tokens minted here, and those of other issuers that nodes have joined with here.
    ///
    /// # Errors
    /// The node never was an issuer, or the daemon stops.
    pub async fn list(&self) -> Result<Vec<TokenInfo>, TokenError> {
        self.call(Command::List).await?
    }

    /// Revokes a token at this issuer and returns it with who joined with it; they stay members.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn revoke(&self, id: TokenId) -> Result<TokenInfo, TokenError> {
        self.call(|reply| Command::Revoke { id, reply }).await?
    }

    /// Mints a token that grants what an earlier one of this issuer does, for as long again.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn renew(&self, id: TokenId) -> Result<CreatedToken, TokenError> {
        self.call(|reply| Command::RenewToken { id, reply }).await?
    }

    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, TokenError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).await.map_err(|_| TokenError::Stopping)?;
        answer.await.map_err(|_| TokenError::Stopping)
    }
}

enum Command {
    Create { request: TokenRequest, reply: oneshot::Sender<Result<CreatedToken, TokenError>> },
    List(oneshot::Sender<Result<Vec<TokenInfo>, TokenError>>),
    Revoke { id: TokenId, reply: oneshot::Sender<Result<TokenInfo, TokenError>> },
    RenewToken { id: TokenId, reply: oneshot::Sender<Result<CreatedToken, TokenError>> },
    Admit { request: Box<Checked>, reply: oneshot::Sender<JoinReply> },
    Renew { leaf: Box<Leaf>, reply: oneshot::Sender<JoinReply> },
}

/// A join request whose token parses and whose proof of the key holds.
struct Checked {
    token: Token,
    request: JoinRequest,
    node: NodeId,
}

/// What the issuer needs.
#[derive(Debug)]
pub struct Parts {
    /// The state directory, for the tokens file.
    pub store: Store,
    /// Who this node is.
    pub identity: Arc<Identity>,
    /// The key that admits, as it is now.
    pub live: Live,
    /// Who is believed.
    pub trust: Trust,
    /// The statements.
    pub authority: AuthorityHandle,
    /// How long certificates last.
    pub lifetimes: Lifetimes,
    /// Who is a member, for names in use and for hints.
    pub index: IndexReader,
    /// Where this node can be dialled.
    pub advertised: watch::Receiver<Vec<SocketAddr>>,
    /// Where only lanes reach it.
    pub lanes: Vec<LaneAddress>,
    /// Addresses that nobody shall be told to dial.
    pub deny: Deny,
    /// Connections of joiners.
    pub joiners: mpsc::Receiver<Connection>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Starts the issuer.
///
/// # Errors
/// The tokens file is damaged.
pub fn start(stage: &Stage, parts: Parts) -> Result<IssuerHandle, StoreError> {
    let Parts { store, identity, live, trust, authority, lifetimes, index, advertised, lanes, deny, .. } =
        parts;
    let (joiners, metrics) = (parts.joiners, parts.metrics);
    let tokens = Tokens::read(&store)?;
    let (commands, queue) = mpsc::channel(COMMANDS);
    let believed = Trust::clone(&trust);
    let desk =
        Desk { store, identity, live, trust, authority, lifetimes, index, advertised, lanes, deny, tokens };
    let stop = stage.stopping().clone();
    stage.spawn("issuer", async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = desk.run(queue) => {}
        }
    });
    stage.spawn("joiners", door::door(stage.clone(), joiners, commands.clone(), believed, metrics));
    Ok(IssuerHandle(commands))
}

/// The owner of the tokens.
struct Desk {
    store: Store,
    identity: Arc<Identity>,
    live: Live,
    trust: Trust,
    authority: AuthorityHandle,
    lifetimes: Lifetimes,
    index: IndexReader,
    advertised: watch::Receiver<Vec<SocketAddr>>,
    lanes: Vec<LaneAddress>,
    deny: Deny,
    tokens: Tokens,
}

impl Desk {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(command) = queue.recv().await {
            match command {
                Command::Create { request, reply } => drop(reply.send(self.create(request).await)),
                Command::List(reply) => drop(reply.send(self.list())),
                Command::RenewToken { id, reply } => drop(reply.send(self.renew_token(id).await)),
                Command::Revoke { id, reply } => drop(reply.send(self.revoke(id).await)),
                Command::Admit { request, reply } => drop(reply.send(self.admit(&request).await)),
                Command::Renew { leaf, reply } => drop(reply.send(self.renew(&leaf))),
            }
        }
    }

    /// Returns the issuer's key if it may admit to the group.
    fn issuer_for(&self, group: &GroupName) -> Result<Arc<IssuerKey>, Refusal> {
        let issuer = self.live.load().issuer.clone().ok_or(Refusal::NoIssuer)?;
        if issuer.may_admit_to(group) { Ok(issuer) } else { Err(Refusal::Scope) }
    }

    /// Refuses to mint what would be refused later.
    fn check_mint(&self, group: &GroupName) -> Result<Arc<IssuerKey>, TokenError> {
        let Some(issuer) = self.live.load().issuer.clone() else { return Err(self.no_issuer()) };
        if issuer.may_admit_to(group) {
            return Ok(issuer);
        }
        let groups: Vec<_> = issuer.groups().iter().map(ToString::to_string).collect();
        Err(TokenError::Scope(groups.join(", ")))
    }

    async fn create(&mut self, request: TokenRequest) -> Result<CreatedToken, TokenError> {
        let issuer = self.check_mint(request.group.as_ref().unwrap_or_else(|| self.identity.group()))?;
        let asked = self.check_addresses(request.addresses)?;
        let is_ephemeral = request.claims.ephemeral_seconds > 0;
        let bounded = is_ephemeral && request.group.is_some() && request.node_pattern.is_some();
        if request.uses == 0 && !bounded {
            return Err(TokenError::Unlimited);
        }
        let (addresses, lanes) = match asked {
            (ports, lanes) if ports.is_empty() && lanes.is_empty() => {
                (self.addresses_for(request.uses), self.lanes.clone())
            }
            asked => asked,
        };
        let relays = self.index.relay_addresses(self.identity.node());
        let relays = relays.into_iter().filter(|relay| addresses.contains(relay)).collect();
        // Where a lane address leads is known where it is resolved.
        let warnings = address_warning(&addresses).filter(|_| lanes.is_empty()).into_iter().collect();
        let root_pin = self.pin(&issuer)?;
        request.claims.encode().map_err(|error| TokenError::TooLong(error.to_string()))?;
        let grant = Grant {
            mesh: self.identity.mesh,
            root_pin,
            id: TokenId::from_bytes(rand::random()),
            issuer: issuer.id(),
            not_after: clock::wall() + request.ttl.as_secs(),
            uses: request.uses,
            group: request.group.unwrap_or_else(|| self.identity.group().clone()),
            node_pattern: request.node_pattern,
            claims: request.claims,
            addresses,
            lanes,
        };
        let token = Token::build(grant, |bytes| issuer.sign(bytes))
            .map_err(|error| TokenError::TooLong(error.to_string()))?;
        let mut tokens = self.tokens.clone();
        if !tokens.make_room(clock::wall()) {
            return Err(TokenError::TooMany);
        }
        tokens.minted.push(Minted::of(token.grant(), request.ttl.as_secs()));
        self.commit(tokens).await?;
        Ok(CreatedToken { token, relays, warnings })
    }

    /// Returns the hash of the root behind this issuer: the latest one when roots are rotated.
    fn pin(&self, issuer: &IssuerKey) -> Result<[u8; 32], TokenError> {
        let trust = self.trust.load();
        let pin = trust.root_of(issuer.id()).and_then(|root| spki_hash(root).ok());
        pin.ok_or(TokenError::NoRoot)
    }

    /// Whether the root that a token pins still counts: one that was retired may be in other hands.
    fn is_of_active_root(&self, grant: &Grant) -> bool {
        let trust = self.trust.load();
        trust.roots().iter().any(|root| spki_hash(root).is_ok_and(|hash| hash == grant.root_pin))
    }

    fn list(&self) -> Result<Vec<TokenInfo>, TokenError> {
        if self.tokens.minted.is_empty() && self.live.load().issuer.is_none() {
            return Err(self.no_issuer());
        }
        Ok(self.tokens.minted.iter().filter_map(|minted| self.info(minted)).collect())
    }

    fn info(&self, minted: &Minted) -> Option<TokenInfo> {
        let id = minted.id.parse().ok()?;
        Some(TokenInfo {
            id,
            group: minted.group.clone(),
            uses: minted.uses,
            not_after: minted.not_after,
            used_by: self.tokens.ledger.uses(id).to_vec(),
            revoked: minted.revoked || self.live.load().revoked.contains(&id),
            lifetime: minted.lifetime,
            claims: minted.claims.clone(),
        })
    }

    /// Mints another token with what an earlier one grants. The earlier one stays good until its end.
    async fn renew_token(&mut self, id: TokenId) -> Result<CreatedToken, TokenError> {
        let text = id.to_string();
        let minted = self.tokens.minted.iter().find(|minted| minted.id == text);
        let minted = minted.ok_or(TokenError::Unknown(id))?.clone();
        self.create(TokenRequest {
            ttl: Duration::from_secs(minted.lifetime),
            uses: minted.uses,
            group: Some(minted.group),
            node_pattern: minted.node_pattern,
            claims: minted.claims,
            addresses: minted.addresses,
        })
        .await
    }

    fn no_issuer(&self) -> TokenError {
        let names = match &names(&self.live.load().issuers)[..] {
            [] => "where `gossamer init` ran".to_owned(),
            names => names.join(", "),
        };
        TokenError::NoIssuer(names, self.identity.name().clone())
    }

    async fn revoke(&mut self, id: TokenId) -> Result<TokenInfo, TokenError> {
        let mut tokens = self.tokens.clone();
        let text = id.to_string();
        let minted = tokens.minted.iter_mut().find(|minted| minted.id == text);
        minted.ok_or(TokenError::Unknown(id))?.revoked = true;
        self.commit(tokens).await?;
        let minted = self.tokens.minted.iter().find(|minted| minted.id == text);
        minted.and_then(|minted| self.info(minted)).ok_or(TokenError::Unknown(id))
    }

    /// Judges a joiner; a use is on disk before the certificate leaves (ADR 6).
    async fn admit(&mut self, checked: &Checked) -> JoinReply {
        match self.try_admit(checked).await {
            Ok(admitted) => JoinReply::Admitted(Box::new(admitted)),
            Err(refusal) => {
                let token = checked.token.grant().id;
                tracing::info!(%token, node = %checked.node, ?refusal, "a node was not admitted");
                JoinReply::Refused(refusal)
            }
        }
    }

    async fn try_admit(&mut self, checked: &Checked) -> Result<Admitted, Refusal> {
        let Checked { token, request, node } = checked;
        let grant = token.grant();
        let issuer = self.issuer_for(&grant.group)?;
        let judged = Request {
            grant,
            is_signed: self.is_signed(token, &issuer),
            is_revoked: self.tokens.is_revoked(grant.id)
                || self.live.load().revoked.contains(&grant.id)
                || !self.is_of_active_root(grant),
            node: *node,
            name: &request.name,
            name_taken: self.name_taken(grant, *node, request),
        };
        if self.trust.load().is_evicted(*node) {
            return Err(Refusal::Evicted);
        }
        let wall = clock::wall();
        let verdict = self.tokens.ledger.judge(issuer.id(), self.identity.mesh, judged, wall)?;
        if verdict == Verdict::New {
            let mut tokens = self.tokens.clone();
            tokens.ledger.record(grant.id, Use { node: *node, name: request.name.clone(), at: wall });
            tokens.know(grant, wall);
            self.commit(tokens).await.map_err(|error| {
                tracing::error!(%error, "a join could not be recorded");
                Refusal::Unavailable
            })?;
        }
        let subject = LeafSubject {
            mesh: self.identity.mesh,
            group: &grant.group,
            name: &request.name,
            claims: &grant.claims,
        };
        let mut admitted = self.issue(&issuer, request.public_key, subject)?;
        admitted.statements = statements_that_fit(&self.authority.known().statements);
        tracing::info!(token = %grant.id, %node, name = %request.name, group = %grant.group, "a node was admitted");
        Ok(admitted)
    }

    /// Gives a member a new certificate that says what its old one says, whoever made that.
    fn renew(&self, leaf: &Leaf) -> JoinReply {
        let subject = LeafSubject {
            mesh: self.identity.mesh,
            group: &leaf.group,
            name: &leaf.name,
            claims: &leaf.claims,
        };
        let renewed = self.issuer_for(&leaf.group).and_then(|key| self.issue(&key, leaf.public_key, subject));
        match renewed {
            Ok(admitted) => {
                tracing::info!(node = %leaf.node, name = %leaf.name, "a certificate was renewed");
                JoinReply::Admitted(Box::new(admitted))
            }
            Err(refusal) => JoinReply::Refused(refusal),
        }
    }

    fn issue(
        &self,
        issuer: &IssuerKey,
        public_key: [u8; 32],
        subject: LeafSubject<'_>,
    ) -> Result<Admitted, Refusal> {
        let lifetime = self.lifetimes.leaf_for(self.live.load().issuers.len());
        let leaf = issuer.issue(public_key, subject, lifetime).map_err(|error| {
            tracing::error!(%error, "a certificate could not be made");
            Refusal::Unavailable
        })?;
        Ok(Admitted {
            leaf,
            issuers: vec![issuer.certificate().to_vec()],
            roots: self.identity.statements.first_roots().map(<[u8]>::to_vec).collect(),
            mesh_name: self.identity.mesh_name.clone(),
            group: subject.group.clone(),
            peers: self.hints(),
            // Who renews hears of them when it connects.
            statements: Vec::new(),
        })
    }

    /// Returns whether the issuer that a token names signed it and may admit to its group: this one, or another of the mesh.
    fn is_signed(&self, token: &Token, own: &IssuerKey) -> bool {
        let wanted = token.grant().issuer;
        let key = match wanted == own.id() {
            true => Some(own.public()),
            false => {
                let live = self.live.load();
                let named = live.issuers.iter().find(|issuer| issuer.id == wanted);
                named
                    .filter(|issuer| issuer.may_admit_to(&token.grant().group))
                    .map(|issuer| issuer.public_key)
            }
        };
        let (signed, signature) = token.signed();
        key.is_some_and(|key| signature_holds(&key, &signed, &signature))
    }

    fn name_taken(&self, grant: &Grant, node: NodeId, request: &JoinRequest) -> bool {
        let own = *self.identity.name() == request.name && *self.identity.group() == grant.group;
        let in_use = |other: &NodeSummary| {
            let is_of_group = other.view.as_ref().is_some_and(|view| view.group == grant.group);
            is_of_group && other.node != node && other.state.is_some_and(|state| state.is_up())
        };
        own || self.index.nodes_named(&request.name).iter().any(|other| in_use(other))
    }

    fn hints(&self) -> Vec<PeerHint> {
        let own = PeerHint {
            node: self.identity.node(),
            addresses: self.advertised.borrow().iter().copied().take(MAX_ADDRESSES).collect(),
            lanes: self.lanes.clone(),
        };
        let live = self.live.load();
        let is_issuer = |node: NodeId| live.issuers.iter().any(|issuer| issuer.node == Some(node));
        let mut nodes = self.index.nodes();
        let relays =
            self.index.node(own.node).and_then(|known| known.view.as_ref().map(|view| view.relays.clone()));
        let is_relay = |node: NodeId| relays.iter().flatten().any(|relay| *relay == node);
        // Who came through a relay needs it; whoever was away for long finds its way by the issuers.
        nodes.sort_by_key(|summary| (!is_relay(summary.node), !is_issuer(summary.node)));
        let others = nodes.iter().filter_map(|summary| {
            let view = summary.view.as_ref()?;
            let up = summary.state.is_some_and(|state| state.is_up());
            (up && summary.node != own.node && !view.addresses.is_empty()).then(|| PeerHint {
                node: summary.node,
                addresses: view.addresses.clone(),
                lanes: view.lanes.clone(),
            })
        });
        [own.clone()].into_iter().chain(others).take(HINTS).collect()
    }

    /// Writes first, then believes.
    async fn commit(&mut self, tokens: Tokens) -> Result<(), StoreError> {
        let (store, to_write) = (self.store.clone(), tokens.clone());
        Stage::blocking(move || to_write.write(&store)).await?;
        self.tokens = tokens;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
