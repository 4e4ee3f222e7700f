//! Authority: the statements this node knows, its certificate and the issuer's key it may have.
//!
//! Owns: the set of statements, the credentials, the trust bundle, and their files; one task writes them. Must not know:
//! how connections are made, what is served. Driven by: statements of peers, the local API, time (renewal).
//!
//! Data in: frames and orders. Data out: a trust bundle and credentials that handshakes look at, the evicted nodes for
//! the catalog, new statements for the peers. What a set of statements means is `core::statements`'. Start reading at
//! [`start`], then `task`; `orders` signs new statements, `rotation` those about roots, `renewal` keeps the own
//! certificate alive.

mod orders;
mod renewal;
mod rotation;
mod task;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use gossamer_core::statements::{Member, Statements};
use gossamer_wire::frame::Frame;
use gossamer_wire::limits::{MAX_KEPT, MAX_ROOTS};
use gossamer_wire::{GroupName, NodeId, TokenId};

use crate::catalog;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::events::EventLog;
use crate::identity::root_keys::RootKeyError;
use crate::identity::{Identity, Lifetimes, Live};
use crate::index::IndexReader;
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};
use crate::supervise::Stage;
use crate::transport::{Peers, ToMembership, Trust};

/// Commands waiting: a frame of each of many peers that reconnect at once; when full, their links are not read.
const COMMANDS: usize = 64;

/// How long a node that is to be an issuer has for showing its key.
const KEY_WITHIN: Duration = Duration::from_secs(5);

/// The statements that are known, as peers exchange them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Digest of the set.
    pub digest: [u8; 16],
    /// Each statement, byte for byte, by id.
    pub statements: Vec<Vec<u8>>,
    /// Nodes that are out for ever.
    pub evicted: Arc<BTreeSet<NodeId>>,
}

impl Known {
    fn of(statements: &Statements) -> Self {
        Self {
            digest: statements.digest(),
            statements: statements.all().map(|statement| statement.bytes().to_vec()).collect(),
            evicted: Arc::clone(&statements.standing().evicted),
        }
    }
}

/// An issuer, for the listing.
#[derive(Clone, Debug)]
pub struct IssuerInfo {
    /// Hash of its key.
    pub id: NodeId,
    /// The node that holds the key.
    pub node: Option<NodeId>,
    /// That node's name.
    pub name: String,
    /// Groups it may admit to; none means all.
    pub groups: Vec<GroupName>,
    /// Seconds since the Unix epoch of its certificate's end.
    pub not_after: u64,
    /// Statements it has made.
    pub used: u64,
    /// Statements it may make.
    pub budget: u64,
    /// Two of its statements have one number: it may make no more.
    pub conflicted: bool,
}

/// A root, for the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootInfo {
    /// Hash of its key.
    pub id: NodeId,
    /// Another one retired it.
    pub retired: bool,
    /// Its key lies on this machine.
    pub here: bool,
    /// Seconds since the Unix epoch of its certificate's end.
    pub not_after: u64,
}

