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
    /// What it is probed for: all names first, then those below each suffix.
    loops: Vec<Loop>,
    answered: u64,
    failed: u64,
}

/// Whether a server sends names back to us.
#[derive(Debug)]
struct Loop {
    /// `None`: all names; else those below this suffix, which it may ask us for as our own.
    suffix: Option<Name>,
    /// The probe that is out or was last.
    probe: Option<Name>,
    came_back: bool,
    looping: bool,
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
    pub(super) fn new(addresses: impl IntoIterator<Item = SocketAddr>, suffixes: &[Name]) -> Self {
        let unknown = |suffix| Loop { suffix, probe: None, came_back: false, looping: false };
        let new = |address| Upstream {
            address,
            failures: 0,
            loops: [None].into_iter().chain(suffixes.iter().cloned().map(Some)).map(unknown).collect(),
            answered: 0,
            failed: 0,
        };
        Self(addresses.into_iter().map(new).collect())
    }

    /// Returns whom to ask for a name, below this suffix if below any, one after the other, and how long each. Empty when
    /// every server sends it back.
    ///
    /// While none has answered lately each is asked once and briefly, so that clients learn it soon.
    pub(super) fn plan(&self, suffix: Option<&Name>) -> Vec<(SocketAddr, Duration)> {
        let asked = self.0.iter().filter(|upstream| !upstream.loops(None) && !upstream.loops(suffix));
        let (up, failing): (Vec<_>, Vec<_>) = asked.partition(|upstream| !upstream.is_failing());
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
    pub(super) fn probing(&mut self, address: SocketAddr, suffix: Option<&Name>, probe: &Name) {
        for found in self.loops_of(address, suffix) {
            found.probe = Some(probe.clone());
            found.came_back = false;
        }
    }

    /// Takes a name that was asked of us. Returns the server it was sent to when it is a probe of ours, and
    /// whether the server is known only now to send all names back.
    pub(super) fn came_back(&mut self, name: &Name) -> Option<(SocketAddr, bool)> {
        let mut all = self.0.iter_mut().flat_map(|upstream| {
            let address = upstream.address;
            upstream.loops.iter_mut().map(move |found| (address, found))
        });
        let (address, found) = all.find(|(_, found)| found.probe.as_ref() == Some(name))?;
        found.came_back = true;
        let is_news = !found.looping && found.suffix.is_none();
        found.looping = true;
        Some((address, is_news))
    }

    /// Ends a probe that the server answered. Returns whether a loop has ended with it: only an answer to a name
    /// that did not come back shows that.
    pub(super) fn probed(&mut self, address: SocketAddr, suffix: Option<&Name>) -> bool {
        let ended = |found: &mut Loop| {
            let ended = found.looping && !found.came_back;
            found.looping &= !ended;
            ended
        };
        self.loops_of(address, suffix).map(ended).last().unwrap_or_default()
    }

    pub(super) fn status(&self) -> Vec<UpstreamStatus> {
        self.0.iter().map(Upstream::status).collect()
    }

    fn loops_of<'a>(
        &'a mut self,
        address: SocketAddr,
        suffix: Option<&'a Name>,
    ) -> impl Iterator<Item = &'a mut Loop> {
        let all = self.at(address).flat_map(|upstream| &mut upstream.loops);
        all.filter(move |found| found.suffix.as_ref() == suffix)
    }

    fn at(&mut self, address: SocketAddr) -> impl Iterator<Item = &mut Upstream> {
        self.0.iter_mut().filter(move |upstream| upstream.address == address)
    }
}

impl Upstream {
    fn is_failing(&self) -> bool {
        self.failures >= FAILING_AFTER
    }

    fn loops(&self, suffix: Option<&Name>) -> bool {
        self.loops.iter().any(|found| found.looping && found.suffix.as_ref() == suffix)
    }

    fn status(&self) -> UpstreamStatus {
        let state = match (self.loops(None), self.is_failing()) {
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
        upstreams.plan(None).into_iter().map(|(address, _)| address).collect()
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("name")
    }

    #[test]
    fn tries_go_round_and_end_before_clients_give_up() {
        let one = Upstreams::new([address(1)], &[]);
        assert_eq!(asked(&one), [address(1); 3]);
        assert!(
            one.plan(None).iter().map(|(_, patience)| *patience).sum::<Duration>() < Duration::from_secs(4)
        );
        let two = Upstreams::new([address(1), address(2)], &[]);
        assert_eq!(asked(&two), [address(1), address(2), address(1)]);
    }

    #[test]
    fn a_failing_server_is_asked_last_until_it_answers() {
        let mut two = Upstreams::new([address(1), address(2)], &[]);
        (0..3).for_each(|_| two.failed(address(1)));
        assert_eq!(asked(&two), [address(2), address(1), address(2)]);
        two.answered(address(1));
        assert_eq!(asked(&two), [address(1), address(2), address(1)]);
    }

    #[test]
    fn while_all_fail_each_is_asked_once_and_briefly() {
        let mut two = Upstreams::new([address(1), address(2)], &[]);
        (0..3).for_each(|_| two.failed(address(1)));
        (0..3).for_each(|_| two.failed(address(2)));
        assert_eq!(two.plan(None), [(address(1), TRIES[0]), (address(2), TRIES[0])]);
    }

    #[test]
    fn a_server_that_loops_is_asked_nothing_until_a_probe_stays_away() {
        let mut one = Upstreams::new([address(1)], &[]);
        one.probing(address(1), None, &name("_loop-x.internal."));
        assert_eq!(one.came_back(&name("_loop-y.internal.")), None);
        assert_eq!(one.came_back(&name("_LOOP-X.internal.")), Some((address(1), true)));
        assert_eq!(one.came_back(&name("_loop-x.internal.")), Some((address(1), false)));
        assert!(!one.probed(address(1), None), "the loop is still there");
        assert_eq!((asked(&one), one.status()[0].state), (Vec::new(), UpstreamState::Looping));

        one.probing(address(1), None, &name("_loop-z.internal."));
        assert_eq!(one.came_back(&name("_loop-x.internal.")), None, "an old probe says nothing");
        assert!(one.probed(address(1), None));
        assert!(!one.probed(address(1), None), "it ends once");
        assert_eq!(asked(&one), [address(1); 3]);
    }

    #[test]
    fn a_server_that_sends_back_what_lies_below_a_suffix_is_not_asked_for_that_and_for_all_else() {
        let suffix = name("corp.example.");
        let mut two = Upstreams::new([address(1), address(2)], std::slice::from_ref(&suffix));
        two.probing(address(1), Some(&suffix), &name("_loop-x.corp.example."));
        assert_eq!(two.came_back(&name("_loop-x.corp.example.")), Some((address(1), false)));
        assert!(!two.probed(address(1), Some(&suffix)), "the loop is still there");
        let asked: Vec<_> = two.plan(Some(&suffix)).into_iter().map(|(address, _)| address).collect();
        assert_eq!(asked, [address(2); 3]);
        assert_eq!((two.plan(None).len(), two.status()[0].state), (3, UpstreamState::Up));

        two.probing(address(1), Some(&suffix), &name("_loop-y.corp.example."));
        assert!(two.probed(address(1), Some(&suffix)));
        assert_eq!(two.plan(Some(&suffix))[0].0, address(1));
    }
}
