//! Sizes and truncation: for any answer and any limit.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use proptest::prelude::*;

use super::*;
use crate::records;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("valid")
}

fn envelope(asked: &Name, edns: bool, limit: u16) -> Envelope {
    Envelope {
        metadata: Metadata::new(7, MessageType::Response, OpCode::Query),
        query: Some(Query::query(asked.clone(), RecordType::SRV)),
        edns: edns.then(Edns::new),
        limit,
    }
}

/// `count` SRV records under `asked`, with one A record for each target.
fn services(asked: &Name, count: usize, glue: usize) -> Answer {
    let target = |number: usize| name(&format!("instance-{number}.orders.west.mesh.internal."));
    let service =
        |number| Record::from_rdata(asked.clone(), 2, records::service(0, 100, 5432, target(number)));
    let address = |number: usize| {
        let [.., high, low] = number.to_be_bytes();
        Record::from_rdata(target(number), 30, records::address(Ipv4Addr::new(127, 240, high, low).into()))
    };
    Answer {
        rcode: ResponseCode::NoError,
        answers: (0..count).map(service).collect(),
        authorities: Vec::new(),
        additionals: (0..glue).map(address).collect(),
        extended: None,
    }
}

/// Decodes a response and checks that nothing follows it.
fn whole(response: &Response) -> Message {
    let mut decoder = BinDecoder::new(&response.bytes);
    let message = Message::read(&mut decoder).expect("decodes");
    assert!(decoder.is_empty(), "no bytes after the message");
    message
}

proptest! {
    #[test]
    fn every_response_decodes_fits_and_keeps_its_opt(
        count in 0_usize..80,
        glue in 0_usize..40,
        limit in 512_u16..4096,
        edns: bool,
        text in "\\PC{0,200}",
        asked in "[a-zA-Z0-9]{1,60}",
    ) {
        let asked = name(&format!("_pg._tcp.{asked}.mesh.internal."));
        let extended = Some(ExtendedError { code: 15, text });
        let answer = Answer { extended, ..services(&asked, count, glue.min(count)) };
        let response = envelope(&asked, edns, limit).seal(&answer);

        prop_assert!(response.bytes.len() <= usize::from(limit));
        let message = whole(&response);
        prop_assert_eq!(message.edns.is_some(), edns);
        prop_assert!(message.queries[0].name().eq_case(&asked));
        prop_assert_eq!(message.metadata.truncation, response.truncated);
        prop_assert_eq!(response.truncated, message.answers.len() < count, "TC when answers are missing, only then");
        prop_assert_eq!(&message.answers[..], &answer.answers[..message.answers.len()], "the first ones, in order");
        prop_assert_eq!(&message.additionals[..], &answer.additionals[..message.additionals.len()]);
        if response.truncated {
            prop_assert!(message.additionals.is_empty(), "no glue where answers are missing");
        }
    }

    #[test]
    fn a_truncated_response_has_no_room_for_one_answer_more(count in 40_usize..80, limit in 512_u16..1232) {
        let asked = name("_pg._tcp.orders.mesh.internal.");
        let response = envelope(&asked, true, limit).seal(&services(&asked, count, 0));
        let sent = whole(&response).answers.len();
        let more = envelope(&asked, true, u16::MAX).seal(&services(&asked, sent + 1, 0));
        prop_assert!(response.truncated && more.bytes.len() > usize::from(limit));
    }
}

#[test]
fn glue_is_dropped_before_answers_and_without_tc() {
    let asked = name("_pg._tcp.orders.mesh.internal.");
    let full = envelope(&asked, true, u16::MAX).seal(&services(&asked, 12, 12)).bytes.len();
    let bare = envelope(&asked, true, u16::MAX).seal(&services(&asked, 12, 0)).bytes.len();
    assert!(bare > 512, "the limit decides");
    for limit in bare..full {
        let limit = u16::try_from(limit).expect("small");
        let response = envelope(&asked, true, limit).seal(&services(&asked, 12, 12));
        assert!(!response.truncated);
        let message = whole(&response);
        assert_eq!(message.answers.len(), 12);
        assert!(message.additionals.len() < 12);
    }
}

#[test]
fn twenty_nine_addresses_fit_512_bytes() {
    let asked = name("orders.direct.mesh.internal.");
    let address = |last: u8| {
        Record::from_rdata(asked.clone(), 2, records::address(Ipv4Addr::new(10, 0, 0, last).into()))
    };
    let answer = Answer { answers: (0..200).map(address).collect(), ..services(&asked, 0, 0) };
    let response = envelope(&asked, false, 512).seal(&answer);
    let expected = (512 - HEADER_BYTES - (asked.len() + 1 + 4)) / 16;
    assert!(response.truncated);
    assert!(whole(&response).answers.len().abs_diff(expected) <= 1);
}

#[test]
fn the_owner_of_each_answer_is_a_pointer_to_the_question() {
    let asked = name("_pg._TCP.orders.mesh.internal.");
    let one = envelope(&asked, false, u16::MAX).seal(&services(&asked, 1, 0)).bytes.len();
    let two = envelope(&asked, false, u16::MAX).seal(&services(&asked, 2, 0)).bytes.len();
    let target = name("instance-0.orders.west.mesh.internal.").len() + 1;
    assert!(two - one <= 2 + 10 + 6 + target, "{} bytes for a record", two - one);
}

#[test]
fn nine_hundred_srv_records_fit_a_tcp_message() {
    let asked = name("_pg._tcp.orders.mesh.internal.");
    let response = envelope(&asked, true, u16::MAX).seal(&services(&asked, 900, 16));
    assert!(!response.truncated);
    assert_eq!(whole(&response).answers.len(), 900);
}

#[test]
fn more_than_a_tcp_message_holds_is_truncated_cleanly() {
    let asked = name("_pg._tcp.orders.mesh.internal.");
    let response = envelope(&asked, true, u16::MAX).seal(&services(&asked, 3_000, 16));
    assert!(response.truncated);
    let message = whole(&response);
    assert!(message.answers.len() > 900 && message.edns.is_some());
}

#[test]
fn the_longest_question_leaves_room_for_opt_and_reason_in_512_bytes() {
    let label = "a".repeat(63);
    let asked = name(&format!("{label}.{label}.{label}.{}.", "b".repeat(61)));
    let extended = Some(ExtendedError { code: 15, text: "\u{e9}".repeat(400) });
    let response = envelope(&asked, true, 512).seal(&Answer { extended, ..services(&asked, 9, 9) });
    assert!(response.bytes.len() <= 512 && response.truncated);
    assert!(whole(&response).edns.is_some());
}

#[test]
fn a_reason_is_cut_between_characters() {
    assert_eq!(cut("short", 120), "short");
    assert_eq!(cut("abc", 2), "ab");
    assert_eq!(cut("a\u{e9}\u{e9}", 4), "a\u{e9}");
    assert_eq!(cut("\u{1f980}", 3), "");
}

#[test]
fn a_code_above_fifteen_is_split_between_header_and_opt() {
    let asked = name("orders.mesh.internal.");
    let answer = Answer { rcode: ResponseCode::BADVERS, ..services(&asked, 0, 0) };
    let response = envelope(&asked, true, 512).seal(&answer);
    assert_eq!(response.bytes[3] & 0x0f, 0);
    assert_eq!(u16::from(whole(&response).metadata.response_code), 16);
}
