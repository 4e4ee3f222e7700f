//! The door of an issuer with real connections: who gets a seat, who must come again, who must wait.

use std::net::Ipv4Addr;

use gossamer_wire::limits::{MAX_JOINING, MAX_JOINING_PER_SOURCE};
use quinn::{Connection, Endpoint};

use super::raw::{Raw, begin, close_code};
use super::*;

/// Close codes of the door.
const TOO_MANY_TRIES: u32 = 8;
const NO_SEAT: u32 = 9;
/// Seats that one source may take before most are taken.
const OF_ONE: usize = MAX_JOINING - 4 * MAX_JOINING_PER_SOURCE;

/// Connects to the door from an address of this host and says nothing. Who lets go of the endpoint lets go of the seat.
async fn knock(raw: &Raw, to: SocketAddr, last: u8) -> (Connection, Endpoint) {
    let mut tls = raw.tls();
    tls.alpn_protocols = vec![gossamer_wire::join::ALPN.to_vec()];
    let endpoint = Endpoint::client((Ipv4Addr::new(127, 4, 0, last), 0).into()).expect("binds");
    let dial = begin(&endpoint, to, tls);
    (timeout(SOON, dial).await.expect("in time").expect("connects"), endpoint)
}

/// Returns the code with which a connection ended, if it has.
async fn ended(connection: &Connection) -> Option<u32> {
    timeout(Duration::from_millis(200), close_code(connection)).await.ok()
}

#[tokio::test]
async fn one_source_that_says_nothing_keeps_out_nobody_else() {
    let a = first_node();
    let (raw, token) = (Raw::of(&a, "vm-b").await, a.token().await);
    let mut silent = Vec::new();
    for _ in 0..OF_ONE {
        silent.push(knock(&raw, a.address, 1).await);
    }
    let (more, _endpoint) = knock(&raw, a.address, 1).await;
    assert_eq!(ended(&more).await, Some(NO_SEAT), "the source has its share");
    assert!(silent.iter().all(|(connection, _)| connection.close_reason().is_none()));
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("c")).expect("opens");
    join(&store, &token, &request("vm-c")).await.expect("a joiner from elsewhere");
}

#[tokio::test]
async fn when_all_seats_are_taken_the_one_that_is_silent_for_longest_makes_room() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut silent = Vec::new();
    for number in 0..MAX_JOINING {
        silent.push(knock(&raw, a.address, 1 + (number / MAX_JOINING_PER_SOURCE) as u8).await);
    }
    let (late, _endpoint) = knock(&raw, a.address, 200).await;
    assert_eq!(ended(&silent[0].0).await, Some(NO_SEAT));
    assert_eq!(ended(&late).await, None);
    assert!(silent[1..].iter().all(|(connection, _)| connection.close_reason().is_none()));
    assert_eq!(a.metrics.snapshot()["gossamer_joins_total{outcome=\"made_room\"}"], 1);
}

#[tokio::test]
async fn a_try_in_vain_counts_before_it_is_answered() {
    let a = first_node();
    let (raw, token) = (Raw::of(&a, "vm-z").await, a.token().await);
    a.issuer.revoke(token.grant().id).await.expect("revokes");
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("b")).expect("opens");
    // Each at once after the answer to the one before.
    for _ in 0..5 {
        let refused = join(&store, &token, &request("vm-b")).await.expect_err("revoked");
        assert!(matches!(refused, JoinError::Refused(Refusal::Revoked)), "{refused}");
    }
    let refused = join(&store, &a.token().await, &request("vm-b")).await.expect_err("it must wait");
    assert!(refused.to_string().contains("too many tries"), "{refused}");
    // Others need not.
    let (other, _endpoint) = knock(&raw, a.address, 9).await;
    assert_eq!(ended(&other).await, None);
}

#[tokio::test]
async fn who_says_nothing_five_times_must_wait() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(knock(&raw, a.address, 1).await);
    }
    for (connection, _) in &silent {
        assert_eq!(close_code(connection).await, 0, "hung up on");
    }
    let (sixth, _endpoint) = knock(&raw, a.address, 1).await;
    assert_eq!(ended(&sixth).await, Some(TOO_MANY_TRIES));
}
