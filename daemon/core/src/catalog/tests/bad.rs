//! Adverts that are forged, damaged, doubled, early, too many.

use gossamer_wire::advert::SERVICE_ENTRY;

use super::time::claimed_leaf;
use super::*;

#[test]
fn r1_of_a_thousand_adverts_with_one_flipped_bit_none_is_accepted() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.run();
    net.cut(0, 2);
    net.cut(1, 2);
    let now = net.now;
    net.nodes[0].catalog.set_epoch(2, now);
    net.publish(0, &["orders", "web"]);
    let bytes = |net: &Net| {
        net.nodes[2].catalog.export(net.now).into_iter().map(|copy| copy.bytes).collect::<Vec<_>>()
    };
    let (before, accepted) = (bytes(&net), net.counters(2).accepted);
    let mut flipped = 0;
    for kind in [Kind::Card, Kind::Records, Kind::Head] {
        let original = net.held_by(0, 0, kind, 0).expect("own").bytes;
        // Every bit of header and signature, every third of what lies between.
        let is_edge = |byte: usize| byte < 64 || byte + 64 >= original.len();
        for bit in (0..original.len() * 8).filter(|bit| is_edge(bit / 8) || bit % 3 == 0) {
            let mut bytes = original.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            flipped += 1;
            if flipped % 128 == 0 {
                net.pass(SECOND * 4);
            }
            net.give(1, 2, 0, &bytes);
        }
    }
    assert!(flipped > 1_000);
    assert_eq!((bytes(&net), net.counters(2).accepted), (before, accepted));
    let refused = net.counters(2).refused;
    for why in [Refusal::Header, Refusal::Mesh, Refusal::Signature, Refusal::Certificate, Refusal::Content] {
        assert!(refused.contains_key(&why), "{refused:?}");
    }
    let original = net.held_by(0, 0, Kind::Records, 0).expect("own").bytes;
    net.give(1, 2, 0, &original);
    assert_eq!(net.view(2, "web").map(|view| view.instances.len()), Some(1), "unharmed it is taken");
}

#[test]
fn r1_an_advert_signed_by_another_node_is_refused() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.run();
    let body = Fragment::of(&[record("evil", "n0")]).expect("fits").encode().expect("fits");
    let mut forged = net.forge(1, Kind::Records, 0, (1, 99), &body).bytes().to_vec();
    forged[17..33].copy_from_slice(net.id(0).as_bytes());
    net.give(1, 2, 0, &forged);
    // A card with the certificate of another node, signed by its own key, under the victim's id.
    let card = net.held_by(1, 1, Kind::Card, 0).expect("held");
    let mut stolen = card.bytes.to_vec();
    stolen[17..33].copy_from_slice(net.id(0).as_bytes());
    net.give(1, 2, 0, &stolen);
    let counters = net.counters(2);
    assert_eq!(counters.refused, BTreeMap::from([(Refusal::Signature, 1), (Refusal::Certificate, 1)]));
    assert_eq!(net.view(2, "evil"), None);
    assert_eq!(net.usable(2, "orders"), [0]);
    let said =
        net.nodes[2].events.iter().filter(|event| matches!(event, CatalogEvent::Refused { .. })).count();
    assert_eq!(said, 2);
}

#[test]
fn nodes_of_another_mesh_are_refused() {
    let mut net = Net::mesh(&["west"; 2]);
    let other = Net::mesh(&["west"]);
    for copy in other.nodes[0].catalog.export(other.now) {
        net.give(1, 0, 0, &copy.bytes);
    }
    assert_eq!(net.counters(0).refused, BTreeMap::from([(Refusal::Mesh, 3 - 1)]));
}

#[test]
fn r21_records_outside_the_claims_are_not_served_and_counted() {
    let mut net = Net::mesh(&["west"]);
    let key = NodeKey::new();
    let claims = Claims { services: vec!["web-*".to_owned()], ..Claims::default() };
    let leaf = claimed_leaf(&net.authority, "limited", &claims, &key);
    let limited = net.add(key, "west", leaf);
    net.publish(limited, &["web-1", "orders"]);
    net.link(0, limited);
    net.run();
    assert_eq!(net.usable(0, "web-1"), [limited]);
    assert_eq!(net.view(0, "orders"), None);
    assert_eq!(net.counters(0).outside_claims, 1);
}

