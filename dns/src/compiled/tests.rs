//! Layout and turns; that the bytes say what the handler says is tested in `fuzz`.

use std::net::IpAddr;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;

use super::*;
use crate::scripted::{Scripted, instance, mesh, vip, zone};
use crate::udp::{Datagram, parse};
use crate::{InstanceEntry, answer};

fn question(name: &str, record_type: RecordType) -> Question {
    Question { name: Name::from_ascii(name).expect("valid"), record_type }
}

fn compile(directory: &Scripted, question: &Question) -> Option<Compiled> {
    Compiled::new(question, &answer(question, directory, &zone(), 7))
}

/// A query in other letters than the answer was learned with; `opt` follows it.
fn query(question: &Question, opt: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!opt.is_empty())];
    bytes.extend(question.name.to_bytes().expect("encodes").to_ascii_uppercase());
    bytes.extend(u16::from(question.record_type).to_be_bytes());
    [&bytes[..], &[0, 1], opt].concat()
}

fn ask(compiled: &Compiled, query: &[u8], turn: u32) -> Option<(Message, usize)> {
    let Datagram::Query(query) = parse(query) else { panic!("ordinary") };
    let mut out = [0; MAX_DATAGRAM];
    let length = compiled.write(&query, &Ours::new(false), turn, &mut out)?;
    Some((Message::from_vec(&out[..length]).expect("decodes"), length))
}

fn three(name: &str) -> Vec<InstanceEntry> {
    (0..3).map(|number| instance(name, "west", &format!("i{number}"))).collect()
}

const DO_4096: &[u8] = &[0, 0, 41, 16, 0, 0, 0, 0x80, 0, 0, 0];

#[test]
fn the_question_comes_back_in_its_letters_and_owns_the_answer() {
    let asked = question("orders.mesh.internal.", RecordType::A);
    let bytes = query(&asked, &[]);
    let compiled = compile(&mesh(), &asked).expect("one to keep");
    let (reply, length) = ask(&compiled, &bytes, 0).expect("fits");
    assert_eq!(reply.queries.first().expect("one").name.to_string(), "ORDERS.MESH.INTERNAL.");
    assert_eq!((reply.answers.len(), length), (1, bytes.len() + 16));
    assert_eq!(reply.answers.first().expect("one").name.to_string(), "ORDERS.MESH.INTERNAL.");
    assert!(!compiled.takes_turns());
    assert_eq!(compiled.outcome(), Outcome::NoError);
}

#[test]
fn equals_take_turns_and_bring_their_glue() {
    let directory = Scripted::default().with("s", vip(1), three("s"));
    let asked = question("_pg._tcp.s.mesh.internal.", RecordType::SRV);
    let compiled = compile(&directory, &asked).expect("one to keep");
    assert!(compiled.takes_turns());
    let mut firsts = Vec::new();
    for turn in 0..60 {
        let (reply, _) = ask(&compiled, &query(&asked, DO_4096), turn).expect("fits");
        let target = |record: &Record| match &record.data {
            RData::SRV(data) => Some(data.target.clone()),
            _ => None,
        };
        let targets: Vec<_> = reply.answers.iter().filter_map(target).collect();
        let owners: Vec<_> = reply.additionals.iter().map(|record| record.name.clone()).collect();
        assert_eq!(targets, owners);
        assert!(reply.edns.is_some_and(|edns| edns.flags().dnssec_ok && edns.max_payload() == 1232));
        firsts.push(targets.first().expect("three").to_string());
    }
    for target in ["i0", "i1", "i2"] {
        let first = firsts.iter().filter(|first| first.starts_with(target)).count();
        assert!(first > 5, "{target} was first {first} times of 60");
    }
}

#[test]
fn nearer_ones_stay_first() {
    let far = InstanceEntry { nearness: 3, ..instance("s", "east", "far") };
    let directory = Scripted::default().with("s", vip(1), [three("s"), vec![far]].concat());
    let asked = question("_pg._tcp.s.mesh.internal.", RecordType::SRV);
    let compiled = compile(&directory, &asked).expect("one to keep");
    for turn in 0..20 {
        let (reply, _) = ask(&compiled, &query(&asked, DO_4096), turn).expect("fits");
        let last = reply.answers.last().map(|record| record.data.to_string()).expect("four");
        assert!(last.contains("far.s.east"), "{last}");
    }
}

#[test]
fn glue_that_does_not_fit_is_left_out_and_answers_are_not() {
    let many: Vec<_> = (0..9).map(|number| instance("s", "west", &format!("i{number}"))).collect();
    let directory = Scripted::default().with("s", vip(1), many);
    let asked = question("_pg._tcp.s.mesh.internal.", RecordType::SRV);
    let compiled = compile(&directory, &asked).expect("one to keep");
    let (reply, length) = ask(&compiled, &query(&asked, &[]), 4).expect("fits");
    assert_eq!(reply.answers.len(), 9);
    assert!(!reply.metadata.truncation && length <= 512 && reply.additionals.len() < 9);
    let (reply, _) = ask(&compiled, &query(&asked, DO_4096), 4).expect("fits");
    assert_eq!(reply.additionals.len(), 9);
}

#[test]
fn answers_that_do_not_fit_are_left_to_the_handler() {
    let many: Vec<_> = (0..12).map(|number| instance("s", "west", &format!("i{number}"))).collect();
    let directory = Scripted::default().with("s", vip(1), many);
    let asked = question("_pg._tcp.s.mesh.internal.", RecordType::SRV);
    let compiled = compile(&directory, &asked).expect("one to keep");
    assert_eq!(ask(&compiled, &query(&asked, &[]), 0), None);
    assert!(ask(&compiled, &query(&asked, DO_4096), 0).is_some());
}

#[test]
fn negative_answers_of_names_that_exist_are_kept_with_their_reason() {
    let asked = question("stolen.mesh.internal.", RecordType::A);
    let compiled = compile(&mesh(), &asked).expect("one to keep");
    assert_eq!(compiled.outcome(), Outcome::NoData);
    let (reply, _) = ask(&compiled, &query(&asked, DO_4096), 0).expect("fits");
    assert_eq!((reply.answers.len(), reply.authorities.len()), (0, 1));
    let edns = reply.edns.expect("asked with one");
    assert!(edns.flags().dnssec_ok && !edns.options().as_ref().is_empty());
    let (reply, _) = ask(&compiled, &query(&asked, &[]), 0).expect("fits");
    assert!(reply.edns.is_none());
}

#[test]
fn names_that_do_not_exist_and_choices_among_more_are_not_kept() {
    assert_eq!(compile(&mesh(), &question("nobody.mesh.internal.", RecordType::A)), None);
    assert_eq!(compile(&mesh(), &question("example.com.", RecordType::A)), None);
    let addresses = |number: u8| vec![IpAddr::from([10, 0, 0, number])];
    let many = (0..20).map(|number| InstanceEntry {
        addresses: addresses(number),
        ..instance("s", "west", &format!("i{number}"))
    });
    let directory = Scripted::default().with("s", vip(1), many.collect());
    assert_eq!(compile(&directory, &question("s.direct.mesh.internal.", RecordType::A)), None);
}
