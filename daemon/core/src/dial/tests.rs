//! The clauses of the dial policy.

use rand::SeedableRng;

use gossamer_wire::limits::HANDSHAKE_TIMEOUT;

use super::*;

const ME: u8 = 100;
const SECOND: Duration = Duration::from_secs(1);

/// The first pause of a member that fell silent, before jitter.
const LOST_PAUSE: Duration = Duration::from_secs(16);
/// The same of one that has left, where this node had dialled it.
const LEFT_PAUSE: Duration = Duration::from_secs(2);

fn fall_silent(book: &mut DialBook, node: NodeId, now: Instant) {
    book.set_standing(node, Standing::Silent, now);
}

#[allow(clippy::disallowed_methods, reason = "an Instant has no other source, and no test depends on it")]
fn start() -> Instant {
    Instant::now()
}

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn book() -> DialBook {
    DialBook::new(node(ME), StdRng::seed_from_u64(1))
}

/// A book that knows one live node, `1`.
fn book_of_one(now: Instant) -> DialBook {
    let mut book = book();
    book.learn(node(1), &[address("192.0.2.1:4677")], Source::StoredCard, now);
    book.set_standing(node(1), Standing::Live, now);
    book
}

/// A book that knows this many live nodes.
fn book_of(count: u8, now: Instant) -> DialBook {
    let mut book = book();
    for n in 0..count {
        book.learn(node(n), &[address("192.0.2.1:4677")], Source::StoredCard, now);
        book.set_standing(node(n), Standing::Live, now);
    }
    book
}

/// Takes every dial until `end`, moving from deadline to deadline; each fails at once if `fails`.
fn dials(book: &mut DialBook, end: Instant, fails: bool) -> Vec<(Instant, NodeId)> {
    let mut dials = Vec::new();
    while let Some(now) = book.next_deadline().filter(|now| *now <= end) {
        let dial = book.next_dial(now).expect("the deadline is for a dial");
        dials.push((now, dial.node));
        if fails {
            book.failed(dial.node, now);
        }
    }
    dials
}

#[test]
fn a_node_is_dialled_once_where_its_card_says() {
    let now = start();
    let mut book = book_of_one(now);
    let dial = Dial { node: node(1), addresses: vec![address("192.0.2.1:4677")] };
    assert_eq!(book.next_deadline(), Some(now));
    assert_eq!(book.next_dial(now), Some(dial));
    assert_eq!((book.next_dial(now + 60 * SECOND), book.next_deadline()), (None, None));
}

#[test]
fn nobody_dials_itself_or_a_node_without_addresses() {
    let now = start();
    let mut book = book();
    book.learn(node(ME), &[address("192.0.2.1:4677")], Source::Card, now);
    book.learn(node(1), &[], Source::Card, now);
    book.connected(node(ME), now);
    assert_eq!((book.next_dial(now), book.next_deadline()), (None, None));
    book.learn(node(1), &[address("192.0.2.1:4677")], Source::Hint, now);
    assert!(book.next_dial(now).is_some());
}

#[test]
fn a_connected_node_is_not_dialled_whoever_dialled() {
    let now = start();
    let mut book = book_of_one(now);
    book.connected(node(1), now);
    assert_eq!(book.next_dial(now + 60 * SECOND), None);
    book.learn(node(1), &[address("192.0.2.9:1")], Source::Card, now);
    assert_eq!(book.next_dial(now + 60 * SECOND), None);
}

#[test]
fn a_lost_connection_is_dialled_again_within_half_a_second() {
    let now = start();
    let mut book = book_of_one(now);
    book.connected(node(1), now);
    book.disconnected(node(1), now + 60 * SECOND);
    let wait = book.next_deadline().expect("waits") - (now + 60 * SECOND);
    assert!(wait >= SHORTEST / 2 && wait <= SHORTEST * 3 / 2, "{wait:?}");
}

