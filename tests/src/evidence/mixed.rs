//! Nodes of several versions in one mesh.
//!
//! Owns: the size and the limit. Must not know: how a later version is played. Driven by: `evidence`.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Ci, Needs, Row, Run};
use crate::promise;
use crate::sim::mixed::{Unread, mixed_idle};

pub(super) const ROW: Row = Row {
    name: "3.5-mixed-idle",
    promise: "A quiet mesh half of whose nodes speak a later version, with one fragment that nobody can decode, costs at most 1.1 times the bytes of one without",
    sabotage: "what a node cannot read is lost on its way to it, so that catalogs stay different",
    needs: Needs::Nothing,
    ci: Ci::Runs,
    check: mixed,
};

const SEED: u64 = 1;
const RATIO: f64 = 1.1;

fn mixed(run: &Run) -> Result<String> {
    let (nodes, minutes) = run.times((30, 10), (10, 5));
    let unread = if run.sabotaged { Unread::Dropped } else { Unread::Carried };
    let mixed = mixed_idle(nodes, SEED, Duration::from_secs(minutes * 60), unread)?;
    let figure = format!(
        "{:.3} times the {:.0} B/s of each of {nodes} nodes in {minutes} min, each of this version with {} adverts unread and {} quarantined",
        mixed.ratio(),
        mixed.plain,
        mixed.unread,
        mixed.quarantined
    );
    ensure!(run.sabotaged || mixed.unread > 0 && mixed.quarantined > 0, "the mesh was not mixed: {figure}");
    let is_cheap = mixed.ratio() <= RATIO;
    promise!(is_cheap, "{figure}");
    Ok(figure)
}
