//! Each limit of the protocol is held by the decoder that needs it: the greatest value passes, one more does not.
//!
//! Hostile nodes do not use our encoders, so where those refuse too, the bytes are made by another way.

use gossamer_wire::advert::{
    Advert, AdvertId, Card, Fragment, Head, Header, Kind, SIGNATURE_BYTES, Slot, Version,
};
use gossamer_wire::flow::OpenRequest;
use gossamer_wire::frame::{AdvertCopy, BUCKETS, Frame};
use gossamer_wire::join::{Admitted, JoinReply, PeerHint};
use gossamer_wire::limits::*;
use gossamer_wire::statement::{Change, SignedStatement, Statement};
use gossamer_wire::swim::{Identity, SwimMember, SwimState};
use gossamer_wire::token::{Claims, Grant, MAX_CLAIMS_BYTES, Token};
use gossamer_wire::{
    DecodeError, EncodeError, Generation, Health, LaneAddress, MeshId, NodeId, Port, Routing, ServiceRecord,
    TokenId, Transport, Tries, Visibility, codec,
};

const NODE: NodeId = NodeId::from_bytes([0xff; 16]);

/// Asserts that `limit` passes and `limit + 1` does not, for the right reason.
#[track_caller]
fn assert_limit<T: std::fmt::Debug>(
    what: &str,
    limit: usize,
    decode: impl Fn(usize) -> Result<T, DecodeError>,
) {
    let at = decode(limit);
    assert!(at.is_ok(), "{what}: {limit} should pass: {:?}", at.err());
    match decode(limit + 1) {
        Err(DecodeError::TooMany { limit: named, .. } | DecodeError::TooLong { limit: named, .. }) => {
            assert_eq!(named, limit, "{what}: the error names another limit");
        }
        other => panic!("{what}: {} should be refused by the limit, not {other:?}", limit + 1),
    }
}

fn encoded(result: Result<Vec<u8>, EncodeError>) -> Vec<u8> {
    result.expect("the encoder's own limit is not what is tested")
}

fn decode_frame(frame: &Frame) -> Result<Option<Frame>, DecodeError> {
    let bytes = encoded(frame.encode());
    Frame::decode(u16::from_be_bytes([bytes[4], bytes[5]]), &bytes[6..])
}

fn advert_id(number: usize) -> AdvertId {
    let slot = Slot { node: NODE, kind: Kind::Records, k: 63 };
    AdvertId { slot, version: Version { epoch: 1, seq: number as u64 } }
}

fn addresses(count: usize) -> Vec<std::net::SocketAddr> {
    (0..count).map(|port| ([192, 0, 2, 1], port as u16).into()).collect()
}

#[test]
fn lists_in_frames_are_limited() {
    let copy = |len| AdvertCopy { age: 0, bytes: vec![0; len].into() };
    assert_limit("adverts", MAX_ADVERTS_PER_FRAME, |count| {
        decode_frame(&Frame::Adverts { copies: vec![copy(1); count], forward: Vec::new() })
    });
    assert_limit("advert in a frame", MAX_CARD_BYTES, |len| {
        decode_frame(&Frame::Adverts { copies: vec![copy(len)], forward: Vec::new() })
    });
    assert_limit("nodes to forward to", MAX_FORWARD, |count| {
        decode_frame(&Frame::Adverts { copies: Vec::new(), forward: vec![NODE; count] })
    });
    assert_limit("ids", MAX_IDS_PER_FRAME, |count| {
        let ids = (0..count).map(advert_id).collect();
        decode_frame(&Frame::Ids { buckets: Vec::new(), ids, whole: false })
    });
    assert_limit("buckets", BUCKETS, |count| {
        decode_frame(&Frame::Ids { buckets: vec![0; count], ids: Vec::new(), whole: true })
    });
    assert_limit("bucket hashes", BUCKETS, |count| decode_frame(&Frame::Buckets(vec![0; count])));
    assert_limit("ids to announce", MAX_IDS_PER_FRAME, |count| {
        decode_frame(&Frame::Have((0..count).map(advert_id).collect()))
    });
    assert_limit("adverts to spread", MAX_ADVERTS_PER_FRAME, |count| {
        decode_frame(&Frame::Spread { copies: vec![copy(1); count], first: NODE, last: NODE })
    });
    assert_limit("wanted ids", MAX_IDS_PER_FRAME, |count| {
        decode_frame(&Frame::Want((0..count).map(advert_id).collect()))
    });
    let identity = Identity { node: NODE, generation: Generation::of_epoch(1) };
    let member = SwimMember { identity, incarnation: 0, state: SwimState::Alive };
    assert_limit("members", MAX_MEMBERS_PER_FRAME, |count| {
        decode_frame(&Frame::Members { members: vec![member.clone(); count], reply: false })
    });
    assert_limit("statement in a frame", MAX_STATEMENT_BYTES, |len| {
        decode_frame(&Frame::Statements(vec![vec![0; len]]))
    });
}

