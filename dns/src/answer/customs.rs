//! Names beside those of the primary zone: custom ones, aliases, further zones, the clusterset zone.

use super::tests::{data, ends_in, kinds};
use super::*;
use crate::CustomNames;
use crate::scripted::{Scripted, instance, mesh, vip, zone};

/// Answers for `mesh.internal`, `mesh.example`, the suffixes `test` and `corp.test`, two aliases, the clusterset zone.
fn zones() -> Zones {
    let target = |service: &str, group: Option<&str>| Target::Service {
        service: service.parse().expect("valid"),
        group: group.map(|group| group.parse().expect("valid")),
        direct: false,
    };
    let zones = zone().with_zone("mesh.example").expect("apart");
    let zones = zones.with_suffix("test".parse().expect("valid")).expect("free");
    let zones = zones.with_suffix("corp.test".parse().expect("valid")).expect("free");
    let zones = zones.with_alias("pg.corp.example", target("orders", None)).expect("free");
    let zones = zones.with_alias("alias.test", target("orders", Some("east"))).expect("free");
    zones.with_clusterset().expect("apart")
}

/// The scripted mesh with the names that its services claim, and `db-shop` in two clusters.
fn world() -> Scripted {
    let mut names = CustomNames::default();
    for (fqdn, service) in [
        ("orders.test", "orders"),
        ("*.wild.corp.test", "orders"),
        ("stolen.test", "stolen"),
        ("idle.test", "idle"),
        ("gone.test", "gone"),
        ("a.b.deep.test", "orders"),
        ("two.test", "orders"),
        ("two.test", "idle"),
        ("login.example.com", "orders"),
        ("alias.test", "idle"),
        ("pg.corp.example", "idle"),
    ] {
        names.claim(&fqdn.parse().expect(fqdn), &service.parse().expect(service), 0);
    }
    mesh()
        .with(
            "db-shop",
            vip(30),
            vec![instance("db-shop", "east", "db-0"), instance("db-shop", "west", "db-1")],
        )
        .with_names(names)
}

fn ask(name: &str, kind: RecordType) -> Answer {
    ask_with(&zones(), name, kind)
}

fn ask_with(zones: &Zones, name: &str, kind: RecordType) -> Answer {
    let name = Name::from_ascii(format!("{name}.")).expect(name);
    answer(&Question { name, record_type: kind }, &world(), zones, 0)
}

fn answers(name: &str, kind: RecordType) -> Vec<String> {
    let answer = ask(name, kind);
    assert_eq!(answer.rcode, ResponseCode::NoError, "{name} {kind}");
    data(&answer.answers)
}

/// Asserts a negative answer whose SOA belongs to `apex`.
#[track_caller]
fn assert_negative(name: &str, rcode: ResponseCode, kind: RecordType, apex: &str) {
    let answer = ask(name, kind);
    assert_eq!((answer.rcode, answer.answers.len()), (rcode, 0), "{name} {kind}");
    let owners: Vec<_> = answer.authorities.iter().map(|soa| soa.name.to_ascii()).collect();
    assert_eq!(owners, [format!("{apex}.")], "{name} {kind}");
}

#[track_caller]
fn assert_nodata(name: &str, kind: RecordType, apex: &str) {
    assert_negative(name, ResponseCode::NoError, kind, apex);
}

#[track_caller]
fn assert_absent(name: &str, apex: &str) {
    for kind in kinds() {
        assert_negative(name, ResponseCode::NXDomain, kind, apex);
    }
}

#[test]
fn a_custom_name_answers_as_its_service_does() {
    for name in ["orders.test", "x.wild.corp.test", "x.y.wild.corp.test", "X.Wild.CORP.test"] {
        assert_eq!(answers(name, RecordType::A), ["127.240.100.9"], "{name}");
        assert_eq!(
            answers(name, RecordType::TXT),
            answers("orders.mesh.internal", RecordType::TXT),
            "{name}"
        );
        let srv = format!("_pg._tcp.{name}");
        assert_eq!(answers(&srv, RecordType::SRV), answers("_pg._tcp.orders.mesh.internal", RecordType::SRV));
        assert_eq!(ask(&srv, RecordType::SRV).additionals.len(), 2, "with the addresses of the instances");
        let apex = if name.len() > 11 { "corp.test" } else { "test" };
        assert_nodata(name, RecordType::AAAA, apex);
        assert_nodata(name, RecordType::MX, apex);
        assert_nodata(&srv, RecordType::A, apex);
        assert_nodata(&format!("_tcp.{name}"), RecordType::A, apex);
        assert_absent(&format!("_nothing._tcp.{name}"), apex);
        assert_absent(&format!("_pg._udp.{name}"), apex);
    }
    assert_eq!(ask("OrDers.TEST", RecordType::A).answers[0].name.to_ascii(), "OrDers.TEST.");
}

