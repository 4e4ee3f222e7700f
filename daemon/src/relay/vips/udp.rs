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
            Some(port) => {
                port.close().await;
                *pass = Pass::default();
            }
            None => {}
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
                    *pass = Pass::default();
                    let holder = self.udp_holder(vip, pass).await;
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

    async fn udp_holder(&mut self, vip: SocketAddrV4, pass: &mut Pass) -> Option<Holder> {
        let listener = pass.udp().await.holder(SocketAddr::V4(vip))?;
        let program = program(&mut self.programs, listener.inode).await;
        Some(Holder { wildcard: listener.is_wildcard(), program })
    }
}
