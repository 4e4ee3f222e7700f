//! The doorway judged from outside: what each source gets, and what is kept.

use std::net::Ipv6Addr;

use super::*;

const fn source(number: u32) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number))
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Doorway {
    fn accepts(&mut self, source: IpAddr, now: Instant) -> Place {
        match self.handle_arrival(source, true, now) {
            Answer::Accept(place) => place,
            other => panic!("{source} got {other:?}"),
        }
    }

    /// One handshake each of so many sources that have their address, from the second 10.1.0.0 on.
    fn crowd(&mut self, count: usize, now: Instant) -> Vec<Answer> {
        (0..count).map(|number| self.handle_arrival(source(0x1_0000 + number as u32), true, now)).collect()
    }

    fn kept(&self) -> usize {
        self.open.len() + self.of_source.len() + self.unfinished.len() + self.given_up.len()
    }
}

#[test]
fn nobody_shows_an_address_while_there_is_no_load() {
    let (mut doorway, now) = (Doorway::default(), Instant::now());
    for number in 0..RETRY_ABOVE_HALF_OPEN {
        assert!(matches!(doorway.handle_arrival(source(number as u32), false, now), Answer::Accept(_)));
    }
    assert_eq!(doorway.handle_arrival(source(999), false, now), Answer::Retry);
}

#[test]
fn many_first_packets_are_load_until_two_quiet_seconds_have_passed() {
    let (mut doorway, start) = (Doorway::default(), Instant::now());
    let mut last = Answer::Ignore;
    for number in 0..=RETRY_ABOVE_INITIALS {
        last = doorway.handle_arrival(source(number), false, start);
        if let Answer::Accept(place) = last {
            doorway.handle_end(place, Ending::Unfinished, start);
        }
    }
    assert_eq!(last, Answer::Retry);
    assert_eq!(doorway.handle_arrival(source(1), false, start + millis(1_500)), Answer::Retry);
    let quiet = doorway.handle_arrival(source(1), false, start + millis(4_000));
    assert!(matches!(quiet, Answer::Accept(_)));
}

#[test]
fn an_address_that_was_shown_is_not_asked_for_again() {
    let (mut doorway, now) = (Doorway::default(), Instant::now());
    doorway.crowd(RETRY_ABOVE_HALF_OPEN, now);
    assert_eq!(doorway.handle_arrival(source(1), false, now), Answer::Retry);
    doorway.accepts(source(1), now);
}

#[test]
fn above_a_rate_not_even_the_retry_is_sent() {
    let (mut doorway, now) = (Doorway::default(), Instant::now());
    doorway.crowd(RETRY_ABOVE_HALF_OPEN, now);
    let answers =
        (0..=MAX_RETRIES_PER_SECOND).map(|number| doorway.handle_arrival(source(number), false, now));
    assert_eq!(answers.last(), Some(Answer::Ignore));
    assert_eq!(doorway.handle_arrival(source(1), false, now + millis(1_000)), Answer::Retry);
}

#[test]
fn a_source_has_eight_handshakes_at_once_under_load() {
    let (mut doorway, now) = (Doorway::default(), Instant::now());
    doorway.crowd(RETRY_ABOVE_HALF_OPEN, now);
    let places: Vec<_> = (0..MAX_HALF_OPEN_PER_SOURCE).map(|_| doorway.accepts(source(1), now)).collect();
    assert_eq!(doorway.handle_arrival(source(1), true, now), Answer::Refuse);
    doorway.accepts(source(2), now);
    doorway.handle_end(places[0], Ending::Stranger, now);
    doorway.accepts(source(1), now);
}

#[test]
fn addresses_of_one_ipv6_network_are_one_source() {
    let (mut doorway, now) = (Doorway::default(), Instant::now());
    doorway.crowd(RETRY_ABOVE_HALF_OPEN, now);
    let of = |network: u16, host| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, host));
    (0..MAX_HALF_OPEN_PER_SOURCE).for_each(|host| _ = doorway.accepts(of(1, host as u16), now));
    assert_eq!(doorway.handle_arrival(of(1, 99), true, now), Answer::Refuse);
    doorway.accepts(of(2, 1), now);
}

