//! Requests: which messages are a question, and with which code the others are refused.
//!
//! Owns: checks of opcode, question, EDNS version, class. Must not know: names, sizes, sockets.
//! Driven by: `server`, once per message that hickory-server could read; `fuzz`.

use hickory_proto::op::{OpCode, Query, ResponseCode};
use hickory_proto::rr::DNSClass;
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

const TYPE_AND_CLASS_BYTES: usize = 4;

#[cfg(test)]
mod tests;
