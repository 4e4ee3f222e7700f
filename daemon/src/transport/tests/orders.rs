//! Orders at a node whose state directory is older than what the mesh knows of it.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::*;

impl Node {
    /// Copies the state directory as it is now.
    fn backup(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("scratch");
        copy(&self.dir.path().join("state"), &dir.path().join("state"));
        dir
    }

    /// Stops, and starts on a copy of an earlier moment.
    async fn restored(self, backup: TempDir) -> Self {
        assert_eq!(self.stage.stop(SOON).await, 0);
        let store = Store::open(&backup.path().join("state")).expect("opens");
        let identity = crate::identity::load(&store).expect("loads").expect("there");
        drop(store);
        start_node(identity, backup)
    }
}

fn copy(from: &Path, to: &Path) {
    fs::DirBuilder::new().mode(0o700).create(to).expect("makes");
    for entry in fs::read_dir(from).expect("reads").map(|entry| entry.expect("reads")) {
        let to = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).expect("copies")),
        }
    }
}

fn stranger(number: u8) -> (NodeId, String) {
    (NodeId::from_bytes([number; 16]), format!("x{number}"))
}

#[tokio::test]
async fn an_issuer_on_an_older_state_directory_hears_others_before_it_signs() {
    let mut a = first_node();
    let b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    let name = b.identity.name().to_string();
    a.authority.add_issuer(b.identity.node(), name, Vec::new()).await.expect("adds");
    b.agrees_with(&a).await;
    let backup = b.backup();
    let (node, name) = stranger(7);
    b.authority.evict(node, name).await.expect("evicts");
    a.agrees_with(&b).await;
    let b = b.restored(backup).await;
    // At once: it does not know of the number it has used.
    let (node, name) = stranger(8);
    b.authority.evict(node, name).await.expect("evicts");
    a.agrees_with(&b).await;
    let issuers = a.authority.issuers().await;
    assert!(issuers.iter().all(|issuer| !issuer.conflicted), "{issuers:?}");
    assert_eq!(a.authority.known().evicted.len(), 2);
}

#[tokio::test]
async fn roots_are_added_and_retired_after_others_were_heard() {
    let mut a = first_node();
    let b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    let pass = || zeroize::Zeroizing::new("correct horse".to_owned());
    let pem = a.authority.export_root(pass()).await.expect("exports");
    let [old] = b.authority.import_root(pem, pass()).await.expect("imports")[..] else { panic!("one root") };
    let backup = b.backup();
    let (node, name) = stranger(7);
    b.authority.evict(node, name).await.expect("evicts");
    a.agrees_with(&b).await;
    let b = b.restored(backup).await;
    let new = b.authority.add_root().await.expect("adds");
    a.agrees_with(&b).await;
    let backup = b.backup();
    let (node, name) = stranger(8);
    b.authority.evict(node, name).await.expect("evicts");
    a.agrees_with(&b).await;
    let b = b.restored(backup).await;
    b.authority.retire_root(old, Vec::new(), true).await.expect("retires");
    a.agrees_with(&b).await;
    let roots: Vec<_> =
        a.authority.roots().await.expect("lists").iter().map(|root| (root.id, root.retired)).collect();
    assert_eq!(roots, [(old, true), (new, false)]);
    assert_eq!(a.authority.known().evicted.len(), 2);
}

#[tokio::test]
async fn an_order_where_nobody_answers_is_carried_out_after_a_while() {
    let mut a = first_node();
    let b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    let name = b.identity.name().to_string();
    a.authority.add_issuer(b.identity.node(), name, Vec::new()).await.expect("adds");
    b.agrees_with(&a).await;
    assert_eq!(a.stage.stop(SOON).await, 0);
    let backup = b.backup();
    let b = b.restored(backup).await;
    let (node, name) = stranger(7);
    let evict = b.authority.evict(node, name);
    timeout(SOON, evict).await.expect("in time").expect("evicts");
    assert_eq!(b.authority.known().evicted.len(), 1);
}
