//! The stored catalog: what a start finds again, and what a damaged file costs.

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    (dir, store)
}

fn copy(age: u32, bytes: &[u8]) -> AdvertCopy {
    AdvertCopy { age, bytes: bytes.to_vec().into() }
}

fn write(store: &Store, copies: &[AdvertCopy]) {
    let rows: Vec<Row> = copies.iter().map(|copy| Row::of(copy, clock::wall())).collect();
    store.write_json(FILE, &rows).expect("writes");
}

#[test]
fn adverts_are_read_back_byte_for_byte_with_their_age() {
    let (_dir, store) = store();
    assert!(restore(&store, &Clock::default()).expect("reads").is_empty(), "a first start knows nothing");
    write(&store, &[copy(0, b"one"), copy(500, &[0, 255])]);
    let read = restore(&store, &Clock::default()).expect("reads");
    assert_eq!(read.iter().map(|copy| &copy.bytes[..]).collect::<Vec<_>>(), [&b"one"[..], &[0, 255]]);
    // The clock may have passed a second or two meanwhile.
    assert!(read[0].age < 60 && (500..560).contains(&read[1].age), "{read:?}");
}

#[test]
fn the_time_a_daemon_was_down_counts_as_age() {
    let (_dir, store) = store();
    let advert = data_encoding::BASE64.encode(b"advert");
    let row = |born| Row { born, advert: advert.clone() };
    store.write_json(FILE, &[row(clock::wall() - 3_600), row(0)]).expect("writes");
    let read = restore(&store, &Clock::default()).expect("reads");
    assert!((3_600..3_660).contains(&read[0].age), "{}", read[0].age);
    assert!(read[1].age > 1_000_000_000, "an age beyond every limit stays one");
}

#[test]
fn a_clock_that_was_set_back_makes_adverts_new_and_not_negative() {
    let (_dir, store) = store();
    let advert = data_encoding::BASE64.encode(b"advert");
    store.write_json(FILE, &[Row { born: clock::wall() + 9_999, advert }]).expect("writes");
    assert_eq!(restore(&store, &Clock::default()).expect("reads")[0].age, 0);
}

#[test]
fn a_damaged_file_is_set_aside_because_others_hold_the_same() {
    for damaged in ["", "{", "[{\"born\":1}]", "[{\"born\":-1,\"advert\":\"\"}]", "7"] {
        let (_dir, store) = store();
        store.write(FILE, damaged.as_bytes()).expect("writes");
        assert!(restore(&store, &Clock::default()).expect("starts all the same").is_empty(), "{damaged}");
        assert!(store.read(FILE).expect("reads").is_none(), "{damaged}: the next start need not stumble");
    }
}

#[test]
fn rows_that_cannot_be_adverts_are_left_out_one_by_one() {
    let (_dir, store) = store();
    let long = data_encoding::BASE64.encode(&vec![1; MAX_CARD_BYTES + 1]);
    let longest = data_encoding::BASE64.encode(&vec![2; MAX_CARD_BYTES]);
    let rows = ["not base64".to_owned(), long, longest].map(|advert| Row { born: 1, advert });
    store.write_json(FILE, &rows).expect("writes");
    let read = restore(&store, &Clock::default()).expect("reads");
    assert_eq!(read.iter().map(|copy| copy.bytes.len()).collect::<Vec<_>>(), [MAX_CARD_BYTES]);
}

#[test]
fn a_file_that_others_can_read_is_refused_and_kept() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, store) = store();
    write(&store, &[copy(0, b"one")]);
    let path = store.dir().join(FILE);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    assert!(matches!(restore(&store, &Clock::default()), Err(StoreError::Loose { .. })));
    assert!(path.exists());
}

#[test]
fn states_of_members_are_those_of_the_core() {
    for (state, liveness_seen) in [
        (MemberState::Alive, MemberLiveness::Alive),
        (MemberState::Suspect, MemberLiveness::Suspect),
        (MemberState::Down, MemberLiveness::Down),
        (MemberState::Left, MemberLiveness::Left),
    ] {
        assert_eq!(liveness(state), liveness_seen);
    }
}

#[test]
fn nodes_that_hear_of_a_change_at_once_write_it_at_moments_of_their_own() {
    let pauses = [0, 64, 128, 255].map(|byte| pause_of(NodeId::from_bytes([byte; 16])));
    assert!(pauses.is_sorted_by(|one, other| one < other), "{pauses:?}");
    assert!(pauses.iter().all(|pause| (SAVE..3 * SAVE).contains(pause)), "{pauses:?}");
}
