//! The caller's end of a UDP flow: which instance has it, and what its program says meanwhile.
//!
//! Owns: one flow. Must not know: how its program is listened to. Driven by: `vip`, which makes it and gives it
//! datagrams; its own task, which opens it and carries what comes back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream, StreamId};
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use gossamer_core::catalog::{InstanceState, ServiceView};
use gossamer_core::vip::VipName;
use gossamer_wire::flow::{OpenRequest, OpenStatus, encode_framed};
use gossamer_wire::limits::MAX_EARLY_BYTES;
use gossamer_wire::{InstanceName, NodeId, Transport};

use super::frames::{self, Ended};
use super::queue::Queue;
use super::{Udp, Used, add, sockets};
use crate::relay::copy::Guarded;
use crate::relay::flow::FlowId;
use crate::relay::outbound::{AGAIN, Choice, Failure, Try, elsewhere};
use crate::relay::scope::{PortChoice, behind};
use crate::relay::{ConnectError, Relay, count};
use crate::transport::{FlowStream, Registered, Sent};

/// A flow as who gives it datagrams sees it.
#[derive(Debug)]
pub(super) struct Pinned {
    udp: Arc<Udp>,
    /// Until it is open; then those that go on its stream.
    queue: Queue,
    way: ArcSwapOption<Way>,
    used: Used,
    /// Its end: asked for, or reached.
    over: CancellationToken,
    is_refused: AtomicBool,
    slot: std::sync::Mutex<Option<OwnedSemaphorePermit>>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    back: Back,
}

/// Where answers go: from the VIP to the client.
#[derive(Clone, Debug)]
pub(super) struct Back {
    pub(super) socket: Arc<UdpSocket>,
    pub(super) client: SocketAddr,
}

/// Where an open flow goes.
#[derive(Debug)]
struct Way {
    node: NodeId,
    instance: InstanceName,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Hop(crate::transport::Datagrams, StreamId),
    Local(Arc<UdpSocket>),
}

/// The far end of a flow that was just opened.
pub(super) enum Far {
    Hop { stream: Guarded<FlowStream>, _registered: Registered },
    Local(Arc<UdpSocket>),
}

/// Why a flow is over.
#[derive(Debug)]
enum Over {
    Idle,
    Stopping,
    /// Its listener has closed, its instance is gone, or another flow needs its place.
    Released,
    Refused,
    Ended(String),
}

impl Pinned {
    pub(super) fn new(
        udp: &Arc<Udp>,
        back: Back,
        slot: OwnedSemaphorePermit,
        over: CancellationToken,
    ) -> Self {
        let this = Self {
            udp: Arc::clone(udp),
            queue: Queue::new(Arc::clone(&udp.queued)),
            way: ArcSwapOption::empty(),
            used: Used::default(),
            over,
            is_refused: AtomicBool::new(false),
            slot: std::sync::Mutex::new(Some(slot)),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            back,
        };
        this.used.touch(udp);
        udp.counters.open.fetch_add(1, Ordering::Relaxed);
        this
    }

    /// Returns whether it takes no more datagrams.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Returns when it last carried one.
    pub(super) fn used_at(&self) -> u64 {
        self.used.at()
    }

