//! Leases, ages, restarts from disk.

use super::*;

#[test]
fn r13_a_lease_lapses_without_a_newer_head() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    net.cut(0, 1);
    net.nodes[1].changed.clear();
    net.pass(LEASE - SECOND);
    assert_eq!(net.usable(1, "orders"), [0]);
    net.pass(SECOND * 2);
    assert_eq!(states(&net, 1, "orders"), [InstanceState::LeaseOver]);
    assert!(net.nodes[1].changed.contains(&name("orders")));
    net.link(0, 1);
    net.run();
    assert_eq!(net.usable(1, "orders"), [0]);
}

#[test]
fn heads_are_refreshed_and_leases_hold_without_any_change() {
    let mut net = Net::mesh(&["west"; 3]);
    net.cut(0, 2);
    net.publish(0, &["orders"]);
    net.run();
    net.pass(HEAD_REFRESH * 8);
    assert_eq!(net.usable(1, "orders"), [0]);
    assert_eq!(net.usable(2, "orders"), [0], "also over a bridge");
}

#[test]
fn r13_a_head_that_was_lost_is_asked_for() {
    let mut net = Net::new(&["west"; 3]);
    net.loses_kind = Some(Kind::Head);
    net.publish(0, &["orders"]);
    net.link(0, 1);
    net.link(1, 2);
    net.handle(2, Input::Member { node: net.id(0), state: MemberLiveness::Alive });
    net.pass(SECOND * 5);
    assert!(net.held_by(2, 0, Kind::Records, 0).is_some(), "the record came without the head");
    assert_eq!((net.usable(1, "orders"), net.usable(2, "orders")), (vec![], vec![]));
    net.loses_kind = None;
    net.pass(SECOND * 6);
    assert_eq!((net.usable(1, "orders"), net.usable(2, "orders")), (vec![0], vec![0]));
}

#[test]
fn r18_a_head_of_a_later_version_is_not_asked_for_again_and_again() {
    let mut net = Net::mesh(&["west"; 3]);
    // Members still: only what they say themselves does not come.
    net.cut(0, 1);
    net.cut(0, 2);
    let later = net.forge_version(0, 2, Kind::Head, 0, (1, 99), b"a lease in other words");
    (1..3).for_each(|at| net.give(0, at, 0, later.bytes()));
    assert_eq!((net.counters(1).unread, net.counters(2).unread), (1, 1));
    let asked = net.sent("want");
    net.pass(SECOND * 4_000);
    assert_eq!(net.sent("want"), asked, "its lease is over here, and no copy of it is better");
}

#[test]
fn r13_a_head_without_a_lease_is_refused_and_one_with_a_short_lease_asked_for_ever_more_rarely() {
    for (lease_seconds, refused) in [(0, 1), (9, 0)] {
        let mut net = Net::mesh(&["west"; 3]);
        net.cut(0, 1);
        net.cut(0, 2);
        let head = Head { n: 0, lease_seconds, statement_digest: [0; 16] };
        let advert = net.forge(0, Kind::Head, 0, (1, 99), &head.encode().expect("fits"));
        net.give(0, 1, 0, advert.bytes());
        assert_eq!(net.counters(1).refused.get(&Refusal::Content).copied().unwrap_or(0), refused);
        let owner = net.id(0);
        let is_named = |event: &CatalogEvent| matches!(event, CatalogEvent::Refused { owner: Some(named), .. } if *named == owner);
        assert_eq!(net.nodes[1].events.iter().any(is_named), refused > 0);
        net.pass(LEASE + SECOND * 600);
        let asked = net.sent("want");
        net.pass(SECOND * 1_200);
        let more = net.sent("want") - asked;
        assert!((20..=60).contains(&more), "{more} questions of two nodes in 20 minutes");
    }
}

