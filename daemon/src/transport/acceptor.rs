//! The task that takes handshakes; each is completed in a task of its own.
//!
//! Owns: the doorway, and the way to give a handshake up. Must not know: who is let in, what happens with a connection.
//! Driven by: the endpoint; the handshakes' tasks and the owner tell how they ended.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use quinn::{Endpoint, Incoming};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use gossamer_core::doorway::{Answer, Doorway, Ending, Flood, Place};
use gossamer_wire::NodeId;
use gossamer_wire::limits::MAX_HALF_OPEN;

use super::Report;
use super::accept::{Accepted, Joiners, accept, accept_lane, hand_to_issuer};
use super::by_lane::Arriving;
use super::hello::Greeter;
use super::lane::{Arrival, Carried};
use crate::clock;
use crate::events::{Event, EventLog};
use crate::metrics::Metrics;
use crate::supervise::Stage;

/// What the doorway hears besides arrivals.
#[derive(Debug)]
pub(super) enum Note {
    /// A handshake has ended.
    Ended(Place, Ending),
    /// A member is there that was dialled.
    Member(IpAddr),
}

/// Notes that wait: one for each handshake. Where a member is that was dialled is dropped when it is full.
pub(super) const NOTES: usize = MAX_HALF_OPEN;

/// What the task needs.
pub(super) struct Acceptor {
    pub(super) endpoint: Endpoint,
    pub(super) greeter: Greeter,
    pub(super) stage: Stage,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) joiners: Option<Joiners>,
    /// Lanes that come in, and what they meet.
    pub(super) arriving: Arriving,
    /// Both ends of the notes: handshakes get one.
    pub(super) notes: (mpsc::Sender<Note>, mpsc::Receiver<Note>),
    pub(super) events: EventLog,
    pub(super) metrics: Arc<Metrics>,
}

/// Who begins a handshake.
enum Knock {
    Quic(Box<Incoming>),
    Lane(Arrival),
}

impl Knock {
    fn source(&self) -> IpAddr {
        match self {
            Self::Quic(incoming) => incoming.remote_address().ip().to_canonical(),
            Self::Lane(arrival) => arrival.remote.ip().to_canonical(),
        }
    }

    /// Returns the relay of a circuit, and who has opened it.
    fn led(&self) -> Option<(NodeId, NodeId)> {
        match self {
            Self::Lane(Arrival { carried: Carried::Circuit(stream, opener), .. }) => {
                Some((stream.peer.node, *opener))
            }
            Self::Quic(_) | Self::Lane(_) => None,
        }
    }

    /// Whether the source has shown that it has its address. Who speaks TCP has.
    fn is_validated(&self) -> bool {
        match self {
            Self::Quic(incoming) => incoming.remote_address_validated(),
            Self::Lane(_) => true,
        }
    }
}

impl Acceptor {
    /// Runs until the endpoint is closed, which is when the stage stops.
    pub(super) async fn run(mut self) {
        let mut doorway = Doorway::default();
        let mut open = BTreeMap::new();
        loop {
            let input = tokio::select! {
                biased;
                Some(note) = self.notes.1.recv() => Err(note),
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => Ok(Knock::Quic(Box::new(incoming))),
                    None => return,
                },
                Some(arrival) = self.arriving.queue.recv() => Ok(Knock::Lane(arrival)),
            };
            let now = clock::now().mono;
            match input {
                Err(Note::Ended(place, ending)) => {
                    open.remove(&place);
                    doorway.handle_end(place, ending, now);
                }
                Err(Note::Member(source)) => doorway.handle_member(source),
                Ok(knock) => {
                    let answer = match knock.led() {
                        Some((relay, opener)) => doorway.handle_circuit(relay, opener, now),
                        None => doorway.handle_arrival(knock.source(), knock.is_validated(), now),
                    };
                    if let Some((place, give_up)) = self.answer(knock, answer) {
                        open.insert(place, give_up);
                    }
                }
            }
            while let Some(place) = doorway.next_given_up() {
                if let Some(give_up) = open.remove(&place) {
                    self.metrics.handshake_answered("given_up");
                    give_up.cancel();
                }
            }
            if let Some(flood) = doorway.next_flood(now) {
                self.events.push(&event(&flood));
            }
        }
    }

    /// Does what the answer says. Returns the handshake that it began.
    fn answer(&self, knock: Knock, answer: Answer) -> Option<(Place, CancellationToken)> {
        if matches!(answer, Answer::Refuse | Answer::Ignore) {
            tracing::debug!(source = %knock.source(), circuit = ?knock.led(), "a handshake is turned away");
        }
        let outcome = match (answer, knock) {
            (Answer::Accept(place), knock) => {
                self.metrics.handshake_answered("accepted");
                return Some((place, self.begin(knock, place)));
            }
            (Answer::Retry, Knock::Quic(incoming)) => {
                // It cannot fail: the address was not shown yet.
                let _ = incoming.retry();
                "retried"
            }
            (Answer::Ignore, Knock::Quic(incoming)) => {
                incoming.ignore();
                "ignored"
            }
            (Answer::Refuse, Knock::Quic(incoming)) => {
                incoming.refuse();
                "refused"
            }
            // Its socket is closed.
            (Answer::Refuse | Answer::Retry | Answer::Ignore, Knock::Lane(_)) => "refused",
        };
        self.metrics.handshake_answered(outcome);
        None
    }

    fn begin(&self, knock: Knock, place: Place) -> CancellationToken {
        let (greeter, metrics, joiners) =
            (self.greeter.clone(), Arc::clone(&self.metrics), self.joiners.clone());
        let (door, stage) = (self.arriving.door.clone(), self.stage.clone());
        let (reports, notes) = (self.reports.clone(), self.notes.0.clone());
        let give_up = CancellationToken::new();
        let given_up = give_up.clone();
        self.stage.spawn_short("handshake", async move {
            let accepting = async {
                match knock {
                    Knock::Quic(incoming) => accept(*incoming, &greeter, &metrics).await,
                    Knock::Lane(arrival) => accept_lane(arrival, &door, &greeter, &metrics, &stage).await,
                }
            };
            let accepted = tokio::select! {
                biased;
                // Dropping the handshake closes its connection.
                () = given_up.cancelled() => return,
                accepted = accepting => accepted,
            };
            let ending = match &accepted {
                Accepted::Member(_) | Accepted::Looked => Ending::Member,
                Accepted::Joiner(_) | Accepted::Led | Accepted::Refused => Ending::Stranger,
                Accepted::Unfinished => Ending::Unfinished,
            };
            let _ = notes.send(Note::Ended(place, ending)).await;
            match accepted {
                Accepted::Member(greeted) => drop(reports.send(Report::Greeted(greeted)).await),
                Accepted::Joiner(connection) => hand_to_issuer(joiners.as_ref(), connection, &metrics),
                Accepted::Looked | Accepted::Led | Accepted::Refused | Accepted::Unfinished => {}
            }
        });
        give_up
    }
}

fn event(flood: &Flood) -> Event {
    let Flood { retried, turned_away, given_up } = flood;
    Event {
        who: "mesh port".to_owned(),
        was: "open",
        now: "flooded",
        cause: format!(
            "{retried} sources had to show their address, {turned_away} handshakes turned away, {given_up} given up"
        ),
        by: "self".to_owned(),
    }
}
