//! Access: who may call what this node exports, judged on the certified identity of the node at the other end.
//!
//! Owns: the order of the rules, what audit means, what the record of a service tells others. Must not know: sockets,
//! flows, where rules are kept. Driven by: the relay, before each dial and again when rules have changed; `register`,
//! for records; the local API, which explains (design section 11).
//!
//! Nothing here depends on what was replicated: records only let others hide names that they may not call.

mod denials;

use std::fmt;

use gossamer_wire::limits::MAX_VISIBLE_RULES;
use gossamer_wire::{GroupName, Rule, Subject, Visibility};

pub use denials::{BURST, Denials, REFILL_EVERY};

/// Who is admitted where nothing that was said about a service names the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// The node's own group.
    #[default]
    Group,
    /// Nobody.
    Deny,
}

/// What holds for everything a node exports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Who is admitted without a word.
    pub base: Base,
    /// Who would be denied is admitted, and told of.
    pub audit: bool,
}

/// Who may call one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// What `--to` said.
    pub visibility: Visibility,
    /// What `--allow` said, in its order.
    pub allow: Vec<Rule>,
    /// What holds for the whole node.
    pub policy: Policy,
}

/// The decision, with what decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It may call.
    Allowed(Ground<'a>),
    /// It may call, and only because of `policy.audit`.
    Audited(Ground<'a>),
    /// It may not.
    Denied(Ground<'a>),
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground<'a> {
    /// The caller is of the exporter's group.
    Own,
    /// `--to all`.
    All,
    /// `--to` names the caller's group.
    To(&'a GroupName),
    /// A rule names the caller.
    Allow(&'a Rule),
    /// Nothing names it, and only the own group is admitted without a word.
    Unnamed,
    /// Nothing names it, and nobody is admitted without a word.
    Default,
}

impl Verdict<'_> {
    /// Returns whether the call goes on.
    pub const fn admits(&self) -> bool {
        matches!(self, Self::Allowed(_) | Self::Audited(_))
    }

    /// Returns `allowed`, `audited` or `denied`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Allowed(_) => "allowed",
            Self::Audited(_) => "audited",
            Self::Denied(_) => "denied",
        }
    }

    /// Returns what decided, in words.
    pub fn ground(&self) -> String {
        let (Self::Allowed(ground) | Self::Audited(ground) | Self::Denied(ground)) = self;
        ground.to_string()
    }
}

impl Access {
    /// Decides about a call of `caller` to a service of a node of group `exporter`. What names the caller is looked for in
    /// the order own group, `--to`, `--allow`; any of it admits.
    pub fn judge(&self, exporter: &GroupName, caller: &Subject<'_>) -> Verdict<'_> {
        if let Some(ground) = self.named(exporter, caller) {
            return Verdict::Allowed(ground);
        }
        let ground = match self.policy.base {
            Base::Group => Ground::Unnamed,
            Base::Deny => Ground::Default,
        };
        if self.policy.audit { Verdict::Audited(ground) } else { Verdict::Denied(ground) }
    }

    fn named(&self, exporter: &GroupName, caller: &Subject<'_>) -> Option<Ground<'_>> {
        let is_own = caller.group == exporter;
        let own = (self.policy.base == Base::Group && is_own).then_some(Ground::Own);
        let to = || match &self.visibility {
            Visibility::All => Some(Ground::All),
            Visibility::Groups(groups) => groups.iter().find(|group| *group == caller.group).map(Ground::To),
            Visibility::Rules { own: true, .. } if is_own => Some(Ground::Own),
            Visibility::Rules { rules, .. } => {
                rules.iter().find(|rule| rule.matches(caller)).map(Ground::Allow)
            }
            Visibility::Own => None,
        };
        let allow = || self.allow.iter().find(|rule| rule.matches(caller)).map(Ground::Allow);
        own.or_else(to).or_else(allow)
    }

    /// Returns what the record of the service says: whom the rules name. While `policy.audit` lets everybody in, names
    /// are shown as if there were no `policy.default`, so that who would be denied by it still calls.
    pub fn published(&self) -> Visibility {
        let is_plain = self.policy.base == Base::Group || self.policy.audit;
        if self.visibility == Visibility::All || is_plain && self.allow.is_empty() {
            return self.visibility.clone();
        }
        self.rules(is_plain)
    }

    /// Returns the longest thing that [`Self::published`] returns under any policy, to see that it fits a record.
    pub fn longest(&self) -> Visibility {
        if self.visibility == Visibility::All { Visibility::All } else { self.rules(false) }
    }

    fn rules(&self, is_own_admitted: bool) -> Visibility {
        let (own, named) = match &self.visibility {
            Visibility::Groups(groups) => (false, groups.iter().cloned().map(Rule::Group).collect()),
            Visibility::Rules { own, rules } => (*own, rules.clone()),
            Visibility::Own | Visibility::All => (false, Vec::new()),
        };
        let mut rules: Vec<_> = named.into_iter().chain(self.allow.iter().cloned()).collect();
        rules.sort();
        rules.dedup();
        Visibility::Rules { own: own || is_own_admitted, rules }
    }
}

impl fmt::Display for Ground<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("it is of this node's group"),
            Self::All => f.write_str("--to all"),
            Self::To(group) => write!(f, "--to names group {group}"),
            Self::Allow(rule) => write!(f, "--allow {rule}"),
            Self::Unnamed => f.write_str("it is of another group, and neither --to nor --allow names it"),
            Self::Default => f.write_str("policy.default is deny, and neither --to nor --allow names it"),
        }
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed(ground) => write!(f, "allowed: {ground}"),
            Self::Audited(ground) => write!(f, "allowed by policy.audit, else denied: {ground}"),
            Self::Denied(ground) => write!(f, "denied: {ground}"),
        }
    }
}

