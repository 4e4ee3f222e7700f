//! The frames of a lane: a kind, a length of three bytes, and so many bytes.
//!
//! Owns: their bytes and limits. Must not know: sockets, what flows carry. Driven by: `lane`, which reads header and payload.
//!
//! Flows of one lane follow each other, so what is said of a flow needs no number; only what may cross its end has one.

use bytes::{BufMut as _, Bytes, BytesMut};
use thiserror::Error;

/// Bytes before a payload.
pub(super) const HEADER: usize = 4;
/// Most bytes of a flow in one frame: what one record of TLS holds.
pub(super) const MAX_DATA: usize = 16 << 10;
/// Most bytes of the reason of a close.
const MAX_REASON: usize = 256;

/// What a lane carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LaneFrame {
    /// The first word of who dialled: whether it is also the one that opens flows.
    Start { dialler_opens: bool },
    /// Bytes of the flow.
    Data(Bytes),
    /// The sender's direction ends cleanly.
    End,
    /// The sender's direction of this flow is broken.
    Reset { flow: u32, code: u32 },
    /// The sender wants no more of this flow.
    Stop { flow: u32, code: u32 },
    /// The lane ends.
    Close { code: u32, reason: Bytes },
    /// The sender is there.
    Ping,
}

/// Bytes that no honest peer sends. The peer's fault; the lane is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum LaneFault {
    #[error("kind {0} is none of a lane's")]
    Kind(u8),
    #[error("{len} bytes are none of the lengths of kind {kind}")]
    Length { kind: u8, len: usize },
    #[error("the frame does not belong here: {0}")]
    Order(&'static str),
}

impl LaneFrame {
    /// Encodes header and payload. A flow's bytes must be at most [`MAX_DATA`].
    pub(super) fn encode(&self) -> Bytes {
        let numbers = |flow: u32, code: u32| [flow.to_be_bytes(), code.to_be_bytes()].concat();
        match self {
            Self::Start { dialler_opens } => framed(1, &[u8::from(*dialler_opens)]),
            Self::Data(bytes) => framed(2, bytes),
            Self::End => framed(3, &[]),
            Self::Reset { flow, code } => framed(4, &numbers(*flow, *code)),
            Self::Stop { flow, code } => framed(5, &numbers(*flow, *code)),
            Self::Close { code, reason } => {
                let reason = reason.get(..reason.len().min(MAX_REASON)).unwrap_or_default();
                framed(6, &[&code.to_be_bytes(), reason].concat())
            }
            Self::Ping => framed(7, &[]),
        }
    }

    /// Reads a header: the kind, and how many bytes follow. Nothing longer than the kind allows is ever waited for.
    pub(super) fn decode_header(header: [u8; HEADER]) -> Result<(u8, usize), LaneFault> {
        let [kind, high, middle, low] = header;
        let len = u32::from_be_bytes([0, high, middle, low]) as usize;
        let is_right = match kind {
            1 => len == 1,
            2 => (1..=MAX_DATA).contains(&len),
            3 | 7 => len == 0,
            4 | 5 => len == 8,
            6 => (4..=4 + MAX_REASON).contains(&len),
            _ => return Err(LaneFault::Kind(kind)),
        };
        if is_right { Ok((kind, len)) } else { Err(LaneFault::Length { kind, len }) }
    }

    /// Reads the payload of a header that [`Self::decode_header`] has taken.
    pub(super) fn decode(kind: u8, payload: Bytes) -> Result<Self, LaneFault> {
        let fault = LaneFault::Length { kind, len: payload.len() };
        let number = |from: usize| {
            let bytes = payload.get(from..from + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_be_bytes).ok_or(fault)
        };
        Ok(match kind {
            1 => Self::Start {
                dialler_opens: match payload[..] {
                    [0] => false,
                    [1] => true,
                    _ => return Err(LaneFault::Order("who opens flows is said with 0 or 1")),
                },
            },
            2 => Self::Data(payload),
            3 => Self::End,
            4 => Self::Reset { flow: number(0)?, code: number(4)? },
            5 => Self::Stop { flow: number(0)?, code: number(4)? },
            6 => Self::Close { code: number(0)?, reason: payload.slice(4..) },
            7 => Self::Ping,
            _ => return Err(LaneFault::Kind(kind)),
        })
    }
}

fn framed(kind: u8, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER + payload.len());
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    bytes.put_u32(u32::from(kind) << 24 | (len & 0x00ff_ffff));
    bytes.extend_from_slice(payload);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &Bytes) -> Result<LaneFrame, LaneFault> {
        let [kind, high, middle, low, ..] = bytes[..] else { panic!("no header") };
        let (kind, len) = LaneFrame::decode_header([kind, high, middle, low])?;
        assert_eq!(len, bytes.len() - HEADER);
        LaneFrame::decode(kind, bytes.slice(HEADER..))
    }

    #[test]
    fn frames_come_back_as_they_went() {
        let reason = Bytes::from_static(b"down");
        for frame in [
            LaneFrame::Start { dialler_opens: true },
            LaneFrame::Start { dialler_opens: false },
            LaneFrame::Data(vec![7; MAX_DATA].into()),
            LaneFrame::End,
            LaneFrame::Reset { flow: 3, code: u32::MAX },
            LaneFrame::Stop { flow: u32::MAX, code: 1 },
            LaneFrame::Close { code: 5, reason },
            LaneFrame::Ping,
        ] {
            assert_eq!(read(&frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn the_bytes_stay_what_they_are() {
        assert_eq!(LaneFrame::Start { dialler_opens: true }.encode()[..], [1, 0, 0, 1, 1]);
        assert_eq!(LaneFrame::Data(Bytes::from_static(b"ab")).encode()[..], [2, 0, 0, 2, b'a', b'b']);
        assert_eq!(LaneFrame::Reset { flow: 1, code: 2 }.encode()[..], [4, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn hostile_lengths_are_refused_before_anything_is_waited_for() {
        for header in [[2, 0, 0x40, 1], [2, 0xff, 0xff, 0xff], [2, 0, 0, 0], [1, 0, 0, 2], [3, 0, 0, 1]] {
            assert!(matches!(LaneFrame::decode_header(header), Err(LaneFault::Length { .. })), "{header:?}");
        }
        for header in [[4, 0, 0, 7], [5, 0, 0, 9], [6, 0, 0, 3], [6, 0, 1, 5], [7, 0, 0, 1]] {
            assert!(matches!(LaneFrame::decode_header(header), Err(LaneFault::Length { .. })), "{header:?}");
        }
        for kind in [0, 8, b'G', 22, 255] {
            assert_eq!(LaneFrame::decode_header([kind, 0, 0, 0]), Err(LaneFault::Kind(kind)));
        }
        assert!(LaneFrame::decode(1, Bytes::from_static(&[2])).is_err());
        assert!(LaneFrame::decode(4, Bytes::from_static(&[1, 2])).is_err(), "shorter than its header said");
    }

    #[test]
    fn a_long_reason_is_cut() {
        let bytes = LaneFrame::Close { code: 1, reason: vec![b'x'; 10_000].into() }.encode();
        assert!(matches!(read(&bytes), Ok(LaneFrame::Close { reason, .. }) if reason.len() == MAX_REASON));
    }
}
