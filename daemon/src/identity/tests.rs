use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gossamer_wire::token::{Claims, Grant, Token};

use super::*;

fn request(node: &str) -> InitRequest {
    InitRequest {
        mesh_name: "test".parse().expect("name"),
        group: "west".parse().expect("name"),
        node: node.parse().expect("name"),
        zone: Some("z1".parse().expect("name")),
        region: None,
        lifetimes: Lifetimes::default(),
    }
}

fn store(dir: &Path) -> Store {
    Store::open(&dir.join("state")).expect("opens")
}

#[test]
fn init_makes_a_node_that_its_own_bundle_trusts() {
    let dir = tempfile::tempdir().expect("scratch");
    let made = init(&store(dir.path()), &request("vm-a")).expect("makes");
    assert_eq!((made.name().as_str(), made.group().as_str()), ("vm-a", "west"));
    assert_eq!(made.node(), made.key.node());
    assert!(made.issuer.is_some() && made.holds_root_key);
    let loaded = load(&store(dir.path())).expect("reads").expect("there");
    assert_eq!(loaded.leaf, made.leaf);
    assert_eq!(loaded.zone, made.zone);
}

#[test]
fn init_again_is_the_same_node_and_another_name_is_refused() {
    let dir = tempfile::tempdir().expect("scratch");
    let first = init(&store(dir.path()), &request("vm-a")).expect("makes");
    let again = init(&store(dir.path()), &request("vm-a")).expect("loads");
    assert_eq!(first.node(), again.node());
    let error = init(&store(dir.path()), &request("vm-b")).expect_err("another name").to_string();
    assert!(error.contains("vm-a") && error.contains("gossamer run"), "{error}");
}

#[test]
fn a_crash_before_the_identity_file_leaves_nothing_that_counts() {
    let dir = tempfile::tempdir().expect("scratch");
    let made = init(&store(dir.path()), &request("vm-a")).expect("makes");
    store(dir.path()).remove(IDENTITY_FILE).expect("removes");
    assert!(load(&store(dir.path())).expect("reads").is_none());
    let again = init(&store(dir.path()), &request("vm-a")).expect("makes");
    assert_ne!(made.mesh, again.mesh);
}

#[test]
fn each_key_that_others_can_read_stops_the_start() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    init(&store, &request("vm-a")).expect("makes");
    reset_key(&store, &Entropy::System).expect("makes");
    let starts = || load(&store).and_then(|_| reset_key(&store, &Entropy::System));
    starts().expect("private");
    let files =
        std::fs::read_dir(store.dir()).expect("readable").map(|file| file.expect("readable").file_name());
    let mut keys: Vec<String> = files.map(|name| name.into_string().expect("text")).collect();
    keys.retain(|name| name.ends_with(".key"));
    keys.sort();
    assert_eq!(keys, [ISSUER_KEY, NODE_KEY, RESET_KEY, ROOT_KEY]);
    for key in keys {
        for mode in [0o640, 0o604, 0o620, 0o644] {
            let file = store.dir().join(&key);
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
            let error = starts().expect_err("others can read it").to_string();
            assert!(error.contains(&key) && error.contains("chmod 0600"), "{mode:o} {error}");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        }
    }
    starts().expect("private again");
}

#[test]
fn a_key_that_is_not_the_certificates_is_damage() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    init(&store, &request("vm-a")).expect("makes");
    let other = NodeKey::generate().expect("key");
    store.write(NODE_KEY, other.pkcs8()).expect("writes");
    let error = load(&store).expect_err("damaged").to_string();
    assert!(error.contains("belongs to another key"), "{error}");
}

#[test]
fn epochs_only_rise() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    assert_eq!(next_epoch(&store).expect("writes"), 1);
    assert_eq!(next_epoch(&store).expect("writes"), 2);
    assert_eq!(raise_epoch(&store, 40).expect("writes"), 41);
    assert_eq!(next_epoch(&store).expect("writes"), 42);
}

#[test]
fn the_reset_key_stays() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    assert_eq!(
        reset_key(&store, &Entropy::System).expect("makes"),
        reset_key(&store, &Entropy::System).expect("reads")
    );
}

#[test]
fn keys_do_not_show_in_debug_output() {
    let dir = tempfile::tempdir().expect("scratch");
    let identity = init(&store(dir.path()), &request("vm-a")).expect("makes");
    let shown = format!("{identity:?}");
    let secret = data_encoding::HEXLOWER.encode(&identity.key.pkcs8()[16..48]);
    assert!(!shown.contains(&secret) && shown.contains("NodeKey("));
}

