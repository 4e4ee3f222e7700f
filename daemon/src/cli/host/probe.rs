//! The facts of this machine.
//!
//! Owns: the files and programs they are read from. Must not know: what follows from them. Driven by: `cli::host`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::host::facts::{
    Facts, Program, ResolvConf, ResolvedServers, Services, asks_resolved, dnsmasq_includes, resolved_servers,
    unbound_includes,
};
use crate::host::plan::RESOLV_CONF;
use crate::listeners::{Listeners, process_blocking};

/// Where systemd-resolved answers (systemd-resolved.service(8)).
const RESOLVED_STUB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

/// Reads them. What cannot be read is left out; the plan says what is missing.
pub(super) fn facts() -> Facts {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let resolv_conf = ResolvConf {
        text: text(RESOLV_CONF),
        is_mount: is_mount(&text("/proc/self/mountinfo"), RESOLV_CONF),
    };
    let first = resolv_conf.first();
    let stub = is_here(first).then(|| program(first)).flatten();
    let asks_resolved = asks_resolved(&text("/etc/nsswitch.conf"));
    let is_resolved = stub.as_ref().is_some_and(|program| program.name.starts_with("systemd-resolve"));
    let resolved_runs = is_resolved || (asks_resolved && program(RESOLVED_STUB.into()).is_some());
    Facts {
        includes: stub.as_ref().map(includes).unwrap_or_default(),
        resolv_conf,
        asks_resolved,
        stub,
        resolved: resolved_runs.then(resolved).flatten(),
        services: services(),
        docker: ["/run/docker.sock", "/etc/docker"].iter().any(|path| Path::new(path).exists()),
    }
}

/// Returns where the host's resolver is asked.
pub(super) fn stub_address(facts: &Facts) -> SocketAddr {
    let first = facts.resolv_conf.first();
    let is_bypassed = facts.asks_resolved && facts.resolved.is_some();
    SocketAddr::new(if is_bypassed { RESOLVED_STUB.into() } else { first }, 53)
}

fn is_here(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Returns who listens on port 53 of an address of this host. Every resolver listens for TCP too (RFC 7766).
fn program(ip: IpAddr) -> Option<Program> {
    let holder = Listeners::read_blocking().holder(SocketAddr::new(ip, 53))?;
    let process = process_blocking(holder.inode)?;
    let text = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
    let arguments = text("cmdline");
    Some(Program {
        pid: process.file_name()?.to_str()?.parse().ok()?,
        name: text("comm").trim().to_owned(),
        arguments: arguments.split_terminator('\0').map(str::to_owned).collect(),
        unit: unit(&text("cgroup")),
    })
}

/// Returns the service in `0::/system.slice/dnsmasq.service`.
fn unit(cgroup: &str) -> Option<String> {
    let last = cgroup.lines().filter_map(|line| line.rsplit('/').next());
    last.filter(|name| name.ends_with(".service")).map(str::to_owned).next()
}

/// Returns whether a path is a mount of its own (proc(5)).
fn is_mount(mountinfo: &str, path: &str) -> bool {
    mountinfo.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

fn includes(program: &Program) -> Vec<String> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    match program.name.as_str() {
        "dnsmasq" => {
            let file = program.option("-C", "--conf-file").unwrap_or("/etc/dnsmasq.conf");
            dnsmasq_includes(&text(file), program.option("-7", "--conf-dir"))
        }
        "unbound" => unbound_includes(&text(program.option("-c", "").unwrap_or("/etc/unbound/unbound.conf"))),
        _ => Vec::new(),
    }
}

fn resolved() -> Option<ResolvedServers> {
    let said = Command::new("resolvectl").args(["--no-pager", "dns"]).stdin(Stdio::null()).output().ok()?;
    said.status.success().then(|| resolved_servers(&String::from_utf8_lossy(&said.stdout)))
}

fn services() -> Services {
    // As sd_booted(3) does.
    if Path::new("/run/systemd/system").is_dir() {
        return Services::Systemd;
    }
    let Ok(scripts) = fs::read_dir("/etc/init.d") else { return Services::Unknown };
    Services::Scripts(scripts.flatten().filter_map(|script| script.file_name().into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_the_last_part_of_its_group() {
        assert_eq!(unit("0::/system.slice/dnsmasq.service\n").as_deref(), Some("dnsmasq.service"));
        assert_eq!(unit("0::/user.slice/user-0.slice/session-1.scope\n"), None);
    }

    #[test]
    fn a_mount_is_seen_by_its_own_path_only() {
        let line = "36 35 98:0 /x /etc/resolv.conf rw,noatime - ext4 /dev/root rw";
        assert!(is_mount(line, "/etc/resolv.conf"));
        assert!(!is_mount(line, "/etc"));
    }
}
