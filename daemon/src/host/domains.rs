//! The domains for which a host must ask this daemon.
//!
//! Owns: the one list that every resolver's settings, the check and the documents are made of. Must not know: resolvers.
//! Driven by: `cli::host`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use gossamer_core::vip::Pool;
use gossamer_dns::ZoneError;

use crate::config::Settings;

/// What resolvers are told; lower case, without final dots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domains {
    /// The mesh zones, the clusterset zone, the suffixes of custom names and the aliases, then the reverse zones of the
    /// pool; each once.
    pub asked: Vec<String>,
    /// Aliases that are not among them.
    pub left_out: Vec<String>,
}

impl Domains {
    /// Returns why aliases are left out and what brings them in, if there are such.
    pub fn note(&self) -> Option<String> {
        (!self.left_out.is_empty()).then(|| {
            format!(
                "the resolver is not told of [alias] {}: it would send all names below as well, which the daemon refuses \
                 without dns.upstream; set that, or dns.fqdn_suffixes to a zone that is all yours",
                self.left_out.join(", ")
            )
        })
    }
}

/// Returns the domains of a configuration.
///
/// # Errors
/// Two of the configured names cannot stand beside each other.
pub fn dns_domains(settings: &Settings) -> Result<Domains, ZoneError> {
    let zones = settings.zones().map_err(|(_, error)| error)?;
    let (mut asked, left_out) = (zones.answered(), zones.unrouted());
    asked.extend(reverse_zones(settings.vip_pool));
    let mut seen: BTreeSet<_> = left_out.iter().cloned().collect();
    asked.retain(|domain| seen.insert(domain.clone()));
    Ok(Domains { asked, left_out })
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
    use crate::config::{Config, Flags, Host, Slot};

    fn zones(pool: &str) -> Vec<String> {
        reverse_zones(pool.parse().expect("a pool"))
    }

    fn of(text: &str) -> Domains {
        let file = tempfile::NamedTempFile::new().expect("scratch");
        std::fs::write(file.path(), text).expect("writes");
        let flags = Flags { config: Some(file.path().to_owned()), ..Flags::default() };
        let home = [("HOME".to_owned(), "/home/u".to_owned())];
        let host = Host { variables: home.into(), ..Host::default() };
        let config = Config::load(&flags, &host).expect("loads");
        dns_domains(&config.settings(Slot::FIRST)).expect("they stand beside each other")
    }

    #[test]
    fn an_alias_is_left_out_and_named_where_names_below_it_would_be_refused() {
        let alias = "[alias]\n\"pg.corp.example\" = \"db\"\n\"x.test\" = \"db\"\n";
        let alone = of(&format!("[dns]\nfqdn_suffixes = [\"corp.example\"]\n{alias}"));
        let all = ["mesh.internal", "corp.example", "pg.corp.example", "240.127.in-addr.arpa"];
        assert_eq!(
            (alone.asked.as_slice(), alone.left_out.as_slice()),
            (&all.map(str::to_owned)[..], &["x.test".to_owned()][..])
        );
        let note = alone.note().expect("a note");
        assert!(note.contains("x.test") && note.contains("dns.upstream") && !note.contains("corp"), "{note}");
        let asking = of(&format!("[dns]\nupstream = [\"192.0.2.53\"]\n{alias}"));
        assert!(asking.asked.contains(&"x.test".to_owned()));
        assert_eq!(asking.note(), None);
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
