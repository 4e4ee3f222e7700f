//! Statements: the signed, grow-only changes of authority a mesh agrees on.
//!
//! Owns: which statements are stored, which of them count, and what follows for issuers and evicted nodes. Must not
//! know: files, connections, how leaves are judged, time. Driven by: the daemon, with what it stored, what peers
//! gave and what its operator said.
//!
//! Whether a statement is stored and counts depends on the set only, never on the order of arrival:
//!
//! - Authors are the roots of the mesh and the issuers a root added. The signature must be the author's.
//! - A root may say anything. Its statements are trusted and have no budget; so only roots can make the set large.
//! - A root may add another one, which may retire it: of the statements of a retired root those still count that the
//!   retirement names, and the certificates it signed do not. See `roots`. This is the one exception: what a retired root
//!   signs for the first time is refused where the retirement is known, and may do harm where it is not.
//! - An issuer may only evict nodes and revoke tokens, and only with numbers below its budget: [`NUMBERS_PER_AUTHOR`], or the greatest a
//!   root granted. A stolen issuer key evicts so many nodes and no more.
//! - Two different statements with one number end the powers of their author from that number on: a key is in two
//!   hands, or came back from a copy. Neither counts. Both are stored as the proof, of more the two with the
//!   smallest ids, and nothing above them. An issuer without powers still issues leaves.
//! - A removed issuer is removed for ever. Of its statements those below the smallest number named by a removal
//!   still count, of its leaves those of the nodes every removal keeps.
//! - An issuer cannot evict the node that holds the key of another issuer: that is stored, and acts once the other
//!   issuer is removed. A root can.
//! - Of several certificates of one issuer the newest, by its last second and then its first, is the one.
//!
//! Sets that exchange all they have until their digests are equal are equal, and so is what follows from them. What
//! a set refused for want of a grant or of an issuer's certificate it takes when it is offered again.

use std::collections::{BTreeMap, BTreeSet};

use gossamer_wire::limits::{MAX_ROOTS, NUMBERS_PER_AUTHOR};
use gossamer_wire::statement::{Change, ShortId, SignedStatement, Statement, digest};
use gossamer_wire::{DecodeError, MeshId, NodeId};
use thiserror::Error;

use crate::trust::{
    RootFacts, TrustError, is_signed_by, node_id, public_key_of, read_issuer, read_root, signature_holds,
};

mod log;
mod retirement;
mod roots;
mod standing;

use log::{Id, Log};
pub use retirement::{Dependent, Member, Why};
use roots::Roots;
use standing::Authority;
pub use standing::{Issuer, Standing};

/// The set of statements one node knows.
#[derive(Clone, Debug)]
pub struct Statements {
    mesh: MeshId,
    /// The roots the mesh began with.
    first: Vec<RootFacts>,
    /// All that follow from them.
    roots: Roots,
    logs: BTreeMap<NodeId, Log>,
    /// What the counting statements of roots say.
    authority: Authority,
    standing: Standing,
    digest: [u8; 16],
}

/// Statements by id.
type Offered = BTreeMap<Id, SignedStatement>;

/// Statements that are the giver's own fault after which the rest of a batch is not looked at: no honest set has them, and
/// a wrong signature costs some 50 us.
pub const MAX_WRONG: usize = 64;
/// Refusals of any kind after which it is not looked at either: above what honest issuers beyond their budgets make.
const MAX_REFUSED: usize = 4_096;

/// What became of statements that were offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Stored by this call, byte for byte: to be persisted, then passed on.
    pub new: Vec<Vec<u8>>,
    /// Not stored, each with the reason. What was known before is in neither list.
    pub refused: Vec<Fault>,
    /// How many of them are the giver's own fault: they do not decode, are of another mesh or author, or not signed.
    pub wrong: usize,
    /// Whether the digest or what follows from the set is another one.
    pub changed: bool,
}

impl Taken {
    fn refuse(&mut self, fault: Fault) {
        self.wrong += usize::from(matches!(
            fault,
            Fault::Malformed(_)
                | Fault::Mesh(_)
                | Fault::Author(_)
                | Fault::Signature { .. }
                | Fault::Power { .. }
        ));
        self.refused.push(fault);
    }

    /// Whether the rest of the batch is not worth a look.
    const fn is_hopeless(&self) -> bool {
        self.wrong >= MAX_WRONG || self.refused.len() >= MAX_REFUSED
    }
}