#[test]
fn connections_that_do_not_last_are_dialled_ever_more_rarely() {
    let mut now = start();
    let mut book = book_of_one(now);
    for _ in 0..10 {
        book.connected(node(1), now);
        now += SECOND;
        book.disconnected(node(1), now);
    }
    assert!(book.next_deadline().expect("waits") - now >= LONGEST_LIVE / 2);
}

#[test]
fn at_most_fifty_dials_a_second_after_a_rest_for_the_news_of_the_first_few() {
    let now = start();
    let mut book = book_of(90, now);
    let few = dials(&mut book, now + SETTLE, false);
    assert_eq!(few.len(), FEW);
    few.iter().for_each(|(at, node)| book.connected(*node, *at));
    let mut times = Vec::new();
    while let Some(at) = book.next_deadline().filter(|at| *at <= now + 2 * SECOND) {
        times.push(at);
        let dial = book.next_dial(at).expect("the deadline is for a dial");
        book.connected(dial.node, at);
    }
    assert!(times[0] >= now + SETTLE && times.windows(2).all(|pair| pair[1] - pair[0] == PACE), "{times:?}");
    assert!(times.len() > 40, "{}", times.len());
}

#[test]
fn few_dials_wait_for_an_answer_and_at_most_sixty_four_are_under_way() {
    let now = start();
    let mut book = book_of(90, now);
    let first = dials(&mut book, now + 11 * SECOND, false);
    for window in first[FEW - MAX_FRESH..].windows(MAX_FRESH + 1) {
        assert!(window[MAX_FRESH].0 - window[0].0 >= FRESH, "{first:?}");
    }
    assert!((20..=28).contains(&first.len()), "silence is no reason to stop: {}", first.len());
    let all = first.len() + dials(&mut book, now + 60 * SECOND, false).len();
    assert_eq!((all, book.next_deadline()), (MAX_IN_FLIGHT, None));
    book.failed(node(0), now + 60 * SECOND);
    book.connected(node(1), now + 60 * SECOND);
    book.forget(node(2));
    assert_eq!(dials(&mut book, now + 60 * SECOND + FRESH + PACE, false).len(), 3);
}

/// Asserts that the only node of a book is dialled after pauses that double from `first` up to `longest`.
fn assert_doubling(book: &mut DialBook, now: Instant, first: Duration, longest: Duration) {
    let end = now + 4 * 3_600 * SECOND;
    let times: Vec<_> = dials(book, end, true).into_iter().map(|(at, _)| at).collect();
    for (n, pair) in times.windows(2).enumerate() {
        let base = first.saturating_mul(1 << n.min(16)).min(longest);
        let pause = pair[1] - pair[0];
        assert!(pause >= base / 2 && pause <= base * 3 / 2, "{n}: {pause:?} around {base:?}");
    }
    assert!(end - *times.last().expect("dialled") <= longest * 3 / 2, "never given up");
}

#[test]
fn pauses_double_with_jitter_up_to_their_longest() {
    let now = start();
    assert_doubling(&mut book_of_one(now), now, SHORTEST, LONGEST_LIVE);
    let mut remembered = book();
    remembered.learn(node(1), &[address("192.0.2.1:4677")], Source::Hint, now);
    assert_doubling(&mut remembered, now, SHORTEST, LONGEST_SILENT);
}

