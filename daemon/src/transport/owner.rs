//! The owner of all connections: which are dialled, kept, given up.
//!
//! Owns: the dial book, the links, the data pool. Must not know: what frames mean.
//! Driven by: its inputs: handshakes done, connections ended, commands of the other parts, time.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::{Semaphore, mpsc, watch};

use gossamer_core::dial::{
    Detour, DialBook, Keep, Source, Standing, Twins, Unanswered, Ways, keep_which, process_nonce,
};
use gossamer_core::reach::{Deny, check_ip};
use gossamer_core::sightings::Sightings;
use gossamer_wire::frame::{Frame, Purpose};
use gossamer_wire::{LaneAddress, NodeId};

use super::accept::{By, Errand};
use super::acceptor::{Acceptor, NOTES, Note};
use super::by_lane::{ARRIVALS, lanes_of, listen};
use super::canary::Canary;
use super::carrier::Connection;
use super::data::{DataConnection, Pool};
use super::endpoint::{Endpoints, Opening, Udp, open, widen};
use super::hello::{Greeted, Greeter, frames_of};
use super::lane::{LaneDialler, Lanes, NameRules, Wait};
use super::link::{CLOSE_BAD_BYTES, CLOSE_DOWN, CLOSE_DUPLICATE, CLOSE_IDLE, Link};
use super::ping::Pings;
use super::relays::Relaying;
use super::second::SecondLinks;
use super::standing::Certified;
use super::tls::Side;
use super::twin::report_end;
use super::{
    BindError, COMMANDS, Command, FlowStream, INPUTS, Inbox, Links, Peers, Report, STATES, ToCatalog,
    ToMembership, Trust,
};
use crate::authority::AuthorityHandle;
use crate::clock::{self, Clock};
use crate::entropy::Entropy;
use crate::events::EventLog;
use crate::identity::{Identity, Live};
use crate::metrics::Metrics;
use crate::supervise::Stage;

/// Longest wait for the last packets to leave.
const CLOSE_WITHIN: Duration = Duration::from_millis(300);

/// What the transport is made of.
#[derive(Debug)]
pub struct Parts {
    /// What carries the datagrams.
    pub udp: Udp,
    /// The trust bundle; handshakes see later changes.
    pub trust: Trust,
    /// What this node shows; handshakes see later changes.
    pub live: Live,
    /// The statements.
    pub authority: AuthorityHandle,
    /// Addresses that are never dialled.
    pub deny: Deny,
    /// What names of lane addresses may not lead to.
    pub rules: NameRules,
    /// Key of stateless resets.
    pub reset_key: [u8; 64],
    /// What membership hears.
    pub membership: mpsc::Sender<ToMembership>,
    /// What the catalog hears.
    pub catalog: mpsc::Sender<ToCatalog>,
    /// Inbound flows, for the relay.
    pub flows: mpsc::Sender<FlowStream>,
    /// Joiners, on issuers.
    pub joiners: Option<mpsc::Sender<Connection>>,
    /// The clocks certificates are judged by.
    pub clock: Clock,
    /// Where nonces, connection ids and back-offs come from.
    pub entropy: Entropy,
    /// The event log.
    pub events: EventLog,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Binds the mesh port and starts the transport. Returns its handle and the bound address.
///
/// # Errors
/// The port cannot be bound.
pub fn start(stage: &Stage, identity: &Identity, parts: Parts) -> Result<(Peers, SocketAddr), BindError> {
    let opening = opening(identity, &parts);
    let (endpoints, tcp) = open(stage, &opening)?;
    let address = endpoints.endpoint.local_addr().unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into());
    let (commands, command_queue) = mpsc::channel(COMMANDS);
    let (reports, report_queue) = mpsc::channel(INPUTS);
    let (connected, connected_reader) = watch::channel(0);
    let (links, seconds) = (Links::default(), SecondLinks::default());
    let ((twin, twin_reader), (seen, seen_reader)) = (watch::channel(None), watch::channel(Vec::new()));
    let (relaying, relays) = Relaying::new(Live::clone(&parts.live));
    let (pool, lanes) = (Pool::default(), Lanes::default());
    let (arrivals_in, arrivals) = mpsc::channel(ARRIVALS);
    let peers = Peers {
        links: Arc::clone(&links),
        seconds: seconds.links(),
        data: pool.newest(),
        lanes: lanes.open(),
        commands,
        connected: connected_reader,
        twin: twin_reader,
        seen: seen_reader,
        relays,
        arrivals: arrivals_in,
        pings: Pings::default(),
        metrics: Arc::clone(&parts.metrics),
    };
    let (lane_dialler, arriving) = lanes_of(stage, identity, &opening, (&parts, &peers), arrivals)?;
    if let Some(tcp) = tcp {
        listen(stage, address, tcp, &parts, &peers);
    }
    let inbox = inbox(&parts, reports, &peers);
    let nonce = process_nonce(parts.clock.wall(), parts.entropy.rng("nonce").random());
    let (notes, note_queue) = mpsc::channel(NOTES);
    let mut owner = Owner {
        me: identity.node(),
        greeter: Greeter::new(parts.trust, parts.clock, parts.authority, nonce),
        endpoints,
        book: DialBook::new(identity.node(), parts.entropy.rng("dials")).with_deny(parts.deny),
        sightings: Sightings::new(parts.deny.with_loopback()),
        seen,
        relaying,
        current: BTreeMap::new(),
        links,
        seconds,
        pool,
        lanes,
        lane_addresses: BTreeMap::new(),
        lane_dialler,
        ways: Ways::default(),
        unanswered: Unanswered::default(),
        certified: Certified::default(),
        judge_at: None,
        move_at: matches!(parts.udp, Udp::Bind(_)).then(|| clock::now().mono),
        doorway: notes.clone(),
        inbox,
        flows: parts.flows,
        connected,
        twins: Twins::default(),
        twin,
        sought: None,
        metrics: parts.metrics,
        stage: stage.clone(),
    };
    owner.learn_seeds(identity);
    let acceptor = Acceptor {
        endpoint: owner.endpoints.endpoint.clone(),
        greeter: owner.greeter.clone(),
        stage: stage.clone(),
        reports: owner.inbox.reports.clone(),
        joiners: parts.joiners,
        arriving,
        notes: (notes, note_queue),
        events: parts.events,
        metrics: Arc::clone(&owner.metrics),
    };
    stage.spawn("accept", acceptor.run());
    stage.spawn("transport", owner.run(command_queue, report_queue));
    Ok((peers, address))
}

