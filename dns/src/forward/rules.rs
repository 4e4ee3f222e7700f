//! Rules: which questions may leave, and what of an answer may come in.
//!
//! Owns: the border between the mesh's names and those of others, rebind protection, bailiwick. Must not know: sockets,
//! messages on the wire, caches. Driven by: `forward`, before a question leaves and after an answer was read.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::place::Spot;
use crate::records::LIVE_TTL;
use crate::{Answer, Question, Zones};

/// What may pass between this node and its upstream servers.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    zones: Arc<Zones>,
    /// The suffixes whose names may have addresses of private networks; `None`: all names may.
    rebind_allow: Option<Vec<Name>>,
}

/// What is kept of an upstream answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Content {
    pub(super) rcode: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

/// Why an answer is not passed on although it answers the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It speaks for a name or an address of the mesh.
    Mesh,
    /// It leads a public name to an address of a private network.
    Private,
}

impl Rules {
    pub(super) fn new(zones: Arc<Zones>, rebind_allow: Option<Vec<Name>>) -> Self {
        Self { zones, rebind_allow }
    }

    /// Returns whether a question may be sent to others: never one about our zones, and no transfer or other
    /// meta type (RFC 6895 3.1) but ANY.
    pub(super) fn may_leave(&self, question: &Question) -> bool {
        let meta = match question.record_type {
            RecordType::ANY => false,
            kind => matches!(u16::from(kind), 0 | 41 | 128..=255),
        };
        !meta && !self.is_ours(&question.name)
    }

    /// Returns the longest suffix that a name is or lies below: there services have names, and hold them from one moment
    /// to the next.
    pub(super) fn suffix_over(&self, name: &Name) -> Option<&Name> {
        self.zones.suffixes().find(|suffix| suffix.zone_of(name))
    }

    pub(super) fn suffixes(&self) -> impl Iterator<Item = &Name> {
        self.zones.suffixes()
    }

    /// Says, as without upstream servers, that a name below a suffix does not exist.
    pub(super) fn absent(&self, name: &Name, suffix: &Name) -> Answer {
        let rcode = if name == suffix { ResponseCode::NoError } else { ResponseCode::NXDomain };
        Answer::negative(rcode, suffix, self.zones.primary())
    }

    /// Takes from an upstream answer what belongs to the question.
    ///
    /// # Errors
    /// The answer section says something upstream may not say. In the other sections such records are left out.
    pub(super) fn sift(
        &self,
        question: &Question,
        message: Message,
        dnssec_ok: bool,
    ) -> Result<Content, Foreign> {
        let chain = chain(&question.name, &message.answers);
        let mut answers = message.answers;
        answers.retain(|record| belongs(record, &chain));
        let guards_private = self.guards_private(&question.name);
        for record in &answers {
            if self.is_foreign(question, record) {
                return Err(Foreign::Mesh);
            }
            if guards_private && addresses(record).any(is_private) {
                return Err(Foreign::Private);
            }
        }

        let end = chain.last().unwrap_or(&question.name);
        let mut authorities = message.authorities;
        authorities.retain(|record| {
            let negative = record.record_type() == RecordType::SOA && record.name.zone_of(end);
            (negative || dnssec_ok && is_proof(record)) && !self.is_foreign(question, record)
        });
        let pointed: Vec<Name> = answers.iter().flat_map(targets).collect();
        let mut additionals = message.additionals;
        additionals.retain(|record| {
            let glue = addresses(record).next().is_some() && pointed.contains(&record.name);
            let lies = self.is_foreign(question, record);
            glue && !lies && !(guards_private && addresses(record).any(is_private))
        });
        let longest = if self.suffix_over(&question.name).is_some() { LIVE_TTL } else { MAX_TTL };
        for record in answers.iter_mut().chain(&mut authorities).chain(&mut additionals) {
            record.ttl = record.ttl.min(longest);
            // Who asks for signatures would find it altered; the time to live bounds an absence as well (RFC 2308 5).
            if let RData::SOA(data) = &mut record.data
                && !dnssec_ok
            {
                data.minimum = data.minimum.min(longest);
            }
        }
        Ok(Content { rcode: message.metadata.response_code, answers, authorities, additionals })
    }

    /// The one place that says which names are ours. What is asked for here and lies below a suffix is held by
    /// nobody of the mesh: such names are others' (ADR 18). Of other names there only the mesh knows who holds them: see
    /// [`Self::strays`].
    fn is_ours(&self, name: &Name) -> bool {
        self.zones.locate(name).is_some_and(|place| !matches!(place.spot, Spot::Custom(..)))
    }

