//! Responses: an answer fitted into the bytes a client can take.
//!
//! Owns: header, OPT, sizes, truncation. Must not know: names and what they mean, sockets.
//! Driven by: `request`, once per response.

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Header, HeaderCounts, Metadata, Query};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, Place};

use crate::{Answer, ExtendedError, Outcome};

/// Largest datagram sent, and what our OPT offers to receive: fits every path without fragments
/// (DNS flag day 2020).
pub const UDP_PAYLOAD_BYTES: u16 = 1232;

/// A response, ready to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The message, without the length that TCP puts before it.
    pub bytes: Vec<u8>,
    /// How the question ended.
    pub outcome: Outcome,
    /// Whether TC is set: answers are missing, to be asked for over TCP.
    pub truncated: bool,
}

/// The frame of a response: all but the records.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    /// Header fields, TC aside.
    pub(crate) metadata: Metadata,
    /// The question, returned as it was asked.
    pub(crate) query: Option<Query>,
    /// The client's OPT; answered with ours.
    pub(crate) edns: Option<Edns>,
    /// Most bytes of the message; at least 512.
    pub(crate) limit: u16,
}

impl Envelope {
    /// Encodes an answer.
    ///
    /// Glue that does not fit is left out silently. When answers do not fit, those that do are sent with TC
    /// and without glue (RFC 2181 9). The OPT is always there when the client sent one (RFC 6891 7).
    pub(crate) fn seal(mut self, answer: &Answer) -> Response {
        self.metadata.response_code = answer.rcode;
        let outcome = Outcome::of(answer.rcode, !answer.answers.is_empty());

        let opt = self.opt(answer.extended.as_ref());
        let mut bytes = Vec::new();
        let mut counts = HeaderCounts::default();
        let body = Body { answer, query: self.query.as_ref(), room: usize::from(self.limit) - opt.len() };
        self.metadata.truncation = !body.write(&mut bytes, &mut counts);
        if !opt.is_empty() {
            bytes.extend_from_slice(&opt);
            counts.additionals += 1;
        }
        set_header(&mut bytes, Header { metadata: self.metadata, counts });
        Response { bytes, outcome, truncated: self.metadata.truncation }
    }

    fn opt(&self, extended: Option<&ExtendedError>) -> Vec<u8> {
        let Some(asked) = &self.edns else { return Vec::new() };
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD_BYTES)
            .set_rcode_high(self.metadata.response_code.high())
            .set_dnssec_ok(asked.flags().dnssec_ok);
        if let Some(ExtendedError { code, text }) = extended {
            let option = [&code.to_be_bytes(), cut(text, MAX_EXTENDED_TEXT_BYTES).as_bytes()].concat();
            edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR_OPTION, option));
        }
        edns.to_bytes().unwrap_or_default()
    }
}

/// Everything between the header and the OPT.
struct Body<'a> {
    answer: &'a Answer,
    query: Option<&'a Query>,
    /// Most bytes up to the OPT, header included.
    room: usize,
}

impl Body<'_> {
    /// Writes the header's place and as much as fits; returns whether all required records did.
    fn write(&self, bytes: &mut Vec<u8>, counts: &mut HeaderCounts) -> bool {
        let mut encoder = BinEncoder::new(bytes);
        encoder.set_max_size(u16::try_from(self.room).unwrap_or(u16::MAX));
        // The limit is at least 512: header, any question and any OPT fit.
        if encoder.emit_vec(&[0; HEADER_BYTES]).is_err() {
            return false;
        }
        if let Some(query) = self.query
            && query.emit(&mut encoder).is_ok()
        {
            counts.queries = 1;
        }

        let asked = self.query.filter(|_| counts.queries == 1).map(|query| &query.name);
        counts.answers = emit_fitting(&mut encoder, &self.answer.answers, asked);
        if usize::from(counts.answers) < self.answer.answers.len() {
            return false;
        }
        counts.authorities = emit_fitting(&mut encoder, &self.answer.authorities, asked);
        if usize::from(counts.authorities) < self.answer.authorities.len() {
            return false;
        }
        counts.additionals = emit_fitting(&mut encoder, &self.answer.additionals, asked);
        true
    }
}

/// Writes records until one does not fit, and leaves no byte of that one. Returns how many were written.
fn emit_fitting(encoder: &mut BinEncoder<'_>, records: &[Record], asked: Option<&Name>) -> u16 {
    let mut count = 0;
    for record in records {
        let start = encoder.offset();
        if emit(encoder, record, asked).is_err() {
            encoder.set_offset(start);
            encoder.trim();
            break;
        }
        count += 1;
    }
    count
}

/// Writes one record (RFC 1035 4.1.3). An owner that is the asked name is a pointer to the question: the
/// encoder stops compressing after some 120 names, and long SRV sets then would not fit TCP.
fn emit(encoder: &mut BinEncoder<'_>, record: &Record, asked: Option<&Name>) -> Result<(), ProtoError> {
    match asked {
        Some(asked) if asked.eq_case(&record.name) && !asked.is_root() => {
            encoder.emit_u16(POINTER_TO_QUESTION)?;
        }
        _ => record.name.emit(encoder)?,
    }
    record.data.record_type().emit(encoder)?;
    record.dns_class.emit(encoder)?;
    encoder.emit_u32(record.ttl)?;
    let length: Place<u16> = encoder.place()?;
    record.data.emit(encoder)?;
    let written = encoder.len_since_place(&length);
    length.replace(encoder, u16::try_from(written).unwrap_or(u16::MAX))
}

fn set_header(bytes: &mut [u8], header: Header) {
    if let (Ok(header), Some(place)) = (header.to_bytes(), bytes.get_mut(..HEADER_BYTES))
        && header.len() == HEADER_BYTES
    {
        place.copy_from_slice(&header);
    }
}

/// Returns the start of a text, at most `limit` bytes of it and no part of a character.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    if text.len() <= limit { text } else { text.get(..end).unwrap_or_default() }
}

const HEADER_BYTES: usize = 12;

/// The name at offset 12, where the question is (RFC 1035 4.1.4).
const POINTER_TO_QUESTION: u16 = 0xC000 | 12;

/// The EDNS option of extended errors (RFC 8914 2).
const EXTENDED_ERROR_OPTION: u16 = 15;

/// Keeps header, longest question and OPT below 512 bytes: 12 + 259 + 11 + 6 + 120.
const MAX_EXTENDED_TEXT_BYTES: usize = 120;

#[cfg(test)]
mod tests;
