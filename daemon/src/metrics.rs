//! Every metric of the daemon, in one place.
//!
//! Owns: names, labels and help texts. Must not know: who counts, when it is scraped.
//! Driven by: transport, membership and issuer (events as they happen), `app` (what is read
//! from other parts at each scrape), `api` (what the catalog holds, render, `status`).
//!
//! Label values are words of this program, never names, addresses or texts of a peer: `&'static str` says so. The one
//! exception is `service`, of which there is a bounded number.

mod dns;
mod relays;
mod services;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use gossamer_core::catalog::{Counters, Refusal};
use gossamer_dns::{DnsCounts, DnsTraffic, ForwardCounts, UpstreamStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::catalog::Holdings;
use crate::index::Written;

pub use relays::CircuitCounts;
use relays::{CircuitsStalled, JoinersLed};
pub use services::ServiceFlows;

/// All counters and gauges. Counters only grow, from the start of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sources: Arc<Sources>,
    handshakes_refused: Family<Reason, Counter>,
    api_refused: Family<Reason, Counter>,
    handshakes_answered: Family<Outcome, Counter>,
    bad_frames: Counter,
    stray_datagrams: Counter,
    data_connections_refused: Counter,
    dial_failures: Counter,
    dial_attempts_failed: Family<Reason, Counter>,
    seen_addresses_refused: Family<Reason, Counter>,
    membership_queue_full: Counter,
    renewals: Counter,
    swim_refused: Counter,
    claims_refuted: Counter,
    confirming_probes: Counter,
    statements_refused: Counter,
    put_out: Counter,
    pings_ignored: Counter,
    joins: Family<Outcome, Counter>,
    joiners_led: JoinersLed,
    circuits_stalled: CircuitsStalled,
    certificate_renewals: Family<Outcome, Counter>,
}

