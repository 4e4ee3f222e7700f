//! Answers: what the mesh says to one question.
//!
//! Owns: which records answer which name and type, NXDOMAIN against NODATA, glue. Must not know: messages,
//! sizes, sockets. Driven by: `server`, `fuzz`, `resolve`.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use gossamer_wire::{PortName, Transport};

use crate::order::{self, Family};
use crate::place::{Place, Spot};
use crate::records::{self, LIVE_TTL, NEGATIVE_TTL, VIP_TTL};
use crate::zones::Names;
use crate::{Directory, InstanceEntry, Target, VipAnswer, Zone, Zones};

/// A question of class IN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name as asked; its case comes back in the answer.
    pub name: Name,
    /// The type as asked.
    pub record_type: RecordType,
}

/// The answer to one [`Question`], before it is fitted to a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// NOERROR, NXDOMAIN or REFUSED; of upstream any.
    pub rcode: ResponseCode,
    /// Records of the asked name and type, best first. Empty with NOERROR means NODATA.
    pub answers: Vec<Record>,
    /// The SOA in negative answers (RFC 2308), else empty.
    pub authorities: Vec<Record>,
    /// Addresses of names in `answers`; may be left out freely.
    pub additionals: Vec<Record>,
    /// Lengths of the runs of `answers` that may stand in any order among themselves. `None`: the answer must not be
    /// kept, since records or glue are a choice among more, which the next one makes anew, or since anybody can make up
    /// names that have this one.
    pub ties: Option<Vec<u8>>,
    /// Why nothing was answered, when there is more to say than the code.
    pub extended: Option<ExtendedError>,
    /// Whether others said so and not the mesh: then we are no authority for it.
    pub forwarded: bool,
}

/// An extended DNS error (RFC 8914).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendedError {
    /// The info code.
    pub code: u16,
    /// For people.
    pub text: String,
}

impl ExtendedError {
    /// The info code for a VIP that must not be answered: "Blocked", RFC 8914 4.16.
    pub const BLOCKED: u16 = 15;
    /// The info code while too many questions wait: "Not Ready", RFC 8914 4.15.
    pub const NOT_READY: u16 = 14;
    /// The info code when no upstream server answers: "No Reachable Authority", RFC 8914 4.23.
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
}

impl Answer {
    pub(crate) fn empty(rcode: ResponseCode) -> Self {
        Self {
            rcode,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            ties: Some(Vec::new()),
            extended: None,
            forwarded: false,
        }
    }

    pub(crate) fn negative(rcode: ResponseCode, apex: &Name, zone: &Zone) -> Self {
        Self { authorities: vec![records::soa(apex, zone, NEGATIVE_TTL)], ..Self::empty(rcode) }
    }
}

/// Answers a question from what the directory holds. `rotation` decides the order among equals; 0 leaves that of
/// the directory.
pub fn answer(question: &Question, directory: &dyn Directory, zones: &Zones, rotation: u32) -> Answer {
    let transfer = matches!(question.record_type, RecordType::AXFR | RecordType::IXFR);
    let Some(place) = find(&question.name, directory, zones).filter(|_| !transfer) else {
        return Answer::empty(ResponseCode::Refused);
    };

    let zone = place.names.zone();
    let mesh = Mesh { directory, names: &place.names, rotation };
    let found = match question.record_type {
        // RFC 8482 4.1: one of the sets that exist.
        RecordType::ANY => {
            let sets: Option<Vec<_>> =
                ANY_TYPES.iter().map(|kind| mesh.look_up(&place.apex, &place.spot, *kind)).collect();
            sets.map(|sets| sets.into_iter().find(|set| !set.data.is_empty()).unwrap_or_default())
        }
        kind => mesh.look_up(&place.apex, &place.spot, kind),
    };

    let Some(found) = found else {
        return Answer::negative(ResponseCode::NXDomain, &place.apex, zone);
    };
    if found.data.is_empty() {
        let extended = found.blocked.map(|text| ExtendedError { code: ExtendedError::BLOCKED, text });
        let ties = (!place.unbounded).then(Vec::new);
        return Answer { extended, ties, ..Answer::negative(ResponseCode::NoError, &place.apex, zone) };
    }
    let record = |data| Record::from_rdata(question.name.clone(), found.ttl, data);
    Answer {
        answers: found.data.into_iter().map(record).collect(),
        additionals: found.glue,
        ties: found.ties.filter(|_| !place.unbounded),
        ..Answer::empty(ResponseCode::NoError)
    }
}