#[test]
fn r21_fqdns_outside_the_certified_suffixes_are_dropped_and_counted() {
    let mut net = Net::mesh(&["west"]);
    let key = NodeKey::new();
    let claims = Claims { fqdn_suffixes: vec!["corp.example".parse().expect("suffix")], ..Claims::default() };
    let leaf = claimed_leaf(&net.authority, "limited", &claims, &key);
    let limited = net.add(key, "west", leaf);
    let mut greedy = record("web", "limited");
    let names = ["pg.corp.example", "*.debian.org", "corp.example", "login.badcorp.example"];
    greedy.fqdns = names.map(|name| name.parse().expect("FQDN")).into();
    net.handle(limited, Input::Publish(vec![greedy]));
    net.link(0, limited);
    net.run();
    let view = net.view(0, "web").expect("the record is served");
    assert_eq!(view.instances[0].fqdns, ["pg.corp.example".parse().expect("FQDN")]);
    assert_eq!(net.counters(0).outside_suffixes, 3);
    let is_said = |event: &&CatalogEvent| matches!(event, CatalogEvent::FqdnsDropped { count: 3, .. });
    assert_eq!(net.nodes[0].events.iter().filter(is_said).count(), 1);
    // A node does not believe itself more than others do.
    assert_eq!(net.view(limited, "web").expect("own").instances[0].fqdns.len(), 1);
}

#[test]
fn addresses_of_the_deny_list_are_dropped_counted_and_named_and_the_card_counts() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.run();
    let good: SocketAddr = "198.51.100.1:4677".parse().expect("address");
    let bad = ["169.254.169.254:80", "[::ffff:224.0.0.1]:1", "127.240.0.9:53"];
    let mut addresses: Vec<SocketAddr> = bad.iter().map(|text| text.parse().expect("address")).collect();
    addresses.insert(1, good);
    let card = CardContent { addresses, ..net.nodes[0].card.clone() };
    net.handle(0, Input::Card(card.clone()));
    net.run();
    for at in 1..3 {
        let catalog = &net.nodes[at].catalog;
        assert_eq!(catalog.node_addresses(net.id(0)), Some(&[good][..]));
        assert_eq!(net.view(at, "orders").expect("served").instances[0].addresses, [good]);
        let why: Vec<_> = catalog.denied_addresses(net.id(0)).iter().map(|(_, why)| *why).collect();
        assert_eq!(why, [Denied::Metadata, Denied::Multicast, Denied::Pool]);
        assert_eq!(net.counters(at).addresses_denied.values().sum::<u64>(), 3);
        let is_said = |event: &&CatalogEvent| matches!(event, CatalogEvent::AddressesDenied { .. });
        assert_eq!(net.nodes[at].events.iter().filter(is_said).count(), 1);
    }
    // The card itself is held as it is: nobody's hash differs.
    assert_eq!(net.nodes[1].catalog.root_hash(), net.nodes[0].catalog.root_hash());
    net.handle(0, Input::Card(CardContent { addresses: vec![good], ..card }));
    net.run();
    assert!(net.nodes[1].catalog.denied_addresses(net.id(0)).is_empty());
}

#[test]
fn r17_a_fragment_that_does_not_decode_blocks_nothing_and_is_fetched_once() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.run();
    net.part(0, 1);
    net.part(0, 2);
    let nasty = Fragment { entries: vec![(SERVICE_ENTRY, vec![255; 40])] }.encode().expect("fits");
    let nasty = net.forge(0, Kind::Records, 1, (1, 99), &nasty);
    net.give(0, 1, 0, nasty.bytes());
    assert_eq!(net.counters(1).quarantined, 1);
    net.pass(Duration::from_secs(30));
    assert_eq!(net.counters(2).quarantined, 1, "it travels on");
    for at in 1..3 {
        assert_eq!(net.view(at, "orders").expect("known").instances.len(), 1);
        let said =
            net.nodes[at].events.iter().filter(|event| matches!(event, CatalogEvent::Quarantined { .. }));
        assert_eq!(said.count(), 1);
    }
    let before = (net.sent("want"), net.sent("ids"));
    net.pass(Duration::from_secs(600));
    assert_eq!((net.sent("want"), net.sent("ids")), before);
    let node = net.nodes[2].catalog.node(net.id(0), net.now).expect("known");
    assert_eq!((node.quarantined, node.records), (1, 1));
}

