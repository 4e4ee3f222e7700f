//! How far one direction of a flow may run ahead of its reader, and how much of that the flows of a connection share.
//!
//! Owns: the arithmetic. Must not know: connections, streams, clocks. Driven by: `credit`, with what a reader has taken.

use std::time::{Duration, Instant};

use quinn::VarInt;

/// What a path is like, as far as windows are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    /// Smoothed round trip.
    pub(super) rtt: Duration,
    /// Whether its shortest round trip is above [`NEAR`].
    pub(super) is_far: bool,
}

/// The window of one direction of a flow. It begins small, so that a reader that takes nothing holds little, and grows
/// while the reader takes it up within two round trips.
#[derive(Debug)]
pub(super) struct Window {
    size: u64,
    /// Bytes that the reader has taken.
    taken: u64,
    /// Bytes that the peer was told it may send.
    granted: u64,
    /// When the window was last taken up, and bytes since then.
    since: Instant,
    measured: u64,
}

impl Window {
    pub(super) const fn new(now: Instant) -> Self {
        Self { size: FIRST_WINDOW, taken: 0, granted: FIRST_WINDOW, since: now, measured: 0 }
    }

    /// The reader has taken so many bytes. Returns whether it has taken up the whole window: then call
    /// [`Self::handle_measure`].
    pub(super) const fn handle_taken(&mut self, len: u64) -> bool {
        self.taken += len;
        self.measured += len;
        self.measured >= self.size
    }

    /// Judges how fast the window was taken up. `most` is this flow's share.
    pub(super) fn handle_measure(&mut self, now: Instant, path: Path, most: u64) {
        let took = now.saturating_duration_since(self.since);
        let proof = if path.is_far { FIRST_WINDOW } else { PROOF };
        if took <= path.rtt * 2 + HURRY && self.taken >= proof {
            self.size *= 2;
        } else if took > path.rtt * 2 + LEISURE {
            self.size /= 2;
        }
        self.size = self.size.min(most).max(FIRST_WINDOW);
        (self.since, self.measured) = (now, 0);
    }

    /// Returns up to which byte the peer may send from now on, when a quarter of what it may is used up.
    pub(super) fn next_limit(&mut self) -> Option<u64> {
        let limit = self.taken + self.size;
        let is_due = self.granted - self.taken.min(self.granted) <= self.size / 4 * 3;
        (is_due && limit > self.granted).then(|| {
            self.granted = limit;
            limit
        })
    }

    /// Returns the bytes that may come, or are there, and are not taken.
    pub(super) const fn outstanding(&self) -> u64 {
        self.granted.saturating_sub(self.taken)
    }

    /// Returns whether it has grown.
    pub(super) const fn has_grown(&self) -> bool {
        self.size > FIRST_WINDOW
    }

    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }
}

/// Returns the largest window of one of so many flows that move, when `left` bytes are not held by stalled ones. It is a
/// part of what is left, so that flows that stall one after the other never take all.
pub(super) fn share(is_far: bool, moving: usize, left: u64, taken: u64) -> u64 {
    let moving = u64::try_from(moving).unwrap_or(u64::MAX).max(1);
    let part = match (is_far, taken < YOUNG) {
        (true, false) => left / 2,
        (true, true) => left / 16,
        (false, _) => left / 8,
    };
    let most = if is_far { FAR_WINDOW } else { NEAR_WINDOW };
    most.min(room(is_far) / moving).min(part)
}

/// Returns what flows that move have together.
pub(super) const fn room(is_far: bool) -> u64 {
    if is_far { FAR_ROOM } else { NEAR_ROOM }
}

/// The window of a flow of which nothing is known: fast enough on a near path, and 200 stalled flows hold 6.4 MiB.
pub(super) const FIRST_WINDOW: u64 = 32 << 10;

/// The largest windows. On a near path a larger one is slower, for the processor's cache no longer holds it; a path of
/// 40 ms and 1 Gbit/s needs 5 MB.
const NEAR_WINDOW: u64 = 1 << 20;
const FAR_WINDOW: u64 = 8 << 20;
/// The same for all flows of a connection that move.
const NEAR_ROOM: u64 = 3 << 20;
const FAR_ROOM: u64 = 8 << 20;