/// Lists the targets whose VIP the answer may hold, for [`Directory::prepare`]: one for an address question,
/// those with glue for SRV, none for anything else.
pub fn targets(question: &Question, directory: &dyn Directory, zones: &Zones, rotation: u32) -> Vec<Target> {
    let asks = |kind| question.record_type == kind || question.record_type == RecordType::ANY;
    let Some(place) = find(&question.name, directory, zones) else { return Vec::new() };
    let mesh = Mesh { directory, names: &place.names, rotation };
    match Some(place.spot) {
        Some(Spot::Named(target)) if target.has_vip() && (asks(RecordType::A) || asks(RecordType::AAAA)) => {
            vec![target]
        }
        Some(Spot::Port(base, transport, port)) if base.has_vip() && asks(RecordType::SRV) => {
            let listed = mesh.listed(&base, transport, &port).unwrap_or_default();
            listed.iter().take(MAX_GLUE).map(|(instance, _)| instance.target(false)).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns whether a name is ours to answer, whatever it holds. [`answer`] refuses all others.
pub fn is_ours(name: &Name, directory: &dyn Directory, zones: &Zones) -> bool {
    find(name, directory, zones).is_some()
}

/// Finds what a name stands for; `None` when it is none of ours.
fn find<'a>(name: &Name, directory: &dyn Directory, zones: &'a Zones) -> Option<Place<'a>> {
    zones.locate(name)?.settled(directory, zones)
}

/// What one name holds of one type.
#[derive(Debug, Default)]
struct Found {
    data: Vec<RData>,
    ttl: u32,
    glue: Vec<Record>,
    /// As in [`Answer`].
    ties: Option<Vec<u8>>,
    /// Why `data` is empty although the type belongs to the name.
    blocked: Option<String>,
}

impl Found {
    /// Takes data whose order is fixed.
    fn new(data: impl IntoIterator<Item = RData>, ttl: u32) -> Self {
        let data: Vec<_> = data.into_iter().collect();
        Self { ties: Some(vec![1; data.len()]), data, ttl, ..Self::default() }
    }
}

/// The mesh as one question sees it.
struct Mesh<'a> {
    directory: &'a dyn Directory,
    names: &'a Names<'a>,
    rotation: u32,
}