#[test]
fn a_frame_is_refused_by_its_prefix_before_anything_is_allocated() {
    assert_limit("frame", MAX_FRAME_BYTES, |len| {
        let [a, b, c, d] = (len as u32).to_be_bytes();
        Frame::decode_prefix([a, b, c, d, 0, 3])
    });
    assert_limit("open request", MAX_OPEN_BYTES, |len| {
        OpenRequest::decode_prefix((len as u16).to_be_bytes())
    });
}

#[test]
fn full_messages_of_the_worst_case_fit_a_frame() {
    let identity =
        Identity { node: NODE, generation: Generation { epoch: MAX_EPOCH - 1, renewals: (1 << 20) - 1 } };
    let member = SwimMember { identity, incarnation: u16::MAX, state: SwimState::Down };
    let members = Frame::Members { members: vec![member; MAX_MEMBERS_PER_FRAME], reply: true };
    assert!(decode_frame(&members).is_ok());
    let mut id = advert_id(0);
    id.version = Version { epoch: MAX_EPOCH - 1, seq: u64::MAX };
    assert!(decode_frame(&Frame::Want(vec![id; MAX_IDS_PER_FRAME])).is_ok());
}

fn record() -> ServiceRecord {
    ServiceRecord {
        service: "orders".parse().expect("name"),
        instance: "vm-b".parse().expect("name"),
        ports: vec![Port { name: 80.into(), number: 80, transport: Transport::Tcp }],
        visibility: Visibility::Own,
        health: Health::Passing,
        weight: 100,
        draining: false,
        routing: Routing::default(),
        tries: Tries::default(),
        metadata: Vec::new(),
        fqdns: Vec::new(),
    }
}

fn decode_record(change: impl FnOnce(&mut ServiceRecord)) -> Result<ServiceRecord, DecodeError> {
    let mut record = record();
    change(&mut record);
    ServiceRecord::decode(&encoded(record.encode()))
}

#[test]
fn lists_in_records_are_limited() {
    assert_limit("ports", MAX_PORTS, |count| {
        let port = |number: u16| Port { name: number.into(), number, transport: Transport::Tcp };
        decode_record(|record| record.ports = (1..=count as u16).map(port).collect())
    });
    assert_limit("visible groups", MAX_VISIBLE_GROUPS, |count| {
        let group = |number| format!("g{number}").parse().expect("name");
        decode_record(|record| record.visibility = Visibility::Groups((0..count).map(group).collect()))
    });
    assert_limit("rules of visibility", MAX_VISIBLE_RULES, |count| {
        let rule = |number| format!("group:g{number}").parse().expect("a rule");
        let rules = (0..count).map(rule).collect();
        decode_record(|record| record.visibility = Visibility::Rules { own: false, rules })
    });
    assert_limit("metadata", MAX_METADATA, |count| {
        decode_record(|record| record.metadata = vec![("k".to_owned(), "v".to_owned()); count])
    });
    assert_limit("FQDNs", MAX_FQDNS, |count| {
        let fqdn = |number| format!("n{number}.test").parse().expect("name");
        decode_record(|record| record.fqdns = (0..count).map(fqdn).collect())
    });
    assert_limit("metadata key", MAX_METADATA_KEY_BYTES, |len| {
        decode_record(|record| record.metadata = vec![("k".repeat(len), String::new())])
    });
    assert_limit("metadata value", MAX_METADATA_VALUE_BYTES, |len| {
        decode_record(|record| record.metadata = vec![("k".to_owned(), "v".repeat(len))])
    });
}

#[test]
fn lengths_of_metadata_are_counted_in_bytes() {
    let too_long = decode_record(|record| {
        record.metadata = vec![("k".to_owned(), "é".repeat(MAX_METADATA_VALUE_BYTES / 2 + 1))];
    });
    assert!(too_long.is_err());
}

