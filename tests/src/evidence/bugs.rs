//! Planted bugs: each is one patch that a test of the tree must catch.
//!
//! Owns: which patch which test must catch. Must not know: why a bug is one; each patch says so.
//! Driven by: `evidence`.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Ci, Needs, Row, Run};
use crate::planted::Worktree;
use crate::promise;

pub(super) const ROW: Row = Row {
    name: "3.4-planted",
    promise: "13 planted bugs of membership, replication and storage are each caught by the test that is named for it",
    sabotage: "a patch that breaks nothing stands among the bugs",
    needs: Needs::Nothing,
    ci: Ci::Runs,
    check: planted,
};

/// One patch and the test, of the library of one package, that must fail with it.
#[derive(Clone, Copy)]
struct Bug {
    patch: &'static str,
    package: &'static str,
    test: &'static str,
}

const fn bug(patch: &'static str, package: &'static str, test: &'static str) -> Bug {
    Bug { patch, package, test }
}

const CORE: &str = "gossamer-core";

/// In CI the first [`CI_BUGS`]; the patched crates are built anew for each.
const BUGS: &[Bug] = &[
    bug(
        "3-accept-old.patch",
        CORE,
        "catalog::tests::time::r14_an_older_epoch_of_a_forgotten_node_is_not_taken",
    ),
    bug(
        "3-ignore-signature.patch",
        CORE,
        "catalog::tests::bad::r1_an_advert_signed_by_another_node_is_refused",
    ),
    bug(
        "3-no-proof.patch",
        CORE,
        "membership::tests::attack::forged_deaths_cost_the_victim_nothing_and_name_the_liar",
    ),
    bug(
        "3-no-timer-filter.patch",
        CORE,
        "membership::tests::faults::a_flapping_link_costs_nobody_else_anything",
    ),
    bug(
        "3-no-state-exchange.patch",
        CORE,
        "membership::tests::peer::a_lasting_difference_of_hashes_is_answered_with_the_full_state",
    ),
    bug(
        "3-no-pause.patch",
        CORE,
        "membership::tests::peer::a_suspect_has_its_full_time_after_a_pause_of_this_node",
    ),
    bug(
        "3-no-age.patch",
        CORE,
        "catalog::tests::time::r13_a_head_at_second_hand_gives_what_is_left_of_its_lease",
    ),
    bug("3-no-lost-heads.patch", CORE, "catalog::tests::time::r13_a_head_that_was_lost_is_asked_for"),
    bug(
        "3-no-rate.patch",
        CORE,
        "catalog::tests::bad::r19_the_latest_over_the_rate_is_taken_later_and_others_are_not_touched",
    ),
    bug(
        "3-outside-claims.patch",
        CORE,
        "catalog::tests::bad::r21_records_outside_the_claims_are_not_served_and_counted",
    ),
    bug(
        "3-silent-repair.patch",
        CORE,
        "catalog::tests::tree::r6_a_healed_partition_is_equal_within_two_seconds_and_copies_come_once",
    ),
    bug(
        "3-old-epoch-stays.patch",
        CORE,
        "catalog::tests::old_fragments_count_ten_seconds_after_a_newer_head_at_the_most",
    ),
    bug("3-skip-fsync.patch", "gossamer", "store::tests::a_write_is_synced_and_a_quick_disk_needs_no_thread"),
];
const CI_BUGS: usize = 3;

const HARMLESS: Bug = bug("3-harmless.patch", CORE, "catalog::tests::one_push_shows_a_service_on_every_node");

/// How long the tests of one package may take to build and run.
const LIMIT: Duration = Duration::from_secs(900);

fn planted(run: &Run) -> Result<String> {
    let tree = Worktree::new(&run.root)?;
    let mut bugs = BUGS[..run.times(BUGS.len(), CI_BUGS)].to_vec();
    if run.sabotaged {
        bugs.truncate(1);
        bugs.push(HARMLESS);
    }
    let mut escaped = Vec::new();
    for bug in &bugs {
        tree.plant(bug.patch)?;
        if !is_caught(run, &tree, bug)? {
            escaped.push(bug.patch);
        }
        tree.restore()?;
    }
    let caught = bugs.len() - escaped.len();
    promise!(escaped.is_empty(), "{caught} of {} caught, not {}", bugs.len(), escaped.join(", "));
    Ok(format!("{caught} of {caught} caught"))
}

/// Whether the test fails. What does not build, or has no such test, shows nothing.
fn is_caught(run: &Run, tree: &Worktree, bug: &Bug) -> Result<bool> {
    let arguments = ["test", "--locked", "-p", bug.package, "--lib", bug.test, "--", "--exact"];
    let done = run.tool(&tree.path(), "cargo", &arguments, LIMIT)?;
    let ends = |result: &str| done.stdout.contains(&format!("test {} ... {result}", bug.test));
    let (fails, passes) = (ends("FAILED"), ends("ok"));
    ensure!(fails || passes, "{} with {}: {}", bug.test, bug.patch, done.stderr.trim());
    Ok(fails && done.stdout.contains("test result: FAILED"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::evidence::root;

    /// Returns the file a patch changes, and for each of its hunks what must stand there.
    fn wanted(patch: &str) -> (String, Vec<String>) {
        let mut file = String::new();
        let mut hunks: Vec<String> = Vec::new();
        for line in patch.lines().skip_while(|line| !line.starts_with("diff ")) {
            if let Some(path) = line.strip_prefix("--- a/") {
                path.clone_into(&mut file);
            } else if line.starts_with("@@") {
                hunks.push(String::new());
            } else if let (Some(hunk), [b' ' | b'-', ..]) = (hunks.last_mut(), line.as_bytes()) {
                hunk.push_str(&line[1..]);
                hunk.push('\n');
            }
        }
        (file, hunks)
    }

    #[test]
    fn every_bug_fits_the_tree_and_has_its_test() {
        for bug in BUGS.iter().chain([&HARMLESS]) {
            let patch = fs::read_to_string(root().join("tests/planted").join(bug.patch)).expect(bug.patch);
            assert!(!patch.starts_with("diff "), "{} does not say what it breaks", bug.patch);
            let (file, hunks) = wanted(&patch);
            let source = fs::read_to_string(root().join(&file)).expect(&file);
            assert!(!hunks.is_empty(), "{}", bug.patch);
            assert!(hunks.iter().all(|hunk| source.contains(hunk)), "{} no longer fits {file}", bug.patch);
        }
    }

    #[test]
    fn no_patch_of_a_bug_is_left_out() {
        let files = fs::read_dir(root().join("tests/planted")).expect("the folder").filter_map(Result::ok);
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        let of_issue_3 = names.filter(|name| name.starts_with("3-")).count();
        assert_eq!(of_issue_3, BUGS.len() + 1);
    }
}
