//! Issuers with a scope, removed ones, and evicted nodes.

use super::*;

/// An issuer beside the first one of its mesh.
struct Second {
    authority: Authority,
    key: Key,
    der: Vec<u8>,
}

impl Second {
    fn new(groups: &[&str]) -> Self {
        let (authority, key) = (Authority::new(), Key::new());
        let claims = issuer_claims(Key::new().id(), groups);
        let der = authority.certify(issuer_params(Some(&claims)), &key.pair);
        Self { authority, key, der }
    }

    fn bundle(&self, issuers: Vec<Vec<u8>>) -> TrustBundle {
        TrustBundle::new(self.authority.mesh, vec![self.authority.root.clone()], issuers).expect("bundle")
    }

    /// Issues a leaf of a group, changed a little.
    fn issue(&self, group: &str, key: &Key, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = leaf_params(self.authority.mesh, group, "vm-b");
        change(&mut params);
        let issuer = Issuer::new(issuer_params(None), &self.key.pair);
        params.signed_by(&key.pair, &issuer).expect("leaf").der().to_vec()
    }

    fn leaf(&self, group: &str) -> Vec<u8> {
        self.issue(group, &Key::new(), |_| {})
    }

    /// Certifies the same key for other groups, for some seconds longer.
    fn renewed(&self, groups: &[&str], longer: i64) -> Vec<u8> {
        let mut params = issuer_params(Some(&issuer_claims(Key::new().id(), groups)));
        params.not_after = at(31_536_000 + longer);
        self.authority.certify(params, &self.key.pair)
    }
}

fn scope(group: &str) -> TrustError {
    TrustError::Scope(group.parse().expect("name"))
}

fn ended(params: &mut CertificateParams) {
    params.not_after = at(-200);
}

#[test]
fn a_certificate_of_an_issuer_says_who_holds_it() {
    let second = Second::new(&["east"]);
    let facts = read_issuer(&second.der).expect("reads");
    assert_eq!((facts.id, node_id(&facts.public_key)), (second.key.id(), second.key.id()));
    assert_eq!((facts.not_before, facts.not_after), (WALL - 3_600, WALL + 31_536_000));
    assert_eq!(facts.claims.expect("claims").groups, ["east".parse().expect("name")]);
    assert_eq!(facts.certificate, second.der);
    let first = read_issuer(&second.authority.issuer_der).expect("reads");
    assert_eq!(first.claims, None, "the first certificates do not say");
    assert!(first.admits_to(&"west".parse().expect("name")));
    let root = public_key_of(&second.authority.root).expect("Ed25519");
    assert_eq!(node_id(&root).as_bytes(), second.authority.mesh.as_bytes());
}

#[test]
fn what_is_no_issuer_is_told_apart() {
    let second = Second::new(&[]);
    assert_eq!(read_issuer(&second.authority.root), Err(TrustError::NotIssuer), "path length 1");
    assert_eq!(read_issuer(&second.leaf("west")), Err(TrustError::NotIssuer));
    assert_eq!(read_issuer(b"junk"), Err(TrustError::Malformed));
    assert_eq!(read_issuer(&[0x30; 5_000]), Err(TrustError::Malformed));
    assert_eq!(read_issuer(&[second.der.clone(), vec![0]].concat()), Err(TrustError::Malformed));
    let mut params = issuer_params(None);
    params.custom_extensions = vec![CustomExtension::from_oid_content(ISSUER_OID, vec![255; 9])];
    let junk = second.authority.certify(params, &second.key.pair);
    assert_eq!(read_issuer(&junk), Err(TrustError::Claims));
    assert!(matches!(
        second.bundle(vec![junk]).verify(&second.leaf("west"), &[], WALL),
        Err(TrustError::Chain(_))
    ));
    let other = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
    let other = second.authority.certify(issuer_params(None), &other);
    assert_eq!(read_issuer(&other), Err(TrustError::Key));
    assert_eq!(public_key_of(&other), Err(TrustError::Key));
    assert_eq!(public_key_of(b"junk"), Err(TrustError::Malformed));
}

#[test]
fn an_issuer_admits_to_its_groups_only_held_or_shown() {
    let second = Second::new(&["east", "north"]);
    let shown = [CertificateDer::from(second.der.clone())];
    let (east, west) = (second.leaf("east"), second.leaf("west"));
    let (held, without) = (second.bundle(vec![second.der.clone()]), second.authority.bundle());
    for (bundle, shown) in [(&held, &shown[..0]), (&held, &shown[..]), (&without, &shown[..])] {
        assert!(bundle.verify(&east, shown, WALL).is_ok());
        assert_eq!(bundle.verify(&west, shown, WALL), Err(scope("west")));
        assert_eq!(bundle.verify_certificate(&west, shown, WALL), Err(scope("west")));
    }
    let first = second.authority.leaf("west", "vm-c", &Key::new());
    assert!(without.verify(&first, &shown, WALL).is_ok(), "the scope of another issuer is not its own");
}

