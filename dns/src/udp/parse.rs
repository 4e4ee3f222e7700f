//! The ordinary query, read straight from its bytes.
//!
//! Owns: which datagrams are ordinary. Must not know: names and what they mean, answers, sockets.
//! Driven by: `udp`, once per datagram. What is not ordinary in any respect is left to hickory: this reader never
//! says that a message is wrong.

use crate::response::UDP_PAYLOAD_BYTES;

/// What a datagram is.
#[derive(Debug)]
pub(crate) enum Datagram<'a> {
    /// A response, or less than a header: gets nothing.
    Nothing,
    /// One question of class IN and nothing else, but perhaps EDNS.
    Query(Query<'a>),
    /// Anything else.
    Unusual,
}

/// An ordinary query.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    /// As sent.
    pub(crate) id: [u8; 2],
    /// The RD bit, where a header has it.
    pub(crate) recursion_desired: u8,
    /// The CD bit, where a header has it.
    pub(crate) checking_disabled: u8,
    /// Name, type and class as sent, to be sent back byte for byte.
    pub(crate) question: &'a [u8],
    /// The type asked for.
    pub(crate) kind: u16,
    /// What the client offers, when it speaks EDNS.
    pub(crate) edns: Option<Offer>,
}

/// What an OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Bytes the client can take, 512 to [`UDP_PAYLOAD_BYTES`].
    pub(crate) limit: usize,
    /// Whether it asked for signatures.
    pub(crate) dnssec_ok: bool,
}

impl Query<'_> {
    /// Returns how many bytes the client can take.
    pub(crate) fn limit(&self) -> usize {
        self.edns.map_or(512, |offer| offer.limit)
    }
}

/// Reads a datagram.
pub(crate) fn parse(bytes: &[u8]) -> Datagram<'_> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Datagram::Nothing };
    let [i, d, first, second, counts @ ..] = header;
    if first & QR != 0 {
        return Datagram::Nothing;
    }
    let (known, offers) = match counts {
        [0, 1, 0, 0, 0, 0, 0, 0] => (true, false),
        [0, 1, 0, 0, 0, 0, 0, 1] => (true, true),
        _ => (false, false),
    };
    if !known || first & (OPCODE | TC) != 0 {
        return Datagram::Unusual;
    }
    let Some((question, kind, after)) = question(rest) else { return Datagram::Unusual };
    let edns = match (offers, after) {
        (false, []) => None,
        (true, after) => match offer(after) {
            Some(offer) => Some(offer),
            None => return Datagram::Unusual,
        },
        (false, _) => return Datagram::Unusual,
    };
    Datagram::Query(Query {
        id: [*i, *d],
        recursion_desired: first & RD,
        checking_disabled: second & CD,
        question,
        kind,
        edns,
    })
}

/// Splits off a question of class IN whose name is written in full; returns it, its type, and what follows.
fn question(bytes: &[u8]) -> Option<(&[u8], u16, &[u8])> {
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        match length {
            0 => break,
            1..=63 => {}
            // A pointer, or what no name may have.
            _ => return None,
        }
    }
    let (question, after) = bytes.split_at_checked(at + 4)?;
    match question.get(at..)? {
        [high, low, 0, IN] if at <= MAX_NAME_BYTES => {
            Some((question, u16::from_be_bytes([*high, *low]), after))
        }
        _ => None,
    }
}

/// Reads an OPT record of version 0 that ends the message.
fn offer(bytes: &[u8]) -> Option<Offer> {
    let (fixed, options) = bytes.split_first_chunk::<11>()?;
    let [0, 0, OPT, size_high, size_low, 0, 0, flags, _, length_high, length_low] = fixed else {
        return None;
    };
    let is_whole = options.len() == usize::from(u16::from_be_bytes([*length_high, *length_low]));
    let limit = u16::from_be_bytes([*size_high, *size_low]).clamp(512, UDP_PAYLOAD_BYTES);
    (is_whole && are_skipped(options))
        .then_some(Offer { limit: usize::from(limit), dnssec_ok: flags & DNSSEC_OK != 0 })
}

