//! What may pass the border, record by record.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::OpCode;
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, MX, NULL, PTR, SOA, SRV};

use super::*;
use crate::scripted::zone;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("name")
}

fn asks(text: &str) -> Question {
    Question { name: name(text), record_type: RecordType::A }
}

fn rules(rebind_allow: Option<&[&str]>) -> Rules {
    let allow = rebind_allow.map(|allow| allow.iter().map(|text| name(text)).collect());
    Rules::new(Arc::new(zone()), allow)
}

fn record(owner: &str, data: RData) -> Record {
    Record::from_rdata(name(owner), 60, data)
}

fn a(owner: &str, address: [u8; 4]) -> Record {
    record(owner, RData::A(A(Ipv4Addr::from(address))))
}

fn alias(owner: &str, target: &str) -> Record {
    record(owner, RData::CNAME(CNAME(name(target))))
}

fn answer(answers: Vec<Record>) -> Message {
    let mut message = Message::response(1, OpCode::Query);
    message.answers = answers;
    message
}

fn sifted(rules: &Rules, answers: Vec<Record>) -> Result<Vec<Record>, Foreign> {
    rules.sift(&asks("www.example."), answer(answers), false).map(|content| content.answers)
}

#[test]
fn names_of_our_zones_never_leave() {
    let rules = rules(None);
    for ours in
        ["orders.mesh.internal.", "MESH.internal.", "a.b.c.d.e.mesh.internal.", "1.0.240.127.in-addr.arpa."]
    {
        assert!(!rules.may_leave(&asks(ours)), "{ours}");
    }
    for theirs in ["internal.", "example.com.", ".", "1.0.0.127.in-addr.arpa.", "mesh.internal.example."] {
        assert!(rules.may_leave(&asks(theirs)), "{theirs}");
    }
}

#[test]
fn transfers_and_meta_types_never_leave_and_unknown_types_do() {
    let rules = rules(None);
    let leaves =
        |kind: u16| rules.may_leave(&Question { name: name("a.example."), record_type: kind.into() });
    for kind in [0, 41, 128, 249, 250, 251, 252, 254] {
        assert!(!leaves(kind), "{kind}");
    }
    for kind in [1, 28, 64, 65, 255, 256, 257, 65_280] {
        assert!(leaves(kind), "{kind}");
    }
}

#[test]
fn what_speaks_for_the_mesh_is_refused() {
    let https = |address: [u8; 4]| {
        let hint = SvcParamValue::Ipv4Hint(IpHint(vec![A(Ipv4Addr::from(address))]));
        RData::HTTPS(HTTPS(SVCB::new(1, name("."), vec![(SvcParamKey::Ipv4Hint, hint)])))
    };
    let dname = b"\x04mesh\x08internal\0".to_vec();
    let dname = RData::Unknown { code: RecordType::from(DNAME), rdata: NULL::with(dname) };
    let mapped = Ipv4Addr::new(127, 240, 3, 4).to_ipv6_mapped();
    for lie in [
        alias("www.example.", "orders.mesh.internal."),
        alias("www.example.", "Orders.Mesh.Internal."),
        record("www.example.", RData::SRV(SRV::new(0, 0, 80, name("db-1.orders.west.mesh.internal.")))),
        record("www.example.", RData::PTR(PTR(name("orders.mesh.internal.")))),
        record("www.example.", RData::MX(MX::new(0, name("mesh.internal.")))),
        record("example.", dname),
        a("www.example.", [127, 240, 3, 4]),
        record("www.example.", RData::AAAA(AAAA(mapped))),
        record("www.example.", https([127, 240, 0, 53])),
    ] {
        assert_eq!(sifted(&rules(None), vec![lie.clone()]), Err(Foreign::Mesh), "{lie}");
    }
    let by_the_way = vec![alias("www.example.", "b.example."), alias("b.example.", "mesh.internal.")];
    assert_eq!(sifted(&rules(None), by_the_way), Err(Foreign::Mesh));
    assert!(sifted(&rules(None), vec![record("www.example.", https([192, 0, 2, 1]))]).is_ok());
}