#[test]
fn r18_entries_of_unknown_kinds_are_carried_and_not_served() {
    let mut net = Net::mesh(&["west"; 2]);
    let known = record("orders", "n0").encode().expect("fits");
    let body =
        Fragment { entries: vec![(77, vec![1, 2, 3]), (SERVICE_ENTRY, known)] }.encode().expect("fits");
    let advert = net.forge(0, Kind::Records, 5, (1, 99), &body);
    net.give(0, 1, 0, advert.bytes());
    assert_eq!(net.usable(1, "orders"), [0]);
    assert_eq!(net.held_by(1, 0, Kind::Records, 5).expect("held").bytes, advert.shared_bytes());
}

#[test]
fn r18_what_a_later_version_brings_travels_byte_for_byte_and_is_not_served() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.run();
    // Its owner would go above what it has not signed itself.
    net.part(0, 1);
    net.part(0, 2);
    let before = (net.counters(2).quarantined, net.counters(2).held);
    let later = Kind::try_from(9).expect("a later kind");
    let kind = net.forge(0, later, 3, (1, 99), b"nobody here reads this");
    let card = net.held_by(0, 0, Kind::Card, 0).expect("own");
    let leaf_and_more = [Advert::parse(&card.bytes).expect("own").body(), &b"more"[..]].concat();
    let newer = [
        net.forge_version(0, 2, Kind::Records, 1, (1, 99), b"other bytes"),
        net.forge_version(0, 2, Kind::Card, 0, (1, 98), &leaf_and_more),
    ];
    let all: Vec<_> = std::iter::once(kind).chain(newer).collect();
    for advert in &all {
        net.give(0, 1, 0, advert.bytes());
    }
    net.pass(Duration::from_secs(10));
    for at in 1..3 {
        for advert in &all {
            let slot = advert.id().slot;
            let copy = net.held_by(at, 0, slot.kind, slot.k).expect("stored");
            assert_eq!(copy.bytes, advert.shared_bytes(), "{slot:?} at node {at}");
        }
        assert_eq!(net.counters(at).unread, 3);
        assert_eq!(net.view(at, "orders").expect("known").instances.len(), 1, "what can be read is served");
    }
    assert_eq!((net.counters(2).quarantined, net.counters(2).held), before, "neither of these");
    assert_eq!(net.nodes[1].catalog.root_hash(), net.nodes[2].catalog.root_hash());
    // A forged one is refused like any other.
    let mut forged = net.forge(0, later, 3, (1, 100), b"forged").bytes().to_vec();
    *forged.last_mut().expect("bytes") ^= 1;
    net.give(0, 1, 0, &forged);
    assert_eq!(net.counters(1).refused, BTreeMap::from([(Refusal::Signature, 1)]));
}

#[test]
fn r15_an_epoch_at_the_maximum_is_refused_and_freezes_nobody() {
    let mut net = Net::mesh(&["west"; 2]);
    let body = Fragment::of(&[record("evil", "n0")]).expect("fits").encode().expect("fits");
    for epoch in [gossamer_wire::limits::MAX_EPOCH, u64::MAX] {
        let advert = net.forge(0, Kind::Records, 0, (epoch, u64::MAX), &body);
        net.give(0, 1, 0, advert.bytes());
    }
    assert_eq!(net.counters(1).refused, BTreeMap::from([(Refusal::Header, 2)]));
    net.publish(0, &["orders"]);
    net.run();
    assert_eq!((net.usable(1, "orders"), net.view(1, "evil")), (vec![0], None));
}

#[test]
fn r22_far_too_many_records_of_one_node_leave_others_their_room() {
    let mut net = Net::mesh(&["west"; 2]);
    let records: Vec<_> = (0..100_000).map(|number| record(&format!("svc{number}"), "n0")).collect();
    net.publish_records(0, records.clone());
    net.pass(SECOND * 5);
    let most = gossamer_wire::limits::MAX_OWN_RECORDS;
    assert_eq!(net.nodes[1].catalog.node(net.id(0), net.now).expect("known").records, most);
    assert_eq!(net.counters(0).not_published as usize, records.len() - most);
    let named = |event: &&CatalogEvent| matches!(event, CatalogEvent::NotPublished { .. });
    assert!(net.nodes[0].events.iter().filter(named).count() < 100, "the log is not flooded");
    net.publish(1, &["orders"]);
    net.run();
    assert_eq!(net.usable(0, "orders"), [1]);
}

