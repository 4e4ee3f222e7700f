//! Sizes and truncation: for any answer and any limit.

use std::net::{Ipv4Addr, SocketAddr};

use hickory_proto::op::{Message as Decoded, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use proptest::prelude::*;

use super::*;
use crate::fuzz::{Response, encode};
use crate::records;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("valid")
}

/// Who asks: over what, and with an OPT of which payload.
type Client = (Protocol, Option<u16>);

const TCP: Client = (Protocol::Tcp, Some(1232));

fn udp(payload: u16) -> Client {
    (Protocol::Udp, Some(payload))
}

/// Answers the question for SRV of `asked` with `answer`.
fn seal(asked: &Name, client: Client, answer: Answer) -> Response {
    seal_by(Writer::HickoryServer, asked, client, answer)
}

/// As [`seal`], written by `writer`.
fn seal_by(writer: Writer, asked: &Name, (protocol, payload): Client, answer: Answer) -> Response {
    let mut message = Decoded::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(asked.clone(), RecordType::SRV));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    let source = SocketAddr::from(([127, 0, 0, 1], 9));
    let request = Request::from_bytes(message.to_vec().expect("encodes"), source, protocol).expect("decodes");
    encode(&Reply::new(&request, answer, writer), protocol, writer).expect("encodes")
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
        ties: None,
        rcode: ResponseCode::NoError,
        answers: (0..count).map(service).collect(),
        authorities: Vec::new(),
        additionals: (0..glue).map(address).collect(),
        extended: None,
        forwarded: false,
    }
}

/// Decodes a response and checks that nothing follows it.
fn whole(response: &Response) -> Decoded {
    let mut decoder = BinDecoder::new(&response.bytes);
    let message = Decoded::read(&mut decoder).expect("decodes");
    assert!(decoder.is_empty(), "no bytes after the message");
    message
}

proptest! {
    #[test]
    fn every_response_decodes_fits_and_keeps_its_opt(
        count in 0_usize..80,
        glue in 0_usize..40,
        payload in proptest::option::of(0_u16..4096),
        over_tcp: bool,
        own: bool,
        text in "\\PC{0,200}",
        asked in "[a-zA-Z0-9]{1,60}",
    ) {
        let asked = name(&format!("_pg._tcp.{asked}.mesh.internal."));
        let extended = Some(ExtendedError { code: 15, text });
        let answer = Answer { extended, ..services(&asked, count, glue.min(count)) };
        let protocol = if over_tcp { Protocol::Tcp } else { Protocol::Udp };
        let writer = if own { Writer::Own } else { Writer::HickoryServer };
        let response = seal_by(writer, &asked, (protocol, payload), answer.clone());

        let limit = if over_tcp { u16::MAX } else { payload.unwrap_or(512).clamp(512, 1232) };
        prop_assert!(response.bytes.len() <= usize::from(limit));
        let message = whole(&response);
        prop_assert_eq!(message.edns.is_some(), payload.is_some());
        prop_assert!(message.queries[0].name().eq_case(&asked));
        prop_assert_eq!(message.metadata.truncation, response.truncated, "hickory truncates nothing");
        prop_assert_eq!(response.truncated, message.answers.len() < count, "TC when answers are missing, only then");
        prop_assert_eq!(&message.answers[..], &answer.answers[..message.answers.len()], "the first ones, in order");
        prop_assert_eq!(&message.additionals[..], &answer.additionals[..message.additionals.len()]);
        if response.truncated {
            prop_assert!(message.additionals.is_empty(), "no glue where answers are missing");
        }
    }

    #[test]
    fn a_truncated_response_has_no_room_for_one_answer_more(count in 40_usize..80, payload in 512_u16..1232) {
        let asked = name("_pg._tcp.orders.mesh.internal.");
        let response = seal(&asked, udp(payload), services(&asked, count, 0));
        let sent = whole(&response).answers.len();
        let more = seal(&asked, TCP, services(&asked, sent + 1, 0)).bytes.len();
        // The encoder writes a name in full before it shortens it to a pointer.
        let room_for_names = asked.len() + 1;
        prop_assert!(response.truncated && more + room_for_names > usize::from(payload));
    }

    #[test]
    fn written_by_us_the_limit_is_met_to_the_byte(count in 1_usize..40, glue in 0_usize..10, less in 1_u16..3) {
        let asked = name("_pg._tcp.orders.mesh.internal.");
        let glue = glue.min(count);
        let seal = |client| seal_by(Writer::Own, &asked, client, services(&asked, count, glue));
        let all = u16::try_from(seal(TCP).bytes.len()).expect("small");
        if (512..=1232).contains(&all) {
            let exact = whole(&seal(udp(all)));
            prop_assert_eq!((exact.answers.len(), exact.additionals.len()), (count, glue));
        }
        if (513..=1232).contains(&all) {
            let short = seal(udp((all - less).max(512)));
            let message = whole(&short);
            prop_assert_eq!(message.answers.len() + message.additionals.len(), count + glue - 1);
            prop_assert_eq!(short.truncated, glue == 0, "glue goes first, and silently");
        }
    }
}

