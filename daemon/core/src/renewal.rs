//! When a node renews its certificate, and at whom.
//!
//! Owns: the moments, whom to ask, and which share of the life has been reported. Must not know: how one asks, what a
//! certificate says. Driven by: the daemon's authority task, with time and what came of each try.
//!
//! From a third of the life on, with jitter: the nodes of a mesh may all have been admitted at once. Two clocks: the
//! one that is even decides, and the wall clock where that stood still in a suspend.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gossamer_wire::join::PeerHint;
use gossamer_wire::{LaneAddress, NodeId};
use rand::seq::SliceRandom as _;

use crate::time::Now;

/// The clock that counts time does so not in suspend, so the wall clock is looked at this often.
const LOOK: Duration = Duration::from_secs(60);
/// And not more often than this.
const SHORTEST_LOOK: Duration = Duration::from_millis(100);
/// After something else has changed.
const SOON: Duration = Duration::from_secs(1);
/// Pauses between tries: a share of the certificate's life within these bounds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Tries in a whole life.
const TRIES: u32 = 24;
/// Most of the life by which the first try is late.
const JITTER: f64 = 0.1;
/// Shares of the life that are reported when they are over, percent, the greatest first.
const MARKS: [u64; 3] = [90, 75, 50];

/// The certificate a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// First second, since the Unix epoch.
    pub start: u64,
    /// Last second.
    pub end: u64,
    /// Whether another one is wanted whatever its age.
    pub is_unfit: bool,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Whether to try to renew.
    pub renew: bool,
    /// A share of the life that is over and was not reported, percent.
    pub over: Option<u64>,
}

/// When the certificate is looked at, and what was tried.
#[derive(Clone, Debug, Default)]
pub struct Renewal {
    /// When to look again; at once at the start.
    look_at: Option<Instant>,
    /// When to try; not known yet at the start and with a new certificate.
    due: Option<Instant>,
    /// Not before, whatever else: certificates that are short-lived from the start must not be renewed without end.
    earliest: Option<Instant>,
    is_running: bool,
    /// Share of the life that was reported as over, percent.
    reported: u64,
}

impl Renewal {
    /// Returns when to look again.
    pub fn look_at(&self, now: Now) -> Instant {
        self.look_at.unwrap_or(now.mono)
    }

    /// Something has changed: look at once.
    pub fn look(&mut self) {
        self.look_at = None;
    }

    /// Something is waited for: look again in a moment.
    pub fn look_soon(&mut self, now: Now) {
        self.look_at = self.look_at.map(|at| at.min(now.mono + SOON));
    }

    /// Says what is due. `chance` is drawn evenly from 0 to 1 each time. After `renew` nothing is tried until
    /// [`Renewal::failed`] or [`Renewal::renewed`].
    pub fn tend(&mut self, certificate: Certificate, now: Now, chance: f64) -> Due {
        let life = Duration::from_secs(certificate.end.saturating_sub(certificate.start));
        let left = Duration::from_secs(certificate.end.saturating_sub(now.wall));
        let due = *self.due.get_or_insert_with(|| {
            let third = left.saturating_sub(life * 2 / 3);
            // One that has ended waits for nothing.
            let jitter = if left.is_zero() { Duration::ZERO } else { life.mul_f64(chance * JITTER) };
            now.mono + third + jitter
        });
        // After a suspend the wall clock knows better.
        let is_due = due <= now.mono || left < life / 3 || certificate.is_unfit;
        let may = self.earliest.is_none_or(|earliest| earliest <= now.mono);
        let renew = is_due && may && !self.is_running;
        if renew {
            self.is_running = true;
            let pause = pause_of(life).mul_f64(0.5 + chance);
            self.due = Some(now.mono + pause);
            self.earliest = self.due;
        }
        self.look_after(now.mono);
        Due { renew, over: self.report(certificate, now.wall) }
    }

    /// The try came to nothing; the next one has its time already.
    pub fn failed(&mut self) {
        self.is_running = false;
        self.look();
    }

    /// There is a new certificate.
    pub fn renewed(&mut self, start: u64, end: u64, now: Now) {
        let pause = pause_of(Duration::from_secs(end.saturating_sub(start)));
        *self = Self { earliest: Some(now.mono + pause), ..Self::default() };
    }

    /// Sets the next look: when a try is due, at once for a certificate that is new, in a while when one is under way.
    fn look_after(&mut self, now: Instant) {
        let pause = match self.due {
            _ if self.is_running => LOOK,
            Some(due) => due.saturating_duration_since(now),
            None => Duration::ZERO,
        };
        self.look_at = Some(now + pause.clamp(SHORTEST_LOOK, LOOK));
    }

