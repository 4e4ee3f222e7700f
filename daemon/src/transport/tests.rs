//! Real endpoints on loopback: joining, connecting, flows, and who is turned away.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::authority;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::events::EventLog;
use crate::identity::issuer::{self, IssuerHandle, TokenRequest};
use crate::identity::{
    Credentials, Identity, InitRequest, JoinError, JoinRequest, Lifetimes, Live, init, join,
};
use crate::index::IndexWriter;
use crate::store::Store;
use crate::supervise::Stage;
use gossamer_wire::join::Refusal;
use gossamer_wire::token::Token;

mod addresses;
mod canary;
mod circuits;
mod door;
mod first;
mod forgotten;
mod hostile;
mod lanes;
mod led;
mod limits;
mod orders;
mod pool;
mod raw;
mod rotation;
mod statements;
mod twins;

const SOON: Duration = Duration::from_secs(10);

/// A node with everything below membership.
struct Node {
    identity: Arc<Identity>,
    peers: Peers,
    address: SocketAddr,
    membership: mpsc::Receiver<ToMembership>,
    catalog: mpsc::Receiver<ToCatalog>,
    flows: mpsc::Receiver<FlowStream>,
    issuer: IssuerHandle,
    authority: AuthorityHandle,
    live: Live,
    metrics: Arc<Metrics>,
    stage: Stage,
    dir: TempDir,
}

fn start_node(identity: Identity, dir: TempDir) -> Node {
    start_with(identity, dir, Lifetimes::default())
}

/// Starts a node that makes certificates with these lifetimes, on the state directory of its identity.
fn start_with(identity: Identity, dir: TempDir, lifetimes: Lifetimes) -> Node {
    let store = Store::open(&dir.path().join("state")).expect("opens");
    let stage = Stage::default();
    let (membership_in, membership) = mpsc::channel(64);
    let (catalog_in, catalog) = mpsc::channel(64);
    let (flows_in, flows) = mpsc::channel(64);
    let (joiners_in, joiners) = mpsc::channel(8);
    let metrics = Arc::new(Metrics::default());
    let (authority, queue) = AuthorityHandle::new(&identity);
    let live: Live = Arc::new(ArcSwap::from_pointee(Credentials::of(&identity)));
    let trust: Trust = Arc::new(ArcSwap::from_pointee(identity.trust.clone()));
    let parts = Parts {
        udp: Udp::Bind("127.0.0.1:0".parse().expect("address")),
        trust: Trust::clone(&trust),
        live: Live::clone(&live),
        authority: authority.clone(),
        deny: gossamer_core::reach::Deny::default(),
        rules: NameRules::default(),
        reset_key: [7; 64],
        membership: membership_in,
        catalog: catalog_in,
        flows: flows_in,
        joiners: Some(joiners_in),
        clock: Clock::default(),
        entropy: Entropy::System,
        events: EventLog::default(),
        metrics: Arc::clone(&metrics),
    };
    let (peers, address) = start(&stage, &identity, parts).expect("binds");
    let identity = Arc::new(identity);
    let index = IndexWriter::default().reader();
    let parts = issuer::Parts {
        store: store.clone(),
        identity: Arc::clone(&identity),
        live: Live::clone(&live),
        trust: Trust::clone(&trust),
        authority: authority.clone(),
        lifetimes,
        index: index.clone(),
        advertised: watch::channel(vec![address]).1,
        lanes: Vec::new(),
        deny: gossamer_core::reach::Deny::default(),
        joiners,
        metrics: Arc::clone(&metrics),
    };
    let issuer = issuer::start(&stage, parts).expect("starts");
    let (commands, mut told) = mpsc::channel(8);
    stage.spawn_short("catalog", async move { while told.recv().await.is_some() {} });
    let parts = authority::Parts {
        identity: Arc::clone(&identity),
        store,
        trust,
        live: Live::clone(&live),
        lifetimes,
        peers: peers.clone(),
        membership: mpsc::channel(64).0,
        catalog: commands,
        index,
        clock: Clock::default(),
        entropy: Entropy::System,
        events: EventLog::default(),
        metrics: Arc::clone(&metrics),
    };
    authority::start(&stage, queue, parts);
    Node {
        identity,
        peers,
        address,
        membership,
        catalog,
        flows,
        issuer,
        authority,
        live,
        metrics,
        stage,
        dir,
    }
}

fn first_node() -> Node {
    first_with(Lifetimes::default())
}

fn first_with(lifetimes: Lifetimes) -> Node {
    let dir = tempfile::tempdir().expect("scratch");
    let request = InitRequest {
        mesh_name: "test".parse().expect("name"),
        group: "west".parse().expect("name"),
        node: "vm-a".parse().expect("name"),
        zone: None,
        region: None,
        lifetimes,
    };
    let identity = init(&Store::open(&dir.path().join("state")).expect("opens"), &request).expect("makes");
    start_with(identity, dir, lifetimes)
}

fn token_request() -> TokenRequest {
    TokenRequest {
        ttl: Duration::from_secs(60),
        uses: 1,
        group: Some("east".parse().expect("name")),
        node_pattern: None,
        claims: gossamer_wire::token::Claims::default(),
        addresses: Vec::new(),
    }
}

fn request(name: &str) -> JoinRequest {
    JoinRequest { node: name.parse().expect("name"), zone: None, region: None }
}

impl Node {
    async fn token(&self) -> Token {
        self.issuer.create_token(token_request()).await.expect("mints").token
    }

    /// Admits a member that does not run.
    async fn member(&self, name: &str) -> (Identity, TempDir) {
        let dir = tempfile::tempdir().expect("scratch");
        let store = Store::open(&dir.path().join("state")).expect("opens");
        let identity = join(&store, &self.token().await, &request(name)).await.expect("joins");
        (identity, dir)
    }