/// Why a statement was not stored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// The giver's fault, or a statement of a later version.
    #[error("a statement does not decode: {0}")]
    Malformed(DecodeError),
    /// The giver's fault.
    #[error("a statement belongs to the mesh {0}")]
    Mesh(MeshId),
    /// Nobody's fault while the statement that adds the author is on its way; then it is taken when offered again.
    #[error("a statement is by {0}, which is no root and no issuer that is known here")]
    Author(NodeId),
    /// The giver's fault: somebody else's words.
    #[error("statement {number} of {author} is not signed with its key")]
    Signature {
        /// Whose it claims to be.
        author: NodeId,
        /// Its number.
        number: u64,
    },
    /// The author's fault.
    #[error("statement {number} of {author} is for roots only: an issuer may evict nodes and revoke tokens")]
    Power {
        /// The issuer.
        author: NodeId,
        /// The number of its statement.
        number: u64,
    },
    /// The author's fault, unless a grant is on its way; then it is taken when offered again.
    #[error("statement {number} of {author} is over its budget of {budget}: a root must grant it more")]
    Budget {
        /// The issuer.
        author: NodeId,
        /// The number of its statement.
        number: u64,
        /// Numbers below count.
        budget: u64,
    },
    /// The author's fault: it was an issuer until a root removed it.
    #[error("statement {number} of {author} does not count: a root removed the issuer")]
    Removed {
        /// The issuer.
        author: NodeId,
        /// The number of its statement.
        number: u64,
    },
    /// The author's fault: its key made two statements of one number.
    #[error(
        "statement {number} of {author} does not count: two different ones with one number ended its powers"
    )]
    Ended {
        /// The author.
        author: NodeId,
        /// The number of its statement.
        number: u64,
    },
    /// The author was retired.
    #[error("statement {number} is none of those that count of {author}, which another root retired")]
    Retired {
        /// The root.
        author: NodeId,
        /// The number of its statement.
        number: u64,
    },
    /// The root's fault.
    #[error("statement {number} of {author} adds nobody: {why}")]
    Certificate {
        /// The root.
        author: NodeId,
        /// The number of its statement.
        number: u64,
        /// What is wrong with the certificate in it.
        why: TrustError,
    },
}

/// Why an author has no next number. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NumberError {
    /// The caller's fault, or the statement that adds the issuer is not here yet.
    #[error("{0} is no root and no issuer that is known here")]
    Unknown(NodeId),
    /// The operator's fault: a root must grant more.
    #[error(
        "all {budget} statements of this issuer are used: a root must grant it more, or make the statement"
    )]
    Spent {
        /// Numbers below it are all it may use.
        budget: u64,
    },
    /// The operator's fault: the key is, or was, in two places.
    #[error(
        "{0} made two different statements with one number, which ended its powers: a root must make this one"
    )]
    Conflict(NodeId),
    /// A root removed the issuer.
    #[error("{0} is an issuer no more: a root removed it")]
    Removed(NodeId),
    /// Another root retired the root.
    #[error("{0} is a root no more: another one retired it")]
    Retired(NodeId),
}

impl Statements {
    /// Makes an empty set. `first` are the certificates (DER) of the roots the mesh began with.
    ///
    /// # Errors
    /// The state directory's fault: a root does not parse, or its key is not Ed25519.
    pub fn new(mesh: MeshId, first: &[Vec<u8>]) -> Result<Self, TrustError> {
        let read = |der: &Vec<u8>| {
            let public_key = public_key_of(der)?;
            Ok(RootFacts { id: node_id(&public_key), certificate: der.clone(), public_key })
        };
        let first = first.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let mut set = Self {
            mesh,
            roots: Roots::default(),
            first,
            logs: BTreeMap::new(),
            authority: Authority::default(),
            standing: Standing::default(),
            digest: digest(&BTreeSet::new()),
        };
        set.follow_roots();
        set.settle();
        Ok(set)
    }

