use super::*;
use crate::record::tests::sample as record;

fn header(kind: Kind, k: u16) -> Header {
    let slot = Slot { node: NodeId::from_bytes([2; 16]), kind, k };
    let version = Version { epoch: 3, seq: 4 };
    Header { mesh: MeshId::from_bytes([1; 16]), id: AdvertId { slot, version } }
}

fn sign(bytes: &[u8]) -> [u8; SIGNATURE_BYTES] {
    [bytes.len() as u8; SIGNATURE_BYTES]
}

fn build(kind: Kind, body: &[u8]) -> Advert {
    Advert::build(header(kind, 0), body, sign).expect("fits")
}

fn card() -> Card {
    Card {
        leaf: vec![7; 700],
        addresses: vec!["192.0.2.1:4677".parse().expect("address")],
        zone: Some("z1".parse().expect("name")),
        region: None,
        labels: vec![("env".to_owned(), "prod".to_owned())],
        relays: Vec::new(),
        protocol: (1, 1),
        capabilities: 0,
        lanes: Vec::new(),
    }
}

#[test]
fn header_body_and_signature_are_read_back() {
    let advert = build(Kind::Head, b"body");
    let read = Advert::parse(advert.bytes()).expect("parses");
    assert_eq!(read, advert);
    assert_eq!(read.body(), b"body");
    assert_eq!(read.signature(), sign(&read.signed()));
    assert!(read.signed().starts_with(SIGN_DOMAIN));
}

#[test]
fn header_bytes_are_the_ones_of_version_1() {
    let advert = build(Kind::Records, &[]);
    let mut golden = vec![1];
    golden.extend([1; 16]);
    golden.extend([2; 16]);
    golden.extend([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4]);
    assert_eq!(advert.bytes()[..HEADER_BYTES], golden);
}

#[test]
fn broken_headers_are_refused() {
    let good = build(Kind::Card, &[0; 8]).bytes().to_vec();
    for (at, value) in [(0, 0), (33, 0), (33, MAX_KIND + 1), (34, 1), (36, 255)] {
        let mut bytes = good.clone();
        bytes[at] = value;
        assert!(Advert::parse(&bytes).is_err(), "byte {at} = {value}");
    }
    for len in 0..HEADER_BYTES + SIGNATURE_BYTES {
        assert!(Advert::parse(&good[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn what_a_later_version_brings_is_carried_byte_for_byte_and_not_read() {
    let mut newer = build(Kind::Records, b"body").bytes().to_vec();
    newer[0] = VERSION + 1;
    let later = build(Kind::try_from(7).expect("later"), b"body").bytes().to_vec();
    for bytes in [newer, later] {
        let advert = Advert::parse(&bytes).expect("the header is the same");
        assert!(!advert.is_readable());
        assert_eq!((advert.bytes(), advert.body()), (&bytes[..], &b"body"[..]));
    }
    assert!(build(Kind::Records, b"body").is_readable());
}

#[test]
fn each_kind_has_its_own_size_limit() {
    let body = vec![0; MAX_ADVERT_BYTES];
    assert!(Advert::build(header(Kind::Card, 0), &body, sign).is_ok());
    assert!(Advert::build(header(Kind::Records, 0), &body, sign).is_err());
    let mut long_head = build(Kind::Head, &[]).bytes().to_vec();
    long_head.extend([0; MAX_ADVERT_BYTES]);
    assert!(matches!(Advert::parse(&long_head), Err(DecodeError::TooLong { .. })));
}

#[test]
fn bodies_survive_a_round_trip() {
    assert_eq!(Card::decode(&card().encode().expect("fits")), Ok(card()));
    let head = Head { n: 3, lease_seconds: 3_600, statement_digest: [5; 16] };
    assert_eq!(Head::decode(&head.encode().expect("fits")), Ok(head));
    let fragment = Fragment::of(&[record()]).expect("fits");
    let read = Fragment::decode(&fragment.encode().expect("fits")).expect("decodes");
    assert_eq!(read.records(), Ok(vec![record()]));
}

#[test]
fn entries_of_unknown_kinds_are_carried_and_not_served() {
    let mut fragment = Fragment::of(&[record()]).expect("fits");
    fragment.entries.push((200, b"from the future".to_vec()));
    let read = Fragment::decode(&fragment.encode().expect("fits")).expect("decodes");
    assert_eq!(read, fragment);
    assert_eq!(read.records(), Ok(vec![record()]));
}

#[test]
fn one_bad_record_spoils_its_fragment() {
    let mut fragment = Fragment::of(&[record()]).expect("fits");
    fragment.entries.push((SERVICE_ENTRY, b"junk".to_vec()));
    assert!(fragment.records().is_err());
}

#[test]
fn bodies_outside_the_limits_are_refused() {
    let mut many = card();
    many.addresses = vec!["[::1]:1".parse().expect("address"); MAX_ADDRESSES + 1];
    assert!(Card::decode(&many.encode().expect("fits")).is_err());
    let mut wordy = card();
    wordy.labels = vec![("k".to_owned(), "v".repeat(MAX_NODE_LABELS_BYTES))];
    assert!(Card::decode(&wordy.encode().expect("fits")).is_err());
    let head = Head { n: MAX_FRAGMENTS + 1, lease_seconds: 1, statement_digest: [0; 16] };
    assert!(Head::decode(&head.encode().expect("fits")).is_err());
}