#[test]
fn r22_announcements_of_what_is_not_there_cost_bounded_questions() {
    let mut net = Net::mesh(&["west"; 3]);
    let (from, owner) = (net.id(0), net.id(2));
    let id = |seq| {
        let slot = gossamer_wire::advert::Slot { node: owner, kind: Kind::Records, k: 0 };
        AdvertId { slot, version: gossamer_wire::advert::Version { epoch: 1 << 40, seq } }
    };
    for frame in 0..40 {
        let ids = (0..1_300).map(|at| id(frame * 1_300 + at)).collect();
        net.handle(1, Input::Frame { from, frame: Frame::Have(ids) });
    }
    assert!(net.counters(1).announcements_cut > 30_000);
    net.publish(2, &["orders"]);
    net.pass(SECOND * 10);
    assert_eq!(net.usable(1, "orders"), [2]);
    assert!(net.counters(1).pulls <= 17_000, "each is asked once");
}

#[test]
fn r20_the_first_of_two_adverts_with_one_version_is_kept_and_the_owner_named() {
    let mut net = Net::mesh(&["west"; 3]);
    let body = |service| Fragment::of(&[record(service, "n0")]).expect("fits").encode().expect("fits");
    for service in ["first", "second", "third"] {
        let advert = net.forge(0, Kind::Records, 9, (1, 50), &body(service));
        net.give(0, 1, 0, advert.bytes());
    }
    assert_eq!(net.usable(1, "first"), [0]);
    assert_eq!((net.view(1, "second"), net.counters(1).twins), (None, 2));
    let doubled = CatalogEvent::DuplicateIdentity { node: net.id(0) };
    assert_eq!(net.nodes[1].events.iter().filter(|event| **event == doubled).count(), 1);
    // The same claim with a bad signature is worth nothing.
    let mut forged = net.forge(0, Kind::Records, 9, (1, 50), &body("forged")).bytes().to_vec();
    *forged.last_mut().expect("bytes") ^= 1;
    net.give(0, 1, 0, &forged);
    assert_eq!(net.counters(1).twins, 2);
}

#[test]
fn an_evicted_node_is_not_served_and_not_forgotten() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(0, &["orders"]);
    net.run();
    let node = net.id(0);
    net.handle(1, Input::Evicted(BTreeSet::from([node])));
    net.nodes[0].card.addresses.clear();
    let card = net.nodes[0].card.clone();
    net.handle(0, Input::Card(card));
    net.run();
    assert_eq!((net.view(1, "orders"), net.usable(2, "orders")), (None, vec![0]));
    assert!(!net.nodes[1].catalog.node(node, net.now).expect("held").trusted);
    assert_eq!(net.nodes[1].catalog.root_hash(), net.nodes[2].catalog.root_hash());
}

#[test]
fn an_own_advert_from_a_twin_makes_the_node_go_above_it() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    let body = Fragment::of(&[record("twin", "n0")]).expect("fits").encode().expect("fits");
    let twin = net.forge(0, Kind::Records, 0, (7, 1), &body);
    net.give(0, 1, 0, twin.bytes());
    net.give(1, 0, 0, twin.bytes());
    net.run();
    assert_eq!(net.nodes[0].epoch, 8);
    assert_eq!((net.usable(1, "orders"), net.view(1, "twin")), (vec![0], None));
    // Forged in the own name it moves nothing.
    let mut forged = net.forge(0, Kind::Records, 0, (99, 1), &body).bytes().to_vec();
    *forged.last_mut().expect("bytes") ^= 1;
    net.give(1, 0, 0, &forged);
    assert_eq!(net.nodes[0].epoch, 8);
}

#[test]
fn r16_records_are_held_until_their_card_comes() {
    let mut net = Net::mesh(&["west"; 3]);
    let key = NodeKey::new();
    let leaf = net.authority.leaf("west", "late", &key);
    let late = net.add(key, "west", leaf);
    net.publish(late, &["orders"]);
    let mut copies = net.nodes[late].catalog.export(net.now);
    let card = copies.remove(0);
    for copy in &copies {
        net.give(1, 0, 0, &copy.bytes);
        net.give(1, 0, 0, &copy.bytes);
    }
    assert_eq!((net.counters(0).held, net.view(0, "orders")), (2, None));
    net.give(1, 0, 0, &card.bytes);
    assert_eq!((net.counters(0).held, net.usable(0, "orders")), (0, vec![]));
    assert_eq!(states(&net, 0, "orders"), [InstanceState::NodeDown]);
}

