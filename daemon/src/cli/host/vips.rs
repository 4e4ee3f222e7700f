//! `host setup|undo` of dnat mode: `nft` and `ip` are told what `host::vips` decides.
//!
//! Owns: the calls, the order of steps: the record first, then the table, which is replaced at once, then routes. Must not
//! know: rules. Driven by: `cli::host`.

use std::fmt;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde::Serialize;

use super::super::failure::Failure;
use crate::clients::has_ipv6;
use crate::config::{Settings, Slot};
use crate::host::journal::{self, DIRECTORY};
use crate::host::vips::{
    Changes, Plan, Present, Record, comment_in, is_absence, route_command, route_in, rules_in,
};

/// What `--json` prints of the virtual addresses.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Whether anything was, or with `--dry-run` would be, changed.
    pub(super) changed: bool,
    /// The rules that are loaded; `null` for an undo.
    pub(super) rules: Option<String>,
    pub(super) commands: Vec<String>,
    pub(super) notes: Vec<String>,
    /// What people are told.
    #[serde(skip)]
    pub(super) done: &'static str,
}

/// Lets the kernel redirect the pool.
pub(super) fn setup(settings: &Settings, is_dry: bool) -> Result<Report, Failure> {
    let (redirect, slot) = (settings.redirect(), settings.slot.number());
    let plan = Plan::new(&redirect, &settings.vip_clients, has_ipv6());
    let earlier = read(slot)?;
    let networks = earlier.iter().flat_map(|record| &record.routes).chain(&plan.routes);
    let present = present(&plan.table, networks).map_err(Failure::failed)?;
    let (changes, record) = plan.setup(&redirect, earlier.as_ref(), &present)?;
    let report = Report {
        changed: !changes.is_empty(),
        rules: changes.loads.then(|| plan.rules.clone()),
        commands: changes.commands(),
        notes: changes.notes.clone(),
        done: if changes.is_empty() {
            "the kernel redirects virtual addresses already; nothing was changed"
        } else {
            "the kernel redirects virtual addresses to the daemon"
        },
    };
    if is_dry {
        return Ok(report);
    }
    // The record holds what may be there, also when a step fails.
    let routes = record.routes.iter().chain(&changes.routes_removed).cloned().collect();
    write(slot, &Record { routes, ..record.clone() })?;
    if let Err(why) = apply(&plan, &changes) {
        let undone = undo_slot(slot, false).err().map(|failure| failure.text);
        let outcome = undone.unwrap_or_else(|| "all of it is taken back".to_owned());
        return Err(Failure::failed(format_args!("{why}; {outcome}")));
    }
    write(slot, &record)?;
    Ok(report)
}

/// Takes back what a setup of any slot did.
pub(super) fn undo(settings: &Settings, is_dry: bool) -> Result<Report, Failure> {
    let mut report = Report::default();
    for slot in Slot::all().map(Slot::number) {
        let done = if slot == settings.slot.number() {
            undo_own_slot(settings, is_dry, &mut report.notes)?
        } else {
            undo_slot(slot, is_dry)?
        };
        if !done.is_empty() {
            (report.changed, report.done) = (true, "the kernel is as before `gossamer host setup`");
        }
        report.commands.extend(done);
    }
    Ok(report)
}

/// Takes back what a setup of the own slot left, for a `vip.mode` that needs nothing of it: connections would be sent to a
/// port that nobody holds.
pub(super) fn take_back(settings: &Settings, is_dry: bool) -> Result<Report, Failure> {
    let mut report = Report::default();
    report.commands = undo_own_slot(settings, is_dry, &mut report.notes)?;
    if !report.commands.is_empty() {
        (report.changed, report.done) = (true, "what an earlier setup for vip.mode dnat left is taken back");
    }
    Ok(report)
}

/// Takes back a setup of the own slot, also one whose record is gone, as in a container that was replaced.
fn undo_own_slot(settings: &Settings, is_dry: bool, notes: &mut Vec<String>) -> Result<Vec<String>, Failure> {
    let slot = settings.slot.number();
    if read(slot)?.is_some() {
        return undo_slot(slot, is_dry);
    }
    let record = Plan::new(&settings.redirect(), &[], true).record();
    match present(&record.table, &record.routes) {
        Ok(present) => undo_present(&record, &present, is_dry),
        // Machines in other modes need not have the programs, nor the right to use them.
        Err(why) => {
            let note = format!("there is no record of an earlier setup, and the kernel does not tell: {why}");
            notes.extend((!why.is_missing).then_some(note));
            Ok(Vec::new())
        }
    }
}

fn undo_slot(slot: u8, is_dry: bool) -> Result<Vec<String>, Failure> {
    let Some(record) = read(slot)? else { return Ok(Vec::new()) };
    let done = undo_record(&record, is_dry)?;
    if !is_dry {
        journal::remove_vips(Path::new(DIRECTORY), slot).map_err(|error| at(slot, &error))?;
    }
    Ok(done)
}

