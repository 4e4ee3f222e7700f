//! One rule of design section 7 per test.

use std::net::Ipv4Addr;

use gossamer_wire::Transport;

use super::*;
use crate::scripted::{Scripted, instance, mesh, vip, zone};

fn ask_of(mesh: &Scripted, name: &str, kind: RecordType, rotation: u32) -> Answer {
    let name = if name.ends_with('.') { name.to_owned() } else { format!("{name}.mesh.internal.") };
    let question = Question { name: Name::from_ascii(&name).expect("valid"), record_type: kind };
    answer(&question, mesh, &zone(), rotation)
}

fn ask(name: &str, kind: RecordType) -> Answer {
    ask_of(&mesh(), name, kind, 0)
}

/// Types of every sort: with data somewhere, without, and all.
pub(super) fn kinds() -> [RecordType; 5] {
    [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::ANY, RecordType::TXT]
}

pub(super) fn ends_in(data: &[String], suffix: &str) -> bool {
    !data.is_empty() && data.iter().all(|text| text.ends_with(suffix))
}

pub(super) fn data(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| record.data.to_string()).collect()
}

/// Returns the data of a positive answer, checking its frame.
fn positive(name: &str, kind: RecordType, ttl: u32) -> Vec<String> {
    let answer = ask(name, kind);
    assert_eq!(answer.rcode, ResponseCode::NoError, "{name} {kind}");
    assert!(answer.authorities.is_empty(), "{name} {kind}: no SOA beside an answer");
    for record in &answer.answers {
        assert_eq!((record.ttl, record.record_type()), (ttl, kind), "{name} {kind}");
    }
    data(&answer.answers)
}

#[track_caller]
fn assert_negative(name: &str, kind: RecordType, rcode: ResponseCode) {
    let answer = ask(name, kind);
    assert_eq!(answer.rcode, rcode, "{name} {kind}");
    assert_eq!(answer.answers, [], "{name} {kind}");
    assert_eq!(answer.additionals, [], "{name} {kind}");
    let [soa] = answer.authorities.as_slice() else { panic!("{name} {kind}: one SOA") };
    let RData::SOA(data) = &soa.data else { panic!("{name} {kind}: an SOA") };
    assert_eq!((soa.ttl, data.minimum), (1, 1), "{name} {kind}");
}

#[track_caller]
fn assert_nodata(name: &str, kind: RecordType) {
    assert_negative(name, kind, ResponseCode::NoError);
}

#[track_caller]
fn assert_nxdomain(name: &str) {
    for kind in kinds() {
        assert_negative(name, kind, ResponseCode::NXDomain);
    }
}

#[test]
fn a_service_a_group_of_it_and_an_instance_answer_with_their_vips() {
    assert_eq!(positive("orders", RecordType::A, 30), ["127.240.100.9"]);
    assert_eq!(positive("orders.west", RecordType::A, 30), ["127.240.200.1"]);
    let VipAnswer::Address(own) = instance("orders", "west", "db-1").vip else { panic!("has a VIP") };
    assert_eq!(positive("db-1.orders.west", RecordType::A, 30), [own.to_string()]);
}

#[test]
fn a_service_with_nothing_alive_still_answers_its_vip() {
    assert_eq!(positive("idle", RecordType::A, 30), ["127.240.100.10"]);
}

#[test]
fn an_instance_name_exists_while_an_advert_names_it_and_has_an_address_while_it_is_usable() {
    assert_nodata("db-3.orders.west", RecordType::A);
    assert_eq!(positive("db-3.orders.west", RecordType::TXT, 2), ["role=primary"]);
    assert_nxdomain("db-9.orders.west");
}

#[test]
fn vips_have_no_ipv6_and_say_so_with_nodata() {
    for name in ["orders", "orders.west", "db-1.orders.west", "idle"] {
        assert_nodata(name, RecordType::AAAA);
    }
}

#[test]
fn a_group_that_is_not_imported_answers_only_when_named() {
    assert_eq!(positive("orders.east", RecordType::A, 30), ["127.240.201.1"]);
    assert_eq!(positive("_pg._tcp.orders", RecordType::SRV, 2).len(), 2);
    assert_eq!(positive("_pg._tcp.orders.east", RecordType::SRV, 2).len(), 1);
}