    /// Takes statements in any order: those of roots are looked at first, so a root or an issuer may be added by the
    /// same batch that holds its statements. Those of a mesh that grew large belong in one call.
    pub fn take(&mut self, statements: &[Vec<u8>]) -> Taken {
        let mut taken = Taken::default();
        let mut offered = Offered::new();
        for bytes in statements {
            if taken.is_hopeless() {
                break;
            }
            match self.read(bytes) {
                Ok(signed) if self.stored(&signed).is_some() => {}
                Ok(signed) => drop(offered.insert(signed.id(), signed)),
                Err(fault) => taken.refuse(fault),
            }
        }
        let mut put = BTreeMap::new();
        // What is put may add the roots that made others of the batch, or undo a retirement that kept some of it out.
        for _ in 0..=MAX_ROOTS {
            let of_root = |signed: &SignedStatement| self.roots.contains(signed.statement().author);
            let of_roots = self.missing(&offered, of_root);
            let new = self.put_all(&of_roots, &mut Taken::default());
            if new.is_empty() {
                break;
            }
            put.extend(new);
            self.follow_roots();
        }
        let rest = self.missing(&offered, |_| true);
        put.extend(self.put_all(&rest, &mut taken));
        put.retain(|_, signed| self.stored(signed).is_some());
        taken.new = put.values().map(|signed| signed.bytes().to_vec()).collect();
        taken.changed = !put.is_empty() && self.settle();
        taken
    }

    /// Returns those of the statements that are not stored.
    fn missing(&self, offered: &Offered, wanted: impl Fn(&SignedStatement) -> bool) -> Offered {
        let missing = offered.iter().filter(|(_, signed)| wanted(signed) && self.stored(signed).is_none());
        missing.map(|(id, signed)| (*id, signed.clone())).collect()
    }

    /// Returns every stored statement, sorted by id.
    pub fn all(&self) -> impl Iterator<Item = &SignedStatement> {
        let by_id: BTreeMap<&Id, &SignedStatement> = self.logs.values().flat_map(Log::all).collect();
        by_id.into_values()
    }

    /// Returns how many statements are stored.
    pub fn len(&self) -> usize {
        self.logs.values().flat_map(Log::all).count()
    }

    /// Returns whether none is stored.
    pub fn is_empty(&self) -> bool {
        self.logs.values().all(Log::is_empty)
    }

    /// Returns the digest of what is stored. Equal sets, equal digests.
    pub const fn digest(&self) -> [u8; 16] {
        self.digest
    }

    /// Returns the certificates (DER) of the roots the mesh began with.
    pub fn first_roots(&self) -> impl Iterator<Item = &[u8]> {
        self.first.iter().map(|root| root.certificate.as_slice())
    }

    /// Returns what follows from the set.
    pub const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Returns the statements of an author that count: what a root that retires it keeps.
    pub fn counting(&self, author: NodeId) -> Vec<ShortId> {
        self.logs.get(&author).into_iter().flat_map(Log::counting).map(SignedStatement::short_id).collect()
    }

    /// Returns the number this author must use next, above every number of its own that is known.
    ///
    /// # Errors
    /// It has none: see [`NumberError`].
    pub fn next_number(&self, author: NodeId) -> Result<u64, NumberError> {
        let budget = match self.roots.contains(author) {
            true if !self.roots.is_active(author) => return Err(NumberError::Retired(author)),
            true => u64::MAX,
            false if self.authority.is_removed(author) => return Err(NumberError::Removed(author)),
            false => self.authority.budget(author).ok_or(NumberError::Unknown(author))?,
        };
        let Some(log) = self.logs.get(&author) else { return Ok(0) };
        if log.conflict().is_some() {
            return Err(NumberError::Conflict(author));
        }
        let next = log.used();
        if next < budget { Ok(next) } else { Err(NumberError::Spent { budget }) }
    }

    /// Makes every check that needs no other statement and no signature.
    fn read(&self, bytes: &[u8]) -> Result<SignedStatement, Fault> {
        let signed = SignedStatement::parse(bytes).map_err(Fault::Malformed)?;
        let Statement { mesh, author, number, change } = signed.statement();
        if *mesh != self.mesh {
            return Err(Fault::Mesh(*mesh));
        }
        let unread = match change {
            Change::AddRoot(certificate) => read_root(certificate).err(),
            Change::AddIssuer(certificate) => read_issuer(certificate).err(),
            Change::Evict(_)
            | Change::RemoveIssuer { .. }
            | Change::RetireRoot { .. }
            | Change::Grant { .. }
            | Change::RevokeToken(_) => None,
        };
        match unread {
            None => Ok(signed),
            Some(why) => Err(Fault::Certificate { author: *author, number: *number, why }),
        }
    }

