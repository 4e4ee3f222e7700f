//! Control connections between simulated nodes, as far as the cores can tell them from QUIC.
//!
//! Owns: handshakes, the ordered stream each way, datagrams, and how each end learns that the other is gone.
//! Must not know: what messages mean. Driven by: the mesh's events and the wiring of its nodes.
//!
//! A handshake takes three ways, and a fourth for the hello that makes the dialer count the peer as connected.
//! A stream is reliable: a lost frame comes after one or more probe time-outs and holds back all later ones; on
//! a cut way it waits, with growing pauses, for as long as the connection lasts. A process that died sends
//! nothing; its next life answers packets of old connections with a reset, as the daemon's does.

use std::collections::VecDeque;
use std::time::Duration;

use gossamer_core::dial::{Dial, Keep, Source, keep_which};
use gossamer_wire::frame::{Frame, Hello, Purpose};
use gossamer_wire::limits::HANDSHAKE_TIMEOUT;

use super::cost;
use super::mesh::{Event, Mesh};
use super::tables::QuickMap;
use super::wiring::Stimulus;

/// A connection, never used for another.
pub(super) type ConnId = u64;

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Dialer,
    Acceptor,
}

impl End {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Dialer => Self::Acceptor,
            Self::Acceptor => Self::Dialer,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Shaking,
    Open,
    Closed,
}

/// One end.
#[derive(Debug)]
struct Side {
    node: usize,
    /// The life of the node that made it.
    life: u64,
    state: State,
    /// When anything came last.
    heard: Duration,
    /// When the last frame on its way to the other end arrives there.
    last_arrival: Duration,
    /// The same of packets through a second relay.
    last_beside: Duration,
    /// Frames that cannot leave.
    blocked: VecDeque<Frame>,
    retries: u32,
    retry_is_planned: bool,
    /// Datagrams that came before the hello.
    early: Vec<Vec<u8>>,
}

