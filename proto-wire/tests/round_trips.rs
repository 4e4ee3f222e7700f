//! Whatever a node may say arrives as it was said: arbitrary values through encoder and decoder.

use std::net::SocketAddr;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use gossamer_wire::advert::{
    Advert, AdvertId, Card, Fragment, HEADER_BYTES, Head, Header, Kind, SIGNATURE_BYTES, Slot, Version,
};
use gossamer_wire::flow::{self, OpenRequest};
use gossamer_wire::frame::{AdvertCopy, BUCKETS, Frame, Hello, PREFIX_BYTES, Purpose};
use gossamer_wire::join::{Admitted, JoinReply, PeerHint};
use gossamer_wire::limits::{
    MAX_ADDRESSES, MAX_EPOCH, MAX_FRAGMENTS, MAX_KEPT, MAX_KIND, MAX_LANE_ADDRESSES, MAX_LATER_FRAGMENTS,
    MAX_METADATA, MAX_PORTS,
};
use gossamer_wire::statement::{Change, SignedStatement, Statement};
use gossamer_wire::swim::{self, Identity, SwimHeader, SwimMember, SwimMessage, SwimState};
use gossamer_wire::token::{Claims, Grant, Token, pattern_matches};
use gossamer_wire::{
    Carrier, Fqdn, FqdnSuffix, Generation, Health, Label, LaneAddress, MeshId, NodeId, Port, PortName,
    Routing, Rule, ServiceRecord, Tier, TokenId, Transport, Tries, Visibility,
};

/// A label that is valid for every kind of name: none of the reserved words has a digit.
fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?0"
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T> {
    label().prop_map(|text| text.parse().expect("a label is a name"))
}

fn fqdn() -> impl Strategy<Value = Fqdn> {
    "([*][.])?[a-z0-9]{1,8}([.][a-z0-9]{1,8}){1,4}".prop_map(|text| text.parse().expect("an FQDN"))
}

fn suffix() -> impl Strategy<Value = FqdnSuffix> {
    vec(label(), 1..4).prop_map(|labels| labels.join(".").parse().expect("labels are a suffix"))
}

