//! What is decided of an order before anything is signed.
//!
//! Owns: how long others are heard first, and which scopes of an issuer are refused. Must not know: keys, statements,
//! who gives orders. Driven by: the daemon's authority task.

use std::time::{Duration, Instant};

use gossamer_wire::GroupName;
use gossamer_wire::issuer::IssuerClaims;

/// How long after its start a node that knows others waits for a connection before it signs anything.
const LISTEN: Duration = Duration::from_secs(5);
/// How often it looks meanwhile whether somebody is connected.
const LOOK: Duration = Duration::from_millis(50);

/// How a node stands towards the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Company {
    /// When its process began.
    pub started: Instant,
    /// It remembers others of the mesh.
    pub knows_others: bool,
    /// Somebody is connected, so that each knows the statements of the other.
    pub is_connected: bool,
}

impl Company {
    /// Returns when to look again, while others must be heard first: the state directory could be an older copy, and two
    /// statements under one number end the powers of who signs. `None` when it may sign. Where nobody answers for a
    /// while everything may be off, and waits for this node.
    pub fn listens_until(self, now: Instant) -> Option<Instant> {
        let end = self.started + LISTEN;
        let must_listen = self.knows_others && !self.is_connected && now < end;
        must_listen.then(|| end.min(now + LOOK))
    }
}

/// Why a scope of an issuer is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScopeFault {
    /// The group of its own node is not in it: joiners believe an issuer by the certificate it made for itself.
    OwnGroup(GroupName),
    /// It has a wider one now: certificates it made for other groups would count no more.
    Narrower,
}

/// Judges the groups an issuer shall admit to, all when there are none. `own` is the group of its node where it is known,
/// `now` what its key may do now.
///
/// # Errors
/// The operator's fault; see [`ScopeFault`].
pub fn check_scope<'a>(
    groups: &[GroupName],
    own: Option<&GroupName>,
    mut now: impl Iterator<Item = &'a IssuerClaims>,
) -> Result<(), ScopeFault> {
    if groups.is_empty() {
        return Ok(());
    }
    if let Some(own) = own.filter(|own| !groups.contains(own)) {
        return Err(ScopeFault::OwnGroup(own.clone()));
    }
    let is_wider =
        |old: &IssuerClaims| old.groups.is_empty() || !old.groups.iter().all(|group| groups.contains(group));
    if now.any(is_wider) { Err(ScopeFault::Narrower) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use gossamer_wire::NodeId;

    use super::*;

    fn groups(names: &[&str]) -> Vec<GroupName> {
        names.iter().map(|name| name.parse().expect("name")).collect()
    }

    #[test]
    fn a_node_that_knows_others_signs_when_one_is_connected_or_none_has_come_for_five_seconds() {
        let started = Instant::now();
        let alone = Company { started, knows_others: true, is_connected: false };
        assert_eq!(alone.listens_until(started), Some(started + LOOK));
        let end = started + LISTEN;
        assert_eq!(alone.listens_until(end - LOOK / 2), Some(end), "it looks no later than it may sign");
        assert_eq!(alone.listens_until(end), None);
        let company = [Company { is_connected: true, ..alone }, Company { knows_others: false, ..alone }];
        assert!(company.iter().all(|company| company.listens_until(started).is_none()));
    }

    #[test]
    fn a_scope_holds_the_own_group_and_all_of_the_present_one() {
        let claims = |names: &[&str]| IssuerClaims {
            node: NodeId::from_bytes([1; 16]),
            name: "vm-b".parse().expect("name"),
            groups: groups(names),
        };
        let east: GroupName = "east".parse().expect("name");
        let check =
            |wanted: &[&str], now: &[IssuerClaims]| check_scope(&groups(wanted), Some(&east), now.iter());
        assert_eq!(check(&["east"], &[]), Ok(()));
        assert_eq!(check(&[], &[claims(&["east"])]), Ok(()), "all groups are no narrower scope");
        assert_eq!(check(&["west"], &[]), Err(ScopeFault::OwnGroup(east.clone())));
        assert_eq!(check(&["east"], &[claims(&[])]), Err(ScopeFault::Narrower));
        assert_eq!(check(&["east"], &[claims(&["east", "west"])]), Err(ScopeFault::Narrower));
        assert_eq!(check(&["east", "west"], &[claims(&["east"])]), Ok(()));
        assert_eq!(
            check_scope(&groups(&["west"]), None, [].iter()),
            Ok(()),
            "a node whose group is not known"
        );
    }
}