/// Returns whether options are well formed, and none of those that hickory reads.
fn are_skipped(mut options: &[u8]) -> bool {
    while !options.is_empty() {
        let Some(([code_high, code_low, high, low], rest)) = options.split_first_chunk::<4>() else {
            return false;
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let code = u16::from_be_bytes([*code_high, *code_low]);
        match rest.get(length..) {
            Some(rest) if !READ_OPTIONS.contains(&code) => options = rest,
            _ => return false,
        }
    }
    true
}

const HEADER_BYTES: usize = 12;
/// A domain name with its length bytes and its end (RFC 1035 2.3.4).
const MAX_NAME_BYTES: usize = 255;
const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const CD: u8 = 0x10;
const IN: u8 = 1;
const OPT: u8 = 41;
const DNSSEC_OK: u8 = 0x80;

/// NSID, DAU, DHU, N3U and client subnet: answered or judged by their content, now or later.
const READ_OPTIONS: [u16; 5] = [3, 5, 6, 7, 8];

#[cfg(test)]
mod tests {
    use super::*;

    /// `a.b` type A class IN, after a header with these flags and counts.
    fn message(first: u8, second: u8, counts: [u8; 8], rest: &[u8]) -> Vec<u8> {
        [&[7, 9, first, second][..], &counts, rest].concat()
    }

    const ONE: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];
    const WITH_OPT: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 1];
    const QUESTION: &[u8] = &[1, b'a', 1, b'B', 0, 0, 1, 0, 1];
    const PLAIN_OPT: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0];

    fn query(bytes: &[u8]) -> Option<(u16, Option<Offer>)> {
        match parse(bytes) {
            Datagram::Query(query) => Some((query.kind, query.edns)),
            _ => None,
        }
    }

    #[test]
    fn an_ordinary_query_is_read_as_it_stands() {
        let bytes = message(RD, CD, ONE, QUESTION);
        let Datagram::Query(query) = parse(&bytes) else { panic!("ordinary") };
        assert_eq!((query.id, query.recursion_desired, query.checking_disabled), ([7, 9], RD, CD));
        assert_eq!((query.question, query.kind, query.limit()), (QUESTION, 1, 512));
    }

    #[test]
    fn an_opt_says_what_the_client_takes_and_its_options_are_skipped() {
        let with =
            |opt: &[u8]| query(&message(0, 0, WITH_OPT, &[QUESTION, opt].concat())).and_then(|found| found.1);
        assert_eq!(with(PLAIN_OPT), Some(Offer { limit: 1232, dnssec_ok: true }));
        let cookie = [&[0, 0, 41, 0, 100, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8][..], &[5; 8]].concat();
        assert_eq!(with(&cookie), Some(Offer { limit: 512, dnssec_ok: false }));
        assert_eq!(with(&[0, 0, 41, 4, 208, 0, 1, 0, 0, 0, 0]), None, "version 1");
        assert_eq!(with(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 4, 0, 3, 0, 0]), None, "NSID");
        assert_eq!(with(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 4, 0, 10, 0, 9]), None, "an option too long");
        assert_eq!(with(&[PLAIN_OPT, &[0]].concat()), None, "a byte too many");
    }

    #[test]
    fn responses_and_stumps_get_nothing_and_the_rest_is_unusual() {
        assert!(matches!(parse(&[0; 11]), Datagram::Nothing));
        assert!(matches!(parse(&message(QR, 0, ONE, QUESTION)), Datagram::Nothing));
        for bytes in [
            message(0x08, 0, ONE, QUESTION),
            message(TC, 0, ONE, QUESTION),
            message(0, 0, [0, 2, 0, 0, 0, 0, 0, 0], QUESTION),
            message(0, 0, [0, 1, 0, 1, 0, 0, 0, 0], QUESTION),
            message(0, 0, WITH_OPT, QUESTION),
            message(0, 0, ONE, &[QUESTION, &[0]].concat()),
            message(0, 0, ONE, &[0xc0, 12, 0, 1, 0, 1]),
            message(0, 0, ONE, &[1, b'a', 0, 0, 1, 0, 3]),
            message(0, 0, ONE, &[1, b'a', 0, 0, 1, 0]),
            message(0, 0, ONE, &[1, b'a']),
            message(0, 0, ONE, &[[63].as_slice(), &[b'a'; 63]].concat().repeat(4)),
        ] {
            assert!(matches!(parse(&bytes), Datagram::Unusual), "{bytes:?}");
        }
    }
}
