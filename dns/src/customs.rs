//! Custom names: which service holds which, wildcards included.
//!
//! Owns: the look-up of a name, and who wins when several claim it. Must not know: who may claim what, below which
//! suffixes names are answered. Driven by: the daemon's index, whose one writer keeps it; read at each question for a
//! name below a suffix.
//!
//! A name is looked up itself, then under the wildcards above it, the longest first; a wildcard stands for names of any
//! depth below its base, never for the base. Other than in RFC 4592 a name that exists takes nothing away from the
//! wildcards above it: one member's name would otherwise undo those of another (ADR 18).

use std::collections::BTreeMap;
use std::ops::Bound;

use gossamer_wire::limits::MAX_FQDN_LABELS;
use gossamer_wire::{Fqdn, ServiceName};

use crate::CustomTarget;

/// All custom names that count on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomNames {
    /// By the labels of the name or of the wildcard's base, last one first: what lies below a name follows it.
    held: BTreeMap<Box<str>, Held>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    itself: Claims,
    wildcard: Claims,
}

/// Who claims a name, best first: the rank, then the service.
type Claims = Vec<(u16, ServiceName)>;

impl CustomNames {
    /// Notes that a service claims a name. `rank` is the place of its group among those behind short names: 0 is the
    /// own one. A second claim of one service replaces the first.
    pub fn claim(&mut self, fqdn: &Fqdn, service: &ServiceName, rank: u16) {
        self.release(fqdn, service);
        let held = self.held.entry(reversed(fqdn.base()).into()).or_default();
        let claims = held.claims(fqdn);
        claims.push((rank, service.clone()));
        claims.sort();
    }

    /// Notes that a service claims a name no more.
    pub fn release(&mut self, fqdn: &Fqdn, service: &ServiceName) {
        let key = reversed(fqdn.base());
        let Some(held) = self.held.get_mut(&*key) else { return };
        held.claims(fqdn).retain(|(_, other)| other != service);
        if held.itself.is_empty() && held.wildcard.is_empty() {
            self.held.remove(&*key);
        }
    }

    /// Returns what a lower-case host name without its last dot stands for.
    pub fn find(&self, name: &str) -> Option<CustomTarget> {
        if self.held.is_empty() {
            return None;
        }
        let key = reversed(name);
        let itself = self.held.get(&*key);
        if let Some(target) = itself.and_then(|held| target(&held.itself)) {
            return Some(target);
        }
        // The bases above it, longest first; no base has more labels than an FQDN without one.
        let ends: Vec<_> = key.match_indices('.').map(|(end, _)| end).take(MAX_FQDN_LABELS - 1).collect();
        let bases = ends.iter().rev().filter_map(|end| key.get(..*end));
        let above = bases.filter_map(|base| self.held.get(base)).find_map(|held| target(&held.wildcard));
        let above = above.map(|found| match found {
            CustomTarget::Service(service) => CustomTarget::Wildcard(service),
            other => other,
        });
        above.or_else(|| (itself.is_some() || self.has_below(&key)).then_some(CustomTarget::Branch))
    }

    /// Returns the names that are not answered because several services claim them with the same right.
    pub fn disputed(&self) -> Vec<(Fqdn, Vec<ServiceName>)> {
        let named = |key: &str, rivals: Option<Vec<ServiceName>>, before: &str| {
            Some((format!("{before}{}", reversed(key)).parse().ok()?, rivals?))
        };
        let of = |key: &str, held: &Held| {
            [named(key, rivals(&held.itself), ""), named(key, rivals(&held.wildcard), "*.")]
        };
        self.held.iter().flat_map(|(key, held)| of(key, held)).flatten().collect()
    }

    fn has_below(&self, key: &str) -> bool {
        let below = format!("{key}.");
        let mut after = self.held.range::<str, _>((Bound::Included(below.as_str()), Bound::Unbounded));
        after.next().is_some_and(|(first, _)| first.starts_with(&below))
    }
}

impl Held {
    fn claims(&mut self, fqdn: &Fqdn) -> &mut Claims {
        if fqdn.is_wildcard() { &mut self.wildcard } else { &mut self.itself }
    }
}

