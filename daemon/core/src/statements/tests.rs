//! Rules of the set one by one; `order` shuffles them all together.

use gossamer_wire::limits::MAX_STATEMENT_BYTES;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use super::*;
use crate::trust::Sign as _;
use crate::trust::tests::{Authority as Certifier, Key, issuer_claims, issuer_params};

mod order;
mod roots;

/// A mesh with one root, and two issuers that a set does not know before it is told.
struct Mesh {
    certifier: Certifier,
    root: Key,
    issuers: [Key; 2],
}

impl Mesh {
    fn new() -> Self {
        let issuers = [Key::of(2), Key::of(3)];
        Self { certifier: Certifier::of(Key::of(1).pair), root: Key::of(1), issuers }
    }

    fn set(&self) -> Statements {
        Statements::new(self.certifier.mesh, std::slice::from_ref(&self.certifier.root)).expect("a root")
    }

    /// Returns a set that knows both issuers, by statements 0 and 1 of the root.
    fn started(&self) -> Statements {
        let mut set = self.set();
        assert_eq!(set.take(&[self.add(0, 0), self.add(1, 1)]).refused, []);
        set
    }

    fn signed(&self, key: &Key, number: u64, change: Change) -> Vec<u8> {
        let content = Statement { mesh: self.certifier.mesh, author: key.id(), number, change };
        SignedStatement::build(content, |bytes| key.sign(bytes)).expect("fits").bytes().to_vec()
    }

    fn by_root(&self, number: u64, change: Change) -> Vec<u8> {
        self.signed(&self.root, number, change)
    }

    /// Returns the root's statement that adds an issuer, whose key the node of the same number holds.
    fn add(&self, number: u64, issuer: usize) -> Vec<u8> {
        self.by_root(number, Change::AddIssuer(self.certificate(issuer, &[])))
    }

    fn certificate(&self, issuer: usize, groups: &[&str]) -> Vec<u8> {
        let claims = issuer_claims(node(issuer as u16), groups);
        self.certifier.certify(issuer_params(Some(&claims)), &self.issuers[issuer].pair)
    }

    fn evict(&self, issuer: usize, number: u64, out: u16) -> Vec<u8> {
        self.signed(&self.issuers[issuer], number, Change::Evict(node(out)))
    }

    fn remove(&self, number: u64, issuer: usize, numbers: u64, keep: &[u16]) -> Vec<u8> {
        let keep = keep.iter().copied().map(node).collect();
        self.by_root(number, Change::RemoveIssuer { issuer: self.id(issuer), numbers, keep })
    }

    fn grant(&self, number: u64, issuer: usize, numbers: u64) -> Vec<u8> {
        self.by_root(number, Change::Grant { author: self.id(issuer), numbers })
    }

    fn id(&self, issuer: usize) -> NodeId {
        self.issuers[issuer].id()
    }
}

/// Makes ids of nodes; 0 and 1 hold the keys of the two issuers.
fn node(number: u16) -> NodeId {
    let [high, low] = number.to_be_bytes();
    NodeId::from_bytes([high, low, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7])
}

fn nodes(numbers: impl IntoIterator<Item = u16>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(node).collect()
}

fn all(set: &Statements) -> Vec<Vec<u8>> {
    set.all().map(|signed| signed.bytes().to_vec()).collect()
}

#[test]
fn a_stolen_issuer_evicts_as_many_as_its_budget_in_every_order() {
    let mesh = Mesh::new();
    let mut statements: Vec<_> =
        (0..1_000).map(|number| mesh.evict(0, number, 100 + number as u16)).collect();
    let mut digests = BTreeSet::new();
    for seed in 0..3 {
        statements.shuffle(&mut StdRng::seed_from_u64(seed));
        let mut set = mesh.started();
        let mut refused = 0;
        for batch in statements.chunks(170) {
            refused += set.take(batch).refused.len();
        }
        assert_eq!(*set.standing().evicted, nodes(100..164));
        assert_eq!((refused, set.len()), (936, 66));
        digests.insert(set.digest());
    }
    assert_eq!(digests.len(), 1);
    let mut set = mesh.started();
    let budget = Fault::Budget { author: mesh.id(0), number: 64, budget: 64 };
    assert_eq!(set.take(&[mesh.evict(0, 64, 9)]).refused, [budget]);
    assert!(set.take(&[mesh.evict(1, 63, 9)]).refused.is_empty(), "the budget of another is its own");
}

