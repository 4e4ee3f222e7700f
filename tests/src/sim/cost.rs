//! What a message costs on the wire, and what it is called in counts and traces.
//!
//! Owns: sizes of frames, headers around them. Must not know: connections. Driven by: the mesh, for each message.

use gossamer_wire::advert::AdvertId;
use gossamer_wire::frame::{AdvertCopy, Frame, PREFIX_BYTES};
use gossamer_wire::swim::SwimMember;

/// UDP, IP and QUIC around the payload of one packet, with 4-byte connection ids: (210 bytes of a probe in three
/// packets, less its two payloads of 14) / 3, measured with quinn 0.11 over IPv4.
pub(super) const PACKET: u64 = 60;

/// What a received packet costs its receiver: every second one is acknowledged on its own.
pub(super) const ACKNOWLEDGEMENT: u64 = 30;

/// Payload of a packet at the least MTU of QUIC, 1,200 bytes: longer messages take several, and a longer
/// datagram goes on the stream.
pub(super) const PAYLOAD: usize = 1_162;

/// The parts of a handshake between members, in order: hello, answer with certificates, certificates and the
/// dialer's hello. Together with the other hello 4.4 KB, as measured.
pub(super) const SHAKE: [u64; 3] = [1_228, 1_300, 1_500];

/// Returns how many packets a message takes.
pub(super) fn packets(bytes: usize) -> u64 {
    bytes.div_ceil(PAYLOAD).max(1) as u64
}

/// Returns the kind of a frame, for counts.
pub(super) const fn name(frame: &Frame) -> &'static str {
    match frame {
        Frame::Hello(_) => "hello",
        Frame::Adverts { .. } => "adverts",
        Frame::Root(_) => "root",
        Frame::Ids { .. } => "ids",
        Frame::Want(_) => "want",
        Frame::MemberHash(_) => "member-hash",
        Frame::Members { .. } => "members",
        Frame::DialBack(_) => "dial-back",
        Frame::Statements(_) => "statements",
        Frame::Swim(_) => "swim-frame",
        Frame::Buckets(_) => "buckets",
        Frame::Spread { .. } => "spread",
        Frame::Have(_) => "have",
        Frame::Probe(_) => "probe",
        Frame::ProbeAck(_) => "probe-ack",
        Frame::IssuerKeyWanted | Frame::IssuerKey { .. } => "issuer-key",
        Frame::Ping(_) | Frame::Pong(_) => "ping",
    }
}

/// Returns the bytes of a frame without encoding it: within a few bytes of the real length, for a third of the
/// time of a run.
pub(super) fn frame(frame: &Frame) -> usize {
    let payload = match frame {
        Frame::Hello(_) => 26,
        Frame::Adverts { copies: all, forward } => 2 + copies(all) + 16 * forward.len(),
        Frame::Spread { copies: all, .. } => 1 + copies(all) + 32,
        Frame::Ids { buckets, ids: all, .. } => 3 + buckets.len() + ids(all),
        Frame::Want(all) | Frame::Have(all) => 1 + ids(all),
        Frame::Members { members: all, .. } => 2 + all.iter().map(member).sum::<usize>(),
        Frame::Root(_) | Frame::MemberHash(_) | Frame::Probe(_) | Frame::ProbeAck(_) => 9,
        Frame::Ping(_) | Frame::Pong(_) => 1,
        Frame::Buckets(all) => 3 + 9 * all.len(),
        Frame::Swim(bytes) => 3 + bytes.len(),
        Frame::IssuerKeyWanted => 0,
        Frame::IssuerKey { proof, .. } => 33 + proof.len(),
        Frame::Statements(all) => 1 + all.iter().map(|bytes| 3 + bytes.len()).sum::<usize>(),
        Frame::DialBack(_) => 1,
    };
    PREFIX_BYTES + payload
}

fn copies(copies: &[AdvertCopy]) -> usize {
    copies.iter().map(|copy| 3 + varint(copy.age.into()) + copy.bytes.len()).sum()
}

fn ids(ids: &[AdvertId]) -> usize {
    let id =
        |id: &AdvertId| 17 + varint(id.slot.k.into()) + varint(id.version.epoch) + varint(id.version.seq);
    ids.iter().map(id).sum()
}

fn member(member: &SwimMember) -> usize {
    let generation = member.identity.generation;
    18 + varint(generation.epoch) + varint(generation.renewals.into()) + varint(member.incarnation.into()) - 1
}

const fn varint(value: u64) -> usize {
    match value {
        0..=250 => 1,
        251..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

#[cfg(test)]
mod tests {
    use gossamer_wire::advert::{Kind, Slot, Version};
    use gossamer_wire::frame::{BUCKETS, Purpose};
    use gossamer_wire::swim::{Identity, SwimState};
    use gossamer_wire::{Generation, NodeId};

    use super::*;

    #[test]
    fn the_size_of_every_kind_is_close_to_its_bytes() {
        let node = NodeId::from_bytes([7; 16]);
        let slot = Slot { node, kind: Kind::Records, k: 1 };
        let id = AdvertId { slot, version: Version { epoch: 300, seq: 3 } };
        let identity = Identity { node, generation: Generation::of_epoch(1) };
        let member = SwimMember { identity, incarnation: 1, state: SwimState::Alive };
        let copies = vec![AdvertCopy { age: 900, bytes: vec![1; 700].into() }; 20];
        let frames = [
            Frame::Adverts { copies: copies.clone(), forward: vec![node; 9] },
            Frame::Spread { copies, first: node, last: node },
            Frame::Root(1 << 60),
            Frame::Ids { buckets: vec![7], ids: vec![id; 100], whole: true },
            Frame::Want(vec![id; 10]),
            Frame::Have(vec![id; 10]),
            Frame::MemberHash(1 << 60),
            Frame::Members { members: vec![member; 100], reply: false },
            Frame::DialBack(Purpose::Data),
            Frame::Swim(vec![1; 400]),
            Frame::Statements(vec![vec![3; 300]]),
            Frame::Buckets(vec![u64::MAX / 3; BUCKETS]),
            Frame::Probe(1 << 60),
            Frame::ProbeAck(1 << 60),
            Frame::IssuerKeyWanted,
            Frame::IssuerKey { public_key: [1; 32], proof: vec![2; 64] },
        ];
        for message in frames {
            let real = message.encode().expect("fits").len();
            let told = frame(&message);
            let share = told.abs_diff(real) as f64 / real as f64;
            assert!(share < 0.03 || told.abs_diff(real) < 4, "{}: {told} for {real}", name(&message));
        }
    }

    #[test]
    fn long_messages_take_several_packets() {
        assert_eq!([0, 1, 1_162, 1_163, 65_000].map(packets), [1, 1, 1, 2, 56]);
    }
}
