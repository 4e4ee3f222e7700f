//! Failure detection without a direct link.
//!
//! Owns: three machines on one wire and a cut between two of them. Must not know: probes.
//! Driven by: `evidence`.

use std::time::Duration;

use anyhow::Result;

use super::{Ci, Needs, Row, Run};
use crate::netns::Segment;
use crate::process::{Lab, Node};
use crate::promise;
use crate::wait::throughout;

pub(super) const ROWS: &[Row] = &[Row {
    name: "2.5-indirect-probe",
    promise: "With the link between A and C cut nobody is declared down for 60 s; with C killed then, A notices",
    sabotage: "A is cut off from B as well, so that nobody can probe for it",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: indirect_probe,
}];

/// How long nobody may be declared down.
const CALM: Duration = Duration::from_secs(60);
/// How long A may take to notice. The goal of issue 3 is shorter.
const NOTICE: Duration = Duration::from_secs(30);

fn indirect_probe(run: &Run) -> Result<String> {
    let segment = Segment::new(3)?;
    run.scenario(|lab| {
        let mut nodes = mesh(lab, &segment)?;
        let [a, b, c] = segment.machines() else { unreachable!("three machines were made") };
        a.cut(Segment::address(2))?;
        c.cut(Segment::address(0))?;
        if run.sabotaged {
            a.isolate()?;
            b.cut(Segment::address(0))?;
        }
        throughout("everybody counting as a member", run.times(CALM, CALM), || {
            for node in &nodes {
                for other in ["a", "b", "c"] {
                    let state = node.state_of(other)?.unwrap_or_default();
                    promise!(state == "alive" || state == "suspect", "{} calls {other} {state:?}", node.name);
                }
            }
            Ok(true)
        })?;
        let mut killed = nodes.pop().expect("three nodes");
        killed.kill9()?;
        let noticed = nodes[0].sees("c", "down", NOTICE)?;
        Ok(format!(
            "0 declared down in {} s; A noticed C's death after {:.1} s",
            CALM.as_secs(),
            noticed.as_secs_f64()
        ))
    })
}

/// Starts a, b and c in one mesh and waits until each sees all.
pub(super) fn mesh(lab: &Lab, segment: &Segment) -> Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    for (machine, name) in segment.machines().iter().zip(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]) {
        let mut node = lab.node_in(name, machine)?;
        match nodes.first() {
            None => node.init("default")?,
            Some(first) => node.join(&first.token(&[])?)?,
        }
        nodes.push(node);
    }
    for node in &nodes {
        for other in &nodes {
            node.sees(&other.name, "alive", Duration::from_secs(30))?;
        }
    }
    Ok(nodes)
}
