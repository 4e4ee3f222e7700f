//! foca's identity and codec over the lean wire types.
//!
//! Owns: the form foca reads and writes: 32 bytes naming sender and receiver, then the packet as it travels.
//! Must not know: who may say what. Driven by: foca, and `packet`, which adds and strips the 32 bytes.

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};
use gossamer_wire::limits::MAX_EPOCH;
use gossamer_wire::swim::{self, Identity, SwimHeader, SwimMember, SwimMessage, SwimState};
use gossamer_wire::{DecodeError, EncodeError, Generation, NodeId};
use thiserror::Error;

/// Bytes in front of a packet inside foca: node id of the sender, then of the receiver.
pub(super) const NAMES_BYTES: usize = 32;

/// First number of renewals that is refused: the joined form of a generation has 20 bits for it.
pub(super) const RENEWALS_END: u32 = 1 << 20;

/// An identity as foca wants it: addressed by node, newer generations win.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life(pub(super) Identity);

impl foca::Identity for Life {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let generation = next_generation(self.0.generation)?;
        Some(Self(Identity { generation, ..self.0 }))
    }

    fn addr(&self) -> NodeId {
        self.0.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.0.generation > adversary.0.generation
    }
}

/// Returns the smallest valid generation above `generation`, `None` above the greatest of all.
pub(super) fn next_generation(generation: Generation) -> Option<Generation> {
    if generation.renewals < RENEWALS_END - 1 {
        return Some(generation.renewed());
    }
    (generation.epoch < MAX_EPOCH).then(|| Generation::of_epoch(generation.epoch + 1))
}

/// Why foca could not read or write; packets are checked before foca sees them, so this is a full packet or a bug.
#[derive(Debug, Error)]
pub(super) enum CodecError {
    /// No room is left in the packet; foca stops adding members.
    #[error("the packet is full")]
    Full,
    /// The names are missing.
    #[error("the packet does not start with two node ids")]
    Nameless,
    /// See the wire crate.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// See the wire crate.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// The codec; it has no state.
#[derive(Debug)]
pub(super) struct LeanCodec;

impl foca::Codec<Life> for LeanCodec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Life>, mut buf: impl BufMut) -> Result<(), CodecError> {
        put(header.src.0.node.as_bytes(), &mut buf)?;
        put(header.dst.0.node.as_bytes(), &mut buf)?;
        let lean = SwimHeader {
            from: header.src.0.generation,
            incarnation: header.src_incarnation,
            to: header.dst.0.generation,
            message: message_to_wire(&header.message),
        };
        put(&swim::encode(&lean)?, &mut buf)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Life>, CodecError> {
        let (src, rest) = buf.chunk().split_first_chunk().ok_or(CodecError::Nameless)?;
        let (dst, rest) = rest.split_first_chunk().ok_or(CodecError::Nameless)?;
        let (src, dst) = (NodeId::from_bytes(*src), NodeId::from_bytes(*dst));
        let (lean, used) = swim::decode_header(rest)?;
        buf.advance(NAMES_BYTES + used);
        Ok(Header {
            src: Life(Identity { node: src, generation: lean.from }),
            src_incarnation: lean.incarnation,
            dst: Life(Identity { node: dst, generation: lean.to }),
            message: message_from_wire(lean.message),
        })
    }