#[test]
fn who_leaves_eight_handshakes_unfinished_waits_a_minute_under_load() {
    let (mut doorway, start) = (Doorway::default(), Instant::now());
    for _ in 0..MAX_HALF_OPEN_PER_SOURCE {
        let place = doorway.accepts(source(1), start);
        doorway.handle_end(place, Ending::Unfinished, start);
    }
    let place = doorway.accepts(source(1), start);
    doorway.handle_end(place, Ending::Stranger, start);
    doorway.crowd(RETRY_ABOVE_HALF_OPEN, start);
    assert_eq!(doorway.handle_arrival(source(1), true, start), Answer::Ignore);
    doorway.accepts(source(2), start);
    doorway.accepts(source(1), start + millis(60_000));
}

#[test]
fn the_oldest_handshake_makes_room_but_not_a_young_one() {
    let (mut doorway, start) = (Doorway::default(), Instant::now());
    doorway.crowd(MAX_HALF_OPEN, start);
    assert_eq!(doorway.handle_arrival(source(1), true, start), Answer::Ignore);
    let later = start + MAY_GO_AFTER;
    doorway.accepts(source(1), later);
    assert_eq!(doorway.next_given_up(), Some(Place(0)));
    assert_eq!(doorway.next_given_up(), None);
    assert_eq!(doorway.open.len(), MAX_HALF_OPEN);
    // The task that is told late reports an end that changes nothing.
    doorway.handle_end(Place(0), Ending::Unfinished, later);
    assert_eq!(doorway.open.len(), MAX_HALF_OPEN);
}

#[test]
fn a_member_comes_in_whatever_strangers_do() {
    let (mut doorway, now) = (Doorway::default(), Instant::now());
    let (by_its_hello, by_our_dial) = (source(1), source(2));
    let place = doorway.accepts(by_its_hello, now);
    doorway.handle_end(place, Ending::Member, now);
    doorway.handle_member(by_our_dial);
    doorway.crowd(2_000, now);
    assert_eq!(doorway.handle_arrival(source(3), true, now), Answer::Ignore);
    // Its address can be written by anybody, so it is asked to show it like all others.
    assert_eq!(doorway.handle_arrival(by_its_hello, false, now), Answer::Retry);
    doorway.accepts(by_its_hello, now);
    doorway.accepts(by_our_dial, now);
    assert!(doorway.next_given_up() < doorway.next_given_up());
    assert_eq!(doorway.open.len(), MAX_HALF_OPEN);
}

#[test]
fn members_do_not_push_each_other_out() {
    let (mut doorway, now) = (Doorway::default(), Instant::now());
    (0..=MAX_HALF_OPEN as u32).for_each(|number| doorway.handle_member(source(number)));
    (0..MAX_HALF_OPEN as u32).for_each(|number| _ = doorway.accepts(source(number), now));
    assert_eq!(doorway.handle_arrival(source(256), true, now + MAY_GO_AFTER), Answer::Ignore);
}

#[test]
fn strangers_together_have_a_rate_under_load() {
    let (mut doorway, start) = (Doorway::default(), Instant::now());
    doorway.crowd(RETRY_ABOVE_HALF_OPEN, start);
    let mut begun = 0;
    for number in 0..20_000_u32 {
        let now = start + millis(u64::from(number / 2));
        if let Answer::Accept(place) = doorway.handle_arrival(source(number), true, now) {
            doorway.handle_end(place, Ending::Stranger, now);
            begun += 1;
        }
    }
    let most = MAX_HANDSHAKES_AT_ONCE + 10 * MAX_HANDSHAKES_PER_SECOND as u32;
    assert!((most - 5..=most).contains(&begun), "{begun} of {most}");
}

