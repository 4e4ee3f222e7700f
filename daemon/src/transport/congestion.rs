//! Congestion control of a connection: as if each flow that waits for room had a connection of its own.
//!
//! Owns: how many congestion windows there are, and which of them an event meets. Must not know: flows, streams, peers.
//! Driven by: quinn, with each packet that is acknowledged or lost; [`Demand`] says how many flows wait.
//!
//! The flows of a pair of nodes share one connection. With one window it would get the share of one TCP connection on
//! a lossy or crowded path, however many it stands for: 14 of 50 Mbit/s where eight TCP connections get 47
//! (docs/adr/0034-a-window-for-each-busy-flow.md). So there is one of quinn's Cubic windows (RFC 9438) for each flow
//! that waits, up to [`MAX_WINDOWS`]; packets may be on their way up to their sum.

use std::any::Any;
use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use quinn::Connection;
use quinn::congestion::{Controller, ControllerFactory, Cubic, CubicConfig};
use quinn_proto::RttEstimator;

/// Windows of a connection: as many as a browser opens connections to one host, rounded up.
const MAX_WINDOWS: usize = 8;

/// How many flows of a connection wait until they may send. Clones are handles.
#[derive(Clone, Debug, Default)]
pub struct Demand(Arc<AtomicUsize>);

/// A flow that waits; it does until this is dropped.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Demand);

impl Demand {
    /// Counts a flow that waits.
    pub fn wait(&self) -> Waiting<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Lets a connection's congestion control see this demand. It must be told again when the path may have changed, for
    /// which quinn makes a new one.
    pub(super) fn show_to(&self, connection: &Connection) {
        if let Ok(windows) = connection.congestion_state().into_any().downcast::<Windows>() {
            let _ = windows.demand.set(self.clone());
        }
    }

    /// Returns how many flows wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn windows(&self) -> usize {
        self.0.load(Ordering::Relaxed).clamp(1, MAX_WINDOWS)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes the congestion control of each path.
#[derive(Debug, Default)]
pub(super) struct WindowsConfig(Arc<CubicConfig>);

impl ControllerFactory for WindowsConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let config = Arc::clone(&self.0);
        let first = Cubic::new(Arc::clone(&config), now, mtu);
        Box::new(Windows { config, mtu, demand: Arc::default(), all: vec![first], turn: 0 })
    }
}

/// The windows of one path.
#[derive(Clone, Debug)]
struct Windows {
    config: Arc<CubicConfig>,
    mtu: u16,
    /// Set when the connection turns out to carry flows.
    demand: Arc<OnceLock<Demand>>,
    /// At least one.
    all: Vec<Cubic>,
    /// The window that the next acknowledgement is for.
    turn: usize,
}

impl Windows {
    fn wanted(&self) -> usize {
        self.demand.get().map_or(1, Demand::windows)
    }

    /// Returns the window that is next, which may be a new one.
    fn take_turn(&mut self, now: Instant) -> Option<&mut Cubic> {
        if self.all.len() < self.wanted() {
            self.all.push(Cubic::new(Arc::clone(&self.config), now, self.mtu));
        }
        self.turn = (self.turn + 1) % self.all.len().max(1);
        self.all.get_mut(self.turn)
    }
}

impl Controller for Windows {
    /// An acknowledged packet counts for one window, each in its turn, as it would with a connection for each.
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        if let Some(window) = self.take_turn(now) {
            window.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    /// Lost packets meet as many windows as there are packets, the largest first, for most packets are theirs; a window
    /// that was met since they were sent does not shrink again. One whose flow has ended goes now and not earlier: a
    /// flow may wait again in a moment.
    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.all.sort_by_key(|window| Reverse(window.window()));
        if self.all.len() > self.wanted() {
            self.all.pop();
        }
        let packets = usize::try_from(lost_bytes / u64::from(self.mtu.max(1))).unwrap_or(usize::MAX).max(1);
        let met = if is_persistent { self.all.len() } else { packets };
        for window in self.all.iter_mut().take(met) {
            window.on_congestion_event(now, sent, is_persistent, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = mtu;
        self.all.iter_mut().for_each(|window| window.on_mtu_update(mtu));
    }

    fn window(&self) -> u64 {
        self.all.iter().map(Controller::window).sum()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.all.first().map_or(0, Controller::initial_window)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    const MTU: u16 = 1_200;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn windows(demand: &Demand) -> Windows {
        let built = Arc::new(WindowsConfig::default()).build(now(), MTU);
        let built = *built.into_any().downcast::<Windows>().expect("its own kind");
        built.demand.set(demand.clone()).expect("set once");
        built
    }

    /// Gives so many acknowledgements a window; returns how many each got.
    fn turns(windows: &mut Windows, acknowledgements: usize) -> Vec<usize> {
        let mut counts = vec![0; MAX_WINDOWS];
        for _ in 0..acknowledgements {
            windows.take_turn(now());
            counts[windows.turn] += 1;
        }
        counts
    }

    #[test]
    fn there_are_as_many_windows_as_flows_that_wait_within_bounds() {
        let demand = Demand::default();
        let mut windows = windows(&demand);
        assert_eq!(turns(&mut windows, 10)[..2], [10, 0]);
        let mut waiting: Vec<_> = (0..100).map(|_| demand.wait()).collect();
        turns(&mut windows, MAX_WINDOWS);
        assert_eq!(turns(&mut windows, 800), [100; MAX_WINDOWS]);
        assert_eq!(windows.window(), MAX_WINDOWS as u64 * windows.initial_window());
        waiting.truncate(2);
        let later = now() + Duration::from_secs(60);
        for steps in 0..10 {
            assert_eq!(windows.all.len(), MAX_WINDOWS.saturating_sub(steps).max(2));
            windows.on_congestion_event(later, later, false, MTU.into());
        }
    }

    #[test]
    fn one_loss_shrinks_one_window_and_a_burst_all() {
        let demand = Demand::default();
        let _waiting: Vec<_> = (0..4).map(|_| demand.wait()).collect();
        let mut windows = windows(&demand);
        turns(&mut windows, 4);
        let before: Vec<_> = windows.all.iter().map(Controller::window).collect();
        let later = now() + Duration::from_secs(1);
        windows.on_congestion_event(later, later, false, MTU.into());
        let smaller = |windows: &Windows| {
            let sum: u64 = windows.all.iter().map(Controller::window).sum();
            before.iter().sum::<u64>() - sum
        };
        let largest = before.iter().max().copied().expect("four");
        assert!((smaller(&windows) as f64 - largest as f64 * 0.3).abs() <= 1.0, "30 % of the largest");
        windows.on_congestion_event(later, later, false, u64::from(MTU) * 100);
        assert!(smaller(&windows) as f64 >= before.iter().sum::<u64>() as f64 * 0.29);
    }

    #[test]
    fn a_path_that_is_silent_for_long_leaves_the_least() {
        let mut windows = windows(&Demand::default());
        let later = now() + Duration::from_secs(9);
        windows.on_congestion_event(later, later, true, 9_000);
        assert_eq!(windows.window(), 2 * u64::from(MTU));
    }
}
