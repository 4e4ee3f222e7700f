//! Paths to peers, as rows.
//!
//! Owns: their words. Must not know: how paths are chosen. Driven by: `handlers`.

use std::collections::BTreeMap;

use gossamer_wire::NodeId;

use super::messages::{PathRow, PeerRow};
use crate::transport::Path;

/// Makes the row of a path.
pub(super) fn path_row(path: &Path) -> PathRow {
    let Path { kind, rtt, sizes } = path;
    PathRow {
        kind: kind.word().to_owned(),
        at: kind.at().to_string(),
        rtt_us: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
        size: sizes.proven,
    }
}

/// Makes the rows of the connected peers, in order of their names.
pub(super) fn peer_rows(paths: &BTreeMap<NodeId, Path>, name_of: impl Fn(NodeId) -> String) -> Vec<PeerRow> {
    let row = |(node, path): (&NodeId, &Path)| PeerRow { node: name_of(*node), path: path_row(path) };
    let mut rows: Vec<_> = paths.iter().map(row).collect();
    rows.sort_by(|a, b| a.node.cmp(&b.node));
    rows
}
