//! Compiled answers: an [`Answer`] as the bytes of its records, written behind any question of its name and type.
//!
//! Owns: the layout, turns among equals, which glue fits. Must not know: names and what they mean, where answers
//! are kept. Driven by: `kept`, once per answer that can be sent again.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use smallvec::SmallVec;

use crate::response::{HEADER_BYTES, UDP_PAYLOAD_BYTES, plain_opt};
use crate::udp::Query;
use crate::{Answer, Outcome, Question};

/// Bytes of the largest datagram sent.
pub(crate) const MAX_DATAGRAM: usize = UDP_PAYLOAD_BYTES as usize;

/// An answer that can be sent again and again. Always NOERROR. The common ones, of three instances at most, take two
/// places in memory: each one that a processor has to fetch costs as much as writing the answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Compiled {
    /// The records one after the other: answers, authorities, glue.
    bytes: Box<[u8]>,
    answers: Pieces,
    /// Lengths of the runs that the answers fall into.
    runs: SmallVec<[u8; 8]>,
    authorities: (u16, u16),
    glue: Pieces,
    /// Bytes of answers and authorities.
    required: u16,
    /// Our OPT when it says more than usual.
    opt: Option<Box<[u8]>>,
}

/// What every response of this server says.
#[derive(Debug)]
pub(crate) struct Ours {
    /// Our OPT when there is nothing special to say.
    opt: Box<[u8]>,
    /// The RA bit, where a header has it.
    recursion_available: u8,
}

impl Ours {
    /// `recursion` says whether names of others are answered too.
    pub(crate) fn new(recursion: bool) -> Self {
        Self {
            opt: plain_opt(None).unwrap_or_default().into(),
            recursion_available: if recursion { RA } else { 0 },
        }
    }
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u16,
    end: u16,
    /// For an answer: its part of the glue.
    glue: (u8, u8),
}

type Pieces = SmallVec<[Piece; 3]>;

impl Compiled {
    /// Compiles an answer to `question`. `None`: it is not one to keep, or no datagram holds it.
    pub(crate) fn new(question: &Question, answer: &Answer) -> Option<Self> {
        let is_small = answer.answers.len() <= MAX_ANSWERS && answer.additionals.len() <= MAX_GLUE;
        (is_small && answer.rcode == ResponseCode::NoError).then_some(())?;
        let runs = answer.ties.as_deref()?.into();
        let mut layout = Layout::new(&question.name)?;

        let mut answers =
            answer.answers.iter().map(|record| layout.answer(record)).collect::<Option<Pieces>>()?;
        let authorities = layout.authorities(&answer.authorities)?;
        let required = authorities.1;
        let glue = layout.glue(&question.name, answer, &mut answers)?;
        let fits = usize::from(required) + HEADER_BYTES + layout.question_bytes <= MAX_DATAGRAM;
        fits.then(|| Self {
            bytes: layout.bytes.into(),
            answers,
            runs,
            authorities,
            glue,
            required,
            opt: answer.extended.as_ref().and_then(|extended| plain_opt(Some(extended))).map(Into::into),
        })
    }

    /// Returns about how many bytes of memory it takes.
    pub(crate) fn size(&self) -> usize {
        let beyond =
            |pieces: &Pieces| if pieces.spilled() { pieces.capacity() * size_of::<Piece>() } else { 0 };
        let runs = if self.runs.spilled() { self.runs.capacity() } else { 0 };
        let opt = self.opt.as_ref().map_or(0, |opt| opt.len());
        size_of::<Self>() + self.bytes.len() + beyond(&self.answers) + beyond(&self.glue) + runs + opt
    }

    /// How a question with this answer ends.
    pub(crate) fn outcome(&self) -> Outcome {
        Outcome::of(ResponseCode::NoError, !self.answers.is_empty())
    }

    /// Whether somebody else could be first.
    pub(crate) fn takes_turns(&self) -> bool {
        self.runs.iter().any(|run| *run > 1)
    }