#[test]
fn the_reverse_name_of_a_vip_stays_the_name_in_the_primary_zone() {
    assert_eq!(answers("9.100.240.127.in-addr.arpa", RecordType::PTR), ["orders.mesh.internal."]);
}

#[test]
fn a_wildcard_stands_neither_for_its_base_nor_for_labels_that_no_host_has() {
    assert_nodata("wild.corp.test", RecordType::A, "corp.test");
    for name in ["*.wild.corp.test", "_acme-challenge.wild.corp.test", "_x._y.wild.corp.test"] {
        assert_absent(name, "corp.test");
    }
    let bytes = Name::from_labels([&b"a.b"[..], b"wild", b"corp", b"test"]).expect("any bytes");
    let asked = Question { name: bytes, record_type: RecordType::A };
    assert_eq!(answer(&asked, &world(), &zones(), 0).rcode, ResponseCode::NXDomain);
}

#[test]
fn what_nobody_holds_below_a_suffix_does_not_exist_or_is_left_to_the_upstream() {
    for name in ["nothing.test", "x.orders.test", "nothing.corp.test", "badorders.test"] {
        assert_absent(name, if name.ends_with("corp.test") { "corp.test" } else { "test" });
    }
    assert_nodata("b.deep.test", RecordType::A, "test");
    assert_nodata("deep.test", RecordType::TXT, "test");
    assert_absent("_tcp.deep.test", "test");

    let forwarding = zones().with_upstream();
    for name in ["nothing.test", "deep.test", "b.deep.test", "test", "corp.test", "_x.test", "*.corp.test"] {
        let answer = ask_with(&forwarding, name, RecordType::A);
        assert_eq!((answer.rcode, answer.authorities.len()), (ResponseCode::Refused, 0), "{name}");
        let asked = Name::from_ascii(format!("{name}.")).expect(name);
        assert!(!is_ours(&asked, &world(), &forwarding) && is_ours(&asked, &world(), &zones()), "{name}");
    }
    // What is held is ours with all its types.
    let held = ask_with(&forwarding, "orders.test", RecordType::MX);
    assert_eq!((held.rcode, held.authorities.len()), (ResponseCode::NoError, 1));
    assert_eq!(ask_with(&forwarding, "nothing.mesh.internal", RecordType::A).rcode, ResponseCode::NXDomain);
}

#[test]
fn a_suffix_has_an_apex() {
    assert_eq!(answers("test", RecordType::SOA).len(), 1);
    assert_eq!(answers("corp.test", RecordType::NS), ["mesh.internal."]);
    assert_nodata("corp.test", RecordType::A, "corp.test");
}

#[test]
fn names_outside_every_suffix_are_those_of_others_whoever_claims_them() {
    for name in ["login.example.com", "www.debian.org", "badtest", "example.com", "corp.example"] {
        for kind in kinds() {
            assert_eq!(ask(name, kind), Answer::empty(ResponseCode::Refused), "{name} {kind}");
        }
    }
}

#[test]
fn a_service_that_is_gone_blocked_or_without_instances_is_so_under_its_custom_name() {
    assert_eq!(answers("idle.test", RecordType::A), ["127.240.100.10"]);
    assert_nodata("_pg._tcp.idle.test", RecordType::SRV, "test");
    assert_absent("gone.test", "test");
    let stolen = ask("stolen.test", RecordType::A);
    assert_eq!((stolen.rcode, stolen.answers.len()), (ResponseCode::NoError, 0));
    assert!(stolen.extended.expect("says why").text.contains("nginx"));
}

#[test]
fn a_name_that_two_claim_with_the_same_right_has_no_data_and_says_why() {
    for (name, kind) in [("two.test", RecordType::A), ("_pg._tcp.two.test", RecordType::SRV)] {
        assert_nodata(name, kind, "test");
        let why = ask(name, kind).extended.expect("says why");
        assert!(why.text.contains("idle and orders") && why.code == ExtendedError::BLOCKED, "{why:?}");
    }
}

