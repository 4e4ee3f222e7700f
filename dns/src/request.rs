//! Requests: which bytes are a question, and what is said to the others.
//!
//! Owns: checks of header, opcode, class, EDNS version; the size a client can take. Must not know: names,
//! sockets. Driven by: `server`, once per message; `fuzz`.

use gossamer_wire::Transport;
use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::DNSClass;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::response::{Envelope, Response, UDP_PAYLOAD_BYTES};
use crate::{Answer, Directory, Question, Zone, answer};

/// What some bytes are.
#[derive(Debug)]
pub enum Intake {
    /// No header, or a response: answering would let two servers talk for ever.
    Drop,
    /// Not a question for the mesh; this is the response.
    Refusal(Response),
    /// A question.
    Question(Request),
}

/// One question of class IN, and what its response must look like.
#[derive(Clone, Debug)]
pub struct Request {
    question: Question,
    envelope: Envelope,
}

impl Request {
    /// Reads a message as it came, without the length that TCP puts before it.
    pub fn read(bytes: &[u8], transport: Transport) -> Intake {
        let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else { return Intake::Drop };
        if header.metadata.message_type == MessageType::Response {
            return Intake::Drop;
        }

        let mut envelope = Envelope {
            metadata: Metadata::response_from_request(&header.metadata),
            query: None,
            edns: None,
            limit: limit(transport, None),
        };
        // Counts are checked first: the decoder reserves memory for as many questions as the header claims.
        let counts = header.counts;
        let plausible = counts.queries == 1
            && counts.answers == 0
            && counts.authorities == 0
            && counts.additionals <= MAX_ADDITIONALS;
        let message = if plausible { Message::from_vec(bytes).ok() } else { None };
        if let Some(message) = message {
            envelope.limit = limit(transport, message.edns.as_ref());
            envelope.edns = message.edns;
            envelope.query = message.queries.into_iter().next();
        }

        match judge(header.metadata.op_code, &envelope) {
            Ok(question) => {
                let question = Question { name: question.name.clone(), record_type: question.query_type };
                Intake::Question(Self { question, envelope })
            }
            Err(rcode) => {
                let refusal = Answer { rcode, ..Answer::failure() };
                Intake::Refusal(envelope.seal(&refusal))
            }
        }
    }

    /// Returns the question.
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// Returns the response that carries `answer`.
    pub fn respond(self, answer: &Answer) -> Response {
        let mut envelope = self.envelope;
        envelope.metadata.authoritative =
            matches!(answer.rcode, ResponseCode::NoError | ResponseCode::NXDomain);
        envelope.seal(answer)
    }

    /// Returns the response that says we failed.
    pub(crate) fn fail(self) -> Response {
        self.respond(&Answer::failure())
    }
}

/// Answers the bytes of one message: the whole way of a question but for [`Directory::prepare`].
///
/// `None`: nothing must be sent.
pub fn respond(
    bytes: &[u8],
    transport: Transport,
    directory: &dyn Directory,
    zone: &Zone,
    rotation: u32,
) -> Option<Response> {
    match Request::read(bytes, transport) {
        Intake::Drop => None,
        Intake::Refusal(response) => Some(response),
        Intake::Question(request) => {
            let answer = answer(request.question(), directory, zone, rotation);
            Some(request.respond(&answer))
        }
    }
}

/// Returns the question to answer, or the code to refuse it with.
fn judge(opcode: OpCode, envelope: &Envelope) -> Result<&Query, ResponseCode> {
    if opcode != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    let query = envelope.query.as_ref().ok_or(ResponseCode::FormErr)?;
    if envelope.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Err(ResponseCode::BADVERS);
    }
    if query.query_class != DNSClass::IN {
        return Err(ResponseCode::Refused);
    }
    Ok(query)
}

/// Returns how many bytes the client can take (RFC 6891 6.2.5: less than 512 means 512).
fn limit(transport: Transport, edns: Option<&Edns>) -> u16 {
    match transport {
        Transport::Tcp => u16::MAX,
        Transport::Udp => edns.map_or(512, |edns| edns.max_payload().clamp(512, UDP_PAYLOAD_BYTES)),
    }
}

/// Most records beside the question: an OPT and a signature, with room for the odd resolver.
const MAX_ADDITIONALS: u16 = 4;

#[cfg(test)]
mod tests;
