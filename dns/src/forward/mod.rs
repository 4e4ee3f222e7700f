//! Forwarding: names of others, asked of the upstream servers that the configuration names.
//!
//! Owns: when a question leaves, how many wait at once, what the client hears. Must not know: sockets of clients, where
//! settings come from. Driven by: `server`, with questions outside of our zones; the daemon, which runs
//! [`Forwarder::watch`] and shows [`Forwarder::status`]. Why there is no resolver library behind it:
//! `docs/adr/0021-an-own-forwarder.md`.
//!
//! ```text
//! rules (may it leave?) -> cache -> flights (is it out already?) -> upstreams (whom to ask) -> exchange (sockets)
//!        -> reply (does it answer?) -> rules (what of it may come in?) -> cache
//! ```

mod cache;
mod exchange;
mod flights;
mod fuzz;
mod metrics;
mod reply;
mod rules;
mod upstreams;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use thiserror::Error;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout};

use crate::{Answer, ExtendedError, Question, Zones};
use cache::{Cache, Key};
use flights::Flights;
use metrics::ForwardMetrics;
use rules::{Content, Foreign, Rules};
use upstreams::Upstreams;

pub use fuzz::fuzz_upstream;
pub use metrics::{Counters as ForwardCounters, ForwardCounts};
pub use upstreams::{UpstreamState, UpstreamStatus};

/// Most upstream servers. Tries end after three; more than two are for people who like lists.
pub const MAX_UPSTREAMS: usize = 4;

/// How the forwarder is set up.
#[derive(Clone, Debug)]
pub struct ForwardSettings {
    /// Whom to ask, best first.
    pub upstreams: Vec<SocketAddr>,
    /// Whether public names may have no addresses of private networks, and the suffixes for which that does not
    /// count; `None`: off.
    pub rebind_allow: Option<Vec<Name>>,
}

/// Why a server cannot be an upstream server. The operator's fault; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UpstreamError {
    /// A stub that sends names back to whom it got them from.
    #[error(
        "{0} is the stub of systemd-resolved, which sends names back to this daemon; name the servers it uses, \
         resolvectl dns lists them"
    )]
    Stub(SocketAddr),
    /// An address of the mesh.
    #[error(
        "{0} is an address of this mesh, names would go in a circle; name the DNS server of your network, for example \
         that of /etc/resolv.conf before this daemon was put there"
    )]
    Pool(SocketAddr),
    /// The daemon's own listener.
    #[error(
        "{0} is where this daemon answers DNS, names would go in a circle; name the DNS server of your network"
    )]
    Own(SocketAddr),
    /// No address of one server.
    #[error("{0} is no address of a server; write for example 192.0.2.53 or [2001:db8::53]:53")]
    Nobody(SocketAddr),
}

/// Refuses what cannot be an upstream server, whatever runs there.
///
/// # Errors
/// See [`UpstreamError`].
pub fn check_upstream(address: SocketAddr) -> Result<(), UpstreamError> {
    let ip = address.ip().to_canonical();
    if STUBS.contains(&ip) && address.port() == 53 {
        return Err(UpstreamError::Stub(address));
    }
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if ip.is_unspecified() || ip.is_multicast() || broadcast || address.port() == 0 {
        return Err(UpstreamError::Nobody(address));
    }
    Ok(())
}

/// Where systemd-resolved listens; it is told names by whom it asks.
const STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// What of a client's question goes along to upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Asked {
    /// RD: without it nobody else is asked.
    pub recursion_desired: bool,
    /// DO: send DNSSEC records along.
    pub dnssec_ok: bool,
    /// CD: the client validates itself.
    pub checking_disabled: bool,
}

/// A change that people should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamChange {
    /// The server.
    pub address: SocketAddr,
    /// Its state from now on.
    pub now: UpstreamState,
}

/// The forwarder of a node.
pub struct Forwarder {
    rules: Rules,
    upstreams: Mutex<Upstreams>,
    cache: Cache,
    flights: Flights<Key, Reached>,
    /// Turns of clients that wait.
    waiting: Semaphore,
    /// Turns of questions that are out.
    out: Semaphore,
    metrics: ForwardMetrics,
    /// A loop was found: probes come sooner from now on.
    looped: Notify,
    report: Box<dyn Fn(UpstreamChange) + Send + Sync>,
}

/// What came of a question.
type Reached = Result<Content, Trouble>;

/// Why a client gets no answer of upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trouble {
    Foreign(Foreign),
    Unanswered(String),
    Full,
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").field("upstreams", &self.upstreams).finish_non_exhaustive()
    }
}

