//! What a flow to a name would meet now: for `gossamer trace`.
//!
//! Owns: flows that are opened to learn whether they can be, and carry nothing (ADR 32). Must not know: how what they
//! met is judged or shown. Driven by: the local API.
//!
//! A probe is a flow like any other for the node that serves it: the same request, the same rights, limits and dial, an
//! access line of its own. So it learns nothing that a flow would not, and needs nothing of the other node's version.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use gossamer_core::catalog::InstanceView;
use gossamer_core::select::{Excluded, Explained, Verdict};
use gossamer_core::trust::spiffe_id;
use gossamer_core::vip::VipName;
use gossamer_wire::flow::{OpenRequest, OpenStatus};
use gossamer_wire::{NodeId, PortName, Transport};

use super::Relay;
use super::access::{Line, Reason};
use super::copy::Guarded;
use super::dialled::Dialled;
use super::flow::{FlowId, Path};
use super::inbound::{Caller, Dialling, Refusal};
use super::outbound::Choice;
use super::scope::{PortChoice, behind};
use crate::transport::FlowStream;

/// An instance behind a name, as selection sees it at this moment.
#[derive(Clone, Debug)]
pub struct CandidateView {
    /// What the catalog says of it.
    pub found: InstanceView,
    /// The port that is meant; `None` when it has no such port.
    pub port: Option<PortName>,
    /// Whether a flow would go there, and why not.
    pub verdict: Verdict,
}

impl CandidateView {
    /// Returns in which turn a flow would try it, from 1; `None` when none would.
    pub const fn turn(&self) -> Option<usize> {
        match self.verdict {
            Verdict::Candidate { place, .. } | Verdict::Ejected { place, .. } => Some(place),
            Verdict::Beyond | Verdict::Excluded(_) => None,
        }
    }

    /// Returns whether flows from here failed there in a row.
    pub const fn is_ejected(&self) -> bool {
        matches!(self.verdict, Verdict::Ejected { .. })
    }
}

/// What became of one try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The flow's id, as in the access lines of both nodes.
    pub flow: FlowId,
    /// The instance.
    pub instance: String,
    /// Its node.
    pub node: String,
    /// Where that node was reached; `None` for this one, and when it was not.
    pub reached: Option<Reached>,
    /// How long it took until a stream was open.
    pub connect: Duration,
    /// How long the node then took to answer: its own checks and the dial of the target.
    pub answer: Duration,
    /// The answer.
    pub outcome: Outcome,
}

/// A node at the other end of an authenticated connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// By which way.
    pub by: By,
    /// The same in the words of access lines.
    pub path: Path,
    /// Smoothed round trip.
    pub rtt: Duration,
    /// The name in its certificate.
    pub identity: String,
    /// The hash of its key.
    pub node: NodeId,
    /// End of its certificate, seconds since the Unix epoch.
    pub not_after: u64,
}

/// The way of a flow to another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Over UDP, dialled here.
    Direct(SocketAddr),
    /// Over UDP, dialled there.
    Inbound(SocketAddr),
    /// Over TCP.
    Lane(SocketAddr),
    /// Through the node of this name.
    Relay(String),
}

/// What an instance answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has the flow. Nothing was sent to the program of a UDP port.
    Open,
    /// It does not admit this node, or has no such target.
    Denied,
    /// Its program refused, or did not accept in time.
    Refused,
    /// It has too many flows, or can open no more files.
    Busy,
    /// It is draining.
    Draining,
    /// This node can open no more files.
    NoFiles,
    /// No stream to its node could be opened: why.
    Unreachable(String),
    /// Its node took the request and did not answer.
    Silent,
}

impl Outcome {
    const fn of(refusal: &Refusal, is_here: bool) -> Self {
        match (refusal.status, refusal.reason) {
            (_, Reason::NoFiles) if is_here => Self::NoFiles,
            (OpenStatus::Denied, _) => Self::Denied,
            (OpenStatus::Busy, _) => Self::Busy,
            (OpenStatus::Draining, _) => Self::Draining,
            (OpenStatus::Refused | OpenStatus::Open, _) => Self::Refused,
        }
    }