#[test]
fn cards_are_held_until_their_issuer_is_known_and_judged_again_when_it_goes() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    let all = net.nodes[0].catalog.export(net.now);
    let rootless =
        TrustBundle::new(net.authority.mesh, vec![net.authority.root.clone()], vec![]).expect("bundle");
    net.handle(1, Input::Trust(rootless.clone()));
    net.run();
    assert_eq!(net.view(1, "orders"), None, "what is stored is judged again too");
    let Sim { config, signer, .. } = &net.nodes[1];
    net.nodes[1].catalog = net.start(config, signer, 2, all, rootless);
    assert_eq!(net.counters(1).held, 3);
    net.handle(1, Input::Trust(net.authority.bundle()));
    assert_eq!((net.counters(1).held, net.counters(1).nodes), (0, 1));
    assert!(net.view(1, "orders").is_some());
}

#[test]
fn an_own_card_that_does_not_verify_is_published_when_it_does() {
    let mut net = Net::new(&["west"; 1]);
    let Sim { config, signer, card, .. } = &net.nodes[0];
    let card = card.clone();
    let rootless =
        TrustBundle::new(net.authority.mesh, vec![net.authority.root.clone()], vec![]).expect("bundle");
    net.nodes[0].catalog = net.start(config, signer, 2, vec![], rootless);
    net.handle(0, Input::Card(card.clone()));
    net.publish(0, &["orders"]);
    assert!(matches!(
        net.nodes[0].events.last(),
        Some(CatalogEvent::CardRefused { why: CardError::Leaf(_) })
    ));
    assert_eq!(net.view(0, "orders"), None);
    net.handle(0, Input::Trust(net.authority.bundle()));
    assert_eq!(net.usable(0, "orders"), [0]);
    let labels = vec![("k".to_owned(), "v".repeat(300))];
    net.handle(0, Input::Card(CardContent { labels, ..card }));
    assert!(matches!(
        net.nodes[0].events.last(),
        Some(CatalogEvent::CardRefused { why: CardError::Limit(_) })
    ));
}

#[test]
fn r16_junk_for_unknown_nodes_fills_only_its_bounded_room() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(1, &["orders"]);
    let body = Fragment::default().encode().expect("fits");
    let junk = net.forge(1, Kind::Records, 0, (1, 1), &body).bytes().to_vec();
    for number in 0..2_000_u32 {
        let mut bytes = junk.clone();
        bytes[17..21].copy_from_slice(&number.to_be_bytes());
        net.give(1, 0, 0, &bytes);
    }
    assert!(net.counters(0).held <= MAX_HELD as u64 / 4);
    assert!(net.counters(0).refused.contains_key(&Refusal::TooManyHeld));
    net.run();
    assert_eq!(net.usable(0, "orders"), [1]);
    net.pass(Duration::from_secs(601));
    assert_eq!(net.counters(0).held, 0);
}

#[test]
fn r19_the_latest_over_the_rate_is_taken_later_and_others_are_not_touched() {
    let mut net = Net::mesh(&["west"; 3]);
    let body = |weight| {
        let mut record = record("orders", "n0");
        record.weight = weight;
        Fragment::of(&[record]).expect("fits").encode().expect("fits")
    };
    let burst = ADVERT_BURST as u16;
    for seq in 100..100 + 2 * burst {
        let advert = net.forge(0, Kind::Records, 0, (1, seq.into()), &body(seq));
        net.give(0, 1, 0, advert.bytes());
    }
    assert!(net.counters(1).taken_later > 0);
    let weight = |net: &Net| net.view(1, "orders").expect("known").instances[0].weight;
    assert!(weight(&net) < 100 + burst);
    net.pass(SECOND);
    assert_eq!(weight(&net), 99 + 2 * burst, "the latest is taken later");
    assert_eq!(net.counters(1).refused, BTreeMap::new());
    let latest = net.forge(0, Kind::Records, 0, (1, 9_000), &body(7));
    net.give(2, 1, 0, latest.bytes());
    assert_eq!(net.view(1, "orders").expect("known").instances[0].weight, 7);
    let other = net.forge(
        2,
        Kind::Records,
        0,
        (1, 100),
        &Fragment::of(&[record("web", "n2")]).expect("fits").encode().expect("fits"),
    );
    net.give(0, 1, 0, other.bytes());
    assert_eq!(net.usable(1, "web"), [2]);
}

