//! Routing wishes: in which order the instances of a service are used, and which of them not at all.
//!
//! Owns: the wishes, their words, their limits. Must not know: instances, who wishes.
//! Driven by: service records (what an exporter wishes), the configuration of a caller.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How near an instance has to be to the caller. `Node` lies within all others, `Zone` within `Region`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// On the caller's node.
    Node,
    /// On a node of the caller's group.
    Group,
    /// In the caller's zone.
    Zone,
    /// In the caller's region.
    Region,
    /// Anywhere.
    Any,
}

impl Tier {
    /// All of them, in the failover order that counts where nobody wishes another one (design section 9).
    pub const ALL: [Self; 5] = [Self::Node, Self::Group, Self::Zone, Self::Region, Self::Any];

    /// Returns its word in configuration, JSON and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Group => "group",
            Self::Zone => "zone",
            Self::Region => "region",
            Self::Any => "any",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What carries the flows of a service, whatever else would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// TLS over TCP: a lane, also where QUIC works.
    Tls,
}

impl Carrier {
    /// Returns its word in configuration, JSON and on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tls => "tls",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Carrier {
    type Err = RoutingError;

    fn from_str(text: &str) -> Result<Self, RoutingError> {
        let is_tls = text.eq_ignore_ascii_case(Self::Tls.word());
        is_tls.then_some(Self::Tls).ok_or_else(|| RoutingError::Carrier(text.to_owned()))
    }
}

/// Why a wish is none. Whoever wrote it is at fault; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RoutingError {
    /// No tier has this word.
    #[error("{0:?} is none of node, group, zone, region, any")]
    Tier(String),
    /// No carrier has this word.
    #[error("{0:?} is no transport that can be asked for; write tls, or nothing for QUIC where that works")]
    Carrier(String),
    /// A tier cannot come at two places.
    #[error("the order names {0} twice")]
    Twice(Tier),
    /// Instances of what follows would never be reached by it.
    #[error("the order goes on after any, which holds every instance")]
    AfterAny,
    /// A share of the whole.
    #[error("{0} is no percentage from 0 to 100")]
    Percentage(u64),
}

impl FromStr for Tier {
    type Err = RoutingError;

    fn from_str(text: &str) -> Result<Self, RoutingError> {
        let tier = Self::ALL.into_iter().find(|tier| tier.word().eq_ignore_ascii_case(text));
        tier.ok_or_else(|| RoutingError::Tier(text.to_owned()))
    }
}

/// Tiers in the order of use, each at most once, `any` at most at the end, where it is meant also when it is not
/// written. An instance belongs to the first of them that holds it. Empty: no wish.
pub type Order = Vec<Tier>;

/// What somebody wishes about the instances of a service. The default wishes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    /// In which order they are used.
    #[serde(default)]
    pub order: Order,
    /// How near those have to be that are used at all.
    #[serde(default)]
    pub only: Option<Tier>,
    /// Percentage, 0 to 100: when less of a tier is healthy, by weight, a part of the flows goes to the next one.
    #[serde(default)]
    pub spill_below: Option<u8>,
    /// What carries the flows.
    #[serde(default, rename = "transport")]
    pub carrier: Option<Carrier>,
}

impl Routing {
    /// Returns whether nothing is wished.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Checks what the types cannot hold.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), RoutingError> {
        for (at, tier) in self.order.iter().enumerate() {
            if self.order.iter().take(at).any(|before| before == tier) {
                return Err(RoutingError::Twice(*tier));
            }
            if *tier == Tier::Any && at + 1 < self.order.len() {
                return Err(RoutingError::AfterAny);
            }
        }
        match self.spill_below {
            Some(percentage) if percentage > 100 => Err(RoutingError::Percentage(percentage.into())),
            Some(_) | None => Ok(()),
        }
    }
}

/// Reads tiers separated by commas.
///
/// # Errors
/// The first word or rule that is broken.
pub fn parse_order(text: &str) -> Result<Order, RoutingError> {
    let order = text.split(',').map(|word| word.trim().parse()).collect::<Result<_, _>>()?;
    let routing = Routing { order, ..Routing::default() };
    routing.check()?;
    Ok(routing.order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_each_tier_once_and_ends_with_any() {
        assert_eq!(parse_order("zone, region,any"), Ok(vec![Tier::Zone, Tier::Region, Tier::Any]));
        assert_eq!(parse_order("zone"), Ok(vec![Tier::Zone]));
        assert_eq!(parse_order("zone,group,zone"), Err(RoutingError::Twice(Tier::Zone)));
        assert_eq!(parse_order("any,zone"), Err(RoutingError::AfterAny));
        assert_eq!(parse_order("zones"), Err(RoutingError::Tier("zones".to_owned())));
        assert!(parse_order("").is_err());
    }

    #[test]
    fn a_percentage_ends_at_a_hundred() {
        let spill = |percentage| Routing { spill_below: Some(percentage), ..Routing::default() }.check();
        assert_eq!(spill(100), Ok(()));
        assert_eq!(spill(101), Err(RoutingError::Percentage(101)));
    }

    #[test]
    fn every_tier_is_read_as_it_is_written() {
        for tier in Tier::ALL {
            assert_eq!(tier.word().parse(), Ok(tier));
        }
        assert!(Routing::default().is_none());
        let tls = Routing { carrier: Some(Carrier::Tls), ..Routing::default() };
        assert!(!tls.is_none() && tls.check().is_ok());
        assert_eq!("TLS".parse(), Ok(Carrier::Tls));
        let error = "quic".parse::<Carrier>().expect_err("no such carrier").to_string();
        assert!(error.contains("\"quic\" is no transport"), "{error}");
    }
}