    const fn reason(&self) -> Reason {
        match self {
            Self::Open => Reason::Probe,
            Self::Denied => Reason::Denied,
            Self::Refused => Reason::Refused,
            Self::Busy => Reason::Busy,
            Self::Draining => Reason::Draining,
            Self::NoFiles => Reason::NoFiles,
            Self::Unreachable(_) | Self::Silent => Reason::Unreachable,
        }
    }
}

impl Relay {
    /// Lists the instances behind a name as a flow would find them now, in the order of the catalog.
    pub fn candidates(&self, name: &VipName, port: &PortChoice) -> Vec<CandidateView> {
        let Some(view) = self.parts.index.service(name.service()) else { return Vec::new() };
        let Some(explanation) = self.explain(name, port) else { return Vec::new() };
        let candidate = |found: &InstanceView| {
            let is_it = |one: &&Explained| one.node == found.node && one.instance == found.instance;
            let explained = explanation.instances.iter().find(is_it);
            CandidateView {
                found: found.clone(),
                port: port.find(found).map(|port| port.name.clone()),
                // It came into the index between two looks.
                verdict: explained.map_or(Verdict::Excluded(Excluded::OtherName), |one| one.verdict),
            }
        };
        behind(&view, name).map(candidate).collect()
    }

    /// Opens a flow as a client's connection would, instance after instance, and closes it without a byte. Returns what
    /// each one met; the last one has it if any has.
    pub async fn probe(&self, name: &VipName, port: &PortChoice) -> Vec<Probed> {
        let deadline = Instant::now() + PROBE_WITHIN;
        let transport = match port {
            PortChoice::Datagrams(_) => Transport::Udp,
            PortChoice::Only | PortChoice::Number(_) | PortChoice::Name(_) => Transport::Tcp,
        };
        let flow = FlowId::random();
        let line = Line::outbound(flow, name, transport, None, Instant::now());
        let mut all: Vec<Probed> = Vec::new();
        let choices = self.choices(name, port).unwrap_or_default();
        for choice in &choices {
            let request = OpenRequest {
                flow: flow.0,
                service: name.service().clone(),
                instance: choice.instance.clone(),
                port: choice.port.clone(),
                transport,
            };
            let probed = if choice.node == self.parts.node {
                self.probe_here(&request, choice).await
            } else {
                self.probe_there(&request, choice, deadline).await
            };
            let is_over = probed.outcome == Outcome::Open || Instant::now() >= deadline;
            all.push(probed);
            if is_over {
                break;
            }
        }
        // One line for the flow, as any other has.
        if let (Some(last), Some(choice)) = (all.last(), choices.get(all.len().saturating_sub(1))) {
            let is_open = last.outcome == Outcome::Open;
            let path = last.reached.as_ref().map(|reached| reached.path);
            self.finished(&Line { is_open, path, ..line.to(choice).because(last.outcome.reason()) });
        }
        all
    }

    async fn probe_here(&self, request: &OpenRequest, choice: &Choice) -> Probed {
        let began = Instant::now();
        let outcome = if request.transport == Transport::Udp {
            // No datagram is sent, so that there is nothing to wait for.
            match self.permitted(request, &self.parts.leaf) {
                Err(_) => Outcome::Denied,
                Ok(_) if self.drains(request) => Outcome::Draining,
                Ok(_) => Outcome::Open,
            }
        } else {
            let caller = Caller { leaf: &self.parts.leaf, remote: None };
            match self.dial_target(request, &caller).await {
                Ok(Dialling { mut target, .. }) => {
                    // Closed, not reset: programs note resets.
                    match &mut target {
                        Dialled::Tcp(target) => target.finished(),
                        Dialled::Unix(target) => target.finished(),
                    }
                    Outcome::Open
                }
                Err(refusal) => Outcome::of(&refusal, true),
            }
        };
        Probed::new(request, choice, (Duration::ZERO, began.elapsed()), outcome)
    }