#[test]
fn r19_invented_owners_of_one_giver_silence_nobody() {
    let mut net = Net::mesh(&["west"; 4]);
    let body = |service: &str, node: &str| {
        Fragment::of(&[record(service, node)]).expect("fits").encode().expect("fits")
    };
    let junk = net.forge(1, Kind::Records, 0, (1, 1), &body("junk", "n1")).bytes().to_vec();
    for number in 0..3_000_u32 {
        let mut bytes = junk.clone();
        bytes[17..21].copy_from_slice(&number.to_be_bytes());
        net.give(1, 0, 0, &bytes);
    }
    let refused = net.counters(0).refused[&Refusal::Rate];
    assert!(refused > 1_000, "{refused}");
    for (giver, owner, service) in [(1, 2, "orders"), (1, 1, "own"), (2, 3, "web")] {
        let advert = net.forge(owner, Kind::Records, 0, (1, 100), &body(service, &format!("n{owner}")));
        net.give(giver, 0, 0, advert.bytes());
        assert_eq!(net.usable(0, service), [owner], "{service}");
    }
    assert_eq!(net.counters(0).refused[&Refusal::Rate], refused);
}

#[test]
fn a_head_cannot_claim_a_longer_lease_than_allowed() {
    let mut net = Net::mesh(&["west"; 2]);
    let head = Head { n: 0, lease_seconds: u32::MAX, statement_digest: [0; 16] };
    let advert = net.forge(0, Kind::Head, 0, (1, 99), &head.encode().expect("fits"));
    net.give(0, 1, 0, advert.bytes());
    assert_eq!(net.nodes[1].catalog.node(net.id(0), net.now).expect("known").lease_left, LEASE);
}

#[test]
fn r7_a_difference_that_stays_is_asked_about_ever_more_rarely() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    let from = net.id(0);
    net.handle(1, Input::Frame { from, frame: Frame::Buckets(vec![1; 255]) });
    assert_eq!(net.counters(1).malformed_lists, 1);
    // A peer that always shows another hash, and never lacks or gives anything.
    net.cut(0, 1);
    net.handle(1, Input::Connected(from));
    let before = net.counters(1).repairs;
    for _ in 0..900 {
        net.pass(SECOND * 4);
        net.handle(1, Input::Frame { from, frame: Frame::Root(7) });
    }
    let repairs = net.counters(1).repairs - before;
    assert!((4..=12).contains(&repairs), "{repairs} in an hour");
}

#[test]
fn r22_a_peer_that_asks_for_everything_again_and_again_is_cut_short() {
    let mut net = Net::mesh(&["west"; 2]);
    net.publish(0, &["orders"]);
    net.run();
    let from = net.id(1);
    let head = Advert::parse(&net.held_by(0, 0, Kind::Head, 0).expect("own").bytes).expect("own").id();
    for _ in 0..10 {
        net.handle(0, Input::Frame { from, frame: Frame::Want(vec![head; 1_300]) });
    }
    assert!(net.counters(0).repaired <= 4_200);
    assert!(net.counters(0).answers_cut > 0);
}

#[test]
fn records_over_a_limit_or_without_room_are_named_and_the_others_published() {
    let mut net = Net::mesh(&["west"; 2]);
    let mut broken = record("broken", "n0");
    broken.ports.clear();
    net.publish_records(0, vec![broken, record("orders", "n0")]);
    net.run();
    assert_eq!(net.usable(1, "orders"), [0]);
    let named = CatalogEvent::NotPublished { service: name("broken"), instance: name("n0") };
    assert!(net.nodes[0].events.contains(&named));
    assert_eq!(net.counters(0).not_published, 1);
}

#[test]
fn arbitrary_bytes_do_not_panic() {
    fuzz(b"");
    let net = Net::mesh(&["west"]);
    for copy in net.nodes[0].catalog.export(net.now) {
        fuzz(&copy.bytes);
        let advert = Advert::parse(&copy.bytes).expect("own");
        for cut in 0..advert.body().len() {
            fuzz(&advert.body()[cut..]);
        }
    }
    fuzz(&Fragment::of(&[record("orders", "n0")]).expect("fits").encode().expect("fits"));
}
