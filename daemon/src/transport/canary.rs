//! The canary of a data connection: notices within a second that the process at the other end is gone.
//!
//! Owns: the socket by which the system of the peer says so, and what its word is worth (ADR 36). Must not know: pools, what
//! flows carry. Driven by: `data`, for as long as the connection lives.
//!
//! A killed process says nothing, but its system answers datagrams to the closed port with ICMP. QUIC's socket is not
//! connected and so hears none of it; one that is connected and sends an empty datagram now and then does.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use gossamer_wire::NodeId;

use super::Links;
use super::link::CLOSE_DOWN;
use super::tried::Outcome;
use crate::clock;
use crate::metrics::Metrics;

/// Pause between two datagrams, which is most of the time that a death is not noticed.
pub(super) const EVERY: Duration = Duration::from_millis(500);
/// How often packets are looked at, and the pause while the peer leaves some unanswered. A system sends six refusals at once and then one a second, and those for packets
/// of QUIC, which nobody hears, are among them: one of the six should be the canary's.
const TURN: Duration = Duration::from_millis(50);
/// Datagrams that hurry after a single packet, which may need no answer: enough to be among the six.
const HURRIES: u32 = 4;
/// The peer must be silent for so long as well, and for so many round trips.
const QUIET_LEAST: Duration = Duration::from_millis(250);
const QUIET_ROUND_TRIPS: u32 = 3;
/// How long a first answer may take before the system is asked: who is there has mostly answered, and a firewall on the way
/// might refuse empty datagrams only.
const LATE: Duration = Duration::from_secs(1);
/// How often a look reads what was received.
const SLICE: Duration = Duration::from_millis(50);
/// Pause after a refusal of a peer that lives: a firewall or NAT on the way answers for it, and will do so again.
const PAUSE_LEAST: Duration = Duration::from_secs(4);
const PAUSE_MOST: Duration = Duration::from_secs(10 * 60);

/// Watches whether the process at the other end of a connection is there.
#[derive(Debug)]
pub(super) struct Canary {
    /// Packets of the control connection are refused as well.
    links: Links,
    node: NodeId,
    metrics: Arc<Metrics>,
}

impl Canary {
    /// Only for connections whose addresses are those of real networks.
    pub(super) const fn new(links: Links, node: NodeId, metrics: Arc<Metrics>) -> Self {
        Self { links, node, metrics }
    }

    /// Watches while `flows` is not 0. Returns when the peer is gone: the connection is then closed.
    pub(super) async fn run(self, connection: &Connection, flows: &AtomicUsize) {
        let mut patience = Patience::default();
        let mut pace = Pace::default();
        let mut perch = None;
        loop {
            if flows.load(Ordering::Relaxed) == 0 {
                // A socket for each warm connection would be too many.
                (perch, pace) = (None, Pace::default());
                tokio::time::sleep(EVERY).await;
                continue;
            }
            let mut remote = connection.remote_address();
            remote.set_ip(remote.ip().to_canonical());
            let (sent, received) = self.packets(connection);
            let was_refused = pace.next(sent, received) && ask(&mut perch, remote).await;
            if !was_refused && !is_refused(perch.as_ref(), TURN).await {
                continue;
            }
            if look(connection).await == Verdict::Gone {
                tracing::info!(peer = %remote, "the process of a peer is gone; its flows are reset");
                self.metrics.data_connection_refused();
                return connection.close(CLOSE_DOWN.into(), b"refused");
            }
            perch = None;
            tokio::time::sleep(patience.contradicted()).await;
        }
    }

    /// Returns the datagrams that went to the peer and came from it.
    fn packets(&self, connection: &Connection) -> (u64, u64) {
        let links = self.links.load();
        let link = links.get(&self.node).and_then(|link| link.connection.quic());
        let all = [Some(connection), link].into_iter().flatten().map(Connection::stats);
        all.fold((0, 0), |sums, one| (sums.0 + one.udp_tx.datagrams, sums.1 + one.udp_rx.datagrams))
    }
}

