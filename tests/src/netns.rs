//! Network namespaces: machines that share a kernel.
//!
//! Owns: namespaces with a prefix of this process, their links, rules and resolver files; nothing else of the
//! machine is touched. Must not know: daemons. Driven by: checks that need root.
//!
//! A namespace is removed when its value is dropped. What a killed run has left behind is removed by the next:
//! the prefix holds the id of the process that made it.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

mod star;

pub use star::{Counter, LINK_HEADER, Star};

/// What every namespace of ours begins with.
const PREFIX: &str = "gsm-";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with its loopback up; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace. `label` is for people who look while it exists.
    ///
    /// # Errors
    /// Not root, or `ip` is missing.
    pub fn new(label: &str) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("network namespaces need root");
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            remove_leftovers()?;
        }
        let namespace = Self { name: format!("{PREFIX}{}-{number}-{label}", std::process::id()) };
        tool("ip", &["netns", "add", &namespace.name])?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Returns its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside.
    ///
    /// # Errors
    /// With the words of `ip` when it fails.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        tool("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// Runs many commands of `ip` inside, one a line, with one process.
    ///
    /// # Errors
    /// With the words of `ip` when one fails; those after it are not run.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        fed("ip", &["-n", &self.name, "-batch", "-"], lines)
    }

    /// Sets a kernel parameter of the namespace: a path below `/proc/sys/net`.
    ///
    /// # Errors
    /// The namespace has no such parameter.
    pub fn parameter(&self, path: &str, value: &str) -> Result<()> {
        let file = Path::new("/proc/sys/net").join(path);
        self.enter(|| fs::write(&file, value))?.with_context(|| file.display().to_string())
    }

    /// Loads nftables rules inside, beside those that are there.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn nft(&self, rules: &str) -> Result<()> {
        tool("ip", &["netns", "exec", &self.name, "nft", rules])
    }

    /// Returns what `nft` says inside.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn nft_says(&self, arguments: &str) -> Result<String> {
        said("ip", &["netns", "exec", &self.name, "nft", arguments])
    }

    /// Removes all rules inside.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn flush_rules(&self) -> Result<()> {
        self.nft("flush ruleset")
    }

    /// Drops every packet to and from an address.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn cut(&self, address: Ipv4Addr) -> Result<()> {
        self.nft(&format!(
            "table ip cut {{ \
             chain in {{ type filter hook input priority 0; ip saddr {address} drop; }}; \
             chain out {{ type filter hook output priority 0; ip daddr {address} drop; }}; }}"
        ))
    }

    /// Drops every packet that would leave or enter, loopback excepted.
    ///
    /// # Errors
    /// With the words of `nft` when it fails.
    pub fn isolate(&self) -> Result<()> {
        self.nft(
            "table inet isolated { \
             chain in { type filter hook input priority 0; iif != lo drop; }; \
             chain out { type filter hook output priority 0; oif != lo drop; }; }",
        )
    }

    /// Joins the namespace to a router by a wire of its own: `eth0` here, `inside` there, 192.168.9.2 and .1. The router
    /// forwards; all that is not on the wire lies behind it.
    ///
    /// # Errors
    /// With the words of `ip` when it fails.
    pub fn behind(&self, router: &Self) -> Result<()> {
        let ends = ["type", "veth", "peer", "name", "inside", "netns", router.name()];
        self.ip(&[&["link", "add", "eth0"], &ends[..]].concat())?;
        self.ip(&["addr", "add", "192.168.9.2/24", "dev", "eth0"])?;
        self.ip(&["link", "set", "eth0", "up"])?;
        router.ip(&["addr", "add", "192.168.9.1/24", "dev", "inside"])?;
        router.ip(&["link", "set", "inside", "up"])?;
        self.ip(&["route", "add", "default", "via", "192.168.9.1"])?;
        router.parameter("ipv4/ip_forward", "1")
    }

    /// Writes the resolver configuration that programs started with `ip netns exec` see.
    ///
    /// # Errors
    /// The system refuses.
    pub fn resolv_conf(&self, text: &str) -> Result<()> {
        fs::create_dir_all(self.etc())?;
        Ok(fs::write(self.etc().join("resolv.conf"), text)?)
    }

    /// Writes the names that programs started with `ip netns exec` find without DNS.
    ///
    /// # Errors
    /// The system refuses.
    pub fn hosts(&self, text: &str) -> Result<()> {
        fs::create_dir_all(self.etc())?;
        Ok(fs::write(self.etc().join("hosts"), text)?)
    }

    /// Makes a command that runs inside, with the namespace's own resolver configuration.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref());
        command
    }

    /// Runs `inside` on a thread of the namespace: sockets it makes stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        Self::enter_named(&self.name, inside)
    }

    /// As [`Namespace::enter`], by name.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter_named<T: Send>(name: &str, inside: impl FnOnce() -> T + Send) -> Result<T> {
        let file = fs::File::open(Path::new("/run/netns").join(name)).with_context(|| name.to_owned())?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok(inside())
            });
            thread.join().unwrap_or_else(|_| bail!("the thread in {name} panicked"))
        })
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.etc());
        let _ = tool("ip", &["netns", "del", &self.name]);
    }
}

