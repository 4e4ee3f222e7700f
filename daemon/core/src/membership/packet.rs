//! One SWIM packet from a peer, checked before foca sees it, and the names around it.
//!
//! Owns: which bytes are a packet, and that its sender is the peer that sent it and nobody else.
//! Must not know: members, timers. Driven by: `Membership`, for each packet in and out.

use gossamer_wire::limits::{MAX_EPOCH, MAX_SWIM_BYTES};
use gossamer_wire::swim::{self, Identity, SwimHeader, SwimMember, SwimMessage};
use gossamer_wire::{DecodeError, NodeId};

use super::codec::{NAMES_BYTES, RENEWALS_END};

/// A packet whose every byte has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// Its header.
    pub(super) header: SwimHeader,
    /// The members it tells of.
    pub(super) members: Vec<SwimMember>,
}

impl Packet {
    /// Reads a packet as it came from the peer.
    ///
    /// # Errors
    /// The peer's fault: garbled, an unused kind of message, or an impossible generation. Nothing changed.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (header, used) = swim::decode_header(bytes)?;
        check_header(&header)?;
        let rest = bytes.get(used..).unwrap_or_default();
        let carries_members = !matches!(header.message, SwimMessage::Announce | SwimMessage::TurnUndead);
        if !carries_members && !rest.is_empty() {
            return Err(DecodeError::Trailing { what: WHAT, extra: rest.len() });
        }
        Ok(Self { header, members: if rest.is_empty() { Vec::new() } else { parse_members(rest)? } })
    }

    /// Writes the packet the way foca reads it: from `from`, who is the peer of the connection, to `to`.
    pub(super) fn name(&self, from: NodeId, to: NodeId) -> Vec<u8> {
        let encoded = |part: Result<Vec<u8>, _>| part.unwrap_or_default();
        let mut bytes = Vec::with_capacity(NAMES_BYTES + MAX_SWIM_BYTES);
        bytes.extend_from_slice(from.as_bytes());
        bytes.extend_from_slice(to.as_bytes());
        bytes.extend(encoded(swim::encode(&self.header)));
        if !self.members.is_empty() {
            bytes.extend((self.members.len() as u16).to_be_bytes());
            for member in &self.members {
                bytes.extend(encoded(swim::encode(member)));
            }
        }
        bytes
    }
}

/// Takes the names off a packet foca wrote; `None` unless it is from `me`.
pub(super) fn strip(bytes: &[u8], me: NodeId) -> Option<&[u8]> {
    let (from, rest) = bytes.split_at_checked(NAMES_BYTES / 2)?;
    (from == me.as_bytes()).then(|| rest.get(NAMES_BYTES / 2..)).flatten()
}

/// Refuses a generation no node can have.
///
/// # Errors
/// The peer's fault.
pub(super) fn check_identity(identity: Identity) -> Result<(), DecodeError> {
    let generation = identity.generation;
    if generation.epoch > MAX_EPOCH {
        return Err(DecodeError::Unknown { what: "epoch", value: generation.epoch });
    }
    if generation.renewals >= RENEWALS_END {
        return Err(DecodeError::Unknown { what: "renewals", value: generation.renewals.into() });
    }
    Ok(())
}

fn check_header(header: &SwimHeader) -> Result<(), DecodeError> {
    // The node of these two is known from the connection; only the generations are judged here.
    let anyone = NodeId::from_bytes([0; 16]);
    check_identity(Identity { node: anyone, generation: header.from })?;
    check_identity(Identity { node: anyone, generation: header.to })?;
    match header.message {
        SwimMessage::PingReq { target: named, .. }
        | SwimMessage::IndirectAck { target: named, .. }
        | SwimMessage::IndirectPing { origin: named, .. }
        | SwimMessage::ForwardedAck { origin: named, .. } => check_identity(named),
        SwimMessage::Broadcast => Err(DecodeError::Malformed { what: WHAT, why: "unused message".into() }),
        SwimMessage::Ping(_)
        | SwimMessage::Ack(_)
        | SwimMessage::Announce
        | SwimMessage::Feed
        | SwimMessage::Gossip
        | SwimMessage::TurnUndead => Ok(()),
    }
}

