//! The network between simulated machines: datagrams on their way, and what happens to them.
//!
//! Owns: the sockets' inboxes, the datagrams in flight, cuts, loss and delay, the trace. Must not know: what is
//! in a datagram. Driven by: quinn through its socket, by one task that delivers, and by the fabric's acts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::scenario;

/// Bytes that wait in a socket until its owner reads: Linux's default receive buffer.
const INBOX_BYTES: usize = 212_992;
/// IPv4 and UDP headers of a datagram.
pub const HEADER_BYTES: u64 = 28;

/// All links between the machines. Clones are handles.
#[derive(Clone, Debug)]
pub struct Net(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    sent: Notify,
}

/// What a machine has sent, lost on the way or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams.
    pub datagrams: u64,
    /// Their bytes, headers of IP and UDP included.
    pub bytes: u64,
}

#[derive(Debug)]
struct State {
    rng: StdRng,
    links: Links,
    /// By the time of arrival and the order of sending.
    in_flight: BTreeMap<(Instant, u64), Datagram>,
    sequence: u64,
    inboxes: BTreeMap<SocketAddr, Inbox>,
    sent: BTreeMap<SocketAddr, Sent>,
    overflowed: u64,
    started: Instant,
    trace: DefaultHasher,
}

/// How packets fare.
#[derive(Debug)]
struct Links {
    net: scenario::Net,
    cuts: Vec<(BTreeSet<SocketAddr>, BTreeSet<SocketAddr>)>,
    loss: BTreeMap<SocketAddr, f64>,
    slow: BTreeMap<SocketAddr, Duration>,
    /// Larger payloads vanish, as on a path whose routers tell nothing.
    max_payload: usize,
    /// Bytes that wait in each socket until its owner reads.
    inbox: usize,
}

#[derive(Debug)]
struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    payload: Vec<u8>,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Which of the sockets that had the address reads it.
    life: u64,
    queue: VecDeque<Datagram>,
    bytes: usize,
    reader: Option<Waker>,
}

