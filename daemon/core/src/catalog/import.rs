//! Imports: which services of other groups this node takes behind their short name.
//!
//! Owns: the grammar `SERVICE@GROUP` and the match. Must not know: records, visibility, DNS.
//! Driven by: configuration (parses), `view` and the DNS directory (ask).

use std::fmt;
use std::str::FromStr;

use gossamer_wire::limits::MAX_LABEL_BYTES;
use gossamer_wire::token::pattern_matches;
use gossamer_wire::{GroupName, NameError, ServiceName};
use thiserror::Error;

/// Why a text is not an import pattern. The operator's fault; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ImportError {
    /// Not of the form `SERVICE@GROUP`.
    #[error("{0:?} is not an import: write SERVICE@GROUP, for example orders@west or *@shared")]
    Form(String),
    /// The part before `@` can be no service name, whatever `*` stands for.
    #[error("{0:?} is not a service pattern: use a-z, 0-9, `-` and `*`, at most 63 characters")]
    Service(String),
    /// The part behind `@` is neither `*` nor a group name.
    #[error(transparent)]
    Group(#[from] NameError),
}

/// One pattern: `orders@west`, `*@shared`, `web-*@*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Name with `*` for any run of characters.
    service: Box<str>,
    /// `None` is every group.
    group: Option<GroupName>,
}

impl Import {
    /// Returns whether the service of that group is taken.
    pub fn matches(&self, service: &ServiceName, group: &GroupName) -> bool {
        self.group.as_ref().is_none_or(|own| own == group) && pattern_matches(&self.service, service.as_str())
    }
}

impl FromStr for Import {
    type Err = ImportError;

    fn from_str(text: &str) -> Result<Self, ImportError> {
        let shown = |text: &str| text.chars().take(80).collect();
        let (service, group) = text.split_once('@').ok_or_else(|| ImportError::Form(shown(text)))?;
        let may_be_in_a_name =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-*".contains(&byte);
        if service.is_empty() || service.len() > MAX_LABEL_BYTES || !service.bytes().all(may_be_in_a_name) {
            return Err(ImportError::Service(shown(service)));
        }
        let group = if group == "*" { None } else { Some(group.parse()?) };
        Ok(Self { service: service.into(), group })
    }
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.service, self.group.as_ref().map_or("*", GroupName::as_str))
    }
}

/// All patterns of a node, in the operator's order; empty takes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imports(pub Vec<Import>);

impl Imports {
    /// Returns the position of the first pattern that takes the service of that group.
    pub fn rank(&self, service: &ServiceName, group: &GroupName) -> Option<usize> {
        self.0.iter().position(|import| import.matches(service, group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(text: &str) -> Import {
        text.parse().expect(text)
    }

    fn takes(pattern: &str, service: &str, group: &str) -> bool {
        import(pattern).matches(&service.parse().expect("name"), &group.parse().expect("name"))
    }

    #[test]
    fn a_pattern_takes_what_it_names_and_nothing_else() {
        assert!(takes("orders@west", "orders", "west"));
        assert!(!takes("orders@west", "orders", "east"));
        assert!(!takes("orders@west", "orders-db", "west"));
        assert!(takes("*@shared", "anything", "shared"));
        assert!(takes("web-*@*", "web-1", "east"));
        assert!(!takes("web-*@*", "web", "east"));
    }

    #[test]
    fn faults_name_the_part_that_is_wrong() {
        let error = |text: &str| text.parse::<Import>().expect_err(text);
        assert!(matches!(error("orders"), ImportError::Form(_)));
        assert!(matches!(error("@west"), ImportError::Service(_)));
        assert!(matches!(error("Orders@west"), ImportError::Service(_)));
        assert!(matches!(error("a.b@west"), ImportError::Service(_)));
        assert!(matches!(error(&format!("{}@west", "a".repeat(64))), ImportError::Service(_)));
        assert!(matches!(error("orders@"), ImportError::Group(_)));
        assert!(matches!(error("orders@we*t"), ImportError::Group(_)));
        assert!(matches!(error("orders@west@east"), ImportError::Group(_)));
    }

    #[test]
    fn the_first_pattern_in_the_operators_order_ranks() {
        let imports = Imports(vec![import("orders@west"), import("*@east")]);
        let rank =
            |group: &str| imports.rank(&"orders".parse().expect("name"), &group.parse().expect("name"));
        assert_eq!((rank("west"), rank("east"), rank("north")), (Some(0), Some(1), None));
        assert_eq!(imports.0[1].to_string(), "*@east");
    }
}