#[test]
fn a_narrowed_scope_is_not_widened_by_showing_the_older_certificate() {
    let second = Second::new(&[]);
    let (wide, narrow) = (second.der.clone(), second.renewed(&["east"], 9));
    let west = second.leaf("west");
    let shown = |der: &[u8]| [CertificateDer::from(der.to_vec())];
    let bundle = second.bundle(vec![narrow.clone()]);
    assert_eq!(bundle.verify(&west, &shown(&wide), WALL), Err(scope("west")));
    assert!(bundle.verify(&second.leaf("east"), &shown(&wide), WALL).is_ok());
    for both in [vec![wide.clone(), narrow.clone()], vec![narrow.clone(), wide]] {
        assert_eq!(second.bundle(both).verify(&west, &[], WALL), Err(scope("west")), "in either order");
    }
    // The other way round the newer one may not be held here yet.
    let widened = second.renewed(&["east", "west"], 18);
    assert_eq!(bundle.verify(&west, &[], WALL), Err(scope("west")));
    assert!(bundle.verify(&west, &shown(&widened), WALL).is_ok());
    for both in [vec![narrow.clone(), widened.clone()], vec![widened, narrow]] {
        assert!(second.bundle(both).verify(&west, &[], WALL).is_ok(), "in either order");
    }
}

#[test]
fn a_scope_that_no_root_signed_widens_nothing() {
    let second = Second::new(&["east"]);
    // The issuer certifies its own key for every group, for longer than the root did.
    let mut params = issuer_params(None);
    params.not_after = at(40_000_000);
    let own = params.self_signed(&second.key.pair).expect("certificate").der().to_vec();
    let west = second.leaf("west");
    let bundle = second.bundle(vec![second.der.clone()]);
    assert_eq!(bundle.verify(&west, &[own.clone().into()], WALL), Err(scope("west")));
    let chain = [west, own, second.der.clone(), second.authority.root.clone()].map(CertificateDer::from);
    let pin = spki_hash(&second.authority.root).expect("certificate");
    let joined = TrustBundle::pinned(second.authority.mesh, &pin, &chain, WALL);
    assert_eq!(joined.map(|(_, leaf)| leaf), Err(scope("west")));
}

#[test]
fn leaves_of_a_removed_issuer_count_for_the_kept_nodes_only() {
    let second = Second::new(&[]);
    let (kept, other) = (Key::new(), Key::new());
    let leaves = [&kept, &other].map(|key| second.issue("west", key, |_| {}));
    let shown = [CertificateDer::from(second.der.clone())];
    let removed = BTreeMap::from([(second.key.id(), BTreeSet::from([kept.id()]))]);
    let held = second.bundle(vec![second.der.clone(), second.authority.issuer_der.clone()]);
    assert!(leaves.iter().all(|leaf| held.verify(leaf, &[], WALL).is_ok()));
    let (held, without) =
        (held.with_removed(removed.clone()), second.authority.bundle().with_removed(removed));
    for (bundle, shown) in [(&held, &shown[..0]), (&without, &shown[..])] {
        assert!(bundle.verify(&leaves[0], shown, WALL).is_ok());
        assert_eq!(bundle.verify(&leaves[1], shown, WALL), Err(TrustError::IssuerRemoved));
        assert_eq!(bundle.verify_certificate(&leaves[1], shown, WALL), Err(TrustError::IssuerRemoved));
    }
    let elsewhere = second.authority.leaf("west", "vm-c", &other);
    assert!(held.verify(&elsewhere, &[], WALL).is_ok(), "renewed at another issuer");
}

#[test]
fn an_evicted_node_is_refused_at_once_and_its_certificate_still_read() {
    let second = Second::new(&[]);
    let (key, other) = (Key::new(), Key::new());
    let [leaf, good] = [&key, &other].map(|key| second.issue("west", key, |_| {}));
    let before = second.bundle(vec![second.der.clone()]);
    assert!(before.verify(&leaf, &[], WALL).is_ok());
    let bundle = before.clone().with_evicted(Arc::new(BTreeSet::from([key.id()])));
    assert!(bundle.is_evicted(key.id()) && !bundle.is_evicted(other.id()));
    // The second time the verdict is remembered.
    for _ in 0..2 {
        assert_eq!(bundle.verify(&leaf, &[], WALL), Err(TrustError::Evicted));
        assert_eq!(bundle.verify_at_end(&leaf, &[], WALL), Err(TrustError::Evicted));
        assert_eq!(bundle.verify_certificate(&leaf, &[], WALL).map(|leaf| leaf.node), Ok(key.id()));
        assert!(bundle.verify(&good, &[], WALL).is_ok());
    }
    assert!(before.verify(&leaf, &[], WALL).is_ok(), "the bundle of before is another one");
}

