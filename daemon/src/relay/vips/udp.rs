//! UDP ports of open names: bound per address, in every mode, by the same rules as TCP ports.
//!
//! Owns: what became of each. Must not know: flows. Driven by: the owner of VIPs, at each look at a name.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use tokio::net::UdpSocket;

use gossamer_core::vip::{BindOutcome, Holder, LocalTarget, PortState, Step, VipName, judge, must_release};
use gossamer_wire::Transport;

use super::Usage;
use super::owner::{Owner, Pass, program, serves};
use crate::clients::is_this_host;
use crate::relay::udp::{Receiving, bind};

/// Takes a bound port of a name: returns what holds it.
pub(super) type Receive = Arc<dyn Fn(UdpSocket, VipName, u16, Arc<Usage>) -> Receiving + Send + Sync>;

/// A UDP port of an open name.
pub(super) struct UdpPort {
    pub(super) state: PortState,
    /// There while the state is [`PortState::Bound`]; counted by its part of the owner's listeners.
    receiving: Option<(Receiving, Arc<()>)>,
}

impl fmt::Debug for UdpPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

impl UdpPort {
    pub(super) async fn close(self) {
        if let Some((receiving, _)) = self.receiving {
            receiving.close().await;
        }
    }
}

impl Owner {
    /// Looks at the UDP ports of a name: keeps, gives up or gets each. Those that the name no longer has are closed.
    pub(super) async fn refresh_udp(
        &mut self,
        name: &VipName,
        address: Ipv4Addr,
        numbers: &BTreeSet<u16>,
        mut before: Vec<(u16, UdpPort)>,
        (used, pass): (&Arc<Usage>, &mut Pass),
    ) -> Vec<(u16, UdpPort)> {
        let mut after = Vec::with_capacity(numbers.len());
        for number in numbers {
            let known = before.iter().position(|(known, _)| known == number);
            let known = known.map(|index| before.swap_remove(index).1);
            let vip = SocketAddrV4::new(address, *number);
            after.push((*number, self.look_udp(name, vip, known, used, pass).await));
        }
        for (_, port) in before {
            port.close().await;
        }
        after
    }

    async fn look_udp(
        &mut self,
        name: &VipName,
        vip: SocketAddrV4,
        before: Option<UdpPort>,
        used: &Arc<Usage>,
        pass: &mut Pass,
    ) -> UdpPort {
        let was = before.as_ref().map(|port| port.state.clone());
        let targets = self.local_udp_targets(name, vip.port(), pass).await;
        match before {
            Some(port) if port.receiving.is_some() && !must_release(&targets) => return port,
            Some(port) if port.receiving.is_some() => {
                port.close().await;
                *pass = Pass::default();
            }
            Some(_) | None => {}
        }
        // A look before the attempt is needed where an own program may be meant; else the attempt says all.
        let holder = if targets.is_empty() { None } else { self.udp_holder(vip, pass).await };
        let port = match judge(holder.as_ref(), &targets, None) {
            Step::Be(state) => UdpPort { state, receiving: None },
            Step::Bind => match self.bind_udp(vip) {
                Ok(socket) => {
                    let receiving = (self.receive)(socket, name.clone(), vip.port(), Arc::clone(used));
                    let counted = Arc::clone(&self.listeners);
                    UdpPort { state: PortState::Bound, receiving: Some((receiving, counted)) }
                }
                Err(outcome) => {
                    let holder = self.udp_holder_after(&outcome, vip, pass).await;
                    let state = match judge(holder.as_ref(), &targets, Some(outcome)) {
                        Step::Be(state) => state,
                        Step::Bind => PortState::Waiting,
                    };
                    UdpPort { state, receiving: None }
                }
            },
        };
        if was.as_ref() != Some(&port.state) {
            tracing::debug!(%name, address = %vip, state = %port.state, "VIP port, UDP");
        }
        port
    }

    fn bind_udp(&self, vip: SocketAddrV4) -> Result<UdpSocket, BindOutcome> {
        match self.is_full() {
            true => Err(BindOutcome::Failed("the limit of listeners is reached".to_owned())),
            false => bind(vip),
        }
    }

    /// Returns the registered UDP targets of this machine on a port, as the rules want them.
    async fn local_udp_targets(&self, name: &VipName, port: u16, pass: &mut Pass) -> Vec<LocalTarget> {
        let mut found = Vec::new();
        for local in self.targets.iter() {
            for target in local.targets.iter().filter(|target| target.transport == Transport::Udp) {
                let is_here = |addr: &SocketAddr| addr.port() == port && is_this_host(addr.ip());
                let Some(addr) = target.addr.ip().filter(is_here) else { continue };
                let listens = pass.udp().await.is_wildcard(addr);
                found.push(LocalTarget {
                    serves: serves(name, local, &self.parts.group) && target.port == port,
                    // There is no check of UDP programs: one that has its socket is taken for well.
                    healthy: listens.is_some(),
                    wildcard: listens.or(target.wildcard),
                });
            }
        }
        found
    }

