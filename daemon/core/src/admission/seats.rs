//! Who is at the door of an issuer.
//!
//! Owns: the seats, by source. Must not know: what is asked. Driven by: the door of the issuer.
//!
//! A connection costs a thief nothing, so one that does not ask keeps nobody out: the one that is silent for longest
//! makes room for the next. One that has asked is judged within seconds, and gives its seat up when it has its answer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use gossamer_wire::limits::{MAX_JOINING, MAX_JOINING_PER_SOURCE};

use crate::source::network_of;

/// Seats that are given away without asking who has some already: a whole site may join at once, from one address.
const MANY: usize = MAX_JOINING - 4 * MAX_JOINING_PER_SOURCE;

/// A seat. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat(u64);

/// What came of a wish for a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seating {
    /// There is one.
    Seated(Seat),
    /// There is one, and this other one is given up for it.
    Instead(Seat, Seat),
    /// The source has as many as it may have, or all have asked and wait for their answers.
    Full,
}

/// The seats of a door.
#[derive(Debug, Default)]
pub struct Seats {
    taken: BTreeMap<Seat, Taken>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    source: IpAddr,
    is_judged: bool,
}

impl Seats {
    /// Gives a source a seat, if it can have one.
    pub fn take(&mut self, source: IpAddr) -> Seating {
        let source = network_of(source);
        let of_source = self.taken.values().filter(|taken| taken.source == source).count();
        if self.taken.len() >= MANY && of_source >= MAX_JOINING_PER_SOURCE {
            return Seating::Full;
        }
        let instead = if self.taken.len() < MAX_JOINING {
            None
        } else {
            let silent = self.taken.iter().find(|(_, taken)| !taken.is_judged);
            let Some(silent) = silent.map(|(seat, _)| *seat) else { return Seating::Full };
            self.taken.remove(&silent);
            Some(silent)
        };
        let seat = Seat(self.next);
        self.next += 1;
        self.taken.insert(seat, Taken { source, is_judged: false });
        instead.map_or(Seating::Seated(seat), |silent| Seating::Instead(seat, silent))
    }

    /// Keeps a seat for one who has asked, until [`Seats::answered`]. Returns whether it still has the seat.
    pub fn asked(&mut self, seat: Seat) -> bool {
        let taken = self.taken.get_mut(&seat);
        taken.map(|taken| taken.is_judged = true).is_some()
    }

    /// Lets others have the seat of one who has an answer.
    pub fn answered(&mut self, seat: Seat) {
        if let Some(taken) = self.taken.get_mut(&seat) {
            taken.is_judged = false;
        }
    }

    /// Gives a seat back.
    pub fn leave(&mut self, seat: Seat) {
        self.taken.remove(&seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: usize) -> IpAddr {
        [10, 0, (number >> 8) as u8, number as u8].into()
    }

    impl Seats {
        fn seat(&mut self, source: IpAddr) -> Seat {
            match self.take(source) {
                Seating::Seated(seat) => seat,
                other => panic!("{source}: {other:?}"),
            }
        }

        fn fill(&mut self) -> Vec<Seat> {
            (0..MAX_JOINING).map(|number| self.seat(source(number))).collect()
        }
    }

    #[test]
    fn a_source_has_most_seats_but_not_the_last_ones() {
        let mut seats = Seats::default();
        let first = seats.seat(source(1));
        (1..MANY).for_each(|_| _ = seats.seat(source(1)));
        assert_eq!(seats.take(source(1)), Seating::Full);
        seats.seat(source(2));
        seats.leave(first);
        assert_eq!(seats.take(source(1)), Seating::Full, "there are as many as before");
        (1..MAX_JOINING_PER_SOURCE).for_each(|_| _ = seats.seat(source(2)));
        assert_eq!(seats.take(source(2)), Seating::Full);
        seats.seat(source(3));
    }

    #[test]
    fn who_is_silent_for_longest_makes_room() {
        let mut seats = Seats::default();
        let all = seats.fill();
        assert!(seats.asked(all[0]));
        let Seating::Instead(_, gone) = seats.take(source(999)) else { panic!("no seat") };
        assert_eq!(gone, all[1], "the first one has asked");
        assert!(!seats.asked(gone), "too late");
        seats.answered(all[0]);
        let Seating::Instead(_, gone) = seats.take(source(998)) else { panic!("no seat") };
        assert_eq!(gone, all[0], "it has its answer");
    }

    #[test]
    fn nobody_who_waits_for_an_answer_loses_the_seat() {
        let mut seats = Seats::default();
        let all = seats.fill();
        assert!(all.iter().all(|seat| seats.asked(*seat)));
        assert_eq!(seats.take(source(999)), Seating::Full);
        seats.leave(all[7]);
        seats.seat(source(999));
    }

    #[test]
    fn a_thief_with_many_sources_takes_no_more_seats_than_there_are() {
        let mut seats = Seats::default();
        (0..50_000).for_each(|number| _ = seats.take(source(number)));
        assert_eq!(seats.taken.len(), MAX_JOINING);
    }
}