/// Why an order was not carried out. Nothing has changed.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The operator's fault: wrong machine.
    #[error("this needs the root key, which is not in {0}; run the command on the machine that has it")]
    NoRoot(String),
    /// The operator's fault: wrong machine.
    #[error("this node is no issuer; run the command on one: {0}")]
    NoIssuer(String),
    /// The operator's fault.
    #[error("this is the node itself; to go, run: gossamer leave")]
    Itself,
    /// The operator's fault: an issuer's node could admit itself again.
    #[error("{0} holds an issuer's key; first run, where the root key is: gossamer issuer remove {0}")]
    HoldsIssuer(String),
    /// The operator's fault: nobody would believe its certificates of other groups.
    #[error(
        "{name} is of group {group}, so its issuer must be allowed to admit to that: add --group {group}"
    )]
    OwnGroup {
        /// The node.
        name: String,
        /// Its group.
        group: GroupName,
    },
    /// The operator's fault: certificates it made for other groups would count no more.
    #[error("{0} may admit to more groups now; to narrow them, remove the issuer and add it again")]
    Narrower(String),
    /// There is no such issuer.
    #[error("{0} is no issuer; gossamer issuer list shows them")]
    NotAnIssuer(String),
    /// The operator's fault: nobody could join any more.
    #[error("{0} is the last issuer; add another first: gossamer issuer add NODE")]
    LastIssuer(String),
    /// The operator's fault: more nodes than one statement can name.
    #[error(
        "the certificates of more than {MAX_KEPT} nodes would have to be kept; let them renew first, or use --stolen"
    )]
    TooMany,
    /// The node did not show a key.
    #[error("{0} did not answer within {within} s; it must be connected to this node and run this version", within = KEY_WITHIN.as_secs())]
    Silent(String),
    /// The author may say no more.
    #[error("{0}; where the root key is, run: gossamer issuer grant NODE N")]
    Spent(String),
    /// A bug, or no randomness.
    #[error("the certificate could not be made: {0}")]
    Certificate(String),
    /// There is no such root, or it was retired.
    #[error("{0} is no root of this mesh that counts; gossamer root list shows them")]
    NotARoot(String),
    /// The operator's fault: one rotation after the other.
    #[error(
        "the root {0} was added here before; first retire the one it replaces: gossamer root retire ROOT"
    )]
    Rotating(NodeId),
    /// The operator's fault.
    #[error("the mesh has had {MAX_ROOTS} roots, which is all it may have; make a new mesh")]
    TooManyRoots,
    /// The operator's fault: a mesh without a root.
    #[error("{0} is the only root; first add another one: gossamer root add")]
    OnlyRoot(NodeId),
    /// The root said more than one statement can name.
    #[error("{0} has made more than {MAX_KEPT} statements, so it cannot be retired; make a new mesh")]
    TooManyStatements(NodeId),
    /// The operator's fault: only who came after a root may retire it.
    #[error("the root keys here cannot retire {0}: only a root that was added by it, or after it, can")]
    NotAfter(NodeId),
    /// Nodes would be cut off.
    #[error("without the root {root} these live nodes would be cut off: {list}; try again when they know, or use --force", list = list.join("; "))]
    Depended {
        /// The root.
        root: NodeId,
        /// Each node with the reason.
        list: Vec<String>,
    },
    /// The operator's fault.
    #[error(
        "the root key was never exported from here, and nothing can replace it; first run: gossamer root export FILE, or use --force"
    )]
    NotExported,
    /// A key did not leave or did not come.
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    /// The disk refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What others ask of the authority.
#[derive(Debug)]
pub(crate) enum Command {
    /// Statements of a peer; `done` is told when they are on disk and act.
    Learn {
        from: NodeId,
        statements: Vec<Vec<u8>>,
        done: Option<oneshot::Sender<()>>,
    },
    /// Another frame of a peer.
    Frame {
        from: NodeId,
        frame: Frame,
    },
    /// An order that makes a statement.
    Order(Order),
    ExportRoot {
        passphrase: Zeroizing<String>,
        reply: Reply<Zeroizing<String>>,
    },
    ImportRoot {
        pem: Zeroizing<String>,
        passphrase: Zeroizing<String>,
        reply: Reply<Vec<NodeId>>,
    },
    RemoveRoot {
        force: bool,
        reply: Reply<()>,
    },
    ListRoots(Reply<Vec<RootInfo>>),
    List(oneshot::Sender<Vec<IssuerInfo>>),
    /// The end of a renewal that was under way.
    Renewed(renewal::Outcome),
}

/// What an operator wants said: a new statement, or several.
#[derive(Debug)]
pub(crate) enum Order {
    Evict { node: NodeId, name: String, reply: Reply<()> },
    AddIssuer { node: NodeId, name: String, groups: Vec<GroupName>, reply: Reply<u64> },
    RemoveIssuer { node: NodeId, name: String, stolen: bool, reply: Reply<()> },
    Grant { node: NodeId, name: String, numbers: u64, reply: Reply<()> },
    RevokeToken { token: TokenId, reply: Reply<()> },
    AddRoot(Reply<NodeId>),
    RetireRoot { root: NodeId, members: Vec<Member>, force: bool, reply: Reply<()> },
}

type Reply<T> = oneshot::Sender<Result<T, AuthorityError>>;

/// The other parts' way to the authority. Clones are handles.
#[derive(Clone, Debug)]
pub struct AuthorityHandle {
    commands: mpsc::Sender<Command>,
    known: watch::Receiver<Arc<Known>>,
}

/// The other end of a handle, to start the task with: the transport needs the handle before the task can run.
#[derive(Debug)]
pub struct Queue {
    commands: mpsc::Receiver<Command>,
    own: mpsc::Sender<Command>,
    known: watch::Sender<Arc<Known>>,
}

impl AuthorityHandle {
    /// Makes a handle for a node, and what the task is started with.
    pub fn new(identity: &Identity) -> (Self, Queue) {
        let (known, reader) = watch::channel(Arc::new(Known::of(&identity.statements)));
        let (own, commands) = mpsc::channel(COMMANDS);
        (Self { commands: own.clone(), known: reader }, Queue { commands, own, known })
    }

