//! Which messages are a question, and the code of every refusal, in the bytes that are sent.

use hickory_proto::op::{Edns, Message, MessageType};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RecordType};
use hickory_server::net::xfer::Protocol;

use super::*;
use crate::fuzz::{Response, respond};
use crate::response::Writer;
use crate::scripted::{mesh, zone};
use crate::{Outcome, UDP_PAYLOAD_BYTES};

fn message(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("valid"), kind));
    message
}

fn orders() -> Message {
    message("orders.mesh.internal.", RecordType::A)
}

fn with_edns(mut message: Message, payload: u16, version: u8) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_version(version);
    message.set_edns(edns);
    message
}

fn sent(bytes: &[u8]) -> Option<(Response, Message)> {
    let response = respond(bytes, Protocol::Udp, Writer::HickoryServer, &mesh(), &zone(), 0)?;
    let message = Message::from_vec(&response.bytes).expect("a response decodes");
    Some((response, message))
}

fn reply(message: &Message) -> Message {
    sent(&message.to_vec().expect("encodes")).expect("answered").1
}

#[test]
fn a_question_gets_an_authoritative_answer_under_its_id() {
    let reply = reply(&orders());
    assert_eq!(reply.metadata.id, 0x1234);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert!(reply.metadata.authoritative);
    assert!(reply.metadata.recursion_desired, "RD is copied");
    assert!(!reply.metadata.recursion_available, "nothing is looked up elsewhere");
    assert_eq!((reply.queries.len(), reply.answers.len()), (1, 1));
}

#[test]
fn responses_and_fragments_of_headers_get_no_answer() {
    let mut response = orders();
    response.metadata.message_type = MessageType::Response;
    assert_eq!(sent(&response.to_vec().expect("encodes")), None);
    for length in 0..12 {
        assert_eq!(sent(&vec![0; length]), None);
    }
}

#[test]
fn other_opcodes_are_not_implemented() {
    for opcode in 1..16 {
        let mut message = with_edns(orders(), 1232, 0);
        message.metadata.op_code = OpCode::from_u8(opcode);
        let reply = reply(&message);
        assert_eq!(reply.metadata.response_code, ResponseCode::NotImp, "opcode {opcode}");
        assert_eq!(u8::from(reply.metadata.op_code), opcode);
        assert!(reply.edns.is_some() && reply.answers.is_empty());
    }
}

#[test]
fn other_classes_are_refused() {
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::NONE, DNSClass::ANY, DNSClass::Unknown(4711)] {
        let mut message = with_edns(orders(), 1232, 0);
        message.queries[0].set_query_class(class);
        let reply = reply(&message);
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{class}");
        assert!(!reply.metadata.authoritative && reply.edns.is_some());
        assert_eq!(reply.queries[0].query_class(), class);
    }
}

#[test]
fn names_outside_the_zone_are_refused_with_their_question_and_opt() {
    let reply = reply(&with_edns(message("example.com.", RecordType::A), 1232, 0));
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert!(!reply.metadata.authoritative);
    assert_eq!(reply.queries[0].name().to_ascii(), "example.com.");
    assert!(reply.edns.is_some());
}

#[test]
fn later_edns_versions_get_badvers_and_our_version() {
    for version in [1, 2, 255] {
        let reply = reply(&with_edns(orders(), 1232, version));
        assert_eq!(u16::from(reply.metadata.response_code), 16, "shared by BADVERS and BADSIG");
        assert_eq!(reply.edns.expect("needed for the code").version(), 0);
        assert!(reply.answers.is_empty());
    }
}

#[test]
fn edns_is_answered_with_edns_and_only_then() {
    assert_eq!(reply(&orders()).edns, None);
    for (name, kind) in [
        ("orders.mesh.internal.", RecordType::A),
        ("orders.mesh.internal.", RecordType::AAAA),
        ("nothing.mesh.internal.", RecordType::A),
    ] {
        let edns = reply(&with_edns(message(name, kind), 4096, 0)).edns.expect("answered");
        assert_eq!((edns.max_payload(), edns.version()), (UDP_PAYLOAD_BYTES, 0));
    }
}

#[test]
fn unknown_options_are_ignored_and_the_do_bit_is_copied() {
    let mut asked = Edns::new();
    asked.set_dnssec_ok(true).options_mut().insert(EdnsOption::Unknown(10, vec![1; 8]));
    let mut message = orders();
    message.set_edns(asked);
    let reply = reply(&message);
    let edns = reply.edns.expect("answered");
    assert!(edns.flags().dnssec_ok);
    assert!(edns.options().as_ref().is_empty());
    assert_eq!(reply.answers.len(), 1);
}

