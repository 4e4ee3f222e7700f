//! Responses: an answer fitted into the bytes a client can take.
//!
//! Owns: header, OPT, sizes, truncation. Must not know: names and what they mean, sockets.
//! Driven by: `server`, once per response, and `fuzz`. The bytes are written by hickory-server.

use std::slice::Iter;

use hickory_proto::op::{Edns, Metadata, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::serialize::binary::{BinDecoder, BinEncodable, BinEncoder};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder, Queries};

use crate::request::only_query;
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

impl<'a> Reply<'a> {
    /// Fits an answer to the client.
    ///
    /// Glue that does not fit is left out silently. When answers do not fit, those that do are sent with TC
    /// and without glue (RFC 2181 9). The OPT is always there when the client sent one (RFC 6891 7).
    pub(crate) fn new(request: &'a Request, answer: Answer) -> Self {
        let mut reply = Self {
            no_question: if only_query(&request.queries).is_some() { None } else { no_question() },
            metadata: Metadata::response_from_request(&request.metadata),
            edns: request.edns.as_ref().map(|asked| opt(asked, answer.extended.as_ref())),
            request,
            answer,
        };
        reply.metadata.response_code = reply.answer.rcode;
        reply.metadata.authoritative =
            matches!(reply.answer.rcode, ResponseCode::NoError | ResponseCode::NXDomain);

        let opt_bytes = reply.edns.as_ref().and_then(|edns| edns.to_bytes().ok()).unwrap_or_default().len();
        let room = usize::from(limit(request.protocol(), request.edns.as_ref())).saturating_sub(opt_bytes);
        let queries = reply.no_question.as_ref().unwrap_or(&request.queries);
        reply.metadata.truncation = !fit(&mut reply.answer, queries, room);
        reply
    }

    /// Returns the message for hickory-server to send.
    pub(crate) fn message(&self) -> Message<'_> {
        let queries = self.no_question.as_ref().unwrap_or(&self.request.queries);
        let Answer { answers, authorities, additionals, .. } = &self.answer;
        let builder = MessageResponseBuilder::new(queries, self.edns.as_ref());
        builder.build(self.metadata, answers, authorities, &[], additionals)
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

/// Takes records away until the message without its OPT has at most `room` bytes. Returns whether all required
/// records stay.
fn fit(answer: &mut Answer, queries: &Queries, room: usize) -> bool {
    // Written just as hickory-server will, with the same compression, so that the sizes are the real ones.
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::try_from(room).unwrap_or(u16::MAX));
    let question = queries.as_bytes();
    // The limit is at least 512: header, any question and any OPT fit.
    let mut fits = encoder.emit_vec(&[0; HEADER_BYTES]).is_ok() && encoder.emit_vec(question).is_ok();
    if fits && !question.is_empty() {
        encoder.store_label_pointer(HEADER_BYTES, HEADER_BYTES + question.len());
    }

    for required in [&mut answer.answers, &mut answer.authorities] {
        fits = keep_fitting(&mut encoder, required, fits);
    }
    keep_fitting(&mut encoder, &mut answer.additionals, fits);
    fits
}

/// Keeps the records up to the first that does not fit, none unless `go_on`. Returns whether all stay.
fn keep_fitting(encoder: &mut BinEncoder<'_>, records: &mut Vec<Record>, go_on: bool) -> bool {
    let all = records.len();
    let fitting = records.iter().take_while(|record| go_on && record.emit(encoder).is_ok()).count();
    records.truncate(fitting);
    go_on && fitting == all
}

/// Returns the start of a text, at most `limit` bytes of it and no part of a character.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    if text.len() <= limit { text } else { text.get(..end).unwrap_or_default() }
}

const HEADER_BYTES: usize = 12;

/// The EDNS option of extended errors (RFC 8914 2).
const EXTENDED_ERROR_OPTION: u16 = 15;

/// Keeps header, longest question and OPT below 512 bytes: 12 + 259 + 11 + 6 + 120.
const MAX_EXTENDED_TEXT_BYTES: usize = 120;

#[cfg(test)]
mod tests;
