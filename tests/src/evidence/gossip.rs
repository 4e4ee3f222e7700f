//! Real daemons beside real agents of serf: the ratios of `bench gossip` that are promised.
//!
//! Owns: which ratios, and their limits. Must not know: how they are measured; the bench does.
//! Driven by: `evidence`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Ci, Needs, Row, Run};
use crate::process::Lab;

pub(super) const ROW: Row = Row {
    name: "3.1-gossip",
    promise: "50 daemons beside 50 agents of serf: started at once all see all no later than serf, a death is known to all in at most half of its time, a restart in a third",
    sabotage: "each start of a daemon waits for two seconds",
    needs: Needs::Root,
    ci: Ci::Skips("it takes five minutes of a quiet machine and the Debian package serf"),
    check: gossip,
};

const LIMIT: Duration = Duration::from_secs(1_800);

/// Most that ours may take of theirs.
const LIMITS: &[(&str, f64)] = &[("join_all", 1.0), ("kill_last", 0.5), ("restart_all", 1.0 / 3.0)];

#[derive(Deserialize)]
struct Report {
    ratios: BTreeMap<String, f64>,
}

fn gossip(run: &Run) -> Result<String> {
    let lab = Lab::new(&run.gossamer)?;
    let mut program = run.gossamer.clone();
    if run.sabotaged {
        program = lab.dir().join("gossamer");
        fs::write(
            &program,
            format!("#!/bin/sh\n[ \"$1\" = run ] && sleep 2\nexec {} \"$@\"\n", run.gossamer.display()),
        )?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    }
    let (json, program) = (lab.dir().join("gossip.json"), program.display().to_string());
    let file = json.display().to_string();
    let bench = ["run", "--release", "--quiet", "--locked", "-p", "gossamer-bench", "--", "--json", &file];
    let suite =
        ["gossip", "--nodes", run.times("50", "10"), "--gossamer", &program, "--only", "join,kill,restart"];
    let repeats = ["--repeats", "1", run.times("10", "3"), run.times("5", "1")];
    let done = run.tool(&run.root, "cargo", &[&bench[..], &suite, &repeats].concat(), LIMIT)?;
    ensure!(done.code == Some(0), "the bench ended with {:?}: {}", done.code, done.stderr.trim());
    let report: Report = serde_json::from_slice(&fs::read(&json)?).context("the bench's file")?;
    let mut found = Vec::new();
    for (name, most) in LIMITS {
        let ratio = *report.ratios.get(*name).with_context(|| format!("no {name}"))?;
        crate::promise!(ratio.total_cmp(most).is_le(), "{name} is {ratio:.2} of serf's, more than {most:.2}");
        found.push(format!("{name} {ratio:.2}"));
    }
    Ok(format!("of serf's: {}", found.join(", ")))
}
