//! Resolving without a wire: what the command line shows.
//!
//! Owns: how people may write a name and a type, and how records read. Must not know: who asks.
//! Driven by: `gossamer resolve NAME [TYPE]` in the daemon.

use std::net::Ipv4Addr;
use std::str::FromStr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use thiserror::Error;

use crate::{Answer, Directory, ExtendedError, Outcome, Question, Zones, answer};

/// What DNS would answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The name that was looked up, fully qualified.
    pub name: String,
    /// The response code.
    pub rcode: ResponseCode,
    /// The same, with NODATA told apart.
    pub outcome: Outcome,
    /// The answer, best first.
    pub answers: Vec<ResolvedRecord>,
    /// What would come along.
    pub additionals: Vec<ResolvedRecord>,
    /// Why a name that exists has no answer.
    pub extended: Option<ExtendedError>,
    /// Whether upstream was asked.
    pub forwarded: bool,
}

/// One record as people read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRecord {
    /// Owner name.
    pub name: String,
    /// Seconds it may be cached.
    pub ttl: u32,
    /// The type's name, for example `SRV`.
    pub record_type: String,
    /// The data as in a zone file.
    pub data: String,
}

/// Why a name or type was not looked up. The caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// Not a domain name.
    #[error("{name:?} is not a domain name: {why}")]
    Name {
        /// As written.
        name: String,
        /// The broken rule.
        why: String,
    },
    /// Not a record type.
    #[error("{0:?} is not a record type; use for example A, AAAA, SRV, TXT or PTR")]
    Type(String),
}

/// Returns the question that people mean by a name and a type.
///
/// A name in one of our zones, below a suffix, of an alias or in `in-addr.arpa` is taken as it is, with or without the
/// last dot; a name with a last dot likewise; an IPv4 address means its PTR; anything else is taken to be below the
/// primary zone. Without a type it is PTR for addresses and reverse names, SRV for names that start with `_`, else A.
///
/// # Errors
/// See [`ResolveError`].
pub fn parse_question(
    name: &str,
    record_type: Option<&str>,
    zones: &Zones,
) -> Result<Question, ResolveError> {
    let full = match name.parse::<Ipv4Addr>() {
        Ok(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        Err(_) => name.to_owned(),
    };
    let malformed = |why: String| ResolveError::Name { name: name.to_owned(), why };
    let mut parsed = Name::from_ascii(&full).map_err(|error| malformed(error.to_string()))?;
    if !parsed.is_fqdn() {
        let mut absolute = parsed.clone();
        absolute.set_fqdn(true);
        if zones.locate(&absolute).is_some() || full.to_ascii_lowercase().ends_with(".in-addr.arpa") {
            parsed = absolute;
        } else {
            let origin = zones.primary().origin();
            parsed = parsed.append_domain(origin).map_err(|error| malformed(error.to_string()))?;
        }
    }

    let record_type = match record_type {
        Some(text) => RecordType::from_str(&text.to_ascii_uppercase())
            .map_err(|_| ResolveError::Type(text.to_owned()))?,
        None if full.trim_end_matches('.').ends_with(".in-addr.arpa") => RecordType::PTR,
        None if full.starts_with('_') => RecordType::SRV,
        None => RecordType::A,
    };
    Ok(Question { name: parsed, record_type })
}

/// Resolves a name as [`parse_question`] reads it. Opens nothing: call [`Directory::prepare`] for
/// [`crate::targets`] before, to see what a client would see.
///
/// # Errors
/// See [`ResolveError`].
pub fn resolve(
    name: &str,
    record_type: Option<&str>,
    directory: &dyn Directory,
    zones: &Zones,
    rotation: u32,
) -> Result<Resolution, ResolveError> {
    let question = parse_question(name, record_type, zones)?;
    let answer = answer(&question, directory, zones, rotation);
    Ok(Resolution::new(&question, answer))
}

impl Resolution {
    /// Reads an answer, of the mesh or of upstream.
    pub fn new(question: &Question, answer: Answer) -> Self {
        let read = |record: &crate::Record| ResolvedRecord {
            name: record.name.to_ascii(),
            ttl: record.ttl,
            record_type: record.record_type().to_string(),
            data: record.data.to_string(),
        };
        Self {
            name: question.name.to_ascii(),
            rcode: answer.rcode,
            outcome: Outcome::of(answer.rcode, !answer.answers.is_empty()),
            answers: answer.answers.iter().map(read).collect(),
            additionals: answer.additionals.iter().map(read).collect(),
            extended: answer.extended,
            forwarded: answer.forwarded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{mesh, zone};

    fn resolved(name: &str, record_type: Option<&str>) -> Resolution {
        resolve(name, record_type, &mesh(), &zone(), 0).expect(name)
    }

    #[test]
    fn a_short_name_is_taken_below_the_zone() {
        let short = resolved("orders", None);
        assert_eq!(short.name, "orders.mesh.internal.");
        assert_eq!(short.outcome, Outcome::NoError);
        assert_eq!(short.answers.len(), 1);
        for same in ["orders.mesh.internal", "orders.mesh.internal.", "Orders.Mesh.Internal"] {
            assert_eq!(resolved(same, Some("a")).answers.first().map(|record| &record.data), {
                short.answers.first().map(|record| &record.data)
            });
        }
    }

    #[test]
    fn a_name_with_its_last_dot_is_taken_as_it_is() {
        assert_eq!(resolved("example.com.", None).outcome, Outcome::Refused);
        assert_eq!(resolved("example.com", None).outcome, Outcome::NxDomain);
    }

    #[test]
    fn an_address_means_its_name() {
        let vip = resolved("orders", None).answers.remove(0).data;
        let back = resolved(&vip, None);
        assert_eq!(back.answers.first().map(|record| record.data.as_str()), Some("orders.mesh.internal."));
        assert_eq!(back.answers.first().map(|record| record.record_type.as_str()), Some("PTR"));
    }

    #[test]
    fn a_port_name_means_srv_with_what_comes_along() {
        let resolution = resolved("_pg._tcp.orders", None);
        assert_eq!(resolution.answers.len(), 2);
        assert_eq!(resolution.additionals.len(), 2);
        let first = resolution.answers.first().expect("two");
        assert_eq!((first.record_type.as_str(), first.ttl), ("SRV", 2));
        assert_eq!(first.data, "0 100 5432 db-1.orders.west.mesh.internal.");
    }

    #[test]
    fn a_blocked_vip_says_why() {
        let resolution = resolved("stolen", None);
        assert_eq!(resolution.outcome, Outcome::NoData);
        assert!(resolution.extended.expect("says why").text.contains("nginx"));
    }

    #[test]
    fn what_is_no_name_or_type_is_said_so() {
        let error = |name, kind| resolve(name, kind, &mesh(), &zone(), 0).expect_err("refused").to_string();
        assert!(error("a..b", None).contains("domain name"));
        assert!(error("orders", Some("nonsense")).contains("AAAA"));
    }
}
