//! The access line: one on each node that a flow touched, when it has ended or came to nothing.
//!
//! Owns: its fields, the words for why a flow ended, what the metrics learn of that. Must not know: how flows are
//! carried. Driven by: `outbound`, `inbound`, both ends of UDP flows, `probe`.
//!
//! Both nodes write the same flow id and the same fields; what is not known is left out. The words are those of
//! docs/operating.md: a closed list, so that they can be counted.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use gossamer_core::trust::Leaf;
use gossamer_core::vip::VipName;
use gossamer_wire::flow::{OpenRequest, OpenStatus};
use gossamer_wire::{GroupName, InstanceName, NodeName, ServiceName, Transport};

use super::copy::Broken;
use super::flow::{Direction, FlowId, Path};
use super::outbound::{Choice, ConnectError};
use super::{Relay, count};
use crate::transport::StalledFor;

/// Why a flow ended, or came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Reason {
    /// Both directions ended.
    Done,
    /// The client's end broke.
    ClientReset,
    /// The service's end broke.
    ServiceReset,
    /// Its reader took nothing, and what waited for it left the other flows of the pair no room.
    Stalled,
    /// No datagram came for a minute.
    Idle,
    /// A UDP flow whose listener closed, whose instance is gone, or whose place another one needed.
    Released,
    /// The exporter has taken the caller's right away, or the caller its import.
    Revoked,
    /// Its service has drained for as long as it was to.
    Drained,
    /// `gossamer trace` opened it, and carried nothing.
    Probe,
    /// The daemon stopped.
    Stopping,
    /// The client went away before an instance had it.
    ClientGone,
    /// No such service for this node.
    UnknownName,
    /// The service has no such port.
    UnknownPort,
    /// None of its instances may be used.
    NoInstance,
    /// The exporter does not admit the caller, or there is no such target: the two look alike on purpose.
    Denied,
    /// The target refused, or did not accept in time.
    Refused,
    /// Too many flows.
    Busy,
    /// The process can open no more files.
    NoFiles,
    /// The instance is draining.
    Draining,
    /// No node with an instance could be reached in time.
    Unreachable,
    /// What came was no open request.
    Malformed,
}

impl Reason {
    /// Returns the word of the line and of metrics.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::ClientReset => "client-reset",
            Self::ServiceReset => "service-reset",
            Self::Stalled => "stalled",
            Self::Idle => "idle",
            Self::Released => "released",
            Self::Revoked => "revoked",
            Self::Drained => "drained",
            Self::Probe => "probe",
            Self::Stopping => "stopping",
            Self::ClientGone => "client-gone",
            Self::UnknownName => "unknown-name",
            Self::UnknownPort => "unknown-port",
            Self::NoInstance => "no-instance",
            Self::Denied => "denied",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::NoFiles => "no-files",
            Self::Draining => "draining",
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
        }
    }

    /// Returns the reason for an answer that is not "open".
    pub(super) const fn of_status(status: OpenStatus) -> Self {
        match status {
            OpenStatus::Denied => Self::Denied,
            OpenStatus::Busy => Self::Busy,
            OpenStatus::Draining => Self::Draining,
            OpenStatus::Refused | OpenStatus::Open => Self::Refused,
        }
    }

    /// Returns the reason for a flow that reached nobody; `last` is what the last try met.
    pub(super) fn of_error(error: &ConnectError, last: Option<Self>) -> Self {
        match error {
            ConnectError::UnknownName(_) => Self::UnknownName,
            ConnectError::UnknownPort { .. } => Self::UnknownPort,
            ConnectError::Excluded { .. } => Self::NoInstance,
            ConnectError::Denied(_) => Self::Denied,
            ConnectError::Unreachable { .. } => last.unwrap_or(Self::NoInstance),
            ConnectError::ClientGone => Self::ClientGone,
            ConnectError::Stopping => Self::Stopping,
        }
    }
}

/// Why a flow ended, with what the system or a peer said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) reason: Reason,
    pub(super) detail: Option<String>,
}

impl End {
    /// Returns what who asked for the flow is told; `None` after a clean end.
    pub(super) fn broken(&self) -> Option<String> {
        let words = || self.detail.clone().unwrap_or_else(|| self.reason.word().to_owned());
        (self.reason != Reason::Done).then(words)
    }
}

impl End {
    /// Returns an end with its words.
    pub(super) fn with(reason: Reason, detail: &str) -> Self {
        Self { reason, detail: Some(detail.to_owned()) }
    }
}

impl From<Reason> for End {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: None }
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        let reason = match &broken {
            Broken::Client(error) | Broken::Service(error) if has_stalled(error) => Reason::Stalled,
            Broken::Client(_) => Reason::ClientReset,
            Broken::Service(_) => Reason::ServiceReset,
        };
        Self { reason, detail: Some(broken.to_string()) }
    }
}

fn has_stalled(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|cause| cause.is::<StalledFor>())
}

/// What one try of an instance met.
#[derive(Clone, Debug)]
pub(super) struct Missed {
    pub(super) choice: Choice,
    pub(super) reason: Reason,
}

/// A line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) direction: Direction,
    pub(super) transport: Transport,
    /// `None` when the peer's request could not be read.
    pub(super) flow: Option<FlowId>,
    pub(super) service: Option<&'a ServiceName>,
    /// What the client asked for, at its end.
    pub(super) name: Option<&'a VipName>,
    pub(super) instance: Option<&'a InstanceName>,
    /// The node at the other end, and its group; the own one for a flow that stays here.
    pub(super) peer: Option<&'a NodeName>,
    pub(super) group: Option<&'a GroupName>,
    /// The program that called, at its end.
    pub(super) client: Option<SocketAddr>,
    /// How it travelled, once an instance had it.
    pub(super) path: Option<Path>,
    pub(super) began: Instant,
    /// From the client to the service, and back.
    pub(super) bytes: (u64, u64),
    pub(super) reason: Reason,
    pub(super) detail: Option<&'a str>,
    /// Whether an instance had it.
    pub(super) is_open: bool,
}

