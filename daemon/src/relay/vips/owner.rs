//! The task that opens, watches and closes VIP listeners.
//!
//! Owns: the listeners and the table of addresses. Must not know: who asks. Driven by: `Vips::open`, changes of
//! the index, a timer of one second.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};

use gossamer_core::catalog::ServiceView;
use gossamer_core::vip::{
    BindOutcome, Holder, LocalTarget, PortState, Step, Table, VipName, judge, must_release,
};
use gossamer_dns::Subject;
use gossamer_wire::{GroupName, ServiceName, Transport};

use super::capacity::max_listeners;
use super::udp::{Receive, UdpPort};
use super::{OpenVip, Shared, Usage, VipsParts, raises};
use crate::clients::is_this_host;
use crate::index::AddressWriter;
use crate::listeners::{Listeners, program_blocking};
use crate::register::{LocalService, Target};
use crate::relay::RelayCounters;
use crate::relay::listener::{Accepting, Listening, bind};
use crate::relay::scope::{attempt, attempts, behind};
use crate::supervise::Stage;

/// Asks for a name to be opened.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) name: VipName,
    /// Told when its state is known.
    pub(super) done: oneshot::Sender<()>,
}

/// Takes a connection to a name's port.
pub(super) type Take = Arc<dyn Fn(TcpStream, VipName, u16) + Send + Sync>;

/// How often the owner looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How soon a registration frees a port.
    pub(super) tick: Duration,
    /// Ticks between two looks at all ports.
    pub(super) sweep_ticks: u32,
}

impl Default for Pace {
    /// A registered port is free before a person has started its program; binds are re-tried every 5 s (design
    /// section 8).
    fn default() -> Self {
        Self { tick: Duration::from_secs(1), sweep_ticks: 5 }
    }
}

/// The owner's state.
pub(super) struct Owner {
    pub(super) parts: VipsParts,
    shared: Arc<Shared>,
    counters: Arc<RelayCounters>,
    take: Take,
    pub(super) receive: Receive,
    names: BTreeMap<VipName, Name>,
    addresses: AddressWriter,
    /// Services that changed in the index.
    changes: broadcast::Receiver<ServiceName>,
    /// The addresses of all names of the catalog, and the views they were taken from.
    table: Table,
    placed: BTreeMap<ServiceName, Arc<ServiceView>>,
    /// Whether the table has changed since readers saw it.
    is_table_new: bool,
    /// Open names that nothing is behind any more.
    gone: BTreeSet<VipName>,
    /// Services whose own names may need another address.
    unsettled: BTreeSet<ServiceName>,
    pub(super) targets: Arc<Vec<LocalService>>,
    /// Programs by socket.
    pub(super) programs: BTreeMap<u64, Option<String>>,
    /// Ports of this machine's programs: for others nobody here need be asked.
    local_ports: BTreeSet<u16>,
    /// One clone for each listener.
    pub(super) listeners: Arc<()>,
    pub(super) max_listeners: usize,
    /// The sockets as of [`RECENT`] ago at most, for names that get no listener anyway.
    pub(super) recent: (Pass, Instant),
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("names", &self.names).finish_non_exhaustive()
    }
}

/// A name in use.
#[derive(Debug)]
struct Name {
    address: std::net::Ipv4Addr,
    attempt: u8,
    /// Sorted by number. Most names have one port, and there may be tens of thousands of names.
    ports: Vec<(u16, Port)>,
    udp: Vec<(u16, UdpPort)>,
    used: Arc<Usage>,
}

#[derive(Debug)]
struct Port {
    state: PortState,
    /// There while the state is [`PortState::Bound`]; counted by its part of [`Owner::listeners`].
    listening: Option<(Listening, Arc<()>)>,
}

enum Input {
    Stop,
    Open(Open),
    /// A service changed; `None` when it is not known which ones.
    Changed(Option<ServiceName>),
    Tick,
}

impl Owner {
    pub(super) fn new(
        parts: VipsParts,
        shared: Arc<Shared>,
        addresses: AddressWriter,
        counters: Arc<RelayCounters>,
        take: Take,
        receive: Receive,
    ) -> Self {
        let targets = parts.targets.all();
        Self {
            table: Table::new(parts.mesh, parts.pool),
            local_ports: ports_of(&targets),
            targets,
            changes: parts.index.changes(),
            parts,
            shared,
            counters,
            take,
            receive,
            names: BTreeMap::new(),
            addresses,
            placed: BTreeMap::new(),
            is_table_new: false,
            gone: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            programs: BTreeMap::new(),
            listeners: Arc::default(),
            max_listeners: max_listeners(),
            recent: (Pass::default(), Instant::now()),
        }
    }

