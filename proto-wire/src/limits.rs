//! Every bound of the protocol, with the reason for its value.
//!
//! Owns: the numbers. Must not know: who checks them. Driven by: all decoders and caches.

use std::time::Duration;

/// Longest DNS label (RFC 1035 2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;

/// Most bytes any serialized value may claim while it is decoded. bincode without a limit aborts the
/// process on 25 hostile bytes (measured), so no call is without this one; each kind has a smaller own.
pub const MAX_DECODE_BYTES: usize = 65_536;

/// Longest fragment or head: fits one QUIC datagram at the 1,200-byte starting MTU.
pub const MAX_ADVERT_BYTES: usize = 1_100;

/// Longest card: an Ed25519 leaf with claims is about 700 bytes, eight addresses add 200, two lane
/// addresses 280.
pub const MAX_CARD_BYTES: usize = 2_304;

/// Most fragments of one node: 64 x 1,100 bytes hold about 700 records.
pub const MAX_FRAGMENTS: u16 = 64;

/// Greatest code of an advert's kind: eight kinds of later versions are stored and passed on, no more, for all
/// nodes must bound what they store in the same way, or their hashes would differ for ever.
pub const MAX_KIND: u8 = 11;
/// Most adverts of one later kind and node: all of them together are as long as the records.
pub const MAX_LATER_FRAGMENTS: u16 = 8;

/// Most records in one fragment: 64 is more than 1,100 bytes can hold, so the byte limit acts first.
pub const MAX_RECORDS_PER_FRAGMENT: usize = 64;

/// Most ports of one record.
pub const MAX_PORTS: usize = 16;

/// Most groups a record names in its visibility.
pub const MAX_VISIBLE_GROUPS: usize = 32;

/// Most rules a record names in its visibility: as many as groups, and all of them are compared for each view.
pub const MAX_VISIBLE_RULES: usize = 32;

/// Most metadata pairs of one record, and the longest key and value in bytes.
pub const MAX_METADATA: usize = 32;
/// Longest metadata key, bytes.
pub const MAX_METADATA_KEY_BYTES: usize = 63;
/// Longest metadata value, bytes.
pub const MAX_METADATA_VALUE_BYTES: usize = 128;

/// Most FQDNs of one record.
pub const MAX_FQDNS: usize = 8;
/// Longest FQDN as text, bytes (RFC 1035 2.3.4).
pub const MAX_FQDN_BYTES: usize = 253;
/// Most labels of an FQDN, a wildcard's `*` included: what one question looks up is bounded by it.
pub const MAX_FQDN_LABELS: usize = 16;

/// Most addresses in a card or a peer hint.
pub const MAX_ADDRESSES: usize = 8;

/// Most lane addresses in a card, a peer hint or a token: two ingresses.
pub const MAX_LANE_ADDRESSES: usize = 2;
/// Longest host of a lane address: the names that clouds give their load balancers are about 80 bytes, and a token has to hold two.
pub const MAX_HOST_BYTES: usize = 128;

/// Most labels of a node and their longest text together, bytes (design section 6).
pub const MAX_NODE_LABELS_BYTES: usize = 200;

/// Most relays named in a card (design section 10: two are used, room for a change-over).
pub const MAX_RELAYS: usize = 4;

/// Longest leaf certificate. Ed25519 leaves are 420-700 bytes; a card must stay below its own limit.
pub const MAX_LEAF_BYTES: usize = 1_200;

/// Longest certificate of any kind that is read from a peer.
pub const MAX_CERTIFICATE_BYTES: usize = 2_048;

/// Longest payload of a control frame: one full state or repair message (design section 5).
pub const MAX_FRAME_BYTES: usize = 65_000;

/// Longest join reply.
pub const MAX_JOIN_BYTES: usize = 65_000;
/// Longest join request: a token of 1,000 characters, or two certificates to renew one.
pub const MAX_JOIN_REQUEST_BYTES: usize = 4_096;

/// Longest open request of a flow.
pub const MAX_OPEN_BYTES: usize = 512;