impl Net {
    /// Makes a network without machines. Must be called inside the runtime whose clock it follows.
    pub fn new(net: scenario::Net, seed: u64) -> Self {
        let links = Links {
            net,
            cuts: Vec::new(),
            loss: BTreeMap::new(),
            slow: BTreeMap::new(),
            max_payload: usize::MAX,
            inbox: INBOX_BYTES,
        };
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            links,
            in_flight: BTreeMap::new(),
            sequence: 0,
            inboxes: BTreeMap::new(),
            sent: BTreeMap::new(),
            overflowed: 0,
            started: Instant::now(),
            trace: DefaultHasher::new(),
        };
        Self(Arc::new(Shared { state: Mutex::new(state), sent: Notify::new() }))
    }

    /// Delivers what is on its way, for ever.
    pub async fn deliver(self) {
        loop {
            let (next, readers) = self.state().arrive(Instant::now());
            readers.into_iter().for_each(Waker::wake);
            match next {
                None => self.0.sent.notified().await,
                Some(at) => tokio::select! {
                    biased;
                    () = self.0.sent.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }

    /// Opens the socket of an address; one that was open there is cut off.
    pub fn socket(&self, address: SocketAddr) -> Arc<dyn AsyncUdpSocket> {
        let life = self.close(address);
        Arc::new(Socket { net: self.clone(), address, life })
    }

    /// Cuts off the socket of an address: what it sends from now on, and what comes for it, vanishes.
    pub fn close(&self, address: SocketAddr) -> u64 {
        let mut state = self.state();
        let inbox = state.inboxes.entry(address).or_default();
        *inbox = Inbox { life: inbox.life + 1, ..Inbox::default() };
        inbox.life
    }

    /// Loses every datagram of one set to another.
    pub fn cut(&self, from: BTreeSet<SocketAddr>, to: BTreeSet<SocketAddr>) {
        self.state().links.cuts.push((from, to));
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.state().links.cuts.clear();
    }

    /// Loses this share of the datagrams from and to an address; 0 gives back the network's own share.
    pub fn set_loss(&self, address: SocketAddr, share: f64) {
        let loss = &mut self.state().links.loss;
        if share > 0.0 {
            loss.insert(address, share)
        } else {
            loss.remove(&address)
        };
    }

    /// Delays datagrams from and to an address by so much more.
    pub fn set_slow(&self, address: SocketAddr, more: Duration) {
        self.state().links.slow.insert(address, more);
    }

    /// Lets larger payloads vanish, bytes.
    pub fn set_max_payload(&self, bytes: usize) {
        self.state().links.max_payload = bytes;
    }

    /// Gives every socket a receive buffer of so many bytes; what does not fit is lost.
    pub fn set_inbox(&self, bytes: usize) {
        self.state().links.inbox = bytes;
    }

    /// Returns how many datagrams found no room in the socket they were for.
    pub fn overflowed(&self) -> u64 {
        self.state().overflowed
    }

    /// Returns what an address has sent so far.
    pub fn sent(&self, address: SocketAddr) -> Sent {
        self.state().sent.get(&address).copied().unwrap_or_default()
    }

    /// Returns a hash over time, sender, receiver and length of every datagram sent so far.
    pub fn trace(&self) -> u64 {
        self.state().trace.finish()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sends a datagram; how it fares is drawn at once.
    fn send(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let now = Instant::now();
        (now - self.started, from, to, payload.len()).hash(&mut self.trace);
        let sent = self.sent.entry(from).or_default();
        sent.datagrams += 1;
        sent.bytes += payload.len() as u64 + HEADER_BYTES;
        if self.links.is_cut(from, to) || payload.len() > self.links.max_payload {
            return;
        }
        let (loss, net) = (self.links.loss(from, to), self.links.net);
        if self.rng.random_bool(loss) {
            return;
        }
        let copies = if self.rng.random_bool(net.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let at = now + self.links.delay(from, to, &mut self.rng);
            self.sequence += 1;
            let datagram = Datagram { from, to, payload: payload.to_vec() };
            self.in_flight.insert((at, self.sequence), datagram);
        }
    }

    /// Puts what has arrived into the inboxes. Returns when to call again, and whom to wake.
    fn arrive(&mut self, now: Instant) -> (Option<Instant>, Vec<Waker>) {
        let mut readers = Vec::new();
        while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= now) {
            let datagram = entry.remove();
            let Some(inbox) = self.inboxes.get_mut(&datagram.to) else { continue };
            if inbox.bytes + datagram.payload.len() > self.links.inbox {
                self.overflowed += 1;
                continue;
            }
            inbox.bytes += datagram.payload.len();
            inbox.queue.push_back(datagram);
            readers.extend(inbox.reader.take());
        }
        (self.in_flight.first_key_value().map(|((at, _), _)| *at), readers)
    }
}

impl Links {
    fn is_cut(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.cuts.iter().any(|(senders, receivers)| senders.contains(&from) && receivers.contains(&to))
    }

    /// The worse end decides; it replaces the network's own share.
    fn loss(&self, from: SocketAddr, to: SocketAddr) -> f64 {
        let own = [from, to].into_iter().filter_map(|end| self.loss.get(&end).copied());
        own.reduce(f64::max).unwrap_or(self.net.loss)
    }

    fn delay(&self, from: SocketAddr, to: SocketAddr, rng: &mut StdRng) -> Duration {
        let (least, most) = self.net.delay;
        let mut delay = rng.random_range(least..=most);
        if rng.random_bool(self.net.reorder) {
            delay += most.mul_f64(rng.random_range(0.0..10.0));
        }
        delay + [from, to].iter().filter_map(|end| self.slow.get(end)).sum::<Duration>()
    }
}

/// One end of the network, as quinn uses it.
#[derive(Debug)]
struct Socket {
    net: Net,
    address: SocketAddr,
    life: u64,
}

impl Socket {
    /// Whether it still has its address.
    fn is_open(&self, state: &State) -> bool {
        state.inboxes.get(&self.address).is_some_and(|inbox| inbox.life == self.life)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut state = self.net.state();
        if self.is_open(&state) {
            let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            transmit
                .contents
                .chunks(size)
                .for_each(|payload| state.send(self.address, transmit.destination, payload));
            self.net.0.sent.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.net.state();
        if !self.is_open(&state) {
            return Poll::Pending;
        }
        let inbox = state.inboxes.entry(self.address).or_default();
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some(Datagram { from, payload, .. }) = inbox.queue.pop_front() else { break };
            inbox.bytes -= payload.len();
            let len = payload.len().min(buffer.len());
            buffer[..len].copy_from_slice(&payload[..len]);
            *meta = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
            count += 1;
        }
        if count == 0 {
            inbox.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A network card without a queue: what it cannot send is the network's loss.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
