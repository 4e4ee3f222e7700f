//! DNS on the page of metrics.
//!
//! Owns: the names of the DNS metrics. Must not know: how questions are answered. Driven by: `metrics`, at a scrape.

use std::fmt;

use gossamer_dns::{
    DnsCounts, DnsTraffic, ForwardCounts, LATENCY_BOUNDS, Latency, MAX_UPSTREAMS, TYPES, UpstreamState,
    UpstreamStatus,
};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{Page, sentence};

impl Page<'_> {
    pub(super) fn dns(&mut self, dns: &DnsCounts) -> fmt::Result {
        self.counters("dns_responses", "DNS responses by outcome", "outcome", &outcomes(dns))?;
        self.counter("dns_truncated", "DNS responses that did not fit", dns.truncated)?;
        self.counter("dns_dropped", "DNS messages without a response", dns.dropped)?;
        self.counter("dns_refused_sources", "Clients that may not ask", dns.refused_source)
    }

    pub(super) fn dns_traffic(&mut self, traffic: &DnsTraffic) -> fmt::Result {
        let types: Vec<_> = TYPES.into_iter().zip(traffic.types).collect();
        self.counters("dns_queries", "DNS questions answered, by type", "type", &types)?;
        let help = sentence("How long DNS answers took, by the way they were found");
        let unit = Unit::Seconds;
        let mut family =
            self.0.encode_descriptor("dns_response", &help, Some(&unit), MetricType::Histogram)?;
        for (path, latency) in [("kept", &traffic.kept), ("handled", &traffic.handled)] {
            Timing(latency).encode(family.encode_family(&[("path", path)])?)?;
        }
        Ok(())
    }

    pub(super) fn forwarding(&mut self, counts: &ForwardCounts, upstreams: &[UpstreamStatus]) -> fmt::Result {
        let outcomes = [
            ("cached", counts.cached),
            ("answered", counts.answered),
            ("unanswered", counts.unanswered),
            ("overflowed", counts.overflowed),
            ("mesh_data", counts.mesh_data),
            ("private", counts.private),
        ];
        self.counters("dns_forwarded", "Questions about names of others by outcome", "outcome", &outcomes)?;
        let dropped = [
            ("wrong_id", counts.wrong_id),
            ("wrong_question", counts.wrong_question),
            ("malformed", counts.malformed),
        ];
        let help = "Messages of upstream servers that answer no question";
        self.counters("dns_upstream_dropped", help, "reason", &dropped)?;
        self.counter("dns_upstream_truncated", "Answers asked for again over TCP", counts.truncated)?;
        self.counter("dns_upstream_came_back", "Own probes that came back", counts.came_back)?;
        // By place in the configuration: labels are words of this program.
        let by_place = |value: fn(&UpstreamStatus) -> u64| -> Vec<_> {
            PLACES.into_iter().zip(upstreams.iter().map(value)).collect()
        };
        let place = "upstream";
        let answered = by_place(|upstream| upstream.answered);
        self.counters("dns_upstream_answers", "Answers by upstream server", place, &answered)?;
        let failed = by_place(|upstream| upstream.failed);
        self.counters("dns_upstream_failures", "Tries without an answer", place, &failed)?;
        let usable = by_place(|upstream| u64::from(upstream.state == UpstreamState::Up));
        self.gauges("dns_upstream_up", "Whether the server answers and does not loop", place, &usable)
    }
}

/// A latency as a histogram.
struct Timing<'a>(&'a Latency);

impl EncodeMetric for Timing<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = LATENCY_BOUNDS.iter().map(|bound| f64::from(*bound) / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.0.buckets).collect();
        let seconds = std::time::Duration::from_nanos(self.0.nanoseconds).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(seconds, self.0.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Response codes in words; an answer without records of the asked type has its own.
const fn outcomes(counts: &DnsCounts) -> [(&'static str, u64); 7] {
    [
        ("noerror", counts.noerror),
        ("nodata", counts.nodata),
        ("nxdomain", counts.nxdomain),
        ("refused", counts.refused),
        ("servfail", counts.servfail),
        ("formerr", counts.formerr),
        ("notimp", counts.notimp),
    ]
}

/// Places of upstream servers.
const PLACES: [&str; MAX_UPSTREAMS] = ["1", "2", "3", "4"];