#[test]
fn only_what_belongs_to_the_question_is_kept() {
    let kept = vec![
        alias("www.example.", "b.example."),
        alias("b.example.", "c.example.net."),
        a("C.example.net.", [192, 0, 2, 1]),
    ];
    let strays = vec![a("bank.example.", [192, 0, 2, 66]), a("orders.mesh.internal.", [192, 0, 2, 66])];
    let all = [&kept[..], &strays].concat();
    assert_eq!(sifted(&rules(None), all), Ok(kept));
}

#[test]
fn a_circle_of_aliases_ends() {
    let circle = vec![alias("www.example.", "b.example."), alias("b.example.", "www.example.")];
    assert_eq!(sifted(&rules(None), circle.clone()), Ok(circle));
    let endless: Vec<_> =
        (0..1_000).map(|n| alias(&format!("n{n}.example."), &format!("n{}.example.", n + 1))).collect();
    let rules = rules(None);
    let content = rules.sift(&asks("n0.example."), answer(endless), false).expect("passes");
    assert_eq!(content.answers.len(), MAX_CHAIN + 1);
}

#[test]
fn beside_the_answer_only_its_soa_and_its_glue_are_kept() {
    let soa = |owner: &str| {
        let data = SOA::new(name("ns.example."), name("h.example."), 1, 2, 3, 4, 5);
        Record::from_rdata(name(owner), 86_400, RData::SOA(data))
    };
    let mut message =
        answer(vec![record("www.example.", RData::SRV(SRV::new(0, 0, 80, name("t.example."))))]);
    message.authorities = vec![
        soa("example."),
        soa("example.net."),
        soa("mesh.internal."),
        record("example.", RData::NS(hickory_proto::rr::rdata::NS(name("ns.evil.")))),
    ];
    message.additionals = vec![
        a("t.example.", [192, 0, 2, 1]),
        a("t.example.", [127, 240, 0, 9]),
        a("bank.example.", [192, 0, 2, 66]),
    ];
    let content = rules(None).sift(&asks("www.example."), message, false).expect("passes");
    assert_eq!(content.additionals, [a("t.example.", [192, 0, 2, 1])]);
    let [kept] = &content.authorities[..] else { panic!("{:?}", content.authorities) };
    assert_eq!((&kept.name, kept.ttl), (&name("example."), MAX_TTL));
}

#[test]
fn proofs_come_along_for_those_who_check_them() {
    let proof = |code: u16| RData::Unknown { code: code.into(), rdata: NULL::with(vec![1, 2, 3]) };
    let message = || {
        let mut message =
            answer(vec![a("www.example.", [192, 0, 2, 1]), record("www.example.", proof(RRSIG))]);
        message.authorities = vec![record("a.example.", proof(NSEC)), record("a.example.", proof(RRSIG))];
        message
    };
    let kept = |dnssec_ok| rules(None).sift(&asks("www.example."), message(), dnssec_ok).expect("passes");
    assert_eq!((kept(true).answers.len(), kept(true).authorities.len()), (2, 2));
    assert_eq!(kept(false).authorities.len(), 0);
}

