//! Outbound flows: from a local program to the best instance that takes it.
//!
//! Owns: the tries of one flow, what the client sent meanwhile, the access line of this end.
//! Must not know: how names resolve, how streams are encrypted. Driven by: VIP listeners and the local API.
//!
//! The open request and the client's first bytes go out at once, so neither side of a protocol is delayed.
//! Until an instance says "open" the client's bytes are kept, so that the next one can be tried instead.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ReadError, ReadExactError};
use thiserror::Error;
use tokio::time::Instant;

use gossamer_core::catalog::InstanceView;
use gossamer_core::select::Wisher;
use gossamer_core::vip::VipName;
use gossamer_wire::flow::{OpenRequest, OpenStatus};
use gossamer_wire::limits::MAX_EARLY_BYTES;
use gossamer_wire::{Carrier, GroupName, InstanceName, NodeId, NodeName, PortName, Tier, Transport};

use super::access::{End, Line, Missed, Reason};
use super::copy::{BROKEN, Broken, CHUNK, Counts, Early, Guarded, Side, Sink, Source, copy};
use super::dialled::Dialled;
use super::drain::Serving;
use super::flow::{Direction, FlowId, FlowInfo, InstanceKey, Path};
use super::inbound::Caller;
use super::permits::{NO_LONGER_ALLOWED, NO_LONGER_IMPORTED, Permit, revoked};
use super::scope::PortChoice;
use super::tries::{Beside, Call, Failure, Round, unreached};
use super::{Relay, count};
use crate::transport::FlowStream;

/// Why a flow reached no instance. Nothing was sent to the client; a VIP's client gets a reset.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The caller's fault: no such service, or none that this node may see or imports.
    #[error("no service {0} is visible here; `gossamer services --all` lists what is hidden or not imported")]
    UnknownName(String),
    /// The caller's fault: no such TCP port, or several and none was named.
    #[error("{name} has no such TCP port, or several: choose one of {known}")]
    UnknownPort {
        /// The name.
        name: String,
        /// Its TCP ports.
        known: String,
    },
    /// The wish of this node's configuration or of an exporter: nothing was sent to anybody.
    #[error("{count} instances of {name} are not used: {by} wants only = {only}, and none is that near")]
    Excluded {
        /// The name.
        name: String,
        /// How near one has to be.
        only: Tier,
        /// Whose wish that is.
        by: Wisher,
        /// How many there are.
        count: usize,
    },
    /// The exporter's decision, or its record has just gone.
    #[error("{0} does not admit this node")]
    Denied(String),
    /// Nobody's fault here: no instance could be reached. Retry later.
    #[error("no instance of {name} could be reached: {why}")]
    Unreachable {
        /// The name.
        name: String,
        /// What the last try met.
        why: String,
    },
    /// The client broke while an instance was looked for.
    #[error("the client went away")]
    ClientGone,
    /// This daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
}

/// What a finished flow carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Its id.
    pub flow: FlowId,
    /// Bytes from the client to the service.
    pub bytes_in: u64,
    /// Bytes from the service to the client.
    pub bytes_out: u64,
    /// Why it did not end cleanly.
    pub broken: Option<String>,
}

/// An instance to try.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) node: NodeId,
    pub(super) node_name: NodeName,
    pub(super) group: GroupName,
    pub(super) instance: InstanceName,
    pub(super) port: PortName,
    /// What has to carry its flows.
    pub(super) carrier: Option<Carrier>,
}

/// What is known of an open flow beside who has it.
pub(super) struct Ends {
    pub(super) client: Option<SocketAddr>,
    pub(super) transport: Transport,
    pub(super) path: Path,
    pub(super) counts: Arc<Counts>,
}

/// The far end of an open TCP flow.
enum Far {
    Hop(Guarded<FlowStream>),
    /// With what ends it when its service has drained for long enough, or it is no longer allowed.
    Local(Dialled, Serving, Permit),
}

impl Far {
    fn path(&mut self) -> Path {
        match self {
            Self::Hop(stream) => Path::of(stream.side()),
            Self::Local(..) => Path::Local,
        }
    }
}

/// How one instance is tried.
pub(super) trait Try: Send {
    /// The far end of the flow it opens.
    type Far: Send;

    /// Tries one instance.
    ///
    /// # Cancel safety
    /// Cancel safe: what the client said is not lost.
    fn try_one(
        &mut self,
        relay: &Relay,
        flow: FlowId,
        name: &VipName,
        choice: &Choice,
    ) -> impl Future<Output = Result<Self::Far, Failure>> + Send;