#[test]
fn unknown_names_are_nxdomain_for_every_type() {
    for name in
        ["nothing", "orders.north", "a.b.c.d", "x.node", "nothing.direct", "x.orders.west.direct.node"]
    {
        assert_nxdomain(name);
    }
}

#[test]
fn existing_names_without_the_type_are_nodata() {
    for (name, kind) in [
        ("orders", RecordType::MX),
        ("orders", RecordType::SRV),
        ("orders.west", RecordType::SOA),
        ("n1.node", RecordType::AAAA),
        ("n6.node", RecordType::A),
        ("n1.node", RecordType::TXT),
        ("_pg._tcp.orders", RecordType::A),
        ("", RecordType::HTTPS),
        ("orders", RecordType::Unknown(4711)),
    ] {
        let name = if name.is_empty() { "mesh.internal." } else { name };
        assert_nodata(name, kind);
    }
}

#[test]
fn empty_non_terminals_exist() {
    for name in [
        "node",
        "direct",
        "east",
        "west",
        "east.direct",
        "_tcp.orders",
        "_tcp.orders.west",
        "_tcp.db-1.orders.west",
        "_tcp.orders.direct",
    ] {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::ANY] {
            assert_nodata(name, kind);
        }
    }
}

#[test]
fn nothing_is_below_a_transport_that_no_port_has() {
    assert_nxdomain("_udp.orders");
    assert_nxdomain("_pg._udp.orders");
    assert_nxdomain("_http._tcp.orders");
    assert_nxdomain("_tcp.nothing");
    assert_nxdomain("_tcp.east");
}

#[test]
fn srv_lists_usable_instances_by_nearness_with_their_vips_along() {
    for base in ["orders", "orders.west"] {
        let answer = ask(&format!("_pg._tcp.{base}"), RecordType::SRV);
        assert_eq!(
            data(&answer.answers),
            ["0 100 5432 db-1.orders.west.mesh.internal.", "2 50 5432 db-2.orders.west.mesh.internal."]
        );
        assert!(answer.answers.iter().all(|record| record.ttl == 2));
        let glue: Vec<_> = answer.additionals.iter().map(|record| record.name.to_ascii()).collect();
        assert_eq!(glue, ["db-1.orders.west.mesh.internal.", "db-2.orders.west.mesh.internal."]);
        assert_eq!(
            data(&answer.additionals[..1]),
            positive("db-1.orders.west", RecordType::A, 30),
            "glue says what the target says"
        );
    }
}

#[test]
fn srv_of_an_instance_lists_that_instance() {
    assert_eq!(
        positive("_pg._tcp.db-2.orders.west", RecordType::SRV, 2),
        ["2 50 5432 db-2.orders.west.mesh.internal."]
    );
}

#[test]
fn srv_with_nothing_usable_is_nodata() {
    assert_nodata("_pg._tcp.idle", RecordType::SRV);
    assert_nodata("_pg._tcp.db-3.orders.west", RecordType::SRV);
}

#[test]
fn an_unnamed_port_is_named_by_its_number() {
    let entry = InstanceEntry {
        ports: vec![(5432.into(), Transport::Tcp, 5432), (53.into(), Transport::Udp, 53)],
        ..instance("dns", "west", "a")
    };
    let mesh = Scripted::default().with("dns", vip(1), vec![entry]);
    let asked = |name| data(&ask_of(&mesh, name, RecordType::SRV, 0).answers);
    assert_eq!(asked("_5432._tcp.dns"), ["0 100 5432 a.dns.west.mesh.internal."]);
    assert_eq!(asked("_53._udp.dns"), ["0 100 53 a.dns.west.mesh.internal."]);
    assert_eq!(ask_of(&mesh, "_53._tcp.dns", RecordType::SRV, 0).rcode, ResponseCode::NXDomain);
}

#[test]
fn each_of_three_equally_near_srv_targets_is_first_in_a_third_of_the_answers() {
    let all = ["a", "b", "c"].map(|name| instance("s", "g", name)).to_vec();
    let mesh = Scripted::default().with("s", vip(1), all);
    let mut firsts = std::collections::BTreeMap::new();
    for rotation in 1..=3_000 {
        let first = data(&ask_of(&mesh, "_pg._tcp.s", RecordType::SRV, rotation).answers).remove(0);
        *firsts.entry(first).or_insert(0) += 1;
    }
    assert!(firsts.values().all(|count| (840..=1_140).contains(count)), "{firsts:?}");
    assert_eq!(firsts.len(), 3);
}

