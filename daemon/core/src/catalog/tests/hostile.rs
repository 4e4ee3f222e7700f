//! A member with a certificate that breaks the limits of records: what it costs others.

use super::*;

/// A fragment with as many records as fit, and how many those are.
fn full_fragment() -> (Vec<u8>, usize) {
    let fits = |count: usize| {
        let records: Vec<_> = (0..count).map(|number| record(&format!("s{number}"), "n0")).collect();
        Fragment::of(&records).ok()?.encode().ok().filter(|body| body.len() <= 980)
    };
    let count =
        (1..=gossamer_wire::limits::MAX_RECORDS_PER_FRAGMENT).take_while(|count| fits(*count).is_some());
    let count = count.last().expect("one record fits");
    (fits(count).expect("fits"), count)
}

/// Signs what the limits of adverts forbid to build.
fn signed_anyway(net: &Net, at: usize, k: u16, body: &[u8]) -> Vec<u8> {
    let short = net.forge(at, Kind::Records, k, (1, 99), b"").bytes().to_vec();
    let header = short.len() - gossamer_wire::advert::SIGNATURE_BYTES;
    let unsigned = [&short[..header], body].concat();
    let signature = net.nodes[at].signer.sign(&[&b"gossamer-advert-v1\0"[..], &unsigned].concat());
    [unsigned, signature.to_vec()].concat()
}

fn refusals(net: &Net, at: usize) -> Vec<&CatalogEvent> {
    net.nodes[at].events.iter().filter(|event| matches!(event, CatalogEvent::Refused { .. })).collect()
}

#[test]
fn r22_a_million_signed_records_of_one_member_fill_only_its_own_slots() {
    let mut net = Net::mesh(&["west"; 3]);
    net.publish(2, &["orders"]);
    net.run();
    // Its own catalog would go above what it has not signed itself.
    net.cut(0, 1);
    net.cut(0, 2);
    let before = net.counters(1).adverts;
    let (body, each) = full_fragment();
    let mut seq = 100;
    for number in 0..1_000_000_usize.div_ceil(each) {
        seq += 1;
        let k = (number % usize::from(gossamer_wire::limits::MAX_FRAGMENTS)) as u16;
        let advert = net.forge(0, Kind::Records, k, (1, seq), &body);
        net.give(0, 1, 0, advert.bytes());
        // A fast link: a thousand adverts a second.
        if number % 1_000 == 999 {
            net.pass(SECOND);
        }
    }
    net.pass(SECOND * 5);
    assert!(net.counters(1).taken_later > 0 && net.counters(1).older == 0, "{:?}", net.counters(1));
    let slots = usize::from(gossamer_wire::limits::MAX_FRAGMENTS);
    for at in 1..3 {
        assert!(net.counters(at).adverts <= before + slots as u64, "{:?}", net.counters(at));
        let node = net.nodes[at].catalog.node(net.id(0), net.now).expect("known");
        // One name in all of them: the lowest fragment counts.
        assert!(node.records <= slots * each, "{}", node.records);
    }
    assert!(net.counters(1).accepted < 5_000, "64 a second, 256 at once: {}", net.counters(1).accepted);
    net.publish(2, &["orders", "web"]);
    net.run();
    assert_eq!((net.usable(1, "web"), net.usable(1, "orders")), (vec![2], vec![2]), "others are as before");
}

#[test]
fn r15_an_oversized_advert_is_refused_and_its_giver_named_with_a_good_one_beside_it_taken() {
    let mut net = Net::mesh(&["west"; 2]);
    let good = net.forge(0, Kind::Records, 1, (1, 50), &{
        Fragment::of(&[record("orders", "n0")]).expect("fits").encode().expect("fits")
    });
    let (full, _) = full_fragment();
    let large = [&full[..], &[0; 600]].concat();
    let copies = [signed_anyway(&net, 0, 0, &large), good.bytes().to_vec()];
    let copies = copies.map(|bytes| AdvertCopy { age: 0, bytes: bytes.into() }).to_vec();
    let from = net.id(0);
    net.handle(1, Input::Frame { from, frame: Frame::Adverts { copies, forward: Vec::new() } });
    assert_eq!(net.counters(1).refused, BTreeMap::from([(Refusal::Header, 1)]));
    let named = CatalogEvent::Refused { from, owner: None, why: Refusal::Header };
    assert_eq!(refusals(&net, 1), [&named]);
    assert_eq!((net.view(1, "s0"), net.usable(1, "orders")), (None, vec![0]));
    // More fragments than a node may have are no way round it.
    net.give(0, 1, 0, &signed_anyway(&net, 0, gossamer_wire::limits::MAX_FRAGMENTS, &full));
    assert_eq!(net.counters(1).refused, BTreeMap::from([(Refusal::Header, 2)]));
    assert_eq!(refusals(&net, 1).len(), 1, "said once");
}