    fn report(&mut self, certificate: Certificate, wall: u64) -> Option<u64> {
        let life = certificate.end.saturating_sub(certificate.start).max(1);
        let over = wall.saturating_sub(certificate.start).saturating_mul(100) / life;
        let mark = MARKS.into_iter().find(|mark| *mark <= over).filter(|mark| *mark > self.reported)?;
        self.reported = mark;
        Some(mark)
    }
}

/// Most issuers asked in one try.
const ASKED: usize = 4;

/// Who may renew the certificate: an issuer's key at a node that can be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Hash of the issuer's key; any of the mesh when `None`.
    pub id: Option<NodeId>,
    /// Where its node may be dialled.
    pub addresses: Vec<SocketAddr>,
    /// Where only lanes reach it.
    pub lanes: Vec<LaneAddress>,
}

/// Returns whom to ask in one try, in order: issuers whose node is up (`true`) first, each as likely as the other, so that
/// the load is shared; where none is known those this node joined by.
pub fn whom_to_ask(
    mut issuers: Vec<(bool, Asked)>,
    joined_by: &[PeerHint],
    random: &mut impl rand::Rng,
) -> Vec<Asked> {
    issuers.shuffle(random);
    issuers.sort_by_key(|(is_up, _)| !is_up);
    let mut asked: Vec<_> = issuers.into_iter().map(|(_, issuer)| issuer).collect();
    if asked.is_empty() {
        asked.extend(joined_by.iter().map(|seed| Asked {
            id: None,
            addresses: seed.addresses.clone(),
            lanes: seed.lanes.clone(),
        }));
    }
    asked.truncate(ASKED);
    asked
}

