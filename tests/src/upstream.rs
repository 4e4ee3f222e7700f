//! An upstream DNS server with bad manners: what it does to a question follows from the name that is asked for.
//!
//! Owns: its manners and what it was asked. Must not know: daemons. Driven by: rows about forwarding.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record};

/// What a good answer says.
pub const TRUE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What a forged one says.
pub const FORGED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
/// Records of an answer that does not fit a datagram.
pub const MANY: u32 = 100;
/// Records of an answer that fits no buffer.
const HUGE: usize = 3_800;
/// Later than any client waits.
const LATE: Duration = Duration::from_millis(4_500);
const POLL: Duration = Duration::from_millis(20);

/// The server; it ends when it is dropped.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    asked: Mutex<Vec<String>>,
    /// Whom it sends names back to while it loops.
    back: Mutex<Option<SocketAddr>>,
    held: Mutex<Vec<Vec<u8>>>,
    loops: AtomicBool,
    /// Its forgeries have the right id and question and come from itself: nobody can tell them.
    forges_well: bool,
    ended: AtomicBool,
}

impl Upstream {
    /// Starts one on a free port of loopback. It sends probes for loops back until [`Self::mend`]; until
    /// [`Self::asks_back`] says whom, it keeps them.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub fn start(forges_well: bool) -> Result<Self> {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        udp.set_read_timeout(Some(POLL))?;
        let address = udp.local_addr()?;
        let tcp = TcpListener::bind(address)?;
        tcp.set_nonblocking(true)?;
        let shared = Arc::new(Shared { forges_well, loops: AtomicBool::new(true), ..Shared::default() });
        let (over_udp, over_tcp) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            spawn(move || over_udp.datagrams(&Arc::new(udp))),
            spawn(move || over_tcp.connections(&tcp)),
        ];
        Ok(Self { address, shared, threads })
    }

    /// Returns where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells it whom to send names back to.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub fn asks_back(&self, server: SocketAddr) -> Result<()> {
        *lock(&self.shared.back) = Some(server);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        for probe in lock(&self.shared.held).drain(..) {
            socket.send_to(&probe, server)?;
        }
        Ok(())
    }

    /// Ends the loop.
    pub fn mend(&self) {
        self.shared.loops.store(false, Ordering::Relaxed);
    }

    /// Returns the names it was asked for so far, without the last dot.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.shared.asked).clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Shared {
    fn datagrams(&self, socket: &Arc<UdpSocket>) {
        let mut buffer = [0; 4_096];
        while !self.ended.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
            // A datagram that cannot be sent is one that is lost.
            let _ = self.misbehave(socket, from, &query, &buffer[..length]);
        }
    }

    fn misbehave(
        &self,
        socket: &Arc<UdpSocket>,
        from: SocketAddr,
        query: &Message,
        bytes: &[u8],
    ) -> Result<()> {
        let name = query.queries.first().context("a question")?.name.to_ascii();
        let name = name.trim_end_matches('.').to_owned();
        lock(&self.asked).push(name.clone());
        let good = || reply(query, |message| message.answers = vec![address(query, TRUE)]);
        let manner = name.split(['-', '.']).next().unwrap_or_default();
        match manner {
            "_loop" if self.loops.load(Ordering::Relaxed) => {
                let answer = self.ask_back(bytes)?;
                socket.send_to(&answer, from)?;
            }
            "late" => {
                let (socket, answer) = (Arc::clone(socket), good()?);
                drop(spawn(move || {
                    sleep(LATE);
                    let _ = socket.send_to(&answer, from);
                }));
            }
            "cut" => {
                socket.send_to(&reply(query, |message| message.metadata.truncation = true)?, from)?;
            }
            "source" if !self.forges_well => {
                let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                other.send_to(&forged(query, |_| ())?, from)?;
                socket.send_to(&good()?, from)?;
            }
            "alias" | "pool" | "private" => {
                socket.send_to(&self.lie(manner, query)?, from)?;
            }
            _ => {
                for datagram in self.before(manner, query)? {
                    socket.send_to(&datagram, from)?;
                }
                let stray = |name: &str| {
                    let name = Name::from_ascii(name).unwrap_or_default();
                    Record::from_rdata(name, 60, RData::A(A(FORGED)))
                };
                let answer = reply(query, |message| {
                    message.answers = vec![address(query, TRUE)];
                    if manner == "extra" {
                        message.answers.push(stray("orders.mesh.internal."));
                        message.additionals = vec![stray("orders.mesh.internal."), stray("good.example.")];
                    }
                })?;
                socket.send_to(&answer, from)?;
            }
        }
        Ok(())
    }

    /// Returns what comes before the good answer.
    fn before(&self, manner: &str, query: &Message) -> Result<Vec<Vec<u8>>> {
        let id = query.metadata.id;
        let other = Name::from_ascii("bank.example.")?;
        Ok(match manner {
            _ if self.forges_well => vec![forged(query, |_| ())?],
            "id" => vec![forged(query, |message| message.metadata.id = id.wrapping_add(1))?],
            "question" => vec![forged(query, |message| {
                message.queries.iter_mut().for_each(|asked| asked.name = other.clone())
            })?],
            "garbage" => (0..20)
                .map(|_| {
                    let noise: [u8; 64] = rand::random();
                    [&id.to_be_bytes()[..], &noise].concat()
                })
                .collect(),
            "huge" => vec![huge(query)?],
            "mutant" => (0..20).map(|_| mutated(query)).collect::<Result<_>>()?,
            _ => Vec::new(),
        })
    }

    /// Returns an answer that no upstream server may give.
    fn lie(&self, manner: &str, query: &Message) -> Result<Vec<u8>> {
        let pool = lock(&self.back).map(|server| server.ip());
        let record = match (manner, pool) {
            ("pool", Some(std::net::IpAddr::V4(ip))) => {
                let [a, b, ..] = ip.octets();
                address(query, Ipv4Addr::new(a, b, 3, 4))
            }
            ("private", _) => address(query, Ipv4Addr::new(10, 0, 0, 7)),
            _ => {
                let name = query.queries.first().context("a question")?.name.clone();
                let target = Name::from_ascii("orders.mesh.internal.")?;
                Record::from_rdata(name, 60, RData::CNAME(CNAME(target)))
            }
        };
        reply(query, |message| message.answers = vec![record])
    }

    /// Asks whom it was told to, and returns the answer.
    fn ask_back(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let Some(server) = *lock(&self.back) else {
            lock(&self.held).push(bytes.to_vec());
            anyhow::bail!("nobody to ask yet");
        };
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(bytes, server)?;
        let mut answer = vec![0; 4_096];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    }

    fn connections(&self, listener: &TcpListener) {
        while !self.ended.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                sleep(POLL);
                continue;
            };
            let mut serve = || -> Result<()> {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                let mut length = [0; 2];
                stream.read_exact(&mut length)?;
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut query)?;
                let query = Message::from_vec(&query)?;
                let many = (0..MANY).map(|number| address(&query, Ipv4Addr::from(0xc633_6400 + number)));
                let answer = reply(&query, |message| message.answers = many.collect())?;
                let framed = [&u16::try_from(answer.len())?.to_be_bytes()[..], &answer].concat();
                Ok(stream.write_all(&framed)?)
            };
            let _ = serve();
        }
    }
}