impl<'a> Line<'a> {
    /// Begins the line of a local program's flow.
    pub(super) const fn outbound(
        flow: FlowId,
        name: &'a VipName,
        transport: Transport,
        client: Option<SocketAddr>,
        began: Instant,
    ) -> Self {
        Self {
            direction: Direction::Outbound,
            transport,
            flow: Some(flow),
            service: Some(name.service()),
            name: Some(name),
            instance: None,
            peer: None,
            group: None,
            client,
            path: None,
            began,
            bytes: (0, 0),
            reason: Reason::Done,
            detail: None,
            is_open: false,
        }
    }

    /// Begins the line of a peer's flow; nothing is known of one whose request could not be read.
    pub(super) fn inbound(request: Option<&'a OpenRequest>, peer: &'a Leaf, began: Instant) -> Self {
        Self {
            direction: Direction::Inbound,
            transport: request.map_or(Transport::Tcp, |request| request.transport),
            flow: request.map(|request| FlowId(request.flow)),
            service: request.map(|request| &request.service),
            name: None,
            instance: request.map(|request| &request.instance),
            peer: Some(&peer.name),
            group: Some(&peer.group),
            client: None,
            path: None,
            began,
            bytes: (0, 0),
            reason: Reason::Malformed,
            detail: None,
            is_open: false,
        }
    }

    /// Names the instance.
    pub(super) const fn to(mut self, choice: &'a Choice) -> Self {
        self.instance = Some(&choice.instance);
        self.peer = Some(&choice.node_name);
        self.group = Some(&choice.group);
        self
    }

    /// Says why a local program's flow reached nobody; names the instance that was tried last.
    pub(super) fn failed(self, error: &ConnectError, last: Option<&'a Missed>) -> Self {
        let reason = Reason::of_error(error, last.map(|missed| missed.reason));
        last.map_or(self, |missed| self.to(&missed.choice)).because(reason)
    }

    pub(super) const fn because(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    const fn words(&self) -> &'static str {
        match (self.direction, self.is_open) {
            (Direction::Outbound, true) => "flow ended",
            (Direction::Outbound, false) => "flow failed",
            (Direction::Inbound, true) => "flow served",
            (Direction::Inbound, false) => "flow refused",
        }
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

impl Relay {
    /// Writes the line of a flow that has ended, and counts its end.
    pub(super) fn finished(&self, line: &Line<'_>) {
        self.flows.ended(line);
        if !self.lines.admits(line) {
            return;
        }
        tracing::info!(
            target: "access",
            flow = line.flow.map(display),
            direction = line.direction.word(),
            transport = transport_word(line.transport),
            service = line.service.map(display),
            name = line.name.map(display),
            instance = line.instance.map(display),
            peer = line.peer.map(display),
            group = line.group.map(display),
            client = line.client.map(display),
            path = line.path.map(Path::word),
            bytes_in = line.bytes.0,
            bytes_out = line.bytes.1,
            took = ?line.began.elapsed(),
            reason = line.reason.word(),
            detail = line.detail,
            "{line}"
        );
    }

    /// Refuses a local program's connection because this process can open no more files.
    pub(super) fn has_no_files(&self, name: &VipName, client: Option<SocketAddr>) {
        count(&self.counters.failed);
        let line = Line::outbound(FlowId::random(), name, Transport::Tcp, client, Instant::now());
        let detail = "this process can open no more files: raise LimitNOFILE or ulimit -n";
        self.finished(&Line { detail: Some(detail), ..line.because(Reason::NoFiles) });
    }
}

pub(super) const fn transport_word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// Which lines are written, of those that a peer can cause as often as it likes. The counters have them all.
#[derive(Debug)]
pub(super) struct Lines {
    began: Instant,
    /// Second since it began, and lines in it about requests that are none.
    malformed: Mutex<(u64, u32)>,
    /// Refusals of late, hashed: a flow that asks again and again has one line for each answer.
    refused: Mutex<VecDeque<u64>>,
    hasher: RandomState,
}

impl Default for Lines {
    fn default() -> Self {
        let (began, hasher) = (Instant::now(), RandomState::new());
        Self { began, malformed: Mutex::default(), refused: Mutex::default(), hasher }
    }
}

impl Lines {
    fn admits(&self, line: &Line<'_>) -> bool {
        match line.direction {
            Direction::Outbound => true,
            Direction::Inbound if line.flow.is_none() => self.admits_malformed(self.began.elapsed()),
            Direction::Inbound => line.is_open || self.is_new(line),
        }
    }

    fn admits_malformed(&self, since: Duration) -> bool {
        let mut window = self.malformed.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0 != since.as_secs() {
            *window = (since.as_secs(), 0);
        }
        window.1 += u32::from(window.1 <= LINES_A_SECOND);
        window.1 <= LINES_A_SECOND
    }

    fn is_new(&self, line: &Line<'_>) -> bool {
        let what = (line.flow, line.peer, line.service, line.instance, line.reason);
        let what = self.hasher.hash_one(what);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.contains(&what) {
            return false;
        }
        refused.push_back(what);
        if refused.len() > REFUSED_OF_LATE {
            refused.pop_front();
        }
        true
    }
}

/// Lines about requests that are none, of all peers: enough to see who sends them.
const LINES_A_SECOND: u32 = 10;

/// Refusals that are remembered: those of all flows that ask again within the 5 s that a caller tries.
const REFUSED_OF_LATE: usize = 256;

#[cfg(test)]
mod tests;
