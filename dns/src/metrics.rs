//! Counters of the DNS part.
//!
//! Owns: what is counted. Must not know: metric names, exporters. Driven by: `server`, once per message it
//! answers, and `udp`, once per batch.

mod traffic;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;

pub(crate) use traffic::Tally;
use traffic::Traffic;
pub use traffic::{DnsTraffic, LATENCY_BOUNDS, Latency, TYPES};

/// How a question ended. One word per class of answer, finer than the response code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Records of the asked type.
    NoError,
    /// The name exists, the type does not.
    NoData,
    /// The name does not exist.
    NxDomain,
    /// Not ours to answer.
    Refused,
    /// The mesh did not get ready in time, or too many questions wait for it.
    ServFail,
    /// Not one question.
    FormErr,
    /// An opcode or EDNS version that is not spoken here.
    NotImp,
}

impl Outcome {
    /// Classifies a response by its code and whether it answers anything.
    pub(crate) fn of(rcode: ResponseCode, answered: bool) -> Self {
        match rcode {
            ResponseCode::NoError if answered => Self::NoError,
            ResponseCode::NoError => Self::NoData,
            ResponseCode::NXDomain => Self::NxDomain,
            ResponseCode::Refused => Self::Refused,
            ResponseCode::FormErr => Self::FormErr,
            ResponseCode::NotImp | ResponseCode::BADVERS => Self::NotImp,
            _ => Self::ServFail,
        }
    }
}

/// Counters since the start of the process; shared by every task of the server.
#[derive(Debug, Default)]
pub struct DnsMetrics {
    noerror: AtomicU64,
    nodata: AtomicU64,
    nxdomain: AtomicU64,
    refused: AtomicU64,
    servfail: AtomicU64,
    formerr: AtomicU64,
    notimp: AtomicU64,
    truncated: AtomicU64,
    dropped: AtomicU64,
    refused_source: AtomicU64,
    traffic: Traffic,
}

/// One reading of [`DnsMetrics`]. Fields are read one after the other, not at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsCounts {
    /// Responses with records of the asked type.
    pub noerror: u64,
    /// Negative responses for names that exist.
    pub nodata: u64,
    /// Negative responses for names that do not.
    pub nxdomain: u64,
    /// Responses to questions outside of our zones.
    pub refused: u64,
    /// Responses that say we failed.
    pub servfail: u64,
    /// Responses to what is not one question. What is no message at all counts over UDP only.
    pub formerr: u64,
    /// Responses to opcodes and EDNS versions not spoken here.
    pub notimp: u64,
    /// Responses with TC set; also counted by their code.
    pub truncated: u64,
    /// Responses that could not be handed to their socket; also counted by their code.
    pub dropped: u64,
    /// Questions of sources that may not ask.
    pub refused_source: u64,
}

impl DnsMetrics {
    /// Reads every counter.
    pub fn counts(&self) -> DnsCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DnsCounts {
            noerror: read(&self.noerror),
            nodata: read(&self.nodata),
            nxdomain: read(&self.nxdomain),
            refused: read(&self.refused),
            servfail: read(&self.servfail),
            formerr: read(&self.formerr),
            notimp: read(&self.notimp),
            truncated: read(&self.truncated),
            dropped: read(&self.dropped),
            refused_source: read(&self.refused_source),
        }
    }

    /// Reads types, ways and latencies.
    pub fn traffic(&self) -> DnsTraffic {
        self.traffic.read()
    }

    /// Counts a response of the handler: how it ended, the type asked for, how long it took.
    pub(crate) fn count(&self, outcome: Outcome, truncated: bool, kind: Option<u16>, took: Duration) {
        add(self.of(outcome));
        if truncated {
            add(&self.truncated);
        }
        self.traffic.count_handled(kind, took);
    }

    /// Takes over what one batch of kept answers counted. They shared the time it took.
    pub(crate) fn add(&self, tally: &mut Tally, took: Duration) {
        for (outcome, count) in tally.outcomes() {
            self.of(outcome).fetch_add(count, Ordering::Relaxed);
        }
        self.traffic.add(tally, took);
        *tally = Tally::default();
    }

    /// Counts the refusal of what is no message.
    pub(crate) fn count_malformed(&self) {
        add(&self.formerr);
    }

    fn of(&self, outcome: Outcome) -> &AtomicU64 {
        match outcome {
            Outcome::NoError => &self.noerror,
            Outcome::NoData => &self.nodata,
            Outcome::NxDomain => &self.nxdomain,
            Outcome::Refused => &self.refused,
            Outcome::ServFail => &self.servfail,
            Outcome::FormErr => &self.formerr,
            Outcome::NotImp => &self.notimp,
        }
    }

    pub(crate) fn count_dropped(&self) {
        add(&self.dropped);
    }

    pub(crate) fn count_refused_source(&self) {
        add(&self.refused_source);
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_noerror_is_nodata() {
        assert_eq!(Outcome::of(ResponseCode::NoError, true), Outcome::NoError);
        assert_eq!(Outcome::of(ResponseCode::NoError, false), Outcome::NoData);
        assert_eq!(Outcome::of(ResponseCode::BADVERS, false), Outcome::NotImp);
        assert_eq!(Outcome::of(ResponseCode::YXDomain, false), Outcome::ServFail);
    }

    #[test]
    fn each_outcome_has_its_own_counter() {
        let metrics = DnsMetrics::default();
        metrics.count(Outcome::NoError, true, None, Duration::ZERO);
        metrics.count(Outcome::NoData, false, None, Duration::ZERO);
        metrics.count(Outcome::NxDomain, false, None, Duration::ZERO);
        metrics.count(Outcome::Refused, false, None, Duration::ZERO);
        metrics.count(Outcome::ServFail, false, None, Duration::ZERO);
        metrics.count(Outcome::FormErr, false, None, Duration::ZERO);
        metrics.count(Outcome::NotImp, false, None, Duration::ZERO);
        metrics.count_dropped();
        metrics.count_refused_source();
        let once = DnsCounts {
            noerror: 1,
            nodata: 1,
            nxdomain: 1,
            refused: 1,
            servfail: 1,
            formerr: 1,
            notimp: 1,
            truncated: 1,
            dropped: 1,
            refused_source: 1,
        };
        assert_eq!(metrics.counts(), once);
    }
}
