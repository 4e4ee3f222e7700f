//! Roots that are added and retired.

use super::*;
use crate::trust::read_root;

/// A root with what its key signs.
pub(super) struct Root {
    pub(super) key: Key,
    certifier: Certifier,
}

impl Root {
    pub(super) fn of(seed: u64) -> Self {
        Self { key: Key::of(seed), certifier: Certifier::of(Key::of(seed).pair) }
    }

    pub(super) fn id(&self) -> NodeId {
        self.key.id()
    }

    pub(super) fn certificate(&self) -> &[u8] {
        &self.certifier.root
    }

    pub(super) fn add(&self) -> Change {
        Change::AddRoot(self.certificate().to_vec())
    }

    pub(super) fn add_issuer(&self, mesh: &Mesh, issuer: usize) -> Change {
        let claims = issuer_claims(node(issuer as u16), &[]);
        Change::AddIssuer(self.certifier.certify(issuer_params(Some(&claims)), &mesh.issuers[issuer].pair))
    }
}

fn retire(root: NodeId, keep: &[&[u8]]) -> Change {
    let short_id = |bytes: &&[u8]| SignedStatement::parse(bytes).expect("parses").short_id();
    Change::RetireRoot { root, keep: keep.iter().map(short_id).collect() }
}

fn ids(set: &Statements) -> Vec<NodeId> {
    set.standing().roots.iter().map(|root| root.id).collect()
}

/// Takes a set of statements in two orders, of which the second is backwards and one by one; both must end the same.
fn both_ways(mesh: &Mesh, statements: &[Vec<u8>]) -> Statements {
    let mut at_once = mesh.set();
    at_once.take(statements);
    let mut one_by_one = mesh.set();
    for _ in 0..statements.len() {
        for statement in statements.iter().rev() {
            one_by_one.take(std::slice::from_ref(statement));
        }
    }
    assert_eq!(at_once.digest(), one_by_one.digest());
    assert_eq!(at_once.standing(), one_by_one.standing());
    at_once
}

#[test]
fn a_root_that_was_added_may_say_what_roots_say() {
    let (mesh, second) = (Mesh::new(), Root::of(40));
    let set = both_ways(
        &mesh,
        &[
            mesh.signed(&second.key, 1, Change::Evict(node(50))),
            mesh.signed(&second.key, 0, second.add_issuer(&mesh, 0)),
            mesh.by_root(0, second.add()),
            mesh.evict(0, 0, 51),
        ],
    );
    assert_eq!(ids(&set), [mesh.root.id(), second.id()]);
    assert_eq!(*set.standing().evicted, nodes([50, 51]));
    assert_eq!(set.standing().roots[1], read_root(second.certificate()).expect("reads"));
    assert_eq!(set.first_roots().collect::<Vec<_>>(), [&mesh.certifier.root[..]]);
}

#[test]
fn of_a_retired_root_the_earlier_words_count_and_its_issuers_do_not() {
    let (mesh, second) = (Mesh::new(), Root::of(40));
    let mut statements = vec![
        mesh.add(0, 0),
        mesh.add(1, 1),
        mesh.by_root(2, Change::Evict(node(50))),
        mesh.by_root(3, second.add()),
        mesh.signed(&second.key, 0, second.add_issuer(&mesh, 0)),
    ];
    let before = both_ways(&mesh, &statements);
    assert_eq!(before.standing().issuers[&mesh.id(0)].roots, BTreeSet::from([mesh.root.id(), second.id()]));
    assert_eq!(before.standing().issuers[&mesh.id(0)].older.len(), 1);
    statements.extend([
        mesh.signed(
            &second.key,
            1,
            Change::RetireRoot { root: mesh.root.id(), keep: before.counting(mesh.root.id()) },
        ),
        mesh.by_root(4, Change::Evict(node(51))),
    ]);
    let set = both_ways(&mesh, &statements);
    assert_eq!(ids(&set), [second.id()]);
    assert_eq!(set.standing().retired, [read_root(&mesh.certifier.root).expect("reads")]);
    assert_eq!(*set.standing().evicted, nodes([50]));
    // The second issuer was named by the retired root alone; what it said before counts.
    assert_eq!(set.standing().issuers.keys().collect::<Vec<_>>(), [&mesh.id(0)]);
    let first = &set.standing().issuers[&mesh.id(0)];
    assert_eq!((first.older.len(), first.of_retired.len()), (0, 1));
    let mut late = set.clone();
    let retired = Fault::Retired { author: mesh.root.id(), number: 4 };
    assert_eq!(late.take(&[mesh.by_root(4, Change::Evict(node(51)))]).refused, [retired]);
    assert_eq!(late.next_number(mesh.root.id()), Err(NumberError::Retired(mesh.root.id())));
    assert!(late.take(&[mesh.evict(1, 0, 52)]).refused.is_empty());
}

