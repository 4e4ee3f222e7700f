//! The load: queries from several sockets, so many of them on their way all the time.
//!
//! Owns: sending, receiving, latencies. Must not know: who answers, what a right reply is.
//! Driven by: the suite, with the queries. Datagrams go and come in batches (sendmmsg, recvmmsg): a generator that
//! makes one call per datagram is slower than what it measures.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use super::verdict::Verdicts;

/// Sockets of one thread.
pub(super) const SOCKETS: usize = 8;
/// Queries on their way per socket: 512 together.
pub(super) const WINDOW: usize = 64;
/// Longest reply.
const REPLY: usize = 1_500;
/// Silence after which what is on its way counts as lost.
const SILENCE: Duration = Duration::from_millis(500);
/// Longest wait for a reply before the clock is looked at, in milliseconds.
const LONGEST_WAIT: u8 = 10;

/// What a run saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) replies: u64,
    pub(super) lost: u64,
    pub(super) verdicts: Verdicts,
    pub(super) elapsed: Duration,
    /// Microseconds.
    pub(super) latencies: Vec<u32>,
}

impl Seen {
    pub(super) fn rate(&self) -> f64 {
        self.replies as f64 / self.elapsed.as_secs_f64()
    }

    /// Returns the 99th percentile, microseconds.
    pub(super) fn p99(&mut self) -> f64 {
        self.latencies.sort_unstable();
        let index = self.latencies.len() * 99 / 100;
        self.latencies
            .get(index.min(self.latencies.len().saturating_sub(1)))
            .copied()
            .map_or(f64::NAN, f64::from)
    }

    pub(super) fn add(&mut self, other: Self) {
        self.replies += other.replies;
        self.lost += other.lost;
        self.verdicts.add(other.verdicts);
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latencies.extend(other.latencies);
    }
}

/// Which queries are asked, 80 % of the first half (one record each), 20 % of the second (`srv_records` each).
#[derive(Clone, Debug)]
pub(super) struct Questions<'a> {
    pub(super) queries: &'a [Vec<u8>],
    pub(super) srv_records: u16,
    /// Queries on their way per socket, [`WINDOW`] at most.
    pub(super) window: usize,
}

impl Questions<'_> {
    fn judge(&self, index: usize, reply: &[u8], verdicts: &mut Verdicts) {
        let is_srv = index >= self.queries.len() / 2;
        verdicts.judge(reply, &self.queries[index], if is_srv { self.srv_records } else { 1 });
    }
}

struct Wire {
    socket: UdpSocket,
    /// By id: when it was sent, which query it was.
    sent: Vec<(Instant, usize)>,
    waiting: usize,
    heard: Instant,
}

/// Keeps [`SOCKETS`] times [`WINDOW`] queries on their way for so long.
pub(super) fn closed_loop(
    server: SocketAddr,
    questions: &Questions<'_>,
    time: Duration,
    seed: u64,
) -> Result<Seen> {
    let began = Instant::now();
    let mut random = seed | 1;
    let mut seen = Seen { verdicts: Verdicts::since(began), ..Seen::default() };
    let mut wires = (0..SOCKETS)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok(Wire { socket, sent: vec![(began, 0); WINDOW], waiting: 0, heard: began })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut buffers = vec![[0_u8; REPLY]; WINDOW];
    let all: Vec<u16> = (0..questions.window.min(WINDOW) as u16).collect();
    for wire in &mut wires {
        send(wire, &all, questions, &mut random)?;
    }
    while began.elapsed() < time {
        let before = seen.replies;
        for wire in &mut wires {
            let free = receive(wire, &mut buffers, questions, &mut seen)?;
            if !free.is_empty() {
                send(wire, &free, questions, &mut random)?;
            } else if wire.waiting > 0 && wire.heard.elapsed() > SILENCE {
                seen.lost += wire.waiting as u64;
                wire.waiting = 0;
                send(wire, &all, questions, &mut random)?;
            }
        }
        if seen.replies == before {
            wait(&wires)?;
        }
    }
    seen.elapsed = began.elapsed();
    // What comes late is not lost.
    while wires.iter().any(|wire| wire.waiting > 0 && wire.heard.elapsed() < SILENCE) {
        for wire in &mut wires {
            receive(wire, &mut buffers, questions, &mut Seen::default())?;
        }
    }
    seen.lost += wires.iter().map(|wire| wire.waiting as u64).sum::<u64>();
    Ok(seen)
}