#[test]
fn a_blocked_vip_says_why_to_those_who_speak_edns() {
    let question = message("stolen.mesh.internal.", RecordType::A);
    let with = reply(&with_edns(question.clone(), 1232, 0));
    let edns = with.edns.expect("answered");
    let Some(EdnsOption::Unknown(15, data)) = edns.option(EdnsCode::Unknown(15)) else {
        panic!("an extended error");
    };
    assert_eq!(data[..2], [0, 15]);
    assert_eq!(&data[2..], b"port 80 is held by nginx (pid 7)");
    assert_eq!((with.metadata.response_code, with.authorities.len()), (ResponseCode::NoError, 1));

    let without = reply(&question);
    assert_eq!((without.edns, without.authorities.len()), (None, 1));
}

/// Asserts a format error under the id, without the question.
fn assert_format_error(bytes: &[u8]) {
    let (response, message) = sent(bytes).expect("answered");
    assert_eq!(message.metadata.response_code, ResponseCode::FormErr);
    assert_eq!((message.metadata.id, message.queries.len()), (0x1234, 0));
    assert_eq!(response.outcome, Outcome::FormErr);
}

#[test]
fn what_is_not_one_question_is_a_format_error() {
    let mut none = orders();
    none.queries.clear();
    assert_format_error(&none.to_vec().expect("encodes"));
    let mut many = orders();
    for _ in 1..200 {
        assert!(many.to_vec().expect("encodes").len() < 4096);
        many.add_query(many.queries[0].clone());
        assert_format_error(&many.to_vec().expect("encodes"));
    }
}

#[test]
fn what_cannot_be_read_is_left_to_hickory() {
    let bytes = orders().to_vec().expect("encodes");
    for end in 12..bytes.len() {
        assert_eq!(sent(&bytes[..end]), None);
    }
    let twelve = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for to in [12, 16] {
        assert_eq!(sent(&[&twelve[..], &[0xC0, to, 0, 1, 0, 1]].concat()), None, "a loop of pointers");
    }
    let mut twice = with_edns(orders(), 1232, 0).to_vec().expect("encodes");
    let opt = twice[twice.len() - 11..].to_vec();
    twice.extend(opt);
    twice[11] = 2;
    assert_eq!(sent(&twice), None, "a second OPT");
}

#[test]
fn what_cannot_be_read_is_a_format_error_under_its_id_unless_it_is_a_response() {
    let mut message = orders();
    message.metadata.op_code = OpCode::Update;
    let mut bytes = message.to_vec().expect("encodes");
    bytes.truncate(20);
    assert_eq!(unreadable(&bytes).expect("answered"), [0x12, 0x34, 0xa9, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(unreadable(&bytes[..11]), None);
    bytes[2] |= 0x80;
    assert_eq!(unreadable(&bytes), None, "a response");
}

#[test]
fn a_question_that_points_into_the_header_is_a_format_error() {
    // The counts of the header are also the name "." at offset 6.
    let bytes = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'w', b'w', b'w', 0xC0, 6, 0, 1, 0, 1];
    assert_format_error(&bytes);
}

#[test]
fn a_question_with_records_in_other_sections_is_a_format_error() {
    let record = crate::records::address([10, 0, 0, 1].into());
    let record = hickory_proto::rr::Record::from_rdata(orders().queries[0].name().clone(), 1, record);
    let (mut answer, mut authority) = (orders(), orders());
    answer.add_answer(record.clone());
    authority.add_authority(record);
    for message in [answer, authority] {
        let (response, _) = sent(&message.to_vec().expect("encodes")).expect("answered");
        assert_eq!(response.outcome, Outcome::FormErr);
    }
}

#[test]
fn bytes_after_the_question_are_ignored() {
    let mut bytes = orders().to_vec().expect("encodes");
    bytes.extend([0xff; 30]);
    assert_eq!(sent(&bytes).expect("answered").0.outcome, Outcome::NoError);
}

#[test]
fn the_question_comes_back_byte_for_byte() {
    let bytes = message("OrDeRs.MeSh.iNtErNaL.", RecordType::A).to_vec().expect("encodes");
    let (response, reply) = sent(&bytes).expect("answered");
    assert_eq!(response.bytes[12..bytes.len()], bytes[12..]);
    assert_eq!(reply.answers[0].name.to_ascii(), "OrDeRs.MeSh.iNtErNaL.");
}
