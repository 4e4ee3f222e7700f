//! The owner of VIPs: which names are listened on, and what became of each of their ports.
//!
//! Owns: the open names and their listeners. Must not know: DNS messages, how flows are carried.
//! Driven by: the resolver (`open`, before a name is answered), a timer. The rules are in `core::vip`.
//!
//! Nothing is listened on for a name nobody here asked for, and nothing that would keep a program of this
//! machine from starting (design section 8).

mod capacity;
mod owner;
mod raises;
mod redirect;
mod udp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use gossamer_core::catalog::ServiceView;
use gossamer_core::vip::{Mode, Pool, PortState, Redirect, Standing, VipName};
use gossamer_dns::VipAnswer;
use gossamer_wire::{GroupName, MeshId, Transport};

use super::scope::{attempt, behind, has_udp, ports};
use super::spare::Spare;
use super::udp::{Receiving, Vip};
use super::{LocalTargets, Relay, RelayCounters};
use crate::clients::Clients;
use crate::events::EventLog;
use crate::index::{AddressReader, AddressWriter, IndexReader};
use crate::register::Raise;
use crate::supervise::Stage;
use owner::{Open, Owner, Pace};
use redirect::Redirected;
use udp::Receive;

pub use redirect::{RedirectError, RedirectSockets, Standings};

/// What VIPs are made of.
#[derive(Debug)]
pub struct VipsParts {
    /// Runs the owner and its listeners.
    pub stage: Stage,
    /// The mesh.
    pub mesh: MeshId,
    /// The addresses.
    pub pool: Pool,
    /// How connections to them come here.
    pub mode: Mode,
    /// The listeners of [`Mode::Dnat`].
    pub redirect: Option<RedirectSockets>,
    /// Told when the kernel ceases to redirect.
    pub events: EventLog,
    /// Who may connect to them.
    pub clients: Clients,
    /// This node's group.
    pub group: GroupName,
    /// Where services are.
    pub index: IndexReader,
    /// What runs here.
    pub targets: Arc<dyn LocalTargets>,
    /// Who publishes what runs here: told when a name of it must have another address.
    pub raises: mpsc::Sender<Vec<Raise>>,
}

/// The VIPs of this node. Clones are handles to the same owner task.
#[derive(Clone, Debug)]
pub struct Vips {
    commands: mpsc::Sender<Open>,
    shared: Arc<Shared>,
}

/// What readers see; written by the owner only.
#[derive(Debug)]
struct Shared {
    mesh: MeshId,
    pool: Pool,
    mode: Mode,
    redirected: Option<Redirected>,
    index: IndexReader,
    began: Instant,
    spare: Spare,
    /// Written name by name: tens of thousands may be in use.
    open: DashMap<VipName, Arc<OpenVip>>,
    /// The name each address stands for, of all names of the catalog.
    names: AddressReader,
    /// Names that are not answered because another name has their address.
    losers: ArcSwap<BTreeMap<VipName, VipName>>,
}

/// A name that is in use here.
#[derive(Clone, Debug)]
struct OpenVip {
    address: Ipv4Addr,
    /// Sorted by number.
    ports: Box<[(u16, PortState)]>,
    /// UDP ports, the same way.
    udp: Box<[(u16, PortState)]>,
    used: Arc<Usage>,
}

/// When a name was last used, seconds since the owner began.
#[derive(Debug, Default)]
struct Usage(AtomicU64);

/// One port of a name, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipPort {
    /// The name, without the zone.
    pub name: VipName,
    /// Address and port.
    pub address: SocketAddrV4,
    /// TCP or UDP.
    pub transport: Transport,
    /// What it is.
    pub state: PortState,
}

impl Vips {
    /// Starts the owner. Connections to VIPs go to `relay`.
    pub fn start(parts: VipsParts, relay: &Relay) -> Self {
        let shares = (Arc::clone(&relay.counters), relay.spare.clone());
        let relay = relay.clone();
        let (stage, clients, datagrams) = (parts.stage.clone(), parts.clients.clone(), relay.clone());
        let take = move |client, name, port| relay.accept_local(client, name, port);
        let began = Instant::now();
        let receive = move |socket, name, port, used: Arc<Usage>| {
            let touch = Box::new(move || used.touch(began));
            let vip = Vip { name, port, clients: clients.clone(), touch };
            Receiving::start(&stage, |stop| datagrams.clone().receive_datagrams(socket, vip, stop))
        };
        Self::start_with(parts, shares, began, Pace::default(), take, Arc::new(receive))
    }

