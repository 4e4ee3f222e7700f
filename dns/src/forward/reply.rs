//! Replies: what a datagram of an upstream server is worth.
//!
//! Owns: the check of id and question, before anything else is read. Must not know: sockets, zones.
//! Driven by: `exchange`, once per message that came from the server's address.

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// What a message is.
#[derive(Debug)]
pub(super) enum Read {
    /// The answer.
    Answer(Message),
    /// The answer, cut: to be asked for over TCP.
    Truncated,
    /// Nothing that answers the question; the right answer may still come.
    Dropped(Dropped),
}

/// Why a message is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// The id is another one: late, or forged.
    WrongId,
    /// The question is another one.
    WrongQuestion,
    /// No response, or one that cannot be read.
    Malformed,
}

/// Reads a message that should answer `sent`, a message with one question.
pub(super) fn read(bytes: &[u8], sent: &Message) -> Read {
    if bytes.first_chunk().is_some_and(|id| u16::from_be_bytes(*id) != sent.metadata.id) {
        return Read::Dropped(Dropped::WrongId);
    }
    let Some((head, question)) = head(bytes) else { return Read::Dropped(Dropped::Malformed) };
    match (&question, sent.queries.first()) {
        (Some(question), Some(asked)) if question == asked => {}
        // Some servers say that they do not serve without repeating the question.
        (None, _) if head.response_code != ResponseCode::NoError => {}
        _ => return Read::Dropped(Dropped::WrongQuestion),
    }
    if head.truncation {
        return Read::Truncated;
    }
    Message::from_vec(bytes).map_or(Read::Dropped(Dropped::Malformed), Read::Answer)
}

/// Reads header and question only: what follows is worth nothing while they are wrong.
fn head(bytes: &[u8]) -> Option<(Metadata, Option<Query>)> {
    let mut decoder = BinDecoder::new(bytes);
    let header = hickory_proto::op::Header::read(&mut decoder).ok()?;
    let metadata = header.metadata;
    if metadata.message_type != MessageType::Response || metadata.op_code != OpCode::Query {
        return None;
    }
    let question = match header.counts.queries {
        0 => None,
        1 => Some(Query::read(&mut decoder).ok()?),
        _ => return None,
    };
    Some((metadata, question))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    fn sent() -> Message {
        let mut message = Message::query();
        message.metadata.id = 77;
        message.add_query(Query::query(Name::from_ascii("www.example.").expect("name"), RecordType::A));
        message
    }

    fn answer(change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::response(77, OpCode::Query);
        message.add_query(sent().queries.remove(0));
        change(&mut message);
        message.to_vec().expect("written")
    }

    fn dropped(bytes: &[u8]) -> Option<Dropped> {
        match read(bytes, &sent()) {
            Read::Dropped(why) => Some(why),
            Read::Answer(_) | Read::Truncated => None,
        }
    }

    #[test]
    fn the_answer_to_the_question_is_taken_in_any_case() {
        assert!(matches!(read(&answer(|_| ()), &sent()), Read::Answer(_)));
        let upper = answer(|m| m.queries[0].name = Name::from_ascii("WWW.Example.").expect("name"));
        assert!(matches!(read(&upper, &sent()), Read::Answer(_)));
    }

    #[test]
    fn another_id_or_question_is_no_answer() {
        assert_eq!(dropped(&answer(|m| m.metadata.id = 78)), Some(Dropped::WrongId));
        let name = answer(|m| m.queries[0].name = Name::from_ascii("www.example2.").expect("name"));
        assert_eq!(dropped(&name), Some(Dropped::WrongQuestion));
        assert_eq!(
            dropped(&answer(|m| m.queries[0].query_type = RecordType::AAAA)),
            Some(Dropped::WrongQuestion)
        );
        let class = answer(|m| m.queries[0].query_class = hickory_proto::rr::DNSClass::CH);
        assert_eq!(dropped(&class), Some(Dropped::WrongQuestion));
        assert_eq!(dropped(&answer(|m| m.queries.clear())), Some(Dropped::WrongQuestion));
    }

    #[test]
    fn a_refusal_needs_no_question() {
        let refusal = answer(|m| {
            m.queries.clear();
            m.metadata.response_code = ResponseCode::FormErr;
        });
        assert!(matches!(read(&refusal, &sent()), Read::Answer(_)));
    }

    #[test]
    fn what_is_no_response_is_malformed() {
        assert_eq!(
            dropped(&answer(|m| m.metadata.message_type = MessageType::Query)),
            Some(Dropped::Malformed)
        );
        assert_eq!(dropped(&answer(|m| m.metadata.op_code = OpCode::Notify)), Some(Dropped::Malformed));
        let whole = answer(|_| ());
        for length in 2..whole.len() {
            assert_eq!(dropped(&whole[..length]), Some(Dropped::Malformed), "{length}");
        }
        assert_eq!(dropped(&[]), Some(Dropped::Malformed));
    }

    #[test]
    fn a_cut_answer_is_known_even_when_it_is_cut_within_a_record() {
        let mut cut = answer(|m| m.metadata.truncation = true);
        cut[7] = 3;
        cut.extend([0xc0, 12, 0, 1]);
        assert!(matches!(read(&cut, &sent()), Read::Truncated));
        cut[1] = 78;
        assert_eq!(dropped(&cut), Some(Dropped::WrongId), "an id is looked at first");
    }
}
