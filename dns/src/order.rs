//! The order of answers: nearest first, equal ones take turns.
//!
//! Owns: order and number of instances and addresses. Must not know: records, names.
//! Driven by: `answer`, with the rotation of one question.

use std::net::IpAddr;

use crate::InstanceEntry;

/// Most addresses under a direct or node name. Clients try a few at most, and eight fit any datagram.
pub(crate) const MAX_ADDRESSES: usize = 8;

/// Keeps the usable instances, nearest first; `rotation` turns each run of equally near ones.
pub(crate) fn usable(mut instances: Vec<InstanceEntry>, rotation: u32) -> Vec<InstanceEntry> {
    instances.retain(|instance| instance.usable);
    instances.sort_by_key(|instance| instance.nearness);
    for run in instances.chunk_by_mut(|a, b| a.nearness == b.nearness) {
        run.rotate_left(rotation as usize % run.len());
    }
    instances
}

/// Takes the first [`MAX_ADDRESSES`] different addresses of one family.
pub(crate) fn addresses<'a>(all: impl IntoIterator<Item = &'a IpAddr>, family: Family) -> Vec<IpAddr> {
    let mut taken = Vec::new();
    for address in all {
        if taken.len() == MAX_ADDRESSES {
            break;
        }
        if address.is_ipv4() == (family == Family::V4) && !taken.contains(address) {
            taken.push(*address);
        }
    }
    taken
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4, type A.
    V4,
    /// IPv6, type AAAA.
    V6,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::instance;

    fn names(instances: &[InstanceEntry]) -> Vec<&str> {
        instances.iter().map(|instance| instance.instance.as_str()).collect()
    }

    fn near(name: &str, nearness: u8, usable: bool) -> InstanceEntry {
        InstanceEntry { nearness, usable, ..instance("orders", "west", name) }
    }

    #[test]
    fn the_nearest_come_first_and_unusable_ones_not_at_all() {
        let all = vec![near("far", 3, true), near("dead", 0, false), near("here", 0, true)];
        assert_eq!(names(&usable(all, 0)), ["here", "far"]);
    }

    #[test]
    fn only_equally_near_instances_take_turns() {
        let all = || vec![near("a", 1, true), near("b", 1, true), near("c", 1, true), near("z", 2, true)];
        assert_eq!(names(&usable(all(), 0)), ["a", "b", "c", "z"]);
        assert_eq!(names(&usable(all(), 1)), ["b", "c", "a", "z"]);
        assert_eq!(names(&usable(all(), 5)), ["c", "a", "b", "z"]);
        assert_eq!(names(&usable(all(), u32::MAX)), ["a", "b", "c", "z"]);
    }

    #[test]
    fn nothing_stays_nothing() {
        assert_eq!(usable(Vec::new(), 7), Vec::new());
    }

    #[test]
    fn addresses_are_eight_at_most_of_one_family_and_each_once() {
        let mut all: Vec<IpAddr> = (0..20).map(|last| IpAddr::from([10, 0, 0, last / 2])).collect();
        all.insert(0, "fd00::1".parse().expect("valid"));
        let four = addresses(&all, Family::V4);
        assert_eq!(four.len(), MAX_ADDRESSES);
        assert_eq!(four.last(), Some(&IpAddr::from([10, 0, 0, 7])));
        assert_eq!(addresses(&all, Family::V6).len(), 1);
    }
}