/// Longest token payload before its signature; the text is then below 1,000 characters.
pub const MAX_TOKEN_BYTES: usize = 512;

/// Most addresses in a token (design section 4).
pub const MAX_TOKEN_ADDRESSES: usize = 4;

/// Most nodes whose certificates a statement keeps when it removes their issuer, and statements it keeps of a retired
/// root: a mesh of the size the design
/// promises (section 16); whoever is left out joins again.
pub const MAX_KEPT: usize = 1_024;
/// Longest statement: one that removes an issuer and keeps [`MAX_KEPT`] nodes of 16 bytes; three fit a frame.
pub const MAX_STATEMENT_BYTES: usize = 20_000;
/// Most bytes of statements taken from a peer at once: some 50,000 evictions, and the largest set of honest issuers is far
/// below.
pub const MAX_STATEMENT_SET_BYTES: usize = 8 << 20;
/// Most roots a mesh ever has, retired ones too: one each ten years, or each week for a year.
pub const MAX_ROOTS: usize = 64;
/// Numbers an issuer may use for statements unless a root grants more: what one stolen key can evict, and enough
/// for an operator who evicts one node a week for a year.
pub const NUMBERS_PER_AUTHOR: u64 = 64;
/// Longest encoded claims of an issuer: a node, its name and 14 groups of the longest names fit, beside a key and a
/// signature in [`MAX_CERTIFICATE_BYTES`].
pub const MAX_ISSUER_CLAIMS_BYTES: usize = 1_024;

/// Most services, FQDN suffixes and labels, of each, in the claims of a certificate: more than their 256 bytes hold of
/// names as people choose them.
pub const MAX_CLAIMS_ENTRIES: usize = 16;

/// Longest SWIM packet: header and gossip fit one QUIC datagram at the starting MTU.
pub const MAX_SWIM_BYTES: usize = 1_100;

/// Most adverts in one frame, and most ids in one repair message (33 bytes each at the most).
pub const MAX_ADVERTS_PER_FRAME: usize = 256;
/// Most advert ids in one repair frame: 1,300 x 38 bytes at the most stay below [`MAX_FRAME_BYTES`].
pub const MAX_IDS_PER_FRAME: usize = 1_300;

/// Most members in one full-state message: 1,500 x 40 bytes stay below [`MAX_FRAME_BYTES`].
pub const MAX_MEMBERS_PER_FRAME: usize = 1_500;

/// Most nodes a push may ask its receiver to pass it on to.
pub const MAX_FORWARD: usize = 64;

/// Most nodes a catalog holds; more are refused and counted.
pub const MAX_NODES: usize = 10_000;

/// Most records a node registers for itself.
pub const MAX_OWN_RECORDS: usize = 512;

/// Most adverts kept while their card or issuer is unknown, and for how long (design section 6).
pub const MAX_HELD: usize = 1_000;
/// How long an advert is held.
pub const HELD_FOR: Duration = Duration::from_secs(600);

/// How long a head counts from its receipt; refreshed each [`HEAD_REFRESH`]. Bounds how long a dead node
/// can be answered even if membership is wrong.
pub const LEASE: Duration = Duration::from_secs(3_600);
/// How often a head is published without a change.
pub const HEAD_REFRESH: Duration = Duration::from_secs(1_200);

/// How long fragments of an older epoch stay after a newer head (design section 6).
pub const OLD_EPOCH_GRACE: Duration = Duration::from_secs(10);

/// How long entries of a silent node are kept, then dropped.
pub const FORGET_AFTER: Duration = Duration::from_secs(24 * 3_600);
/// Age from which entries of a silent node are no longer offered to others.
pub const OFFER_UNTIL: Duration = Duration::from_secs(23 * 3_600);

/// Adverts of one origin accepted from one peer: rate per second and burst (design section 6).
pub const ADVERT_RATE: f64 = 64.0;
/// Burst of the same.
pub const ADVERT_BURST: f64 = 256.0;

/// Most client bytes held until an instance has answered its status byte (design section 9).
pub const MAX_EARLY_BYTES: usize = 65_536;

