//! Service records: what a node says about one instance of a service it exports.
//!
//! Owns: the record, its limits and its bytes. Must not know: merge rules, who may see it.
//! Driven by: `advert` (inside fragments), the registry of the exporting node.

use serde::{Deserialize, Serialize};

use crate::codec::{self, at_most};
use crate::limits::{
    MAX_ADVERT_BYTES, MAX_FQDNS, MAX_METADATA, MAX_METADATA_KEY_BYTES, MAX_METADATA_VALUE_BYTES, MAX_PORTS,
    MAX_VISIBLE_GROUPS, MAX_VISIBLE_RULES,
};
use crate::{
    DecodeError, EncodeError, Fqdn, GroupName, InstanceName, PortName, Routing, Rule, ServiceName, Subject,
};

/// The transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One port that clients of a service may use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// Its name; the number as text when the exporter gave none. Unique among those of its transport, as in SRV.
    pub name: PortName,
    /// The number clients connect to. The exporter's own target may differ and is not published.
    pub number: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

/// Who may resolve and call a service, so that others can hide names they may not call. Access, not secrecy: every
/// member can read the record. The exporter decides by its own rules, whatever the record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Visibility {
    /// The exporter's own group.
    Own,
    /// The exporter's own group and these.
    Groups(Vec<GroupName>),
    /// Every group of the mesh.
    All,
    /// Whom one of the rules names.
    Rules {
        /// The exporter's own group as well.
        own: bool,
        /// At most [`MAX_VISIBLE_RULES`].
        rules: Vec<Rule>,
    },
}

impl Visibility {
    /// Returns whether `caller` may see and call a service exported by group `exporter`.
    pub fn admits(&self, exporter: &GroupName, caller: &Subject<'_>) -> bool {
        let is_own = caller.group == exporter;
        match self {
            Self::Own => is_own,
            Self::Groups(groups) => is_own || groups.contains(caller.group),
            Self::All => true,
            Self::Rules { own, rules } => is_own && *own || rules.iter().any(|rule| rule.matches(caller)),
        }
    }
}

/// The exporter's verdict about its instance, after hysteresis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// The check passes.
    Passing,
    /// The check fails; the instance is not offered to clients.
    Failing,
}

/// The `try` of each name level in the VIP function (design section 8); 0 unless names collided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// Of `<service>`.
    pub service: u8,
    /// Of `<service>.<group>`.
    pub group: u8,
    /// Of `<instance>.<service>.<group>`.
    pub instance: u8,
}

/// "This instance offers this service", said by the node that runs it.
///
/// A decoded record keeps every limit; the ports of one transport have names and numbers of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// The service.
    pub service: ServiceName,
    /// The instance; unique per service and node.
    pub instance: InstanceName,
    /// 1..=[`MAX_PORTS`] ports.
    pub ports: Vec<Port>,
    /// Who may see and call it.
    pub visibility: Visibility,
    /// The exporter's health verdict.
    pub health: Health,
    /// Share of traffic among equal instances; 0 takes none. Default 100.
    pub weight: u16,
    /// Whether it takes no new flows at the moment, as with weight 0; its weight is that of afterwards.
    pub draining: bool,
    /// What its exporter wishes about the instances of the service.
    pub routing: Routing,
    /// See [`Tries`].
    pub tries: Tries,
    /// Free `key=value` pairs, shown in TXT. At most [`MAX_METADATA`].
    pub metadata: Vec<(String, String)>,
    /// Names outside the mesh zones that the service wants to be called by, each once. At most [`MAX_FQDNS`]; whoever
    /// receives them drops those outside the certified suffixes of the exporter.
    pub fqdns: Vec<Fqdn>,
}

impl ServiceRecord {
    /// Encodes the record as it stands in a fragment.
    ///
    /// # Errors
    /// The record does not fit one fragment; shorten its metadata.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        codec::encode(WHAT, self, MAX_RECORD_BYTES)
    }

    /// Decodes and checks a record.
    ///
    /// # Errors
    /// The exporter's fault: the record breaks a limit; it is quarantined, others are not touched.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let record: Self = codec::decode(WHAT, bytes, MAX_RECORD_BYTES)?;
        record.check()?;
        Ok(record)
    }

    /// Checks the limits that the types cannot hold.
    ///
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), DecodeError> {
        at_most("ports", &self.ports, MAX_PORTS)?;
        if self.ports.is_empty() {
            return Err(DecodeError::Short("list of ports"));
        }
        let malformed = |why: &str| Err(DecodeError::Malformed { what: WHAT, why: why.to_owned() });
        for (index, port) in self.ports.iter().enumerate() {
            let doubled = |other: &Port| {
                other.transport == port.transport && (other.name == port.name || other.number == port.number)
            };
            if port.number == 0 {
                return malformed("port 0 cannot be called");
            }
            if self.ports.iter().skip(index + 1).any(doubled) {
                return malformed("a port name or number appears twice");
            }
        }
        match &self.visibility {
            Visibility::Groups(groups) => at_most("visible groups", groups, MAX_VISIBLE_GROUPS)?,
            Visibility::Rules { rules, .. } => at_most("rules of visibility", rules, MAX_VISIBLE_RULES)?,
            Visibility::Own | Visibility::All => {}
        }
        if let Err(error) = self.routing.check() {
            return malformed(&error.to_string());
        }
        at_most("metadata", &self.metadata, MAX_METADATA)?;
        for (key, value) in &self.metadata {
            let plain = |text: &str| !text.chars().any(char::is_control);
            if key.is_empty() || key.contains('=') || !plain(key) || !plain(value) {
                return malformed("a metadata key is empty or holds `=`, or a control character is used");
            }
            at_most("metadata key", key.as_bytes(), MAX_METADATA_KEY_BYTES)?;
            at_most("metadata value", value.as_bytes(), MAX_METADATA_VALUE_BYTES)?;
        }
        at_most("FQDNs", &self.fqdns, MAX_FQDNS)?;
        if (1..self.fqdns.len())
            .any(|end| self.fqdns.iter().take(end).any(|one| Some(one) == self.fqdns.get(end)))
        {
            return malformed("an FQDN appears twice");
        }
        Ok(())
    }
}

