//! Inbound flows: from a peer's stream to a target registered on this node.
//!
//! Owns: the exporter's side of access, the dial. Must not know: which name the caller used, other instances.
//! Driven by: streams of data connections. `outbound` uses the same rules for flows that stay here.
//!
//! A request names (service, instance, port), never an address: only registered targets are dialled, and each
//! is judged by the deny list again at that moment. "Not allowed" and "not here" look alike to the peer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use gossamer_core::trust::spiffe_id;
use gossamer_wire::flow::{OpenRequest, OpenStatus, PREFIX_BYTES};
use gossamer_wire::{GroupName, NodeId, NodeName, Transport};

use super::copy::{BROKEN, Counts, Early, Guarded};
use super::dialled::Dialled;
use super::drain::Serving;
use super::flow::{Direction, FlowId, FlowInfo};
use super::outbound::DRAINED;
use super::{Relay, count, proxy};
use crate::register::{Connected, Place, Target};
use crate::transport::FlowStream;

/// Who calls, as the certificate says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    pub(super) node: NodeId,
    pub(super) name: &'a NodeName,
    pub(super) group: &'a GroupName,
    /// Where the node is; `None` for this one.
    pub(super) remote: Option<SocketAddr>,
}

/// A target that was dialled.
#[derive(Debug)]
pub(super) struct Dialling {
    pub(super) target: Dialled,
    pub(super) place: Place,
    /// Counts it at its registration.
    pub(super) serving: Serving,
}

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
        let (peer, remote) = (Arc::clone(&stream.side().peer), stream.side().remote);
        let _living = self.living.begin();
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
        if request.transport == Transport::Udp {
            return self.serve_datagrams(stream, request, peer).await;
        }
        let (flow, began) = (FlowId(request.flow), Instant::now());
        let line = |bytes_in: u64, bytes_out: u64, reason: &str| {
            tracing::info!(target: "access", %flow, service = %request.service, instance = %request.instance,
                peer = %peer.name, bytes_in, bytes_out, took = ?began.elapsed(), reason, "flow served");
        };
        let caller = Caller { node: peer.node, name: &peer.name, group: &peer.group, remote: Some(remote) };
        let Dialling { mut target, place, serving } = match self.dial_target(&request, &caller).await {
            Ok(dialled) => dialled,
            Err(status) => {
                line(0, 0, refusal_words(status));
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
            target: Some(place),
            since: began.into_std(),
        });
        let counts = Counts::default();
        let reason = tokio::select! {
            biased;
            () = self.parts.stage.stopping().cancelled() => Some("stopping".to_owned()),
            copied = target.copy(&mut stream, Early::default(), &counts) => {
                copied.err().map(|broken| broken.to_string())
            }
            () = serving.over() => Some(DRAINED.to_owned()),
        };
        let (bytes_in, bytes_out) = self.counters.add_bytes(&counts);
        line(bytes_in, bytes_out, reason.as_deref().unwrap_or("done"));
        if reason.is_none() && self.is_leaving() {
            // The end of the connection would overtake what the caller has not got yet.
            let _ = timeout(TAKEN_WITHIN, stream.side().send.stopped()).await;
        }
    }

    /// Connects to the target of a request, by every rule of the exporter.
    pub(super) async fn dial_target(
        &self,
        request: &OpenRequest,
        caller: &Caller<'_>,
    ) -> Result<Dialling, OpenStatus> {
        let serving = self.living.serve((request.service.clone(), request.instance.clone()));
        let target = self.permitted(request, caller.group).ok_or_else(|| {
            count(&self.counters.denied);
            OpenStatus::Denied
        })?;
        if target.draining {
            count(&self.counters.draining);
            return Err(OpenStatus::Draining);
        }
        let dialling = async {
            let mut connected = target.addr.connect().await?;
            if target.proxy_protocol {
                connected.write_all(&self.proxy_header(request, caller, &target, &connected)).await?;
            }
            std::io::Result::Ok(connected)
        };
        let dialled = timeout(DIAL_WITHIN, dialling).await;
        let connected = dialled.ok().and_then(Result::ok).ok_or(OpenStatus::Refused)?;
        Ok(Dialling { target: Dialled::new(connected), place: target.addr, serving })
    }

    /// Tells a target who calls. The caller of a flow that stays here has this machine's address.
    fn proxy_header(
        &self,
        request: &OpenRequest,
        caller: &Caller<'_>,
        target: &Target,
        connected: &Connected,
    ) -> Vec<u8> {
        let own = connected.addresses();
        let here = own.map_or_else(|| (Ipv4Addr::LOCALHOST, 0).into(), |(from, _)| from);
        let from = caller.remote.unwrap_or(here);
        let to = own.map_or_else(|| proxy::nowhere(from, target.port), |(_, to)| to);
        let told = proxy::Told {
            identity: &spiffe_id(self.parts.mesh, caller.group, caller.name),
            node: &caller.node.to_string(),
            service: request.service.as_str(),
            flow: &FlowId(request.flow).to_string(),
            addresses: (from, to),
        };
        proxy::header(&told).unwrap_or_default()
    }

    /// Returns the target of a request, when a caller of `group` may use it and the deny list lets it.
    pub(super) fn permitted(&self, request: &OpenRequest, group: &GroupName) -> Option<Target> {
        let OpenRequest { service, instance, port, transport, .. } = request;
        let target = self.parts.targets.lookup(service, instance, port, *transport)?;
        if !target.visibility.admits(&self.parts.group, group) {
            return None;
        }
        match self.parts.deny.check(&target.addr) {
            Ok(()) => Some(target),
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

/// Says in an access line why a flow was not served.
pub(super) const fn refusal_words(status: OpenStatus) -> &'static str {
    match status {
        OpenStatus::Denied => "denied",
        OpenStatus::Busy => "too many flows",
        OpenStatus::Draining => "draining",
        OpenStatus::Refused | OpenStatus::Open => "target refused",
    }
}

/// Answers and ends both directions; the answer still arrives, what the caller sent is dropped.
pub(super) fn refuse(mut stream: Guarded<FlowStream>, status: OpenStatus) {
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

/// How long a daemon that stops waits until the caller has got the end of a flow.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// How long a target may take to accept (design section 9): it is near, and the caller's client waits.
const DIAL_WITHIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