#[test]
fn every_file_of_an_identity_is_private() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    init(&store, &request("vm-a")).expect("makes");
    for entry in std::fs::read_dir(store.dir()).expect("there") {
        let entry = entry.expect("readable");
        let mode = entry.metadata().expect("readable").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    init(&store, &request("vm-a")).expect("makes");
    for name in [NODE_KEY, ISSUER_KEY, ROOT_KEY] {
        let path = store.dir().join(name);
        let set =
            |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        set(0o640);
        assert!(matches!(load(&store), Err(StoreError::Loose { .. })), "{name}");
        set(0o600);
        assert!(load(&store).is_ok(), "{name}");
    }
}

#[test]
fn damaged_files_are_named_and_never_replaced() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    init(&store, &request("vm-a")).expect("makes");
    for name in
        [IDENTITY_FILE, NODE_KEY, NODE_CERTIFICATE, ROOT_CERTIFICATES, ISSUER_CERTIFICATES, ISSUER_KEY]
    {
        let good = store.read(name).expect("reads").expect("there");
        store.write(name, b"junk").expect("writes");
        let error = load(&store).expect_err(name).to_string();
        assert!(error.contains("is damaged"), "{name}: {error}");
        assert!(init(&store, &request("vm-a")).is_err(), "{name}: init must not make another mesh");
        assert_eq!(store.read(name).expect("reads").as_deref(), Some(&b"junk"[..]), "{name}");
        store.write(name, &good).expect("writes");
    }
    assert!(load(&store).expect("loads again").is_some());
}

#[test]
fn missing_parts_of_an_identity_are_named() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    init(&store, &request("vm-a")).expect("makes");
    for name in [NODE_KEY, NODE_CERTIFICATE] {
        let good = store.read(name).expect("reads").expect("there");
        store.remove(name).expect("removes");
        let error = load(&store).expect_err(name).to_string();
        assert!(error.contains(name) && error.contains("missing"), "{error}");
        store.write(name, &good).expect("writes");
    }
}

#[test]
fn a_node_without_the_issuers_key_admits_nobody() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    init(&store, &request("vm-a")).expect("makes");
    store.remove(ISSUER_KEY).expect("removes");
    store.remove(ROOT_KEY).expect("removes");
    let loaded = load(&store).expect("reads").expect("there");
    assert!(loaded.issuer.is_none() && !loaded.holds_root_key);
}

#[test]
fn a_certificate_of_another_mesh_is_damage() {
    let (dir, other) = (tempfile::tempdir().expect("scratch"), tempfile::tempdir().expect("scratch"));
    let (store, other) = (store(dir.path()), store(other.path()));
    init(&store, &request("vm-a")).expect("makes");
    let foreign = init(&other, &request("vm-a")).expect("makes");
    store.write(NODE_CERTIFICATE, &foreign.leaf_der).expect("writes");
    store.write(NODE_KEY, foreign.key.pkcs8()).expect("writes");
    let error = load(&store).expect_err("damaged").to_string();
    assert!(error.contains(NODE_CERTIFICATE), "{error}");
}

#[test]
fn a_damaged_epoch_stops_the_start() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    next_epoch(&store).expect("writes");
    for damaged in ["", "-1", "\"7\"", "1 2"] {
        store.write(EPOCH, damaged.as_bytes()).expect("writes");
        let error = next_epoch(&store).expect_err(damaged);
        assert!(matches!(error, StoreError::Damaged { .. }), "{damaged}: {error}");
    }
}

#[test]
fn a_reset_key_of_the_wrong_length_is_made_again() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    store.write(RESET_KEY, &[1; 63]).expect("writes");
    let made = reset_key(&store, &Entropy::System).expect("makes");
    assert_eq!(reset_key(&store, &Entropy::System).expect("reads"), made);
}

/// What an issuer of a mesh makes, and the trust to judge it by.
fn issue(claims: &Claims) -> (Identity, Vec<u8>, NodeKey) {
    let dir = tempfile::tempdir().expect("scratch");
    let identity = init(&store(dir.path()), &request("vm-a")).expect("makes");
    let key = NodeKey::generate().expect("key");
    let subject = certificate::LeafSubject {
        mesh: identity.mesh,
        group: &"east".parse().expect("name"),
        name: &"vm-b".parse().expect("name"),
        claims,
    };
    let issuer = identity.issuer.clone().expect("an issuer");
    let leaf = issuer.issue(key.public(), subject, Lifetimes::default().leaf_for(1)).expect("issues");
    (identity, leaf, key)
}

