//! Real endpoints in small meshes.

use super::*;

/// Runs a scenario given as text; the text needs no head.
fn text(seed: u64, nodes: usize, rest: &str) -> Report {
    let text = format!("name = 'x'\nabout = 'y'\nnodes = {nodes}\n{rest}");
    run(&Scenario::parse("x.toml", &text).expect("a scenario"), seed).expect("runs")
}

#[test]
fn three_nodes_see_each_other_and_all_records() {
    let report = text(1, 3, "records = 2");
    assert!(report.holds(), "{report}");
    assert!(report.joined.expect("joined") < Duration::from_secs(5), "{report}");
}

#[test]
fn one_seed_is_one_trace() {
    let rest = "[net]\nloss = 0.02\nduplicate = 0.01\nreorder = 0.05\n[[step]]\nat = 1\nrestart = { nodes = '2' }\n\
                [[step]]\nat = 3\npublish = { nodes = '1', count = 2 }";
    let traces: BTreeSet<_> = (0..20).map(|_| text(7, 5, rest).trace).collect();
    assert_eq!(traces.len(), 1, "{traces:?}");
    assert!(!traces.contains(&text(8, 5, rest).trace), "another seed, the same trace");
}
