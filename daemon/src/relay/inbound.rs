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

use gossamer_core::access::Verdict;
use gossamer_core::trust::{Leaf, spiffe_id};
use gossamer_wire::Transport;
use gossamer_wire::circuit::CircuitOpen;
use gossamer_wire::flow::{OpenRequest, OpenStatus, PREFIX_BYTES};

use super::access::{End, Line, Reason};
use super::copy::{BROKEN, Counts, Early, Guarded};
use super::dialled::Dialled;
use super::drain::Serving;
use super::flow::{Admitted, Direction, FlowId, FlowInfo, Path};
use super::permits::{NO_LONGER_ALLOWED, Permit};
use super::{Relay, count, proxy};
use crate::clients::is_out_of_files;
use crate::clock;
use crate::events::{Event, What};
use crate::register::{Connected, Place, Target};
use crate::transport::FlowStream;

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    /// What is certified of it.
    pub(super) leaf: &'a Arc<Leaf>,
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
    /// Ends it when it is no longer allowed.
    pub(super) permit: Permit,
}

/// Why a request comes to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// What the caller is told.
    pub(super) status: OpenStatus,
    /// What the access line says.
    pub(super) reason: Reason,
    /// What only this node is told.
    pub(super) why: Option<String>,
}

impl Refusal {
    fn denied(why: impl std::fmt::Display) -> Self {
        Self { why: Some(why.to_string()), ..OpenStatus::Denied.into() }
    }

    /// Judges why a target could not be connected to. Want of files is this node's, not the target's.
    pub(super) fn of(error: &std::io::Error) -> Self {
        if is_out_of_files(error) {
            return Self { status: OpenStatus::Busy, reason: Reason::NoFiles, why: None };
        }
        OpenStatus::Refused.into()
    }
}

