//! The redirection of dnat mode, as `status` shows it.
//!
//! Owns: its words, and what mends it. Must not know: how it is looked at. Driven by: `handlers`.

use gossamer_core::vip::{Family, Standing};

use super::messages::Finding;
use crate::app::About;
use crate::relay::Standings;

/// Returns the state of each family, by its name in `--json` and metrics.
pub(super) fn words(standings: &Standings) -> [(String, String); 2] {
    standings.each().map(|(family, standing)| (label(family).to_owned(), standing.to_string()))
}

/// Returns the name of a family in `--json` and metrics.
pub(crate) const fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}

/// Says what is missing and what brings it back.
pub(super) fn findings(standings: &Standings, about: &About) -> Vec<Finding> {
    let finding = |(family, standing): (Family, Standing)| {
        let why = standing.missing()?;
        let effect = match family {
            Family::V4 => "no name is answered with a virtual address",
            Family::V6 => "names have no AAAA record",
        };
        let slot = if about.slot == 0 { String::new() } else { format!(" --slot {}", about.slot) };
        Some(Finding {
            text: format!(
                "vip.mode is dnat, and over {family} {why}: {effect}, so that no other program gets their connections"
            ),
            fix: format!("sudo gossamer{slot} host setup --only vips; it is seen within 5 s"),
        })
    };
    standings.each().into_iter().filter_map(finding).collect()
}
