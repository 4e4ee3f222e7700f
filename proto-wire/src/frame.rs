//! Frames of the control stream: one ordered stream per pair of nodes, both ways.
//!
//! Owns: the frames, their kinds and bytes. Must not know: streams, when to send what.
//! Driven by: the transport, which reads the 6-byte prefix (length u32, kind u16, big-endian) and the payload.
//!
//! Frames of unknown kinds are skipped, so that newer nodes can talk to older ones (design section 17).

use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::advert::{AdvertBytes, AdvertId};
use crate::codec::{self, at_most};
use crate::limits::{
    MAX_ADVERTS_PER_FRAME, MAX_CARD_BYTES, MAX_FORWARD, MAX_FRAME_BYTES, MAX_IDS_PER_FRAME,
    MAX_MEMBERS_PER_FRAME, MAX_STATEMENT_BYTES,
};
use crate::swim::SwimMember;
use crate::{DecodeError, EncodeError, MeshId, NodeId};

/// ALPN of connections between members.
pub const ALPN: &[u8] = b"gossamer/1";

/// Bytes before a frame's payload.
pub const PREFIX_BYTES: usize = 6;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Membership, adverts, statements: one per pair, kept.
    Control,
    /// Flows: opened on demand, closed when idle.
    Data,
    /// SWIM alone, beside a control connection that a relay leads, through another relay.
    Swim,
}

/// The first frame each way on every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the dialer wants the connection for; the other side repeats it.
    pub purpose: Purpose,
    /// Random per process: two nonces under one id mean that an identity runs twice.
    pub nonce: u64,
    /// Where this side sees the other; empty text of no use is never sent.
    pub observed: SocketAddr,
    /// Digest of the statements this side holds.
    pub statement_digest: [u8; 16],
}

/// An advert on its way, with the seconds since the giver first held it or a newer head of its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertCopy {
    /// Seconds; 0 from the owner.
    pub age: u32,
    /// The advert, byte for byte.
    pub bytes: AdvertBytes,
}

/// Everything a control stream carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First frame each way.
    Hello(Hello),
    /// Adverts, new or asked for.
    Adverts {
        /// The adverts.
        copies: Vec<AdvertCopy>,
        /// Nodes the giver cannot reach: pass the adverts on to those of them you can.
        forward: Vec<NodeId>,
    },
    /// Root hash of the giver's catalog.
    Root(u64),
    /// The advert ids the giver holds in some buckets, answering [`Self::Buckets`].
    Ids {
        /// The buckets.
        buckets: Vec<u8>,
        /// The ids.
        ids: Vec<AdvertId>,
        /// Whether these are all ids of the buckets.
        whole: bool,
    },
    /// Adverts the giver wants.
    Want(Vec<AdvertId>),
    /// Hash over the giver's members (id, generation, up or down).
    MemberHash(u64),
    /// All members the giver knows.
    Members {
        /// The members.
        members: Vec<SwimMember>,
        /// Whether the giver wants the receiver's in return.
        reply: bool,
    },
    /// "Dial me with this purpose": the giver cannot dial the receiver.
    DialBack(Purpose),
    /// Signed statements, byte for byte.
    Statements(Vec<Vec<u8>>),
    /// A SWIM packet that did not fit a datagram.
    Swim(Vec<u8>),
    /// Hashes of the giver's catalog by bucket; [`BUCKETS`] of them.
    Buckets(Vec<u64>),
    /// New adverts on their way down a tree: the receiver answers for the nodes of the interval.
    Spread {
        /// The adverts.
        copies: Vec<AdvertCopy>,
        /// First id of the interval.
        first: NodeId,
        /// Last id of the interval; below `first` it runs over the end of the id space.
        last: NodeId,
    },
    /// Adverts the giver has just learned: whoever does not get them otherwise asks for them.
    Have(Vec<AdvertId>),
    /// "Do you live?" The receiver answers with the same number.
    Probe(u64),
    /// Answer to a probe.
    ProbeAck(u64),
    /// "Make a key of an issuer, if you have none, and show me its public half."
    IssuerKeyWanted,
    /// The public half of the giver's issuer key.
    IssuerKey {
        /// The key, 32 bytes Ed25519.
        public_key: [u8; 32],
        /// Its signature over [`issuer_key_proof`], 64 bytes.
        proof: Vec<u8>,
    },
    /// "Answer this": somebody wants to see the connection work. The receiver answers with the same number, not endlessly.
    Ping(u64),
    /// Answer to a ping.
    Pong(u64),
}

/// Returns what an issuer's key signs to show that the node has it.
pub fn issuer_key_proof(mesh: MeshId, node: NodeId) -> Vec<u8> {
    [&b"gossamer-issuer-key-v1\0"[..], mesh.as_bytes(), node.as_bytes()].concat()
}

/// Buckets a catalog is compared by: the first byte of the hash of an advert's slot.
pub const BUCKETS: usize = 256;