    /// Asks an instance beside the one that is being tried, without a word of the client: that goes to it when it is open,
    /// out of what the try has kept. `None` when this kind of flow is not asked for twice.
    fn ask_beside<'a>(
        relay: &'a Relay,
        flow: FlowId,
        name: &'a VipName,
        choice: &'a Choice,
    ) -> Option<Beside<'a, Self::Far>> {
        let _ = (relay, flow, name, choice);
        None
    }

    /// Returns whether an instance is to be left alone while there is another one.
    fn is_spent(&self, choice: &Choice) -> bool {
        let _ = choice;
        false
    }

    /// Notes what the instance that was tried last met, for the access line.
    fn missed(&mut self, missed: Missed);
}

/// A try with what a TCP client says meanwhile.
struct TcpTry<'a, C: Side> {
    client: &'a mut Guarded<C>,
    early: &'a mut Early,
    last: Option<Missed>,
}

impl<C: Side> Try for TcpTry<'_, C> {
    type Far = Far;

    async fn try_one(
        &mut self,
        relay: &Relay,
        flow: FlowId,
        name: &VipName,
        choice: &Choice,
    ) -> Result<Far, Failure> {
        relay.attempt(flow, name, choice, self.client, self.early).await
    }

    fn ask_beside<'a>(
        relay: &'a Relay,
        flow: FlowId,
        name: &'a VipName,
        choice: &'a Choice,
    ) -> Option<Beside<'a, Far>> {
        Some(Box::pin(relay.ask_only(flow, name, choice)))
    }

    fn missed(&mut self, missed: Missed) {
        self.last = Some(missed);
    }
}

impl Relay {
    /// Carries a flow until it ends and writes its access line. The client is reset when it fails. A flow that
    /// breaks at the service before a byte has passed either way goes to another instance: nobody has seen it.
    pub(super) async fn carry<C: Side>(
        &self,
        name: &VipName,
        port: &PortChoice,
        mut client: Guarded<C>,
    ) -> Result<Carried, ConnectError> {
        let (flow, began) = (FlowId::random(), Instant::now());
        let _living = self.living.begin();
        let line = Line::outbound(flow, name, Transport::Tcp, client.side().address(), began);
        // For all tries: what was read of the client and passed on by none of them cannot be read again.
        let (mut early, mut again) = (Early::default(), 0);
        loop {
            let client = (&mut client, &mut early);
            let (carried, is_unseen) = self.carry_once(&line, name, port, client, again == AGAIN).await?;
            if !is_unseen || again == AGAIN {
                return Ok(carried);
            }
            again += 1;
            count(&self.counters.retries);
            count(&self.counters.in_vain.unseen);
        }
    }

