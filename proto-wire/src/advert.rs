//! Adverts: the signed, versioned statements of a node about itself, the unit of replication.
//!
//! Owns: header, bodies and raw bytes of the three kinds. Must not know: which key is right, what is newer
//! than what is stored. Driven by: the catalog, which keeps and forwards the raw bytes unchanged.
//!
//! Layout: 52-byte header (big-endian, by hand), body (codec), 64-byte Ed25519 signature over
//! `"gossamer-advert-v1\0"`, header and body. A record is deleted by being absent from the next version of
//! its fragment; there are no tombstones (ADR 3).
//!
//! Header and signature stay as they are in every later version; only bodies change. So an advert of a newer
//! version, or of a kind that is not known here, is checked, stored and passed on, and not read.

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{self, at_most};
use crate::limits::{
    MAX_ADDRESSES, MAX_ADVERT_BYTES, MAX_CARD_BYTES, MAX_EPOCH, MAX_FRAGMENTS, MAX_KIND, MAX_LANE_ADDRESSES,
    MAX_LATER_FRAGMENTS, MAX_LEAF_BYTES, MAX_NODE_LABELS_BYTES, MAX_RECORDS_PER_FRAGMENT, MAX_RELAYS,
};
use crate::record::MAX_RECORD_BYTES;
use crate::{DecodeError, EncodeError, LaneAddress, MeshId, NodeId, RegionName, ServiceRecord, ZoneName};

/// The version of the advert header this crate writes.
pub const VERSION: u8 = 1;
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 52;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

const SIGN_DOMAIN: &[u8] = b"gossamer-advert-v1\0";

/// The kinds of advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Kind {
    /// Certificate, addresses and place of a node; about once a day.
    Card,
    /// One fragment of its records; when a record changes.
    Records,
    /// How many fragments count, and the lease; every 20 minutes.
    Head,
    /// A kind of a later version: carried, not read.
    Later(LaterKind),
}

/// The code of a kind that this version does not know: 4 to [`MAX_KIND`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaterKind(u8);

impl Kind {
    /// Returns the kind's number in headers and ids.
    pub const fn code(self) -> u8 {
        match self {
            Self::Card => 1,
            Self::Records => 2,
            Self::Head => 3,
            Self::Later(LaterKind(code)) => code,
        }
    }

    /// Returns whether this version reads adverts of this kind.
    pub const fn is_known(self) -> bool {
        !matches!(self, Self::Later(_))
    }

    const fn max_bytes(self) -> usize {
        match self {
            Self::Card => MAX_CARD_BYTES,
            Self::Records | Self::Head | Self::Later(_) => MAX_ADVERT_BYTES,
        }
    }

    /// How many adverts of this kind a node may have: with their sizes the bound of what one node can store.
    const fn slots(self) -> u16 {
        match self {
            Self::Card | Self::Head => 1,
            Self::Records => MAX_FRAGMENTS,
            Self::Later(_) => MAX_LATER_FRAGMENTS,
        }
    }
}

impl TryFrom<u8> for Kind {
    type Error = DecodeError;

    fn try_from(code: u8) -> Result<Self, DecodeError> {
        match code {
            1 => Ok(Self::Card),
            2 => Ok(Self::Records),
            3 => Ok(Self::Head),
            4..=MAX_KIND => Ok(Self::Later(LaterKind(code))),
            _ => Err(DecodeError::Unknown { what: "advert kind", value: code.into() }),
        }
    }
}

impl From<Kind> for u8 {
    fn from(kind: Kind) -> Self {
        kind.code()
    }
}

/// Where an advert belongs: a newer one with the same slot replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// The owner.
    pub node: NodeId,
    /// The kind.
    pub kind: Kind,
    /// The fragment; 0 for cards and heads, below [`MAX_LATER_FRAGMENTS`] for later kinds.
    pub k: u16,
}

/// The version of an advert within its slot: greater wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Starts of the owner, persisted before use.
    pub epoch: u64,
    /// Changes within the epoch.
    pub seq: u64,
}

/// What identifies one version of one advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AdvertId {
    /// Which advert.
    pub slot: Slot,
    /// Which version of it.
    pub version: Version,
}

/// The fixed header of an advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The mesh it belongs to.
    pub mesh: MeshId,
    /// Owner, kind, fragment and version.
    pub id: AdvertId,
}