/// QUIC's own window of a stream, which is fixed when a connection is made: ours are smaller.
pub(super) const STREAM_WINDOW: VarInt = VarInt::from_u32(8 << 20);

/// The longest round trip of a near path.
pub(super) const NEAR: Duration = Duration::from_millis(5);

/// What a reader on a near path has to take before its window grows: more than buffers of sockets take for a program that
/// reads nothing (the relay lets the system keep 128 KiB beside a receive buffer).
pub(super) const PROOF: u64 = 512 << 10;
/// Below it a flow on a far path gets a small part of what is left only.
const YOUNG: u64 = 4 << 20;

/// A window taken up within two round trips and this is the limit of its flow.
const HURRY: Duration = Duration::from_millis(5);
/// One that took this long is larger than its flow needs.
const LEISURE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const WAN: Path = Path { rtt: Duration::from_millis(40), is_far: true };
    const LAN: Path = Path { rtt: Duration::from_micros(200), is_far: false };

    fn start() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Takes whole windows, each in so long; returns the size after each.
    fn take(window: &mut Window, path: Path, each: Duration, count: usize, most: u64) -> Vec<u64> {
        let take_one = |_| {
            let now = window.since + each;
            assert!(window.handle_taken(window.size));
            window.handle_measure(now, path, most);
            window.next_limit();
            assert!(window.outstanding() <= window.size.max(most));
            window.size
        };
        (0..count).map(take_one).collect()
    }

    #[test]
    fn a_reader_that_keeps_up_gets_a_window_as_large_as_its_path() {
        let mut far = Window::new(start());
        let sizes = take(&mut far, WAN, WAN.rtt, 12, share(true, 1, 12 * MIB, u64::MAX));
        assert_eq!((sizes[0], sizes.last()), (64 << 10, Some(&(6 * MIB))), "{sizes:?}");
        let mut near = Window::new(start());
        let sizes = take(&mut near, LAN, LAN.rtt, 40, share(false, 1, 12 * MIB, u64::MAX));
        assert_eq!((sizes[14], sizes[15]), (FIRST_WINDOW, 2 * FIRST_WINDOW), "after half a mebibyte");
        assert_eq!(sizes.last(), Some(&MIB));
    }

    #[test]
    fn a_slow_reader_keeps_the_first_window_and_one_that_has_become_slow_gives_its_own_back() {
        let mut window = Window::new(start());
        let sizes = take(&mut window, WAN, Duration::from_millis(500), 20, 8 * MIB);
        assert!(sizes.iter().all(|size| *size == FIRST_WINDOW), "{sizes:?}");
        take(&mut window, WAN, WAN.rtt, 10, 8 * MIB);
        assert!(window.has_grown());
        take(&mut window, WAN, Duration::from_secs(2), 10, 8 * MIB);
        assert!(!window.has_grown());
    }

    #[test]
    fn a_limit_is_told_when_a_quarter_is_used_and_never_taken_back() {
        let mut window = Window::new(start());
        assert!(!window.handle_taken(FIRST_WINDOW / 4 - 1));
        assert_eq!(window.next_limit(), None);
        window.handle_taken(1);
        assert_eq!(window.next_limit(), Some(FIRST_WINDOW / 4 + FIRST_WINDOW));
        take(&mut window, WAN, WAN.rtt, 10, 8 * MIB);
        let granted = window.granted;
        window.handle_taken(1 << 10);
        window.handle_measure(window.since, WAN, FIRST_WINDOW);
        assert_eq!((window.next_limit(), window.granted), (None, granted));
    }

    #[test]
    fn flows_that_stall_one_after_the_other_never_take_all() {
        for (is_far, taken) in [(true, u64::MAX), (true, 0), (false, u64::MAX)] {
            let mut left = 9 * MIB;
            for _ in 0..1_000 {
                left -= share(is_far, 1, left, taken);
            }
            assert!(left > 0);
        }
        assert_eq!(share(false, 30, 9 * MIB, 0), 3 * MIB / 30);
    }
}
