//! Gossamer as it is measured: two daemons of the shipped program, default settings, joined by a token.
//!
//! Owns: the daemons and the service. Must not know: what is measured. Driven by: the suite.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use gossamer_tests::process::{Lab, Node};
use gossamer_tests::wait::until;

use super::net::Net;
use super::target;

/// The service and its port.
const SERVICE: &str = "target";
const PORT: u16 = 8_080;
/// Longest wait until the caller can use it.
const USABLE: Duration = Duration::from_secs(30);

/// A daemon beside the target and one beside the client.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) server: Node,
    pub(super) caller: Node,
    /// Where clients connect to, on either machine.
    pub(super) vip: SocketAddr,
}

impl Mesh {
    /// Makes a mesh of both machines in which the target is exposed and usable.
    ///
    /// # Errors
    /// A daemon does not do its part, with the end of its log.
    pub(super) fn start(program: &Path, net: &Net) -> Result<Self> {
        // Its files go when both nodes have.
        let lab = Lab::new(program)?;
        let mut server = lab.node_in("server", &net.server)?;
        server.init("default")?;
        let mut caller = lab.node_in("caller", &net.client)?;
        caller.join(&server.token(&[])?)?;
        server.ok(&["expose", &format!("{SERVICE}:{PORT}"), &format!("127.0.0.1:{}", target::PORT)])?;
        let vip = caller.resolver()?.address(&format!("{SERVICE}.mesh.internal"), USABLE)?;
        let what = format!("{SERVICE} usable");
        until(&what, USABLE, || Ok(caller.json(&["services", SERVICE])?.to_string().contains("\"usable\"")))?;
        Ok(Self { server, caller, vip: (vip, PORT).into() })
    }

    /// Opens the service's address on the server's machine, too, for clients there.
    ///
    /// # Errors
    /// Its daemon does not answer.
    pub(super) fn vip_at_server(&self) -> Result<SocketAddr> {
        let vip = self.server.resolver()?.address(&format!("{SERVICE}.mesh.internal"), USABLE)?;
        Ok((vip, PORT).into())
    }

    /// Returns the ids of both daemons.
    ///
    /// # Errors
    /// One does not run.
    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        let ids = [self.server.pid()?, self.caller.pid()?];
        ids.into_iter().map(|id| Ok(u32::try_from(id)?)).collect()
    }
}