/// What other parts count or know, read at one scrape.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// The DNS part.
    pub dns: DnsCounts,
    /// What it was asked, and how long that took.
    pub dns_traffic: DnsTraffic,
    /// The forwarder and its servers, when names of others are forwarded.
    pub forwarding: Option<(ForwardCounts, Vec<UpstreamStatus>)>,
    /// How many members are in each state.
    pub members: Vec<(&'static str, u64)>,
    /// How many instances are registered on this node, by health.
    pub registrations: Vec<(&'static str, u64)>,
    /// How many ports of VIPs are in each state.
    pub vip_ports: Vec<(&'static str, u64)>,
    /// Whether the kernel redirects VIPs here, by family, 0 or 1; empty but in dnat mode.
    pub redirected: Vec<(&'static str, u64)>,
    /// The relay.
    pub flows: FlowCounts,
    /// What changes cost the index.
    pub written: Written,
    /// How often a node came into each state.
    pub member_changes: Vec<(&'static str, u64)>,
    /// How many findings about nodes there are, by kind.
    pub findings: Vec<(&'static str, u64)>,
    /// Seconds until this node's certificate ends.
    pub certificate_seconds: u64,
    /// Issuers of the mesh.
    pub issuers: u64,
    /// Clients that watch.
    pub watchers: u64,
    /// Lines they lost.
    pub watch_lines_lost: u64,
    /// Log lines that were not written.
    pub log_lines_lost: u64,
}

/// What the relay counts. All but the first only grow.
#[derive(Clone, Debug, Default)]
pub struct FlowCounts {
    /// Flows open at the moment, those of local clients and of peers.
    pub open: u64,
    /// Flows of local clients that reached an instance.
    pub opened: u64,
    /// Flows of peers that reached their target.
    pub served: u64,
    /// Flows that were refused or failed, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// Instances tried in vain before another one was.
    pub retries: u64,
    /// The same by reason.
    pub in_vain: Vec<(&'static str, u64)>,
    /// Flows that went to an instance that was asked beside a slow one.
    pub overtaken: u64,
    /// Flows that began with another tier than the first healthy one.
    pub spilled: u64,
    /// Flows let in by `policy.audit` only.
    pub audited: u64,
    /// Living flows ended because they were no longer allowed or imported.
    pub revoked: u64,
    /// Bytes from clients to services.
    pub bytes_in: u64,
    /// Bytes from services to clients.
    pub bytes_out: u64,
    /// UDP flows open at the moment, those of local clients and of peers.
    pub udp_open: u64,
    /// Datagrams from clients to services.
    pub datagrams_in: u64,
    /// Datagrams from services to clients.
    pub datagrams_out: u64,
    /// Datagrams of UDP flows that were dropped, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Flows by service, as many services as have a series.
    pub services: Vec<(String, ServiceFlows)>,
    /// Circuits of others that this node splices.
    pub circuits: CircuitCounts,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("gossamer");
        let sources = Arc::new(Sources::default());
        registry.register_collector(Box::new(Arc::clone(&sources)));
        let mut this = Self {
            registry,
            sources,
            handshakes_refused: Family::default(),
            api_refused: Family::default(),
            handshakes_answered: Family::default(),
            bad_frames: Counter::default(),
            stray_datagrams: Counter::default(),
            data_connections_refused: Counter::default(),
            dial_failures: Counter::default(),
            dial_attempts_failed: Family::default(),
            seen_addresses_refused: Family::default(),
            membership_queue_full: Counter::default(),
            renewals: Counter::default(),
            swim_refused: Counter::default(),
            claims_refuted: Counter::default(),
            confirming_probes: Counter::default(),
            statements_refused: Counter::default(),
            put_out: Counter::default(),
            pings_ignored: Counter::default(),
            joins: Family::default(),
            joiners_led: JoinersLed::default(),
            circuits_stalled: CircuitsStalled::default(),
            certificate_renewals: Family::default(),
        };
        this.register();
        this
    }
}

impl Metrics {
    /// Names what is counted here. The encoder ends help texts with a full stop.
    fn register(&mut self) {
        let registry = &mut self.registry;
        let refused = self.handshakes_refused.clone();
        registry.register("handshakes_refused", "Connections refused before or at the first hello", refused);
        let refused = self.api_refused.clone();
        registry.register("api_refused", "Requests to the local API that were not for who asked", refused);
        let answered = self.handshakes_answered.clone();
        registry.register("handshakes_answered", "First packets of handshakes by what they got", answered);
        let failed = self.dial_attempts_failed.clone();
        registry.register("dial_attempts_failed", "Addresses of nodes dialled in vain by reason", failed);
        let refused = self.seen_addresses_refused.clone();
        registry.register(
            "seen_addresses_refused",
            "Words of peers on this node's address, of no use",
            refused,
        );
        for (name, help, counter) in [
            ("bad_frames", "Connections closed for bytes no honest peer sends", &self.bad_frames),
            ("stray_datagrams", "Datagrams of peers that belong to no flow", &self.stray_datagrams),
            (
                "data_connections_refused",
                "Data connections closed because the process of the peer was gone",
                &self.data_connections_refused,
            ),
            ("dial_failures", "Dials that reached nobody", &self.dial_failures),
            (
                "membership_queue_full",
                "SWIM packets dropped because membership was busy",
                &self.membership_queue_full,
            ),
            ("identity_renewals", "Times this node refuted that it is down", &self.renewals),
            (
                "claims_refuted",
                "Claims against members that this node's own probe disproved",
                &self.claims_refuted,
            ),
            (
                "confirming_probes",
                "Members probed before a claim against them counts",
                &self.confirming_probes,
            ),
            ("statements_refused", "Statements of peers that do not hold", &self.statements_refused),
            ("pings_ignored", "Pings of peers that ping too often", &self.pings_ignored),
            (
                "connections_put_out",
                "Connections closed because their certificate counts no more",
                &self.put_out,
            ),
            ("swim_packets_refused", "SWIM packets dropped because they do not decode", &self.swim_refused),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register("joins", "Join requests to this issuer by outcome", self.joins.clone());
        self.joiners_led.register(registry);
        self.circuits_stalled.register(registry);
        let renewals = self.certificate_renewals.clone();
        registry.register("certificate_renewals", "Renewals of this node's certificate by outcome", renewals);
    }

    /// Sets what is read at each scrape. The first call counts, later ones are ignored. `read` must not block.
    pub fn read_from(&self, read: impl Fn() -> Readings + Send + Sync + 'static) {
        let _ = self.sources.read.set(Box::new(read));
    }

    /// Counts a connection that was refused before or at its first hello.
    pub fn handshake_refused(&self, reason: &'static str) {
        self.handshakes_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a request to the local API that its caller may not make.
    pub fn api_refused(&self, reason: &'static str) {
        self.api_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts the answer to the first packet of a handshake, or one that made room for another.
    pub fn handshake_answered(&self, outcome: &'static str) {
        self.handshakes_answered.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a datagram of a peer that belongs to no flow.
    pub fn stray_datagram(&self) {
        self.stray_datagrams.inc();
    }

    /// Counts a data connection that was closed because the port of the peer is closed and the peer silent.
    pub fn data_connection_refused(&self) {
        self.data_connections_refused.inc();
    }

    /// Counts a connection that was closed because of bytes no honest peer sends.
    pub fn bad_frame(&self) {
        self.bad_frames.inc();
    }

    /// Counts a dial that reached nobody.
    pub fn dial_failed(&self) {
        self.dial_failures.inc();
    }

    /// Counts an attempt to dial one address of a node that came to nothing.
    pub fn dial_attempt_failed(&self, reason: &'static str) {
        self.dial_attempts_failed.get_or_create(&Reason { reason }).inc();
    }

    /// Returns how many attempts to dial one address got no answer.
    pub fn dials_unanswered(&self) -> u64 {
        self.dial_attempts_failed.get_or_create(&Reason { reason: "no_answer" }).get()
    }

    /// Counts a peer's word on this node's address that cannot be one.
    pub fn seen_address_refused(&self, reason: &'static str) {
        self.seen_addresses_refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a SWIM packet that was dropped because membership was busy.
    pub fn membership_queue_full(&self) {
        self.membership_queue_full.inc();
    }

    /// Counts a renewal of this node's identity.
    pub fn renewed(&self) {
        self.renewals.inc();
    }

    /// Counts a claim of a peer that turned out wrong.
    pub fn claim_refuted(&self) {
        self.claims_refuted.inc();
    }

    /// Counts a probe of an accused member, or of one that answers late.
    pub fn probe_confirmed(&self) {
        self.confirming_probes.inc();
    }

    /// Counts a SWIM packet that does not decode.
    pub fn swim_refused(&self) {
        self.swim_refused.inc();
    }

    /// Counts a join request by its outcome.
    pub fn join(&self, outcome: &'static str) {
        self.joins.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a renewal of this node's certificate by its outcome.
    pub fn renewal(&self, outcome: &'static str) {
        self.certificate_renewals.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a statement of a peer that does not hold.
    pub fn statement_refused(&self) {
        self.statements_refused.inc();
    }

    /// Counts a ping that was not answered because its sender pings too often.
    pub fn ping_ignored(&self) {
        self.pings_ignored.inc();
    }

    /// Counts a connection that was closed because its certificate counts no more.
    pub fn connection_put_out(&self) {
        self.put_out.inc();
    }

    /// Takes over what the catalog holds. Call before the text is made.
    pub fn holdings(&self, holdings: &Holdings) {
        let (counters, oldest_head) = (holdings.counters.clone(), holdings.oldest_head);
        self.sources.catalog.store(Arc::new(CatalogNumbers { counters, oldest_head }));
    }

    /// Returns all metrics as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
    }

    /// Returns all metrics by name and labels, as they stand in the text: `gossamer_members{state="alive"}`.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        self.render().lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What the catalog said last.
#[derive(Debug, Default)]
struct CatalogNumbers {
    counters: Counters,
    oldest_head: Duration,
}

/// What is not counted here but read at a scrape.
#[derive(Default)]
struct Sources {
    catalog: ArcSwap<CatalogNumbers>,
    read: OnceLock<Box<dyn Fn() -> Readings + Send + Sync>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("catalog", &self.catalog).finish_non_exhaustive()
    }
}

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let catalog = self.catalog.load();
        page.catalog(&catalog.counters)?;
        page.oldest_head(catalog.oldest_head)?;
        let readings = self.read.get().map(|read| read()).unwrap_or_default();
        page.gauges("members", "Members by state", "state", &readings.members)?;
        page.index(&readings)?;
        page.gauges("registrations", "Instances on this node by health", "health", &readings.registrations)?;
        page.gauges("vip_ports", "Ports of virtual addresses by state", "state", &readings.vip_ports)?;
        page.gauges("vips_redirected", "Whether VIPs are redirected here", "family", &readings.redirected)?;
        page.flows(&readings.flows)?;
        page.dns(&readings.dns)?;
        page.dns_traffic(&readings.dns_traffic)?;
        readings.forwarding.as_ref().map_or(Ok(()), |(counts, upstreams)| page.forwarding(counts, upstreams))
    }
}

/// Writes metrics from plain numbers.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn catalog(&mut self, counters: &Counters) -> fmt::Result {
        self.gauge("nodes", "Nodes whose card is held", counters.nodes)?;
        self.gauge("adverts", "Adverts stored", counters.adverts)?;
        self.gauge("adverts_held", "Adverts that wait for a card or an issuer", counters.held)?;
        self.gauge("adverts_quarantined", "Fragments stored but not served", counters.quarantined)?;
        self.gauge("records_outside_claims", "Records their node may not export", counters.outside_claims)?;
        self.gauge("fqdns_outside_suffixes", "FQDNs their node may not export", counters.outside_suffixes)?;
        let denied: Vec<_> =
            counters.addresses_denied.iter().map(|(why, number)| (why.word(), *number)).collect();
        self.counters(
            "card_addresses_denied",
            "Addresses in cards that are never dialled",
            "reason",
            &denied,
        )?;
        self.counter("adverts_accepted", "Adverts of others taken", counters.accepted)?;
        self.counter("advert_duplicates", "Copies of stored adverts", counters.duplicates)?;
        self.counter("adverts_older", "Copies older than the stored advert", counters.older)?;
        self.counter("advert_twins", "Adverts of a node that differ under one version", counters.twins)?;
        let refused: Vec<_> = counters.refused.iter().map(|(why, number)| (word(*why), *number)).collect();
        self.counters("adverts_refused", "Adverts refused", "reason", &refused)?;
        self.gauge("adverts_unread", "Adverts of later versions, stored and passed on", counters.unread)?;
        self.counter("adverts_pushed", "Own adverts pushed", counters.pushes)?;
        self.counter("adverts_spread", "Copies handed to delegates of a tree", counters.spread)?;
        self.counter("adverts_pulled", "Adverts asked for", counters.pulls)?;
        self.counter("adverts_announced", "Ids announced after they were learnt", counters.announced)?;
        self.counter(
            "announcements_cut",
            "Announcements dropped, a peer made too many",
            counters.announcements_cut,
        )?;
        self.counter("adverts_taken_later", "Adverts over a rate, taken later", counters.taken_later)?;
        self.counter("repairs", "Repairs this node began", counters.repairs)?;
        self.counter("buckets_compared", "Bucket hashes of peers compared", counters.buckets_compared)?;
        self.counter("adverts_repaired", "Adverts given to peers that asked", counters.repaired)?;
        self.counter("records_not_published", "Own records that found no room", counters.not_published)
    }

    fn oldest_head(&mut self, age: Duration) -> fmt::Result {
        let help = sentence("Time since the live member was heard of that was silent for longest");
        let gauge = ConstGauge::new(clamped(age.as_secs()));
        let kind = gauge.metric_type();
        gauge.encode(self.0.encode_descriptor("oldest_head_age", &help, Some(&Unit::Seconds), kind)?)
    }

    fn index(&mut self, readings: &Readings) -> fmt::Result {
        let written = [("service", readings.written.services), ("node", readings.written.nodes)];
        self.counters("index_writes", "Views written to the index", "of", &written)?;
        self.counters(
            "member_changes",
            "Changes of a node's state by the new one",
            "to",
            &readings.member_changes,
        )?;
        self.gauges("findings", "Findings about nodes by kind", "kind", &readings.findings)?;
        let left = readings.certificate_seconds;
        self.gauge("certificate_seconds", "Seconds until this node's certificate ends", left)?;
        self.gauge("issuers", "Issuers of the mesh", readings.issuers)?;
        self.gauge("watchers", "Clients that watch", readings.watchers)?;
        self.counter(
            "watch_lines_lost",
            "Lines lost by clients that read too slowly",
            readings.watch_lines_lost,
        )?;
        self.counter(
            "log_lines_lost",
            "Log lines lost because too many waited to be written",
            readings.log_lines_lost,
        )
    }

    fn flows(&mut self, flows: &FlowCounts) -> fmt::Result {
        self.gauge("flows_open", "Flows open", flows.open)?;
        let opened = [("local", flows.opened), ("peer", flows.served)];
        self.counters("flows_opened", "Flows opened by who asked", "client", &opened)?;
        self.counters("flows_refused", "Flows refused or failed", "reason", &flows.refused)?;
        let in_vain = "Instances tried in vain before another one";
        self.counters("flow_retries", in_vain, "reason", &flows.in_vain)?;
        let overtaken = "Flows that went to an instance asked beside a slow one";
        self.counter("flows_overtaken", overtaken, flows.overtaken)?;
        let spilled = "Flows that began with another tier than the first healthy one";
        self.counter("flows_spilled", spilled, flows.spilled)?;
        self.counter("flows_audited", "Flows let in by policy.audit only", flows.audited)?;
        self.counter("flows_revoked", "Living flows ended by a change of rules or imports", flows.revoked)?;
        let bytes = [("in", flows.bytes_in), ("out", flows.bytes_out)];
        self.family(
            "flow_bytes",
            "Bytes of flows",
            Some(&Unit::Bytes),
            "direction",
            &bytes,
            ConstCounter::new,
        )?;
        self.gauge("udp_flows_open", "UDP flows open", flows.udp_open)?;
        let datagrams = [("in", flows.datagrams_in), ("out", flows.datagrams_out)];
        self.counters("flow_datagrams", "Datagrams of UDP flows", "direction", &datagrams)?;
        self.counters("flow_datagrams_dropped", "Datagrams of UDP flows dropped", "reason", &flows.dropped)?;
        self.circuits(&flows.circuits)?;
        self.services(&flows.services)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.single(name, help, &ConstGauge::new(clamped(value)))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.single(name, help, &ConstCounter::new(value))
    }

    fn single<M: EncodeMetric>(&mut self, name: &str, help: &str, metric: &M) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, &sentence(help), None, metric.metric_type())?)
    }

    fn gauges(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) -> fmt::Result {
        self.family(name, help, None, label, values, |value| ConstGauge::new(clamped(value)))
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) -> fmt::Result {
        self.family(name, help, None, label, values, ConstCounter::new)
    }

    fn family<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &str,
        values: &[(&str, u64)],
        metric: impl Fn(u64) -> M,
    ) -> fmt::Result {
        let name = unit.and_then(|unit| name.strip_suffix(&format!("_{}", unit.as_str()))).unwrap_or(name);
        let kind = metric(0).metric_type();
        let mut family = self.0.encode_descriptor(name, &sentence(help), unit, kind)?;
        for (value, number) in values {
            metric(*number).encode(family.encode_family(&[(label, *value)])?)?;
        }
        Ok(())
    }
}

fn sentence(help: &str) -> String {
    format!("{help}.")
}

fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

const fn word(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Header => "header",
        Refusal::Mesh => "mesh",
        Refusal::Signature => "signature",
        Refusal::Content => "content",
        Refusal::Certificate => "certificate",
        Refusal::TooManyNodes => "too_many_nodes",
        Refusal::TooManyHeld => "too_many_held",
        Refusal::Rate => "rate",
        Refusal::TooOld => "too_old",
    }
}

#[cfg(test)]
mod tests {
    use gossamer_dns::Latency;

    use super::*;

    fn readings() -> Readings {
        Readings {
            dns: DnsCounts { nodata: 7, dropped: 1, ..DnsCounts::default() },
            dns_traffic: DnsTraffic {
                types: [4, 0, 5, 0, 0, 0, 1],
                kept: Latency { buckets: [1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3], nanoseconds: 2_000_000_000 },
                ..DnsTraffic::default()
            },
            forwarding: Some((
                ForwardCounts { cached: 5, wrong_id: 6, ..ForwardCounts::default() },
                vec![UpstreamStatus {
                    address: "192.0.2.53:53".parse().expect("address"),
                    state: gossamer_dns::UpstreamState::Looping,
                    answered: 2,
                    failed: 1,
                }],
            )),
            members: vec![("alive", 3), ("suspect", 0)],
            registrations: vec![("passing", 2)],
            vip_ports: vec![("bound", 4), ("stolen", 1)],
            redirected: vec![("v4", 1), ("v6", 0)],
            flows: FlowCounts {
                open: 1,
                opened: 9,
                refused: vec![("denied", 2)],
                in_vain: vec![("slow", 3)],
                overtaken: 4,
                spilled: 5,
                audited: 3,
                revoked: 4,
                bytes_in: 70_000,
                bytes_out: 5,
                services: vec![("orders".to_owned(), of_service())],
                ..FlowCounts::default()
            },
            written: Written { services: 8, nodes: 3 },
            member_changes: vec![("down", 6)],
            findings: vec![("same_name", 2)],
            certificate_seconds: 86_400,
            issuers: 2,
            watchers: 1,
            watch_lines_lost: 11,
            log_lines_lost: 12,
        }
    }

    fn of_service() -> ServiceFlows {
        let mut flows =
            ServiceFlows { open: 2, opened: 6, denied: 3, bytes_out: 44, ..ServiceFlows::default() };
        flows.took(Duration::from_millis(2));
        flows
    }

    /// What the catalog says, with these counters.
    fn holdings(counters: Counters) -> Holdings {
        Holdings { counters, oldest_head: Duration::from_secs(90), ..Holdings::default() }
    }

    /// Returns (name, kind) of every metric that the text describes, and checks its form on the way
    /// (OpenMetrics 1.0, the parts that `promtool` looks at).
    fn described(text: &str) -> BTreeMap<String, String> {
        assert!(text.ends_with("# EOF\n"), "{text}");
        let mut kinds = BTreeMap::new();
        let mut helped = std::collections::BTreeSet::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["#", "HELP", name, ..] => {
                    assert!(line.ends_with('.') && !line.ends_with(".."), "{line}");
                    assert!(helped.insert(name.to_owned()), "{line} is there twice");
                }
                ["#", "TYPE", name, kind] => {
                    assert!(
                        kinds.insert(name.to_owned(), kind.to_owned()).is_none(),
                        "{line} is there twice"
                    );
                }
                ["#", "UNIT", name, unit] => assert!(name.ends_with(unit), "{line}"),
                ["#", "EOF"] => {}
                [sample, value] => {
                    let name = sample.split('{').next().expect("a name");
                    let ends = ["_total", "_bucket", "_count", "_sum"];
                    let family = ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
                    let kind = kinds.get(family).unwrap_or_else(|| panic!("{line} has no type"));
                    assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                    assert_eq!(kind == "histogram", sample.contains("_seconds_"), "{line}");
                    assert!(value.parse::<f64>().is_ok(), "{line}");
                }
                _ => panic!("{line}"),
            }
        }
        assert!(kinds.keys().all(|name| helped.contains(name)));
        kinds
    }

    /// Metrics where everything was counted once.
    fn counted() -> Metrics {
        let metrics = Metrics::default();
        metrics.handshake_refused("tls");
        metrics.handshake_refused("tls");
        metrics.handshake_refused("timeout");
        metrics.bad_frame();
        metrics.dial_failed();
        metrics.data_connection_refused();
        metrics.membership_queue_full();
        metrics.renewed();
        metrics.swim_refused();
        metrics.claim_refuted();
        metrics.probe_confirmed();
        metrics.join("admitted");
        let refused = BTreeMap::from([(Refusal::Signature, 4)]);
        metrics.holdings(&holdings(Counters { held: 2, accepted: 5, refused, ..Counters::default() }));
        metrics.read_from(readings);
        metrics
    }

    #[test]
    fn the_text_is_well_formed_and_every_name_is_ours() {
        for (metrics, at_least) in [(Metrics::default(), 20), (counted(), 30)] {
            let kinds = described(&metrics.render());
            assert!(kinds.len() >= at_least, "{} {kinds:?}", kinds.len());
            assert!(kinds.keys().all(|name| name.starts_with("gossamer_")), "{kinds:?}");
            assert_eq!(kinds["gossamer_flow_bytes"], "counter");
            assert_eq!(kinds["gossamer_members"], "gauge");
        }
    }

    #[test]
    fn what_is_counted_or_read_is_shown() {
        let shown = counted().snapshot();
        for (name, value) in [
            ("gossamer_handshakes_refused_total{reason=\"tls\"}", 2),
            ("gossamer_handshakes_refused_total{reason=\"timeout\"}", 1),
            ("gossamer_bad_frames_total", 1),
            ("gossamer_dial_failures_total", 1),
            ("gossamer_data_connections_refused_total", 1),
            ("gossamer_membership_queue_full_total", 1),
            ("gossamer_identity_renewals_total", 1),
            ("gossamer_swim_packets_refused_total", 1),
            ("gossamer_joins_total{outcome=\"admitted\"}", 1),
            ("gossamer_adverts_held", 2),
            ("gossamer_adverts_accepted_total", 5),
            ("gossamer_adverts_refused_total{reason=\"signature\"}", 4),
            ("gossamer_repairs_total", 0),
            ("gossamer_members{state=\"alive\"}", 3),
            ("gossamer_members{state=\"suspect\"}", 0),
            ("gossamer_registrations{health=\"passing\"}", 2),
            ("gossamer_vip_ports{state=\"stolen\"}", 1),
            ("gossamer_vips_redirected{family=\"v6\"}", 0),
            ("gossamer_oldest_head_age_seconds", 90),
            ("gossamer_index_writes_total{of=\"service\"}", 8),
            ("gossamer_index_writes_total{of=\"node\"}", 3),
            ("gossamer_member_changes_total{to=\"down\"}", 6),
            ("gossamer_findings{kind=\"same_name\"}", 2),
            ("gossamer_watchers", 1),
            ("gossamer_certificate_seconds", 86_400),
            ("gossamer_issuers", 2),
            ("gossamer_watch_lines_lost_total", 11),
            ("gossamer_log_lines_lost_total", 12),
            ("gossamer_flows_open", 1),
            ("gossamer_flows_opened_total{client=\"local\"}", 9),
            ("gossamer_flows_refused_total{reason=\"denied\"}", 2),
            ("gossamer_flow_retries_total{reason=\"slow\"}", 3),
            ("gossamer_flows_overtaken_total", 4),
            ("gossamer_flows_spilled_total", 5),
            ("gossamer_flows_audited_total", 3),
            ("gossamer_flows_revoked_total", 4),
            ("gossamer_flow_bytes_total{direction=\"in\"}", 70_000),
            ("gossamer_service_flows_open{service=\"orders\"}", 2),
            ("gossamer_service_flows_opened_total{service=\"orders\",client=\"local\"}", 6),
            ("gossamer_service_flows_failed_total{service=\"orders\",reason=\"denied\"}", 3),
            ("gossamer_service_flow_bytes_total{service=\"orders\",direction=\"out\"}", 44),
            ("gossamer_service_open_seconds_count{service=\"orders\"}", 1),
            ("gossamer_dns_responses_total{outcome=\"nodata\"}", 7),
            ("gossamer_dns_dropped_total", 1),
            ("gossamer_dns_queries_total{type=\"SRV\"}", 5),
            ("gossamer_dns_response_seconds_bucket{le=\"0.00001\",path=\"kept\"}", 1),
            ("gossamer_dns_response_seconds_bucket{le=\"+Inf\",path=\"kept\"}", 6),
            ("gossamer_dns_response_seconds_count{path=\"kept\"}", 6),
            ("gossamer_dns_forwarded_total{outcome=\"cached\"}", 5),
            ("gossamer_dns_upstream_dropped_total{reason=\"wrong_id\"}", 6),
            ("gossamer_dns_upstream_answers_total{upstream=\"1\"}", 2),
            ("gossamer_dns_upstream_up{upstream=\"1\"}", 0),
        ] {
            assert_eq!(shown.get(name), Some(&value), "{name} in {shown:#?}");
        }
    }

    #[test]
    fn values_are_read_again_at_each_scrape() {
        let metrics = Metrics::default();
        let scrapes = std::sync::atomic::AtomicU64::new(0);
        metrics.read_from(move || {
            let open = scrapes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Readings { flows: FlowCounts { open, ..FlowCounts::default() }, ..Readings::default() }
        });
        assert_eq!(metrics.snapshot()["gossamer_flows_open"], 0);
        assert_eq!(metrics.snapshot()["gossamer_flows_open"], 1);
    }

    #[test]
    fn the_latest_counters_of_the_catalog_are_shown() {
        let metrics = Metrics::default();
        assert_eq!(metrics.snapshot()["gossamer_repairs_total"], 0);
        metrics.holdings(&holdings(Counters { repairs: 1, ..Counters::default() }));
        metrics.holdings(&holdings(Counters { repairs: 3, ..Counters::default() }));
        assert_eq!(metrics.snapshot()["gossamer_repairs_total"], 3);
    }

    #[test]
    fn a_number_beyond_a_gauge_is_shown_as_the_most_it_can_hold() {
        assert_eq!(clamped(u64::MAX), i64::MAX);
        assert_eq!(clamped(7), 7);
    }
}
