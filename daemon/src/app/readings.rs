//! What the metrics read from other parts at a scrape.
//!
//! Owns: the counting of states. Must not know: names of metrics. Driven by: `metrics`, when they are rendered.

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_core::vip::Standing;
use gossamer_dns::{DnsMetrics, Forwarder};
use gossamer_wire::Health;

use crate::api::redirection::label;
use crate::clock;
use crate::events::EventLog;
use crate::identity::Live;
use crate::index::IndexReader;
use crate::membership::state_word;
use crate::metrics::Readings;
use crate::register::TargetsReader;
use crate::relay::{Relay, Vips};
use crate::telemetry::Levels;

/// Read handles of the parts that count for themselves.
pub(super) struct Readers {
    pub(super) dns: Arc<DnsMetrics>,
    pub(super) forwarder: Option<Arc<Forwarder>>,
    pub(super) index: IndexReader,
    pub(super) targets: TargetsReader,
    pub(super) relay: Relay,
    pub(super) vips: Vips,
    pub(super) events: EventLog,
    pub(super) live: Live,
    pub(super) levels: Option<Levels>,
}

impl Readers {
    pub(super) fn read(&self) -> Readings {
        let health = |health| match health {
            Health::Passing => "passing",
            Health::Failing => "failing",
        };
        let (watchers, watch_lines_lost) = self.index.watchers();
        let live = self.live.load();
        Readings {
            dns: self.dns.counts(),
            dns_traffic: self.dns.traffic(),
            forwarding: self.forwarder.as_ref().map(|forwarder| (forwarder.counts(), forwarder.status())),
            members: count(self.index.nodes().iter().filter_map(|node| node.state).map(state_word)),
            registrations: count(self.targets.all().iter().map(|local| match local.record.draining {
                true => "draining",
                false => health(local.record.health),
            })),
            vip_ports: count(self.vips.ports().iter().map(|port| port.state.word())),
            redirected: self.vips.redirection().map_or_else(Vec::new, |standings| {
                let ready = |standing| u64::from(standing == Standing::Ready);
                standings.each().map(|(family, standing)| (label(family), ready(standing))).into()
            }),
            flows: self.relay.flow_counts(),
            written: self.index.written(),
            member_changes: self.index.member_changes(),
            findings: self.events.findings().counts(),
            certificate_seconds: live.leaf.not_after.saturating_sub(clock::wall()),
            issuers: live.issuers.len() as u64,
            watchers,
            watch_lines_lost,
            log_lines_lost: self.levels.as_ref().map_or(0, Levels::lost),
        }
    }
}

fn count(words: impl Iterator<Item = &'static str>) -> Vec<(&'static str, u64)> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted() {
        assert_eq!(count(["up", "down", "up"].into_iter()), [("down", 1), ("up", 2)]);
    }
}
