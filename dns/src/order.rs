//! The order of answers: nearest first, equal ones in a random order.
//!
//! Owns: order and number of instances and addresses. Must not know: records, names.
//! Driven by: `answer`, with the rotation of one question. Why random: `docs/adr/0020-random-among-equals.md`.

use std::net::IpAddr;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::InstanceEntry;

/// Most addresses under a direct or node name. Clients try a few at most, and eight fit any datagram.
pub(crate) const MAX_ADDRESSES: usize = 8;

/// Most records of one SRV answer. With names of usual length (owner and target 115 bytes together) so many fit
/// the 64 KiB of a TCP message, beyond which there is nothing to turn to.
pub(crate) const MAX_SERVICES: usize = 500;

/// Keeps the usable instances, nearest first. `rotation` seeds the order of equally near ones: each comes first
/// equally often, and so does each of any prefix. 0 keeps the order they came in, for people.
pub(crate) fn usable(mut instances: Vec<InstanceEntry>, rotation: u32) -> Vec<InstanceEntry> {
    instances.retain(|instance| instance.usable);
    instances.sort_by_key(|instance| instance.nearness);
    if rotation != 0 {
        let mut random = SmallRng::seed_from_u64(rotation.into());
        for run in instances.chunk_by_mut(|a, b| a.nearness == b.nearness) {
            run.shuffle(&mut random);
        }
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
    use std::collections::BTreeMap;

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
    fn only_equally_near_instances_change_places() {
        let all = || vec![near("a", 1, true), near("b", 1, true), near("c", 1, true), near("z", 2, true)];
        assert_eq!(names(&usable(all(), 0)), ["a", "b", "c", "z"]);
        for rotation in 0..100 {
            let ordered = usable(all(), rotation);
            assert_eq!(names(&ordered).last(), Some(&"z"));
            assert_eq!(ordered, usable(all(), rotation), "one rotation, one order");
        }
    }

    #[test]
    fn each_of_three_equal_ones_is_first_in_a_third_of_the_answers_and_second_to_each_other() {
        let all = || vec![near("a", 1, true), near("b", 1, true), near("c", 1, true)];
        let mut firsts = BTreeMap::new();
        for rotation in 1..=3_000 {
            let ordered = usable(all(), rotation);
            *firsts.entry(names(&ordered)[..2].join(" ")).or_insert(0) += 1;
        }
        assert_eq!(firsts.len(), 6, "who follows is no fixed neighbour");
        for name in ["a", "b", "c"] {
            let count: i32 = firsts.iter().filter(|pair| pair.0.starts_with(name)).map(|pair| pair.1).sum();
            assert!((840..=1_140).contains(&count), "{name} was first {count} times of 3,000");
        }
    }

    #[test]
    fn each_of_many_is_among_the_first_few_equally_often() {
        let all: Vec<_> = (0..60).map(|number| near(&format!("i{number}"), 1, true)).collect();
        let mut counts = BTreeMap::new();
        for rotation in 1..=3_000 {
            for instance in usable(all.clone(), rotation).iter().take(12) {
                *counts.entry(instance.instance.as_str().to_owned()).or_insert(0) += 1;
            }
        }
        assert_eq!(counts.len(), 60);
        assert!(counts.values().all(|count| (450..=750).contains(count)), "600 each: {counts:?}");
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