/// Sends one datagram. Makes the socket when there is none for this address. Returns whether an earlier one was refused.
pub(super) async fn ask(perch: &mut Option<UdpSocket>, to: SocketAddr) -> bool {
    if perch.as_ref().is_none_or(|socket| socket.peer_addr().ok() != Some(to)) {
        *perch = connected(to).await.ok();
    }
    match perch {
        Some(socket) => {
            let sent = socket.send(&[]).await;
            sent.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        }
        None => false,
    }
}

/// Waits until a datagram is refused or the pause is over. Without a socket nothing is.
pub(super) async fn is_refused(perch: Option<&UdpSocket>, pause: Duration) -> bool {
    let refusal = async {
        match perch {
            Some(socket) => next_error(socket).await.kind() == io::ErrorKind::ConnectionRefused,
            None => std::future::pending().await,
        }
    };
    let began = clock::now().mono;
    let is_refused = tokio::time::timeout(pause, refusal).await.unwrap_or(false);
    if !is_refused {
        // Another error, for example of a network that is away, comes at once.
        clock::sleep_until(Some(began + pause)).await;
    }
    is_refused
}

/// Resolves when this machine's system, or that of the other end, says that nobody can be reached there. For who waits for a
/// first answer: nothing is sent before that is late.
pub(crate) async fn nobody(to: SocketAddr) -> Outcome {
    let no_route = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Outcome::NoRoute("a firewall of this machine forbids it".to_owned())
        }
        _ => Outcome::NoRoute(error.to_string()),
    };
    if let Err(error) = connected(to).await {
        return no_route(error);
    }
    clock::sleep_until(Some(clock::now().mono + LATE)).await;
    loop {
        // An error of a socket is told once, so each question has one of its own.
        let socket = match connected(to).await {
            Ok(socket) => socket,
            Err(error) => return no_route(error),
        };
        let asked = async {
            match socket.send(&[]).await {
                Ok(_) => next_error(&socket).await,
                Err(error) => error,
            }
        };
        match tokio::time::timeout(EVERY, asked).await {
            Ok(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Outcome::Refused,
            Ok(error) => return no_route(error),
            Err(_) => {}
        }
    }
}

async fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Returns the next error that the system reports for the socket. What is sent to it is not read: nobody has a reason to,
/// and the system keeps no more than the socket's buffer holds.
async fn next_error(socket: &UdpSocket) -> io::Error {
    let reported = || socket.take_error()?.ok_or_else(|| io::ErrorKind::WouldBlock.into());
    socket.async_io(Interest::ERROR, reported).await.unwrap_or_else(|error| error)
}

/// Looks whether the peer still speaks.
pub(super) async fn look(connection: &Connection) -> Verdict {
    let received = || connection.stats().udp_rx.datagrams;
    // A live peer acknowledges it. If it cannot leave because the window is full, that is full of packets which ask the
    // same. The peer takes it for what keeps connections alive.
    let ask = || drop(connection.send_datagram(bytes::Bytes::new()));
    let mut look = Look::new(clock::now().mono, connection.rtt(), received());
    ask();
    loop {
        tokio::time::sleep(SLICE).await;
        match look.sample(clock::now().mono, received()) {
            Step::Wait => {}
            Step::Ask => ask(),
            Step::Done(verdict) => return verdict,
        }
    }
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The peer was asked and said nothing.
    Gone,
    /// The peer speaks, so the refusal was not its own.
    Alive,
}

/// What to do after a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    /// Something came, perhaps from before the end: ask again.
    Ask,
    Done(Verdict),
}

/// Decides whether a refusal is true: it is if nothing comes for some time although the peer was asked at its beginning.
/// Anybody on the path can send the refusal, so it proves nothing alone.
#[derive(Debug)]
struct Look {
    /// Silence that is enough.
    enough: Duration,
    quiet: Duration,
    looked: Duration,
    last: Instant,
    received: u64,
}