#[test]
fn a_member_found_dead_is_left_alone_for_some_seconds_and_then_ever_longer() {
    let now = start();
    for (lasted, has_left, is_ours) in
        [(SECOND, false, true), (60 * SECOND, false, true), (SECOND, true, false), (SECOND, true, true)]
    {
        let lost_pause = if has_left && is_ours { LEFT_PAUSE } else { LOST_PAUSE };
        let end = if has_left { DialBook::left } else { fall_silent };
        for is_told_first in [true, false] {
            let mut book = book_of_one(now);
            book.next_dial(now).expect("due");
            if is_ours {
                book.reached(node(1), address("192.0.2.1:4677"));
            }
            book.connected(node(1), now);
            let mut later = now + lasted;
            if is_told_first {
                end(&mut book, node(1), later);
                book.disconnected(node(1), later);
            } else {
                book.disconnected(node(1), later);
                later += SHORTEST / 4;
                end(&mut book, node(1), later);
            }
            let wait = book.next_deadline().expect("waits") - later;
            assert!(wait >= lost_pause / 2 && wait <= lost_pause * 3 / 2, "{lasted:?}: {wait:?}");
            let first = later + wait;
            let base = if is_told_first { 2 * lost_pause } else { lost_pause };
            assert_doubling(&mut book, first, base, LONGEST_SILENT);
        }
    }
}

/// Membership hears of most nodes before their cards come.
#[test]
fn a_member_heard_of_before_its_addresses_is_a_live_one() {
    let now = start();
    let mut book = book();
    book.set_standing(node(1), Standing::Live, now);
    assert_eq!(book.next_deadline(), None);
    book.learn(node(1), &[address("192.0.2.1:4677")], Source::Card, now);
    assert_doubling(&mut book, now, SHORTEST, LONGEST_LIVE);
}

#[test]
fn a_full_book_takes_no_further_nodes_whoever_tells_of_them() {
    let (now, mut book) = (start(), book());
    let id = |n: usize| NodeId::from_bytes((n as u128).to_be_bytes());
    for n in 0..MAX_NODES + 9 {
        book.set_standing(id(n), Standing::Live, now);
        book.learn(id(n), &[address("192.0.2.1:4677")], Source::Hint, now);
    }
    assert_eq!(book.entries.len(), MAX_NODES);
    book.learn(NodeId::from_bytes([9; 16]), &[address("192.0.2.1:4677")], Source::Hint, now);
    assert_eq!(book.entries.len(), MAX_NODES);
}

#[test]
fn a_dial_under_way_to_a_member_found_dead_fails_into_the_long_pause() {
    let now = start();
    let mut book = book_of_one(now);
    book.next_dial(now).expect("due");
    book.set_standing(node(1), Standing::Silent, now + SECOND);
    book.failed(node(1), now + 3 * SECOND);
    assert!(book.next_deadline().expect("waits") >= now + 3 * SECOND + LOST_PAUSE / 2);
}

#[test]
fn a_lost_member_that_dials_and_lives_is_as_good_as_new() {
    let now = start();
    let mut book = book_of_one(now);
    book.connected(node(1), now);
    book.set_standing(node(1), Standing::Silent, now + 60 * SECOND);
    book.disconnected(node(1), now + 60 * SECOND);
    let back = now + 61 * SECOND;
    book.connected(node(1), back);
    book.set_standing(node(1), Standing::Live, back);
    book.disconnected(node(1), back + 60 * SECOND);
    let wait = book.next_deadline().expect("waits") - (back + 60 * SECOND);
    assert!(wait <= SHORTEST * 3 / 2, "{wait:?}");
}

#[test]
fn a_silent_node_that_turns_live_is_dialled_at_once() {
    let now = start();
    let mut book = book_of_one(now);
    book.set_standing(node(1), Standing::Silent, now);
    dials(&mut book, now + 3_600 * SECOND, true);
    let later = now + 3_601 * SECOND;
    book.set_standing(node(1), Standing::Live, later);
    assert!(book.next_dial(later + YIELD * 3 / 2).is_some());
}

#[test]
fn of_two_that_hear_of_each_other_the_smaller_dials_first_and_both_in_the_end() {
    let now = start();
    let mut book = book();
    for n in [1, 2, 200, 201] {
        book.learn(node(n), &[address("192.0.2.1:4677")], Source::Card, now);
        book.set_standing(node(n), Standing::Live, now);
    }
    let times = dials(&mut book, now + 10 * SECOND, false);
    let at = |n| times.iter().find(|(_, id)| *id == node(n)).expect("dialled").0 - now;
    assert!(at(200) <= PACE && at(201) <= PACE);
    assert!(at(1) >= YIELD / 2 && at(2) >= YIELD / 2);
}

