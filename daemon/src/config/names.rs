//! What the settings say about names: mesh zones, suffixes of custom names, aliases, the clusterset zone.
//!
//! Owns: the form of an alias, the making of what DNS answers for. Must not know: DNS messages, what exists.
//! Driven by: `values`, `config`.

use std::fmt;
use std::str::FromStr;

use gossamer_core::vip::VipName;
use gossamer_dns::{Target, Zone, ZoneError, Zones};

use super::Settings;

/// A name of the operator's choice that stands for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    /// The name, as configured.
    pub name: String,
    /// What it stands for.
    pub target: AliasTarget,
}

/// `SERVICE`, `SERVICE.GROUP` or `INSTANCE.SERVICE.GROUP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasTarget(VipName);

impl FromStr for AliasTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let labels: Vec<&str> = text.split('.').collect();
        let wrong = |error: gossamer_wire::NameError| error.to_string();
        Ok(Self(match labels[..] {
            [service] => VipName::Service(service.parse().map_err(wrong)?),
            [service, group] => {
                VipName::Group(service.parse().map_err(wrong)?, group.parse().map_err(wrong)?)
            }
            [instance, service, group] => VipName::Instance(
                service.parse().map_err(wrong)?,
                group.parse().map_err(wrong)?,
                instance.parse().map_err(wrong)?,
            ),
            _ => {
                return Err(format!(
                    "{text:?} names no service; write SERVICE, SERVICE.GROUP or INSTANCE.SERVICE.GROUP"
                ));
            }
        }))
    }
}

impl fmt::Display for AliasTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns what DNS calls the owner of a VIP.
pub fn target_of(name: VipName) -> Target {
    match name {
        VipName::Service(service) => Target::Service { service, group: None, direct: false },
        VipName::Group(service, group) => Target::Service { service, group: Some(group), direct: false },
        VipName::Instance(service, group, instance) => {
            Target::Instance { service, group, instance, direct: false }
        }
    }
}

impl Settings {
    /// Makes what DNS answers for.
    ///
    /// # Errors
    /// The operator's fault, with the key that has it: two of them cannot stand beside each other.
    pub fn zones(&self) -> Result<Zones, (&'static str, ZoneError)> {
        let at = |key: &'static str| move |error: ZoneError| (key, error);
        let (network, prefix) = self.vip_pool.network();
        let mut zones = Zones::from(Zone::new(&self.dns_zone, network, prefix).map_err(at("dns.zone"))?);
        for name in &self.dns_zones {
            zones = zones.with_zone(name).map_err(at("dns.zones"))?;
        }
        if self.clusterset {
            zones = zones.with_clusterset().map_err(at("dns.clusterset"))?;
        }
        for suffix in &self.fqdn_suffixes {
            zones = zones.with_suffix(suffix.clone()).map_err(at("dns.fqdn_suffixes"))?;
        }
        for Alias { name, target } in &self.aliases {
            zones = zones.with_alias(name, target_of(target.0.clone())).map_err(at("alias"))?;
        }
        // What nobody of the mesh holds below a suffix is then asked for upstream (ADR 18).
        Ok(if self.upstreams.is_empty() { zones } else { zones.with_upstream() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_stands_for_one_of_the_three_name_levels() {
        for text in ["orders-db", "orders-db.west", "vm-b.orders-db.west"] {
            assert_eq!(text.parse::<AliasTarget>().map(|target| target.to_string()), Ok(text.to_owned()));
        }
        for (text, why) in
            [("", "empty"), ("a.b.c.d", "SERVICE.GROUP"), ("Orders", "a-z"), ("node", "reserved")]
        {
            let error = text.parse::<AliasTarget>().expect_err(text);
            assert!(error.contains(why), "{error}");
        }
    }
}
