//! The serving end of a UDP flow: one connected socket towards the target.
//!
//! Owns: the flows of peers. Must not know: which name the caller used. Driven by: `inbound`, with a stream whose request
//! asks for datagrams.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::UdpSocket;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use gossamer_core::trust::Leaf;
use gossamer_wire::flow::{OpenRequest, OpenStatus};

use super::frames::{self, Ended, REFUSED};
use super::judged::Judged;
use super::{Udp, Used, add, sockets};
use crate::relay::copy::Guarded;
use crate::relay::flow::{Direction, FlowId, FlowInfo};
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
    /// The target has refused a datagram.
    refused: CancellationToken,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
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
        let line = |bytes_in: u64, bytes_out: u64, reason: &str| {
            tracing::info!(target: "access", %flow, service = %request.service, instance = %request.instance,
                peer = %peer.name, transport = "udp", bytes_in, bytes_out, took = ?began.elapsed(), reason,
                "flow served");
        };
        let of_peer = self.flows.admit_udp(peer.node);
        let (Some(_of_peer), Ok(_place)) = (of_peer, self.udp.served.try_acquire()) else {
            count(&self.counters.busy);
            line(0, 0, "too many UDP flows");
            return refuse(stream, OpenStatus::Busy);
        };
        let (judged, socket, mut permit) = match self.dial_datagrams(&request, &peer).await {
            Ok(dialled) => dialled,
            Err(refusal) => {
                if self.turn_away(stream, refusal.status, &peer) {
                    line(0, 0, &refusal.why);
                }
                return;
            }
        };
        let address = judged.address;
        let served = Arc::new(Served {
            relay: self.clone(),
            judged,
            socket,
            used: Used::default(),
            revoked: CancellationToken::new(),
            refused: CancellationToken::new(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        });
        served.used.touch(&self.udp);
        let side = stream.side();
        let taking = Arc::clone(&served);
        let _registered =
            side.datagrams.register(side.send.id(), Box::new(move |payload| taking.take(&payload)));
        if side.send.write_all(&[OpenStatus::Open.code()]).await.is_err() {
            return line(0, 0, "the caller went away");
        }
        count(&self.counters.served);
        self.udp.counters.open.fetch_add(1, Ordering::Relaxed);
        let _listed = self.flows.list(FlowInfo {
            flow,
            direction: Direction::Inbound,
            service: request.service.clone(),
            instance: request.instance.clone(),
            peer: peer.name.clone(),
            target: Some(address.into()),
            since: began.into_std(),
        });
        let reason = tokio::select! {
            biased;
            () = self.parts.stage.stopping().cancelled() => "stopping".to_owned(),
            () = permit.revoked() => NO_LONGER_ALLOWED.to_owned(),
            () = served.revoked.cancelled() => NO_LONGER_ALLOWED.to_owned(),
            () = served.refused.cancelled() => REFUSED_WORDS.to_owned(),
            () = served.used.idle_for(&self.udp, self.udp.idle + LONGER) => "idle".to_owned(),
            reason = served.run(stream.side()) => reason,
        };
        // Dropped without an end of its own the stream is reset, which the caller takes for the end of the flow.
        if reason == REFUSED_WORDS {
            let _ = stream.side().send.reset(REFUSED);
        }
        if reason == NO_LONGER_ALLOWED {
            count(&self.counters.revoked);
        }
        self.udp.counters.open.fetch_sub(1, Ordering::Relaxed);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (bytes_in, bytes_out) = (read(&served.bytes_in), read(&served.bytes_out));
        self.counters.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.counters.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
        line(bytes_in, bytes_out, &reason);
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
            return Err(Refusal { status: OpenStatus::Draining, why: "draining".to_owned() });
        }
        let socket = sockets::towards(judged.address).await.map_err(|_| Refusal::target("target refused"))?;
        Ok((judged, socket, permit))
    }
}

impl Served {
    fn udp(&self) -> &Udp {
        &self.relay.udp
    }

    /// Takes a datagram of the caller. Never waits.
    fn take(&self, payload: &[u8]) {
        if !self.judged.is_allowed() {
            return self.revoked.cancel();
        }
        self.used.touch(self.udp());
        match self.socket.try_send(payload) {
            Ok(_) => {
                count(&self.udp().counters.forward);
                add(&self.bytes_in, payload.len());
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
    async fn run(&self, stream: &mut FlowStream) -> String {
        let FlowStream { send, recv, datagrams, .. } = stream;
        let (id, datagrams) = (send.id(), &*datagrams);
        let up = async {
            loop {
                match frames::read(recv, datagrams).await {
                    Ok(payload) => self.take(&payload),
                    Err(Ended::Finished) => return "done".to_owned(),
                    Err(Ended::Refused) => return "the caller reset it".to_owned(),
                    Err(Ended::Broken(why)) => return why,
                }
            }
        };
        let down = async {
            let mut buffer = BytesMut::new();
            loop {
                match sockets::receive(&self.socket, &mut buffer).await {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        return REFUSED_WORDS.to_owned();
                    }
                    Err(error) => return error.to_string(),
                }
                if !self.judged.is_allowed() {
                    self.revoked.cancel();
                    continue;
                }
                self.used.touch(self.udp());
                match datagrams.send(id, &buffer) {
                    Sent::Queued => {}
                    Sent::Crowded => count(&self.udp().counters.crowded),
                    Sent::Lost => return "the connection is lost".to_owned(),
                    Sent::TooLarge => {
                        let Ok(_place) = datagrams.framing().try_acquire() else {
                            count(&self.udp().counters.crowded);
                            continue;
                        };
                        if let Err(error) = frames::write(send, &buffer).await {
                            return error.to_string();
                        }
                    }
                }
                count(&self.udp().counters.back);
                add(&self.bytes_out, buffer.len());
            }
        };
        tokio::select! {
            reason = up => reason,
            reason = down => reason,
        }
    }
}

/// How much longer this end waits for an idle flow: the caller ends flows, and an end by this one would look like the
/// instance's.
const LONGER: Duration = Duration::from_secs(10);

const REFUSED_WORDS: &str = "target refused";
