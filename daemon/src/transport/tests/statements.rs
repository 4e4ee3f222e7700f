//! Statements between real endpoints: who hears them when, and what ends with them.

use super::*;
use crate::authority::{AuthorityError, Known};

impl Node {
    /// Waits until this node knows the same statements as another.
    pub(super) async fn agrees_with(&self, other: &Self) {
        let wait = async {
            while self.known() != other.known() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, wait).await.expect("the same statements");
    }

    fn known(&self) -> Arc<Known> {
        self.authority.known()
    }

    fn name(&self) -> String {
        self.identity.name().to_string()
    }

    async fn evict(&self, other: &Self) {
        self.authority.evict(other.identity.node(), other.name()).await.expect("evicts");
    }

    async fn has_no_link_to(&self, other: &Self) {
        let wait = async {
            while self.peers.has_dialled(other.identity.node()).is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, wait).await.expect("closed");
    }
}

#[tokio::test]
async fn an_eviction_reaches_peers_ends_flows_and_shuts_the_door() {
    let mut a = first_node();
    let (mut b, mut c) = (a.join("vm-b").await, a.join("vm-c").await);
    a.connected_to(&b.identity).await;
    a.connected_to(&c.identity).await;
    b.peers.learn(c.identity.node(), vec![c.address], Source::Hint);
    b.connected_to(&c.identity).await;
    c.connected_to(&b.identity).await;
    let mut flow = c.peers.open_flow(b.identity.node()).await.expect("opens");
    flow.send.write_all(b"x").await.expect("writes");
    let _inbound = timeout(SOON, b.flows.recv()).await.expect("in time");

    let since = std::time::Instant::now();
    a.evict(&c).await;
    let ended = timeout(SOON, flow.recv.read_to_end(16)).await.expect("ends");
    assert!(
        ended.is_err() && since.elapsed() < Duration::from_secs(1),
        "{ended:?} after {:?}",
        since.elapsed()
    );
    b.agrees_with(&a).await;
    a.has_no_link_to(&c).await;
    b.has_no_link_to(&c).await;

    // It knocks again: the handshake refuses it.
    c.peers.learn(b.identity.node(), vec![b.address], Source::Hint);
    assert_eq!(c.peers.open_flow(b.identity.node()).await.expect_err("out"), OpenError::Unreachable);
    assert_eq!(b.peers.has_dialled(c.identity.node()), None);
    // So does the issuer, whether it renews or shows another token.
    let store = Store::open(&c.dir.path().join("again")).expect("opens");
    store.write("node.key", c.identity.key.pkcs8()).expect("writes");
    let refused = join(&store, &a.token().await, &request("vm-c")).await.expect_err("evicted");
    assert!(matches!(refused, JoinError::Refused(Refusal::Evicted)), "{refused}");
    drop(c.flows.try_recv());
}

#[tokio::test]
async fn a_node_that_was_away_learns_what_it_missed_before_anything_else() {
    let a = first_node();
    let (identity, dir) = a.member("vm-b").await;
    let stranger = NodeId::from_bytes([7; 16]);
    a.authority.evict(stranger, "gone".to_owned()).await.expect("evicts");
    let mut b = start_node(identity, dir);
    b.connected_to(&a.identity).await;
    assert_eq!(b.known(), a.known(), "known when the connection counts");
    let stored = std::fs::read_to_string(b.dir.path().join("state/statements.json")).expect("on disk");
    let all = b.known().statements.clone();
    assert!(all.len() == 2 && all.iter().all(|bytes| stored.contains(&data_encoding::BASE64.encode(bytes))));
}

