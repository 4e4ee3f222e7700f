//! Fuzz body: the whole way from a request's bytes to a response's, without sockets.
//!
//! Owns: what must hold for any bytes. Must not know: where the bytes come from.
//! Driven by: the fuzz crate, and the tests below over a seeded corpus.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use gossamer_wire::{GroupName, InstanceName, NodeName, ServiceName, Transport};
use hickory_proto::ProtoError;
use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncoder};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;

use crate::compiled::MAX_DATAGRAM;
use crate::kept::Kept;
use crate::request::{judge, unreadable};
use crate::response::{Reply, UDP_PAYLOAD_BYTES, Writer};
use crate::udp::{Datagram, parse};
use crate::{
    Answer, CustomTarget, Directory, InstanceEntry, Outcome, Revisions, ServiceEntry, Target, VipAnswer,
    Zone, Zones, answer,
};

/// Answers `bytes` over both transports, from a mesh where nearly every name exists.
///
/// # Panics
/// When a response is not a well-formed answer to `bytes` that the client can take: a bug.
pub fn fuzz_query(bytes: &[u8]) {
    let Some(zone) = zones() else { return };
    let rotation = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let plenty = plenty();
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        for writer in [Writer::HickoryServer, Writer::Own] {
            if let Some(response) = respond(bytes, protocol, writer, &*plenty, &zone, rotation) {
                check(bytes, &response, protocol);
            }
        }
    }
    assert_eq!(
        unreadable(bytes).is_some(),
        bytes.len() >= 12 && bytes.get(2).is_some_and(|flags| flags & 0x80 == 0),
        "a whole header that is no response can be answered"
    );
}

/// Every kind of name there is.
fn zones() -> Option<Zones> {
    let zone = Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16).ok()?;
    let zones = Zones::from(zone).with_zone("mesh.example").ok()?.with_suffix("test".parse().ok()?).ok()?;
    let target = Target::Service { service: "aliased".parse().ok()?, group: None, direct: false };
    zones.with_alias("pg.corp.example", target).ok()?.with_clusterset().ok()
}

/// Answers `bytes` over UDP twice: by the handler, and from kept answers. Returns whether there was a kept one.
///
/// # Panics
/// When the two do not say the same: a bug.
pub fn fuzz_kept(bytes: &[u8]) -> bool {
    let Some(zones) = zones().map(Arc::new) else { return false };
    let directory = plenty();
    let kept = Kept::new(Arc::<Plenty>::clone(&directory), Arc::clone(&zones), false);
    let handled = |protocol, rotation| respond(bytes, protocol, Writer::Own, &*directory, &zones, rotation);
    let query = match parse(bytes) {
        Datagram::Query(query) => query,
        Datagram::Unusual => return false,
        Datagram::Nothing => {
            assert_eq!(handled(Protocol::Udp, 0), None, "the short way drops what the handler answers");
            return false;
        }
    };
    let Ok(request) = request(bytes, Protocol::Udp) else {
        panic!("the short way reads what hickory does not")
    };
    let Ok(question) = judge(&request) else { panic!("the short way reads what the handler refuses") };
    kept.answer(&question, kept.recorder(), u32::from(query.kind));

    let mut out = [0; MAX_DATAGRAM];
    let Some((length, outcome)) = kept.respond(&query, 0, &mut out) else { return false };
    let short = out.get(..length).unwrap_or_default().to_vec();
    check(bytes, &Response { bytes: short.clone(), outcome, truncated: false }, Protocol::Udp);
    let long = handled(Protocol::Tcp, 0).and_then(|found| Message::from_vec(&found.bytes).ok());
    let (Ok(short), Some(long), Some(fitted)) = (Message::from_vec(&short), long, handled(Protocol::Udp, 0))
    else {
        panic!("one of them is no message")
    };
    assert_eq!(outcome, fitted.outcome);
    assert_eq!(short.metadata, long.metadata, "another header");
    assert_eq!(short.edns, long.edns, "another OPT");
    assert_eq!(short.authorities, long.authorities);
    let ties = answer(&question, &*directory, &zones, 0).ties.unwrap_or_default();
    assert_ties(&short.answers, &long.answers, &ties);
    assert_glue(&short, &long, &fitted);
    true
}

