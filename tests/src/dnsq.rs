//! A small DNS client: one question per datagram, no cache, no retry that would hide a lost answer's cause.
//!
//! Owns: questions and what is read from answers. Must not know: daemons. Driven by: scenarios.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData};
use tokio::time::Instant;

pub use hickory_proto::op::ResponseCode;
pub use hickory_proto::rr::RecordType;

use crate::wait::{until, wait_for};

/// How long one datagram may take on loopback before it is asked again.
const ANSWER: Duration = Duration::from_millis(500);
/// How often a question is repeated before the server counts as silent.
const TRIES: usize = 4;
/// Option code of an extended error (RFC 8914 section 4).
const EXTENDED_ERROR: u16 = 15;

/// A server to ask, over one UDP socket.
#[derive(Debug)]
pub struct Resolver {
    socket: UdpSocket,
    server: SocketAddr,
    /// Id of the last question: a late answer must not pass for one to the next question.
    id: AtomicU16,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer(Message);

impl Resolver {
    /// Makes a client of `server` in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub fn new(server: SocketAddr) -> Result<Self> {
        let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
        let socket = UdpSocket::bind(any).context("a UDP socket")?;
        socket.connect(server).with_context(|| format!("the DNS server {server}"))?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(Self { socket, server, id: AtomicU16::new(0) })
    }

    /// Returns whom it asks.
    pub const fn server(&self) -> SocketAddr {
        self.server
    }

    /// Asks one question.
    ///
    /// # Errors
    /// No answer came although it was asked several times, or one that is no DNS message.
    pub fn ask(&self, name: &str, kind: RecordType) -> Result<Answer> {
        for _ in 0..TRIES {
            let id = self.id.fetch_add(1, Ordering::Relaxed);
            if self.socket.send(&question(id, name, kind)?).is_err() {
                sleep(Duration::from_millis(20)); // nobody listens yet: the answer was an ICMP error
                continue;
            }
            while let Some(message) = self.receive()? {
                if message.metadata.id == id {
                    return Ok(Answer(message));
                }
            }
        }
        bail!("{} does not answer {name} {kind}", self.server)
    }

    /// Asks until the answer is accepted; returns it and how long that took.
    ///
    /// # Errors
    /// No answer was accepted within `limit`.
    pub fn wait(
        &self,
        name: &str,
        kind: RecordType,
        limit: Duration,
        accept: impl Fn(&Answer) -> bool,
    ) -> Result<(Answer, Duration)> {
        let mut last = String::from("none");
        let found = wait_for(&format!("the wanted answer to {name} {kind}"), limit, || {
            let answer = self.ask(name, kind)?;
            last = answer.to_string();
            Ok(accept(&answer).then_some(answer))
        });
        found.with_context(|| format!("{} answered {last} in the end", self.server))
    }

    /// Waits until the name has an address.
    ///
    /// # Errors
    /// It has none within `limit`.
    pub fn address(&self, name: &str, limit: Duration) -> Result<Ipv4Addr> {
        let (answer, _) = self.wait(name, RecordType::A, limit, |answer| !answer.addresses().is_empty())?;
        answer.addresses().first().copied().context("an address")
    }

    /// Waits until the name does not exist.
    ///
    /// # Errors
    /// It exists after `limit`.
    pub fn gone(&self, name: &str, limit: Duration) -> Result<Duration> {
        until(&format!("NXDOMAIN for {name} at {}", self.server), limit, || {
            Ok(self.ask(name, RecordType::A)?.code() == ResponseCode::NXDomain)
        })
    }

    /// Reads one message; `None` when none came in time.
    fn receive(&self) -> Result<Option<Message>> {
        let mut bytes = [0; 4_096];
        match self.socket.recv(&mut bytes) {
            Ok(length) => Ok(Message::from_vec(&bytes[..length]).ok()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(None),
                ErrorKind::ConnectionRefused => {
                    sleep(Duration::from_millis(20));
                    Ok(None)
                }
                _ => Err(error).with_context(|| format!("the DNS server {}", self.server)),
            },
        }
    }
}