impl From<OpenStatus> for Refusal {
    fn from(status: OpenStatus) -> Self {
        Self { status, reason: Reason::of_status(status), why: None }
    }
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
            self.parts.stage.spawn_short("flow", self.clone().serve(stream));
        }
    }

    async fn serve(self, mut stream: FlowStream) {
        let peer = Arc::clone(&stream.peer);
        let living = self.living.begin();
        let began = Instant::now();
        let Some(admitted) = self.flows.admit(peer.node) else {
            count(&self.counters.busy);
            // It came with the stream, unless the peer breaks the rules: nothing is waited for.
            let request = futures_util::FutureExt::now_or_never(read_opening(&mut stream)).flatten();
            let request = request.and_then(Opening::flow);
            let line = Line::inbound(request.as_ref(), &peer, began);
            self.finished(&Line {
                detail: Some("the peer has too many flows"),
                ..line.because(Reason::Busy)
            });
            return refuse(Guarded::new(stream), OpenStatus::Busy);
        };
        let opening = timeout(REQUEST_WITHIN, read_opening(&mut stream)).await.ok().flatten();
        if let Some(Opening::Circuit(record)) = opening {
            // It is no flow of this node, which need not wait for its end when it leaves.
            drop(living);
            return self.circuit(stream, record).await;
        }
        let stream = Guarded::new(stream);
        let Some(request) = opening.and_then(Opening::flow) else {
            count(&self.counters.malformed);
            return self.finished(&Line::inbound(None, &peer, began).because(Reason::Malformed));
        };
        if request.transport == Transport::Udp {
            return self.serve_datagrams(stream, request, peer).await;
        }
        self.serve_stream(stream, request, (peer, began), admitted).await;
    }

    async fn serve_stream(
        &self,
        mut stream: Guarded<FlowStream>,
        request: OpenRequest,
        (peer, began): (Arc<Leaf>, Instant),
        admitted: Admitted,
    ) {
        let remote = stream.side().remote;
        let (flow, line) = (FlowId(request.flow), Line::inbound(Some(&request), &peer, began));
        let caller = Caller { leaf: &peer, remote: Some(remote) };
        let Dialling { mut target, place, serving, mut permit } = match self
            .dial_target(&request, &caller)
            .await
        {
            Ok(dialled) => dialled,
            Err(refusal) => {
                if self.turn_away(stream, refusal.status, &peer) {
                    self.finished(&Line { detail: refusal.why.as_deref(), ..line.because(refusal.reason) });
                }
                return;
            }
        };
        if stream.side().send.write_all(&[OpenStatus::Open.code()]).await.is_err() {
            return self.finished(&line.because(Reason::ClientGone));
        }
        count(&self.counters.served);
        let (counts, mut early) = (Arc::new(Counts::default()), Early::default());
        let path = Path::of(stream.side());
        let listed = self.flows.list(FlowInfo {
            flow,
            direction: Direction::Inbound,
            service: request.service.clone(),
            instance: request.instance.clone(),
            peer: peer.name.clone(),
            group: peer.group.clone(),
            client: None,
            transport: Transport::Tcp,
            path,
            target: Some(place),
            since: began.into_std(),
            counts: Arc::clone(&counts),
        });
        let end = tokio::select! {
            biased;
            () = self.parts.stage.stopping().cancelled() => End::from(Reason::Stopping),
            () = permit.revoked() => {
                count(&self.counters.revoked);
                End::with(Reason::Revoked, NO_LONGER_ALLOWED)
            }
            copied = target.copy(&mut stream, &mut early, &counts) => {
                copied.map_or_else(End::from, |()| End::from(Reason::Done))
            }
            () = serving.over() => Reason::Drained.into(),
        };
        let bytes = self.counters.add_bytes(&counts);
        let path = Some(path);
        let line = Line { bytes, detail: end.detail.as_deref(), path, is_open: true, ..line };
        self.finished(&line.because(end.reason));
        if end.reason == Reason::Done {
            // The flow is over for all but a stop.
            drop((listed, permit, serving, target, admitted));
            self.delivered(&mut stream).await;
        }
    }

    /// Connects to the target of a request, by every rule of the exporter.
    pub(super) async fn dial_target(
        &self,
        request: &OpenRequest,
        caller: &Caller<'_>,
    ) -> Result<Dialling, Refusal> {
        let serving = self.living.serve((request.service.clone(), request.instance.clone()));
        // Before it is judged: what changes from here on finds it.
        let permit = self.permits.call(request, caller.leaf);
        let target = self.admitted(request, caller.leaf)?;
        // Only who may call it learns that.
        if target.draining {
            count(&self.counters.draining);
            return Err(OpenStatus::Draining.into());
        }
        let dialling = async {
            let mut connected = target.addr.connect().await?;
            if target.proxy_protocol {
                connected.write_all(&self.proxy_header(request, caller, &target, &connected)).await?;
            }
            std::io::Result::Ok(connected)
        };
        let dialled = timeout(DIAL_WITHIN, dialling).await;
        let refused = || Refusal::from(OpenStatus::Refused);
        let connected = dialled.map_err(|_| refused())?.map_err(|error| Refusal::of(&error))?;
        Ok(Dialling { target: Dialled::new(connected), place: target.addr, serving, permit })
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
            identity: &spiffe_id(self.parts.mesh, &caller.leaf.group, &caller.leaf.name),
            node: &caller.leaf.node.to_string(),
            service: request.service.as_str(),
            flow: &FlowId(request.flow).to_string(),
            addresses: (from, to),
        };
        proxy::header(&told).unwrap_or_default()
    }

    /// Returns the target of a new flow, by every rule of the exporter, and counts what was decided.
    pub(super) fn admitted(&self, request: &OpenRequest, caller: &Leaf) -> Result<Target, Refusal> {
        let (target, audited) =
            self.permitted(request, caller).inspect_err(|_| count(&self.counters.denied))?;
        if let Some(ground) = audited {
            count(&self.counters.audited);
            tracing::info!(target: "access", flow = %FlowId(request.flow), service = %request.service,
                instance = %request.instance, peer = %caller.name, group = %caller.group, reason = %ground,
                "flow would be denied");
        }
        Ok(target)
    }

    /// Judges a request: returns its target when the rules let this caller use it and the deny list lets anybody, with
    /// what would be against it were it not for `policy.audit`.
    pub(super) fn permitted(
        &self,
        request: &OpenRequest,
        caller: &Leaf,
    ) -> Result<(Target, Option<String>), Refusal> {
        let OpenRequest { service, instance, port, transport, .. } = request;
        let target = self.parts.targets.lookup(service, instance, port, *transport);
        let target = target.ok_or_else(|| Refusal::denied("no such service, instance or port here"))?;
        let audited = match target.access.judge(&self.parts.group, &caller.subject()) {
            Verdict::Allowed(_) => None,
            Verdict::Audited(ground) => Some(ground.to_string()),
            Verdict::Denied(ground) => return Err(Refusal::denied(ground)),
        };
        match self.parts.deny.check(&target.addr) {
            Ok(()) => Ok((target, audited)),
            Err(denial) => Err(Refusal::denied(format_args!("{} is no target: {denial}", target.addr))),
        }
    }

    /// Answers a peer that gets no flow. One that asks over and over for what it may not call, or what is not here, is
    /// searching: its connection is closed, and it is named. Returns whether a line is worth it: who searches gets none.
    pub(super) fn turn_away(&self, mut stream: Guarded<FlowStream>, status: OpenStatus, peer: &Leaf) -> bool {
        if status != OpenStatus::Denied || !self.has_searched(peer) {
            refuse(stream, status);
            return true;
        }
        if stream.side().datagrams.hang_up() {
            count(&self.counters.searches);
        }
        let what = What::Searches { name: peer.name.clone() };
        if self.parts.events.findings().name(peer.node, what, clock::wall()) {
            self.parts.events.push(&Event {
                who: format!("node {}", peer.name),
                was: "connected",
                now: "hung up on",
                cause: "it asks over and over for services that it may not call or that are not here"
                    .to_owned(),
                by: "self".to_owned(),
            });
        }
        false
    }

    fn has_searched(&self, peer: &Leaf) -> bool {
        let mut denials = self.denials.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        denials.handle_denied(peer.node, Instant::now().into_std())
    }
}

