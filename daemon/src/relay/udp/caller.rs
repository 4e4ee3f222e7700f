//! The caller's end of a UDP flow: which instance has it, and what its program says meanwhile.
//!
//! Owns: one flow. Must not know: how its program is listened to. Driven by: `vip`, which makes it and gives it
//! datagrams; its own task, which opens it and carries what comes back.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::{Bytes, BytesMut};
use quinn::StreamId;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use gossamer_core::catalog::{InstanceState, ServiceView};
use gossamer_core::vip::VipName;
use gossamer_wire::{InstanceName, NodeId, Transport};

use super::frames::{self, Ended};
use super::judged::Right;
use super::opening::{Began, Far, Local, UdpTry};
use super::queue::Queue;
use super::{Udp, Used, add, sockets};
use crate::relay::access::{Line, Reason};
use crate::relay::copy::Counts;
use crate::relay::flow::{FlowId, InstanceKey};
use crate::relay::outbound::{AGAIN, Choice, Ends};
use crate::relay::permits::{NO_LONGER_ALLOWED, NO_LONGER_IMPORTED, revoked};
use crate::relay::scope::{PortChoice, behind};
use crate::relay::{ConnectError, Relay, count};
use crate::transport::{FlowStream, Sent};

/// A flow as who gives it datagrams sees it.
#[derive(Debug)]
pub(super) struct Pinned {
    udp: Arc<Udp>,
    /// Until it is open; then those that go on its stream.
    pub(super) queue: Queue,
    way: ArcSwapOption<Way>,
    used: Used,
    /// Its end: asked for, or reached.
    over: CancellationToken,
    /// Told of the first answer.
    answered: Notify,
    /// When no instance took it, milliseconds since the relay began; 0 for not so.
    failed_at: AtomicU64,
    number: u64,
    slot: std::sync::Mutex<Option<OwnedSemaphorePermit>>,
    counts: Arc<Counts>,
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
    /// The target has refused a datagram.
    refused: CancellationToken,
}

enum Target {
    Hop(crate::transport::Datagrams, StreamId),
    Local(Arc<Local>),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hop(_, stream) => f.debug_tuple("Hop").field(stream).finish(),
            Self::Local(local) => f.debug_tuple("Local").field(&local.judged.address).finish(),
        }
    }
}

/// Why a flow is over.
#[derive(Debug)]
enum Over {
    Idle,
    Stopping,
    /// Its listener has closed, its instance is gone, or another flow needs its place.
    Released,
    Refused,
    /// It may not go on.
    Revoked(&'static str),
    Ended(String),
}

impl Pinned {
    /// Makes a flow that is not open yet.
    pub(super) fn start(
        udp: &Arc<Udp>,
        back: Back,
        slot: OwnedSemaphorePermit,
        over: CancellationToken,
    ) -> Arc<Self> {
        let mut living = udp.living();
        living.last += 1;
        let this = Arc::new(Self {
            number: living.last,
            answered: Notify::new(),
            failed_at: AtomicU64::new(0),
            udp: Arc::clone(udp),
            queue: Queue::new(Arc::clone(&udp.queued)),
            way: ArcSwapOption::empty(),
            used: Used::default(),
            over,
            slot: std::sync::Mutex::new(Some(slot)),
            counts: Arc::default(),
            back,
        });
        living.flows.insert(this.number, Arc::downgrade(&this));
        drop(living);
        this.used.touch(udp);
        udp.counters.open.fetch_add(1, Ordering::Relaxed);
        this
    }

    /// Returns whether it takes no more datagrams.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Returns whether an instance has it.
    pub(super) fn is_open(&self) -> bool {
        self.way.load().is_some()
    }

    /// Returns whether nothing took it a moment ago: who sends on then would make flow after flow.
    pub(super) fn is_pausing(&self) -> bool {
        let failed_at = self.failed_at.load(Ordering::Relaxed);
        failed_at != 0 && self.udp.now().saturating_sub(failed_at) < PAUSE.as_millis() as u64
    }

    fn fail(&self) {
        self.failed_at.store(self.udp.now().max(1), Ordering::Relaxed);
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
            self.udp.living().flows.remove(&self.number);
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
        let Some(way) = way.as_ref() else { return self.wait(payload) };
        match &way.target {
            Target::Hop(datagrams, stream) => match datagrams.send(*stream, payload) {
                Sent::Queued => self.went(payload.len()),
                Sent::Crowded => {
                    count(&self.udp.counters.crowded);
                    self.went(payload.len());
                }
                Sent::TooLarge => self.wait(payload),
                Sent::Lost => self.over.cancel(),
            },
            Target::Local(local) => match local.judged.judge() {
                Right::Same => self.send_here(local, &way.refused, payload),
                Right::Gone => self.over.cancel(),
                Right::Denied => local.revoked.cancel(),
            },
        }
    }