#[test]
fn of_1500_equal_instances_one_answer_has_500_and_a_few_answers_have_all() {
    let all: Vec<_> = (0..1_500).map(|number| instance("s", "g", &format!("i{number}"))).collect();
    let mesh = Scripted::default().with("s", vip(1), all);
    let mut seen = std::collections::BTreeSet::new();
    for rotation in 1..=40 {
        let answer = ask_of(&mesh, "_pg._tcp.s", RecordType::SRV, rotation);
        assert_eq!(answer.answers.len(), order::MAX_SERVICES);
        seen.extend(data(&answer.answers));
    }
    assert_eq!(seen.len(), 1_500);
}

#[test]
fn glue_stops_at_sixteen_targets() {
    let all: Vec<_> = (0..40).map(|number| instance("s", "g", &format!("i{number}"))).collect();
    let answer = ask_of(&Scripted::default().with("s", vip(1), all), "_pg._tcp.s", RecordType::SRV, 0);
    assert_eq!((answer.answers.len(), answer.additionals.len()), (40, MAX_GLUE));
}

#[test]
fn direct_names_answer_with_own_addresses_of_usable_instances() {
    let own = instance("orders", "west", "db-1").addresses[0].to_string();
    for name in ["orders.direct", "orders.west.direct"] {
        assert_eq!(positive(name, RecordType::A, 2), [own.as_str(), "10.0.0.2"]);
        assert_eq!(positive(name, RecordType::AAAA, 2), ["fd00::2"]);
    }
    assert_nodata("idle.direct", RecordType::A);
    assert_nodata("db-3.orders.west.direct", RecordType::A);
}

#[test]
fn direct_srv_targets_lead_to_own_addresses_not_to_vips() {
    let answer = ask("_pg._tcp.orders.direct", RecordType::SRV);
    let targets = data(&answer.answers);
    assert_eq!(targets.get(1).map(String::as_str), Some("2 50 5432 db-2.orders.west.direct.mesh.internal."));
    assert_eq!(
        data(&answer.additionals)[1..],
        ["10.0.0.2", "fd00::2"],
        "A and AAAA of a dual-stack target come along"
    );
    assert_eq!(positive("db-2.orders.west.direct", RecordType::A, 2), ["10.0.0.2"]);
    assert_eq!(positive("db-2.orders.west.direct", RecordType::AAAA, 2), ["fd00::2"]);
}

#[test]
fn direct_answers_have_eight_addresses_at_most_nearest_first() {
    let all = (0..12_u8).map(|number| InstanceEntry {
        nearness: u8::from(number != 11),
        addresses: vec![IpAddr::from([10, 1, 1, number])],
        ..instance("s", "g", &format!("i{number}"))
    });
    let mesh = Scripted::default().with("s", vip(1), all.collect());
    let mut seen = std::collections::BTreeSet::new();
    for rotation in 0..100 {
        let addresses = data(&ask_of(&mesh, "s.direct", RecordType::A, rotation).answers);
        assert_eq!(addresses.len(), 8);
        assert_eq!(addresses[0], "10.1.1.11");
        seen.extend(addresses);
    }
    assert_eq!(seen.len(), 12, "the others take turns");
}

#[test]
fn nodes_answer_with_their_addresses() {
    assert_eq!(positive("n1.node", RecordType::A, 2), ["10.0.0.1", "192.0.2.1"]);
    assert_eq!(positive("n6.node", RecordType::AAAA, 2), ["fd00::6"]);
}

#[test]
fn metadata_is_text() {
    for name in ["orders", "orders.west", "orders.direct"] {
        assert_eq!(positive(name, RecordType::TXT, 2), ["version=7"]);
    }
    assert_eq!(positive("db-1.orders.west", RecordType::TXT, 2), ["role=primary"]);
}

#[test]
fn the_apex_has_soa_ns_and_the_address_of_its_server() {
    let apex = "mesh.internal.";
    assert_eq!(positive(apex, RecordType::SOA, 30).len(), 1);
    assert_eq!(positive(apex, RecordType::NS, 30), ["mesh.internal."]);
    assert_eq!(positive(apex, RecordType::A, 30), ["127.240.0.53"]);
    assert_eq!(data(&ask(apex, RecordType::NS).additionals), ["127.240.0.53"]);
    assert_nodata(apex, RecordType::AAAA);
}

