//! Names and answers: turns DNS questions about the mesh zone into DNS answers.
//!
//! Data in: bound sockets, and what a [`Directory`] knows about services, instances and nodes. Data out:
//! responses; hickory-server receives, reads, writes and sends the messages. The crate does not know gossip, adverts,
//! access rules or how a VIP listener is opened. Names of others are refused at once, or asked of the upstream servers
//! that the daemon names (`forward`).
//!
//! A question passes these modules in this order; all but the last are pure:
//!
//! ```text
//! request (message -> question) -> place (name -> what it may stand for) -> answer (+ order, records)
//!         -> response (records -> those that fit);        server: hickory's handler, deadlines
//! ```
//!
//! In front of it over UDP, for what was asked before and has not changed since:
//!
//! ```text
//! udp (datagrams, sockets) -> kept (name and type -> compiled answer);   recorder, revision: what it was read from
//! ```
//!
//! Start reading at [`answer()`]; [`resolve()`] is the same without a wire.

mod answer;
mod compiled;
mod customs;
mod directory;
mod forward;
mod fuzz;
mod kept;
mod metrics;
mod order;
mod place;
mod recorder;
mod records;
mod request;
mod resolve;
mod response;
mod revision;
#[cfg(test)]
mod scripted;
mod server;
#[cfg(test)]
mod table;
mod udp;
mod zone;
mod zones;

pub use answer::{Answer, ExtendedError, Question, answer, is_ours, targets};
pub use customs::CustomNames;
pub use directory::{CustomTarget, Directory, InstanceEntry, ServiceEntry, Target, VipAnswer};
pub use forward::{
    Asked, ForwardCounters, ForwardCounts, ForwardSettings, Forwarder, MAX_UPSTREAMS, UpstreamChange,
    UpstreamError, UpstreamState, UpstreamStatus, check_upstream, fuzz_upstream,
};
pub use fuzz::{fuzz_kept, fuzz_query};
pub use hickory_proto::op::ResponseCode;
pub use hickory_proto::rr::{Name, RData, Record, RecordType};
pub use metrics::{DnsCounts, DnsMetrics, DnsTraffic, LATENCY_BOUNDS, Latency, Outcome, TYPES};
pub use resolve::{Resolution, ResolveError, ResolvedRecord, parse_question, resolve};
pub use response::UDP_PAYLOAD_BYTES;
pub use revision::{Basis, Revisions, Subject};
pub use server::{DnsServer, Service, SourceRule};
pub use zone::{Zone, ZoneError};
pub use zones::Zones;
