//! Who may do what at the local API: the policy for the users of this machine (ADR 14).
//!
//! Owns: the order of rights, and whose a registration is. Must not know: sockets, names of users, routes.
//! Driven by: `api` (daemon), with what the kernel says of the other end of a connection; `register`, about owners.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

/// The user at the other end of a connection, as the kernel numbers it for the daemon (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its user id.
    pub uid: u32,
    /// Its group id; further groups of a process are not told.
    pub gid: u32,
}

/// What a request does, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Looks, resolves, calls services: every program of this machine can do as much by DNS and virtual addresses.
    Read,
    /// Registers a service, or withdraws one.
    Register,
    /// Changes who is trusted, or ends the daemon.
    Order,
}

/// Whose a registration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Of all operators alike. So are those of state files that name nobody.
    Operator,
    /// Of this user.
    User(u32),
}

/// The policy, made once at the start of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The daemon's own user.
    pub own: u32,
    /// Users who may do everything: root, the daemon's own, those of the configuration.
    pub users: BTreeSet<u32>,
    /// Groups whose members may do everything.
    pub groups: BTreeSet<u32>,
    /// The number that stands for every user without one in the daemon's user namespace; `None` where all have one.
    pub unmapped: Option<u32>,
}

/// Why a caller may not do what it asked for. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotAllowed {
    /// Only operators may.
    #[error(
        "user {uid} may not do this: it is for root, the daemon's user ({own}) and operators; run it with sudo, or \
         name the user in api.operators where the daemon runs and restart it"
    )]
    NoOperator {
        /// The caller.
        uid: u32,
        /// The daemon's user.
        own: u32,
    },
    /// Several users may stand behind the number.
    #[error(
        "the daemon cannot tell who asks: this user has no number in its user namespace ({uid} stands for all of \
         those), so it may only look; run the command inside that namespace, or map the user there"
    )]
    Unmapped {
        /// The number that stands for it.
        uid: u32,
    },
}

impl NotAllowed {
    /// Returns a word for counters.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NoOperator { .. } => "operator",
            Self::Unmapped { .. } => "unmapped",
        }
    }
}

impl Policy {
    /// Makes the policy of a daemon of this user: it and root may do everything.
    pub fn of(own: u32) -> Self {
        Self { own, users: BTreeSet::from([ROOT, own]), groups: BTreeSet::new(), unmapped: None }
    }

    /// Decides about a request. Returns whose a registration of this caller is.
    ///
    /// # Errors
    /// See [`NotAllowed`].
    pub fn admit(&self, caller: Caller, act: Act) -> Result<Owner, NotAllowed> {
        let Caller { uid, gid } = caller;
        // The daemon's own number comes first: it must be able to talk to itself, whatever its number is.
        let is_unmapped = self.unmapped == Some(uid) && uid != self.own;
        if !is_unmapped && (self.users.contains(&uid) || self.groups.contains(&gid)) {
            return Ok(Owner::Operator);
        }
        match act {
            Act::Read => Ok(Owner::User(uid)),
            Act::Register | Act::Order if is_unmapped => Err(NotAllowed::Unmapped { uid }),
            Act::Register => Ok(Owner::User(uid)),
            Act::Order => Err(NotAllowed::NoOperator { uid, own: self.own }),
        }
    }
}

impl Owner {
    /// Returns the owner that a state file names.
    pub const fn of(user: Option<u32>) -> Self {
        match user {
            Some(uid) => Self::User(uid),
            None => Self::Operator,
        }
    }

    /// Returns the user, if it is one.
    pub const fn user(self) -> Option<u32> {
        match self {
            Self::User(uid) => Some(uid),
            Self::Operator => None,
        }
    }

    /// Returns whether who has this standing may change or withdraw what belongs to `other`.
    pub fn may_change(self, other: Self) -> bool {
        self == Self::Operator || self == other
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("the operator"),
            Self::User(uid) => write!(f, "user {uid}"),
        }
    }
}

/// The user who may do everything on a machine, or in a user namespace.
const ROOT: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    const DAEMON: u32 = 990;
    const NOBODY: u32 = 65_534;

    fn policy() -> Policy {
        let mut policy = Policy::of(DAEMON);
        policy.users.insert(1_001);
        policy.groups.insert(27);
        policy
    }

    fn caller(uid: u32, gid: u32) -> Caller {
        Caller { uid, gid }
    }

    #[test]
    fn operators_do_everything_and_others_look_and_register() {
        let policy = policy();
        for operator in [caller(0, 0), caller(DAEMON, 5), caller(1_001, 5), caller(1_002, 27)] {
            for act in [Act::Read, Act::Register, Act::Order] {
                assert_eq!(policy.admit(operator, act), Ok(Owner::Operator), "{operator:?} {act:?}");
            }
        }
        let other = caller(1_002, 1_002);
        assert_eq!(policy.admit(other, Act::Read), Ok(Owner::User(1_002)));
        assert_eq!(policy.admit(other, Act::Register), Ok(Owner::User(1_002)));
        let refused = policy.admit(other, Act::Order).expect_err("an order");
        assert_eq!(refused, NotAllowed::NoOperator { uid: 1_002, own: DAEMON });
        let text = refused.to_string();
        assert!(
            text.contains("user 1002") && text.contains("(990)") && text.contains("api.operators"),
            "{text}"
        );
    }

    #[test]
    fn a_group_with_the_number_of_root_makes_no_operator() {
        assert_eq!(policy().admit(caller(1_002, 0), Act::Register), Ok(Owner::User(1_002)));
    }

    #[test]
    fn who_has_no_number_in_the_namespace_may_only_look() {
        let mut policy = policy();
        policy.unmapped = Some(NOBODY);
        // Neither does it help that the configuration names the number, or that its group is an operator's.
        policy.users.insert(NOBODY);
        let stranger = caller(NOBODY, 27);
        assert!(policy.admit(stranger, Act::Read).is_ok());
        for act in [Act::Register, Act::Order] {
            assert_eq!(policy.admit(stranger, act), Err(NotAllowed::Unmapped { uid: NOBODY }));
        }
        assert_eq!(policy.admit(caller(0, 0), Act::Order), Ok(Owner::Operator));
    }

    #[test]
    fn where_all_have_a_number_nobody_is_a_user_like_others() {
        assert_eq!(policy().admit(caller(NOBODY, NOBODY), Act::Register), Ok(Owner::User(NOBODY)));
    }

    #[test]
    fn a_daemon_that_runs_as_nobody_can_talk_to_itself() {
        let policy = Policy { unmapped: Some(NOBODY), ..Policy::of(NOBODY) };
        assert_eq!(policy.admit(caller(NOBODY, NOBODY), Act::Order), Ok(Owner::Operator));
    }

    #[test]
    fn a_registration_is_changed_by_its_user_and_by_operators() {
        let (one, two) = (Owner::User(1), Owner::User(2));
        assert!(one.may_change(one) && !one.may_change(two) && !one.may_change(Owner::Operator));
        assert!(Owner::Operator.may_change(one) && Owner::Operator.may_change(Owner::Operator));
        assert_eq!(Owner::of(None), Owner::Operator);
        assert_eq!(Owner::of(one.user()), one);
    }
}