impl Look {
    /// Begins when the peer is asked for the first time. `received` is the count of datagrams so far.
    fn new(now: Instant, rtt: Duration, received: u64) -> Self {
        let enough = QUIET_LEAST.max(rtt.saturating_mul(QUIET_ROUND_TRIPS));
        Self { enough, quiet: Duration::ZERO, looked: Duration::ZERO, last: now, received }
    }

    /// Takes the count of received datagrams, about every [`SLICE`].
    fn sample(&mut self, now: Instant, received: u64) -> Step {
        // This process may have stood still, with answers unread: time in which nobody looked is no silence.
        let slice = now.saturating_duration_since(self.last).min(SLICE);
        self.last = now;
        self.looked += slice;
        let is_over = self.looked >= 2 * self.enough;
        if received != self.received {
            self.received = received;
            self.quiet = Duration::ZERO;
            return if is_over { Step::Done(Verdict::Alive) } else { Step::Ask };
        }
        self.quiet += slice;
        if self.quiet >= self.enough {
            Step::Done(Verdict::Gone)
        } else if is_over {
            Step::Done(Verdict::Alive)
        } else {
            Step::Wait
        }
    }
}

/// How often a canary is sent: more often while packets are unanswered.
#[derive(Debug, Default)]
struct Pace {
    /// Packets sent when it was last seen that some had come, and packets received until then.
    sent: u64,
    received: u64,
    /// How many more may hurry after a single packet.
    hurries: u32,
    /// Turns until the next one that does not.
    left: u32,
}

impl Pace {
    const TURNS: u32 = (EVERY.as_millis() / TURN.as_millis()) as u32;

    /// Returns whether to send one in this turn.
    fn next(&mut self, sent: u64, received: u64) -> bool {
        if received != self.received {
            (self.sent, self.received, self.hurries) = (sent, received, HURRIES);
        }
        let hurries = match sent.saturating_sub(self.sent) {
            0 => false,
            1 => self.hurries > 0,
            _ => true,
        };
        let is_due = self.left == 0;
        self.hurries = self.hurries.saturating_sub(u32::from(hurries));
        self.left = if hurries || is_due { Self::TURNS } else { self.left } - 1;
        hurries || is_due
    }
}

/// How long refusals are not listened to after one that was not true: longer each time.
#[derive(Debug, Default)]
struct Patience {
    last: Duration,
}

impl Patience {
    fn contradicted(&mut self) -> Duration {
        self.last = (2 * self.last).clamp(PAUSE_LEAST, PAUSE_MOST);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);

    /// Takes samples in regular slices until there is a verdict; returns it with the milliseconds that it took and how often
    /// the peer was asked again. `received` says the count by the milliseconds.
    fn judge(rtt: Duration, received: impl Fn(u64) -> u64) -> (Verdict, u64, usize) {
        let start = clock::now().mono;
        let mut look = Look::new(start, rtt, received(0));
        let mut asked = 0;
        for ms in (50..10_000).step_by(50) {
            match look.sample(start + Duration::from_millis(ms), received(ms)) {
                Step::Wait => {}
                Step::Ask => asked += 1,
                Step::Done(verdict) => return (verdict, ms, asked),
            }
        }
        panic!("no verdict");
    }

    #[test]
    fn silence_after_a_refusal_is_the_end() {
        assert_eq!(judge(SHORT, |_| 7), (Verdict::Gone, 250, 0));
    }

    #[test]
    fn a_long_path_gets_three_round_trips() {
        assert_eq!(judge(Duration::from_millis(200), |_| 7), (Verdict::Gone, 600, 0));
        let answers = |ms: u64| if ms < 550 { 7 } else { 8 };
        let (verdict, _, asked) = judge(Duration::from_millis(200), answers);
        assert_eq!((verdict, asked), (Verdict::Gone, 1), "one word, then silence again");
    }

