//! Requests: which messages are a question, and with which code the others are refused.
//!
//! Owns: checks of opcode, question, EDNS version, class. Must not know: names, sizes, sockets.
//! Driven by: `server`, once per message that hickory-server could read; `fuzz`.

use hickory_proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::DNSClass;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable};
use hickory_server::server::Request;
use hickory_server::zone_handler::Queries;

use crate::Question;

/// Returns the question to answer, or the code to refuse it with. hickory-server hands on every opcode, class,
/// EDNS version and number of questions.
pub(crate) fn judge(request: &Request) -> Result<Question, ResponseCode> {
    if request.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    let bare = request.answers.is_empty() && request.authorities.is_empty();
    let query = only_query(&request.queries).filter(|_| bare).ok_or(ResponseCode::FormErr)?;
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Err(ResponseCode::BADVERS);
    }
    if query.query_class() != DNSClass::IN {
        return Err(ResponseCode::Refused);
    }
    Ok(Question { name: query.name.clone(), record_type: query.query_type() })
}

/// Returns the question when there is exactly one, written in full.
///
/// A pointer in it could only lead into the header. Questions are sent back as the bytes they came in, so
/// beneath the header of the response such a pointer would mean another name, or none.
pub(crate) fn only_query(queries: &Queries) -> Option<&Query> {
    let [query] = queries.queries() else { return None };
    let query = query.original();
    let name_bytes: usize = query.name.iter().map(|label| 1 + label.len()).sum::<usize>() + 1;
    (queries.as_bytes().len() == name_bytes + TYPE_AND_CLASS_BYTES).then_some(query)
}

/// Returns what to send for a message that cannot be read, for loops that read themselves: a format error under
/// its id, or nothing when it is no whole header, or itself a response (two servers would talk for ever).
pub(crate) fn unreadable(bytes: &[u8]) -> Option<Vec<u8>> {
    let header = Header::read(&mut BinDecoder::new(bytes)).ok()?;
    if header.metadata.message_type == MessageType::Response {
        return None;
    }
    let mut metadata = Metadata::response_from_request(&header.metadata);
    metadata.response_code = ResponseCode::FormErr;
    Header { metadata, counts: HeaderCounts::default() }.to_bytes().ok()
}

pub(crate) const TYPE_AND_CLASS_BYTES: usize = 4;

#[cfg(test)]
mod tests;