#[test]
fn r13_the_same_head_again_does_not_restart_a_lease() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    let head = net.held_by(1, 0, Kind::Head, 0).expect("held");
    net.cut(0, 1);
    net.jump(LEASE / 2);
    net.give(0, 1, 0, &head.bytes);
    net.jump(LEASE / 2);
    assert_eq!(states(&net, 1, "orders"), [InstanceState::LeaseOver]);
}

#[test]
fn r13_a_head_at_second_hand_gives_what_is_left_of_its_lease() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.run();
    let all = net.nodes[0].catalog.export(net.now);
    let mut late = Net::new(&["west"]);
    late.authority = net.authority;
    late.nodes.clear();
    let key = NodeKey::new();
    let leaf = late.authority.leaf("west", "late", &key);
    late.add(key, "west", leaf);
    let aged = |copy: AdvertCopy| AdvertCopy { age: 3_000, ..copy };
    let from = net.nodes[1].node;
    let copies = all.into_iter().map(aged).collect();
    late.nodes[0]
        .catalog
        .handle(Input::Frame { from, frame: Frame::Adverts { copies, forward: vec![] } }, late.now);
    let view = late.nodes[0].catalog.node(net.nodes[0].node, late.now).expect("known");
    assert_eq!((view.lease_left, view.age), (Duration::from_secs(600), Duration::from_secs(3_000)));
}

#[test]
fn a_down_node_takes_its_instances_with_it_and_back() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.publish(1, &["orders"]);
    net.run();
    let node = net.id(0);
    let mut member = |state| {
        net.nodes[2].changed.clear();
        net.handle(2, Input::Member { node, state });
        (net.usable(2, "orders"), !net.nodes[2].changed.is_empty())
    };
    assert_eq!(member(MemberLiveness::Down), (vec![1], true));
    assert_eq!(member(MemberLiveness::Down), (vec![1], false));
    let (usable, has_changed) = member(MemberLiveness::Suspect);
    assert!(usable.contains(&0) && has_changed);
    assert!(!member(MemberLiveness::Alive).1, "a suspect is used as well");
    assert_eq!(member(MemberLiveness::Left), (vec![1], true));
    assert_eq!(net.usable(0, "orders").len(), 2, "a node is never down for itself");
}

#[test]
fn an_isolated_start_shows_names_stale_until_a_peer_is_back() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.publish(1, &["web"]);
    net.run();
    net.jump(LEASE / 2);
    net.part(0, 1);
    net.restart(1, true);
    let view = net.view(1, "orders").expect("known from disk");
    assert_eq!((view.instances[0].state, view.instances[0].stale), (InstanceState::NodeDown, true));
    let node = net.nodes[1].catalog.node(net.id(0), net.now).expect("known");
    assert_eq!(node.lease_left, LEASE);
    assert_eq!(net.usable(1, "web"), [1], "own records are not stale");
    net.link(0, 1);
    net.run();
    assert_eq!(net.usable(1, "orders"), [0]);
    assert!(!net.view(1, "orders").expect("known").instances[0].stale);
}

#[test]
fn damaged_state_on_disk_is_left_out() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    let mut copies = net.nodes[1].catalog.export(net.now);
    for copy in &mut copies {
        let mut bytes = copy.bytes.to_vec();
        bytes[60] ^= 1;
        copy.bytes = bytes.into();
    }
    copies.push(AdvertCopy { age: 0, bytes: b"junk".to_vec().into() });
    let Sim { config, signer, .. } = &net.nodes[1];
    let catalog = net.start(config, signer, 2, copies, net.authority.bundle());
    assert_eq!(catalog.counters().adverts, 0);
}