impl Base {
    /// Returns the word of the configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Deny => "deny",
        }
    }
}

/// Most rules of `--allow`: with the groups of `--to` they must fit [`MAX_VISIBLE_RULES`].
pub const MAX_ALLOW: usize = MAX_VISIBLE_RULES;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gossamer_wire::{Label, NodeId, NodeName};

    use super::*;

    fn group(text: &str) -> GroupName {
        text.parse().expect("name")
    }

    /// A node of a group.
    struct Node(GroupName, NodeName, BTreeMap<Label, Label>);

    impl Node {
        fn of(group: &str, name: &str) -> Self {
            let label = |text: &str| text.parse().expect("a label");
            let labels = BTreeMap::from([(label("team"), label("shop"))]);
            Self(self::group(group), name.parse().expect("name"), labels)
        }

        fn subject(&self) -> Subject<'_> {
            let node = Some(NodeId::from_bytes([7; 16]));
            Subject { group: &self.0, node, name: Some(&self.1), labels: Some(&self.2) }
        }
    }

    fn access(visibility: Visibility, allow: &[&str], policy: Policy) -> Access {
        let allow = allow.iter().map(|text| text.parse().expect(text)).collect();
        Access { visibility, allow, policy }
    }

    const DENY: Policy = Policy { base: Base::Deny, audit: false };
    const GROUP: Policy = Policy { base: Base::Group, audit: false };

    fn to(groups: &[&str]) -> Visibility {
        Visibility::Groups(groups.iter().map(|text| group(text)).collect())
    }

    #[test]
    fn the_first_thing_that_names_a_caller_admits_it_and_else_the_default_decides() {
        let (own, other) = (Node::of("east", "a"), Node::of("west", "web-1"));
        let east = group("east");
        for (visibility, allow, policy, caller, verdict) in [
            (Visibility::Own, &[][..], GROUP, &own, "allowed: it is of this node's group"),
            (Visibility::Own, &[], GROUP, &other, "denied: it is of another group"),
            (to(&["west"]), &[], GROUP, &other, "allowed: --to names group west"),
            (to(&["north"]), &[], GROUP, &other, "denied: it is of another group"),
            (Visibility::All, &[], GROUP, &other, "allowed: --to all"),
            (Visibility::Own, &["node:web-*"], GROUP, &other, "allowed: --allow node:web-*"),
            (Visibility::Own, &["node:db-*", "label:team=shop"], GROUP, &other, "allowed: --allow label:"),
            (Visibility::Own, &["node:db-*"], GROUP, &own, "allowed: it is of this node's group"),
            (Visibility::Own, &[], DENY, &own, "denied: policy.default is deny"),
            (Visibility::Own, &["node:a"], DENY, &own, "allowed: --allow node:a"),
            (Visibility::Own, &["node:a"], DENY, &other, "denied: policy.default is deny"),
            (to(&["west"]), &[], DENY, &other, "allowed: --to names group west"),
            (to(&["west"]), &[], DENY, &own, "denied: policy.default is deny"),
            (to(&["east"]), &[], DENY, &own, "allowed: --to names group east"),
            (Visibility::All, &[], DENY, &own, "allowed: --to all"),
        ] {
            let access = access(visibility, allow, policy);
            let words = access.judge(&east, &caller.subject()).to_string();
            assert!(words.starts_with(verdict), "{access:?}: {words}");
        }
    }

    #[test]
    fn audit_admits_everybody_and_says_who_would_be_denied() {
        let (own, other) = (Node::of("east", "a"), Node::of("west", "web-1"));
        for (base, caller) in [(Base::Deny, &own), (Base::Group, &other)] {
            let access = access(Visibility::Own, &[], Policy { base, audit: true });
            let east = group("east");
            let verdict = access.judge(&east, &caller.subject());
            assert!(matches!(verdict, Verdict::Audited(_)) && verdict.admits(), "{verdict}");
        }
        let access = access(Visibility::Own, &[], Policy { base: Base::Group, audit: true });
        assert_eq!(access.judge(&group("east"), &own.subject()), Verdict::Allowed(Ground::Own));
    }

    #[test]
    fn a_record_names_exactly_those_whom_the_rules_admit() {
        let callers = [Node::of("east", "a"), Node::of("west", "web-1"), Node::of("north", "db-1")];
        let visibilities = [Visibility::Own, to(&["west"]), to(&["east"]), Visibility::All];
        for visibility in visibilities {
            for allow in [&[][..], &["group:west"], &["node:db-*", "node:a"], &["label:team=shop"]] {
                for policy in [GROUP, DENY] {
                    let access = access(visibility.clone(), allow, policy);
                    let (east, published) = (group("east"), access.published());
                    for caller in &callers {
                        let is_admitted = access.judge(&east, &caller.subject()).admits();
                        let is_shown = published.admits(&east, &caller.subject());
                        assert_eq!(is_shown, is_admitted, "{access:?} {published:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn while_audited_a_name_is_as_visible_as_without_the_default() {
        let access = access(to(&["west"]), &[], Policy { base: Base::Deny, audit: true });
        assert_eq!(access.published(), to(&["west"]));
        assert_eq!(
            access.longest(),
            Visibility::Rules { own: false, rules: vec![Rule::Group(group("west"))] }
        );
    }
}