#[test]
fn two_statements_with_one_number_end_the_powers_of_their_author() {
    let mesh = Mesh::new();
    let mut set = mesh.started();
    let before: Vec<_> = (0..9).map(|number| mesh.evict(0, number, 100 + number as u16)).collect();
    assert_eq!(set.take(&before).new.len(), 9);
    let other = mesh.evict(0, 4, 200);
    let taken = set.take(std::slice::from_ref(&other));
    assert!(taken.changed);
    assert_eq!(taken.new, std::slice::from_ref(&other));
    assert_eq!(*set.standing().evicted, nodes(100..104));
    assert_eq!(set.standing().conflicted, BTreeSet::from([mesh.id(0)]));
    assert!(set.standing().issuers.contains_key(&mesh.id(0)), "it still issues leaves");
    assert_eq!(set.len(), 2 + 4 + 2);
    let ended = |number| Fault::Ended { author: mesh.id(0), number };
    assert_eq!(set.take(&before[5..7]).refused, [ended(5), ended(6)]);
    assert_eq!(set.next_number(mesh.id(0)), Err(NumberError::Conflict(mesh.id(0))));
    assert_eq!(set.next_number(mesh.id(1)), Ok(0));
    // An earlier pair takes what came after it along.
    assert!(set.take(&[mesh.evict(0, 2, 201)]).changed);
    assert_eq!(*set.standing().evicted, nodes(100..102));
    assert_eq!(set.len(), 2 + 2 + 2);
}

#[test]
fn of_many_statements_with_one_number_the_two_smallest_ids_are_the_proof() {
    let mesh = Mesh::new();
    let mut same: Vec<_> = (0..6).map(|out| mesh.evict(0, 3, 100 + out)).collect();
    let mut one_by_one = mesh.started();
    for statement in &same {
        one_by_one.take(std::slice::from_ref(statement));
    }
    let mut set = mesh.started();
    let taken = set.take(&same);
    assert_eq!((taken.new.len(), taken.refused.len()), (2, 4));
    assert_eq!(set.digest(), one_by_one.digest());
    same.sort_by_key(|bytes| SignedStatement::parse(bytes).expect("parses").id());
    assert_eq!(BTreeSet::from_iter(taken.new), BTreeSet::from_iter(same[..2].iter().cloned()));
    let again = set.take(&same[2..]);
    assert_eq!((again.new.len(), again.refused.len(), again.changed), (0, 4, false));
}

#[test]
fn powers_of_a_root_end_as_those_of_an_issuer() {
    let mesh = Mesh::new();
    let mut set = mesh.started();
    set.take(&[mesh.by_root(2, Change::Evict(node(9))), mesh.evict(1, 0, 10)]);
    assert_eq!(*set.standing().evicted, nodes([9, 10]));
    // Statement 1 added the second issuer: without it, that issuer's word is worth nothing.
    let taken = set.take(&[mesh.by_root(1, Change::Evict(node(11)))]);
    assert!(taken.changed);
    assert!(set.standing().evicted.is_empty());
    assert_eq!(set.standing().issuers.keys().copied().collect::<Vec<_>>(), [mesh.id(0)]);
    assert_eq!(set.standing().conflicted, BTreeSet::from([mesh.root.id()]));
    assert_eq!(set.next_number(mesh.root.id()), Err(NumberError::Conflict(mesh.root.id())));
    assert_eq!(set.take(&[mesh.evict(1, 0, 10)]).refused, [Fault::Author(mesh.id(1))]);
}