#[test]
fn a_node_that_was_only_stored_or_named_by_a_token_is_dialled_at_once() {
    for source in [Source::StoredCard, Source::Hint] {
        let (now, mut book) = (start(), book());
        book.learn(node(1), &[address("192.0.2.1:4677")], source, now);
        assert!(book.next_dial(now).is_some(), "{source:?}");
    }
}

#[test]
fn the_rest_after_the_first_few_comes_once_and_counts_who_dialled_us() {
    let (now, mut book) = (start(), book_of(20, start()));
    for n in 200..200 + FEW as u8 {
        book.connected(node(n), now);
    }
    assert_eq!(dials(&mut book, now + SETTLE / 2, true).len(), 1);
    for n in 0..FEW as u8 {
        book.disconnected(node(200 + n), now + SECOND);
        book.connected(node(200 + n), now + SECOND);
    }
    assert!(dials(&mut book, now + 2 * SECOND, true).len() > 10, "no second rest");
}

#[test]
fn the_rest_lasts_while_others_become_known_but_not_for_ever() {
    let now = start();
    let mut book = book_of(20, now);
    assert_eq!(dials(&mut book, now, true).len(), 1);
    for n in 200..200 + FEW as u8 {
        book.connected(node(n), now);
    }
    assert_eq!(dials(&mut book, now + PACE, true).len(), 1, "the rest begins with the next one");
    for n in 0..40 {
        let at = now + n * SETTLE / 2;
        book.learn(node(n as u8 + 30), &[address("192.0.2.1:4677")], Source::Card, at);
        let is_over = at >= now + PACE + LONGEST_SETTLE;
        assert_eq!(dials(&mut book, at, true).is_empty(), !is_over, "{:?}", at - now);
    }
}

#[test]
fn a_node_that_is_served_late_dials_less_and_reaches_whom_it_must_all_the_same() {
    let now = start();
    let mut book = book_of(20, now);
    let dial_at = |book: &mut DialBook, at| {
        let dial = book.next_dial(at).expect("due");
        book.failed(dial.node, at);
    };
    dial_at(&mut book, now + PUNCTUAL);
    let due = book.next_deadline().expect("waits");
    assert_eq!(due, now + PUNCTUAL + PACE, "a punctual node keeps the pace");
    let late = Duration::from_millis(100);
    dial_at(&mut book, due + PUNCTUAL + late);
    let rested = due + PUNCTUAL + late + LATE_COSTS * late;
    assert_eq!(book.next_deadline(), Some(rested));
    book.reach(node(19), rested - late);
    assert_eq!(book.next_dial(rested - late).map(|dial| dial.node), Some(node(19)));
    book.connected(node(19), rested - late);
    dial_at(&mut book, rested + 60 * SECOND);
    assert_eq!(book.next_deadline(), Some(rested + 60 * SECOND + LONGEST_REST));
}

#[test]
fn waiting_for_an_answer_is_not_lateness() {
    let now = start();
    let mut book = book_of(20, now);
    let asked = dials(&mut book, now + SETTLE + FRESH / 2, false);
    let (last, rest) = (asked.last().expect("dials").1, book.rest);
    book.connected(last, now + SETTLE + FRESH / 2);
    assert!(book.next_dial(now + SETTLE + FRESH / 2).is_some());
    assert_eq!(book.rest, rest);
}

#[test]
fn whom_to_reach_at_once_is_dialled_in_the_rest_and_the_others_go_on_resting() {
    let now = start();
    let mut book = book_of(20, now);
    for n in 200..200 + FEW as u8 {
        book.connected(node(n), now);
    }
    assert!(book.next_dial(now).is_some(), "the rest begins");
    book.reach(node(19), now + PACE);
    assert_eq!(book.next_dial(now + PACE).map(|dial| dial.node), Some(node(19)));
    assert_eq!(book.next_deadline(), Some(now + SETTLE));
}