fn node() -> impl Strategy<Value = NodeId> {
    any::<[u8; 16]>().prop_map(NodeId::from_bytes)
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<std::net::IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

fn identity() -> impl Strategy<Value = Identity> {
    (node(), 0..MAX_EPOCH, any::<u32>())
        .prop_map(|(node, epoch, renewals)| Identity { node, generation: Generation { epoch, renewals } })
}

fn member() -> impl Strategy<Value = SwimMember> {
    let state = prop_oneof![Just(SwimState::Alive), Just(SwimState::Suspect), Just(SwimState::Down)];
    (identity(), any::<u16>(), state).prop_map(|(identity, incarnation, state)| SwimMember {
        identity,
        incarnation,
        state,
    })
}

fn slot() -> impl Strategy<Value = Slot> {
    let kind = prop_oneof![
        Just((Kind::Card, 0)),
        (0..MAX_FRAGMENTS).prop_map(|k| (Kind::Records, k)),
        Just((Kind::Head, 0)),
        (4..=MAX_KIND, 0..MAX_LATER_FRAGMENTS)
            .prop_map(|(code, k)| (Kind::try_from(code).expect("later"), k)),
    ];
    (node(), kind).prop_map(|(node, (kind, k))| Slot { node, kind, k })
}

fn advert_id() -> impl Strategy<Value = AdvertId> {
    (slot(), 0..MAX_EPOCH, any::<u64>())
        .prop_map(|(slot, epoch, seq)| AdvertId { slot, version: Version { epoch, seq } })
}

fn purpose() -> impl Strategy<Value = Purpose> {
    prop_oneof![Just(Purpose::Control), Just(Purpose::Data), Just(Purpose::Swim)]
}

fn frame() -> impl Strategy<Value = Frame> {
    let hello = (purpose(), any::<u64>(), address(), any::<[u8; 16]>()).prop_map(
        |(purpose, nonce, observed, statement_digest)| {
            Frame::Hello(Hello { purpose, nonce, observed, statement_digest })
        },
    );
    let copy = (any::<u32>(), vec(any::<u8>(), 0..300))
        .prop_map(|(age, bytes)| AdvertCopy { age, bytes: bytes.into() });
    prop_oneof![
        hello,
        (vec(copy.clone(), 0..5), vec(node(), 0..5))
            .prop_map(|(copies, forward)| Frame::Adverts { copies, forward }),
        any::<u64>().prop_map(Frame::Root),
        (vec(any::<u8>(), 0..20), vec(advert_id(), 0..20), any::<bool>())
            .prop_map(|(buckets, ids, whole)| Frame::Ids { buckets, ids, whole }),
        vec(any::<u64>(), 0..=BUCKETS).prop_map(Frame::Buckets),
        vec(advert_id(), 0..20).prop_map(Frame::Have),
        (vec(copy, 0..5), node(), node()).prop_map(|(copies, first, last)| Frame::Spread {
            copies,
            first,
            last
        }),
        vec(advert_id(), 0..20).prop_map(Frame::Want),
        any::<u64>().prop_map(Frame::MemberHash),
        (vec(member(), 0..20), any::<bool>()).prop_map(|(members, reply)| Frame::Members { members, reply }),
        purpose().prop_map(Frame::DialBack),
        vec(vec(any::<u8>(), 0..200), 0..4).prop_map(Frame::Statements),
        vec(any::<u8>(), 0..1_100).prop_map(Frame::Swim),
    ]
}

fn message() -> impl Strategy<Value = SwimMessage> {
    prop_oneof![
        any::<u8>().prop_map(SwimMessage::Ping),
        any::<u8>().prop_map(SwimMessage::Ack),
        (identity(), any::<u8>()).prop_map(|(target, probe)| SwimMessage::PingReq { target, probe }),
        (identity(), any::<u8>()).prop_map(|(origin, probe)| SwimMessage::IndirectPing { origin, probe }),
        (identity(), any::<u8>()).prop_map(|(target, probe)| SwimMessage::IndirectAck { target, probe }),
        (identity(), any::<u8>()).prop_map(|(origin, probe)| SwimMessage::ForwardedAck { origin, probe }),
        Just(SwimMessage::Announce),
        Just(SwimMessage::Feed),
        Just(SwimMessage::TurnUndead),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        name().prop_map(Rule::Group),
        any::<[u8; 16]>().prop_map(|bytes| Rule::Id(NodeId::from_bytes(bytes))),
        (name(), name()).prop_map(|(key, value)| Rule::Label(key, value)),
        "[a-z*-]{1,20}".prop_map(|pattern| format!("node:{pattern}").parse().expect("a rule")),
    ]
}

prop_compose! {
    /// Wishes within every limit: an order is a part of all tiers, of which `any` is the last.
    fn routing()(
        order in proptest::sample::subsequence(Tier::ALL.to_vec(), 0..=5),
        only in option::of(proptest::sample::select(Tier::ALL.to_vec())),
        spill_below in option::of(0..=100_u8),
        carrier in option::of(Just(Carrier::Tls)),
    ) -> Routing {
        Routing { order, only, spill_below, carrier }
    }
}

prop_compose! {
    /// A record within every limit: ports differ in number and, being named by it, in name.
    fn record()(
        service in name(),
        instance in name(),
        ports in proptest::collection::btree_set((1..=u16::MAX, any::<bool>()), 1..=MAX_PORTS),
        visibility in prop_oneof![
            Just(Visibility::Own),
            Just(Visibility::All),
            vec(name(), 0..4).prop_map(Visibility::Groups),
            (any::<bool>(), vec(rule(), 0..4)).prop_map(|(own, rules)| Visibility::Rules { own, rules }),
        ],
        passing: bool,
        weight: u16,
        draining: bool,
        routing in routing(),
        tries in any::<(u8, u8, u8)>(),
        metadata in vec(("[a-z.]{1,10}", "[ -~é]{0,10}"), 0..=MAX_METADATA.min(8)),
        fqdns in proptest::collection::btree_set(fqdn(), 0..3),
    ) -> ServiceRecord {
        let port = |(number, udp): (u16, bool)| Port {
            name: format!("{number}-{}", if udp { "udp" } else { "tcp" }).parse().expect("a name"),
            number,
            transport: if udp { Transport::Udp } else { Transport::Tcp },
        };
        ServiceRecord {
            service,
            instance,
            ports: ports.into_iter().map(port).collect(),
            visibility,
            health: if passing { Health::Passing } else { Health::Failing },
            weight,
            draining,
            routing,
            tries: Tries { service: tries.0, group: tries.1, instance: tries.2 },
            metadata,
            fqdns: fqdns.into_iter().collect(),
        }
    }
}

prop_compose! {
    fn card()(
        leaf in vec(any::<u8>(), 0..900),
        addresses in vec(address(), 0..=MAX_ADDRESSES),
        zone in option::of(name()),
        region in option::of(name()),
        labels in vec(("[a-z]{1,8}", "[ -~]{0,16}"), 0..5),
        relays in vec(node(), 0..4),
        protocol: (u8, u8),
        capabilities: u64,
        lanes in vec(lane_address(), 0..=MAX_LANE_ADDRESSES),
    ) -> Card {
        Card { leaf, addresses, zone, region, labels, relays, protocol, capabilities, lanes }
    }
}

prop_compose! {
    fn grant()(
        (mesh, id, issuer) in any::<([u8; 16], [u8; 16], [u8; 16])>(),
        root_pin: [u8; 32],
        not_after: u64,
        uses: u32,
        group in name(),
        node_pattern in option::of("[a-z*-]{1,12}"),
        services in vec("[a-z*-]{1,12}", 0..4),
        fqdn_suffixes in vec(suffix(), 0..3),
        labels in btree_map(name(), name(), 0..3),
        relay: bool,
        ephemeral_seconds: u32,
        addresses in vec(address(), 1..=4),
        lanes in vec(lane_address(), 0..=1),
    ) -> Grant {
        Grant {
            mesh: MeshId::from_bytes(mesh),
            root_pin,
            id: TokenId::from_bytes(id),
            issuer: NodeId::from_bytes(issuer),
            not_after,
            uses,
            group,
            node_pattern,
            claims: Claims { services, fqdn_suffixes, labels, relay, ephemeral_seconds },
            addresses,
            lanes,
        }
    }
}

fn lane_address() -> impl Strategy<Value = LaneAddress> {
    ("[a-z]{1,9}(\\.[a-z]{1,9}){0,2}", 1..u16::MAX)
        .prop_map(|(host, port)| format!("tls://{host}:{port}").parse().expect("a lane address"))
}

fn change() -> impl Strategy<Value = Change> {
    let certificate = || vec(any::<u8>(), 0..800);
    prop_oneof![
        node().prop_map(Change::Evict),
        any::<[u8; 16]>().prop_map(|id| Change::RevokeToken(TokenId::from_bytes(id))),
        certificate().prop_map(Change::AddIssuer),
        (node(), any::<u64>(), vec(node(), 0..=MAX_KEPT))
            .prop_map(|(issuer, numbers, keep)| Change::RemoveIssuer { issuer, numbers, keep }),
        certificate().prop_map(Change::AddRoot),
        (node(), vec(any::<[u8; 16]>(), 0..=MAX_KEPT))
            .prop_map(|(root, keep)| Change::RetireRoot { root, keep }),
        (node(), any::<u64>()).prop_map(|(author, numbers)| Change::Grant { author, numbers }),
    ]
}

proptest! {
    #[test]
    fn frames_arrive_as_they_were_sent(frame in frame()) {
        let bytes = frame.encode().expect("fits");
        let (prefix, payload) = bytes.split_first_chunk::<PREFIX_BYTES>().expect("a prefix");
        let (kind, len) = Frame::decode_prefix(*prefix).expect("in the limit");
        prop_assert_eq!(len, payload.len());
        prop_assert_eq!(Frame::decode(kind, payload), Ok(Some(frame)));
    }

    #[test]
    fn a_frame_that_is_cut_anywhere_is_an_error(frame in frame(), cut in any::<prop::sample::Index>()) {
        let bytes = frame.encode().expect("fits");
        let payload = &bytes[PREFIX_BYTES..];
        let kind = u16::from_be_bytes([bytes[4], bytes[5]]);
        prop_assert!(Frame::decode(kind, &payload[..cut.index(payload.len())]).is_err());
    }

    #[test]
    fn packets_of_swim_are_read_entry_by_entry(
        from in identity(),
        to in identity(),
        incarnation: u16,
        message in message(),
        members in vec(member(), 0..10),
    ) {
        let header = SwimHeader { from: from.generation, incarnation, to: to.generation, message };
        let mut packet = swim::encode(&header).expect("fits");
        for member in &members {
            packet.extend(swim::encode(member).expect("fits"));
        }
        let (read, mut at) = swim::decode_header(&packet).expect("a header");
        prop_assert_eq!(read, header);
        let mut seen = Vec::new();
        while at < packet.len() {
            let (member, used) = swim::decode_member(&packet[at..]).expect("a member");
            at += used;
            seen.push(member);
        }
        prop_assert_eq!(seen, members);
    }

    #[test]
    fn records_arrive_as_they_were_published(record in record()) {
        prop_assume!(record.encode().is_ok());
        prop_assert_eq!(record.check(), Ok(()));
        let bytes = record.encode().expect("fits");
        prop_assert_eq!(ServiceRecord::decode(&bytes), Ok(record.clone()));
        // A record that fits alone fits the fragment that carries it.
        let fragment = Fragment::of(std::slice::from_ref(&record)).expect("fits");
        let body = fragment.encode().expect("fits");
        let read = Fragment::decode(&body).expect("decodes");
        prop_assert_eq!(read.records(), Ok(vec![record]));
        let header = Header {
            mesh: MeshId::from_bytes([1; 16]),
            id: AdvertId {
                slot: Slot { node: NodeId::from_bytes([2; 16]), kind: Kind::Records, k: 0 },
                version: Version::default(),
            },
        };
        prop_assert!(Advert::build(header, &body, |_| [0; SIGNATURE_BYTES]).is_ok());
    }

    #[test]
    fn cards_arrive_as_they_were_published(card in card()) {
        prop_assert_eq!(Card::decode(&card.encode().expect("fits")), Ok(card));
    }

    #[test]
    fn heads_arrive_as_they_were_published(
        n in 0..=MAX_FRAGMENTS,
        lease_seconds: u32,
        statement_digest: [u8; 16],
    ) {
        let head = Head { n, lease_seconds, statement_digest };
        prop_assert_eq!(Head::decode(&head.encode().expect("fits")), Ok(head));
    }

    #[test]
    fn adverts_are_kept_byte_for_byte(
        mesh: [u8; 16],
        id in advert_id(),
        body in vec(any::<u8>(), 0..900),
        signature in vec(any::<u8>(), SIGNATURE_BYTES),
    ) {
        let header = Header { mesh: MeshId::from_bytes(mesh), id };
        let signature: [u8; SIGNATURE_BYTES] = signature.try_into().expect("64 bytes");
        let mut signed = Vec::new();
        let advert = Advert::build(header, &body, |bytes| {
            signed = bytes.to_vec();
            signature
        });
        let advert = advert.expect("fits");
        let read = Advert::parse(advert.bytes()).expect("parses");
        prop_assert_eq!(&read, &advert);
        prop_assert_eq!(read.header(), &header);
        prop_assert_eq!(read.body(), body);
        prop_assert_eq!(read.signature(), signature);
        prop_assert_eq!(read.signed(), signed);
    }

    #[test]
    fn a_flipped_bit_never_leaves_both_the_signed_bytes_and_the_signature_alone(
        id in advert_id(),
        body in vec(any::<u8>(), 0..200),
        bit in any::<prop::sample::Index>(),
    ) {
        let header = Header { mesh: MeshId::from_bytes([1; 16]), id };
        let advert = Advert::build(header, &body, |_| [9; SIGNATURE_BYTES]).expect("fits");
        let mut bytes = advert.bytes().to_vec();
        prop_assert_eq!(bytes.len(), HEADER_BYTES + body.len() + SIGNATURE_BYTES);
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(changed) = Advert::parse(&bytes) {
            let same = changed.signed() == advert.signed() && changed.signature() == advert.signature();
            prop_assert!(!same);
        }
    }

    #[test]
    fn tokens_arrive_as_they_were_made(grant in grant(), fill: u8) {
        let token = Token::build(grant.clone(), |_| [fill; 64]).expect("fits");
        let read: Token = token.reveal().parse().expect("parses");
        prop_assert!(*read.grant() == grant);
        prop_assert_eq!(read.signed(), token.signed());
        prop_assert!(token.reveal().len() < 1_000);
    }

    #[test]
    fn statements_arrive_as_they_were_signed(mesh: [u8; 16], author in node(), number: u64, change in change()) {
        let content = Statement { mesh: MeshId::from_bytes(mesh), author, number, change };
        let signed = SignedStatement::build(content.clone(), |_| [5; 64]).expect("fits");
        let read = SignedStatement::parse(signed.bytes()).expect("parses");
        prop_assert_eq!(read.statement(), &content);
        prop_assert_eq!(read.id(), signed.id());
    }

    #[test]
    fn open_requests_arrive_as_they_were_sent(
        flow: u64,
        service in name(),
        instance in name(),
        port in name::<PortName>(),
        is_udp: bool,
    ) {
        let transport = if is_udp { Transport::Udp } else { Transport::Tcp };
        let request = OpenRequest { flow, service, instance, port, transport };
        let bytes = request.encode().expect("fits");
        let (prefix, payload) = bytes.split_first_chunk::<{ flow::PREFIX_BYTES }>().expect("a prefix");
        prop_assert_eq!(OpenRequest::decode_prefix(*prefix), Ok(payload.len()));
        prop_assert_eq!(OpenRequest::decode(payload), Ok(request));
    }

    #[test]
    fn admissions_arrive_as_they_were_sent(
        leaf in vec(any::<u8>(), 0..700),
        issuers in vec(vec(any::<u8>(), 0..700), 0..2),
        roots in vec(vec(any::<u8>(), 0..700), 0..2),
        mesh_name in name(),
        group in name(),
        peers in vec((node(), vec(address(), 0..4)), 0..16),
        statements in vec(vec(any::<u8>(), 0..200), 0..4),
    ) {
        let hint = |(node, addresses)| PeerHint { node, addresses, lanes: Vec::new() };
        let peers = peers.into_iter().map(hint).collect();
        let reply = JoinReply::Admitted(Box::new(Admitted { leaf, issuers, roots, mesh_name, group, peers, statements }));
        prop_assert_eq!(JoinReply::decode(&reply.encode().expect("fits")), Ok(reply));
    }

    #[test]
    fn ids_survive_their_text(bytes: [u8; 16]) {
        let id = NodeId::from_bytes(bytes);
        prop_assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
    }

    #[test]
    fn a_label_is_accepted_exactly_when_the_rule_of_rfc_1123_holds(text in "[a-zA-Z0-9._ -]{0,66}") {
        let ldh = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let holds = (1..=63).contains(&text.len())
            && text.bytes().all(ldh)
            && !text.starts_with('-')
            && !text.ends_with('-');
        prop_assert_eq!(text.parse::<Label>().is_ok(), holds);
    }

    #[test]
    fn a_pattern_made_from_a_name_matches_it(text in "[a-z-]{0,12}", cuts in vec(any::<prop::sample::Index>(), 0..3)) {
        // Each cut replaces the rest of one piece by a star, so the name is still one of the pattern's.
        let mut pattern = text.clone();
        for cut in cuts {
            let at = cut.index(pattern.len() + 1);
            pattern.replace_range(at..pattern.len().min(at + 2), "*");
        }
        prop_assert!(pattern_matches(&pattern, &text), "{} {}", pattern, text);
    }
}
