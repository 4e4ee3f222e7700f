//! The bytes of version 1, written down: whoever changes them changes the protocol.
//!
//! Each vector is checked in both directions: we write these bytes, and these bytes still mean the same value.

use data_encoding::HEXLOWER;

use gossamer_wire::advert::{AdvertId, Card, Fragment, Head, Kind, Slot, Version};
use gossamer_wire::circuit::{CIRCUIT_BYTES, CircuitOpen, CircuitStatus};
use gossamer_wire::flow::{OpenRequest, encode_framed, encode_stream_id};
use gossamer_wire::frame::{AdvertCopy, Frame, Hello, PREFIX_BYTES, Purpose};
use gossamer_wire::issuer::IssuerClaims;
use gossamer_wire::join::{Admitted, Ask, JoinReply, JoinRequest, PeerHint, Refusal, RenewRequest};
use gossamer_wire::statement::{Change, SignedStatement, Statement};
use gossamer_wire::swim::{self, Identity, SwimHeader, SwimMember, SwimMessage, SwimState};
use gossamer_wire::token::{Claims, Grant, Token};
use gossamer_wire::{
    Carrier, Generation, Health, MeshId, NodeId, Port, Routing, ServiceRecord, Tier, TokenId, Transport,
    Tries, Visibility,
};

const NODE: NodeId = NodeId::from_bytes([0xaa; 16]);
const MESH: MeshId = MeshId::from_bytes([0xbb; 16]);

/// Asserts that a value has the golden bytes; white space in the text only groups them.
#[track_caller]
fn assert_golden(what: &str, bytes: &[u8], golden: &str) {
    let golden: String = golden.split_whitespace().collect();
    assert_eq!(HEXLOWER.encode(bytes), golden, "{what}");
}

fn identity() -> Identity {
    Identity { node: NODE, generation: Generation { epoch: 300, renewals: 2 } }
}

fn advert_id(kind: Kind, k: u16) -> AdvertId {
    AdvertId { slot: Slot { node: NODE, kind, k }, version: Version { epoch: 3, seq: 70_000 } }
}