    fn way_of(&self, stream: &FlowStream) -> By {
        match Path::of(stream) {
            Path::Relay(relay) => By::Relay(self.parts.index.name_of(relay)),
            Path::Lane(address) => By::Lane(address),
            Path::Quic(_) | Path::Local if stream.datagrams.is_inbound() => By::Inbound(stream.remote),
            Path::Quic(_) | Path::Local => By::Direct(stream.remote),
        }
    }

    async fn probe_there(&self, request: &OpenRequest, choice: &Choice, deadline: Instant) -> Probed {
        let began = Instant::now();
        let opening = timeout_at(deadline.min(began + EACH), self.open_hop(choice));
        let stream = match opening.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let outcome = Outcome::Unreachable(error.to_string());
                return Probed::new(request, choice, (began.elapsed(), Duration::ZERO), outcome);
            }
            Err(_) => {
                let outcome = Outcome::Unreachable("no connection came about in time".to_owned());
                return Probed::new(request, choice, (began.elapsed(), Duration::ZERO), outcome);
            }
        };
        let connect = began.elapsed();
        let asked = Instant::now();
        let reached = Reached {
            by: self.way_of(&stream),
            path: Path::of(&stream),
            rtt: stream.datagrams.rtt(),
            identity: spiffe_id(self.parts.mesh, &stream.peer.group, &stream.peer.name),
            node: stream.peer.node,
            not_after: stream.peer.not_after,
        };
        let mut stream = Guarded::new(stream);
        let status = timeout_at(deadline.min(asked + EACH), ask(stream.side(), request)).await;
        let answer = asked.elapsed();
        let outcome = match status {
            Ok(Some(OpenStatus::Open)) => {
                close(&mut stream).await;
                Outcome::Open
            }
            Ok(Some(status)) => Outcome::of(&status.into(), false),
            Ok(None) => Outcome::Unreachable("the connection to the node broke".to_owned()),
            Err(_) => Outcome::Silent,
        };
        Probed { reached: Some(reached), ..Probed::new(request, choice, (connect, answer), outcome) }
    }
}

impl Probed {
    fn new(
        request: &OpenRequest,
        choice: &Choice,
        (connect, answer): (Duration, Duration),
        outcome: Outcome,
    ) -> Self {
        Self {
            flow: FlowId(request.flow),
            instance: choice.instance.to_string(),
            node: choice.node_name.to_string(),
            reached: None,
            connect,
            answer,
            outcome,
        }
    }
}

/// Sends a request and takes the answer; `None` when the stream breaks.
async fn ask(stream: &mut FlowStream, request: &OpenRequest) -> Option<OpenStatus> {
    stream.send.write_all(&request.encode().ok()?).await.ok()?;
    let mut status = [0];
    stream.recv.read_exact(&mut status).await.ok()?;
    let [code] = status;
    OpenStatus::try_from(code).ok()
}

/// Ends a flow without a byte and lets its program end, too: a reset would stand in its log.
async fn close(stream: &mut Guarded<FlowStream>) {
    let _ = stream.side().send.finish();
    let recv = &mut stream.side().recv;
    let ended = async {
        let mut said = 0;
        loop {
            match recv.read_chunk(GREETING_BYTES).await {
                Ok(None) => return true,
                Ok(Some(bytes)) if said + bytes.len() < GREETING_BYTES => said += bytes.len(),
                Ok(Some(_)) | Err(_) => return false,
            }
        }
    };
    if timeout(CLOSE_WITHIN, ended).await.unwrap_or(false) {
        stream.finished();
    }
}

/// How long a probe may take in all: below what a client of the local API waits.
const PROBE_WITHIN: Duration = Duration::from_secs(6);

/// How long a node may take to be connected to, and to answer: the dial of its target takes 2 s at the most.
const EACH: Duration = Duration::from_millis(2_500);

/// How long a program may take to end after its client has, and how much it may say meanwhile: then it is reset.
const CLOSE_WITHIN: Duration = Duration::from_millis(300);
const GREETING_BYTES: usize = 64 * 1_024;

#[cfg(test)]
mod tests;
