//! Who asks for a service, and the rules by which an exporter admits callers.
//!
//! Owns: the text of a rule, which is also its form in records, and the match. Must not know: what holds where no rule
//! does, services. Driven by: records, command line, the access core of the daemon.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::MAX_LABEL_BYTES;
use crate::text::by_text;
use crate::token::pattern_matches;
use crate::{GroupName, IdError, Label, NameError, NodeId, NodeName};

/// Who asks, as its certificate says; `None` where that is not known, which no rule matches.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its group.
    pub group: &'a GroupName,
    /// The node.
    pub node: Option<NodeId>,
    /// Its name.
    pub name: Option<&'a NodeName>,
    /// Labels that its issuer vouches for.
    pub labels: Option<&'a BTreeMap<Label, Label>>,
}

impl<'a> Subject<'a> {
    /// Makes somebody of whom only the group is known.
    pub const fn of_group(group: &'a GroupName) -> Self {
        Self { group, node: None, name: None, labels: None }
    }
}

/// One rule: `group:west`, `node:web-*`, `id:NODEID` or `label:team=shop`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rule {
    /// Nodes of this group.
    Group(GroupName),
    /// Nodes with such a name, of whatever group.
    Node(NodePattern),
    /// This node.
    Id(NodeId),
    /// Nodes whose certificate has this label.
    Label(Label, Label),
}

/// A pattern of node names: `*` stands for any run of characters, also none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePattern(Box<str>);

/// Why a text is not a rule. The writer's fault; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// No known word before a colon.
    #[error("{0:?} is no rule: write group:NAME, node:PATTERN, id:NODEID or label:KEY=VALUE")]
    Form(String),
    /// What stands behind `node:` can be no name, whatever `*` stands for.
    #[error("{0:?} is no pattern of node names: use a-z, 0-9, `-` and `*`, at most 63 characters")]
    Pattern(String),
    /// What stands behind `label:` is no pair.
    #[error("{0:?} is no label: write label:KEY=VALUE, as in `gossamer token create --label KEY=VALUE`")]
    Pair(String),
    /// What stands behind `id:` is no id.
    #[error("{0}; gossamer nodes --json shows ids")]
    Id(#[from] IdError),
    /// A name is wrong.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Rule {
    /// Returns whether the rule names this caller.
    pub fn matches(&self, caller: &Subject<'_>) -> bool {
        match self {
            Self::Group(group) => group == caller.group,
            Self::Node(pattern) => caller.name.is_some_and(|name| pattern_matches(&pattern.0, name.as_str())),
            Self::Id(node) => caller.node == Some(*node),
            Self::Label(key, value) => caller.labels.and_then(|labels| labels.get(key)) == Some(value),
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let shown = |text: &str| text.chars().take(80).collect::<String>();
        Ok(match text.split_once(':') {
            Some(("group", name)) => Self::Group(name.parse()?),
            Some(("node", pattern)) => {
                let may_be_in_a_name =
                    |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-*".contains(&byte);
                let is_empty = pattern.is_empty() || pattern.len() > MAX_LABEL_BYTES;
                if is_empty || !pattern.bytes().all(may_be_in_a_name) {
                    return Err(RuleError::Pattern(shown(pattern)));
                }
                Self::Node(NodePattern(pattern.into()))
            }
            Some(("id", id)) => Self::Id(id.parse()?),
            Some(("label", pair)) => {
                let (key, value) = pair.split_once('=').ok_or_else(|| RuleError::Pair(shown(pair)))?;
                Self::Label(key.parse()?, value.parse()?)
            }
            _ => return Err(RuleError::Form(shown(text))),
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => write!(f, "group:{group}"),
            Self::Node(pattern) => write!(f, "node:{}", pattern.0),
            Self::Id(node) => write!(f, "id:{node}"),
            Self::Label(key, value) => write!(f, "label:{key}={value}"),
        }
    }
}

by_text!(Rule, RuleError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_callers_by_what_is_certified_of_them() {
        let label = |text: &str| text.parse::<Label>().expect("a label");
        let (group, name) = ("west".parse().expect("name"), "web-1".parse().expect("name"));
        let node = NodeId::from_bytes([7; 16]);
        let labels = BTreeMap::from([(label("team"), label("shop"))]);
        let caller = Subject { group: &group, node: Some(node), name: Some(&name), labels: Some(&labels) };
        let id = format!("id:{node}");
        let other = format!("id:{}", NodeId::from_bytes([8; 16]));
        for (rule, names_it, names_its_group) in [
            ("group:west", true, true),
            ("group:east", false, false),
            ("node:web-*", true, false),
            ("node:*", true, false),
            ("node:web", false, false),
            (id.as_str(), true, false),
            (other.as_str(), false, false),
            ("label:team=shop", true, false),
            ("label:team=bank", false, false),
            ("label:shop=team", false, false),
        ] {
            let parsed: Rule = rule.parse().expect(rule);
            assert_eq!(parsed.to_string(), rule);
            assert_eq!(parsed.matches(&caller), names_it, "{rule}");
            assert_eq!(parsed.matches(&Subject::of_group(&group)), names_its_group, "{rule}");
        }
    }

    #[test]
    fn faults_name_the_part_that_is_wrong() {
        for (text, words) in [
            ("", "group:NAME"),
            ("west", "group:NAME"),
            ("role:relay", "group:NAME"),
            ("group:", "empty"),
            ("group:We", "a-z"),
            ("node:", "pattern of node names"),
            ("node:a.b", "pattern of node names"),
            ("id:abc", "26 characters"),
            ("label:team", "label:KEY=VALUE"),
            ("label:=shop", "empty"),
        ] {
            let error = text.parse::<Rule>().expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let long = format!("node:{}", "a".repeat(MAX_LABEL_BYTES + 1));
        assert!(matches!(long.parse::<Rule>(), Err(RuleError::Pattern(_))));
    }
}
