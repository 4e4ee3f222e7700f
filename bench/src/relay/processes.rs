//! What processes have used: processor time and memory, with all their children.
//!
//! Owns: reading `/proc`. Must not know: which processes those are. Driven by: the suite.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result};

/// Parent and clock ticks of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system, its own and of children that have ended and were waited for.
    ticks: u64,
}

/// Returns the processor time that processes and all their descendants have used, seconds.
///
/// # Errors
/// `/proc` is not readable.
pub(super) fn cpu(roots: &[u32]) -> Result<f64> {
    let all = all()?;
    let ticks: u64 = family(&all, roots).iter().filter_map(|id| all.get(id)).map(|stat| stat.ticks).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("clock ticks")?;
    Ok(ticks as f64 / per_second as f64)
}

/// Returns the memory that belongs to processes and all their descendants, what several share divided among them
/// (PSS), KiB.
///
/// # Errors
/// `/proc` is not readable.
pub(super) fn memory(roots: &[u32]) -> Result<f64> {
    let mut sum = 0.0;
    for id in family(&all()?, roots) {
        let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("Pss")?;
        sum += line.trim().trim_end_matches(" kB").parse::<f64>()?;
    }
    Ok(sum)
}

/// Returns processes and all their descendants.
///
/// # Errors
/// `/proc` is not readable.
pub(super) fn descendants(roots: &[u32]) -> Result<BTreeSet<u32>> {
    Ok(family(&all()?, roots))
}

fn all() -> Result<BTreeMap<u32, Stat>> {
    let ids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One may end while it is looked at.
    let read = |id: u32| Some((id, stat(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?));
    Ok(ids.filter_map(read).collect())
}

fn stat(text: &str) -> Option<Stat> {
    // The command, in brackets, may have spaces.
    let fields: Vec<_> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks })
}

fn family(all: &BTreeMap<u32, Stat>, roots: &[u32]) -> BTreeSet<u32> {
    let mut found: BTreeSet<u32> = roots.iter().copied().filter(|id| all.contains_key(id)).collect();
    loop {
        let before = found.len();
        found.extend(
            all.iter()
                .filter(|(_, stat)| found.contains(&stat.parent))
                .map(|(id, _)| *id)
                .collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_its_command() {
        let line =
            "7 (a b) c) S 3 7 7 0 -1 4194560 1 2 3 4 50 6 70 8 20 0 1 0 100 1000 10 18446744073709551615";
        assert_eq!(stat(line), Some(Stat { parent: 3, ticks: 134 }));
        assert_eq!(stat("7 (a"), None);
    }

    #[test]
    fn children_of_children_belong_to_it_and_others_do_not() {
        let all = [(1, 0), (5, 1), (2, 5), (9, 2), (3, 1)];
        let all = all.map(|(id, parent)| (id, Stat { parent, ticks: 1 })).into();
        assert_eq!(family(&all, &[5, 77]), BTreeSet::from([2, 5, 9]));
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let own = [std::process::id()];
        assert!(memory(&own).expect("readable") > 100.0);
        assert!(cpu(&own).expect("readable") >= 0.0);
    }
}
