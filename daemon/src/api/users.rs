//! The users of this machine: from names in the configuration and facts of the kernel to the policy.
//!
//! Owns: the only reading of users and groups of the system. Must not know: what who may do (`core::callers`).
//! Driven by: `app`, once, at the start: who enters a group later is an operator after the next one.

use std::fs;
use std::io;

use nix::unistd::{Group, User, geteuid};
use thiserror::Error;

use gossamer_core::callers::Policy;

use crate::config::Operator;

/// Why operators are not known. The operator's fault, or the system's; the daemon does not start.
#[derive(Debug, Error)]
pub enum OperatorsError {
    /// There is no such user or group.
    #[error("api.operators names {0}, which this machine does not have; create it, or write its number")]
    Unknown(Operator),
    /// The system could not say.
    #[error("api.operators names {name}, and the system cannot look it up: {error}; write its number")]
    System {
        /// Who was looked up.
        name: Operator,
        /// What it said.
        error: nix::Error,
    },
}

/// Makes the policy of this process. May block: the system may ask a directory server.
///
/// # Errors
/// See [`OperatorsError`].
pub fn policy_blocking(operators: &[Operator]) -> Result<Policy, OperatorsError> {
    let mut policy = Policy::of(geteuid().as_raw());
    let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    policy.unmapped = unmapped(fs::read_to_string("/proc/self/uid_map"), overflow.as_deref());
    for operator in operators {
        let failed = |error| OperatorsError::System { name: operator.clone(), error };
        let unknown = || OperatorsError::Unknown(operator.clone());
        match (operator, operator.number()) {
            (Operator::User(_), Some(uid)) => drop(policy.users.insert(uid)),
            (Operator::User(name), None) => {
                let user = User::from_name(name).map_err(failed)?.ok_or_else(unknown)?;
                policy.users.insert(user.uid.as_raw());
            }
            (Operator::Group(name), number) => {
                let found = match number {
                    Some(gid) => Group::from_gid(gid.into()),
                    None => Group::from_name(name),
                };
                let group = found.map_err(failed)?;
                let gid = group.as_ref().map(|group| group.gid.as_raw()).or(number).ok_or_else(unknown)?;
                policy.groups.insert(gid);
                // The kernel tells the main group of a caller only.
                for member in group.iter().flat_map(|group| &group.mem) {
                    policy
                        .users
                        .extend(User::from_name(member).map_err(failed)?.map(|user| user.uid.as_raw()));
                }
            }
        }
    }
    Ok(policy)
}

/// Returns the number of users that have none, where there are such: not all are mapped (user_namespaces(7)).
fn unmapped(map: io::Result<String>, overflow: Option<&str>) -> Option<u32> {
    let is_whole = match map {
        Ok(map) => map.split_whitespace().eq(["0", "0", "4294967295"]),
        // A kernel without user namespaces.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    (!is_whole).then(|| overflow.and_then(|text| text.trim().parse().ok()).unwrap_or(OVERFLOW_UID))
}

/// What the kernel begins with (`kernel.overflowuid`).
const OVERFLOW_UID: u32 = 65_534;

#[cfg(test)]
mod tests {
    use super::*;

    fn operators(names: &[&str]) -> Vec<Operator> {
        names.iter().map(|name| name.parse().expect("an operator")).collect()
    }

    #[test]
    fn root_and_the_own_user_need_no_name() {
        let policy = policy_blocking(&[]).expect("nothing to look up");
        assert!(policy.users.contains(&0) && policy.users.contains(&geteuid().as_raw()));
        assert!(policy.groups.is_empty());
    }

    #[test]
    fn names_and_numbers_are_users_and_groups() {
        let policy =
            policy_blocking(&operators(&["4000000001", "%4000000002", "root", "%root"])).expect("known");
        assert!(policy.users.contains(&4_000_000_001) && !policy.users.contains(&4_000_000_002));
        assert!(policy.groups.contains(&4_000_000_002) && policy.groups.contains(&0));
    }

    #[test]
    fn a_name_nobody_has_stops_the_start_and_is_named() {
        for name in ["no-such-user-here", "%no-such-group-here"] {
            let error = policy_blocking(&operators(&[name])).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains("write its number"), "{error}");
        }
    }

    #[test]
    fn only_a_whole_map_gives_every_user_a_number() {
        let map = |text: &str| Ok(text.to_owned());
        assert_eq!(unmapped(map("         0          0 4294967295\n"), Some("65534\n")), None);
        assert_eq!(unmapped(Err(io::ErrorKind::NotFound.into()), None), None);
        assert_eq!(unmapped(map("0 1000 1\n1 100000 65536\n"), Some("65533\n")), Some(65_533));
        assert_eq!(unmapped(map("0 100000 65536\n"), None), Some(65_534));
        assert_eq!(unmapped(Err(io::ErrorKind::PermissionDenied.into()), None), Some(65_534));
    }
}
