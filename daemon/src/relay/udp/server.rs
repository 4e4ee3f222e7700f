//! The serving end of a UDP flow: one connected socket towards the target.
//!
//! Owns: the flows of peers. Must not know: which name the caller used. Driven by: `inbound`, with a stream whose request
//! asks for datagrams.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use gossamer_core::trust::Leaf;
use gossamer_wire::Transport;
use gossamer_wire::flow::{OpenRequest, OpenStatus};

use super::frames::{self, Ended, REFUSED};
use super::judged::{Judged, Right};
use super::{Udp, Used, add, sockets};
use crate::relay::access::{End, Line, Reason};
use crate::relay::copy::{Counts, Guarded};
use crate::relay::flow::{Direction, FlowId, FlowInfo, Path};
use crate::relay::inbound::{Refusal, refuse};
use crate::relay::permits::{NO_LONGER_ALLOWED, Permit};
use crate::relay::{Relay, count};
use crate::transport::{FlowStream, Sent};

/// A flow of a peer.
struct Served {
    relay: Relay,
    judged: Judged,
    socket: UdpSocket,
    used: Used,
    /// It is no longer allowed.
    revoked: CancellationToken,
    /// The target was withdrawn, or has moved.
    gone: CancellationToken,
    /// The target has refused a datagram.
    refused: CancellationToken,
    counts: Arc<Counts>,
}

impl Relay {
    /// Serves a UDP flow until it ends and writes its access line.
    pub(in crate::relay) async fn serve_datagrams(
        self,
        mut stream: Guarded<FlowStream>,
        request: OpenRequest,
        peer: Arc<Leaf>,
    ) {
        let (flow, began) = (FlowId(request.flow), Instant::now());
        let line = Line::inbound(Some(&request), &peer, began);
        let of_peer = self.flows.admit_udp(peer.node);
        let (Some(_of_peer), Ok(_place)) = (of_peer, self.udp.served.try_acquire()) else {
            count(&self.counters.busy);
            self.finished(&Line { detail: Some("too many UDP flows"), ..line.because(Reason::Busy) });
            return refuse(stream, OpenStatus::Busy);
        };
        let (judged, socket, mut permit) = match self.dial_datagrams(&request, &peer).await {
            Ok(dialled) => dialled,
            Err(refusal) => {
                if self.turn_away(stream, refusal.status, &peer) {
                    self.finished(&Line { detail: refusal.why.as_deref(), ..line.because(refusal.reason) });
                }
                return;
            }
        };
        let served = Arc::new(Served {
            relay: self.clone(),
            judged,
            socket,
            used: Used::default(),
            revoked: CancellationToken::new(),
            gone: CancellationToken::new(),
            refused: CancellationToken::new(),
            counts: Arc::default(),
        });
        served.used.touch(&self.udp);
        let side = stream.side();
        let taking = Arc::clone(&served);
        let _registered =
            side.datagrams.register(side.send.id(), Box::new(move |payload| taking.take(&payload)));
        if side.send.write_all(&[OpenStatus::Open.code()]).await.is_err() {
            return self.finished(&line.because(Reason::ClientGone));
        }
        count(&self.counters.served);
        self.udp.counters.open.fetch_add(1, Ordering::Relaxed);
        let _listed = self.flows.list(FlowInfo {
            flow,
            direction: Direction::Inbound,
            service: request.service.clone(),
            instance: request.instance.clone(),
            peer: peer.name.clone(),
            group: peer.group.clone(),
            client: None,
            transport: Transport::Udp,
            path: Path::of(side),
            target: Some(served.judged.address.into()),
            since: began.into_std(),
            counts: Arc::clone(&served.counts),
        });
        let end = tokio::select! {
            biased;
            () = self.parts.stage.stopping().cancelled() => Reason::Stopping.into(),
            () = permit.revoked() => End::with(Reason::Revoked, NO_LONGER_ALLOWED),
            () = served.revoked.cancelled() => End::with(Reason::Revoked, NO_LONGER_ALLOWED),
            () = served.gone.cancelled() => Reason::Released.into(),
            () = served.refused.cancelled() => Reason::Refused.into(),
            () = served.used.idle_for(&self.udp, self.udp.idle + LONGER) => Reason::Idle.into(),
            end = served.run(stream.side()) => end,
        };
        // Dropped without an end of its own the stream is reset, which the caller takes for the end of the flow.
        if end.reason == Reason::Refused {
            let _ = stream.side().send.reset(REFUSED);
        }
        if end.reason == Reason::Revoked {
            count(&self.counters.revoked);
        }
        self.udp.counters.open.fetch_sub(1, Ordering::Relaxed);
        let bytes = self.counters.add_bytes(&served.counts);
        let path = Some(Path::of(stream.side()));
        let line = Line { bytes, detail: end.detail.as_deref(), path, is_open: true, ..line };
        self.finished(&line.because(end.reason));
    }