#[test]
fn a_vip_points_back_to_its_service() {
    assert_eq!(positive("9.100.240.127.in-addr.arpa.", RecordType::PTR, 30), ["orders.mesh.internal."]);
    assert_nodata("9.100.240.127.in-addr.arpa.", RecordType::A);
    assert_negative("8.100.240.127.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain);
    assert_nodata("100.240.127.in-addr.arpa.", RecordType::PTR);
}

#[test]
fn the_reverse_zone_of_the_pool_has_an_apex_of_its_own() {
    let apex = "240.127.in-addr.arpa.";
    assert_eq!(positive(apex, RecordType::NS, 30), ["mesh.internal."]);
    assert_eq!(positive(apex, RecordType::SOA, 30).len(), 1);
    assert_nodata(apex, RecordType::A);
    let negative = ask("8.100.240.127.in-addr.arpa.", RecordType::PTR);
    assert_eq!(negative.authorities[0].name.to_ascii(), apex);
}

#[test]
fn names_of_others_are_refused_without_records() {
    for name in ["example.com.", "internal.", ".", "1.0.0.127.in-addr.arpa.", "127.in-addr.arpa."] {
        assert_eq!(ask(name, RecordType::A), Answer::empty(ResponseCode::Refused), "{name}");
    }
}

#[test]
fn zone_transfers_are_refused() {
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(ask("mesh.internal.", kind).rcode, ResponseCode::Refused);
    }
}

#[test]
fn any_is_answered_with_one_set() {
    let kinds = |name: &str| {
        let answers = ask(name, RecordType::ANY).answers;
        answers.iter().map(Record::record_type).collect::<Vec<_>>()
    };
    assert_eq!(kinds("orders"), [RecordType::A]);
    assert_eq!(kinds("n6.node"), [RecordType::AAAA]);
    assert_eq!(kinds("_pg._tcp.orders"), [RecordType::SRV; 2]);
    assert_eq!(kinds("idle.direct"), [RecordType::TXT]);
    assert_eq!(kinds("9.100.240.127.in-addr.arpa."), [RecordType::PTR]);
    assert_eq!(kinds("240.127.in-addr.arpa."), [RecordType::SOA]);
}

#[test]
fn a_blocked_vip_is_nodata_with_the_reason() {
    for kind in [RecordType::A, RecordType::AAAA] {
        for name in ["stolen", "web-1.stolen.west"] {
            assert_nodata(name, kind);
            let extended = ask(name, kind).extended.expect("says why");
            assert_eq!(extended.code, 15);
            assert!(extended.text.contains("nginx"));
        }
    }
    assert_eq!(positive("stolen", RecordType::TXT, 2), ["version=7"]);
}

#[test]
fn srv_leaves_out_targets_that_would_not_be_answered() {
    assert_nodata("_pg._tcp.stolen", RecordType::SRV);
    assert_eq!(ask("_pg._tcp.stolen", RecordType::SRV).extended.map(|error| error.code), Some(15));
    assert_eq!(ask("_pg._tcp.stolen.direct", RecordType::SRV).answers.len(), 1, "direct needs no VIP");

    let blocked = InstanceEntry { vip: VipAnswer::Blocked("held".into()), ..instance("s", "g", "b") };
    let mesh = Scripted::default().with("s", vip(1), vec![blocked, instance("s", "g", "a")]);
    let answer = ask_of(&mesh, "_pg._tcp.s", RecordType::SRV, 0);
    assert_eq!(data(&answer.answers), ["0 100 5432 a.s.g.mesh.internal."]);
    assert_eq!(answer.extended, None);
}

#[test]
fn a_vip_of_both_families_is_answered_over_both_and_comes_along_with_srv() {
    let both = |last: u8| {
        let vip = Ipv4Addr::new(127, 240, 100, last);
        VipAnswer::Dual(vip, format!("fd67:6f73:7361::{vip}").parse().expect("valid"))
    };
    let one = InstanceEntry { vip: both(2), ..instance("s", "g", "a") };
    let mesh = Scripted::default().with("s", both(1), vec![one]);
    let found = |name, kind| data(&ask_of(&mesh, name, kind, 0).answers);
    assert_eq!(found("s", RecordType::A), ["127.240.100.1"]);
    assert_eq!(found("s", RecordType::AAAA), ["fd67:6f73:7361::7ff0:6401"]);
    assert_eq!(found("a.s.g", RecordType::AAAA), ["fd67:6f73:7361::7ff0:6402"]);
    let srv = ask_of(&mesh, "_pg._tcp.s", RecordType::SRV, 0);
    assert_eq!(data(&srv.additionals), ["127.240.100.2", "fd67:6f73:7361::7ff0:6402"]);
}