#[test]
fn a_root_cannot_retire_who_came_after_it_nor_itself() {
    let (mesh, second, third) = (Mesh::new(), Root::of(40), Root::of(41));
    let all = [mesh.root.id(), second.id(), third.id()];
    let set = both_ways(
        &mesh,
        &[
            mesh.by_root(0, second.add()),
            mesh.by_root(1, third.add()),
            mesh.by_root(2, retire(second.id(), &[])),
            mesh.by_root(3, retire(mesh.root.id(), &[])),
            // Nor one beside it.
            mesh.signed(&third.key, 0, retire(second.id(), &[])),
        ],
    );
    assert_eq!(ids(&set), all);
}

#[test]
fn a_thief_of_a_retired_key_adds_nobody() {
    let (mesh, second, evil) = (Mesh::new(), Root::of(40), Root::of(66));
    let (add, add_evil) = (mesh.by_root(0, second.add()), mesh.by_root(1, evil.add()));
    let statements = [
        add.clone(),
        mesh.signed(&second.key, 0, retire(mesh.root.id(), &[&add])),
        add_evil.clone(),
        mesh.signed(&evil.key, 0, retire(mesh.root.id(), &[])),
        mesh.signed(&evil.key, 1, Change::Evict(node(50))),
    ];
    let set = both_ways(&mesh, &statements);
    assert_eq!(ids(&set), [second.id()]);
    assert_eq!((set.standing().evicted.len(), set.len()), (0, 2));
    // Before the retirement the key was good: who was added then stays, and undoes nothing that came before.
    let set = both_ways(
        &mesh,
        &[
            statements[0].clone(),
            statements[2].clone(),
            statements[3].clone(),
            mesh.signed(&second.key, 0, retire(mesh.root.id(), &[&add, &add_evil])),
        ],
    );
    assert_eq!(ids(&set), [second.id(), evil.id()]);
}

#[test]
fn a_thief_of_a_retired_key_voids_nothing_that_it_said_before() {
    let (mesh, second) = (Mesh::new(), Root::of(40));
    let (evict, add) = (mesh.by_root(0, Change::Evict(node(50))), mesh.by_root(1, second.add()));
    let retirement = mesh.signed(&second.key, 0, retire(mesh.root.id(), &[&evict, &add]));
    let mut set = mesh.set();
    set.take(&[evict.clone(), add.clone(), retirement.clone()]);
    let digest = set.digest();
    // A second statement under each number, which would end its powers from there on while it was a root.
    for number in 0..4 {
        let again = mesh.by_root(number, Change::Evict(node(60)));
        let retired = Fault::Retired { author: mesh.root.id(), number };
        assert_eq!(set.take(&[again]).refused, [retired]);
    }
    assert_eq!((set.digest(), ids(&set)), (digest, vec![second.id()]));
    // Who hears of the retirement first takes what it keeps afterwards, and nothing else.
    let mut late = mesh.set();
    late.take(&[add, retirement]);
    late.take(&[mesh.by_root(0, Change::Evict(node(60))), evict]);
    assert_eq!((late.digest(), late.standing()), (digest, set.standing()));
}

#[test]
fn a_later_root_retires_over_several_generations() {
    let (mesh, second, third) = (Mesh::new(), Root::of(40), Root::of(41));
    let set = both_ways(
        &mesh,
        &[
            mesh.by_root(0, second.add()),
            mesh.signed(&second.key, 0, third.add()),
            mesh.signed(&third.key, 0, retire(second.id(), &[])),
            mesh.signed(&third.key, 1, retire(mesh.root.id(), &[])),
        ],
    );
    // What added the root that says so stays, though it is not named.
    assert_eq!((ids(&set), set.len()), (vec![third.id()], 4));
}

#[test]
fn a_mesh_has_so_many_roots_and_no_more() {
    let mesh = Mesh::new();
    let added = (0..100).map(|number| mesh.by_root(number, Root::of(100 + number).add()));
    let set = both_ways(&mesh, &added.collect::<Vec<_>>());
    assert_eq!(ids(&set).len(), MAX_ROOTS);
}

#[test]
fn who_has_not_heard_or_has_no_issuer_of_another_root_would_be_cut_off() {
    let (mesh, second) = (Mesh::new(), Root::of(40));
    let mut set = mesh.started();
    set.take(&[mesh.by_root(2, second.add()), mesh.signed(&second.key, 0, second.add_issuer(&mesh, 0))]);
    let (digest, old) = (set.digest(), mesh.root.id());
    let member = |number, digest, issuer| Member { node: node(number), digest, issuer };
    let of = |members: &[Member]| set.standing().dependents(old, digest, members.iter().copied());
    let good = member(1, Some(digest), Some(mesh.id(0)));
    assert_eq!(of(&[good]), []);
    let found = of(&[
        member(2, None, Some(mesh.id(0))),
        member(3, Some([0; 16]), Some(mesh.id(0))),
        good,
        member(4, Some(digest), Some(mesh.id(1))),
        member(5, Some(digest), None),
    ]);
    let because = |number, why| Dependent { node: node(number), why };
    let (unaware, certificate) = (Why::Unaware, Why::Certificate);
    assert_eq!(
        found,
        [because(2, unaware), because(3, unaware), because(4, certificate), because(5, certificate)]
    );
    // The later root is one that nobody needs while the first stands.
    assert_eq!(
        set.standing().dependents(second.id(), digest, [good, member(4, Some(digest), Some(mesh.id(1)))]),
        []
    );
}