fn address(query: &Message, address: Ipv4Addr) -> Record {
    let name = query.queries.first().map(|question| question.name.clone()).unwrap_or_default();
    Record::from_rdata(name, 60, RData::A(A(address)))
}

fn reply(query: &Message, change: impl FnOnce(&mut Message)) -> Result<Vec<u8>> {
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.queries.clone_from(&query.queries);
    change(&mut message);
    Ok(message.to_vec()?)
}

fn forged(query: &Message, change: impl FnOnce(&mut Message)) -> Result<Vec<u8>> {
    reply(query, |message| {
        message.answers = vec![address(query, FORGED)];
        change(message);
    })
}

/// Returns a forged answer of 60 KB: its one record again and again, for writing so many takes hickory longer than a
/// client waits.
fn huge(query: &Message) -> Result<Vec<u8>> {
    let mut bytes = forged(query, |_| ())?;
    // A pointer to the question's name, type, class, time to live, length and four bytes.
    let record = bytes.last_chunk::<16>().context("a record")?.repeat(HUGE - 1);
    bytes.extend(record);
    bytes[6..8].copy_from_slice(&u16::try_from(HUGE)?.to_be_bytes());
    Ok(bytes)
}

/// Returns a good answer with a few bytes behind the id changed.
fn mutated(query: &Message) -> Result<Vec<u8>> {
    let mut bytes = reply(query, |message| message.answers = vec![address(query, TRUE)])?;
    for _ in 0..3 {
        let at = 2 + rand::random::<u16>() as usize % (bytes.len() - 2);
        bytes[at] = rand::random();
    }
    Ok(bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