/// Several machines on one wire: a namespace each, joined by a bridge in one more.
#[derive(Debug)]
pub struct Segment {
    machines: Vec<Namespace>,
    _switch: Namespace,
}

impl Segment {
    /// Makes `count` machines with the addresses [`Segment::address`] names. At most 200.
    ///
    /// # Errors
    /// Not root, or `ip` is missing.
    pub fn new(count: u8) -> Result<Self> {
        let switch = Namespace::new("switch")?;
        switch.ip(&["link", "add", "br0", "type", "bridge"])?;
        switch.ip(&["link", "set", "br0", "up"])?;
        let mut machines = Vec::new();
        for index in 0..count {
            let machine = Namespace::new(&format!("m{index}"))?;
            let port = format!("p{index}");
            let address = format!("{}/24", Self::address(index));
            let ends = ["type", "veth", "peer", "name", &port, "netns", switch.name()];
            let hardware = Self::hardware(index);
            machine.ip(&[&["link", "add", "eth0", "address", &hardware], &ends[..]].concat())?;
            machine.ip(&["addr", "add", &address, "dev", "eth0"])?;
            machine.ip(&["link", "set", "eth0", "up"])?;
            switch.ip(&["link", "set", &port, "master", "br0", "up"])?;
            machine.ip_batch(&Self::neighbours(index, count))?;
            machines.push(machine);
        }
        Ok(Self { machines, _switch: switch })
    }

    /// Returns the lines of `ip` that tell a machine where the others are. All namespaces share the kernel's one table
    /// of neighbours, which takes 1,024 learnt ones: of fifty machines that talk with each other 2,450 would be learnt,
    /// and the kernel drops packets for those that find no place. Entries that are set do not count.
    fn neighbours(me: u8, count: u8) -> String {
        let others = (0..count).filter(|other| *other != me);
        let line = |other| {
            let (address, hardware) = (Self::address(other), Self::hardware(other));
            format!("neigh add {address} lladdr {hardware} dev eth0 nud permanent\n")
        };
        others.map(line).collect()
    }

    /// Returns the hardware address of a machine.
    fn hardware(index: u8) -> String {
        format!("02:00:0a:4d:00:{index:02x}")
    }

    /// Returns the address of a machine.
    pub const fn address(index: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 10 + index)
    }

    /// Returns the machines, in order.
    pub fn machines(&self) -> &[Namespace] {
        &self.machines
    }
}

/// Removes what a run has left that was killed: its daemons, then its namespaces.
///
/// # Errors
/// `ip` is missing.
pub fn remove_leftovers() -> Result<()> {
    let listed = Command::new("ip").args(["netns", "list"]).output().context("running ip")?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        let Some(maker) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if Path::new("/proc").join(maker).exists() {
            continue;
        }
        let inside = Command::new("ip").args(["netns", "pids", name]).output()?;
        for pid in String::from_utf8_lossy(&inside.stdout).split_whitespace() {
            let _ = pid.parse().map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        }
        drop(Namespace { name: name.to_owned() });
    }
    Ok(())
}

/// Runs a tool that must succeed.
fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    said(program, arguments).map(drop)
}

/// Runs a tool that must succeed and returns its output.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{program} {}: {said}", arguments.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a tool that reads its orders from standard input and must succeed.
fn fed(program: &str, arguments: &[&str], orders: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let fed = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(orders.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() || fed.is_err() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{program} {}: {said}", arguments.join(" "));
    }
    Ok(())
}