impl Mesh<'_> {
    /// Returns what the name holds of the type, or `None` when there is no such name.
    fn look_up(&self, apex: &Name, spot: &Spot, kind: RecordType) -> Option<Found> {
        match spot {
            Spot::Absent | Spot::Custom(..) => None,
            Spot::Apex => Some(self.apex(apex, kind)),
            Spot::Branch => Some(Found::default()),
            Spot::Named(target) => self.named(target, kind),
            Spot::Ports(base, transport) => {
                let has_port = |entry: &InstanceEntry| entry.ports.iter().any(|port| port.1 == *transport);
                self.instances(base)?.iter().any(has_port).then(Found::default)
            }
            Spot::Port(base, transport, port) => {
                let held = self.instances(base)?;
                let exists = held.iter().any(|instance| instance.port(port, *transport).is_some());
                exists.then(|| self.services(base, *transport, port, kind))
            }
            Spot::Pointer(vip) => {
                let target = self.directory.pointer(*vip)?;
                let name = (kind == RecordType::PTR).then(|| self.names.name_of(&target)).flatten();
                Some(Found::new(name.map(|name| RData::PTR(PTR(name))), VIP_TTL))
            }
            Spot::Version => Some(match kind {
                RecordType::TXT => Found::new([records::version()], VIP_TTL),
                _ => Found::default(),
            }),
            Spot::Withheld(why) => Some(Found { blocked: Some(why.clone()), ..Found::default() }),
        }
    }

    fn apex(&self, apex: &Name, kind: RecordType) -> Found {
        let zone = self.names.zone();
        let server = IpAddr::V4(zone.server_address());
        let forward = apex == zone.origin();
        match kind {
            RecordType::SOA => Found::new([records::soa(apex, zone, VIP_TTL).data], VIP_TTL),
            RecordType::NS => Found {
                glue: vec![Record::from_rdata(zone.origin().clone(), VIP_TTL, records::address(server))],
                ..Found::new([records::name_server(zone)], VIP_TTL)
            },
            RecordType::A if forward => Found::new([records::address(server)], VIP_TTL),
            _ => Found::default(),
        }
    }

    fn named(&self, target: &Target, kind: RecordType) -> Option<Found> {
        match target {
            Target::Service { service, group, direct } => {
                let Some(entry) = self.directory.service(service, group.as_ref()) else {
                    return self.is_branch(target).then(Found::default);
                };
                Some(match kind {
                    RecordType::TXT => Found::new(records::text(&entry.metadata), LIVE_TTL),
                    _ if *direct || entry.vip == VipAnswer::Direct => self.direct(entry.instances, kind),
                    _ => vip(entry.vip, kind),
                })
            }
            Target::Instance { service, group, instance, direct } => {
                let entry = self.directory.instance(service, group, instance)?;
                Some(match kind {
                    RecordType::TXT => Found::new(records::text(&entry.metadata), LIVE_TTL),
                    _ if *direct || entry.vip == VipAnswer::Direct => self.direct(vec![entry], kind),
                    // The name exists while an advert has it, and has no address to offer.
                    _ if !entry.usable => Found::default(),
                    _ => vip(entry.vip, kind),
                })
            }
            Target::Node(node) => Some(addresses(&self.directory.node(node)?, kind)),
        }
    }

    /// Returns whether a name that is no service is that of a group, beneath which services are.
    fn is_branch(&self, target: &Target) -> bool {
        let Target::Service { service, group: None, .. } = target else { return false };
        service.as_str().parse().is_ok_and(|group| self.directory.has_group(&group))
    }

    fn direct(&self, instances: Vec<InstanceEntry>, kind: RecordType) -> Found {
        let usable = order::usable(instances, self.rotation);
        let found = addresses(usable.iter().flat_map(|instance| &instance.addresses), kind);
        Found { ties: direct_ties(&usable, &found.data), ..found }
    }

    fn instances(&self, base: &Target) -> Option<Vec<InstanceEntry>> {
        match base {
            Target::Service { service, group, .. } => {
                Some(self.directory.service(service, group.as_ref())?.instances)
            }
            Target::Instance { service, group, instance, .. } => {
                Some(vec![self.directory.instance(service, group, instance)?])
            }
            Target::Node(_) => None,
        }
    }

    /// Returns the usable instances that have the port, with its number, in order, the first of too many.
    fn listed(
        &self,
        base: &Target,
        transport: Transport,
        port: &PortName,
    ) -> Option<Vec<(InstanceEntry, u16)>> {
        let with_port = |instance: InstanceEntry| {
            let number = instance.port(port, transport)?;
            Some((instance, number))
        };
        let usable = order::usable(self.instances(base)?, self.rotation);
        Some(usable.into_iter().filter_map(with_port).take(order::MAX_SERVICES).collect())
    }

    fn services(&self, base: &Target, transport: Transport, port: &PortName, kind: RecordType) -> Found {
        if kind != RecordType::SRV {
            return Found::default();
        }
        let direct = !base.has_vip();
        let mut found = Found { ttl: LIVE_TTL, ..Found::default() };
        let listed = self.listed(base, transport, port).unwrap_or_default();
        let mut priorities = Vec::new();
        for (index, (instance, number)) in listed.iter().enumerate() {
            let vip = match &instance.vip {
                _ if direct => None,
                VipAnswer::Direct => None,
                VipAnswer::Address(vip) => Some((*vip, None)),
                VipAnswer::Dual(vip, over_v6) => Some((*vip, Some(*over_v6))),
                VipAnswer::Blocked(why) => {
                    found.blocked.get_or_insert_with(|| why.clone());
                    continue;
                }
            };
            let Some(name) = self.names.name_of(&instance.target(direct)) else { continue };
            if index < MAX_GLUE {
                let glue = |ip| record(&name, VIP_TTL, records::address(ip));
                match vip {
                    Some((vip, over_v6)) => {
                        found.glue.push(glue(vip.into()));
                        found.glue.extend(over_v6.map(|vip| glue(vip.into())));
                    }
                    None => found.glue.extend(own_addresses(&name, &instance.addresses)),
                }
            }
            priorities.push(instance.nearness);
            found.data.push(records::service(instance.nearness, instance.weight, *number, name));
        }
        // Of more than these it depends on the order whose glue comes along.
        found.ties = (listed.len() <= MAX_GLUE).then(|| runs(&priorities)).flatten();
        found
    }
}