    fn send_here(&self, local: &Local, refused: &CancellationToken, payload: &[u8]) {
        match local.socket.try_send(payload) {
            Ok(_) => self.went(payload.len()),
            Err(error) => {
                count(&self.udp.counters.socket);
                if error.kind() == io::ErrorKind::ConnectionRefused {
                    refused.cancel();
                }
            }
        }
    }

    fn wait(&self, payload: &[u8]) {
        add(&self.udp.counters.queue, self.queue.push(Bytes::copy_from_slice(payload)));
    }

    fn went(&self, len: usize) {
        count(&self.udp.counters.forward);
        add(&self.counts.bytes_in, len);
    }

    /// Sends an answer to the client.
    pub(super) fn answer(&self, payload: &[u8]) {
        self.used.touch(&self.udp);
        match self.back.socket.try_send_to(payload, self.back.client) {
            Ok(_) => {
                count(&self.udp.counters.back);
                add(&self.counts.bytes_out, payload.len());
            }
            Err(_) => count(&self.udp.counters.socket),
        }
        self.answered.notify_one();
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.release();
    }
}

impl Relay {
    /// Carries a UDP flow until it ends and writes its access line. One that is refused before anything came back goes
    /// to another instance with what it began with.
    pub(super) async fn carry_datagrams(self, flow: Arc<Pinned>, name: VipName, port: u16) {
        let client = Some(flow.back.client);
        let line = Line::outbound(FlowId::random(), &name, Transport::Udp, client, Instant::now());
        let (mut began, mut again) = (Began::new(Arc::clone(&flow.udp.queued)), 0);
        while self.carry_datagrams_once(&line, &flow, &name, port, (&mut began, again == AGAIN)).await
            && again < AGAIN
        {
            again += 1;
            count(&self.counters.retries);
        }
        drop(began);
        flow.release();
    }

    /// Carries a flow over one instance; returns whether it was refused there unseen. Then it has no line yet, unless this
    /// was the last time.
    async fn carry_datagrams_once(
        &self,
        line: &Line<'_>,
        flow: &Arc<Pinned>,
        name: &VipName,
        port: u16,
        (begun, is_last): (&mut Began, bool),
    ) -> bool {
        let (id, began) = (line.flow.unwrap_or_else(FlowId::random), line.began);
        let stop = self.parts.stage.stopping().clone();
        let mut attempt = UdpTry { flow, began: &mut *begun, last: None };
        let choice = PortChoice::Datagrams(port);
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => Err(ConnectError::Stopping),
            () = flow.over.cancelled() => Err(ConnectError::ClientGone),
            opened = self.open(id, name, &choice, &mut attempt) => opened,
        };
        let last = attempt.last.take();
        let (choice, mut far, took) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                count(&self.counters.failed);
                add(&self.udp.counters.unreachable, flow.queue.len() + begun.first.len());
                let said = error.to_string();
                let line = Line { detail: Some(&said), ..*line };
                self.finished(&line.failed(&error, last.as_ref()));
                flow.fail();
                return false;
            }
        };
        count(&self.counters.opened);
        begun.first.iter().for_each(|datagram| flow.went(datagram.len()));
        let key = choice.key(name);
        let _in_flight = self.flows.began(key.clone());
        let (transport, counts) = (Transport::Udp, Arc::clone(&flow.counts));
        let ends = Ends { client: line.client, transport, path: far.path(), counts };
        let _listed = self.flows.list(choice.info(id, name, began, ends));
        let mut imported = self.import(name, &choice);
        let refused = flow.open(&choice, &mut far);
        let over = tokio::select! {
            biased;
            () = stop.cancelled() => Over::Stopping,
            () = refused.cancelled() => Over::Refused,
            () = flow.over.cancelled() => Over::Released,
            () = revoked(&mut imported) => Over::Revoked(NO_LONGER_IMPORTED),
            () = flow.used.idle_for(&self.udp, self.udp.idle) => Over::Idle,
            over = flow.run(&mut far) => over,
            over = self.settle(flow, begun, (&key, took)) => over,
        };
        flow.way.store(None);
        if matches!(over, Over::Revoked(_)) {
            count(&self.counters.revoked);
        }
        if let Far::Hop { stream, .. } = &mut far {
            // The other side ends its flow with the stream.
            stream.finished();
            let _ = stream.side().send.finish();
            let _ = stream.side().recv.stop(crate::relay::copy::BROKEN);
        }
        let (bytes_in, bytes_out) = flow.counts.take();
        self.counters.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        self.counters.bytes_out.fetch_add(bytes_out, Ordering::Relaxed);
        // A flow that was answered says nothing against its instance when it ends.
        if matches!(over, Over::Refused) || matches!(over, Over::Ended(_)) && bytes_out == 0 {
            self.flows.failed(key, Instant::now().into_std());
        }
        let is_refused = matches!(over, Over::Refused) && bytes_out == 0 && !flow.over.is_cancelled();
        let is_unseen = is_refused && !begun.first.is_empty();
        if !is_unseen || is_last {
            let (bytes, path) = ((bytes_in, bytes_out), Some(far.path()));
            let line = Line { bytes, detail: over.detail(), path, is_open: true, ..*line };
            self.finished(&line.to(&choice).because(over.reason()));
        }
        if is_refused {
            flow.fail();
        }
        begun.refused.extend(is_unseen.then_some((choice.node, choice.instance)));
        is_unseen
    }
}

