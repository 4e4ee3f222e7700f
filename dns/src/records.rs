//! Record data: how entries and the apex read as resource records.
//!
//! Owns: data of SOA, NS, TXT, SRV, addresses; times to live. Must not know: which question they answer.
//! Driven by: `answer`.

use std::net::IpAddr;

use hickory_proto::rr::rdata::{NS, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};

use crate::Zone;

/// Seconds a VIP may be cached. It is a pure function of the name, so only a port that becomes blocked or a
/// raised `try` changes it.
pub(crate) const VIP_TTL: u32 = 30;

/// Seconds that direct addresses, SRV sets and metadata may be cached: they follow failures.
pub(crate) const LIVE_TTL: u32 = 2;

/// Seconds a negative answer may be cached (RFC 2308 5): a service may be exported at any moment.
pub(crate) const NEGATIVE_TTL: u32 = 1;

/// Returns A or AAAA data.
pub(crate) fn address(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(address.into()),
        IpAddr::V6(address) => RData::AAAA(address.into()),
    }
}

/// Returns the SOA of `apex`. Nothing is ever transferred, so the serial never changes.
pub(crate) fn soa(apex: &Name, zone: &Zone, ttl: u32) -> Record {
    let contact = zone.origin().prepend_label("hostmaster").unwrap_or_else(|_| zone.origin().clone());
    let data = SOA::new(zone.origin().clone(), contact, SERIAL, REFRESH, RETRY, EXPIRE, NEGATIVE_TTL);
    Record::from_rdata(apex.clone(), ttl, RData::SOA(data))
}

/// Returns the NS data of an apex. The mesh apex is its own name server: every other name beneath it could
/// be a service.
pub(crate) fn name_server(zone: &Zone) -> RData {
    RData::NS(NS(zone.origin().clone()))
}

/// Returns `key=value` strings as one TXT record (RFC 6763 6.3), each cut to 255 bytes; nothing when empty.
pub(crate) fn text(metadata: &[(String, String)]) -> Option<RData> {
    let strings: Vec<_> = metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let cut = |string: &'_ String| string.as_bytes().iter().copied().take(255).collect::<Vec<_>>();
    let strings: Vec<_> = strings.iter().map(cut).collect();
    (!strings.is_empty()).then(|| RData::TXT(TXT::from_bytes(strings.iter().map(Vec::as_slice).collect())))
}

/// Returns the version of the names of the multi-cluster services API (KEP-1645, "DNS").
pub(crate) fn version() -> RData {
    RData::TXT(TXT::new(vec!["1.0.0".to_owned()]))
}

/// Returns SRV data (RFC 2782).
pub(crate) fn service(nearness: u8, weight: u16, port: u16, target: Name) -> RData {
    RData::SRV(SRV::new(u16::from(nearness), weight, port, target))
}

const SERIAL: u32 = 1;

/// What a secondary would use (RFC 1035 3.3.13), seconds; there is none.
const REFRESH: i32 = 3600;
const RETRY: i32 = 600;
const EXPIRE: i32 = 86_400;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn metadata_is_one_record_of_key_value_strings() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let Some(RData::TXT(data)) = text(&[pair("version", "2"), pair("path", "/x=y")]) else {
            panic!("there is metadata");
        };
        let strings: Vec<_> = data.txt_data.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
        assert_eq!(strings, ["version=2", "path=/x=y"]);
        assert_eq!(text(&[]), None);
    }

    #[test]
    fn a_string_that_no_txt_record_can_hold_is_cut() {
        let Some(RData::TXT(data)) = text(&[("key".to_owned(), "v".repeat(300))]) else {
            panic!("there is metadata");
        };
        assert_eq!(data.txt_data.iter().map(|bytes| bytes.len()).collect::<Vec<_>>(), [255]);
    }

    #[test]
    fn the_soa_says_one_second_for_negative_answers() {
        let zone = Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16).expect("valid");
        let record = soa(zone.origin(), &zone, NEGATIVE_TTL);
        let RData::SOA(data) = &record.data else { panic!("an SOA") };
        assert_eq!((record.ttl, data.minimum), (1, 1));
        assert_eq!(data.mname, *zone.origin());
        assert_eq!(data.rname.to_ascii(), "hostmaster.mesh.internal.");
    }
}