impl Header {
    /// Reads the header of an advert whose length fits its kind.
    ///
    /// # Errors
    /// The giver's fault: refused at the first hop.
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(bytes);
        let version = reader.u8()?;
        if version < VERSION {
            return Err(DecodeError::Unknown { what: "advert version", value: version.into() });
        }
        let mesh = MeshId::from_bytes(reader.array()?);
        let node = NodeId::from_bytes(reader.array()?);
        let kind = Kind::try_from(reader.u8()?)?;
        let k = u16::from_be_bytes(reader.array()?);
        let epoch = u64::from_be_bytes(reader.array()?);
        let seq = u64::from_be_bytes(reader.array()?);
        if reader.0.len() < SIGNATURE_BYTES {
            return Err(DecodeError::Short("advert"));
        }
        if bytes.len() > kind.max_bytes() {
            return Err(DecodeError::TooLong { what: "advert", len: bytes.len(), limit: kind.max_bytes() });
        }
        if k >= kind.slots() {
            return Err(DecodeError::Unknown { what: "fragment number", value: k.into() });
        }
        if epoch >= MAX_EPOCH {
            return Err(DecodeError::Unknown { what: "epoch", value: epoch });
        }
        let id = AdvertId { slot: Slot { node, kind, k }, version: Version { epoch, seq } };
        Ok(Self { mesh, id })
    }
}

/// The raw bytes of an advert, which never change. Clones share them: one advert goes to many peers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdvertBytes(Arc<[u8]>);

impl Deref for AdvertBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for AdvertBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl Serialize for AdvertBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for AdvertBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

/// An advert as received: raw bytes with a well-formed header. The signature is **not** checked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    header: Header,
    bytes: AdvertBytes,
}

impl Advert {
    /// Reads the header and keeps a copy of the bytes as they are.
    ///
    /// # Errors
    /// The giver's fault: refused at the first hop.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { header: Header::read(bytes)?, bytes: bytes.to_vec().into() })
    }

    /// Reads the header and keeps the bytes themselves.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_shared(bytes: &AdvertBytes) -> Result<Self, DecodeError> {
        Ok(Self { header: Header::read(bytes)?, bytes: bytes.clone() })
    }

    /// Builds and signs an advert. `sign` gets the exact bytes to sign.
    ///
    /// # Errors
    /// The body is too long for its kind.
    pub fn build(
        header: Header,
        body: &[u8],
        sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_BYTES],
    ) -> Result<Self, EncodeError> {
        let Header { mesh, id: AdvertId { slot, version } } = header;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len() + SIGNATURE_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(mesh.as_bytes());
        bytes.extend_from_slice(slot.node.as_bytes());
        bytes.push(slot.kind.code());
        bytes.extend_from_slice(&slot.k.to_be_bytes());
        bytes.extend_from_slice(&version.epoch.to_be_bytes());
        bytes.extend_from_slice(&version.seq.to_be_bytes());
        bytes.extend_from_slice(body);
        let len = bytes.len() + SIGNATURE_BYTES;
        let limit = slot.kind.max_bytes();
        if len > limit {
            return Err(EncodeError::TooLong { what: "advert", len, limit });
        }
        let signature = sign(&signed_bytes(&bytes));
        bytes.extend_from_slice(&signature);
        Ok(Self { header, bytes: bytes.into() })
    }

    /// Returns whether this version reads the body; else the advert is only stored and passed on.
    pub fn is_readable(&self) -> bool {
        self.bytes.first() == Some(&VERSION) && self.id().slot.kind.is_known()
    }

    /// Returns the header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Returns owner, kind, fragment and version.
    pub const fn id(&self) -> AdvertId {
        self.header.id
    }

    /// Returns all bytes, as received: what is stored and forwarded.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns all bytes to hand on, not copied.
    pub fn shared_bytes(&self) -> AdvertBytes {
        self.bytes.clone()
    }

    /// Returns the body, without header and signature.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..self.signature_start()).unwrap_or_default()
    }

    /// Returns the exact bytes that were signed, domain first.
    pub fn signed(&self) -> Vec<u8> {
        signed_bytes(self.bytes.get(..self.signature_start()).unwrap_or_default())
    }

    /// Returns the signature.
    pub fn signature(&self) -> &[u8] {
        self.bytes.get(self.signature_start()..).unwrap_or_default()
    }

    fn signature_start(&self) -> usize {
        self.bytes.len().saturating_sub(SIGNATURE_BYTES)
    }
}

fn signed_bytes(unsigned: &[u8]) -> Vec<u8> {
    [SIGN_DOMAIN, unsigned].concat()
}

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Its leaf certificate, DER; the key in it signs the adverts.
    pub leaf: Vec<u8>,
    /// Where it may be dialled, at most [`MAX_ADDRESSES`]; empty when nobody can.
    pub addresses: Vec<SocketAddr>,
    /// Its small failure domain.
    pub zone: Option<ZoneName>,
    /// Its large failure domain.
    pub region: Option<RegionName>,
    /// Free labels for display; at most 200 bytes together.
    pub labels: Vec<(String, String)>,
    /// Relays that keep a connection to it.
    pub relays: Vec<NodeId>,
    /// Oldest and newest protocol version it speaks.
    pub protocol: (u8, u8),
    /// Capability bits, 0 so far.
    pub capabilities: u64,
    /// Where only lanes reach it, at most [`MAX_LANE_ADDRESSES`].
    pub lanes: Vec<LaneAddress>,
}