#[test]
fn glue_is_dropped_before_answers_and_without_tc() {
    let asked = name("_pg._tcp.orders.mesh.internal.");
    let full = seal(&asked, TCP, services(&asked, 12, 12)).bytes.len();
    let bare = seal(&asked, TCP, services(&asked, 12, 0)).bytes.len();
    assert!(bare > 512 && full < 1232, "the limit decides");
    for payload in bare + asked.len()..full {
        let payload = u16::try_from(payload).expect("small");
        let response = seal(&asked, udp(payload), services(&asked, 12, 12));
        assert!(!response.truncated);
        let message = whole(&response);
        assert_eq!(message.answers.len(), 12);
        assert!(message.additionals.len() < 12);
    }
}

#[test]
fn of_200_addresses_512_bytes_hold_26_and_29_written_by_us() {
    let asked = name("orders.direct.mesh.internal.");
    let address = |last: u8| {
        Record::from_rdata(asked.clone(), 2, records::address(Ipv4Addr::new(10, 0, 0, last).into()))
    };
    let answer = Answer { answers: (0..200).map(address).collect(), ..services(&asked, 0, 0) };
    for (writer, count) in [(Writer::HickoryServer, 26), (Writer::Own, 29)] {
        let response = seal_by(writer, &asked, (Protocol::Udp, None), answer.clone());
        assert!(response.truncated);
        assert_eq!(whole(&response).answers.len(), count, "{writer:?}");
    }
}

#[test]
fn owners_after_the_first_are_pointers() {
    let asked = name("_pg._TCP.orders.mesh.internal.");
    let one = seal(&asked, TCP, services(&asked, 1, 0)).bytes.len();
    let two = seal(&asked, TCP, services(&asked, 2, 0)).bytes.len();
    let target = name("instance-0.orders.west.mesh.internal.").len() + 1;
    assert!(two - one <= 2 + 10 + 6 + target, "{} bytes for a record", two - one);
}

#[test]
fn seven_hundred_srv_records_fit_a_tcp_message() {
    let asked = name("_pg._tcp.orders.mesh.internal.");
    let response = seal(&asked, TCP, services(&asked, 700, 16));
    assert!(!response.truncated);
    assert_eq!(whole(&response).answers.len(), 700);
}

#[test]
fn more_than_a_tcp_message_holds_is_left_out_without_tc() {
    let asked = name("_pg._tcp.orders.mesh.internal.");
    for writer in [Writer::HickoryServer, Writer::Own] {
        let response = seal_by(writer, &asked, TCP, services(&asked, 3_000, 16));
        assert!(!response.truncated, "TC would send the client to where it is");
        let message = whole(&response);
        assert!(message.answers.len() > 700 && message.edns.is_some());
    }
}

#[test]
fn the_longest_question_leaves_room_for_opt_and_reason_in_512_bytes() {
    let label = "a".repeat(63);
    let asked = name(&format!("{label}.{label}.{label}.{}.", "b".repeat(61)));
    let extended = Some(ExtendedError { code: 15, text: "\u{e9}".repeat(400) });
    let response = seal(&asked, udp(512), Answer { extended, ..services(&asked, 9, 9) });
    assert!(response.bytes.len() <= 512 && response.truncated);
    let edns = whole(&response).edns.expect("kept");
    assert_eq!(edns.options().as_ref().len(), 1);
}

#[test]
fn a_client_takes_512_bytes_unless_it_says_more_and_1232_at_most() {
    let offered = |payload: u16| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        limit(Protocol::Udp, Some(&edns))
    };
    assert_eq!(limit(Protocol::Udp, None), 512);
    assert_eq!(
        [0, 100, 511, 512, 513, 1231, 1232, 1233, 4096, 65535].map(offered),
        [512, 512, 512, 512, 513, 1231, 1232, 1232, 1232, 1232]
    );
    assert_eq!(limit(Protocol::Tcp, None), u16::MAX);
}

#[test]
fn a_failure_is_not_authoritative() {
    let asked = name("_pg._tcp.orders.mesh.internal.");
    let message = whole(&seal(&asked, udp(1232), Answer::empty(ResponseCode::ServFail)));
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert!(!message.metadata.authoritative && message.authorities.is_empty());
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
    let response = seal(&asked, udp(512), Answer::empty(ResponseCode::BADVERS));
    assert_eq!(response.bytes[3] & 0x0f, 0);
    assert_eq!(u16::from(whole(&response).metadata.response_code), 16);
}
