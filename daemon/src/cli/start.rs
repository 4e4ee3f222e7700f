//! `init`, `join`, `run` and `leave`: how a daemon begins and ends.
//!
//! Owns: the ways to start: foreground, background, the system's unit, not at all. Must not know: the daemon.
//! Driven by: `cli`. Each is idempotent: a daemon that runs already is left as it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use gossamer_wire::token::Claims;
use tokio::time::{Instant, sleep};

use super::args::{Global, Init, Join, Run, Start};
use super::claim::claim;
use super::failure::{Exit, Failure};
use super::run::{Prepared, Then, foreground, join_line};
use super::{expose, identity, load, output};
use crate::api::Client;
use crate::api::messages::{CreateToken, LeavingRow, Status, StatusNode};
use crate::app::Again;
use crate::config::{Config, Flags, REMEMBERED_FILE, Remembered, Settings, SlotChoice, remember};
use crate::memory;
use crate::store::Store;

/// Longest wait for a daemon in the background to become ready, or to end.
const CHANGE_WITHIN: Duration = Duration::from_secs(15);

/// Where packages install the unit.
const UNITS: [&str; 3] = [
    "/etc/systemd/system/gossamer.service",
    "/usr/lib/systemd/system/gossamer.service",
    "/lib/systemd/system/gossamer.service",
];