    /// Whether a record of the answer to a question says what upstream may not say.
    pub(super) fn is_foreign(&self, question: &Question, record: &Record) -> bool {
        let pool = |address| matches!(address, IpAddr::V4(address) if self.zones.primary().contains(address));
        self.is_ours(&record.name)
            || self.strays(question, &record.name)
            || alias(record).is_some_and(|target| self.strays(question, &target))
            || targets(record).iter().any(|target| self.is_ours(target))
            || addresses(record).any(pool)
    }

    /// Whether a name lies below a suffix that the question is not about. The mesh may hold it.
    fn strays(&self, question: &Question, name: &Name) -> bool {
        self.suffix_over(name).is_some_and(|suffix| !suffix.zone_of(&question.name))
    }

    fn guards_private(&self, name: &Name) -> bool {
        let allowed = |allow: &Vec<Name>| allow.iter().any(|suffix| suffix.zone_of(name));
        self.rebind_allow.as_ref().is_some_and(|allow| !allowed(allow))
    }
}

/// Returns the names an answer to `asked` may speak of: itself and where its CNAMEs lead.
fn chain(asked: &Name, answers: &[Record]) -> Vec<Name> {
    let mut names = vec![asked.clone()];
    while let Some(last) = names.last()
        && names.len() <= MAX_CHAIN
    {
        let next =
            answers.iter().filter(|record| record.name == *last).find_map(|record| match &record.data {
                RData::CNAME(target) => Some(target.0.clone()),
                _ => None,
            });
        match next {
            Some(next) if !names.contains(&next) => names.push(next),
            _ => break,
        }
    }
    names
}

/// Whether a record of the answer section is about a name of the chain. A DNAME and its signature stand above it.
fn belongs(record: &Record, chain: &[Name]) -> bool {
    let above = [DNAME, RRSIG].contains(&u16::from(record.record_type()));
    chain.iter().any(|name| record.name == *name || above && record.name.zone_of(name))
}

fn is_proof(record: &Record) -> bool {
    [RRSIG, NSEC, NSEC3].contains(&u16::from(record.record_type()))
}

/// Returns where a record leads all questions about its name, or about what is below it.
fn alias(record: &Record) -> Option<Name> {
    let leads = record.record_type() == RecordType::CNAME || u16::from(record.record_type()) == DNAME;
    targets(record).pop().filter(|_| leads)
}

/// Returns the names a record sends its reader to.
fn targets(record: &Record) -> Vec<Name> {
    let target = match &record.data {
        RData::CNAME(name) => &name.0,
        RData::ANAME(name) => &name.0,
        RData::NS(name) => &name.0,
        RData::PTR(name) => &name.0,
        RData::MX(data) => &data.exchange,
        RData::SRV(data) => &data.target,
        RData::NAPTR(data) => &data.replacement,
        RData::SVCB(data) => &data.target_name,
        RData::HTTPS(data) => &data.0.target_name,
        RData::Unknown { code, rdata } if u16::from(*code) == DNAME => {
            let name = Name::read(&mut BinDecoder::new(&rdata.anything));
            return name.into_iter().collect();
        }
        _ => return Vec::new(),
    };
    vec![target.clone()]
}

/// Returns the addresses a record gives, those inside of IPv6 ones as IPv4.
fn addresses(record: &Record) -> impl Iterator<Item = IpAddr> + '_ {
    let (one, hints): (Option<IpAddr>, Option<&SVCB>) = match &record.data {
        RData::A(address) => (Some(IpAddr::V4(address.0)), None),
        RData::AAAA(address) => (Some(IpAddr::V6(address.0)), None),
        RData::SVCB(data) => (None, Some(data)),
        RData::HTTPS(data) => (None, Some(&data.0)),
        _ => (None, None),
    };
    let hinted = hints.into_iter().flat_map(|data| &data.svc_params).flat_map(|(_, value)| match value {
        SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|address| IpAddr::V4(address.0)).collect(),
        SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|address| IpAddr::V6(address.0)).collect(),
        _ => Vec::new(),
    });
    one.into_iter().chain(hinted).map(|address| address.to_canonical())
}

/// Whether an address leads into this machine or a network that is not public.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let shared = address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64; // RFC 6598
            let this = address.octets()[0] == 0; // RFC 1122 3.2.1.3
            this || shared || address.is_private() || address.is_loopback() || address.is_link_local()
        }
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_loopback()
                || address.is_unique_local()
                || address.is_unicast_link_local()
        }
    }
}

/// Most names a chain of CNAMEs leads over; what follows is left out. Resolvers stop between 8 and 16.
const MAX_CHAIN: usize = 16;

/// Longest time a client may keep what upstream said, seconds: an hour, so that a lie ends some day. Below a suffix it is
/// that of what changes with the mesh: a service may hold the name in the next moment.
const MAX_TTL: u32 = 3600;

// hickory-proto reads these as unknown types.
const DNAME: u16 = 39;
const RRSIG: u16 = 46;
const NSEC: u16 = 47;
const NSEC3: u16 = 50;

#[cfg(test)]
mod tests;
