//! Two machines: a network namespace for the client and one for the target, and what joins them.
//!
//! Owns: addresses, the link, the kernel's settings inside. Must not know: what runs there. Driven by: the suite.
//!
//! Nothing of the host is touched: links are made inside the namespaces and end with them.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gossamer_tests::netns::Namespace;
use nix::sys::socket::{getsockopt, sockopt::TcpCongestion};

use super::road::{Road, Traffic};

pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// How long a first connection may take, also over a road that loses packets.
const REACHED: Duration = Duration::from_secs(10);

/// Where programs open TUN devices.
const TUN: &str = "/dev/net/tun";

/// The congestion control of every system.
const CONTROL: &str = "cubic";

/// Settings of both namespaces. Ports suffice for all connections of a round, which leave theirs waiting for a minute.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/ip_local_port_range", "10000 65535"),
    ("ipv4/tcp_tw_reuse", "1"),
    ("core/somaxconn", "8192"),
    ("ipv4/tcp_max_syn_backlog", "8192"),
];

/// The machines; removed when dropped.
#[derive(Debug)]
pub(super) struct Net {
    // The traffic ends before the namespaces do.
    _traffic: Option<Traffic>,
    pub(super) client: Namespace,
    pub(super) server: Namespace,
}

impl Net {
    /// Joins them by a pair of virtual Ethernet devices: no delay, no loss, offloads on.
    ///
    /// # Errors
    /// Not root, or `ip` is missing.
    pub(super) fn wire() -> Result<Self> {
        let (client, server) = machines()?;
        let ends = ["type", "veth", "peer", "name", "eth0", "netns", server.name()];
        client.ip(&[&["link", "add", "eth0"], &ends[..]].concat())?;
        address(&client, CLIENT, "eth0")?;
        address(&server, SERVER, "eth0")?;
        checked(&client, &server)?;
        Ok(Self { _traffic: None, client, server })
    }

    /// Joins them by an emulated road.
    ///
    /// # Errors
    /// Not root, or no TUN device can be made.
    pub(super) fn road(road: Road) -> Result<Self> {
        let (client, server) = machines()?;
        let devices = [client.enter(|| device("road0"))??, server.enter(|| device("road0"))??];
        for (namespace, own) in [(&client, CLIENT), (&server, SERVER)] {
            // What the kernel hands over waits in the road's queue, not in the device's.
            namespace.ip(&["link", "set", "road0", "txqueuelen", "5000"])?;
            address(namespace, own, "road0")?;
        }
        let traffic = Traffic::start(devices, road)?;
        checked(&client, &server)?;
        Ok(Self { _traffic: Some(traffic), client, server })
    }
}

/// Says why roads cannot be emulated on this machine, when that is so.
pub(super) fn no_road() -> Option<String> {
    (!Path::new(TUN).exists()).then(|| format!("{TUN} is missing: load the kernel's module tun"))
}

fn machines() -> Result<(Namespace, Namespace)> {
    let (client, server) = (Namespace::new("client")?, Namespace::new("server")?);
    for (path, value) in SETTINGS {
        client.parameter(path, value)?;
        server.parameter(path, value)?;
    }
    Ok((client, server))
}

fn address(namespace: &Namespace, own: Ipv4Addr, device: &str) -> Result<()> {
    namespace.ip(&["addr", "add", &format!("{own}/24"), "dev", device])?;
    namespace.ip(&["link", "set", device, "up"])?;
    if namespace.parameter("ipv4/tcp_congestion_control", CONTROL).is_err() {
        // A namespace takes only what the host allows everybody (tcp_allowed_congestion_control), which is not ours to
        // change. A route may name any that the kernel has.
        let net = format!("{}/24", Ipv4Addr::from_bits(own.to_bits() & !0xff));
        let own = own.to_string();
        let loopback = ["127.0.0.0/8", "127.0.0.1"].map(|to| (to, "lo", "127.0.0.1"));
        for (to, device, from) in loopback.into_iter().chain([(&*own, device, &*own)]) {
            let local = ["route", "replace", "local", to, "dev", device, "table", "local", "proto", "kernel"];
            namespace.ip(&[&local[..], &["scope", "host", "src", from, "congctl", CONTROL]].concat())?;
        }
        let near = ["route", "replace", &net, "dev", device, "proto", "kernel", "scope", "link"];
        namespace.ip(&[&near[..], &["src", &own, "congctl", CONTROL]].concat())?;
    }
    Ok(())
}

/// Checks on connections, from one machine to the other and inside of each, that both ends have what was set.
fn checked(client: &Namespace, server: &Namespace) -> Result<()> {
    for (from, to, address) in [
        (client, server, SERVER),
        (server, client, CLIENT),
        (client, client, Ipv4Addr::LOCALHOST),
        (server, server, Ipv4Addr::LOCALHOST),
    ] {
        let listener = to.enter(|| TcpListener::bind((address, 0)))??;
        let near = from.enter(|| TcpStream::connect_timeout(&listener.local_addr()?, REACHED))?;
        let near = near.with_context(|| format!("{address} is not reached"))?;
        for stream in [near, listener.accept()?.0] {
            let control = getsockopt(&stream, TcpCongestion)?;
            let is_set = control.as_bytes().split(|byte| *byte == 0).next() == Some(CONTROL.as_bytes());
            ensure!(is_set, "TCP to {address} has {}, not {CONTROL}", control.display());
        }
    }
    Ok(())
}

fn device(name: &str) -> Result<tappers::Tun> {
    let mut tun = tappers::Tun::new_named(tappers::Interface::new(name)?).context("a TUN device")?;
    tun.set_nonblocking(true)?;
    Ok(tun)
}
