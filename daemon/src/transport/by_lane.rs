//! The owner's part about lanes: when one is dialled for a flow, and which of a lane and a QUIC connection stays.
//!
//! Owns: nothing; it is the owner's. Must not know: what flows carry. Driven by: `owner`.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::ConnectionError;
use rustls::ClientConfig;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use gossamer_core::astray::Astray;
use gossamer_core::dial::{Detour, Packets, UDP_ALONE};
use gossamer_core::relays::KEPT;
use gossamer_core::trust::Leaf;
use gossamer_wire::NodeId;
use gossamer_wire::frame::{Frame, Purpose};

use super::accept::{By, Errand};
use super::canary::{Verdict, look};
use super::carrier::Connection;
use super::dials::HEAD_START;
use super::endpoint::Opening;
use super::hello::Greeted;
use super::lane::{Arrival, FlowLane, Lane, LaneDialler, LaneDoor, Leading, Listener, Opener, Wait};
use super::link::{CLOSE_DOWN, CLOSE_DUPLICATE, Link};
use super::owner::{Owner, Parts};
use super::port::TcpPort;
use super::{BindError, Peers, Report, Udp, tls};
use crate::clock;
use crate::events::Event;
use crate::identity::{Identity, Live};
use crate::supervise::Stage;

/// Lanes that have come in and wait for the doorway, which is never long.
pub(super) const ARRIVALS: usize = 64;

/// Lanes that come in, and what they meet.
#[derive(Debug)]
pub(super) struct Arriving {
    /// Closed where nobody listens.
    pub(super) queue: mpsc::Receiver<Arrival>,
    pub(super) door: LaneDoor,
}

/// Makes both sides of lanes: what dials, `None` in a network in memory, and what comes in.
pub(super) fn lanes_of(
    stage: &Stage,
    identity: &Identity,
    opening: &Opening<'_>,
    (parts, peers): (&Parts, &Peers),
    queue: mpsc::Receiver<Arrival>,
) -> Result<(Option<LaneDialler>, Arriving), BindError> {
    let error = |error: rustls::Error| BindError::Tls(error.to_string());
    let server = Arc::new(tls::lane_server(&opening.side).map_err(error)?);
    let client: Arc<ClientConfig> = Arc::new(tls::lane_client(&opening.side).map_err(error)?);
    let (me, mesh) = (identity.node(), identity.mesh);
    let is_real = matches!(parts.udp, Udp::Bind(_));
    let live = Live::clone(opening.side.live);
    let leading = Arc::new(Leading::new(live, peers.clone(), Arc::clone(&parts.metrics)));
    let door = LaneDoor { config: server, me, mesh, stage: stage.clone(), leading };
    let (stage, metrics, peers) = (stage.clone(), Arc::clone(&parts.metrics), peers.clone());
    let rules = parts.rules.clone();
    let dialler = LaneDialler { config: client, mesh, stage, metrics, peers, rules };
    Ok((is_real.then_some(dialler), Arriving { queue, door }))
}

/// Listens for lanes. Without the port the mesh works where UDP does, so that a daemon starts all the same.
pub(super) fn listen(stage: &Stage, address: SocketAddr, tcp: TcpPort, parts: &Parts, peers: &Peers) {
    match tcp.and_then(TcpListener::from_std) {
        Ok(socket) => {
            let (stop, arrivals) = (stage.stopping().clone(), peers.arrivals.clone());
            stage.spawn("lanes", Listener { socket, arrivals }.run(stop));
        }
        Err(error) => {
            tracing::warn!(%address, %error,
                "TCP cannot be bound: nodes that UDP does not reach cannot dial this one; stop the program that has the port (`ss -ltnp`)");
            parts.events.push(&Event {
                who: format!("tcp port {}", address.port()),
                was: "wanted",
                now: "not bound",
                cause: format!("{error}; see who has it with `ss -ltnp`"),
                by: "self".to_owned(),
            });
        }
    }
}

impl Owner {
    /// Notes by which way a node's control connection has come.
    pub(super) fn note_way(&mut self, node: NodeId, connection: &Connection) {
        if let Some(detour) = connection.detour() {
            self.ways.handle_detour(node, detour, clock::now().mono);
            if detour == Detour::Lane {
                self.lanes.retire_circuits(node);
            }
            return;
        }
        self.ways.handle_udp(node);
        self.lanes.retire(node);
        for caller in self.lanes.take_waiting(node) {
            self.open_data(node, caller);
        }
    }