    /// Makes the socket of a flow, by every rule of the exporter.
    async fn dial_datagrams(
        &self,
        request: &OpenRequest,
        peer: &Arc<Leaf>,
    ) -> Result<(Judged, UdpSocket, Permit), Refusal> {
        let permit = self.permits.call(request, peer);
        let judged = Judged::new(self, request.clone(), Arc::clone(peer))?;
        // Only who may call it learns that.
        if self.drains(request) {
            count(&self.counters.draining);
            return Err(OpenStatus::Draining.into());
        }
        let socket = sockets::towards(judged.address).await.map_err(|error| Refusal::of(&error))?;
        Ok((judged, socket, permit))
    }
}

impl Served {
    fn udp(&self) -> &Udp {
        &self.relay.udp
    }

    /// Returns whether the flow may go on; ends it otherwise.
    fn may_go_on(&self) -> bool {
        match self.judged.judge() {
            Right::Same => return true,
            Right::Gone => self.gone.cancel(),
            Right::Denied => self.revoked.cancel(),
        }
        false
    }

    /// Takes a datagram of the caller. Never waits.
    fn take(&self, payload: &[u8]) {
        if !self.may_go_on() {
            return;
        }
        self.used.touch(self.udp());
        match self.socket.try_send(payload) {
            Ok(_) => {
                count(&self.udp().counters.forward);
                add(&self.counts.bytes_in, payload.len());
            }
            Err(error) => {
                count(&self.udp().counters.socket);
                // The system tells of a refusal once: to who sends next, or to who waits for answers.
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    self.refused.cancel();
                }
            }
        }
    }

    /// Carries datagrams both ways; returns why that ended.
    async fn run(&self, stream: &mut FlowStream) -> End {
        let FlowStream { send, recv, datagrams, .. } = stream;
        let (id, datagrams) = (send.id(), &*datagrams);
        let up = async {
            loop {
                match frames::read(recv, datagrams).await {
                    Ok(payload) => self.take(&payload),
                    Err(Ended::Finished) => return Reason::Done.into(),
                    Err(Ended::Refused) => return Reason::ClientReset.into(),
                    Err(Ended::Broken(why)) => return broken(Reason::ClientReset, why),
                }
            }
        };
        let down = async {
            let mut buffer = BytesMut::new();
            loop {
                match sockets::receive(&self.socket, &mut buffer).await {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        return Reason::Refused.into();
                    }
                    Err(error) => return broken(Reason::ServiceReset, error),
                }
                if !self.may_go_on() {
                    continue;
                }
                self.used.touch(self.udp());
                match datagrams.send(id, &buffer) {
                    Sent::Queued => {}
                    Sent::Crowded => count(&self.udp().counters.crowded),
                    Sent::Lost => return broken(Reason::ClientReset, "the connection is lost"),
                    Sent::TooLarge => {
                        let Ok(_place) = datagrams.framing().try_acquire() else {
                            count(&self.udp().counters.crowded);
                            continue;
                        };
                        if let Err(error) = frames::write(send, &buffer).await {
                            return broken(Reason::ClientReset, error);
                        }
                    }
                }
                count(&self.udp().counters.back);
                add(&self.counts.bytes_out, buffer.len());
            }
        };
        tokio::select! {
            end = up => end,
            end = down => end,
        }
    }
}

fn broken(reason: Reason, why: impl ToString) -> End {
    End { reason, detail: Some(why.to_string()) }
}

/// How much longer this end waits for an idle flow: the caller ends flows, and an end by this one would look like the
/// instance's.
const LONGER: Duration = Duration::from_secs(10);
