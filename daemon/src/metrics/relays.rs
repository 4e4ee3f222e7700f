//! What a relay does for others on the page of metrics: circuits of members, joiners on their way to issuers.
//!
//! Owns: the names of these metrics. Must not know: who counts. Driven by: `metrics`; joiners are counted as they come.

use std::fmt;

use prometheus_client::encoding::EncodeMetric as _;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::{Metrics, Outcome, Page, sentence};

/// What a relay counts.
#[derive(Clone, Debug, Default)]
pub struct CircuitCounts {
    /// Circuits open at the moment.
    pub open: u64,
    /// Circuits that were opened.
    pub opened: u64,
    /// Bytes of ended circuits, both ways.
    pub bytes: u64,
    /// Circuits that were refused, by reason.
    pub refused: Vec<(&'static str, u64)>,
}

/// Circuits of this node on which the peer said nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct CircuitsStalled(Counter);

impl CircuitsStalled {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Circuits of this node through relays that led nothing";
        registry.register("circuits_stalled", help, self.0.clone());
    }
}

/// Joiners that a relay leads to issuers.
#[derive(Clone, Debug, Default)]
pub(super) struct JoinersLed {
    outcomes: Family<Outcome, Counter>,
    bytes: Counter,
}

impl JoinersLed {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Joiners that this relay leads to issuers by outcome";
        registry.register("joiners_led", help, self.outcomes.clone());
        let help = "Bytes of joiners that were led and have gone, both ways";
        registry.register_with_unit("joiner", help, Unit::Bytes, self.bytes.clone());
    }
}

impl Metrics {
    /// Counts what became of a joiner that this relay leads to an issuer.
    pub fn joiner_led(&self, outcome: &'static str) {
        self.joiners_led.outcomes.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a circuit of this node through which the peer did not answer or went silent.
    pub fn circuit_stalled(&self) {
        self.circuits_stalled.0.inc();
    }

    /// Counts the bytes of a joiner that was led.
    pub fn joiner_bytes(&self, bytes: u64) {
        self.joiners_led.bytes.inc_by(bytes);
    }
}

impl Page<'_> {
    pub(super) fn circuits(&mut self, circuits: &CircuitCounts) -> fmt::Result {
        self.gauge("circuits_open", "Circuits that this relay splices", circuits.open)?;
        self.counter("circuits_opened", "Circuits that this relay has spliced", circuits.opened)?;
        self.counters("circuits_refused", "Circuits refused", "reason", &circuits.refused)?;
        let help = "Bytes of ended circuits, both ways";
        let total = ConstCounter::new(circuits.bytes);
        let kind = total.metric_type();
        total.encode(self.0.encode_descriptor("circuit", &sentence(help), Some(&Unit::Bytes), kind)?)
    }
}