/// What a stream begins with.
enum Opening {
    Flow(OpenRequest),
    Circuit(CircuitOpen),
}

impl Opening {
    fn flow(self) -> Option<OpenRequest> {
        match self {
            Self::Flow(request) => Some(request),
            Self::Circuit(_) => None,
        }
    }
}

async fn read_opening(stream: &mut FlowStream) -> Option<Opening> {
    let mut prefix = [0; PREFIX_BYTES];
    stream.recv.read_exact(&mut prefix).await.ok()?;
    if CircuitOpen::is_announced_by(prefix) {
        let mut id = [0; 16];
        stream.recv.read_exact(&mut id).await.ok()?;
        return CircuitOpen::decode(prefix, id).ok().map(Opening::Circuit);
    }
    let mut payload = vec![0; OpenRequest::decode_prefix(prefix).ok()?];
    stream.recv.read_exact(&mut payload).await.ok()?;
    OpenRequest::decode(&payload).ok().map(Opening::Flow)
}

/// Refuses a flow.
pub(super) fn refuse(stream: Guarded<FlowStream>, status: OpenStatus) {
    answer_and_end(stream, status.code());
}

/// Answers with one byte and ends both directions; the answer still arrives, what the caller sent is dropped.
pub(super) fn answer_and_end(mut stream: Guarded<FlowStream>, code: u8) {
    stream.finished();
    let FlowStream { send, recv, .. } = stream.side();
    // One byte always fits a fresh stream; if not, the connection is gone anyway.
    let written = futures_util::FutureExt::now_or_never(send.write_all(&[code]));
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