impl Answer {
    /// Reads an answer; `None` when the bytes are no DNS message.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Message::from_vec(bytes).ok().map(Self)
    }

    /// Returns the response code.
    pub const fn code(&self) -> ResponseCode {
        self.0.metadata.response_code
    }

    /// Returns whether the server speaks for the zone.
    pub const fn is_authoritative(&self) -> bool {
        self.0.metadata.authoritative
    }

    /// Returns whether the name exists and has no record of the type.
    pub fn is_nodata(&self) -> bool {
        self.code() == ResponseCode::NoError && self.0.answers.is_empty()
    }

    /// Returns the addresses of the answer section.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        let address = |data: &RData| if let RData::A(a) = data { Some(a.0) } else { None };
        self.0.answers.iter().filter_map(|record| address(&record.data)).collect()
    }

    /// Returns the addresses of the answer section, of either family.
    pub fn all_addresses(&self) -> Vec<IpAddr> {
        let address = |data: &RData| match data {
            RData::A(ip) => Some(IpAddr::V4(ip.0)),
            RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
            _ => None,
        };
        self.0.answers.iter().filter_map(|record| address(&record.data)).collect()
    }

    /// Returns the names that SRV and PTR records of the answer section point to, without the final dot.
    pub fn targets(&self) -> Vec<String> {
        let target = |data: &RData| match data {
            RData::SRV(srv) => Some(srv.target.to_ascii()),
            RData::PTR(ptr) => Some(ptr.0.to_ascii()),
            _ => None,
        };
        let targets = self.0.answers.iter().filter_map(|record| target(&record.data));
        targets.map(|name| name.trim_end_matches('.').to_owned()).collect()
    }

    /// Returns the addresses of the additional section, with the names they belong to.
    pub fn additional(&self) -> Vec<(String, Ipv4Addr)> {
        let address = |data: &RData| if let RData::A(a) = data { Some(a.0) } else { None };
        let found =
            self.0.additionals.iter().filter_map(|record| Some((&record.name, address(&record.data)?)));
        found.map(|(name, address)| (name.to_ascii().trim_end_matches('.').to_owned(), address)).collect()
    }

    /// Returns the strings of the TXT records.
    pub fn texts(&self) -> Vec<String> {
        let parts = self.0.answers.iter().flat_map(|record| match &record.data {
            RData::TXT(txt) => txt.txt_data.to_vec(),
            _ => Vec::new(),
        });
        parts.map(|part| String::from_utf8_lossy(&part).into_owned()).collect()
    }

    /// Returns the text of the extended DNS error (RFC 8914), when there is one.
    pub fn reason(&self) -> Option<String> {
        match self.0.edns.as_ref()?.option(EdnsCode::Unknown(EXTENDED_ERROR))? {
            EdnsOption::Unknown(_, data) => {
                Some(String::from_utf8_lossy(data.get(2..).unwrap_or_default()).into_owned())
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with {} records", self.code(), self.0.answers.len())?;
        self.reason().map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

/// Asks all servers the same question each millisecond. Returns for each, in order, when it first gave an
/// accepted answer, counted from `since`.
///
/// # Errors
/// A server has not given one within `limit` of the call.
pub fn first_accepted(
    servers: &[Resolver],
    name: &str,
    kind: RecordType,
    since: Instant,
    limit: Duration,
    accept: impl Fn(&Answer) -> bool,
) -> Result<Vec<Duration>> {
    let mut found = vec![None; servers.len()];
    let mut last = vec![String::from("nothing"); servers.len()];
    poll(servers, name, kind, (Instant::now() + limit, POLL), |server, answer, at| {
        last[server] = answer.to_string();
        if accept(&answer) {
            found[server].get_or_insert_with(|| at.duration_since(since));
        }
        found.iter().all(Option::is_some)
    })?;
    let at = |(index, found): (usize, Option<Duration>)| {
        let why = format!("server {index} answers {name} {kind} with {} after {limit:?}", last[index]);
        found.ok_or_else(|| crate::wait::Broken(why).into())
    };
    found.into_iter().enumerate().map(at).collect()
}

/// Asks all servers the same question `every` so often, until none has given an answer that `names` for
/// `quiet`. Returns when the last such answer came, counted from `since`; zero when none came.
///
/// # Errors
/// Such answers still come after `limit`.
pub fn last_naming(
    servers: &[Resolver],
    name: &str,
    kind: RecordType,
    since: Instant,
    (limit, quiet, every): (Duration, Duration, Duration),
    names: impl Fn(&Answer) -> bool,
) -> Result<Duration> {
    let mut last = since;
    let mut answered = vec![since; servers.len()];
    poll(servers, name, kind, (since + limit, every), |server, answer, at| {
        answered[server] = at;
        if names(&answer) {
            last = last.max(at);
        }
        answered.iter().all(|answer| *answer > last + quiet)
    })?;
    let open = !answered.iter().all(|answer| *answer > last + quiet);
    crate::promise!(!open, "{name} {kind} was still answered as before after {limit:?}");
    Ok(last.duration_since(since))
}

/// Asks every server `every` so often and hands over the answers, until `done` returns true or the time ends.
fn poll(
    servers: &[Resolver],
    name: &str,
    kind: RecordType,
    (end, every): (Instant, Duration),
    mut done: impl FnMut(usize, Answer, Instant) -> bool,
) -> Result<()> {
    for server in servers {
        server.socket.set_nonblocking(true)?;
    }
    let id = servers.iter().map(|server| server.id.fetch_add(1, Ordering::Relaxed)).max().unwrap_or_default();
    servers.iter().for_each(|server| server.id.store(id.wrapping_add(1), Ordering::Relaxed));
    let question = question(id, name, kind)?;
    let mut finished = false;
    let mut next = Instant::now();
    while !finished && Instant::now() < end {
        if Instant::now() >= next {
            next += every;
            for server in servers {
                // A full buffer or an ICMP error of an earlier question: the next millisecond asks again.
                let _ = server.socket.send(&question);
            }
        }
        for (index, server) in servers.iter().enumerate() {
            while let Some(message) = server.received() {
                if message.metadata.id != id {
                    continue; // late, and of another question
                }
                finished |= done(index, Answer(message), Instant::now());
            }
        }
        sleep(every / 5);
    }
    for server in servers {
        server.socket.set_nonblocking(false)?;
    }
    Ok(())
}

/// A thousand times a second.
pub const POLL: Duration = Duration::from_millis(1);

impl Resolver {
    /// Takes what has arrived, without waiting.
    fn received(&self) -> Option<Message> {
        let mut bytes = [0; 4_096];
        let length = self.socket.recv(&mut bytes).ok()?;
        Message::from_vec(&bytes[..length]).ok()
    }
}

/// Writes a question with this id; the id is the first two bytes.
///
/// # Errors
/// The name is none.
pub fn question(id: u16, name: &str, kind: RecordType) -> Result<Vec<u8>> {
    let mut name = Name::from_ascii(name).with_context(|| format!("the name {name}"))?;
    name.set_fqdn(true);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1_232);
    message.set_edns(edns);
    Ok(message.to_vec()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers `count` questions with a code, from a thread that ends with them.
    fn with_server<T>(codes: &[ResponseCode], client: impl FnOnce(&Resolver) -> T) -> T {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let resolver = Resolver::new(server.local_addr().expect("bound")).expect("a client");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for code in codes {
                    let mut bytes = [0; 512];
                    let (length, from) = server.recv_from(&mut bytes).expect("a question");
                    let mut message = Message::from_vec(&bytes[..length]).expect("DNS").into_response();
                    message.metadata.response_code = *code;
                    server.send_to(&message.to_vec().expect("encodes"), from).expect("sent");
                }
            });
            client(&resolver)
        })
    }

    #[test]
    fn an_answer_belongs_to_its_question() {
        with_server(&[ResponseCode::NXDomain, ResponseCode::NoError], |resolver| {
            let first = resolver.ask("a.mesh.internal", RecordType::A).expect("answered");
            assert_eq!(first.code(), ResponseCode::NXDomain);
            let second = resolver.ask("a.mesh.internal", RecordType::A).expect("answered");
            assert!(second.is_nodata() && second.reason().is_none());
        });
    }

    #[test]
    fn a_late_answer_is_not_taken_for_one_to_the_next_question() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let resolver = Resolver::new(server.local_addr().expect("bound")).expect("a client");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut last: Vec<u8> = Vec::new();
                // Each answer is sent again in front of the next one, as a slow server's second one would be.
                for code in [ResponseCode::NoError, ResponseCode::NXDomain] {
                    let mut bytes = [0; 512];
                    let (length, from) = server.recv_from(&mut bytes).expect("a question");
                    if !last.is_empty() {
                        server.send_to(&last, from).expect("sent");
                    }
                    let mut message = Message::from_vec(&bytes[..length]).expect("DNS").into_response();
                    message.metadata.response_code = code;
                    last = message.to_vec().expect("encodes");
                    server.send_to(&last, from).expect("sent");
                }
            });
            let ask = |name| resolver.ask(name, RecordType::A).expect("answered").code();
            assert_eq!(ask("a.mesh.internal"), ResponseCode::NoError);
            assert_eq!(ask("b.mesh.internal"), ResponseCode::NXDomain);
        });
    }

    #[test]
    fn the_first_accepted_answer_is_timed() {
        with_server(&[ResponseCode::NXDomain, ResponseCode::NoError], |resolver| {
            let servers = std::slice::from_ref(resolver);
            let accept = |answer: &Answer| answer.code() == ResponseCode::NoError;
            let limit = Duration::from_secs(5);
            let took = first_accepted(servers, "a.b", RecordType::A, Instant::now(), limit, accept);
            assert!(took.expect("accepted")[0] < limit);
        });
    }

    #[test]
    fn a_silent_server_breaks_the_promise() {
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let servers = [Resolver::new(silent.local_addr().expect("bound")).expect("a client")];
        let limit = Duration::from_millis(20);
        let took = first_accepted(&servers, "a.b", RecordType::A, Instant::now(), limit, |_| true);
        assert!(took.expect_err("silent").downcast_ref::<crate::wait::Broken>().is_some());
    }
}