const WHAT: &str = "service record";

/// Longest record: what a fragment leaves beside its header, signature and one length prefix.
pub(crate) const MAX_RECORD_BYTES: usize = MAX_ADVERT_BYTES - 52 - 64 - 16;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Tier;

    pub(crate) fn sample() -> ServiceRecord {
        ServiceRecord {
            service: "orders-db".parse().expect("name"),
            instance: "vm-b".parse().expect("name"),
            ports: vec![Port { name: 5432.into(), number: 5432, transport: Transport::Tcp }],
            visibility: Visibility::Groups(vec!["west".parse().expect("name")]),
            health: Health::Passing,
            weight: 100,
            draining: false,
            routing: Routing {
                order: vec![Tier::Zone],
                only: Some(Tier::Region),
                spill_below: Some(70),
                carrier: Some(crate::Carrier::Tls),
            },
            tries: Tries::default(),
            metadata: vec![("version".to_owned(), "15".to_owned())],
            fqdns: vec!["pg.corp.example".parse().expect("name")],
        }
    }

    #[test]
    fn a_record_survives_a_round_trip() {
        let bytes = sample().encode().expect("fits");
        assert_eq!(ServiceRecord::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn own_group_always_sees_and_others_only_when_named() {
        let group = |text: &str| text.parse::<GroupName>().expect("name");
        let (east, west, north) = (group("east"), group("west"), group("north"));
        let admits = |visibility: &Visibility, caller| visibility.admits(&east, &Subject::of_group(caller));
        assert!(admits(&Visibility::Own, &east));
        assert!(!admits(&Visibility::Own, &west));
        assert!(admits(&Visibility::Groups(vec![west.clone()]), &west));
        assert!(!admits(&Visibility::Groups(vec![west.clone()]), &north));
        assert!(admits(&Visibility::All, &north));
        for own in [true, false] {
            let rules = Visibility::Rules { own, rules: vec![Rule::Group(west.clone())] };
            assert_eq!([&east, &west, &north].map(|group| admits(&rules, group)), [own, true, false]);
        }
    }

    #[test]
    fn records_outside_the_limits_do_not_decode() {
        let broken: [fn(&mut ServiceRecord); 13] = [
            |record| record.routing.order = vec![Tier::Zone; 2],
            |record| record.routing.spill_below = Some(101),
            |record| {
                let rule = "group:west".parse().expect("a rule");
                record.visibility =
                    Visibility::Rules { own: false, rules: vec![rule; MAX_VISIBLE_RULES + 1] };
            },
            |record| record.fqdns = vec![record.fqdns[0].clone(); 2],
            |record| {
                record.fqdns = (0..=MAX_FQDNS).map(|n| format!("n{n}.test").parse().expect("name")).collect();
            },
            |record| record.ports.clear(),
            |record| record.ports = vec![record.ports[0].clone(); 2],
            |record| record.ports[0].number = 0,
            |record| record.metadata = vec![("k".to_owned(), "v".to_owned()); MAX_METADATA + 1],
            |record| record.metadata[0].0 = "a=b".to_owned(),
            |record| record.metadata[0].1 = "\u{1b}[31m".to_owned(),
            |record| record.metadata[0].1 = "v".repeat(MAX_METADATA_VALUE_BYTES + 1),
            |record| {
                let groups = (0..=MAX_VISIBLE_GROUPS).map(|n| format!("g{n}").parse().expect("name"));
                record.visibility = Visibility::Groups(groups.collect());
            },
        ];
        for (case, break_it) in broken.into_iter().enumerate() {
            let mut record = sample();
            break_it(&mut record);
            let bytes = record.encode().expect("fits");
            assert!(ServiceRecord::decode(&bytes).is_err(), "case {case}");
        }
    }
}
