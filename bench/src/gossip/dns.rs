//! Asking many daemons the same question again and again.
//!
//! Owns: one UDP socket per daemon, and the times of answers. Must not know: why. Driven by: the measurements.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use gossamer_tests::dnsq::{Answer, RecordType, question};
use gossamer_tests::netns::Namespace;
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

/// Where a daemon with the first pool answers.
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 240, 0, 53)), 53);

/// How long one datagram may take before it is asked again.
const ANSWER: Duration = Duration::from_millis(200);

/// A client of one daemon's DNS, in the daemon's namespace.
#[derive(Debug)]
pub(super) struct Asker {
    /// Whose daemon it asks.
    pub(super) member: usize,
    socket: UdpSocket,
    id: u16,
}

/// A question that is asked often.
#[derive(Clone, Debug)]
pub(super) struct Question {
    bytes: Vec<u8>,
    every: Duration,
}

impl Question {
    /// Makes a question that is asked once per `every`.
    ///
    /// # Errors
    /// The name is none.
    pub(super) fn new(name: &str, kind: RecordType, every: Duration) -> Result<Self> {
        Ok(Self { bytes: question(0, name, kind)?, every })
    }
}

impl Asker {
    /// Makes a client for the daemon of a namespace.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub(super) fn new(member: usize, namespace: &Namespace) -> Result<Self> {
        let socket = namespace.enter(|| -> Result<StdSocket> {
            let socket = StdSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(SERVER)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })??;
        Ok(Self { member, socket: UdpSocket::from_std(socket)?, id: 0 })
    }

    /// Asks once; `None` when there was no answer.
    async fn ask(&mut self, question: &Question) -> Option<Answer> {
        self.id = self.id.wrapping_add(1);
        let mut bytes = question.bytes.clone();
        bytes.splice(..2, self.id.to_be_bytes());
        self.socket.send(&bytes).await.ok()?;
        let receive = async {
            let mut buffer = [0; 2_048];
            loop {
                let length = self.socket.recv(&mut buffer).await.ok()?;
                // A late answer to an earlier question does not count for this one.
                if buffer.get(..2) == Some(&self.id.to_be_bytes()[..]) {
                    return Answer::parse(buffer.get(..length)?);
                }
            }
        };
        timeout(ANSWER, receive).await.ok().flatten()
    }

    /// Asks until an answer is accepted; returns when it came.
    async fn first(&mut self, question: &Question, accept: impl Fn(&Answer) -> bool) -> Instant {
        let mut ticks = interval(question.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.ask(question).await.is_some_and(|answer| accept(&answer)) {
                return Instant::now();
            }
        }
    }

    /// Asks until no answer was accepted for `quiet`; returns when the last accepted one came.
    async fn last(
        &mut self,
        question: &Question,
        quiet: Duration,
        accept: impl Fn(&Answer) -> bool,
    ) -> Instant {
        let mut ticks = interval(question.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            ticks.tick().await;
            match self.ask(question).await {
                Some(answer) if !accept(&answer) => {
                    if last.elapsed() >= quiet {
                        return last;
                    }
                }
                // Silence is not the end of what was said before.
                Some(_) | None => last = Instant::now(),
            }
        }
    }
}

/// Asks all until each has given an accepted answer: (member, when), in the order of `askers`. Members that give none
/// before `end` are left out.
pub(super) async fn first_accepted(
    askers: &mut [Asker],
    question: &Question,
    end: Instant,
    accept: impl Fn(&Answer) -> bool,
) -> Vec<(usize, Instant)> {
    let accept = &accept;
    let waits = askers.iter_mut().map(|asker| async move {
        let member = asker.member;
        timeout_at(end, asker.first(question, accept)).await.ok().map(|at| (member, at))
    });
    join_all(waits).await.into_iter().flatten().collect()
}

/// Asks all until none has given an accepted answer for `quiet`: (member, when the last one came). Members that still
/// give one at `end` are left out.
pub(super) async fn last_accepted(
    askers: &mut [Asker],
    question: &Question,
    (quiet, end): (Duration, Instant),
    accept: impl Fn(&Answer) -> bool,
) -> Vec<(usize, Instant)> {
    let accept = &accept;
    let waits = askers.iter_mut().map(|asker| async move {
        let member = asker.member;
        timeout_at(end, asker.last(question, quiet, accept)).await.ok().map(|at| (member, at))
    });
    join_all(waits).await.into_iter().flatten().collect()
}