impl Forwarder {
    /// Makes a forwarder for a node that answers where `is_own` says; `report` hears of loops that begin and end, and
    /// must not block. Nothing is sent yet.
    ///
    /// # Errors
    /// One of the servers cannot be one.
    pub fn new(
        settings: ForwardSettings,
        zone: Arc<Zones>,
        is_own: impl Fn(SocketAddr) -> bool,
        report: impl Fn(UpstreamChange) + Send + Sync + 'static,
    ) -> Result<Self, UpstreamError> {
        for address in &settings.upstreams {
            check_upstream(*address)?;
            if is_own(*address) {
                return Err(UpstreamError::Own(*address));
            }
            if matches!(address.ip().to_canonical(), IpAddr::V4(ip) if zone.primary().contains(ip)) {
                return Err(UpstreamError::Pool(*address));
            }
        }
        let rules = Rules::new(zone, settings.rebind_allow);
        let suffixes: Vec<_> = rules.suffixes().cloned().collect();
        let upstreams = Upstreams::new(settings.upstreams.into_iter().take(MAX_UPSTREAMS), &suffixes);
        Ok(Self {
            rules,
            upstreams: Mutex::new(upstreams),
            cache: Cache::new(),
            flights: Flights::default(),
            waiting: Semaphore::new(MAX_WAITING),
            out: Semaphore::new(MAX_OUT),
            metrics: ForwardMetrics::default(),
            looped: Notify::new(),
            report: Box::new(report),
        })
    }

    /// Answers a question that is about none of our names, or returns `None` when nobody else may be asked either.
    ///
    /// Takes at most 3.9 s.
    ///
    /// # Cancel safety
    /// May be dropped; others that wait for the same answer ask again.
    pub async fn forward(&self, question: &Question, asked: Asked) -> Option<Answer> {
        if self.is_own_probe(&question.name) || !asked.recursion_desired || !self.rules.may_leave(question) {
            return None;
        }
        if let Some(suffix) = self.rules.suffix_over(&question.name)
            && !self.upstreams().plan(None).is_empty()
            && self.upstreams().plan(Some(suffix)).is_empty()
        {
            return Some(self.rules.absent(&question.name, suffix));
        }
        let key = Key::new(question, asked);
        if let Some(content) = self.cache.get(&key, Instant::now()) {
            self.metrics.cached();
            return Some(passed(content, question));
        }
        let reached = match self.waiting.try_acquire() {
            Ok(_turn) => self.flights.join(&key, self.reach(question, asked, &key)).await,
            Err(_) => Err(Trouble::Full),
        };
        self.count(&reached);
        Some(reached.map_or_else(refused, |content| passed(content, question)))
    }

    /// Sends a probe to each server now and each minute, sooner while one loops or fails. Never returns.
    ///
    /// A probe is a random name that nobody has, one below each suffix too. When it is asked of us, the server asks us what
    /// we ask of it.
    pub async fn watch(&self) {
        loop {
            for suffix in [None].into_iter().chain(self.rules.suffixes().map(Some)) {
                for upstream in self.status() {
                    self.probe(upstream.address, suffix).await;
                }
            }
            let well = self.status().iter().all(|upstream| upstream.state == UpstreamState::Up);
            let pause = if well { PROBE_EVERY } else { RETRY_EVERY };
            let _ = timeout(pause, self.looped.notified()).await;
        }
    }

    /// Returns how each server does, in the order of the configuration.
    pub fn status(&self) -> Vec<UpstreamStatus> {
        self.upstreams().status()
    }

    /// Reads every counter.
    pub fn counts(&self) -> ForwardCounts {
        self.metrics.counts()
    }

    /// Probes a server for all names, or for those below a suffix.
    async fn probe(&self, address: SocketAddr, suffix: Option<&Name>) {
        let below = suffix.map_or_else(|| vec![PROBE_SUFFIX], |suffix| suffix.iter().collect());
        let label = probe_label();
        let Ok(name) = Name::from_labels([label.as_bytes()].into_iter().chain(below)) else { return };
        self.upstreams().probing(address, suffix, &name);
        let question = Question { name, record_type: RecordType::A };
        let patience = Upstreams::probe_patience();
        let answer = exchange::ask(address, (&question, Asked::default()), patience, &self.metrics).await;
        let ended = {
            let mut upstreams = self.upstreams();
            match answer {
                Ok(_) => {
                    upstreams.answered(address);
                    upstreams.probed(address, suffix)
                }
                Err(_) => {
                    if suffix.is_none() {
                        upstreams.failed(address);
                    }
                    false
                }
            }
        };
        if ended && suffix.is_none() {
            (self.report)(UpstreamChange { address, now: UpstreamState::Up });
        }
    }

    fn is_own_probe(&self, name: &Name) -> bool {
        let Some((address, is_news)) = self.upstreams().came_back(name) else { return false };
        self.metrics.came_back();
        if is_news {
            self.looped.notify_one();
            (self.report)(UpstreamChange { address, now: UpstreamState::Looping });
        }
        true
    }

