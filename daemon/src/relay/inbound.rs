//! Inbound flows: from a peer's stream to a target registered on this node.
//!
//! Owns: the exporter's side of access, the dial. Must not know: which name the caller used, other instances.
//! Driven by: streams of data connections. `outbound` uses the same rules for flows that stay here.
//!
//! A request names (service, instance, port), never an address: only registered targets are dialled, and each
//! is judged by the deny list again at that moment. "Not allowed" and "not here" look alike to the peer.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use gossamer_wire::flow::{OpenRequest, OpenStatus, PREFIX_BYTES};
use gossamer_wire::{GroupName, Transport};

use super::copy::{BROKEN, Counts, Early, Guarded, copy};
use super::flow::{Direction, FlowId, FlowInfo};
use super::{Relay, count};
use crate::transport::FlowStream;

impl Relay {
    /// Serves the streams of peers until the stage stops.
    pub(super) async fn accept_hops(self, mut inbound: mpsc::Receiver<FlowStream>) {
        let stop = self.parts.stage.stopping().clone();
        loop {
            let stream = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                stream = inbound.recv() => stream,
            };
            // The transport is gone; this task has to last as long as its stage.
            let Some(stream) = stream else { return stop.cancelled().await };
            self.parts.stage.spawn_short("flow", self.clone().serve(Guarded::new(stream)));
        }
    }

    async fn serve(self, mut stream: Guarded<FlowStream>) {
        let peer = stream.side().peer.clone();
        let Some(_admitted) = self.flows.admit(peer.node) else {
            count(&self.counters.busy);
            return refuse(stream, OpenStatus::Busy);
        };
        let request = timeout(REQUEST_WITHIN, read_request(stream.side())).await;
        let Some(request) = request.ok().flatten() else {
            count(&self.counters.malformed);
            tracing::debug!(peer = %peer.name, "flow without a valid request");
            return;
        };
        let (flow, began) = (FlowId(request.flow), Instant::now());
        let line = |bytes_in: u64, bytes_out: u64, reason: &str| {
            tracing::info!(target: "access", %flow, service = %request.service, instance = %request.instance,
                peer = %peer.name, bytes_in, bytes_out, took = ?began.elapsed(), reason, "flow served");
        };
        let target = match self.dial_target(&request, &peer.group).await {
            Ok(target) => target,
            Err(status) => {
                line(0, 0, if status == OpenStatus::Denied { "denied" } else { "target refused" });
                return refuse(stream, status);
            }
        };
        if stream.side().send.write_all(&[OpenStatus::Open.code()]).await.is_err() {
            return line(0, 0, "the caller went away");
        }
        count(&self.counters.served);
        let _listed = self.flows.list(FlowInfo {
            flow,
            direction: Direction::Inbound,
            service: request.service.clone(),
            instance: request.instance.clone(),
            peer: peer.name.clone(),
            target: target.peer_addr().ok(),
            since: began.into_std(),
        });
        let (counts, mut target) = (Counts::default(), Guarded::new(target));
        let reason = tokio::select! {
            biased;
            () = self.parts.stage.stopping().cancelled() => Some("stopping".to_owned()),
            copied = copy(&mut stream, &mut target, Early::default(), &counts) => {
                copied.err().map(|broken| broken.to_string())
            }
        };
        let (bytes_in, bytes_out) = self.counters.add_bytes(&counts);
        line(bytes_in, bytes_out, reason.as_deref().unwrap_or("done"));
    }

    /// Connects to the target of a request for a caller of `group`, by every rule of the exporter.
    pub(super) async fn dial_target(
        &self,
        request: &OpenRequest,
        group: &GroupName,
    ) -> Result<TcpStream, OpenStatus> {
        let addr = self.permitted(request, group).ok_or_else(|| {
            count(&self.counters.denied);
            OpenStatus::Denied
        })?;
        let dialled = timeout(DIAL_WITHIN, TcpStream::connect(addr)).await;
        let target = dialled.ok().and_then(Result::ok).ok_or(OpenStatus::Refused)?;
        let _ = target.set_nodelay(true);
        Ok(target)
    }

    fn permitted(&self, request: &OpenRequest, group: &GroupName) -> Option<SocketAddr> {
        let OpenRequest { service, instance, port, .. } = request;
        let target = self.parts.targets.lookup(service, instance, port)?;
        let is_open =
            target.transport == Transport::Tcp && target.visibility.admits(&self.parts.group, group);
        if !is_open {
            return None;
        }
        match self.parts.deny.check(target.addr) {
            Ok(()) => Some(target.addr),
            Err(denial) => {
                tracing::debug!(%service, %instance, reason = %denial, "a registered target is not dialled");
                None
            }
        }
    }
}

async fn read_request(stream: &mut FlowStream) -> Option<OpenRequest> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.recv.read_exact(&mut prefix).await.ok()?;
    let mut payload = vec![0; OpenRequest::decode_prefix(prefix).ok()?];
    stream.recv.read_exact(&mut payload).await.ok()?;
    OpenRequest::decode(&payload).ok()
}

/// Answers and ends both directions; the answer still arrives, what the caller sent is dropped.
fn refuse(mut stream: Guarded<FlowStream>, status: OpenStatus) {
    stream.finished();
    let FlowStream { send, recv, .. } = stream.side();
    // One byte always fits a fresh stream; if not, the connection is gone anyway.
    let written = futures_util::FutureExt::now_or_never(send.write_all(&[status.code()]));
    if matches!(written, Some(Ok(()))) {
        let _ = send.finish();
    } else {
        let _ = send.reset(BROKEN);
    }
    let _ = recv.stop(BROKEN);
}

/// How long a peer may take to send its request: it sends it with the stream's first packet.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// How long a target may take to accept (design section 9): it is near, and the caller's client waits.
const DIAL_WITHIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