    /// Writes the response to a query for its name and type. `turn` decides whose turn it is. Returns its length; `None` when not all required records fit:
    /// which of them are sent is for `response` to say.
    pub(crate) fn write(
        &self,
        query: &Query<'_>,
        ours: &Ours,
        turn: u32,
        out: &mut [u8; MAX_DATAGRAM],
    ) -> Option<usize> {
        let opt = query.edns.map(|offer| (self.opt.as_deref().unwrap_or(&ours.opt), offer.dnssec_ok));
        let room = query.limit().checked_sub(opt.map_or(0, |(opt, _)| opt.len()))?;
        let body = HEADER_BYTES + query.question.len();
        if body + usize::from(self.required) > room {
            return None;
        }

        let mut end = HEADER_BYTES;
        append(out, &mut end, query.question)?;
        let mut order = [0; MAX_ANSWERS];
        let mut places = [0_u16; MAX_ANSWERS];
        let order = order.get_mut(..self.answers.len())?;
        self.turn(turn, order);
        for index in order.iter().map(|index| usize::from(*index)) {
            *places.get_mut(index)? = u16::try_from(end).ok()?;
            append(out, &mut end, self.part(self.answers.get(index)?.range())?)?;
        }
        append(out, &mut end, self.part(self.authorities)?)?;
        let glue = self.write_glue(order, &places, room, out, &mut end)?;

        let mut extra = glue;
        if let Some((opt, dnssec_ok)) = opt {
            let start = end;
            append(out, &mut end, opt)?;
            if dnssec_ok {
                *out.get_mut(start + OPT_FLAGS_AT)? |= DNSSEC_OK;
            }
            extra += 1;
        }
        self.write_header(query, ours, extra, out)?;
        Some(end)
    }

    /// Writes the glue of the answers in their order, up to the first record that does not fit. Returns how many.
    fn write_glue(
        &self,
        order: &[u8],
        places: &[u16; MAX_ANSWERS],
        room: usize,
        out: &mut [u8; MAX_DATAGRAM],
        end: &mut usize,
    ) -> Option<u16> {
        let mut written = 0;
        for index in order.iter().map(|index| usize::from(*index)) {
            let (from, to) = self.answers.get(index)?.glue;
            for piece in self.glue.get(usize::from(from)..usize::from(to))? {
                let part = self.part(piece.range())?;
                if *end + part.len() > room {
                    return Some(written);
                }
                let start = *end;
                append(out, end, part)?;
                let owner = out.get_mut(start..start + 2)?;
                if owner == TO_TARGET {
                    owner.copy_from_slice(&(POINTER | (places.get(index)? + SRV_TARGET_AT)).to_be_bytes());
                }
                written += 1;
            }
        }
        Some(written)
    }

    fn write_header(
        &self,
        query: &Query<'_>,
        ours: &Ours,
        extra: u16,
        out: &mut [u8; MAX_DATAGRAM],
    ) -> Option<()> {
        let second = ours.recursion_available | query.checking_disabled;
        let [i, d] = query.id;
        let first = QR | AA | query.recursion_desired;
        let [answers_high, answers_low] = u16::try_from(self.answers.len()).ok()?.to_be_bytes();
        let authority = u8::from(self.authorities.0 != self.authorities.1);
        let [extra_high, extra_low] = extra.to_be_bytes();
        let rest = [answers_high, answers_low, 0, authority, extra_high, extra_low];
        let [q, r, s, t, u, v] = rest;
        *out.first_chunk_mut()? = [i, d, first, second, 0, 1, q, r, s, t, u, v];
        Some(())
    }

    /// Fills in an order of the answers: equals stand in any, each as often as another (ADR 20).
    fn turn(&self, turn: u32, order: &mut [u8]) {
        for (place, index) in order.iter_mut().zip(0..) {
            *place = index;
        }
        if !self.takes_turns() {
            return;
        }
        let mut random = SmallRng::seed_from_u64(turn.into());
        let mut rest = order;
        for length in self.runs.iter().copied() {
            let Some((run, after)) = std::mem::take(&mut rest).split_at_mut_checked(usize::from(length))
            else {
                return;
            };
            run.shuffle(&mut random);
            rest = after;
        }
    }

    fn part(&self, (start, end): (u16, u16)) -> Option<&[u8]> {
        self.bytes.get(usize::from(start)..usize::from(end))
    }
}

impl Piece {
    const fn range(&self) -> (u16, u16) {
        (self.start, self.end)
    }
}

fn append(out: &mut [u8; MAX_DATAGRAM], end: &mut usize, part: &[u8]) -> Option<()> {
    let start = *end;
    *end += part.len();
    out.get_mut(start..*end)?.copy_from_slice(part);
    Some(())
}

/// Lays records out behind the question of a name.
struct Layout {
    name: Name,
    question_bytes: usize,
    bytes: Vec<u8>,
}

impl Layout {
    fn new(name: &Name) -> Option<Self> {
        let name = name.to_lowercase();
        let question_bytes = name.to_bytes().ok()?.len() + 4;
        Some(Self { name, question_bytes, bytes: Vec::new() })
    }