fn opening<'a>(identity: &'a Identity, parts: &'a Parts) -> Opening<'a> {
    Opening {
        udp: &parts.udp,
        side: Side { key: &identity.key, live: &parts.live, trust: &parts.trust, clock: &parts.clock },
        reset_key: &parts.reset_key,
        clock: &parts.clock,
        entropy: &parts.entropy,
    }
}

fn inbox(parts: &Parts, reports: mpsc::Sender<Report>, peers: &Peers) -> Inbox {
    Inbox {
        membership: parts.membership.clone(),
        states: Arc::new(Semaphore::new(STATES)),
        catalog: parts.catalog.clone(),
        authority: parts.authority.clone(),
        reports,
        pings: peers.pings.clone(),
        metrics: Arc::clone(&parts.metrics),
    }
}

pub(super) struct Owner {
    pub(super) me: NodeId,
    pub(super) greeter: Greeter,
    pub(super) endpoints: Endpoints,
    pub(super) book: DialBook,
    sightings: Sightings,
    /// Where peers agree to see this node.
    pub(super) seen: watch::Sender<Vec<SocketAddr>>,
    /// The relays of this node, and of others.
    pub(super) relaying: Relaying,
    pub(super) current: BTreeMap<NodeId, Arc<Link>>,
    links: Links,
    /// The second circuits.
    pub(super) seconds: SecondLinks,
    pub(super) pool: Pool,
    pub(super) lanes: Lanes,
    /// Where only lanes reach nodes.
    pub(super) lane_addresses: BTreeMap<NodeId, Vec<LaneAddress>>,
    /// `None` in a network in memory.
    pub(super) lane_dialler: Option<LaneDialler>,
    /// By which way nodes are reached.
    pub(super) ways: Ways,
    /// Whether UDP still leads to them.
    pub(super) unanswered: Unanswered,
    pub(super) certified: Certified,
    /// When the first certificate of a connection may have ended.
    pub(super) judge_at: Option<std::time::Instant>,
    /// When to look whether this machine has moved; `None` where addresses are not those of a machine.
    pub(super) move_at: Option<std::time::Instant>,
    /// Hears where members are.
    doorway: mpsc::Sender<Note>,
    pub(super) inbox: Inbox,
    pub(super) flows: mpsc::Sender<FlowStream>,
    connected: watch::Sender<usize>,
    pub(super) twins: Twins,
    /// Where an earlier process with this node's identity runs.
    pub(super) twin: watch::Sender<Option<SocketAddr>>,
    /// When this node last looked for another process of itself.
    pub(super) sought: Option<std::time::Instant>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stage: Stage,
}

/// One wake-up of the owner.
enum Input {
    Report(Report),
    Command(Command),
    Timeout,
    Stop,
}

