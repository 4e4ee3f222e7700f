use std::path::Path;

use super::*;

fn request(node: &str) -> InitRequest {
    InitRequest {
        mesh_name: "test".parse().expect("name"),
        group: "west".parse().expect("name"),
        node: node.parse().expect("name"),
        zone: Some("z1".parse().expect("name")),
        region: None,
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
    assert_eq!(reset_key(&store).expect("makes"), reset_key(&store).expect("reads"));
}

#[test]
fn keys_do_not_show_in_debug_output() {
    let dir = tempfile::tempdir().expect("scratch");
    let identity = init(&store(dir.path()), &request("vm-a")).expect("makes");
    let shown = format!("{identity:?}");
    let secret = data_encoding::HEXLOWER.encode(&identity.key.pkcs8()[16..48]);
    assert!(!shown.contains(&secret) && shown.contains("NodeKey("));
}
