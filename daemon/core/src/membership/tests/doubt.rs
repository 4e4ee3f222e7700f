//! One node that distrusts itself, and peers that find a suspect silent, too.

use std::time::Duration;

use gossamer_wire::swim::{SwimMessage, SwimState};

use super::peer::{PEER, Probe, entry, node};
use crate::membership::{Input, MemberState};

const SECOND: Duration = Duration::from_secs(1);
const OTHERS: [u8; 3] = [3, 4, 5];

/// A node that distrusts itself as much as it can and has just begun to suspect `PEER`.
fn doubtful() -> Probe {
    let mut probe = Probe::with_peer();
    for other in OTHERS {
        probe.give(Input::Connected { peer: node(other) });
        probe.packet(other, SwimMessage::Gossip, vec![]);
    }
    for _ in 0..3_000 {
        (0..3).for_each(|_| probe.membership.health.worsen());
        probe.run_with(SECOND / 100, &OTHERS);
        if probe.state(PEER) == Some(MemberState::Suspect) {
            return probe;
        }
    }
    panic!("it suspects nobody");
}

/// Lets peers tell of the suspect and returns how long it takes until it is down.
fn down_after(probe: &mut Probe, told_by: &[u8]) -> Duration {
    let begin = probe.now;
    for peer in told_by {
        probe.packet(*peer, SwimMessage::Gossip, vec![entry(PEER, 1, SwimState::Suspect)]);
    }
    while probe.state(PEER) != Some(MemberState::Down) {
        assert!(probe.now - begin < 60 * SECOND, "never");
        probe.run_with(SECOND / 20, &OTHERS);
    }
    probe.now - begin
}

#[test]
fn doubt_in_itself_ends_with_what_three_others_find() {
    let times = [0, 1, 2, 3].map(|count| down_after(&mut doubtful(), &OTHERS[..count]));
    let shown = format!("{times:?}");
    let near = |took: Duration, wanted: f64| (took.as_secs_f64() - wanted).abs() < 0.3;
    // It has heard from one since its score was the worst: three times the usual, and not four.
    assert!(near(times[0], 7.5) && near(times[3], 2.5), "{shown}");
    assert!(times.is_sorted_by(|longer, shorter| longer > shorter), "{shown}");
}

#[test]
fn the_same_peer_confirms_once() {
    let took = down_after(&mut doubtful(), &[3, 3, 3, 3]);
    assert!(took > 5 * SECOND, "{took:?}");
}

#[test]
fn what_others_find_is_no_verdict_while_answers_wait_to_be_read() {
    let mut probe = doubtful();
    probe.run_with(SECOND, &OTHERS);
    probe.now += 4 * SECOND;
    let took = down_after(&mut probe, &OTHERS);
    assert!(took >= SECOND && took < 3 * SECOND, "{took:?}");
}