/// Only equals may change places.
fn assert_ties(short: &[Record], long: &[Record], ties: &[u8]) {
    assert_eq!(short.len(), long.len(), "answers are missing");
    let (mut short, mut long) = (short, long);
    for length in ties.iter().map(|length| usize::from(*length)) {
        let (Some((ours, short_rest)), Some((theirs, long_rest))) =
            (short.split_at_checked(length), long.split_at_checked(length))
        else {
            panic!("fewer answers than ties")
        };
        assert!(ours.iter().all(|record| theirs.contains(record)), "an order that the handler never gives");
        (short, long) = (short_rest, long_rest);
    }
    assert!(short.is_empty(), "more answers than ties");
}

/// Glue may be left out.
fn assert_glue(short: &Message, long: &Message, fitted: &Response) {
    let is_part = |part: &[Record], all: &[Record]| part.iter().all(|record| all.contains(record));
    assert!(is_part(&short.additionals, &long.additionals), "glue that the handler does not know");
    let Ok(fitted) = Message::from_vec(&fitted.bytes) else { panic!("not a message") };
    let missing = fitted.additionals.len().abs_diff(short.additionals.len());
    assert!(missing <= 1, "more or less glue than the handler sends");
}

fn request(bytes: &[u8], protocol: Protocol) -> Result<Request, ProtoError> {
    Request::from_bytes(bytes.to_vec(), SocketAddr::from(([127, 0, 0, 1], 53)), protocol)
}

/// A response as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) bytes: Vec<u8>,
    pub(crate) outcome: Outcome,
    pub(crate) truncated: bool,
}

/// Answers one message as the server does, but for the preparation of VIPs. `None`: hickory-server drops the
/// message or calls it a format error, without asking us.
pub(crate) fn respond(
    bytes: &[u8],
    protocol: Protocol,
    writer: Writer,
    directory: &dyn Directory,
    zone: &Zones,
    rotation: u32,
) -> Option<Response> {
    let request = request(bytes, protocol).ok()?;
    if request.metadata.message_type == MessageType::Response {
        return None;
    }
    let answer = match judge(&request) {
        Ok(question) => answer(&question, directory, zone, rotation),
        Err(rcode) => Answer::empty(rcode),
    };
    match encode(&Reply::new(&request, answer, writer), protocol, writer) {
        Ok(response) => Some(response),
        Err(error) => panic!("a response that does not encode: {error}"),
    }
}

/// Encodes as `writer` does; hickory-server with the limit it sets: the payload of our OPT.
pub(crate) fn encode(reply: &Reply<'_>, protocol: Protocol, writer: Writer) -> Result<Response, ProtoError> {
    let sent = |bytes| Response { bytes, outcome: reply.outcome(), truncated: reply.truncated() };
    if writer == Writer::Own {
        return reply.to_bytes().map(sent);
    }
    let message = reply.message();
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(match protocol {
        Protocol::Udp => message.edns().map_or(512, |edns| edns.max_payload()),
        _ => u16::MAX,
    });
    message.destructive_emit(&mut encoder)?;
    Ok(sent(bytes))
}

fn check(bytes: &[u8], response: &Response, protocol: Protocol) {
    let mut decoder = BinDecoder::new(&response.bytes);
    let reply = Message::read(&mut decoder);
    assert!(decoder.is_empty(), "bytes after the response");
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => panic!("a response that does not decode: {error}"),
    };

    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert_eq!(bytes.get(..2), response.bytes.get(..2), "another id");
    assert_eq!(reply.metadata.truncation, response.truncated, "truncated by hickory-server");
    let Ok(asked) = Message::from_vec(bytes) else { return };
    if let (Some(query), Some(again)) = (asked.queries.first(), reply.queries.first()) {
        assert!(query.name.eq_case(&again.name), "the question came back changed");
        assert_eq!(query.query_type, again.query_type);
    }
    assert_eq!(asked.edns.is_some(), reply.edns.is_some(), "EDNS is answered with EDNS");
    if protocol == Protocol::Udp {
        let offered = asked.edns.map_or(512, |edns| edns.max_payload());
        let limit = offered.clamp(512, UDP_PAYLOAD_BYTES);
        assert!(response.bytes.len() <= usize::from(limit), "{} bytes, limit {limit}", response.bytes.len());
    }
}