/// Members up to which every pair keeps a connection; above, each node watches a fixed set of at most so many. An idle
/// connection takes 32 KiB in quinn alone and about 37 KiB in a daemon (`docs/benchmarks.md`).
pub const MAX_WARM_PEERS: usize = 1_024;

/// Inbound handshakes that wait to be judged, in the QUIC library: one machine's worth of peers, not a flood's.
pub const MAX_INCOMING: usize = 256;
/// Bytes that may come after the first packet of one such handshake: the rest of a long first flight.
pub const MAX_INCOMING_BYTES: u64 = 16 << 10;
/// The same for all of them.
pub const MAX_ALL_INCOMING_BYTES: u64 = 1 << 20;

/// Handshakes under way; the oldest makes room. One takes some 50 KiB in the QUIC library.
pub const MAX_HALF_OPEN: usize = 256;
/// Handshakes of one source under load (of IPv6, 64 bits are one source): a node behind that address dials once or
/// twice, a few nodes may share it.
pub const MAX_HALF_OPEN_PER_SOURCE: usize = 8;
/// The same for a source from which members have connected: many may share an address behind NAT.
pub const MAX_HALF_OPEN_PER_MEMBER: usize = 64;
/// Handshakes of one member under way in the circuits of one relay, whatever the load: it dials up to eight lanes at once, and
/// two for itself. All that a relay leads is as much as [`MAX_HALF_OPEN_PER_MEMBER`].
pub const MAX_HALF_OPEN_PER_OPENER: usize = 12;
/// Handshakes under way from which on there is load: a source must show that it has its address.
pub const RETRY_ABOVE_HALF_OPEN: usize = 64;
/// First packets in a second, of sources that have not shown their address, above which there is load.
pub const RETRY_ABOVE_INITIALS: u32 = 200;
/// Most sources asked in a second to show their address: half of what a core can do, so that the rest is left.
pub const MAX_RETRIES_PER_SECOND: u32 = 10_000;
/// Handshakes strangers may begin in a second under load: a tenth of a core.
pub const MAX_HANDSHAKES_PER_SECOND: f64 = 200.0;
/// Those they may begin at once: a mesh of that size starts as if there were no limit.
pub const MAX_HANDSHAKES_AT_ONCE: u32 = 512;

/// Longest wait for a handshake and the first hello. Just under the 3 s after which QUIC sends its first packets for
/// the third time (RFC 9002 6.2), padded to 1,200 bytes each: no answer to those could come in time.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(2_900);

/// Connections of one member that have not greeted yet: both of its kinds, each tried at two addresses.
pub const MAX_GREETING: usize = 4;

/// Bytes that one peer can make this node keep unread, over all its connections and streams.
pub const MAX_UNREAD_PER_PEER: usize = 16 << 20;

/// Joiners at the door of an issuer: some wait there for their request, the slowest makes room.
pub const MAX_JOINING: usize = 64;
/// Joiners of one source at the door when most seats are taken.
pub const MAX_JOINING_PER_SOURCE: usize = 4;

/// Flows one peer may have open towards this node (design section 16).
pub const MAX_FLOWS_PER_PEER: u32 = 16_384;

/// UDP flows of them: each takes a socket of the serving node. A caller has no more in all, and its oldest make room.
pub const MAX_UDP_FLOWS_PER_PEER: u32 = 4_096;

/// Longest payload of a UDP datagram over IPv4: 65,535 less the headers of IP and UDP.
pub const MAX_UDP_BYTES: usize = 65_507;

/// Datagrams of UDP flows that one connection may be sending in parts, each of [`MAX_UDP_BYTES`]: what one peer pins beside
/// [`MAX_UNREAD_PER_PEER`] is 1 MiB. More of them wait unread.
pub const MAX_FRAMED_AT_ONCE: usize = 4;

/// Greatest epoch taken from anyone: beyond it only a broken or hostile node can be.
pub const MAX_EPOCH: u64 = 1 << 44;
