//! Addresses of nodes with real connections: who answers where somebody else was meant, and where no one does.

use gossamer_wire::token::Grant;

use super::super::Tried;
use super::*;
use crate::clock;
use crate::identity::{JoinError, Shown};

const WRONG: &str = "gossamer_dial_attempts_failed_total{reason=\"wrong_identity\"}";

fn silent() -> std::net::UdpSocket {
    std::net::UdpSocket::bind("127.0.0.1:0").expect("binds")
}

#[tokio::test]
async fn another_member_at_an_address_costs_one_check_and_then_rests() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    // Both run; a third node is said to be where the second one is, and then where it is.
    let (c, dir) = a.member("vm-c").await;
    let node = c.node();
    a.peers.learn(node, vec![b.address], Source::Card);
    let counted = async {
        while a.metrics.snapshot().get(WRONG).copied().unwrap_or_default() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, counted).await.expect("a check that fails");
    // The first pauses of a dial book are shorter than this.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(a.metrics.snapshot()[WRONG], 1, "it is not asked again soon");
    let c = start_node(c, dir);
    a.peers.learn(node, vec![b.address, c.address], Source::Card);
    a.connected_to(&c.identity).await;
    assert_eq!(a.metrics.snapshot()[WRONG], 1);
    assert!(a.peers.open_flow(b.identity.node()).await.is_ok(), "who was taken for it is as before");
    assert!(timeout(SOON, b.flows.recv()).await.expect("in time").is_some());
}

#[tokio::test]
async fn a_silent_address_does_not_hold_up_the_next_one() {
    let mut a = first_node();
    let (b, dir) = a.member("vm-b").await;
    let hole = silent();
    let b = start_node(Identity { seeds: Vec::new(), ..b }, dir);
    let began = clock::now().mono;
    a.peers.learn(b.identity.node(), vec![hole.local_addr().expect("bound"), b.address], Source::StoredCard);
    a.connected_to(&b.identity).await;
    let took = clock::now().mono - began;
    assert!(took < gossamer_wire::limits::HANDSHAKE_TIMEOUT, "it took {took:?}");
}

#[tokio::test]
async fn the_word_of_a_peer_of_this_machine_is_no_address_for_others() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    b.connected_to(&a.identity).await;
    let c = a.join("vm-c").await;
    a.connected_to(&c.identity).await;
    assert!(a.peers.seen().borrow().is_empty(), "two see it, on loopback");
    let refused = a.metrics.snapshot().into_keys().any(|name| name.contains("seen_addresses_refused"));
    assert!(!refused, "and they are right");
}

/// Returns a token of this node with other addresses.
async fn token_at(issuer: &Node, addresses: Vec<SocketAddr>) -> Token {
    let addresses = addresses.into_iter().map(gossamer_wire::Address::Port).collect();
    let asked = TokenRequest { addresses, ..token_request() };
    issuer.issuer.create_token(asked).await.expect("mints").token
}

#[tokio::test]
async fn a_join_in_vain_names_each_address_and_how_it_failed() {
    let (a, stranger) = (first_node(), first_node());
    let hole = silent();
    let closed = silent().local_addr().expect("bound");
    let (deaf, other) = (hole.local_addr().expect("bound"), stranger.address);
    let token = token_at(&a, vec![deaf, closed, other]).await;
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    let error = join(&store, &token, &request("vm-b")).await.expect_err("nobody is there");
    let JoinError::Unreachable { tried, shown } = &error else { panic!("{error}") };
    let mut found: Vec<_> =
        tried.iter().map(|Tried { way, outcome }| (way.to_string(), outcome.word())).collect();
    found.sort_unstable();
    let mut expected = vec![
        (format!("udp {deaf}"), "no_answer"),
        (format!("tcp {deaf}"), "refused"),
        (format!("udp {closed}"), "refused"),
        (format!("tcp {closed}"), "refused"),
        (format!("udp {other}"), "wrong_identity"),
        // It hangs up on who asks for another node, without a word.
        (format!("tcp {other}"), "broken"),
    ];
    expected.sort_unstable();
    assert_eq!((found, *shown), (expected, Shown::Never));
    assert!(error.to_string().contains("was shown to nobody and is unused"), "{error}");
    // It is: the same one admits where the issuer is.
    let Grant { id, .. } = token.grant();
    let again = a.issuer.list().await.expect("lists").into_iter().find(|info| info.id == *id);
    assert!(again.expect("listed").used_by.is_empty());
}

#[tokio::test]
async fn a_join_goes_past_strangers_and_silence_to_the_issuer() {
    let (a, stranger) = (first_node(), first_node());
    let hole = silent();
    let token = token_at(&a, vec![stranger.address, hole.local_addr().expect("bound"), a.address]).await;
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    let began = clock::now().mono;
    join(&store, &token, &request("vm-b")).await.expect("joins");
    let took = clock::now().mono - began;
    assert!(took < Duration::from_secs(4), "it took {took:?}");
    assert!(store.read("token-shown").expect("reads").is_none(), "that is over");
}

#[tokio::test]
async fn a_token_that_an_issuer_has_heard_is_not_called_unused() {
    let a = first_node();
    let token = token_at(&a, vec![a.address]).await;
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    store.write("token-shown", token.grant().id.to_string().as_bytes()).expect("writes");
    let closed = silent().local_addr().expect("bound");
    let grant = Grant { addresses: vec![closed], ..token.grant().clone() };
    let moved = Token::build(grant, |_| [0; 64]).expect("builds");
    let error = join(&store, &moved, &request("vm-b")).await.expect_err("nobody is there");
    assert!(matches!(&error, JoinError::Unreachable { shown: Shown::Before, .. }), "{error}");
    assert!(!error.to_string().contains("is unused"), "{error}");
    let other = token_at(&a, vec![closed]).await;
    let error = join(&store, &other, &request("vm-b")).await.expect_err("nobody is there");
    assert!(matches!(&error, JoinError::Unreachable { shown: Shown::Never, .. }), "another token: {error}");
}

#[tokio::test]
async fn addresses_of_the_deny_list_in_a_token_are_not_dialled() {
    let a = first_node();
    let refused = a.issuer.create_token(TokenRequest {
        addresses: vec!["169.254.169.254:80".parse().expect("address")],
        ..token_request()
    });
    let why = refused.await.expect_err("refused").to_string();
    assert!(
        why.contains("169.254.169.254:80 cannot be in a token: it is a cloud's metadata service"),
        "{why}"
    );
    let token = a.token().await;
    let grant =
        Grant { addresses: vec!["224.0.0.1:4677".parse().expect("address")], ..token.grant().clone() };
    let forged = Token::build(grant, |_| [0; 64]).expect("builds");
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    let error = join(&store, &forged, &request("vm-b")).await.expect_err("nobody is there");
    assert!(
        error.to_string().contains("udp 224.0.0.1:4677 (not tried: it is a multicast address)"),
        "{error}"
    );
}