/// Returns the runs of equally near instances when each has one of the addresses and none was left out.
fn direct_ties(usable: &[InstanceEntry], data: &[RData]) -> Option<Vec<u8>> {
    let one_each = usable.len() == data.len()
        && usable.iter().zip(data).all(|(instance, data)| {
            let of_instance = |address: &IpAddr| records::address(*address) == *data;
            instance.addresses.iter().any(of_instance)
        });
    let nearness: Vec<_> = usable.iter().map(|instance| instance.nearness).collect();
    (one_each || data.is_empty()).then(|| runs(if one_each { &nearness } else { &[] })).flatten()
}

/// Returns the lengths of the runs of equal values.
fn runs(values: &[u8]) -> Option<Vec<u8>> {
    values.chunk_by(|a, b| a == b).map(|run| u8::try_from(run.len()).ok()).collect()
}

/// Returns a VIP as A or AAAA data; it has no other types.
fn vip(vip: VipAnswer, kind: RecordType) -> Found {
    match (vip, kind) {
        (VipAnswer::Address(vip) | VipAnswer::Dual(vip, _), RecordType::A) => {
            Found::new([records::address(vip.into())], VIP_TTL)
        }
        (VipAnswer::Dual(_, vip), RecordType::AAAA) => Found::new([records::address(vip.into())], VIP_TTL),
        (VipAnswer::Address(_) | VipAnswer::Dual(..) | VipAnswer::Direct, _) => Found::default(),
        (VipAnswer::Blocked(why), _) => Found { blocked: Some(why), ..Found::default() },
    }
}

/// Returns own addresses of the family that the type asks for.
fn addresses<'a>(all: impl IntoIterator<Item = &'a IpAddr>, kind: RecordType) -> Found {
    let family = match kind {
        RecordType::A => Family::V4,
        RecordType::AAAA => Family::V6,
        _ => return Found::default(),
    };
    Found::new(order::addresses(all, family).into_iter().map(records::address), LIVE_TTL)
}

fn own_addresses(name: &Name, all: &[IpAddr]) -> Vec<Record> {
    let both = [Family::V4, Family::V6].into_iter().flat_map(|family| order::addresses(all, family));
    both.map(|address| record(name, LIVE_TTL, records::address(address))).collect()
}

fn record(name: &Name, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name.clone(), ttl, data)
}

/// Targets of one SRV answer that get their addresses along. About as many as fit a datagram of 1232 bytes;
/// it also bounds the VIP listeners that one question can open.
const MAX_GLUE: usize = 16;

/// What ANY is answered with, most wanted first.
const ANY_TYPES: [RecordType; 6] =
    [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::PTR, RecordType::SOA, RecordType::TXT];

#[cfg(test)]
mod customs;
#[cfg(test)]
mod tests;
