//! A road with delay, loss, a rate and a queue, between two TUN devices.
//!
//! Owns: the rule of one direction ([`Lane`]) and the threads that carry packets by it. Must not know: what the
//! packets are. Driven by: `net`.
//!
//! The kernels of test machines often have no netem. Both directions have the same rule and draw their luck from
//! generators of their own with fixed seeds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use std::os::fd::AsFd as _;
use tappers::Tun;

/// Longest packet of a device with the usual MTU, with room.
const PACKET: usize = 2_048;
/// Packets taken before those that are due are looked at again.
const BATCH: usize = 64;
/// How often a quiet road looks whether it has ended.
const LOOK: Duration = Duration::from_millis(100);

/// What a road is like, in each direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Road {
    /// One way.
    pub(super) delay: Duration,
    /// Share of packets that are lost.
    pub(super) loss: f64,
    /// Bits of IP packets in a second.
    pub(super) rate: f64,
}

impl Road {
    /// Bytes that may wait: what is on the road in one round trip, as routers are commonly set.
    fn queue(&self) -> f64 {
        self.rate / 8.0 * 2.0 * self.delay.as_secs_f64()
    }
}

/// One direction: when each packet arrives, if it does.
#[derive(Debug)]
struct Lane {
    road: Road,
    /// When the last packet that was taken has left.
    free: Instant,
}

impl Lane {
    /// Takes a packet; returns when it arrives, `None` when it is lost or finds the queue full. `luck` is from 0 to 1.
    fn take(&mut self, bytes: usize, luck: f64, now: Instant) -> Option<Instant> {
        if luck < self.road.loss {
            return None;
        }
        self.free = self.free.max(now);
        let waiting = (self.free - now).as_secs_f64() * self.road.rate / 8.0;
        if waiting + bytes as f64 > self.road.queue() {
            return None;
        }
        self.free += Duration::from_secs_f64(bytes as f64 * 8.0 / self.road.rate);
        Some(self.free + self.road.delay)
    }
}

/// The threads of both directions; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Carries packets between two devices that do not block.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(super) fn start(devices: [Tun; 2], road: Road) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let devices = devices.map(Arc::new);
        let mut all = Self { stop: Arc::clone(&stop), threads: Vec::new() };
        for (seed, [from, to]) in [[0, 1], [1, 0]].into_iter().enumerate() {
            let (from, to) = (Arc::clone(&devices[from]), Arc::clone(&devices[to]));
            let (stop, rng) = (Arc::clone(&stop), SmallRng::seed_from_u64(seed as u64 + 1));
            let carry = move || carry(&from, &to, road, rng, &stop);
            all.threads.push(std::thread::Builder::new().name("road".to_owned()).spawn(carry)?);
        }
        Ok(all)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn carry(from: &Tun, to: &Tun, road: Road, mut rng: SmallRng, stop: &AtomicBool) {
    let mut lane = Lane { road, free: Instant::now() };
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut packet = [0; PACKET];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while under_way.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, packet)) = under_way.pop_front() else { break };
            let _ = to.send(&packet); // a device that is down loses it, as a road would
        }
        let mut taken = 0;
        while taken < BATCH {
            let Ok(length) = from.recv(&mut packet) else { break };
            taken += 1;
            if let Some(due) = lane.take(length, rng.random(), Instant::now()) {
                under_way.push_back((due, packet[..length].to_vec()));
            }
        }
        if taken == BATCH {
            continue;
        }
        let next = under_way.front().map_or(LOOK, |(due, _)| due.saturating_duration_since(Instant::now()));
        let mut waits = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        let _ = ppoll(&mut waits, Some(TimeSpec::from(next.min(LOOK))), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 Mbit/s: a byte takes a microsecond. Ten milliseconds one way: 20,000 bytes may wait.
    const ROAD: Road = Road { delay: Duration::from_millis(10), loss: 0.25, rate: 8e6 };

    fn after(now: Instant, due: Option<Instant>) -> Option<u128> {
        due.map(|due| (due - now).as_micros())
    }

    #[test]
    fn packets_leave_one_after_the_other_and_travel_side_by_side() {
        let now = Instant::now();
        let mut lane = Lane { road: ROAD, free: now };
        assert_eq!(after(now, lane.take(1_000, 0.9, now)), Some(11_000));
        assert_eq!(after(now, lane.take(500, 0.9, now)), Some(11_500));
        let later = now + Duration::from_millis(5);
        assert_eq!(after(later, lane.take(1_000, 0.9, later)), Some(11_000), "the road was empty again");
    }

    #[test]
    fn a_full_queue_and_bad_luck_lose_a_packet_and_cost_no_time() {
        let now = Instant::now();
        let mut lane = Lane { road: ROAD, free: now };
        assert_eq!(lane.take(1_000, 0.2, now), None, "bad luck");
        let kept = (0..30).filter(|_| lane.take(1_000, 0.25, now).is_some()).count();
        assert_eq!(kept, 20, "one round trip of packets waits");
        let later = now + Duration::from_millis(1);
        assert_eq!(after(now, lane.take(1_000, 0.9, later)), Some(31_000), "one has left");
    }
}
