//! A daemon whose system gives it nothing more.
//!
//! Owns: how it is brought about on a real daemon. Must not know: how the daemon copes. Driven by: `evidence`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Ci, Needs, Row, Run};
use crate::api::Api;
use crate::process::{COMMAND, Lab, Node};
use crate::wait::{throughout, until};

pub(super) const ROW: Row = Row {
    name: "3.2-no-descriptors",
    promise: "A daemon that has no file descriptor left stays a member and learns and answers records; with some again its local API answers",
    sabotage: "it is stopped meanwhile",
    // The files of a daemon are shown to root only: it is not dumpable.
    needs: Needs::Root,
    ci: Ci::Runs,
    check: no_descriptors,
};

/// How long it has none: longer than any suspicion lasts.
const SCARCE: Duration = Duration::from_secs(15);
/// How long a change may take to travel, and a daemon to be itself again.
const TRAVEL: Duration = Duration::from_secs(10);
/// Clients that wait for the local API meanwhile.
const CLIENTS: usize = 8;

fn no_descriptors(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut near = lab.node("near")?;
        near.init("default")?;
        let mut poor = lab.node("poor")?;
        poor.join(&near.token(&[])?)?;
        near.sees("poor", "alive", TRAVEL)?;
        let resolver = poor.resolver()?;

        let open = fs::read_dir(format!("/proc/{}/fd", poor.pid()?))?.count();
        limit(lab, &poor, open)?;
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| UnixStream::connect(poor.socket())).collect::<Result<_, _>>()?;
        if run.sabotaged {
            poor.signal(Signal::SIGSTOP)?;
        }
        near.ok(&["expose", "orders:5432"])?;
        throughout("the poor node being alive", SCARCE, || {
            Ok(near.state_of("poor")?.as_deref() == Some("alive"))
        })?;
        resolver.address("orders.mesh.internal", TRAVEL)?;
        let asked = Api::connect(&poor.socket())?.request("GET", "/v1/status", &Value::Null);
        ensure!(asked.is_err(), "it had descriptors left");

        drop(clients);
        limit(lab, &poor, open + 1_000)?;
        let again = until("the local API answering", TRAVEL, || Ok(poor.cli(&["status"])?.code == Some(0)))?;
        Ok(format!(
            "a member for {} s with {open} of {open} descriptors; status {} ms later",
            SCARCE.as_secs(),
            again.as_millis()
        ))
    })
}

/// Lets a daemon have so many descriptors; those it has stay.
fn limit(lab: &Lab, node: &Node, descriptors: usize) -> Result<()> {
    let mut command = Command::new("prlimit");
    command.arg(format!("--pid={}", node.pid()?)).arg(format!("--nofile={descriptors}:"));
    let done = lab.finish(command, COMMAND).context("prlimit, of util-linux")?;
    ensure!(done.code == Some(0), "prlimit: {}", done.stderr.trim());
    Ok(())
}