#[test]
fn private_addresses_are_refused_only_when_that_is_wanted() {
    let six = |address: &str| {
        let address: Ipv6Addr = address.parse().expect("address");
        record("www.example.", RData::AAAA(AAAA(address)))
    };
    let private = [
        a("www.example.", [10, 1, 2, 3]),
        a("www.example.", [127, 0, 0, 1]),
        a("www.example.", [169, 254, 169, 254]),
        a("www.example.", [100, 64, 0, 1]),
        a("www.example.", [0, 0, 0, 0]),
        six("::1"),
        six("fd00::1"),
        six("fe80::1"),
        six("::ffff:192.168.0.1"),
    ];
    for record in private {
        let one = || vec![record.clone()];
        assert_eq!(sifted(&rules(None), one()), Ok(one()));
        assert_eq!(sifted(&rules(Some(&[])), one()), Err(Foreign::Private), "{record}");
        assert_eq!(sifted(&rules(Some(&["corp.example."])), one()), Err(Foreign::Private));
        assert_eq!(sifted(&rules(Some(&["example."])), one()), Ok(one()));
    }
    let public = vec![a("www.example.", [100, 128, 0, 1]), six("2001:db8::1")];
    assert_eq!(sifted(&rules(Some(&[])), public.clone()), Ok(public));
}

#[test]
fn an_allowed_name_may_still_not_speak_for_the_mesh() {
    let pool = vec![a("www.example.", [127, 240, 3, 4])];
    assert_eq!(sifted(&rules(Some(&["example."])), pool), Err(Foreign::Mesh));
}

#[test]
fn of_names_below_a_suffix_upstream_says_only_what_it_is_asked() {
    let zones = zone().with_suffix("corp.example".parse().expect("valid")).expect("free").with_upstream();
    let rules = Rules::new(Arc::new(zones), None);
    let about = |asked: &str, answers: Vec<Record>| {
        rules.sift(&asks(asked), answer(answers), false).map(|content| content.answers.len())
    };
    let into = || alias("www.evil.example.", "PG.corp.example.");
    let forged = a("pg.corp.example.", [6, 6, 6, 6]);
    assert_eq!(about("www.evil.example.", vec![into(), forged]), Err(Foreign::Mesh));
    assert_eq!(about("www.evil.example.", vec![into()]), Err(Foreign::Mesh));
    let dname = RData::Unknown { code: DNAME.into(), rdata: NULL::with(b"\x04corp\x07example\0".to_vec()) };
    assert_eq!(about("www.evil.example.", vec![record("evil.example.", dname)]), Err(Foreign::Mesh));

    // Names that others have there: of a question about one of them, and as what a record speaks of.
    let inside = vec![alias("www.corp.example.", "lb.corp.example."), a("lb.corp.example.", [192, 0, 2, 1])];
    assert_eq!(about("www.corp.example.", inside), Ok(2));
    let outside = vec![alias("www.corp.example.", "cdn.example."), a("cdn.example.", [192, 0, 2, 1])];
    assert_eq!(about("www.corp.example.", outside), Ok(2));
    let reverse = record("1.2.0.192.in-addr.arpa.", RData::PTR(PTR(name("www.corp.example."))));
    assert_eq!(about("1.2.0.192.in-addr.arpa.", vec![reverse]), Ok(1));
    let mut message = answer(vec![record("www.example.", RData::MX(MX::new(0, name("mx.corp.example."))))]);
    message.additionals = vec![a("mx.corp.example.", [6, 6, 6, 6])];
    let content = rules.sift(&asks("www.example."), message, false).expect("passes");
    assert_eq!((content.answers.len(), content.additionals.len()), (1, 0));
}

#[test]
fn what_signatures_cover_is_not_altered_below_a_suffix() {
    let zones = zone().with_suffix("corp.example".parse().expect("valid")).expect("free").with_upstream();
    let rules = Rules::new(Arc::new(zones), None);
    let minimum = |dnssec_ok| {
        let mut message = answer(Vec::new());
        let data = SOA::new(name("ns.example."), name("h.example."), 1, 2, 3, 4, 900);
        message.authorities = vec![Record::from_rdata(name("example."), 900, RData::SOA(data))];
        let content = rules.sift(&asks("pg.corp.example."), message, dnssec_ok).expect("passes");
        let RData::SOA(data) = &content.authorities[0].data else { panic!("a SOA") };
        (content.authorities[0].ttl, data.minimum)
    };
    assert_eq!((minimum(false), minimum(true)), ((2, 2), (2, 900)));
}