#[test]
fn at_most_sixty_four_silent_nodes_wait_and_live_ones_do_not_count() {
    let now = start();
    let mut book = book_of(30, now);
    for n in 101..200 {
        book.learn(node(n), &[address("192.0.2.1:4677")], Source::Hint, now);
    }
    assert_eq!(book.waiting.len(), 30 + MAX_SILENT);
    dials(&mut book, now + 600 * SECOND, true);
    assert!(book.waiting.len() <= 30 + MAX_SILENT);
}

#[test]
fn silent_nodes_take_turns_for_ever() {
    let now = start();
    let mut book = book();
    for n in 101..250 {
        book.learn(node(n), &[address("192.0.2.1:4677")], Source::Hint, now);
    }
    let times = dials(&mut book, now + 24 * 3_600 * SECOND, true);
    for n in 101..250 {
        let last_hours = now + 18 * 3_600 * SECOND;
        assert!(times.iter().any(|(at, id)| *id == node(n) && *at > last_hours), "{n}");
    }
    let last_hour = times.iter().filter(|(at, _)| *at > now + 23 * 3_600 * SECOND).count();
    assert!(last_hour < 600, "{last_hour} dials in the last hour");
}

#[test]
fn a_node_set_aside_is_dialled_at_once_when_it_turns_live() {
    let now = start();
    let mut book = book();
    for n in 101..250 {
        book.learn(node(n), &[address("192.0.2.1:4677")], Source::Hint, now);
    }
    dials(&mut book, now + 3_600 * SECOND, true);
    let aside = book.entries.iter().find(|(_, entry)| entry.is_set_aside()).map(|(node, _)| *node);
    let aside = aside.expect("some are set aside");
    let later = now + 3_601 * SECOND;
    book.set_standing(aside, Standing::Live, later);
    let next: Vec<_> = dials(&mut book, later + SECOND, false).into_iter().map(|(_, id)| id).collect();
    assert!(next.contains(&aside));
}

#[test]
fn a_later_card_replaces_an_earlier_one_and_hints_stay() {
    let now = start();
    let mut book = book_of_one(now);
    let (seen, moved) = (address("198.51.100.7:5"), address("192.0.2.2:4677"));
    book.learn(node(1), &[seen], Source::Hint, now);
    book.learn(node(1), &[moved], Source::Card, now);
    assert_eq!(book.next_dial(now).map(|dial| dial.addresses), Some(vec![moved, seen]));
}

#[test]
fn eight_card_addresses_and_the_four_newest_hints_are_kept_once_each() {
    let now = start();
    let mut book = book();
    let many = |from: u16| (from..from + 20).map(|port| SocketAddr::new([192, 0, 2, 1].into(), port));
    book.learn(node(1), &many(1).collect::<Vec<_>>(), Source::StoredCard, now);
    for hint in many(101).chain([address("192.0.2.1:120"), address("192.0.2.1:1")]) {
        book.learn(node(1), &[hint], Source::Hint, now);
    }
    let ports: Vec<_> =
        book.next_dial(now).expect("due").addresses.iter().map(|address| address.port()).collect();
    assert_eq!(ports, [1, 2, 3, 4, 5, 6, 7, 8, 120, 119, 118]);
}

