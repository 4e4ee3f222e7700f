//! The opening of a UDP flow: which instance takes what it began with.
//!
//! Owns: one try at one instance, the datagrams that may be sent to another. Must not know: what a flow does when it is open.
//! Driven by: `caller`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use gossamer_core::vip::VipName;
use gossamer_wire::flow::{OpenRequest, OpenStatus, encode_framed};
use gossamer_wire::limits::MAX_EARLY_BYTES;
use gossamer_wire::{InstanceName, NodeId, Transport};

use super::caller::Pinned;
use super::judged::Judged;
use super::queue::Queue;
use super::sockets;
use crate::relay::access::Missed;
use crate::relay::copy::Guarded;
use crate::relay::flow::{FlowId, Path};
use crate::relay::inbound::Refusal;
use crate::relay::outbound::{Choice, Try};
use crate::relay::permits::Permit;
use crate::relay::tries::{Failure, unreached};
use crate::relay::{Relay, count};
use crate::transport::{FlowStream, RecvStream, Registered, SendStream};

/// The far end of a flow that was just opened.
pub(super) enum Far {
    Hop { stream: Guarded<FlowStream>, _registered: Registered },
    Local(Arc<Local>, Permit),
}

impl Far {
    pub(super) fn path(&mut self) -> Path {
        match self {
            Self::Hop { stream, .. } => Path::of(stream.side()),
            Self::Local(..) => Path::Local,
        }
    }
}

/// A target on this node.
pub(super) struct Local {
    pub(super) socket: UdpSocket,
    pub(super) judged: Judged,
    /// It is no longer allowed.
    pub(super) revoked: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// How an instance is asked for a UDP flow: with the datagrams that wait, so that the first is not delayed.
pub(super) struct UdpTry<'a> {
    pub(super) flow: &'a Arc<Pinned>,
    pub(super) began: &'a mut Began,
    pub(super) last: Option<Missed>,
}

/// What a flow began with.
pub(super) struct Began {
    /// Sent to each instance that is tried.
    pub(super) first: Vec<Bytes>,
    bytes: usize,
    /// Where they count like those that wait.
    all: Arc<AtomicUsize>,
    /// Instances that refused.
    pub(super) refused: Vec<(NodeId, InstanceName)>,
}

impl Began {
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        Self { first: Vec::new(), bytes: 0, all, refused: Vec::new() }
    }

    /// Takes what waits, as much as a request may be followed by.
    fn take(&mut self, queue: &Queue) {
        while let Some(datagram) = queue.try_pop_within(MAX_EARLY_BYTES.saturating_sub(self.bytes)) {
            self.bytes += datagram.len();
            self.all.fetch_add(datagram.len(), Ordering::Relaxed);
            self.first.push(datagram);
        }
    }

    /// Forgets it: too old to be sent again.
    pub(super) fn settle(&mut self) {
        self.first = Vec::new();
        self.all.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Began {
    fn drop(&mut self) {
        self.settle();
    }
}

impl Try for UdpTry<'_> {
    type Far = Far;

    async fn try_one(
        &mut self,
        relay: &Relay,
        flow: FlowId,
        name: &VipName,
        choice: &Choice,
    ) -> Result<Far, Failure> {
        self.began.take(&self.flow.queue);
        let request = OpenRequest {
            flow: flow.0,
            service: name.service().clone(),
            instance: choice.instance.clone(),
            port: choice.port.clone(),
            transport: Transport::Udp,
        };
        if choice.node == relay.parts.node {
            let permit = relay.permits.call(&request, &relay.parts.leaf);
            let local = Local::open(relay, request, &self.began.first).await;
            if matches!(&local, Err(Failure::Refused | Failure::Unreached(_))) {
                self.began.refused.push((choice.node, choice.instance.clone()));
            }
            return Ok(Far::Local(Arc::new(local?), permit));
        }
        let mut stream = Guarded::new(relay.open_hop(choice).await.map_err(unreached)?);
        let FlowStream { send, recv, datagrams, .. } = stream.side();
        let taking = Arc::downgrade(self.flow);
        let registered = datagrams.register(
            send.id(),
            Box::new(move |payload| {
                if let Some(flow) = taking.upgrade() {
                    flow.answer(&payload);
                }
            }),
        );
        let mut bytes = request.encode().map_err(unreached)?;
        for datagram in &self.began.first {
            bytes.extend(encode_framed(datagram).map_err(unreached)?);
        }
        ask(send, recv, &bytes).await?;
        Ok(Far::Hop { stream, _registered: registered })
    }

    fn is_spent(&self, choice: &Choice) -> bool {
        self.began.refused.iter().any(|(node, instance)| *node == choice.node && *instance == choice.instance)
    }

    fn missed(&mut self, missed: Missed) {
        self.last = Some(missed);
    }
}

impl Local {
    /// Makes the socket of a flow on this node and sends what the flow began with.
    async fn open(relay: &Relay, request: OpenRequest, first: &[Bytes]) -> Result<Self, Failure> {
        let judged = Judged::new(relay, request.clone(), Arc::clone(&relay.parts.leaf));
        let judged = judged.map_err(|refusal| Failure::from(refusal.status))?;
        if relay.drains(&request) {
            return Err(Failure::Draining);
        }
        let place = Arc::clone(&relay.udp.served).try_acquire_owned();
        let place = place.map_err(|_| Failure::Busy)?;
        let towards = sockets::towards(judged.address).await;
        let socket = towards.map_err(|error| Failure::from(Refusal::of(&error).status))?;
        for datagram in first {
            if let Err(error) = socket.try_send(datagram) {
                count(&relay.udp.counters.socket);
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    return Err(Failure::Refused);
                }
            }
        }
        Ok(Self { socket, judged, revoked: CancellationToken::new(), _place: place })
    }
}

/// Sends a request with what follows it, and takes the answer.
async fn ask(send: &mut SendStream, recv: &mut RecvStream, bytes: &[u8]) -> Result<(), Failure> {
    let answer = async {
        let mut status = [0];
        recv.read_exact(&mut status).await.map_err(unreached)?;
        let [code] = status;
        match OpenStatus::try_from(code).map_err(unreached)? {
            OpenStatus::Open => Ok(()),
            status => Err(Failure::from(status)),
        }
    };
    // Who refuses reads no more: its answer says more than that writing failed.
    let written = async { Ok(send.write_all(bytes).await) };
    let (written, ()) = tokio::try_join!(written, answer)?;
    written.map_err(unreached)
}
