use super::*;
use crate::catalog::tests::start;

const PEER: NodeId = NodeId::from_bytes([2; 16]);

fn rng() -> SmallRng {
    rand::SeedableRng::seed_from_u64(1)
}

fn peer(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 16])
}

fn connected(now: Instant) -> Repair {
    let mut repair = Repair::new(now);
    repair.connect(PEER, &mut rng(), now);
    repair
}

/// Past the meeting, where hashes were equal.
fn met(now: Instant) -> Repair {
    let mut repair = connected(now);
    shows(&mut repair, HashView::Equal, true, now);
    repair
}

fn shows(repair: &mut Repair, hash: HashView, is_smaller: bool, now: Instant) -> Reply {
    repair.handle_root(PEER, hash, (is_smaller, false, false), &mut rng(), now)
}

fn differs(repair: &mut Repair, now: Instant) -> Reply {
    shows(repair, HashView::Different, true, now)
}

#[test]
fn two_that_meet_believe_the_first_difference() {
    let now = start();
    for is_smaller in [true, false] {
        assert_eq!(shows(&mut connected(now), HashView::Different, is_smaller, now), Reply::ShowBuckets);
        assert_eq!(shows(&mut connected(now), HashView::Equal, is_smaller, now), Reply::Nothing);
    }
}

#[test]
fn when_both_have_shown_their_hash_only_the_greater_id_judges() {
    let now = start();
    for (is_smaller, reply) in [(true, Reply::Nothing), (false, Reply::ShowBuckets)] {
        let mut repair = connected(now);
        assert_eq!(repair.take_due(false, &mut rng(), now), [PEER], "the first peer is met at once");
        assert_eq!(shows(&mut repair, HashView::Different, is_smaller, now), reply);
    }
}

#[test]
fn a_peer_that_comes_back_from_down_is_met_again() {
    let now = start();
    let mut repair = met(now);
    repair.come_back(PEER, &mut rng(), now);
    assert_eq!(repair.take_due(false, &mut rng(), now), [PEER]);
    repair.come_back(peer(9), &mut rng(), now);
    assert_eq!(repair.take_due(false, &mut rng(), now), []);
    assert_eq!(shows(&mut repair, HashView::Different, false, now), Reply::ShowBuckets);
}

#[test]
fn one_that_is_behind_is_left_to_mend_it_unless_it_has_just_come() {
    let now = start();
    let mut repair = met(now);
    for seconds in 0..10 {
        let later = now + Duration::from_secs(seconds);
        assert_eq!(shows(&mut repair, HashView::Behind, true, later), Reply::Nothing);
    }
    assert_eq!(shows(&mut connected(now), HashView::Behind, false, now), Reply::ShowBuckets);
}

#[test]
fn a_difference_is_believed_when_it_is_seen_again_two_seconds_later() {
    let now = start();
    let mut repair = met(now);
    assert_eq!(differs(&mut repair, now), Reply::Nothing);
    assert_eq!(differs(&mut repair, now + SETTLE / 2), Reply::Nothing);
    assert_eq!(differs(&mut repair, now + SETTLE), Reply::ShowBuckets);
}

#[test]
fn agreement_in_between_or_a_long_silence_starts_over() {
    let now = start();
    let mut repair = met(now);
    differs(&mut repair, now);
    shows(&mut repair, HashView::Equal, true, now + SETTLE / 2);
    assert_eq!(differs(&mut repair, now + SETTLE), Reply::Nothing);
    assert_eq!(differs(&mut repair, now + SETTLE + STALE_MISMATCH), Reply::Nothing);
}

#[test]
fn a_mismatch_shows_the_own_hash_again_so_that_the_peer_may_judge_too() {
    let now = start();
    let mut repair = met(now);
    let mut rng = rng();
    differs(&mut repair, now);
    let shown: usize =
        (0..=8).map(|quarter| repair.take_due(false, &mut rng, now + SETTLE * quarter / 8).len()).sum();
    assert!((1..=2).contains(&shown), "the recheck, and the regular one when it falls into these seconds");
    assert!(repair.deadline().is_some_and(|at| at > now + SETTLE) && repair.rechecks.is_empty());
}

#[test]
fn repairs_in_vain_pause_longer_each_time_and_a_lesson_ends_it() {
    let mut now = start();
    let mut repair = met(now);
    let mut began = Vec::new();
    for _ in 0..4_000 {
        now += Duration::from_secs(1);
        if differs(&mut repair, now) == Reply::ShowBuckets {
            began.push(now);
        }
    }
    let pauses: Vec<_> = began.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    for (pause, least) in pauses.iter().zip([60, 120, 240, 480, 600, 600]) {
        assert!((least..least + 5).contains(pause), "{pauses:?}");
    }
    repair.taught(PEER);
    differs(&mut repair, now);
    assert_eq!(differs(&mut repair, now + SETTLE), Reply::ShowBuckets);
}