#[test]
fn without_vips_the_usable_instances_own_addresses_are_answered() {
    let of = |name: &str| InstanceEntry { vip: VipAnswer::Direct, ..instance("s", "g", name) };
    let near = InstanceEntry { addresses: vec!["10.0.0.1".parse().expect("ip")], ..of("a") };
    let far = InstanceEntry {
        addresses: vec!["10.0.0.2".parse().expect("ip"), "fd00::2".parse().expect("ip")],
        nearness: 2,
        ..of("b")
    };
    let dead = InstanceEntry { usable: false, ..of("c") };
    let mesh = Scripted::default().with_entry("s", None, VipAnswer::Direct, vec![near, far, dead]);
    let found = |name, kind| {
        let answer = ask_of(&mesh, name, kind, 0);
        assert!(answer.answers.iter().all(|record| record.ttl == 2), "{name}: as long as direct names");
        data(&answer.answers)
    };
    assert_eq!(found("s", RecordType::A), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(found("s", RecordType::AAAA), ["fd00::2"]);
    assert_eq!(found("b.s.g", RecordType::A), ["10.0.0.2"]);
    assert!(found("c.s.g", RecordType::A).is_empty());
    let srv = ask_of(&mesh, "_pg._tcp.s", RecordType::SRV, 0);
    assert_eq!(data(&srv.answers), ["0 100 5432 a.s.g.mesh.internal.", "2 100 5432 b.s.g.mesh.internal."]);
    assert_eq!(data(&srv.additionals), ["10.0.0.1", "10.0.0.2", "fd00::2"]);
}

#[test]
fn the_case_of_the_question_comes_back_in_the_owner() {
    let answer = ask("oRdErS.mEsH.INTERNAL.", RecordType::A);
    assert_eq!(answer.answers[0].name.to_ascii(), "oRdErS.mEsH.INTERNAL.");
}

#[test]
fn an_instance_whose_name_would_be_too_long_is_left_out() {
    let long = "x".repeat(63);
    let mesh = Scripted::default().with(&long, vip(1), vec![instance(&long, &long, &long)]);
    let zone = Zones::from(Zone::new(&"z".repeat(63), Ipv4Addr::new(127, 240, 0, 0), 16).expect("valid"));
    let name = Name::from_ascii(format!("_pg._tcp.{long}.{}.", "z".repeat(63))).expect("fits");
    let answer = answer(&Question { name, record_type: RecordType::SRV }, &mesh, &zone, 0);
    assert_eq!((answer.rcode, answer.answers.len()), (ResponseCode::NoError, 0));
}

fn vips(name: &str, kind: RecordType) -> Vec<Target> {
    let name = Name::from_ascii(format!("{name}.mesh.internal.")).expect("valid");
    targets(&Question { name, record_type: kind }, &mesh(), &zone(), 0)
}

#[test]
fn only_vips_that_the_answer_holds_are_prepared() {
    let service =
        |name: &str| Target::Service { service: name.parse().expect("valid"), group: None, direct: false };
    assert_eq!(vips("orders", RecordType::A), [service("orders")]);
    for kind in [RecordType::AAAA, RecordType::ANY] {
        assert_eq!(vips("orders", kind), [service("orders")], "{kind}");
    }
    assert_eq!(vips("db-1.orders.west", RecordType::A), [instance("orders", "west", "db-1").target(false)]);
    assert_eq!(
        vips("_pg._tcp.orders", RecordType::SRV),
        ["db-1", "db-2"].map(|name| instance("orders", "west", name).target(false))
    );
    for (name, kind) in [
        ("orders", RecordType::TXT),
        ("orders.direct", RecordType::A),
        ("_pg._tcp.orders.direct", RecordType::SRV),
        ("_pg._tcp.orders", RecordType::A),
        ("n1.node", RecordType::A),
        ("node", RecordType::A),
    ] {
        assert_eq!(vips(name, kind), [], "{name} {kind}");
    }
}

#[test]
fn a_blocked_instance_is_prepared_again_since_its_port_may_be_free() {
    assert_eq!(vips("_pg._tcp.stolen", RecordType::SRV).len(), 1);
}
