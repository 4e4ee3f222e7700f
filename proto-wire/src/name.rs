//! Names: one LDH label each, parsed once at the border and valid ever after; longer names and their suffixes.
//!
//! Owns: the grammar of service, group, node, instance, port, zone, region and mesh names, of FQDNs and of suffixes.
//! Must not know: DNS packets, which names exist. Driven by: configuration, command line, decoders.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::NameError;
use crate::limits::{MAX_FQDN_BYTES, MAX_FQDN_LABELS, MAX_LABEL_BYTES};
use crate::text::by_text;

/// Names no service, group or node may have: they are words of the zone's own grammar.
const RESERVED: [&str; 2] = ["node", "direct"];

/// A DNS label: 1..=63 bytes of `a-z 0-9 -`, no hyphen at either end (RFC 1123 2.1). Always lower case. Clones
/// share the text: a service is named in many places.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(Arc<str>);

impl Label {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        parse(text, "label", &[])
    }
}

fn parse(text: &str, what: &'static str, reserved: &[&str]) -> Result<Label, NameError> {
    let error = |why| Err(NameError { what, text: text.chars().take(80).collect(), why });
    if text.is_empty() {
        return error("it is empty");
    }
    if text.len() > MAX_LABEL_BYTES {
        return error("it is longer than 63 characters");
    }
    if text.contains('.') {
        return error("it must be one DNS label, without dots");
    }
    if text.starts_with('_') {
        return error("names that start with `_` are reserved");
    }
    if !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return error("use only a-z, 0-9 and `-`");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return error("it must not begin or end with `-`");
    }
    if reserved.contains(&text) {
        return error("the word is reserved for the mesh zone; choose another");
    }
    Ok(Label(text.into()))
}

macro_rules! text_traits {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        by_text!($name, NameError);
    };
}

text_traits!(Label);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Label);

        impl $name {
            /// Returns the text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                parse(text, $what, $reserved).map(Self)
            }
        }

        text_traits!($name);
    };
}

name!(
    /// A name that clients call, for example `orders-db`.
    ServiceName, "service name", &RESERVED
);
name!(
    /// A named set of nodes whose services share a scope: a Kubernetes cluster, a VNET, a site.
    GroupName, "group name", &RESERVED
);
name!(
    /// The name of a node, unique in its group by convention; the id is what identifies it.
    NodeName, "node name", &RESERVED
);
name!(
    /// One registered provider of a service on a node; the node's name unless given.
    InstanceName, "instance name", &[]
);
name!(
    /// A port of a service; an unnamed port is named by its number.
    PortName, "port name", &[]
);
name!(
    /// A small failure domain.
    ZoneName, "zone name", &[]
);
name!(
    /// A large failure domain.
    RegionName, "region name", &[]
);
name!(
    /// The display name of a mesh; its identity is the mesh id.
    MeshName, "mesh name", &[]
);

/// Longest suffix, bytes: as text a DNS name has 253 (RFC 1035 2.3.4), and one label with its dot stands before it.
const MAX_SUFFIX_BYTES: usize = 251;

/// The end of fully qualified names, for example `corp.example`: labels with dots between them, at least one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FqdnSuffix(Arc<str>);

impl FqdnSuffix {
    /// Returns the text, without dots at its ends.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether a lower-case name, or a wildcard, lies below the suffix. The suffix itself does not.
    pub fn holds(&self, name: &str) -> bool {
        name.strip_suffix(&*self.0).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl FromStr for FqdnSuffix {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let what = "FQDN suffix";
        let error = |why| NameError { what, text: text.chars().take(80).collect(), why };
        if text.starts_with('.') || text.ends_with('.') {
            return Err(error("write it without dots at its ends, for example corp.example"));
        }
        if text.len() > MAX_SUFFIX_BYTES {
            return Err(error("no name could stand before it: it is longer than 251 characters"));
        }
        text.split('.')
            .try_for_each(|label| parse(label, what, &[]).map(drop))
            .map_err(|fault| error(fault.why))?;
        Ok(Self(text.into()))
    }
}

text_traits!(FqdnSuffix);

/// A name outside the mesh zones that a service wants to be called by: a host name such as `login.example.com`, or
/// `*.example.com` for every name below `example.com`. Always lower case, without a last dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fqdn(Arc<str>);

impl Fqdn {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether it stands for every name below its base.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(WILDCARD)
    }

    /// Returns the host name without the `*.` of a wildcard.
    pub fn base(&self) -> &str {
        self.0.strip_prefix(WILDCARD).unwrap_or(&self.0)
    }
}

const WILDCARD: &str = "*.";

impl FromStr for Fqdn {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let what = "FQDN";
        let error = |why| NameError { what, text: text.chars().take(80).collect(), why };
        if text.ends_with('.') {
            return Err(error("write it without the last dot"));
        }
        if text.len() > MAX_FQDN_BYTES {
            return Err(error("it is longer than 253 characters"));
        }
        let base = text.strip_prefix(WILDCARD).unwrap_or(text);
        if base.contains('*') {
            return Err(error("`*` may only be the whole first label, as in *.example.com"));
        }
        base.split('.')
            .try_for_each(|label| parse(label, what, &[]).map(drop))
            .map_err(|fault| error(fault.why))?;
        match text.split('.').count() {
            0 | 1 => Err(error("it has one label only; write the whole name, for example login.example.com")),
            labels if labels > MAX_FQDN_LABELS => Err(error("it has more than 16 labels")),
            _ => Ok(Self(text.into())),
        }
    }
}