impl Relay {
    /// Notes that the instance is there when it answers, and forgets what the flow began with as soon as that is too old
    /// for another one. Never resolves.
    async fn settle(&self, flow: &Pinned, begun: &mut Began, (key, took): (&InstanceKey, Duration)) -> Over {
        let is_early = timeout(AGAIN_WITHIN, flow.answered.notified()).await.is_ok();
        begun.settle();
        if !is_early {
            flow.answered.notified().await;
        }
        self.flows.answered(key.clone(), took);
        std::future::pending().await
    }
}

impl Pinned {
    /// Lets datagrams go straight on from here. Returns what tells of a refusal.
    fn open(&self, choice: &Choice, far: &mut Far) -> CancellationToken {
        let target = match far {
            Far::Local(local, _) => Target::Local(Arc::clone(local)),
            Far::Hop { stream, .. } => {
                let FlowStream { send, datagrams, .. } = stream.side();
                Target::Hop(datagrams.clone(), send.id())
            }
        };
        let (node, instance) = (choice.node, choice.instance.clone());
        let refused = CancellationToken::new();
        self.way.store(Some(Arc::new(Way { node, instance, target, refused: refused.clone() })));
        refused
    }

    /// Carries what waits and what comes back.
    async fn run(&self, far: &mut Far) -> Over {
        match far {
            Far::Local(local, permit) => {
                let up = async {
                    loop {
                        // What came while it was opened.
                        self.queue.filled().await;
                        self.queue.try_pop().iter().for_each(|datagram| self.push(datagram));
                    }
                };
                let down = async {
                    let mut buffer = BytesMut::new();
                    loop {
                        match sockets::receive(&local.socket, &mut buffer).await {
                            Ok(()) => match local.judged.judge() {
                                Right::Same => self.answer(&buffer),
                                Right::Gone => return Over::Released,
                                Right::Denied => return Over::Revoked(NO_LONGER_ALLOWED),
                            },
                            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                                return Over::Refused;
                            }
                            Err(error) => return Over::Ended(error.to_string()),
                        }
                    }
                };
                tokio::select! {
                    () = permit.revoked() => Over::Revoked(NO_LONGER_ALLOWED),
                    () = local.revoked.cancelled() => Over::Revoked(NO_LONGER_ALLOWED),
                    over = up => over,
                    over = down => over,
                }
            }
            Far::Hop { stream, .. } => {
                let FlowStream { send, recv, datagrams, .. } = stream.side();
                let (stream, datagrams) = (send.id(), &*datagrams);
                let up = async {
                    loop {
                        self.queue.filled().await;
                        // What waits for its turn stays where it counts.
                        let _place = datagrams.framing().acquire().await;
                        let Some(datagram) = self.queue.try_pop() else { continue };
                        match datagrams.send(stream, &datagram) {
                            Sent::Queued => {}
                            Sent::Crowded => count(&self.udp.counters.crowded),
                            Sent::Lost => return Over::Ended("the connection is lost".to_owned()),
                            Sent::TooLarge => {
                                if let Err(error) = frames::write(send, &datagram).await {
                                    return Over::Ended(error.to_string());
                                }
                            }
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
    const fn reason(&self) -> Reason {
        match self {
            Self::Idle => Reason::Idle,
            Self::Stopping => Reason::Stopping,
            Self::Released => Reason::Released,
            Self::Refused => Reason::Refused,
            Self::Revoked(_) => Reason::Revoked,
            Self::Ended(_) => Reason::ServiceReset,
        }
    }

    fn detail(&self) -> Option<&str> {
        match self {
            Self::Ended(why) => Some(why),
            Self::Revoked(why) => Some(why),
            Self::Idle | Self::Stopping | Self::Released | Self::Refused => None,
        }
    }
}

/// Within this what a flow began with may be sent to another instance, which then has it once: after that it would be old
/// news.
const AGAIN_WITHIN: Duration = Duration::from_secs(2);

/// How long datagrams of a client are dropped after nothing took its flow.
const PAUSE: Duration = Duration::from_millis(250);