#[test]
fn a_grant_of_a_root_raises_the_budget_and_what_was_refused_is_taken_again() {
    let mesh = Mesh::new();
    let mut set = mesh.started();
    let late: Vec<_> = (60..70).map(|number| mesh.evict(0, number, number as u16)).collect();
    assert_eq!(set.take(&late).refused.len(), 6);
    assert_eq!(set.next_number(mesh.id(0)), Err(NumberError::Spent { budget: 64 }));
    assert!(set.take(&[mesh.grant(2, 0, 68), mesh.grant(3, 0, 10)]).changed);
    assert_eq!(set.next_number(mesh.id(0)), Ok(64));
    assert_eq!(set.take(&late).new.len(), 4);
    let issuer = &set.standing().issuers[&mesh.id(0)];
    assert_eq!((issuer.budget, issuer.used), (68, 68));
    assert_eq!(*set.standing().evicted, nodes(60..68));
    // In one batch the grant counts wherever it stands.
    let mut at_once = mesh.set();
    let batch = [late, vec![mesh.grant(3, 0, 10), mesh.grant(2, 0, 68), mesh.add(1, 1), mesh.add(0, 0)]];
    assert_eq!(at_once.take(&batch.concat()).refused.len(), 2);
    assert_eq!((at_once.digest(), at_once.standing()), (set.digest(), set.standing()));
}

#[test]
fn a_removed_issuer_counts_for_what_it_said_early_and_whom_every_removal_keeps() {
    let mesh = Mesh::new();
    let mut set = mesh.started();
    let said: Vec<_> = (0..8).map(|number| mesh.evict(0, number, 100 + number as u16)).collect();
    set.take(&said);
    assert!(set.take(&[mesh.remove(2, 0, 5, &[20, 21, 22])]).changed);
    assert!(!set.standing().issuers.contains_key(&mesh.id(0)));
    assert_eq!(set.standing().removed, BTreeMap::from([(mesh.id(0), nodes(20..23))]));
    assert_eq!((*set.standing().evicted).clone(), nodes(100..105));
    assert_eq!(set.len(), 3 + 5);
    let removed = |number| Fault::Removed { author: mesh.id(0), number };
    assert_eq!(set.take(&[mesh.evict(0, 5, 105), mesh.evict(0, 9, 1)]).refused.len(), 2);
    assert_eq!(set.take(&said[5..6]).refused, [removed(5)]);
    assert_eq!(set.next_number(mesh.id(0)), Err(NumberError::Removed(mesh.id(0))));
    set.take(&[mesh.remove(3, 0, 7, &[21, 22, 23]), mesh.remove(4, 0, 3, &[20, 22])]);
    assert_eq!(set.standing().removed, BTreeMap::from([(mesh.id(0), nodes([22]))]));
    assert_eq!(*set.standing().evicted, nodes(100..103));
    // A later certificate does not bring it back.
    set.take(&[mesh.by_root(5, Change::AddIssuer(mesh.certificate(0, &["west"])))]);
    assert_eq!(set.standing().issuers.keys().copied().collect::<Vec<_>>(), [mesh.id(1)]);
}

#[test]
fn the_longest_removal_fits() {
    let mesh = Mesh::new();
    let mut set = mesh.started();
    let keep: Vec<u16> = (0..1_024).collect();
    let longest = mesh.remove(u64::MAX - 1, 1, u64::MAX, &keep);
    assert!(longest.len() < MAX_STATEMENT_BYTES);
    assert!(set.take(&[longest]).changed);
    assert_eq!(set.standing().removed[&mesh.id(1)].len(), 1_024);
    assert_eq!(set.next_number(mesh.root.id()), Err(NumberError::Spent { budget: u64::MAX }));
}

