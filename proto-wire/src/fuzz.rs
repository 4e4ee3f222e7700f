//! Fuzz bodies: one per decoder, run by libFuzzer and, seeded, by `cargo test`.
//!
//! Owns: what must hold for any bytes: no panic, and what decodes encodes again to something that decodes
//! to the same. Must not know: where the bytes come from. Driven by: `tests/fuzz` and the tests below.

use crate::advert::{Advert, Card, Fragment, Head};
use crate::flow::{self, OpenRequest};
use crate::frame::Frame;
use crate::issuer::IssuerClaims;
use crate::join::{Ask, JoinReply};
use crate::statement::SignedStatement;
use crate::swim;
use crate::token::{self, Claims, Token};

/// A fuzz body: must return for any bytes.
pub type Body = fn(&[u8]);

/// Every decoder of this crate, by name.
pub const BODIES: &[(&str, Body)] = &[
    ("advert", advert),
    ("datagram", datagram),
    ("frame", frame),
    ("issuer", issuer),
    ("join", join),
    ("open", open),
    ("statement", statement),
    ("swim", swim),
    ("token", token),
];

fn advert(bytes: &[u8]) {
    if let Ok(advert) = Advert::parse(bytes) {
        assert_eq!(advert.bytes(), bytes);
        let _ = advert.signed();
    }
    if let Ok(card) = Card::decode(bytes) {
        assert_eq!(
            Card::decode(&card.encode().unwrap_or_default()).ok(),
            card.encode().is_ok().then_some(card)
        );
    }
    if let Ok(head) = Head::decode(bytes) {
        assert!(head.encode().is_ok());
    }
    if let Ok(fragment) = Fragment::decode(bytes) {
        let _ = fragment.records();
    }
}

fn datagram(bytes: &[u8]) {
    if let Ok((stream, used)) = flow::decode_stream_id(bytes) {
        let again = flow::encode_stream_id(stream);
        assert!(again.len() <= used);
        assert_eq!(flow::decode_stream_id(&again), Ok((stream, again.len())));
    }
    if let Some((prefix, rest)) = bytes.split_first_chunk()
        && let Ok(len) = flow::decode_framed_prefix(*prefix)
        && let Some(payload) = rest.get(..len)
    {
        assert_eq!(flow::encode_framed(payload).ok().as_deref(), bytes.get(..prefix.len() + len));
    }
}

fn frame(bytes: &[u8]) {
    let Some((prefix, payload)) = bytes.split_first_chunk() else { return };
    let _ = Frame::decode_prefix(*prefix);
    for kind in 0..18 {
        if let Ok(Some(frame)) = Frame::decode(kind, payload)
            && let Ok(again) = frame.encode()
        {
            assert_eq!(Frame::decode(kind, again.get(prefix.len()..).unwrap_or_default()), Ok(Some(frame)));
        }
    }
}

fn issuer(bytes: &[u8]) {
    if let Ok(claims) = IssuerClaims::decode(bytes) {
        assert_eq!(IssuerClaims::decode(&claims.encode().unwrap_or_default()), Ok(claims));
    }
}

fn join(bytes: &[u8]) {
    if let Ok(ask) = Ask::decode(bytes) {
        assert_eq!(Ask::decode(&ask.encode().unwrap_or_default()).as_ref(), Ok(&ask));
        if let Ask::Join(request) = ask {
            let _ = request.token.parse::<Token>();
        }
    }
    let _ = JoinReply::decode(bytes);
}

fn open(bytes: &[u8]) {
    if let Ok(request) = OpenRequest::decode(bytes) {
        let again = request.encode().unwrap_or_default();
        assert_eq!(OpenRequest::decode(again.get(flow::PREFIX_BYTES..).unwrap_or_default()), Ok(request));
    }
}

fn statement(bytes: &[u8]) {
    if let Ok(statement) = SignedStatement::parse(bytes) {
        assert_eq!(statement.bytes(), bytes);
        let _ = statement.signed();
    }
}

fn swim(bytes: &[u8]) {
    if let Ok((_, used)) = swim::decode_header(bytes) {
        let mut rest = bytes.get(used..).unwrap_or_default();
        while let Ok((_, used)) = swim::decode_member(rest) {
            rest = rest.get(used..).unwrap_or_default();
        }
    }
}

fn token(bytes: &[u8]) {
    // With the right checksum, so that what is below it is reached.
    let _ = token::armour(bytes.to_vec()).parse::<Token>();
    if let Ok(claims) = Claims::decode(bytes) {
        assert_eq!(Claims::decode(&claims.encode().unwrap_or_default()), Ok(claims));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(token) = text.parse::<Token>()
    {
        assert_eq!(token.reveal(), text.trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small fixed generator, so that the same bytes are tried everywhere.
    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Small values make plausible lengths and tags far more often than random ones.
                if state & 0x300 == 0 { state as u8 } else { (state & 7) as u8 }
            })
            .collect()
    }

    #[test]
    fn no_decoder_panics_on_seeded_bytes() {
        for (_, body) in BODIES {
            for seed in 0..4_000 {
                body(&bytes(seed, (seed % 300) as usize));
            }
        }
    }

    #[test]
    fn a_25_byte_length_bomb_is_an_error_for_every_decoder() {
        for tag in [251, 252, 253, 254, 255] {
            for at in 0..25 {
                let mut bomb = [0xff_u8; 25];
                bomb[..at].fill(0);
                bomb[at] = tag;
                for (_, body) in BODIES {
                    body(&bomb);
                }
            }
        }
    }
}