#[test]
fn claims_survive_the_certificate() {
    let claims = Claims {
        services: vec!["web-*".to_owned(), "api".to_owned()],
        fqdn_suffixes: vec!["corp.example".parse().expect("a suffix")],
        labels: [("gpu".parse().expect("a label"), "h100".parse().expect("a label"))].into(),
        relay: true,
        ephemeral_seconds: 600,
    };
    let (identity, leaf, key) = issue(&claims);
    let read = identity.trust.verify(&leaf, &[], clock::wall()).expect("trusted");
    assert_eq!(read.claims, claims);
    assert_eq!(read.public_key, key.public());
    assert_eq!((read.group.as_str(), read.name.as_str()), ("east", "vm-b"));
}

#[test]
fn no_leaf_outlives_its_issuer() {
    let (identity, leaf, _) = issue(&Claims::default());
    let end = |der: &[u8]| gossamer_core::trust::not_after(der).expect("a certificate");
    let issuer = end(&identity.trust.issuers()[0]);
    let root = end(&identity.trust.roots()[0]);
    assert!(end(&leaf) <= issuer && issuer <= root);
    // Nor is it good for much longer than a month, whatever the issuer's life is.
    assert!(end(&leaf) <= clock::wall() + 31 * 86_400);
}

#[test]
fn a_leaf_cannot_issue_leaves() {
    let (identity, leaf, key) = issue(&Claims::default());
    // The admitted node signs a leaf with its own key, as if it were an issuer, and shows both.
    let signer = IssuerKey::read(key.pkcs8(), &leaf);
    let Ok(signer) = signer else { return };
    let accomplice = NodeKey::generate().expect("key");
    let subject = certificate::LeafSubject {
        mesh: identity.mesh,
        group: identity.group(),
        name: &"vm-c".parse().expect("name"),
        claims: &Claims::default(),
    };
    let forged = signer.issue(accomplice.public(), subject, Lifetimes::default().leaf_for(1)).expect("signs");
    let shown = [rustls::pki_types::CertificateDer::from(leaf)];
    assert!(identity.trust.verify(&forged, &shown, clock::wall()).is_err());
}

#[tokio::test]
async fn joining_into_the_directory_of_another_mesh_changes_nothing() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    let here = init(&store, &request("vm-a")).expect("makes");
    let grant = grant(MeshId::from_bytes([9; 16]), clock::wall() + 60);
    let token = Token::build(grant, |_| [0; 64]).expect("fits");
    let refused = join(&store, &token, &join_request()).await.expect_err("another mesh");
    assert!(matches!(refused, JoinError::OtherMesh(_)) && !refused.is_denied(), "{refused}");
    assert_eq!(load(&store).expect("reads").expect("there").mesh, here.mesh);
}

#[tokio::test]
async fn joining_again_into_the_own_mesh_is_the_same_node() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    let here = init(&store, &request("vm-a")).expect("makes");
    // Not even the token's end matters: nothing is asked of anybody.
    let token = Token::build(grant(here.mesh, 1), |_| [0; 64]).expect("fits");
    let joined = join(&store, &token, &join_request()).await.expect("is a member");
    assert_eq!(joined.node(), here.node());
}

#[tokio::test]
async fn an_old_token_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = store(dir.path());
    let grant = grant(MeshId::from_bytes([9; 16]), clock::wall() - 400);
    let token = Token::build(grant, |_| [0; 64]).expect("fits");
    let refused = join(&store, &token, &join_request()).await.expect_err("expired");
    assert!(matches!(refused, JoinError::Expired(400..=460)) && refused.is_denied(), "{refused}");
    assert!(store.read(NODE_KEY).expect("reads").is_none());
}

fn join_request() -> JoinRequest {
    JoinRequest { node: "vm-b".parse().expect("name"), zone: None, region: None }
}

fn grant(mesh: MeshId, not_after: u64) -> Grant {
    Grant {
        mesh,
        root_pin: [0; 32],
        id: gossamer_wire::TokenId::from_bytes([1; 16]),
        issuer: NodeId::from_bytes([2; 16]),
        not_after,
        uses: 1,
        group: "east".parse().expect("name"),
        node_pattern: None,
        claims: Claims::default(),
        addresses: Vec::new(),
        lanes: Vec::new(),
    }
}