    /// Ends it and gives its place free at once.
    pub(super) fn release(&self) {
        self.over.cancel();
        let slot = self.slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if slot.is_some() {
            self.udp.counters.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns whether a new view of the service still has its instance; one that is not open yet will see.
    pub(super) fn is_behind(&self, view: &ServiceView, name: &VipName) -> bool {
        self.way.load().as_ref().is_none_or(|way| {
            behind(view, name).any(|found| {
                found.node == way.node
                    && found.instance == way.instance
                    && found.state == InstanceState::Usable
            })
        })
    }

    /// Takes a datagram of the client. Never waits.
    pub(super) fn push(&self, payload: &[u8]) {
        self.used.touch(&self.udp);
        let way = self.way.load();
        match way.as_ref().map(|way| &way.target) {
            None => self.wait(payload),
            Some(Target::Hop(datagrams, stream)) => match datagrams.send(*stream, payload) {
                Sent::Queued => self.went(payload.len()),
                Sent::Crowded => {
                    count(&self.udp.counters.crowded);
                    self.went(payload.len());
                }
                Sent::TooLarge => self.wait(payload),
                Sent::Lost => self.over.cancel(),
            },
            Some(Target::Local(socket)) => match socket.try_send(payload) {
                Ok(_) => self.went(payload.len()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.is_refused.store(true, Ordering::Relaxed);
                    self.over.cancel();
                }
                Err(_) => count(&self.udp.counters.socket),
            },
        }
    }

    fn wait(&self, payload: &[u8]) {
        add(&self.udp.counters.queue, self.queue.push(Bytes::copy_from_slice(payload)));
    }

    fn went(&self, len: usize) {
        count(&self.udp.counters.forward);
        add(&self.bytes_in, len);
    }

    /// Sends an answer to the client.
    fn answer(&self, payload: &[u8]) {
        self.used.touch(&self.udp);
        match self.back.socket.try_send_to(payload, self.back.client) {
            Ok(_) => {
                count(&self.udp.counters.back);
                add(&self.bytes_out, payload.len());
            }
            Err(_) => count(&self.udp.counters.socket),
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.release();
    }
}

/// How an instance is asked for a UDP flow: with the datagrams that wait, so that the first is not delayed.
struct UdpTry<'a> {
    flow: &'a Arc<Pinned>,
    began: &'a mut Began,
}

/// What a flow began with.
#[derive(Default)]
struct Began {
    /// Sent to each instance that is tried.
    first: Vec<Bytes>,
    /// Instances that refused.
    refused: Vec<(NodeId, InstanceName)>,
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
        let first = &mut self.began.first;
        let mut held: usize = first.iter().map(Bytes::len).sum();
        while held < MAX_EARLY_BYTES
            && let Some(datagram) = self.flow.queue.try_pop()
        {
            held += datagram.len();
            first.push(datagram);
        }
        let request = OpenRequest {
            flow: flow.0,
            service: name.service().clone(),
            instance: choice.instance.clone(),
            port: choice.port.clone(),
            transport: Transport::Udp,
        };
        if choice.node == relay.parts.node {
            let target = relay.permitted(&request, &relay.parts.group).ok_or(Failure::Denied)?;
            let address = target.addr.ip().ok_or(Failure::Denied)?;
            let socket = sockets::towards(address).await.map_err(elsewhere)?;
            for datagram in &*first {
                if socket.try_send(datagram).is_err() {
                    count(&relay.udp.counters.socket);
                }
            }
            return Ok(Far::Local(Arc::new(socket)));
        }
        let mut stream = Guarded::new(relay.parts.hops.open_flow(choice.node).await.map_err(elsewhere)?);
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
        let mut bytes = request.encode().map_err(elsewhere)?;
        for datagram in &*first {
            bytes.extend(encode_framed(datagram).map_err(elsewhere)?);
        }
        ask(send, recv, &bytes).await?;
        Ok(Far::Hop { stream, _registered: registered })
    }

    fn is_spent(&self, choice: &Choice) -> bool {
        self.began.refused.iter().any(|(node, instance)| *node == choice.node && *instance == choice.instance)
    }
}

/// Sends a request with what follows it, and takes the answer.
async fn ask(send: &mut SendStream, recv: &mut RecvStream, bytes: &[u8]) -> Result<(), Failure> {
    let answer = async {
        let mut status = [0];
        recv.read_exact(&mut status).await.map_err(elsewhere)?;
        let [code] = status;
        match OpenStatus::try_from(code).map_err(elsewhere)? {
            OpenStatus::Open => Ok(()),
            status => Err(Failure::from(status)),
        }
    };
    // Who refuses reads no more: its answer says more than that writing failed.
    let written = async { Ok(send.write_all(bytes).await) };
    let (written, ()) = tokio::try_join!(written, answer)?;
    written.map_err(elsewhere)
}

impl Relay {
    /// Carries a UDP flow until it ends and writes its access line. One that is refused before anything came back goes
    /// to another instance with what it began with.
    pub(super) async fn carry_datagrams(self, flow: Arc<Pinned>, name: VipName, port: u16) {
        let id = FlowId::random();
        let (mut began, mut again) = (Began::default(), 0);
        while self.carry_datagrams_once(id, &flow, &name, port, &mut began).await && again < AGAIN {
            again += 1;
            count(&self.counters.retries);
        }
        flow.release();
    }