pub(super) async fn init(global: &Global, asked: &Init) -> Result<ExitCode, Failure> {
    without_core();
    let config = load(asked.start.add_to(global.flags()))?;
    let body = first_token(asked);
    if let Some((client, status)) = running(&config).await? {
        note_running(&status);
        join_line(&client, &body).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let (settings, claim) = claim(&config)?;
    let store = Store::open(&settings.state_dir)?;
    let identity = identity::init(&config, &settings, &store, asked)?;
    keep_flags(&store, &asked.start)?;
    if asked.no_start {
        return prepared_only(&settings);
    }
    if background_is_wanted(global, &asked.start) {
        drop((store, claim));
        let client = background(global, &asked.start, &settings).await?;
        join_line(&client, &body).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let then = Then { join_line: Some(body), expose: exposed(&config)?, ..Then::default() };
    foreground(Prepared { again: again(&config, &settings), settings, store, identity, claim }, then).await
}

pub(super) async fn join(global: &Global, asked: &Join) -> Result<ExitCode, Failure> {
    without_core();
    let config = load(asked.start.add_to(global.flags()))?;
    let token = identity::token(&config, asked).await?;
    if let Some((_, status)) = running(&config).await? {
        note_running(&status);
        return match token {
            Some(token) if token.grant().mesh.to_string() != status.mesh.id => {
                Err(Failure::failed(format_args!(
                    "the daemon at {} belongs to another mesh; stop it, or pass --slot auto for a second one",
                    status.socket.display()
                )))
            }
            _ => Ok(ExitCode::SUCCESS),
        };
    }
    let then = Then { expose: exposed(&config)?, ..Then::default() };
    let (settings, claim) = claim(&config)?;
    let store = Store::open(&settings.state_dir)?;
    let identity = identity::join(&config, &settings, &store, token, asked.node.clone()).await?;
    keep_flags(&store, &asked.start)?;
    if asked.no_start {
        return prepared_only(&settings);
    }
    if background_is_wanted(global, &asked.start) {
        drop((store, claim));
        background(global, &asked.start, &settings).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if asked.token.as_ref().is_some_and(|token| !token.is_dash()) {
        let error = without_token(&asked.start.add_to(global.flags()), &settings);
        output::note(format_args!("warning: the token stays among the arguments of this process ({error})"));
    }
    foreground(Prepared { again: again(&config, &settings), settings, store, identity, claim }, then).await
}

pub(super) async fn run(global: &Global, asked: Run) -> Result<ExitCode, Failure> {
    // A command inherits the limit, and its cores are its own.
    if asked.command.is_empty() {
        without_core();
    }
    let config = load(asked.start.add_to(global.flags()))?;
    let then =
        Then { expose: exposed(&config)?, forward: asked.forward, command: asked.command, ..Then::default() };
    let (settings, claim) = claim(&config)?;
    let store = Store::open(&settings.state_dir)?;
    let identity = match crate::identity::load(&store)? {
        Some(identity) => identity,
        None => match identity::token_of_environment(&config)? {
            Some(token) => identity::join(&config, &settings, &store, Some(token), None).await?,
            None => {
                return Err(Failure::failed(format_args!(
                    "{} holds no identity; run gossamer init, gossamer join TOKEN, or set GOSSAMER_TOKEN",
                    settings.state_dir.display()
                )));
            }
        },
    };
    if asked.start.detach {
        drop((store, claim));
        background(global, &asked.start, &settings).await?;
        return Ok(ExitCode::SUCCESS);
    }
    foreground(Prepared { again: again(&config, &settings), settings, store, identity, claim }, then).await
}

/// Returns what reads the settings of a slot again. It keeps no token: what it has read of the environment stays.
fn again(config: &Config, settings: &Settings) -> Again {
    let (config, slot) = (config.clone().without_token(), settings.slot);
    Again::new(move || config.again().map(|config| config.settings(slot)))
}

/// No core, also where the kernel was not told that this process is private. A unit that may not set limits has set
/// this one itself.
fn without_core() {
    let _ = memory::no_core();
}

/// Asks the daemon to leave and waits until it is gone.
pub(super) async fn leave(client: &Client) -> Result<(), Failure> {
    let node: StatusNode = client.post("/v1/leave", &()).await?;
    let mut deadline = Instant::now() + CHANGE_WITHIN;
    let mut is_told = false;
    while let Ok(status) = client.get::<Status>("/v1/status").await {
        if let Some(leaving) = status.leaving.filter(|leaving| leaving.flows > 0) {
            let LeavingRow { flows, left_seconds } = leaving;
            deadline = Instant::now() + CHANGE_WITHIN + Duration::from_secs(left_seconds);
            if !is_told {
                output::note(format_args!("waiting for {flows} flows to end, at most {left_seconds} s"));
                is_told = true;
            }
        }
        if Instant::now() > deadline {
            return Err(Failure::new(Exit::TimedOut, "the daemon left but did not end; look at its log"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    output::note(format_args!("node {} has left; gossamer run brings it back without a token", node.name));
    Ok(())
}

/// Keeps what was said about this machine, so that `run` and the unit start it in the same way.
fn keep_flags(store: &Store, start: &Start) -> Result<(), Failure> {
    let mut known: Remembered = store.read_json(REMEMBERED_FILE)?.unwrap_or_default();
    if remember(&mut known, &start.add_to(Flags::default()).keys) {
        store.write_json(REMEMBERED_FILE, &known)?;
    }
    Ok(())
}

/// An hour for one machine: what the line that `init` prints holds.
fn first_token(asked: &Init) -> CreateToken {
    CreateToken {
        ttl_seconds: 3_600,
        uses: 1,
        group: None,
        name: None,
        claims: Claims::default(),
        addresses: asked.address.clone(),
    }
}

fn exposed(config: &Config) -> Result<Vec<crate::api::messages::Expose>, Failure> {
    config.host().variable("GOSSAMER_EXPOSE").map_or_else(|| Ok(Vec::new()), expose::from_variable)
}

/// Finds the daemon that runs on the same state directory already. One on another directory has the socket:
/// that is known before anything is written.
async fn running(config: &Config) -> Result<Option<(Client, Status)>, Failure> {
    let SlotChoice::Fixed(slot) = config.slot() else { return Ok(None) };
    let settings = config.settings(slot);
    let client = Client::new(&settings.socket);
    match client.get::<Status>("/v1/status").await {
        Ok(status) if status.state_dir == settings.state_dir => Ok(Some((client, status))),
        Ok(status) => Err(Failure::failed(format_args!(
            "{} belongs to a running daemon (process {}); stop it, or pass --slot auto for a second one",
            settings.socket.display(),
            status.pid
        ))),
        Err(_) => Ok(None),
    }
}

fn note_running(status: &Status) {
    output::note(format_args!(
        "node {} of mesh {} runs already (process {})",
        status.node.name, status.mesh.name, status.pid
    ));
}

fn prepared_only(settings: &Settings) -> Result<ExitCode, Failure> {
    output::note(format_args!(
        "the identity is in {}; start with gossamer run",
        settings.state_dir.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// A unit is used where one is installed and nothing but its defaults is asked for.
fn background_is_wanted(global: &Global, start: &Start) -> bool {
    start.detach || unit_is_wanted(global, start)
}

fn unit_is_wanted(global: &Global, start: &Start) -> bool {
    let is_plain = start.is_plain() && global.flags().keys.is_empty() && global.flags().config.is_none();
    is_plain
        && nix::unistd::geteuid().is_root()
        && Path::new("/run/systemd/system").exists()
        && UNITS.iter().any(|unit| Path::new(unit).exists())
}

async fn background(global: &Global, start: &Start, settings: &Settings) -> Result<Client, Failure> {
    let client = Client::new(&settings.socket);
    if unit_is_wanted(global, start) {
        let failed = |why: String| {
            Failure::failed(format_args!("systemctl enable --now gossamer: {why}; run it by hand"))
        };
        let status = Command::new("systemctl").args(["enable", "--now", "gossamer"]).status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(failed(status.to_string())),
            Err(error) => return Err(failed(error.to_string())),
        }
        wait_until_ready(&client, || None, "journalctl -u gossamer").await?;
        return Ok(client);
    }
    let log = settings.state_dir.join("gossamer.log");
    let mut child = detached(&start.add_to(global.flags()), settings, &log)?;
    let ended = || child.try_wait().ok().flatten().map(|status| status.to_string());
    wait_until_ready(&client, ended, &log.display().to_string()).await?;
    output::note(format_args!("running in the background, process {}, log {}", child.id(), log.display()));
    Ok(client)
}

/// Goes on as `run` in this process: every user of the machine can read arguments for as long as it lives. Lock and
/// claim end with what it was before. Returns why it did not.
fn without_token(flags: &Flags, settings: &Settings) -> io::Error {
    match run_again(flags, settings) {
        Ok(mut command) => command.env_remove("GOSSAMER_TOKEN").exec(),
        Err(error) => error,
    }
}

/// Makes the command that runs what this process has prepared.
fn run_again(flags: &Flags, settings: &Settings) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").args(["--slot", &settings.slot.to_string()]);
    if let Some(config) = &flags.config {
        command.arg("--config").arg(config);
    }
    for (key, value) in flags.keys.iter().filter(|(key, _)| *key != "slot") {
        command.arg(crate::config::flag_of(key)).arg(value);
    }
    Ok(command)
}

/// Starts `run` with the same flags, in a process group of its own so that Ctrl-C does not reach it.
fn detached(flags: &Flags, settings: &Settings, log: &Path) -> Result<std::process::Child, Failure> {
    let failed = |error: io::Error| {
        Failure::failed(format_args!("{} cannot be started in the background: {error}", log.display()))
    };
    let output = File::options().create(true).append(true).mode(0o600).open(log).map_err(failed)?;
    let mut command = run_again(flags, settings).map_err(failed)?;
    command.stdin(Stdio::null()).stdout(output.try_clone().map_err(failed)?).stderr(output).process_group(0);
    command.spawn().map_err(failed)
}

async fn wait_until_ready(
    client: &Client,
    mut ended: impl FnMut() -> Option<String>,
    log: &str,
) -> Result<(), Failure> {
    let deadline = Instant::now() + CHANGE_WITHIN;
    while client.get::<Status>("/v1/status").await.is_err() {
        if let Some(status) = ended() {
            return Err(Failure::failed(format_args!("the daemon ended at once ({status}); look at {log}")));
        }
        if Instant::now() > deadline {
            return Err(Failure::new(
                Exit::TimedOut,
                format_args!("the daemon is not ready after 15 s; look at {log}"),
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