#[tokio::test]
async fn a_second_issuer_admits_and_renews_without_the_first() {
    let lifetimes = Lifetimes { leaf: Some(Duration::from_secs(5)), issuer: Duration::from_secs(60) };
    let mut a = first_with(lifetimes);
    let (identity, dir) = a.member("vm-b").await;
    let b = start_with(identity, dir, lifetimes);
    a.connected_to(&b.identity).await;
    b.agrees_with(&a).await;
    let refused = b.issuer.create_token(token_request()).await.expect_err("no issuer yet");
    assert!(refused.to_string().contains("vm-a"), "{refused}");
    a.authority.add_issuer(b.identity.node(), b.name(), Vec::new()).await.expect("adds");
    b.agrees_with(&a).await;
    assert_eq!(a.stage.stop(SOON).await, 0);

    let c = b.join("vm-c").await;
    assert_eq!(
        c.live.load().issued_by,
        b.live.load().issuer.as_ref().map(|key| key.certificate().to_vec().into())
    );
    let ends = |node: &Node| node.live.load().leaf.not_after;
    let (of_b, of_c) = (ends(&b), ends(&c));
    let renewed = async {
        while ends(&b) <= of_b || ends(&c) <= of_c {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, renewed).await.expect("both renew, one of them at the other");
}

#[tokio::test]
async fn a_removed_issuer_admits_nobody_and_its_nodes_stay() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    let last = a.authority.remove_issuer(a.identity.node(), a.name(), false).await.expect_err("the last one");
    assert!(matches!(last, AuthorityError::LastIssuer(_)), "{last}");
    a.authority
        .add_issuer(b.identity.node(), b.name(), vec!["east".parse().expect("name")])
        .await
        .expect("adds");
    b.agrees_with(&a).await;
    let west = TokenRequest { group: Some("west".parse().expect("name")), ..token_request() };
    let refused = b.issuer.create_token(west).await.expect_err("outside its scope");
    assert!(refused.to_string().contains("east only"), "{refused}");
    b.issuer.create_token(token_request()).await.expect("inside its scope");

    a.authority.remove_issuer(b.identity.node(), b.name(), false).await.expect("removes");
    b.agrees_with(&a).await;
    assert!(b.issuer.create_token(token_request()).await.is_err());
    assert!(b.live.load().issuer.is_none());
    let mut flow = a.peers.open_flow(b.identity.node()).await.expect("still a member");
    flow.send.write_all(b"x").await.expect("writes");
    assert!(timeout(SOON, b.flows.recv()).await.expect("in time").is_some());
}

#[tokio::test]
async fn only_the_holder_of_the_root_key_and_issuers_give_orders() {
    let mut a = first_node();
    let b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    b.agrees_with(&a).await;
    let (node, name) = (a.identity.node(), a.name());
    let refused =
        b.authority.evict(NodeId::from_bytes([7; 16]), "x".to_owned()).await.expect_err("no issuer");
    assert!(refused.to_string().contains("vm-a"), "{refused}");
    let refused = b.authority.add_issuer(b.identity.node(), b.name(), Vec::new()).await.expect_err("no root");
    assert!(matches!(refused, AuthorityError::NoRoot(_)), "{refused}");
    let refused = a.authority.evict(node, name.clone()).await.expect_err("itself");
    assert!(refused.to_string().contains("gossamer leave"), "{refused}");
    // Its own certificates would be outside of the first scope, those it has made outside of the second.
    for (group, why) in [("east", "--group west"), ("west", "remove the issuer and add it again")] {
        let groups = vec![group.parse().expect("name")];
        let refused = a.authority.add_issuer(node, name.clone(), groups).await.expect_err(group);
        assert!(refused.to_string().contains(why), "{refused}");
    }
    a.authority.add_issuer(b.identity.node(), b.name(), Vec::new()).await.expect("adds");
    let refused = a.authority.evict(b.identity.node(), b.name()).await.expect_err("holds an issuer's key");
    assert!(refused.to_string().contains("issuer remove vm-b"), "{refused}");
    b.agrees_with(&a).await;
    // An issuer may evict, though not the node of another issuer.
    b.authority.evict(NodeId::from_bytes([7; 16]), "x".to_owned()).await.expect("evicts");
    assert!(matches!(b.authority.evict(node, name).await, Err(AuthorityError::HoldsIssuer(_))));
    a.agrees_with(&b).await;
    assert_eq!(a.authority.issuers().await.iter().map(|issuer| issuer.used).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn a_peer_that_sends_something_else_instead_of_its_statements_is_refused() {
    let a = first_node();
    a.authority.evict(NodeId::from_bytes([7; 16]), "x".to_owned()).await.expect("evicts");
    let raw = raw::Raw::of(&a, "vm-b").await;
    let connection = raw.shake_hands(a.address).await;
    let (mut send, _recv) = connection.open_bi().await.expect("opens");
    let observed = a.address;
    let hello = frame::Hello { purpose: Purpose::Control, nonce: 1, observed, statement_digest: [9; 16] };
    for frame in [Frame::Hello(hello), Frame::Root(1)] {
        send.write_all(&frame.encode().expect("fits")).await.expect("writes");
    }
    assert_eq!(raw::close_code(&connection).await, link::CLOSE_REFUSED);
    assert_eq!(a.peers.connected(), 0);
}