#[test]
fn a_record_must_leave_room_for_its_fragment() {
    let wide = |pairs: usize| {
        let mut record = record();
        record.metadata = (0..pairs).map(|n| (format!("k{n}"), "v".repeat(100))).collect();
        record
    };
    let fits = (1..).map(wide).take_while(|record| record.encode().is_ok()).last().expect("one fits");
    let body = Fragment::of(&[fits]).and_then(|fragment| fragment.encode()).expect("fits");
    assert!(body.len() <= MAX_ADVERT_BYTES);
}

fn header(kind: Kind) -> Header {
    let slot = Slot { node: NODE, kind, k: 0 };
    Header { mesh: MeshId::from_bytes([1; 16]), id: AdvertId { slot, version: Version::default() } }
}

#[test]
fn adverts_are_limited_by_their_kind() {
    let later = Kind::try_from(MAX_KIND).expect("the last of the later kinds");
    for (kind, limit) in [
        (Kind::Card, MAX_CARD_BYTES),
        (Kind::Records, MAX_ADVERT_BYTES),
        (Kind::Head, MAX_ADVERT_BYTES),
        (later, MAX_ADVERT_BYTES),
    ] {
        let empty = Advert::build(header(kind), &[], |_| [0; SIGNATURE_BYTES]).expect("fits");
        assert_limit("advert", limit, |len| {
            let mut bytes = empty.bytes().to_vec();
            bytes.resize(len, 0);
            Advert::parse(&bytes)
        });
    }
}

#[test]
fn fragment_numbers_and_epochs_end_where_the_protocol_says() {
    let good = Advert::build(header(Kind::Records), &[], |_| [0; SIGNATURE_BYTES]).expect("fits");
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.bytes().to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        Advert::parse(&changed)
    };
    // The fragment number stands behind version, mesh, node and kind; the epoch behind it.
    assert!(with(34, &(MAX_FRAGMENTS - 1).to_be_bytes()).is_ok());
    assert!(with(34, &MAX_FRAGMENTS.to_be_bytes()).is_err());
    assert!(with(33, &[MAX_KIND]).is_ok() && with(33, &[MAX_KIND + 1]).is_err());
    let later = |k: u16| with(33, &[&[MAX_KIND], &k.to_be_bytes()[..]].concat());
    assert!(later(MAX_LATER_FRAGMENTS - 1).is_ok() && later(MAX_LATER_FRAGMENTS).is_err());
    assert!(with(36, &(MAX_EPOCH - 1).to_be_bytes()).is_ok());
    assert!(with(36, &MAX_EPOCH.to_be_bytes()).is_err());
}

fn card() -> Card {
    Card {
        leaf: Vec::new(),
        addresses: Vec::new(),
        zone: None,
        region: None,
        labels: Vec::new(),
        relays: Vec::new(),
        protocol: (1, 1),
        capabilities: 0,
        lanes: Vec::new(),
    }
}

fn longest_lane() -> LaneAddress {
    let host = format!("{}.{}", "a".repeat(MAX_LABEL_BYTES), "b".repeat(MAX_LABEL_BYTES));
    format!("tls://{host}:65535").parse().expect("at its limit")
}

fn decode_card(change: impl FnOnce(&mut Card)) -> Result<Card, DecodeError> {
    let mut card = card();
    change(&mut card);
    Card::decode(&encoded(card.encode()))
}

#[test]
fn lists_in_cards_are_limited() {
    assert_limit("leaf", MAX_LEAF_BYTES, |len| decode_card(|card| card.leaf = vec![0; len]));
    assert_limit("addresses", MAX_ADDRESSES, |count| decode_card(|card| card.addresses = addresses(count)));
    assert_limit("relays", MAX_RELAYS, |count| decode_card(|card| card.relays = vec![NODE; count]));
    assert_limit("lane addresses", MAX_LANE_ADDRESSES, |count| {
        decode_card(|card| card.lanes = vec![longest_lane(); count])
    });
    assert_limit("labels", MAX_NODE_LABELS_BYTES, |len| {
        decode_card(|card| card.labels = vec![("ab".to_owned(), "v".repeat(len - 2))])
    });
}