impl Owner {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut reports: mpsc::Receiver<Report>) {
        let stop = self.stage.stopping().clone();
        loop {
            let deadlines = [
                self.book.next_deadline(),
                self.sightings.next_deadline(),
                self.ways.next_deadline(),
                self.relaying.next_deadline(),
                self.seconds.next_deadline(),
                self.judge_at,
                self.move_at,
            ];
            let deadline = deadlines.into_iter().flatten().min();
            let input = tokio::select! {
                biased;
                () = stop.cancelled() => Input::Stop,
                Some(report) = reports.recv() => Input::Report(report),
                Some(command) = commands.recv() => Input::Command(command),
                () = clock::sleep_until(deadline) => Input::Timeout,
            };
            match input {
                Input::Report(report) => self.handle_report(report).await,
                Input::Command(command) => self.handle_command(command).await,
                Input::Timeout => {}
                Input::Stop => break,
            }
            self.dial_due();
            self.sightings.handle_timeout(clock::now().mono);
            self.publish_seen();
            self.keep_relays();
            if self.judge_at.is_some_and(|at| at <= clock::now().mono) {
                self.judge_connections();
            }
            if self.move_at.is_some_and(|at| at <= clock::now().mono) {
                self.look_for_moves();
                self.look_for_silence();
            }
        }
        self.endpoints.endpoint.close(CLOSE_DOWN.into(), b"leaving");
        // The close reaches live peers at once; a dead one would be waited for during three probe timeouts.
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.endpoints.endpoint.wait_idle()).await;
    }

    fn learn_seeds(&mut self, identity: &Identity) {
        for seed in &identity.seeds {
            if identity.by_lane {
                self.ways.handle_detour(seed.node, Detour::Lane, clock::now().mono);
            }
            // An earlier run of this node may have sent it something a moment ago.
            self.relaying.core.handle_sent(seed.node, clock::now().mono);
            self.learn_lanes(seed.node, seed.lanes.clone());
            self.book.learn(seed.node, &seed.addresses, Source::Hint, clock::now().mono);
        }
    }

    async fn handle_report(&mut self, report: Report) {
        match report {
            Report::Greeted(greeted) => {
                self.note_addresses(&greeted);
                self.led(&greeted).await;
                match greeted.purpose {
                    Purpose::Control => self.add_link(greeted).await,
                    Purpose::Data => self.add_data(greeted),
                    Purpose::Swim => self.add_second(greeted),
                }
            }
            Report::MetAnother { node, addresses } => {
                let now = clock::now().mono;
                addresses.into_iter().for_each(|address| self.book.met_another(node, address, now));
            }
            Report::LedAstray { node, relays } => self.led_astray(node, relays).await,
            Report::DialFailed(errand) => self.dial_failed(errand),
            Report::LinkEnded { node, stable_id } => self.remove_link(node, stable_id).await,
            Report::ToldOfTwin(at) => self.seek_twin(at),
            Report::SecondEnded { node, stable_id } => self.remove_second(node, stable_id),
            Report::DataEnded { node, stable_id } => self.pool.ended(node, stable_id),
            Report::LaneReady { lane, peer, dialled } => self.add_lane(lane, peer, dialled),
            Report::LaneEnded { node, stable_id } => self.lanes.ended(node, stable_id),
            Report::UdpSilent { node, stable_id } => self.leave_udp(node, stable_id),
            Report::DialBack { node, purpose } => self.dial_back(node, purpose),
        }
    }

    async fn handle_command(&mut self, command: Command) {
        match command {
            Command::Learn { node, addresses, source } => {
                self.book.learn(node, &addresses, source, clock::now().mono);
            }
            Command::Lanes { node, lanes } => self.learn_lanes(node, lanes),
            Command::Relays { node, relays } => self.learn_relays(node, relays),
            Command::Forget(node) => self.forget(node),
            Command::Up(node) => self.book.set_standing(node, Standing::Live, clock::now().mono),
            Command::Gone { node, has_left } => self.gone(node, has_left).await,
            Command::Look { node, caller } => self.look(node, caller),
            Command::Reach(node) => self.book.reach(node, clock::now().mono),
            Command::OpenData { node, caller } => self.open_data(node, caller),
            Command::OpenLane { node, caller } => {
                // In a network in memory who waits hears that there is none.
                if self.lane_dialler.is_some() {
                    self.open_lane(node, Wait { caller, only_lane: true });
                }
            }
            Command::Refuse(node) => {
                if let Some(link) = self.current.get(&node) {
                    self.metrics.bad_frame();
                    link.connection.close(CLOSE_BAD_BYTES.into(), b"statements");
                }
            }
            Command::Certified { node, until } => self.certified.set(node, until),
            Command::Statements(new) => {
                for frame in frames_of(&new) {
                    self.current.values().for_each(|link| Self::tell(link, &frame));
                }
                self.judge_connections();
            }
        }
    }

    async fn gone(&mut self, node: NodeId, has_left: bool) {
        let now = clock::now().mono;
        match has_left {
            true => self.book.left(node, now),
            false => self.book.set_standing(node, Standing::Silent, now),
        }
        self.end_second(node);
        self.forget_astray(node).await;
        let link = self.current.get(&node).map(|link| link.connection.clone());
        let data = self.pool.remove(node).into_iter().map(|data| data.connection.into());
        for connection in link.into_iter().chain(data).chain(self.lanes.remove(node)) {
            connection.close(CLOSE_DOWN.into(), b"down");
        }
    }

    /// Sends statements on a link; one that cannot take them is given up, for the next one begins with all of them.
    fn tell(link: &Link, frame: &Frame) {
        if !link.send_frame(frame) {
            link.connection.close(CLOSE_IDLE.into(), b"does not read");
        }
    }

    /// Takes in where the peer sees this node, and where this node has reached the peer.
    fn note_addresses(&mut self, greeted: &Greeted) {
        let (node, remote) = (greeted.peer.node, greeted.connection.remote_address());
        // Who is at the address of a circuit is its relay, and an ingress stands for many.
        if greeted.connection.via().is_some() || greeted.connection.is_ingress() {
            return;
        }
        if greeted.dialled {
            self.book.reached(node, remote);
        }
        // What it sees of a lane is the port of one TCP connection.
        if greeted.connection.is_lane() {
            return;
        }
        // A peer on this machine, or one that is reached on its link only, sees what is of no use to others, and is right.
        if node == self.me || remote.ip().is_loopback() || check_ip(remote.ip()).is_err() {
            return;
        }
        if let Err(why) = self.sightings.handle_seen(node, greeted.observed, clock::now().mono) {
            tracing::debug!(peer = %node, address = %greeted.observed, %why, "a word on this node's address is refused");
            self.metrics.seen_address_refused(why.word());
        }
    }

    fn publish_seen(&self) {
        let agreed = self.sightings.agreed();
        self.seen.send_if_modified(|seen| {
            let has_changed = *seen != agreed;
            *seen = agreed;
            has_changed
        });
    }

    /// Keeps one control connection per pair: the newer one when the peer has restarted, else the one dialled
    /// by the smaller node id (design section 5).
    async fn add_link(&mut self, greeted: Greeted) {
        let node = greeted.peer.node;
        if node == self.me {
            return self.meet_self(&greeted).await;
        }
        if self.is_later_twin(&greeted).await {
            return;
        }
        if let Some(old) = self.current.get(&node).filter(|old| old.connection.close_reason().is_none()) {
            let same_process = old.nonce == greeted.nonce;
            let is_lane = greeted.connection.is_lane();
            if let Connection::Quic(quic) = &old.connection
                && same_process
                && is_lane
            {
                let quic = quic.clone();
                return self.doubt(quic, greeted);
            }
            let is_better = greeted.connection.detour() < old.connection.detour();
            let dialer = |dialled: bool| if dialled { self.me } else { node };
            let lasts = clock::now().mono.saturating_duration_since(old.since);
            let keep = keep_which(self.me, node, (dialer(old.dialled), lasts), dialer(greeted.dialled));
            if same_process && keep == Keep::First && !is_better {
                return greeted.connection.close(CLOSE_DUPLICATE.into(), b"duplicate");
            }
            old.connection.close(CLOSE_DUPLICATE.into(), b"duplicate");
        }
        // Statements may have come since the greeting judged it.
        if let Err(error) = self.greeter.identify(&greeted.connection) {
            return self.put_out(greeted.connection, &error);
        }
        self.book.connected(node, clock::now().mono);
        let remote = greeted.connection.remote_address();
        self.note_way(node, &greeted.connection);
        self.note_reach(&greeted);
        self.note_first(&greeted);
        if greeted.connection.via().is_some() {
            tracing::debug!(peer = %node, "connected through a relay");
        } else if greeted.dialled {
            let _ = self.doorway.try_send(Note::Member(remote.ip()));
        } else if !greeted.connection.is_lane() {
            self.book.learn(node, &[remote], Source::Hint, clock::now().mono);
        }
        let connection = greeted.connection.clone();
        let (link, io) = Link::new(greeted);
        // Statements that came during the greeting went to the links of that time.
        let known = self.greeter.authority.known();
        if link.statements != known.digest {
            frames_of(&known.statements).iter().for_each(|frame| Self::tell(&link, frame));
        }
        self.current.insert(node, Arc::new(link));
        self.judge_at.get_or_insert_with(|| clock::now().mono);
        self.publish_links();
        // Also for a connection that replaces another: what was under way on that one may be lost.
        let _ = self.inbox.membership.send(ToMembership::Connected(node)).await;
        let _ = self.inbox.catalog.send(ToCatalog::Connected(node)).await;
        let (inbox, metrics) = (self.inbox.clone(), Arc::clone(&self.metrics));
        self.stage.spawn_short("link", async move {
            let reports = inbox.reports.clone();
            io.run(inbox, metrics).await;
            report_end(&reports, node, &connection).await;
        });
    }

    async fn remove_link(&mut self, node: NodeId, stable_id: usize) {
        let is_current = self.current.get(&node).is_some_and(|link| link.connection.stable_id() == stable_id);
        if !is_current {
            return;
        }
        if let Some(link) = self.current.remove(&node) {
            self.went_silent(node, &link.connection).await;
        }
        self.publish_links();
        self.relaying.core.handle_lost(node, clock::now().mono);
        self.seconds.first_lost(node);
        self.book.disconnected(node, clock::now().mono);
        let _ = self.inbox.membership.send(ToMembership::Disconnected(node)).await;
        let _ = self.inbox.catalog.send(ToCatalog::Disconnected(node)).await;
    }

    fn publish_links(&self) {
        self.links.store(Arc::new(self.current.clone()));
        self.connected.send_replace(self.current.len());
    }

    fn add_data(&mut self, greeted: Greeted) {
        let Greeted { connection, peer, dialled, .. } = greeted;
        if let Err(error) = self.greeter.identify(&connection) {
            return self.put_out(connection, &error);
        }
        self.judge_at.get_or_insert_with(|| clock::now().mono);
        let connection = match connection {
            Connection::Quic(connection) => connection,
            Connection::Lane(lane) => return self.await_lane(lane, peer, dialled),
        };
        widen(&connection);
        let node = peer.node;
        let data = DataConnection::new(connection.clone(), peer, self.pool.budget(node));
        if !self.pool.insert(data.clone()) {
            return connection.close(CLOSE_DUPLICATE.into(), b"too many data connections");
        }
        let (flows, stop) = (self.flows.clone(), self.stage.stopping().clone());
        let (reports, metrics) = (self.inbox.reports.clone(), Arc::clone(&self.inbox.metrics));
        // Peers of a network in memory cannot be reached by other sockets.
        let canary = self.move_at.map(|_| Canary::new(Arc::clone(&self.links), node, Arc::clone(&metrics)));
        self.stage.spawn_short("data", async move {
            data.run(flows, stop, canary, || metrics.stray_datagram()).await;
            let stable_id = connection.stable_id();
            let _ = reports.send(Report::DataEnded { node, stable_id }).await;
        });
    }

    pub(super) fn open_data(&mut self, node: NodeId, caller: super::data::Waiting) {
        if self.ways.detour(node).is_some() && self.lane_dialler.is_some() {
            return self.open_lane(node, Wait { caller, only_lane: false });
        }
        if self.pool.request(node, caller) {
            self.dial_data(node);
        }
    }

    fn dial_failed(&mut self, errand: Errand) {
        match errand {
            Errand { node, purpose: Purpose::Data, by: By::Lane | By::Circuit, opener } => {
                self.lane_dial_failed(node, opener);
            }
            Errand { node, purpose: Purpose::Data, .. } => self.data_dial_failed(node),
            Errand { node, purpose: Purpose::Swim, .. } => self.seconds.lost(node),
            // A link lives meanwhile, or another dial.
            Errand {
                purpose: Purpose::Control,
                by: By::Udp | By::Direct(_) | By::Lane | By::Circuit | By::Detours,
                ..
            } => {}
            Errand { node, purpose: Purpose::Control, .. } => {
                self.metrics.dial_failed();
                self.book.failed(node, clock::now().mono);
            }
        }
    }

    fn dial_due(&mut self) {
        while let Some(dial) = self.book.next_dial(clock::now().mono) {
            self.dial(self.control(dial.node), self.place(dial.node, dial.addresses));
        }
        self.try_direct_again();
        self.keep_seconds();
        // One at a time: it counts until its end is reported.
        let surplus = self.book.next_surplus(clock::now().mono);
        if let Some(link) = surplus.and_then(|node| self.current.get(&node)) {
            link.connection.close(CLOSE_IDLE.into(), b"more than are kept warm");
        }
    }
}