    /// Returns who holds a port that could not be bound. All such ports of a sweep are judged by one reading: it is
    /// taken again only for a port that somebody holds since.
    async fn udp_holder_after(
        &mut self,
        outcome: &BindOutcome,
        vip: SocketAddrV4,
        pass: &mut Pass,
    ) -> Option<Holder> {
        if self.is_full() {
            return self.recent_udp_holder(vip).await;
        }
        let holder = self.udp_holder(vip, pass).await;
        if holder.is_some() || *outcome != BindOutcome::InUse {
            return holder;
        }
        *pass = Pass::default();
        self.udp_holder(vip, pass).await
    }

    /// Returns what [`Self::udp_holder`] does, as of a moment ago: as for TCP, names beyond the limit of listeners
    /// must not cost a reading each.
    async fn recent_udp_holder(&mut self, vip: SocketAddrV4) -> Option<Holder> {
        let mut recent = self.take_recent();
        let holder = self.udp_holder(vip, &mut recent.0).await;
        self.recent = recent;
        holder
    }

    async fn udp_holder(&mut self, vip: SocketAddrV4, pass: &mut Pass) -> Option<Holder> {
        let listener = pass.udp().await.holder(SocketAddr::V4(vip))?;
        let program = program(&mut self.programs, listener.inode).await;
        Some(Holder { wildcard: listener.is_wildcard(), program })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use gossamer_core::vip::{Mode, Pool};
    use gossamer_wire::MeshId;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use crate::clients::Clients;
    use crate::events::EventLog;
    use crate::index::{AddressWriter, IndexWriter};
    use crate::relay::RelayCounters;
    use crate::relay::tests::{Targets, group, service};
    use crate::relay::vips::{Shared, VipsParts};
    use crate::supervise::Stage;

    fn owner() -> Owner {
        let (index, names) = (IndexWriter::default(), AddressWriter::default());
        let mesh = MeshId::from_bytes([3; 16]);
        let pool = Pool::new(Ipv4Addr::new(127, 250, 0, 0), 20).expect("aligned");
        let parts = VipsParts {
            stage: Stage::default(),
            mesh,
            pool,
            mode: Mode::Bind,
            redirect: None,
            events: EventLog::default(),
            clients: Clients::default(),
            group: group("west"),
            index: index.reader(),
            targets: Arc::new(Targets::default()),
            raises: mpsc::channel(1).0,
        };
        let shared = Arc::new(Shared {
            mesh,
            pool,
            mode: Mode::Bind,
            redirected: None,
            index: index.reader(),
            began: Instant::now(),
            spare: crate::relay::spare::Spare::default(),
            open: dashmap::DashMap::new(),
            names: names.reader(),
            losers: arc_swap::ArcSwap::default(),
        });
        let receive: Receive = Arc::new(|_, _, _, _| panic!("nothing is bound here"));
        Owner::new(parts, shared, names, Arc::new(RelayCounters::default()), Arc::new(|_, _, _| {}), receive)
    }

    #[tokio::test]
    async fn ports_that_are_not_bound_share_one_reading_of_the_sockets() {
        let (mut owner, mut pass, used) = (owner(), Pass::default(), Arc::default());
        let name = VipName::Service(service("orders"));
        let address = Ipv4Addr::new(127, 250, 1, 1);
        let wildcard = |_| std::net::UdpSocket::bind("0.0.0.0:0").expect("free");
        let port = |socket: &std::net::UdpSocket| socket.local_addr().expect("bound").port();
        let stolen = [(); 3].map(wildcard);
        let numbers: BTreeSet<u16> = stolen.iter().map(port).collect();
        pass.udp().await;
        let later = wildcard(());
        let vip = |number| SocketAddr::V4(SocketAddrV4::new(address, number));

        let mut ports = Vec::new();
        for is_full in [false, false, true] {
            if is_full {
                owner.max_listeners = 0;
            }
            ports = owner.refresh_udp(&name, address, &numbers, ports, (&used, &mut pass)).await;
            assert_eq!(ports.len(), 3);
            for (_, found) in &ports {
                assert!(matches!(&found.state, PortState::Stolen { program: Some(_) }), "{found:?}");
            }
            assert!(pass.udp().await.holder(vip(port(&later))).is_none(), "the sockets were read again");
        }

        // Somebody who came since is found all the same.
        let numbers = BTreeSet::from([port(&later)]);
        let found = self::owner().refresh_udp(&name, address, &numbers, Vec::new(), (&used, &mut pass)).await;
        assert!(matches!(&found[0].1.state, PortState::Stolen { program: Some(_) }), "{found:?}");
    }
}
