//! A registration: a request that was checked, as it is kept on disk.
//!
//! Owns: the checks of a request and the form of the file. Must not know: health, other registrations.
//! Driven by: `book`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use gossamer_core::access::{Access, Policy};
use gossamer_core::callers::Owner;
use gossamer_wire::token::Claims;
use gossamer_wire::{
    DecodeError, Fqdn, FqdnSuffix, Health, InstanceName, NodeName, Port, PortName, Routing, Rule,
    ServiceName, ServiceRecord, Transport, Tries, Visibility,
};

use super::place::{Host, Place};
use super::request::{ExposeError, ExposeRequest, PortRequest};
use super::target::DenyList;

/// What this node may offer, and under which name.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The default instance name.
    pub node: NodeName,
    /// What the certificate allows.
    pub claims: Claims,
    /// Who is admitted where a registration names nobody; it may change.
    pub policy: Policy,
    /// Where no service may point.
    pub denied: DenyList,
}

/// What identifies a registration.
pub(super) type Key = (ServiceName, InstanceName);

/// A registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) service: ServiceName,
    pub(super) instance: InstanceName,
    pub(super) target: Host,
    pub(super) ports: Vec<PortSpec>,
    pub(super) visibility: Visibility,
    /// Absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) allow: Vec<Rule>,
    pub(super) weight: u16,
    /// Absent when there is no wish, and in files of earlier versions.
    #[serde(default, skip_serializing_if = "Routing::is_none")]
    pub(super) routing: Routing,
    pub(super) metadata: Vec<(String, String)>,
    /// Absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) fqdns: Vec<Fqdn>,
    /// Absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) proxy_protocol: bool,
    /// Who registered it; absent when an operator did, as in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<u32>,
}

/// One port of a registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortSpec {
    pub(super) name: PortName,
    pub(super) number: u16,
    pub(super) target_port: u16,
    pub(super) transport: Transport,
}

impl Spec {
    /// Checks a request by itself.
    pub(super) fn of(request: ExposeRequest, rules: &Rules) -> Result<Self, ExposeError> {
        let mut visibility = request.visibility;
        if let Visibility::Groups(groups) = &mut visibility {
            // The same groups in another order are the same content.
            groups.sort();
            groups.dedup();
        }
        let mut allow = request.allow;
        allow.sort();
        allow.dedup();
        let mut fqdns = request.fqdns;
        fqdns.sort();
        fqdns.dedup();
        let port = |port: PortRequest| PortSpec {
            name: port.name.unwrap_or_else(|| port.number.into()),
            number: port.number,
            target_port: port.target_port.unwrap_or(port.number),
            transport: port.transport,
        };
        let spec = Self {
            service: request.service,
            instance: request.instance.unwrap_or_else(|| (&rules.node).into()),
            target: canonical(request.target.unwrap_or_default()),
            ports: request.ports.into_iter().map(port).collect(),
            visibility,
            allow,
            weight: request.weight,
            routing: request.routing,
            metadata: request.metadata,
            fqdns,
            proxy_protocol: request.proxy_protocol,
            user: request.owner.user(),
        };
        spec.check(rules)?;
        Ok(spec)
    }