#[test]
fn r14_a_silent_node_is_forgotten_after_a_day_and_nobody_brings_it_back() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.run();
    let (at_1, all) = (net.id(1), net.nodes[1].catalog.export(net.now));
    net.part(0, 1);
    net.part(0, 2);
    net.jump(OFFER_UNTIL - SECOND * 5);
    // Node 2 heard it a little later than node 1, so it forgets later.
    let head = net.held_by(1, 0, Kind::Head, 0).expect("held");
    assert!(head.age >= 82_700);
    net.pass(SECOND * 10);
    let quiet = (net.sent("want"), net.sent("adverts"));
    net.cut(1, 2);
    net.jump(FORGET_AFTER - OFFER_UNTIL);
    for at in 1..3 {
        assert_eq!(net.view(at, "orders"), None);
        assert!(net.nodes[at].events.contains(&CatalogEvent::Forgotten { node: net.id(0) }));
    }
    net.link(1, 2);
    net.pass(Duration::from_secs(30));
    assert_eq!(net.counters(1).nodes, 2);
    assert!(net.sent("want") <= quiet.0 + 4);
    // A peer whose clock stood still offers what all have forgotten, too old by its own word.
    let old = all.into_iter().map(|copy| AdvertCopy { age: 82_900, ..copy }).collect();
    net.handle(2, Input::Frame { from: at_1, frame: Frame::Adverts { copies: old, forward: vec![] } });
    assert_eq!(net.view(2, "orders"), None);
    assert!(net.counters(2).refused.contains_key(&Refusal::TooOld));
    // The node itself is welcome, also in its old epoch.
    net.link(0, 1);
    net.run();
    assert_eq!(net.usable(1, "orders"), [0]);
}

#[test]
fn r14_an_older_epoch_of_a_forgotten_node_is_not_taken() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    let old = net.nodes[1].catalog.export(net.now);
    net.restart(0, true);
    net.run();
    net.part(0, 1);
    net.jump(FORGET_AFTER);
    assert_eq!(net.counters(1).nodes, 1);
    let from = net.id(0);
    net.handle(1, Input::Frame { from, frame: Frame::Adverts { copies: old, forward: vec![] } });
    assert_eq!(net.counters(1).nodes, 1);
}

#[test]
fn an_ephemeral_node_has_short_leases_and_is_forgotten_soon() {
    let mut net = Net::mesh(&["west"]);
    let key = NodeKey::new();
    let claims = Claims { ephemeral_seconds: 600, ..Claims::default() };
    let leaf = claimed_leaf(&net.authority, "job", &claims, &key);
    let job = net.add(key, "west", leaf);
    net.publish(job, &["work"]);
    net.link(0, job);
    net.pass(Duration::from_secs(1_200));
    assert_eq!(net.usable(0, "work"), [job], "two-minute heads keep it");
    net.part(0, job);
    net.pass(Duration::from_secs(601));
    assert_eq!((net.view(0, "work"), net.counters(0).nodes), (None, 1));
}

#[test]
fn records_of_an_ended_certificate_are_not_served_until_it_is_renewed() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    // The leaf ends a day after the start; five minutes are forgiven.
    for _ in 0..25 {
        net.jump(Duration::from_secs(3_460));
    }
    assert!(net.usable(1, "orders") == [0] && net.now.wall > WALL + 86_400);
    net.nodes[1].changed.clear();
    net.jump(Duration::from_secs(300));
    assert_eq!(net.view(1, "orders"), None);
    assert!(net.nodes[1].changed.contains(&name("orders")));
    assert_eq!(net.usable(0, "orders"), [0], "the node still serves itself");
    let mut params = leaf_params(net.authority.mesh, "west", "n0");
    params.not_after += Duration::from_secs(86_400);
    let leaf = net.authority.issue(params, &net.nodes[0].signer.0.pair);
    let card = CardContent { leaf, ..net.nodes[0].card.clone() };
    net.handle(0, Input::Card(card));
    net.run();
    assert_eq!(net.usable(1, "orders"), [0]);
}

pub(super) fn claimed_leaf(authority: &Authority, node: &str, claims: &Claims, key: &NodeKey) -> Vec<u8> {
    let mut params = leaf_params(authority.mesh, "west", node);
    let content = claims.encode().expect("fits");
    params.custom_extensions = vec![CustomExtension::from_oid_content(CLAIMS_OID, content)];
    authority.issue(params, &key.pair)
}
