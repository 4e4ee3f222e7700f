//! The root of a mesh is replaced under load, on real daemons whose certificates last seconds.
//!
//! Owns: the course of a rotation. Must not know: how statements look. Driven by: `evidence`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::issuers::{CLIENTS, SEEN, join_only, short_lived, under_load};
use super::{Ci, Needs, Row, Run};
use crate::process::{Lab, Node};
use crate::promise;
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[Row {
    name: "4.4-rotation",
    promise: "The root is replaced and 10 daemons with certificates of 5 s renew under 200 requests a second: 0 fail; retired too early, the root stays and the node that would be cut off is named; the new key leaves the machine and comes back",
    sabotage: "the early retirement is forced",
    needs: Needs::Nothing,
    ci: Ci::Runs,
    check: rotation,
}];

/// Daemons beside the one with the root key.
const OTHERS: usize = 9;
/// For two renewals of each daemon: a certificate lasts 5 s.
const RENEWED: Duration = Duration::from_secs(10);

fn rotation(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut nodes = vec![short_lived(lab, "first")?];
        nodes[0].init("default")?;
        for number in 1..=OTHERS {
            let mut node = short_lived(lab, &format!("n{number}"))?;
            node.join(&nodes[0].token(&[])?)?;
            nodes.push(node);
        }
        nodes[0].sees("n1", "alive", SEEN)?;
        nodes[0].ok(&["issuer", "add", "n1"])?;
        let mut took = Duration::ZERO;
        let asked = under_load(&nodes[1], &nodes[2..2 + CLIENTS as usize], || {
            took = play(run, lab, &nodes)?;
            Ok(())
        })?;
        key_travels(lab, &nodes[0])?;
        Ok(format!(
            "too early: refused and n{OTHERS} named; retired {took:.1?} after it was added; {} daemons renewed twice; {asked} requests, 0 failed",
            nodes.len()
        ))
    })
}

fn play(run: &Run, lab: &Lab, nodes: &[Node]) -> Result<Duration> {
    let first = &nodes[0];
    let old = root(first, None)?;
    let old_token = first.token(&[])?;
    // A node that hears of nothing for a moment, and is not yet down.
    let asleep = &nodes[OTHERS];
    asleep.signal(Signal::SIGSTOP)?;
    first.ok(&["root", "add"])?;
    let added = Instant::now();
    let mut retire = vec!["root", "retire", &old];
    retire.extend(run.sabotaged.then_some("--force"));
    let early = first.cli(&retire)?;
    asleep.signal(Signal::SIGCONT)?;
    promise!(early.code == Some(1), "retired too early: {:?}, {}", early.code, early.stderr);
    promise!(early.stderr.contains(&asleep.name), "who would be cut off is not named: {}", early.stderr);
    let new = root(first, Some(&old))?;
    until("the old root retired", SEEN, || Ok(first.cli(&["root", "retire", &old])?.code == Some(0)))?;
    let took = added.elapsed();
    let ends = |node: &Node| node.status()?["certificate_ends"].as_u64().context("an end");
    for _ in 0..2 {
        for node in nodes {
            let before = ends(node)?;
            until(&format!("a new certificate of {}", node.name), RENEWED, || Ok(ends(node)? > before))?;
        }
    }
    for node in nodes {
        promise!(root(node, None)? == new, "{} does not know", node.name);
        for other in nodes.iter().filter(|other| other.name != node.name) {
            node.sees(&other.name, "alive", SEEN)?;
        }
    }
    let (code, said) = join_only(&lab.node("by-old")?, &old_token)?;
    promise!(code != Some(0), "a token of the retired root admits: {said}");
    let mut late = short_lived(lab, "late")?;
    late.join(&first.token(&[])?)?;
    late.sees("n5", "alive", SEEN)?;
    Ok(took)
}

/// Exports the root key, takes it off the machine, finds that orders are refused, and puts it back.
fn key_travels(lab: &Lab, first: &Node) -> Result<()> {
    let (file, pass) = (lab.dir().join("root.pem"), lab.dir().join("passphrase"));
    fs::write(&pass, "correct horse battery staple\n")?;
    let (file, pass) = (file.to_str().context("a path")?, pass.to_str().context("a path")?);
    let early = first.cli(&["root", "remove"])?;
    promise!(early.code == Some(1), "a key that was never exported goes: {}", early.stderr);
    first.ok(&["root", "export", file, "--passphrase-file", pass])?;
    first.ok(&["root", "remove"])?;
    let refused = first.cli(&["root", "add"])?;
    promise!(refused.code == Some(5), "an order without the key: {:?}, {}", refused.code, refused.stderr);
    first.ok(&["root", "import", file, "--passphrase-file", pass])?;
    first.ok(&["issuer", "add", "n2"])?;
    Ok(())
}

/// Returns the id of the active root that is not `other`.
fn root(node: &Node, other: Option<&str>) -> Result<String> {
    let roots = node.json(&["root", "list"])?;
    let mut active = roots.as_array().into_iter().flatten().filter(|root| root["state"] == "active");
    let found = active.find(|root| root["id"].as_str() != other).context("a root")?;
    Ok(found["id"].as_str().context("an id")?.to_owned())
}
