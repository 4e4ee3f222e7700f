//! The silence of a peer: for how long nothing came from it while this process could have heard it.
//!
//! Owns: that sum. Must not know: why a peer is silent, what flows carry. Driven by: `data`, while the connection lives.
//!
//! QUIC's idle timeout compares moments. A process that got no processor time for three seconds finds it passed, with what
//! the peer said meanwhile still unread in the socket, and loses all flows of a peer that is well. So silence is summed up in
//! slices here, and a slice counts no more than its length, however late it ends.

use std::time::{Duration, Instant};

use quinn::Connection;

use super::link::CLOSE_DOWN;
use crate::clock;

/// Resolves when the peer has been silent for [`MOST`]: the connection is then closed.
pub(super) async fn watch(connection: &Connection) {
    let received = || connection.stats().udp_rx.datagrams;
    let mut silence = Silence::new(clock::now().mono, received());
    loop {
        tokio::time::sleep(SLICE).await;
        if silence.sample(clock::now().mono, received()) {
            return connection.close(CLOSE_DOWN.into(), b"silent");
        }
    }
}

#[derive(Debug)]
struct Silence {
    last: Instant,
    received: u64,
    lasts: Duration,
}

impl Silence {
    const fn new(now: Instant, received: u64) -> Self {
        Self { last: now, received, lasts: Duration::ZERO }
    }

    /// Adds what has passed since the last sample. Returns whether the peer is given up.
    fn sample(&mut self, now: Instant, received: u64) -> bool {
        let passed = now.saturating_duration_since(self.last).min(SLICE * 3 / 2);
        self.lasts = if received == self.received { self.lasts + passed } else { Duration::ZERO };
        (self.last, self.received) = (now, received);
        self.lasts >= MOST
    }
}

const SLICE: Duration = Duration::from_millis(250);

/// A dead peer resets its flows after this and a slice at most: 3 s (design section 9). A live one sends something each second.
const MOST: Duration = Duration::from_millis(2_500);

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    #[test]
    fn a_peer_that_says_nothing_is_given_up_within_three_seconds() {
        let mut now = start();
        let mut silence = Silence::new(now, 7);
        for _ in 1..10 {
            now += SLICE;
            assert!(!silence.sample(now, 7));
        }
        assert!(silence.sample(now + SLICE, 7));
    }

    #[test]
    fn a_word_ends_the_silence() {
        let mut now = start();
        let mut silence = Silence::new(now, 0);
        for slice in 0..1_000 {
            now += SLICE;
            assert!(!silence.sample(now, slice / 4), "one word a second");
        }
    }

    #[test]
    fn time_that_this_process_did_not_live_through_is_no_silence() {
        let mut silence = Silence::new(start(), 7);
        assert!(!silence.sample(start() + Duration::from_secs(60), 7));
        assert!(!silence.sample(start() + Duration::from_secs(120), 7));
        assert!(silence.lasts <= SLICE * 3);
    }
}
