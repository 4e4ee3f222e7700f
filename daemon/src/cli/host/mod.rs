//! `host setup|undo|check`: the one privileged step.
//!
//! Owns: its flags, its words, what is asked of the daemon for it. Must not know: resolvers; `crate::host` does.
//! Driven by: `cli`.

mod apply;
mod ask;
mod check;
mod probe;
mod vips;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::{Args, Subcommand, ValueEnum};
use gossamer_core::vip::Mode;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::{output, settings_of};
use crate::api::Client;
use crate::api::messages::Status;
use crate::config::{Config, Flags, Settings};
use crate::host::domains::dns_domains;
use crate::host::plan::{Plan, Planned, Refusal, Snippet, Wanted, plan};

pub(super) use check::getent;

#[derive(Debug, Subcommand)]
pub(super) enum HostCommand {
    /// Tell the resolver of this machine, and with vip.mode = "dnat" its kernel; may be repeated
    Setup(Setup),
    /// Put back what setup found
    Undo(Undo),
    /// Resolve a mesh name as any program does, and say where that breaks
    Check(Check),
}

#[derive(Debug, Args)]
pub(super) struct Setup {
    /// One part only; both unless given
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Print what would be written and run, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also where every question of this machine would go to the daemon first (plain /etc/resolv.conf)
    #[arg(long)]
    yes: bool,
    /// Where the daemon answers DNS; asked of the running daemon unless given
    #[arg(long, value_name = "ADDRESS")]
    dns: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Undo {
    /// One part only; both unless given
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Where the daemon answers DNS; asked of the running daemon unless given
    #[arg(long, value_name = "ADDRESS")]
    dns: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A part of a setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The resolver of this machine
    Resolver,
    /// Routes and rules of the kernel for vip.mode = "dnat"
    Vips,
}

/// What `--json` prints of a setup or an undo.
#[derive(Debug, Default, Serialize)]
struct Report {
    resolver: String,
    /// Whether anything was, or with `--dry-run` would be, changed.
    changed: bool,
    path: String,
    /// What the file says then; `null` for an undo.
    text: Option<String>,
    /// Whether it is gone then.
    removed: bool,
    commands: Vec<String>,
    notes: Vec<String>,
    /// What became of the kernel's part; `null` where it was not meant.
    vips: Option<vips::Report>,
}

/// Returns the flags with those of the command.
pub(super) fn flags(mut flags: Flags, command: &HostCommand) -> Flags {
    let dns = match command {
        HostCommand::Setup(setup) => setup.dns.as_ref(),
        HostCommand::Check(check) => check.dns.as_ref(),
        HostCommand::Undo(_) => None,
    };
    flags.keys.extend(dns.map(|dns| ("dns.address", dns.clone())));
    flags
}

pub(super) async fn run(config: &Config, command: HostCommand) -> Result<(), Failure> {
    let settings = settings_of(config)?;
    match command {
        HostCommand::Setup(command) => setup(&settings, &command).await,
        HostCommand::Undo(command) => {
            needs_root(command.dry_run, "undo")?;
            let vips = match command.only {
                Some(Part::Resolver) => None,
                None | Some(Part::Vips) => Some(vips::undo(&settings, command.dry_run)?),
            };
            let report = match command.only {
                Some(Part::Vips) => Report::default(),
                None | Some(Part::Resolver) => apply::undo(command.dry_run).await?,
            };
            let report = Report { vips, ..report };
            show(&report, command.dry_run, command.json, "as before `gossamer host setup`")
        }
        HostCommand::Check(command) => {
            let dns = dns_address(&settings).await?;
            check::run(&settings, dns, command.json).await
        }
    }
}

async fn setup(settings: &Settings, command: &Setup) -> Result<(), Failure> {
    needs_root(command.dry_run, "setup")?;
    let vips = match (command.only, settings.vip_mode) {
        (None | Some(Part::Vips), Mode::Dnat) => Some(vips::setup(settings, command.dry_run)?),
        (Some(Part::Vips), mode) => {
            let mut report = vips::take_back(settings, command.dry_run)?;
            report.notes.insert(0, format!("vip.mode is {mode}, which needs nothing of the kernel"));
            Some(report)
        }
        (None, Mode::Bind | Mode::None) => {
            let report = vips::take_back(settings, command.dry_run)?;
            (report.changed || !report.notes.is_empty()).then_some(report)
        }
        (Some(Part::Resolver), _) => None,
    };
    if command.only == Some(Part::Vips) {
        let report = Report { vips, ..Report::default() };
        return show(&report, command.dry_run, command.json, "");
    }
    let is_set_up = vips.is_some() && settings.vip_mode == Mode::Dnat;
    resolver(settings, command, vips).await.map_err(|failure| {
        let note = if is_set_up && !command.dry_run { "; virtual addresses are set up" } else { "" };
        Failure { text: failure.text + note, ..failure }
    })
}

async fn resolver(settings: &Settings, command: &Setup, vips: Option<vips::Report>) -> Result<(), Failure> {
    let dns = dns_address(settings).await?;
    let domains = dns_domains(settings).map_err(Failure::usage)?;
    let note = domains.note();
    let wanted = Wanted { domains: domains.asked, dns, yes: command.yes, forwards: forwards(dns).await };
    let facts = probe::facts();
    match plan(&facts, &wanted)? {
        Planned::Snippet(snippet) => {
            note.iter().for_each(|note| output::note(format_args!("note: {note}")));
            Err(by_hand(&snippet))
        }
        Planned::Change(mut plan) => {
            plan.notes.extend(note);
            let report = apply::setup(&facts, &wanted, &plan, command.dry_run).await?;
            let report = Report { vips, ..report };
            let done = format!(
                "questions for {} go to {dns}; `gossamer host check` looks",
                wanted.domains.join(", ")
            );
            show(&report, command.dry_run, command.json, &done)
        }
    }
}

/// Prints lines for an owner that is told by hand.
fn by_hand(snippet: &Snippet) -> Failure {
    output::data(snippet.text.trim_end());
    Failure::failed(format_args!(
        "{} writes the settings of this machine's resolver, so nothing was changed; put the lines above into {}, {}",
        snippet.owner, snippet.path, snippet.then
    ))
}

fn show(report: &Report, is_dry: bool, json: bool, done: &str) -> Result<(), Failure> {
    if json {
        return output::json(report);
    }
    if is_dry {
        lines(report).iter().for_each(output::data);
    }
    let notes = report.notes.iter().chain(report.vips.iter().flat_map(|vips| &vips.notes));
    notes.for_each(|note| output::note(format_args!("note: {note}")));
    if is_dry {
        output::note("nothing was changed (--dry-run)");
        return Ok(());
    }
    let vips = report.vips.as_ref().map_or("", |vips| vips.done);
    if !vips.is_empty() {
        output::note(format_args!("vips: {vips}"));
    }
    if report.changed {
        output::note(format_args!("{}: {done}", report.resolver));
    } else if !report.resolver.is_empty() {
        output::note(format_args!("{} is set up already; nothing was changed", report.resolver));
    } else if vips.is_empty() && report.vips.as_ref().is_none_or(|vips| vips.notes.is_empty()) {
        output::note("there is nothing to undo");
    }
    Ok(())
}

/// What a dry run prints: each file with its lines, each command as it would be run.
fn lines(report: &Report) -> Vec<String> {
    let mut lines = report.vips.as_ref().map(vips_lines).unwrap_or_default();
    if !report.changed {
        return lines;
    }
    let file = match &report.text {
        Some(text) => {
            let write = format!("write {}", report.path);
            std::iter::once(write).chain(text.lines().map(|line| format!("    {line}"))).collect()
        }
        None if report.removed => vec![format!("remove {}", report.path)],
        None => vec![format!("restore {}", report.path)],
    };
    lines.extend(file);
    lines.extend(report.commands.iter().map(|command| format!("run {command}")));
    lines
}

fn vips_lines(report: &vips::Report) -> Vec<String> {
    let run = report.commands.iter().map(|command| format!("run {command}"));
    run.chain(report.rules.iter().flat_map(|rules| rules.lines()).map(|line| format!("    {line}"))).collect()
}

fn needs_root(is_dry: bool, command: &str) -> Result<(), Failure> {
    if is_dry || nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let text = format!("the settings of this machine's resolver are root's; sudo gossamer host {command}");
    Err(Failure::new(Exit::Denied, text))
}

/// Returns where DNS is answered: as configured, else as the daemon says.
async fn dns_address(settings: &Settings) -> Result<SocketAddr, Failure> {
    let address = match settings.dns_address {
        Some(address) => address,
        None => {
            let asked: Result<Status, _> = Client::new(&settings.socket).get("/v1/status").await;
            let hint = "; or say where it answers: --dns ADDRESS";
            asked
                .map_err(Failure::from)
                .map_err(|failure| Failure { text: failure.text + hint, ..failure })?
                .dns
        }
    };
    let here = |ip: IpAddr| match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(here(address.ip()), address.port()))
}

