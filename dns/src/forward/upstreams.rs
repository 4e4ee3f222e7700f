//! Upstream servers: whom to ask, in which order and for how long.
//!
//! Owns: which servers answer, which one sends our questions back to us. Must not know: sockets, time, what is asked.
//! Driven by: `forward`, before and after each question and each probe.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::rr::Name;

/// The servers, in the order of the configuration.
#[derive(Debug)]
pub(super) struct Upstreams(Vec<Upstream>);

#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    /// Questions in a row that got no answer.
    failures: u32,
    /// The probe that is out or was last.
    probe: Option<Name>,
    came_back: bool,
    looping: bool,
    answered: u64,
    failed: u64,
}

/// How a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    /// It answers, or was not asked yet.
    Up,
    /// It left three questions in a row without an answer. It is asked after the others.
    Failing,
    /// It sends our questions back to us. It is asked nothing.
    Looping,
}

/// One server as `status` and metrics show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// Its address.
    pub address: SocketAddr,
    /// How it does.
    pub state: UpstreamState,
    /// Answers since the start.
    pub answered: u64,
    /// Tries without an answer since the start.
    pub failed: u64,
}

impl UpstreamState {
    /// Returns its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Failing => "failing",
            Self::Looping => "looping",
        }
    }
}

impl Upstreams {
    pub(super) fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let new = |address| Upstream {
            address,
            failures: 0,
            probe: None,
            came_back: false,
            looping: false,
            answered: 0,
            failed: 0,
        };
        Self(addresses.into_iter().map(new).collect())
    }

    /// Returns whom to ask one after the other, and how long each. Empty when every server loops.
    ///
    /// While none has answered lately each is asked once and briefly, so that clients learn it soon.
    pub(super) fn plan(&self) -> Vec<(SocketAddr, Duration)> {
        let (up, failing): (Vec<_>, Vec<_>) =
            self.0.iter().filter(|upstream| !upstream.looping).partition(|upstream| !upstream.is_failing());
        let brief = up.is_empty();
        let order: Vec<_> = up.into_iter().chain(failing).map(|upstream| upstream.address).collect();
        let tries = if brief { order.len() } else { TRIES.len() };
        let [first, ..] = TRIES;
        order
            .into_iter()
            .cycle()
            .zip(TRIES.map(|patience| if brief { first } else { patience }))
            .take(tries)
            .collect()
    }

    /// Returns how long a probe waits.
    pub(super) const fn probe_patience() -> Duration {
        let [first, ..] = TRIES;
        first
    }

    pub(super) fn answered(&mut self, address: SocketAddr) {
        for upstream in self.at(address) {
            upstream.failures = 0;
            upstream.answered += 1;
        }
    }

    pub(super) fn failed(&mut self, address: SocketAddr) {
        for upstream in self.at(address) {
            upstream.failures = upstream.failures.saturating_add(1);
            upstream.failed += 1;
        }
    }

    /// Notes the name that is sent to a server to see whether it comes back.
    pub(super) fn probing(&mut self, address: SocketAddr, probe: &Name) {
        for upstream in self.at(address) {
            upstream.probe = Some(probe.clone());
            upstream.came_back = false;
        }
    }

    /// Takes a name that was asked of us. Returns the server it was sent to when it is a probe of ours, and
    /// whether it is the first one to come back.
    pub(super) fn came_back(&mut self, name: &Name) -> Option<(SocketAddr, bool)> {
        let upstream = self.0.iter_mut().find(|upstream| upstream.probe.as_ref() == Some(name))?;
        upstream.came_back = true;
        let is_news = !upstream.looping;
        upstream.looping = true;
        Some((upstream.address, is_news))
    }

    /// Ends a probe that the server answered. Returns whether a loop has ended with it: only an answer to a name
    /// that did not come back shows that.
    pub(super) fn probed(&mut self, address: SocketAddr) -> bool {
        let ended = |upstream: &mut Upstream| {
            let ended = upstream.looping && !upstream.came_back;
            upstream.looping &= !ended;
            ended
        };
        self.at(address).map(ended).last().unwrap_or_default()
    }

    pub(super) fn status(&self) -> Vec<UpstreamStatus> {
        self.0.iter().map(Upstream::status).collect()
    }

    fn at(&mut self, address: SocketAddr) -> impl Iterator<Item = &mut Upstream> {
        self.0.iter_mut().filter(move |upstream| upstream.address == address)
    }
}

impl Upstream {
    fn is_failing(&self) -> bool {
        self.failures >= FAILING_AFTER
    }

    fn status(&self) -> UpstreamStatus {
        let state = match (self.looping, self.is_failing()) {
            (true, _) => UpstreamState::Looping,
            (false, true) => UpstreamState::Failing,
            (false, false) => UpstreamState::Up,
        };
        UpstreamStatus { address: self.address, state, answered: self.answered, failed: self.failed }
    }
}

/// How long each try waits, 3.8 s together: stub resolvers give up after 5 s, and a SERVFAIL before that says
/// whose fault it is.
const TRIES: [Duration; 3] =
    [Duration::from_millis(600), Duration::from_millis(1200), Duration::from_millis(2000)];

/// One lost datagram, or one name whose own servers are slow, says nothing about the upstream server.
const FAILING_AFTER: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 53))
    }

    fn asked(upstreams: &Upstreams) -> Vec<SocketAddr> {
        upstreams.plan().into_iter().map(|(address, _)| address).collect()
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("name")
    }

    #[test]
    fn tries_go_round_and_end_before_clients_give_up() {
        let one = Upstreams::new([address(1)]);
        assert_eq!(asked(&one), [address(1); 3]);
        assert!(one.plan().iter().map(|(_, patience)| *patience).sum::<Duration>() < Duration::from_secs(4));
        let two = Upstreams::new([address(1), address(2)]);
        assert_eq!(asked(&two), [address(1), address(2), address(1)]);
    }

    #[test]
    fn a_failing_server_is_asked_last_until_it_answers() {
        let mut two = Upstreams::new([address(1), address(2)]);
        (0..3).for_each(|_| two.failed(address(1)));
        assert_eq!(asked(&two), [address(2), address(1), address(2)]);
        two.answered(address(1));
        assert_eq!(asked(&two), [address(1), address(2), address(1)]);
    }

    #[test]
    fn while_all_fail_each_is_asked_once_and_briefly() {
        let mut two = Upstreams::new([address(1), address(2)]);
        (0..3).for_each(|_| two.failed(address(1)));
        (0..3).for_each(|_| two.failed(address(2)));
        assert_eq!(two.plan(), [(address(1), TRIES[0]), (address(2), TRIES[0])]);
    }

    #[test]
    fn a_server_that_loops_is_asked_nothing_until_a_probe_stays_away() {
        let mut one = Upstreams::new([address(1)]);
        one.probing(address(1), &name("_loop-x.internal."));
        assert_eq!(one.came_back(&name("_loop-y.internal.")), None);
        assert_eq!(one.came_back(&name("_LOOP-X.internal.")), Some((address(1), true)));
        assert_eq!(one.came_back(&name("_loop-x.internal.")), Some((address(1), false)));
        assert!(!one.probed(address(1)), "the loop is still there");
        assert_eq!((asked(&one), one.status()[0].state), (Vec::new(), UpstreamState::Looping));

        one.probing(address(1), &name("_loop-z.internal."));
        assert_eq!(one.came_back(&name("_loop-x.internal.")), None, "an old probe says nothing");
        assert!(one.probed(address(1)));
        assert!(!one.probed(address(1)), "it ends once");
        assert_eq!(asked(&one), [address(1); 3]);
    }
}