    /// Checks everything that does not depend on other registrations.
    pub(super) fn check(&self, rules: &Rules) -> Result<(), ExposeError> {
        let service = || self.service.clone();
        if !rules.claims.allow_service(self.service.as_str()) {
            let allowed = rules.claims.services.join(", ");
            return Err(ExposeError::NotAllowed { service: service(), allowed });
        }
        if let Some(fqdn) = self.fqdns.iter().find(|fqdn| !rules.claims.allow_fqdn(fqdn)) {
            let suffixes: Vec<_> = rules.claims.fqdn_suffixes.iter().map(FqdnSuffix::as_str).collect();
            let allowed = match suffixes.is_empty() {
                true => "its certificate allows none".to_owned(),
                false => format!("its certificate allows names below {}", suffixes.join(", ")),
            };
            return Err(ExposeError::FqdnNotAllowed { fqdn: fqdn.clone(), allowed });
        }
        if self.ports.is_empty() {
            return Err(ExposeError::NoPort { service: service() });
        }
        let has_tcp = self.ports.iter().any(|port| port.transport == Transport::Tcp);
        if self.proxy_protocol && !has_tcp {
            return Err(ExposeError::ProxyUdp { service: service() });
        }
        self.encoded_len()?;
        for port in &self.ports {
            let target = self.addr(port);
            if matches!(target, Place::Unix { .. }) && port.transport == Transport::Udp {
                return Err(ExposeError::UnixUdp { service: service(), port: port.name.clone(), target });
            }
            rules.denied.check(&target).map_err(|why| ExposeError::Target { target, why })?;
        }
        Ok(())
    }

    /// Returns the bytes of its record, after the checks of records.
    pub(super) fn encoded_len(&self) -> Result<usize, ExposeError> {
        // A `try` has one byte, whatever it is; the policy may change without asking again.
        let visibility = self.access(Policy::default()).longest();
        let record = ServiceRecord { visibility, ..self.record(Health::Passing, Tries::default()) };
        record.check().map_err(|error| match error {
            DecodeError::Malformed { why, .. } => ExposeError::Record(why),
            error => ExposeError::Record(error.to_string()),
        })?;
        let bytes = record.encode().map_err(|error| ExposeError::Record(error.to_string()))?;
        Ok(bytes.len())
    }

    /// Returns who may call it.
    pub(super) fn access(&self, policy: Policy) -> Access {
        Access { visibility: self.visibility.clone(), allow: self.allow.clone(), policy }
    }

    /// Returns whether flows and checks of the other one go where those of this one do.
    pub(super) fn has_targets_of(&self, other: &Self) -> bool {
        let of = |spec: &Self| (spec.proxy_protocol, spec.user);
        self.target == other.target && self.ports == other.ports && of(self) == of(other)
    }

    pub(super) const fn owner(&self) -> Owner {
        Owner::of(self.user)
    }

    pub(super) fn key(&self) -> Key {
        (self.service.clone(), self.instance.clone())
    }

    /// Returns where the program of a port listens.
    pub(super) fn addr(&self, port: &PortSpec) -> Place {
        match &self.target {
            Host::Ip(ip) => SocketAddr::new(*ip, port.target_port).into(),
            Host::Unix(path) => Place::Unix { path: path.clone(), user: self.user },
        }
    }

    /// Returns what other nodes are told while nothing else is said for the whole node.
    pub(super) fn record(&self, health: Health, tries: Tries) -> ServiceRecord {
        let port = |port: &PortSpec| Port {
            name: port.name.clone(),
            number: port.number,
            transport: port.transport,
        };
        ServiceRecord {
            service: self.service.clone(),
            instance: self.instance.clone(),
            ports: self.ports.iter().map(port).collect(),
            visibility: self.access(Policy::default()).published(),
            health,
            weight: self.weight,
            draining: false,
            routing: self.routing.clone(),
            tries,
            metadata: self.metadata.clone(),
            fqdns: self.fqdns.clone(),
        }
    }
}

/// Writes an IPv4 address as such.
fn canonical(host: Host) -> Host {
    match host {
        Host::Ip(ip) => Host::Ip(ip.to_canonical()),
        Host::Unix(path) => Host::Unix(path),
    }
}

/// The state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) version: u32,
    pub(super) services: Vec<StoredService>,
}