/// Asks the daemon for a name that is none of the mesh: it refuses unless it has servers to ask.
async fn forwards(dns: SocketAddr) -> Option<bool> {
    Some(!refuses(&ask::ask(dns, ".", RecordType::NS).await.ok()?))
}

/// Whether a server refuses by itself: one that asks others says that recursion is available, also where they refuse.
fn refuses(reply: &Message) -> bool {
    reply.metadata.response_code == ResponseCode::Refused && !reply.metadata.recursion_available
}

/// The commands of a plan, in their order.
fn commands(plan: &Plan) -> Vec<String> {
    let validate = plan.validate.iter().map(|words| words.join(" "));
    validate.chain(plan.reload.iter().map(ToString::to_string)).collect()
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::failed(refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            resolver: "dnsmasq".to_owned(),
            changed: true,
            path: "/etc/dnsmasq.d/gossamer.conf".to_owned(),
            text: Some("# a\nserver=/x/127.0.0.1\n".to_owned()),
            commands: vec!["dnsmasq --test".to_owned(), "systemctl restart dnsmasq".to_owned()],
            ..Report::default()
        }
    }

    #[test]
    fn a_dry_run_shows_each_file_and_each_command() {
        show(&report(), true, false, "done").expect("shows");
        let (data, words) = output::take();
        let lines = [
            "write /etc/dnsmasq.d/gossamer.conf",
            "    # a",
            "    server=/x/127.0.0.1",
            "run dnsmasq --test",
            "run systemctl restart dnsmasq",
        ];
        assert_eq!(data, lines.join("\n"));
        assert!(words.contains("nothing was changed"), "{words}");
        let undo = Report { text: None, removed: true, ..report() };
        assert_eq!(super::lines(&undo)[0], "remove /etc/dnsmasq.d/gossamer.conf");
        assert_eq!(
            super::lines(&Report { removed: false, ..undo })[0],
            "restore /etc/dnsmasq.d/gossamer.conf"
        );
    }

    #[test]
    fn the_kernels_part_is_shown_beside_the_resolvers() {
        let vips = vips::Report {
            changed: true,
            rules: Some("table inet gossamer {\n}\n".to_owned()),
            commands: vec!["nft -f -".to_owned()],
            notes: vec!["a note".to_owned()],
            done: "the kernel redirects",
        };
        let alone = Report { vips: Some(vips), ..Report::default() };
        show(&alone, true, false, "done").expect("shows");
        let (data, words) = output::take();
        assert_eq!(data, "run nft -f -\n    table inet gossamer {\n    }");
        assert!(words.contains("note: a note") && words.contains("nothing was changed"), "{words}");
        show(&alone, false, false, "done").expect("shows");
        let words = output::take().1;
        assert!(words.contains("vips: the kernel redirects") && !words.contains("undo"), "{words}");
    }

    #[test]
    fn what_was_not_needed_is_said() {
        show(&Report::default(), false, false, "done").expect("shows");
        assert_eq!(output::take().1, "there is nothing to undo");
        show(&Report { changed: false, ..report() }, false, false, "done").expect("shows");
        assert!(output::take().1.contains("nothing was changed"));
    }

    #[test]
    fn lines_for_others_are_data_and_the_exit_is_one() {
        let snippet =
            Snippet { owner: "NetworkManager", path: "/x", text: "server=/a/b\n".to_owned(), then: "reload" };
        let failure = by_hand(&snippet);
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.text.contains("nothing was changed") && failure.text.contains("/x"), "{failure}");
        assert_eq!(output::take().0, "server=/a/b");
    }

    #[tokio::test]
    async fn a_server_that_asks_others_says_so_whatever_they_answer() {
        let server = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let address = server.local_addr().expect("bound");
        let answer = async {
            for recursion in [false, true] {
                let mut buffer = [0; 512];
                let (length, from) = server.recv_from(&mut buffer).await.expect("a question");
                let mut reply = Message::from_vec(&buffer[..length]).expect("a message");
                assert!(reply.metadata.recursion_desired);
                reply.metadata.response_code = ResponseCode::Refused;
                reply.metadata.recursion_available = recursion;
                server.send_to(b"noise", from).await.expect("sends");
                server.send_to(&reply.to_vec().expect("bytes"), from).await.expect("sends");
            }
        };
        let (_, seen) = tokio::join!(answer, async { [forwards(address).await, forwards(address).await] });
        assert_eq!(seen, [Some(false), Some(true)]);
    }
}