#[test]
fn few_repairs_run_at_once_and_one_without_an_answer_does_not_count_for_ever() {
    let now = start();
    let mut repair = Repair::new(now);
    let mut rng = rng();
    let peers: Vec<_> = (1..=9).map(peer).collect();
    peers.iter().for_each(|peer| repair.connect(*peer, &mut rng, now));
    let mut judge = |repair: &mut Repair, at: usize, now| {
        repair.handle_root(peers[at], HashView::Different, (true, false, false), &mut rng, now)
    };
    let begun = (0..9).filter(|at| judge(&mut repair, *at, now) == Reply::ShowBuckets).count();
    assert_eq!(begun, MAX_ASKED);
    repair.answered(peers[0]);
    assert_eq!(judge(&mut repair, 5, now), Reply::ShowBuckets);
    assert_eq!(judge(&mut repair, 6, now), Reply::Nothing);
    assert_eq!(judge(&mut repair, 6, now + ANSWER_TIMEOUT), Reply::ShowBuckets);
}

#[test]
fn while_adverts_come_in_a_meeting_waits() {
    let now = start();
    let mut repair = connected(now);
    let mut rng = rng();
    let mut judge = |repair: &mut Repair, gains| {
        repair.handle_root(PEER, HashView::Different, (true, gains, false), &mut rng, now)
    };
    assert_eq!(judge(&mut repair, true), Reply::Nothing);
    assert!(repair.meetings.deadline().is_some(), "it is met later");
    assert_eq!(judge(&mut repair, false), Reply::ShowBuckets);
}

#[test]
fn everybody_is_met_once_a_round() {
    let now = start();
    let mut repair = Repair::new(now);
    let mut rng = rng();
    let peers: Vec<_> = (1..=9).map(peer).collect();
    peers.iter().for_each(|peer| repair.connect(*peer, &mut rng, now));
    for _ in 0..3 {
        let mut round: Vec<_> = (0..9).filter_map(|_| repair.next_of_round(&mut rng)).collect();
        round.sort_unstable();
        assert_eq!(round, peers);
    }
    assert_eq!(repair.far_peers(peer(20)).len(), 4);
    repair.disconnect(peers[0]);
    assert!((0..16).all(|_| repair.next_of_round(&mut rng) != Some(peers[0])));
    peers.iter().for_each(|peer| repair.disconnect(*peer));
    assert_eq!((repair.next_of_round(&mut rng), repair.deadline()), (None, None));
    assert_eq!(repair.far_peers(peer(20)), []);
}

#[test]
fn strangers_get_no_answer() {
    let now = start();
    let mut repair = Repair::new(now);
    assert!(!repair.may_answer(PEER, now) && !repair.is_connected(PEER) && !repair.may_list(PEER, now));
    assert_eq!(differs(&mut repair, now), Reply::Nothing);
}

#[test]
fn a_peer_that_asks_for_lists_again_and_again_gets_one_a_second() {
    let now = start();
    let mut repair = connected(now);
    let lists = |repair: &mut Repair, now| (0..100).filter(|_| repair.may_list(PEER, now)).count();
    assert_eq!(lists(&mut repair, now), LIST_BURST as usize);
    assert_eq!(lists(&mut repair, now + Duration::from_secs(2)), 2);
}

#[test]
fn lists_are_packed_by_whole_buckets_and_a_bucket_too_large_for_a_frame_is_cut() {
    let id = |k| {
        let slot = Slot { node: PEER, kind: Kind::Records, k };
        AdvertId { slot, version: Version::default() }
    };
    let list = |count: usize| (0..count).map(|k| id(k as u16)).collect::<Vec<_>>();
    let lists = [(3, list(1_000)), (4, list(0)), (7, list(400)), (8, list(3_000)), (9, list(5))];
    let frames = id_frames(lists.into_iter().collect());
    let shape = |frame: &Frame| match frame {
        Frame::Ids { buckets, ids, whole } => (buckets.clone(), ids.len(), *whole),
        other => panic!("{other:?}"),
    };
    let mut shapes: Vec<_> = frames.iter().map(shape).collect();
    shapes.sort_unstable();
    let expected = [
        (vec![3, 4], 1_000, true),
        (vec![7, 9], 405, true),
        (vec![8], 400, false),
        (vec![8], 1_300, false),
        (vec![8], 1_300, false),
    ];
    assert_eq!(shapes, expected);
    assert_eq!(id_frames(BTreeMap::new()), []);
}