    /// Carries a flow over one instance; returns whether it was refused there unseen.
    async fn carry_datagrams_once(
        &self,
        id: FlowId,
        flow: &Arc<Pinned>,
        name: &VipName,
        port: u16,
        begun: &mut Began,
    ) -> bool {
        let began = Instant::now();
        let stop = self.parts.stage.stopping().clone();
        let mut attempt = UdpTry { flow, began: &mut *begun };
        let choice = PortChoice::Datagrams(port);
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => Err(ConnectError::Stopping),
            () = flow.over.cancelled() => Err(ConnectError::ClientGone),
            opened = self.open(id, name, &choice, &mut attempt) => opened,
        };
        let (choice, mut far, took) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                count(&self.counters.failed);
                add(&self.udp.counters.unreachable, flow.queue.len() + begun.first.len());
                tracing::info!(target: "access", flow = %id, service = %name.service(), %name, transport = "udp",
                    bytes_in = 0, bytes_out = 0, took = ?began.elapsed(), reason = %error, "flow failed");
                return false;
            }
        };
        count(&self.counters.opened);
        begun.first.iter().for_each(|datagram| flow.went(datagram.len()));
        let key = choice.key(name);
        let _in_flight = self.flows.opened(key.clone(), took);
        let _listed = self.flows.list(choice.info(id, name, began));
        flow.start(&choice, &mut far);
        let over = tokio::select! {
            biased;
            () = stop.cancelled() => Over::Stopping,
            () = flow.over.cancelled() => Over::Released,
            () = flow.used.idle(&self.udp) => Over::Idle,
            over = flow.run(&mut far) => over,
        };
        flow.way.store(None);
        let over = if flow.is_refused.swap(false, Ordering::Relaxed) { Over::Refused } else { over };
        if let Far::Hop { stream, .. } = &mut far {
            // The other side ends its flow with the stream.
            stream.finished();
            let _ = stream.side().send.finish();
            let _ = stream.side().recv.stop(crate::relay::copy::BROKEN);
        }
        let (bytes_in, bytes_out) =
            (flow.bytes_in.swap(0, Ordering::Relaxed), flow.bytes_out.swap(0, Ordering::Relaxed));
        self.counters.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.counters.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
        if matches!(over, Over::Refused | Over::Ended(_)) {
            self.flows.failed(key, Instant::now().into_std());
        }
        tracing::info!(target: "access", flow = %id, service = %name.service(), instance = %choice.instance,
            peer = %choice.node_name, transport = "udp", bytes_in, bytes_out, took = ?began.elapsed(),
            reason = over.words(), "flow ended");
        let is_unseen = matches!(over, Over::Refused) && bytes_out == 0 && !flow.over.is_cancelled();
        begun.refused.extend(is_unseen.then_some((choice.node, choice.instance)));
        is_unseen
    }
}

impl Pinned {
    /// Lets datagrams go straight on from here.
    fn start(&self, choice: &Choice, far: &mut Far) {
        let target = match far {
            Far::Local(socket) => Target::Local(Arc::clone(socket)),
            Far::Hop { stream, .. } => {
                let FlowStream { send, datagrams, .. } = stream.side();
                Target::Hop(datagrams.clone(), send.id())
            }
        };
        let (node, instance) = (choice.node, choice.instance.clone());
        self.way.store(Some(Arc::new(Way { node, instance, target })));
    }

    /// Carries what waits and what comes back.
    async fn run(&self, far: &mut Far) -> Over {
        match far {
            Far::Local(socket) => {
                // What came while it was opened.
                while let Some(datagram) = self.queue.try_pop() {
                    self.push(&datagram);
                }
                let mut buffer = BytesMut::new();
                loop {
                    match sockets::receive(socket, &mut buffer).await {
                        Ok(()) => self.answer(&buffer),
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                            return Over::Refused;
                        }
                        Err(error) => return Over::Ended(error.to_string()),
                    }
                }
            }
            Far::Hop { stream, .. } => {
                let FlowStream { send, recv, datagrams, .. } = stream.side();
                let (stream, datagrams) = (send.id(), &*datagrams);
                let up = async {
                    loop {
                        let datagram = self.queue.pop().await;
                        if datagrams.send(stream, &datagram) == Sent::TooLarge
                            && let Err(error) = frames::write(send, &datagram).await
                        {
                            return Over::Ended(error.to_string());
                        }
                        self.went(datagram.len());
                    }
                };
                let down = async {
                    loop {
                        match frames::read(recv, datagrams).await {
                            Ok(payload) => self.answer(&payload),
                            Err(Ended::Refused) => return Over::Refused,
                            Err(Ended::Finished) => return Over::Ended("the other node ended it".to_owned()),
                            Err(Ended::Broken(why)) => return Over::Ended(why),
                        }
                    }
                };
                tokio::select! {
                    over = up => over,
                    over = down => over,
                }
            }
        }
    }
}

impl Over {
    fn words(&self) -> &str {
        match self {
            Self::Idle => "idle",
            Self::Stopping => "stopping",
            Self::Released => "released",
            Self::Refused => "target refused",
            Self::Ended(why) => why,
        }
    }
}
