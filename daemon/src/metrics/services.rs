//! Flows by service on the page of metrics.
//!
//! Owns: the names of these metrics, the steps of their histogram. Must not know: who counts. Driven by: `metrics`, at a
//! scrape.
//!
//! Their label is a name, which others give: the relay bounds how many there are.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::{Page, clamped, sentence};

/// Upper ends of the histogram's steps, microseconds: from a flow that stays here to the longest wait of a client.
const OPEN_BOUNDS_US: [u32; 12] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000];

/// What was counted for one service. All but the first only grow.
#[derive(Clone, Debug, Default)]
pub struct ServiceFlows {
    /// Flows open at the moment.
    pub open: u64,
    /// Flows of local programs that reached an instance.
    pub opened: u64,
    /// Flows of peers that reached their target.
    pub served: u64,
    /// Flows that reached nobody.
    pub failed: u64,
    /// Flows that were denied.
    pub denied: u64,
    /// Instances tried in vain.
    pub retries: u64,
    /// Bytes from clients to services, of ended flows.
    pub bytes_in: u64,
    /// Bytes from services to clients, of ended flows.
    pub bytes_out: u64,
    /// How many opens took so long; the last is beyond all bounds.
    pub open_times: [u64; OPEN_BOUNDS_US.len() + 1],
    /// All of them together.
    pub open_time: Duration,
}

impl ServiceFlows {
    /// Counts how long an instance took to take a flow.
    pub fn took(&mut self, took: Duration) {
        let step = OPEN_BOUNDS_US.partition_point(|bound| u128::from(*bound) < took.as_micros());
        if let Some(count) = self.open_times.get_mut(step) {
            *count += 1;
        }
        self.open_time = self.open_time.saturating_add(took);
    }
}

impl Page<'_> {
    pub(super) fn services(&mut self, services: &[(String, ServiceFlows)]) -> fmt::Result {
        let help = sentence("Flows open, by service");
        let kind = MetricType::Gauge;
        let mut family = self.0.encode_descriptor("service_flows_open", &help, None, kind)?;
        for (service, flows) in services {
            ConstGauge::new(clamped(flows.open)).encode(family.encode_family(&[("service", service)])?)?;
        }
        self.of_services("service_flows_opened", "Flows opened, by service", services, "client", |flows| {
            vec![("local", flows.opened), ("peer", flows.served)]
        })?;
        let help = "Flows that came to nothing, by service";
        self.of_services("service_flows_failed", help, services, "reason", |flows| {
            vec![("denied", flows.denied), ("failed", flows.failed)]
        })?;
        let help = sentence("Instances tried in vain, by service");
        let kind = MetricType::Counter;
        let mut family = self.0.encode_descriptor("service_flow_retries", &help, None, kind)?;
        for (service, flows) in services {
            ConstCounter::new(flows.retries).encode(family.encode_family(&[("service", service)])?)?;
        }
        let help = "Bytes of ended flows, by service";
        self.of_services("service_flow_bytes", help, services, "direction", |flows| {
            vec![("in", flows.bytes_in), ("out", flows.bytes_out)]
        })?;
        let help = sentence("How long it took until an instance had a flow");
        let kind = MetricType::Histogram;
        let mut family = self.0.encode_descriptor("service_open", &help, Some(&Unit::Seconds), kind)?;
        for (service, flows) in services {
            OpenTimes(flows).encode(family.encode_family(&[("service", service)])?)?;
        }
        Ok(())
    }

    fn of_services(
        &mut self,
        name: &str,
        help: &str,
        services: &[(String, ServiceFlows)],
        label: &str,
        values: impl Fn(&ServiceFlows) -> Vec<(&'static str, u64)>,
    ) -> fmt::Result {
        let unit = name.ends_with("_bytes").then_some(&Unit::Bytes);
        let name = name.strip_suffix("_bytes").unwrap_or(name);
        let mut family = self.0.encode_descriptor(name, &sentence(help), unit, MetricType::Counter)?;
        for (service, flows) in services {
            for (value, number) in values(flows) {
                let labels = [("service", service.as_str()), (label, value)];
                ConstCounter::new(number).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// The times of one service as a histogram.
struct OpenTimes<'a>(&'a ServiceFlows);

impl EncodeMetric for OpenTimes<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = OPEN_BOUNDS_US.iter().map(|bound| f64::from(*bound) / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.0.open_times).collect();
        let count = self.0.open_times.iter().sum();
        encoder.encode_histogram::<NoLabelSet>(self.0.open_time.as_secs_f64(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_into_the_step_that_ends_at_or_above_it() {
        let mut flows = ServiceFlows::default();
        for micros in [1, 500, 501, 6_000_000] {
            flows.took(Duration::from_micros(micros));
        }
        assert_eq!((flows.open_times[0], flows.open_times[1], flows.open_times[12]), (2, 1, 1));
    }
}