impl Side {
    const fn new(node: usize, life: u64, now: Duration) -> Self {
        Self {
            node,
            life,
            state: State::Shaking,
            heard: now,
            last_arrival: Duration::ZERO,
            last_beside: Duration::ZERO,
            blocked: VecDeque::new(),
            retries: 0,
            retry_is_planned: false,
            early: Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Conn {
    dialer: Side,
    acceptor: Side,
}

impl Conn {
    fn side(&self, end: End) -> &Side {
        match end {
            End::Dialer => &self.dialer,
            End::Acceptor => &self.acceptor,
        }
    }

    fn side_mut(&mut self, end: End) -> &mut Side {
        match end {
            End::Dialer => &mut self.dialer,
            End::Acceptor => &mut self.acceptor,
        }
    }

    fn end_of(&self, node: usize) -> End {
        if self.dialer.node == node { End::Dialer } else { End::Acceptor }
    }

    fn node(&self, end: End) -> usize {
        self.side(end).node
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Links {
    conns: QuickMap<ConnId, Box<Conn>>,
    made: ConnId,
}

impl Links {
    pub(super) const fn made(&self) -> u64 {
        self.made
    }

    /// Returns the node at an end of a connection that is still known.
    pub(super) fn node_at(&self, id: ConnId, end: End) -> Option<usize> {
        self.conns.get(&id).map(|conn| conn.node(end))
    }
}

impl Mesh {
    /// Dials as the owner of the connections does: where the wanted node does not answer, the dial fails after
    /// the handshake's time.
    pub(super) fn dial(&mut self, node: usize, dial: &Dial) {
        let there = dial.addresses.iter().find_map(|address| self.at_address(*address));
        let wanted = self.number(dial.node);
        let (Some(to), true) = (there, there == wanted) else {
            if let Some(wanted) = wanted {
                self.later(HANDSHAKE_TIMEOUT, Event::DialFailed { node, life: self.life(node), wanted });
            }
            return;
        };
        let now = self.now;
        self.links.made += 1;
        let id = self.links.made;
        let dialer = Side::new(node, self.life(node), now);
        let acceptor = Side::new(to, self.life(to), now);
        self.links.conns.insert(id, Box::new(Conn { dialer, acceptor }));
        self.later(HANDSHAKE_TIMEOUT, Event::DialOver { conn: id });
        self.shake(id, 0, 0);
    }

    /// Sends one part of a handshake; lost ones are sent again after QUIC's first probe time-out, doubled.
    pub(super) fn shake(&mut self, id: ConnId, part: usize, attempt: u32) {
        let Some(conn) = self.links.conns.get(&id) else { return };
        let (from, to) = match part {
            1 => (conn.acceptor.node, conn.dialer.node),
            _ => (conn.dialer.node, conn.acceptor.node),
        };
        self.charge(from, "handshake", cost::SHAKE[part]);
        if self.net.is_cut(from, to) || self.net.loses(from, to) {
            if attempt < 2 {
                self.later(
                    FIRST_PROBE * 2_u32.pow(attempt),
                    Event::Shake { conn: id, part, attempt: attempt + 1 },
                );
            }
            return;
        }
        let delay = self.net.delay(from, to);
        self.later(delay, Event::Shaken { conn: id, part });
    }

    /// A part of a handshake arrives.
    pub(super) fn shaken(&mut self, id: ConnId, part: usize) {
        let Some(conn) = self.links.conns.get_mut(&id) else { return };
        let end = end_of_part(part);
        let (at, from) = (conn.node(end), conn.node(end.other()));
        if part == 0 {
            // Whoever lives there when the first packet comes.
            conn.acceptor.life = self.nodes[at].life;
        }
        let is_other_life = conn.side(end).life != self.nodes[at].life;
        if self.park(at, Event::Shaken { conn: id, part }) || !self.nodes[at].runs() || is_other_life {
            return;
        }
        // The certificate of the other end is judged once it has come.
        if part > 0 && !self.trusts(at, from) {
            match end {
                End::Dialer => self.fail_dial(id),
                End::Acceptor => self.close(id, End::Acceptor),
            }
            return;
        }
        if part < 2 {
            return self.shake(id, part + 1, 0);
        }
        if self.links.conns.get(&id).is_some_and(|conn| conn.acceptor.state == State::Shaking) {
            self.open(id, End::Acceptor);
            self.send_on(id, End::Acceptor, hello());
            self.add_link(id, End::Acceptor);
        }
    }

    /// The handshake has had its time.
    pub(super) fn dial_over(&mut self, id: ConnId) {
        if self.links.conns.get(&id).is_some_and(|conn| conn.dialer.state == State::Shaking) {
            self.fail_dial(id);
        }
    }

    fn fail_dial(&mut self, id: ConnId) {
        let Some(conn) = self.links.conns.get(&id) else { return };
        let (node, life, wanted) = (conn.dialer.node, conn.dialer.life, conn.acceptor.node);
        self.close(id, End::Dialer);
        self.later(Duration::ZERO, Event::DialFailed { node, life, wanted });
    }

    pub(super) fn dial_failed(&mut self, node: usize, life: u64, wanted: usize) {
        let (now, wanted) = (self.clock(node).mono, self.id(wanted));
        if let Some(process) = self.process_of(node, life) {
            process.book.failed(wanted, now);
            self.step(node, Stimulus::Changed);
        }
    }

    /// Keeps one connection per pair, as the daemon's owner of connections does.
    fn add_link(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.links.conns.get(&id) else { return };
        let (node, peer) = (conn.node(end), conn.node(end.other()));
        let (me, peer_id) = (self.id(node), self.id(peer));
        let now = self.clock(node).mono;
        let Some(process) = &self.nodes[node].process else { return };
        if let Some(old_id) = process.current.get(peer)
            && let Some(old) = self.links.conns.get(&old_id)
            && old.side(old.end_of(node)).state == State::Open
        {
            let dialer = |conn: &Conn| if conn.dialer.node == node { me } else { peer_id };
            let is_same_process = old.side(old.end_of(peer)).life == conn.side(end.other()).life;
            if is_same_process
                && keep_which(me, peer_id, (dialer(old), Duration::ZERO), dialer(conn)) == Keep::First
            {
                return self.close(id, end);
            }
            let old_end = old.end_of(node);
            self.close(old_id, old_end);
        }
        let address = self.nodes[peer].address;
        let Some(process) = &mut self.nodes[node].process else { return };
        process.book.connected(peer_id, now);
        if end == End::Acceptor {
            process.book.learn(peer_id, &[address], Source::Hint, now);
        }
        process.current.insert(peer, id);
        self.step(node, Stimulus::Connected(peer_id));
        let early = self.links.conns.get_mut(&id).map(|conn| std::mem::take(&mut conn.side_mut(end).early));
        for bytes in early.unwrap_or_default() {
            self.step(node, Stimulus::Packet { from: peer_id, bytes });
        }
    }

    fn open(&mut self, id: ConnId, end: End) {
        let now = self.now;
        if let Some(conn) = self.links.conns.get_mut(&id) {
            let side = conn.side_mut(end);
            (side.state, side.heard) = (State::Open, now);
        }
    }

    /// Ends one end and tells the other, which hears of it unless the way is cut.
    pub(super) fn close(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.links.conns.get_mut(&id) else { return };
        if conn.side(end).state == State::Closed {
            return;
        }
        conn.side_mut(end).state = State::Closed;
        conn.side_mut(end).blocked.clear();
        let (from, to) = (conn.node(end), conn.node(end.other()));
        self.charge(from, "close", cost::PACKET);
        let is_heard = !self.net.is_cut(from, to) && !self.net.loses(from, to);
        if is_heard {
            let delay = self.net.delay(from, to);
            self.later(delay, Event::Closed { conn: id, end: end.other() });
        }
        self.ended(id, end);
        // Nobody is there to notice a handshake that was given up.
        if !is_heard && conn_state(&self.links, id, end.other()) == Some(State::Shaking) {
            self.links.conns.remove(&id);
        }
    }

    /// An end hears that the connection is over.
    pub(super) fn closed(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.links.conns.get_mut(&id) else { return };
        let at = conn.node(end);
        if conn.side(end).state == State::Closed {
            self.links.conns.remove(&id);
            return;
        }
        if self.park(at, Event::Closed { conn: id, end }) {
            return;
        }
        let was_shaking = conn_state(&self.links, id, end) == Some(State::Shaking);
        if let Some(conn) = self.links.conns.get_mut(&id) {
            conn.side_mut(end).state = State::Closed;
        }
        if was_shaking && end == End::Dialer {
            let life = self.life(at);
            let wanted = self.links.conns.get(&id).map(|conn| conn.acceptor.node);
            if let Some(wanted) = wanted {
                self.later(Duration::ZERO, Event::DialFailed { node: at, life, wanted });
            }
        }
        self.ended(id, end);
        if self.links.conns.get(&id).is_some_and(|conn| conn.side(end.other()).state == State::Closed) {
            self.links.conns.remove(&id);
        }
    }

    /// Tells the cores when the connection that ended was the one in use.
    fn ended(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.links.conns.get(&id) else { return };
        let (node, peer, life) = (conn.node(end), conn.node(end.other()), conn.side(end).life);
        let Some(process) = self.process_of(node, life) else { return };
        if process.current.get(peer) == Some(id) {
            process.current.remove(peer);
            self.step(node, Stimulus::Disconnected(self.id(peer)));
        }
    }

    /// Closes the connection in use with a peer, if there is one.
    pub(super) fn hang_up(&mut self, node: usize, peer: usize) {
        let id = self.nodes[node].process.as_ref().and_then(|process| process.current.get(peer));
        if let Some((id, conn)) = id.and_then(|id| Some((id, self.links.conns.get(&id)?))) {
            let end = conn.end_of(node);
            self.close(id, end);
        }
    }

    /// Closes everything a process has open, as a daemon does that stops.
    pub(super) fn hang_up_all(&mut self, node: usize) {
        let peers =
            self.nodes[node].process.iter().flat_map(|process| process.current.iter().map(|(peer, _)| peer));
        for peer in peers.collect::<Vec<_>>() {
            self.hang_up(node, peer);
        }
    }

    /// Sends a frame to a peer; lost without a connection.
    pub(super) fn send_frame(&mut self, node: usize, peer: usize, frame: Frame) {
        let id = self.nodes[node].process.as_ref().and_then(|process| process.current.get(peer));
        let Some(id) = id else { return self.nodes[node].count("unsendable", 1, 0) };
        let Some(end) = self.links.conns.get(&id).map(|conn| conn.end_of(node)) else { return };
        let frame = self.spoken(node, frame);
        self.send_beside(id, end, &frame);
        self.send_on(id, end, frame);
    }

    fn send_on(&mut self, id: ConnId, end: End, frame: Frame) {
        let Some(conn) = self.links.conns.get(&id) else { return };
        let side = conn.side(end);
        if side.state != State::Open {
            return;
        }
        let (from, to) = (side.node, conn.node(end.other()));
        let is_blocked = !side.blocked.is_empty();
        let bytes = cost::frame(&frame);
        let packets = cost::packets(bytes);
        self.trace.note(self.now, from, to, cost::name(&frame), bytes);
        self.watch.sent(&frame);
        self.charge_all(from, to, cost::name(&frame), packets, bytes as u64);
        if is_blocked || self.net.is_cut(from, to) {
            let conn = self.links.conns.get_mut(&id).expect("looked up above");
            conn.side_mut(end).blocked.push_back(frame);
            return self.plan_retry(id, end);
        }
        self.transmit(id, end, frame, bytes);
    }

    /// Puts a frame on an open way: each packet may be lost some times, and the last to come counts.
    fn transmit(&mut self, id: ConnId, end: End, frame: Frame, bytes: usize) {
        let packets = cost::packets(bytes);
        let Some(conn) = self.links.conns.get(&id) else { return };
        let (from, to) = (conn.node(end), conn.node(end.other()));
        let pause = self.net.resend_after(from, to);
        let mut losses = 0;
        let each = bytes.div_ceil(packets as usize) as u64;
        for _ in 0..packets {
            let lost = (0..6).take_while(|_| self.net.loses(from, to)).count();
            losses = losses.max(lost);
            self.charge(from, "resent", lost as u64 * (cost::PACKET + each));
        }
        let resent = pause * (2_u32.pow(losses as u32) - 1);
        // A window of ten packets at first, twice as many each round trip.
        let rounds = (1 + packets / 10).ilog2();
        let delay = self.net.delay(from, to) + resent + 2 * rounds * self.net.delay(from, to);
        let conn = self.links.conns.get_mut(&id).expect("looked up above");
        let side = conn.side_mut(end);
        let at = (self.now + delay).max(side.last_arrival);
        side.last_arrival = at;
        self.at(at, Event::Frame { conn: id, to: end.other(), frame: Box::new(frame) });
    }

    fn plan_retry(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.links.conns.get(&id) else { return };
        let pause = self.net.resend_after(conn.node(end), conn.node(end.other()));
        let side = self.links.conns.get_mut(&id).expect("looked up above").side_mut(end);
        if !std::mem::replace(&mut side.retry_is_planned, true) {
            let pause = pause * 2_u32.pow(side.retries.min(12));
            side.retries += 1;
            self.later(pause, Event::Retry { conn: id, end });
        }
    }

    /// Sends what is blocked, if the way is open.
    pub(super) fn retry(&mut self, id: ConnId, end: End) {
        let Some(conn) = self.links.conns.get_mut(&id) else { return };
        conn.side_mut(end).retry_is_planned = false;
        let (from, to, life) = (conn.node(end), conn.node(end.other()), conn.side(end).life);
        if conn.side(end).state != State::Open || self.nodes[from].life != life || !self.nodes[from].runs() {
            return;
        }
        if self.net.is_cut(from, to) || self.net.loses(from, to) {
            // A probe carries what waits, as far as one packet holds it.
            let waiting: usize = self.links.conns[&id].side(end).blocked.iter().map(cost::frame).sum();
            self.charge(from, "resent", cost::PACKET + waiting.min(cost::PAYLOAD) as u64);
            return self.plan_retry(id, end);
        }
        let side = self.links.conns.get_mut(&id).expect("looked up above").side_mut(end);
        side.retries = 0;
        for frame in std::mem::take(&mut side.blocked) {
            let bytes = cost::frame(&frame);
            self.charge_all(from, to, "resent", cost::packets(bytes), bytes as u64);
            self.transmit(id, end, frame, bytes);
        }
    }

    /// Sends a SWIM packet as a datagram, or on the stream when it is too long for one.
    pub(super) fn send_packet(&mut self, node: usize, peer: usize, bytes: Vec<u8>) {
        if bytes.len() > cost::PAYLOAD || self.net.is_led(node, peer) {
            return self.send_frame(node, peer, Frame::Swim(bytes));
        }
        let id = self.nodes[node].process.as_ref().and_then(|process| process.current.get(peer));
        let Some(id) = id else { return self.nodes[node].count("unsendable", 1, 0) };
        let Some(end) = self.links.conns.get(&id).map(|conn| conn.end_of(node)) else { return };
        self.trace.note(self.now, node, peer, "swim", bytes.len());
        self.charge_all(node, peer, "swim", 1, bytes.len() as u64);
        let arrivals = self.net.datagram(node, peer);
        if let Some(delay) = arrivals.first() {
            // Its acknowledgement shows that the way is open again.
            let blocked = self.links.conns.get(&id).is_some_and(|conn| !conn.side(end).blocked.is_empty());
            if blocked {
                self.later(*delay * 2, Event::Retry { conn: id, end });
            }
        }
        for delay in arrivals {
            self.later(delay, Event::Datagram { conn: id, to: end.other(), bytes: bytes.clone() });
        }
    }

    /// Sends a frame of SWIM through the second relay to the peer as well: late rather than never, and none before an earlier one.
    fn send_beside(&mut self, conn: ConnId, end: End, frame: &Frame) {
        let is_swim = match frame {
            Frame::Swim(_) | Frame::Probe(_) | Frame::ProbeAck(_) => true,
            Frame::Members { members, reply } => members.len() == 1 && !reply,
            _ => false,
        };
        let is_sent = |known: &&mut Box<Conn>| is_swim && known.side(end).state == State::Open;
        let Some(known) = self.links.conns.get_mut(&conn).filter(is_sent) else { return };
        let (from, to) = (known.node(end), known.node(end.other()));
        let Some(delay) = self.net.beside(from, to) else { return };
        let side = known.side_mut(end);
        side.last_beside = side.last_beside.max(self.now + delay);
        let at = side.last_beside;
        let bytes = cost::frame(frame);
        self.charge_all(from, to, cost::name(frame), cost::packets(bytes), bytes as u64);
        self.at(at, Event::Frame { conn, to: end.other(), frame: Box::new(frame.clone()) });
    }

    /// A frame arrives. Returns what the process there has to take.
    pub(super) fn take_frame_at(
        &mut self,
        id: ConnId,
        end: End,
        mut frame: Box<Frame>,
    ) -> Option<(usize, Stimulus)> {
        let (at, from) = self.arrives(id, end)?;
        if self.nodes[at].is_suspended {
            self.nodes[at].parked.push_back(Event::Frame { conn: id, to: end, frame });
            return None;
        }
        let state = conn_state(&self.links, id, end);
        if let Frame::Hello(_) = *frame {
            if state == Some(State::Shaking) {
                self.open(id, end);
                self.add_link(id, end);
            }
            return None;
        }
        // Only the connection in use is read; what comes on the loser of two is heard until it is closed.
        if state != Some(State::Open) {
            return None;
        }
        if !self.dialects.is_one() {
            frame = Box::new(self.understood(at, *frame));
        }
        Some((at, Stimulus::Frame { from: self.id(from), frame }))
    }

    /// A datagram arrives. Returns what the process there has to take.
    pub(super) fn take_datagram_at(
        &mut self,
        id: ConnId,
        end: End,
        bytes: Vec<u8>,
    ) -> Option<(usize, Stimulus)> {
        let (at, from) = self.arrives(id, end)?;
        if self.nodes[at].is_suspended {
            if self.nodes[at].parked.len() < SOCKET_BUFFER {
                self.nodes[at].parked.push_back(Event::Datagram { conn: id, to: end, bytes });
            }
            return None;
        }
        match conn_state(&self.links, id, end)? {
            State::Open => return Some((at, Stimulus::Packet { from: self.id(from), bytes })),
            State::Shaking => {
                self.links.conns.get_mut(&id)?.side_mut(end).early.push(bytes);
            }
            State::Closed => {}
        }
        None
    }

    /// Notes that something came to an end. `None` when nobody is there to take it: a dead process stays silent,
    /// another life of the node answers with a reset.
    fn arrives(&mut self, id: ConnId, end: End) -> Option<(usize, usize)> {
        let conn = self.links.conns.get(&id)?;
        let (at, from, life) = (conn.node(end), conn.node(end.other()), conn.side(end).life);
        self.nodes[at].process.as_ref()?;
        if self.nodes[at].life != life || conn.side(end).state == State::Closed {
            self.charge(at, "reset", cost::PACKET);
            if !self.net.is_cut(at, from) {
                let delay = self.net.delay(at, from);
                self.later(delay, Event::Closed { conn: id, end: end.other() });
            }
            return None;
        }
        let (now, way_back) = (self.now, !self.net.is_cut(at, from));
        let conn = self.links.conns.get_mut(&id)?;
        conn.side_mut(end).heard = now;
        if way_back {
            conn.side_mut(end.other()).heard = now;
        }
        Some((at, from))
    }

    /// Gives up the connections of a node on which nothing has come for the idle time-out.
    pub(super) fn sweep(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let is_idle = |id: &ConnId| {
            self.links.conns.get(id).is_none_or(|conn| {
                self.now.saturating_sub(conn.side(conn.end_of(node)).heard) >= IDLE_TIMEOUT
            })
        };
        let idle: Vec<(usize, ConnId)> = process.current.iter().filter(|(_, id)| is_idle(id)).collect();
        for (peer, id) in idle {
            match self.links.conns.get_mut(&id) {
                Some(conn) => {
                    // An idle time-out is silent: the other end has its own.
                    let end = conn.end_of(node);
                    conn.side_mut(end).state = State::Closed;
                    self.ended(id, end);
                }
                None => {
                    if let Some(process) = &mut self.nodes[node].process {
                        process.current.remove(peer);
                    }
                    self.step(node, Stimulus::Disconnected(self.id(peer)));
                }
            }
        }
    }

    /// Drops the ends of a process that is no more. The others learn of it in their own time.
    pub(super) fn bury(&mut self, node: usize, life: u64) {
        let is_over = |conn: &mut Conn| {
            for end in [End::Dialer, End::Acceptor] {
                let side = conn.side_mut(end);
                if side.node == node && side.life == life {
                    side.state = State::Closed;
                    side.blocked.clear();
                }
            }
            conn.dialer.state == State::Closed && conn.acceptor.state == State::Closed
        };
        self.links.conns.retain(|_, conn| !is_over(conn));
    }

    /// Whether a node takes the certificate of another, by its own clock.
    fn trusts(&self, node: usize, other: usize) -> bool {
        let leaf = &self.nodes[other].identity.leaf;
        self.trust.verify(leaf, &[], self.clock(node).wall).is_ok()
    }
}

/// Returns the end at which a part of a handshake arrives.
pub(super) const fn end_of_part(part: usize) -> End {
    if part == 1 { End::Dialer } else { End::Acceptor }
}

fn conn_state(links: &Links, id: ConnId, end: End) -> Option<State> {
    links.conns.get(&id).map(|conn| conn.side(end).state)
}

fn hello() -> Frame {
    Frame::Hello(Hello {
        purpose: Purpose::Control,
        nonce: 0,
        observed: std::net::SocketAddr::from(([0, 0, 0, 0], 0)),
        statement_digest: [0; 16],
    })
}

/// The daemon's idle time-out of control connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The first probe time-out of a connection that has measured no round trip yet (RFC 9002 6.2.2).
const FIRST_PROBE: Duration = Duration::from_secs(1);

/// Datagrams a socket keeps for a process that does not run: Linux's default buffer of 208 KiB, less what the
/// kernel books for each.
const SOCKET_BUFFER: usize = 150;