/// Returns the mean pause between two tries.
fn pause_of(life: Duration) -> Duration {
    (life / TRIES).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    const DAY: u64 = 86_400;
    const CERTIFICATE: Certificate = Certificate { start: 1_000, end: 1_000 + 3 * DAY, is_unfit: false };

    /// A clock that starts with the certificate and goes on with both.
    struct Clock {
        begin: Instant,
        mono: u64,
        wall: u64,
    }

    impl Clock {
        fn new() -> Self {
            Self { begin: Instant::now(), mono: 0, wall: CERTIFICATE.start }
        }

        fn now(&self) -> Now {
            Now { mono: self.begin + Duration::from_secs(self.mono), wall: self.wall }
        }

        fn pass(&mut self, seconds: u64) -> Now {
            self.mono += seconds;
            self.sleep(seconds)
        }

        /// Lets time pass that the even clock does not count.
        fn sleep(&mut self, seconds: u64) -> Now {
            self.wall += seconds;
            self.now()
        }
    }

    #[test]
    fn the_first_try_is_at_a_third_of_the_life_and_at_most_a_tenth_later() {
        for (chance, late) in [(0.0, 0), (0.5, 3 * DAY / 20), (1.0, 3 * DAY / 10)] {
            let (mut renewal, mut clock) = (Renewal::default(), Clock::new());
            assert!(!renewal.tend(CERTIFICATE, clock.now(), chance).renew);
            assert!(!renewal.tend(CERTIFICATE, clock.pass(DAY + late - 1), chance).renew, "{chance}");
            assert!(renewal.tend(CERTIFICATE, clock.pass(1), chance).renew, "{chance}");
        }
    }

    #[test]
    fn one_try_at_a_time_and_pauses_between_them() {
        let (mut renewal, mut clock) = (Renewal::default(), Clock::new());
        renewal.tend(CERTIFICATE, clock.now(), 0.0);
        assert!(renewal.tend(CERTIFICATE, clock.pass(DAY), 0.5).renew);
        assert!(!renewal.tend(CERTIFICATE, clock.pass(DAY), 0.5).renew, "it is under way");
        renewal.failed();
        assert_eq!(renewal.look_at(clock.now()), clock.now().mono);
        assert!(renewal.tend(CERTIFICATE, clock.now(), 0.5).renew);
        renewal.failed();
        // A 24th of three days is above the longest pause.
        assert!(!renewal.tend(CERTIFICATE, clock.pass(599), 0.5).renew);
        assert!(renewal.tend(CERTIFICATE, clock.pass(1), 0.5).renew);
    }

    #[test]
    fn after_a_suspend_the_wall_clock_decides_within_a_minute() {
        let (mut renewal, mut clock) = (Renewal::default(), Clock::new());
        renewal.tend(CERTIFICATE, clock.now(), 0.0);
        clock.sleep(2 * DAY + 1);
        let look = renewal.look_at(clock.now());
        assert!(look <= clock.now().mono + LOOK, "it is looked at though the even clock stood still");
        assert!(renewal.tend(CERTIFICATE, clock.now(), 0.0).renew);
    }

    #[test]
    fn one_that_has_ended_is_renewed_at_once() {
        let (mut renewal, mut clock) = (Renewal::default(), Clock::new());
        assert!(renewal.tend(CERTIFICATE, clock.sleep(9 * DAY), 1.0).renew);
    }

    #[test]
    fn certificates_without_a_future_are_not_renewed_without_end() {
        let (mut renewal, mut clock) = (Renewal::default(), Clock::new());
        // An issuer near its own end makes certificates that end with it.
        let short = Certificate { start: 1_000, end: 1_003, is_unfit: true };
        let mut tries = 0;
        for _ in 0..10 {
            tries += u32::from(renewal.tend(short, clock.now(), 0.0).renew);
            renewal.renewed(short.start, short.end, clock.now());
        }
        assert_eq!(tries, 1);
        assert!(renewal.tend(short, clock.pass(1), 0.0).renew);
    }

    #[test]
    fn an_unfit_certificate_is_replaced_whatever_its_age() {
        let (mut renewal, clock) = (Renewal::default(), Clock::new());
        assert!(renewal.tend(Certificate { is_unfit: true, ..CERTIFICATE }, clock.now(), 0.5).renew);
    }

    #[test]
    fn half_three_quarters_and_nine_tenths_are_reported_once_for_each_certificate() {
        let (mut renewal, mut clock) = (Renewal::default(), Clock::new());
        let mut reported = Vec::new();
        for _ in 0..300 {
            let now = clock.pass(DAY / 100);
            reported.extend(renewal.tend(CERTIFICATE, now, 0.0).over);
        }
        assert_eq!(reported, [50, 75, 90]);
        renewal.renewed(clock.wall, clock.wall + DAY, clock.now());
        let next = Certificate { start: clock.wall, end: clock.wall + DAY, is_unfit: false };
        assert_eq!(renewal.tend(next, clock.now(), 0.0).over, None);
        assert_eq!(renewal.tend(next, clock.sleep(DAY), 0.0).over, Some(90));
    }

    #[test]
    fn what_is_waited_for_is_looked_at_soon() {
        let (mut renewal, clock) = (Renewal::default(), Clock::new());
        renewal.tend(CERTIFICATE, clock.now(), 0.0);
        renewal.look_soon(clock.now());
        assert_eq!(renewal.look_at(clock.now()), clock.now().mono + SOON);
        renewal.look();
        assert_eq!(renewal.look_at(clock.now()), clock.now().mono);
    }

    #[test]
    fn live_issuers_are_asked_first_in_any_order_and_at_most_four() {
        let issuer = |number: u8| Asked {
            id: Some(NodeId::from_bytes([number; 16])),
            addresses: vec![([192, 0, 2, number], 4_677).into()],
            lanes: Vec::new(),
        };
        let issuers: Vec<_> = (0..6).map(|number| (number >= 3, issuer(number))).collect();
        let is_live = |asked: &Asked| (3..6).any(|number| issuer(number) == *asked);
        let mut random = SmallRng::seed_from_u64(7);
        let mut first = Vec::new();
        for _ in 0..100 {
            let asked = whom_to_ask(issuers.clone(), &[], &mut random);
            assert_eq!(asked.len(), ASKED);
            assert!(asked[..3].iter().all(is_live) && !is_live(&asked[3]));
            first.push(asked[0].clone());
        }
        assert!((3..6).all(|number| first.contains(&issuer(number))), "the load is shared");
    }

    #[test]
    fn who_knows_no_issuer_asks_those_it_joined_by() {
        let seed = PeerHint {
            node: NodeId::from_bytes([1; 16]),
            addresses: vec![([192, 0, 2, 1], 4_677).into()],
            lanes: vec!["tls://gate.example".parse().expect("address")],
        };
        let expected = [Asked { id: None, addresses: seed.addresses.clone(), lanes: seed.lanes.clone() }];
        assert_eq!(
            whom_to_ask(Vec::new(), std::slice::from_ref(&seed), &mut SmallRng::seed_from_u64(7)),
            expected
        );
        let known = Asked { id: Some(seed.node), addresses: Vec::new(), lanes: Vec::new() };
        let asked = whom_to_ask(vec![(false, known.clone())], &[seed], &mut SmallRng::seed_from_u64(7));
        assert_eq!(asked, [known]);
    }
}