#[test]
fn addresses_nobody_can_dial_are_dropped() {
    for bad in [
        "0.0.0.0:1",
        "[::]:1",
        "224.0.0.1:1",
        "[ff02::1]:1",
        "255.255.255.255:1",
        "192.0.2.1:0",
        "169.254.169.254:1",
        "[fe80::1]:1",
        "[::ffff:0.0.0.0]:1",
        "[::ffff:169.254.1.1]:1",
        "[::ffff:224.0.0.1]:1",
    ] {
        let mut book = book();
        book.learn(node(1), &[address(bad)], Source::Card, start());
        assert!(book.addresses_of(node(1), start()).is_empty(), "{bad}");
    }
    let known = |text: &str| {
        let mut book = book();
        book.learn(node(1), &[address(text)], Source::Hint, start());
        book.addresses_of(node(1), start())
    };
    for good in ["127.0.0.1:1", "10.0.0.1:1", "[::1]:1", "[2001:db8::1]:1", "[fe80::1%2]:1"] {
        assert_eq!(known(good), [address(good)], "{good}");
    }
    assert_eq!(known("[::ffff:192.0.2.1]:7"), [address("192.0.2.1:7")]);
}

#[test]
fn an_address_of_another_machine_costs_one_dial_and_then_rests() {
    let now = start();
    let mut book = book_of_one(now);
    let both = [address("10.0.0.1:4677"), address("192.0.2.1:4677")];
    book.learn(node(1), &both, Source::Card, now);
    assert_eq!(book.next_dial(now).expect("due").addresses, both);
    book.met_another(node(1), both[0], now);
    book.reached(node(1), both[1]);
    book.connected(node(1), now);
    book.disconnected(node(1), now + LASTING);
    let later = now + LASTING - Duration::from_secs(1);
    assert_eq!(book.addresses_of(node(1), later), both[1..], "for data as well");
    let due = book.next_deadline().expect("waits");
    assert_eq!(book.next_dial(due).expect("due").addresses, [both[1], both[0]], "the good one first");
}

#[test]
fn where_only_others_answer_nobody_is_dialled_before_the_rest_is_over() {
    let mut now = start();
    let mut book = book_of_one(now);
    let only = address("192.0.2.1:4677");
    for rest in [30, 60, 120, 240] {
        assert_eq!(book.next_dial(now).expect("due").addresses, [only]);
        book.met_another(node(1), only, now);
        book.failed(node(1), now);
        let due = book.next_deadline().expect("waits");
        assert_eq!((due - now).as_secs(), rest);
        assert_eq!(book.next_dial(due - Duration::from_secs(1)), None);
        now = due;
    }
    // Another address is news, the same ones are not.
    assert!(book.next_dial(now).is_some());
    book.met_another(node(1), only, now);
    book.failed(node(1), now);
    book.learn(node(1), &[only], Source::Card, now);
    assert!(book.next_deadline().expect("waits") > now + 60 * SECOND);
    book.learn(node(1), &[only, address("192.0.2.2:4677")], Source::StoredCard, now);
    let dial = book.next_dial(now + SECOND).expect("due");
    assert_eq!(dial.addresses, [address("192.0.2.2:4677")]);
}

#[test]
fn a_node_with_a_lane_address_is_dialled_without_any_other_and_while_the_others_rest() {
    let now = start();
    let mut book = book();
    book.learn_lanes(node(1), true);
    book.learn(node(1), &[], Source::Hint, now);
    assert_eq!(book.next_dial(now), Some(Dial { node: node(1), addresses: Vec::new() }));
    book.failed(node(1), now);
    let mut book = book_of_one(now);
    book.learn_lanes(node(1), true);
    let only = book.next_dial(now).expect("due").addresses[0];
    book.met_another(node(1), only, now);
    book.failed(node(1), now);
    assert!(book.next_deadline().expect("waits") < now + 10 * SECOND);
    book.learn_lanes(node(1), false);
}