#[test]
fn an_issuer_evicts_no_holder_of_another_issuer_until_that_is_removed() {
    let mesh = Mesh::new();
    let mut set = mesh.started();
    let taken = set.take(&[mesh.evict(0, 0, 1), mesh.evict(0, 1, 30)]);
    assert_eq!((taken.new.len(), taken.refused.len()), (2, 0));
    assert_eq!(*set.standing().evicted, nodes([30]));
    let mut removed = set.clone();
    removed.take(&[mesh.remove(2, 1, 0, &[])]);
    assert_eq!(*removed.standing().evicted, nodes([1, 30]));
    set.take(&[mesh.by_root(2, Change::Evict(node(1)))]);
    assert_eq!(*set.standing().evicted, nodes([1, 30]));
    assert!(set.standing().issuers.contains_key(&mesh.id(1)), "its key is another matter");
}

#[test]
fn the_newest_certificate_of_an_issuer_is_the_one() {
    let mesh = Mesh::new();
    let mut set = mesh.started();
    let later = |days: i64, groups: &[&str]| {
        let mut params = issuer_params(Some(&issuer_claims(node(0), groups)));
        params.not_after += time::Duration::days(days);
        mesh.certifier.certify(params, &mesh.issuers[0].pair)
    };
    let (older, newer) = (later(-1, &["east"]), later(1, &["west"]));
    set.take(&[2, 3, 4].map(|number| {
        let certificate = if number == 3 { newer.clone() } else { older.clone() };
        mesh.by_root(number, Change::AddIssuer(certificate))
    }));
    let issuer = &set.standing().issuers[&mesh.id(0)];
    assert_eq!(issuer.facts, read_issuer(&newer).expect("reads"));
    assert_eq!(issuer.older, [mesh.certificate(0, &[]), older]);
}

#[test]
fn issuers_are_due_at_half_of_their_life_or_of_a_shorter_one_from_its_end() {
    let mesh = Mesh::new();
    let set = mesh.started();
    let facts = &set.standing().issuers[&mesh.id(0)].facts;
    let (life, end) = (facts.not_after - facts.not_before, facts.not_after);
    let due = |wall, lifetime| set.standing().issuers_due(wall, lifetime).count();
    assert_eq!((due(end - life / 2, life), due(end - life / 2 + 1, life)), (0, 2));
    assert_eq!((due(end - 50, 100), due(end - 49, 100)), (0, 2));
}

#[test]
fn what_is_not_in_order_is_refused_and_changes_nothing() {
    let mesh = Mesh::new();
    let mut set = mesh.started();
    let digest = set.digest();
    let (author, root) = (mesh.id(0), mesh.root.id());
    let mut forged = mesh.evict(0, 3, 9);
    *forged.last_mut().expect("bytes") ^= 1;
    let content = |author, mesh| Statement { mesh, author, number: 3, change: Change::Evict(node(9)) };
    let lent =
        SignedStatement::build(content(root, mesh.certifier.mesh), |bytes| mesh.issuers[0].sign(bytes));
    let other = MeshId::from_bytes([9; 16]);
    let foreign = SignedStatement::build(content(root, other), |bytes| mesh.root.sign(bytes));
    let stranger = Key::of(77);
    let grant = Change::Grant { author, numbers: 900 };
    let add_root = |der: &[u8]| mesh.by_root(3, Change::AddRoot(der.to_vec()));
    let nobody = |why| Fault::Certificate { author: root, number: 3, why };
    let of_another = Certifier::of(Key::of(78).pair).certify(issuer_params(None), &mesh.issuers[0].pair);
    let why = TrustError::Chain("another key than the author's signed it".to_owned());
    let add = |der: &[u8]| mesh.by_root(3, Change::AddIssuer(der.to_vec()));
    for (bytes, fault) in [
        (forged, Fault::Signature { author, number: 3 }),
        (lent.expect("fits").bytes().to_vec(), Fault::Signature { author: root, number: 3 }),
        (foreign.expect("fits").bytes().to_vec(), Fault::Mesh(other)),
        (mesh.signed(&stranger, 0, Change::Evict(node(9))), Fault::Author(stranger.id())),
        (mesh.signed(&mesh.issuers[0], 3, grant), Fault::Power { author, number: 3 }),
        (add_root(b"junk"), nobody(TrustError::Malformed)),
        (add_root(&mesh.certificate(0, &[])), nobody(TrustError::NotRoot)),
        (add(b"junk"), nobody(TrustError::Malformed)),
        (add(&mesh.certifier.root), nobody(TrustError::NotIssuer)),
        (add(&of_another), nobody(why)),
    ] {
        let taken = set.take(&[bytes]);
        assert_eq!(taken.refused, std::slice::from_ref(&fault));
        assert!(!fault.to_string().is_empty() && taken.new.is_empty() && !taken.changed);
    }
    let taken = set.take(&[b"junk".to_vec(), vec![0; MAX_STATEMENT_BYTES + 1]]);
    assert!(matches!(taken.refused[..], [Fault::Malformed(_), Fault::Malformed(_)]));
    assert_eq!((set.digest(), set.len()), (digest, 2));
}