fn target(claims: &Claims) -> Option<CustomTarget> {
    let (_, first) = claims.first()?;
    Some(match rivals(claims) {
        None => CustomTarget::Service(first.clone()),
        Some(rivals) => {
            let names: Vec<_> = rivals.iter().take(2).map(ServiceName::as_str).collect();
            CustomTarget::Disputed(format!("claimed by {}; `gossamer status` says more", names.join(" and ")))
        }
    })
}

/// Returns the services of the best rank, if they are several.
fn rivals(claims: &Claims) -> Option<Vec<ServiceName>> {
    let (best, _) = claims.first()?;
    let rivals: Vec<_> =
        claims.iter().take_while(|(rank, _)| rank == best).map(|(_, service)| service.clone()).collect();
    (rivals.len() > 1).then_some(rivals)
}

fn reversed(name: &str) -> String {
    let labels: Vec<_> = name.rsplit('.').collect();
    labels.join(".")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn service(text: &str) -> ServiceName {
        text.parse().expect(text)
    }

    fn names(claims: &[(&str, &str, u16)]) -> CustomNames {
        let mut names = CustomNames::default();
        for (fqdn, by, rank) in claims {
            names.claim(&fqdn.parse().expect(fqdn), &service(by), *rank);
        }
        names
    }

    fn found(names: &CustomNames, name: &str) -> Option<String> {
        names.find(name).map(|target| match target {
            CustomTarget::Service(service) | CustomTarget::Wildcard(service) => service.to_string(),
            CustomTarget::Disputed(_) => "?".to_owned(),
            CustomTarget::Branch => "-".to_owned(),
        })
    }

    #[test]
    fn a_name_itself_beats_a_wildcard_and_a_longer_wildcard_a_shorter_one() {
        let names = names(&[
            ("*.corp.example", "short", 0),
            ("*.a.corp.example", "long", 1),
            ("pg.a.corp.example", "exact", 2),
        ]);
        for (name, expected) in [
            ("pg.a.corp.example", Some("exact")),
            ("x.pg.a.corp.example", Some("long")),
            ("x.a.corp.example", Some("long")),
            ("a.corp.example", Some("short")),
            ("b.corp.example", Some("short")),
            ("y.x.b.corp.example", Some("short")),
        ] {
            assert_eq!(found(&names, name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_name_found_by_a_wildcard_says_so() {
        let names = names(&[("*.corp.example", "web", 0), ("pg.corp.example", "web", 0)]);
        assert_eq!(names.find("pg.corp.example"), Some(CustomTarget::Service(service("web"))));
        assert_eq!(names.find("x.corp.example"), Some(CustomTarget::Wildcard(service("web"))));
    }

    #[test]
    fn a_wildcard_does_not_stand_for_its_base_nor_across_a_label() {
        let names = names(&[("*.corp.example", "web", 0)]);
        for (name, expected) in [
            ("corp.example", Some("-")),
            ("example", Some("-")),
            ("badcorp.example", None),
            ("corp.example.evil", None),
            ("x.badcorp.example", None),
            ("a-b.corp.example", Some("web")),
        ] {
            assert_eq!(found(&names, name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_name_between_others_is_an_empty_non_terminal() {
        let names = names(&[("a.b.corp.example", "web", 0), ("a-b.corp.example", "web", 0)]);
        for (name, expected) in [
            ("b.corp.example", Some("-")),
            ("corp.example", Some("-")),
            ("c.corp.example", None),
            ("x.a.b.corp.example", None),
            ("a.corp.example", None),
        ] {
            assert_eq!(found(&names, name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn the_own_group_comes_before_imports_and_equals_are_a_dispute() {
        let mut names = names(&[("x.test", "imported", 2), ("x.test", "earlier", 1), ("x.test", "later", 3)]);
        assert_eq!(found(&names, "x.test").as_deref(), Some("earlier"));
        let fqdn = "x.test".parse().expect("valid");
        names.claim(&fqdn, &service("own"), 0);
        assert_eq!(found(&names, "x.test").as_deref(), Some("own"));
        names.claim(&fqdn, &service("rival"), 0);
        assert_eq!(found(&names, "x.test").as_deref(), Some("?"));
        assert_eq!(names.disputed(), [(fqdn.clone(), vec![service("own"), service("rival")])]);
        let Some(CustomTarget::Disputed(why)) = names.find("x.test") else { panic!("disputed") };
        assert!(why.contains("own and rival"), "{why}");
        names.release(&fqdn, &service("own"));
        assert_eq!(found(&names, "x.test").as_deref(), Some("rival"));
        assert_eq!(names.disputed(), []);
    }

    #[test]
    fn a_disputed_name_gives_nothing_to_the_wildcard_above_it() {
        let names = names(&[("x.b.test", "one", 0), ("x.b.test", "two", 0), ("*.b.test", "three", 0)]);
        assert_eq!(found(&names, "x.b.test").as_deref(), Some("?"));
        assert_eq!(found(&names, "y.b.test").as_deref(), Some("three"));
    }

    #[test]
    fn names_of_any_length_are_looked_up() {
        let deep = ["a"; MAX_FQDN_LABELS - 2].join(".");
        let names = names(&[(&format!("*.{deep}.test"), "deep", 0), ("*.test", "wide", 0)]);
        assert_eq!(found(&names, &format!("x.{deep}.test")).as_deref(), Some("deep"));
        assert_eq!(found(&names, &format!("{}.{deep}.test", ["x"; 100].join("."))).as_deref(), Some("deep"));
        assert_eq!(found(&names, &format!("{}.test", ["x"; 100].join("."))).as_deref(), Some("wide"));
        assert_eq!(found(&CustomNames::default(), "a.test"), None);
    }

    fn label() -> impl Strategy<Value = String> {
        "[ab-]{0,2}[ab]".prop_filter("a label", |text| !text.starts_with('-'))
    }

    fn host() -> impl Strategy<Value = String> {
        vec(label(), 2..5).prop_map(|labels| labels.join("."))
    }

    /// What the look-up says, found the long way.
    fn slowly(claims: &[(Fqdn, ServiceName, u16)], name: &str) -> Option<CustomTarget> {
        let of = |wanted: &str, is_wildcard: bool| {
            let all =
                claims.iter().filter(|(fqdn, ..)| fqdn.base() == wanted && fqdn.is_wildcard() == is_wildcard);
            let mut all: Claims = all.map(|(_, service, rank)| (*rank, service.clone())).collect();
            all.sort();
            target(&all)
        };
        let mut above = name;
        let mut found = of(name, false);
        while let (None, Some((_, rest))) = (&found, above.split_once('.')) {
            above = rest;
            found = of(rest, true).map(|found| match found {
                CustomTarget::Service(service) => CustomTarget::Wildcard(service),
                other => other,
            });
        }
        let is_branch = |(fqdn, ..): &(Fqdn, ServiceName, u16)| {
            fqdn.as_str().strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
        };
        found.or_else(|| claims.iter().any(is_branch).then_some(CustomTarget::Branch))
    }

    proptest! {
        #[test]
        fn the_look_up_agrees_with_a_search_of_all_claims(
            given in vec((any::<bool>(), host(), 0..3_u8, 0..3_u16), 0..12),
            asked in vec(host(), 1..12),
        ) {
            let mut names = CustomNames::default();
            let mut claims: Vec<(Fqdn, ServiceName, u16)> = Vec::new();
            for (is_wildcard, host, by, rank) in given {
                let fqdn: Fqdn = if is_wildcard { format!("*.{host}") } else { host }.parse().expect("valid");
                let by = service(&format!("s{by}"));
                names.claim(&fqdn, &by, rank);
                claims.retain(|(other, service, _)| (other, service) != (&fqdn, &by));
                claims.push((fqdn, by, rank));
            }
            for name in &asked {
                prop_assert_eq!(names.find(name), slowly(&claims, name), "{}", name);
            }
            for (fqdn, by, _) in &claims {
                names.release(fqdn, by);
            }
            prop_assert_eq!(names, CustomNames::default());
        }
    }
}