    #[test]
    fn whoever_answers_lives_whatever_is_refused() {
        assert_eq!(judge(SHORT, |ms| ms).0, Verdict::Alive);
        let now_and_then = |ms: u64| ms / 200;
        assert_eq!(judge(SHORT, now_and_then).0, Verdict::Alive);
    }

    #[test]
    fn what_came_before_the_end_only_delays_the_verdict() {
        let unread = |ms: u64| ms.min(100);
        assert_eq!(judge(SHORT, unread), (Verdict::Gone, 350, 2));
    }

    #[test]
    fn time_in_which_this_process_stood_still_is_no_silence() {
        let start = clock::now().mono;
        let mut look = Look::new(start, SHORT, 7);
        let late = start + Duration::from_secs(5);
        assert_eq!(look.sample(late, 7), Step::Wait, "the answer may be unread");
        assert_eq!(look.sample(late + SLICE, 8), Step::Ask);
    }

    #[test]
    fn some_canaries_hurry_while_packets_are_unanswered() {
        let mut pace = Pace::default();
        let mut turns =
            |sent, received| -> Vec<usize> { (0..20).filter(|_| pace.next(sent, received)).collect() };
        assert_eq!(turns(10, 20), [0, 10], "all is answered");
        assert_eq!(turns(11, 20), [0, 1, 2, 3, 13], "one is not");
        assert_eq!(turns(12, 20).len(), 20, "nor is another");
        assert_eq!(turns(12, 21), [9, 19], "an answer");
    }

    #[test]
    fn who_lies_is_asked_less_and_less() {
        let mut patience = Patience::default();
        let pauses: Vec<_> = (0..9).map(|_| patience.contradicted().as_secs()).collect();
        assert_eq!(pauses, [4, 8, 16, 32, 64, 128, 256, 512, 600]);
    }

    #[tokio::test]
    async fn a_closed_port_refuses_and_an_open_one_does_not() {
        for ip in ["127.0.0.1", "::1"] {
            let ip: std::net::IpAddr = ip.parse().expect("address");
            // A host without IPv6 has no such address.
            let Ok(peer) = UdpSocket::bind((ip, 0)).await else { continue };
            let to = peer.local_addr().expect("bound");
            let mut perch = None;
            assert!(!ask(&mut perch, to).await && !is_refused(perch.as_ref(), EVERY).await);
            let mut buffer = [0; 16];
            assert_eq!(peer.recv(&mut buffer).await.expect("receives"), 0, "it carries nothing");
            drop(peer);
            for _ in 0..2 {
                assert!(ask(&mut perch, to).await || is_refused(perch.as_ref(), EVERY).await, "each time");
            }
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_believed_after_a_second_and_an_open_one_never_refuses() {
        let peer = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let to = peer.local_addr().expect("bound");
        let longer = LATE + 2 * EVERY;
        assert!(tokio::time::timeout(longer, nobody(to)).await.is_err());
        drop(peer);
        let began = clock::now().mono;
        assert_eq!(nobody(to).await, Outcome::Refused);
        assert!(clock::now().mono - began >= LATE);
    }

    #[tokio::test]
    async fn a_network_that_is_not_there_is_told_at_once() {
        // Without the right to broadcast the system takes no connection to it.
        let to = "255.255.255.255:9".parse().expect("address");
        assert!(matches!(nobody(to).await, Outcome::NoRoute(_)));
    }

    #[tokio::test]
    async fn another_address_gets_another_socket() {
        let (one, other) = (UdpSocket::bind("127.0.0.1:0").await, UdpSocket::bind("127.0.0.1:0").await);
        let (one, other) = (one.expect("binds"), other.expect("binds"));
        let mut perch = None;
        for peer in [one, other] {
            let to = peer.local_addr().expect("bound");
            assert!(!ask(&mut perch, to).await);
            assert_eq!(perch.as_ref().expect("a socket").peer_addr().expect("connected"), to);
        }
    }
}
