//! What is left of nodes that the catalog has dropped.

use super::*;
use crate::transport::Way;

#[tokio::test]
async fn of_a_node_whose_card_is_dropped_no_relay_and_no_lane_address_is_kept() {
    let a = first_node();
    let (gone, relay) = (NodeId::from_bytes([7; 16]), NodeId::from_bytes([8; 16]));
    let lane = "tls://127.0.0.1:9".parse().expect("a lane address");
    a.peers.learn_lanes(gone, vec![lane]);
    a.peers.learn_relays(gone, vec![relay]);
    let ways = async || {
        let tried = a.peers.ping(gone, Vec::new()).await.tried;
        tried.into_iter().map(|(way, _)| matches!(way, Way::Relay(_))).collect::<Vec<_>>()
    };
    assert_eq!(ways().await, [false, true], "a lane and a relay");
    a.peers.forget(gone);
    assert_eq!(ways().await, [false; 0]);
}