    pub(super) async fn run(mut self, mut asked: mpsc::Receiver<Open>, pace: Pace) {
        let stop = self.parts.stage.stopping().clone();
        let mut tick = interval(pace.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0_u32;
        self.place_all();
        loop {
            let input = tokio::select! {
                biased;
                () = stop.cancelled() => Input::Stop,
                open = asked.recv() => open.map_or(Input::Stop, Input::Open),
                changed = self.changes.recv() => changed_of(changed),
                _ = tick.tick() => Input::Tick,
            };
            match input {
                Input::Stop => return stop.cancelled().await,
                Input::Open(Open { name, done }) => {
                    self.handle_tick(false).await;
                    // Many ask for one name at once: the first has done the work for all.
                    if !self.is_current(&name) {
                        self.place(name.service());
                        self.publish_addresses();
                        self.refresh(&name, true, &mut Pass::default()).await;
                        self.publish(&name);
                    }
                    let _ = done.send(());
                }
                Input::Changed(first) => {
                    self.place_changed(first);
                    self.publish_addresses();
                    self.raise();
                    for name in std::mem::take(&mut self.gone) {
                        self.refresh(&name, false, &mut Pass::default()).await;
                        self.publish(&name);
                    }
                    // A service that starts here is such a change.
                    self.handle_tick(false).await;
                }
                Input::Tick => {
                    let is_sweep = ticks.is_multiple_of(pace.sweep_ticks);
                    ticks = ticks.wrapping_add(1);
                    self.handle_tick(is_sweep).await;
                }
            }
        }
    }

    /// Reacts to new registrations at once, and on a sweep looks at everything again.
    async fn handle_tick(&mut self, is_sweep: bool) {
        let targets = self.parts.targets.all();
        let is_changed = !Arc::ptr_eq(&targets, &self.targets);
        if is_changed {
            self.local_ports = ports_of(&targets);
        }
        self.targets = targets;
        if is_sweep {
            self.programs.clear();
        }
        if is_sweep || is_changed {
            // What was raised may not have been taken, and what is offered here is new.
            self.unsettled.extend(self.targets.iter().map(|local| local.record.service.clone()));
            self.raise();
            let mut pass = Pass::default();
            for name in self.names.keys().cloned().collect::<Vec<_>>() {
                self.refresh(&name, false, &mut pass).await;
                self.publish(&name);
            }
            self.publish_addresses();
        }
    }

    /// Returns whether a name is open and its ports are those of the service as it is known.
    fn is_current(&self, name: &VipName) -> bool {
        let view = self.parts.index.service(name.service());
        let open = self.shared.open(name);
        view.zip(open).is_some_and(|(view, open)| self.shared.is_current(&open, &view, name))
    }

    /// Brings one name up to date: its address, its ports, the state of each. Closes it when it is gone, idle,
    /// or has lost its address to another name.
    async fn refresh(&mut self, name: &VipName, is_asked: bool, pass: &mut Pass) {
        let view = self.parts.index.service(name.service());
        let listened = |transport| {
            view.as_ref().map(|view| self.shared.listened(view, name, transport)).unwrap_or_default()
        };
        let (ports, udp) = (listened(Transport::Tcp), listened(Transport::Udp));
        let is_idle = |open: &Name| open.used.idle_seconds(self.shared.began) > IDLE.as_secs();
        let is_over = !is_asked && self.names.get(name).is_none_or(is_idle);
        let is_lost = self.table.losers().contains_key(name);
        let (Some(view), false) = (view, is_over || is_lost || (ports.is_empty() && udp.is_empty())) else {
            return self.close(name).await;
        };
        let attempt = attempt(&view, name);
        // The hash of every name at every look would be most of the work.
        let address = match self.names.get(name) {
            Some(open) if open.attempt == attempt => open.address,
            _ => self.shared.address_at(name, attempt),
        };
        if self.names.get(name).is_some_and(|open| open.address != address) {
            self.close(name).await;
        }
        let known = self.names.remove(name);
        let (used, mut before, udp_before) =
            known.map_or_else(Default::default, |open| (open.used, open.ports, open.udp));
        if is_asked {
            used.touch(self.shared.began);
        }
        let mut after = Vec::with_capacity(ports.len());
        for number in ports {
            let vip = SocketAddrV4::new(address, number);
            let known = before.iter().position(|(known, _)| *known == number);
            let known = known.map(|index| before.swap_remove(index).1);
            after.push((number, self.look(name, vip, known, &used, pass).await));
        }
        for (listening, _) in before.into_iter().filter_map(|(_, port)| port.listening) {
            listening.close().await;
        }
        let udp = self.refresh_udp(name, address, &udp, udp_before, (&used, pass)).await;
        self.names.insert(name.clone(), Name { address, attempt, ports: after, udp, used });
    }

    async fn close(&mut self, name: &VipName) {
        let Some(open) = self.names.remove(name) else { return };
        tracing::debug!(%name, address = %open.address, "VIP closed");
        for (listening, _) in open.ports.into_iter().filter_map(|(_, port)| port.listening) {
            listening.close().await;
        }
        for (_, port) in open.udp {
            port.close().await;
        }
    }

    /// Looks at one port: keeps, gives up or gets its listener.
    async fn look(
        &mut self,
        name: &VipName,
        vip: SocketAddrV4,
        before: Option<Port>,
        used: &Arc<Usage>,
        pass: &mut Pass,
    ) -> Port {
        let was = before.as_ref().map(|port| port.state.clone());
        let targets = self.local_targets(name, vip.port(), pass).await;
        if let Some(port) = before
            && let Some((listening, counted)) = port.listening
        {
            if !must_release(&targets) {
                return Port { state: PortState::Bound, listening: Some((listening, counted)) };
            }
            listening.close().await;
            *pass = Pass::default();
        }
        let first = if targets.is_empty() {
            judge(None, &[], None)
        } else {
            let holder = self.holder(vip, pass).await;
            judge(holder.as_ref(), &targets, None)
        };
        let port = match first {
            Step::Be(state) => Port { state, listening: None },
            Step::Bind => match self.bind(vip) {
                Ok(listener) => {
                    let listening = self.listen(listener, name.clone(), vip.port(), Arc::clone(used));
                    Port {
                        state: PortState::Bound,
                        listening: Some((listening, Arc::clone(&self.listeners))),
                    }
                }
                Err(outcome) => {
                    let holder = if self.is_full() {
                        self.recent_holder(vip).await
                    } else {
                        *pass = Pass::default();
                        self.holder(vip, pass).await
                    };
                    let state = match judge(holder.as_ref(), &targets, Some(outcome)) {
                        Step::Be(state) => state,
                        Step::Bind => PortState::Waiting,
                    };
                    Port { state, listening: None }
                }
            },
        };
        if was.as_ref() != Some(&port.state) {
            tracing::debug!(%name, address = %vip, state = %port.state, "VIP port");
        }
        port
    }

    /// Returns the registered targets of this machine on a port, as the rules want them.
    async fn local_targets(&self, name: &VipName, port: u16, pass: &mut Pass) -> Vec<LocalTarget> {
        let mut found = Vec::new();
        if !self.local_ports.contains(&port) {
            return found;
        }
        for local in self.targets.iter() {
            for target in local.targets.iter().filter(|target| wants(target, port)) {
                let listeners = pass.listeners().await;
                let listens = target.addr.ip().and_then(|addr| listeners.is_wildcard(addr));
                // Clients of this machine would reach a program that waits for a header without one.
                let is_called = target.port == port && !target.proxy_protocol;
                found.push(LocalTarget {
                    serves: serves(name, local, &self.parts.group) && is_called,
                    healthy: target.healthy,
                    wildcard: listens.or(target.wildcard),
                });
            }
        }
        found
    }

    /// Returns who would receive connections to a VIP port that we do not listen on.
    async fn holder(&mut self, vip: SocketAddrV4, pass: &mut Pass) -> Option<Holder> {
        let listener = pass.listeners().await.holder(SocketAddr::V4(vip))?;
        let program = program(&mut self.programs, listener.inode).await;
        Some(Holder { wildcard: listener.is_wildcard(), program })
    }

    /// Returns what [`Self::holder`] does, as of a moment ago. Nobody listens for us on the port, so that only who
    /// holds it at the next look counts; reading all sockets for each name beyond the limit would stop us.
    async fn recent_holder(&mut self, vip: SocketAddrV4) -> Option<Holder> {
        let mut recent = self.take_recent();
        let holder = self.holder(vip, &mut recent.0).await;
        self.recent = recent;
        holder
    }

    /// Takes the sockets as of a moment ago, and when they were read. Put it back.
    pub(super) fn take_recent(&mut self) -> (Pass, Instant) {
        let recent = std::mem::replace(&mut self.recent, (Pass::default(), Instant::now()));
        if recent.1.elapsed() > RECENT { (Pass::default(), Instant::now()) } else { recent }
    }

    /// Returns whether there are as many listeners as there may be.
    pub(super) fn is_full(&self) -> bool {
        Arc::strong_count(&self.listeners) > self.max_listeners
    }

    fn bind(&self, vip: SocketAddrV4) -> Result<TcpListener, BindOutcome> {
        if self.is_full() {
            return Err(BindOutcome::Failed(format!(
                "the limit of {} listeners is reached",
                self.max_listeners
            )));
        }
        bind(vip)
    }

    fn listen(&self, listener: TcpListener, name: VipName, port: u16, used: Arc<Usage>) -> Listening {
        let (take, began) = (Arc::clone(&self.take), self.shared.began);
        let take = move |client| {
            used.touch(began);
            take(client, name.clone(), port);
        };
        let clients = self.parts.clients.clone();
        let (counters, spare) = (Arc::clone(&self.counters), self.shared.spare.clone());
        let accepting = Accepting { clients, take, counters, spare };
        Listening::start(&self.parts.stage, listener, accepting)
    }

    /// Enters a service's names into the table when its view has changed.
    fn place(&mut self, service: &ServiceName) {
        let view = self.parts.index.service(service);
        let placed = self.placed.get(service);
        if view.as_ref().zip(placed).is_some_and(|(view, placed)| Arc::ptr_eq(view, placed)) {
            return;
        }
        let before = placed.map(|placed| attempts(placed)).unwrap_or_default();
        let is_empty = |name: &VipName| view.as_ref().is_none_or(|view| behind(view, name).next().is_none());
        self.gone.extend(before.into_keys().filter(|name| self.names.contains_key(name) && is_empty(name)));
        let is_new = match view {
            Some(view) => {
                let is_new = self.table.set_service(service, attempts(&view));
                self.placed.insert(service.clone(), view);
                is_new
            }
            None => {
                self.placed.remove(service);
                self.table.set_service(service, [])
            }
        };
        if is_new {
            self.is_table_new = true;
            self.unsettled.insert(service.clone());
        }
    }

    /// Enters what has changed. One service costs as much as it has, all of them only those that fell behind.
    fn place_changed(&mut self, first: Option<ServiceName>) {
        let mut next = first;
        while let Some(service) = next {
            self.place(&service);
            next = match self.changes.try_recv() {
                Ok(service) => Some(service),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
                Err(TryRecvError::Lagged(_)) => None,
            };
        }
        self.place_all();
    }

    fn place_all(&mut self) {
        let mut all: BTreeSet<_> = self.parts.index.services().into_iter().collect();
        all.extend(self.placed.keys().cloned());
        for service in all {
            self.place(&service);
        }
        self.publish_addresses();
    }

    /// Tells who publishes this node's services which of their names must have another address. What does not
    /// get through is said again at the next look.
    fn raise(&mut self) {
        let mut services = std::mem::take(&mut self.unsettled);
        services.extend(self.table.losers().keys().map(|name| name.service().clone()));
        let of_service = |service: &ServiceName| {
            raises::of_service(&self.table, &self.targets, &self.parts.group, service)
        };
        let raises: Vec<_> = services.iter().flat_map(of_service).collect();
        if !raises.is_empty() {
            tracing::debug!(count = raises.len(), "names of this node move to another virtual address");
            let _ = self.parts.raises.try_send(raises);
        }
    }

    /// Lets readers see the state of a name.
    fn publish(&mut self, name: &VipName) {
        let before = self.shared.open(name);
        let Some(open) = self.names.get(name) else {
            if self.shared.open.remove(name).is_some() {
                self.bump(name);
            }
            return;
        };
        let ports: Box<[_]> = open.ports.iter().map(|(number, port)| (*number, port.state.clone())).collect();
        let udp: Box<[_]> = open.udp.iter().map(|(number, port)| (*number, port.state.clone())).collect();
        let is_same = before
            .is_some_and(|shown| shown.address == open.address && shown.ports == ports && shown.udp == udp);
        if !is_same {
            let shown = OpenVip { address: open.address, ports, udp, used: Arc::clone(&open.used) };
            self.shared.open.insert(name.clone(), Arc::new(shown));
            self.bump(name);
        }
    }

    /// Ends kept answers with a name's VIP.
    fn bump(&self, name: &VipName) {
        self.parts.index.revisions().bump(Subject::Service(name.service()));
    }

    fn publish_addresses(&mut self) {
        if !std::mem::take(&mut self.is_table_new) {
            return;
        }
        for address in self.table.take_changed() {
            self.addresses.set(address, self.table.holder(address).cloned());
            self.parts.index.revisions().bump(Subject::Vip(address));
        }
        let before = self.shared.losers.load_full();
        if *before != *self.table.losers() {
            self.shared.losers.store(Arc::new(self.table.losers().clone()));
            let (gone, new) = (before.iter(), self.table.losers().iter());
            let changed = gone.filter(|(name, winner)| self.table.losers().get(*name) != Some(*winner));
            let changed = changed.chain(new.filter(|(name, winner)| before.get(*name) != Some(*winner)));
            changed.for_each(|(name, _)| self.bump(name));
        }
    }
}

/// Returns whether a name stands for an instance of this node, whose group is given.
pub(super) fn serves(name: &VipName, local: &LocalService, own: &GroupName) -> bool {
    let record = &local.record;
    *name.service() == record.service
        && match name {
            VipName::Service(_) => true,
            VipName::Group(_, group) => group == own,
            VipName::Instance(_, group, instance) => group == own && *instance == record.instance,
        }
}

/// Finds the program of a socket, among those that are known first.
pub(super) async fn program(known: &mut BTreeMap<u64, Option<String>>, inode: u64) -> Option<String> {
    if let Some(program) = known.get(&inode) {
        return program.clone();
    }
    let program = Stage::blocking(move || program_blocking(inode)).await;
    known.insert(inode, program.clone());
    program
}

/// Returns the ports that programs of this machine are registered on.
fn ports_of(targets: &[LocalService]) -> BTreeSet<u16> {
    let addresses = targets.iter().flat_map(|local| &local.targets).filter_map(|target| target.addr.ip());
    addresses.map(|addr| addr.port()).collect()
}

fn changed_of(received: Result<ServiceName, RecvError>) -> Input {
    match received {
        Ok(service) => Input::Changed(Some(service)),
        Err(RecvError::Lagged(_)) => Input::Changed(None),
        // The index lives as long as its reader, which the owner has.
        Err(RecvError::Closed) => Input::Stop,
    }
}

/// What is read at most once while names are looked at: the kernel walks its whole socket table for it, which
/// takes 20 ms on a machine with the usual 2^18 buckets (measured).
#[derive(Debug, Default)]
pub(super) struct Pass(Option<Listeners>, Option<Listeners>);

impl Pass {
    async fn listeners(&mut self) -> &Listeners {
        if self.0.is_none() {
            self.0 = Some(Stage::blocking(Listeners::read_blocking).await);
        }
        self.0.get_or_insert_default()
    }

    pub(super) async fn udp(&mut self) -> &Listeners {
        if self.1.is_none() {
            self.1 = Some(Stage::blocking(Listeners::read_udp_blocking).await);
        }
        self.1.get_or_insert_default()
    }
}

/// Returns whether a target is a program of this machine on this TCP port.
fn wants(target: &Target, port: u16) -> bool {
    let is_here = |addr: SocketAddr| addr.port() == port && is_this_host(addr.ip());
    target.transport == Transport::Tcp && target.addr.ip().is_some_and(is_here)
}

/// Age of a look at the sockets that is good enough for a name without a listener; all are looked at every 5 s.
const RECENT: Duration = Duration::from_secs(1);

/// How long a name stays open after its last use (design section 8).
const IDLE: Duration = Duration::from_secs(3_600);
