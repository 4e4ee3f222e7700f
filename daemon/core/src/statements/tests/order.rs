//! Mixed statements in seeded orders: what is stored, and what follows, depends on the set only.

use rand::RngExt as _;

use super::roots::Root;
use super::*;

const SEEDS: u64 = 40;

/// Draws statements of everybody: repeated numbers, numbers over the budget, grants, removals.
fn draw(mesh: &Mesh, rng: &mut StdRng) -> Vec<Vec<u8>> {
    let mut pool = vec![mesh.add(0, 0), mesh.add(1, 1), mesh.remove(2, 0, 90, &[1, 2, 3, 4])];
    for number in 3..12 {
        // One root statement in twelve has the number of another.
        let number = if rng.random_bool(0.08) { number - 1 } else { number };
        let issuer = rng.random_range(0..2);
        let upto = rng.random_range(0..90);
        pool.push(match rng.random_range(0..10) {
            0 => mesh.remove(number, issuer, upto, &[1, 2, rng.random_range(0..9)]),
            1..5 => mesh.grant(number, issuer, upto),
            5 => mesh.by_root(number, Change::AddIssuer(mesh.certificate(issuer, &["west"]))),
            _ => mesh.by_root(number, Change::Evict(node(rng.random_range(0..40)))),
        });
    }
    draw_roots(mesh, rng, &mut pool);
    for _ in 0..50 {
        // Few are drawn twice below 90, so that powers end late or not at all.
        let number = rng.random_range(0..90);
        pool.push(mesh.evict(
            rng.random_range(0..2),
            number,
            if rng.random_bool(0.9) { number as u16 } else { 0 },
        ));
    }
    pool
}

/// Draws what roots say of each other: three that follow the first one or each other and evict, and one that retires the
/// root that added it, with all that this one has said. A root that contradicts itself is not retired here.
fn draw_roots(mesh: &Mesh, rng: &mut StdRng, pool: &mut Vec<Vec<u8>>) {
    let added = [Root::of(40), Root::of(41), Root::of(42)];
    let everybody = || [&mesh.root].into_iter().chain(added.iter().map(|root| &root.key));
    let mut before = Vec::new();
    for (index, root) in added.iter().enumerate() {
        // By the first one, or by one before it.
        let by = rng.random_range(0..=index);
        before.push(by);
        let by = everybody().nth(by).expect("a root");
        pool.push(mesh.signed(by, 20 + index as u64, root.add()));
    }
    for number in 30..36 {
        let by = everybody().nth(rng.random_range(0..4)).expect("a root");
        pool.push(mesh.signed(by, number, Change::Evict(node(rng.random_range(0..40)))));
        let root = &added[rng.random_range(0..3)];
        pool.push(mesh.signed(&root.key, 10 + number, root.add_issuer(mesh, rng.random_range(0..2))));
    }
    let retiring = rng.random_range(0..3);
    let root = everybody().nth(before[retiring]).expect("a root").id();
    let said: Vec<_> = pool.iter().map(|bytes| SignedStatement::parse(bytes).expect("parses")).collect();
    let of_root = || said.iter().filter(|signed| signed.statement().author == root);
    let numbers: BTreeSet<u64> = of_root().map(|signed| signed.statement().number).collect();
    if numbers.len() == of_root().count() {
        let keep = of_root().map(SignedStatement::short_id).collect();
        pool.push(mesh.signed(&added[retiring].key, 60, Change::RetireRoot { root, keep }));
    }
}

/// Gives a set the pool in batches of any size until it takes no more.
fn offer_all(set: &mut Statements, pool: &mut [Vec<u8>], rng: &mut StdRng) {
    loop {
        pool.shuffle(rng);
        let mut changed = false;
        let mut rest = &pool[..];
        while !rest.is_empty() {
            let (batch, others) = rest.split_at(rng.random_range(1..=rest.len()));
            changed |= set.take(batch).changed;
            rest = others;
        }
        if !changed {
            return;
        }
    }
}

#[test]
fn one_batch_in_any_order_gives_one_set() {
    let mesh = Mesh::new();
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pool = draw(&mesh, &mut rng);
        let mut first = mesh.set();
        first.take(&pool);
        pool.shuffle(&mut rng);
        let mut second = mesh.set();
        let taken = second.take(&pool);
        assert_eq!(first.digest(), second.digest(), "seed {seed}");
        assert_eq!(first.standing(), second.standing(), "seed {seed}");
        assert_eq!(BTreeSet::from_iter(taken.new), BTreeSet::from_iter(all(&second)), "seed {seed}");
        // What is stored is enough: it makes the same set again.
        let mut third = mesh.set();
        assert_eq!(third.take(&all(&first)).refused, [], "seed {seed}");
        assert_eq!((third.digest(), third.standing()), (first.digest(), first.standing()), "seed {seed}");
    }
}

#[test]
fn any_batches_offered_again_and_again_end_in_the_set_of_one_batch() {
    let mesh = Mesh::new();
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pool = draw(&mesh, &mut rng);
        let mut at_once = mesh.set();
        at_once.take(&pool);
        let mut set = mesh.set();
        offer_all(&mut set, &mut pool, &mut rng);
        assert_eq!(set.digest(), at_once.digest(), "seed {seed}");
        assert_eq!(set.standing(), at_once.standing(), "seed {seed}");
    }
}

#[test]
fn two_sets_that_exchange_all_they_have_become_equal() {
    let mesh = Mesh::new();
    let mut most = 0;
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pool = draw(&mesh, &mut rng);
        pool.shuffle(&mut rng);
        // Each hears of some of it, of a part both, in other orders.
        let (mut here, mut there) = (mesh.set(), mesh.set());
        let (third, two_thirds) = (pool.len() / 3, pool.len() * 2 / 3);
        pool[..two_thirds].chunks(7).for_each(|batch| drop(here.take(batch)));
        pool[third..].chunks(5).for_each(|batch| drop(there.take(batch)));
        let mut rounds = 0;
        while here.digest() != there.digest() {
            let (ours, theirs) = (all(&here), all(&there));
            there.take(&ours);
            theirs.chunks(9).for_each(|batch| drop(here.take(batch)));
            rounds += 1;
            assert!(rounds < 9, "seed {seed}");
        }
        assert_eq!(all(&here), all(&there), "seed {seed}");
        assert_eq!(here.standing(), there.standing(), "seed {seed}");
        most = most.max(rounds);
    }
    assert!(most > 0, "the sets differed before");
}
