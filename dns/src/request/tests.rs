//! Which bytes are a question, and the code of every refusal.

use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};

use super::*;
use crate::Outcome;
use crate::scripted::{mesh, zone};

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

fn sent(bytes: &[u8], transport: Transport) -> Option<(Response, Message)> {
    let response = respond(bytes, transport, &mesh(), &zone(), 0)?;
    let message = Message::from_vec(&response.bytes).expect("a response decodes");
    Some((response, message))
}

fn reply(message: &Message) -> Message {
    sent(&message.to_vec().expect("encodes"), Transport::Udp).expect("answered").1
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
    assert_eq!(sent(&response.to_vec().expect("encodes"), Transport::Udp), None);
    let mut damaged = response.to_vec().expect("encodes");
    damaged.truncate(20);
    assert_eq!(sent(&damaged, Transport::Udp), None, "a damaged response is one, too");
    for length in 0..12 {
        assert_eq!(sent(&vec![0; length], Transport::Udp), None);
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
    use hickory_proto::rr::rdata::opt::EdnsOption;
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
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
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

#[test]
fn what_is_not_one_question_is_a_format_error() {
    let format_error = |bytes: &[u8]| {
        let (response, message) = sent(bytes, Transport::Udp).expect("answered");
        assert_eq!(message.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(message.metadata.id, 0x1234);
        assert_eq!(response.outcome, Outcome::FormErr);
    };

    let mut none = orders();
    none.queries.clear();
    format_error(&none.to_vec().expect("encodes"));
    let mut two = orders();
    two.add_query(two.queries[0].clone());
    format_error(&two.to_vec().expect("encodes"));
    let bytes = orders().to_vec().expect("encodes");
    for end in 12..bytes.len() {
        format_error(&bytes[..end]);
    }
}

#[test]
fn loops_of_pointers_and_a_second_opt_are_format_errors() {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xC0, 12, 0, 1, 0, 1];
    assert_eq!(sent(&bytes, Transport::Udp).expect("answered").0.outcome, Outcome::FormErr);
    bytes[12..14].copy_from_slice(&[0xC0, 16]);
    assert_eq!(sent(&bytes, Transport::Udp).expect("answered").0.outcome, Outcome::FormErr);

    let mut twice = with_edns(orders(), 1232, 0).to_vec().expect("encodes");
    let opt = twice[twice.len() - 11..].to_vec();
    twice.extend(opt);
    twice[11] = 2;
    assert_eq!(sent(&twice, Transport::Udp).expect("answered").0.outcome, Outcome::FormErr);
}

#[test]
fn a_question_with_records_in_other_sections_is_a_format_error() {
    for section in [7, 9] {
        let mut bytes = orders().to_vec().expect("encodes");
        bytes[section] = 1;
        assert_eq!(sent(&bytes, Transport::Udp).expect("answered").0.outcome, Outcome::FormErr);
    }
}

#[test]
fn bytes_after_the_question_are_ignored() {
    let mut bytes = orders().to_vec().expect("encodes");
    bytes.extend([0xff; 30]);
    assert_eq!(sent(&bytes, Transport::Udp).expect("answered").0.outcome, Outcome::NoError);
}

#[test]
fn the_question_comes_back_byte_for_byte() {
    let bytes = message("OrDeRs.MeSh.iNtErNaL.", RecordType::A).to_vec().expect("encodes");
    let (response, reply) = sent(&bytes, Transport::Udp).expect("answered");
    assert_eq!(response.bytes[12..bytes.len()], bytes[12..]);
    assert_eq!(reply.answers[0].name.to_ascii(), "OrDeRs.MeSh.iNtErNaL.");
}

#[test]
fn a_client_takes_512_bytes_unless_it_says_more_and_1232_at_most() {
    let limit = |payload: u16| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        limit(Transport::Udp, Some(&edns))
    };
    assert_eq!(super::limit(Transport::Udp, None), 512);
    assert_eq!(
        [0, 100, 511, 512, 513, 1231, 1232, 1233, 4096, 65535].map(limit),
        [512, 512, 512, 512, 513, 1231, 1232, 1232, 1232, 1232]
    );
    assert_eq!(super::limit(Transport::Tcp, None), u16::MAX);
}

#[test]
fn a_failure_carries_no_records_and_no_authority() {
    let Intake::Question(request) = Request::read(&orders().to_vec().expect("encodes"), Transport::Udp)
    else {
        panic!("a question");
    };
    let response = request.fail();
    assert_eq!(response.outcome, Outcome::ServFail);
    let message = Message::from_vec(&response.bytes).expect("decodes");
    assert!(!message.metadata.authoritative && message.authorities.is_empty());
}