    /// Returns the statements that act now.
    pub fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.borrow())
    }

    /// Takes statements of a peer; they are on disk and act when this returns.
    pub(crate) async fn learn(&self, from: NodeId, statements: Vec<Vec<u8>>) {
        let (done, acts) = oneshot::channel();
        let command = Command::Learn { from, statements, done: Some(done) };
        if self.commands.send(command).await.is_ok() {
            let _ = acts.await;
        }
    }

    /// Takes a frame of a peer; waits when the authority is behind, so that the peer's stream is not read.
    pub(crate) async fn frame(&self, from: NodeId, frame: Frame) {
        let command = match frame {
            Frame::Statements(statements) => Command::Learn { from, statements, done: None },
            frame => Command::Frame { from, frame },
        };
        let _ = self.commands.send(command).await;
    }

    /// Puts a node out for ever; on disk, and sent to all peers, when this returns.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn evict(&self, node: NodeId, name: String) -> Result<(), AuthorityError> {
        self.say(|reply| Order::Evict { node, name, reply }).await
    }

    /// Makes a node an issuer for these groups, all when there are none. Returns the end of its certificate, seconds
    /// since the Unix epoch.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn add_issuer(
        &self,
        node: NodeId,
        name: String,
        groups: Vec<GroupName>,
    ) -> Result<u64, AuthorityError> {
        self.say(|reply| Order::AddIssuer { node, name, groups, reply }).await
    }

    /// Takes a node's power to admit; of its certificates and statements only the present ones go on counting, and
    /// none when the key was stolen.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn remove_issuer(
        &self,
        node: NodeId,
        name: String,
        stolen: bool,
    ) -> Result<(), AuthorityError> {
        self.say(|reply| Order::RemoveIssuer { node, name, stolen, reply }).await
    }

    /// Lets a node's issuer make so many statements in all.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn grant(&self, node: NodeId, name: String, numbers: u64) -> Result<(), AuthorityError> {
        self.say(|reply| Order::Grant { node, name, numbers, reply }).await
    }

    /// Lets no issuer admit with a token any more.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn revoke_token(&self, token: TokenId) -> Result<(), AuthorityError> {
        self.say(|reply| Order::RevokeToken { token, reply }).await
    }

    /// Adds a root, whose key is made here, and lets it name all issuers as well. Returns its id.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn add_root(&self) -> Result<NodeId, AuthorityError> {
        self.say(Order::AddRoot).await
    }

    /// Retires a root, unless one of the members that live would be cut off, or `force`.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn retire_root(
        &self,
        root: NodeId,
        members: Vec<Member>,
        force: bool,
    ) -> Result<(), AuthorityError> {
        self.say(|reply| Order::RetireRoot { root, members, force, reply }).await
    }

    /// Returns the root keys of this machine under a passphrase, PEM.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn export_root(
        &self,
        passphrase: Zeroizing<String>,
    ) -> Result<Zeroizing<String>, AuthorityError> {
        self.order(|reply| Command::ExportRoot { passphrase, reply }).await
    }

    /// Puts exported root keys onto this machine. Returns the roots.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn import_root(
        &self,
        pem: Zeroizing<String>,
        passphrase: Zeroizing<String>,
    ) -> Result<Vec<NodeId>, AuthorityError> {
        self.order(|reply| Command::ImportRoot { pem, passphrase, reply }).await
    }

    /// Removes the root keys from this machine, unless they were never exported from it, or `force`.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub async fn remove_root(&self, force: bool) -> Result<(), AuthorityError> {
        self.order(|reply| Command::RemoveRoot { force, reply }).await
    }

    /// Lists the roots in the order in which they were added.
    ///
    /// # Errors
    /// The state directory cannot be read, or the daemon stops.
    pub async fn roots(&self) -> Result<Vec<RootInfo>, AuthorityError> {
        self.order(Command::ListRoots).await
    }

    /// Lists the issuers by name; none when the daemon stops.
    pub async fn issuers(&self) -> Vec<IssuerInfo> {
        let (reply, list) = oneshot::channel();
        if self.commands.send(Command::List(reply)).await.is_err() {
            return Vec::new();
        }
        list.await.unwrap_or_default()
    }

    async fn say<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, AuthorityError> {
        self.order(|reply| Command::Order(order(reply))).await
    }

    async fn order<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, AuthorityError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| AuthorityError::Stopping)?;
        answer.await.map_err(|_| AuthorityError::Stopping)?
    }
}

/// What the task needs.
#[derive(Debug)]
pub struct Parts {
    /// Who this node was at the start.
    pub identity: Arc<Identity>,
    /// The state directory.
    pub store: Store,
    /// Whom handshakes believe.
    pub trust: Trust,
    /// What this node shows.
    pub live: Live,
    /// How long certificates last that are made here.
    pub lifetimes: Lifetimes,
    /// Who must hear of new statements.
    pub peers: Peers,
    /// Who must know the evicted nodes.
    pub membership: mpsc::Sender<ToMembership>,
    /// Who must know them as well, and publish a new certificate.
    pub catalog: mpsc::Sender<catalog::Command>,
    /// Names and addresses of nodes.
    pub index: IndexReader,
    /// The clocks certificates are judged by.
    pub clock: Clock,
    /// Where jitter comes from.
    pub entropy: Entropy,
    /// The event log.
    pub events: EventLog,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Starts the task.
pub fn start(stage: &Stage, queue: Queue, parts: Parts) {
    let stop = stage.stopping().clone();
    let task = task::Task::new(stage.clone(), queue, parts);
    stage.spawn("authority", async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = task.run() => {}
        }
    });
}