/// A mesh where every service has as many instances as its name has bytes, squared.
#[derive(Default)]
struct Plenty(Revisions);

/// Its counters take long to make, and nothing here changes.
fn plenty() -> Arc<Plenty> {
    static PLENTY: OnceLock<Arc<Plenty>> = OnceLock::new();
    Arc::clone(PLENTY.get_or_init(Arc::default))
}

#[async_trait::async_trait]
impl Directory for Plenty {
    async fn prepare(&self, _: &Target) {}

    fn service(&self, service: &ServiceName, group: Option<&GroupName>) -> Option<ServiceEntry> {
        if service.as_str().starts_with("no") {
            return None;
        }
        let count = service.as_str().len().pow(2).min(1000);
        let group = group.cloned().or_else(|| "west".parse().ok())?;
        let named = |number: usize| self.instance(service, &group, &format!("i{number}").parse().ok()?);
        Some(ServiceEntry {
            vip: VipAnswer::Address(Ipv4Addr::new(127, 240, 1, 1)),
            instances: (0..count).filter_map(named).collect(),
            metadata: vec![("k".to_owned(), "v".repeat(count)); count.min(32)],
        })
    }

    fn instance(
        &self,
        service: &ServiceName,
        group: &GroupName,
        instance: &InstanceName,
    ) -> Option<InstanceEntry> {
        let number = instance.as_str().trim_start_matches('i').parse::<u16>().unwrap_or(0);
        let [high, low] = number.to_be_bytes();
        let blocked = || VipAnswer::Blocked("held by another program ".repeat(20));
        Some(InstanceEntry {
            service: service.clone(),
            group: group.clone(),
            instance: instance.clone(),
            usable: number % 7 != 6,
            vip: match number {
                5 => blocked(),
                8 => VipAnswer::Direct,
                9 => VipAnswer::Dual([127, 240, high, low].into(), [0xfd67, 0, 0, 0, 0, 0, 0, number].into()),
                _ => VipAnswer::Address([127, 240, high, low].into()),
            },
            addresses: vec![
                IpAddr::from([10, 0, high, low]),
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, number]),
            ],
            ports: vec![(80.into(), Transport::Tcp, 80), (53.into(), Transport::Udp, 53)],
            nearness: u8::try_from(number % 4).unwrap_or(0),
            weight: number,
            metadata: Vec::new(),
        })
    }

    fn node(&self, _: &NodeName) -> Option<Vec<IpAddr>> {
        Some(vec![IpAddr::from([10, 0, 0, 1])])
    }

    fn has_group(&self, _: &GroupName) -> bool {
        true
    }

    fn custom(&self, name: &str) -> Option<CustomTarget> {
        Some(match name.split('.').next()? {
            "none" => return None,
            "branch" => CustomTarget::Branch,
            "wild" => CustomTarget::Wildcard("orders".parse().ok()?),
            "disputed" => CustomTarget::Disputed("claimed by two ".repeat(20)),
            label => CustomTarget::Service(label.parse().ok()?),
        })
    }

    fn pointer(&self, vip: Ipv4Addr) -> Option<Target> {
        let service = format!("s{}", vip.octets()[3]).parse().ok()?;
        Some(Target::Service { service, group: None, direct: false })
    }

    fn revisions(&self) -> Option<&Revisions> {
        Some(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::{Edns, OpCode, Query};
    use hickory_proto::rr::{DNSClass, Name, RecordType};
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const NAMES: [&str; 29] = [
        "_80._tcp.orde.mesh.internal.",
        "_80._tcp.Abc.direct.mesh.internal.",
        "ab.direct.mesh.internal.",
        "i5.orders.WEST.mesh.internal.",
        "orders.mesh.example.",
        "_80._tcp.orders-of-all-the-world.mesh.example.",
        "test.",
        "a-service-with-a-longer-name.test.",
        "none.test.",
        "branch.test.",
        "disputed.test.",
        "_80._tcp.orders-of-all-the-world.b.test.",
        "_80._tcp.pg.corp.example.",
        "_80._tcp.orders.shop.svc.clusterset.local.",
        "i5.east.orders.shop.svc.clusterset.local.",
        "mesh.internal.",
        "a.mesh.internal.",
        "a-service-with-a-longer-name.mesh.internal.",
        "oRdErS.WeSt.mesh.internal.",
        "i5.orders.west.mesh.internal.",
        "i5.orders.west.direct.mesh.internal.",
        "orders-and-more.direct.mesh.internal.",
        "_80._tcp.orders-of-all-the-world.mesh.internal.",
        "_53._udp.orders.west.direct.mesh.internal.",
        "_80._tcp.i5.orders.west.mesh.internal.",
        "_tcp.orders.mesh.internal.",
        "n1.node.mesh.internal.",
        "4.3.240.127.in-addr.arpa.",
        "example.com.",
    ];

    const TYPES: [RecordType; 10] = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::SRV,
        RecordType::TXT,
        RecordType::SOA,
        RecordType::NS,
        RecordType::PTR,
        RecordType::ANY,
        RecordType::AXFR,
        RecordType::OPT,
    ];

    fn query(random: &mut StdRng) -> Vec<u8> {
        let name = Name::from_str(NAMES[random.random_range(0..NAMES.len())]).expect("valid");
        let mut query = Query::query(name, TYPES[random.random_range(0..TYPES.len())]);
        if random.random_ratio(1, 10) {
            query.set_query_class(DNSClass::from(random.random::<u16>()));
        }
        let opcode = if random.random_ratio(1, 10) { random.random_range(0..16) } else { 0 };
        let mut message = Message::new(random.random(), MessageType::Query, OpCode::from_u8(opcode));
        message.add_query(query);
        if random.random_bool(0.5) {
            let mut edns = Edns::new();
            edns.set_max_payload(random.random()).set_version(u8::from(random.random_ratio(1, 10)));
            edns.set_dnssec_ok(random.random());
            message.set_edns(edns);
        }
        message.to_vec().expect("small")
    }

    #[test]
    fn well_formed_questions_get_well_formed_answers() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..2_000 {
            fuzz_query(&query(&mut random));
        }
    }

    #[test]
    fn damaged_questions_do_no_harm() {
        let mut random = StdRng::seed_from_u64(2);
        for _ in 0..20_000 {
            fuzz_query(&damaged(&mut random, 6));
        }
    }

    fn damaged(random: &mut StdRng, most: usize) -> Vec<u8> {
        let mut bytes = query(random);
        for _ in 0..random.random_range(1..most) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..4) {
                0 => bytes[at] = random.random(),
                1 => bytes[at] ^= 1 << random.random_range(0..8),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.random()),
            }
        }
        bytes
    }

    #[test]
    fn both_ways_say_the_same_to_every_question() {
        let mut random = StdRng::seed_from_u64(5);
        let kept = (0..6_000).filter(|_| fuzz_kept(&query(&mut random))).count();
        assert!(kept > 1_500, "only {kept} of 6,000 were kept");
    }

    #[test]
    fn both_ways_say_the_same_to_damaged_questions() {
        let mut random = StdRng::seed_from_u64(6);
        let kept = (0..20_000).filter(|_| fuzz_kept(&damaged(&mut random, 3))).count();
        assert!(kept > 500, "only {kept} of 20,000 were kept");
    }

    #[test]
    fn questions_cut_at_every_byte_do_no_harm() {
        let mut random = StdRng::seed_from_u64(3);
        let bytes = query(&mut random);
        for end in 0..=bytes.len() {
            fuzz_query(&bytes[..end]);
        }
    }

    #[test]
    fn noise_does_no_harm() {
        let mut random = StdRng::seed_from_u64(4);
        for length in 0..600 {
            let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
            fuzz_query(&bytes);
        }
    }

    #[test]
    fn a_header_that_claims_65535_questions_does_no_harm() {
        let mut bytes = [0; 12];
        bytes[4..6].copy_from_slice(&[0xff, 0xff]);
        fuzz_query(&bytes);
    }

    #[test]
    fn a_question_that_points_into_the_header_does_no_harm() {
        for label in [&[][..], b"\x06orders", b"\x03www"] {
            for to in 0..12 {
                let header = [4, b'm', b'e', b's', b'h', 0, 0, 0, 0, 0, 0, 0];
                let mut bytes = [&header[..], label, &[0xC0, to, 0, 1, 0, 1]].concat();
                bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
                fuzz_query(&bytes);
            }
        }
    }
}
