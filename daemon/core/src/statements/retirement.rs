//! Who would be cut off if a root were retired.
//!
//! Owns: the rule. Must not know: where what is known of the members comes from. Driven by: the daemon, before it
//! signs the retirement.

use std::collections::BTreeSet;

use gossamer_wire::NodeId;

use super::Standing;

/// A member, as it is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Digest of the statements it said it holds.
    pub digest: Option<[u8; 16]>,
    /// The issuer that signed its certificate; `None` where a root did, or no certificate is known.
    pub issuer: Option<NodeId>,
}

/// Why a member needs a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has not said that it holds the statements that name the other roots.
    Unaware,
    /// No other root stands behind the issuer of its certificate.
    Certificate,
}

/// A member that would be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dependent {
    /// The node.
    pub node: NodeId,
    /// The reason.
    pub why: Why,
}

impl Standing {
    /// Returns those of the members that live who would be cut off without a root. `digest` is that of all statements.
    pub fn dependents(
        &self,
        root: NodeId,
        digest: [u8; 16],
        members: impl IntoIterator<Item = Member>,
    ) -> Vec<Dependent> {
        let stays = |roots: &BTreeSet<NodeId>| roots.iter().any(|other| *other != root);
        let has_issuer =
            |issuer: NodeId| self.issuers.get(&issuer).is_some_and(|issuer| stays(&issuer.roots));
        let why = |member: &Member| {
            if member.digest != Some(digest) {
                Some(Why::Unaware)
            } else if !member.issuer.is_some_and(has_issuer) {
                Some(Why::Certificate)
            } else {
                None
            }
        };
        let depends = |member: Member| why(&member).map(|why| Dependent { node: member.node, why });
        members.into_iter().filter_map(depends).collect()
    }
}