    fn start_with(
        mut parts: VipsParts,
        (counters, spare): (Arc<RelayCounters>, Spare),
        began: Instant,
        pace: Pace,
        take: impl Fn(TcpStream, VipName, u16) + Send + Sync + 'static,
        receive: Receive,
    ) -> Self {
        let (commands, asked) = mpsc::channel(WAITING_OPENS);
        let names = AddressWriter::default();
        let take: owner::Take = Arc::new(take);
        let redirected = parts.redirect.take().map(|sockets| {
            redirect::start(redirect::Parts {
                stage: parts.stage.clone(),
                sockets,
                clients: parts.clients.clone(),
                names: names.reader(),
                index: parts.index.clone(),
                counters: Arc::clone(&counters),
                take: Arc::clone(&take),
                spare: spare.clone(),
                events: parts.events.clone(),
            })
        });
        let shared = Arc::new(Shared {
            mesh: parts.mesh,
            pool: parts.pool,
            mode: parts.mode,
            redirected,
            index: parts.index.clone(),
            began,
            spare,
            open: DashMap::new(),
            names: names.reader(),
            losers: ArcSwap::default(),
        });
        let stage = parts.stage.clone();
        let owner = Owner::new(parts, Arc::clone(&shared), names, counters, take, receive);
        stage.spawn("vips", owner.run(asked, pace));
        Self { commands, shared }
    }

    /// Makes a name fit to be answered: listens on its ports, or learns why that cannot be. A name that does
    /// not exist is left alone.
    ///
    /// # Cancel safety
    /// Cancel safe; the name may be opened all the same.
    pub async fn open(&self, name: &VipName) {
        let Some(view) = self.shared.index.service(name.service()) else { return };
        if self.shared.mode != Mode::Bind
            && !self.shared.is_listened(&view, name)
            && self.is_placed(&view, name)
        {
            return;
        }
        if let Some(open) = self.shared.open(name)
            && self.shared.is_current(&open, &view, name)
        {
            return open.used.touch(self.shared.began);
        }
        let (done, opened) = oneshot::channel();
        if self.commands.send(Open { name: name.clone(), done }).await.is_ok() {
            let _ = opened.await;
        }
    }

    /// Returns whether a name without a listener can be answered: readers know what its address stands for, which
    /// in dnat mode each connection asks. A name that does not exist is not waited for.
    fn is_placed(&self, view: &ServiceView, name: &VipName) -> bool {
        let shared = &self.shared;
        shared.mode == Mode::None
            || shared.names.name(shared.address(view, name)).as_ref() == Some(name)
            || shared.losers.load().contains_key(name)
            || behind(view, name).next().is_none()
    }

    /// Returns what a name is answered with, given the view of its service. Says nothing about whether the
    /// name exists. A name that was not opened is answered with its address.
    pub fn answer(&self, view: &ServiceView, name: &VipName) -> VipAnswer {
        self.answer_at(name, attempt(view, name), has_udp(view, name))
    }

    /// Returns what [`Self::answer`] does, given the name's `try` and whether it has UDP ports.
    pub fn answer_at(&self, name: &VipName, attempt: u8, has_udp: bool) -> VipAnswer {
        if self.shared.mode == Mode::None {
            return VipAnswer::Direct;
        }
        if let Some(winner) = self.shared.losers.load().get(name) {
            let winner =
                if self.shared.sees(winner) { winner.to_string() } else { "another name".to_owned() };
            return VipAnswer::Blocked(format!(
                "{name} has the same virtual address as {winner}; its exporters are about to give it another one"
            ));
        }
        if let Some(reason) = self.shared.open(name).and_then(|open| open.blocked()) {
            return VipAnswer::Blocked(reason);
        }
        let vip = self.shared.address_at(name, attempt);
        match &self.shared.redirected {
            Some(redirected) => {
                redirected_answer(redirected.standings(), redirected.redirect(), vip, has_udp)
            }
            None => VipAnswer::Address(vip),
        }
    }

    /// Waits until it is known whether connections to VIPs come here; in dnat mode names are not answered before.
    pub async fn looked(&self) {
        if let Some(redirected) = &self.shared.redirected {
            redirected.looked().await;
        }
    }

    /// Returns what is known of the redirection; `None` in other modes, and before the first look.
    pub fn redirection(&self) -> Option<Standings> {
        self.shared.redirected.as_ref()?.standings()
    }

    /// Returns the name that an address stands for, in use or not; `None` when this node may not see it. A new
    /// name is known a moment later, unless it is opened.
    pub fn pointer(&self, vip: Ipv4Addr) -> Option<VipName> {
        let name = self.shared.names.name(vip).filter(|name| self.shared.sees(name));
        name.filter(|_| self.shared.mode != Mode::None)
    }

