//! What the relay counts by service, for as many services as a page of metrics can bear.
//!
//! Owns: these counts, the bound on their number. Must not know: sockets, instances. Driven by: the flow table, which
//! lends its lock.
//!
//! A service gets a series of its own when a flow reached it, or a program of this machine tried to: what peers merely
//! ask for makes none. The first [`MAX_SERIES`] have one, all others share one.

use std::collections::BTreeMap;
use std::time::Duration;

use gossamer_wire::ServiceName;

use super::access::{Line, Reason};
use super::flow::{Direction, FlowInfo};
use crate::metrics::ServiceFlows;

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Services {
    own: BTreeMap<ServiceName, ServiceFlows>,
    others: ServiceFlows,
}

impl Services {
    /// Counts a flow that an instance has.
    pub(super) fn opened(&mut self, info: &FlowInfo) {
        let counts = self.of(&info.service, true);
        match info.direction {
            Direction::Outbound => counts.opened += 1,
            Direction::Inbound => counts.served += 1,
        }
    }

    /// Notes how long an instance took to take a flow.
    pub(super) fn answered(&mut self, service: &ServiceName, took: Duration) {
        self.of(service, true).took(took);
    }

    /// Counts an instance that was tried in vain.
    pub(super) fn retried(&mut self, service: &ServiceName) {
        self.of(service, true).retries += 1;
    }

    /// Counts the end of a flow.
    pub(super) fn ended(&mut self, line: &Line<'_>) {
        let Some(service) = line.service else {
            self.others.failed += 1;
            return;
        };
        // A peer may name what it likes, and a program of this machine too while nothing is there.
        let is_named_only = match line.direction {
            Direction::Outbound => line.reason == Reason::UnknownName,
            Direction::Inbound => matches!(line.reason, Reason::Denied | Reason::Busy),
        };
        let counts = self.of(service, !is_named_only);
        counts.bytes_in += line.bytes.0;
        counts.bytes_out += line.bytes.1;
        match (line.is_open, line.reason) {
            (true, _) | (false, Reason::Probe) => {}
            (false, Reason::Denied) => counts.denied += 1,
            (false, _) => counts.failed += 1,
        }
    }

    /// Returns all of them, by service, with the living flows.
    pub(super) fn read<'a>(&self, living: impl Iterator<Item = &'a FlowInfo>) -> Vec<(String, ServiceFlows)> {
        let mut own = self.own.clone();
        let mut others = self.others.clone();
        for info in living {
            own.get_mut(&info.service).unwrap_or(&mut others).open += 1;
        }
        let own = own.into_iter().map(|(service, counts)| (service.to_string(), counts));
        own.chain([(OTHERS.to_owned(), others)]).collect()
    }

    fn of(&mut self, service: &ServiceName, may_grow: bool) -> &mut ServiceFlows {
        let has_room = may_grow && self.own.len() < MAX_SERIES;
        if has_room && !self.own.contains_key(service) {
            self.own.insert(service.clone(), ServiceFlows::default());
        }
        self.own.get_mut(service).unwrap_or(&mut self.others)
    }
}

/// Services with a series of their own: about 2,500 lines, a page of 200 KiB.
const MAX_SERIES: usize = 100;

/// The label of all others: no service can be called so.
const OTHERS: &str = "_other";

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    use gossamer_wire::Transport;
    use tokio::time::Instant;

    use crate::relay::flow::{FlowId, Path};
    use crate::relay::tests::{group, named, service};

    fn info(name: &str, direction: Direction) -> FlowInfo {
        FlowInfo {
            flow: FlowId(1),
            direction,
            service: service(name),
            instance: named("db-0"),
            peer: "vm-b".parse().expect("name"),
            group: group("west"),
            client: None,
            transport: Transport::Tcp,
            path: Path::Local,
            target: None,
            since: std::time::Instant::now(),
            counts: Arc::default(),
        }
    }

    fn of(services: &Services, name: &str) -> ServiceFlows {
        let all = services.read(std::iter::empty());
        all.into_iter().find(|(known, _)| known == name).map(|(_, counts)| counts).unwrap_or_default()
    }

    #[test]
    fn a_large_mesh_makes_a_bounded_number_of_series() {
        let mut services = Services::default();
        for number in 0..10 * MAX_SERIES {
            services.opened(&info(&format!("s{number}"), Direction::Outbound));
        }
        let all = services.read(std::iter::empty());
        assert_eq!(all.len(), MAX_SERIES + 1);
        assert_eq!(of(&services, OTHERS).opened as usize, 9 * MAX_SERIES);
        assert!(OTHERS.parse::<ServiceName>().is_err(), "a service could be called so");
    }

    #[test]
    fn what_peers_merely_ask_for_makes_no_series() {
        let mut services = Services::default();
        let peer = crate::relay::tests::leaf(crate::relay::tests::THERE, "east");
        for number in 0..100_u64 {
            let request = gossamer_wire::flow::OpenRequest {
                flow: number,
                service: service(&format!("guess-{number}")),
                instance: named("db-0"),
                port: 80.into(),
                transport: Transport::Tcp,
            };
            let line = Line::inbound(Some(&request), &peer, Instant::now());
            services.ended(&line.because(Reason::Denied));
        }
        services.ended(&Line::inbound(None, &peer, Instant::now()));
        assert_eq!(services.read(std::iter::empty()).len(), 1);
        let others = of(&services, OTHERS);
        assert_eq!((others.denied, others.failed), (100, 1));
    }

    #[test]
    fn a_flow_is_counted_where_it_began_and_where_it_ended() {
        let mut services = Services::default();
        let (out, back) = (info("orders", Direction::Outbound), info("orders", Direction::Inbound));
        services.opened(&out);
        services.opened(&back);
        services.answered(&out.service, Duration::from_millis(3));
        services.retried(&out.service);
        let name = gossamer_core::vip::VipName::Service(service("orders"));
        let line = Line::outbound(FlowId(1), &name, Transport::Tcp, None, Instant::now());
        services.ended(&Line { bytes: (5, 7), is_open: true, ..line });
        services.ended(&line.because(Reason::Refused));
        services.ended(&line.because(Reason::Denied));
        services.ended(&line.because(Reason::Probe));
        let counts = of(&services, "orders");
        assert_eq!((counts.opened, counts.served, counts.retries), (1, 1, 1));
        assert_eq!((counts.failed, counts.denied), (1, 1));
        assert_eq!((counts.bytes_in, counts.bytes_out), (5, 7));
        assert_eq!(counts.open_times.iter().sum::<u64>(), 1);
        let living = [out];
        let open = services.read(living.iter()).into_iter().map(|(_, counts)| counts.open).sum::<u64>();
        assert_eq!(open, 1);
    }
}
