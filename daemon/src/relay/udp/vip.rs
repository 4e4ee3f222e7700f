//! A UDP port of a VIP: whose datagrams come, and to which flow each goes.
//!
//! Owns: the flows of one port by client. Must not know: why the port is bound. Driven by: `vips`, which holds one
//! [`Receiving`] per bound port.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};

use gossamer_core::catalog::ServiceView;
use gossamer_core::vip::VipName;

use super::caller::{Back, Pinned};
use super::sockets;
use crate::clients::Clients;
use crate::relay::{Relay, count};
use crate::supervise::Stage;

/// A port whose datagrams are received. Dropping it closes it soon; [`Self::close`] waits until it is closed.
#[derive(Debug)]
pub(in crate::relay) struct Receiving {
    stop: DropGuard,
    closed: oneshot::Receiver<()>,
}

impl Receiving {
    /// Runs what receives, until its token is cancelled; the port must be free when it returns.
    pub(in crate::relay) fn start<F>(stage: &Stage, receive: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = stage.stopping().child_token();
        let (closing, closed) = oneshot::channel();
        let receiving = receive(stop.clone());
        stage.spawn_short("vip-datagrams", async move {
            receiving.await;
            let _ = closing.send(());
        });
        Self { stop: stop.drop_guard(), closed }
    }

    /// Closes the port. Its flows end: their answers would have to leave from it.
    pub(in crate::relay) async fn close(self) {
        drop(self.stop);
        let _ = self.closed.await;
    }
}

/// What a port of a VIP is for.
pub(in crate::relay) struct Vip {
    pub(in crate::relay) name: VipName,
    pub(in crate::relay) port: u16,
    /// Whose datagrams are taken.
    pub(in crate::relay) clients: Clients,
    /// Called for each datagram that is.
    pub(in crate::relay) touch: Box<dyn Fn() + Send + Sync>,
}

/// A client's flow, and the view by which its instance was last found there.
struct Entry {
    flow: Arc<Pinned>,
    view: Option<Arc<ServiceView>>,
}

impl Relay {
    /// Gives each datagram of a VIP port to the flow of its client, until it is stopped. Then all flows have ended and the
    /// port is free.
    pub(in crate::relay) async fn receive_datagrams(
        self,
        socket: UdpSocket,
        vip: Vip,
        stop: CancellationToken,
    ) {
        let socket = Arc::new(socket);
        let mut flows = HashMap::new();
        let (living, mut ended) = mpsc::channel::<()>(1);
        let mut buffer = BytesMut::new();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = sweep.tick() => None,
                received = sockets::receive_from(&socket, &mut buffer) => Some(received),
            };
            match received {
                None => flows.retain(|_, entry: &mut Entry| !entry.flow.is_over()),
                Some(Ok(client)) => {
                    let back = Back { socket: Arc::clone(&socket), client };
                    self.take_datagram(&vip, &mut flows, back, &buffer, (&stop, &living));
                }
                Some(Err(error)) => {
                    tracing::debug!(err = %error, "no datagram received");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        flows.clear();
        drop(living);
        // Each flow holds a sender while it lives.
        let _ = ended.recv().await;
    }

    fn take_datagram(
        &self,
        vip: &Vip,
        flows: &mut HashMap<SocketAddr, Entry>,
        back: Back,
        payload: &[u8],
        (stop, living): (&CancellationToken, &mpsc::Sender<()>),
    ) {
        let view = self.parts.index.service(vip.name.service());
        if let Some(entry) = flows.get_mut(&back.client) {
            if entry.flow.is_pausing() {
                return count(&self.udp.counters.unreachable);
            }
            if entry.flow.is_over() {
                return self.begin(vip, flows, back, payload, (view, stop, living));
            }
            if entry.is_still_behind(view.as_ref(), &vip.name) {
                (vip.touch)();
                return entry.flow.push(payload);
            }
            // Its instance is gone: this datagram goes to another one.
            entry.flow.release();
        }
        self.begin(vip, flows, back, payload, (view, stop, living));
    }

    /// Makes a flow for a client's datagram.
    fn begin(
        &self,
        vip: &Vip,
        flows: &mut HashMap<SocketAddr, Entry>,
        back: Back,
        payload: &[u8],
        (view, stop, living): (Option<Arc<ServiceView>>, &CancellationToken, &mpsc::Sender<()>),
    ) {
        if !vip.clients.admits(back.client.ip()) {
            count(&self.counters.strangers);
            return tracing::debug!(from = %back.client, "a datagram of somebody who is no client is dropped");
        }
        (vip.touch)();
        let Some(slot) = self.slot() else {
            count(&self.udp.counters.full);
            return;
        };
        let client = back.client;
        let flow = Pinned::start(&self.udp, back, slot, stop.child_token());
        flow.push(payload);
        let carried = self.clone().carry_datagrams(Arc::clone(&flow), vip.name.clone(), vip.port);
        let alive = living.clone();
        self.parts.stage.spawn_short("udp-flow", async move {
            carried.await;
            drop(alive);
        });
        flows.insert(client, Entry { flow, view });
    }

    /// Finds a place for one more flow; the one that was idle for longest makes room, whatever its port.
    fn slot(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        let free = || Arc::clone(&self.udp.slots).try_acquire_owned().ok();
        free().or_else(|| {
            self.udp.longest_idle()?.release();
            free()
        })
    }
}

impl Entry {
    /// Returns whether its instance may still be used; looks only when the service has changed.
    fn is_still_behind(&mut self, view: Option<&Arc<ServiceView>>, name: &VipName) -> bool {
        let is_same = match (view, &self.view) {
            (Some(view), Some(known)) => Arc::ptr_eq(view, known),
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return true;
        }
        let is_behind = view.is_some_and(|view| self.flow.is_behind(view, name));
        // Which instance it will have shows when it is open.
        if self.flow.is_open() {
            self.view = view.cloned();
        }
        is_behind
    }
}

/// How often flows that have ended are forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// Pause after a failed receipt.
const PAUSE: Duration = Duration::from_millis(50);
