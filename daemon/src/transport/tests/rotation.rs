//! A root is replaced between real endpoints.

use gossamer_core::statements::Member;

use super::*;
use crate::authority::AuthorityError;

impl Node {
    /// Returns the only root that is not `other`.
    async fn root_beside(&self, other: Option<NodeId>) -> NodeId {
        let roots = self.authority.roots().await.expect("lists");
        roots.iter().find(|root| !root.retired && Some(root.id) != other).expect("a root").id
    }

    async fn count_roots(&self) -> usize {
        self.authority.roots().await.expect("lists").iter().filter(|root| !root.retired).count()
    }

    /// Says of this node what its head would say.
    fn as_member(&self) -> Member {
        let leaf = Arc::clone(&self.live.load().leaf);
        Member { node: leaf.node, digest: Some(self.authority.known().digest), issuer: leaf.issuer }
    }
}

async fn join_with(token: &Token, name: &str) -> Result<(Identity, TempDir), JoinError> {
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    join(&store, token, &request(name)).await.map(|identity| (identity, dir))
}

#[tokio::test]
async fn a_root_is_replaced_while_nodes_join_and_flows_last() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    b.agrees_with(&a).await;
    let before = a.token().await;
    let mut flow = a.peers.open_flow(b.identity.node()).await.expect("opens");
    flow.send.write_all(b"x").await.expect("writes");
    let mut inbound = timeout(SOON, b.flows.recv()).await.expect("in time").expect("a flow");

    let old = a.root_beside(None).await;
    let unprepared = a.authority.retire_root(old, vec![], false).await.expect_err("the only one");
    assert!(matches!(unprepared, AuthorityError::OnlyRoot(_)), "{unprepared}");
    let new = a.authority.add_root().await.expect("adds");
    assert_eq!(a.root_beside(Some(old)).await, new);
    assert!(matches!(a.authority.add_root().await, Err(AuthorityError::Rotating(_))));
    b.agrees_with(&a).await;
    assert_eq!((b.live.load().by_other_roots.len(), b.count_roots().await), (1, 2));

    // Tokens of both roots admit while both count.
    let during = a.token().await;
    assert_ne!(during.grant().root_pin, before.grant().root_pin);
    join_with(&before, "vm-c").await.expect("joins by the old root");
    join_with(&during, "vm-d").await.expect("joins by the new root");

    let away = Member { digest: None, ..b.as_member() };
    let refused =
        a.authority.retire_root(old, vec![a.as_member(), away], false).await.expect_err("too early");
    let AuthorityError::Depended { list, .. } = &refused else { panic!("{refused}") };
    assert!(list.len() == 1 && list[0].contains("has not said"), "{refused}");
    let wrong_way = a.authority.retire_root(new, vec![], false).await.expect_err("the later one");
    assert!(matches!(wrong_way, AuthorityError::NotAfter(_)), "{wrong_way}");
    let elsewhere = b.authority.retire_root(old, vec![], false).await.expect_err("no key");
    assert!(matches!(elsewhere, AuthorityError::NoRoot(_)), "{elsewhere}");

    a.authority.retire_root(old, vec![a.as_member(), b.as_member()], false).await.expect("retires");
    b.agrees_with(&a).await;
    assert_eq!(b.count_roots().await, 1);
    assert_eq!(b.root_beside(None).await, new);
    let state = a.dir.path().join("state");
    assert!(state.join("root.key").exists() && !state.join("root.next.key").exists());
    let refused = join_with(&before, "vm-e").await.expect_err("its root counts no more");
    assert!(refused.to_string().contains("revoked"), "{refused}");
    let late = join_with(&a.token().await, "vm-f").await.expect("joins");
    let mut late = start_node(late.0, late.1);
    late.peers.learn(b.identity.node(), vec![b.address], Source::Hint);
    late.connected_to(&b.identity).await;

    // The flow has not noticed.
    flow.send.write_all(b"y").await.expect("writes");
    let mut bytes = [0; 2];
    timeout(SOON, inbound.recv.read_exact(&mut bytes)).await.expect("in time").expect("reads");
    assert_eq!(&bytes, b"xy");
}

#[tokio::test]
async fn a_node_that_was_off_during_a_rotation_comes_back_and_after_a_restart_too() {
    let a = first_node();
    let (identity, dir) = a.member("vm-b").await;
    let old = a.root_beside(None).await;
    a.authority.add_root().await.expect("adds");
    a.authority.retire_root(old, vec![a.as_member()], false).await.expect("retires");
    let mut b = start_node(identity, dir);
    b.connected_to(&a.identity).await;
    b.agrees_with(&a).await;
    // Its own certificate was made below the retired root, and is good below the new one.
    assert_eq!(b.stage.stop(SOON).await, 0);
    let Node { dir, .. } = b;
    let identity = crate::identity::load(&Store::open(&dir.path().join("state")).expect("opens"))
        .expect("loads")
        .expect("there");
    let mut again = start_node(identity, dir);
    again.peers.learn(a.identity.node(), vec![a.address], Source::Hint);
    again.connected_to(&a.identity).await;
}

#[tokio::test]
async fn a_node_whose_certificate_ended_before_a_rotation_renews_after_it() {
    let lifetimes = Lifetimes { leaf: Some(Duration::from_secs(2)), issuer: Duration::from_secs(60) };
    let a = first_with(lifetimes);
    let (identity, dir) = a.member("vm-b").await;
    let ended = async {
        while crate::clock::wall() <= identity.leaf.not_after + identity.leaf.skew {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, ended).await.expect("it lasts two seconds");
    let old = a.root_beside(None).await;
    a.authority.add_root().await.expect("adds");
    a.authority.retire_root(old, vec![a.as_member()], false).await.expect("retires");
    let mut b = start_with(identity, dir, lifetimes);
    b.connected_to(&a.identity).await;
    b.agrees_with(&a).await;
}

#[tokio::test]
async fn root_keys_leave_and_come_back() {
    let a = first_node();
    let refused = a.authority.remove_root(false).await.expect_err("never exported");
    assert!(refused.to_string().contains("root export"), "{refused}");
    let pass = || zeroize::Zeroizing::new("correct horse".to_owned());
    let pem = a.authority.export_root(pass()).await.expect("exports");
    a.authority.remove_root(false).await.expect("removes");
    assert!(!a.live.load().holds_root_key);
    assert!(matches!(a.authority.add_root().await, Err(AuthorityError::NoRoot(_))));
    assert_eq!(a.authority.import_root(pem, pass()).await.expect("imports"), [a.root_beside(None).await]);
    assert!(a.live.load().holds_root_key);
    a.authority.add_root().await.expect("adds");
}