/// Waits until a reply is there. A load that asks again and again takes the processor from what it measures.
fn wait(wires: &[Wire]) -> Result<()> {
    let mut polled: Vec<_> =
        wires.iter().map(|wire| PollFd::new(wire.socket.as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut polled, LONGEST_WAIT)?;
    Ok(())
}

/// Asks every query once, window by window, and judges the replies.
pub(super) fn once(server: SocketAddr, questions: &Questions<'_>) -> Result<Verdicts> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut verdicts = Verdicts::since(Instant::now());
    let all: Vec<usize> = (0..questions.queries.len()).collect();
    for part in all.chunks(WINDOW) {
        for (id, index) in (0_u16..).zip(part) {
            let mut message = questions.queries[*index].clone();
            message[..2].copy_from_slice(&id.to_be_bytes());
            socket.send(&message)?;
        }
        for _ in part {
            let mut reply = [0; REPLY];
            let length = socket.recv(&mut reply)?;
            let id = usize::from(u16::from_be_bytes([reply[0], reply[1]]));
            let index = part.get(id).copied().context("a reply to no question")?;
            questions.judge(index, &reply[..length], &mut verdicts);
        }
    }
    Ok(verdicts)
}

fn send(wire: &mut Wire, ids: &[u16], questions: &Questions<'_>, random: &mut u64) -> Result<()> {
    let half = questions.queries.len() / 2;
    let now = Instant::now();
    let mut messages: Vec<Vec<u8>> = Vec::with_capacity(ids.len());
    for id in ids {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let is_srv = (*random).is_multiple_of(5);
        let index = (*random >> 20) as usize % half + if is_srv { half } else { 0 };
        let mut message = questions.queries[index].clone();
        message[..2].copy_from_slice(&id.to_be_bytes());
        messages.push(message);
        wire.sent[usize::from(*id)] = (now, index);
    }
    let slices: Vec<[IoSlice<'_>; 1]> = messages.iter().map(|message| [IoSlice::new(message)]).collect();
    let mut done = 0;
    while done < slices.len() {
        let rest = &slices[done..];
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(rest.len(), None);
        let addresses = vec![None; rest.len()];
        match sendmmsg(wire.socket.as_raw_fd(), &mut headers, rest, &addresses, [], MsgFlags::empty()) {
            Ok(sent) => done += sent.count(),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
    }
    wire.waiting += ids.len();
    wire.heard = now;
    Ok(())
}

/// Receives what is there; returns the ids that are free again.
fn receive(
    wire: &mut Wire,
    buffers: &mut [[u8; REPLY]],
    questions: &Questions<'_>,
    seen: &mut Seen,
) -> Result<Vec<u16>> {
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(buffers.len(), None);
    let lengths: Vec<usize> = {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let received =
            recvmmsg(wire.socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None);
        match received {
            Ok(messages) => messages.map(|message| message.bytes).collect(),
            Err(Errno::EAGAIN | Errno::ECONNREFUSED) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let now = Instant::now();
    let mut free = Vec::with_capacity(lengths.len());
    for (buffer, length) in buffers.iter().zip(lengths) {
        let reply = &buffer[..length.min(REPLY)];
        let Some(id) = reply.first_chunk().map(|id| u16::from_be_bytes(*id)) else { continue };
        let Some((sent, index)) = wire.sent.get(usize::from(id)).copied() else { continue };
        seen.replies += 1;
        seen.latencies.push(u32::try_from((now - sent).as_micros()).unwrap_or(u32::MAX));
        questions.judge(index, reply, &mut seen.verdicts);
        free.push(id);
    }
    wire.waiting = wire.waiting.saturating_sub(free.len());
    wire.heard = now;
    Ok(free)
}
