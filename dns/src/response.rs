//! Responses: an answer fitted into the bytes a client can take.
//!
//! Owns: header, OPT, sizes, truncation. Must not know: names and what they mean, sockets.
//! Driven by: `server`, once per response, and `fuzz`. The bytes are written by hickory-server, or by
//! [`Reply::to_bytes`] where a loop of ours sends them.

use std::slice::Iter;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Metadata, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::serialize::binary::{BinDecoder, BinEncodable, BinEncoder};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder, Queries};

use crate::request::{TYPE_AND_CLASS_BYTES, only_query};
use crate::{Answer, ExtendedError, Outcome};

/// Largest datagram sent, and what our OPT offers to receive: fits every path without fragments
/// (DNS flag day 2020).
pub const UDP_PAYLOAD_BYTES: u16 = 1232;

/// What hickory-server encodes and sends.
pub(crate) type Message<'a> =
    MessageResponse<'a, 'a, Iter<'a, Record>, Iter<'a, Record>, Iter<'a, Record>, Iter<'a, Record>>;

/// A response that fits: hickory-server's own truncation, which leaves parts of a record behind, drops the OPT
/// and sets TC for missing glue, finds nothing to do.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    request: &'a Request,
    /// Sent in place of a question that cannot be sent back.
    no_question: Option<Queries>,
    metadata: Metadata,
    edns: Option<Edns>,
    answer: Answer,
}

/// Who writes the bytes, which decides how many records fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// hickory-server: the first owner is written in full, and a name needs room before it is shortened.
    HickoryServer,
    /// [`Reply::to_bytes`]: each owner that is the question is a pointer, and the limit is met to the byte.
    Own,
}

impl<'a> Reply<'a> {
    /// Fits an answer to the client, for `writer`.
    ///
    /// Glue that does not fit is left out silently. When answers do not fit, those that do are sent, best first,
    /// with TC and without glue (RFC 2181 9). Over TCP there is no TC: it would send the client to where it is.
    /// The OPT is always there when the client sent one (RFC 6891 7).
    pub(crate) fn new(request: &'a Request, answer: Answer, writer: Writer) -> Self {
        let mut reply = Self {
            no_question: if only_query(&request.queries).is_some() { None } else { no_question() },
            metadata: Metadata::response_from_request(&request.metadata),
            edns: request.edns.as_ref().map(|asked| opt(asked, answer.extended.as_ref())),
            request,
            answer,
        };
        reply.metadata.response_code = reply.answer.rcode;
        reply.metadata.authoritative = !reply.answer.forwarded
            && matches!(reply.answer.rcode, ResponseCode::NoError | ResponseCode::NXDomain);

        let opt_bytes = reply.edns.as_ref().and_then(|edns| edns.to_bytes().ok()).unwrap_or_default().len();
        let room = usize::from(limit(request.protocol(), request.edns.as_ref())).saturating_sub(opt_bytes);
        let queries = reply.no_question.as_ref().unwrap_or(&request.queries);
        let fits = fit(&mut reply.answer, queries, room, writer);
        reply.metadata.truncation = !fits && request.protocol() == Protocol::Udp;
        reply
    }

    /// Says whether names of others are answered here too (RA).
    pub(crate) fn offering(mut self, recursion: bool) -> Self {
        self.metadata.recursion_available = recursion;
        self
    }

    /// Returns the message for hickory-server to send.
    pub(crate) fn message(&self) -> Message<'_> {
        let queries = self.no_question.as_ref().unwrap_or(&self.request.queries);
        let Answer { answers, authorities, additionals, .. } = &self.answer;
        let builder = MessageResponseBuilder::new(queries, self.edns.as_ref());
        builder.build(self.metadata, answers, authorities, &[], additionals)
    }

    /// Writes the message. Fitted for [`Writer::Own`] it has at most the bytes the client can take.
    ///
    /// # Errors
    /// A record that no message can hold: a bug.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, ProtoError> {
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        let queries = self.no_question.as_ref().unwrap_or(&self.request.queries);
        begin(&mut encoder, queries, Writer::Own)?;
        // The same bytes are written there once more; what is kept is where their labels are.
        encoder.set_offset(0);
        self.message().destructive_emit(&mut encoder)?;
        Ok(bytes)
    }

    /// How the question ended.
    pub(crate) fn outcome(&self) -> Outcome {
        Outcome::of(self.answer.rcode, !self.answer.answers.is_empty())
    }

    /// Whether TC is set: answers are missing, to be asked for over TCP.
    pub(crate) fn truncated(&self) -> bool {
        self.metadata.truncation
    }
}