#[test]
fn a_million_sources_take_no_more_memory_than_a_few_thousand() {
    let (mut doorway, start) = (Doorway::default(), Instant::now());
    let mut most = 0;
    for number in 0..1_000_000_u32 {
        let now = start + Duration::from_micros(100) * number;
        let answer = doorway.handle_arrival(source(number), number % 2 == 0, now);
        if let Answer::Accept(place) = answer
            && number % 3 == 0
        {
            doorway.handle_end(place, Ending::Unfinished, now);
        }
        while doorway.next_given_up().is_some() {}
        assert!(doorway.open.len() <= MAX_HALF_OPEN);
        most = most.max(doorway.kept());
    }
    assert!(most <= 2 * MAX_HALF_OPEN + 2 * 4_096 + 2, "{most} entries");
    (0..1_000_000).for_each(|number| doorway.handle_member(source(number)));
    assert!(!doorway.members.contains(source(0)) && doorway.members.contains(source(999_999)));
}

#[test]
fn a_flood_is_noted_once_in_ten_seconds_and_a_start_of_many_is_none() {
    let (mut doorway, start) = (Doorway::default(), Instant::now());
    doorway.crowd(RETRY_ABOVE_HALF_OPEN, start);
    let arrive = |doorway: &mut Doorway, count, now| {
        (0..count).for_each(|number| _ = doorway.handle_arrival(source(number), false, now));
    };
    arrive(&mut doorway, 500, start);
    assert_eq!(doorway.next_flood(start), None);
    arrive(&mut doorway, 500, start);
    assert_eq!(doorway.next_flood(start), Some(Flood { retried: 1_000, ..Flood::default() }));
    arrive(&mut doorway, 5_000, start + millis(5_000));
    assert_eq!(doorway.next_flood(start + millis(9_999)), None);
    assert!(doorway.next_flood(start + NOTE_EVERY).is_some());
}

#[test]
fn a_member_that_opens_circuits_without_end_leaves_room_for_others_through_the_same_relay() {
    let (mut doorway, now) = (Doorway::default(), Instant::now());
    let node = |number: u8| NodeId::from_bytes([number; 16]);
    let (relay, hostile) = (node(1), node(2));
    let mut places = Vec::new();
    for _ in 0..MAX_HALF_OPEN_PER_OPENER {
        let Answer::Accept(place) = doorway.handle_circuit(relay, hostile, now) else { panic!("refused") };
        places.push(place);
    }
    assert_eq!(doorway.handle_circuit(relay, hostile, now), Answer::Refuse, "also without load");
    assert!(matches!(doorway.handle_circuit(relay, node(3), now), Answer::Accept(_)));
    assert!(matches!(doorway.handle_circuit(node(4), hostile, now), Answer::Accept(_)), "another relay");
    doorway.handle_end(places[0], Ending::Unfinished, now);
    assert!(matches!(doorway.handle_circuit(relay, hostile, now), Answer::Accept(_)));
    doorway.handle_circuit(relay, node(5), now);
    let led = (6..=255).map(|opener| doorway.handle_circuit(relay, node(opener), now));
    let led = led.filter(|answer| matches!(answer, Answer::Accept(_))).count();
    assert_eq!(led, MAX_HALF_OPEN_PER_MEMBER - MAX_HALF_OPEN_PER_OPENER - 2, "one relay is one source");
    doorway.accepts(source(1), now);
}

#[test]
fn circuits_that_have_ended_leave_nothing_behind() {
    let (mut doorway, now) = (Doorway::default(), Instant::now());
    for number in 0..100 {
        let node = NodeId::from_bytes([number; 16]);
        let Answer::Accept(place) = doorway.handle_circuit(node, node, now) else { panic!("refused") };
        doorway.handle_end(place, Ending::Unfinished, now);
    }
    assert_eq!(doorway.kept(), 0);
}
