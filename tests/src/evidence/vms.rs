//! Two machines, one name: the example that is the product's first promise.
//!
//! Owns: running `examples/two-vms/check.sh` with the shipped program first in the path.
//! Must not know: the steps; the script has them. Driven by: `evidence`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Ci, Needs, Row, Run};
use crate::process::Lab;

pub(super) const ROWS: &[Row] = &[Row {
    name: "2.3-two-vms",
    promise: "Two networks with the same 10.0.0.0/16 and only one side reachable: psql by name reaches the other side's PostgreSQL, never a wrong one",
    sabotage: "every `gossamer expose` is swallowed before it reaches the daemon",
    needs: Needs::Root,
    ci: Ci::Skips(".ci/run runs every example by itself"),
    check: two_vms,
}];

/// The script takes about half a minute.
const LIMIT: Duration = Duration::from_secs(300);

fn two_vms(run: &Run) -> Result<String> {
    let lab = Lab::new(&run.gossamer)?;
    let folder = run.gossamer.parent().context("a folder")?;
    let mut path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    if run.sabotaged {
        let wrapper = lab.dir().join("gossamer");
        let swallow = format!(
            "#!/bin/sh\ncase \" $* \" in *' expose '*) exit 0;; esac\nexec {} \"$@\"\n",
            run.gossamer.display()
        );
        fs::write(&wrapper, swallow)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        path = format!("{}:{path}", lab.dir().display());
    }
    let mut command = Command::new(run.root.join("examples/two-vms/check.sh"));
    command.env("PATH", path).current_dir(&run.root);
    let finished = lab.finish(command, LIMIT)?;
    let failed: Vec<_> = finished.stdout.lines().filter(|line| line.starts_with("FAIL")).collect();
    let passed = finished.stdout.lines().filter(|line| line.starts_with("PASS")).count();
    crate::promise!(
        finished.code == Some(0) && failed.is_empty() && passed > 0,
        "{passed} checks passed, then {:?} {}",
        failed,
        finished.stderr.lines().last().unwrap_or_default()
    );
    Ok(format!("{passed} of {passed} checks"))
}
