//! A relay that lies about who is connected: it says that a circuit leads to a node, and leads it astray.
//!
//! Owns: the lies, and what must come of each. Must not know: the bytes of circuits. Driven by: `evidence`. Needs root: each
//! machine is a network namespace.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::addresses::metric;
use super::carried::{kept, listen};
use super::circuits::{Hidden, behind, paths};
use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::planted::Worktree;
use crate::process::{Lab, Node};
use crate::promise;
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[Row {
    name: "7.3-astray",
    promise: "A relay says that it leads to a node, and leads to another member, to the caller, to itself, in a row or a loop with a second relay, or to nobody: with each of the 6 lies flows pass through the second relay, a failed dial is counted as led astray and within 60 s a finding and an event of who dialled name the liar, the next flow is answered within 3 s, none comes about once the second relay is dead, and no byte reaches a program of another node",
    sabotage: "the relay is honest",
    needs: Needs::Root,
    ci: Ci::Skips("it builds the program once more, with a relay that lies"),
    check: astray,
}];

/// What the relay does to circuits, and the reason that the failed dial is counted by.
const LIES: [(&str, &str); 6] = [
    ("another", "led_nowhere"),
    ("caller", "led_nowhere"),
    ("itself", "led_elsewhere"),
    ("row", "led_nowhere"),
    ("loop", "led_nowhere"),
    ("nobody", "led_nowhere"),
];

const SEEN: Duration = Duration::from_secs(20);
const NAMED: Duration = Duration::from_secs(60);
const ANSWERED: Duration = Duration::from_secs(3);
/// How long a flow is tried for that must not come about: past two dials.
const IN_VAIN: Duration = Duration::from_secs(6);
/// Where the services of the wrong nodes are offered.
const PORT: u16 = 5_432;

fn astray(run: &Run) -> Result<String> {
    let planted = if run.sabotaged {
        None
    } else {
        let tree = Worktree::with_patch(&run.root, "7-astray.patch")?;
        let program = run.planted(&tree)?;
        Some((tree, program))
    };
    let mut found = Vec::new();
    for (lie, reason) in LIES {
        let segment = Segment::new(5)?;
        let (public, routers) = segment.machines().split_at(3);
        let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
        let named = run.scenario(|lab| {
            let of_liar =
                planted.as_ref().map_or_else(|| Ok(lab.clone()), |(_, program)| Lab::new(program))?;
            let relay = |name: &str, machine: &Namespace| match name {
                "relay0" => Ok(of_liar.node_in(name, machine)?.with("GOSSAMER_LIE", lie)),
                honest => lab.node_in(honest, machine),
            };
            let mesh = kept("a mesh", Hidden::with(lab, public, [&left, &right], true, relay))?;
            misled(mesh, public, &left, (lie, reason))
        });
        found.push(format!("{lie} after {:.0} s", named.with_context(|| lie)?.as_secs_f64()));
    }
    Ok(format!(
        "the liar was named with 6 of 6 lies: {}; no byte of 6 x 4 flows went astray",
        found.join(", ")
    ))
}

/// Lets flows pass beside the liar until it is named. Returns when it was.
fn misled(
    mut mesh: Hidden,
    public: &[Namespace],
    caller: &Namespace,
    (lie, reason): (&str, &str),
) -> Result<Duration> {
    let began = Instant::now();
    let wrong = [wrong_program(&mesh.issuer, &public[0])?, wrong_program(&mesh.relays[0], &public[1])?];
    // They stay, so that each needs a circuit of its own.
    let mut flows = vec![kept("a flow to b", mesh.call(caller, SEEN))?];
    for _ in 0..2 {
        flows.push(kept("a flow beside it", mesh.call(caller, ANSWERED))?);
    }
    let named = until("a finding about the liar", NAMED, || {
        mesh.nodes.iter().try_fold(false, |found, node| Ok(found || has_found(node, reason)?))
    });
    kept("what was counted and named", named)?;
    let took = began.elapsed();
    flows.push(kept("the next flow", mesh.call(caller, ANSWERED))?);
    let path = paths(&mesh.nodes[0])?;
    promise!(path == ["relay relay1"; 4], "the paths of flows are {path:?}");
    if lie == "loop" {
        let refused = metric(&mesh.relays[1], "gossamer_circuits_refused_total{reason=\"itself\"}")?;
        promise!(refused > 0, "the second relay has refused no circuit to who asks");
    }
    mesh.relays[1].kill9()?;
    drop(flows);
    let again = mesh.call(caller, IN_VAIN);
    promise!(again.is_err(), "a flow came about through the liar alone");
    for (listener, name) in &wrong {
        promise!(is_untouched(listener)?, "a byte has reached the program at {name}");
    }
    Ok(took)
}

/// Starts a program at a node that flows to another one must not reach.
fn wrong_program(node: &Node, machine: &Namespace) -> Result<(TcpListener, String)> {
    let (listener, target) = machine.enter(listen)??;
    node.ok(&["expose", &format!("on-{}:{PORT}", node.name), &target.to_string()])?;
    Ok((listener, node.name.clone()))
}

/// Whether no connection to a program has carried a byte; the daemon's checks carry none.
fn is_untouched(listener: &TcpListener) -> Result<bool> {
    listener.set_nonblocking(true)?;
    while let Ok((program, _)) = listener.accept() {
        program.set_read_timeout(Some(Duration::from_millis(200)))?;
        if matches!(program.peek(&mut [0]), Ok(1)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a node has counted the failed dial and names the liar in its findings and its events.
fn has_found(node: &Node, reason: &str) -> Result<bool> {
    let counted = metric(node, &format!("gossamer_dial_attempts_failed_total{{reason=\"{reason}\"}}"))?;
    let finding = node.status()?["findings"].to_string().contains("relay relay0 says that it leads to node");
    let event = node.ok(&["events"])?.contains("node relay0: relay -> astray");
    Ok(counted > 0 && finding && event)
}
