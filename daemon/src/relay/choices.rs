//! Which instances a flow tries: what the index knows, what was seen of them, what caller and exporters wish.
//!
//! Owns: nothing; it gives the core of selection what it decides by. Must not know: streams, bytes.
//! Driven by: `outbound`, for each round of a flow; whoever explains a name.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use gossamer_core::catalog::{InstanceView, ServiceView};
use gossamer_core::select::{
    Candidate, Explanation, Policy, Routes, Score, Seen, explain, order, refusal, shares,
};
use gossamer_core::vip::VipName;
use gossamer_wire::PortName;

use super::outbound::Choice;
use super::scope::{PortChoice, behind};
use super::{ConnectError, Relay, count};

/// The routes of the configuration, which may be replaced while flows are open: they count for flows opened later.
pub type LiveRoutes = Arc<ArcSwap<Routes>>;

impl Relay {
    /// Returns the usable instances of a name, best first; empty when there is none at the moment.
    pub(super) fn choices(&self, name: &VipName, port: &PortChoice) -> Result<Vec<Choice>, ConnectError> {
        let unknown = || ConnectError::UnknownName(name.to_string());
        let view = self.parts.index.service(name.service()).ok_or_else(unknown)?;
        let all: Vec<_> = behind(&view, name).collect();
        if all.is_empty() {
            return Err(unknown());
        }
        let with_port: Vec<_> =
            all.into_iter().filter_map(|found| port.find(found).map(|port| (found, &port.name))).collect();
        if with_port.is_empty() {
            let numbers = super::scope::tcp_ports(&view, name);
            let known: Vec<_> = numbers.iter().map(u16::to_string).collect();
            return Err(ConnectError::UnknownPort { name: name.to_string(), known: known.join(", ") });
        }
        let policy = self.policy(&view, name);
        let near: Vec<_> =
            with_port.iter().filter(|(found, _)| policy.excludes(found).is_none()).copied().collect();
        match near
            .is_empty()
            .then(|| with_port.iter().find_map(|(found, _)| policy.excludes(found)))
            .flatten()
        {
            Some((only, by)) => {
                Err(ConnectError::Excluded { name: name.to_string(), only, by, count: with_port.len() })
            }
            None => Ok(self.ordered(&near, name, &policy)),
        }
    }

    /// Puts instances that are near enough into the order in which a flow tries them.
    fn ordered(&self, near: &[(&InstanceView, &PortName)], name: &VipName, policy: &Policy) -> Vec<Choice> {
        let now = Instant::now().into_std();
        // Of no use without a percentage: then every tier has room for all.
        let may_spill = policy.spill_below().is_some();
        let mut weighed = Vec::new();
        let mut candidates = Vec::with_capacity(near.len());
        for (found, port) in near {
            let tier = policy.tier(found);
            let is_usable = refusal(found, policy).is_none();
            let mut is_healthy = false;
            if is_usable {
                let choice = Choice::new(found, (*port).clone(), policy.carrier(found));
                let (load, ejected) = self.flows.judge(&choice.key(name), now);
                is_healthy = ejected.is_none();
                let score = Score { tier, ejected: ejected.is_some(), load };
                candidates.push(Candidate { score, weight: found.weight, item: choice });
            }
            if may_spill {
                weighed.push((tier, found.weight, is_healthy));
            }
        }
        let mut rng = rand::rng();
        // Without one the order is what it always is, also of tiers all of whose instances are ejected.
        let first = may_spill.then(|| shares(policy, weighed)).and_then(|shares| {
            let first = shares.draw(&mut rng);
            if first > shares.first() {
                count(&self.counters.spilled);
            }
            first
        });
        order(candidates, first, &mut rng)
    }

    /// Returns what counts for a name here.
    fn policy(&self, view: &ServiceView, name: &VipName) -> Policy {
        let exporters = behind(view, name).map(|found| &found.routing);
        Policy::join(&self.parts.routes.load().of(name), exporters)
    }

    /// Explains a name as a flow to it would be treated now; `None` when no node offers the service.
    pub fn explain(&self, name: &VipName, port: &PortChoice) -> Option<Explanation> {
        let view = self.parts.index.service(name.service())?;
        let now = Instant::now().into_std();
        let seen = |found: &InstanceView| {
            let key = (found.node, name.service().clone(), found.instance.clone());
            let (load, ejected) = self.flows.judge(&key, now);
            Seen { load, ejected }
        };
        let policy = self.policy(&view, name);
        Some(explain(&view, name, policy, |found| port.find(found).is_some(), seen))
    }
}

#[cfg(test)]
mod tests;