#[test]
fn verdicts_are_not_remembered_across_a_change_of_authority() {
    let (authority, key) = (Authority::new(), Key::new());
    let leaf = authority.leaf("west", "vm-b", &key);
    let bundle = authority.bundle();
    assert!(bundle.verify(&leaf, &[], WALL).is_ok());
    let known = recent::key(&leaf, &[]);
    assert!(bundle.recent.get(&known, WALL).is_some());
    let evicted = bundle.clone().with_evicted(Arc::new(BTreeSet::from([key.id()])));
    assert_eq!(evicted.recent.get(&known, WALL), None);
    let removed = bundle.clone().with_removed(BTreeMap::new());
    assert_eq!(removed.recent.get(&known, WALL), None);
    assert!(bundle.recent.get(&known, WALL).is_some());
}

#[test]
fn an_ended_leaf_is_judged_as_of_its_end_for_renewal() {
    let second = Second::new(&["west"]);
    let key = Key::new();
    let late = second.issue("west", &key, ended);
    let bundle = second.bundle(vec![second.der.clone()]);
    assert_eq!(bundle.verify(&late, &[], WALL), Err(TrustError::Expired(200)));
    assert_eq!(bundle.verify_at_end(&late, &[], WALL).map(|leaf| leaf.node), Ok(key.id()));
    assert!(bundle.verify_at_end(&second.leaf("west"), &[], WALL).is_ok(), "one that has not ended");
    let early = second.issue("west", &key, |params| params.not_before = at(400));
    assert_eq!(bundle.verify_at_end(&early, &[], WALL), Err(TrustError::NotYet(400)));
    let outside = second.issue("east", &key, ended);
    assert_eq!(bundle.verify_at_end(&outside, &[], WALL), Err(scope("east")));
    let removed = BTreeMap::from([(second.key.id(), BTreeSet::new())]);
    let without = bundle.clone().with_removed(removed);
    assert_eq!(without.verify_at_end(&late, &[], WALL), Err(TrustError::IssuerRemoved));
    let evicted = bundle.with_evicted(Arc::new(BTreeSet::from([key.id()])));
    assert_eq!(evicted.verify_at_end(&late, &[], WALL), Err(TrustError::Evicted));
}

#[test]
fn a_path_leads_over_one_issuer_or_is_the_roots_own_word() {
    let (authority, key) = (Authority::new(), Key::new());
    // An authority that a root let certify others, by mistake.
    let (middle, low) = (Key::new(), Key::new());
    let mut params = authority_params(7);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let middle_der = authority.certify(params.clone(), &middle.pair);
    let middle = Issuer::new(params, &middle.pair);
    let low_der = issuer_params(None).signed_by(&low.pair, &middle).expect("issuer").der().to_vec();
    let low = Issuer::new(issuer_params(None), &low.pair);
    let leaf = leaf_params(authority.mesh, "west", "vm-b").signed_by(&key.pair, &low).expect("leaf");
    let shown = [low_der.clone().into(), middle_der.clone().into()];
    assert!(matches!(authority.bundle().verify(leaf.der(), &shown, WALL), Err(TrustError::Chain(_))));
    let roots = vec![authority.root.clone()];
    let held = TrustBundle::new(authority.mesh, roots, vec![low_der, middle_der]).expect("bundle");
    assert!(matches!(held.verify(leaf.der(), &[], WALL), Err(TrustError::Chain(_))));
    let own = authority.certify(leaf_params(authority.mesh, "west", "vm-b"), &key.pair);
    assert!(authority.bundle().verify(&own, &[], WALL).is_ok());
}

#[test]
fn a_joiner_believes_who_holds_an_issuers_key_and_no_other_member() {
    let (authority, key, holder) = (Authority::new(), Key::new(), Key::new());
    let der = authority.certify(issuer_params(Some(&issuer_claims(holder.id(), &[]))), &key.pair);
    let leaf_of = |node: &Key| {
        let issuer = Issuer::new(issuer_params(None), &key.pair);
        let params = leaf_params(authority.mesh, "west", "vm-b");
        params.signed_by(&node.pair, &issuer).expect("leaf").der().to_vec()
    };
    let pin = spki_hash(&authority.root).expect("a root");
    let judge = |chain: &[&[u8]]| {
        let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
        pinned_issuer(authority.mesh, &pin, &chain, WALL)
    };
    assert_eq!(judge(&[&leaf_of(&holder), &der, &authority.root]).expect("the issuer").id, key.id());
    let member = Key::new();
    assert_eq!(judge(&[&leaf_of(&member), &der, &authority.root]), Err(TrustError::Pin));
    // A certificate of an issuer that no root signed, and one that did not sign the member's leaf.
    let fake = issuer_params(Some(&issuer_claims(member.id(), &[]))).self_signed(&member.pair).expect("fake");
    assert_eq!(judge(&[&leaf_of(&member), &der, fake.der(), &authority.root]), Err(TrustError::Pin));
    let other = authority.certify(issuer_params(Some(&issuer_claims(member.id(), &[]))), &Key::new().pair);
    assert_eq!(judge(&[&leaf_of(&member), &der, &other, &authority.root]), Err(TrustError::Pin));
    assert_eq!(judge(&[&leaf_of(&holder), &der]), Err(TrustError::Pin), "the root is not shown");
}
