//! The domains for which a host must ask this daemon.
//!
//! Owns: the one list that every resolver's settings, the check and the documents are made of. Must not know: resolvers.
//! Driven by: `cli::host`.

use std::net::Ipv4Addr;

use gossamer_core::vip::Pool;
use gossamer_dns::ZoneError;

use crate::config::Settings;

/// Returns the mesh zones, the suffixes of custom names and the aliases, then the reverse zones of the pool; lower case,
/// without final dots, each once.
///
/// # Errors
/// Two of the configured names cannot stand beside each other.
pub fn dns_domains(settings: &Settings) -> Result<Vec<String>, ZoneError> {
    let mut domains = settings.zones().map_err(|(_, error)| error)?.routed();
    domains.extend(reverse_zones(settings.vip_pool));
    let mut seen = std::collections::BTreeSet::new();
    domains.retain(|domain| seen.insert(domain.clone()));
    Ok(domains)
}

/// Returns the zones below `in-addr.arpa` that together are the pool: one to 128 of them.
fn reverse_zones(pool: Pool) -> Vec<String> {
    let (base, prefix) = pool.network();
    // Reverse zones end at octets (RFC 1035, section 3.5): the next longer octet is listed one by one.
    let octets = usize::from(prefix.div_ceil(8));
    let step = 1_u32 << (32 - 8 * octets);
    let zone = |index: u32| {
        let address = Ipv4Addr::from_bits(base.to_bits() + index * step);
        let mut labels: Vec<_> = address.octets().iter().take(octets).map(u8::to_string).collect();
        labels.reverse();
        format!("{}.in-addr.arpa", labels.join("."))
    };
    (0..pool.size() / step).map(zone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(pool: &str) -> Vec<String> {
        reverse_zones(pool.parse().expect("a pool"))
    }

    #[test]
    fn a_pool_that_ends_at_an_octet_is_one_zone() {
        assert_eq!(zones("127.240.0.0/16"), ["240.127.in-addr.arpa"]);
        assert_eq!(zones("10.0.0.0/8"), ["10.in-addr.arpa"]);
    }

    #[test]
    fn other_pools_are_as_many_zones_as_cover_them() {
        let zones_12 = zones("240.80.0.0/12");
        assert_eq!(zones_12.len(), 16);
        assert_eq!(
            (zones_12[0].as_str(), zones_12[15].as_str()),
            ("80.240.in-addr.arpa", "95.240.in-addr.arpa")
        );
        assert_eq!(
            zones("10.1.4.0/22"),
            ["4.1.10.in-addr.arpa", "5.1.10.in-addr.arpa", "6.1.10.in-addr.arpa", "7.1.10.in-addr.arpa"]
        );
        assert_eq!(zones("10.0.0.0/9").len(), 128);
    }
}
