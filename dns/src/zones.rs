//! What this node answers for: mesh zones, suffixes of custom names, aliases, the clusterset zone.
//!
//! Owns: which of these may stand beside each other, and how targets are named in answers. Must not know: what
//! exists. Driven by: configuration at start; `place` and `answer` at each question.

use std::collections::BTreeMap;

use gossamer_wire::{FqdnSuffix, Label};
use hickory_proto::rr::Name;

use crate::zone::{is_below, reserved};
use crate::{Target, Zone, ZoneError};

/// Everything this node answers for. Made once; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zones {
    /// At least one; the first is the primary one, which PTR records and custom names point into.
    zones: Vec<Zone>,
    /// Longest first, so that the first that holds a name is the one whose apex it has.
    suffixes: Vec<(FqdnSuffix, Name)>,
    aliases: BTreeMap<String, (Target, Name)>,
    clusterset: Option<Name>,
    forwards: bool,
}

impl From<Zone> for Zones {
    fn from(primary: Zone) -> Self {
        Self {
            zones: vec![primary],
            suffixes: Vec::new(),
            aliases: BTreeMap::new(),
            clusterset: None,
            forwards: false,
        }
    }
}

impl Zones {
    /// Adds a mesh zone with the names of the primary one.
    ///
    /// # Errors
    /// Those of [`Zone::new`], and a zone that holds another one or lies in it.
    pub fn with_zone(mut self, name: &str) -> Result<Self, ZoneError> {
        let zone = self.primary().renamed(name)?;
        self.refuse_overlap(name, &zone)?;
        self.zones.push(zone);
        Ok(self)
    }

    /// Adds a suffix below which custom names of services are answered.
    ///
    /// # Errors
    /// It belongs to others, or lies in a zone that is answered anyway.
    pub fn with_suffix(mut self, suffix: FqdnSuffix) -> Result<Self, ZoneError> {
        let text = suffix.as_str();
        let refuse = |why: String| Err(ZoneError::Suffix { name: text.to_owned(), why });
        if let Some(why) = reserved(text) {
            return refuse(why.to_owned());
        }
        if let Some(zone) = self.zone_over(text) {
            return refuse(format!("it lies in the zone {zone}, whose names are answered anyway"));
        }
        if self.suffixes.iter().all(|(other, _)| *other != suffix) {
            let name = host(text).map_err(|why| ZoneError::Suffix { name: text.to_owned(), why })?;
            self.suffixes.push((suffix, name));
            self.suffixes.sort_by_key(|(_, name)| std::cmp::Reverse(name.num_labels()));
        }
        Ok(self)
    }

    /// Makes a name stand for a target. The name may end in a dot and is lowered.
    ///
    /// # Errors
    /// It is no host name, belongs to others, or lies in a zone that is answered anyway.
    pub fn with_alias(mut self, name: &str, target: Target) -> Result<Self, ZoneError> {
        let refuse = |why: String| ZoneError::Alias { name: name.to_owned(), why };
        let text = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let parsed = host(&text).map_err(refuse)?;
        if let Some(why) = reserved(&text) {
            return Err(refuse(why.to_owned()));
        }
        if let Some(zone) = self.zone_over(&text) {
            return Err(refuse(format!("it lies in the zone {zone}, whose names are services already")));
        }
        self.aliases.insert(text, (target, parsed));
        Ok(self)
    }

    /// Answers the names of the Kubernetes multi-cluster services API as well (KEP-1645; ADR 19).
    ///
    /// # Errors
    /// A mesh zone holds that zone, or lies in it.
    pub fn with_clusterset(mut self) -> Result<Self, ZoneError> {
        self.refuse_overlap(CLUSTERSET, &self.primary().renamed(CLUSTERSET)?)?;
        self.clusterset = Some(host(CLUSTERSET).map_err(|why| malformed(CLUSTERSET, why))?);
        Ok(self)
    }

    /// Notes that names of others are forwarded: what lies below a suffix and nobody holds is then a name of others,
    /// which [`crate::answer()`] refuses, instead of one that does not exist (ADR 18).
    #[must_use]
    pub fn with_upstream(mut self) -> Self {
        self.forwards = true;
        self
    }

    /// Returns the zone that PTR records, custom names and aliases point into.
    pub fn primary(&self) -> &Zone {
        self.zones.first().expect("the first is never taken away")
    }

    /// Returns all mesh zones, the primary one first.
    pub fn mesh_zones(&self) -> impl Iterator<Item = &Zone> {
        self.zones.iter()
    }

    /// Returns all that is answered here, lower case and without last dots: mesh zones, the clusterset zone, suffixes,
    /// aliases. Reverse zones are not among them.
    pub fn answered(&self) -> Vec<String> {
        let zones = self.zones.iter().map(Zone::origin).chain(&self.clusterset);
        let zones = zones.map(|name| name.to_ascii().trim_end_matches('.').to_owned());
        let suffixes = self.suffixes.iter().map(|(suffix, _)| suffix.to_string());
        zones.chain(suffixes).chain(self.aliases.keys().cloned()).collect()
    }