#[test]
fn a_card_with_everything_at_its_limit_fits_an_advert() {
    let full = Card {
        leaf: vec![0; MAX_LEAF_BYTES],
        addresses: vec!["[2001:db8::1]:65535".parse().expect("address"); MAX_ADDRESSES],
        zone: Some("z".repeat(MAX_LABEL_BYTES).parse().expect("name")),
        region: Some("r".repeat(MAX_LABEL_BYTES).parse().expect("name")),
        labels: vec![("k".repeat(100), "v".repeat(100))],
        relays: vec![NODE; MAX_RELAYS],
        protocol: (1, 255),
        capabilities: u64::MAX,
        lanes: vec![longest_lane(); MAX_LANE_ADDRESSES],
    };
    let body = full.encode().expect("fits");
    assert!(Advert::build(header(Kind::Card), &body, |_| [0; SIGNATURE_BYTES]).is_ok());
}

#[test]
fn fragments_and_heads_are_limited() {
    assert_limit("entries of a fragment", MAX_RECORDS_PER_FRAGMENT, |count| {
        let fragment = Fragment { entries: vec![(200, Vec::new()); count] };
        Fragment::decode(&fragment.encode().expect("short entries"))
    });
    assert_limit("fragments of a head", MAX_FRAGMENTS.into(), |count| {
        let head = Head { n: count as u16, lease_seconds: 1, statement_digest: [0; 16] };
        Head::decode(&head.encode().expect("fits"))
    });
}