fn no_question() -> Option<Queries> {
    Queries::read(&mut BinDecoder::new(&[]), 0).ok()
}

/// Returns how many bytes the client can take (RFC 6891 6.2.5: less than 512 means 512).
fn limit(protocol: Protocol, edns: Option<&Edns>) -> u16 {
    match protocol {
        Protocol::Udp => edns.map_or(512, |edns| edns.max_payload().clamp(512, UDP_PAYLOAD_BYTES)),
        _ => u16::MAX,
    }
}

/// Returns our OPT; hickory-server adds the high bits of the code.
fn opt(asked: &Edns, extended: Option<&ExtendedError>) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_BYTES).set_dnssec_ok(asked.flags().dnssec_ok);
    if let Some(ExtendedError { code, text }) = extended {
        let option = [&code.to_be_bytes(), cut(text, MAX_EXTENDED_TEXT_BYTES).as_bytes()].concat();
        edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR_OPTION, option));
    }
    edns
}

/// Returns the bytes of our OPT for a client that asks for nothing special.
pub(crate) fn plain_opt(extended: Option<&ExtendedError>) -> Option<Vec<u8>> {
    opt(&Edns::new(), extended).to_bytes().ok()
}

/// Takes records away until the message without its OPT has at most `room` bytes. Returns whether all required
/// records stay.
fn fit(answer: &mut Answer, queries: &Queries, room: usize, writer: Writer) -> bool {
    // Written just as `writer` will, with the same compression, so that the sizes are the real ones.
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    if writer == Writer::HickoryServer {
        encoder.set_max_size(u16::try_from(room).unwrap_or(u16::MAX));
    }
    // The limit is at least 512: header, any question and any OPT fit.
    let mut fits = begin(&mut encoder, queries, writer).is_ok();
    for required in [&mut answer.answers, &mut answer.authorities] {
        fits = keep_fitting(&mut encoder, required, room, fits);
    }
    keep_fitting(&mut encoder, &mut answer.additionals, room, fits);
    fits
}

/// Writes an empty header and the question, to which the names that follow can point.
fn begin(encoder: &mut BinEncoder<'_>, queries: &Queries, writer: Writer) -> Result<(), ProtoError> {
    let question = queries.as_bytes();
    encoder.emit_vec(&[0; HEADER_BYTES])?;
    encoder.emit_vec(question)?;
    let end = HEADER_BYTES + question.len();
    match only_query(queries) {
        // To type and class as well, so that no name is ever found there.
        Some(_) if writer == Writer::HickoryServer => encoder.store_label_pointer(HEADER_BYTES, end),
        Some(query) => {
            let mut start = HEADER_BYTES;
            for label in query.name.iter() {
                encoder.store_label_pointer(start, end.saturating_sub(TYPE_AND_CLASS_BYTES + 1));
                start += 1 + label.len();
            }
        }
        None => {}
    }
    Ok(())
}

/// Keeps the records up to the first that does not fit, none unless `go_on`. Returns whether all stay.
fn keep_fitting(encoder: &mut BinEncoder<'_>, records: &mut Vec<Record>, room: usize, go_on: bool) -> bool {
    let all = records.len();
    let mut fits = |record: &Record| record.emit(encoder).is_ok() && encoder.len() <= room;
    let fitting = records.iter().take_while(|record| go_on && fits(record)).count();
    records.truncate(fitting);
    go_on && fitting == all
}

/// Returns the start of a text, at most `limit` bytes of it and no part of a character.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    if text.len() <= limit { text } else { text.get(..end).unwrap_or_default() }
}

/// The header of a message (RFC 1035 4.1.1).
pub(crate) const HEADER_BYTES: usize = 12;

/// The EDNS option of extended errors (RFC 8914 2).
const EXTENDED_ERROR_OPTION: u16 = 15;

/// Keeps header, longest question and OPT below 512 bytes: 12 + 259 + 11 + 6 + 120.
const MAX_EXTENDED_TEXT_BYTES: usize = 120;

#[cfg(test)]
mod tests;