    /// Returns the ports of all names in use, by name and port.
    pub fn ports(&self) -> Vec<VipPort> {
        let mut all = Vec::new();
        for entry in &self.shared.open {
            let (name, open) = entry.pair();
            let tcp = open.ports.iter().map(|port| (Transport::Tcp, port));
            let udp = open.udp.iter().map(|port| (Transport::Udp, port));
            all.extend(tcp.chain(udp).map(|(transport, (port, state))| VipPort {
                name: name.clone(),
                address: SocketAddrV4::new(open.address, *port),
                transport,
                state: state.clone(),
            }));
        }
        let order = |port: &VipPort| (port.address.port(), port.transport);
        all.sort_by(|a, b| (&a.name, order(a)).cmp(&(&b.name, order(b))));
        all
    }

    /// Returns the names that are not answered because another name has their address, with that name.
    pub fn losers(&self) -> Arc<BTreeMap<VipName, VipName>> {
        self.shared.losers.load_full()
    }
}

/// In dnat mode a name is answered while connections to its address come here: else they would reach whatever program
/// listens on all addresses. UDP is not redirected and its ports are bound on the IPv4 address alone, so a name that has
/// some is not answered with the other one.
fn redirected_answer(
    standings: Option<Standings>,
    redirect: &Redirect,
    vip: Ipv4Addr,
    has_udp: bool,
) -> VipAnswer {
    let Some(standings) = standings else {
        return VipAnswer::Blocked("it is not known yet whether virtual addresses are redirected".to_owned());
    };
    if let Some(why) = standings.v4.missing() {
        return VipAnswer::Blocked(format!("{why} on this machine: sudo gossamer host setup"));
    }
    match standings.v6 {
        Standing::Ready if !has_udp => VipAnswer::Dual(vip, redirect.vip6(vip)),
        Standing::Ready | Standing::Off | Standing::NoRoute | Standing::NoTable => VipAnswer::Address(vip),
    }
}

impl Shared {
    fn open(&self, name: &VipName) -> Option<Arc<OpenVip>> {
        self.open.get(name).map(|entry| Arc::clone(entry.value()))
    }

    /// Returns whether this node may know of a name.
    fn sees(&self, name: &VipName) -> bool {
        self.index.service(name.service()).is_some_and(|view| behind(&view, name).next().is_some())
    }

    /// Returns the ports of a name to listen on.
    fn listened(&self, view: &ServiceView, name: &VipName, transport: Transport) -> BTreeSet<u16> {
        if self.mode.listens(transport) { ports(view, name, transport) } else { BTreeSet::new() }
    }

    fn is_listened(&self, view: &ServiceView, name: &VipName) -> bool {
        [Transport::Tcp, Transport::Udp]
            .into_iter()
            .any(|transport| !self.listened(view, name, transport).is_empty())
    }

    /// Returns whether an open name has its address and ports: then a new view of its service changes nothing here.
    fn is_current(&self, open: &OpenVip, view: &ServiceView, name: &VipName) -> bool {
        let same = |known: &[(u16, PortState)], transport| {
            known.iter().map(|(port, _)| port).eq(&self.listened(view, name, transport))
        };
        open.address == self.address(view, name)
            && same(&open.ports, Transport::Tcp)
            && same(&open.udp, Transport::Udp)
    }

    fn address(&self, view: &ServiceView, name: &VipName) -> Ipv4Addr {
        self.address_at(name, attempt(view, name))
    }

    fn address_at(&self, name: &VipName, attempt: u8) -> Ipv4Addr {
        self.pool.vip(name.hash(&self.mesh, attempt))
    }
}

impl OpenVip {
    /// Returns why the name must not be answered: port, program and what to do, the first port that matters.
    fn blocked(&self) -> Option<String> {
        let stolen = |(port, state): &(u16, PortState), ways: &str| match state {
            PortState::Stolen { program } => {
                let program = program.as_deref().unwrap_or("another program");
                Some(format!(
                    "port {port} here is of {program}, listening on all addresses: bind it to one{ways}"
                ))
            }
            PortState::Bound | PortState::Native | PortState::Waiting | PortState::Denied { .. } => None,
        };
        let tcp = |port| stolen(port, ", set vip.mode dnat, or use `gossamer forward`");
        self.ports.iter().find_map(tcp).or_else(|| self.udp.iter().find_map(|port| stolen(port, "")))
    }
}

impl Usage {
    fn touch(&self, began: Instant) {
        self.0.store(began.elapsed().as_secs(), Ordering::Relaxed);
    }

    fn idle_seconds(&self, began: Instant) -> u64 {
        began.elapsed().as_secs().saturating_sub(self.0.load(Ordering::Relaxed))
    }
}

/// Names that wait to be opened. A client waits for each, so more than the parallel questions of one machine
/// do not come; when it is full, questions wait.
const WAITING_OPENS: usize = 256;

#[cfg(test)]
mod tests;