    /// A lane has come although there is a connection over UDP. A peer dials one when UDP has not answered it, which says
    /// nothing of the other direction: the lane is taken if this side hears nothing either.
    pub(super) fn doubt(&self, quic: quinn::Connection, greeted: Greeted) {
        let reports = self.inbox.reports.clone();
        self.stage.spawn_short("doubt", async move {
            if look(&quic).await == Verdict::Alive {
                return greeted.connection.close(CLOSE_DUPLICATE.into(), b"UDP works");
            }
            quic.close(CLOSE_DOWN.into(), b"silent");
            let _ = reports.send(Report::Greeted(greeted)).await;
        });
    }

    /// Looks for peers to which UDP leads no more. Each is asked once again before that is believed.
    pub(super) fn look_for_silence(&mut self) {
        if self.lane_dialler.is_none() {
            return;
        }
        self.unanswered.retain(|node| self.current.contains_key(&node));
        for (node, link) in &self.current {
            let Some(quic) = link.connection.quic() else { continue };
            let stats = quic.stats();
            let packets = Packets { sent: stats.udp_tx.datagrams, received: stats.udp_rx.datagrams };
            if !self.unanswered.handle_packets(*node, packets, clock::now().mono) {
                continue;
            }
            self.ask_again(*node, quic.clone());
        }
    }

    /// Asks whether the control connection over UDP with a node still lives, and reports if not.
    fn ask_again(&self, node: NodeId, quic: quinn::Connection) {
        let reports = self.inbox.reports.clone();
        self.stage.spawn_short("silence", async move {
            if look(&quic).await == Verdict::Gone {
                let _ = reports.send(Report::UdpSilent { node, stable_id: quic.stable_id() }).await;
            }
        });
    }

    /// Dials beside a control connection that is silent: UDP may have been closed, or a translator of addresses has
    /// forgotten it, and membership must not take the peer for dead. A lane takes over if the peer hears nothing either, or
    /// else a circuit; without one nothing has changed.
    pub(super) fn leave_udp(&mut self, node: NodeId, stable_id: usize) {
        if self.current.get(&node).is_none_or(|link| link.connection.stable_id() != stable_id) {
            return;
        }
        let mut to = self.whereabouts(node);
        // Who believes that others can dial it names no relay, and has a connection with each of them all the same.
        let is_relay = |link: &Link| link.is_relay && link.connection.via().is_none();
        let connected = self.current.iter().filter(|(other, link)| **other != node && is_relay(link));
        let others: Vec<_> =
            connected.map(|(relay, _)| *relay).filter(|relay| !to.relays.contains(relay)).collect();
        to.relays.extend(others.into_iter().take(KEPT));
        tracing::debug!(peer = %node, relays = to.relays.len(), "nothing comes over UDP; trying TCP and relays");
        let (purpose, opener) = (Purpose::Control, Opener::Dialler);
        self.dial(Errand { node, purpose, by: By::Detours, opener }, to);
    }

    /// Dials directly whom a detour leads to, from time to time: what answers replaces the detour.
    pub(super) fn try_direct_again(&mut self) {
        let now = clock::now().mono;
        while let Some(node) = self.ways.next_try(now) {
            let Some(link) = self.current.get(&node) else {
                self.ways.handle_lost(node);
                continue;
            };
            let by = match link.connection.detour() {
                // Only flows have left UDP: the next one tries it again.
                None => {
                    self.ways.handle_udp(node);
                    continue;
                }
                Some(Detour::Lane) => By::Udp,
                Some(Detour::Circuit) => By::Direct(UDP_ALONE),
            };
            let (purpose, opener) = (Purpose::Control, Opener::Dialler);
            self.dial(Errand { node, purpose, by, opener }, self.place(node, self.udp_addresses(node)));
        }
    }

    /// Gives a flow on a lane to the caller, as soon as there is one.
    pub(super) fn open_lane(&mut self, node: NodeId, wait: Wait) {
        if self.lanes.request(node, wait) {
            self.dial_lane(node);
        }
    }