#[test]
fn tokens_name_a_few_addresses_only() {
    let grant = |count| Grant {
        mesh: MeshId::from_bytes([1; 16]),
        root_pin: [2; 32],
        id: TokenId::from_bytes([3; 16]),
        issuer: NODE,
        not_after: 1,
        uses: 1,
        group: "west".parse().expect("name"),
        node_pattern: None,
        claims: Claims::default(),
        addresses: addresses(count),
        lanes: Vec::new(),
    };
    assert_limit("token addresses", MAX_TOKEN_ADDRESSES, |count| {
        let token = Token::build(grant(count), |_| [0; 64]).expect("fits");
        match token.reveal().parse::<Token>() {
            Ok(token) => Ok(token),
            Err(gossamer_wire::token::TokenError::Content(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    });
    let mut wordy = grant(1);
    wordy.node_pattern = Some("x".repeat(MAX_TOKEN_BYTES));
    assert!(Token::build(wordy, |_| [0; 64]).is_err());
}

#[test]
fn a_text_that_is_much_longer_than_a_token_is_not_decoded() {
    let long = format!("{}{}", gossamer_wire::token::PREFIX, "a".repeat(1 << 20));
    assert!(long.parse::<Token>().is_err());
}

#[test]
fn claims_are_limited_as_a_whole() {
    let services = |len| vec!["a".repeat(100), "b".repeat(len)];
    let claims = |len| Claims { services: services(len), ..Claims::default() };
    let overhead = claims(0).encode().expect("fits").len();
    assert!(claims(MAX_CLAIMS_BYTES - overhead).encode().is_ok());
    assert!(claims(MAX_CLAIMS_BYTES - overhead + 1).encode().is_err());
    let long = codec::encode("claims", &claims(MAX_CLAIMS_BYTES), 1_024).expect("fits 1,024");
    assert!(matches!(Claims::decode(&long), Err(DecodeError::TooLong { limit: MAX_CLAIMS_BYTES, .. })));
}

#[test]
fn certificates_and_addresses_of_a_join_reply_are_limited() {
    let admitted = || Admitted {
        leaf: Vec::new(),
        issuers: Vec::new(),
        roots: Vec::new(),
        mesh_name: "test".parse().expect("name"),
        group: "west".parse().expect("name"),
        peers: Vec::new(),
        statements: Vec::new(),
    };
    let decode = |admitted: Admitted| {
        JoinReply::decode(&JoinReply::Admitted(Box::new(admitted)).encode().expect("fits"))
    };
    let certificate = MAX_CERTIFICATE_BYTES;
    assert_limit("leaf", certificate, |len| decode(Admitted { leaf: vec![0; len], ..admitted() }));
    assert_limit("issuer", certificate, |len| decode(Admitted { issuers: vec![vec![0; len]], ..admitted() }));
    assert_limit("root", certificate, |len| decode(Admitted { roots: vec![vec![0; len]], ..admitted() }));
    assert_limit("addresses of a peer", MAX_ADDRESSES, |count| {
        decode(Admitted {
            peers: vec![PeerHint { node: NODE, addresses: addresses(count), lanes: Vec::new() }],
            ..admitted()
        })
    });
    assert!(matches!(
        JoinReply::decode(&vec![0; MAX_JOIN_BYTES + 1]),
        Err(DecodeError::TooLong { limit: MAX_JOIN_BYTES, .. })
    ));
}

#[test]
fn a_join_reply_with_all_its_hints_fits() {
    let hint = PeerHint {
        node: NODE,
        addresses: vec!["[2001:db8::1]:65535".parse().expect("address"); MAX_ADDRESSES],
        lanes: vec![longest_lane(); MAX_LANE_ADDRESSES],
    };
    let admitted = Admitted {
        leaf: vec![0; 700],
        issuers: vec![vec![0; 450]; 2],
        roots: vec![vec![0; 400]; 2],
        mesh_name: "m".repeat(MAX_LABEL_BYTES).parse().expect("name"),
        group: "g".repeat(MAX_LABEL_BYTES).parse().expect("name"),
        peers: vec![hint; 16],
        statements: vec![vec![0; 500]; 4],
    };
    assert!(JoinReply::Admitted(Box::new(admitted)).encode().is_ok());
}

#[test]
fn contents_of_statements_are_limited() {
    let parse = |change: Change| {
        let content = Statement { mesh: MeshId::from_bytes([1; 16]), author: NODE, number: 1, change };
        let signed = SignedStatement::build(content, |_| [0; 64]).expect("fits");
        SignedStatement::parse(signed.bytes())
    };
    assert_limit("root", MAX_CERTIFICATE_BYTES, |len| parse(Change::AddRoot(vec![0; len])));
    assert_limit("issuer", MAX_CERTIFICATE_BYTES, |len| parse(Change::AddIssuer(vec![0; len])));
    assert_limit("nodes to keep", MAX_KEPT, |count| {
        parse(Change::RemoveIssuer { issuer: NODE, numbers: u64::MAX, keep: vec![NODE; count] })
    });
    assert!(matches!(
        SignedStatement::parse(&vec![0; MAX_STATEMENT_BYTES + 1]),
        Err(DecodeError::TooMany { limit: MAX_STATEMENT_BYTES, .. })
    ));
}

#[test]
fn packets_of_swim_that_are_too_long_are_not_read() {
    for decode in [
        |bytes: &[u8]| gossamer_wire::swim::decode_header(bytes).map(drop),
        |bytes: &[u8]| gossamer_wire::swim::decode_member(bytes).map(drop),
    ] {
        assert!(matches!(
            decode(&[0; MAX_SWIM_BYTES + 1]),
            Err(DecodeError::TooLong { limit: MAX_SWIM_BYTES, .. })
        ));
        assert!(decode(&[0; MAX_SWIM_BYTES]).is_ok());
    }
}

#[test]
fn limits_of_the_protocol_agree_with_each_other() {
    // A QUIC datagram at the starting MTU, less what QUIC and its encryption need.
    let datagram = 1_200 - 60;
    let fragments = usize::from(MAX_FRAGMENTS) * MAX_ADVERT_BYTES;
    let seconds = |time: std::time::Duration| time.as_secs() as usize;
    for (what, small, great) in [
        ("a SWIM packet and a datagram", MAX_SWIM_BYTES, datagram),
        ("an advert and a datagram", MAX_ADVERT_BYTES, datagram),
        ("a leaf and a card", MAX_LEAF_BYTES, MAX_CARD_BYTES),
        ("a leaf and a certificate", MAX_LEAF_BYTES, MAX_CERTIFICATE_BYTES),
        ("a certificate and a statement", MAX_CERTIFICATE_BYTES, MAX_STATEMENT_BYTES),
        ("a card and a frame", MAX_CARD_BYTES, MAX_FRAME_BYTES),
        ("three statements and a frame", 3 * MAX_STATEMENT_BYTES, MAX_FRAME_BYTES),
        ("claims of an issuer and a certificate", MAX_ISSUER_CLAIMS_BYTES, MAX_CERTIFICATE_BYTES),
        ("a frame and the decoder", MAX_FRAME_BYTES, MAX_DECODE_BYTES),
        ("own records of 130 bytes and all fragments", MAX_OWN_RECORDS * 130, fragments),
        ("offering and forgetting", seconds(OFFER_UNTIL), seconds(FORGET_AFTER)),
        ("two refreshes and a lease", 2 * seconds(HEAD_REFRESH), seconds(LEASE)),
    ] {
        assert!(small < great, "{what}: {small} and {great}");
    }
}