text_traits!(Fqdn);

impl InstanceName {
    /// Returns the least name there is: where a range of instances begins.
    pub fn least() -> Self {
        Self(Label("0".into()))
    }
}

impl From<&NodeName> for InstanceName {
    fn from(node: &NodeName) -> Self {
        Self(node.0.clone())
    }
}

impl From<u16> for PortName {
    fn from(number: u16) -> Self {
        Self(Label(number.to_string().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_letters_digits_and_hyphens_are_names() {
        for text in ["a", "orders-db", "0", "x1-2", &"a".repeat(63)] {
            assert_eq!(text.parse::<ServiceName>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn everything_else_is_refused_with_the_rule_it_breaks() {
        let cases = [
            ("", "empty"),
            ("a.b", "dots"),
            ("Orders", "a-z"),
            ("-a", "begin or end"),
            ("a-", "begin or end"),
            ("_tcp", "reserved"),
            ("node", "reserved"),
            ("direct", "reserved"),
            ("caf\u{e9}", "a-z"),
            ("a b", "a-z"),
        ];
        for (text, rule) in cases {
            let error = text.parse::<ServiceName>().expect_err(text).to_string();
            assert!(error.contains(rule), "{error} should mention {rule}");
        }
        assert!("a".repeat(64).parse::<ServiceName>().is_err());
    }

    #[test]
    fn instances_may_use_words_that_are_reserved_for_services() {
        assert!("node".parse::<InstanceName>().is_ok());
        assert_eq!("0".parse::<InstanceName>().expect("name"), InstanceName::least());
        assert!("node".parse::<GroupName>().is_err());
        assert_eq!(PortName::from(5432).as_str(), "5432");
    }

    #[test]
    fn a_suffix_is_labels_with_dots_between_them() {
        for text in ["corp", "corp.example", "a.b.c-d.0", &format!("a.{}", "b".repeat(63))] {
            assert_eq!(text.parse::<FqdnSuffix>().map(|suffix| suffix.to_string()), Ok(text.to_owned()));
        }
        let long = ["a"; 127].join(".");
        let cases = [
            ("", "empty"),
            (".corp", "without dots"),
            ("corp.", "without dots"),
            ("a..b", "empty"),
            ("Corp.example", "a-z"),
            ("*.corp", "a-z"),
            ("_tcp.corp", "reserved"),
            (&long, "251"),
        ];
        for (text, rule) in cases {
            let error = text.parse::<FqdnSuffix>().expect_err(text).to_string();
            assert!(error.contains(rule) && error.contains("FQDN suffix"), "{error} should mention {rule}");
        }
        let bytes = crate::codec::encode("test", "not a suffix", 64).expect("short");
        assert!(crate::codec::decode::<FqdnSuffix>("test", &bytes, 64).is_err());
    }

    #[test]
    fn an_fqdn_is_a_host_name_or_a_wildcard_before_one() {
        let most = ["a"; MAX_FQDN_LABELS].join(".");
        for text in ["login.example.com", "*.debian.org", "*.test", "a.b", &most] {
            assert_eq!(text.parse::<Fqdn>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
        let cases = [
            ("", "empty"),
            ("login", "one label"),
            ("*", "may only be"),
            ("a.*.b", "may only be"),
            ("*.*.b", "may only be"),
            ("a*.b", "may only be"),
            ("login.example.com.", "last dot"),
            ("*.", "last dot"),
            (".example.com", "empty"),
            ("Login.example.com", "a-z"),
            ("_sip.example.com", "reserved"),
            (&format!("a.{most}"), "16 labels"),
            (&["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join("."), "253"),
        ];
        for (text, rule) in cases {
            let error = text.parse::<Fqdn>().expect_err(text).to_string();
            assert!(error.contains(rule) && error.contains("FQDN"), "{error} should mention {rule}");
        }
        let wildcard: Fqdn = "*.example.com".parse().expect("valid");
        assert!(wildcard.is_wildcard() && wildcard.base() == "example.com");
    }

    #[test]
    fn a_suffix_holds_what_is_below_it_at_a_label_boundary() {
        let suffix: FqdnSuffix = "example.com".parse().expect("valid");
        for (name, is_held) in [
            ("login.example.com", true),
            ("a.b.example.com", true),
            ("*.example.com", true),
            ("example.com", false),
            (".example.com", false),
            ("badexample.com", false),
            ("example.com.evil", false),
            ("com", false),
        ] {
            assert_eq!(suffix.holds(name), is_held, "{name}");
        }
    }

    #[test]
    fn a_decoded_name_is_checked_like_a_parsed_one() {
        let bytes = crate::codec::encode("test", &"Not A Label", 64).expect("short");
        assert!(crate::codec::decode::<ServiceName>("test", &bytes, 64).is_err());
    }
}