#[test]
fn an_author_is_known_by_its_own_batch() {
    let mesh = Mesh::new();
    let mut set = mesh.set();
    assert!(set.is_empty());
    let word = mesh.evict(0, 0, 9);
    assert_eq!(set.take(std::slice::from_ref(&word)).refused, [Fault::Author(mesh.id(0))]);
    let batch = [word.clone(), mesh.add(0, 0), word.clone()];
    let taken = set.take(&batch);
    assert_eq!((taken.new.len(), taken.refused.len()), (2, 0), "the same twice is one");
    assert_eq!(*set.standing().evicted, nodes([9]));
    assert!(!set.is_empty());
    assert_eq!(set.take(&batch), Taken::default(), "nothing of it is new");
}

#[test]
fn the_next_number_is_above_all_that_is_known() {
    let mesh = Mesh::new();
    let mut set = mesh.set();
    assert_eq!(set.next_number(mesh.root.id()), Ok(0));
    assert_eq!(set.next_number(mesh.id(0)), Err(NumberError::Unknown(mesh.id(0))));
    set.take(&[mesh.add(7, 0)]);
    assert_eq!(set.next_number(mesh.root.id()), Ok(8));
    assert_eq!(set.next_number(mesh.id(0)), Ok(0));
    set.take(&[mesh.evict(0, 12, 9)]);
    assert_eq!(set.next_number(mesh.id(0)), Ok(13));
    assert_eq!(set.standing().issuers[&mesh.id(0)].used, 13);
}

#[test]
fn a_set_lists_its_statements_by_id_and_its_digest_is_theirs() {
    let mesh = Mesh::new();
    assert_eq!(mesh.set().digest(), digest(&BTreeSet::new()));
    let mut set = mesh.started();
    set.take(&[mesh.evict(0, 0, 9), mesh.evict(1, 0, 9)]);
    let ids: Vec<_> = set.all().map(SignedStatement::id).collect();
    assert!(ids.is_sorted() && ids.len() == set.len());
    assert_eq!(set.digest(), digest(&ids.into_iter().collect()));
}

#[test]
fn a_set_needs_roots_that_can_sign() {
    let mesh = Mesh::new();
    assert!(matches!(Statements::new(mesh.certifier.mesh, &[b"junk".to_vec()]), Err(TrustError::Malformed)));
}

#[test]
fn an_issuer_revokes_tokens_within_its_budget_and_nothing_else() {
    let mesh = Mesh::new();
    let mut set = mesh.started();
    let token = |byte| gossamer_wire::TokenId::from_bytes([byte; 16]);
    let by_issuer = |number, change| mesh.signed(&mesh.issuers[0], number, change);
    let taken = set
        .take(&[by_issuer(0, Change::RevokeToken(token(1))), by_issuer(64, Change::RevokeToken(token(2)))]);
    assert_eq!((taken.new.len(), taken.refused.len()), (1, 1), "{:?}", taken.refused);
    assert_eq!(set.standing().revoked.iter().copied().collect::<Vec<_>>(), [token(1)]);
    let grant = Change::Grant { author: mesh.id(0), numbers: 99 };
    assert!(matches!(set.take(&[by_issuer(1, grant)]).refused[..], [Fault::Power { .. }]));
}