/// One registration in the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredService {
    #[serde(flatten)]
    pub(super) spec: Spec,
    /// Ports whose program was last seen on the wildcard address. Kept, because the daemon must leave such
    /// a port free on its VIPs also when it starts before the program.
    #[serde(default)]
    pub(super) wildcard_ports: Vec<PortName>,
    /// Raised when a name met another one (design section 8). Kept, because a name that falls back meets it
    /// again.
    #[serde(default)]
    pub(super) tries: Tries,
    /// When its flows are ended, seconds since the Unix epoch, while it drains. Kept, because a restart undoes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) drains_until: Option<u64>,
}

/// Name of the state file.
pub(super) const FILE: &str = "services.json";
/// The version of the state file that is written and read.
pub(super) const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use gossamer_wire::Tier;

    use super::super::target::Denial;
    use super::super::tests::{request, rules};
    use super::*;

    #[test]
    fn what_is_not_asked_for_gets_its_default() {
        let spec = Spec::of(request("orders", 5432), &rules()).expect("valid");
        assert_eq!(spec.instance.as_str(), "vm-b");
        assert_eq!(spec.addr(&spec.ports[0]), "127.0.0.1:5432".parse().expect("address"));
        let record = spec.record(Health::Failing, Tries::default());
        assert_eq!(record.ports[0].name.as_str(), "5432");
        assert_eq!(record.health, Health::Failing);
    }

    #[test]
    fn a_name_of_its_own_must_lie_below_a_certified_suffix() {
        let named = |fqdn: &str| ExposeRequest {
            fqdns: vec![fqdn.parse().expect("FQDN"); 2],
            ..request("orders", 5432)
        };
        let certified = Rules {
            claims: Claims {
                fqdn_suffixes: vec!["corp.example".parse().expect("suffix")],
                ..Claims::default()
            },
            ..rules()
        };
        let spec = Spec::of(named("*.corp.example"), &certified).expect("certified");
        assert_eq!(spec.record(Health::Passing, Tries::default()).fqdns.len(), 1, "each name once");
        for (fqdn, rules, words) in [
            ("pg.corp.example", &rules(), "its certificate allows none"),
            ("*.debian.org", &certified, "names below corp.example"),
        ] {
            let error = Spec::of(named(fqdn), rules).expect_err(fqdn).to_string();
            assert!(error.contains(words) && error.contains("--allow-fqdn"), "{error}");
        }
    }

    #[test]
    fn the_target_port_is_kept_from_the_mesh() {
        let mut asked = request("web", 80);
        asked.ports[0].target_port = Some(8080);
        asked.target = Some("10.0.0.7".parse().expect("address"));
        let spec = Spec::of(asked, &rules()).expect("valid");
        assert_eq!(spec.addr(&spec.ports[0]), "10.0.0.7:8080".parse().expect("address"));
        assert_eq!(spec.record(Health::Passing, Tries::default()).ports[0].number, 80);
    }

    #[test]
    fn names_outside_the_claims_are_refused_with_the_way_out() {
        let mut rules = rules();
        rules.claims.services = vec!["web-*".to_owned()];
        assert!(Spec::of(request("web-1", 80), &rules).is_ok());
        let error = Spec::of(request("orders", 80), &rules).expect_err("outside").to_string();
        assert!(error.contains("web-*") && error.contains("--allow-service orders"), "{error}");
    }

    #[test]
    fn targets_of_the_deny_list_are_refused_also_when_written_as_ipv6() {
        for target in ["169.254.169.254", "::ffff:169.254.169.254"] {
            let mut asked = request("secrets", 80);
            asked.target = Some(target.parse().expect("address"));
            let error = Spec::of(asked, &rules()).expect_err("denied");
            assert!(matches!(error, ExposeError::Target { why: Denial::Metadata, .. }), "{error}");
        }
    }

    #[test]
    fn a_socket_of_the_file_system_is_kept_as_text_and_takes_tcp_only() {
        let mut asked = request("app", 80);
        asked.target = Some("unix:/run/app.sock".parse().expect("path"));
        asked.owner = Owner::User(7);
        let spec = Spec::of(asked.clone(), &rules()).expect("valid");
        let place = Place::Unix { path: "/run/app.sock".parse().expect("path"), user: Some(7) };
        assert_eq!(spec.addr(&spec.ports[0]), place);
        let json = serde_json::to_value(&spec).expect("JSON");
        assert_eq!(json["target"], "unix:/run/app.sock");
        assert_eq!(serde_json::from_value::<Spec>(json).expect("read"), spec);

        asked.ports[0].transport = Transport::Udp;
        assert!(matches!(Spec::of(asked.clone(), &rules()), Err(ExposeError::UnixUdp { .. })));
        (asked.target, asked.proxy_protocol) = (None, true);
        assert!(matches!(Spec::of(asked, &rules()), Err(ExposeError::ProxyUdp { .. })));
    }

    #[test]
    fn every_port_is_judged_and_not_only_the_first() {
        let mut asked = request("web", 80);
        asked.ports.push(PortRequest { number: 443, target_port: Some(4677), ..asked.ports[0].clone() });
        let error = Spec::of(asked, &rules()).expect_err("own port").to_string();
        assert!(error.contains("127.0.0.1:4677") && error.contains("gossamer daemon"), "{error}");
    }

    #[test]
    fn broken_records_are_refused_in_words() {
        type Break = fn(&mut ExposeRequest);
        let broken: [(Break, &str); 8] = [
            (|asked| asked.routing.order = vec![Tier::Zone; 2], "zone twice"),
            (|asked| asked.ports.clear(), "has no port"),
            (|asked| asked.ports.push(asked.ports[0].clone()), "appears twice"),
            (|asked| asked.ports[0].number = 0, "port 0"),
            (|asked| asked.ports[0].target_port = Some(0), "port 0"),
            (|asked| asked.metadata = vec![("a=b".to_owned(), String::new())], "metadata key"),
            (|asked| asked.allow = rules_of(33), "rules of visibility"),
            (|asked| asked.metadata = (0..9).map(|n| (n.to_string(), "v".repeat(120))).collect(), "bytes"),
        ];
        for (break_it, words) in broken {
            let mut asked = request("orders", 5432);
            break_it(&mut asked);
            let error = Spec::of(asked, &rules()).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    fn rules_of(count: usize) -> Vec<Rule> {
        (0..count).map(|number| format!("group:g{number}").parse().expect("a rule")).collect()
    }

    #[test]
    fn rules_are_told_to_others_and_their_order_is_no_content() {
        let with = |allow| Spec::of(ExposeRequest { allow, ..request("web", 80) }, &rules());
        let spec = with([rules_of(2), rules_of(2)].concat()).expect("valid");
        assert_eq!(with(rules_of(2).into_iter().rev().collect()).expect("valid"), spec);
        let record = spec.record(Health::Passing, Tries::default());
        assert_eq!(record.visibility, Visibility::Rules { own: true, rules: rules_of(2) });
        let json = serde_json::to_value(&spec).expect("JSON");
        assert_eq!(json["allow"], serde_json::json!(["group:g0", "group:g1"]));
        assert_eq!(serde_json::from_value::<Spec>(json).expect("read"), spec);
        let plain = Spec::of(request("web", 80), &rules()).expect("valid");
        let json = serde_json::to_value(&plain).expect("JSON");
        assert!(
            json.get("allow").is_none()
                && plain.record(Health::Passing, Tries::default()).visibility == Visibility::Own
        );
        assert!(spec.has_targets_of(&plain));
    }

    #[test]
    fn the_order_of_groups_is_no_content() {
        let group = |text: &str| text.parse().expect("name");
        let with = |groups| ExposeRequest { visibility: Visibility::Groups(groups), ..request("web", 80) };
        let one = Spec::of(with(vec![group("b"), group("a"), group("b")]), &rules()).expect("valid");
        let two = Spec::of(with(vec![group("a"), group("b")]), &rules()).expect("valid");
        assert_eq!(one, two);
    }
}