impl Frame {
    /// Encodes prefix and payload.
    ///
    /// # Errors
    /// The payload is longer than a frame may be; send less at once.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let (kind, payload) = match self {
            Self::Hello(hello) => (1, payload(hello)?),
            Self::Adverts { copies, forward } => (2, payload(&(copies, forward))?),
            Self::Root(hash) => (3, payload(hash)?),
            Self::Ids { buckets, ids, whole } => (4, payload(&(buckets, ids, whole))?),
            Self::Want(ids) => (5, payload(ids)?),
            Self::MemberHash(hash) => (6, payload(hash)?),
            Self::Members { members, reply } => (7, payload(&(members, reply))?),
            Self::DialBack(purpose) => (8, payload(purpose)?),
            Self::Statements(statements) => (9, payload(statements)?),
            Self::Swim(packet) => (10, payload(packet)?),
            Self::Buckets(hashes) => (11, payload(hashes)?),
            Self::Spread { copies, first, last } => (12, payload(&(copies, first, last))?),
            Self::Have(ids) => (13, payload(ids)?),
            Self::Probe(number) => (14, payload(number)?),
            Self::ProbeAck(number) => (15, payload(number)?),
            Self::IssuerKeyWanted => (16, Vec::new()),
            Self::IssuerKey { public_key, proof } => (17, payload(&(public_key, proof))?),
            Self::Ping(number) => (24, payload(number)?),
            Self::Pong(number) => (25, payload(number)?),
        };
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + payload.len());
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&u16::to_be_bytes(kind));
        bytes.extend_from_slice(&payload);
        Ok(bytes)
    }

    /// Reads a prefix: the kind and how many payload bytes follow.
    ///
    /// # Errors
    /// The peer's fault: the length is over the limit. Close the connection.
    pub fn decode_prefix(prefix: [u8; PREFIX_BYTES]) -> Result<(u16, usize), DecodeError> {
        let [a, b, c, d, e, f] = prefix;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if len > MAX_FRAME_BYTES {
            return Err(DecodeError::TooLong { what: "frame", len, limit: MAX_FRAME_BYTES });
        }
        Ok((u16::from_be_bytes([e, f]), len))
    }

    /// Decodes a payload; `None` is a kind this version does not know.
    ///
    /// # Errors
    /// The peer's fault. Close the connection.
    pub fn decode(kind: u16, payload: &[u8]) -> Result<Option<Self>, DecodeError> {
        let frame = match kind {
            1 => Self::Hello(value(payload)?),
            2 => {
                let (copies, forward): (Vec<AdvertCopy>, Vec<NodeId>) = value(payload)?;
                check_copies(&copies)?;
                at_most("nodes to forward to", &forward, MAX_FORWARD)?;
                Self::Adverts { copies, forward }
            }
            3 => Self::Root(value(payload)?),
            4 => {
                let (buckets, ids, whole): (Vec<u8>, Vec<AdvertId>, bool) = value(payload)?;
                at_most("buckets", &buckets, BUCKETS)?;
                at_most("advert ids", &ids, MAX_IDS_PER_FRAME)?;
                Self::Ids { buckets, ids, whole }
            }
            5 => {
                let ids: Vec<AdvertId> = value(payload)?;
                at_most("advert ids", &ids, MAX_IDS_PER_FRAME)?;
                Self::Want(ids)
            }
            6 => Self::MemberHash(value(payload)?),
            7 => {
                let (members, reply): (Vec<SwimMember>, bool) = value(payload)?;
                at_most("members", &members, MAX_MEMBERS_PER_FRAME)?;
                Self::Members { members, reply }
            }
            8 => Self::DialBack(value(payload)?),
            9 => {
                let statements: Vec<Vec<u8>> = value(payload)?;
                for statement in &statements {
                    at_most("statement", statement, MAX_STATEMENT_BYTES)?;
                }
                Self::Statements(statements)
            }
            10 => Self::Swim(value(payload)?),
            11 => {
                let hashes: Vec<u64> = value(payload)?;
                at_most("bucket hashes", &hashes, BUCKETS)?;
                Self::Buckets(hashes)
            }
            12 => {
                let (copies, first, last): (Vec<AdvertCopy>, NodeId, NodeId) = value(payload)?;
                check_copies(&copies)?;
                Self::Spread { copies, first, last }
            }
            13 => {
                let ids: Vec<AdvertId> = value(payload)?;
                at_most("advert ids", &ids, MAX_IDS_PER_FRAME)?;
                Self::Have(ids)
            }
            14 => Self::Probe(value(payload)?),
            15 => Self::ProbeAck(value(payload)?),
            16 => {
                value::<()>(payload)?;
                Self::IssuerKeyWanted
            }
            17 => {
                let (public_key, proof) = value(payload)?;
                Self::IssuerKey { public_key, proof }
            }
            24 => Self::Ping(value(payload)?),
            25 => Self::Pong(value(payload)?),
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

fn check_copies(copies: &[AdvertCopy]) -> Result<(), DecodeError> {
    at_most("adverts", copies, MAX_ADVERTS_PER_FRAME)?;
    copies.iter().try_for_each(|copy| at_most("advert", &copy.bytes, MAX_CARD_BYTES))
}

fn payload<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    codec::encode("frame", value, MAX_FRAME_BYTES)
}

fn value<T: DeserializeOwned>(payload: &[u8]) -> Result<T, DecodeError> {
    codec::decode("frame", payload, MAX_FRAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Generation;
    use crate::advert::{Kind, Slot, Version};
    use crate::swim::{Identity, SwimState};

    fn node() -> NodeId {
        NodeId::from_bytes([7; 16])
    }

    fn all_kinds() -> Vec<Frame> {
        let id = AdvertId {
            slot: Slot { node: node(), kind: Kind::Records, k: 1 },
            version: Version { epoch: 2, seq: 3 },
        };
        let identity = Identity { node: node(), generation: Generation::of_epoch(1) };
        vec![
            Frame::Hello(Hello {
                purpose: Purpose::Control,
                nonce: 5,
                observed: "192.0.2.1:4677".parse().expect("address"),
                statement_digest: [0; 16],
            }),
            Frame::Adverts {
                copies: vec![AdvertCopy { age: 9, bytes: vec![1, 2].into() }],
                forward: vec![node()],
            },
            Frame::Root(1 << 60),
            Frame::Ids { buckets: vec![5], ids: vec![id], whole: true },
            Frame::Want(vec![id]),
            Frame::MemberHash(4),
            Frame::Members {
                members: vec![SwimMember { identity, incarnation: 1, state: SwimState::Alive }],
                reply: false,
            },
            Frame::DialBack(Purpose::Data),
            Frame::Statements(vec![vec![3; 70]]),
            Frame::Swim(vec![1, 2, 3]),
            Frame::Buckets(vec![7; BUCKETS]),
            Frame::Spread {
                copies: vec![AdvertCopy { age: 9, bytes: vec![1, 2].into() }],
                first: node(),
                last: NodeId::from_bytes([9; 16]),
            },
            Frame::Have(vec![id]),
            Frame::Probe(7),
            Frame::ProbeAck(7),
            Frame::IssuerKeyWanted,
            Frame::IssuerKey { public_key: [5; 32], proof: vec![6; 64] },
            Frame::Ping(9),
            Frame::Pong(9),
        ]
    }

    fn decode(bytes: &[u8]) -> Result<Option<Frame>, DecodeError> {
        let (prefix, payload) = bytes.split_first_chunk().expect("prefix");
        let (kind, len) = Frame::decode_prefix(*prefix)?;
        assert_eq!(len, payload.len());
        Frame::decode(kind, payload)
    }

    #[test]
    fn every_kind_survives_a_round_trip() {
        for frame in all_kinds() {
            assert_eq!(decode(&frame.encode().expect("fits")), Ok(Some(frame)));
        }
    }

    #[test]
    fn unknown_kinds_are_skipped_and_known_ones_must_be_whole() {
        assert_eq!(Frame::decode(999, b"whatever"), Ok(None));
        for frame in all_kinds() {
            let bytes = frame.encode().expect("fits");
            let kind = u16::from_be_bytes([bytes[4], bytes[5]]);
            let is_empty = bytes.len() == PREFIX_BYTES;
            let cut = bytes.len().saturating_sub(1).max(PREFIX_BYTES);
            assert!(is_empty || Frame::decode(kind, &bytes[PREFIX_BYTES..cut]).is_err(), "{frame:?}");
            let longer = [&bytes[PREFIX_BYTES..], &[0]].concat();
            assert!(Frame::decode(kind, &longer).is_err(), "{frame:?}");
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_by_its_prefix() {
        assert!(Frame::decode_prefix([0xff, 0, 0, 0, 0, 1]).is_err());
        assert!(Frame::Swim(vec![0; MAX_FRAME_BYTES + 1]).encode().is_err());
    }

    #[test]
    fn bytes_of_version_1_stay_readable() {
        let hello = [0, 0, 0, 26, 0, 1, 0, 5, 0, 192, 0, 2, 1, 251, 69, 18];
        let golden = [&hello[..], &[0; 16]].concat();
        assert_eq!(all_kinds()[0].encode().expect("fits"), golden);
    }

    #[test]
    fn a_full_repair_message_fits_a_frame() {
        let id = AdvertId {
            slot: Slot { node: node(), kind: Kind::Records, k: 63 },
            version: Version { epoch: crate::limits::MAX_EPOCH, seq: u64::MAX },
        };
        assert!(Frame::Have(vec![id; MAX_IDS_PER_FRAME]).encode().is_ok());
        let buckets = (0..=u8::MAX).collect();
        assert!(Frame::Ids { buckets, ids: vec![id; MAX_IDS_PER_FRAME], whole: false }.encode().is_ok());
    }
}