#[test]
fn a_node_that_relays_lead_to_is_dialled_without_an_address_and_while_its_addresses_rest() {
    let now = start();
    let mut book = book();
    book.set_standing(node(1), Standing::Live, now);
    assert_eq!(book.next_deadline(), None, "nothing leads to it");
    book.learn_relays(node(1), true, now);
    assert_eq!(book.next_dial(now), Some(Dial { node: node(1), addresses: Vec::new() }));
    book.learn_relays(node(1), false, now);
    book.failed(node(1), now);
    assert_eq!(book.next_deadline(), None, "again nothing does");
    // Both networks have the same addresses: the only one of its card is this node's own here.
    let mut book = book_of_one(now);
    book.set_standing(node(1), Standing::Live, now);
    let only = book.next_dial(now).expect("due").addresses[0];
    book.met_another(node(1), only, now);
    book.failed(node(1), now);
    assert!(book.next_deadline().expect("waits") > now + 10 * SECOND);
    let later = now + SECOND;
    book.learn_relays(node(1), true, later);
    assert_eq!(book.next_dial(later), Some(Dial { node: node(1), addresses: Vec::new() }));
    book.failed(node(1), later);
    let again = book.next_deadline().expect("waits");
    assert!(again < later + 5 * SECOND, "only its failures count");
    book.learn_relays(node(1), false, later);
    assert_eq!(book.next_deadline(), Some(now + 30 * SECOND), "as before");
    book.reach(node(1), later);
    book.learn_relays(node(1), true, later);
    book.reach(node(1), later);
    assert!(book.next_deadline().expect("waits") < again);
}

#[test]
fn a_card_that_leaves_only_anothers_address_waits_for_it() {
    let now = start();
    let mut book = book_of_one(now);
    let both = [address("10.0.0.1:4677"), address("192.0.2.1:4677")];
    book.learn(node(1), &both, Source::Card, now);
    book.next_dial(now).expect("due");
    book.met_another(node(1), both[0], now);
    book.failed(node(1), now);
    book.learn(node(1), &both[..1], Source::Card, now);
    let due = book.next_deadline().expect("waits");
    assert_eq!((due - now).as_secs(), 30);
    assert_eq!(book.next_dial(due).expect("due").addresses, both[..1]);
}

#[test]
fn a_card_without_usable_addresses_stops_the_dials() {
    let now = start();
    let mut book = book_of_one(now);
    book.learn(node(1), &[address("0.0.0.0:1")], Source::Card, now);
    assert_eq!((book.next_dial(now), book.next_deadline()), (None, None));
}

#[test]
fn reports_nobody_asked_for_change_nothing() {
    let now = start();
    let mut book = book_of_one(now);
    book.failed(node(1), now);
    book.disconnected(node(1), now);
    book.failed(node(9), now);
    book.disconnected(node(9), now);
    book.set_standing(node(9), Standing::Silent, now);
    book.set_standing(node(ME), Standing::Live, now);
    book.forget(node(9));
    assert_eq!(book.next_deadline(), Some(now));
    assert_eq!(book.entries.len(), 1);
}

#[test]
fn both_ends_of_a_simultaneous_dial_keep_the_one_of_the_smaller_id() {
    let (small, great) = (node(1), node(2));
    for (me, peer) in [(small, great), (great, small)] {
        let young = HANDSHAKE_TIMEOUT / 2;
        assert_eq!(keep_which(me, peer, (small, young), great), Keep::First);
        let old = HANDSHAKE_TIMEOUT;
        assert_eq!(keep_which(me, peer, (small, old), great), Keep::Second, "it is of no use to the dialer");
        assert_eq!(keep_which(me, peer, (great, young), small), Keep::Second);
    }
}

#[test]
fn of_two_connections_one_node_dialled_the_later_stays() {
    for dialer in [node(1), node(2)] {
        assert_eq!(keep_which(node(1), node(2), (dialer, Duration::ZERO), dialer), Keep::Second);
    }
}

#[test]
fn the_same_seed_gives_the_same_dials() {
    let now = start();
    let run = || dials(&mut book_of(20, now), now + 60 * SECOND, true);
    assert_eq!(run(), run());
}

/// A book that knows this many live nodes and keeps about eight of them warm.
fn crowded(count: u8, now: Instant) -> DialBook {
    let mut book = book().with_warm(WarmSet::new(8));
    for n in 0..count {
        book.learn(node(n), &[address("192.0.2.1:4677")], Source::Card, now);
        book.set_standing(node(n), Standing::Live, now);
    }
    book
}