    /// Encodes what `emit` writes directly after the question, so that it may point into the question only.
    fn encode(&self, emit: impl FnOnce(&mut BinEncoder<'_>) -> Option<()>) -> Option<Vec<u8>> {
        let mut message = Vec::new();
        let mut encoder = BinEncoder::new(&mut message);
        encoder.emit_vec(&[0; HEADER_BYTES]).ok()?;
        self.name.emit(&mut encoder).ok()?;
        encoder.emit_u32(0).ok()?;
        emit(&mut encoder)?;
        Some(message.split_off(HEADER_BYTES + self.question_bytes))
    }

    fn push(&mut self, bytes: &[u8]) -> Option<Piece> {
        let start = u16::try_from(self.bytes.len()).ok()?;
        self.bytes.extend_from_slice(bytes);
        Some(Piece { start, end: u16::try_from(self.bytes.len()).ok()?, glue: (0, 0) })
    }

    /// Lays out a record of the asked name.
    fn answer(&mut self, record: &Record) -> Option<Piece> {
        let mut record = record.clone();
        (record.name.to_lowercase() == self.name).then_some(())?;
        record.name = self.name.clone();
        let bytes = self.encode(|encoder| record.emit(encoder).ok())?;
        // What is written and what is pointed at agree on the length of the owner.
        bytes.starts_with(&TO_QUESTION).then_some(())?;
        self.push(&bytes)
    }

    /// Lays out authorities. They may point at each other, and stand right behind the question only in a
    /// response without answers.
    fn authorities(&mut self, records: &[Record]) -> Option<(u16, u16)> {
        let bytes = self.encode(|encoder| records.iter().try_for_each(|record| record.emit(encoder).ok()))?;
        let is_fixed = records.is_empty() || (self.bytes.is_empty() && records.len() == 1);
        is_fixed.then_some(())?;
        self.push(&bytes).map(|piece| piece.range())
    }

    /// Lays out the glue by answers, and tells each answer which is its.
    fn glue(&mut self, asked: &Name, answer: &Answer, pieces: &mut [Piece]) -> Option<Pieces> {
        let mut glue = Pieces::new();
        for (index, (record, piece)) in answer.answers.iter().zip(pieces).enumerate() {
            let target = match &record.data {
                RData::SRV(data) => Some(&data.target),
                _ => None,
            };
            let from = glue.len();
            for extra in &answer.additionals {
                let owner = match target {
                    Some(target) if extra.name == *target => TO_TARGET,
                    None if index == 0 && extra.name == *asked => TO_QUESTION,
                    _ => continue,
                };
                glue.push(self.push(&address_record(extra, owner)?)?);
            }
            piece.glue = (u8::try_from(from).ok()?, u8::try_from(glue.len()).ok()?);
        }
        (glue.len() == answer.additionals.len()).then_some(glue)
    }
}

/// Writes an address record whose owner is a pointer.
fn address_record(record: &Record, owner: [u8; 2]) -> Option<Vec<u8>> {
    let data = match &record.data {
        RData::A(address) => address.0.octets().to_vec(),
        RData::AAAA(address) => address.0.octets().to_vec(),
        _ => return None,
    };
    let kind = u16::from(record.record_type()).to_be_bytes();
    let class = u16::from(DNSClass::IN).to_be_bytes();
    let length = u16::try_from(data.len()).ok()?.to_be_bytes();
    Some([&owner[..], &kind, &class, &record.ttl.to_be_bytes(), &length, &data].concat())
}

/// As many addresses as fit a datagram: (1232 - 12 - 7) / 16.
const MAX_ANSWERS: usize = 76;

/// More than fits a datagram.
const MAX_GLUE: usize = 128;

const QR: u8 = 0x80;
const AA: u8 = 0x04;
const RA: u8 = 0x80;
const DNSSEC_OK: u8 = 0x80;
const POINTER: u16 = 0xc000;

/// The owner that is the question's name.
const TO_QUESTION: [u8; 2] = [0xc0, 0x0c];

/// Stands for a pointer to the target of the answer that the glue belongs to.
const TO_TARGET: [u8; 2] = [0, 0];

/// Where the target of an SRV record begins, from its owner: a pointer, 10 bytes, priority, weight, port.
const SRV_TARGET_AT: u16 = 18;

/// Where the DO bit is in an OPT record: name, type, class, two bytes of the TTL before it.
const OPT_FLAGS_AT: usize = 7;

#[cfg(test)]
mod tests;