    /// Returns the aliases that resolvers of the host must not send here. Resolvers send all names below an alias too, and
    /// these are refused when nobody else is asked; below a suffix they are sent here anyway.
    pub fn unrouted(&self) -> Vec<String> {
        let is_covered = |alias: &str| self.suffix_over(&alias.split('.').collect::<Vec<_>>()).is_some();
        let aliases = self.aliases.keys().filter(|alias| !self.forwards && !is_covered(alias));
        aliases.cloned().collect()
    }

    /// Returns whether a custom name, or names of a wildcard, can be answered here.
    pub fn admits(&self, fqdn: &gossamer_wire::Fqdn) -> bool {
        self.suffixes.iter().any(|(suffix, _)| {
            let is_wider = fqdn.is_wildcard() && is_below(suffix.as_str(), fqdn.base());
            suffix.holds(fqdn.as_str()) || is_wider
        })
    }

    pub(crate) fn forwards(&self) -> bool {
        self.forwards
    }

    pub(crate) fn clusterset(&self) -> Option<&Name> {
        self.clusterset.as_ref()
    }

    /// Returns the longest suffix that is a name or holds it, given the labels of the name.
    pub(crate) fn suffix_over(&self, labels: &[&str]) -> Option<&Name> {
        let holds = |name: &&Name| ends_with(labels, name).is_some();
        self.suffixes.iter().map(|(_, name)| name).find(holds)
    }

    /// Returns the suffixes, the longest first.
    pub(crate) fn suffixes(&self) -> impl Iterator<Item = &Name> {
        self.suffixes.iter().map(|(_, name)| name)
    }

    pub(crate) fn alias(&self, name: &str) -> Option<&(Target, Name)> {
        self.aliases.get(name)
    }

    pub(crate) fn has_aliases(&self) -> bool {
        !self.aliases.is_empty()
    }

    /// Returns the zone, the clusterset one too, that a text is or lies in.
    fn zone_over(&self, text: &str) -> Option<String> {
        let all = self.zones.iter().map(Zone::origin).chain(&self.clusterset);
        let mut all = all.map(|name| name.to_ascii().trim_end_matches('.').to_owned());
        all.find(|zone| text == zone || is_below(text, zone))
    }