    /// As with data connections, a peer that dialled the control connection may be the only one that can: it is asked, and
    /// this node dials only when that has brought nothing. Who has relays in common with it needs no such help.
    fn dial_lane(&mut self, node: NodeId) {
        let to = self.whereabouts(node);
        let by = match self.ways.detour(node) {
            Some(Detour::Circuit) if !to.relays.is_empty() => By::Circuit,
            _ => By::Lane,
        };
        let (purpose, opener) = (Purpose::Data, Opener::Dialler);
        let errand = Errand { node, purpose, by, opener };
        // Where UDP works it would dial that.
        let may_ask = by == By::Lane && self.ways.detour(node).is_some();
        let asked = self.current.get(&node).filter(|link| may_ask && !link.dialled);
        if !asked.is_some_and(|link| link.send_frame(&Frame::DialBack(Purpose::Data))) {
            return self.dial(errand, to);
        }
        let (answered, dialling) = (self.lanes.asked(node), self.dialling(errand, to));
        self.stage.spawn_short("dial", async move {
            let dialling = async {
                tokio::time::sleep(HEAD_START).await;
                dialling.await;
            };
            tokio::select! {
                biased;
                // The peer's lane is there.
                _ = answered => {}
                () = dialling => {}
            }
        });
    }

    /// Takes a lane for flows into use when its greeting is over at both ends.
    pub(super) fn await_lane(&self, lane: Lane, peer: Arc<Leaf>, dialled: bool) {
        let reports = self.inbox.reports.clone();
        self.stage.spawn_short("lane greeting", async move {
            // Also of one that has ended: its dial counts until then.
            lane.greeted().await;
            let _ = reports.send(Report::LaneReady { lane, peer, dialled }).await;
        });
    }

    pub(super) fn add_lane(&mut self, lane: Lane, peer: Arc<Leaf>, dialled: bool) {
        let (node, opens_here) = (peer.node, lane.opens_here());
        // Whether it stands in for a data connection, which UDP has not brought.
        let is_instead = match (dialled, opens_here) {
            (true, true) => !self.lanes.dialled(node),
            (true, false) => {
                self.pool.dial_back_ended(node);
                false
            }
            (false, true) => !self.lanes.answered(node) && self.pool.is_wanted(node),
            (false, false) => false,
        };
        let control = self.current.get(&node).map(|link| link.connection.quic().cloned());
        if let Some(detour) = Connection::Lane(lane.clone()).detour()
            && (is_instead || control.is_none())
        {
            // Also where no control connection says so: the next flow need not wait for UDP.
            self.ways.handle_detour(node, detour, clock::now().mono);
        }
        if let Some(quic) = control.flatten()
            && is_instead
        {
            self.ask_again(node, quic);
        }
        let flow_lane = FlowLane { lane: lane.clone(), peer };
        let (may_stay, wants_dial) = self.lanes.insert(flow_lane.clone());
        if !may_stay {
            return lane.close(CLOSE_DUPLICATE.into(), b"too many lanes");
        }
        if wants_dial {
            self.dial_lane(node);
        }
        if opens_here && self.ways.detour(node).is_some() {
            // UDP had its chance.
            for caller in self.pool.take_waiting(node) {
                self.open_lane(node, Wait { caller, only_lane: false });
            }
        }
        let (flows, reports) = (self.flows.clone(), self.inbox.reports.clone());
        let stop = self.stage.stopping().clone();
        self.stage.spawn_short("flow lane", async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = flow_lane.run(flows) => {}
            }
            let (stable_id, is_silent) =
                (lane.stable_id(), matches!(lane.close_reason(), Some(ConnectionError::TimedOut)));
            if let Some(relay) = lane.via().filter(|_| is_silent) {
                let relays = vec![(relay, Astray::Nowhere)];
                let _ = reports.send(Report::LedAstray { node, relays }).await;
            }
            let _ = reports.send(Report::LaneEnded { node, stable_id }).await;
        });
    }

    /// Who waits goes on waiting when the peer was asked to dial.
    pub(super) fn lane_dial_failed(&mut self, node: NodeId, opener: Opener) {
        if opener == Opener::Dialled {
            return self.pool.dial_back_ended(node);
        }
        let _ = self.lanes.dialled(node);
        if self.ways.detour(node).is_none() || !self.may_dial_us(node) {
            self.lanes.give_up(node);
        }
    }
}
