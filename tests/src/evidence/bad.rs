//! Bad input: every line of the issue.
//!
//! Owns: running all cases of `bad_input` and counting. Must not know: the cases. Driven by: `evidence`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::Result;

use super::{Ci, Needs, Row, Run};
use crate::bad_input::CASES;
use crate::process::{Lab, Logs, scenario};
use crate::promise;
use crate::wait::Broken;

pub(super) const ROW: Row = Row {
    name: "2.0-bad-input",
    promise: "Each kind of bad input gets one clear line with cause and fix, its exit code, and leaves nothing half-written",
    sabotage: "what the program says on standard error is thrown away",
    needs: Needs::Nothing,
    ci: Ci::Skips("cargo test runs the same cases"),
    check: bad_input,
};

fn bad_input(run: &Run) -> Result<String> {
    let scratch = Lab::new(&run.gossamer)?;
    let mut program = run.gossamer.clone();
    if run.sabotaged {
        program = scratch.dir().join("gossamer");
        fs::write(&program, format!("#!/bin/sh\nexec {} \"$@\" 2>/dev/null\n", run.gossamer.display()))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    }
    let mut broken = Vec::new();
    for (name, case) in CASES {
        let logs = if run.sabotaged { Logs::Hidden } else { Logs::Shown };
        match scenario(&program, logs, case) {
            Ok(()) => {}
            Err(error) if error.downcast_ref::<Broken>().is_some() => {
                broken.push(format!("{name}: {error:#}"))
            }
            Err(error) => return Err(error.context(*name)),
        }
    }
    promise!(broken.is_empty(), "{} of {} cases: {}", broken.len(), CASES.len(), broken.join("; "));
    Ok(format!("{0} of {0} cases", CASES.len()))
}