    /// Asks upstream and keeps the answer.
    async fn reach(&self, question: &Question, asked: Asked, key: &Key) -> Reached {
        let Ok(_turn) = self.out.try_acquire() else { return Err(Trouble::Full) };
        let message = match timeout(DEADLINE, self.ask(question, asked)).await {
            Ok(message) => message?,
            Err(_) => return Err(Trouble::Unanswered("no upstream server answered in time".to_owned())),
        };
        let content = self.rules.sift(question, message, asked.dnssec_ok).map_err(Trouble::Foreign)?;
        self.cache.keep(key.clone(), &content, Instant::now());
        Ok(content)
    }

    /// Asks one server after the other. One that says it will not or cannot answer gives way to the next; the last word
    /// counts.
    async fn ask(&self, question: &Question, asked: Asked) -> Result<Message, Trouble> {
        let suffix = self.rules.suffix_over(&question.name);
        let plan = self.upstreams().plan(suffix);
        let mut unwilling = None;
        let mut why = "every upstream server sends names back, see gossamer status".to_owned();
        let mut said_no = Vec::new();
        for (server, patience) in plan {
            if said_no.contains(&server) {
                continue;
            }
            match exchange::ask(server, (question, asked), patience, &self.metrics).await {
                Ok(message) => {
                    self.upstreams().answered(server);
                    let rcode = message.metadata.response_code;
                    if matches!(rcode, ResponseCode::NoError | ResponseCode::NXDomain) {
                        return Ok(message);
                    }
                    said_no.push(server);
                    unwilling = Some(message);
                }
                Err(failure) => {
                    // It may have asked us, and what is asked twice waits for itself.
                    if suffix.is_none() {
                        self.upstreams().failed(server);
                    }
                    why = format!("upstream {server} {failure}");
                }
            }
        }
        unwilling.ok_or(Trouble::Unanswered(why))
    }

    fn count(&self, reached: &Reached) {
        match reached {
            Ok(_) => self.metrics.answered(),
            Err(Trouble::Foreign(Foreign::Mesh)) => self.metrics.mesh_data(),
            Err(Trouble::Foreign(Foreign::Private)) => self.metrics.private(),
            Err(Trouble::Unanswered(_)) => self.metrics.unanswered(),
            Err(Trouble::Full) => self.metrics.overflowed(),
        }
    }

    fn upstreams(&self) -> MutexGuard<'_, Upstreams> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the answer; records of the asked name show it as it was asked.
fn passed(mut content: Content, question: &Question) -> Answer {
    for record in &mut content.answers {
        if record.name == question.name {
            record.name = question.name.clone();
        }
    }
    let Content { rcode, answers, authorities, additionals } = content;
    Answer { answers, authorities, additionals, forwarded: true, ..Answer::empty(rcode) }
}

fn refused(trouble: Trouble) -> Answer {
    let (rcode, code, text) = match trouble {
        Trouble::Foreign(Foreign::Mesh) => {
            let text =
                "upstream answered with a name or an address of this mesh, or below one of its suffixes";
            (ResponseCode::ServFail, ExtendedError::BLOCKED, text.to_owned())
        }
        Trouble::Foreign(Foreign::Private) => {
            let text = "upstream answered with a private address; allow the name with dns.rebind_allow";
            (ResponseCode::NoError, ExtendedError::BLOCKED, text.to_owned())
        }
        Trouble::Unanswered(why) => (ResponseCode::ServFail, ExtendedError::NO_REACHABLE_AUTHORITY, why),
        Trouble::Full => {
            let text = "too many questions wait for upstream";
            (ResponseCode::ServFail, ExtendedError::NOT_READY, text.to_owned())
        }
    };
    let extended = Some(ExtendedError { code, text });
    Answer { extended, forwarded: true, ..Answer::empty(rcode) }
}

/// A label that nobody else makes: 128 random bits.
fn probe_label() -> String {
    format!("_loop-{:032x}", rand::random::<u128>())
}

/// Probes stand beneath a domain that is never delegated, and not in the mesh zone: a server that asks us for mesh names
/// is as it should be, one that asks us for others goes in a circle.
const PROBE_SUFFIX: &[u8] = b"internal";

/// How often servers are probed (design section 7).
const PROBE_EVERY: Duration = Duration::from_secs(60);

/// How often while one of them loops or fails.
const RETRY_EVERY: Duration = Duration::from_secs(10);

/// Longest time a client waits. Stub resolvers give up after 5 s.
const DEADLINE: Duration = Duration::from_millis(3900);

/// Clients that wait for upstream at once, each for [`DEADLINE`] at most. hickory-server starts a task per datagram;
/// more than these are refused at once.
const MAX_WAITING: usize = 1024;

/// Different questions that are out at once. Each has a socket and up to 64 KiB over TCP.
const MAX_OUT: usize = 256;

#[cfg(test)]
mod tests;