fn undo_record(record: &Record, is_dry: bool) -> Result<Vec<String>, Failure> {
    undo_present(record, &present(&record.table, &record.routes).map_err(Failure::failed)?, is_dry)
}

fn undo_present(record: &Record, present: &Present, is_dry: bool) -> Result<Vec<String>, Failure> {
    let commands = record.undo(present);
    for words in commands.iter().filter(|_| !is_dry) {
        run(words).map_err(Failure::failed)?;
    }
    Ok(commands.iter().map(|words| words.join(" ")).collect())
}

fn apply(plan: &Plan, changes: &Changes) -> Result<(), String> {
    for network in &changes.routes_removed {
        run(&route_command("del", network))?;
    }
    if changes.loads {
        load(&plan.rules)?;
    }
    for network in &changes.routes_added {
        run(&route_command("add", network))?;
    }
    Ok(())
}

/// Why it is not known what the kernel has.
#[derive(Debug)]
struct Unseen {
    text: String,
    /// A program is not there.
    is_missing: bool,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads what the kernel has of a table and of networks.
fn present<'a>(table: &str, networks: impl IntoIterator<Item = &'a String>) -> Result<Present, Unseen> {
    let words = ["list", "table", "inet", table];
    let found = output("nft", &words)?;
    let listing = match verdict(&format!("nft {}", words.join(" ")), &found) {
        Ok(()) => Some(String::from_utf8_lossy(&found.stdout)),
        Err(_) if is_absence(&String::from_utf8_lossy(&found.stderr)) => None,
        Err(why) => {
            let is_root = nix::unistd::geteuid().is_root();
            let fix =
                if is_root { "" } else { "; to look at the kernel needs root, also with --dry-run: sudo" };
            return Err(Unseen { text: why + fix, is_missing: false });
        }
    };
    let mut routes: Vec<(String, bool)> = Vec::new();
    for network in networks {
        let family = if network.contains(':') { "-6" } else { "-4" };
        let words = [family, "-o", "route", "show", "table", "local", "exact", network];
        let listing = output("ip", &words)?;
        let route = route_in(&String::from_utf8_lossy(&listing.stdout));
        if let Some(is_ours) = route
            && !routes.iter().any(|(known, _)| known == network)
        {
            routes.push((network.clone(), is_ours));
        }
    }
    let comment = listing.as_deref().map(comment_in);
    Ok(Present { comment, rules: listing.as_deref().map_or(0, rules_in), routes, addresses: addresses() })
}

/// Returns the addresses of interfaces; those of loopback are in no pool but their own.
fn addresses() -> Vec<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let storage = interface.address?;
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    all.filter(|ip| !ip.is_loopback()).collect()
}

fn load(rules: &str) -> Result<(), String> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = nft.spawn().map_err(|error| missing("nft", &error))?;
    // When it does not read on, it says why.
    let _ = child.stdin.take().map(|mut input| input.write_all(rules.as_bytes()));
    let ended = child.wait_with_output().map_err(|error| format!("nft: {error}"))?;
    verdict("nft -f -", &ended)
}

fn run(words: &[String]) -> Result<(), String> {
    let [program, arguments @ ..] = words else { return Ok(()) };
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let ended = output(program, &arguments).map_err(|why| why.text)?;
    verdict(&words.join(" "), &ended)
}

fn output(program: &str, arguments: &[&str]) -> Result<Output, Unseen> {
    // What it says is read.
    let ended = Command::new(program).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output();
    ended.map_err(|error| Unseen {
        text: missing(program, &error),
        is_missing: error.kind() == io::ErrorKind::NotFound,
    })
}

fn missing(program: &str, error: &io::Error) -> String {
    let package = if program == "nft" { "nftables" } else { "iproute2" };
    format!("{program} cannot be run: {error}; install the package {package}")
}

fn verdict(line: &str, ended: &Output) -> Result<(), String> {
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().lines().collect::<Vec<_>>().join(" / ");
    Err(format!("`{line}` ended with {}: {said}", ended.status))
}

fn read(slot: u8) -> Result<Option<Record>, Failure> {
    journal::read_vips(Path::new(DIRECTORY), slot).map_err(|error| at(slot, &error))
}

fn write(slot: u8, record: &Record) -> Result<(), Failure> {
    journal::write_vips(Path::new(DIRECTORY), slot, record).map_err(|error| at(slot, &error))
}

fn at(slot: u8, error: &io::Error) -> Failure {
    Failure::failed(format_args!(
        "{}: {error}",
        Path::new(DIRECTORY).join(journal::vips_file(slot)).display()
    ))
}