#[test]
fn an_alias_answers_as_its_target_and_comes_before_claims() {
    assert_eq!(answers("pg.corp.example", RecordType::A), ["127.240.100.9"]);
    assert_eq!(answers("PG.Corp.Example", RecordType::A), ["127.240.100.9"]);
    assert_eq!(answers("_pg._tcp.pg.corp.example", RecordType::SRV).len(), 2);
    assert_nodata("pg.corp.example", RecordType::AAAA, "pg.corp.example");
    assert_nodata("_tcp.pg.corp.example", RecordType::A, "pg.corp.example");
    assert_absent("_no._tcp.pg.corp.example", "pg.corp.example");
    assert_eq!(answers("alias.test", RecordType::A), ["127.240.201.1"]);
    assert_nodata("alias.test", RecordType::AAAA, "test");
    for name in ["x.pg.corp.example", "corp.example", "g.corp.example", "_x.pg.corp.example"] {
        assert_eq!(ask(name, RecordType::A).rcode, ResponseCode::Refused, "{name}");
    }
}

#[test]
fn further_zones_answer_the_same_names_and_name_targets_in_the_zone_asked() {
    for name in ["orders", "orders.east", "db-1.orders.west", "n1.node", "orders.direct"] {
        let of = |zone: &str| answers(&format!("{name}.{zone}"), RecordType::A);
        assert_eq!(of("mesh.example"), of("mesh.internal"), "{name}");
        assert!(!of("mesh.example").is_empty(), "{name}");
    }
    let srv = ask("_pg._tcp.orders.mesh.example", RecordType::SRV);
    assert!(ends_in(&data(&srv.answers), ".mesh.example."), "{:?}", srv.answers);
    assert!(srv.additionals.iter().all(|glue| glue.name.to_ascii().ends_with(".mesh.example.")));
    assert_eq!(answers("mesh.example", RecordType::NS), ["mesh.example."]);
    assert_negative("nothing.mesh.example", ResponseCode::NXDomain, RecordType::A, "mesh.example");
}

#[test]
fn names_of_the_multi_cluster_services_api_are_service_namespace_and_group() {
    let zone = "svc.clusterset.local";
    assert_eq!(answers(&format!("db.shop.{zone}"), RecordType::A), ["127.240.100.30"]);
    let of_instance = answers("db-0.db-shop.east.mesh.internal", RecordType::A);
    assert_eq!(answers(&format!("db-0.east.db.shop.{zone}"), RecordType::A), of_instance);
    let srv = ask(&format!("_pg._tcp.db.shop.{zone}"), RecordType::SRV);
    assert_eq!(
        data(&srv.answers),
        [format!("0 100 5432 db-0.east.db.shop.{zone}."), format!("0 100 5432 db-1.west.db.shop.{zone}.")]
    );
    assert_eq!(srv.additionals.len(), 2);
    assert_eq!(answers("dns-version.clusterset.local", RecordType::TXT), ["1.0.0"]);
    assert_eq!(answers(&format!("_pg._tcp.db-0.east.db.shop.{zone}"), RecordType::SRV).len(), 1);
}

#[test]
fn a_cluster_of_a_service_is_no_name() {
    let apex = "clusterset.local";
    for name in [
        "east.db.shop.svc.clusterset.local",
        "west.db.shop.svc.clusterset.local",
        "nowhere.db.shop.svc.clusterset.local",
        "db-0.west.db.shop.svc.clusterset.local",
        "x.db-0.east.db.shop.svc.clusterset.local",
        "no.shop.svc.clusterset.local",
        "_x.shop.svc.clusterset.local",
        "orders.clusterset.local",
        "a.b.clusterset.local",
    ] {
        assert_absent(name, apex);
    }
    for name in ["svc.clusterset.local", "shop.svc.clusterset.local", "clusterset.local"] {
        assert_nodata(name, RecordType::A, apex);
    }
    assert_nodata("db.shop.svc.clusterset.local", RecordType::AAAA, apex);
    assert_eq!(ask_with(&zone(), "db.shop.svc.clusterset.local", RecordType::A).rcode, ResponseCode::Refused);
}

#[test]
fn the_vip_of_a_custom_name_is_prepared_like_that_of_its_service() {
    let vips = |name: &str, kind| {
        let name = Name::from_ascii(format!("{name}.")).expect(name);
        targets(&Question { name, record_type: kind }, &world(), &zones(), 0)
    };
    let orders = Target::Service { service: "orders".parse().expect("valid"), group: None, direct: false };
    for name in ["orders.test", "x.wild.corp.test", "pg.corp.example", "orders.mesh.example"] {
        assert_eq!(vips(name, RecordType::A), std::slice::from_ref(&orders), "{name}");
        assert_eq!(vips(&format!("_pg._tcp.{name}"), RecordType::SRV).len(), 2, "{name}");
    }
    for name in ["nothing.test", "two.test", "deep.test", "login.example.com", "test"] {
        assert_eq!(vips(name, RecordType::A), [], "{name}");
    }
}