impl Card {
    /// Encodes the body of a card.
    ///
    /// # Errors
    /// It is longer than a card may be.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        codec::encode("card", self, MAX_CARD_BYTES - HEADER_BYTES - SIGNATURE_BYTES)
    }

    /// Decodes and checks the body of a card.
    ///
    /// # Errors
    /// The owner's fault; the advert is refused.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let card: Self = codec::decode("card", body, MAX_CARD_BYTES)?;
        at_most("leaf certificate", &card.leaf, MAX_LEAF_BYTES)?;
        at_most("addresses", &card.addresses, MAX_ADDRESSES)?;
        at_most("relays", &card.relays, MAX_RELAYS)?;
        at_most("lane addresses", &card.lanes, MAX_LANE_ADDRESSES)?;
        let label_bytes: usize = card.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if label_bytes > MAX_NODE_LABELS_BYTES {
            return Err(DecodeError::TooLong {
                what: "node labels",
                len: label_bytes,
                limit: MAX_NODE_LABELS_BYTES,
            });
        }
        Ok(card)
    }

    /// Reads the leaf of a card of a later version: in every version the body of a card begins with it. The
    /// other fields are empty.
    ///
    /// # Errors
    /// The owner's fault; the advert is refused.
    pub fn of_later(body: &[u8]) -> Result<Self, DecodeError> {
        let (leaf, _) = codec::decode_prefix::<Vec<u8>>("card", body, MAX_CARD_BYTES)?;
        at_most("leaf certificate", &leaf, MAX_LEAF_BYTES)?;
        Ok(Self {
            leaf,
            addresses: Vec::new(),
            zone: None,
            region: None,
            labels: Vec::new(),
            relays: Vec::new(),
            protocol: (0, 0),
            capabilities: 0,
            lanes: Vec::new(),
        })
    }
}

/// One fragment: entries by kind, so that unknown kinds are carried and not served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// Kind and bytes of each entry.
    pub entries: Vec<(u8, Vec<u8>)>,
}

/// The entry kind of a [`ServiceRecord`].
pub const SERVICE_ENTRY: u8 = 1;

impl Fragment {
    /// Makes a fragment of records.
    ///
    /// # Errors
    /// A record is longer than a fragment.
    pub fn of(records: &[ServiceRecord]) -> Result<Self, EncodeError> {
        let entries: Result<_, EncodeError> =
            records.iter().map(|record| Ok((SERVICE_ENTRY, record.encode()?))).collect();
        Ok(Self { entries: entries? })
    }

    /// Encodes the body of a fragment.
    ///
    /// # Errors
    /// It is longer than a fragment may be.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        codec::encode("fragment", self, MAX_ADVERT_BYTES - HEADER_BYTES - SIGNATURE_BYTES)
    }

    /// Decodes the body of a fragment.
    ///
    /// # Errors
    /// The owner's fault; the advert is quarantined.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let fragment: Self = codec::decode("fragment", body, MAX_ADVERT_BYTES)?;
        at_most("records of a fragment", &fragment.entries, MAX_RECORDS_PER_FRAGMENT)?;
        for (_, bytes) in &fragment.entries {
            at_most("record bytes", bytes, MAX_RECORD_BYTES)?;
        }
        Ok(fragment)
    }

    /// Decodes its service records; entries of unknown kinds are left out.
    ///
    /// # Errors
    /// The owner's fault: one record breaks a limit, so the fragment is quarantined.
    pub fn records(&self) -> Result<Vec<ServiceRecord>, DecodeError> {
        self.entries
            .iter()
            .filter(|(kind, _)| *kind == SERVICE_ENTRY)
            .map(|(_, bytes)| ServiceRecord::decode(bytes))
            .collect()
    }
}

/// "This is all I have": how many fragments count, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Fragments 0..n count. Grows only, within an epoch.
    pub n: u16,
    /// Seconds the node's entries count after receipt of this head.
    pub lease_seconds: u32,
    /// Digest of the statements the node holds.
    pub statement_digest: [u8; 16],
}

impl Head {
    /// Encodes the body of a head.
    ///
    /// # Errors
    /// Never for a value of this type; the limit is checked all the same.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        codec::encode("head", self, MAX_ADVERT_BYTES - HEADER_BYTES - SIGNATURE_BYTES)
    }

    /// Decodes and checks the body of a head.
    ///
    /// # Errors
    /// The owner's fault; the advert is refused.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let head: Self = codec::decode("head", body, MAX_ADVERT_BYTES)?;
        if head.n > MAX_FRAGMENTS {
            return Err(DecodeError::TooMany {
                what: "fragments",
                len: head.n.into(),
                limit: MAX_FRAGMENTS.into(),
            });
        }
        Ok(head)
    }
}

/// Reads fixed fields from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short("advert"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }
}

#[cfg(test)]
mod tests;