fn frames() -> Vec<(Frame, &'static str)> {
    let hello = |purpose, observed: &str| Hello {
        purpose,
        nonce: 0x0102_0304_0506_0708,
        observed: observed.parse().expect("address"),
        statement_digest: [0xcc; 16],
    };
    let member = |incarnation, state| SwimMember { identity: identity(), incarnation, state };
    vec![
        (
            Frame::Hello(hello(Purpose::Control, "192.0.2.1:4677")),
            "00000022000100fd080706050403020100c0000201fb4512cccccccccccccccccccccccccccccccc",
        ),
        (
            Frame::Hello(hello(Purpose::Data, "[2001:db8::1]:4677")),
            "0000002e000101fd08070605040302010120010db8000000000000000000000001fb4512cccccccccccccccccccccccccccccccc",
        ),
        (
            Frame::Adverts {
                copies: vec![AdvertCopy { age: 251, bytes: vec![1, 2].into() }],
                forward: vec![NODE],
            },
            "00000018000201fbfb0002010201aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ),
        (Frame::Root(u64::MAX), "000000090003fdffffffffffffffff"),
        (
            Frame::Ids {
                buckets: vec![7],
                ids: vec![advert_id(Kind::Records, 63), advert_id(Kind::Card, 0)],
                whole: true,
            },
            "000000340004010702aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa023f03fc70110100aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa010003fc7011010001",
        ),
        (
            Frame::Want(vec![advert_id(Kind::Head, 0)]),
            "00000019000501aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa030003fc70110100",
        ),
        (Frame::MemberHash(250), "000000010006fa"),
        (
            Frame::Members {
                members: vec![
                    member(0, SwimState::Alive),
                    member(300, SwimState::Suspect),
                    member(1, SwimState::Down),
                ],
                reply: true,
            },
            "00000046000703aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafb2c01020000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafb2c0102fb2c0101aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafb2c0102010201",
        ),
        (Frame::DialBack(Purpose::Control), "00000001000800"),
        (Frame::DialBack(Purpose::Data), "00000001000801"),
        (Frame::DialBack(Purpose::Swim), "00000001000802"),
        (Frame::Statements(vec![vec![9; 3], Vec::new()]), "000000060009020309090900"),
        (Frame::Swim(vec![3, 0, 0, 9, 0, 0, 1]), "00000008000a0703000009000001"),
        (Frame::Buckets(vec![0, u64::MAX]), "0000000b000b0200fdffffffffffffffff"),
        (
            Frame::Spread {
                copies: vec![AdvertCopy { age: 0, bytes: vec![7].into() }],
                first: NODE,
                last: NodeId::from_bytes([0xbb; 16]),
            },
            "00000024000c01000107aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        ),
        (
            Frame::Have(vec![advert_id(Kind::Records, 63)]),
            "00000019000d01aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa023f03fc70110100",
        ),
        (Frame::Probe(251), "00000003000efbfb00"),
        (Frame::ProbeAck(1), "00000001000f01"),
        (Frame::IssuerKeyWanted, "000000000010"),
        (
            Frame::IssuerKey { public_key: [4; 32], proof: vec![5; 2] },
            "0000002300110404040404040404040404040404040404040404040404040404040404040404020505",
        ),
        (Frame::Ping(7), "00000001001807"),
        (Frame::Pong(7), "00000001001907"),
    ]
}

#[test]
fn frames_keep_their_bytes() {
    for (frame, golden) in frames() {
        let bytes = frame.encode().expect("fits");
        assert_golden(&format!("{frame:?}"), &bytes, golden);
        let (prefix, payload) = bytes.split_first_chunk::<PREFIX_BYTES>().expect("a prefix");
        let (kind, len) = Frame::decode_prefix(*prefix).expect("in the limit");
        assert_eq!(len, payload.len());
        assert_eq!(Frame::decode(kind, payload), Ok(Some(frame)));
    }
}

/// A kind that is added here without a golden frame above would go unnoticed.
#[test]
fn every_known_kind_of_frame_has_golden_bytes() {
    let kind = |frame: &Frame| {
        let bytes = frame.encode().expect("fits");
        u16::from_be_bytes([bytes[4], bytes[5]])
    };
    let golden: std::collections::BTreeSet<u16> = frames().iter().map(|(frame, _)| kind(frame)).collect();
    let known = |kind: &u16| !matches!(Frame::decode(*kind, &[]), Ok(None));
    assert_eq!(golden.into_iter().collect::<Vec<_>>(), (0..=u16::MAX).filter(known).collect::<Vec<_>>());
}

#[test]
fn packets_of_swim_keep_their_bytes() {
    let header = |message| SwimHeader {
        from: Generation { epoch: 3, renewals: 1 },
        incarnation: 2,
        to: Generation::of_epoch(9),
        message,
    };
    let messages = [
        (SwimMessage::Ping(7), "03010209000007"),
        (SwimMessage::Ack(7), "03010209000107"),
        (
            SwimMessage::PingReq { target: identity(), probe: 7 },
            "030102090002aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafb2c010207",
        ),
        (
            SwimMessage::IndirectPing { origin: identity(), probe: 7 },
            "030102090003aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafb2c010207",
        ),
        (
            SwimMessage::IndirectAck { target: identity(), probe: 7 },
            "030102090004aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafb2c010207",
        ),
        (
            SwimMessage::ForwardedAck { origin: identity(), probe: 7 },
            "030102090005aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafb2c010207",
        ),
        (SwimMessage::Announce, "030102090006"),
        (SwimMessage::Feed, "030102090007"),
        (SwimMessage::Gossip, "030102090008"),
        (SwimMessage::Broadcast, "030102090009"),
        (SwimMessage::TurnUndead, "03010209000a"),
    ];
    for (message, golden) in messages {
        let bytes = swim::encode(&header(message.clone())).expect("fits");
        assert_golden(&format!("{message:?}"), &bytes, golden);
        assert_eq!(swim::decode_header(&bytes), Ok((header(message), bytes.len())));
    }
}

fn record() -> ServiceRecord {
    ServiceRecord {
        service: "orders-db".parse().expect("name"),
        instance: "vm-b".parse().expect("name"),
        ports: vec![
            Port { name: 5432.into(), number: 5432, transport: Transport::Tcp },
            Port { name: "stats".parse().expect("name"), number: 80, transport: Transport::Udp },
        ],
        visibility: Visibility::Groups(vec!["west".parse().expect("name")]),
        health: Health::Failing,
        weight: 100,
        draining: false,
        routing: Routing::default(),
        tries: Tries { service: 1, group: 2, instance: 3 },
        metadata: vec![("version".to_owned(), "15".to_owned())],
        fqdns: vec!["*.b.c".parse().expect("name")],
    }
}

#[test]
fn records_keep_their_bytes() {
    let cases = [
        (
            record(),
            "096f72646572732d646204766d2d62020435343332fb38150005737461747350010101047765737401640000000000010203010776657273696f6e02313501052a2e622e63",
        ),
        (
            ServiceRecord {
                visibility: Visibility::Own,
                health: Health::Passing,
                metadata: Vec::new(),
                fqdns: Vec::new(),
                ..record()
            },
            "096f72646572732d646204766d2d62020435343332fb381500057374617473500100006400000000000102030000",
        ),
        (
            ServiceRecord {
                draining: true,
                routing: Routing {
                    order: vec![Tier::Zone, Tier::Region],
                    only: Some(Tier::Region),
                    spill_below: Some(70),
                    carrier: Some(Carrier::Tls),
                },
                ..record()
            },
            "096f72646572732d646204766d2d62020435343332fb381500057374617473500101010477657374016401020203010301460100010203010776657273696f6e02313501052a2e622e63",
        ),
        (
            ServiceRecord { visibility: Visibility::All, ..record() },
            "096f72646572732d646204766d2d62020435343332fb38150005737461747350010201640000000000010203010776657273696f6e02313501052a2e622e63",
        ),
        (
            ServiceRecord {
                visibility: Visibility::Rules {
                    own: true,
                    rules: vec!["group:west".parse().expect("a rule")],
                },
                ..record()
            },
            "096f72646572732d646204766d2d62020435343332fb38150005737461747350010301010a67726f75703a7765737401640000000000010203010776657273696f6e02313501052a2e622e63",
        ),
    ];
    for (record, golden) in cases {
        let bytes = record.encode().expect("fits");
        assert_golden(&format!("{record:?}"), &bytes, golden);
        assert_eq!(ServiceRecord::decode(&bytes), Ok(record));
    }
}

#[test]
fn bodies_of_adverts_keep_their_bytes() {
    let card = Card {
        leaf: vec![7; 3],
        addresses: vec!["192.0.2.1:4677".parse().expect("address"), "[::1]:1".parse().expect("address")],
        zone: Some("z1".parse().expect("name")),
        region: None,
        labels: vec![("env".to_owned(), "prod".to_owned())],
        relays: vec![NODE],
        protocol: (1, 2),
        capabilities: 1 << 40,
        lanes: vec!["tls://gate.example:443".parse().expect("address")],
    };
    let bytes = card.encode().expect("fits");
    assert_golden(
        "card",
        &bytes,
        "030707070200c0000201fb451201000000000000000000000000000000010101027a31000103656e760470726f6401aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0102fd00000000000100000116746c733a2f2f676174652e6578616d706c653a343433",
    );
    assert_eq!(Card::decode(&bytes), Ok(card));

    let head = Head { n: 3, lease_seconds: 3_600, statement_digest: [0xcc; 16] };
    let bytes = head.encode().expect("fits");
    assert_golden("head", &bytes, "03fb100ecccccccccccccccccccccccccccccccc");
    assert_eq!(Head::decode(&bytes), Ok(head));

    let fragment = Fragment { entries: vec![(1, vec![5, 6]), (200, Vec::new())] };
    let bytes = fragment.encode().expect("fits");
    assert_golden("fragment", &bytes, "0201020506c800");
    assert_eq!(Fragment::decode(&bytes), Ok(fragment));
}

#[test]
fn open_requests_keep_their_bytes() {
    let request = OpenRequest {
        flow: 1 << 50,
        service: "orders-db".parse().expect("name"),
        instance: "vm-b".parse().expect("name"),
        port: 5432.into(),
        transport: Transport::Udp,
    };
    let bytes = request.encode().expect("fits");
    assert_golden("open request", &bytes, "001efd0000000000000400096f72646572732d646204766d2d62043534333201");
    assert_eq!(OpenRequest::decode(&bytes[2..]), Ok(request));
    assert_golden("framed datagram", &encode_framed(b"abc").expect("fits"), "0003616263");
    assert_golden("stream id", &encode_stream_id(300), "412c");
}

#[test]
fn join_messages_keep_their_bytes() {
    let request = Ask::Join(JoinRequest {
        token: "gsm1_abc".to_owned(),
        public_key: [0x11; 32],
        proof: vec![0x22; 64],
        name: "vm-b".parse().expect("name"),
    });
    let bytes = request.encode().expect("fits");
    assert_golden(
        "join request",
        &bytes,
        "000867736d315f6162631111111111111111111111111111111111111111111111111111111111111111402222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222222204766d2d62",
    );
    assert_eq!(Ask::decode(&bytes), Ok(request));
    let renewal = Ask::Renew(RenewRequest { leaf: vec![1; 2], issuer: vec![2; 2], proof: vec![3; 2] });
    let bytes = renewal.encode().expect("fits");
    assert_golden("renew request", &bytes, "01020101020202020303");
    assert_eq!(Ask::decode(&bytes), Ok(renewal));

    let admitted = JoinReply::Admitted(Box::new(Admitted {
        leaf: vec![1; 2],
        issuers: vec![vec![2; 2]],
        roots: vec![vec![3; 2]],
        mesh_name: "test".parse().expect("name"),
        group: "west".parse().expect("name"),
        peers: vec![PeerHint {
            node: NODE,
            addresses: vec!["192.0.2.1:4677".parse().expect("address")],
            lanes: Vec::new(),
        }],
        statements: vec![vec![4; 2]],
    }));
    let bytes = admitted.encode().expect("fits");
    assert_golden(
        "admitted",
        &bytes,
        "0002010101020202010203030474657374047765737401aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0100c0000201fb45120001020404",
    );
    assert_eq!(JoinReply::decode(&bytes), Ok(admitted));
}

#[test]
fn refusals_keep_their_numbers() {
    let refusals = [
        Refusal::Foreign,
        Refusal::Expired,
        Refusal::Used,
        Refusal::OtherIssuer,
        Refusal::Name,
        Refusal::NameTaken,
        Refusal::Proof,
        Refusal::Revoked,
        Refusal::Unavailable,
        Refusal::NoIssuer,
        Refusal::Scope,
        Refusal::Evicted,
        Refusal::Certificate,
    ];
    for (number, refusal) in (0..).zip(refusals) {
        let reply = JoinReply::Refused(refusal);
        assert_eq!(reply.encode().expect("fits"), [1, number], "{refusal:?}");
        assert_eq!(JoinReply::decode(&[1, number]), Ok(reply));
    }
    assert!(JoinReply::decode(&[1, refusals.len() as u8]).is_err());
}

fn grant() -> Grant {
    Grant {
        mesh: MESH,
        root_pin: [0xdd; 32],
        id: TokenId::from_bytes([0xee; 16]),
        issuer: NODE,
        not_after: 1_800_000_000,
        uses: 1,
        group: "west".parse().expect("name"),
        node_pattern: Some("vm-*".to_owned()),
        claims: Claims {
            services: vec!["web-*".to_owned()],
            fqdn_suffixes: vec!["corp.example".parse().expect("a suffix")],
            labels: [("zone".parse().expect("a label"), "a".parse().expect("a label"))].into(),
            relay: true,
            ephemeral_seconds: 600,
        },
        addresses: vec!["192.0.2.1:4677".parse().expect("address")],
        lanes: vec!["tls://gate.example:443".parse().expect("address")],
    }
}

#[test]
fn tokens_keep_their_text() {
    let token = Token::build(grant(), |_| [0x33; 64]).expect("fits");
    assert_eq!(
        token.reveal(),
        "gsm1_xo53xo53xo53xo53xo53xo53xpo53xo53xo53xo53xo53xo53xo53xo53xo53xo53xo53xo53xo533xo53xo53xo53xo53xo53xo53vkvkvkvkvkvkvkvkvkvkvkvkvk7qanesllaechozltoqaqi5tnfuvacblxmvrc2kqbbrrw64tqfzsxqylnobwgkaiepjxw4zibmea7wwacaeamaaacah5ukeqbcz2gy4z2f4xwoylumuxgk6dbnvygyzj2gq2dgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmztgmzqzqibfq"
    );
    let read: Token = token.reveal().parse().expect("parses");
    assert!(*read.grant() == grant());
    let (signed, signature) = read.signed();
    assert_golden(
        "signed bytes of a token",
        &signed,
        "676f7373616d65722d746f6b656e2d763100bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafc00d2496b0104776573740104766d2d2a01057765622d2a010c636f72702e6578616d706c6501047a6f6e65016101fb58020100c0000201fb45120116746c733a2f2f676174652e6578616d706c653a343433",
    );
    assert_eq!(signature, [0x33; 64]);
}

#[test]
fn claims_keep_their_bytes() {
    assert_golden("no claims", &Claims::default().encode().expect("fits"), "0000000000");
    assert_golden(
        "claims",
        &grant().claims.encode().expect("fits"),
        "0105 7765622d2a 010c 636f72702e6578616d706c65 0104 7a6f6e65 0161 01 fb5802",
    );
}

#[test]
fn claims_of_an_issuer_keep_their_bytes() {
    let claims = IssuerClaims {
        node: NODE,
        name: "vm-a".parse().expect("name"),
        groups: vec!["west".parse().expect("name")],
    };
    let bytes = claims.encode().expect("fits");
    assert_golden("claims of an issuer", &bytes, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 04766d2d61 010477657374");
    assert_eq!(IssuerClaims::decode(&bytes), Ok(claims));
}

#[test]
fn statements_keep_their_bytes() {
    let changes = [
        (
            Change::Evict(NODE),
            "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0700aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ),
        (
            Change::AddIssuer(vec![1, 2]),
            "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0701020102",
        ),
        (
            Change::RemoveIssuer { issuer: NODE, numbers: 3, keep: vec![NODE] },
            "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0702aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0301aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ),
        (
            Change::AddRoot(vec![1, 2]),
            "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0703020102",
        ),
        (
            Change::RetireRoot { root: NODE, keep: vec![[0xdd; 16]] },
            "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0704aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa01dddddddddddddddddddddddddddddddd",
        ),
        (
            Change::Grant { author: NODE, numbers: 1_000 },
            "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0705aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafbe803",
        ),
    ];
    for (change, golden) in changes {
        let content = Statement { mesh: MESH, author: NODE, number: 7, change };
        let signed = SignedStatement::build(content.clone(), |_| [0x33; 64]).expect("fits");
        assert_golden(&format!("{content:?}"), &signed.bytes()[..signed.bytes().len() - 64], golden);
        assert!(signed.bytes().ends_with(&[0x33; 64]));
        let read = SignedStatement::parse(signed.bytes()).expect("parses");
        assert_eq!(*read.statement(), content);
    }
}

/// Signatures are over a domain and the bytes, so that no signature of one thing is one of another.
#[test]
fn every_signed_thing_has_a_domain_of_its_own() {
    let mut token_bytes = Vec::new();
    let _ = Token::build(grant(), |bytes| {
        token_bytes = bytes.to_vec();
        [0; 64]
    });
    let mut statement_bytes = Vec::new();
    let content = Statement { mesh: MESH, author: NODE, number: 7, change: Change::Evict(NODE) };
    let _ = SignedStatement::build(content, |bytes| {
        statement_bytes = bytes.to_vec();
        [0; 64]
    });
    let header = gossamer_wire::advert::Header { mesh: MESH, id: advert_id(Kind::Head, 0) };
    let mut advert_bytes = Vec::new();
    let _ = gossamer_wire::advert::Advert::build(header, &[], |bytes| {
        advert_bytes = bytes.to_vec();
        [0; 64]
    });
    assert!(token_bytes.starts_with(b"gossamer-token-v1\0"));
    assert!(statement_bytes.starts_with(b"gossamer-statement-v1\0"));
    assert!(advert_bytes.starts_with(b"gossamer-advert-v1\0"));
}

#[test]
fn ids_are_derived_from_keys_as_in_version_1() {
    // SHA-256 of the empty text, first 16 bytes: e3b0c44298fc1c149afbf4c8996fb924.
    assert_golden("id", NodeId::of_spki(b"").as_bytes(), "e3b0c442 98fc1c14 9afbf4c8 996fb924");
    assert_eq!(NODE.to_string(), "vkvkvkvkvkvkvkvkvkvkvkvkvi");
}

#[test]
fn records_of_circuits_and_their_answers_keep_their_bytes() {
    for (what, record, golden) in [
        ("to", CircuitOpen::To(NODE), "ff01 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        ("from", CircuitOpen::From(NODE), "ff02 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        (
            "stranger, IPv4",
            CircuitOpen::Stranger([192, 0, 2, 1].into()),
            "ff03 00000000000000000000ffffc0000201",
        ),
        (
            "stranger, IPv6",
            CircuitOpen::Stranger("2001:db8::1".parse().expect("address")),
            "ff03 20010db8000000000000000000000001",
        ),
    ] {
        let bytes = record.encode();
        assert_golden(what, &bytes, golden);
        let (prefix, rest) = bytes.split_first_chunk().expect("a prefix");
        let id = rest.try_into().expect("the rest is an id");
        assert_eq!((CircuitOpen::decode(*prefix, id), bytes.len()), (Ok(record), CIRCUIT_BYTES), "{what}");
    }
    let codes = [
        CircuitStatus::Open,
        CircuitStatus::NotConnected,
        CircuitStatus::NoRelay,
        CircuitStatus::Busy,
        CircuitStatus::Refused,
    ];
    assert_golden("answers", &codes.map(CircuitStatus::code), "00 01 02 03 04");
}
