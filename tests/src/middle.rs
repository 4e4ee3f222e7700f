//! Somebody between a joiner and an issuer: passes datagrams on, loses them from a moment on, keeps what it saw.
//!
//! Owns: two sockets, and when the path is cut. Must not know: what the datagrams say. Driven by: checks of joining.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::UdpSocket as TokioSocket;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Longer than any datagram of these connections.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// Which way datagrams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the joiner to the issuer.
    Up,
    /// Back.
    Down,
}

/// From when on a path is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// It is not.
    Never,
    /// When so many datagrams have gone this way.
    Passed(Way, usize),
    /// So long after the first datagram.
    After(Duration),
}

/// What is lost from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nothing: the moment matters, not the path.
    Nothing,
    /// What goes this way.
    One(Way),
    /// Everything.
    All,
}

/// What went through a path that was not cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Datagrams from the joiner to the issuer.
    pub up: usize,
    /// Datagrams back.
    pub down: usize,
    /// From the first to the last.
    pub time: Duration,
}

/// A path from joiners to one issuer.
#[derive(Debug)]
pub struct Middle {
    front: UdpSocket,
    issuer: SocketAddr,
    source: Ipv4Addr,
    when: When,
    lost: Lost,
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    traffic: Traffic,
    first: Option<Instant>,
    is_mended: bool,
    seen: Vec<u8>,
}

impl Middle {
    /// Makes a path to an issuer that its datagrams reach from `source`, an address of loopback.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub fn new(issuer: SocketAddr, source: Ipv4Addr, when: When, lost: Lost) -> Result<Self> {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        front.set_nonblocking(true)?;
        Ok(Self { front, issuer, source, when, lost, state: Mutex::default(), ended: Notify::new() })
    }

    /// Returns where joiners dial.
    ///
    /// # Errors
    /// The system refuses to say.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.front.local_addr()?)
    }

    /// Carries datagrams while `play` runs.
    ///
    /// # Errors
    /// Those of `play`, or of the sockets.
    pub fn while_carrying<T>(&self, play: impl FnOnce() -> Result<T>) -> Result<T> {
        std::thread::scope(|scope| {
            let carrier = scope.spawn(|| self.carry());
            let played = play();
            self.ended.notify_one();
            carrier.join().ok().context("a carrier that does not panic")??;
            played
        })
    }

    /// Lets everything pass from now on.
    pub fn mend(&self) {
        self.state().is_mended = true;
    }

    /// Returns whether the moment of the cut has come.
    pub fn is_cut(&self) -> bool {
        self.state().has_come(self.when)
    }

    /// Returns what has gone through.
    pub fn traffic(&self) -> Traffic {
        self.state().traffic
    }

    /// Returns all bytes that went through, both ways.
    pub fn seen(&self) -> Vec<u8> {
        self.state().seen.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let front = TokioSocket::from_std(self.front.try_clone()?)?;
            // Each joiner has a port of its own at the issuer, as behind any translator of addresses.
            let (mut joiner, mut back) = (None, self.back().await?);
            let (mut up, mut down) = (vec![0; MAX_DATAGRAM_BYTES], vec![0; MAX_DATAGRAM_BYTES]);
            loop {
                // Errors of a socket are those of a peer that is gone.
                tokio::select! {
                    biased;
                    () = self.ended.notified() => return Ok(()),
                    Ok((length, from)) = front.recv_from(&mut up) => {
                        if joiner != Some(from) {
                            (joiner, back) = (Some(from), self.back().await?);
                        }
                        if self.passes(Way::Up, &up[..length]) {
                            let _ = back.send(&up[..length]).await;
                        }
                    }
                    received = back.recv(&mut down) => {
                        if let (Ok(length), Some(joiner)) = (received, joiner)
                            && self.passes(Way::Down, &down[..length])
                        {
                            let _ = front.send_to(&down[..length], joiner).await;
                        }
                    }
                }
            }
        })
    }

    async fn back(&self) -> Result<TokioSocket> {
        let back = TokioSocket::bind((IpAddr::V4(self.source), 0)).await?;
        back.connect(self.issuer).await?;
        Ok(back)
    }

    /// Counts a datagram unless it is lost.
    fn passes(&self, way: Way, bytes: &[u8]) -> bool {
        let mut state = self.state();
        let now = Instant::now();
        let first = *state.first.get_or_insert(now);
        let hits = match self.lost {
            Lost::Nothing => false,
            Lost::One(lost) => lost == way,
            Lost::All => true,
        };
        if hits && !state.is_mended && state.has_come(self.when) {
            return false;
        }
        match way {
            Way::Up => state.traffic.up += 1,
            Way::Down => state.traffic.down += 1,
        }
        state.traffic.time = now - first;
        state.seen.extend_from_slice(bytes);
        true
    }
}

impl State {
    fn has_come(&self, when: When) -> bool {
        match when {
            When::Never => false,
            When::Passed(Way::Up, count) => self.traffic.up >= count,
            When::Passed(Way::Down, count) => self.traffic.down >= count,
            When::After(time) => self.first.is_some_and(|first| first.elapsed() >= time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn middle(issuer: SocketAddr, when: When, lost: Lost) -> Middle {
        Middle::new(issuer, Ipv4Addr::new(127, 1, 0, 9), when, lost).expect("a path")
    }

    #[test]
    fn from_the_cut_on_what_shall_be_lost_is_lost_until_it_is_mended() {
        let nowhere = (Ipv4Addr::LOCALHOST, 9).into();
        let passes = |middle: &Middle, ways: [Way; 4]| ways.map(|way| middle.passes(way, b"bytes"));
        let ways = [Way::Up, Way::Down, Way::Up, Way::Down];
        for (lost, expected) in [
            (Lost::All, [true, true, false, false]),
            (Lost::One(Way::Up), [true, true, false, true]),
            (Lost::One(Way::Down), [true, true, true, false]),
            (Lost::Nothing, [true; 4]),
        ] {
            let middle = middle(nowhere, When::Passed(Way::Down, 1), lost);
            assert_eq!(passes(&middle, ways), expected, "{lost:?}");
            assert!(middle.is_cut());
            middle.mend();
            assert_eq!(passes(&middle, ways), [true; 4], "{lost:?}");
        }
        let whole = middle(nowhere, When::Never, Lost::All);
        assert_eq!(passes(&whole, ways), [true; 4]);
        assert_eq!((whole.traffic().up, whole.traffic().down, whole.seen().len()), (2, 2, 20));
    }

    #[test]
    fn datagrams_reach_the_issuer_from_the_source_and_answers_the_joiner() {
        let issuer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let middle = middle(issuer.local_addr().expect("an address"), When::Never, Lost::All);
        let front = middle.address().expect("an address");
        let play = || {
            for question in [b"one", b"two"] {
                let joiner = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                joiner.send_to(question, front)?;
                let mut buffer = [0; 8];
                let (length, from) = issuer.recv_from(&mut buffer)?;
                assert_eq!(
                    (&buffer[..length], from.ip()),
                    (&question[..], Ipv4Addr::new(127, 1, 0, 9).into())
                );
                issuer.send_to(b"answer", from)?;
                let (length, from) = joiner.recv_from(&mut buffer)?;
                assert_eq!((&buffer[..length], from), (&b"answer"[..], front));
            }
            Ok(())
        };
        middle.while_carrying(play).expect("carries");
        assert_eq!(middle.seen(), b"oneanswertwoanswer");
    }
}