    fn stored(&self, signed: &SignedStatement) -> Option<&SignedStatement> {
        self.logs.get(&signed.statement().author)?.find(signed)
    }

    /// Puts what passes every check into the logs and returns what is stored of it.
    fn put_all(&mut self, offered: &Offered, taken: &mut Taken) -> Offered {
        let mut put = Offered::new();
        for (id, signed) in offered {
            if taken.is_hopeless() {
                break;
            }
            match self.check(signed) {
                Ok(()) => {
                    let log = self.logs.entry(signed.statement().author).or_default();
                    log.put(*id, signed.clone());
                    put.insert(*id, signed.clone());
                }
                Err(fault) => taken.refuse(fault),
            }
        }
        let (stored, others): (Offered, Offered) =
            put.into_iter().partition(|(_, signed)| self.stored(signed).is_some());
        // Another one of the batch made them worthless.
        taken.refused.extend(others.values().map(|signed| ended(signed.statement())));
        stored
    }

    /// Checks a statement against what roots say and its author's others, the signature last: it costs the most.
    fn check(&self, signed: &SignedStatement) -> Result<(), Fault> {
        let statement = signed.statement();
        let (author, number) = (statement.author, statement.number);
        let public_key = match self.roots.public_key(author) {
            Some(_) if self.roots.keep(author).is_some_and(|keep| !keep.contains(&signed.short_id())) => {
                return Err(Fault::Retired { author, number });
            }
            Some(key) => key,
            None => self.check_issuer(statement)?,
        };
        if self.logs.get(&author).and_then(Log::conflict).is_some_and(|conflict| number > conflict) {
            return Err(ended(statement));
        }
        let (bytes, signature) = signed.signed();
        if !signature_holds(public_key, &bytes, &signature) {
            return Err(Fault::Signature { author, number });
        }
        match &statement.change {
            // The certificate ends with the root whose words it came by.
            Change::AddIssuer(certificate) if !is_signed_by(certificate, public_key) => {
                let why = TrustError::Chain("another key than the author's signed it".to_owned());
                Err(Fault::Certificate { author, number, why })
            }
            _ => Ok(()),
        }
    }

    /// Checks whether an issuer may make this statement, and returns its key.
    fn check_issuer(&self, statement: &Statement) -> Result<&[u8; 32], Fault> {
        let (author, number) = (statement.author, statement.number);
        let public_key = self.authority.public_key(author).ok_or(Fault::Author(author))?;
        if !matches!(statement.change, Change::Evict(_) | Change::RevokeToken(_)) {
            return Err(Fault::Power { author, number });
        }
        let budget = self.authority.budget(author).unwrap_or(NUMBERS_PER_AUTHOR);
        if number >= budget {
            return Err(Fault::Budget { author, number, budget });
        }
        if self.authority.limit(author).is_none_or(|limit| number >= limit) {
            return Err(Fault::Removed { author, number });
        }
        Ok(public_key)
    }

    /// Reads again what roots say, and drops of issuers what they may not say any more.
    fn follow_roots(&mut self) {
        self.roots = Roots::of(&self.first, &self.logs);
        let (roots, authority) = (&self.roots, &mut self.authority);
        self.logs.retain(|author, log| {
            if let Some(keep) = roots.keep(*author) {
                log.keep(keep);
            }
            !log.is_empty()
        });
        let of_roots = self.logs.iter().filter(|(author, _)| roots.contains(**author));
        *authority = Authority::of(of_roots.flat_map(|(_, log)| log.counting()));
        self.logs.retain(|author, log| {
            if !roots.contains(*author) {
                log.cut(authority.limit(*author).unwrap_or(0));
            }
            !log.is_empty()
        });
    }

    /// Works out what follows from the set. Returns whether that, or the set, is another one.
    fn settle(&mut self) -> bool {
        let ids: BTreeSet<Id> = self.logs.values().flat_map(Log::all).map(|(id, _)| *id).collect();
        let standing = Standing::of(&self.authority, &self.roots, &self.logs);
        let digest = digest(&ids);
        let changed = digest != self.digest || standing != self.standing;
        (self.digest, self.standing) = (digest, standing);
        changed
    }
}

fn ended(statement: &Statement) -> Fault {
    Fault::Ended { author: statement.author, number: statement.number }
}

#[cfg(test)]
mod tests;