    /// Carries a flow over one instance; returns also whether it broke there unseen. Then it has no line yet, unless this
    /// was the last time.
    async fn carry_once<C: Side>(
        &self,
        line: &Line<'_>,
        name: &VipName,
        port: &PortChoice,
        (client, early): (&mut Guarded<C>, &mut Early),
        is_last: bool,
    ) -> Result<(Carried, bool), ConnectError> {
        let (flow, began) = (line.flow.unwrap_or_else(FlowId::random), line.began);
        let stop = self.parts.stage.stopping().clone();
        let mut attempt = TcpTry { client: &mut *client, early: &mut *early, last: None };
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => Err(ConnectError::Stopping),
            opened = self.open(flow, name, port, &mut attempt) => opened,
        };
        let (choice, mut far, took) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                count(&self.counters.failed);
                let said = error.to_string();
                let line = Line { detail: Some(&said), ..*line };
                self.finished(&line.failed(&error, attempt.last.as_ref()));
                return Err(error);
            }
        };
        count(&self.counters.opened);
        let key = choice.key(name);
        let _in_flight = self.flows.opened(key.clone(), took);
        let counts = Arc::new(Counts::default());
        let path = far.path();
        let ends = Ends { client: line.client, transport: Transport::Tcp, path, counts: Arc::clone(&counts) };
        let _listed = self.flows.list(choice.info(flow, name, began, ends));
        let mut imported = self.import(name, &choice);
        let copied = async {
            let copied = match far {
                Far::Hop(mut hop) => {
                    let copied = copy(client, &mut hop, early, &counts).await;
                    if copied.is_ok() {
                        self.deliver(hop);
                    }
                    copied
                }
                Far::Local(mut target, serving, mut permit) => tokio::select! {
                    biased;
                    () = permit.revoked() => return End::with(Reason::Revoked, NO_LONGER_ALLOWED),
                    copied = target.copy(client, early, &counts) => copied,
                    () = serving.over() => return End::from(Reason::Drained),
                },
            };
            copied.map_or_else(End::from, |()| End::from(Reason::Done))
        };
        let open_since = Instant::now();
        let lasts = async {
            tokio::time::sleep(MOMENT).await;
            self.flows.worked(&key);
            std::future::pending().await
        };
        let end = tokio::select! {
            biased;
            () = stop.cancelled() => End::from(Reason::Stopping),
            () = revoked(&mut imported) => End::with(Reason::Revoked, NO_LONGER_IMPORTED),
            end = copied => end,
            end = lasts => end,
        };
        if end.reason == Reason::Revoked {
            count(&self.counters.revoked);
        }
        let bytes = self.counters.add_bytes(&counts);
        let is_unseen = self.judge_end(&end, bytes, key, open_since.elapsed());
        if !is_unseen || is_last {
            let path = Some(path);
            let line = Line { bytes, detail: end.detail.as_deref(), path, is_open: true, ..*line };
            self.finished(&line.to(&choice).because(end.reason));
        }
        let (bytes_in, bytes_out) = bytes;
        Ok((Carried { flow, bytes_in, bytes_out, broken: end.broken() }, is_unseen))
    }

    /// Lets the end of a flow count for or against its instance. Returns whether it broke unseen.
    fn judge_end(&self, end: &End, bytes: (u64, u64), key: InstanceKey, lasted: Duration) -> bool {
        let is_reset = end.reason == Reason::ServiceReset;
        let is_unseen = is_reset && bytes == (0, 0);
        if is_unseen {
            self.flows.failed(key, Instant::now().into_std());
        } else if is_reset && bytes.1 == 0 && lasted < MOMENT {
            self.flows.broke_at_once(key, Instant::now().into_std());
        } else if end.reason == Reason::Done || bytes.1 > 0 {
            self.flows.worked(&key);
        }
        is_unseen
    }

    /// Tries instances, round after round, until one takes the flow or the time is over. Returns the one that
    /// took it and how long it needed.
    pub(super) async fn open<T: Try>(
        &self,
        flow: FlowId,
        name: &VipName,
        port: &PortChoice,
        attempt: &mut T,
    ) -> Result<(Choice, T::Far, Duration), ConnectError> {
        let latest = Instant::now() + OPEN_WITHIN;
        let mut deadline = latest;
        let mut last = "none is usable".to_owned();
        loop {
            let mut choices = self.choices(name, port)?;
            if choices.iter().any(|choice| !attempt.is_spent(choice)) {
                choices.retain(|choice| !attempt.is_spent(choice));
            }
            let failures = match self.round(Call { flow, name, deadline }, &choices, attempt).await {
                Round::Open(choice, far, took) => return Ok((choice, far, took)),
                Round::ClientGone => return Err(ConnectError::ClientGone),
                Round::Failed(failures) => failures,
            };
            if let Some(missed) = failures.missed {
                attempt.missed(missed);
            }
            if failures.denied > 0 && failures.denied == choices.len() {
                return Err(ConnectError::Denied(name.to_string()));
            }
            last = failures.last.unwrap_or(last);
            // Who has said no says it again; who is silent may be on its way.
            deadline = match failures.open {
                0 => deadline.min(Instant::now() + ANSWERED_WITHIN),
                _ => latest,
            };
            if Instant::now() + ROUND_PAUSE >= deadline {
                return Err(ConnectError::Unreachable { name: name.to_string(), why: last });
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// Tries one instance.
    ///
    /// # Cancel safety
    /// Cancel safe: bytes of the client are either in `early` or not read.
    async fn attempt<C: Side>(
        &self,
        flow: FlowId,
        name: &VipName,
        choice: &Choice,
        client: &mut Guarded<C>,
        early: &mut Early,
    ) -> Result<Far, Failure> {
        let request = self.request(flow, name, choice);
        if choice.node == self.parts.node {
            return self.ask_here(&request).await;
        }
        let bytes = request.encode().map_err(unreached)?;
        let mut stream = Guarded::new(self.open_hop(choice).await.map_err(unreached)?);
        match ask(stream.side(), bytes, client.side(), early).await? {
            OpenStatus::Open => Ok(Far::Hop(stream)),
            status => Err(status.into()),
        }
    }

    /// Asks one instance and sends it nothing.
    async fn ask_only(&self, flow: FlowId, name: &VipName, choice: &Choice) -> Result<Far, Failure> {
        let request = self.request(flow, name, choice);
        if choice.node == self.parts.node {
            return self.ask_here(&request).await;
        }
        let bytes = request.encode().map_err(unreached)?;
        let mut stream = Guarded::new(self.open_hop(choice).await.map_err(unreached)?);
        let FlowStream { send, recv, .. } = stream.side();
        send.write_all(&bytes).await.map_err(unreached)?;
        let mut status = [0];
        recv.read_exact(&mut status).await.map_err(unreached)?;
        let [code] = status;
        match OpenStatus::try_from(code).map_err(unreached)? {
            OpenStatus::Open => Ok(Far::Hop(stream)),
            status => Err(status.into()),
        }
    }

    /// Opens a stream to the instance's node by what has to carry it.
    pub(super) fn open_hop(&self, choice: &Choice) -> super::Opening<'_> {
        match choice.carrier {
            None => self.parts.hops.open_flow(choice.node),
            Some(Carrier::Tls) => self.parts.hops.open_lane(choice.node),
        }
    }

    /// Connects to a target of this node.
    async fn ask_here(&self, request: &OpenRequest) -> Result<Far, Failure> {
        let caller = Caller { leaf: &self.parts.leaf, remote: None };
        let served = self.dial_target(request, &caller).await.map_err(|refusal| refusal.status)?;
        Ok(Far::Local(served.target, served.serving, served.permit))
    }

    fn request(&self, flow: FlowId, name: &VipName, choice: &Choice) -> OpenRequest {
        OpenRequest {
            flow: flow.0,
            service: name.service().clone(),
            instance: choice.instance.clone(),
            port: choice.port.clone(),
            transport: Transport::Tcp,
        }
    }
}

/// Sends the open request and what the client says meanwhile; returns the answer. When it is "open", `early` is
/// left with what was not sent yet.
async fn ask(
    stream: &mut FlowStream,
    request: Vec<u8>,
    client: &mut impl Side,
    early: &mut Early,
) -> Result<OpenStatus, Failure> {
    let FlowStream { send, recv, demand, credit, .. } = stream;
    send.write_all(&request).await.map_err(unreached)?;
    let mut hop = super::copy::hop_sink(send, demand, &mut credit.sending);
    let (mut from_client, _) = client.halves();
    let mut held: usize = early.chunks.iter().map(bytes::Bytes::len).sum();
    let (mut sent, mut is_taking) = (0, true);
    loop {
        if let Some(chunk) = early.chunks.get(sent)
            && is_taking
        {
            // A peer that takes no more has answered, or is lost: both show below.
            is_taking = hop.put(chunk.clone()).await.is_ok();
            sent += usize::from(is_taking);
            continue;
        }
        let mut status = [0];
        tokio::select! {
            biased;
            read = recv.read_exact(&mut status) => {
                let status = match read {
                    // A reset overtakes the status: the program has had what the client said, and broke the flow at once.
                    // That ends as any open flow that breaks; another one must not get the same words.
                    Err(ReadExactError::ReadError(ReadError::Reset(BROKEN))) if sent > 0 => OpenStatus::Open,
                    Err(error) => return Err(unreached(error)),
                    Ok(()) => {
                        let [code] = status;
                        OpenStatus::try_from(code).map_err(unreached)?
                    }
                };
                if status == OpenStatus::Open {
                    early.sent = early.chunks.drain(..sent).map(|chunk| chunk.len() as u64).sum();
                }
                return Ok(status);
            }
            chunk = from_client.next(), if is_taking && !early.is_ended && held + CHUNK <= MAX_EARLY_BYTES => {
                match chunk {
                    Ok(Some(chunk)) => {
                        held += chunk.len();
                        early.chunks.push_back(chunk);
                    }
                    Ok(None) => early.is_ended = true,
                    Err(_) => return Err(Failure::Client),
                }
            }
        }
    }
}

impl Choice {
    pub(super) fn new(found: &InstanceView, port: PortName, carrier: Option<Carrier>) -> Self {
        Self {
            node: found.node,
            node_name: found.node_name.clone(),
            group: found.group.clone(),
            instance: found.instance.clone(),
            port,
            carrier,
        }
    }

    pub(super) fn key(&self, name: &VipName) -> InstanceKey {
        (self.node, name.service().clone(), self.instance.clone())
    }

    pub(super) fn info(&self, flow: FlowId, name: &VipName, began: Instant, ends: Ends) -> FlowInfo {
        let Ends { client, transport, path, counts } = ends;
        FlowInfo {
            flow,
            direction: Direction::Outbound,
            service: name.service().clone(),
            instance: self.instance.clone(),
            peer: self.node_name.clone(),
            group: self.group.clone(),
            client,
            transport,
            path,
            target: None,
            since: began.into_std(),
            counts,
        }
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (end, error): (_, &io::Error) = match self {
            Self::Client(error) => ("client", error),
            Self::Service(error) => ("service", error),
        };
        write!(f, "{end}: {error}")
    }
}

/// How long instances are looked for in all: a dead node is noticed and a program restarted in this time.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// How long they are looked for when all have answered, and none takes the flow: a restart is often faster, and a program
/// that is down is known to its client at once.
const ANSWERED_WITHIN: Duration = Duration::from_millis(900);

/// How often a flow that broke unseen is opened again: two nodes of a group may die together.
pub(super) const AGAIN: u32 = 2;

/// A flow that its service resets within this time, without a byte, counts as one that could not be opened.
const MOMENT: Duration = Duration::from_secs(1);

/// Between two rounds: short beside a restart, long beside a refusal.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