    fn encode_member(&mut self, member: &Member<Life>, mut buf: impl BufMut) -> Result<(), CodecError> {
        put(&swim::encode(&member_to_wire(member))?, &mut buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Life>, CodecError> {
        let (member, used) = swim::decode_member(buf.chunk())?;
        buf.advance(used);
        Ok(member_from_wire(&member))
    }
}

fn put(bytes: &[u8], buf: &mut impl BufMut) -> Result<(), CodecError> {
    if buf.remaining_mut() < bytes.len() {
        return Err(CodecError::Full);
    }
    buf.put_slice(bytes);
    Ok(())
}

/// Turns a member of foca's into an entry.
pub(super) fn member_to_wire(member: &Member<Life>) -> SwimMember {
    let state = match member.state() {
        State::Alive => SwimState::Alive,
        State::Suspect => SwimState::Suspect,
        State::Down => SwimState::Down,
    };
    SwimMember { identity: member.id().0, incarnation: member.incarnation(), state }
}

/// Turns an entry into a member of foca's.
pub(super) fn member_from_wire(member: &SwimMember) -> Member<Life> {
    let state = match member.state {
        SwimState::Alive => State::Alive,
        SwimState::Suspect => State::Suspect,
        SwimState::Down => State::Down,
    };
    Member::new(Life(member.identity), member.incarnation, state)
}

fn message_to_wire(message: &Message<Life>) -> SwimMessage {
    match *message {
        Message::Ping(probe) => SwimMessage::Ping(probe),
        Message::Ack(probe) => SwimMessage::Ack(probe),
        Message::PingReq { target, probe_number: probe } => SwimMessage::PingReq { target: target.0, probe },
        Message::IndirectPing { origin, probe_number: probe } => {
            SwimMessage::IndirectPing { origin: origin.0, probe }
        }
        Message::IndirectAck { target, probe_number: probe } => {
            SwimMessage::IndirectAck { target: target.0, probe }
        }
        Message::ForwardedAck { origin, probe_number: probe } => {
            SwimMessage::ForwardedAck { origin: origin.0, probe }
        }
        Message::Announce => SwimMessage::Announce,
        Message::Feed => SwimMessage::Feed,
        Message::Gossip => SwimMessage::Gossip,
        Message::Broadcast => SwimMessage::Broadcast,
        Message::TurnUndead => SwimMessage::TurnUndead,
    }
}

fn message_from_wire(message: SwimMessage) -> Message<Life> {
    match message {
        SwimMessage::Ping(probe) => Message::Ping(probe),
        SwimMessage::Ack(probe) => Message::Ack(probe),
        SwimMessage::PingReq { target, probe } => {
            Message::PingReq { target: Life(target), probe_number: probe }
        }
        SwimMessage::IndirectPing { origin, probe } => {
            Message::IndirectPing { origin: Life(origin), probe_number: probe }
        }
        SwimMessage::IndirectAck { target, probe } => {
            Message::IndirectAck { target: Life(target), probe_number: probe }
        }
        SwimMessage::ForwardedAck { origin, probe } => {
            Message::ForwardedAck { origin: Life(origin), probe_number: probe }
        }
        SwimMessage::Announce => Message::Announce,
        SwimMessage::Feed => Message::Feed,
        SwimMessage::Gossip => Message::Gossip,
        SwimMessage::Broadcast => Message::Broadcast,
        SwimMessage::TurnUndead => Message::TurnUndead,
    }
}

#[cfg(test)]
mod tests {
    use foca::{Codec, Identity as _};

    use super::*;

    fn life(node: u8, epoch: u64) -> Life {
        Life(Identity { node: NodeId::from_bytes([node; 16]), generation: Generation::of_epoch(epoch) })
    }

    fn all_messages() -> Vec<Message<Life>> {
        let (target, origin, probe_number) = (life(3, 1), life(4, 2), 9);
        vec![
            Message::Ping(1),
            Message::Ack(2),
            Message::PingReq { target, probe_number },
            Message::IndirectPing { origin, probe_number },
            Message::IndirectAck { target, probe_number },
            Message::ForwardedAck { origin, probe_number },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::Broadcast,
            Message::TurnUndead,
        ]
    }

    #[test]
    fn every_header_survives_a_round_trip() {
        for message in all_messages() {
            let header = Header { src: life(1, 5), src_incarnation: 300, dst: life(2, 6), message };
            let mut bytes = Vec::new();
            LeanCodec.encode_header(&header, &mut bytes).expect("fits");
            let mut rest = &bytes[..];
            assert_eq!(LeanCodec.decode_header(&mut rest).expect("whole"), header);
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn every_member_survives_a_round_trip() {
        for state in [State::Alive, State::Suspect, State::Down] {
            let member = Member::new(life(1, 5), 7, state);
            let mut bytes = Vec::new();
            LeanCodec.encode_member(&member, &mut bytes).expect("fits");
            assert_eq!(LeanCodec.decode_member(&bytes[..]).expect("whole"), member);
        }
    }

    #[test]
    fn a_member_that_does_not_fit_leaves_the_packet_as_it_was() {
        let mut bytes = Vec::new();
        let result = LeanCodec.encode_member(&Member::alive(life(1, 1)), (&mut bytes).limit(10));
        assert!(matches!(result, Err(CodecError::Full)));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_packet_without_names_is_an_error() {
        assert!(matches!(LeanCodec.decode_header(&[0; 31][..]), Err(CodecError::Nameless)));
    }

    #[test]
    fn the_newer_life_of_a_node_wins_and_renewal_is_newer() {
        let old = life(1, 5);
        let new = old.renew().expect("room");
        assert!(new.win_addr_conflict(&old) && !old.win_addr_conflict(&new) && !old.win_addr_conflict(&old));
    }

    #[test]
    fn generations_run_into_the_next_epoch_and_end_at_the_greatest() {
        let full = Generation { epoch: 5, renewals: RENEWALS_END - 1 };
        assert_eq!(next_generation(full), Some(Generation::of_epoch(6)));
        assert_eq!(next_generation(Generation { epoch: MAX_EPOCH, ..full }), None);
    }
}