fn parse_members(bytes: &[u8]) -> Result<Vec<SwimMember>, DecodeError> {
    let (count, mut rest) = bytes.split_first_chunk().ok_or(DecodeError::Short(WHAT))?;
    let mut members = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (member, used) = swim::decode_member(rest)?;
        check_identity(member.identity)?;
        members.push(member);
        rest = rest.get(used..).unwrap_or_default();
    }
    match rest.len() {
        0 => Ok(members),
        extra => Err(DecodeError::Trailing { what: WHAT, extra }),
    }
}

const WHAT: &str = "swim packet";

#[cfg(test)]
mod tests {
    use gossamer_wire::Generation;
    use gossamer_wire::swim::SwimState;

    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn member(n: u8) -> SwimMember {
        let identity = Identity { node: node(n), generation: Generation::of_epoch(2) };
        SwimMember { identity, incarnation: 1, state: SwimState::Suspect }
    }

    fn packet(message: SwimMessage, members: Vec<SwimMember>) -> Packet {
        let (from, to) = (Generation::of_epoch(3), Generation::of_epoch(4));
        Packet { header: SwimHeader { from, incarnation: 0, to, message }, members }
    }

    /// The packet as it travels.
    fn bytes(packet: &Packet) -> Vec<u8> {
        packet.name(node(1), node(2))[NAMES_BYTES..].to_vec()
    }

    #[test]
    fn a_packet_survives_a_round_trip() {
        for packet in [
            packet(SwimMessage::Announce, vec![]),
            packet(SwimMessage::Ping(1), vec![]),
            packet(SwimMessage::Gossip, vec![member(5), member(6)]),
        ] {
            assert_eq!(Packet::parse(&bytes(&packet)), Ok(packet));
        }
    }

    #[test]
    fn the_names_are_those_given_and_come_off_only_for_their_sender() {
        let named = packet(SwimMessage::Ping(1), vec![]).name(node(1), node(2));
        assert_eq!(named[..16], [1; 16]);
        assert_eq!(named[16..32], [2; 16]);
        assert_eq!(strip(&named, node(1)), Some(&named[32..]));
        assert_eq!(strip(&named, node(2)), None);
        assert_eq!(strip(&named[..20], node(1)), None);
    }

    #[test]
    fn every_cut_of_a_packet_is_refused() {
        let whole = bytes(&packet(SwimMessage::Gossip, vec![member(5)]));
        let header_only = bytes(&packet(SwimMessage::Gossip, vec![])).len();
        for len in (0..whole.len()).filter(|len| *len != header_only) {
            assert!(Packet::parse(&whole[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn bytes_after_the_members_are_refused() {
        let longer = [bytes(&packet(SwimMessage::Gossip, vec![member(5)])), vec![0]].concat();
        assert_eq!(Packet::parse(&longer), Err(DecodeError::Trailing { what: WHAT, extra: 1 }));
        let announce = [bytes(&packet(SwimMessage::Announce, vec![])), vec![0, 0]].concat();
        assert_eq!(Packet::parse(&announce), Err(DecodeError::Trailing { what: WHAT, extra: 2 }));
    }

    #[test]
    fn a_packet_over_the_limit_is_refused() {
        let members = (0..120).map(member).collect();
        let result = Packet::parse(&bytes(&packet(SwimMessage::Gossip, members)));
        assert!(matches!(result, Err(DecodeError::TooLong { .. })), "{result:?}");
    }

    #[test]
    fn the_unused_message_is_refused() {
        assert!(Packet::parse(&bytes(&packet(SwimMessage::Broadcast, vec![]))).is_err());
    }

    #[test]
    fn generations_no_node_can_have_are_refused_everywhere() {
        let beyond = Generation { epoch: MAX_EPOCH + 1, renewals: 0 };
        let renewed = Generation { epoch: 1, renewals: RENEWALS_END };
        for generation in [beyond, renewed] {
            let target = Identity { node: node(9), generation };
            let mut from = packet(SwimMessage::Gossip, vec![]);
            from.header.from = generation;
            let mut to = packet(SwimMessage::Gossip, vec![]);
            to.header.to = generation;
            let named = packet(SwimMessage::PingReq { target, probe: 1 }, vec![]);
            let told = packet(SwimMessage::Gossip, vec![SwimMember { identity: target, ..member(9) }]);
            for packet in [from, to, named, told] {
                assert!(Packet::parse(&bytes(&packet)).is_err(), "{packet:?}");
            }
        }
    }
}