/// Whether the crowded book of 64 nodes wants a connection to this one.
fn is_warm(n: u8) -> bool {
    let mut set = WarmSet::new(8);
    set.resize(65);
    set.holds(PairRank::of(node(ME), node(n)))
}

#[test]
fn above_the_limit_only_warm_members_are_dialled_and_whoever_is_no_member() {
    let now = start();
    let mut book = crowded(64, now);
    let dialled: Vec<_> = dials(&mut book, now + 60 * SECOND, true).into_iter().map(|(_, id)| id).collect();
    let warm: Vec<_> = (0..64).filter(|n| is_warm(*n)).collect();
    assert!((1..=16).contains(&warm.len()), "{warm:?}");
    assert!((0..64).all(|n| dialled.contains(&node(n)) == is_warm(n)));
    book.learn(node(200), &[address("192.0.2.1:4677")], Source::Hint, now + 60 * SECOND);
    let cold = (0..64).find(|n| !is_warm(*n)).expect("some");
    book.set_standing(node(cold), Standing::Silent, now + 60 * SECOND);
    book.learn(node(cold), &[address("192.0.2.1:4677")], Source::Card, now + 60 * SECOND);
    let later: Vec<_> = dials(&mut book, now + 90 * SECOND, true).into_iter().map(|(_, id)| id).collect();
    assert!(later.contains(&node(200)) && later.contains(&node(cold)));
}

#[test]
fn a_member_to_be_asked_at_once_is_dialled_first_and_though_it_is_not_warm() {
    let now = start();
    let mut book = crowded(40, now);
    let cold = (0..40).rfind(|n| !is_warm(*n)).expect("most are not");
    book.reach(node(cold), now);
    assert_eq!(book.next_dial(now).map(|dial| dial.node), Some(node(cold)));
    book.reach(node(cold), now);
    book.failed(node(cold), now);
    let later = dials(&mut book, now + 60 * SECOND, false);
    assert!(!later.is_empty() && later.iter().all(|(_, to)| *to != node(cold)), "once, and no more");
    book.reach(node(99), now);
    book.set_standing(node(cold), Standing::Silent, now);
    assert_eq!(book.next_dial(now + 60 * SECOND), None, "neither strangers nor the dead");
}

#[test]
fn connections_too_many_are_hung_up_when_they_have_lasted_and_warm_ones_never() {
    let now = start();
    let mut book = crowded(64, now);
    (0..8).for_each(|n| book.connected(node(n), now));
    assert_eq!(book.next_surplus(now + 60 * SECOND), None, "not too many");
    (8..64).for_each(|n| book.connected(node(n), now));
    assert_eq!(book.next_surplus(now + LASTING / 2), None, "a newcomer may have much to ask");
    let mut hung_up = 0;
    while let Some(node) = book.next_surplus(now + LASTING) {
        book.disconnected(node, now + LASTING);
        assert!(!is_warm(node.as_bytes()[0]));
        hung_up += 1;
    }
    assert_eq!(hung_up, 64 - (0..64).filter(|n| is_warm(*n)).count().max(8));
    assert_eq!(book.next_deadline(), None, "nor are they dialled again");
}

#[test]
fn a_mesh_that_shrinks_below_the_limit_is_all_warm_again() {
    let now = start();
    let mut book = crowded(64, now);
    dials(&mut book, now + SECOND, false).into_iter().for_each(|(at, id)| book.connected(id, at));
    (4..64).for_each(|n| book.set_standing(node(n), Standing::Silent, now + SECOND));
    let dialled: Vec<_> = dials(&mut book, now + 4 * SECOND, false).into_iter().map(|(_, id)| id).collect();
    assert!((0..4).all(|n| dialled.contains(&node(n)) != is_warm(n)), "{dialled:?}");
}