    async fn join(&self, name: &str) -> Self {
        let (identity, dir) = self.member(name).await;
        start_node(identity, dir)
    }

    async fn connected_to(&mut self, other: &Identity) {
        let wait = async {
            while let Some(message) = self.membership.recv().await {
                if matches!(message, ToMembership::Connected(node) if node == other.node()) {
                    return;
                }
            }
        };
        timeout(SOON, wait).await.expect("a connection");
    }
}

#[tokio::test]
async fn a_token_admits_one_key_however_often_it_asks() {
    let a = first_node();
    let token = a.token().await;
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("b")).expect("opens");
    let b = join(&store, &token, &request("vm-b")).await.expect("joins");
    assert_eq!((b.group().as_str(), b.name().as_str()), ("east", "vm-b"));
    assert_eq!(b.mesh, a.identity.mesh);
    // The same directory without its certificate: a joiner that was cut off after the issuer's answer.
    store.remove(crate::identity::IDENTITY_FILE).expect("removes");
    let again = join(&store, &token, &request("vm-b")).await.expect("joins again");
    assert_eq!(again.node(), b.node());
    let other = Store::open(&dir.path().join("c")).expect("opens");
    let refused = join(&other, &token, &request("vm-c")).await.expect_err("used");
    assert!(matches!(refused, JoinError::Refused(Refusal::Used)), "{refused}");
    let list = a.issuer.list().await.expect("lists");
    assert_eq!(list.iter().map(|token| token.used_by.len()).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn tokens_of_other_meshes_revoked_ones_and_taken_names_are_refused() {
    let (a, foreign) = (first_node(), first_node());
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("b")).expect("opens");
    // The foreign token with an address of ours: the pin does not match, so no token byte is sent.
    let grant = foreign.token().await.grant().clone();
    let redirected = gossamer_wire::token::Grant { addresses: vec![a.address], ..grant };
    let token = Token::build(redirected, |_| [0; 64]).expect("fits");
    let refused = join(&store, &token, &request("vm-b")).await.expect_err("foreign");
    assert!(matches!(refused, JoinError::Unreachable { .. }), "{refused}");

    let token = a.token().await;
    let taken = join(&store, &token, &request("vm-a")).await;
    // The issuer itself is vm-a, but of group west; this token admits to east.
    assert!(taken.is_ok());
    let revoked = a.token().await;
    a.issuer.revoke(revoked.grant().id).await.expect("revokes");
    let other = Store::open(&dir.path().join("c")).expect("opens");
    let refused = join(&other, &revoked, &request("vm-c")).await.expect_err("revoked");
    assert!(matches!(refused, JoinError::Refused(Refusal::Revoked)), "{refused}");
}

#[tokio::test]
async fn members_connect_and_frames_arrive_in_order() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    b.connected_to(&a.identity).await;
    for hash in 0..100 {
        assert!(b.peers.send_frame(a.identity.node(), &Frame::Root(hash)));
    }
    let receive = async {
        let mut seen = Vec::new();
        while seen.len() < 100 {
            if let Some(ToCatalog::Frame { frame: Frame::Root(hash), .. }) = a.catalog.recv().await {
                seen.push(hash);
            }
        }
        seen
    };
    let seen = timeout(SOON, receive).await.expect("frames");
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
    assert!(!a.peers.send_frame(NodeId::from_bytes([9; 16]), &Frame::Root(0)));
}

#[tokio::test]
async fn a_flow_reaches_a_node_that_only_dials() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    // `a` knows no address of `b` but the one it was seen at.
    let mut flow =
        timeout(SOON, a.peers.open_flow(b.identity.node())).await.expect("in time").expect("opens");
    flow.send.write_all(b"hello").await.expect("writes");
    flow.send.finish().expect("finishes");
    let mut inbound = timeout(SOON, b.flows.recv()).await.expect("in time").expect("a flow");
    assert_eq!(inbound.peer.node, a.identity.node());
    assert_eq!(inbound.recv.read_to_end(16).await.expect("reads"), b"hello");
}

#[tokio::test]
async fn a_node_that_is_gone_loses_its_flows_at_once() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    let mut flow = a.peers.open_flow(b.identity.node()).await.expect("opens");
    flow.send.write_all(b"x").await.expect("writes");
    let _inbound = timeout(SOON, b.flows.recv()).await.expect("in time");
    a.peers.gone(b.identity.node(), false);
    let ended = timeout(SOON, flow.recv.read_to_end(16)).await.expect("at once");
    assert!(ended.is_err());
}

#[tokio::test]
async fn nobody_is_reached_where_nobody_is() {
    let a = first_node();
    let stranger = NodeId::from_bytes([9; 16]);
    assert_eq!(a.peers.open_flow(stranger).await.expect_err("nobody"), OpenError::Unreachable);
}

#[tokio::test]
async fn a_member_of_another_mesh_is_turned_away() {
    let mut a = first_node();
    let b = first_node();
    b.peers.learn(a.identity.node(), vec![a.address], Source::Hint);
    let wait = timeout(Duration::from_secs(1), a.membership.recv());
    assert!(wait.await.is_err(), "nothing may arrive");
    assert_eq!(a.peers.connected(), 0);
}

#[tokio::test]
async fn stopping_leaves_no_task() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    b.connected_to(&a.identity).await;
    assert_eq!(b.stage.stop(SOON).await, 0);
    assert_eq!(a.stage.stop(SOON).await, 0);
    drop((a.dir, b.dir));
}

/// Whether the control connection to a node is a lane; `None` when there is none.
fn is_lane(peers: &Peers, node: NodeId) -> Option<bool> {
    peers.links.load().get(&node).map(|link| link.connection.is_lane())
}