    fn refuse_overlap(&self, name: &str, zone: &Zone) -> Result<(), ZoneError> {
        let all = self.zones.iter().map(Zone::origin).chain(&self.clusterset);
        let origin = zone.origin();
        let meets = |other: &&Name| other.zone_of(origin) || origin.zone_of(other);
        match all.into_iter().find(meets) {
            Some(other) => Err(ZoneError::Overlap {
                name: name.to_owned(),
                other: other.to_ascii().trim_end_matches('.').to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// Returns the labels before those of `apex`, if the name ends with them.
pub(crate) fn ends_with<'a, 'b>(labels: &'a [&'b str], apex: &Name) -> Option<&'a [&'b str]> {
    let depth = labels.len().checked_sub(apex.iter().count())?;
    let (below, suffix) = labels.split_at_checked(depth)?;
    suffix.iter().map(|label| label.as_bytes()).eq(apex.iter()).then_some(below)
}

/// How the targets of one answer are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names<'a> {
    /// As in this zone.
    Zone(&'a Zone),
    /// Instances of one service as the multi-cluster services API names them, the rest as in this zone.
    Clusterset {
        zone: &'a Zone,
        apex: &'a Name,
        /// Service and namespace as asked.
        service: (Label, Label),
    },
}

impl<'a> Names<'a> {
    /// Returns the zone whose server answers.
    pub(crate) fn zone(&self) -> &'a Zone {
        let (Self::Zone(zone) | Self::Clusterset { zone, .. }) = self;
        zone
    }

    /// Returns the full name of a target, or `None` when it is longer than 255 bytes.
    pub(crate) fn name_of(&self, target: &Target) -> Option<Name> {
        match (self, target) {
            (
                Self::Clusterset { apex, service: (service, namespace), .. },
                Target::Instance { group, instance, .. },
            ) => {
                let labels = [instance.as_str(), group.as_str(), service.as_str(), namespace.as_str(), "svc"];
                Name::from_labels(labels.into_iter().map(str::as_bytes).chain(apex.iter())).ok()
            }
            _ => self.zone().name_of(target),
        }
    }
}

/// The zone of the multi-cluster services API (KEP-1645).
const CLUSTERSET: &str = "clusterset.local";

fn malformed(name: &str, why: String) -> ZoneError {
    ZoneError::Malformed { name: name.to_owned(), why }
}

/// Reads a lower-case host name without its last dot.
fn host(text: &str) -> Result<Name, String> {
    for label in text.split('.') {
        label.parse::<Label>().map_err(|error| error.to_string())?;
    }
    Name::from_ascii(format!("{text}.")).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn zones() -> Zones {
        Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16).expect("valid").into()
    }

    fn suffix(text: &str) -> FqdnSuffix {
        text.parse().expect(text)
    }

    fn service() -> Target {
        Target::Service { service: "orders".parse().expect("valid"), group: None, direct: false }
    }

    #[test]
    fn zones_that_hold_one_another_are_refused() {
        for name in ["mesh.internal", "MESH.internal.", "a.mesh.internal"] {
            let error = zones().with_zone(name).expect_err(name).to_string();
            assert!(error.contains("mesh.internal") && error.contains("lies in"), "{error}");
        }
        let wide = zones().with_zone("example").expect("apart");
        assert!(wide.with_zone("corp.example").is_err());
        let set = zones().with_clusterset().expect("apart");
        assert!(set.with_zone("x.clusterset.local").is_err());
        assert!(zones().with_zone("clusterset.local").expect("apart").with_clusterset().is_err());
        assert!(zones().with_zone("cluster.local").is_err());
    }

    #[test]
    fn suffixes_of_others_and_below_a_zone_are_refused_with_the_reason() {
        for (text, why) in [
            ("local", "multicast"),
            ("internal", "private network"),
            ("cluster.local", "Kubernetes"),
            ("svc.cluster.local", "Kubernetes"),
            ("localhost", "this machine"),
            ("10.in-addr.arpa", "reverse"),
            ("mesh.internal", "zone mesh.internal"),
            ("x.mesh.internal", "zone mesh.internal"),
        ] {
            let error = zones().with_suffix(suffix(text)).expect_err(text).to_string();
            assert!(error.contains(why) && error.contains("dns.fqdn_suffixes"), "{text}: {error}");
        }
        assert!(zones().with_suffix(suffix("corp.example")).is_ok());
    }

    #[test]
    fn aliases_are_host_names_outside_the_zones() {
        for (text, why) in [
            ("", "empty"),
            ("a..b", "empty"),
            ("*.corp.example", "a-z"),
            ("_pg.corp.example", "reserved"),
            ("local", "multicast"),
            ("x.localhost", "this machine"),
            ("1.0.0.10.in-addr.arpa", "reverse"),
            ("pg.mesh.internal", "zone mesh.internal"),
            ("mesh.internal", "zone mesh.internal"),
            (&"a".repeat(64), "63"),
        ] {
            let error = zones().with_alias(text, service()).expect_err(text).to_string();
            assert!(error.contains(why) && error.contains("alias"), "{text}: {error}");
        }
        let zones = zones().with_alias("PG.corp.example.", service()).expect("valid");
        assert!(zones.alias("pg.corp.example").is_some());
    }

    #[test]
    fn the_longest_suffix_is_found_at_label_boundaries() {
        let zones = zones().with_suffix(suffix("example")).expect("valid");
        let zones = zones.with_suffix(suffix("corp.example")).expect("valid");
        let zones = zones.with_suffix(suffix("example")).expect("twice is once");
        let over = |name: &str| {
            let labels: Vec<_> = name.split('.').collect();
            zones.suffix_over(&labels).map(|apex| apex.to_ascii())
        };
        assert_eq!(over("a.corp.example").as_deref(), Some("corp.example."));
        assert_eq!(over("corp.example").as_deref(), Some("corp.example."));
        assert_eq!(over("badcorp.example").as_deref(), Some("example."));
        assert_eq!(over("badexample"), None);
        assert_eq!(zones.answered(), ["mesh.internal", "corp.example", "example"]);
    }

    #[test]
    fn an_alias_takes_names_below_it_along_only_where_somebody_answers_them() {
        let mut zones = zones().with_suffix(suffix("corp.example")).expect("valid");
        for alias in ["pg.corp.example", "corp.example", "example", "pg.other.test"] {
            zones = zones.with_alias(alias, service()).expect("valid");
        }
        assert_eq!(zones.unrouted(), ["example", "pg.other.test"]);
        assert!(zones.with_upstream().unrouted().is_empty());
    }

    #[test]
    fn a_name_is_admitted_when_a_question_below_a_suffix_can_mean_it() {
        let zones = zones().with_suffix(suffix("corp.example")).expect("valid");
        for (name, is_admitted) in [
            ("pg.corp.example", true),
            ("*.corp.example", true),
            ("*.a.corp.example", true),
            ("*.example", true),
            ("corp.example", false),
            ("pg.example", false),
            ("*.example.com", false),
        ] {
            assert_eq!(zones.admits(&name.parse().expect(name)), is_admitted, "{name}");
        }
    }
}
